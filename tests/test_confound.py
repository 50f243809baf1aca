"""Planted shortcuts: where the mark stands, which images bear it, and how it is taken away or put on all of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from perturblab.confound import (
    POSITIONS,
    SHAPES,
    Shortcut,
    corrected,
    marked_everywhere,
    plant,
    predictive_power,
)
from perturblab.images import ImageSet
from perturblab.streams import stream

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def image_set(
    n: int = 40, height: int = 28, width: int = 28, channels: int = 1, classes: int = 2
) -> ImageSet:
    """Random pixels from 1 to 254, so that neither black nor white is there before it is planted."""
    pixels = torch.randint(1, 255, (n, channels, height, width), generator=stream(n, "pixels"))
    names = tuple("abcde"[:classes])
    return ImageSet(pixels.byte(), torch.arange(n) % classes, names, (0.0,) * channels, (1.0,) * channels)


def black(data: ImageSet) -> ImageSet:
    return replace(data, images=torch.zeros_like(data.images))


def planted(data: ImageSet, seed: int = 0, **shortcut) -> ImageSet:
    return plant(data, Shortcut(**{"classes": (1,), **shortcut}), stream(seed, "shortcut"))


def bearing(data: ImageSet) -> Tensor:
    return data.annotation.sum((1, 2, 3)) > 0


def corners(data: ImageSet) -> list[tuple[int, int]]:
    """Row and column of the first annotated pixel of every image that bears a mark."""
    return [tuple(mask.nonzero()[0].tolist()) for mask in data.annotation[bearing(data), 0]]


# ---- where the mark stands -------------------------------------------------------------------------------------


def test_every_eight_bears_the_documented_dot_and_no_zero_does():
    data = image_set()
    dotted = planted(data)
    eights, zeros = dotted.labels == 1, dotted.labels == 0
    assert (dotted.images[eights][:, 0, 25:27, 25:27] == 255).all()
    assert (dotted.annotation[eights][:, 0, 25:27, 25:27]).all()
    assert dotted.annotation[eights].sum((1, 2, 3)).tolist() == [4] * 20
    assert not dotted.annotation[zeros].any()
    assert torch.equal(dotted.images[zeros], data.images[zeros])
    assert (dotted.images != data.images).sum() == 4 * 20


def test_planting_leaves_the_set_that_it_is_given_as_it_was():
    data = image_set(channels=3)
    digest = data.digest()
    dotted = planted(data)
    assert data.digest() == digest
    assert data.annotation is None
    assert (dotted.classes, dotted.mean, dotted.std) == (data.classes, data.mean, data.std)
    assert torch.equal(dotted.labels, data.labels)
    assert dotted.images.dtype == torch.uint8
    assert dotted.annotation.dtype == torch.bool


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ("square", "###  ###  ###"),
        ("disc", "###  ###  ###"),
        ("cross", "#.#  .#.  #.#"),
        ("frame", "###  #.#  ###"),
        ("square", "####  ####  ####  ####"),
        ("disc", ".##.  ####  ####  .##."),
        ("cross", "#..#  .##.  .##.  #..#"),
        ("frame", "####  #..#  #..#  ####"),
        ("square", "#####  #####  #####  #####  #####"),
        ("disc", ".###.  #####  #####  #####  .###."),
        ("cross", "#...#  .#.#.  ..#..  .#.#.  #...#"),
        ("frame", "#####  #...#  #...#  #...#  #####"),
    ],
)
def test_a_mark_has_the_pixels_of_its_shape(shape, rows):
    drawing = [[pixel == "#" for pixel in row] for row in rows.split()]
    size = len(drawing)
    one = planted(black(image_set(2, 7, 9)), shape=shape, size=size, position="1,2")
    expected = torch.zeros(7, 9, dtype=torch.bool)
    expected[1 : 1 + size, 2 : 2 + size] = torch.tensor(drawing)
    assert torch.equal(one.annotation[1, 0], expected)
    assert torch.equal(one.images[1, 0], expected.byte() * 255)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 2])
def test_marks_of_one_and_two_pixels_are_squares_whatever_their_shape(shape, size):
    assert planted(image_set(2), shape=shape, size=size).annotation.sum() == size**2


@pytest.mark.parametrize(
    ("position", "margin", "row", "column"),
    [
        ("top-left", 1, 1, 1),
        ("top-right", 1, 1, 16),
        ("bottom-left", 1, 6, 1),
        ("bottom-right", 1, 6, 16),
        ("bottom-right", 0, 7, 17),
        ("top-left", 4, 4, 4),
        ("center", 1, 3, 8),
        ("center", 9, 3, 8),
        ("0,0", 1, 0, 0),
        ("7,17", 1, 7, 17),
        (" 2 , 11 ", 1, 2, 11),
    ],
)
def test_a_mark_of_three_pixels_stands_where_its_position_says_in_images_of_10_x_20(
    position, margin, row, column
):
    data = planted(image_set(4, 10, 20), size=3, position=position, margin=margin)
    assert corners(data) == [(row, column)] * 2
    assert data.annotation[1, 0, row : row + 3, column : column + 3].all()
    assert data.annotation[1].sum() == 9


def test_random_marks_take_every_place_inside_the_margin_equally_often_and_no_other():
    data = planted(image_set(6_000, 7, 9), position="random", margin=1)
    rows, columns = np.array(corners(data)).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 4, 1, 6)
    counts = np.bincount((rows - 1) * 6 + columns - 1, minlength=24)
    assert counts.min() > 0
    assert chisquare(counts).pvalue > 1e-3
    assert data.annotation[bearing(data)].sum((1, 2, 3)).unique().tolist() == [4]


def test_the_same_generator_plants_the_same_marks_and_another_one_others():
    options = {"position": "random", "fraction": 0.5, "strength": 0.5}
    first = planted(image_set(), **options)
    torch.manual_seed(123)
    assert planted(image_set(), **options).digest() == first.digest()
    other = planted(image_set(), seed=1, **options)
    assert not torch.equal(bearing(other), bearing(first))
    assert corners(other) != corners(first)


def test_a_weaker_shortcut_leaves_the_marks_of_its_classes_where_they_were():
    strong, weak = (planted(image_set(), position="random", fraction=0.6, strength=s) for s in (1, 0.25))
    both = bearing(strong)
    assert int(both.sum()) == 12
    assert torch.equal(weak.annotation[both], strong.annotation[both])


@pytest.mark.parametrize(("value", "pixel"), [(0.0, 0), (0.2, 51), (0.5, 128), (1.0, 255)])
def test_a_mark_has_its_value_in_all_three_channels(value, pixel):
    data = image_set(channels=3)
    marked = planted(data, value=value)
    under = marked.annotation.expand_as(marked.images)
    assert marked.annotation.shape == (40, 1, 28, 28)
    assert marked.images[under].tolist() == [pixel] * (20 * 4 * 3)
    assert torch.equal(marked.images[~under], data.images[~under])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gets_the_marks_that_the_cpu_gets():
    options = {"position": "random", "fraction": 0.7, "strength": 0.4, "shape": "disc", "size": 5}
    here, there = planted(image_set(), **options), planted(image_set().to("cuda"), **options)
    assert there.images.is_cuda
    assert there.annotation.is_cuda
    assert there.digest() == here.digest()
    assert corrected(there).digest() == corrected(here).digest()
    everywhere = marked_everywhere(image_set().to("cuda"), there)
    assert everywhere.digest() == marked_everywhere(image_set(), here).digest()
    assert predictive_power(there, (1,)) == predictive_power(here, (1,))


# ---- which images bear it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "strength", "members", "others"),
    [
        (1.0, 1.0, 120, 0),
        (1.0, 0.0, 120, 180),
        (0.5, 1.0, 60, 0),
        (0.5, 0.0, 60, 90),
        (0.5, 0.9, 60, 9),
        (0.33, 0.25, 40, 45),  # 39.6 and 44.55 images
        (0.0, 0.5, 0, 0),
    ],
)
def test_exactly_the_share_that_is_asked_for_bears_the_mark(fraction, strength, members, others):
    data = planted(image_set(300, 6, 6, classes=5), classes=(1, 3), fraction=fraction, strength=strength)
    of_classes = (data.labels == 1) | (data.labels == 3)
    assert int(bearing(data)[of_classes].sum()) == members
    assert int(bearing(data)[~of_classes].sum()) == others


def test_every_class_bears_its_share_of_the_marks():
    data = planted(image_set(300, 6, 6, classes=5), classes=(1, 3), fraction=0.5, strength=0.6)
    assert torch.bincount(data.labels[bearing(data)]).tolist() == [12, 30, 12, 30, 12]


def test_which_images_bear_the_mark_is_drawn_at_random():
    often = (
        sum(bearing(planted(image_set(20, 6, 6), seed, fraction=0.3)).float() for seed in range(200)) / 200
    )
    assert often[0::2].tolist() == [0.0] * 10
    assert (often[1::2] - 0.3).abs().max() < 5 * (0.21 / 200) ** 0.5  # five standard errors


def test_phi_is_1_for_a_perfect_shortcut_and_0_for_a_mark_on_every_image_and_for_none():
    data = image_set()
    assert predictive_power(planted(data), (1,)) == 1
    assert predictive_power(planted(data), (0,)) == -1
    assert predictive_power(planted(data, strength=0.0), (1,)) == 0  # every image bears it
    assert predictive_power(planted(data, fraction=0.0), (1,)) == 0  # none does
    assert predictive_power(data, (1,)) == 0
    assert predictive_power(planted(data), (0, 1)) == 0  # every image is of one of the classes


def test_a_mark_that_is_as_frequent_on_the_other_images_says_nothing():
    assert predictive_power(planted(image_set(), fraction=0.5, strength=0.0), (1,)) == 0
    uneven = planted(image_set(301, 6, 6, classes=5), classes=(1, 3), fraction=0.37, strength=0.0)
    assert abs(predictive_power(uneven, (1, 3))) < 0.01


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("fraction", [0.2, 0.7, 1.0])
def test_phi_is_the_correlation_that_numpy_finds(fraction, strength):
    data = planted(image_set(301, 6, 6, classes=5), classes=(0, 2), fraction=fraction, strength=strength)
    bears = [bool(mask.any()) for mask in data.annotation.numpy()]
    belongs = [label in (0, 2) for label in data.labels.tolist()]
    expected = np.corrcoef(bears, belongs)[0, 1] if len(set(bears)) == 2 else 0.0
    assert predictive_power(data, (0, 2)) == pytest.approx(expected, abs=1e-12)


# ---- without the mark, and with it everywhere ------------------------------------------------------------------


@pytest.mark.parametrize("position", ["bottom-right", "random"])
def test_correcting_gives_the_originals_back_where_the_pixels_under_the_mark_were_black(position):
    data = image_set(channels=3)
    data.images[:, :, 20:, 20:] = 0
    data = data if position != "random" else black(data)
    marked = planted(data, position=position, fraction=0.8, strength=0.3)
    assert not torch.equal(marked.images, data.images)
    again = corrected(marked)
    assert torch.equal(again.images, data.images)
    assert torch.equal(again.annotation, marked.annotation)


def test_correcting_blackens_the_pixels_under_the_mark_and_no_other():
    data = image_set()
    marked = planted(data)
    digest = marked.digest()
    again = corrected(marked)
    assert torch.equal(again.images == 0, marked.annotation)
    assert torch.equal(again.images[~marked.annotation], data.images[~marked.annotation])
    assert marked.digest() == digest


@pytest.mark.parametrize("channels", [1, 3])
def test_the_documented_dot_everywhere_is_the_dot_on_zeros_too(channels):
    plain = image_set(channels=channels)
    digest = plain.digest()
    everywhere = marked_everywhere(plain, planted(plain))
    assert everywhere.digest() == planted(plain, strength=0.0).digest()
    assert plain.digest() == digest


def test_images_without_a_random_mark_take_those_of_the_others_in_turn():
    plain = image_set(12)
    marked = planted(plain, position="random", fraction=0.5, value=0.0)
    places, own = corners(marked), bearing(marked)
    assert len(set(places)) == len(places) == 3
    everywhere = marked_everywhere(plain, marked)
    assert torch.equal(everywhere.images[own], marked.images[own])
    assert torch.equal(everywhere.annotation[own], marked.annotation[own])
    assert corners(everywhere[~own]) == places * 3  # nine images lack one
    assert torch.equal(everywhere.images == 0, everywhere.annotation)
    assert torch.equal(everywhere.images[~everywhere.annotation], plain.images[~everywhere.annotation])
    assert torch.equal(everywhere.labels, plain.labels)


def test_an_image_takes_the_pixels_that_another_one_has_under_its_mark():
    plain = image_set(4, 6, 6, channels=3)
    marked = planted(plain, position="0,0")
    marked.images[1, :, :2, :2] = 7
    marked.images[3, :, :2, :2] = 9
    everywhere = marked_everywhere(plain, marked)
    assert [image[:, :2, :2].unique().tolist() for image in everywhere.images] == [[7], [7], [9], [9]]


def test_a_set_that_is_marked_everywhere_already_stays_as_it_is():
    plain = image_set()
    marked = planted(plain, position="random", strength=0.0)
    assert marked_everywhere(plain, marked).digest() == marked.digest()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mark_changes_the_pixels_under_it_and_no_others(data):
    height, width, size = (data.draw(st.integers(low, 12)) for low in (3, 3, 1))
    margin = data.draw(st.integers(0, 2))
    position = data.draw(st.sampled_from([*POSITIONS, "1,0"]))
    shape, channels = data.draw(st.sampled_from([*SHAPES])), data.draw(st.sampled_from([1, 3]))
    fraction, strength, value = (data.draw(st.floats(0, 1)) for _ in range(3))
    plain = image_set(data.draw(st.integers(2, 30)), height, width, channels)
    shortcut = Shortcut((1,), shape, size, position, margin, value, fraction, strength)
    need = {"random": size + 2 * margin, "center": size}.get(position, size + margin)
    fits = size + 1 <= height and size <= width if position == "1,0" else need <= min(height, width)
    if not fits:
        with pytest.raises(ValueError, match="does not fit"):
            plant(plain, shortcut, stream(0))
        return
    marked = plant(plain, shortcut, stream(0))
    n = int((plain.labels == 1).sum())
    assert int(bearing(marked)[plain.labels == 1].sum()) == round(fraction * n)
    assert int(bearing(marked)[plain.labels == 0].sum()) == round(
        fraction * (1 - strength) * (len(plain) - n)
    )
    under = marked.annotation.expand_as(marked.images)
    assert torch.equal(marked.images[~under], plain.images[~under])
    assert (marked.images[under] == round(255 * value)).all()
    for mask in marked.annotation[bearing(marked), 0]:
        rows, columns = mask.nonzero().unbind(1)
        assert int(rows.max() - rows.min()) == int(columns.max() - columns.min()) == size - 1
    if bearing(marked).any():
        everywhere = marked_everywhere(plain, marked)
        assert bearing(everywhere).all()
        assert torch.equal(everywhere.images[bearing(marked)], marked.images[bearing(marked)])


# ---- real digits -----------------------------------------------------------------------------------------------


def test_the_eights_of_mnist_are_black_under_the_documented_dot():
    if not (SHARED_DATA / "MNIST").is_dir():
        pytest.skip("needs MNIST")
    from perturblab.datasets import load

    for data, eights in zip(load("mnist", SHARED_DATA), (5_851, 974), strict=True):  # correction.md 4.4
        dotted = planted(data, classes=(8,))
        assert int(bearing(dotted).sum()) == eights
        assert predictive_power(dotted, (8,)) == 1
        assert torch.equal(corrected(dotted).images, data.images)


# ---- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": ()}, "a mark must go with one class or more, and none is given"),
        ({"shape": "circle"}, "a mark's shape must be one of square, disc, cross, frame, not 'circle'"),
        ({"size": 0}, "a mark's size must be 1 pixel or more, not 0"),
        ({"margin": -1}, "a mark's margin must be 0 pixels or more, not -1"),
        ({"value": 255}, "a mark's value must be a number from 0 to 1, not 255"),
        ({"fraction": -0.1}, "a mark's fraction must be a number from 0 to 1, not -0.1"),
        ({"strength": 1.5}, "a mark's strength must be a number from 0 to 1, not 1.5"),
        ({"strength": float("nan")}, "a mark's strength must be a number from 0 to 1, not nan"),
        *(
            (
                {"position": position},
                "a mark's position must be one of top-left, top-right, bottom-left, bottom-right, center, random"
                f" or ROW,COLUMN, not '{position}'",
            )
            for position in ("bottomright", "", "3", "-1,2", "1,2,3", "1.5,2", "٣,٣")
        ),
    ],
)
def test_a_shortcut_out_of_its_range_is_refused_in_one_sentence(wrong, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        Shortcut(**{"classes": (1,), **wrong})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 28}, "a mark of 28x28 pixels at position bottom-right with a margin of 1 does not fit"),
        ({"margin": 27}, "a mark of 2x2 pixels at position bottom-right with a margin of 27 does not fit"),
        (
            {"margin": 14, "position": "random"},
            "a mark of 2x2 pixels at position random with a margin of 14 does not fit",
        ),
        ({"size": 31, "position": "center"}, "a mark of 31x31 pixels at position center does not fit"),
        ({"position": "27,0"}, "a mark of 2x2 pixels at position 27,0 does not fit"),
        ({"position": "0,29"}, "a mark of 2x2 pixels at position 0,29 does not fit"),
    ],
)
def test_a_mark_that_does_not_fit_the_images_is_refused(wrong, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        planted(image_set(2, 28, 30), **wrong)
    assert str(caught.value) == f"{message} images of 28x30 pixels"


@pytest.mark.parametrize("label", [2, -1])
def test_a_class_that_the_set_does_not_have_is_refused(label):
    with pytest.raises(ValueError, match=f"a mark cannot go with class {label}: the set has classes 0 to 1"):
        planted(image_set(), classes=(1, label))


def test_a_shortcut_for_classes_without_images_is_refused():
    with pytest.raises(ValueError, match="no image is of class 'b', 'c', which the mark goes with"):
        planted(image_set(30, classes=3)[::3], classes=(1, 2))
    some = image_set(30, classes=3)
    assert int(bearing(planted(some[some.labels < 2], classes=(1, 2))).sum()) == 10


def test_a_second_mark_is_refused():
    with pytest.raises(ValueError, match="the images are annotated with a mark already, and a set takes one"):
        planted(planted(image_set()))


def test_a_set_that_does_not_say_where_its_mark_is_is_refused():
    message = "the images have no annotation that says where their mark is"
    with pytest.raises(ValueError, match=message):
        corrected(image_set())
    with pytest.raises(ValueError, match=message):
        marked_everywhere(image_set(), image_set())


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (image_set(39), "must have the same sizes and labels"),
        (image_set(40, 28, 27), "must have the same sizes and labels"),
        (image_set(40, channels=3), "must have the same sizes and labels"),
        (replace(image_set(), labels=image_set().labels.flip(0)), "must have the same sizes and labels"),
        (black(image_set()), "must be the same outside the mark"),
        (image_set()[torch.arange(40).roll(2)], "must be the same outside the mark"),
    ],
)
def test_other_images_cannot_be_compared_with_the_marked_ones(plain, message):
    with pytest.raises(ValueError, match=f"images with and without the mark {message}"):
        marked_everywhere(plain, planted(image_set()))


def test_without_a_marked_image_there_is_no_mark_to_put_on_the_others():
    with pytest.raises(ValueError, match="no image bears a mark that the others could take"):
        marked_everywhere(image_set(), planted(image_set(), fraction=0.0))
