"""Plain cross-entropy, and the same with a weight that follows the clock."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from perturblab.images import Batch
from perturblab.objectives import Clock, Loss
from perturblab.sites import SteppedModel


class CrossEntropy:
    """Mean cross-entropy of the batch, times ``weight(clock)`` where one is given. Parts: ``loss_full``, ``loss_total``."""

    def __init__(self, weight: Callable[[Clock], float] | None = None) -> None:
        self.weight = weight

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        if self.weight is None:
            return {}
        return {"weight": torch.full((), self.weight(clock), device=batch.images.device)}

    def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        logits = model(batch.images)
        full = cross_entropy(logits, batch.labels)
        total = draws["weight"] * full if "weight" in draws else full
        n = len(batch.labels)
        return Loss(total, logits, {"loss_full": (full * n, n), "loss_total": (total * n, n)})
