"""adaptive-noise: does noise help a network that is stuck or overfits, when it comes only then?

A CNN is trained on CIFAR-10 while flags watch it: the gradient norm or the weights hardly move (noise on gradients), the
validation loss stands still or rises while the training loss falls (noise on weights). Noise is as strong as training is
stuck, and a cooldown follows (document 004). A baseline of the same seed always belongs to a sweep.

    perturblab adaptive-noise train --classifier BabyCNN
    perturblab adaptive-noise sweep -c BabyCNN TinyCNN --seeds 0 1 2
    perturblab adaptive-noise test -c checkpoints/FILE.pth -m BabyCNN
    perturblab adaptive-noise visualize

The document's report found accuracy equal or worse with noise, and a smaller gap between train and validation under SGD.
Exports: checkpoints/*.pth, checkpoints/metrics/{classifier}_{noise_type}_{id}/*.json, plots/*.png.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator

from perturblab.flags import Loading, OnCards, each_once
from perturblab.grids import Grid, Measure
from perturblab.settings import Command, Settings, flag
from perturblab.studies.adaptive_noise.training import (
    PUBLISHED,
    Classifier,
    Common,
    Distribution,
    OptimizerName,
    cards,
    classifier_name,
    idle,
    optimizer_name,
)


class Train(Common):
    """Train one network, with noise when it is stuck or overfits, and measure it."""

    command = "train"

    classifier: Classifier = flag(
        "resnet18",
        "resnet18, SimpleCNN, TinyCNN, BabyCNN (also as simple_cnn, tiny_cnn, baby_cnn), or vgg9, vgg11, vgg13, vgg16, vgg19, "
        "resnet20, resnet32, resnet44, resnet56, cnn2, mlp.",
        "--classifier",
        "-c",
    )
    optimizer: OptimizerName = flag("SGD", "Optimiser, in either case.", "--optimizer", "-o")
    lr: float = flag(1e-2, "Learning rate at the start.", "--lr", gt=0)
    momentum: float = flag(0.9, "SGD's momentum; Nesterov's if above 0.", "--momentum", "-m", ge=0, lt=1)
    noise_type: Literal["none", "gradient", "weight", "input", "label"] = flag(
        "none", "Static noise: all the time, or between the flags' noise.", "--noise-type", "-nt"
    )
    noise_distribution: Distribution = flag(
        "gaussian", "Law of the noise; both have equal variance.", "--noise-distribution", "-nd"
    )
    disable_adaptive_flags: bool = flag(
        False, "No flags are looked at: noise is static.", "--disable-adaptive-flags"
    )
    seed: int = flag(0, "Random seed.", "--seed", ge=0)
    save_as: str = flag(
        "none.pth", "File name of the checkpoint; none.pth makes one.", "--save-as", where=True
    )
    visualize_lr: bool = flag(
        False, "Draw the learning rates before training: lr_schedule.png.", "--visualize-lr", where=True
    )
    disable_graphs: bool = flag(
        True, "No curves on the terminal.", "--disable-graphs", "--no-graphs", where=True
    )
    graphs: bool = flag(False, "Small curves on the terminal.", "--graphs", where=True)

    _classifier = field_validator("classifier", mode="before")(classifier_name)
    _optimizer = field_validator("optimizer", mode="before")(optimizer_name)

    @field_validator("save_as")
    @classmethod
    def _a_file(cls, value: str) -> str:
        if "/" in value or "\\" in value or not value.endswith((".pth", ".pt")) or len(value) < 5:
            raise ValueError("it must be a file name that ends in .pth (folders: --checkpoint-dir)")
        return value

    def canonical(self) -> Train:
        """``auto`` is resolved; fields that cannot act beside the others are reset, so that they do not make two runs of one."""
        changes = {name: type(self).default_of(name) for name in idle(self)}
        return self.model_copy(update={**changes, "augment": self.augmentation})

    @property
    def shows_graphs(self) -> bool:
        return self.graphs or not self.disable_graphs

    @property
    def arm(self) -> str:
        """Where noise comes from: ``baseline``, ``adaptive``, a static target, or both."""
        static = [] if "noise_type" in idle(self) or self.noise_type == "none" else [self.noise_type]
        words = [*([] if self.disable_adaptive_flags else ["adaptive"]), *static]
        return "-".join(words) or "baseline"

    @property
    def name(self) -> str:
        law = f"_{self.noise_distribution}" if self.arm != "baseline" else ""
        tail = f"_{self.suffix}" if self.suffix else ""
        return f"{self.classifier}_{self.optimizer}_{self.arm}{law}_seed{self.seed}{tail}"

    @property
    def metrics_dir(self) -> Path:
        """The documented folder of the run's metrics, with its id in place of the time: no two runs share one."""
        noise: str = self.noise_type
        if noise != "none":
            noise += f"_{self.noise_distribution}_{self.noise_magnitude:g}"
        tail = f"_{self.suffix}" if self.suffix else ""
        return Path(self.checkpoint_dir) / "metrics" / f"{self.classifier}_{noise}{tail}_{self.id}"

    def baseline(self) -> Train:
        """The same run without noise (decision 26)."""
        return self.model_copy(update={"noise_type": "none", "disable_adaptive_flags": True}).canonical()

    def with_baseline(self) -> tuple[Train, Train]:
        """Both as cells of a grid, with learning rate and momentum, which no documented name holds, in the suffix."""
        tag = f"lr{self.lr:g}" + (f"_m{self.momentum:g}" if self.optimizer == "SGD" else "")
        one = self.model_copy(update={"suffix": f"{tag}_{self.suffix}" if self.suffix else tag})
        return one.baseline(), one.canonical()


