"""Array jobs: what is generated runs, quoted as it must be, the same way under bash and with either scheduler's numbers.

The real schedulers are in ``test_slurm.py`` and ``test_grid_engine.py``.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clusters import need
from commandline import parsed
from conftest import Ended, Zygote, differing, files_of, until
from perturblab.launch import Cell
from perturblab.launch.arrays import PREFIX, JobFlags, hand_over, write_array
from perturblab.signals import BUSY
from perturblab.studies.masked_loss import Train
from perturblab.terminal import UserError

GRID = (("baseline", 0), ("masked", 0), ("masked", 7))
PARAMETERS = ("mode", "seed")
IN_SLURM = {"SLURM_JOB_ID": "12", "SLURMD_NODENAME": "n1"}

# In the place of perturblab: says what it was called with, in a file named after the run.
FAKE = """
import json, os, sys
words = sys.argv[1:]
mode, seed = (words[words.index(flag) + 1] for flag in ("--mode", "--seed"))
os.makedirs("ran", exist_ok=True)
with open(f"ran/{mode}-{seed}", "w") as file:
    json.dump(words, file)
with open("pid", "w") as file:
    file.write(str(os.getpid()))
sys.exit(int(os.environ.get(f"EXIT_{mode}", 0)))
"""

# In the place of a long run: waits for a signal, takes a moment to save, and asks to be started again.
TOLD = """
import pathlib, signal, sys, time
def save(number, frame):
    time.sleep(0.2)
    pathlib.Path("told").write_text(signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGUSR1, save)
pathlib.Path("ready").touch()
time.sleep(60)
"""

AWKWARD = {
    "results_dir": "my results/it's $HOME; rm -rf *",
    "checkpoint_dir": 'a"b`c`',
    "runs_dir": "-runs",
    "data_dir": "data\\dir",
    "dataset": "npz:with space/é ü.npz",
    "epochs": 5,
    "compile": True,
    "lr": 1e-05,
}


def cells(**settings: Any) -> list[Cell]:
    trains = [Train.parse({"arch": "vgg11", "mode": mode, "seed": seed, **settings}) for mode, seed in GRID]
    return [Cell(train.name, train) for train in trains]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a name that needs quoting."""
    folder = tmp_path / "ada's $project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fake(project: Path) -> str:
    """A prefix that calls the fake program."""
    program = project.parent / "my fake.py"
    program.write_text(FAKE)
    return f"{shlex.quote(sys.executable)} -IS {shlex.quote(str(program))}"


def generated(prefix: str, settings: dict[str, Any] | None = None, **flags: Any) -> Path:
    jobs = JobFlags.parse({"prefix": prefix, **flags})
    return write_array(cells(**(settings or {})), jobs, "vgg11", PARAMETERS, job_name="vgg11_masked")


