"""Noise: its laws, its scales, what it restores, what it leaves alone; statistics that do not contain it."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from scipy.stats import binomtest, kstest
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab.images import Batch
from perturblab.models import MODELS
from perturblab.objectives import Clock
from perturblab.perturb.clean import EpochUpdate, estimate_statistics, gradient_norm, weight_norm
from perturblab.perturb.noise import Noise, NoiseSpec, noisy_images, noisy_labels
from perturblab.streams import seeded, stream

IMPROBABLE = 1e-4  # the seeds are fixed: a test that passes once passes always
CLOCK = Clock(epoch=2, step=5, steps=10, epochs=3)
LAWS = {
    "gaussian": ("norm", (0.0, 1.0)),
    "uniform": ("uniform", (-math.sqrt(3), 2 * math.sqrt(3))),
}


class Net(nn.Module):
    """Convolution, BatchNorm, a wide and a narrow linear layer; every tensor starts with values of its own scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.last = nn.Linear(8 * 16, 300), nn.Linear(300, 4)
        for scale, parameter in enumerate(self.parameters(), 1):
            nn.init.normal_(parameter, std=0.1 * scale)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.wide(self.norm(self.conv(images)).relu().flatten(1)).relu()
        logits: Tensor = self.last(hidden)
        return logits


@pytest.fixture
def model() -> Net:
    with seeded(0, "init"):
        return Net()


@pytest.fixture
def batch() -> Batch:
    generator = stream(0, "batch")
    images = torch.randn(16, 3, 4, 4, generator=generator) * 3 + 1
    return Batch(images, torch.randint(4, (16,), generator=generator), torch.arange(16))


def backward(model: nn.Module, batch: Batch) -> None:
    cross_entropy(model(batch.images), batch.labels).backward()


def noise_of(model: nn.Module, target: str, seed: int = 0, **fields) -> Noise:
    return Noise(model, NoiseSpec(target, **fields), seed=seed, classes=4)


def copies(tensors) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def gradients_of(model: nn.Module) -> list[Tensor]:
    return copies(p.grad for p in model.parameters() if p.grad is not None)


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    """Bit for bit: zeros of either sign differ, NaNs do not."""
    return len(a) == len(b) and all(
        x.detach().cpu().numpy().tobytes() == y.detach().cpu().numpy().tobytes()
        for x, y in zip(a, b, strict=True)
    )


