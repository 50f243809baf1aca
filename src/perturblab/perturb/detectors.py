"""Is training stuck, does it overfit? The flags of document 004 as pure functions of the rows (adaptive-noise.md 5.7).

Rows are the complete history, one per epoch from the first: ``epoch`` (from 1), ``train_loss``, ``val_loss``,
``grad_norm`` (mean over batches of the length of the whole gradient) and ``update_norm`` (length of the epoch's
displacement of the weights), both without the noise, and None where no clean value exists: under weight noise the
gradient is taken at noisy weights (decision 24).

A window counts epochs whose values are clean. The gradient norm and the training loss are so where ``grad_norm`` is
given, the update where ``update_norm`` is (injected noise is subtracted from it), and the validation loss always: it
belongs to the weights that the epoch left behind. So with static weight noise two flags still work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Literal

Row = dict[str, Any]
Reading = Literal["documented", "published"]

VANISHED = 1e-9  # a gradient norm up to this has no relative improvement
TOLERANCE = 0.1  # of flag_plateau_delta: smaller changes of a loss are neither rise nor fall, as published


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a flag is raised; names and defaults are those of document 004. ValueError in the words of its flags.

    ``flag_window_size`` (2 or more) and ``flag_min_epochs`` (0 or more) are two numbers: the window may be the longer
    one, and a detector then waits for its values. ``flag_overfit_epochs``: 1 or more. ``flag_plateau_delta``: an
    improvement of the validation loss, above 0. ``flag_grad_plateau_thr``: a fraction of the gradient norm, above 0.
    ``flag_low_weight_update_thr``: a length in weight space, 0 or more (0: never).
    """

    flag_window_size: int = 5
    flag_min_epochs: int = 10
    flag_overfit_epochs: int = 3
    flag_plateau_delta: float = 1e-4
    flag_grad_plateau_thr: float = 0.05
    flag_low_weight_update_thr: float = 1e-4

    def __post_init__(self) -> None:
        refuse_below(
            self, flag_window_size=2, flag_min_epochs=0, flag_overfit_epochs=1, flag_low_weight_update_thr=0
        )
        for name in ("flag_plateau_delta", "flag_grad_plateau_thr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{spelt(name)} {getattr(self, name)} is refused: it must be more than 0")


@dataclass(frozen=True)
class Flag:
    """What a detector measured: ``value`` against ``threshold``, and whether the flag is raised."""

    name: str
    fired: bool
    value: float
    threshold: float


def flags(rows: Sequence[Row], thresholds: Thresholds, reading: Reading = "documented") -> list[Flag]:
    """All flags that can be measured after these epochs, raised or not; none before ``flag_min_epochs`` epochs."""
    if len(rows) < thresholds.flag_min_epochs:
        return []
    measured = (
        grad_norm_plateau(rows, thresholds),
        low_weight_update(rows, thresholds),
        val_loss_plateau(rows, thresholds),
        overfitting(rows, thresholds, reading),
    )
    return [flag for flag in measured if flag is not None]


# ---- detectors: None where there are too few clean values ------------------------------------------------------------


def grad_norm_plateau(rows: Sequence[Row], thresholds: Thresholds) -> Flag | None:
    """F1: the gradient norm fell over the window by less than a share of it: ``(g[-W] - g[-1]) / g[-W] < thr``.

    A rising norm raises it too. None as well where ``g[-W]`` has vanished (1e-9 or less).
    """
    window = _window(rows, thresholds.flag_window_size, "grad_norm")
    if not window or window[0]["grad_norm"] <= VANISHED:
        return None
    first, last = window[0]["grad_norm"], window[-1]["grad_norm"]
    return _below("grad_norm_plateau", (first - last) / first, thresholds.flag_grad_plateau_thr)


def low_weight_update(rows: Sequence[Row], thresholds: Thresholds) -> Flag | None:
    """F2: the mean of the window's update norms is below its threshold."""
    window = _window(rows, thresholds.flag_window_size, "update_norm")
    if not window:
        return None
    mean = sum(row["update_norm"] for row in window) / len(window)
    return _below("low_weight_update", mean, thresholds.flag_low_weight_update_thr)


def val_loss_plateau(rows: Sequence[Row], thresholds: Thresholds) -> Flag | None:
    """F3: the validation loss fell over the window by less than ``flag_plateau_delta``: ``v[-W] - v[-1] < delta``."""
    window = _window(rows, thresholds.flag_window_size, "val_loss")
    if not window:
        return None
    improvement = window[0]["val_loss"] - window[-1]["val_loss"]
    return _below("val_loss_plateau", improvement, thresholds.flag_plateau_delta)


def overfitting(rows: Sequence[Row], thresholds: Thresholds, reading: Reading = "documented") -> Flag | None:
    """F4: validation loss rises while training loss falls; N is ``flag_overfit_epochs``, and raised is N or more.

    ``documented`` ("number of consecutive epochs validation loss must increase"): each of the latest N differences of
    the validation loss is a rise, however small (the document names no tolerance), and the training loss ends below
    where it began N epochs before (its single steps are noisy, and the document does not speak of them). The
    value is how many of the latest N differences in a row rise, 0 if the training loss did not fall. No window.

    ``published``: within the window at least N rises and at least N falls, anywhere, each by more than a tenth of
    ``flag_plateau_delta``. The value is the smaller of both counts.
    """
    needed = thresholds.flag_overfit_epochs
    size = needed + 1 if reading == "documented" else thresholds.flag_window_size
    window = _window(rows, size, "grad_norm")
    if not window:
        return None
    val = [row["val_loss"] for row in window]
    train = [row["train_loss"] for row in window]
    if reading == "documented":
        count = _rises_in_a_row(val) if train[-1] < train[0] else 0
    else:
        least = TOLERANCE * thresholds.flag_plateau_delta
        rises = sum(after - before > least for before, after in pairwise(val))
        falls = sum(before - after > least for before, after in pairwise(train))
        count = min(rises, falls)
    return Flag("overfitting", count >= needed, count, needed)


def train_loss_stuck(rows: Sequence[Row], patience: int) -> Flag | None:
    """More than ``patience`` clean epochs since the lowest training loss (document 004's ``--patience``; 5.7 B)."""
    losses = [row["train_loss"] for row in rows if row["grad_norm"] is not None]
    if not losses:
        return None
    since = len(losses) - 1 - losses.index(min(losses))
    return Flag("train_loss_stuck", since > patience, since, patience)


def _window(rows: Sequence[Row], size: int, known: str) -> list[Row]:
    """The latest ``size`` epochs that hold a value of ``known``, the oldest first; empty if there are fewer."""
    latest = list(islice((row for row in reversed(rows) if row[known] is not None), size))
    return latest[::-1] if len(latest) == size else []


def _below(name: str, value: float, threshold: float) -> Flag:
    return Flag(name, value < threshold, value, threshold)


def _rises_in_a_row(values: list[float]) -> int:
    """How many of the latest differences, one after another, are rises."""
    steps = [after > before for before, after in pairwise(values)]
    return steps[::-1].index(False) if False in steps else len(steps)


# ---- settings in a user's words --------------------------------------------------------------------------------------


def refuse_below(settings: object, **least: float) -> None:
    """ValueError for the first field that is below its least value, or not a number."""
    for name, limit in least.items():
        value = getattr(settings, name)
        if not value >= limit:
            raise ValueError(f"{spelt(name)} {value} is refused: it must be {limit} or more")


def spelt(name: str) -> str:
    """A field as its flag: ``flag_window_size`` as ``--flag-window-size``."""
    return "--" + name.replace("_", "-")
