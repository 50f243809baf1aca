"""A benchmark's own script started again as a process that does what it is told, one line at a time."""

from __future__ import annotations

import subprocess
import sys


class Worker:
    """``python SCRIPT WORDS`` with its standard input and output in our hands."""

    def __init__(self, script: str, *words: str) -> None:
        command = [sys.executable, script, *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "a worker died"
        return line

    def close(self) -> None:
        with self.process:
            self.process.kill()
