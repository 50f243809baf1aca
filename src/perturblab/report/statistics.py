"""What a handful of seeds can say: a mean with its interval, and a difference between runs of equal seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

EXACT_UP_TO = 16  # 2^16 sign patterns take milliseconds; above this they are sampled
SAMPLES = 100_000
LEVEL = 0.95  # of every interval

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


def too_few(n: int, level: float = 0.05) -> str | None:
    """One sentence if ``n`` pairs cannot reach p <= ``level`` however large the effect is, else None."""
    if smallest_p(n) <= level:
        return None
    needed = math.ceil(1 - math.log2(level))
    pairs = "1 paired seed" if n == 1 else f"{n} paired seeds"
    return (
        f"With {pairs} the smallest possible p is {smallest_p(n):.2g}: no difference, however large, can be "
        f"significant at {level:g}; {needed} seeds are the fewest that can."
    )


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
