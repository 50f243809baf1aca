"""Sharpness: its noise, the rise of the loss that a Hessian foretells, and that nothing of it stays in the network."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from conftest import TinyModel, fresh_model, tiny_images
from perturblab.images import ImageSet
from perturblab.objectives import Clock
from perturblab.perturb.noise import Noise, NoiseSpec
from perturblab.probes.sharpness import mean_sharpness, sharpness
from perturblab.runs import Row
from perturblab.signals import Interrupted, StopFlag
from perturblab.sites import Step, SteppedModel
from perturblab.streams import stream

IMPROBABLE = 1e-4  # the seeds are fixed: a test that passes once passes always


class Plain(SteppedModel):
    """Layers one after another on images of 2x2 pixels, without sites."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), *layers)

    def steps(self) -> list[Step]:
        return [(None, self.layers)]


@pytest.fixture
def data() -> ImageSet:
    return tiny_images(n=53)


@pytest.fixture
def model() -> TinyModel:
    """Every tensor has values of its own size, also BatchNorm's; it is in training mode."""
    model, random = fresh_model(), stream(0, "values")
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters(), 1):
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.05 * number)
        norm = model.conv[1]
        norm.running_mean.normal_(0.3, 0.1, generator=random)
        norm.running_var.uniform_(0.5, 2, generator=random)
    return model.train()


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@contextmanager
def seen_by(model: TinyModel) -> Iterator[list[dict[str, Tensor]]]:
    """The parameters with which each forward pass ran, the intact network's first."""
    seen: list[dict[str, Tensor]] = []
    hook = model.output.register_forward_hook(
        lambda *_: seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
    )
    yield seen
    hook.remove()


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_each_parameters_noise_is_gaussian_with_sigma_times_its_own_root_mean_square(model, data) -> None:
    sigma = 0.1
    with seen_by(model) as seen:
        rows = list(sharpness(model, data, sigma=sigma, draws=40, seed=3))
    intact, *noisy = seen
    assert len(noisy) == len(rows) == 40
    for name, values in intact.items():
        size = sigma * math.sqrt(float(values.double().square().mean()))
        z = torch.stack([draw[name] - values for draw in noisy]).double().flatten() / size
        assert kstest(z, "norm").pvalue > IMPROBABLE, name
    # The original's, sigma times the norm, would be 8 times as much for the hidden layer of 384 weights.


def test_each_row_is_the_loss_and_accuracy_of_a_plain_pass_with_those_weights_in_evaluation_mode(
    model, data
) -> None:
    with seen_by(model) as seen:
        rows = list(sharpness(model, data, sigma=0.3, draws=4, seed=0))

    def plain(parameters: dict[str, Tensor]) -> tuple[float, float]:
        copy = fresh_model()
        copy.load_state_dict({**bits(model), **parameters})
        with torch.no_grad():
            logits = copy.eval()((data.images / 255 - 0.4) / 0.3)
        return float(cross_entropy(logits, data.labels)), float(
            (logits.argmax(1) == data.labels).double().mean()
        )

    intact_loss, intact_accuracy = plain(seen[0])
    for number, (row, parameters) in enumerate(zip(rows, seen[1:], strict=True)):
        loss, accuracy = plain(parameters)
        assert row == {
            "draw": number,
            "sigma": 0.3,
            "accuracy": pytest.approx(accuracy),
            "loss": pytest.approx(loss, rel=1e-5),
            "accuracy_drop": pytest.approx(intact_accuracy - accuracy),
            "loss_rise": pytest.approx(loss - intact_loss, abs=1e-5),
        }
    assert len({row["loss"] for row in rows}) == 4
    assert len({row["accuracy"] for row in rows}) > 1


def with_labels_of_its_own(model: SteppedModel) -> tuple[SteppedModel, ImageSet]:
    """A small network with images whose classes it drew itself: as good as at a minimum, so the slope adds little."""
    random = stream(0, "drawn by itself")
    pixels = torch.randint(0, 256, (1000, 1, 2, 2), generator=random).to(torch.uint8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=random)
        labels = model((pixels / 255 - 0.4) / 0.3).softmax(1).multinomial(1, generator=random)[:, 0]
    return model, ImageSet(pixels, labels, tuple("abc"), (0.4,), (0.3,))


