"""A grid at one moment, as one who watches it sees it: what runs, where, how fast, what it last measured. Only reads."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from perturblab.claims import holder
from perturblab.gridcommands import WatchGrid
from perturblab.gridcommands.read import Found, at_once, line, planned, runs_asked, unfinished
from perturblab.grids import function_of
from perturblab.grids.estimate import Estimate, estimate, seconds_of
from perturblab.grids.states import Seen, look, only, reasons
from perturblab.rows import Row, last_rows
from perturblab.runs import RunFolder
from perturblab.sweep import Plan
from perturblab.terminal import UserError

JUST_NOW = 5  # looks
RECENT = 5  # epochs that say how fast a run is now
REASONS = 1000  # failed runs of which it is read why: 0.05 s


@dataclass(frozen=True)
class Working:
    """A run that a process works on: epochs behind it, of at most how many, seconds left (None: not known), the
    number that it measured last, and where: ``HOST:PID``."""

    name: str
    epoch: int
    epochs: int
    left_s: float | None
    number: str
    where: str


@dataclass(frozen=True)
class Moment:
    """``left_s``: seconds until all are done with as many at a time as run now; None where nothing tells.

    ``last``: the run that was done last, and when (seconds since 1970). ``go_on``: what does the rest. ``trouble``:
    why this is an older look.
    """

    at: float
    found: Found
    working: list[Working]
    left_s: float | None
    last: tuple[str, float] | None
    go_on: str
    trouble: str = ""

    @property
    def seen(self) -> list[Seen]:
        return self.found.seen

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is missing."""
        return not unfinished(self.seen)

    def failed(self) -> list[str]:
        """A line for each reason."""
        return reasons(only(self.seen, "failed")[:REASONS])


class Watcher:
    """Looks at the same grid again and again; folders and exports of its cells are named once (1 s for 10,000)."""

    def __init__(self, s: WatchGrid) -> None:
        self.s, self.runs = s, runs_asked(s)
        self.plan = _remembering(planned(self.runs))
        self.took_s = 0.0
        self._done: dict[str, float] = {}
        self._running: deque[int] = deque(maxlen=JUST_NOW)
        self._before: Moment | None = None

    def look(self) -> Moment:
        """The grid now. What cannot be read at this moment is no reason to end: the look before stands for it.

        UserError if the first look fails.
        """
        began = time.monotonic()
        try:
            self._before = self._look()
        except (UserError, OSError) as error:
            if self._before is None:
                raise
            trouble = f"cannot look at this moment: {error}"
            self._before = replace(self._before, at=time.time(), trouble=trouble)
        self.took_s = time.monotonic() - began
        return self._before

    def _look(self) -> Moment:
        grid = self.runs.grid
        if grid.lacks and function_of(grid.lacks)(self.runs.settings):
            self.plan = _remembering(planned(self.runs))  # what the runs read names them, once it is there
        found = Found(self.runs, self.plan, look(self.plan))
        running = only(found.seen, "running")
        expected = estimate(self.plan, found.seen, unfinished(found.seen), grid.epochs)
        working = [self._working(one, expected) for one in running]
        self._running.append(len(running))  # between two runs there are fewer for a moment
        jobs = self.s.jobs or max(self._running) or at_once(self.s, found.seen)
        left = expected.wall(jobs) if expected.seconds is not None else None
        last = self._last(only(found.seen, "done"))
        return Moment(time.time(), found, working, left, last, f"go on: {line(self.s, 'run')}")

    def _working(self, one: Seen, expected: Estimate) -> Working:
        rows, epochs = (
            last_rows(one.run.path / "rows.jsonl"),
            getattr(one.cell.settings, self.runs.grid.epochs),
        )
        epoch = next((row["epoch"] for row in rows if isinstance(row.get("epoch"), int)), 0)
        left = left_s(one.run.path / "timings.jsonl", epochs - epoch)
        if left is None:
            left = (expected.seconds or {}).get(one.cell.name)
        return Working(one.cell.name, epoch, epochs, left, number(rows), where(one.run))

    def _last(self, done: Iterable[Seen]) -> tuple[str, float] | None:
        """Of those that are done now; only what was not done before is asked for its time."""
        times = {one.cell.name: self._done.get(one.cell.name) or _changed(one.run) for one in done}
        self._done = times
        return max(times.items(), key=lambda item: item[1], default=None)


def _remembering(plan: Plan) -> Plan:
    folders = {cell.name: plan.folder(cell) for cell in plan.cells}
    exports = {cell.name: tuple(plan.exports(cell)) for cell in plan.cells}
    return replace(plan, folder=lambda cell: folders[cell.name], exports=lambda cell: exports[cell.name])


def _changed(run: RunFolder) -> float:
    try:
        return os.stat(run.path / "results.json").st_mtime
    except OSError:
        return 0.0


def where(run: RunFolder) -> str:
    """``"gpu7:4711"``: the machine and the number of the process; empty where the claim does not tell, or is gone."""
    found = holder(run.path)
    return f"{found.facts.get('host', '?')}:{found.facts['pid']}" if found and "pid" in found.facts else ""


def number(rows: Iterable[Row]) -> str:
    """``"test_acc 81.2 %"``: of the newest row that has one, accuracy on test before validation before any other."""
    for row in rows:
        numbers = {name: value for name, value in row.items() if type(value) in (int, float)}
        for wanted in (("test", "acc"), ("val", "acc"), ("acc",), ("loss",)):
            for name, value in numbers.items():
                if all(part in name for part in wanted):
                    return f"{name} {_spelt(name, value)}"
    return ""


def _spelt(name: str, value: float) -> str:
    """Shares are rows' accuracies; a number in percent says so in its name."""
    if "loss" in name:
        return f"{value:.4g}"
    return f"{value if name.endswith('_pct') else 100 * value:.1f} %"


def left_s(timings: Path, epochs: int) -> float | None:
    """Seconds that ``epochs`` more take, as the last ones did; None before the first has ended."""
    rows = [row for row in last_rows(timings)[:RECENT] if isinstance(row.get("seconds"), int | float)]
    if not rows:
        return None
    each = seconds_of(rows[::-1]) / len(rows)
    try:
        since = time.time() - os.stat(timings).st_mtime
    except OSError:
        since = 0.0
    return each * epochs - min(max(since, 0.0), each) if epochs > 0 else 0.0
