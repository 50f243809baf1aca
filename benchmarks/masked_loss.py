"""Training steps of masked-loss: masked against baseline, and against the plain way of the original script.

    python benchmarks/masked_loss.py [--n 9] [--json]
    python benchmarks/masked_loss.py --curve --dataset parquet:../shared/data/cifar10-jpeg

Every way of doing the work lives in a process of its own (a worker, told on its standard input how many steps to take),
so that each has its own allocator settings, and they take their steps in turn. Ours go through ``fit``, data and
augmentation included; the plain one (_plain.py) gets its batch for nothing. Images are random: they do not change the
time. Takes two minutes on two cores; the machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, count, islice
from tempfile import TemporaryDirectory

import torch

from _plain import PlainVGG, masked_step, optimizer
from _table import Figure, alternate, parser, show
from _worker import Worker
from perturblab import hardware, terminal, train
from perturblab.accelerate import Conv3x3
from perturblab.augment import crop_flip
from perturblab.datasets import NORMALISATION, load
from perturblab.images import Batch, ImageSet, ShuffledSource
from perturblab.measure import score
from perturblab.models.vgg import LAYOUTS
from perturblab.runs import run_folder
from perturblab.schedules import constant
from perturblab.studies.masked_loss import Train
from perturblab.studies.masked_loss.run import build, objective, recipe

BATCH = 128
NEVER = 1e9  # seconds between checkpoints
CONSTANTS = NORMALISATION["masked-loss"]


# ---- workers ---------------------------------------------------------------------------------------------------------


class Trainer(Worker):
    """A process that takes training steps when told."""

    def __init__(self, *words: str) -> None:
        super().__init__(__file__, "--worker", *words)

    def step(self, n: int = 1) -> None:
        self.say(str(n))
        assert self.hear() == "done"

    def end(self) -> float:
        """Let it measure a thousand images and end; its largest resident memory in GiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return float(self.hear())


def requested() -> Iterator[None]:
    """One item per step that the parent asks for."""
    for line in sys.stdin:
        yield from (None for _ in range(int(line)))
        print("done", flush=True)


class OnRequest:
    """A source for ``fit``: one endless epoch of another source's batches, each when the parent asks for it."""

    def __init__(self, source: ShuffledSource) -> None:
        self.source = source

    def steps(self) -> int:
        return self.source.steps()

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        batches = chain.from_iterable(self.source.epoch(n) for n in count(1))
        return (next(batches) for _ in requested())


def work(words: argparse.Namespace) -> None:
    """What a worker does: steps until its input ends, then an evaluation; then it says its peak memory."""
    if words.stock_memory:
        hardware.keep_memory = lambda: None
    if words.library:
        Conv3x3.forward = torch.nn.Conv2d.forward
    terminal.PLAIN_EVERY_S = NEVER  # no progress lines
    data = random_images()
    if words.worker == "plain":
        plain(words.arch, data)
    else:
        ours(words.worker, words.arch, words.precision, data)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, flush=True)


def plain(arch: str, data: ImageSet) -> None:
    model = PlainVGG(arch)
    sgd = optimizer(model)
    images, labels = data.normalise(data.images[:BATCH]), data.labels[:BATCH]
    for _ in requested():
        masked_step(model, sgd, images, labels)


def ours(mode: str, arch: str, precision: str, data: ImageSet) -> None:
    s = settings(mode, arch, precision=precision)
    hardware.set_up(s.precision, s.threads)
    model = build(s, data)
    source = OnRequest(ShuffledSource(data, BATCH, s.seed, crop_flip))
    with TemporaryDirectory() as folder, folder_of(s, folder) as run:
        next(train.fit(run, model, objective(s, model), source, recipe(s)))
    score(model, data[:1000], precision=s.precision)


def settings(mode: str, arch: str, **more: object) -> Train:
    return Train.parse({"mode": mode, "arch": arch, "seed": 0, "checkpoint_every": NEVER, **more})


@contextmanager
def folder_of(s: Train, folder: str) -> Iterator[train.RunFolder]:
    run = run_folder(s, s.name, folder)
    with run.claimed():
        yield run


def random_images(n: int = 50_000) -> ImageSet:
    """As many as CIFAR-10 has, in memory as they are in training."""
    pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(n) % 10, tuple("0123456789"), CONSTANTS.mean, CONSTANTS.std)


# ---- figures ---------------------------------------------------------------------------------------------------------


def figures(arch: str, n: int) -> Iterator[Figure]:
    peak = matrix_peak()
    yield Figure("best square float32 matrix product", "GFLOP/s", 5, value=peak / 1e9)
    with ExitStack() as stack:

        def worker(*words: str) -> Trainer:
            return stack.enter_context(closing(Trainer(*words, "--arch", arch)))

        baseline, masked, plain = worker("baseline"), worker("masked"), worker("plain")
        of_baseline, of_masked, ratio = alternate(baseline.step, masked.step, n)
        for name, seconds in (("baseline", of_baseline), ("masked", of_masked)):
            share = arithmetic(arch) / seconds / peak
            yield Figure(f"{arch} {name} step, float32", "ms", n, value=1e3 * seconds)
            yield Figure(f"{arch} {name} step, float32", "% of that product's speed", n, value=100 * share)
        yield Figure(f"{arch} masked over baseline", "times its time; at most 1.05", n, ratio=ratio)

        def against(name: str, unit: str, ours: Trainer, other: Trainer) -> Figure:
            return Figure(f"{arch} {name}", unit, n, ratio=alternate(ours.step, other.step, n)[2])

        yield against("plain masked over ours, float32", "times its time; 4.2, aim 5", masked, plain)
        wanted = "times its time; 9, aim 12"
        if hardware.has_amx():
            half = worker("masked", "--precision", "bf16")
            yield against("plain masked over ours in bf16", wanted, half, plain)
        else:
            yield Figure(f"{arch} plain masked over ours in bf16", f"{wanted}; not measured: no AMX", 0)
        for name, word in (
            ("convolutions left to the library", "--library"),
            ("stock allocator", "--stock-memory"),
        ):
            yield against(f"masked, {name}, over ours", "times its time", masked, worker("masked", word))
    yield memory("vgg19")


