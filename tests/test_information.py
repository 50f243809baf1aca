"""Information against scikit-learn, numpy and closed forms; its null and intervals against what they promise."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information
from torch import Tensor

from perturblab import information
from perturblab.information import (
    Tables,
    accuracy,
    bits,
    bootstrap_interval,
    chance,
    contingency,
    label_entropy,
    miller_madow,
    mutual_information,
    permutation_null,
    too_few,
)
from perturblab.streams import stream


def drawn(m: int, n: int, classes: int, seed: int = 0, right: float = 0.5) -> tuple[Tensor, Tensor]:
    """Labels ``[n]`` and predictions ``[m n]``, of which a fraction ``right`` (and chance) agree."""
    g = stream(seed, "test")
    labels = torch.randint(classes, (n,), generator=g)
    guesses = torch.randint(classes, (m, n), generator=g)
    return labels, labels.where(torch.rand(m, n, generator=g) < right, guesses)


def confused(classes: int, right: float, seed: int = 0) -> np.ndarray:
    """Probabilities ``[K K]`` of a classifier whose errors have favourites; all labels equally frequent."""
    errors = np.random.default_rng(seed).dirichlet(np.ones(classes - 1), classes) * (1 - right)
    joint = np.diag(np.full(classes, right))
    joint[~np.eye(classes, dtype=bool)] = errors.flatten()
    return joint / classes


def true_information(joint: np.ndarray) -> float:
    return float((joint * np.log(joint / (joint.sum(1, keepdims=True) * joint.sum(0)))).sum())


# ---- tables --------------------------------------------------------------------------------------------------------


def test_a_table_is_scikit_learns_confusion_matrix() -> None:
    labels, predictions = drawn(7, 300, 5)
    tables = contingency(labels, predictions, 5)
    assert tables.dtype == torch.int64
    for table, row in zip(tables, predictions, strict=True):
        assert (table.numpy() == confusion_matrix(labels, row, labels=range(5))).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_predictions_may_be_of_any_integer_type_and_are_left_as_they_are(dtype: torch.dtype) -> None:
    labels, predictions = drawn(3, 200, 200)
    given_ = predictions.to(dtype)
    assert contingency(labels, given_, 200).equal(contingency(labels, predictions, 200))
    assert given_.equal(predictions.to(dtype))


@pytest.mark.parametrize("at_once", [1, 900, 10**7])
def test_the_size_of_the_chunks_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = drawn(11, 300, 4)
    whole = contingency(labels, predictions, 4)
    monkeypatch.setattr(information, "AT_ONCE", at_once)
    assert contingency(labels, predictions, 4).equal(whole)


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_tables_fed_by_batches_of_any_size_equal_the_table_over_all(sizes: list[int], seed: int) -> None:
    labels, predictions = drawn(3, sum(sizes), 4, seed)
    tables = Tables(3, 4)
    for some, seen in zip(labels.split(sizes), predictions.split(sizes, dim=1), strict=True):
        tables.update(some, seen)
    assert tables.counts.equal(contingency(labels, predictions, 4))


@pytest.mark.parametrize(
    ("labels", "predictions", "says"),
    [
        ([0, 3], [[0, 0]], "labels from 0 to 3 are not all classes 0 to 2"),
        ([0, 1], [[0, -1]], "predictions from -1 to 0 are not all classes 0 to 2"),
        ([0, 1], [[0, 2], [0, 3]], "predictions from 0 to 3"),
        ([0, 1], [[0.5, 1.0]], "predictions are torch.float32, not integers"),
        ([True, False], [[0, 1]], "labels are torch.bool, not integers"),
        ([0, 1, 2], [[0, 1]], r"labels \[3\] and predictions \[1, 2\]"),
        ([0, 1], [0, 1], r"predictions \[2\]"),
    ],
)
def test_what_is_not_a_class_of_every_image_is_refused(labels: list, predictions: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        contingency(torch.tensor(labels), torch.tensor(predictions), 3)


def test_a_batch_for_another_number_of_subsets_is_refused() -> None:
    with pytest.raises(ValueError, match="2 rows of predictions for 3 tables"):
        Tables(3, 4).update(*drawn(2, 10, 4))


# ---- what a table says ---------------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.integers(1, 400), st.floats(0, 1), st.integers(0, 10**6))
@settings(deadline=None, max_examples=60)
def test_information_is_that_of_scikit_learn_also_where_classes_are_missing(k, n, right, seed) -> None:
    labels, predictions = drawn(4, n, k, seed, right)
    labels, predictions = labels // 2, predictions // 2  # the upper classes never occur
    ours = mutual_information(contingency(labels, predictions, k))
    theirs = [mutual_info_score(labels, row) for row in predictions]
    assert ours.dtype == torch.float64
    assert ours.numpy() == pytest.approx(theirs, abs=1e-12, rel=0)


def test_tables_of_any_leading_shape_are_read_at_once() -> None:
    counts = contingency(*drawn(6, 500, 5), 5)
    for read in (mutual_information, miller_madow, label_entropy, accuracy):
        assert read(counts.view(2, 3, 5, 5)).equal(read(counts).view(2, 3))
        assert read(counts[0]).shape == ()


def test_a_perfect_predictor_says_exactly_the_entropy_of_the_labels() -> None:
    labels = torch.randint(10, (12_345,), generator=stream(1, "test"))
    counts = contingency(labels, labels[None], 10)
    p = np.bincount(labels) / len(labels)
    assert mutual_information(counts).equal(label_entropy(counts))
    assert float(label_entropy(counts)) == pytest.approx(float(-(p * np.log(p)).sum()), abs=1e-12)
    assert float(accuracy(counts)) == 1


def test_a_constant_predictor_says_exactly_nothing() -> None:
    """0.0 itself, not -0.0 or 1e-17: for tables of many sizes, also after the bias is taken off."""
    for n in range(1, 400, 7):
        labels = torch.randint(10, (n,), generator=stream(n, "test"))
        counts = contingency(labels, torch.full((1, n), 3), 10)
        for value in (float(mutual_information(counts)), float(miller_madow(counts))):
            assert math.copysign(1, value) * (1 + abs(value)) == 1


def test_independent_predictions_say_exactly_nothing_and_no_table_says_less() -> None:
    independent = torch.outer(torch.tensor([3, 7, 11]), torch.tensor([5, 1, 13]))
    assert float(mutual_information(independent)) == 0
    nearly = independent * 10**7 + torch.eye(3, dtype=torch.int64) * torch.arange(1, 200)[:, None, None]
    assert (mutual_information(nearly) >= 0).all()  # rounding alone would take one of these to -7e-17


def test_names_of_classes_do_not_matter() -> None:
    counts = contingency(*drawn(20, 1_000, 10), 10)
    value = mutual_information(counts).numpy()
    order, other = torch.randperm(10, generator=stream(2, "test")), torch.arange(10).flip(0)
    for renamed in (counts[:, order][..., other], counts.mT):
        assert mutual_information(renamed).numpy() == pytest.approx(value, abs=1e-12, rel=0)


def test_miller_madow_counts_observed_cells_only() -> None:
    labels, predictions = drawn(9, 60, 8)
    counts = contingency(labels, predictions, 8)
    for table, row, ours in zip(counts.numpy(), predictions, miller_madow(counts), strict=True):
        m_xy, m_x, m_y = (table > 0).sum(), (table.sum(1) > 0).sum(), (table.sum(0) > 0).sum()
        theirs = mutual_info_score(labels, row) - (m_xy - m_x - m_y + 1) / (2 * 60)
        assert float(ours) == pytest.approx(theirs, abs=1e-12, rel=0)


def test_miller_madow_is_right_on_average_where_plug_in_is_not() -> None:
    joint = confused(10, 0.5)
    counts = torch.from_numpy(np.random.default_rng(0).multinomial(2_000, joint.flatten(), 400)).view(
        400, 10, 10
    )
    truth = true_information(joint)
    plug_in, corrected = mutual_information(counts), miller_madow(counts)
    error = float(plug_in.std()) / 20
    assert float(plug_in.mean()) - truth == pytest.approx(81 / 4_000, abs=3 * error)
    assert float(corrected.mean()) == pytest.approx(truth, abs=4 * error)
    assert float(plug_in.mean()) - truth > 10 * error


def test_a_fair_coin_says_one_bit() -> None:
    one = mutual_information(torch.eye(2, dtype=torch.int64) * 500)
    assert float(bits(one)) == pytest.approx(1, abs=1e-15)
    assert bits(math.log(2)) == 1


@pytest.mark.parametrize("counts", [torch.zeros(2, 3, 3), torch.ones(3), torch.ones(2, 3)])
def test_what_is_no_table_or_holds_no_image_is_refused(counts: Tensor) -> None:
    with pytest.raises(ValueError, match="table"):
        mutual_information(counts)


def test_a_hundred_subsets_at_once_are_faster_than_a_hundred_calls_of_scikit_learn() -> None:
    """At least twice; measured 21 to 75 times for 10 classes, 5 to 13 for 100 (10,000 images, one thread)."""
    labels, predictions = drawn(100, 10_000, 10)
    ours, theirs = math.inf, math.inf
    for _ in range(3):
        start = time.perf_counter()
        at_once = mutual_information(contingency(labels, predictions, 10))
        middle = time.perf_counter()
        one_by_one = [mutual_info_score(labels, row) for row in predictions]
        ours, theirs = min(ours, middle - start), min(theirs, time.perf_counter() - middle)
    assert at_once.numpy() == pytest.approx(one_by_one, abs=1e-12, rel=0)
    assert theirs > 2 * ours


# ---- how far to trust it -------------------------------------------------------------------------------------------


def test_the_null_averages_to_scikit_learns_expected_information() -> None:
    counts = contingency(*drawn(3, 150, 6), 6)
    null = permutation_null(counts, 2_000, stream(0, "null"))
    assert null.shape == (2_000, 3)
    for table, values in zip(counts.numpy(), null.T, strict=True):
        error = float(values.std()) / math.sqrt(2_000)
        assert abs(float(values.mean()) - expected_mutual_information(table, 150)) < 4 * error


def test_the_null_is_that_of_permuting_the_labels_themselves() -> None:
    labels, predictions = drawn(1, 200, 3, right=0.9)
    null = permutation_null(contingency(labels, predictions, 3)[0], 3_000, stream(0, "null"))
    r = np.random.default_rng(0)
    naive = [mutual_info_score(r.permutation(labels), predictions[0]) for _ in range(400)]
    for quantile in (0.25, 0.5, 0.75, 0.95):
        below = float((null <= np.quantile(naive, quantile)).double().mean())
        assert below == pytest.approx(quantile, abs=4 * math.sqrt(quantile * (1 - quantile) / 350))


def test_the_null_repeats_itself_and_is_zero_for_a_constant_predictor() -> None:
    labels, predictions = drawn(4, 100, 5)
    predictions[0] = 2
    counts = contingency(labels, predictions, 5)
    null = permutation_null(counts, 20, stream(3, "null"))
    assert null.equal(permutation_null(counts, 20, stream(3, "null")))
    assert (null[:, 0] == 0).all()
    assert (null[:, 1:].std(0) > 0).all()


def test_tables_of_different_labels_cannot_share_permutations() -> None:
    with pytest.raises(ValueError, match="different labels"):
        permutation_null(torch.stack([torch.eye(3), torch.ones(3, 3)]), 2, stream(0, "null"))


def test_the_interval_resamples_as_drawing_images_anew_does() -> None:
    """Poisson cells against numpy's multinomial: the ends agree within their Monte-Carlo error."""
    counts = contingency(*drawn(1, 1_000, 5), 5)[0]
    low, high = bootstrap_interval(counts, 4_000, stream(0, "bootstrap"))
    plug_in = float(mutual_information(counts))
    cells = np.random.default_rng(0).multinomial(1_000, counts.flatten() / 1_000, 4_000)
    anew = mutual_information(torch.from_numpy(cells).view(-1, 5, 5)).numpy()
    ends = 2 * plug_in - np.quantile(anew, [0.975, 0.025])
    assert [float(low), float(high)] == pytest.approx(ends, abs=0.1 * anew.std())
    assert low < plug_in < high


