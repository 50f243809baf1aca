"""The document's questions, answered on one page by what the finished experiments measured."""

from __future__ import annotations

from pathlib import Path

from perturblab.report.page import Figure, Page, Section, write_page
from perturblab.report.tables import Table
from perturblab.studies.correction import Visualize
from perturblab.studies.correction.curves import SEEN, Drawn
from perturblab.studies.correction.figures import FIGURES, reliance, reliance_rows
from perturblab.studies.correction.stages import stages_in
from perturblab.studies.correction.summary import Stage, done, main_cells, of_best, percent, seen, summary
from perturblab.studies.correction.verdicts import finding, losses_compared, pool_means, verdict
from perturblab.terminal import UserError, say

ORDER = ("full_grid_search", "lambda_search", "lr_search", "overfit_test")
"""Which experiment a question about the final networks is answered from: the first that is there."""
PAGE = "correction.html"


def visualize(s: Visualize) -> None:
    """Draw everything again and say where the page is."""
    say(f"{draw(Path(s.experiments_dir), Path(s.plots_dir))}")


def finished(experiments: Path) -> dict[str, Stage]:
    """The experiments in a folder that have a finished run, by name."""
    return {name: stage for name, stage in stages_in(experiments).items() if done(main_cells(stage))}


def draw(experiments: Path, plots: Path) -> Path:
    """Figures and page from the records in ``experiments``; the page's path. UserError if there is no record."""
    stages = finished(experiments)
    if not stages:
        raise UserError(
            f"no finished experiment in {experiments}; perturblab correction run --experiment overfit_test makes one"
        )
    drawn = {
        name: FIGURES.get(name, FIGURES["full_grid_search"])(stage, plots)
        for name, stage in stages.items()
        if name in FIGURES
    }
    path = plots / PAGE
    write_page(page(stages, drawn, plots), path)
    return path


def page(stages: dict[str, Stage], drawn: dict[str, list[Drawn]], plots: Path) -> Page:
    final = stages[next(name for name in (*ORDER, *stages) if name in stages)]
    settings = final["settings"]
    questions = [
        weighting(stages.get("full_grid_search"), stages.get("lambda_search"), drawn),
        how_many(stages, drawn),
        which_lambda(stages.get("lambda_search"), drawn),
        still_the_dot(final, plots),
        Section(
            "How does this compare with Lagrangian constraint optimisation?",
            "Not measured: it is not built here yet.",
        ),
    ]
    checks = [stage_section(name, stages[name], drawn) for name in reversed(ORDER) if name in stages]
    others = [stage_section(name, stage, drawn) for name, stage in stages.items() if name not in ORDER]
    lead = (
        f"A network that tells 0 from 8 by a dot is trained on with corrected 8s, {settings['user_corrected_max_per_batch']} in each "
        f"batch of {settings['batch_size']}. Epochs and settings are {seen(final)}. What is not measured yet says which command measures it."
    )
    return Page(
        "Correcting a shortcut: what was measured",
        lead,
        (*questions, *checks, *others),
        "Made by perturblab correction.",
    )


def missing(heading: str, experiment: str) -> Section:
    return Section(
        heading, "Not measured yet.", (f"`perturblab correction run --experiment {experiment}` measures it.",)
    )


# ---- the document's questions ----------------------------------------------------------------------------------------


def weighting(grid: Stage | None, search: Stage | None, drawn: dict[str, list[Drawn]]) -> Section:
    heading = "Does explicit weighting (Balanced) help more than implicit (Imbalanced)?"
    compared = losses_compared(grid) if grid else {}
    if grid is None or not compared:
        return missing(heading, "full_grid_search")
    word = verdict(grid).word
    answer = {"PASS": "PASS: Balanced was ahead.", "FAIL": "FAIL: Imbalanced was ahead."}.get(
        word, "UNDECIDED: no difference is shown."
    )
    told = [
        f"Balanced (lambda {weight:g}) less Imbalanced, test accuracy on plain digits: {finding(p)}."
        for weight, p in compared.items()
    ]
    toggled = losses_compared_toggled(grid)
    told += [
        f"The same with the dots moved to the 0s: lambda {weight:g} {text}."
        for weight, text in toggled.items()
    ]
    told.append(
        "By arithmetic Imbalanced is Balanced at lambda = k / (B - k), up to a factor that Adam hardly sees, so the comparison is one "
        "point of the lambda curve."
    )
    angles = [d for d in drawn.get("lambda_search", []) if d.path.name == "equal_lambda.png"]
    if search is None:
        told.append("`perturblab correction run --experiment lambda_search` draws the proof.")
    return Section(heading, answer, tuple(told), figures=embedded(angles))


