"""first-layer-mi as a user meets it: what the document says to type, what is measured, what the files hold."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from commandline import called, parsed, refusal
from conftest import environment, one_thread
from perturblab.experiment import load_images
from perturblab.images import Batch
from perturblab.models.vgg import LAYOUTS
from perturblab.objectives import Clock
from perturblab.runs import run_folder
from perturblab.settings import is_where
from perturblab.signals import Interrupted, StopFlag
from perturblab.streams import stream
from perturblab.studies.first_layer_mi import RECORDED, Arch, Jobs, Train, Visualize
from perturblab.studies.first_layer_mi import run as study
from perturblab.studies.first_layer_mi.documented import as_arrays
from perturblab.studies.first_layer_mi.information import information, masks_of, n_images, predict, stages
from perturblab.terminal import UserError

TRAIN = ("first-layer-mi", "train", "--arch", "vgg11", "--seed", "0")

# ---- what the document says to type ------------------------------------------------------------------------------

# Document 001, with `python train_vgg.py` as `perturblab first-layer-mi train`, `python scripts/job_manager.py` as
# `perturblab first-layer-mi jobs`; then the flags that only the code has.
DOCUMENTED = {
    "train --arch vgg11 --seed 0 --epochs 300 --batch_size 256 --lr 0.001 --weight_decay 0.0 --eval_interval 10 "
    "--n_masks_train 20 --n_masks_final 40 --max_eval_batches_train 20 --max_eval_batches_final 40": Train(
        arch="vgg11", seed=0
    ),
    "train --arch vgg9 --seed 2 --num_workers 2 --device cpu --data_dir d --checkpoint_dir c --results_dir r": Train(
        arch="vgg9", seed=2, num_workers=2, device="cpu", data_dir="d", checkpoint_dir="c", results_dir="r"
    ),
    "jobs": Jobs(),
    "jobs --generate_only": Jobs(generate_only=True),
    "jobs --output_dir scripts": Jobs(),
    "visualize --train_acc_threshold 99": Visualize(train_acc_threshold=99),
}


@pytest.mark.parametrize("line", DOCUMENTED)
def test_a_documented_command_line_means_what_the_document_says(line: str) -> None:
    assert parsed("first-layer-mi", *line.split()) == DOCUMENTED[line]


PAGES = Path(__file__).parent.parent / "docs"


def test_the_commands_on_the_studys_page_parse() -> None:
    text = (PAGES / "first-layer-mi.md").read_text()
    found = re.findall(r"^perturblab (first-layer-mi .*?)(?:  +#.*)?$", text, re.MULTILINE)
    assert len(found) >= 6
    for line in found:
        assert parsed(*shlex.split(line))


def test_the_page_holds_what_numbers_on_digits_are_made_of() -> None:
    text = (PAGES / "first-layer-mi.md").read_text()
    assert all(f"| {name.upper()} | `{LAYOUTS[name]}` |" in text for name in get_args(Arch))
    train_set, test_set = load_images(Train(arch="vgg9", seed=0, dataset="digits"))
    mean, std = train_set.mean[0], train_set.std[0]
    assert f"{len(train_set):,} train and {len(test_set):,} test images" in text
    assert f"mean {mean:.4f} and population deviation {std:.4f} of the train pixels" in text


def test_every_documented_flag_and_name_stands_in_the_page_that_maps_them() -> None:
    text = (PAGES / "from-the-documents.md").read_text().partition("## first-layer-mi")[2]
    flags = {word for line in DOCUMENTED for word in line.split() if word.startswith("--")}
    names = {
        "train_vgg.py",
        "job_manager.py",
        "vgg_standard.py",
        "ChannelMaskingHook",
        "calculate_mutual_information",
    }
    for name in (
        flags | names | {"generate_random_channel_masks", "_results.npz", "_final.pt", "visualizations/"}
    ):
        assert name in text, name


def test_the_documented_defaults_are_the_defaults() -> None:
    """The document's values, not the earlier code's 200 epochs and weight decay of 5e-4 (decision 1)."""
    run = Train(arch="vgg9", seed=0)
    assert (run.epochs, run.batch_size, run.lr, run.weight_decay, run.warmup_epochs) == (
        300,
        256,
        1e-3,
        0,
        10,
    )
    assert (run.eval_interval, run.n_masks_train, run.n_masks_final) == (10, 20, 40)
    assert (run.max_eval_batches_train, run.max_eval_batches_final, run.mi_split) == (20, 40, "train")
    assert (run.dataset, run.use_batchnorm, run.use_dropout, run.use_augmentation) == (
        "cifar100",
        True,
        True,
        True,
    )
    assert run.canonical().augment == "crop-flip-rand"


def test_the_grid_is_the_documents_15_runs() -> None:
    names = [run.name for run in Jobs().grid()]
    assert names == [
        f"{arch}_seed{seed}" for arch in ("vgg9", "vgg11", "vgg13", "vgg16", "vgg19") for seed in (0, 1, 2)
    ]


def test_help_says_what_the_number_in_vgg11_counts() -> None:
    for words in (("first-layer-mi",), ("first-layer-mi", "train")):
        code, out, _ = called(*words, "--help")
        assert code == 0
        assert "counts weight layers" in " ".join(out.split())


# ---- identity ------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "arch": "vgg13", "seed": 1, "epochs": 3, "batch_size": 64, "lr": 0.2, "warmup_epochs": 3, "weight_decay": 1e-3,
    "eval_interval": 3, "n_masks_train": 3, "n_masks_final": 3, "max_eval_batches_train": 0, "max_eval_batches_final": 3,
    "mi_split": "test", "use_batchnorm": False, "use_dropout": False, "use_augmentation": False, "augment": "crop-rand",
    "dataset": "digits", "normalize": "data", "width": 0.5, "precision": "bf16", "compile": True,
}  # fmt: skip


@pytest.mark.parametrize("name", Train.model_fields)
def test_a_field_changes_the_id_unless_it_only_says_where(name: str) -> None:
    base = {"arch": "vgg11", "seed": 0}
    if is_where(Train.model_fields[name]):
        assert name not in OTHER
    else:
        assert Train.parse({**base, name: OTHER[name]}).id != Train.parse(base).id


def test_a_runs_own_command_line_gives_its_settings_again() -> None:
    run = Train.parse({**OTHER, "suffix": "-x y"})
    assert parsed(*run.arguments()) == run


def test_a_yaml_file_can_hold_the_grid(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        "study: first-layer-mi\nfixed: {epochs: 5, lr: 1e-2}\naxes: {arch: [vgg9], seed: [3, 4]}\n"
    )
    assert parsed("first-layer-mi", "jobs", "--config", str(tmp_path / "grid.yaml"), "--epochs", "6") == Jobs(
        epochs=6, lr=0.01, architectures=("vgg9",), seeds=(3, 4)
    )


def test_auto_augmentation_is_the_one_that_it_stands_for_and_none_is_one_run() -> None:
    def a_run(**values: Any) -> str:
        return Train.parse({"arch": "vgg11", "seed": 0, **values}).id

    assert a_run() == a_run(augment="crop-flip-rand") != a_run(augment="crop-rand")
    assert a_run(dataset="digits") == a_run(
        dataset="digits", augment="crop-rand"
    )  # a flipped digit is another digit
    without = {"use_augmentation": False}
    assert a_run(**without) == a_run(**without, augment="crop-rand") == a_run(**without, augment="auto")


# ---- when and on how many images -----------------------------------------------------------------------------------


def test_measurements_are_at_epoch_1_every_interval_and_the_last_with_the_final_one_beside() -> None:
    s = Train(arch="vgg9", seed=0, epochs=25)
    due = {epoch: stages(s, epoch) for epoch in range(1, 26) if stages(s, epoch)}
    assert due == {1: ["train"], 10: ["train"], 20: ["train"], 25: ["train", "final"]}
    assert stages(Train(arch="vgg9", seed=0, epochs=1), 1) == ["train", "final"]
    whole = Train(arch="vgg9", seed=0)
    assert [e for e in range(1, 301) if stages(whole, e)] == [1, *range(10, 301, 10)]


def test_the_documented_measurements_are_of_5120_and_10240_images_and_0_is_all() -> None:
    s = Train(arch="vgg9", seed=0)
    assert (n_images(s, "train", 50_000), n_images(s, "final", 50_000)) == (5120, 10240)
    assert n_images(s, "final", 7000) == 7000
    assert n_images(Train(arch="vgg9", seed=0, max_eval_batches_final=0), "final", 50_000) == 50_000


# ---- a small run ---------------------------------------------------------------------------------------------------


def write_set(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", 48), ("test", 16)):
        labels = np.arange(n) % 4
        noise = random.integers(0, 90, (n, 8, 8, 3))
        arrays[f"x_{split}"] = (noise + labels[:, None, None, None] * 40).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(path, **arrays)


class Ran:
    """A small run: its weights, rows and files."""

    def __init__(self, folder: Path, **values: Any) -> None:
        where = {"data_dir": "d", "results_dir": "r", "checkpoint_dir": "c", "runs_dir": "runs"}
        words = {
            "arch": "vgg9", "seed": 0, "width": 0.05, "epochs": 2, "batch_size": 16, "lr": 0.01, "warmup_epochs": 1,
            "n_masks_train": 3, "n_masks_final": 4, "max_eval_batches_train": 1, "max_eval_batches_final": 2,
            "device": "cpu", "threads": 1, **{name: str(folder / short) for name, short in where.items()}, **values,
        }  # fmt: skip
        self.settings = Train.parse(words)
        with one_thread():
            study.train(self.settings)
        self.run = run_folder(self.settings.canonical(), self.settings.name, self.settings.runs_dir)
        content = torch.load(self.run.path / "final.pt", weights_only=True)
        self.weights = {name: value.numpy().tobytes() for name, value in content["model_state_dict"].items()}
        self.checkpoint = content
        self.text = (self.run.path / "rows.jsonl").read_text()
        self.rows = [json.loads(line) for line in self.text.splitlines()]
        self.results = self.run.results()

    def kind(self, kind: str, stage: str = "train") -> list[dict[str, Any]]:
        return [row for row in self.rows if row["kind"] == kind and row.get("stage", stage) == stage]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "a.npz"
    write_set(path, 0)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def base(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("base"), dataset=dataset)


@pytest.fixture
def changed(dataset: str, tmp_path: Path) -> Callable[..., Ran]:
    return lambda **values: Ran(tmp_path, **{"dataset": dataset, **values})


def test_the_npz_holds_every_documented_key_with_the_documented_shape_and_no_pickle(base: Ran) -> None:
    path = Path(base.settings.results_dir) / "vgg9_seed0_results.npz"
    with np.load(path, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    histories = ("mi", "train_acc_aug", "train_acc_clean", "test_acc", "gen_gap")
    for key in ("epochs_evaluated", *(f"{name}_history" for name in histories)):
        assert found[key].shape == (2,), key
    finals = (
        "mi_full",
        "mean_mi_masked",
        "mi_diff",
        "train_acc_aug",
        "train_acc_clean",
        "test_acc",
        "gen_gap",
    )
    for key in (f"final_{name}" for name in finals):
        assert (found[key].shape, found[key].dtype) == ((), np.float64), key
    assert (str(found["arch"]), int(found["seed"]), str(found["optimizer"])) == ("vgg9", 0, "adam")
    assert [bool(found[f"use_{name}"]) for name in ("batchnorm", "augmentation", "dropout")] == [True] * 3
    assert str(found["run_id"]) == base.run.id
    assert {array.dtype.kind for array in found.values()} <= set("fiUb")
    assert set(RECORDED) <= found.keys()


def test_the_json_holds_what_the_npz_holds(base: Ran) -> None:
    stem = Path(base.settings.results_dir) / "vgg9_seed0_results"
    found = json.loads(stem.with_suffix(".json").read_text())
    del found["content_sha256"]
    with np.load(stem.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert set(arrays.files) == found.keys()
        for name, value in as_arrays(found).items():
            np.testing.assert_array_equal(arrays[name], np.asarray(value), err_msg=name)


def test_the_last_epoch_is_in_the_histories_and_the_checkpoint_is_of_that_epoch(base: Ran) -> None:
    found = base.results
    assert found["epochs_evaluated"] == [1, 2]
    for name in ("train_acc_aug", "train_acc_clean", "test_acc", "gen_gap"):
        assert base.checkpoint[name] == found[f"final_{name}"] == found[f"{name}_history"][-1]
    assert base.checkpoint["epoch"] == 2
    assert found["final_gen_gap"] == pytest.approx(found["final_train_acc_clean"] - found["final_test_acc"])
    assert (base.checkpoint["optimizer_name"], base.checkpoint["use_dropout"]) == ("adam", True)


@pytest.mark.parametrize(("dropout", "last"), [(True, "classifier.1.weight"), (False, "classifier.weight")])
def test_a_checkpoint_loads_into_the_documents_class(
    changed: Callable[..., Ran], dropout: bool, last: str
) -> None:
    names = changed(use_dropout=dropout, epochs=1).checkpoint["model_state_dict"].keys()
    assert last in names
    assert {name.split(".")[0] for name in names} == {"features", "classifier"}
    assert {"features.0.weight", "features.1.running_mean"} <= names


def rebuilt(ran: Ran) -> tuple[Any, Any]:
    """The trained network from its exported checkpoint, and the train images."""
    train_set, _ = load_images(ran.settings)
    model = study.build(ran.settings, train_set)
    model.load_state_dict(ran.checkpoint["model_state_dict"])
    return model.eval(), train_set


def test_the_final_information_is_that_of_a_plain_recomputation_from_the_checkpoint(base: Ran) -> None:
    """Hooks on the first ReLU, a whole forward pass per mask, scikit-learn: the document's way."""
    model, images = rebuilt(base)
    pixels, labels = (
        images.normalise(images.images[:32]),
        images.labels[:32].numpy(),
    )  # the first two batches of 16
    first_relu = next(m for m in model.features if isinstance(m, torch.nn.ReLU))

    def mi(mask: torch.Tensor | None) -> float:
        hook = first_relu.register_forward_hook(lambda _m, _i, out: out if mask is None else out * mask)
        with torch.no_grad():
            predicted = model(pixels).argmax(1).numpy()
        hook.remove()
        return float(mutual_info_score(labels, predicted))

    masks = masks_of(base.settings, model, "final", "final")
    assert masks.shape == (4, *model.site("conv1").shape)
    expected = [mi(mask) for mask in masks]
    found = base.results
    np.testing.assert_allclose(found["final_mask_mi_nats"], expected, atol=1e-12)
    assert found["final_mask_keep_size"] == masks.flatten(1).sum(1).tolist()
    assert found["final_mi_full"] == pytest.approx(mi(None), abs=1e-12)
    assert found["final_mi_diff"] == pytest.approx(mi(None) - np.mean(expected), abs=1e-12)
    assert found["final_mi_full_bits"] == pytest.approx(mi(None) / math.log(2))
    assert found["final_n_images"] == 32


