"""Reading the documented result files ``{arch}_{mode}_seed{seed}[suffix].json``, also those of the original scripts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from perturblab.files import read_json
from perturblab.studies.masked_loss import UNUSED, Mode, Train
from perturblab.studies.masked_loss.arms import SETTINGS, Floats, Result, Robustness, differing, groups, shown
from perturblab.terminal import UserError, warn

MODES = get_args(Mode)
NAME = re.compile(
    rf"(?P<arch>.+)_(?P<mode>{'|'.join(mode.replace('-', '[-_]') for mode in MODES)})_seed(?P<seed>\d+)(?P<suffix>\D.*)?\.json"
)
CURVES = (
    "epoch", "train_loss_full", "train_loss_masked", "train_loss_total", "train_acc", "test_acc", "gen_gap", "lambda",
)  # fmt: skip
NEWER_CURVES = ("clamp_active_fraction", "train_acc_clean", "train_acc_online")
FINALS = ("final_train_acc", "final_test_acc", "final_gen_gap")
MAKES_THEM = (
    "`perturblab masked-loss train --arch vgg11 --mode masked --seed 0` makes one, "
    "`perturblab masked-loss sweep` the document's 24"
)


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
    modes = [m.replace("_", "-") for m in modes or ()]
    files = _files(Path(results_dir))
    wanted = [
        f for f in files
        if (not architectures or f.arch in architectures) and (not modes or f.mode in modes) and (not seeds or f.seed in seeds)
    ]  # fmt: skip
    lacking = [str(a) for a in architectures or () if a not in {f.arch for f in files}]
    lacking += [m for m in modes if m not in {f.mode for f in files}]
    lacking += [f"seed {n}" for n in seeds or () if n not in {f.seed for f in files}]
    _mention(lacking, wanted, files)
    results = sorted((_read(f) for f in wanted), key=_order(architectures))
    _refuse_twins(results)
    _warn_of_mixtures(results)
    return results


@dataclass(frozen=True)
class File:
    """A result file and what its name says."""

    path: Path
    arch: str
    mode: str
    seed: int
    suffix: str | None


def _files(folder: Path) -> list[File]:
    """Files with documented names. UserError if there are none."""
    found = [(path, m) for path in sorted(folder.glob("*.json")) if (m := NAME.fullmatch(path.name))]
    if not found:
        raise UserError(f"no result files in {folder}: {MAKES_THEM}")
    return [File(p, m["arch"], m["mode"].replace("_", "-"), int(m["seed"]), m["suffix"]) for p, m in found]


def _mention(lacking: Sequence[str], wanted: Sequence[File], files: Sequence[File]) -> None:
    """UserError if nothing is left, a warning if a part of what was asked for is not there."""
    folder, what = files[0].path.parent, ", ".join(lacking) or "this selection"
    if not wanted:
        there = ", ".join(dict.fromkeys(f"{f.arch} {f.mode}" for f in files))
        raise UserError(f"no result files in {folder} for {what}; there are {there}")
    if lacking:
        warn(f"no results in {folder} for {what}")


def _order(architectures: Sequence[str] | None) -> Any:
    def key(run: Result) -> tuple[Any, ...]:
        asked = list(architectures).index(run.arch) if architectures else 0
        natural = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", run.arch)]
        return asked, natural, MODES.index(run.mode), run.seed, run.path.name

    return key


def _refuse_twins(results: Sequence[Result]) -> None:
    """One run under two names (``half-loss`` and ``half_loss``) would count as two."""
    for one in groups(results):
        seen: dict[int, Path] = {}
        for run in one.runs:
            if run.seed in seen:
                raise UserError(f"{run.path} and {seen[run.seed].name} are the same run; remove one of them")
            seen[run.seed] = run.path


def _warn_of_mixtures(results: Sequence[Result]) -> None:
    for arm in dict.fromkeys(run.arm for run in results):
        settings = [run.settings for run in results if run.arm == arm]
        apart = differing(settings)
        if "script" in apart:  # what the original scripts do not record is no further difference
            apart = [k for k in apart if all(s[k] is not None for s in settings)]
        if apart:
            values = "; ".join(
                f"{k}: {', '.join(dict.fromkeys(shown(s[k]) for s in settings))}" for k in apart
            )
            warn(f"{arm[0]} {arm[1]}: the runs differ in {values}; they are kept apart")


def _read(file: File) -> Result:
    path, content = file.path, read_json(file.path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it does not hold an object")
    for key in ("arch", "mode", "seed"):
        recorded, named = _get(path, content, key), getattr(file, key)
        if str(recorded).replace("half_loss", "half-loss") != str(named):
            raise UserError(f"{path}: its name says {key} {named}, its key {key!r} says {recorded!r}")
    finals = {k: _number(path, k, _get(path, content, k)) for k in FINALS}
    settings, history = _settings(content, file), _history(path, content)
    return Result(
        path, file.arch, file.mode, file.seed, settings, finals, history, _robustness(path, content)
    )


def _settings(content: dict[str, Any], file: File) -> dict[str, Any]:
    """Every name in SETTINGS: as recorded, or under the key ``settings``, which leaves out defaults, or None."""
    changed = content.get("settings")
    ours = "schema_version" in content
    defaults = {
        k: Train.default_of(k) for k in SETTINGS if ours and k in Train.model_fields and k != "augment"
    }
    recorded = {**defaults, **(changed if isinstance(changed, dict) else {}), **content}
    settings = {k: recorded.get(k) for k in SETTINGS if k not in UNUSED[file.mode]}
    script = "perturblab" if ours else "original"
    return {**dict.fromkeys(SETTINGS), **settings, "script": script, "suffix": file.suffix}


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
