"""This machine: one process per run, so a crash loses one run; N at a time, threads shared between them.

On Linux the processes are forked from a server that has imported the study once and computed nothing (a fork is safe
only from a parent with one thread): importing torch, its compiler and scikit-learn anew takes 4 to 7 s of a core.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from perturblab.cpus import THREADS, threads_of
from perturblab.files import writing_to
from perturblab.launch import Cell, Launch, Outcome
from perturblab.launch.cards import Places
from perturblab.launch.ends import outcome
from perturblab.processes import is_there
from perturblab.signals import Interrupted, StopFlag
from perturblab.terminal import UserError

POLL_S = 0.05
LOST = 255  # the exit code that is told when the server of processes has died


@dataclass
class _Process:
    cell: Cell
    process: BaseProcess
    log: Path | None
    started: float

    @property
    def ended(self) -> bool:
        """A run outlives the server that it was forked from; then the system tells when it ends."""
        code = self.process.exitcode
        return code is not None and not (code == LOST and is_there(self.process.pid or 0))

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if not self.ended:
                os.kill(self.process.pid or 0, number)

    def outcome(self) -> Outcome:
        return outcome(self.cell, self.process.exitcode or 0, time.monotonic() - self.started, self.log)


def run_cells(
    cells: Iterable[Cell],
    log_of: Callable[[Cell], Path | None],
    jobs: int,
    stop: StopFlag,
    on_end: Callable[[Outcome], None],
    preload: Sequence[str] = (),
    places: Places | None = None,
) -> list[Outcome]:
    """``Launch`` on this machine. ``preload``: what the server of processes imports once; ``places``: CUDA cards."""
    waiting, running, ended = iter(cells), list[_Process](), list[Outcome]()
    start = _starter(preload, jobs)
    places = places or Places()
    upcoming: Cell | None = None

    def end(outcome: Outcome) -> None:
        places.end(outcome.cell)
        ended.append(outcome)
        on_end(outcome)

    try:
        while True:
            while len(running) < jobs and not stop and (upcoming := upcoming or next(waiting, None)):
                placed = places.start(upcoming)
                if placed is None:
                    break
                try:
                    running.append(start(upcoming, placed.settings.arguments(), log_of(upcoming)))
                except UserError as error:  # its log cannot be written; the others go on
                    end(Outcome(upcoming, "failed", reason=str(error)))
                upcoming = None
            if stop:
                _stop(running)
                raise Interrupted(stop.number)
            if not running:  # nothing was left to start
                return ended
            if not any(process.ended for process in running):
                wait([p.process.sentinel for p in running if p.process.exitcode is None], POLL_S)
            for process in [p for p in running if p.ended]:
                running.remove(process)
                end(process.outcome())
    finally:
        for process in running:
            process.send(signal.SIGKILL)


def over(cards: Sequence[int], per_gpu: int, jobs: int) -> Launch | None:
    """``run_cells`` with room on these cards; None (it as it is) where there is none or one run at a time."""
    return partial(run_cells, places=Places(cards, per_gpu)) if cards and jobs > 1 else None


def _starter(preload: Sequence[str], jobs: int) -> Callable[[Cell, list[str], Path | None], _Process]:
    """A function that starts one cell. Threads are shared out, else N runs of N threads fight for N cores."""
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(["perturblab.launch.session", *preload])
    threads = threads_of(jobs)

    def start(cell: Cell, words: list[str], log: Path | None) -> _Process:
        if log is not None:
            _touch(log)
        process = context.Process(target=_run, args=(words, log, threads))
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))  # for the server, started with the first process
        try:
            if sys.platform == "linux":
                _start_server()
            process.start()
        finally:
            for name, value in before.items():
                _set(name, value)
        return _Process(cell, process, log, time.monotonic())

    return start


def _start_server() -> None:
    """Unless it runs. It takes no Ctrl-C from us: ``session`` unblocks it once the server has left the terminal."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _touch(log: Path) -> None:
    with writing_to(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _run(words: list[str], log: Path | None, threads: int) -> None:
    """In the new process: the command line, as a user would have typed it."""
    os.setsid()  # Ctrl-C reaches the launcher only, which passes it on once
    threading.Thread(target=_stop_with_launcher, daemon=True).start()
    if log is not None:
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    if "torch" in sys.modules:  # the server has imported it for one thread
        sys.modules["torch"].set_num_threads(threads)
    from perturblab.cli import main

    main(words)


def _stop_with_launcher() -> None:
    """In the new process: when the launcher dies, SIGKILL included, stop as if it had asked to."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(running: list[_Process]) -> None:
    """Ask for a clean stop and wait for it: each run finishes its step and saves."""
    for process in running:
        process.send(signal.SIGTERM)
    while not all(process.ended for process in running):
        time.sleep(POLL_S)
    running.clear()
