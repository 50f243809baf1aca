"""The base model: trained on confounded images only, it classifies by the dot (correction.md 4.4)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from perturblab.attempts import perform
from perturblab.checkpoints import read_checkpoint, to_bytes, to_cpu
from perturblab.experiment import check_trainable, resolved, settle, start
from perturblab.exports import publish, write_export
from perturblab.files import as_json, digest, sealed
from perturblab.images import ShuffledSource
from perturblab.measure import score
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.probes.reliance import reliance
from perturblab.runs import RunFolder, run_folder
from perturblab.schedules import constant
from perturblab.signals import StopFlag, stop_on_signals
from perturblab.streams import seeded
from perturblab.studies.correction import TrainBase
from perturblab.studies.correction.data import read_sets
from perturblab.studies.correction.layout import check_digest, data_sha256, owner_by_sidecar, sidecar
from perturblab.studies.correction.parts import network
from perturblab.terminal import say
from perturblab.train import Recipe, fit

SHOWN = 10  # epochs; of more only the first and the last


def train(settings: TrainBase) -> None:
    """Train (or go on, or only export) and say how far the network follows the dot."""
    digest_now = check_digest(settings.data, settings.data_sha256, data_sha256(settings.data))
    s = resolved(settings.model_copy(update={"data_sha256": digest_now}))
    run = run_folder(s, "base", s.runs_dir)
    with stop_on_signals() as stop:
        perform(run, partial(work, s, stop), partial(export, Path(s.base_model)), stop.check)
    found = run.results()["reliance"]
    say(
        f"{s.base_model}: {found['accuracy_confounded']:.4f} on dotted test digits, {found['accuracy_original']:.4f} on plain "
        f"ones; {found['flip_rate']:.4f} change class with the dot"
    )


def work(s: TrainBase, stop: StopFlag, run: RunFolder) -> None:
    device = start(s, targets(Path(s.base_model)))
    sets = read_sets(s.data)
    check_trainable(sets.train, s.batch_size, s.data)
    settle(s, run, device, {"data": s.data_sha256})
    images, plain, dotted = (part.to(device) for part in (sets.train, sets.original, sets.confounded))
    with seeded(s.seed, "init"):
        model = network(images)
    model.to(device)
    plan = recipe(s)
    source = ShuffledSource(images, s.batch_size, s.seed)
    for epoch in fit(run, model, CrossEntropy(), source, plan, stop):
        means = {"train_loss": epoch.means["loss_full"], "train_acc_online": epoch.accuracy_online}
        on_test = {
            name: score(model, part, precision=s.precision).accuracy
            for name, part in (("dotted", dotted), ("plain", plain))
        }
        run.log(
            kind="epoch",
            epoch=epoch.number,
            **means,
            **{f"test_acc_{name}": share for name, share in on_test.items()},
        )
        if epoch.number in (1, plan.epochs) or plan.epochs <= SHOWN:
            told = ", ".join(f"{share:.4f} {name}" for name, share in on_test.items())
            say(f"base epoch {epoch.number}/{plan.epochs}  loss {means['train_loss']:.4f}  test {told}")
    weights = read_checkpoint(run.checkpoints()[-1])["model"]
    run.write_checked("model.pth", to_bytes(to_cpu(dict(weights))))
    found = reliance(model, plain, dotted, s.precision)
    about = {"epochs": plan.epochs, "seed": s.seed, "data_sha256": s.data_sha256, "n": len(images)}
    run.finish({**about, "reliance": found, "settings": s.identity()})


def recipe(s: TrainBase) -> Recipe:
    """Adam at a constant rate, no weight decay (correction.md 4.4)."""
    return Recipe(
        epochs=s.epochs,
        optimizer=partial(torch.optim.Adam, lr=s.learning_rate, fused=True), lr=constant(s.learning_rate),
        seed=s.seed, precision=s.precision, checkpoint_every_s=s.checkpoint_every,
    )  # fmt: skip


def targets(model: Path) -> list[Path]:
    return [model, sidecar(model)]


def export(model: Path, run: RunFolder) -> None:
    """The state_dict alone, as the document's scripts load it; what it is stands beside it."""
    publish(run, run.path / "model.pth", model, owner_by_sidecar)
    content: dict[str, Any] = {**run.results(), "sha256": digest(model.read_bytes())}
    write_export(run, sidecar(model), as_json(sealed(content)))