def added_to_gradients(
    model: nn.Module, noise: Noise, magnitude: float, clock: Clock = CLOCK
) -> list[Tensor]:
    """What the noise adds to gradients of zero, parameter by parameter (absolute scale)."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    noise.gradients(magnitude, clock)
    return gradients_of(model)


def rms(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())


# ---- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", LAWS)
def test_gradient_noise_has_its_law_and_the_variance_asked_for(model, distribution) -> None:
    noise = noise_of(model, "gradient", distribution=distribution, scale="absolute")
    values = torch.cat([added.flatten() for added in added_to_gradients(model, noise, 0.2)]).double()
    n = len(values)
    assert n > 40_000
    assert abs(values.mean()) < 4 * 0.2 / math.sqrt(n)
    assert float(values.var()) == pytest.approx(0.04, rel=4 * math.sqrt(2 / n))
    assert kstest(values / 0.2, *LAWS[distribution]).pvalue > IMPROBABLE
    other = next(law for law in LAWS if law != distribution)
    assert kstest(values / 0.2, *LAWS[other]).pvalue < 1e-12  # the test tells the two apart


@pytest.mark.parametrize("distribution", LAWS)
def test_input_noise_has_its_law_and_leaves_the_images_of_before(batch, distribution) -> None:
    images = torch.full((64, 3, 16, 16), 2.0)
    spec = NoiseSpec("input", distribution)
    noisy = noisy_images(images, spec, 0.1, stream(0, "noise"))
    assert torch.equal(images, torch.full_like(images, 2.0))
    values = (noisy - images).double().flatten() / 0.2  # 0.1 x RMS
    assert kstest(values, *LAWS[distribution]).pvalue > IMPROBABLE


def test_neighbouring_noises_are_independent(model) -> None:
    """No number repeats or correlates between steps, epochs, seeds or targets, nor between tensors of one step."""
    clocks = [CLOCK, Clock(2, 6, 10, 3), Clock(3, 5, 10, 3)]
    noise, other = (noise_of(model, "gradient", seed, scale="absolute") for seed in (0, 1))
    draws = [added_to_gradients(model, noise, 1.0, clock) for clock in clocks]
    draws.append(added_to_gradients(model, other, 1.0))
    with torch.no_grad():
        before = copies(model.parameters())
        with noise_of(model, "weight", scale="absolute").weights(1.0, CLOCK):
            draws.append([p - b for p, b in zip(model.parameters(), before, strict=True)])
    rows = torch.stack([torch.cat([t.flatten() for t in draw]) for draw in draws])
    off_diagonal = torch.corrcoef(rows) - torch.eye(len(draws))
    assert off_diagonal.abs().max() < 5 / math.sqrt(rows.shape[1])
    wide = draws[0][4].flatten()[:1200]
    last = draws[0][6].flatten()
    assert abs(torch.corrcoef(torch.stack([wide, last]))[0, 1]) < 5 / math.sqrt(1200)


@pytest.mark.parametrize(("magnitude", "p"), [(0.1, 0.1), (0.5, 0.5), (3.0, 0.5)])
def test_labels_differ_at_the_rate_p_times_1_minus_1_over_c(magnitude, p) -> None:
    labels = torch.arange(40_000) % 4
    noisy = noisy_labels(labels, 4, magnitude, stream(0, "noise"))
    assert noisy.dtype == torch.int64
    pairs = torch.bincount(4 * labels + noisy, minlength=16).view(4, 4)  # old, new
    for old in range(4):
        differ = 10_000 - int(pairs[old, old])
        assert binomtest(differ, 10_000, p * 3 / 4).pvalue > IMPROBABLE
        for new in {0, 1, 2, 3} - {old}:  # every other class equally often
            assert binomtest(int(pairs[old, new]), differ, 1 / 3).pvalue > IMPROBABLE


# ---- scales ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", LAWS)
def test_relative_noise_is_r_times_the_rms_of_each_tensor(model, batch, distribution) -> None:
    backward(model, batch)
    model.norm.bias.grad.zero_()  # no scale: no noise
    absolute = added_to_gradients_of_one(model, distribution)
    clean = gradients_of(model)
    noise_of(model, "gradient", distribution=distribution).gradients(0.5, CLOCK)
    for before, after, unit in zip(clean, gradients_of(model), absolute, strict=True):
        expected = before.double() + 0.5 * rms(before) * unit.double()
        torch.testing.assert_close(after.double(), expected, rtol=1e-6, atol=1e-6 * rms(before))


def added_to_gradients_of_one(model: nn.Module, distribution: str) -> list[Tensor]:
    """The same numbers with variance 1; the model's gradients stay."""
    kept = gradients_of(model)
    noise = noise_of(model, "gradient", distribution=distribution, scale="absolute")
    unit = added_to_gradients(model, noise, 1.0)
    for parameter, gradient in zip(model.parameters(), kept, strict=True):
        parameter.grad = gradient
    return unit


def test_relative_weight_noise_follows_the_weights_of_the_moment(model) -> None:
    noise = noise_of(model, "weight")
    for factor in (1, 10):
        with torch.no_grad():
            model.wide.weight.mul_(factor)
        before = model.wide.weight.detach().clone()
        with noise.weights(0.1, CLOCK):
            added = rms(model.wide.weight - before)
        assert added == pytest.approx(0.1 * rms(before), rel=0.02)  # 38,400 elements: 0.4 % is one deviation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_of_several_dtypes_each_get_noise_in_their_own(model, dtype) -> None:
    model.last.to(dtype)
    before = copies(model.parameters())
    with noise_of(model, "weight", scale="absolute").weights(0.5, CLOCK):
        for clean, parameter in zip(before, model.parameters(), strict=True):
            assert parameter.dtype == clean.dtype
            assert (parameter != clean).any()
        assert rms(model.last.weight - before[6]) == pytest.approx(0.5, rel=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# ---- weights: temporary and persistent ---------------------------------------------------------------------------


def test_temporary_noise_gives_the_gradient_at_the_noisy_point_and_restores_every_bit(model, batch) -> None:
    model.train()
    before, buffers = copies(model.parameters()), copies(model.buffers())
    storage = [p.data_ptr() for p in model.parameters()]
    with noise_of(model, "weight").weights(0.3, CLOCK) as staying:
        noisy = copies(model.parameters())
        assert staying == {}
        backward(model, batch)
    assert not any(torch.equal(a, b) for a, b in zip(before, noisy, strict=True))
    assert equal(copies(model.parameters()), before)
    assert equal(copies(model.buffers()), buffers)  # running statistics and their counter
    assert [p.data_ptr() for p in model.parameters()] == storage
    found = gradients_of(model)
    model.zero_grad()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), noisy, strict=True):
            parameter.copy_(value)
    backward(model, batch)
    assert equal(found, gradients_of(model))


