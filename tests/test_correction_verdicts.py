"""correction: the document's checks of its stages, the page with its answers, the pictures, and its checklist."""

import csv
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from commandline import called
from conftest import one_thread
from perturblab.images import Batch, MixedSource
from perturblab.report.events import Event, event_file, file_name, image_grid
from perturblab.studies.correction import Check, Train, stages
from perturblab.studies.correction import check as checklist
from perturblab.studies.correction.data import read_sets
from perturblab.studies.correction.equivalence import angle, gradient_angles
from perturblab.studies.correction.parts import mixed, parts_of
from perturblab.studies.correction.rates import rate_marks
from perturblab.studies.correction.records import images_logged
from perturblab.studies.correction.verdicts import losses_compared, verdict
from perturblab.terminal import UserError
from plain_networks import PlainCNN2
from test_page import Reader

# ---- records ---------------------------------------------------------------------------------------------------------


def reliance(
    plain: float = 0.9, dotted: float = 1.0, toggled: float = 0.8, marked: float = 0.9, **more: float
) -> dict[str, Any]:
    return {
        "accuracy_original": plain, "accuracy_confounded": dotted, "accuracy_toggled": toggled, "accuracy_marked": marked,
        "accuracy_drop": dotted - toggled, "flip_rate": 0.1, "worst_group_accuracy": 0.7,
        "groups": {"0, plain": plain, "0, marked": 0.7, "8, plain": plain, "8, marked": dotted}, "n": 1000, **more,
    }  # fmt: skip


BEFORE = {
    "val_loss": 1.2, "val_accuracy": 0.6, "val_accuracy_original": 0.6, "val_accuracy_confounded": 1.0, "test_loss": 1.3,
    "test_accuracy": 0.61, "reliance": reliance(0.61, 1.0, 0.22, 0.63, flip_rate=0.39, worst_group_accuracy=0.21),
}  # fmt: skip


def made_cell(
    loss: str = "balanced", rate: float = 0.01, weight: float = 1.0, pool: int = 100, seed: int | None = None, *,
    status: str = "done", control: bool = False, log_dir: str = "", reason: str = "",
    losses: tuple[float, ...] = (0.7, 0.1, 0.01), accuracies: tuple[float, ...] = (0.6, 0.9, 1.0),
    val_losses: tuple[float, ...] = (0.6, 0.2, 0.1), val: tuple[float, ...] = (0.6, 0.9, 0.95),
    test: float = 0.9, toggled: float = 0.8, **result: Any,
) -> dict[str, Any]:  # fmt: skip
    """A cell as ``experiments/NAME.json`` holds it; what a run found is of its epoch with the lowest validation loss."""
    name = f"lr{rate}_loss{loss}_lambda{weight}_pool{pool}" + ("" if seed is None else f"_seed{seed}")
    epochs, at = len(losses), int(np.argmin(val_losses))
    found = {
        "schema_version": 1, "run_id": "0123456789", "seed": seed or 0, "epochs_trained": epochs, "best_epoch": at + 1,
        "best_val_loss": val_losses[at], "stopped": "patience", "train_loss": 0.2, "train_accuracy": 0.99,
        "train_conf_loss": 0.1, "train_corr_loss": 0.3, "train_conf_accuracy": 1.0, "train_corr_accuracy": 0.9,
        "val_loss": val_losses[at], "val_accuracy": val[at], "val_accuracy_original": val[at],
        "val_accuracy_confounded": 1.0, "test_loss": 0.3, "test_accuracy": test,
        "reliance": reliance(test, toggled=toggled), "before": BEFORE, "n": {"train": 1000, "validation": 781, "test": 1173},
        "settings": {}, **result,
    }  # fmt: skip
    history = (range(1, epochs + 1), losses, losses, losses, accuracies, val_losses, val)
    keys = (
        "epoch", "train_loss", "train_conf_loss", "train_corr_loss", "train_accuracy", "val_loss", "val_accuracy",
    )  # fmt: skip
    ran = status == "done"
    return {
        "name": name, "log_dir": log_dir or f"runs/{name}", "status": status, "control": control, "run_id": "0123456789",
        "images_logged": images_logged(Path(log_dir or f"runs/{name}")),
        "learning_rate": rate, "loss_type": loss, "lambda_weight": weight, "user_corrected_pool_size": pool, "seed": seed,
        "batch_size": 64, "user_corrected_max_per_batch": 4, "reason": reason, "result": found if ran else None,
        "history": {key: list(values) if ran else [] for key, values in zip(keys, history, strict=True)},
    }  # fmt: skip


def made_stage(name: str, *cells: dict[str, Any], threshold: float = 0.95, **more: Any) -> dict[str, Any]:
    settings = {
        "experiment": name, "accuracy_threshold": threshold, "validation": "original", "batch_size": 64,
        "user_corrected_max_per_batch": 4,
    }  # fmt: skip
    return {
        "schema_version": 1, "experiment": name, "complete": all(c["status"] in ("done", "diverged", "skipped") for c in cells),
        "settings": settings, "sources": {"learning_rate": "as the document has it"}, "data_sha256": "d" * 16,
        "base_sha256": "b" * 16, "cells": list(cells), **more,
    }  # fmt: skip


def diverged(rate: float = 1.0, **about: Any) -> dict[str, Any]:
    reason = "the loss is not finite at epoch 1, step 2: training diverged; try a lower learning rate"
    return made_cell(rate=rate, status="diverged", reason=reason, **about)


def told(stage: dict[str, Any]) -> str:
    return " ".join(verdict(stage).sentences)


# ---- step 1: overfit_test --------------------------------------------------------------------------------------------


PICTURES = ("confounded_samples", "corrected_original", "corrected_samples")


@pytest.fixture
def logged(tmp_path: Path) -> Callable[..., str]:
    """``logged(*tags)``: a directory whose event file has these pictures."""

    def write(*tags: str) -> str:
        folder = tmp_path / "_".join(("of", *tags))
        folder.mkdir(exist_ok=True)
        grid = image_grid(np.zeros((1, 2, 2), np.uint8))
        events = [Event(1, 1.7e9, {"Loss/train_epoch": 0.5}, dict.fromkeys(tags, grid), {})]
        (folder / file_name("0123456789")).write_bytes(event_file(events, {}, {}))
        return str(folder)

    return write


