"""A small but whole run of each of the five studies, on data made here: what the tests of the promises start again and again."""

from dataclasses import dataclass, field
from pathlib import Path

import layerwise
from conftest import write_npz
from test_correction_cell import make_08mnist, train_words

STUDIES = ("masked-loss", "first-layer-mi", "layerwise-mi", "correction", "adaptive-noise")
RUNS = (*STUDIES, "layerwise-mi evaluate")
CPU = ("--device", "cpu", "--threads", "1")


@dataclass(frozen=True)
class Smoke:
    """``words`` train; with ``other`` too they are another run whose files take the same names; ``then`` read what it left."""

    words: list[str]
    other: list[str]
    then: list[list[str]] = field(default_factory=list)


def smoke_of(study: str, folder: Path) -> Smoke:
    """Each about half a second. ``folder`` takes the data."""
    folder.mkdir(parents=True, exist_ok=True)
    return MADE[study](folder)


def _masked_loss(folder: Path) -> Smoke:
    """3 epochs of 4 steps, masks, robustness."""
    write_npz(folder / "tiny.npz", seed=0)
    words = (
        "masked-loss train --arch vgg11 --mode masked --seed 0 --width 0.05 --epochs 3 --batch_size 20 --robustness_masks 2 "
        f"--clamp rescale --lr 0.05 --dataset npz:{folder}/tiny.npz"
    )
    return Smoke([*words.split(), *CPU], ["--lr", "0.01"], [["masked-loss", "visualize"]])


def _first_layer_mi(folder: Path) -> Smoke:
    """Training with CutMix and dropout, measurements in each epoch, the final one with its predictions."""
    write_npz(folder / "tiny.npz", seed=0)
    words = (
        "first-layer-mi train --arch vgg9 --seed 0 --width 0.05 --epochs 2 --batch_size 20 --lr 0.01 --warmup_epochs 1 "
        "--eval_interval 1 --n_masks_train 3 --n_masks_final 4 --max_eval_batches_final 0 "
        f"--save-predictions results/predictions.npz --dataset npz:{folder}/tiny.npz"
    )
    return Smoke([*words.split(), *CPU], ["--lr", "0.02"], [["first-layer-mi", "visualize"]])


def _layerwise_mi(folder: Path) -> Smoke:
    """Training that keeps its best weights; an evaluation of six layers."""
    npz = layerwise.write_images(folder / "images.npz")
    words = layerwise.train_words(npz, "--select-on", "val", "--target-acc", "30")
    evaluate = layerwise.evaluate_words("--checkpoint", "best", "--save-predictions", "p.npz", subsets=8)
    return Smoke(words, ["--lr", "0.02"], [evaluate, ["layerwise-mi", "visualize"]])


def _correction(folder: Path) -> Smoke:
    """Two steps per epoch; it stops before its last epoch, and the best one is two epochs older."""
    few = (
        "--seed 1 --batch_size 32 --early_stopping_patience 2 --min_delta 0.02 --max_epochs 60 --grad-clip 5"
    )
    return Smoke([*train_words(make_08mnist(folder)), *few.split()], ["--grad-clip", "4"])


def _adaptive_noise(folder: Path) -> Smoke:
    """6 epochs of 5 steps with flags, both kinds of noise, cooldowns, BatchNorm."""
    npz = layerwise.write_images(folder / "images.npz")
    words = (
        "adaptive-noise train -c resnet20 --width 0.0625 -e 6 -b 16 --lr 0.02 --flag-window-size 2 --flag-min-epochs 2 "
        "--flag-overfit-epochs 1 --flag-grad-plateau-thr 0.01 --flag-low-weight-update-thr 0 --consecutive-flag-trigger 1 "
        "--min-cooldown-epochs 1 --max-cooldown-epochs 2 --sharpness-draws 2 -nt weight -nm 0.1 --flag-plateau-delta 1.0 "
        f"--save-as best.pth --dataset npz:{npz}"
    )
    return Smoke([*words.split(), *CPU], ["--lr", "0.01"], [["adaptive-noise", "visualize"]])


MADE = {
    "masked-loss": _masked_loss, "first-layer-mi": _first_layer_mi, "layerwise-mi": _layerwise_mi, "correction": _correction,
    "adaptive-noise": _adaptive_noise,
}  # fmt: skip


SHORT = {
    "masked-loss": "--epochs 1 --batch_size 72 --robustness_masks 1",
    "first-layer-mi": "--epochs 1 --batch_size 72 --n_masks_train 1 --n_masks_final 1 --warmup_epochs 0",
    "layerwise-mi": "--epochs 1 --batch-size 72",
    "layerwise-mi evaluate": "--layers 0 5",
    "correction": "--max_epochs 1",
    "adaptive-noise": "-e 2 -b 72 --sharpness-draws 1",
}
"""What makes a run short where it is killed at every point."""


# ---- a grid of two of them --------------------------------------------------------------------------------------------

GRID = """
study: masked-loss
fixed: {{arch: vgg11, width: 0.05, epochs: 2, batch_size: 20, robustness_masks: 1, threads: 1, device: cpu, dataset: "npz:{npz}",
  checkpoint_every: 0, lr: {lr}}}
axes: {{mode: [masked, baseline], seed: [0]}}
"""
FORK = ["test_correction_run", "fork_cells"]
"""A hook for a child of the zygote: it forks its runs, instead of a server that imports torch anew."""


def write_grid(folder: Path, npz: Path, lr: float = 0.05) -> list[str]:
    """``grid.yaml`` in ``folder``; the words that do its two runs at the same time."""
    folder.mkdir(exist_ok=True)
    (folder / "grid.yaml").write_text(GRID.format(npz=npz, lr=lr))
    return ["run", "grid.yaml", "--jobs", "2"]
