"""Predictions, accuracy and loss of a model on a set of images, under a tap if one is given.

Measuring leaves no trace: weights, buffers, modes and random states are afterwards what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from perturblab.hardware import autocast
from perturblab.images import ImageSet
from perturblab.sites import SteppedModel, Tap, evaluating

BATCH = 500  # images per forward pass: 100 to 1,000 are equally fast on two cores, larger ones cost memory


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats, accuracy as a fraction, over ``n`` images."""

    loss: float
    accuracy: float
    n: int


def batches(data: ImageSet, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised float32 images, labels) in order."""
    for images, labels in zip(data.images.split(size), data.labels.split(size), strict=True):
        yield data.normalise(images), labels


def score(
    model: SteppedModel, data: ImageSet, tap: Tap | None = None, precision: str = "fp32", size: int = BATCH
) -> Score:
    """Loss and accuracy of ``model`` in evaluation mode on all of ``data``."""
    loss = torch.zeros((), device=data.images.device)
    correct = torch.zeros((), dtype=torch.int64, device=data.images.device)
    with evaluating(model), autocast(precision, data.images.device):
        for images, labels in batches(data, size):
            logits = model(images, tap)
            loss += cross_entropy(logits.float(), labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
    return Score(float(loss) / len(data), int(correct) / len(data), len(data))


def score_by_class(
    model: SteppedModel, data: ImageSet, tap: Tap | None = None, precision: str = "fp32", size: int = BATCH
) -> tuple[Score, tuple[float | None, ...]]:
    """``score``, and the accuracy (fraction) on the images of each class of ``data``, None for one without images.

    One pass, and one read from the device. Counts are exact up to 2**24 images.
    """
    classes = torch.arange(len(data.classes), device=data.images.device)
    loss = torch.zeros((), device=data.images.device)
    correct, present = torch.zeros_like(classes), torch.zeros_like(classes)
    with evaluating(model), autocast(precision, data.images.device):
        for images, labels in batches(data, size):
            logits = model(images, tap)
            loss += cross_entropy(logits.float(), labels, reduction="sum")
            of_class = labels[:, None] == classes
            present += of_class.sum(0)
            correct += (of_class & (logits.argmax(1) == labels)[:, None]).sum(0)
    total, *counts = torch.cat((loss[None], correct.float(), present.float())).tolist()
    hits, of = counts[: len(classes)], counts[len(classes) :]
    by_class = tuple(hit / n if n else None for hit, n in zip(hits, of, strict=True))
    return Score(total / len(data), sum(hits) / len(data), len(data)), by_class


def predictions(
    model: SteppedModel, data: ImageSet, tap: Tap | None = None, precision: str = "fp32", size: int = BATCH
) -> Tensor:
    """The predicted class of every image, int64 ``[n]``."""
    with evaluating(model), autocast(precision, data.images.device):
        return torch.cat([model(images, tap).argmax(1) for images, _ in batches(data, size)])
