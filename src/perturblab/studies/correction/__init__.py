"""correction: can a few corrected images teach a classifier the shape of a digit, when it has learnt to see a dot?

A small CNN is trained on MNIST 0 against 8 where every 8 bears a dot, and classifies by the dot. It is trained on with a
few 8s whose dot is removed mixed into each batch (document 003). Balanced, CE(confounded) + lambda CE(corrected), is
compared with Imbalanced, CE(whole batch), over learning rates, lambdas and numbers of corrected images.

    perturblab correction run --experiment overfit_test
    perturblab correction check          the document's debugging checklist
    perturblab correction visualize      the page with the answers, again

The four experiments are overfit_test, lr_search, lambda_search and full_grid_search; run makes 08MNIST (build-data) and the base
model (train-base) where they are missing.

The document expects about 60 % on plain digits from the confounded network, and Balanced ahead of Imbalanced.
Exports: 08MNIST/, model_confounded.pth, experiments/*.csv, runs/{experiment}/{combination}/, plots/correction.html.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from perturblab.flags import Loading, Machine, OnCards, each_once, listed
from perturblab.grids import Grid, Measure
from perturblab.settings import Command, Settings, flag
from perturblab.studies.correction.making import DATASET, BuildData, Convert

LossType = Literal["balanced", "imbalanced"]


def equal_lambda(batch_size: int, corrected: int) -> float:
    """The lambda at which Balanced is Imbalanced up to a factor: k / (B - k) (correction.md 4.1)."""
    return corrected / (batch_size - corrected)


class Inputs(Machine):
    """What the document's folder holds beside its script."""

    study = "correction"

    data: str = flag("./08MNIST", "The folder 08MNIST, as build-data makes it.", where=True)
    base_model: str = flag("./model_confounded.pth", "The network that has learnt the dot.", where=True)
    threads: int = flag(
        1,
        "CPU threads of one run; runs go side by side instead. Recorded, and reused on resume.",
        where=True,
        ge=0,
    )


class Interruptible(Inputs):
    """A run that goes on where it was stopped."""

    checkpoint_every: float = flag(60.0, "Seconds of work that a kill may lose, at most.", where=True, ge=0)


class TrainBase(Interruptible):
    """Train the network that classifies by the dot, on confounded images only."""

    command = "train-base"

    epochs: int = flag(2, "Training epochs: about 60 % on plain MNIST after 2, 51 % after 10.", ge=1)
    batch_size: int = flag(64, "Images per step.", ge=1)
    learning_rate: float = flag(1e-3, "Learning rate of Adam.", gt=0)
    seed: int = flag(
        1, "Random seed; plain digits: 60 % with seed 1 after 2 epochs, 58 to 77 % with seeds 0 to 5.", ge=0
    )
    data_sha256: str = flag("", "Refuse data with another digest; filled in by the command itself.")


class Correcting(Interruptible):
    """How a run is trained, under the names of the document's ``program_args``."""

    batch_size: int = flag(64, "Images per step, corrected ones included.", ge=1)
    user_corrected_max_per_batch: int = flag(4, "Corrected images in each batch, its last ones.", ge=0)
    validate_ds_size: float = flag(
        0.4, "Share of the test images that validates; the rest is the test set.", gt=0, lt=1
    )
    early_stopping_patience: int = flag(
        10, "Epochs without a lower validation loss before training stops.", ge=1
    )
    min_delta: float = flag(
        1e-4, "How much lower the validation loss must be to count as lower, in nats.", ge=0
    )
    max_epochs: int = flag(500, "Epochs at most; the document has no limit.", ge=1)
    train_dataset_size: int = flag(
        -1, "Training images, drawn at random in equal shares of both digits; -1 or 0 takes all.", ge=-1
    )
    validation: Literal["original", "confounded"] = flag(
        "original",
        "What early stopping and the choice of epoch and settings look at: plain digits (documented; these are the target), "
        "or dotted ones.",
    )
    grad_clip: float = flag(
        0.0, "Scale gradients down to this length (L2; the document suggests 1.0); 0 is off.", ge=0
    )


