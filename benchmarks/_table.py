"""What every benchmark shares: two ways of doing the same work timed in turn, and figures for people or programs."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """One number: a ``value`` in ``unit``, or a ``ratio`` (its unit says of what to what), from ``n`` repetitions.

    Neither: it could not be measured here, and its unit says why.
    """

    name: str
    unit: str
    n: int
    value: float | None = None
    ratio: float | None = None


def parser(description: str) -> argparse.ArgumentParser:
    """An argument parser with ``--json``; add the benchmark's own arguments to it."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="one JSON object per line and figure, for programs")
    return made


def show(figures: Iterable[Figure], as_json: bool) -> None:
    """Print each figure as it comes: a row of a table, or a JSON line with name, value or ratio, unit, n."""
    for figure in figures:
        if as_json:
            print(json.dumps({key: x for key, x in asdict(figure).items() if x is not None}), flush=True)
        else:
            print(f"{figure.name:<56} {_number(figure):>12}  {figure.unit}  (n = {figure.n})", flush=True)


def _number(figure: Figure) -> str:
    if figure.ratio is not None:
        return f"{figure.ratio:.2f} x"
    if figure.value is None:
        return "-"
    return f"{figure.value:,.0f}" if figure.value >= 1000 else f"{figure.value:.4g}"


def alternate(
    a: Callable[[], object], b: Callable[[], object], n: int, warm_up: int = 1
) -> tuple[float, float, float]:
    """Median seconds of ``a``, of ``b``, and the median of ``b``'s time over ``a``'s, from ``n`` pairs.

    The two run in turn, so that a machine that slows down for a while slows both. Not counted: ``warm_up`` of each.
    """
    for _ in range(warm_up):
        a(), b()
    pairs = [(_seconds(a), _seconds(b)) for _ in range(n)]
    of_a, of_b = zip(*pairs, strict=True)
    return statistics.median(of_a), statistics.median(of_b), statistics.median(y / x for x, y in pairs)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
