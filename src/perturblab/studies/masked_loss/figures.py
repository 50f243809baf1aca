"""The pictures, tables and the one-line verdict of masked-loss, from its documented result files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from perturblab.report.plots import (
    BLACK,
    DASHES,
    MARKERS,
    ORANGE,
    SKY,
    Axis,
    Curve,
    Panel,
    colours,
    line,
    picture,
    save,
)  # fmt: skip
from perturblab.studies.masked_loss.results import Group, Result, groups, read_results
from perturblab.studies.masked_loss.summary import summary, verdict
from perturblab.terminal import say

__all__ = ["draw", "read_results", "summary", "verdict"]

EPOCH = "epoch"
CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "digits": 10}
LOSSES = {
    "train_loss_full": ("intact network", BLACK),
    "train_loss_masked": ("masked, mean over masks", ORANGE),
    "train_loss_total": ("total, as minimised", SKY),
}
LOG_FROM = 50  # losses over more than this factor need a log axis to be read

Drawing = tuple[str, str, list[Panel], Axis, str]
"""File name, title, panels, axis, and what is said if no panel has data."""


def draw(
    results_dir: str | Path,
    plots_dir: str | Path,
    architectures: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    dpi: int = 300,
) -> list[Path]:
    """Draw what the results allow into ``plots_dir``; returns the PNG files, each with a CSV of equal stem.

    A picture without data is not drawn; one line says why. Raises UserError as ``read_results`` does.
    """
    found = groups(read_results(results_dir, architectures, modes, seeds))
    written = []
    for name, title, panels, axis, lacking in _drawings(found):
        if panels:
            written.append(save(picture(title, panels, axis), panels, Path(plots_dir) / name, dpi))
        else:
            say(f"{name} not drawn: {lacking}")
    return written


def _drawings(found: Sequence[Group]) -> list[Drawing]:
    return [
        _generalization_gap(found),
        _test_accuracy(found),
        *(_loss_curves(found, arch) for arch in dict.fromkeys(g.arch for g in found)),
        _lambda_schedule(found),
        _clamp_activity(found),
        _robustness(found),
    ]


def _generalization_gap(found: Sequence[Group]) -> Drawing:
    axis = Axis(EPOCH, "train - test accuracy (percentage points)")
    panels = _by_architecture(found, lambda run: _history(run, "gen_gap"))
    return "generalization_gap.png", "Generalization gap", panels, axis, "no run records gen_gap"


def _test_accuracy(found: Sequence[Group]) -> Drawing:
    panels = _by_architecture(found, lambda run: _history(run, "test_acc"))
    return (
        "test_accuracy.png",
        "Test accuracy",
        panels,
        Axis(EPOCH, "test accuracy (%)"),
        "no run records test_acc",
    )


def _loss_curves(found: Sequence[Group], arch: str) -> Drawing:
    panels = []
    for group in _masked(found):
        lines = [
            line(name, {run.seed: _history(run, key) for run in group.runs}, colour=colour)
            for key, (name, colour) in LOSSES.items()
        ]
        if group.arch == arch and any(lines):
            panels.append(Panel(group.label, tuple(one for one in lines if one)))
    axis = Axis(EPOCH, "training loss (nats)", log=_needs_log(panels))
    return f"loss_curves_{arch}.png", f"Training losses, {arch}", panels, axis, f"no masked run of {arch}"


def _lambda_schedule(found: Sequence[Group]) -> Drawing:
    """Of the first architecture and seed, as documented: lambda depends on the settings only."""
    panels = []
    for group in _masked(found)[:1]:
        run = group.runs[0]
        one = line(
            f"{group.arm_label}, seed {run.seed}", {run.seed: _history(run, "lambda")}, **_look(group, found)
        )
        panels = [Panel(group.arch, (one,))] if one else []
    axis = Axis(EPOCH, "lambda, the weight of the masked loss", ylim=(0, None))
    return "lambda_schedule.png", "Lambda warm-up", panels, axis, "no masked run"


def _clamp_activity(found: Sequence[Group]) -> Drawing:
    panels = _by_architecture(_masked(found), lambda run: _history(run, "clamp_active_fraction"))
    axis = Axis(EPOCH, "fraction of steps with the clamp active", ylim=(-0.03, 1.03))
    lacking = "no masked run records clamp_active_fraction"
    return "clamp_activity.png", "How often the clamp cuts off the masked loss", panels, axis, lacking


def _robustness(found: Sequence[Group]) -> Drawing:
    panels = [
        Panel(panel.title, panel.lines, _chance(found, panel.title))
        for panel in _by_architecture(found, _kept)
    ]
    axis = Axis(
        "fraction of hidden units kept (1 = intact)", "test accuracy (%)", ylim=(0, 100), xlim=(0, 1.02)
    )
    title = "Test accuracy with hidden units removed at random"
    return "robustness.png", title, panels, axis, "no run records robustness"


def _by_architecture(found: Sequence[Group], curve: Callable[[Result], Curve]) -> list[Panel]:
    """One panel per architecture that has data, one line per group."""
    panels = []
    for arch in dict.fromkeys(g.arch for g in found):
        own = [g for g in found if g.arch == arch]
        lines = [line(g.arm_label, {r.seed: curve(r) for r in g.runs}, **_look(g, found)) for g in own]
        if any(lines):
            panels.append(Panel(arch, tuple(one for one in lines if one)))
    return panels


def _look(group: Group, found: Sequence[Group]) -> dict[str, object]:
    return {
        "colour": colours([g.arch for g in found])[group.arch],
        "dash": DASHES[group.mode],
        "marker": MARKERS[group.order % len(MARKERS)],
    }


def _history(run: Result, key: str) -> Curve:
    return run.history["epoch"], run.history.get(key, np.full(run.history["epoch"].shape, np.nan))


def _kept(run: Result) -> Curve:
    """Accuracy against fraction kept, closed by the intact network at 1."""
    if run.robustness is None:
        return (), ()
    below = run.robustness.kept_fraction < 1
    x = [*run.robustness.kept_fraction[below], 1.0]
    return x, [*run.robustness.test_acc[below], run.robustness.intact]


def _masked(found: Iterable[Group]) -> list[Group]:
    return [g for g in found if g.mode == "masked"]


def _chance(found: Sequence[Group], arch: str) -> tuple[tuple[str, float], ...]:
    """The accuracy of guessing, in percent, if all runs of ``arch`` are known to have the same classes."""
    datasets = {
        str(run.settings["dataset"]).partition(":")[0] for g in found if g.arch == arch for run in g.runs
    }
    classes = {CLASSES.get(name) for name in datasets}
    known = classes.pop() if len(classes) == 1 else None
    return ((f"chance ({known} classes)", 100 / known),) if known else ()


def _needs_log(panels: Sequence[Panel]) -> bool:
    """Whether all means are positive and range over a large factor."""
    means = [one.y[np.isfinite(one.y)] for panel in panels for one in panel.lines]
    values = np.concatenate(means) if means else np.ones(1)
    return bool(values.min() > 0 and values.max() > LOG_FROM * values.min())