def test_subtracting_the_noise_would_not_restore_every_bit(model) -> None:
    """Why there are copies."""
    before = model.wide.weight.detach().clone()
    added = noise_of(model, "weight", persistent=True)
    with added.weights(0.3, CLOCK) as noise, torch.no_grad():
        assert not torch.equal(model.wide.weight - noise["wide.weight"], before)


@pytest.mark.parametrize("trouble", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_weights_and_statistics_are_restored_after_an_exception(model, batch, trouble) -> None:
    model.train()
    before = copies(model.state_dict().values())

    def fails(images: Tensor) -> None:
        model(images)
        raise trouble

    with pytest.raises(trouble), noise_of(model, "weight").weights(0.3, CLOCK):
        fails(batch.images)
    assert equal(copies(model.state_dict().values()), before)
    model(batch.images)
    assert int(model.norm.num_batches_tracked) == 1  # statistics are kept again


def test_weights_are_restored_where_noise_is_added_to_some_and_fails(model, monkeypatch) -> None:
    before = copies(model.parameters())
    add = torch._foreach_add_

    def fails_after(*arguments) -> None:
        add(*arguments)
        raise MemoryError

    monkeypatch.setattr(torch, "_foreach_add_", fails_after)
    with pytest.raises(MemoryError), noise_of(model, "weight").weights(0.3, CLOCK):
        raise AssertionError("not reached")
    assert equal(copies(model.parameters()), before)


def test_temporary_noise_twice_restores_the_weights_of_each_time(model) -> None:
    noise = noise_of(model, "weight")
    for _ in range(2):
        with torch.no_grad():
            model.wide.weight.add_(1)
        before = copies(model.parameters())
        with noise.weights(0.1, CLOCK):
            pass
        assert equal(copies(model.parameters()), before)


def test_not_finite_weights_come_back_as_they_were(model) -> None:
    with torch.no_grad():
        model.wide.weight[0, :3] = torch.tensor([math.nan, math.inf, -0.0])
    before = copies(model.parameters())
    with noise_of(model, "weight").weights(0.1, CLOCK):
        pass
    assert equal(copies(model.parameters()), before)


def test_persistent_noise_stays_is_told_and_moves_the_statistics(model, batch) -> None:
    model.train()
    before = copies(model.parameters())
    with noise_of(model, "weight", persistent=True).weights(0.3, CLOCK) as staying:
        backward(model, batch)
    assert list(staying) == [name for name, _ in model.named_parameters()]
    expected = [b + n for b, n in zip(before, staying.values(), strict=True)]
    assert equal(copies(model.parameters()), expected)
    assert not equal(expected, before)
    assert int(model.norm.num_batches_tracked) == 1  # the only forward, at weights that stay


def test_both_kinds_add_the_same_numbers(model) -> None:
    with noise_of(model, "weight").weights(0.3, CLOCK):
        temporary = copies(model.parameters())
    with noise_of(model, "weight", persistent=True).weights(0.3, CLOCK):
        assert equal(copies(model.parameters()), temporary)


# ---- filters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "touched"),
    [
        ((), {0, 1, 2, 3, 4, 5, 6, 7}),
        (("conv",), {0, 1}),
        (("conv", "last.weight"), {0, 1, 6}),
        (("bias",), {1, 3, 5, 7}),
    ],
)
def test_only_parameters_whose_name_contains_a_layer_are_touched(model, batch, layers, touched) -> None:
    backward(model, batch)
    weights, gradients = copies(model.parameters()), gradients_of(model)
    with noise_of(model, "weight", layers=layers).weights(0.3, CLOCK):
        moved = {
            i
            for i, (a, b) in enumerate(zip(weights, model.parameters(), strict=True))
            if not torch.equal(a, b)
        }
    noise_of(model, "gradient", layers=layers).gradients(0.3, CLOCK)
    changed = {
        i
        for i, (a, b) in enumerate(zip(gradients, gradients_of(model), strict=True))
        if not torch.equal(a, b)
    }
    assert moved == touched
    assert changed == touched


