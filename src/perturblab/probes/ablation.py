"""What is left of a network's predictions when random subsets of one site's activation are ablated?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from perturblab.images import ImageSet
from perturblab.information import contingency, miller_madow, mutual_information
from perturblab.measure import batches
from perturblab.runs import Row
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel, activation_of, evaluating, fill

Fill = Literal["weight", "zero", "mean"]
Keep = Callable[[int, Tensor], None]
"""``keep(first, predicted)``: predicted classes int16 ``[k n]`` of masks ``first`` to ``first + k``."""


def information_left(
    model: SteppedModel,
    data: ImageSet,
    site: str,
    keep_masks: Tensor,
    *,
    value: Tensor | float = 0.0,
    precision: str = "fp32",
    memory: int = 2 * 2**30,
    start: int = 0,
    keep: Keep = lambda first, predicted: None,
    stop: StopFlag | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Iterator[Row]:
    """One row per mask from number ``start`` on: ``subset`` (number), ``keep_size``, ``mi_nats``, ``mi_mm_nats``,
    ``accuracy`` (fraction).

    ``keep_masks`` bool ``[m width]`` or, for elements, ``[m c h w]``; what they do not keep becomes ``value``
    (:func:`fill_value`). Mutual information of labels and predicted classes over ``data``, in evaluation mode;
    ``mi_mm_nats`` is corrected as Miller and Madow do. ``keep`` is handed the predictions before their rows are
    yielded. ``memory`` in bytes bounds what is held at a time; ``advance`` is told how many images passed, times masks.
    Raises ValueError for an unknown site or masks of another width, Interrupted (between batches) after a signal.
    """
    classes = len(data.classes)
    sizes = keep_masks.flatten(1).sum(1).tolist()
    for first, predicted in ablated_predictions(
        model, data, site, keep_masks[start:], value, precision, memory, stop, advance
    ):
        keep(start + first, predicted)
        tables = contingency(data.labels, predicted, classes)
        numbers = zip(mutual_information(tables).tolist(), miller_madow(tables).tolist(), strict=True)
        for number, (mi, corrected) in enumerate(numbers, start + first):
            hits = tables[number - start - first].diagonal().sum()
            yield {"subset": number, "keep_size": sizes[number], "mi_nats": mi, "mi_mm_nats": corrected,
                   "accuracy": int(hits) / len(data)}  # fmt: skip


def fill_value(model: SteppedModel, site: str, how: Fill, data: ImageSet | None = None) -> Tensor | float:
    """What an ablated channel (or unit) becomes: a number, or a float32 tensor ``[width]``.

    ``weight``: what zeroing the weights that make it would leave (its bias, gone through BatchNorm and ReLU);
    ``zero``; ``mean``: its mean over ``data`` and positions. Raises ValueError where the site has no such value.
    """
    if how == "zero":
        return 0.0
    with evaluating(model):
        if how == "weight":
            return model.weight_fill(site)
        if data is None:
            raise ValueError("the mean needs images to be taken over")
        here, total = model.position(site), torch.zeros(())
        for images, _ in batches(data):
            activation = activation_of(model.run(images, stop=here))
            total = total.to(activation.device) + activation.transpose(0, 1).flatten(1).double().sum(1)
        positions = activation[0, 0].numel()
        return (total / (len(data) * positions)).float()


def ablated_predictions(
    model: SteppedModel,
    data: ImageSet,
    site: str,
    keep_masks: Tensor,
    value: Tensor | float,
    precision: str = "fp32",
    memory: int = 2 * 2**30,
    stop: StopFlag | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Iterator[tuple[int, Tensor]]:
    """(number of the first mask, predicted classes int16 ``[k n]``), group by group of masks."""
    model.position(site)
    for number, mask in enumerate(keep_masks.to(data.images.device)):
        parts = []
        with evaluating(model):
            for images, _ in batches(data):
                if stop is not None:
                    stop.check()
                parts.append(model(images, fill(site, mask, value)).argmax(1).to(torch.int16))
                advance(len(images))
        yield number, torch.cat(parts)[None]
