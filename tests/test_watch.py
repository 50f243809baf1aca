"""watch over real runs: lines in a log, a screen on a terminal, and nothing that a run does brings it down."""

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from conftest import Zygote, environment, files_of, program, until
from perturblab.claims import held
from perturblab.gridcommands import WatchGrid
from perturblab.gridcommands.moment import Moment, Watcher, left_s, number
from perturblab.gridcommands.screen import Screen
from perturblab.launch import Cell
from test_rules import loaded_by

GOOD, BAD, LEFT = "vgg11_masked_seed0", "vgg11_masked_seed1", "vgg11_masked_seed2"
"""A run that is done, one that failed, one that was killed."""


@pytest.fixture(scope="module")
def grid(npz: Path) -> str:
    fixed = {
        "dataset": f"npz:{npz}", "arch": "vgg11", "width": 0.05, "epochs": 4, "batch_size": 20, "robustness_masks": 2,
        "threads": 1, "device": "cpu", "lr": 0.05, "checkpoint_every": 0,
    }  # fmt: skip
    return json.dumps(
        {"study": "masked-loss", "fixed": fixed, "axes": {"mode": ["masked"], "seed": [0, 1, 2]}}
    )


def cells(folder: Path) -> dict[str, Cell]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return {cell.name: cell for cell in Watcher(WatchGrid(grid="grid.yaml")).plan.cells}
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def made(grid: str, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nobody may change it."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "grid.yaml").write_text(grid)
    there = cells(folder)
    assert zygote.run(there[GOOD].settings.arguments(), folder).code == 0
    for name in (BAD, LEFT):
        pid = zygote.start(there[name].settings.arguments(), folder)
        (path,) = [folder / "perturblab_runs" / "masked-loss" / f"{name}-{there[name].settings.id}"]
        until((path / "rows.jsonl").exists)
        until(lambda path=path: b"\n" in (path / "rows.jsonl").read_bytes())
        os.kill(pid, signal.SIGKILL)
        assert zygote.wait().code == -signal.SIGKILL, "it was faster"
    (run,) = folder.glob(f"perturblab_runs/masked-loss/{BAD}-*")
    (run / "failure.json").write_text('{"kind": "failed", "message": "RuntimeError: out\\nof memory"}')
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current folder."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def state(place: Path, name: str) -> Path:
    (path,) = place.glob(f"perturblab_runs/masked-loss/{name}-*")
    return path


def picture(moment: Moment, width: int, height: int) -> list[str]:
    console = Console(
        width=width, height=height, color_system=None, force_terminal=True, legacy_windows=False
    )
    with console.capture() as caught:
        console.print(Screen(moment))
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in caught.get().splitlines()]


# ---- as a user starts it ---------------------------------------------------------------------------------------------


def test_in_a_log_it_says_what_changes_and_ends_when_nothing_is_left(
    grid: str, zygote: Zygote, tmp_path: Path
) -> None:
    (tmp_path / "grid.yaml").write_text(grid)
    there = cells(tmp_path)
    watch = subprocess.Popen(
        program("watch", "grid.yaml", "--set", "seed=0,1", "--every", "0.1"), cwd=tmp_path,
        env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert watch.stdout is not None
    first = [watch.stdout.readline() for _ in range(2)]
    assert zygote.run(there[GOOD].settings.arguments(), tmp_path).code == 0
    pid = zygote.start(there[BAD].settings.arguments(), tmp_path)
    assert zygote.wait().code == 0
    output = "".join(first) + watch.stdout.read()
    watch.stdout.close()
    assert watch.wait(60) == 0, output
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in output.splitlines()]
    assert lines[0] == "masked-loss: 2 runs (2 seed) in perturblab_runs/masked-loss"
    assert lines[1].startswith("2 missing; nothing runs; go on: perturblab run grid.yaml --set seed=0,1")
    assert [line for line in lines if line.endswith(" done")][:1] == [f"{GOOD} done"]
    assert re.search(rf"^{BAD} running on [^ ]+:{pid}$", "\n".join(lines), re.MULTILINE), output
    assert lines[-1] == "all runs are done; next: perturblab masked-loss visualize"
    assert len(lines) < 14, "a line only where something has changed"