def rises(model: SteppedModel, data: ImageSet, sigma: float, draws: int) -> tuple[float, float]:
    """Mean rise of the loss and its standard error."""
    found = torch.tensor(
        [row["loss_rise"] for row in sharpness(model, data, sigma=sigma, draws=draws, seed=0)],
        dtype=torch.float64,
    )
    return float(found.mean()), float(found.std() / math.sqrt(draws))


def test_the_loss_of_a_softmax_regression_rises_as_the_closed_form_of_its_curvature_says() -> None:
    """Its Hessian has the trace of mean (1 - sum of p^2) in the bias, times |x|^2 in the weight."""
    model, data = with_labels_of_its_own(Plain(nn.Linear(4, 3)))
    weight, bias = (p.detach().double() for p in model.parameters())
    x = ((data.images.double() / 255 - 0.4) / 0.3).flatten(1)
    spread = 1 - (x @ weight.T + bias).softmax(1).square().sum(1)
    half = 0.1**2 / 2
    parts = (
        half * mean_square(weight) * float((x.square().sum(1) * spread).mean()),
        half * mean_square(bias) * float(spread.mean()),
    )
    mean, error = rises(model, data, sigma=0.1, draws=2000)
    assert abs(mean - sum(parts)) < 4 * error
    assert min(parts) > 4 * error  # neither could be left out


def test_the_loss_of_a_network_of_two_layers_rises_as_the_trace_of_its_hessian_says() -> None:
    model, data = with_labels_of_its_own(Plain(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3)))
    loss = cross_entropy(model((data.images / 255 - 0.4) / 0.3), data.labels)
    expected = sum(0.1**2 / 2 * mean_square(p.detach()) * trace(loss, p) for p in model.parameters())
    mean, error = rises(model, data, sigma=0.1, draws=2000)
    assert error < 0.02 * expected
    assert abs(mean - expected) < 4 * error


def mean_square(tensor: Tensor) -> float:
    return float(tensor.double().square().mean())


def trace(loss: Tensor, parameter: nn.Parameter) -> float:
    """Of the parameter's block of the Hessian, one second derivative at a time."""
    (slope,) = torch.autograd.grad(loss, parameter, create_graph=True)
    return sum(
        float(torch.autograd.grad(one, parameter, retain_graph=True)[0].flatten()[place])
        for place, one in enumerate(slope.flatten())
    )


# ---- the scale that means something --------------------------------------------------------------------------------


def rescaled(model: TinyModel, factor: float) -> TinyModel:
    """The same function: the hidden layer is ``factor`` times as large, the output's weights as much smaller."""
    copy = fresh_model()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.hidden[0].weight *= factor
        copy.hidden[0].bias *= factor
        copy.output.weight /= factor
    return copy.train()


def test_a_relu_networks_sharpness_does_not_depend_on_how_its_scale_is_shared_out(model, data) -> None:
    def measured(model: TinyModel) -> list[Row]:
        return list(sharpness(model, data, sigma=0.2, draws=5, seed=0))

    rows = measured(model)
    for exact in (4.0, 1 / 1024):  # a power of two rounds nothing
        assert measured(rescaled(model, exact)) == rows
    for row, other in zip(rows, measured(rescaled(model, 30.0)), strict=True):
        assert other["accuracy"] == row["accuracy"]
        assert other["loss"] == pytest.approx(row["loss"], rel=1e-4)


def test_larger_noise_costs_more(model, data) -> None:
    small, large = (rises(model, data, sigma, draws=60)[0] for sigma in (0.05, 0.8))
    assert large > 10 * abs(small)


# ---- nothing stays ---------------------------------------------------------------------------------------------------


