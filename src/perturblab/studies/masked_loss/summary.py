"""What the finished runs of masked-loss say, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from perturblab.report.groups import differing, shown
from perturblab.report.statistics import Paired, paired, summarise, too_few
from perturblab.report.tables import Table
from perturblab.studies.masked_loss import Mode
from perturblab.studies.masked_loss.arms import SHARED, Group, Result, groups

COMPARED = (*((mode, "baseline") for mode in get_args(Mode) if mode != "baseline"), ("masked", "half-loss"))
MEASURES = {"final_test_acc": "Test Acc", "final_gen_gap": "Gen Gap"}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """Two arms of one architecture with equal shared settings and at least one common seed."""

    left: Group
    right: Group

    @property
    def label(self) -> str:
        return f"{self.left.arm_label} - {self.right.arm_label}"

    def of(self, key: str) -> Paired:
        """Left minus right in the final number ``key``, in percentage points."""
        return paired(self.left.finals(key), self.right.finals(key))


def summary(results: Sequence[Result]) -> tuple[Table, Table]:
    """The documented table of final results, and the paired differences between the arms.

    Percent and percentage points; std over seeds is the population one (ddof 0), as documented.
    """
    found = groups(results)
    return _finals(found), _differences(found)


def verdict(results: Sequence[Result]) -> str:
    """A line per masked arm: what was seen against its baseline, what could not have been, and what the clamp did."""
    found = groups(results)
    lines = [_line(group, found) for group in found if group.mode == "masked"]
    return "\n".join(lines) or "No masked run: nothing can be said about the masked loss."


def _finals(found: Sequence[Group]) -> Table:
    rows = []
    for group in found:
        cells = [_mean_and_std(group.finals(key).values()) for key in MEASURES]
        n = len(group.runs)
        rows.append((group.arch, group.arm_label, *cells, "1 (single seed)" if n == 1 else str(n)))
    columns = ("Architecture", "Mode", "Test Acc (%)", "Gen Gap (%)", "n")
    notes = ["std: population standard deviation over n seeds (ddof 0)."]
    if any(run.settings["script"] == "original" for group in found for run in group.runs):
        notes.append(
            "Runs of the original scripts took train accuracy, and so the gap, on augmented images during "
            "training; newer runs take it afterwards on clean images."
        )
    return Table("SUMMARY OF FINAL RESULTS (mean ± std)", columns, tuple(rows), tuple(notes), text=(0, 1))


def _mean_and_std(values: Iterable[float]) -> str:
    s = summarise(values)
    return f"{s.mean:.2f}" if s.n == 1 else f"{s.mean:.2f} ± {s.sd_population:.2f}"


def _differences(found: Sequence[Group]) -> Table:
    comparisons, notes = _comparisons(found)
    rows = [_row(c, key, name) for c in comparisons for key, name in MEASURES.items()]
    sizes = sorted({c.of(key).n for c in comparisons for key in MEASURES})
    notes += [sentence for n in sizes if (sentence := too_few(n))]
    if len(rows) > 1:
        notes.append(f"{len(rows)} comparisons, each p on its own: not corrected for their number.")
    columns = ("Architecture", "Difference", "Measure", "Points", "95 % interval", "n", "p")
    title = "PAIRED DIFFERENCES (same seeds; p of the exact sign-flip test)"
    return Table(title, columns, tuple(rows), tuple(notes), text=(0, 1, 2))


def _row(comparison: Comparison, key: str, name: str) -> tuple[str, ...]:
    p = comparison.of(key)
    arm = (comparison.left.arch, comparison.label, name, f"{p.mean_difference:+.2f}")
    if p.n == 1:
        return (*arm, "-", "1 (single seed)", "-")
    return (*arm, _interval(p), str(p.n), f"{p.p_value:.2g}")


def _comparisons(found: Sequence[Group]) -> tuple[list[Comparison], list[str]]:
    """What can be compared, by architecture, and a note on each thing that cannot or only in part."""
    made: list[Comparison] = []
    notes: list[str] = []
    for arch in dict.fromkeys(g.arch for g in found):
        for left_mode, right_mode in COMPARED:
            rights = [g for g in found if (g.arch, g.mode) == (arch, right_mode)]
            for left in (g for g in found if (g.arch, g.mode) == (arch, left_mode)):
                new = [c for c in (Comparison(left, right) for right in rights) if not _obstacle(c)]
                notes += [_left_out(c) for c in new if c.of("final_test_acc").unmatched]
                notes += [f"{arch} {c.label}: not compared, {_obstacle(c)}."
                          for c in (Comparison(left, right) for right in rights) if not new]  # fmt: skip
                made += new
    return made, notes


def _obstacle(c: Comparison) -> str:
    """Why the two arms cannot be compared; empty if they can."""
    settings = [c.left.runs[0].settings, c.right.runs[0].settings]
    both_weighted = "baseline" not in (c.left.mode, c.right.mode)
    apart = differing(settings, (*SHARED, "lambda_max") if both_weighted else SHARED)
    if "script" in apart:
        return "one was made by the original scripts"
    if apart:
        return "they differ in " + ", ".join(
            f"{k} ({shown(settings[0][k])}, {shown(settings[1][k])})" for k in apart
        )
    common = c.left.finals("final_test_acc").keys() & c.right.finals("final_test_acc").keys()
    return "" if common else "they have no seed in common"


def _left_out(c: Comparison) -> str:
    seeds = c.of("final_test_acc").unmatched
    return f"{c.left.arch} {c.label}: seeds without a partner left out: {', '.join(map(str, seeds))}."


def _line(group: Group, found: Sequence[Group]) -> str:
    comparisons = [c for c in _comparisons(found)[0] if c.left is group]
    against = {c.right.mode: c for c in reversed(comparisons)}
    sentences = [f"{_against_baseline(against.get('baseline'))}; {_clamp(group)}."]
    if "baseline" in against:
        gap = against["baseline"].of("final_gen_gap")
        sentences.append(f"In the generalization gap it was {_finding(gap)}.")
    if "half-loss" in against:
        control = against["half-loss"].of("final_test_acc")
        sentences.append(f"Against half-loss{_control(group)} test accuracy differed by {_finding(control)}.")
    return f"{group.label}: {' '.join(sentences)}"


def _control(group: Group) -> str:
    return ", the same loss with the masks left out," if _clamp_rule(group) == "hard" else ""


def _clamp_rule(group: Group) -> str:
    return group.runs[0].settings["clamp"] or "hard"  # the original scripts know no other


def _against_baseline(c: Comparison | None) -> str:
    if c is None:
        return "There is no baseline of equal settings and seeds, so nothing to compare with"
    p = c.of("final_test_acc")
    return f"With {_seeds(p.n)} the difference {c.label} in test accuracy was {_finding(p)}"


def _finding(p: Paired) -> str:
    if p.n == 1:
        return f"{p.mean_difference:+.2f} points: from a single seed nothing can be concluded"
    return f"{p.mean_difference:+.2f} points (95 % interval {_interval(p)}): {_seen(p)}"


def _seen(p: Paired) -> str:
    """What the interval and the sign-flip test allow to say, for two or more seeds."""
    if p.mean_difference == 0 and p.sd == 0:
        return f"no difference at all, the {p.n} seeds are equal one by one"
    if p.excludes_zero and too_few(p.n):
        return (
            f"a difference, if differences between seeds are normally distributed; without that assumption "
            f"{p.n} seeds cannot show one (their smallest possible p is {p.smallest_p:.2g})"
        )
    if p.excludes_zero != (p.p_value <= SIGNIFICANT):
        return f"undecided, interval and sign-flip test (p = {p.p_value:.2g}) disagree about a difference"
    if p.excludes_zero:
        return f"a difference was seen (sign-flip p = {p.p_value:.2g})"
    half = ((p.ci_high or 0.0) - (p.ci_low or 0.0)) / 2
    least = f"{float(f'{half:.2g}'):g} point{'s' * (f'{half:.2g}' != '1')}"  # two digits, no exponent
    return f"no difference shown, and {p.n} seeds could not show one below about {least}"


def _interval(p: Paired) -> str:
    return f"{p.ci_low:.2f} to {p.ci_high:.2f}"


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _clamp(group: Group) -> str:
    """How often the clamp was active over all steps, every epoch having equally many, and what that did."""
    rule = _clamp_rule(group)
    if rule == "none":
        return "there was no clamp, so the masked gradient reached the weights in every step"
    recorded = [
        run.history["clamp_active_fraction"] for run in group.runs if "clamp_active_fraction" in run.history
    ]
    fractions = np.concatenate(recorded) if recorded else np.zeros(0)
    fractions = fractions[np.isfinite(fractions)]
    if not fractions.size:
        return "how often the clamp was active is not recorded"
    return _hard_clamp(float(fractions.mean())) if rule == "hard" else _scaled(float(fractions.mean()), rule)


def _hard_clamp(active: float) -> str:
    if active == 1:
        return (
            "the clamp was active in 100 % of masked steps, so the masked gradient never reached the weights"
        )
    if active == 0:
        return "the clamp was never active, so the masked gradient reached the weights in every step"
    return (
        f"the clamp was active in {_percent(active)} of masked steps, so the masked gradient reached the weights "
        f"in {_percent(1 - active)} of them"
    )


def _scaled(active: float, rule: str) -> str:
    return f"the clamp ({rule}) scaled the masked gradient down in {_percent(active)} of masked steps and never cut it off"


def _percent(share: float) -> str:
    """Never 0 % or 100 % for a share that is neither."""
    digits = 1 if 0.001 <= share <= 0.999 or share in (0, 1) else 4
    return f"{100 * share:.{digits}f} %"
