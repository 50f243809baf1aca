"""A shell script with one line per run: run it as it is, or feed its lines to GNU parallel."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from perturblab.files import write_atomic
from perturblab.launch import Cell
from perturblab.terminal import say


def write_script(cells: Sequence[Cell], path: str | Path, prefix: str) -> None:
    """Write an executable script; each run is a comment and a line that begins with ``prefix`` (decision 39)."""
    lines = ["#!/usr/bin/env bash", f"# {len(cells)} runs; one that is done is not run again.", ""]
    for number, cell in enumerate(cells, 1):
        lines += [f"# {number}/{len(cells)}: {cell.name}", cell.line(prefix), ""]
    write_atomic(path, "\n".join(lines).encode())
    os.chmod(path, 0o755)


def hand_over(cells: Sequence[Cell], path: str, prefix: str) -> None:
    """Write the script, and say how it is started."""
    write_script(cells, path, prefix)
    say(f"{path}: {len(cells)} runs; start it, or: "
        f"cat {shlex.quote(path)} | grep '^{prefix.split()[0]}' | parallel -j 4")  # fmt: skip
