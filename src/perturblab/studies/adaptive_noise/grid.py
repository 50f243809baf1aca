"""Panels of curves over epochs in rows and columns, one legend for all, and strips that show when flags were raised."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from perturblab.report.plots import BAND_NOTE, FEW_POINTS, HANDLE, LOOK, Line, Panel

LEFT = 0.08  # of title and legend, in inches
WIDTH, HEIGHT = 4.6, 2.25  # of a panel, in inches
WRAP = 46  # letters per line of a heading
LETTERS = 13.5  # of the legend per inch of width
LANE = 0.045  # height of a strip, as a share of the panel's
LANE_POINTS = 7.5  # the same in points, roughly
TICKS = {
    2.0: (1.0,),
    1.2: (1.0, 3.0),
    0.5: (1.0, 2.0, 5.0),
    0.0: (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
}  # from so many decades
DOTS = "each dot: one epoch of one seed with noise"
STRIPS = "strips on top: epochs with a raised flag, in the colour of the arm"
PALER = ", paler where not in all seeds"


@dataclass(frozen=True)
class Part:
    """A panel with its own y axis. ``strips`` are lines of 1 (flag raised) and 0, each drawn as a strip above the panel.

    ``dots``: values stand alone, as those of noise that comes and goes.
    """

    panel: Panel
    y: str
    strips: tuple[Line, ...] = ()
    log: bool = False
    dots: bool = False

    @property
    def behind(self) -> Panel:
        """All numbers in it."""
        return Panel(self.panel.title, (*self.panel.lines, *self.strips))


def picture(
    title: str,
    parts: Sequence[Part],
    columns: int = 2,
    share: bool = False,
    notes: Sequence[str] = (),
    height: float = HEIGHT,
) -> Figure:
    """``parts`` row by row; ``share``: those of a row have one y axis; ``height`` of a panel in inches."""
    columns = min(columns, len(parts))
    rows = math.ceil(len(parts) / columns)
    width = max(WIDTH * columns, 6.8)
    lines = [one for part in parts for one in part.panel.lines]
    legend = _legend(lines, any(part.dots for part in parts))
    per_row = max(1, int(width * LETTERS / (max(map(len, legend)) + HANDLE)))
    told = [*_about(parts), *notes]
    above, below = 0.4 + 0.22 * math.ceil(len(legend) / per_row), 0.16 * len(told) + 0.1
    strips = LANE_POINTS / 72 * max(len(part.strips) for part in parts)
    height = above + below + (height + 0.65 + strips) * rows
    with style.context(LOOK):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - (above + below) / height))  # type: ignore[union-attr, call-arg]
        axes = figure.subplots(rows, columns, sharex=True, sharey="row" if share else "none", squeeze=False)
        for one, part in zip(axes.flat, parts, strict=False):
            _draw(one, part)
        _finish(axes, parts)
        figure.text(LEFT / width, 1 - 0.08 / height, title, fontsize=12, va="top")
        figure.legend(
            legend.values(), legend.keys(), loc="upper left", bbox_to_anchor=(LEFT / width, 1 - 0.33 / height), ncols=per_row,
            borderaxespad=0,
        )  # fmt: skip
        figure.text(0.5, 0.06 / height, "\n".join(told), fontsize=8, color="0.35", ha="center", va="bottom")
    return figure


def _about(parts: Sequence[Part]) -> list[str]:
    """How to read the picture."""
    dots = any(part.dots for part in parts)
    several = any(len(one.seeds) > 1 for part in parts for one in part.panel.lines)
    lines = [DOTS] if dots else [BAND_NOTE] if several else []
    if any(part.strips for part in parts):
        lines.append(STRIPS + (PALER if several else ""))
    return lines


def _legend(lines: Sequence[Line], dots: bool) -> dict[str, Artist]:
    """A handle for each name, as it was first drawn."""
    handles: dict[str, Artist] = {}
    for one in lines:
        dash: Any = "none" if dots else one.dash
        marker = one.marker or ("o" if dots else "")
        handle = Line2D([], [], color=one.colour, linestyle=dash, marker=marker, markersize=4)
        handles.setdefault(one.name, handle)
    return handles


def _draw(axes: Axes, part: Part) -> None:
    for i, one in enumerate(part.panel.lines):
        if part.dots:
            _draw_dots(axes, one)
        else:  # the first one stays visible below an equal one
            draw_line(axes, one, 2.4 if i == 0 and len(part.panel.lines) > 1 else 1.4)
    for i, strip in enumerate(reversed(part.strips)):
        draw_strip(axes, strip, i)
    if part.log:
        plain_log(axes)
    if part.dots:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(f"{part.y}, log scale" if part.log else part.y)
    axes.set_title(
        _heading(part.panel), loc="left", fontweight="bold", fontsize=9.5,
        pad=4 + LANE_POINTS * len(part.strips),
    )  # fmt: skip


def plain_log(axes: Axes) -> None:
    """A log scale of y in plain numbers, not in powers of ten."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    subs = next(subs for least, subs in TICKS.items() if decades > least)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def _heading(panel: Panel) -> str:
    """In two lines where the panel is one arm's; else wrapped."""
    return "\n".join(textwrap.fill(line, WRAP) for line in panel.heading.split(": "))