GUESSED = 0.95 * math.log(2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, ""),
        ({"losses": (1.0, 0.2, 0.1)}, ""),
        ({"losses": (1.0, 0.2, 0.11)}, "the training loss did not fall to a tenth"),
        ({"accuracies": (0.6, 0.99, 0.98)}, ""),
        ({"accuracies": (0.6, 0.9, 0.9899)}, "train accuracy stayed below 99.00 %"),
        ({"val_losses": (0.7, 0.69, GUESSED)}, "it only guesses"),
        ({"val_losses": (0.7, 0.69, GUESSED - 1e-6)}, ""),
        ({"tags": PICTURES[:2]}, "the images are not in the event file"),
        ({"tags": PICTURES[1:]}, "the images are not in the event file"),
        ({"tags": ("confounded_samples", "corrected_samples")}, "the images are not in the event file"),
        ({"status": "diverged", "reason": "the loss is not finite at epoch 1"}, "the loss is not finite at epoch 1"),
    ],
)  # fmt: skip
def test_each_condition_of_the_overfit_test_by_itself_makes_it_fail(logged, change, problem) -> None:
    directory = logged(*change.pop("tags", PICTURES))
    good = made_cell("imbalanced", log_dir=logged(*PICTURES))
    found = verdict(made_stage("overfit_test", made_cell(log_dir=directory, **change), good, threshold=0.99))
    assert found.word == ("FAIL" if problem else "PASS")
    problems = [s for s in found.sentences if "training loss " not in s or "did not fall" in s]
    assert len(problems) == bool(problem)
    assert not problem or problems[0].startswith(f"Balanced: {problem}")
    assert any(s.startswith("Imbalanced: training loss 0.7 to 0.01 nats") for s in found.sentences)


def test_every_condition_that_fails_is_named(logged) -> None:
    bad = made_cell("imbalanced", log_dir=logged(), losses=(0.7, 0.7), accuracies=(0.5, 0.5), val_losses=(0.7, 0.7), val=(0.5, 0.5))  # fmt: skip
    found = verdict(made_stage("overfit_test", made_cell(log_dir=logged(*PICTURES)), bad, threshold=0.99))
    assert found.word == "FAIL"
    assert found.sentences[0].startswith("Imbalanced: it only guesses")
    assert found.sentences[0].count("; ") == 3


def test_the_overfit_test_tells_how_often_the_loss_rose_and_by_how_much(logged) -> None:
    cell = made_cell(log_dir=logged(*PICTURES), losses=(1.0, 0.5, 0.75, 0.25, 0.375, 0.0625), accuracies=(0.5,) * 5 + (1.0,), val_losses=(0.1,) * 6, val=(0.9,) * 6)  # fmt: skip
    said = told(made_stage("overfit_test", cell))
    assert "training loss 1 to 0.062 nats, it rose in 2 of 6 epochs, by 0.25 at most" in said
    assert "train accuracy reached 100.00 %; no NaN; images logged." in said


# ---- step 2: lr_search -----------------------------------------------------------------------------------------------


def at_rate(
    rate: float, reached_in: int = 2, level: float = 0.95, low: float = 0.1, **more: Any
) -> dict[str, Any]:
    """A run of 16 epochs whose validation accuracy is 0.6 until epoch ``reached_in``, and then ``level``."""
    val = (0.6,) * (reached_in - 1) + (level,) * (17 - reached_in)
    val_losses = tuple(low + 0.01 * abs(epoch - 16) for epoch in range(1, 17))
    losses = more.pop("losses", tuple(1 / epoch for epoch in range(1, 17)))
    return made_cell(rate=rate, losses=losses, accuracies=(0.9,) * 16, val_losses=val_losses, val=val, **more)


RISING = (1.0, *[0.05] * 11, *[0.5] * 4)  # at its end more than twice what it was in its best quarter
RIPPLING = (1.0, *[0.01] * 11, *[0.09] * 4)  # ups and downs near 0


def test_a_learning_rate_search_names_the_best_those_that_diverge_and_those_that_are_too_slow() -> None:
    stage = made_stage(
        "lr_search",
        diverged(1.0),
        at_rate(0.3, losses=RISING),
        at_rate(0.2, level=0.5, low=0.68),  # never better than a coin
        at_rate(0.1, level=0.94, losses=RIPPLING),
        at_rate(0.05, level=0.97),
        at_rate(0.01, level=0.97, low=0.05),  # as accurate, with a lower loss
        at_rate(0.005, reached_in=8, level=0.965),
        at_rate(0.001, reached_in=9, level=0.965),
        at_rate(0.0001, level=0.96, low=0.2),
    )
    marks = {cell["learning_rate"]: mark for cell, mark in rate_marks(stage)}
    assert marks == {
        1.0: "diverging", 0.3: "diverging", 0.2: "diverging", 0.1: "too slow", 0.05: "", 0.01: "best", 0.005: "",
        0.001: "too slow", 0.0001: "too slow",
    }  # fmt: skip
    found = verdict(stage)
    assert found.word == "PASS"
    assert found.sentences == (
        "Best learning rate 0.01 by validation (97.00 %).",
        "Diverging: 0.2, 0.3, 1.",
        "Too slow: 0.0001, 0.001, 0.1.",
    )


@pytest.mark.parametrize("level", [(0.9, 0.95, 0.97), (0.97, 0.95, 0.9)])
def test_a_best_rate_at_the_edge_of_those_tried_decides_nothing(level) -> None:
    cells = [at_rate(rate, level=acc) for rate, acc in zip((0.001, 0.01, 0.1), level, strict=True)]
    assert verdict(made_stage("lr_search", *cells)).word == "UNDECIDED"
    assert "edge" in told(made_stage("lr_search", *cells))
    assert verdict(made_stage("lr_search", *cells, at_rate(0.0001), at_rate(1.0))).word == "PASS"


def test_one_rate_alone_decides_nothing() -> None:
    found = verdict(made_stage("lr_search", at_rate(0.01)))
    assert (found.word, found.sentences[-1]) == ("UNDECIDED", "It is the only one tried.")


def test_a_diverging_rate_beyond_the_best_is_its_edge() -> None:
    assert (
        verdict(made_stage("lr_search", at_rate(0.001), at_rate(0.01, low=0.05), diverged(0.1))).word
        == "PASS"
    )


def test_when_every_rate_diverged_the_search_failed() -> None:
    found = verdict(made_stage("lr_search", diverged(0.1), diverged(1.0)))
    assert (found.word, found.sentences) == ("FAIL", ("Every learning rate diverged; try lower ones.",))


SEEDS = {0.1: (0.99, 0.5), 0.01: (0.9, 0.92), 0.001: (0.8, 0.8)}  # by rate, the accuracy of each seed


def test_with_several_seeds_the_best_is_the_best_on_average_here_and_for_the_next_stage() -> None:
    stage = made_stage(
        "lr_search",
        *[at_rate(r, level=a, seed=s) for r, levels in SEEDS.items() for s, a in enumerate(levels)],
    )
    assert "Best learning rate 0.01 by validation (91.00 %)" in told(stage)
    assert stages.best_value(stage, "learning_rate") == 0.01
    assert {cell["learning_rate"] for cell, mark in rate_marks(stage) if mark == "best"} == {0.01}


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        ([at_rate(0.1, level=0.9), at_rate(0.01, level=0.91)], 0.01),
        ([at_rate(0.1, low=0.1), at_rate(0.01, low=0.09)], 0.01),
        ([at_rate(0.1, low=0.09), at_rate(0.01, low=0.1)], 0.1),
        ([at_rate(0.1, level=0.99, seed=0), diverged(0.1, seed=1), at_rate(0.01, seed=0), at_rate(0.01, seed=1)], 0.01),
        ([at_rate(0.1, level=0.99, control=True), at_rate(0.01)], 0.01),
        ([diverged(0.1), diverged(0.01)], None),
    ],
    ids=["accuracy", "lower loss", "higher rate", "a seed diverged", "control", "all diverged"],
)  # fmt: skip
def test_what_a_search_supplies(cells, value) -> None:
    assert stages.best_value(made_stage("lr_search", *cells), "learning_rate") == value


