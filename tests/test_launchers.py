"""The document's 24 runs of masked-loss, on the bundled digits, by every launcher: one word differs, no file does."""

import os
import re
import time
from pathlib import Path

import pytest

from clusters import made, perturblab, running, said
from conftest import differing, until

DIGITS = """\
study: masked-loss
fixed: {dataset: digits, width: 0.05, epochs: 1, batch_size: 64, robustness_masks: 1, clamp: rescale, lr: 0.05, threads: 1, device: cpu}
"""
"""All axes stay the document's: 4 networks x 2 modes x 3 seeds."""


def local() -> None:
    perturblab("run", "grid.yaml")


def script() -> None:
    perturblab("run", "grid.yaml", "--launcher", "script")
    said("bash", "run_all.sh")


def script_by_parallel() -> None:
    printed = perturblab("run", "grid.yaml", "--launcher", "script")
    (command,) = re.findall(r"\S.*\| parallel .*", printed.partition("or: ")[2])
    said("bash", "-c", command.replace("-j 4", "-j 2"))


def slurm() -> None:
    with running("slurm") as cluster:
        perturblab("run", "grid.yaml", "--launcher", "slurm", "--submit")
        until(lambda: cluster.idle, 900)


def sge() -> None:
    with running("sge") as cluster:
        perturblab("run", "grid.yaml", "--launcher", "sge", "--submit")
        until(lambda: cluster.idle, 900)


def dask() -> None:
    perturblab("run", "grid.yaml", "--launcher", "dask", "--jobs", "2")


@pytest.mark.soak
@pytest.mark.xdist_group("slurm")
def test_the_24_runs_end_equal_on_every_launcher(tmp_path: Path) -> None:
    files, took = {}, {}
    before = os.getcwd()
    try:
        for launch in (local, script, script_by_parallel, slurm, sge, dask):
            folder = tmp_path / launch.__name__
            folder.mkdir()
            os.chdir(folder)
            Path("grid.yaml").write_text(DIGITS)
            began = time.monotonic()
            launch()
            took[launch.__name__], files[launch.__name__] = time.monotonic() - began, made(folder)
    finally:
        os.chdir(before)
    finished = {name: sum(path.startswith("results/") for path in found) for name, found in files.items()}
    differ = {name: differing(files["local"], found) for name, found in files.items()}
    print(f"24 runs on 6 launchers: {finished}, files that differ: {sum(map(len, differ.values()))}; "
          f"seconds: { {name: round(s) for name, s in took.items()} }")  # fmt: skip
    assert set(finished.values()) == {24}
    assert not any(differ.values()), differ
