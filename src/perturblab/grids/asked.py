"""What the user asks of a grid: ``STUDY`` or ``FILE.yaml``, then ``--set NAME=v1,v2``, as values by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from perturblab.grids import Grid
from perturblab.settings import nearest, shown
from perturblab.terminal import UserError
from perturblab.yamlfile import check_keys, read_yaml, section

ENDINGS = (".yaml", ".yml")


@dataclass
class Asked:
    """A study's grid and what the user changes in it: ``values`` of each field, one fixes it, several are an axis.

    ``origin`` is where a field's values stand, for messages.
    """

    study: str
    grid: Grid
    values: dict[str, list[Any]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)


def read(word: str, given: Sequence[str], studies: Mapping[str, str]) -> Asked:
    """``word``: a study or a file; ``given``: what stands after each ``--set``; ``studies``: name -> module.

    UserError for a study, a file, a setting that is not there, an axis without values, what stands twice.
    """
    if not word:
        raise UserError(f"which grid? Name a study ({', '.join(studies)}) or a FILE.yaml")
    near = next((word + ending for ending in ENDINGS if Path(word + ending).is_file()), None)
    if near and word not in studies and not is_file(word, studies):
        raise UserError(f"no study '{shown(word)}'; did you mean {near}?")
    asked = _of_file(word, studies) if is_file(word, studies) else Asked(word, grid_of(word, studies))
    sets: dict[str, list[Any]] = {}
    for one in given:
        name, equals, words = one.partition("=")
        if not equals:
            raise UserError(f"--set {one}: write NAME=VALUE, or NAME=v1,v2 for an axis")
        key = _field(asked.grid, name.strip(), "--set: ")
        if key in sets:
            raise UserError(f"--set {key} stands twice; write all values after one of them, with commas")
        sets[key] = [value.strip() for value in words.split(",") if value.strip()]
        asked.origin[key] = f"--set {one}: "
        if not sets[key]:
            raise UserError(f"--set {one}: '{key}' needs one or more values")
    asked.values |= sets
    return asked


def is_file(word: str, studies: Mapping[str, str]) -> bool:
    """A study's name is the study, also beside a file that is called so."""
    return word not in studies and (word.endswith(ENDINGS) or "/" in word or Path(word).is_file())


def grid_of(study: str, studies: Mapping[str, str], where: str = "") -> Grid:
    """The grid that a study declares. UserError with the nearest name."""
    if study not in studies:
        raise UserError(f"{where}no study '{shown(study)}'{nearest(study, studies)}")
    grid: Grid = import_module(studies[study]).GRID
    return grid


def _of_file(path: str, studies: Mapping[str, str]) -> Asked:
    content = read_yaml(path)
    check_keys(path, content, ["study", "fixed", "axes"])
    if content.get("study") is None:
        raise UserError(f"{path}: a line 'study: NAME' is missing; NAME is one of {', '.join(studies)}")
    study = str(content["study"]).replace("_", "-")
    asked = Asked(study, grid_of(study, studies, f"{path}, line {content.lines['study']}: "))
    for name in ("fixed", "axes"):
        part = section(path, content, name)
        check_keys(path, part, asked.grid.settings.names())
        for key, value in part.items():
            where = f"{path}, line {part.lines[key]}: "
            known = _field(asked.grid, key, where)
            if known in asked.values:
                raise UserError(f"{where}key '{key}' sets '{known}' a second time")
            values = list(value) if name == "axes" and isinstance(value, list) else [value]
            if not values:
                raise UserError(f"{where}'{key}' needs one or more values")
            asked.values[known], asked.origin[known] = values, where
    return asked


def _field(grid: Grid, name: str, where: str) -> str:
    try:
        return grid.settings.field_for(name)
    except UserError as error:
        raise UserError(f"{where}{error}") from None
