"""Predictions under random subsets: ours against one whole pass per subset with the weights zeroed.

    python benchmarks/probes.py --dataset parquet:../shared/data/cifar10-jpeg [--arch vgg11 vgg16] [--n 3] [--json]
    python benchmarks/probes.py --precision bf16 ...        where the processor has bf16 units

A network is trained briefly (``--steps``, or ``--checkpoint FILE.pth`` of ``layerwise-mi train``). Then for each layer in
turn: the plain way with data in memory, stock PyTorch in float32 and a copy of the weights zeroed (some of the
subsets: each takes the same time), and ours for all of them, fill values and, in bf16, calibration, near ties and audit
included. Every prediction of the plain way is compared; those whose two largest logits are nearer than ``MARGIN`` are
counted apart, for float32 itself moves with the size of a batch. Takes 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from _plain import PlainVGG
from _table import Figure, alternate, parser, show
from perturblab import hardware
from perturblab.augment import crop_flip
from perturblab.checkpoints import load_weights, read_checkpoint
from perturblab.datasets import NORMALISATION, load
from perturblab.images import ImageSet, ShuffledSource
from perturblab.masks import documented_subsets, unique_subsets
from perturblab.models import VGG
from perturblab.probes.ablation import fill_value
from perturblab.probes.passes import Ablation
from perturblab.probes.predictions import ablated_predictions
from perturblab.sites import Site
from perturblab.streams import seeded, stream

MARGIN = 1e-4  # of the largest logit
CALIBRATION = 64  # images


@dataclass
class Compared:
    """Seconds for all subsets, the plain way's extrapolated, and how many predictions differ."""

    plain: float
    ours: float
    n: int
    apart: int
    apart_beyond_margin: int


def main(words: argparse.Namespace) -> Iterator[Figure]:
    hardware.set_up("fp32", words.threads)
    train, test = load(
        words.dataset, words.data_dir, documented=NORMALISATION["layerwise-mi"], size=32, channels=3
    )
    test = test[: words.images]
    for arch in words.arch:
        model, plain = networks(arch, train, words)
        layers = [s for s in model.sites() if s.name.startswith("conv")]
        share = math.ceil(words.compared / (len(layers) * len(test) * words.n))
        found = [layer(model, plain, site, test, train, share, words) for site in layers]
        yield from figures(f"{arch}, channels of every layer, {words.precision}", found, words.n)
    found = [elements(model, plain, test, train, words)]
    yield from figures(f"{arch}, elements of the first layer, {words.precision}", found, words.n)


def figures(name: str, found: list[Compared], n: int) -> Iterator[Figure]:
    plain, ours = sum(c.plain for c in found), sum(c.ours for c in found)
    yield Figure(name, "plain over ours", n, ratio=plain / ours)
    total = sum(c.n for c in found)
    yield Figure(f"{name}: different", f"of {total} predictions", n, value=sum(c.apart for c in found))
    beyond = sum(c.apart_beyond_margin for c in found)
    yield Figure(f"{name}: outside {MARGIN:g} of the largest logit", "of these", n, value=beyond)


def networks(arch: str, train: ImageSet, words: argparse.Namespace) -> tuple[VGG, PlainVGG]:
    """Ours and PyTorch's own with the same weights, in evaluation mode."""
    with seeded(0, "init"):
        model = VGG(arch)
    if words.checkpoint:
        load_weights(model, read_checkpoint(words.checkpoint), words.checkpoint)
    else:
        train_briefly(model, train, words.steps)
    plain = PlainVGG(arch)
    plain.load_state_dict(model.state_dict())
    return model.eval(), plain.eval()


def train_briefly(model: VGG, train: ImageSet, steps: int) -> None:
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    model.train()
    for number, batch in enumerate(ShuffledSource(train, 128, 0, crop_flip).epoch(1)):
        if number == steps:
            break
        sgd.param_groups[0]["lr"] = 0.05 * (1 - number / steps)
        sgd.zero_grad()
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        sgd.step()


def layer(
    model: VGG,
    plain: PlainVGG,
    site: Site,
    test: ImageSet,
    train: ImageSet,
    share: int,
    words: argparse.Namespace,
) -> Compared:
    """Channels of one layer, their convolution's weights zeroed; ``share`` subsets at a time the plain way."""
    masks = unique_subsets(words.subsets, site.width, 0, site.width - 1, stream(0, "benchmark", site.name))
    conv = plain.get_submodule(site.weights)
    images = test.normalise(test.images)

    def zeroed(mask: Tensor) -> Tensor:
        kept = conv.weight.detach().clone()
        conv.weight.data.mul_(mask.view(-1, 1, 1, 1))
        logits = plain(images)
        conv.weight.data.copy_(kept)
        return logits

    def ours() -> Tensor:
        ablation = Ablation(site.name, masks, fill_value(model, site.name, "weight"))
        return ablated_predictions(
            model, test, ablation, precision=words.precision, calibration=train[:CALIBRATION]
        )

    return compare(zeroed, ours, masks, share, words.n)


def elements(
    model: VGG, plain: PlainVGG, test: ImageSet, train: ImageSet, words: argparse.Namespace
) -> Compared:
    """Elements of the first layer, multiplied by a mask in a hook."""
    site = model.site("conv1")
    masks = documented_subsets(20, math.prod(site.shape), stream(0, "benchmark", "elements")).view(
        -1, *site.shape
    )
    relu, images = plain.get_submodule(site.module), test.normalise(test.images)

    def hooked(mask: Tensor) -> Tensor:
        handle = relu.register_forward_hook(lambda _, __, out: out * mask)
        logits = plain(images)
        handle.remove()
        return logits

    def ours() -> Tensor:
        ablation = Ablation("conv1", masks)
        return ablated_predictions(
            model, test, ablation, precision=words.precision, calibration=train[:CALIBRATION]
        )

    return compare(hooked, ours, masks, 5, words.n)


def compare(
    plain: Callable[[Tensor], Tensor], ours: Callable[[], Tensor], masks: Tensor, share: int, n: int
) -> Compared:
    """The two in turn, ``n`` times; each time the plain way takes the next ``share`` of the subsets."""
    logits: list[Tensor] = []
    predicted: list[Tensor] = []

    @torch.no_grad()
    def some() -> None:
        first = len(logits)
        logits.extend(plain(masks[number % len(masks)]) for number in range(first, first + share))

    seconds, full, _ = alternate(lambda: predicted.append(ours()), some, n, warm_up=0)
    found = torch.stack(logits)
    wanted, got = found.argmax(2), torch.stack([predicted[0][i % len(masks)] for i in range(len(found))])
    top = found.topk(2, dim=2).values
    near = top[..., 0] - top[..., 1] <= MARGIN * found.abs().amax(2)
    apart = wanted != got
    return Compared(
        full * len(masks) / share, seconds, apart.numel(), int(apart.sum()), int((apart & ~near).sum())
    )


if __name__ == "__main__":
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--arch", nargs="+", default=["vgg11", "vgg16"])
    arguments.add_argument("--dataset", default="digits")
    arguments.add_argument("--data-dir", default="./data")
    arguments.add_argument("--checkpoint", help="weights to load instead of training")
    arguments.add_argument("--steps", type=int, default=60, help="of training at batch 128")
    arguments.add_argument("--images", type=int, default=128)
    arguments.add_argument("--compared", type=int, default=50_000, help="predictions per network")
    arguments.add_argument("--subsets", type=int, default=100)
    arguments.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    arguments.add_argument("--threads", type=int, default=0)
    arguments.add_argument("--n", type=int, default=3)
    given = arguments.parse_args()
    show(main(given), given.json)
