"""What a user of adaptive-noise gets from a folder of metrics: pictures, tables, and an honest sentence."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from perturblab.objectives import Clock
from perturblab.perturb.controller import decisions
from perturblab.schedules import cosine_decaying_restarts
from perturblab.studies.adaptive_noise import Train, Visualize
from perturblab.studies.adaptive_noise.arms import comparisons, groups
from perturblab.studies.adaptive_noise.comparison import draw_comparison
from perturblab.studies.adaptive_noise.control import cause, controller_of
from perturblab.studies.adaptive_noise.documented import results
from perturblab.studies.adaptive_noise.figures import (
    compare_runs,
    draw,
    read_runs,
    summary,
    verdict,
    visualize,
)
from perturblab.studies.adaptive_noise.lr_figure import lr_schedule
from perturblab.terminal import UserError

CLASSES = ("airplane", "bird", "cat", "ship")
LONG = {
    "lr_restart_period": 50,
    "flag_min_epochs": 20,
    "min_cooldown_epochs": 3,
    "max_cooldown_epochs": 6,
    "consecutive_flag_trigger": 2,
}
SHORT = {
    "flag_window_size": 2,
    "flag_grad_plateau_thr": 0.2,
    "flag_min_epochs": 4,
    "consecutive_flag_trigger": 1,
    "min_cooldown_epochs": 1,
    "max_cooldown_epochs": 3,
}
SETTING = "TinyCNN, SGD, lr 0.01, m 0.9"

# ---- runs that look real --------------------------------------------------------------------------------------------


def settings(classifier: str = "BabyCNN", **more: Any) -> Train:
    return Train(**{"classifier": classifier, "epochs": 12, "lr_restart_period": 5, **more}).canonical()


def history(s: Train, lift: float = 0.0) -> list[dict[str, Any]]:
    """Rows of a run that learns, stands still, overfits, and is disturbed by the noise that the real controller asks for.

    ``lift`` is added to its test accuracy (a fraction).
    """
    random = np.random.default_rng(list(s.name.encode()))
    rate = cosine_decaying_restarts(s.lr, s.lr_restart_period, final_max=s.lr_final_max)
    rows: list[dict[str, Any]] = [{"kind": "epoch", "epoch": e + 1} for e in range(s.epochs)]
    floor, jolt, tamed = {"BabyCNN": 0.9, "TinyCNN": 0.5, "SimpleCNN": 0.3}.get(s.classifier, 0.15), 0.0, 0.0
    for row, due in zip(rows, decisions(rows, controller_of(s)), strict=False):
        e, n = row["epoch"], (0.02 * random.standard_normal(6)).tolist()
        lr = rate(Clock(e, 9, 10, s.epochs))
        learnt = 1 - math.exp(-3.5 * e / s.epochs)
        hit = due.sigma if due.target in ("gradient", "weight") else 0.0
        jolt, tamed = 0.6 * jolt + 3 * hit, 0.97 * tamed + 2 * hit
        loss = 2.3 - (2.3 - floor) * learnt + 0.12 * lr / s.lr + jolt + n[0]
        gap = 0.9 * max(0.0, e / s.epochs - 0.4) * (1 - floor) / (1 + 3 * tamed)
        acc, by_class = (
            1 - 0.3 * loss,
            np.clip(1 - 0.3 * (loss + gap) + np.array([0.08, 0.0, -0.16, 0.05]) + np.array(n[:4]) / 2, 0, 1),
        )
        blind = due.target == "weight"
        row |= {
            "lr": lr, "train_loss": loss, "train_acc_online": acc, "train_acc_clean": acc + 0.01 if e % s.clean_every == 0 or e == s.epochs else None,
            "train_acc_per_class": None, "val_loss": loss + gap + 0.05 + n[1], "val_acc": float(by_class.mean()),
            "val_acc_per_class": by_class.tolist(), "grad_norm": None if blind else 2.5 * math.exp(-2 * learnt) * (1 + n[2]) + 4 * hit,
            "update_norm": 3 * lr / s.lr * math.exp(-learnt) * (1 + n[3]), "weight_norm": 20 + 5 * learnt,
            **state_of(s, learnt, n), "noise_target": due.target, "noise_sigma": due.sigma, "noise_cause": cause(due),
            "norm_before": 2.0 if due.target else None, "norm_after": 2.0 + 5 * due.sigma if due.target else None,
        }  # fmt: skip
    test = max(row["val_acc"] for row in rows) - 0.01 + lift
    rows.append(
        {
            "kind": "test",
            "epoch": s.epochs,
            "test_acc": test,
            "test_loss": 1.2,
            "test_acc_per_class": [test] * 4,
        }
    )
    return rows


def state_of(s: Train, learnt: float, n: list[float]) -> dict[str, float]:
    if s.optimizer == "Adam":
        return {
            "exp_avg_norm": 0.2 * math.exp(-learnt),
            "exp_avg_sq_norm": 1e-3 * math.exp(-2 * learnt) * (1 + n[4]),
            "effective_lr": 1 + learnt,
        }
    return {"momentum_norm": 4 * math.exp(-learnt) * (1 + n[4])} if s.momentum else {}


def content(s: Train, lift: float = 0.0) -> dict[str, Any]:
    """``all_metrics.json`` as the run would export it."""
    found = results(s, history(s, lift), controller_of(s))
    found["final_metrics"] |= {"total_training_time": 1.0, "timestamp": "2026-01-01T00:00:00"}
    about = {"run_id": s.id, "schema_version": 1}
    return json.loads(
        json.dumps({**about, **found, "parameters": 20714, "classes": list(CLASSES)}, allow_nan=False)
    )


def put(folder: Path, s: Train, lift: float = 0.0, **change: Any) -> Path:
    path = folder / "metrics" / s.metrics_dir.name / "all_metrics.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content(s, lift) | change))
    return path


def one_run_and_its_baseline(folder: Path, lift: float = 0.0) -> Train:
    s = settings(**SHORT)
    put(folder, s, lift)
    put(folder, s.baseline())
    return s


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of 110 epochs: gaussian noise, its baseline, and a run on Adam that has neither."""
    folder = tmp_path_factory.mktemp("three")
    for seed, lift in enumerate((0.004, -0.006, 0.013)):
        s = settings("TinyCNN", seed=seed, epochs=110, **LONG)
        put(folder, s, lift)
        put(folder, s.baseline())
    put(folder, settings("TinyCNN", optimizer="Adam", epochs=110, **LONG))
    return folder


