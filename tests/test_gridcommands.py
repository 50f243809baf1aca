"""plan, run, status, retry over real runs in every state; scripts and arrays of jobs that bash runs."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from commandline import called, parsed, refusal
from conftest import Ended, Zygote, differing, environment, files_of, program, until
from perturblab.claims import held
from perturblab.grids.asked import read
from perturblab.grids.cells import plan_of, runs_of
from perturblab.grids.states import Seen, look
from perturblab.studies import STUDIES
from test_rules import loaded_by

EPOCHS = 30
TRAINED, DIVERGED, STOPPED, ABSENT = (
    f"vgg11_masked_seed{seed}_lr{lr}" for seed, lr in ((0, "0.05"), (0, "1e+20"), (1, "0.05"), (2, "0.05"))
)
"""The cells of the grid below by what happens to them; two more would diverge and are not started."""


@dataclass
class Place:
    """A folder with runs of a grid in it."""

    folder: Path
    words: list[str]
    zygote: Zygote

    def call(self, command: str, *more: str) -> str:
        """What a command of the grid prints, in a process of its own."""
        ended = self.zygote.run([command, *self.words, *more], self.folder)
        assert ended.code == 0, ended.output
        return ended.output

    def real(self, command: str, *more: str) -> Ended:
        """The same as a user starts it, with processes of its own for the runs."""
        done = subprocess.run(
            program(command, *self.words, *more), cwd=self.folder, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout)

    def seen(self, *more: str) -> dict[str, Seen]:
        given = self.words[2::2]
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            found = look(plan_of(runs_of(read(self.words[0], [*given, *more], STUDIES))))
            return {one.cell.name: one for one in found}
        finally:
            os.chdir(before)

    def states(self) -> dict[str, str]:
        return {name: one.state for name, one in self.seen().items()}


def sets(**given: object) -> list[str]:
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


def changed(words: list[str], **given: str) -> list[str]:
    """The words of a grid with other values in some of its settings."""
    return [f"{name}={given[name]}" if (name := word.partition("=")[0]) in given else word for word in words]


@pytest.fixture(scope="module")
def grid(npz: Path) -> list[str]:
    """Six runs of half a second each, three of which diverge."""
    shared = sets(
        width=0.05,
        epochs=EPOCHS,
        batch_size=20,
        robustness_masks=2,
        threads=1,
        device="cpu",
        dataset=f"npz:{npz}",
    )
    return ["masked-loss", *sets(arch="vgg11", mode="masked", seed="0,1,2", lr="0.05,1e20"), *shared]


@pytest.fixture(scope="module")
def started(zygote: Zygote, grid: list[str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A grid of which one run is done, one diverged, one was stopped by SIGTERM; nobody else may change it."""
    place = Place(tmp_path_factory.mktemp("started"), grid, zygote)
    cells = place.seen()
    assert zygote.run(cells[TRAINED].cell.settings.arguments(), place.folder).code == 0
    assert zygote.run(cells[DIVERGED].cell.settings.arguments(), place.folder).code == 2
    pid = zygote.start(cells[STOPPED].cell.settings.arguments(), place.folder)
    until((place.folder / cells[STOPPED].run.path / "rows.jsonl").exists)
    os.kill(pid, signal.SIGTERM)
    ended = zygote.wait()
    assert ended.code == 75, ended.output
    return place


@pytest.fixture
def place(started: Place, tmp_path: Path) -> Place:
    """A copy of it to work in."""
    shutil.copytree(started.folder, tmp_path / "here")
    return Place(tmp_path / "here", started.words, started.zygote)


def table(output: str) -> dict[str, list[str]]:
    """Status and time of each run in the printed table."""
    states = "done|running|failed|interrupted|missing"
    rows = re.findall(rf"^(vgg11_\S+) +({states}) *(\S*)$", output, re.MULTILINE)
    return {name: [state, time] for name, state, time in rows}


# ---- plan and status -------------------------------------------------------------------------------------------------