def test_the_imbalanced_run_has_no_say_in_the_best_lambda() -> None:
    cells = [
        made_cell(weight=0.1, val=(0.6, 0.7, 0.8)),
        made_cell(weight=1.0),
        made_cell("imbalanced", weight=0.1, val=(0.6, 0.9, 1.0)),
        made_cell("imbalanced", weight=0.5, val=(0.6, 0.9, 1.0)),
    ]
    assert stages.best_value(made_stage("lambda_search", *cells), "lambda_weight") == 1.0


# ---- step 3: lambda_search -------------------------------------------------------------------------------------------

# lambda, validation accuracy, loss on corrected images, loss on confounded images
LAMBDAS = [(0.1, 0.7, 0.5, 0.01), (0.5, 0.8, 0.4, 0.02), (1, 0.9, 0.2, 0.015), (2, 0.97, 0.25, 0.03), (5, 0.96, 0.1, 0.2), (10, 0.9, 0.05, 0.3)]  # fmt: skip


def over_lambda(*more: dict[str, Any], before: float = 0.6) -> dict[str, Any]:
    cells = [
        made_cell(
            weight=w, val=(0.6, 0.6, acc), train_corr_loss=corr, train_conf_loss=conf, test=acc - 0.01,
            before={**BEFORE, "val_accuracy": before},
        )
        for w, acc, corr, conf in LAMBDAS
    ]  # fmt: skip
    return made_stage("lambda_search", *cells, *more)


TWINS = (
    made_cell("imbalanced", weight=0.1, control=True, test=0.85, val=(0.6, 0.9, 1.0)),
    made_cell(weight=0.066666666667, control=True, test=0.8525, val=(0.6, 0.9, 1.0)),
)


def test_a_lambda_search_passes_if_its_best_is_better_than_the_base_model_by_more_than_a_point() -> None:
    assert verdict(over_lambda()).word == "PASS"
    assert verdict(over_lambda(before=0.9599)).word == "PASS"
    assert verdict(over_lambda(before=0.961)).word == "FAIL"
    assert "Best lambda 2 by validation: 97.00 %, from 60.00 % before." in told(over_lambda())


@pytest.mark.parametrize(
    ("images", "word"), [(0, "UNDECIDED"), (1, "UNDECIDED"), (2, "UNDECIDED"), (3, "PASS")]
)
def test_lambdas_that_lie_within_two_validation_images_decide_nothing(images, word) -> None:
    cells = [
        made_cell(weight=w, val=(0.6, 0.7, (700 + extra) / 781)) for w, extra in ((1.0, 0), (2.0, images))
    ]
    found = verdict(made_stage("lambda_search", *cells))
    assert found.word == word
    assert (f"within {images} validation image" in " ".join(found.sentences)) == (word == "UNDECIDED")


def test_a_lambda_search_tells_how_both_losses_go_with_lambda() -> None:
    weights = [row[0] for row in LAMBDAS]
    for column, name in ((2, "corrected"), (3, "confounded")):
        losses = [row[column] for row in LAMBDAS]
        rho = stats.spearmanr(weights, losses).statistic
        ranks = stats.rankdata(losses)
        products = [
            abs(np.corrcoef(weights_ranks, ranks)[0, 1]) for weights_ranks in itertools.permutations(range(6))
        ]
        p = np.mean(np.array(products) >= abs(rho) - 1e-9)
        assert (
            f"The loss on {name} images is {losses[0]:.2g} nats at lambda 0.1 and {losses[-1]:.2g} at 10 (rank correlation "
            f"with lambda {rho:+.2f}, p {p:.2g}, n 6)." in told(over_lambda())
        )


def test_the_controls_are_compared_with_each_other_and_never_the_best() -> None:
    said = told(over_lambda(*TWINS))
    assert (
        "Imbalanced is Balanced at lambda k/(B-k) = 0.0667: trained side by side their test accuracies differ by 0.25 points."
        in said
    )
    assert "Best lambda 2 by validation: 97.00 %" in said
    for some in ((), TWINS[:1], TWINS[1:]):
        assert "k/(B-k)" not in told(over_lambda(*some))


def test_when_every_lambda_diverged_the_search_failed() -> None:
    stage = made_stage("lambda_search", diverged(weight=1.0), diverged(weight=2.0), *TWINS)
    assert verdict(stage).word == "FAIL"
    assert "lower learning rate" in told(stage)


# ---- step 4: full_grid_search ----------------------------------------------------------------------------------------

RATES, POOLS = (0.01, 0.001), (100, 500)
NOISE = np.random.default_rng(0).normal(0, 0.004, (2, 6, 2, 2))  # of the loss, by seed, rate and pool


def grid(ahead: tuple[float, ...], *weights: float, **more: Any) -> dict[str, Any]:
    """A full grid in which Balanced is ahead of Imbalanced by so much in each seed, give or take."""
    cells = []
    for (i, rate), (j, pool), (s, gain) in itertools.product(
        enumerate(RATES), enumerate(POOLS), enumerate(ahead)
    ):
        seed = s if len(ahead) > 1 else None
        base = 0.9 + 0.02 * i + 0.01 * j
        cells.append(
            made_cell("imbalanced", rate, 1.0, pool, seed, test=base + NOISE[0, s, i, j], toggled=0.5)
        )
        for weight in weights or (1.0,):
            cells.append(
                made_cell(
                    "balanced", rate, weight, pool, seed, test=base + gain + NOISE[1, s, i, j], toggled=0.6
                )
            )
    return made_stage("full_grid_search", *cells, **more)


def differences(ahead: tuple[float, ...]) -> np.ndarray:
    """In points, by seed: a mean over rates and pools."""
    return 100 * (np.array(ahead) + (NOISE[1] - NOISE[0])[: len(ahead)].mean(axis=(1, 2)))


def sign_flip_p(d: np.ndarray) -> float:
    sums = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(d))
    ]
    return float(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9))


