"""Points of runs on two axes: a colour per group, a star at the mean of each group of several seeds."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perturblab.report.palette import BLACK, Colour
from perturblab.report.plots import HANDLE, LOOK, Axis, Floats, by_rows, write_png
from perturblab.report.tables import Cell, write_csv

STAR_NOTE = "dot: one run; star: mean over the seeds of a group"
NOTE_WRAP = 112  # letters per line of a note
WRAP = 84  # letters of a label that stands alone in its row


@dataclass(frozen=True)
class Cloud:
    """One group: ``x [n]`` and ``y [n]`` of its runs in the units of the axes, and their ``seeds``."""

    name: str
    x: Floats
    y: Floats
    seeds: tuple[int, ...]
    colour: Colour = BLACK
    marker: str = "o"

    @property
    def label(self) -> str:
        n = "single seed" if len(self.seeds) == 1 else f"n={len(self.seeds)}"
        return textwrap.fill(f"{self.name} ({n})", WRAP)


def scatter(title: str, clouds: Sequence[Cloud], axis: Axis, notes: Sequence[str] = ()) -> Figure:
    """One picture; ``notes`` stand below it, a line each."""
    labels = [cloud.label for cloud in clouds]
    columns = max(1, min(len(clouds), WRAP // (max(map(len, labels)) + HANDLE // 2)))
    lines = [line for note in (STAR_NOTE, *notes) for line in textwrap.wrap(note, NOTE_WRAP)]
    with style.context(LOOK):
        rows = sum(label.count("\n") + 1 for label in labels) // columns + 1
        figure = Figure(figsize=(6.8, 4.2 + 0.2 * rows + 0.14 * len(lines)), layout="constrained")
        axes = figure.subplots()
        for cloud in clouds:
            _draw(axes, cloud)
        axes.set_xlabel(axis.x)
        axes.set_ylabel(axis.y)
        axes.set_xlim(*axis.xlim)
        axes.set_ylim(*axis.ylim)
        axes.legend(
            *by_rows(axes, columns),
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=columns,
            handlelength=1.0,
        )
        figure.suptitle(title, fontsize=12, x=0.01, horizontalalignment="left")
        figure.supxlabel("\n".join(lines), fontsize=8, color="0.35")
    return figure


def _draw(axes: Axes, cloud: Cloud) -> None:
    several = len(cloud.seeds) > 1
    axes.plot(
        cloud.x, cloud.y, color=cloud.colour, label=cloud.label, zorder=2, linestyle="none", marker=cloud.marker,
        markersize=6, markeredgewidth=0, alpha=0.55 if several else 1,
    )  # fmt: skip
    if several:  # a single run is its own mean
        axes.plot(
            cloud.x.mean(), cloud.y.mean(), color=cloud.colour, zorder=3, linestyle="none", marker="*", markersize=15,
            markeredgecolor="white", markeredgewidth=0.8,
        )  # fmt: skip


def save(figure: Figure, clouds: Sequence[Cloud], axis: Axis, path: Path, dpi: int = 300) -> Path:
    """Write ``path`` (PNG) and, with the suffix .csv, its points. UserError if the folder is not writable."""
    write_png(figure, path, dpi)
    rows: list[list[Cell]] = [
        [cloud.name, seed, float(x), float(y)]
        for cloud in clouds
        for seed, x, y in zip(cloud.seeds, cloud.x, cloud.y, strict=True)
    ]
    write_csv(path.with_suffix(".csv"), ["group", "seed", axis.x, axis.y], rows)
    return path
