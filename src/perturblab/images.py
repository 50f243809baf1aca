"""Images as tensors, and the batches that training sees.

A data set is small enough to live on the device as uint8 tensors, so there is no DataLoader: filtering is
indexing, shuffling is a permutation, augmentation is a batched tensor operation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from perturblab.streams import stream

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""``(images uint8 [n c h w], generator on the CPU) -> images`` of the same shape and dtype."""

Mix = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, tuple[Tensor, Tensor]]]
"""``(images of one batch, labels [b], generator on the CPU) -> (images, (second labels [b], share float32 [b]))``."""


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images of one size.

    ``images`` uint8 ``[n c h w]``; ``labels`` int64 ``[n]``; ``classes`` the class names, in label order;
    ``mean`` and ``std`` one number per channel, for pixels in [0, 1]; ``annotation`` bool ``[n 1 h w]``, True
    where a shortcut was planted, or None. Raises ValueError when shapes, dtypes or labels do not fit together.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    annotation: Tensor | None = None

    def __post_init__(self) -> None:
        n, channels = self.images.shape[:2] if self.images.dim() == 4 else (-1, -1)
        if n < 0 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 [n c h w], not {self.images.dtype} {list(self.images.shape)}"
            )
        if self.labels.shape != (n,) or self.labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 [{n}], not {self.labels.dtype} {list(self.labels.shape)}")
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not len(self.mean) == len(self.std) == channels or not finite or min(self.std, default=1) <= 0:
            raise ValueError(f"mean and std must have {channels} finite numbers each, std above 0")
        if n and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise ValueError(f"labels must lie in 0..{len(self.classes) - 1}")
        expected = (n, 1, *self.images.shape[2:])
        if self.annotation is not None and self.annotation.shape != expected:
            raise ValueError(f"annotation must be [n 1 h w] = {expected}, not {list(self.annotation.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> ImageSet:
        """The images at ``index`` (a slice, an int64 index or a bool mask), in that order."""
        annotation = None if self.annotation is None else self.annotation[index]
        return replace(self, images=self.images[index], labels=self.labels[index], annotation=annotation)

    def to(self, device: torch.device | str) -> ImageSet:
        annotation = None if self.annotation is None else self.annotation.to(device)
        return replace(
            self, images=self.images.to(device), labels=self.labels.to(device), annotation=annotation
        )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 ``[n c h w]`` to float32: ``(pixel / 255 - mean) / std`` per channel."""
        scale, shift = _affine(self.mean, self.std, images.device)
        return images.float().mul_(scale).add_(shift)

    def digest(self) -> str:
        """SHA-256 over pixels, labels, class names and normalisation: which data a run saw."""
        h = hashlib.sha256(repr((self.images.shape, self.classes, self.mean, self.std)).encode())
        for part in (self.images, self.labels, self.annotation):
            if part is not None:
                h.update(part.cpu().contiguous().numpy().data)
        return h.hexdigest()


def stratified(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``n`` images drawn at random, each class in its share (to the nearest image): bool ``[len(labels)]``."""
    drawn = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    order = torch.randperm(len(labels), generator=generator).to(labels.device)
    by_class = order[labels[order].sort(stable=True).indices]
    # Every (len / n)-th of the images in order of class: a class gets its share, and within it the draw is random.
    drawn[by_class[(torch.arange(n, device=labels.device) * len(labels) + len(labels) // 2) // max(n, 1)]] = (
        True
    )
    return drawn


@lru_cache  # every step asks, and a copy to a GPU is not free
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    mean_, std_ = torch.tensor([mean, std], dtype=torch.float64).view(2, 1, -1, 1, 1)
    return (1 / (255 * std_)).float().to(device), (-mean_ / std_).float().to(device)


@dataclass(frozen=True)
class Batch:
    """What one training step sees.

    ``images`` float32 ``[b c h w]``, normalised; ``labels`` int64 ``[b]``; ``index`` int64 ``[b]`` into the
    image set, or into the pool for the last ``n_corrected``; ``annotation`` bool ``[b 1 h w]`` or None; ``mix``
    (second labels int64 ``[b]``, share float32 ``[b]`` of the first) or None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    annotation: Tensor | None = None
    n_corrected: int = 0  # the one place that says which: always the last ones (correction.md 4.5)
    mix: tuple[Tensor, Tensor] | None = None

    @property
    def is_corrected(self) -> Tensor:
        """bool ``[b]``."""
        places = torch.arange(len(self.labels), device=self.labels.device)
        return places >= len(self.labels) - self.n_corrected


class Source(Protocol):
    """Where batches come from. The same (seed, epoch, step) always gives the same batch."""

    def steps(self) -> int:
        """Batches per epoch."""
        ...

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch ``number``, from ``first_step`` (0-based) on."""
        ...


class ShuffledSource:
    """Every image once per epoch in a fresh order; the short last batch is kept unless ``drop_last``.

    Images are changed by ``augment``, then those of a batch mixed by ``mix``, which fills ``Batch.mix``; annotations
    stay as they were.
    """

    # Images are gathered and augmented this many batches at a time: the draws and the dozen small kernels
    # are then paid once per stretch, not once per step; but no more than a core's cache holds (2 times faster
    # than 2048 images of 32x32x3 at a time).
    STRETCH = 16
    STRETCH_BYTES = 2**21

    def __init__(
        self,
        data: ImageSet,
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        drop_last: bool = False,
        mix: Mix | None = None,
    ) -> None:
        if not 1 <= batch_size <= max(len(data), 1):
            raise ValueError(f"batch size {batch_size} does not fit a set of {len(data)} images")
        self.data, self.batch_size, self.seed, self.augment = data, batch_size, seed, augment
        self.mix = mix
        whole, rest = divmod(len(data), batch_size)
        self._steps = whole + (1 if rest and not drop_last else 0)
        batch_bytes = batch_size * data.images[0].numel() if len(data) else 1
        self._stretch = max(1, min(self.STRETCH, self.STRETCH_BYTES // batch_bytes))

    def steps(self) -> int:
        return self._steps

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        order = torch.randperm(len(self.data), generator=stream(self.seed, "order", number))
        order = order.to(self.data.images.device)
        for begin in range(first_step - first_step % self._stretch, self._steps, self._stretch):
            yield from self._batches(number, order, begin, max(first_step, begin))

    def _batches(self, number: int, order: Tensor, begin: int, first_step: int) -> Iterator[Batch]:
        end = min(begin + self._stretch, self._steps)
        index = order[begin * self.batch_size : end * self.batch_size]
        # index_select gathers 2.0 million images/s (32x32x3, two cores), indexing with [] 0.4 million.
        images, labels = (part.index_select(0, index) for part in (self.data.images, self.data.labels))
        annotation = None if self.data.annotation is None else self.data.annotation.index_select(0, index)
        if self.augment is not None:
            images = self.augment(images, stream(self.seed, "augment", number, begin))
        for step in range(first_step, end):
            part = slice((step - begin) * self.batch_size, (step - begin + 1) * self.batch_size)
            batch = Batch(
                self.data.normalise(images[part]),
                labels[part],
                index[part],
                annotation=None if annotation is None else annotation[part],
            )
            yield batch if self.mix is None else self._mixed(batch, self.mix, number, step)

    def _mixed(self, batch: Batch, mix: Mix, number: int, step: int) -> Batch:
        images, mixed = mix(batch.images, batch.labels, stream(self.seed, "cutmix", number, step))
        return replace(batch, images=images, mix=mixed)


class MixedSource:
    """Batches of ``batch_size - corrected_per_batch`` images and then ``corrected_per_batch`` of a ``pool``.

    Every image at most once per epoch, in a fresh order; what does not fill a batch is left out. The pool is gone
    through again and again, in a new order each time (correction.md 4.5; there the order of one epoch is repeated,
    so that the same corrected images always meet). Neither order depends on the other set or on its size.
    """

    STRETCH = 16  # batches that are gathered at a time, as in ShuffledSource

    def __init__(
        self, data: ImageSet, pool: ImageSet, batch_size: int, corrected_per_batch: int, seed: int
    ) -> None:
        if not 0 <= corrected_per_batch < batch_size:
            raise ValueError(
                f"{corrected_per_batch} corrected images do not leave room in a batch of {batch_size}"
            )
        if len(data) < batch_size - corrected_per_batch:
            raise ValueError(
                f"a set of {len(data)} images is smaller than the {batch_size - corrected_per_batch} that a batch of "
                f"{batch_size} takes from it"
            )
        if corrected_per_batch and not len(pool):
            raise ValueError("the pool of corrected images is empty")
        self.data, self.pool, self.seed = data, pool, seed
        self.from_data, self.from_pool = batch_size - corrected_per_batch, corrected_per_batch

    def steps(self) -> int:
        return len(self.data) // self.from_data

    def epoch(self, number: int, first_step: int = 0) -> Iterator[Batch]:
        device = self.data.images.device
        order = torch.randperm(len(self.data), generator=stream(self.seed, "order", number)).to(device)
        drawn = self._drawn(number).to(device)
        for begin in range(first_step - first_step % self.STRETCH, self.steps(), self.STRETCH):
            end = min(begin + self.STRETCH, self.steps())
            index = torch.cat([order[begin * self.from_data : end * self.from_data].view(-1, self.from_data),
                               drawn[begin * self.from_pool : end * self.from_pool].view(end - begin, self.from_pool)], 1)  # fmt: skip
            images, labels = self._gathered(index)
            for step in range(max(first_step, begin), end):
                at = step - begin
                yield Batch(images[at], labels[at], index[at], n_corrected=self.from_pool)

    def _drawn(self, number: int) -> Tensor:
        """Which images of the pool the batches of an epoch take, int64 ``[steps * corrected_per_batch]``."""
        generator, wanted = stream(self.seed, "corrected", number), self.steps() * self.from_pool
        rounds = math.ceil(wanted / max(1, len(self.pool)))
        orders = [torch.randperm(len(self.pool), generator=generator) for _ in range(rounds)]
        return torch.cat(orders)[:wanted] if orders else torch.zeros(0, dtype=torch.int64)

    def _gathered(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 ``[s b c h w]`` and labels ``[s b]`` of an index ``[s b]``."""
        ours, pools = (part.flatten() for part in index.split([self.from_data, self.from_pool], 1))
        images, labels = (
            torch.cat([a.index_select(0, ours).unflatten(0, (len(index), -1)),
                       b.index_select(0, pools).view(len(index), self.from_pool, *b.shape[1:])], 1)
            for a, b in ((self.data.images, self.pool.images), (self.data.labels, self.pool.labels))
        )  # fmt: skip
        return self.data.normalise(images.flatten(0, 1)).view(images.shape), labels