@pytest.mark.parametrize(
    ("ahead", "word"),
    [
        ((0.02,), "UNDECIDED"),
        ((0.02, 0.021, 0.022), "UNDECIDED"),
        ((0.02, 0.021, 0.022, 0.02, 0.023, 0.019), "PASS"),
        ((-0.02, -0.021, -0.022, -0.02, -0.023, -0.019), "FAIL"),
        ((0.02, -0.02, 0.01, -0.01, 0.02, -0.02), "UNDECIDED"),
    ],
    ids=["1 seed", "3 seeds", "6 ahead", "6 behind", "6 both"],
)
def test_balanced_against_imbalanced_is_a_paired_comparison_of_the_seeds(ahead, word) -> None:
    stage, d = grid(ahead), differences(ahead)
    assert verdict(stage).word == word
    (sentence,) = [
        s
        for s in verdict(stage).sentences
        if s.startswith("Balanced (lambda 1) - Imbalanced in test accuracy")
    ]
    assert f"accuracy: {d.mean():+.2f} points (" in sentence
    if len(d) == 1:
        assert "single seed: nothing can be concluded; --seeds 0 1 2 3 4 5 runs six" in sentence
        return
    interval = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert f"(n = {len(d)} seeds, 95 % interval {interval.low:.2f} to {interval.high:.2f}, " in sentence
    assert f"sign-flip p {sign_flip_p(d):.2g})" in sentence
    assert ("6 seeds are the fewest that can" in sentence) == (len(d) == 3)


def test_every_lambda_is_compared_and_all_must_say_the_same() -> None:
    same = (0.02, 0.021, 0.022, 0.02, 0.023, 0.019)
    both = grid(same, 1.0, 2.0)
    assert verdict(both).word == "PASS"
    assert losses_compared(both).keys() == {1.0, 2.0}
    for cell in both["cells"]:
        if cell["lambda_weight"] == 2.0 and cell["seed"] in (0, 1):
            cell["result"]["test_accuracy"] -= 0.05
    assert verdict(both).word == "UNDECIDED"


def test_a_run_without_its_partner_is_left_out_of_the_comparison() -> None:
    ahead = (0.02, 0.021, 0.022, 0.02, 0.023, 0.019)
    stage = grid(ahead)
    for cell in stage["cells"]:
        if (cell["loss_type"], cell["learning_rate"]) == ("balanced", 0.01):
            cell.update(status="diverged", result=None)
    d = 100 * (np.array(ahead) + (NOISE[1] - NOISE[0])[:, 1].mean(axis=1))
    (found,) = losses_compared(stage).values()
    assert found.mean_difference == pytest.approx(d.mean())
    assert found.sd == pytest.approx(d.std(ddof=1))
    assert found.n == 6


def test_a_grid_of_one_loss_compares_nothing() -> None:
    found = verdict(made_stage("full_grid_search", made_cell(pool=100), made_cell(pool=500)))
    assert found.word == "UNDECIDED"
    assert not [s for s in found.sentences if "Imbalanced" in s]


def test_the_full_grid_tells_what_the_pool_size_does_and_the_best_runs_test_accuracy() -> None:
    cells = [made_cell(pool=100, test=0.9), made_cell("imbalanced", pool=100, test=0.8), made_cell(pool=500, test=0.95, val=(0.6, 0.9, 0.99))]  # fmt: skip
    said = told(made_stage("full_grid_search", *cells))
    assert "Mean test accuracy by pool: 100: 85.00 %, 500: 95.00 %." in said
    assert said.endswith(
        "Best by validation: balanced, learning rate 0.01, lambda 1, pool 500, 95.00 % on the plain test digits."
    )


def test_a_full_grid_that_diverged_failed() -> None:
    assert verdict(made_stage("full_grid_search", diverged(), diverged(0.1))).word == "FAIL"


# ---- any stage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overfit_test", "lr_search", "lambda_search", "full_grid_search", "mine"])
def test_an_experiment_that_is_not_finished_decides_nothing(name) -> None:
    cells = [made_cell(), made_cell(rate=0.1, status="interrupted"), made_cell(rate=0.2, status="pending"), diverged(), made_cell(status="skipped")]  # fmt: skip
    found = verdict(made_stage(name, *cells))
    assert (found.word, found.sentences) == ("UNDECIDED", ("2 of 5 runs are not done.",))


@pytest.mark.parametrize(("threshold", "word"), [(0.95, "PASS"), (0.951, "FAIL")])
def test_an_experiment_of_the_users_own_passes_if_its_best_run_reaches_the_threshold(threshold, word) -> None:
    cells = [made_cell(val=(0.6, 0.7, 0.8)), made_cell("imbalanced")]
    found = verdict(made_stage("mine", *cells, threshold=threshold))
    assert found.word == word
    assert "imbalanced, learning rate 0.01, pool 100, 95.00 % (threshold " in found.sentences[0]


def test_of_two_records_of_an_experiment_the_later_counts_and_other_json_is_passed_over(tmp_path) -> None:
    for when, (name, seed) in enumerate((("b", 7), ("a", 8))):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(made_stage("mine", made_cell(seed=seed))))
        os.utime(path, (1e9 + when, 1e9 + when))
    (tmp_path / "notes.json").write_text('["not", "a record"]')
    found = stages.stages_in(tmp_path)
    assert {name: stage["cells"][0]["seed"] for name, stage in found.items()} == {"mine": 8}
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match=r"broken\.json is damaged"):
        stages.stages_in(tmp_path)


# ---- the page --------------------------------------------------------------------------------------------------------

QUESTIONS = (  # of the document, in its order
    "Does explicit weighting (Balanced) help more than implicit (Imbalanced)?",
    "How many corrected samples do we need?",
    "What is the best lambda?",
    "Does the model still rely on dots after correction?",
    "How does this compare with Lagrangian constraint optimisation?",
)


class Shown:
    """A page in its parts."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "plots" / "correction.html").read_text()
        assert text.startswith("<!DOCTYPE html>")
        self.page = Reader(text)
        self.lead = self.page.texts("p", class_="lead")[0]
        self.sections: dict[str, Reader] = {}
        for found in re.findall(r'<section id="section-\d+">\n.*?</section>', text, re.DOTALL):
            part = Reader(found)
            self.sections[part.texts("h2")[0]] = part

    def answer(self, heading: str) -> str:
        return self.sections[heading].texts("p", class_="answer")[0]

    def text(self, heading: str) -> str:
        return " ".join(self.sections[heading].texts("p"))

    def table(self, heading: str) -> list[dict[str, str]]:
        part = self.sections[heading]
        names, cells = part.texts("th"), part.texts("td")
        rows = (cells[i : i + len(names)] for i in range(0, len(cells), len(names)))
        return [dict(zip(names, row, strict=True)) for row in rows]


def visualize(folder: Path, *found: dict[str, Any], code: int = 0) -> str:
    (folder / "experiments").mkdir(exist_ok=True)
    for stage in found:
        (folder / "experiments" / f"{stage['experiment']}.json").write_text(json.dumps(stage))
    where = ("--experiments_dir", str(folder / "experiments"), "--plots_dir", str(folder / "plots"))
    ended, out, errors = called("correction", "visualize", *where)
    assert ended == code, errors
    return out + errors


ANGLES = {"equivalence": {"lambda": [0.01, 4 / 60, 0.5], "angle_degrees": [9.0, 1e-6, 30.0]}}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder with the page of the document's four experiments, of two seeds each, and their records."""
    folder = tmp_path_factory.mktemp("page")
    found = [
        made_stage("overfit_test", made_cell(), made_cell("imbalanced", losses=(0.9, 0.5, 0.4)), threshold=0.99),
        made_stage("lr_search", diverged(1.0), *[at_rate(r, level=a, seed=s) for r, levels in SEEDS.items() for s, a in enumerate(levels)]),
        {**over_lambda(*TWINS), **ANGLES},
        grid((0.02, 0.021, 0.022, 0.02, 0.023, 0.019)),
    ]  # fmt: skip
    visualize(folder, *found)
    return folder, {stage["experiment"]: stage for stage in found}


