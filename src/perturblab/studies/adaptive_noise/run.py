"""One run of adaptive-noise: train under the controller's eyes, keep the best by validation, test it, export the files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from perturblab.attempts import perform
from perturblab.augment import AUGMENTS
from perturblab.experiment import load_images, resolved, settle, start
from perturblab.images import ImageSet, ShuffledSource
from perturblab.measure import score, score_by_class
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.perturb.clean import weight_norm
from perturblab.perturb.controller import ControllerSettings
from perturblab.probes.sharpness import sharpness
from perturblab.runs import Row, RunFolder, run_folder
from perturblab.schedules import cosine_decaying_restarts
from perturblab.settings import documented_flag
from perturblab.signals import StopFlag, stop_on_signals
from perturblab.sites import SteppedModel
from perturblab.state import Best
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.build import build
from perturblab.studies.adaptive_noise.control import Doses, cause, controller_of, epochs_of, next_noise
from perturblab.studies.adaptive_noise.dashboard import dashboard
from perturblab.studies.adaptive_noise.data import Sets, split
from perturblab.studies.adaptive_noise.device import device_of
from perturblab.studies.adaptive_noise.documented import METRICS, checkpoint_path, export, finish
from perturblab.studies.adaptive_noise.optimizer import make_optimizer, state_of
from perturblab.studies.adaptive_noise.training import idle
from perturblab.terminal import say, warn
from perturblab.train import Epoch, Recipe, fit

SHOWN_EVERY = 10  # epochs; the first and the last are always shown


def train(settings: Train) -> None:
    """Run (or go on with, or only export) the run that these settings name."""
    warn_of_idle(settings)
    controller_of(settings)  # what contradicts itself is told before anything is loaded
    s, run = folder(settings)
    with stop_on_signals() as stop:
        perform(run, partial(work, s, stop), partial(export, s), stop.check)
    found = run.results()["final_metrics"]
    say(
        f"{s.name}: test {100 * found['test_acc']:.2f} %, loss {found['test_loss']:.4f} (best of {s.epochs} epochs by validation: "
        f"epoch {found['best_epoch']}, {100 * found['best_accuracy']:.2f} %) -> {checkpoint_path(s, run)}, {s.metrics_dir}"
    )


def folder(settings: Train) -> tuple[Train, RunFolder]:
    """The settings as they are carried out, and where."""
    s = resolved(settings.model_copy(update={"device": device_of(settings)}))
    return s, run_folder(s, s.name, s.runs_dir)


def warn_of_idle(s: Train) -> None:
    """One line for all flags that were given and cannot act beside the others (decision 25)."""
    given = [(name, why) for name, why in idle(s).items() if name in s.model_fields_set]
    if given:
        told = "; ".join(f"{documented_flag(n, type(s).model_fields[n])} ({why})" for n, why in given)
        warn(f"without effect beside the other flags: {told}")
    if not s.disable_adaptive_flags and s.flag_min_epochs >= s.epochs:
        warn(
            f"no flag is ever looked at: --flag-min-epochs {s.flag_min_epochs}, and the run has {s.epochs} epochs"
        )
    if s.download_weights:
        warn("--download-weights: no weights are published for these layouts; training starts from scratch")
    if "cifar100" in s.data_dir and s.dataset == "cifar10":
        warn(f"--data-dir {s.data_dir} is only a place; it is --dataset cifar100 that trains on CIFAR-100")


def work(s: Train, stop: StopFlag, run: RunFolder) -> None:
    device = start(s, [s.metrics_dir / name for name in METRICS])
    train_set, test_set = load_images(s)
    settle(s, run, device, {"train": train_set.digest(), "test": test_set.digest()})
    sets = split(s, train_set, test_set).to(device)
    model = build(s.classifier, train_set, s.width, s.seed).to(device)
    optimizer, control = make_optimizer(s, model), controller_of(s)
    source = ShuffledSource(sets.train, s.batch_size, s.seed, AUGMENTS[s.augment], drop_last=True)
    if s.lr_restart_period < s.epochs:
        falls = s.epochs - s.lr_restart_period
        say(
            f"{s.name}: after epoch {falls} of {s.epochs} the learning rate is at most --lr-final-max {s.lr_final_max:g} "
            "(epochs less --lr-restart-period)"
        )
    doses = Doses(s, control, model, len(train_set.classes))
    if s.visualize_lr:
        draw_schedule(s, source.steps())

    best, screen = Best(), dashboard(s, run, control)
    for epoch in fit(run, model, CrossEntropy(), source, recipe(s, optimizer), stop, doses, best, screen):
        row = measure(s, model, optimizer, epoch, sets, control, run.rows)
        if row["val_acc"] > best_val_acc(run.rows):
            best.keep(model)
        tell(s, row, epochs_of(run.rows), control)
        run.log(**row)

    assert best.weights is not None  # any accuracy beats none
    model.load_state_dict(best.weights)
    for row in final_rows(s, model, sets.test, stop):
        run.log(**row)
    finish(s, run, control, best.weights, model, train_set.classes)


def recipe(s: Train, optimizer: Optimizer) -> Recipe:
    """The optimiser is handed over: each epoch's row tells of its state."""
    return Recipe(
        epochs=s.epochs,
        optimizer=lambda parameters: optimizer,
        lr=cosine_decaying_restarts(s.lr, s.lr_restart_period, final_max=s.lr_final_max),
        seed=s.seed,
        precision=s.precision,
        compile=s.compile,
        checkpoint_every_s=s.checkpoint_every,
        watch=True,
    )