def bash(script: Path, *words: str, **env: str) -> Ended:
    """Run the script as a scheduler would: nothing in its environment but a path and what is given."""
    ended = subprocess.run(
        ["env", "-i", f"PATH={os.environ['PATH']}", *(f"{n}={v}" for n, v in env.items()), "bash", script, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    return Ended(ended.returncode, ended.stdout)


def ran() -> dict[str, list[str]]:
    """The words that each run of the fake program was called with."""
    return {path.name: json.loads(path.read_text()) for path in Path("ran").glob("*")}


# ---- the files ---------------------------------------------------------------------------------------------------------


def test_the_documented_files_are_written_and_are_executable_bash(project: Path) -> None:
    script = generated("python -m perturblab")
    assert files_of(project).keys() == {"scripts/jobs_vgg11.txt", "scripts/job_manager_vgg11.sh"}
    assert Path("scripts/jobs_vgg11.txt").read_text() == "baseline 0\nmasked 0\nmasked 7\n"
    assert script.stat().st_mode & 0o777 == 0o755
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert Path("logs").is_dir(), "Slurm ends a job without a word when it cannot open its log"


def headers(script: Path, mark: str) -> set[str]:
    lines = [line for line in script.read_text().splitlines() if line.startswith(mark)]
    return {line.removeprefix(mark).strip() for line in lines}


DOCUMENTED = {
    "#$": "-l tmem=16G|-l h_rt=24:00:00|-l gpu=true|-R y|-cwd|-S /bin/bash|-j y|-N vgg11_masked|-t 1-3",
    "#SBATCH": "--mem=16G|--time=24:00:00|--gres=gpu:1|--job-name=vgg11_masked|--array=1-3|--output=logs/%x_%A_%a.out",
}


@pytest.mark.parametrize("mark", DOCUMENTED)
def test_the_headers_ask_for_the_documented_resources(project: Path, mark: str) -> None:
    assert headers(generated("python"), mark) >= set(DOCUMENTED[mark].split("|"))


def test_other_resources_stand_in_both_headers_and_no_gpu_drops_its_line(project: Path) -> None:
    script = generated("python", mem="900M", time="1:30:00", gpu=0)
    assert headers(script, "#$") >= {"-l tmem=900M", "-l h_rt=1:30:00"}
    assert headers(script, "#SBATCH") >= {"--mem=900M", "--time=1:30:00"}
    assert "gpu" not in " ".join(headers(script, "#"))


def test_the_headers_come_before_the_first_command_as_slurm_wants_them(project: Path) -> None:
    """Also those that the user's environment file begins with."""
    Path("env.sh").write_text("#SBATCH --account=ada\n#$ -P ada\nmodule load cuda\n")
    lines = generated("python", environment="env.sh").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[first] == "module load cuda"
    assert lines.index("#SBATCH --account=ada") < first
    assert not [line for line in lines[first:] if line.startswith(("#SBATCH", "#$"))]


def test_the_runs_at_a_time_stand_in_both_headers_and_no_number_is_no_limit(project: Path) -> None:
    limited = write_array(cells(), JobFlags(), "grid", at_once=2)
    assert headers(limited, "#$") >= {"-t 1-3", "-tc 2"}
    assert "--array=1-3%2" in headers(limited, "#SBATCH")
    text = write_array(cells(), JobFlags(), "grid").read_text()
    assert not re.search("-tc|%2", text)


@pytest.mark.parametrize("parameters", [PARAMETERS, None])
@pytest.mark.parametrize("settings", [{}, AWKWARD])
def test_a_script_has_no_fault_that_shellcheck_finds(
    project: Path, parameters: tuple[str, ...] | None, settings: dict[str, Any]
) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    script = write_array(cells(**settings), JobFlags(), "vgg11", parameters)
    done = subprocess.run(
        ["shellcheck", "--severity=warning", script], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout


def test_the_script_does_not_depend_on_the_scheduler(project: Path) -> None:
    texts = {generated("python", scheduler=name).read_text() for name in ("sge", "slurm", "shell")}
    assert len(texts) == 1


# ---- arrays that wait --------------------------------------------------------------------------------------------------


def submitted(script: Path, folder: Path) -> Path:
    """What sbatch and qsub keep of a script until its tasks start."""
    return Path(shutil.copy(script, folder / script.name))


def test_a_task_that_waits_runs_its_own_line_after_the_same_study_was_written_with_other_runs(
    fake: str, tmp_path: Path
) -> None:
    """Two learning rates wait, then two widths are written: the second task ran a run that is in neither grid."""
    jobs = JobFlags.parse({"prefix": fake})
    first = write_array([*cells(lr=0.1)[:1], *cells(lr=0.2)[:1]], jobs, "masked-loss")
    waits, before = submitted(first, tmp_path), files_of(Path("scripts"))
    second = write_array([*cells(width=0.5)[:1], *cells(width=0.25)[:1]], jobs, "masked-loss")
    assert first != second
    assert files_of(Path("scripts")).items() >= before.items()
    assert bash(waits, "2").code == 0
    assert parsed(*ran()["baseline-0"]) == cells(lr=0.2)[0].settings
    assert bash(second, "2").code == 0
    assert parsed(*ran()["baseline-0"]) == cells(width=0.25)[0].settings


def test_tasks_that_wait_run_after_what_failed_was_written_to_be_tried_again(
    fake: str, tmp_path: Path
) -> None:
    """They ended with: has no line 2."""
    jobs = JobFlags.parse({"prefix": fake})
    waits = submitted(write_array(cells(), jobs, "masked-loss"), tmp_path)
    write_array(cells()[:1], JobFlags.parse({"prefix": fake, "mem": "32G"}), "masked-loss")
    assert [bash(waits, task).code for task in ("2", "3")] == [0, 0]
    assert sorted(ran()) == ["masked-0", "masked-7"]


def test_the_same_runs_written_again_are_the_same_files_and_another_program_is_not(project: Path) -> None:
    first = write_array(cells(), JobFlags(), "masked-loss")
    assert re.fullmatch(r"job_manager_masked-loss-[0-9a-f]{6}\.sh", first.name)
    assert headers(first, "#$") >= {"-N masked-loss"}, "the scheduler shows no digits"
    assert write_array(cells(), JobFlags.parse({"mem": "32G"}), "masked-loss", at_once=2) == first
    assert len(files_of(Path("scripts"))) == 2
    assert write_array(cells(), JobFlags.parse({"prefix": "other"}), "masked-loss") != first
    assert write_array(cells(epochs=3), JobFlags(), "masked-loss") != first


def test_documented_names_whose_lines_change_are_told_in_one_line(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generated("python")
    generated("python", mem="32G")
    assert capsys.readouterr().err == ""
    write_array(cells()[:2], JobFlags(), "vgg11", PARAMETERS)
    assert capsys.readouterr().err == (
        "warning: scripts/jobs_vgg11.txt held other lines: an array that still waits would run the new ones\n"
    )
    assert Path("scripts/jobs_vgg11.txt").read_text() == "baseline 0\nmasked 0\n"


# ---- running them ------------------------------------------------------------------------------------------------------


def by(name: str) -> Callable[[Path], Iterator[Ended]]:
    return lambda script: (bash(script, **{name: str(n)}) for n in (3, 1, 2))


def parallel(script: Path) -> Iterator[Ended]:
    need("parallel")
    words = ["parallel", "-j2", "bash", "-c", shlex.quote(f"bash {shlex.quote(str(script))} {{}}"), ":::", "1", "2", "3"]  # fmt: skip
    ended = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield Ended(ended.returncode, ended.stdout)


WAYS: dict[str, Callable[[Path], Iterator[Ended]]] = {
    "bash, all lines": lambda script: iter([bash(script)]),
    "bash, one line each": lambda script: (bash(script, str(n)) for n in (1, 2, 3)),
    "Grid Engine": by("SGE_TASK_ID"),
    "Grid Engine, no array": lambda script: iter([bash(script, SGE_TASK_ID="undefined")]),
    "Slurm": by("SLURM_ARRAY_TASK_ID"),
}


@pytest.mark.parametrize("way", [*WAYS.values(), parallel], ids=[*WAYS, "parallel"])
@pytest.mark.parametrize("output_dir", ["scripts", 'lr=0.1/ada\'s "jobs"'])
def test_every_way_of_starting_a_script_runs_each_line_as_the_parser_reads_its_cell(
    fake: str, output_dir: str, way: Callable[[Path], Iterator[Ended]]
) -> None:
    """Also settings with blanks, quotes, dollar signs, a leading dash; the environment is empty."""
    script = generated(fake, AWKWARD, output_dir=output_dir)
    for ended in way(script):
        assert ended == Ended(0, "")
    called = ran()
    assert sorted(called) == ["baseline-0", "masked-0", "masked-7"]
    for cell in cells(**AWKWARD):
        settings = cell.settings
        assert isinstance(settings, Train)
        assert parsed(*called[f"{settings.mode}-{settings.seed}"]) == settings


def test_one_number_runs_one_line(fake: str) -> None:
    assert bash(generated(fake), "2").code == 0
    assert list(ran()) == ["masked-0"]


def test_a_number_on_the_command_line_wins_over_a_schedulers(fake: str) -> None:
    assert bash(generated(fake), "3", SLURM_ARRAY_TASK_ID="1", SGE_TASK_ID="2").code == 0
    assert list(ran()) == ["masked-7"]


def test_empty_lines_do_not_count(fake: str) -> None:
    script = generated(fake)
    Path("scripts/jobs_vgg11.txt").write_text("\nbaseline 0\n  \n\n masked   7 \n")
    assert bash(script, "2").code == 0
    assert list(ran()) == ["masked-7"]
    assert bash(script).code == 0
    assert sorted(ran()) == ["baseline-0", "masked-7"]


def test_the_run_takes_the_place_of_the_script_so_that_signals_reach_it(fake: str) -> None:
    with subprocess.Popen(["bash", generated(fake), "1"]) as process:
        process.wait()
    assert int(Path("pid").read_text()) == process.pid


@pytest.mark.parametrize(
    ("state", "asked"),
    [("RUNNING n1", "requeue 12\n"), ("RUNNING n2", ""), ("CANCELLED n1", ""), ("COMPLETING n1", "")],
)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_in_slurm_a_run_that_was_told_to_stop_asks_to_be_started_again_unless_it_was_cancelled_or_is_elsewhere(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, state: str, asked: str
) -> None:
    """Slurm by itself starts only what it had to kill: seen on a real one, with a grace time."""
    fake_slurm(state)
    Path("told.py").write_text(TOLD)
    script = generated(f"{shlex.quote(sys.executable)} -IS told.py")
    env = {"PATH": f"{project}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "2", **IN_SLURM}
    with subprocess.Popen(["bash", script], env=env) as process:
        until(Path("ready").exists)
        process.send_signal(getattr(signal, name))
    assert process.returncode == 75
    assert Path("told").read_text() == name, "the signal did not reach the run"
    assert Path("asked").read_text() == asked


def fake_slurm(state: str) -> None:
    """In the current folder: squeue tells ``state``, scontrol notes in ``asked`` what it is called with."""
    Path("squeue").write_text(f"#!/bin/bash\necho {state}\n")
    Path("scontrol").write_text('#!/bin/bash\necho "$@" >> asked\nexit ${REFUSED:-0}\n')
    for program in ("squeue", "scontrol"):
        os.chmod(program, 0o755)
    Path("asked").write_text("")


@pytest.mark.parametrize("refused", ["0", "1"])
def test_in_slurm_a_run_that_another_process_is_at_looks_again_later(
    fake: str, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """The other may be cut off with its node, and may or may not finish. Slurm's word on it changes no exit code."""
    fake_slurm("RUNNING n1")
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    script = generated(fake)
    ended = bash(script, SLURM_ARRAY_TASK_ID="2", **IN_SLURM, EXIT_masked=str(BUSY), REFUSED=refused)
    assert ended.code == BUSY
    assert Path("asked").read_text() == "requeue 12\n"


@pytest.mark.parametrize("code", [75, BUSY])
def test_without_slurms_programs_the_exit_code_is_still_that_of_the_run(fake: str, code: int) -> None:
    """A container on the node may lack them."""
    Path("only").mkdir()
    for program in ("bash", "awk"):
        Path("only", program).symlink_to(str(shutil.which(program)))
    ended = bash(
        generated(fake),
        SLURM_ARRAY_TASK_ID="2",
        SLURM_JOB_ID="12",
        EXIT_masked=str(code),
        PATH=str(Path("only").absolute()),
    )
    assert ended.code == code


@pytest.mark.parametrize("code", [0, 1, 2])
def test_in_slurm_a_run_that_ends_by_itself_does_not_come_back(fake: str, code: int) -> None:
    ended = bash(generated(fake), SLURM_ARRAY_TASK_ID="2", SLURM_JOB_ID="12", EXIT_masked=str(code))
    assert ended == Ended(code, ""), "squeue, which is not there, was asked"


def test_all_lines_go_on_after_a_failing_run(fake: str) -> None:
    ended = bash(generated(fake), EXIT_baseline="2")
    assert sorted(ran()) == ["baseline-0", "masked-0", "masked-7"]
    assert ended.code == 1
    assert ended.output == "runs that failed: 1 of 3; the same command runs only what is missing\n"


@pytest.mark.parametrize(("failing", "code"), [("0", BUSY), ("2", 1)])
def test_a_run_that_another_process_is_at_is_not_counted_as_failed(
    fake: str, failing: str, code: int
) -> None:
    ended = bash(generated(fake), EXIT_masked=str(BUSY), EXIT_baseline=failing)
    assert sorted(ran()) == ["baseline-0", "masked-0", "masked-7"]
    held, *failed = ended.output.splitlines()
    assert held == "runs that another process is at work on: 2 of 3; they were left to it"
    assert [line.partition(";")[0] for line in failed] == (["runs that failed: 1 of 3"] if code == 1 else [])
    assert ended.code == code


@pytest.mark.parametrize("code", [75, 99, 130])
def test_all_lines_stop_where_a_run_was_stopped(fake: str, code: int) -> None:
    """Ctrl-C reaches bash and the run; the run ends well, so bash by itself would start the next line."""
    assert bash(generated(fake), EXIT_baseline=str(code)) == Ended(code, "")
    assert list(ran()) == ["baseline-0"]


def test_one_line_ends_with_the_exit_code_of_its_run(fake: str) -> None:
    """99 tells Grid Engine to start it again."""
    assert bash(generated(fake), "1", EXIT_baseline="99").code == 99


@pytest.mark.parametrize("task", ["0", "4", "-1", "x", "1x", "1 2"])
def test_a_line_that_is_not_there_is_told_in_one_line(fake: str, task: str) -> None:
    ended = bash(generated(fake), task)
    assert ended.one_line == f"error: scripts/jobs_vgg11.txt has no line {task} of the form: mode seed"
    assert not ran()


def test_a_damaged_line_is_told_and_the_others_run(fake: str) -> None:
    script = generated(fake)
    Path("scripts/jobs_vgg11.txt").write_text("baseline\nmasked 0 1\nmasked 7\n")
    ended = bash(script)
    assert ended.code == 1
    assert "no line 1 of the form: mode seed" in ended.output
    assert "runs that failed: 2 of 3" in ended.output
    assert list(ran()) == ["masked-7"]


def test_started_elsewhere_a_script_says_where_it_belongs(fake: str, tmp_path: Path) -> None:
    script = generated(fake).absolute()
    os.chdir(tmp_path)
    ended = bash(script)
    assert ended.one_line == (
        f"error: no scripts/jobs_vgg11.txt in {tmp_path}; start this script from the folder where it was written"
    )


def test_the_environment_file_prepares_the_run_and_may_use_unset_variables(fake: str) -> None:
    Path("env.sh").write_text('export EXIT_baseline="4$UNSET"\n')
    assert bash(generated(fake, environment="env.sh"), "1").code == 4


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("settings", [{}, AWKWARD])
@pytest.mark.parametrize("parameters", [PARAMETERS, None])
def test_the_program_may_be_called_with_variables_of_its_own(
    fake: str,
    way: Callable[[Path], Iterator[Ended]],
    parameters: tuple[str, ...] | None,
    settings: dict[str, Any],
) -> None:
    """``OMP_NUM_THREADS=1 python ...``: bash took the first word for the program, and each task ended with 127."""
    jobs = JobFlags.parse({"prefix": f"EXIT_masked=3 NOTE='two words' {fake}"})
    script = write_array(cells(**settings), jobs, "vgg11", parameters)
    assert sorted({ended.code for ended in way(script)}) in ([1], [0, 3])
    assert sorted(ran()) == ["baseline-0", "masked-0", "masked-7"]


def test_matplotlib_gets_a_folder_below_the_jobs_own(project: Path) -> None:
    script = generated("printenv MPLCONFIGDIR #")
    assert bash(script, "1", TMPDIR="/scratch/1").output == f"/scratch/1/matplotlib-{os.getuid()}\n"
    assert bash(script, "1").output == f"/tmp/matplotlib-{os.getuid()}\n"


@pytest.mark.slow
def test_a_real_run_through_a_script_equals_the_same_command_and_is_not_run_again(
    project: Path, zygote: Zygote, tiny_run: list[str]
) -> None:
    train = parsed(*tiny_run)
    jobs = JobFlags.parse({"prefix": f"{shlex.quote(sys.executable)} -m perturblab"})
    script = write_array([Cell("one", train)], jobs, "tiny", PARAMETERS)
    ended = bash(script, SGE_TASK_ID="1")
    assert ended.code == 0, ended.output
    direct = zygote.run(tiny_run, project.parent / "direct")
    assert direct.code == 0
    for written in (Path("scripts"), Path("logs")):
        shutil.move(written, project.parent)
    assert not differing(files_of(project.parent / "direct"), files_of(project))
    shutil.move(project.parent / "scripts", ".")
    times = files_of(project)
    exported = next(Path("results").glob("*.json"))
    exported.unlink()
    again = bash(script, SLURM_ARRAY_TASK_ID="1")
    assert again.code == 0
    assert "epoch" not in again.output
    assert files_of(project) == times, "the exported file that was gone is there again"


# ---- which Python ------------------------------------------------------------------------------------------------------


def venv(folder: Path) -> Path:
    """``bin/python`` of a virtual environment as venv makes it: a link to the Python that made it."""
    folder.joinpath("bin").mkdir(parents=True)
    folder.joinpath("bin/python").symlink_to(os.path.realpath(sys.executable))
    return folder / "bin/python"


@pytest.mark.parametrize(("flags", "called"), [
    ({}, "mine"),
    ({"prefix": "other/bin/python -m perturblab"}, "other"),
    ({"environment": "env.sh"}, "other"),
])  # fmt: skip
def test_a_task_is_run_by_the_python_that_wrote_it_unless_the_user_names_another(
    project: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], called: str
) -> None:
    """In Grid Engine's bare shell ``python`` was not found, in an array that had been written in a venv."""
    mine, _ = venv(project / "mine"), venv(project / "other")
    monkeypatch.setattr(sys, "executable", str(mine))
    Path("env.sh").write_text('PATH="$PWD/other/bin:$PATH"\n')
    Path("perturblab.py").write_text("import sys; print(sys.executable)\n")
    script = generated(flags.pop("prefix", PREFIX), **flags)
    ended = bash(script, "1", PYTHONPATH=str(project))
    assert ended.code == 0, ended.output
    assert Path(ended.output.strip()).parents[1].name == called


# ---- submitting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def scheduler(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake qsub, the only program on the path."""
    folder = project.parent / "bin"
    folder.mkdir()
    program = folder / "qsub"
    program.write_text('#!/bin/sh\necho "$@" >> submitted\nexit ${REFUSED:-0}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return program


@pytest.mark.parametrize("flags", [{}, {"generate_only": True}])
def test_nothing_is_submitted_unless_asked_for(
    scheduler: Path, capsys: pytest.CaptureFixture[str], flags: dict[str, bool]
) -> None:
    hand_over([Path("scripts/a.sh"), Path("my scripts/b.sh")], JobFlags.parse(flags))
    assert not Path("submitted").exists()
    said = capsys.readouterr().out
    assert said == "wrote 2 scripts; start them with:\n  qsub scripts/a.sh\n  qsub 'my scripts/b.sh'\n"


def test_submit_gives_each_script_to_the_scheduler(scheduler: Path) -> None:
    hand_over([Path("scripts/a.sh"), Path("b.sh")], JobFlags.parse({"submit": True}))
    assert Path("submitted").read_text() == "scripts/a.sh\nb.sh\n"


def test_a_scheduler_that_refuses_or_is_not_there_is_told_in_one_line(
    scheduler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSED", "1")
    with pytest.raises(UserError, match=r"qsub refused a\.sh \(exit code 1\)"):
        hand_over([Path("a.sh"), Path("b.sh")], JobFlags.parse({"submit": True}))
    assert Path("submitted").read_text() == "a.sh\n", "the rest would be refused too"
    with pytest.raises(UserError, match="no sbatch on this machine"):
        hand_over([Path("a.sh")], JobFlags.parse({"submit": True, "scheduler": "slurm"}))


# ---- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"mem": "16"}, "--mem 16 is refused: it must be a whole number and K, M, G or T, such as 16G"),
        ({"mem": "0G"}, "--mem 0G is refused"),
        ({"time": "24"}, "--time 24 is refused: it must be hours:minutes:seconds, such as 24:00:00"),
        ({"time": "1:60:00"}, "--time 1:60:00 is refused"),
        ({"gpu": 2}, "--gpu 2 is refused"),
        ({"scheduler": "slrum"}, "did you mean 'slurm'?"),
        ({"prefix": "python\n#$ -N x"}, "it must be one line of text"),
        ({"output_dir": ""}, "it must be one line of text"),
        ({"submit": True, "generate_only": True}, "--generate_only submits nothing"),
        ({"submit": True, "scheduler": "shell"}, "--submit needs --scheduler sge or slurm"),
    ],
)
def test_a_flag_that_no_scheduler_takes_is_refused(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        JobFlags.parse(flags)
    assert said in str(refused.value)


def test_an_environment_file_that_cannot_be_read_is_refused_before_anything_is_written(project: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read --environment none\.sh: No such file"):
        generated("python", environment="none.sh")
    Path("env.sh").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot read --environment env\.sh: it is not text"):
        generated("python", environment="env.sh")
    assert list(files_of(project)) == ["env.sh"]


def test_logs_that_are_a_file_are_told_in_one_line(project: Path) -> None:
    Path("logs").write_text("")
    with pytest.raises(UserError, match="cannot write logs"):
        generated("python")


def test_runs_that_one_command_cannot_name_are_refused(project: Path) -> None:
    jobs = JobFlags()
    with pytest.raises(ValueError, match="the runs differ in more than mode"):
        write_array(cells(), jobs, "vgg11", ("mode",))
    with pytest.raises(ValueError, match="one or more runs"):
        write_array([], jobs, "vgg11", PARAMETERS)
    with pytest.raises(ValueError, match="'two words' cannot stand in a line"):
        write_array(cells(suffix="two words"), jobs, "vgg11", (*PARAMETERS, "suffix"))
    with pytest.raises(ValueError, match="'' cannot stand in a line"):
        write_array(cells(), jobs, "vgg11", (*PARAMETERS, "suffix"))
    with pytest.raises(ValueError, match="'1x' cannot be the name of a job"):
        write_array(cells(), jobs, "vgg11", PARAMETERS, job_name="1x")
