"""A command that is given something bad: within what limits it must end, and what is wrong if it ends otherwise."""

import contextlib
import os
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import Zygote
from perturblab import claims

SECONDS = 60.0
# Bytes beyond what the process has mapped once all is imported: 3.8 GiB, most of it never touched.
MEMORY = 4 << 30
LIMITS = [["guarded", "limit", MEMORY]]
CODES = (0, 1, 2, 75, 130)  # those that README.md promises


def limit(memory: int) -> None:
    """A hook for a child of the zygote. A folder whose claim is damaged is taken over after twelve heartbeats."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))
    claims.BEAT_S = 0.1


@dataclass(frozen=True)
class Answer:
    """How a command ended; ``code`` None: it did not, and was killed."""

    code: int | None
    output: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("warning: ")]

    @property
    def fault(self) -> str:
        """What no input may do; nothing if the command ended as it should."""
        if self.code is None:
            return "hang"
        if "Traceback" in self.output:
            return "traceback"
        if self.code not in CODES:
            return f"exit code {self.code}"
        if self.code == 2 and len(self.errors) != 1:
            return f"{len(self.errors)} error lines"
        return ""


def tried(zygote: Zygote, words: Sequence[str], folder: Path, hooks: Sequence[list[Any]] = ()) -> Answer:
    """Run ``perturblab WORDS`` in ``folder`` within the limits."""
    pid = zygote.start(list(words), folder, hooks=[*hooks, *LIMITS])
    hung = not zygote.ends_within(SECONDS)
    if hung:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    ended = zygote.wait()
    return Answer(None if hung else ended.code, ended.output)
