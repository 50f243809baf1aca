"""Many tensors at once: buffers for their noise, and their lengths."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Group:
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


def grouped(named: dict[str, nn.Parameter]) -> list[Group]:
    groups: dict[tuple[torch.device, torch.dtype], dict[str, nn.Parameter]] = {}
    for name, parameter in named.items():
        groups.setdefault((parameter.device, parameter.dtype), {})[name] = parameter
    return [Group(group) for group in groups.values()]


def total_norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm of all together, 0-dim on their device; 0 of none."""
    return torch.linalg.vector_norm(torch.stack(norms_of(tensors))) if tensors else torch.zeros(())


def norms_of(tensors: list[Tensor]) -> list[Tensor]:
    """L2 norm of each, 0-dim float64 (Apple's GPUs have none: float32).

    Summed in float32 they are 3e-5 too small for ResNet18 on a CPU, and take 1.5 ms of a step of 750 instead of 7 to 11.
    """
    dtype = torch.float32 if tensors[0].device.type == "mps" else torch.float64
    norms: list[Tensor] = list(torch._foreach_norm(tensors, 2, dtype=dtype))
    return norms
