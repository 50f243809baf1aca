"""Seconds per epoch of masked-loss on a GPU: eager, compiled, CUDA graphs, several runs at a time, and the whole suite.

    python benchmarks/gpu.py [--dataset parquet:data/cifar10-jpeg] [--json]      under 10 minutes, random images by default
    python benchmarks/gpu.py --full --dataset cifar10                            and one run of 200 epochs: its test accuracy
    python benchmarks/gpu.py --probes                                            layer-wise masking instead of training
    python benchmarks/gpu.py --device cpu --tiny                                 only tries the code

An epoch is the real one: ``fit`` in a run folder, batch 128, crop and flip, bf16, then clean train accuracy and test
accuracy. Each way has one epoch to warm up (and compile), then ``--epochs`` are measured. When ``--minutes`` are over,
what is left is printed as not measured. Exit code 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from _table import Figure, parser, show
from _worker import Worker
from perturblab import hardware, terminal
from perturblab.augment import crop_flip
from perturblab.datasets import NORMALISATION, load
from perturblab.files import read_json
from perturblab.images import ImageSet, ShuffledSource
from perturblab.masks import unique_subsets
from perturblab.models import VGG
from perturblab.probes.ablation import fill_value
from perturblab.probes.passes import Ablation
from perturblab.probes.predictions import ablated_predictions
from perturblab.runs import run_folder
from perturblab.streams import seeded, stream
from perturblab.studies.masked_loss import ARCHITECTURES, Train
from perturblab.studies.masked_loss.run import build, measure, objective, recipe
from perturblab.studies.masked_loss.run import train as whole_run
from perturblab.train import fit
from probes import train_briefly

SEEDS, EPOCHS, AIM_HOURS = 3, 200, 1  # the document's suite of 24 runs, and how long it may take
MODES = ("baseline", "masked")
WAYS: dict[str, bool | str] = {"eager": False, "CUDA graphs": "reduce-overhead", "compiled": True}
"""What ``Recipe.compile`` is, in the order of interest."""


@dataclass(frozen=True)
class Cell:
    arch: str
    mode: str

    @property
    def name(self) -> str:
        return f"{self.arch} {self.mode}"


# ---- epochs ----------------------------------------------------------------------------------------------------------


def epochs(
    cell: Cell, way: str, given: argparse.Namespace, data: tuple[ImageSet, ImageSet]
) -> Generator[float]:
    """Seconds of each epoch, evaluation included, without end."""
    torch.compiler.reset()
    terminal.PLAIN_EVERY_S = 1e9  # no progress lines
    train_set, test_set = data
    s = settings(cell, given)
    hardware.set_up(s.precision, s.threads)
    model = build(s, train_set).to(given.device)
    source = ShuffledSource(train_set, s.batch_size, s.seed, crop_flip)
    how = replace(recipe(s), compile=WAYS[way])
    with TemporaryDirectory() as folder:
        run = run_folder(s, s.name, folder)
        with run.claimed():
            began = time.perf_counter()
            for epoch in fit(run, model, objective(s, model), source, how):
                run.log(kind="epoch", epoch=epoch.number, **measure(s, model, epoch, train_set, test_set))
                ended = time.perf_counter()
                yield ended - began
                began = time.perf_counter()


def settings(cell: Cell, given: argparse.Namespace, **more: Any) -> Train:
    width = 0.05 if given.tiny else 1.0
    precision = "bf16" if given.device == "cuda" else "fp32"
    words = {"arch": cell.arch, "mode": cell.mode, "seed": 0, "width": width, "precision": precision}
    return Train.parse({**words, "device": given.device, **more})


def images(given: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """Train and test images on the device: those of a data set, or random ones, as many as CIFAR-10 has."""
    constants = NORMALISATION["masked-loss"]
    if given.dataset:
        train_set, test_set = load(given.dataset, given.data_dir, documented=constants, size=32, channels=3)
        return train_set.to(given.device), test_set.to(given.device)

    def random(n: int) -> ImageSet:
        pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
        made = ImageSet(pixels, torch.arange(n) % 10, tuple("0123456789"), constants.mean, constants.std)
        return made.to(given.device)

    return (random(256), random(64)) if given.tiny else (random(50_000), random(10_000))


# ---- several at a time -----------------------------------------------------------------------------------------------


def worker(cell: Cell, way: str, given: argparse.Namespace) -> Worker:
    """A process that warms up, waits for the others, and then takes its epochs."""
    words = ["--worker", cell.arch, cell.mode, way, "--device", given.device, "--epochs", str(given.epochs)]
    words += ["--dataset", given.dataset, "--data-dir", given.data_dir] if given.dataset else []
    words += ["--tiny"] if given.tiny else []
    return Worker(__file__, *words)


def work(given: argparse.Namespace) -> None:
    arch, mode, way = given.worker
    taken = epochs(Cell(arch, mode), way, given, images(given))
    next(taken)
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(next(taken) for _ in range(given.epochs)), flush=True)


def together(cell: Cell, way: str, given: argparse.Namespace) -> float:
    """Seconds per epoch and run when ``--together`` runs share the device: the time of the slowest over their number."""
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(worker(cell, way, given))) for _ in range(given.together)]
        for one in workers:
            one.hear()
        for one in workers:
            one.say("go")
        return max(float(one.hear()) for one in workers) / given.epochs / given.together


# ---- figures ---------------------------------------------------------------------------------------------------------


class Bench:
    """The figures in order of interest, until the time is over."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.data = given, images(given)
        self.deadline = time.monotonic() + 60 * given.minutes
        self.cells = [Cell(*names) for names in product(given.architectures, given.modes)]
        self.eager: dict[Cell, float] = {}

    def figures(self) -> Iterator[Figure]:
        for way in self.given.ways:
            yield from self.of(way)
        if self.given.full:
            yield full_run(self.cells[0], self.given)

    def of(self, way: str) -> Iterator[Figure]:
        """Every cell alone; the first and the last several at a time; what the suite would take."""
        alone: dict[Cell, float] = {}
        for cell in self.cells:
            name = f"{cell.name}, {way}"
            if (seconds := self.within_time(self.alone, cell, way)) is None:
                yield Figure(name, "s per epoch; not measured: out of time", 0)
            else:
                alone[cell] = seconds
                yield Figure(name, "s per epoch", self.given.epochs, value=seconds)
        self.eager = self.eager or alone
        yield self.suite(f"{way}, one at a time", alone)
        shared: dict[Cell, float] = {}
        for cell in dict.fromkeys([self.cells[0], self.cells[-1]]):
            name = f"{cell.name}, {way}, {self.given.together} at a time"
            if (seconds := self.within_time(together, cell, way)) is None:
                yield Figure(name, "s per epoch and run; not measured: out of time", 0)
            else:
                shared[cell] = seconds
                yield Figure(name, "s per epoch and run", self.given.epochs, value=seconds)
        yield self.suite(f"{way}, {self.given.together} at a time", shared)

    def within_time(self, measured: Callable[..., float], cell: Cell, way: str) -> float | None:
        return None if time.monotonic() > self.deadline else measured(cell, way, self.given)

    def alone(self, cell: Cell, way: str, given: argparse.Namespace) -> float:
        taken = epochs(cell, way, given, self.data)
        next(taken)
        with closing(taken):
            return statistics.median(next(taken) for _ in range(given.epochs))

    def suite(self, how: str, measured: dict[Cell, float]) -> Figure:
        """Hours for every cell, seed and epoch; cells that were not measured are scaled from their eager time."""
        name = f"suite of {SEEDS * len(self.cells)} runs x {EPOCHS} epochs, {how}"
        unit = f"h, extrapolated from {len(measured)} of {len(self.cells)} kinds; aim {AIM_HOURS}"
        if not measured or len(self.eager) < len(self.cells):
            return Figure(name, f"{unit}; not measured: out of time", 0)
        scale = sum(measured.values()) / sum(self.eager[cell] for cell in measured)
        hours = scale * sum(self.eager.values()) * SEEDS * EPOCHS / 3600
        return Figure(name, unit, self.given.epochs, value=hours)