def test_the_rows_keep_every_mask_and_the_histories_are_their_means(base: Ran) -> None:
    masks = base.kind("mask")
    assert [(row["epoch"], row["subset"]) for row in masks] == [(e, n) for e in (1, 2) for n in range(3)]
    assert len(base.kind("mask", "final")) == 4
    elements = base.kind("intact")[0]["elements"]
    assert all(1 <= row["keep_size"] <= elements - 2 for row in masks)
    for number, epoch in enumerate((1, 2)):
        (intact,) = (row for row in base.kind("intact") if row["epoch"] == epoch)
        own = [row["mi_nats"] for row in masks if row["epoch"] == epoch]
        assert base.results["mi_history"][number] == pytest.approx(intact["mi_nats"] - np.mean(own))
        assert base.results["mask_mi_history_nats"][number] == own
        assert intact["n_images"] == 16


def test_null_and_interval_stand_beside_and_a_small_sample_is_warned_of(base: Ran) -> None:
    found = base.results
    assert 0 < found["final_mi_full_null_nats"] < math.log(4)
    assert 0 <= found["final_mi_full_low_nats"] <= found["final_mi_full_high_nats"]
    assert "32 images are few for 4 classes" in found["final_warning"]
    assert found["final_label_entropy_nats"] == pytest.approx(math.log(4))


