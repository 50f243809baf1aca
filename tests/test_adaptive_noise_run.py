"""A run of adaptive-noise: what it leaves, what it is compared with, what it refuses, killed at any moment."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from commandline import refusal
from conftest import KillAtRandom, Zygote, one_thread, same_weights, until
from perturblab.datasets import NORMALISATION, load
from perturblab.runs import Diverged
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.build import build
from perturblab.studies.adaptive_noise.data import halves, split
from perturblab.studies.adaptive_noise.run import folder, train
from test_adaptive_noise import SMALL, STATIC_WEIGHT, colour_npz
from test_kill import check, killed_at_each

__all__ = ["colour_npz"]

DOCUMENTED_FILES = {
    "config.json", "epoch_metrics.jsonl", "noise_metrics.jsonl", "optimization_flags.jsonl", "final_metrics.json",
    "all_metrics.json", "controller.jsonl",
}  # fmt: skip


def settings_of(npz: Path, where: Path, **settings: Any) -> Train:
    places = {"runs_dir": str(where / "runs"), "checkpoint_dir": str(where / "checkpoints")}
    return Train.parse({"dataset": f"npz:{npz}", **SMALL, **settings, **places})


def run(npz: Path, where: Path, **settings: Any) -> tuple[Train, dict[str, Any]]:
    s = settings_of(npz, where, **settings)
    with one_thread():
        train(s)
    return folder(s)[0], folder(s)[1].results()


def weights(where: Path) -> dict[str, torch.Tensor]:
    (path,) = (where / "checkpoints").glob("*.pth")
    return torch.load(path, weights_only=True)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- what a run leaves ------------------------------------------------------------------------------------------------


def test_a_run_leaves_the_documented_files_with_the_documented_keys(colour_npz: Path, tmp_path: Path) -> None:
    s, _ = run(colour_npz, tmp_path, detailed_metrics=True)
    (metrics,) = (tmp_path / "checkpoints" / "metrics").iterdir()
    assert metrics == s.metrics_dir
    assert metrics.name == f"BabyCNN_none_{s.id}"
    assert {path.name for path in metrics.iterdir()} == DOCUMENTED_FILES
    epochs = lines(metrics / "epoch_metrics.jsonl")
    documented = {
        "epoch", "train_loss", "train_acc", "val_loss", "val_acc", "learning_rate", "training_per_class_metrics",
        "validation_per_class_metrics", "timestamp",
    }  # fmt: skip
    assert [row["epoch"] for row in epochs] == list(range(1, 7))
    assert all(documented <= row.keys() for row in epochs)
    assert all(len(row["training_per_class_metrics"]) == 4 for row in epochs)
    noise = lines(metrics / "noise_metrics.jsonl")
    assert noise
    assert all(
        {"epoch", "noise_type", "magnitude", "norms_before", "norms_after", "timestamp"} <= row.keys()
        for row in noise
    )
    flags = lines(metrics / "optimization_flags.jsonl")
    assert {row["flag_type"] for row in flags} <= {
        "GRAD_NORM_PLATEAU", "LOW_WEIGHT_UPDATE_NORM", "VAL_LOSS_PLATEAU", "OVERFITTING", "TRAIN_LOSS_STUCK",
    }  # fmt: skip
    assert all({"epoch", "flag_type", "details", "timestamp"} <= row.keys() for row in flags)
    final = json.loads((metrics / "final_metrics.json").read_text())
    assert {
        "best_accuracy", "final_epoch", "total_training_time", "epochs_to_best", "final_train_acc", "final_val_acc",
        "generalization_gap", "timestamp", "test_acc", "test_loss",
    } <= final.keys()  # fmt: skip
    assert final["generalization_gap"].keys() == {"final_gap", "best_val_acc_gap", "avg_last_10_epochs_gap"}
    assert final["best_accuracy"] == max(row["val_acc"] for row in epochs)
    assert final["total_training_time"] > 0
    everything = json.loads((metrics / "all_metrics.json").read_text())
    assert {
        "config",
        "final_metrics",
        "gradient_norms_by_epoch",
        "weight_norms",
        "sharpness",
        "noise",
        "flags",
    } <= everything.keys()
    assert json.loads((metrics / "config.json").read_text())["lr"] == s.lr
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.pth")
    assert checkpoint.name == (
        f"BabyCNN_adaptive_gaussian_best_epoch{final['best_epoch']}_valacc{final['best_accuracy']:.2f}.pth"
    )


def test_the_tested_network_is_the_best_by_validation_and_its_accuracy_is_that_of_a_plain_loop(
    colour_npz: Path, tmp_path: Path
) -> None:
    s, found = run(colour_npz, tmp_path, disable_adaptive_flags=True)
    train_set, test_set = load(s.dataset, "", documented=NORMALISATION["adaptive-noise"], size=32, channels=3)
    sets = split(s, train_set, test_set)
    model = build(s.classifier, train_set, s.width)
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights(tmp_path).items()})
    model.eval()
    with torch.no_grad():
        for data, accuracy, loss in (
            (sets.test, found["final_metrics"]["test_acc"], found["final_metrics"]["test_loss"]),
            (sets.val, found["final_metrics"]["best_accuracy"], None),
        ):
            logits = torch.stack([model(data.normalise(image[None]))[0] for image in data.images])
            assert (logits.argmax(1) == data.labels).float().mean().item() == pytest.approx(accuracy)
            assert loss is None or cross_entropy(logits, data.labels).item() == pytest.approx(loss, rel=1e-5)
    assert len(sets.test) == 40  # the whole official test set
    assert len(sets.val) == 12
    assert len(sets.train) == 108


def test_halves_of_the_test_set_are_those_of_scikit_learn_and_share_no_image() -> None:
    from sklearn.model_selection import StratifiedShuffleSplit

    labels = torch.arange(100) % 4
    val, test = halves(labels)
    assert not (val & test).any()
    assert (val | test).all()
    for mask in (val, test):
        assert torch.bincount(labels[mask]).max() - torch.bincount(labels[mask]).min() <= 1
    cut = StratifiedShuffleSplit(1, test_size=0.5, random_state=42)
    first, second = next(cut.split(labels.numpy(), labels.numpy()))
    assert sorted(first) == val.nonzero()[:, 0].tolist()
    assert sorted(second) == test.nonzero()[:, 0].tolist()


def test_the_log_of_events_is_what_happened(colour_npz: Path, tmp_path: Path) -> None:
    _, found = run(colour_npz, tmp_path, epochs=12)
    events = found["controller"]
    assert [event["epoch"] for event in events] == list(range(1, 13))
    noisy = {row["epoch"]: row for row in found["epochs"] if row["noise_target"]}
    assert noisy
    for event, row in zip(events, found["epochs"], strict=True):
        assert (event["target"], event["sigma"]) == (row["noise_target"], row["noise_sigma"])
        if event["target"]:
            fired = [flag for flag in event["flags"] if flag["fired"]]
            assert fired
            assert event["cause"] == "flags"
        if event["cooling"]:
            assert not event["flags"]
    for (
        row
    ) in noisy.values():  # relative noise r on gradients: their length grows by sqrt(1 + r^2) on average
        if row["noise_target"] == "gradient":
            assert row["norm_after"] == pytest.approx(
                row["norm_before"] * (1 + row["noise_sigma"] ** 2) ** 0.5, rel=0.1
            )


def test_two_runs_that_differ_in_the_distribution_only_share_no_file(
    colour_npz: Path, tmp_path: Path
) -> None:
    for distribution in ("gaussian", "uniform"):
        run(colour_npz, tmp_path, noise_distribution=distribution)
    assert len(list((tmp_path / "checkpoints" / "metrics").iterdir())) == 2
    assert len(list((tmp_path / "checkpoints").glob("*.pth"))) == 2


def test_a_name_of_the_users_own_is_taken_and_a_second_run_under_it_is_told(
    colour_npz: Path, tmp_path: Path, capsys
) -> None:
    first, _ = run(colour_npz, tmp_path, save_as="mine.pth")
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.pth")] == ["mine.pth"]
    second, _ = run(colour_npz, tmp_path, save_as="mine.pth", seed=1)
    said = capsys.readouterr().out
    assert f"mine.pth now holds run {second.id}; it held run {first.id}" in said


def test_the_learning_rates_are_drawn_before_training(colour_npz: Path, tmp_path: Path) -> None:
    s, _ = run(colour_npz, tmp_path, visualize_lr=True)
    assert (s.metrics_dir / "lr_schedule.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_done_is_not_run_again(colour_npz: Path, tmp_path: Path, capsys) -> None:
    run(colour_npz, tmp_path)
    capsys.readouterr()
    run(colour_npz, tmp_path)
    assert "epoch 1/" not in capsys.readouterr().out


# ---- pairs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [
    {"relative_min_noise": 0.0, "relative_max_noise": 0.0},
    {**STATIC_WEIGHT, "noise_magnitude": 0.0}, {**STATIC_WEIGHT, "noise_magnitude": 0.0, "permanent": True},
    {**STATIC_WEIGHT, "noise_magnitude": 0.0, "noise_type": "gradient"}, {**STATIC_WEIGHT, "noise_magnitude": 0.0, "noise_type": "input"},
    {**STATIC_WEIGHT, "noise_magnitude": 0.0, "noise_type": "label"},
])  # fmt: skip
@pytest.mark.parametrize("classifier", ["BabyCNN", "resnet20"])
def test_noise_of_sigma_0_is_the_baseline_to_the_bit(
    colour_npz: Path, tmp_path: Path, noise: dict[str, Any], classifier: str
) -> None:
    network = {"classifier": classifier, "width": 0.25, "epochs": 4}
    s, found = run(colour_npz, tmp_path / "noise", **noise, **network)
    _, plain = run(colour_npz, tmp_path / "plain", **s.baseline().model_dump() | network)
    assert plain["run_id"] == found["baseline_id"] != found["run_id"]
    assert same_weights(weights(tmp_path / "noise"), weights(tmp_path / "plain"))
    measured = ("train_loss", "val_loss", "grad_norm", "update_norm", "val_acc")
    if noise.get("noise_type") == "weight":
        measured = ("train_loss", "val_loss", "update_norm", "val_acc")
    for one, other in zip(found["epochs"], plain["epochs"], strict=True):
        assert [one[key] for key in measured] == [other[key] for key in measured]


def test_the_baseline_of_a_baseline_is_itself() -> None:
    s = Train.parse({"disable_adaptive_flags": True}).canonical()
    assert s.baseline().id == s.id
    assert Train().baseline().id == Train.parse({"noise_distribution": "uniform"}).baseline().id


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "message"), [
    ("--subset 0.1 -b 64", "--subset 0.1 leaves 10 training images, fewer than one batch of --batch-size 64; use --batch-size 10 or less"),
    ("--subset 0.001", "cannot hold every class in its share"),
    ("-nl conv9 -nl fc1", "no layer 'conv9' for noise; the layers are conv1, fc1"),
    ("-nl bias --noise-include-bias False", "no parameter is left for noise"),
    ("--relative-min-noise 0.3", "--relative-min-noise 0.3 is more than --relative-max-noise 0.1"),
    ("--min-cooldown-epochs 20", "--min-cooldown-epochs 20 is more than --max-cooldown-epochs 15"),
    ("--flag-window-size 9", "--flag-window-size 9 is longer than the run's 8 epochs"),
    ("-nt dropout", "is not one of none, gradient, weight, input, label"),
    ("--classifier VGG99", "is not one of resnet18, SimpleCNN"),
    ("--gpu one", "--gpu one is refused: it must be a card's number"),
    ("--save-as a/b.pth", "it must be a file name that ends in .pth"),
    ("--noise-magnitude nan", "it must be a finite number"),
    ("--flag-min-epoch 3", "did you mean '--flag-min-epochs'"),
    ("--dataset npz:nowhere.npz", "nowhere.npz"),
])  # fmt: skip
def test_bad_input_is_one_line_that_says_what_to_do(
    words: str, message: str, colour_npz: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = () if "--dataset" in words else ("--dataset", f"npz:{colour_npz}")
    batch = () if "-b" in words.split() else ("-b", "8")
    line = refusal(
        "adaptive-noise",
        "train",
        "-c",
        "BabyCNN",
        *batch,
        "-e",
        "8",
        "--flag-min-epochs",
        "2",
        "--device",
        "cpu",
        *data,
        *words.split(),
    )
    assert message in line
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA card")
def test_a_card_that_is_asked_for_and_not_there_is_refused_and_the_default_is_not(
    colour_npz: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--gpu 0: there is no CUDA card here" in refusal(
        "adaptive-noise", "train", "--gpu", "0", "--dataset", f"npz:{colour_npz}"
    )
    assert "there is no CUDA card here" in refusal(
        "adaptive-noise", "sweep", "-g", "0,1", "--dataset", f"npz:{colour_npz}"
    )


def test_noise_that_makes_numbers_infinite_ends_the_run_in_one_line(
    colour_npz: Path, tmp_path: Path, monkeypatch
) -> None:
    s = settings_of(colour_npz, tmp_path, **{**STATIC_WEIGHT, "noise_magnitude": 1e30, "permanent": True})
    with pytest.raises(Diverged, match="less noise"), one_thread():
        train(s)
    assert folder(s)[1].failure("kind") == "diverged"


def test_rows_that_lost_an_epoch_are_told_in_one_line(
    zygote: Zygote, colour_npz: Path, tmp_path: Path
) -> None:
    words = (
        f"adaptive-noise train -c BabyCNN --width 0.5 -e 12 -b 16 --device cpu --threads 1 --checkpoint_every 0 --dataset npz:{colour_npz}"
    ).split()
    pid = zygote.start(words, tmp_path)
    until(lambda: any(len(lines(path)) > 3 for path in tmp_path.glob("perturblab_runs/*/*/rows.jsonl")))
    os.kill(pid, signal.SIGKILL)
    zygote.wait()
    (path,) = tmp_path.glob("perturblab_runs/*/*/rows.jsonl")
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:1]))
    ended = zygote.run(words, tmp_path)
    assert ended.code == 2, ended.output
    assert "Traceback" not in ended.output
    assert "has lost rows; remove perturblab_runs/" in ended.output


# ---- killed at any moment -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run with flags, both kinds of noise, cooldowns, BatchNorm: 6 epochs of 4 steps."""
    import numpy as np

    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "colour.npz"
    arrays: dict[str, Any] = {}
    for part, n in (("train", 120), ("test", 40)):
        labels = np.arange(n) % 4
        arrays[f"y_{part}"] = labels
        arrays[f"x_{part}"] = (
            random.integers(0, 90, (n, 8, 8, 3)) + labels[:, None, None, None] * 40
        ).astype(np.uint8)
    np.savez(path, **arrays)
    return (
        "adaptive-noise train -c resnet20 --width 0.0625 -e 6 -b 24 --lr 0.02 --device cpu --threads 1 --flag-window-size 2 "
        "--flag-min-epochs 2 --flag-overfit-epochs 1 --flag-grad-plateau-thr 0.01 --flag-low-weight-update-thr 0 "
        "--consecutive-flag-trigger 1 --min-cooldown-epochs 1 --max-cooldown-epochs 2 --sharpness-draws 2 -nt weight -nm 0.1 "
        f"--flag-plateau-delta 1.0 --dataset npz:{path}"
    ).split()


