"""Accuracy with few units kept, against a forward hook that multiplies the activation by the same masks."""

import pytest
import torch

from conftest import fresh_model, tiny_images
from perturblab.images import ImageSet
from perturblab.masks import subsets
from perturblab.measure import score
from perturblab.models import VGG
from perturblab.probes import robustness as module
from perturblab.probes.robustness import FRACTIONS, robustness
from perturblab.signals import Interrupted, StopFlag
from perturblab.sites import SteppedModel
from perturblab.streams import seeded, stream


@pytest.fixture
def vgg() -> SteppedModel:
    with seeded(0, "init"):
        model = VGG("vgg11", width=0.0625)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, 0, 0.5)
    return model


@pytest.fixture
def pictures() -> ImageSet:
    generator = stream(0, "pixels")
    pixels = torch.randint(256, (23, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (23,), generator=generator)
    return ImageSet(pixels, labels, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)


def by_hook(model: torch.nn.Module, layer: torch.nn.Module, data: ImageSet, mask: torch.Tensor) -> float:
    """Accuracy of a whole forward pass with the layer's output multiplied."""
    handle = layer.register_forward_hook(
        lambda _, __, output: output * mask.view(1, -1, *[1] * (output.dim() - 2))
    )
    model.eval()
    with torch.no_grad():
        hits = model((data.images / 255 - 0.5) / 0.25).argmax(1) == data.labels
    model.train()
    handle.remove()
    return int(hits.sum()) / len(data)


@pytest.mark.parametrize(("site", "layer"), [("hidden", "classifier.1"), ("conv1", "features.2")])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_each_row_is_the_accuracy_that_a_hook_finds_with_the_same_mask(
    vgg, pictures, site, layer, chunk, monkeypatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)  # one mask at a time, and all at once
    rows = list(robustness(vgg, pictures, seed=5, site=site, fractions=(0.1, 0.5), n_masks=3))
    assert [(row["kept_fraction"], row["mask"]) for row in rows] == [
        (f, m) for f in (0.1, 0.5) for m in range(3)
    ]
    width = vgg.site(site).width
    for fraction in (0.1, 0.5):
        size = max(1, round(fraction * width))
        masks = subsets(torch.full((3,), size), width, stream(5, "robustness", site, size))
        for row in (row for row in rows if row["kept_fraction"] == fraction):
            assert row["keep_size"] == size
            naive = by_hook(vgg, vgg.get_submodule(layer), pictures, masks[row["mask"]])
            assert row["accuracy"] == naive


def test_with_everything_kept_the_accuracy_is_that_of_the_intact_network(vgg, pictures) -> None:
    rows = list(robustness(vgg, pictures, seed=0, fractions=(1.0,), n_masks=2))
    assert [row["keep_size"] for row in rows] == [32, 32]
    assert {row["accuracy"] for row in rows} == {score(vgg, pictures).accuracy}


def test_at_least_one_unit_is_kept(vgg, pictures) -> None:
    assert {row["keep_size"] for row in robustness(vgg, pictures, seed=0, fractions=(0.001,), n_masks=2)} == {
        1
    }


def test_the_same_seed_gives_the_same_subsets_and_another_seed_others(vgg, pictures) -> None:
    def accuracies(seed: int) -> list[float]:
        return [row["accuracy"] for row in robustness(vgg, pictures, seed=seed, fractions=(0.3,), n_masks=8)]

    assert accuracies(0) == accuracies(0)
    assert accuracies(0) != accuracies(1)


def test_the_fractions_of_the_report_lie_between_none_and_all() -> None:
    assert list(FRACTIONS) == sorted(set(FRACTIONS))
    assert 0 < FRACTIONS[0] < FRACTIONS[-1] < 1


def test_a_raised_stop_flag_ends_the_measurement_at_the_next_row() -> None:
    stop = StopFlag()
    rows = robustness(fresh_model(), tiny_images(), seed=0, n_masks=3, stop=stop)
    next(rows)
    stop.number = 15
    with pytest.raises(Interrupted, match="SIGTERM"):
        next(rows)


def test_an_unknown_site_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'hidden'"):
        next(robustness(fresh_model(), tiny_images(), seed=0, site="hiden"))
