"""Sites and taps: whatever way an activation is perturbed, the answer is that of the plain, slow way."""

import copy
import hashlib
import io
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perturblab.hooked import Hooked
from perturblab.images import ImageSet
from perturblab.measure import predictions, score
from perturblab.models import VGG
from perturblab.probes.robustness import robustness
from perturblab.sites import (
    Site,
    ablate_each,
    add,
    evaluating,
    fan_out,
    fill,
    frozen_statistics,
    keep,
    record,
)
from perturblab.streams import seeded, stream

HIDDEN = 32


@pytest.fixture
def model() -> VGG:
    """In evaluation mode, with BatchNorm statistics and biases that are not those of the start."""
    with seeded(0, "init"):
        vgg = VGG("vgg11", width=HIDDEN / 512).eval()
        for module in vgg.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.3)
                nn.init.normal_(module.bias)
    return vgg


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=stream(0, "images"))


def some_masks(n: int, width: int) -> Tensor:
    return torch.rand(n, width, generator=stream(0, "masks")) < 0.5


def plain_forward(vgg: VGG, images: Tensor, change: dict[str, object] | None = None) -> Tensor:
    """The network as anyone would write it: each layer of ``features``, then of ``classifier``, by its module name."""
    state = images
    for name, layer in [*prefixed("features", vgg.features), *prefixed("classifier", vgg.classifier)]:
        if name == "classifier.0":
            state = state.mean((2, 3))
        state = layer(state)
        if change and name in change:
            state = change[name](state)
    return state


def prefixed(prefix: str, layers: nn.Sequential) -> list[tuple[str, nn.Module]]:
    return [(f"{prefix}.{name}", layer) for name, layer in layers.named_children()]


def fingerprint(module: nn.Module) -> str:
    """A hash over parameters, buffers, modes and hooks."""
    buffer = io.BytesIO()
    torch.save({**module.state_dict(), "modes": [m.training for m in module.modules()]}, buffer)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]
    return hashlib.sha256(buffer.getvalue() + repr(hooks).encode()).hexdigest()


def fail_after(model: nn.Module, images: Tensor) -> None:
    model(images)
    raise RuntimeError("boom")


def random_states() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, keys.tolist(), *rest, torch.get_rng_state().tolist()


# ---- steps -----------------------------------------------------------------------------------------------------


def test_the_steps_do_what_the_layers_one_by_one_do(model: VGG, images: Tensor) -> None:
    assert torch.equal(model(images), plain_forward(model, images))


def test_running_to_a_place_and_on_from_it_is_the_forward_pass(model: VGG, images: Tensor) -> None:
    whole = model(images)
    for place in range(len(model.steps()) + 1):
        assert torch.equal(model.run(model.run(images, stop=place), start=place), whole)


def test_the_activation_at_a_site_is_the_output_of_the_documented_module(model: VGG, images: Tensor) -> None:
    seen: dict[str, Tensor] = {}
    model(images, record(seen))
    assert (
        list(seen) == [site.name for site in model.sites()] == [*(f"conv{n}" for n in range(1, 9)), "hidden"]
    )
    for site in model.sites():
        kept: list[Tensor] = []
        plain_forward(
            model, images, {site.module: lambda state, into=kept: into.append(state.clone()) or state}
        )
        assert torch.equal(seen[site.name], kept[0])
        assert seen[site.name].shape[1:] == site.shape
        assert torch.equal(model.run(images, stop=model.position(site.name)), kept[0])


def test_the_hidden_layer_is_classifier_1_and_the_first_convolution_features_2(model: VGG) -> None:
    assert model.site("hidden") == Site("hidden", "classifier.1", (HIDDEN,), "classifier.0")
    assert model.site("conv1") == Site("conv1", "features.2", (4, 32, 32), "features.0")
    assert model.position("classifier.1") == model.position("hidden")


def test_recorded_activations_carry_no_gradient(model: VGG, images: Tensor) -> None:
    seen: dict[str, Tensor] = {}
    assert model(images, record(seen)).requires_grad
    assert not any(activation.requires_grad for activation in seen.values())


