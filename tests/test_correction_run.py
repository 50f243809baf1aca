"""correction, run: the document's four experiments end to end on digits, and what a user does before and after them."""

import base64
import csv
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commandline import called
from conftest import Ended, Zygote, files_of, one_thread, until
from perturblab import sweep
from perturblab.files import SEAL, sealed, waited_for
from perturblab.launch import Cell, Outcome
from perturblab.signals import StopFlag
from plain_networks import PlainCNN2

FOUR = ("overfit_test", "lr_search", "lambda_search", "full_grid_search")  # in the document's order
CPU = ("--device", "cpu", "--precision", "fp32")
# Of the document (correction.md 4.6), in its order.
COMBINATION_COLUMNS = [
    "learning_rate", "loss_type", "lambda_weight", "user_corrected_pool_size", "train_loss", "train_accuracy",
    "val_loss", "val_accuracy", "epochs_trained", "best_val_loss", "test_loss", "test_accuracy",
]  # fmt: skip
EPOCH_COLUMNS = [
    "run", "learning_rate", "loss_type", "lambda_weight", "pool_size", "num_user_corrected", "global_epoch", "local_epoch",
    "train_loss", "train_conf_loss", "train_corr_loss", "train_accuracy", "val_loss", "val_accuracy",
]  # fmt: skip
SCALARS = {
    "Loss/train_epoch": "train_loss", "Loss/train_confounded": "train_conf_loss", "Loss/train_corrected": "train_corr_loss",
    "Loss/val_epoch": "val_loss", "Accuracy/train_epoch": "train_accuracy", "Accuracy/val_epoch": "val_accuracy",
}  # fmt: skip
PICTURES = {"confounded_samples", "corrected_original", "corrected_samples"}


# ---- running -----------------------------------------------------------------------------------------------------------


def runs(*words: str, code: int = 0) -> str:
    """What ``perturblab correction run WORDS`` prints, errors and warnings too; it must end with this exit code."""
    with one_thread():
        ended, out, errors = called("correction", "run", *CPU, *words)
    assert ended == code, errors
    return out + errors


@contextmanager
def cells_in_process() -> Iterator[None]:
    """The command line of each cell runs in this process, one after another: a few tenths of a second less each."""

    def run_cells(
        cells: Sequence[Cell],
        log_of: Callable[[Cell], Path | None],
        jobs: int,
        stop: StopFlag,
        on_end: Callable[[Outcome], None],
        preload: Sequence[str] = (),
    ) -> list[Outcome]:
        outcomes = []
        for cell in cells:
            code, out, errors = called(*cell.settings.arguments())
            print(out + errors)
            outcomes.append(Outcome(cell, "failed" if code else "done", 0.0, errors.strip()))
        return outcomes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_cells", run_cells)
        yield


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """An empty folder in which the document's four experiments were run; ``told/NAME`` is what each printed.

    Tests only read it. The workers of pytest-xdist share it: whoever comes first runs them.
    """
    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if hasattr(request.config, "workerinput") else mine
    folder = shared / "correction"
    with waited_for(shared / "correction.lock"):
        if not (folder / "told" / FOUR[-1]).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            run_four(folder)
    return folder


