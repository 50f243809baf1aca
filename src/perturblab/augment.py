"""Random changes of training images, a whole batch at once, each image with its own parameters.

An augmentation is a function ``(images uint8 [n c h w], generator on the CPU) -> uint8 [n c h w]``. It draws on the
CPU, so that a run sees the same images on every device, and works where the images are. Pixels are still raw:
what is filled in is black, and normalisation comes after.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from perturblab.images import Augment
from perturblab.randaugment import randaugment


def crop_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """:func:`crop`, each image mirrored left to right with probability 1/2.

    The distribution is that of torchvision's ``RandomCrop(size, padding=padding)`` and
    ``RandomHorizontalFlip(0.5)`` on images of ``size``. Takes and gives uint8 ``[n c h w]``.
    """
    n = len(images)
    offsets = _offsets(n, padding, generator)
    mirror = torch.randint(2, (n,), generator=generator, dtype=torch.bool)
    mirrored = images.index_select(0, _sent(mirror.nonzero()[:, 0], images)).flip(3)
    which = torch.where(mirror, n - 1 + mirror.cumsum(0), torch.arange(n))
    return _windows(torch.cat([images, mirrored]), which, offsets, padding)


def crop(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """A window of the image's own size out of the image padded with ``padding`` black pixels on each side.

    The offsets of the window are uniform in ``0..2 * padding``, drawn per image and axis. Takes and gives
    uint8 ``[n c h w]``.
    """
    offsets = _offsets(len(images), padding, generator)
    return _windows(images, torch.arange(len(images)), offsets, padding)


def _offsets(n: int, padding: int, generator: torch.Generator) -> Tensor:
    """From the top and from the left, int64 ``[2 n]``."""
    return torch.randint(2 * padding + 1, (2, n), generator=generator)


def _windows(pictures: Tensor, which: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Window ``i`` at ``offsets[:, i]`` of the padded picture ``which[i]``."""
    # Every row of a window is a run of bytes in the padded pictures, and index_select copies such runs whole: crop
    # and flip of 546,000 images/s (32x32x3, one thread), where indexing a view by unfold and torch.where reach
    # 134,000 (two threads).
    _, c, h, w = pictures.shape
    padded = F.pad(pictures, (padding,) * 4).contiguous()
    picture, channel, row, _ = padded.stride()
    corner = _sent(which * picture + offsets[0] * row + offsets[1], pictures)
    channels, rows = (torch.arange(count, device=pictures.device) for count in (c, h))
    starts = corner.view(-1, 1, 1) + (channels * channel).view(-1, 1) + rows * row
    runs = padded.flatten().unfold(0, w, 1)
    return runs.index_select(0, starts.flatten()).view(-1, c, h, w)


def _sent(numbers: Tensor, images: Tensor) -> Tensor:
    """A few KB from the CPU to where ``images`` are, without waiting for a GPU to finish what it is doing."""
    return numbers.to(images.device, non_blocking=True)


def compose(*augments: Augment) -> Augment:
    """One augmentation after the other, each drawing from the same generator."""

    def one_by_one(images: Tensor, generator: torch.Generator) -> Tensor:
        for augment in augments:
            images = augment(images, generator)
        return images

    return one_by_one


AUGMENTS: dict[str, Augment | None] = {
    "crop-flip": crop_flip,
    "crop-flip-rand": compose(crop_flip, randaugment),
    "crop": crop,
    "none": None,
}