def test_the_page_asks_the_documents_questions_in_its_order_and_then_its_checks(drawn) -> None:
    shown = Shown(drawn[0])
    checks = [f"Check: {name}" for name in ("overfit_test", "lr_search", "lambda_search", "full_grid_search")]
    assert list(shown.sections) == [*QUESTIONS, *checks]
    assert [text.split(" PASS")[0].split(" FAIL")[0].split(" UNDECIDED")[0] for text in shown.page.texts("li")[: len(shown.sections)]] == [*QUESTIONS, *checks]  # fmt: skip


def test_the_page_answers_with_the_numbers_of_the_records(drawn) -> None:
    folder, records = drawn
    shown = Shown(folder)
    d = differences((0.02, 0.021, 0.022, 0.02, 0.023, 0.019))
    assert shown.answer(QUESTIONS[0]).startswith("PASS")
    assert f"Balanced (lambda 1) less Imbalanced, test accuracy on plain digits: {d.mean():+.2f} points (n = 6 seeds" in shown.text(QUESTIONS[0])  # fmt: skip
    assert "The same with the dots moved to the 0s: lambda 1 +10.00 points" in shown.text(QUESTIONS[0])
    pools = {
        pool: np.mean([c["result"]["test_accuracy"] for c in records["full_grid_search"]["cells"] if c["user_corrected_pool_size"] == pool])
        for pool in POOLS
    }  # fmt: skip
    assert f"100: {100 * pools[100]:.2f} %, 500: {100 * pools[500]:.2f} %" in shown.text(QUESTIONS[1])
    assert "At most 100: the smallest pool tried reached 95.00 % on validation." in shown.answer(QUESTIONS[1])
    assert shown.answer(QUESTIONS[2]).startswith("2 by validation")
    assert "27.00 points" in shown.answer(QUESTIONS[2])
    assert shown.answer(QUESTIONS[3]).startswith("Yes: 10.00 % of the test digits change class")
    assert "(39.00 % before)" in shown.answer(QUESTIONS[3])
    assert shown.answer(QUESTIONS[4]).startswith("Not measured")


def test_the_pages_tables_hold_the_accuracies_of_the_records(drawn) -> None:
    folder, records = drawn
    shown = Shown(folder)
    before, *after = shown.table(QUESTIONS[3])
    assert list(before.values()) == ["before", "61.00", "100.00", "22.00", "63.00", "21.00", "78.00", "39.00"]
    assert [row["Network"] for row in after] == ["balanced", "imbalanced"]
    cells = records["full_grid_search"]["cells"]
    for row in after:
        best = next(
            c["result"]["reliance"] for c in cells if c["loss_type"] == row["Network"]
        )  # all are as good
        keys = ("accuracy_original", "accuracy_confounded", "accuracy_toggled", "accuracy_marked", "worst_group_accuracy", "accuracy_drop", "flip_rate")  # fmt: skip
        assert list(row.values())[1:] == [f"{100 * best[key]:.2f}" for key in keys]
    for name, stage in records.items():
        rows = shown.table(f"Check: {name}")
        listed = [c for c in stage["cells"] if not c["control"]]
        assert len(rows) == len(listed)
        for row, cell in zip(rows, listed, strict=True):
            assert (row["Loss"], row["Rate"], row["Status"]) == (cell["loss_type"], f"{cell['learning_rate']:g}", cell["status"])  # fmt: skip
            numbers = [row["Val acc"], row["Test acc"], row["Test, dot on 0s"], row["Flips"]]
            if cell["status"] == "diverged":
                assert numbers == ["-"] * 4
                continue
            r = cell["result"]
            assert numbers == [f"{100 * share:.2f}" for share in (r["val_accuracy"], r["test_accuracy"], r["reliance"]["accuracy_toggled"], r["reliance"]["flip_rate"])]  # fmt: skip
            assert row["Epochs"] == str(r["epochs_trained"])


def test_the_page_shows_each_stages_verdict_and_says_what_selected(drawn) -> None:
    folder, records = drawn
    shown = Shown(folder)
    for name, stage in records.items():
        found = verdict(stage)
        section = shown.sections[f"Check: {name}"]
        assert section.texts("span", class_=f"badge {found.word.lower()}") == [found.word]
        assert found.sentences[0].split("`")[0] in shown.answer(f"Check: {name}")
        for sentence in found.sentences[1:]:
            assert sentence in shown.text(f"Check: {name}")
    assert "selected on plain validation digits" in shown.lead
    assert "which are the target (as documented)" in shown.lead


def test_the_pages_pictures_stand_with_their_questions(drawn) -> None:
    shown = Shown(drawn[0])
    counts = {heading: len(part.all("img")) for heading, part in shown.sections.items()}
    checks = {"overfit_test": 1, "lr_search": 2, "lambda_search": 0, "full_grid_search": 0}
    assert list(counts.values()) == [1, 1, 2, 1, 0, *checks.values()]


def test_what_is_not_measured_says_so_and_names_the_command(tmp_path) -> None:
    visualize(tmp_path, made_stage("overfit_test", made_cell()))
    shown = Shown(tmp_path)
    assert list(shown.sections)[:5] == list(QUESTIONS)
    commands = {
        QUESTIONS[0]: "perturblab correction run --experiment full_grid_search",
        QUESTIONS[1]: "perturblab correction run --experiment pool_search",
        QUESTIONS[2]: "perturblab correction run --experiment lambda_search",
    }
    for heading, command in commands.items():
        assert shown.answer(heading) == "Not measured yet."
        assert command in shown.sections[heading].texts("code")
    assert "Not measured" not in shown.answer(QUESTIONS[3])
    assert len(shown.page.all("img")) == 2