@pytest.mark.parametrize("target", ["gradient", "weight"])
def test_a_layer_that_matches_nothing_is_refused_with_the_names(model, target) -> None:
    with pytest.raises(
        ValueError, match=r"^no layer 'fc9' for noise; the layers are conv, norm, wide, last$"
    ):
        noise_of(model, target, layers=("conv", "fc9"))


def test_parameters_without_a_gradient_stay_without_and_shift_no_numbers(model) -> None:
    noise = noise_of(model, "gradient", scale="absolute")
    every = added_to_gradients(model, noise, 1.0)
    model.conv.bias.grad = None
    model.last.weight.grad.zero_()
    noise.gradients(1.0, CLOCK)
    assert model.conv.bias.grad is None
    assert torch.equal(model.last.weight.grad, every[6])
    model.zero_grad()
    noise.gradients(1.0, CLOCK)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "touched"),
    [
        ({"batchnorm": False}, {0, 1, 4, 5, 6, 7}),
        ({"biases": False}, {0, 2, 4, 6}),
        ({"batchnorm": False, "biases": False}, {0, 4, 6}),
        ({"layers": ("conv", "norm"), "batchnorm": False}, {0, 1}),
        ({"layers": ("conv", "norm"), "biases": False}, {0, 2}),
    ],
)
def test_batchnorm_and_biases_are_left_out_where_that_is_asked_for(model, batch, fields, touched) -> None:
    for target in ("weight", "gradient"):
        backward(model, batch)
        before = copies(model.parameters()) if target == "weight" else gradients_of(model)
        noise = noise_of(model, target, **fields)
        with noise.weights(0.3, CLOCK):
            noise.gradients(0.3, CLOCK)
            after = copies(model.parameters()) if target == "weight" else gradients_of(model)
        changed = {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)}
        assert changed == touched


def test_batchnorm_is_told_by_its_kind_not_by_its_name() -> None:
    model = nn.ModuleDict(
        {
            "a": nn.BatchNorm1d(3),
            "b": nn.Sequential(nn.BatchNorm2d(3)),
            "bn": nn.Linear(3, 3),
            "c": nn.GroupNorm(1, 3),
        }
    )
    staying = Noise(model, NoiseSpec("weight", persistent=True, batchnorm=False), seed=0, classes=4)
    with staying.weights(0.1, CLOCK) as added:
        assert set(added) == {"bn.weight", "bn.bias", "c.weight", "c.bias"}


@pytest.mark.parametrize("fields", [
    {"layers": ("norm",), "batchnorm": False}, {"layers": ("last.bias",), "biases": False},
])  # fmt: skip
def test_noise_for_which_no_parameter_is_left_is_refused(model, fields) -> None:
    with pytest.raises(ValueError, match=r"^no parameter is left for noise, with these layers"):
        noise_of(model, "gradient", **fields)


# ---- how much it was -----------------------------------------------------------------------------------------------

FIRST = Clock(epoch=2, step=0, steps=10, epochs=3)


@pytest.mark.parametrize("layers", [(), ("wide", "norm.bias")])
def test_the_norms_are_those_of_all_gradients_acted_on_before_and_after_noise(model, batch, layers) -> None:
    noise = noise_of(model, "gradient", layers=layers)
    assert noise.norms == {}
    backward(model, batch)
    model.wide.bias.grad = None
    acted_on = [
        p for name, p in model.named_parameters() if not layers or name[:4] == "wide" or name == "norm.bias"
    ]
    expected = naive(p.grad for p in acted_on if p.grad is not None)
    noise.gradients(0.8, FIRST)
    (before, n), (after, m) = noise.norms["norm_before"], noise.norms["norm_after"]
    assert (n, m) == (1, 1)
    assert before.dim() == after.dim() == 0
    assert float(before) == pytest.approx(expected, rel=1e-12)
    assert float(after) == pytest.approx(naive(p.grad for p in acted_on if p.grad is not None), rel=1e-12)
    assert float(after) > 1.1 * expected


