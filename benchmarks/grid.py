"""Grids of thousands of runs: how long ``plan`` and ``status`` take over folders of every state.

Starts no run: the folders hold what a finished, failed or interrupted run leaves, without its weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from _table import Figure, parser, show
from perturblab.cli import main
from perturblab.launch import Cell
from perturblab.studies.masked_loss import GRID
from perturblab.studies.masked_loss.sweep import exports, folder

ASKED_S = 2.0  # issue 6: plan and status over 10,000 cells, after start
EPOCHS = 200


def figures(cells: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as where, contextlib.chdir(where):
        seeds = ",".join(map(str, range(cells // 8)))
        words = ["masked-loss", "--set", f"seed={seeds}"]
        yield Figure("start: python -c 'import perturblab.cli'", "s", 3, start())
        for name, share in (("none exists", 0.0), ("half of them exist", 0.5), ("all are done", 1.0)):
            make(cells, share)
            for command in ("plan", "status"):
                seconds = min(timed([command, *words]) for _ in range(3))
                yield Figure(f"{command} over {cells} cells, {name}; asked {ASKED_S:g} s", "s", 3, seconds)


def start() -> float:
    def once() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import perturblab.cli"], check=True)
        return time.perf_counter() - began

    return min(once() for _ in range(3))


def timed(words: list[str]) -> float:
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(words)
    return time.perf_counter() - began


def make(cells: int, share: float) -> None:
    """The first ``share`` of the grid as run folders: of ten one failed and one was interrupted, unless all are done."""
    every = [
        (arch, mode, seed)
        for arch in GRID.axes["arch"]
        for mode in GRID.axes["mode"]
        for seed in range(cells // 8)
    ]
    for number, (arch, mode, seed) in enumerate(every[: round(share * len(every))]):
        one = GRID.settings.parse({"arch": arch, "mode": mode, "seed": seed})
        kind = "done" if share == 1 else {0: "failed", 1: "interrupted"}.get(number % 10, "done")
        leave(Cell("", one), kind)


def leave(cell: Cell, kind: str) -> None:
    run = folder(cell)
    os.makedirs(run.path, exist_ok=True)
    epochs = EPOCHS if kind == "done" else EPOCHS // 4
    rows = [json.dumps({"epoch": n, "seconds": 3.0}) for n in range(1, epochs + 1)]
    write(run.path / "settings.json", "{}")
    write(run.path / "claim", "")
    write(run.path / "timings.jsonl", "\n".join([*rows, ""]))
    write(run.path / "rows.jsonl", "\n".join([*rows, ""]))
    if kind == "failed":
        write(run.path / "failure.json", json.dumps({"kind": "failed", "message": "out of memory"}))
    elif kind == "done":
        (run.path / "failure.json").unlink(missing_ok=True)
        write(run.path / "results.json", "{}")
        for path in exports(cell):
            write(path, "")


def write(path: Path, text: str) -> None:
    os.makedirs(path.parent, exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--cells", type=int, default=10_000, help="runs in the grid (a multiple of 8)")
    given = arguments.parse_args()
    show(figures(given.cells), given.json)
