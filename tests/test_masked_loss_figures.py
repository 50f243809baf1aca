"""What a user of masked-loss gets from a folder of result files: pictures, tables, and an honest sentence."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perturblab.report.plots import data_behind
from perturblab.report.tables import as_text
from perturblab.studies.masked_loss import Visualize
from perturblab.studies.masked_loss.arms import groups
from perturblab.studies.masked_loss.figures import (
    Drawing,
    _clamp_activity,
    _generalization_gap,
    _loss_curves,
    _robustness,
    _test_accuracy,
    draw,
    read_results,
    summary,
    verdict,
    visualize,
)
from perturblab.terminal import UserError

EPOCHS = 4
KEPT = [0.1, 0.5, 0.9]


def original(arch: str, mode: str, seed: int, acc: float = 90.0, gap: float = 8.0) -> dict[str, Any]:
    """A results file as the original scripts write it."""
    masked = mode == "masked"
    fall = [2.0, 1.0, 0.5, 0.25]
    return {
        "arch": arch, "mode": mode, "seed": seed, "epochs": EPOCHS, "batch_size": 128, "lr": 0.1,
        "n_masks": 3 if masked else 0, "lambda_max": 0.0 if mode == "baseline" else 1.0,
        "final_train_acc": acc + gap, "final_test_acc": acc, "final_gen_gap": gap,
        "history": {
            "epoch": [1, 2, 3, 4],
            "train_loss_full": fall,
            "train_loss_masked": [2.3] * 4 if masked else [0.0] * 4,
            "train_loss_total": [v / 2 if masked else v for v in fall],
            "train_acc": [40.0, 60.0, 80.0, acc + gap],
            "test_acc": [38.0, 55.0, 75.0, acc],
            "gen_gap": [2.0, 5.0, 5.0, gap],
            "lambda": [0.0] * 4 if mode == "baseline" else [0.5, 1.0, 1.0, 1.0],
        },
    }  # fmt: skip


def newer(
    arch: str, mode: str, seed: int, acc: float = 90.0, gap: float = 8.0, **change: Any
) -> dict[str, Any]:
    """A results file as ``perturblab masked-loss train`` writes it."""
    result = original(arch, mode, seed, acc, gap)
    result |= {"schema_version": 1, "run_id": f"{mode}{seed}", "dataset": "cifar10", "width": 1.0}
    result |= {"clamp": "hard", "site": "hidden", "settings": {"arch": arch, "mode": mode, "seed": seed}}
    result["history"]["clamp_active_fraction"] = [1.0] * 4 if mode == "masked" else [None] * 4
    result["robustness"] = {
        "kept_fraction": KEPT,
        "keep_size": [51, 256, 461],
        "test_acc": [[acc * f - 1, acc * f + 1] for f in KEPT],
        "test_acc_intact": acc,
    }
    return result | change


def put(folder: Path, result: dict[str, Any], suffix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{result['arch']}_{result['mode']}_seed{result['seed']}{suffix}.json"
    path.write_text(json.dumps(result))
    return path


def three_seeds(
    folder: Path, mode: str, accs: tuple[float, ...] = (90.0, 91.0, 92.0), arch: str = "vgg11", **change: Any
) -> None:
    for seed, acc in enumerate(accs):
        put(folder, newer(arch, mode, seed, acc, **change))


def rows_of(picture: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(picture.with_suffix(".csv").read_text())))


def numbers_in(drawing: Drawing) -> list[dict[str, Any]]:
    columns, rows = data_behind(drawing.panels)
    return [dict(zip(columns, row, strict=True)) for row in rows]


# ---- reading ---------------------------------------------------------------------------------------------------


def test_files_come_in_natural_order_whatever_else_lies_in_the_folder(tmp_path: Path) -> None:
    for arch, mode, seed in [
        ("vgg11", "masked", 10),
        ("vgg11", "masked", 9),
        ("vgg9", "masked", 0),
        ("vgg11", "baseline", 3),
    ]:
        put(tmp_path, newer(arch, mode, seed))  # fmt: skip
    (tmp_path / "notes.json").write_text("not a result")
    found = [(r.arch, r.mode, r.seed) for r in read_results(tmp_path)]
    assert found == [
        ("vgg9", "masked", 0),
        ("vgg11", "baseline", 3),
        ("vgg11", "masked", 9),
        ("vgg11", "masked", 10),
    ]


def test_only_what_is_asked_for_is_read_in_the_order_asked_for(tmp_path: Path) -> None:
    for arch in ("vgg11", "vgg13", "vgg16"):
        for mode in ("baseline", "half-loss"):
            three_seeds(tmp_path, mode, arch=arch)
    found = read_results(tmp_path, ["vgg16", "vgg11"], ["half_loss"], [2])
    assert [(r.arch, r.mode, r.seed) for r in found] == [("vgg16", "half-loss", 2), ("vgg11", "half-loss", 2)]


def test_an_empty_folder_is_told_the_command_that_fills_it(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match=r"no result files.*perturblab masked-loss train --arch"):
            read_results(folder)


def test_asking_for_what_is_not_there_names_it_and_what_is(tmp_path: Path) -> None:
    three_seeds(tmp_path, "masked")
    with pytest.raises(UserError, match="for vgg12; there are vgg11 masked"):
        read_results(tmp_path, ["vgg12"])


def test_what_is_only_partly_there_is_read_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three_seeds(tmp_path, "masked")
    assert len(read_results(tmp_path, ["vgg11", "vgg19"], ["masked", "baseline"], [0, 7])) == 1
    assert "for vgg19, baseline, seed 7" in capsys.readouterr().err


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        inner = result
        for key in keys[:-1]:
            inner = inner[key]
        del inner[keys[-1]]

    return change


def with_value(value: Any, *keys: str) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        inner = result
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("final_test_acc"), "final_test_acc is missing"),
        (without("history"), "history is missing"),
        (without("history", "lambda"), "history.lambda is missing"),
        (without("robustness", "test_acc"), "robustness.test_acc is missing"),
        (with_value(None, "final_gen_gap"), "final_gen_gap must be a finite number"),
        (with_value("90 %", "final_test_acc"), "final_test_acc must be a finite number"),
        (with_value([1.0], "history", "test_acc"), "history.test_acc has 1 values, history.epoch has 4"),
        (with_value([1.0], "history", "clamp_active_fraction"), "history.clamp_active_fraction has 1"),
        (with_value(["a"] * 4, "history", "gen_gap"), "history.gen_gap must hold numbers"),
        (with_value(3, "history", "lambda"), "history.lambda must be a list"),
        (with_value([], "history", "epoch"), "history.epoch must hold one or more rising"),
        (with_value([1, 3, 2, 4], "history", "epoch"), "history.epoch must hold one or more rising"),
        (with_value([[1.0]], "robustness", "test_acc"), "robustness.test_acc must hold .* each of the 3"),
        (with_value(7, "seed"), "its name says seed 0, its key 'seed' says 7"),
        (with_value("baseline", "mode"), "its name says mode masked"),
    ],
)
def test_a_file_with_a_bad_key_is_named_with_the_key(
    damage: Callable[[dict[str, Any]], None], said: str, tmp_path: Path
) -> None:
    result = newer("vgg11", "masked", 0)
    damage(result)
    (tmp_path / "vgg11_masked_seed0.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=f"vgg11_masked_seed0.json.*{said}"):
        read_results(tmp_path)


@pytest.mark.parametrize("content", [b"", b'{"arch": "vgg11"', b"\xff\xfe\x00", b"[1, 2]"])
def test_a_torn_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "vgg11_masked_seed0.json").write_bytes(content)
    with pytest.raises(UserError, match=r"vgg11_masked_seed0.json.*damaged"):
        read_results(tmp_path)


def test_one_run_under_two_spellings_does_not_count_twice(tmp_path: Path) -> None:
    result = newer("vgg11", "half-loss", 0)
    put(tmp_path, result)
    put(tmp_path, result | {"mode": "half_loss"})
    with pytest.raises(UserError, match="are the same run"):
        read_results(tmp_path)


def test_runs_of_other_settings_are_kept_apart_and_one_line_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three_seeds(tmp_path, "masked")
    put(tmp_path, newer("vgg11", "masked", 0, 50.0, epochs=5), "_short")
    put(tmp_path, newer("vgg11", "masked", 1, 50.0, epochs=5), "_short")
    found = groups(read_results(tmp_path))
    assert [(g.label, len(g.runs)) for g in found] == [
        ("vgg11 masked (epochs=4)", 3),
        ("vgg11 masked (epochs=5)", 2),
    ]
    warned = capsys.readouterr().err.splitlines()
    assert warned == ["warning: vgg11 masked: the runs differ in epochs: 4, 5; they are kept apart"]


def test_settings_recorded_only_where_they_are_not_default_set_runs_apart_too(tmp_path: Path) -> None:
    three_seeds(tmp_path, "masked")
    put(tmp_path, newer("vgg11", "masked", 3, settings={"momentum": 0.5}))
    assert [g.label for g in groups(read_results(tmp_path))] == [
        "vgg11 masked (momentum=0.9)",
        "vgg11 masked (momentum=0.5)",
    ]


def test_settings_that_a_mode_never_reads_do_not_set_its_runs_apart(tmp_path: Path) -> None:
    put(tmp_path, newer("vgg11", "baseline", 0, clamp="hard"))
    put(tmp_path, newer("vgg11", "baseline", 1, clamp="rescale", n_masks=7))
    assert [g.label for g in groups(read_results(tmp_path))] == ["vgg11 baseline"]


def test_runs_of_the_original_scripts_are_not_averaged_with_ours(tmp_path: Path) -> None:
    three_seeds(tmp_path, "masked")
    put(tmp_path, original("vgg11", "masked", 3))
    assert [g.label for g in groups(read_results(tmp_path))] == [
        "vgg11 masked",
        "vgg11 masked (original script)",
    ]


# ---- pictures --------------------------------------------------------------------------------------------------

DOCUMENTED = ["generalization_gap.png", "test_accuracy.png", "loss_curves_vgg11.png", "lambda_schedule.png"]


def test_files_of_the_original_scripts_give_the_documented_pictures_and_no_empty_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for mode in ("baseline", "masked"):
        for seed in range(3):
            put(tmp_path / "results", original("vgg11", mode, seed, 90.0 + seed))
    written = draw(tmp_path / "results", tmp_path / "plots", dpi=40)
    assert [p.name for p in written] == DOCUMENTED
    assert sorted(p.name for p in (tmp_path / "plots").glob("*.png")) == sorted(DOCUMENTED)
    assert capsys.readouterr().out.splitlines() == [
        "clamp_activity.png not drawn: no masked run records clamp_active_fraction",
        "robustness.png not drawn: no run records robustness",
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drawn from three modes of one known and one unknown architecture; the unknown one has one masked seed."""
    folder = tmp_path_factory.mktemp("newer")
    for i, mode in enumerate(("baseline", "masked", "half-loss")):
        three_seeds(folder, mode, (90.0 + i, 91.0 + i, 92.0 + i))
    put(folder, newer("my_net", "masked", 0, dataset="folder:pictures"))
    return {p.stem: p for p in draw(folder, folder / "plots", dpi=40)}


