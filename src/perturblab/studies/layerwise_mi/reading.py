"""Reading ``mi_results_{checkpoint}[_seed{seed}].json``, ours and those of the original scripts, for the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perturblab.report.groups import Alike, alike, differing, refuse_twins, warn_of_mixtures
from perturblab.report.reading import Floats, check_choice, natural, number, numbers
from perturblab.studies.layerwise_mi import Visualize
from perturblab.studies.layerwise_mi.results import Entry, in_words, named, read_entries
from perturblab.terminal import UserError

SETTINGS = (
    "script", "dataset", "mi_split", "n_images", "n_subsets", "keep_min", "ablation", "normalize", "width", "precision", "selected_on",
    "layers",
)  # fmt: skip
USUAL = {"keep_min": 0, "normalize": "documented", "width": 1.0, "precision": "fp32", "layers": "all"}
"""What goes without saying."""
MAKES_THEM = "`perturblab layerwise-mi evaluate --model vgg11` makes one"


@dataclass(frozen=True)
class Layer:
    """What was measured at one convolution; information in nats. ``kept`` (fraction) and ``mi`` are per subset
    ``[subsets]``, empty where the original scripts did not record them."""

    index: int
    name: str
    channels: int
    mean: float
    std: float
    kept: Floats
    mi: Floats


@dataclass(frozen=True)
class Result:
    """One network. ``baseline`` is the information of the intact one, NaN where it is not recorded."""

    path: Path
    model: str
    seed: int
    settings: dict[str, Any]
    baseline: float
    layers: tuple[Layer, ...]

    @property
    def arm(self) -> tuple[str]:
        return (self.model,)


Group = Alike[Result]


def read_results(s: Visualize) -> list[Result]:
    """The networks found, by architecture and seed.

    Raises UserError when there are none, or, naming file and key, when one is damaged. Warns in one line per
    architecture that mixes settings, and in one line if something asked for is not there.
    """
    folder = Path(s.results_dir)
    named = re.compile(rf"mi_results_{re.escape(s.checkpoint)}(?:_seed(\d+))?\.json")
    files = {path: m for path in sorted(folder.glob("*.json")) if (m := named.fullmatch(path.name))}
    found = [_result(path, m[1], *item) for path, m in files.items() for item in read_entries(path).items()]
    if not found:
        if files:
            raise UserError(f"{', '.join(map(str, files))}: no results in there; {MAKES_THEM}")
        there = sorted(path.stem for path in folder.glob("mi_results_*.json"))
        hint = f"there are {', '.join(there)}" if there else MAKES_THEM
        raise UserError(f"no results of '{s.checkpoint}' checkpoints in {folder}: {hint}")
    wanted = [
        r for r in found if (not s.models or r.model in s.models) and (not s.seeds or r.seed in s.seeds)
    ]
    lacking = [m for m in s.models if m not in {r.model for r in found}]
    lacking += [f"seed {n}" for n in s.seeds if n not in {r.seed for r in found}]
    check_choice(folder, [r.model for r in wanted], [f"{r.model} seed {r.seed}" for r in found], lacking)
    results = sorted(wanted, key=lambda r: (natural(r.model), r.seed))
    refuse_twins(groups(results))
    warn_of_mixtures(results, SETTINGS)
    return results


def groups(results: Sequence[Result]) -> list[Group]:
    """Networks that may be averaged; their variant says what sets their evaluation apart from any other."""
    return alike(results, SETTINGS, across=True)


def notes(results: Sequence[Result]) -> list[str]:
    """What all evaluations share, and in what they differ."""
    settings = [r.settings for r in results]
    apart = differing(settings, SETTINGS)
    shared = {k: v for k, v in settings[0].items() if k not in apart and v != USUAL.get(k)}
    lines = [f"{', '.join(in_words(shared).values())}."] if in_words(shared) else []
    if apart:
        lines.append(
            f"Evaluated differently, as the names say ({', '.join(apart)}): do not compare them as equals."
        )
    return lines


def _result(path: Path, seed: str | None, model: str, entry: Entry) -> Result:
    """``seed`` is that of the file's name; without one it is the entry's, or 0."""
    settings = {key: entry.get(key) for key in SETTINGS}
    settings["layers"] = named(model, [int(one["layer_idx"]) for one in entry["layers"]])
    settings["script"] = "perturblab" if "run_id" in entry else "original"
    given = int(seed) if seed is not None else entry.get("seed", 0)
    baseline = entry.get("baseline_mi_nats")
    return Result(
        path,
        model,
        int(number(path, f"{model}.seed", given)),
        settings,
        np.nan if baseline is None else number(path, f"{model}.baseline_mi_nats", baseline),
        tuple(_layer(path, f"{model}.layers", one) for one in entry["layers"]),
    )


def _layer(path: Path, where: str, one: dict[str, Any]) -> Layer:
    index, channels, mean, std = (
        number(path, f"{where}.{key}", one.get(key))
        for key in ("layer_idx", "n_channels", "mean_mi", "std_mi")
    )
    kept, mi = (numbers(path, f"{where}.{key}", one.get(key, [])) for key in ("keep_size", "mi_nats"))
    if len(kept) != len(mi):
        raise UserError(f"{path}: {where}.keep_size has {len(kept)} values, mi_nats has {len(mi)}")
    return Layer(int(index), str(one.get("layer_name", "")), int(channels), mean, std, kept / channels, mi)
