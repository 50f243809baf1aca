"""The pictures of masked-loss, drawn from its documented result files; also its tables and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perturblab.report import palette, plots
from perturblab.report.plots import Axis, Curve, Panel
from perturblab.report.tables import show
from perturblab.studies.masked_loss import Visualize
from perturblab.studies.masked_loss.arms import Group, Result, groups
from perturblab.studies.masked_loss.results import read_results
from perturblab.studies.masked_loss.summary import summary, verdict
from perturblab.terminal import say

__all__ = ["draw", "draw_results", "read_results", "summary", "verdict", "visualize"]

CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "fashion-mnist": 10, "digits": 10}
LOSSES = {  # in the document's names and in colours that no documented architecture has
    "train_loss_full": ("L_full", palette.BLACK),
    "train_loss_masked": ("L_masked_avg", palette.ORANGE),
    "train_loss_total": ("L_total", palette.SKY),
}
LOG_FROM = 20  # a linear axis hides the lesser of two losses that differ by more than this factor


@dataclass(frozen=True)
class Drawing:
    """A picture before it is drawn; ``lacking`` says why there is none if no panel has data."""

    name: str
    title: str
    panels: Sequence[Panel]
    axis: Axis
    lacking: str
    height: float = 3.0


def visualize(settings: Visualize) -> None:
    """The command: draw the pictures, print tables and verdict. Raises UserError as ``read_results`` does."""
    chosen = settings.architectures, settings.modes, settings.seeds
    results = read_results(settings.results_dir, *chosen)
    for path in draw_results(results, settings.plots_dir):
        say(str(path))
    for table in summary(results):
        show(table)
    say("\n" + verdict(results))


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
    return draw_results(read_results(results_dir, architectures, modes, seeds), plots_dir, dpi)


def draw_results(results: Sequence[Result], plots_dir: str | Path, dpi: int = 300) -> list[Path]:
    """``draw`` for results that were read before."""
    written = []
    for d in _drawings(groups(results)):
        if d.panels:
            figure = plots.picture(d.title, d.panels, d.axis, d.height)
            written.append(plots.save(figure, d.panels, Path(plots_dir) / d.name, dpi))
        else:
            say(f"{d.name} not drawn: {d.lacking}")
    return written


def _drawings(found: Sequence[Group]) -> list[Drawing]:
    return [
        _generalization_gap(found),
        _test_accuracy(found),
        *(_loss_curves(found, arch) for arch in _architectures(found)),
        _lambda_schedule(found),
        _clamp_activity(found),
        _robustness(found),
    ]


def _generalization_gap(found: Sequence[Group]) -> Drawing:
    panels = _by_architecture(found, lambda run: _history(run, "gen_gap"))
    axis = Axis("epoch", "train − test accuracy (points)", whole=True)
    return Drawing("generalization_gap.png", "Generalization gap", panels, axis, "no run records gen_gap")


def _test_accuracy(found: Sequence[Group]) -> Drawing:
    panels = _by_architecture(found, lambda run: _history(run, "test_acc"))
    axis = Axis("epoch", "test accuracy (%)", whole=True)
    return Drawing("test_accuracy.png", "Test accuracy", panels, axis, "no run records test_acc")


def _loss_curves(found: Sequence[Group], arch: str) -> Drawing:
    """A panel per masked group of ``arch``: settings that differ have losses that cannot share an average."""
    panels = []
    for group in (g for g in _masked(found) if g.arch == arch):
        terms = [
            plots.line(name, {run.seed: _history(run, key) for run in group.runs}, colour=colour)
            for key, (name, colour) in LOSSES.items()
        ]
        if lines := tuple(term for term in terms if term):
            panels.append(Panel(group.label, lines))
    axis = Axis("epoch", "training loss (nats)", log=_needs_log(panels), whole=True)
    title = f"Losses of masked training, {arch}"
    return Drawing(
        f"loss_curves_{arch}.png", title, panels, axis, f"no masked run of {arch} records its losses"
    )


def _lambda_schedule(found: Sequence[Group]) -> Drawing:
    """Of the first architecture and seed, as documented: lambda depends on the settings alone."""
    panels = []
    for group in _masked(found)[:1]:
        run = group.runs[0]
        if one := plots.line("lambda", {run.seed: _history(run, "lambda")}, **_look(group, found)):
            panels.append(Panel(f"{group.label}, seed {run.seed}", (one,), counted=False))
    axis = Axis("epoch", "weight of the masked loss", ylim=(0, None), whole=True)
    return Drawing("lambda_schedule.png", "Lambda schedule", panels, axis, "no masked run records lambda")


def _clamp_activity(found: Sequence[Group]) -> Drawing:
    clamped = [g for g in _masked(found) if g.runs[0].settings["clamp"] != "none"]
    panels = _by_architecture(clamped, lambda run: _history(run, "clamp_active_fraction"))
    axis = Axis("epoch", "fraction of steps", ylim=(-0.04, 1.04), whole=True)
    lacking = "no masked run records clamp_active_fraction"
    return Drawing(
        "clamp_activity.png", "Steps in which the clamp was active", panels, axis, lacking, height=2.0
    )


def _robustness(found: Sequence[Group]) -> Drawing:
    lines = _by_architecture(found, _kept)
    panels = [Panel(panel.title, panel.lines, _chance(found, panel.title)) for panel in lines]
    axis = Axis(
        "fraction of hidden units kept (1: intact)", "test accuracy (%)", ylim=(0, 100), xlim=(0, 1.02)
    )
    title = "Test accuracy with hidden units removed at random"
    return Drawing("robustness.png", title, panels, axis, "no run records robustness")


def _by_architecture(found: Sequence[Group], curve: Callable[[Result], Curve]) -> list[Panel]:
    """One panel per architecture that has data, one line per group."""
    panels = []
    for arch in _architectures(found):
        own = [g for g in found if g.arch == arch]
        drawn = [plots.line(g.arm_label, {r.seed: curve(r) for r in g.runs}, **_look(g, found)) for g in own]
        if lines := tuple(one for one in drawn if one):
            panels.append(Panel(arch, lines))
    return panels


def _architectures(found: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(g.arch for g in found))


def _masked(found: Sequence[Group]) -> list[Group]:
    return [g for g in found if g.mode == "masked"]


def _look(group: Group, found: Sequence[Group]) -> dict[str, object]:
    colour = palette.colours(_architectures(found))[group.arch]
    return {
        "colour": palette.shade(colour, plots.SHADES.get(group.mode, -0.25)),
        "dash": plots.DASHES.get(group.mode, "-."),
        "marker": plots.MARKERS[group.order % len(plots.MARKERS)],
    }


def _history(run: Result, key: str) -> Curve:
    epoch = run.history["epoch"]
    return epoch, run.history.get(key, np.full(epoch.shape, np.nan))


def _kept(run: Result) -> Curve:
    """Accuracy against fraction kept, closed by the intact network at 1."""
    if run.robustness is None:
        return (), ()
    below = run.robustness.kept_fraction < 1
    x = [*run.robustness.kept_fraction[below], 1.0]
    return x, [*run.robustness.test_acc[below], run.robustness.intact]


def _chance(found: Sequence[Group], arch: str) -> tuple[tuple[str, float], ...]:
    """The accuracy of guessing, in percent, if all runs of ``arch`` are known to have the same classes."""
    datasets = {run.settings["dataset"] for g in found if g.arch == arch for run in g.runs}
    classes = {CLASSES.get(str(name)) for name in datasets}
    known = classes.pop() if len(classes) == 1 else None
    return (("chance", 100 / known),) if known else ()


def _needs_log(panels: Sequence[Panel]) -> bool:
    """Whether all losses are positive and range over a large factor."""
    values = np.concatenate(
        [one.y[np.isfinite(one.y)] for panel in panels for one in panel.lines] or [np.ones(1)]
    )
    return bool(values.min() > 0 and values.max() > LOG_FROM * values.min())
