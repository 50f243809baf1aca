"""Mutual information of labels and predictions, intact and with random elements of the first layer removed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from perturblab.images import ImageSet
from perturblab.information import (
    accuracy,
    bootstrap_interval,
    contingency,
    label_entropy,
    miller_madow,
    mutual_information,
    permutation_null,
)
from perturblab.masks import documented_subsets
from perturblab.probes.passes import Ablation
from perturblab.probes.predictions import ablated_predictions
from perturblab.runs import Row
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel
from perturblab.streams import stream
from perturblab.studies.first_layer_mi import Train

Stage = Literal["train", "final"]

SITE = "conv1"
# The mean of 100 permutations is known to 1 %: the values of one table vary by a tenth of themselves, or less.
PERMUTATIONS = 100
RESAMPLES = 1000
CALIBRATION = 100  # images


def stages(s: Train, epoch: int) -> list[Stage]:
    """What is measured after ``epoch``: the last one has both its regular measurement and the final one."""
    last = epoch == s.epochs
    due = epoch == 1 or epoch % s.eval_interval == 0 or last
    return [*(["train"] if due else []), *(["final"] if last else [])]  # type: ignore[list-item]


def n_images(s: Train, stage: Stage, available: int) -> int:
    """Images of a measurement: the first batches of the set, or all where ``max_eval_batches`` is 0."""
    batches = s.max_eval_batches_train if stage == "train" else s.max_eval_batches_final
    return min(available, batches * s.batch_size) if batches else available


@dataclass(frozen=True)
class Predicted:
    """What was predicted under subsets of the first layer's elements, on the CPU.

    ``keep_masks`` bool ``[m c h w]``, ``classes`` int16 ``[m n]``, those of the intact network ``full`` int16 ``[n]``;
    the ``images`` are those that were measured.
    """

    keep_masks: Tensor
    full: Tensor
    classes: Tensor
    images: ImageSet

    def arrays(self) -> dict[str, Any]:
        """All that the numbers are made of; ``keep_masks`` packed along the flat elements, its ``shape`` beside."""
        flat = self.keep_masks.flatten(1)
        return {
            "keep_masks": np.packbits(flat.numpy(), axis=1),
            "shape": np.array(self.keep_masks.shape[1:]),
            "keep_sizes": flat.sum(1).numpy(),
            "predictions": self.classes.numpy(),
            "full_predictions": self.full.numpy(),
            "labels": self.images.labels.cpu().numpy().astype(np.int16),
        }


def predict(
    s: Train,
    model: SteppedModel,
    images: ImageSet,
    others: ImageSet,
    stage: Stage,
    epoch: int,
    stop: StopFlag,
) -> Predicted:
    """The predictions of a measurement; ``others`` are images beside its own, for ``ablated_predictions``."""
    data = images[: n_images(s, stage, len(images))]
    masks = masks_of(s, model, stage, purpose_of(stage, epoch))
    # The intact network is a mask that keeps all: in bf16 too, all predictions are then found in one way.
    everything = Ablation(SITE, torch.cat([torch.ones_like(masks[:1]), masks]))
    predicted = ablated_predictions(
        model, data, everything, precision=s.precision, calibration=others[:CALIBRATION], stop=stop
    )
    return Predicted(masks, predicted[0], predicted[1:], data)


def information(s: Train, predicted: Predicted, stage: Stage, epoch: int) -> Iterator[Row]:
    """A row of the intact network, then one of each subset of the first layer's elements; information in nats.

    Rows have ``mi_nats`` (plug-in), ``mi_mm_nats`` (Miller-Madow) and ``mi_null_nats`` (mean plug-in value of the same
    predictions with the labels permuted); the intact one ``mi_low_nats`` to ``mi_high_nats``, a 95 % bootstrap
    interval over the images. Subsets and permutations have streams of their own: what is measured, and when, changes
    no training.
    """
    data, masks = predicted.images, predicted.keep_masks
    classes, purpose = len(data.classes), purpose_of(stage, epoch)
    tables = contingency(data.labels.cpu(), torch.cat([predicted.full[None], predicted.classes]), classes)
    low, high = bootstrap_interval(tables[0], RESAMPLES, stream(s.seed, "mi-bootstrap", purpose))
    columns = {
        "mi_nats": mutual_information(tables),
        "mi_mm_nats": miller_madow(tables),
        "mi_null_nats": permutation_null(tables, PERMUTATIONS, stream(s.seed, "mi-null", purpose)).mean(0),
        "accuracy": accuracy(tables),
    }
    intact, *of_masks = (
        dict(zip(columns, row, strict=True)) for row in torch.stack([*columns.values()], 1).tolist()
    )
    at = {"epoch": epoch, "stage": stage}
    yield {
        "kind": "intact", **at, **intact, "mi_low_nats": float(low), "mi_high_nats": float(high),
        "label_entropy_nats": float(label_entropy(tables[0])),
        "n_images": len(data), "classes": classes, "elements": masks[0].numel(),
    }  # fmt: skip
    for number, (size, row) in enumerate(zip(masks.flatten(1).sum(1).tolist(), of_masks, strict=True)):
        yield {"kind": "mask", **at, "subset": number, "keep_size": size, **row}


def masks_of(s: Train, model: SteppedModel, stage: Stage, purpose: int | str) -> Tensor:
    """The subsets of a measurement, bool ``[m c h w]``; ``purpose`` is its epoch or "final"."""
    shape = model.site(SITE).shape
    n = s.n_masks_train if stage == "train" else s.n_masks_final
    return documented_subsets(n, math.prod(shape), stream(s.seed, "mi-masks", purpose)).view(n, *shape)


def purpose_of(stage: Stage, epoch: int) -> int | str:
    """What names the random streams of a measurement."""
    return epoch if stage == "train" else "final"