def matrix_peak() -> float:
    """FLOP/s of the best of a few square float32 products."""

    def of(size: int) -> float:
        a, b = torch.randn(2, size, size)
        out = torch.empty(size, size)
        return max(2 * size**3 / _seconds(partial(torch.mm, a, b, out=out)) for _ in range(6))

    return max(map(of, (1024, 1536, 2048, 3072)))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def arithmetic(arch: str) -> float:
    """FLOP of a training step, products with padding not counted: forward, and twice that backward (but for the images)."""
    total, channels, size = 0, 3, 32
    for word in LAYOUTS[arch].split():
        if word == "M":
            size //= 2
            continue
        products = channels * int(word) * (3 * size - 2) ** 2  # of 3x3 taps on a row of n, 3n - 2 lie inside
        total += products * (2 if channels == 3 else 3)
        channels = int(word)
    return 2.0 * BATCH * (total + 3 * (512 * 512 + 512 * 10))


def memory(arch: str) -> Figure:
    with closing(Trainer("masked", "--arch", arch)) as worker:
        worker.step(3)
        return Figure(
            f"{arch} masked, batch {BATCH}: largest resident memory", "GiB; under 3", 1, value=worker.end()
        )


# ---- the loss curve in bf16 ------------------------------------------------------------------------------------------

WINDOW, WINDOWS, SEEDS = 10, 10, 5


class Windows:
    """A source for ``fit`` whose epochs are ``WINDOW`` batches of another's first epoch."""

    def __init__(self, source: ShuffledSource) -> None:
        self.source = source

    def steps(self) -> int:
        return WINDOW

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        return islice(self.source.epoch(1, (number - 1) * WINDOW + first_step), WINDOW - first_step)


def curve(data: ImageSet, arch: str, width: float, precision: str, seed: int) -> list[float]:
    """The baseline's mean loss over each window of 10 of its first 100 steps."""
    s = settings("baseline", arch, width=width, precision=precision, seed=seed)
    model = build(s, data)
    source = Windows(ShuffledSource(data, BATCH, s.seed, crop_flip))
    short = replace(recipe(s), epochs=WINDOWS, lr=constant(s.lr))
    with TemporaryDirectory() as folder, folder_of(s, folder) as run:
        return [
            epoch.means["loss_total"] for epoch in train.fit(run, model, objective(s, model), source, short)
        ]


def curves(dataset: str, data_dir: str, arch: str, width: float) -> Iterator[Figure]:
    """Is what bf16 does to the loss smaller than what another seed does?"""
    hardware.set_up("fp32", 0)
    data = load(dataset, data_dir, documented=CONSTANTS, size=32, channels=3)[0]
    floats = [curve(data, arch, width, "fp32", seed) for seed in range(SEEDS)]
    half = curve(data, arch, width, "bf16", seed=0)
    lows, highs = map(min, zip(*floats, strict=True)), map(max, zip(*floats, strict=True))
    spread = [(low, high) for low, high in zip(lows, highs, strict=True)]
    inside = sum(low <= loss <= high for loss, (low, high) in zip(half, spread, strict=True))
    furthest = max(
        abs(a - b) / (high - low) for a, b, (low, high) in zip(half, floats[0], spread, strict=True)
    )
    name = f"{arch} width {width:g}, bf16 loss over {WINDOW * WINDOWS} steps"
    yield Figure(
        f"{name}: inside the spread", f"of {WINDOWS} windows, {SEEDS} float32 seeds", SEEDS, value=inside
    )
    yield Figure(
        f"{name}: distance", "of the spread, to float32 of the same seed, largest", SEEDS, value=furthest
    )


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--arch", default="vgg11", choices=LAYOUTS)
    made.add_argument("--n", type=int, default=9, help="pairs of steps per ratio")
    made.add_argument("--curve", action="store_true", help="bf16 against five float32 seeds on real images")
    made.add_argument("--dataset", default="cifar10", help="for --curve")
    made.add_argument("--data-dir", default="./data", help="for --curve")
    made.add_argument("--width", type=float, default=0.25, help="for --curve: 1 is the documented network")
    made.add_argument("--worker", choices=["baseline", "masked", "plain"], help=argparse.SUPPRESS)
    made.add_argument("--precision", default="fp32", help=argparse.SUPPRESS)
    for word in ("--library", "--stock-memory"):
        made.add_argument(word, action="store_true", help=argparse.SUPPRESS)
    given = made.parse_args()
    if given.worker:
        work(given)
    elif given.curve:
        show(curves(given.dataset, given.data_dir, given.arch, given.width), given.json)
    else:
        show(figures(given.arch, given.n), given.json)


if __name__ == "__main__":
    main()
