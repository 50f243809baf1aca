"""A model is a list of steps; a perturbation of an activation is a function that is handed that activation.

``steps()`` gives ``[(site or None, step)]``; ``forward(images, tap)`` is the loop over them, and ``run(state, tap,
start, stop)`` the same loop over a part, so work on a shared prefix is done once. A tap may return more rows than
it was given (``fan_out``): one batch then carries many masks through the rest. Nothing is patched, so nothing can
be left behind after an exception; models that are not lists of steps get taps through ``Hooked``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from perturblab.settings import nearest


@dataclass(frozen=True)
class Site:
    """A place whose activation can be read or replaced.

    ``name`` is ours (``conv1``, ``hidden``); ``module`` the name of the module whose output it is, as in the
    documents (``features.2``); ``shape`` of one image's activation: ``(channels, height, width)`` or ``(units,)``;
    ``weights`` the name of the one layer whose weights make it (``features.0``), empty where there is no such layer.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    weights: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Every name by which the site can be asked for."""
        return tuple(filter(None, (self.name, self.module, self.weights)))

    @property
    def width(self) -> int:
        """Channels of a map, units of a vector."""
        return self.shape[0]


Step = tuple[Site | None, Callable[[Any], Any]]
Tap = Callable[[Site, Tensor], Tensor]


class Layers:
    """A step: layers one after another. ``OnBranch`` does the same inside a residual block."""

    def __init__(self, *layers: nn.Module) -> None:
        self.layers = layers

    def __call__(self, state: Any) -> Any:
        for layer in self.layers:
            state = layer(state)
        return state

    def constant(self) -> Tensor:
        """What the step gives in evaluation mode when the weights of its first layer are zero, ``[width]``.

        The bias goes on through BatchNorm and ReLU: ``ReLU(gamma (b - mu) / sqrt(var + eps) + beta)``
        (layerwise-mi.md 3.6). ValueError if the first layer is neither a convolution nor linear.
        """
        first, *rest = self.layers
        if not isinstance(first, nn.Conv2d | nn.Linear):
            raise ValueError(f"a {type(first).__name__} has no weights whose absence leaves a constant")
        state = constant_of(first)
        for layer in rest:
            state = layer(state)
        return state.flatten()


class OnBranch(Layers):
    """Layers on the branch of a residual block, whose state is ``(branch, skip)``."""

    def __call__(self, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        branch, skip = state
        return super().__call__(branch), skip


def constant_of(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """The output of ``layer`` without its weights: the bias as ``[1 width 1 1]``, or ``[1 width]`` if linear."""
    bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach().clone()
    return bias.view(1, -1, 1, 1) if isinstance(layer, nn.Conv2d) else bias[None]


def activation_of(state: Any) -> Tensor:
    """The activation in a state: the state itself, or the branch of a residual block."""
    activation: Tensor = state[0] if isinstance(state, tuple) else state
    return activation


def rows_of(state: Any, rows: Tensor | slice) -> Any:
    """The part of a state that belongs to these images."""
    return tuple(part[rows] for part in state) if isinstance(state, tuple) else state[rows]


def with_activation(state: Any, activation: Tensor) -> Any:
    """``state`` with another activation; one with k times the rows takes k copies of the skip connection along."""
    if not isinstance(state, tuple):
        return activation
    _, skip = state
    copies = len(activation) // len(skip)
    return activation, skip if copies == 1 else skip.repeat(copies, *[1] * (skip.dim() - 1))


class SteppedModel(nn.Module, ABC):
    """A network that runs as a list of steps. A step's state is a tensor, in a residual block (branch, skip)."""

    @abstractmethod
    def steps(self) -> list[Step]: ...

    def forward(self, images: Tensor, tap: Tap | None = None) -> Tensor:
        """float32 ``[b c h w]`` to logits ``[b classes]``; ``tap`` sees every site's activation on the way.

        ValueError if it is for a site that the model does not have.
        """
        if isinstance(tap, At):
            self.position(tap.site)
        logits: Tensor = self.run(images, tap)
        return logits

    def run(self, state: Any, tap: Tap | None = None, start: int = 0, stop: int | None = None) -> Any:
        """Steps ``start`` to ``stop`` (exclusive), from a supplied state to the state that they leave."""
        for site, step in self.steps()[start:stop]:
            state = step(state)
            if tap is not None and site is not None:
                state = with_activation(state, tap(site, activation_of(state)))
        return state

    def sites(self) -> list[Site]:
        return [site for site, _ in self.steps() if site is not None]

    def position(self, name: str) -> int:
        """How many steps lead to the activation at site ``name`` (or module, or layer). ValueError if unknown."""
        for number, (site, _) in enumerate(self.steps(), 1):
            if site is not None and name in site.names:
                return number
        raise ValueError(f"no site '{name}'{nearest(name, [s.name for s in self.sites()])}")

    def site(self, name: str) -> Site:
        site = self.steps()[self.position(name) - 1][0]
        assert site is not None
        return site

    def weight_fill(self, name: str) -> Tensor:
        """What zeroing the weights that make site ``name`` leaves there in evaluation mode, ``[width]``.

        ValueError if the site is not made by one convolution or linear layer (the end of a residual block).
        """
        step = self.steps()[self.position(name) - 1][1]
        if not isinstance(step, Layers):
            raise ValueError(f"site '{name}' is not the output of one layer: fill it with zero or the mean")
        with torch.no_grad():
            return step.constant()


