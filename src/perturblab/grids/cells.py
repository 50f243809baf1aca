"""From a grid and what the user changes in it to its cells, each run once, under names that tell them apart."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from perturblab.flags import LONGEST_SUFFIX
from perturblab.grids import Grid, function_of
from perturblab.grids.asked import Asked
from perturblab.launch import Cell
from perturblab.settings import Settings, explain, in_words, is_where
from perturblab.sweep import Plan
from perturblab.terminal import UserError

MOST = 1_000_000  # runs of one grid


@dataclass(frozen=True)
class Runs:
    """The settings of a grid's runs, each once. ``axes``: the fields with several values. ``equal``: how many that
    were asked for are the same run as another."""

    study: str
    grid: Grid
    settings: list[Settings]
    axes: dict[str, list[Any]]
    equal: int


def runs_of(asked: Asked, runs_dir: str | None = None) -> Runs:
    """Every run of the grid, the first axis outermost. UserError for a value that a setting cannot have.

    Each value is validated once, not once per run: the settings of a run have no rule over several fields.
    """
    grid = asked.grid
    axes = {name: list(values) for name, values in grid.axes.items()} | asked.values
    if runs_dir is not None:
        axes["runs_dir"] = [runs_dir]
    base = {**grid.fixed, **_preset(grid, asked)}
    first = _checked(grid, {**base, **{name: values[0] for name, values in axes.items()}}, asked.origin)
    valid = {
        name: list(dict.fromkeys(_value(grid, first, name, one, asked.origin) for one in axes[name]))
        for name in axes
    }
    several = {name: values for name, values in valid.items() if len(values) > 1}
    if prod(map(len, several.values())) > MOST:
        raise UserError(f"that is a grid of more than {MOST:,} runs")
    cells = [
        first.model_copy(update=dict(zip(several, point, strict=True)))
        for point in product(*several.values())
    ]
    once, equal = _each_once(grid, cells)
    return Runs(asked.study, grid, list(_apart(grid, once, several)), several, equal)


def plan_of(runs: Runs) -> Plan:
    """The study's plan of these runs, with names that tell all of them apart."""
    plan: Plan = function_of(runs.grid.plan)(runs.settings)
    count = Counter(cell.name for cell in plan.cells)
    if len(count) == len(plan.cells):
        return plan
    axes = _further(runs.grid, runs.axes)
    alike = _alike(axes)

    def told_apart(cell: Cell) -> str:
        return f"{cell.name} {' '.join(_words(cell.settings, axes, alike)) or cell.settings.id}"

    cells = [replace(c, name=told_apart(c)) if count[c.name] > 1 else c for c in plan.cells]
    return replace(plan, cells=cells)


def _preset(grid: Grid, asked: Asked) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name, short in grid.presets.items():
        for value in asked.values.get(name, []):
            found |= short.get(str(value), {})
    return found


def _checked(grid: Grid, values: Mapping[str, Any], origin: Mapping[str, str]) -> Settings:
    try:
        return grid.settings(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = origin.get(str(problem["loc"][0]) if problem["loc"] else "", "")
        raise UserError(where + explain(grid.settings, error)) from None


def _value(grid: Grid, first: Settings, name: str, value: Any, origin: Mapping[str, str]) -> Any:
    """The value as a run has it: ``"0"`` is 0. Text that YAML writes over several lines cannot stand in a command."""
    others = {field: getattr(first, field) for field in first.model_fields_set if field != name}
    found = getattr(_checked(grid, {**others, name: value}, origin), name)
    if isinstance(found, str) and found and not found.isprintable():
        raise UserError(
            f"{origin.get(name, '')}'{name}' must be {in_words(grid.settings.model_fields[name])} in one line"
        )
    return found


def _each_once(grid: Grid, cells: Iterable[Settings]) -> tuple[list[Settings], int]:
    """The runs, each once; what comes along with several of them counts as asked for once."""
    found: dict[str, Settings] = {}
    brought: set[str] = set()
    equal = 0
    for cell in cells:
        those = {one.id: one for one in (grid.along(cell) if grid.along else (cell,))}
        own = list(those)[-1]
        equal += own in found and own not in brought
        brought |= {name for name in those if name != own and name not in found}
        for name, one in those.items():
            found.setdefault(name, one)
    return list(found.values()), equal


def _apart(grid: Grid, cells: Sequence[Settings], axes: Mapping[str, list[Any]]) -> Iterator[Settings]:
    """The runs with the values of axes that their files' names do not hold in a suffix or a folder."""
    further = _further(grid, axes)
    alike = _alike(further)
    for cell in cells:
        word = "_".join(_words(cell, further, alike))
        if not word:
            yield cell
            continue
        before = str(getattr(cell, grid.apart))
        if grid.apart.endswith("_dir"):
            after = str(Path(before) / _shortened(word))
        else:
            after = _shortened(f"{before}_{word}".strip("_"))
        yield cell.model_copy(update={grid.apart: after})


def _shortened(word: str) -> str:
    """A part of a name that file systems take, which still tells runs apart."""
    if len(word.encode()) <= LONGEST_SUFFIX:
        return word
    digest = hashlib.sha256(word.encode()).hexdigest()[:10]
    return f"{word.encode()[: LONGEST_SUFFIX - 11].decode(errors='ignore')}-{digest}"


def _further(grid: Grid, axes: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The axes that change what is computed, and not the names of files."""
    fields = grid.settings.model_fields
    known = {*grid.axes, *grid.named}
    return {name: values for name, values in axes.items() if name not in known and not is_where(fields[name])}


def _words(
    cell: Settings, axes: Mapping[str, list[Any]], alike: Mapping[str, Mapping[str, int]]
) -> list[str]:
    """``["lr0.05"]``: the values of the axes that act in this run."""
    return [
        name + _word(getattr(cell, name), alike[name])
        for name, values in axes.items()
        if _acts(cell, name, values)
    ]


def _acts(cell: Settings, name: str, values: Sequence[Any]) -> bool:
    """Whether the run would be another one with another value."""
    other = next(one for one in values if one != getattr(cell, name))
    return bool(
        getattr(cell.model_copy(update={name: other}).canonical(), name) != getattr(cell.canonical(), name)
    )


def _alike(axes: Mapping[str, list[Any]]) -> dict[str, Counter[str]]:
    """How many values of each axis are spelt alike in a file's name."""
    return {name: Counter(map(_spelt, values)) for name, values in axes.items()}


def _word(value: Any, alike: Mapping[str, int]) -> str:
    """A value as a part of a file's name; with a few letters of its digest where another would be spelt alike."""
    word = _spelt(value)
    return f"{word}-{hashlib.sha256(str(value).encode()).hexdigest()[:6]}" if alike[word] > 1 else word


def _spelt(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
    return re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-.") or "none"
