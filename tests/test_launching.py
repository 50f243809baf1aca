"""What becomes of a grid when something happens to one of its runs, its logs, its names or the launcher's helpers."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from commandline import called, parsed, refusal
from conftest import environment, program, until
from perturblab import hardware, sweep
from perturblab.attempts import perform
from perturblab.claims import Busy, held
from perturblab.cpus import _share
from perturblab.grids.asked import read
from perturblab.grids.cells import plan_of, runs_of
from perturblab.grids.states import look
from perturblab.launch import Cell, Outcome, dask_task
from perturblab.planning import settled
from perturblab.processes import is_alive, is_there
from perturblab.runs import RunFolder, run_folder
from perturblab.settings import Settings
from perturblab.studies import STUDIES
from perturblab.studies.correction import Run, base, provide
from perturblab.studies.masked_loss import Train
from perturblab.terminal import UserError
from smokes import write_grid

SLOW = ("--set", "epochs=4000")


def plan(*given: str) -> sweep.Plan:
    return plan_of(runs_of(read("masked-loss", ["arch=vgg11", "mode=baseline", "dataset=digits", *given], STUDIES), "runs"))  # fmt: skip


def start(folder: Path, npz: Path, *more: str) -> "subprocess.Popen[str]":
    """The grid of two runs, begun in ``folder``."""
    return subprocess.Popen(
        program(*write_grid(folder, npz), *more), cwd=folder, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def rows(folder: Path) -> list[Path]:
    return [path for path in folder.glob("perturblab_runs/*/*/rows.jsonl") if path.stat().st_size]


def holders(folder: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in folder.glob("perturblab_runs/*/*/claim-*/*/holder.json")]


# ---- one of the runs -------------------------------------------------------------------------------------------------


def test_a_run_that_is_told_to_stop_has_not_failed_and_one_line_says_how_to_go_on(
    npz: Path, tmp_path: Path
) -> None:
    with start(tmp_path, npz, "--set", "epochs=60") as process:
        until(lambda: len(rows(tmp_path)) == 2)
        os.kill(holders(tmp_path)[0]["pid"], signal.SIGTERM)  # type: ignore[arg-type]
        output, _ = process.communicate()
    assert process.returncode == 1, output
    assert ": stopped from outside, state saved; go on: perturblab run grid.yaml --set epochs=60\n" in output
    assert "failed" not in output
    assert sorted(line.split()[1] for line in output.splitlines() if line.startswith("vgg11") and ":" not in line.split()[0]) == ["done", "stopped"]  # fmt: skip


def test_a_log_that_cannot_be_opened_fails_its_run_and_no_other(npz: Path, tmp_path: Path) -> None:
    with start(tmp_path, npz) as process:
        assert process.wait() == 0
    (done, blocked) = sorted((tmp_path / "perturblab_runs" / "masked-loss").iterdir())
    for one in (done, blocked):
        (one / "results.json").unlink()
    (blocked / "log.txt").unlink()
    (blocked / "log.txt").mkdir()
    with start(tmp_path, npz) as process:
        output, _ = process.communicate()
    assert process.returncode == 1
    assert "failed: cannot write " in output
    assert "log.txt: Is a directory" in output
    assert (done / "results.json").exists()
    assert not (blocked / "results.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="runs are forked from a server on Linux only")
def test_runs_outlive_the_server_that_they_were_forked_from(npz: Path, tmp_path: Path) -> None:
    with start(tmp_path, npz, "--set", "epochs=60") as process:
        until(lambda: len(rows(tmp_path)) == 2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (server,) = [pid for pid in children if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(server), signal.SIGKILL)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert [path.stat().st_size > 0 for path in tmp_path.glob("perturblab_runs/*/*/results.json")] == [
        True
    ] * 2


def test_calibration_that_is_killed_takes_its_run_with_it(npz: Path, tmp_path: Path) -> None:
    write_grid(tmp_path, npz)
    words = program("plan", "grid.yaml", *SLOW, "--set", "batch_size=72", "--calibrate", "60")
    with subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL) as process:
        until(lambda: bool(holders(tmp_path)))
        (holder,) = holders(tmp_path)
        process.kill()
    until(lambda: not is_alive(holder), 20)


# ---- other workers ---------------------------------------------------------------------------------------------------


def test_a_run_that_fails_elsewhere_meanwhile_is_left_to_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    two, started = plan("seed=0,1"), list[str]()

    def fail(run: RunFolder) -> None:
        raise UserError("the card fell off")

    def launch(cells, log_of, jobs, stop, on_end, preload=()):  # type: ignore[no-untyped-def]
        for cell in cells:
            started.append(cell.name)
            if len(started) == 1:  # while we are at the first, another worker tries the second
                with pytest.raises(UserError):
                    perform(two.folder(two.cells[1]), fail, lambda run: None)
        return [Outcome(two.cells[0], "done")]

    outcomes = sweep.run_plan(two, 2, launch)
    assert started == [two.cells[0].name]
    assert [(one.status, one.reason) for one in outcomes] == [("done", ""), ("failed", "the card fell off")]


def test_the_log_of_a_living_run_is_not_emptied_by_a_second_start_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = plan("seed=0")
    folder, log = one.folder(one.cells[0]).path, one.log(one.cells[0])
    folder.mkdir(parents=True)
    log.write_text("epoch 1/200\n")
    worker = SimpleNamespace(address="tcp://127.0.0.1:1", status=SimpleNamespace(name="running"))
    task = dask_task.Task(one.cells[0].settings.arguments(), str(tmp_path), str(log.absolute()), "session")
    with held(folder):
        end = dask_task._attempt(task, worker)
    assert end.status == "elsewhere"
    assert log.read_text().startswith("epoch 1/200\n")
    assert "is being worked on by" in log.read_text()


# ---- names and what they hold ----------------------------------------------------------------------------------------


def test_a_grid_that_grows_by_a_value_goes_on_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second learning rate puts both into the names of files; the run is the same one."""
    monkeypatch.chdir(tmp_path)
    small = plan("seed=0", "lr=0.05")
    perform(small.folder(small.cells[0]), lambda run: run.finish({}), lambda run: None)
    grown = look(plan("seed=0", "lr=0.05,0.1"))
    assert [one.cell.name for one in grown] == ["vgg11_baseline_seed0_lr0.05", "vgg11_baseline_seed0_lr0.1"]
    assert [one.run.done for one in grown] == [True, False]
    assert grown[0].run.path.resolve() == small.folder(small.cells[0]).path.resolve()


