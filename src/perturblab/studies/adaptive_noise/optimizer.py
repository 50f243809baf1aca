"""The optimiser of a run, and its state in a few numbers (adaptive-noise.md 5.5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from perturblab.perturb.tensors import norms_of
from perturblab.sites import SteppedModel


def make_optimizer(s: Any, model: SteppedModel) -> Optimizer:
    """SGD, Nesterov's if there is momentum; or Adam, whose weight decay is L2."""
    if s.optimizer == "SGD":
        return torch.optim.SGD(
            model.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.wd, nesterov=s.momentum > 0, fused=True
        )  # fmt: skip
    return torch.optim.Adam(
        model.parameters(), lr=s.lr, betas=(s.beta1, s.beta2), weight_decay=s.wd, fused=True
    )


@torch.no_grad()
def state_of(optimizer: Optimizer) -> dict[str, float]:
    """Means over tensors of the norms of SGD's momentum, or of Adam's two moments, and Adam's mean step size per element.

    ``effective_lr``: mean over all elements of lr / (sqrt(v) + eps), as documented (without bias correction). Empty for
    SGD without momentum.
    """
    states = list(optimizer.state.values())

    def mean_norm(key: str) -> float:
        return float(torch.stack(norms_of([state[key] for state in states])).mean())

    group = optimizer.param_groups[0]
    if states and states[0].get("momentum_buffer") is not None:
        return {"momentum_norm": mean_norm("momentum_buffer")}
    if states and "exp_avg_sq" in states[0]:
        seconds: list[Tensor] = [state["exp_avg_sq"] for state in states]
        total = sum(float((group["lr"] / (v.sqrt() + group["eps"])).double().sum()) for v in seconds)
        return {
            "exp_avg_norm": mean_norm("exp_avg"),
            "exp_avg_sq_norm": mean_norm("exp_avg_sq"),
            "effective_lr": total / sum(v.numel() for v in seconds),
        }
    return {}
