"""What training minimises. An objective has two halves: ``draw`` is the only one that sees random streams and the
clock; the call is pure tensors, so it compiles and its gradients can be tested against closed forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from perturblab.images import Batch
from perturblab.sites import SteppedModel


@dataclass(frozen=True)
class Clock:
    """Where training stands: ``epoch`` from 1, ``step`` from 0 within it, ``steps`` per epoch, ``epochs`` in all."""

    epoch: int
    step: int
    steps: int
    epochs: int


@dataclass(frozen=True)
class Loss:
    """``total`` is what is minimised, 0-dim; ``logits`` ``[b classes]`` of the intact model;
    ``parts`` maps a name to (sum over n, n), so that means over an epoch are weighted by samples."""

    total: Tensor
    logits: Tensor
    parts: dict[str, tuple[Tensor, int]]


class Objective(Protocol):
    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """What this step needs beside the batch (masks, weights), on the batch's device.

        Numbers that change over time come as 0-dim tensors: a float would compile anew at each value.
        """
        ...

    def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Loss: ...
