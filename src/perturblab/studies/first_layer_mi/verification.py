"""The document's verification list: are all checkpoints and result files there, with information at every due epoch?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perturblab.files import read_json
from perturblab.studies.first_layer_mi import Train
from perturblab.sweep import Plan
from perturblab.terminal import UserError

LOOKED_INTO = 1_000  # result files; of more the names are enough


def verify(plan: Plan) -> Iterator[str]:
    """A line per point of the list, with [x] where it is met."""
    runs = [cell.settings for cell in plan.cells if isinstance(cell.settings, Train)]
    kinds = {
        kind: [run.exports[kind] for run in runs] for kind in ("final.pt", "results.npz", "results.json")
    }
    there = {kind: [path for path in paths if path.exists()] for kind, paths in kinds.items()}
    n = len(runs)
    yield mark(len(there["final.pt"]), n, "checkpoints")
    files = len(there["results.npz"]) + len(there["results.json"])
    yield mark(files, 2 * n, "result files (.npz and .json)")
    looked = runs[:LOOKED_INTO]
    lacking = {run.name: gap for run in looked if (gap := gaps(run, run.exports["results.json"]))}
    whole = sum(run.exports["results.json"].exists() for run in looked) - len(lacking)
    interval = "/".join(str(one) for one in sorted({run.eval_interval for run in runs}))
    yield mark(whole, len(looked), f"with MI at epoch 1, every {interval} epochs and final")
    for name, gap in lacking.items():
        yield f"  {name}: no MI at {gap}"


def mark(found: int, wanted: int, what: str) -> str:
    return f"[{'x' if found == wanted else ' '}] {found} of {wanted} {what}"


def gaps(run: Train, path: Path) -> str:
    """What of the due measurements a result file lacks; "" for none, or where there is no file."""
    if not path.exists():
        return ""
    try:
        content: dict[str, Any] = read_json(path)
        epochs = {int(epoch) for epoch in content["epochs_evaluated"]}
        has_final = isinstance(content["final_mi_diff"], float) and len(content["mi_history"]) == len(epochs)
    except (UserError, ValueError, KeyError, TypeError):
        return "any epoch: the file cannot be read"
    lacking = [f"epoch {epoch}" for epoch in sorted(due(run) - epochs)]
    return ", ".join(lacking if has_final else [*lacking, "the end"])


def due(run: Train) -> set[int]:
    """The epochs at which information is measured: the first, every ``--eval_interval``, the last."""
    return {1, run.epochs, *range(run.eval_interval, run.epochs + 1, run.eval_interval)}
