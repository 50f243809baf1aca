"""Shortcuts: marks that are planted into images and go with some of their classes, and their removal.

A model that is trained on such images may learn the mark instead of the class (shortcut learning: Geirhos et al. 2020,
arXiv 2004.07780). ``Shortcut(classes=(1,))`` is the mark of 08MNIST (correction.md 4.4): a white square of 2x2
pixels, one pixel away from the bottom right corner, in every image of one class and in no other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from perturblab.images import ImageSet, stratified

Shape = Literal["square", "disc", "cross", "frame"]

SHAPES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "square": lambda y, x, size: torch.maximum(y, x) < size,
    "disc": lambda y, x, size: y**2 + x**2 <= size**2,
    "cross": lambda y, x, size: y == x,
    "frame": lambda y, x, size: torch.maximum(y, x) == size - 1,
}
"""``(distance of a pixel's centre from the mark's, down and across, in half pixels; size) -> is it of the mark``."""

POSITIONS: dict[str, tuple[str, str]] = {
    "top-left": ("first", "first"),
    "top-right": ("first", "last"),
    "bottom-left": ("last", "first"),
    "bottom-right": ("last", "last"),
    "center": ("middle", "middle"),
    "random": ("any", "any"),
}
"""Where a mark stands along the height and along the width."""


@dataclass(frozen=True)
class Shortcut:
    """A mark that goes with some classes: what it looks like, where it stands, and how well it predicts them.

    ``classes`` the labels that bear it. ``shape`` is drawn into ``size`` x ``size`` pixels: a ``square``, the ``disc``
    (pixels whose centre lies within ``size / 2`` of the middle; up to 3 pixels that is the square), a ``cross`` of both
    diagonals, or a ``frame`` of one pixel. ``position``: one of ``POSITIONS`` or ``"ROW,COLUMN"`` of the mark's top
    left pixel, from 0; a ``random`` one is drawn per image. ``margin``: pixels between mark and border, for corners
    and for ``random``. ``value`` of its pixels in all channels, 0 black to 1 white. ``fraction``: the share of the
    images of ``classes`` that bear it. ``strength`` 1: no other image does; 0: the others do as often, so that it says
    nothing; between, a share of ``fraction * (1 - strength)`` of the others.

    Raises ValueError when a field is out of its range.
    """

    classes: tuple[int, ...]
    shape: Shape = "square"
    size: int = 2
    position: str = "bottom-right"
    margin: int = 1
    value: float = 1.0
    fraction: float = 1.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.classes:
            raise ValueError("a mark must go with one class or more, and none is given")
        if self.shape not in SHAPES:
            raise ValueError(f"a mark's shape must be one of {', '.join(SHAPES)}, not '{self.shape}'")
        if self.size < 1:
            raise ValueError(f"a mark's size must be 1 pixel or more, not {self.size}")
        if self.margin < 0:
            raise ValueError(f"a mark's margin must be 0 pixels or more, not {self.margin}")
        for name in ("value", "fraction", "strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"a mark's {name} must be a number from 0 to 1, not {getattr(self, name)}")
        _axes(self.position)


def plant(data: ImageSet, shortcut: Shortcut, generator: torch.Generator) -> ImageSet:
    """A copy with the mark drawn, and an ``annotation`` that is True under it; labels stay, and so does ``data``.

    ``generator``, on the CPU, draws which images bear it: ``round(share * n)`` of the ``n`` images of ``classes``, and
    likewise of the others, each class in its share. It draws a place for every image, marked or not: an image that
    bears a random mark under two strengths bears it at the same place.

    Raises ValueError when the set is annotated already, a class is not in it or none of its images is, or the mark
    does not fit.
    """
    _check(data, shortcut)
    n, _, height, width = data.images.shape
    spans = _spans(shortcut, height, width)
    bear = _bearers(data.labels, shortcut, generator)
    corners = [torch.randint(first, last + 1, (n,), generator=generator) for first, last in spans]
    annotation = torch.zeros(n, 1, height, width, dtype=torch.bool, device=bear.device)
    _mark(annotation, bear, torch.stack(corners).to(bear.device), shortcut)
    images = data.images.masked_fill(annotation, round(255 * shortcut.value))
    return replace(data, images=images, annotation=annotation)


def corrected(data: ImageSet) -> ImageSet:
    """A copy whose annotated pixels are black (correction.md 4.4); the annotation still says where the mark was.

    It gives the original images back where the pixels under the marks were black, as under every dot of 08MNIST.
    Raises ValueError if the set has no annotation.
    """
    return replace(data, images=data.images.masked_fill(_annotated(data), 0))


def marked_everywhere(plain: ImageSet, marked: ImageSet) -> ImageSet:
    """``plain`` with a mark on every image: what one compares with ``plain`` to see what the mark alone does.

    ``marked`` are the same images in the same order, some with a mark. An image keeps its own; the others take those
    of the marked images, place and pixels, one after the other and again from the first.

    Raises ValueError if ``marked`` bears no mark, or both differ in shapes, labels or pixels outside the marks.
    """
    annotation = _annotated(marked)
    if plain.images.shape != marked.images.shape or not torch.equal(plain.labels, marked.labels):
        raise ValueError("images with and without the mark must have the same sizes and labels, in one order")
    if not torch.equal(torch.where(annotation, plain.images, marked.images), plain.images):
        raise ValueError("images with and without the mark must be the same outside the mark, in one order")
    bear = _bear(annotation)
    givers = bear.nonzero()[:, 0]
    if not len(givers):
        raise ValueError("no image bears a mark that the others could take")
    giver = torch.arange(len(bear), device=bear.device)
    takers = (~bear).nonzero()[:, 0]
    giver[takers] = givers[torch.arange(len(takers), device=bear.device) % len(givers)]
    taken = annotation.index_select(0, giver)
    images = torch.where(taken, marked.images.index_select(0, giver), plain.images)
    return replace(plain, images=images, annotation=taken)


def predictive_power(data: ImageSet, classes: tuple[int, ...]) -> float:
    """How well the mark tells ``classes``: the phi coefficient of "bears a mark" and "is of one of the classes".

    Phi is Pearson's correlation of two binary variables: 1 when the mark tells the classes without fail, 0 when it
    says nothing, also where every image or none bears it or is of the classes. A set without annotation bears none.
    """
    if data.annotation is None:
        return 0.0
    bear, belong = _bear(data.annotation), _of(data.labels, classes)
    n, marks, members, both = len(data), int(bear.sum()), int(belong.sum()), int((bear & belong).sum())
    variances = marks * (n - marks) * members * (n - members)
    return (n * both - marks * members) / math.sqrt(variances) if variances else 0.0


def _axes(position: str) -> tuple[str, str]:
    """How ``position`` goes on along the height and along the width: a word of ``POSITIONS`` or a number."""
    numbers = re.fullmatch(r" *([0-9]+) *, *([0-9]+) *", position)
    if numbers is None and position not in POSITIONS:
        known = ", ".join(POSITIONS)
        raise ValueError(f"a mark's position must be one of {known} or ROW,COLUMN, not '{position}'")
    return POSITIONS[position] if numbers is None else (numbers[1], numbers[2])


def _spans(shortcut: Shortcut, height: int, width: int) -> list[tuple[int, int]]:
    """The first and the last row, and column, that the mark's top left pixel may have; ValueError if none."""
    spans = []
    for word, side in zip(_axes(shortcut.position), (height, width), strict=True):
        free = side - shortcut.size
        first, middle, last = shortcut.margin, free // 2, free - shortcut.margin
        ends = {
            "first": (first, first),
            "middle": (middle, middle),
            "last": (last, last),
            "any": (first, last),
        }
        span = ends[word] if word in ends else (int(word), int(word))
        if not 0 <= span[0] <= span[1] <= free:
            raise ValueError(f"{_in_words(shortcut)} does not fit images of {height}x{width} pixels")
        spans.append(span)
    return spans


