"""The gradient of the imbalanced loss against that of the balanced one, over lambda: equal in direction at k / (B - k)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from perturblab.experiment import start
from perturblab.images import Batch
from perturblab.objectives import Clock, Objective
from perturblab.objectives.corrected import Balanced, Imbalanced
from perturblab.sites import SteppedModel
from perturblab.streams import seeded
from perturblab.studies.correction import Train, equal_lambda
from perturblab.studies.correction.data import read_sets
from perturblab.studies.correction.parts import mixed, network, parts_of

DECADES = 2  # of lambda on either side of k / (B - k)
PER_DECADE = 8


def gradient_angles(s: Train) -> dict[str, list[float]]:
    """``lambda`` and the ``angle_degrees`` between both gradients, over the first batch of the run ``s``.

    Of an untrained network: the base model's loss on confounded images is so small that their gradient hardly turns
    the sum, at any lambda.
    """
    start(s, ())  # the same threads whatever this process did before: they change the last digits
    parts = parts_of(s, read_sets(s.data), s.random_seed)
    with seeded(s.random_seed, "init"):
        model = network(parts.train)
    batch = next(mixed(s, parts, s.random_seed).epoch(1))
    middle = equal_lambda(s.batch_size, s.user_corrected_max_per_batch)
    steps = range(-DECADES * PER_DECADE, DECADES * PER_DECADE + 1)
    lambdas = [middle * 10 ** (step / PER_DECADE) for step in steps]
    imbalanced = gradient(model, Imbalanced(), batch)
    return {
        "lambda": lambdas,
        "angle_degrees": [angle(imbalanced, gradient(model, Balanced(weight), batch)) for weight in lambdas],
    }


def gradient(model: SteppedModel, objective: Objective, batch: Batch) -> Tensor:
    """Of the loss by all parameters, float64 ``[parameters]``."""
    loss = objective(model, batch, objective.draw(batch, Clock(1, 0, 1, 1)))
    found = torch.autograd.grad(loss.total, list(model.parameters()))
    return torch.cat([part.flatten() for part in found]).double()


def angle(a: Tensor, b: Tensor) -> float:
    """Between two vectors, in degrees; from the difference of the unit vectors, since acos is inexact near 0."""
    apart = float((a / a.norm() - b / b.norm()).norm())
    return math.degrees(2 * math.asin(min(1.0, apart / 2)))
