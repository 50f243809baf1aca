"""How much accuracy is left when only a random fraction of a site's units (or channels) is kept?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from perturblab.hardware import autocast
from perturblab.images import ImageSet
from perturblab.masks import subsets
from perturblab.measure import batches
from perturblab.runs import Row
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel, ablate_each, evaluating
from perturblab.streams import stream

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CHUNK = 2**22  # activations per product: 16 MB of float32, 16 masks of 500 images at a site of 512 units


def robustness(
    model: SteppedModel,
    data: ImageSet,
    *,
    seed: int,
    site: str = "hidden",
    fractions: tuple[float, ...] = FRACTIONS,
    n_masks: int = 20,
    precision: str = "fp32",
    stop: StopFlag | None = None,
) -> Iterator[Row]:
    """One row per kept fraction and random subset: ``kept_fraction``, ``keep_size``, ``mask`` (number),
    ``accuracy`` (fraction of ``data``, evaluation mode, removed units zeroed, nothing rescaled).

    The same seed gives every model of one width the same subsets. Raises ValueError for an unknown site.
    """
    width = model.site(site).width
    here = model.position(site)
    with evaluating(model), autocast(precision, data.images.device):
        kept = [(model.run(images, stop=here), labels) for images, labels in batches(data)]
    for fraction in fractions:
        size = max(1, round(fraction * width))
        masks = subsets(torch.full((n_masks,), size), width, stream(seed, "robustness", site, size))
        correct = _correct(model, kept, masks.to(data.images.device), here, precision)
        for mask, count in enumerate(correct.tolist()):
            if stop is not None:
                stop.check()
            yield {"kept_fraction": fraction, "keep_size": size, "mask": mask, "accuracy": count / len(data)}


def _correct(
    model: SteppedModel, kept: list[tuple[Tensor, Tensor]], masks: Tensor, here: int, precision: str
) -> Tensor:
    """Correct predictions under each mask, int64 ``[masks]``; the part before the site has run already."""
    correct = torch.zeros(len(masks), dtype=torch.int64, device=masks.device)
    with evaluating(model), autocast(precision, masks.device):
        for state, labels in kept:
            chunk = max(1, CHUNK // state.numel())
            for start in range(0, len(masks), chunk):
                part = masks[start : start + chunk]
                logits = model.run(ablate_each(state, part).flatten(0, 1), start=here)
                hits = logits.argmax(1).view(len(part), -1) == labels
                correct[start : start + chunk] += hits.sum(1)
    return correct
