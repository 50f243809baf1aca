"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719), a whole batch at once, each image with its own operations.

Each operation gives the bytes that torchvision's ``RandAugment`` gives on Pillow images (mode L or RGB, nearest
neighbour, black fill); the tests hold every operation at every magnitude to that. Images that drew the same
operation share one index map or table of 256 values, so nothing grows with the batch but a few copies of its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 31
"""Magnitudes are 0..30, as in the paper."""

REACH = 150.0 / 331.0
"""The longest shift as a part of the image's side: 150 pixels of the paper's 331."""

LUMA = (19595, 38470, 7471)
"""Red, green and blue in Pillow's gray, in 65536ths (ITU-R 601-2)."""


def randaugment(images: Tensor, generator: torch.Generator, num_ops: int = 2, magnitude: int = 9) -> Tensor:
    """``num_ops`` operations one after the other on each image, each drawn by :func:`draw`, at ``magnitude`` of 0..30.

    Takes and gives uint8 ``[n c h w]`` with 1 or 3 channels; draws from ``generator`` on the CPU. Raises ValueError
    for other channels or magnitudes.
    """
    if images.shape[1] not in (1, 3) or not 0 <= magnitude < BINS:
        raise ValueError(
            f"RandAugment takes 1 or 3 channels and a magnitude in 0..{BINS - 1}, "
            f"not {images.shape[1]} channels and magnitude {magnitude}"
        )
    for _ in range(num_ops):
        images = _each_its_own(images, draw(len(images), generator), magnitude)
    return images


def draw(n: int, generator: torch.Generator) -> Tensor:
    """Twice the place in ``OPERATIONS`` of each image's operation, plus 1 where its level is negative; int64 ``[n]``.

    Operations are equally likely, and so are both signs of those that have one.
    """
    drawn = torch.randint(len(OPERATIONS), (n,), generator=generator)
    negative = torch.randint(2, (n,), generator=generator)
    signed = torch.tensor([operation.signed for operation in OPERATIONS.values()])
    return 2 * drawn + negative * signed[drawn]


def _each_its_own(images: Tensor, drawn: Tensor, magnitude: int) -> Tensor:
    # Sorting the images by operation and back moves whole images (0.3 us each); writing each group into its places
    # with index_copy_ takes 7 us an image.
    order = drawn.argsort(stable=True)
    kinds, counts = drawn.unique(return_counts=True)
    groups = images.index_select(0, order.to(images.device)).split(counts.tolist())
    changed = [_apply(kind, group, magnitude) for kind, group in zip(kinds.tolist(), groups, strict=True)]
    return torch.cat(changed).index_select(0, order.argsort().to(images.device))


