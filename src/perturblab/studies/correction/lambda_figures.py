"""The curves over lambda, with the imbalanced loss at the lambda that it equals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from perturblab.report import palette
from perturblab.report.plots import Axis, Line, Panel, line
from perturblab.studies.correction import equal_lambda
from perturblab.studies.correction.curves import LOSSES, Drawn, accuracy, joined, result, save
from perturblab.studies.correction.summary import Record, Stage, done, main_cells


def lambdas(stage: Stage, folder: Path) -> list[Drawn]:
    """Losses and accuracies against lambda, the imbalanced loss standing at the lambda that it equals."""
    balanced = [cell for cell in done(main_cells(stage)) if cell["loss_type"] == "balanced"]
    twins = [cell for cell in done(stage["cells"]) if cell["control"]]
    if not balanced:
        return []
    drawn = [_lambda_picture(balanced, twins, folder), _lambda_accuracy(balanced, twins, folder)]
    return [*drawn, *_angles(stage, folder)]


def _lambda_picture(balanced: list[Record], twins: list[Record], folder: Path) -> Drawn:
    lines: list[Line] = []
    for key in ("train_conf_loss", "train_corr_loss"):
        name, colour = LOSSES[key]
        lines += joined(name, balanced, "lambda_weight", partial(result, key=key), colour=colour)
        lines += _at_equal_lambda(name, twins, partial(result, key=key), colour)
    axis = Axis("lambda", "Loss at the chosen epoch (nats)", log=True, log_x=True)
    caption = (
        "Loss on all confounded training images and on the corrected pool against lambda. Diamonds: the imbalanced loss, at "
        "lambda = k / (B - k); crosses: balanced at that lambda."
    )
    return save(
        "What lambda trades",
        [Panel("", tuple(lines), counted=False)],
        axis,
        folder / "lambda_search.png",
        caption,
    )


def _lambda_accuracy(balanced: list[Record], twins: list[Record], folder: Path) -> Drawn:
    lines: list[Line] = []
    for key, (name, colour) in {
        "accuracy_original": ("plain digits", palette.BLUE),
        "accuracy_toggled": ("dots on 0s", palette.VERMILION),
    }.items():
        lines += joined(name, balanced, "lambda_weight", partial(accuracy, key=key), colour=colour)
        lines += _at_equal_lambda(name, twins, partial(accuracy, key=key), colour)
    axis = Axis("lambda", "Test accuracy (%)", ylim=(0, 102), log_x=True)
    caption = "Test accuracy against lambda, on plain digits and with the dot moved from the 8s to the 0s. Marks as above."
    return save(
        "Which lambda?",
        [Panel("", tuple(lines), counted=False)],
        axis,
        folder / "lambda_accuracy.png",
        caption,
    )


def _at_equal_lambda(
    name: str, twins: list[Record], y: Callable[[Record], float], colour: palette.Colour
) -> list[Line]:
    """Diamonds for the imbalanced loss, black crosses for balanced at the same lambda; the captions tell them."""
    made = []
    for cell in twins:
        x = np.array([equal_lambda(cell["batch_size"], cell["user_corrected_max_per_batch"])])
        look = (
            (colour, "none", "D", 9.0)
            if cell["loss_type"] == "imbalanced"
            else (palette.BLACK, "none", "x", 5.0)
        )
        label = f"_{name}, {cell['loss_type']} at k/(B-k)"
        made.append(Line(label, x, np.array([[y(cell)]]), (cell["seed"] or 0,), *look))
    return made


def _angles(stage: Stage, folder: Path) -> list[Drawn]:
    found = stage.get("equivalence")
    if not found:
        return []
    made = line(
        "first batch, network before any training",
        {0: (found["lambda"], found["angle_degrees"])},
        colour=palette.BLACK,
    )
    settings = stage["settings"]
    equal = equal_lambda(settings["batch_size"], settings["user_corrected_max_per_batch"])
    here = Line(
        f"k / (B - k) = {equal:.4f}",
        np.array([equal]),
        np.array([[min(found["angle_degrees"])]]),
        (0,),
        palette.VERMILION,
        "none",
        "D",
    )
    panels = [Panel("", tuple(one for one in (made, here) if one), counted=False)]
    axis = Axis("lambda", "Angle between the gradients (degrees)", ylim=(-1, None), log_x=True)
    caption = (
        f"The gradients of the imbalanced and of the balanced loss point the same way at lambda = k / (B - k) and nowhere else "
        f"(smallest angle {min(found['angle_degrees']):.1g} degrees): imbalanced is one point of the lambda curve."
    )
    return [save("Imbalanced is balanced at k / (B - k)", panels, axis, folder / "equal_lambda.png", caption)]
