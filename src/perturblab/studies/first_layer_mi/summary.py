"""What the finished runs of first-layer-mi say, in numbers and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from perturblab.report.groups import alike
from perturblab.report.reading import Floats
from perturblab.report.statistics import RankCorrelation, rank_correlation, summarise
from perturblab.report.tables import Table
from perturblab.studies.first_layer_mi.results import SETTINGS, Result

Value = TypeVar("Value", float, Floats)


@dataclass(frozen=True)
class Units:
    """In what information is shown; the files hold nats."""

    name: Literal["nats", "bits"]

    def of(self, nats: Value) -> Value:
        return nats if self.name == "nats" else nats / math.log(2)


ACCURACIES = {
    "final_train_acc_clean": "Train (%)",
    "final_test_acc": "Test (%)",
    "final_gen_gap": "Gap (points)",
}
INFORMATION = {
    "final_mi_full": "MI full",
    "final_mean_mi_masked": "MI masked",
    "final_mi_diff": "Diff",
    "final_mi_diff_mm_nats": "Diff (MM)",
    "final_mi_full_null_nats": "Null",
}


def summary(results: Sequence[Result], units: Units) -> Table:
    """The final numbers of each group, mean and population std over seeds."""
    rows = []
    for group in alike(results, SETTINGS):
        n, sizes = len(group.runs), {run.finals.get("final_n_images") for run in group.runs}
        cells = [_mean_and_std(group.runs, key, Units("nats")) for key in ACCURACIES]
        cells += [_mean_and_std(group.runs, key, units) for key in INFORMATION]
        images = f"{max(sizes):,.0f}" if None not in sizes else "-"  # type: ignore[type-var]
        rows.append(
            (group.runs[0].arch, group.variant, *cells, images, "1 (single seed)" if n == 1 else str(n))
        )
    columns = ("Architecture", "Variant", *ACCURACIES.values(), *INFORMATION.values(), "Images", "n")
    if not any(row[1] for row in rows):
        columns, rows = columns[:1] + columns[2:], [row[:1] + row[2:] for row in rows]
    title = f"FINAL RESULTS (mean ± std over seeds; information in {units.name})"
    return Table(
        title, columns, tuple(rows), tuple(_notes(results)), text=(0, 1) if "Variant" in columns else (0,)
    )


def _mean_and_std(runs: Sequence[Result], key: str, units: Units) -> str:
    values = [units.of(run.finals[key]) for run in runs if key in run.finals]
    if len(values) < len(runs):
        return "-"
    s, digits = summarise(values), 2 if key in ACCURACIES else 3
    return f"{s.mean:.{digits}f}" if s.n == 1 else f"{s.mean:.{digits}f} ± {s.sd_population:.{digits}f}"


def _notes(results: Sequence[Result]) -> list[str]:
    """What a reader must know about the numbers."""
    notes = [
        "Diff: MI full - mean MI masked, plug-in; MM: with the bias correction of Miller and Madow; Null: what the "
        "same predictions read with permuted labels, all of it bias. std: population (ddof 0)."
    ]
    if any(run.settings["script"] == "original" for run in results):
        notes.append(
            "Runs of the original scripts hold nats, whatever their document says of bits, and lack the last epoch "
            "in their histories."
        )
    if apart := _not_comparable(results):
        notes.append(apart)
    final, during = (
        {run.finals.get(key) for run in results} for key in ("final_n_images", "history_n_images")
    )
    if final != during:
        notes.append(
            "During training information is measured on fewer or other images than at the end: the bias differs, so "
            "the last point of a curve is not the final number."
        )
    return notes


def _not_comparable(results: Sequence[Result]) -> str:
    """A sentence if the final numbers were measured in unlike ways."""
    measured = {
        (run.finals.get("final_n_images"), run.settings["mi_split"], run.settings["dataset"])
        for run in results
    }
    if len(measured) == 1:
        return ""
    return (
        "Not all information was measured on equally many images of one set: its bias differs, so these numbers are "
        "not comparable and their correlation means little."
    )


def said(results: Sequence[Result]) -> str:
    """What the runs show about information lost and generalisation, and what they cannot show."""
    single = [group.runs[0] for group in alike(results, SETTINGS) if len(group.runs) == 1]
    sentences = [*correlations(results)]
    if single:
        names = ", ".join(dict.fromkeys(run.arch for run in single))
        sentences.append(f"Single seeds, whose spread is unknown: {names}.")
    if apart := _not_comparable(results):
        sentences.append(apart)
    return "\n".join(sentences)


def correlations(results: Sequence[Result]) -> list[str]:
    """Rank correlation of MI diff and generalisation gap, over runs and over the means of architectures."""
    if len(results) == 1:
        return ["A single run shows no relation of MI diff and generalization gap."]
    gaps, diffs = ([run.finals[key] for run in results] for key in ("final_gen_gap", "final_mi_diff"))
    archs = [run.arch for run in results]
    over_runs = _correlation(f"{len(results)} runs", rank_correlation(gaps, diffs))
    if not 1 < len(set(archs)) < len(archs):
        return [over_runs]
    means = rank_correlation(gaps, diffs, archs)
    return [
        f"{over_runs} (runs of one architecture are not independent: p is too small)",
        _correlation(f"means of {means.n} architectures", means),
    ]


def _correlation(over: str, found: RankCorrelation) -> str:
    if found.rho is None:
        return f"{over}: {found.reason}"
    rho = f"{over}: Spearman's rho of MI diff and generalization gap {found.rho:+.2f}"
    if found.ci_low is None or found.ci_high is None:
        return f"{rho} ({found.reason}); nothing can be concluded"
    interval = f"(95 % interval {found.ci_low:+.2f} to {found.ci_high:+.2f}, p = {found.p_value:.2g})"
    if found.ci_low * found.ci_high <= 0:
        return f"{rho} {interval}; no relation shown"
    return f"{rho} {interval}; {'they rise together' if found.rho > 0 else 'one rises as the other falls'}"
