"""Cross-entropy of batches that mix images as they were found with corrected ones (document 003; correction.md 4.5).

    Balanced:    L = CE(confounded) + lambda * CE(corrected)        each a mean over its own images
    Imbalanced:  L = CE(whole batch)

With k corrected images in a batch of B the second is ``(B - k) / B`` times the first at ``lambda = k / (B - k)``,
a factor that Adam hardly sees: Imbalanced is one point of the lambda curve.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from perturblab.images import Batch
from perturblab.objectives import Clock, Loss
from perturblab.sites import SteppedModel


class Balanced:
    """Parts: ``loss_total``, ``loss_confounded``, ``loss_corrected``; a group that is absent counts 0."""

    def __init__(self, lambda_corrected: float) -> None:
        self.lambda_corrected = lambda_corrected

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        return {"weight": torch.full((), self.lambda_corrected, device=batch.images.device)}

    def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        logits = model(batch.images)
        each = cross_entropy(logits, batch.labels, reduction="none")
        confounded, corrected = _by_group(each, batch)
        return _loss(confounded + draws["weight"] * corrected, logits, confounded, corrected, batch)


class Imbalanced:
    """The same parts, the true ones; they do not add up to the total."""

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        return {}

    def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        logits = model(batch.images)
        each = cross_entropy(logits, batch.labels, reduction="none")
        return _loss(each.mean(), logits, *_by_group(each, batch), batch)


def _by_group(each: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean loss of the images as found and of the corrected ones, the last of the batch; 0-dim, 0 for none."""
    groups = each.split([len(each) - batch.n_corrected, batch.n_corrected])
    confounded, corrected = (group.mean() if len(group) else each.new_zeros(()) for group in groups)
    return confounded, corrected


def _loss(total: Tensor, logits: Tensor, confounded: Tensor, corrected: Tensor, batch: Batch) -> Loss:
    n, k = len(batch.labels), batch.n_corrected
    parts = {"loss_total": (total * n, n), "loss_confounded": (confounded * (n - k), n - k)}
    return Loss(total, logits, {**parts, "loss_corrected": (corrected * k, k)} if k else parts)
