"""``fit``: what it trains is what it says, and stopping it anywhere changes nothing."""

import copy
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import conftest
from conftest import (
    Trained,
    Zygote,
    fresh_model,
    same_weights,
    stopping_after,
    tiny_folder,
    tiny_images,
    train_tiny,
)
from perturblab.augment import cutmix
from perturblab.files import sealed, write_checked
from perturblab.images import Batch, ShuffledSource
from perturblab.objectives import Clock, Loss
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.objectives.masked import MaskedLoss
from perturblab.runs import Diverged, Row, RunFolder
from perturblab.schedules import constant
from perturblab.signals import Interrupted, StopFlag
from perturblab.sites import SteppedModel
from perturblab.state import Best
from perturblab.streams import stream
from perturblab.train import Decision, Epoch, Recipe, fit

STEPS, EPOCHS = 3, 3  # of train_tiny


def masked(lambda_max: float = 1.0, site: str = "hidden") -> MaskedLoss:
    return MaskedLoss(
        seed=0, width={"hidden": 6, "conv1": 4}[site], lambda_max=lambda_max, site=site, clamp="none"
    )


class Crash(Exception):
    """The process is gone: nothing after this is written."""


class Crashing(CrossEntropy):
    """Dies in its ``n``-th step, counted from 1."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        self.left -= 1
        if self.left == 0:
            raise Crash
        return super().draw(batch, clock)


class Slow(CrossEntropy):
    """Sleeps in each step."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        return super().draw(batch, clock)


def until(rows: list[Row], epoch: int) -> Decision:
    """Early stopping: a pure function of the rows."""
    return Decision(stop=bool(rows) and rows[-1]["epoch"] >= epoch)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Trained:
    return train_tiny(tmp_path / "undisturbed")


# ---- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, STEPS * EPOCHS + 1))
def test_a_run_stopped_after_any_step_and_started_again_ends_with_the_same_weights_and_rows(
    tmp_path: Path, undisturbed: Trained, step: int
) -> None:
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "stopped", stop_after=step, checkpoint_every_s=1e9)
    assert train_tiny(tmp_path / "stopped").same(undisturbed)


@pytest.mark.parametrize("every_s", [0.0, 1e9])
@pytest.mark.parametrize("step", range(1, STEPS * EPOCHS + 1))
def test_a_run_that_crashed_in_any_step_and_started_again_ends_with_the_same_weights_and_rows(
    tmp_path: Path, undisturbed: Trained, step: int, every_s: float
) -> None:
    with pytest.raises(Crash):
        train_tiny(tmp_path / "crashed", objective=Crashing(step), checkpoint_every_s=every_s)
    assert train_tiny(tmp_path / "crashed", checkpoint_every_s=every_s).same(undisturbed)


def test_a_run_stopped_after_every_single_step_ends_with_the_same_weights_and_rows(
    tmp_path: Path, undisturbed: Trained
) -> None:
    stops = 0
    while True:
        try:
            again = train_tiny(tmp_path / "stopped", stop_after=1)
            break
        except Interrupted:
            stops += 1
            assert stops < 50, "it does not come forward"
    assert stops >= STEPS * EPOCHS
    assert again.same(undisturbed)


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_epoch_resumed_in_its_middle_has_the_seconds_of_a_whole_one(
    tmp_path: Path, epoch: int, step: int
) -> None:
    """Otherwise what is left of a run that was preempted often is estimated at a part of what it takes."""
    with pytest.raises(Interrupted):
        train_tiny(
            tmp_path, objective=Slow(0.1), stop_after=(epoch - 1) * STEPS + step, checkpoint_every_s=1e9
        )
    again = train_tiny(tmp_path, objective=Slow(0.1), epochs=epoch, checkpoint_every_s=1e9)
    (whole,) = again.epochs
    assert again.folder.timings()[epoch]["seconds"] == pytest.approx(whole.seconds, abs=1e-3)
    if (epoch, step) != (1, STEPS):  # nothing tells what the first epoch took, if it was stopped at its end
        assert whole.seconds == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_crash_in_the_loop_body_measures_the_epoch_again_and_its_rows_stand_once(
    tmp_path: Path, undisturbed: Trained, epoch: int
) -> None:
    def crash_late(run: RunFolder, now: Epoch) -> None:
        run.log(kind="probe", epoch=now.number, value=1.0)
        if now.number == epoch:
            raise Crash

    def probe(run: RunFolder, now: Epoch) -> None:
        run.log(kind="probe", epoch=now.number, value=1.0)

    whole = train_tiny(tmp_path / "whole", body=probe)
    with pytest.raises(Crash):
        train_tiny(tmp_path / "crashed", body=crash_late)
    again = train_tiny(tmp_path / "crashed", body=probe)
    assert [now.number for now in again.epochs] == list(range(epoch, EPOCHS + 1))
    assert again.same(whole)
    assert again.rows.count(b'"probe"') == EPOCHS


