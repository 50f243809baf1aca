"""What a handful of runs can say: a mean with its interval, a difference between equal seeds, a rank correlation."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import mean as exact_mean

import numpy as np
from scipy import stats

from perturblab.terminal import counted

EXACT_UP_TO = 16  # 2^16 sign patterns take milliseconds; above this they are sampled
SAMPLES = 100_000
ORDERS_UP_TO = 8  # 8! = 40,320 orders take 30 ms; above this they are sampled
LEVEL = 0.95  # of every interval
SIGNIFICANT = 0.05
MOST = 18  # pairs: with more the smallest p is no smaller, it is one sample in 100,001

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


@dataclass(frozen=True)
class Summary:
    """``n`` values in their own unit. What one value cannot tell (``sd`` and the interval) is None for n = 1.

    ``sd`` is the sample standard deviation (ddof 1), ``sd_population`` the population one (ddof 0);
    ``ci_low`` to ``ci_high`` is the 95 % t interval of the mean.
    """

    n: int
    mean: float
    sd: float | None
    sd_population: float
    ci_low: float | None
    ci_high: float | None


@dataclass(frozen=True)
class Paired:
    """Differences a - b over the seeds that both have, in the unit of the values.

    ``sd`` (ddof 1) and the 95 % t interval are None for one pair. ``p_value`` is that of the two-sided
    sign-flip test; ``smallest_p`` is what it would be if every seed agreed as strongly as it could.
    ``unmatched`` are the seeds that only one side has; they are left out.
    """

    n: int
    mean_difference: float
    sd: float | None
    ci_low: float | None
    ci_high: float | None
    p_value: float
    smallest_p: float
    seeds: tuple[int, ...]
    unmatched: tuple[int, ...]

    @property
    def excludes_zero(self) -> bool:
        """Whether the 95 % interval lies wholly on one side of zero."""
        return self.ci_low is not None and self.ci_high is not None and self.ci_low * self.ci_high > 0


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ``rho`` of ``n`` points, its 95 % interval, and the p of a two-sided permutation test.

    ``reason`` says in one sentence why a number is missing: ``rho`` and ``p_value`` are None where one side does
    not vary, the interval also for n < 4.
    """

    n: int
    rho: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    p_value: float | None = None
    reason: str = ""


def summarise(values: Iterable[float]) -> Summary:
    """The mean of finite ``values`` with its spread and interval. ValueError if there is none or one is not finite."""
    x = np.asarray(list(values), dtype=np.float64)
    if not x.size or not np.isfinite(x).all():
        raise ValueError(f"needs one or more finite values, not {x.tolist()}")
    mean, sd = float(x.mean()), _sample_sd(x)
    low, high = _t_interval(mean, sd, x.size)
    return Summary(x.size, mean, sd, float(x.std()), low, high)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Paired:
    """Compare two arms seed by seed; ``a`` and ``b`` map seed to value. ValueError if they share no seed.

    Runs of one seed start from the same weights and see the same batches, so their difference varies less
    than either does; a comparison of the two means would throw that away.
    """
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        raise ValueError(f"no seed in common: {sorted(a)} and {sorted(b)}")
    differences = np.array([a[s] - b[s] for s in seeds], dtype=np.float64)
    s = summarise(differences)
    return Paired(
        s.n, s.mean, s.sd, s.ci_low, s.ci_high, sign_flip_p(differences), smallest_p(s.n),
        seeds, tuple(sorted(a.keys() ^ b.keys())),
    )  # fmt: skip


def sign_flip_p(differences: Floats) -> float:
    """Two-sided p of the mean of ``differences [n]`` when the sign of each is a coin toss (Fisher 1935, section 21).

    Exact over all 2^n sign patterns up to n = 16. Above, 100,000 patterns from a fixed generator, counting the
    observed one as Phipson and Smyth (2010) advise, so that p is never zero.
    """
    d = np.asarray(differences, dtype=np.float64)
    # Patterns that tie exactly must count, whatever the order of the summands rounded to.
    least = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if d.size <= EXACT_UP_TO:
        return float(np.mean(np.abs(_all_signs(d.size) @ d) >= least))
    signs = np.random.default_rng(0).integers(0, 2, (SAMPLES, d.size), dtype=np.int8) * 2 - 1
    return float((1 + np.sum(np.abs(signs @ d) >= least)) / (1 + SAMPLES))


def smallest_p(n: int) -> float:
    """The least p that ``sign_flip_p`` can return for n differences: 2 / 2^n, or one sample in 100,001."""
    return 2.0 ** (1 - n) if n <= EXACT_UP_TO else max(2.0 ** (1 - n), 1 / (1 + SAMPLES))


