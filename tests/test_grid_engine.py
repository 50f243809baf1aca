"""A grid on a real Grid Engine: the same files as by plain commands, also where a run is told to stop or deleted."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from clusters import EPOCHS, Cluster, enter, finished, made, plain, running, said, sent, whole_array, worker
from conftest import Zygote, differing, until

SCRIPT = "scripts/job_manager_masked-loss.sh"

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
    sge.submit(SCRIPT)
    finished(sge, stopped_by="SIGUSR2")
    assert not differing(undisturbed, made(project))
