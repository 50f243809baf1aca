"""What each of the document's four stages asks, answered from the experiment's record (document 003, "What to check")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from perturblab.report.statistics import Paired, paired, rank_correlation, too_few
from perturblab.studies.correction.rates import GUESSING, rate_marks
from perturblab.studies.correction.summary import (
    Record,
    Stage,
    best,
    combination,
    done,
    main_cells,
    mean,
    of_best,
    percent,
)


@dataclass(frozen=True)
class Verdict:
    """``word``: PASS, FAIL or UNDECIDED."""

    word: str
    sentences: tuple[str, ...]


def verdict(stage: Stage) -> Verdict:
    """The check of the document's stage; of an experiment of another name, whether its best run reached the threshold."""
    if not stage["complete"]:
        left = sum(cell["status"] not in ("done", "diverged", "skipped") for cell in stage["cells"])
        return Verdict("UNDECIDED", (f"{left} of {len(stage['cells'])} runs are not done.",))
    return CHECKS.get(stage["experiment"], _reaches_threshold)(stage)


# ---- stage 1: overfit_test -------------------------------------------------------------------------------------------


def _overfits(stage: Stage) -> Verdict:
    threshold = stage["settings"]["accuracy_threshold"]
    found = [_learns_by_heart(cell, threshold) for cell in main_cells(stage)]
    problems = [
        f"{cell['loss_type'].capitalize()}: {what}"
        for cell, (what, _) in zip(main_cells(stage), found, strict=True)
        if what
    ]
    sentences = tuple(told for _, told in found if told)
    return Verdict("FAIL" if problems else "PASS", (*(f"{p}." for p in problems), *sentences))


def _learns_by_heart(cell: Record, threshold: float) -> tuple[str, str]:
    """What is wrong, empty if nothing is, and what was seen."""
    if cell["status"] != "done":
        return cell["reason"] or cell["status"], ""
    losses, accuracy = cell["history"]["train_loss"], max(cell["history"]["train_accuracy"])
    rises = [after - before for before, after in pairwise(losses) if after > before]
    wrong = []
    if cell["result"]["best_val_loss"] >= GUESSING:
        wrong.append(
            f"it only guesses (learning rate {cell['learning_rate']:g} is too high, try --learning_rate 0.001)"
        )
    if losses[-1] > 0.1 * losses[0]:
        wrong.append("the training loss did not fall to a tenth")
    if accuracy < threshold:
        wrong.append(f"train accuracy stayed below {percent(threshold)}")
    if not cell["images_logged"]:
        wrong.append("the images are not in the event file")
    rose = f"rose in {len(rises)} of {len(losses)} epochs" + (
        f", by {max(rises):.2g} at most" if rises else ""
    )
    told = (
        f"{cell['loss_type'].capitalize()}: training loss {losses[0]:.3g} to {losses[-1]:.2g} nats, it {rose}; train "
        f"accuracy reached {percent(accuracy)}; no NaN; "
        + ("images logged." if cell["images_logged"] else "images missing.")
    )
    return "; ".join(wrong), told


# ---- stage 2: lr_search ----------------------------------------------------------------------------------------------


def _rates(stage: Stage) -> Verdict:
    chosen = of_best(main_cells(stage), "learning_rate")
    if not chosen:
        return Verdict("FAIL", ("Every learning rate diverged; try lower ones.",))
    marks = rate_marks(stage)
    named = {
        mark: sorted({cell["learning_rate"] for cell, m in marks if m == mark})
        for mark in ("diverging", "too slow")
    }
    rate, rates = chosen[0]["learning_rate"], sorted({cell["learning_rate"] for cell in main_cells(stage)})
    told = [f"Best learning rate {rate:g} by validation ({percent(mean(chosen, 'val_accuracy'))})."]
    told += [
        f"{mark.capitalize()}: {', '.join(f'{r:g}' for r in found)}."
        for mark, found in named.items()
        if found
    ]
    if len(rates) == 1:
        return Verdict("UNDECIDED", (*told, "It is the only one tried."))
    if rate in (rates[0], rates[-1]):
        return Verdict(
            "UNDECIDED", (*told, "The best stands at the edge of the rates tried; try more beyond it.")
        )
    return Verdict("PASS", tuple(told))


# ---- stage 3: lambda_search ------------------------------------------------------------------------------------------


def _lambdas(stage: Stage) -> Verdict:
    balanced = [cell for cell in main_cells(stage) if cell["loss_type"] == "balanced"]
    chosen = of_best(balanced, "lambda_weight")
    if not chosen:
        return Verdict("FAIL", ("Every lambda diverged; try a lower learning rate.",))
    before = fmean(cell["result"]["before"]["val_accuracy"] for cell in chosen)
    after = mean(chosen, "val_accuracy")
    told = [
        f"Best lambda {chosen[0]['lambda_weight']:g} by validation: {percent(after)}, from {percent(before)} before."
    ]
    for key, name in (("train_corr_loss", "corrected"), ("train_conf_loss", "confounded")):
        told.append(_trend(done(balanced), key, name))
    told += [sentence for sentence in (_controls(stage),) if sentence]
    if after - before <= 0.01:
        return Verdict("FAIL", tuple(told))
    flat = _flat(balanced)
    return Verdict("UNDECIDED" if flat else "PASS", (told[0], *([flat] if flat else []), *told[1:]))


