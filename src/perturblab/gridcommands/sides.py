"""What ``compare`` compares: the finished runs that a word means, with their numbers, machines and data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from perturblab.files import read_json
from perturblab.gridcommands.folders import below, run_at
from perturblab.grids import Measure
from perturblab.grids.asked import is_file, read
from perturblab.grids.cells import plan_of, runs_of
from perturblab.runs import RunFolder
from perturblab.settings import Settings
from perturblab.studies import STUDIES
from perturblab.terminal import UserError, warn

ABOUT = ("schema_version", "run_id", "settings", "config", "seed")
"""What results hold beside what was found."""
IMAGES = ("train", "test", "data")
"""The digests in a manifest that are of images; others are of further inputs."""


@dataclass(frozen=True)
class Finished:
    """A finished run. ``numbers`` by their key in results.json; a dot goes into an object."""

    run: RunFolder
    numbers: Mapping[str, float]
    machine: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def seed(self) -> int:
        return int(getattr(self.run.settings.canonical(), "seed", None) or 0)

    @property
    def images(self) -> dict[str, str]:
        return {name: value for name, value in self.inputs.items() if name in IMAGES}


@dataclass
class Side:
    """The finished runs of one side, and how many of each other state there are."""

    word: str
    runs: list[Finished] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def sides(words: Sequence[str], given: Sequence[Sequence[str]], runs_dir: str | None) -> list[Side]:
    """A side for each word, all of one study and command.

    UserError for a word that means no finished run, and where they are not of one kind.
    """
    found = [_folders_of(*each, runs_dir) for each in zip(words, given, strict=True)]
    kind = _kind(words, found)
    return [
        _side(word, [one for one in folders if type(one.settings) is kind])
        for word, folders in zip(words, found, strict=True)
    ]


def measures(kind: type[Settings]) -> tuple[Measure, ...]:
    """What the study's own tables show, the headline first."""
    grid = import_module(STUDIES[kind.study]).GRID
    return grid.measures if issubclass(kind, grid.settings) else ()


# ---- from a word to folders ----------------------------------------------------------------------------------------


def _folders_of(word: str, given: Sequence[str], runs_dir: str | None) -> list[RunFolder]:
    if word in STUDIES or (is_file(word, STUDIES) and not Path(word).is_dir()):
        plan = plan_of(runs_of(read(word, given, STUDIES), runs_dir))
        return [plan.folder(cell) for cell in plan.cells]
    folder = Path(word)
    if not folder.is_dir():
        raise UserError(f"'{word}' is no study, no FILE.yaml and no folder with runs")
    is_run = (folder / "settings.json").exists()
    found = [run_at(folder)] if is_run else list(_readable(folder))
    if not found:
        raise UserError(f"{word} holds no run of perturblab")
    return [one for one in found if _is_asked_for(one.settings, given)]


def _readable(folder: Path) -> Iterator[RunFolder]:
    for path in below(folder):
        try:
            yield run_at(path)
        except UserError as error:
            warn(f"left out: {error}")


def _is_asked_for(settings: Settings, given: Sequence[str]) -> bool:
    """Whether a run that lies in a folder has one of the values after each ``--set NAME=v1,v2``."""
    for one in given:
        name, equals, words = one.partition("=")
        if not equals:
            raise UserError(f"--set {one}: write NAME=VALUE, or NAME=v1,v2")
        key = settings.field_for(name.strip())
        have = settings.model_dump()
        values = [getattr(settings.parse({**have, key: word.strip()}), key) for word in words.split(",")]
        if have[key] not in values:
            return False
    return True


def _kind(words: Sequence[str], found: Sequence[Sequence[RunFolder]]) -> type[Settings]:
    """The class of settings that both sides have; of several commands of a study that of its grid."""
    each = [dict.fromkeys(type(run.settings) for run in side) for side in found]
    common = [kind for kind in each[0] if kind in each[1]]
    if not common:
        told = " and ".join(
            f"{word} {', '.join(sorted({f'{kind.study} {kind.command}' for kind in kinds})) or 'nothing'}"
            for word, kinds in zip(words, each, strict=True)
        )
        raise UserError(f"only runs of one study can be compared: {told}")
    if len({kind.study for kind in common}) > 1:
        names = ", ".join(sorted({kind.study for kind in common}))
        raise UserError(
            f"both hold runs of {names}: name the folder of one study, such as {words[0]}/{common[0].study}"
        )
    return next((kind for kind in common if measures(kind)), common[0])


# ---- from a folder to a finished run ---------------------------------------------------------------------------------


def _side(word: str, folders: Sequence[RunFolder]) -> Side:
    side, ids = Side(word), set[str]()
    for run in folders:
        if run.status != "done":
            side.others["missing" if run.status == "pending" else run.status] += 1
            continue
        try:
            one = finished(run)
        except UserError as error:
            side.others["damaged"] += 1
            warn(f"left out: {error}")
            continue
        if run.id in ids:
            side.others["twice there"] += 1
            continue
        ids.add(run.id)
        side.runs.append(one)
    if not side.runs:
        told = ", ".join(f"{n} {state}" for state, n in side.others.items())
        raise UserError(f"{word}: no run is done{f' ({told})' if told else ''}")
    return side


def finished(run: RunFolder) -> Finished:
    """UserError for results or a manifest that are damaged."""
    manifest = read_json(run.path / "manifest.json")
    try:
        machine = {"perturblab": manifest["perturblab"], **manifest["machine"]}
        inputs = dict(manifest["data"])
        results = run.results()
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{run.path}: its manifest.json or results.json is damaged") from None
    said = {*ABOUT, *type(run.settings).model_fields}
    return Finished(run, dict(_numbers({k: v for k, v in results.items() if k not in said})), machine, inputs)


def _numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Every finite number outside lists; objects whose keys are numbers are lists by another name."""
    for name, value in values.items():
        if isinstance(value, dict) and not any(key.isdigit() for key in value):
            yield from _numbers(value, f"{before}{name}.")
        elif type(value) in (int, float) and math.isfinite(value):
            yield before + name, float(value)
