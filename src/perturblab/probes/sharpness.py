"""How much does a network lose when all its weights are off by a little? The flatter its minimum, the less.

Each tensor's noise is as large as ``sigma`` times the root mean square of that tensor, so that the answer does not
depend on how a ReLU network's scale is shared out among its layers, which changes no prediction. (The earlier code took
``sigma`` times the norm of the whole tensor for each of its elements, more than the weights themselves:
adaptive-noise.md 5.9 #13.) To second order the loss rises by ``sigma**2 / 2`` times the sum over tensors of their mean
square times the trace of their block of the Hessian; the slope, and so the first order, averages out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from perturblab.images import ImageSet
from perturblab.measure import score
from perturblab.objectives import Clock
from perturblab.perturb.noise import Noise, NoiseSpec
from perturblab.runs import Row
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel
from perturblab.streams import stream_seed


def sharpness(
    model: SteppedModel,
    data: ImageSet,
    *,
    sigma: float,
    draws: int,
    seed: int,
    precision: str = "fp32",
    stop: StopFlag | None = None,
) -> Iterator[Row]:
    """One row per draw of gaussian noise on every parameter: ``draw`` (from 0), ``sigma``, ``accuracy`` (fraction of
    ``data``, evaluation mode) and ``loss`` (nats) under it, ``accuracy_drop`` and ``loss_rise`` against the intact model.

    BatchNorm's scales and shifts are parameters, its running statistics are not. Between rows, and after any exception,
    the weights have their bits back. The same seed gives the same noise of a draw, however many there are, and no noise
    of a training run. A loss that is not finite, and its rise, are None. ValueError for a ``sigma`` that is not above 0.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"a sigma of {sigma} is not a number above 0")
    intact = score(model, data, precision=precision)
    # Weight noise of training has the plain seed.
    noise = Noise(model, NoiseSpec("weight"), seed=stream_seed(seed, "sharpness"), classes=len(data.classes))
    for draw in range(draws):
        if stop is not None:
            stop.check()
        with noise.weights(sigma, Clock(epoch=1, step=draw, steps=draws, epochs=1)):
            noisy = score(model, data, precision=precision)
        yield {
            "draw": draw,
            "sigma": sigma,
            "accuracy": noisy.accuracy,
            "loss": _finite(noisy.loss),
            "accuracy_drop": intact.accuracy - noisy.accuracy,
            "loss_rise": _finite(noisy.loss - intact.loss),
        }


def mean_sharpness(rows: Sequence[Row]) -> float | None:
    """Document 004's sharpness of the rows of one ``sigma``: mean accuracy drop / sigma (adaptive-noise.md 5.5).

    A fraction per relative change of the weights: 2.0 at sigma 0.01 means that weights that are 1 % off cost 2 points of
    accuracy. Below 0 where noise happens to help, None without rows.
    """
    return fmean(row["accuracy_drop"] for row in rows) / rows[0]["sigma"] if rows else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
