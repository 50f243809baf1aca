"""Noise: what it adds to a training step, and an epoch of adaptive-noise against the plain way (_plain_noise.py).

    python benchmarks/noise.py [--data parquet:../shared/data/cifar10-jpeg] [--threads 1] [--repeats 9] [--only steps] [--json]
    python benchmarks/noise.py --device cuda       the same on a GPU
    python benchmarks/noise.py --quick             only tries the code

Ours is what a run of the study does: ``fit`` in a run folder, input pipeline, controller and all. Steps are those of ResNet18 at batch
128: one without noise in which nothing is watched, against those with noise, in which the clean norms are measured too. Each ratio
stands beside the middle half of its pairs, and again for a whole epoch, in which temporary weight noise pays for fresh BatchNorm
statistics. An epoch of BabyCNN is training, validation with accuracy of each class, clean gradient and update norms; the plain way
does it in a process of its own. Images are random by default: that does not change the time. 12 minutes on two cores; where other
work shares them, ``--clock processor`` still compares the work that both ways make.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from _table import Figure, parser, show
from _worker import Worker
from perturblab import hardware
from perturblab.augment import AUGMENTS
from perturblab.datasets import NORMALISATION, load
from perturblab.experiment import resolved
from perturblab.images import Batch, ImageSet, ShuffledSource, Source
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.runs import RunFolder, run_folder
from perturblab.state import Best
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.build import build
from perturblab.studies.adaptive_noise.control import Doses, controller_of
from perturblab.studies.adaptive_noise.data import Sets, split
from perturblab.studies.adaptive_noise.optimizer import make_optimizer
from perturblab.studies.adaptive_noise.run import best_val_acc, measure, recipe
from perturblab.terminal import UserError
from perturblab.train import Epoch, fit

PLAIN = str(Path(__file__).with_name("_plain_noise.py"))
NEVER = 10**6  # epochs, and seconds between checkpoints


# ---- runs of ours ----------------------------------------------------------------------------------------------------


@dataclass
class Ours:
    """The parts of one run of the study, as its ``run.work`` puts them together."""

    s: Train
    sets: Sets
    run: RunFolder
    watch: bool = True
    source: Source = field(init=False)

    def __post_init__(self) -> None:
        s, train = self.s, self.sets.train
        self.model = build(s.classifier, train, s.width, s.seed).to(train.images.device)
        self.optimizer, self.control, self.best = make_optimizer(s, self.model), controller_of(s), Best()
        self.source = ShuffledSource(train, s.batch_size, s.seed, AUGMENTS[s.augment], drop_last=True)

    def fitted(self) -> Iterator[Epoch]:
        doses = Doses(self.s, self.control, self.model, len(self.sets.train.classes))
        how = replace(recipe(self.s, self.optimizer), watch=self.watch)
        return fit(
            self.run, self.model, CrossEntropy(), self.source, how, None, doses, self.best,
            lambda label, total, done: nullcontext(lambda n, note="": None),
        )  # fmt: skip

    def epochs(self) -> Iterator[tuple[int, int]]:
        """Train, validate and log: how many images were trained on and validated with."""
        for epoch in self.fitted():
            row = measure(self.s, self.model, self.optimizer, epoch, self.sets, self.control, self.run.rows)
            if row["val_acc"] > best_val_acc(self.run.rows):
                self.best.keep(self.model)
            self.run.log(**row)
            yield self.source.steps() * self.s.batch_size, len(self.sets.val)


@contextmanager
def ours(given: argparse.Namespace, sets: Sets, watch: bool = True, **settings: Any) -> Iterator[Ours]:
    """A run in a folder of its own; flags are off, so noise is there all the time or never."""
    common = {
        "batch_size": given.batch_size, "device": given.device, "epochs": NEVER, "checkpoint_every": NEVER, "clean_every": NEVER,
        "disable_adaptive_flags": True, "noise_magnitude": 0.01,
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        s = resolved(Train.parse({**common, **settings}))
        run = run_folder(s, s.name, folder)
        with run.claimed():
            yield Ours(s, sets, run, watch)


# ---- time ------------------------------------------------------------------------------------------------------------


Now = Callable[[], float]
CLOCKS: dict[str, Now] = {"wall": time.perf_counter, "processor": time.process_time}


def clock(given: argparse.Namespace) -> Now:
    """Seconds; a GPU has done its work before they are read."""
    read = CLOCKS[given.clock]
    if given.device == "cpu":
        return read

    def after_all() -> float:
        torch.cuda.synchronize()
        return read()

    return after_all


class Blocks:
    """A source for ``fit``: epochs of 1 + ``n`` batches of another's, whose last ``n`` steps are timed.

    An epoch's first step is not: it measures norms before and after noise.
    """

    def __init__(self, source: Source, n: int, now: Now) -> None:
        self.source, self.n, self.now = source, n, now
        self.batches = chain.from_iterable(source.epoch(number) for number in count(1))
        self.begun, self.seconds = 0, 0.0

    def steps(self) -> int:
        return 1 + self.n

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        if number == self.begun:  # once more, for BatchNorm's statistics
            return self.source.epoch(number)
        self.begun = number
        return self._timed()

    def _timed(self) -> Iterator[Batch]:
        yield next(self.batches)
        began = self.now()
        yield from islice(self.batches, self.n)
        self.seconds = self.now() - began


Timer = Callable[[], tuple[float, ...]]


def steps_of(one: Ours, n: int, now: Now) -> Timer:
    """Seconds of a step, and of what an epoch costs beside its steps, each time it is called."""
    length = one.source.steps()
    one.source = blocks = Blocks(one.source, n, now)
    epochs = one.fitted()

    def timed() -> tuple[float, ...]:
        began = now()
        next(epochs)
        whole = now() - began
        step = blocks.seconds / n
        rest = whole - (1 + n) * step
        return step, length * step + rest

    return timed


@dataclass(frozen=True)
class Pairs:
    """Two ways measured in turn: of each repetition what ``a`` gave and what ``b`` gave."""

    of_a: Sequence[tuple[float, ...]]
    of_b: Sequence[tuple[float, ...]]

    def figure(self, name: str, unit: str, what: int = 0) -> Figure:
        """``b`` over ``a``: the median of the pairs' ratios, and between which their middle half lies."""
        ratios = [b[what] / a[what] for a, b in zip(self.of_a, self.of_b, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return Figure(name, f"{unit}; half of them {low:.2f} to {high:.2f}", len(ratios), ratio=middle)


def in_turn(a: Timer, b: Timer, n: int) -> Pairs:
    """``n`` pairs after one that is not counted; each begins in turn."""
    found: dict[Timer, list[tuple[float, ...]]] = {a: [], b: []}
    for number in range(n + 1):
        for way in (a, b) if number % 2 else (b, a):
            found[way].append(way())
    return Pairs(found[a][1:], found[b][1:])


# ---- figures ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    name: str
    limit: float
    settings: dict[str, Any] = field(default_factory=dict)


def noisy(
    target: str, distribution: str = "gaussian", scale: str = "relative", permanent: bool = False
) -> dict[str, Any]:
    return {
        "noise_type": target,
        "noise_distribution": distribution,
        "noise_scale": scale,
        "permanent": permanent,
    }


WAYS = (
    Way("clean norms", 1.05),
    *(
        Way(f"gradient noise, {distribution}, {scale}", 1.10, noisy("gradient", distribution, scale))
        for scale, distribution in product(("relative", "absolute"), ("gaussian", "uniform"))
    ),
    Way("weight noise, temporary", 1.20, noisy("weight")),
    Way("weight noise, permanent", 1.20, noisy("weight", permanent=True)),
)


def steps(given: argparse.Namespace, sets: Sets) -> Iterator[Figure]:
    network = {"classifier": "resnet18", "width": given.width}
    seen, now = list[float](), clock(given)
    with ours(given, sets, watch=False, **network) as plain:
        step = steps_of(plain, given.steps, now)
        for way in WAYS:
            with ours(given, sets, **network, **way.settings) as one:
                pairs = in_turn(step, steps_of(one, given.steps, now), given.repeats)
            seen += [a[0] for a in pairs.of_a]
            asked = f"times the step without; at most {way.limit:.2f}"
            yield pairs.figure(f"resnet18 step: {way.name}", asked)
            yield pairs.figure(f"resnet18 epoch: {way.name}", "times the epoch without", what=1)
    yield Figure("resnet18 step: without", "ms", len(seen), value=1e3 * statistics.median(seen))


def epochs(given: argparse.Namespace, sets: Sets) -> Iterator[Figure]:
    n = max(2, (given.repeats + 1) // 2)
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "images.npz")
        np.savez(path, **arrays(sets, given.batch_size))
        with plain_way(path, given.device, str(given.threads)) as plain:
            for noise, about in (("none", "no noise"), ("gradient", "gradient noise")):
                with ours(given, sets, classifier="BabyCNN", noise_type=noise) as one:
                    training = one.epochs()
                    for workers in given.workers:
                        name = f"BabyCNN epoch, {about}"
                        pairs = against(training, plain, f"{noise} {workers}", n, clock(given))
                        yield pairs.figure(
                            f"{name}: DataLoader, {workers} workers, over ours", "times faster; at least 3"
                        )
                        for who, found in (
                            (f"DataLoader, {workers} workers", pairs.of_b),
                            ("ours", pairs.of_a),
                        ):
                            yield Figure(f"{name}: {who}", "s", n, value=statistics.median(chain(*found)))


@contextmanager
def plain_way(*words: str) -> Iterator[Worker]:
    """Its process, which ends its DataLoaders' processes before it ends."""
    with closing(Worker(PLAIN, *words)) as plain:
        yield plain
        plain.process.communicate()


def against(training: Iterator[tuple[int, int]], plain: Worker, words: str, n: int, now: Now) -> Pairs:
    """Epochs of ours and of the plain way, which must have worked through as many images."""
    counts: set[tuple[int, int]] = set()

    def their_epoch() -> tuple[float, ...]:
        began = now()
        plain.say(words)
        trained, validated, on_processor = plain.hear().split()
        counts.add((int(trained), int(validated)))
        return (float(on_processor) if now is CLOCKS["processor"] else now() - began,)

    def our_epoch() -> tuple[float, ...]:
        began = now()
        counts.add(next(training))
        return (now() - began,)

    pairs = in_turn(our_epoch, their_epoch, n)
    assert len(counts) == 1, f"different work: {counts}"
    return pairs


def arrays(sets: Sets, batch: int) -> dict[str, Any]:
    """What the plain way needs, as it would have it: pixels ``[n h w c]``."""
    pixels = {
        f"{name}_pixels": part.images.permute(0, 2, 3, 1).cpu().numpy()
        for name, part in (("train", sets.train), ("val", sets.val))
    }
    labels = {
        f"{name}_labels": part.labels.cpu().numpy()
        for name, part in (("train", sets.train), ("val", sets.val))
    }
    return {**pixels, **labels, "mean": sets.train.mean, "std": sets.train.std, "batch": batch}


def images(given: argparse.Namespace) -> Sets:
    """The study's sets on the device: of a data set, or of random images as many as CIFAR-10 has."""
    constants = NORMALISATION["adaptive-noise"]
    if given.data:
        train, test = load(given.data, given.data_dir, documented=constants, size=32, channels=3)
    else:
        train, test = random_images(given.images), random_images(100)
    s = Train.parse({"batch_size": given.batch_size})
    return split(s, train[: given.images], test).to(torch.device(given.device))


def random_images(n: int) -> ImageSet:
    constants = NORMALISATION["adaptive-noise"]
    pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(n) % 10, tuple("0123456789"), constants.mean, constants.std)


def figures(given: argparse.Namespace) -> Iterable[Figure]:
    hardware.set_up("fp32", given.threads)
    sets = images(given)
    if given.only != "epochs":
        yield from steps(given, sets)
    if given.only != "steps":
        yield from epochs(given, sets)


def main() -> None:
    words = parser("Noise against steps without it, and against the plain way of an epoch.")
    words.add_argument("--data", default="", help="name of a data set for load(); random pixels without it")
    words.add_argument("--data-dir", default="./data")
    words.add_argument("--device", default="cpu", help="cpu or cuda")
    words.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="processor: where other work shares the CPU; a DataLoader's is added up over its workers",
    )
    words.add_argument("--threads", type=int, default=1, help="threads of both ways")
    words.add_argument(
        "--repeats", type=int, default=9, help="pairs per figure, 2 or more (epochs: half as many)"
    )
    words.add_argument("--steps", type=int, default=0, help="steps timed at a time; 0 is 2, on a GPU 20")
    words.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the DataLoader")
    words.add_argument("--only", choices=["steps", "epochs"], help="only this part")
    words.add_argument("--quick", action="store_true", help="small and without meaning: only tries the code")
    given = words.parse_args()
    try:
        hardware.pick_device(given.device)
    except UserError as error:
        words.error(str(error))
    if given.clock == "processor" and given.device != "cpu":
        words.error("--clock processor does not see what a GPU does")
    given.batch_size, given.images, given.width = 128, 50_000, 1.0
    given.steps = given.steps or (2 if given.device == "cpu" else 20)
    if given.quick:
        given.batch_size, given.images, given.width, given.repeats, given.steps = 8, 80, 0.05, 2, 1
    show(figures(given), given.json)


if __name__ == "__main__":
    main()
