"""prune over real runs: what is old goes, what is not stays, also when it is killed in the middle."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from conftest import Zygote, differing, files_of, until
from perturblab.claims import held
from perturblab.gridcommands.folders import run_at
from perturblab.gridcommands.old import name_before
from test_rules import loaded_by

DAY_S = 86_400


@pytest.fixture(scope="module")
def made(zygote: Zygote, tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run is done, one diverged, one was killed with kill -9, one stopped by SIGTERM. Nobody may change it."""
    folder = tmp_path_factory.mktemp("pruned")
    assert zygote.run(tiny_run, folder).code == 0
    assert zygote.run([*tiny_run, "--seed", "1", "--lr", "1e20"], folder).code == 2
    for seed, number in ((2, signal.SIGKILL), (3, signal.SIGTERM)):
        more = ["--seed", str(seed), "--epochs", "200", "--checkpoint_every", "0"]
        pid = zygote.start([*tiny_run, *more], folder)
        until(lambda seed=seed: bool([*folder.glob(f"perturblab_runs/*/*seed{seed}-*/checkpoint-*.pt")]))
        os.kill(pid, number)
        zygote.wait()
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy of it to work in, untouched for 40 days."""
    shutil.copytree(made, tmp_path / "here")
    for path in (tmp_path / "here").rglob("*"):
        age(path, 40)
    return tmp_path / "here"


def age(path: Path, days: float) -> None:
    when = time.time() - days * DAY_S
    os.utime(path, (when, when))


def state(place: Path, seed: int) -> Path:
    (path,) = place.glob(f"perturblab_runs/masked-loss/*seed{seed}-*")
    return path


def pruned(zygote: Zygote, place: Path, *words: str) -> str:
    ended = zygote.run(["prune", *words], place)
    assert ended.code == 0, ended.output
    return ended.output


def names(place: Path) -> set[str]:
    return {path.name.rpartition("-")[0] for path in place.glob("perturblab_runs/masked-loss/*")}


def test_without_yes_it_only_shows_what_is_old_and_its_size(place: Path, zygote: Zygote) -> None:
    before = files_of(place)
    out = pruned(zygote, place)
    assert files_of(place) == before
    lines = out.splitlines()
    assert lines[0] == "perturblab_runs: 4 runs"
    assert [line.split()[0] for line in lines[1:4]] == ["failed", "stopped", "stopped"]
    assert any(line.endswith("runs that failed, untouched for 30 days") for line in lines)
    assert lines[-1] == "nothing was removed; the same command with --yes removes it"
    size = sum(
        path.stat().st_size for seed in (1, 2, 3) for path in state(place, seed).rglob("*") if path.is_file()
    )
    (total,) = (line for line in lines if line.lstrip().startswith("in all"))
    assert f"{size / 1e6:.3g} MB" in total or f"{size / 1e3:.3g} kB" in total


def test_with_yes_old_failed_and_stopped_runs_go_and_results_and_exports_stay(
    place: Path, zygote: Zygote
) -> None:
    kept = {name: data for name, data in files_of(place).items() if "seed0" in name}
    assert any(name.startswith("results/") for name in kept)
    assert "freed" in pruned(zygote, place, "--yes")
    assert files_of(place) == kept
    assert "nothing is old" in pruned(zygote, place)


def test_what_was_touched_since_is_not_old(place: Path, zygote: Zygote) -> None:
    age(state(place, 1) / "failure.json", 29)
    age(state(place, 2) / "settings.json", 0)
    pruned(zygote, place, "--yes")
    assert names(place) == {f"vgg11_masked_seed{seed}" for seed in (0, 1, 2)}
    pruned(zygote, place, "--yes", "--older-than", "28")
    assert names(place) == {f"vgg11_masked_seed{seed}" for seed in (0, 2)}
    assert not [*state(place, 2).glob("claim-*")], "the killed worker's claim is no state"


def test_finished_runs_go_only_with_done_and_yes_and_their_exports_never(place: Path, zygote: Zygote) -> None:
    exports = {name: data for name, data in files_of(place).items() if not name.startswith("perturblab_runs")}
    assert "the results of 1 finished runs" in pruned(zygote, place, "--done")
    assert (state(place, 0) / "results.json").exists()
    age(state(place, 0) / "results.json", 10)
    pruned(zygote, place, "--yes", "--done")
    assert names(place) == {"vgg11_masked_seed0"}, "it is younger than 30 days"
    pruned(zygote, place, "--yes", "--done", "--older_than", "5")
    assert files_of(place) == exports


def test_a_run_that_a_living_process_holds_is_left_alone(place: Path, zygote: Zygote) -> None:
    with held(state(place, 2)), held(state(place, 0)):
        out = pruned(zygote, place, "--yes", "--older_than", "0", "--done")
        assert "left alone, a process works there: 2" in out
        assert names(place) == {"vgg11_masked_seed0", "vgg11_masked_seed2"}
    pruned(zygote, place, "--yes", "--older_than", "0", "--done")
    assert names(place) == set()


def test_leftovers_of_a_finished_run_go_and_it_stays_the_same(
    place: Path, zygote: Zygote, tiny_run: list[str]
) -> None:
    run = state(place, 0)
    before = files_of(run)
    for name in (
        "checkpoint-000001-00000004.pt",
        "checkpoint-000001-00000004.pt.sha256",
        ".final.pt.x1.tmp",
        "log.txt",
    ):
        (run / name).write_bytes(b"1234567890")
        age(run / name, 40)
    out = pruned(zygote, place, "--yes")
    for words in (
        "checkpoints of finished runs",
        "logs of finished runs",
        "temporary files and claims of dead",
    ):
        assert words in out
    assert not differing(before, files_of(run))
    assert zygote.run(tiny_run, place).code == 0


def test_with_a_grid_only_its_runs_are_looked_at(place: Path, zygote: Zygote, tiny_run: list[str]) -> None:
    flags = dict(zip(tiny_run[2::2], tiny_run[3::2], strict=True)) | {"--seed": "1,5", "--lr": "1e20"}
    words = [word for flag, value in flags.items() for word in ("--set", f"{flag[2:]}={value}")]
    out = pruned(zygote, place, "masked-loss", *words, "--yes")
    assert "masked-loss: 1 runs" in out
    assert names(place) == {f"vgg11_masked_seed{seed}" for seed in (0, 2, 3)}


def test_folders_that_are_no_run_and_links_are_left_alone(place: Path, zygote: Zygote) -> None:
    runs = place / "perturblab_runs" / "masked-loss"
    outside = place / "outside" / state(place, 1).name
    shutil.move(state(place, 1), outside)
    for path in outside.rglob("*"):
        age(path, 40)
    (runs / outside.name).symlink_to(outside)
    (place / "perturblab_runs" / "linked").symlink_to(place / "outside")
    stranger = runs / "my thesis-0123456789"
    stranger.mkdir()
    (stranger / "settings.json").write_text("{}")
    changed = state(place, 3)
    (changed / "manifest.json").write_text(json.dumps({"run_id": "0000000000"}))
    for path in (stranger / "settings.json", changed / "manifest.json"):
        age(path, 40)
    (state(place, 2) / "mine").symlink_to(outside)
    out = pruned(zygote, place, "--yes", "--older_than", "0", "--done")
    assert (
        f"left alone, not the folder of a run: perturblab_runs/masked-loss/{stranger.name} and 1 more" in out
    )
    assert {path.name for path in runs.iterdir()} == {stranger.name, changed.name, outside.name}
    assert (outside / "settings.json").exists(), "what a link leads to is no business of ours"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--runs_dir", "nowhere"), "no folder nowhere"),
        (("--set", "seed=1"), "--set needs a study or a FILE.yaml"),
        (("masked-los",), "no study 'masked-los'; did you mean 'masked-loss'?"),
        (("--older_than", "-1"), "it must be a finite number, 0 or more"),
    ],
)
def test_a_slip_is_one_line_and_removes_nothing(
    place: Path, zygote: Zygote, words: tuple[str, ...], told: str
) -> None:
    before = files_of(place)
    assert told in zygote.run(["prune", *words, "--yes"], place).one_line
    assert files_of(place) == before


def killed_at(made: Path, zygote: Zygote, folder: Path, every: int) -> list[str]:
    """Kill ``prune --yes`` at every n-th change of a file; what stands there under a run's name and is not whole."""
    words = ["prune", "--yes", "--older_than", "0", "--done"]
    shutil.copytree(made, folder / "counted")
    log = folder / "points"
    assert zygote.run(words, folder / "counted", hooks=[["killpoints", "install", 0, str(log)]]).code == 0
    points = len(log.read_text().splitlines())
    assert points > 40
    whole = {path.name: set(files_of(path)) for path in made.glob("perturblab_runs/masked-loss/*")}
    wrong = []
    for target in range(1, points + 1, every):
        here = folder / f"killed-{target}"
        shutil.copytree(made, here)
        ended = zygote.run(words, here, hooks=[["killpoints", "install", target]])
        assert ended.code in (-signal.SIGKILL, 0), ended.output
        for path in here.glob("perturblab_runs/masked-loss/*"):
            if name_before(path):
                continue
            there = {name for name in files_of(path) if not name.startswith(("claim-", ".claim-"))}
            lost = {n for n in whole[path.name] if not n.startswith(("claim-", ".claim-"))} - there
            if lost or run_at(path).id != path.name[-10:]:
                wrong.append(f"point {target}: {path.name} lost {sorted(lost)}")
        assert zygote.run(words, here).code == 0
        assert not [*here.glob("perturblab_runs/masked-loss/*")], f"point {target}: the next call ends it"
        assert (here / "results").is_dir()
        shutil.rmtree(here)
    return wrong


def test_killed_in_the_middle_a_run_is_whole_or_no_run_and_the_next_call_ends_it(
    made: Path, zygote: Zygote, tmp_path: Path
) -> None:
    assert killed_at(made, zygote, tmp_path, every=29) == []


@pytest.mark.slow
def test_killed_at_any_change_of_a_file_a_run_is_whole_or_no_run(
    made: Path, zygote: Zygote, tmp_path: Path
) -> None:
    assert killed_at(made, zygote, tmp_path, every=3) == []


def test_prune_loads_no_torch(made: Path) -> None:
    heavy, printed = loaded_by("prune", "prune masked-loss", folder=made)
    assert heavy == []
    assert printed > 20
