"""How long the missing runs of a grid will take, and how much disk: from what its other runs took, the nearest ones."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import islice
from math import log
from operator import eq
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

from perturblab.grids.states import Seen, last_epoch
from perturblab.rows import Row
from perturblab.settings import Settings
from perturblab.sweep import Plan
from perturblab.terminal import UserError

LOOKED_AT = 100  # runs whose files are read: enough for a mean, and soon done (0.2 s)
BETTER = 0.95  # a field tells something if with it the guesses' squared error falls below this share

T = TypeVar("T")
Key = tuple[Hashable, ...]
ELSE = object()  # a value that no source has


@dataclass(frozen=True)
class Measured:
    """What a run took: seconds per epoch, share of the epochs that it was set to, bytes (None until it is done)."""

    key: Key
    seconds_per_epoch: float
    share: float
    size: int | None


@dataclass(frozen=True)
class Estimate:
    """Seconds of work per cell (by name), bytes in all; None where no run of the grid tells. ``n`` runs tell."""

    seconds: dict[str, float] | None
    size: int | None
    n: int

    def wall(self, jobs: int) -> float:
        """Seconds with ``jobs`` runs at a time; none is split."""
        work = (self.seconds or {}).values()
        return max(sum(work) / jobs, max(work, default=0.0))


def estimate(
    plan: Plan, seen: Sequence[Seen], todo: Sequence[Seen], epochs: str, tried: Sequence[Measured] = ()
) -> Estimate:
    """For the cells ``todo``, from the other runs of the grid and those ``tried`` for a moment.

    Seeds cost the same; ``epochs`` is a field.
    """
    if not todo:
        return Estimate({}, 0, 0)
    fields = _varying([one.cell.settings for one in seen])
    keys = {one.cell.name: _key(one.cell.settings, fields) for one in seen}
    wanted = list(dict.fromkeys(keys[one.cell.name] for one in todo))
    sources = measured(plan, seen, keys, epochs, wanted)
    sources += [one for one in tried if one.key not in {source.key for source in sources}]
    if not sources:
        return Estimate(None, None, 0)
    finished = [source for source in sources if source.size is not None]
    best = nearest(wanted, sources, [source.seconds_per_epoch for source in sources])
    on_disk = nearest(wanted, finished, [source.size or 0 for source in finished])
    seconds = {one.cell.name: _left(one, best[keys[one.cell.name]], epochs) for one in todo}
    sizes = [source.size or 0 for one in todo for source in on_disk[keys[one.cell.name]][:1]]
    return Estimate(seconds, sum(sizes) if finished else None, len(sources))


def kinds(seen: Sequence[Seen], todo: Sequence[Seen]) -> list[tuple[Key, Seen]]:
    """The first cell of ``todo`` of each kind (seeds are of one kind) of which no epoch has been done yet."""
    fields = _varying([one.cell.settings for one in seen])
    known = {_key(one.cell.settings, fields) for one in seen if one.state != "missing" and took(one)[0]}
    found: dict[Key, Seen] = {}
    for one in todo:
        found.setdefault(_key(one.cell.settings, fields), one)
    return [(key, one) for key, one in found.items() if key not in known]


def took(run: Seen) -> tuple[int, float]:
    """Epochs that a run has behind it, and their seconds with what it measures between them."""
    try:
        timings = sorted(run.run.timings().items())
        return len(timings), seconds_of([row for _, row in timings])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return 0, 0.0  # a damaged list of times is no reason to fail


def seconds_of(timings: Sequence[Row]) -> float:
    """What epochs took, and what was done after each: measuring and saving are not in a row's ``seconds``."""
    seconds = [float(row["seconds"]) for row in timings]
    return sum(seconds) + len(seconds) * _between(timings, seconds)


def _between(timings: Sequence[Row], seconds: Sequence[float]) -> float:
    """Seconds from the end of an epoch to the start of the next one, without the pauses of a run that was stopped.

    What is far from the median is a pause, or measuring that is not done in every epoch: ``ended`` cannot tell which.
    """
    try:
        ended = [datetime.fromisoformat(row["ended"]) for row in timings]
        gaps = [(b - a).total_seconds() - s for a, b, s in zip(ended, ended[1:], seconds[1:], strict=False)]
    except (KeyError, TypeError, ValueError):
        return 0.0
    usual = max(0.0, median(gaps)) if len(gaps) > 1 else 0.0
    return max(
        0.0, fmean([gap for gap in gaps if abs(gap - usual) <= usual + 1] or [0.0])
    )  # ended: whole seconds


def measured(
    plan: Plan, seen: Sequence[Seen], keys: dict[str, Key], epochs: str, wanted: Sequence[Key]
) -> list[Measured]:
    """Finished runs before unfinished ones, one of each kind; those ``LOOKED_AT`` are read that tell most of ``wanted``."""
    by_kind: dict[Key, Seen] = {}
    for one in sorted(seen, key=lambda one: one.state != "done"):
        if one.state != "missing":
            by_kind.setdefault(keys[one.cell.name], one)
    found = []
    for key in _to_read(list(by_kind), wanted):
        n, seconds = took(one := by_kind[key])
        if n:
            done = one.state == "done"
            share = n / getattr(one.cell.settings, epochs) if done else 1.0
            found.append(Measured(key, seconds / n, share, size_of(plan, one) if done else None))
    return found


