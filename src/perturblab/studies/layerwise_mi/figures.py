"""The pictures of layerwise-mi, drawn from its documented result files, and the summary table."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from perturblab.report import palette, plots
from perturblab.report.plots import Axis, Curve, Dash, Floats, Line, Panel
from perturblab.report.tables import Cell, Table, show, write_csv
from perturblab.studies.layerwise_mi import Visualize
from perturblab.studies.layerwise_mi.reading import Group, Layer, Result, groups, notes, read_results
from perturblab.terminal import say

BINS = 10  # of the fraction kept
DEPTHS = (0.0, 0.88)  # of the colour map: from the first layer to the last, without its palest end
MARKERS = ("o", "^", "s", "D")  # neighbours in depth differ in more than a shade,
DASHES: tuple[Dash, ...] = ("-", (0, (4, 1.2)))  # where markers are small too
SUBSETS = "light band: ± 1 std over subsets (ddof 0)"
SEEDS = "; dark band: ± 1 std over seeds (ddof 0); thin: each seed"
TENTHS = "point: mean over the subsets in a tenth of the kept fraction, few in some (CSV: subsets); 1: intact"
NOTE_WRAP = 16  # letters of a footnote per inch
WRAP = 66  # letters of a title in one row
DEPTH = "convolution (1: next to the image)"


def visualize(settings: Visualize) -> None:
    """The command: draw the pictures and print the table. Raises UserError as ``read_results`` does."""
    results = read_results(settings)
    for path in draw_results(results, settings):
        say(str(path))
    show(summary(results, settings.checkpoint))


def draw_results(results: Sequence[Result], settings: Visualize, dpi: int = 300) -> list[Path]:
    """Draw what the results allow; returns the PNG files, each with a CSV of equal stem."""
    found, folder = groups(results), Path(settings.plots_dir)
    title = f"Random channels removed, {settings.checkpoint} checkpoints{selected(results)}"
    title = textwrap.fill(title, WRAP, break_long_words=False)
    return [
        _progression(found, title, notes(results), folder / "mi_progression.png", dpi),
        *_against_kept(found, title, notes(results), folder / "mi_vs_kept.png", dpi),
    ]


def selected(results: Sequence[Result]) -> str:
    """The mark of checkpoints that were chosen with the images that they are judged by."""
    marked = [r.settings["selected_on"] == "test" and r.settings["mi_split"] == "test" for r in results]
    return "" if not any(marked) else " (selected on test)" if all(marked) else " (some selected on test)"


def footnote(figure: Figure, lines: Sequence[str]) -> None:
    """Small lines below the picture, which grows by their height."""
    wrap = int(NOTE_WRAP * figure.get_figwidth())
    rows = [row for line in lines for row in textwrap.wrap(line, wrap)]
    figure.set_figheight(figure.get_figheight() + 0.14 * len(rows))
    figure.supxlabel("\n".join(rows), fontsize=8, color="0.35")


def several(found: Sequence[Group]) -> bool:
    """Whether there is anything over seeds to be drawn."""
    return any(len(group.runs) > 1 for group in found)


# ---- against depth ---------------------------------------------------------------------------------------------------


def _progression(found: Sequence[Group], title: str, about: Sequence[str], path: Path, dpi: int) -> Path:
    """All architectures by what they lose; each on its own by what is left, for bands over subsets overlap."""
    lost = _lines(found, lambda run: (_depths(run), [run.baseline - layer.mean for layer in run.layers]))
    left = [_left(group, found) for group in found]
    panels = [*([Panel("information lost", lost)] if lost else []), *left]
    axis = Axis(DEPTH, "mutual information (nats)", ylim=_limits(found), whole=True)
    figure = plots.picture(title, panels, axis)
    for axes, panel, group in zip(figure.axes[len(panels) - len(left) :], left, found, strict=False):
        (line,) = panel.lines
        std = np.array([[layer.std for layer in run.layers] for run in group.runs]).mean(axis=0)
        low, high = line.mean - std, line.mean + std
        axes.fill_between(line.x, low, high, color=line.colour, alpha=0.08, linewidth=0, zorder=0)
    footnote(figure, [SUBSETS + (SEEDS if several(found) else ""), *about])
    plots.write_png(figure, path, dpi)
    write_csv(path.with_suffix(".csv"), *_by_layer(found))
    return path


def _left(group: Group, found: Sequence[Group]) -> Panel:
    lines = _lines([group], lambda run: (_depths(run), [layer.mean for layer in run.layers]), found)
    intact = float(np.mean([run.baseline for run in group.runs]))
    levels = (("intact", intact),) if np.isfinite(intact) else ()
    return Panel("information left", lines, levels)


def _limits(found: Sequence[Group]) -> tuple[float, float]:
    """0 and all that is drawn, to the edges of the bands."""
    runs = [run for group in found for run in group.runs]
    left = [layer.mean + sign * layer.std for run in runs for layer in run.layers for sign in (-1, 1)]
    lost = [run.baseline - layer.mean for run in runs for layer in run.layers]
    ends = np.array([0.0, 1e-9, *left, *lost, *(run.baseline for run in runs)])
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    return low - 0.03 * (high - low), high + 0.08 * (high - low)


def _by_layer(found: Sequence[Group]) -> tuple[list[str], list[list[Cell]]]:
    """A row per layer of each network."""
    columns = [
        "model",
        "variant",
        "seed",
        "layer_idx",
        "layer_name",
        "n_channels",
        "mean_mi_nats",
        "std_mi_nats",
    ]
    rows: list[list[Cell]] = []
    for group in found:
        for run in group.runs:
            about: list[Cell] = [run.model, group.variant, run.seed]
            for one in run.layers:
                lost = None if np.isnan(run.baseline) else run.baseline - one.mean
                rows.append([*about, one.index, one.name, one.channels, one.mean, one.std, lost])
    return [*columns, "lost_mi_nats"], rows


def _depths(run: Result) -> list[float]:
    return [layer.index + 1 for layer in run.layers]


def _lines(
    drawn: Sequence[Group], curve: Callable[[Result], Curve], found: Sequence[Group] = ()
) -> tuple[Line, ...]:
    """One line per group that has data, in the colours of all that were ``found``."""
    colours = palette.colours(list(dict.fromkeys(group.runs[0].model for group in found or drawn)))
    lines = [
        plots.line(
            _name(group), {run.seed: curve(run) for run in group.runs}, colour=colours[group.runs[0].model],
            marker=plots.MARKERS[group.order % len(plots.MARKERS)],
        )
        for group in drawn
    ]  # fmt: skip
    return tuple(line for line in lines if line)


def _name(group: Group) -> str:
    model = group.runs[0].model
    return f"{model} ({group.variant})" if group.variant else model


# ---- against the fraction kept -----------------------------------------------------------------------------------------


def _against_kept(
    found: Sequence[Group], title: str, about: Sequence[str], path: Path, dpi: int
) -> list[Path]:
    panels = [
        Panel(f"{_name(group)} by convolution", lines) for group in found if (lines := _of_layers(group))
    ]
    if not panels:
        say(f"{path.name} not drawn: no result records its subsets")
        return []
    axis = Axis("fraction of channels kept (1: intact)", "information left (nats)", xlim=(-0.02, 1.02))
    figure = plots.picture(title, panels, axis)
    footnote(figure, [TENTHS, *([plots.BAND_NOTE] if several(found) else []), *about])
    plots.write_png(figure, path, dpi)
    write_csv(path.with_suffix(".csv"), *_by_tenth(panels, found))
    return [path]


def _by_tenth(panels: Sequence[Panel], found: Sequence[Group]) -> tuple[list[str], list[list[Cell]]]:
    """The points, and how many subsets each is a mean of: over all seeds, empty for the intact network."""
    counts = {
        (f"{_name(group)} by convolution", str(layer.index + 1)): Counter(
            float(x) for run in group.runs for x in _tenths(run.layers[place])
        )
        for group in found
        for place, layer in enumerate(group.runs[0].layers)
    }
    columns, rows = plots.data_behind(panels)
    counted: list[list[Cell]] = [
        [panel, f"conv{line}", x, counts[str(panel), str(line)].get(float(x or 0)), *more]
        for panel, line, x, *more in rows
    ]
    return [*columns[:3], "subsets", *columns[3:]], counted


def _of_layers(group: Group) -> tuple[Line, ...]:
    """A line per layer, from dark (next to the image) to light."""
    last = max(len(group.runs[0].layers) - 1, 1)
    shades = [colormaps["plasma"](DEPTHS[0] + (DEPTHS[1] - DEPTHS[0]) * i / last) for i in range(last + 1)]
    drawn = [
        plots.line(
            str(layer.index + 1),
            {run.seed: _kept(run, run.layers[place]) for run in group.runs},
            colour=to_hex(shades[place]),
            marker=MARKERS[layer.index % len(MARKERS)],
            dash=DASHES[layer.index % len(DASHES)],
        )
        for place, layer in enumerate(group.runs[0].layers)
    ]
    return tuple(one for one in drawn if one)


def _kept(run: Result, layer: Layer) -> Curve:
    """Mean information of the subsets in each tenth of the fraction kept, closed by the intact network at 1."""
    if not layer.mi.size:
        return (), ()
    tenths = _tenths(layer)
    x = np.unique(tenths).tolist()
    y = [float(layer.mi[tenths == middle].mean()) for middle in x]
    return ([*x, 1.0], [*y, run.baseline]) if np.isfinite(run.baseline) else (x, y)


def _tenths(layer: Layer) -> Floats:
    """The middle of the tenth of the kept fraction that each subset is in: ``[subsets]``."""
    return (np.minimum((layer.kept * BINS).astype(int), BINS - 1) + 0.5) / BINS


# ---- in numbers --------------------------------------------------------------------------------------------------------


def summary(results: Sequence[Result], checkpoint: str) -> Table:
    """What each architecture keeps and loses, mean and population std over seeds, and where it loses most and least."""
    columns = ("Architecture", "Intact", "Left", "Lost", "Most lost", "Least lost", "n")
    lines = [
        "Information in nats. Left: mean over random channel subsets of one convolution, then over all; lost: intact "
        "minus left; most and least lost: at which convolution, conv1 next to the image.",
        *notes(results),
    ]
    found = groups(results)
    if several(found):
        lines.append("±: population standard deviation over n seeds (ddof 0).")
    if mark := selected(results):
        lines.append(f"Checkpoints{mark}: the best of their run on the images that are evaluated here.")
    rows = tuple(_row(group) for group in found)
    return Table(f"INFORMATION LEFT AND LOST, {checkpoint} checkpoints", columns, rows, tuple(lines))


def _row(group: Group) -> tuple[str, ...]:
    intact = np.array([run.baseline for run in group.runs])
    left = np.array([[layer.mean for layer in run.layers] for run in group.runs])
    lost = intact[:, None] - left
    places = (lost.mean(axis=0).argmax(), lost.mean(axis=0).argmin())
    ends = [f"{lost.mean(axis=0)[i]:.3f} at conv{group.runs[0].layers[i].index + 1}" for i in places]
    n = "1 (single seed)" if len(group.runs) == 1 else str(len(group.runs))
    numbers = [_mean_and_std(values) for values in (intact, left.mean(axis=1), lost.mean(axis=1))]
    return (_name(group), *numbers, *(ends if np.isfinite(lost).all() else "--"), n)


def _mean_and_std(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "-"
    return f"{values[0]:.3f}" if len(values) == 1 else f"{values.mean():.3f} ± {values.std():.3f}"
