"""Taps for models that are not ours, through hooks that exist only while a forward pass runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.settings import nearest
from perturblab.sites import At, Site, Tap, constant_of, evaluating


class Hooked:
    """Taps for a model that is not ours: exact, not fast, eager only. Sites are modules by their own names.

    ``Hooked(model, {"conv1": "layer1.0.conv1"}).forward(images, tap)``. A module that is used twice calls the tap
    at each use. Raises ValueError for a module that does not exist. Hooks exist only while ``forward`` runs.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, str]) -> None:
        named = dict(model.named_modules())
        for module in modules.values():
            if module not in named:
                raise ValueError(f"no module '{module}'{nearest(module, named)}")
        self.model = model
        self._modules = {name: (module, named[module]) for name, module in modules.items()}

    def forward(self, images: Tensor, tap: Tap | None = None) -> Tensor:
        known = {word for name, (module, _) in self._modules.items() for word in (name, module)}
        if isinstance(tap, At) and tap.site not in known:
            raise ValueError(f"no site '{tap.site}'{nearest(tap.site, self._modules)}")
        handles = [] if tap is None else [self._hook(tap, *entry) for entry in self._entries()]
        try:
            logits: Tensor = self.model(images)
            return logits
        finally:
            for handle in handles:
                handle.remove()

    __call__ = forward

    def sites(self, images: Tensor) -> list[Site]:
        """The hooked sites with the shapes that they have for ``images``, in the order of their first use."""
        seen: dict[str, Site] = {}

        def tap(at: Site, activation: Tensor) -> Tensor:
            seen.setdefault(at.name, at)
            return activation

        with evaluating(self.model):
            self.forward(images[:1], tap)
        return list(seen.values())

    def weight_fill(self, name: str) -> Tensor:
        """What zeroing the weights of the module leaves at its output: its bias, ``[width]``. ValueError if it has none."""
        path, module = next(
            (entry for site, entry in self._modules.items() if name in (site, entry[0])), (name, None)
        )
        if module is None:
            raise ValueError(f"no site '{name}'{nearest(name, self._modules)}")
        if not isinstance(module, nn.Conv2d | nn.Linear):
            raise ValueError(f"'{path}' is neither a convolution nor linear: fill it with zero or the mean")
        return constant_of(module).flatten()

    def _entries(self) -> list[tuple[str, str, nn.Module]]:
        return [(name, path, module) for name, (path, module) in self._modules.items()]

    @staticmethod
    def _hook(tap: Tap, name: str, path: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return tap(Site(name, path, tuple(output.shape[1:])), output)

        return module.register_forward_hook(hook)