def test_a_run_folder_of_its_own_name_comes_before_one_of_another_name(tmp_path: Path) -> None:
    one, study = Settings(), tmp_path / ""
    for name in ("vgg_a", "vgg_z"):
        (study / f"{name}-{one.id}").mkdir()
    assert run_folder(one, "vgg_z", tmp_path).path.name == f"vgg_z-{one.id}"
    assert run_folder(one, "vgg_m", tmp_path).path.exists()
    shutil.rmtree(study / f"vgg_a-{one.id}")
    (study / f"other-{'0' * 10}").mkdir()
    assert run_folder(one, "vgg_m", tmp_path).path.name == f"vgg_z-{one.id}"
    (study / f"vgg_z-{one.id}").rename(study / f"old-{one.id}")
    assert not run_folder(one, "vgg_m", tmp_path).path.exists(), "a copy that the user keeps"


def test_a_grid_whose_files_another_one_has_taken_is_not_called_done(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = ["masked-loss", "--set", "arch=vgg11", "--set", "mode=masked", "--set", "seed=0"]
    fixed = dict(zip(tiny_run[2::2], tiny_run[3::2], strict=True))
    for name in ("--arch", "--mode", "--seed", "--epochs", "--robustness_masks"):
        fixed.pop(name, None)
    grid += [word for name, value in fixed.items() for word in ("--set", f"{name[2:]}={value}")]
    grid += ["--set", "epochs=1", "--set", "robustness_masks=0"]
    assert called("run", *grid)[0] == 0, called("run", *grid)
    code, _, told = called("run", *grid, "--set", "momentum=0.8")
    assert code == 0
    assert "vgg11_masked_seed0.json holds the results of other settings and will be replaced; --set suffix=NAME keeps both" in told  # fmt: skip
    for first, second in (((), ("--set", "momentum=0.8")), (("--set", "momentum=0.8"), ())):
        assert "interrupted      1" in called("status", *grid, *first)[1]
        assert "or are those of another run" in called("status", *grid, *first)[1]
        assert "done             1" in called("status", *grid, *second)[1]
        assert called("run", *grid, *first)[0] == 0, "takes its name back without training"


def test_a_finished_run_whose_results_are_damaged_is_told_and_found_by_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one = plan("seed=0")

    def damaged(run: RunFolder) -> None:
        raise UserError(f"{run.path} is damaged; remove it and run again")

    folder = one.folder(one.cells[0])
    with pytest.raises(UserError):
        perform(folder, lambda run: run.finish({}), damaged)
    (seen,) = look(one)
    assert (seen.state, seen.reason) == ("failed", f"{folder.path} is damaged; remove it and run again")
    for path in one.exports(one.cells[0]):
        path.parent.mkdir(exist_ok=True)
        path.write_text(folder.id)
    perform(folder, lambda run: pytest.fail("trained again"), lambda run: None)
    assert look(one)[0].state == "done"
    assert not (folder.path / "failure.json").exists()


def test_a_note_of_a_failure_that_is_damaged_is_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, Settings())
    for text in ("{}", "[]", "{"):
        (tmp_path / "failure.json").write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            run.failure()


