"""Stopping well: a signal raises a flag, long work polls it between steps, saves, and says how to go on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LAUNCHER = "PERTURBLAB_LAUNCHER"  # the pid of the sweep, in the environment of its runs
PR_SET_PDEATHSIG = 1  # linux/prctl.h
REQUEUE, SGE_REQUEUE, INTERRUPTED = 75, 99, 130


class Interrupted(Exception):
    """Work stopped on a signal after saving its state; ``exit_code`` follows from the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; else 75 (EX_TEMPFAIL: run me again), which Grid Engine spells 99."""
        if self.number == signal.SIGINT:
            return INTERRUPTED
        in_sge = "SGE_ROOT" in os.environ and "JOB_ID" in os.environ
        return SGE_REQUEUE if in_sge else REQUEUE


class StopFlag:
    """Raised by a signal; ``check()`` turns it into Interrupted at a moment that suits the work."""

    def __init__(self) -> None:
        self.number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    def check(self) -> None:
        if self.number:
            raise Interrupted(self.number)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """SIGINT, SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP (unless under nohup) raise the flag; a second SIGINT stops at once."""
    flag = StopFlag()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and flag.number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.number = number

    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    if _launcher_died():
        flag.number = signal.SIGTERM
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _launcher_died() -> bool:
    """Tie this process to the sweep that started it, if one did: SIGTERM comes when that dies. True if it has died."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or not sys.platform.startswith("linux"):
        return False
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return os.getppid() != int(launcher)