# ---- taps ------------------------------------------------------------------------------------------------------


def broadcast(mask: Tensor, activation: Tensor) -> Tensor:
    """A mask ``[width]``, ``[rows width]`` or of the activation's full shape, shaped to multiply the activation."""
    if mask.dim() == activation.dim() and mask.shape[1:] == activation.shape[1:]:
        return mask
    if mask.dim() not in (1, 2) or mask.shape[-1] != activation.shape[1]:
        raise ValueError(
            f"a mask {list(mask.shape)} does not fit an activation with {activation.shape[1]} channels"
        )
    rows = mask if mask.dim() == 2 else mask[None]
    return rows.reshape(*rows.shape, *[1] * (activation.dim() - 2))


@dataclass(frozen=True)
class At:
    """A tap that makes one ``change`` at one ``site`` (by any of its names); models without it refuse it."""

    site: str
    change: Callable[[Tensor], Tensor]

    def __call__(self, at: Site, activation: Tensor) -> Tensor:
        return self.change(activation) if self.site in at.names else activation


def fill(site: str, keep_mask: Tensor, value: Tensor | float = 0.0) -> Tap:
    """Where ``keep_mask`` (bool, True = kept) is False, the activation becomes ``value`` (a number or ``[width]``)."""

    def change(activation: Tensor) -> Tensor:
        kept = broadcast(keep_mask, activation)
        other = broadcast(value, activation) if isinstance(value, Tensor) else value
        return torch.where(
            kept, activation, torch.as_tensor(other, dtype=activation.dtype, device=activation.device)
        )

    return At(site, change)


def keep(site: str, keep_mask: Tensor) -> Tap:
    """Zero what ``keep_mask`` does not keep, as a product: gradients reach kept entries only, nothing is rescaled."""
    return At(site, lambda activation: activation * broadcast(keep_mask, activation).to(activation.dtype))


def add(site: str, noise: Tensor) -> Tap:
    """Add ``noise`` (broadcastable to the activation) at ``site``."""
    return At(site, lambda activation: activation + noise)


def fan_out(site: str, keep_masks: Tensor) -> Tap:
    """One pass for many masks: ``keep_masks`` bool ``[m width]`` turn ``[b ...]`` into ``[m*b ...]``, mask-major.

    Equal to one pass per mask where the later steps treat rows independently (not BatchNorm in training mode).
    """
    return At(site, lambda activation: ablate_each(activation, keep_masks).flatten(0, 1))


def ablate_each(activation: Tensor, keep_masks: Tensor) -> Tensor:
    """``[b ...]`` under ``keep_masks`` bool ``[m width]`` (or ``[m 1 width]``) gives ``[m b ...]``; removed = 0."""
    if keep_masks.shape[-1] != activation.shape[1]:
        raise ValueError(
            f"masks of width {keep_masks.shape[-1]} do not fit an activation with {activation.shape[1]} channels"
        )
    shape = (len(keep_masks), 1, activation.shape[1], *[1] * (activation.dim() - 2))
    return activation[None] * keep_masks.view(shape).to(activation.dtype)


def record(into: dict[str, Tensor]) -> Tap:
    """Put a copy of every site's activation (detached) into ``into`` under the site's name."""

    def tap(at: Site, activation: Tensor) -> Tensor:
        into[at.name] = activation.detach().clone()  # an in-place ReLU may follow in a foreign model
        return activation

    return tap


# ---- evaluating and probing without a trace ------------------------------------------------------------------------


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module's mode is what it was, also after an exception."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Further forwards of a training step: batch statistics are used, running ones (and their counter) left alone.

    Momentum 0 would still count batches; ``track_running_stats=False`` does not.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
