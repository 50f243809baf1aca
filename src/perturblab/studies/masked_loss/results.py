"""Reading the documented result files ``{arch}_{mode}_seed{seed}[suffix].json``, also those of the original scripts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from perturblab.files import read_json
from perturblab.report.groups import alike, refuse_twins, warn_of_mixtures
from perturblab.report.reading import Floats, check_choice, natural, number, numbers, rising, value_of
from perturblab.studies.masked_loss import UNUSED, Mode, Train
from perturblab.studies.masked_loss.arms import SETTINGS, Result, Robustness
from perturblab.terminal import UserError

MODES = get_args(Mode)
NAME = re.compile(
    rf"(?P<arch>.+)_(?P<mode>{'|'.join(mode.replace('-', '[-_]') for mode in MODES)})_seed(?P<seed>\d+)(?P<suffix>\D.*)?\.json"
)
CURVES = (
    "epoch", "train_loss_full", "train_loss_masked", "train_loss_total", "train_acc", "test_acc", "gen_gap", "lambda",
)  # fmt: skip
NEWER_CURVES = ("clamp_active_fraction", "train_acc_clean", "train_acc_online")
FINALS = ("final_train_acc", "final_test_acc", "final_gen_gap")
MADE_BY = "masked-loss train"
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
    check_choice(
        files[0].path.parent, [f.path.name for f in wanted], [f"{f.arch} {f.mode}" for f in files], lacking
    )
    results = sorted((_read(f) for f in wanted), key=_order(architectures))
    refuse_twins(alike(results, SETTINGS))
    warn_of_mixtures(results, SETTINGS)
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


def _order(architectures: Sequence[str] | None) -> Any:
    def key(run: Result) -> tuple[Any, ...]:
        asked = list(architectures).index(run.arch) if architectures else 0
        return asked, natural(run.arch), MODES.index(run.mode), run.seed, run.path.name

    return key


def _read(file: File) -> Result:
    path, content = file.path, read_json(file.path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it does not hold an object")
    for key in ("arch", "mode", "seed"):
        recorded, named = value_of(path, content, key, MADE_BY), getattr(file, key)
        if str(recorded).replace("half_loss", "half-loss") != str(named):
            raise UserError(f"{path}: its name says {key} {named}, its key {key!r} says {recorded!r}")
    finals = {k: number(path, k, value_of(path, content, k, MADE_BY)) for k in FINALS}
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
    raw = value_of(path, content, "history", MADE_BY)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: history is damaged: it does not hold an object")
    newer = [k for k in NEWER_CURVES if k in raw]
    curves = {
        k: numbers(path, f"history.{k}", value_of(path, raw, k, MADE_BY, "history."))
        for k in (*CURVES, *newer)
    }
    epochs = rising(path, "history.epoch", raw["epoch"])
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
    kept = numbers(
        path, "robustness.kept_fraction", value_of(path, raw, "kept_fraction", MADE_BY, "robustness.")
    )
    per_mask = value_of(path, raw, "test_acc", MADE_BY, "robustness.")
    if not isinstance(per_mask, list) or len(per_mask) != kept.size or not all(per_mask):
        raise UserError(
            f"{path}: robustness.test_acc must hold accuracies for each of the {kept.size} kept_fraction"
        )
    means = [numbers(path, "robustness.test_acc", accuracies).mean() for accuracies in per_mask]
    intact = number(
        path, "robustness.test_acc_intact", value_of(path, raw, "test_acc_intact", MADE_BY, "robustness.")
    )
    return Robustness(kept, np.array(means, dtype=np.float64), intact)