def test_the_run_that_is_killed_has_noise_on_gradients_and_weights_and_cooldowns(
    zygote: Zygote, words: list[str], tmp_path: Path
) -> None:
    ended = zygote.run(words, tmp_path)
    assert ended.code == 0, ended.output
    (path,) = tmp_path.glob("checkpoints/metrics/*/controller.jsonl")
    events = lines(path)
    assert {(event["target"], event["cause"]) for event in events} >= {
        ("weight", "static"),
        ("weight", "flags"),
    }
    assert any(event["cooling"] for event in events)


@pytest.mark.parametrize("every", ["0", "60"])
def test_a_run_killed_at_random_moments_ends_with_the_same_files(
    kill_at_random: KillAtRandom, words: list[str], tmp_path: Path, every: str
) -> None:
    check(kill_at_random([*words, "--checkpoint_every", every], tmp_path, 6, seed=1), 6)


@pytest.mark.slow
@pytest.mark.parametrize("every", ["0", "0.05", "60"])
def test_a_run_killed_30_times_ends_with_the_same_files(
    kill_at_random: KillAtRandom, words: list[str], tmp_path: Path, every: str
) -> None:
    check(kill_at_random([*words, "--checkpoint_every", every], tmp_path, 30, seed=2), 30)


@pytest.mark.slow
def test_a_run_killed_at_each_kind_of_file_change_ends_with_the_same_files(
    zygote: Zygote, words: list[str], tmp_path: Path
) -> None:
    killed_at_each(zygote, [*words, "--checkpoint_every", "0"], tmp_path, every_point=False)