@pytest.mark.parametrize("right", [0.15, 0.5, 0.8])
def test_the_interval_covers_the_true_information_as_often_as_it_says(right: float) -> None:
    """K = 10, N = 2,000; 300 tables. The percentile bootstrap covers 0.2 to 0.7 of them."""
    joint = confused(10, right)
    counts = torch.from_numpy(np.random.default_rng(1).multinomial(2_000, joint.flatten(), 300)).view(
        300, 10, 10
    )
    low, high = bootstrap_interval(counts, 200, stream(1, "bootstrap"))
    covered = (low <= true_information(joint)) & (true_information(joint) <= high)
    assert 0.91 < float(covered.double().mean()) < 0.99


def test_intervals_keep_the_shape_widen_with_the_level_and_never_leave_what_is_possible() -> None:
    counts = contingency(*drawn(6, 300, 4, right=0.0), 4).view(2, 3, 4, 4)
    low, high = bootstrap_interval(counts, 300, stream(0, "bootstrap"))
    narrow = bootstrap_interval(counts, 300, stream(0, "bootstrap"), level=0.5)
    assert low.shape == high.shape == (2, 3)
    assert (low >= 0).all()
    assert (low <= narrow[0]).all()
    assert (narrow[1] <= high).all()
    assert (low <= high).all()


