"""Cross-entropy: plain, smoothed, of mixed labels, and with a weight that follows the clock."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from perturblab.images import Batch
from perturblab.objectives import Clock, Loss
from perturblab.sites import SteppedModel


class CrossEntropy:
    """Mean cross-entropy of the batch, times ``weight(clock)`` where one is given. Parts: ``loss_full``, ``loss_total``.

    With ``label_smoothing`` eps the target is ``(1 - eps)`` for the label plus ``eps / classes`` for every class. Of a
    mixed batch each image counts ``share * L(first label) + (1 - share) * L(second label)``.
    """

    def __init__(
        self, weight: Callable[[Clock], float] | None = None, *, label_smoothing: float = 0.0
    ) -> None:
        self.weight, self.label_smoothing = weight, label_smoothing

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        if self.weight is None:
            return {}
        return {"weight": torch.full((), self.weight(clock), device=batch.images.device)}

    def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        logits = model(batch.images)
        full = self._mean(logits, batch)
        total = draws["weight"] * full if "weight" in draws else full
        n = len(batch.labels)
        return Loss(total, logits, {"loss_full": (full * n, n), "loss_total": (total * n, n)})

    def _mean(self, logits: Tensor, batch: Batch) -> Tensor:
        if batch.mix is None:
            return cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        second, share = batch.mix
        first_loss, second_loss = (
            cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)
            for labels in (batch.labels, second)
        )
        return (share * first_loss + (1 - share) * second_loss).mean()
