"""Sweeps and scripts: what is done is skipped, a failing run does not stop the others, and killing is safe."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Ended, Zygote, differing, environment, files_of, program, until
from perturblab.launch import Cell
from perturblab.launch.script import hand_over, write_script
from perturblab.runs import RunFolder, run_folder
from perturblab.studies.masked_loss import Sweep, Train
from perturblab.studies.masked_loss.sweep import plan_of

SHARED = "--width 0.05 --epochs 12 --batch_size 20 --robustness_masks 2 --clamp rescale --lr 0.05 --threads 1 --device cpu"
MODES = ("baseline", "masked")
SIDE_BY_SIDE = ("--mode", "parallel", "--jobs", "2")


@pytest.fixture(scope="module")
def shared(npz: Path) -> list[str]:
    """Settings that all cells share; a run takes about half a second."""
    return [*SHARED.split(), "--dataset", f"npz:{npz}"]


@pytest.fixture(scope="module")
def single(zygote: Zygote, shared: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which each cell was run by itself."""
    folder = tmp_path_factory.mktemp("single")
    for mode in MODES:
        ended = zygote.run(train_words(shared, mode), folder)
        assert ended.code == 0, ended.output
    return folder


def train_words(shared: list[str], mode: str) -> list[str]:
    return ["masked-loss", "train", "--arch", "vgg11", "--mode", mode, "--seed", "0", *shared]


def sweep_words(shared: list[str], *more: str) -> list[str]:
    return [
        "masked-loss",
        "sweep",
        "--architectures",
        "vgg11",
        "--modes",
        *MODES,
        "--seeds",
        "0",
        *shared,
        *more,
    ]


def given(shared: list[str]) -> dict[str, str]:
    return dict(zip(shared[::2], shared[1::2], strict=True))


def cell_folder(folder: Path, shared: list[str], mode: str) -> RunFolder:
    """The run folder of one cell of a sweep that is called in ``folder``."""
    train = Train.parse({**given(shared), "arch": "vgg11", "mode": mode, "seed": 0})
    return run_folder(train, train.name, folder / train.runs_dir)


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
    manifest = {"machine": {}, "data": {"train": "other", "test": ""}}
    (run.path / "manifest.json").write_text(json.dumps(manifest))


def table(ended: Ended) -> dict[str, str]:
    """The status of each run in the printed table."""
    lines = ended.output[ended.output.rindex("run  ") :].splitlines()
    words = [line.split() for line in lines if line.startswith("vgg")]
    return {word[0]: word[1] for word in words if word[1] in ("done", "skipped", "failed")}


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


def compared(folder: Path) -> dict[str, bytes]:
    """Weights, rows, results and exports; logs are a sweep's own."""
    return {name: data for name, data in files_of(folder).items() if not name.endswith("log.txt")}


# ---- sweeps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        pytest.param((), marks=pytest.mark.slow, id="one after another"),
        pytest.param(SIDE_BY_SIDE, id="two at a time"),
    ],
)
def test_a_sweep_goes_on_after_a_failing_run_and_called_again_runs_only_what_is_missing(
    shared: list[str], single: Path, tmp_path: Path, how: tuple[str, ...]
) -> None:
    words = sweep_words(shared, *how)
    bad, good = (cell_folder(tmp_path, shared, mode) for mode in MODES)
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
    assert not differing(compared(single), compared(tmp_path))


