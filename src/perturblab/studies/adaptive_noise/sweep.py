"""The grid of adaptive-noise with its baselines, its log and its paired table: a thin face of ``perturblab.sweep``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from perturblab.files import write_json
from perturblab.launch import Cell, Outcome
from perturblab.launch.cards import OPEN, at_a_time, cards_for
from perturblab.launch.local import over
from perturblab.launch.script import hand_over
from perturblab.planning import planned
from perturblab.settings import documented_flag, is_where
from perturblab.studies.adaptive_noise import Sweep, Train
from perturblab.sweep import Plan, explain_failures, run_plan, table
from perturblab.terminal import UserError, say, warn

SHOWN = {"test_acc": "test acc (%)", "best_accuracy": "val acc (%)"}


def sweep(s: Sweep) -> None:
    """Run what is missing of the grid and compare every arm with its baseline, or write the script that does."""
    plan = plan_of(s)
    if s.mode == "generate":
        hand_over(plan.cells, s.output_script, s.prefix)
        return
    found = cards(s)
    jobs = 1 if s.mode == "sequential" else at_a_time(s.jobs, found, s.per_gpu)
    began = datetime.now()
    outcomes = run_plan(plan, jobs, over(found, s.per_gpu, jobs))
    show(plan, outcomes)
    log = write_log(s, plan, outcomes, began)
    say(f"\nlog: {log}")
    compare(s, plan)
    explain_failures(plan, outcomes)


def plan_of(s: Sweep) -> Plan:
    """Every cell, checked before any of them runs. UserError for settings that contradict each other."""
    if s.controller == "published" and set(s.arms) != {"adaptive"}:
        raise UserError("--controller published knows no static noise: leave --arms at adaptive")
    runs = list(with_cards(s))
    check(runs)
    warn_of_idle(s, runs)
    return plan_of_runs(runs)


def warn_of_idle(s: Sweep, runs: Sequence[Train]) -> None:
    """One line for the flags that were given and act in no run of the grid: runs have such fields reset."""
    given = [name for name in Train.model_fields if name in s.model_fields_set & Sweep.model_fields.keys()]
    idle = [
        documented_flag(name, Sweep.model_fields[name])
        for name in given
        if not is_where(Sweep.model_fields[name])
        and getattr(s, name) != Train.default_of(name)
        and all(getattr(one, name) == Train.default_of(name) for one in runs)
    ]
    if idle:
        warn(f"without effect beside the other flags in every run of this sweep: {', '.join(idle)}")


def plan_of_runs(runs: Iterable[Train]) -> Plan:
    return planned(runs, "perturblab.studies.adaptive_noise.run", exports)


def check(runs: Iterable[Train]) -> None:
    """UserError for a run whose settings contradict each other."""
    from perturblab.studies.adaptive_noise.control import controller_of  # torch, so only here

    for one in runs:
        controller_of(one)


def train_of(cell: Cell) -> Train:
    assert isinstance(cell.settings, Train)
    return cell.settings


def exports(cell: Cell) -> Iterable[Path]:
    """The files of a finished run: those of its metrics (the checkpoint's name may be another run's by now)."""
    s = train_of(cell)
    return [s.metrics_dir / "all_metrics.json"]


def cards(s: Sweep) -> list[int]:
    """The CUDA cards over which runs are spread. UserError where some were asked for and there is none."""
    there, asked = cards_for([s]), [int(word) for word in s.gpu.split(",")]
    if "gpu" not in s.model_fields_set or s.device not in OPEN:
        return there
    if not there:
        raise UserError(f"--gpu {s.gpu}: there is no CUDA card here; leave it out, or add --device cpu")
    if max(asked) >= len(there):
        raise UserError(f"--gpu {s.gpu}: there are {len(there)} CUDA cards, numbered from 0")
    return asked


def with_cards(s: Sweep) -> Iterator[Train]:
    """The cells. One at a time, or in a script, each on the next of the cards; else it gets one as it starts."""
    found = cards(s)
    turn = cycle(found)
    later = s.mode == "parallel" and s.jobs != 1 and len(found) > 1
    for one in s.grid():
        device = s.device if later or not found else f"cuda:{next(turn)}"
        yield one.model_copy(update={"gpu": Train.default_of("gpu"), "device": device}) if found else one


def show(plan: Plan, outcomes: Sequence[Outcome]) -> None:
    """The table of what happened."""

    def numbers(outcome: Outcome) -> list[float | None]:
        final = final_of(plan, outcome)
        return [100 * final[key] if key in final else None for key in SHOWN]

    width = max(len(cell.name) for cell in plan.cells)
    table(outcomes, tuple(SHOWN.values()), numbers, width, lambda outcome: status(plan, outcome))


def status(plan: Plan, outcome: Outcome) -> str:
    """How the run ended; of a failed one whether it diverged."""
    run = plan.folder(outcome.cell)
    if outcome.status == "failed" and (run.path / "failure.json").exists():
        return run.failure("kind")
    return outcome.status


def final_of(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    if outcome.status not in ("done", "skipped"):
        return {}
    found: dict[str, Any] = plan.folder(outcome.cell).results()["final_metrics"]
    return found


def write_log(s: Sweep, plan: Plan, outcomes: Sequence[Outcome], began: datetime) -> Path:
    """``experiments_{time}/experiments_log.json``, as the document's script leaves it: every run, its settings, its end."""
    path = Path(s.checkpoint_dir) / f"experiments_{began:%Y%m%d_%H%M%S}" / "experiments_log.json"
    number = 1
    while path.exists():  # two sweeps in one second
        number += 1
        path = path.parent.with_name(f"experiments_{began:%Y%m%d_%H%M%S}_{number}") / path.name
    runs = [
        {
            "name": outcome.cell.name, "run_id": plan.folder(outcome.cell).id, "status": status(plan, outcome),
            "seconds": round(outcome.seconds, 1), "reason": outcome.reason, "command": outcome.cell.line(s.prefix),
            "settings": train_of(outcome.cell).identity(), "final_metrics": final_of(plan, outcome) or None,
        }
        for outcome in outcomes
    ]  # fmt: skip
    write_json(path, {"started": began.isoformat(timespec="seconds"), "runs": json.loads(json.dumps(runs))})
    return path


def compare(s: Sweep, plan: Plan) -> None:
    """Pictures, paired tables and verdict over the finished runs of this grid."""
    from perturblab.studies.adaptive_noise.figures import compare_runs

    ids = {plan.folder(cell).id for cell in plan.cells if plan.folder(cell).done}
    if ids:
        compare_runs(Path(s.checkpoint_dir), Path(s.plots_dir), ids)
