"""Models that are not ours: taps and ablation through hooks, against the same by hand."""

from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import relu

from conftest import one_thread
from perturblab.hooked import Hooked
from perturblab.images import ImageSet
from perturblab.probes.ablation import fill_value
from perturblab.probes.passes import Ablation, HookedPasses
from perturblab.probes.predictions import ablated_predictions
from perturblab.sites import Site, evaluating, keep, record
from perturblab.streams import seeded, stream
from plain_networks import plain_resnet18
from probing import pictures, randomised, some_masks


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with one_thread():
        yield


# ---- taps ----------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """One layer, used twice, with an in-place change after it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(relu(self.layer(relu(self.layer(x), inplace=True)), inplace=True))


@pytest.fixture
def resnet() -> nn.Module:
    with seeded(0, "init"):
        return torchvision.models.resnet18(weights=None, num_classes=5).eval()


def hook_counts(model: nn.Module) -> list[int]:
    return [len(module._forward_hooks) for module in model.modules()]


def test_a_torchvision_model_under_a_tap_equals_the_same_by_hand(resnet: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32, generator=stream(0, "images"))
    mask = some_masks(3, 64)[2]
    r = resnet
    with torch.no_grad():
        x = r.maxpool(r.relu(r.bn1(r.conv1(images))))
        x = r.layer1(x) * mask.view(1, -1, 1, 1)
        by_hand = r.fc(r.avgpool(r.layer4(r.layer3(r.layer2(x)))).flatten(1))
        hooked = Hooked(resnet, {"block1": "layer1"})
        assert torch.equal(hooked(images, keep("block1", mask)), by_hand)
        assert torch.equal(hooked(images, keep("layer1", mask)), by_hand)
        assert torch.equal(hooked(images), resnet(images))
        assert not torch.equal(by_hand, resnet(images))


def test_what_is_recorded_is_not_changed_by_an_in_place_layer_behind_the_site(resnet: nn.Module) -> None:
    images = torch.randn(2, 3, 32, 32, generator=stream(0, "images"))
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        Hooked(resnet, {"norm": "bn1"})(images, record(seen))
        assert torch.equal(seen["norm"], resnet.bn1(resnet.conv1(images)))
    assert (seen["norm"] < 0).any()


def test_a_module_that_is_used_twice_is_tapped_at_each_use() -> None:
    with seeded(0, "init"):
        model = Twice()
    x, mask = torch.randn(3, 4, generator=stream(0, "x")), torch.tensor([True, False, True, False])
    seen: list[Tensor] = []

    def tap(site: Site, activation: Tensor) -> Tensor:
        seen.append(activation.clone())
        return activation * mask

    hooked = Hooked(model, {"layer": "layer"})(x, tap)
    first = model.layer(x)
    second = model.layer(relu(first * mask))
    assert [torch.equal(a, b) for a, b in zip(seen, (first, second), strict=True)] == [True, True]
    assert torch.equal(hooked, model.out(relu(second * mask)))


def test_no_hook_is_left_after_a_pass_or_an_exception(resnet: nn.Module) -> None:
    images, before = torch.randn(1, 3, 32, 32), hook_counts(resnet)
    hooked = Hooked(resnet, {"a": "layer1", "b": "layer2.0.conv1"})
    hooked(images, record({}))
    assert hook_counts(resnet) == before

    def boom(site: Site, activation: Tensor) -> Tensor:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        hooked(images, boom)
    assert hook_counts(resnet) == before


def test_a_module_that_does_not_exist_names_the_nearest(resnet: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"no module 'layer1\.0\.conv3'; did you mean 'layer1\.0\.conv"):
        Hooked(resnet, {"a": "layer1.0.conv3"})


# ---- ablation ------------------------------------------------------------------------------------------------------