@pytest.mark.parametrize("persistent", [False, True])
def test_the_norms_are_those_of_all_weights_acted_on_before_and_after_noise(model, persistent) -> None:
    noise = noise_of(model, "weight", persistent=persistent, biases=False)
    acted_on = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    before = naive(acted_on)
    with noise.weights(0.8, FIRST):
        after = naive(acted_on)
    assert float(noise.norms["norm_before"][0]) == pytest.approx(before, rel=1e-12)
    assert float(noise.norms["norm_after"][0]) == pytest.approx(after, rel=1e-12)
    assert after > 1.1 * before


@pytest.mark.parametrize("target", ["gradient", "weight"])
def test_norms_are_told_of_an_epochs_first_step_only(model, batch, target) -> None:
    noise = noise_of(model, target)
    outcome(model, batch, noise, 0.4, FIRST)
    assert set(noise.norms) == {"norm_before", "norm_after"}
    outcome(model, batch, noise, 0.4, CLOCK)
    assert noise.norms == {}


@pytest.mark.parametrize("target", ["gradient", "weight"])
def test_a_step_in_which_noise_does_not_act_has_no_norms(model, batch, target) -> None:
    """Sigma 0 after an epoch of one step: in a row they would be those of the epoch before, and absent after a resume."""
    noise = noise_of(model, target)
    outcome(model, batch, noise, 0.4, FIRST)
    outcome(model, batch, noise, 0.0, Clock(3, 0, 10, 3))
    assert noise.norms == {}


@pytest.mark.parametrize("target", ["input", "label"])
def test_noise_on_images_and_labels_has_no_norms(model, batch, target) -> None:
    noise = noise_of(model, target)
    outcome(model, batch, noise, 0.4, FIRST)
    assert noise.norms == {}


# ---- choices -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "dropout"}, "no noise target 'dropout'; choose from gradient, weight, input, label"),
        ({"target": "input", "distribution": "normal"}, "no noise distribution 'normal'; choose from gaussian, uniform"),
        ({"target": "input", "scale": "rel"}, "no noise scale 'rel'; choose from relative, absolute"),
    ],
)  # fmt: skip
def test_an_unknown_choice_is_refused_with_the_known_ones(fields, message) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        NoiseSpec(**fields)


@pytest.mark.parametrize("magnitude", [-0.1, math.nan, math.inf])
def test_a_magnitude_that_is_none_is_refused_at_every_place(model, batch, magnitude) -> None:
    noise = noise_of(model, "gradient")
    with pytest.raises(ValueError, match="noise magnitude"):
        noise.gradients(magnitude, CLOCK)
    with pytest.raises(ValueError, match="noise magnitude"), noise.weights(magnitude, CLOCK):
        pass
    with pytest.raises(ValueError, match="noise magnitude"):
        noise.batch(batch, magnitude, CLOCK)


# ---- reproducible, and alone -------------------------------------------------------------------------------------


def outcome(
    model: nn.Module, batch: Batch, noise: Noise, magnitude: float, clock: Clock = CLOCK
) -> list[Tensor]:
    """What one step's noise makes of batch, weights and gradients (the model's gradients are overwritten)."""
    model.zero_grad()
    seen = noise.batch(batch, magnitude, clock)
    with noise.weights(magnitude, clock):
        weights = copies(model.parameters())
        backward(model, seen)
    noise.gradients(magnitude, clock)
    return [seen.images, seen.labels, *weights, *gradients_of(model)]


