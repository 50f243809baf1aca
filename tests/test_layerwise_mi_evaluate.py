"""layerwise-mi, evaluate: the numbers are those of a plain network with its weights zeroed, and nothing is lost."""

import json
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from commandline import refusal
from conftest import environment, program
from layerwise import WIDTH, does, entry, evaluate_words, rows, train_words, write_images
from perturblab.datasets import NORMALISATION, load
from perturblab.studies.layerwise_mi.results import as_json, merge, replaced
from plain_networks import PlainVGG

CONVOLUTIONS = [
    "features.0",
    "features.4",
    "features.8",
    "features.11",
    "features.15",
    "features.19",
]  # of VGG9


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and the checkpoints of a small VGG9."""
    folder = tmp_path_factory.mktemp("trained")
    images = write_images(folder / "images.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        does(train_words(images, "--epochs", "6", "--augment", "none"))
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images_of(trained: Path, split: str = "test") -> tuple[Tensor, Tensor]:
    """Normalised by hand, and labels."""
    sets = load(f"npz:{trained / 'images.npz'}", documented=NORMALISATION["layerwise-mi"], size=32)
    data = sets[split == "test"]
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    )
    return (data.images / 255 - mean) / std, data.labels


def plain(path: str = "checkpoints/vgg9_best.pth") -> PlainVGG:
    model = PlainVGG("vgg9", WIDTH, "fc512x2", classes=4).eval()
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model


def zeroed(layer: str, keep_mask: np.ndarray) -> PlainVGG:
    """As the original scripts do: the removed channels' convolutional weights become zero, their bias stays."""
    model = plain()
    conv = model.get_submodule(layer)
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        conv.weight[~torch.from_numpy(keep_mask)] = 0
    return model


def filled(layer: str, keep_mask: np.ndarray, images: Tensor, mean: bool) -> PlainVGG:
    """Removed channels become zero, or their mean over images and positions, after the ReLU."""
    model, relu = plain(), f"features.{int(layer.split('.')[1]) + 2}"
    seen: list[Tensor] = []
    hook = model.get_submodule(relu).register_forward_hook(lambda m, i, out: seen.append(out.clone()))
    model(images)
    hook.remove()
    value = seen[0].mean(dim=(0, 2, 3)) if mean else torch.zeros(len(keep_mask))
    kept = torch.from_numpy(keep_mask).view(1, -1, 1, 1)
    model.get_submodule(relu).register_forward_hook(
        lambda m, i, out: torch.where(kept, out, value.view(1, -1, 1, 1))
    )
    return model


def differing(one: Tensor, predicted: np.ndarray) -> int:
    """Predictions that differ where the two largest logits are further apart than float32 rounds."""
    top = one.topk(2, dim=1).values
    clear = (top[:, 0] - top[:, 1]) > 1e-5
    assert clear.float().mean() > 0.9
    return int((one.argmax(1) != torch.from_numpy(predicted).long())[clear].sum())


@pytest.mark.parametrize("ablation", ["weight", "zero", "mean"])
def test_every_saved_prediction_and_its_information_is_that_of_a_plain_network_with_channels_removed(
    trained, here, ablation
) -> None:
    does(evaluate_words("--ablation", ablation, "--save-predictions", "p.npz", subsets=6))
    images, labels = images_of(trained)
    saved, found = np.load("p.npz"), entry()
    assert saved["layer_names"].tolist() == CONVOLUTIONS
    assert np.array_equal(saved["labels"], labels.numpy())
    with torch.no_grad():
        assert differing(plain()(images), saved["full_predictions"]) == 0
        for row, name in enumerate(CONVOLUTIONS):
            masks = saved[f"keep_masks_{row}"]
            for subset, mask in enumerate(masks):
                model = (
                    zeroed(name, mask)
                    if ablation == "weight"
                    else filled(name, mask, images, ablation == "mean")
                )
                assert differing(model(images), saved["predictions"][row, subset]) == 0
            layer = found["layers"][row]
            mi = [mutual_info_score(labels, p) for p in saved["predictions"][row]]
            assert layer["mi_nats"] == pytest.approx(mi, abs=1e-12)
            assert (layer["mean_mi"], layer["std_mi"]) == (
                pytest.approx(np.mean(mi)),
                pytest.approx(np.std(mi)),
            )
            assert layer["keep_size"] == masks.sum(1).tolist()
            assert layer["n_channels"] == masks.shape[1]
    whole = mutual_info_score(labels, saved["full_predictions"])
    assert found["baseline_mi_nats"] == pytest.approx(whole, abs=1e-12)
    assert found["layers"][2]["mean_delta_mi_nats"] == pytest.approx(whole - found["layers"][2]["mean_mi"])