def test_ctrl_c_ends_the_watching_and_nothing_else(place: Path) -> None:
    before = files_of(place)
    watch = subprocess.Popen(
        program("watch", "grid.yaml", "--every", "0.1"),
        cwd=place,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
    )
    assert watch.stdout is not None
    watch.stdout.readline()
    watch.stdout.readline()
    time.sleep(0.3)
    watch.send_signal(signal.SIGINT)
    output = watch.stdout.read()
    watch.stdout.close()
    assert watch.wait(30) == 0
    assert output.splitlines()[-1] == "no longer watched; what runs goes on"
    assert files_of(place) == before, "it writes nothing"


def test_on_a_terminal_it_is_one_screen_that_lives(place: Path) -> None:
    main, other = pty.openpty()
    with held(state(place, LEFT)):
        watch = subprocess.Popen(
            program("watch", "grid.yaml", "--every", "0.1"), cwd=place, stdin=other, stdout=other, stderr=other,
            env=environment(TERM="xterm-256color", COLUMNS="110", LINES="24", PYTHONIOENCODING="utf-8"),
        )  # fmt: skip
        os.close(other)
        seen = b""
        while b"host:pid" not in seen:
            seen += os.read(main, 65536)
    shutil.rmtree(state(place, LEFT))
    while "nothing runs; go on" not in seen.decode(errors="replace"):
        seen += os.read(main, 65536)
    watch.send_signal(signal.SIGINT)
    assert watch.wait(30) == 0
    os.close(main)
    text = seen.decode(errors="replace")
    assert "\x1b[1A" in text, "it is drawn in place"
    assert f":{os.getpid()}" in text
    assert "Traceback" not in text


# ---- what it shows ---------------------------------------------------------------------------------------------------


def test_the_screen_tells_the_grid_each_running_run_why_others_failed_and_what_was_done_last(
    place: Path,
) -> None:
    with held(state(place, LEFT)):
        moment = Watcher(WatchGrid(grid="grid.yaml")).look()
    lines = picture(moment, 110, 30)
    assert lines[0].startswith("masked-loss: 3 runs (3 seed) in perturblab_runs/masked-loss")
    assert re.search(r" 1/3 +about \d+:\d\d left$", lines[1])
    assert lines[2] == "1 done, 1 running, 1 failed"
    (row,) = (line for line in lines if line.startswith(LEFT))
    epoch = json.loads((state(place, LEFT) / "rows.jsonl").read_bytes().splitlines()[-1])["epoch"]
    assert re.search(rf" {epoch}/4 +\d+:\d\d +test_acc \d+\.\d % +\S+:{os.getpid()}$", row), row
    assert f"  {BAD}: RuntimeError: out of memory" in lines
    assert re.fullmatch(rf"done last: {GOOD}, [\d:]+ ago", lines[-1])


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 50), (20, 14)])
def test_the_screen_is_never_larger_than_the_terminal(place: Path, size: tuple[int, int]) -> None:
    words = WatchGrid(grid="grid.yaml", given=("seed=" + ",".join(map(str, range(100))),))
    watcher = Watcher(words)
    there = [watcher.plan.folder(cell).path for cell in watcher.plan.cells]
    for number_, path in enumerate(there[3:63]):
        shutil.copytree(state(place, LEFT), path)
        (path / "failure.json").write_text(
            json.dumps({"kind": "failed", "message": f"reason {number_} " + "x" * 300})
        )
    with held(there[70]), held(there[71]):
        lines = picture(watcher.look(), *size)
    assert max(map(len, lines)) <= size[0]
    assert len(lines) <= max(size[1], 14)
    assert any(re.search(r"and \d+ more rea", line) for line in lines)


