"""Which learning rates diverge, which are too slow, which is best (document 003, step 2)."""

from __future__ import annotations

import math
from statistics import fmean

from perturblab.studies.correction.summary import Record, Stage, best, main_cells, of_best

GUESSING = 0.95 * math.log(2)  # nats; a validation loss from here on is no better than a coin
CLOSE = 0.99  # of the best validation accuracy: the epoch that reaches it says how fast a rate learns
RISEN = 0.1  # of the first epoch's training loss: ups and downs below it are those of a loss near 0
SLOW = 3  # times the epochs of the best rate


def rate_marks(stage: Stage) -> list[tuple[Record, str]]:
    """Each run with ``best``, ``diverging``, ``too slow`` or nothing."""
    top = best(of_best(main_cells(stage), "learning_rate"))
    marks = []
    for cell in main_cells(stage):
        if diverges(cell):
            mark = "diverging"
        elif top and cell["learning_rate"] == top["learning_rate"]:
            mark = "best"
        else:
            mark = "too slow" if top and is_slow(cell, top) else ""
        marks.append((cell, mark))
    return marks


def diverges(cell: Record) -> bool:
    """Not finite, never better than guessing, or with a training loss at its end twice what it was and well above 0."""
    if cell["status"] != "done":
        return bool(cell["status"] == "diverged")
    losses = cell["history"]["train_loss"]
    quarter = max(1, len(losses) // 4)
    averages = [fmean(losses[i : i + quarter]) for i in range(0, len(losses) - quarter + 1, quarter)]
    return bool(cell["result"]["best_val_loss"] >= GUESSING) or averages[-1] > max(
        2 * min(averages), RISEN * losses[0]
    )


def is_slow(cell: Record, top: Record) -> bool:
    level = CLOSE * top["result"]["val_accuracy"]
    reached, fastest = first_epoch(cell, level), first_epoch(top, level)
    return reached is None or (fastest is not None and reached > SLOW * fastest + 2)


def first_epoch(cell: Record, level: float) -> int | None:
    history = cell["history"]
    return next(
        (e for e, a in zip(history["epoch"], history["val_accuracy"], strict=True) if a >= level), None
    )
