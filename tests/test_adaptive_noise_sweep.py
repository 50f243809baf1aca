"""The sweep of adaptive-noise: always with its baselines, compared with them pair by pair, one bad run stops no other."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from commandline import called, parsed, refusal
from conftest import Zygote
from perturblab.studies.adaptive_noise import Sweep, Train
from test_adaptive_noise import colour_npz

__all__ = ["colour_npz"]

WORDS = (
    "-c BabyCNN --width 0.5 -e 6 -b 16 --lrs 0.02 --device cpu --threads 1 --flag-window-size 2 --flag-min-epochs 2 --flag-overfit-epochs 1 "
    "--flag-grad-plateau-thr 0.9 --flag-low-weight-update-thr 0 --consecutive-flag-trigger 1 --min-cooldown-epochs 1 "
    "--max-cooldown-epochs 2 --sharpness-draws 0"
)
SMALL = WORDS.split()


def test_without_flags_it_is_the_grid_of_the_documents_script() -> None:
    cells = list(Sweep().grid())
    assert len({cell.id for cell in cells}) == len(cells) == 4 * 3
    assert [cell.classifier for cell in cells[::3]] == ["BabyCNN", "TinyCNN", "resnet18", "SimpleCNN"]
    for baseline, *arms in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
        assert baseline.arm == "baseline"
        assert [arm.noise_distribution for arm in arms] == ["gaussian", "uniform"]
        for arm in arms:
            assert arm.baseline().id == baseline.id
            said = (
                arm.lr,
                arm.momentum,
                arm.batch_size,
                arm.epochs,
                arm.wd,
                arm.permanent,
                arm.noise_during_stuck_only,
            )
            assert said == (1e-3, 0.0, 256, 300, 1e-4, True, True)
            said = (
                arm.flag_min_epochs,
                arm.flag_window_size,
                arm.flag_grad_plateau_thr,
                arm.flag_low_weight_update_thr,
            )
            assert said == (70, 10, 0.025, 5e-4)
            said = (
                arm.relative_min_noise,
                arm.relative_max_noise,
                arm.consecutive_flag_trigger,
                arm.patience,
            )
            assert said == (0.01, 0.05, 10, 10)
            assert (arm.min_cooldown_epochs, arm.max_cooldown_epochs, arm.lr_restart_period) == (3, 10, 50)


def test_every_arm_has_its_baseline_in_the_grid_and_no_run_stands_twice() -> None:
    s = Sweep.parse({
        "classifiers": ("BabyCNN", "TinyCNN"), "optimizers": ("SGD", "Adam"), "momenta": (0.0, 0.9), "lrs": (0.1, 0.01), "seeds": (0, 1),
        "arms": ("adaptive", "gradient", "weight", "input", "label"),
    })  # fmt: skip
    cells = list(s.grid())
    ids = {cell.id for cell in cells}
    assert len(ids) == len(cells)
    assert all(cell.baseline().id in ids for cell in cells)
    baselines = [cell for cell in cells if cell.arm == "baseline"]
    assert len(baselines) == 2 * 3 * 2 * 2  # SGD with two momenta, Adam with none
    label = [cell for cell in cells if cell.arm == "label"]
    assert len(label) == len(baselines)  # labels know no distribution
    assert len(cells) == len(baselines) * (1 + 4 * 2 + 1)
    assert len({cell.name for cell in cells}) == len(cells)
    assert len({cell.metrics_dir for cell in cells}) == len(cells)


def test_the_preset_acts_in_a_sweep() -> None:
    s = parsed("adaptive-noise", "sweep", "--preset", "published", "-c", "BabyCNN", "--lrs", "0.1")
    assert isinstance(s, Sweep)
    arms = [cell for cell in s.grid() if cell.arm == "adaptive"]
    assert {(arm.controller, arm.noise_scale, arm.flag_window_size, arm.flag_min_epochs) for arm in arms} == {
        ("published", "absolute", 70, 10)
    }


def test_a_generated_script_names_the_runs_of_the_grid(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, errors = called(
        "adaptive-noise", "sweep", "--mode", "generate", "--device", "cpu", "--lrs", "0.1", "0.01"
    )
    assert code == 0, errors
    assert "run_all.sh: 24 runs" in out
    runs = [line for line in Path("run_all.sh").read_text().splitlines() if line.startswith("python")]
    cells = [parsed(*shlex.split(line)[3:]) for line in runs]
    assert [cell.id for cell in cells if isinstance(cell, Train)] == [
        cell.id for cell in Sweep.parse({"device": "cpu", "lrs": (0.1, 0.01)}).grid()
    ]


def test_contradicting_settings_are_refused_before_any_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--flag-window-size 10 is longer than the run's 5 epochs" in refusal(
        "adaptive-noise", "sweep", "-e", "5", "--device", "cpu"
    )
    assert not list(tmp_path.iterdir())


def test_a_flag_that_acts_in_no_run_is_one_warning_and_one_that_acts_is_none(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("adaptive-noise", "sweep", "--mode", "generate", "--device", "cpu")
    _, _, errors = called(*words, "-nm", "0.02", "--beta1", "0.8", "--wd", "0.1")
    assert errors.splitlines() == [
        "warning: without effect beside the other flags in every run of this sweep: --beta1, --noise-magnitude"
    ]
    assert (
        called(*words, "-nm", "0.02", "--beta1", "0.8", "-o", "SGD", "Adam", "--arms", "adaptive", "weight")[
            2
        ]
        == ""
    )


def test_static_arms_under_the_published_controller_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = refusal("adaptive-noise", "sweep", "--device", "cpu", "--preset", "published", "--arms", "weight")
    assert line == "--controller published knows no static noise: leave --arms at adaptive"


@pytest.fixture(scope="module")
def swept(zygote: Zygote, colour_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep over three seeds as a user starts it: its folder and what it said."""
    where = tmp_path_factory.mktemp("sweep")
    words = [
        "adaptive-noise",
        "sweep",
        *SMALL,
        "--seeds",
        "0",
        "1",
        "2",
        "-nd",
        "gaussian",
        "--dataset",
        f"npz:{colour_npz}",
    ]
    ended = zygote.run(words, where)
    assert ended.code == 0, ended.output
    return where, ended.output


