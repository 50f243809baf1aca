"""The correction experiment as a script would do it (correction.md 4.5), the thing that benchmarks/correction.py compares with.

Stock PyTorch: a TensorDataset, a batch sampler that yields lists of indices, a DataLoader, ``nn.Sequential`` in the default layout, Adam as torch
chooses it, ``.item()`` for each metric of each batch, and cells one after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import ConcatDataset, DataLoader, Sampler, TensorDataset

RATES, LOSSES, LAMBDAS, POOLS = (0.01, 0.001), ("balanced", "imbalanced"), (1.0, 2.0), (100, 500)


class PlainCNN(nn.Module):
    """The document's network out of PyTorch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images))
        return logits


class MixedBatches(Sampler[list[int]]):
    """60 indices of the confounded images, then 4 of the corrected ones, which follow them in the data set."""

    def __init__(self, confounded: int, corrected: int, batch: int = 64, k: int = 4) -> None:
        self.n, self.m, self.batch, self.k = confounded, corrected, batch, k

    def __len__(self) -> int:
        return self.n // (self.batch - self.k)

    def __iter__(self) -> Iterator[list[int]]:
        order, pool = torch.randperm(self.n).tolist(), torch.randperm(self.m).tolist()
        taken, each = 0, self.batch - self.k
        for step in range(len(self)):
            corrected = [self.n + pool[(taken + i) % self.m] for i in range(self.k)]
            taken += self.k
            yield order[step * each : (step + 1) * each] + corrected


class PlainCell:
    """One combination: its data, network and optimiser."""

    def __init__(
        self, inputs: Tensor, labels: Tensor, masks: Tensor, rate: float, loss: str, weight: float, pool: int
    ) -> None:
        eights = (labels.argmax(1) == 1).nonzero()[:, 0]
        chosen = eights[torch.randint(len(eights), (pool,))]
        corrected = TensorDataset(inputs[chosen] * (1 - masks[chosen]), labels[chosen])
        both = ConcatDataset([TensorDataset(inputs, labels), corrected])
        self.loader = DataLoader(both, batch_sampler=MixedBatches(len(inputs), pool))
        self.model, self.balanced, self.weight = PlainCNN(), loss == "balanced", weight
        self.adam = torch.optim.Adam(self.model.parameters(), lr=rate)

    def epoch(self) -> tuple[float, float]:
        """Mean loss and accuracy of a training epoch."""
        self.model.train()
        total = hits = seen = 0.0
        for images, targets in self.loader:
            wanted = targets.argmax(dim=-1)
            is_corrected = torch.zeros(len(images), dtype=torch.bool)
            is_corrected[-4:] = True
            logits = self.model(images)
            each = cross_entropy(logits, wanted, reduction="none")
            loss = (
                each[~is_corrected].mean() + self.weight * each[is_corrected].mean()
                if self.balanced
                else each.mean()
            )
            self.adam.zero_grad()
            loss.backward()
            self.adam.step()
            total += loss.item()
            hits += (logits.argmax(1) == wanted).sum().item()
            seen += len(images)
        return total / len(self.loader), hits / seen

    def evaluate(self, loader: DataLoader[tuple[Tensor, ...]]) -> tuple[float, float]:
        self.model.eval()
        total = hits = seen = 0.0
        with torch.no_grad():
            for images, targets in loader:
                logits, wanted = self.model(images), targets.argmax(dim=-1)
                total += cross_entropy(logits, wanted).item() * len(images)
                hits += (logits.argmax(1) == wanted).sum().item()
                seen += len(images)
        return total / seen, hits / seen


def grid(sets: dict[str, dict[str, Tensor]], epochs: int) -> None:
    """The 12 cells of the full grid, one after another, at a fixed number of epochs."""
    train, test = sets["train"], sets["original"]
    split = int(0.4 * len(test["inputs"]))
    val, rest = (
        DataLoader(TensorDataset(test["inputs"][part], test["labels"][part]), batch_size=64)
        for part in (slice(split), slice(split, None))
    )
    for rate, loss, weight, pool in product(RATES, LOSSES, LAMBDAS, POOLS):
        if loss == "imbalanced" and weight != LAMBDAS[0]:
            continue
        cell = PlainCell(train["inputs"], train["labels"], train["masks"], rate, loss, weight, pool)
        for _ in range(epochs):
            cell.epoch()
            cell.evaluate(val)
        for loader in (cell.loader, val, rest):
            cell.evaluate(loader)