@pytest.fixture(scope="module")
def drawn(three: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots")
    draw(three, folder, dpi=40)
    return folder


def rows_of(picture: Path, **where: str) -> list[dict[str, str]]:
    """The rows of the CSV beside a picture in which the columns have these values."""
    rows = csv.DictReader(io.StringIO(picture.with_suffix(".csv").read_text()))
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def found_in(folder: Path, arm: str, seed: int, optimizer: str = "SGD") -> dict[str, Any]:
    """The content of one run's file, read by nothing of ours."""
    for path in folder.glob("metrics/*/all_metrics.json"):
        run = json.loads(path.read_text())
        if (run["arm"], run["seed"], run["optimizer"]) == (arm, seed, optimizer):
            return run
    raise AssertionError("no such run")


# ---- which pictures -------------------------------------------------------------------------------------------------

REFERENCE = {
    "loss", "accuracy", "learning_rate", "grad_norm", "weight_update_norm", "noise_magnitude", "optimizer_state",
    "grad_norm_and_val_loss", "class_accuracy",
}  # fmt: skip


def test_the_reference_set_and_the_two_pictures_of_noise_are_drawn_each_with_its_numbers(drawn: Path) -> None:
    names = {path.stem for path in drawn.glob("*.png")}
    timelines = {name for name in names if name.startswith("noise_timeline")}
    assert names - timelines == REFERENCE | {"noise_vs_baseline"}
    of_runs = {
        f"noise_timeline_TinyCNN_{name}_adaptive_gaussian_seed{n}"
        for name, n in [("SGD", 0), ("SGD", 1), ("SGD", 2), ("Adam", 0)]
    }
    assert timelines == {"noise_timeline"} | of_runs
    assert {path.stem for path in drawn.glob("*.csv")} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn.glob("*.png"))