def test_the_results_file_has_the_documented_keys_and_says_what_it_is(here) -> None:
    told = does(evaluate_words())
    found = entry()
    assert list(found)[:2] == ["model_name", "checkpoint_path"]
    assert (found["model_name"], found["checkpoint_path"]) == ("vgg9", "checkpoints/vgg9_best.pth")
    assert found["n_subsets"] == 10
    for index, layer in enumerate(found["layers"]):
        assert list(layer)[:5] == ["layer_idx", "layer_name", "n_channels", "mean_mi", "std_mi"]
        assert (layer["layer_idx"], layer["layer_name"]) == (index, CONVOLUTIONS[index])
        assert layer["mean_mi_bits"] == pytest.approx(layer["mean_mi"] / np.log(2))
    low, high = found["baseline_interval_nats"]
    assert low < found["baseline_mi_nats"] < high
    assert found["baseline_null_mean_nats"] < found["baseline_null_95_nats"] < found["label_entropy_nats"]
    assert found["label_entropy_nats"] == pytest.approx(np.log(4))
    assert (found["n_images"], found["selected_on"], found["mi_split"]) == (40, "test", "test")
    assert "Layer  Name" in told
    assert "MI (mean ± std)" in told
    assert "Selected on test" in told
    assert "independent labels would read" in told  # 40 images are few for 4 classes


def test_the_file_can_be_read_with_cat() -> None:
    text = as_json({"a": [1, -2.5, 1e-07], "b": [{"c": []}], "d": "[1, 2]\n"}).decode()
    assert '"a": [1, -2.5, 1e-07],' in text
    assert json.loads(text) == {"a": [1, -2.5, 1e-07], "b": [{"c": []}], "d": "[1, 2]\n"}


def test_keep_min_channels_are_kept_at_least(here) -> None:
    does(evaluate_words("--keep-min", "2"))
    sizes = entry()["layers"][0]["keep_size"]
    assert set(sizes) == {2, 3}
    assert len(sizes) == 10  # all 6 pairs and all 4 triples of 4 channels


def test_the_final_checkpoint_is_not_marked_and_has_a_file_of_its_own(here) -> None:
    told = does(evaluate_words("--checkpoint", "final"))
    assert entry(name="mi_results_final")["selected_on"] == ""
    assert "Selected on test" not in told
    assert not Path("results/mi_results_best.json").exists()


# ---- subsets ---------------------------------------------------------------------------------------------------------


def test_subsets_are_unique_remove_one_to_all_channels_and_follow_seed_and_layer(here) -> None:
    def masks(*words: str) -> dict[str, np.ndarray]:
        Path("p.npz").unlink(missing_ok=True)
        does(evaluate_words("--checkpoint", "final", "--save-predictions", "p.npz", *words, subsets=15))
        with np.load("p.npz") as saved:
            return {name: saved[name] for name in saved.files if name.startswith("keep_masks")}

    first = masks()
    assert {mask.tobytes() for mask in first["keep_masks_0"]} == {  # all 15 that 4 channels have
        np.array([bool(number >> bit & 1) for bit in range(4)]).tobytes() for number in range(15)
    }
    for kept in first.values():
        assert len(np.unique(kept, axis=0)) == 15
        assert kept.sum(1).max() < kept.shape[1]
    assert not np.array_equal(first["keep_masks_4"], first["keep_masks_5"])
    one = masks("--layers", "conv5", "--limit", "20")
    assert list(one) == ["keep_masks_4"]  # the same subsets, whatever else is evaluated
    assert np.array_equal(one["keep_masks_4"], first["keep_masks_4"])
    shutil.copy("checkpoints/vgg9_final.pth", "checkpoints/vgg9_seed3_final.pth")
    assert not np.array_equal(masks("--seed", "3")["keep_masks_4"], first["keep_masks_4"])