def test_plan_shows_every_state_the_time_of_each_run_and_what_the_rest_will_take(started: Place) -> None:
    before = files_of(started.folder)
    out = started.call("plan", "--jobs", "2")
    rows = table(out)
    assert {name: row[0] for name, row in rows.items() if row[0] != "missing"} == {
        TRAINED: "done", DIVERGED: "failed", STOPPED: "interrupted",
    }  # fmt: skip
    assert len(rows) == 6
    assert re.fullmatch(r"\d+:\d\d", rows[TRAINED][1])
    assert all(row[1].startswith("~") for row in rows.values() if row[0] in ("missing", "interrupted"))
    assert "masked-loss: 6 runs (3 seed x 2 lr) in perturblab_runs/masked-loss" in out
    assert "1 done, 1 failed, 1 interrupted, 3 missing" in out
    assert re.search(r"^time: about .* with 2 at a time, from what 1 run took per epoch$", out, re.MULTILINE)
    assert re.search(r"^disk: about .* more, from the size of finished runs$", out, re.MULTILINE)
    assert f"next: perturblab run {shlex.join(started.words)}" in out
    assert files_of(started.folder) == before, "plan writes nothing"


def test_plan_calibrates_with_one_run_of_each_kind_whose_work_is_kept(
    grid: list[str], zygote: Zygote, tmp_path: Path
) -> None:
    words = changed(grid, seed="0,1,2", lr="0.05,0.04", epochs="400")
    here = Place(tmp_path, words, zygote)
    assert "time: unknown; to try one run of each kind" in here.call("plan")
    out = here.call("plan", "--calibrate", "60")
    rows = table(out)
    assert Counter(row[0] for row in rows.values()) == {"interrupted": 2, "missing": 4}, "a seed is no kind"
    assert all(re.fullmatch(r"~[\d:]+", row[1]) for row in rows.values())
    assert re.search(r"^time: about .* from what 2 runs took per epoch$", out, re.MULTILINE)
    again = here.call("plan", "--calibrate", "60")
    assert Counter(row[0] for row in table(again).values()) == {"interrupted": 2, "missing": 4}


def test_an_epoch_too_long_to_wait_for_is_estimated_from_its_steps(tmp_path: Path) -> None:
    from perturblab.gridcommands.calibrate import _from_steps

    (tmp_path / "log").write_text(
        "a-1: 3/1000, 9:00 left\nb-1: 5/10, 0:01 left\na-1: 100/1000, 1:00:00 left\n"
    )
    assert list(_from_steps(tmp_path / "log", "a-1", 20)) == [pytest.approx(3600 / 900 * 1000 / 20)]
    assert list(_from_steps(tmp_path / "log", "c-1", 20)) == []


def test_status_counts_gives_reasons_and_ends_with_the_commands_that_go_on(started: Place) -> None:
    out = started.call("status").splitlines()
    assert [line.split() for line in out[1:6]] == [
        ["done", "1"], ["running", "0"], ["failed", "1"], ["interrupted", "1"], ["missing", "3"],
    ]  # fmt: skip
    (failed,) = [line for line in out if line.startswith("failed: ")]
    assert failed.startswith(f"failed: {DIVERGED}: ")
    assert "not finite" in failed
    assert out[-2:] == [
        f"go on: perturblab run {shlex.join(started.words)}",
        f"again what failed: perturblab retry {shlex.join(started.words)}",
    ]


def test_a_run_that_a_process_works_on_is_running_with_its_epoch_and_is_not_started_again(
    place: Place,
) -> None:
    folder = place.folder / place.seen()[STOPPED].run.path
    rows = (folder / "rows.jsonl").read_bytes()
    last = json.loads(rows.splitlines()[-1])["epoch"]
    (folder / "rows.jsonl").write_bytes(rows + b'{"epoch": 99, "torn')
    with held(folder):
        assert place.states()[STOPPED] == "running"
        assert f"running: {STOPPED}, epoch {last}/{EPOCHS} done" in place.call("status")
        out = place.call("run", "--launcher", "script")
    assert "being run by another process: 1" in out
    assert STOPPED not in (place.folder / "run_all.sh").read_text()


def test_a_run_whose_exports_were_lost_is_not_done(place: Place) -> None:
    (place.folder / "results" / f"{TRAINED}.json").unlink()
    assert place.states()[TRAINED] == "interrupted"
    assert f"interrupted: {TRAINED}: done, but its exported files are not there" in place.call("status")


