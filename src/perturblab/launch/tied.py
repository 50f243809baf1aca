"""Become a command that is told to stop and save when whoever started it dies, SIGKILL included (Linux; elsewhere only
become it): ``python tied.py PARENT COMMAND ...``. The tie is the kernel's and outlives the exec."""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tied(words: list[str]) -> list[str]:
    """The command that becomes the command ``words``, tied to this process."""
    return [sys.executable, "-I", __file__, str(os.getpid()), *words]


def become(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
