"""layerwise-mi, visualize: pictures whose numbers are those of the files, a table, and marks where they are due."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from commandline import called, refusal
from perturblab.report import plots
from perturblab.report.tables import as_text
from perturblab.studies.layerwise_mi import Visualize
from perturblab.studies.layerwise_mi.figures import draw_results, summary
from perturblab.studies.layerwise_mi.reading import read_results


def original(model: str, n_layers: int = 3) -> dict[str, Any]:
    """An entry as the original scripts write it."""
    layers = [
        {
            "layer_idx": i,
            "layer_name": f"features.{4 * i}",
            "n_channels": 64,
            "mean_mi": 1.0 + i / 10,
            "std_mi": 0.3,
        }
        for i in range(n_layers)
    ]
    return {"model_name": model, "checkpoint_path": "x", "n_subsets": 100, "layers": layers}


def newer(
    model: str, seed: int = 0, baseline: float = 2.0, lost: float = 1.0, **change: Any
) -> dict[str, Any]:
    """An entry as ``perturblab layerwise-mi evaluate`` writes it: three layers that lose less and less."""
    entry = original(model)
    for i, layer in enumerate(entry["layers"]):
        layer["keep_size"] = [0, 16, 48, 63]
        left = baseline - lost + i / 10
        layer["mi_nats"] = [0.0, left, baseline, baseline]
        layer["mean_mi"], layer["std_mi"] = left, float(np.std(layer["mi_nats"]))
    said = {
        "run_id": "r",
        "seed": seed,
        "baseline_mi_nats": baseline,
        "selected_on": "test",
        "mi_split": "test",
    }
    return entry | said | {"dataset": "cifar10", "ablation": "weight"} | change


def put(folder: Path, *entries: dict[str, Any], name: str = "mi_results_best") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({entry["model_name"]: entry for entry in entries}))


def three_seeds(folder: Path) -> None:
    for seed, lost in enumerate((0.9, 1.0, 1.1)):
        put(
            folder,
            newer("vgg11", seed, lost=lost),
            newer("vgg16", seed, lost=lost / 2),
            name=f"mi_results_best_seed{seed}",
        )


def drawn(folder: Path, **settings: Any) -> dict[str, list[dict[str, str]]]:
    """The numbers behind each picture."""
    s = Visualize(results_dir=str(folder), plots_dir=str(folder / "plots"), **settings)
    paths = draw_results(read_results(s), s, dpi=30)
    return {
        path.name: list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines())) for path in paths
    }


def table(folder: Path, **settings: Any) -> str:
    return as_text(summary(read_results(Visualize(results_dir=str(folder), **settings)), "best"), 200)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """The numbers behind the pictures of a single network."""
    folder = tmp_path_factory.mktemp("one")
    put(folder, newer("vgg11"))
    return drawn(folder)


def test_the_pictures_have_the_documented_names_and_the_numbers_of_the_files(one) -> None:
    found = one
    assert list(found) == ["mi_progression.png", "mi_vs_kept.png"]
    rows = found["mi_progression.png"]
    assert [(r["layer_idx"], r["layer_name"]) for r in rows] == [
        ("0", "features.0"),
        ("1", "features.4"),
        ("2", "features.8"),
    ]
    assert [float(r["mean_mi_nats"]) for r in rows] == pytest.approx([1.0, 1.1, 1.2])
    assert [float(r["lost_mi_nats"]) for r in rows] == pytest.approx([1.0, 0.9, 0.8])
    assert float(rows[0]["std_mi_nats"]) == pytest.approx(np.std([0, 1, 2, 2]))


def test_information_against_the_fraction_kept_is_the_mean_of_each_tenth_and_ends_at_the_intact_network(
    one,
) -> None:
    rows = [row for row in one["mi_vs_kept.png"] if row["line"] == "conv1"]
    assert [float(row["x"]) for row in rows] == pytest.approx([0.05, 0.25, 0.75, 0.95, 1.0])
    assert [float(row["mean"]) for row in rows] == pytest.approx([0.0, 1.0, 2.0, 2.0, 2.0])
    assert {row["line"] for row in one["mi_vs_kept.png"]} == {"conv1", "conv2", "conv3"}
    assert [row["subsets"] for row in rows] == ["1", "1", "1", "1", ""]  # the last is the intact network


def test_seeds_are_averaged_and_told_with_their_spread(tmp_path) -> None:
    three_seeds(tmp_path)
    text = table(tmp_path)
    spread = np.std([0.8, 0.9, 1.0])
    assert f"0.900 ± {spread:.3f}" in text  # vgg11, mean over its layers and seeds
    assert "1.000 at conv1  0.800 at conv3  3" in text
    assert "single seed" not in text
    assert len(drawn(tmp_path)["mi_progression.png"]) == 2 * 3 * 3


def test_a_single_seed_is_marked(tmp_path) -> None:
    put(tmp_path, newer("vgg11"))
    assert "1 (single seed)" in table(tmp_path)


def test_only_what_is_asked_for_is_shown(tmp_path) -> None:
    three_seeds(tmp_path)
    put(tmp_path, newer("vgg19"), name="mi_results_final")
    found = read_results(Visualize(results_dir=str(tmp_path), models=("vgg16",), seeds=(2, 1)))
    assert [(r.model, r.seed) for r in found] == [("vgg16", 1), ("vgg16", 2)]
    found = read_results(Visualize(results_dir=str(tmp_path), checkpoint="final"))
    assert [r.model for r in found] == ["vgg19"]


def test_runs_of_unequal_settings_are_not_averaged(tmp_path, capsys) -> None:
    put(tmp_path, newer("vgg11", 0), name="mi_results_best_seed0")
    put(tmp_path, newer("vgg11", 1, ablation="zero"), name="mi_results_best_seed1")
    text = table(tmp_path)
    assert "vgg11 (ablation=weight)" in text
    assert "vgg11 (ablation=zero)" in text
    assert (
        "warning: vgg11: the runs differ in ablation: weight, zero; they are kept apart"
        in capsys.readouterr().err
    )


def test_runs_of_other_layers_are_kept_apart(tmp_path) -> None:
    few = newer("vgg11", 1)
    put(tmp_path, newer("vgg11", 0), name="mi_results_best_seed0")
    put(tmp_path, few | {"layers": few["layers"][1:]}, name="mi_results_best_seed1")
    text = table(tmp_path)
    assert "vgg11 (layers=conv1 conv2 conv3)" in text
    assert "vgg11 (layers=conv2 conv3)" in text


FULL = {"n_images": 2000, "n_subsets": 4, "ablation": "weight"}


def pictured(folder: Path) -> list[Figure]:
    """The figures as they are written."""
    figures: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "write_png", lambda figure, path, dpi: figures.append(figure))
        drawn(folder)
    return figures


def footnotes(folder: Path) -> list[str]:
    return [figure.get_supxlabel().replace("\n", " ") for figure in pictured(folder)]


def test_architectures_that_were_evaluated_differently_are_marked_in_table_and_pictures(tmp_path) -> None:
    put(tmp_path, newer("vgg11", **FULL), newer("vgg16", **FULL | {"n_images": 20, "ablation": "zero"}))
    text = table(tmp_path)
    assert "vgg11 (n_images=2000, ablation=weight)" in text
    assert "vgg16 (n_images=20, ablation=zero)" in text
    for shown in (text, *footnotes(tmp_path)):
        assert "conv1 conv2 conv3, cifar10, test split, 4 subsets per layer." in " ".join(shown.split())
        assert "Evaluated differently, as the names say (n_images, ablation)" in " ".join(shown.split())
    (legend, _, _) = (axes.get_legend() for axes in pictured(tmp_path)[0].axes)
    assert "n_images=20" in legend.get_texts()[1].get_text()


def test_what_all_evaluations_share_stands_below_table_and_pictures(tmp_path) -> None:
    put(tmp_path, newer("vgg11", **FULL), newer("vgg16", **FULL))
    for shown in (table(tmp_path), *footnotes(tmp_path)):
        assert "cifar10, test split, 2,000 images, 4 subsets per layer, ablation weight" in shown
        assert "differently" not in shown


def test_all_layers_of_two_depths_are_no_difference(tmp_path) -> None:
    put(tmp_path, original("vgg11", 8), original("vgg13", 10))
    assert "layers=" not in table(tmp_path)


def test_a_footnote_explains_only_what_is_drawn(tmp_path) -> None:
    put(tmp_path / "one", newer("vgg11"))
    assert not any("seed" in note for note in footnotes(tmp_path / "one"))
    three_seeds(tmp_path / "three")
    assert all("thin: each seed" in note for note in footnotes(tmp_path / "three"))
    assert "mean over the subsets in a tenth" in footnotes(tmp_path / "one")[1]


def test_the_axes_reach_down_to_losses_below_0_and_to_the_edges_of_the_bands(tmp_path) -> None:
    put(tmp_path, newer("vgg11", lost=-0.5))  # the subsets say more than the intact network
    for axes in pictured(tmp_path)[0].axes:
        low, high = axes.get_ylim()
        assert low < -0.7  # of the third layer
        assert high > 2.7 + float(np.std([0, 2.7, 2, 2]))


def test_a_results_file_without_entries_is_told_as_such(tmp_path) -> None:
    put(tmp_path)
    told = refusal("layerwise-mi", "visualize", "--results_dir", str(tmp_path))
    assert told.startswith(
        f"{tmp_path}/mi_results_best.json: no results in there; `perturblab layerwise-mi evaluate"
    )


def test_evaluations_with_a_suffix_are_shown_by_the_name_of_their_file(tmp_path) -> None:
    put(tmp_path, newer("vgg11"))
    put(tmp_path, newer("vgg16", 2), name="mi_results_best_zero_seed2")
    found = read_results(Visualize(results_dir=str(tmp_path), checkpoint="best_zero"))
    assert [(r.model, r.seed) for r in found] == [("vgg16", 2)]
    assert [r.model for r in read_results(Visualize(results_dir=str(tmp_path)))] == ["vgg11"]


@pytest.mark.parametrize(("change", "marked"), [
    ({}, True), ({"selected_on": "val"}, False), ({"mi_split": "train"}, False), ({"selected_on": ""}, False)
])  # fmt: skip
def test_a_checkpoint_selected_on_the_images_that_judge_it_is_marked(tmp_path, change, marked) -> None:
    put(tmp_path, newer("vgg11", **change))
    assert ("selected on test" in table(tmp_path)) == marked


def test_results_of_the_original_scripts_are_drawn_as_far_as_they_go(tmp_path, capsys) -> None:
    put(tmp_path, original("vgg11"), original("vgg13", 5))
    found = drawn(tmp_path)
    assert list(found) == ["mi_progression.png"]
    assert [row["lost_mi_nats"] for row in found["mi_progression.png"]] == [""] * 8
    assert "mi_vs_kept.png not drawn: no result records its subsets" in capsys.readouterr().out
    assert "nan" not in table(tmp_path)


def test_equal_results_give_equal_bytes(tmp_path) -> None:
    put(tmp_path, original("vgg11"))
    drawn(tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    drawn(tmp_path)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}


def test_the_command_prints_the_files_and_the_table(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "results", newer("vgg11"))
    code, out, _ = called("layerwise-mi", "visualize")
    assert code == 0
    assert out.startswith("plots/mi_progression.png\nplots/mi_vs_kept.png\n")
    assert "INFORMATION LEFT AND LOST, best checkpoints" in out


@pytest.mark.parametrize(("words", "told"), [
    ("", "no results of 'best' checkpoints in results: `perturblab layerwise-mi evaluate --model vgg11` makes one"),
    ("--results_dir there --checkpoint final", "no results of 'final' checkpoints in there: there are mi_results_best"),
    ("--results_dir there --models vgg12", "no result files in there for vgg12; there are vgg11 seed 0"),
    ("--results_dir there --seeds 4", "no result files in there for seed 4; there are vgg11 seed 0"),
])  # fmt: skip
def test_nothing_to_show_is_told_in_one_line(tmp_path, monkeypatch, words, told) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "there", newer("vgg11"))
    assert refusal("layerwise-mi", "visualize", *words.split()).startswith(told)


@pytest.mark.parametrize(("layer", "told"), [
    ({"mean_mi": "much"}, "vgg11: a layer lacks the number mean_mi"),
    ({"mi_nats": [1.0]}, "vgg11.layers.keep_size has 4 values, mi_nats has 1"),
    ({"keep_size": "all"}, "vgg11.layers.keep_size must be a list of numbers"),
])  # fmt: skip
def test_a_damaged_entry_is_told_with_file_and_key(tmp_path, layer, told) -> None:
    entry = newer("vgg11")
    entry["layers"][1] |= layer
    put(tmp_path, entry)
    assert told in refusal("layerwise-mi", "visualize", "--results_dir", str(tmp_path))


def test_one_network_under_two_names_is_refused(tmp_path) -> None:
    put(tmp_path, newer("vgg11"))
    put(tmp_path, newer("vgg11"), name="mi_results_best_seed0")
    assert "are the same run; remove one of them" in refusal(
        "layerwise-mi", "visualize", "--results_dir", str(tmp_path)
    )
