"""The grid of masked-loss: a thin face of ``perturblab.sweep``."""

from __future__ import annotations

from collections.abc import Iterable

from perturblab.launch import Outcome
from perturblab.launch.cards import at_a_time, cards_for
from perturblab.launch.local import over
from perturblab.launch.script import hand_over
from perturblab.planning import planned
from perturblab.studies.masked_loss import Sweep, Train
from perturblab.sweep import Plan, explain_failures, run_plan, table


def sweep(s: Sweep) -> None:
    """Run what is missing of the grid, or write the script that does."""
    plan = plan_of(s)
    if s.mode == "generate":
        hand_over(plan.cells, s.output_script, s.prefix)
        return
    jobs = 1 if s.mode == "sequential" else s.jobs
    cards = cards_for([s], jobs)
    jobs = at_a_time(jobs, cards, s.per_gpu)
    outcomes = run_plan(plan, jobs, over(cards, s.per_gpu, jobs))
    show(plan, outcomes)
    explain_failures(plan, outcomes)


def plan_of(s: Sweep) -> Plan:
    return plan_of_runs(s.grid())


def plan_of_runs(runs: Iterable[Train]) -> Plan:
    return planned(runs, "perturblab.studies.masked_loss.run")


def show(plan: Plan, outcomes: list[Outcome]) -> None:
    """The table of what happened."""

    def numbers(outcome: Outcome) -> list[float | None]:
        run = plan.folder(outcome.cell)
        found = run.results() if outcome.status in ("done", "skipped") else {}
        return [found.get(key) for key in ("final_test_acc", "final_gen_gap")]

    table(outcomes, ("test acc (%)", "gap (points)"), numbers, 28)
