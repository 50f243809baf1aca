"""crop and crop_flip against Pillow, one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import chisquare
from torch import Tensor

from perturblab.augment import AUGMENTS, compose, crop, crop_flip
from perturblab.randaugment import randaugment

SEED = 7


def generator(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def charts(n: int, height: int = 32, width: int = 32) -> Tensor:
    """Images whose pixels say where they come from: row, column, image (each plus one, so that 0 is padding)."""
    rows, columns = torch.meshgrid(torch.arange(height) + 1, torch.arange(width) + 1, indexing="ij")
    numbers = (torch.arange(n) % 255 + 1).view(n, 1, 1).expand(n, height, width)
    return torch.stack([rows.expand_as(numbers), columns.expand_as(numbers), numbers], 1).byte()


def places(changed: Tensor, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """(top, left, mirrored) of each window, read off its middle, which is never padding."""
    y, x = changed.shape[2] // 2, changed.shape[3] // 2
    middle = changed[:, :, y, x].long()
    mirrored = changed[:, 1, y, x + 1].long() < middle[:, 1]
    left_of_middle = torch.where(mirrored, changed.shape[3] - 1 - x, x)
    return middle[:, 0] - 1 - y + padding, middle[:, 1] - 1 - left_of_middle + padding, mirrored


def one_by_one(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, padding: int) -> Tensor:
    height, width = images.shape[2:]
    out = []
    for image, y, x, mirror in zip(images, top.tolist(), left.tolist(), mirrored.tolist(), strict=True):
        padded = ImageOps.expand(Image.fromarray(image.permute(1, 2, 0).numpy()), padding, fill=0)
        window = padded.crop((x, y, x + width, y + height))
        out.append(np.asarray(ImageOps.mirror(window) if mirror else window))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("augment", [crop, crop_flip])
@pytest.mark.parametrize(("height", "width", "padding"), [(32, 32, 4), (32, 32, 1), (28, 40, 5), (12, 10, 0)])
def test_every_image_is_the_window_that_pillow_cuts_at_the_same_place(augment, height, width, padding):
    images = charts(300, height, width)
    changed = augment(images, generator(), padding=padding)
    top, left, mirrored = places(changed, padding)
    assert torch.equal(changed, one_by_one(images, top, left, mirrored, padding))
    assert changed.dtype == torch.uint8


def test_offsets_and_flips_are_uniform_and_independent_over_images():
    changed = crop_flip(charts(20_000), generator())
    top, left, mirrored = places(changed, 4)
    cells = torch.bincount((top * 9 + left) * 2 + mirrored, minlength=162)
    assert len(cells) == 162, "an offset lies outside 0..8"
    assert chisquare(cells.numpy()).pvalue > 1e-3
    following = torch.bincount(2 * mirrored[:-1].long() + mirrored[1:], minlength=4)
    assert chisquare(following.numpy()).pvalue > 1e-3


def test_crop_never_mirrors_and_uses_every_offset():
    top, left, mirrored = places(crop(charts(5_000), generator()), 4)
    assert not mirrored.any()
    assert chisquare(torch.bincount(top * 9 + left, minlength=81).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("augment", [crop, crop_flip])
def test_the_same_generator_gives_the_same_images_and_another_one_others(augment):
    images = charts(64)
    assert torch.equal(augment(images, generator()), augment(images, generator()))
    assert not torch.equal(augment(images, generator()), augment(images, generator(SEED + 1)))


@pytest.mark.parametrize("augment", [crop, crop_flip])
def test_how_images_lie_in_memory_does_not_matter(augment):
    images = charts(16)
    turned = images.to(memory_format=torch.channels_last)
    assert torch.equal(augment(turned, generator()), augment(images, generator()))


def test_the_images_given_are_left_as_they_were():
    images = charts(16)
    crop_flip(images, generator())
    assert torch.equal(images, charts(16))


def test_global_random_numbers_are_not_touched():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    crop_flip(charts(16), generator())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_composed_augmentations_follow_each_other_and_share_one_generator():
    images, draws = charts(64), generator()
    expected = crop(crop_flip(images, draws, padding=2), draws)
    composed = compose(lambda images, draws: crop_flip(images, draws, padding=2), crop)
    assert torch.equal(composed(images, generator()), expected)
    assert torch.equal(compose()(images, generator()), images)


def test_the_first_layer_study_crops_by_4_mirrors_and_then_applies_two_operations_at_magnitude_9():
    images, draws = charts(64), generator()
    expected = randaugment(crop_flip(images, draws, padding=4), draws, num_ops=2, magnitude=9)
    assert torch.equal(AUGMENTS["crop-flip-rand"](images, generator()), expected)


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augment_takes_a_single_gray_image(name):
    augment = AUGMENTS[name]
    if augment is None:
        assert name == "none"
    else:
        assert augment(charts(1)[:, :1], generator()).shape == (1, 1, 32, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_images_as_the_cpu():
    images = charts(64)
    assert torch.equal(crop_flip(images.cuda(), generator()).cpu(), crop_flip(images, generator()))
