"""The runs of adaptive-noise, which of them may be averaged, which are compared, and how each arm looks in pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturblab.report.groups import Alike, alike
from perturblab.report.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, Colour, shade
from perturblab.report.plots import MARKERS, Dash
from perturblab.report.reading import Floats
from perturblab.report.statistics import Paired, paired
from perturblab.settings import is_where
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.training import Target

Bools = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

# What a run is called by; the other settings may tell runs of one name apart.
NAMED = {"classifier", "optimizer", "lr", "momentum", "noise_distribution", "seed"}
SETTINGS = tuple(
    name for name, info in Train.model_fields.items() if not is_where(info) and name not in NAMED
)
ARMS = ("baseline", "adaptive", "gradient", "weight", "input", "label")  # in the order of all pictures
TARGETS: tuple[Target, ...] = ("gradient", "weight", "input", "label")
# Flags that ask for gradient noise, and for weight noise.
OF_GRADIENT = ("grad_norm_plateau", "low_weight_update", "train_loss_stuck")
OF_VAL_LOSS = ("val_loss_plateau", "overfitting")
FLAGS = (*OF_GRADIENT, *OF_VAL_LOSS)

# What got noise has one colour in every picture, also as the arm that has nothing else.
OF_TARGET = {"gradient": VERMILION, "weight": BLUE, "input": GREEN, "label": PURPLE}
OF_ARM = {"baseline": BLACK, "adaptive gaussian": ORANGE, "adaptive uniform": SKY}
UNIFORM: Dash = (0, (4, 1.5))

NO_GRADIENT = "weight noise leaves no clean gradient"
RELATIVE = "σ / RMS: standard deviation of the noise in root mean squares of each tensor"


@dataclass(frozen=True)
class FlagHistory:
    """One flag: ``value``, ``threshold`` and ``fired`` (1 or 0), each ``[epochs]``; NaN where it was not measured."""

    value: Floats
    threshold: Floats
    fired: Floats


@dataclass(frozen=True)
class Run:
    """One run. ``history`` maps a key of the file to ``[epochs]``, NaN where not measured; accuracies are in percent
    and gaps in points there, in ``finals`` (``test_acc``, ``best_val_acc``, ``final_val_acc``, ``gap``, ``test_loss``)
    and in ``val_by_class [epochs classes]``. ``gap``: clean train minus validation accuracy after the last epoch.

    ``targets`` (what got noise), ``causes``, ``cooling`` and the flags stand under the epoch that they decided about;
    flags were measured on the epochs before it. ``path`` is the run's folder of metrics.
    """

    path: Path
    run_id: str
    baseline_id: str
    name: str
    classifier: str
    optimizer: str
    lr: float
    momentum: float
    noise: str
    seed: int
    settings: dict[str, Any]
    data_sha256: str
    classes: tuple[str, ...]
    best_epoch: int
    finals: dict[str, float]
    history: dict[str, Floats]
    val_by_class: Floats
    targets: tuple[str | None, ...]
    causes: tuple[str | None, ...]
    cooling: tuple[bool, ...]
    flags: dict[str, FlagHistory]

    @property
    def setting(self) -> str:
        """What a run shares with its baseline, in words."""
        momentum = f", m {self.momentum:g}" if self.optimizer == "SGD" else ""
        return f"{self.classifier}, {self.optimizer}, lr {self.lr:g}{momentum}"

    @property
    def arm(self) -> tuple[str, str]:
        return self.setting, self.noise

    @property
    def is_baseline(self) -> bool:
        return self.noise == "baseline"

    @property
    def epochs(self) -> Floats:
        return self.history["epoch"]

    @property
    def flagged(self) -> Bools:
        """``[epochs]``: whether any flag was raised."""
        return self.raised(FLAGS)

    def raised(self, names: Iterable[str]) -> Bools:
        """``[epochs]``: whether one of the flags of these names was raised."""
        found = np.zeros(self.epochs.size, dtype=bool)
        for name in names:
            found |= self.flags[name].fired == 1 if name in self.flags else False
        return found

    def noisy(self, target: str) -> int:
        """In how many epochs this target got noise."""
        return self.targets.count(target)


@dataclass(frozen=True)
class Group:
    """Runs that may be averaged. ``label`` names the arm, with what sets it apart from others of its name."""

    setting: str
    label: str
    order: int  # among the groups of this arm
    runs: tuple[Run, ...]

    @property
    def noise(self) -> str:
        return self.runs[0].noise

    @property
    def is_baseline(self) -> bool:
        return self.runs[0].is_baseline

    @property
    def look(self) -> dict[str, Any]:
        """Colour, dash and marker of its lines."""
        dash: Dash = UNIFORM if self.noise.endswith("uniform") else "-"
        return {"colour": colour_of(self.noise), "dash": dash, "marker": MARKERS[self.order % len(MARKERS)]}

    def finals(self, key: str) -> dict[int, float]:
        return {run.seed: run.finals[key] for run in self.runs}


def groups(runs: Iterable[Run]) -> list[Group]:
    """Runs of equal arm and settings, in the order of ``runs``."""
    return [_group(one) for one in alike(runs, SETTINGS)]


def _group(one: Alike[Run]) -> Group:
    setting, noise = one.runs[0].arm
    return Group(setting, f"{noise} ({one.variant})" if one.variant else noise, one.order, one.runs)


def by_setting(found: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each network, optimiser, learning rate and momentum."""
    settings = dict.fromkeys(group.setting for group in found)
    return {name: [group for group in found if group.setting == name] for name in settings}