def test_the_runs_may_lie_in_another_folder(place: Place) -> None:
    (place.folder / "perturblab_runs").rename(place.folder / "elsewhere")
    assert set(place.states().values()) == {"missing"}
    assert "1 done, 1 failed, 1 interrupted, 3 missing" in place.call("plan", "--runs-dir", "elsewhere")
    assert "--runs_dir elsewhere" in place.call("plan", "--runs-dir", "elsewhere").splitlines()[-1]


def test_plan_and_status_load_no_torch(started: Place, tmp_path: Path) -> None:
    lines = [f"{command} {' '.join(started.words)}" for command in ("plan", "status")]
    heavy, printed = loaded_by(*lines, folder=started.folder)
    assert heavy == []
    assert printed > 500
    heavy, _ = loaded_by(
        *(f"{command} {study}" for study in STUDIES for command in ("plan", "status")), folder=tmp_path
    )
    assert heavy == []
    assert not list(tmp_path.iterdir())


# ---- run and retry -----------------------------------------------------------------------------------------------------


def test_run_does_what_is_missing_leaves_what_failed_and_its_results_are_those_of_train(
    place: Place, zygote: Zygote, tmp_path: Path
) -> None:
    fresh = Place(tmp_path / "fresh", changed(place.words, lr="0.05"), zygote)
    fresh.folder.mkdir()
    ended = fresh.real("run", "--jobs", "2")
    assert ended.code == 0, ended.output
    assert "3 to run, 2 at a time" in ended.output
    assert {row[0] for row in table(ended.output).values()} == {"done"}
    assert ended.output.splitlines()[-1] == "next: perturblab masked-loss visualize"
    alone = tmp_path / "alone"
    for one in fresh.seen().values():
        assert zygote.run(one.cell.settings.arguments(), alone).code == 0
    assert not differing(compared(fresh.folder), compared(alone))
    again = fresh.real("run")
    assert again.code == 0
    assert "masked-loss: 3 runs: 3 done\nnothing is missing\n" in again.output


def test_run_goes_on_with_interrupted_runs_and_leaves_failed_ones_to_retry(place: Place) -> None:
    place.words = changed(place.words, seed="0,1")
    diverged = place.folder / place.seen()[DIVERGED].run.path / "failure.json"
    when = diverged.stat().st_mtime_ns
    ended = place.real("run", "--jobs", "2")
    assert ended.code == 1, "one of them diverges as well"
    assert place.states() == {
        TRAINED: "done",
        DIVERGED: "failed",
        STOPPED: "done",
        STOPPED.replace("0.05", "1e+20"): "failed",
    }
    assert diverged.stat().st_mtime_ns == when, "it was not run again"
    assert "1 of 2 runs failed; run them again with: perturblab retry masked-loss" in ended.output

    left = place.real("run")
    assert left.code == 1
    assert "nothing is missing\n2 failed before and are left alone; again: perturblab retry" in left.output

    trained = place.folder / place.seen()[TRAINED].run.path / "timings.jsonl"
    before = trained.read_bytes()
    retried = place.real("retry", "--jobs", "2")
    assert retried.code == 1
    assert {name: row[0] for name, row in table(retried.output).items()} == {
        DIVERGED: "failed", STOPPED.replace("0.05", "1e+20"): "failed",
    }  # fmt: skip
    assert diverged.stat().st_mtime_ns > when
    assert trained.read_bytes() == before


