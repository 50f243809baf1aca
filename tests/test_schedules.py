"""Learning rates in closed form, against torch's own schedulers epoch by epoch."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from perturblab.objectives import Clock
from perturblab.schedules import constant, multistep


def torchs(lr: float, milestones: list[int], gamma: float, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma)
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
    expected = torchs(lr, milestones, gamma, epochs)
    assert ours(multistep(lr, tuple(milestones), gamma), epochs) == pytest.approx(expected)


def test_the_documented_rate_falls_after_half_and_three_quarters_of_the_epochs() -> None:
    rates = ours(multistep(0.1, (100, 150)), 200)
    assert rates == pytest.approx([0.1] * 100 + [0.01] * 50 + [0.001] * 50)


def test_the_rate_does_not_change_within_an_epoch() -> None:
    assert ours(multistep(0.1, (1,)), 2, steps=3) == pytest.approx([0.1] * 3 + [0.01] * 3)


def test_a_constant_rate_is_constant() -> None:
    assert ours(constant(0.3), 4) == [0.3] * 4