def test_a_folder_that_vanishes_or_is_half_written_does_not_bring_it_down(place: Path) -> None:
    watcher = Watcher(WatchGrid(grid="grid.yaml"))
    watcher.look()
    junk: list[Callable[[Path], object]] = [
        lambda path: (path / "rows.jsonl").write_bytes(b'{"epoch": 3, "test_acc": 0.5}\n{"epoch": 4, "tes'),
        lambda path: (path / "rows.jsonl").write_bytes(b"\x00\xff[[[\n[1]\n3\n" + b"{" * 100_000 + b"\n"),
        lambda path: (path / "rows.jsonl").write_bytes(b'{"epoch": "x", "test_acc": "y", "loss": null}\n'),
        lambda path: (path / "timings.jsonl").write_bytes(b'{"epoch": 1, "seconds": "soon"}\n[]\n'),
        lambda path: (path / "failure.json").write_bytes(b""),
        lambda path: (path / "failure.json").write_bytes(b'{"kind": 1}'),
        lambda path: (path / "claim-000009").mkdir(),
        lambda path: (path / "claim-000010" / "token").mkdir(parents=True),
        lambda path: (path / "claim-000010" / "token" / "holder.json").write_bytes(b'{"pid": []}'),
        lambda path: (path / "settings.json").write_bytes(b"{"),
        shutil.rmtree,
    ]
    for spoil in junk:
        spoil(state(place, LEFT))
        moment = watcher.look()
        assert not moment.trouble
        picture(moment, 100, 30)
    shutil.rmtree(place / "perturblab_runs")
    assert {one.state for one in watcher.look().seen} == {"missing"}
    (place / "perturblab_runs").write_text("a file")
    assert {one.state for one in watcher.look().seen} == {"missing"}