def finals(where: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in where.glob("checkpoints/metrics/*/all_metrics.json")]


def test_a_sweep_ends_with_a_paired_table_against_its_baselines(swept: tuple[Path, str]) -> None:
    where, said = swept
    by_arm: dict[str, dict[int, float]] = {}
    for run in finals(where):
        by_arm.setdefault(run["arm"], {})[run["seed"]] = 100 * run["final_metrics"]["test_acc"]
    assert by_arm.keys() == {"baseline", "adaptive"}
    difference = np.mean([by_arm["adaptive"][seed] - by_arm["baseline"][seed] for seed in (0, 1, 2)])
    assert f"{difference:.2f}" in said
    assert (where / "plots" / "noise_vs_baseline.png").exists()


def test_the_log_names_every_run_its_settings_and_its_end(swept: tuple[Path, str]) -> None:
    where, _ = swept
    (path,) = where.glob("checkpoints/experiments_*/experiments_log.json")
    runs = json.loads(path.read_text())["runs"]
    assert len(runs) == 6
    assert {run["status"] for run in runs} == {"done"}
    recorded = {run["run_id"]: run["final_metrics"]["test_acc"] for run in finals(where)}
    assert {run["run_id"]: run["final_metrics"]["test_acc"] for run in runs} == recorded
    assert all(run["command"].startswith("python -m perturblab adaptive-noise train ") for run in runs)


def test_a_sweep_that_is_done_trains_nothing_again(
    swept: tuple[Path, str], zygote: Zygote, colour_npz: Path
) -> None:
    where, _ = swept
    words = [
        "adaptive-noise",
        "sweep",
        *SMALL,
        "--seeds",
        "0",
        "1",
        "2",
        "-nd",
        "gaussian",
        "--dataset",
        f"npz:{colour_npz}",
    ]
    ended = zygote.run(words, where)
    assert ended.code == 0
    assert "6 of 6 runs are done already" in ended.output
    assert "epoch 1/" not in ended.output


def test_a_run_that_diverges_is_marked_and_the_others_go_on(
    zygote: Zygote, colour_npz: Path, tmp_path: Path
) -> None:
    words = [
        "adaptive-noise",
        "sweep",
        *SMALL,
        "--lrs",
        "1e6",
        "0.02",
        "-nd",
        "gaussian",
        "--dataset",
        f"npz:{colour_npz}",
    ]
    ended = zygote.run(words, tmp_path)
    assert ended.code == 1
    assert "Traceback" not in ended.output
    assert "diverged" in ended.output
    (path,) = tmp_path.glob("checkpoints/experiments_*/experiments_log.json")
    status = {run["name"]: run["status"] for run in json.loads(path.read_text())["runs"]}
    assert set(status.values()) == {"diverged", "done"}
    assert all((value == "diverged") == ("lr1e+06" in name) for name, value in status.items())
