"""VGG for 32x32 images (Simonyan and Zisserman 2015; VGG11 to VGG19 are configurations A, B, D, E with BatchNorm).

VGG-N counts weight layers as the paper does: VGG11 has 8 convolutions, and three linear layers in the paper. Layouts,
initialisation and parameter counts are those of the studies' documents; ``head`` picks what follows the convolutions.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from perturblab.accelerate import Conv3x3
from perturblab.models.chain import Chain
from perturblab.models.sizes import check_size, scaled
from perturblab.settings import nearest

LAYOUTS: dict[str, str] = {
    "vgg9": "64 M 128 M 256 256 M 512 M 512 M",
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg13": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "vgg19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
HIDDEN_UNITS = 512


class VGG(Chain):
    """Conv3x3(bias)-BatchNorm-ReLU stages with 2x2 max-pools, global average pooling, then the ``head``:

    - ``fc512`` (masked-loss): Linear-ReLU-Linear; never has dropout;
    - ``gap`` (first-layer-mi): Dropout-Linear, or without ``dropout`` a bare Linear (keys ``classifier.1.weight`` or
      ``classifier.weight``, as in the document's class);
    - ``fc512x2`` (layerwise-mi): Linear-ReLU-Dropout twice, then Linear. PyTorch's default initialisation.

    ``images`` float32 ``[b channels size size]``, ``size`` at least 32; logits ``[b classes]``. Sites ``conv1`` to
    ``convN`` and ``hidden`` (``fc512``) or ``hidden1``, ``hidden2`` (``fc512x2``), all after the ReLU. ``width``
    scales every channel count and the hidden layers; dropout has probability 0.5; ``batchnorm=False`` leaves
    BatchNorm out, which changes the numbers of the layers. Initialisation draws from torch's global state: build
    inside ``seeded``. ValueError for smaller images or an unknown head.
    """

    def __init__(
        self,
        arch: str,
        classes: int = 10,
        channels: int = 3,
        width: float = 1.0,
        size: int = 32,
        *,
        head: str = "fc512",
        dropout: bool = True,
        batchnorm: bool = True,
    ) -> None:
        super().__init__()
        check_size("VGG", size, LAYOUTS[arch].count("M"))
        if head not in HEADS:
            raise ValueError(f"no head '{head}'{nearest(head, HEADS)}")
        self.features, out = _features(LAYOUTS[arch], channels, width, batchnorm)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = HEADS[head](out, scaled(HIDDEN_UNITS, width), classes, 0.5 if dropout else 0.0)
        if head != "fc512x2":
            self.apply(initialise)
        self.link("features", "pool", "flatten", "classifier", size=size)


def _features(layout: str, channels: int, width: float, batchnorm: bool) -> tuple[nn.Sequential, int]:
    """The convolutional part and the channels it ends with."""
    layers: list[nn.Module] = []
    for word in layout.split():
        if word == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        out = scaled(int(word), width)
        layers += [
            Conv3x3(channels, out),
            *([nn.BatchNorm2d(out)] if batchnorm else []),
            nn.ReLU(inplace=True),
        ]
        channels = out
    return nn.Sequential(*layers), channels


def initialise(module: nn.Module) -> None:
    """Kaiming-normal (fan-out) convolutions, unit BatchNorm, Linear N(0, 0.01), zero biases (masked-loss.md 1.3)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.ones_(module.weight)
    if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


# ---- heads: (inputs, hidden units, classes, dropout probability) -> what follows the convolutions ------------------


def _fc512(inputs: int, hidden: int, classes: int, _: float) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, classes))


def _gap(inputs: int, _: int, classes: int, dropout: float) -> nn.Module:
    linear = nn.Linear(inputs, classes)
    return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear


def _fc512x2(inputs: int, hidden: int, classes: int, dropout: float) -> nn.Module:
    def layer(before: int) -> list[nn.Module]:
        return [nn.Linear(before, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout)]

    return nn.Sequential(*layer(inputs), *layer(hidden), nn.Linear(hidden, classes))


HEADS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "fc512": _fc512,
    "gap": _gap,
    "fc512x2": _fc512x2,
}
