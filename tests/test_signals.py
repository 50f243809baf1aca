"""A signal stops a run well: it finishes its step, saves, says how to go on, and the same command goes on."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Zygote, differing, environment, files_of, program, until
from perturblab.signals import Interrupted, stop_on_signals

CODES = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGUSR2: 75, signal.SIGHUP: 75}
SLOW = [["killpoints", "slow_step", 6, 0.2]]  # the second step of the second epoch


@pytest.fixture(scope="module")
def undisturbed(
    zygote: Zygote, tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert zygote.run(tiny_run, folder).code == 0
    return files_of(folder)


def slow_step_reached(zygote: Zygote) -> Callable[[], bool]:
    return lambda: zygote.output.exists() and "slow step" in zygote.output.read_text()


@pytest.mark.parametrize("number", CODES, ids=lambda n: n.name)
def test_a_signal_lets_the_step_finish_saves_and_says_how_to_go_on(
    zygote: Zygote,
    tiny_run: list[str],
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    pid = zygote.start(tiny_run, tmp_path, hooks=SLOW)
    until(slow_step_reached(zygote))
    os.kill(pid, number)
    ended = zygote.wait()
    assert ended.code == CODES[number]
    last = ended.output.splitlines()[-1]
    assert (
        last == f"stopped: stopped on {number.name}: the state is saved; run the same command again to go on"
    )
    assert "Traceback" not in ended.output
    (saved,) = tmp_path.rglob("checkpoint-*.pt")
    assert saved.name == "checkpoint-000002-00000002.pt", "saved after the step that the signal came in"
    assert not list(tmp_path.rglob("failure.json")), "stopping is no failure"
    assert zygote.run(tiny_run, tmp_path).code == 0
    assert not differing(undisturbed, files_of(tmp_path))


def test_under_grid_engine_the_exit_code_asks_for_99(
    zygote: Zygote, tiny_run: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for number, code in ((signal.SIGUSR1, 99), (signal.SIGINT, 130)):
        folder = tmp_path / number.name
        pid = zygote.start(tiny_run, folder, hooks=SLOW, SGE_ROOT="/opt/sge", JOB_ID="7")
        until(slow_step_reached(zygote))
        os.kill(pid, number)
        assert zygote.wait().code == code
        assert zygote.run(tiny_run, folder).code == 0
        assert not differing(undisturbed, files_of(folder))


def test_a_signal_while_the_robustness_is_measured_loses_no_training(
    zygote: Zygote, tiny_run: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """The last moment before the run is done: SIGTERM to itself at the first row of the robustness measurement."""
    hooks = [["killpoints", "signal_at", "before write rows.jsonl", 4, int(signal.SIGTERM)]]
    ended = zygote.run(tiny_run, tmp_path, hooks=hooks)
    assert ended.code == 75
    assert '"robustness"' in next(tmp_path.rglob("rows.jsonl")).read_text()
    (times,) = tmp_path.rglob("timings.jsonl")
    before = times.read_text().count("\n")
    assert zygote.run(tiny_run, tmp_path).code == 0
    assert times.read_text().count("\n") == before + 1, "only the last epoch is yielded, and measured, again"
    assert not differing(undisturbed, files_of(tmp_path))


def test_a_signal_during_the_export_lets_it_finish(
    zygote: Zygote, tiny_run: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    hooks = [["killpoints", "signal_at", "before mkdir results", 1, int(signal.SIGTERM)]]
    assert zygote.run(tiny_run, tmp_path, hooks=hooks).code == 0
    assert not differing(undisturbed, files_of(tmp_path))


def test_a_second_ctrl_c_stops_at_once_and_loses_nothing(
    zygote: Zygote, tiny_run: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    pid = zygote.start(tiny_run, tmp_path, hooks=[["killpoints", "slow_step", 6, 60.0]])
    until(slow_step_reached(zygote))
    os.kill(pid, signal.SIGINT)
    time.sleep(0.1)
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    ended = zygote.wait()
    assert time.monotonic() - began < 20, "it waited for the step"
    assert ended.code == 130
    assert ended.output.splitlines()[-1] == "stopped: interrupted; run the same command again to go on"
    assert "Traceback" not in ended.output
    assert zygote.run(tiny_run, tmp_path).code == 0
    assert not differing(undisturbed, files_of(tmp_path))


def test_ten_signals_in_a_row_end_in_the_same_bytes(
    zygote: Zygote, tiny_run: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    """Each call does one step."""
    for number in range(10):
        pid = zygote.start(tiny_run, tmp_path, hooks=[["killpoints", "slow_step", 1, 0.2]])
        until(slow_step_reached(zygote))
        os.kill(pid, list(CODES)[number % len(CODES)])
        assert zygote.wait().code in (75, 130)
    assert zygote.run(tiny_run, tmp_path).code == 0
    assert not differing(undisturbed, files_of(tmp_path))


def test_the_real_command_stops_on_sigterm_with_75_and_goes_on(
    tiny_run: list[str], undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    words = program(*tiny_run)
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        until(lambda: any(tmp_path.rglob("manifest.json")))
        process.terminate()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 75
    assert errors.splitlines()[-1].startswith("stopped: stopped on SIGTERM: the state is saved")
    again = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True)
    assert again.returncode == 0
    assert not differing(undisturbed, files_of(tmp_path))


# ---- the flag ----------------------------------------------------------------------------------------------------------


def test_the_handlers_are_those_of_before_when_the_work_is_over() -> None:
    before = {number: signal.getsignal(number) for number in CODES}
    with stop_on_signals() as flag:
        assert not flag
        flag.check()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert flag
        with pytest.raises(Interrupted, match="SIGUSR1"):
            flag.check()
    assert {number: signal.getsignal(number) for number in CODES} == before


def test_a_second_sigint_raises_keyboard_interrupt_but_sigterm_twice_does_not() -> None:
    with stop_on_signals() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_nohup_a_closed_terminal_does_not_stop_the_work() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not flag
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