def test_no_table_beside_a_picture_holds_nan(drawn: Path) -> None:
    for path in drawn.glob("*.csv"):
        assert "nan" not in path.read_text().lower()


def test_equal_metrics_give_equal_bytes(tmp_path: Path) -> None:
    one_run_and_its_baseline(tmp_path)
    first, second = (draw(tmp_path, tmp_path / name, dpi=40) for name in ("a", "b"))
    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        for suffix in (".png", ".csv"):
            assert one.with_suffix(suffix).read_bytes() == other.with_suffix(suffix).read_bytes(), one


def test_drawing_imports_no_torch() -> None:
    script = "import perturblab.studies.adaptive_noise.figures, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_baseline_alone_is_drawn_and_it_is_said_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, settings(momentum=0.0, epochs=2, **SHORT).baseline())
    visualize(Visualize(checkpoint_dir=str(tmp_path), plots_dir=str(tmp_path / "plots")))
    out = capsys.readouterr().out
    for name in ("noise_magnitude", "noise_timeline", "noise_vs_baseline", "optimizer_state"):
        assert f"{name}.png not drawn: " in out
        assert not (tmp_path / "plots" / f"{name}.png").exists()
    assert "No run with noise: nothing can be said about it." in out


# ---- the numbers in them --------------------------------------------------------------------------------------------


def test_losses_accuracies_and_norms_are_those_of_the_files(three: Path, drawn: Path) -> None:
    runs = [found_in(three, "adaptive", seed)["epochs"] for seed in range(3)]
    label = {"panel": SETTING, "line": "adaptive gaussian", "x": "105.0"}
    at = [epochs[104] for epochs in runs]
    train, val = rows_of(drawn / "loss.png", **label)
    clean, val_acc = rows_of(drawn / "accuracy.png", **label)
    (update,) = rows_of(drawn / "weight_update_norm.png", **label)
    for row, key, unit in [
        (train, "train_loss", 1),
        (val, "val_loss", 1),
        (clean, "train_acc_clean", 100),
        (val_acc, "val_acc", 100),
        (update, "update_norm", 1),
    ]:
        values = [unit * epoch[key] for epoch in at]
        assert [float(row[f"seed{n}"]) for n in range(3)] == pytest.approx(values)
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert float(row["std_population"]) == pytest.approx(np.std(values))


def test_the_best_and_the_worst_class_are_those_of_the_epoch(three: Path, drawn: Path) -> None:
    by_class = found_in(three, "baseline", 1)["epochs"][49]["val_acc_per_class"]
    best, worst = rows_of(drawn / "class_accuracy.png", panel=SETTING, line="baseline", x="50.0")
    assert float(best["seed1"]) == pytest.approx(100 * max(by_class))
    assert float(worst["seed1"]) == pytest.approx(100 * min(by_class))


def test_equal_learning_rates_are_one_line(three: Path, drawn: Path) -> None:
    rates = [epoch["lr"] for epoch in found_in(three, "baseline", 0)["epochs"]]
    rows = rows_of(drawn / "learning_rate.png", panel=SETTING, line="every arm")
    assert [float(row["mean"]) for row in rows] == pytest.approx(rates)


def test_flagged_epochs_are_marked_also_past_the_hundredth(three: Path, drawn: Path) -> None:
    for seed in range(3):
        events = found_in(three, "adaptive", seed)["controller"]
        flagged = {event["epoch"] for event in events if any(flag["fired"] for flag in event["flags"])}
        rows = rows_of(drawn / "learning_rate.png", panel=SETTING, line="flags of adaptive gaussian")
        assert {float(row["x"]) for row in rows if row[f"seed{seed}"] == "1.0"} == flagged
        assert max(flagged) > 100


