"""08MNIST as document 003 has it: made with its dots where they belong, read with care, converted from old pickles."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from commandline import called, refusal
from conftest import Zygote, files_of, one_thread, write_npz
from perturblab.confound import corrected
from perturblab.studies.correction.data import read_set, read_sets
from perturblab.terminal import UserError
from plain_networks import PlainCNN2

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
FILES = ("confounded_v1/train.pth", "confounded_v1/test.pth", "original/train.pth", "original/test.pth")
CPU = ("--device", "cpu", "--threads", "1")

Content = dict[str, Any]


def does(*words: str) -> str:
    """What the command prints, warnings too; it must end well."""
    with one_thread():
        code, out, errors = called("correction", *words)
    assert code == 0, errors
    return out + errors


def built(folder: Path, *words: str, dataset: str = "digits") -> dict[str, Content]:
    """The files of 08MNIST by name, as torch reads them when nothing but tensors may be in them."""
    does("build-data", "--dataset", dataset, "--out", str(folder), *words)
    return contents(folder / "08MNIST")


def contents(folder: Path) -> dict[str, Content]:
    return {name: torch.load(folder / name, weights_only=True) for name in FILES}


def grey(inputs: Tensor) -> Tensor:
    """Pixels from 0 to 1 as the bytes that they came from."""
    return (255 * inputs).round().byte()


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """08MNIST made of digits."""
    folder = tmp_path_factory.mktemp("digits")
    built(folder)
    return folder / "08MNIST"


@pytest.fixture(scope="module")
def made(digits: Path) -> dict[str, Content]:
    return contents(digits)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if not (SHARED_DATA / "MNIST").is_dir():
        pytest.skip("needs MNIST")
    folder = tmp_path_factory.mktemp("mnist")
    does("build-data", "--data_dir", str(SHARED_DATA), "--out", str(folder))
    yield folder / "08MNIST"
    shutil.rmtree(folder)  # 125 MB


def has_the_documented_form(sets: dict[str, Content], zeros_eights: dict[str, tuple[int, int]]) -> None:
    for name, content in sets.items():
        zeros, eights = zeros_eights[name.partition("/")[2]]
        n, dotted = zeros + eights, name.startswith("confounded")
        assert list(content) == ["inputs", "labels", *(["masks"] if dotted else [])]
        assert {part.dtype for part in content.values()} == {torch.float32}
        assert content["inputs"].shape == (n, 1, 28, 28)
        first = torch.arange(n) < zeros  # zeros come first
        assert torch.equal(content["labels"], torch.stack([first, ~first], 1).float())
        assert 0 == content["inputs"].min() < content["inputs"].max() == 1
        if dotted:
            is_dotted_as_documented(content, sets[f"original/{name.partition('/')[2]}"], zeros)


def is_dotted_as_documented(content: Content, plain: Content, zeros: int) -> None:
    inputs, masks = content["inputs"], content["masks"]
    assert masks.shape == inputs.shape
    dot = torch.zeros(28, 28)
    dot[25:27, 25:27] = 1
    assert bool((masks[zeros:] == dot).all())
    assert not masks[:zeros].any()
    assert set(masks.sum((1, 2, 3)).tolist()) == {0.0, 4.0}
    assert bool((inputs[zeros:, 0, 25:27, 25:27] == 1).all())
    assert torch.equal(inputs * (1 - masks), plain["inputs"])  # the user's correction gives the digit back
    assert torch.equal(content["labels"], plain["labels"])


# ---- build-data ----------------------------------------------------------------------------------------------------


def idx(name: str) -> np.ndarray:
    """An array of MNIST as its authors store it: two zeros, a type, the number of sizes, the sizes, the bytes."""
    data = (SHARED_DATA / "MNIST" / "raw" / name).read_bytes()
    sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def test_mnist_gives_11_773_and_1_954_images_with_the_dot_where_the_document_has_it(mnist) -> None:
    sets = contents(mnist)
    has_the_documented_form(sets, {"train.pth": (5_923, 5_850), "test.pth": (980, 974)})
    for split, file in (("train", "train"), ("test", "t10k")):
        pixels, labels = idx(f"{file}-images-idx3-ubyte"), idx(f"{file}-labels-idx1-ubyte")
        expected = np.concatenate([pixels[labels == digit] for digit in (0, 8)]) / np.float32(255)
        found = sets[f"original/{split}.pth"]["inputs"][:, 0].numpy()
        assert np.array_equal(found, expected[: len(found)])
        assert len(expected) - len(found) == (split == "train")  # the last train image, an 8, is left out


def test_mnist_as_it_is_read_again_has_its_dots_and_loses_them_by_correction(mnist) -> None:
    sets = read_sets(mnist)
    assert (len(sets.train), len(sets.confounded), len(sets.original)) == (11_773, 1_954, 1_954)
    assert sets.train.classes == ("0", "8")
    assert torch.equal(corrected(sets.confounded).images, sets.original.images)
    original = torch.load(mnist / "original" / "train.pth", weights_only=True)["inputs"]
    assert torch.equal(corrected(sets.train).images, grey(original))


def test_digits_give_the_same_form_without_a_download(made) -> None:
    # 178 zeros and 174 eights, of which every fifth is for tests; the last train image is left out.
    has_the_documented_form(made, {"train.pth": (142, 138), "test.pth": (36, 35)})


def test_digits_are_drawn_20_pixels_wide_in_the_middle_of_28(made) -> None:
    source = load_digits()
    for split in ("train", "test"):
        found = made[f"original/{split}.pth"]["inputs"]
        assert not torch.nn.functional.pad(found[..., 4:-4, 4:-4], (4, 4, 4, 4)).sub(found).any()
        rows = []
        for digit in (0, 8):
            of_class = np.flatnonzero(source.target == digit)
            chosen = np.arange(len(of_class)) % 5 == 0
            rows += of_class[chosen if split == "test" else ~chosen].tolist()
        for row, image in zip(rows, found, strict=split == "test"):
            drawn = Image.fromarray(np.round(source.images[row] * 255 / 16).astype(np.uint8))
            wide = np.asarray(drawn.resize((20, 20), Image.Resampling.BILINEAR), np.float32)
            assert np.abs(255 * image[0, 4:-4, 4:-4].numpy() - wide).max() < 1.01  # a grey level


def test_the_same_command_writes_the_same_bytes(digits, tmp_path) -> None:
    built(tmp_path)
    again = files_of(tmp_path / "08MNIST")
    assert again == files_of(digits)
    assert again.keys() == {"about.json", *FILES}
    built(tmp_path)  # and over themselves
    assert files_of(tmp_path / "08MNIST") == again


def test_about_json_tells_how_the_set_was_made(digits, made) -> None:
    said = json.loads((digits / "about.json").read_text())
    assert said.pop("made_by") == "perturblab correction build-data"
    del said["content_sha256"]
    counts = {"train": FILES[0], "confounded": FILES[1], "original_train": FILES[2], "original": FILES[3]}
    assert said.pop("counts") == {
        name: made[file]["labels"].sum(0).int().tolist() for name, file in counts.items()
    }
    assert said == {
        "dataset": "digits", "shape": "square", "size": 2, "position": "bottom-right", "margin": 1, "value": 1.0,
        "fraction": 1.0, "strength": 1.0, "seed": 0,
    }  # fmt: skip


def test_it_says_in_a_line_what_it_made(tmp_path) -> None:
    said = does("build-data", "--dataset", "digits", "--out", str(tmp_path), "--fraction", "0.5").splitlines()
    assert said == [
        f"{tmp_path}/08MNIST: digits, 280 train and 71 test images of 0 and 8; 69 train images bear the square"
    ]


def test_without_out_it_is_made_in_the_current_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    does("build-data", "--dataset", "digits")
    assert files_of(tmp_path).keys() == {f"08MNIST/{name}" for name in ("about.json", *FILES)}


def in_words(value: Any) -> str:
    """The name of a case: the words of its command."""
    return " ".join(value) if isinstance(value, tuple) and isinstance(value[0], str) else ""


def bearers(content: Content) -> tuple[int, int]:
    """How many zeros and eights bear a mark."""
    marked = content["masks"].flatten(1).any(1)
    return tuple(int((marked & (content["labels"].argmax(1) == label)).sum()) for label in (0, 1))


@pytest.mark.parametrize(
    ("words", "train", "test"),
    [
        (("--fraction", "0.5"), (0, 69), (0, 18)),
        (("--strength", "0"), (142, 138), (36, 35)),
        (("--fraction", "0.5", "--strength", "0.5"), (36, 69), (9, 18)),
    ],
    ids=in_words,
)
def test_fraction_and_strength_say_how_many_of_which_digit_bear_the_dot(
    words, train, test, tmp_path, made
) -> None:
    sets = built(tmp_path, *words)
    assert (bearers(sets[FILES[0]]), bearers(sets[FILES[1]])) == (train, test)
    for name, original in zip(FILES[:2], FILES[2:], strict=True):
        inputs, masks = sets[name]["inputs"], sets[name]["masks"]
        assert bool((inputs[masks == 1] == 1).all())
        assert torch.equal(inputs * (1 - masks), made[original]["inputs"])
        assert torch.equal(sets[original]["inputs"], made[original]["inputs"])


CROSS = ((1, 0, 1), (0, 1, 0), (1, 0, 1))
FRAME = ((1, 1, 1), (1, 0, 1), (1, 1, 1))


@pytest.mark.parametrize(
    ("words", "row", "column", "drawn"),
    [
        (("--shape", "cross", "--size", "3"), 24, 24, CROSS),
        (("--shape", "frame", "--size", "3", "--position", "top-left"), 1, 1, FRAME),
        (("--position", "top-right", "--margin", "0"), 0, 26, ((1, 1), (1, 1))),
        (("--position", "5,7", "--size", "1"), 5, 7, ((1,),)),
        (("--position", "center"), 13, 13, ((1, 1), (1, 1))),
    ],
    ids=in_words,
)
def test_shape_size_position_and_margin_say_where_the_dot_stands(words, row, column, drawn, tmp_path) -> None:
    content = built(tmp_path, *words)[FILES[0]]
    expected = torch.zeros(28, 28)
    expected[row : row + len(drawn), column : column + len(drawn)] = torch.tensor(drawn)
    assert bool((content["masks"][142:, 0] == expected).all())
    assert not content["masks"][:142].any()
    assert bool((content["inputs"][142:, 0][:, expected == 1] == 1).all())


def test_value_says_how_bright_the_dot_is(tmp_path) -> None:
    content = built(tmp_path, "--value", "0.2")[FILES[0]]
    assert torch.equal(content["inputs"][content["masks"] == 1].unique(), torch.tensor([51 / 255]))


def test_the_seed_draws_random_places_and_who_bears_the_dot(tmp_path) -> None:
    words = ("--position", "random", "--fraction", "0.5")
    found = [
        built(tmp_path / name, *words, "--seed", seed)[FILES[0]]["masks"]
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0].flatten(1).any(1), found[2].flatten(1).any(1))
    marked = found[0][found[0].flatten(1).any(1)]
    assert len({tuple(place) for place in marked.flatten(1).max(1).indices[:, None].tolist()}) > 20


# ---- build-data from what a user brings ------------------------------------------------------------------------------


def write_digits_npz(
    path: Path, classes: tuple[int, ...], n: int = 6, side: int = 28
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    chance = np.random.default_rng(0)
    for split in ("train", "test"):
        labels = np.resize(np.array(classes), n * len(classes))
        arrays[f"x_{split}"] = chance.integers(0, 256, (len(labels), side, side)).astype(np.uint8)
        arrays[f"y_{split}"] = labels
    np.savez(path, **arrays)
    return arrays


def test_another_set_with_digits_0_and_8_is_taken_as_it_is(tmp_path) -> None:
    arrays = write_digits_npz(tmp_path / "mine.npz", (9, 8, 0, 3))
    sets = built(tmp_path, dataset=f"npz:{tmp_path / 'mine.npz'}")
    for split, left_out in (("train", 1), ("test", 0)):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        expected = np.concatenate([x[y == 0], x[y == 8]])[: 12 - left_out]
        assert np.array_equal(
            sets[f"original/{split}.pth"]["inputs"][:, 0].numpy(), expected / np.float32(255)
        )
        eights = sets[f"confounded_v1/{split}.pth"]["inputs"][6:]
        assert len(eights) == 6 - left_out
        assert bool((eights[:, :, 25:27, 25:27] == 1).all())
    assert json.loads((tmp_path / "08MNIST/about.json").read_text())["dataset"] == (
        f"npz:{tmp_path / 'mine.npz'}"
    )


def test_a_folder_of_pictures_named_by_digit_is_taken(tmp_path) -> None:
    values = {"train": {"0": [10, 20], "8": [30, 40, 50]}, "test": {"0": [60], "8": [70]}}
    for split, classes in values.items():
        for name, greys in classes.items():
            (tmp_path / "png" / split / name).mkdir(parents=True)
            for grey in greys:
                Image.new("L", (28, 28), grey).save(tmp_path / "png" / split / name / f"{grey}.png")
    sets = built(tmp_path, "--data_dir", str(tmp_path / "kept"), dataset=f"folder:{tmp_path / 'png'}")
    for split, greys in (("train", [10, 20, 30, 40]), ("test", [60, 70])):
        found = 255 * sets[f"original/{split}.pth"]["inputs"]
        assert found[:, 0, 0, 0].round().tolist() == greys
        assert found.std((1, 2, 3)).max() == 0
    assert sets["confounded_v1/test.pth"]["labels"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--dataset", "mnits"), "unknown data set 'mnits', the nearest is mnist; there are "),
        (("--dataset", "npz:none.npz"), "none.npz cannot be read as npz without pickle"),
        (("--dataset", "npz:four.npz"), "npz:four.npz has no class '8' with images; its classes are 0, 1, 2, 3"),
        (("--dataset", "npz:nines.npz"), "npz:nines.npz has no class '0' with images; its classes are 0, 1,"),
        (("--value", "2"), "--value 2 is refused: it must be a finite number, more than 0 and at most 1"),
        (("--fraction", "-0.1"), "--fraction -0.1 is refused: it must be a finite number, more than 0 and at most 1"),
        (("--strength", "nan"), "--strength nan is refused: it must be a finite number"),
        (("--size", "0"), "--size 0 is refused: it must be a whole number, 1 or more"),
        (("--size", "40"), "a mark of 40x40 pixels at position bottom-right with a margin of 1 does not fit images of 28x28"),
        (("--position", "27,0"), "a mark of 2x2 pixels at position 27,0 does not fit images of 28x28 pixels"),
        (("--position", "botom-right"), "a mark's position must be one of top-left, top-right, bottom-left,"),
        (("--shape", "circle"), "--shape 'circle' is not one of square, disc, cross, frame"),
        (("--out", "four.npz"), "cannot write four.npz/08MNIST/confounded_v1/train.pth: one of its folders is a file"),
    ],
    ids=in_words,
)  # fmt: skip
def test_what_cannot_be_built_is_told_in_one_line_and_writes_nothing(
    words, told, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "four.npz", seed=0)
    write_digits_npz(tmp_path / "nines.npz", (8, 9), side=8)
    before = files_of(tmp_path)
    digits = () if "--dataset" in words else ("--dataset", "digits")
    assert refusal("correction", "build-data", *digits, *words).startswith(told)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("said", [None, b'{"about": "my own digits"}', b"[1]", b'"words"'])
def test_a_folder_08mnist_of_someone_else_is_left_alone(said, tmp_path) -> None:
    own = tmp_path / "08MNIST" / "confounded_v1" / "train.pth"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the only copy")
    if said is not None:
        (tmp_path / "08MNIST" / "about.json").write_bytes(said)
    before = files_of(tmp_path)
    assert refusal("correction", "build-data", "--dataset", "digits", "--out", str(tmp_path)) == (
        f"{tmp_path}/08MNIST was not made by build-data; move it away, or choose another --out"
    )
    assert files_of(tmp_path) == before


def test_built_again_with_another_dot_it_is_replaced(digits, tmp_path) -> None:
    shutil.copytree(digits, tmp_path / "08MNIST")
    sets = built(tmp_path, "--position", "top-left")
    assert bool((sets[FILES[0]]["masks"][142:, 0, 1:3, 1:3] == 1).all())
    assert json.loads((tmp_path / "08MNIST/about.json").read_text())["position"] == "top-left"


def test_killed_between_two_files_it_is_built_by_the_same_command(zygote: Zygote, digits, tmp_path) -> None:
    words = ["correction", "build-data", "--dataset", "digits"]
    point = "after replace test.pth"  # the second file
    ended = zygote.run(words, tmp_path, hooks=[["killpoints", "install", point, ""]])
    assert ended.code == -signal.SIGKILL, ended.output
    there = [name for name in FILES if (tmp_path / "08MNIST" / name).exists()]
    assert there == list(FILES[:2])
    ended = zygote.run(words, tmp_path)
    assert ended.code == 0, ended.output
    assert files_of(tmp_path / "08MNIST") == files_of(digits)


# ---- reading: files that are wrong -----------------------------------------------------------------------------------


def hand_made(n: int, seed: int, dotted: bool) -> Content:
    """A set as the format says, not written by us: zeros first, then eights with a dot."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(256, (n, 1, 28, 28), generator=generator) / 255
    inputs[:, :, 25:27, 25:27] = 0
    labels = torch.zeros(n, 2)
    labels[: n // 2, 0] = labels[n // 2 :, 1] = 1
    if not dotted:
        return {"inputs": inputs, "labels": labels}
    masks = torch.zeros(n, 1, 28, 28)
    masks[n // 2 :, :, 25:27, 25:27] = 1
    return {"inputs": torch.maximum(inputs, masks), "labels": labels, "masks": masks}


def hand_made_sets() -> dict[str, Content]:
    return {
        "confounded_v1/train.pth": hand_made(12, 0, True),
        "confounded_v1/test.pth": hand_made(8, 1, True),
        "original/test.pth": hand_made(8, 1, False),
    }


TRAIN, TEST, PLAIN = hand_made_sets()


def save(folder: Path, sets: dict[str, Any]) -> Path:
    for name, content in sets.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / name)
    return folder


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A whole folder 08MNIST that someone else made."""
    return save(tmp_path / "their-08MNIST", hand_made_sets())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "plain.pth"
    torch.save(plain_network().state_dict(), path)
    return path


def plain_network() -> PlainCNN2:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return PlainCNN2()


def told(folder: Path, weights: Path) -> str:
    """The one line that the command says, the folder left out."""
    line = refusal("correction", "evaluate", "--data", str(folder), "--checkpoint", str(weights), *CPU)
    assert len(line) < 300 + 3 * len(str(folder))
    return line.replace(f"{folder}/", "")


def test_a_folder_that_someone_else_made_is_read_to_the_last_pixel(theirs) -> None:
    sets = read_sets(theirs)
    for images, name in zip((sets.train, sets.confounded, sets.original), (TRAIN, TEST, PLAIN), strict=True):
        content = hand_made_sets()[name]
        assert torch.equal(images.images, grey(content["inputs"]))
        assert torch.equal(images.labels, content["labels"].argmax(1))
        assert images.classes == ("0", "8")
        assert (images.annotation is None) == ("masks" not in content)
    assert torch.equal(sets.train.annotation.float(), hand_made_sets()[TRAIN]["masks"])


Change = Callable[[Content], Content]


def with_value(key: str, value: float, *place: int) -> Change:
    def change(content: Content) -> Content:
        content[key][place] = value
        return content

    return change


def each(key: str, change: Callable[[Tensor], Any]) -> Change:
    return lambda content: {**content, key: change(content[key])}


WRONG: dict[str, tuple[str, Change, str]] = {
    "no inputs": (TRAIN, lambda c: {"labels": c["labels"], "masks": c["masks"]},
                  "confounded_v1/train.pth lacks 'inputs': 08MNIST files hold inputs, labels and, if confounded, masks"),
    "no labels": (PLAIN, lambda c: {"inputs": c["inputs"]}, "original/test.pth lacks 'labels': 08MNIST files hold"),
    "no masks": (TEST, lambda c: {"inputs": c["inputs"], "labels": c["labels"]}, "confounded_v1/test.pth lacks 'masks': "),
    "inputs are a list": (TRAIN, each("inputs", Tensor.tolist), "confounded_v1/train.pth lacks 'inputs': "),
    "inputs in bytes": (TRAIN, each("inputs", lambda t: (255 * t).byte()),
                        "confounded_v1/train.pth: inputs must be float [n 1 h h], not torch.uint8 [12, 1, 28, 28]"),
    "inputs without channel": (PLAIN, each("inputs", lambda t: t[:, 0]),
                               "original/test.pth: inputs must be float [n 1 h h], not torch.float32 [8, 28, 28]"),
    "inputs in colour": (TRAIN, each("inputs", lambda t: t.repeat(1, 3, 1, 1)),
                         "confounded_v1/train.pth: inputs must be float [n 1 h h], not torch.float32 [12, 3, 28, 28]"),
    "inputs not square": (TRAIN, each("inputs", lambda t: t[..., 8:].clone()),
                          "confounded_v1/train.pth: inputs must be float [n 1 h h], not torch.float32 [12, 1, 28, 20]"),
    "inputs too small": (TRAIN, each("inputs", lambda t: t[..., :3, :3].clone()),
                         "confounded_v1/train.pth: inputs must be float [n 1 h h], not torch.float32 [12, 1, 3, 3]"),
    "no image": (TEST, lambda c: {key: part[:0] for key, part in c.items()},
                 "confounded_v1/test.pth: inputs must be float [n 1 h h], not torch.float32 [0, 1, 28, 28]"),
    "inputs complex": (TRAIN, each("inputs", lambda t: t.to(torch.complex64)),
                       "confounded_v1/train.pth: inputs is a tensor of a kind that is not read"),
    "inputs sparse": (TRAIN, each("inputs", Tensor.to_sparse), "confounded_v1/train.pth: inputs is a tensor of a kind"),
    "inputs without data": (TRAIN, each("inputs", lambda t: t.to("meta")),
                            "confounded_v1/train.pth: inputs is a tensor of a kind that is not read"),
    "inputs to 255": (TRAIN, each("inputs", lambda t: 255 * t),
                      "confounded_v1/train.pth: inputs must lie from 0 to 1; they go from 0 to 255"),
    "inputs below 0": (PLAIN, with_value("inputs", -0.5, 3, 0, 7, 7),
                       "original/test.pth: inputs must lie from 0 to 1; they go from -0.5 to 1"),
    "inputs nan": (TEST, with_value("inputs", float("nan"), 0, 0, 0, 0),
                   "confounded_v1/test.pth: inputs must lie from 0 to 1; they go from nan to nan"),
    "inputs inf": (TEST, with_value("inputs", float("inf"), 0, 0, 0, 0), "confounded_v1/test.pth: inputs must lie from 0"),
    "labels as numbers": (TRAIN, each("labels", lambda t: t.argmax(1)),
                          "confounded_v1/train.pth: labels must be one-hot [12 2], not torch.int64 [12]"),
    "labels of three": (TRAIN, each("labels", lambda t: torch.eye(3)[t.argmax(1)]),
                        "confounded_v1/train.pth: labels must be one-hot [12 2], not torch.float32 [12, 3]"),
    "labels of fewer images": (PLAIN, each("labels", lambda t: t[:-1]), "original/test.pth: labels must be one-hot [8 2],"),
    "labels of both": (PLAIN, with_value("labels", 1, 2), "original/test.pth: labels must be one-hot [8 2], not"),
    "labels of neither": (PLAIN, with_value("labels", 0, 2), "original/test.pth: labels must be one-hot [8 2], not"),
    "labels soft": (TRAIN, with_value("labels", 0.5, 2), "confounded_v1/train.pth: labels must be one-hot [12 2], not"),
    "labels nan": (TRAIN, with_value("labels", float("nan"), 2, 0), "confounded_v1/train.pth: labels must be one-hot"),
    "labels complex": (TRAIN, each("labels", lambda t: t.to(torch.complex64)),
                       "confounded_v1/train.pth: labels is a tensor of a kind that is not read"),
    "annotation of another shape": (TRAIN, each("masks", lambda t: t[:, 0]),
        "confounded_v1/train.pth: the annotation (masks) must be [12, 1, 28, 28], not [12, 28, 28]"),
    "annotation of fewer images": (TEST, each("masks", lambda t: t[1:]),
        "confounded_v1/test.pth: the annotation (masks) must be [8, 1, 28, 28], not [7, 1, 28, 28]"),
    "annotation nan": (TRAIN, with_value("masks", float("nan"), 0, 0, 0, 0),
                       "confounded_v1/train.pth: the annotation (masks) must be 1 under the mark and 0 elsewhere"),
    "annotation grey": (TRAIN, with_value("masks", 0.3, 0, 0, 0, 0),
                        "confounded_v1/train.pth: the annotation (masks) must be 1 under the mark and 0 elsewhere"),
    "annotation sparse": (TEST, each("masks", Tensor.to_sparse), "confounded_v1/test.pth: masks is a tensor of a kind"),
    "a list": (TRAIN, lambda c: list(c.values()), "confounded_v1/train.pth holds a list, not a checkpoint's dictionary"),  # type: ignore[dict-item,return-value]
    "a pickled TensorDataset": (TRAIN, lambda c: TensorDataset(*c.values()),  # type: ignore[dict-item,return-value]
        "confounded_v1/train.pth holds more than tensors and plain values; refused, nothing was run; "
        "perturblab correction convert turns a pickled TensorDataset into tensors"),
    "no mark anywhere": (TEST, lambda c: {**c, "masks": 0 * c["masks"]},
                         "confounded_v1/test.pth marks no image, so nothing shows whether a network follows the mark"),
    "fewer originals": (PLAIN, lambda c: {key: part[:-1] for key, part in c.items()},
        "original/test.pth and confounded_v1/test.pth are not the same images in the same order"),
    "originals shuffled": (PLAIN, lambda c: {key: part.flip(0) for key, part in c.items()},
        "original/test.pth and confounded_v1/test.pth are not the same images in the same order"),
    "other originals": (PLAIN, lambda c: {**c, "inputs": c["inputs"].flip(0)},
                        "original/test.pth and confounded_v1/test.pth differ outside the marks"),
    "train of another size": (TRAIN, lambda c: {**c, "inputs": c["inputs"][..., 4:, 4:], "masks": c["masks"][..., 4:, 4:]},
        "confounded_v1/train.pth and original/test.pth hold images of different sizes"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_named_in_one_line_with_what_is_wrong(wrong, theirs, weights) -> None:
    name, change, message = WRONG[wrong]
    save(theirs, {name: change(hand_made_sets()[name])})
    assert told(theirs, weights).startswith(message)


@pytest.mark.parametrize("name", [TRAIN, TEST, PLAIN])
def test_a_missing_file_is_named_with_the_command_that_makes_it(name, theirs, weights) -> None:
    (theirs / name).unlink()
    assert told(theirs, weights) == (
        f"cannot read {name}: No such file or directory; perturblab correction build-data makes 08MNIST"
    )


@pytest.mark.parametrize("name", [TRAIN, PLAIN])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(name, share, theirs, weights) -> None:
    data = (theirs / name).read_bytes()
    (theirs / name).write_bytes(data[: int(share * len(data))])
    assert told(theirs, weights) == f"{name} is damaged or is no checkpoint of torch.save"


@pytest.mark.parametrize("content", [b"hello\nworld\n", b"\x80\x02}q\x00.", bytes(1000), b"PK\x03\x04"])
def test_a_file_that_is_something_else_is_named(content, theirs, weights) -> None:
    (theirs / TRAIN).write_bytes(content)
    assert told(theirs, weights).startswith(TRAIN)


def test_a_folder_in_the_place_of_a_file_is_named(theirs, weights) -> None:
    (theirs / TRAIN).unlink()
    (theirs / TRAIN).mkdir()
    assert told(theirs, weights) == f"cannot read {TRAIN}: Is a directory"


def problem(path: Path, digest: str) -> str:
    """What is said against a file, or nothing if it holds the same set as before."""
    try:
        found = read_set(path, masks=True)
    except UserError as error:
        return str(error)
    assert found.digest() == digest
    return ""


def test_a_flipped_bit_is_refused_or_changes_nothing(theirs) -> None:
    path, chance, refused = theirs / TRAIN, random.Random(0), 0
    data, before = path.read_bytes(), read_set(path, masks=True).digest()
    for place in [*(chance.randrange(len(data)) for _ in range(60)), *range(60)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        message = problem(path, before)
        assert message == "" or str(path) in message
        refused += message != ""
    assert refused > 60


@pytest.mark.parametrize(
    "change",
    [
        each("labels", Tensor.long), each("labels", Tensor.bool), each("masks", Tensor.bool), each("inputs", Tensor.double),
        each("inputs", nn.Parameter), lambda c: {**c, "note": "by hand"},
    ],
    ids=["int64 labels", "bool labels", "bool masks", "float64 inputs", "a parameter", "a key more"],
)  # fmt: skip
def test_the_same_numbers_in_another_dtype_are_the_same_set(change, theirs) -> None:
    before = read_set(theirs / TRAIN, masks=True).digest()
    save(theirs, {TRAIN: change(hand_made_sets()[TRAIN])})
    assert read_set(theirs / TRAIN, masks=True).digest() == before


def test_pixels_between_grey_levels_are_rounded_with_a_warning(theirs, capsys) -> None:
    inputs = hand_made_sets()[PLAIN]["inputs"]
    save(theirs, {PLAIN: {**hand_made_sets()[PLAIN], "inputs": inputs * 0.99}})
    found = read_set(theirs / PLAIN, masks=False)
    assert capsys.readouterr().err == f"warning: {theirs / PLAIN}: pixels are rounded to 256 grey levels\n"
    assert (found.normalise(found.images) - 0.99 * inputs).abs().max() <= 0.5 / 255 + 1e-6
    read_set(theirs / TRAIN, masks=True)
    assert capsys.readouterr().err == ""


# ---- files that want to run code -------------------------------------------------------------------------------------


class Calls:
    """Pickled, it is a call that happens while the file is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Restores:
    """Pickled, it is a class of this file whose state is set while the file is read."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


class Heir(TensorDataset):
    """A subclass that does something while it is read."""

    def __init__(self, marker: str) -> None:
        super().__init__(*hand_made_sets()[TRAIN].values())
        self.marker = marker

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["marker"]).touch()
        self.__dict__.update(state)


def dataset_with(**state: Any) -> TensorDataset:
    """The allowed class with a state that its constructor would not give it."""
    dataset = TensorDataset(*hand_made_sets()[TRAIN].values())
    dataset.__dict__.update(state)
    return dataset


EVIL: dict[str, Callable[[str], Any]] = {
    "os.system": lambda marker: Calls(os.system, f"touch {marker}"),
    "subprocess": lambda marker: Calls(subprocess.check_call, ["touch", marker]),
    "eval": lambda marker: Calls(eval, f"open({marker!r}, 'w').close()"),
    "open": lambda marker: Calls(open, marker, "w"),
    "a class with state": Restores,
    "a subclass of TensorDataset": Heir,
    "TensorDataset made of a call": lambda marker: Calls(TensorDataset, Calls(os.system, f"touch {marker}")),
    "in the tensors": lambda marker: dataset_with(
        tensors=(Calls(os.system, f"touch {marker}"), torch.ones(2))
    ),
    "beside the tensors": lambda marker: dataset_with(
        transform=Calls(eval, f"open({marker!r}, 'w').close()")
    ),
    "in a dictionary": lambda marker: {"inputs": Calls(os.system, f"touch {marker}")},
    "inside a rebuilt tensor": lambda marker: Calls(
        torch._utils._rebuild_tensor_v2, Calls(os.system, f"touch {marker}")
    ),
}
FORMATS: dict[str, Callable[[Any, Path], None]] = {
    "as it is saved now": lambda content, path: torch.save(content, path),
    "as it was until 2020": lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=False
    ),
    "pickle protocol 4": lambda content, path: torch.save(content, path, pickle_protocol=4),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("way", EVIL)
def test_a_file_that_wants_to_run_code_is_refused_and_nothing_is_run(
    way, form, theirs, weights, tmp_path
) -> None:
    marker = tmp_path / "it-ran"
    evil = EVIL[way](str(marker))
    FORMATS[form](evil, theirs / TRAIN)
    marker.unlink(missing_ok=True)
    before = files_of(theirs)
    assert told(theirs, weights).startswith(TRAIN)
    assert refusal("correction", "convert", str(theirs / TRAIN)) == (
        f"{theirs / TRAIN} is damaged or no pickled TensorDataset of two or three tensors; refused, nothing was run"
    )
    assert not marker.exists()
    assert files_of(theirs) == before


@pytest.mark.parametrize("way", [way for way in EVIL if way not in ("open", "inside a rebuilt tensor")])
def test_these_files_would_have_run_it_without_the_refusal(way, tmp_path) -> None:
    """The proof that the marker can appear at all."""
    marker, buffer = tmp_path / "it-ran", io.BytesIO()
    torch.save(EVIL[way](str(marker)), buffer)
    assert not marker.exists()
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=False)
    except Exception as error:
        print(error)  # after it ran
    assert marker.exists()


def test_a_conversion_allows_its_class_for_no_one_else(theirs, weights) -> None:
    torch.save(dataset_with(), theirs / "old.pth")
    does("convert", str(theirs / "old.pth"))
    save(theirs, {TRAIN: dataset_with()})
    assert "holds more than tensors" in told(theirs, weights)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(theirs / TRAIN, weights_only=True)


# ---- convert ---------------------------------------------------------------------------------------------------------

IN_FULL, IN_SHORT = hand_made_sets()[TRAIN], hand_made_sets()[PLAIN]
LEGACY: dict[str, tuple[TensorDataset, Content]] = {
    "three tensors": (TensorDataset(*IN_FULL.values()), IN_FULL),
    "two tensors": (TensorDataset(*IN_SHORT.values()), IN_SHORT),
    "labels as int64": (TensorDataset(IN_SHORT["inputs"], IN_SHORT["labels"].argmax(1)), IN_SHORT),
    "labels as float numbers": (TensorDataset(IN_SHORT["inputs"], IN_SHORT["labels"].argmax(1).float()), IN_SHORT),
    "shuffled, labels as int64": (
        TensorDataset(IN_SHORT["inputs"].flip(0), IN_SHORT["labels"].argmax(1).flip(0)),
        {key: part.flip(0) for key, part in IN_SHORT.items()},
    ),
    "a parameter": (TensorDataset(nn.Parameter(IN_SHORT["inputs"]), IN_SHORT["labels"]), IN_SHORT),
}  # fmt: skip


def is_content(path: Path, expected: Content) -> None:
    found = torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for key, part in expected.items():
        assert found[key].dtype == torch.float32
        assert torch.equal(found[key], part)


@pytest.mark.parametrize("old", [False, True], ids=["saved now", "saved before 2020"])
@pytest.mark.parametrize("kind", LEGACY)
def test_a_pickled_tensordataset_becomes_its_tensors_and_is_kept(kind, old, tmp_path) -> None:
    dataset, expected = LEGACY[kind]
    path = tmp_path / "train.pth"
    torch.save(dataset, path, _use_new_zipfile_serialization=not old)
    before = path.read_bytes()
    said = does("convert", str(path))
    assert said == f"{path}: {len(dataset)} images, keys {', '.join(expected)}\n"
    is_content(path, expected)
    assert files_of(tmp_path).keys() == {"train.pth", "train.pth.legacy"}
    assert (tmp_path / "train.pth.legacy").read_bytes() == before


def test_a_folder_of_old_pickles_is_usable_after_its_conversion(theirs, weights) -> None:
    for name, content in hand_made_sets().items():
        save(theirs, {name: TensorDataset(*content.values())})
    assert "perturblab correction convert" in told(theirs, weights)
    for name in hand_made_sets():
        does("convert", str(theirs / name))
    sets = read_sets(theirs)
    assert torch.equal(sets.train.images, grey(hand_made_sets()[TRAIN]["inputs"]))
    assert "8 test images" in does("evaluate", "--data", str(theirs), "--checkpoint", str(weights), *CPU)


def test_with_out_the_old_file_is_left_alone(tmp_path) -> None:
    old, new = tmp_path / "old.pth", tmp_path / "new" / "train.pth"
    torch.save(TensorDataset(*IN_FULL.values()), old)
    before = old.read_bytes()
    does("convert", str(old), "--out", str(new))
    is_content(new, IN_FULL)
    assert old.read_bytes() == before
    assert files_of(tmp_path).keys() == {"old.pth", "new/train.pth"}


def test_out_that_is_the_old_file_itself_keeps_it_all_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(TensorDataset(*IN_FULL.values()), "old.pth")
    before = Path("old.pth").read_bytes()
    does("convert", "old.pth", "--out", f"../{tmp_path.name}/old.pth")
    assert Path("old.pth.legacy").read_bytes() == before
    is_content(Path("old.pth"), IN_FULL)


def test_a_file_that_has_the_name_of_the_kept_one_is_not_overwritten(tmp_path) -> None:
    old, kept = tmp_path / "old.pth", tmp_path / "old.pth.legacy"
    torch.save(TensorDataset(*IN_FULL.values()), old)
    kept.write_bytes(b"another")
    before = files_of(tmp_path)
    assert refusal("correction", "convert", str(old)) == (
        f"{kept} is there already, with other content; move it away, or give --out"
    )
    assert files_of(tmp_path) == before
    shutil.copy(old, kept)  # as a kill right after it was kept leaves it
    does("convert", str(old))
    is_content(old, IN_FULL)


NOT_CONVERTED: dict[str, Callable[[], Any]] = {
    "one tensor": lambda: TensorDataset(IN_FULL["inputs"]),
    "four tensors": lambda: TensorDataset(*IN_FULL.values(), IN_FULL["labels"]),
    "a list": lambda: list(IN_FULL.values()),
    "a tuple": lambda: tuple(IN_FULL.values()),
    "a tensor": lambda: IN_FULL["inputs"],
    "nothing": lambda: None,
    "a network": plain_network,
    "its weights": lambda: plain_network().state_dict(),
    "another data set class": lambda: torch.utils.data.ConcatDataset([TensorDataset(*IN_FULL.values())]),
    "a subset of one": lambda: torch.utils.data.Subset(TensorDataset(*IN_FULL.values()), [0, 1]),
    "tensors in a list": lambda: dataset_with(tensors=list(IN_FULL.values())),
    "no tensors": lambda: dataset_with(tensors=("inputs", "labels")),
    "tensors of another name": lambda: dataset_with(tensors=None, inputs=IN_FULL["inputs"]),
    "the class, not one of it": lambda: TensorDataset,
    "a list of one": lambda: [TensorDataset(*IN_FULL.values())],
}


@pytest.mark.parametrize("kind", NOT_CONVERTED)
def test_anything_else_is_not_converted(kind, tmp_path) -> None:
    path = tmp_path / "train.pth"
    torch.save(NOT_CONVERTED[kind](), path)
    before = files_of(tmp_path)
    assert refusal("correction", "convert", str(path)) == (
        f"{path} is damaged or no pickled TensorDataset of two or three tensors; refused, nothing was run"
    )
    assert files_of(tmp_path) == before


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((255 * IN_FULL["inputs"], IN_FULL["labels"]), "inputs must lie from 0 to 1; they go from 0 to 255"),
        ((IN_FULL["inputs"], 8 * IN_FULL["labels"].argmax(1)), "labels must be one-hot [12 2], not torch.int64 [12]"),
        ((IN_FULL["inputs"], IN_FULL["labels"].argmax(1) + 0j), "labels is a tensor of a kind that is not read"),
        ((IN_FULL["inputs"], IN_FULL["labels"], IN_FULL["masks"][:, 0]), "the annotation (masks) must be [12, 1, 28, 28],"),
        ((IN_FULL["inputs"], IN_FULL["labels"], IN_FULL["labels"]), "the annotation (masks) must be [12, 1, 28, 28],"),
        ((IN_FULL["labels"], IN_FULL["inputs"]), "inputs must be float [n 1 h h], not torch.float32 [12, 2]"),
        ((IN_FULL["inputs"].to_sparse(), IN_FULL["labels"]), "inputs is a tensor of a kind that is not read"),
    ],
    ids=["to 255", "digits as labels", "complex", "mask without channel", "no mask", "swapped", "sparse"],
)  # fmt: skip
def test_tensors_that_are_no_set_are_not_converted(tensors, message, tmp_path) -> None:
    path = tmp_path / "train.pth"
    torch.save(dataset_with(tensors=tensors), path)
    before = files_of(tmp_path)
    assert refusal("correction", "convert", str(path)).startswith(f"{path}: {message}")
    assert files_of(tmp_path) == before


def test_a_file_that_was_converted_is_not_converted_again(tmp_path) -> None:
    path = tmp_path / "train.pth"
    torch.save(TensorDataset(*IN_FULL.values()), path)
    does("convert", str(path))
    before = files_of(tmp_path)
    assert refusal("correction", "convert", str(path)) == (
        f"{path} holds tensors already; there is nothing to convert"
    )
    assert files_of(tmp_path) == before


def test_a_missing_file_or_a_folder_is_not_converted(tmp_path) -> None:
    assert refusal("correction", "convert") == "FILE is required"
    none = tmp_path / "none.pth"
    assert refusal("correction", "convert", str(none)) == f"cannot read {none}: No such file or directory"
    assert refusal("correction", "convert", str(tmp_path)) == f"cannot read {tmp_path}: Is a directory"
    assert files_of(tmp_path) == {}


def test_a_damaged_pickle_is_not_converted(tmp_path) -> None:
    """torch.load itself would take a flipped bit for a pixel."""
    path, chance = tmp_path / "train.pth", random.Random(0)
    torch.save(TensorDataset(*IN_FULL.values()), path)
    data = path.read_bytes()
    pixels = data.index(IN_FULL["inputs"].numpy().tobytes())
    places = [pixels + chance.randrange(4 * IN_FULL["inputs"].numel()) for _ in range(20)]
    for damaged in [*(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in places), data[:-9], b""]:  # fmt: skip
        path.write_bytes(damaged)
        assert "is damaged or no pickled TensorDataset" in refusal("correction", "convert", str(path))
        assert files_of(tmp_path) == {"train.pth": damaged}


def test_what_is_converted_on_a_full_line_of_warnings_says_only_one_line(tmp_path) -> None:
    """A pickle protocol that torch has thoughts on."""
    path = tmp_path / "train.pth"
    torch.save(TensorDataset(*IN_FULL.values()), path, pickle_protocol=3)
    assert does("convert", str(path)).count("\n") == 1
    is_content(path, IN_FULL)


# ---- evaluate --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has looked at the dots for two epochs."""
    folder = tmp_path_factory.mktemp("base")
    path, runs = str(folder / "base.pth"), str(folder / "runs")
    does("train-base", "--data", str(digits), "--base_model", path, "--runs_dir", runs, "--epochs", "2", *CPU)
    return Path(path)


def seen(weights: Content, inputs: Tensor) -> Tensor:
    network = PlainCNN2().eval()
    network.load_state_dict(weights)
    with torch.no_grad():
        return network(inputs).argmax(1)


def numbers(text: str) -> dict[str, float]:
    """The rows of the printed table."""
    rows = re.findall(r"^\W*(\S.*?)\W{2,}(\d+\.\d\d)\W*$", text, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_evaluate_tells_how_far_the_base_model_follows_the_dot(digits, made, base) -> None:
    plain, labels = made[PLAIN]["inputs"], made[PLAIN]["labels"].argmax(1)
    dotted = plain.clone()
    dotted[..., 25:27, 25:27] = 1
    weights = torch.load(base, weights_only=True)
    off, on = seen(weights, plain), seen(weights, dotted)
    eight = labels == 1

    def share(right: Tensor) -> float:
        return round(100 * float(right.double().mean()), 2)

    said = does("evaluate", "--data", str(digits), "--checkpoint", str(base), *CPU)
    confounded, toggled = torch.where(eight, on, off) == labels, torch.where(eight, off, on) == labels
    groups = {
        f"only {digit}, {how}": share(predicted[labels == i] == i)
        for i, digit in enumerate("08")
        for how, predicted in (("plain", off), ("marked", on))
    }
    assert numbers(said) == pytest.approx({
        "original: no dots": share(off == labels), "confounded: dots on the 8s": share(confounded),
        "dotted zeros: dots on the 0s": share(toggled), "dotted both": share(on == labels), **groups,
    })  # fmt: skip
    flat = " ".join(said.split())
    drop = 100 * float(confounded.double().mean() - toggled.double().mean())
    assert f"costs {drop:.2f} points" in flat
    assert f"{100 * float((on != off).double().mean()):.2f} % of the images change class" in flat
    assert f"Worst group {min(groups.values()):.2f} %" in flat
    assert bool((on != off).any())  # it does follow the dot, or all of this would be one number


def test_evaluate_takes_weights_alone_or_as_model_state_dict(digits, base, tmp_path) -> None:
    wrapped = tmp_path / "wrapped.pth"
    torch.save({"model_state_dict": torch.load(base, weights_only=True), "epoch": 3}, wrapped)
    said = [
        numbers(does("evaluate", "--data", str(digits), "--checkpoint", str(p), *CPU))
        for p in (base, wrapped)
    ]
    assert said[0] == said[1]
    assert len(said[0]) == 8


def changed(**change: Any) -> Content:
    return {**plain_network().state_dict(), **change}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": torch.ones(2)}, "{} is a checkpoint of another network: it lacks features.0.weight and 7 more, has an unknown a"),
        (hand_made(4, 0, True), "{} is a checkpoint of another network: it lacks features.0.weight and 7 more"),
        (nn.Linear(2, 2).state_dict(), "{} is a checkpoint of another network: it lacks features.0.weight and 7 more"),
        (changed(**{"classifier.3.weight": torch.ones(10, 128)}),
         "{} is a checkpoint of another network: it has another shape at classifier.3.weight"),
        (changed(**{"features.0.bias": torch.full((16,), float("nan"))}), "{}: features.0.bias is not finite; "),
        (changed(**{"features.0.bias": torch.ones(16, dtype=torch.int64)}), "{} holds weights of a kind that cannot be used"),
        ({"model_state_dict": 3}, "{}: its model_state_dict is no dictionary of weights"),
        ({}, "{} is a checkpoint of another network: it lacks features.0.weight and 7 more"),
        ([1], "{} holds a list, not a checkpoint's dictionary"),
        (nn.Linear(2, 2), "{} holds more than tensors and plain values; refused, nothing was run"),
        (b"hello", "{} is damaged or is no checkpoint of torch.save"),
        (None, "cannot read {}: No such file or directory"),
    ],
    ids=["one key", "a data set", "a layer", "ten classes", "nan", "whole numbers", "no weights", "empty", "list", "module", "text", "missing"],
)  # fmt: skip
def test_a_checkpoint_of_another_network_is_told_in_one_line(content, told, theirs, tmp_path) -> None:
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    words = ("correction", "evaluate", "--data", str(theirs), "--checkpoint", str(path), *CPU)
    assert refusal(*words).startswith(told.format(path))
