"""The masked loss: low when the network is intact, high when random hidden units are ablated.

    L_total = L_full - lambda(t) * min(L_ablated, 0.5 * L_full)        (document 000; masked-loss.md 1.5)

L_ablated is the mean cross-entropy over the masks of the step. With the documented clamp (``hard``) no gradient
passes through L_ablated while L_ablated > 0.5 * L_full: then the gradient is (1 - lambda/2) grad L_full.
``rescale`` has the same value and lets the gradient through; ``none`` drops the clamp.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from perturblab.images import Batch
from perturblab.masks import documented_subsets
from perturblab.objectives import Clock, Loss
from perturblab.sites import SteppedModel, ablate_each, frozen_statistics, keep
from perturblab.streams import stream

Clamp = Literal["hard", "rescale", "none"]
CLAMP_SHARE = 0.5  # of L_full


def warmed_up(lambda_max: float) -> Callable[[Clock], float]:
    """lambda rises linearly over the first fifth of the epochs: ``lambda_max * e / int(0.2 E)``, e from 1.

    It never is 0: lambda(1) = lambda_max / int(0.2 E). Below 5 epochs there is no warm-up (masked-loss.md 1.5).
    """

    def weight(clock: Clock) -> float:
        warmup = int(0.2 * clock.epochs)
        return lambda_max * min(1.0, clock.epoch / warmup) if warmup else lambda_max

    return weight


def combine(full: Tensor, ablated: Tensor, weight: Tensor, clamp: Clamp) -> Tensor:
    """L_total from L_full, L_ablated and lambda (0-dim tensors). At a tie ``hard`` splits the gradient, as torch.min."""
    limit = CLAMP_SHARE * full
    if clamp == "none":
        return full - weight * ablated
    if clamp == "hard":
        return full - weight * torch.minimum(ablated, limit)
    share = torch.where(ablated > limit, limit / ablated, 1.0).detach()  # 1, not 0 / 0, where both are 0
    return full - weight * share * ablated


class MaskedLoss:
    """``n_masks`` fresh masks per step at ``site``, shared by the batch, sizes uniform on 1..width-2.

    Parts: ``loss_full``, ``loss_ablated``, ``loss_total`` (means over samples), ``clamp_active`` (share of steps).
    """

    def __init__(
        self,
        seed: int,
        width: int,
        n_masks: int = 3,
        lambda_max: float = 1.0,
        clamp: Clamp = "hard",
        site: str = "hidden",
    ) -> None:
        self.seed, self.width, self.n_masks = seed, width, n_masks
        self.weight, self.clamp, self.site = warmed_up(lambda_max), clamp, site

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        generator = stream(self.seed, "masks", clock.epoch, clock.step)
        masks = documented_subsets(self.n_masks, self.width, generator)
        device = batch.images.device
        # Nothing here waits for a GPU: a few KB are copied aside, and full() is a kernel where tensor() is a copy.
        return {
            "keep_masks": masks.to(device, non_blocking=True),
            "weight": torch.full((), self.weight(clock), device=device),
        }

    def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        losses = self._heads if self.site == "hidden" else self._passes
        logits, full, ablated = losses(model, batch, draws["keep_masks"])
        total = combine(full, ablated, draws["weight"], self.clamp)
        active = (ablated > CLAMP_SHARE * full).float()
        n = len(batch.labels)
        parts = {"loss_full": (full * n, n), "loss_ablated": (ablated * n, n), "loss_total": (total * n, n)}
        return Loss(total, logits, {**parts, "clamp_active": (active, 1)})

    def _heads(self, model: SteppedModel, batch: Batch, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One trunk pass; all heads as one product. Exact because no BatchNorm follows the hidden layer."""
        here = model.position(self.site)
        hidden = model.run(batch.images, stop=here)
        logits = model.run(hidden, start=here)
        ablated = model.run(ablate_each(hidden, masks).flatten(0, 1), start=here)
        labels = batch.labels.repeat(len(masks))
        return logits, cross_entropy(logits, batch.labels), cross_entropy(ablated, labels)

    def _passes(self, model: SteppedModel, batch: Batch, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One pass per mask: fan-out would mix the masks in the batch statistics (decision 30)."""
        logits = model(batch.images)
        with frozen_statistics(model):
            losses = [
                cross_entropy(model(batch.images, keep(self.site, mask)), batch.labels) for mask in masks
            ]
        return logits, cross_entropy(logits, batch.labels), torch.stack(losses).mean()
