"""noise_vs_baseline.png: every arm with noise minus the same run without it, paired over seeds."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from perturblab.report import plots
from perturblab.report.plots import BAND_NOTE, LOOK, Curve, Line
from perturblab.report.statistics import Paired
from perturblab.report.tables import Cell, write_csv
from perturblab.studies.adaptive_noise.arms import Comparison, Run
from perturblab.studies.adaptive_noise.grid import draw_line

WIDTH = 13.0  # inches
LABEL = 30  # letters of an arm per line
MEASURES = {"test_acc": "test accuracy (points)", "gap": "generalisation gap (points)"}
BLOCKS = 30  # of epochs, over a whole run: single epochs vary too much to be read
NOTES = (
    "dot: one seed; square: their mean; bar: 95 % t interval (none from a single seed), an arrow where it goes on; "
    "test accuracy is that of the epoch with the best validation accuracy",
    "generalisation gap: accuracy on clean train images minus validation accuracy, after the last epoch",
)


def draw_comparison(found: Sequence[Comparison], path: Path, dpi: int = 300) -> Path:
    """Write ``path`` (PNG) and, with the suffix .csv, its numbers, for the comparisons that have a pair (one at least).

    UserError if the folder is not writable.
    """
    paired = [one for one in found if one.pairs]
    plots.write_png(picture(paired), path, dpi)
    write_csv(path.with_suffix(".csv"), *in_numbers(paired))
    return path


def picture(found: Sequence[Comparison]) -> Figure:
    """A row per network, optimiser, learning rate and momentum: over epochs, on test, and the gap."""
    settings = list(dict.fromkeys(one.group.setting for one in found))
    by_setting = [[one for one in found if one.group.setting == name] for name in settings]
    heights = [max(1.5, 0.52 * len(own)) + 0.75 for own in by_setting]
    notes = [*NOTES, *_of_curves(found)]
    below = 0.16 * len(notes) + 0.15
    height = 0.4 + sum(heights) + 0.3 + below
    with style.context(LOOK):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - (below + 0.35) / height))  # type: ignore[union-attr, call-arg]
        grid = figure.subplots(
            len(settings), 3, sharex="col", squeeze=False,
            gridspec_kw={"height_ratios": heights, "width_ratios": [1.5, 1, 1]},
        )  # fmt: skip
        for row, name, own in zip(grid, settings, by_setting, strict=True):
            _draw_row(row, name, own)
        for axes, key in zip(grid[0, 1:], MEASURES, strict=True):
            axes.set_xlim(*_limits(found, key))
        for row, own in zip(grid, by_setting, strict=True):
            for axes, key in zip(row[1:], MEASURES, strict=True):
                _draw_intervals(axes, own, key)
        _label(grid)
        figure.text(
            0.1 / WIDTH, 1 - 0.1 / height, "Δ: noise minus baseline, paired over seeds", fontsize=12, va="top"
        )
        figure.text(0.5, 0.06 / height, "\n".join(notes), fontsize=8, color="0.35", ha="center", va="bottom")
    return figure


def _of_curves(found: Sequence[Comparison]) -> list[str]:
    sizes = sorted({block(noisy) for one in found for noisy, _ in one.pairs})
    told = [f"means of {' or '.join(map(str, sizes))} epochs"] if sizes != [1] else []
    told += [BAND_NOTE] if any(len(one.pairs) > 1 for one in found) else []
    return [f"left: {'; '.join(told)}"] if told else []


def _draw_row(row: Sequence[Axes], setting: str, own: Sequence[Comparison]) -> None:
    row[0].set_title(setting, loc="left", fontweight="bold", fontsize=9.5)
    row[0].axhline(0, color="black", linewidth=1, zorder=1)
    row[0].set_ylabel("Δ val. accuracy (points)")
    for one in own:
        if line := over_epochs(one):
            draw_line(row[0], line)
    row[1].set_yticks(range(len(own)), [_label_of(one, "test_acc") for one in own])
    row[2].set_yticks(range(len(own)), [_numbers(one.of("gap")) for one in own])
    for axes in row[1:]:
        axes.axvline(0, color="black", linewidth=1, zorder=1)
        axes.set_ylim(len(own) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, pad=8)
        axes.grid(visible=False, axis="y")


def over_epochs(one: Comparison) -> Line | None:
    """Validation accuracy minus the baseline's in points, means of blocks of epochs."""
    curves = {noisy.seed: _difference(noisy, base) for noisy, base in one.pairs}
    return plots.line(one.group.label, curves, **one.group.look)


