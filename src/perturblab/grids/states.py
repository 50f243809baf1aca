"""How far the runs of a grid are, read off their folders: by looking for files. Of a done run the start of one exported
file is read, which tells whose it is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perturblab.launch import Cell
from perturblab.rows import last_rows
from perturblab.runs import RunFolder
from perturblab.sweep import Plan
from perturblab.terminal import UserError

State = Literal["done", "running", "failed", "interrupted", "missing"]
STATES: tuple[State, ...] = ("done", "running", "failed", "interrupted", "missing")
NOT_EXPORTED = "done, but its exported files are not there, or are those of another run"


@dataclass(frozen=True)
class Seen:
    """A cell with its run folder, and how far it is."""

    cell: Cell
    run: RunFolder
    state: State
    exported: bool = True

    @property
    def reason(self) -> str:
        """Why a run failed, or what is left to do of one that has its results."""
        if self.state == "interrupted" and not self.exported:
            return NOT_EXPORTED
        try:
            return self.run.failure()
        except (UserError, KeyError, TypeError):
            return "its failure.json cannot be read"


def look(plan: Plan) -> list[Seen]:
    """The state of every cell, in order. Writes nothing."""
    there: dict[Path, set[str]] = {}
    seen = []
    for cell in plan.cells:
        run = plan.folder(cell)
        folder = run.path.parent
        if folder not in there:
            there[folder] = _names(folder)
        seen.append(_see(plan, cell, run) if run.path.name in there[folder] else Seen(cell, run, "missing"))
    return seen


def count(seen: Iterable[Seen]) -> dict[State, int]:
    found = Counter(one.state for one in seen)
    return {state: found[state] for state in STATES}


def only(seen: Iterable[Seen], *states: State) -> list[Seen]:
    return [one for one in seen if one.state in states]


def _see(plan: Plan, cell: Cell, run: RunFolder) -> Seen:
    status = run.status
    if status == "done":
        if plan.exported(cell, run):
            return Seen(cell, run, "done")
        failed = (run.path / "failure.json").exists()
        return Seen(cell, run, "failed" if failed else "interrupted", exported=False)
    return Seen(cell, run, "missing" if status == "pending" else status)


def _names(folder: Path) -> set[str]:
    """The names in a folder: one call tells which of thousands of runs were never started."""
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None


def last_epoch(run: RunFolder) -> int:
    """The epoch of the last complete row; 0 before the first one."""
    epochs = (row.get("epoch") for row in last_rows(run.path / "rows.jsonl"))
    return next((epoch for epoch in epochs if isinstance(epoch, int)), 0)


def reasons(failed: Iterable[Seen]) -> list[str]:
    """A line for each reason: ``"vgg11_masked_seed0 and 3 more: out of memory"``."""
    by_reason: dict[str, list[Seen]] = {}
    for one in failed:
        by_reason.setdefault(" ".join(one.reason.split()), []).append(one)
    return [f"{names(those)}: {reason}" for reason, those in by_reason.items()]


def names(seen: Sequence[Seen]) -> str:
    """``"vgg11_masked_seed0 and 3 more"``."""
    first, *others = (one.cell.name for one in seen)
    return f"{first} and {len(others)} more" if others else first
