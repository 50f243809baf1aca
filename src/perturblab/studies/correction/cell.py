"""One run of correction: train on from the base model with corrected images in each batch, until validation stops it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from perturblab.attempts import perform
from perturblab.checkpoints import to_bytes, to_cpu
from perturblab.experiment import resolved, settle, start
from perturblab.images import ImageSet
from perturblab.measure import Score, predictions, score
from perturblab.objectives import Objective
from perturblab.objectives.corrected import Balanced, Imbalanced
from perturblab.probes.reliance import reliance
from perturblab.report.events import image_grid
from perturblab.runs import Row, RunFolder, run_folder
from perturblab.schedules import constant
from perturblab.signals import StopFlag, stop_on_signals
from perturblab.sites import SteppedModel
from perturblab.state import Best
from perturblab.studies.correction import Train
from perturblab.studies.correction.data import read_sets
from perturblab.studies.correction.layout import check_digest, data_sha256, file_sha256
from perturblab.studies.correction.parts import DOTTED, Parts, base_network, mixed, parts_of
from perturblab.studies.correction.records import history
from perturblab.studies.correction.stopping import best_row, improves, out_of_patience
from perturblab.studies.correction.tensorboard import export, targets
from perturblab.terminal import say
from perturblab.train import Decision, Epoch, Recipe, fit

SHOWN_EVERY = 10  # epochs; then the images are logged with their predicted digits (correction.md 4.5)
SHOWN = 8  # images of each kind
EVALUATED = 100  # images at a time: their maps stay in a core's cache, 1.4 times faster than 500 at a time


def train(settings: Train) -> None:
    """Run (or go on with, or only export) the run that these settings name."""
    asked = named(settings)
    run = folder(asked)
    with stop_on_signals() as stop:
        perform(run, partial(work, resolved(asked), asked, stop), partial(export, asked), stop.check)
    found = run.results()
    say(
        f"{asked.name}: validation {found['val_accuracy']:.4f}, test {found['test_accuracy']:.4f} on plain digits, "
        f"{found['reliance']['flip_rate']:.4f} flip with the dot; best of {found['epochs_trained']} epochs is "
        f"{found['best_epoch']} -> {asked.log_dir}"
    )


def named(s: Train) -> Train:
    """The settings with the digests of what they read, by which a run on other bytes is another run."""
    data = check_digest(s.data, s.data_sha256, data_sha256(s.data))
    base = check_digest(s.base_model, s.base_sha256, file_sha256(Path(s.base_model))[:16])
    return s.model_copy(update={"data_sha256": data, "base_sha256": base})


def folder(s: Train) -> RunFolder:
    run = resolved(s)
    return run_folder(run, run.name, run.runs_dir)


def work(s: Train, asked: Train, stop: StopFlag, run: RunFolder) -> None:
    device = start(s, targets(asked))
    parts = parts_of(s, read_sets(s.data), s.random_seed)
    source = mixed(s, parts, s.random_seed)
    model = base_network(s.base_model, parts.train)
    settle(s, run, device, {"data": s.data_sha256, "base": s.base_sha256})
    keep_samples(run, parts)
    parts, model, best = parts.to(device), model.to(device), Best()
    source = mixed(s, parts, s.random_seed)
    before = measured(s, model, parts)

    for epoch in fit(run, model, objective(s), source, recipe(s), stop, partial(decide, s), best):
        row = epoch_row(s, model, epoch, parts)
        if improves(s.min_delta, row, run.rows):
            best.keep(model)
        run.log(**row)

    assert best.weights is not None
    model.load_state_dict(best.weights)
    finish(s, run, model, parts, before)


def objective(s: Train) -> Objective:
    return Balanced(s.lambda_weight) if s.loss_type == "balanced" else Imbalanced()


def recipe(s: Train) -> Recipe:
    """Adam at a constant rate, no weight decay (correction.md 4.5)."""
    return Recipe(
        epochs=s.max_epochs,
        optimizer=partial(torch.optim.Adam, lr=s.learning_rate, fused=True),
        lr=constant(s.learning_rate),
        seed=s.random_seed,
        precision=s.precision,
        checkpoint_every_s=s.checkpoint_every,
        clip_norm=s.grad_clip,
    )


def decide(s: Train, rows: list[Row]) -> Decision:
    return Decision(
        out_of_patience(s.min_delta, s.early_stopping_patience, rows), "validation loss no longer falls"
    )


def epoch_row(s: Train, model: SteppedModel, epoch: Epoch, parts: Parts) -> Row:
    """Losses in nats, accuracies as fractions; training ones before each step's update, in the mixed batches."""
    validation = score(model, parts.validation, precision=s.precision, size=EVALUATED)
    shown = epoch.number == 1 or epoch.number % SHOWN_EVERY == 0
    return {
        "kind": "epoch", "epoch": epoch.number, "train_loss": epoch.means["loss_total"],
        "train_conf_loss": epoch.means["loss_confounded"], "train_corr_loss": epoch.means.get("loss_corrected", 0.0),
        "train_accuracy": epoch.accuracy_online, "val_loss": validation.loss, "val_accuracy": validation.accuracy,
        "grad_norm": epoch.means.get("grad_norm"), "predicted": predicted(s, model, parts) if shown else None,
    }  # fmt: skip