def _difference(noisy: Run, base: Run) -> Curve:
    """At the last epoch of each block; what is left over at the end belongs to the last one."""
    size = block(noisy)
    n = min(noisy.epochs.size, base.epochs.size)
    by_epoch = noisy.history["val_acc"][:n] - base.history["val_acc"][:n]
    starts = np.arange(0, max(1, by_epoch.size // size)) * size
    counts = np.diff([*starts, by_epoch.size])
    return noisy.epochs[starts + counts - 1], np.add.reduceat(by_epoch, starts) / counts


def block(run: Run) -> int:
    """Epochs in a block."""
    return math.ceil(run.epochs.size / BLOCKS)


def _draw_intervals(axes: Axes, own: Sequence[Comparison], key: str) -> None:
    low, high = axes.get_xlim()
    for y, one in enumerate(own):
        found, colour = one.of(key), one.group.look["colour"]
        if found.ci_low is not None and found.ci_high is not None:
            axes.plot(
                [max(low, found.ci_low), min(high, found.ci_high)],
                [y, y],
                color=colour,
                linewidth=2,
                zorder=2,
            )
            for end, beyond, marker in ((low, found.ci_low < low, "<"), (high, found.ci_high > high, ">")):
                if beyond:
                    axes.plot(end, y, marker=marker, color=colour, markersize=7, clip_on=False, zorder=3)
            axes.plot(
                found.mean_difference,
                y,
                marker="s",
                color=colour,
                markersize=7,
                markeredgecolor="white",
                zorder=4,
            )
        dots = one.differences(key)
        offset = 0.22 if len(dots) > 1 else 0.0
        axes.plot(dots, np.full(dots.size, y + offset), color=colour, linestyle="none", marker="o", markersize=4.5,
                  markeredgewidth=0, alpha=0.8, zorder=3)  # fmt: skip


def _limits(found: Sequence[Comparison], key: str) -> tuple[float, float]:
    """Zero, all seeds, and the intervals of three and more; those of two seeds, 13 times as wide, may go on beyond."""
    ends = [0.0, *(float(d) for one in found for d in one.differences(key))]
    for one in found:
        p = one.of(key)
        if p.n > 2 and p.ci_low is not None and p.ci_high is not None:
            ends += [p.ci_low, p.ci_high]
    low, high = min(ends), max(ends)
    room = 0.08 * (high - low) or 1.0
    return low - room, high + room


def _label_of(one: Comparison, key: str) -> str:
    return textwrap.fill(one.group.label, LABEL) + "\n" + _numbers(one.of(key))


def _numbers(p: Paired) -> str:
    if p.ci_low is None:
        text = f"{p.mean_difference:+.2f}, single seed"
    else:
        text = f"{p.mean_difference:+.2f} ({p.ci_low:+.2f} to {p.ci_high:+.2f}), n={p.n}"
    return text.replace("-", "−")


def _label(grid: np.ndarray) -> None:
    for axes, name in zip(grid[-1, 1:], MEASURES.values(), strict=True):
        axes.set_xlabel(f"Δ {name}")
    grid[-1, 0].set_xlabel("epoch")
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in grid[:, 1:].flat:
        for text in axes.get_yticklabels():
            text.set_fontsize(8.5)


# ---- in numbers ------------------------------------------------------------------------------------------------------


def in_numbers(found: Sequence[Comparison]) -> tuple[list[str], list[list[Cell]]]:
    """A row per arm and measure, and per arm and epoch; the differences of single seeds in points, each in its column."""
    seeds = sorted({noisy.seed for one in found for noisy, _ in one.pairs})
    columns = [
        "setting",
        "arm",
        "measure",
        "epoch",
        "n",
        "mean_difference",
        "ci_low",
        "ci_high",
        "p_value",
        *(f"seed{s}" for s in seeds),
    ]
    rows: list[list[Cell]] = []
    for one in found:
        about: list[Cell] = [one.group.setting, one.group.label]
        own = [noisy.seed for noisy, _ in one.pairs]
        for key in MEASURES:
            p, by_seed = one.of(key), dict(zip(own, one.differences(key), strict=True))
            rows.append(
                [
                    *about,
                    key,
                    None,
                    p.n,
                    p.mean_difference,
                    p.ci_low,
                    p.ci_high,
                    p.p_value,
                    *(_cell(by_seed.get(s, math.nan)) for s in seeds),
                ]
            )
        if line := over_epochs(one):
            for x, y, mean in zip(line.x, line.y.T, line.mean, strict=True):
                by_seed = dict(zip(line.seeds, y, strict=True))
                rows.append(
                    [
                        *about,
                        "val_acc",
                        int(x),
                        int(np.isfinite(y).sum()),
                        _cell(mean),
                        None,
                        None,
                        None,
                        *(_cell(by_seed.get(s, math.nan)) for s in seeds),
                    ]
                )
    return columns, rows


def _cell(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
