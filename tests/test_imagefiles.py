"""Image sets that a user brings, and what is told about each way in which they can be wrong."""

import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from _imagefiles import encoded, hwc, parquet_pair, pixels, refusal, write_folder, write_npz, write_parquet
from perturblab.datasets import load

# ---- folders ----------------------------------------------------------------------------------------------------


def test_a_folder_holds_a_folder_per_class(tmp_path):
    written = write_folder(tmp_path / "pets")
    (tmp_path / "pets" / "train" / "cat" / ".DS_Store").write_bytes(b"no image")
    train, test = load(f"folder:{tmp_path / 'pets'}", tmp_path)
    assert np.array_equal(hwc(train.images), written["train"])
    assert np.array_equal(hwc(test.images), written["test"])
    assert (train.classes, train.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_any_mode_of_8_bits_becomes_gray_or_colour(tmp_path, mode, channels):
    write_folder(tmp_path / "pets")
    for path in (tmp_path / "pets").rglob("*.png"):
        kind = "TIFF" if mode == "CMYK" else "PNG"
        Image.open(path).convert(mode).save(path, kind)
    assert load(f"folder:{tmp_path / 'pets'}", tmp_path)[0].images.shape[1] == channels


def test_a_gray_image_among_coloured_ones_gets_three_equal_channels(tmp_path):
    write_folder(tmp_path / "pets")
    gray = tmp_path / "pets" / "train" / "cat" / "001.png"
    Image.open(gray).convert("L").save(gray)
    train, _ = load(f"folder:{tmp_path / 'pets'}", tmp_path)
    assert np.array_equal(train.images[1].numpy(), np.stack([np.asarray(Image.open(gray))] * 3))


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda pets: (pets / "train").rename(pets / "training"), "No such file or directory; expected PATH/train/CLASS"),
        (lambda pets: (pets / "test").rename(pets / "val"), "expected PATH/train/CLASS/* and PATH/test/CLASS/*"),
        (lambda pets: (pets / "test" / "dog").rename(pets / "test" / "dgo"), "the class 'dgo' that train lacks: cat, dog"),
        (lambda pets: (pets / "train" / "readme.txt").write_text("hi"), "readme.txt: Not a directory"),
        (lambda pets: [f.unlink() for f in pets.glob("test/*/*")], "test has no images"),
        (lambda pets: (pets / "test/dog/x.png").symlink_to("nowhere"), "test/dog/x.png: No such file or directory; remove it"),
        (lambda pets: (pets / "test/dog/004.png").write_bytes(b"oops"), "test/dog/004.png cannot be read as an image"),
        (lambda pets: (pets / "test/dog/004.png").write_bytes(encoded(pixels(1, 8, 8)[0])[:60]), "004.png cannot be read"),
        (lambda pets: (pets / "test/dog/004.png").write_bytes(encoded(pixels(1, 6, 9)[0])), "004.png is 9x6 pixels, "),
        (lambda pets: Image.new("I;16", (8, 8)).save(pets / "test/dog/004.png"), "004.png has more than 8 bits per channel"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_told_with_its_name(tmp_path, break_it, told):
    write_folder(tmp_path / "pets")
    break_it(tmp_path / "pets")
    assert told in refusal(f"folder:{tmp_path / 'pets'}", tmp_path)


# ---- parquet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"image": "image", "label": "fine_label"}, {"struct_column": False}])
def test_parquet_files_are_read_in_each_of_their_layouts(tmp_path, how):
    images = parquet_pair(tmp_path, names=["cat", "dog"], **how)
    train, test = load(f"parquet:{tmp_path}/set", tmp_path)
    assert np.array_equal(hwc(train.images), images[:4])
    assert np.array_equal(hwc(test.images), images[4:])
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0, 1], [1, 0])
    assert train.classes == test.classes == ("cat", "dog")


def test_classes_without_names_are_numbers(tmp_path):
    parquet_pair(tmp_path)
    assert load(f"parquet:{tmp_path}/set", tmp_path)[0].classes == ("0", "1")


