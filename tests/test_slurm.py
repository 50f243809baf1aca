"""A grid on a real Slurm: the same files as by plain commands, also where it is requeued, preempted, cancelled, lost."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clusters import (
    EPOCHS,
    Cluster,
    alive,
    array,
    enter,
    finished,
    logs,
    made,
    perturblab,
    plain,
    running,
    said,
    sent,
    whole_array,
    worker,
)
from conftest import TESTS, Zygote, differing, until

PYTHON = f"{shlex.quote(sys.executable)} -m perturblab"  # an environment file might bring another one
TRAINED = f"epoch {EPOCHS}/{EPOCHS}"

pytestmark = pytest.mark.slow
MODES = ("baseline", "masked", "half-loss")


@pytest.fixture(scope="module")
def slurm_of_all() -> Iterator[Cluster]:
    with running("slurm") as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_of_all: Cluster) -> Iterator[Cluster]:
    yield slurm_of_all
    slurm_of_all.clear()


def test_the_word_slurm_sends_a_grid_to_a_real_slurm_with_the_files_of_plain_commands(
    slurm: Cluster, npz: Path, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    enter(tmp_path / "ada's project", npz, *MODES)
    whole_array(slurm, log="masked-loss_{}_{}.out")
    assert not differing(plain(zygote, tmp_path / "plain", npz, *MODES), made(Path()))


# ---- tasks that wait ---------------------------------------------------------------------------------------------------

NOTES = "bash -c 'echo \"$*\" >> ran; sleep 1; echo end >> ran' note"
"""In the place of the program: notes when it begins and ends, and with what words."""
ONE = (
    "masked-loss",
    "--launcher",
    "slurm",
    "--set",
    "arch=vgg11",
    "--set",
    "mode=baseline",
    "--prefix",
    NOTES,
)


def test_no_more_tasks_run_at_a_time_than_jobs_says(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a node for each of two."""
    monkeypatch.chdir(tmp_path)
    perturblab("run", *ONE, "--jobs", "1", "--submit")
    until(lambda: slurm.idle, 60)
    assert [line == "end" for line in Path("ran").read_text().splitlines()] == [False, True] * 3


def test_a_task_that_waits_runs_its_own_run_though_other_runs_of_the_study_were_written_meanwhile(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    perturblab("run", *ONE, "--set", "seed=0", "--set", "lr=0.1,0.2", "--jobs", "1", "--submit")
    perturblab("run", *ONE, "--set", "seed=0", "--set", "width=0.5,0.25")
    until(lambda: slurm.idle, 60)
    assert [line.rpartition(" ")[2] for line in Path("ran").read_text().splitlines()][::2] == ["0.1", "0.2"]


# ---- stopped in the middle ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(npz: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the run makes that nobody stops."""
    return plain(zygote, tmp_path_factory.mktemp("undisturbed"), npz, "masked", epochs=EPOCHS)


@pytest.fixture
def project(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the grid of that one run in it."""
    monkeypatch.chdir(tmp_path)
    enter(tmp_path / "project", npz, "masked", epochs=EPOCHS)
    return Path.cwd()


def test_requeued_by_an_administrator_it_goes_on_to_the_same_files(
    slurm: Cluster, project: Path, undisturbed: dict[str, bytes]
) -> None:
    job = sent(slurm)
    said("scontrol", "requeue", f"{job}_1")
    finished(slurm, stopped_by="SIGTERM")
    assert not differing(undisturbed, made(project))


@pytest.mark.parametrize(("partition", "by"), [("low", "SIGTERM"), ("grace", "SIGUSR1")])
def test_preempted_by_a_job_of_higher_priority_it_comes_back_and_goes_on_to_the_same_files(
    slurm: Cluster, project: Path, undisturbed: dict[str, bytes], partition: str, by: str
) -> None:
    """With a grace time the run is told by SIGUSR1 and ends before it is over; its script asks for another start."""
    file = project.with_name("env.sh")
    file.write_text(f"#SBATCH --partition={partition}\n")
    sent(slurm, "--environment", str(file), "--prefix", PYTHON)
    said("sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    finished(slurm, stopped_by=by)
    assert not differing(undisturbed, made(project))


def test_warned_before_the_time_limit_it_comes_back_and_goes_on_to_the_same_files(
    slurm: Cluster, project: Path, undisturbed: dict[str, bytes]
) -> None:
    """What --signal=B:USR1@120 in the script asks for; a limit that is near enough would take minutes here."""
    job = sent(slurm)
    said("scancel", "--batch", "--signal=USR1", f"{job}_1")
    finished(slurm, stopped_by="SIGUSR1")
    assert not differing(undisturbed, made(project))


def test_cancelled_it_stays_so_and_submitted_again_it_goes_on_to_the_same_files(
    slurm: Cluster, project: Path, undisturbed: dict[str, bytes]
) -> None:
    said("scancel", f"{sent(slurm)}_1")
    until(lambda: slurm.idle)
    assert not list(Path("results").glob("*"))
    slurm.submit(array())
    finished(slurm, stopped_by="SIGTERM")
    assert not differing(undisturbed, made(project))


@dataclass(frozen=True)
class Orphan:
    """A run that goes on, or may, on a node that Slurm takes for dead; frozen, so that the test says when."""

    cluster: Cluster
    node: str
    pid: int

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def lost(slurm: Cluster, project: Path) -> Iterator[Callable[[], Orphan]]:
    """``lost()``: a run is sent, its node dies and Slurm starts it on the other one; the run itself survives."""
    made = []

    def lose() -> Orphan:
        job = sent(slurm)
        orphan = Orphan(slurm, said("squeue", "-h", "-o", "%B", "-j", f"{job}_1").strip(), worker())
        made.append(orphan)
        os.kill(orphan.pid, signal.SIGSTOP)
        os.kill(int((slurm.folder / "run" / f"slurmd-{orphan.node}.pid").read_text()), signal.SIGKILL)
        # What slurmctld does by itself after SlurmdTimeout.
        said("scontrol", "update", f"nodename={orphan.node}", "state=down", "reason=lost")
        return orphan

    yield lose
    for orphan in made:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan.pid, signal.SIGKILL)
        said(TESTS / "schedulers/slurmd_up.sh", slurm.folder, orphan.node)
        until(lambda: set(said("sinfo", "-h", "-o", "%T").split()) == {"idle"})


def test_started_again_while_a_start_on_a_lost_node_still_works_it_waits_for_that_one(
    slurm: Cluster, lost: Callable[[], Orphan], undisturbed: dict[str, bytes]
) -> None:
    """Refused, it does not fail: nobody knows whether the other will come to an end."""
    orphan = lost()
    until(lambda: "is being worked on by" in logs(), 120)
    orphan.wake()
    until(lambda: slurm.idle, 180)
    assert logs().count(TRAINED) == 1, logs()
    assert "stopped" not in logs()
    assert not differing(undisturbed, made(Path()))


def test_a_start_on_a_lost_node_that_gives_no_sign_is_taken_over_and_overwrites_nothing_when_it_wakes(
    slurm: Cluster, lost: Callable[[], Orphan], undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERTURBLAB_HEARTBEAT_S", "0.2")
    orphan = lost()
    until(lambda: slurm.idle, 180)
    assert not differing(undisturbed, made(Path()))
    orphan.wake()
    until(lambda: not alive(orphan.pid))
    assert logs().count(TRAINED) == 1, logs()
    assert "was taken over by" in logs()
    assert not differing(undisturbed, made(Path()))
