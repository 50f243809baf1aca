"""One run of masked-loss: train, measure every epoch, measure robustness at the end, export the documented files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from perturblab.augment import AUGMENTS
from perturblab.checkpoints import read_checkpoint, to_bytes, to_cpu
from perturblab.experiment import carry_out, check_trainable, percent, prepare, resolved
from perturblab.images import ImageSet, ShuffledSource
from perturblab.measure import score
from perturblab.models import MODELS
from perturblab.objectives import Clock, Objective
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.objectives.masked import MaskedLoss, warmed_up
from perturblab.probes.robustness import robustness
from perturblab.runs import SCHEMA_VERSION, Row, RunFolder
from perturblab.schedules import multistep
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel
from perturblab.streams import seeded
from perturblab.studies.masked_loss import UNUSED, Train
from perturblab.terminal import say, warn
from perturblab.train import Epoch, Recipe, fit

CLAMP_WARNING = 0.95  # share of an epoch's steps
SHOWN_EVERY = 10  # epochs; the first and the last are always shown, as in the document


def train(settings: Train) -> None:
    """Run (or go on with, or only export) the run that these settings name."""
    s = resolved(settings)
    found = carry_out(s, s.name, s.exports, work)
    say(
        f"{s.name}: test {found['final_test_acc']:.2f} %, train (clean) {found['final_train_acc']:.2f} %, "
        f"gap {found['final_gen_gap']:.2f} points -> {Path(s.results_dir) / s.name}.json"
    )


def work(s: Train, stop: StopFlag, run: RunFolder) -> None:
    ready = prepare(s, run, s.exports)
    train_set, test_set = ready.train, ready.test
    check_trainable(train_set, s.batch_size, s.dataset)
    model = build(s, train_set).to(ready.device)
    source = ShuffledSource(train_set, s.batch_size, s.seed, AUGMENTS[s.augment])

    for epoch in fit(run, model, objective(s, model), source, recipe(s), stop):
        measured = measure(s, model, epoch, train_set, test_set)
        run.log(
            kind="epoch", epoch=epoch.number, lr=epoch.lr, **lambda_of(s, epoch), **epoch.means, **measured
        )
        tell(s, run.rows[-1])

    if s.robustness_masks:
        for row in robustness(
            model, test_set, seed=s.seed, n_masks=s.robustness_masks, precision=s.precision, stop=stop
        ):
            run.log(kind="robustness", epoch=s.epochs, **row)
    finish(s, run)


def build(s: Any, images: ImageSet) -> SteppedModel:
    channels, size = images.images.shape[1], images.images.shape[-1]
    with seeded(s.seed, "init"):
        return MODELS[s.arch](classes=len(images.classes), channels=channels, width=s.width, size=size)


def objective(s: Train, model: SteppedModel) -> Objective:
    if s.mode == "baseline":
        return CrossEntropy()
    if s.mode == "half-loss":
        weight = warmed_up(s.lambda_max)
        return CrossEntropy(lambda clock: 1 - weight(clock) / 2)
    return MaskedLoss(s.seed, model.site(s.site).width, s.n_masks, s.lambda_max, s.clamp, s.site)


def recipe(s: Train) -> Recipe:
    """SGD, and the rate divided by ten after half and three quarters of the epochs (masked-loss.md 1.5)."""
    milestones = (int(0.5 * s.epochs), int(0.75 * s.epochs))
    return Recipe(
        epochs=s.epochs,
        optimizer=partial(
            torch.optim.SGD, lr=s.lr, momentum=s.momentum, weight_decay=s.weight_decay, fused=True
        ),
        lr=multistep(s.lr, milestones),
        seed=s.seed,
        precision=s.precision,
        compile=s.compile,
        checkpoint_every_s=s.checkpoint_every,
    )


def lambda_of(s: Train, epoch: Epoch) -> dict[str, float]:
    clock = Clock(epoch.number, 0, 1, s.epochs)
    return {"lambda_ablation": 0.0 if "lambda_max" in UNUSED[s.mode] else warmed_up(s.lambda_max)(clock)}


def measure(s: Train, model: SteppedModel, epoch: Epoch, train_set: ImageSet, test_set: ImageSet) -> Row:
    """Accuracies as fractions; None where this epoch is not measured."""

    def due(every: int) -> bool:
        return epoch.number % every == 0 or epoch.number == s.epochs

    clean = score(model, train_set, precision=s.precision) if due(s.clean_every) else None
    test = score(model, test_set, precision=s.precision) if due(s.eval_every) else None
    return {
        "train_acc_online": epoch.accuracy_online,
        "train_acc_clean": clean and clean.accuracy,
        "test_acc": test and test.accuracy,
        "test_loss": test and test.loss,
    }


def tell(s: Train, row: Row) -> None:
    """The documented line every tenth epoch, and a warning when the clamp stops the ablated loss's gradient."""
    number = row["epoch"]
    if number % SHOWN_EVERY == 0 or number in (1, s.epochs):
        shown = {"train": row["train_acc_clean"], "test": row["test_acc"]}
        accuracies = "".join(
            f"  {name} {100 * value:.2f} %" for name, value in shown.items() if value is not None
        )
        say(
            f"{s.name} epoch {number}/{s.epochs}  loss {row.get('loss_total', row['loss_full']):.4f}{accuracies}"
        )
    active = row.get("clamp_active", 0.0)
    if active > CLAMP_WARNING and number in (1, s.epochs):
        means = {
            "hard": "no gradient of the ablated loss reached the weights (the step is half-loss training); "
            "--clamp rescale lets it through",
            "rescale": "the ablated loss counted as half the full one, its gradient scaled down",
            "none": "a clamp would have acted there; --clamp none lets the ablated loss grow without bound",
        }[s.clamp]
        warn(
            f"{s.name} epoch {number}: L_ablated was over half of L_full in {active:.0%} of the steps: {means}"
        )