def test_the_checkpoint_of_an_epoch_is_on_disk_before_the_epoch_is_yielded(tmp_path: Path) -> None:
    found = []

    def look(run: RunFolder, epoch: Epoch) -> None:
        newest = run.checkpoints()[-1]
        found.append((newest.name, epoch.number))

    train_tiny(tmp_path, body=look)
    assert found == [(f"checkpoint-{epoch:06d}-{STEPS:08d}.pt", epoch) for epoch in (1, 2, 3)]


def test_a_signal_while_an_epoch_is_measured_loses_no_step(tmp_path: Path, undisturbed: Trained) -> None:
    stop = StopFlag()

    def interrupt(run: RunFolder, epoch: Epoch) -> None:
        stop.number = signal.SIGTERM if epoch.number == 2 else 0

    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "stopped", stop=stop, body=interrupt, checkpoint_every_s=1e9)
    assert [p.name for p in tiny_folder(tmp_path / "stopped").checkpoints()] == [
        "checkpoint-000002-00000003.pt"
    ]
    assert train_tiny(tmp_path / "stopped").same(undisturbed)


def test_early_stopping_is_decided_again_on_resume_and_keeps_the_last_state(tmp_path: Path) -> None:
    decide = partial(until, epoch=2)
    whole = train_tiny(tmp_path / "whole", decide=decide, checkpoint_every_s=1e9)
    assert [epoch.number for epoch in whole.epochs] == [1, 2]
    kept = torch.load(whole.folder.checkpoints()[-1], weights_only=True)
    assert (kept["epoch"], kept["step"]) == (2, STEPS)
    assert same_weights(whole.weights, kept["model"])
    for step in range(1, 2 * STEPS + 1):
        here = tmp_path / f"stopped-{step}"
        with pytest.raises(Interrupted):
            train_tiny(here, stop_after=step, decide=decide)
        assert train_tiny(here, decide=decide).same(whole)
    assert train_tiny(tmp_path / "whole", decide=decide).same(whole)  # called again when it had ended


def test_a_run_decided_to_stop_at_once_trains_nothing(tmp_path: Path) -> None:
    run = train_tiny_nothing(tmp_path)
    assert not run.epochs
    assert same_weights(run.weights, fresh_model().state_dict())


def train_tiny_nothing(folder: Path) -> Trained:
    path = tiny_folder(folder).path
    path.mkdir(parents=True)
    (path / "rows.jsonl").write_text("")
    return train_tiny(folder, decide=lambda rows: Decision(stop=True))


@pytest.mark.parametrize("every", [1, 10])
def test_measuring_every_epoch_or_every_tenth_gives_the_same_weights(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path, every: int
) -> None:
    weights = []
    for n in (1, every):
        words = [*tiny_run, "--eval_every", str(n), "--clean_every", str(n), "--robustness_masks", "0"]
        assert zygote.run(words, tmp_path / str(n)).code == 0
        path = tmp_path / str(n) / "checkpoints" / "vgg11_masked_seed0.pt"
        weights.append(torch.load(path, weights_only=True)["model_state_dict"])
    assert same_weights(*weights)


# ---- what a step does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective", [CrossEntropy(), masked(), masked(site="conv1")], ids=["plain", "hidden", "conv1"]
)
def test_batchnorm_is_updated_once_per_step(tmp_path: Path, objective: Any) -> None:
    run = train_tiny(tmp_path, objective=objective)
    assert int(run.weights["conv.1.num_batches_tracked"]) == STEPS * EPOCHS


