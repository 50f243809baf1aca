"""layerwise-mi, train: the documented checkpoints, the target rule, and a best epoch that no kill can change."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from commandline import called, parsed, refusal
from conftest import environment, program
from layerwise import WIDTH, does, rows, train_words, write_images
from perturblab.models.vgg import LAYOUTS
from perturblab.runs import RunFolder
from perturblab.settings import is_where
from perturblab.studies.layerwise_mi import CONVOLUTIONS, Evaluate, Train, Visualize, best
from perturblab.studies.layerwise_mi.run import recipe
from perturblab.terminal import UserError
from plain_networks import PlainVGG

# Document 002, with `python train.py` as `perturblab layerwise-mi train`; then its tables of options.
DOCUMENTED = {
    "train --model all": Train(),
    "train --model vgg16": Train(model="vgg16"),
    "evaluate --model all": Evaluate(),
    "evaluate --model vgg16 --checkpoint best": Evaluate(model="vgg16"),
    "train --model all --epochs 200": Train(),
    "evaluate --model all --checkpoint best --n-subsets 100": Evaluate(),
    "train --model vgg19 --epochs 300 --batch-size 64 --lr 0.1 --target-acc 99 --device cuda": Train(
        model="vgg19", epochs=300, batch_size=64, lr=0.1, target_acc=99, device="cuda"
    ),
    "evaluate --model vgg13 --checkpoint final --n-subsets 50 --batch-size 64 --device cpu": Evaluate(
        model="vgg13", checkpoint="final", n_subsets=50, batch_size=64, device="cpu"
    ),
    "visualize": Visualize(),
}  # fmt: skip


@pytest.mark.parametrize("line", DOCUMENTED)
def test_a_documented_command_line_means_what_the_document_says(line) -> None:
    assert parsed("layerwise-mi", *line.split()) == DOCUMENTED[line]


def test_the_documented_defaults_are_the_defaults() -> None:
    run, evaluation = Train(), Evaluate()
    assert (run.model, run.epochs, run.batch_size, run.lr, run.target_acc) == ("all", 200, 128, 0.01, 99.99)
    assert (run.momentum, run.weight_decay, run.canonical().augment) == (0.9, 5e-4, "crop-flip")
    assert (evaluation.model, evaluation.checkpoint, evaluation.n_subsets) == ("all", "best", 100)
    assert (evaluation.batch_size, evaluation.ablation, evaluation.mi_split) == (128, "weight", "test")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done(images: Path) -> Path:
    """The folder of a run that is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(images.parent)
        does(train_words(images))
    return images.parent


@pytest.fixture
def in_done(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done)


def checkpoint(name: str) -> dict:
    return torch.load(Path("checkpoints") / name, weights_only=True)


def accuracy(weights: dict[str, torch.Tensor], npz: Path, split: str) -> float:
    """Percent right of a plain VGG9 with these weights, images brought in by hand."""
    from perturblab.datasets import NORMALISATION, load

    sets = dict(
        zip(
            ("train", "test"),
            load(f"npz:{npz}", documented=NORMALISATION["layerwise-mi"], size=32),
            strict=True,
        )
    )
    data = sets[split]
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    )
    model = PlainVGG("vgg9", WIDTH, "fc512x2", classes=4).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        right = model((data.images / 255 - mean) / std).argmax(1) == data.labels
    return 100 * float(right.double().mean())


def test_both_checkpoints_have_the_documented_names_and_keys_and_tell_the_truth(in_done, images) -> None:
    assert sorted(p.name for p in Path("checkpoints").iterdir()) == ["vgg9_best.pth", "vgg9_final.pth"]
    found = rows()
    chosen = max(found, key=lambda row: row["test_acc"])
    for name, row, epoch in (("best", chosen, chosen["epoch"] - 1), ("final", found[-1], 3)):
        content = checkpoint(f"vgg9_{name}.pth")
        assert {"model", "epoch", "train_acc", "test_acc", "optimizer"} <= content.keys()
        assert content["epoch"] == epoch
        assert content["train_acc"] == pytest.approx(100 * row["train_acc_clean"])
        assert content["test_acc"] == pytest.approx(accuracy(content["model"], images, "test"))
        assert content["train_acc"] == pytest.approx(accuracy(content["model"], images, "train"))
        assert (content["width"], content["arch"], content["seed"]) == (WIDTH, "vgg9", 0)
    assert checkpoint("vgg9_best.pth")["selected_on"] == "test"
    assert checkpoint("vgg9_final.pth")["selected_on"] == ""


