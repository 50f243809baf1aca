"""This machine: one process per run, so a crash loses one run; N at a time, threads shared between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perturblab.launch import Cell, Outcome
from perturblab.signals import LAUNCHER, Interrupted, StopFlag
from perturblab.terminal import UserError

POLL_S = 0.05


@dataclass
class _Process:
    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path | None
    started: float

    def outcome(self) -> Outcome:
        seconds = time.monotonic() - self.started
        code = self.process.returncode
        if code == 0:
            return Outcome(self.cell, "done", seconds)
        return Outcome(self.cell, "failed", seconds, self._reason(code))

    def _reason(self, code: int) -> str:
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log else []
        errors = [line for line in lines if line.startswith(("error: ", "stopped: "))]
        last = (errors or lines or [""])[-1].removeprefix("error: ")
        return last or f"exit code {code}"


def run_cells(
    cells: Sequence[Cell],
    log_of: Callable[[Cell], Path | None],
    jobs: int,
    stop: StopFlag,
    on_end: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run every cell, ``jobs`` at a time, going on after failures; outcomes in the order of ``cells``.

    Each cell's output goes to ``log_of(cell)``, or to this terminal if that is None. When the flag is raised the
    running ones are asked to stop and save, and Interrupted is raised once they have.
    """
    waiting, running = list(cells), list[_Process]()
    ended: dict[str, Outcome] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not stop:
                cell = waiting.pop(0)
                running.append(_start(cell, log_of(cell), jobs))
            for process in [p for p in running if p.process.poll() is not None]:
                running.remove(process)
                outcome = process.outcome()
                ended[process.cell.name] = outcome
                on_end(outcome)
            if stop:
                _stop(running)
                raise Interrupted(stop.number)
            time.sleep(POLL_S)
    finally:
        for process in running:
            process.process.kill()
    return [ended.get(cell.name, Outcome(cell, "not started")) for cell in cells]


def _start(cell: Cell, log: Path | None, jobs: int) -> _Process:
    command = [sys.executable, "-m", "perturblab", *cell.settings.arguments()]
    # Threads are shared out, else N runs of N threads fight for N cores. Its own session: Ctrl-C reaches this
    # process only, which passes it on once.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    environment = {**threads, **os.environ, LAUNCHER: str(os.getpid())}
    if log is None:
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        return _Process(cell, process, None, time.monotonic())
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"cannot write {log}: {error.strerror}") from None
    return _Process(cell, process, log, time.monotonic())


def _stop(running: list[_Process]) -> None:
    """Ask for a clean stop and wait for it: each run finishes its step and saves."""
    for process in running:
        process.process.send_signal(signal.SIGTERM)
    for process in running:
        process.process.wait()
    running.clear()
