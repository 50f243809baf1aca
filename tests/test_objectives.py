"""The masked loss, against the closed forms of masked-loss.md 1.5 and against one plain hooked pass per mask; the
losses of corrected batches, sample by sample."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab.images import Batch
from perturblab.models import VGG
from perturblab.objectives import Clock, Loss, Objective
from perturblab.objectives.corrected import Balanced, Imbalanced
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.objectives.masked import MaskedLoss, combine, warmed_up
from perturblab.sites import Step, SteppedModel
from perturblab.streams import seeded, stream
from perturblab.studies.correction import equal_lambda
from perturblab.studies.masked_loss import Train
from perturblab.studies.masked_loss import run as study

LATE = Clock(epoch=150, step=0, steps=1, epochs=200)
CLAMPS = ("hard", "rescale", "none")
lambdas = st.floats(0, 3, width=32)
seeds = st.integers(0, 10**6)


def a_batch(n: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    generator = stream(seed, "batch")
    images = torch.randn(n, 3, 32, 32, generator=generator, dtype=dtype)
    return Batch(images, torch.randint(10, (n,), generator=generator), torch.arange(n))


def a_model(dtype: torch.dtype = torch.float32) -> VGG:
    """In training mode; its output layer is large enough that losses differ from ln 10."""
    with seeded(0, "init"):
        model = VGG("vgg11", width=0.05)
        nn.init.normal_(model.classifier[2].weight, 0, 0.5)
    return model.to(dtype)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def value(number: Tensor | int) -> float:
    return number.item() if isinstance(number, Tensor) else number


def gradients(total: Tensor, *of: Tensor) -> list[float]:
    return [g.item() if g is not None else 0.0 for g in torch.autograd.grad(total, of, allow_unused=True)]


# ---- L_total from its two losses -------------------------------------------------------------------------------


def two_losses(seed: int, scale: float) -> tuple[Tensor, Tensor, list[Tensor]]:
    """L_full and L_ablated of a random linear head under three random masks, and what they depend on."""
    generator = stream(seed, "head")
    hidden = torch.randn(8, 12, generator=generator).relu().requires_grad_()
    head = (scale * torch.randn(10, 12, generator=generator)).requires_grad_()
    labels = torch.randint(10, (8,), generator=generator)
    masks = torch.rand(3, 12, generator=generator) < 0.5
    ablated = torch.stack([cross_entropy((hidden * mask) @ head.T, labels) for mask in masks]).mean()
    return cross_entropy(hidden @ head.T, labels), ablated, [hidden, head]


@given(seeds, st.floats(0.01, 3), lambdas)
@settings(max_examples=60, deadline=None)
def test_while_the_clamp_acts_the_gradient_is_exactly_1_minus_half_lambda_times_that_of_the_full_loss(
    seed, scale, lam
) -> None:
    full, ablated, inputs = two_losses(seed, scale)
    assume(ablated > 0.5 * full)
    weight = torch.tensor(lam)
    found = torch.autograd.grad(combine(full, ablated, weight, "hard"), inputs, retain_graph=True)
    expected = torch.autograd.grad((1 - weight / 2) * full, inputs)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


@given(seeds, st.floats(0.01, 3))
@settings(max_examples=30, deadline=None)
def test_with_lambda_1_it_is_exactly_half_the_gradient_of_the_full_loss(seed, scale) -> None:
    full, ablated, inputs = two_losses(seed, scale)
    assume(ablated > 0.5 * full)
    found = torch.autograd.grad(combine(full, ablated, torch.tensor(1.0), "hard"), inputs, retain_graph=True)
    assert all(torch.equal(f, 0.5 * g) for f, g in zip(found, torch.autograd.grad(full, inputs), strict=True))


@given(st.floats(0.1, 20), st.floats(0, 0.49), lambdas)
def test_while_the_clamp_does_not_act_the_ablated_loss_counts_in_full(f, share, lam) -> None:
    for clamp in ("hard", "rescale", "none"):
        full, ablated = scalar(f), scalar(share * f)
        total = combine(full, ablated, torch.tensor(lam, dtype=torch.float64), clamp)
        assert total.item() == pytest.approx(f - lam * share * f)
        assert gradients(total, full, ablated) == pytest.approx([1, -lam])


def test_the_gradient_in_logits_is_that_of_the_two_cross_entropies_when_the_clamp_does_not_act() -> None:
    """Intact confidently wrong, ablated right: softmax minus one-hot, over the batch."""
    generator = stream(0, "logits")
    labels = torch.randint(10, (6,), generator=generator)
    one_hot = nn.functional.one_hot(labels, 10).double()
    intact = (torch.randn(6, 10, generator=generator, dtype=torch.float64) - 9 * one_hot).requires_grad_()
    ablated = (torch.randn(6, 10, generator=generator, dtype=torch.float64) + 5 * one_hot).requires_grad_()
    losses = cross_entropy(intact, labels), cross_entropy(ablated, labels)
    assert losses[1] < 0.5 * losses[0]
    found = torch.autograd.grad(
        combine(*losses, torch.tensor(0.7, dtype=torch.float64), "hard"), [intact, ablated]
    )
    torch.testing.assert_close(found[0], (intact.softmax(1) - one_hot) / 6)
    torch.testing.assert_close(found[1], -0.7 * (ablated.softmax(1) - one_hot) / 6)


@given(st.floats(0.1, 20), lambdas)
def test_at_a_tie_the_gradient_is_split_as_torch_min_does(f, lam) -> None:
    full, ablated = scalar(f), scalar(0.5 * f)
    total = combine(full, ablated, torch.tensor(lam, dtype=torch.float64), "hard")
    assert gradients(total, full, ablated) == pytest.approx([1 - lam / 4, -lam / 2])


@given(st.floats(0.01, 20), st.floats(0.51, 30), lambdas)
def test_rescale_has_the_value_of_hard_and_lets_the_ablated_gradient_through(f, share, lam) -> None:
    full, ablated, weight = scalar(f), scalar(share * f), torch.tensor(lam, dtype=torch.float64)
    hard, rescaled = (combine(full, ablated, weight, clamp) for clamp in ("hard", "rescale"))
    assert rescaled.item() == pytest.approx(hard.item()) == pytest.approx(f * (1 - lam / 2))
    assert gradients(hard, full, ablated) == pytest.approx([1 - lam / 2, 0])
    assert gradients(rescaled, full, ablated) == pytest.approx([1, -lam * 0.5 / share])


@given(st.floats(0.01, 20), st.floats(0, 30), lambdas)
def test_without_a_clamp_the_ablated_loss_always_counts_in_full(f, share, lam) -> None:
    full, ablated = scalar(f), scalar(share * f)
    total = combine(full, ablated, torch.tensor(lam, dtype=torch.float64), "none")
    assert total.item() == pytest.approx(f - lam * share * f)
    assert gradients(total, full, ablated) == pytest.approx([1, -lam])


@pytest.mark.parametrize("clamp", CLAMPS)
def test_two_losses_of_zero_give_zero_and_finite_gradients(clamp) -> None:
    full, ablated = scalar(0.0), scalar(0.0)
    total = combine(full, ablated, torch.tensor(1.0, dtype=torch.float64), clamp)
    assert total.item() == 0
    assert torch.tensor(gradients(total, full, ablated)).isfinite().all()


# ---- lambda ------------------------------------------------------------------------------------------------------


def over_epochs(weight, epochs: int) -> list[float]:
    return [weight(Clock(epoch, 0, 1, epochs)) for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize("epochs", [5, 9, 10, 14, 15, 35, 37, 200, 300])
@pytest.mark.parametrize("lambda_max", [0.0, 0.3, 1.0, 2.5])
def test_lambda_rises_linearly_over_the_first_fifth_of_the_epochs_and_stays(epochs, lambda_max) -> None:
    warmup = epochs // 5
    found = over_epochs(warmed_up(lambda_max), epochs)
    assert found == pytest.approx([lambda_max * min(e, warmup) / warmup for e in range(1, epochs + 1)])
    assert found[0] == pytest.approx(lambda_max / int(0.2 * epochs))
    assert set(found[warmup - 1 :]) == {lambda_max}


def test_lambda_of_the_documented_200_epochs_starts_at_a_fortieth() -> None:
    assert over_epochs(warmed_up(1.0), 200)[:3] == pytest.approx([0.025, 0.05, 0.075])


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
def test_below_five_epochs_lambda_is_at_its_maximum_from_the_start(epochs) -> None:
    assert over_epochs(warmed_up(0.7), epochs) == [0.7] * epochs


def test_lambda_max_changes_the_loss() -> None:
    totals = set()
    for lambda_max in (0.0, 0.5, 1.0):
        loss = MaskedLoss(0, 26, lambda_max=lambda_max)
        totals.add(round(loss(a_model(), a_batch(), loss.draw(a_batch(), LATE)).total.item(), 6))
    assert len(totals) == 3


# ---- masks -------------------------------------------------------------------------------------------------------


def masks_at(objective: MaskedLoss, batch: Batch, epoch: int = 1, step: int = 0) -> Tensor:
    return objective.draw(batch, Clock(epoch, step, 10, 200))["keep_masks"]


def test_masks_depend_on_seed_epoch_and_step_and_on_nothing_in_the_batch() -> None:
    loss = MaskedLoss(3, 512)
    masks = masks_at(loss, a_batch(5, seed=0))
    assert torch.equal(masks, masks_at(loss, a_batch(9, seed=1)))
    assert torch.equal(masks, masks_at(MaskedLoss(3, 512, lambda_max=0.1, clamp="none"), a_batch()))
    for other in (
        masks_at(loss, a_batch(), epoch=2),
        masks_at(loss, a_batch(), step=1),
        masks_at(MaskedLoss(4, 512), a_batch()),
    ):
        assert not torch.equal(masks, other)


@pytest.mark.parametrize("n_masks", [1, 3, 7])
def test_each_step_draws_as_many_masks_as_asked_for(n_masks) -> None:
    masks = masks_at(MaskedLoss(0, 512, n_masks), a_batch())
    assert masks.shape == (n_masks, 512)
    assert masks.dtype == torch.bool
    assert 1 <= int(masks.sum(1).min()) <= int(masks.sum(1).max()) <= 510


# ---- the whole objective against plain hooked passes -----------------------------------------------------------------


def naive(model: VGG, layer: nn.Module, batch: Batch, masks: Tensor, lam: float, clamp: str) -> Tensor:
    """The document's loss by a whole pass per mask, with a forward hook that multiplies the layer's output."""
    full = cross_entropy(model(batch.images), batch.labels)
    losses = []
    for mask in masks:
        handle = layer.register_forward_hook(
            lambda _, __, out, m=mask: out * m.view(1, -1, *[1] * (out.dim() - 2))
        )
        losses.append(cross_entropy(model(batch.images), batch.labels))
        handle.remove()
    ablated = sum(losses) / len(losses)
    if clamp == "none":
        return full - lam * ablated
    if clamp == "hard":
        return full - lam * torch.min(ablated, 0.5 * full)
    return full - lam * min(1.0, (0.5 * full / ablated).item()) * ablated


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize(
    ("site", "layer", "passes"), [("hidden", "classifier.1", 1), ("conv1", "features.2", 4)]
)
def test_value_and_gradient_are_those_of_a_hooked_pass_per_mask(site, layer, passes, clamp) -> None:
    ours, batch = a_model(torch.float64), a_batch(dtype=torch.float64)
    theirs, once = copy.deepcopy(ours), copy.deepcopy(ours)
    calls: list[int] = []
    ours.features[0].register_forward_hook(lambda *_: calls.append(1))
    objective = MaskedLoss(1, ours.site(site).width, 3, 0.75, clamp, site)
    draws = objective.draw(batch, LATE)

    loss = objective(ours, batch, draws)
    expected = naive(theirs, theirs.get_submodule(layer), batch, draws["keep_masks"], 0.75, clamp)
    loss.total.backward()
    expected.backward()

    torch.testing.assert_close(loss.total, expected, rtol=0, atol=1e-10)
    for mine, plain in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, plain.grad, rtol=0, atol=1e-10)
    assert len(calls) == passes  # the trunk runs once where masks act behind it
    once(batch.images)
    for (name, mine), plain in zip(ours.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(mine, plain), name  # BatchNorm moved exactly once
    assert ours.features[1].num_batches_tracked == 1


def test_the_masked_gradient_reaches_the_weights_under_rescale_and_not_under_hard() -> None:
    grads = {}
    for clamp in ("hard", "rescale"):
        model, objective = a_model(), MaskedLoss(0, 26, clamp=clamp)
        loss = objective(model, a_batch(), objective.draw(a_batch(), LATE))
        assert value(loss.parts["clamp_active"][0]) == 1
        loss.total.backward()
        grads[clamp] = model.classifier[0].weight.grad
    plain = a_model()
    (0.5 * cross_entropy(plain(a_batch().images), a_batch().labels)).backward()
    assert torch.equal(grads["hard"], plain.classifier[0].weight.grad)
    assert not torch.allclose(grads["rescale"], plain.classifier[0].weight.grad)


@pytest.mark.parametrize("site", ["hidden", "conv1"])
def test_with_lambda_0_a_step_is_a_step_of_plain_cross_entropy(site) -> None:
    masked, plain = a_model(), a_model()
    objective = MaskedLoss(0, masked.site(site).width, lambda_max=0.0, site=site)
    objective(masked, a_batch(), objective.draw(a_batch(), LATE)).total.backward()
    CrossEntropy()(plain, a_batch(), {}).total.backward()
    assert all(
        torch.equal(a.grad, b.grad) for a, b in zip(masked.parameters(), plain.parameters(), strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(masked.buffers(), plain.buffers(), strict=True))


def test_the_logits_are_those_of_the_intact_network() -> None:
    for worker in (MaskedLoss(0, 26), MaskedLoss(0, 3, site="conv1"), CrossEntropy()):
        loss = worker(a_model(), a_batch(), worker.draw(a_batch(), LATE))
        assert torch.equal(loss.logits, a_model()(a_batch().images))
        assert loss.total.shape == ()


# ---- parts -------------------------------------------------------------------------------------------------------


def test_parts_are_sums_with_their_count_so_that_epoch_means_are_over_samples() -> None:
    """Two batches of 7 and 2: the mean over the epoch is over 9 images, not over two batches."""
    objective, model = MaskedLoss(0, 26), a_model().eval()
    batches = [a_batch(7, seed=1), a_batch(2, seed=2)]
    losses = [objective(model, batch, objective.draw(batch, LATE)) for batch in batches]
    for name in ("loss_full", "loss_ablated", "loss_total"):
        assert [loss.parts[name][1] for loss in losses] == [7, 2]
    both = Batch(*(torch.cat([getattr(b, f) for b in batches]) for f in ("images", "labels", "index")))
    together = objective(model, both, objective.draw(both, LATE))
    for name in ("loss_full", "loss_ablated"):
        total, n = (sum(value(loss.parts[name][i]) for loss in losses) for i in (0, 1))
        assert total / n == pytest.approx(value(together.parts[name][0]) / 9, rel=1e-5)
    assert value(together.parts["loss_full"][0]) / 9 == pytest.approx(
        value(cross_entropy(model(both.images), both.labels)), rel=1e-5
    )
    assert value(together.parts["loss_total"][0]) / 9 == pytest.approx(value(together.total), rel=1e-6)


def test_clamp_active_says_1_where_the_ablated_loss_is_over_half_the_full_one_and_0_elsewhere() -> None:
    worker, batch, model = MaskedLoss(0, 26), a_batch(), a_model().eval()
    draws = worker.draw(batch, LATE)
    assert [value(x) for x in worker(model, batch, draws).parts["clamp_active"]] == [1, 1]
    with torch.no_grad():
        model.classifier[2].weight.mul_(300)
        wrong = Batch(batch.images, model(batch.images).argmin(1), batch.index)
    one_unit = {**draws, "keep_masks": torch.eye(26, dtype=torch.bool)}  # confidently wrong only when intact
    assert [value(x) for x in worker(model, wrong, one_unit).parts["clamp_active"]] == [0, 1]


def test_plain_cross_entropy_is_torchs_and_a_weight_multiplies_it() -> None:
    model, batch = a_model().eval(), a_batch()
    expected = cross_entropy(model(batch.images), batch.labels)
    plain, weighted = CrossEntropy(), CrossEntropy(lambda clock: 0.25 * clock.epoch)
    assert plain.draw(batch, LATE) == {}
    loss = plain(model, batch, {})
    assert torch.equal(loss.total, expected)
    found = weighted(model, batch, weighted.draw(batch, Clock(3, 0, 1, 5)))
    assert value(found.total) == pytest.approx(0.75 * value(expected))
    assert value(found.parts["loss_full"][0]) == pytest.approx(5 * value(expected))
    assert value(found.parts["loss_total"][0]) == pytest.approx(5 * 0.75 * value(expected))
    assert {n for _, n in found.parts.values()} == {5}


def by_the_formula(logits: Tensor, labels: Tensor, eps: float) -> float:
    """Mean over the batch of minus the sum over classes of target times log probability."""
    target = (1 - eps) * nn.functional.one_hot(labels, 10) + eps / 10
    return -(target * logits.double().log_softmax(1)).sum(1).mean().item()


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
def test_smoothed_and_mixed_cross_entropy_is_the_documented_formula(eps) -> None:
    """lam * L(y_a) + (1 - lam) * L(y_b), with targets (1 - eps) * one-hot + eps / classes."""
    model, batch, lam = a_model().eval(), a_batch(), 0.3
    second = batch.labels.flip(0)
    mixed = replace(batch, mix=(second, torch.full((5,), lam)))
    logits = model(batch.images).detach()
    first_loss, second_loss = (by_the_formula(logits, labels, eps) for labels in (batch.labels, second))
    worker = CrossEntropy(label_smoothing=eps)
    assert value(worker(model, batch, {}).total) == pytest.approx(first_loss, rel=1e-5)
    found = worker(model, mixed, {})
    assert value(found.total) == pytest.approx(lam * first_loss + (1 - lam) * second_loss, rel=1e-5)
    assert value(found.parts["loss_full"][0]) == pytest.approx(5 * value(found.total))
    assert {n for _, n in found.parts.values()} == {5}


def test_in_a_mixed_batch_each_image_has_its_own_share() -> None:
    model, batch = a_model().eval(), a_batch()
    second, share = batch.labels.flip(0), torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    logits = model(batch.images).detach()
    expected = [
        by_the_formula(logits[i : i + 1], labels[i : i + 1], 0.1) * weight / 5
        for labels, weights in ((batch.labels, share), (second, 1 - share))
        for i, weight in enumerate(weights.tolist())
    ]
    found = CrossEntropy(label_smoothing=0.1)(model, replace(batch, mix=(second, share)), {})
    assert value(found.total) == pytest.approx(sum(expected), rel=1e-5)


# ---- the control arm ---------------------------------------------------------------------------------------------


def trained(worker: Objective, epochs: int, of: int) -> tuple[VGG, list[Loss]]:
    model = a_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    losses = []
    for epoch in range(1, epochs + 1):
        batch = a_batch(seed=epoch)
        loss = worker(model, batch, worker.draw(batch, Clock(epoch, 0, 1, of)))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss)
    return model, losses


def arm(mode: str, **more: object) -> Objective:
    return study.objective(Train.parse({"arch": "vgg11", "mode": mode, "seed": 0, **more}), a_model())


@pytest.mark.parametrize(("of", "tolerance"), [(4, 0.0), (50, 1e-5)])
def test_half_loss_training_reproduces_the_hard_clamp_while_it_acts(of, tolerance) -> None:
    """With lambda 1 to the bit; during the warm-up to the rounding of 1 - lambda / 2."""
    masked, losses = trained(arm("masked"), 4, of)
    control, _ = trained(arm("half-loss"), 4, of)
    assert [value(loss.parts["clamp_active"][0]) for loss in losses] == [1.0] * 4
    for a, b in zip(masked.state_dict().values(), control.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def test_the_settings_of_a_run_choose_its_objective() -> None:
    assert isinstance(arm("baseline"), CrossEntropy)
    assert arm("baseline").draw(a_batch(), LATE) == {}
    assert value(arm("half-loss", lambda_max=0.5).draw(a_batch(), LATE)["weight"]) == 0.75
    draws = arm("masked", n_masks=5, lambda_max=0.5, site="conv1").draw(a_batch(), LATE)
    assert draws["keep_masks"].shape == (5, 3)  # conv1 at width 0.05 has 3 channels
    assert value(draws["weight"]) == 0.5


# ---- corrected images in a batch (correction.md 4.1 and 4.5) ----------------------------------------------------


class AsLogits(SteppedModel):
    """The images are the logits: what the loss does to each of them can be looked at."""

    def steps(self) -> list[Step]:
        return [(None, lambda images: images)]


def mixed_logits(n: int, k: int, seed: int = 0) -> Batch:
    """``n`` logits of three classes, float64, of which the last ``k`` are corrected."""
    generator = stream(seed, "logits")
    logits = 3 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (n,), generator=generator)
    return Batch(logits.requires_grad_(), labels, torch.arange(n), n_corrected=k)


def sample_by_sample(batch: Batch) -> tuple[list[float], list[float]]:
    """The cross-entropies of the images as found, and of the corrected ones: each by its formula, in Python."""
    losses = [
        math.log(sum(math.exp(z) for z in row)) - row[label]
        for row, label in zip(batch.images.tolist(), batch.labels.tolist(), strict=True)
    ]
    here = len(losses) - batch.n_corrected
    return losses[:here], losses[here:]


def mean(losses: list[float]) -> float:
    """An absent group counts 0."""
    return sum(losses) / len(losses) if losses else 0.0


def of_weight(weight: float, batch: Batch) -> Loss:
    """The balanced loss with lambda in double precision, as for a gradient check."""
    return Balanced(0.0)(AsLogits(), batch, {"weight": torch.tensor(weight, dtype=torch.float64)})


def gradient(loss: Loss, batch: Batch) -> Tensor:
    return torch.autograd.grad(loss.total, batch.images)[0]


sizes = st.integers(1, 20).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
"""Images in a batch, and how many of them are corrected: also none, also all."""


@given(sizes, seeds, lambdas)
@settings(deadline=None)
def test_balanced_is_the_mean_over_images_as_found_plus_lambda_times_that_over_corrected_ones(
    size, seed, lam
) -> None:
    batch = mixed_logits(*size, seed)
    found, corrected = sample_by_sample(batch)
    worker = Balanced(lam)
    loss = worker(AsLogits(), batch, worker.draw(batch, LATE))
    assert loss.total.item() == pytest.approx(mean(found) + lam * mean(corrected), rel=1e-9, abs=1e-12)
    assert loss.total.shape == ()
    assert torch.equal(loss.logits, batch.images)


@given(sizes, seeds)
@settings(deadline=None)
def test_imbalanced_is_the_mean_over_the_whole_batch(size, seed) -> None:
    batch = mixed_logits(*size, seed)
    found, corrected = sample_by_sample(batch)
    loss = Imbalanced()(AsLogits(), batch, Imbalanced().draw(batch, LATE))
    assert loss.total.item() == pytest.approx(mean([*found, *corrected]), rel=1e-9)


@pytest.mark.parametrize("worker", [Balanced(2.5), Imbalanced()], ids=["balanced", "imbalanced"])
@given(size=sizes, seed=seeds)
@settings(deadline=None)
def test_the_parts_are_the_true_sums_of_both_groups_whatever_is_minimised(worker, size, seed) -> None:
    """For the imbalanced loss too (decision 22), with their counts: means over an epoch weigh every image the same."""
    batch = mixed_logits(*size, seed)
    found, corrected = sample_by_sample(batch)
    loss = worker(AsLogits(), batch, worker.draw(batch, LATE))
    parts = {name: (value(total), n) for name, (total, n) in loss.parts.items()}
    assert parts.pop("loss_total") == (
        pytest.approx(len(batch.labels) * loss.total.item()),
        len(batch.labels),
    )
    assert parts.pop("loss_confounded") == (pytest.approx(sum(found)), len(found))
    if corrected:
        assert parts.pop("loss_corrected") == (pytest.approx(sum(corrected)), len(corrected))
    assert not parts, "a group that is absent has no mean"


@pytest.mark.parametrize(("n", "k"), [(64, 4), (16, 4), (7, 3), (5, 1), (8, 7)])
def test_imbalanced_is_balanced_at_lambda_k_over_b_minus_k_up_to_the_factor_of_b_minus_k_over_b(n, k) -> None:
    """The algebra of correction.md 4.1: value and gradient, so that Adam does the same."""
    batch = mixed_logits(n, k)
    whole, equal = Imbalanced()(AsLogits(), batch, {}), of_weight(k / (n - k), batch)
    assert whole.total.item() == pytest.approx((n - k) / n * equal.total.item(), rel=1e-13)
    one, other = gradient(whole, batch), gradient(equal, batch)
    torch.testing.assert_close(one, (n - k) / n * other, rtol=1e-13, atol=0)
    assert cosine(one, other) == pytest.approx(1, abs=1e-14)
    twice = gradient(of_weight(2 * k / (n - k), batch), batch)
    assert cosine(one, twice) < 0.99999, "at another lambda it is another direction"
    assert equal_lambda(n, k) == k / (n - k)


def cosine(one: Tensor, other: Tensor) -> float:
    return (one.flatten() @ other.flatten() / (one.norm() * other.norm())).item()


def test_balanced_and_imbalanced_weights_of_a_network_have_parallel_gradients_at_that_lambda() -> None:
    model, batch = a_model(torch.float64).eval(), replace(a_batch(8, dtype=torch.float64), n_corrected=2)
    found = []
    for worker, weight in ((Balanced(0.0), 2 / 6), (Imbalanced(), 0.0)):
        loss = worker(model, batch, {"weight": torch.tensor(weight, dtype=torch.float64)})
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss.total, [*model.parameters()])]))
    torch.testing.assert_close(found[1], 6 / 8 * found[0], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("lam", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("k", [0, 2, 6])
def test_the_gradient_in_logits_is_softmax_minus_one_hot_over_each_group(lam, k) -> None:
    batch = mixed_logits(6, k)
    one_hot = nn.functional.one_hot(batch.labels, 3).double()
    away = batch.images.detach().softmax(1) - one_hot
    each = torch.tensor([1 / max(6 - k, 1)] * (6 - k) + [lam / max(k, 1)] * k, dtype=torch.float64)
    torch.testing.assert_close(gradient(of_weight(lam, batch), batch), each[:, None] * away)
    torch.testing.assert_close(gradient(Imbalanced()(AsLogits(), batch, {}), batch), away / 6)


@pytest.mark.parametrize("k", [0, 2, 5])
def test_both_losses_pass_a_numerical_gradient_check(k) -> None:
    batch = mixed_logits(5, k)
    for total in (
        lambda logits: of_weight(0.7, replace(batch, images=logits)).total,
        lambda logits: Imbalanced()(AsLogits(), replace(batch, images=logits), {}).total,
    ):
        assert torch.autograd.gradcheck(total, batch.images)


def test_lambda_0_ignores_the_corrected_images_and_without_any_both_losses_are_plain_cross_entropy() -> None:
    batch = mixed_logits(6, 2)
    assert not gradient(of_weight(0.0, batch), batch)[4:].any()
    plain = mixed_logits(6, 0)
    expected = cross_entropy(plain.images, plain.labels)
    for loss in (of_weight(5.0, plain), Imbalanced()(AsLogits(), plain, {})):
        torch.testing.assert_close(loss.total, expected)
        torch.testing.assert_close(
            gradient(loss, plain), torch.autograd.grad(expected, plain.images, retain_graph=True)[0]
        )


@given(st.lists(sizes, min_size=1, max_size=4), seeds)
@settings(deadline=None)
def test_means_over_an_epoch_are_over_images_not_over_batches(batches, seed) -> None:
    """What ``fit`` adds up: batches of different sizes, with and without corrected images."""
    sums: dict[str, list[float]] = {}
    found, corrected = [], []
    for number, size in enumerate(batches):
        batch = mixed_logits(*size, seed + number)
        groups = sample_by_sample(batch)
        found += groups[0]
        corrected += groups[1]
        for name, (total, n) in of_weight(1.5, batch).parts.items():
            so_far = sums.setdefault(name, [0.0, 0])
            so_far[0] += value(total)
            so_far[1] += n
    assert sums["loss_confounded"] == [pytest.approx(sum(found)), len(found)]
    assert sums.get("loss_corrected", [0.0, 0]) == [pytest.approx(sum(corrected)), len(corrected)]
