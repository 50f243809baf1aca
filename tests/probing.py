"""Networks, masks and pictures for tests of the probes."""

import torch
from torch import Tensor, nn

from perturblab.images import ImageSet
from perturblab.streams import stream


def randomised(model: nn.Module) -> nn.Module:
    """BatchNorm and biases that are not those of the start, so that removed channels leave something behind."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(-1.5, 1.5)
                layer.running_mean.uniform_(-0.5, 0.5)
                layer.running_var.uniform_(0.5, 2)
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
            if isinstance(getattr(layer, "bias", None), Tensor):
                layer.bias.normal_(0, 0.5)
    return model.eval()


def some_masks(n: int, *shape: int) -> Tensor:
    """Nothing kept, all kept, then half."""
    masks = torch.rand(n, *shape, generator=stream(0, "masks")) < 0.5
    masks[0], masks[1:2] = False, True
    return masks


def pictures(
    n: int, channels: int = 3, size: tuple[int, int] = (32, 32), purpose: str = "pixels"
) -> ImageSet:
    """Random patches, so that images differ also after pooling; ten classes in turn."""
    coarse = torch.randint(256, (n, channels, 4, 4), generator=stream(0, purpose), dtype=torch.uint8)
    pixels = nn.functional.interpolate(coarse, size)
    return ImageSet(pixels, torch.arange(n) % 10, tuple("0123456789"), (0.5,) * channels, (0.25,) * channels)


def last_layer(model: nn.Module) -> nn.Linear:
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]


def centred(model: nn.Module, data: ImageSet) -> nn.Module:
    """No class is preferred: predictions depend on the image."""
    with torch.no_grad():
        last_layer(model).bias -= model(data.normalise(data.images)).mean(0)
    return model
