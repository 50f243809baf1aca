"""Does a network follow a planted mark? Every image is shown without and with it, so nothing else changes."""

from __future__ import annotations

import torch

from perturblab.confound import marked_everywhere
from perturblab.images import ImageSet
from perturblab.measure import BATCH, predictions
from perturblab.runs import Row
from perturblab.sites import SteppedModel


def reliance(
    model: SteppedModel, plain: ImageSet, marked: ImageSet, precision: str = "fp32", size: int = BATCH
) -> Row:
    """Fractions over the images of ``plain``; ``marked`` are the same images, those with the shortcut marked.

    ``accuracy_original`` no image bears the mark; ``accuracy_confounded`` those of ``marked`` do; ``accuracy_toggled``
    the others do; ``accuracy_marked`` all do. ``accuracy_drop`` is confounded less toggled: 1 if only the mark counts, 0 if
    it does not. ``flip_rate``: share of images whose class changes when their mark does. ``groups``: accuracy by class
    and mark, of which ``worst_group_accuracy`` is the lowest (Sagawa et al. 2020). ValueError as ``marked_everywhere``.
    """
    everywhere = marked_everywhere(plain, marked)
    off, on = (predictions(model, data, precision=precision, size=size) for data in (plain, everywhere))
    assert marked.annotation is not None
    bears, labels = marked.annotation.flatten(1).any(1), plain.labels
    shown = {
        "original": off,
        "confounded": torch.where(bears, on, off),
        "toggled": torch.where(bears, off, on),
        "marked": on,
    }
    accuracies = {f"accuracy_{name}": _share(predicted == labels) for name, predicted in shown.items()}
    groups = {
        f"{name}, {how}": _share((predicted == labels)[labels == label])
        for label, name in enumerate(plain.classes)
        for how, predicted in (("plain", off), ("marked", on))
        if bool((labels == label).any())
    }
    return {
        **accuracies,
        "accuracy_drop": accuracies["accuracy_confounded"] - accuracies["accuracy_toggled"],
        "flip_rate": _share(on != off),
        "worst_group_accuracy": min(groups.values()),
        "groups": groups,
        "n": len(plain),
    }


def _share(found: torch.Tensor) -> float:
    return float(found.double().mean())
