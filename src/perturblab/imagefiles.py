"""Image sets that a user brings: a folder of images, parquet files, an npz file."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from perturblab.decode import Encoded, decode
from perturblab.terminal import UserError


class Raw(NamedTuple):
    """What a reader gives: train and test, images uint8 ``[n h w c]``, labels int64 ``[n]``, names by label."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


LAYOUT = "expected PATH/train/CLASS/* and PATH/test/CLASS/*"


def folder(path: str, data_dir: Path, workers: int) -> Raw:
    """``PATH/{train,test}/CLASS/*``: the classes are the folders of train, sorted; hidden files are left out.

    Raises UserError where the layout differs or an image cannot be used.
    """
    root = Path(path).expanduser().resolve()
    classes = _visible(root / "train")
    unknown = [name for name in _visible(root / "test") if name not in classes]
    if unknown:
        raise UserError(f"{root}/test has the class {unknown[0]!r} that train lacks: {', '.join(classes)}")
    train, test = (_labelled(root / split, classes) for split in ("train", "test"))
    files = [file for file, _ in train + test]
    source = Encoded(files, len(files), lambda i: files[i].read_bytes(), lambda i: str(files[i]))
    labels = np.array([label for _, label in train + test])
    return _split(decode(source, data_dir, workers), labels, len(train), tuple(classes))


def _labelled(split: Path, classes: list[str]) -> list[tuple[Path, int]]:
    found = [
        (split / name / file, label)
        for label, name in enumerate(classes)
        if (split / name).exists()  # test may lack a class
        for file in _visible(split / name)
    ]
    if not found:
        raise UserError(f"{split} has no images: {LAYOUT}")
    return found


