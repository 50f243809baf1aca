"""``perturblab plan``: the runs of a grid, what is there of them, and what the rest will take."""

from __future__ import annotations

from dataclasses import replace

from perturblab.gridcommands import PlanGrid
from perturblab.gridcommands.calibrate import calibrate
from perturblab.gridcommands.read import (
    Found,
    at_once,
    counts,
    find,
    heading,
    lacking,
    line,
    rows,
    time_left,
    unfinished,
)
from perturblab.grids.estimate import Estimate, Measured, estimate, took
from perturblab.grids.states import Seen, look, only
from perturblab.terminal import duration, say


def plan(s: PlanGrid) -> None:
    found = find(s)
    heading(found)
    todo, tried = only(found.seen, "missing", "interrupted"), list[Measured]()
    if s.calibrate and not lacking(found):
        tried = calibrate(found.seen, todo, s.calibrate, found.grid.epochs, at_once(s, todo))
        found = replace(found, seen=look(found.plan))
        todo = only(found.seen, "missing", "interrupted")
    expected = estimate(found.plan, found.seen, unfinished(found.seen), found.grid.epochs, tried)
    table(s, found, expected)
    say(counts(found.seen))
    if unfinished(found.seen):
        say(f"time: {time_left(s, found.seen, expected)}")
        say(f"disk: {disk(expected)}")
    if todo:
        say(f"next: {line(s, 'run')}")
    else:
        say("nothing is missing" if not only(found.seen, "failed", "running") else "nothing else is missing")


def table(s: PlanGrid, found: Found, expected: Estimate) -> None:
    """A row per run: its name, its state, and the time that its epochs took, or (~) are expected to take."""
    width = max(len(one.cell.name) for one in found.seen)
    say(f"{'run':<{width}}  {'status':<11} {'time':>9}")
    for one in rows(found.seen, s.all):
        say(f"{one.cell.name:<{width}}  {one.state:<11} {time_of(one, expected):>9}".rstrip())


def time_of(one: Seen, expected: Estimate) -> str:
    if one.state in ("missing", "interrupted"):
        seconds = (expected.seconds or {}).get(one.cell.name)
        return "" if seconds is None else f"~{duration(seconds)}"
    epochs, seconds = took(one)
    return duration(seconds) if epochs else ""


def disk(expected: Estimate) -> str:
    return (
        "unknown until one run is done"
        if expected.size is None
        else f"about {in_bytes(expected.size)} more, from the size of finished runs"
    )


def in_bytes(size: float) -> str:
    """``1536 -> "1.5 kB"``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
