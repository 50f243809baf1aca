"""Logits under many masks of one site: the network up to the site runs once, not once per mask.

What makes it fast is exact up to rounding: all masks share the part before the site; a max-pool that follows comes
before the masks; the next convolution is one product for all masks (``partial.py``); the rest runs for masks and
images together. benchmarks/README.md says what each gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from perturblab.hardware import autocast
from perturblab.hooked import Hooked
from perturblab.probes.partial import PartialProducts, begins_with_convolution
from perturblab.sites import At, SteppedModel, activation_of, rows_of, with_activation

PASS = 2**23  # activations of the widest layer in one pass: 32 MB of float32, 128 rows of a VGG16
PASS_OF_A_GPU = 2**27  # which wants thousands of rows at a time; --memory bounds it further
FEW = 8  # masks for which partial products do not pay
IMAGES = 500  # at once, before the site


@dataclass(frozen=True)
class Ablation:
    """``keep_masks`` (True = kept) of the activation at ``site``; what they do not keep becomes ``value``.

    ``keep_masks`` bool ``[m width]`` for channels and units, ``[m c h w]`` for elements; ``value`` a number, ``[width]``
    or, for elements, ``[c h w]`` too.
    """

    site: str
    keep_masks: Tensor
    value: Tensor | float = 0.0

    def under(self, masks: Tensor, activation: Tensor) -> Tensor:
        """``activation`` ``[... c h w]`` under ``masks`` ``[... c]`` or ``[... c h w]``, leading dimensions broadcast."""
        missing, value = activation.dim() - masks.dim(), self.value
        if isinstance(value, Tensor):
            places = missing + self.keep_masks.dim() - 1 - value.dim()
            value = value.to(activation)[(..., *[None] * places)]
        return torch.where(masks[(..., *[None] * missing)], activation, value)

    def each(self, masks: Tensor, activation: Tensor) -> Tensor:
        """``[b ...]`` under each of the masks: ``[m*b ...]``, mask-major."""
        return self.under(masks[:, None], activation[None]).flatten(0, 1)

    def check(self, shape: tuple[int, ...]) -> None:
        """ValueError where masks or value are not made for an activation of this shape."""
        masks, value = self.keep_masks, self.value
        if masks.dtype != torch.bool or masks.shape[1:] not in (shape, shape[:1]):
            raise ValueError(
                f"masks of site '{self.site}' must be bool [m {shape[0]}] or [m {' '.join(map(str, shape))}], "
                f"not {masks.dtype} {list(masks.shape)}"
            )
        if isinstance(value, Tensor) and value.shape not in ((), shape[:1], masks.shape[1:]):
            raise ValueError(
                f"the value of site '{self.site}' must be a number or one for each of {shape[0]}, "
                f"not {list(value.shape)}"
            )


class Passes(Protocol):
    """A network whose ``ablation`` can be computed for a batch; evaluation mode is the caller's."""

    masks: Tensor
    images: int  # to be handed in at a time

    @property
    def module(self) -> nn.Module: ...

    def before(self, images: Tensor) -> Any:
        """The state from which all masks go on, for normalised images ``[b c h w]``."""
        ...

    def logits(self, state: Any, precision: str) -> Iterator[tuple[int, int, Tensor]]:
        """(first mask, first image, logits ``[k b classes]``) until all masks and images of ``state`` are through."""
        ...

    def pairs(self, state: Any, masks: Tensor, images: Tensor) -> Tensor:
        """float32 logits ``[r classes]`` of mask number ``masks[i]`` and image ``images[i]``."""
        ...