@pytest.mark.parametrize("values", ["lr=0.05,5e-2", "epochs=3,3", "momentum=0.9,0.90"])
def test_an_axis_with_one_value_said_twice_is_one_value(values: str) -> None:
    assert len(plan("seed=0", values).cells) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "x" * 300),
        ("compare", "x" * 300, "masked-loss"),
        ("prune", "--runs_dir", "x" * 300),
        ("plan", "masked-loss", "--set", f"suffix={'x' * 300}"),
    ],
)
def test_a_name_that_is_too_long_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert "too long" in refusal(*words)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ("dataset=nope", "unknown data set 'nope', the nearest is"),
        ("device=foo", "it must be auto, cpu, cuda, cuda:N or mps"),
        ("seed=0-3", "it must be a number; several are given as 0 1 2"),
    ],
)
def test_what_no_run_can_have_is_told_before_any_starts(values: str, told: str) -> None:
    assert told in refusal("plan", "masked-loss", "--set", values)


def test_a_script_is_not_written_over_a_grid_or_any_other_file(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path, npz)
    before = (tmp_path / "grid.yaml").read_bytes()
    told = refusal("run", "grid.yaml", "--launcher", "script", "--output", "grid.yaml")
    assert told == "grid.yaml is there and is no script of perturblab's; name another file"
    assert (tmp_path / "grid.yaml").read_bytes() == before
    for _ in range(2):
        assert called("run", "grid.yaml", "--launcher", "script")[0] == 0, "its own it writes again"


def test_the_name_of_a_grids_file_without_its_ending_is_told(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path, npz)
    assert refusal("plan", "grid") == "no study 'grid'; did you mean grid.yaml?"