@pytest.mark.parametrize("distribution", LAWS)
@pytest.mark.parametrize("target", ["gradient", "weight", "input", "label"])
def test_seed_epoch_and_step_alone_decide_the_noise(model, batch, target, distribution) -> None:
    model.eval()
    first = outcome(model, batch, noise_of(model, target, distribution=distribution), 0.4)
    used = noise_of(model, target, distribution=distribution)
    outcome(model, batch, used, 0.1, Clock(1, 0, 10, 3))
    torch.rand(7)
    assert equal(first, outcome(model, batch, used, 0.4))
    for clock in (Clock(2, 6, 10, 3), Clock(3, 5, 10, 3)):
        assert not equal(first, outcome(model, batch, used, 0.4, clock))
    assert equal(first, outcome(model, batch, used, 0.4, Clock(2, 5, 99, 99)))  # a longer run begins the same
    other = noise_of(model, target, seed=1, distribution=distribution)
    assert not equal(first, outcome(model, batch, other, 0.4))


@pytest.mark.parametrize("target", ["gradient", "weight", "input", "label"])
def test_only_the_targets_place_acts_and_magnitude_0_changes_no_bit(model, batch, target) -> None:
    model.eval()
    plain = [batch.images, batch.labels, *copies(model.parameters())]
    backward(model, batch)
    plain += gradients_of(model)
    assert equal(plain, outcome(model, batch, noise_of(model, target), 0.0))
    noisy = outcome(model, batch, noise_of(model, target), 0.4)
    n = len(list(model.parameters()))
    places = {"input": noisy[:1], "label": noisy[1:2], "weight": noisy[2 : 2 + n]}
    clean = {"input": plain[:1], "label": plain[1:2], "weight": plain[2 : 2 + n]}
    assert {name for name in places if not equal(places[name], clean[name])} == {target} - {"gradient"}
    assert not equal(noisy[2 + n :], plain[2 + n :])  # gradients follow whatever came before


def test_training_at_magnitude_0_ends_with_the_weights_of_the_plain_run(batch) -> None:
    ends = []
    for target in (None, "gradient", "weight", "input", "label"):
        with seeded(0, "init"):
            model = Net()
        noise = noise_of(model, target or "gradient")
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            if target is None:
                backward(model, batch)
            else:
                clock = Clock(1, step, 3, 1)
                with noise.weights(0.0, clock):
                    backward(model, noise.batch(batch, 0.0, clock))
                noise.gradients(0.0, clock)
            optimizer.step()
        ends.append(copies(model.state_dict().values()))
    assert all(equal(ends[0], end) for end in ends[1:])


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("distribution", LAWS)
def test_noise_does_not_depend_on_the_number_of_threads(distribution) -> None:
    """On tensors long enough for torch to share work out, with gradients that are the same in both."""
    with seeded(0, "init"):
        model = nn.Linear(1000, 300)
    images = torch.randn(64, 3, 32, 32, generator=stream(0, "images"))
    found = []
    for n in (1, 2, 3):
        with threads(n):
            for parameter in model.parameters():
                parameter.grad = parameter.detach().clone()
            noise_of(model, "gradient", distribution=distribution).gradients(0.3, CLOCK)
            with noise_of(model, "weight", distribution=distribution).weights(0.3, CLOCK):
                weights = copies(model.parameters())
            spec = NoiseSpec("input", distribution)
            found.append(
                [
                    *gradients_of(model), *weights, noisy_images(images, spec, 0.3, stream(0, "noise")),
                    noisy_labels(torch.zeros(200_000, dtype=torch.int64), 9, 0.3, stream(0, "noise")),
                ]
            )  # fmt: skip
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])


@pytest.mark.parametrize("target", ["gradient", "weight", "input", "label"])
def test_the_global_random_state_stays(model, batch, target) -> None:
    before = torch.get_rng_state()
    outcome(model, batch, noise_of(model, target), 0.4)
    assert torch.equal(torch.get_rng_state(), before)


# ---- clean statistics --------------------------------------------------------------------------------------------


def naive(tensors) -> float:
    """The plain loop, in float64."""
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    with seeded(0, "init"):
        model = MODELS["resnet18"](width=0.5)
    for scale, parameter in enumerate(model.parameters(), 1):
        parameter.grad = torch.randn(parameter.shape, generator=stream(0, "gradient", scale)) * scale
    return model


def test_the_gradient_norm_is_that_of_the_naive_loop(resnet) -> None:
    norm = gradient_norm(resnet.parameters())
    assert norm.dim() == 0
    assert norm.device == resnet.conv1.weight.device
    assert float(norm) == pytest.approx(naive(p.grad for p in resnet.parameters()), rel=1e-12)


