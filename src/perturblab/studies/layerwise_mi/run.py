"""One training run of layerwise-mi: train, measure every epoch, export the best and the final checkpoint."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer

from perturblab.attempts import perform
from perturblab.augment import AUGMENTS
from perturblab.checkpoints import read_checkpoint, to_bytes, to_cpu
from perturblab.experiment import check_trainable, export, percent, prepare, resolved
from perturblab.images import ImageSet, ShuffledSource, stratified
from perturblab.measure import score
from perturblab.models import MODELS
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.runs import SCHEMA_VERSION, Row, RunFolder, run_folder
from perturblab.schedules import cosine
from perturblab.signals import StopFlag, stop_on_signals
from perturblab.sites import SteppedModel
from perturblab.streams import seeded, stream
from perturblab.studies.layerwise_mi import Train, best, seeded_name
from perturblab.studies.layerwise_mi.each import each_model
from perturblab.terminal import say, warn
from perturblab.train import Decision, Epoch, Recipe, fit

HELD_OUT = 5_000  # validation images of --select-on val, and at most one in ten
HEAD = "fc512x2"  # the document's: two hidden layers of 512 with dropout
SHOWN_EVERY = 10  # epochs; the first and the last are always shown


def train(settings: Train) -> None:
    """Run (or go on with, or only export) the run that these settings name, or one for each model."""
    if settings.model == "all":
        each_model(settings, lambda one: ending(one, folder(one).results()))
        return
    s, run = resolved(settings), folder(settings)
    with stop_on_signals() as stop:
        perform(run, partial(work, s, settings, stop), partial(export, settings.exports), stop.check)
    found = run.results()
    if found["target_epoch"] is None:  # told once, as the warning that it is
        say(done(settings, found))
        warn(f"{s.model}: {target(found)}; try more --epochs")
    else:
        say(ending(settings, found))


def folder(settings: Train) -> RunFolder:
    s = resolved(settings)
    return run_folder(s, seeded_name(s.model, s.seed), s.runs_dir)


def work(s: Train, asked: Train, stop: StopFlag, run: RunFolder) -> None:
    ready = prepare(s, run, asked.exports)
    held_out = validation(s, ready.train)
    sets = {"train": ready.train[~held_out], "val": ready.train[held_out], "test": ready.test}
    check_trainable(sets["train"], s.batch_size, s.dataset)
    model = build(s, ready.train).to(ready.device)
    sgd = torch.optim.SGD(
        model.parameters(), lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay, fused=True
    )
    source = ShuffledSource(sets["train"], s.batch_size, s.random_seed, AUGMENTS[s.augment])

    for epoch in fit(run, model, CrossEntropy(), source, recipe(s, sgd), stop, partial(decide, s)):
        row = measure(s, model, epoch, sets, run.rows)
        best.keep(s, run, row, partial(checkpoint, s, run, row, model, sgd))
        tell(s, row, run.rows)
        run.log(**row)
    finish(s, run, held_out)


def validation(s: Train, images: ImageSet) -> torch.Tensor:
    """Which train images are held out to select the best epoch on: bool ``[n]``, none unless asked for."""
    n = min(HELD_OUT, len(images) // 10) if s.select_on == "val" else 0
    return stratified(images.labels, n, stream(s.random_seed, "validation"))


def build(s: Any, images: ImageSet) -> SteppedModel:
    channels, size = images.images.shape[1], images.images.shape[-1]
    with seeded(s.random_seed, "init"):
        return MODELS[s.model](
            classes=len(images.classes), channels=channels, width=s.width, size=size, head=HEAD
        )


def recipe(s: Train, sgd: Optimizer) -> Recipe:
    """SGD under a cosine to 0, per epoch. The optimiser is handed over: the best checkpoint holds its state."""
    return Recipe(
        epochs=s.epochs,
        optimizer=lambda parameters: sgd,
        lr=cosine(s.lr),
        seed=s.random_seed,
        precision=s.precision,
        compile=s.compile,
        checkpoint_every_s=s.checkpoint_every,
    )


def decide(s: Train, rows: list[Row]) -> Decision:
    """Stop once the target is reached, if that was asked for."""
    return Decision(s.stop_at_target and bool(rows) and rows[-1]["target_reached"], "target accuracy reached")


def measure(s: Train, model: SteppedModel, epoch: Epoch, sets: dict[str, ImageSet], rows: list[Row]) -> Row:
    """The epoch's row: accuracies as fractions, None where this epoch is not measured."""
    due = epoch.number % s.clean_every == 0 or epoch.number == s.epochs
    clean = score(model, sets["train"], precision=s.precision).accuracy if due else None
    val = score(model, sets["val"], precision=s.precision).accuracy if len(sets["val"]) else None
    test = score(model, sets["test"], precision=s.precision)
    reached = clean is not None and (percent(clean) or 0) >= s.target_acc
    return {
        "kind": "epoch", "epoch": epoch.number, "lr": epoch.lr, "loss_full": epoch.means["loss_full"],
        "train_acc_online": epoch.accuracy_online, "train_acc_clean": clean, "val_acc": val,
        "test_acc": test.accuracy, "test_loss": test.loss,
        "target_reached": reached or bool(rows and rows[-1]["target_reached"]),
    }  # fmt: skip


