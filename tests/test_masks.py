"""Laws of random subsets, against counts that probability theory gives."""

from math import comb

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from perturblab.masks import documented_subsets, keep_sizes, subsets
from perturblab.streams import stream

IMPROBABLE = 1e-4  # the seeds are fixed: a test that passes once passes always


def test_the_documented_law_keeps_1_to_510_of_512_units_each_size_equally_often() -> None:
    sizes = documented_subsets(25_500, 512, stream(0, "masks")).sum(1)
    counts = torch.bincount(sizes, minlength=513)
    assert set(counts.nonzero().flatten().tolist()) == set(range(1, 511))
    assert chisquare(counts[1:511]).pvalue > IMPROBABLE  # 50 expected of each


def test_each_unit_is_kept_equally_often() -> None:
    """Each of 64 units is kept with probability mean size / 64; units of one mask compete, hence the correction."""
    masks = subsets(torch.full((20_000,), 16), 64, stream(0, "masks"))
    kept = masks.sum(0)
    variance = 20_000 * 0.25 * 0.75
    statistic = float(((kept - 5_000.0) ** 2).sum() / variance) * 63 / 64
    assert 25 < statistic < 115  # chi-square with 63 degrees of freedom: 1e-5 on either side


def test_every_subset_of_a_size_is_equally_likely() -> None:
    masks = subsets(torch.full((20_000,), 3), 6, stream(1, "masks"))
    codes = (masks * 2 ** torch.arange(6)).sum(1)
    counts = torch.bincount(codes, minlength=64)
    assert int((counts > 0).sum()) == comb(6, 3)
    assert chisquare(counts[counts > 0]).pvalue > IMPROBABLE


@given(st.integers(1, 40), st.data(), st.integers(0, 10**6))
def test_a_subset_has_exactly_the_size_that_was_asked_for(width, data, seed) -> None:
    sizes = data.draw(st.lists(st.integers(0, width), max_size=20))
    masks = subsets(torch.tensor(sizes, dtype=torch.int64), width, stream(seed, "masks"))
    assert masks.shape == (len(sizes), width)
    assert masks.dtype == torch.bool
    assert masks.sum(1).tolist() == sizes


@given(st.integers(1, 12), st.integers(1, 600), st.integers(0, 10**6))
def test_documented_masks_keep_at_least_one_and_remove_at_least_two_where_they_can(n, width, seed) -> None:
    masks = documented_subsets(n, width, stream(seed, "masks"))
    assert masks.shape == (n, width)
    kept = masks.sum(1)
    assert int(kept.min()) >= 1
    assert int(kept.max()) <= max(1, width - 2)


def test_widths_1_2_and_3_keep_exactly_one() -> None:
    for width in (1, 2, 3):
        masks = documented_subsets(300, width, stream(0, "masks"))
        assert masks.sum(1).tolist() == [1] * 300
        assert masks.any(0).all()  # each of them now and then


@given(st.integers(0, 50), st.integers(0, 50))
def test_sizes_reach_both_ends_of_their_range_and_no_further(low, span) -> None:
    sizes = keep_sizes(60 * (span + 1), low, low + span, stream(2, "sizes"))
    assert sizes.dtype == torch.int64
    assert set(sizes.tolist()) <= set(range(low, low + span + 1))
    if span < 5:
        assert set(sizes.tolist()) == set(range(low, low + span + 1))


def test_the_same_stream_gives_the_same_masks_and_another_gives_others() -> None:
    first, again, other = (documented_subsets(3, 512, stream(0, "masks", step)) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_masks_of_one_step_differ_from_each_other() -> None:
    masks = documented_subsets(50, 512, stream(0, "masks"))
    assert len(masks.unique(dim=0)) == 50
