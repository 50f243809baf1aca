"""The pictures of first-layer-mi, drawn from its documented result files; also its table and what can be said."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from perturblab.flags import data_name
from perturblab.report import palette, plots, scatter
from perturblab.report.groups import Alike, alike
from perturblab.report.plots import Axis, Curve, Line, Panel
from perturblab.report.tables import show
from perturblab.studies.first_layer_mi import Visualize
from perturblab.studies.first_layer_mi.results import SETTINGS, Result, read_results
from perturblab.studies.first_layer_mi.summary import Units, correlations, said, summary
from perturblab.terminal import say

BINS = 10  # of the fraction kept, at most
MASKS_PER_BIN = 4  # at least, on average

OVER_EPOCHS = {
    "MI full": "mi_full_history_nats",
    "the same, labels permuted": "mi_full_history_null_nats",
    "MI full − mean MI masked": "mi_history",
}

Group = Alike[Result]


def visualize(settings: Visualize) -> None:
    """The command: draw the pictures, print the table and what it says. Raises UserError as ``read_results`` does."""
    s = settings
    results = read_results(s.results_dir, s.architectures, s.seeds, s.train_acc_threshold)
    units = Units(s.mi_units)
    for path in draw_results(results, s.plots_dir, units):
        say(str(path))
    show(summary(results, units))
    say("\n" + said(results))


def draw_results(
    results: Sequence[Result], plots_dir: str | Path, units: Units, dpi: int = 300
) -> list[Path]:
    """Draw what the results allow; returns the PNG files, each with a CSV of equal stem."""
    groups, folder = alike(results, SETTINGS), Path(plots_dir)
    return [
        _diff_against_gap(groups, folder, units, dpi),
        _over_epochs(groups, folder, units, dpi),
        *_against_kept(groups, folder, units, dpi),
    ]


def _diff_against_gap(groups: Sequence[Group], folder: Path, units: Units, dpi: int) -> Path:
    clouds = [
        scatter.Cloud(
            _name(group),
            np.array([run.finals["final_gen_gap"] for run in group.runs]),
            np.array([units.of(run.finals["final_mi_diff"]) for run in group.runs]),
            tuple(run.seed for run in group.runs),
            _colours(groups)[group.runs[0].arch],
            plots.MARKERS[group.order % len(plots.MARKERS)] or "o",
        )
        for group in groups
    ]
    axis = Axis(
        "generalization gap: clean train − test accuracy (points)", f"MI full − mean MI masked ({units.name})"
    )
    notes = correlations([run for group in groups for run in group.runs])
    title = "Information lost in the first layer against generalization gap"
    figure = scatter.scatter(title + _measured_on(groups, "final_n_images"), clouds, axis, notes)
    return scatter.save(figure, clouds, axis, folder / "mi_diff_vs_gen_gap.png", dpi)


def _over_epochs(groups: Sequence[Group], folder: Path, units: Units, dpi: int) -> Path:
    def drawn(run: Result, key: str) -> Curve:
        return (run.epochs, units.of(run.history[key])) if key in run.history else ((), ())

    lines = {title: _lines(groups, partial(drawn, key=key)) for title, key in OVER_EPOCHS.items()}
    panels = [Panel(title, of_groups) for title, of_groups in lines.items() if of_groups]
    axis = Axis("epoch", f"mutual information ({units.name})", whole=True)
    title = f"Information during training{_measured_on(groups, 'history_n_images')}"
    figure = plots.picture(title, panels, axis)
    return plots.save(figure, panels, folder / "mi_over_epochs.png", dpi)


def _against_kept(groups: Sequence[Group], folder: Path, units: Units, dpi: int) -> list[Path]:
    lines = _lines(groups, lambda run: _kept(run, units))
    if not lines:
        say("mi_vs_kept_first_layer.png not drawn: no run records its masks")
        return []
    panels = [Panel("final measurement", lines)]
    axis = Axis(
        "fraction of first-layer elements kept (1: intact)",
        f"mutual information ({units.name})",
        xlim=(0, 1.02),
    )
    title = f"Information with first-layer elements removed at random{_measured_on(groups, 'final_n_images')}"
    figure = plots.picture(title, panels, axis)
    return [plots.save(figure, panels, folder / "mi_vs_kept_first_layer.png", dpi)]


def _kept(run: Result, units: Units) -> Curve:
    """Mean MI of the masks in each bin of the fraction kept, at the bin's middle, closed by the intact network at 1."""
    if run.masks is None:
        return (), ()
    bins = max(1, min(BINS, run.masks.mi_nats.size // MASKS_PER_BIN))
    of_mask = np.minimum((run.masks.kept_fraction * bins).astype(int), bins - 1)
    filled = [b for b in range(bins) if (of_mask == b).any()]
    means = [float(run.masks.mi_nats[of_mask == b].mean()) for b in filled]
    middles = [(b + 0.5) / bins for b in filled]
    return [*middles, 1.0], [units.of(mi) for mi in (*means, run.finals["final_mi_full"])]


def _lines(groups: Sequence[Group], curve: Callable[[Result], Curve]) -> tuple[Line, ...]:
    """One line per group that has data."""
    drawn = [
        plots.line(
            _name(group), {run.seed: curve(run) for run in group.runs}, colour=_colours(groups)[group.runs[0].arch],
            marker=plots.MARKERS[group.order % len(plots.MARKERS)], dash=DASHES[group.order % len(DASHES)],
        )
        for group in groups
    ]  # fmt: skip
    return tuple(one for one in drawn if one)


DASHES: tuple[plots.Dash, ...] = ("-", (0, (5, 1.6)), (0, (1, 1.4)))


def _colours(groups: Sequence[Group]) -> dict[str, str]:
    return palette.colours(list(dict.fromkeys(group.runs[0].arch for group in groups)))


def _name(group: Group) -> str:
    arch = group.runs[0].arch
    return f"{arch} ({group.variant})" if group.variant else arch


def _measured_on(groups: Sequence[Group], key: str) -> str:
    """The second line of a title: the data set and the images of the information, ``key`` says how many."""
    runs = [run for group in groups for run in group.runs]
    names = dict.fromkeys(data_name(run.settings["dataset"]) for run in runs if run.settings["dataset"])
    (n, split), *others = dict.fromkeys((run.finals.get(key), run.settings["mi_split"]) for run in runs)
    if others:
        images = ["information on unequal images"]
    else:  # the original scripts record neither
        images = [f"information on {n:,.0f} {split} images"] if n else []
    line = ", ".join([*names, *images])
    return f"\n{textwrap.fill(line, scatter.WRAP)}" if line else ""