def test_an_interval_rests_on_as_many_resamples_as_were_asked_for() -> None:
    """One resample has one value, whatever the level."""
    low, high = bootstrap_interval(contingency(*drawn(2, 300, 4), 4), 1, stream(0, "bootstrap"))
    assert low.equal(high)


def test_a_handful_of_images_and_a_constant_predictor_have_intervals_too() -> None:
    low, high = bootstrap_interval(torch.tensor([[1, 0], [0, 0]]), 50, stream(0, "bootstrap"))
    assert (float(low), float(high)) == (0, 0)


@pytest.mark.parametrize(("n_resamples", "level"), [(0, 0.95), (10, 0.0), (10, 95.0)])
def test_an_interval_without_resamples_or_of_an_impossible_level_is_refused(n_resamples, level) -> None:
    with pytest.raises(ValueError, match="resample"):
        bootstrap_interval(torch.eye(3), n_resamples, stream(0, "bootstrap"), level)


@pytest.mark.parametrize(("n", "classes"), [(5_120, 100), (10_240, 100), (513, 10), (7, 10), (40, 2), (3, 1)])
def test_the_chance_reading_is_scikit_learns_expected_information_of_equal_classes(
    n: int, classes: int
) -> None:
    table = np.diag(np.bincount(np.arange(n) % classes))
    assert chance(n, classes) == pytest.approx(expected_mutual_information(table, n), abs=1e-9)


def test_the_warning_tells_what_independent_labels_would_read() -> None:
    said = too_few(5_120, 100)
    assert "\n" not in said
    assert "0.98 nats (1.41 bits)" in said
    assert "100,000" in said
    assert too_few(999, 10)
    assert too_few(1_000, 10) == ""
