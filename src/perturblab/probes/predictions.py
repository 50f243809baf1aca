"""Predicted classes under many masks: in float32, or in bf16 with every doubtful one computed again in float32."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor

from perturblab.hooked import Hooked
from perturblab.images import ImageSet
from perturblab.probes.passes import Ablation, HookedPasses, Passes, SharedPasses
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel, evaluating
from perturblab.streams import stream

MEMORY = 2 * 2**30  # bytes
BLOCK = 500  # images whose predictions are kept together
AUDITED = 0.01  # share of the predictions without doubt that are computed again too


def ablated_predictions(
    model: SteppedModel | Hooked,
    data: ImageSet,
    ablation: Ablation,
    *,
    precision: str = "fp32",
    calibration: ImageSet | None = None,
    memory: int = MEMORY,
    kept: MutableMapping[int, Tensor] | None = None,
    stop: StopFlag | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """The predicted class of every image under every mask, int16 ``[m n]`` on the CPU, in evaluation mode.

    ``precision="bf16"`` gives the predictions of float32, faster where bf16 is: what is a near tie in bf16 is computed
    again (:class:`Doubt`); how near is measured on ``calibration``, images other than ``data``.
    The images are worked through in blocks. ``kept`` maps the first image of a block to its predictions: blocks that
    are there are not computed again, others are put there as they are done. ``memory`` (bytes) bounds what is held
    at a time, whatever the number of masks. ``advance`` is told how many images are done. Raises ValueError for an
    unknown site or masks of another width, Interrupted between two passes after a signal.
    """
    kept = {} if kept is None else kept
    passes: Passes = (
        HookedPasses(model, ablation) if isinstance(model, Hooked) else SharedPasses(model, ablation, memory)
    )
    doubt = None
    for first in range(0, len(data), BLOCK):
        if first not in kept:
            with evaluating(passes.module):
                if precision == "bf16" and doubt is None:
                    doubt = Doubt.measured(passes, _images(calibration))
                kept[first] = _block(passes, data[first : first + BLOCK], first, doubt, stop)
        advance(min(first + BLOCK, len(data)))
    return torch.cat([kept[first] for first in range(0, len(data), BLOCK)], dim=1)


def _images(calibration: ImageSet | None) -> Tensor:
    if calibration is None:
        raise ValueError("bf16 needs calibration images, other than those that are evaluated")
    return calibration.normalise(calibration.images)


def _block(passes: Passes, data: ImageSet, number: int, doubt: Doubt | None, stop: StopFlag | None) -> Tensor:
    """int16 ``[m b]``."""
    predicted = torch.empty(len(passes.masks), len(data), dtype=torch.int16, device=data.images.device)
    for first in range(0, len(data), passes.images):
        state = passes.before(data.normalise(data.images[first : first + passes.images]))
        for mask, image, logits in passes.logits(state, "fp32" if doubt is None else "bf16"):
            if stop is not None:
                stop.check()
            k, b = logits.shape[:2]
            if doubt is None:
                classes = logits.argmax(2)
            else:
                classes = doubt.settled(passes, state, mask, image, logits, (number + first + image, mask))
            predicted[mask : mask + k, first + image : first + image + b] = classes.to(torch.int16)
    return predicted.cpu()


class Doubt:
    """Which predictions of bf16 may not be those of float32: those whose two largest logits are nearer than ``margin``.

    ``margin`` is the largest error of bf16 in the distance between the largest logit and another one, over all masks
    and the calibration images. One in a hundred of the others is audited; where an audit finds another class, its whole
    pass is computed again in float32.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.again = self.audited = self.missed = 0

    @classmethod
    def measured(cls, passes: Passes, images: Tensor) -> Doubt:
        """From logits ``[k b classes]`` of both precisions."""
        largest = 0.0
        for part in images.split(passes.images):
            state = passes.before(part)
            for (_, _, half), (_, _, full) in zip(
                passes.logits(state, "bf16"), passes.logits(state, "fp32"), strict=True
            ):
                error = _distances(half, half.argmax(2)) - _distances(full, half.argmax(2))
                largest = max(largest, float(error.abs().max()))
        return cls(largest)

    def settled(
        self, passes: Passes, state: object, mask: int, image: int, logits: Tensor, purpose: tuple[int, int]
    ) -> Tensor:
        """The classes ``[k b]`` of float32 for bf16 ``logits`` ``[k b classes]`` of these masks and images."""
        top = logits.topk(2, dim=2)
        classes, near = top.indices[..., 0], top.values[..., 0] - top.values[..., 1] <= self.margin
        audit = torch.rand(near.shape, generator=stream(0, "audit", *purpose)).to(near.device) < AUDITED
        found = classes.clone()
        self._recompute(passes, state, mask, image, near | audit, found)
        missed = int((audit & ~near & (found != classes)).sum())
        self.again, self.audited = self.again + int(near.sum()), self.audited + int((audit & ~near).sum())
        if missed:
            self.missed += missed
            self._recompute(passes, state, mask, image, ~(near | audit), found)
        return found

    @staticmethod
    def _recompute(
        passes: Passes, state: object, mask: int, image: int, which: Tensor, classes: Tensor
    ) -> None:
        masks, images = which.nonzero(as_tuple=True)
        if len(masks):
            classes[which] = passes.pairs(state, masks + mask, images + image).argmax(1)


def _distances(logits: Tensor, of: Tensor) -> Tensor:
    return logits.gather(2, of[..., None]) - logits
