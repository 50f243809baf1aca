"""The colours of all pictures, distinguishable with any colour vision: one per architecture, darker and lighter by arm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

# Okabe and Ito (2008), distinguishable with any colour vision; their yellow is left out, too pale for lines.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
FIXED = {"vgg11": BLUE, "vgg13": VERMILION, "vgg16": GREEN, "vgg19": PURPLE, "vgg9": ORANGE}

Colour = str | tuple[float, float, float]


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per architecture: the same in every picture for the usual ones, the rest in order."""
    free = [c for c in PALETTE if c not in {FIXED[n] for n in names if n in FIXED}] or list(PALETTE)
    others = [n for n in dict.fromkeys(names) if n not in FIXED]
    return {n: FIXED[n] for n in names if n in FIXED} | {n: free[i % len(free)] for i, n in enumerate(others)}


def shade(colour: str, towards: float) -> tuple[float, float, float]:
    """``colour`` mixed with black (``towards`` down to -1) or white (up to 1)."""
    end = np.ones(3) if towards > 0 else np.zeros(3)
    mixed = (1 - abs(towards)) * np.array(to_rgb(colour)) + abs(towards) * end
    return float(mixed[0]), float(mixed[1]), float(mixed[2])