@pytest.mark.parametrize("site", ["hidden", "conv1"])
def test_masked_with_lambda_max_0_ends_bit_equal_to_the_baseline(tmp_path: Path, site: str) -> None:
    baseline = train_tiny(tmp_path / "baseline")
    assert same_weights(train_tiny(tmp_path / "zero", objective=masked(0.0, site)).weights, baseline.weights)
    other = train_tiny(tmp_path / "one", objective=masked(1.0, site)).weights
    assert not same_weights(other, baseline.weights)


def test_arms_see_the_same_images_and_start_from_the_same_weights(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    """The real command: baseline, and masked with lambda_max 0, to the last bit."""
    weights = []
    for mode in ("baseline", "masked"):
        words = [*tiny_run, "--mode", mode, "--lambda_max", "0", "--robustness_masks", "0"]
        assert zygote.run(words, tmp_path).code == 0
        path = tmp_path / "checkpoints" / f"vgg11_{mode}_seed0.pt"
        weights.append(torch.load(path, weights_only=True)["model_state_dict"])
    assert same_weights(*weights)


class Plain(SteppedModel):
    """A linear model without anything random."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def steps(self) -> list[Any]:
        return [(None, lambda images: self.linear(images.flatten(1)))]


def by_hand(lr: list[float]) -> tuple[Tensor, list[float], list[float]]:
    """Plain SGD on the linear model: its weight, and mean loss and accuracy per epoch from pre-step logits."""
    model, images = Plain(), tiny_images()
    losses, accuracies = [], []
    for epoch, rate in enumerate(lr, 1):
        loss_sum, correct = 0.0, 0
        for batch in ShuffledSource(images, 8, seed=0).epoch(epoch):
            logits = model(batch.images)
            loss = cross_entropy(logits, batch.labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= rate * gradient
            loss_sum += float(loss.detach()) * len(batch.labels)
            correct += int((logits.argmax(1) == batch.labels).sum())
        losses.append(loss_sum / len(images))
        accuracies.append(correct / len(images))
    return model.linear.weight.detach(), losses, accuracies


def test_means_count_every_image_once_and_online_accuracy_is_of_the_logits_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 images in batches of 8: a mean of batch means would count those of the last batch twice."""
    monkeypatch.setattr(conftest, "fresh_model", Plain)
    monkeypatch.setitem(conftest.AUGMENTS, "crop", None)
    run = train_tiny(tmp_path, optimizer=partial(torch.optim.SGD, lr=0.1))
    weight, losses, accuracies = by_hand([0.1, 0.1, 0.01])
    assert [epoch.lr for epoch in run.epochs] == pytest.approx([0.1, 0.1, 0.01])
    assert torch.allclose(run.weights["linear.weight"], weight, atol=1e-7)
    assert [epoch.means["loss_full"] for epoch in run.epochs] == pytest.approx(losses, rel=1e-6)
    assert [epoch.accuracy_online for epoch in run.epochs] == accuracies


def test_online_accuracy_of_mixed_batches_counts_each_label_by_its_share(tmp_path: Path) -> None:
    """The weights stay, so one pass by hand over the same batches gives each prediction."""
    model, source = Plain(), ShuffledSource(tiny_images(), 8, seed=0, mix=cutmix)
    nn.init.normal_(model.linear.weight, generator=stream(0, "init"))
    hits = 0.0
    for batch in source.epoch(1):
        predicted = model(batch.images).argmax(1).tolist()
        columns = (predicted, batch.labels.tolist(), *(part.tolist() for part in batch.mix))
        for guess, first, second, share in zip(*columns, strict=True):
            hits += share * (guess == first) + (1 - share) * (guess == second)
    run, recipe = tiny_folder(tmp_path), Recipe(1, partial(torch.optim.SGD, lr=0.0), lambda clock: 0.0)
    with run.claimed():
        (epoch,) = fit(run, model, CrossEntropy(), source, recipe)
    assert hits != int(hits)
    assert epoch.accuracy_online == pytest.approx(hits / 20, rel=1e-6)


@pytest.mark.parametrize("step", [1, 4, 5, 9])
def test_a_run_on_mixed_batches_stopped_in_mid_epoch_ends_with_the_same_weights_and_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(conftest, "ShuffledSource", partial(ShuffledSource, mix=cutmix))
    objective = CrossEntropy(label_smoothing=0.1)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "stopped", objective=objective, stop_after=step)
    undisturbed = train_tiny(tmp_path / "undisturbed", objective=objective)
    assert train_tiny(tmp_path / "stopped", objective=objective).same(undisturbed)


