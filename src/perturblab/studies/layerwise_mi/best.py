"""The best checkpoint of a run, exact after a kill: which epoch is best is read off the rows, never remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from perturblab.checkpoints import to_bytes, to_cpu
from perturblab.files import read_checked
from perturblab.runs import Row, RunFolder
from perturblab.studies.layerwise_mi import Train
from perturblab.terminal import UserError


def is_better(s: Train, row: Row, rows: list[Row]) -> bool:
    """Whether an epoch beats all before it; an equal one does not (strictly better, as documented)."""
    return not rows or row[accuracy(s)] > rows[best_epoch(s, rows) - 1][accuracy(s)]


def best_epoch(s: Train, rows: list[Row]) -> int:
    """The number of the first epoch with the highest accuracy."""
    return int(max(rows, key=lambda row: row[accuracy(s)])["epoch"])


def accuracy(s: Train) -> str:
    """The row's key that decides."""
    return f"{s.select_on}_acc"


def keep(s: Train, run: RunFolder, row: Row, content: Callable[[], dict[str, Any]]) -> None:
    """Write the checkpoint of an epoch that beats all before it; call it before the epoch's row is logged.

    A killed run goes back to one of its checkpoints, forgets the rows from there on, and meets the same epochs
    again. So what was best before each of them stays, and nothing else does.
    """
    if not is_better(s, row, run.rows):
        return
    run.write_checked(_path(run, row["epoch"]).name, to_bytes(to_cpu(content())))
    restarts = [int(path.stem.split("-")[1]) for path in run.checkpoints()]
    before = [[r for r in run.rows if r["epoch"] < epoch] for epoch in (*restarts, row["epoch"])]
    needed = {_path(run, best_epoch(s, rows)) for rows in before if rows} | {_path(run, row["epoch"])}
    for path in set(run.path.glob("checkpoint-best-*.pth")) - needed:
        run.remove(path)


def best(s: Train, run: RunFolder) -> bytes:
    """The checkpoint of the best of all epochs. UserError if it was altered since it was written."""
    path = _path(run, best_epoch(s, run.rows))
    data = read_checked(path)
    if data is None:
        raise UserError(f"{path} is damaged; remove {run.path} and run again")
    return data


def _path(run: RunFolder, epoch: int) -> Path:
    # "checkpoint-*" is what a finished run clears; ".pth" sets it apart from the states that training goes back to.
    return run.path / f"checkpoint-best-{epoch:06d}.pth"
