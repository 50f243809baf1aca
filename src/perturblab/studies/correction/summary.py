"""The runs of an experiment's record, and the table of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from perturblab.report.tables import Table

Record = dict[str, Any]
Stage = dict[str, Any]


def main_cells(stage: Stage) -> list[Record]:
    return [cell for cell in stage["cells"] if not cell["control"]]


def done(cells: Iterable[Record]) -> list[Record]:
    return [cell for cell in cells if cell["status"] == "done"]


def best(cells: Iterable[Record]) -> Record | None:
    """The run with the highest validation accuracy, ties by the lower loss."""
    return max(
        done(cells), key=lambda c: (c["result"]["val_accuracy"], -c["result"]["best_val_loss"]), default=None
    )


def of_best(cells: Iterable[Record], name: str) -> list[Record]:
    """The runs at the value of a setting whose mean validation accuracy is highest, ties by the lower loss: over seeds,
    and what else varies. A value at which a run is not done does not count."""
    runs: dict[Any, list[Record]] = defaultdict(list)
    for cell in cells:
        runs[cell[name]].append(cell)
    whole = [found for found in runs.values() if len(done(found)) == len(found)]
    return max(
        whole, key=lambda found: (mean(found, "val_accuracy"), -mean(found, "best_val_loss")), default=[]
    )


def mean(cells: Iterable[Record], key: str) -> float:
    return fmean(cell["result"][key] for cell in cells)


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def combination(cell: Record) -> str:
    """``balanced, learning rate 0.01, lambda 1.0, pool 100``."""
    weight = f"lambda {cell['lambda_weight']:g}, " if cell["loss_type"] == "balanced" else ""
    seed = "" if cell["seed"] is None else f", seed {cell['seed']}"
    return f"{cell['loss_type']}, learning rate {cell['learning_rate']:g}, {weight}pool {cell['user_corrected_pool_size']}{seed}"


def seen(stage: Stage) -> str:
    """What selected the epochs and the settings, which must stand beside every number that it touched."""
    if stage["settings"]["validation"] == "original":
        return "selected on plain validation digits (accuracy, ties by the loss), which are the target (as documented); the test digits chose nothing"
    return "selected on dotted validation digits; the test digits chose nothing"


def summary(stage: Stage) -> Table:
    """A row per combination, and the best one, as the document prints it."""
    rows = tuple(_row(cell) for cell in main_cells(stage))
    columns = (
        "Loss",
        "Rate",
        "Lambda",
        "Pool",
        "Seed",
        "Epochs",
        "Val acc",
        "Test acc",
        "Test, dot on 0s",
        "Flips",
        "Status",
    )
    top = best(main_cells(stage))
    notes = [f"{seen(stage)}.".capitalize()]
    if top:
        result = top["result"]
        notes = [
            f"Best validation accuracy {percent(result['val_accuracy'])}: {combination(top)}; its test accuracy "
            f"{percent(result['test_accuracy'])} on plain digits.",
            *notes,
        ]
    notes.append(
        "Test accuracies in percent; flips: share of test images whose class changes when the dot does."
    )
    return Table(f"{stage['experiment']}", columns, rows, tuple(notes), text=(0, 10))


def _row(cell: Record) -> tuple[str, ...]:
    weight = f"{cell['lambda_weight']:g}" if cell["loss_type"] == "balanced" else "-"
    seed = "-" if cell["seed"] is None else str(cell["seed"])
    about = (
        cell["loss_type"],
        f"{cell['learning_rate']:g}",
        weight,
        str(cell["user_corrected_pool_size"]),
        seed,
    )
    result = cell["result"]
    if result is None:
        return (*about, *["-"] * 5, cell["status"])
    reliance = result["reliance"]
    shares = (
        result["val_accuracy"],
        result["test_accuracy"],
        reliance["accuracy_toggled"],
        reliance["flip_rate"],
    )
    return (
        *about,
        str(result["epochs_trained"]),
        *(f"{100 * share:.2f}" for share in shares),
        cell["status"],
    )
