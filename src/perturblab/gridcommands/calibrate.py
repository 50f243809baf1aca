"""``perturblab plan --calibrate``: let one run of each kind work for a moment, to learn what an epoch takes; its work is kept."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from perturblab.cpus import THREADS, threads_of
from perturblab.grids.estimate import Measured, kinds, took
from perturblab.grids.states import Seen
from perturblab.launch.ends import reason_of
from perturblab.launch.tied import tied
from perturblab.signals import REQUEUE, SGE_REQUEUE, StopFlag, stop_on_signals
from perturblab.terminal import PLAIN_EVERY_S, progress, warn

MOST = 12  # kinds; the others are estimated from the nearest of these
POLL_S = 0.1


def calibrate(
    seen: Sequence[Seen], todo: Sequence[Seen], seconds: float, epochs: str, jobs: int
) -> list[Measured]:
    """What the epochs of these runs take; nothing of a run that could not start, of which a warning says why.

    ``seconds`` for each: enough if it ends an epoch in it, or tells in its log how fast its steps are. It gets the
    threads of a run that has ``jobs - 1`` others beside it.
    """
    those = kinds(seen, todo)[:MOST]
    with stop_on_signals() as stop, progress("kinds of runs tried", len(those)) as advance:
        found = []
        for n, (key, one) in enumerate(those, 1):
            found += [Measured(key, epoch, 1.0, None) for epoch in _tried(one, seconds, epochs, jobs, stop)]
            advance(n, one.cell.name)
    return found


def _tried(one: Seen, seconds: float, epochs: str, jobs: int, stop: StopFlag) -> Iterator[float]:
    """Seconds per epoch."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with open(log, "wb") as output:
            words = tied([sys.executable, "-m", "perturblab", *one.cell.settings.arguments()])
            threads = dict.fromkeys(THREADS, str(threads_of(jobs)))
            process = subprocess.Popen(
                words, stdout=output, stderr=output, start_new_session=True, env=os.environ | threads
            )
        end = time.monotonic() + max(seconds, 1.5 * PLAIN_EVERY_S)
        while process.poll() is None and not stop and time.monotonic() < end and not took(one)[0]:
            time.sleep(POLL_S)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)  # it finishes its step and saves
        code = process.wait()
        stop.check()
        n, spent = took(one)
        if n:
            yield spent / n
        elif code in (0, REQUEUE, SGE_REQUEUE):
            yield from _from_steps(log, one.run.path.name, getattr(one.cell.settings, epochs))
        else:
            warn(f"{one.cell.name} tells nothing: {reason_of(code, log)}")


def _from_steps(log: Path, name: str, epochs: int) -> Iterator[float]:
    """From the last line such as ``vgg11_masked_seed0-ab12: 40/2000, 1:02:10 left``, if there is one."""
    lines = re.findall(
        rf"^{re.escape(name)}: (\d+)/(\d+), ([\d:]+) left", log.read_text(errors="replace"), re.MULTILINE
    )
    for done, total, left in lines[-1:]:
        remaining = 0
        for part in left.split(":"):
            remaining = 60 * remaining + int(part)
        yield remaining / max(int(total) - int(done), 1) * int(total) / epochs