# ---- what a finished run leaves ---------------------------------------------------------------------------------


def finish(s: Train, run: RunFolder) -> None:
    """Write the documented checkpoint and results into the run folder, which makes the run done."""
    results = documented(s, run.rows)
    state = read_checkpoint(run.checkpoints()[-1])
    final = {
        name: results[name]
        for name in ("arch", "mode", "seed", "final_train_acc", "final_test_acc", "final_gen_gap")
    }
    network = {"width": s.width, "dataset": s.dataset, "normalize": s.normalize}  # for `evaluate`
    content = {
        "epoch": s.epochs,
        "model_state_dict": state["model"],
        "optimizer_state_dict": state["optimizer"],
        **final,
        **network,
        "run_id": run.id,
        "schema_version": SCHEMA_VERSION,
    }
    run.write_checked("final.pt", to_bytes(to_cpu(content)))
    run.finish(results)


def documented(s: Train, rows: list[Row]) -> dict[str, Any]:
    """The results file: the document's keys (accuracies in percent), then ours."""
    epochs = [row for row in rows if row["kind"] == "epoch"]
    history = {
        "epoch": [row["epoch"] for row in epochs],
        "train_loss_full": [row["loss_full"] for row in epochs],
        "train_loss_masked": [
            row.get("loss_ablated", 0.0 if s.mode == "baseline" else None) for row in epochs
        ],
        "train_loss_total": [row.get("loss_total", row["loss_full"]) for row in epochs],
        "train_acc": [percent(row["train_acc_clean"]) for row in epochs],
        "test_acc": [percent(row["test_acc"]) for row in epochs],
        "gen_gap": [gap(row) for row in epochs],
        "lambda": [row["lambda_ablation"] for row in epochs],
        "train_acc_clean": [percent(row["train_acc_clean"]) for row in epochs],
        "train_acc_online": [percent(row["train_acc_online"]) for row in epochs],
        "test_loss": [row["test_loss"] for row in epochs],
        "clamp_active_fraction": [row.get("clamp_active") for row in epochs],
    }
    return {
        "arch": s.arch,
        "mode": s.mode,
        "seed": s.seed,
        "epochs": s.epochs,
        "batch_size": s.batch_size,
        "lr": s.lr,
        "n_masks": 0 if "n_masks" in UNUSED[s.mode] else s.n_masks,
        "lambda_max": 0.0 if "lambda_max" in UNUSED[s.mode] else s.lambda_max,
        "final_train_acc": history["train_acc"][-1],
        "final_test_acc": history["test_acc"][-1],
        "final_gen_gap": history["gen_gap"][-1],
        "history": history,
        "dataset": s.dataset,
        "normalize": s.normalize,
        "momentum": s.momentum,
        "weight_decay": s.weight_decay,
        "width": s.width,
        "clamp": s.clamp,
        "site": s.site,
        "precision": s.precision,
        "augment": s.augment,
        "settings": s.identity(),
        "robustness": curve(rows, history["test_acc"][-1]),
    }


def gap(row: Row) -> float | None:
    """Generalisation gap in percentage points: clean train accuracy minus test accuracy."""
    clean, test = row["train_acc_clean"], row["test_acc"]
    return None if clean is None or test is None else round(100 * (clean - test), 6)


def curve(rows: list[Row], intact: float | None) -> dict[str, Any] | None:
    """Robustness rows as arrays: ``test_acc`` in percent, [fractions][masks]."""
    by_size: dict[tuple[float, int], list[float]] = {}
    for row in rows:
        if row["kind"] == "robustness":
            by_size.setdefault((row["kept_fraction"], row["keep_size"]), []).append(
                round(100 * row["accuracy"], 6)
            )
    if not by_size:
        return None
    return {
        "kept_fraction": [fraction for fraction, _ in by_size],
        "keep_size": [size for _, size in by_size],
        "test_acc": list(by_size.values()),
        "test_acc_intact": intact,
    }
