"""adaptive-noise, test: what a plain loop measures, from any of the ways in which weights are kept; else one line."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedShuffleSplit
from torch import Tensor, nn

from commandline import called, refusal
from perturblab.datasets import load
from perturblab.images import ImageSet
from perturblab.studies.adaptive_noise import Evaluate, evaluate
from perturblab.studies.adaptive_noise.build import build
from perturblab.studies.adaptive_noise.training import Classifier

WIDTH = 0.5
NAMES = get_args(Classifier)


class Baby(nn.Module):
    """BabyCNN of half its width, written down once more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.fc1 = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.max_pool2d(self.conv1(images).relu(), 2)
        logits: Tensor = self.fc1(maps.flatten(1))
        return logits


@dataclass(frozen=True)
class Digits:
    """Digits in colour of 32 x 32 pixels, normalised by hand."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@pytest.fixture(scope="module")
def digits() -> Digits:
    train, test = load("digits", size=32, channels=3)
    pixels = train.images.double() / 255
    mean, std = pixels.mean(), pixels.std(correction=0)
    return Digits(*(
        part for images in (train, test) for part in (((images.images / 255 - mean) / std).float(), images.labels)
    ))  # fmt: skip


@pytest.fixture(scope="module")
def baby(digits: Digits) -> Baby:
    """Trained a little: classes differ in how well they are told."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = Baby()
        sgd = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        for part in torch.randperm(1433).split(100)[:12]:
            sgd.zero_grad()
            nn.functional.cross_entropy(model(digits.train[part]), digits.train_labels[part]).backward()
            sgd.step()
    return model


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prefixed(model: nn.Module) -> dict[str, Tensor]:
    """As ours and the original scripts' checkpoints spell it."""
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def words(*more: str, classifier: str = "BabyCNN", width: float = WIDTH) -> list[str]:
    return [
        "adaptive-noise", "test", "-c", "x.pth", "--classifier", classifier, "--width", str(width), "--dataset", "digits",
        "--device", "cpu", *more,
    ]  # fmt: skip


def told(*more: str, **options: Any) -> str:
    code, out, errors = called(*words(*more, **options))
    assert (code, errors) == (0, "")
    return out


def by_class(out: str) -> dict[str, tuple[int, str]]:
    """class -> (n, accuracy) of the printed table."""
    rows = re.findall(r"^(\w+) +(\d+) +([\d.]+ %|-)$", out, re.MULTILINE)
    return {name: (int(n), accuracy) for name, n, accuracy in rows}