def _visible(path: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {LAYOUT}") from None


def _split(images: np.ndarray, labels: np.ndarray, n_train: int, classes: tuple[str, ...]) -> Raw:
    return Raw(images[:n_train], labels[:n_train], images[n_train:], labels[n_train:], classes)


class _Shard(NamedTuple):
    file: Path
    images: Any  # pyarrow.ChunkedArray of encoded images
    labels: np.ndarray
    names: tuple[str, ...] | None


def parquet(prefix: str, data_dir: Path, workers: int) -> Raw:
    """``PREFIX-train*.parquet`` and ``PREFIX-test*.parquet``, each one file or all of its numbered shards.

    A column ``img`` or ``image`` holds encoded images (bytes, or a struct with ``bytes``), a column ``label`` or
    ``fine_label`` integers. Class names come from the schema's metadata as the datasets library writes it, else
    they are numbers. Raises UserError where something is missing or cannot be used.
    """
    train, test = ([_shard(file) for file in _shards(prefix, split)] for split in ("train", "test"))
    shards = train + test
    rows = [(shard, row) for shard in shards for row in range(len(shard.labels))]
    n_train = sum(len(shard.labels) for shard in train)
    if not 0 < n_train < len(rows):
        raise UserError(f"parquet:{prefix}: the {'test' if n_train else 'train'} files hold no rows")

    def fetch(i: int) -> bytes:
        shard, row = rows[i]
        return shard.images[row].as_py() or b""

    def where(i: int) -> str:
        return f"{rows[i][0].file} row {rows[i][1]}"

    names = {shard.names for shard in shards if shard.names}
    if len(names) > 1:
        raise UserError(f"parquet:{prefix}: the files name different classes: bring files of one data set")
    images = decode(Encoded([s.file for s in shards], len(rows), fetch, where), data_dir, workers)
    labels = np.concatenate([shard.labels for shard in shards])
    return _split(images, labels, n_train, names.pop() if names else _numbers(labels))


def _shards(prefix: str, split: str) -> list[Path]:
    stem = str(Path(prefix).expanduser())
    found = sorted(Path(p).resolve() for p in glob.glob(f"{glob.escape(stem)}-{split}*.parquet"))
    if not found:
        raise UserError(f"no file {stem}-{split}*.parquet: give parquet: the path up to -train and -test")
    numbered = [re.search(r"-(\d{5})-of-(\d{5})(-[0-9a-f]+)?\.parquet$", file.name) for file in found]
    have = [(int(m[1]), int(m[2])) for m in numbered if m]
    if len(found) == 1 and not have:
        return found
    total = have[0][1] if have else 0
    if len(have) != len(found) or {of for _, of in have} != {total} or len(set(have)) != len(have):
        names = ", ".join(file.name for file in found)
        raise UserError(f"{stem}-{split}*.parquet: {names} are not one set of shards: leave one set there")
    missing = sorted(set(range(total)) - {number for number, _ in have})
    if missing:
        raise UserError(f"{stem}-{split}: shard {missing[0]:05d} of {total} is missing: bring all {total}")
    return found


def _shard(file: Path) -> _Shard:
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError("parquet files need pyarrow: pip install perturblab[parquet]") from None
    try:
        schema = pq.read_schema(file)
        image = _column(schema.names, ("img", "image"), file)
        label = _column(schema.names, ("label", "fine_label"), file)
        table = pq.read_table(file, columns=[image, label])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as parquet ({error}): bring it again") from None
    images, labels = table[image], table[label]
    if pa.types.is_struct(images.type) and "bytes" in [field.name for field in images.type]:
        images = pc.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise UserError(f"{file}: column {image!r} must hold encoded images as bytes, not {images.type}")
    if not pa.types.is_integer(labels.type) or labels.null_count:
        raise UserError(f"{file}: column {label!r} must hold an integer in every row, not {labels.type}")
    return _Shard(file, images, labels.to_numpy().astype(np.int64), _names(schema.metadata or {}, label))


def _column(names: Sequence[str], wanted: tuple[str, str], file: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise UserError(
        f"{file} has no column {wanted[0]!r} or {wanted[1]!r}, only {', '.join(names)}: rename one"
    )


def _names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    with suppress(KeyError, TypeError, ValueError):  # other writers leave other metadata, or none
        return tuple(json.loads(metadata[b"huggingface"])["info"]["features"][label]["names"])
    return None


def _numbers(labels: np.ndarray) -> tuple[str, ...]:
    if labels.max() >= len(labels):
        raise UserError(f"label {labels.max()} among {len(labels)} images: labels must count classes from 0")
    return tuple(str(label) for label in range(labels.max() + 1))


def npz(path: str, data_dir: Path, workers: int) -> Raw:
    """Arrays ``x_train, y_train, x_test, y_test``: x uint8 ``[n h w]``, ``[n h w c]`` or ``[n c h w]``, y integers.

    Raises UserError for other arrays. Nothing is unpickled.
    """
    try:
        with open(Path(path).expanduser(), "rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files}
    except Exception as error:  # numpy, zipfile and zlib each have their own
        raise UserError(
            f"{path} cannot be read as npz without pickle ({error}): save it with np.savez"
        ) from None
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in found]
    if missing:
        raise UserError(f"{path} has no array {missing[0]!r}, only {', '.join(found) or 'none'}")
    train, test = (_array_images(found[f"x_{split}"], f"{path}: x_{split}") for split in ("train", "test"))
    labels = [_array_labels(found[f"y_{split}"], f"{path}: y_{split}") for split in ("train", "test")]
    return Raw(train, labels[0], test, labels[1], _numbers(np.concatenate(labels)))


def _array_images(x: np.ndarray, where: str) -> np.ndarray:
    if x.dtype != np.uint8:
        raise UserError(
            f"{where} is {x.dtype}; pixels must be uint8 from 0 to 255: convert and save it again"
        )
    if x.ndim == 3:
        return x[..., None]
    last, second = x.ndim == 4 and x.shape[3] in (1, 3), x.ndim == 4 and x.shape[1] in (1, 3)
    if last == second:  # neither, or both
        raise UserError(
            f"{where} has the shape {list(x.shape)}; it must be [n h w], [n h w c] or [n c h w], c 1 or 3"
        )
    return x if last else x.transpose(0, 2, 3, 1)


def _array_labels(y: np.ndarray, where: str) -> np.ndarray:
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or not len(y):
        raise UserError(f"{where} is {y.dtype} {list(y.shape)}; labels must be one integer per image")
    return y.astype(np.int64)