def test_between_rows_and_afterwards_weights_buffers_modes_and_random_numbers_are_what_they_were(
    model, data
) -> None:
    before, random = bits(model), torch.get_rng_state()
    model.output.eval()
    modes = [module.training for module in model.modules()]
    with seen_by(model) as seen:
        for _ in sharpness(model, data, sigma=0.3, draws=3, seed=0):
            assert unchanged(model, before)
            assert [module.training for module in model.modules()] == modes
            assert model.conv[1].track_running_stats
    assert unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])  # there was noise on all


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_of_a_noisy_pass_leaves_the_weights_as_they_were(
    model, data, kind
) -> None:
    before, passes = bits(model), 0

    def fail(*_: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 3:  # the intact network's, the first draw's, now the second's
            assert not unchanged(model, before)
            raise kind

    model.output.register_forward_hook(fail)
    rows = sharpness(model, data, sigma=0.3, draws=5, seed=0)
    next(rows)
    with pytest.raises(kind):
        next(rows)
    assert unchanged(model, before)
    assert all(module.training for module in model.modules())
    assert model.conv[1].track_running_stats


def test_a_raised_stop_flag_ends_the_measurement_before_the_next_draw_and_leaves_the_weights(
    model, data
) -> None:
    before, stop = bits(model), StopFlag()
    with seen_by(model) as seen:
        rows = sharpness(model, data, sigma=0.3, draws=5, seed=0, stop=stop)
        next(rows)
        stop.number = 15
        with pytest.raises(Interrupted, match="SIGTERM"):
            next(rows)
    assert len(seen) == 2  # the intact network's pass and one draw's
    assert unchanged(model, before)


def test_a_reader_that_takes_no_more_rows_leaves_the_weights_as_they_were(model, data) -> None:
    before = bits(model)
    rows = sharpness(model, data, sigma=0.3, draws=5, seed=0)
    next(rows)
    rows.close()
    assert unchanged(model, before)


# ---- draws and seeds -------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_draws_however_many_and_other_seeds_others(model, data) -> None:
    def losses(seed: int, draws: int) -> list[float]:
        return [row["loss"] for row in sharpness(model, data, sigma=0.3, draws=draws, seed=seed)]

    assert losses(0, 5)[:3] == losses(0, 3)
    assert not set(losses(0, 5)) & set(losses(1, 5))
    assert losses(0, 0) == []


def test_no_draw_has_the_noise_of_a_training_step_of_the_same_seed(model, data) -> None:
    with seen_by(model) as seen:
        list(sharpness(model, data, sigma=0.3, draws=3, seed=0))
        training = Noise(model, NoiseSpec("weight"), seed=0, classes=3)
        for clock in (Clock(epoch, step, 3, 1) for epoch in range(3) for step in range(3)):
            with training.weights(0.3, clock), torch.no_grad():
                model.eval()(data.normalise(data.images))
    assert len({tuple(values["output.bias"].tolist()) for values in seen}) == 1 + 3 + 9


# ---- the number that is told, and what is refused ----------------------------------------------------------------------


def test_the_documents_number_is_the_mean_accuracy_drop_per_sigma() -> None:
    rows = [{"sigma": 0.01, "accuracy_drop": drop} for drop in (0.01, 0.05, -0.03)]
    assert mean_sharpness(rows) == pytest.approx(1.0)
    assert mean_sharpness(rows[:1]) == pytest.approx(1.0)
    assert mean_sharpness(rows[1:]) == pytest.approx(1.0)
    assert mean_sharpness(rows[:2]) == pytest.approx(3.0)
    assert mean_sharpness([]) is None


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf])
def test_a_sigma_that_is_not_above_0_is_refused(model, data, sigma) -> None:
    with pytest.raises(ValueError, match="is not a number above 0"):
        next(sharpness(model, data, sigma=sigma, draws=1, seed=0))


def test_a_loss_that_noise_makes_infinite_is_none_and_the_accuracy_a_number(model, data) -> None:
    before = bits(model)
    (row,) = sharpness(model, data, sigma=1e30, draws=1, seed=0)
    assert row["loss"] is None
    assert row["loss_rise"] is None
    assert 0 <= row["accuracy"] <= 1
    assert unchanged(model, before)


def test_in_bf16_the_weights_get_their_bits_back_and_the_loss_is_close(model, data) -> None:
    before = bits(model)
    (exact,) = sharpness(model, data, sigma=0.1, draws=1, seed=0)
    (coarse,) = sharpness(model, data, sigma=0.1, draws=1, seed=0, precision="bf16")
    assert coarse["loss"] == pytest.approx(exact["loss"], rel=0.05)
    assert unchanged(model, before)
