"""Which process this is, and whether another one still lives, as far as this machine can tell."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def here() -> dict[str, Any]:
    """This process: its number and when it started (a number is given out again), and its machine since it booted."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "machine": _machine(),
    }


def is_here(facts: Mapping[str, Any]) -> bool:
    """Whether a process's ``here()`` was told on this machine, since it was last started, in this container."""
    return facts.get("machine") == _machine() and isinstance(facts.get("pid"), int)


def is_alive(facts: Mapping[str, Any]) -> bool:
    """Whether that process of this machine is there; one that has ended and waits for its parent is not.

    True where the system hides another user's processes (``/proc`` mounted with ``hidepid``): its heartbeat tells.
    """
    pid = facts["pid"]
    hidden = False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        hidden = not Path(f"/proc/{pid}").exists()
    except OverflowError:
        pass
    return hidden or _started(pid) == facts.get("started")


def is_there(pid: int) -> bool:
    """Whether a process of this number is there; one that has ended and waits for its parent is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(pid) != -1


@functools.cache
def _machine() -> str:
    """Containers of one machine may share its name; what tells numbers of processes apart is their namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> int | None:
    """Clock ticks from the machine's start to the process's; -1 for one that has ended; None where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return -1 if Path("/proc/self/stat").exists() else None
    except OSError:
        return None
    return -1 if fields[0] in "ZX" else int(fields[19])
