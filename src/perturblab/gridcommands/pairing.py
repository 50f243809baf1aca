"""Which finished runs of two sides are pairs: equal seed, equal images, equal in all that does not set the sides apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from perturblab.gridcommands.sides import Finished, Side
from perturblab.report.statistics import Paired, paired
from perturblab.settings import is_where

NOT_PAIRED_BY = ("seed",)
IDLE = "no effect"
"""The value of a setting that does nothing in a run: masks in a baseline."""

Values = dict[str, Hashable]


@dataclass(frozen=True)
class Differences:
    """The settings that vary among the runs of both sides, and which of them set the sides apart.

    ``apart``: no run of A has a value that a run of B has. ``equal``: all others, in which pairs agree.
    """

    of: Mapping[int, Values]
    a: Sequence[Finished]
    b: Sequence[Finished]

    @cached_property
    def names(self) -> list[str]:
        return list(next(iter(self.of.values()), {}))

    def values(self, runs: Iterable[Finished], name: str) -> list[Any]:
        """The values of a setting, each once, what has no effect last."""
        found = dict.fromkeys(self.of[id(run)][name] for run in runs)
        return [v for v in found if v != IDLE] + [v for v in found if v == IDLE]

    @cached_property
    def apart(self) -> list[str]:
        return [name for name in self.names if self._sets_apart(name)]

    @cached_property
    def equal(self) -> list[str]:
        return [name for name in self.names if name not in self.apart]

    @cached_property
    def several(self) -> list[str]:
        """Those of ``apart`` of which a side has several values."""
        return [n for n in self.apart if max(len(self.values(runs, n)) for runs in (self.a, self.b)) > 1]

    def _sets_apart(self, name: str) -> bool:
        one, other = (set(self.values(runs, name)) - {IDLE} for runs in (self.a, self.b))
        return one.isdisjoint(other) and bool(one or other)

    def between(self) -> list[str]:
        """The settings whose values are not the same set on both sides."""
        return [n for n in self.names if {*self.values(self.a, n)} != {*self.values(self.b, n)}]


@dataclass(frozen=True)
class Comparison:
    """Runs of A and of B, each of one arm, paired by their seed. ``label`` tells it from the other comparisons."""

    label: str
    pairs: tuple[tuple[Finished, Finished], ...]

    def numbers(self) -> list[str]:
        """The numbers that all of its runs have, in their order."""
        runs = [run for pair in self.pairs for run in pair]
        return [name for name in runs[0].numbers if all(name in run.numbers for run in runs)]

    def of(self, key: str, times: float = 1.0) -> tuple[list[float], list[float], Paired]:
        """The number of A's runs and of B's, by seed, and A - B."""
        a, b = ({p[side].seed: times * p[side].numbers[key] for p in self.pairs} for side in (0, 1))
        return list(a.values()), list(b.values()), paired(a, b)


@dataclass(frozen=True)
class Pairing:
    """Everything that two sides let compare, and what they do not."""

    differences: Differences
    comparisons: list[Comparison]
    same: list[Finished]
    """on both sides the very same run"""
    unpaired: tuple[list[Finished], list[Finished]]
    other_images: int
    """pairs that there would be if their images were the same"""


def pair(a: Side, b: Side) -> Pairing:
    """The pairs of two sides, whose runs are of one class of settings."""
    there = {run.run.path.resolve() for run in a.runs} & {run.run.path.resolve() for run in b.runs}
    same = [run for run in a.runs if run.run.path.resolve() in there]
    left, right = ([run for run in side.runs if run.run.path.resolve() not in there] for side in (a, b))
    found = differences(left, right)
    comparisons, used, other_images = _comparisons(found)
    unpaired = ([r for r in left if id(r) not in used], [r for r in right if id(r) not in used])
    return Pairing(found, comparisons, same, unpaired, other_images)


def differences(a: Sequence[Finished], b: Sequence[Finished]) -> Differences:
    runs = [*a, *b]
    settings = {id(run): run.run.settings.canonical() for run in runs}
    fields = type(runs[0].run.settings).model_fields if runs else {}
    values = {
        name: list(dict.fromkeys(getattr(one, name) for one in settings.values()))
        for name, info in fields.items()
        if not is_where(info) and name not in NOT_PAIRED_BY
    }
    varying = {name: those for name, those in values.items() if len(those) > 1}
    of = {id(run): {name: _effective(run, name, those) for name, those in varying.items()} for run in runs}
    return Differences(of, a, b)


def _effective(run: Finished, name: str, values: Sequence[Hashable]) -> Hashable:
    """The value of a setting, or IDLE where another value would make the same run."""
    settings = run.run.settings.canonical()
    own: Hashable = getattr(settings, name)
    other = next(value for value in values if value != own)
    changed = settings.model_copy(update={name: other}).canonical()
    return IDLE if getattr(changed, name) == own else own


def _comparisons(found: Differences) -> tuple[list[Comparison], set[int], int]:
    """An arm of A with every arm of B that agrees in the settings that do not set the sides apart."""
    arms_a, arms_b = _arms(found, found.a), _arms(found, found.b)
    by_equal: dict[Hashable, list[list[Finished]]] = defaultdict(list)
    for runs in arms_b:
        by_equal[_key(found, runs[0], found.equal)].append(runs)
    made, used, other_images = [], set[int](), 0
    for one in arms_a:
        for other in by_equal[_key(found, one[0], found.equal)]:
            of_seed = {run.seed: run for run in other}
            both = [(run, of_seed[run.seed]) for run in one if run.seed in of_seed]
            pairs = tuple((x, y) for x, y in both if x.images == y.images)
            other_images += len(both) - len(pairs)
            if pairs:
                made.append(Comparison(_label(found, one[0], other[0]), pairs))
                used |= {id(run) for two in pairs for run in two}
    return made, used, other_images


def _arms(found: Differences, runs: Iterable[Finished]) -> list[list[Finished]]:
    """Runs that differ in nothing but the seed."""
    arms: dict[Hashable, list[Finished]] = defaultdict(list)
    for run in runs:
        arms[_key(found, run, found.names)].append(run)
    return list(arms.values())


def _key(found: Differences, run: Finished, names: Iterable[str]) -> Hashable:
    return tuple(found.of[id(run)][name] for name in names)


def _label(found: Differences, a: Finished, b: Finished) -> str:
    """``"arch vgg11, mode masked; lr 0.1 - 0.2"``: what both are, then in what A and B differ where a side has several values."""
    both = [f"{name} {found.of[id(a)][name]}" for name in found.equal if found.of[id(a)][name] != IDLE]
    apart = [f"{name} {found.of[id(a)][name]} - {found.of[id(b)][name]}" for name in found.several]
    return "; ".join([", ".join(both), *apart] if both else apart)
