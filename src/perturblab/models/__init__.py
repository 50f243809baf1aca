"""The networks, by name. Adding one is a file, a line here and a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from perturblab.models.vgg import LAYOUTS, VGG
from perturblab.sites import SteppedModel

MODELS: dict[str, Callable[..., SteppedModel]] = {arch: partial(VGG, arch) for arch in LAYOUTS}
"""name -> builder(classes=, channels=, width=, size=)"""

__all__ = ["MODELS", "VGG"]