@pytest.mark.parametrize(
    ("levels", "answer"),
    [
        ((0.8, 0.9, 0.95, 0.97), "20: the smallest of the pools tried that reached 95.00 % on validation."),
        ((0.95, 0.9, 0.9, 0.97), "At most 5: the smallest pool tried reached 95.00 % on validation."),
        ((0.8, 0.9, 0.9, 0.949), "No pool up to 50 reached 95.00 % on validation."),
    ],
)
def test_how_many_corrected_images_are_needed_is_read_off_the_pool_search(tmp_path, levels, answer) -> None:
    cells = [
        made_cell(pool=pool, val=(0.5, 0.5, acc), test=acc)
        for pool, acc in zip((5, 10, 20, 50), levels, strict=True)
    ]
    visualize(tmp_path, made_stage("pool_search", *cells))
    shown = Shown(tmp_path)
    assert shown.answer(QUESTIONS[1]) == answer
    assert f"5: {100 * levels[0]:.2f} %" in shown.text(QUESTIONS[1])


@pytest.mark.parametrize(("rate", "word"), [(0.0101, "Yes: "), (0.0099, "Hardly: ")])
def test_a_network_relies_on_the_dot_if_more_than_one_digit_in_a_hundred_changes_class_with_it(
    tmp_path, rate, word
) -> None:
    visualize(tmp_path, made_stage("mine", made_cell(reliance=reliance(flip_rate=rate))))
    assert Shown(tmp_path).answer(QUESTIONS[3]).startswith(word)


def test_the_page_of_runs_selected_on_dotted_digits_says_so(tmp_path) -> None:
    stage = made_stage("mine", made_cell())
    stage["settings"]["validation"] = "confounded"
    visualize(tmp_path, stage)
    assert "selected on dotted validation digits" in Shown(tmp_path).lead


def test_without_a_finished_run_there_is_no_page_and_one_line_says_how_to_make_one(tmp_path) -> None:
    for found in ((), (made_stage("lr_search", diverged(), made_cell(status="pending")),)):
        said = visualize(tmp_path, *found, code=2)
        assert said == f"error: no finished experiment in {tmp_path / 'experiments'}; perturblab correction run --experiment overfit_test makes one\n"  # fmt: skip
    assert not (tmp_path / "plots").exists()


def test_equal_records_give_an_equal_page_and_equal_pictures(tmp_path) -> None:
    stage = made_stage("overfit_test", made_cell())
    left = []
    for _ in range(2):
        visualize(tmp_path, stage)
        left.append({path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()})
    assert left[0] == left[1]
    assert len(left[0]) == 5


# ---- the pictures' numbers -------------------------------------------------------------------------------------------


