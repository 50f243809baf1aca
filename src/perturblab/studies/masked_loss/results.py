"""Reading the documented result files ``{arch}_{mode}_seed{seed}[suffix].json``, also those of the original scripts.

Runs are averaged only with runs of equal settings: a folder that mixes them yields several groups.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturblab.files import read_json
from perturblab.terminal import UserError, warn

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

MODES = ("baseline", "masked", "half-loss")
NAME = re.compile(
    r"(?P<arch>.+)_(?P<mode>baseline|masked|half[-_]loss)_seed(?P<seed>\d+)(?P<suffix>\D.*)?\.json"
)
CURVES = (
    "epoch", "train_loss_full", "train_loss_masked", "train_loss_total", "train_acc", "test_acc", "gen_gap", "lambda",
)  # fmt: skip
NEWER_CURVES = ("clamp_active_fraction", "train_acc_clean", "train_acc_online")
FINALS = ("final_train_acc", "final_test_acc", "final_gen_gap")
# What a baseline and a masked run must share to be compared, and what else sets runs of one arm apart.
SHARED = (
    "script", "dataset", "normalize", "augment", "epochs", "batch_size", "lr", "momentum", "weight_decay",
    "width", "precision",
)  # fmt: skip
SETTINGS = (*SHARED, "n_masks", "lambda_max", "clamp", "site", "suffix")
MAKES_THEM = (
    "`perturblab masked-loss train --arch vgg11 --mode masked --seed 0` makes one, "
    "`perturblab masked-loss sweep` the document's 24"
)


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
    are in percent and percentage points. ``settings`` holds every name in SETTINGS, None where not recorded."""

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


def read_results(
    results_dir: str | Path,
    architectures: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Result]:
    """The runs found in ``results_dir``, in the order asked for (by default by architecture, mode, seed).

    Raises UserError when there are none, and, naming file and key, when one is damaged, lacks a documented key,
    has histories of unequal lengths, or says that it is another run than its name says. Warns in one line per
    arm that mixes settings, and in one line if something asked for is not there.
    """
    folder = Path(results_dir)
    modes = [m.replace("_", "-") for m in modes] if modes else None
    found = [(path, m) for path in sorted(folder.glob("*.json")) if (m := NAME.fullmatch(path.name))]
    if not found:
        raise UserError(f"no result files in {folder}: {MAKES_THEM}")
    named = [(path, m["arch"], m["mode"].replace("_", "-"), int(m["seed"]), m["suffix"]) for path, m in found]
    wanted = [
        n for n in named
        if (not architectures or n[1] in architectures) and (not modes or n[2] in modes) and (not seeds or n[3] in seeds)
    ]  # fmt: skip
    _mention_missing(folder, named, wanted, (architectures, modes, seeds))
    results = sorted((_read(*n) for n in wanted), key=_order(architectures))
    for one in groups(results):
        _refuse_twins(one)
    _warn_of_mixtures(results)
    return results


def groups(results: Iterable[Result]) -> list[Group]:
    """Runs of equal arm and settings, in the order of ``results``."""
    sets: list[list[Result]] = []
    for run in results:
        home = next((s for s in sets if s[0].arm == run.arm and s[0].settings == run.settings), None)
        if home is None:
            sets.append([run])
        else:
            home.append(run)
    made = []
    for runs in sets:
        siblings = [s for s in sets if s[0].arm == runs[0].arm]
        variant = _variant(runs[0].settings, [s[0].settings for s in siblings])
        made.append(Group(*runs[0].arm, variant, siblings.index(runs), tuple(runs)))
    return made


def differing(settings: Sequence[dict[str, Any]], keys: Sequence[str] = SETTINGS) -> list[str]:
    """Which of ``keys`` are not equal in all of ``settings``. The suffix counts only if nothing else explains it."""
    apart = [k for k in keys if any(s[k] != settings[0][k] for s in settings)]
    return [k for k in apart if k != "suffix"] or apart


def _variant(own: dict[str, Any], siblings: Sequence[dict[str, Any]]) -> str:
    """What must be said to tell ``own`` from its siblings; runs of the original scripts are told by that alone."""
    alike = [s for s in siblings if s["script"] == own["script"]]
    parts = ["original script"] if len(alike) < len(siblings) and own["script"] == "original" else []
    parts += [f"{k}={own[k]}" for k in differing(alike) if own[k] is not None]
    return ", ".join(parts)


def _order(architectures: Sequence[str] | None) -> Any:
    def key(run: Result) -> tuple[Any, ...]:
        asked = list(architectures).index(run.arch) if architectures else 0
        natural = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", run.arch)]
        return asked, natural, MODES.index(run.mode), run.seed, run.path.name

    return key