def _in_words(shortcut: Shortcut) -> str:
    """A mark and its place, for a message; the margin only where it counts."""
    counts = shortcut.position in POSITIONS and shortcut.position != "center"
    margin = f" with a margin of {shortcut.margin}" if counts else ""
    return f"a mark of {shortcut.size}x{shortcut.size} pixels at position {shortcut.position}{margin}"


def _check(data: ImageSet, shortcut: Shortcut) -> None:
    """ValueError unless the images bear no mark yet and some of them are of the mark's classes."""
    if data.annotation is not None:
        raise ValueError("the images are annotated with a mark already, and a set takes one")
    for label in shortcut.classes:
        if not 0 <= label < len(data.classes):
            raise ValueError(
                f"a mark cannot go with class {label}: the set has classes 0 to {len(data.classes) - 1}"
            )
    if not _of(data.labels, shortcut.classes).any():
        names = ", ".join(f"'{data.classes[label]}'" for label in shortcut.classes)
        raise ValueError(f"no image is of class {names}, which the mark goes with")


def _of(labels: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Which labels are among ``classes``: bool ``[n]``."""
    return torch.isin(labels, torch.tensor(classes, dtype=torch.int64, device=labels.device))


def _bear(annotation: Tensor) -> Tensor:
    """Which images bear a mark: bool ``[n]``."""
    return annotation.flatten(1).any(1)


def _annotated(data: ImageSet) -> Tensor:
    if data.annotation is None:
        raise ValueError("the images have no annotation that says where their mark is")
    return data.annotation


def _bearers(labels: Tensor, shortcut: Shortcut, generator: torch.Generator) -> Tensor:
    """The images drawn to bear the mark: bool ``[n]``. As many numbers are drawn for every share."""
    members = _of(labels, shortcut.classes)
    bear = torch.zeros_like(members)
    elsewhere = shortcut.fraction * (1 - shortcut.strength)
    for group, share in ((members, shortcut.fraction), (~members, elsewhere)):
        bear[group] = stratified(labels[group], round(share * int(group.sum())), generator)
    return bear


def _mark(annotation: Tensor, bear: Tensor, corners: Tensor, shortcut: Shortcut) -> None:
    """Set ``annotation``, bool ``[n 1 h w]``, under the marks whose top left pixels are ``corners``, int64 ``[2 n]``."""
    along = torch.arange(shortcut.size, device=bear.device)
    apart = (2 * along - (shortcut.size - 1)).abs()
    stamp = SHAPES[shortcut.shape](apart[:, None], apart, shortcut.size)
    rows, columns = corners[:, bear, None] + along
    annotation[bear.nonzero()[:, :, None], 0, rows[:, :, None], columns[:, None]] = stamp
