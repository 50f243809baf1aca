"""``fit`` with noise: where it acts, what is measured beside it, and that stopping a noisy run anywhere changes nothing."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, one_hot

from conftest import (
    Trained,
    fresh_model,
    one_thread,
    same_weights,
    stopping_after,
    tiny_folder,
    tiny_images,
)
from perturblab.augment import AUGMENTS
from perturblab.files import write_checked
from perturblab.images import Batch, ShuffledSource
from perturblab.measure import score
from perturblab.objectives import Clock
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.perturb.clean import estimate_statistics
from perturblab.perturb.noise import Dose, Noise, NoiseSpec
from perturblab.runs import Diverged, Row, RunFolder
from perturblab.schedules import constant, multistep
from perturblab.signals import Interrupted, StopFlag
from perturblab.sites import Site, Step, SteppedModel
from perturblab.streams import seeded, stream
from perturblab.train import Decision, Epoch, Recipe, fit

STEPS = 3  # per epoch: 20 images in batches of 8
SEED = 7  # of the noise
KINDS = {
    "gradient": NoiseSpec("gradient"),
    "weight": NoiseSpec("weight"),
    "permanent": NoiseSpec("weight", persistent=True),
    "input": NoiseSpec("input"),
    "label": NoiseSpec("label"),
}
SIGMA = {
    "gradient": 0.5,
    "weight": 0.2,
    "permanent": 0.05,
    "input": 0.3,
    "label": 0.4,
}  # relative: all are felt
ABSOLUTE = {"gradient": 0.05, "weight": 0.1, "permanent": 0.05, "input": 0.5, "label": 0.4}

Plan = Callable[[list[Row]], tuple[str, float] | None]
"""Which kind of noise the next epoch gets, and how much: a pure function of the rows."""


def no_noise(rows: list[Row]) -> None:
    return None


def steady(kind: str, sigma: float | None = None) -> Plan:
    """The same noise in every epoch."""
    return lambda rows: (kind, SIGMA[kind] if sigma is None else sigma)


def by_epoch(*kinds: str) -> Plan:
    """Noise of one kind after the other, "" for none."""
    return lambda rows: (kinds[len(rows)], SIGMA[kinds[len(rows)]]) if any(kinds[len(rows) :][:1]) else None


def controlled(rows: list[Row]) -> tuple[str, float] | None:
    """As a controller does: on and off, one target and another, as strong as the last epoch was bad."""
    kind = ("gradient", "", "weight", "", "permanent", "")[len(rows)]
    return (kind, 0.2 * rows[-1]["loss_full"] if rows else 0.3) if kind else None


PLANS: dict[str, tuple[Plan, int]] = {kind: (steady(kind), 2) for kind in KINDS} | {
    "controlled": (controlled, 5)
}
"""name -> (plan, epochs)"""
EVERY_STEP = [(name, step) for name, (_, epochs) in PLANS.items() for step in range(1, STEPS * epochs + 1)]
EVERY_EPOCH = [(name, epoch) for name, (_, epochs) in PLANS.items() for epoch in range(1, epochs + 1)]


class Crash(Exception):
    """The process is gone: nothing after this is written."""


class Crashing(CrossEntropy):
    """Dies in its ``n``-th step, counted from 1: before the forward pass, or in it, when noise is in the weights."""

    def __init__(self, n: int, in_forward: bool = False) -> None:
        super().__init__()
        self.left, self.in_forward = n, in_forward

    def draw(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        self.left -= 1
        if self.left == 0 and not self.in_forward:
            raise Crash
        return super().draw(batch, clock)

    def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Any:
        loss = super().__call__(model, batch, draws)
        if self.left == 0:
            raise Crash
        return loss


@contextmanager
def unseen(label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    yield lambda done, note="": None


def nothing(run: RunFolder, epoch: Epoch) -> None:
    pass


def train(
    folder: Path,
    plan: Plan = no_noise,
    *,
    model: SteppedModel | None = None,
    source: ShuffledSource | None = None,
    kinds: dict[str, NoiseSpec] = KINDS,
    objective: CrossEntropy | None = None,
    stop: StopFlag | None = None,
    stop_after: int = 0,
    body: Callable[[RunFolder, Epoch], None] = nothing,
    show: Any = unseen,
    **recipe: Any,
) -> Trained:
    """Train as a study with noise does, from where the folder stands: watched, 2 epochs of 3 steps unless told.

    ``stop_after``: SIGTERM comes during that step, counted from 1.
    """
    model, run, made = model or fresh_model(), tiny_folder(folder), {}
    settings = {
        "epochs": 2,
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "lr": multistep(0.1, (2,)),
        "checkpoint_every_s": 1e9,  # one at the end, and where it is stopped
        "watch": True,
        **recipe,
    }
    if stop_after:
        stop, settings["lr"] = stopping_after(stop_after, settings["lr"])

    def decide(rows: list[Row]) -> Decision:
        planned = plan(rows) if len(rows) < settings["epochs"] else None  # fit asks once more after the last
        if planned is None:
            return Decision()
        kind, sigma = planned
        if kind not in made:
            made[kind] = Noise(model, kinds[kind], seed=SEED, classes=3)
        return Decision(noise=Dose(made[kind], sigma))

    source = source or ShuffledSource(tiny_images(), 8, seed=0, augment=AUGMENTS["crop"])
    seen, objective = [], objective or CrossEntropy()
    with run.claimed(), one_thread():
        epochs = fit(run, model, objective, source, Recipe(**settings), stop, decide, show=show)
        for epoch in epochs:
            body(run, epoch)
            run.log(
                kind="epoch", epoch=epoch.number, lr=epoch.lr, **epoch.means, update_norm=epoch.update_norm,
                online=epoch.accuracy_online, acc=score(model, source.data).accuracy,
            )  # fmt: skip
            seen.append(epoch)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return Trained(weights, (run.path / "rows.jsonl").read_bytes(), seen, run)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """``undisturbed(name)``: the run of that plan, trained once."""
    done: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in done:
            plan, epochs = PLANS.get(name, (no_noise, 2))
            done[name] = train(tmp_path_factory.mktemp(name), plan, epochs=epochs)
        return done[name]

    return get


def parameters_of(weights: dict[str, Tensor], model: nn.Module) -> list[Tensor]:
    return [weights[name] for name, _ in model.named_parameters()]


def length(tensors: list[Tensor]) -> float:
    """L2 norm of all together, by a plain loop."""
    return math.sqrt(sum(float(x) ** 2 for tensor in tensors for x in tensor.detach().flatten().tolist()))


# ---- off is off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_sigma_0_ends_bit_equal_to_the_run_without_noise_weights_and_rows(
    tmp_path: Path, undisturbed: Callable[[str], Trained], kind: str
) -> None:
    zero = train(tmp_path / "zero", steady(kind, 0.0))
    assert zero.same(undisturbed("plain"))
    assert zero.rows.count(b'"grad_norm"') == 2  # gradients of clean weights
    assert same_weights(zero.weights, train(tmp_path / "unwatched", watch=False).weights)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_every_target_is_felt(undisturbed: Callable[[str], Trained], kind: str) -> None:
    noisy, plain = undisturbed(kind), undisturbed("plain")
    assert not torch.allclose(noisy.weights["output.weight"], plain.weights["output.weight"], atol=1e-4)


@pytest.mark.parametrize("name", PLANS)
def test_watching_changes_no_weight_and_no_other_number(
    tmp_path: Path, undisturbed: Callable[[str], Trained], name: str
) -> None:
    plan, epochs = PLANS[name]
    off, on = train(tmp_path, plan, epochs=epochs, watch=False), undisturbed(name)
    assert same_weights(off.weights, on.weights)
    for blind, seeing in zip(off.epochs, on.epochs, strict=True):
        assert blind.update_norm is None
        assert "grad_norm" not in blind.means
        others = {part: mean for part, mean in seeing.means.items() if part != "grad_norm"}
        assert blind.means == others
        assert blind.accuracy_online == seeing.accuracy_online


def test_noise_shifts_nobody_elses_random_numbers(tmp_path: Path) -> None:
    """Without updates, noise that reaches neither images nor weights leaves every logit: same order, same crops, same
    dropout; and the global generator is where it was."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    seen: dict[str, list[Tensor]] = {}

    class Recording(CrossEntropy):
        def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Any:
            loss = super().__call__(model, batch, draws)
            seen[kind].append(loss.logits.detach())
            return loss

    for kind, plan in {"": no_noise, **{k: steady(k) for k in ("gradient", "label")}}.items():
        seen[kind] = []
        train(tmp_path / f"-{kind}", plan, objective=Recording(), lr=constant(0.0))
    assert torch.equal(torch.rand(3), expected)
    for kind in ("gradient", "label"):
        assert all(torch.equal(a, b) for a, b in zip(seen[""], seen[kind], strict=True))


