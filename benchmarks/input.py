"""Training images per second, shuffled, cropped, mirrored, normalised: ShuffledSource against torchvision's way.

    python benchmarks/input.py [--dataset parquet:/data/cifar10] [--threads 1] [--n 5] [--json]

The other way is the usual one: a Dataset of PIL images, RandomCrop, RandomHorizontalFlip, ToTensor, Normalize, and a
DataLoader, with one worker process per core (kept between epochs) and with none. Ours runs on one thread;
more pay on an idle machine only (beside other work they wait for each other).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import count

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from _table import Figure, alternate, parser, show
from perturblab.augment import crop_flip
from perturblab.cpus import cores
from perturblab.datasets import NORMALISATION, load
from perturblab.images import ImageSet, ShuffledSource

BATCH = 128


class PilImages(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's CIFAR10 hands them out: one at a time, as PIL, through ``transform``."""

    def __init__(self, data: ImageSet) -> None:
        self.pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def images(dataset: str | None, data_dir: str, n: int) -> ImageSet:
    constants = NORMALISATION["masked-loss"]
    if dataset:
        return load(dataset, data_dir, documented=constants, size=32, channels=3)[0][:n]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % 10
    return ImageSet(pixels, labels, tuple("0123456789"), constants.mean, constants.std)


def figures(data: ImageSet, n: int) -> Iterator[Figure]:
    source = ShuffledSource(data, BATCH, seed=0, augment=crop_flip)
    epochs = count()

    def ours() -> None:
        deque(source.epoch(next(epochs)), maxlen=0)

    for workers in (cores(), 0):
        # spawn: a process forked after torch has used its threads can hang.
        loader: DataLoader[tuple[torch.Tensor, int]] = DataLoader(
            PilImages(data),
            BATCH,
            shuffle=True,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
        )
        fast, slow, ratio = alternate(ours, partial(deque, loader, maxlen=0), n)
        rival = f"DataLoader, {workers} workers"
        yield Figure("input: ShuffledSource + crop_flip", "images/s", n, value=len(data) / fast)
        yield Figure(f"input: {rival}", "images/s", n, value=len(data) / slow)
        yield Figure(f"input: ShuffledSource over {rival}", "times the images/s", n, ratio=ratio)


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--dataset", help="name of a data set for load(); default: random pixels")
    arguments.add_argument("--data-dir", default="./data")
    arguments.add_argument("--images", type=int, default=20_000, help="images per epoch")
    arguments.add_argument("--n", type=int, default=5, help="pairs of epochs")
    arguments.add_argument("--threads", type=int, default=1, help="threads of ShuffledSource")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    show(figures(images(given.dataset, given.data_dir, given.images), given.n), given.json)


if __name__ == "__main__":
    main()