def test_gradient_norm_and_validation_loss_each_bear_their_own_flags(three: Path, drawn: Path) -> None:
    events = found_in(three, "adaptive", 0)["controller"]
    rows = rows_of(drawn / "grad_norm_and_val_loss.png", panel=SETTING, line="flags of adaptive gaussian")
    strips = [
        {float(row["x"]) for row in half if row["seed0"] == "1.0"}
        for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    ]
    for strip, names in zip(
        strips,
        [{"grad_norm_plateau", "low_weight_update", "train_loss_stuck"}, {"val_loss_plateau", "overfitting"}],
        strict=True,
    ):
        assert strip == {
            e["epoch"] for e in events if any(f["fired"] and f["name"] in names for f in e["flags"])
        }
    assert strips[0] != strips[1]


def test_noise_is_drawn_where_it_was_under_its_target(three: Path, drawn: Path) -> None:
    for target in ("gradient", "weight"):
        rows = rows_of(
            drawn / "noise_magnitude.png", panel=f"{SETTING}: adaptive gaussian", line=f"{target} noise"
        )
        for seed in range(3):
            epochs = found_in(three, "adaptive", seed)["epochs"]
            wanted = {float(e["epoch"]): e["noise_sigma"] for e in epochs if e["noise_target"] == target}
            assert {
                float(r["x"]): float(r[f"seed{seed}"]) for r in rows if r[f"seed{seed}"]
            } == pytest.approx(wanted)
        assert rows


def test_a_timeline_holds_every_epoch_of_its_run(three: Path, drawn: Path) -> None:
    run = found_in(three, "adaptive", 2)
    rows = rows_of(drawn / "noise_timeline_TinyCNN_SGD_adaptive_gaussian_seed2.png")
    assert [int(row["epoch"]) for row in rows] == list(range(1, 111))
    for row, epoch, event in zip(rows, run["epochs"], run["controller"], strict=True):
        assert row["noise_target"] == (epoch["noise_target"] or "")
        assert row["cause"] == (event["cause"] or "")
        assert row["cooling"] == str(int(event["cooling"]))
        for key in ("train_loss", "val_loss", "grad_norm", "lr", "noise_sigma"):
            assert row[key] == ("" if epoch[key] is None else str(epoch[key]))
        for flag in event["flags"]:
            assert float(row[f"{flag['name']}_value"]) == pytest.approx(flag["value"])
            assert float(row[f"{flag['name']}_fired"]) == flag["fired"]
    assert {"gradient", "weight"} <= {row["noise_target"] for row in rows}
    assert any(row["grad_norm"] == "" for row in rows)
    assert any(row["cooling"] == "1" for row in rows)


def test_the_first_timeline_is_that_of_the_run_whose_noise_came_most_often(drawn: Path) -> None:
    def bursts(path: Path) -> int:
        here = [row["cause"] == "flags" for row in rows_of(path)]
        return sum(now and not before for before, now in pairwise([False, *here]))

    each = [bursts(path) for path in drawn.glob("noise_timeline_*.png")]
    assert bursts(drawn / "noise_timeline.png") == max(each) > min(each)


# ---- against the baseline -------------------------------------------------------------------------------------------


def by_hand(three: Path, key: str) -> list[float]:
    """Noise minus baseline in points, seed by seed, out of the files."""

    def value(run: dict[str, Any]) -> float:
        final = run["final_metrics"]
        return 100 * (final["generalization_gap"]["final_gap"] if key == "gap" else final[key])

    return [value(found_in(three, "adaptive", n)) - value(found_in(three, "baseline", n)) for n in range(3)]


