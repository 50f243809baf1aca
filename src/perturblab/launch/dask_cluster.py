"""Dask: the runs of a grid on the workers of a cluster that is there, or of one that is started for them.

Neither Dask nor its retries run a task exactly once: a worker that dies has its run started again elsewhere. That is
harmless, because a run folder has one holder, and a run that is done ends at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import secrets
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from perturblab.cpus import cores
from perturblab.launch import Cell, Outcome, jobscript
from perturblab.launch.arrays import PREFIX
from perturblab.launch.cards import OPEN
from perturblab.launch.dask_task import End, Task, carry_out
from perturblab.launch.dask_task import stop as stop_on_worker
from perturblab.signals import Interrupted, StopFlag
from perturblab.terminal import UserError, say

MISSING = "--launcher dask needs pip install 'perturblab[cluster]'"
POLL_S = 0.2
REACH_S = 5  # for a scheduler to answer; Dask takes up to twice that to give up
LIVES = 5  # workers that may die under a run before it counts as their murderer
JOBS = 8  # of Grid Engine or Slurm, if not told
GONE = "the Dask scheduler is gone, or forgot it"

Kind = Literal["local", "sge", "slurm"]


def check_installed() -> None:
    """UserError where the extra is not."""
    if not all(map(find_spec, ("dask", "distributed", "dask_jobqueue"))):
        raise UserError(MISSING)


@dataclass(frozen=True)
class Cluster:
    """Where workers are: at ``address`` (or as its file says), or started here or by a scheduler, as ``kind`` says.

    The rest is what a job of a scheduler asks for, and how the program is called.
    """

    address: str = ""
    kind: Kind = "local"
    mem: str = "16G"
    time: str = "24:00:00"
    gpu: int = 0
    environment: str = ""
    prefix: str = PREFIX
    cards: Sequence[int] = ()

    def run_cells(
        self,
        cells: Sequence[Cell],
        log_of: Callable[[Cell], Path | None],
        jobs: int,
        stop: StopFlag,
        on_end: Callable[[Outcome], None],
        preload: Sequence[str] = (),
    ) -> list[Outcome]:
        """``Launch``; with ``address`` its workers decide how many run at a time. UserError if nobody answers."""
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
            "" if self.prefix == PREFIX else self.prefix,
            max(1, cores() // jobs) if mine else 0,
            tuple(self.cards) if mine and open_ else (),
        )

    # ---- the cluster -----------------------------------------------------------------------------------------------

    @contextmanager
    def _client(self, jobs: int) -> Iterator[Any]:
        """A client of the cluster; what was started for it is stopped at the end. UserError if there is none."""
        import dask
        from distributed import Client

        logging.getLogger("distributed").setLevel(
            logging.CRITICAL
        )  # what it has to say is said here in a line
        with ExitStack() as stack:
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": LIVES}))
            if self.address:
                yield stack.enter_context(Client(_scheduler(self.address), set_as_default=False))
                return
            cluster = stack.enter_context(self._local(jobs) if self.kind == "local" else self._jobqueue(jobs))
            yield stack.enter_context(Client(cluster, set_as_default=False))

    def _local(self, jobs: int) -> Any:
        from distributed import LocalCluster

        return LocalCluster(
            n_workers=jobs,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,  # a worker holds nothing; its run is a process of its own
            silence_logs=logging.CRITICAL,
            preload=["perturblab.launch.dask_task"],
        )

    def _jobqueue(self, jobs: int) -> Any:
        """A job of the scheduler per worker; one that ends at its time limit is replaced.

        Queue, account and what else a site asks for stand in ``~/.config/dask/jobqueue.yaml``.
        """
        import dask_jobqueue

        kind: Any = {"sge": dask_jobqueue.SGECluster, "slurm": dask_jobqueue.SLURMCluster}[self.kind]
        taken: queue.SimpleQueue[str] = queue.SimpleQueue()
        cluster = kind(
            n_workers=jobs,
            job_cls=_telling(kind.job_cls, taken),
            cores=1,
            processes=1,
            memory=f"{self.mem}iB",
            walltime=self.time,
            job_extra_directives=self._directives(),
            job_script_prologue=jobscript.environment(self.environment).splitlines(),
            log_directory=str(jobscript.LOGS),
            python=self._python(),
            worker_extra_args=["--no-dashboard", "--memory-limit", "0"],
            scheduler_options={"dashboard_address": None, "dashboard": False},
            silence_logs=logging.CRITICAL,
            **({"job_mem": self.mem} if self.kind == "slurm" else {}),
        )
        refused = taken.get()  # "" for the first job that is taken; a later one may be refused for a moment
        if refused:
            cluster.close()
            raise UserError(f"--cluster {self.kind}: it takes no such job: {refused}")
        cluster.adapt(minimum_jobs=jobs, maximum_jobs=jobs)
        say(f"{jobs} job{'s' * (jobs > 1)} for {self.kind} (--jobs N for more); runs start as these do")
        return cluster

    def _directives(self) -> list[str]:
        if self.kind == "slurm":
            return [f"--gres=gpu:{self.gpu}"] if self.gpu else []
        return [
            f"-l tmem={self.mem}",
            *(["-l gpu=true"] if self.gpu else []),
            "-R y",
            "-S /bin/bash",
            "-notify",
        ]

    def _python(self) -> str:
        """How a job calls the Python that has perturblab: what stands before `` -m `` in the prefix."""
        return shlex.quote(sys.executable) if self.prefix == PREFIX else self.prefix.partition(" -m ")[0]


def _scheduler(address: str) -> str:
    """The address of the scheduler that answers there; ``address`` may be its file. UserError if none does."""
    if os.path.isfile(address):
        try:
            address = json.loads(Path(address).read_bytes())["address"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--address {address} is no scheduler file of Dask") from None
    elif not re.search(r":\d+$", address):
        raise UserError(
            f"--address {address}: give tcp://HOST:PORT, or the scheduler's file, which is not there"
        )
    try:
        found = asyncio.run(_identity(address))["type"]
    except Exception as error:  # also what is no Dask at all, and answers something
        reason = _last_line(error)
        raise UserError(f"--address {address}: no Dask scheduler answers there ({reason})") from None
    if found != "Scheduler":
        raise UserError(f"--address {address} is a {found.lower()} of Dask; give its scheduler's address")
    return address


async def _identity(address: str) -> dict[str, Any]:
    from distributed import Security, rpc

    async with rpc(
        address, timeout=REACH_S, connection_args=Security().get_connection_args("client")
    ) as there:
        answer: dict[str, Any] = await asyncio.wait_for(there.identity(), 1.5 * REACH_S)
        return answer


def _telling(job: Any, taken: queue.SimpleQueue[str]) -> Any:
    """The kind of job that also says why it was refused, or "": Dask only logs it and goes on waiting."""

    class Telling(job):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except Exception as error:
                taken.put(_last_line(error))
                raise
            taken.put("")

    return Telling


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


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
    return f"{type(error).__name__}: {_last_line(error)}"


def _stop(client: Any, session: str, futures: Sequence[Any]) -> None:
    """Forget what waits; ask what runs for a clean stop, and wait for it."""
    client.cancel(futures, force=True)
    while sum(client.run(stop_on_worker, session, on_error="ignore").values()):
        time.sleep(POLL_S)
