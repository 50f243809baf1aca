"""The masked step as the original script takes it (masked-loss.md 1.5 to 1.8), the thing that benchmarks compare with.

An intact forward pass, a forward pass of one image that finds the hidden width, one forward pass per mask with a hook
that multiplies the hidden layer, backward, SGD, and a forward pass for the accuracy of the batch. Stock PyTorch:
``nn.Sequential``, the default allocator, SGD as torch chooses it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab.models.vgg import LAYOUTS, initialise


class PlainVGG(nn.Module):
    """VGG with BatchNorm out of PyTorch's own layers."""

    def __init__(self, arch: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for word in LAYOUTS[arch].split():
            if word == "M":
                layers.append(nn.MaxPool2d(2, 2))
            else:
                conv = nn.Conv2d(channels, int(word), 3, padding=1)
                channels = conv.out_channels
                layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(512, 512), nn.ReLU(inplace=True), nn.Linear(512, 10))
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(images)).flatten(1))


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def masked_step(
    model: PlainVGG, sgd: torch.optim.Optimizer, images: Tensor, labels: Tensor, n_masks: int = 3
) -> None:
    """One step on float32 ``[b 3 32 32]`` and int64 ``[b]``."""
    model.train()
    sgd.zero_grad()
    full = cross_entropy(model(images), labels)
    width = _hidden_width(model, images)
    losses = [cross_entropy(_masked(model, images, _mask(width)), labels) for _ in range(n_masks)]
    ablated = torch.stack(losses).mean()
    total = full - torch.min(ablated, 0.5 * full)
    total.backward()
    sgd.step()
    with torch.no_grad():
        (model(images).argmax(1) == labels).float().mean().item()
    total.item(), full.item(), ablated.item()


def _hidden_width(model: PlainVGG, images: Tensor) -> int:
    widths: list[int] = []
    handle = model.classifier[1].register_forward_hook(lambda _, __, out: widths.append(out.shape[1]))
    with torch.no_grad():
        model(images[:1])
    handle.remove()
    return widths[0]


def _mask(width: int) -> Tensor:
    kept = np.random.choice(width, np.random.randint(1, width - 1), replace=False)
    mask = torch.zeros(width)
    mask[kept] = 1
    return mask


def _masked(model: PlainVGG, images: Tensor, mask: Tensor) -> Tensor:
    handle = model.classifier[1].register_forward_hook(lambda _, __, out: out * mask)
    logits: Tensor = model(images)
    handle.remove()
    return logits
