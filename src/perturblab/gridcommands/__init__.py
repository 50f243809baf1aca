"""``plan``, ``run``, ``status``, ``retry``: the same four commands for the grid of every study and for a file of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from perturblab.launch.arrays import Resources
from perturblab.settings import Command, Settings, flag


class OfAGrid(Settings):
    """Which grid, and what in it is changed."""

    grid: str = flag("", "A study, for its document's grid, or a FILE.yaml.", argument=True, where=True)
    given: tuple[str, ...] = flag(
        (),
        "NAME=VALUE fixes a setting of the runs, NAME=v1,v2 makes it an axis; as often as needed.",
        "--set",
        where=True,
    )
    runs_dir: str | None = flag(
        None, "Where runs keep their state; else the file's, else ./perturblab_runs.", where=True
    )
    jobs: int = flag(
        0, "Runs at a time here; 0 is one per core, or per CUDA card.", "--jobs", "-j", where=True, ge=0
    )
    all: bool = flag(False, "Show every run, however many there are.", where=True)


class PlanGrid(OfAGrid):
    """What a grid is: its runs, which of them exist, and what the missing ones will take. Writes nothing."""

    command = "plan"


class StatusOfGrid(OfAGrid):
    """How far a grid is: how many runs are done, which run now, what failed and why, and how to go on."""

    command = "status"


class RunGrid(Resources, OfAGrid):
    """Run what is missing of a grid and go on with what was interrupted: here, by a script, or as an array of jobs.

    What failed is not tried again: `perturblab retry` does that.
    """

    command = "run"

    launcher: Literal["local", "script", "sge", "slurm"] = flag(
        "local",
        "local: here and now; script: a shell script; sge, slurm: a script for an array of jobs.",
        where=True,
    )
    output: str = flag("run_all.sh", "The script that --launcher script writes.", where=True)
    submit: bool = flag(False, "Submit the array with qsub or sbatch; else only write it.", where=True)


class RetryGrid(RunGrid):
    """Run again what failed of a grid, and nothing else."""

    command = "retry"


COMMANDS: dict[str, Command] = {
    "plan": Command(PlanGrid, "perturblab.gridcommands.plan:plan"),
    "run": Command(RunGrid, "perturblab.gridcommands.run:run"),
    "status": Command(StatusOfGrid, "perturblab.gridcommands.status:status"),
    "retry": Command(RetryGrid, "perturblab.gridcommands.run:retry"),
}


def words_of(s: OfAGrid, command: str) -> Sequence[str]:
    """The command line that does ``command`` with the same grid."""
    sets = [word for one in s.given for word in ("--set", one)]
    where = ["--runs_dir", s.runs_dir] if s.runs_dir is not None else []
    return ["perturblab", command, s.grid, *sets, *where]
