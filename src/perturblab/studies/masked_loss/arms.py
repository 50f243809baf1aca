"""The runs of masked-loss as results, and which of them may be averaged or compared.

Runs are averaged only with runs of equal settings: a folder that mixes them yields several groups per arm.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturblab.report.groups import alike
from perturblab.report.reading import Floats

# What a baseline and a masked run must share to be compared, and what else sets runs of one arm apart.
SHARED = (
    "script", "dataset", "normalize", "augment", "epochs", "batch_size", "lr", "momentum", "weight_decay",
    "width", "precision",
)  # fmt: skip
SETTINGS = (*SHARED, "n_masks", "lambda_max", "clamp", "site", "suffix")


@dataclass(frozen=True)
class Robustness:
    """Accuracy on test with a random share of the hidden units kept.

    ``kept_fraction [f]`` in (0, 1]; ``test_acc [f]`` percent, mean over masks; ``intact`` percent, all units kept.
    """

    kept_fraction: Floats
    test_acc: Floats
    intact: float


@dataclass(frozen=True)
class Result:
    """One run. ``history`` maps a documented key to ``[epochs]``, NaN where not measured; accuracies and gaps
    are in percent and percentage points. ``settings`` holds every name in SETTINGS, None where not recorded or without effect."""

    path: Path
    arch: str
    mode: str
    seed: int
    settings: dict[str, Any]
    finals: dict[str, float]
    history: dict[str, Floats]
    robustness: Robustness | None

    @property
    def arm(self) -> tuple[str, str]:
        return self.arch, self.mode


@dataclass(frozen=True)
class Group:
    """Runs of one architecture, mode and settings, by seed. ``variant`` says what sets it apart, often nothing."""

    arch: str
    mode: str
    variant: str
    order: int  # among the groups of this arm
    runs: tuple[Result, ...]

    @property
    def arm_label(self) -> str:
        return f"{self.mode} ({self.variant})" if self.variant else self.mode

    @property
    def label(self) -> str:
        return f"{self.arch} {self.arm_label}"

    def finals(self, key: str) -> dict[int, float]:
        return {run.seed: run.finals[key] for run in self.runs}


def groups(results: Iterable[Result]) -> list[Group]:
    """Runs of equal arm and settings, in the order of ``results``."""
    return [Group(*one.runs[0].arm, one.variant, one.order, one.runs) for one in alike(results, SETTINGS)]