@torch.no_grad()
def loop(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[str, dict[str, tuple[int, str]]]:
    """The line and the table, from one image at a time."""
    hits, losses = np.zeros(10), []
    for image, label in zip(images, labels, strict=True):
        logits = model(image[None])[0].double()
        hits[label] += int(logits.argmax() == label)
        losses.append(float(logits.logsumexp(0) - logits[label]))
    n = np.bincount(labels, minlength=10)
    table = {str(c): (int(n[c]), f"{100 * hits[c] / n[c]:.2f} %") for c in range(10)}
    return f"test accuracy {100 * hits.sum() / n.sum():.2f} %, loss {np.mean(losses):.4f}, n {n.sum()}", table


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_loss_accuracy_and_the_accuracy_of_each_class_are_those_of_a_plain_loop(here, digits, baby) -> None:
    torch.save(prefixed(baby), "x.pth")
    line, table = loop(baby, digits.test, digits.test_labels)
    out = told()
    assert f"BabyCNN from x.pth on digits: {line}" in out
    assert by_class(out) == table
    assert "n 364" in line
    assert len({accuracy for _, accuracy in table.values()}) > 5


def test_with_test_halves_only_the_half_that_is_the_test_set_is_measured(here, digits, baby) -> None:
    torch.save(prefixed(baby), "x.pth")
    cut = StratifiedShuffleSplit(n_splits=1, train_size=0.5, random_state=42)
    _, half = next(cut.split(np.zeros(364), digits.test_labels))
    line, table = loop(baby, digits.test[half], digits.test_labels[half])
    out = told("--val-source", "test-halves")
    assert f"BabyCNN from x.pth on digits (its half of the test images): {line}" in out
    assert by_class(out) == table
    assert "n 182" in line
    assert line not in told()


@pytest.mark.parametrize("size", ["1", "7", "5000"])
def test_the_batch_size_changes_no_number(here, baby, size) -> None:
    torch.save(prefixed(baby), "x.pth")
    assert told("--batch-size", size) == told()


def test_a_class_without_test_images_is_shown_without_an_accuracy(here, baby) -> None:
    random = np.random.default_rng(0)
    labels = {"train": np.arange(40) % 10, "test": np.array([0, 1, 1, 3, 4, 5, 6, 7, 8, 9])}
    arrays = {
        f"x_{part}": random.integers(0, 256, (len(y), 32, 32, 3), np.uint8) for part, y in labels.items()
    }
    np.savez("holes.npz", **arrays, **{f"y_{part}": y for part, y in labels.items()})
    torch.save(prefixed(baby), "x.pth")
    table = by_class(told("--dataset", "npz:holes.npz"))
    assert table["2"] == (0, "-")
    assert [n for n, _ in table.values()] == [1, 2, 0, 1, 1, 1, 1, 1, 1, 1]


# ---- how weights are kept ------------------------------------------------------------------------------------------

KEPT: dict[str, Callable[[nn.Module], Any]] = {
    "bare keys": lambda m: dict(m.state_dict()),
    "an ordered dictionary": lambda m: m.state_dict(),
    "model_state_dict": lambda m: {"epoch": 3, "model_state_dict": m.state_dict()},
    "model_state_dict with prefixed keys": lambda m: {"model_state_dict": prefixed(m), "acc": 0.5},
    "state_dict": lambda m: {"state_dict": prefixed(m), "hyper_parameters": {"lr": 0.1}},
    "model": lambda m: {"model": m.state_dict(), "optimizer": {"state": {}}, "epoch": 3},
    "parameters": lambda m: dict(m.named_parameters()),
    "half precision": lambda m: {name: value.half().float() for name, value in m.state_dict().items()},
}


@pytest.mark.parametrize("kept", list(KEPT))
def test_weights_are_found_wherever_a_file_keeps_them(here, baby, digits, kept) -> None:
    torch.save(KEPT[kept](baby), "x.pth")
    assert loop(baby, digits.test, digits.test_labels)[0][:20] in told()


def test_the_documents_and_the_codes_spelling_of_a_network_both_work(here, baby) -> None:
    torch.save(prefixed(baby), "x.pth")
    assert told(classifier="baby_cnn") == told(classifier="babycnn") == told()


def test_a_network_with_batchnorm_is_measured_with_its_running_statistics(here) -> None:
    test = load("digits", size=32, channels=3)[1]
    model = build("resnet20", test, 0.25)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running" in name:
                value.uniform_(0.5, 2)
    torch.save(prefixed(model), "x.pth")
    with torch.no_grad():
        accuracy = (
            model.eval()(load("digits", size=32, channels=3)[1].normalise(test.images)).argmax(1)
            == test.labels
        )
    out = told(classifier="resnet20", width=0.25)
    assert f"test accuracy {100 * int(accuracy.sum()) / 364:.2f} %" in out
    assert model.training is False


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(here) -> None:
    assert refusal(*words()) == "cannot read x.pth: No such file or directory"
    default = refusal("adaptive-noise", "test", "--dataset", "digits", "--device", "cpu")
    assert default == "cannot read checkpoints/resnet18_best.pth: No such file or directory"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_damaged_file_is_refused(here, baby, share) -> None:
    torch.save(prefixed(baby), "x.pth")
    content = Path("x.pth").read_bytes()
    Path("x.pth").write_bytes(content[: int(share * len(content))])
    assert refusal(*words()) == "x.pth is damaged or is no checkpoint of torch.save"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "x.pth holds a list, not a checkpoint's dictionary"),
        ({}, "x.pth holds no weights; a state_dict is needed"),
        ({"accuracy": 0.9, "epoch": 3}, "x.pth holds no weights; a state_dict is needed"),
        ({"model": 5}, "x.pth holds no weights under 'model'; a state_dict is needed"),
        ({"state_dict": {}}, "x.pth holds no weights under 'state_dict'; a state_dict is needed"),
        ({1: torch.zeros(2)}, "another network: it lacks conv1.weight and 3 more, has an unknown 1; no other"),
        ({"a": torch.zeros(2), "b": 3}, "has an unknown a and 1 more; no other --classifier fits it either"),
        ({"model.a": torch.zeros(2)}, "has an unknown a; no other --classifier fits it either"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_state_dict_is_refused(here, content, message) -> None:
    torch.save(content, "x.pth")
    assert message in refusal(*words())


@pytest.mark.parametrize("shape", [(), (0,), (4,), (10**6, 0)])
def test_weights_of_impossible_shapes_are_refused_in_one_line(here, baby, shape) -> None:
    torch.save({name: torch.zeros(shape) for name in prefixed(baby)}, "x.pth")
    assert "it has another shape at conv1.weight" in refusal(*words())


def test_weights_beside_other_values_are_refused_by_the_names_of_these(here, baby) -> None:
    torch.save({**prefixed(baby), "model.epoch": 3}, "x.pth")
    assert "it has an unknown epoch; no other --classifier fits it either" in refusal(*words())


def test_weights_of_a_training_that_diverged_are_refused(here, baby) -> None:
    torch.save({**prefixed(baby), "model.fc1.bias": torch.full((10,), torch.nan)}, "x.pth")
    assert refusal(*words()).startswith("x.pth: fc1.bias is not finite; its training diverged")


def test_a_file_that_would_run_code_is_refused(here) -> None:
    torch.save(Baby(), "x.pth")
    assert refusal(*words()).endswith("holds more than tensors and plain values; refused, nothing was run")


# ---- weights of another network ------------------------------------------------------------------------------------


def test_the_classifier_that_the_weights_are_of_is_named(here, baby) -> None:
    torch.save(prefixed(baby), "x.pth")
    message = refusal(*words(classifier="TinyCNN"))
    assert message == (
        "x.pth does not fit --classifier TinyCNN --width 0.5: its shapes are those of --classifier BabyCNN --width 0.5"
    )


def test_at_the_documented_width_the_width_is_not_mentioned(here) -> None:
    torch.save(prefixed(build("BabyCNN", load("digits", size=32, channels=3)[1])), "x.pth")
    message = refusal(*words(classifier="resnet18", width=1.0))
    assert message == "x.pth does not fit --classifier resnet18: its shapes are those of --classifier BabyCNN"


def test_another_width_is_named_and_fits(here, baby, digits) -> None:
    torch.save(prefixed(baby), "x.pth")
    message = refusal(*words(width=1.0))
    assert message.endswith(
        "does not fit --classifier BabyCNN --width 1: its shapes are those of --classifier BabyCNN --width 0.5"
    )
    assert loop(baby, digits.test, digits.test_labels)[0] in told(width=0.5)


def test_another_number_of_classes_is_told(here) -> None:
    some = load("digits", size=32, channels=3)[1]
    seven = ImageSet(some.images[:0], some.labels[:0], tuple("abcdefg"), some.mean, some.std)
    torch.save(prefixed(build("BabyCNN", seven, WIDTH)), "x.pth")
    assert refusal(*words()) == (
        "x.pth tells 7 classes apart, digits has 10; give the --dataset that it was trained on"
    )
    assert refusal(*words(classifier="mlp")).endswith(
        "its shapes are those of --classifier BabyCNN --width 0.5, with 7 classes"
    )


@pytest.mark.parametrize(
    ("classifier", "width"),
    [*((name, 0.33) for name in NAMES), ("resnet18", 0.0625), ("BabyCNN", 1.0), ("TinyCNN", 0.01), ("cnn2", 0.02), ("mlp", 8.0)],
)  # fmt: skip
def test_every_classifier_is_recognised_by_its_shapes_at_any_width(classifier, width) -> None:
    images = ImageSet(
        torch.zeros(0, 3, 32, 32, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), tuple("abcde"), (0.5,) * 3,
        (0.25,) * 3,
    )  # fmt: skip
    with torch.device("meta"):
        weights = build(classifier, images, width).state_dict()
    asked = Evaluate.parse({"classifier": NAMES[NAMES.index(classifier) - 1]})
    found = evaluate.fitting(asked, weights, images)
    assert (found.classifier, found.classes) == (classifier, 5)
    with torch.device("meta"):
        again = build(classifier, images, found.width).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in weights.items()}
    assert found.width == float(f"{found.width:.3g}")  # short enough to be typed


def test_a_network_that_is_none_of_ours_is_refused_with_what_differs(here) -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).state_dict(), "x.pth")
    assert refusal(*words()) == (
        "x.pth is a checkpoint of another network: it lacks conv1.weight and 3 more, has an unknown 1.weight and 1 more; "
        "no other --classifier fits it either"
    )