def measure(
    s: Train, model: SteppedModel, optimizer: Optimizer, epoch: Epoch, sets: Sets, control: ControllerSettings, before: list[Row],
) -> Row:  # fmt: skip
    """The epoch's row: accuracies as fractions, None where something is not measured or has no clean value."""
    val, val_by_class = score_by_class(model, sets.val, precision=s.precision)
    clean, clean_by_class = clean_accuracy(s, model, epoch, sets.train)
    noise = next_noise(control, before)  # what these rows asked for, so this epoch's
    return {
        "kind": "epoch", "epoch": epoch.number, "lr": epoch.lr, "train_loss": epoch.means["loss_full"],
        "train_acc_online": epoch.accuracy_online, "train_acc_clean": clean, "train_acc_per_class": clean_by_class,
        "val_loss": val.loss, "val_acc": val.accuracy, "val_acc_per_class": list(val_by_class),
        "grad_norm": epoch.means.get("grad_norm"), "update_norm": epoch.update_norm,
        "weight_norm": float(weight_norm(model)), **state_of(optimizer),
        "noise_target": noise.target, "noise_sigma": noise.sigma, "noise_cause": cause(noise),
        "norm_before": epoch.means.get("norm_before"), "norm_after": epoch.means.get("norm_after"),
    }  # fmt: skip


def clean_accuracy(
    s: Train, model: SteppedModel, epoch: Epoch, data: ImageSet
) -> tuple[float | None, list[float | None] | None]:
    """On train images without augmentation; of each class with --detailed-metrics."""
    if epoch.number % s.clean_every and epoch.number != s.epochs:
        return None, None
    if not s.detailed_metrics:
        return score(model, data, precision=s.precision).accuracy, None
    whole, by_class = score_by_class(model, data, precision=s.precision)
    return whole.accuracy, list(by_class)


def best_val_acc(rows: list[Row]) -> float:
    return max((row["val_acc"] for row in epochs_of(rows)), default=-1.0)


def final_rows(s: Train, model: SteppedModel, test_set: ImageSet, stop: StopFlag) -> Any:
    """The best network on the test images, which chose nothing, and how sharp its minimum is."""
    whole, by_class = score_by_class(model, test_set, precision=s.precision)
    yield {
        "kind": "test", "epoch": s.epochs, "test_acc": whole.accuracy, "test_loss": whole.loss, "n": whole.n,
        "test_acc_per_class": list(by_class),
    }  # fmt: skip
    if s.sharpness_draws:
        for row in sharpness(
            model, test_set, sigma=s.sharpness_sigma, draws=s.sharpness_draws, seed=s.seed, precision=s.precision, stop=stop,
        ):  # fmt: skip
            yield {"kind": "sharpness", "epoch": s.epochs, **row}


def draw_schedule(s: Train, steps: int) -> None:
    from perturblab.studies.adaptive_noise.lr_figure import (
        lr_schedule,
    )  # matplotlib, only where it is asked for

    path = Path(s.metrics_dir) / "lr_schedule.png"
    lr_schedule(s, path, steps)
    say(str(path))


def tell(s: Train, row: Row, before: list[Row], control: ControllerSettings) -> None:
    """A line every tenth epoch, and one when the flags' noise begins."""
    number = row["epoch"]
    if number % SHOWN_EVERY == 0 or number in (1, s.epochs):
        clean = "" if row["train_acc_clean"] is None else f"  train {100 * row['train_acc_clean']:.2f} %"
        say(
            f"{s.name} epoch {number}/{s.epochs}  loss {row['train_loss']:.4f}  val {row['val_loss']:.4f}{clean}  "
            f"val {100 * row['val_acc']:.2f} %"
        )
    if row["noise_cause"] == "flags" and not (before and before[-1]["noise_cause"] == "flags"):
        due = next_noise(control, before)
        why = ", ".join(f"{f.name} {f.value:.3g} against {f.threshold:.3g}" for f in due.reasons)
        rest = f", then a cooldown of {due.cooldown} epochs" if due.cooldown else ""
        say(f"{s.name} epoch {number}: {due.target} noise {due.sigma:.3g} ({why}){rest}")
