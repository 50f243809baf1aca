"""What every command of a grid does first: its runs, their folders, how far each is. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TypeVar

from perturblab.gridcommands import OfAGrid, WatchGrid, WhichGrid, words_of
from perturblab.grids import Grid, function_of
from perturblab.grids.asked import read
from perturblab.grids.cells import Runs, plan_of, runs_of
from perturblab.grids.estimate import Estimate
from perturblab.grids.states import Seen, count, look, only
from perturblab.launch.cards import at_a_time, cards_for
from perturblab.planning import settled
from perturblab.settings import documented_flag
from perturblab.studies import STUDIES
from perturblab.sweep import Plan
from perturblab.terminal import counted, duration, say

T = TypeVar("T")
SHOWN = 40  # rows of a table, unless all are asked for


@dataclass(frozen=True)
class Found:
    """A grid with its plan and the state of each of its runs."""

    runs: Runs
    plan: Plan
    seen: list[Seen]

    @property
    def grid(self) -> Grid:
        return self.runs.grid


def find(s: WhichGrid) -> Found:
    runs = runs_asked(s)
    plan = planned(runs)
    return Found(runs, plan, look(plan))


def planned(runs: Runs) -> Plan:
    """The plan of these runs, with a precision that this machine has decided where it was left to it."""
    plan = plan_of(runs)
    return replace(plan, cells=[settled(cell) for cell in plan.cells])


def runs_asked(s: WhichGrid) -> Runs:
    """The runs that the words mean; a line where some of them are the same. UserError for a slip in the words."""
    runs = runs_of(read(s.grid, s.given, STUDIES), s.runs_dir)
    if runs.equal:
        are = "is" if runs.equal == 1 else "are"
        say(
            f"{runs.equal} more would be equal to one of these {counted(len(runs.settings), 'run')}, and {are} left out"
        )
    return runs


def heading(found: Found) -> None:
    """The study, its axes, and where the runs are."""
    say(title(found))
    if told := lacking(found):
        say(told)


def lacking(found: Found) -> str:
    """What the runs need and do not have yet, as a line; "" for nothing."""
    return str(function_of(found.grid.lacks)(found.runs.settings)) if found.grid.lacks else ""


def title(found: Found) -> str:
    """``"masked-loss: 6 runs (3 seed x 2 lr) in perturblab_runs/masked-loss"``."""
    axes = " x ".join(f"{len(values)} {name}" for name, values in found.runs.axes.items())
    where = found.seen[0].run.path.parent
    return f"{found.runs.study}: {counted(len(found.seen), 'run')}{f' ({axes})' if axes else ''} in {where}"


def rows(every: Sequence[T], all: bool) -> Iterator[T]:
    """Those that a table shows, and after them a line that says how many it leaves out."""
    yield from every if all else every[:SHOWN]
    if not all and len(every) > SHOWN:
        say(f"... and {len(every) - SHOWN} more (--all shows them)")


def counts(seen: Sequence[Seen]) -> str:
    """``"2 done, 22 missing"``."""
    return ", ".join(f"{n} {state}" for state, n in count(seen).items() if n) or "no runs"


def then(found: Found) -> str:
    """The command that reads what the runs export, with their folders where these are not the documented ones."""
    words = found.grid.then.split()
    if not words:
        return ""
    reader = import_module(STUDIES[words[1]]).COMMANDS[words[2]].settings
    for name, info in reader.model_fields.items():
        values = {getattr(one, name, None) for one in found.runs.settings}
        same = len(values) == 1 and not values & {None, reader.default_of(name)}
        if same and name.endswith(("_dir", "data", "base_model")) and name not in found.grid.fixed:
            words += [documented_flag(name, info), str(values.pop())]
    return shlex.join(words)


def unfinished(seen: Iterable[Seen]) -> list[Seen]:
    """What an estimate is of: what runs now, and what ``run`` would start."""
    return only(seen, "running", "missing", "interrupted")


def time_left(s: OfAGrid | WatchGrid, seen: Sequence[Seen], found: Estimate) -> str:
    """``"about 3:40:00 with 2 at a time, from what 2 runs took per epoch"``; as many as run now, if these are more."""
    if found.seconds is None:
        return f"unknown; to try one run of each kind for a moment: {line(s, 'plan')} --calibrate 30"
    jobs = s.jobs or max(at_once(s, seen), len(only(seen, "running")))
    told = f"with {jobs} at a time, from what {counted(found.n, 'run')} took per epoch"
    return f"about {duration(found.wall(jobs))} {told}"


def at_once(s: OfAGrid | WatchGrid, seen: Sequence[Seen]) -> int:
    """How many runs at a time ``run`` would start here: on each CUDA card, else on each core."""
    cards = cards_for((one.cell.settings for one in seen), s.jobs)
    return at_a_time(s.jobs, cards, getattr(s, "per_gpu", 1))


def line(s: WhichGrid, command: str) -> str:
    return shlex.join(words_of(s, command))