def test_the_next_command_names_the_folder_into_which_the_runs_exported(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_grid(tmp_path, npz)
    assert called("run", "grid.yaml", "--set", "results_dir=out", "--jobs", "1")[0] == 0
    for given, more in (("out", " --results_dir out"), ("./results", "")):
        code, out, _ = called("run", "grid.yaml", "--set", f"results_dir={given}", "--jobs", "1")
        assert code == 0
        assert out.endswith(f"next: perturblab masked-loss visualize{more}\n")


def test_weights_that_another_run_has_taken_are_seen_where_no_json_is_exported(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["run", "layerwise-mi"]
    for one in ("model=vgg9", "width=0.0625", "epochs=1", "seed=0", f"dataset=npz:{npz}", "batch_size=36", "device=cpu"):  # fmt: skip
        words += ["--set", one]
    assert called(*words)[0] == 0
    code, _, told = called(*words, "--set", "lr=0.02")
    assert code == 0
    assert "vgg9_seed0_best.pth holds the results of other settings and will be replaced" in told
    assert "1 interrupted" in called("plan", *words[1:])[1]
    assert "1 done" in called("plan", *words[1:], "--set", "lr=0.02")[1]


def test_a_run_that_only_lacks_its_exports_is_taken_by_run_again(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*write_grid(tmp_path, npz)[:2], "--jobs", "1", "--set", "mode=baseline"]
    (tmp_path / "out").touch()
    code, _, told = called(*words, "--set", "results_dir=out/x")
    assert code == 1, told
    (tmp_path / "out").unlink()
    (run,) = (tmp_path / "perturblab_runs" / "masked-loss").iterdir()
    done = RunFolder(run, Settings())
    with done.claimed():
        done.fail("failed", "cannot write out/x")
        done.finish({})
        done.fail("failed", "cannot write out/x")
    assert "failed           1" in called("status", *words[1:2], *words[4:], "--set", "results_dir=out/x")[1]
    assert "1 to run" in called(*words, "--set", "results_dir=out/x")[1]


def test_many_axes_make_names_that_a_file_system_takes(tmp_path: Path) -> None:
    axes = ("lr=0.1,0.2", "weight_decay=0.0005,0.001", "momentum=0.9,0.8", "batch_size=128,64", "n_masks=3,4")
    more = ("lambda_max=1.0,2.0", "clamp=hard,rescale", "site=hidden,conv1", "eval_every=1,2", f"dataset=digits,folder:/{'x' * 120}")  # fmt: skip
    cells = plan_of(runs_of(read("masked-loss", ["arch=vgg11", "mode=masked", "seed=0", *axes, *more], STUDIES), "runs")).cells  # fmt: skip
    assert len({cell.name for cell in cells}) == len(cells) == 1024
    for cell in (cells[0], cells[-1]):
        assert parsed(*cell.settings.arguments()).id == cell.settings.id
        assert max(len(path.name) for path in Train.exports.fget(cell.settings).values()) <= 200  # type: ignore[attr-defined]


# ---- the machine -----------------------------------------------------------------------------------------------------


def test_precision_that_the_machine_decides_is_decided_where_the_grid_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node with matrix units must do the run that was asked for here, not another one that nobody finds."""
    settings = Train.parse({"arch": "vgg11", "mode": "baseline", "seed": 0, "precision": "auto", "device": "cpu"})  # fmt: skip
    monkeypatch.setattr(hardware, "has_amx", lambda: False)
    cell = settled(Cell("one", settings))
    monkeypatch.setattr(hardware, "has_amx", lambda: True)
    assert settled(cell).settings.arguments() == cell.settings.arguments()
    assert "fp32" in cell.settings.arguments() or "auto" not in cell.settings.arguments()


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("200000 100000", 2), ("150000 100000", 2), ("max 100000", math.inf), ("", math.inf), ("1", math.inf)],
)
def test_a_container_that_may_use_two_of_many_cpus_has_two(tmp_path: Path, text: str, cpus: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert _share(tmp_path / "cpu.max") == cpus
    assert _share(tmp_path / "none") == math.inf


def test_threads_that_the_user_set_are_kept(npz: Path, tmp_path: Path) -> None:
    for said in ("1", "3"):
        folder = tmp_path / said
        words = [*write_grid(folder, npz), "--set", "mode=masked", "--set", "threads=0"]
        subprocess.run(program(*words), cwd=folder, env=environment(OMP_NUM_THREADS=said), check=True)
        (manifest,) = folder.glob("perturblab_runs/*/*/manifest.json")
        assert json.loads(manifest.read_text())["machine"]["threads"] == int(said)


def test_a_second_worker_waits_for_the_base_model_that_the_first_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, asked = tmp_path / "base.pth", list[int]()

    def train(settings: Settings) -> None:
        asked.append(1)
        if len(asked) == 3:
            model.touch()  # the first worker's
        raise Busy("perturblab_runs/base is being worked on by process 7")

    monkeypatch.setattr(base, "train", train)
    monkeypatch.setattr(provide, "WAIT_S", 0.01)
    words = {"data": "08MNIST", "base_model": str(model), "experiment": "lr_search"}
    provide.provide_base(Run.parse(words), model)
    assert len(asked) == 3
    assert capsys.readouterr().out.count(f"process 7: waiting for {model}\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells")
def test_a_process_that_has_ended_and_waits_for_its_parent_is_not_there() -> None:
    """Nobody may: in a container whose first process is the launcher."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert is_there(process.pid)
        process.kill()
        until(lambda: "State:\tZ" in Path(f"/proc/{process.pid}/status").read_text())
        assert not is_there(process.pid)
