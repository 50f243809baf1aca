"""A claim on a folder: a locked file. The lock falls with its process, so a dead holder needs no clean-up (flock)."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from perturblab.files import writing_to
from perturblab.terminal import UserError


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold the claim file ``path``, which then names this process. UserError if another process holds it."""
    with writing_to(path):
        claim = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as it is held
    with claim:
        with writing_to(path):
            free = _locked_soon(claim)
        if not free:
            claim.seek(0)
            holder = claim.read().decode(errors="replace").strip() or "another process"
            raise UserError(f"{path.parent} is being worked on by {holder}; wait for it, or stop it first")
        with writing_to(path):
            claim.truncate(0)
            claim.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for a moment, once whoever holds it is done."""
    with writing_to(path):
        lock = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as it is held
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    try:
        with open(path) as claim:
            fcntl.flock(claim, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _locked_soon(claim: IO[bytes]) -> bool:
    """Whether the lock was free within half a second: one who asks for the status holds it for a moment."""
    for _ in range(10):
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False
