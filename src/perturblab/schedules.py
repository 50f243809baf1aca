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


def cosine_decaying_restarts(
    lr: float, restart_epochs: int, *, final_max: float = 1e-5, eta_min: float = 1e-6
) -> Schedule:
    """Half a cosine per ``restart_epochs`` (1 or more) epochs, from a maximum that itself falls, towards ``eta_min``.

    Stepped per step ``t`` (from 0) of S per epoch and E epochs (report of document 004; adaptive-noise.md 5.5):

        maximum(t) = lr - min(1, t / ((E - restart_epochs) S)) (lr - final_max)
        rate(t) = eta_min + (maximum(t) - eta_min) / 2 * (1 + cos(pi * (t mod T) / T)),   T = restart_epochs * S

    So the restart after ``E - restart_epochs`` epochs and all later ones begin at ``final_max`` (absolute). With
    ``final_max = lr`` it is ``torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(T)``, and so is a run of no more than
    ``restart_epochs`` epochs: it ends before its maximum could matter, where the published equation has no value.
    """

    def rate(clock: Clock) -> float:
        t, period = (clock.epoch - 1) * clock.steps + clock.step, restart_epochs * clock.steps
        falling = (clock.epochs - restart_epochs) * clock.steps
        progress = min(1.0, t / falling) if falling > 0 else 0.0
        return _half_cosine(lr - progress * (lr - final_max), eta_min, t % period / period)

    return rate


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * progress))
