"""The pictures of adaptive-noise, drawn from its exported metrics; also its tables and its verdict."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from perturblab.report import plots
from perturblab.report.groups import warn_of_mixtures
from perturblab.report.plots import Curve, Line, Panel
from perturblab.report.reading import Floats
from perturblab.report.tables import show
from perturblab.studies.adaptive_noise import Visualize
from perturblab.studies.adaptive_noise.arms import (
    FLAGS,
    NO_GRADIENT,
    OF_GRADIENT,
    OF_TARGET,
    OF_VAL_LOSS,
    RELATIVE,
    SETTINGS,
    TARGETS,
    Group,
    Run,
    by_setting,
    comparisons,
    groups,
    is_relative,
    sigma_label,
)
from perturblab.studies.adaptive_noise.comparison import draw_comparison
from perturblab.studies.adaptive_noise.grid import Part, picture
from perturblab.studies.adaptive_noise.reading import read_runs
from perturblab.studies.adaptive_noise.summary import summary, verdict
from perturblab.studies.adaptive_noise.timeline import draw_timeline, most_eventful
from perturblab.terminal import say

__all__ = ["compare_runs", "draw", "draw_runs", "read_runs", "summary", "verdict", "visualize"]

NOTE_WRAP = 130  # letters per line of a note
MARKERS = {"gradient": "o", "weight": "s", "input": "^", "label": "D"}


@dataclass(frozen=True)
class Drawing:
    """A picture before it is drawn; ``lacking`` says why there is none if it has no parts."""

    name: str
    title: str
    parts: Sequence[Part]
    notes: tuple[str, ...] = ()
    lacking: str = "no run records it"
    share: bool = False
    height: float = 2.25  # of a panel, in inches


def visualize(settings: Visualize) -> None:
    """The command: draw the pictures, print tables and verdict. Raises UserError as ``read_runs`` does."""
    runs = read_runs(settings.checkpoint_dir, settings.classifiers, settings.seeds)
    for path in draw_runs(runs, settings.plots_dir):
        say(str(path))
    _tell(runs)


def compare_runs(checkpoint_dir: Path, plots_dir: Path, run_ids: Collection[str]) -> None:
    """What a sweep ends with: the comparison of these runs, their tables and verdict.

    Raises UserError as ``read_runs`` does.
    """
    runs = read_runs(checkpoint_dir, run_ids=run_ids)
    if path := _comparison(runs, plots_dir, 300):
        say(str(path))
    _tell(runs)
    say(
        f"\nall pictures: perturblab adaptive-noise visualize --checkpoint-dir {checkpoint_dir} --plots-dir {plots_dir}"
    )


def draw(
    checkpoint_dir: str | Path, plots_dir: str | Path, classifiers: Sequence[str] = (), seeds: Sequence[int] = (), dpi: int = 300,
) -> list[Path]:  # fmt: skip
    """Draw what the metrics allow into ``plots_dir``; returns the PNG files, each with a CSV of equal stem.

    A picture without data is not drawn; one line says why. Raises UserError as ``read_runs`` does.
    """
    return draw_runs(read_runs(checkpoint_dir, classifiers, seeds), plots_dir, dpi)


def draw_runs(runs: Sequence[Run], plots_dir: str | Path, dpi: int = 300) -> list[Path]:
    """``draw`` for runs that were read before."""
    warn_of_mixtures(runs, SETTINGS)
    folder, written = Path(plots_dir), []
    for d in reference_set(groups(runs)):
        if d.parts:
            figure = picture(d.title, d.parts, share=d.share, notes=d.notes, height=d.height)
            written.append(plots.save(figure, [part.behind for part in d.parts], folder / d.name, dpi))
        else:
            say(f"{d.name} not drawn: {d.lacking}")
    comparison = _comparison(runs, folder, dpi)
    return [*written, *_timelines(runs, folder, dpi), *([comparison] if comparison else [])]


def _timelines(runs: Sequence[Run], folder: Path, dpi: int) -> list[Path]:
    """``noise_timeline.png`` of the run with most events, and where several have noise one under the name of each."""
    noisy = [run for run in runs if any(run.targets)]
    if not noisy:
        say("noise_timeline.png not drawn: no run has noise")
        return []
    written = [draw_timeline(most_eventful(noisy), folder / "noise_timeline.png", dpi)]
    names = Counter(run.name for run in noisy)
    for run in noisy if len(noisy) > 1 else ():
        name = run.name if names[run.name] == 1 else f"{run.name}_{run.run_id}"
        written.append(draw_timeline(run, folder / f"noise_timeline_{name}.png", dpi))
    return written


def _comparison(runs: Sequence[Run], folder: Path, dpi: int) -> Path | None:
    found = comparisons(runs)
    if any(one.pairs for one in found):
        return draw_comparison(found, folder / "noise_vs_baseline.png", dpi)
    say(
        f"noise_vs_baseline.png not drawn: {'no run has its baseline here' if found else 'no run with noise'}"
    )
    return None


def _tell(runs: Sequence[Run]) -> None:
    for table in summary(runs):
        show(table)
    say("\n" + verdict(runs))


# ---- the reference set (adaptive-noise.md 5.8) ----------------------------------------------------------------------


@dataclass(frozen=True)
class Quantity:
    """A curve of a run; ``flags`` are those that are marked, all by default."""

    y: str
    of: Callable[[Run], Floats]
    log: bool = False
    flags: tuple[str, ...] = FLAGS


def recorded(y: str, key: str, log: bool = False, flags: tuple[str, ...] = FLAGS) -> Quantity:
    """What the run's file has under ``key``."""
    return Quantity(y, lambda run: run.history.get(key, np.full(run.epochs.shape, np.nan)), log, flags)


