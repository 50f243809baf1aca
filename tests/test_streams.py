"""Random numbers by purpose: what one consumer draws shifts nobody else's numbers."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perturblab.streams import seeded, stream, stream_seed

purposes = st.lists(st.sampled_from(["masks", "order", "augment", "init"]) | st.integers(0, 300), max_size=4)


def draws(*key: int | str) -> list[float]:
    return torch.rand(8, generator=stream(*key)).tolist()


def test_the_same_purpose_gives_the_same_numbers_each_time() -> None:
    assert draws(3, "masks", 1, 2) == draws(3, "masks", 1, 2)


@pytest.mark.parametrize(
    "other",
    [(4, "masks", 1, 2), (3, "order", 1, 2), (3, "masks", 2, 2), (3, "masks", 1, 3), (3, "masks", 12), (3,)],
)
def test_another_seed_purpose_epoch_or_step_gives_other_numbers(other: tuple[int | str, ...]) -> None:
    assert draws(3, "masks", 1, 2) != draws(*other)


@given(st.integers(0, 2**70), purposes, st.integers(0, 2**70), purposes)
def test_two_streams_are_equal_exactly_when_their_seed_and_purpose_are(
    seed, purpose, seed2, purpose2
) -> None:
    same = (seed, purpose) == (seed2, purpose2)
    assert (stream_seed(seed, *purpose) == stream_seed(seed2, *purpose2)) == same


@given(st.integers(0, 2**70), purposes)
def test_every_seed_is_one_that_torch_takes(seed, purpose) -> None:
    assert 0 <= stream_seed(seed, *purpose) < 2**63
    stream(seed, *purpose)


def test_streams_of_neighbouring_seeds_are_not_correlated() -> None:
    numbers = np.array([torch.randn(400, generator=stream(seed, "masks")).numpy() for seed in range(20)])
    correlations = np.corrcoef(numbers)[np.triu_indices(20, 1)]
    assert abs(correlations).max() < 5 / 400**0.5  # five standard errors, 190 pairs


def test_opening_a_stream_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    torch.rand(5, generator=stream(1, "masks"))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()


def test_seeded_gives_the_numbers_of_its_purpose_whatever_was_drawn_before() -> None:
    with seeded(1, "init"):
        first = torch.rand(3)
    torch.rand(7)
    with seeded(1, "init"):
        again = torch.rand(3)
    with seeded(1, "dropout"):
        other = torch.rand(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_seeded_restores_the_global_random_state() -> None:
    before = torch.get_rng_state()
    with seeded(1, "init"):
        torch.rand(3)
        assert not torch.equal(before, torch.get_rng_state())
    assert torch.equal(before, torch.get_rng_state())


def test_seeded_restores_the_global_random_state_after_an_exception() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="boom"), seeded(1, "init"):
        draw_and_fail()
    assert torch.equal(before, torch.get_rng_state())


def draw_and_fail() -> None:
    torch.rand(3)
    raise RuntimeError("boom")


def test_seeded_inside_seeded_returns_to_the_outer_numbers() -> None:
    with seeded(1, "init"):
        torch.rand(3)
        plain = torch.rand(3)
    with seeded(1, "init"):
        torch.rand(3)
        with seeded(2, "dropout"):
            torch.rand(3)
        assert torch.equal(torch.rand(3), plain)
