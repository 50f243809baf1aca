"""What happens on a Dask worker: a run's command line in a process of its own, so a crash loses one run, no worker."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturblab.attempts import note_kill
from perturblab.claims import is_held
from perturblab.cpus import THREADS
from perturblab.launch import Status
from perturblab.launch.ends import KILLED, STOPPED, reason_of, status_of
from perturblab.launch.tied import tied

POLL_S = 0.1
# A run that was lost with its worker may still be saving when it is started again elsewhere.
PAUSES_S = (1.0, 3.0, 6.0)


@dataclass(frozen=True)
class Task:
    """A run as a worker needs it. ``log`` lies in the run's folder. ``session``: the call of the launcher, for ``stop``;
    ``prefix``: how the program is called, "" for the worker's own Python; ``threads``: 0 leaves what the worker was
    given (Dask: 1)."""

    words: list[str]
    folder: str
    log: str
    session: str
    prefix: str = ""
    threads: int = 0
    cards: tuple[int, ...] = ()

    def command(self, worker: Any) -> list[str]:
        """On a machine's own workers, each has its card."""
        program = shlex.split(self.prefix) or [sys.executable, "-m", "perturblab"]
        card = [f"--device=cuda:{self.cards[int(worker.name) % len(self.cards)]}"] if self.cards else []
        return [*program, *self.words, *card]


@dataclass(frozen=True)
class End:
    """How a run ended on a worker. ``seconds`` of its last attempt."""

    status: Status
    seconds: float
    reason: str


_lock = threading.Lock()
_stopped: set[str] = set()
_running: dict[str, set[subprocess.Popen[bytes]]] = {}


def dask_setup(worker: Any) -> None:
    """As a preload of the workers that a launcher starts itself: Ctrl-C reaches the launcher alone."""
    os.setsid()


def stop(session: str) -> int:
    """Tell the runs of a launcher on this worker to stop and save, and let none start; how many still run."""
    with _lock:
        running = _running.get(session, set())
        if session not in _stopped:
            _stopped.add(session)
            for process in running:
                process.terminate()
        return len(running)


def carry_out(task: Task) -> End:
    """Run it to its end; again, if a process that is still ending holds its folder."""
    from distributed import get_worker

    worker = get_worker()
    if not os.path.isdir(task.folder):
        return End(
            "failed", 0.0, f"{worker_host(worker)} has no folder {task.folder}: the workers must share it"
        )
    for pause in (*PAUSES_S, 0.0):
        end = _attempt(task, worker)
        if end.status != "elsewhere" or task.session in _stopped:
            break
        time.sleep(pause)
    return end


def worker_host(worker: Any) -> str:
    return str(worker.address).rpartition(":")[0].rpartition("/")[2]


def _attempt(task: Task, worker: Any) -> End:
    began = time.monotonic()
    log = Path(task.log)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab" if is_held(log.parent) else "wb") as output:  # it may be a living run's
            code = _process(task, worker, output)
    except OSError as error:
        return End("failed", 0.0, f"cannot start it on {worker_host(worker)}: {error}")
    if code is None:
        return End("not started", 0.0, "")
    reason = reason_of(code, log)
    status = status_of(code, reason)
    if status == "failed" and reason.startswith(KILLED):
        note_kill(log.parent, reason)
    if code in STOPPED and status != "elsewhere" and task.session not in _stopped:
        from distributed import Reschedule

        raise Reschedule  # its worker or its machine was told to stop, not the launcher
    return End(status, time.monotonic() - began, reason)


def _process(task: Task, worker: Any, output: Any) -> int | None:
    """Its exit code; None if the launcher had stopped before. When the worker closes, the run is told to stop."""
    threads = {name: str(task.threads) for name in THREADS} if task.threads else {}
    with _lock:
        if task.session in _stopped:
            return None
        process = subprocess.Popen(
            tied(task.command(worker)),
            cwd=task.folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | threads,
        )
        _running.setdefault(task.session, set()).add(process)
    told = False
    try:
        while process.poll() is None:
            if not told and worker.status.name not in ("running", "paused"):
                process.terminate()
                told = True
            time.sleep(POLL_S)
    finally:
        with _lock:
            _running[task.session].discard(process)
    return process.returncode
