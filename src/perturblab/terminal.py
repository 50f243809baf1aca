"""What a person sees while work goes on: single lines, warnings, and progress with its remaining time.

On a terminal progress is a live bar; in a log file it is a plain line now and then.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

PLAIN_EVERY_S = 10.0  # a log file gets at most one progress line in this time

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Advance = Callable[..., None]
"""``advance(done, note="")``: how many units are done, and a few words on how it stands."""

Progress = Callable[[str, int, int], AbstractContextManager[Advance]]
"""``progress`` below, or a study's own screen: (label, total, done) -> a context that yields ``advance``."""


class UserError(Exception):
    """Something the user can mend: printed as one line, exit code 2. Say what is wrong and what to do."""


def say(line: str) -> None:
    _write(line, sys.stdout)


def warn(line: str) -> None:
    to_stderr(f"warning: {line}")


def to_stderr(line: str) -> None:
    _write(line, sys.stderr)


def _write(line: str, stream: TextIO | None) -> None:
    """Print a line; a reader that has gone (``| head``, a dead ssh, a closed window) must not end the work.

    Nor must a log file on a disk that is full: the work's own files will tell.
    """
    if stream is None:
        return
    try:
        print(line, file=stream, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, *DISK_FULL):
            raise
        if error.errno in DISK_FULL and stream is sys.stdout:
            warn(f"the output is cut here, it cannot be written: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def counted(n: int, what: str) -> str:
    """``(1, "run") -> "1 run"``, ``(24, "run") -> "24 runs"``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """``75 -> "1:15"``, ``3700 -> "1:01:40"``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


@contextmanager
def progress(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Report ``total`` units of work; yields ``advance``. ``done`` units were there before (a resumed run)."""
    if sys.stderr is not None and sys.stderr.isatty():
        with _live(label, total, done) as advance:
            yield advance
    else:
        yield _plain(label, total, done)


@contextmanager
def _live(label: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    # A file that takes standard output must get what is said meanwhile, and not this terminal.
    to_screen = sys.stdout is not None and sys.stdout.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=to_screen) as bar:
        task = bar.add_task(label, total=total, completed=done, note="")
        yield lambda n, note="": bar.update(task, completed=n, note=note)


def _plain(label: str, total: int, done: int) -> Advance:
    start = last = time.monotonic()

    def advance(n: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PLAIN_EVERY_S:
            return
        last = now
        left = (now - start) / max(n - done, 1) * (total - n)
        _write(f"{label}: {n}/{total}, {duration(left)} left {note}".rstrip(), sys.stderr)

    return advance
