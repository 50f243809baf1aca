"""correction, train: one combination, from its parts to the best weights, against the document's loop done plainly."""

from pathlib import Path

import numpy as np
import pytest
import torch

from commandline import called
from conftest import one_thread

# ---- a tiny 08MNIST --------------------------------------------------------------------------------------------------

SMALL = ("--device", "cpu", "--batch_size", "16", "--user_corrected_pool_size", "10", "--learning_rate", "0.003")


def write_digits(path: Path, train: int = 61, test: int = 40) -> Path:
    """Drawn zeros and eights in noise, in turn; hard enough to be wrong about some."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:28, 0:28]

    def ring(row: float, column: float, height: float, width: float) -> np.ndarray:
        return abs(np.hypot((y - row) / height, (x - column) / width) - 1) < 0.28

    arrays = {}
    for split, n in (("train", train), ("test", test)):
        labels = np.resize([0, 8], n)
        images = np.zeros((n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            row, column = random.integers(11, 16, 2)
            lines = ring(row, column, 8, 6) if label == 0 else ring(row - 4, column, 4, 5) | ring(row + 4, column, 4, 5)
            image += lines * random.integers(90, 200) + random.integers(0, 160, (28, 28)) * (random.random((28, 28)) < 0.5)
            image[24:, 24:] = 0  # black under the dot, as in MNIST
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images.clip(0, 255).astype(np.uint8), labels
    np.savez(path, **arrays)
    return path


def does(*words: str) -> str:
    """What ``perturblab correction WORDS`` prints, errors and warnings too; it must end well."""
    with one_thread():
        code, out, errors = called("correction", *words)
    assert code == 0, errors
    return out + errors


def make_08mnist(folder: Path) -> Path:
    """A folder with 08MNIST, of 30 zeros and 30 eights to train on and 40 to test, and a base model."""
    digits = write_digits(folder / "digits.npz")
    does("build-data", "--dataset", f"npz:{digits}", "--out", str(folder))
    where = ("--runs_dir", str(folder / "base"), "--device", "cpu", "--batch_size", "16", "--epochs", "3")
    does("train-base", *reads(folder), *where)
    return folder


def reads(folder: Path) -> list[str]:
    return ["--data", str(folder / "08MNIST"), "--base_model", str(folder / "model_confounded.pth")]


def train_words(folder: Path, *more: str) -> list[str]:
    """A run of a few epochs: three batches of 12 + 4 in each."""
    few = ("--max_epochs", "6", "--early_stopping_patience", "3")
    return ["correction", "train", *reads(folder), *SMALL, *few, *more]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_08mnist(tmp_path_factory.mktemp("08"))


def test_x(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    print(does(*train_words(made)[1:]))
    import json
    for l in next(Path().rglob("rows.jsonl")).read_text().splitlines(): 
        d=json.loads(l); print(d["epoch"], d["train_loss"], d["train_accuracy"], d["val_loss"], d["val_accuracy"])
