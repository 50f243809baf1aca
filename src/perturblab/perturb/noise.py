"""Noise on gradients, weights, images or labels (adaptive-noise.md 5.6).

    noise = Noise(model, NoiseSpec("weight"), seed=0, classes=10)
    batch = noise.batch(batch, 0.05, clock)
    with noise.weights(0.05, clock):
        loss(model(batch.images), batch.labels).backward()
    noise.gradients(0.05, clock)

All three places stand in every step; the two that are not the target's do nothing, nor does any at magnitude 0.

One call fills a flat buffer with the numbers for all parameters, and one more scales and adds them. The ``_foreach``
functions of torch have no public name; torch's own optimisers and ``clip_grad_norm_`` are written with them.

Filling 11,173,962 float32 (ResNet18), ms of one core of an AMD EPYC (AVX512), median of 5: one ``normal_`` 28; the
same in chunks of 16 KiB to 1 MiB 28 to 31; ``uniform_`` 24; NumPy's ziggurat 79 (SFC64) or 87 (PCG64); Box-Muller in
torch on SFC64's bits 47, on ``torch.rand`` 50. ``normal_`` is Box-Muller on 24-bit numbers: nothing beyond 5.8 sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from perturblab.images import Batch
from perturblab.objectives import Clock
from perturblab.perturb.tensors import Group, grouped, norms_of, total_norm
from perturblab.sites import frozen_statistics
from perturblab.streams import stream_seed

TARGETS = ("gradient", "weight", "input", "label")
DISTRIBUTIONS = ("gaussian", "uniform")
SCALES = ("relative", "absolute")
HALF_WIDTH = math.sqrt(3)  # U(-sqrt 3, sqrt 3) has variance 1
MOST_FLIPPED = 0.5  # share of labels drawn anew, at most


@dataclass(frozen=True)
class NoiseSpec:
    """What noise is added to, and how; how much is an argument of each step.

    ``scale``: the standard deviation of an element is the magnitude times the root mean square of its tensor
    ("relative"; all images of a batch are one tensor), or the magnitude ("absolute": the published runs). A label is
    neither: the magnitude is its probability of being drawn anew. ``layers``: parameters whose name contains any of
    these, none = all. ``persistent``: weight noise stays, instead of being there for one gradient. A field that the
    target does not use changes nothing. ``batchnorm``, ``biases``: whether BatchNorm's scales and shifts, and biases, are
    among the parameters (documented: all are). ValueError for a name that is none of the choices.
    """

    target: str
    distribution: str = "gaussian"
    scale: str = "relative"
    layers: tuple[str, ...] = ()
    persistent: bool = False
    batchnorm: bool = True
    biases: bool = True

    def __post_init__(self) -> None:
        choices = {"target": TARGETS, "distribution": DISTRIBUTIONS, "scale": SCALES}
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"no noise {name} '{value}'; choose from {', '.join(known)}")


class Noise:
    """The noise of a run at its three places in a step: batch, weights, gradients.

    The same ``seed``, target, ``clock.epoch`` and ``clock.step`` give the same noise whatever came before, with any
    number of threads; each kind of device has its own numbers. ValueError for ``layers`` that no parameter's name
    contains, and where a magnitude is negative or not finite. Make it when the model is on its device: it holds a
    buffer of the size of the parameters there, and a second for weight noise that does not stay.

    ``norms``: of an epoch's first step ``norm_before`` and ``norm_after`` noise, the L2 norms (0-dim, with a count of
    1) of all gradients or weights that it acts on; empty in other steps, which they would slow down by a hundredth.
    """

    def __init__(self, model: nn.Module, spec: NoiseSpec, *, seed: int, classes: int) -> None:
        self.model, self.spec, self.seed, self.classes = model, spec, seed, classes
        self.norms: dict[str, tuple[Tensor, int]] = {}
        named = _named(model, spec)
        self._groups = grouped(named) if spec.target in ("gradient", "weight") else []

    def batch(self, batch: Batch, magnitude: float, clock: Clock) -> Batch:
        """``batch`` with noisy images, or with labels drawn anew (of a mixed image, the first one)."""
        if self._acts("input", magnitude):
            generator = self._generator(batch.images.device, clock)
            return replace(batch, images=noisy_images(batch.images, self.spec, magnitude, generator))
        if self._acts("label", magnitude):
            generator = self._generator(batch.labels.device, clock)
            return replace(batch, labels=noisy_labels(batch.labels, self.classes, magnitude, generator))
        return batch

    @contextmanager
    def weights(self, magnitude: float, clock: Clock) -> Iterator[dict[str, Tensor]]:
        """Forward and backward, not the optimiser's step, belong inside. Gives what was added and stays, by name.

        That is nothing unless the noise is ``persistent``, and valid until the next noise. Else every weight gets
        its bits back at the end, also after an exception, and the noisy forward leaves BatchNorm's statistics alone
        (decision 23): as copies, since w + n - n is not w.
        """
        if not self._acts("weight", magnitude):
            yield {}
        elif self.spec.persistent:
            yield self._add_to_weights(magnitude, clock)
        else:
            clean = [group.keep_clean() for group in self._groups]
            try:
                self._add_to_weights(magnitude, clock)
                with frozen_statistics(self.model):
                    yield {}
            finally:
                with torch.no_grad():
                    for group, values in zip(self._groups, clean, strict=True):
                        torch._foreach_copy_(group.parameters, values)

    @torch.no_grad()
    def gradients(self, magnitude: float, clock: Clock) -> None:
        """Add noise to ``.grad`` in place, after the backward pass. Parameters without a gradient stay without."""
        if not self._acts("gradient", magnitude):
            return
        with self._measuring(clock, lambda: [p.grad for p in self._parameters() if p.grad is not None]):
            for group, noise in self._drawn(clock):
                pairs = [
                    (p.grad, n) for p, n in zip(group.parameters, noise, strict=True) if p.grad is not None
                ]
                if pairs:
                    _add_scaled([g for g, _ in pairs], [n for _, n in pairs], self.spec, magnitude)

    @torch.no_grad()
    def _add_to_weights(self, magnitude: float, clock: Clock) -> dict[str, Tensor]:
        added: dict[str, Tensor] = {}
        with self._measuring(clock, self._parameters):
            for group, noise in self._drawn(clock):
                _add_scaled(group.parameters, noise, self.spec, magnitude)
                added.update(zip(group.names, noise, strict=True))
        return added

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._groups for p in group.parameters]

    @contextmanager
    def _measuring(self, clock: Clock, acted_on: Callable[[], list[Tensor]]) -> Iterator[None]:
        self.norms = {}
        before = total_norm(acted_on()) if clock.step == 0 else None
        yield
        if before is not None:
            self.norms = {"norm_before": (before, 1), "norm_after": (total_norm(acted_on()), 1)}

    def _acts(self, target: str, magnitude: float) -> bool:
        if not 0 <= magnitude < math.inf:
            raise ValueError(f"a noise magnitude of {magnitude} is not a number from 0")
        if self.spec.target != target:
            return False
        if magnitude == 0:
            self.norms = {}
        return magnitude > 0

    def _drawn(self, clock: Clock) -> Iterator[tuple[Group, list[Tensor]]]:
        """Each group with numbers of variance 1 in the shapes of its parameters."""
        generators: dict[torch.device, torch.Generator] = {}
        for group in self._groups:
            device = group.flat.device
            if device not in generators:
                generators[device] = self._generator(device, clock)
            _fill(group.flat, self.spec.distribution, generators[device])
            yield group, group.noise

    def _generator(self, device: torch.device, clock: Clock) -> torch.Generator:
        """``stream(seed, "noise", ...)`` on ``device``: a GPU would wait for 11 million numbers of the CPU."""
        seed = stream_seed(self.seed, "noise", self.spec.target, clock.epoch, clock.step)
        return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Dose:
    """Noise of one magnitude, for the steps of an epoch: what ``fit`` asks for at its three places."""

    noise: Noise
    magnitude: float

    def batch(self, batch: Batch, clock: Clock) -> Batch:
        return self.noise.batch(batch, self.magnitude, clock)

    def weights(self, clock: Clock) -> AbstractContextManager[dict[str, Tensor]]:
        return self.noise.weights(self.magnitude, clock)

    def gradients(self, clock: Clock) -> None:
        self.noise.gradients(self.magnitude, clock)

    @property
    def norms(self) -> dict[str, tuple[Tensor, int]]:
        return self.noise.norms

    @property
    def on_weights(self) -> bool:
        """Whether gradients are taken at noisy weights."""
        return self.noise.spec.target == "weight" and self.magnitude > 0

    @property
    def freezes_statistics(self) -> bool:
        """Whether BatchNorm's running statistics stand still meanwhile."""
        return self.on_weights and not self.noise.spec.persistent