class TwiceOnMaps(nn.Module):
    """One convolution, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(relu(self.conv(relu(self.conv(x), inplace=True)), inplace=True).mean((2, 3)))


FOREIGN = {
    "resnet conv": (lambda: plain_resnet18(0.125), "layer1.0.conv1", (8, 16, 16)),
    "resnet block": (lambda: plain_resnet18(0.125), "layer2", (16, 8, 8)),
    "resnet pool": (lambda: plain_resnet18(0.125), "maxpool", (8, 16, 16)),
    "twice": (TwiceOnMaps, "conv", (3, 32, 32)),
}


@pytest.fixture(params=FOREIGN)
def foreign(request) -> tuple[nn.Module, str, tuple[int, ...]]:
    build, module, shape = FOREIGN[request.param]
    with seeded(0, "init"):
        return randomised(build()), module, shape


def by_hand(model: nn.Module, module: str, data: ImageSet, mask: Tensor, value: Tensor | float) -> Tensor:
    """Logits under a hook that exchanges channel by channel (or single elements)."""

    def change(_, __, output: Tensor) -> Tensor:
        output = output.clone()
        for c in range(output.shape[1]):
            other = value[c] if isinstance(value, Tensor) else value
            output[:, c] = torch.where(mask[c], output[:, c], other)
        return output

    handle = model.get_submodule(module).register_forward_hook(change)
    with torch.no_grad():
        logits = model((data.images / 255 - 0.5) / 0.25)
    handle.remove()
    return logits


def together(hooked: Hooked, ablation: Ablation, data: ImageSet) -> Tensor:
    passes = HookedPasses(hooked, ablation)
    with evaluating(hooked.model):
        parts = list(passes.logits(passes.before(data.normalise(data.images)), "fp32"))
    assert [(mask, image) for mask, image, _ in parts] == [(m, 0) for m in range(len(ablation.keep_masks))]
    return torch.cat([logits for _, _, logits in parts])


@pytest.mark.parametrize("elements", [False, True], ids=["channels", "elements"])
@pytest.mark.parametrize("filled", ["number", "per channel"])
def test_channels_and_elements_of_a_foreign_model_equal_the_same_by_hand(foreign, elements, filled) -> None:
    model, module, shape = foreign
    data, value = pictures(4), torch.linspace(-1, 1, shape[0]) if filled == "per channel" else -0.3
    masks = some_masks(4, *(shape if elements else shape[:1]))
    ablation = Ablation("here", masks, value)
    logits = together(Hooked(model, {"here": module}), ablation, data)
    expected = torch.stack([by_hand(model, module, data, mask, value) for mask in masks])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    predicted = ablated_predictions(Hooked(model, {"here": module}), data, ablation)
    assert torch.equal(predicted.long(), logits.argmax(2))
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


def test_the_weight_fill_of_a_foreign_convolution_is_its_bias_and_what_zeroed_weights_leave() -> None:
    with seeded(0, "init"):
        model = nn.Sequential(
            nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 10)
        )
    hooked, data, mask = Hooked(model, {"c": "0"}), pictures(4), some_masks(3, 5)[2]
    logits = together(hooked, Ablation("c", mask[None], fill_value(hooked, "c", "weight")), data)[0]
    with torch.no_grad():
        model[0].weight[~mask] = 0
        torch.testing.assert_close(logits, model(data.normalise(data.images)), rtol=1e-5, atol=1e-5)


def test_the_mean_is_over_images_places_and_uses(foreign) -> None:
    model, module, shape = foreign
    data, seen = pictures(7), []
    handle = model.get_submodule(module).register_forward_hook(lambda _, __, out: seen.append(out.clone()))
    with torch.no_grad():
        model(data.normalise(data.images))
    handle.remove()
    mean = fill_value(Hooked(model.train(), {"here": module}), "here", "mean", data)
    assert len(seen) == (2 if isinstance(model, TwiceOnMaps) else 1)
    torch.testing.assert_close(mean, torch.cat(seen).mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert mean.shape == shape[:1]


def test_bf16_gives_a_foreign_models_float32_predictions(foreign) -> None:
    model, module, shape = foreign
    hooked, ablation = Hooked(model, {"here": module}), Ablation("here", some_masks(4, shape[0]))
    data, others = pictures(12), pictures(12, purpose="others")
    exact = ablated_predictions(hooked, data, ablation)
    assert torch.equal(
        ablated_predictions(hooked, data, ablation, precision="bf16", calibration=others), exact
    )


@pytest.mark.parametrize(
    ("masks", "value", "message"),
    [
        (torch.ones(2, 7, dtype=torch.bool), 0.0, r"masks of site 'here' must be bool \[m 8\].* \[2, 7\]"),
        (torch.ones(2, 8), 0.0, "not torch.float32"),
        (torch.ones(2, 8, dtype=torch.bool), torch.ones(3), r"one for each of 8, not \[3\]"),
    ],
)
def test_what_does_not_fit_is_refused_and_no_hook_is_left(masks, value, message) -> None:
    with seeded(0, "init"):
        model = plain_resnet18(0.125)
    hooked, before = Hooked(model, {"here": "layer1.0.conv1"}), hook_counts(model)
    with pytest.raises(ValueError, match=message):
        ablated_predictions(hooked, pictures(2), Ablation("here", masks, value))
    with pytest.raises(ValueError, match="no site 'her'; did you mean 'here'"):
        ablated_predictions(hooked, pictures(2), Ablation("her", masks, value))
    assert hook_counts(model) == before
    assert model.training


def test_a_fill_that_does_not_exist_is_refused() -> None:
    hooked = Hooked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {"conv": "0", "relu": "1"})
    with pytest.raises(ValueError, match="no site 'con'; did you mean 'conv'"):
        fill_value(hooked, "con", "weight")
    with pytest.raises(ValueError, match="'1' is neither a convolution nor linear: fill it with zero"):
        fill_value(hooked, "relu", "weight")