def test_masks_are_new_at_each_measurement_and_the_same_for_networks_of_one_shape(base: Ran) -> None:
    model, _ = rebuilt(base)
    first, second, final = (masks_of(base.settings, model, "train", p)[0] for p in (1, 2, "final"))
    assert not torch.equal(first, second)
    assert not torch.equal(second, final)
    other = Train.parse({**base.settings.model_dump(), "arch": "vgg11"})
    assert torch.equal(first, masks_of(other, model, "train", 1)[0])


def test_measuring_more_often_on_more_images_with_more_masks_changes_no_training(base, changed) -> None:
    other = changed(eval_interval=100, n_masks_train=1, n_masks_final=9, max_eval_batches_final=0, epochs=3)
    often = Ran(
        Path(other.settings.runs_dir).parent / "often",
        dataset=base.settings.dataset,
        epochs=3,
        eval_interval=1,
    )
    assert often.weights == other.weights
    losses = [[row["loss_full"] for row in ran.kind("epoch")] for ran in (often, other)]
    assert losses[0] == losses[1]
    assert other.results["epochs_evaluated"] == [1, 3]
    assert often.results["epochs_evaluated"] == [1, 2, 3]
    assert [row["test_acc"] is None for row in other.kind("epoch")] == [False, True, False]


def test_a_measurement_leaves_the_network_and_all_random_states_alone(base: Ran) -> None:
    model, images = rebuilt(base)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # type: ignore[union-attr]
    predicted = predict(base.settings, model, images, images, "final", 2, StopFlag())
    rows = list(information(base.settings, predicted, "final", 2))
    assert len(rows) == 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tobytes()  # type: ignore[union-attr]