class Train(Correcting):
    """Train one combination: one cell of the grids that run goes through."""

    command = "train"

    learning_rate: float = flag(0.01, "Learning rate of Adam.", gt=0)
    loss_type: LossType = flag(
        "balanced",
        "balanced, CE(confounded) + lambda CE(corrected), or imbalanced, CE(whole batch).",
    )
    lambda_weight: float = flag(1.0, "Weight of the corrected images' loss (balanced only).", ge=0, le=1e12)
    user_corrected_pool_size: int = flag(100, "Corrected 8s to draw from.", ge=1)
    seed: int | None = flag(
        None, "Random seed, which then stands in the directory's name; without it seed 0.", ge=0
    )
    tensorboard_log_dir: str = flag(
        "runs/baseline_experiment", "Where the run's directory is exported.", where=True
    )
    data_sha256: str = flag("", "Refuse data with another digest; filled in by the command itself.")
    base_sha256: str = flag("", "Refuse a base model with another digest; filled in by the command itself.")

    @property
    def random_seed(self) -> int:
        return self.seed or 0

    def canonical(self) -> Train:
        """No seed is seed 0, and lambda has no effect on the imbalanced loss: only names differ."""
        weight = (
            self.lambda_weight if self.loss_type == "balanced" else type(self).default_of("lambda_weight")
        )
        return self.model_copy(update={"seed": self.random_seed, "lambda_weight": weight})

    @property
    def name(self) -> str:
        """The documented name of the run's directory."""
        stem = f"lr{self.learning_rate}_loss{self.loss_type}_lambda{self.lambda_weight}_pool{self.user_corrected_pool_size}"
        return stem if self.seed is None else f"{stem}_seed{self.seed}"

    @property
    def log_dir(self) -> Path:
        return Path(self.tensorboard_log_dir) / self.name


class Run(OnCards, Correcting, Loading):
    """Run an experiment of a config file: its grid, the document's checks on it, and the page with the answers.

    Without --config the document's four: overfit_test, lr_search, lambda_search, full_grid_search. A finished lr_search in the
    same output folder supplies the others with its best learning rate, lambda_search the full grid with its best lambda.
    """

    command = "run"

    experiment: str = flag(..., "Which experiment of the config file.", "--experiment", "-e")
    learning_rate: tuple[float, ...] = flag(
        (), "Learning rates of the grid; else an earlier stage's or the experiment's."
    )
    loss_type: tuple[Literal["balanced", "imbalanced", "both"], ...] = flag(
        ("both",), "balanced, imbalanced or both."
    )
    lambda_weight: tuple[float, ...] = flag(
        (), "Lambdas of the grid; else an earlier stage's or the experiment's."
    )
    user_corrected_pool_size: tuple[int, ...] = flag((100,), "Numbers of corrected 8s of the grid.")
    seed: tuple[int, ...] = flag(
        (), "Random seeds, each of which gives a run of its own; without it seed 0.", "--seed", "--seeds"
    )
    accuracy_threshold: float = flag(
        0.95,
        "Accuracy that counts as learnt, in the checks and answers, and for --stop-grid-at-threshold.",
        gt=0,
        le=1,
    )
    stop_grid_at_threshold: bool = flag(
        False,
        "Skip what follows in a loss's grid once a run reaches --accuracy_threshold on validation.",
        "--stop-grid-at-threshold",
    )
    controls: bool = flag(
        True,
        "Beside a curve over lambda also train the imbalanced loss, and balanced at lambda = k / (B - k), which should equal it.",
    )
    output_filename: str = flag(
        "experiments/baseline_default.csv", "The table with a row per combination.", where=True
    )
    tensorboard_log_dir: str = flag(
        "runs/baseline_experiment", "Where each run's directory is exported.", where=True
    )
    plots_dir: str = flag("./plots", "Where the figures and the page are written.", where=True)
    dataset: str | None = flag(
        None, f"What 08MNIST is made of where it is missing, else mnist. {DATASET}", where=True
    )
    jobs: int = flag(0, "Runs at a time; 0 is one per core, or per CUDA card.", where=True, ge=0)

    _listed = field_validator(
        "learning_rate", "loss_type", "lambda_weight", "user_corrected_pool_size", "seed", mode="before"
    )(listed)

    @property
    def losses(self) -> tuple[LossType, ...]:
        both: tuple[LossType, ...] = ("balanced", "imbalanced")
        return both if "both" in self.loss_type else tuple(t for t in both if t in self.loss_type)

    def grid(self) -> Iterator[Train]:
        """Every cell, in the document's order; the imbalanced loss once, under the first lambda (decision 33)."""
        shared = {name: getattr(self, name) for name in Train.model_fields if name in Correcting.model_fields}
        shared["tensorboard_log_dir"] = self.tensorboard_log_dir
        pools = self.user_corrected_pool_size
        for rate, loss, weight, pool in product(self.learning_rate, self.losses, self.lambda_weight, pools):
            if loss == "imbalanced" and weight != self.lambda_weight[0]:
                continue
            for seed in self.seed or (None,):
                yield Train.parse(
                    {**shared, "learning_rate": rate, "loss_type": loss, "lambda_weight": weight,
                     "user_corrected_pool_size": pool, "seed": seed}
                )  # fmt: skip

    _each_once = field_validator("learning_rate", "lambda_weight", "user_corrected_pool_size", "seed")(
        lambda values: values and each_once(values)
    )


