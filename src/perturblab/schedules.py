"""Learning rates in closed form: a pure function of the clock, so a resumed run needs no scheduler state."""

from __future__ import annotations

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
