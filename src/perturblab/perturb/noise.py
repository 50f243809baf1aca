"""Noise on gradients, weights, images or labels, and statistics that do not contain it (adaptive-noise.md 5.6).

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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from perturblab.images import Batch
from perturblab.objectives import Clock
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
    target does not use changes nothing. ValueError for a name that is none of the choices.
    """

    target: str
    distribution: str = "gaussian"
    scale: str = "relative"
    layers: tuple[str, ...] = ()
    persistent: bool = False

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
    """

    def __init__(self, model: nn.Module, spec: NoiseSpec, *, seed: int, classes: int) -> None:
        self.model, self.spec, self.seed, self.classes = model, spec, seed, classes
        named = _named(model, spec.layers)
        self._groups = _grouped(named) if spec.target in ("gradient", "weight") else []

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
        for group, noise in self._drawn(clock):
            pairs = [(p.grad, n) for p, n in zip(group.parameters, noise, strict=True) if p.grad is not None]
            if pairs:
                _add_scaled([g for g, _ in pairs], [n for _, n in pairs], self.spec, magnitude)

    @torch.no_grad()
    def _add_to_weights(self, magnitude: float, clock: Clock) -> dict[str, Tensor]:
        added: dict[str, Tensor] = {}
        for group, noise in self._drawn(clock):
            _add_scaled(group.parameters, noise, self.spec, magnitude)
            added.update(zip(group.names, noise, strict=True))
        return added

    def _acts(self, target: str, magnitude: float) -> bool:
        if not 0 <= magnitude < math.inf:
            raise ValueError(f"a noise magnitude of {magnitude} is not a number from 0")
        return self.spec.target == target and magnitude > 0

    def _drawn(self, clock: Clock) -> Iterator[tuple[_Group, list[Tensor]]]:
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


# ---- clean statistics ----------------------------------------------------------------------------------------------


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, 0-dim on their device; take it before noise is added. No gradient: 0."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(_norms(gradients))) if gradients else torch.zeros(())


@dataclass(frozen=True)
class EpochUpdate:
    """How far an epoch moved the weights beside what noise did: end - start - injected (decision 24).

    ``start``: the weights at the start of the epoch by name, which then move along with whatever is injected. So
    they are all that a checkpoint within the epoch has to keep.
    """

    start: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> EpochUpdate:
        """An epoch that starts from the model's weights, of which it keeps copies."""
        return cls({name: p.detach().clone() for name, p in model.named_parameters()})

    def inject(self, noise: dict[str, Tensor]) -> None:
        """``noise`` by parameter name (what ``Noise.weights`` gives) was added to the weights and stays there."""
        if noise:
            torch._foreach_add_([self.start[name] for name in noise], list(noise.values()))

    @torch.no_grad()
    def norm(self, model: nn.Module) -> Tensor:
        """L2 norm over all parameters of the model's clean displacement since the start, 0-dim on their device."""
        weights = dict(model.named_parameters())
        moved = torch._foreach_sub(list(weights.values()), [self.start[name] for name in weights])
        return torch.linalg.vector_norm(torch.stack(_norms(list(moved))))


# ---- all tensors at once -------------------------------------------------------------------------------------------


class _Group:
    """Parameters of one dtype on one device, and a flat buffer for their noise with a view for each."""

    def __init__(self, named: dict[str, nn.Parameter]) -> None:
        self.names = list(named)
        self.parameters: list[Tensor] = list(named.values())
        self.flat, self.noise = self._buffer()
        self._clean: list[Tensor] | None = None

    def keep_clean(self) -> list[Tensor]:
        """Copies of the parameters, in a buffer that the next call uses again."""
        if self._clean is None:
            _, self._clean = self._buffer()
        with torch.no_grad():
            torch._foreach_copy_(self._clean, self.parameters)
        return self._clean

    def _buffer(self) -> tuple[Tensor, list[Tensor]]:
        sizes = [p.numel() for p in self.parameters]
        first = self.parameters[0]
        flat = torch.empty(sum(sizes), dtype=first.dtype, device=first.device)
        return flat, [v.view(p.shape) for v, p in zip(flat.split(sizes), self.parameters, strict=True)]


def _named(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters whose name contains any of ``layers``. ValueError for one that is in no name."""
    named = dict(model.named_parameters())
    known = dict.fromkeys(name.rpartition(".")[0] for name in named)
    for layer in layers:
        if not any(layer in name for name in named):
            raise ValueError(f"no layer '{layer}' for noise; the layers are {', '.join(known)}")
    return {name: p for name, p in named.items() if not layers or any(layer in name for layer in layers)}


def _grouped(named: dict[str, nn.Parameter]) -> list[_Group]:
    groups: dict[tuple[torch.device, torch.dtype], dict[str, nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault((parameter.device, parameter.dtype), {})[name] = parameter
    return [_Group(group) for group in groups.values()]


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
    norms = torch.stack(_norms(tensors))
    roots = norms.new_tensor([math.sqrt(max(t.numel(), 1)) for t in tensors])
    return list((norms / roots * magnitude).to(tensors[0].dtype).unbind())


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """L2 norm of each, 0-dim float64 (Apple's GPUs have none: float32).

    Summed in float32 they are 3e-5 too small for ResNet18 on a CPU, and take 1.5 ms of a step of 750 instead of 7 to 11.
    """
    dtype = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    norms: list[Tensor] = list(torch._foreach_norm(tensors, 2, dtype=dtype))
    return norms
