"""Dask: the runs of a grid on the workers of a cluster that is there, or of one that is started for them.

Neither Dask nor its retries run a task exactly once: a worker that dies has its run started again elsewhere. That is
harmless, because a run folder has one holder, and a run that is done ends at once.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from perturblab.cpus import threads_of
from perturblab.launch import Cell, Outcome
from perturblab.launch.arrays import PREFIX, Resources
from perturblab.launch.cards import OPEN
from perturblab.launch.dask_task import End, Task, carry_out
from perturblab.launch.dask_task import stop as stop_on_worker
from perturblab.launch.dask_workers import jobs_of, last_line, processes, scheduler_at
from perturblab.signals import Interrupted, StopFlag
from perturblab.terminal import UserError

MISSING = "--launcher dask needs pip install 'perturblab[cluster]'"
POLL_S = 0.2
LIVES = 5  # workers that may die under a run before it counts as their murderer
JOBS = 8  # of Grid Engine or Slurm, if not told
GONE = "the Dask scheduler is gone, or forgot it"


def check_installed() -> None:
    """UserError where the extra is not."""
    if not all(map(find_spec, ("dask", "distributed", "dask_jobqueue"))):
        raise UserError(MISSING)


@dataclass(frozen=True)
class Cluster:
    """Where workers are: at ``address`` (or as its file says), or started here or by a scheduler, as ``kind`` says.

    ``resources``: what a job of a scheduler asks for, and how the program is called; ``cards`` are those of this
    machine.
    """

    address: str
    kind: Literal["local", "sge", "slurm"]
    resources: Resources
    cards: Sequence[int] = ()

    def run_cells(
        self,
        cells: Iterable[Cell],
        log_of: Callable[[Cell], Path | None],
        jobs: int,
        stop: StopFlag,
        on_end: Callable[[Outcome], None],
        preload: Sequence[str] = (),
    ) -> list[Outcome]:
        """``Launch``; with ``address`` its workers decide how many run at a time. UserError if nobody answers."""
        cells = list(cells)
        if not cells:
            return []
        session = secrets.token_hex(8)
        with self._client(min(jobs, len(cells))) as client:
            tasks = [self._task(cell, log_of(cell), session, jobs) for cell in cells]
            ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
            futures = {}
            for n, (cell, task) in enumerate(zip(cells, tasks, strict=True)):
                future = client.submit(carry_out, task, key=f"run-{session}-{n}", pure=False)
                futures[future.key] = (cell, future)
                future.add_done_callback(ended.put)
            return _wait(client, session, futures, ended, stop, on_end)

    def _task(self, cell: Cell, log: Path | None, session: str, jobs: int) -> Task:
        open_ = getattr(cell.settings, "device", "") in OPEN
        mine = not self.address and self.kind == "local"
        assert log is not None
        return Task(
            cell.settings.arguments(),
            os.getcwd(),
            str(log.absolute()),
            session,
            "" if self.resources.prefix == PREFIX else self.resources.prefix,
            threads_of(jobs) if mine else 0,
            tuple(self.cards) if mine and open_ else (),
        )

    # ---- the cluster -----------------------------------------------------------------------------------------------

    @contextmanager
    def _client(self, jobs: int) -> Iterator[Any]:
        """A client of the cluster; what was started for it is stopped at the end. UserError if there is none."""
        import dask
        from distributed import Client

        with ExitStack() as stack:
            logging.disable(logging.CRITICAL)  # what it logs is said here in a line
            stack.callback(logging.disable, logging.NOTSET)
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": LIVES}))
            if self.address:
                there = scheduler_at(self.address)
            else:
                started = (
                    processes(jobs) if self.kind == "local" else jobs_of(self.kind, jobs, self.resources)
                )
                there = stack.enter_context(started)
            yield stack.enter_context(Client(there, set_as_default=False))


# ---- waiting for the runs ------------------------------------------------------------------------------------------


def _wait(
    client: Any,
    session: str,
    futures: Mapping[str, tuple[Cell, Any]],
    ended: queue.SimpleQueue[Any],
    stop: StopFlag,
    on_end: Callable[[Outcome], None],
) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(futures) and client.status != "closed":
        if stop:
            _stop(client, session, [future for _, future in futures.values()])
            raise Interrupted(stop.number)
        try:
            future = ended.get(timeout=POLL_S)
        except queue.Empty:
            continue
        outcome = _outcome(futures[future.key][0], future)
        if outcome is None:
            ended.put(future)
            continue
        outcomes[future.key] = outcome
        on_end(outcome)
    return [
        outcomes.get(key, Outcome(cell, "not started", reason=GONE)) for key, (cell, _) in futures.items()
    ]


def _outcome(cell: Cell, future: Any) -> Outcome | None:
    """How it ended; None while the answer is lost with its worker, and asked for again."""
    if future.status == "cancelled":
        return Outcome(cell, "not started", reason=GONE)
    try:
        end: End = future.result(timeout=1)
    except TimeoutError:
        return None
    except Exception as error:
        return Outcome(cell, "failed", reason=_in_words(error))
    return Outcome(cell, end.status, end.seconds, end.reason)


def _in_words(error: Exception) -> str:
    if type(error).__name__ == "KilledWorker":
        return "every worker that ran it died, one after another"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("perturblab"):
        return "the workers' Python has no perturblab of this version; install it there"
    return f"{type(error).__name__}: {last_line(error)}"


def _stop(client: Any, session: str, futures: Sequence[Any]) -> None:
    """Forget what waits; ask what runs for a clean stop, and wait for it."""
    client.cancel(futures, force=True)
    while sum(client.run(stop_on_worker, session, on_error="ignore").values()):
        time.sleep(POLL_S)