def test_every_picture_is_drawn_when_every_number_is_there(pictures: dict[str, Path]) -> None:
    assert list(pictures) == [
        "generalization_gap", "test_accuracy", "loss_curves_my_net", "loss_curves_vgg11", "lambda_schedule",
        "clamp_activity", "robustness",
    ]  # fmt: skip


def test_the_accuracy_picture_shows_mean_and_population_spread_of_the_seeds(
    pictures: dict[str, Path],
) -> None:
    last = [
        r
        for r in rows_of(pictures["test_accuracy"])
        if (r["panel"], r["line"], r["x"]) == ("vgg11", "masked", "4.0")
    ]
    assert len(last) == 1
    assert float(last[0]["mean"]) == 92.0
    assert float(last[0]["std_population"]) == pytest.approx(math.sqrt(2 / 3))
    assert [float(last[0][f"seed{s}"]) for s in range(3)] == [91.0, 92.0, 93.0]


def test_the_loss_picture_shows_the_three_losses_of_masked_runs_only(pictures: dict[str, Path]) -> None:
    rows = rows_of(pictures["loss_curves_vgg11"])
    assert {r["panel"] for r in rows} == {"vgg11 masked"}
    first = {r["line"]: float(r["mean"]) for r in rows if r["x"] == "1.0"}
    assert first == {"L_full": 2.0, "L_masked_avg": 2.3, "L_total": 1.0}