def full_run(cell: Cell, given: argparse.Namespace) -> Figure:
    """One run as a user starts it."""
    with TemporaryDirectory() as folder:
        names = ("results_dir", "checkpoint_dir", "runs_dir")
        s = settings(
            cell, given, dataset=given.dataset, data_dir=given.data_dir, **dict.fromkeys(names, folder)
        )
        whole_run(s)
        accuracy = read_json(Path(folder) / f"{s.name}.json")["final_test_acc"]
    return Figure(f"{cell.name}, {s.epochs} epochs on {given.dataset}", "% test accuracy", 1, value=accuracy)


# ---- probes ----------------------------------------------------------------------------------------------------------


def probes(given: argparse.Namespace) -> Iterator[Figure]:
    """All layers x 100 subsets of channels x the test images, in float32 (TF32 off) and in bf16, which must agree."""
    train_set, test_set = images(given)
    hardware.set_up("fp32", 0)
    subsets, aim = (3, "") if given.tiny else (100, "; aim 30 for VGG16")
    for arch in given.architectures:
        with seeded(0, "init"):
            model = VGG(arch, width=0.05 if given.tiny else 1.0).to(given.device)
        train_briefly(model, train_set, 2 if given.tiny else 200)
        name = f"{arch}, all layers x {subsets} subsets x {len(test_set)} images"
        predicted = {}
        for precision in ("fp32", "bf16"):
            began = time.perf_counter()
            predicted[precision] = every_layer(model, train_set, test_set, subsets, precision)
            yield Figure(f"{name}, {precision}", f"s{aim}", 1, value=time.perf_counter() - began)
        different = int((predicted["fp32"] != predicted["bf16"]).sum())
        unit = f"of {predicted['fp32'].numel()} predictions"
        yield Figure(f"{name}: bf16 other than fp32", unit, 1, value=different)