def test_a_signal_stops_a_measurement(base: Ran) -> None:
    model, images = rebuilt(base)
    stop = StopFlag()
    stop.number = 15
    with pytest.raises(Interrupted):
        predict(base.settings, model, images, images, "train", 1, stop)


def test_the_test_images_are_measured_where_asked_for(changed: Callable[..., Ran]) -> None:
    ran = changed(mi_split="test", max_eval_batches_final=0, epochs=1)
    assert ran.results["final_n_images"] == 16
    (final,) = ran.kind("intact", "final")
    assert final["accuracy"] == ran.rows[0]["test_acc"]


# ---- every flag acts -----------------------------------------------------------------------------------------------

# Another value for each field that decides what is computed, and what must differ.
COMPUTES: dict[str, tuple[Any, str]] = {
    "arch": ("vgg11", "weights"), "seed": (1, "weights"), "epochs": (3, "weights"), "batch_size": (12, "weights"),
    "lr": (0.02, "weights"), "warmup_epochs": (2, "weights"), "weight_decay": (0.5, "weights"),
    "use_batchnorm": (False, "weights"), "use_dropout": (False, "weights"), "use_augmentation": (False, "weights"),
    "augment": ("crop-rand", "weights"), "dataset": ("other", "weights"), "normalize": ("data", "weights"),
    "width": (0.06, "weights"), "precision": ("bf16", "weights"), "eval_interval": (1, "text"),
    "n_masks_train": (2, "text"), "n_masks_final": (2, "text"), "max_eval_batches_train": (2, "text"),
    "max_eval_batches_final": (1, "text"), "mi_split": ("test", "text"),
}  # fmt: skip