def test_retry_without_failed_runs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = called("retry", "masked-loss")
    assert (code, out.splitlines()[-1]) == (0, "nothing to run again: no run failed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stopped_run_of_a_grid_saves_and_the_same_command_goes_on(
    grid: list[str], zygote: Zygote, tmp_path: Path, number: int, code: int
) -> None:
    words = changed(grid, seed="0", lr="0.05", epochs="60")
    process = subprocess.Popen(
        program("run", *words),
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    here = Place(tmp_path, words, zygote)
    (one,) = here.seen().values()
    until((tmp_path / one.run.path / "rows.jsonl").exists)
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == code, output
    assert "run the same command again to go on" in output
    assert [*here.states().values()] == ["interrupted"]
    assert "go on: perturblab run masked-loss" in here.call("status")


def compared(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if not name.endswith("log.txt")}


# ---- scripts and arrays of jobs -------------------------------------------------------------------------------------


TELLS = f"{shlex.quote(sys.executable)} -c 'import json, sys; print(json.dumps(sys.argv[1:]))'"
"""In place of the program: prints the words that it is given."""


def test_the_script_has_a_line_for_each_run_that_is_left_and_each_means_that_run(place: Place) -> None:
    out = place.call("run", "--launcher", "script", "--output", "my runs.sh")
    assert "my runs.sh: 4 runs; start it, or: cat 'my runs.sh' | grep '^python' | parallel -j 4" in out
    assert "1 failed before and are left alone" in out
    lines = [
        line for line in (place.folder / "my runs.sh").read_text().splitlines() if line.startswith("python")
    ]
    left = [one.cell.settings for one in place.seen().values() if one.state in ("missing", "interrupted")]
    assert [parsed(*shlex.split(line)[3:]) for line in lines] == left
    assert subprocess.run(["bash", "-n", "my runs.sh"], cwd=place.folder).returncode == 0


@pytest.mark.parametrize(
    ("study", "given", "line"),
    [
        ("masked-loss", ["arch=vgg11,vgg13", "mode=masked", "seed=0,1", "data_dir=my data"], "vgg11 0"),
        ("masked-loss", ["arch=vgg11", "seed=4"], "baseline"),
        ("masked-loss", ["arch=vgg11", "seed=4", "n_masks=1,3", "data_dir=it's $HOME"],
         "masked-loss train --data_dir 'it'\"'\"'s $HOME' --n_masks 1 --arch vgg11"),
        ("first-layer-mi", ["arch=vgg9"], "0"),
        ("layerwise-mi", [], "vgg11"),
        ("layerwise-mi", ["seed=0,1", "model=vgg9"], "0"),
        ("adaptive-noise", ["classifier=BabyCNN"], ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheduler", ["sge", "slurm"])
def test_task_n_of_an_array_is_the_nth_run_that_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str, given: list[str], line: str, scheduler: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for one in given for word in ("--set", one)]
    code, out, errors = called(
        "run", study, *words, "--launcher", scheduler, "--prefix", TELLS, "--time", "1:00:00", "--gpu", "0"
    )
    assert code == 0, errors
    (script,) = map(str, Path("scripts").glob(f"job_manager_{study}-*.sh"))
    starts = {"sge": "qsub", "slurm": "sbatch"}[scheduler]
    assert out.splitlines()[-1] == f"  {starts} {script}"
    text = Path(script).read_text()
    cells = plan_of(runs_of(read(study, given, STUDIES))).cells
    assert f"#$ -t 1-{len(cells)}\n" in text
    assert f"#SBATCH --array=1-{len(cells)}\n" in text
    assert "#$ -l h_rt=1:00:00\n" in text
    (lines,) = Path("scripts").glob(f"jobs_{study}-*.txt")
    assert lines.read_text().startswith(line)
    task = {"sge": "SGE_TASK_ID", "slurm": "SLURM_ARRAY_TASK_ID"}[scheduler]
    for number, cell in enumerate(cells, 1):
        told = told_by_bash(
            script,
            {} if scheduler == "slurm" else {task: str(number)},
            *([str(number)] if scheduler == "slurm" else []),
        )
        assert parsed(*json.loads(told)) == cell.settings


def told_by_bash(script: str, env: dict[str, str], *more: str) -> str:
    done = subprocess.run(
        ["bash", script, *more], env={**environment(), **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_line_that_is_not_there_is_an_error_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    called("run", "adaptive-noise", "--launcher", "sge", "--prefix", TELLS)
    lines, script = (next(Path("scripts").glob(f"*.{end}")) for end in ("txt", "sh"))
    done = subprocess.run(["bash", script, "13"], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"error: {lines} has no line 13\n")


def test_more_runs_than_an_array_may_have_become_several_arrays_that_miss_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["masked-loss", "--set", "arch=vgg11", "--set", "mode=baseline", "--set", "seed=0,1,2,3,4,5,6"]
    code, out, errors = called("run", *words, "--launcher", "slurm", "--array", "3", "--prefix", TELLS)
    assert code == 0, errors
    assert "wrote 3 scripts; start them with:" in out
    scripts = [next(Path("scripts").glob(f"job_manager_masked-loss-{n}-*.sh")) for n in (1, 2, 3)]
    assert out.splitlines()[-3:] == [f"  sbatch {script}" for script in scripts]
    sizes = [
        line for script in scripts for line in Path(script).read_text().splitlines() if "--array=" in line
    ]
    assert sizes == ["#SBATCH --array=1-3", "#SBATCH --array=1-3", "#SBATCH --array=1-1"]
    told = [json.loads(line) for script in scripts
            for line in subprocess.run(["bash", script], capture_output=True, text=True, check=True).stdout.splitlines()]  # fmt: skip
    assert [parsed(*one).seed for one in told] == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("scheduler", ["sge", "slurm"])
def test_jobs_of_an_array_are_its_tasks_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["masked-loss", "--launcher", scheduler, "--prefix", TELLS]
    assert called("run", *words)[0] == 0
    assert called("run", *words, "--jobs", "4", "--output_dir", "limited")[0] == 0
    (free,), (limited,) = ((tmp_path / name).glob("*.sh") for name in ("scripts", "limited"))
    assert not re.search("-tc|%4", free.read_text())
    assert {"#$ -tc 4", "#SBATCH --array=1-24%4"} <= set(limited.read_text().splitlines())


@pytest.mark.parametrize(
    ("launcher", "words", "those"),
    [
        *(
            (launcher, words, "sge, slurm or dask with --cluster")
            for launcher in ("local", "script", "dask")
            for words in ("--mem 2G", "--time 1:00:00", "--gpu 0", "--environment env.sh")
        ),
        *(
            (launcher, words, "sge or slurm")
            for launcher in ("local", "script", "dask", "dask --cluster slurm")
            for words in ("--array 10", "--output_dir here", "--submit")
        ),
        *(
            (launcher, words, "dask")
            for launcher in ("local", "script", "sge", "slurm")
            for words in ("--address tcp://h:1", "--cluster sge")
        ),
        *(
            (launcher, words, "local or dask")
            for launcher in ("script", "sge", "slurm")
            for words in ("--per_gpu 2", "--wait False", "--all")
        ),
        *((launcher, "--output x.sh", "script") for launcher in ("local", "sge", "slurm", "dask")),
        ("script", "--jobs 4", "local, sge, slurm or dask"),
        ("local", "--prefix python3.12", "script, sge, slurm or dask"),
    ],
)
def test_a_flag_that_the_launcher_does_not_use_is_refused_with_the_launchers_that_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, words: str, those: str
) -> None:
    monkeypatch.chdir(tmp_path)
    told = refusal("run", "masked-loss", "--launcher", *launcher.split(), *words.split())
    assert told == f"{words.split()[0]} needs --launcher {those}"
    assert not list(tmp_path.iterdir())


def test_an_array_run_by_bash_ends_with_the_results_of_train(
    started: Place, zygote: Zygote, tmp_path: Path
) -> None:
    place = Place(tmp_path / "array", [*started.words, "--runs_dir", "state"], zygote)
    place.folder.mkdir()
    place.call("run", "--launcher", "sge", "--prefix", f"{shlex.quote(sys.executable)} -m perturblab")
    (script,) = (place.folder / "scripts").glob("*.sh")
    done = subprocess.run(
        ["bash", script, "1"],
        cwd=place.folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in ("results", "checkpoints"):
        one, other = (files_of(folder / name) for folder in (place.folder, started.folder))
        assert one
        assert not differing(one, {key: other[key] for key in one})


def test_a_grid_of_noise_gives_a_script_with_its_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, errors = called("run", "adaptive-noise", "--set", "classifier=BabyCNN", "--launcher", "script")
    assert code == 0, errors
    assert "run_all.sh: 3 runs" in out


def test_settings_of_noise_that_contradict_each_other_are_refused_before_any_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = refusal("run", "adaptive-noise", "--set", "min_cooldown_epochs=20", "--launcher", "script")
    assert "cooldown" in told
    assert not list(tmp_path.iterdir())