@pytest.mark.parametrize("key", ["test_acc", "gap"])
def test_paired_differences_have_scipys_interval_and_the_exact_p(key: str, three: Path, drawn: Path) -> None:
    d = by_hand(three, key)
    (row,) = rows_of(drawn / "noise_vs_baseline.png", setting=SETTING, measure=key)
    assert [float(row[f"seed{n}"]) for n in range(3)] == pytest.approx(d)
    interval = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    found = [float(row[name]) for name in ("mean_difference", "ci_low", "ci_high")]
    assert found == pytest.approx([np.mean(d), interval.low, interval.high])
    as_far = [abs(np.dot(signs, d)) >= abs(sum(d)) - 1e-12 for signs in product((1, -1), repeat=3)]
    assert float(row["p_value"]) == np.mean(as_far)


def test_differences_over_epochs_are_means_of_blocks(three: Path, drawn: Path) -> None:
    noisy, base = (found_in(three, arm, 1)["epochs"] for arm in ("adaptive", "baseline"))
    d = [100 * (one["val_acc"] - other["val_acc"]) for one, other in zip(noisy, base, strict=True)]
    rows = rows_of(drawn / "noise_vs_baseline.png", setting=SETTING, measure="val_acc")
    assert [int(row["epoch"]) for row in rows] == [
        *range(4, 108, 4),
        110,
    ]  # 110 epochs: blocks of 4, the last of 6
    assert float(rows[1]["seed1"]) == pytest.approx(np.mean(d[4:8]))
    assert float(rows[-1]["seed1"]) == pytest.approx(np.mean(d[104:]))


def test_a_run_is_paired_with_the_run_that_it_names_not_with_any_baseline(tmp_path: Path) -> None:
    one_run_and_its_baseline(tmp_path, 0.02)
    put(tmp_path, settings(wd=0.1, **SHORT).baseline(), 0.5)  # equal seed and network, another weight decay
    (one,) = comparisons(read_runs(tmp_path))
    assert one.of("test_acc").n == 1
    ((noisy, base),) = one.pairs
    assert base.run_id == noisy.baseline_id
    assert base.settings["wd"] == noisy.settings["wd"] == 1e-3


def test_the_tables_tell_the_paired_difference_and_that_three_seeds_are_too_few(three: Path) -> None:
    finals, differences = summary(read_runs(three))
    d = by_hand(three, "test_acc")
    row = next(row for row in differences.rows if row[2] == "test accuracy")
    assert row[:2] == (SETTING, "adaptive gaussian")
    assert row[3] == f"{np.mean(d):+.2f}"
    as_far = [abs(np.dot(signs, d)) >= abs(sum(d)) - 1e-12 for signs in product((1, -1), repeat=3)]
    assert row[5:] == ("3", f"{np.mean(as_far):.2g}")
    assert any("6 seeds are the fewest" in note for note in differences.notes)
    columns = dict(
        zip(
            finals.columns,
            next(r for r in finals.rows if r[1] == "adaptive gaussian" and "SGD" in r[0]),
            strict=True,
        )
    )
    counts = [
        sum(e["noise_target"] == "weight" for e in found_in(three, "adaptive", n)["epochs"]) for n in range(3)
    ]
    assert columns["Weight noise"] == f"{np.mean(counts):.1f} ± {np.std(counts):.1f}"
    tests = [100 * found_in(three, "adaptive", n)["final_metrics"]["test_acc"] for n in range(3)]
    assert columns["Test (%)"] == f"{np.mean(tests):.2f} ± {np.std(tests):.2f}"
    assert columns["n"] == "3"


def test_a_run_without_its_baseline_is_told_in_one_line_and_not_compared(three: Path) -> None:
    runs = read_runs(three)
    (line,) = [note for note in summary(runs)[1].notes if "no baseline" in note]
    assert line.startswith(
        "TinyCNN, Adam, lr 0.01, adaptive gaussian: no baseline of seed 0 on the same images, so not compared; `perturblab adaptive-noise sweep`"
    )
    (told,) = [line for line in verdict(runs).splitlines() if "Adam" in line]
    assert "there is no baseline" in told