def _apply(kind: int, images: Tensor, magnitude: int) -> Tensor:
    name = tuple(OPERATIONS)[kind // 2]
    level = level_of(name, magnitude, *images.shape[2:])
    return OPERATIONS[name].apply(images, -level if kind % 2 else level)


@lru_cache  # 31 numbers for one: 10 us, as much as an image takes
def level_of(name: str, magnitude: int, height: int, width: int) -> float:
    """What ``magnitude`` of 0..30 means to operation ``name``, without its sign: a slope, pixels, degrees, ..."""
    return float(OPERATIONS[name].levels(height, width)[magnitude])


# ---- geometry: out of which pixel each pixel comes -----------------------------------------------------------------

Matrix = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""


def _shear_x(images: Tensor, slope: float) -> Tensor:
    return _moved(images, (1.0, slope, 0.0, 0.0, 1.0, 0.0))


def _shear_y(images: Tensor, slope: float) -> Tensor:
    return _moved(images, (1.0, 0.0, 0.0, slope, 1.0, 0.0))


def _translate_x(images: Tensor, pixels: float) -> Tensor:
    return _moved(images, (1.0, 0.0, -int(pixels), 0.0, 1.0, 0.0))


def _translate_y(images: Tensor, pixels: float) -> Tensor:
    return _moved(images, (1.0, 0.0, 0.0, 0.0, 1.0, -int(pixels)))


def _rotate(images: Tensor, degrees: float) -> Tensor:
    """Counter-clockwise about the centre. Rounded and added up in the order of Pillow, for the same bits."""
    angle = -math.radians(degrees % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = images.shape[3] / 2, images.shape[2] / 2
    return _moved(images, (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y))


def _moved(images: Tensor, matrix: Matrix) -> Tensor:
    n, c, height, width = images.shape
    black_last = F.pad(images.flatten(2), (0, 1))
    sources = _sources(matrix, height, width, images.device)
    # gather of bytes takes 2.5 us per image (32x32x3, one thread), index_select 14, indexing with [] 36.
    return black_last.gather(2, sources.expand(n, c, -1)).view(images.shape)


@lru_cache(maxsize=64)  # 10 maps per size of image and magnitude, 8 bytes per pixel each
def _sources(matrix: Matrix, height: int, width: int, device: torch.device) -> Tensor:
    """The nearest source of each pixel, int64 ``[h w]``; ``h * w`` where it lies outside."""
    # As Pillow: 16 bits after the point, starting from the middle of the pixel.
    a, b, c, d, e, f = matrix
    right, down, start = (_fixed(v) for v in (a, b, c + a * 0.5 + b * 0.5))
    right_y, down_y, start_y = (_fixed(v) for v in (d, e, f + d * 0.5 + e * 0.5))
    y, x = torch.arange(height).view(-1, 1), torch.arange(width)
    column = (start + right * x + down * y) >> 16
    row = (start_y + right_y * x + down_y * y) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return torch.where(inside, row * width + column, height * width).flatten().to(device)


def _fixed(number: float) -> int:
    return math.floor(number * 65536.0 + 0.5)


# ---- tables: what each of the 256 values becomes -------------------------------------------------------------------


def _through(images: Tensor, tables: Tensor) -> Tensor:
    """Each pixel's entry in its table; ``tables`` of 256 values in 0..255 per image and channel, or shared."""
    n, c = images.shape[:2]
    values = images.flatten(2).long()
    return tables.byte().expand(n, c, 256).gather(2, values).view(images.shape)


def _ramp(images: Tensor) -> Tensor:
    return torch.arange(256, device=images.device)


def _brightness(images: Tensor, level: float) -> Tensor:
    ramp = _ramp(images).float()
    return _through(images, _blend(torch.zeros_like(ramp), ramp, level))


def _contrast(images: Tensor, level: float) -> Tensor:
    """Towards or away from the mean gray of the image, which Pillow rounds."""
    total, pixels = _gray(images).long().sum((2, 3)), images[0, 0].numel()
    mean = (2 * total + pixels) // (2 * pixels)
    return _through(images, _blend(mean.float().unsqueeze(2), _ramp(images).float(), level))


def _posterize(images: Tensor, bits: float) -> Tensor:
    return images & (256 - 2 ** (8 - int(bits)))


def _solarize(images: Tensor, threshold: float) -> Tensor:
    ramp = _ramp(images)
    return _through(images, torch.where(ramp < threshold, ramp, 255 - ramp))


def _autocontrast(images: Tensor, _: float) -> Tensor:
    """Each channel stretched to 0..255."""
    # Pillow computes in double precision, and its rounding errors decide some pixels. (MPS has none: there a value
    # can be off by one.)
    precise = torch.float32 if images.device.type == "mps" else torch.float64
    low, high = (bound.to(precise).unsqueeze(2) for bound in images.flatten(2).aminmax(dim=2))
    scale = torch.full_like(low, 255) / (high - low)  # 255.0 / tensor is a rounded reciprocal times 255
    ramp = _ramp(images).to(precise)
    return _through(images, torch.where(high > low, (ramp * scale + -low * scale).clamp(0, 255), ramp))


def _equalize(images: Tensor, _: float) -> Tensor:
    """Each channel's histogram made flat; what lies above its brightest value has no pixels."""
    values = images.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, torch.ones_like(values))
    brightest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    tables = (step // 2 + below) // step.clamp(min=1)
    return _through(images, torch.where(step > 0, tables.clamp(max=255), _ramp(images)))


# ---- blends with another picture of the same pixels ----------------------------------------------------------------


def _color(images: Tensor, level: float) -> Tensor:
    return _blend(_gray(images), images.float(), level).byte()


def _sharpness(images: Tensor, level: float) -> Tensor:
    return _blend(_smooth(images), images.float(), level).byte()


def _blend(degenerate: Tensor, images: Tensor, level: float) -> Tensor:
    """``degenerate`` at level -1, the images at 0, beyond them above; floats in 0..255, which ``byte`` cuts off."""
    # In single precision, product and sum rounded one after the other, as Pillow is compiled for x86.
    return (images - degenerate).mul_(1.0 + level).add_(degenerate).clamp_(0, 255)


def _gray(images: Tensor) -> Tensor:
    """Pillow's mode L: whole numbers in float32 ``[n 1 h w]``. Every sum here is below 2^24, so floats are exact."""
    if images.shape[1] == 1:
        return images.float()
    weights = torch.tensor(LUMA, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return images.float().mul_(weights).sum(1, keepdim=True).add_(32768).div_(65536).floor_()


def _smooth(images: Tensor) -> Tensor:
    """Mean of each pixel and its 8 neighbours, itself 5 times, rounded; the border stays. float32 ``[n c h w]``."""
    wide = images.short()
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[..., 1:-1, 1:-1]
    smooth = images.float()
    smooth[..., 1:-1, 1:-1] = sums.float().div_(13).add_(0.5).floor_()
    return smooth


# ---- the operations, in torchvision's order ------------------------------------------------------------------------

Levels = Callable[[int, int], Tensor]
"""``(height, width) ->`` the 31 levels of an operation, without sign."""


class Operation(NamedTuple):
    """``apply(images uint8 [n c h w], level)``; ``signed``: the level is as often negative."""

    apply: Callable[[Tensor, float], Tensor]
    levels: Levels
    signed: bool


def _up_to(end: float) -> Levels:
    return lambda height, width: torch.linspace(0.0, end, BINS)


def _none(height: int, width: int) -> Tensor:
    return torch.zeros(BINS)


OPERATIONS: dict[str, Operation] = {
    "Identity": Operation(lambda images, _: images, _none, False),
    "ShearX": Operation(_shear_x, _up_to(0.3), True),
    "ShearY": Operation(_shear_y, _up_to(0.3), True),
    "TranslateX": Operation(
        _translate_x, lambda height, width: torch.linspace(0.0, REACH * width, BINS), True
    ),
    "TranslateY": Operation(
        _translate_y, lambda height, width: torch.linspace(0.0, REACH * height, BINS), True
    ),
    "Rotate": Operation(_rotate, _up_to(30.0), True),
    "Brightness": Operation(_brightness, _up_to(0.9), True),
    "Color": Operation(_color, _up_to(0.9), True),
    "Contrast": Operation(_contrast, _up_to(0.9), True),
    "Sharpness": Operation(_sharpness, _up_to(0.9), True),
    "Posterize": Operation(_posterize, lambda height, width: 8 - (torch.arange(BINS) / 7.5).round(), False),
    "Solarize": Operation(_solarize, lambda height, width: torch.linspace(255.0, 0.0, BINS), False),
    "AutoContrast": Operation(_autocontrast, _none, False),
    "Equalize": Operation(_equalize, _none, False),
}
