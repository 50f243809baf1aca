"""A run that is killed at any moment and started again ends with the same bytes as one that was left alone."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import KillAtRandom, Killed, Zygote, differing, files_of
from smokes import RUNS, SHORT

WHOLE_TEST_S = 60.0
CHANGING = (
    "after replace",
    "after rename",
    "after unlink",
    "after fsync .",
    "half of write",
)  # "fsync .": of a temporary file


def told(killed: Killed) -> str:
    stages = ", ".join(f"{stage}: {n}" for stage, n in sorted(killed.stages.items()))
    return f"{killed.kills} kills in {killed.runs} runs, {killed.seconds:.0f} s; {stages}; differing: {killed.differing}"


def check(killed: Killed, kills: int) -> None:
    print(told(killed))
    assert killed.kills == kills
    assert not killed.differing, told(killed)


def test_killed_30_times_at_random_moments_no_file_differs(
    kill_at_random: KillAtRandom, tiny_run: list[str], tmp_path: Path
) -> None:
    stages, seconds = set(), 0.0
    for every, kills in (("0", 14), ("0.05", 8), ("60", 8)):
        killed = kill_at_random([*tiny_run, "--checkpoint_every", every], tmp_path / every, kills, seed=1)
        check(killed, kills)
        stages |= killed.stages.keys()
        seconds += killed.seconds
    assert len(stages) >= 4, f"the kills hit only {stages}"
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)  # other work on this machine slows the runs
    assert seconds < WHOLE_TEST_S * max(1.0, busy)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.soak)])
def test_runs_of_all_five_studies_killed_at_random_moments_end_with_the_same_files(
    kill_at_random: KillAtRandom, whole_run: Callable[[str], list[str]], tmp_path: Path, kills: int
) -> None:
    """In turn with a checkpoint after each step, now and then, and only at the end; an evaluation as it keeps its own."""
    every = {"0": kills - 2 * (kills // 3), "0.05": kills // 3, "60": kills // 3}
    seen = []
    for name in RUNS:
        for seconds, n in every.items():
            words = (
                whole_run(name) if "evaluate" in name else [*whole_run(name), "--checkpoint_every", seconds]
            )
            seen.append(kill_at_random(words, tmp_path / name / seconds, n, seed=len(seen)))
            check(seen[-1], n)
    stages = sum((one.stages for one in seen), Counter[str]())
    print(
        f"{told(Killed(stages, sum(one.runs for one in seen), [], sum(one.seconds for one in seen)))}, over five studies"
    )


# ---- every moment, not random ones ---------------------------------------------------------------------------------


def points_of(
    zygote: Zygote, words: list[str], folder: Path, log: Path
) -> tuple[list[str], dict[str, bytes]]:
    """The label of every point of an undisturbed run at which a file changes, and the files that it leaves."""
    ended = zygote.run(words, folder, hooks=[["killpoints", "install", 0, str(log)]])
    assert ended.code == 0, ended.output
    return log.read_text().splitlines(), files_of(folder)


def kill_at(zygote: Zygote, words: list[str], folder: Path, point: int) -> dict[str, bytes]:
    """The files of a run that was killed at ``point`` and started again."""
    ended = zygote.run(words, folder, hooks=[["killpoints", "install", point, ""]])
    assert ended.code == -signal.SIGKILL, ended.output
    again = zygote.run(words, folder)
    assert again.code == 0, again.output
    return files_of(folder)


def killed_at_each(
    zygote: Zygote, words: list[str], folder: Path, every_point: bool, since: str = ""
) -> None:
    """``since``: the label of the point before which nothing is killed."""
    labels, expected = points_of(zygote, words, folder / "undisturbed", folder / "points")
    wanted = list(range(labels.index(since) + 1 if since else 1, len(labels) + 1))
    if not every_point:  # the first of each kind that leaves other files behind than the point before it
        first = {labels[number - 1]: number for number in reversed(wanted)}
        wanted = sorted(number for label, number in first.items() if label.startswith(CHANGING))
    bad = []
    for point in wanted:
        found = differing(expected, kill_at(zygote, words, folder / "killed", point))
        shutil.rmtree(folder / "killed")
        bad += [f"{name} after a kill at point {point}: {labels[point - 1]}" for name in found]
    print(f"{' '.join(words[:2])}: {len(wanted)} of {len(labels)} points, {len(bad)} files differ")
    assert not bad, "\n".join(bad)


def test_killed_at_each_kind_of_file_change_no_file_differs(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    words = [*tiny_run, "--checkpoint_every", "0", "--epochs", "1", "--batch_size", "36"]
    killed_at_each(zygote, words, tmp_path, every_point=False)


def test_correction_killed_while_it_exports_no_file_differs(
    zygote: Zygote, whole_run: Callable[[str], list[str]], tmp_path: Path
) -> None:
    words, done = [*whole_run("correction"), "--max_epochs", "2"], "after replace results.json"
    killed_at_each(zygote, words, tmp_path, every_point=False, since=done)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS[1:])
def test_a_study_killed_at_each_kind_of_file_change_ends_with_the_same_files(
    zygote: Zygote, whole_run: Callable[[str], list[str]], tmp_path: Path, name: str
) -> None:
    killed_at_each(zygote, [*whole_run(name), *SHORT[name].split()], tmp_path, every_point=False)


@pytest.mark.soak
@pytest.mark.parametrize("name", RUNS)
def test_killed_before_and_after_every_single_file_change_no_file_differs(
    zygote: Zygote, whole_run: Callable[[str], list[str]], tmp_path: Path, name: str
) -> None:
    killed_at_each(zygote, [*whole_run(name), *SHORT[name].split()], tmp_path, every_point=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--mode", "baseline"),
        ("--mode", "half-loss"),
        ("--site", "conv1", "--clamp", "none"),
        ("--precision", "bf16"),
        ("--threads", "2"),
    ],
    ids=" ".join,
)
def test_killed_10_times_under_other_settings_no_file_differs(
    kill_at_random: KillAtRandom, tiny_run: list[str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    check(kill_at_random([*tiny_run, *words, "--checkpoint_every", "0.02"], tmp_path, 10, seed=5), 10)


@pytest.mark.slow
def test_the_real_command_killed_6_times_while_it_starts_or_works_no_file_differs(
    kill_at_random: KillAtRandom, tiny_run: list[str], tmp_path: Path
) -> None:
    check(kill_at_random([*tiny_run, "--checkpoint_every", "0"], tmp_path, 6, seed=3, real=True), 6)
