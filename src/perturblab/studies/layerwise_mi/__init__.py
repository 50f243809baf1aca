"""layerwise-mi: how much label information is left when random channels of one convolution are removed?

VGGs are trained on CIFAR-10 towards 99.99 % train accuracy (document 002). Then, one layer at a time, 100 random
subsets of its channels are removed, and the mutual information of predictions and labels is measured: what is left,
and what is lost against the intact network, at each depth.

    perturblab layerwise-mi train --model vgg16
    perturblab layerwise-mi evaluate --model vgg16 --checkpoint best
    perturblab layerwise-mi visualize

VGG-N counts weight layers, as the paper does: VGG9, 11, 13, 16, 19 have 6, 8, 10, 13, 16 convolutions here.
Exports: checkpoints/{model}_best.pth and _final.pth, results/mi_results_{checkpoint}.json, plots/*.png.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from perturblab.flags import Loading, Machine, Predictions, Sgd, Suffixed
from perturblab.grids import Grid, Measure
from perturblab.settings import Command, Settings, flag

Model = Literal["vgg9", "vgg11", "vgg13", "vgg16", "vgg19", "all"]
ALL: tuple[Model, ...] = ("vgg11", "vgg13", "vgg16", "vgg19")
"""What ``all`` means, as documented."""
CONVOLUTIONS = {"vgg9": 6, "vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16}
MODEL_HELP = (
    "Architecture; VGG-N counts weight layers (VGG11 has 8 convolutions). all is vgg11, 13, 16 and 19."
)


def seeded_name(stem: str, seed: int | None) -> str:
    """The documented stem of a file, with the seed where one was given."""
    return stem if seed is None else f"{stem}_seed{seed}"


class Train(Sgd):
    """Train a network, or all of them one after another, and keep the best and the final checkpoint."""

    study = "layerwise-mi"
    command = "train"

    model: Model = flag("all", MODEL_HELP, "--model", "--arch")
    seed: int | None = flag(
        None,
        "Random seed, which then stands in the files' names; without it the run is that of seed 0.",
        ge=0,
    )
    epochs: int = flag(200, "Number of training epochs.", ge=1)
    batch_size: int = flag(128, "Images per step.", "--batch-size", ge=1)
    lr: float = flag(0.01, "Initial learning rate; follows a cosine to 0 over the epochs.", gt=0)
    target_acc: float = flag(
        99.99,
        "Clean train accuracy in percent that is flagged when it is first reached.",
        "--target-acc",
        gt=0,
        le=100,
    )
    stop_at_target: bool = flag(False, "Stop after the epoch that reaches --target-acc.", "--stop-at-target")
    select_on: Literal["test", "val"] = flag(
        "test",
        "The best checkpoint is the best on test images (as documented, and marked in every result) or on val, a "
        "tenth of the train images, 5,000 at most, that is then left out of training.",
        "--select-on",
    )
    width: float = flag(
        1.0, "Scales every channel count and the hidden layers; 1 is the documented network.", gt=0, le=8
    )
    checkpoint_dir: str = flag("./checkpoints", "Where checkpoints are exported.", where=True)

    def canonical(self) -> Train:
        """``auto`` is resolved, and no seed is seed 0: only the names of the exported files differ."""
        return self.model_copy(update={"seed": self.random_seed, "augment": self.augmentation})

    @property
    def random_seed(self) -> int:
        return self.seed or 0

    @property
    def exports(self) -> dict[str, Path]:
        """The documented files, by the file of the run folder that each is a copy of."""
        stem = Path(self.checkpoint_dir) / seeded_name(self.model, self.seed)
        return {name: stem.with_name(f"{stem.name}_{name}h") for name in ("best.pt", "final.pt")}


class Evaluate(Loading, Machine, Suffixed, Predictions):
    """Measure the information left under random channel subsets of each convolution of a trained network."""

    study = "layerwise-mi"
    command = "evaluate"

    model: Model = flag("all", MODEL_HELP, "--model", "--arch")
    checkpoint: str = flag(
        "best", "best, final, or the path of a checkpoint, ours or one of the original scripts.", where=True
    )
    seed: int | None = flag(
        None,
        "Picks the files with this seed in their names, and the subsets; without it seed 0 draws them.",
        ge=0,
    )
    n_subsets: int = flag(100, "Random subsets per layer, all different.", "--n-subsets", ge=1)
    keep_min: int = flag(
        0, "Channels that are kept at least; 0, as documented, lets all be removed.", "--keep-min", ge=0
    )
    ablation: Literal["weight", "zero", "mean"] = flag(
        "weight",
        "What a removed channel becomes: weight, what zeroing its weights leaves (a constant; documented), zero after "
        "the ReLU, or its mean over the images.",
    )
    mi_split: Literal["test", "train"] = flag(
        "test", "Images that are evaluated: test (documented) or train, without augmentation.", "--mi-split"
    )
    limit: int = flag(0, "Evaluate only the first N images; 0 takes all.", ge=0)
    layers: tuple[str, ...] = flag((), "Only these layers: conv1, features.0 or a layer_idx; all by default.")
    dataset: str | None = flag(
        None, "The data set whose images are used; read from the checkpoint, else cifar10."
    )
    normalize: Literal["documented", "data"] | None = flag(
        None, "Normalisation constants, as in train; read from the checkpoint, else documented."
    )
    batch_size: int = flag(
        128,
        "Images per pass of the intact network; --memory decides for the others.",
        "--batch-size",
        where=True,
        ge=1,
    )
    memory: float = flag(2.0, "GiB that the passes under masks may take.", where=True, gt=0)
    checkpoint_dir: str = flag("./checkpoints", "Where best and final are looked for.", where=True)
    results_dir: str = flag("./results", "Where results are exported.", where=True)

    @field_validator("layers", mode="before")
    @classmethod
    def _a_number_names_a_layer(cls, value: Any) -> Any:
        """A file may hold ``[conv1, 2]``."""
        if not isinstance(value, list | tuple):
            return value
        return [str(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in value]

    @field_validator("suffix")
    @classmethod
    def _no_seed(cls, value: str) -> str:
        if re.search(r"(^|_)seed\d+$", value):
            raise ValueError("the file would be read as that of a seed; use --seed")
        return value

    def canonical(self) -> Evaluate:
        """No seed is seed 0: it names other files, but the checkpoint is told by its content."""
        return self.model_copy(update={"seed": self.random_seed})

    @property
    def random_seed(self) -> int:
        return self.seed or 0

    @property
    def is_path(self) -> bool:
        return self.checkpoint not in ("best", "final")

    @property
    def source(self) -> Path:
        """The checkpoint file."""
        if self.is_path:
            return Path(self.checkpoint)
        return Path(self.checkpoint_dir) / f"{seeded_name(self.model, self.seed)}_{self.checkpoint}.pth"

    @property
    def results_file(self) -> Path:
        kind = Path(self.checkpoint).stem if self.is_path else self.checkpoint
        stem = f"mi_results_{kind}" + (f"_{self.suffix}" if self.suffix else "")
        return Path(self.results_dir) / f"{seeded_name(stem, self.seed)}.json"


class Evaluation(Evaluate):
    """One evaluation: nothing is left to a checkpoint or to ``all``, and the checkpoint's digest tells runs apart."""

    sha256: str = flag("", "SHA-256 of the checkpoint file.")
    epoch: int = flag(0, "Epoch that it says it is of.", ge=0)
    width: float = flag(1.0, "Width of the network in it.", gt=0, le=8)
    selected_on: Literal["", "test", "val"] = flag("", "Images that it was chosen on as the best of its run.")