def test_removing_all_channels_leaves_no_information(here) -> None:
    does(evaluate_words(subsets=15))
    for layer in entry()["layers"]:
        for size, mi in zip(layer["keep_size"], layer["mi_nats"], strict=True):
            assert size > 0 or mi == 0.0
    assert 0 in entry()["layers"][0]["keep_size"]


def test_fewer_subsets_than_asked_for_are_told_and_padded(here, monkeypatch) -> None:
    from perturblab.studies.layerwise_mi import evaluate

    def unlucky(n: int, width: int, *more: Any) -> Tensor:
        return plain_subsets(n, width, *more)[: 7 if width == 4 else n]

    plain_subsets = evaluate.unique_subsets
    monkeypatch.setattr(evaluate, "unique_subsets", unlucky)
    told = does(evaluate_words("--save-predictions", "p.npz"))
    assert "warning: conv1: 7 different subsets were found, 10 were asked for" in told
    assert [layer["n_subsets"] for layer in entry()["layers"]] == [7, 10, 10, 10, 10, 10]
    saved = np.load("p.npz")
    assert len(saved["keep_masks_0"]) == 7
    assert (saved["predictions"][0, 7:] == -1).all()
    assert (saved["predictions"][0, :7] >= 0).all()


# ---- one file, several models ------------------------------------------------------------------------------------------


def test_evaluating_one_model_keeps_the_others_entries(here) -> None:
    original = {
        "layer_idx": 0,
        "layer_name": "features.0",
        "n_channels": 64,
        "mean_mi": 1.2345,
        "std_mi": 0.0123,
    }
    vgg16 = {"model_name": "vgg16", "checkpoint_path": "x", "n_subsets": 100, "layers": [original]}
    Path("results").mkdir()
    Path("results/mi_results_best.json").write_text(json.dumps({"vgg16": vgg16}))
    does(evaluate_words())
    assert entry("vgg16") == vgg16
    assert len(entry("vgg9")["layers"]) == 6


def test_evaluations_that_end_together_lose_nothing(tmp_path) -> None:
    layers = [{"layer_idx": 0, "n_channels": 1, "mean_mi": 0.0, "std_mi": 0.0}]
    entries = [{"model_name": f"m{i}", "run_id": str(i), "layers": layers} for i in range(12)]
    writers = [threading.Thread(target=merge, args=(tmp_path / "r.json", e, lambda: None)) for e in entries]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert json.loads((tmp_path / "r.json").read_text()).keys() == {e["model_name"] for e in entries}


@pytest.mark.parametrize(("text", "told"), [
    ("{ torn", "results/mi_results_best.json is damaged"),
    ("[1]", "results/mi_results_best.json holds no results by model"),
    ('{"vgg16": {"layers": []}}', "results/mi_results_best.json: vgg16 holds no layers"),
    ('{"vgg16": {"layers": [{"layer_idx": 0}]}}', "results/mi_results_best.json: vgg16: a layer lacks the number n_channels"),
])  # fmt: skip
def test_a_damaged_results_file_is_told_before_the_work_and_left_as_it_is(here, text, told) -> None:
    Path("results").mkdir()
    Path("results/mi_results_best.json").write_text(text)
    assert refusal(*evaluate_words()).startswith(told)
    assert Path("results/mi_results_best.json").read_text() == text
    assert not Path("perturblab_runs").exists()


def test_a_done_evaluation_is_not_repeated_and_restores_what_is_missing(here) -> None:
    does(evaluate_words())
    done = Path("results/mi_results_best.json").read_bytes()
    shutil.rmtree("results")
    told = does(evaluate_words("--save-predictions", "deep/er/p.npz"))
    assert "nats left of" not in told
    assert Path("results/mi_results_best.json").read_bytes() == done
    assert np.load("deep/er/p.npz")["predictions"].shape == (6, 10, 40)


def test_another_checkpoint_under_the_same_name_is_another_run(here) -> None:
    does(evaluate_words())
    first = entry()
    content = torch.load("checkpoints/vgg9_final.pth", weights_only=True)
    torch.save(content, "checkpoints/vgg9_best.pth")
    told = does(evaluate_words())
    assert entry()["baseline_mi_nats"] != first["baseline_mi_nats"] or entry()["sha256"] != first["sha256"]
    assert f"vgg9 is now run {entry()['run_id']}; it was run {first['run_id']}" in told
    assert f"was checkpoint {first['sha256'][:10]}; now checkpoint {entry()['sha256'][:10]}" in told