def size_of(plan: Plan, one: Seen) -> int:
    """Bytes of a run's folder and of what it exports."""
    files: Iterable[Path | os.DirEntry[str]] = [*os.scandir(one.run.path), *plan.exports(one.cell)]
    size = 0
    for file in files:
        try:
            size += file.stat().st_size
        except OSError:
            continue
    return size


def _left(one: Seen, sources: Sequence[Measured], epochs: str) -> float:
    """Seconds that a cell still takes: its epochs, of which runs like it used a share (they may stop early)."""
    whole = getattr(one.cell.settings, epochs)
    before = last_epoch(one.run) if one.state in ("interrupted", "running", "failed") else 0
    rates = [source.seconds_per_epoch for source in sources]
    share = sum(source.share for source in sources) / len(sources)
    return max(0.0, whole * share - before) * sum(rates) / len(rates)


# ---- which runs are near -------------------------------------------------------------------------------------------


def nearest(
    wanted: Iterable[Key], sources: Sequence[Measured], values: Sequence[float]
) -> dict[Key, list[Measured]]:
    """The sources that agree with each key in the fields that tell most of ``values``, and then in the most others."""
    places = telling([source.key for source in sources], values)
    known = [set(column) for column in zip(*(source.key for source in sources), strict=True)]

    @cache  # thousands of learning rates that no source has are one to it
    def near(key: Key) -> list[Measured]:
        agree = [tuple(map(eq, key, source.key)) for source in sources]
        rank = [(*(one[place] for place in places), sum(one)) for one in agree]
        best = max(rank, default=())
        return [source for source, of in zip(sources, rank, strict=True) if of == best]

    return {
        key: near(tuple(v if v in there else ELSE for v, there in zip(key, known, strict=False)))
        for key in wanted
    }


def telling(keys: Sequence[Key], values: Sequence[float]) -> list[int]:
    """The places of the fields that tell the ``values`` of ``keys``, the most telling first; of nothing nothing.

    Each value (its logarithm) is guessed from the other keys that agree in the fields found so far. Of the fields
    that make the guesses better the best is next. A value that stands once, as a learning rate may, tells nothing.
    """
    logs = [log(max(value, 1e-3)) for value in values]
    if len(logs) < 2:
        return []
    found: list[int] = []
    guesses = [(sum(logs) - one) / (len(logs) - 1) for one in logs]
    while True:
        tried = {place: _guessed(keys, logs, [*found, place], guesses) for place in range(len(keys[0]))}
        best = min(tried, key=lambda place: _error(logs, tried[place]), default=None)
        if best is None or not _error(logs, tried[best]) < BETTER * _error(logs, guesses):
            return found
        found, guesses = [*found, best], tried[best]


def _guessed(
    keys: Sequence[Key], logs: Sequence[float], places: Sequence[int], before: Sequence[float]
) -> list[float]:
    """The mean of the others that agree in all of these fields; as ``before`` where none does."""
    kinds = [tuple(key[place] for place in places) for key in keys]
    of: dict[Key, list[float]] = defaultdict(list)
    for kind, one in zip(kinds, logs, strict=True):
        of[kind].append(one)
    total = {kind: sum(those) for kind, those in of.items()}
    return [
        (total[kind] - one) / (len(of[kind]) - 1) if len(of[kind]) > 1 else guess
        for kind, one, guess in zip(kinds, logs, before, strict=True)
    ]


def _error(logs: Sequence[float], guesses: Sequence[float]) -> float:
    return sum((one - guess) ** 2 for one, guess in zip(logs, guesses, strict=True))


def _to_read(there: Sequence[Key], wanted: Sequence[Key]) -> Iterable[Key]:
    """At most ``LOOKED_AT`` kinds: for some wanted ones that have between them every value, those that are near.

    Which fields tell the time is not known before: each way of agreeing with a wanted key has its turn.
    """
    if len(there) <= LOOKED_AT:
        return there
    firsts = [list({key[place]: key for key in reversed(wanted)}.values()) for place in range(len(wanted[0]))]
    some = islice(dict.fromkeys(_in_turn(firsts)), LOOKED_AT // 4)
    return list(islice(dict.fromkeys(_in_turn([_near(key, there) for key in some])), LOOKED_AT))


def _near(key: Key, there: Sequence[Key]) -> list[Key]:
    """Kinds in the order in which to read them for ``key``: of each way of agreeing one, those first that agree in most."""
    ways: dict[tuple[bool, ...], list[Key]] = defaultdict(list)
    for other in there:
        ways[tuple(map(eq, key, other))].append(other)
    return list(_in_turn([ways[way][:LOOKED_AT] for way in sorted(ways, key=sum, reverse=True)]))


def _in_turn(lists: Sequence[Sequence[T]]) -> Iterator[T]:
    """The first of each list, then the second of each."""
    for place in range(max(map(len, lists), default=0)):
        yield from (one[place] for one in lists if place < len(one))


# ---- settings -------------------------------------------------------------------------------------------------------


def _varying(settings: Sequence[Settings]) -> list[str]:
    """The fields in which the runs differ."""
    if not settings:
        return []
    first = vars(settings[0])
    differ = {name for one in settings for name, value in vars(one).items() if value != first[name]}
    return sorted(differ - {"seed", "suffix", "device"})


def _key(settings: Settings, fields: Sequence[str]) -> Key:
    values = vars(settings)
    return tuple(values[name] for name in fields)
