"""Files of done runs under the names that a study's document gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from perturblab.files import keep_aside, read_checked, remove_temporaries, write_atomic, writing_to
from perturblab.runs import RunFolder
from perturblab.terminal import UserError, say


def publish(run: RunFolder, source: Path, target: Path, owner: Callable[[Path], str | None]) -> None:
    """Copy ``source`` of a done run to its documented name; say so when that name held another run's file.

    ``owner`` reads the run id in an existing target. A file that no run of ours wrote is kept beside it. UserError
    if ``source`` was altered since it was written.
    """
    data = read_checked(source)
    if data is None:
        raise UserError(f"{source} is damaged; remove {run.path} and run again")
    with writing_to(target):
        there = target.read_bytes() if target.exists() else None
        if there == data:
            remove_temporaries(target, run.id)
            return
    if there is not None:
        previous = owner(target)
        if previous is None:
            keep_aside(target, there, run.id)
        elif previous != run.id:
            say(f"{target} now holds run {run.id}; it held run {previous}")
    write_export(run, target, data)


def write_export(run: RunFolder, target: Path, data: bytes) -> None:
    """Write a file outside the run's folder. Superseded if another process has taken the run over.

    A worker that is frozen before it looks at its claim is refused when it wakes. Frozen after, it finds that its
    temporary file is gone: whoever takes over exports too, and removes that first.
    """
    with run.claim.guarding():
        with writing_to(target):
            remove_temporaries(target, run.id)
        write_atomic(target, data, run.id, run.claim.check)