@pytest.mark.parametrize("field", COMPUTES)
def test_a_flag_of_train_changes_what_is_computed(base: Ran, changed, field: str, tmp_path: Path) -> None:
    value, what = COMPUTES[field]
    if field == "dataset":
        write_set(tmp_path / "other.npz", 1)
        value = f"npz:{tmp_path / 'other.npz'}"
    more = {"epochs": 3} if field == "eval_interval" else {}
    reference = changed(**more) if more else base
    other = Ran(tmp_path / "other", **{"dataset": base.settings.dataset, **more, field: value})
    assert getattr(other, what) != getattr(reference, what)
    if what == "text":
        assert other.weights == reference.weights


def test_compile_reaches_the_recipe() -> None:
    assert study.recipe(Train(arch="vgg9", seed=0, compile=True)).compile
    assert not study.recipe(Train(arch="vgg9", seed=0)).compile


def test_flags_that_say_where_act_and_change_no_number(base: Ran, changed, tmp_path: Path) -> None:
    where = {name for name, info in Train.model_fields.items() if is_where(info)}
    values: dict[str, Any] = {
        "results_dir": str(tmp_path / "R"), "checkpoint_dir": str(tmp_path / "C"), "runs_dir": str(tmp_path / "S"),
        "data_dir": str(tmp_path / "D"), "suffix": "again", "checkpoint_every": 0.0, "num_workers": 1, "threads": 1,
        "device": "cpu", "save_predictions": str(tmp_path / "P.npz"),
    }  # fmt: skip
    assert values.keys() == where
    assert not Path(values["save_predictions"]).exists()
    other = changed(**values)
    assert (other.weights, other.text) == (base.weights, base.text)
    assert sorted(path.name for path in tmp_path.glob("[RC]/*")) == [
        "vgg9_seed0_again_final.pt", "vgg9_seed0_again_results.json", "vgg9_seed0_again_results.npz",
    ]  # fmt: skip
    assert (tmp_path / "P.npz").is_file()
    assert list((tmp_path / "S" / "first-layer-mi").iterdir()) == [other.run.path]
    assert COMPUTES.keys() | {"compile"} == Train.model_fields.keys() - where


