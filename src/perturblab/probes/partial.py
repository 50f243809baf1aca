"""The convolution after the ablated site, for many masks at once.

A convolution is linear in its input, so under a mask it is a sum over the kept channels of what each channel gives
alone. These partial products are computed once per image; all masks are then one matrix product with them:

    W * (v + m (x - v)) = W * v + sum_c m_c (W_c * (x_c - v_c))

with m the mask, v what ablated channels become. The sum has a ninth of the multiplications of a 3x3 convolution; the
partial products cost as many as one convolution, however many masks there are. BatchNorm is folded into W.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perturblab.sites import Layers


def begins_with_convolution(step: Any) -> TypeGuard[Layers]:
    """Whether a step begins with an ordinary convolution: one group, no dilation, zero padding."""
    first = step.layers[0] if isinstance(step, Layers) else None
    return (
        isinstance(first, nn.Conv2d)
        and first.groups == 1
        and first.dilation == (1, 1)
        and first.padding_mode == "zeros"
        and not isinstance(first.padding, str)
    )


class PartialProducts:
    """``step`` (a convolution, then others; evaluation mode) of maps ``[b c h w]`` under masks of their channels.

    ``value`` is what removed channels become, a number or ``[c]``; ``shape`` is ``(c, h, w)``; ``dtype`` that of the
    products.
    """

    def __init__(
        self, step: Layers, value: Tensor | float, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        convolution, *rest = step.layers
        assert isinstance(convolution, nn.Conv2d)
        weight, bias, self._rest = _folded(convolution, rest)
        self._convolution, self._dtype = convolution, dtype
        channels, out = weight.shape[1], weight.shape[0]
        self._value = torch.as_tensor(value, dtype=weight.dtype, device=weight.device).expand(channels)[
            :, None, None
        ]
        self._taps = weight.permute(1, 2, 3, 0).reshape(channels, -1, out).to(dtype)  # [c k*k o]
        filled = self._value.expand(shape)[None]  # at the border it is not what the padding is
        constant = F.conv2d(filled, weight, bias, convolution.stride, convolution.padding)[0]
        self._shape = tuple(constant.shape)
        self._constant = constant.permute(1, 2, 0).flatten().to(dtype)  # [ho*wo*o]

    @property
    def bytes_per_image(self) -> int:
        """Of the products in float32: passes are cut alike in every precision."""
        return (len(self._taps) + 1) * len(self._constant) * 4

    def each(self, maps: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of masks bool ``[m c]`` that gives the step's output ``[m*b o ho wo]``, mask-major, channels-last."""
        products = self._products(maps)
        out, height, width = self._shape

        def under(masks: Tensor) -> Tensor:
            weights = F.pad(masks, (0, 1), value=True).to(self._dtype)
            outputs: Tensor = (weights @ products).view(-1, height, width, out).permute(0, 3, 1, 2)
            for layer in self._rest:
                outputs = layer(outputs)
            return outputs

        return under

    def _products(self, maps: Tensor) -> Tensor:
        """What each channel gives alone, and last the constant: ``[c+1, b*ho*wo*o]``."""
        columns = self._columns(maps - self._value)
        channels, places, _ = columns.shape
        products = columns.new_empty(channels + 1, places, self._shape[0])
        torch.bmm(columns, self._taps, out=products[:channels])
        products[channels].view(len(maps), -1).copy_(self._constant)
        return products.flatten(1)

    def _columns(self, maps: Tensor) -> Tensor:
        """What the kernel sees of each channel at each place: ``[c, b*ho*wo, k*k]``."""
        (kh, kw), (sh, sw) = self._convolution.kernel_size, self._convolution.stride
        ph, pw = (int(p) for p in self._convolution.padding)
        padded = F.pad(maps.transpose(0, 1).to(self._dtype), (pw, pw, ph, ph))
        windows = padded.unfold(2, kh, sh).unfold(3, kw, sw)
        return windows.reshape(len(padded), -1, kh * kw)


def _folded(convolution: nn.Conv2d, rest: list[nn.Module]) -> tuple[Tensor, Tensor, list[nn.Module]]:
    """Weight and bias with the BatchNorm that follows folded in, and the layers after it."""
    weight = convolution.weight.detach()
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach()
    norm = rest[0] if rest else None
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return weight, bias, rest
    scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight.detach())
    shift = 0 if norm.bias is None else norm.bias.detach()
    return weight * scale.view(-1, 1, 1, 1), (bias - norm.running_mean) * scale + shift, rest[1:]