def test_the_lambda_picture_is_that_of_the_first_architecture_and_seed(pictures: dict[str, Path]) -> None:
    rows = rows_of(pictures["lambda_schedule"])
    assert {r["panel"] for r in rows} == {"my_net masked, seed 0"}
    assert [float(r["seed0"]) for r in rows] == [0.5, 1.0, 1.0, 1.0]


def test_the_robustness_picture_averages_masks_per_seed_and_ends_with_the_intact_network(
    pictures: dict[str, Path],
) -> None:
    rows = [r for r in rows_of(pictures["robustness"]) if (r["panel"], r["line"]) == ("vgg11", "baseline")]
    assert [float(r["x"]) for r in rows] == [*KEPT, 1.0]
    np.testing.assert_allclose([float(r["seed1"]) for r in rows], [9.1, 45.5, 81.9, 91.0])


def test_the_clamp_picture_has_masked_runs_only(pictures: dict[str, Path]) -> None:
    rows = rows_of(pictures["clamp_activity"])
    assert {(r["panel"], r["line"]) for r in rows} == {("vgg11", "masked"), ("my_net", "masked")}
    assert {float(r["mean"]) for r in rows} == {1.0}


def test_runs_without_a_clamp_are_not_drawn_as_if_one_had_acted(tmp_path: Path) -> None:
    put(tmp_path, newer("vgg11", "masked", 0, clamp="none"))
    assert not _clamp_activity(groups(read_results(tmp_path))).panels