def test_another_evaluation_of_a_model_says_what_it_replaces_and_a_suffix_keeps_both(here) -> None:
    does(evaluate_words())
    told = does(evaluate_words("--limit", "20", "--layers", "conv5", "--ablation", "zero"))
    (line,) = [line for line in told.splitlines() if "is now run" in line]
    assert line.startswith("warning: results/mi_results_best.json: vgg9 is now run")
    assert (
        "; was 6 layers, 40 images, ablation weight; now 1 layer (conv5), 20 images, ablation zero;" in line
    )
    assert line.endswith("--suffix WORD keeps an evaluation beside others")

    told = does(evaluate_words("--suffix", "all"))
    assert "is now run" not in told
    assert "-> results/mi_results_best_all.json" in told
    assert len(entry()["layers"]) == 1
    assert len(entry(name="mi_results_best_all")["layers"]) == 6


def test_an_entry_of_the_original_scripts_says_what_is_known_of_it() -> None:
    layers = [{"layer_idx": i} for i in range(6)]
    old = {"n_subsets": 100, "layers": layers}
    now = {"model_name": "vgg9", "run_id": "r", "n_subsets": 10, "ablation": "zero", "layers": layers}
    assert replaced(Path("f"), {"model_name": "vgg9", **old}, now).startswith(
        "f: vgg9 is now run r; it was run of the original scripts; was 100 subsets per layer; now 10 subsets per layer;"
    )


# ---- checkpoints of others ---------------------------------------------------------------------------------------------


