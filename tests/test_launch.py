"""Sweeps and scripts: what is done is skipped, a failing run does not stop the others, and killing is safe."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import TESTS, Ended, Zygote, differing, environment, files_of, program
from perturblab.launch import Cell
from perturblab.launch.script import write_script
from perturblab.runs import RunFolder, run_folder
from perturblab.studies.masked_loss import Sweep, Train

SHARED = "--width 0.05 --epochs 3 --batch_size 20 --robustness_masks 2 --clamp rescale --lr 0.05 --threads 1 --device cpu"


@pytest.fixture
def shared(npz: Path) -> list[str]:
    """Settings that all cells share: a third of a second each."""
    return [*SHARED.split(), "--dataset", f"npz:{npz}"]


def cell_folder(folder: Path, shared: list[str], mode: str, seed: int = 0) -> RunFolder:
    """The run folder of one cell of a sweep that is called in ``folder``."""
    pairs = zip(shared[::2], shared[1::2], strict=True)
    train = Train.parse({**dict(pairs), "arch": "vgg11", "mode": mode, "seed": seed})
    return run_folder(train, train.name, folder / train.runs_dir)


def sweep_words(shared: list[str], *more: str) -> list[str]:
    return ["masked-loss", "sweep", "--architectures", "vgg11", *shared, *more]


def run(folder: Path, words: list[str]) -> Ended:
    ended = subprocess.run(
        program(*words),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Ended(ended.returncode, ended.stdout)


def plant_other_data(run: RunFolder) -> None:
    """Make a cell fail: its run was started on other data."""
    run.path.mkdir(parents=True)
    (run.path / "manifest.json").write_text(
        json.dumps({"machine": {}, "data": {"train": "other", "test": ""}})
    )


def table(ended: Ended) -> dict[str, str]:
    """The status of each run in the printed table."""
    lines = ended.output[ended.output.rindex("run  ") :].splitlines()[1:]
    return {
        line.split()[0]: line.split()[1]
        for line in lines
        if line.startswith("vgg") and "%" not in line and ":" not in line.split()[1]
    }


def processes_in(folder: Path) -> list[int]:
    """Live processes whose current folder is this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and os.readlink(process / "cwd") == str(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def single_runs(zygote: Zygote, shared: list[str], folder: Path, modes: tuple[str, ...]) -> dict[str, bytes]:
    """The files that the cells leave when each is run by itself."""
    for mode in modes:
        words = ["masked-loss", "train", "--arch", "vgg11", "--mode", mode, "--seed", "0", *shared]
        assert zygote.run(words, folder).code == 0
    return compared(folder)


def compared(folder: Path) -> dict[str, bytes]:
    """Weights, rows, results and exports; logs are a sweep's own."""
    return {name: data for name, data in files_of(folder).items() if not name.endswith("log.txt")}


# ---- sweeps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how", [["--mode", "sequential"], ["--mode", "parallel", "--jobs", "2"]], ids=lambda w: w[1]
)
def test_a_sweep_goes_on_after_a_failing_run_and_called_again_runs_only_what_is_missing(
    zygote: Zygote, shared: list[str], tmp_path: Path, how: list[str]
) -> None:
    words = sweep_words(shared, "--modes", "baseline", "masked", "--seeds", "0", *how)
    bad, good = cell_folder(tmp_path, shared, "baseline"), cell_folder(tmp_path, shared, "masked")
    plant_other_data(bad)

    first = run(tmp_path, words)
    assert first.code == 1
    assert table(first) == {"vgg11_baseline_seed0": "failed", "vgg11_masked_seed0": "done"}
    assert "vgg11_baseline_seed0 failed: " in first.output
    assert "was started on other data (train, test differs)" in first.output
    assert "1 of 2 runs failed; the same command runs only what is missing" in first.output
    assert "Traceback" not in first.output
    assert (bad.status, good.status) == ("failed", "done")

    times = (good.path / "timings.jsonl").read_bytes()
    shutil.rmtree(bad.path)
    second = run(tmp_path, words)
    assert second.code == 0, second.output
    assert "1 of 2 runs are done already" in second.output
    assert table(second) == {"vgg11_baseline_seed0": "done", "vgg11_masked_seed0": "skipped"}
    assert (good.path / "timings.jsonl").read_bytes() == times, "the run that was done was trained again"

    third = run(tmp_path, words)
    assert third.code == 0
    assert set(table(third).values()) == {"skipped"}
    expected = single_runs(zygote, shared, tmp_path / "single", ("baseline", "masked"))
    shutil.rmtree(tmp_path / "single", ignore_errors=True)
    assert not differing(expected, compared(tmp_path))


