"""The cells of an experiment as records, and as the document's tables (correction.md 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perturblab.report.tables import Cell as Value
from perturblab.runs import Row, RunFolder, read_rows
from perturblab.studies.correction import Train

Record = dict[str, Any]
SETTINGS = ("learning_rate", "loss_type", "lambda_weight", "user_corrected_pool_size")
RESULTS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "epochs_trained", "best_val_loss", "test_loss", "test_accuracy",
)  # fmt: skip
MORE = (
    "best_epoch",
    "stopped",
    "train_conf_loss",
    "train_corr_loss",
    "val_accuracy_original",
    "val_accuracy_confounded",
)
RELIANCE = (
    "accuracy_confounded", "accuracy_toggled", "accuracy_marked", "accuracy_drop", "flip_rate", "worst_group_accuracy",
)  # fmt: skip
COLUMNS = (*SETTINGS, *RESULTS, "seed", "status", *MORE, *(f"test_{name}" for name in RELIANCE), "run_id")
"""A row per combination: the document's columns, then ours. ``toggled``: dotted zeros and plain eights; ``marked``: all dotted."""

EPOCH_KEYS = (
    "train_loss",
    "train_conf_loss",
    "train_corr_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
)
EPOCH_COLUMNS = (
    "run", "learning_rate", "loss_type", "lambda_weight", "pool_size", "num_user_corrected", "global_epoch", "local_epoch", *EPOCH_KEYS,
)  # fmt: skip


def cell_record(s: Train, run: RunFolder, status: str, control: bool) -> Record:
    """Everything that tables, verdicts and figures need to know of a cell."""
    done = status == "done"
    results = run.results() if done else None  # whose digest is checked, and the history's with it
    rows = read_rows(run.path / "rows.jsonl") if status == "diverged" else []
    return {
        "name": s.name, "log_dir": str(s.log_dir), "status": status, "control": control, "run_id": run.id,
        "images_logged": images_logged(s.log_dir),
        **{name: getattr(s, name) for name in (*SETTINGS, "seed", "batch_size", "user_corrected_max_per_batch")},
        "reason": run.failure() if status in ("diverged", "failed") else "",
        "result": results and {key: value for key, value in results.items() if key not in ("index", "history")},
        "history": results["history"] if results else history(rows),
    }  # fmt: skip


def images_logged(log_dir: Path) -> bool:
    """Whether the run's event file holds the document's three pictures."""
    events = b"".join(path.read_bytes() for path in log_dir.glob("*tfevents*"))
    return all(tag in events for tag in (b"confounded_samples", b"corrected_original", b"corrected_samples"))


def history(rows: Sequence[Row]) -> dict[str, list[float]]:
    """A list per documented number of an epoch."""
    return {key: [row[key] for row in rows] for key in ("epoch", *EPOCH_KEYS)}


def per_combination(cells: Sequence[Record]) -> list[list[Value]]:
    """Rows under COLUMNS; what a cell that is not done cannot tell is empty."""
    return [[_value(cell, column) for column in COLUMNS] for cell in cells if not cell["control"]]


def _value(cell: Record, column: str) -> Value:
    if column in cell:
        found: Value = cell[column]
        return found
    result = cell["result"] or {}
    from_reliance = column.removeprefix("test_")
    if from_reliance in RELIANCE and column.startswith("test_"):
        result, column = result.get("reliance", {}), from_reliance
    value: Value = result.get(column)
    return value


def per_epoch(cells: Sequence[Record]) -> dict[int, list[list[Value]]]:
    """By seed, rows under EPOCH_COLUMNS; ``run`` is the seed."""
    tables: dict[int, list[list[Value]]] = {}
    for cell in cells:
        if cell["control"] or not cell["history"]["epoch"]:
            continue
        seed = cell["seed"] or 0
        about: list[Value] = [seed, *(cell[name] for name in SETTINGS), cell["user_corrected_max_per_batch"]]
        history = cell["history"]
        rows = tables.setdefault(seed, [])
        for i, epoch in enumerate(history["epoch"]):
            rows.append([*about, epoch, epoch, *(history[key][i] for key in EPOCH_KEYS)])
    return tables
