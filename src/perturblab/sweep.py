"""The runs of a grid: which are done, which are missing, and doing the missing ones."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from perturblab.claims import is_held
from perturblab.launch import Cell, Launch, Outcome
from perturblab.launch.ends import KILLED
from perturblab.launch.local import run_cells
from perturblab.runs import RunFolder
from perturblab.signals import stop_on_signals
from perturblab.terminal import UserError, duration, progress, say

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
        return self.folder(cell).done and all(path.exists() for path in self.exports(cell))

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
        say(f"{len(plan.cells) - len(todo)} of {len(plan.cells)} runs are done already")
    ended: dict[str, Outcome] = {}
    while todo:
        outcomes = _started(plan, todo, jobs, launch)
        ended |= {outcome.cell.name: outcome for outcome in outcomes}
        others = [outcome.cell for outcome in outcomes if outcome.status == "elsewhere"]
        todo = _freed(plan, others, ended) if wait and others else []
    return [ended.get(cell.name, Outcome(cell, "skipped", reason="done before")) for cell in plan.cells]


def _started(plan: Plan, cells: list[Cell], jobs: int, launch: Launch | None) -> list[Outcome]:
    """Run these cells but for those which, as their turn comes, another worker has done, or works on ("elsewhere")."""
    ended, others = Counter[str](), list[Outcome]()
    alone = jobs == 1 and launch is None
    bar = nullcontext(lambda done, note="": None) if alone else progress("runs", len(cells))
    with stop_on_signals() as stop, bar as advance:

        def due() -> Iterator[Cell]:
            for cell in cells:
                if is_held(plan.folder(cell).path):
                    others.append(Outcome(cell, "elsewhere"))
                elif not plan.complete(cell):
                    yield cell
                    continue
                ended["others"] += 1

        def tell(outcome: Outcome) -> None:
            record(plan, outcome)
            ended[outcome.status] += 1
            advance(ended.total(), f"{outcome.cell.name} {outcome.status} in {duration(outcome.seconds)}")

        log = (lambda cell: None) if alone else plan.log
        return [*(launch or run_cells)(due(), log, jobs, stop, tell, plan.preload), *others]


def _freed(plan: Plan, others: list[Cell], ended: dict[str, Outcome]) -> list[Cell]:
    """Wait until other workers have ended their cells; those that they leave undone, for us to do."""
    say(f"waiting for {len(others)} runs of other processes; Ctrl-C ends the wait, not the runs")
    with stop_on_signals() as stop:
        while all(is_held(plan.folder(cell).path) for cell in others):
            stop.check()
            time.sleep(WAIT_S)
    left = list[Cell]()
    for cell in others:
        run = plan.folder(cell)
        if run.status == "failed":
            ended[cell.name] = Outcome(cell, "failed", reason=run.failure())
        elif plan.complete(cell):
            ended[cell.name] = Outcome(cell, "skipped", reason="done by another process")
        else:
            left.append(cell)
    return left


def record(plan: Plan, outcome: Outcome) -> None:
    """A run that was killed could not say so itself: note it, so that ``status`` tells why and ``retry`` finds it."""
    run = plan.folder(outcome.cell)
    if outcome.reason.startswith(KILLED) and run.status == "interrupted":
        with contextlib.suppress(UserError), run.claimed():
            run.fail("killed", outcome.reason)


def explain_failures(
    plan: Plan, outcomes: Sequence[Outcome], then: str = "the same command runs only what is missing"
) -> None:
    """Say which runs failed and why, and raise SomeFailed if any did. ``then``: what to do about it."""
    failed = [outcome for outcome in outcomes if outcome.status in ("failed", "not started")]
    reasons: dict[str, list[str]] = {}
    for outcome in failed:
        folder = plan.folder(outcome.cell)
        reason = folder.failure() if (folder.path / "failure.json").exists() else outcome.reason
        reasons.setdefault(f"{outcome.status}: {reason}", []).append(outcome.cell.name)
    elsewhere = sum(outcome.status == "elsewhere" for outcome in outcomes)
    if elsewhere:
        say(f"{elsewhere} are being run by another process")
    for reason, names in reasons.items():
        say(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} {reason}")
    if failed:
        say(f"{len(failed)} of {len(outcomes)} runs failed; {then}")
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