def test_the_optimizer_in_a_checkpoint_goes_on_where_it_stopped(in_done) -> None:
    model = nn.ParameterList(PlainVGG("vgg9", WIDTH, "fc512x2", classes=4).parameters())
    for name in ("best", "final"):
        sgd = torch.optim.SGD(model, lr=1)
        sgd.load_state_dict(checkpoint(f"vgg9_{name}.pth")["optimizer"])
        (group,) = sgd.param_groups
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
        assert all(sgd.state[p]["momentum_buffer"].shape == p.shape for p in model)
    assert checkpoint("vgg9_best.pth")["epoch"] < 3  # or both would be one state


def test_the_rate_is_that_of_torchs_cosine_annealing(in_done) -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=3)
    for row in rows():
        assert row["lr"] == pytest.approx(sgd.param_groups[0]["lr"])
        sgd.step()
        annealing.step()


# ---- seeds ----------------------------------------------------------------------------------------------------------


def test_a_seed_stands_in_the_names_and_no_seed_is_seed_0_under_the_documented_ones(here, images) -> None:
    does(train_words(images))
    done = Path("checkpoints/vgg9_best.pth").read_bytes()
    does(train_words(images, "--seed", "0"))
    assert Path("checkpoints/vgg9_seed0_best.pth").read_bytes() == done
    assert len(list(Path("perturblab_runs/layerwise-mi").iterdir())) == 1  # nothing was trained again
    does(train_words(images, "--seed", "1"))
    assert Path("checkpoints/vgg9_seed1_final.pth").exists()
    assert Path("checkpoints/vgg9_best.pth").read_bytes() == done


# ---- the target -------------------------------------------------------------------------------------------------------


def test_the_target_is_flagged_once_and_training_goes_on(here, images) -> None:
    told = does(train_words(images, "--target-acc", "30", "--epochs", "4"))
    found = rows()
    reached = [row["epoch"] for row in found if 100 * row["train_acc_clean"] >= 30]
    assert len(found) == 4
    assert [row["target_reached"] for row in found] == [row["epoch"] >= reached[0] for row in found]
    assert told.count("30 % clean train accuracy reached") == 1
    assert f"reached in epoch {reached[0]}; training goes on" in told
    assert f"; target 30 % train accuracy ✓ reached in epoch {reached[0]}" in told
    assert "not reached" not in told


def test_stop_at_target_stops_after_the_epoch_that_reaches_it(here, images) -> None:
    told = does(train_words(images, "--target-acc", "30", "--epochs", "9", "--stop-at-target"))
    found = rows()
    assert [row["target_reached"] for row in found] == [False] * (len(found) - 1) + [True]
    assert len(found) < 9
    assert checkpoint("vgg9_final.pth")["epoch"] == len(found)
    assert "stopping" in told


def test_a_target_that_is_never_reached_is_told_at_the_end(here, images) -> None:
    told = does(train_words(images, "--target-acc", "100", "--lr", "1e-6"))
    assert "vgg9 done: best test" in told
    assert "warning: vgg9: target 100 % train accuracy ✗ not reached; try more --epochs" in told
    assert told.count("not reached") == 1


def test_accuracy_that_is_not_measured_is_recorded_as_such(here, images) -> None:
    does(train_words(images, "--clean-every", "2"))
    assert [row["train_acc_clean"] is None for row in rows()] == [True, False, False]


# ---- the best epoch -----------------------------------------------------------------------------------------------------


