"""first-layer-mi: how much label information is left when random elements of the first layer are removed?

A VGG with global average pooling is trained on CIFAR-100 (document 001). Random subsets of the elements of its first
convolution's output (after BatchNorm and ReLU; 64 x 32 x 32) are kept, the rest zeroed, and the mutual information of
predictions and labels is measured: MI_full - mean(MI_masked), during training and after it, against generalisation.

    perturblab first-layer-mi train --arch vgg11 --seed 0
    perturblab first-layer-mi jobs         scripts for the document's 15 runs
    perturblab first-layer-mi visualize    plots and the summary table

VGG-N counts weight layers, as the paper does: VGG9, 11, 13, 16, 19 have 6, 8, 10, 13, 16 convolutions here.
Exports: results/{arch}_seed{seed}_results.npz and .json, checkpoints/{arch}_seed{seed}_final.pt, plots/*.png.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import field_validator

from perturblab.flags import Fitting, Predictions, Suffixed, each_once, is_upright
from perturblab.grids import Grid, Measure
from perturblab.launch.arrays import JobFlags
from perturblab.settings import Command, Settings, flag, is_where

Arch = Literal["vgg9", "vgg11", "vgg13", "vgg16", "vgg19"]
ARCHITECTURES: tuple[Arch, ...] = ("vgg9", "vgg11", "vgg13", "vgg16", "vgg19")


class Training(Fitting):
    """What every run of the study shares; the grid varies architecture and seed."""

    study = "first-layer-mi"

    dataset: str = flag(
        "cifar100",
        "cifar10, cifar100, mnist, fashion-mnist, digits, folder:PATH, parquet:PREFIX or npz:PATH.",
    )
    epochs: int = flag(300, "Number of training epochs.", ge=1)
    batch_size: int = flag(256, "Images per step.", ge=1)
    lr: float = flag(0.001, "Learning rate of Adam after its warm-up; then cosine to 1e-5.", gt=0)
    warmup_epochs: int = flag(10, "Epochs in which the rate rises linearly from 0.1 % of --lr.", ge=0)
    weight_decay: float = flag(0.0, "Weight decay of Adam, as part of the gradient.", ge=0)
    eval_interval: int = flag(
        10, "Measure accuracies and information at epoch 1, every N epochs and after the last.", ge=1
    )
    n_masks_train: int = flag(20, "Random subsets per measurement during training.", ge=1)
    n_masks_final: int = flag(40, "Random subsets in the final measurement.", ge=1)
    max_eval_batches_train: int = flag(
        20, "Information during training is of the first N batches of images; 0 takes all.", ge=0
    )
    max_eval_batches_final: int = flag(40, "The same for the final measurement; 0 takes all.", ge=0)
    mi_split: Literal["train", "test"] = flag(
        "train",
        "Images of the information: train without augmentation (as documented) or test.",
        "--mi-split",
    )
    use_batchnorm: bool = flag(True, "BatchNorm after every convolution.")
    use_dropout: bool = flag(True, "Dropout of 0.5 before the last layer.")
    use_augmentation: bool = flag(True, "Crop, flip, RandAugment and CutMix; all off if False.")
    augment: Literal["auto", "crop-flip-rand", "crop-rand"] = flag(
        "auto",
        "What is done to an image before CutMix; auto is crop-flip-rand (documented), or crop-rand for digits and mnist.",
    )
    width: float = flag(1.0, "Scales every channel count; 1 is the documented network.", gt=0, le=8)
    checkpoint_dir: str = flag("./checkpoints", "Where final checkpoints are exported.", where=True)
    results_dir: str = flag("./results", "Where results are exported.", where=True)


RECORDED = tuple(name for name, info in Training.model_fields.items() if not is_where(info))
"""What else than architecture and seed decides what a run computes; the result files hold all of it."""


class Train(Training, Suffixed, Predictions):
    """Train one network, and measure the information that masked first layers leave."""

    command = "train"

    arch: Arch = flag(
        ...,
        "Architecture; VGG-N counts weight layers, as the paper does (VGG11 has 8 convolutions).",
        "--arch",
        "--model",
    )
    seed: int = flag(..., "Random seed.", ge=0)

    def canonical(self) -> Train:
        """``auto`` is resolved; without augmentation it does not matter which."""
        augment = self.augment
        if augment == "auto" or not self.use_augmentation:
            upright = self.use_augmentation and is_upright(self.dataset)
            augment = "crop-rand" if upright else "crop-flip-rand"
        return self.model_copy(update={"augment": augment})

    @property
    def name(self) -> str:
        """The stem of the documented file names."""
        return f"{self.arch}_seed{self.seed}" + (f"_{self.suffix}" if self.suffix else "")

    @property
    def exports(self) -> dict[str, Path]:
        """The documented files, by the file of the run folder that each is a copy of."""
        results = Path(self.results_dir)
        asked = {"predictions.npz": Path(self.save_predictions)} if self.save_predictions else {}
        return {
            "results.json": results / f"{self.name}_results.json",
            "results.npz": results / f"{self.name}_results.npz",
            "final.pt": Path(self.checkpoint_dir) / f"{self.name}_final.pt",
            **asked,
        }


class Jobs(JobFlags, Training):
    """Write array job scripts for Grid Engine, Slurm or bash: the document's 15 runs by default.

    A script per architecture, scripts/job_manager_{arch}.sh, and the lines that its tasks read,
    scripts/jobs_{arch}.txt. Nothing is submitted without --submit.
    """

    command = "jobs"
    axes: ClassVar = {"arch": "architectures", "seed": "seeds"}

    architectures: tuple[Arch, ...] = flag(ARCHITECTURES, "Architectures of the grid.")
    seeds: tuple[int, ...] = flag((0, 1, 2), "Seeds of the grid.")

    _each_once = field_validator("architectures", "seeds")(each_once)

    def grid(self) -> Iterator[Train]:
        """Every cell, architectures outermost."""
        shared = {name: getattr(self, name) for name in Training.model_fields}
        for arch, seed in product(self.architectures, self.seeds):
            yield Train.parse({**shared, "arch": arch, "seed": seed})


class Visualize(Settings):
    """Draw the study's figures from exported results and print the summary table."""

    study = "first-layer-mi"
    command = "visualize"

    results_dir: str = flag("./results", "Where results were exported.", where=True)
    plots_dir: str = flag("./plots", "Where plots are written.", where=True)
    architectures: tuple[str, ...] = flag((), "Only these architectures (all by default).")
    seeds: tuple[int, ...] = flag((), "Only these seeds (all by default).")
    train_acc_threshold: float = flag(
        0.0, "Only runs whose final clean train accuracy is at least so many percent.", ge=0, le=100
    )
    mi_units: Literal["nats", "bits"] = flag("nats", "Unit of information in plots and tables.")


GRID = Grid(
    Train,
    {"arch": ARCHITECTURES, "seed": (0, 1, 2)},
    "perturblab.studies.first_layer_mi.jobs:plan_of_runs",
    verify="perturblab.studies.first_layer_mi.verification:verify",
    measures=(
        Measure("final_test_acc", "Test", "%"),
        Measure("final_train_acc_clean", "Train", "%"),
        Measure("final_gen_gap", "Gap", "points"),
        Measure("final_mi_full", "MI full", "nats"),
        Measure("final_mean_mi_masked", "MI masked", "nats"),
        Measure("final_mi_diff", "Diff", "nats"),
    ),
    then="perturblab first-layer-mi visualize",
)
COMMANDS: dict[str, Command] = {
    "train": Command(Train, "perturblab.studies.first_layer_mi.run:train"),
    "jobs": Command(Jobs, "perturblab.studies.first_layer_mi.jobs:jobs"),
    "visualize": Command(Visualize, "perturblab.studies.first_layer_mi.figures:visualize"),
}
