"""The grid of first-layer-mi, and array job scripts for it: a thin face of ``perturblab.launch.arrays``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

from perturblab.flags import data_name
from perturblab.launch import Cell
from perturblab.launch.arrays import hand_over, write_array
from perturblab.planning import planned, settled
from perturblab.studies.first_layer_mi import Jobs, Train
from perturblab.sweep import Plan


def jobs(s: Jobs) -> None:
    """Write ``job_manager_{arch}.sh`` and ``jobs_{arch}.txt`` (lines ``arch seed``) for each architecture.

    The scheduler shows ``{arch}_{data set}``, as the document has it: ``vgg9_cifar100``.
    """
    data = re.sub(r"[^\w.-]", "-", data_name(s.dataset), flags=re.ASCII)
    scripts = [
        write_array(
            [settled(Cell(run.name, run)) for run in runs],
            s,
            arch,
            ("arch", "seed"),
            job_name=f"{arch}_{data}",
        )
        for arch, runs in groupby(s.grid(), lambda run: run.arch)
    ]
    hand_over(scripts, s)


def plan_of_runs(runs: Iterable[Train]) -> Plan:
    return planned(runs, "perturblab.studies.first_layer_mi.run")
