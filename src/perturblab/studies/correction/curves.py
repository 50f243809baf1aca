"""What the pictures of correction share: their colours, and lines over the settings of a grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perturblab.report import palette, plots
from perturblab.report.plots import Axis, Curve, Line, Panel, line, picture
from perturblab.studies.correction.summary import Record

LOSSES = {  # of the batches, in colours that mean the same in every picture
    "train_loss": ("total", palette.BLACK),
    "train_conf_loss": ("confounded", palette.BLUE),
    "train_corr_loss": ("corrected", palette.VERMILION),
}
ARMS = {"balanced": palette.BLUE, "imbalanced": palette.VERMILION}
SEEN = {
    "accuracy_original": "plain",
    "accuracy_confounded": "dots on 8s",
    "accuracy_toggled": "dots on 0s",
    "accuracy_marked": "dots on both",
}


@dataclass(frozen=True)
class Drawn:
    """A picture and what it shows in a sentence."""

    path: Path
    caption: str


def save(title: str, panels: Sequence[Panel], axis: Axis, path: Path, caption: str) -> Drawn:
    return Drawn(plots.save(picture(title, panels, axis), panels, path, dpi=200), caption)


def joined(
    name: str, cells: Sequence[Record], x: str, y: Callable[[Record], float], **look: str
) -> list[Line]:
    """One line: a point per value of the setting ``x``, and thin lines where there are several seeds."""
    curves: dict[int, Curve] = {}
    for seed in sorted({cell["seed"] or 0 for cell in cells}):
        points = sorted((cell[x], y(cell)) for cell in cells if (cell["seed"] or 0) == seed)
        curves[seed] = ([p[0] for p in points], [p[1] for p in points])
    made = line(name, curves, **look) if curves else None
    return [made] if made else []


def result(cell: Record, key: str) -> float:
    return float(cell["result"][key])


def accuracy(cell: Record, key: str) -> float:
    """In percent, on one of the four test sets."""
    return 100 * float(cell["result"]["reliance"][key])
