"""Random numbers by purpose: every consumer names its own stream, so no arm of an experiment shifts another's.

``stream(seed, "masks", epoch, step)`` is a CPU generator that depends on nothing but its arguments. A resumed
run opens the same streams again; nothing about them has to be stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def stream_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from the run's seed and the purpose, by SHA-256: streams do not overlap or correlate."""
    key = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh CPU generator for one purpose, e.g. ``stream(seed, "order", epoch)``."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))


@contextmanager
def seeded(seed: int, *purpose: str | int) -> Iterator[None]:
    """Set torch's global random state for layers that can use no other (initialisation, dropout), and restore it."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(stream_seed(seed, *purpose))
        yield
