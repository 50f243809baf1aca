"""Small networks, with PyTorch's default initialisation, without BatchNorm and dropout.

``baby_cnn``, ``tiny_cnn``, ``simple_cnn``: adaptive-noise.md 5.3. ``cnn2``: correction.md 4.3. ``mlp``: no document's.
"""

from __future__ import annotations

from torch import nn

from perturblab.accelerate import Conv3x3
from perturblab.models.chain import Chain
from perturblab.models.sizes import check_size, scaled


class SmallNet(Chain):
    """Conv3x3-ReLU-MaxPool2 for each of ``convs``, Linear-ReLU for each of ``hidden``, then Linear.

    Modules ``conv1`` ..., ``pool``, ``fc1`` ... ``images`` float32 ``[b channels size size]``, logits ``[b classes]``;
    ``width`` scales channels and hidden units. Sites ``conv1`` ..., and ``hidden`` or ``hidden1`` ..., after the ReLU.
    ValueError for images too small for the max-pools.
    """

    def __init__(
        self,
        convs: tuple[int, ...],
        hidden: tuple[int, ...],
        classes: int = 10,
        channels: int = 3,
        width: float = 1.0,
        size: int = 32,
    ) -> None:
        super().__init__()
        check_size("this network", size, len(convs))
        self.pool, self.flatten = nn.MaxPool2d(2, 2), nn.Flatten()
        order: list[str] = []
        for number, wide in enumerate(convs, 1):
            out = scaled(wide, width)
            order += [*self._with_relu(f"conv{number}", Conv3x3(channels, out)), "pool"]
            channels = out
        order.append("flatten")
        before = channels * (size // 2 ** len(convs)) ** 2
        for number, wide in enumerate(hidden, 1):
            out = scaled(wide, width)
            order += self._with_relu(f"fc{number}", nn.Linear(before, out))
            before = out
        last = f"fc{len(hidden) + 1}"
        self.add_module(last, nn.Linear(before, classes))
        self.link(*order, last, size=size)

    def _with_relu(self, name: str, layer: nn.Module) -> list[str]:
        """Add the layer and a ReLU; their names."""
        self.add_module(name, layer)
        self.add_module(f"{name}_relu", nn.ReLU(inplace=True))
        return [name, f"{name}_relu"]


class CNN2(Chain):
    """The network of 08MNIST: Conv3x3(16)-ReLU-MaxPool2, Conv3x3(32)-ReLU-MaxPool2, Linear(128)-ReLU, Linear.

    ``images`` float32 ``[b channels size size]``, logits ``[b classes]``; ``width`` scales 16, 32 and 128. Sites
    ``conv1``, ``conv2``, ``hidden``, after the ReLU. ``model[i]`` counts the layers of ``features``, then those of
    ``classifier``; Grad-CAM looks at ``features[3]``, the second convolution.
    """

    def __init__(self, classes: int = 2, channels: int = 1, width: float = 1.0, size: int = 28) -> None:
        super().__init__()
        check_size("cnn2", size, 2)
        first, second, hidden = (scaled(n, width) for n in (16, 32, 128))
        self.features = nn.Sequential(
            Conv3x3(channels, first), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
            Conv3x3(first, second), nn.ReLU(inplace=True), nn.MaxPool2d(2, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(second * (size // 4) ** 2, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )
        self.link("features", "classifier", size=size)

    def __getitem__(self, index: int) -> nn.Module:
        return [*self.features, *self.classifier][index]
