"""``--launcher dask`` on real clusters: the results of one machine, whatever happens to the workers."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import clusters
from clusters import Kind
from commandline import refusal
from conftest import Ended, Zygote, differing, environment, files_of, program, until
from perturblab.claims import Busy, held
from perturblab.grids.asked import read
from perturblab.grids.cells import plan_of, runs_of
from perturblab.launch import dask_task
from perturblab.launch.dask_task import Task, carry_out
from perturblab.launch.ends import status_of
from perturblab.signals import BUSY, SGE_REQUEUE
from perturblab.studies import STUDIES
from test_gridcommands import sets
from test_launch import processes_in

pytest.importorskip("distributed")

DASK = [sys.executable, "-m", "dask"]
LIVELY = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "10s"}


@dataclass
class Cluster:
    """A scheduler and two workers of one thread, each a process of its own; they talk TCP on loopback."""

    file: Path
    scheduler: "subprocess.Popen[bytes]"
    workers: list["subprocess.Popen[bytes]"]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    with ExitStack() as stack:

        def start(*words: str) -> "subprocess.Popen[bytes]":
            output = stack.enter_context(open(folder / f"{words[0]}.log", "ab"))
            command = [*DASK, *words, "--scheduler-file", str(file), "--no-dashboard"]
            process = subprocess.Popen(
                command, cwd=folder, env=environment(**LIVELY), stdout=output, stderr=output
            )
            stack.callback(ended, process)
            return process

        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0")
        until(file.exists)
        one = (
            "worker",
            "--nthreads",
            "1",
            "--no-nanny",
            "--local-directory",
            str(folder),
            "--host",
            "127.0.0.1",
        )
        yield Cluster(file, scheduler, [start(*one), start(*one)])


def ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def grid(npz: Path, **given: object) -> list[str]:
    shared = {"arch": "vgg11", "mode": "masked", "width": 0.05, "epochs": 8, "batch_size": 20, "robustness_masks": 2,
              "lr": 0.05, "threads": 1, "device": "cpu", "dataset": f"npz:{npz}", **given}  # fmt: skip
    return ["masked-loss", *sets(**shared)]


@contextmanager
def running(folder: Path, words: list[str]) -> "Iterator[subprocess.Popen[str]]":
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        program("run", *words), cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(folder: Path, words: list[str]) -> Ended:
    with running(folder, words) as process:
        output, _ = process.communicate(timeout=240)
    return Ended(process.returncode, output)


def alone(zygote: Zygote, folder: Path, words: list[str]) -> dict[str, bytes]:
    """What the runs of a grid leave that are each called by themselves."""
    for cell in plan_of(runs_of(read(words[0], words[2::2], STUDIES))).cells:
        zygote.run(cell.settings.arguments(), folder)
    return made(folder)


def made(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder).items() if not name.endswith("log.txt")}


# ---- workers that are there ------------------------------------------------------------------------------------------


def test_two_workers_do_a_grid_as_this_machine_would_and_a_run_that_diverges_stops_no_other(
    cluster: Cluster, npz: Path, zygote: Zygote, tmp_path: Path
) -> None:
    words = grid(npz, seed="0,1", lr="0.05,1e20")
    done = run(tmp_path / "dask", [*words, "--launcher", "dask", "--address", str(cluster.file)])
    assert done.code == 1, done.output
    assert "4 to run, by the workers of " in done.output
    assert "vgg11_masked_seed0_lr1e+20 and 1 more failed: the loss is not finite" in done.output
    assert "2 of 4 runs failed; run them again with: perturblab retry masked-loss" in done.output
    assert "Traceback" not in done.output
    assert not differing(made(tmp_path / "dask"), alone(zygote, tmp_path / "alone", words))
    assert len(list((tmp_path / "dask" / "results").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_worker_that_dies_in_the_middle_of_a_run_costs_no_run_and_changes_no_byte(
    cluster: Cluster, npz: Path, zygote: Zygote, tmp_path: Path, number: signal.Signals
) -> None:
    words = grid(npz, seed="0,1", epochs=40)
    here, victim = tmp_path / "dask", cluster.workers[0]
    with running(here, [*words, "--launcher", "dask", "--address", str(cluster.file)]) as process:
        until(lambda: any(trains(here, pid) for pid in children(victim.pid)), 120)
        orphans = children(victim.pid)
        victim.send_signal(number)
        until(lambda: not any(map(alive, orphans)), 60)
        assert process.poll() is None, "it died too late to matter"
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert not differing(made(here), alone(zygote, tmp_path / "alone", words))
    assert "stopped" not in output


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_command_and_the_runs_save(
    cluster: Cluster, npz: Path, tmp_path: Path
) -> None:
    here = tmp_path / "dask"
    words = [*grid(npz, seed="0,1,2", epochs=2000), "--launcher", "dask", "--address", str(cluster.file)]
    with running(here, words) as process:
        until(lambda: len(list(here.glob("perturblab_runs/*/*/rows.jsonl"))) == 2, 120)
        cluster.scheduler.kill()
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "not started: the Dask scheduler is gone, or forgot it" in output
    assert "Traceback" not in output
    until(lambda: not processes_in(here), 120)
    assert len(list(here.glob("perturblab_runs/*/*/checkpoint-*.pt"))) == 2


def children(pid: int) -> list[int]:
    return [
        int(word)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for word in path.read_text().split()
    ]


def trains(folder: Path, pid: int) -> bool:
    """Whether this process holds a run of the folder and has a row to show."""
    holders = [
        path
        for path in folder.glob("perturblab_runs/*/*/claim-*/*/holder.json")
        if f'"pid": {pid},' in path.read_text()
    ]
    return any((path.parents[2] / "rows.jsonl").exists() for path in holders)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# ---- workers that are started here ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_ctrl_c_stops_the_runs_on_workers_of_this_machine_and_the_same_command_goes_on(
    npz: Path, zygote: Zygote, tmp_path: Path
) -> None:
    """It reaches every process of the terminal's group, as Ctrl-C does."""
    words = grid(npz, seed="0,1,2", epochs=60)
    here = tmp_path / "dask"
    with running(here, [*words, "--launcher", "dask", "--jobs", "2"]) as process:
        until(lambda: len(list(here.glob("perturblab_runs/*/*/rows.jsonl"))) == 2, 120)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert output.splitlines()[-1].startswith(
            "stopped: stopped on SIGINT: the state is saved; run the same command"
        )
        assert "Traceback" not in output
    until(lambda: not processes_in(here))
    assert len(list(here.glob("perturblab_runs/*/*/checkpoint-*.pt"))) >= 1
    assert not list(here.glob("results/*"))

    again = run(here, [*words, "--launcher", "dask", "--jobs", "2"])
    assert again.code == 0, again.output
    assert not differing(made(here), alone(zygote, tmp_path / "alone", words))


