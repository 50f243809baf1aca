"""Stopping well: a signal raises a flag, long work polls it between steps, saves, and says how to go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

BUSY, REQUEUE, SGE_REQUEUE, INTERRUPTED = 69, 75, 99, 130


def busy_code() -> int:
    """69 (EX_UNAVAILABLE): another process is at this run; Grid Engine is asked to try again later (99)."""
    return SGE_REQUEUE if in_sge() else BUSY


def in_sge() -> bool:
    return "SGE_ROOT" in os.environ and "JOB_ID" in os.environ


class Interrupted(BaseException):
    """Work stopped on a signal after saving its state; ``exit_code`` follows from the signal.

    No Exception, as KeyboardInterrupt is none: what catches "anything that may go wrong" must let it pass.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C; else 75 (EX_TEMPFAIL: run me again), which Grid Engine spells 99."""
        if self.number == signal.SIGINT:
            return INTERRUPTED
        return SGE_REQUEUE if in_sge() else REQUEUE


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

    with _handled_by(handle, "SIGINT"):
        yield flag


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Before and after the work that polls a flag, when nothing is unsaved: the same signals raise Interrupted."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled_by(handle):  # SIGINT raises KeyboardInterrupt
        yield


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], None], *more: str) -> Iterator[None]:
    names = (*more, "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.remove(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