class Visualize(Settings):
    """Draw the study's figures from exported results and print the summary table."""

    study = "layerwise-mi"
    command = "visualize"

    results_dir: str = flag("./results", "Where results were exported.", where=True)
    plots_dir: str = flag("./plots", "Where plots are written.", where=True)
    checkpoint: str = flag(
        "best",
        "Results of these checkpoints: best, final, or the stem of a file; with _SUFFIX where evaluate was given one.",
    )
    models: tuple[str, ...] = flag((), "Only these architectures (all by default).")
    seeds: tuple[int, ...] = flag((), "Only these seeds (all by default).")


GRID = Grid(
    Train,
    {"model": ALL},
    "perturblab.studies.layerwise_mi.each:plan_of_runs",
    named=("seed",),
    apart="checkpoint_dir",
    measures=(
        Measure("final_test_acc", "final test", "%"),
        Measure("final_train_acc", "final train", "%"),
        Measure("best_test_acc", "best test", "%"),
    ),
    then="perturblab layerwise-mi evaluate",
)
COMMANDS: dict[str, Command] = {
    "train": Command(Train, "perturblab.studies.layerwise_mi.run:train"),
    "evaluate": Command(Evaluate, "perturblab.studies.layerwise_mi.evaluate:evaluate"),
    "visualize": Command(Visualize, "perturblab.studies.layerwise_mi.figures:visualize"),
}