class NoNoise:
    """The ``Dose`` of a step without noise."""

    norms: ClassVar[dict[str, tuple[Tensor, int]]] = {}
    on_weights = freezes_statistics = False

    def batch(self, batch: Batch, clock: Clock) -> Batch:
        return batch

    def weights(self, clock: Clock) -> AbstractContextManager[dict[str, Tensor]]:
        return nullcontext({})

    def gradients(self, clock: Clock) -> None:
        pass


def noisy_images(images: Tensor, spec: NoiseSpec, magnitude: float, generator: torch.Generator) -> Tensor:
    """float ``[b c h w]`` with noise of ``spec``'s distribution and scale added; ``images`` stay as they are."""
    noise = torch.empty_like(images, memory_format=torch.contiguous_format)
    _fill(noise, spec.distribution, generator)
    return noise.mul_(_deviations([images], spec, magnitude)[0]).add_(images)


def noisy_labels(labels: Tensor, classes: int, magnitude: float, generator: torch.Generator) -> Tensor:
    """int64 ``[b]``: each label is drawn anew from all ``classes`` with probability p = min(0.5, ``magnitude``).

    The one drawn may be the old one, so a share p (1 - 1/classes) differs (adaptive-noise.md 5.6).
    """
    device = labels.device
    flipped = torch.rand(labels.shape, generator=generator, device=device) < min(MOST_FLIPPED, magnitude)
    drawn = torch.randint(classes, labels.shape, generator=generator, device=device)
    return torch.where(flipped, drawn, labels)


