"""One grid, every way to start it: real Slurm, real Grid Engine, bash, GNU parallel. One word differs, no file does."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusters import Cluster, enter, logs, made, need, number, perturblab, running, said
from conftest import TESTS, differing, until

MODES = ("baseline", "masked", "half-loss")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with running("slurm") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sge() -> Iterator[Cluster]:
    with running("sge") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def here(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What ``perturblab run grid.yaml`` makes."""
    folder = tmp_path_factory.mktemp("here") / "project"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TESTS)
        enter(folder, npz, *MODES)
        perturblab("run", "grid.yaml", "--launcher", "local")
    return made(folder)


@pytest.fixture
def project(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a name that needs quoting and the same grid in it."""
    monkeypatch.chdir(tmp_path)
    enter(tmp_path / "ada's project", npz, *MODES)
    return Path.cwd()


def submitted(cluster: Cluster, *, log: str) -> None:
    """One word of the command line says where; 16 GB, a GPU and the rest are the defaults."""
    job = number(perturblab("run", "grid.yaml", "--launcher", cluster.kind, "--submit"))
    until(lambda: cluster.idle, 180)
    assert sorted(path.name for path in Path("logs").iterdir()) == [log.format(job, n) for n in (1, 2, 3)]
    assert re.search(r"^done +3$", perturblab("status", "grid.yaml"), re.MULTILINE), logs()


@pytest.mark.slow
@pytest.mark.xdist_group("slurm")
def test_the_word_slurm_sends_the_grid_to_a_real_slurm_with_the_same_files_as_here(
    slurm: Cluster, project: Path, here: dict[str, bytes]
) -> None:
    submitted(slurm, log="masked-loss_{}_{}.out")
    assert not differing(here, made(project))


@pytest.mark.slow
@pytest.mark.xdist_group("sge")
def test_the_word_sge_sends_the_grid_to_a_real_grid_engine_with_the_same_files_as_here(
    sge: Cluster, project: Path, here: dict[str, bytes]
) -> None:
    submitted(sge, log="masked-loss.o{}.{}")
    assert not differing(here, made(project))


def array_by_bash() -> None:
    perturblab("run", "grid.yaml", "--launcher", "slurm")
    said("bash", "scripts/job_manager_masked-loss.sh")


def script_by_bash() -> None:
    perturblab("run", "grid.yaml", "--launcher", "script")
    said("bash", "run_all.sh")


def script_by_parallel() -> None:
    """By the line that the program prints."""
    need("parallel")
    printed = perturblab("run", "grid.yaml", "--launcher", "script")
    (command,) = re.findall(r"\S.*\| parallel .*", printed.partition("or: ")[2])
    said("bash", "-c", command)


def array_by_parallel() -> None:
    """By the line in ``docs/clusters.md``."""
    need("parallel")
    perturblab("run", "grid.yaml", "--launcher", "sge")
    said("bash", "-c", "seq 3 | parallel -j 2 bash scripts/job_manager_masked-loss.sh")


@pytest.mark.slow
@pytest.mark.parametrize("way", [array_by_bash, script_by_bash, script_by_parallel, array_by_parallel])
def test_what_is_written_runs_unchanged_without_a_scheduler_with_the_same_files(
    way: Callable[[], None], project: Path, here: dict[str, bytes]
) -> None:
    way()
    assert not differing(here, made(project))


# ---- where there is no scheduler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["slurm", "sge", "parallel"])
def test_where_schedulers_are_missing_their_tests_say_how_to_install_them_and_in_ci_they_fail(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clusters.shutil.which", lambda name, path: None)
    monkeypatch.delenv("PERTURBLAB_SCHEDULERS", raising=False)
    with pytest.raises(
        pytest.skip.Exception, match=r"not installed; as root on Debian: tests/schedulers/install\.sh"
    ):
        need(what)
    monkeypatch.setenv("PERTURBLAB_SCHEDULERS", "required")
    with pytest.raises(pytest.fail.Exception, match="is not installed"):
        need(what)


def test_who_is_not_root_is_told_and_in_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clusters.shutil.which", lambda name, path: "/usr/bin/true")
    monkeypatch.setattr("clusters.os.geteuid", lambda: 1000)
    monkeypatch.delenv("PERTURBLAB_SCHEDULERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs root"):
        need("slurm")
    monkeypatch.setenv("PERTURBLAB_SCHEDULERS", "required")
    with pytest.raises(pytest.fail.Exception, match="needs root"):
        need("slurm")


def test_ci_installs_schedulers_and_requires_their_tests() -> None:
    lines = (TESTS.parent / ".ci/run").read_text().splitlines()
    wanted = [
        "tests/schedulers/install.sh",
        "export PERTURBLAB_SCHEDULERS=required",
        "make check",
        "make slow",
    ]
    assert [line for line in lines if line in wanted] == wanted


def test_every_program_that_the_tests_need_is_one_that_is_installed() -> None:
    from clusters import NEEDED

    text = (TESTS / "schedulers/install.sh").read_text()
    (programs,) = re.findall(r'^PROGRAMS="(.*)"$', text, re.MULTILINE)
    assert set(programs.split()) == {name for names in NEEDED.values() for name in names}
    assert subprocess.run(["bash", "-n", TESTS / "schedulers/install.sh"]).returncode == 0
