"""The language that all pictures share: colour = architecture, dash = arm, band = spread over seeds.

Pictures are matplotlib ``Figure`` objects (no pyplot, so no global state and no display). Beside each PNG
stands a CSV of the numbers in it. Equal data give equal bytes.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from perturblab.files import write_atomic
from perturblab.report.palette import (
    BLACK,
    Colour,
)
from perturblab.report.tables import Cell, write_csv

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Curve = tuple[Sequence[float] | Floats, Sequence[float] | Floats]

Dash = str | tuple[float, tuple[float, ...]]
SHADES = {"baseline": 0.0, "masked": -0.5, "half-loss": 0.3}  # noisy curves hide dashes; shades stay visible
DASHES: dict[str, Dash] = {"baseline": "-", "masked": (0, (5, 1.6)), "half-loss": (0, (1, 1.4))}
MARKERS = ("", "^", "v", "s", "D", "P", "X")  # "": the first of several variants needs none
BAND_NOTE = "thick: mean over all seeds; band: ± 1 population standard deviation; thin: each seed"
ONE_ROW = 42  # letters of legend that fit above a panel in one row
HANDLE = 9  # letters whose room the handle of an entry and the space around it take
WRAP = 46  # letters per line of a heading or label
FEW_POINTS = 15  # so few are drawn as points too: they are measurements, not a curve

LOOK: Any = [
    "default",
    {  # "default": nobody's own matplotlibrc changes a picture
        "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.handlelength": 2.4,
        "legend.columnspacing": 1.4,
        "legend.borderaxespad": 0.2,
    },
]


@dataclass(frozen=True)
class Line:
    """One arm, not in the legend if its name begins with "_": ``x [k]`` ascending, ``y [n_seeds k]`` in the unit of the axis, NaN where not measured."""

    name: str
    x: Floats
    y: Floats
    seeds: tuple[int, ...]
    colour: Colour = BLACK
    dash: Dash = "-"
    marker: str = ""
    size: float = 0.0  # of the marker, in points; 0: smaller from line to line

    @property
    def mean(self) -> Floats:
        """``[k]``: NaN where a seed is missing, for a mean over fewer seeds would jump for no reason."""
        return np.asarray(self.y.mean(axis=0))

    @property
    def sd(self) -> Floats:
        """``[k]`` population standard deviation (ddof 0), as documented for the bands."""
        return np.asarray(self.y.std(axis=0))


@dataclass(frozen=True)
class Panel:
    """Lines that share axes; ``levels`` are named horizontal references in the unit of y.

    ``counted``: whether the number of seeds is told, in the heading if all lines have equally many.
    """

    title: str
    lines: tuple[Line, ...]
    levels: tuple[tuple[str, float], ...] = ()
    counted: bool = True

    @property
    def _alike(self) -> bool:
        return len({len(one.seeds) for one in self.lines}) == 1

    @property
    def heading(self) -> str:
        return f"{self.title}, {_count(self.lines[0])}" if self.counted and self._alike else self.title

    @property
    def stacked(self) -> bool:
        """Whether the legend needs a row or more per line."""
        return sum(map(len, self._shown)) > ONE_ROW

    @property
    def columns(self) -> int:
        """Of the legend."""
        longest = max(map(len, self._shown))
        return (
            1 if self.stacked else max(1, min(len(self._shown), (ONE_ROW + 2 * HANDLE) // (longest + HANDLE)))
        )

    @property
    def legend_rows(self) -> int:
        rows = math.ceil(len(self._shown) / self.columns)
        if self.columns == 1:
            rows = sum(len(textwrap.wrap(label, WRAP)) for label in self._shown)
        return rows + len(textwrap.wrap(self.heading, WRAP))

    @property
    def labels(self) -> list[str]:
        told = self.counted and not self._alike
        return [f"{one.name} ({_count(one)})" if told else one.name for one in self.lines]

    @property
    def _shown(self) -> list[str]:
        return [label for label in self.labels if not label.startswith("_")]


def _count(one: Line) -> str:
    return "single seed" if len(one.seeds) == 1 else f"n={len(one.seeds)} seeds"


@dataclass(frozen=True)
class Axis:
    """Labels with units, and the limits where the quantity has natural ones."""

    x: str
    y: str
    ylim: tuple[float | None, float | None] = (None, None)
    xlim: tuple[float | None, float | None] = (None, None)
    log: bool = False
    whole: bool = False  # x counts something: no ticks between whole numbers
    log_x: bool = False


def line(name: str, curves: Mapping[int, Curve], **look: Any) -> Line | None:
    """Join ``seed -> (x, y)`` of any lengths on the union of their x; None if nothing is measured anywhere."""
    x = np.array(sorted({float(v) for xs, _ in curves.values() for v in xs}))
    y = np.full((len(curves), x.size), np.nan)
    for row, (xs, ys) in zip(y, curves.values(), strict=True):
        row[np.searchsorted(x, np.asarray(xs, dtype=float))] = np.asarray(ys, dtype=float)
    measured = np.isfinite(y).any(axis=0) if x.size else np.zeros(0, dtype=bool)
    if not measured.any():
        return None
    return Line(name, x[measured], y[:, measured], tuple(curves), **look)


def picture(title: str, panels: Sequence[Panel], axis: Axis, height: float = 3.0) -> Figure:
    """Panels side by side on common axes, each under its own legend; ``height`` of one in inches."""
    rows = math.ceil(len(panels) / 3)
    columns = math.ceil(len(panels) / rows)
    with style.context(LOOK):
        legend = 0.2 * max(panel.legend_rows for panel in panels)
        size = (6.8 if columns == 1 else 4.8 * columns, 0.5 + (height + legend) * rows)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        _finish(figure, grid, title, panels, axis)
    return figure


def save(figure: Figure, panels: Sequence[Panel], path: Path, dpi: int = 300) -> Path:
    """Write ``path`` (PNG) and, with the suffix .csv, the numbers in it. UserError if the folder is not writable."""
    write_png(figure, path, dpi)
    write_csv(path.with_suffix(".csv"), *data_behind(panels))
    return path


def write_png(figure: Figure, path: Path, dpi: int = 300) -> None:
    """Equal pictures give equal bytes. UserError if the folder is not writable."""
    out = io.BytesIO()
    with style.context(LOOK):
        figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    write_atomic(path, out.getvalue())


def data_behind(panels: Sequence[Panel]) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows: one row per point of each line, with every seed in its column and gaps left empty."""
    seeds = sorted({s for p in panels for one in p.lines for s in one.seeds})
    columns = ["panel", "line", "x", "n", "mean", "std_population", *(f"seed{s}" for s in seeds)]
    rows = [
        [p.title, one.name.lstrip("_"), *point]
        for p in panels
        for one in p.lines
        for point in _points(one, seeds)
    ]
    return columns, rows