def tell(s: Train, row: Row, before: list[Row]) -> None:
    """A line every tenth epoch, and one when the target is reached."""
    number = row["epoch"]
    if number % SHOWN_EVERY == 0 or number in (1, s.epochs):
        names = {"train": "train_acc_clean", "val": "val_acc", "test": "test_acc"}
        shown = "".join(f"  {n} {100 * row[key]:.2f} %" for n, key in names.items() if row[key] is not None)
        say(f"{s.model} epoch {number}/{s.epochs}  loss {row['loss_full']:.4f}{shown}")
    if row["target_reached"] and not (before and before[-1]["target_reached"]):
        then = "stopping" if s.stop_at_target else "training goes on"
        say(f"{s.model}: {s.target_acc:g} % clean train accuracy reached in epoch {number}; {then}")


# ---- what a finished run leaves ---------------------------------------------------------------------------------


def checkpoint(s: Train, run: RunFolder, row: Row, model: SteppedModel, sgd: Optimizer) -> dict[str, Any]:
    """The best checkpoint: the document's keys, of which ``epoch`` counts from 0, then ours."""
    state = {"model": model.state_dict(), "epoch": row["epoch"] - 1, "optimizer": sgd.state_dict()}
    return {**state, **about(s, run, row), "selected_on": s.select_on}


def about(s: Train, run: RunFolder, row: Row) -> dict[str, Any]:
    """What both checkpoints say about themselves; accuracies in percent, train on clean images."""
    said = {name: getattr(s, name) for name in ("seed", "width", "dataset", "normalize")}
    return {
        "train_acc": percent(row["train_acc_clean"]), "test_acc": percent(row["test_acc"]), "arch": s.model, **said,
        "run_id": run.id, "schema_version": SCHEMA_VERSION,
    }  # fmt: skip


def finish(s: Train, run: RunFolder, held_out: torch.Tensor) -> None:
    """Write the documented checkpoints and the results into the run folder, which makes the run done."""
    last = run.rows[-1]
    state = read_checkpoint(run.checkpoints()[-1])
    final = {"model": state["model"], "epoch": last["epoch"], "optimizer": state["optimizer"]}
    final |= {**about(s, run, last), "selected_on": ""}
    run.write_checked("final.pt", to_bytes(to_cpu(final)))
    run.write_checked("best.pt", best.best(s, run))
    run.finish({**results(s, run.rows), "val_index": held_out.nonzero()[:, 0].tolist()})


def results(s: Train, rows: list[Row]) -> dict[str, Any]:
    """The run in short; accuracies in percent."""
    chosen = rows[best.best_epoch(s, rows) - 1]
    reached = [row["epoch"] for row in rows if row["target_reached"]]
    return {
        "model": s.model,
        "seed": s.seed,
        "epochs_trained": len(rows),
        "selected_on": s.select_on,
        "best_epoch": chosen["epoch"],
        "best_test_acc": percent(chosen["test_acc"]),
        "best_train_acc": percent(chosen["train_acc_clean"]),
        "final_test_acc": percent(rows[-1]["test_acc"]),
        "final_train_acc": percent(rows[-1]["train_acc_clean"]),
        "target_acc": s.target_acc,
        "target_epoch": reached[0] if reached else None,
        "settings": s.identity(),
    }


def ending(asked: Train, found: dict[str, Any]) -> str:
    """One line: what came out, and whether the target was reached."""
    return f"{done(asked, found)}; {target(found)}"


def done(asked: Train, found: dict[str, Any]) -> str:
    return (
        f"{asked.model} done: best test {found['best_test_acc']:.2f} % (epoch {found['best_epoch']}, selected on "
        f"{found['selected_on']}), final test {found['final_test_acc']:.2f} %, train {found['final_train_acc']:.2f} % "
        f"-> {asked.exports['best.pt']}, {asked.exports['final.pt'].name}"
    )


def target(found: dict[str, Any]) -> str:
    reached = found["target_epoch"]
    mark = f"✓ reached in epoch {reached}" if reached else "✗ not reached"
    return f"target {found['target_acc']:g} % train accuracy {mark}"