def test_validation_images_are_a_tenth_of_train_in_equal_shares_and_not_trained_on(here, images) -> None:
    does(train_words(images, "--select-on", "val"))
    (folder,) = Path("perturblab_runs/layerwise-mi").iterdir()
    held_out = json.loads((folder / "results.json").read_text())["val_index"]
    with np.load(images) as arrays:
        assert np.bincount(arrays["y_train"][held_out]).tolist() == [2, 2, 2, 2]
        changed = {name: arrays[name].copy() for name in arrays.files}
    content, found = checkpoint("vgg9_best.pth"), rows()
    assert content["selected_on"] == "val"
    assert content["epoch"] == max(found, key=lambda row: row["val_acc"])["epoch"] - 1

    changed["x_train"][held_out] = 0  # other validation images: the weights of every epoch are the same
    np.savez("changed.npz", **changed)
    final = checkpoint("vgg9_final.pth")["model"]
    does(train_words(Path("changed.npz"), "--select-on", "val", "--runs_dir", "other"))
    assert all(
        torch.equal(final[name], value) for name, value in checkpoint("vgg9_final.pth")["model"].items()
    )


def rows_of(*accuracies: float) -> list[dict]:
    return [{"kind": "epoch", "epoch": i, "test_acc": a} for i, a in enumerate(accuracies, 1)]


@pytest.mark.parametrize(
    ("accuracies", "epoch"),
    [((0.5,), 1), ((0.5, 0.6), 2), ((0.6, 0.6, 0.5), 1), ((0.1, 0.7, 0.7, 0.8, 0.8), 4)],
)
def test_an_epoch_is_best_only_if_it_is_strictly_better_than_all_before(accuracies, epoch) -> None:
    s, found = Train(), rows_of(*accuracies)
    assert best.best_epoch(s, found) == epoch
    better = [row["epoch"] for i, row in enumerate(found) if best.is_better(s, row, found[:i])]
    assert better[-1] == epoch


def test_wherever_a_kill_sends_the_run_back_to_its_best_checkpoint_is_there(tmp_path) -> None:
    """Checkpoints at epochs 2 and 4; on another machine the epochs after them may come out differently."""
    s, run = Train(), RunFolder(tmp_path, Train())
    accuracies = (0.3, 0.4, 0.5, 0.45, 0.6)
    with run.claimed():
        for row in rows_of(*accuracies):
            best.keep(s, run, row, lambda row=row: {"epoch": row["epoch"]})
            run.log(**row)
            if row["epoch"] in (2, 4):
                run.save_checkpoint(row["epoch"], 1, b"state")
        for restart in (2, 4):
            before = [row for row in run.rows if row["epoch"] < restart]
            (kept,) = [p for p in tmp_path.glob("*.pth") if int(p.stem[-6:]) == best.best_epoch(s, before)]
            assert torch.load(kept)["epoch"] == best.best_epoch(s, before)
        assert len(list(tmp_path.glob("*.pth"))) == 3  # those of epochs 1 and 3, and the best of all
        assert torch.load(tmp_path / "checkpoint-best-000005.pth")["epoch"] == 5


# ---- all ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_trains_the_four_documented_models_one_after_another(here, images) -> None:
    words = program(*train_words(images, "--epochs", "1", model="all"))
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    told = ended.stdout + ended.stderr
    for model in ("vgg11", "vgg13", "vgg16", "vgg19"):
        assert Path(f"checkpoints/{model}_best.pth").exists()
        assert f"{model} done: best test" in told
    assert told.count("target 99.99 % train accuracy ✗ not reached") >= 4
    assert not Path("checkpoints/vgg9_best.pth").exists()


