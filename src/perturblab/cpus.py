"""How many processors there are for us."""

from __future__ import annotations

import os


def cores() -> int:
    """CPUs that this process may use: its affinity where the system tells, as a scheduler sets it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
