"""What a checkpoint of a training run holds: network, optimiser, where it stands, the sums of the epoch, the best weights."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from perturblab.checkpoints import to_bytes
from perturblab.perturb.clean import EpochUpdate
from perturblab.sites import SteppedModel


@dataclass
class Best:
    """Weights that the loop's body asks to keep: ``best.keep(model)`` after an epoch that beats all before it.

    They stand in the checkpoints, so a killed run that goes back some epochs has those that were the best then.
    """

    weights: dict[str, Tensor] | None = None

    def keep(self, model: SteppedModel) -> None:
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}


@dataclass
class State:
    """Everything that a checkpoint holds. ``step`` steps of ``epoch`` are done; sums are float64 on the device.

    ``update``: the weights that the epoch began with, where its update is measured.
    """

    model: SteppedModel
    optimizer: Optimizer
    best: Best
    epoch: int = 1
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    first_bad: Tensor | None = None
    update: EpochUpdate | None = None

    def dump(self) -> bytes:
        content = {
            "epoch": self.epoch,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums,
            "counts": self.counts,
            "best": self.best.weights,
            "start": self.update and self.update.start,
        }
        return to_bytes(content)

    def load(self, data: bytes, device: torch.device) -> None:
        content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.step = content["epoch"], content["step"]
        self.sums, self.counts = content["sums"], content["counts"]
        self.best.weights = content.get("best")  # these two are absent in states of before
        self.update = EpochUpdate(content["start"]) if content.get("start") else None

    def start_epoch(self, epoch: int) -> None:
        self.epoch, self.step, self.sums, self.counts, self.update = epoch, 0, {}, {}, None

    def add(self, parts: dict[str, tuple[Tensor, int]]) -> None:
        for name, (total, n) in parts.items():
            total = total.detach().to(torch.float32 if total.device.type == "mps" else torch.float64)
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.counts[name] = self.counts.get(name, 0) + n

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}