LOSS = (recorded("train loss (nats)", "train_loss"), recorded("validation loss (nats)", "val_loss"))
ACCURACY = (
    recorded("train accuracy (%), clean", "train_acc_clean"),
    recorded("validation accuracy (%)", "val_acc"),
)
FIGURE_1 = (
    recorded("gradient norm", "grad_norm", log=True, flags=OF_GRADIENT),
    recorded("validation loss (nats)", "val_loss", flags=OF_VAL_LOSS),
)
CLASSES = (
    Quantity("best class (% correct)", lambda run: np.fmax.reduce(run.val_by_class, axis=1)),
    Quantity("worst class (% correct)", lambda run: np.fmin.reduce(run.val_by_class, axis=1)),
)
STATE = (
    recorded("momentum", "momentum_norm"),
    recorded("first moment", "exp_avg_norm"),
    recorded("second moment", "exp_avg_sq_norm", log=True),
    recorded("lr / (√v + ε)", "effective_lr", log=True),
)


def reference_set(found: Sequence[Group]) -> list[Drawing]:
    gradient = recorded("mean norm", "grad_norm", log=True)
    update = recorded("length of the update", "update_norm", log=True)
    runs = [run for group in found for run in group.runs]
    gaps = (f"gaps: {NO_GRADIENT}",) if any(run.noisy("weight") for run in runs) else ()
    scale = (RELATIVE,) if any(is_relative(run) for run in runs) else ()
    return [
        Drawing("loss.png", "Loss", _parts(found, LOSS), share=True),
        Drawing("accuracy.png", "Accuracy", _parts(found, ACCURACY), share=True),
        Drawing("learning_rate.png", "Learning rate of each epoch's last step", _parts(found, [recorded("learning rate", "lr")])),
        Drawing("grad_norm.png", "Gradient norm, without noise", _parts(found, [gradient]), gaps, NO_GRADIENT),
        Drawing("weight_update_norm.png", "Weight update of each epoch, without noise", _parts(found, [update])),
        Drawing("noise_magnitude.png", "Noise", _noise(found), scale, "no run has noise", height=1.5),
        Drawing(
            "optimizer_state.png", "State of the optimiser: mean norms of tensors, Adam's mean step size", _parts(found, STATE),
            lacking="SGD without momentum has none",
        ),
        Drawing("grad_norm_and_val_loss.png", "Gradient norm and validation loss, each with its own flags", _parts(found, FIGURE_1), gaps),
        Drawing("class_accuracy.png", "Best and worst class of the validation images in each epoch", _parts(found, CLASSES), _extremes(runs), share=True),
    ]  # fmt: skip


def _parts(found: Sequence[Group], quantities: Sequence[Quantity]) -> list[Part]:
    """A panel per setting and quantity, a line per arm that has data."""
    parts = []
    for setting, own in by_setting(found).items():
        for quantity in quantities:
            drawn = [
                plots.line(g.label, {r.seed: (r.epochs, quantity.of(r)) for r in g.runs}, **g.look)
                for g in own
            ]
            if lines := _once(tuple(one for one in drawn if one)):
                strips = _strips(own, quantity.flags)
                parts.append(Part(Panel(setting, lines), quantity.y, strips, quantity.log))
    return parts


def _once(lines: tuple[Line, ...]) -> tuple[Line, ...]:
    """Curves that are one and the same in every arm, such as learning rates, as one line."""
    if len(lines) < 2 or any(one.seeds != lines[0].seeds for one in lines):
        return lines
    if not all(np.array_equal(one.y, lines[0].y, equal_nan=True) for one in lines):
        return lines
    return (Line("every arm", lines[0].x, lines[0].y, lines[0].seeds),)


def _extremes(runs: Sequence[Run]) -> tuple[str, ...]:
    """Which classes are best and worst in the end, in most runs of each network."""
    told = []
    for network in dict.fromkeys(run.classifier for run in runs):
        last = [(run.classes, run.val_by_class[-1]) for run in runs if run.classifier == network]
        known = [(names, accuracy) for names, accuracy in last if np.isfinite(accuracy).any()]
        if known:
            best, worst = (
                Counter(names[int(of(accuracy))] for names, accuracy in known).most_common(1)[0][0]
                for of in (np.nanargmax, np.nanargmin)
            )
            told.append(f"{network} {best} and {worst}")
    return (
        tuple(
            textwrap.wrap(f"best and worst after the last epoch, in most runs: {'; '.join(told)}", NOTE_WRAP)
        )
        if told
        else ()
    )


def _strips(own: Sequence[Group], names: tuple[str, ...] = FLAGS) -> tuple[Line, ...]:
    """When flags of these names were raised, for each arm that looks at flags."""
    drawn = [
        plots.line(f"flags of {g.label}", {r.seed: (r.epochs, r.raised(names).astype(float)) for r in g.runs}, colour=g.look["colour"])
        for g in own if any(r.flags for r in g.runs)
    ]  # fmt: skip
    return tuple(one for one in drawn if one)


def _noise(found: Sequence[Group]) -> list[Part]:
    """A panel per arm that has noise."""
    parts = []
    for group in found:
        drawn = [
            plots.line(
                f"{target} noise", {r.seed: _sigma(r, target) for r in group.runs}, colour=OF_TARGET[target],
                marker=MARKERS[target],
            )
            for target in TARGETS
        ]  # fmt: skip
        if lines := tuple(one for one in drawn if one):
            panel = Panel(f"{group.setting}: {group.label}", lines)
            parts.append(Part(panel, sigma_label(group.runs[0]), _strips([group]), dots=True))
    return parts


def _sigma(run: Run, target: str) -> Curve:
    here = np.array([t == target for t in run.targets])
    return run.epochs, np.where(here, run.history["noise_sigma"], np.nan)