def losses_compared_toggled(grid: Stage) -> dict[float, str]:
    """The comparison on the images whose dots are where they never were in training."""
    for cell in done(main_cells(grid)):
        cell["result"]["toggled"] = cell["result"]["reliance"]["accuracy_toggled"]
    return {weight: finding(p) for weight, p in losses_compared(grid, "toggled").items()}


def how_many(stages: dict[str, Stage], drawn: dict[str, list[Drawn]]) -> Section:
    heading = "How many corrected samples do we need?"
    name = "pool_search" if "pool_search" in stages else "full_grid_search"
    grid = stages.get(name)
    if grid is None:
        return missing(heading, "pool_search")
    threshold = grid["settings"]["accuracy_threshold"]
    cells = done(main_cells(grid))
    reached = sorted(
        {c["user_corrected_pool_size"] for c in cells if c["result"]["val_accuracy"] >= threshold}
    )
    tried = sorted({c["user_corrected_pool_size"] for c in cells})
    if not reached:
        answer = f"No pool up to {tried[-1]} reached {percent(threshold)} on validation."
    elif reached[0] == tried[0] > 1:
        answer = f"At most {reached[0]}: the smallest pool tried reached {percent(threshold)} on validation."
    else:
        answer = (
            f"{reached[0]}: the smallest of the pools tried that reached {percent(threshold)} on validation."
        )
    means = ", ".join(f"{pool}: {percent(mean)}" for pool, mean in pool_means(grid).items())
    told: tuple[str, ...] = (
        f"Mean test accuracy on plain digits by pool: {means}.",
        "That is on plain digits. With the dots on the 0s (right) a network can still be led by them, however large the pool.",
    )
    if name != "pool_search":
        told = (*told, "`perturblab correction run --experiment pool_search` tries 1 to 200.")
    return Section(heading, answer, told, figures=embedded(drawn.get(name, [])))


def which_lambda(search: Stage | None, drawn: dict[str, list[Drawn]]) -> Section:
    heading = "What is the best lambda?"
    balanced = [c for c in main_cells(search) if c["loss_type"] == "balanced"] if search else []
    chosen = of_best(balanced, "lambda_weight")
    if search is None or not chosen:
        return missing(heading, "lambda_search")
    spread = [c["result"]["val_accuracy"] for c in done(balanced)]
    answer = f"{chosen[0]['lambda_weight']:g} by validation, but all lambdas lie within {100 * (max(spread) - min(spread)):.2f} points."
    curves = [d for d in drawn.get("lambda_search", []) if d.path.name != "equal_lambda.png"]
    return Section(heading, answer, verdict(search).sentences, figures=embedded(curves))


def still_the_dot(final: Stage, plots: Path) -> Section:
    heading = "Does the model still rely on dots after correction?"
    found = reliance_rows(final)
    after = {name: row for name, row in found.items() if name != "before"}
    worst = max(after.values(), key=lambda row: row["flip_rate"])
    relies = worst["flip_rate"] > 0.01
    answer = (
        f"{'Yes' if relies else 'Hardly'}: {percent(worst['flip_rate'])} of the test digits change class when their dot is added or "
        f"removed ({percent(found['before']['flip_rate'])} before)."
    )
    told = (
        "Every dotted training image is an 8 also during correction, so nothing teaches the network that a dotted 0 is a 0: plain digits, the "
        "document's measure, cannot show it. Worst group: the lowest accuracy among plain and dotted 0s and 8s.",
    )
    names = (*SEEN, "worst_group_accuracy", "accuracy_drop", "flip_rate")
    heads = (*SEEN.values(), "worst group", "drop when moved", "flips")
    rows = tuple((name, *(f"{100 * row[key]:.2f}" for key in names)) for name, row in found.items())
    notes = (
        f"Percent of {found['before']['n']} test digits; the best run of each loss of {final['experiment']} by validation.",
    )
    table = Table("Accuracy and reliance on the dot", ("Network", *heads), rows, notes)
    return Section(heading, answer, told, (table,), embedded(reliance(final, plots)))


# ---- the document's stages -------------------------------------------------------------------------------------------


def stage_section(name: str, stage: Stage, drawn: dict[str, list[Drawn]]) -> Section:
    found = verdict(stage)
    shown = (
        drawn.get(name, []) if name in ("overfit_test", "lr_search") else []
    )  # the others' stand with the questions
    sources = [f"`{key}`: {value}." for key, value in stage["sources"].items()]
    return Section(
        f"Check: {name}",
        f"{found.word}: {found.sentences[0]}",
        (*found.sentences[1:], *sources),
        (summary(stage),),
        embedded(shown),
    )


def embedded(drawn: list[Drawn]) -> tuple[Figure, ...]:
    return tuple(Figure(one.path.read_bytes(), one.caption) for one in drawn)