def test_a_run_whose_exports_a_kill_prevented_is_missing_from_a_sweep(
    shared: list[str], single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results are there, so it is done; skipped, it would never be exported."""
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    grid = {"architectures": ("vgg11",), "modes": MODES, "seeds": (0,)}
    plan = plan_of(Sweep.parse({**given(shared), **grid}))
    assert [cell.name for cell in plan.missing()] == []
    (tmp_path / "results" / "vgg11_baseline_seed0.json").unlink()
    assert [cell.name for cell in plan.missing()] == ["vgg11_baseline_seed0"]
    (tmp_path / "checkpoints" / "vgg11_masked_seed0.pt").unlink()
    assert [cell.name for cell in plan.missing()] == ["vgg11_baseline_seed0", "vgg11_masked_seed0"]
    assert all(plan.folder(cell).done for cell in plan.cells)


@pytest.mark.slow
def test_a_damaged_result_is_a_failed_run_of_the_table_not_the_end_of_the_sweep(
    shared: list[str], single: Path, tmp_path: Path
) -> None:
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    bad, good = (cell_folder(tmp_path, shared, mode) for mode in MODES)
    (bad.path / "results.json").write_bytes((bad.path / "results.json").read_bytes()[:-10])
    (tmp_path / "results" / "vgg11_baseline_seed0.json").unlink()
    shutil.rmtree(good.path)
    ended = run(tmp_path, sweep_words(shared))
    assert ended.code == 1
    assert table(ended) == {"vgg11_baseline_seed0": "failed", "vgg11_masked_seed0": "done"}
    assert "results.json is damaged; remove " in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
    ids=["ctrl-c", "SIGTERM", "SIGHUP", "SIGKILL"],
)
def test_a_sweep_that_is_stopped_takes_its_runs_along_and_goes_on_when_called_again(
    shared: list[str], single: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = sweep_words(shared, *SIDE_BY_SIDE)
    runs = [cell_folder(tmp_path, shared, mode) for mode in MODES]
    ended = stopped(tmp_path, words, number, runs)
    assert ended.code == code, ended.output
    assert "Traceback" not in ended.output
    status = [run.status for run in runs]
    assert set(status) <= {"interrupted", "done"}, "done: it ended before the signal, on a busy machine"
    assert "interrupted" in status
    saved = [bool(run.checkpoints()) for run in runs if run.status == "interrupted"]
    assert all(saved), "a run was stopped without saving"
    again = run(tmp_path, words)
    assert again.code == 0, again.output
    assert not differing(compared(single), compared(tmp_path))


def stopped(folder: Path, words: list[str], number: int, running: list[RunFolder]) -> Ended:
    """Start a sweep, send it the signal when all of ``running`` train, and wait until nothing of it is left."""
    out = folder.with_name(f"{folder.name}.out")
    with open(out, "w") as output:
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
        until(lambda: not processes_in(folder))
    return Ended(sweep.returncode, out.read_text())


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
    shared: list[str], single: Path, tmp_path: Path
) -> None:
    """Two cells, one of them done."""
    words = sweep_words(shared, "--mode", "generate")
    assert run(tmp_path, [*words, "--output_script", "my runs.sh"]).code == 0
    shutil.copytree(single, tmp_path, dirs_exist_ok=True)
    masked = cell_folder(tmp_path, shared, "masked")
    for path in [masked.path, *tmp_path.glob("*/vgg11_masked_seed0.*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = subprocess.run(["./my runs.sh"], cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "baseline_seed0 epoch" not in ended.stdout, "the run that was done was trained again"
    (tmp_path / "my runs.sh").unlink()
    assert not differing(compared(single), compared(tmp_path))


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
@pytest.mark.slow
def test_the_documented_parallel_line_runs_a_generated_script(shared: list[str], tmp_path: Path) -> None:
    words = sweep_words(shared, "--mode", "generate")
    assert run(tmp_path, words).code == 0
    line = "cat run_all.sh | grep '^python' | parallel -j 4"
    assert subprocess.run(line, shell=True, cwd=tmp_path, env=environment()).returncode == 0
    assert len(list((tmp_path / "results").glob("*.json"))) == 2


ENDS = """
import os, sys
seed = sys.argv[sys.argv.index("--seed") + 1]
print("run", seed, flush=True)
sys.exit(int(os.environ.get("EXIT_" + seed, 0)))
"""
WAITS = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda number, frame: sys.exit(130))
print("run", flush=True)
time.sleep(60)
"""


def script_of(folder: Path, n: int, program: str) -> Path:
    """A script of ``n`` runs with a program in the place of perturblab; its folder's name needs quoting."""
    (folder / "my [0].x").mkdir()
    called = folder / "my [0].x" / "called.py"
    called.write_text(program)
    trains = [Train.parse({"arch": "vgg11", "mode": "baseline", "seed": seed}) for seed in range(n)]
    prefix = f"{shlex.quote(sys.executable)} -IS {shlex.quote(str(called))}"
    write_script([Cell(train.name, train) for train in trains], folder / "run_all.sh", prefix)
    return folder / "run_all.sh"


@pytest.mark.parametrize(
    ("codes", "begun", "code", "told"),
    [
        ((0, 0, 0), 3, 0, []),
        ((0, 2, 0), 3, 1, ["runs that failed: 1 of 3; the same command runs only what is missing"]),
        ((69, 0, 0), 3, 69, ["runs that another process is at work on: 1 of 3; they were left to it"]),
        ((1, 75, 0), 2, 75, []),
        ((99, 0, 0), 1, 99, []),
        ((130, 0, 0), 1, 130, []),
    ],
)
def test_a_script_goes_on_after_a_run_that_fails_ends_with_1_and_stops_where_a_run_was_stopped(
    tmp_path: Path, codes: tuple[int, ...], begun: int, code: int, told: list[str]
) -> None:
    script = script_of(tmp_path, 3, ENDS)
    env = {**environment(), **{f"EXIT_{seed}": str(code) for seed, code in enumerate(codes)}}
    ended = subprocess.run([script], env=env, capture_output=True, text=True)
    assert ended.stdout.splitlines() == [f"run {seed}" for seed in range(begun)]
    assert (ended.returncode, ended.stderr.splitlines()) == (code, told)


def test_ctrl_c_ends_a_script_and_not_only_the_run_that_is_on(tmp_path: Path) -> None:
    """It reaches bash and the run; the run saves and ends well, after which bash by itself goes on."""
    process = subprocess.Popen(
        ["bash", script_of(tmp_path, 3, WAITS)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "run\n"
    os.killpg(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("", 130)


@pytest.mark.parametrize(
    "prefix", ["python", "'/opt/my [0].x/py thon' -m perturblab", r"/opt/a\ b/p*.y$ -m x", "OMP_NUM_THREADS=1 python"]
)  # fmt: skip
def test_the_line_that_is_printed_picks_the_runs_out_of_the_script_however_the_program_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    trains = [Train.parse({"arch": "vgg11", "mode": "baseline", "seed": seed}) for seed in (0, 1)]
    cells = [Cell(train.name, train) for train in trains]
    hand_over(cells, "my runs.sh", prefix)
    said = capsys.readouterr().out
    assert said.startswith("my runs.sh: 2 runs; start it, or: cat ")
    command = said.partition("or: ")[2].partition(" | parallel")[0]
    picked = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (picked.stdout.splitlines(), picked.stderr) == ([cell.line(prefix) for cell in cells], "")
    hand_over(cells[:1], "one.sh", prefix)
    assert capsys.readouterr().out.startswith("one.sh: 1 run; ")


SERVER = """
import multiprocessing, os
def session(told): told.put(os.getsid(os.getppid()))
if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["perturblab.launch.session"])
    told = context.Queue()
    process = context.Process(target=session, args=(told,))
    process.start()
    print(told.get() != os.getsid(0))
    process.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere runs are not forked from a server")
def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server_from_which_runs_are_forked(
    tmp_path: Path,
) -> None:
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
