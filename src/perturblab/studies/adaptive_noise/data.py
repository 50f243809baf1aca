"""Which images a run of adaptive-noise trains on, chooses its best epoch on, and is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor

from perturblab.images import ImageSet, stratified
from perturblab.streams import stream
from perturblab.terminal import UserError

HELD_OUT = 5_000  # validation images from train, and at most one in ten (decision 17)
RANDOM_STATE = 42  # of the document's splits (adaptive-noise.md 5.4)


@dataclass(frozen=True)
class Sets:
    """``train`` is learnt from, ``val`` chooses and is watched, ``test`` is looked at once, at the end."""

    train: ImageSet
    val: ImageSet
    test: ImageSet

    def to(self, device: torch.device) -> Sets:
        return Sets(self.train.to(device), self.val.to(device), self.test.to(device))


def split(s: Any, train: ImageSet, test: ImageSet) -> Sets:
    """The three sets. UserError where one would be empty, or too small for a batch."""
    if s.val_source == "test-halves":
        val_mask, test_mask = halves(test.labels)
        val, test = test[val_mask], test[test_mask]
    else:
        held_out = stratified(train.labels, min(HELD_OUT, len(train) // 10), stream(s.seed, "validation"))
        val, train = train[held_out], train[~held_out]
    if not len(val):
        raise UserError(f"{s.dataset} has {len(train)} training images: none are left for validation")
    train = train[part(train.labels, s.subset)]
    if s.batch_size > len(train):
        why = f"--subset {s.subset:g} leaves" if s.subset < 1 else f"{s.dataset} has"
        raise UserError(
            f"{why} {len(train)} training images, fewer than one batch of --batch-size {s.batch_size}; "
            f"use --batch-size {len(train)} or less"
        )
    if len(train.labels.unique()) < 2:
        raise UserError(f"{s.dataset}: all training images are of one class, there is nothing to learn")
    return Sets(train, val, test)


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Validation and test images of the document's cut through the test set: bool ``[n]`` each."""
    chosen = _drawn(labels, 0.5, "test")
    return chosen, ~chosen


def part(labels: Tensor, fraction: float) -> Tensor:
    """A ``fraction`` of the images, each class in its share: bool ``[n]``."""
    if fraction == 1:
        return torch.ones(len(labels), dtype=torch.bool)
    return _drawn(labels, fraction, "training")


def _drawn(labels: Tensor, fraction: float, what: str) -> Tensor:
    cut = StratifiedShuffleSplit(1, train_size=fraction, random_state=RANDOM_STATE)
    classes = labels.numpy()
    try:
        index, _ = next(cut.split(np.zeros(len(classes)), classes))
    except ValueError:  # a class with one image, or fewer images than classes
        raise UserError(
            f"{fraction:g} of {len(classes)} {what} images cannot hold every class in its share; take more"
        ) from None
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    drawn[torch.from_numpy(index)] = True
    return drawn