@pytest.mark.parametrize(
    ("total", "log"),
    [([1.0, 0.5, 0.2, 0.2], False), ([1.0, 0.5, 0.2, 0.01], True), ([1.0, 0.5, -0.2, 0.01], False)],
)
def test_losses_get_a_log_axis_when_they_range_far_and_none_is_negative(
    total: list[float], log: bool, tmp_path: Path
) -> None:
    result = newer("vgg11", "masked", 0)
    result["history"]["train_loss_total"] = total
    put(tmp_path, result)
    assert _loss_curves(groups(read_results(tmp_path)), "vgg11").axis.log is log


def test_chance_is_drawn_only_where_the_number_of_classes_is_known(tmp_path: Path) -> None:
    three_seeds(tmp_path, "masked", dataset="cifar100")
    put(tmp_path, newer("my_net", "masked", 0, dataset="folder:pictures"))
    drawing = _robustness(groups(read_results(tmp_path)))
    assert {p.title: p.levels for p in drawing.panels} == {"vgg11": (("chance", 1.0),), "my_net": ()}


def test_epochs_without_a_measurement_are_left_out(tmp_path: Path) -> None:
    result = newer("vgg11", "masked", 0)
    result["history"]["gen_gap"] = [None, 5.0, None, 8.0]
    put(tmp_path, result)
    points = numbers_in(_generalization_gap(groups(read_results(tmp_path))))
    assert [(point["x"], point["seed0"]) for point in points] == [(2.0, 5.0), (4.0, 8.0)]


def test_a_run_that_stopped_early_or_diverged_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    three_seeds(tmp_path, "masked")
    short = newer("vgg11", "masked", 3)
    short["history"] = {k: v[:2] for k, v in short["history"].items()}
    short["history"]["train_loss_full"] = [2.0, math.nan]
    put(tmp_path, short)
    found = groups(read_results(tmp_path))
    accuracy = numbers_in(_test_accuracy(found))
    assert [point["n"] for point in accuracy] == [4, 4, 3, 3]
    assert [point["mean"] is not None for point in accuracy] == [True, True, False, False]
    losses = numbers_in(_loss_curves(found, "vgg11"))
    assert [point["n"] for point in losses if point["line"] == "L_full"] == [4, 3, 3, 3]


def test_one_seed_of_one_epoch_can_be_drawn(tmp_path: Path) -> None:
    result = newer("vgg11", "masked", 0)
    result["history"] = {k: v[:1] for k, v in result["history"].items()}
    put(tmp_path, result)
    assert len(draw(tmp_path, tmp_path / "plots", dpi=40)) == 6


# ---- tables ----------------------------------------------------------------------------------------------------


def test_the_summary_has_the_documented_title_columns_and_population_spread(tmp_path: Path) -> None:
    three_seeds(tmp_path, "baseline", (90.0, 91.0, 92.0))
    table = summary(read_results(tmp_path))[0]
    assert table.title == "SUMMARY OF FINAL RESULTS (mean ± std)"
    assert table.columns == ("Architecture", "Mode", "Test Acc (%)", "Gen Gap (%)", "n")
    assert table.rows == (("vgg11", "baseline", "91.00 ± 0.82", "8.00 ± 0.00", "3"),)
    assert "ddof 0" in as_text(table)