# ---- against a loop by hand ----------------------------------------------------------------------------------------


class Softmax(SteppedModel):
    """A linear model, whose gradient is known."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 3)
        with torch.no_grad():
            self.linear.weight.normal_(std=0.2, generator=stream(0, "init"))
            self.linear.bias.fill_(0.1)

    def steps(self) -> list[Step]:
        return [(None, lambda images: self.linear(images.flatten(1)))]


def plain_source() -> ShuffledSource:
    return ShuffledSource(tiny_images(), 8, seed=0)


@dataclass
class Hand:
    """What an epoch by hand found: the weights at its end, mean gradient length, how far it moved them beside noise,
    lengths before and after noise in its first step, mean loss."""

    weights: list[Tensor]
    grad_norm: float
    update_norm: float
    before: float
    after: float
    loss: float


def by_hand(kinds: tuple[str, ...], clip: float = math.inf) -> list[Hand]:
    """SGD with momentum and weight decay on ``Softmax`` in float64, one kind of noise per epoch, "" for none.

    No autograd, no ``Noise``: closed-form gradients, numbers of the documented stream times sigma (absolute scale).
    """
    w = [p.detach().double() for p in Softmax().parameters()]
    velocity = [torch.zeros_like(x) for x in w]
    found = []
    for epoch, kind in enumerate(kinds, 1):
        clean = [torch.zeros_like(x) for x in w]
        lengths, lengths_at_noise, losses = [], (math.nan, math.nan), 0.0
        for step, batch in enumerate(plain_source().epoch(epoch)):
            target = "weight" if kind == "permanent" else kind
            generator, sigma = stream(SEED, "noise", target, epoch, step), ABSOLUTE.get(kind, 0.0)
            x, y = batch.images.double().flatten(1), batch.labels
            if kind == "input":
                x = x + sigma * torch.randn(batch.images.shape, generator=generator).double().flatten(1)
            if kind == "label":
                flipped = torch.rand(y.shape, generator=generator) < sigma
                y = torch.where(flipped, torch.randint(3, y.shape, generator=generator), y)
            noise = [torch.zeros_like(t) for t in w]
            if target in ("weight", "gradient"):
                numbers = sigma * torch.randn(sum(t.numel() for t in w), generator=generator).double()
                noise = [
                    n.view(t.shape) for n, t in zip(numbers.split([t.numel() for t in w]), w, strict=True)
                ]
            at = [t + n for t, n in zip(w, noise, strict=True)] if target == "weight" else w
            p = torch.softmax(x @ at[0].T + at[1], 1)
            losses -= float(p[torch.arange(len(y)), y].log().sum())
            error = (p - one_hot(y, 3)) / len(y)
            gradient = [error.T @ x, error.sum(0)]
            lengths.append(length(gradient))
            gradient = [g * min(1.0, clip / (lengths[-1] + 1e-6)) for g in gradient]
            acted_on = gradient if kind == "gradient" else w
            if step == 0:
                lengths_at_noise = (
                    length(acted_on),
                    length([a + n for a, n in zip(acted_on, noise, strict=True)]),
                )
            if kind == "gradient":
                gradient = [g + n for g, n in zip(gradient, noise, strict=True)]
            if kind == "permanent":
                w = at
            velocity = [0.9 * v + g + 1e-2 * t for v, g, t in zip(velocity, gradient, w, strict=True)]
            clean = [c - 0.1 * v for c, v in zip(clean, velocity, strict=True)]
            w = [t - 0.1 * v for t, v in zip(w, velocity, strict=True)]
        mean = sum(lengths) / len(lengths)
        found.append(Hand(w, mean, length(clean), *lengths_at_noise, losses / 20))
    return found


def train_linear(
    folder: Path, kinds: tuple[str, ...], **recipe: Any
) -> tuple[list[list[Tensor]], list[Epoch]]:
    """The same by ``fit``: parameters after each epoch, and the epochs."""
    model, after = Softmax(), []
    absolute = {
        kind: NoiseSpec(s.target, scale="absolute", persistent=s.persistent) for kind, s in KINDS.items()
    }

    def plan(rows: list[Row]) -> tuple[str, float] | None:
        kind = kinds[len(rows)]
        return (kind, ABSOLUTE[kind]) if kind else None

    run = train(
        folder, plan, model=model, source=plain_source(), kinds=absolute, epochs=len(kinds),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2), lr=constant(0.1),
        body=lambda run, epoch: after.append([p.detach().clone().double() for p in model.parameters()]), **recipe,
    )  # fmt: skip
    return after, run.epochs


def close(one: list[Tensor], other: list[Tensor], atol: float = 1e-5) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=atol) for a, b in zip(one, other, strict=True))


HANDS = [
    ("",) * 2,
    *[(kind,) * 2 for kind in KINDS],
    ("gradient", "weight", "", "permanent", "input", "label"),
]


@pytest.mark.parametrize("clip", [math.inf, 0.3])
@pytest.mark.parametrize("kinds", HANDS, ids="-".join)
def test_a_noisy_run_is_that_by_hand(tmp_path: Path, kinds: tuple[str, ...], clip: float) -> None:
    """Weights, loss, clean gradient length, clean update, and the lengths before and after noise, epoch by epoch."""
    expected = by_hand(kinds, clip)
    after, epochs = train_linear(tmp_path, kinds, **({} if clip == math.inf else {"clip_norm": clip}))
    for kind, hand, weights, epoch in zip(kinds, expected, after, epochs, strict=True):
        assert close(weights, hand.weights)
        assert epoch.means["loss_full"] == pytest.approx(hand.loss, rel=1e-5)
        assert epoch.update_norm == pytest.approx(hand.update_norm, rel=1e-4)
        assert epoch.means.get("grad_norm") == (
            None if kind in ("weight", "permanent") else pytest.approx(hand.grad_norm, rel=1e-5)
        )
        acts = kind in ("gradient", "weight", "permanent")
        assert epoch.means.get("norm_before") == (pytest.approx(hand.before, rel=1e-5) if acts else None)
        assert epoch.means.get("norm_after") == (pytest.approx(hand.after, rel=1e-5) if acts else None)


def test_the_gradient_norm_of_a_run_with_gradient_noise_is_that_before_the_noise(tmp_path: Path) -> None:
    """One epoch without updates: the clean lengths are those of the run without noise, to the bit."""
    found = {}
    for kind in ("", "gradient"):
        _, (epoch,) = train_linear_still(tmp_path / f"-{kind}", kind)
        found[kind] = epoch.means
    assert found["gradient"]["grad_norm"] == found[""]["grad_norm"]
    assert found["gradient"]["norm_after"] > 1.1 * found["gradient"]["norm_before"]  # which would show in it


def train_linear_still(folder: Path, kind: str) -> tuple[SteppedModel, list[Epoch]]:
    """One epoch at learning rate 0."""
    model = Softmax()
    plan = steady(kind) if kind else no_noise
    run = train(folder, plan, model=model, source=plain_source(), epochs=1, lr=constant(0.0))
    return model, run.epochs


@pytest.mark.parametrize("kind", KINDS)
def test_only_permanent_noise_moves_weights_by_itself(tmp_path: Path, kind: str) -> None:
    """At learning rate 0 nothing else does: temporary noise leaves every bit, and no clean update is seen."""
    model, (epoch,) = train_linear_still(tmp_path, kind)
    stays = all(torch.equal(a, b) for a, b in zip(model.parameters(), Softmax().parameters(), strict=True))
    assert stays == (kind != "permanent")
    assert epoch.update_norm == pytest.approx(0, abs=1e-6)


def test_temporary_weight_noise_is_neither_a_clean_gradient_nor_a_step_from_the_noisy_point() -> None:
    """The loop by hand tells the three apart, so the comparison with it means something."""
    temporary, permanent, plain = (by_hand((kind,) * 2)[-1].weights for kind in ("weight", "permanent", ""))
    assert not close(temporary, plain, atol=1e-3)
    assert not close(temporary, permanent, atol=1e-3)


def test_permanent_noise_stays_and_its_sum_is_no_update() -> None:
    """By hand the clean update is far shorter than end minus start, so the comparison with it means something."""
    (hand,) = by_hand(("permanent",))
    start = [p.detach().double() for p in Softmax().parameters()]
    moved = length([a - b for a, b in zip(hand.weights, start, strict=True)])
    assert moved > 1.2 * hand.update_norm


@pytest.mark.parametrize("name", ["plain", *(kind for kind in KINDS if kind != "permanent")])
def test_where_no_noise_stays_the_update_norm_is_that_of_end_minus_start(tmp_path: Path, name: str) -> None:
    """All parameters of a network with BatchNorm; running statistics do not count."""
    plan, epochs = PLANS.get(name, (no_noise, 2))
    model = fresh_model()
    points = [parameters_of(deepcopy(model.state_dict()), model)]
    run = train(
        tmp_path, plan, model=model, epochs=epochs,
        body=lambda run, epoch: points.append(parameters_of(deepcopy(model.state_dict()), model)),
    )  # fmt: skip
    assert len(points[0]) == 8
    for epoch, start, end in zip(run.epochs, points[:-1], points[1:], strict=True):
        expected = length([b.double() - a.double() for a, b in zip(start, end, strict=True)])
        assert epoch.update_norm == pytest.approx(expected, rel=1e-6)


def test_an_epochs_noise_is_new_in_every_step_and_epoch(tmp_path: Path) -> None:
    """What permanent noise adds at learning rate 0, relative to weights that hardly change, correlates with nothing."""
    model, points = fresh_model(), []

    def lr(clock: Clock) -> float:
        points.append(model.hidden[0].weight.detach().flatten().clone())
        return 0.0

    train(tmp_path, steady("permanent", 0.01), model=model, lr=lr)
    points.append(model.hidden[0].weight.detach().flatten().clone())
    steps = torch.stack([b - a for a, b in pairwise(points)])
    assert len(steps) == 6
    assert (torch.corrcoef(steps) - torch.eye(6)).abs().max() < 5 / math.sqrt(steps.shape[1])


def test_a_run_in_single_step_epochs_tells_its_norms_in_each(tmp_path: Path) -> None:
    source = ShuffledSource(tiny_images(), 20, seed=0)
    run = train(tmp_path, by_epoch("gradient", "gradient", ""), source=source, epochs=3)
    assert ["norm_before" in epoch.means for epoch in run.epochs] == [True, True, False]
    assert run.epochs[0].means["norm_before"] == run.epochs[0].means["grad_norm"]


# ---- BatchNorm -----------------------------------------------------------------------------------------------------


class TwoNorms(SteppedModel):
    """Convolution, BatchNorm, ReLU, dropout, convolution, BatchNorm, ReLU; output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1, self.drop = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.two, self.norm2, self.output = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.Linear(5 * 16, 3)
        self.site = Site("second", "two", (5, 4, 4))

    def steps(self) -> list[Step]:
        return [
            (None, lambda x: self.drop(self.norm1(self.one(x)).relu())),
            (self.site, self.two),
            (None, lambda x: self.output(self.norm2(x).relu().flatten(1))),
        ]


