"""How long the missing runs of a grid will take, and how much disk: from what its other runs took, the nearest ones."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perturblab.grids.states import Seen, last_epoch
from perturblab.settings import Settings
from perturblab.sweep import Plan
from perturblab.terminal import UserError

LOOKED_AT = 50  # runs whose files are read: enough for a mean, and soon done

Key = tuple[Hashable, ...]


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
    fields = _varying([one.cell.settings for one in seen])
    keys = {one.cell.name: _key(one.cell.settings, fields) for one in seen}
    sources = measured(plan, seen, keys, epochs)
    sources += [one for one in tried if one.key not in {source.key for source in sources}]
    finished = [source for source in sources if source.size is not None]
    best = {key: _nearest(key, sources) for key in {keys[one.cell.name] for one in todo}}
    on_disk = {key: _nearest(key, finished) for key in best}
    if not sources:
        return Estimate(None, None, 0)
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
    """Epochs that a run has behind it, and their seconds."""
    try:
        timings = run.run.timings()
        return len(timings), sum(float(row["seconds"]) for row in timings.values())
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return 0, 0.0  # a damaged list of times is no reason to fail


def measured(plan: Plan, seen: Sequence[Seen], keys: dict[str, Key], epochs: str) -> list[Measured]:
    """Finished runs before unfinished ones, one of each kind; at most ``LOOKED_AT`` are read."""
    by_kind: dict[Key, Seen] = {}
    for one in sorted(seen, key=lambda one: one.state != "done"):
        if one.state != "missing":
            by_kind.setdefault(keys[one.cell.name], one)
    found = []
    for key, one in list(by_kind.items())[:LOOKED_AT]:
        n, seconds = took(one)
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


def _nearest(key: Key, sources: Sequence[Measured]) -> list[Measured]:
    """The sources that share the most settings with ``key``."""
    shared = [sum(a == b for a, b in zip(key, source.key, strict=True)) for source in sources]
    most = max(shared, default=0)
    return [source for source, n in zip(sources, shared, strict=True) if n == most]


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
