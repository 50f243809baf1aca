"""What a run of adaptive-noise is set to: the flags of document 004 under its names, and which of them act together."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import ModelWrapValidatorHandler, field_validator, model_validator

from perturblab.flags import Fitting, Suffixed, is_upright, listed
from perturblab.settings import flag

Classifier = Literal[
    "resnet18", "SimpleCNN", "TinyCNN", "BabyCNN", "resnet20", "resnet32", "resnet44", "resnet56",
    "vgg9", "vgg11", "vgg13", "vgg16", "vgg19", "cnn2", "mlp",
]  # fmt: skip
OptimizerName = Literal["SGD", "Adam"]
Distribution = Literal["gaussian", "uniform"]
Target = Literal["gradient", "weight", "input", "label"]

# What the report of document 004 ran with (adaptive-noise.md 5.1, 5.9 #1; decision 9). Its learning rates, optimisers and
# distributions are axes of its tables.
PUBLISHED: dict[str, Any] = {
    "controller": "published", "noise_scale": "absolute", "permanent": True, "val_source": "test-halves",
    "epochs": 300, "batch_size": 256, "wd": 1e-4, "lr_restart_period": 50,
    "flag_window_size": 70, "flag_min_epochs": 10, "flag_overfit_epochs": 3, "flag_plateau_delta": 1e-4,
    "flag_grad_plateau_thr": 0.025, "flag_low_weight_update_thr": 5e-4,
    "relative_min_noise": 0.01, "relative_max_noise": 0.05,
    "consecutive_flag_trigger": 10, "min_cooldown_epochs": 3, "max_cooldown_epochs": 10,
}  # fmt: skip

# Fields that only the flags of the controller read.
OF_FLAGS = (
    "flag_window_size", "flag_min_epochs", "flag_overfit_epochs", "flag_plateau_delta", "flag_grad_plateau_thr",
    "flag_low_weight_update_thr", "relative_min_noise", "relative_max_noise", "consecutive_flag_trigger",
    "min_cooldown_epochs", "max_cooldown_epochs",
)  # fmt: skip
WITHOUT_BATCHNORM = ("SimpleCNN", "TinyCNN", "BabyCNN", "cnn2", "mlp")
OF_STATIC = ("noise_magnitude", "noise_schedule")
OF_PARAMETERS = ("noise_layer", "noise_include_bn", "noise_include_bias")


def cards(value: str) -> str:
    if not all(word.strip().isdecimal() for word in value.split(",")):
        raise ValueError("it must be a card's number, or several as in 0,1,2")
    return value


class Common(Fitting, Suffixed):
    """What ``train`` and every cell of ``sweep`` share."""

    study = "adaptive-noise"

    data_dir: str = flag("./data/cifar10", "Where data sets are kept.", "--data-dir", where=True)
    num_workers: int = flag(
        4, "Threads that decode images when a set is first loaded.", "--workers", "-n", "--num_workers", where=True, ge=0,
    )  # fmt: skip
    batch_size: int = flag(
        128, "Images per step; what does not fill a batch is left out.", "--batch-size", "-b", ge=1
    )
    epochs: int = flag(100, "Training epochs.", "--epochs", "-e", ge=1)
    subset: float = flag(
        1.0, "Fraction of the training images, each class in its share.", "--subset", "-s", gt=0, le=1
    )
    wd: float = flag(1e-3, "Weight decay (L2) on all parameters.", "--wd", "--weight-decay", ge=0)
    gpu: str = flag(
        "0",
        "Which CUDA card, as in 0 or 0,1,2: a run takes the first, a sweep spreads its runs over them.",
        "--gpu",
        "-g",
        where=True,
    )
    download_weights: bool = flag(
        False, "Accepted; no weights are published for these layouts.", "--download-weights", "-w", where=True
    )
    beta1: float = flag(0.9, "Adam's beta1.", "--beta1", "-b1", ge=0, lt=1)
    beta2: float = flag(0.999, "Adam's beta2.", "--beta2", "-b2", ge=0, lt=1)
    lr_restart_period: int = flag(
        50, "Epochs from one restart of the cosine to the next.", "--lr-restart-period", ge=1
    )
    lr_final_max: float = flag(
        1e-5, "Learning rate of the last restarts, absolute (published equation).", "--lr-final-max", gt=0
    )

    noise_magnitude: float = flag(
        0.01, "Strength of static noise at the start.", "--noise-magnitude", "-nm", ge=0
    )
    noise_schedule: Literal["constant", "linear", "cosine", "exponential"] = flag(
        "constant", "How static noise changes over the epochs.", "--noise-schedule", "-ns"
    )
    noise_layer: tuple[str, ...] = flag(
        (),
        "Noise only on parameters whose name contains one of these, such as conv1; all by default.",
        "--noise-layer",
        "-nl",
    )
    permanent: bool = flag(
        False, "Weight noise stays in the weights (weight noise only).", "--permanent", "-p"
    )
    noise_scale: Literal["relative", "absolute"] = flag(
        "relative",
        "relative: times the root mean square of each tensor; absolute: the published runs' standard deviation.",
        "--noise-scale",
    )
    noise_include_bn: bool = flag(
        True, "Noise also on BatchNorm's scales and shifts (documented).", "--noise-include-bn"
    )
    noise_include_bias: bool = flag(True, "Noise also on biases (documented).", "--noise-include-bias")

    controller: Literal["documented", "published"] = flag(
        "documented",
        "documented: noise after --consecutive-flag-trigger flagged epochs, then a cooldown; published: noise in every flagged "
        "epoch, a cooldown after so many.",
        "--controller",
    )
    noise_during_stuck_only: bool = flag(
        False, "Noise only when training is stuck or overfits.", "--noise-during-stuck-only", "-so"
    )
    patience: int = flag(
        5, "Epochs without a lower training loss before noise (with -so).", "--patience", ge=0
    )
    flag_window_size: int = flag(
        5, "Epochs over which the flags look for progress.", "--flag-window-size", ge=2
    )
    flag_min_epochs: int = flag(10, "Epochs before flags are looked at.", "--flag-min-epochs", ge=0)
    flag_overfit_epochs: int = flag(
        3, "Rises of the validation loss that mean overfitting.", "--flag-overfit-epochs", ge=1
    )
    flag_plateau_delta: float = flag(
        1e-4, "Least fall of the validation loss over the window.", "--flag-plateau-delta", gt=0
    )
    flag_grad_plateau_thr: float = flag(
        0.05, "Least relative fall of the gradient norm over the window.", "--flag-grad-plateau-thr", gt=0
    )
    flag_low_weight_update_thr: float = flag(
        1e-4, "Least mean length of an epoch's update of all weights.", "--flag-low-weight-update-thr", ge=0
    )
    relative_min_noise: float = flag(
        0.01, "Adaptive noise where training is least stuck.", "--relative-min-noise", ge=0
    )
    relative_max_noise: float = flag(
        0.10, "Adaptive noise where training is most stuck.", "--relative-max-noise", ge=0
    )
    consecutive_flag_trigger: int = flag(
        3,
        "Flagged epochs in a row before noise (before the cooldown, if published).",
        "--consecutive-flag-trigger",
        ge=1,
    )
    min_cooldown_epochs: int = flag(5, "Shortest wait after noise.", "--min-cooldown-epochs", ge=0)
    max_cooldown_epochs: int = flag(15, "Longest wait after noise.", "--max-cooldown-epochs", ge=0)

    val_source: Literal["train", "test-halves"] = flag(
        "train",
        "Validation images: 5,000 held out of train (at most one in ten), or one half of test (published; the other is then the test set).",
        "--val-source",
    )
    augment: Literal["auto", "crop-flip", "crop", "none"] = flag(
        "auto", "Training augmentation; auto is crop-flip (documented), or crop for digits and mnist."
    )
    clean_every: int = flag(
        1, "Measure clean train accuracy every N epochs (and after the last).", "--clean-every", ge=1
    )
    detailed_metrics: bool = flag(
        False, "Also accuracy per class on clean train images.", "--detailed-metrics"
    )
    sharpness_draws: int = flag(
        10, "Random weight perturbations at the end; 0 skips the measurement.", "--sharpness-draws", ge=0
    )
    sharpness_sigma: float = flag(
        0.01, "Their size, times the root mean square of each tensor.", "--sharpness-sigma", gt=0
    )
    width: float = flag(
        1.0, "Scales every channel count and hidden layer; 1 is the documented network.", gt=0, le=8
    )
    preset: Literal["none", "published"] = flag(
        "none",
        "published: the values that the report ran with (machine A, absolute permanent noise, window 70, 300 epochs, test halves); "
        "other flags still act.",
        "--preset",
        where=True,
    )
    checkpoint_dir: str = flag(
        "./checkpoints", "Where checkpoints and metrics are exported.", "--checkpoint-dir", where=True
    )

    @model_validator(mode="wrap")
    @classmethod
    def _take_preset(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """A preset is short for its values: the run is the one that these name. They do not count as given by hand."""
        if not isinstance(values, dict) or values.get("preset") != "published":
            return validate(values)
        given = {name: value for name, value in values.items() if name != "preset"}
        made = validate({**PUBLISHED, **given})
        made.model_fields_set.intersection_update(given)
        return made

    _layers = field_validator("noise_layer", mode="before")(listed)

    _cards = field_validator("gpu")(cards)

    @property
    def augmentation(self) -> str:
        """``augment`` with ``auto`` resolved."""
        if self.augment != "auto":
            return self.augment
        return "crop" if is_upright(self.dataset) else "crop-flip"


def classifier_name(given: Any) -> Any:
    """Names as the document (``BabyCNN``) or its code (``baby_cnn``) spells them, in any case."""
    known = {name.lower(): name for name in get_args(Classifier)}
    return known.get(str(given).lower().replace("_", ""), given)


def optimizer_name(given: Any) -> Any:
    return {"sgd": "SGD", "adam": "Adam"}.get(str(given).lower(), given)


def idle(s: Any) -> dict[str, str]:
    """Fields of a run that cannot act beside the others, with the reason in the user's words."""
    found: dict[str, str] = {}

    def because(reason: str, *fields: str) -> None:
        for field in fields:
            found.setdefault(field, reason)

    because(f"--optimizer {s.optimizer}", *(("beta1", "beta2") if s.optimizer == "SGD" else ("momentum",)))
    if s.lr_restart_period >= s.epochs:
        because("the run ends before its first restart", "lr_final_max")
    if s.disable_adaptive_flags:
        because("--disable-adaptive-flags", *OF_FLAGS, "patience", "noise_during_stuck_only")
        if s.noise_type == "none":
            because("there is no noise", "controller")
    if s.controller == "published":
        because("--controller published", "noise_type", *OF_STATIC, "noise_during_stuck_only", "patience")
    elif not s.disable_adaptive_flags:
        if s.noise_during_stuck_only:
            because("--noise-during-stuck-only", "noise_type", *OF_STATIC)
        else:
            because("it acts with --noise-during-stuck-only", "patience")
    if s.noise_type == "none":
        because("--noise-type none", *OF_STATIC)
    _of_targets(targets(s), because)
    if s.classifier in WITHOUT_BATCHNORM:
        because(f"{s.classifier} has no BatchNorm", "noise_include_bn")
    if not s.sharpness_draws:
        because("--sharpness-draws 0", "sharpness_sigma")
    return found


def _of_targets(possible: set[str], because: Any) -> None:
    what = " and ".join(sorted(possible))
    if not possible:
        because("there is no noise", "noise_distribution", "noise_scale", "permanent", *OF_PARAMETERS)
    if "weight" not in possible:
        because(f"there is {what} noise, none on weights", "permanent")
    if not possible & {"gradient", "weight"}:
        because(f"{what} noise knows no layers", *OF_PARAMETERS)
    if possible == {"label"}:
        because("label noise draws classes", "noise_distribution", "noise_scale")


def targets(s: Any) -> set[str]:
    """What noise may act on in this run: the flags choose gradients or weights, ``noise_type`` is the static noise."""
    found = set() if s.disable_adaptive_flags else {"gradient", "weight"}
    left_to_flags = s.noise_during_stuck_only and not s.disable_adaptive_flags
    if s.noise_type != "none" and s.controller == "documented" and not left_to_flags:
        found.add(s.noise_type)
    return found
