"""How a run's process ended, in words: from its exit code and what it printed."""

from __future__ import annotations

import signal
from pathlib import Path

from perturblab.launch import Cell, Outcome, Status
from perturblab.signals import BUSY, REQUEUE, SGE_REQUEUE

KILLED = "killed by "
STOPPED = (REQUEUE, SGE_REQUEUE, -signal.SIGTERM, 128 + signal.SIGTERM)  # the last two: while it was starting
HELD = " is being worked on by "  # how `claims` refuses a folder that a living process holds


def outcome(cell: Cell, code: int, seconds: float, log: Path | None) -> Outcome:
    """``elsewhere``: another process is at it. ``stopped``: not by us; its state is saved. Neither has failed."""
    reason = reason_of(code, log)
    return Outcome(cell, status_of(code, reason), seconds, reason)


def status_of(code: int, reason: str) -> Status:
    if code == 0:
        return "done"
    if code == BUSY or (code == SGE_REQUEUE and HELD in reason):
        return "elsewhere"
    return "stopped" if code in STOPPED else "failed"


def reason_of(code: int, log: Path | None) -> str:
    """The last error that stands in the log, else what the exit code says; "" for a run that is done."""
    if code == 0:
        return ""
    if code < 0:
        likely = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"{KILLED}{signal.Signals(-code).name}{likely}"
    lines = log.read_text(errors="replace").strip().splitlines() if log else []
    errors = [line for line in lines if line.startswith(("error: ", "stopped: "))]
    if code == 2 and not errors and log:  # who ends so has said why
        return f"exit code 2, and {log} could not take the reason: is the disk full?"
    last = (errors or lines or [""])[-1].removeprefix("error: ")
    return last or f"exit code {code}"