class SharedPasses:
    """For a :class:`SteppedModel`. ``memory`` (bytes) bounds what passes hold; the parameters come on top."""

    def __init__(self, model: SteppedModel, ablation: Ablation, memory: int) -> None:
        self.module: SteppedModel = model
        self.ablation, self._memory = ablation, memory
        sites = model.sites()
        site = model.site(ablation.site)
        ablation.check(site.shape)
        self.masks = ablation.keep_masks.to(next(model.parameters()).device)
        sizes = [math.prod(s.shape) for s in sites]
        self.images = max(1, min(IMAGES, memory // (16 * max(sizes))))  # 4 bytes, and room for 4 such maps
        largest = PASS if self.masks.device.type == "cpu" else PASS_OF_A_GPU
        self._rows = max(1, min(largest, memory // 16) // max(sizes[sites.index(site) :]))
        self._steps = [step for _, step in model.steps()]
        self._start = model.position(ablation.site)
        while self._by_channel and isinstance(self._steps[self._start], nn.MaxPool2d):
            self._start += 1  # a constant channel stays that constant, so pooling can come first, and once

    @property
    def _by_channel(self) -> bool:
        return self.masks.dim() == 2

    def before(self, images: Tensor) -> Any:
        return self.module.run(images, stop=self._start)

    def logits(self, state: Any, precision: str) -> Iterator[tuple[int, int, Tensor]]:
        masks_at_once = min(len(self.masks), self._rows)
        partial = self._partial(activation_of(state), precision)
        images_at_once = max(1, self._rows // masks_at_once)
        if partial is not None:
            images_at_once = min(images_at_once, self._memory // 4 // partial.bytes_per_image)
        start = self._start + (partial is not None)
        for image in range(0, len(activation_of(state)), images_at_once):
            part = rows_of(state, slice(image, image + images_at_once))
            under = self._each(part) if partial is None else partial.each(activation_of(part))
            for mask in range(0, len(self.masks), masks_at_once):
                masks = self.masks[mask : mask + masks_at_once]
                with autocast(precision, masks.device):
                    logits = self.module.run(with_activation(part, under(masks)), start=start)
                yield mask, image, _full(logits).view(len(masks), -1, logits.shape[-1])

    def pairs(self, state: Any, masks: Tensor, images: Tensor) -> Tensor:
        logits = []
        for mask, image in zip(masks.split(self._rows), images.split(self._rows), strict=True):
            rows = rows_of(state, image)
            ablated = self.ablation.under(self.masks[mask], activation_of(rows))
            logits.append(self.module.run(with_activation(rows, ablated), start=self._start))
        return torch.cat(logits)

    def _each(self, state: Any) -> Callable[[Tensor], Tensor]:
        return lambda masks: self.ablation.each(masks, activation_of(state))

    def _partial(self, activation: Tensor, precision: str) -> PartialProducts | None:
        following = self._steps[self._start]
        if not (self._by_channel and len(self.masks) >= FEW and begins_with_convolution(following)):
            return None
        dtype = torch.bfloat16 if precision == "bf16" else activation.dtype
        partial = PartialProducts(following, self.ablation.value, activation.shape[1:], dtype)
        return partial if partial.bytes_per_image <= self._memory // 4 else None


class HookedPasses:
    """For a foreign model: one whole pass per mask, exact and not fast. The state is the images themselves."""

    images = IMAGES

    def __init__(self, model: Hooked, ablation: Ablation) -> None:
        self.module, self._hooked, self._ablation = model.model, model, ablation
        self.masks = ablation.keep_masks.to(next(model.model.parameters()).device)

    def before(self, images: Tensor) -> Tensor:
        return images

    def logits(self, state: Tensor, precision: str) -> Iterator[tuple[int, int, Tensor]]:
        for number in range(len(self.masks)):
            with autocast(precision, state.device):
                logits = self._hooked(state, self._tap(self.masks[number : number + 1]))
            yield number, 0, _full(logits)[None]

    def pairs(self, state: Tensor, masks: Tensor, images: Tensor) -> Tensor:
        return self._hooked(state[images], self._tap(self.masks[masks]))

    def _tap(self, masks: Tensor) -> At:
        """For as many masks as images, or one."""

        def change(activation: Tensor) -> Tensor:
            self._ablation.check(
                tuple(activation.shape[1:])
            )  # only the activation tells a foreign site's shape
            return self._ablation.under(masks, activation)

        return At(self._ablation.site, change)


def _full(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype == torch.bfloat16 else logits
