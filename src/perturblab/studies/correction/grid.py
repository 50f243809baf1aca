"""``run``: what is missing of an experiment's grid, its tables, its verdict, and the page with the answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from perturblab.files import as_json, check_writable, keep_aside, read_json, sealed, write_atomic, writing_to
from perturblab.launch import Cell, Launch, Outcome
from perturblab.launch.cards import at_a_time, cards_for
from perturblab.launch.local import over
from perturblab.report.tables import Cell as Value
from perturblab.report.tables import csv_text, show
from perturblab.studies.correction import Run, Train, equal_lambda
from perturblab.studies.correction.layout import check_whole, data_sha256, file_sha256
from perturblab.studies.correction.planned import digests_of, folder, planned
from perturblab.studies.correction.provide import provide
from perturblab.studies.correction.records import (
    COLUMNS,
    EPOCH_COLUMNS,
    cell_record,
    per_combination,
    per_epoch,
)
from perturblab.studies.correction.stages import SUPPLIES, Stage, completed, is_record, record_file
from perturblab.studies.correction.summary import summary
from perturblab.studies.correction.verdicts import verdict
from perturblab.sweep import Plan, explain_failures, run_plan
from perturblab.terminal import UserError, say

SCHEMA_VERSION = 1


def run(settings: Run) -> None:
    """Run what is missing, then write the tables and the record, and say what the experiment shows."""
    check_possible(settings)
    for target in (Path(settings.output_filename), record_file(settings.output_filename)):
        check_writable(target)
    provide(settings)
    check_whole(settings.data, settings.base_model)
    s, sources = completed(settings, data_sha256(settings.data))
    cells = list(cells_of(s))
    plan = planned([cell for cell, _ in cells])
    extra = sum(control for _, control in cells)
    told = f" ({extra} of them controls, for the page only)" if extra else ""
    cards = cards_for([s], s.jobs)
    jobs = at_a_time(s.jobs, cards, s.per_gpu)
    say(f"{s.experiment}: {len(cells)} runs{told}, {jobs} at a time; {s.output_filename} will have the table")
    outcomes: list[Outcome] = []
    try:
        outcomes = carry_out(s, plan, jobs, over(cards, s.per_gpu, jobs))
    finally:  # also when stopped: what is done so far is in the tables
        stage = record(s, sources, cells)
        if any(
            one["status"] in ("done", "diverged") for one in stage["cells"]
        ):  # else an earlier table stays
            write_tables(s, stage)
    refuse_what_no_run_can_do(outcomes)
    if any(control for _, control in cells):
        stage["equivalence"] = angles(s, cells)
        write_tables(s, stage)
    explain_failures(plan, [one for one in outcomes if not diverged(one.cell)])
    tell(s, stage)


def check_possible(s: Run) -> None:
    """UserError before anything is built or trained, if no data could make the grid run."""
    size, corrected = s.batch_size, s.user_corrected_max_per_batch
    if corrected >= size:
        raise UserError(
            f"--batch_size {size}, --user_corrected_max_per_batch {corrected}: the corrected images leave no room for others"
        )
    filled = {name: getattr(s, name) or (1.0,) for name in SUPPLIES}
    if not list(s.model_copy(update=filled).grid()):
        raise UserError(f"{s.experiment}: --loss_type and --user_corrected_pool_size need one or more values")


# ---- the cells -------------------------------------------------------------------------------------------------------


def cells_of(s: Run) -> Iterator[tuple[Cell, bool]]:
    """The grid, and after it the controls (True)."""
    digests = digests_of(s.data, s.base_model)
    for one, control in [*((t, False) for t in s.grid()), *((t, True) for t in controls(s))]:
        yield Cell(one.name, one.model_copy(update=digests)), control


def controls(s: Run) -> Iterator[Train]:
    """Beside a curve over lambda: the imbalanced loss, and balanced at the lambda that should equal it."""
    if (
        not s.controls
        or len(s.lambda_weight) < 2
        or s.losses != ("balanced",)
        or not s.user_corrected_max_per_batch
    ):
        return
    equal = round(equal_lambda(s.batch_size, s.user_corrected_max_per_batch), 12)
    for loss, weight in (("imbalanced", s.lambda_weight[0]), ("balanced", equal)):
        if loss == "balanced" and weight in s.lambda_weight:
            continue
        twin = {"loss_type": (loss,), "lambda_weight": (weight,), "learning_rate": s.learning_rate[:1]}
        yield from s.model_copy(
            update={**twin, "user_corrected_pool_size": s.user_corrected_pool_size[:1]}
        ).grid()


# ---- running them ----------------------------------------------------------------------------------------------------


def carry_out(s: Run, plan: Plan, jobs: int, launch: Launch | None) -> list[Outcome]:
    """Run what is missing. A run that diverged before would again; its finding stays."""
    if not s.stop_grid_at_threshold:
        return run_plan(without_diverged(plan), jobs, launch)
    outcomes: list[Outcome] = []
    for cell in plan.cells:  # one after another: which are skipped must not depend on which was faster
        if cell.name not in skipped(s, plan.cells):
            outcomes += run_plan(without_diverged(planned([cell])), 1)
    return outcomes


def refuse_what_no_run_can_do(outcomes: Sequence[Outcome]) -> None:
    """UserError with the one reason for which every run failed: bad input, not bad luck of some."""
    if not outcomes or any(outcome.status != "failed" or diverged(outcome.cell) for outcome in outcomes):
        return
    runs = [(folder(outcome.cell), outcome.reason) for outcome in outcomes]
    reasons = {run.failure() if run.status == "failed" else reason for run, reason in runs}
    if len(reasons) == 1:
        raise UserError(reasons.pop())


def without_diverged(plan: Plan) -> Plan:
    return planned([cell for cell in plan.cells if not diverged(cell)])


def diverged(cell: Cell) -> bool:
    """Whether the run met a number that is not finite. It would again, so it is not tried again."""
    run = folder(cell)
    return run.status == "failed" and run.failure("kind") == "diverged"


def skipped(s: Run, cells: Sequence[Cell]) -> set[str]:
    """Cells that follow one of their loss that reached the threshold on validation, if that ends a grid (decision 5)."""
    reached: set[tuple[str, int | None]] = set()
    names: set[str] = set()
    for cell in cells if s.stop_grid_at_threshold else ():
        assert isinstance(cell.settings, Train)
        run, kind = folder(cell), (cell.settings.loss_type, cell.settings.seed)
        if kind in reached:
            names.add(cell.name)
        elif run.done and run.results()["val_accuracy"] >= s.accuracy_threshold:
            reached.add(kind)
    return names


# ---- what comes out --------------------------------------------------------------------------------------------------


def record(s: Run, sources: dict[str, str], cells: list[tuple[Cell, bool]]) -> Stage:
    """The experiment as ``experiments/NAME.json`` holds it."""
    left_out = skipped(s, [cell for cell, _ in cells])
    records = []
    for cell, control in cells:
        run = folder(cell)
        status = "skipped" if cell.name in left_out else "diverged" if diverged(cell) else run.status
        assert isinstance(cell.settings, Train)
        records.append(cell_record(cell.settings, run, status, control))
    complete = all(one["status"] in ("done", "diverged", "skipped") for one in records)
    settings = s.model_dump(
        mode="json",
        exclude={"jobs", "per_gpu", "device", "threads", "checkpoint_every", "num_workers", "data_dir"},
    )
    return {
        "schema_version": SCHEMA_VERSION, "experiment": s.experiment, "complete": complete, "settings": settings, "sources": sources,
        "data_sha256": data_sha256(s.data), "base_sha256": file_sha256(Path(s.base_model))[:16], "cells": records,
    }  # fmt: skip


def angles(s: Run, cells: list[tuple[Cell, bool]]) -> dict[str, list[float]]:
    from perturblab.studies.correction.equivalence import gradient_angles

    first = cells[0][0].settings
    assert isinstance(first, Train)
    return gradient_angles(first)


def write_tables(s: Run, stage: Stage) -> None:
    """The row per combination, the rows per epoch of each seed, and the record."""
    table, path = Path(s.output_filename), record_file(s.output_filename)
    before = record_in(path)
    if before and others_in(before, stage):
        what = f"{before['experiment']}, {len(before['cells'])} runs"
        say(f"{table} now holds {s.experiment}, {len(stage['cells'])} runs; it held {what} of other settings")
    write_table(table, COLUMNS, per_combination(stage["cells"]))
    for seed, rows in per_epoch(stage["cells"]).items():  # the original script's have the same columns
        name = f"{table.stem}_run{seed}.csv"
        write_table(table.with_name(name), EPOCH_COLUMNS, rows, with_record=before is not None)
    if before is None and path.exists():
        keep_aside(path, path.read_bytes())
    write_atomic(path, as_json(sealed(stage)))


def others_in(before: Stage, stage: Stage) -> bool:
    """Whether a run that stands in the record is not in the new one."""
    return not {cell["run_id"] for cell in before["cells"]} <= {cell["run_id"] for cell in stage["cells"]}


def record_in(path: Path) -> Stage | None:
    """What the file holds; None if it is missing or no record of ours."""
    try:
        content: Stage = read_json(path)
    except UserError:
        return None
    return content if is_record(content) else None


def write_table(
    path: Path, columns: Sequence[str], rows: Sequence[Sequence[Value]], with_record: bool = True
) -> None:
    """Replace a table that is ours: equal to this one, or with the same columns and, if that counts, beside a record."""
    data = csv_text(columns, rows).encode()
    with writing_to(path):
        there = path.read_bytes() if path.exists() else data
    if there != data and not (with_record and there.splitlines()[:1] == data.splitlines()[:1]):
        keep_aside(path, there)
    write_atomic(path, data)


def tell(s: Run, stage: Stage) -> None:
    """The table, the best combination, the document's check, the figures and the page."""
    show(summary(stage))
    found = verdict(stage)
    say(f"{s.experiment}: {found.word}. {' '.join(found.sentences)}")
    from perturblab.studies.correction.answers import draw, finished

    experiments = Path(s.output_filename).parent
    if finished(experiments):
        say(f"the answers so far: {draw(experiments, Path(s.plots_dir))}")
