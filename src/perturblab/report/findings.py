"""What a paired difference allows to say, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from perturblab.report.statistics import SIGNIFICANT, Paired, holm, too_few


def finding(p: Paired, unit: str = "", others: Sequence[float] = ()) -> str:
    """``"+1.20 points (95 % interval 0.45 to 1.95): a difference was seen (sign-flip test, p = 0.031)"``.

    ``others``: the p-values of the tests beside this one; its own is corrected for their number by Holm's method.
    """
    if p.n == 1:
        return f"{amount(p.mean_difference, unit, '+')}: from a single seed nothing can be concluded"
    return f"{amount(p.mean_difference, unit, '+')} (95 % interval {interval(p, unit)}): {_seen(p, unit, others)}"


def _seen(p: Paired, unit: str, others: Sequence[float]) -> str:
    if p.mean_difference == 0 and p.sd == 0:
        return f"no difference at all, the {p.n} seeds are equal one by one"
    p_value = holm([p.p_value, *others])[0]
    told = f"p = {p_value:.2g}" + (f", corrected for {len(others) + 1} tests" if others else "")
    if p.excludes_zero and (few := too_few(p.n, others)):
        return f"undecided. {few}"
    if p.excludes_zero != (p_value <= SIGNIFICANT):
        return f"undecided, the interval and the sign-flip test ({told}) disagree about a difference"
    if p.excludes_zero:
        return f"a difference was seen (sign-flip test, {told})"
    half = ((p.ci_high or 0.0) - (p.ci_low or 0.0)) / 2
    return f"no difference shown, and {p.n} seeds could not show one below about {float(f'{half:.2g}'):g} {unit}".rstrip()


def amount(value: float, unit: str, sign: str = "") -> str:
    return f"{digits(value, unit, sign)} {unit}".rstrip()


def digits(value: float, unit: str, sign: str = "") -> str:
    """Percent and points with two decimals, everything else with four digits."""
    return f"{value:{sign}{'.2f' if unit in ('%', 'points') else '.4g'}}"


def interval(p: Paired, unit: str) -> str:
    if p.ci_low is None or p.ci_high is None:
        return "-"
    return f"{digits(p.ci_low, unit)} to {digits(p.ci_high, unit)}"
