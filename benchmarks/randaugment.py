"""Images per second through RandAugment(2, 9): ours, a batch at once, against torchvision's, one Pillow image at a time.

    python benchmarks/randaugment.py [--dataset parquet:../shared/data/cifar10-jpeg] [--threads 1] [--n 9] [--json]

Ours gets the uint8 images that ShuffledSource augments at a time; torchvision gets Pillow images that are already
made, and making tensors of its results is not counted. Both run on ``--threads`` threads (Pillow uses one).
The second pair is the whole input of ``first-layer-mi`` in one process: crop, flip, RandAugment, normalise, shuffle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import count

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from _table import Figure, alternate, parser, show
from input import PilImages
from perturblab.augment import AUGMENTS
from perturblab.datasets import NORMALISATION, load
from perturblab.images import ImageSet, ShuffledSource
from perturblab.randaugment import randaugment
from perturblab.streams import stream

BATCH = 256


def alone(data: ImageSet, n: int) -> Iterator[Figure]:
    stretch = ShuffledSource.STRETCH_BYTES // data.images[0].numel()
    batches = data.images.split(stretch)
    pictures = [Image.fromarray(pixels) for pixels in data.images.permute(0, 2, 3, 1).contiguous().numpy()]
    theirs, draws = transforms.RandAugment(num_ops=2, magnitude=9), stream(0, "benchmark")

    def ours() -> None:
        deque((randaugment(batch, draws) for batch in batches), maxlen=0)

    fast, slow, ratio = alternate(ours, lambda: deque(map(theirs, pictures), maxlen=0), n)
    yield Figure("randaugment: ours", "images/s", n, value=len(data) / fast)
    yield Figure("randaugment: torchvision on Pillow images", "images/s", n, value=len(data) / slow)
    yield Figure("randaugment: ours over torchvision", "times the images/s", n, ratio=ratio)


def whole_input(data: ImageSet, n: int) -> Iterator[Figure]:
    source = ShuffledSource(data, BATCH, seed=0, augment=AUGMENTS["crop-flip-rand"])
    usual = PilImages(data)
    steps = usual.transform.transforms
    usual.transform = transforms.Compose([*steps[:2], transforms.RandAugment(2, 9), *steps[2:]])
    loader: DataLoader[tuple[torch.Tensor, int]] = DataLoader(usual, BATCH, shuffle=True)
    epochs = count()

    def ours() -> None:
        deque(source.epoch(next(epochs)), maxlen=0)

    fast, slow, ratio = alternate(ours, partial(deque, loader, maxlen=0), n)
    yield Figure("input with RandAugment: ShuffledSource", "images/s", n, value=len(data) / fast)
    yield Figure("input with RandAugment: DataLoader, 0 workers", "images/s", n, value=len(data) / slow)
    yield Figure("input with RandAugment: ours over DataLoader", "times the images/s", n, ratio=ratio)


def figures(data: ImageSet, n: int) -> Iterator[Figure]:
    yield from alone(data, n)
    yield from whole_input(data, n)


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--dataset", default="digits", help="name of a data set for load()")
    arguments.add_argument("--data-dir", default="./data")
    arguments.add_argument("--images", type=int, default=10_000, help="images of the set at most")
    arguments.add_argument("--n", type=int, default=9, help="pairs of passes")
    arguments.add_argument("--threads", type=int, default=1, help="threads of torch")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    constants = NORMALISATION["masked-loss"]
    data = load(given.dataset, given.data_dir, documented=constants, size=32, channels=3)[0]
    show(figures(data[: given.images], given.n), given.json)


if __name__ == "__main__":
    main()