@pytest.fixture
def original(here) -> Path:
    """A checkpoint as the original scripts save it; at full width, as they know no other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = PlainVGG("vgg11", 1.0, "fc512x2", classes=4)
    content = {"model": model.state_dict(), "train_acc": 99.9, "test_acc": 91.5}
    torch.save(content, here / "checkpoints" / "vgg11_best.pth")
    return here / "checkpoints" / "vgg11_best.pth"


def test_a_checkpoint_of_the_original_scripts_evaluates_as_it_is(trained, original) -> None:
    data = ("--dataset", f"npz:{trained / 'images.npz'}", "--limit", "12")
    does(evaluate_words(*data, "--layers", "0", "7", model="vgg11", subsets=2))
    found = entry("vgg11")
    assert [layer["layer_name"] for layer in found["layers"]] == ["features.0", "features.25"]
    assert found["selected_on"] == "test"  # it was, by document 002
    shutil.move(original, "mine.pth")
    does(evaluate_words(*data, "--layers", "conv8", "--checkpoint", "mine.pth", model="vgg11", subsets=2))
    assert entry("vgg11", "mi_results_mine")["selected_on"] == ""


def test_a_path_says_its_architecture_itself_if_it_is_ours(here) -> None:
    does(
        evaluate_words("--checkpoint", "checkpoints/vgg9_final.pth", "--layers", "0", model="all", subsets=2)
    )
    assert entry("vgg9", "mi_results_vgg9_final")["checkpoint_path"] == "checkpoints/vgg9_final.pth"


# ---- slips -------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_architecture_names_the_keys_that_differ(here) -> None:
    shutil.copy("checkpoints/vgg9_best.pth", "checkpoints/vgg13_best.pth")
    told = refusal(*evaluate_words(model="vgg13"))
    assert told.startswith(
        "checkpoints/vgg13_best.pth is a checkpoint of another network: it lacks features."
    )
    assert "has another shape at features.3.weight" in told or "has an unknown" in told


@pytest.mark.parametrize(("words", "told"), [
    ("--layers conv7", "no layer 'conv7' in vgg9; its layers are conv1 (features.0), conv2 (features.4), conv3 (features.8)"),
    ("--layers features.1 conv2", "no layer 'features.1' in vgg9"),
    ("--layers 6", "no layer '6' in vgg9"),
    ("--n-subsets 11 --keep-min 2", "--n-subsets 11: conv1 of vgg9 at width 0.0625 has 4 channels, so only 10 different subsets can be removed with 2 or more kept"),
    ("--n-subsets 16", "--n-subsets 16: conv1 of vgg9 at width 0.0625 has 4 channels, so only 15 different subsets"),
    ("--limit 41", "--limit 41 is more than the 40 test images"),
    ("--limit 81 --mi-split train", "--limit 81 is more than the 80 train images"),
    ("--checkpoint nowhere.pth", "cannot read nowhere.pth: No such file or directory"),
    ("--seed 5", "no checkpoint checkpoints/vgg9_seed5_best.pth; `perturblab layerwise-mi train --model vgg9 --seed 5` makes it"),
    ("--model all --save-predictions p.npz", "--save-predictions is a file for one model"),
    ("--device cuda:77", "--device cuda:77: this machine has"),
])  # fmt: skip
def test_what_cannot_be_evaluated_is_told_in_one_line_before_any_work(here, words, told) -> None:
    assert refusal(*evaluate_words(*words.split())).startswith(told)
    assert not Path("results").exists()


@pytest.mark.parametrize(("content", "told"), [
    ({"model": 3}, "x.pth is no checkpoint of a network: its model is no dictionary of named weights"),
    ({"a": 1}, "x.pth is no checkpoint of a network: it is no dictionary of named weights"),
    ({"model": {"a": 1}}, "its model is no dictionary of named weights"),
    ({"model_state_dict": {"conv.weight": torch.zeros(2)}, "epoch": 3}, "is a checkpoint of another network: it lacks features.0.weight"),
    ({"model": {"features.0.weight": torch.zeros(2)}}, "is a checkpoint of another network: it lacks"),
    ({"weights": torch.zeros(2)}, "is a checkpoint of another network: it lacks"),
    ({"model": {}, "width": 99.0}, "--width 99.0 is refused"),
    ({"model": {}, "dataset": 5}, "--dataset 5 is refused"),
])  # fmt: skip
def test_a_checkpoint_that_cannot_be_used_is_told_with_its_name_before_any_data(
    trained, here, monkeypatch, content, told
) -> None:
    from perturblab import experiment

    def asked_for(*a: Any, **k: Any) -> None:
        raise AssertionError("the data were asked for")

    monkeypatch.setattr(experiment, "load", asked_for)
    torch.save(content, "x.pth")
    words = () if "dataset" in content else ("--dataset", f"npz:{trained / 'images.npz'}")
    assert told in refusal(*evaluate_words("--checkpoint", "x.pth", *words))


def test_a_foreign_path_must_be_told_its_architecture(original, here) -> None:
    told = refusal(*evaluate_words("--checkpoint", str(original), model="all"))
    assert told.endswith("does not say its architecture; give --model vgg9|vgg11|vgg13|vgg16|vgg19")


@pytest.mark.slow
def test_of_all_a_model_without_a_checkpoint_stops_no_other(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("vgg11", "vgg16"):
        does(train_words(trained / "images.npz", "--epochs", "1", model=model))
    words = program(*evaluate_words("--limit", "10", "--layers", "0", "1", model="all", subsets=2))
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 1
    assert json.loads(Path("results/mi_results_best.json").read_text()).keys() == {"vgg11", "vgg16"}
    for line in ("✓ vgg11: intact", "✗ vgg13: failed", "✓ vgg16: intact", "✗ vgg19: failed"):
        assert line in ended.stdout
    assert "no checkpoint checkpoints/vgg13_best.pth" in ended.stderr


# ---- every flag acts ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(trained: Path) -> list[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        does(evaluate_words())
        found = rows("evaluate-*")
    assert found[0]["mi_nats"] > 0.3  # of 1.39: a network that knew nothing would show nothing
    return found


COMPUTES = {
    "seed": "1", "n_subsets": "9", "keep_min": "1", "ablation": "zero", "mi_split": "train", "limit": "20", "layers": "conv2", "precision": "bf16",
    "dataset": "other", "normalize": "data", "model": "vgg9",
}  # fmt: skip


@pytest.mark.parametrize("field", [name for name in COMPUTES if name not in ("model", "precision")])
def test_a_flag_changes_what_is_computed(trained, here, base, field) -> None:
    value = COMPUTES[field]
    if field == "dataset":
        value = f"npz:{write_images(here / 'other.npz', seed=1)}"
    words = evaluate_words(f"--{field}", value)
    if field == "seed":
        shutil.copy("checkpoints/vgg9_best.pth", "checkpoints/vgg9_seed1_best.pth")
    does(words)
    assert rows("evaluate-*") != base


WHERE = {
    "device": "cpu", "threads": "2", "runs_dir": "perturblab_runs", "checkpoint": "checkpoints/vgg9_best.pth",
    "save_predictions": "p.npz", "batch_size": "7", "memory": "0.01", "data_dir": "d", "num_workers": "1",
    "checkpoint_dir": "./checkpoints", "results_dir": "r", "suffix": "word",
}  # fmt: skip


@pytest.mark.parametrize("field", WHERE)
def test_a_flag_that_says_where_changes_no_number(here, base, field) -> None:
    does(evaluate_words(f"--{field}", WHERE[field]))
    assert rows("evaluate-*") == base


def test_every_flag_of_evaluate_is_walked_by_these_tests() -> None:
    from perturblab.settings import is_where
    from perturblab.studies.layerwise_mi import Evaluate

    where = {name for name, info in Evaluate.model_fields.items() if is_where(info)}
    assert WHERE.keys() == where
    assert COMPUTES.keys() == Evaluate.model_fields.keys() - where


def test_batch_size_and_memory_reach_the_passes(here, monkeypatch) -> None:
    from perturblab.studies.layerwise_mi import evaluate

    seen: dict[str, Any] = {}
    predictions, information_left = evaluate.predictions, evaluate.information_left
    monkeypatch.setattr(evaluate, "predictions", lambda *a, **k: (seen.update(k), predictions(*a, **k))[1])
    monkeypatch.setattr(
        evaluate, "information_left", lambda *a, **k: (seen.update(k), information_left(*a, **k))[1]
    )
    does(evaluate_words("--batch-size", "7", "--memory", "0.25", "--precision", "bf16", "--layers", "0"))
    assert (seen["size"], seen["memory"], seen["precision"]) == (7, 2**28, "bf16")


# ---- resume -----------------------------------------------------------------------------------------------------------


def test_an_evaluation_goes_on_block_by_block_and_ends_the_same(trained, here, base, monkeypatch) -> None:
    """Interrupted while the blocks of two layers are written, then killed between the rows of one."""
    from perturblab.probes import predictions
    from perturblab.signals import Interrupted
    from perturblab.studies.layerwise_mi.blocks import Blocks

    monkeypatch.setattr(predictions, "BLOCK", 15)
    plain_set, computed = Blocks.__setitem__, []

    def interrupting(self: Blocks, first: int, predicted: Tensor) -> None:
        plain_set(self, first, predicted)
        computed.append((self.name, first))
        if len(computed) in (2, 5):
            raise Interrupted(15)

    monkeypatch.setattr(Blocks, "__setitem__", interrupting)
    from commandline import called

    words = evaluate_words("--batch-size", "128")
    assert called(*words)[0] == 75
    (folder,) = Path("perturblab_runs/layerwise-mi").iterdir()
    assert called(*words)[0] == 75
    lines = (
        (folder / "rows.jsonl").read_text().splitlines(keepends=True)
    )  # of the first layer: killed before its last four
    (folder / "rows.jsonl").write_text("".join(lines[:-4]) + '{"kind": "subset", "ep')
    does(words)
    assert len(set(computed)) == len(computed) == 6 * 3  # nothing twice
    assert rows("evaluate-*") == base
    assert not list(folder.glob("checkpoint*"))


def test_a_damaged_block_is_computed_again(here, base, monkeypatch) -> None:
    from commandline import called
    from perturblab.signals import Interrupted
    from perturblab.studies.layerwise_mi.blocks import Blocks

    plain_set = Blocks.__setitem__

    def interrupting(self: Blocks, first: int, predicted: Tensor) -> None:
        plain_set(self, first, predicted)
        raise Interrupted(15)

    with monkeypatch.context() as patch:
        patch.setattr(Blocks, "__setitem__", interrupting)
        assert called(*evaluate_words())[0] == 75
    (block,) = Path("perturblab_runs").glob("*/*/checkpoint-*.npy")
    block.write_bytes(block.read_bytes()[:-8] + b"\1" * 8)
    does(evaluate_words())
    assert rows("evaluate-*") == base
