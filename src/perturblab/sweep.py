"""The runs of a grid: which are done, which are missing, and doing the missing ones."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from perturblab.launch import Cell, Launch, Outcome
from perturblab.launch.ends import KILLED
from perturblab.launch.local import run_cells
from perturblab.runs import RunFolder
from perturblab.signals import stop_on_signals
from perturblab.terminal import UserError, duration, progress, say


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
        return [cell for cell in self.cells if not self._complete(cell)]

    def _complete(self, cell: Cell) -> bool:
        return self.folder(cell).done and all(path.exists() for path in self.exports(cell))

    def log(self, cell: Cell) -> Path:
        """Where a cell's output goes when several run at a time."""
        return self.folder(cell).path / "log.txt"


def run_plan(plan: Plan, jobs: int, launch: Launch | None = None) -> list[Outcome]:
    """Run what is missing, ``jobs`` at a time, going on after failures; an outcome per cell, in order.

    One at a time shows each run's own progress; several show one bar over the runs, output in their log files, and
    so does ``launch``, another way to start them than as processes of this machine.
    """
    missing = plan.missing()
    done = len(plan.cells) - len(missing)
    if done:
        say(f"{done} of {len(plan.cells)} runs are done already")
    if jobs == 1 and launch is None:
        return _merge(plan, _one_by_one(plan, missing))
    return _merge(plan, _side_by_side(plan, missing, jobs, launch or run_cells))


def _one_by_one(plan: Plan, missing: list[Cell]) -> list[Outcome]:
    with stop_on_signals() as stop:
        return run_cells(missing, lambda cell: None, 1, stop, partial(record, plan), plan.preload)


def _side_by_side(plan: Plan, missing: list[Cell], jobs: int, launch: Launch) -> list[Outcome]:
    ended = Counter[str]()
    with stop_on_signals() as stop, progress("runs", len(missing)) as advance:

        def tell(outcome: Outcome) -> None:
            record(plan, outcome)
            ended[outcome.status] += 1
            advance(ended.total(), f"{outcome.cell.name} {outcome.status} in {duration(outcome.seconds)}")

        return launch(missing, plan.log, jobs, stop, tell, plan.preload)


def record(plan: Plan, outcome: Outcome) -> None:
    """A run that was killed could not say so itself: note it, so that ``status`` tells why and ``retry`` finds it."""
    run = plan.folder(outcome.cell)
    if outcome.reason.startswith(KILLED) and run.status == "interrupted":
        with contextlib.suppress(UserError), run.claimed():
            run.fail("killed", outcome.reason)


def _merge(plan: Plan, outcomes: list[Outcome]) -> list[Outcome]:
    by_name = {outcome.cell.name: outcome for outcome in outcomes}
    return [by_name.get(cell.name, Outcome(cell, "skipped", reason="done before")) for cell in plan.cells]


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