def every_layer(
    model: VGG, train_set: ImageSet, test_set: ImageSet, subsets: int, precision: str
) -> torch.Tensor:
    predicted = []
    for site in (site for site in model.sites() if site.weights.startswith("features")):
        masks = unique_subsets(subsets, site.width, 0, site.width - 1, stream(0, "benchmark", site.name))
        ablation = Ablation(site.name, masks, fill_value(model, site.name, "weight"))
        predicted.append(
            ablated_predictions(model, test_set, ablation, precision=precision, calibration=train_set[:256])
        )
    return torch.stack(predicted)


def arguments() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--dataset", help="name of a data set for load(); default: random images")
    made.add_argument("--data-dir", "--data_dir", default="./data")
    made.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    made.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    made.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    made.add_argument("--epochs", type=int, default=2, help="epochs measured after the first")
    made.add_argument("--together", type=int, default=4, help="runs at a time on one card")
    made.add_argument("--minutes", type=float, default=8, help="after these nothing new is begun")
    made.add_argument("--probes", action="store_true", help="time layer-wise masking instead of training")
    made.add_argument("--full", action="store_true", help="also one whole run of the first architecture")
    made.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    made.add_argument("--tiny", action="store_true", help="a narrow network and few images, to try the code")
    made.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.full and not given.dataset:
        made.error("--full needs real images: give --dataset")
    return given


def main() -> None:
    given = arguments()
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: no CUDA device here, nothing measured (--device cpu --tiny tries the code)",
            file=sys.stderr,
        )
        sys.exit(2)
    if given.worker:
        work(given)
    else:
        show(probes(given) if given.probes else Bench(given).figures(), given.json)


if __name__ == "__main__":
    main()
