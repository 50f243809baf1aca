"""Early stopping as pure functions of the rows (correction.md 4.5): a resumed run decides as the undisturbed one did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def improves(min_delta: float, row: Row, before: Sequence[Row]) -> bool:
    """Whether an epoch's validation loss is lower by more than ``min_delta`` than the best one before it."""
    best = best_row(min_delta, before)
    return best is None or row["val_loss"] < best["val_loss"] - min_delta


def best_row(min_delta: float, rows: Sequence[Row]) -> Row | None:
    """The epoch whose weights are kept; None if there is no epoch."""
    best: Row | None = None
    for row in rows:
        if best is None or row["val_loss"] < best["val_loss"] - min_delta:
            best = row
    return best


def out_of_patience(min_delta: float, patience: int, rows: Sequence[Row]) -> bool:
    """Whether ``patience`` epochs have passed since the best one."""
    best = best_row(min_delta, rows)
    return best is not None and int(rows[-1]["epoch"]) - int(best["epoch"]) >= patience