def _mention_missing(folder: Path, named: Sequence[Any], wanted: Sequence[Any], asked: Sequence[Any]) -> None:
    """UserError if nothing is left, a warning if a part of what was asked for is not there."""
    lacking = []
    for column, values in enumerate(asked, start=1):
        known = {n[column] for n in named}
        lacking += [f"seed {v}" if column == 3 else str(v) for v in values or () if v not in known]
    if not wanted:
        there = ", ".join(sorted({f"{n[1]} {n[2]}" for n in named}))
        raise UserError(
            f"no result files in {folder} for {', '.join(lacking) or 'this selection'}; there are {there}"
        )
    if lacking:
        warn(f"no results in {folder} for {', '.join(lacking)}")


def _refuse_twins(group: Group) -> None:
    seen: dict[int, Path] = {}
    for run in group.runs:
        if run.seed in seen:
            raise UserError(f"{run.path} and {seen[run.seed].name} are the same run; remove one of them")
        seen[run.seed] = run.path


def _warn_of_mixtures(results: Sequence[Result]) -> None:
    for arm in dict.fromkeys(run.arm for run in results):
        settings = [run.settings for run in results if run.arm == arm]
        apart = differing(settings)
        if (
            "script" in apart
        ):  # the original scripts record less: what they leave out is no further difference
            apart = [k for k in apart if all(s[k] is not None for s in settings)]
        if apart:
            values = "; ".join(f"{k}: {', '.join(dict.fromkeys(str(s[k]) for s in settings))}" for k in apart)
            warn(f"{arm[0]} {arm[1]}: the runs differ in {values}; they are kept apart")


def _read(path: Path, arch: str, mode: str, seed: int, suffix: str | None) -> Result:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it does not hold an object")
    for key, value in (("arch", arch), ("mode", mode), ("seed", seed)):
        recorded = _get(path, content, key)
        if (recorded.replace("_", "-") if key == "mode" and isinstance(recorded, str) else recorded) != value:
            raise UserError(f"{path}: its name says {key} {value}, its key {key!r} says {recorded!r}")
    settings = {k: content.get(k) for k in SETTINGS}
    settings["script"] = "perturblab" if "schema_version" in content else "original"
    settings["suffix"] = suffix
    finals = {k: _number(path, k, _get(path, content, k)) for k in FINALS}
    return Result(
        path, arch, mode, seed, settings, finals, _history(path, content), _robustness(path, content)
    )


def _history(path: Path, content: dict[str, Any]) -> dict[str, Floats]:
    """Every documented curve, and the newer ones where they are recorded."""
    raw = _get(path, content, "history")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: history is damaged: it does not hold an object")
    newer = [k for k in NEWER_CURVES if k in raw]
    curves = {k: _numbers(path, f"history.{k}", _get(path, raw, k, "history.")) for k in (*CURVES, *newer)}
    epochs = curves["epoch"]
    if not epochs.size or not np.isfinite(epochs).all() or (np.diff(epochs) <= 0).any():
        raise UserError(f"{path}: history.epoch must hold one or more rising numbers")
    for key, values in curves.items():
        if values.shape != epochs.shape:
            raise UserError(
                f"{path}: history.{key} has {values.size} values, history.epoch has {epochs.size}"
            )
    return curves


def _robustness(path: Path, content: dict[str, Any]) -> Robustness | None:
    raw = content.get("robustness")
    if raw is None:
        return None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: robustness is damaged: it does not hold an object")
    kept = _numbers(path, "robustness.kept_fraction", _get(path, raw, "kept_fraction", "robustness."))
    per_mask = _get(path, raw, "test_acc", "robustness.")
    if not isinstance(per_mask, list) or len(per_mask) != kept.size or not all(per_mask):
        raise UserError(
            f"{path}: robustness.test_acc must hold accuracies for each of the {kept.size} kept_fraction"
        )
    means = [_numbers(path, "robustness.test_acc", accuracies).mean() for accuracies in per_mask]
    intact = _number(path, "robustness.test_acc_intact", _get(path, raw, "test_acc_intact", "robustness."))
    return Robustness(kept, np.array(means, dtype=np.float64), intact)


def _get(path: Path, content: dict[str, Any], key: str, under: str = "") -> Any:
    if key not in content:
        raise UserError(f"{path}: the key {under}{key} is missing; was the file made by masked-loss train?")
    return content[key]


def _numbers(path: Path, key: str, values: Any) -> Floats:
    if not isinstance(values, list):
        raise UserError(f"{path}: {key} must be a list of numbers, not {values!r:.40}")
    given = [math.nan if v is None else v for v in values]
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: {key} must hold numbers or null, not {value!r:.40}")
    array = np.array(given, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)  # a diverged loss: no point in the picture


def _number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: {key} must be a finite number, not {value!r:.40}")
    return float(value)