def colour_of(noise: str) -> Colour:
    """Of an arm: its own, else that of its static noise; darker for uniform noise and where flags add to it."""
    if noise in OF_ARM:
        return OF_ARM[noise]
    arm, _, law = noise.partition(" ")
    darker = -0.3 * (law == "uniform") - 0.25 * arm.startswith("adaptive")
    return shade(OF_TARGET.get(arm.split("-")[-1], BLACK), darker)


def is_relative(run: Run) -> bool:
    """Whether it has sigmas that are multiples of each tensor's root mean square."""
    has_sigma = any(target not in (None, "label") for target in run.targets)
    return has_sigma and bool(run.settings["noise_scale"] == "relative")


def sigma_label(run: Run) -> str:
    """What a sigma of this run is: of label noise a probability."""
    if run.noise == "label":
        return "probability"
    return "σ / RMS" if run.settings["noise_scale"] == "relative" else "σ"


# ---- each run against its baseline ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """An arm with noise, and the runs without it that its runs name as their baselines: pairs (with, without).

    ``lacking``: seeds whose baseline is not among the runs. There may be no pair at all.
    """

    group: Group
    pairs: tuple[tuple[Run, Run], ...]
    lacking: tuple[int, ...]

    def of(self, key: str) -> Paired:
        """With minus without noise in the final number ``key``. ValueError if there is no pair."""
        return paired(
            {noisy.seed: noisy.finals[key] for noisy, _ in self.pairs},
            {noisy.seed: base.finals[key] for noisy, base in self.pairs},
        )

    def differences(self, key: str) -> Floats:
        """``[pairs]``, in the order of the pairs."""
        return np.array([noisy.finals[key] - base.finals[key] for noisy, base in self.pairs])


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """Every arm with noise, in the order of ``runs``. A baseline that saw other images is none."""
    baselines = {(run.run_id, run.data_sha256): run for run in runs if run.is_baseline}

    def baseline(run: Run) -> Run | None:
        return baselines.get((run.baseline_id, run.data_sha256))

    return [
        Comparison(
            group,
            tuple((r, one) for r in group.runs if (one := baseline(r))),
            tuple(r.seed for r in group.runs if not baseline(r)),
        )
        for group in groups(runs) if not group.is_baseline
    ]  # fmt: skip


def lacking_baselines(found: Sequence[Comparison]) -> list[str]:
    """A line for each arm that cannot be compared, or only in part."""
    return [
        f"{one.group.setting}, {one.group.label}: no baseline of seed{'s' * (len(one.lacking) > 1)} "
        f"{', '.join(map(str, one.lacking))} on the same images, so {'left out' if one.pairs else 'not compared'}; "
        "`perturblab adaptive-noise sweep` runs every arm with its baseline."
        for one in found if one.lacking
    ]  # fmt: skip
