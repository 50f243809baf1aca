"""How many processors there are for us, and how a process is told."""

from __future__ import annotations

import math
import os
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that say how many threads a process that starts may use."""


def cores() -> int:
    """CPUs that this process may use: its affinity, as a scheduler sets it, and no more than a container's share."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(max(1, min(there, _share())))


def _share(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """CPUs' worth of time that a container gets, as ``docker run --cpus`` sets it. joblib knows it too, but loads numpy."""
    try:
        quota, period = limit.read_text().split()
        return math.inf if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def threads_of(jobs: int) -> int:
    """Threads for each of ``jobs`` runs at a time: what OMP_NUM_THREADS says, else an equal part of the CPUs."""
    said = os.environ.get(THREADS[0], "")
    return int(said) if said.isdecimal() and int(said) > 0 else max(1, cores() // jobs)
