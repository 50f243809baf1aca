"""One grid started here in every way: by itself, bash, GNU parallel; and what happens where schedulers are missing.

The real ones are in ``test_slurm.py`` and ``test_grid_engine.py``.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from clusters import NEEDED, array, enter, made, need, perturblab, plain, said
from conftest import TESTS, Zygote, differing

MODES = ("baseline", "masked", "half-loss")


@pytest.fixture(scope="module")
def undisturbed(npz: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What three plain commands make."""
    return plain(zygote, tmp_path_factory.mktemp("plain"), npz, *MODES)


def here() -> None:
    perturblab("run", "grid.yaml")


def array_by_bash() -> None:
    perturblab("run", "grid.yaml", "--launcher", "slurm")
    said("bash", array())


def script_by_bash() -> None:
    perturblab("run", "grid.yaml", "--launcher", "script")
    said("bash", "run_all.sh")


def script_by_parallel() -> None:
    """By the line that the program prints."""
    need("parallel")
    printed = perturblab("run", "grid.yaml", "--launcher", "script")
    (command,) = re.findall(r"\S.*\| parallel .*", printed.partition("or: ")[2])
    said("bash", "-c", command)


@pytest.mark.slow
@pytest.mark.parametrize("way", [here, array_by_bash, script_by_bash, script_by_parallel])
def test_what_is_started_without_a_scheduler_makes_the_files_of_plain_commands(
    way: Callable[[], None],
    npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: dict[str, bytes],
) -> None:
    """What is written runs unchanged, in a folder whose name needs quoting."""
    monkeypatch.chdir(tmp_path)
    enter(tmp_path / "ada's project", npz, *MODES)
    way()
    assert not differing(undisturbed, made(Path()))


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
    text = (TESTS / "schedulers/install.sh").read_text()
    (programs,) = re.findall(r'^PROGRAMS="(.*)"$', text, re.MULTILINE)
    assert set(programs.split()) == {name for names in NEEDED.values() for name in names}
    assert subprocess.run(["bash", "-n", TESTS / "schedulers/install.sh"]).returncode == 0
