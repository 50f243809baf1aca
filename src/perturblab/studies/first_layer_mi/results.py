"""Reading the documented result files ``{arch}_seed{seed}[_suffix]_results.npz`` or ``.json``, also the original scripts'."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturblab.files import read_json
from perturblab.report.groups import alike, refuse_twins, warn_of_mixtures
from perturblab.report.reading import Floats, check_choice, natural, number, numbers, rising, value_of
from perturblab.studies.first_layer_mi import RECORDED
from perturblab.terminal import UserError, say

NAME = re.compile(r"(?P<arch>.+?)_seed(?P<seed>\d+)(?P<suffix>_.*)?_results\.(?:npz|json)")
SETTINGS = ("script", "optimizer", *RECORDED, "suffix")
FINALS = (
    "final_mi_full",
    "final_mean_mi_masked",
    "final_mi_diff",
    "final_train_acc_clean",
    "final_test_acc",
    "final_gen_gap",
)
NEWER_FINALS = (
    "final_mi_full_mm_nats", "final_mean_mi_masked_mm_nats", "final_mi_diff_mm_nats", "final_mi_full_null_nats",
    "final_mean_mi_masked_null_nats", "final_n_images", "history_n_images", "classes",
)  # fmt: skip
CURVES = ("mi_history", "gen_gap_history", "train_acc_clean_history", "test_acc_history")
NEWER_CURVES = ("mi_full_history_nats", "mi_masked_history_nats", "mi_full_history_null_nats")
MADE_BY = "first-layer-mi train"


@dataclass(frozen=True)
class Masks:
    """The final measurement: ``kept_fraction [m]`` of the first layer's elements and ``mi_nats [m]``."""

    kept_fraction: Floats
    mi_nats: Floats


@dataclass(frozen=True)
class Result:
    """One run. ``finals`` and ``history`` go by the keys of the file: information in nats, accuracies in percent;
    histories ``[measurements]`` at ``epochs``. ``settings`` holds every name in SETTINGS, None where not recorded."""

    path: Path
    arch: str
    seed: int
    settings: dict[str, Any]
    finals: dict[str, float]
    epochs: Floats
    history: dict[str, Floats]
    masks: Masks | None

    @property
    def arm(self) -> tuple[str]:
        return (self.arch,)


@dataclass(frozen=True)
class File:
    """A result file and what its name says."""

    path: Path
    arch: str
    seed: int
    suffix: str | None


def read_results(
    results_dir: str | Path,
    architectures: Sequence[str] = (),
    seeds: Sequence[int] = (),
    train_acc_threshold: float = 0.0,
) -> list[Result]:
    """The runs found in ``results_dir``, in the order asked for (by default by architecture and seed).

    Raises UserError when there are none, none reaches ``train_acc_threshold`` (percent), or a file is damaged or lacks
    a documented key. Warns in one line per architecture that mixes settings, and if something asked for is not there.
    """
    files = _files(Path(results_dir))
    wanted = [f for f in files if f.arch in (architectures or [f.arch]) and f.seed in (seeds or [f.seed])]
    lacking = [a for a in architectures if a not in {f.arch for f in files}]
    lacking += [f"seed {n}" for n in seeds if n not in {f.seed for f in files}]
    check_choice(
        files[0].path.parent, [f.arch for f in wanted], [f"{f.arch} seed {f.seed}" for f in files], lacking
    )
    order = list(architectures)
    wanted.sort(key=lambda f: (order.index(f.arch) if order else 0, natural(f.arch), f.seed, f.path.name))
    results = _trained([_read(f) for f in wanted], train_acc_threshold)
    refuse_twins(alike(results, SETTINGS))
    warn_of_mixtures(results, SETTINGS)
    return results


def _files(folder: Path) -> list[File]:
    """Files with documented names, one per run: the ``.npz`` where there are both. UserError if there are none."""
    names = {
        path.with_suffix(""): path for kind in ("json", "npz") for path in sorted(folder.glob(f"*.{kind}"))
    }
    found = [(path, m) for path in names.values() if (m := NAME.fullmatch(path.name))]
    if not found:
        raise UserError(
            f"no result files in {folder}: `perturblab first-layer-mi train --arch vgg11 --seed 0` makes one, "
            "`perturblab first-layer-mi jobs` scripts for the document's 15"
        )
    return [File(path, m["arch"], int(m["seed"]), m["suffix"]) for path, m in found]


def _trained(results: list[Result], threshold: float) -> list[Result]:
    """Those whose clean train accuracy reaches the threshold; one line says how many do not."""
    accuracies = [run.finals["final_train_acc_clean"] for run in results]
    enough = [run for run, accuracy in zip(results, accuracies, strict=True) if accuracy >= threshold]
    if not enough:
        raise UserError(
            f"no run reaches --train_acc_threshold {threshold:g}: the highest clean train accuracy is {max(accuracies):.2f} %"
        )
    if left_out := len(results) - len(enough):
        say(f"{left_out} of {len(results)} runs left out: clean train accuracy below {threshold:g} %")
    return enough


def _read(file: File) -> Result:
    path = file.path
    content = _arrays(path) if path.suffix == ".npz" else read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it does not hold an object")
    for key in ("arch", "seed"):
        recorded, named = value_of(path, content, key, MADE_BY), getattr(file, key)
        if str(recorded) != str(named):
            raise UserError(f"{path}: its name says {key} {named}, its key {key!r} says {recorded!r}")
    finals = {k: number(path, k, value_of(path, content, k, MADE_BY)) for k in FINALS}
    finals |= {k: number(path, k, content[k]) for k in NEWER_FINALS if k in content}
    epochs = rising(path, "epochs_evaluated", value_of(path, content, "epochs_evaluated", MADE_BY))
    history = {k: numbers(path, k, value_of(path, content, k, MADE_BY)) for k in CURVES}
    history |= {k: numbers(path, k, content[k]) for k in NEWER_CURVES if k in content}
    for key, values in history.items():
        if values.shape != epochs.shape:
            raise UserError(f"{path}: {key} has {values.size} values, epochs_evaluated has {epochs.size}")
    return Result(
        path, file.arch, file.seed, _settings(content, file), finals, epochs, history, _masks(path, content)
    )


def _arrays(path: Path) -> dict[str, Any]:
    """What an ``.npz`` holds, as plain numbers, text and lists. UserError if it is damaged or wants to run code."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}
    except Exception as error:  # numpy, zipfile, zlib have their own; a header may ask for any memory
        raise UserError(f"{path} is damaged or is no .npz of plain arrays ({type(error).__name__})") from None


def _settings(content: dict[str, Any], file: File) -> dict[str, Any]:
    script = "perturblab" if "schema_version" in content else "original"
    return {k: content.get(k) for k in SETTINGS} | {"script": script, "suffix": file.suffix}


def _masks(path: Path, content: dict[str, Any]) -> Masks | None:
    keys = ("final_mask_keep_size", "final_mask_mi_nats")
    if not all(key in content for key in keys):
        return None
    sizes, mi = (numbers(path, key, content[key]) for key in keys)
    elements = number(path, "first_layer_elements", value_of(path, content, "first_layer_elements", MADE_BY))
    if sizes.shape != mi.shape or not sizes.size or elements < 1:
        raise UserError(f"{path}: {keys[0]} and {keys[1]} must hold one number per mask")
    return Masks(sizes / elements, mi)
