"""Laws of random subsets, against counts that probability theory gives."""

from math import comb
from time import process_time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from perturblab.masks import documented_subsets, keep_sizes, subsets, unique_subsets
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


# ---- unique ------------------------------------------------------------------------------------------------------


def test_unique_subsets_keep_0_to_511_of_512_channels_each_size_equally_often() -> None:
    """100 at a time: at this width only the empty subset is ever drawn twice, so the others' sizes stay uniform."""
    masks = torch.cat([unique_subsets(100, 512, 0, 511, stream(0, "unique", n)) for n in range(260)])
    counts = torch.bincount(masks.sum(1), minlength=513)
    assert set(counts.nonzero().flatten().tolist()) == set(range(512))
    assert chisquare(counts[1:512]).pvalue > IMPROBABLE  # 51 expected of each


def test_among_the_unique_subsets_of_a_size_each_is_equally_likely() -> None:
    """Two drawn of 6 channels, 2 to 3 kept: by symmetry every subset of a size is in a draw as often as another."""
    counts = torch.zeros(64, dtype=torch.int64)
    for n in range(3000):
        masks = unique_subsets(2, 6, 2, 3, stream(1, "unique", n))
        counts[(masks * 2 ** torch.arange(6)).sum(1)] += 1
    sizes = torch.tensor([bin(code).count("1") for code in range(64)])
    assert counts[(sizes < 2) | (sizes > 3)].sum() == 0
    for size in (2, 3):
        of_size = counts[sizes == size]
        assert int((of_size > 0).sum()) == comb(6, size)
        assert chisquare(of_size).pvalue > IMPROBABLE


def test_the_first_draws_are_kept_and_repetitions_left_out() -> None:
    n, width = 40, 7
    generator, expected = stream(0, "unique"), []
    while len(expected) < n:
        for mask in subsets(keep_sizes(n, 0, width - 1, generator), width, generator).tolist():
            if mask not in expected and len(expected) < n:
                expected.append(mask)
    assert unique_subsets(n, width, 0, width - 1, stream(0, "unique")).tolist() == expected


@given(st.integers(0, 60), st.integers(1, 9), st.data(), st.integers(0, 10**6))
def test_unique_subsets_differ_and_are_fewer_than_asked_only_where_there_are_no_more(
    n, width, data, seed
) -> None:
    low = data.draw(st.integers(0, width))
    high = data.draw(st.integers(low, width))
    masks = unique_subsets(n, width, low, high, stream(seed, "unique"))
    assert masks.dtype == torch.bool
    assert masks.shape[1] == width
    assert len({tuple(mask) for mask in masks.tolist()}) == len(masks) <= n
    assert all(low <= size <= high for size in masks.sum(1).tolist())
    available = sum(comb(width, size) for size in range(low, high + 1))
    if n >= 20:  # with 2,000 draws, no subset that is needed is missed
        assert len(masks) == min(n, available)


@pytest.mark.parametrize(("width", "n"), [(8, 255), (12, 4000), (12, 4095), (12, 5000)])
def test_nearly_or_more_than_all_subsets_that_there_are_come_in_seconds(width, n) -> None:
    start = process_time()
    masks = unique_subsets(n, width, 0, width - 1, stream(0, "unique"))
    assert len(masks) == min(n, 2**width - 1)
    assert len(masks.unique(dim=0)) == len(masks)
    assert process_time() - start < 10


def test_the_same_stream_gives_the_same_unique_subsets() -> None:
    first, again, other = (unique_subsets(50, 64, 0, 63, stream(0, "unique", n)) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
