"""How much do a network's predictions say about the labels when random subsets of one site are ablated?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from itertools import count
from typing import Literal, get_args

import torch
from torch import Tensor

from perturblab.hooked import Hooked
from perturblab.images import ImageSet
from perturblab.information import accuracy, contingency, miller_madow, mutual_information
from perturblab.measure import batches
from perturblab.probes.passes import Ablation
from perturblab.probes.predictions import MEMORY, ablated_predictions
from perturblab.runs import Row
from perturblab.signals import StopFlag
from perturblab.sites import At, SteppedModel, activation_of, evaluating

Fill = Literal["weight", "zero", "mean"]

CELLS = 2**20  # of contingency tables at a time, 8 MB


def information_left(
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
) -> Iterator[Row]:
    """One row per mask: ``subset`` (its number), ``keep_size``, ``mi_nats``, ``mi_mm_nats``, ``accuracy`` (fraction).

    Mutual information of labels and predicted classes over ``data``; ``mi_mm_nats`` is corrected as Miller and Madow
    do. The arguments are those of :func:`ablated_predictions`, and so is what it raises.
    """
    predicted = ablated_predictions(
        model,
        data,
        ablation,
        precision=precision,
        calibration=calibration,
        memory=memory,
        kept=kept,
        stop=stop,
        advance=advance,
    )
    sizes = iter(ablation.keep_masks.flatten(1).sum(1).tolist())
    number = count()
    for part in predicted.split(max(1, CELLS // len(data.classes) ** 2)):
        tables = contingency(data.labels.cpu(), part, len(data.classes))
        columns = mutual_information(tables), miller_madow(tables), accuracy(tables)
        for mi, corrected, hits in torch.stack(columns, 1).tolist():
            yield {
                "subset": next(number),
                "keep_size": next(sizes),
                "mi_nats": mi,
                "mi_mm_nats": corrected,
                "accuracy": hits,
            }


def fill_value(
    model: SteppedModel | Hooked, site: str, how: Fill, data: ImageSet | None = None
) -> Tensor | float:
    """What an ablated channel (or unit) becomes: a number, or a float32 tensor ``[width]``.

    ``weight``: what zeroing the weights that make it would leave (its bias, gone through BatchNorm and ReLU; in a
    foreign model the bias); ``zero``; ``mean``: its mean over ``data`` and positions (and uses, where a foreign module
    is used twice). Raises ValueError where the site has no such value.
    """
    if how not in get_args(Fill):
        raise ValueError(f"a removed channel becomes its weight, zero or mean value, not '{how}'")
    if how == "zero":
        return 0.0
    with evaluating(model if isinstance(model, SteppedModel) else model.model):
        return model.weight_fill(site) if how == "weight" else _mean(model, site, data)


def _mean(model: SteppedModel | Hooked, site: str, data: ImageSet | None) -> Tensor:
    if not data:
        raise ValueError("a mean needs images to be taken over")
    sums, n = [], 0

    def add(activation: Tensor) -> Tensor:
        nonlocal n
        by_channel = activation.transpose(0, 1).flatten(1)
        sums.append(by_channel.double().sum(1))
        n += by_channel.shape[1]
        return activation

    for images, _ in batches(data):
        if isinstance(model, Hooked):
            model(images, At(site, add))
        else:
            add(activation_of(model.run(images, stop=model.position(site))))
    return (torch.stack(sums).sum(0) / n).float()
