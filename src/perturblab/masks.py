"""Laws of random subsets: which units, channels or elements are kept. True = kept, everywhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

ATTEMPTS = 100  # draws per subset asked for, before unique ones are given up (layerwise-mi.md 3.6)


def keep_sizes(n_masks: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """``n_masks`` sizes, int64, uniform on ``low..high`` inclusive."""
    return torch.randint(low, high + 1, (n_masks,), generator=generator)


def subsets(sizes: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """For each size a uniform random subset of that many of ``width``: bool ``[len(sizes) width]``, on the CPU.

    A subset is the places whose random numbers rank lowest; ranks are distinct, so sizes are exact.
    """
    scores = torch.rand(len(sizes), width, dtype=torch.float64, generator=generator)
    ranks = scores.argsort(dim=1).argsort(dim=1)
    return ranks < sizes[:, None]


def documented_subsets(n_masks: int, width: int, generator: torch.Generator) -> Tensor:
    """The law of masked-loss and first-layer-mi: the size uniform on ``1..width-2``, then a uniform subset.

    bool ``[n_masks width]``. Widths below 3 keep one (masked-loss.md 1.6: ``max(1, n - 2)``).
    """
    sizes = keep_sizes(n_masks, 1, max(1, width - 2), generator)
    return subsets(sizes, width, generator)


def unique_subsets(n_masks: int, width: int, low: int, high: int, generator: torch.Generator) -> Tensor:
    """Subsets that differ from one another: the kept size uniform on ``low..high``, then a uniform subset.

    bool ``[n width]``. The law of layerwise-mi removes 1..width, so it keeps ``low=0, high=width-1``. A subset that
    came before is drawn again, ``ATTEMPTS`` times ``n_masks`` draws at most: then ``n`` is less than ``n_masks``.
    """
    found = torch.empty(0, width, dtype=torch.bool)
    for _ in range(ATTEMPTS):
        drawn = torch.cat([found, subsets(keep_sizes(n_masks, low, high, generator), width, generator)])
        _, first = np.unique(np.packbits(drawn.numpy(), axis=1), axis=0, return_index=True)
        found = drawn[torch.from_numpy(first).sort().values][:n_masks]
        if len(found) == n_masks:
            break
    return found