def _flat(cells: Sequence[Record]) -> str:
    """A sentence if the lambdas differ by no more than two validation images."""
    seen = [c["result"]["val_accuracy"] for c in done(cells)]
    images = round((max(seen) - min(seen)) * min(c["result"]["n"]["validation"] for c in done(cells)))
    return (
        f"But all lambdas lie within {images} validation image{'s' * (images != 1)}: none is shown to be better."
        if images <= 2
        else ""
    )


def _trend(cells: Sequence[Record], key: str, name: str) -> str:
    lambdas, losses = [c["lambda_weight"] for c in cells], [c["result"][key] for c in cells]
    found = rank_correlation(lambdas, losses)
    low, high = min(cells, key=lambda c: c["lambda_weight"]), max(cells, key=lambda c: c["lambda_weight"])
    told = f"The loss on {name} images is {low['result'][key]:.2g} nats at lambda {low['lambda_weight']:g} and {high['result'][key]:.2g} at {high['lambda_weight']:g}"
    return (
        f"{told}."
        if found.rho is None
        else f"{told} (rank correlation with lambda {found.rho:+.2f}, p {found.p_value:.2g}, n {found.n})."
    )


def _controls(stage: Stage) -> str:
    twins = {cell["loss_type"]: cell for cell in done(stage["cells"]) if cell["control"] and not cell["seed"]}
    if twins.keys() != {"balanced", "imbalanced"}:
        return ""
    one, other = twins["imbalanced"], twins["balanced"]
    apart = abs(one["result"]["test_accuracy"] - other["result"]["test_accuracy"])
    return (
        f"Imbalanced is Balanced at lambda k/(B-k) = {other['lambda_weight']:.4f}: trained side by side their test "
        f"accuracies differ by {100 * apart:.2f} points."
    )


# ---- stage 4: full_grid_search ---------------------------------------------------------------------------------------


def _grid(stage: Stage) -> Verdict:
    top = best(main_cells(stage))
    if top is None:
        return Verdict("FAIL", ("Every run diverged.",))
    told, words = [], []
    for weight, difference in losses_compared(stage).items():
        told.append(f"Balanced (lambda {weight:g}) - Imbalanced in test accuracy: {finding(difference)}.")
        words.append(_word(difference))
    pools = pool_means(stage)
    if len(pools) > 1:
        told.append(
            "Mean test accuracy by pool: "
            + ", ".join(f"{pool}: {percent(mean)}" for pool, mean in pools.items())
            + "."
        )
    told.append(
        f"Best by validation: {combination(top)}, {percent(top['result']['test_accuracy'])} on the plain test digits."
    )
    return Verdict(words[0] if len(set(words)) == 1 else "UNDECIDED", tuple(told))


def losses_compared(stage: Stage, key: str = "test_accuracy") -> dict[float, Paired]:
    """By lambda: Balanced less Imbalanced, seed by seed, each a mean over equal learning rates and pools; in points."""
    cells = done(main_cells(stage))
    plain = {_place(c): c["result"][key] for c in cells if c["loss_type"] == "imbalanced"}
    found = {}
    for weight in sorted({c["lambda_weight"] for c in cells if c["loss_type"] == "balanced"}):
        ours = {
            _place(c): c["result"][key]
            for c in cells
            if c["loss_type"] == "balanced" and c["lambda_weight"] == weight
        }
        both = ours.keys() & plain.keys()
        seeds = sorted({place[2] for place in both})
        sides = [
            {s: 100 * fmean(side[p] for p in both if p[2] == s) for s in seeds} for side in (ours, plain)
        ]
        if seeds:
            found[weight] = paired(*sides)
    return found


def _place(cell: Record) -> tuple[float, int, int]:
    return cell["learning_rate"], cell["user_corrected_pool_size"], cell["seed"] or 0


def pool_means(stage: Stage) -> dict[int, float]:
    cells = done(main_cells(stage))
    pools = sorted({c["user_corrected_pool_size"] for c in cells})
    return {
        p: fmean(c["result"]["test_accuracy"] for c in cells if c["user_corrected_pool_size"] == p)
        for p in pools
    }


def finding(p: Paired) -> str:
    """A difference in points with what may be concluded from it."""
    if p.n == 1:
        return f"{p.mean_difference:+.2f} points (single seed: nothing can be concluded; --seeds 0 1 2 3 4 5 runs six)"
    told = f"{p.mean_difference:+.2f} points (n = {p.n} seeds, 95 % interval {p.ci_low:.2f} to {p.ci_high:.2f}, sign-flip p {p.p_value:.2g})"
    few = too_few(p.n)
    return f"{told}; {few[0].lower()}{few[1:-1]}" if few else told


def _word(p: Paired) -> str:
    """PASS where the document's hypothesis (Balanced ahead) was seen, FAIL where its opposite was."""
    if p.n == 1 or not p.excludes_zero or p.p_value > 0.05:
        return "UNDECIDED"
    return "PASS" if p.mean_difference > 0 else "FAIL"


def _reaches_threshold(stage: Stage) -> Verdict:
    top, threshold = best(main_cells(stage)), stage["settings"]["accuracy_threshold"]
    if top is None:
        return Verdict("FAIL", ("Every run diverged.",))
    reached = top["result"]["val_accuracy"] >= threshold
    told = f"Best by validation: {combination(top)}, {percent(top['result']['val_accuracy'])} (threshold {percent(threshold)})."
    return Verdict("PASS" if reached else "FAIL", (told,))


CHECKS = {
    "overfit_test": _overfits,
    "lr_search": _rates,
    "lambda_search": _lambdas,
    "full_grid_search": _grid,
}