def test_parameters_without_a_gradient_do_not_count(model, batch) -> None:
    assert float(gradient_norm(model.parameters())) == 0
    backward(model, batch)
    model.wide.weight.grad = None
    assert float(gradient_norm(model.parameters())) == pytest.approx(naive(gradients_of(model)), rel=1e-12)


def test_the_update_norm_is_that_of_the_naive_loop_and_keeps_its_start(resnet) -> None:
    update = EpochUpdate.of(resnet)
    start = copies(resnet.parameters())
    assert float(update.norm(resnet)) == 0
    with torch.no_grad():
        for scale, parameter in enumerate(resnet.parameters(), 1):
            parameter.add_(torch.randn(parameter.shape, generator=stream(0, "move", scale)) * 1e-3)
    moved = [p.double() - s.double() for p, s in zip(resnet.parameters(), start, strict=True)]
    assert update.norm(resnet).dim() == 0
    assert float(update.norm(resnet)) == pytest.approx(naive(moved), rel=1e-6)  # differences in float32
    assert equal(list(update.start.values()), start)


@pytest.mark.parametrize("layers", [(), ("conv", "last")])
def test_injected_noise_is_no_update(model, batch, layers) -> None:
    """end - start - injected, step by step in float64, whatever the noise; nothing else moved: exactly 0."""
    update, still = EpochUpdate.of(model), EpochUpdate.of(model)
    noise = noise_of(model, "weight", persistent=True, layers=layers)
    with noise.weights(0.2, CLOCK) as injected:
        still.inject(injected)
        assert float(still.norm(model)) == 0
        update.inject(injected)
    clean = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(6):
        with noise.weights(0.2, Clock(1, step, 6, 1)) as injected:
            update.inject(injected)
            model.zero_grad()
            backward(model, batch)
        before = copies(model.parameters())
        optimizer.step()
        for total, b, p in zip(clean, before, model.parameters(), strict=True):
            total += p.detach().double() - b.double()
    assert float(update.norm(model)) == pytest.approx(naive(clean), rel=1e-5)
    assert float(still.norm(model)) > 1.5 * naive(clean)  # with the noise in it


def test_an_update_goes_on_from_what_a_checkpoint_kept(model) -> None:
    update = EpochUpdate.of(model)
    with noise_of(model, "weight", persistent=True).weights(0.2, CLOCK) as injected:
        update.inject(injected)
    with torch.no_grad():
        model.wide.weight.add_(0.5)
    again = EpochUpdate({name: value.clone() for name, value in update.start.items()})
    assert (
        float(again.norm(model))
        == float(update.norm(model))
        == pytest.approx(0.5 * math.sqrt(38_400), rel=1e-5)
    )


def test_the_weight_norm_is_that_of_the_naive_loop(resnet, model) -> None:
    for network in (resnet, model):
        assert weight_norm(network).dim() == 0
        assert float(weight_norm(network)) == pytest.approx(naive(network.parameters()), rel=1e-12)


# ---- running statistics anew ---------------------------------------------------------------------------------------


class Normed(nn.Module):
    """BatchNorm on images, dropout, BatchNorm on units without scales, and one that keeps no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5)
        self.wide, self.second = nn.Linear(48, 20), nn.BatchNorm1d(20, affine=False, momentum=None)
        self.free = nn.BatchNorm1d(20, track_running_stats=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.wide(self.drop(self.first(images)).flatten(1))
        return self.free(self.second(hidden))


@pytest.fixture
def normed() -> Normed:
    with seeded(0, "init"):
        return Normed()


def some_batches(n: int) -> Iterator[Batch]:
    for i in range(n):
        images = torch.randn(4 + i % 3, 3, 4, 4, generator=stream(0, "batch", i)) * (1 + i) + i
        yield Batch(images, torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel, in float64."""
    channels = x.detach().double().transpose(0, 1).flatten(1)
    mean = channels.sum(1) / channels.shape[1]
    return mean, (channels - mean[:, None]).square().sum(1) / (channels.shape[1] - 1)


