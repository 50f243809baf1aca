"""A real Slurm of two nodes or a real Grid Engine on this machine, started by the scripts in ``schedulers/``.

On loopback only; that needs root and Debian's packages. Where they are missing tests are skipped, or fail if
PERTURBLAB_SCHEDULERS=required, which ``.ci/run`` says.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import pytest

from conftest import TESTS, Zygote, environment, files_of, program, until
from perturblab import claims

Kind = Literal["slurm", "sge"]
NEEDED = {
    "slurm": ("sbatch", "slurmctld", "slurmd", "munged"),
    "sge": ("qsub", "sge_qmaster", "sge_execd", "ip"),
    "parallel": ("parallel",),
}
SUBMITS = {"slurm": "sbatch", "sge": "qsub"}
QUEUE = {"slurm": ("squeue", "-h"), "sge": ("qstat",)}
CANCEL = {"slurm": ("scancel", "--user=root"), "sge": ("qdel", "-f", "-u", "*")}
# Grid Engine's programs reach it only in its network namespace, and by these variables.
CLIENT = '#!/bin/bash\n. {folder}/env\nexec ip netns exec sgetest /usr/bin/{name} "$@"\n'


def need(what: str) -> None:
    """End the test here unless the programs of ``slurm``, ``sge`` or ``parallel`` are there, and root to run them."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if not all(shutil.which(name, path=path) for name in NEEDED[what]):
        refuse(f"{what} is not installed; as root on Debian: tests/schedulers/install.sh")
    if what != "parallel" and (sys.platform != "linux" or os.geteuid() != 0):
        refuse(f"starting {what} needs root")


def refuse(reason: str) -> NoReturn:
    if os.environ.get("PERTURBLAB_SCHEDULERS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Cluster:
    kind: Kind
    folder: Path

    def submit(self, script: Path | str) -> str:
        """The number of the job."""
        return number(said(SUBMITS[self.kind], script))

    @property
    def idle(self) -> bool:
        return not said(*QUEUE[self.kind]).strip()

    def clear(self) -> None:
        """End every job."""
        if not self.idle:
            subprocess.run(CANCEL[self.kind], capture_output=True)
            until(lambda: self.idle)

    def close(self) -> None:
        subprocess.run([TESTS / "schedulers" / f"{self.kind}_down.sh", self.folder], check=True, timeout=60)
        for pid in self.folder.glob("**/*.pid"):
            assert not alive(int(pid.read_text())), f"{pid.stem} is left behind"


@contextmanager
def running(kind: Kind) -> Iterator[Cluster]:
    """A cluster that this process and its children find on PATH; one of a kind at a time on a machine."""
    need(kind)
    lock = Path(tempfile.gettempdir()) / f"perturblab-{kind}.lock"
    with open(lock, "w") as file, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(file, fcntl.LOCK_EX)
        folder = Path(tempfile.mkdtemp(prefix=f"{kind}-"))  # a short name: sockets lie in it
        folder.chmod(0o755)
        patch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin")
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        cluster = Cluster(kind, folder)
        try:
            with open(folder / "started", "w") as output:
                words = [
                    TESTS / "schedulers" / f"{kind}_up.sh",
                    folder,
                    *(["1", "2"] if kind == "slurm" else ["2"]),
                ]
                subprocess.run(words, check=True, stdout=output, stderr=output, timeout=60)
            (folder / "bin").mkdir()
            for name in ("qsub", "qstat", "qdel") if kind == "sge" else ():
                (folder / "bin" / name).write_text(CLIENT.format(folder=folder, name=name))
                (folder / "bin" / name).chmod(0o755)
            yield cluster
        finally:
            cluster.close()
            shutil.rmtree(folder)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def said(*words: str | Path) -> str:
    """What a program that must succeed prints."""
    ended = subprocess.run(
        words, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def perturblab(*words: str) -> str:
    """What the public command line prints, called in the current folder as a user does."""
    return said(*program(*words))


def number(output: str) -> str:
    """Of the job that sbatch or qsub says it has taken."""
    found = re.search(r"(?:batch job|job-array|Your job) (\d+)", output)
    assert found, output
    return found[1]


# ---- runs of masked-loss in the current folder -------------------------------------------------------------------------

FIXED = {
    "arch": "vgg11", "seed": 0, "width": 0.05, "batch_size": 20, "robustness_masks": 2, "clamp": "rescale", "lr": 0.05,
    "threads": 1, "device": "cpu",
}  # fmt: skip
EPOCHS = 100  # some seconds: time to stop a run


def enter(folder: Path, npz: Path, *modes: str, epochs: int = 3) -> None:
    """Make ``folder`` the current one, with the small runs of these modes in its ``grid.yaml``."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    fixed = {**FIXED, "epochs": epochs, "dataset": f"npz:{npz}"}
    Path("grid.yaml").write_text(
        json.dumps({"study": "masked-loss", "fixed": fixed, "axes": {"mode": modes}})
    )


def plain(zygote: Zygote, folder: Path, npz: Path, *modes: str, epochs: int = 3) -> dict[str, bytes]:
    """What the same runs make, each started as one command and never stopped."""
    words = [word for name, value in FIXED.items() for word in (f"--{name}", str(value))]
    for mode in modes:
        more = ["--mode", mode, "--epochs", str(epochs), "--dataset", f"npz:{npz}"]
        ended = zygote.run(["masked-loss", "train", *words, *more], folder)
        assert ended.code == 0, ended.output
    return made(folder)


def made(folder: Path) -> dict[str, bytes]:
    """What the runs made, without the grid, its scripts and logs."""
    ours = ("logs/", "scripts/", "grid.yaml", "run_all.sh")
    return {
        name: data
        for name, data in files_of(folder).items()
        if not name.startswith(ours) and not name.endswith("/log.txt")
    }


def logs() -> str:
    return "".join(path.read_text() for path in sorted(Path("logs").iterdir()))


def array() -> Path:
    """The one array of jobs that was written here."""
    (script,) = Path("scripts").glob("job_manager_masked-loss-*.sh")
    return script


def sent(cluster: Cluster, *more: str) -> str:
    """Submit the one run of the grid here and wait until it is in the middle of its work; the number of its job."""
    job = number(perturblab("run", "grid.yaml", "--launcher", cluster.kind, "--submit", *more))
    rows = "perturblab_runs/*/*/rows.jsonl"
    until(lambda: any(path.stat().st_size for path in Path().glob(rows)), 120)
    return job


def finished(cluster: Cluster, stopped_by: str) -> None:
    """Wait for its end: it was stopped by that signal, once, and saved its state."""
    until(lambda: cluster.idle, 180)
    assert logs().count(f"stopped on {stopped_by}: the state is saved") == 1, logs()


def worker() -> int:
    """The process of the run that is going on here."""
    (folder,) = Path().glob("perturblab_runs/*/*")
    holder = claims.holder(folder)
    assert holder is not None, "nobody works here"
    return int(holder.facts["pid"])


def whole_array(cluster: Cluster, *, log: str) -> None:
    """One word of the command line says where; 16 GB, a GPU and the rest are the defaults."""
    job = number(perturblab("run", "grid.yaml", "--launcher", cluster.kind, "--submit"))
    until(lambda: cluster.idle, 180)
    assert sorted(path.name for path in Path("logs").iterdir()) == [log.format(job, n) for n in (1, 2, 3)]
    assert re.search(r"^done +3$", perturblab("status", "grid.yaml"), re.MULTILINE), logs()
