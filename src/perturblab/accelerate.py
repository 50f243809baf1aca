"""The same model, faster: ``accelerate(model)`` for training, ``accelerate(model, training=False)`` for measuring.

The answer is a ``SteppedModel`` over the same parameters and buffers, with the same sites at the same positions, so
taps, ``run(start, stop)`` and objectives work as before; its results are equal up to float32 rounding. What differs
is how a CPU computes a 3x3 convolution of stride 1 and zero padding 1:

- Maps are kept channels-last, which oneDNN reads without reordering.
- Small maps are not multiplied by their zero padding. With a map stored position by position, ``[h*w b c]``, the
  inputs that one of the 9 taps of a kernel finds inside the map are a few contiguous blocks, and each block is one
  matrix product that adds to its outputs: 100 of 144 products per channel pair on a 4x4 map, 16 of 36 on a 2x2 map,
  and no im2col. The weight gradient, the library's slowest pass, is computed so on maps up to 8x8.
- In bf16 maps up to 4x4 are one im2col product, since a sum over taps would be rounded nine times. (With AMX an
  earlier prototype reached 1,208 GFLOP/s so on 4x4 maps, the library 847. Not measured again: no AMX here.)

GFLOP/s of the library (channels-last) -> of the taps, float32, batch 128, one core of an AMD EPYC (AVX2, 95 GFLOP/s in
square matrix products); padding counted as if it were multiplied. benchmarks/README.md has whole steps.

    maps, channels    forward        input gradient    weight gradient
    2x2, 512          60 -> 185       63 -> 176         27 -> 176
    4x4, 512          86 -> 129       85 -> 126         45 -> 122
    8x8, 256         107 (97)        107 (97)           64 -> 95
    16x16, 128        96 (80)         95 (80)           65 (72)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, pad

from perturblab.sites import Chain, Step, SteppedModel

SMALL = 4  # side of the largest map on which all three products are computed here
SMALL_WEIGHT_GRADIENT = 8  # and on which the weight gradient is
WORTHWHILE = (
    2**20
)  # multiplications per tap and position: below, a block takes less time than its call (5 us)
CENTRE = 4  # of the 9 taps, in row-major order


def accelerate(model: SteppedModel, training: bool = True) -> SteppedModel:
    """``model`` with its convolutions computed as above; ``training=False`` also folds BatchNorm into them.

    A folded model keeps the weights of the moment at which it was made, and is right in evaluation mode only.
    """
    return _Accelerated(model, fold=not training)


class _Accelerated(SteppedModel):
    def __init__(self, model: SteppedModel, fold: bool) -> None:
        super().__init__()
        self.model = model
        self._folded = _faster(model, fold=True) if fold else None

    def steps(self) -> list[Step]:
        # Made anew for training: kept ones would still point at the original's parameters in a deep copy.
        return _faster(self.model, fold=False) if self._folded is None else self._folded


def _faster(model: SteppedModel, fold: bool) -> list[Step]:
    return [(site, _swapped(step, fold)) for site, step in model.steps()]


def _swapped(step: Callable[[Any], Any], fold: bool) -> Callable[[Any], Any]:
    """The step with its 3x3 convolutions replaced, where it can be read layer by layer."""
    if not isinstance(step, Chain | nn.Sequential):
        return step
    layers: list[Callable[[Any], Any]] = []
    for layer in step:
        before = layers[-1] if layers else None
        if isinstance(layer, nn.Conv2d) and _is_plain_3x3(layer):
            layers.append(_Conv3x3(layer.weight, layer.bias))
        elif (
            fold
            and isinstance(before, _Conv3x3)
            and isinstance(layer, nn.BatchNorm2d)
            and layer.track_running_stats
        ):
            layers[-1] = before.followed_by(layer)
        else:
            layers.append(layer)
    return Chain(*layers)


def _is_plain_3x3(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")


class _Conv3x3:
    """A convolution by its ``weight`` ``[o i 3 3]`` and ``bias`` ``[o]``: ``[b i h w]`` to ``[b o h w]``."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, maps: Tensor) -> Tensor:
        return conv3x3(maps, self.weight, self.bias)

    def followed_by(self, norm: nn.BatchNorm2d) -> _Conv3x3:
        """This convolution and ``norm`` in evaluation mode as one convolution, without gradients."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        with torch.no_grad():
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            before = 0 if self.bias is None else self.bias
            return _Conv3x3(
                self.weight * scale.view(-1, 1, 1, 1), norm.bias + (before - norm.running_mean) * scale
            )


# ---- the convolution -------------------------------------------------------------------------------------------


def conv3x3(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``conv2d(maps, weight, bias, padding=1)``, channels-last on a CPU; differentiable once."""
    if maps.device.type != "cpu" or torch.compiler.is_compiling():
        return conv2d(maps, weight, bias, padding=1)
    maps = maps.contiguous(memory_format=torch.channels_last)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else maps.dtype
    largest = SMALL if dtype == torch.bfloat16 else SMALL_WEIGHT_GRADIENT
    if max(maps.shape[2:]) > largest or len(maps) * weight.shape[0] * weight.shape[1] < WORTHWHILE:
        return conv2d(maps, weight, bias, padding=1)
    out: Tensor = _SmallMaps.apply(maps.to(dtype), weight.to(dtype))
    return out if bias is None else out + bias.to(dtype).view(-1, 1, 1)


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
    if maps.dtype == torch.bfloat16:
        return (_columns(maps) @ taps.flatten(0, 1)).view(b, h, w, -1).permute(0, 3, 1, 2)
    inputs = _by_position(maps)
    out = inputs @ taps[CENTRE]
    for tap, to, of in _blocks(h, w):
        if tap != CENTRE:
            out[to].flatten(0, 1).addmm_(inputs[of].flatten(0, 1), taps[tap])
    return out.view(h, w, b, -1).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)


def _weight_gradient(maps: Tensor, gradient: Tensor) -> Tensor:
    i, o = maps.shape[1], gradient.shape[1]
    if maps.dtype == torch.bfloat16:
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
