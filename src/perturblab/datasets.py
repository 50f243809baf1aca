"""Data sets by name: ``load("cifar10")`` gives the train and the test images as two ImageSets.

The names are the keys of ``DATASETS``; ``folder``, ``parquet`` and ``npz`` take a path after a colon.

``digits`` are the 1,797 handwritten digits that scikit-learn bundles: E. Alpaydin and C. Kaynak, Optical Recognition
of Handwritten Digits, UCI Machine Learning Repository, prepared with NIST's programs, CC BY 4.0,
https://doi.org/10.24432/C50P49.
"""

from __future__ import annotations

import io
import math
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perturblab.cpus import cores
from perturblab.flags import dataset_of
from perturblab.imagefiles import Raw, folder, npz, parquet
from perturblab.images import ImageSet
from perturblab.terminal import UserError, say


class Constants(NamedTuple):
    """Mean and standard deviation per channel, for pixels in [0, 1], and the data set they are documented for."""

    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)

NORMALISATION: dict[str, Constants] = {
    "masked-loss": Constants("cifar10", CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
    "layerwise-mi": Constants("cifar10", CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
    "adaptive-noise": Constants("cifar10", CIFAR10_MEAN, (0.2471, 0.2435, 0.2616)),
    "first-layer-mi": Constants("cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "correction": Constants("mnist", (0.0,), (1.0,)),
}
"""What each study documents. The CIFAR-10 deviations differ: 0.2471 ... is that of all pixels, 0.2023 ... is not."""


def load(
    name: str,
    data_dir: str | os.PathLike[str] = "./data",
    *,
    documented: Constants | None = None,
    normalize: Literal["documented", "data"] = "documented",
    size: int | None = None,
    channels: int | None = None,
    workers: int | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The train and test images of the data set ``name``, on the CPU.

    ``documented`` constants, ``NORMALISATION[study]``, normalise the set they are documented for and what a user
    brings with as many channels; any other set, and every set under ``normalize="data"``, is normalised by the
    mean and the population deviation of its train pixels. Images are brought to ``size`` x ``size`` pixels
    (bilinear, as Pillow does) and 1 or 3 ``channels`` where these are given. Encoded images are decoded by up to
    ``workers`` threads (None: one per core) and kept in ``data_dir/decoded``.

    Raises UserError when the name is unknown, the data cannot be had, or its images or labels cannot be used.
    """
    if normalize not in ("documented", "data"):
        raise UserError(f"normalize is 'documented' or 'data', not {normalize!r}")
    if channels not in (None, 1, 3) or (size is not None and size < 1):
        raise UserError(f"images can have a size of 1 or more and 1 or 3 channels, not {size} and {channels}")
    reader, path = _reader(name)
    threads = max(1, cores() if workers is None else workers)
    raw = reader(path, Path(data_dir).expanduser(), threads)
    _check(raw, name)
    train, test = (_fit(_tensor(images), size, channels) for images in (raw.train, raw.test))
    if normalize == "documented" and documented is not None and _applies(documented, name, raw):
        mean, std = documented.mean, documented.std
    else:
        mean, std = _statistics(train, name)

    def image_set(images: Tensor, labels: np.ndarray) -> ImageSet:
        return ImageSet(images, torch.tensor(labels, dtype=torch.int64), raw.classes, mean, std)

    return image_set(train, raw.train_labels), image_set(test, raw.test_labels)


def _applies(documented: Constants, name: str, raw: Raw) -> bool:
    brought = ":" in name and raw.train.shape[3] == len(documented.mean)
    return brought or name == documented.dataset


def _check(raw: Raw, name: str) -> None:
    if raw.train.shape[1:] != raw.test.shape[1:]:
        raise UserError(
            f"{name}: train images are {list(raw.train.shape[1:])}, test images {list(raw.test.shape[1:])}"
            " (height, width, channels): give them one shape"
        )
    for split, images, labels in (
        ("train", raw.train, raw.train_labels),
        ("test", raw.test, raw.test_labels),
    ):
        if not 0 < len(images) == len(labels):
            raise UserError(f"{name}: {len(images)} {split} images and {len(labels)} labels do not match")
        wrong = (labels < 0) | (labels >= len(raw.classes))
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{name}: {split} label {labels[row]} in row {row}; labels go from 0 to {len(raw.classes) - 1}"
            )


def _tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _fit(images: Tensor, size: int | None, channels: int | None) -> Tensor:
    """uint8 ``[n c h w]`` with the wanted size and channels."""
    if channels == 1 and images.shape[1] == 3:
        r, g, b = images.int().unbind(1)  # the weights of ITU-R 601, rounded as Pillow does
        images = (r * 19595 + g * 38470 + b * 7471 + 0x8000 >> 16).byte()[:, None]
    if size is not None and images.shape[2:] != (size, size):
        # Integer arithmetic for uint8: the same bits with any number of threads or instruction set.
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    if channels == 3 and images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1).contiguous()
    return images


def _statistics(images: Tensor, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population deviation per channel."""
    mean, std = [], []
    for channel in images.unbind(1):
        # From counts of the 256 values, in integers: the same floats, and so the same digest, on every machine.
        counts = list(enumerate(torch.bincount(channel.flatten(), minlength=256).tolist()))
        n, total, squares = channel.numel(), sum(v * k for v, k in counts), sum(v * v * k for v, k in counts)
        mean.append(total / (255 * n))
        std.append(math.sqrt(n * squares - total**2) / (255 * n))
    if min(std) == 0:
        raise UserError(f"{name}: all train pixels of a channel are equal, there is nothing to learn from")
    return tuple(mean), tuple(std)


def _torchvision(kind: str, path: str, data_dir: Path, workers: int) -> Raw:
    """A data set that torchvision knows: from its files in ``data_dir``, else downloaded into it."""
    import torchvision.datasets  # 2.5 s, so only here

    make = getattr(torchvision.datasets, kind)
    with suppress(Exception):  # not there, or not whole: the download mends it or says why not
        return _raw(make, data_dir, download=False)
    say(f"downloading {kind} into {data_dir}")
    try:
        with (
            _alone(data_dir),
            _impatient(),
            redirect_stdout(io.StringIO()),
        ):  # torchvision prints what it tries
            return _raw(make, data_dir, download=True)
    except Exception as error:  # network, proxy, archive, permission: each fails in its own way
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{kind} is not complete in {data_dir} and cannot be downloaded ({type(error).__name__}: {reason}):"
            " put the files that torchvision reads there, or use parquet:PREFIX, folder:PATH or npz:PATH"
        ) from None


def _raw(make: Callable[..., Any], data_dir: Path, download: bool) -> Raw:
    train, test = (make(data_dir, train=train, download=download) for train in (True, False))
    h, w = train.data.shape[1:3]
    images = [np.asarray(part.data).reshape(len(part.data), h, w, -1) for part in (train, test)]
    labels = [np.asarray(part.targets, np.int64) for part in (train, test)]
    return Raw(images[0], labels[0], images[1], labels[1], tuple(train.classes))


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Of the runs that start together one downloads; the others wait, and find it done."""
    data_dir.mkdir(parents=True, exist_ok=True)
    with open(data_dir / ".download.lock", "w") as file:
        with suppress(ImportError, OSError):  # Windows and some network file systems lack such locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _impatient(seconds: float = 10.0) -> Iterator[None]:
    """A host that does not answer is given up soon: the default waits for minutes, mirror by mirror."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _digits(path: str, data_dir: Path, workers: int) -> Raw:
    """8x8 gray; every fifth image of each class is test: 1,433 and 364 (writers occur in both)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.zeros(len(images), bool)
    for label in range(10):
        test[np.flatnonzero(digits.target == label)[::5]] = True
    classes = tuple(str(label) for label in range(10))
    return Raw(images[~test], digits.target[~test], images[test], digits.target[test], classes)


Reader = Callable[[str, Path, int], Raw]
"""``(what stands after the colon, data_dir, threads) -> Raw``."""

DATASETS: dict[str, Reader] = {
    "cifar10": partial(_torchvision, "CIFAR10"),
    "cifar100": partial(_torchvision, "CIFAR100"),
    "mnist": partial(_torchvision, "MNIST"),
    "fashion-mnist": partial(_torchvision, "FashionMNIST"),
    "digits": _digits,
    "folder:PATH": folder,
    "parquet:PREFIX": parquet,
    "npz:PATH": npz,
}


def _reader(name: str) -> tuple[Reader, str]:
    try:
        key, path = dataset_of(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    return DATASETS[key], path
