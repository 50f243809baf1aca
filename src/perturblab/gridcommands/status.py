"""``perturblab status``: how far a grid is, from this or another terminal or machine."""

from __future__ import annotations

from collections.abc import Sequence

from perturblab.gridcommands import OfAGrid, StatusOfGrid, WatchGrid
from perturblab.gridcommands.read import SHOWN, Found, find, heading, line, then, time_left, unfinished
from perturblab.grids import function_of
from perturblab.grids.estimate import estimate
from perturblab.grids.states import NOT_EXPORTED, Seen, count, last_epoch, names, only, reasons
from perturblab.terminal import say


def status(s: StatusOfGrid) -> None:
    found = find(s)
    heading(found)
    for state, n in count(found.seen).items():
        say(f"{state:<11} {n:>6}")
    running(found, s.all)
    troubles(found.seen)
    if found.grid.verify:
        for told in function_of(found.grid.verify)(found.plan):
            say(told)
    go_on(s, found)


def running(found: Found, every: bool) -> None:
    """The epoch of each run that a process is working on now."""
    those = only(found.seen, "running")
    for one in those if every else those[:SHOWN]:
        epochs = getattr(one.cell.settings, found.grid.epochs)
        say(f"running: {one.cell.name}, epoch {last_epoch(one.run)}/{epochs} done")
    if not every and len(those) > SHOWN:
        say(f"running: {len(those) - SHOWN} more (--all shows them)")


def troubles(seen: Sequence[Seen]) -> None:
    """What failed, a line for each reason, and what is done but not exported."""
    for told in reasons(only(seen, "failed")):
        say(f"failed: {told}")
    unexported = [one for one in only(seen, "interrupted") if not one.exported]
    if unexported:
        say(f"interrupted: {names(unexported)}: {NOT_EXPORTED}")


def go_on(s: OfAGrid | WatchGrid, found: Found) -> None:
    """The command that does what is left."""
    left, failed = only(found.seen, "missing", "interrupted"), only(found.seen, "failed")
    if todo := unfinished(found.seen):
        say(f"time: {time_left(s, found.seen, estimate(found.plan, found.seen, todo, found.grid.epochs))}")
    if left:
        say(f"go on: {line(s, 'run')}")
    if failed:
        say(f"again what failed: {line(s, 'retry')}")
    if not todo and not failed:
        say(f"all runs are done{f'; next: {then(found)}' if found.grid.then else ''}")
