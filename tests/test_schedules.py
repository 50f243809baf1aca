"""Learning rates in closed form, against torch's own schedulers epoch by epoch."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    SequentialLR,
)

from perturblab.objectives import Clock
from perturblab.schedules import constant, cosine, cosine_decaying_restarts, multistep, warmup_cosine


def torchs(lr: float, epochs: int, build: Callable[[Optimizer], LRScheduler]) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = build(optimizer)
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def ours(schedule, epochs: int, steps: int = 1) -> list[float]:
    return [
        schedule(Clock(epoch, step, steps, epochs)) for epoch in range(1, epochs + 1) for step in range(steps)
    ]


@settings(deadline=None)  # torch's first optimiser takes a second
@given(
    st.floats(1e-4, 10),
    st.lists(st.integers(0, 25), max_size=5).map(sorted),
    st.floats(0.05, 1),
    st.integers(1, 25),
)
@example(0.1, [0, 0], 0.1, 1)  # one epoch: int(0.5) and int(0.75) are both 0
@example(0.1, [1, 1], 0.1, 2)
@example(0.1, [100, 150], 0.1, 200)
def test_multistep_is_torchs_multistep_in_every_epoch(lr, milestones, gamma, epochs) -> None:
    expected = torchs(lr, epochs, lambda optimizer: MultiStepLR(optimizer, milestones, gamma))
    assert ours(multistep(lr, tuple(milestones), gamma), epochs) == pytest.approx(expected)


def test_the_documented_rate_falls_after_half_and_three_quarters_of_the_epochs() -> None:
    rates = ours(multistep(0.1, (100, 150)), 200)
    assert rates == pytest.approx([0.1] * 100 + [0.01] * 50 + [0.001] * 50)


def test_the_rate_does_not_change_within_an_epoch() -> None:
    assert ours(multistep(0.1, (1,)), 2, steps=3) == pytest.approx([0.1] * 3 + [0.01] * 3)


def test_a_constant_rate_is_constant() -> None:
    assert ours(constant(0.3), 4) == [0.3] * 4


@settings(deadline=None)  # torch's first optimiser takes a second
@given(st.floats(1e-4, 10), st.floats(0, 1e-4), st.integers(1, 60))
def test_cosine_is_torchs_cosine_annealing_in_every_epoch(lr, final_lr, epochs) -> None:
    expected = torchs(lr, epochs, lambda optimizer: CosineAnnealingLR(optimizer, epochs, final_lr))
    assert ours(cosine(lr, final_lr=final_lr), epochs) == pytest.approx(expected)


def test_cosine_begins_at_its_rate_and_is_at_half_of_it_half_way() -> None:
    assert ours(cosine(0.1), 200)[::100] == pytest.approx([0.1, 0.05])


@pytest.mark.filterwarnings(
    "ignore:The epoch parameter in:UserWarning"
)  # torch's SequentialLR warns of itself
@pytest.mark.parametrize("epochs", [11, 12, 50, 300])
@pytest.mark.parametrize("lr", [0.001, 0.1])
def test_the_documented_warm_up_and_cosine_are_torchs_in_every_epoch(lr, epochs) -> None:
    def documented(optimizer: Optimizer) -> LRScheduler:
        warm_up = LinearLR(optimizer, start_factor=0.001, total_iters=10)
        rest = CosineAnnealingLR(optimizer, T_max=epochs - 10, eta_min=1e-5)
        return SequentialLR(optimizer, [warm_up, rest], milestones=[10])

    assert ours(warmup_cosine(lr), epochs) == pytest.approx(torchs(lr, epochs, documented))


@pytest.mark.parametrize("epochs", [1, 3, 9, 10])
def test_a_short_run_is_the_beginning_of_the_warm_up(epochs) -> None:
    rates = ours(warmup_cosine(0.001), epochs)
    assert rates == pytest.approx([0.001 * (0.001 + 0.999 * e / 10) for e in range(epochs)])


def test_without_warm_up_epochs_the_cosine_begins_at_once() -> None:
    assert ours(warmup_cosine(0.1, 0, final_lr=1e-5), 30) == pytest.approx(
        ours(cosine(0.1, final_lr=1e-5), 30)
    )


# ---- cosine with decaying restarts (adaptive-noise) ----------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7])
def test_the_published_restarts_begin_at_a_maximum_that_falls(steps) -> None:
    rates = ours(cosine_decaying_restarts(1e-3, 50), 300, steps)
    assert rates[:: 50 * steps] == pytest.approx([0.001, 0.000802, 0.000604, 0.000406, 0.000208, 0.00001])
    assert min(rates) > 1e-6
    ends = rates[50 * steps - 1 :: 50 * steps]
    assert ends == pytest.approx([1e-6] * 6, abs=1e-6)  # each cycle ends near eta_min


def test_the_maximum_falls_in_each_step_and_not_at_restarts_only() -> None:
    """Half way through a cycle of 100 steps the cosine is a half, and the maximum 50 of 200 steps on its way."""
    rates = ours(cosine_decaying_restarts(0.9, 10, final_max=0.1, eta_min=0.1), 30, 10)
    assert rates[50] == pytest.approx(0.1 + (0.9 - 50 / 200 * 0.8 - 0.1) / 2)
    assert rates[150] == pytest.approx(0.1 + (0.9 - 150 / 200 * 0.8 - 0.1) / 2)
    assert rates[200:] == pytest.approx([0.1] * 100)  # at the final maximum, which here is the minimum


def test_after_the_last_restart_the_maximum_stays() -> None:
    """65 epochs with a period of 10: the maximum is reached after 55, half way through a cycle, and not passed."""
    schedule = cosine_decaying_restarts(1.0, 10, final_max=0.5, eta_min=0.0)
    rates = ours(schedule, 65)
    assert rates[50] == pytest.approx(1 - 50 / 55 * 0.5)
    assert rates[60] == pytest.approx(0.5)
    assert rates[55] == rates[65 - 10] == pytest.approx(0.25)


@settings(deadline=None)  # torch's first optimiser takes a second
@given(st.floats(1e-4, 1), st.floats(0, 1e-4), st.integers(1, 12), st.integers(1, 40), st.integers(1, 4))
@example(1e-3, 1e-6, 50, 300, 1)
def test_with_a_maximum_that_stays_it_is_torchs_warm_restarts(lr, eta_min, period, epochs, steps) -> None:
    schedule = cosine_decaying_restarts(lr, period, final_max=lr, eta_min=eta_min)

    def restarts(optimizer: Optimizer) -> LRScheduler:
        return CosineAnnealingWarmRestarts(optimizer, period * steps, 1, eta_min)

    assert ours(schedule, epochs, steps) == pytest.approx(torchs(lr, epochs * steps, restarts))


@pytest.mark.parametrize("epochs", [1, 49, 50])
def test_a_run_of_one_period_is_the_plain_cosine_whatever_the_final_maximum(epochs) -> None:
    expected = ours(cosine_decaying_restarts(1e-3, 50, final_max=1e-3), epochs, 3)
    assert ours(cosine_decaying_restarts(1e-3, 50), epochs, 3) == expected
    assert expected[0] == 1e-3
