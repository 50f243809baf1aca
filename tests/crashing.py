"""Lets chosen runs of a grid die in the middle of their training, as runs do: the launcher's server of processes imports
this first (``sitecustomize`` in a folder on PYTHONPATH). ``CRASHES``: run name -> how, as JSON; ``CRASH_STEP``: in which
training step, counted from 1."""

import faulthandler
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any


def memory_is_used_up() -> None:
    """Of a group of processes that may have little: the kernel kills this one."""
    Path(os.environ["CGROUP"], "cgroup.procs").write_text(str(os.getpid()))
    for page in iter(lambda: bytearray(b"x" * 2**20), None):
        kept.append(page)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segmentation_fault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler._sigsegv()


def memory_is_refused() -> None:
    """A limit as ``ulimit -v`` sets it."""
    resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))
    kept.append(bytearray(2**40))


kept: list[bytearray] = []
KINDS = {one.__name__: one for one in (memory_is_used_up, killed, segmentation_fault, memory_is_refused)}


def install(crashes: dict[str, str]) -> None:
    from perturblab.train import _Fit

    plain, left = _Fit._train_step, int(os.environ["CRASH_STEP"])

    def step(self: Any, *args: Any) -> None:
        nonlocal left
        left -= 1
        kind = crashes.get(self.run.path.name.rpartition("-")[0])
        if kind and left == 0:
            KINDS[kind]()
        plain(self, *args)

    _Fit._train_step = step  # type: ignore[method-assign]


if "CRASHES" in os.environ and any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    install(json.loads(os.environ["CRASHES"]))
