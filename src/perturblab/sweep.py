"""The runs of a grid: which are done, which are missing, and doing the missing ones."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from perturblab.attempts import note_kill
from perturblab.claims import is_held
from perturblab.exports import taken
from perturblab.launch import Cell, Launch, Outcome
from perturblab.launch.ends import KILLED
from perturblab.launch.local import run_cells
from perturblab.runs import RunFolder
from perturblab.signals import stop_on_signals
from perturblab.terminal import UserError, counted, duration, progress, say

WAIT_S = 1.0  # between two looks at the runs of others


class SomeFailed(Exception):
    """Runs of a sweep failed: exit code 1. The table has told which."""


@dataclass(frozen=True)
class Plan:
    """Cells of a grid with the run folder of each, the files that a finished run exports, and modules to load once."""

    cells: Sequence[Cell]
    folder: Callable[[Cell], RunFolder]
    exports: Callable[[Cell], Iterable[Path]]
    preload: tuple[str, ...] = ()

    def missing(self) -> list[Cell]:
        """Cells whose run is not done, or whose exports are not there (a kill came between), in order."""
        return [cell for cell in self.cells if not self.complete(cell)]

    def complete(self, cell: Cell) -> bool:
        run = self.folder(cell)
        return run.done and self.exported(cell, run)

    def exported(self, cell: Cell, run: RunFolder) -> bool:
        """Whether its files are there and, as far as they tell, its own: another run may have taken their names."""
        paths = list(self.exports(cell))
        return all(os.path.exists(path) for path in paths) and not taken(paths, run.id)

    def log(self, cell: Cell) -> Path:
        """Where a cell's output goes when several run at a time."""
        return self.folder(cell).path / "log.txt"


def run_plan(plan: Plan, jobs: int, launch: Launch | None = None, wait: bool = True) -> list[Outcome]:
    """Run what is missing, ``jobs`` at a time, going on after failures; an outcome per cell, in order.

    One at a time shows each run's own progress; several show one bar over the runs, output in their log files, and
    so does ``launch``, another way to start them than as processes of this machine. Other workers may be at the same
    cells, here or on other machines: theirs are left out and, with ``wait``, waited for; those of the dead are done.
    """
    todo = plan.missing()
    if len(todo) < len(plan.cells):
        say(f"{len(plan.cells) - len(todo)} of {counted(len(plan.cells), 'run')} are done already")
    ended: dict[str, Outcome] = {}
    while todo:
        outcomes = _started(plan, todo, jobs, launch)
        ended |= {outcome.cell.name: outcome for outcome in outcomes}
        others = [outcome.cell for outcome in outcomes if outcome.status == "elsewhere"]
        todo = _freed(plan, others, ended) if wait and others else []
    return [ended.get(cell.name, Outcome(cell, "skipped", reason="done before")) for cell in plan.cells]


def _started(plan: Plan, cells: list[Cell], jobs: int, launch: Launch | None) -> list[Outcome]:
    """Run these cells but for those which, as their turn comes, another worker has done, tried, or works on."""
    ended, others = Counter[str](), list[Outcome]()
    before = {cell.name: _failed_at(plan.folder(cell)) for cell in cells}
    alone = jobs == 1 and launch is None
    bar = nullcontext(lambda done, note="": None) if alone else progress("runs", len(cells))
    with stop_on_signals() as stop, bar as advance:

        def due() -> Iterator[Cell]:
            for cell in cells:
                run = plan.folder(cell)
                if is_held(run.path):
                    others.append(Outcome(cell, "elsewhere"))
                elif _failed_at(run) not in (None, before[cell.name]):
                    others.append(Outcome(cell, "failed", reason=_reason(run)))
                elif not plan.complete(cell):
                    yield cell
                    continue
                ended["others"] += 1

        def tell(outcome: Outcome) -> None:
            outcome = _truth(plan, outcome)
            if outcome.status == "failed" and outcome.reason.startswith(KILLED):
                note_kill(plan.folder(outcome.cell).path, outcome.reason)
            ended[outcome.status] += 1
            advance(ended.total(), f"{outcome.cell.name} {outcome.status} in {duration(outcome.seconds)}")

        log = (lambda cell: None) if alone else plan.log
        mine = (launch or run_cells)(due(), log, jobs, stop, tell, plan.preload)
        return [*(_truth(plan, outcome) for outcome in mine), *others]


