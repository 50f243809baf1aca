"""Correction: an epoch, and the full grid, against the plain way of doing the same work (_plain_correction.py).

    python benchmarks/correction.py [--n 7] [--epochs 10] [--threads 2] [--data 08MNIST] [--json]

Both ways live in processes of their own and take turns. An epoch is 196 batches of 60 + 4 images; ours goes through ``fit``, batches included.
The grid is the document's 12 cells, each with its evaluations: the plain way one after another, ours as ``perturblab correction run`` does them, one
process of one thread per core, the start of the processes and every export included. Without ``--data`` the images are random: that does not
change the time. Takes 25 minutes on two cores, which should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from _plain_correction import LAMBDAS, LOSSES, POOLS, RATES, PlainCell, grid
from _table import Figure, alternate, parser, show
from _worker import Worker
from perturblab import hardware, terminal
from perturblab.checkpoints import read_checkpoint, to_bytes
from perturblab.files import write_atomic
from perturblab.images import ImageSet
from perturblab.studies.correction import Run, Train
from perturblab.studies.correction.cell import objective, recipe
from perturblab.studies.correction.data import as_dictionary, image_set, read_sets
from perturblab.studies.correction.layout import set_files
from perturblab.studies.correction.parts import mixed, network, parts_of
from perturblab.train import fit

NEVER = 1e9  # seconds between checkpoints


# ---- workers ---------------------------------------------------------------------------------------------------------


class Way(Worker):
    """A process that does a piece of the work when told."""

    def __init__(self, *words: str) -> None:
        super().__init__(__file__, *words)

    def once(self) -> None:
        self.say("go")
        assert self.hear() == "done"


def requested() -> Iterator[None]:
    for _ in sys.stdin:
        yield
        print("done", flush=True)


def work(words: argparse.Namespace) -> None:
    torch.set_num_threads(words.threads)
    terminal.PLAIN_EVERY_S = NEVER  # no progress lines
    kind, _, precision = words.worker.partition("-")
    if kind == "plain":
        plain_epochs(words.data)
    elif kind == "ours":
        our_epochs(words.data, precision)
    else:
        plain_grids(words.data, words.epochs)


def plain_epochs(data: str) -> None:
    train = read_checkpoint(set_files(data)["train"])
    cell = PlainCell(train["inputs"], train["labels"], train["masks"], 0.001, "balanced", 1.0, 100)
    for _ in requested():
        cell.epoch()


def plain_grids(data: str, epochs: int) -> None:
    sets = {name: read_checkpoint(set_files(data)[name]) for name in ("train", "original")}
    for _ in requested():
        grid(sets, epochs)


def our_epochs(data: str, precision: str) -> None:
    from perturblab.runs import run_folder

    s = Train(learning_rate=0.001, precision=precision, max_epochs=10**6, checkpoint_every=NEVER, data=data)
    hardware.set_up(s.precision, 0)
    parts = parts_of(s, read_sets(data), 0)
    with TemporaryDirectory() as folder:
        run = run_folder(s, "benchmark", folder)
        with run.claimed():
            epochs = fit(run, network(parts.train), objective(s), mixed(s, parts, 0), recipe(s))
            for _ in requested():
                next(epochs)


def our_grid(data: str, base: str, epochs: int, precision: str) -> None:
    """As ``perturblab correction run`` does it, in a fresh folder."""
    from perturblab.studies.correction.grid import run

    with (
        TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        names = {
            "runs_dir": "state",
            "tensorboard_log_dir": "runs",
            "output_filename": "grid.csv",
            "plots_dir": "plots",
        }
        run(Run.parse({
            "experiment": "full_grid_search", "learning_rate": RATES, "loss_type": LOSSES, "lambda_weight": LAMBDAS,
            "user_corrected_pool_size": POOLS, "max_epochs": epochs, "early_stopping_patience": 10**6, "precision": precision, "data": data,
            "base_model": base, "device": "cpu", **{key: os.path.join(folder, name) for key, name in names.items()},
        }))  # fmt: skip


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(words: argparse.Namespace, base: str) -> Iterator[Figure]:
    common = ("--threads", str(words.threads), "--data", words.data, "--epochs", str(words.epochs))
    with closing(Way("--worker", "plain", *common)) as plain:
        for precision, asked in (("fp32", 1.5), ("bf16", 1.8)):
            with closing(Way("--worker", f"ours-{precision}", *common)) as ours:
                fast, slow, ratio = alternate(ours.once, plain.once, words.n)
            yield Figure(f"epoch of 196 batches, {words.threads} threads, plain", "s", words.n, value=slow)
            yield Figure(
                f"epoch of 196 batches, {words.threads} threads, ours in {precision}",
                "s",
                words.n,
                value=fast,
            )
            yield Figure(
                f"epoch: plain over ours in {precision}",
                f"times faster (asked {asked})",
                words.n,
                ratio=ratio,
            )
    n = max(1, words.n // 2)
    with closing(Way("--worker", "grid", *common)) as plain:
        for precision in ("fp32", "bf16"):
            fast, slow, ratio = alternate(
                lambda p=precision: our_grid(words.data, base, words.epochs, p), plain.once, n, warm_up=0
            )
            yield Figure(f"full grid, {words.epochs} epochs a cell, plain", "s", n, value=slow)
            yield Figure(f"full grid, {words.epochs} epochs a cell, ours in {precision}", "s", n, value=fast)
            yield Figure(
                f"full grid: plain over ours in {precision}", "times faster (asked 2.2)", n, ratio=ratio
            )


def random_sets(folder: Path) -> str:
    """A folder of 08MNIST's size."""
    data = folder / "08MNIST"
    for name, path in set_files(data).items():
        counts = (5923, 5850) if "train" in name else (980, 974)
        write_atomic(
            path, to_bytes(as_dictionary(random_digits(counts, dotted=not name.startswith("original"))))
        )
    return str(data)


def random_digits(counts: tuple[int, int], dotted: bool) -> ImageSet:
    generator = torch.Generator().manual_seed(sum(counts))
    pixels = torch.randint(0, 256, (sum(counts), 1, 28, 28), dtype=torch.uint8, generator=generator)
    pixels[:, :, 25:27, 25:27] = 0
    labels = torch.arange(2).repeat_interleave(torch.tensor(counts))
    if not dotted:
        return image_set(pixels, labels)
    annotation = torch.zeros(pixels.shape, dtype=torch.bool)
    annotation[labels == 1, :, 25:27, 25:27] = True
    return image_set(pixels.masked_fill(annotation, 255), labels, annotation)


def main() -> None:
    words = parser("Correction against the plain way of doing the same work.")
    words.add_argument("--n", type=int, default=7, help="pairs per figure (the grids: half as many)")
    words.add_argument("--epochs", type=int, default=10, help="epochs of each cell of the grid")
    words.add_argument(
        "--threads", type=int, default=2, help="threads of the plain way, and of ours in the epochs"
    )
    words.add_argument("--data", default="", help="a folder 08MNIST; random images without it")
    words.add_argument("--worker", default="", help=argparse.SUPPRESS)
    given = words.parse_args()
    if given.worker:
        work(given)
        return
    with TemporaryDirectory() as folder:
        given.data = given.data or random_sets(Path(folder))
        base = os.path.join(folder, "base.pth")
        write_atomic(base, to_bytes(dict(network(read_sets(given.data).train).state_dict())))
        show(figures(given, base), given.json)


if __name__ == "__main__":
    main()
