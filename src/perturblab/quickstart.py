"""The main job in under a minute: masked-loss on bundled digits, three modes over three seeds, compared honestly."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import field_validator

from perturblab.cpus import cores
from perturblab.flags import each_once
from perturblab.settings import Command, Settings, flag
from perturblab.studies.masked_loss import Mode, Sweep, spelt
from perturblab.terminal import duration, say


class Quickstart(Settings):
    """Train a small VGG11 on real handwritten digits in three modes over three seeds, and compare them.

    Needs no download. Ends with a table (mean, spread, n), the plots, and one sentence on what was seen.
    """

    command = "quickstart"

    out: str = flag("./quickstart", "Folder for results, checkpoints, plots and run state.", where=True)
    width: float = flag(
        0.125, "Scales all channels and the hidden layer; 1 is the documented VGG11.", gt=0, le=8
    )
    epochs: int = flag(6, "Training epochs.", ge=1)
    seeds: tuple[int, ...] = flag((0, 1, 2), "Random seeds.")
    modes: tuple[Mode, ...] = flag(("baseline", "masked", "half-loss"), "Training modes.")
    jobs: int = flag(0, "Runs at a time; 0 is one per core.", where=True, ge=0)

    _spelling = field_validator("modes", mode="before")(spelt)
    _each_once = field_validator("modes", "seeds")(each_once)


def quickstart(s: Quickstart) -> None:
    """Run the grid, then print the tables, the verdict and where the plots are."""
    from perturblab.studies.masked_loss.sweep import plan_of
    from perturblab.sweep import explain_failures, run_plan

    began = time.monotonic()
    plan = plan_of(grid(s))
    jobs = s.jobs or cores()
    say(
        f"{len(plan.cells)} runs: VGG11 at width {s.width:g} on 1,797 handwritten digits, {len(s.modes)} modes x "
        f"{len(s.seeds)} seeds, {s.epochs} epochs, {jobs} at a time"
    )
    explain_failures(plan, run_plan(plan, jobs))
    compare(s)
    say(
        f"\n{duration(time.monotonic() - began)} in all. What to do next: README.md, `perturblab masked-loss --help`"
    )


def grid(s: Quickstart) -> Sweep:
    """The sweep behind it: steps small enough that the small network learns in a few epochs."""
    folder = Path(s.out)
    return Sweep.parse(
        {
            "mode": "parallel",
            "architectures": ("vgg11",),
            "modes": s.modes,
            "seeds": s.seeds,
            "dataset": "digits",
            "width": s.width,
            "epochs": s.epochs,
            "batch_size": 32,
            "lr": 0.05,
            "threads": 1,
            "device": "cpu",
            "results_dir": str(folder / "results"),
            "checkpoint_dir": str(folder / "checkpoints"),
            "runs_dir": str(folder / "runs"),
        }
    )


def compare(s: Quickstart) -> None:
    """Tables, figures and the one honest sentence, from the exported results."""
    from perturblab.studies.masked_loss import Visualize
    from perturblab.studies.masked_loss.figures import visualize

    folder = Path(s.out)
    only = {"architectures": ("vgg11",), "modes": s.modes, "seeds": s.seeds}
    visualize(
        Visualize.parse({"results_dir": str(folder / "results"), "plots_dir": str(folder / "plots"), **only})
    )


COMMAND = Command(Quickstart, "perturblab.quickstart:quickstart")
