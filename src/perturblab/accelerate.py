"""A 3x3 convolution that is faster on a CPU: the same numbers as ``nn.Conv2d`` up to rounding, the same parameters.

- Maps are kept channels-last, which the library (oneDNN) reads without reordering.
- Small maps are not multiplied by their zero padding. With a map stored position by position, ``[h*w b c]``, the
  inputs that one of the 9 taps of a kernel finds inside the map are a few contiguous blocks, and each block is one
  matrix product that adds to its outputs: 100 of 144 products per pair of channels on a 4x4 map, 16 of 36 on a 2x2
  map, and no im2col. The weight gradient, the library's slowest pass, is computed so on maps up to 8x8.
- In bf16 maps up to 4x4 are one im2col product, since a sum over taps would be rounded nine times. (With AMX an
  earlier prototype reached 1,208 GFLOP/s so on 4x4 maps, the library 847. Not measured again: no AMX here.)

GFLOP/s of the library (channels-last) and of the taps, float32, batch 128, one core of an AMD EPYC (AVX2, 95 GFLOP/s
in square matrix products), padding counted as if it were multiplied. benchmarks/README.md has whole steps.

    maps, channels    forward       input gradient    weight gradient
    2x2, 512          60, 185       63, 176           27, 176
    4x4, 512          86, 129       85, 126           45, 122
    8x8, 256         107,  97      107,  97           64,  95
    16x16, 128        96,  80       95,  80           65,  72
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad

SMALL = 4  # side of the largest map on which all three products are computed here
SMALL_WEIGHT_GRADIENT = 8  # and on which the weight gradient is
WORTHWHILE = (
    2**20
)  # multiplications per tap and position: below, a block takes less time than its call (5 us)
CENTRE = 4  # of the 9 taps, in row-major order


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(i, o, 3, padding=1)``: float ``[b i h w]`` to ``[b o h w]``. On small maps differentiable once."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, maps: Tensor) -> Tensor:
        device = maps.device.type
        if device not in ("cpu", "cuda") or torch.compiler.is_compiling():  # which lays out by itself
            return super().forward(maps)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else maps.dtype
        if device == "cpu" or dtype.itemsize == 2:  # a GPU's half-precision matrix units are channels-last
            maps = maps.contiguous(memory_format=torch.channels_last)
        if device == "cpu" and self.in_channels == 1:
            maps = _only_channels_last(maps)
        if device == "cpu" and self._is_small(maps, dtype):
            out: Tensor = _SmallMaps.apply(maps.to(dtype), self.weight.to(dtype))
            return out if self.bias is None else out + self.bias.to(dtype).view(-1, 1, 1)
        return super().forward(maps)

    def _is_small(self, maps: Tensor, dtype: torch.dtype) -> bool:
        side = SMALL if dtype.itemsize == 2 else SMALL_WEIGHT_GRADIENT
        return max(maps.shape[2:]) <= side and len(maps) * self.in_channels * self.out_channels >= WORTHWHILE


def _only_channels_last(maps: Tensor) -> Tensor:
    """Contiguous ``[b 1 h w]`` with the strides of channels-last alone.

    One channel has both formats at once, and the library then answers channels-first. That is 0.1 ms faster (``[64 1
    28 28]`` to 16 channels), but the max-pool behind it then takes 2.2 ms instead of 0.3, one core of an AMD EPYC.
    """
    b, _, h, w = maps.shape
    return maps.view(b, h, w, 1).permute(0, 3, 1, 2)


class _SmallMaps(torch.autograd.Function):
    """The convolution of channels-last maps ``[b i h w]`` with ``weight`` ``[o i 3 3]``."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return _convolved(maps, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_maps, of_weight = ctx.needs_input_grad
        return (
            _convolved(gradient, weight, turned=True) if of_maps else None,
            _weight_gradient(maps, gradient) if of_weight else None,
        )


def _convolved(maps: Tensor, weight: Tensor, turned: bool = False) -> Tensor:
    """The convolution, or with the kernel ``turned`` round and its channels exchanged: the input gradient's."""
    b, _, h, w = maps.shape
    if max(h, w) > SMALL:
        return conv2d(maps, weight.flip(2, 3).transpose(0, 1) if turned else weight, padding=1)
    taps = weight.permute(2, 3, 0, 1).flatten(0, 1).contiguous()
    taps = taps.flip(0) if turned else taps.transpose(1, 2)  # [9 in out]
    if maps.dtype.itemsize == 2:
        return (_columns(maps) @ taps.flatten(0, 1)).view(b, h, w, -1).permute(0, 3, 1, 2)
    inputs = _by_position(maps)
    out = inputs @ taps[CENTRE]
    for tap, to, of in _blocks(h, w):
        if tap != CENTRE:
            out[to].flatten(0, 1).addmm_(inputs[of].flatten(0, 1), taps[tap])
    return out.view(h, w, b, -1).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _weight_gradient(maps: Tensor, gradient: Tensor) -> Tensor:
    i, o = maps.shape[1], gradient.shape[1]
    if maps.dtype.itemsize == 2:
        columns = gradient.permute(0, 2, 3, 1).flatten(0, 2).t() @ _columns(maps)
        return columns.view(o, 3, 3, i).permute(0, 3, 1, 2)
    taps = maps.new_zeros(9, o, i)
    inputs, outputs = _by_position(maps), _by_position(gradient)
    for tap, to, of in _blocks(*maps.shape[2:]):
        taps[tap].addmm_(outputs[to].flatten(0, 1).t(), inputs[of].flatten(0, 1))
    return taps.view(3, 3, o, i).permute(2, 3, 0, 1)


def _by_position(maps: Tensor) -> Tensor:
    """``[b c h w]`` to ``[h*w b c]``, contiguous."""
    return maps.permute(2, 3, 0, 1).flatten(0, 1).contiguous()


@cache
def _blocks(height: int, width: int) -> list[tuple[int, slice, slice]]:
    """(tap, outputs, inputs): positions, row by row, at which the tap's inputs lie inside the map."""
    blocks = []
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        rows = range(max(0, -down), height - max(0, down))
        first, last = max(0, -right), width - max(0, right)
        if right == 0 and rows:
            runs = [(rows[0] * width, (rows[-1] + 1) * width)]  # whole rows follow one another
        else:
            runs = [(row * width + first, row * width + last) for row in rows if first < last]
        offset = down * width + right
        blocks += [(tap, slice(a, b), slice(a + offset, b + offset)) for a, b in runs]
    return blocks


def _columns(maps: Tensor) -> Tensor:
    """im2col: channels-last ``[b i h w]`` to ``[b*h*w 9*i]``."""
    padded = pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # [b h w i 3 3]
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
