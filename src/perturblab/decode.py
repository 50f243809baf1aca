"""Encoded images to one array of pixels: decoded once, then read from a checked cache.

60,000 CIFAR-10 images: 12 s the first time, 1 s from the cache.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import PIL
from PIL import Image

from perturblab.files import read_checked, write_checked
from perturblab.terminal import UserError, progress, say, warn

# Pillow lets go of the interpreter's lock only while it decompresses. Two threads took 0.5 times as long as one
# for images of 224x224, and 1.4 times as long for images of 32x32, which are mostly Python.
SMALL = 64 * 64
CHUNK = 256  # images per task of a thread


@dataclass(frozen=True)
class Encoded:
    """Encoded images of one source: the files that hold them, how many, and how to get at each one."""

    files: list[Path]
    count: int
    fetch: Callable[[int], bytes]
    where: Callable[[int], str]  # names one image in an error: its file, or its file and row


def decode(source: Encoded, data_dir: Path, workers: int) -> np.ndarray:
    """All images of ``source`` as uint8 ``[n h w c]``, c = 1 if every image is gray, else 3 (alpha is dropped).

    Decodes with up to ``workers`` threads and keeps the result in ``data_dir/decoded``, found again by the
    paths, sizes and times of the files. A cached file that is damaged is made anew; a folder that cannot be
    written costs a warning. Raises UserError naming the image that cannot be read or is of another size.
    """
    path = data_dir / "decoded" / f"{_identity(source.files)}.npy"
    pixels = _read(path)
    if pixels is None:
        pixels = _decode_all(source, workers)
        _write(path, pixels)
    return pixels


def _decode_all(source: Encoded, workers: int) -> np.ndarray:
    def decode_some(begin: int) -> list[np.ndarray]:
        stop = min(begin + CHUNK, source.count)
        return [_pixels(source, i) for i in range(begin, stop)]

    first = _pixels(source, 0)
    threads = 1 if first[..., 0].size <= SMALL else workers
    images: list[np.ndarray] = []
    with ThreadPoolExecutor(threads) as pool, progress("decoding images", source.count) as advance:
        for chunk in pool.map(decode_some, range(0, source.count, CHUNK)):
            images += chunk
            advance(len(images))
    return _stack(images, source.where)


def _pixels(source: Encoded, i: int) -> np.ndarray:
    """Image ``i`` as uint8 ``[h w c]``, c = 1 for gray, else 3."""
    try:
        image = Image.open(io.BytesIO(source.fetch(i)))
        if image.format == "EPS":  # a program for a printer, for which Pillow starts Ghostscript
            raise ValueError("EPS")
        image.load()
        if image.mode[0] not in "IF":  # those have more than 8 bits per pixel
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            return np.atleast_3d(np.asarray(image if image.mode == mode else image.convert(mode)))
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise UserError(
            f"{source.where(i)} cannot be read as an image ({error}): repair or remove it"
        ) from None
    raise UserError(f"{source.where(i)} has more than 8 bits per channel (mode {image.mode}): save it with 8")


def _stack(images: list[np.ndarray], where: Callable[[int], str]) -> np.ndarray:
    height, width, _ = images[0].shape
    for i, image in enumerate(images):
        if image.shape[:2] != (height, width):
            h, w, _ = image.shape
            raise UserError(
                f"{where(i)} is {w}x{h} pixels, {where(0)} is {width}x{height}: give all images one size"
            )
    channels = max(image.shape[2] for image in images)
    pixels = np.empty((len(images), height, width, channels), np.uint8)
    for i, image in enumerate(images):
        pixels[i] = image  # a gray image among coloured ones is spread over the three channels
    return pixels


def _identity(files: list[Path]) -> str:
    """What the pixels depend on: the files as they stand, and the decoder."""
    h = hashlib.sha256(PIL.__version__.encode())
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:  # a link to nowhere
            raise UserError(
                f"cannot read {file}: {error.strerror}; remove it, or bring what it is a link to"
            ) from None
        h.update(repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
    return h.hexdigest()[:32]


def _read(path: Path) -> np.ndarray | None:
    try:
        data = read_checked(path)
    except UserError:  # not readable: where the folder is at fault, writing will say so
        return None
    if data is not None:
        return cast(np.ndarray, np.load(io.BytesIO(data), allow_pickle=False))
    if path.exists():
        say(f"{path} is damaged: decoding the images again")
    return None


def _write(path: Path, pixels: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, pixels)
    try:
        write_checked(path, data.getvalue())
    except UserError as error:
        warn(f"the decoded images are not kept, the next run decodes them again ({error})")