class Sweep(OnCards, Common):
    """Networks x optimisers x learning rates x noise x seeds, each with its baseline: the document's run_experiment.py."""

    command = "sweep"
    axes: ClassVar = {
        "classifier": "classifiers", "optimizer": "optimizers", "momentum": "momenta", "lr": "lrs",
        "noise_distribution": "distributions", "seed": "seeds",
    }  # fmt: skip

    # What run_experiment.py sets (adaptive-noise.md 5.2).
    batch_size: int = flag(256, "Images per step.", "--batch-size", "-b", ge=1)
    epochs: int = flag(300, "Training epochs.", "--epochs", "-e", ge=1)
    num_workers: int = flag(
        6, "Threads that decode images when a set is first loaded.", "--workers", "-n", "--num_workers", where=True, ge=0,
    )  # fmt: skip
    wd: float = flag(1e-4, "Weight decay (L2) on all parameters.", "--wd", "--weight-decay", ge=0)
    noise_schedule: Literal["constant", "linear", "cosine", "exponential"] = flag(
        "cosine", "How static noise changes over the epochs.", "--noise-schedule", "-ns"
    )
    permanent: bool = flag(True, "Weight noise stays in the weights.", "--permanent", "-p")
    noise_during_stuck_only: bool = flag(
        True, "Noise only when training is stuck or overfits.", "--noise-during-stuck-only", "-so"
    )
    patience: int = flag(
        10, "Epochs without a lower training loss before noise (with -so).", "--patience", ge=0
    )
    flag_window_size: int = flag(
        10, "Epochs over which the flags look for progress.", "--flag-window-size", ge=2
    )
    flag_min_epochs: int = flag(70, "Epochs before flags are looked at.", "--flag-min-epochs", ge=0)
    flag_grad_plateau_thr: float = flag(
        0.025, "Least relative fall of the gradient norm over the window.", "--flag-grad-plateau-thr", gt=0
    )
    flag_low_weight_update_thr: float = flag(
        5e-4, "Least mean length of an epoch's update of all weights.", "--flag-low-weight-update-thr", ge=0
    )
    relative_max_noise: float = flag(
        0.05, "Adaptive noise where training is most stuck.", "--relative-max-noise", ge=0
    )
    consecutive_flag_trigger: int = flag(
        10,
        "Flagged epochs in a row before noise (before the cooldown, if published).",
        "--consecutive-flag-trigger",
        ge=1,
    )
    min_cooldown_epochs: int = flag(3, "Shortest wait after noise.", "--min-cooldown-epochs", ge=0)
    max_cooldown_epochs: int = flag(10, "Longest wait after noise.", "--max-cooldown-epochs", ge=0)

    mode: Literal["sequential", "parallel", "generate"] = flag(
        "sequential", "Run one after another, several at a time, or write a shell script.", where=True
    )
    classifiers: tuple[Classifier, ...] = flag(
        ("BabyCNN", "TinyCNN", "resnet18", "SimpleCNN"), "Networks, as in train.", "--classifiers", "-c"
    )
    optimizers: tuple[OptimizerName, ...] = flag(("SGD",), "Optimisers.", "--optimizers", "-o")
    momenta: tuple[float, ...] = flag((0.0,), "SGD's momenta; Adam has none.", "--momenta", "-m")
    lrs: tuple[float, ...] = flag((1e-3,), "Learning rates.", "--lrs")
    arms: tuple[Literal["adaptive", "gradient", "weight", "input", "label"], ...] = flag(
        ("adaptive",), "Where noise comes from: the flags, or static noise on one target.", "--arms"
    )
    distributions: tuple[Distribution, ...] = flag(
        ("gaussian", "uniform"), "Laws of the noise.", "--distributions", "-nd"
    )
    seeds: tuple[int, ...] = flag((0,), "Random seeds; differences are paired over them.", "--seeds")
    jobs: int = flag(
        0, "Runs at a time with --mode parallel; 0 is one per core, or per CUDA card.", where=True, ge=0
    )
    output_script: str = flag("run_all.sh", "The script that --mode generate writes.", where=True)
    prefix: str = flag("python -m perturblab", "How generated lines call the program.", where=True)
    plots_dir: str = flag("./plots", "Where the comparison is drawn.", "--plots-dir", where=True)

    @field_validator("classifiers", mode="before")
    @classmethod
    def _classifiers(cls, values: Any) -> Any:
        return tuple(map(classifier_name, values)) if isinstance(values, list | tuple) else values

    @field_validator("optimizers", mode="before")
    @classmethod
    def _optimizers(cls, values: Any) -> Any:
        return tuple(map(optimizer_name, values)) if isinstance(values, list | tuple) else values

    _each_once = field_validator(
        "classifiers", "optimizers", "momenta", "lrs", "arms", "distributions", "seeds"
    )(each_once)

    def grid(self) -> Iterator[Train]:
        """Every cell once, in its canonical form: each baseline before the runs that are compared with it."""
        seen: set[str] = set()
        for classifier, (optimizer, momentum), lr, seed in product(
            self.classifiers, self._optimizers_with_momenta(), self.lrs, self.seeds
        ):
            varied = {"classifier": classifier, "optimizer": optimizer, "momentum": momentum, "lr": lr, "seed": seed}  # fmt: skip
            for one in self._arms(varied):
                if one.id not in seen:
                    seen.add(one.id)
                    yield one

    def _optimizers_with_momenta(self) -> list[tuple[str, float]]:
        by_name = {"SGD": self.momenta, "Adam": (0.9,)}
        return [(name, momentum) for name in self.optimizers for momentum in by_name[name]]

    def _arms(self, varied: dict[str, Any]) -> Iterator[Train]:
        shared = {name: getattr(self, name) for name in Common.model_fields}
        for arm, distribution in product(self.arms, self.distributions):
            static = {"noise_type": "none" if arm == "adaptive" else arm, "disable_adaptive_flags": arm != "adaptive"}  # fmt: skip
            one = Train.parse({**shared, **varied, **static, "noise_distribution": distribution})
            yield from one.with_baseline()