def test_a_sweep_restores_exports_that_a_kill_prevented(
    zygote: Zygote, shared: list[str], tmp_path: Path
) -> None:
    """Killed between the results and their export, a run is done: a sweep that skipped it would never export it."""
    words = ["masked-loss", "train", "--arch", "vgg11", "--mode", "baseline", "--seed", "0", *shared]
    kill = [["killpoints", "install", "before mkdir results"]]
    assert zygote.run(words, tmp_path, hooks=kill).code == -signal.SIGKILL
    assert cell_folder(tmp_path, shared, "baseline").status == "done"
    assert not (tmp_path / "results").exists()
    ended = run(tmp_path, sweep_words(shared, "--modes", "baseline", "--seeds", "0"))
    assert ended.code == 0
    assert (tmp_path / "results" / "vgg11_baseline_seed0.json").exists()
    assert (tmp_path / "checkpoints" / "vgg11_baseline_seed0.pt").exists()


def test_a_damaged_result_is_a_failed_run_of_the_table_not_the_end_of_the_sweep(
    zygote: Zygote, shared: list[str], tmp_path: Path
) -> None:
    words = ["masked-loss", "train", "--arch", "vgg11", "--mode", "baseline", "--seed", "0", *shared]
    kill = [["killpoints", "install", "before mkdir results"]]
    assert zygote.run(words, tmp_path, hooks=kill).code == -signal.SIGKILL
    path = cell_folder(tmp_path, shared, "baseline").path / "results.json"
    path.write_bytes(path.read_bytes()[:-10])
    ended = run(tmp_path, sweep_words(shared, "--modes", "baseline", "masked", "--seeds", "0"))
    assert ended.code == 1
    assert table(ended) == {"vgg11_baseline_seed0": "failed", "vgg11_masked_seed0": "done"}
    assert "Traceback" not in ended.output


