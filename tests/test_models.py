"""The networks, against the ones that the study's document describes, written here as plainly as it does."""

import math

import pytest
import torch
from torch import nn

from perturblab.models import MODELS, VGG
from perturblab.models.sizes import scaled
from perturblab.models.vgg import LAYOUTS
from perturblab.sites import evaluating
from perturblab.streams import seeded, stream
from plain_networks import PlainVGG as Documented

# masked-loss.md 1.3; VGG9 (decision 2) by hand.
PARAMETERS = {
    "vgg9": 4_772_106,
    "vgg11": 9_493_770,
    "vgg13": 9_678_666,
    "vgg16": 14_990_922,
    "vgg19": 20_303_178,
}


def built(arch: str, width: float = 1.0, seed: int = 0, **options: int) -> VGG:
    with seeded(seed, "init"):
        return VGG(arch, width=width, **options)


def some_images(n: int = 4, channels: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=stream(0, "images"))


@pytest.mark.parametrize("arch", LAYOUTS)
def test_the_parameters_are_as_many_as_documented(arch: str) -> None:
    with torch.device("meta"):
        model = MODELS[arch]()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", LAYOUTS)
def test_the_weight_layers_are_as_many_as_the_name_says(arch: str) -> None:
    """VGG-N counts weight layers: the convolutions and the paper's three linear layers, of which these nets have two."""
    with torch.device("meta"):
        modules = list(MODELS[arch]().modules())
    count = {kind: sum(isinstance(m, kind) for m in modules) for kind in (nn.Conv2d, nn.Linear, nn.Dropout)}
    assert count == {nn.Conv2d: int(arch.removeprefix("vgg")) - 3, nn.Linear: 2, nn.Dropout: 0}


@pytest.mark.parametrize("arch", LAYOUTS)
def test_the_keys_of_a_checkpoint_are_those_of_the_documented_network(arch: str) -> None:
    with torch.device("meta"):
        ours, theirs = MODELS[arch]().state_dict(), Documented(arch).state_dict()
    assert list(ours) == list(theirs)
    assert [tuple(v.shape) for v in ours.values()] == [tuple(v.shape) for v in theirs.values()]


# The document fixes the mathematics, not the order of additions: float64 tells the two apart, float32 rounds. In
# training mode BatchNorm divides by the spread of four numbers, so there rounding is not small.
PRECISIONS = [(torch.float64, (False, True), 1e-10), (torch.float32, (False,), 1e-3)]


@pytest.mark.parametrize(("dtype", "modes", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("arch", LAYOUTS)
def test_weights_load_both_ways_and_give_equal_logits(arch, dtype, modes, tolerance) -> None:
    ours, theirs = built(arch, width=0.125).to(dtype), Documented(arch, width=0.125).to(dtype)
    images = some_images().to(dtype)
    with torch.no_grad():
        for model, other in ((ours, theirs), (theirs, ours)):
            model.train()(images)  # its own running statistics
            model.classifier[2].weight.mul_(100)  # logits of order 1
            other.load_state_dict(model.state_dict())
            for training in modes:
                logits = [m.train(training)(images) for m in (ours, theirs)]
                torch.testing.assert_close(*logits, rtol=tolerance, atol=tolerance)
            for parameter in (*ours.parameters(), *theirs.parameters()):
                parameter.add_(0.01)


@pytest.mark.parametrize("arch", LAYOUTS)
def test_gradients_are_those_of_the_documented_network(arch: str) -> None:
    ours, theirs = built(arch, width=0.125).double(), Documented(arch, width=0.125).double()
    theirs.load_state_dict(ours.state_dict())
    for model in (ours, theirs):
        model(some_images().double()).square().sum().backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_weights_start_as_documented() -> None:
    """Kaiming-normal, fan-out, for convolutions; N(0, 0.01) for Linear; BatchNorm 1 and 0; every bias 0."""
    for module in built("vgg11").modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            expected = math.sqrt(2 / (module.out_channels * 9)) if isinstance(module, nn.Conv2d) else 0.01
            n = module.weight.numel()
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n))
            assert abs(module.weight.mean().item()) < 5 * expected / math.sqrt(n)
            kurtosis = (module.weight / expected).pow(4).mean().item()
            assert kurtosis == pytest.approx(3, abs=5 * math.sqrt(96 / n))  # of a normal distribution
            assert not module.bias.any()
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (built("vgg11", 0.1, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


@pytest.mark.parametrize("arch", LAYOUTS)
@pytest.mark.parametrize("width", [1e-4, 0.02, 0.1, 2])
def test_width_scales_every_channel_count_and_the_hidden_layer(arch: str, width: float) -> None:
    with torch.device("meta"):
        model = VGG(arch, width=width)
    channels = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert channels == [max(1, round(int(word) * width)) for word in LAYOUTS[arch].split() if word != "M"]
    assert model.site("hidden").width == model.classifier[0].out_features == max(1, round(512 * width))
    assert [site.width for site in model.sites()] == [*channels, max(1, round(512 * width))]


def test_the_narrowest_network_still_runs() -> None:
    model = built("vgg11", width=1e-4)
    assert scaled(512, 1e-4) == model.site("hidden").width == 1
    assert model(some_images()).shape == (4, 10)


@pytest.mark.parametrize("size", [8, 16, 28, 31])
def test_images_under_32_pixels_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"needs at least 32x32 pixels, not {size}x{size}"):
        VGG("vgg11", size=size)


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 1, 100), (40, 3, 2), (64, 3, 10)])
def test_other_sizes_channels_and_classes_run_and_the_sites_know_their_shapes(
    size, channels, classes
) -> None:
    model = built("vgg11", 0.05, size=size, channels=channels, classes=classes)
    with evaluating(model):
        assert model(some_images(2, channels, size)).shape == (2, classes)
        for site in model.sites():
            reached = model.run(some_images(2, channels, size), stop=model.position(site.name))
            assert reached.shape[1:] == site.shape
