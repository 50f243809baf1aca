"""One run with noise on one time axis: what the flags saw, what they asked for, and what it did to training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from perturblab.report.palette import Colour
from perturblab.report.plots import FEW_POINTS, LOOK, write_png
from perturblab.report.reading import Floats
from perturblab.report.tables import Cell, write_csv
from perturblab.studies.adaptive_noise.arms import (
    FLAGS,
    NO_GRADIENT,
    OF_GRADIENT,
    OF_TARGET,
    RELATIVE,
    TARGETS,
    Bools,
    Run,
    is_relative,
    sigma_label,
)
from perturblab.studies.adaptive_noise.grid import plain_log

WIDTH = 9.6  # inches
ROWS = {"loss": 2.0, "grad_norm": 1.4, "lr": 0.8, "sigma": 1.2}  # their heights in inches
LANE = 0.24  # of a flag, in inches
TRAIN, VAL, PLAIN = "0.55", "black", "black"  # data are grey and black: colour means noise
COOLING, LOOKED_AT = "0.5", "0.6"
BEST = (0, (1, 1.5))
WHERE = {"gradient": "gradients", "weight": "weights", "input": "inputs", "label": "labels"}
TINT = 0.14  # opacity of what shades all rows
NAMES = {
    "grad_norm_plateau": "gradient norm plateau", "low_weight_update": "low weight update", "train_loss_stuck": "train loss stuck",
    "val_loss_plateau": "val. loss plateau", "overfitting": "overfitting",
}  # fmt: skip


def most_eventful(runs: Sequence[Run]) -> Run:
    """The run whose noise came and went most often because of flags; the first of equals."""
    return max(runs, key=lambda run: sum(1 for _ in _spans(_by_flags(run))) + run.flagged.sum() / 1e6)


def draw_timeline(run: Run, path: Path, dpi: int = 300) -> Path:
    """Write ``path`` (PNG) and, with the suffix .csv, a row per epoch. UserError if the folder is not writable."""
    write_png(timeline(run), path, dpi)
    write_csv(path.with_suffix(".csv"), *in_numbers(run))
    return path


def timeline(run: Run) -> Figure:
    """Loss, gradient norm, learning rate, noise and flags of one run."""
    lanes = [name for name in FLAGS if name in run.flags]
    heights = [*ROWS.values(), *([LANE * len(lanes) + 0.1] if lanes else [])]
    below, above = _about(run), 0.92
    height = above + sum(heights) + 0.12 * len(heights) + 0.5 + 0.16 * len(below)
    with style.context(LOOK):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.subplots(
            len(heights), 1, sharex=True,
            gridspec_kw={
                "height_ratios": heights, "left": 1.55 / WIDTH, "right": 1 - 0.85 / WIDTH, "top": 1 - above / height,
                "bottom": (0.5 + 0.16 * len(below)) / height, "hspace": 0.12 * len(heights) / sum(heights),
            },
        )  # fmt: skip
        _draw_loss(axes[0], run)
        _draw_curve(axes[1], run, "grad_norm", PLAIN)
        _draw_curve(axes[2], run, "lr", PLAIN)
        _draw_sigma(axes[3], run)
        _label(axes, run)
        if lanes:
            _draw_lanes(axes[4], run, lanes)
        for one in axes:
            _shade(one, run)
        _frame(figure, axes, run)
        figure.text(0.1 / WIDTH, 1 - 0.1 / height, _title(run), fontsize=12, va="top")
        figure.text(0.1 / WIDTH, 1 - 0.34 / height, _found(run), fontsize=9, va="top", color="0.35")
        figure.legend(
            handles=_handles(run), loc="upper left", bbox_to_anchor=(0.1 / WIDTH, 1 - (above - 0.3) / height), ncols=8,
            borderaxespad=0, handlelength=1.6, columnspacing=1.2,
        )  # fmt: skip
        figure.text(0.5, 0.06 / height, "\n".join(below), fontsize=8, color="0.35", ha="center", va="bottom")
    return figure


# ---- the rows --------------------------------------------------------------------------------------------------------


def _draw_loss(axes: Axes, run: Run) -> None:
    _draw_curve(axes, run, "train_loss", TRAIN)
    _draw_curve(axes, run, "val_loss", VAL)
    axes.axvline(run.best_epoch, color="black", linewidth=0.8, linestyle=BEST, zorder=2)


def _draw_curve(axes: Axes, run: Run, key: str, colour: Colour) -> None:
    """With a gap where there is no value, and a dot for a value between two gaps."""
    y = run.history[key]
    ok = np.isfinite(y)
    alone = ok & ~np.r_[False, ok[:-1]] & ~np.r_[ok[1:], False]
    few = ok if ok.sum() <= FEW_POINTS else alone
    axes.plot(run.epochs, y, color=colour, linewidth=1.3, zorder=3)
    axes.plot(
        run.epochs[few],
        y[few],
        color=colour,
        linestyle="none",
        marker="o",
        markersize=3 if few is ok else 1.6,
        markeredgewidth=0,
        zorder=3,
    )


def _draw_sigma(axes: Axes, run: Run) -> None:
    """A bar over each epoch with noise."""
    sigma = run.history["noise_sigma"]
    for target in TARGETS:
        here = np.array([t == target for t in run.targets])
        _bars(axes, run.epochs[here], sigma[here], OF_TARGET[target])
    axes.set_ylim(0, 1.08 * float(sigma.max()) or 1)


def _draw_lanes(axes: Axes, run: Run, lanes: Sequence[str]) -> None:
    """A lane per flag: pale where it was measured, coloured like the noise that it asks for where it was raised."""
    for y, name in enumerate(reversed(lanes)):
        fired = run.flags[name].fired
        looked, raised = np.isfinite(fired), fired == 1
        _bars(axes, run.epochs[looked], np.full(looked.sum(), 0.1), LOOKED_AT, y - 0.05)
        _bars(axes, run.epochs[raised], np.full(raised.sum(), 0.7), _colour(name), y - 0.35)
        axes.annotate(
            f"{raised.sum()} of {looked.sum()}", (1, y), (4, 0), xycoords=("axes fraction", "data"),
            textcoords="offset points", va="center", fontsize=8, color="0.35",
        )  # fmt: skip
    axes.set_yticks(range(len(lanes)), [NAMES[name] for name in reversed(lanes)], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(-0.6, len(lanes) - 0.4)


def _bars(axes: Axes, epochs: Floats, heights: Floats, colour: Colour, bottom: float = 0.0) -> None:
    """A bar as wide as an epoch over each of ``epochs``, without seams between neighbours."""
    bars = [
        [(x - 0.5, bottom), (x - 0.5, bottom + h), (x + 0.5, bottom + h), (x + 0.5, bottom)]
        for x, h in zip(epochs, heights, strict=True)
    ]
    axes.add_collection(
        PolyCollection(bars, facecolors=colour, linewidths=0, antialiaseds=False, zorder=3), autolim=False
    )


def _shade(axes: Axes, run: Run) -> None:
    """Cooldowns, and epochs with the flags' noise: through all rows."""
    for first, last in _spans(np.array(run.cooling)):
        axes.axvspan(
            run.epochs[first] - 0.5, run.epochs[last] + 0.5, color=COOLING, alpha=TINT, linewidth=0, zorder=0
        )
    for target in TARGETS:
        for first, last in _spans(_by_flags(run, target)):
            axes.axvspan(
                run.epochs[first] - 0.5,
                run.epochs[last] + 0.5,
                color=OF_TARGET[target],
                alpha=2 * TINT,
                linewidth=0,
                zorder=0.5,
            )


