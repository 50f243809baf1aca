"""Residual networks for 32x32 images (He, Zhang, Ren and Sun 2015, "Deep Residual Learning for Image Recognition").

``resnet20`` to ``resnet56`` are those of section 4.2: three stages of 16, 32, 64 channels and skip connections without
parameters (option A). ``resnet18`` is adaptive-noise.md 5.3's: a 3x3 stem that keeps the max-pool, four stages of 64 to
512 channels, 1x1 convolutions on the skip connection where the shape changes. Keys are torchvision's for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn.functional import pad

from perturblab.accelerate import Conv3x3
from perturblab.models.sizes import check_size, scaled
from perturblab.sites import Layers, OnBranch, Site, Step, SteppedModel

Stages = Sequence[tuple[int, int]]
RESNET18: Stages = ((64, 2), (128, 2), (256, 2), (512, 2))  # channels and blocks of each stage


def cifar_stages(layers: int) -> Stages:
    """The stages of the CIFAR ResNet of 6n + 2 weight ``layers``."""
    return tuple((channels, (layers - 2) // 6) for channels in (16, 32, 64))


class ResNet(SteppedModel):
    """A 3x3 convolution, stages of blocks of two convolutions, global average pooling, Linear.

    ``stages``: channels and blocks of each; every stage but the first halves the map. ``projection``: a 1x1
    convolution with BatchNorm on the skip connection where the shape changes, instead of ``Subsample``. ``pooled``:
    a 3x3 max-pool of stride 2 after the first convolution. ``images`` float32 ``[b channels size size]``, logits
    ``[b classes]``; ``width`` scales every channel count. Initialisation draws from torch's global state: build
    inside ``seeded``. ValueError for images too small to be halved so often.

    Sites: ``conv1``, and per block ``layer1.0.conv1`` (after the ReLU), ``layer1.0.conv2`` (after BatchNorm, before
    the addition) and ``layer1.0`` (the block's output: no layer of its own, so no ``weight_fill``).
    """

    def __init__(
        self,
        stages: Stages,
        *,
        projection: bool = False,
        pooled: bool = False,
        classes: int = 10,
        channels: int = 3,
        width: float = 1.0,
        size: int = 32,
    ) -> None:
        super().__init__()
        check_size("this ResNet", size, len(stages) - 1 + pooled)
        before = scaled(stages[0][0], width)
        self.conv1, self.bn1 = Conv3x3(channels, before, bias=False), nn.BatchNorm2d(before)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if pooled else nn.Identity()
        self._stem = Site("conv1", "relu", (before, size, size), "conv1")
        size = halved(size) if pooled else size
        self._stages = [f"layer{number}" for number in range(1, len(stages) + 1)]
        for name, (wide, depth) in zip(self._stages, stages, strict=True):
            out, shrinks = scaled(wide, width), name != "layer1"
            size = halved(size) if shrinks else size
            first = Block(f"{name}.0", before, out, size, shrinks, projection)
            rest = (Block(f"{name}.{n}", out, out, size, False, projection) for n in range(1, depth))
            self.add_module(name, nn.Sequential(first, *rest))
            before = out
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(before, classes)
        self.apply(initialise)

    def steps(self) -> list[Step]:
        # Made anew at each call: a layer that was exchanged, or a deep copy's, is the one that runs.
        stem: list[Step] = [(self._stem, Layers(self.conv1, self.bn1, self.relu)), (None, self.maxpool)]
        blocks = [step for block in self._blocks() for step in block.steps()]
        return [*stem, *blocks, (None, self.avgpool), (None, self.flatten), (None, self.fc)]

    def _blocks(self) -> Iterator[Block]:
        for name in self._stages:
            yield from getattr(self, name)


class Block(nn.Module):
    """Two 3x3 convolutions beside a skip connection. Inside, a step's state is ``(branch, skip)``.

    ``size``: pixels a side of the block's output; the first convolution has stride 2 if the block ``shrinks``.
    """

    def __init__(self, name: str, before: int, out: int, size: int, shrinks: bool, projection: bool) -> None:
        super().__init__()
        if shrinks:
            self.conv1: nn.Conv2d = nn.Conv2d(before, out, 3, stride=2, padding=1, bias=False)
        else:
            self.conv1 = Conv3x3(before, out, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = Conv3x3(out, out, bias=False), nn.BatchNorm2d(out)
        self.downsample: nn.Module = nn.Identity()
        if shrinks:
            self.downsample = _projection(before, out) if projection else Subsample(out - before)
        shape = (out, size, size)
        self._sites = (
            Site(f"{name}.conv1", f"{name}.relu", shape, f"{name}.conv1"),
            Site(f"{name}.conv2", f"{name}.bn2", shape, f"{name}.conv2"),
            Site(name, name, shape),
        )

    def steps(self) -> list[Step]:
        first, second, whole = self._sites
        return [
            (None, self._open),
            (first, OnBranch(self.conv1, self.bn1, self.relu)),
            (second, OnBranch(self.conv2, self.bn2)),
            (whole, _join),
        ]

    def _open(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return maps, self.downsample(maps)


def _join(state: tuple[Tensor, Tensor]) -> Tensor:
    branch, skip = state
    return (branch + skip).relu_()


class Subsample(nn.Module):
    """Option A of He et al.: every second pixel, and zeros for the channels that are ``new``; no parameters."""

    def __init__(self, new: int) -> None:
        super().__init__()
        self.new = new

    def forward(self, maps: Tensor) -> Tensor:
        before = self.new // 2
        return pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, before, self.new - before))


def _projection(before: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, out, 1, stride=2, bias=False), nn.BatchNorm2d(out))


def halved(size: int) -> int:
    """The side of a map after a layer of stride 2 with padding: half, rounded up."""
    return (size + 1) // 2


def initialise(module: nn.Module) -> None:
    """Kaiming-normal (fan-out) convolutions (adaptive-noise.md 5.3); the rest starts as in PyTorch: BatchNorm 1 and 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
