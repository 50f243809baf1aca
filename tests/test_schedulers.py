"""Real Slurm and real Grid Engine run the same generated script as bash, with the same result, stopped or not.

They are started on this machine by the scripts in ``schedulers/``, on loopback only, which needs root and Debian's
packages.
"""

import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from conftest import TESTS, differing, files_of, until
from perturblab.launch import Cell
from perturblab.launch.arrays import JobFlags, hand_over, write_array
from perturblab.studies.masked_loss import Train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="starting schedulers needs root"),
]

Kind = Literal["slurm", "sge"]
NEEDED = {
    "slurm": ["sbatch", "slurmctld", "slurmd", "munged"],
    "sge": ["qsub", "sge_qmaster", "sge_execd", "ip"],
}
PACKAGES = {
    "slurm": "slurm-wlm munge",
    "sge": "gridengine-master gridengine-exec gridengine-client iproute2",
}
QUEUE = {"slurm": ["squeue", "-h"], "sge": ["qstat"]}
# Grid Engine's programs reach it only in its network namespace, and by these variables.
CLIENT = '#!/bin/bash\n. {folder}/env\nexec ip netns exec sgetest /usr/bin/{name} "$@"\n'


@dataclass(frozen=True)
class Cluster:
    kind: Kind
    folder: Path

    def submit(self, script: Path) -> None:
        hand_over([script], JobFlags.parse({"submit": True, "scheduler": self.kind}))

    @property
    def idle(self) -> bool:
        return not subprocess.run(QUEUE[self.kind], capture_output=True, check=True).stdout.strip()

    def close(self) -> None:
        subprocess.run([TESTS / "schedulers" / f"{self.kind}_down.sh", self.folder], check=True, timeout=60)
        for pid in self.folder.glob("**/*.pid"):
            assert not alive(int(pid.read_text())), f"{pid.stem} is left behind"


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Kind], Cluster]]:
    """``start("slurm")``: one cluster at a time on a machine, stopped at the end of the test."""
    folder = Path(tempfile.mkdtemp(prefix="cluster"))  # a short name: sockets lie in it
    folder.chmod(0o755)
    clusters = []

    def up(kind: Kind) -> Cluster:
        if not all(map(shutil.which, NEEDED[kind])):
            pytest.skip(f"{kind} is not installed: apt-get install {PACKAGES[kind]}")
        clusters.append(Cluster(kind, folder))
        with open(folder / "started", "w") as output:
            words = [TESTS / "schedulers" / f"{kind}_up.sh", folder, "2"]
            subprocess.run(words, check=True, stdout=output, stderr=output, timeout=60)
        monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        (folder / "bin").mkdir()
        for name in ("qsub", "qstat", "qdel") if kind == "sge" else ():
            (folder / "bin" / name).write_text(CLIENT.format(folder=folder, name=name))
            (folder / "bin" / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        return clusters[0]

    with open(Path(tempfile.gettempdir()) / "perturblab-cluster.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield up
        for cluster in clusters:
            cluster.close()
    shutil.rmtree(folder)


def written(folder: Path, npz: Path, *modes: str, gpu: int = 0, **settings: object) -> Path:
    """The script of small runs of masked-loss, in ``folder``, which becomes the current one."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    shared = {"arch": "vgg11", "seed": 0, "width": 0.05, "epochs": 3, "batch_size": 20, "robustness_masks": 2,
              "clamp": "rescale", "lr": 0.05, "threads": 1, "device": "cpu", "dataset": f"npz:{npz}", **settings}  # fmt: skip
    trains = [Train.parse({**shared, "mode": mode}) for mode in modes]
    cells = [Cell(train.name, train) for train in trains]
    flags = {
        "mem": "1G",
        "time": "1:00:00",
        "gpu": gpu,
        "prefix": f"{shlex.quote(sys.executable)} -m perturblab",
    }
    return write_array(cells, JobFlags.parse(flags), "vgg11", ("mode", "seed"), job_name="vgg11_masked")


def made(folder: Path) -> dict[str, bytes]:
    """What the runs made, without logs and scripts."""
    return {
        name: data for name, data in files_of(folder).items() if not name.startswith(("logs/", "scripts/"))
    }


def logs(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted((folder / "logs").iterdir()))


@pytest.fixture(autouse=True)
def back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tests change the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["slurm", "sge"])
def test_an_array_on_a_real_scheduler_equals_the_same_script_under_bash(
    start: Callable[[Kind], Cluster], kind: Kind, npz: Path, tmp_path: Path
) -> None:
    modes = ("baseline", "masked", "half-loss")
    cluster = start(kind)
    script = written(
        tmp_path / "ada's project", npz, *modes, gpu=int(kind == "sge")
    )  # this Slurm knows no GPU
    cluster.submit(script)
    until(lambda: cluster.idle, 120)
    names = sorted(path.name for path in Path("logs").iterdir())
    pattern = {"slurm": r"vgg11_masked_\d+_[123]\.out", "sge": r"vgg11_masked\.o\d+\.[123]"}[kind]
    assert len(names) == 3, names
    assert all(re.fullmatch(pattern, name) for name in names), names
    assert len(list(Path("results").iterdir())) == 3, logs(Path())

    script = written(tmp_path / "bash", npz, *modes)
    assert subprocess.run(["bash", script]).returncode == 0
    assert not differing(made(tmp_path / "ada's project"), made(tmp_path / "bash"))


Stop = Callable[[Cluster, int], None]


def requeue(cluster: Cluster, pid: int) -> None:
    """What an administrator does, or a job of higher priority."""
    subprocess.run(["scontrol", "requeue", "1_1"], check=True)


def warn(cluster: Cluster, pid: int) -> None:
    """What Slurm does before the time limit, and before a preemption with a grace time."""
    subprocess.run(["scancel", "--batch", "--signal=USR1", "1_1"], check=True)


def notify(cluster: Cluster, pid: int) -> None:
    """What Grid Engine does before the time limit."""
    os.kill(pid, signal.SIGUSR2)


def delete(cluster: Cluster, pid: int) -> None:
    """The user does, and submits again: nothing must come back by itself."""
    subprocess.run({"slurm": ["scancel", "1_1"], "sge": ["qdel", "1"]}[cluster.kind], check=True)
    until(lambda: cluster.idle)
    assert not list(Path("results").glob("*"))
    cluster.submit(Path("scripts/job_manager_vgg11.sh"))


STOPS: list[tuple[Kind, Stop, str]] = [
    ("slurm", requeue, "SIGTERM"),
    ("slurm", warn, "SIGUSR1"),
    ("slurm", delete, "SIGTERM"),
    ("sge", notify, "SIGUSR2"),
    ("sge", delete, "SIGUSR2"),
]


@pytest.mark.parametrize(("kind", "stop", "name"), STOPS)
def test_a_run_that_a_real_scheduler_stops_saves_and_goes_on_to_the_same_result(
    start: Callable[[Kind], Cluster], kind: Kind, stop: Stop, name: str, npz: Path, tmp_path: Path
) -> None:
    cluster = start(kind)
    cluster.submit(written(tmp_path / kind, npz, "masked", epochs=100))
    until(lambda: any(path.stat().st_size for path in Path().glob("perturblab_runs/*/*/rows.jsonl")), 120)
    claim = next(Path().glob("perturblab_runs/*/*/claim"))
    stop(cluster, int(claim.read_text().split()[1]))
    until(lambda: cluster.idle, 180)
    assert logs(Path()).count(f"stopped on {name}: the state is saved") == 1, logs(Path())

    script = written(tmp_path / "bash", npz, "masked", epochs=100)
    assert subprocess.run(["bash", script]).returncode == 0
    assert not differing(made(tmp_path / kind), made(tmp_path / "bash"))
