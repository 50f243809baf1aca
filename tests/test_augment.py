"""crop and crop_flip against Pillow, one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import beta, chisquare, ks_2samp, kstest
from torch import Tensor

from perturblab.augment import AUGMENTS, _beta, compose, crop, crop_flip, cutmix
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


# ---- CutMix --------------------------------------------------------------------------------------------------------


def numbered(n: int = 9, height: int = 32, width: int = 32) -> tuple[Tensor, Tensor]:
    """Images that hold their own number in each pixel, and that number as label."""
    numbers = torch.arange(n)
    return numbers.view(-1, 1, 1, 1).expand(n, 3, height, width).float(), numbers


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 30)])
def test_one_box_of_every_image_comes_from_its_second_label_s_image_and_the_share_counts_the_rest(
    height, width
) -> None:
    images, labels = numbered(9, height, width)
    draws, boxes = generator(), 0
    for _ in range(200):
        mixed, (second, share) = cutmix(images, labels, draws)
        assert second.sort().values.tolist() == labels.tolist()
        foreign = (mixed != images)[:, 0].any(0)
        rows, columns = foreign.any(1), foreign.any(0)
        assert torch.equal(foreign, rows[:, None] & columns), "not a box"
        assert torch.equal(rows.nonzero().diff(dim=0), torch.ones(max(int(rows.sum()) - 1, 0), 1).long())
        expected = torch.where(foreign, second.view(-1, 1, 1, 1), images)
        assert torch.equal(mixed, expected)
        assert share.dtype == torch.float32
        assert share.tolist() == pytest.approx([1 - int(foreign.sum()) / (height * width)] * 9)
        boxes += bool(foreign.any())
    assert boxes > 150


def documented_box(numbers: np.random.Generator, alpha: float) -> tuple[int, int, float]:
    """Its top, its left and the share, as the document's code draws them for 32 x 32 pixels."""
    lam = numbers.beta(alpha, alpha)
    side = int(32 * np.sqrt(1 - lam))
    x, y = numbers.integers(32), numbers.integers(32)
    x1, x2, y1, y2 = np.clip([x - side // 2, x + side // 2, y - side // 2, y + side // 2], 0, 32)
    return int(y1), int(x1), 1 - (x2 - x1) * (y2 - y1) / 1024


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_and_shares_are_distributed_as_in_the_document(alpha) -> None:
    images, labels = numbered(2)
    draws, numbers = generator(), np.random.default_rng(0)
    expected = np.array([documented_box(numbers, alpha) for _ in range(4_000)])
    found = []
    while len(found) < 4_000:
        mixed, (second, share) = cutmix(images, labels, draws, alpha=alpha)
        if second[0] == 0:
            continue  # the two images stay where they are, and nothing can be seen
        foreign = (mixed != images)[0, 0]
        found.append((*foreign.nonzero().tolist()[0], float(share[0])) if foreign.any() else (-1, -1, 1.0))
    for one, other in zip(np.array(found).T, expected.T, strict=True):
        boxed = (np.array(found)[:, 2] < 1), (expected[:, 2] < 1)
        assert ks_2samp(one[boxed[0]], other[boxed[1]]).pvalue > 1e-3
    assert ks_2samp(np.array(found)[:, 2], expected[:, 2]).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 4.0])
def test_the_share_is_drawn_from_a_beta_distribution(alpha) -> None:
    draws = generator()
    assert kstest([_beta(alpha, draws) for _ in range(5_000)], beta(alpha, alpha).cdf).pvalue > 1e-3


def test_partners_are_uniform_over_the_batch() -> None:
    images, labels = numbered(5, 2, 2)
    draws = generator()
    pairs = [5 * labels + cutmix(images, labels, draws)[1][0] for _ in range(2_000)]
    assert chisquare(torch.bincount(torch.cat(pairs), minlength=25).numpy()).pvalue > 1e-3


def test_mixing_leaves_the_images_given_and_the_global_random_numbers_alone() -> None:
    images, labels = numbered()
    images, state = images.contiguous(), torch.random.get_rng_state()
    mixed = cutmix(images, labels, generator())
    assert torch.equal(images, numbered()[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(cutmix(images, labels, generator())[0], mixed[0])


def test_a_single_image_is_mixed_with_itself() -> None:
    images, labels = numbered(1)
    mixed, (second, _) = cutmix(images, labels, generator())
    assert torch.equal(mixed, images)
    assert second.tolist() == [0]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_an_alpha_that_is_not_above_0_is_refused(alpha) -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        cutmix(*numbered(), generator(), alpha=alpha)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_mixes_as_the_cpu_does() -> None:
    images, labels = numbered()
    here, there = (cutmix(images.to(d), labels.to(d), generator()) for d in ("cpu", "cuda"))
    for one, other in zip((here[0], *here[1]), (there[0], *there[1]), strict=True):
        assert torch.equal(one, other.cpu())
