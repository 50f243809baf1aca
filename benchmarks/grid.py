"""Grids: how long ``plan`` and ``status`` take over thousands of runs, and what the local launcher adds to each run.

The thousands are not started: their folders hold what a finished, failed or interrupted run leaves, without its weights.
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
from statistics import median

from _table import Figure, parser, show
from perturblab.cli import main
from perturblab.launch import Cell
from perturblab.planning import exports, folder
from perturblab.rows import to_line
from perturblab.studies.masked_loss import GRID

ASKED_S = 2.0  # issue 6: plan and status over 10,000 cells, after start
LAUNCH_S = 0.1  # the launcher's own time per cell
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


# ---- what the launcher adds -----------------------------------------------------------------------------------------

SMOKE = [
    "arch=vgg11",
    "mode=baseline",
    "width=0.05",
    "epochs=1",
    "batch_size=64",
    "threads=1",
    "device=cpu",
    "dataset=digits",
]
ALONE = """
import sys, time
from perturblab.cli import main
from perturblab.studies.masked_loss import Train
def run(seed):
    try: main(Train.parse({**dict(one.split("=") for one in sys.argv[2:]), "seed": seed}).arguments())
    except SystemExit: pass
run(10**6)  # what the first run imports is not counted
began = time.perf_counter()
for seed in range(int(sys.argv[1])): run(seed)
print(time.perf_counter() - began)
"""


def overhead(cells: int, n: int) -> Iterator[Figure]:
    """Seconds per run that ``perturblab run`` takes beyond the runs themselves, one after another in one process.

    The runs of one process are the least that they can take: imports done, allocator and caches warm.
    """
    torch, launcher, plain = [], [], []
    for _ in range(n):
        torch.append(seconds([sys.executable, "-c", "import torch"]))
        with tempfile.TemporaryDirectory() as where, contextlib.chdir(where):
            told = subprocess.run(
                [sys.executable, "-c", ALONE, str(cells), *SMOKE], capture_output=True, text=True
            )
            alone = float(told.stdout.split()[-1]) / cells
        with tempfile.TemporaryDirectory() as where, contextlib.chdir(where):
            sets = [
                word
                for one in (*SMOKE, f"seed={','.join(map(str, range(cells)))}")
                for word in ("--set", one)
            ]
            words = [sys.executable, "-m", "perturblab", "run", "masked-loss", *sets, "--jobs", "1"]
            launcher.append(seconds(words) / cells - alone)
        with tempfile.TemporaryDirectory() as where, contextlib.chdir(where):
            few = [word for one in (*SMOKE, "seed=0") for word in ("--" + one).split("=")]
            words = [sys.executable, "-m", "perturblab", "masked-loss", "train", *few]
            plain.append(seconds(words) - alone)
    yield Figure("python -c 'import torch'", "s", n, median(torch))
    yield Figure(f"perturblab run: beyond the run, per cell of {cells}", "s", n, median(launcher))
    told = f"s; asked below {LAUNCH_S:g}"
    yield Figure("the same beyond importing torch and the run", told, n, median(launcher) - median(torch))
    yield Figure("a process per run from the shell: beyond the run", "s", n, median(plain))
    yield Figure("shell over launcher, beyond the run", "x", n, ratio=median(plain) / median(launcher))


def seconds(words: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return time.perf_counter() - began


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
    rows = b"".join(to_line({"epoch": n, "seconds": 3.0}) for n in range(1, epochs + 1)).decode()
    write(run.path / "settings.json", "{}")
    write(run.path / "timings.jsonl", rows)
    write(run.path / "rows.jsonl", rows)
    if kind == "failed":
        write(run.path / "failure.json", json.dumps({"kind": "failed", "message": "out of memory"}))
    elif kind == "done":
        (run.path / "failure.json").unlink(missing_ok=True)
        write(run.path / "results.json", "{}")
        for path in exports(cell):
            write(path, run.id)


def write(path: Path, text: str) -> None:
    os.makedirs(path.parent, exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    arguments = parser(__doc__ or "")
    arguments.add_argument("--cells", type=int, default=10_000, help="runs in the grid (a multiple of 8)")
    arguments.add_argument("--launched", type=int, default=50, help="runs that the launcher starts")
    arguments.add_argument("--repeat", type=int, default=3, help="repetitions of that")
    given = arguments.parse_args()
    if given.launched:
        show(overhead(given.launched, given.repeat), given.json)
    if given.cells:
        show(figures(given.cells), given.json)