JOB = ("--mem", "1G", "--time", "0:30:00", "--gpu", "0")
NETWORK = {
    "slurm": [],
    "sge": ["ip", "netns", "exec", "sgetest"],
}  # in which alone Grid Engine can be reached


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in ("slurm", "sge")]
)
def test_workers_that_are_jobs_of_a_real_scheduler_do_a_grid_and_leave_the_queue_empty(
    kind: Kind, npz: Path, zygote: Zygote, tmp_path: Path
) -> None:
    words = grid(npz, seed="0,1")
    here = tmp_path / "dask"
    here.mkdir()
    with clusters.running(kind) as scheduler:
        command = program("run", *words, "--launcher", "dask", "--cluster", kind, "--jobs", "2", *JOB)
        done = subprocess.run(
            [*NETWORK[kind], *command], cwd=here, env=environment(), text=True, timeout=240,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert f"2 jobs for {kind} (" in done.stdout
        assert list((here / "logs").iterdir())
        until(lambda: scheduler.idle)
    there = {name: data for name, data in made(here).items() if not name.startswith("logs/")}
    assert not differing(there, alone(zygote, tmp_path / "alone", words))


REFUSING = """#!/bin/sh
echo "sbatch: error: Batch job submission failed: Requested node configuration is not available" >&2
exit 1
"""  # as the real one answers --mem 999T


def test_a_job_that_a_scheduler_refuses_is_one_line_in_its_words(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask would wait for it for ever."""
    (tmp_path / "sbatch").write_text(REFUSING)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = [*grid(npz, seed="0,1"), "--launcher", "dask", "--cluster", "slurm", "--mem", "999T"]
    told = run(tmp_path / "dask", words).one_line
    assert told == f"error: --cluster slurm: it takes no such job: {REFUSING.split(chr(34))[1]}"


# ---- slips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--address", "tcp://127.0.0.1:9"), "--address tcp://127.0.0.1:9: no Dask scheduler answers there ("),
        (("--address", "scheduler.json"), "--address scheduler.json: give tcp://HOST:PORT, or the scheduler's file"),
        (("--address", "tcp://h:1", "--cluster", "sge"), "--address names workers that are there: leave --cluster out"),
        (("--address", "tcp://h:1", "--jobs", "2"), "--address names workers that are there: leave --jobs out"),
        (("--launcher", "local", "--address", "tcp://h:1"), "--address needs --launcher dask"),
        (("--launcher", "sge", "--cluster", "sge"), "--cluster needs --launcher dask"),
    ],
)  # fmt: skip
def test_an_address_where_nobody_is_or_a_flag_that_means_nothing_is_one_line_within_ten_seconds(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began = time.monotonic()
    assert refusal("run", "layerwise-mi", "--launcher", "dask", *words).startswith(told)
    assert time.monotonic() - began < 12
    assert not list(tmp_path.iterdir())


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(("dask", "distributed", "dask_jobqueue")))
from perturblab.cli import main
main(sys.argv[1:])
"""


def test_without_the_extra_the_launcher_says_how_to_install_it_and_everything_else_works(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", WITHOUT, "run", "layerwise-mi", "--launcher"]
    dask = subprocess.run([*command, "dask"], cwd=tmp_path, capture_output=True, text=True)
    assert (dask.returncode, dask.stderr) == (
        2,
        "error: --launcher dask needs pip install 'perturblab[cluster]'\n",
    )
    script = subprocess.run([*command, "script"], cwd=tmp_path, capture_output=True, text=True)
    assert script.returncode == 0, script.stderr


# ---- on a worker -----------------------------------------------------------------------------------------------------


class Worker:
    """What a task asks its worker."""

    name, address = "0", "tcp://10.0.0.7:40001"
    status = type("Status", (), {"name": "running"})


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("distributed.get_worker", Worker)
    monkeypatch.setattr(dask_task, "PAUSES_S", (0.0,))
    return Worker()


def task(folder: Path, *words: str) -> Task:
    shell = "\n".join(words)
    return Task([], str(folder), str(folder / "run" / "log.txt"), "s", f"bash -c {shlex.quote(shell)}")


def test_a_folder_that_the_workers_do_not_share_is_told(worker: Worker, tmp_path: Path) -> None:
    end = carry_out(task(tmp_path / "none"))
    told = f"10.0.0.7 has no folder {tmp_path / 'none'}: the workers must share it"
    assert (end.status, end.reason) == ("failed", told)


def test_a_run_that_another_process_holds_is_neither_done_nor_failed(worker: Worker, tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(Busy) as refused, held(tmp_path):
        pass
    line = f"error: {refused.value}"
    assert status_of(BUSY, "") == status_of(SGE_REQUEUE, str(refused.value)) == "elsewhere"
    end = carry_out(task(tmp_path, f"echo {shlex.quote(line)} >&2", "echo x >> tries", f"exit {BUSY}"))
    assert end.status == "elsewhere"
    assert (tmp_path / "tries").read_text() == "x\nx\n", "its holder may be about to end"


def test_a_run_killed_on_a_worker_says_so_and_one_that_a_machine_stopped_is_started_again(
    worker: Worker, tmp_path: Path
) -> None:
    from distributed import Reschedule

    end = carry_out(task(tmp_path, "kill -9 $$"))
    assert end.status == "failed"
    assert end.reason.startswith("killed by SIGKILL")
    with pytest.raises(Reschedule):
        carry_out(task(tmp_path, "exit 75"))


def test_a_worker_that_closes_tells_its_run_to_stop(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import Reschedule

    monkeypatch.setattr(Worker.status, "name", "closing")
    with pytest.raises(Reschedule):
        carry_out(
            task(tmp_path, "trap 'touch saved; exit 75' TERM", "touch ready", "while :; do sleep 0.01; done")
        )
    assert not (tmp_path / "ready").exists() or (tmp_path / "saved").exists()


@pytest.mark.parametrize(("cards", "words"), [((), []), ((0, 2), ["--device=cuda:2"])])
def test_a_worker_of_this_machine_has_its_card(
    cards: tuple[int, ...], words: list[str], tmp_path: Path
) -> None:
    worker = Worker()
    worker.name = 3
    assert Task(["a"], "", "", "s", "p", cards=cards).command(worker) == ["p", "a", *words]