# ---- taps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("site", "module"), [("hidden", "classifier.1"), ("conv1", "features.2")])
def test_keep_zeroes_what_is_not_kept_and_rescales_nothing(model, images, site, module) -> None:
    mask = some_masks(1, model.site(site).width)[0]
    shape = (1, -1, 1, 1) if site == "conv1" else (1, -1)
    naive = plain_forward(model, images, {module: lambda state: state * mask.view(shape)})
    assert torch.equal(model(images, keep(site, mask)), naive)
    assert torch.equal(model(images, keep(module, mask)), naive)
    assert torch.equal(model(images, fill(site, mask)), naive)
    assert not torch.equal(model(images), naive)


@pytest.mark.parametrize(("site", "module"), [("hidden", "classifier.1"), ("conv3", "features.10")])
def test_fill_puts_a_number_or_one_value_per_unit_in_place_of_what_is_removed(
    model, images, site, module
) -> None:
    width = model.site(site).width
    mask, values = some_masks(1, width)[0], torch.linspace(-1, 1, width)

    def naive(state: Tensor) -> Tensor:
        state = state.clone()
        for unit in range(width):
            if not mask[unit]:
                state[:, unit] = values[unit]
        return state

    assert torch.equal(model(images, fill(site, mask, values)), plain_forward(model, images, {module: naive}))
    ones = plain_forward(
        model, images, {module: lambda s: torch.where(mask.view(1, -1, *[1] * (s.dim() - 2)), s, 1.0)}
    )
    assert torch.equal(model(images, fill(site, mask, 1.0)), ones)


def test_add_adds_at_its_site_only(model: VGG, images: Tensor) -> None:
    noise = torch.randn(6, HIDDEN, generator=stream(0, "noise"))
    naive = plain_forward(model, images, {"classifier.1": lambda state: state + noise})
    assert torch.equal(model(images, add("hidden", noise)), naive)


def test_a_mask_for_each_image_is_applied_to_that_image(model: VGG, images: Tensor) -> None:
    masks = some_masks(6, HIDDEN)
    together = model(images, keep("hidden", masks))
    for number, mask in enumerate(masks):
        alone = model(images[number : number + 1], keep("hidden", mask))
        torch.testing.assert_close(together[number : number + 1], alone)


def test_a_mask_over_single_elements_is_applied_as_it_is(model: VGG, images: Tensor) -> None:
    mask = torch.rand(1, 4, 32, 32, generator=stream(0, "elements")) < 0.5
    naive = plain_forward(model, images, {"features.2": lambda state: state * mask})
    assert torch.equal(model(images, keep("conv1", mask)), naive)


@pytest.mark.parametrize(
    ("site", "module"), [("hidden", "classifier.1"), ("conv1", "features.2"), ("conv8", "features.27")]
)
def test_fan_out_equals_one_pass_per_mask(model, images, site, module) -> None:
    masks = some_masks(5, model.site(site).width)
    together = model(images, fan_out(site, masks)).view(5, 6, 10)
    for logits, mask in zip(together, masks, strict=True):
        naive = plain_forward(
            model, images, {module: lambda s, m=mask: s * m.view(1, -1, *[1] * (s.dim() - 2))}
        )
        torch.testing.assert_close(logits, naive, rtol=0, atol=1e-5)


def test_gradients_reach_only_what_is_kept(model: VGG, images: Tensor) -> None:
    mask = some_masks(1, HIDDEN)[0]
    model(images, keep("hidden", mask)).sum().backward()
    reached = model.classifier[0].weight.grad.abs().sum(1) > 0
    assert not reached[~mask].any()
    assert reached[mask].any()


# ---- mistakes ----------------------------------------------------------------------------------------------------


def test_a_misspelt_site_names_the_nearest(model: VGG) -> None:
    with pytest.raises(ValueError, match="no site 'hiden'; did you mean 'hidden'"):
        model.position("hiden")
    with pytest.raises(ValueError, match="no site 'conv9'; did you mean 'conv"):
        model.site("conv9")


