"""RandAugment against torchvision's on Pillow images: the same bytes, the same odds."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.stats import chisquare
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment, autoaugment

from perturblab.datasets import load
from perturblab.randaugment import BINS, OPERATIONS, draw, level_of, randaugment

SIZES = [(3, 32, 32), (3, 28, 28), (1, 28, 28), (3, 31, 40), (1, 5, 9)]


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(c: int, height: int, width: int) -> Tensor:
    """Noise, dark noise, gradients, few values, one value, and digits where they have that size."""
    noise = torch.randint(256, (2, c, height, width), generator=generator(), dtype=torch.uint8)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    gradient = torch.stack([(7 * x + 3 * k * y) % 256 for k in range(1, c + 1)]).byte()[None]
    flat = torch.full_like(gradient, 7)
    made = [noise, noise[:1] // 4 + 40, gradient, gradient // 3 + 20, gradient // 86 * 80, flat, 0 * flat]
    if height == width >= 28:
        made.append(load("digits", size=height, channels=c)[0].images[:2])
    return torch.cat(made)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


def from_pil(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def torchvisions(name: str, image: Tensor, level: float) -> Tensor:
    return from_pil(autoaugment._apply_op(to_pil(image), name, level, InterpolationMode.NEAREST, fill=None))


def space(height: int = 32, width: int = 32) -> dict[str, tuple[Tensor, bool]]:
    """Name to levels and whether they are signed, as torchvision draws them."""
    return RandAugment()._augmentation_space(BINS, (height, width))


# ---- the operations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_at_every_magnitude_and_sign_the_bytes_are_those_of_torchvision_on_pillow_images(name, size) -> None:
    images = pictures(*size)
    levels, signed = space(*size[1:])[name]
    for level in levels.reshape(-1).tolist():
        for signed_level in (level, -level) if signed else (level,):
            expected = torch.stack([torchvisions(name, image, signed_level) for image in images])
            found = OPERATIONS[name].apply(images, signed_level)
            assert torch.equal(found, expected), f"{name} at {signed_level}"
            assert found.dtype == torch.uint8


@pytest.mark.parametrize("size", [(32, 32), (28, 40), (31, 17)])
def test_operations_order_signs_and_levels_are_those_of_torchvision(size) -> None:
    assert list(OPERATIONS) == list(space())
    for name, (levels, signed) in space(*size).items():
        assert OPERATIONS[name].signed == signed
        expected = levels.expand(BINS).tolist()
        assert [level_of(name, magnitude, *size) for magnitude in range(BINS)] == expected, name


def test_autocontrast_stretches_any_range_of_values_as_pillow_does() -> None:
    """Rounding in double precision decides: a reciprocal in place of a division is wrong here."""
    pairs = torch.combinations(torch.arange(256))[::5]
    images = torch.stack([low + (high - low) * torch.arange(16) // 15 for low, high in pairs])
    images = images.byte().view(-1, 1, 4, 4)
    expected = torch.stack([from_pil(ImageOps.autocontrast(to_pil(image))) for image in images])
    assert torch.equal(OPERATIONS["AutoContrast"].apply(images, 0.0), expected)


# ---- the draws -----------------------------------------------------------------------------------------------------


def test_each_image_gets_the_operations_that_were_drawn_for_it_one_after_the_other() -> None:
    images = pictures(3, 32, 32).repeat(8, 1, 1, 1)
    draws, expected = generator(3), list(images)
    for _ in range(3):
        for i, kind in enumerate(draw(len(images), draws).tolist()):
            name = list(OPERATIONS)[kind // 2]
            level = float(space()[name][0].expand(BINS)[12]) * (-1 if kind % 2 else 1)
            expected[i] = torchvisions(name, expected[i], level)
    found = randaugment(images, generator(3), num_ops=3, magnitude=12)
    assert torch.equal(found, torch.stack(expected))


def torchvisions_cells() -> Tensor:
    """Probability of each pair (operation, sign): 1/14, halved where there is a sign."""
    signed = torch.tensor([signed for _, signed in space().values()])
    return (
        torch.stack([torch.where(signed, 0.5, 1.0), torch.where(signed, 0.5, 0.0)], 1).flatten().double() / 14
    )


def assert_drawn(kinds: Tensor, cells: Tensor) -> None:
    counts = torch.bincount(kinds, minlength=len(cells))
    assert not counts[cells == 0].any()
    possible = cells > 0
    assert chisquare(counts[possible].numpy(), (cells[possible] * len(kinds)).numpy()).pvalue > 1e-3


def test_operations_are_equally_likely_and_signs_too_and_neighbours_and_stages_independent() -> None:
    cells = torchvisions_cells()
    draws = generator(1)
    first, second = draw(60_000, draws), draw(60_000, draws)
    pairs = torch.outer(cells, cells).flatten()
    assert_drawn(first, cells)
    assert_drawn(len(cells) * first + second, pairs)
    assert_drawn(len(cells) * first[:-1] + first[1:], pairs)


def test_torchvision_draws_with_the_probabilities_that_we_assume(monkeypatch) -> None:
    seen = []

    def note(image, name, level, **_):
        seen.append(2 * list(OPERATIONS).index(name) + (level < 0))
        return image

    monkeypatch.setattr(autoaugment, "_apply_op", note)
    image = Image.new("RGB", (32, 32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(3_000):
            RandAugment()(image)
    assert_drawn(torch.tensor(seen), torchvisions_cells())


def test_two_operations_at_magnitude_9_are_the_default() -> None:
    images = pictures(3, 32, 32)
    expected = randaugment(images, generator(), num_ops=2, magnitude=9)
    assert torch.equal(randaugment(images, generator()), expected)
    assert not torch.equal(randaugment(images, generator(8)), expected)


# ---- what stays as it was ------------------------------------------------------------------------------------------


def test_images_given_and_global_random_numbers_are_left_as_they_were() -> None:
    images = pictures(3, 32, 32)
    before, state = images.clone(), torch.random.get_rng_state()
    randaugment(images, generator(), num_ops=5)
    assert torch.equal(images, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_how_images_lie_in_memory_does_not_matter() -> None:
    images = pictures(3, 32, 32).repeat(8, 1, 1, 1)
    turned = images.to(memory_format=torch.channels_last)
    assert torch.equal(randaugment(turned, generator()), randaugment(images, generator()))


@pytest.mark.parametrize(("channels", "magnitude"), [(2, 9), (4, 9), (3, -1), (3, 31)])
def test_other_channels_and_magnitudes_are_refused(channels, magnitude) -> None:
    with pytest.raises(ValueError, match=f"not {channels} channels and magnitude {magnitude}"):
        randaugment(torch.zeros(1, channels, 8, 8, dtype=torch.uint8), generator(), magnitude=magnitude)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_gpu_gives_the_same_images_as_the_cpu(channels) -> None:
    images = pictures(channels, 32, 32).repeat(20, 1, 1, 1)
    there = randaugment(images.cuda(), generator(), num_ops=4)
    assert torch.equal(there.cpu(), randaugment(images, generator(), num_ops=4))
