"""What training looks like beside its noise: the length of the gradient and of an epoch's update, BatchNorm's statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perturblab.images import Batch
from perturblab.perturb.tensors import total_norm

CLEAN_BATCHES = 20  # from which running statistics are estimated anew (decision 23)


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, 0-dim on their device; take it before noise is added. No gradient: 0."""
    return total_norm([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def weight_norm(model: nn.Module) -> Tensor:
    """L2 norm of all parameters together, 0-dim on their device."""
    return total_norm(list(model.parameters()))


@dataclass(frozen=True)
class EpochUpdate:
    """How far an epoch moved the weights beside what noise did: end - start - injected (decision 24).

    ``start``: the weights at the start of the epoch by name, which then move along with whatever is injected. So
    they are all that a checkpoint within the epoch has to keep.
    """

    start: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> EpochUpdate:
        """An epoch that starts from the model's weights, of which it keeps copies."""
        return cls({name: p.detach().clone() for name, p in model.named_parameters()})

    def inject(self, noise: dict[str, Tensor]) -> None:
        """``noise`` by parameter name (what ``Noise.weights`` gives) was added to the weights and stays there."""
        if noise:
            torch._foreach_add_([self.start[name] for name in noise], list(noise.values()))

    @torch.no_grad()
    def norm(self, model: nn.Module) -> Tensor:
        """L2 norm over all parameters of the model's clean displacement since the start, 0-dim on their device."""
        weights = dict(model.named_parameters())
        return total_norm(
            list(torch._foreach_sub(list(weights.values()), [self.start[name] for name in weights]))
        )


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Batch]) -> None:
    """BatchNorm's running mean and variance anew, as plain means over the first 20 ``batches``.

    All layers but BatchNorm are in evaluation mode meanwhile, so nothing random is drawn; the count of training batches
    stays what it was. The result depends on weights and batches alone: doing it twice changes nothing.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return
    modes = [(module, module.training) for module in model.modules()]
    before = [(norm.momentum, _count(norm).clone()) for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches since
    try:
        for batch in islice(batches, CLEAN_BATCHES):
            model(batch.images)
    finally:
        for norm, (momentum, counted) in zip(norms, before, strict=True):
            norm.momentum = momentum
            _count(norm).copy_(counted)
        for module, mode in modes:
            module.training = mode


def _count(norm: _BatchNorm) -> Tensor:
    assert norm.num_batches_tracked is not None  # as of every one that tracks statistics
    return norm.num_batches_tracked
