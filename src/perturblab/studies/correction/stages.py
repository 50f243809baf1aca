"""The record of an experiment (``experiments/NAME.json``), and what a finished one supplies to later ones (decision 31)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from perturblab.files import read_json
from perturblab.studies.correction import Run
from perturblab.studies.correction.config import packaged
from perturblab.studies.correction.summary import Stage, main_cells, of_best
from perturblab.terminal import say

SUPPLIES = {"learning_rate": "lr_search", "lambda_weight": "lambda_search"}
TAKES = {
    "lambda_search": ("learning_rate",),
    "full_grid_search": ("learning_rate", "lambda_weight"),
    "pool_search": ("learning_rate", "lambda_weight"),
}
"""Which experiment's best value each setting comes from, and which experiments take it."""


def record_file(output_filename: str | Path) -> Path:
    """Beside the table with a row per combination."""
    return Path(output_filename).with_suffix(".json")


def is_record(content: Any) -> bool:
    return isinstance(content, dict) and {"experiment", "cells", "complete", "data_sha256"} <= content.keys()


def stages_in(folder: Path) -> dict[str, Stage]:
    """The experiments recorded in a folder, by name; of two records of one experiment the later. UserError for a
    damaged file; JSON of another kind is passed over."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    found = (content for content in map(read_json, files) if is_record(content))
    return {str(stage["experiment"]): stage for stage in found}


def completed(s: Run, data_sha256: str) -> tuple[Run, dict[str, str]]:
    """The settings with every learning rate and lambda filled in, and where what was not given came from."""
    sources: dict[str, str] = {}
    values: dict[str, Any] = {}
    for name in ("learning_rate", "lambda_weight"):
        if not getattr(s, name):
            values[name], sources[name] = _supplied(s, name, data_sha256)
    for name, source in sources.items():
        say(f"{s.experiment}: {name} {', '.join(map(str, values[name]))} {source}")
    return Run.parse({**s.model_dump(), **values}), sources


def _supplied(s: Run, name: str, data_sha256: str) -> tuple[tuple[float, ...], str]:
    default = tuple(packaged(s.experiment)[name])
    if name not in TAKES.get(s.experiment, ()):
        return default, "as the document has it"
    earlier = SUPPLIES[name]
    stage = stages_in(Path(s.output_filename).parent).get(earlier)
    if stage is None or not stage["complete"]:
        return (
            default,
            f"as the document has it, for no finished {earlier} is in {Path(s.output_filename).parent}",
        )
    if stage["data_sha256"] != data_sha256:
        return default, f"as the document has it, for {earlier} was run on other data"
    best = best_value(stage, name)
    if best is None:
        return default, f"as the document has it, for every run of {earlier} diverged"
    return (best,), f"is the best of {earlier} by validation"


def best_value(stage: Stage, name: str) -> float | None:
    """The value with the highest mean validation accuracy; None if at each of them a run diverged."""
    cells = [c for c in main_cells(stage) if name != "lambda_weight" or c["loss_type"] == "balanced"]
    found = of_best(cells, name)
    return float(found[0][name]) if found else None
