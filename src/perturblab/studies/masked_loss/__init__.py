"""masked-loss: does a loss that is high when hidden units are ablated change generalisation or robustness?

A VGG is trained on CIFAR-10 to be right when intact and wrong when random hidden units are removed (document 000);
``baseline`` is plain cross-entropy, ``half-loss`` the control arm that the documented clamp amounts to. Maximising
the loss under ablation makes every unit necessary: it rewards less redundancy, the opposite of dropout.

    perturblab masked-loss train --arch vgg11 --mode masked --seed 0
    perturblab masked-loss sweep        the document's 24 runs
    perturblab masked-loss visualize    plots and the summary table

After 200 epochs the document expects 91 to 92 % on test from a VGG11 baseline, and about that when masked.
Exports: results/{arch}_{mode}_seed{seed}.json, checkpoints/{arch}_{mode}_seed{seed}.pt, plots/*.png.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from perturblab.flags import Loading, OnCards, Sgd, Suffixed, each_once
from perturblab.grids import Grid, Measure
from perturblab.settings import Command, Settings, flag

Arch = Literal["vgg11", "vgg13", "vgg16", "vgg19"]
Mode = Literal["baseline", "masked", "half-loss"]

# Fields that a mode never reads.
UNUSED: dict[str, tuple[str, ...]] = {
    "baseline": ("n_masks", "lambda_max", "clamp", "site"),
    "half-loss": ("n_masks", "clamp", "site"),
    "masked": (),
}


def spelt(modes: Any) -> Any:
    """Modes as files spell them: ``half_loss`` is ``half-loss``."""
    if isinstance(modes, list | tuple):
        return tuple(map(spelt, modes))
    return "half-loss" if modes == "half_loss" else modes


ARCHITECTURES: tuple[Arch, ...] = ("vgg11", "vgg13", "vgg16", "vgg19")


class Training(Sgd):
    """What every run of the study shares; the grid varies the rest."""

    study = "masked-loss"

    epochs: int = flag(200, "Number of training epochs.", ge=1)
    batch_size: int = flag(128, "Images per step.", ge=1)
    lr: float = flag(0.1, "Initial learning rate; divided by 10 after 50 % and 75 % of the epochs.", gt=0)
    n_masks: int = flag(3, "Random masks per step (masked mode).", ge=1)
    lambda_max: float = flag(
        1.0, "Weight of the ablated loss after its warm-up (masked and half-loss mode).", ge=0
    )
    clamp: Literal["hard", "rescale", "none"] = flag(
        "hard",
        "How the ablated loss is kept below half the full one: hard (documented; stops its gradient while active), "
        "rescale (same value, gradient passes), none.",
    )
    site: Literal["hidden", "conv1"] = flag(
        "hidden",
        "Where masks act: the hidden layer's units (documented) or the first convolution's channels.",
    )
    width: float = flag(
        1.0, "Scales every channel count and the hidden layer; 1 is the documented network.", gt=0, le=8
    )
    eval_every: int = flag(
        1, "Measure test accuracy every N epochs (and after the last); training is the same.", ge=1
    )
    robustness_masks: int = flag(
        20, "Random subsets per kept fraction in the final robustness measurement; 0 skips it.", ge=0
    )
    checkpoint_dir: str = flag("./checkpoints", "Where final checkpoints are exported.", where=True)
    results_dir: str = flag("./results", "Where results are exported.", where=True)


class Train(Training, Suffixed):
    """Train one network and measure it."""

    command = "train"

    arch: Arch = flag(
        ...,
        "Architecture; VGG-N counts weight layers, as the paper does (VGG11 has 8 convolutions).",
        "--arch",
        "--model",
    )
    mode: Mode = flag(..., "baseline (cross-entropy), masked, or half-loss (the control arm).")
    seed: int = flag(..., "Random seed.", ge=0)

    _spelling = field_validator("mode", mode="before")(spelt)

    def canonical(self) -> Train:
        """``auto`` is resolved; fields that a mode never reads are reset, so that they do not make two runs of one."""
        changes = {name: type(self).default_of(name) for name in UNUSED[self.mode]}
        return self.model_copy(update={**changes, "augment": self.augmentation})

    @property
    def name(self) -> str:
        """The stem of the documented file names."""
        return f"{self.arch}_{self.mode}_seed{self.seed}" + (f"_{self.suffix}" if self.suffix else "")

    @property
    def exports(self) -> dict[str, Path]:
        """The documented files, by the file of the run folder that each is a copy of."""
        return {
            "results.json": Path(self.results_dir) / f"{self.name}.json",
            "final.pt": Path(self.checkpoint_dir) / f"{self.name}.pt",
        }


class Sweep(OnCards, Training):
    """Run the grid architectures x modes x seeds: the document's 24 runs by default."""

    command = "sweep"
    axes: ClassVar = {"arch": "architectures", "mode": "modes", "seed": "seeds"}

    mode: Literal["sequential", "parallel", "generate"] = flag(
        "sequential", "Run one after another, several at a time, or write a shell script.", where=True
    )
    architectures: tuple[Arch, ...] = flag(ARCHITECTURES, "Architectures of the grid.")
    modes: tuple[Mode, ...] = flag(("baseline", "masked"), "Training modes of the grid.")
    seeds: tuple[int, ...] = flag((0, 1, 2), "Seeds of the grid.")
    jobs: int = flag(
        0, "Runs at a time with --mode parallel; 0 is one per core, or per CUDA card.", where=True, ge=0
    )
    output_script: str = flag("run_all.sh", "The script that --mode generate writes.", where=True)
    prefix: str = flag("python -m perturblab", "How generated lines call the program.", where=True)

    _spelling = field_validator("modes", mode="before")(spelt)
    _each_once = field_validator("architectures", "modes", "seeds")(each_once)

    def grid(self) -> Iterator[Train]:
        """Every cell, architectures outermost, seeds innermost."""
        shared = {name: getattr(self, name) for name in Training.model_fields}
        for arch, mode, seed in product(self.architectures, self.modes, self.seeds):
            yield Train.parse({**shared, "arch": arch, "mode": mode, "seed": seed})