def test_the_schedule_not_the_optimizers_own_rate_is_used(tmp_path: Path) -> None:
    slow = train_tiny(tmp_path / "none", lr=lambda clock: 0.0)
    assert torch.equal(slow.weights["output.weight"], fresh_model().output.weight)
    rates = []
    train_tiny(tmp_path / "steps", lr=lambda clock: rates.append(clock) or 0.1)
    assert rates == [Clock(e, s, STEPS, EPOCHS) for e in (1, 2, 3) for s in range(STEPS)]


class SameBatch:
    """The same batch in every step."""

    def steps(self) -> int:
        return 4

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        batch = next(ShuffledSource(tiny_images(), 20, seed=0).epoch(1))
        yield from [batch] * (4 - first_step)


def test_dropout_draws_anew_in_each_step(tmp_path: Path) -> None:
    """Without updates and with one batch, only dropout makes the logits of two steps differ."""
    seen: list[Tensor] = []

    class Recording(CrossEntropy):
        def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Loss:
            loss = super().__call__(model, batch, draws)
            seen.append(loss.logits.detach())
            return loss

    model, run = fresh_model(), tiny_folder(tmp_path)
    recipe = Recipe(2, partial(torch.optim.SGD, lr=0.0), lambda clock: 0.0)
    with run.claimed():
        for _ in fit(run, model, Recording(), SameBatch(), recipe):
            pass
    assert len(seen) == 8
    for number, logits in enumerate(seen):
        assert not any(torch.allclose(logits, other) for other in seen[:number])


def test_global_random_state_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_tiny(tmp_path)
    assert torch.equal(torch.rand(3), expected)


# ---- the best weights ----------------------------------------------------------------------------------------------


@dataclass
class Kept:
    """The best weights at the end, and those of the model after each epoch that this process measured."""

    best: dict[str, Tensor] | None
    after: dict[int, dict[str, Tensor]]
    weights: dict[str, Tensor]
    run: RunFolder


def keep_best(
    folder: Path, losses: list[float], stop_after: int = 0, crash_after: int = 0, every_s: float = 0.0
) -> Kept:
    """Train as a study does that keeps the best epoch, from where the folder stands; epoch n has the n-th loss.

    ``stop_after``: SIGTERM comes during that step. ``crash_after``: the process is gone when that epoch's weights are kept.
    """
    model, run, best, stop, lr = fresh_model(), tiny_folder(folder), Best(), None, constant(0.1)
    if stop_after:
        stop, lr = stopping_after(stop_after, lr)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    recipe = Recipe(len(losses), sgd, lr, checkpoint_every_s=every_s)
    after = {}
    with run.claimed():
        for epoch in fit(
            run, model, CrossEntropy(), ShuffledSource(tiny_images(), 8, 0), recipe, stop, best=best
        ):
            after[epoch.number] = copy.deepcopy(model.state_dict())
            loss = losses[epoch.number - 1]
            if all(loss < row["loss"] for row in run.rows):
                best.keep(model)
            if epoch.number == crash_after:
                raise Crash
            run.log(kind="epoch", epoch=epoch.number, loss=loss)
    return Kept(best.weights, after, model.state_dict(), run)


LOSSES = {"first": [1, 2, 3, 4], "second": [2, 1, 3, 4], "last": [4, 3, 2, 1], "some": [3, 4, 2, 5]}
BEST = {"first": 1, "second": 2, "last": 4, "some": 3}


@pytest.mark.parametrize("which", LOSSES)
def test_the_kept_weights_are_those_of_the_best_epoch_and_training_on_does_not_change_them(
    tmp_path: Path, which: str
) -> None:
    kept = keep_best(tmp_path, LOSSES[which])
    assert sorted(kept.after) == [1, 2, 3, 4]
    for epoch, weights in kept.after.items():
        assert same_weights(kept.best, weights) == (epoch == BEST[which])
    assert same_weights(kept.weights, kept.after[4])  # the network itself goes on