def test_seeds_without_a_baseline_are_left_out_of_the_pairs(three: Path) -> None:
    runs = [run for run in read_runs(three) if not (run.is_baseline and run.seed == 2)]
    one = next(one for one in comparisons(runs) if "SGD" in one.group.setting)
    assert one.of("gap").seeds == (0, 1)
    assert one.lacking == (2,)
    assert any("seed 2 on the same images, so left out" in note for note in summary(runs)[1].notes)


def test_a_baseline_that_saw_other_images_is_no_pair(three: Path) -> None:
    runs = [
        replace(run, data_sha256="other") if run.is_baseline and run.seed == 2 else run
        for run in read_runs(three)
    ]
    one = next(one for one in comparisons(runs) if "SGD" in one.group.setting)
    assert one.of("test_acc").seeds == (0, 1)
    assert one.lacking == (2,)


def test_a_single_seed_has_no_interval_and_concludes_nothing(tmp_path: Path) -> None:
    one_run_and_its_baseline(tmp_path, 0.02)
    runs = read_runs(tmp_path)
    draw_comparison(comparisons(runs), tmp_path / "one.png", dpi=40)
    (row,) = rows_of(tmp_path / "one.png", measure="test_acc")
    assert (row["n"], row["ci_low"], row["ci_high"]) == ("1", "", "")
    assert row["seed0"] == row["mean_difference"]
    assert summary(runs)[1].rows[0][4:] == ("-", "1 (single seed)", "-")
    assert verdict(runs).endswith("from a single seed nothing can be concluded.")


def test_the_verdict_says_how_often_there_was_noise_and_what_was_seen(three: Path) -> None:
    (line,) = [line for line in verdict(read_runs(three)).splitlines() if "SGD" in line]
    assert line.startswith(f"{SETTING}, adaptive gaussian: with 3 seeds and noise on gradients in ")
    assert "of 110 epochs, test accuracy differed from the baseline's by" in line
    assert "no difference shown" in line or "cannot show one" in line


def test_noise_that_never_came_is_not_compared(tmp_path: Path) -> None:
    s = settings(epochs=6, flag_min_epochs=6)
    put(tmp_path, s)
    put(tmp_path, s.baseline())
    assert verdict(read_runs(tmp_path)).endswith(
        "no noise in any epoch, so there is nothing to compare with the baseline."
    )


def test_runs_of_one_arm_with_other_settings_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [settings(**{**SHORT, "flag_window_size": window}) for window in (2, 3)]
    for s in runs:
        put(tmp_path, s)
    labels = {group.label for group in groups(read_runs(tmp_path))}
    assert labels == {f"adaptive gaussian (flag_window_size={n})" for n in (2, 3)}
    names = {path.name for path in draw(tmp_path, tmp_path / "plots", dpi=20)}
    assert {f"noise_timeline_{s.name}_{s.id}.png" for s in runs} <= names  # their names are equal
    assert "the runs differ in flag_window_size" in capsys.readouterr().err


def test_a_sweep_compares_its_own_runs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    s = one_run_and_its_baseline(tmp_path)
    put(tmp_path, settings("SimpleCNN", **SHORT)).write_text("torn")
    compare_runs(tmp_path, tmp_path / "plots", {s.id, s.baseline().id})
    out = capsys.readouterr().out
    assert "PAIRED DIFFERENCES" in out
    assert [path.name for path in (tmp_path / "plots").glob("*.png")] == ["noise_vs_baseline.png"]


# ---- reading --------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_told_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no metrics in .*perturblab adaptive-noise sweep"):
        read_runs(tmp_path)


def test_only_the_networks_and_seeds_asked_for_are_read_in_the_order_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("BabyCNN", "SimpleCNN", "TinyCNN"):
        for seed in (0, 1):
            put(tmp_path, settings(name, seed=seed, epochs=2, **SHORT))
    found = read_runs(tmp_path, ["tiny_cnn", "BabyCNN", "resnet18"], [1])
    assert [(run.classifier, run.seed) for run in found] == [("TinyCNN", 1), ("BabyCNN", 1)]
    assert "for resnet18" in capsys.readouterr().err
    with pytest.raises(UserError, match="seed 7; there are"):
        read_runs(tmp_path, seeds=[7])


