"""Workers for the tests of claims: real processes on one folder of small runs without torch, which tell what they did.

``python claiming.py FOLDER CELLS SEED LOG``: do every cell that is not done, until all are. Each event is a line of
``LOG``: ``start CELL PID`` once the cell is held, ``published CELL PID`` once its results are there.
``python claiming.py hold FOLDER SECONDS``: hold a folder.
"""

import os
import random
import sys
import time
from pathlib import Path

from perturblab.attempts import perform
from perturblab.claims import Busy, held
from perturblab.runs import RunFolder
from perturblab.settings import Settings

ROWS = 6


def cell(folder: Path, number: int) -> RunFolder:
    return RunFolder(folder / f"cell-{number:02d}", Settings())


def work(folder: Path, cells: int, seed: int, log: Path) -> None:
    chance, events = random.Random(seed), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    numbers = list(range(cells))
    while left := [n for n in numbers if not cell(folder, n).done]:
        for number in left:
            run = cell(folder, number)
            if run.done:
                continue
            try:
                perform(run, lambda run: train(run, number, chance, events), lambda run: None)  # noqa: B023
            except Busy:
                continue


def train(run: RunFolder, number: int, chance: random.Random, events: int) -> None:
    """What ``fit`` does: rows, a checkpoint after each, results; it goes on after the last checkpoint."""
    os.write(events, f"start {run.path.name} {os.getpid()}\n".encode())
    state = run.latest_checkpoint()
    behind = int(state) if state else 0
    run.drop_rows_from(behind + 1)
    for epoch in range(behind + 1, ROWS + 1):
        time.sleep(chance.uniform(0, 0.004))
        run.log(epoch=epoch, value=epoch / (number + 1))
        run.save_checkpoint(epoch, 0, str(epoch).encode())
    run.finish({"sum": sum(row["value"] for row in run.rows), "rows": len(run.rows)})
    os.write(events, f"published {run.path.name} {os.getpid()}\n".encode())


def hold(folder: Path, seconds: float) -> None:
    with held(folder):
        print("held", flush=True)
        time.sleep(seconds)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        hold(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
