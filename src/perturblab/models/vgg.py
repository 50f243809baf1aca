"""VGG for 32x32 images (Simonyan and Zisserman 2015, configurations A to E with BatchNorm).

VGG-N counts weight layers as the paper does: VGG11 has 8 convolutions. Layouts, initialisation and parameter
counts are those of the studies' documents; ``head`` picks what follows the convolutions.
"""

from __future__ import annotations

from torch import Tensor, nn

from perturblab.accelerate import Conv3x3
from perturblab.sites import Layers, Site, Step, SteppedModel

LAYOUTS: dict[str, str] = {
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg13": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "vgg19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
HIDDEN_UNITS = 512


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, at least 1."""
    return max(1, round(channels * width))


class VGG(SteppedModel):
    """Conv3x3(bias)-BN-ReLU stages with 2x2 max-pools, then Linear-ReLU-Linear without dropout (``fc512``).

    ``images`` float32 ``[b channels size size]``, ``size`` at least 32; logits ``[b classes]``. Sites ``conv1`` to
    ``convN`` (after the ReLU, as ``features.N``) and ``hidden`` (``classifier.1``). ``width`` scales every channel
    count and the hidden layer. Initialisation draws from torch's global state: build inside ``seeded``.
    """

    def __init__(
        self, arch: str, classes: int = 10, channels: int = 3, width: float = 1.0, size: int = 32
    ) -> None:
        super().__init__()
        if size < 32:
            raise ValueError(
                f"VGG halves the image five times and needs at least 32x32 pixels, not {size}x{size}"
            )
        self.features, self._sites, out = _features(LAYOUTS[arch], channels, width, size)
        hidden = scaled(HIDDEN_UNITS, width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(out, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, classes)
        )
        self._hidden = Site("hidden", "classifier.1", (hidden,), "classifier.0")
        self.apply(initialise)

    def steps(self) -> list[Step]:
        # Made anew at each call (10 us): kept ones would still point at the original's layers in a deep copy.
        layers = list(self.features)
        steps: list[Step] = []
        for number, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                steps.append((self._sites[number], Layers(*layers[number : number + 3])))
            elif isinstance(layer, nn.MaxPool2d):
                steps.append((None, layer))
        linear, relu, output = self.classifier
        return [*steps, (None, self._flatten), (self._hidden, Layers(linear, relu)), (None, output)]

    def _flatten(self, maps: Tensor) -> Tensor:
        return self.pool(maps).flatten(1)


def _features(
    layout: str, channels: int, width: float, size: int
) -> tuple[nn.Sequential, dict[int, Site], int]:
    """The convolutional part, the site of each convolution by its index, and the channels it ends with."""
    layers: list[nn.Module] = []
    sites: dict[int, Site] = {}
    for word in layout.split():
        if word == "M":
            layers.append(nn.MaxPool2d(2, 2))
            size //= 2
            continue
        out, index = scaled(int(word), width), len(layers)
        layers += [Conv3x3(channels, out), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
        sites[index] = Site(
            f"conv{len(sites) + 1}", f"features.{index + 2}", (out, size, size), f"features.{index}"
        )
        channels = out
    return nn.Sequential(*layers), sites, channels


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