def samples(parts: Parts) -> dict[str, ImageSet]:
    """The images that are logged: eights as they are trained on, and some of the pool before and after correction."""
    eights = parts.train[(parts.train.labels == DOTTED).nonzero()[:SHOWN, 0]]
    return {
        "confounded_samples": eights,
        "corrected_original": parts.found[:SHOWN],
        "corrected_samples": parts.pool[:SHOWN],
    }


def keep_samples(run: RunFolder, parts: Parts) -> None:
    for name, images in samples(parts).items():
        run.write_checked(f"{name}.png", image_grid(images.images[:, 0].numpy()))


def predicted(s: Train, model: SteppedModel, parts: Parts) -> dict[str, str]:
    """The digits that the network sees in the logged images."""
    return {
        name: " ".join(images.classes[i] for i in predictions(model, images, precision=s.precision).tolist())
        for name, images in samples(parts).items()
    }


# ---- what a finished run leaves ---------------------------------------------------------------------------------


def measured(s: Train, model: SteppedModel, parts: Parts) -> dict[str, Any]:
    """A network on validation and test images of both kinds."""
    sets = {"val": parts.validation, "other_val": parts.other_validation, "test": parts.plain}
    found = {name: scored(s, model, images) for name, images in sets.items()}
    plain, dotted = found["val"], found["other_val"]
    if s.validation == "confounded":
        plain, dotted = dotted, plain
    return {
        "val_loss": found["val"].loss, "val_accuracy": found["val"].accuracy,
        "val_accuracy_original": plain.accuracy, "val_accuracy_confounded": dotted.accuracy,
        "test_loss": found["test"].loss, "test_accuracy": found["test"].accuracy,
        "reliance": reliance(model, parts.plain, parts.dotted, s.precision, EVALUATED),
    }  # fmt: skip


def on_training_images(s: Train, model: SteppedModel, parts: Parts) -> dict[str, Any]:
    """Each training image once, and the pool; not the mixed batches, which repeat some and leave some out."""
    conf, corr = (scored(s, model, images) for images in (parts.train, parts.pool))
    both = joined(conf, corr)
    return {
        "train_loss": both.loss, "train_accuracy": both.accuracy,
        "train_conf_loss": conf.loss, "train_corr_loss": corr.loss,
        "train_conf_accuracy": conf.accuracy, "train_corr_accuracy": corr.accuracy,
    }  # fmt: skip


def scored(s: Train, model: SteppedModel, images: ImageSet) -> Score:
    return score(model, images, precision=s.precision, size=EVALUATED)


def joined(one: Score, other: Score) -> Score:
    n = one.n + other.n
    return Score(
        (one.loss * one.n + other.loss * other.n) / n,
        (one.accuracy * one.n + other.accuracy * other.n) / n,
        n,
    )


def finish(s: Train, run: RunFolder, model: SteppedModel, parts: Parts, before: dict[str, Any]) -> None:
    """Write the best weights and the results into the run folder, which makes the run done."""
    best = best_row(s.min_delta, run.rows)
    assert best is not None
    run.write_checked("best_model.pth", to_bytes(to_cpu(dict(model.state_dict()))))
    stopped = out_of_patience(s.min_delta, s.early_stopping_patience, run.rows)
    sizes = {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.plain)}
    run.finish({
        "seed": s.random_seed, "epochs_trained": len(run.rows), "best_epoch": best["epoch"],
        "best_val_loss": best["val_loss"], "stopped": "patience" if stopped else "max_epochs",
        **on_training_images(s, model, parts), **measured(s, model, parts), "before": before, "n": sizes, "index": parts.index, "settings": s.identity(),
        "history": history(run.rows),
    })  # fmt: skip
