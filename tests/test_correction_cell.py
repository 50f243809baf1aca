"""correction, train: one combination, from its parts to the best weights, against the document's loop done plainly."""

import copy
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from commandline import called, refusal
from conftest import files_of, one_thread
from perturblab.confound import Shortcut, plant
from perturblab.images import Batch, ImageSet, MixedSource
from perturblab.rows import read_rows
from perturblab.runs import Row
from perturblab.streams import stream
from perturblab.studies.correction import Train, parts
from perturblab.studies.correction.data import Sets
from perturblab.studies.correction.stopping import best_row, improves, out_of_patience
from perturblab.terminal import UserError

# ---- a tiny 08MNIST --------------------------------------------------------------------------------------------------

SMALL = (
    "--device",
    "cpu",
    "--batch_size",
    "16",
    "--user_corrected_pool_size",
    "10",
    "--learning_rate",
    "0.003",
)


def write_digits(path: Path, train: int = 61, test: int = 40) -> Path:
    """Drawn zeros and eights in noise, in turn: a dot is easier to see."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:28, 0:28]

    def ring(row: float, column: float, height: float, width: float) -> np.ndarray:
        return abs(np.hypot((y - row) / height, (x - column) / width) - 1) < 0.28

    arrays = {}
    for split, n in (("train", train), ("test", test)):
        labels = np.resize([0, 8], n)
        images = np.zeros((n, 28, 28))
        for image, label in zip(images, labels, strict=True):
            row, column = random.integers(11, 16, 2)
            lines = (
                ring(row, column, 8, 6)
                if label == 0
                else ring(row - 4, column, 4, 5) | ring(row + 4, column, 4, 5)
            )
            image += lines * random.integers(40, 100) + random.integers(0, 200, (28, 28)) * (
                random.random((28, 28)) < 0.5
            )
            image[24:, 24:] = 0  # black under the dot, as in MNIST
        arrays[f"x_{split}"], arrays[f"y_{split}"] = images.clip(0, 255).astype(np.uint8), labels
    np.savez(path, **arrays)
    return path


def does(*words: str) -> str:
    """What ``perturblab correction WORDS`` prints, errors and warnings too; it must end well."""
    with one_thread():
        code, out, errors = called("correction", *words)
    assert code == 0, errors
    return out + errors


def make_08mnist(folder: Path) -> Path:
    """A folder with 08MNIST, of 31 zeros and 29 eights to train on and 20 of each to test, and a base model that sees the dot."""
    digits = write_digits(folder / "digits.npz")
    does("build-data", "--dataset", f"npz:{digits}", "--out", str(folder))
    where = ("--runs_dir", str(folder / "base"), "--device", "cpu", "--batch_size", "8", "--epochs", "4")
    does("train-base", *reads(folder), *where)
    return folder


def reads(folder: Path) -> list[str]:
    return ["--data", str(folder / "08MNIST"), "--base_model", str(folder / "model_confounded.pth")]


def train_words(folder: Path, *more: str) -> list[str]:
    """A run of a few epochs, each of five batches of 12 + 4."""
    few = ("--max_epochs", "6", "--early_stopping_patience", "3")
    return ["correction", "train", *reads(folder), *SMALL, *few, *more]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_08mnist(tmp_path_factory.mktemp("08"))


# ---- when training stops, and which epoch is kept --------------------------------------------------------------------


def rows_of(*losses: float) -> list[Row]:
    return [{"kind": "epoch", "epoch": epoch, "val_loss": loss} for epoch, loss in enumerate(losses, 1)]


def kept(min_delta: float, *losses: float) -> int:
    found = best_row(min_delta, rows_of(*losses))
    assert found is not None
    return int(found["epoch"])


def stopped_after(min_delta: float, patience: int, *losses: float) -> int:
    """The epoch after which a run stops that would have had these losses."""
    found = rows_of(*losses)
    for epoch in range(1, len(found) + 1):
        if out_of_patience(min_delta, patience, found[:epoch]):
            return epoch
    return 0


def test_an_epoch_counts_as_better_if_it_is_lower_by_more_than_min_delta() -> None:
    assert kept(0.1, 1.0, 0.95) == 1
    assert kept(0.1, 1.0, 0.89) == 2
    assert kept(0.25, 1.0, 0.75) == 1, "exactly min_delta lower is not lower by more"
    assert kept(0.0, 1.0, 0.999999) == 2
    assert Train().min_delta == 1e-4  # as documented
    assert kept(1e-4, 0.5, 0.49991) == 1
    assert kept(1e-4, 0.5, 0.49989) == 2


def test_of_equal_epochs_the_first_is_kept() -> None:
    assert kept(0.0, 0.7, 0.7, 0.7) == 1
    assert kept(0.0, 0.7, 0.5, 0.6, 0.5) == 2


def test_losses_that_creep_down_are_compared_with_the_kept_one_not_with_the_last() -> None:
    assert kept(0.1, 1.0, 0.95, 0.91, 0.88, 0.83) == 4
    assert stopped_after(0.1, 3, 1.0, 0.95, 0.91, 0.88, 0.87, 0.86, 0.85) == 7


def test_training_stops_when_patience_epochs_brought_nothing_better() -> None:
    assert stopped_after(0.0, 1, 1.0, 0.9, 0.9, 0.1) == 3
    assert stopped_after(0.0, 3, 1.0, 0.5, 0.6, 0.6, 0.4, 0.6, 0.6, 0.6, 0.1) == 8
    assert stopped_after(0.0, 9, *[1.0] * 9) == 0
    assert stopped_after(0.0, 9, *[1.0] * 10) == 10
    assert stopped_after(0.0, 2, *[1 / n for n in range(1, 50)]) == 0, "it never stops while it falls"


def test_before_the_first_epoch_nothing_is_kept_and_nothing_stops() -> None:
    assert best_row(0.1, []) is None
    assert not out_of_patience(0.1, 1, [])
    assert improves(0.1, rows_of(1e9)[0], [])


def by_the_document(min_delta: float, patience: int, losses: list[float]) -> tuple[int, int]:
    """The loop of correction.md 4.5: the epoch that is kept, and the number of epochs."""
    best, best_epoch, waited = float("inf"), 0, 0
    for epoch, loss in enumerate(losses, 1):
        if loss < best - min_delta:
            best, best_epoch, waited = loss, epoch, 0
        else:
            waited += 1
        if waited >= patience:
            return best_epoch, epoch
    return best_epoch, len(losses)


@settings(deadline=None, max_examples=200)
@given(
    losses=st.lists(st.sampled_from([n / 8 for n in range(12)]) | st.floats(0, 2), min_size=1, max_size=30),
    min_delta=st.sampled_from([0.0, 1e-4, 0.125, 0.25]),
    patience=st.integers(1, 6),
)
def test_any_history_is_judged_as_by_the_documents_loop(losses, min_delta, patience) -> None:
    best_epoch, epochs = by_the_document(min_delta, patience, losses)
    stop = stopped_after(min_delta, patience, *losses)
    assert (stop or len(losses)) == epochs
    assert kept(min_delta, *losses[:epochs]) == best_epoch
    found = rows_of(*losses[:epochs])
    better = [row["epoch"] for i, row in enumerate(found) if improves(min_delta, row, found[:i])]
    assert better[-1] == best_epoch  # the last time that weights were kept


# ---- the parts -------------------------------------------------------------------------------------------------------


def sets_of(zeros: int = 40, eights: int = 30, test: tuple[int, int] = (20, 15), **shortcut: Any) -> Sets:
    """Noise that tells the images apart, black under the dot; zeros first."""

    def images(name: str, n: tuple[int, int]) -> ImageSet:
        pixels = torch.randint(1, 256, (sum(n), 1, 12, 12), generator=stream(0, name)).byte()
        pixels[:, :, 8:, 8:] = 0
        labels = torch.arange(2).repeat_interleave(torch.tensor(n))
        return ImageSet(pixels, labels, ("0", "8"), (0.0,), (1.0,))

    dot, plain = Shortcut(**{"classes": (1,), **shortcut}), images("test", test)
    dotted = [plant(part, dot, stream(0, "dot")) for part in (images("train", (zeros, eights)), plain)]
    return Sets(dotted[0], dotted[1], plain)


def parts_of(sets: Sets, seed: int = 0, **fields: Any) -> parts.Parts:
    return parts.parts_of(Train.parse({"user_corrected_pool_size": 8, **fields}), sets, seed)


def same(one: ImageSet, other: ImageSet) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


def test_the_pool_are_dotted_eights_each_once_without_their_dot() -> None:
    sets = sets_of()
    found = parts_of(sets)
    index = found.index["pool"]
    assert len(set(index)) == len(index) == len(found.pool) == 8
    assert found.found.labels.tolist() == found.pool.labels.tolist() == [1] * 8
    assert same(found.found, sets.train[torch.tensor(index)])
    assert (found.found.images[:, 0, 9:11, 9:11] == 255).all()
    assert not found.pool.images[:, 0, 8:, 8:].any()
    assert torch.equal(found.pool.images[:, :, :8], found.found.images[:, :, :8])
    assert len(found.train) == 70  # they stay among the confounded images, dotted


def test_a_smaller_pool_is_the_beginning_of_a_larger_one_and_depends_on_the_seed_alone() -> None:
    sets = sets_of()
    largest = parts_of(sets, user_corrected_pool_size=30).index["pool"]
    assert sorted(largest) == list(range(40, 70))
    for size in (1, 7, 29):
        more = {
            "batch_size": 10,
            "loss_type": "imbalanced",
            "validation": "confounded",
            "validate_ds_size": 0.2,
        }
        assert parts_of(sets, user_corrected_pool_size=size, **more).index["pool"] == largest[:size]
    assert parts_of(sets, seed=1, user_corrected_pool_size=30).index["pool"] != largest


def test_a_pool_as_large_as_the_class_is_drawn_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    parts_of(sets_of(), user_corrected_pool_size=30)
    assert capsys.readouterr() == ("", "")


def test_a_pool_larger_than_the_class_is_drawn_with_replacement_and_one_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = parts_of(sets_of(), user_corrected_pool_size=300)
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        "warning: a pool of 300 corrected 8s out of 30: drawn with replacement, some stand in it several times"
    ]
    often = Counter(found.index["pool"])
    assert often.total() == len(found.pool) == 300
    assert set(often) <= set(range(40, 70))
    assert len(often) > 25  # of 30, each missed with a chance of 0.00004
    assert len(set(often.values())) > 3, "independent draws, not turns"


def test_only_eights_that_bear_the_dot_are_corrected() -> None:
    sets = sets_of(fraction=0.5, strength=0.5)  # 15 of 30 eights, 10 of 40 zeros
    index = torch.tensor(parts_of(sets, user_corrected_pool_size=15).index["pool"])
    assert sets.train.annotation is not None
    bears = sets.train.annotation.flatten(1).any(1)
    assert int(bears.sum()) == 25
    assert sorted(index.tolist()) == (bears & (sets.train.labels == 1)).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("share", "test"), [(0.4, (980, 974)), (0.4, (20, 15)), (0.25, (7, 9)), (0.8, (30, 6))]
)
def test_validation_is_the_documented_share_of_the_test_images_in_equal_shares_and_the_rest_is_the_test_set(
    share, test
) -> None:
    sets = sets_of(test=test)
    found, n = parts_of(sets, validate_ds_size=share), sum(test)
    held = found.index["validation"]
    assert len(held) == len(set(held)) == len(found.validation) == int(share * n)
    assert len(found.plain) == n - int(share * n)
    for label in (0, 1):
        assert abs(int((found.validation.labels == label).sum()) - share * test[label]) <= 1
    rest = [i for i in range(n) if i not in set(held)]
    for data, images, index in (
        (sets.original, found.validation, held), (sets.confounded, found.other_validation, held),
        (sets.original, found.plain, rest), (sets.confounded, found.dotted, rest),
    ):  # fmt: skip
        assert same(images, data[torch.tensor(index)])
    if test == (980, 974):
        assert (len(found.validation), len(found.plain)) == (781, 1173)  # those of MNIST


def test_validating_on_dotted_digits_takes_the_same_images_with_their_dots() -> None:
    sets = sets_of()
    plain, dotted = parts_of(sets), parts_of(sets, validation="confounded")
    assert same(dotted.validation, plain.other_validation)
    assert same(dotted.other_validation, plain.validation)
    assert not same(dotted.validation, plain.validation)
    assert dotted.index == plain.index
    assert same(dotted.plain, plain.plain)
    assert parts_of(sets, seed=1).index["validation"] != plain.index["validation"]


def test_a_subset_of_the_training_images_has_both_digits_in_their_shares_and_the_pool_is_of_it() -> None:
    sets = sets_of()
    found = parts_of(sets, train_dataset_size=35)
    kept, pool = torch.tensor(found.index["train"]), torch.tensor(found.index["pool"])
    assert len(set(kept.tolist())) == len(found.train) == 35
    assert found.train.labels.bincount().tolist() == [20, 15]
    assert same(found.train, sets.train[kept])
    assert same(found.found, sets.train[pool])  # the record alone gives the images back
    assert parts_of(sets, seed=1, train_dataset_size=35).index["train"] != kept.tolist()


@pytest.mark.parametrize("size", [-1, 70, 71])
def test_all_training_images_are_taken_where_no_fewer_are_asked_for(
    size, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = sets_of()
    found = parts_of(sets, train_dataset_size=size)
    assert same(found.train, sets.train)
    assert found.index["train"] == []
    told = (
        "warning: --train_dataset_size 71: there are 70 training images, all are taken\n"
        if size == 71
        else ""
    )
    assert capsys.readouterr().err == told


def test_batches_are_made_of_these_parts() -> None:
    found = parts_of(sets_of())
    batch = next(parts.mixed(Train.parse({"batch_size": 10}), found, 3).epoch(1))
    torch.testing.assert_close(batch.images[:6], found.train.images[batch.index[:6]].float() / 255)
    torch.testing.assert_close(batch.images[6:], found.pool.images[batch.index[6:]].float() / 255)
    assert batch.is_corrected.tolist() == [False] * 6 + [True] * 4


def test_the_base_network_may_also_be_a_checkpoint_that_holds_a_state_dict(tmp_path: Path) -> None:
    images = sets_of().train
    weights = parts.network(images).state_dict()
    for name, content in (("plain", weights), ("checkpoint", {"epoch": 3, "model_state_dict": weights})):
        torch.save(content, tmp_path / name)
        found = parts.base_network(str(tmp_path / name), images).state_dict()
        assert all(torch.equal(found[key], value) for key, value in weights.items())
    torch.save({"model": weights}, tmp_path / "other")
    with pytest.raises(UserError, match="checkpoint of another network"):
        parts.base_network(str(tmp_path / "other"), images)


# ---- slips -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "told"), [
    ("--user_corrected_pool_size 0", "--user_corrected_pool_size 0 is refused: it must be a whole number, 1 or more"),
    ("--user_corrected_max_per_batch 16", "--batch_size 16, --user_corrected_max_per_batch 16: 16 corrected images do not leave room"),
    ("--user_corrected_max_per_batch -1", "--user_corrected_max_per_batch -1 is refused: it must be a whole number, 0 or more"),
    ("--batch_size 4", "--batch_size 4, --user_corrected_max_per_batch 4: 4 corrected images do not leave room in a batch of 4"),
    ("--batch_size 65", "--batch_size 65, --user_corrected_max_per_batch 4: a set of 60 images is smaller than the 61 that"),
    ("--train_dataset_size 11 --user_corrected_pool_size 5", "--batch_size 16, --user_corrected_max_per_batch 4: a set of 11 images is smaller than the 12 that"),
    ("--validate_ds_size 0.01", "--validate_ds_size 0.01 of 40 test images leaves one part empty"),
    ("--validate_ds_size 1", "--validate_ds_size 1 is refused: it must be a finite number, more than 0 and less than 1"),
    ("--validate_ds_size 0", "--validate_ds_size 0 is refused"),
    ("--validation test", "--validation 'test' is not one of original, confounded"),
    ("--loss_type balance", "--loss_type 'balance' is not one of balanced, imbalanced; did you mean 'balanced'?"),
    ("--grad-clip -1", "--grad_clip -1 is refused: it must be a finite number, 0 or more"),
    ("--learning_rate 0", "--learning_rate 0 is refused: it must be a finite number, more than 0"),
    ("--max_epochs 0", "--max_epochs 0 is refused: it must be a whole number, 1 or more"),
    ("--data_sha256 0123456789abcdef", "08MNIST has changed since this run was named"),
    ("--base_model none.pth", "cannot read none.pth: No such file or directory; perturblab correction build-data makes"),
    ("--data none", "cannot read none/confounded_v1/train.pth: No such file or directory; perturblab correction build-data"),
])  # fmt: skip
def test_a_slip_is_told_in_one_line(words, told, here, made) -> None:
    assert told in refusal(*train_words(made, *words.split()))
    assert not list(here.rglob("*.pth")), "nothing is exported"


def test_training_images_without_a_dotted_eight_are_told_in_one_line(here, made) -> None:
    shutil.copytree(made / "08MNIST", "08MNIST")
    train = Path("08MNIST/confounded_v1/train.pth")
    content = torch.load(train)
    torch.save({**content, "masks": torch.zeros_like(content["masks"])}, train)
    told = refusal(*train_words(made, "--data", "08MNIST"))
    assert told == "no 8 with a dot among the training images, so there is nothing to correct"


# ---- a whole run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """A run that is done: its folder, what it found, its epochs, and the directory that it exported."""

    folder: Path
    results: dict[str, Any]
    rows: list[Row]
    log_dir: Path

    @property
    def weights(self) -> dict[str, Tensor]:
        return torch.load(self.log_dir / "best_model.pth", weights_only=True)


def run(made: Path, where: Path, *more: str) -> Done:
    """``correction train`` in a folder of its own."""
    where.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        does(*train_words(made, *more)[1:])
    (folder,) = (where / "perturblab_runs" / "correction").iterdir()
    (log_dir,) = (where / "runs" / "baseline_experiment").iterdir()
    rows = read_rows(folder / "rows.jsonl")
    return Done(folder, json.loads((folder / "results.json").read_text()), rows, log_dir)


STOPS = ("--early_stopping_patience", "3", "--max_epochs", "60", "--seed", "1")


@pytest.fixture(scope="module")
def done(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """It ends when three epochs brought nothing better, so that the best one is not the last."""
    return run(made, tmp_path_factory.mktemp("done"), *STOPS)


def test_the_results_of_a_run_have_these_keys(done) -> None:
    assert list(done.results) == [
        "schema_version", "run_id", "seed", "epochs_trained", "best_epoch", "best_val_loss", "stopped",
        "train_loss", "train_accuracy", "train_conf_loss", "train_corr_loss", "train_conf_accuracy", "train_corr_accuracy",
        "val_loss", "val_accuracy", "val_accuracy_original", "val_accuracy_confounded", "test_loss", "test_accuracy",
        "reliance", "before", "n", "index", "settings", "history", "content_sha256",
    ]  # fmt: skip
    assert done.results["n"] == {"train": 60, "validation": 16, "test": 24}
    assert done.results["settings"]["batch_size"] == 16  # what differs from the defaults
    assert done.results["seed"] == 1
    assert {"kind", "epoch", "train_loss", "train_conf_loss", "train_corr_loss", "train_accuracy", "val_loss",
            "val_accuracy", "grad_norm", "predicted"} == set(done.rows[0])  # fmt: skip
    assert all(row["grad_norm"] is None for row in done.rows)
    assert done.results["history"]["val_loss"] == [row["val_loss"] for row in done.rows]


def test_corrected_images_teach_a_network_that_saw_only_the_dot_something_of_the_shape(done) -> None:
    before, after = done.results["before"], done.results
    assert before["reliance"]["accuracy_confounded"] > 0.95
    assert before["test_accuracy"] < 0.7
    assert after["test_accuracy"] > before["test_accuracy"] + 0.1
    assert after["reliance"]["flip_rate"] < before["reliance"]["flip_rate"] - 0.1


def test_a_run_stops_and_keeps_an_epoch_as_the_documents_loop_does(done) -> None:
    losses = [row["val_loss"] for row in done.rows]
    assert (done.results["best_epoch"], len(losses)) == by_the_document(1e-4, 3, losses)
    assert done.results["epochs_trained"] == len(losses) == done.results["best_epoch"] + 3 < 60
    assert done.results["best_val_loss"] == losses[done.results["best_epoch"] - 1]
    assert done.results["stopped"] == "patience"
    assert [row["epoch"] for row in done.rows] == list(range(1, len(losses) + 1))


def test_the_exported_weights_are_those_of_the_best_epoch(made, done, tmp_path) -> None:
    best = done.results["best_epoch"]
    there = run(made, tmp_path / "there", *STOPS, "--max_epochs", str(best))  # it ends with that epoch
    assert there.results["stopped"] == "max_epochs"
    assert there.rows == done.rows[:best]
    assert (
        there.results["val_loss"] == done.results["val_loss"] == pytest.approx(done.results["best_val_loss"])
    )
    assert there.weights.keys() == done.weights.keys()
    assert all(torch.equal(there.weights[name], value) for name, value in done.weights.items())
    last = run(made, tmp_path / "last", *STOPS, "--max_epochs", str(best + 3), "--min_delta", "0")
    assert last.rows == done.rows[: len(last.rows)]


# ---- against the document's loop done plainly ------------------------------------------------------------------------


def plain_network(weights: dict[str, Tensor]) -> nn.Sequential:
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 2),
    )  # fmt: skip
    layers.load_state_dict(dict(zip(layers.state_dict(), weights.values(), strict=True)))
    return layers


@dataclass(frozen=True)
class Images:
    """Images as the network sees them, from the files, and their labels."""

    inputs: Tensor
    labels: Tensor

    def __getitem__(self, index: list[int]) -> "Images":
        return Images(self.inputs[index], self.labels[index])


def read(made: Path, name: str) -> Images:
    content = torch.load(made / "08MNIST" / f"{name}.pth", weights_only=True)
    return Images(content["inputs"], content["labels"].argmax(1))


def measured(network: nn.Module, images: Images) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    with torch.no_grad():
        logits = network(images.inputs)
    right = (logits.argmax(1) == images.labels).double().mean()
    return float(cross_entropy(logits, images.labels)), float(right)


def painted(images: Images, bears: Tensor) -> Images:
    """With the documented dot on those that bear it."""
    inputs = images.inputs.clone()
    inputs[bears, :, 25:27, 25:27] = 1
    return Images(inputs, images.labels)


@pytest.mark.parametrize("validation", ["original", "confounded"])
def test_every_number_of_the_results_is_that_of_the_exported_weights_on_the_files(
    made, done, tmp_path, validation
) -> None:
    """The images are found again by the recorded index alone, and dotted by hand."""
    if validation == "confounded":
        done = run(made, tmp_path / "confounded", *STOPS, "--validation", "confounded")
    found, network = done.results, plain_network(done.weights)
    train, clean, test = (
        read(made, name) for name in ("confounded_v1/train", "original/train", "original/test")
    )
    held = found["index"]["validation"]
    rest = [i for i in range(40) if i not in held]
    none, eights = (lambda labels: labels < 0), (lambda labels: labels == 1)

    def on(index: list[int], bears: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        return measured(network, painted(test[index], bears(test[index].labels)))

    selecting = none if validation == "original" else eights
    assert (found["val_loss"], found["val_accuracy"]) == pytest.approx(on(held, selecting), rel=1e-4)
    assert found["val_accuracy_original"] == pytest.approx(on(held, none)[1])
    assert found["val_accuracy_confounded"] == pytest.approx(on(held, eights)[1])
    assert (found["test_loss"], found["test_accuracy"]) == pytest.approx(on(rest, none), rel=1e-4)
    assert found["best_val_loss"] == pytest.approx(found["val_loss"], rel=1e-4)

    pool = clean[found["index"]["pool"]]  # corrected images equal the originals
    conf, corr = measured(network, train), measured(network, pool)
    assert (found["train_conf_loss"], found["train_conf_accuracy"]) == pytest.approx(conf, rel=1e-4)
    assert (found["train_corr_loss"], found["train_corr_accuracy"]) == pytest.approx(corr, rel=1e-4)
    both = [(60 * one + 10 * other) / 70 for one, other in zip(conf, corr, strict=True)]
    assert (found["train_loss"], found["train_accuracy"]) == pytest.approx(tuple(both), rel=1e-4)

    reliance = found["reliance"]
    for name, bears in (
        ("original", none), ("confounded", eights), ("toggled", lambda labels: labels == 0), ("marked", lambda labels: labels >= 0),
    ):  # fmt: skip
        assert reliance[f"accuracy_{name}"] == pytest.approx(on(rest, bears)[1]), name
    base = plain_network(torch.load(made / "model_confounded.pth", weights_only=True))
    assert found["before"]["test_accuracy"] == pytest.approx(measured(base, test[rest])[1])
    dotted = measured(base, painted(test[held], test[held].labels == 1))
    before = found["before"]["val_accuracy_original"], found["before"]["val_accuracy_confounded"]
    assert before == pytest.approx((measured(base, test[held])[1], dotted[1]))
    assert before[0] < before[1], "or one could stand for the other"
    assert found["before"]["val_loss"] != pytest.approx(found["val_loss"], rel=1e-2)


@pytest.mark.parametrize(("loss_type", "weight"), [("balanced", 0.5), ("imbalanced", 1.0)])
def test_three_epochs_are_those_of_the_documents_loop_done_plainly(made, tmp_path, loss_type, weight) -> None:
    """From the base model, Adam at a constant rate, the mean over each batch; what stands in the rows is before each step."""
    words = ("--loss_type", loss_type, "--lambda_weight", str(weight), "--max_epochs", "3", "--seed", "2")
    done = run(made, tmp_path / "run", *words)
    train, clean, test = (
        read(made, name) for name in ("confounded_v1/train", "original/train", "original/test")
    )
    pool, held = clean[done.results["index"]["pool"]], test[done.results["index"]["validation"]]
    network = plain_network(torch.load(made / "model_confounded.pth", weights_only=True))
    adam = torch.optim.Adam(network.parameters(), lr=0.003)
    for row in done.rows:
        seen = []
        for batch in which(done.results["index"]["pool"], row["epoch"], seed=2):
            parts = train[batch[:12].tolist()], pool[batch[12:].tolist()]
            inputs, labels = (
                torch.cat([getattr(part, key) for part in parts]) for key in ("inputs", "labels")
            )
            logits = network(inputs)
            conf, corr = cross_entropy(logits[:12], labels[:12]), cross_entropy(logits[12:], labels[12:])
            total = conf + weight * corr if loss_type == "balanced" else cross_entropy(logits, labels)
            adam.zero_grad()
            total.backward()
            adam.step()
            right = (logits.argmax(1) == labels).double().mean()
            seen.append([float(x.detach()) for x in (total, conf, corr, right)])
        names = ("train_loss", "train_conf_loss", "train_corr_loss", "train_accuracy")
        for name, expected in zip(names, np.mean(seen, 0), strict=True):
            assert row[name] == pytest.approx(expected, rel=1e-3), (row["epoch"], name)
        assert (row["val_loss"], row["val_accuracy"]) == pytest.approx(measured(network, held), rel=1e-3)


def which(pool: list[int], epoch: int, seed: int) -> Iterator[Tensor]:
    """The indices of the batches, as ``MixedSource`` (tested in test_images.py) draws them for sets of these sizes."""
    blank = ImageSet(
        torch.zeros(60, 1, 1, 1, dtype=torch.uint8),
        torch.zeros(60, dtype=torch.int64),
        ("0",),
        (0.0,),
        (1.0,),
    )
    for batch in MixedSource(blank, blank[: len(pool)], 16, 4, seed).epoch(epoch):
        yield batch.index


def test_two_losses_of_one_seed_see_the_same_batches(made, tmp_path, monkeypatch) -> None:
    seen: list[list[Batch]] = []
    plain = MixedSource.epoch

    def recorded(source: MixedSource, number: int, first_step: int = 0) -> Iterator[Batch]:
        for batch in plain(source, number, first_step):
            seen[-1].append(copy.deepcopy(batch))
            yield batch

    monkeypatch.setattr(MixedSource, "epoch", recorded)
    for loss, seed in (("balanced", "3"), ("imbalanced", "3"), ("balanced", "4")):
        seen.append([])
        words = ("--loss_type", loss, "--seed", seed, "--max_epochs", "2", "--lambda_weight", "2")
        run(made, tmp_path / f"{loss}{seed}", *words)
    one, other, another = seen
    assert len(one) == len(other) == 10
    for mine, theirs in zip(one, other, strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)
    assert not torch.equal(one[0].images, another[0].images)


@pytest.mark.parametrize("loss_type", ["balanced", "imbalanced"])
def test_without_corrected_images_a_run_goes_on_with_dotted_ones_and_counts_0_for_the_others(
    made, tmp_path, loss_type
) -> None:
    words = ("--user_corrected_max_per_batch", "0", "--max_epochs", "2", "--loss_type", loss_type)
    for row in run(made, tmp_path / "run", *words).rows:
        assert row["train_corr_loss"] == 0
        assert row["train_loss"] == pytest.approx(row["train_conf_loss"], rel=1e-6)


# ---- names, bytes, clipping, divergence ------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, done, tmp_path) -> None:
    again = run(made, tmp_path / "again", *STOPS)
    assert files_of(again.folder) == files_of(done.folder)
    assert files_of(again.log_dir) == files_of(done.log_dir)
    assert {path.name for path in again.log_dir.iterdir()} >= {"best_model.pth", "best_model.json"}
    other = run(made, tmp_path / "other", *STOPS, "--seed", "2")
    assert other.results["index"] != done.results["index"]
    assert [row["val_loss"] for row in other.rows[:3]] != [row["val_loss"] for row in done.rows[:3]]


def test_no_seed_is_seed_0_and_lambda_does_not_train_the_imbalanced_loss_again(made, here) -> None:
    few = ("--max_epochs", "1", "--loss_type", "imbalanced")
    for more in ((), ("--seed", "0"), ("--lambda_weight", "5")):
        does(*train_words(made, *few, *more)[1:])
    stem = "lr0.003_lossimbalanced_lambda"
    exported = sorted(path.name for path in Path("runs/baseline_experiment").iterdir())
    assert exported == [f"{stem}1.0_pool10", f"{stem}1.0_pool10_seed0", f"{stem}5.0_pool10"]
    assert len(list(Path("perturblab_runs/correction").iterdir())) == 1
    models = {(Path("runs/baseline_experiment") / name / "best_model.pth").read_bytes() for name in exported}
    assert len(models) == 1
    about = json.loads(Path(f"runs/baseline_experiment/{stem}5.0_pool10/best_model.json").read_text())
    assert about["lambda_weight"] == 5.0


def test_a_run_with_the_name_of_another_takes_its_directory_and_says_so(made, here) -> None:
    does(*train_words(made, "--max_epochs", "1")[1:])
    (log_dir,) = Path("runs/baseline_experiment").iterdir()
    (events,) = log_dir.glob("*tfevents*")
    (log_dir / "events.out.tfevents.123.host").write_bytes(b"somebody's")
    told = does(*train_words(made, "--max_epochs", "1", "--user_corrected_max_per_batch", "3")[1:])
    (now,) = log_dir.glob("*tfevents*")  # TensorBoard would show two as one run
    assert now.name != events.name
    assert (log_dir / "events.out.before.123.host").read_bytes() == b"somebody's"
    run_id = events.name.rpartition("-")[2]
    assert told.count(f"it held run {run_id}") == told.count("it held run") == 1, told
    assert told.count("was not made by perturblab; kept as") == 1


@pytest.mark.parametrize("left", ["best_model.json", "events"])
def test_what_a_kill_left_in_the_directory_is_removed_and_taken_for_nobody_elses(made, here, left) -> None:
    does(*train_words(made, "--max_epochs", "1")[1:])
    (log_dir,) = Path("runs/baseline_experiment").iterdir()
    (events,) = log_dir.glob("*tfevents*")
    run_id = events.name.rpartition("-")[2]
    name = events.name if left == "events" else left
    before = sorted(log_dir.iterdir())
    (log_dir / f".{name}.{run_id}abcdefgh.tmp").write_bytes(b"half")
    assert "kept as" not in does(*train_words(made, "--max_epochs", "1")[1:])
    assert sorted(log_dir.iterdir()) == before


def test_what_another_run_is_writing_there_is_left_alone(made, here) -> None:
    does(*train_words(made, "--max_epochs", "1")[1:])
    (log_dir,) = Path("runs/baseline_experiment").iterdir()
    written = log_dir / ".events.out.tfevents.0.perturblab-0123456789.0123456789abcdefgh.tmp"
    written.write_bytes(b"half")
    assert "kept as" not in does(*train_words(made, "--max_epochs", "1")[1:])
    assert written.exists()


def test_clipped_gradients_have_their_length_in_the_rows_and_train_another_network(
    made, done, tmp_path
) -> None:
    free, far, near = (
        run(made, tmp_path / clip, *STOPS, "--max_epochs", "2", "--grad-clip", clip)
        for clip in ("0", "1e9", "0.01")
    )
    assert free.rows == done.rows[:2]
    without = [{**row, "grad_norm": None} for row in far.rows]
    assert without == free.rows  # to the last bit: it is never reached
    assert [row["val_loss"] for row in near.rows] != [row["val_loss"] for row in free.rows]
    assert all(row["grad_norm"] > 0.01 for row in [*far.rows, *near.rows])


@pytest.mark.parametrize("loss_type", ["balanced", "imbalanced"])
def test_a_run_that_diverges_says_so_in_one_line_and_leaves_no_model(made, here, loss_type) -> None:
    words = train_words(made, "--learning_rate", "1e30", "--loss_type", loss_type)
    for _ in range(2):
        code, _, errors = called(*words)
        lines = errors.splitlines()
        assert code == 2
        assert len(lines) == 1, errors
        assert lines[0].startswith("error: ")
        assert "training diverged" in lines[0]
        (folder,) = Path("perturblab_runs/correction").iterdir()
        failure = json.loads((folder / "failure.json").read_text())
        assert failure["kind"] == "diverged"
        assert failure["message"] in lines[0]
        assert not list(here.rglob("results.json"))
        assert not list(here.rglob("best_model.pth"))
        assert not Path("runs").exists()
