"""Reading the result files of first-layer-mi, ours and the original scripts', and what is drawn and said of them."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commandline import called, refusal
from perturblab.experiment import arrays_to_bytes
from perturblab.report.groups import alike
from perturblab.runs import Row
from perturblab.studies.first_layer_mi import RECORDED, Train
from perturblab.studies.first_layer_mi.documented import as_arrays, documented
from perturblab.studies.first_layer_mi.figures import draw_results
from perturblab.studies.first_layer_mi.results import SETTINGS, Result, read_results
from perturblab.studies.first_layer_mi.summary import Units, correlations, said, summary
from perturblab.terminal import UserError

ELEMENTS = 65536


def rows_of(s: Train, gap: float, diff: float) -> list[Row]:
    """Rows as a run would leave them: the final gap in points and the final MI difference in nats are given."""
    chance, rows = random.Random(s.name), list[Row]()

    def measured(epoch: int, stage: str, n_masks: int, n: int) -> None:
        at = {"epoch": epoch, "stage": stage}
        rows.append({
            "kind": "intact", **at, "mi_nats": 4.0, "mi_mm_nats": 3.9, "mi_null_nats": 0.97 if stage == "train" else 0.55,
            "accuracy": 0.9, "mi_low_nats": 3.95, "mi_high_nats": 4.05, "label_entropy_nats": math.log(100),
            "n_images": n, "classes": 100, "elements": ELEMENTS,
        })  # fmt: skip
        for number in range(n_masks):
            mi = {"mi_nats": 4 - diff, "mi_mm_nats": 3.6 - diff, "mi_null_nats": 0.9, "accuracy": 0.5}
            rows.append(
                {"kind": "mask", **at, "subset": number, "keep_size": chance.randint(1, ELEMENTS - 2), **mi}
            )

    for epoch in range(1, s.epochs + 1):
        due = epoch == 1 or epoch % s.eval_interval == 0 or epoch == s.epochs
        rows.append({
            "kind": "epoch", "epoch": epoch, "lr": 1e-3, "loss_full": 2.0, "train_acc_online": 0.4,
            "train_acc_clean": 0.6 + gap / 100 if due else None, "test_acc": 0.6 if due else None,
        })  # fmt: skip
        if due:
            measured(epoch, "train", s.n_masks_train, 5120)
    measured(s.epochs, "final", s.n_masks_final, 10240)
    return rows


def write(
    folder: Path, arch: str, seed: int, gap: float = 20.0, diff: float = 1.0, kind: str = "npz", **values: Any
) -> Path:
    """A result file as ``train`` writes it."""
    s = Train.parse({"arch": arch, "seed": seed, "epochs": 20, **values}).canonical()
    results = {"schema_version": 1, "run_id": s.id, **documented(s, rows_of(s, gap, diff))}
    path = folder / f"{s.name}_results.{kind}"
    data = json.dumps(results).encode() if kind == "json" else arrays_to_bytes(as_arrays(results))
    path.write_bytes(data)
    return path


def original(folder: Path, arch: str, seed: int, kind: str = "npz") -> Path:
    """A result file as the original script writes it: no masks, no MI of the intact network over epochs, AdamW."""
    results: dict[str, Any] = {
        "epochs_evaluated": [1, 10, 20], "mi_history": [0.1, 0.5, 0.9], "train_acc_aug_history": [5.0, 20.0, 30.0],
        "train_acc_clean_history": [10.0, 60.0, 90.0], "test_acc_history": [9.0, 50.0, 60.0],
        "gen_gap_history": [1.0, 10.0, 30.0], "final_mi_full": 4.2, "final_mean_mi_masked": 3.1, "final_mi_diff": 1.1,
        "final_train_acc_aug": 30.0, "final_train_acc_clean": 90.0, "final_test_acc": 60.0, "final_gen_gap": 30.0,
        "arch": arch, "seed": seed, "use_batchnorm": True, "use_augmentation": True, "use_dropout": True,
        "optimizer": "adamw",
    }  # fmt: skip
    path = folder / f"{arch}_seed{seed}_results.{kind}"
    if kind == "json":
        path.write_text(json.dumps({**results, "epochs": 200}))
    else:
        np.savez(path, **results)
    return path


# ---- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_a_file_of_ours_is_read_with_its_settings_histories_and_masks(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "vgg9", 3, gap=25, diff=1.5, kind=kind, lr=0.01, suffix="b")
    (run,) = read_results(tmp_path)
    assert (run.arch, run.seed, run.settings["lr"], run.settings["suffix"]) == ("vgg9", 3, 0.01, "_b")
    assert {name: run.settings[name] for name in RECORDED if name != "lr"} == {
        name: getattr(Train(arch="vgg9", seed=3, epochs=20).canonical(), name)
        for name in RECORDED
        if name != "lr"
    }
    assert run.finals["final_gen_gap"] == pytest.approx(25)
    assert run.finals["final_mi_diff"] == pytest.approx(1.5)
    np.testing.assert_array_equal(run.epochs, [1, 10, 20])
    np.testing.assert_allclose(run.history["mi_full_history_nats"], 4.0)
    assert run.masks is not None
    sizes = [
        row["keep_size"] for row in rows_of(Train(arch="vgg9", seed=3, epochs=20, suffix="b"), 25, 1.5)[-40:]
    ]
    np.testing.assert_allclose(run.masks.kept_fraction, np.array(sizes) / ELEMENTS)


@pytest.mark.parametrize("kind", ["npz", "json"])
def test_a_file_of_the_original_scripts_is_read_as_it_is(tmp_path: Path, kind: str) -> None:
    original(tmp_path, "vgg9", 0, kind)
    (run,) = read_results(tmp_path)
    assert (run.settings["script"], run.settings["optimizer"], run.masks) == ("original", "adamw", None)
    assert run.finals["final_mi_diff"] == 1.1
    assert "mi_full_history_nats" not in run.history


def test_of_a_run_with_both_files_the_npz_is_read_and_counts_once(tmp_path: Path) -> None:
    for kind in ("json", "npz"):
        write(tmp_path, "vgg9", 0, kind=kind)
    (run,) = read_results(tmp_path)
    assert run.path.suffix == ".npz"


def test_runs_come_by_depth_and_seed_or_in_the_order_asked_for(tmp_path: Path, capsys) -> None:
    for arch, seed in (("vgg11", 1), ("vgg9", 0), ("vgg11", 0)):
        write(tmp_path, arch, seed)
    assert [(r.arch, r.seed) for r in read_results(tmp_path)] == [("vgg9", 0), ("vgg11", 0), ("vgg11", 1)]
    asked = read_results(tmp_path, ["vgg11", "vgg9"], [0, 5])
    assert [(r.arch, r.seed) for r in asked] == [("vgg11", 0), ("vgg9", 0)]
    assert "no results" in capsys.readouterr().err


def test_the_threshold_leaves_out_runs_that_did_not_learn_the_training_set(tmp_path: Path, capsys) -> None:
    write(tmp_path, "vgg9", 0, gap=20)  # 80 % on train
    write(tmp_path, "vgg9", 1, gap=39.5)  # 99.5 %
    assert [run.seed for run in read_results(tmp_path, train_acc_threshold=99)] == [1]
    assert "1 of 2 runs left out: clean train accuracy below 99 %" in capsys.readouterr().out
    assert len(read_results(tmp_path, train_acc_threshold=80)) == 2
    with pytest.raises(
        UserError, match=r"no run reaches --train_acc_threshold 99.9: the highest .* is 99.50 %"
    ):
        read_results(tmp_path, train_acc_threshold=99.9)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped":
        middle = data.index(b"final_mi_full.npy") + 200
        path.write_bytes(
            data[:middle] + bytes(255 - b for b in data[middle : middle + 40]) + data[middle + 40 :]
        )
    elif how == "pickle":
        np.savez(path, arch=np.array([{}], dtype=object))
    elif how == "text":
        path.write_text("not an archive")


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "pickle", "text"])
def test_a_damaged_npz_is_one_line_that_names_it(tmp_path: Path, how: str) -> None:
    path = write(tmp_path, "vgg9", 0)
    damage(path, how)
    told = refusal(
        "first-layer-mi", "visualize", "--results_dir", str(tmp_path), "--plots_dir", str(tmp_path / "p")
    )
    assert told.startswith(f"{path} is damaged")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("change", "told"), [
    ({"final_mi_diff": None}, "final_mi_diff must be a finite number, not None"),
    ({"arch": "vgg11"}, "its name says arch vgg9, its key 'arch' says 'vgg11'"),
    ({"mi_history": [1.0]}, "mi_history has 1 values, epochs_evaluated has 3"),
    ({"epochs_evaluated": [1, 20, 10]}, "epochs_evaluated must hold one or more rising numbers"),
    ({"mi_history": "x"}, "mi_history must be a list of numbers, not 'x'"),
    ({"final_mask_mi_nats": []}, "final_mask_keep_size and final_mask_mi_nats must hold one number per mask"),
])  # fmt: skip
def test_a_value_that_cannot_be_is_one_line_that_names_file_and_key(
    tmp_path: Path, change, told: str
) -> None:
    path = write(tmp_path, "vgg9", 0, kind="json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError) as error:
        read_results(tmp_path)
    assert str(error.value) == f"{path}: {told}"


def test_a_missing_key_is_told_with_the_command_that_writes_it(tmp_path: Path) -> None:
    path = write(tmp_path, "vgg9", 0, kind="json")
    content = json.loads(path.read_text())
    del content["final_gen_gap"]
    path.write_text(json.dumps(content))
    with pytest.raises(
        UserError, match="the key final_gen_gap is missing; was the file made by first-layer-mi train"
    ):
        read_results(tmp_path)


def test_a_folder_without_results_says_how_to_make_some(tmp_path: Path) -> None:
    told = refusal("first-layer-mi", "visualize", "--results_dir", str(tmp_path))
    assert told.startswith(f"no result files in {tmp_path}: `perturblab first-layer-mi train")
    write(tmp_path, "vgg9", 0)
    told = refusal("first-layer-mi", "visualize", "--results_dir", str(tmp_path), "--architectures", "vgg12")
    assert told == f"no result files in {tmp_path} for vgg12; there are vgg9 seed 0"


# ---- pictures ----------------------------------------------------------------------------------------------------


def grid(folder: Path, archs: tuple[str, ...] = ("vgg9", "vgg11", "vgg13", "vgg16", "vgg19")) -> list[Result]:
    for depth, arch in enumerate(archs):
        for seed in (0, 1, 2):
            write(folder, arch, seed, gap=10 + 5 * depth + seed, diff=1 + 0.2 * depth + 0.05 * seed)
    return read_results(folder)


def rows_in(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))


def test_the_three_pictures_are_drawn_with_their_numbers_beside_them(tmp_path: Path) -> None:
    results = grid(tmp_path)
    pictures = draw_results(results, tmp_path / "plots", Units("nats"), dpi=40)
    assert [path.name for path in pictures] == [
        "mi_diff_vs_gen_gap.png", "mi_over_epochs.png", "mi_vs_kept_first_layer.png",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    points = rows_in(pictures[0])
    assert len(points) == 15
    gaps = [float(row["generalization gap: clean train − test accuracy (points)"]) for row in points]
    assert gaps == pytest.approx([10 + 5 * depth + seed for depth in range(5) for seed in range(3)])
    curves = [row for row in rows_in(pictures[1]) if row["line"] == "vgg9"]
    assert [(row["panel"], float(row["x"])) for row in curves] == [
        (panel, epoch)
        for panel in ("MI full", "the same, labels permuted", "MI full − mean MI masked")
        for epoch in (1, 10, 20)
    ]
    assert [float(row["mean"]) for row in curves] == pytest.approx([4.0] * 3 + [0.97] * 3 + [1.05] * 3)


@pytest.mark.parametrize(("changed", "final", "during"), [
    ({}, "cifar100, information on 10,240 train images", "cifar100, information on 5,120 train images"),
    ({"dataset": "parquet:a/b/mine", "mi_split": "test"}, "cifar100, mine, information on unequal images", ""),
])  # fmt: skip
def test_every_picture_names_data_set_and_images(
    tmp_path: Path, monkeypatch, changed: dict[str, Any], final: str, during: str
) -> None:
    write(tmp_path, "vgg9", 0)
    write(tmp_path, "vgg11", 0, **changed)
    titles = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, *_, **__: titles.append(figure.get_suptitle())
    )
    draw_results(read_results(tmp_path), tmp_path / "plots", Units("nats"), dpi=40)
    assert [title.partition("\n")[2] for title in titles] == [final, during or final, final]


def test_masks_are_averaged_in_bins_of_the_fraction_kept_and_the_intact_network_closes_the_line(
    tmp_path: Path,
) -> None:
    write(tmp_path, "vgg9", 0, diff=1.5)
    (run,) = read_results(tmp_path)
    path = draw_results([run], tmp_path / "plots", Units("nats"), dpi=40)[2]
    rows = rows_in(path)
    assert run.masks is not None
    filled = sorted({math.floor(10 * fraction) for fraction in run.masks.kept_fraction})
    assert [float(row["x"]) for row in rows] == pytest.approx([*((b + 0.5) / 10 for b in filled), 1.0])
    assert [float(row["mean"]) for row in rows] == pytest.approx([2.5] * len(filled) + [4.0])


def test_bits_are_nats_over_the_logarithm_of_two_in_pictures_and_table(tmp_path: Path) -> None:
    write(tmp_path, "vgg9", 0, diff=math.log(2))
    results = read_results(tmp_path)
    path = draw_results(results, tmp_path / "plots", Units("bits"), dpi=40)[0]
    (row,) = rows_in(path)
    assert float(row["MI full − mean MI masked (bits)"]) == pytest.approx(1.0)
    table = summary(results, Units("bits"))
    assert "information in bits" in table.title
    assert table.rows[0][table.columns.index("Diff")] == "1.000"
    assert table.rows[0][table.columns.index("Gap (points)")] == "20.00"


def test_results_of_the_original_scripts_are_drawn_as_far_as_they_go(tmp_path: Path, capsys) -> None:
    original(tmp_path, "vgg9", 0)
    results = read_results(tmp_path)
    assert [path.stem for path in draw_results(results, tmp_path / "plots", Units("nats"), dpi=40)] == [
        "mi_diff_vs_gen_gap", "mi_over_epochs",
    ]  # fmt: skip
    assert "mi_vs_kept_first_layer.png not drawn: no run records its masks" in capsys.readouterr().out
    assert "nats, whatever their document says of bits" in " ".join(summary(results, Units("nats")).notes)


def test_the_command_draws_tells_and_ends_with_0(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path, "vgg9", seed)
    folders = ("--results_dir", str(tmp_path), "--plots_dir", str(tmp_path / "plots"))
    code, out, errors = called("first-layer-mi", "visualize", *folders, "--mi_units", "bits")
    assert (code, errors) == (0, "")
    assert "FINAL RESULTS (mean ± std over seeds; information in bits)" in out
    assert sorted(path.name for path in (tmp_path / "plots").glob("*.png")) == [
        "mi_diff_vs_gen_gap.png", "mi_over_epochs.png", "mi_vs_kept_first_layer.png",
    ]  # fmt: skip


# ---- what is said --------------------------------------------------------------------------------------------------


def test_the_table_has_means_population_std_n_and_images(tmp_path: Path) -> None:
    for seed, diff in ((0, 1.0), (1, 2.0)):
        write(tmp_path, "vgg9", seed, diff=diff)
    write(tmp_path, "vgg11", 0, diff=3.0)
    table = summary(read_results(tmp_path), Units("nats"))
    cells = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert (cells[0]["Diff"], cells[0]["n"], cells[0]["Images"]) == ("1.500 ± 0.500", "2", "10,240")
    assert (cells[1]["Diff"], cells[1]["n"]) == ("3.000", "1 (single seed)")
    assert cells[0]["Diff (MM)"] == "1.800 ± 0.500"


def test_the_correlation_is_told_over_runs_and_over_architectures(tmp_path: Path) -> None:
    over_runs, over_means = correlations(grid(tmp_path))
    assert over_runs.startswith("15 runs: Spearman's rho of MI diff and generalization gap +1.00")
    assert "not independent" in over_runs
    assert over_means.startswith("means of 5 architectures: ")
    assert over_means.endswith("p = 0.017); they rise together")  # 2 of 120 orders


def test_few_runs_show_nothing_and_say_so(tmp_path: Path) -> None:
    write(tmp_path, "vgg9", 0)
    assert "A single run shows no relation" in said(read_results(tmp_path))
    assert "Single seeds, whose spread is unknown: vgg9." in said(read_results(tmp_path))
    write(tmp_path, "vgg11", 0, gap=5, diff=0.5)
    assert correlations(read_results(tmp_path))[0].endswith("nothing can be concluded")
    for seed, (gap, diff) in enumerate(((1, 0.4), (9, 0.2), (5, 0.3)), 1):
        write(tmp_path, "vgg9", seed, gap=gap, diff=diff)
    assert "no relation shown" in correlations(read_results(tmp_path))[0]


def test_numbers_on_unequal_images_are_marked_as_not_comparable(tmp_path: Path) -> None:
    mark = "not comparable"
    for seed in (0, 1):
        write(tmp_path, "vgg9", seed)
    assert mark not in said(read_results(tmp_path))
    write(tmp_path, "vgg11", 0, mi_split="test")
    results = read_results(tmp_path)
    assert mark in said(results)
    assert mark in " ".join(summary(results, Units("nats")).notes)


def test_runs_of_unequal_settings_are_never_averaged(tmp_path: Path, capsys) -> None:
    write(tmp_path, "vgg9", 0)
    write(tmp_path, "vgg9", 0, suffix="wd", weight_decay=5e-4)
    original(tmp_path, "vgg9", 7)
    found = alike(read_results(tmp_path), SETTINGS)
    assert [(len(group.runs), group.variant) for group in found] == [
        (1, "weight_decay=0.0"), (1, "weight_decay=0.0005"), (1, "original script"),
    ]  # fmt: skip
    assert "vgg9: the runs differ in" in capsys.readouterr().err
