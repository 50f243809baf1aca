"""Images are decoded once and then read from a checked cache, which never decides what they are."""

import numpy as np
import pytest
import torch
from PIL import Image

from _imagefiles import encoded, write_folder
from perturblab import decode
from perturblab.datasets import load

# ---- decoding once ----------------------------------------------------------------------------------------------


@pytest.fixture
def pets(tmp_path):
    write_folder(tmp_path / "pets")
    return f"folder:{tmp_path / 'pets'}"


def forbid_decoding(monkeypatch):
    def refuse(*args):
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "_decode_all", refuse)


def test_images_are_decoded_once(tmp_path, pets, monkeypatch):
    first = [part.digest() for part in load(pets, tmp_path)]
    forbid_decoding(monkeypatch)
    assert [part.digest() for part in load(pets, tmp_path)] == first
    assert not list((tmp_path / "decoded").glob("*.tmp"))


def test_an_image_that_changed_is_decoded_again(tmp_path, pets):
    before, _ = load(pets, tmp_path)
    black = encoded(np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "pets" / "train" / "cat" / "000.png").write_bytes(black)
    after, _ = load(pets, tmp_path)
    assert int(after.images[0].max()) == 0
    assert torch.equal(after.images[1:], before.images[1:])


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: data[:100],
        lambda data: b"",
    ],
)
def test_a_damaged_cache_is_noticed_and_made_anew(tmp_path, pets, capsys, monkeypatch, harm):
    first = load(pets, tmp_path)[1].digest()
    (kept,) = (tmp_path / "decoded").glob("*.npy")
    kept.write_bytes(harm(kept.read_bytes()))
    assert load(pets, tmp_path)[1].digest() == first
    assert capsys.readouterr().out == f"{kept} is damaged: decoding the images again\n"
    forbid_decoding(monkeypatch)
    assert load(pets, tmp_path)[1].digest() == first


def test_a_cache_that_cannot_be_written_costs_one_warning(tmp_path, pets, capsys):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    train, _ = load(pets, tmp_path / "blocked")
    assert len(train) == 6
    warned = capsys.readouterr().err
    assert warned.startswith("warning: the decoded images are not kept")
    assert warned.count("\n") == 1


@pytest.mark.parametrize("side", [40, 80])
def test_any_number_of_workers_gives_the_same_images_in_order(tmp_path, side):
    write_folder(tmp_path / "many", each=150, shape=(side, side))
    seen = [load(f"folder:{tmp_path}/many", tmp_path / str(w), workers=w) for w in (0, 1, 5)]
    assert len({tuple(part.digest() for part in parts) for parts in seen}) == 1
    assert np.array_equal(
        seen[0][1].images[7, 0].numpy(), np.asarray(Image.open(tmp_path / "many/test/cat/007.png"))
    )