@pytest.mark.parametrize("which", LOSSES)
def test_a_run_stopped_after_any_step_has_the_best_weights_of_the_undisturbed_one(
    tmp_path: Path, which: str
) -> None:
    whole = keep_best(tmp_path / "whole", LOSSES[which])
    for step in range(1, 4 * STEPS + 1):
        with pytest.raises(Interrupted):
            keep_best(tmp_path / str(step), LOSSES[which], stop_after=step, every_s=1e9)
        again = keep_best(tmp_path / str(step), LOSSES[which], every_s=1e9)
        assert same_weights(again.best, whole.best)
        assert same_weights(again.weights, whole.weights)


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_run_that_goes_back_has_the_weights_that_were_the_best_then(tmp_path: Path, epoch: int) -> None:
    """It dies when it has kept an epoch, which on the second try is not better than those before (another machine)."""
    whole = keep_best(tmp_path / "whole", [4, 3, 2, 1])
    with pytest.raises(Crash):
        keep_best(tmp_path / "crashed", [4, 3, 2, 1], crash_after=epoch)
    losses = [9.0 if number >= epoch else 5 - number for number in (1, 2, 3, 4)]
    again = keep_best(tmp_path / "crashed", losses)
    assert list(again.after) == list(range(epoch, 5))  # so it was not trained from the start
    assert same_weights(again.best, whole.after[max(epoch - 1, 1)])


def test_a_checkpoint_holds_the_best_weights_so_far_and_those_of_before_have_none(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        keep_best(tmp_path, LOSSES["first"], stop_after=2 * STEPS + 1)
    path = tiny_folder(tmp_path).checkpoints()[-1]
    content = torch.load(path, weights_only=True)
    whole = keep_best(tmp_path / "whole", LOSSES["first"])
    assert same_weights(content["best"], whole.after[1])
    assert not same_weights(content["best"], content["model"])

    del content["best"]
    torch.save(content, tmp_path / "old.pt")
    write_checked(path, (tmp_path / "old.pt").read_bytes())
    again = keep_best(tmp_path, [9, 9, 9, 9])
    assert again.best is None
    assert same_weights(again.weights, whole.weights)


def test_a_run_that_keeps_no_best_weights_has_none_in_its_checkpoints(tmp_path: Path) -> None:
    assert torch.load(train_tiny(tmp_path).folder.checkpoints()[-1], weights_only=True)["best"] is None


# ---- clipped gradients ---------------------------------------------------------------------------------------------


def clipped_by_hand(limit: float) -> tuple[Tensor, Tensor, list[float], list[float]]:
    """SGD on the linear model with gradients scaled to ``limit``: weight, bias, mean length per epoch, all lengths."""
    model, means, every = Plain(), [], []
    for epoch in (1, 2, 3):
        lengths = []
        for batch in ShuffledSource(tiny_images(), 8, seed=0).epoch(epoch):
            loss = cross_entropy(model(batch.images), batch.labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            length = sum(float((g.double() ** 2).sum()) for g in gradients) ** 0.5
            lengths.append(length)
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient * min(1.0, limit / (length + 1e-6))
        means.append(sum(lengths) / len(lengths))
        every += lengths
    return model.linear.weight.detach(), model.linear.bias.detach(), means, every


def test_clipped_training_is_that_by_hand_and_tells_the_lengths_before_clipping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "fresh_model", Plain)
    monkeypatch.setitem(conftest.AUGMENTS, "crop", None)
    limit = sorted(clipped_by_hand(1e9)[3])[4]  # some gradients are longer than this, some are not
    weight, bias, means, every = clipped_by_hand(limit)
    assert min(every) < limit < max(every)
    sgd = partial(torch.optim.SGD, lr=0.1)
    run = train_tiny(tmp_path / "clipped", optimizer=sgd, lr=constant(0.1), clip_norm=limit)
    assert torch.allclose(run.weights["linear.weight"], weight, atol=1e-7)
    assert torch.allclose(run.weights["linear.bias"], bias, atol=1e-7)
    assert [epoch.means["grad_norm"] for epoch in run.epochs] == pytest.approx(means, rel=1e-5)
    free = train_tiny(tmp_path / "free", optimizer=sgd, lr=constant(0.1))
    assert not torch.allclose(free.weights["linear.weight"], weight, atol=1e-4)


def test_a_step_with_a_clipped_gradient_is_as_long_as_the_limit(tmp_path: Path) -> None:
    """Plain SGD from the start of a network with several layers: all parameters together, one factor."""
    limit, start = 0.01, fresh_model().state_dict()
    recipe = {
        "epochs": 1,
        "batch_size": 20,
        "optimizer": partial(torch.optim.SGD, lr=1.0),
        "lr": constant(1.0),
    }
    clipped, free = (
        train_tiny(tmp_path / str(norm), clip_norm=norm, **recipe).weights for norm in (limit, 0.0)
    )
    names = [name for name, _ in fresh_model().named_parameters()]
    step, whole = (torch.cat([(w[n] - start[n]).flatten() for n in names]) for w in (clipped, free))
    assert step.norm().item() == pytest.approx(limit, rel=1e-3)
    assert whole.norm().item() > 2 * limit
    torch.testing.assert_close(step, whole * limit / whole.norm(), rtol=0, atol=1e-6)


def test_clipping_at_0_is_off_to_the_bit_and_so_is_a_limit_that_is_never_reached(
    tmp_path: Path, undisturbed: Trained
) -> None:
    off = train_tiny(tmp_path / "off", clip_norm=0.0)
    assert off.same(undisturbed)
    assert b"grad_norm" not in off.rows
    far = train_tiny(tmp_path / "far", clip_norm=1e9)
    assert same_weights(far.weights, undisturbed.weights)
    assert far.rows.count(b"grad_norm") == EPOCHS
    assert not same_weights(train_tiny(tmp_path / "near", clip_norm=0.1).weights, undisturbed.weights)


@pytest.mark.parametrize("step", [1, 5, 6, 9])
def test_a_clipped_run_stopped_in_mid_epoch_ends_with_the_same_weights_and_rows(
    tmp_path: Path, step: int
) -> None:
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "stopped", stop_after=step, clip_norm=0.5)
    whole = train_tiny(tmp_path / "whole", clip_norm=0.5)
    assert train_tiny(tmp_path / "stopped", clip_norm=0.5).same(whole)