def two_norms() -> TwoNorms:
    with seeded(0, "init"):
        return TwoNorms()


def statistics_by_hand(weights: dict[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
    """Means over ``batches`` of each layer's batch mean and unbiased batch variance per channel; no dropout."""
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        x = batch.images
        for conv, norm in (("one", "norm1"), ("two", "norm2")):
            x = conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"])
            channels = x.double().transpose(0, 1).flatten(1)
            n = channels.shape[1]
            mean = channels.sum(1) / n
            variance = ((channels - mean[:, None]) ** 2).sum(1) / (n - 1)
            found.setdefault(f"{norm}.running_mean", []).append(mean)
            found.setdefault(f"{norm}.running_var", []).append(variance)
            x = batch_norm(
                x, None, None, weights[f"{norm}.weight"], weights[f"{norm}.bias"], training=True
            ).relu()
    return {name: torch.stack(values).mean(0).float() for name, values in found.items()}


def assert_statistics(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "batch_size", "steps"), [(46, 2, 23), (20, 8, 3)])
def test_after_temporary_weight_noise_batchnorm_has_the_statistics_of_20_clean_batches(
    tmp_path: Path, n: int, batch_size: int, steps: int
) -> None:
    """The epoch's first 20 or all it has, at the weights of its end; the short last one counts like the others."""
    source = ShuffledSource(tiny_images(n), batch_size, seed=0, augment=AUGMENTS["crop"])
    assert source.steps() == steps
    after: list[dict[str, Tensor]] = []
    model = two_norms()

    def look(run: RunFolder, epoch: Epoch) -> None:
        after.append(deepcopy(model.state_dict()))

    train(tmp_path, steady("weight"), model=model, source=source, body=look)
    for epoch, weights in enumerate(after, 1):
        assert_statistics(weights, statistics_by_hand(weights, list(source.epoch(epoch))[:20]))
        assert int(weights["norm1.num_batches_tracked"]) == int(weights["norm2.num_batches_tracked"]) == 0
        if steps > 20:  # more batches would be told apart
            other = statistics_by_hand(weights, list(source.epoch(epoch)))
            assert not torch.allclose(weights["norm1.running_mean"], other["norm1.running_mean"], rtol=1e-5)


def test_the_checkpoint_of_an_epoch_of_temporary_weight_noise_holds_the_new_statistics(
    tmp_path: Path,
) -> None:
    found = []

    def look(run: RunFolder, epoch: Epoch) -> None:
        kept = torch.load(run.checkpoints()[-1], weights_only=True)
        found.append((kept["epoch"], kept["step"], same_weights(kept["model"], model.state_dict())))

    model = two_norms()
    train(tmp_path, steady("weight"), model=model, body=look, checkpoint_every_s=0.0)
    assert found == [(1, STEPS, True), (2, STEPS, True)]


@pytest.mark.parametrize("kind", ["", "gradient", "permanent", "input", "label"])
def test_other_noise_leaves_batchnorms_moving_averages_as_they_are(tmp_path: Path, kind: str) -> None:
    """Averages at momentum 0.1 of what the training steps saw, noisy images and weights among it, each step counted."""
    model, seen = two_norms(), [torch.zeros(4)]

    class Following(CrossEntropy):
        def __call__(self, model: SteppedModel, batch: Batch, draws: dict[str, Tensor]) -> Any:
            seen.append(0.9 * seen[-1] + 0.1 * model.one(batch.images).detach().mean((0, 2, 3)))
            return super().__call__(model, batch, draws)

    run = train(tmp_path, steady(kind) if kind else no_noise, model=model, objective=Following())
    assert int(run.weights["norm1.num_batches_tracked"]) == 2 * STEPS
    torch.testing.assert_close(run.weights["norm1.running_mean"], seen[-1], rtol=1e-5, atol=1e-6)


def test_a_temporary_epoch_between_others_is_not_counted_and_the_next_goes_on_from_its_statistics(
    tmp_path: Path,
) -> None:
    source = ShuffledSource(tiny_images(), 8, seed=0, augment=AUGMENTS["crop"])
    counts, means, model = [], [], two_norms()

    def look(run: RunFolder, epoch: Epoch) -> None:
        counts.append(int(model.norm2.num_batches_tracked))
        means.append(model.norm1.running_mean.clone())

    train(
        tmp_path, by_epoch("gradient", "weight", "input"), model=model, source=source, body=look, epochs=3, lr=constant(0.0),
        kinds={**KINDS, "input": NoiseSpec("label")},
    )  # fmt: skip
    assert counts == [STEPS, STEPS, 2 * STEPS]
    mean = means[1]
    for batch in source.epoch(3):
        mean = 0.9 * mean + 0.1 * model.one(batch.images).detach().mean((0, 2, 3))
    torch.testing.assert_close(means[2], mean, rtol=1e-5, atol=1e-6)


def test_statistics_are_estimated_in_the_precision_of_training(tmp_path: Path) -> None:
    model = two_norms()
    run = train(tmp_path, steady("weight"), model=model, precision="bf16")
    source = ShuffledSource(tiny_images(), 8, seed=0, augment=AUGMENTS["crop"])
    for precision, same in ((torch.autocast("cpu", torch.bfloat16), True), (nullcontext(), False)):
        with precision, one_thread():
            estimate_statistics(model, source.epoch(2))
        assert same_weights(run.weights, model.state_dict()) == same


# ---- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "step"), EVERY_STEP)
def test_a_noisy_run_stopped_after_any_step_and_started_again_ends_with_the_same_weights_and_rows(
    tmp_path: Path, undisturbed: Callable[[str], Trained], name: str, step: int
) -> None:
    plan, epochs = PLANS[name]
    with pytest.raises(Interrupted):
        train(tmp_path, plan, epochs=epochs, stop_after=step)
    assert train(tmp_path, plan, epochs=epochs).same(undisturbed(name))


@pytest.mark.parametrize("in_forward", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_a_noisy_run_that_crashed_in_every_step_and_was_started_again_ends_with_the_same_weights_and_rows(
    tmp_path: Path, undisturbed: Callable[[str], Trained], name: str, in_forward: bool
) -> None:
    """Each start does one step, whose state is kept, and dies in the next."""
    plan, epochs = PLANS[name]
    for _ in range(STEPS * epochs - 1):
        with pytest.raises(Crash):
            train(tmp_path, plan, epochs=epochs, objective=Crashing(2, in_forward), checkpoint_every_s=0.0)
    again = train(tmp_path, plan, epochs=epochs, objective=Crashing(2, in_forward))
    assert [epoch.number for epoch in again.epochs] == [epochs]
    assert again.same(undisturbed(name))


@pytest.mark.parametrize("name", PLANS)
def test_a_noisy_run_that_goes_back_to_its_last_checkpoint_does_the_lost_steps_again(
    tmp_path: Path, undisturbed: Callable[[str], Trained], name: str
) -> None:
    plan, epochs = PLANS[name]
    with pytest.raises(Interrupted):
        train(tmp_path, plan, epochs=epochs, stop_after=2)
    with pytest.raises(Crash):  # all of the epochs to the last step's
        train(tmp_path, plan, epochs=epochs, objective=Crashing(STEPS * epochs - 2))
    again = train(tmp_path, plan, epochs=epochs)
    assert [epoch.number for epoch in again.epochs] == list(range(1, epochs + 1))
    assert again.same(undisturbed(name))


@pytest.mark.parametrize(("name", "epoch"), EVERY_EPOCH)
def test_a_noisy_run_that_crashed_in_the_loop_body_measures_the_epoch_again_and_ends_the_same(
    tmp_path: Path, undisturbed: Callable[[str], Trained], name: str, epoch: int
) -> None:
    def crash(run: RunFolder, now: Epoch) -> None:
        if now.number == epoch:
            raise Crash

    plan, epochs = PLANS[name]
    with pytest.raises(Crash):
        train(tmp_path, plan, epochs=epochs, body=crash, checkpoint_every_s=0.0)
    again = train(tmp_path, plan, epochs=epochs)
    assert [now.number for now in again.epochs] == list(range(epoch, epochs + 1))
    assert again.same(undisturbed(name))


@pytest.mark.parametrize("name", ["weight", "permanent", "controlled"])
def test_a_noisy_run_stopped_after_every_single_step_ends_with_the_same_weights_and_rows(
    tmp_path: Path, undisturbed: Callable[[str], Trained], name: str
) -> None:
    plan, epochs = PLANS[name]
    for _ in range(STEPS * epochs):
        with pytest.raises(Interrupted):
            train(tmp_path, plan, epochs=epochs, stop_after=1)
    assert train(tmp_path, plan, epochs=epochs, stop_after=1).same(undisturbed(name))


def test_a_signal_while_a_noisy_epoch_is_measured_loses_no_step(
    tmp_path: Path, undisturbed: Callable[[str], Trained]
) -> None:
    stop = StopFlag()

    def interrupt(run: RunFolder, epoch: Epoch) -> None:
        stop.number = signal.SIGTERM if epoch.number == 3 else 0

    with pytest.raises(Interrupted):
        train(tmp_path, controlled, epochs=5, stop=stop, body=interrupt)
    assert [p.name for p in tiny_folder(tmp_path).checkpoints()] == ["checkpoint-000003-00000003.pt"]
    assert train(tmp_path, controlled, epochs=5).same(undisturbed("controlled"))


@pytest.mark.parametrize("name", ["weight", "controlled"])
def test_temporary_noise_is_in_no_checkpoint(tmp_path: Path, name: str) -> None:
    """At learning rate 0 every state of before permanent noise has the weights of the start."""
    start, looked = fresh_model(), []

    def look(clock: Clock) -> float:
        for path in tiny_folder(tmp_path).checkpoints():
            content = torch.load(path, weights_only=True)
            if content["epoch"] <= 4:
                weights = parameters_of(content["model"], start)
                looked.append(all(map(torch.equal, weights, start.parameters())))
        return 0.0

    plan, epochs = PLANS[name]
    train(tmp_path, plan, epochs=epochs, lr=look, checkpoint_every_s=0.0)
    assert len(looked) > 5
    assert all(looked)


# ---- what decides --------------------------------------------------------------------------------------------------


def asked(folder: Path, **more: Any) -> list[tuple[int, tuple[str, float] | None]]:
    """Every question that ``fit`` put to ``controlled``: how many rows there were, and the answer."""
    calls = []

    def plan(rows: list[Row]) -> tuple[str, float] | None:
        assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
        calls.append((len(rows), controlled(rows)))
        return calls[-1][1]

    with suppress(Interrupted):
        train(folder, plan, epochs=5, **more)
    return calls


@pytest.mark.parametrize("step", [7, 8, 9, 13, 14])
def test_what_decides_is_asked_again_in_the_middle_of_an_epoch_and_gives_the_same_noise(
    tmp_path: Path, step: int
) -> None:
    whole = asked(tmp_path / "whole")
    assert [rows for rows, _ in whole[:3]] == [
        0,
        1,
        1,
    ]  # before an epoch, after it (is it the last?), before the next
    answers = dict(whole)
    assert [answer and answer[0] for answer in answers.values()] == [
        "gradient",
        None,
        "weight",
        None,
        "permanent",
    ]
    asked(tmp_path / "stopped", stop_after=step)
    first_rows, first_answer = asked(tmp_path / "stopped")[0]
    assert first_rows == (step - 1) // STEPS  # the rows of the epochs before the one that is gone on with
    assert first_answer == answers[first_rows]


def test_noise_of_an_epoch_is_what_was_decided_before_it(tmp_path: Path) -> None:
    """A plan that also looks at the row of the epoch, or is asked too late, would shift it by one."""
    run = train(tmp_path, by_epoch("", "gradient", "", "weight"), epochs=4)
    assert ["norm_before" in epoch.means for epoch in run.epochs] == [False, True, False, True]
    assert ["grad_norm" in epoch.means for epoch in run.epochs] == [True, True, True, False]


def test_a_run_may_be_stopped_by_what_decides_after_a_noisy_epoch(tmp_path: Path) -> None:
    """The last state is kept, also of an epoch whose statistics were estimated."""
    model, run = fresh_model(), tiny_folder(tmp_path)
    noise = Noise(model, KINDS["weight"], seed=SEED, classes=3)
    recipe = Recipe(5, partial(torch.optim.SGD, lr=0.1), constant(0.1), checkpoint_every_s=1e9, watch=True)

    def decide(rows: list[Row]) -> Decision:
        return Decision(stop=len(rows) == 2, noise=Dose(noise, 0.1))

    with run.claimed(), one_thread():
        for epoch in fit(run, model, CrossEntropy(), plain_source(), recipe, None, decide, show=unseen):
            run.log(kind="epoch", epoch=epoch.number)
    kept = torch.load(run.checkpoints()[-1], weights_only=True)
    assert (kept["epoch"], kept["step"]) == (2, STEPS)
    assert same_weights(kept["model"], model.state_dict())


def test_a_stop_that_is_asked_for_in_the_middle_of_an_epoch_lets_it_end_first(tmp_path: Path) -> None:
    """Say, on other advice than before the kill."""
    with pytest.raises(Interrupted):
        train(tmp_path, stop_after=STEPS + 1)
    model, run = fresh_model(), tiny_folder(tmp_path)
    recipe = Recipe(5, partial(torch.optim.SGD, lr=0.1), constant(0.1))
    with run.claimed(), one_thread():
        seen = []
        for epoch in fit(
            run,
            model,
            CrossEntropy(),
            plain_source(),
            recipe,
            decide=lambda rows: Decision(stop=True),
            show=unseen,
        ):
            seen.append((epoch.number, model.get_buffer("conv.1.num_batches_tracked").item()))
    assert seen == [(2, 2 * STEPS)]


# ---- what a person sees --------------------------------------------------------------------------------------------


class Screen:
    """Writes down what it is asked to show."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int, int]] = []
        self.advanced: list[tuple[int, str]] = []
        self.closed = 0

    @contextmanager
    def __call__(self, label: str, total: int, done: int) -> Iterator[Callable[..., None]]:
        self.opened.append((label, total, done))
        try:
            yield lambda done, note="": self.advanced.append((done, note))
        finally:
            self.closed += 1


def test_a_studys_own_screen_gets_label_total_and_done_and_every_step(tmp_path: Path) -> None:
    label, first, second = tiny_folder(tmp_path).path.name, Screen(), Screen()
    with pytest.raises(Interrupted):
        train(tmp_path, show=first, stop_after=4)
    assert first.opened == [(label, 6, 0)]
    assert first.advanced == [(n, "at most") for n in (1, 2, 3, 4)]  # what decides may end it sooner
    assert first.closed == 1
    train(tmp_path, show=second)
    assert second.opened == [(label, 6, 4)]
    assert second.advanced == [(5, "at most"), (6, "at most")]
    assert second.closed == 1


def test_a_run_that_nothing_can_end_sooner_says_no_at_most(tmp_path: Path) -> None:
    screen, run = Screen(), tiny_folder(tmp_path)
    recipe = Recipe(2, partial(torch.optim.SGD, lr=0.1), constant(0.1))
    with run.claimed(), one_thread():
        assert len(list(fit(run, fresh_model(), CrossEntropy(), plain_source(), recipe, show=screen))) == 2
    assert screen.advanced == [(n, "") for n in range(1, 7)]


# ---- divergence ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gradient", "permanent", "weight", "input"])
def test_a_run_that_diverged_under_noise_is_told_to_try_less_noise_too(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        Diverged, match=r"training diverged \(.*\); try a lower learning rate, or less noise$"
    ):
        train(tmp_path, steady(kind, 1e38))


def test_a_run_that_diverged_without_noise_is_not_told_of_any(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"try a lower learning rate$"):
        train(tmp_path, by_epoch("gradient", ""), lr=lambda clock: 0.1 if clock.epoch == 1 else 1e38)


# ---- what a checkpoint holds ---------------------------------------------------------------------------------------


def newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    path = tiny_folder(folder).checkpoints()[-1]
    return path, torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", ["plain", "weight", "gradient"])
def test_the_checkpoint_of_a_watched_run_holds_the_weights_that_its_epoch_began_with(
    tmp_path: Path, name: str
) -> None:
    plan, _ = PLANS.get(name, (no_noise, 2))
    with pytest.raises(Interrupted):
        train(tmp_path / "one", plan, stop_after=STEPS)
    _, end_of_first = newest(tmp_path / "one")
    names = [n for n, _ in fresh_model().named_parameters()]
    assert list(end_of_first["start"]) == names
    assert same_weights(end_of_first["start"], dict(fresh_model().named_parameters()))
    with pytest.raises(Interrupted):
        train(tmp_path / "two", plan, stop_after=STEPS + 2)
    _, in_second = newest(tmp_path / "two")
    assert list(in_second["start"]) == names
    assert same_weights(in_second["start"], end_of_first["model"])
    assert not same_weights(in_second["start"], in_second["model"])


def test_in_a_checkpoint_permanent_noise_has_moved_the_start_along(tmp_path: Path) -> None:
    """At learning rate 0 the weights are the start and the noise."""
    with pytest.raises(Interrupted):
        train(tmp_path, steady("permanent"), stop_after=2, lr=constant(0.0))
    _, content = newest(tmp_path)
    first = dict(fresh_model().named_parameters())
    for name, value in content["start"].items():
        torch.testing.assert_close(value, content["model"][name], rtol=0, atol=1e-6)
    assert not torch.allclose(content["start"]["hidden.0.weight"], first["hidden.0.weight"], atol=1e-3)


@pytest.mark.parametrize("name", ["plain", "permanent"])
def test_the_checkpoint_of_a_run_that_is_not_watched_holds_no_second_set_of_weights(
    tmp_path: Path, name: str
) -> None:
    plan, _ = PLANS.get(name, (no_noise, 2))
    whole = train(tmp_path / "whole", plan, watch=False)
    assert newest(tmp_path / "whole")[1]["start"] is None
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", plan, watch=False, stop_after=4)
    path, content = newest(tmp_path / "stopped")
    assert content.pop("start") is None
    torch.save(content, tmp_path / "old.pt")  # as those of before were
    write_checked(path, (tmp_path / "old.pt").read_bytes())
    assert train(tmp_path / "stopped", plan, watch=False).same(whole)