def test_what_cannot_be_read_for_a_moment_is_told_and_the_look_before_stays(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = Watcher(WatchGrid(grid="grid.yaml"))
    before = watcher.look()
    with monkeypatch.context() as patch:

        def away(path: object) -> list[str]:
            raise OSError(5, "Input/output error")

        patch.setattr("perturblab.grids.states.os.listdir", away)
        moment = watcher.look()
    assert "Input/output error" in moment.trouble
    assert moment.seen == before.seen
    assert any("cannot look at this moment" in line for line in picture(moment, 100, 30))
    assert watcher.look().trouble == ""


def test_looks_survive_runs_that_come_and_go_all_the_time(place: Path) -> None:
    """Two threads that make and remove run folders as fast as they can, while it looks a hundred times."""
    watcher, stop = Watcher(WatchGrid(grid="grid.yaml")), threading.Event()
    original, paths = state(place, LEFT), [watcher.plan.folder(cell).path for cell in watcher.plan.cells]
    shutil.copytree(original, place / "model")

    def churn(seed: int) -> None:
        chance = random.Random(seed)
        while not stop.is_set():
            path = chance.choice(paths)
            if chance.random() < 0.5:
                shutil.copytree(place / "model", path, dirs_exist_ok=True, ignore_dangling_symlinks=True)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def forgiving(seed: int) -> None:
        while not stop.is_set():
            try:
                churn(seed)
            except (OSError, shutil.Error):  # the other one removed what this one copies to
                continue

    threads = [threading.Thread(target=forgiving, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(100):
            picture(watcher.look(), 100, 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (
            [{"kind": "robustness", "kept_fraction": 0.5}, {"test_acc": 0.5, "train_acc": 1.0}],
            "test_acc 50.0 %",
        ),
        ([{"val_accuracy": 0.5, "loss": 1.0, "train_accuracy": 1.0}], "val_accuracy 50.0 %"),
        ([{"mask_acc_pct": 12.5}], "mask_acc_pct 12.5 %"),
        ([{"loss": 2.0}, {"test_acc": 0.9}, {"test_acc": 0.1}], "loss 2"),
        ([{"epoch": 3}, {"test_acc": 0.9}, {"test_acc": 0.1}], "test_acc 90.0 %"),
        ([{"loss_full": 1.23456}], "loss_full 1.235"),
        ([{"test_acc": None, "target_reached": True}], ""),
        ([], ""),
    ],
)
def test_the_number_of_a_run_is_its_newest_accuracy_on_test_if_it_has_one(
    rows: list[dict[str, object]], told: str
) -> None:
    assert number(rows) == told


def test_time_left_is_what_the_last_epochs_took_less_what_has_passed(tmp_path: Path) -> None:
    path = tmp_path / "timings.jsonl"
    assert left_s(path, 5) is None
    path.write_text(
        "".join(json.dumps({"epoch": n, "seconds": 100 if n < 5 else 10}) + "\n" for n in range(1, 10))
    )
    assert left_s(path, 5) == pytest.approx(50, abs=2)
    times = "".join(
        json.dumps({"epoch": n, "seconds": 10, "ended": f"2026-01-01T00:{n // 4:02d}:{n % 4 * 15:02d}Z"})
        + "\n"
        for n in range(1, 10)
    )
    (tmp_path / "measured.jsonl").write_text(times)
    assert left_s(tmp_path / "measured.jsonl", 5) == pytest.approx(75, abs=2), "5 s are measured after each"
    os.utime(path, (time.time() - 4,) * 2)
    assert left_s(path, 5) == pytest.approx(46, abs=2)
    os.utime(path, (time.time() - 4000,) * 2)
    assert left_s(path, 5) == pytest.approx(40)
    assert left_s(path, 0) == 0


# ---- size ------------------------------------------------------------------------------------------------------------


def look_takes(cells: int) -> tuple[float, Moment]:
    """Seconds of a look at a grid of which half exists: of ten runs one failed, one was killed, eight are done."""
    watcher = Watcher(WatchGrid(grid="masked-loss", given=(f"seed={','.join(map(str, range(cells // 8)))}",)))
    Path("results").mkdir()
    Path("checkpoints").mkdir()
    row = json.dumps({"epoch": 1, "seconds": 3.0, "test_acc": 0.5}) + "\n"
    for place, cell in enumerate(watcher.plan.cells[: cells // 2]):
        path = watcher.plan.folder(cell).path
        path.mkdir(parents=True)
        for name in ("settings.json", "rows.jsonl", "timings.jsonl"):
            (path / name).write_text(row)
        if place % 10 == 0:
            (path / "failure.json").write_text('{"message": "out of memory"}')
        elif place % 10 > 1:
            for one in (path / "results.json", *watcher.plan.exports(cell)):
                one.touch()
    with held(watcher.plan.folder(watcher.plan.cells[1]).path):
        watcher.look()
        took = []
        for _ in range(3):
            began = time.perf_counter()
            moment = watcher.look()
            picture(moment, 120, 40)
            took.append(time.perf_counter() - began)
    return min(took), moment


def test_a_grid_of_800_cells_is_looked_at_in_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seconds, moment = look_takes(800)
    assert len(moment.seen) == 800
    assert moment.working[0].number == "test_acc 50.0 %"
    assert seconds < 1


@pytest.mark.slow
def test_a_grid_of_10_000_cells_is_looked_at_within_2_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seconds, moment = look_takes(10_000)
    assert len(moment.seen) == 10_000
    assert seconds < 2


def test_watch_loads_no_torch(tmp_path: Path, grid: str) -> None:
    (tmp_path / "grid.yaml").write_text(grid)
    heavy, _ = loaded_by("watch --help", folder=tmp_path)
    assert heavy == []
    code = (
        "import sys; from perturblab.gridcommands.moment import Watcher; from perturblab.gridcommands import WatchGrid;"
        "Watcher(WatchGrid(grid='grid.yaml')).look(); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
