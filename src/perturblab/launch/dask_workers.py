"""Where Dask's workers come from: they are there, they are processes of this machine, or jobs of a scheduler."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from perturblab.launch import jobscript
from perturblab.launch.arrays import PREFIX, Resources
from perturblab.terminal import UserError, say

REACH_S = 5.0  # for a scheduler to answer
RETRIES_S = (0.0, 5.0, 20.0)  # before a job is submitted again that a scheduler refused after it took others


# ---- there already -------------------------------------------------------------------------------------------------


def scheduler_at(address: str) -> str:
    """The address of the scheduler that answers there; ``address`` may be its file. UserError if none does."""
    if os.path.isfile(address):
        try:
            address = str(json.loads(Path(address).read_bytes())["address"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"--address {address} is no scheduler file of Dask") from None
    elif not re.search(r":\d+$", address):
        raise UserError(
            f"--address {address}: give tcp://HOST:PORT, or the scheduler's file, which is not there"
        )
    try:
        found = asyncio.run(_identity(address))["type"]
    except Exception as error:  # also what is no Dask at all, and answers something
        raise UserError(
            f"--address {address}: no Dask scheduler answers there ({last_line(error)})"
        ) from None
    if found != "Scheduler":
        raise UserError(f"--address {address} is a {found.lower()} of Dask; give its scheduler's address")
    return address


async def _identity(address: str) -> dict[str, Any]:
    from distributed import Security, rpc

    async with rpc(
        address, timeout=REACH_S, connection_args=Security().get_connection_args("client")
    ) as there:
        answer: dict[str, Any] = await asyncio.wait_for(there.identity(), REACH_S + 1)
        return answer


def last_line(error: BaseException) -> str:
    """Where a long message says what is wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


# ---- here ----------------------------------------------------------------------------------------------------------


def processes(n: int) -> Any:
    """A cluster of ``n`` processes of this machine."""
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=n,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        memory_limit=0,  # a worker holds nothing; its run is a process of its own
        silence_logs=logging.CRITICAL,
        preload=["perturblab.launch.dask_task"],
    )


# ---- jobs ----------------------------------------------------------------------------------------------------------


def jobs_of(kind: Literal["sge", "slurm"], n: int, r: Resources) -> Any:
    """A cluster whose workers are ``n`` jobs; one that ends at its time limit is replaced. UserError if it takes none.

    Queue, account and what else a site asks for stand in ``~/.config/dask/jobqueue.yaml``.
    """
    import dask_jobqueue

    cls: Any = {"sge": dask_jobqueue.SGECluster, "slurm": dask_jobqueue.SLURMCluster}[kind]
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    cluster = cls(
        n_workers=n,
        job_cls=_telling(cls.job_cls, told),
        cores=1,
        processes=1,
        memory=f"{r.mem}iB",
        walltime=r.time,
        job_extra_directives=_directives(kind, r),
        job_script_prologue=jobscript.environment(r.environment).splitlines(),
        log_directory=str(jobscript.LOGS),
        python=_python(r.prefix),
        worker_extra_args=["--no-dashboard", "--memory-limit", "0"],
        scheduler_options={"dashboard_address": None, "dashboard": False},
        silence_logs=logging.CRITICAL,
        **({"job_mem": r.mem} if kind == "slurm" else {}),
    )
    refused = told.get()  # of the first job
    if refused:
        cluster.close()
        raise UserError(f"--cluster {kind}: it takes no such job: {refused}")
    cluster.adapt(minimum_jobs=n, maximum_jobs=n)
    say(f"{n} job{'s' * (n > 1)} for {kind} (--jobs N for more); runs start as these do")
    return cluster


def _directives(kind: str, r: Resources) -> list[str]:
    if kind == "slurm":
        return [f"--gres=gpu:{r.gpu}"] if r.gpu else []
    return [f"-l tmem={r.mem}", *(["-l gpu=true"] if r.gpu else []), "-R y", "-S /bin/bash", "-notify"]


def _python(prefix: str) -> str:
    """How a job calls the Python that has perturblab: what stands before `` -m `` in the prefix."""
    return shlex.quote(sys.executable) if prefix == PREFIX else prefix.partition(" -m ")[0]


def _telling(job: Any, told: queue.SimpleQueue[str]) -> Any:
    """The kind of job that says why it was refused, or "" when it was taken: Dask only logs that, and cannot close."""
    from distributed import Status

    class Telling(job):
        taken = False

        async def start(self) -> None:
            for pause in RETRIES_S if Telling.taken else (0.0,):
                await asyncio.sleep(pause)
                try:
                    await super().start()
                except Exception as error:
                    told.put(last_line(error))
                else:
                    Telling.taken = True
                    told.put("")
                    return
            self.status = Status.closed

    return Telling