@pytest.mark.parametrize("tap", [keep, fill, add, fan_out])
def test_a_tap_for_a_misspelt_site_is_an_error_and_not_silently_nothing(model, images, tap) -> None:
    with pytest.raises(ValueError, match="no site 'hiden'; did you mean 'hidden'"):
        model(images, tap("hiden", torch.ones(1, HIDDEN, dtype=torch.bool)))
    with pytest.raises(ValueError, match="no site 'hiden'; did you mean 'hidden'"):
        Hooked(model, {"hidden": "classifier.1"})(
            images, tap("hiden", torch.ones(1, HIDDEN, dtype=torch.bool))
        )


@pytest.mark.parametrize("tap", [keep, fill, fan_out])
@pytest.mark.parametrize("site", ["hidden", "conv1"])
def test_a_mask_of_the_wrong_width_is_refused(model, images, tap, site) -> None:
    width = model.site(site).width
    for wrong in (width - 1, width + 1, 1):
        with pytest.raises(ValueError, match=f"{wrong}.* fit an activation with {width} channels"):
            model(images, tap(site, torch.ones(2, wrong, dtype=torch.bool)))


def test_a_mask_without_the_axis_of_images_is_refused_even_if_its_last_axis_fits() -> None:
    square = Site("here", "0", (8, 8, 8))
    with pytest.raises(ValueError, match="does not fit"):
        keep("here", torch.ones(8, 8, 8, dtype=torch.bool))(square, torch.ones(2, 8, 8, 8))


def test_masks_stack_into_a_first_axis() -> None:
    activation, masks = torch.randn(2, 5, 3, 3), some_masks(4, 5)
    stacked = ablate_each(activation, masks)
    assert stacked.shape == (4, 2, 5, 3, 3)
    for m in range(4):
        for unit in range(5):
            expected = activation[:, unit] if masks[m, unit] else torch.zeros(2, 3, 3)
            assert torch.equal(stacked[m, :, unit].abs(), expected.abs())


# ---- no trace ----------------------------------------------------------------------------------------------------


def mixed_modes(model: VGG) -> list[bool]:
    model.train()
    model.features[1].eval()
    model.classifier.eval()
    model.classifier[2].train()
    return [module.training for module in model.modules()]


def test_evaluating_restores_each_modules_own_mode(model: VGG) -> None:
    before = mixed_modes(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_evaluating_restores_modes_and_gradients_after_an_exception(model: VGG) -> None:
    before = mixed_modes(model)
    with pytest.raises(RuntimeError, match="boom"), evaluating(model):
        raise RuntimeError("boom")
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_frozen_statistics_normalises_by_the_batch_and_leaves_every_buffer(model, images) -> None:
    model.train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with frozen_statistics(model):
        frozen = model(images)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert torch.equal(frozen, model(images))  # what training mode computes, which now moves the buffers
    assert model.features[1].num_batches_tracked == before["features.1.num_batches_tracked"] + 1
    assert not torch.equal(model.features[1].running_mean, before["features.1.running_mean"])


def test_frozen_statistics_ends_after_an_exception(model, images) -> None:
    model.train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="boom"), frozen_statistics(model):
        fail_after(model, images)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    model(images)
    assert model.features[1].num_batches_tracked == 1


def test_a_norm_that_keeps_no_statistics_keeps_none_after_frozen_statistics() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    with frozen_statistics(model):
        model(torch.randn(4, 3))
    assert [norm.track_running_stats for norm in model] == [False, True]


def test_measuring_leaves_weights_buffers_modes_hooks_and_random_states_untouched(model) -> None:
    mixed_modes(model)
    pixels = torch.randint(256, (9, 3, 32, 32), generator=stream(0, "pixels"), dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(9) % 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    before = fingerprint(model), random_states()
    score(model, data)
    predictions(model, data, keep("hidden", some_masks(1, HIDDEN)[0]))
    list(robustness(model, data, seed=0, n_masks=2))
    with evaluating(model):
        Hooked(model, {"first": "features.2"})(data.normalise(data.images), record({}))
    assert (fingerprint(model), random_states()) == before
    model(data.normalise(data.images))
    assert fingerprint(model) != before[0]  # a forward in training mode is no measurement: the hash sees it


def test_a_deep_copy_runs_its_own_weights(model: VGG, images: Tensor) -> None:
    original = model(images)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(model(images), original)
    assert not torch.equal(twin(images), original)
    assert torch.equal(twin(images), plain_forward(twin, images))
