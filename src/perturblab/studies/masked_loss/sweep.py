"""The grid of masked-loss: a thin face of ``perturblab.sweep``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

from perturblab.cpus import cores
from perturblab.launch import Cell, Outcome
from perturblab.launch.script import write_script
from perturblab.planning import decided
from perturblab.runs import RunFolder, run_folder
from perturblab.studies.masked_loss import Sweep, Train
from perturblab.sweep import Plan, explain_failures, run_plan
from perturblab.terminal import duration, say

# What every run imports; torch brings in its compiler with the first optimiser, whether it compiles or not.
PRELOAD = ("perturblab.studies.masked_loss.run", "torch._dynamo", "sklearn.datasets")


def sweep(s: Sweep) -> None:
    """Run what is missing of the grid, or write the script that does."""
    plan = plan_of(s)
    if s.mode == "generate":
        write_script(plan.cells, s.output_script, s.prefix)
        say(f"{s.output_script}: {len(plan.cells)} runs; start it, or: "
            f"cat {s.output_script} | grep '^{s.prefix.split()[0]}' | parallel -j 4")  # fmt: skip
        return
    jobs = 1 if s.mode == "sequential" else s.jobs or default_jobs(s)
    outcomes = run_plan(plan, jobs)
    show(plan, outcomes)
    explain_failures(plan, outcomes)


def plan_of(s: Sweep) -> Plan:
    return plan_of_runs(with_devices(s))


def plan_of_runs(runs: Iterable[Train]) -> Plan:
    return Plan([Cell(t.name, t) for t in runs], folder, exports, PRELOAD)


def folder(cell: Cell) -> RunFolder:
    settings = cell.settings
    assert isinstance(settings, Train)
    settings = decided(settings)
    return run_folder(settings, settings.name, settings.runs_dir)


def exports(cell: Cell) -> Iterable[Path]:
    assert isinstance(cell.settings, Train)
    return cell.settings.exports.values()


def with_devices(s: Sweep) -> Iterator[Train]:
    """The cells; with several at a time and several CUDA cards, spread over the cards."""
    several = s.mode == "parallel" and s.device in ("auto", "cuda")
    cards = cycle(range(cuda_cards())) if several and cuda_cards() > 1 else None
    for cell in s.grid():
        yield cell.model_copy(update={"device": f"cuda:{next(cards)}"}) if cards else cell


def default_jobs(s: Sweep) -> int:
    """One run per CUDA card, or one per core where there is none."""
    return (cuda_cards() if s.device != "cpu" else 0) or cores()


def cuda_cards() -> int:
    if shutil.which("nvidia-smi") is None:  # spares the 2 s of importing torch
        return 0
    import torch

    return torch.cuda.device_count()


def show(plan: Plan, outcomes: list[Outcome]) -> None:
    """The table of what happened."""
    say(f"{'run':<28} {'status':<11} {'time':>8} {'test acc (%)':>13} {'gap (points)':>13}")
    for outcome in outcomes:
        run = plan.folder(outcome.cell)
        found = run.results() if outcome.status in ("done", "skipped") else {}
        numbers = [found.get(key) for key in ("final_test_acc", "final_gen_gap")]
        shown = [f"{n:13.2f}" if n is not None else f"{'-':>13}" for n in numbers]
        time = duration(outcome.seconds) if outcome.seconds else "-"
        say(f"{outcome.cell.name:<28} {outcome.status:<11} {time:>8} {' '.join(shown)}")
