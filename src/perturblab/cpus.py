"""How many processors there are for us, and how a process is told."""

from __future__ import annotations

import os

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that say how many threads a process that starts may use."""


def cores() -> int:
    """CPUs that this process may use: its affinity where the system tells, as a scheduler sets it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
