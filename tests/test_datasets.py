"""The names of data sets, what is done to their images, and what a user is told when they cannot be had."""

import pickle
import socket
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from _imagefiles import hwc, pixels, refusal, write_mnist, write_npz
from perturblab.datasets import NORMALISATION, Constants, load

SHARED = Path(__file__).parents[2] / "shared" / "data"
MASKED = NORMALISATION["masked-loss"]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# ---- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cifar-10", "cifar10"),
        ("minst", "mnist"),
        ("fashion", "fashion-mnist"),
        ("parquets:/some/where", "parquet:PREFIX"),
        ("folder", "folder:PATH"),
        ("npz:", "npz:PATH"),
        ("digits:8", "digits"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(tmp_path, name, nearest):
    assert f"unknown data set {name!r}, the nearest is {nearest};" in refusal(name, tmp_path)


def test_settings_that_no_data_set_can_meet_are_refused(tmp_path):
    assert "1 or 3 channels" in refusal("digits", tmp_path, channels=2)
    assert "size of 1 or more" in refusal("digits", tmp_path, size=0)
    assert "'documented' or 'data', not 'date'" in refusal("digits", tmp_path, normalize="date")


# ---- digits, size, channels -------------------------------------------------------------------------------------


def test_digits_are_split_80_to_20_alike_in_every_class(tmp_path):
    train, test = load("digits", tmp_path)
    assert (len(train), len(test)) == (1433, 364)
    assert tuple(train.images.shape[1:]) == (1, 8, 8)
    share = torch.bincount(test.labels) / (torch.bincount(test.labels) + torch.bincount(train.labels))
    assert share.min() > 0.195
    assert share.max() < 0.21
    assert train.digest() == load("digits", tmp_path)[0].digest()


def test_digits_are_those_of_scikit_learn(tmp_path):
    from sklearn.datasets import load_digits

    whole = load_digits()
    train, test = load("digits", tmp_path)
    images = torch.cat([train.images, test.images])[:, 0].numpy()
    ours = {
        (image.tobytes(), int(label))
        for image, label in zip(images, torch.cat([train.labels, test.labels]), strict=True)
    }
    theirs = {
        ((np.round(i / 16 * 255).astype(np.uint8)).tobytes(), int(t))
        for i, t in zip(whole.images, whole.target, strict=True)
    }
    assert ours == theirs


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1), (None, 3)])
def test_digits_come_in_the_size_and_channels_that_a_model_takes(tmp_path, size, channels):
    plain = load("digits", tmp_path)[0].images
    train, test = load("digits", tmp_path, size=size, channels=channels)
    assert tuple(train.images.shape[1:]) == tuple(test.images.shape[1:]) == (channels, size or 8, size or 8)
    assert len(train.mean) == channels
    for before, after in zip(plain[:40], hwc(train.images[:40]), strict=True):
        image = Image.fromarray(before[0].numpy())
        resized = image.resize((size, size), Image.Resampling.BILINEAR) if size else image
        for channel in range(channels):
            assert np.abs(np.asarray(resized).astype(int) - after[..., channel]).max() <= 1


def test_colour_becomes_gray_as_pillow_does_it(tmp_path):
    images = pixels(6, 8, 8, 3)
    train, _ = load(write_npz(tmp_path / "a.npz", x_train=images), tmp_path, channels=1)
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    assert np.array_equal(train.images[:, 0].numpy(), np.stack(expected))


# ---- normalisation ----------------------------------------------------------------------------------------------


def test_the_studies_document_two_deviations_for_cifar10():
    assert NORMALISATION["masked-loss"].std == (0.2023, 0.1994, 0.2010)
    assert NORMALISATION["layerwise-mi"] == NORMALISATION["masked-loss"]
    assert NORMALISATION["adaptive-noise"].std == (0.2471, 0.2435, 0.2616)
    assert NORMALISATION["adaptive-noise"].mean == NORMALISATION["masked-loss"].mean
    assert NORMALISATION["first-layer-mi"][1:] == ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))


def test_a_colour_set_that_a_user_brings_takes_the_documented_constants(tmp_path):
    for image_set in load(write_npz(tmp_path / "a.npz"), tmp_path, documented=MASKED):
        assert (image_set.mean, image_set.std) == (MASKED.mean, MASKED.std)


