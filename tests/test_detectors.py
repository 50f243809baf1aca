"""The flags of adaptive-noise on synthetic histories: at, below and above each threshold, late, and with gaps."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perturblab.perturb.detectors import (
    Flag,
    Thresholds,
    flags,
    grad_norm_plateau,
    low_weight_update,
    overfitting,
    train_loss_stuck,
    val_loss_plateau,
)

DETECTORS = {
    "grad_norm_plateau": grad_norm_plateau,
    "low_weight_update": low_weight_update,
    "val_loss_plateau": val_loss_plateau,
    "overfitting": overfitting,
}


def history(n: int = 0, **columns) -> list[dict]:
    """Rows of a run that learns well; a column given as a list replaces its latest values."""
    n = max([n, *(len(values) for values in columns.values())])
    rows = [
        {"epoch": e, "train_loss": 9 - e / 100, "val_loss": 9 - e / 100, "grad_norm": 2.0**-e, "update_norm": 1.0}
        for e in range(1, n + 1)
    ]  # fmt: skip
    for name, values in columns.items():
        for row, value in zip(rows[n - len(values) :], values, strict=True):
            row[name] = value
    return rows


def fired(flag: Flag | None) -> bool:
    assert flag is not None
    return flag.fired


def test_a_run_that_learns_raises_no_flag() -> None:
    for reading in ("documented", "published"):
        found = flags(history(25), Thresholds(), reading)
        assert [flag.name for flag in found] == list(DETECTORS)
        assert not any(flag.fired for flag in found)


# ---- each detector -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norms", "improvement", "raised"),
    [
        ([4.0, 9.0, 3.0], 0.25, False),  # equal to the threshold: an improvement
        ([4.0, 9.0, 3.001], 0.24975, True),
        ([4.0, 0.0, 6.0], -0.5, True),  # a rising norm too
        ([4.0, 9.0, 1.0], 0.75, False),
        ([1e9, 4.0, 0.0, 4.0], 0.0, True),  # only the window counts
    ],
)
def test_the_gradient_norm_is_flat_when_its_relative_improvement_is_small(norms, improvement, raised) -> None:
    thresholds = Thresholds(flag_window_size=3, flag_grad_plateau_thr=0.25)
    flag = grad_norm_plateau(history(grad_norm=norms), thresholds)
    assert flag == Flag("grad_norm_plateau", raised, pytest.approx(improvement), 0.25)


@pytest.mark.parametrize("norm", [0.0, 1e-9])
def test_a_gradient_that_vanished_has_no_relative_improvement(norm) -> None:
    assert grad_norm_plateau(history(grad_norm=[norm, 1.0]), Thresholds(flag_window_size=2)) is None
    assert grad_norm_plateau(history(grad_norm=[1.1e-9, 1.0]), Thresholds(flag_window_size=2)) is not None


@pytest.mark.parametrize(
    ("norms", "mean", "raised"),
    [
        ([0.25, 0.5, 0.75], 0.5, False),  # equal: not low
        ([0.25, 0.5, 0.5], 1.25 / 3, True),
        ([0.0, 0.0, 2.0], 2 / 3, False),  # the mean, not the latest nor the lowest
        ([9.0, 0.25, 0.25, 0.25], 0.25, True),
    ],
)
def test_updates_are_low_when_their_mean_is(norms, mean, raised) -> None:
    thresholds = Thresholds(flag_window_size=3, flag_low_weight_update_thr=0.5)
    flag = low_weight_update(history(update_norm=norms), thresholds)
    assert flag == Flag("low_weight_update", raised, pytest.approx(mean), 0.5)


@pytest.mark.parametrize(
    ("losses", "improvement", "raised"),
    [
        ([1.0, 5.0, 0.75], 0.25, False),  # equal to delta: an improvement
        ([1.0, 0.0, 0.76], 0.24, True),
        ([1.0, 0.0, 1.5], -0.5, True),
        ([0.0, 1.0, 5.0, 0.5], 0.5, False),
    ],
)
def test_the_validation_loss_is_flat_when_its_improvement_is_small(losses, improvement, raised) -> None:
    thresholds = Thresholds(flag_window_size=3, flag_plateau_delta=0.25)
    flag = val_loss_plateau(history(val_loss=losses), thresholds)
    assert flag == Flag("val_loss_plateau", raised, pytest.approx(improvement), 0.25)


@pytest.mark.parametrize(
    ("val", "train", "count"),
    [
        ([1, 2, 3, 4], [4, 3, 2, 1], 3),
        ([1, 2, 3, 4], [4, 5, 6, 3.9], 3),  # the training loss falls over the three epochs, not in each
        ([1, 2, 3, 4], [4, 3, 2, 4], 0),  # it does not fall over them
        ([1, 2, 3, 4], [1, 2, 3, 4], 0),
        ([1, 2, 2, 4], [4, 3, 2, 1], 1),  # equal is no rise
        ([2, 1, 3, 4], [4, 3, 2, 1], 2),
        ([1, 2, 3, 1], [4, 3, 2, 1], 0),
        ([1, 1 + 1e-9, 1 + 2e-9, 1 + 3e-9], [4, 3, 2, 1], 3),  # however small
        ([7, 1, 2, 3, 4], [0, 4, 3, 2, 1], 3),  # only the latest three differences count
        ([1, 2, 3, 4, 3.9], [5, 4, 3, 2, 1], 0),
    ],
)
def test_overfitting_as_documented_is_consecutive(val, train, count) -> None:
    rows = history(val_loss=val, train_loss=train)
    flag = overfitting(rows, Thresholds(flag_overfit_epochs=3), "documented")
    assert flag == Flag("overfitting", count == 3, count, 3)


@pytest.mark.parametrize(
    ("val", "train", "count"),
    [
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], 4),
        ([1, 2, 1, 2, 1], [5, 4, 5, 4, 5], 2),  # anywhere in the window
        ([1, 2, 1, 2, 1], [4, 5, 4, 5, 4], 2),  # and not in the same epochs
        ([1, 2, 3, 4, 5], [5, 4, 5, 6, 7], 1),
        ([1, 2, 1, 1, 1], [5, 4, 3, 2, 1], 1),
        ([1, 1.5, 2, 2.5, 3], [5, 4, 3, 2, 1], 0),  # a tenth of delta is no rise
        ([1, 2, 3, 4, 5], [3, 2.5, 2, 1.5, 1], 0),
        ([1, 2, 3, 4, 4, 4, 4, 4], [8, 7, 6, 5, 4, 3, 2, 1], 0),  # out of the window
    ],
)
def test_overfitting_as_published_counts_anywhere_in_the_window(val, train, count) -> None:
    thresholds = Thresholds(flag_window_size=5, flag_overfit_epochs=2, flag_plateau_delta=5)
    flag = overfitting(history(val_loss=val, train_loss=train), thresholds, "published")
    assert flag == Flag("overfitting", count >= 2, count, 2)


@pytest.mark.parametrize(
    ("losses", "since"),
    [([3, 2, 1, 1, 1], 2), ([1, 2, 2, 2, 2], 4), ([1, 2, 2, 2, 0.9], 0), ([1, 5, 4, 3, 2, 1.5], 5), ([1], 0)],
)
def test_the_training_loss_is_stuck_after_more_than_patience_epochs(losses, since) -> None:
    rows = history(train_loss=losses)
    assert train_loss_stuck(rows, since) == Flag("train_loss_stuck", False, since, since)
    assert fired(train_loss_stuck(rows, since - 1))
    assert train_loss_stuck([], 3) is None


# ---- how many values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("size", [2, 5, 70])
def test_a_detector_waits_for_its_values(name, size) -> None:
    thresholds = Thresholds(flag_window_size=size, flag_min_epochs=0)
    assert DETECTORS[name]([], thresholds) is None
    needed = 4 if name == "overfitting" else size
    assert DETECTORS[name](history(needed - 1), thresholds) is None
    assert DETECTORS[name](history(needed), thresholds) is not None
    if name == "overfitting":
        assert overfitting(history(size - 1), thresholds, "published") is None
        assert overfitting(history(size), thresholds, "published") is not None


def test_window_and_min_epochs_are_not_swapped() -> None:
    """Norms that halve in each epoch: the improvement tells how long the window was."""

    def improvement(n: int, **sizes: int) -> float | None:
        found = {flag.name: flag.value for flag in flags(history(n), Thresholds(**sizes))}
        return found.get("grad_norm_plateau")

    assert improvement(7, flag_window_size=3, flag_min_epochs=8) is None
    assert improvement(8, flag_window_size=3, flag_min_epochs=8) == 1 - 2.0**-2
    assert improvement(7, flag_window_size=8, flag_min_epochs=3) is None
    assert improvement(8, flag_window_size=8, flag_min_epochs=3) == 1 - 2.0**-7
    assert improvement(3, flag_window_size=3, flag_min_epochs=3) == 1 - 2.0**-2


def test_with_a_window_longer_than_min_epochs_each_flag_comes_as_soon_as_it_can() -> None:
    published = Thresholds(flag_window_size=70, flag_min_epochs=10)
    assert flags(history(9), published) == []
    assert [flag.name for flag in flags(history(10), published)] == ["overfitting"]  # needs four values
    assert flags(history(69), published, "published") == []
    assert [flag.name for flag in flags(history(70), published, "published")] == list(DETECTORS)


@pytest.mark.parametrize("n", [99, 100, 101, 102, 250, 300])
def test_no_flag_goes_silent_after_epoch_100(n) -> None:
    """The original cut its histories to 100 epochs and indexed them by the absolute epoch (defect 2 of 5.9)."""
    flat = [1.0] * n
    rows = history(grad_norm=flat, update_norm=[1e-6] * n, val_loss=[1 + e / n for e in range(n)])
    for reading in ("documented", "published"):
        found = flags(rows, Thresholds(flag_window_size=70, flag_min_epochs=10), reading)
        assert [flag.name for flag in found if flag.fired] == list(DETECTORS)


# ---- noise is not seen -------------------------------------------------------------------------------------------------


def with_noise(rows: list[dict], numbers: random.Random, share: float = 0.4) -> list[dict]:
    """The history with epochs of weight noise put between its own; they hold anything where they hold a number."""
    mixed: list[dict] = []
    for row in rows:
        while numbers.random() < share:
            noise = {"train_loss": numbers.uniform(0, 99), "val_loss": numbers.uniform(0, 99)}
            mixed.append({**noise, "grad_norm": None, "update_norm": None})
        mixed.append(dict(row))
    return [{**row, "epoch": e} for e, row in enumerate(mixed, 1)]


def wandering(n: int, numbers: random.Random) -> list[dict]:
    return history(
        **{
            name: [numbers.uniform(0, 2) for _ in range(n)]
            for name in ("train_loss", "val_loss", "grad_norm", "update_norm")
        }
    )


@settings(deadline=None)
@given(st.integers(0, 12), st.randoms(use_true_random=False))
def test_detectors_do_not_see_epochs_with_weight_noise(n, numbers) -> None:
    """Neither their values nor how many there are; the validation loss is of weights as they are, so F3 sees all."""
    thresholds = Thresholds(
        flag_window_size=4, flag_overfit_epochs=2, flag_grad_plateau_thr=0.5, flag_low_weight_update_thr=1
    )
    rows = wandering(n, numbers)
    noisy = with_noise(rows, numbers)
    for detect in (grad_norm_plateau, low_weight_update, overfitting):
        assert detect(noisy, thresholds) == detect(rows, thresholds)
    assert overfitting(noisy, thresholds, "published") == overfitting(rows, thresholds, "published")
    assert train_loss_stuck(noisy, 2) == train_loss_stuck(rows, 2)
    hidden = [{**row, "train_loss": 0, "grad_norm": None, "update_norm": None} for row in noisy]
    assert val_loss_plateau(hidden, thresholds) == val_loss_plateau(noisy, thresholds)


def test_static_weight_noise_leaves_two_flags_that_can_be_raised() -> None:
    rows = history(grad_norm=[None] * 30, update_norm=[1e-6] * 30, val_loss=[1.0] * 30)
    assert [flag.name for flag in flags(rows, Thresholds())] == ["low_weight_update", "val_loss_plateau"]
    assert all(flag.fired for flag in flags(rows, Thresholds()))


@pytest.mark.parametrize("missing", ["grad_norm", "update_norm", "val_loss", "train_loss"])
def test_a_row_without_its_column_is_an_error_and_not_a_gap(missing) -> None:
    rows = history(30)
    for row in rows:
        del row[missing]
    with pytest.raises(KeyError, match=missing):
        flags(rows, Thresholds())


# ---- thresholds --------------------------------------------------------------------------------------------------------


def test_the_thresholds_are_the_documented_ones_and_named_only() -> None:
    assert vars(Thresholds()) == {
        "flag_window_size": 5,
        "flag_min_epochs": 10,
        "flag_overfit_epochs": 3,
        "flag_plateau_delta": 1e-4,
        "flag_grad_plateau_thr": 0.05,
        "flag_low_weight_update_thr": 1e-4,
    }
    with pytest.raises(TypeError):
        Thresholds(10, 5)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("flag_window_size", 1, "--flag-window-size 1 is refused: it must be 2 or more"),
        ("flag_min_epochs", -1, "--flag-min-epochs -1 is refused: it must be 0 or more"),
        ("flag_overfit_epochs", 0, "--flag-overfit-epochs 0 is refused: it must be 1 or more"),
        ("flag_plateau_delta", 0.0, "--flag-plateau-delta 0.0 is refused: it must be more than 0"),
        ("flag_grad_plateau_thr", -0.1, "--flag-grad-plateau-thr -0.1 is refused: it must be more than 0"),
        ("flag_low_weight_update_thr", float("nan"), "--flag-low-weight-update-thr nan is refused: "),
    ],
)
def test_a_threshold_out_of_range_is_refused_by_its_flag(name, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        Thresholds(**{name: value})