# ---- slips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "told"), [
    ("train --model vgg12", "--model 'vgg12' is not one of vgg9, vgg11, vgg13, vgg16, vgg19, all; did you mean 'vgg1"),
    ("train --select-on valid", "--select-on 'valid' is not one of test, val; did you mean 'val'?"),
    ("train --target-acc 101", "--target-acc 101 is refused: it must be a finite number, more than 0 and at most 100"),
    ("train --seed -1", "--seed -1 is refused: it must be a whole number, 0 or more"),
    ("evaluate --n-subsets 0", "--n-subsets 0 is refused: it must be a whole number, 1 or more"),
    ("evaluate --limit -1", "--limit -1 is refused: it must be a whole number, 0 or more"),
    ("evaluate --memory 0", "--memory 0 is refused: it must be a finite number, more than 0"),
])  # fmt: skip
def test_a_slip_is_told_in_one_line(words, told, here) -> None:
    assert refusal("layerwise-mi", *words.split()).startswith(told)
    assert not list(here.iterdir())


@pytest.mark.parametrize(("words", "told"), [
    ("--save-predictions p.txt", "--save-predictions p.txt is refused: it must be a path that ends in .npz"),
    ("--suffix a/b", "--suffix a/b is refused: it must be a part of a file name"),
    ("--suffix zero_seed1", "--suffix zero_seed1 is refused: the file would be read as that of a seed; use --seed"),
])  # fmt: skip
def test_names_of_files_are_looked_at_first(words, told, here) -> None:
    assert refusal("layerwise-mi", "evaluate", *words.split()) == told
    assert not list(here.iterdir())


def test_a_layer_in_a_file_may_be_a_number() -> None:
    assert Evaluate.parse({"layers": ["conv1", 2]}).layers == ("conv1", "2")
    with pytest.raises(UserError, match="it must be text"):
        Evaluate.parse({"layers": [True]})


def test_the_number_of_convolutions_is_that_of_the_layouts() -> None:
    assert {name: len(layout.replace("M", "").split()) for name, layout in LAYOUTS.items()} == CONVOLUTIONS


def test_a_seed_that_is_true_in_a_file_is_a_slip(here) -> None:
    Path("s.yaml").write_text("study: layerwise-mi\nfixed: {seed: true}\n")
    code, _, errors = called("layerwise-mi", "train", "--config", "s.yaml")
    assert (code, errors.count("\n")) == (2, 1)
    assert "--seed True is refused" in errors


# ---- every flag acts ------------------------------------------------------------------------------------------------------

BASE = ("--epochs", "2", "--target-acc", "1")
COMPUTES = {
    "model": "vgg11", "seed": "1", "epochs": "1", "batch_size": "20", "lr": "0.01", "target_acc": "99", "stop_at_target": "true",
    "select_on": "val", "momentum": "0.5", "weight_decay": "0.1", "dataset": "other", "normalize": "data", "augment": "none",
    "width": "0.05", "clean_every": "2", "precision": "bf16",
}  # fmt: skip
WHERE = {
    "device": "cpu", "threads": "1", "runs_dir": "./perturblab_runs", "data_dir": "d", "num_workers": "1",
    "checkpoint_dir": "./checkpoints", "checkpoint_every": "0",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(images: Path) -> list[dict]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(images.parent)
        does(train_words(images, *BASE, "--runs_dir", "base", "--checkpoint_dir", "base"))
        return rows(runs="base")


@pytest.mark.parametrize("field", COMPUTES)
def test_a_flag_changes_what_is_computed(here, images, base, field) -> None:
    value = f"npz:{write_images(here / 'other.npz', seed=1)}" if field == "dataset" else COMPUTES[field]
    does(train_words(images, *BASE, f"--{field}", value))
    assert rows() != base


@pytest.mark.parametrize("field", WHERE)
def test_a_flag_that_says_where_changes_no_number(here, images, base, field) -> None:
    does(train_words(images, *BASE, f"--{field}", WHERE[field]))
    assert rows() == base


def test_every_flag_of_train_is_walked_by_these_tests() -> None:
    where = {name for name, info in Train.model_fields.items() if is_where(info)}
    assert WHERE.keys() == where
    assert COMPUTES.keys() | {"compile"} == Train.model_fields.keys() - where


def test_compile_reaches_the_recipe() -> None:
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    assert recipe(Train(model="vgg9", compile=True), sgd).compile
