"""Signals at any point of every study's run, from its start to its export; while Python still imports; in a grid."""

import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pytest

from conftest import Ended, Zygote, differing, environment, files_of, program, until
from smokes import FORK, RUNS, write_grid
from test_disk_full import spread
from test_kill import points_of

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SGE = {"SGE_ROOT": "/opt/sge", "JOB_ID": "7"}
SMALL_AND_LARGE = [4, pytest.param(30, marks=pytest.mark.soak)]


def signal_at(point: int, *numbers: int) -> list[list[object]]:
    return [["killpoints", "signal_at", point, 1, *numbers]]


def told_well(ended: Ended, folder: Path, last: str) -> bool:
    """It says how to go on, no traceback, and stopping is no failure."""
    no_failure = not list(folder.rglob("failure.json"))
    return ended.output.splitlines()[-1] == last and "Traceback" not in ended.output and no_failure


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp") or "claim-" in path.name]


@pytest.mark.parametrize("n", SMALL_AND_LARGE)
@pytest.mark.parametrize("name", RUNS)
def test_a_signal_at_any_point_saves_asks_to_be_run_again_and_the_same_command_goes_on(
    zygote: Zygote, whole_run: Callable[[str], list[str]], tmp_path: Path, name: str, n: int
) -> None:
    words, codes = whole_run(name), Counter[int]()
    labels, expected = points_of(zygote, words, tmp_path / "undisturbed", tmp_path / "points")
    saves = [i for i, label in enumerate(labels, 1) if re.match("before open checkpoint.*sha256", label)]
    points = spread(range(1, len(labels) + 1), n)
    for i, (point, number) in enumerate(zip(points, cycle(STOP))):
        here, env, again = tmp_path / str(point), *((SGE, 99) if i % 4 == 1 else ({}, 75))
        ended = zygote.run(words, here, hooks=signal_at(point, number), **env)
        codes[ended.code] += 1
        last = f"stopped: stopped on {number.name}: the state is saved; run the same command again to go on"
        if ended.code == 0:  # the work was done: it was let finish its export
            assert point > saves[-1], f"{number.name} at {labels[point - 1]} was not heard"
        else:
            assert ended.code == again, ended.output
            assert told_well(ended, here, last), (labels[point - 1], ended.output)
            assert not left_in(here)
            assert zygote.run(words, here).code == 0
        assert not differing(expected, files_of(here)), f"{number.name} at {labels[point - 1]}"
    print(
        f"{name}: SIGTERM, SIGUSR1, SIGUSR2 at {len(points)} of {len(labels)} points, exit codes {dict(codes)}, 0 differ"
    )


@pytest.mark.parametrize("n", SMALL_AND_LARGE)
@pytest.mark.parametrize("name", RUNS)
def test_ctrl_c_twice_at_any_point_stops_at_once_and_loses_nothing(
    zygote: Zygote, whole_run: Callable[[str], list[str]], tmp_path: Path, name: str, n: int
) -> None:
    """Two runs that are stopped so, at other points, and a third that ends."""
    words = whole_run(name)
    labels, expected = points_of(zygote, words, tmp_path / "undisturbed", tmp_path / "points")
    points = spread(range(1, len(labels)), n)
    for first, second in zip(points[::2], points[1::2], strict=True):
        here = tmp_path / str(first)
        for point in (first, second):
            ended = zygote.run(words, here, hooks=signal_at(point, signal.SIGINT, signal.SIGINT))
            if ended.code:
                assert ended.code == 130, ended.output
                last = "stopped: interrupted; run the same command again to go on"
                assert told_well(ended, here, last), (labels[point - 1], ended.output)
        assert zygote.run(words, here).code == 0
        assert not differing(expected, files_of(here)), (
            f"Ctrl-C twice at {labels[first - 1]}, {labels[second - 1]}"
        )
    print(f"{name}: Ctrl-C twice at {len(points)} of {len(labels)} points, exit code 130, 0 differ")


def test_a_signal_while_torch_is_still_being_imported_asks_to_be_run_again(
    tiny_run: list[str], tmp_path: Path
) -> None:
    with subprocess.Popen(
        program(*tiny_run), cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text())
        process.terminate()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 75, errors
    assert re.fullmatch(r"stopped: stopped on SIGTERM: .*run the same command again to go on\n", errors)


# ---- two runs at a time ------------------------------------------------------------------------------------------------


def start_two(
    zygote: Zygote, words: list[str], folder: Path, seconds: float, step: int = 6, **env: str
) -> int:
    """Start the grid; its pid once both runs are in this step of theirs, which takes so long."""
    pid = zygote.start(words, folder, hooks=[FORK, ["killpoints", "slow_step", step, seconds]], **env)
    until(lambda: sum("slow step" in path.read_text() for path in folder.rglob("log.txt")) == 2)
    return pid


@pytest.fixture
def two(zygote: Zygote, npz: Path, tmp_path: Path) -> tuple[list[str], dict[str, bytes]]:
    """The words that run a grid two at a time, and what it leaves."""
    words = write_grid(tmp_path / "undisturbed", npz)
    ended = zygote.run(words, tmp_path / "undisturbed", hooks=[FORK])
    assert ended.code == 0, ended.output
    return words, files_of(tmp_path / "undisturbed")


def test_a_signal_to_a_grid_stops_both_runs_well_and_the_same_command_goes_on(
    zygote: Zygote, npz: Path, two: tuple[list[str], dict[str, bytes]], tmp_path: Path
) -> None:
    words, expected = two
    every = [*((number, 75, {}) for number in STOP), (signal.SIGUSR2, 99, SGE), (signal.SIGINT, 130, {})]
    for i, (number, code, env) in enumerate(every):
        here = tmp_path / str(i)
        write_grid(here, npz)
        os.kill(start_two(zygote, words, here, 0.2, **env), number)
        ended = zygote.wait()
        assert ended.code == code, ended.output
        assert "Traceback" not in ended.output
        last = f"stopped: stopped on {number.name}: the state is saved; run the same command again to go on"
        assert ended.output.splitlines()[-1] == last
        assert len(list(here.rglob("checkpoint-000002-00000002.pt"))) == 2, "saved after the step"
        again = zygote.run(words, here, hooks=[FORK])
        assert again.code == 0, again.output
        assert not differing(expected, files_of(here)), number.name


def test_ctrl_c_twice_stops_a_grid_at_once_and_its_runs_with_it(
    zygote: Zygote, npz: Path, two: tuple[list[str], dict[str, bytes]], tmp_path: Path
) -> None:
    words, expected = two
    here = tmp_path / "here"
    write_grid(here, npz)
    for step in (6, 2):
        pid = start_two(zygote, words, here, 60.0, step)
        os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
        began = time.monotonic()
        os.kill(pid, signal.SIGINT)
        ended = zygote.wait()
        assert time.monotonic() - began < 20, "it waited for a step"
        assert ended.code == 130, ended.output
        assert ended.output.splitlines()[-1] == "stopped: interrupted; run the same command again to go on"
        for log in here.rglob("log.txt"):
            log.unlink()
    third = zygote.run(words, here, hooks=[FORK])
    assert third.code == 0, third.output
    assert not differing(expected, files_of(here))