# ---- divergence ------------------------------------------------------------------------------------------------------


class Exploding(CrossEntropy):
    """NaN from the given step on."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.from_ = (epoch, step)

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        return {"weight": torch.tensor(float("nan") if (clock.epoch, clock.step) >= self.from_ else 1.0)}


@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_a_loss_that_is_not_finite_stops_the_run_and_the_last_good_checkpoint_stays(
    tmp_path: Path, step: int, every_s: float
) -> None:
    with pytest.raises(Diverged, match=f"epoch 2, step {step + 1}: training diverged"):
        train_tiny(tmp_path, objective=Exploding(2, step), checkpoint_every_s=every_s)
    kept = tiny_folder(tmp_path).checkpoints()
    assert bool(kept) == (every_s == 0)
    for path in kept:
        state = torch.load(path, weights_only=True)
        assert (state["epoch"], state["step"]) < (2, step + 1)
        assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    assert train_tiny(tmp_path, checkpoint_every_s=every_s).same(train_tiny(tmp_path / "other"))


def test_a_diverging_run_says_so_in_one_line_and_in_its_folder(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    ended = zygote.run([*tiny_run, "--lr", "1e9"], tmp_path)
    assert "training diverged" in ended.one_line
    failure = json.loads(next(tmp_path.rglob("failure.json")).read_text())
    assert failure["kind"] == "diverged"
    assert failure["message"] in ended.one_line
    assert not list(tmp_path.rglob("results.json"))
    assert not (tmp_path / "results").exists()


def test_finite_weights_whose_test_loss_is_not_finite_are_a_diverged_run_too(tmp_path: Path) -> None:
    def measure(run: RunFolder, epoch: Epoch) -> None:
        run.log(kind="epoch", epoch=epoch.number, test_acc=None, test_loss=float("inf"))

    with pytest.raises(Diverged, match="test_loss is not finite in epoch 1: training diverged"):
        train_tiny(tmp_path, body=measure)


def test_a_running_statistic_that_is_not_finite_is_not_kept_in_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training does not use it, so the loss stays finite; evaluation would."""
    model = fresh_model()
    monkeypatch.setattr(conftest, "fresh_model", lambda: model)

    def overflow(clock: Clock) -> float:
        model.get_buffer("conv.1.running_var").fill_(float("inf"))
        return 0.1

    with pytest.raises(Diverged, match="running statistic"):
        train_tiny(tmp_path, lr=overflow)
    assert not tiny_folder(tmp_path).checkpoints()


