"""A tiny layerwise-mi study: the words of its commands, and what a run of them leaves."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from commandline import called
from conftest import one_thread

WIDTH = 0.0625  # 4 channels in the first layer: 15 subsets
SMALL = ("--device", "cpu", "--threads", "1")


def write_images(path: Path, seed: int = 0) -> Path:
    """Colour images of four classes that differ in brightness, hard enough to be wrong about some."""
    random = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", 80), ("test", 40)):
        labels = np.arange(n) % 4
        noise = random.integers(0, 160, (n, 8, 8, 3))
        arrays[f"x_{split}"] = (noise + labels[:, None, None, None] * 30).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(path, **arrays)
    return path


def train_words(npz: Path, *more: str, model: str = "vgg9") -> list[str]:
    words = ["layerwise-mi", "train", "--model", model, "--dataset", f"npz:{npz}", "--width", str(WIDTH)]
    return [*words, "--epochs", "3", "--batch-size", "16", "--lr", "0.05", *SMALL, *more]


def evaluate_words(*more: str, model: str = "vgg9", subsets: int = 10) -> list[str]:
    return ["layerwise-mi", "evaluate", "--model", model, "--n-subsets", str(subsets), *SMALL, *more]


def does(words: list[str]) -> str:
    """What the command prints, errors and warnings too; it must end well."""
    with one_thread():
        code, out, errors = called(*words)
    assert code == 0, errors
    return out + errors


def rows(pattern: str = "*", runs: str = "perturblab_runs") -> list[dict[str, Any]]:
    """The rows of the one run whose folder fits the pattern."""
    (folder,) = Path(runs).glob(f"layerwise-mi/{pattern}")
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def entry(model: str = "vgg9", name: str = "mi_results_best") -> dict[str, Any]:
    return json.loads(Path(f"results/{name}.json").read_text())[model]


def without_runs(text: str) -> str:
    """Digits of run ids replaced: what does not depend on the run."""
    return re.sub(r"-[0-9a-f]{10}", "-ID", text)
