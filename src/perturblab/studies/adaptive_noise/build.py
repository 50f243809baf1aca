"""The networks of adaptive-noise by their documented names."""

from __future__ import annotations

from perturblab.images import ImageSet
from perturblab.models import MODELS
from perturblab.sites import SteppedModel
from perturblab.streams import seeded
from perturblab.terminal import UserError

OURS = {"SimpleCNN": "simple_cnn", "TinyCNN": "tiny_cnn", "BabyCNN": "baby_cnn"}
"""documented name -> name in ``MODELS``, where they differ"""


def build(classifier: str, images: ImageSet, width: float = 1.0, seed: int = 0) -> SteppedModel:
    """The network for images of this size, on the CPU. UserError where they are too small for it."""
    channels, size = images.images.shape[1], images.images.shape[-1]
    make = MODELS[OURS.get(classifier, classifier)]
    try:
        with seeded(seed, "init"):
            return make(classes=len(images.classes), channels=channels, width=width, size=size)
    except ValueError as error:
        raise UserError(f"--classifier {classifier}: {error}") from None
