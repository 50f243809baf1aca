"""Folders on a disk as runs: which of them perturblab made, of which study, with which settings. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from perturblab.files import read_json
from perturblab.runs import RunFolder
from perturblab.settings import Settings
from perturblab.studies import STUDIES
from perturblab.terminal import UserError

NAME = re.compile(r"(?P<name>.+)-(?P<id>[0-9a-f]{10})")


def id_in(name: str) -> str | None:
    """The id in the name of a run's folder, ``NAME-0123456789``; None for another name."""
    found = NAME.fullmatch(name)
    return found["id"] if found else None


def below(folder: Path) -> Iterator[Path]:
    """The folders with settings in ``folder``, or one below that: a study's folder, or one of several studies.

    Hidden folders and symbolic links are left out. UserError where it cannot be read.
    """
    for path in _folders(folder):
        if (path / "settings.json").exists():
            yield path
        else:
            yield from (one for one in _folders(path) if (one / "settings.json").exists())


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name[0] != "." and e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None
    return [folder / name for name in sorted(names)]


def run_at(folder: Path) -> RunFolder:
    """The run whose state lies in ``folder``. UserError for a folder that no run of this version has made."""
    wanted, values = id_in(folder.absolute().name), read_json(folder / "settings.json")
    if wanted is None or not isinstance(values, dict):
        raise UserError(f"{folder} is not the folder of a run")
    for cls in kinds(folder.absolute().parent.name):
        settings = _settings(cls, values)
        if settings is not None and settings.id == wanted:
            return RunFolder(folder, settings)
    raise UserError(f"{folder} is of another version of perturblab, or its settings.json was changed")


def _settings(cls: type[Settings], values: dict[str, Any]) -> Settings | None:
    if not values.keys() <= cls.model_fields.keys():
        return None
    try:
        return cls(**values)
    except ValueError:
        return None


@cache
def kinds(first: str) -> list[type[Settings]]:
    """The settings of every command of every study, those of the study ``first`` before the others."""
    found = []
    for study in sorted(STUDIES, key=lambda name: name != first):
        for one in vars(import_module(STUDIES[study])).values():
            if (
                isinstance(one, type)
                and issubclass(one, Settings)
                and (one.study, bool(one.command)) == (study, True)
            ):
                found.append(one)
    return found
