"""A grid on a real Grid Engine: the same files as by plain commands, also where a run is told to stop or deleted."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import (
    EPOCHS,
    Cluster,
    array,
    enter,
    finished,
    made,
    perturblab,
    plain,
    running,
    said,
    sent,
    whole_array,
    worker,
)
from conftest import Zygote, differing, until

pytestmark = pytest.mark.slow
MODES = ("baseline", "masked", "half-loss")


@pytest.fixture(scope="module")
def sge_of_all() -> Iterator[Cluster]:
    with running("sge") as cluster:
        yield cluster


@pytest.fixture
def sge(sge_of_all: Cluster) -> Iterator[Cluster]:
    yield sge_of_all
    sge_of_all.clear()


def test_the_word_sge_sends_a_grid_to_a_real_grid_engine_with_the_files_of_plain_commands(
    sge: Cluster, npz: Path, zygote: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    enter(tmp_path / "ada's project", npz, *MODES)
    whole_array(sge, log="masked-loss.o{}.{}")
    assert not differing(plain(zygote, tmp_path / "plain", npz, *MODES), made(Path()))


NOTES = "bash -c 'echo \"${OMP_NUM_THREADS:-}\" >> ran; sleep 1; echo end >> ran' note"
"""In the place of the program: notes when it begins, on how many threads, and when it ends."""
THREE = ("masked-loss", "--launcher", "sge", "--set", "arch=vgg11", "--set", "mode=baseline", "--submit")


def test_no_more_tasks_run_at_a_time_than_jobs_says(
    sge: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a slot for each of two."""
    monkeypatch.chdir(tmp_path)
    perturblab("run", *THREE, "--prefix", NOTES, "--jobs", "1")
    until(lambda: sge.idle, 60)
    assert [line == "end" for line in Path("ran").read_text().splitlines()] == [False, True] * 3


def test_headers_in_the_environment_file_ask_for_cores_and_its_lines_see_how_many_were_given(
    sge: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both slots go to one task, so there is one at a time."""
    monkeypatch.chdir(tmp_path)
    Path("env.sh").write_text("#$ -pe smp 2\nexport OMP_NUM_THREADS=$NSLOTS\n")
    perturblab("run", *THREE, "--prefix", NOTES, "--environment", "env.sh")
    until(lambda: sge.idle, 60)
    assert Path("ran").read_text().splitlines() == ["2", "end"] * 3


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


def test_told_by_grid_engine_it_ends_with_99_and_comes_back_by_itself_to_the_same_files(
    sge: Cluster, project: Path, undisturbed: dict[str, bytes]
) -> None:
    """SIGUSR2 is what -notify sends before a limit or a suspension kills."""
    sent(sge)
    os.kill(worker(), signal.SIGUSR2)
    finished(sge, stopped_by="SIGUSR2")
    assert not differing(undisturbed, made(project))


def test_deleted_with_qdel_it_saves_first_and_submitted_again_it_goes_on_to_the_same_files(
    sge: Cluster, project: Path, undisturbed: dict[str, bytes]
) -> None:
    said("qdel", sent(sge))
    until(lambda: sge.idle)
    assert not list(Path("results").glob("*"))
    sge.submit(array())
    finished(sge, stopped_by="SIGUSR2")
    assert not differing(undisturbed, made(project))