def _points(one: Line, seeds: Sequence[int]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for x, y, mean, sd in zip(one.x, one.y.T, one.mean, one.sd, strict=True):
        by_seed = dict(zip(one.seeds, y, strict=True))
        numbers = [mean, sd, *(by_seed.get(s, math.nan) for s in seeds)]
        cells: list[Cell] = [float(v) if math.isfinite(v) else None for v in numbers]
        rows.append([float(x), int(np.isfinite(y).sum()), *cells])
    return rows


def _draw_panel(axes: Axes, panel: Panel) -> None:
    for i, (one, label) in enumerate(zip(panel.lines, panel.labels, strict=True)):
        _draw_seeds(axes, one)
        size = one.size or max(3.5, 6.5 - 1.5 * i)  # equal points stay visible, one within the other
        _draw_mean(axes, one, textwrap.fill(label, WRAP), size)
    for name, level in panel.levels:
        axes.axhline(level, color="0.35", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            name, (1, level), (0, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", fontsize=8, color="0.35",
        )  # fmt: skip
    # Above the axes, with the panel's name as its heading: it can never cover data.
    axes.legend(
        *by_rows(axes, panel.columns), title=textwrap.fill(panel.heading, WRAP), loc="lower left", bbox_to_anchor=(-0.02, 1.0), alignment="left",
        ncols=panel.columns, title_fontproperties={"weight": "bold", "size": 10},
    )  # fmt: skip


def by_rows(axes: Axes, columns: int) -> tuple[list[Artist], list[str]]:
    """Handles and labels in the order in which a legend of so many columns reads row by row; it fills columns first."""
    handles, labels = axes.get_legend_handles_labels()
    order = [i for column in range(columns) for i in range(column, len(labels), columns)]
    return [handles[i] for i in order], [labels[i] for i in order]


def _draw_seeds(axes: Axes, one: Line) -> None:
    """Each seed thin. A single one is its own mean."""
    for y in one.y if len(one.seeds) > 1 else ():
        ok = np.isfinite(y)
        axes.plot(one.x[ok], y[ok], color=one.colour, linewidth=0.5, alpha=0.3, zorder=2)


def _draw_mean(axes: Axes, one: Line, label: str, size: float) -> None:
    """Mean and band, where all seeds are there."""
    ok = np.isfinite(one.mean)
    x, mean, sd = one.x[ok], one.mean[ok], one.sd[ok]
    if len(one.seeds) > 1:
        axes.fill_between(x, mean - sd, mean + sd, color=one.colour, alpha=0.13, linewidth=0, zorder=1)
    axes.plot(
        x, mean, color=one.colour, linestyle=one.dash, linewidth=1.5, label=label, zorder=3,
        marker=one.marker or ("o" if x.size <= FEW_POINTS else ""), markersize=size, markeredgewidth=1.5 if one.marker == "x" else 0,
        markevery=max(1, x.size // 12),
    )  # fmt: skip


def _scale_x(axes: Axes, values: Sequence[float]) -> None:
    """A log scale in plain numbers; few values are its ticks."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    if len(values) <= 6:
        axes.set_xticks(values)


def _finish(figure: Figure, grid: Any, title: str, panels: Sequence[Panel], axis: Axis) -> None:
    first = grid[0, 0]
    if axis.log:
        first.set_yscale("log")
    if axis.log_x:
        _scale_x(first, sorted({float(x) for panel in panels for one in panel.lines for x in one.x}))
    first.set_ylim(*axis.ylim)
    first.set_xlim(*axis.xlim)
    if axis.whole:
        low, high = first.get_xlim()
        if high - low < 2:  # one epoch, or two: no fractions of them
            first.set_xlim(math.ceil(low) - 0.5, math.floor(high) + 0.5)
        first.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in grid.flat[max(0, len(panels) - grid.shape[1]) : len(panels)]:  # those with nothing below
        axes.set_xlabel(f"{axis.x}, log scale" if axis.log_x else axis.x)
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{axis.y}, log scale" if axis.log else axis.y)
    figure.suptitle(title, fontsize=12, x=0.01, horizontalalignment="left")
    if any(len(one.seeds) > 1 for panel in panels for one in panel.lines):
        figure.supxlabel(BAND_NOTE, fontsize=8, color="0.35")
