"""Small image sets, written as users bring them."""

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perturblab.datasets import load
from perturblab.terminal import UserError


def pixels(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, kind)
    return data.getvalue()


def write_folder(root: Path, classes=("cat", "dog"), each: int = 3, shape=(8, 8, 3)) -> dict[str, np.ndarray]:
    """``each`` images per class and split; returns them in the order in which ``folder:`` lists them."""
    written = {}
    for seed, split in enumerate(("train", "test")):
        written[split] = pixels(each * len(classes), *shape, seed=seed)
        for i, image in enumerate(written[split]):
            path = root / split / classes[i // each] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(image))
    return written


def write_parquet(path: Path, images: list[bytes | None], labels: list, names=None, image="img", label="label",
                  struct_column=True) -> None:  # fmt: skip
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = [{"bytes": data, "path": None} for data in images] if struct_column else images
    table = pa.table({image: column, label: labels})
    if names:
        features = {label: {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def parquet_pair(folder: Path, **how) -> np.ndarray:
    images = pixels(6, 8, 8, 3)
    data = [encoded(image) for image in images]
    write_parquet(folder / "set-train.parquet", data[:4], [0, 1, 0, 1], **how)
    write_parquet(folder / "set-test.parquet", data[4:], [1, 0], **how)
    return images


def write_npz(path: Path, **other) -> str:
    arrays = {
        "x_train": pixels(6, 8, 8, 3),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": pixels(3, 8, 8, 3, seed=1),
        "y_test": np.array([2, 1, 0]),
    }
    np.savez(path, **{key: value for key, value in {**arrays, **other}.items() if value is not None})
    return f"npz:{path}"


def write_mnist(root: Path, n: int = 10) -> dict[str, np.ndarray]:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    written = {}
    for split in ("train", "t10k"):
        written[split] = pixels(n, 28, 28)
        header = struct.pack(">iiii", 0x803, n, 28, 28)
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + written[split].tobytes())
        labels = struct.pack(">ii", 0x801, n) + bytes(range(n))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return written


def hwc(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).numpy()


def refusal(name: str, data_dir: Path, **how) -> str:
    with pytest.raises(UserError) as caught:
        load(name, data_dir, **how)
    message = str(caught.value)
    assert "\n" not in message
    return message
