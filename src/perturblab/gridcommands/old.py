"""What ``prune`` takes for old in the folders of runs, and how it removes that. Follows no symbolic link.

A run is removed by the one who holds its folder: it goes to another name in one step, and only then file by file. A
kill at any moment leaves a whole run or a folder ``.removed-...`` that no command takes for one; the next call ends it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perturblab.claims import held
from perturblab.files import read_json, writing_to
from perturblab.gridcommands.folders import id_in, run_at
from perturblab.terminal import UserError

DAY_S = 86_400.0
AWAY = ".removed-"
CLAIMS = ("claim-", ".claim-")

Kind = Literal["failed", "stopped", "done", "checkpoints", "logs", "leftovers", "half removed"]
WHOLE: tuple[Kind, ...] = ("failed", "stopped", "done", "half removed")
"""Kinds of which the folder itself goes."""


@dataclass(frozen=True)
class Old:
    """What is old in the folder of a run: all of it, or ``names`` in it. ``size`` in bytes."""

    folder: Path
    kind: Kind
    names: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Rule:
    """``before``: what was changed since (seconds since 1970) is not old. ``done``: finished runs may be old too."""

    before: float
    done: bool

    @classmethod
    def of(cls, days: float, done: bool) -> Rule:
        return cls(time.time() - days * DAY_S, done)


@dataclass(frozen=True)
class Content:
    """What lies in a run's folder: size of each entry, and when a file of the run itself was last changed."""

    sizes: dict[str, int]
    touched: float

    @property
    def size(self) -> int:
        return sum(self.sizes.values())

    @property
    def claimed(self) -> int:
        return self.of(name for name in self.sizes if name.startswith(CLAIMS))

    def of(self, names: Iterable[str]) -> int:
        return sum(self.sizes[name] for name in names)


def is_ours(folder: Path) -> bool:
    """Whether a folder is that of a run: its manifest or its settings give the id that stands in its name."""
    wanted = id_in(folder.name)
    if wanted is None or folder.is_symlink():
        return False
    try:
        if (folder / "manifest.json").exists():
            manifest = read_json(folder / "manifest.json")
            return isinstance(manifest, dict) and manifest.get("run_id") == wanted
        return run_at(folder).id == wanted
    except UserError:
        return False


def old_in(folder: Path, rule: Rule) -> list[Old]:
    """What is old in the folder of a run of ours; reads only. Nothing of one that is gone."""
    try:
        there = content(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    kind = _whole(there, rule)
    if kind is not None:
        return [Old(folder, kind, (), there.size)]
    parts = ((kind, names) for kind, names in _parts(there, rule) if names)
    return [Old(folder, kind, tuple(names), there.of(names)) for kind, names in parts]


def _whole(there: Content, rule: Rule) -> Kind | None:
    """Why the whole run is old, if it is."""
    if there.touched > rule.before:
        return None
    if "results.json" in there.sizes:
        return "done" if rule.done else None
    return "failed" if "failure.json" in there.sizes else "stopped"


def _parts(there: Content, rule: Rule) -> Iterator[tuple[Kind, list[str]]]:
    """What is old in a run that is kept."""
    names = list(there.sizes)
    yield "leftovers", [n for n in names if n.startswith(CLAIMS) or (n[0] == "." and n.endswith(".tmp"))]
    if "results.json" in there.sizes:
        yield "checkpoints", [name for name in names if name.startswith("checkpoint-")]
        yield "logs", [name for name in names if name == "log.txt" and there.touched <= rule.before]


def content(folder: Path) -> Content:
    """FileNotFoundError if it is gone. What vanishes meanwhile has no size."""
    sizes, touched = {}, 0.0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(about.st_mode):
                    sizes[entry.name] = size_below(Path(entry.path))
                else:
                    sizes[entry.name] = about.st_size
                    touched = max(touched, about.st_mtime)
    return Content(sizes, touched or folder.lstat().st_mtime)


def size_below(folder: Path) -> int:
    size = 0
    for where, _, files in os.walk(folder):  # follows no links
        for name in files:
            with suppress(OSError):
                size += os.lstat(os.path.join(where, name)).st_size
    return size


def half_removed(folder: Path) -> list[Path]:
    """What a kill left of a removal in the folder of a study."""
    try:
        found = sorted(path for path in folder.glob(f"{AWAY}*") if path.is_dir() and not path.is_symlink())
    except OSError:
        return []
    return [path for path in found if name_before(path)]


def name_before(folder: Path) -> str:
    """The name that a half removed run had; empty for any other folder."""
    if not folder.name.startswith(AWAY):
        return ""
    name = folder.name.removeprefix(AWAY).rpartition("-")[0]
    return name if id_in(name) else ""


# ---- removing --------------------------------------------------------------------------------------------------------


def remove(folder: Path, rule: Rule) -> int:
    """Remove what is old in a folder, looked at again by its holder; the bytes. Busy if a living process holds it."""
    if name_before(folder):
        return _remove_below(folder)
    if not is_ours(folder):  # gone by now, and holding it would make it again
        return 0
    away = folder.with_name(f"{AWAY}{folder.name}-{secrets.token_hex(4)}")
    with writing_to(folder):
        before = content(folder)
        with held(folder):  # which removes the claims of the dead
            there = content(folder)
            if _whole(there, rule) is None:
                return _remove_parts(folder, there, rule) + max(0, before.claimed - there.claimed)
            os.rename(folder, away)
    _remove_below(away)
    return before.size


def _remove_parts(folder: Path, there: Content, rule: Rule) -> int:
    parts = (name for _, names in _parts(there, rule) for name in names)
    names = [name for name in parts if not name.startswith(CLAIMS)]  # ours, or of one who waits for it
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return there.of(names)


def _remove_below(folder: Path) -> int:
    size = size_below(folder)
    with writing_to(folder):
        shutil.rmtree(folder)
    return size