# ---- parameters by name, numbers by law -----------------------------------------------------------------------------


def _named(model: nn.Module, spec: NoiseSpec) -> dict[str, nn.Parameter]:
    """The parameters that ``spec`` names. ValueError for a layer that is in no name, and where nothing is left."""
    named = dict(model.named_parameters())
    known = dict.fromkeys(name.rpartition(".")[0] for name in named)
    for layer in spec.layers:
        if not any(layer in name for name in named):
            raise ValueError(f"no layer '{layer}' for noise; the layers are {', '.join(known)}")
    norms = {name for name, module in model.named_modules() if isinstance(module, _NormBase)}

    def wanted(name: str) -> bool:
        if name.rpartition(".")[0] in norms and not spec.batchnorm:
            return False
        if name.endswith("bias") and not spec.biases:
            return False
        return not spec.layers or any(layer in name for layer in spec.layers)

    chosen = {name: p for name, p in named.items() if wanted(name)}
    if not chosen:
        raise ValueError("no parameter is left for noise, with these layers and without BatchNorm or biases")
    return chosen


def _fill(flat: Tensor, distribution: str, generator: torch.Generator) -> None:
    """Independent numbers of mean 0 and variance 1."""
    if distribution == "gaussian":
        flat.normal_(generator=generator)
    else:
        flat.uniform_(-HALF_WIDTH, HALF_WIDTH, generator=generator)


def _add_scaled(tensors: list[Tensor], noise: list[Tensor], spec: NoiseSpec, magnitude: float) -> None:
    """Scale ``noise``, of variance 1, to what ``spec`` asks for and add it to ``tensors``; both change in place."""
    torch._foreach_mul_(noise, _deviations(tensors, spec, magnitude))
    torch._foreach_add_(tensors, noise)


def _deviations(tensors: list[Tensor], spec: NoiseSpec, magnitude: float) -> list[Tensor]:
    """The standard deviation of each tensor's noise, 0-dim in the dtype of ``tensors`` (one dtype and device)."""
    if spec.scale == "absolute":
        return [tensors[0].new_tensor(magnitude)] * len(tensors)
    norms = torch.stack(norms_of(tensors))
    roots = norms.new_tensor([math.sqrt(max(t.numel(), 1)) for t in tensors])
    return list((norms / roots * magnitude).to(tensors[0].dtype).unbind())
