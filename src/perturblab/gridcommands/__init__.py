"""``plan``, ``run``, ``status``, ``watch``, ``retry``, ``compare``, ``prune``: for the grid of every study and for a file of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from perturblab.flags import OnCards
from perturblab.launch.arrays import Resources
from perturblab.settings import Command, Settings, flag


class WhichGrid(Settings):
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


class OfAGrid(OnCards, WhichGrid):
    """How it is run here, and how much of it is shown."""

    jobs: int = flag(
        0,
        "Runs at a time; 0 is one per core, or per CUDA card, and for an array no limit.",
        "--jobs",
        "-j",
        where=True,
        ge=0,
    )
    all: bool = flag(False, "Show every run, however many there are.", where=True)


class PlanGrid(OfAGrid):
    """What a grid is: its runs, which of them exist, and what the missing ones will take. Writes nothing, unless it calibrates."""

    command = "plan"

    calibrate: float = flag(
        0.0, "Seconds for one run of each kind, to learn what it takes; its work is kept.", where=True, ge=0
    )


class StatusOfGrid(OfAGrid):
    """How far a grid is: how many runs are done, which run now, what failed and why, and how to go on."""

    command = "status"


class RunGrid(Resources, OfAGrid):
    """Run what is missing of a grid and go on with what was interrupted: here, by a script, or as an array of jobs.

    What failed is not tried again: `perturblab retry` does that.
    """

    command = "run"

    launcher: Literal["local", "script", "sge", "slurm", "dask"] = flag(
        "local",
        "local: here and now; script: a shell script; sge, slurm: a script for an array; dask: its workers.",
        where=True,
    )
    address: str = flag("", "Dask: tcp://HOST:PORT of a scheduler, or its file.", where=True)
    cluster: Literal["local", "sge", "slurm"] = flag(
        "local", "Dask: start its workers here, or as jobs.", where=True
    )
    wait: bool = flag(True, "Wait for runs of other processes; do those of dead ones.", where=True)
    output: str = flag("run_all.sh", "The script that --launcher script writes.", where=True)
    array: int = flag(1000, "Most runs in one array; Slurm takes 1000 unless told more.", where=True, ge=1)
    submit: bool = flag(False, "Submit the array with qsub or sbatch; else only write it.", where=True)


class RetryGrid(RunGrid):
    """Run again what failed of a grid, and nothing else."""

    command = "retry"


class WatchGrid(WhichGrid):
    """Follow a grid, from any terminal or machine, until nothing runs and nothing is missing. Writes nothing.

    On a terminal it is a screen that lives; elsewhere a line when something has changed. Ctrl-C ends the watching only.
    """

    command = "watch"

    every: float = flag(2.0, "Seconds between two looks.", where=True, ge=0.1)
    jobs: int = flag(
        0, "Runs at a time, for the time left; 0 is as many as run now.", "--jobs", "-j", where=True, ge=0
    )


class CompareGrid(Settings):
    """In what two sets of finished runs differ, and what came of it, paired over seeds. Writes nothing unless asked.

    A and B are each the folder of a run, a folder with such folders in it, a study or a FILE.yaml.
    """

    command = "compare"

    a: str = flag(..., "A run's folder, a folder of runs, a study or a FILE.yaml.", argument=True, where=True)
    b: str = flag(..., "What it is compared with.", argument=True, where=True)
    given: tuple[str, ...] = flag(
        (), "NAME=VALUE or NAME=v1,v2: only these runs of both; as often as needed.", "--set", where=True
    )
    given_a: tuple[str, ...] = flag((), "The same for A alone.", "--set_a", where=True)
    given_b: tuple[str, ...] = flag((), "The same for B alone.", "--set_b", where=True)
    runs_dir: str | None = flag(
        None, "Where a study's or a file's runs are; else the file's, else ./perturblab_runs.", where=True
    )
    output: str = flag("", "Also write this .csv (every number) or .md (what is shown).", where=True)
    all: bool = flag(False, "Show every number of every comparison.", where=True)


class PruneGrid(WhichGrid):
    """Show what old state of runs fills the disk; with --yes remove it. Results are kept unless --done says otherwise.

    Old are what failed or stopped runs left and nobody touched for --older_than days; of any run, temporary files and
    claims of processes that died; of finished runs, checkpoints and logs. Exported files are never touched.
    """

    command = "prune"

    grid: str = flag(
        "", "A study or a FILE.yaml: only its runs; else all of --runs_dir.", argument=True, where=True
    )
    older_than: float = flag(30.0, "Days that a run was not touched, to be old.", where=True, ge=0)
    done: bool = flag(False, "Also finished runs that are old, with their results.", where=True)
    yes: bool = flag(False, "Remove it; else it is only shown.", where=True)
    all: bool = flag(False, "Show every run, however many there are.", where=True)


COMMANDS: dict[str, Command] = {
    "plan": Command(PlanGrid, "perturblab.gridcommands.plan:plan"),
    "run": Command(RunGrid, "perturblab.gridcommands.run:run"),
    "status": Command(StatusOfGrid, "perturblab.gridcommands.status:status"),
    "watch": Command(WatchGrid, "perturblab.gridcommands.watch:watch"),
    "retry": Command(RetryGrid, "perturblab.gridcommands.run:retry"),
    "compare": Command(CompareGrid, "perturblab.gridcommands.compare:compare"),
    "prune": Command(PruneGrid, "perturblab.gridcommands.prune:prune"),
}


def words_of(s: WhichGrid, command: str) -> Sequence[str]:
    """The command line that does ``command`` with the same grid."""
    sets = [word for one in s.given for word in ("--set", one)]
    where = ["--runs_dir", s.runs_dir] if s.runs_dir is not None else []
    return ["perturblab", command, s.grid, *sets, *where]
