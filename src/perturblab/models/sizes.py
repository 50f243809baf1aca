"""What the networks say alike about their sizes."""

from __future__ import annotations


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``, at least 1."""
    return max(1, round(channels * width))


def check_size(network: str, size: int, halvings: int) -> None:
    """ValueError for images of ``size`` pixels a side that cannot be halved ``halvings`` times."""
    if size < 2**halvings:
        raise ValueError(
            f"{network} halves the image {halvings} times and needs at least "
            f"{2**halvings}x{2**halvings} pixels, not {size}x{size}"
        )
