"""What the finished runs of adaptive-noise say, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from perturblab.report.statistics import Paired, summarise, too_few
from perturblab.report.tables import Table
from perturblab.studies.adaptive_noise.arms import (
    TARGETS,
    Comparison,
    Group,
    Run,
    comparisons,
    groups,
    lacking_baselines,
)

ACCURACIES = {"test_acc": "Test (%)", "best_val_acc": "Val (%)", "gap": "Gap (points)"}
COMPARED = {"test_acc": "test accuracy", "gap": "gap"}
SIGNIFICANT = 0.05


def summary(runs: Sequence[Run]) -> list[Table]:
    """The final numbers of every arm, and the paired differences of every arm with noise to its baseline."""
    found = comparisons(runs)
    tables = [_finals(groups(runs))]
    return [*tables, _differences(found)] if found else tables


def verdict(runs: Sequence[Run]) -> str:
    """A line per arm with noise: how often there was noise, what was seen against the baseline, what could not have been."""
    lines = [_line(one) for one in comparisons(runs)]
    return "\n".join(lines) or "No run with noise: nothing can be said about it."


# ---- tables ----------------------------------------------------------------------------------------------------------


def _finals(found: Sequence[Group]) -> Table:
    targets = [t for t in TARGETS if any(run.noisy(t) for group in found for run in group.runs)]
    rows = []
    for group in found:
        cells = [_mean_and_std(group.finals(key).values()) for key in ACCURACIES]
        counts = [_count([run.noisy(t) for run in group.runs]) for t in targets]
        looked = any(run.flags for run in group.runs)
        flagged = _count([int(run.flagged.sum()) for run in group.runs]) if looked else "-"
        n = len(group.runs)
        rows.append(
            (group.setting, group.label, *cells, *counts, flagged, "1 (single seed)" if n == 1 else str(n))
        )
    columns = (
        "Setting",
        "Arm",
        *ACCURACIES.values(),
        *(f"{t.capitalize()} noise" for t in targets),
        "Flagged",
        "n",
    )
    notes = (
        "Test: at the epoch with the best validation accuracy, which is Val. Gap: clean train minus validation accuracy "
        "after the last epoch. Noise, flagged: in how many epochs. std: population standard deviation over n seeds (ddof 0).",
    )
    return Table("FINAL RESULTS (mean ± std)", columns, tuple(rows), notes, text=(0, 1))


def _mean_and_std(values: Iterable[float], digits: int = 2) -> str:
    s = summarise(values)
    return f"{s.mean:.{digits}f}" if s.n == 1 else f"{s.mean:.{digits}f} ± {s.sd_population:.{digits}f}"


def _count(epochs: Sequence[int]) -> str:
    if len(set(epochs)) == 1:
        return str(epochs[0])
    return _mean_and_std(epochs, digits=1)


def _differences(found: Sequence[Comparison]) -> Table:
    paired = [one for one in found if one.pairs]
    rows = [_row(one, key, name) for one in paired for key, name in COMPARED.items()]
    notes = [*lacking_baselines(found)]
    notes += [sentence for n in sorted({len(one.pairs) for one in paired}) if (sentence := too_few(n))]
    if len(rows) > 1:
        notes.append(f"{len(rows)} comparisons, each p on its own: not corrected for their number.")
    columns = ("Setting", "Arm - baseline", "Measure", "Points", "95 % interval", "n", "p")
    title = "PAIRED DIFFERENCES TO THE BASELINE (same seeds; p of the exact sign-flip test)"
    return Table(title, columns, tuple(rows), tuple(notes), text=(0, 1, 2))


def _row(one: Comparison, key: str, name: str) -> tuple[str, ...]:
    p = one.of(key)
    about = (one.group.setting, one.group.label, name, f"{p.mean_difference:+.2f}")
    if p.n == 1:
        return (*about, "-", "1 (single seed)", "-")
    return (*about, _interval(p), str(p.n), f"{p.p_value:.2g}")


# ---- words -----------------------------------------------------------------------------------------------------------


def _line(one: Comparison) -> str:
    """One sentence: noise, test accuracy, gap."""
    name, runs = f"{one.group.setting}, {one.group.label}", [noisy for noisy, _ in one.pairs]
    if not runs:
        return f"{name}: {_noise(one.group.runs)}; there is no baseline of these seeds, so nothing to compare with."
    if not any(any(run.targets) for run in runs):
        return f"{name}: {_noise(runs)}, so there is nothing to compare with the baseline."
    test, gap = one.of("test_acc"), one.of("gap")
    if test.n == 1:
        return (
            f"{name}: with 1 seed and {_noise(runs)}, test accuracy differed from the baseline's by {test.mean_difference:+.2f} "
            f"points and the gap by {gap.mean_difference:+.2f}; from a single seed nothing can be concluded."
        )
    return (
        f"{name}: with {test.n} seeds and {_noise(runs)}, test accuracy differed from the baseline's by {_finding(test)}, "
        f"the gap between train and validation by {_finding(gap)}."
    )


def _noise(runs: Sequence[Run]) -> str:
    """How often there was noise, on average over the runs."""
    counts = {target: fmean(run.noisy(target) for run in runs) for target in TARGETS}
    told = [f"on {target}s in {n:.1f}".removesuffix(".0") for target, n in counts.items() if n]
    return f"noise {' and '.join(told)} of {runs[0].epochs.size} epochs" if told else "no noise in any epoch"


def _finding(p: Paired) -> str:
    return f"{p.mean_difference:+.2f} points (95 % interval {_interval(p)}: {_seen(p)})"


def _seen(p: Paired) -> str:
    """What the interval and the sign-flip test allow to say, for two or more seeds."""
    if p.mean_difference == 0 and p.sd == 0:
        return f"no difference at all, the {p.n} seeds are equal one by one"
    if p.excludes_zero and too_few(p.n):
        return (
            f"a difference, if differences between seeds are normally distributed; without that assumption {p.n} seeds "
            f"cannot show one"
        )
    if p.excludes_zero != (p.p_value <= SIGNIFICANT):
        return f"undecided, interval and sign-flip test, p = {p.p_value:.2g}, disagree about a difference"
    if p.excludes_zero:
        return f"a difference was seen, sign-flip p = {p.p_value:.2g}"
    half = ((p.ci_high or 0.0) - (p.ci_low or 0.0)) / 2
    return f"no difference shown, and {p.n} seeds could not show one below about {float(f'{half:.2g}'):g}"


def _interval(p: Paired) -> str:
    return f"{p.ci_low:+.2f} to {p.ci_high:+.2f}"
