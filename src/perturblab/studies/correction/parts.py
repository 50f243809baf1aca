"""Which images a run of correction trains on, which it corrects, and which it is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from perturblab.checkpoints import load_weights, read_checkpoint
from perturblab.confound import corrected
from perturblab.images import ImageSet, MixedSource, stratified
from perturblab.models import MODELS
from perturblab.sites import SteppedModel
from perturblab.streams import stream
from perturblab.studies.correction import Check, Train
from perturblab.studies.correction.data import Sets
from perturblab.terminal import UserError, warn

DOTTED = 1  # the label of the class that bears the dot, 8


@dataclass(frozen=True)
class Parts:
    """``train`` confounded images; ``found`` and ``pool`` the chosen eights as they were and without their dot;
    ``validation`` what selects; ``plain`` and ``dotted`` the test images. ``index``: what was drawn, for the record."""

    train: ImageSet
    found: ImageSet
    pool: ImageSet
    validation: ImageSet
    other_validation: ImageSet  # the same images, dotted if `validation` is plain, and the other way round
    plain: ImageSet
    dotted: ImageSet
    index: dict[str, list[int]]

    def to(self, device: torch.device) -> Parts:
        moved = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, ImageSet)}
        return Parts(**moved, index=self.index)


def parts_of(s: Train | Check, sets: Sets, seed: int) -> Parts:
    """Everything is drawn from streams of the seed, so that runs of one seed differ in nothing else. UserError for too few."""
    kept, train = subset(s, sets.train, seed)
    pool, found = drawn(s, train, seed)
    held = stratified(
        sets.original.labels, int(s.validate_ds_size * len(sets.original)), stream(seed, "validation")
    )
    if not held.any() or held.all():
        raise UserError(
            f"--validate_ds_size {s.validate_ds_size:g} of {len(sets.original)} test images leaves one part empty"
        )
    if not is_mixed(sets.original[~held]) or not is_mixed(sets.original[held]):
        raise UserError(
            f"--validate_ds_size {s.validate_ds_size:g} of {len(sets.original)} test images leaves one part without 0s or 8s"
        )
    dots = sets.confounded[~held].annotation
    if dots is None or not dots.any():
        raise UserError(
            f"--validate_ds_size {s.validate_ds_size:g}: none of the {int((~held).sum())} test images left bears a dot"
        )
    plain_first = (sets.original[held], sets.confounded[held])
    validation, other = plain_first if s.validation == "original" else plain_first[::-1]
    of_all = torch.tensor(kept)[pool] if kept else pool  # every index counts in its file
    index = {"train": kept, "pool": of_all.tolist(), "validation": held.nonzero()[:, 0].tolist()}
    return Parts(
        train, found, corrected(found), validation, other, sets.original[~held], sets.confounded[~held], index
    )


def is_mixed(images: ImageSet) -> bool:
    return len(images.labels.unique()) > 1


def subset(s: Train | Check, images: ImageSet, seed: int) -> tuple[list[int], ImageSet]:
    """The training images and, unless they are all, where they stood."""
    size = s.train_dataset_size
    if size > len(images):
        warn(f"--train_dataset_size {size}: there are {len(images):,} training images, all are taken")
    if not 0 < size < len(images):
        return [], images
    kept = stratified(images.labels, size, stream(seed, "subset"))
    return kept.nonzero()[:, 0].tolist(), images[kept]


def drawn(s: Train | Check, train: ImageSet, seed: int) -> tuple[Tensor, ImageSet]:
    """Which training images are corrected, and these: each once if there are enough (decision 13), a smaller pool being
    the beginning of a larger one."""
    assert train.annotation is not None
    eights = ((train.labels == DOTTED) & train.annotation.flatten(1).any(1)).nonzero()[:, 0]
    if not len(eights):
        raise UserError("no 8 with a dot among the training images, so there is nothing to correct")
    size, generator = s.user_corrected_pool_size, stream(seed, "pool")
    if size > len(eights):
        warn(
            f"a pool of {size} corrected 8s out of {len(eights)}: drawn with replacement, some stand in it several times"
        )
        chosen = eights[torch.randint(len(eights), (size,), generator=generator)]
    else:
        chosen = eights[torch.randperm(len(eights), generator=generator)[:size]]
    return chosen, train[chosen]


def mixed(s: Train | Check, parts: Parts, seed: int) -> MixedSource:
    """UserError where the sizes do not fit."""
    try:
        return MixedSource(parts.train, parts.pool, s.batch_size, s.user_corrected_max_per_batch, seed)
    except ValueError as error:
        raise UserError(
            f"--batch_size {s.batch_size}, --user_corrected_max_per_batch {s.user_corrected_max_per_batch}: {error}"
        ) from None


def base_network(path: str, images: ImageSet) -> SteppedModel:
    """The network of a state_dict, or of a checkpoint that holds one as ``model_state_dict``."""
    model = network(images)
    content = read_checkpoint(path)
    weights = content.get("model_state_dict", content)
    if not isinstance(weights, dict):
        raise UserError(f"{path}: its model_state_dict is no dictionary of weights")
    load_weights(model, weights, path)
    return model


def network(images: ImageSet) -> SteppedModel:
    channels, size = images.images.shape[1], images.images.shape[-1]
    return MODELS["cnn2"](classes=len(images.classes), channels=channels, size=size)