def test_a_single_seed_is_marked_in_both_tables_and_has_no_spread(tmp_path: Path) -> None:
    put(tmp_path, newer("vgg11", "baseline", 0, 90.0))
    put(tmp_path, newer("vgg11", "masked", 0, 91.5))
    finals, differences = summary(read_results(tmp_path))
    assert finals.rows[1] == ("vgg11", "masked", "91.50", "8.00", "1 (single seed)")
    assert differences.rows[0] == (
        "vgg11",
        "masked - baseline",
        "Test Acc",
        "+1.50",
        "-",
        "1 (single seed)",
        "-",
    )


def test_differences_are_paired_by_seed_with_interval_n_and_p(tmp_path: Path) -> None:
    three_seeds(tmp_path, "baseline", (90.0, 92.0, 94.0))
    three_seeds(tmp_path, "masked", (91.0, 93.2, 94.8))
    three_seeds(tmp_path, "half-loss", (91.0, 93.2, 94.8))
    table = summary(read_results(tmp_path))[1]
    by_name = {row[1:3]: row[3:] for row in table.rows}
    # Differences 1.0, 1.2, 0.8: mean 1, sd 0.2, half width 4.3027 * 0.2 / sqrt(3) = 0.4968.
    assert by_name["masked - baseline", "Test Acc"] == ("+1.00", "0.50 to 1.50", "3", "0.25")
    assert by_name["masked - half-loss", "Test Acc"] == ("+0.00", "0.00 to 0.00", "3", "1")
    assert len(by_name) == 6
    assert any("3 paired seeds" in note and "0.25" in note for note in table.notes)
    assert any("6 comparisons" in note for note in table.notes)


def test_arms_of_unlike_settings_or_seeds_are_not_compared_and_a_note_says_why(tmp_path: Path) -> None:
    three_seeds(tmp_path, "baseline", epochs=200)
    three_seeds(tmp_path, "masked", epochs=5)
    put(tmp_path, newer("vgg11", "half-loss", 7, epochs=200))
    table = summary(read_results(tmp_path))[1]
    assert table.rows == ()
    assert "vgg11 masked - baseline: not compared, they differ in epochs (5, 200)." in table.notes
    assert "vgg11 half-loss - baseline: not compared, they have no seed in common." in table.notes


def test_masked_and_half_loss_of_unlike_lambda_are_not_compared(tmp_path: Path) -> None:
    three_seeds(tmp_path, "masked", lambda_max=1.0)
    three_seeds(tmp_path, "half-loss", lambda_max=0.5)
    table = summary(read_results(tmp_path))[1]
    assert table.rows == ()
    assert table.notes == ("vgg11 masked - half-loss: not compared, they differ in lambda_max (1.0, 0.5).",)


def test_seeds_without_a_partner_are_named(tmp_path: Path) -> None:
    three_seeds(tmp_path, "baseline")
    three_seeds(tmp_path, "masked", (90.0, 91.0, 92.0, 93.0))
    table = summary(read_results(tmp_path))[1]
    assert {row[5] for row in table.rows} == {"3"}
    assert "vgg11 masked - baseline: seeds without a partner left out: 3." in table.notes


def test_each_variant_is_compared_with_the_baseline_that_shares_its_settings(tmp_path: Path) -> None:
    for epochs, acc in ((5, 50.0), (200, 90.0)):
        for seed in range(2):
            put(tmp_path, newer("vgg11", "baseline", seed, acc, epochs=epochs), f"_{epochs}")
            put(tmp_path, newer("vgg11", "masked", seed, acc + 1, epochs=epochs), f"_{epochs}")
    rows = {row[1]: row[3] for row in summary(read_results(tmp_path))[1].rows if row[2] == "Test Acc"}
    assert rows == {
        "masked (epochs=5) - baseline (epochs=5)": "+1.00",
        "masked (epochs=200) - baseline (epochs=200)": "+1.00",
    }


def test_the_gap_of_the_original_scripts_is_marked_as_another_quantity(tmp_path: Path) -> None:
    put(tmp_path, original("vgg11", "masked", 0))
    assert any("augmented images" in note for note in summary(read_results(tmp_path))[0].notes)


# ---- the sentence ----------------------------------------------------------------------------------------------


def said(folder: Path, masked: tuple[float, ...], baseline: tuple[float, ...], **change: Any) -> str:
    three_seeds(folder, "baseline", baseline)
    three_seeds(folder, "masked", masked, **change)
    return verdict(read_results(folder))


