"""Files of done runs under the names that a study's document gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from perturblab.files import keep_aside, read_checked, remove_temporaries, write_atomic, writing_to
from perturblab.runs import RunFolder
from perturblab.terminal import UserError, say

HEAD = 1 << 16  # bytes, in which an exported file tells whose it is


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


def taken(paths: Sequence[Path], run_id: str) -> Path | None:
    """Of a run's exported files the one that is another run's by now. One is looked at: JSON, else weights."""
    for endings in ((".json",), (".pt", ".pth")):
        for path in [path for path in paths if path.suffix in endings][:1]:
            return path if path.exists() and _tells_another(path, run_id) else None
    return None


def _tells_another(path: Path, run_id: str) -> bool:
    """The id stands at the start: in JSON among the first keys, in weights before the numbers."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            if path.suffix == ".json":
                return run_id.encode() not in head and run_id.encode() not in file.read()
            return b"run_id" in head and run_id.encode() not in head
    except OSError:
        return True