def run_four(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, cells_in_process():
        patch.chdir(folder)
        for name in FOUR:
            epochs = "10" if name == "overfit_test" else "4"
            told = runs("-e", name, "--dataset", "digits", "--max_epochs", epochs)
            Path("told").mkdir(exist_ok=True)
            Path("told", name).write_text(told)


@pytest.fixture
def in_four(four: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(four)
    return four


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cells_here() -> Iterator[None]:
    with cells_in_process():
        yield


# Cells of three epochs, each of four batches of 6 + 2.
SMALL = """
general:
  program_args:
    batch_size: 8
    user_corrected_max_per_batch: 2
    train_dataset_size: 24
    max_epochs: 3
    output_filename: experiments/{name}.csv
    tensorboard_log_dir: runs/{name}
  learning_rate: [0.001]
  loss_type: both
  lambda_weight: [1.0]
  user_corrected_pool_size: [4]
experiments:
  {name}: {{{more}}}
"""


def small(four: Path, *more: str, name: str = "mine", yaml: str = "") -> list[str]:
    """The words of an experiment of two small cells on the data and the base model in ``four``."""
    Path(f"{name}.yaml").write_text(SMALL.format(name=name, more=yaml))
    return ["--config", f"{name}.yaml", "-e", name, "--jobs", "1", *made_in(four), *more]


def made_in(folder: Path) -> list[str]:
    return ["--data", str(folder / "08MNIST"), "--base_model", str(folder / "model_confounded.pth")]


# ---- reading what is there ---------------------------------------------------------------------------------------------


def table(name: str) -> list[dict[str, str]]:
    with open(f"experiments/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def record(name: str) -> dict[str, Any]:
    return json.loads(Path(f"experiments/{name}.json").read_text())


def cells(name: str) -> list[dict[str, Any]]:
    """The record's cells that stand in the table, in its order."""
    return [cell for cell in record(name)["cells"] if not cell["control"]]


def run_dir(run_id: str) -> Path:
    (found,) = Path("perturblab_runs/correction").glob(f"*-{run_id}")
    return found


def events(folder: Path | str) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    found.Reload()
    return found


def plain(data: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels and label of every image of a file of 08MNIST."""
    content = torch.load(data / f"{name}.pth", weights_only=True)
    return content["inputs"], content["labels"].argmax(1)


def predicted(weights: Path, images: torch.Tensor) -> torch.Tensor:
    """By the document's network of stock layers, with the weights in a file."""
    network = PlainCNN2().eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        return network(images).argmax(1)


def share(found: torch.Tensor) -> float:
    return float(found.double().mean())


# ---- an empty folder -----------------------------------------------------------------------------------------------------


def test_without_data_or_base_model_both_are_made_and_each_is_said_in_one_line(in_four) -> None:
    told = [Path("told", name).read_text() for name in FOUR]
    for line in (
        "08MNIST is not there: building it from digits\n",
        "model_confounded.pth is not there: training it on the dotted digits\n",
    ):
        assert [text.count(line) for text in told] == [1, 0, 0, 0]


def test_the_documents_folder_is_there_and_nothing_else(in_four) -> None:
    assert {path.name for path in Path().iterdir() if path.name != "told"} == {
        "08MNIST", "model_confounded.pth", "model_confounded.json", "experiments", "runs", "plots", "perturblab_runs",
    }  # fmt: skip
    for name in FOUR:
        assert {path.name for path in Path("experiments").glob(f"{name}*")} == {
            f"{name}.csv", f"{name}_run0.csv", f"{name}.json",
        }  # fmt: skip
    assert len(list(Path("experiments").iterdir())) == 12
    assert sorted(path.name for path in Path("runs").iterdir()) == sorted(FOUR)
    assert not list(Path().rglob(".*"))


# ---- the tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FOUR)
def test_the_documents_columns_come_first_and_each_combination_has_a_row_in_the_documents_order(
    in_four, name
) -> None:
    found = table(name)
    assert list(found[0])[: len(COMBINATION_COLUMNS)] == COMBINATION_COLUMNS
    grid = record(name)["settings"]
    losses = ["balanced", "imbalanced"] if grid["loss_type"] == ["both"] else grid["loss_type"]
    assert [
        (float(r["learning_rate"]), r["loss_type"], float(r["lambda_weight"]), int(r["user_corrected_pool_size"]))
        for r in found
    ] == [
        (rate, loss, weight, pool)
        for rate in grid["learning_rate"]
        for loss in losses
        for weight in grid["lambda_weight"]
        for pool in grid["user_corrected_pool_size"]
    ]  # fmt: skip
    assert len(found) == {"overfit_test": 2, "lr_search": 8, "lambda_search": 6, "full_grid_search": 4}[name]
    assert {r["status"] for r in found} == {"done"}


@pytest.mark.parametrize("name", FOUR)
def test_the_table_per_epoch_has_the_documents_columns_and_every_epoch_of_every_run(in_four, name) -> None:
    by_epoch = table(f"{name}_run0")
    assert list(by_epoch[0]) == EPOCH_COLUMNS
    expected = [
        ("0", r["learning_rate"], r["loss_type"], r["lambda_weight"], r["user_corrected_pool_size"], "4", str(e), str(e))
        for r in table(name)
        for e in range(1, int(r["epochs_trained"]) + 1)
    ]  # fmt: skip
    assert [tuple(r.values())[:8] for r in by_epoch] == expected


@pytest.mark.parametrize("name", FOUR)
def test_a_rows_numbers_are_those_of_its_best_epoch_and_of_its_run_folder(in_four, name) -> None:
    by_epoch = iter(table(f"{name}_run0"))
    for row in table(name):
        mine = [next(by_epoch) for _ in range(int(row["epochs_trained"]))]
        best = mine[int(row["best_epoch"]) - 1]
        losses = [float(r["val_loss"]) for r in mine]
        assert float(row["best_val_loss"]) == float(best["val_loss"]) <= min(losses) + 1e-4
        # measured again with the weights that were kept
        assert float(row["val_loss"]) == pytest.approx(float(best["val_loss"]), rel=1e-4, abs=1e-7)
        assert row["val_accuracy"] == best["val_accuracy"]
        logged = [json.loads(s) for s in (run_dir(row["run_id"]) / "rows.jsonl").read_text().splitlines()]
        assert [r["train_loss"] for r in logged] == [float(r["train_loss"]) for r in mine]
        results = json.loads((run_dir(row["run_id"]) / "results.json").read_text())
        assert {key: str(results[key]) for key in COMBINATION_COLUMNS[4:]} == {
            key: row[key] for key in COMBINATION_COLUMNS[4:]
        }


def test_the_imbalanced_loss_logs_its_true_parts(in_four) -> None:
    """Mean over 60 confounded and 4 corrected (decision 22); overfit_test has 12 and 4."""
    for name, batch in (("overfit_test", 16), ("full_grid_search", 64)):
        found = [r for r in table(f"{name}_run0") if r["loss_type"] == "imbalanced"]
        assert found
        for r in found:
            total, ours, corrected = (
                float(r[key]) for key in ("train_loss", "train_conf_loss", "train_corr_loss")
            )
            assert total == pytest.approx(((batch - 4) * ours + 4 * corrected) / batch, rel=1e-4, abs=1e-7)


# ---- TensorBoard ------------------------------------------------------------------------------------------------------------


def test_each_cell_has_one_directory_under_the_documents_name(in_four) -> None:
    for name in FOUR:
        named = {
            f"lr{r['learning_rate']}_loss{r['loss_type']}_lambda{r['lambda_weight']}_pool{r['user_corrected_pool_size']}"
            for r in table(name)
        }
        controls = {cell["name"] for cell in record(name)["cells"] if cell["control"]}
        assert len(controls) == (2 if name == "lambda_search" else 0)
        assert {path.name for path in Path("runs", name).iterdir()} == named | controls
        for path in Path("runs", name).iterdir():
            (event_file,) = path.glob("*tfevents*")
            assert {p.name for p in path.iterdir()} == {event_file.name, "best_model.pth", "best_model.json"}
    assert Path("runs/overfit_test/lr0.01_lossbalanced_lambda1.0_pool50").is_dir()


@pytest.mark.parametrize("name", FOUR)
def test_tensorboard_reads_the_documents_scalars_back_as_they_stand_in_the_tables(in_four, name) -> None:
    by_epoch = iter(table(f"{name}_run0"))
    for row, cell in zip(table(name), cells(name), strict=True):
        mine = [next(by_epoch) for _ in range(int(row["epochs_trained"]))]
        found = events(cell["log_dir"])
        for tag, column in SCALARS.items():
            points = found.Scalars(tag)
            assert [p.step for p in points] == list(range(1, len(mine) + 1))
            assert [p.value for p in points] == [float(np.float32(r[column])) for r in mine]
        last = {
            "hparam/val_accuracy": "val_accuracy", "hparam/test_accuracy": "test_accuracy", "hparam/val_loss": "val_loss",
            "Loss/train_final_epoch": "train_loss", "Loss/val_final_epoch": "val_loss", "Loss/test_epoch": "test_loss",
            "Accuracy/train_final_epoch": "train_accuracy", "Accuracy/val_final_epoch": "val_accuracy",
            "Accuracy/test_epoch": "test_accuracy",
        }  # fmt: skip
        for tag, column in last.items():
            (point,) = found.Scalars(tag)
            assert (point.step, point.value) == (len(mine), float(np.float32(row[column])))
        assert set(found.Tags()["scalars"]) == {*SCALARS, *last}
        assert set(found.Tags()["images"]) == PICTURES


def test_the_hyperparameter_table_names_the_setting_of_each_cell(in_four) -> None:
    from tensorboard.plugins.hparams import metadata

    for name in FOUR:
        for row, cell in zip(table(name), cells(name), strict=True):
            content = events(cell["log_dir"]).PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
            told = metadata.parse_session_start_info_plugin_data(content).hparams
            values = {key: getattr(value, value.WhichOneof("kind")) for key, value in told.items()}
            assert values == {
                "lr": float(row["learning_rate"]), "loss_type": row["loss_type"],
                "lambda": float(row["lambda_weight"]), "pool_size": float(row["user_corrected_pool_size"]),
            }  # fmt: skip


def grid(image: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string))).astype(int)


def test_pictures_are_logged_every_ten_epochs_and_correcting_took_nothing_but_the_dots(in_four) -> None:
    for cell in cells("overfit_test"):
        found = events(cell["log_dir"])
        for name in PICTURES:
            assert [image.step for image in found.Images(name)] == [1, 10]
        before, after = (grid(found.Images(f"corrected_{name}")[0]) for name in ("original", "samples"))
        changed = before != after
        assert (before[changed] == 255).all()
        assert (after[changed] == 0).all()
        scale = before.shape[0] // 30  # a row of 28 pixels with one of grey on both sides
        assert changed.sum() == 8 * 4 * scale**2
        # eights as they are trained on: the dot's last pixel is two from the corner, in each of the eight
        dots = grid(found.Images("confounded_samples")[0])[26 * scale + scale // 2, scale // 2 :: scale]
        assert (dots[[26 + 29 * i for i in range(8)]] == 255).all()
        for tag in ("confounded", "corrected_original", "corrected"):
            texts = found.Tensors(f"Predictions/{tag}")
            assert [text.step for text in texts] == [1, 10]
            digits = texts[-1].tensor_proto.string_val[0].decode().split()
            assert len(digits) == 8
            assert set(digits) <= {"0", "8"}


def test_the_predicted_digits_are_those_of_the_network_at_that_epoch(in_four) -> None:
    """At the last epoch of a run whose best epoch is its last."""
    found = [c for name in FOUR for c in cells(name) if c["result"]["best_epoch"] == 10]
    assert found
    for cell in found:
        index = json.loads((run_dir(cell["run_id"]) / "results.json").read_text())["index"]
        images, _ = plain(Path("08MNIST"), "confounded_v1/train")
        pool = images[torch.tensor(index["pool"])][:8]
        seen = events(cell["log_dir"]).Tensors("Predictions/corrected_original")[-1].tensor_proto.string_val
        ours = predicted(Path(cell["log_dir"]) / "best_model.pth", pool)
        assert seen[0].decode().split() == ["08"[i] for i in ours.tolist()]


# ---- the weights -------------------------------------------------------------------------------------------------------------


def test_the_best_model_is_a_plain_state_dict_that_does_on_the_recorded_split_what_the_table_says(
    in_four,
) -> None:
    images, labels = plain(Path("08MNIST"), "original/test")
    dotted, same = plain(Path("08MNIST"), "confounded_v1/test")
    assert torch.equal(labels, same)
    marked = images.clone()
    marked[:, :, 25:27, 25:27] = 1.0
    assert torch.equal(marked[labels == 1], dotted[labels == 1])
    toggled = torch.where((labels == 1).view(-1, 1, 1, 1), images, marked)
    for name in FOUR:
        for row, cell in zip(table(name), cells(name), strict=True):
            weights = Path(cell["log_dir"]) / "best_model.pth"
            content = torch.load(weights, weights_only=True)
            layers = ("features.0", "features.3", "classifier.1", "classifier.3")
            assert sorted(content) == sorted(
                f"{layer}.{what}" for layer in layers for what in ("bias", "weight")
            )
            held = json.loads((run_dir(row["run_id"]) / "results.json").read_text())["index"]["validation"]
            test = torch.ones(len(labels), dtype=torch.bool)
            test[held] = False
            right = labels[test]
            of_plain, of_marked = predicted(weights, images[test]), predicted(weights, marked[test])
            assert float(row["test_accuracy"]) == share(of_plain == right)
            assert float(row["val_accuracy"]) == share(predicted(weights, images[held]) == labels[held])
            assert float(row["val_accuracy_confounded"]) == share(
                predicted(weights, dotted[held]) == labels[held]
            )
            assert float(row["test_accuracy_confounded"]) == share(predicted(weights, dotted[test]) == right)
            assert float(row["test_accuracy_toggled"]) == share(predicted(weights, toggled[test]) == right)
            assert float(row["test_accuracy_marked"]) == share(of_marked == right)
            assert float(row["test_flip_rate"]) == share(of_plain != of_marked)


def test_what_was_drawn_is_in_the_results_and_validation_is_two_fifths_of_both_digits(in_four) -> None:
    _, labels = plain(Path("08MNIST"), "original/test")
    for name in FOUR:
        for cell in record(name)["cells"]:
            found = json.loads((run_dir(cell["run_id"]) / "results.json").read_text())
            held = found["index"]["validation"]
            assert len(set(held)) == len(held) == int(0.4 * len(labels))
            assert found["n"]["validation"] + found["n"]["test"] == len(labels)
            assert abs(share(labels[held].bool()) - share(labels.bool())) < 0.02
            pool = cell["user_corrected_pool_size"]
            assert len(found["index"]["pool"]) == pool
    chosen = json.loads((run_dir(cells("overfit_test")[0]["run_id"]) / "results.json").read_text())["index"][
        "train"
    ]
    assert len(set(chosen)) == len(chosen) == 100


# ---- stages --------------------------------------------------------------------------------------------------------------------


def best_of(name: str, column: str) -> float:
    return float(
        max(table(name), key=lambda r: (float(r["val_accuracy"]), -float(r["best_val_loss"])))[column]
    )


def test_lambda_search_takes_the_best_rate_of_lr_search_and_the_full_grid_also_the_best_lambda(
    in_four,
) -> None:
    rate, weight = best_of("lr_search", "learning_rate"), best_of("lambda_search", "lambda_weight")
    assert {float(r["learning_rate"]) for r in table("lambda_search")} == {rate}
    assert {float(r["learning_rate"]) for r in table("full_grid_search")} == {rate}
    assert {float(r["lambda_weight"]) for r in table("full_grid_search")} == {weight}
    for name, key, value, earlier in (
        ("lambda_search", "learning_rate", rate, "lr_search"),
        ("full_grid_search", "learning_rate", rate, "lr_search"),
        ("full_grid_search", "lambda_weight", weight, "lambda_search"),
    ):
        assert earlier in record(name)["sources"][key]
        lines = Path("told", name).read_text().splitlines()
        assert [s for s in lines if s.startswith(f"{name}: {key} {value} ") and earlier in s]


def test_settings_that_are_the_documents_are_recorded_as_such(in_four) -> None:
    for name in ("overfit_test", "lr_search"):
        assert record(name)["sources"].keys() == {"learning_rate", "lambda_weight"}
        assert all("document" in source for source in record(name)["sources"].values())


def test_a_run_that_two_experiments_share_is_trained_once(in_four) -> None:
    """lambda_search at lambda 1 is the best run of lr_search."""
    (best,) = [c for c in cells("lr_search") if c["learning_rate"] == best_of("lr_search", "learning_rate")]
    (same,) = [c for c in cells("lambda_search") if c["lambda_weight"] == 1]
    assert same["run_id"] == best["run_id"]
    assert same["log_dir"] != best["log_dir"]
    both = [next(Path(c["log_dir"]).glob("*tfevents*")).read_bytes() for c in (best, same)]
    assert both[0] == both[1]


def test_the_record_holds_what_the_tables_hold_and_on_which_data_and_base_model(in_four) -> None:
    for name in FOUR:
        found = record(name)
        assert found["experiment"] == name
        assert found["complete"] is True
        for row, cell in zip(table(name), cells(name), strict=True):
            assert all(float(row[key]) == cell["result"][key] for key in COMBINATION_COLUMNS[4:])
            assert row["run_id"] == cell["run_id"] == cell["result"]["run_id"]
        mine = [c for c in cells(name) for _ in c["history"]["epoch"]]
        assert len(mine) == len(table(f"{name}_run0"))
        base = hashlib.sha256(Path("model_confounded.pth").read_bytes()).hexdigest()
        assert found["base_sha256"] == base[:16]
        assert found["data_sha256"] == json.loads(Path("model_confounded.json").read_text())["data_sha256"]


def test_beside_the_lambda_curve_imbalanced_and_balanced_at_k_over_b_minus_k_train_alike(in_four) -> None:
    """The trajectories of two losses that differ by a factor, which Adam hardly sees (correction.md 4.1)."""
    twins = {c["loss_type"]: c for c in record("lambda_search")["cells"] if c["control"]}
    assert twins["balanced"]["lambda_weight"] == pytest.approx(4 / 60)
    ours, other = (twins[loss]["history"]["val_loss"] for loss in ("imbalanced", "balanced"))
    np.testing.assert_allclose(ours, other, rtol=0.02, atol=1e-4)
    (far,) = [c for c in cells("lambda_search") if c["lambda_weight"] == 10]
    assert not np.allclose(ours, far["history"]["val_loss"], rtol=0.02, atol=1e-4)


def test_the_cells_that_the_tests_of_the_verdicts_make_up_have_the_keys_of_real_ones(in_four) -> None:
    from test_correction_verdicts import made_cell, made_stage

    def keys(value: Any) -> Any:
        """Keys all the way down; of lists and numbers nothing."""
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    made = made_cell()
    for name in FOUR:
        assert record(name).keys() - {"equivalence", SEAL} == made_stage(name, made).keys()
        for cell in record(name)["cells"]:
            cell["result"]["settings"] = {}
            assert keys(cell) == keys(made)


# ---- pictures and page -----------------------------------------------------------------------------------------------------------


def numbers(name: str) -> list[dict[str, str]]:
    with open(f"plots/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_pages_pictures_are_those_of_the_plots_folder(in_four) -> None:
    from test_page import Reader

    page = Reader(Path("plots/correction.html").read_text())
    shown = [
        base64.b64decode((attrs["src"] or "").removeprefix("data:image/png;base64,"))
        for attrs, _ in page.all("img")
    ]
    for path in Path("plots").glob("*.png"):
        assert path.read_bytes() in shown, path
        assert path.with_suffix(".csv").exists()
    assert len(list(Path("plots").glob("*.png"))) == 8
    assert "Not measured yet." not in page.texts("p", class_="answer")


def test_each_run_says_what_it_shows_and_where_the_page_is(in_four) -> None:
    for name in FOUR:
        told = Path("told", name).read_text()
        (line,) = [
            s for s in told.splitlines() if s.startswith(f"{name}: ") and s.split()[1].rstrip(".") in WORDS
        ]
        assert line
        assert "the answers so far: plots/correction.html" in told
        top = max(cells(name), key=lambda c: (c["result"]["val_accuracy"], -c["result"]["best_val_loss"]))
        printed = " ".join(told.split())
        assert (
            f"Best validation accuracy {100 * top['result']['val_accuracy']:.2f} %: {top['loss_type']}, "
            in printed
        )
        assert f"its test accuracy {100 * top['result']['test_accuracy']:.2f} % on plain digits" in printed


WORDS = ("PASS", "FAIL", "UNDECIDED")


def test_digits_are_learnt_by_heart(in_four) -> None:
    assert "overfit_test: PASS. " in Path("told/overfit_test").read_text()


def test_the_numbers_of_the_pictures_are_those_of_the_records(in_four) -> None:
    def drawn(name: str, line: str, panel: str = "") -> list[tuple[float, float]]:
        found = [r for r in numbers(name) if (r["panel"], r["line"]) == (panel, line)]
        return [(float(r["x"]), float(r["seed0"])) for r in found]

    for cell in cells("overfit_test"):
        for line, key in (
            ("total", "train_loss"),
            ("confounded", "train_conf_loss"),
            ("corrected", "train_corr_loss"),
        ):
            history = list(zip(cell["history"]["epoch"], cell["history"][key], strict=True))
            assert drawn("overfit_test", line, cell["loss_type"]) == history
    rates = sorted((c["learning_rate"], c["result"]["best_val_loss"]) for c in cells("lr_search"))
    assert drawn("lr_search", "learning rates") == rates
    for cell in cells("lr_search"):
        history = list(zip(cell["history"]["epoch"], cell["history"]["val_loss"], strict=True))
        assert drawn("lr_curves", f"{cell['learning_rate']:g}", "learning rate") == history
    for line, key in (("confounded", "train_conf_loss"), ("corrected", "train_corr_loss")):
        curve = sorted((c["lambda_weight"], c["result"][key]) for c in cells("lambda_search"))
        assert drawn("lambda_search", line) == curve
    curve = sorted(
        (c["lambda_weight"], 100 * c["result"]["reliance"]["accuracy_toggled"])
        for c in cells("lambda_search")
    )
    assert drawn("lambda_accuracy", "dots on 0s") == curve
    twins = {c["loss_type"]: c for c in record("lambda_search")["cells"] if c["control"]}
    assert drawn("lambda_search", "corrected, imbalanced at k/(B-k)") == [
        (4 / 60, twins["imbalanced"]["result"]["train_corr_loss"])
    ]
    angles = record("lambda_search")["equivalence"]
    assert drawn("equal_lambda", "first batch, network before any training") == list(
        zip(angles["lambda"], angles["angle_degrees"], strict=True)
    )
    weight = record("full_grid_search")["settings"]["lambda_weight"][0]
    for loss, line in (("balanced", f"balanced, lambda {weight:g}"), ("imbalanced", "imbalanced")):
        pools = [
            (c["user_corrected_pool_size"], 100 * c["result"]["test_accuracy"])
            for c in cells("full_grid_search")
            if c["loss_type"] == loss
        ]
        assert drawn("full_grid_search", line, "plain digits") == pools


def test_the_checklist_finds_nothing_wrong_with_what_was_made(in_four) -> None:
    with one_thread():
        code, out, errors = called("correction", "check", "--device", "cpu")
    assert (code, errors) == (0, "")
    assert "WRONG" not in out


# ---- again ------------------------------------------------------------------------------------------------------------------------


def written(folder: Path) -> dict[Path, int]:
    """When the rows of each run were last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("rows.jsonl")}


def test_the_same_command_again_trains_nothing_and_brings_back_what_was_deleted(
    four, here, cells_here
) -> None:
    words = small(four)
    runs(*words)
    before, rows = files_of(here), written(here)
    assert len(rows) == 2
    (directory, _) = sorted(Path("runs/mine").iterdir())
    (event_file,) = directory.glob("*tfevents*")
    exports = [[event_file], [directory / "best_model.pth"], [directory / "best_model.json"]]
    drawn = [Path("plots/correction.html"), Path("plots/reliance.png"), Path("plots/reliance.csv")]
    for lost in (*exports, [*Path("experiments").iterdir(), *drawn]):
        for path in lost:
            path.unlink()
        told = runs(*words)
        assert "warning" not in told
        assert f"{2 - (lost in exports)} of 2 runs are done already" in told
        assert files_of(here) == before, lost
    assert written(here) == rows


def test_a_whole_documented_experiment_again_trains_nothing(four, tmp_path, monkeypatch, cells_here) -> None:
    shutil.copytree(four, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    rows, before = written(Path()), Path("experiments/full_grid_search.csv").read_bytes()
    told = runs("-e", "full_grid_search", "--dataset", "digits", "--max_epochs", "4", "--jobs", "1")
    assert "4 of 4 runs are done already" in told
    assert written(Path()) == rows
    assert Path("experiments/full_grid_search.csv").read_bytes() == before


def test_another_setting_under_the_same_directory_name_replaces_it_and_one_line_says_so(
    four, here, cells_here
) -> None:
    words = small(four, "--loss_type", "balanced")
    runs(*words)
    (first,) = cells("mine")
    old = files_of(here / first["log_dir"])
    told = runs(*words, "--max_epochs", "1")
    (second,) = cells("mine")
    assert (first["log_dir"], first["run_id"] != second["run_id"]) == (second["log_dir"], True)
    lines = [s for s in told.splitlines() if "now holds run" in s]
    assert len(lines) == 1, lines
    assert first["log_dir"] in lines[0]
    assert second["run_id"] in lines[0]
    assert first["run_id"] in lines[0]
    assert [p.step for p in events(first["log_dir"]).Scalars("Loss/val_epoch")] == [1]
    told = runs(*words)  # the first one again: it is done, and takes its name back
    assert files_of(here / first["log_dir"]) == old
    assert "on cpu" not in told


def test_files_of_others_are_kept_aside(four, here, cells_here) -> None:
    words = small(four, "--loss_type", "balanced")
    directory = Path("runs/mine/lr0.001_lossbalanced_lambda1.0_pool4")
    directory.mkdir(parents=True)
    Path("experiments").mkdir()
    theirs = {
        Path("experiments/mine.csv"): b"learning_rate,loss_type\n0.1,balanced\n",
        Path("experiments/mine_run0.csv"): (",".join(EPOCH_COLUMNS) + "\n0,0.1,balanced,1.0,4,2,1,1,1,1,1,1,1,1\n").encode(),
        Path("experiments/mine.json"): b'{"notes": "of the original script"}\n',
        directory / "events.out.tfevents.1700000000.host.12.0": b"not ours",
        directory / "best_model.pth": b"theirs",
    }  # fmt: skip
    for path, content in theirs.items():
        path.write_bytes(content)
    told = runs(*words)
    for path, content in theirs.items():
        kept = [p for p in path.parent.iterdir() if p.read_bytes() == content]
        assert len(kept) == 1, path
        assert kept[0].name != path.name
        assert f"warning: {path} was not made by perturblab; kept as {kept[0].name}" in told
    assert len(list(directory.glob("*tfevents*"))) == 1
    assert set(events(directory).Tags()["images"]) == PICTURES  # TensorBoard takes no notice of what was kept
    assert table("mine")[0]["status"] == "done"
    assert "kept as" not in runs(*words)


def test_a_table_that_held_runs_of_other_settings_is_replaced_and_one_line_says_so(
    four, here, cells_here
) -> None:
    few = ("--loss_type", "balanced", "--max_epochs", "1")
    same = ("--output_filename", "experiments/mine.csv")
    runs(*small(four, *few))
    assert "now holds" not in runs(
        *small(four, *few, "--user_corrected_pool_size", "4", "5")
    )  # it has the old run too
    told = runs(*small(four, *few, *same, "--learning_rate", "0.002", name="other"))
    (line,) = [s for s in told.splitlines() if "now holds" in s]
    assert line.startswith("experiments/mine.csv now holds other, 1 run")
    assert "it held mine, 2 runs" in line
    assert "now holds" not in runs(*small(four, *few, *same, "--learning_rate", "0.002", name="other"))


# ---- where settings come from -------------------------------------------------------------------------------------------------------

# One cell each, as small as can be, so that nothing but the source of its settings counts.
TINY = (
    "--train_dataset_size", "24", "--batch_size", "8", "--user_corrected_max_per_batch", "2", "--max_epochs", "1",
    "--user_corrected_pool_size", "4", "--jobs", "1",
)  # fmt: skip
USERS_FILE = """
general: {program_args: {output_filename: experiments/lambda_search.csv, tensorboard_log_dir: runs/lambda_search}}
specific: {lambda_search: {learning_rate: [2e-3], lambda_weight: [3.0], loss_type: balanced}}
"""


def earlier(four: Path, change: Callable[[dict[str, Any]], None] = lambda stage: None) -> None:
    """The record of lr_search, as it is in ``four`` or changed."""
    stage = json.loads((four / "experiments/lr_search.json").read_text())
    change(stage)
    Path("experiments").mkdir(exist_ok=True)
    Path("experiments/lr_search.json").write_text(json.dumps(sealed(stage)))


def test_the_command_line_and_the_users_file_win_over_an_earlier_stage(four, here, cells_here) -> None:
    earlier(four)
    shared = ("-e", "lambda_search", *TINY, *made_in(four))
    told = runs(*shared, "--lambda_weight", "1", "--learning_rate", "0.02")
    assert [c["learning_rate"] for c in cells("lambda_search")] == [0.02]
    assert record("lambda_search")["sources"] == {}
    assert "lr_search" not in told
    Path("users.yaml").write_text(USERS_FILE)
    told = runs("--config", "users.yaml", *shared)
    assert [(c["learning_rate"], c["lambda_weight"]) for c in cells("lambda_search")] == [(0.002, 3.0)]
    assert "is the best of" not in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (None, "for no finished lr_search is in experiments"),
        (lambda stage: stage.update(data_sha256="0" * 16), "for lr_search was run on other data"),
        (lambda stage: stage.update(complete=False), "for no finished lr_search is in experiments"),
        (lambda stage: [c.update(status="diverged", result=None) for c in stage["cells"]], "every run of lr_search diverged"),
    ],
    ids=["none", "other data", "not finished", "all diverged"],
)  # fmt: skip
def test_an_earlier_stage_that_cannot_supply_is_not_used_and_one_line_says_why(
    four, here, cells_here, change, told
) -> None:
    if change:
        earlier(four, change)
    said = runs("-e", "lambda_search", *TINY, *made_in(four), "--lambda_weight", "1").splitlines()
    (line,) = [s for s in said if s.startswith("lambda_search: learning_rate")]
    assert line.startswith("lambda_search: learning_rate 0.01 as the document has it")
    assert line.endswith(told)
    assert [c["learning_rate"] for c in cells("lambda_search")] == [0.01]
    assert told in record("lambda_search")["sources"]["learning_rate"]


# ---- seeds, thresholds, divergence ---------------------------------------------------------------------------------------------------


def test_each_seed_has_its_directories_rows_and_table_and_no_seed_is_seed_0(four, here, cells_here) -> None:
    told = runs(*small(four, "--seeds", "0", "1"))
    found = table("mine")
    assert [(r["loss_type"], r["seed"]) for r in found] == [
        ("balanced", "0"), ("balanced", "1"), ("imbalanced", "0"), ("imbalanced", "1"),
    ]  # fmt: skip
    assert sorted(p.name for p in Path("runs/mine").iterdir()) == [
        f"lr0.001_loss{loss}_lambda1.0_pool4_seed{seed}"
        for loss in ("balanced", "imbalanced")
        for seed in (0, 1)
    ]
    assert len({r["run_id"] for r in found}) == 4
    for seed in ("0", "1"):
        assert {r["run"] for r in table(f"mine_run{seed}")} == {seed}
        assert len(table(f"mine_run{seed}")) == 6
    drawn = [json.loads((run_dir(r["run_id"]) / "results.json").read_text())["index"] for r in found]
    assert (
        drawn[0] == drawn[2] != drawn[1] == drawn[3]
    )  # runs of one seed see the same images: they are pairs
    assert "n=2 seeds" not in told  # an experiment without a picture of its own
    rows = written(here)
    runs(*small(four))
    assert written(here) == rows
    assert {r["run_id"] for r in table("mine")} == {r["run_id"] for r in found if r["seed"] == "0"}
    assert Path("runs/mine/lr0.001_lossbalanced_lambda1.0_pool4/best_model.pth").exists()


STEPS = "learning_rate: [0.001, 0.002], user_corrected_pool_size: [4, 5]"


def test_a_threshold_skips_what_follows_in_the_grid_of_each_loss(four, here, cells_here) -> None:
    words = small(
        four, "--stop-grid-at-threshold", "--accuracy_threshold", "0.01", "--max_epochs", "1", yaml=STEPS
    )
    runs(*words)
    shown = [
        (r["learning_rate"], r["loss_type"], r["user_corrected_pool_size"], r["status"])
        for r in table("mine")
    ]
    assert shown == [
        ("0.001", "balanced", "4", "done"),
        ("0.001", "balanced", "5", "skipped"),
        ("0.001", "imbalanced", "4", "done"),
        ("0.001", "imbalanced", "5", "skipped"),
        ("0.002", "balanced", "4", "skipped"),
        ("0.002", "balanced", "5", "skipped"),
        ("0.002", "imbalanced", "4", "skipped"),
        ("0.002", "imbalanced", "5", "skipped"),
    ]
    assert len(list(Path("runs/mine").iterdir())) == 2
    assert record("mine")["complete"] is True
    assert all(not r["test_accuracy"] for r in table("mine") if r["status"] == "skipped")


def test_without_the_flag_a_threshold_skips_nothing(four, here, cells_here) -> None:
    runs(*small(four, "--accuracy_threshold", "0.01", "--max_epochs", "1"))
    assert {r["status"] for r in table("mine")} == {"done"}


WILD = "learning_rate: [1.0e+12, 0.001], loss_type: balanced"  # the first step makes weights of 10^12


def test_a_diverging_rate_is_recorded_the_grid_goes_on_and_it_is_not_tried_again(
    four, here, cells_here
) -> None:
    words = small(four, yaml=WILD)
    runs(*words)
    wild, tame = table("mine")
    assert (wild["status"], tame["status"]) == ("diverged", "done")
    assert wild["test_accuracy"] == ""
    assert "not finite" in cells("mine")[0]["reason"]
    assert "lower learning rate" in cells("mine")[0]["reason"]
    assert record("mine")["complete"] is True
    assert not Path(cells("mine")[0]["log_dir"]).exists()
    folder = run_dir(wild["run_id"])
    assert not (folder / "results.json").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    told = runs(*words)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [r["status"] for r in table("mine")] == ["diverged", "done"]
    assert " diverged\n" in told


def test_when_every_run_diverges_the_check_fails_and_the_command_does_not(four, here, cells_here) -> None:
    told = runs(*small(four, yaml="learning_rate: [1.0e+12], loss_type: balanced"))
    assert "mine: FAIL. Every run diverged." in told
    assert "error: no finished experiment" not in told
    assert [r["status"] for r in table("mine")] == ["diverged"]


def test_a_cell_that_fails_gives_exit_code_1_and_says_which_and_the_others_go_on(
    four, here, cells_here
) -> None:
    words = small(four)
    Path("runs/mine").mkdir(parents=True)
    blocked = Path("runs/mine/lr0.001_lossbalanced_lambda1.0_pool4")
    blocked.write_text("a file where the directory should be")
    told = runs(*words, code=1)
    (line,) = [s for s in told.splitlines() if s.startswith(f"{blocked.name} failed: ")]
    assert f"cannot write {blocked}/best_model.pth" in line
    assert "1 of 2 runs failed; the same command runs only what is missing" in told
    assert [r["status"] for r in table("mine")] == ["failed", "done"]
    assert record("mine")["complete"] is False
    blocked.unlink()
    rows = written(here)
    runs(*words)
    assert rows.items() < written(here).items()
    assert [r["status"] for r in table("mine")] == ["done", "done"]


def test_when_every_run_fails_for_one_reason_it_is_told_in_one_line_and_an_earlier_table_stays(
    four, here, cells_here
) -> None:
    runs(*small(four, "--max_epochs", "1"))
    before = files_of(Path("experiments"))
    torch.save({"conv.weight": torch.zeros(1)}, "another.pth")
    told = runs(*small(four, "--max_epochs", "1", "--base_model", "another.pth"), code=2)
    errors = [s for s in told.splitlines() if s.startswith("error: ")]
    assert errors[-1].startswith("error: another.pth is a checkpoint of another network")
    assert files_of(Path("experiments")) == before


# ---- what it is trained on ---------------------------------------------------------------------------------------------------------


def test_validation_on_confounded_images_is_said_wherever_it_chose(four, here, cells_here) -> None:
    few = ("--loss_type", "balanced", "--learning_rate", "1e-6")  # still sees the dot
    told = runs(*small(four, "--validation", "confounded", *few))
    (row,), (cell,) = table("mine"), cells("mine")
    images, labels = plain(four / "08MNIST", "confounded_v1/test")
    undotted, _ = plain(four / "08MNIST", "original/test")
    held = json.loads((run_dir(row["run_id"]) / "results.json").read_text())["index"]["validation"]
    weights = Path(cell["log_dir"]) / "best_model.pth"
    assert float(row["val_accuracy"]) == share(predicted(weights, images[held]) == labels[held])
    assert row["val_accuracy_confounded"] == row["val_accuracy"] != row["val_accuracy_original"]
    assert float(row["val_accuracy_original"]) == share(predicted(weights, undotted[held]) == labels[held])
    with torch.no_grad():
        network = PlainCNN2()
        network.load_state_dict(torch.load(weights, weights_only=True))
        loss = float(torch.nn.functional.cross_entropy(network(images[held]), labels[held]))
    assert float(row["val_loss"]) == pytest.approx(loss, rel=1e-4)
    assert "Selected on dotted validation digits; the test digits chose nothing." in " ".join(told.split())
    assert "selected on dotted validation digits" in Path("plots/correction.html").read_text()
    runs(*small(four, *few))
    assert table("mine")[0]["run_id"] != row["run_id"]


@pytest.fixture(scope="module")
def other(four: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with another 08MNIST, of grey dots."""
    folder = tmp_path_factory.mktemp("other")
    words = ("build-data", "--dataset", "digits", "--value", "0.5", "--out", str(folder))
    code, _, errors = called("correction", *words)
    assert code == 0, errors
    return folder


def test_a_base_model_that_was_trained_on_other_data_is_warned_of_and_used(
    four, other, here, cells_here
) -> None:
    model = four / "model_confounded.pth"
    where = ("--data", str(other / "08MNIST"), "--base_model", str(model))
    told = runs(*small(four, "--loss_type", "balanced"), *where)
    warnings = [s for s in told.splitlines() if s.startswith("warning: ")]
    assert warnings == [
        f"warning: {model} was trained on other data than {other / '08MNIST'}; remove it to train one on these"
    ]
    assert table("mine")[0]["status"] == "done"
    assert "warning" not in runs(*small(four, "--loss_type", "balanced"))


def test_other_data_or_another_base_model_means_other_runs_not_old_results(
    four, other, here, cells_here
) -> None:
    words = small(four, "--loss_type", "balanced", "--max_epochs", "1")
    runs(*words)
    seen = [table("mine")[0]]
    runs(*words, "--data", str(other / "08MNIST"))
    seen.append(table("mine")[0])
    weights = torch.load(four / "model_confounded.pth", weights_only=True)
    torch.save({name: 0.5 * value for name, value in weights.items()}, "model_confounded.pth")
    runs(*words, "--base_model", "model_confounded.pth")
    seen.append(table("mine")[0])
    assert len({r["run_id"] for r in seen}) == 3
    assert len({r["train_loss"] for r in seen}) == 3
    assert len({json.dumps(record("mine")["base_sha256"])}) == 1
    told = runs(*words)
    assert table("mine")[0] == seen[0]
    assert "on cpu" not in told


def test_data_made_of_another_set_than_asked_for_is_refused(four, here) -> None:
    told = runs(*small(four, "--dataset", "mnist"), code=2)
    assert f"error: {four / '08MNIST'} was made of digits, not mnist; " in told
    assert told.count("\n") == 1
    assert not Path("experiments").exists()


# ---- processes -----------------------------------------------------------------------------------------------------------------------


FORK = multiprocessing.get_context("fork")


class Forking:
    """What ``launch/local.py`` asks of a context of multiprocessing, without a server that imports torch anew."""

    Process = FORK.Process

    def set_forkserver_preload(self, modules: Sequence[str]) -> None:
        for module in modules:
            importlib.import_module(module)


def fork_cells() -> None:
    """A hook for a child of the zygote: cells are forked from it, which has one thread and computed nothing."""
    multiprocessing.get_context = lambda method=None: Forking()  # type: ignore[assignment]


LONG = (
    "learning_rate: [0.001, 0.002, 0.003], loss_type: balanced, max_epochs: 25, early_stopping_patience: 25"
)


@pytest.fixture(scope="module")
def undisturbed(four: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tables and the record of three long cells."""
    with pytest.MonkeyPatch.context() as patch, cells_in_process():
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        runs(*small(four, yaml=LONG))
        return files_of(Path("experiments"))


def in_zygote(
    zygote: Zygote, four: Path, folder: Path, *more: str, yaml: str = LONG, number: int = 0
) -> Ended:
    """Run ``mine`` in ``folder`` with a process per cell, and send a signal in the middle of the second cell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["correction", "run", *CPU, *small(four, *more, yaml=yaml)]
    pid = zygote.start(words, folder, hooks=[["test_correction_run", "fork_cells"]])
    if number:
        until(lambda: any(path.stat().st_size for path in folder.rglob("lr0.002*/rows.jsonl")))
        os.kill(pid, number)
    return zygote.wait()


def test_one_run_at_a_time_and_two_give_equal_files(zygote, four, tmp_path) -> None:
    left = []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        folder.mkdir()
        ended = in_zygote(
            zygote, four, folder, "--jobs", jobs, yaml="learning_rate: [0.001, 0.002], loss_type: balanced"
        )
        assert ended.code == 0, ended.output
        left.append({name: files_of(folder / name) for name in ("experiments", "runs", "plots")})
        logs = list(folder.rglob("log.txt"))
        assert len(logs) == (0 if jobs == "1" else 2)
        assert all(b"best of 3 epochs" in path.read_bytes() for path in logs)
    assert left[0]["experiments"].keys() == {"mine.csv", "mine_run0.csv", "mine.json"}
    assert left[0] == left[1]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["Ctrl-C", "SIGTERM"]
)
def test_stopped_in_the_middle_the_tables_hold_what_is_done_and_the_same_command_finishes(
    zygote, four, here, cells_here, undisturbed, number, code
) -> None:
    ended = in_zygote(zygote, four, here, number=number)
    assert ended.code == code, ended.output
    assert "Traceback" not in ended.output
    assert [r["status"] for r in table("mine")] == ["done", "interrupted", "pending"]
    assert record("mine")["complete"] is False
    assert len(table("mine_run0")) == 25
    rows = {path: when for path, when in written(here).items() if "lr0.001" in str(path)}
    assert len(rows) == 1

    runs(*small(four, yaml=LONG))
    assert rows.items() < written(here).items()
    assert files_of(here / "experiments") == undisturbed