def test_an_interval_around_zero_says_what_could_not_have_been_shown(tmp_path: Path) -> None:
    # Differences 1, 0, -1: half width 4.3027 / sqrt(3) = 2.484.
    text = said(tmp_path, (91.0, 91.0, 91.0), (90.0, 91.0, 92.0))
    assert (
        "With 3 seeds the difference masked - baseline in test accuracy was +0.00 points (95 % interval -2.48 to 2.48): "
        "no difference shown, and 3 seeds could not show one below about 2.5 points" in text
    )
    assert (
        "the clamp was active in 100 % of masked steps, so the masked gradient never reached the weights"
        in text
    )


def test_three_seeds_that_agree_are_no_proof_without_an_assumption(tmp_path: Path) -> None:
    text = said(tmp_path, (91.0, 92.1, 93.0), (90.0, 91.0, 92.0))
    assert "a difference, if differences between seeds are normally distributed" in text
    assert "smallest possible p is 0.25" in text


def test_six_seeds_that_agree_show_a_difference(tmp_path: Path) -> None:
    base = (90.0, 91.0, 92.0, 90.5, 91.5, 92.5)
    text = said(tmp_path, tuple(v - 2 + 0.1 * i for i, v in enumerate(base)), base)
    assert "a difference was seen (sign-flip p = 0.031)" in text


def test_interval_and_test_that_disagree_leave_it_undecided(tmp_path: Path) -> None:
    base = (90.0,) * 6
    text = said(tmp_path, (90.1, 90.1, 90.1, 90.1, 90.1, 95.0), base)  # p = 2/64, yet the interval holds zero
    assert "undecided, interval and sign-flip test (p = 0.031) disagree" in text


def test_equal_runs_are_called_equal(tmp_path: Path) -> None:
    assert "the 3 seeds are equal one by one" in said(tmp_path, (90.0, 91.0, 92.0), (90.0, 91.0, 92.0))


def test_from_a_single_seed_nothing_is_concluded(tmp_path: Path) -> None:
    text = said(tmp_path, (91.0,), (90.0,))
    assert "With 1 seed" in text
    assert "+1.00 points: from a single seed nothing can be concluded" in text


def test_without_a_baseline_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    three_seeds(tmp_path, "masked")
    assert "no baseline of equal settings and seeds" in verdict(read_results(tmp_path))


def test_without_a_masked_run_nothing_is_said_about_it(tmp_path: Path) -> None:
    three_seeds(tmp_path, "baseline")
    assert verdict(read_results(tmp_path)).startswith("No masked run")


def test_the_control_arm_is_part_of_the_sentence(tmp_path: Path) -> None:
    three_seeds(tmp_path, "half-loss")
    text = said(tmp_path, (90.0, 91.0, 92.0), (90.0, 91.0, 92.0))
    assert "Against half-loss, the same loss with the masks left out, test accuracy differed by +0.00" in text


@pytest.mark.parametrize(
    ("clamp", "active", "words"),
    [
        ("hard", [1.0, 1.0, 1.0, 0.996], "active in 99.9 % of masked steps, so the masked gradient reached the weights in 0.1 %"),
        ("hard", [1.0, 1.0, 1.0, 0.9996], "active in 99.9900 % of masked steps"),
        ("hard", [0.5, 0.5, 0.0, None], "active in 33.3 % of masked steps"),
        ("hard", [0.0] * 4, "the clamp was never active, so the masked gradient reached the weights in every step"),
        ("hard", [None] * 4, "how often the clamp was active is not recorded"),
        ("rescale", [1.0] * 4, "the clamp (rescale) scaled the masked gradient down in 100.0 % of masked steps"),
        ("none", [1.0] * 4, "there was no clamp, so the masked gradient reached the weights in every step"),
    ],
)  # fmt: skip
def test_what_the_clamp_did_is_told_as_it_was(
    clamp: str, active: list[float | None], words: str, tmp_path: Path
) -> None:
    result = newer("vgg11", "masked", 0, clamp=clamp)
    result["history"]["clamp_active_fraction"] = active
    put(tmp_path, result)
    text = verdict(read_results(tmp_path))
    assert words in text
    assert ("never reached" in text) is False


def test_visualize_prints_pictures_tables_and_the_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, original("vgg11", "masked", 0))
    visualize(Visualize(results_dir=str(tmp_path), plots_dir=str(tmp_path / "plots")))
    printed = capsys.readouterr().out
    for words in ("generalization_gap.png", "SUMMARY OF FINAL RESULTS", "PAIRED DIFFERENCES", "not recorded"):
        assert words in printed
