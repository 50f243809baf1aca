"""``--model all``: the same command for each documented model, one after another, a failing one stopping no other; the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from perturblab.launch import Cell
from perturblab.launch.local import run_cells
from perturblab.planning import PRELOAD, decided, exports
from perturblab.runs import RunFolder, run_folder
from perturblab.signals import stop_on_signals
from perturblab.studies.layerwise_mi import ALL, Evaluate, Train, seeded_name
from perturblab.sweep import Plan, SomeFailed
from perturblab.terminal import UserError, duration, say

S = TypeVar("S", Train, Evaluate)
IMPORTED = (
    "perturblab.studies.layerwise_mi.run",
    "perturblab.studies.layerwise_mi.evaluate",
    *PRELOAD,
)


def each_model(s: S, ending: Callable[[S], str]) -> None:
    """Run ``s`` for every model, each in a process of its own, then say how each ended. SomeFailed if any failed."""
    cells = [Cell(model, s.model_copy(update={"model": model})) for model in ALL]
    with stop_on_signals() as stop:
        outcomes = run_cells(cells, lambda cell: None, 1, stop, lambda outcome: None, IMPORTED)
    say(f"\n{s.command} of {len(cells)} models:")
    for outcome in outcomes:
        one = s.model_copy(update={"model": outcome.cell.name})
        done = outcome.status == "done"
        say(
            ending(one)
            if done
            else f"✗ {outcome.cell.name}: {outcome.status} after {duration(outcome.seconds)}, see above"
        )
    if any(outcome.status != "done" for outcome in outcomes):
        say("the same command goes on with what is missing")
        raise SomeFailed


def plan_of_runs(runs: Iterable[Train]) -> Plan:
    """UserError for ``model: all``, which is several runs."""
    runs = list(runs)
    if any(t.model == "all" for t in runs):
        raise UserError(
            f"--model all is not one run; the grid has the axis model, by default {', '.join(ALL)}"
        )
    return Plan([Cell(seeded_name(t.model, t.seed), t) for t in runs], folder, exports, IMPORTED)


def folder(cell: Cell) -> RunFolder:
    """As ``train`` names it, without torch unless the machine decides about the precision."""
    settings = cell.settings
    assert isinstance(settings, Train)
    s = decided(settings).canonical()
    return run_folder(s, seeded_name(s.model, s.seed), s.runs_dir)