def test_a_run_that_is_done_is_not_run_again_and_lost_files_come_back(changed: Callable[..., Ran]) -> None:
    ran = changed(epochs=1)
    exports = {path: path.read_bytes() for path in ran.settings.exports.values()}
    for path in exports:
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "work", lambda *_: pytest.fail("it was run again"))
        study.train(ran.settings)
    assert {path: path.read_bytes() for path in exports} == exports


def test_saved_masks_and_predictions_give_every_number_of_the_final_measurement_again(
    base: Ran, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for after the run is done: nothing is trained; scikit-learn and NumPy make the numbers of the files."""
    path = tmp_path / "sub" / "p.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "work", lambda *_: pytest.fail("it was run again"))
        study.train(base.settings.model_copy(update={"save_predictions": str(path)}))
    with np.load(path, allow_pickle=False) as arrays:
        saved = {name: arrays[name] for name in arrays.files}
    found, labels = base.results, saved["labels"]
    elements = int(saved["shape"].prod())
    assert (elements, str(saved["run_id"])) == (found["first_layer_elements"], base.run.id)
    kinds = {name: (saved[name].dtype, saved[name].shape) for name in ("keep_masks", "predictions")}
    assert kinds == {"keep_masks": (np.uint8, (4, -(-elements // 8))), "predictions": (np.int16, (4, 32))}
    np.testing.assert_allclose(
        [mutual_info_score(labels, one) for one in saved["predictions"]],
        found["final_mask_mi_nats"],
        atol=1e-12,
    )
    assert mutual_info_score(labels, saved["full_predictions"]) == pytest.approx(found["final_mi_full"])
    hits = (saved["predictions"] == labels).mean(1)
    np.testing.assert_allclose(hits * 100, found["final_mask_acc_pct"], atol=1e-5)
    (code,) = re.findall(r"```python\n(.*?)```", (PAGES / "first-layer-mi.md").read_text(), re.DOTALL)
    exec(code.replace("FILE.npz", str(path)), {})  # the page's own way
    assert float(capsys.readouterr().out.splitlines()[-1]) == pytest.approx(found["final_mi_diff"])
    model, images = rebuilt(base)
    assert labels.tolist() == images.labels[:32].tolist()
    masks = np.unpackbits(saved["keep_masks"], axis=1, count=elements).reshape(4, *saved["shape"])
    np.testing.assert_array_equal(masks, masks_of(base.settings, model, "final", "final").numpy())
    assert saved["keep_sizes"].tolist() == masks.sum((1, 2, 3)).tolist() == found["final_mask_keep_size"]


# ---- training ------------------------------------------------------------------------------------------------------


def test_the_optimiser_is_adam_and_the_rate_warms_up_and_falls_as_documented() -> None:
    recipe = study.recipe(Train(arch="vgg9", seed=0))
    optimizer = recipe.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["weight_decay"] == 0
    for e in (0, 1, 5, 9, 10, 11, 150, 299):
        warm = 1e-3 * (0.001 + 0.999 * e / 10)
        cosine = 1e-5 + (1e-3 - 1e-5) / 2 * (1 + math.cos(math.pi * (e - 10) / 290))
        assert recipe.lr(Clock(e + 1, 0, 7, 300)) == pytest.approx(warm if e < 10 else cosine, rel=1e-12)


def test_augmentation_is_all_on_or_all_off(dataset: str) -> None:
    s = Train(arch="vgg9", seed=0, dataset=dataset, batch_size=16).canonical()
    images, _ = load_images(s)
    plain = next(study.source(s.model_copy(update={"use_augmentation": False}), images).epoch(1))
    assert plain.mix is None
    assert torch.equal(plain.images, images.normalise(images.images[plain.index]))
    mixed = next(study.source(s, images).epoch(1))
    assert mixed.mix is not None
    assert torch.equal(mixed.index, plain.index)
    assert not torch.equal(mixed.images, plain.images)


def test_labels_are_smoothed_by_a_tenth_and_mixed_by_the_share() -> None:
    """(1 - 0.1) one-hot + 0.1 / K; the share counts the first label."""
    logits = torch.randn(6, 5, generator=stream(0, "test"))
    labels, second, share = torch.arange(6) % 5, torch.arange(6).flip(0) % 5, torch.full((6,), 0.7)

    def smoothed(of: torch.Tensor) -> torch.Tensor:
        target = 0.9 * torch.nn.functional.one_hot(of, 5) + 0.1 / 5
        return -(target * logits.log_softmax(1)).sum(1)

    expected = (0.7 * smoothed(labels) + 0.3 * smoothed(second)).mean()
    batch = Batch(torch.zeros(6, 3, 8, 8), labels, torch.arange(6), mix=(second, share))
    loss = study.objective()(lambda images: logits, batch, {})  # type: ignore[arg-type]
    torch.testing.assert_close(loss.total, expected)


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "told"), [
    ("--arch vgg10", "--arch 'vgg10' is not one of vgg9, vgg11, vgg13, vgg16, vgg19; did you mean 'vgg1"),
    ("--arch vgg9", "--seed is required"),
    ("--arch vgg9 --seed 0 --n_masks_final 0", "--n_masks_final 0 is refused: it must be a whole number, 1 or more"),
    ("--arch vgg9 --seed 0 --max_eval_batches_train -1", "--max_eval_batches_train -1 is refused"),
    ("--arch vgg9 --seed 0 --save-predictions p.json",
     "--save-predictions p.json is refused: it must be a path that ends in .npz"),
    ("--arch vgg9 --seed 0 --mi-split both", "--mi-split 'both' is not one of train, test"),
    ("--arch vgg9 --seed 0 --eval_intervall 3", "no flag '--eval-intervall'; did you mean '--eval-interval'?"),
])  # fmt: skip
def test_a_slip_is_one_line(words: str, told: str) -> None:
    assert refusal("first-layer-mi", "train", *words.split()).startswith(told)


def test_a_batch_larger_than_the_set_is_told_before_anything_is_trained(changed: Callable[..., Ran]) -> None:
    with pytest.raises(UserError, match="--batch_size 49 is more than the 48 training images"):
        changed(batch_size=49)


# ---- job scripts -----------------------------------------------------------------------------------------------------


def test_jobs_writes_the_documented_files_and_every_line_parses_to_its_run(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: sys.executable)
    words = (
        "--epochs",
        "3",
        "--dataset",
        "parquet:my data/cifar100",
        "--use_augmentation",
        "False",
        "--mem",
        "8G",
    )
    code, out, errors = called("first-layer-mi", "jobs", "--generate_only", *words)
    assert (code, errors) == (0, "")
    assert "qsub scripts/job_manager_vgg11.sh" in out
    cells = list(Jobs(epochs=3, dataset="parquet:my data/cifar100", use_augmentation=False).grid())
    for arch in ("vgg9", "vgg11", "vgg13", "vgg16", "vgg19"):
        lines = Path(f"scripts/jobs_{arch}.txt").read_text().splitlines()
        assert lines == [f"{arch} {seed}" for seed in (0, 1, 2)]
        script = Path(f"scripts/job_manager_{arch}.sh").read_text()
        assert os.access(f"scripts/job_manager_{arch}.sh", os.X_OK)
        assert {f"#$ -N {arch}_cifar100", "#$ -l tmem=8G", "#$ -t 1-3", "#SBATCH --array=1-3"} <= set(
            script.splitlines()
        )
        (command,) = re.findall(r"exec (\S+ -m perturblab .*)", script)
        for line in lines:
            arch_word, seed = line.split()
            filled = command.replace('"${1}"', arch_word).replace('"${2}"', seed)
            assert parsed(*shlex.split(filled)[3:]) in cells


@pytest.mark.parametrize(("dataset", "name"), [
    ("cifar100", "vgg9_cifar100"), ("digits", "vgg9_digits"), ("parquet:my data/cifar 10", "vgg9_cifar-10"),
    ("npz:some/where/mine.npz", "vgg9_mine"),
])  # fmt: skip
def test_the_scheduler_shows_architecture_and_data_set(tmp_path, monkeypatch, dataset, name) -> None:
    monkeypatch.chdir(tmp_path)
    called("first-layer-mi", "jobs", "--architectures", "vgg9", "--dataset", dataset)
    lines = Path("scripts/job_manager_vgg9.sh").read_text().splitlines()
    assert {f"#$ -N {name}", f"#SBATCH --job-name={name}"} <= set(lines)


def test_a_script_runs_its_lines_under_bash_and_a_number_picks_one(tmp_path: Path) -> None:
    """With `echo` for the program."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        called(
            "first-layer-mi",
            "jobs",
            "--architectures",
            "vgg9",
            "--seeds",
            "3",
            "5",
            "--prefix",
            "echo",
            "--scheduler",
            "slurm",
        )
    start = ["bash", "scripts/job_manager_vgg9.sh"]
    done = subprocess.run(start, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"first-layer-mi train --arch vgg9 --seed {seed}" for seed in (3, 5)]
    one = subprocess.run(
        [*start, "2"], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert one.stdout.splitlines() == ["first-layer-mi train --arch vgg9 --seed 5"]
