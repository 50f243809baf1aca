"""adaptive-noise as a user types it: every documented flag, what a run leaves, what contradicts itself."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from commandline import parsed, refusal
from conftest import one_thread
from perturblab.models import MODELS
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.build import OURS, build
from perturblab.studies.adaptive_noise.control import controller_of
from perturblab.studies.adaptive_noise.run import folder, train
from perturblab.studies.adaptive_noise.training import PUBLISHED, Classifier, idle

TRAIN = ("adaptive-noise", "train")

# ---- what the document says to type ------------------------------------------------------------------------------

# Its table of arguments: long flag, short flag, another value as typed and as meant, default.
DOCUMENTED: dict[str, tuple[str, str, Any, Any]] = {
    "--data-dir": ("", "elsewhere", "elsewhere", "./data/cifar10"),
    "--classifier": ("-c", "TinyCNN", "TinyCNN", "resnet18"),
    "--batch-size": ("-b", "64", 64, 128),
    "--epochs": ("-e", "7", 7, 100),
    "--workers": ("-n", "2", 2, 4),
    "--subset": ("-s", "0.5", 0.5, 1.0),
    "--lr": ("", "0.2", 0.2, 1e-2),
    "--wd": ("", "5e-4", 5e-4, 1e-3),
    "--gpu": ("-g", "0,1,2", "0,1,2", "0"),
    "--save-as": ("", "mine.pth", "mine.pth", "none.pth"),
    "--download-weights": ("-w", "True", True, False),
    "--optimizer": ("-o", "Adam", "Adam", "SGD"),
    "--momentum": ("-m", "0.5", 0.5, 0.9),
    "--beta1": ("-b1", "0.8", 0.8, 0.9),
    "--beta2": ("-b2", "0.99", 0.99, 0.999),
    "--lr-restart-period": ("", "20", 20, 50),
    "--noise-type": ("-nt", "weight", "weight", "none"),
    "--noise-magnitude": ("-nm", "0.02", 0.02, 0.01),
    "--noise-schedule": ("-ns", "cosine", "cosine", "constant"),
    "--noise-distribution": ("-nd", "uniform", "uniform", "gaussian"),
    "--noise-layer": ("-nl", "conv1", ("conv1",), ()),
    "--permanent": ("-p", "True", True, False),
    "--noise-during-stuck-only": ("-so", "True", True, False),
    "--patience": ("", "9", 9, 5),
    "--flag-window-size": ("", "8", 8, 5),
    "--flag-min-epochs": ("", "20", 20, 10),
    "--flag-overfit-epochs": ("", "4", 4, 3),
    "--flag-plateau-delta": ("", "1e-3", 1e-3, 1e-4),
    "--flag-grad-plateau-thr": ("", "0.1", 0.1, 0.05),
    "--flag-low-weight-update-thr": ("", "1e-3", 1e-3, 1e-4),
    "--disable-adaptive-flags": ("", "True", True, False),
    "--relative-min-noise": ("", "0.02", 0.02, 0.01),
    "--relative-max-noise": ("", "0.2", 0.2, 0.10),
    "--consecutive-flag-trigger": ("", "2", 2, 3),
    "--min-cooldown-epochs": ("", "4", 4, 5),
    "--max-cooldown-epochs": ("", "20", 20, 15),
    "--visualize-lr": ("", "True", True, False),
    "--disable-graphs": ("", "False", False, True),
    "--detailed-metrics": ("", "True", True, False),
}


@pytest.mark.parametrize("flag", DOCUMENTED)
def test_a_documented_flag_is_understood_long_and_short_and_has_its_documented_default(flag: str) -> None:
    short, typed, meant, default = DOCUMENTED[flag]
    field = Train.field_for(flag)
    assert getattr(Train(), field) == default
    for name in filter(None, (flag, short, flag.replace("-", "_").replace("__", "--", 1))):
        assert getattr(parsed(*TRAIN, name, typed), field) == meant


@pytest.mark.parametrize("flag", [name for name, row in DOCUMENTED.items() if isinstance(row[3], bool)])
def test_a_boolean_is_a_bare_flag_or_takes_a_word(flag: str) -> None:
    short, field = DOCUMENTED[flag][0], Train.field_for(flag)
    for name in filter(None, (flag, short)):
        assert getattr(parsed(*TRAIN, name), field) is True
        assert getattr(parsed(*TRAIN, name, "--lr", "0.1"), field) is True
        assert getattr(parsed(*TRAIN, name, "True"), field) is True
        assert getattr(parsed(*TRAIN, name, "False"), field) is False


def test_layers_are_given_repeatedly_as_documented_or_in_a_row() -> None:
    wanted = Train(noise_layer=("conv1", "fc"))
    assert parsed(*TRAIN, "--noise-layer", "conv1", "--noise-layer", "fc") == wanted
    assert parsed(*TRAIN, "-nl", "conv1", "-nl", "fc") == wanted
    assert parsed(*TRAIN, "-nl", "conv1", "fc", "-e", "100") == wanted


@pytest.mark.parametrize(("typed", "meant"), [
    ("simple_cnn", "SimpleCNN"), ("SimpleCNN", "SimpleCNN"), ("tiny_cnn", "TinyCNN"), ("baby_cnn", "BabyCNN"), ("babycnn", "BabyCNN"), ("ResNet18", "resnet18"),
])  # fmt: skip
def test_networks_are_called_as_in_the_document_or_its_code(typed: str, meant: str) -> None:
    assert parsed(*TRAIN, "-c", typed) == Train(classifier=meant)
    assert parsed("adaptive-noise", "sweep", "-c", typed).classifiers == (meant,)


def test_optimisers_are_understood_in_either_case() -> None:
    assert parsed(*TRAIN, "-o", "adam").optimizer == parsed(*TRAIN, "-o", "Adam").optimizer == "Adam"
    assert parsed(*TRAIN, "-o", "sgd") == Train()


def test_window_and_minimum_are_not_swapped_on_the_way_to_the_controller() -> None:
    s = parsed(*TRAIN, "--flag-window-size", "7", "--flag-min-epochs", "70")
    control = controller_of(s)
    assert (control.flag_window_size, control.flag_min_epochs) == (7, 70)


@pytest.mark.parametrize(("words", "shown"), [
    ((), False), (("--graphs",), True), (("--no-graphs",), False), (("--disable-graphs",), False), (("--disable-graphs", "False"), True),
])  # fmt: skip
def test_curves_on_the_terminal_can_be_turned_on_and_off(words: tuple[str, ...], shown: bool) -> None:
    assert parsed(*TRAIN, *words).shows_graphs is shown


def test_the_preset_is_what_the_report_ran_with_and_flags_beside_it_act() -> None:
    s = parsed(*TRAIN, "--preset", "published", "--lr", "0.1", "--batch-size", "64")
    assert (s.controller, s.noise_scale, s.permanent, s.val_source) == (
        "published", "absolute", True, "test-halves",
    )  # fmt: skip
    assert (s.flag_window_size, s.flag_min_epochs, s.epochs, s.wd) == (70, 10, 300, 1e-4)
    assert (s.lr, s.batch_size) == (0.1, 64)
    by_hand = Train.parse({**PUBLISHED, "lr": 0.1, "batch_size": 64})
    assert s.id == by_hand.id
    assert parsed(*s.arguments()).id == s.id  # what a launcher starts is the same run


def test_dropout_noise_is_refused_with_the_valid_names() -> None:
    assert refusal(*TRAIN, "-nt", "dropout").startswith(
        "--noise-type 'dropout' is not one of none, gradient, weight, input, label"
    )


@pytest.mark.parametrize("classifier", get_args(Classifier))
def test_every_network_that_can_be_named_is_there(classifier: str) -> None:
    assert OURS.get(classifier, classifier) in MODELS


@pytest.mark.parametrize(("classifier", "count"), [
    ("BabyCNN", 20_714), ("TinyCNN", 545_098), ("SimpleCNN", 22_954_506), ("resnet18", 11_173_962),
])  # fmt: skip
def test_networks_have_the_documented_number_of_parameters(classifier: str, count: int, images) -> None:
    colour = images.__class__(
        torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), tuple("0123456789"), (0.5,) * 3, (0.5,) * 3
    )  # fmt: skip
    model = build(classifier, colour)
    assert sum(p.numel() for p in model.parameters()) == count


# ---- every flag changes the run, or says that it cannot ------------------------------------------------------------

SMALL = {
    "classifier": "BabyCNN", "width": 0.5, "epochs": 6, "batch_size": 16, "lr": 0.02, "device": "cpu", "threads": 1,
    "flag_window_size": 2, "flag_min_epochs": 2, "flag_overfit_epochs": 1, "flag_grad_plateau_thr": 0.9, "flag_plateau_delta": 1e-3,
    "flag_low_weight_update_thr": 1.0, "consecutive_flag_trigger": 1, "min_cooldown_epochs": 1, "max_cooldown_epochs": 2, "sharpness_draws": 2,
    "sharpness_sigma": 0.5,
}  # fmt: skip
STATIC = {"disable_adaptive_flags": True, "noise_type": "gradient", "noise_magnitude": 0.2}
STATIC_WEIGHT = {**STATIC, "noise_type": "weight"}
OVERFIT = {"flag_grad_plateau_thr": 1e-9, "flag_low_weight_update_thr": 0.0, "flag_plateau_delta": 1e-9}
UNSTUCK = {
    "flag_grad_plateau_thr": 1e-9,
    "flag_low_weight_update_thr": 0.0,
    "flag_plateau_delta": 1e-9,
    "flag_overfit_epochs": 4,
}

# field -> (settings in which it acts, another value)
ACTS: dict[str, tuple[dict[str, Any], Any]] = {
    "classifier": ({}, "mlp"), "batch_size": ({}, 24), "epochs": ({}, 5), "subset": ({}, 0.5), "lr": ({}, 0.01), "wd": ({}, 0.1),
    "optimizer": ({}, "Adam"), "momentum": ({}, 0.5), "beta1": ({"optimizer": "Adam", "lr": 0.01}, 0.5),
    "beta2": ({"optimizer": "Adam", "lr": 0.01}, 0.9), "lr_restart_period": ({}, 2),
    "lr_final_max": ({"lr_restart_period": 2}, 0.04), "noise_type": ({"disable_adaptive_flags": True, "noise_magnitude": 0.2}, "input"),
    "noise_magnitude": (STATIC, 0.5), "noise_schedule": (STATIC, "linear"), "noise_distribution": (STATIC, "uniform"),
    "noise_layer": (STATIC, ("conv1",)), "permanent": (STATIC_WEIGHT, True), "noise_scale": (STATIC, "absolute"),
    "noise_include_bn": ({**STATIC, "classifier": "resnet20", "width": 0.25}, False), "noise_include_bias": (STATIC, False),
    "noise_during_stuck_only": ({**STATIC, "disable_adaptive_flags": False, **UNSTUCK}, True),
    "patience": ({"noise_during_stuck_only": True, **UNSTUCK, "lr": 1e-7}, 0),
    "flag_window_size": ({"flag_grad_plateau_thr": 0.2}, 4), "flag_min_epochs": ({}, 4),
    "flag_overfit_epochs": ({**OVERFIT, "epochs": 10}, 4), "flag_plateau_delta": ({**OVERFIT, "flag_overfit_epochs": 4}, 10.0),
    "flag_grad_plateau_thr": (UNSTUCK, 2.0), "flag_low_weight_update_thr": (UNSTUCK, 100.0),
    "disable_adaptive_flags": ({}, True), "relative_min_noise": ({**UNSTUCK, "flag_low_weight_update_thr": 100.0}, 0.1),
    "relative_max_noise": ({}, 1.0), "consecutive_flag_trigger": ({}, 2), "min_cooldown_epochs": ({"max_cooldown_epochs": 4}, 4),
    "max_cooldown_epochs": ({}, 4), "controller": ({"consecutive_flag_trigger": 3}, "published"), "seed": ({}, 1),
    "val_source": ({}, "test-halves"), "augment": ({}, "none"), "clean_every": ({}, 3), "detailed_metrics": ({}, True),
    "sharpness_draws": ({}, 3), "sharpness_sigma": ({}, 0.1), "width": ({}, 0.25), "dataset": ({"lr": 0.001}, "digits"),
    "precision": ({}, "bf16"), "preset": ({"epochs": 6, "flag_window_size": 2}, "published"),
    "normalize": ({}, "data"),
}  # fmt: skip
# Fields that say where or how, each with the test that shows what it does.
ELSEWHERE = {
    "data_dir": "test_datasets", "num_workers": "test_datasets", "threads": "test_train", "device": "test_cli", "runs_dir": "below", "compile": "test_train",
    "checkpoint_every": "test_kill", "checkpoint_dir": "below", "suffix": "below", "save_as": "below", "visualize_lr": "below",
    "download_weights": "below", "gpu": "below", "graphs": "dashboard", "disable_graphs": "dashboard",
}  # fmt: skip


@pytest.fixture(scope="module")
def colour_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few dozen images of three channels, so that the documented constants and those of the data differ."""
    import numpy as np

    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "colour.npz"
    arrays: dict[str, Any] = {}
    for split, n in (("train", 120), ("test", 40)):
        labels = np.arange(n) % 4
        arrays[f"y_{split}"] = labels
        arrays[f"x_{split}"] = (
            random.integers(0, 90, (n, 8, 8, 3)) + labels[:, None, None, None] * 40
        ).astype(np.uint8)
    np.savez(path, **arrays)
    return path