class Evaluate(Loading):
    """Measure a checkpoint, ours or the original scripts': loss, accuracy, and accuracy of each class."""

    study = "adaptive-noise"
    command = "test"

    checkpoint: str = flag(
        "checkpoints/resnet18_best.pth", "The checkpoint file.", "--checkpoint", "-c", where=True
    )
    classifier: Classifier = flag(
        "resnet18", "The network that the weights belong to, as in train.", "--classifier", "-m"
    )
    data_dir: str = flag("./data/cifar10", "Where data sets are kept.", "--data-dir", "-d", where=True)
    dataset: str = flag("cifar10", "The data set whose test images are used, as in train.")
    normalize: Literal["documented", "data"] = flag("documented", "Normalisation constants, as in train.")
    val_source: Literal["train", "test-halves"] = flag(
        "train",
        "train: the whole test set; test-halves: the half that a run of this setting held back.",
        "--val-source",
    )
    batch_size: int = flag(128, "Images per forward pass.", "--batch-size", "-b", where=True, ge=1)
    num_workers: int = flag(
        4, "Threads that decode images when a set is first loaded.", "--workers", "-w", "--num_workers", where=True, ge=0,
    )  # fmt: skip
    width: float = flag(1.0, "Width of the network, as in train.", gt=0, le=8)
    gpu: str = flag("0", "Which CUDA card.", "--gpu", "-g", where=True)
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps.", where=True)

    _classifier = field_validator("classifier", mode="before")(classifier_name)
    _cards = field_validator("gpu")(cards)


class Visualize(Settings):
    """Draw the study's figures from exported metrics, and compare every arm with its baseline."""

    study = "adaptive-noise"
    command = "visualize"

    checkpoint_dir: str = flag(
        "./checkpoints", "Where checkpoints and metrics were exported.", "--checkpoint-dir", where=True
    )
    plots_dir: str = flag("./plots", "Where plots are written.", "--plots-dir", where=True)
    classifiers: tuple[str, ...] = flag((), "Only these networks (all by default).", "--classifiers", "-c")
    seeds: tuple[int, ...] = flag((), "Only these seeds (all by default).", "--seeds")


GRID = Grid(
    Train,
    {"classifier": Sweep.default_of("classifiers"), "seed": (0,), "noise_distribution": Sweep.default_of("distributions")},
    "perturblab.studies.adaptive_noise.sweep:plan_of_runs",
    fixed={**{name: Sweep.default_of(name) for name in Common.model_fields}, "momentum": 0.0, "lr": 1e-3},
    presets={"preset": {"published": PUBLISHED}},
    named=("suffix", "optimizer", "momentum", "lr", "noise_type", "disable_adaptive_flags"),
    along=Train.with_baseline,
    prepare="perturblab.studies.adaptive_noise.sweep:check", then="perturblab adaptive-noise visualize",
    measures=(Measure("final_metrics.test_acc", "Test", "%", 100), Measure("final_metrics.best_accuracy", "Val", "%", 100), Measure("final_metrics.generalization_gap.final_gap", "Gap", "points", 100)),
)  # fmt: skip
COMMANDS: dict[str, Command] = {
    "train": Command(Train, "perturblab.studies.adaptive_noise.run:train"),
    "sweep": Command(Sweep, "perturblab.studies.adaptive_noise.sweep:sweep"),
    "test": Command(Evaluate, "perturblab.studies.adaptive_noise.evaluate:test"),
    "visualize": Command(Visualize, "perturblab.studies.adaptive_noise.figures:visualize"),
}