def test_without_documented_constants_the_train_pixels_are_measured(tmp_path):
    name = write_npz(tmp_path / "a.npz")
    for train, test in (load(name, tmp_path), load(name, tmp_path, documented=MASKED, normalize="data")):
        scaled = train.images.numpy() / 255.0
        np.testing.assert_allclose(train.mean, scaled.mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(train.std, scaled.std((0, 2, 3)), rtol=1e-12)
        assert (test.mean, test.std) == (train.mean, train.std)


def test_a_gray_set_is_measured_also_where_a_model_wants_three_channels(tmp_path):
    name = write_npz(tmp_path / "a.npz", x_train=pixels(6, 8, 8), x_test=pixels(3, 8, 8))
    train, _ = load(name, tmp_path, documented=MASKED, channels=3)
    np.testing.assert_allclose(train.std, [(train.images.numpy() / 255.0).std()] * 3)


def test_constants_documented_for_one_named_set_are_not_used_for_another(tmp_path):
    for_gray = Constants("mnist", (0.0,), (1.0,))
    assert load("digits", tmp_path, documented=for_gray)[0].std != (1.0,)
    assert load("digits", tmp_path, documented=for_gray._replace(dataset="digits"))[0].std == (1.0,)


def test_a_channel_without_any_contrast_is_refused(tmp_path):
    name = write_npz(tmp_path / "a.npz", x_train=np.full((6, 8, 8), 7, np.uint8), x_test=pixels(3, 8, 8))
    assert "pixels of a channel are equal" in refusal(name, tmp_path)


# ---- torchvision's sets -----------------------------------------------------------------------------------------


def test_mnist_is_read_from_the_files_of_torchvision(tmp_path, no_network):
    written = write_mnist(tmp_path)
    train, test = load("mnist", tmp_path, documented=NORMALISATION["correction"])
    assert np.array_equal(train.images[:, 0].numpy(), written["train"])
    assert np.array_equal(test.images[:, 0].numpy(), written["t10k"])
    assert train.labels.tolist() == list(range(10))
    assert (train.mean, train.std) == ((0.0,), (1.0,))
    assert train.classes[3] == "3 - three"


def test_cifar10_is_read_from_the_files_of_torchvision(tmp_path, no_network, monkeypatch):
    from torchvision.datasets import CIFAR10

    images = pixels(4, 32, 32, 3)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    planar = images.transpose(0, 3, 1, 2).reshape(4, -1)
    for name, content in {
        "train": {"data": planar, "labels": [3, 1, 0, 2]},
        "test": {"data": planar[::-1], "labels": [2, 0, 1, 3]},
        "meta": {"label_names": ["a", "b", "c", "d"]},
    }.items():
        (folder / name).write_bytes(pickle.dumps(content))
    monkeypatch.setattr(CIFAR10, "train_list", [["train", None]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test", None]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "meta", "key": "label_names", "md5": None})

    train, test = load("cifar10", tmp_path, documented=MASKED)
    assert np.array_equal(hwc(train.images), images)
    assert np.array_equal(hwc(test.images), images[::-1])
    assert (train.labels.tolist(), train.classes) == ([3, 1, 0, 2], ("a", "b", "c", "d"))
    assert train.std == MASKED.std


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion-mnist"])
def test_without_network_one_line_names_the_ways_to_bring_the_data(tmp_path, no_network, capfd, name):
    message = refusal(name, tmp_path)
    for way in (str(tmp_path), "Name or service not known", "parquet:PREFIX", "folder:PATH", "npz:PATH"):
        assert way in message
    printed = capfd.readouterr()
    assert printed.out.count("\n") == 1, "only the line that says what is being downloaded"
    assert printed.err == ""


def test_a_server_that_does_not_answer_is_given_up_soon(tmp_path, monkeypatch):
    waits = []

    def silent(*args, **kwargs):
        waits.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", silent)
    assert "timed out" in refusal("cifar10", tmp_path)
    assert waits
    assert max(waits) <= 10
    assert socket.getdefaulttimeout() is None


def test_files_of_torchvision_that_are_cut_short_are_refused(tmp_path, no_network):
    write_mnist(tmp_path)
    broken = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    broken.write_bytes(broken.read_bytes()[:-100])
    assert "MNIST is not complete" in refusal("mnist", tmp_path)


@pytest.mark.skipif(not (SHARED / "MNIST").exists(), reason="needs ../shared/data")
def test_the_real_mnist_has_its_known_counts(tmp_path):
    train, test = load("mnist", SHARED)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert [int((train.labels == digit).sum()) for digit in (0, 8)] == [5923, 5851]
    np.testing.assert_allclose([*train.mean, *train.std], [0.1307, 0.3081], atol=5e-5)


# ---- real data ----


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data")
def test_the_real_cifar10_has_its_known_statistics(tmp_path):
    train, test = load(f"parquet:{SHARED}/cifar10-jpeg", tmp_path, normalize="data")
    assert (len(train), len(test), train.classes[0]) == (50_000, 10_000, "airplane")
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    # documented for the original pixels; these went through JPEG
    np.testing.assert_allclose(train.mean, NORMALISATION["adaptive-noise"].mean, atol=2e-3)
    np.testing.assert_allclose(train.std, NORMALISATION["adaptive-noise"].std, atol=5e-3)