def too_few(n: int, others: Sequence[float] = ()) -> str | None:
    """One sentence if ``n`` pairs cannot reach p <= 0.05 however large the effect is, else None.

    ``others``: the p-values of the tests beside this one, which Holm's method corrects for.
    """
    least = _least_corrected(n, others)
    if least <= SIGNIFICANT:
        return None
    corrected = f", {least:.2g} when corrected for {len(others) + 1} tests" if others else ""
    needed = next((k for k in range(n + 1, MOST + 1) if _least_corrected(k, others) <= SIGNIFICANT), None)
    return (
        f"With {counted(n, 'paired seed')} the smallest possible p is {smallest_p(n):.2g}{corrected}: no difference, "
        f"however large, can be significant at {SIGNIFICANT:g}"
        + (f"; {needed} seeds are the fewest that can." if needed else ".")
    )


def _least_corrected(n: int, others: Sequence[float]) -> float:
    return holm([smallest_p(n), *others])[0]


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, corrected for their number (Holm 1979): each is at most alpha exactly where the
    procedure that keeps the chance of one or more false findings below alpha rejects."""
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def rank_correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Hashable] | None = None
) -> RankCorrelation:
    """Spearman's rank correlation of the points ``(x[i], y[i])``; ties get their mean rank.

    Points of one architecture are not independent, and treating them so makes p too small. With ``groups`` (the
    architecture of each point) the means per group are correlated instead, and n is the number of groups: call
    it both ways. The interval is Fisher's z with the variance ``(1 + rho^2 / 2) / (n - 3)`` of Bonett and Wright
    (2000). Points in perfect order have no such interval, so their rho counts as half a step below 1: of five
    points the interval is then 0.16 to 1, and their p is 1/60, the least that five points can reach.

    Coverage over 4,000 samples of bivariate normal points, rho 0 to 0.95: 0.98 to 0.99 at n = 5, 0.94 to 0.97 from
    n = 8 to 40. ValueError if the lengths differ or a value is not finite.
    """
    if len(x) != len(y) or (groups is not None and len(groups) != len(x)):
        raise ValueError(
            f"{len(x)} x, {len(y)} y" + (f" and {len(groups)} groups" if groups is not None else "")
        )
    if not np.isfinite([x, y]).all():
        raise ValueError("needs finite values")
    if groups is not None:
        x, y = _group_means(x, groups), _group_means(y, groups)
    n = len(x)
    if len(set(x)) < 2 or len(set(y)) < 2:
        return RankCorrelation(n, None, reason="no correlation: one side does not vary")
    a, b = (stats.rankdata(side) - (n + 1) / 2 for side in (x, y))
    rho, p = float(a @ b / math.sqrt((a @ a) * (b @ b))), _permutation_p(a, b)
    if n < 4:
        return RankCorrelation(n, rho, p_value=p, reason=f"no interval: {n} points are fewer than 4")
    return RankCorrelation(n, rho, *_rank_interval(rho, n), p)


def _group_means(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """The mean of each group, in order of first appearance. Rounded once, so that equal means are ties."""
    return [
        exact_mean(v for v, of in zip(values, groups, strict=True) if of == group)
        for group in dict.fromkeys(groups)
    ]


def _permutation_p(a: Floats, b: Floats) -> float:
    """Two-sided p of the product of centred ranks when ``b`` comes in any order: exact up to n = 8, else sampled."""
    least = abs(a @ b) - 1e-9 * (np.abs(a) @ np.abs(b))
    if a.size <= ORDERS_UP_TO:
        return float(np.mean(np.abs(np.array(list(permutations(b))) @ a) >= least))
    generator = np.random.default_rng(0)
    orders = (generator.permuted(np.tile(b, (1000, 1)), axis=1) for _ in range(SAMPLES // 1000))
    as_strong = sum(int(np.sum(np.abs(some @ a) >= least)) for some in orders)
    return (1 + as_strong) / (1 + SAMPLES)


def _rank_interval(rho: float, n: int) -> tuple[float, float]:
    perfect = 1 - 6 / (n**3 - n)  # rho moves in steps of 12 / (n^3 - n)
    z = math.atanh(min(perfect, max(-perfect, rho)))
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * math.sqrt((1 + math.tanh(z) ** 2 / 2) / (n - 3))
    low, high = math.tanh(z - half), math.tanh(z + half)
    return -1.0 if rho < -perfect else low, 1.0 if rho > perfect else high


def _all_signs(n: int) -> Floats:
    """Every pattern of +1 and -1: ``[2^n n]``."""
    bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
    return (bits * 2 - 1).astype(np.float64)


def _sample_sd(x: Floats) -> float | None:
    return float(x.std(ddof=1)) if x.size > 1 else None


def _t_interval(mean: float, sd: float | None, n: int) -> tuple[float | None, float | None]:
    if sd is None:
        return None, None
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return mean - half, mean + half
