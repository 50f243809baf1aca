"""One run of first-layer-mi: train, measure accuracies and information on the way, export the documented files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from perturblab.augment import AUGMENTS, cutmix
from perturblab.checkpoints import read_checkpoint, to_bytes, to_cpu
from perturblab.experiment import arrays_to_bytes, carry_out, check_trainable, prepare, resolved
from perturblab.images import ImageSet, ShuffledSource
from perturblab.information import too_few
from perturblab.measure import score
from perturblab.models import MODELS
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.runs import SCHEMA_VERSION, RunFolder
from perturblab.schedules import warmup_cosine
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel
from perturblab.streams import seeded
from perturblab.studies.first_layer_mi import Train
from perturblab.studies.first_layer_mi.documented import as_arrays, documented, measurements
from perturblab.studies.first_layer_mi.information import Stage, information, n_images, predict, stages
from perturblab.terminal import say, warn
from perturblab.train import Recipe, fit

LABEL_SMOOTHING = 0.1


def train(settings: Train) -> None:
    """Run (or go on with, or only export) the run that these settings name."""
    s = resolved(settings)
    found = carry_out(s, s.name, s.exports, work)
    say(
        f"{s.name}: test {found['final_test_acc']:.2f} %, train (clean) {found['final_train_acc_clean']:.2f} %; "
        f"MI {found['final_mi_full']:.3f} nats, less {found['final_mi_diff']:.3f} when masked "
        f"-> {Path(s.results_dir) / s.name}_results.npz"
    )


def work(s: Train, stop: StopFlag, run: RunFolder) -> None:
    ready = prepare(s, run, s.exports)
    measured, others = (ready.train, ready.test) if s.mi_split == "train" else (ready.test, ready.train)
    check_trainable(ready.train, s.batch_size, s.dataset)
    warn_of_few(s, measured)
    model = build(s, ready.train).to(ready.device)

    for epoch in fit(run, model, objective(), source(s, ready.train), recipe(s), stop):
        due = stages(s, epoch.number)
        run.log(
            kind="epoch", epoch=epoch.number, lr=epoch.lr, **epoch.means, train_acc_online=epoch.accuracy_online,
            train_acc_clean=score(model, ready.train, precision=s.precision).accuracy if due else None,
            test_acc=score(model, ready.test, precision=s.precision).accuracy if due else None,
        )  # fmt: skip
        for stage in due:
            predicted = predict(s, model, measured, others, stage, epoch.number, stop)
            for row in information(s, predicted, stage, epoch.number):
                run.log(**row)
            if stage == "final":  # before the state after it: a run that goes on from there has them
                keep(run, "predictions.npz", predicted.arrays())
            tell(s, run, stage)
    finish(s, run)


def warn_of_few(s: Train, images: ImageSet) -> None:
    stages: tuple[Stage, ...] = ("train", "final")
    for n in sorted({n_images(s, stage, len(images)) for stage in stages}):
        if few := too_few(n, len(images.classes)):
            warn(few)


def build(s: Train, images: ImageSet) -> SteppedModel:
    channels, size = images.images.shape[1], images.images.shape[-1]
    with seeded(s.seed, "init"):
        return MODELS[s.arch](
            classes=len(images.classes), channels=channels, width=s.width, size=size, head="gap",
            dropout=s.use_dropout, batchnorm=s.use_batchnorm,
        )  # fmt: skip


def objective() -> CrossEntropy:
    return CrossEntropy(label_smoothing=LABEL_SMOOTHING)


def source(s: Train, images: ImageSet) -> ShuffledSource:
    if not s.use_augmentation:
        return ShuffledSource(images, s.batch_size, s.seed)
    return ShuffledSource(images, s.batch_size, s.seed, AUGMENTS[s.augment], mix=cutmix)


def recipe(s: Train) -> Recipe:
    """Adam; the rate rises linearly for ten epochs and falls as a cosine to 1e-5 (first-layer-mi.md 2.5)."""
    return Recipe(
        epochs=s.epochs,
        optimizer=partial(torch.optim.Adam, lr=s.lr, weight_decay=s.weight_decay, fused=True),
        lr=warmup_cosine(s.lr, s.warmup_epochs),
        seed=s.seed,
        precision=s.precision,
        compile=s.compile,
        checkpoint_every_s=s.checkpoint_every,
    )


def tell(s: Train, run: RunFolder, stage: Stage) -> None:
    """A line per measurement."""
    one = measurements(run.rows, stage)[-1]
    number = one.intact["epoch"]
    row = next(row for row in run.rows if row["kind"] == "epoch" and row["epoch"] == number)
    found = (
        f"loss {row['loss_full']:.4f}  train {100 * row['train_acc_clean']:.2f} %  test {100 * row['test_acc']:.2f} %  "
        if stage == "train"
        else "final, "
    )
    say(
        f"{s.name} epoch {number}/{s.epochs}  {found}MI {one.full():.3f} nats, masked {one.masked():.3f} "
        f"({one.intact['n_images']:,} {s.mi_split} images, {len(one.masks)} masks)"
    )


def finish(s: Train, run: RunFolder) -> None:
    """Write the documented checkpoint and results into the run folder, which makes the run done."""
    results = documented(s, run.rows)
    state = read_checkpoint(run.checkpoints()[-1])
    recorded = ("arch", "seed", "use_batchnorm", "use_augmentation", "use_dropout")
    final = ("train_acc_aug", "train_acc_clean", "test_acc", "gen_gap")
    content = {
        "epoch": s.epochs,
        "model_state_dict": state["model"],
        "optimizer_state_dict": state["optimizer"],
        **{name: results[name] for name in recorded},
        "optimizer_name": results["optimizer"],
        **{name: results[f"final_{name}"] for name in final},
        "width": s.width,
        "dataset": s.dataset,
        "normalize": s.normalize,
        "run_id": run.id,
        "schema_version": SCHEMA_VERSION,
    }
    run.write_checked("final.pt", to_bytes(to_cpu(content)))
    keep(run, "results.npz", as_arrays(results))
    run.finish(results)


def keep(run: RunFolder, name: str, arrays: Mapping[str, Any]) -> None:
    """Write arrays into the run folder, with the run's name in them."""
    about = {"run_id": run.id, "schema_version": SCHEMA_VERSION}
    run.write_checked(name, arrays_to_bytes({**about, **arrays}))