# ---- precision, compile, threads, machines ---------------------------------------------------------------------------


def test_bf16_trains_on_the_cpu_and_pairs_like_fp32(tmp_path: Path) -> None:
    baseline = train_tiny(tmp_path / "baseline", precision="bf16")
    assert all(value.dtype != torch.bfloat16 for value in baseline.weights.values())
    assert baseline.epochs[-1].means["loss_full"] < baseline.epochs[0].means["loss_full"]
    zero = train_tiny(tmp_path / "zero", objective=masked(0.0), precision="bf16")
    assert same_weights(zero.weights, baseline.weights)
    with pytest.raises(Interrupted):
        train_tiny(tmp_path / "stopped", stop_after=5, precision="bf16")
    assert train_tiny(tmp_path / "stopped", precision="bf16").same(baseline)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts
def test_compiled_training_ends_close_to_eager_and_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, whose compiled form draws other numbers."""
    plain = fresh_model()
    del plain.hidden[2]
    monkeypatch.setattr(conftest, "fresh_model", lambda: copy.deepcopy(plain))
    train = partial(train_tiny, batch_size=10)
    torch.compiler.reset()
    eager = train(tmp_path / "eager", objective=masked(0.5))
    compiled = train(tmp_path / "compiled", objective=masked(0.5), compile=True)
    assert close(compiled, eager)
    assert int(compiled.weights["conv.1.num_batches_tracked"]) == 2 * EPOCHS
    baseline = train(tmp_path / "baseline", compile=True)
    assert close(train(tmp_path / "zero", objective=masked(0.0), compile=True), baseline)
    assert not close(compiled, baseline)


def close(one: Trained, other: Trained) -> bool:
    return all(torch.allclose(value, other.weights[name], atol=1e-4) for name, value in one.weights.items())


def test_a_resumed_run_takes_the_threads_of_its_first_start(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    words = [*tiny_run, "--checkpoint_every", "0", "--epochs", "1", "--batch_size", "36"]
    kill = [["killpoints", "install", "after replace checkpoint-N.pt"]]
    assert zygote.run([*words, "--threads", "2"], tmp_path / "two").code == 0
    assert zygote.run([*words, "--threads", "2"], tmp_path / "resumed", hooks=kill).code == -signal.SIGKILL
    again = zygote.run(
        [*words, "--threads", "1"], tmp_path / "resumed", hooks=[["killpoints", "slow_step", 1, 0.0]]
    )
    assert again.code == 0
    assert "slow step with 2 threads" in again.output
    assert "bit-exact" not in again.output
    for name in ("rows.jsonl", "final.pt", "results.json", "manifest.json"):
        one, other = (next((tmp_path / where).rglob(name)).read_bytes() for where in ("two", "resumed"))
        assert one == other, name


@pytest.mark.parametrize(("fact", "value"), [("torch", "1.0"), ("instruction_set", "ABACUS")])
def test_a_run_resumed_on_another_machine_goes_on_and_says_it_is_not_bit_exact(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path, fact: str, value: str
) -> None:
    kill = [["killpoints", "install", "after replace final.pt"]]
    assert zygote.run(tiny_run, tmp_path, hooks=kill).code == -signal.SIGKILL
    path = next(tmp_path.rglob("manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["machine"][fact] = value
    path.write_text(json.dumps(sealed(manifest)))
    again = zygote.run(tiny_run, tmp_path)
    assert again.code == 0
    told = [line for line in again.output.splitlines() if "bit-exact" in line]
    assert len(told) == 1
    assert f"{fact} {value} ->" in told[0]
    assert json.loads(path.read_text())["machine"][fact] == value, "the first start's facts are kept"
