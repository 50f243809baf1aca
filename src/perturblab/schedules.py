"""Learning rates in closed form: a pure function of the clock, so a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from perturblab.objectives import Clock

Schedule = Callable[[Clock], float]


def constant(lr: float) -> Schedule:
    return lambda clock: lr


def multistep(lr: float, milestones: tuple[int, ...], gamma: float = 0.1) -> Schedule:
    """``lr * gamma^k`` after ``k`` milestones, stepped per epoch as ``torch.optim.lr_scheduler.MultiStepLR`` does:
    epoch ``m + 1`` (counted from 1) is the first with the lower rate of milestone ``m``."""
    return lambda clock: lr * gamma ** bisect_right(milestones, clock.epoch - 1)


def cosine(lr: float, *, final_lr: float = 0.0) -> Schedule:
    """Half a cosine from ``lr`` in the first epoch towards ``final_lr``, stepped per epoch as
    ``torch.optim.lr_scheduler.CosineAnnealingLR(T_max=epochs, eta_min=final_lr)`` does: ``final_lr`` itself would be
    the rate of the epoch after the last."""
    return lambda clock: _half_cosine(lr, final_lr, (clock.epoch - 1) / clock.epochs)


def warmup_cosine(
    lr: float, warmup_epochs: int = 10, *, start_factor: float = 0.001, final_lr: float = 1e-5
) -> Schedule:
    """``warmup_epochs`` epochs in equal steps from ``start_factor * lr`` towards ``lr``, then :func:`cosine` over the rest.

    Stepped per epoch as torch's ``LinearLR`` followed by ``CosineAnnealingLR`` (first-layer-mi.md 2.5). A run of no
    more than ``warmup_epochs`` epochs is the beginning of the warm-up, and its rate never reaches ``lr``.
    """

    def rate(clock: Clock) -> float:
        done = clock.epoch - 1
        if done < warmup_epochs:
            return lr * (start_factor + (1 - start_factor) * done / warmup_epochs)
        return _half_cosine(lr, final_lr, (done - warmup_epochs) / (clock.epochs - warmup_epochs))

    return rate


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * progress))
