"""A shell script with one line per run: run it as it is, or feed its lines to GNU parallel."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from perturblab.files import write_atomic, writing_to
from perturblab.launch import Cell
from perturblab.launch.jobscript import COUNTING
from perturblab.terminal import UserError, counted, say


def write_script(cells: Sequence[Cell], path: str | Path, prefix: str) -> None:
    """Write an executable script; each run is a comment and a line that begins with ``prefix`` (decision 39).

    What follows it ends the script where a run was stopped: after Ctrl-C a run ends well, and bash would go on.
    UserError if another file has that name.
    """
    _check_ours(Path(path))
    n = len(cells)
    lines = ["#!/usr/bin/env bash", f"# {counted(n, 'run')}; one that is done is not run again.", COUNTING]
    for number, cell in enumerate(cells, 1):
        lines += [f"# {number}/{n}: {cell.name}", cell.line(prefix), "ended $?", ""]
    write_atomic(path, "\n".join([*lines, f"all_ended {n}", ""]).encode())
    os.chmod(path, 0o755)


def _check_ours(path: Path) -> None:
    """``--output grid.yaml`` is a slip that would cost the grid."""
    with writing_to(path):
        there = path.read_bytes() if path.exists() else b""
    if there and not re.match(rb"#!/usr/bin/env bash\n# [\d,]+ runs?; ", there):
        raise UserError(f"{path} is there and is no script of perturblab's; name another file")


def hand_over(cells: Sequence[Cell], path: str, prefix: str) -> None:
    """Write the script, and say how it is started."""
    write_script(cells, path, prefix)
    first = re.findall(r"\s*\S*", prefix)[0]
    pattern = "^" + re.sub(r"([.[*^$\\])", r"\\\1", first)
    say(f"{path}: {counted(len(cells), 'run')}; start it, or: "
        f"cat {shlex.quote(path)} | grep {shlex.quote(pattern)} | parallel -j 4")  # fmt: skip