class Evaluate(Loading):
    """Measure a checkpoint, ours or the original scripts': test accuracy, and accuracy with fewer hidden units."""

    study = "masked-loss"
    command = "evaluate"

    checkpoint: str = flag(..., "The checkpoint file (.pt).", where=True)
    arch: Arch | None = flag(
        None, "Architecture; read from the checkpoint where it says.", "--arch", "--model"
    )
    width: float | None = flag(None, "Width of the network; read from the checkpoint, else 1.", gt=0, le=8)
    dataset: str | None = flag(
        None, "The data set whose test images are used; read from the checkpoint, else cifar10."
    )
    normalize: Literal["documented", "data"] | None = flag(
        None, "Normalisation constants, as in train; read from the checkpoint, else documented."
    )
    robustness_masks: int = flag(20, "Random subsets per kept fraction.", ge=1)
    seed: int = flag(0, "Seed of the subsets.", ge=0)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps.", where=True)


class Visualize(Settings):
    """Draw the study's figures from exported results and print the summary table."""

    study = "masked-loss"
    command = "visualize"

    results_dir: str = flag("./results", "Where results were exported.", where=True)
    plots_dir: str = flag("./plots", "Where plots are written.", where=True)
    architectures: tuple[str, ...] = flag((), "Only these architectures (all by default).")
    modes: tuple[str, ...] = flag((), "Only these modes (all by default).")
    seeds: tuple[int, ...] = flag((), "Only these seeds (all by default).")


GRID = Grid(
    Train,
    {"arch": ARCHITECTURES, "mode": ("baseline", "masked"), "seed": (0, 1, 2)},
    "perturblab.studies.masked_loss.sweep:plan_of_runs",
    measures=(
        Measure("final_test_acc", "Test Acc", "%"),
        Measure("final_train_acc", "Train Acc", "%"),
        Measure("final_gen_gap", "Gen Gap", "points"),
    ),
    then="perturblab masked-loss visualize",
)
COMMANDS: dict[str, Command] = {
    "train": Command(Train, "perturblab.studies.masked_loss.run:train"),
    "evaluate": Command(Evaluate, "perturblab.studies.masked_loss.evaluate:evaluate"),
    "sweep": Command(Sweep, "perturblab.studies.masked_loss.sweep:sweep"),
    "visualize": Command(Visualize, "perturblab.studies.masked_loss.figures:visualize"),
}