def test_a_run_exported_under_two_names_counts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for suffix in ("", "again"):
        put(tmp_path, settings(suffix=suffix, **SHORT))
    assert len(read_runs(tmp_path)) == 1
    assert "are the same run" in capsys.readouterr().err


def lacking(*keys: str | int) -> Callable[[Any], None]:
    def change(run: Any) -> None:
        for key in keys[:-1]:
            run = run[key]
        del run[keys[-1]]

    return change


def having(value: Any, *keys: str | int) -> Callable[[Any], None]:
    def change(run: Any) -> None:
        for key in keys[:-1]:
            run = run[key]
        run[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lacking("run_id"), "run_id is missing"),
        (lacking("baseline_id"), "baseline_id is missing"),
        (lacking("config", "lr"), "config.lr is missing"),
        (lacking("final_metrics", "test_acc"), "final_metrics.test_acc is missing"),
        (lacking("final_metrics", "generalization_gap", "final_gap"), "generalization_gap.final_gap is missing"),
        (lacking("epochs", 3, "val_loss"), "epochs.val_loss is missing"),
        (lacking("controller", 2, "cooling"), "controller.cooling is missing"),
        (lacking("controller", 2), "controller has 5 rows, epochs has 6"),
        (having([], "epochs"), "epochs is empty"),
        (having("a", "epochs"), "epochs is damaged"),
        (having("x", "epochs", 1, "grad_norm"), "epochs.grad_norm must hold numbers or null"),
        (having(1, "epochs", 1, "epoch"), "epochs.epoch must hold one or more rising"),
        (having("dropout", "epochs", 1, "noise_target"), "epochs.noise_target must be one of gradient"),
        (having([0.1], "epochs", 1, "val_acc_per_class"), "epochs.val_acc_per_class must hold a number for each of 4"),
        (having(None, "final_metrics", "test_acc"), "final_metrics.test_acc must be a finite number"),
        (having([{"name": "f"}], "controller", 5, "flags"), "controller.flags.name must be one of"),
        (having([{"name": "overfitting", "value": 1}], "controller", 5, "flags"), "flags.threshold is missing"),
        (having(3, "arm"), "arm must be a name"),
        (having([], "config"), "config is damaged"),
    ],
)  # fmt: skip
def test_a_file_with_a_bad_key_is_named_with_the_key(
    damage: Callable[[Any], None], said: str, tmp_path: Path
) -> None:
    path = put(tmp_path, settings(epochs=6, **SHORT))
    run = json.loads(path.read_text())
    damage(run)
    path.write_text(json.dumps(run))
    with pytest.raises(UserError, match=f"all_metrics.json: .*{said}") as error:
        read_runs(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("torn", [b"", b'{"arm": "ada', b"\xff\xfe", b"[1]"])
def test_a_torn_file_is_named(torn: bytes, tmp_path: Path) -> None:
    put(tmp_path, settings(epochs=6, **SHORT)).write_bytes(torn)
    with pytest.raises(UserError, match=r"all_metrics.json is damaged"):
        read_runs(tmp_path)


# ---- the learning rates of a run ------------------------------------------------------------------------------------


def test_the_schedule_of_the_report_is_drawn_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "lr_schedule.png"
    lr_schedule(Train(classifier="resnet18", lr=1e-3, epochs=300), path, steps=3)
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = rows_of(path)
    assert len(rows) == 900
    restarts = {
        row["epoch"]: float(row["learning_rate"])
        for row in rows
        if row["step"] == "0" and int(row["epoch"]) % 50 == 1
    }
    wanted = {"1": 1e-3, "51": 0.000802, "101": 0.000604, "151": 0.000406, "201": 0.000208, "251": 0.00001}
    assert restarts == pytest.approx(wanted)  # adaptive-noise.md 5.5
    just_before = float(
        next(row["learning_rate"] for row in rows if (row["epoch"], row["step"]) == ("50", "2"))
    )
    assert 1e-6 < just_before < 2e-6