def results(settings: dict[str, Any], npz: Path, tmp_path: Path) -> dict[str, Any]:
    """What a run with these settings found, without what it is called and its settings."""
    where = {"runs_dir": str(tmp_path / "runs"), "checkpoint_dir": str(tmp_path / "checkpoints")}
    s = Train.parse({"dataset": f"npz:{npz}", **SMALL, **settings, **where})
    with one_thread():
        train(s)
    found = folder(s)[1].results()
    named = (
        "config",
        "name",
        "arm",
        "run_id",
        "baseline_id",
        "classifier",
        "optimizer",
        "seed",
        "parameters",
    )
    return {key: value for key, value in found.items() if key not in named}


def test_every_flag_of_train_is_tested_here() -> None:
    assert ACTS.keys() | ELSEWHERE.keys() == Train.model_fields.keys()


@pytest.mark.parametrize("field", ACTS)
def test_a_flag_changes_the_run(field: str, colour_npz: Path, tmp_path: Path) -> None:
    beside, value = ACTS[field]
    s = Train.parse({**SMALL, **beside})
    assert field not in idle(s)
    before = results(beside, colour_npz, tmp_path)
    after = results({**beside, field: value}, colour_npz, tmp_path)
    assert before != after


IDLE: dict[str, tuple[dict[str, Any], Any]] = {
    "momentum": ({"optimizer": "Adam"}, 0.5), "beta1": ({}, 0.5), "beta2": ({}, 0.9), "lr_final_max": ({"lr_restart_period": 100}, 0.1),
    "noise_magnitude": ({"noise_during_stuck_only": True}, 0.02), "noise_schedule": ({}, "linear"),
    "noise_type": ({"controller": "published"}, "weight"), "noise_distribution": ({"disable_adaptive_flags": True}, "uniform"),
    "noise_layer": ({"disable_adaptive_flags": True, "noise_type": "input"}, ("conv1",)), "permanent": (STATIC, True),
    "noise_scale": ({"disable_adaptive_flags": True, "noise_type": "label"}, "absolute"), "noise_include_bn": ({"classifier": "BabyCNN"}, False),
    "noise_include_bias": ({"disable_adaptive_flags": True}, False), "noise_during_stuck_only": ({"disable_adaptive_flags": True}, True),
    "patience": ({}, 0), "controller": ({"disable_adaptive_flags": True}, "published"), "sharpness_sigma": ({"sharpness_draws": 0}, 0.1),
    **{name: ({"disable_adaptive_flags": True}, value) for name, value in {
        "flag_window_size": 3, "flag_min_epochs": 3, "flag_overfit_epochs": 2, "flag_plateau_delta": 0.1, "flag_grad_plateau_thr": 0.2,
        "flag_low_weight_update_thr": 0.3, "relative_min_noise": 0.02, "relative_max_noise": 0.3, "consecutive_flag_trigger": 2,
        "min_cooldown_epochs": 0, "max_cooldown_epochs": 9,
    }.items()},
}  # fmt: skip


@pytest.mark.parametrize("field", IDLE)
def test_a_flag_that_cannot_act_beside_the_others_is_one_warning_and_the_same_run(
    field: str, capsys, monkeypatch
) -> None:
    from perturblab.studies.adaptive_noise.run import warn_of_idle

    beside, value = IDLE[field]
    plain, given = Train.parse({**SMALL, **beside}), Train.parse({**SMALL, **beside, field: value})
    assert plain.canonical().id == given.canonical().id
    warn_of_idle(Train.parse({**beside, field: value}))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: without effect beside the other flags: ")
    assert field in lines[0].replace("-", "_")


def test_a_flag_that_acts_is_no_warning(capsys) -> None:
    from perturblab.studies.adaptive_noise.run import warn_of_idle

    warn_of_idle(Train.parse({"noise_type": "weight", "noise_magnitude": 0.1, "permanent": True, "lr": 0.1}))
    warn_of_idle(Train.parse({"preset": "published"}))  # its values were not given by hand
    assert capsys.readouterr().err == ""