def test_jpeg_images_are_what_pillow_decodes(tmp_path):
    data = [encoded(image, "JPEG") for image in pixels(4, 16, 16, 3)]
    write_parquet(tmp_path / "set-train.parquet", data[:2], [0, 1])
    write_parquet(tmp_path / "set-test.parquet", data[2:], [0, 1])
    train, _ = load(f"parquet:{tmp_path}/set", tmp_path)
    assert np.array_equal(hwc(train.images)[1], np.asarray(Image.open(io.BytesIO(data[1]))))


@pytest.mark.parametrize("end", ["", "-0123456789abcdef"])
def test_shards_are_joined_in_their_order(tmp_path, end):
    images = parquet_pair(tmp_path)
    (tmp_path / "set-train.parquet").unlink()
    for shard, part in enumerate(([0, 1], [2], [3])):
        data = [encoded(images[i]) for i in part]
        write_parquet(tmp_path / f"set-train-{shard:05}-of-00003{end}.parquet", data, [0] * len(part))
    assert np.array_equal(hwc(load(f"parquet:{tmp_path}/set", tmp_path)[0].images), images[:4])

    (tmp_path / f"set-train-00001-of-00003{end}.parquet").unlink()
    assert "shard 00001 of 3 is missing" in refusal(f"parquet:{tmp_path}/set", tmp_path)


def test_two_sets_of_files_under_one_prefix_are_not_mixed(tmp_path):
    parquet_pair(tmp_path)
    write_parquet(tmp_path / "set-train-00000-of-00001.parquet", [encoded(pixels(8, 8))], [0])
    assert "not one set of shards" in refusal(f"parquet:{tmp_path}/set", tmp_path)