@pytest.mark.parametrize("n", [1, 7, 20, 25])
def test_statistics_are_plain_means_over_the_first_20_batches(normed, n) -> None:
    """Whatever they were before; each batch counts alike, deeper layers see what training would show them."""
    normed.train()
    for batch in some_batches(3):
        normed(batch.images * 5)
    estimate_statistics(normed, some_batches(n))
    found: list[list[Tensor]] = []
    for batch in list(some_batches(n))[:20]:
        mean, var = moments(batch.images)
        biased = batch.images.double().transpose(0, 1).flatten(1).var(1, correction=0)
        shape = (1, 3, 1, 1)
        x = (batch.images.double() - mean.view(shape)) / (biased.view(shape) + 1e-5).sqrt()
        hidden = x.flatten(1) @ normed.wide.weight.detach().double().T + normed.wide.bias.detach().double()
        found.append([mean, var, *moments(hidden)])
    expected = [torch.stack(values).mean(0) for values in zip(*found, strict=True)]
    buffers = [b for norm in (normed.first, normed.second) for b in (norm.running_mean, norm.running_var)]
    for value, buffer in zip(expected, buffers, strict=True):
        torch.testing.assert_close(buffer.double(), value, rtol=1e-5, atol=1e-5)


def test_estimating_statistics_twice_changes_nothing_and_what_they_were_does_not_matter(normed) -> None:
    once = []
    for factor in (1, 100):
        normed.first.running_mean.fill_(factor)
        normed.second.running_var.fill_(factor)
        estimate_statistics(normed, some_batches(5))
        once.append(copies(normed.buffers()))
    estimate_statistics(normed, some_batches(5))
    assert equal(once[0], once[1])
    assert equal(once[0], copies(normed.buffers()))


@pytest.mark.parametrize("breaks", [False, True])
def test_estimating_statistics_leaves_modes_momenta_counts_weights_and_randomness(normed, breaks) -> None:
    normed.train()
    normed.drop.eval()
    normed.first.eval()  # frozen, as in fine-tuning
    normed.first.num_batches_tracked.fill_(17)
    normed.second.num_batches_tracked.fill_(3)
    weights, modes, state = (
        copies(normed.parameters()),
        [m.training for m in normed.modules()],
        torch.get_rng_state(),
    )

    def batches() -> Iterator[Batch]:
        yield from some_batches(2)
        if breaks:
            raise MemoryError

    with pytest.raises(MemoryError) if breaks else nullcontext():
        estimate_statistics(normed, batches())
    assert [m.training for m in normed.modules()] == modes
    assert (normed.first.momentum, normed.second.momentum) == (0.3, None)
    assert (int(normed.first.num_batches_tracked), int(normed.second.num_batches_tracked)) == (17, 3)
    assert normed.first.track_running_stats
    assert equal(copies(normed.parameters()), weights)
    assert all(p.grad is None for p in normed.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_more_than_20_batches_are_asked_for_and_none_without_batchnorm(normed) -> None:
    asked = 0

    def counted() -> Iterator[Batch]:
        nonlocal asked
        for batch in some_batches(30):
            asked += 1
            yield batch

    estimate_statistics(normed, counted())
    assert asked == 20
    estimate_statistics(nn.Sequential(nn.Flatten(), nn.Linear(48, 2), nn.GroupNorm(1, 2)), counted())
    estimate_statistics(nn.BatchNorm2d(3, track_running_stats=False), counted())
    assert asked == 20


# ---- a few operations --------------------------------------------------------------------------------------------


def calls_of(work: Callable[[], None], names: tuple[str, ...]) -> int:
    with torch.profiler.profile() as profile:
        work()
    return sum(event.count for event in profile.key_averages() if event.key in names)


def test_one_call_draws_the_numbers_of_all_parameters(resnet) -> None:
    noise = noise_of(resnet, "gradient")
    assert len(list(resnet.parameters())) == 62
    assert calls_of(lambda: noise.gradients(0.1, CLOCK), ("aten::normal_",)) == 1
    assert calls_of(lambda: noise.gradients(0.1, CLOCK), ("aten::item", "aten::_local_scalar_dense")) == 0
    assert calls_of(lambda: gradient_norm(resnet.parameters()), ("aten::item",)) == 0
    assert calls_of(lambda: float(gradient_norm(resnet.parameters())), ("aten::item",)) == 1  # would be seen