def plotted(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / "plots" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def points(folder: Path, name: str, line: str, panel: str = "", column: str = "mean") -> dict[float, float]:
    rows = [r for r in plotted(folder, name) if (r["panel"], r["line"]) == (panel, line)]
    return {float(r["x"]): float(r[column]) for r in rows}


def test_the_overfit_picture_shows_both_losses_of_every_epoch(drawn) -> None:
    folder, records = drawn
    for cell in records["overfit_test"]["cells"]:
        for name in ("total", "confounded", "corrected"):
            assert points(folder, "overfit_test", name, cell["loss_type"]) == dict(enumerate(cell["history"]["train_loss"], 1))  # fmt: skip


def test_the_learning_rate_picture_marks_the_best_and_has_every_rate_that_did_not_diverge(drawn) -> None:
    folder, records = drawn
    cells = [c for c in records["lr_search"]["cells"] if c["status"] == "done"]
    for seed in (0, 1):
        assert points(folder, "lr_search", "learning rates", column=f"seed{seed}") == {
            c["learning_rate"]: c["result"]["best_val_loss"] for c in cells if c["seed"] == seed
        }
    assert points(folder, "lr_search", "best").keys() == {0.01}
    for cell in cells:
        curve = points(
            folder, "lr_curves", f"{cell['learning_rate']:g}", "learning rate", f"seed{cell['seed']}"
        )
        assert curve == dict(enumerate(cell["history"]["val_loss"], 1))


def test_the_lambda_pictures_have_the_curve_and_both_controls_at_k_over_b_minus_k(drawn) -> None:
    folder, _ = drawn
    twins = ("imbalanced at k/(B-k)", "balanced at k/(B-k)")
    for name, lines in (
        ("lambda_search", ("confounded", "corrected")),
        ("lambda_accuracy", ("plain digits", "dots on 0s")),
    ):
        assert {r["line"] for r in plotted(folder, name)} == {
            *lines,
            *(f"{one}, {twin}" for one in lines for twin in twins),
        }
    assert points(folder, "lambda_search", "corrected") == {row[0]: row[2] for row in LAMBDAS}
    assert points(folder, "lambda_search", "confounded") == {row[0]: row[3] for row in LAMBDAS}
    assert points(folder, "lambda_accuracy", "plain digits") == pytest.approx(
        {row[0]: 100 * (row[1] - 0.01) for row in LAMBDAS}
    )
    for loss, twin in (("imbalanced", TWINS[0]), ("balanced", TWINS[1])):
        name = f"{loss} at k/(B-k)"
        assert points(folder, "lambda_accuracy", f"plain digits, {name}") == {
            4 / 60: 100 * twin["result"]["test_accuracy"]
        }
        assert points(folder, "lambda_search", f"corrected, {name}") == {4 / 60: 0.3}
    assert points(folder, "equal_lambda", "first batch, network before any training") == {
        0.01: 9.0,
        4 / 60: 1e-6,
        0.5: 30.0,
    }


def test_the_pool_picture_has_the_mean_and_the_spread_over_seeds(drawn) -> None:
    folder, records = drawn
    cells = records["full_grid_search"]["cells"]
    for (loss, name), rate in itertools.product(
        (("balanced", "balanced, lambda 1"), ("imbalanced", "imbalanced")), RATES
    ):
        line = f"{name}, rate {rate:g}"
        for pool in POOLS:
            values = [100 * c["result"]["test_accuracy"] for c in cells if (c["loss_type"], c["learning_rate"], c["user_corrected_pool_size"]) == (loss, rate, pool)]  # fmt: skip
            assert len(values) == 6
            assert points(folder, "full_grid_search", line, "plain digits")[pool] == pytest.approx(
                np.mean(values)
            )
            spread = points(folder, "full_grid_search", line, "plain digits", "std_population")
            assert spread[pool] == pytest.approx(np.std(values))


def test_the_reliance_picture_has_the_four_test_sets_before_and_after(drawn) -> None:
    rows = {row["network"]: row for row in plotted(drawn[0], "reliance")}
    assert list(rows) == ["before", "balanced", "imbalanced"]
    assert {key: float(value) for key, value in rows["before"].items() if key != "network"} == {
        "accuracy_original": 0.61, "accuracy_confounded": 1.0, "accuracy_toggled": 0.22, "accuracy_marked": 0.63,
        "flip_rate": 0.39, "worst_group_accuracy": 0.21,
    }  # fmt: skip
    assert (float(rows["balanced"]["accuracy_toggled"]), float(rows["imbalanced"]["accuracy_toggled"])) == (
        0.6,
        0.5,
    )


# ---- a small 08MNIST, written without a line of ours -----------------------------------------------------------------

Files = dict[str, dict[str, torch.Tensor]]


def digits(zeros: int, eights: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rings and double rings of several brightnesses, zeros first; eights are lit in the middle and zeros are not."""
    y, x = np.mgrid[0:28, 0:28]
    zero = abs(np.hypot((y - 13.5) / 8, (x - 13.5) / 6) - 1) < 0.25
    eight = (abs(np.hypot((y - 9) / 5, (x - 13.5) / 5) - 1) < 0.3) | (
        abs(np.hypot((y - 18) / 5, (x - 13.5) / 5) - 1) < 0.3
    )
    levels = np.random.default_rng(seed).integers(100, 256, zeros + eights)
    images = np.stack([level * (zero if i < zeros else eight) for i, level in enumerate(levels)])
    labels = torch.tensor([[1.0, 0.0]] * zeros + [[0.0, 1.0]] * eights)
    return torch.tensor(images[:, None] / 255, dtype=torch.float32), labels


def files_of_08mnist() -> Files:
    made: Files = {}
    for split, n in (("train", 60), ("test", 20)):
        images, labels = digits(n, n, seed=n)
        masks = torch.zeros_like(images)
        masks[n:, :, 25:27, 25:27] = 1
        made[f"original/{split}"] = {"inputs": images, "labels": labels}
        made[f"confounded_v1/{split}"] = {"inputs": images.clone().masked_fill_(masks > 0, 1), "labels": labels.clone(), "masks": masks}  # fmt: skip
    return made


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / "08MNIST" / f"{name}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
    return folder


def base_model(folder: Path, change: Callable[[PlainCNN2], None] = lambda network: None) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = PlainCNN2()
    with torch.no_grad():
        change(network)
    torch.save(network.state_dict(), folder / "model.pth")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("good"), files_of_08mnist())
    base_model(folder)
    return folder


# ---- check -----------------------------------------------------------------------------------------------------------

LINES = [
    "labels are one-hot, both digits are there",
    "8s are annotated",
    "annotated pixels are lit",
    "corrected images have no dot",
    "corrected test images equal the originals",
    "the corrected pool equals the originals",
    "batches are confounded and then corrected images",
    "the last ones are marked as corrected, and are",
    "no confounded image twice in an epoch",
    "the pool is used evenly",
    "both digits in a batch",
    *(
        f"{loss}: {what}"
        for loss in ("Balanced", "Imbalanced")
        for what in ("the loss is finite", "the gradient is finite and not zero", "parameters move")
    ),
]


def reads(folder: Path) -> list[str]:
    where = ("--data", str(folder / "08MNIST"), "--base_model", str(folder / "model.pth"), "--device", "cpu")
    return [*where, "--batch_size", "16", "--user_corrected_pool_size", "10"]


def wrong(folder: Path, *more: str, lines: list[str] = LINES) -> set[str]:
    """The lines of the list that are marked as wrong; what is told about them must agree."""
    with one_thread():
        code, out, errors = called("correction", "check", *reads(folder), *more)
    rows = [re.split(r"  +", line) for line in out.splitlines() if line.endswith((" ok", " WRONG"))]
    assert [row[0] for row in rows] == lines, out + errors
    found = [row[0] for row in rows if row[-1] == "WRONG"]
    expected = f"error: {len(found)} of {len(lines)} checks are wrong: {'; '.join(found)}\n" if found else ""
    assert (code, errors) == (2 if found else 0, expected)
    return set(found)


def test_nothing_is_wrong_with_a_good_set(good) -> None:
    assert wrong(good) == set()
    assert wrong(good, "--user_corrected_max_per_batch", "0", lines=[name for name in LINES if name != "the pool is used evenly"]) == set()  # fmt: skip
    assert wrong(good, "--train_dataset_size", "40", "--seed", "3") == set()


def test_the_document_ships_no_plain_training_images_and_the_list_does_without(tmp_path, good) -> None:
    files = files_of_08mnist()
    del files["original/train"]
    write(tmp_path, files)
    base_model(tmp_path)
    assert (
        wrong(tmp_path, lines=[name for name in LINES if name != "the corrected pool equals the originals"])
        == set()
    )


def shifted(files: Files, name: str) -> None:
    files[name]["masks"] = files[name]["masks"].roll(1, dims=3)


def halved(files: Files) -> None:
    """The annotation covers one column of the dot, the other stays in the corrected images."""
    files["confounded_v1/train"]["masks"][:, :, :, 26] = 0


def lit_originals(files: Files) -> None:
    """A pixel of each plain eight that the confounded ones lack."""
    files["original/train"]["inputs"][60:, :, 3, 3] = 128 / 255


def all_eights(files: Files) -> None:
    files["confounded_v1/train"]["labels"] = torch.tensor([[0.0, 1.0]]).repeat(120, 1)


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (halved, {"corrected images have no dot", "the corrected pool equals the originals"}),
        (lambda files: shifted(files, "confounded_v1/train"),
         {"annotated pixels are lit", "corrected images have no dot", "the corrected pool equals the originals"}),
        (lambda files: files["original/test"]["inputs"][20, :, 25, 25].fill_(1), {"corrected test images equal the originals"}),
        (lit_originals, {"the corrected pool equals the originals"}),
        (lambda files: files["confounded_v1/train"]["inputs"][60:, :, 2, 2].fill_(1),
         {"the corrected pool equals the originals"}),
        (lambda files: files["confounded_v1/train"]["masks"][:5, :, 25:27, 25:27].fill_(1), {"annotated pixels are lit"}),
        (all_eights, {"labels are one-hot, both digits are there", "both digits in a batch"}),
    ],
    ids=["half a dot is annotated", "annotation one pixel off", "a digit under the dot", "other plain training images",
         "a second mark", "zeros annotated without a dot", "one class"],
)  # fmt: skip
def test_damage_to_the_data_makes_its_lines_wrong_and_no_others(tmp_path, damage, names) -> None:
    files = files_of_08mnist()
    damage(files)
    write(tmp_path, files)
    base_model(tmp_path)
    assert wrong(tmp_path) == names


def test_test_images_whose_annotation_is_one_pixel_off_are_refused_before_the_list(tmp_path) -> None:
    files = files_of_08mnist()
    shifted(files, "confounded_v1/test")
    write(tmp_path, files)
    base_model(tmp_path)
    code, out, errors = called("correction", "check", *reads(tmp_path))
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert "differ outside the marks" in errors


def test_half_a_dot_is_found_also_without_the_plain_training_images(tmp_path) -> None:
    files = files_of_08mnist()
    halved(files)
    del files["original/train"]
    write(tmp_path, files)
    base_model(tmp_path)
    lines = [name for name in LINES if name != "the corrected pool equals the originals"]
    assert wrong(tmp_path, lines=lines) == {"corrected images have no dot"}


def certain(network: PlainCNN2) -> None:
    """Only the middle of the image counts, so much that every image is classified right with probability 1 in float32."""
    for value in network.parameters():
        value.zero_()
    network.features[0].weight[0, 0, 1, 1] = 1
    network.features[3].weight[0, 0, 1, 1] = 1
    network.classifier[1].weight[0, 3 * 7 + 3] = 1  # the pixels 12 to 15 both ways, after two poolings
    network.classifier[3].weight[1, 0] = 1e4
    network.classifier[3].bias[0] = 1e3


def huge(network: PlainCNN2) -> None:
    for value in network.parameters():
        value.mul_(1e20)


def both(*names: str) -> set[str]:
    return {f"{loss}: {name}" for loss in ("Balanced", "Imbalanced") for name in names}


@pytest.mark.parametrize(
    ("change", "words", "names"),
    [
        (certain, (), both("the gradient is finite and not zero", "parameters move")),
        (huge, (), both("the loss is finite", "the gradient is finite and not zero")),
        (lambda network: None, ("--learning_rate", "1e-30"), both("parameters move")),
    ],
    ids=["nothing to learn", "overflow", "steps too small for float32"],
)
def test_a_network_that_cannot_be_trained_makes_its_lines_wrong_and_no_others(
    tmp_path, change, words, names
) -> None:
    write(tmp_path, files_of_08mnist())
    base_model(tmp_path, change)
    assert wrong(tmp_path, *words) == names


def test_a_base_model_with_nan_is_refused_before_the_list(tmp_path) -> None:
    write(tmp_path, files_of_08mnist())
    base_model(tmp_path, lambda network: network.classifier[1].weight[0, 0].fill_(math.nan))
    code, out, errors = called("correction", "check", *reads(tmp_path))
    assert (code, out) == (2, "")
    assert errors == f"error: {tmp_path / 'model.pth'}: classifier.1.weight is not finite; its training diverged, or the file was altered\n"  # fmt: skip


def test_the_list_tells_the_length_of_each_losss_gradient_and_that_it_was_clipped(good) -> None:
    s = Check(data=str(good / "08MNIST"), batch_size=16, user_corrected_pool_size=10)
    batch = next(mixed(s, parts_of(s, read_sets(s.data), 0), 0).epoch(1))
    network = PlainCNN2()
    network.load_state_dict(torch.load(good / "model.pth", weights_only=True))
    each = torch.nn.functional.cross_entropy(network(batch.images), batch.labels, reduction="none")
    expected = [
        float(
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
                ]
            ).norm()
        )
        for loss in (each[:12].mean() + each[12:].mean(), each.mean())
    ]
    for words in ((), ("--grad-clip", "1e-3")):
        with one_thread():
            _, out, _ = called("correction", "check", *reads(good), *words)
        assert re.findall(r"L2 norm ([0-9.e-]+)", out) == [f"{norm:.3g}" for norm in expected]
        assert out.count("clipped to 0.001") == (2 if words else 0)


class Changed:
    """The batches of a source after a change."""

    def __init__(self, source: MixedSource, change: Callable[[list[Batch]], list[Batch]]) -> None:
        self.source, self.change = source, change
        self.from_data, self.from_pool = source.from_data, source.from_pool

    def epoch(self, number: int) -> Iterator[Batch]:
        return iter(self.change(list(self.source.epoch(number))))


def with_(batch: Batch, **parts: Any) -> Batch:
    return Batch(**{**vars(batch), **parts})


def same_data(all_: list[Batch]) -> list[Batch]:
    """The confounded part of each batch is that of the first."""
    first = all_[0]
    return [
        with_(
            b, images=torch.cat([first.images[:12], b.images[12:]]), index=torch.cat([first.index[:12], b.index[12:]]),
            labels=torch.cat([first.labels[:12], b.labels[12:]]),
        )
        for b in all_
    ]  # fmt: skip


def same_pool(all_: list[Batch]) -> list[Batch]:
    first = all_[0]
    return [
        with_(b, images=torch.cat([b.images[:12], first.images[12:]]), index=torch.cat([b.index[:12], first.index[12:]]))
        for b in all_
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda all_: all_, set()),
        (lambda all_: [with_(b, n_corrected=3) for b in all_],
         {"batches are confounded and then corrected images", "the last ones are marked as corrected, and are"}),
        (lambda all_: [with_(b, images=b.images.flip(0)) for b in all_], {"the last ones are marked as corrected, and are"}),
        (lambda all_: [with_(b, images=b.images + 0.01) for b in all_], {"the last ones are marked as corrected, and are"}),
        (same_data, {"no confounded image twice in an epoch"}),
        (same_pool, {"the pool is used evenly"}),
        (lambda all_: [with_(b, labels=torch.ones_like(b.labels)) for b in all_], {"both digits in a batch"}),
    ],
    ids=["as they are", "one is not marked", "corrected first", "not the images of the index", "the same images",
         "the same of the pool", "one class"],
)  # fmt: skip
def test_batches_that_are_put_together_wrongly_make_their_lines_wrong_and_no_others(
    good, change, names
) -> None:
    s = Check(data=str(good / "08MNIST"), batch_size=16, user_corrected_pool_size=10)
    parts = parts_of(s, read_sets(s.data), 0)
    found = list(checklist.batches(Changed(mixed(s, parts, 0), change), parts))  # type: ignore[arg-type]
    assert len(found) == 5
    assert {one.name for one in found if not one.ok} == names


# ---- imbalanced is a point of the lambda curve -----------------------------------------------------------------------


@pytest.mark.parametrize(("size", "corrected"), [(64, 4), (16, 4), (10, 5)])
def test_the_gradients_of_both_losses_point_the_same_way_at_k_over_b_minus_k_only(
    good, size, corrected
) -> None:
    s = Train(data=str(good / "08MNIST"), batch_size=size, user_corrected_max_per_batch=corrected)
    with one_thread():
        found = gradient_angles(s)
    weights, angles = np.array(found["lambda"]), np.array(found["angle_degrees"])
    equal = corrected / (size - corrected)
    assert weights[angles.argmin()] == pytest.approx(equal)
    assert angles.min() < 1e-3
    for end in (0, -1):
        assert weights[end] == pytest.approx(equal * (0.01, 100)[end])
        assert angles[end] > 1
    left, right = np.split(angles, [angles.argmin()])
    assert (np.diff(left) < 0).all()
    assert (np.diff(right) > 0).all()


@pytest.mark.parametrize("degrees", [1e-6, 1e-3, 1.0, 45.0, 90.0, 179.0])
def test_an_angle_is_exact_also_where_it_is_small(degrees) -> None:
    radians = math.radians(degrees)
    one, other = (
        torch.tensor([3.0, 0.0]).double(),
        torch.tensor([math.cos(radians), math.sin(radians)]).double(),
    )
    assert angle(one, 7 * other) == pytest.approx(degrees, rel=1e-6)