def test_without_pyarrow_the_line_says_what_to_install(tmp_path, monkeypatch):
    parquet_pair(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install perturblab[parquet]" in refusal(f"parquet:{tmp_path}/set", tmp_path)


PNG = encoded(pixels(1, 8, 8)[0])


@pytest.mark.parametrize(
    ("images", "labels", "how", "told"),
    [
        ([PNG, b"oops"], [0, 1], {}, "set-train.parquet row 1 cannot be read as an image"),
        ([PNG, None], [0, 1], {}, "set-train.parquet row 1 cannot be read as an image"),
        ([PNG, encoded(pixels(1, 9, 9)[0])], [0, 1], {}, "set-train.parquet row 1 is 9x9 pixels"),
        ([PNG, PNG], [0, None], {}, "'label' must hold an integer in every row"),
        ([PNG, PNG], ["cat", "dog"], {}, "'label' must hold an integer in every row, not string"),
        ([PNG, PNG], [0, -1], {}, "train label -1 in row 1; labels go from 0 to"),
        ([PNG, PNG], [0, 2**40], {}, "labels must count classes from 0"),
        ([PNG, PNG], [0, 2], {"names": ["cat", "dog"]}, "train label 2 in row 1; labels go from 0 to 1"),
        ([PNG, PNG], [0, 1], {"image": "picture"}, "has no column 'img' or 'image', only picture, label"),
        ([PNG, PNG], [0, 1], {"label": "y"}, "has no column 'label' or 'fine_label', only img, y"),
        (["a.png", "b.png"], [0, 1], {"struct_column": False}, "'img' must hold encoded images as bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_parquet_file_is_told_with_its_row(tmp_path, images, labels, how, told):
    write_parquet(tmp_path / "set-train.parquet", images, labels, **how)
    write_parquet(tmp_path / "set-test.parquet", [PNG], [0])
    assert told in refusal(f"parquet:{tmp_path}/set", tmp_path)


def test_parquet_files_that_are_missing_damaged_or_of_two_data_sets_are_told_by_name(tmp_path):
    assert "set-train*.parquet" in refusal(f"parquet:{tmp_path}/set", tmp_path)
    parquet_pair(tmp_path, names=["cat", "dog"])
    write_parquet(tmp_path / "set-test.parquet", [PNG], [0], names=["cow", "pig"])
    assert "name different classes" in refusal(f"parquet:{tmp_path}/set", tmp_path)
    (tmp_path / "set-test.parquet").write_bytes(b"PAR1")
    assert "set-test.parquet cannot be read as parquet" in refusal(f"parquet:{tmp_path}/set", tmp_path)


# ---- npz --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nhw", "nhwc", "nhw1", "nchw"])
def test_npz_arrays_are_read_in_each_of_their_layouts(tmp_path, layout):
    images = pixels(6, 8, 9) if layout in ("nhw", "nhw1") else pixels(6, 8, 9, 3)
    tests = pixels(3, *images.shape[1:])
    stored = {
        "nhw": lambda x: x,
        "nhw1": lambda x: x[..., None],
        "nhwc": lambda x: x,
        "nchw": lambda x: x.transpose(0, 3, 1, 2),
    }[layout]
    name = write_npz(tmp_path / "a.npz", x_train=stored(images), x_test=stored(tests))
    train, test = load(name, tmp_path)
    assert np.array_equal(hwc(train.images), images.reshape(6, 8, 9, -1))
    assert np.array_equal(hwc(test.images), tests.reshape(3, 8, 9, -1))
    assert (train.labels.tolist(), train.classes) == ([0, 1, 2, 0, 1, 2], ("0", "1", "2"))


def test_labels_in_a_column_are_read_as_well(tmp_path):
    name = write_npz(tmp_path / "a.npz", y_train=np.array([[0], [1], [2], [0], [1], [2]], np.uint8))
    assert load(name, tmp_path)[0].labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x_train": pixels(6, 8, 8) / 255}, "x_train is float64; pixels must be uint8 from 0 to 255"),
        ({"x_train": np.full((6, 8, 8), np.nan, np.float32)}, "x_train is float32; pixels must be uint8"),
        ({"x_test": pixels(3, 8, 8).astype(np.int64)}, "x_test is int64"),
        ({"x_train": pixels(6, 8, 8, 4)}, "x_train has the shape [6, 8, 8, 4]"),
        ({"x_train": pixels(6, 64)}, "x_train has the shape [6, 64]"),
        ({"x_train": pixels(6, 3, 8, 3)}, "x_train has the shape [6, 3, 8, 3]"),
        ({"x_test": pixels(3, 9, 9, 3)}, "train images are [8, 8, 3], test images [9, 9, 3]"),
        (
            {"y_train": np.array([0, 1, np.nan, 0, 1, 2])},
            "y_train is float64 [6]; labels must be one integer per",
        ),
        ({"y_train": np.array([0, 1])}, "6 train images and 2 labels do not match"),
        ({"y_train": np.eye(6, dtype=int)}, "labels must be one integer per image"),
        ({"y_test": np.array([0, -1, 1])}, "test label -1 in row 1"),
        ({"y_test": None}, "has no array 'y_test', only x_train, y_train, x_test"),
        ({"x_train": np.array([{"a": 1}] * 6)}, "cannot be read as npz without pickle"),
    ],
)
def test_what_is_wrong_with_an_npz_file_is_told_with_the_array(tmp_path, arrays, told):
    assert told in refusal(write_npz(tmp_path / "a.npz", **arrays), tmp_path)


@pytest.mark.parametrize("content", [b"", b"oops", pickle.dumps([1, 2]), b"PK\x03\x04 cut short", "npy"])
def test_a_file_that_is_no_npz_is_refused_by_name(tmp_path, content):
    if content == "npy":
        with open(tmp_path / "a.npz", "wb") as file:
            np.save(file, pixels(6, 8, 8))
    else:
        (tmp_path / "a.npz").write_bytes(content)
    assert "a.npz cannot be read as npz" in refusal(f"npz:{tmp_path}/a.npz", tmp_path)
    assert "b.npz cannot be read as npz" in refusal(f"npz:{tmp_path}/b.npz", tmp_path)
