"""A run of adaptive-noise as a script would do it (adaptive-noise.md 5.5, 5.6), the thing that benchmarks/noise.py compares with.

Stock PyTorch and torchvision, nothing of ours: Pillow images one at a time through RandomCrop, RandomHorizontalFlip, ToTensor and
Normalize in a DataLoader, SGD as torch chooses it, a scheduler stepped per batch, noise tensor by tensor, ``.item()`` per batch for
loss and hits, per tensor and batch for the gradient norm. As a program it takes an epoch when told, and says how many images it
trained on, how many it validated with, and the seconds of processor time, its DataLoader's processes included:

    python _plain_noise.py IMAGES.npz DEVICE THREADS       then lines NOISE WORKERS on its standard input, as in ``gradient 2``
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

Example = tuple[Tensor, int]


class Pictures(Dataset[Example]):
    """uint8 pixels ``[n h w c]`` and labels ``[n]`` as torchvision's CIFAR10 hands them out."""

    def __init__(
        self, pixels: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.pixels, self.labels, self.transform = pixels, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class PlainBabyCNN(nn.Module):
    """The document's network out of PyTorch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.pool, self.fc1 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.MaxPool2d(2, 2),
            nn.Linear(2048, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc1(self.pool(torch.relu(self.conv1(images))).flatten(1))
        return logits


class PlainRun:
    """Network, optimiser and loaders; ``noise`` is ``none`` or ``gradient`` (gaussian, relative to each gradient's size)."""

    def __init__(self, data: dict[str, np.ndarray], noise: str, workers: int, device: torch.device) -> None:
        self.noise, self.device = noise, device
        normalise = [transforms.ToTensor(), transforms.Normalize(data["mean"].tolist(), data["std"].tolist())]
        augmented = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), *normalise]
        batch = int(data["batch"])

        def loader(
            part: str, steps: list[Callable[[Image.Image], Tensor]], training: bool
        ) -> DataLoader[Example]:
            pictures = Pictures(data[f"{part}_pixels"], data[f"{part}_labels"], transforms.Compose(steps))
            return DataLoader(
                pictures, batch, shuffle=training, drop_last=training, num_workers=workers, persistent_workers=workers > 0,
                multiprocessing_context="spawn" if workers else None, pin_memory=device.type == "cuda",
            )  # fmt: skip

        self.train, self.val = loader("train", augmented, True), loader("val", normalise, False)
        self.model = PlainBabyCNN().to(device)
        self.sgd = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3, nesterov=True
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.sgd, 50 * len(self.train))

    def epoch(self) -> tuple[int, int]:
        """Train, then validate: how many images of each."""
        before = [p.detach().clone() for p in self.model.parameters()]
        trained = self.train_epoch()
        update = (
            sum(
                (p.detach() - b).norm().item() ** 2
                for p, b in zip(self.model.parameters(), before, strict=True)
            )
            ** 0.5
        )
        momentum = np.mean([state["momentum_buffer"].norm().item() for state in self.sgd.state.values()])
        assert np.isfinite([update, momentum]).all()
        return trained, self.validate()

    def train_epoch(self) -> int:
        self.model.train()
        losses, norms, hits, seen = [], [], 0, 0
        for images, labels in self.train:
            images, labels = images.to(self.device), labels.to(self.device)
            self.sgd.zero_grad()
            logits = self.model(images)
            loss = cross_entropy(logits, labels)
            loss.backward()
            norms.append(sum(p.grad.norm().item() ** 2 for p in self.model.parameters()) ** 0.5)
            if self.noise == "gradient":
                self.add_noise()
            self.sgd.step()
            self.schedule.step()
            losses.append(loss.item())
            hits += (logits.argmax(1) == labels).sum().item()
            seen += len(labels)
        assert np.isfinite([np.mean(losses), np.mean(norms), hits / seen]).all()
        return seen

    def add_noise(self, magnitude: float = 0.01) -> None:
        for p in self.model.parameters():
            root_mean_square = p.grad.norm().item() / p.grad.numel() ** 0.5
            p.grad += torch.randn_like(p.grad) * magnitude * root_mean_square

    def validate(self) -> int:
        self.model.eval()
        total, by_class, counts = 0.0, torch.zeros(10), torch.zeros(10)
        with torch.no_grad():
            for images, labels in self.val:
                images, labels = images.to(self.device), labels.to(self.device)
                logits = self.model(images)
                total += cross_entropy(logits, labels).item() * len(labels)
                right = labels[logits.argmax(1) == labels]
                by_class += torch.bincount(right, minlength=10).cpu()
                counts += torch.bincount(labels, minlength=10).cpu()
        return int(counts.sum())


def processor_time() -> float:
    """Seconds of this process, and where there is /proc of its DataLoaders' too."""
    ticks = 0
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            ticks += sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    path, device, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with np.load(path) as file:
        data = dict(file)

    @cache
    def run(noise: str, workers: int) -> PlainRun:
        return PlainRun(data, noise, workers, torch.device(device))

    for line in sys.stdin:
        noise, workers = line.split()
        one, began = run(noise, int(workers)), processor_time()
        print(*one.epoch(), processor_time() - began, flush=True)


if __name__ == "__main__":
    main()