class Evaluate(Inputs):
    """Measure a checkpoint: accuracy on plain and dotted digits, and how far it follows the dot."""

    command = "evaluate"

    checkpoint: str = flag("./model_confounded.pth", "The checkpoint file.", where=True)


class Check(Correcting):
    """The document's debugging checklist: batches, labels, annotation, corrected images, gradients, updates."""

    command = "check"

    learning_rate: float = flag(0.01, "Learning rate of Adam.", gt=0)
    user_corrected_pool_size: int = flag(100, "Corrected 8s to draw from.", ge=1)
    seed: int = flag(0, "Random seed.", ge=0)


class Visualize(Settings):
    """Draw the figures of the finished experiments and the page with the answers, again."""

    study = "correction"
    command = "visualize"

    experiments_dir: str = flag("./experiments", "Where the experiments' tables are.", where=True)
    plots_dir: str = flag("./plots", "Where the figures and the page are written.", where=True)


GRID = Grid(
    Train,
    {
        "learning_rate": (0.01, 0.001), "loss_type": ("balanced", "imbalanced"), "lambda_weight": (1.0, 2.0),
        "user_corrected_pool_size": (100, 500),
    },
    "perturblab.studies.correction.planned:plan_of_runs",
    fixed={"early_stopping_patience": 15, "tensorboard_log_dir": "runs/full_grid_search"},
    named=("seed",),
    apart="tensorboard_log_dir",
    epochs="max_epochs",
    prepare="perturblab.studies.correction.planned:prepare",
    lacks="perturblab.studies.correction.planned:lacks",
    measures=(
        Measure("test_accuracy", "test accuracy", "%", 100), Measure("val_accuracy", "validation accuracy", "%", 100),
        Measure("reliance.accuracy_drop", "lost when the dots move", "points", 100),
    ),
    then="perturblab correction run --experiment full_grid_search",
)  # fmt: skip
"""The document's full_grid_search."""
COMMANDS: dict[str, Command] = {
    "run": Command(
        Run, "perturblab.studies.correction.grid:run", "perturblab.studies.correction.config:settings_of"
    ),
    "train": Command(Train, "perturblab.studies.correction.cell:train"),
    "build-data": Command(BuildData, "perturblab.studies.correction.data:build"),
    "convert": Command(Convert, "perturblab.studies.correction.data:convert"),
    "train-base": Command(TrainBase, "perturblab.studies.correction.base:train"),
    "check": Command(Check, "perturblab.studies.correction.check:check"),
    "evaluate": Command(Evaluate, "perturblab.studies.correction.evaluate:evaluate"),
    "visualize": Command(Visualize, "perturblab.studies.correction.answers:visualize"),
}