def _truth(plan: Plan, outcome: Outcome) -> Outcome:
    """A run may be done though nobody could tell its launcher how it ended."""
    done = outcome.status == "failed" and plan.complete(outcome.cell)
    return replace(outcome, status="done", reason="") if done else outcome


def _freed(plan: Plan, others: list[Cell], ended: dict[str, Outcome]) -> list[Cell]:
    """Wait until other workers have ended their cells; those that they leave undone, for us to do."""
    say(f"waiting for {counted(len(others), 'run')} of other processes; Ctrl-C ends the wait, not the runs")
    with stop_on_signals() as stop:
        waiting = True
        while waiting:
            time.sleep(WAIT_S)
            stop.check()
            waiting = all(is_held(plan.folder(cell).path) for cell in others)
    left = list[Cell]()
    for cell in others:
        run = plan.folder(cell)
        if run.status == "failed":
            ended[cell.name] = Outcome(cell, "failed", reason=_reason(run))
        elif plan.complete(cell):
            ended[cell.name] = Outcome(cell, "skipped", reason="done by another process")
        else:
            left.append(cell)
    return left


def _failed_at(run: RunFolder) -> int | None:
    """When its last attempt failed (nanoseconds); None if it did not."""
    try:
        return os.stat(run.path / "failure.json").st_mtime_ns
    except OSError:
        return None


def _reason(run: RunFolder, otherwise: str = "it failed in another process") -> str:
    try:
        return run.failure()
    except UserError:  # it left no note, another process tries it again, or the note is damaged
        return otherwise


def explain_failures(
    plan: Plan,
    outcomes: Sequence[Outcome],
    then: str = "the same command runs only what is missing",
    go_on: str = "the same command goes on",
) -> None:
    """Say which runs failed and why, or were stopped, and raise SomeFailed if any. ``then``, ``go_on``: what to do."""
    failed = [outcome for outcome in outcomes if outcome.status in ("failed", "not started")]
    reasons: dict[str, list[str]] = {}
    for outcome in failed:
        reason = _reason(plan.folder(outcome.cell), outcome.reason)
        reasons.setdefault(f"{outcome.status}: {reason}", []).append(outcome.cell.name)
    elsewhere = sum(outcome.status == "elsewhere" for outcome in outcomes)
    if elsewhere:
        say(f"being run by another process: {elsewhere}")
    for reason, names in reasons.items():
        say(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {reason}")
    if failed:
        say(f"{len(failed)} of {counted(len(outcomes), 'run')} failed; {then}")
    stopped = [outcome.cell.name for outcome in outcomes if outcome.status == "stopped"]
    if stopped:
        say(
            f"{', '.join(stopped[:3])}{', ...' if len(stopped) > 3 else ''}: stopped from outside, state saved; {go_on}"
        )
    if failed or stopped:
        raise SomeFailed


def table(
    outcomes: Sequence[Outcome],
    columns: Sequence[str],
    numbers: Callable[[Outcome], Sequence[float | None]],
    width: int,
    status: Callable[[Outcome], str] = lambda outcome: outcome.status,
) -> None:
    """What happened, a row per run: its name, how it ended, the time it took and its numbers."""
    say(f"{'run':<{width}} {'status':<11} {'time':>8} " + " ".join(f"{name:>13}" for name in columns))
    for outcome in outcomes:
        shown = [f"{'-':>13}" if n is None else f"{n:13.2f}" for n in numbers(outcome)]
        time = duration(outcome.seconds) if outcome.seconds else "-"
        say(f"{outcome.cell.name:<{width}} {status(outcome):<11} {time:>8} {' '.join(shown)}")