def draw_line(axes: Axes, one: Line, width: float = 1.5) -> None:
    """Each seed thin, their mean thick, the band around it. Where a seed is missing the mean has a gap."""
    if len(one.seeds) > 1:
        for y in one.y:
            ok = np.isfinite(y)
            axes.plot(one.x[ok], y[ok], color=one.colour, linewidth=0.5, alpha=0.3, zorder=2)
        mean, sd = one.mean, one.sd
        axes.fill_between(one.x, mean - sd, mean + sd, color=one.colour, alpha=0.13, linewidth=0, zorder=1)
    axes.plot(
        one.x, one.mean, color=one.colour, linestyle=one.dash, linewidth=width, zorder=3, markersize=4, markeredgewidth=0,
        marker=one.marker or ("o" if one.x.size <= FEW_POINTS else ""), markevery=max(1, one.x.size // 12),
    )  # fmt: skip


def _draw_dots(axes: Axes, one: Line) -> None:
    for y in one.y:
        axes.plot(one.x, y, color=one.colour, marker=one.marker or "o", linestyle="none", markersize=3, markeredgewidth=0,
                  alpha=1 if len(one.seeds) == 1 else 0.6)  # fmt: skip


def draw_strip(axes: Axes, strip: Line, lane: int) -> None:
    """Above the panel: a bar over each epoch with a value, as opaque as the share of seeds that have 1 there."""
    low, high = 1.015 + lane * LANE, 1.015 + (lane + 0.75) * LANE
    share = strip.y.mean(axis=0)
    bars = [[(x - 0.5, low), (x - 0.5, high), (x + 0.5, high), (x + 0.5, low)] for x in strip.x[share > 0]]
    colours = [to_rgba(strip.colour, 0.25 + 0.75 * float(one)) for one in share[share > 0]]
    axes.add_collection(
        PolyCollection(
            bars, facecolors=colours, linewidths=0, antialiaseds=False, transform=axes.get_xaxis_transform(), clip_on=False
        ), autolim=False,
    )  # fmt: skip


def _finish(grid: np.ndarray, parts: Sequence[Part]) -> None:
    n, columns = len(parts), grid.shape[1]
    for axes in grid.flat[n:]:
        axes.set_axis_off()
    for axes in grid.flat[max(0, n - columns) : n]:  # those with nothing below
        axes.set_xlabel("epoch")
        axes.tick_params(labelbottom=True)
    last = max(float(one.x[-1]) for part in parts for one in (*part.panel.lines, *part.strips))
    grid[0, 0].set_xlim(1 - max(0.5, 0.015 * last), last + max(0.5, 0.015 * last))
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
