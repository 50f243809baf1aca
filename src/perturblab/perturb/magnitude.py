"""How strong noise is and how long the pause after it: closed forms of adaptive-noise.md 5.6 and 5.7.

Epochs here are finished ones: ``done`` of ``epochs``, so 0 in the first. A sigma is a standard deviation, or a multiple
of a tensor's root mean square with ``--noise-scale relative`` (decision 8); this file does not care.
"""

from __future__ import annotations

import math
from typing import Literal

NoiseSchedule = Literal["constant", "linear", "cosine", "exponential"]

SHARPNESS = 2.0  # of the sigmoid, in thresholds
DECAY = 0.95  # of the exponential schedule, per epoch


def stuckness(improvement: float, threshold: float) -> float:
    """How stuck training is, 0 to 1: ``1 - sigmoid(2 / threshold * (improvement - threshold))``.

    0.5 at the threshold (above 0, of the improvement's unit), 0.881 without improvement, 1 where things get worse.
    Written so that no exponential overflows (defect 23 of 5.9).
    """
    x = SHARPNESS / threshold * (improvement - threshold)
    small = math.exp(-abs(x))
    return 1 - (1 / (1 + small) if x > 0 else small / (1 + small))


def adaptive_sigma(stuck: float, low: float, high: float, done: int, epochs: int) -> float:
    """``low + stuck * (high - low)``, times half a cosine over the run."""
    return (low + stuck * (high - low)) * _half_cosine(done, epochs)


def static_sigma(schedule: NoiseSchedule, magnitude: float, done: int, epochs: int) -> float:
    """``magnitude`` times 1, ``1 - e/E``, ``(1 + cos(pi e/E)) / 2`` or ``0.95^e``."""
    if schedule == "constant":
        return magnitude
    if schedule == "linear":
        return magnitude * (1 - done / epochs)
    if schedule == "cosine":
        return magnitude * _half_cosine(done, epochs)
    return magnitude * DECAY**done


def cooldown_epochs(stuck: float, shortest: int, longest: int) -> int:
    """Epochs to wait after noise: ``int(shortest + stuck * (longest - shortest))``; the more stuck, the longer."""
    return int(shortest + stuck * (longest - shortest))


def _half_cosine(done: int, epochs: int) -> float:
    return (1 + math.cos(math.pi * done / epochs)) / 2