def stop_sweep(folder: Path, words: list[str], number: int, running: list[RunFolder]) -> tuple[int, str]:
    """Start a sweep, send it the signal when all of ``running`` train, and wait until nothing of it is left."""
    with open(folder / "out", "w+") as output:
        sweep = subprocess.Popen(
            program(*words),
            cwd=folder,
            env=environment(),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        until(lambda: all((run.path / "rows.jsonl").exists() for run in running))
        sweep.send_signal(number)
        sweep.wait(60)
        until(lambda: not processes_in(folder), 20)
    return sweep.returncode, (folder / "out").read_text()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_sweep_that_is_stopped_takes_its_runs_along_and_goes_on_when_called_again(
    zygote: Zygote, shared: list[str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    long = list(shared)
    long[long.index("--epochs") + 1] = "25"
    words = sweep_words(
        long, "--modes", "baseline", "masked", "--seeds", "0", "--mode", "parallel", "--jobs", "2"
    )
    here = tmp_path / "here"
    here.mkdir()
    runs = [cell_folder(here, long, mode) for mode in ("baseline", "masked")]
    ended, output = stop_sweep(here, words, number, runs)
    assert ended == code, output
    assert "Traceback" not in output
    assert [run.status for run in runs] == ["interrupted", "interrupted"]
    assert all(run.checkpoints() for run in runs), "a run was stopped without saving"
    again = run(here, words)
    assert again.code == 0, again.output
    (here / "out").unlink()
    expected = single_runs(zygote, long, tmp_path / "single", ("baseline", "masked"))
    assert not differing(expected, compared(here))


# ---- scripts -----------------------------------------------------------------------------------------------------------


def script_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("python")]


def test_a_generated_script_is_executable_bash_whose_lines_begin_with_python(tmp_path: Path) -> None:
    ended = run(tmp_path, ["masked-loss", "sweep", "--mode", "generate"])
    assert ended.code == 0
    script = tmp_path / "run_all.sh"
    assert script.stat().st_mode & 0o777 == 0o755
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    shown = subprocess.run(
        "cat run_all.sh | grep '^python'",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(shown) == 24
    assert shown == script_lines(script)
    assert shown[0] == "python -m perturblab masked-loss train --arch vgg11 --mode baseline --seed 0"
    comments = [line for line in script.read_text().splitlines() if line.startswith("# ")]
    assert comments[1] == "# 1/24: vgg11_baseline_seed0"
    assert len(comments) == 25


AWKWARD = {
    "results_dir": "my results/it's $HOME; rm -rf *",
    "checkpoint_dir": 'a"b`c`',
    "runs_dir": "-runs",
    "data_dir": "data\\dir",
    "dataset": "npz:with space/é ü.npz",
    "n_masks": 5,
    "compile": True,
    "clean_every": 7,
    "lr": 1e-05,
}


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Train:
    """The settings that the real command line makes of these words, without running them."""
    from perturblab import cli
    from perturblab.studies.masked_loss import run as module

    seen: list[Train] = []
    monkeypatch.setattr(module, "train", seen.append)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    return seen[0]


def test_every_generated_line_gives_its_cell_again_through_the_shell_and_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also paths with blanks, quotes, dollar signs, a leading dash."""
    sweep = Sweep.parse(
        {**AWKWARD, "architectures": ("vgg11", "vgg19"), "modes": ("masked",), "seeds": (0, 7)}
    )
    cells = [Cell(train.name, train) for train in sweep.grid()]
    write_script(cells, tmp_path / "run all.sh", "python -m perturblab")
    lines = script_lines(tmp_path / "run all.sh")
    assert len(lines) == len(cells) == 4
    echo = tmp_path / "echo"
    echo.write_text("import json, sys; print(json.dumps(sys.argv[1:]))")
    for line, cell in zip(lines, cells, strict=True):
        called = line.replace("python -m perturblab", f"python {shlex.quote(str(echo))}", 1)
        said = subprocess.run(["bash", "-c", called], capture_output=True, text=True, check=True).stdout
        assert parsed(json.loads(said), monkeypatch) == cell.settings


def test_a_generated_script_runs_under_bash_and_skips_what_is_done(
    zygote: Zygote, shared: list[str], tmp_path: Path
) -> None:
    """Two cells; the lines also go through ``grep | parallel`` as the document says, where GNU parallel is there."""
    words = sweep_words(shared, "--modes", "baseline", "masked", "--seeds", "0", "--mode", "generate")
    assert run(tmp_path, [*words, "--output_script", "my runs.sh"]).code == 0
    expected = single_runs(zygote, shared, tmp_path / "single", ("baseline", "masked"))
    shutil.copytree(tmp_path / "single", tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "single")
    masked = cell_folder(tmp_path, shared, "masked")
    for path in [masked.path, *tmp_path.glob("*/vgg11_masked_seed0.*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = subprocess.run(["./my runs.sh"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "baseline_seed0 epoch" not in ended.stdout, "the run that was done was trained again"
    (tmp_path / "my runs.sh").unlink()
    assert not differing(expected, compared(tmp_path))


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
@pytest.mark.slow
def test_the_documented_parallel_line_runs_a_generated_script(shared: list[str], tmp_path: Path) -> None:
    words = sweep_words(shared, "--modes", "baseline", "masked", "--seeds", "0", "--mode", "generate")
    assert run(tmp_path, words).code == 0
    line = "cat run_all.sh | grep '^python' | parallel -j 4"
    assert subprocess.run(line, shell=True, cwd=tmp_path, env=environment()).returncode == 0
    assert len(list((tmp_path / "results").glob("*.json"))) == 2


def test_a_line_of_a_script_that_fails_does_not_stop_the_lines_after_it(tmp_path: Path) -> None:
    cells = [Cell("bad", Train.parse({"arch": "vgg11", "mode": "baseline", "seed": 0}))]
    write_script([*cells, *cells], tmp_path / "run.sh", "false; echo python")
    ended = subprocess.run([tmp_path / "run.sh"], capture_output=True, text=True)
    assert ended.stdout.count("masked-loss train") == 2
    assert TESTS.name == "tests"
