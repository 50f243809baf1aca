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
    again (:class:`Doubt`, which says how sure that is); how near is measured on ``calibration``, images other than
    ``data``.
    The images are worked through in blocks. ``kept`` maps the first image of a block to its predictions: blocks that
    are there are not computed again, others are put there as they are done. ``memory`` (bytes) bounds what is held
    at a time, whatever the number of masks (not for a foreign model). ``advance`` is told how many images are done.
    Raises ValueError for an unknown site, masks or a value that do not fit it, no mask or image, bf16 without
    calibration; Interrupted between two passes after a signal.
    """
    if not (len(data) and len(ablation.keep_masks)):
        raise ValueError("predictions need at least one image and one mask")
    if precision == "bf16" and not calibration:
        raise ValueError("bf16 needs calibration images, other than those that are evaluated")
    kept = {} if kept is None else kept
    passes: Passes = (
        HookedPasses(model, ablation) if isinstance(model, Hooked) else SharedPasses(model, ablation, memory)
    )
    doubt = None
    for first in range(0, len(data), BLOCK):
        if first not in kept:
            with evaluating(passes.module):
                if precision == "bf16" and calibration and doubt is None:
                    doubt = Doubt.measured(passes, calibration, stop)
                kept[first] = _block(passes, data[first : first + BLOCK], first, doubt, stop)
        advance(min(first + BLOCK, len(data)))
    return torch.cat([kept[first] for first in range(0, len(data), BLOCK)], dim=1)


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

    The class changes if and only if, for some class, the error of bf16 in the distance between the largest logit and
    its logit is greater than the distance. ``margin`` is the largest such error over all masks, classes and calibration
    images. That is no proof: of ``n`` calibration images and one more, alike, the one more has the largest error in one
    case of ``n + 1``, and errs if it is a near tie too. Therefore one in a hundred of the others is audited, and
    wherever float32 is computed again, a greater error raises the margin.
    ``again``, ``audited`` and ``missed`` (audits that found another class) count predictions.
    """

    def __init__(self, margin: float) -> None:
        self.margin = margin
        self.again = self.audited = self.missed = 0

    @classmethod
    def measured(cls, passes: Passes, calibration: ImageSet, stop: StopFlag | None = None) -> Doubt:
        margin = 0.0
        for images in calibration.images.split(passes.images):
            state = passes.before(calibration.normalise(images))
            # Both precisions cut their passes alike.
            for (_, _, half), (_, _, full) in zip(
                passes.logits(state, "bf16"), passes.logits(state, "fp32"), strict=True
            ):
                if stop is not None:
                    stop.check()
                margin = max(margin, _error(half, full))
        return cls(margin)

    def settled(
        self, passes: Passes, state: object, mask: int, image: int, logits: Tensor, purpose: tuple[int, int]
    ) -> Tensor:
        """The classes ``[k b]`` of float32 for bf16 ``logits`` ``[k b classes]`` of these masks and images."""
        top = logits.topk(2, dim=2)
        classes, distance = top.indices[..., 0], top.values[..., 0] - top.values[..., 1]
        audit = (
            torch.rand(distance.shape, generator=stream(0, "audit", *purpose)).to(distance.device) < AUDITED
        )
        audit &= distance > self.margin
        found, known = classes.clone(), torch.zeros_like(audit)
        while len(which := (~(distance > self.margin) | audit).logical_and(~known).nonzero()):  # NaN too
            masks, images = which.unbind(1)
            full = passes.pairs(state, masks + mask, images + image)
            found[masks, images], known[masks, images] = full.argmax(1), True
            self.margin = max(self.margin, _error(logits[masks, images], full))
        self.audited += int(audit.sum())
        self.again += int((known & ~audit).sum())
        self.missed += int((audit & (found != classes)).sum())
        return found


def _error(half: Tensor, full: Tensor) -> float:
    """The largest error of bf16 logits ``[... classes]`` in distances from their largest one."""
    top = half.argmax(-1, keepdim=True)
    error = (half - half.gather(-1, top)) - (full - full.gather(-1, top))
    return float(error.abs().nan_to_num(torch.inf).max())