def _spans(here: Bools) -> Iterator[tuple[int, int]]:
    """First and last place of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.r_[False, here, False].astype(int)))
    yield from zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True)


def _by_flags(run: Run, target: str = "") -> Bools:
    """``[epochs]``: whether there was noise because of flags (on this target)."""
    pairs = zip(run.targets, run.causes, strict=True)
    return np.array([cause == "flags" and target in ("", t) for t, cause in pairs])


# ---- around them -----------------------------------------------------------------------------------------------------


def _label(axes: Sequence[Axes], run: Run) -> None:
    names = ("loss (nats)", "gradient norm\n(log scale)", "learning\nrate", f"noise\n{sigma_label(run)}")
    for one, name in zip(axes, names, strict=False):
        one.set_ylabel(name)
        one.yaxis.set_label_coords(-0.105, 0.5)
    if np.isfinite(run.history["grad_norm"]).any():
        plain_log(axes[1])
    else:
        axes[1].set_yticks([])
        axes[1].text(
            0.5, 0.5, NO_GRADIENT, transform=axes[1].transAxes, ha="center", va="center", color="0.35"
        )
    axes[2].set_ylim(bottom=0)


def _frame(figure: Figure, axes: Sequence[Axes], run: Run) -> None:
    for one in axes[:-1]:
        one.tick_params(axis="x", length=0)
    axes[-1].set_xlabel("epoch")
    axes[-1].set_xlim(run.epochs[0] - 0.5, run.epochs[-1] + 0.5)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _handles(run: Run) -> list[Line2D | Patch]:
    found: list[Line2D | Patch] = [
        Line2D([], [], color=TRAIN, label="train loss"),
        Line2D([], [], color=VAL, label="val. loss"),
    ]
    found += [Patch(color=OF_TARGET[t], label=f"{t} noise") for t in TARGETS if run.noisy(t)]
    if any(run.cooling):
        found.append(Patch(color=COOLING, alpha=2 * TINT, linewidth=0, label="cooldown"))
    return [
        *found,
        Line2D([], [], color="black", linewidth=0.8, linestyle=BEST, label="best validation accuracy"),
    ]


def _title(run: Run) -> str:
    return f"{run.setting}, {run.noise} noise, seed {run.seed}"


def _found(run: Run) -> str:
    """What the run came to."""
    counts = [f"on {WHERE[t]} in {run.noisy(t)}" for t in TARGETS if run.noisy(t)]
    return (
        f"noise {' and '.join(counts)} of {len(run.targets)} epochs; accuracy {run.finals['test_acc']:.2f} % on test, "
        f"{run.finals['best_val_acc']:.2f} % on validation (epoch {run.best_epoch}, the best)"
    )


def _about(run: Run) -> list[str]:
    """How to read the picture."""
    s, lines = run.settings, []
    if run.flags:
        lines.append(
            f"flags before each epoch: line where measured, block where raised, in the colour of the noise it asks for; "
            f"right: raised of measured (controller: {s['controller']})"
        )
    if np.isnan(run.history["grad_norm"]).any() and np.isfinite(run.history["grad_norm"]).any():
        lines.append(f"gaps in the gradient norm: {NO_GRADIENT}")
    return [*lines, RELATIVE] if is_relative(run) else lines


def _colour(flag: str) -> Colour:
    return OF_TARGET["gradient" if flag in OF_GRADIENT else "weight"]


# ---- in numbers ------------------------------------------------------------------------------------------------------


def in_numbers(run: Run) -> tuple[list[str], list[list[Cell]]]:
    """Columns and a row per epoch; empty where there is no value."""
    lanes = [name for name in FLAGS if name in run.flags]
    curves = ("train_loss", "val_loss", "grad_norm", "lr", "noise_sigma")
    parts = ("value", "threshold", "fired")
    columns = [
        "epoch",
        *curves,
        "noise_target",
        "cause",
        "cooling",
        *(f"{name}_{part}" for name in lanes for part in parts),
    ]
    rows: list[list[Cell]] = []
    for i, epoch in enumerate(run.epochs):
        numbers = [_cell(run.history[key][i]) for key in curves]
        flags = [_cell(getattr(run.flags[name], part)[i]) for name in lanes for part in parts]
        rows.append([int(epoch), *numbers, run.targets[i], run.causes[i], int(run.cooling[i]), *flags])
    return columns, rows


def _cell(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
