"""``perturblab run`` and ``perturblab retry``: do what is missing of a grid, or only what failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from perturblab.exports import taken
from perturblab.gridcommands import RetryGrid, RunGrid
from perturblab.gridcommands.read import SHOWN, Found, counts, line, planned, rows, runs_asked, then
from perturblab.grids import function_of
from perturblab.grids.states import Seen, State, look, only
from perturblab.launch import Cell, Launch, Outcome
from perturblab.launch.arrays import JobFlags, Resources, hand_over, write_array
from perturblab.launch.cards import at_a_time, cards_for
from perturblab.launch.dask_cluster import JOBS, Cluster, check_installed
from perturblab.launch.local import over
from perturblab.launch.script import hand_over as hand_over_script
from perturblab.sweep import Plan, SomeFailed, explain_failures, run_plan
from perturblab.terminal import UserError, counted, duration, say, warn

JOBS_OF = ("sge", "slurm", "dask with --cluster")
USED_BY = {
    **dict.fromkeys(("mem", "time", "gpu", "environment"), JOBS_OF),
    **dict.fromkeys(("array", "output_dir", "submit"), ("sge", "slurm")),
    **dict.fromkeys(("address", "cluster"), ("dask",)),
    **dict.fromkeys(("per_gpu", "wait", "all"), ("local", "dask")),
    "prefix": ("script", "sge", "slurm", "dask"),
    "jobs": ("local", "sge", "slurm", "dask"),
    "output": ("script",),
}
"""Of flags that some launchers leave unused, those that use them."""


def run(s: RunGrid) -> None:
    """Missing and interrupted runs; with ``--wait`` also those that another process works on, should it die."""
    others: tuple[State, ...] = ("running",) if s.wait and s.launcher in ("local", "dask") else ()
    carry_out(s, ("missing", "interrupted", *others))


def retry(s: RetryGrid) -> None:
    """Failed runs."""
    carry_out(s, ("failed",))


def carry_out(s: RunGrid, states: Sequence[State]) -> None:
    """Start the runs in these states, or write what does. SomeFailed if runs failed, now or before."""
    check(s)
    runs = runs_asked(s)
    if runs.grid.prepare:
        function_of(runs.grid.prepare)(runs.settings)
    plan = planned(runs)
    found = Found(runs, plan, look(plan))
    todo = [one for one in found.seen if one.state in states or _only_to_export(one)]
    say(f"{runs.study}: {counted(len(found.seen), 'run')}: {counts(found.seen)}")
    if not todo:
        say("nothing to run again: no run failed" if "failed" in states else "nothing is missing")
        leave(s, found, states)
        return
    warn_of_names(plan, todo)
    if s.launcher not in ("local", "dask"):
        write(s, runs.study, [one.cell for one in todo])
        leave(s, found, states, ends=False)
        return
    start(s, found, todo)
    leave(s, found, states)


def _only_to_export(one: Seen) -> bool:
    """A run that is done and could not write its files: nothing speaks against trying that again."""
    return one.state == "failed" and one.run.done


def check(s: RunGrid) -> None:
    """UserError for flags that mean nothing beside the launcher, and for a launcher that is not installed."""
    given = s.not_default()
    launcher = s.launcher if s.cluster == "local" else f"{s.launcher} with --cluster"
    for name, those in USED_BY.items():
        if name in given and not launcher.startswith(those):
            raise UserError(f"--{name} needs --launcher {' or '.join(', '.join(those).rsplit(', ', 1))}")
    for name in ("jobs", "cluster", "per_gpu"):
        if s.address and name in given:
            raise UserError(f"--address names workers that are there: leave --{name} out")
    if s.launcher == "dask":
        check_installed()


def warn_of_names(plan: Plan, todo: Sequence[Seen]) -> None:
    """Say before it happens that exported files of other runs are in the way of these: their logs would tell later."""
    found = [path for one in todo if (path := taken(list(plan.exports(one.cell)), one.run.id))]
    if found:
        more = f" and {len(found) - 1} more hold" if found[1:] else " holds"
        keep = (
            "; --set suffix=NAME keeps both" if "suffix" in type(todo[0].cell.settings).model_fields else ""
        )
        warn(f"{found[0]}{more} the results of other settings and will be replaced{keep}")


def start(s: RunGrid, found: Found, todo: Sequence[Seen]) -> None:
    """Run them, here or on the workers of Dask, and say how each ended."""
    plan = replace(found.plan, cells=[one.cell for one in todo])
    jobs, launch = launcher(s, plan)
    say(
        f"{len(todo)} to run, "
        + (f"{min(jobs, len(todo))} at a time" if jobs else f"by the workers of {s.address}")
    )
    outcomes = run_plan(plan, jobs, launch, s.wait)
    show(plan, outcomes, s.all)
    explain_failures(plan, outcomes, f"run them again with: {line(s, 'retry')}", f"go on: {line(s, 'run')}")


def launcher(s: RunGrid, plan: Plan) -> tuple[int, Launch | None]:
    """How many at a time (0: the workers decide), and what starts them."""
    here = not s.address and s.cluster == "local"
    cards = cards_for((cell.settings for cell in plan.cells), s.jobs) if here else []
    jobs = at_a_time(s.jobs, cards, s.per_gpu) if here else 0 if s.address else s.jobs or JOBS
    if s.launcher == "local":
        return jobs, over(cards, s.per_gpu, jobs)
    return jobs, Cluster(s.address, s.cluster, s, cards).run_cells


def show(plan: Plan, outcomes: Sequence[Outcome], every: bool) -> None:
    """The table of what happened, failed runs first where there are more than it shows."""
    if len(outcomes) > SHOWN:
        outcomes = sorted(outcomes, key=lambda one: one.status not in ("failed", "not started"))
    width = max(len(one.cell.name) for one in outcomes)
    say(f"{'run':<{width}}  {'status':<11} {'time':>9}")
    for one in rows(outcomes, every):
        time = duration(one.seconds) if one.seconds else "-"
        say(f"{one.cell.name:<{width}}  {one.status:<11} {time:>9}")


def leave(s: RunGrid, found: Found, states: Sequence[State], ends: bool = True) -> None:
    """Say what these states do not cover. SomeFailed where failed runs are left after work here."""
    if "running" not in states and only(found.seen, "running"):
        say(f"being run by another process: {len(only(found.seen, 'running'))}")
    failed = [] if "failed" in states else only(found.seen, "failed")
    left = [one for one in failed if not _only_to_export(one)]
    if left:
        say(f"{len(left)} failed before and are left alone; again: {line(s, 'retry')}")
        if ends:
            raise SomeFailed
    elif ends and found.grid.then and all(one.run.done for one in found.seen):
        say(f"next: {then(found)}")


# ---- other launchers -------------------------------------------------------------------------------------------------


def write(s: RunGrid, study: str, cells: Sequence[Cell]) -> None:
    """The script, or the arrays of jobs, that run these cells."""
    if s.launcher == "script":
        hand_over_script(cells, s.output, s.prefix)
        return
    flags = {name: getattr(s, name) for name in Resources.model_fields}
    jobs = JobFlags.parse({**flags, "scheduler": s.launcher, "submit": s.submit})
    parts = [cells[first : first + s.array] for first in range(0, len(cells), s.array)]
    names = [study] if len(parts) == 1 else [f"{study}-{n}" for n in range(1, len(parts) + 1)]
    hand_over(
        [write_array(part, jobs, name, at_once=s.jobs) for part, name in zip(parts, names, strict=True)], jobs
    )
