"""Logits under many masks at once, against the slow ways: weights really zeroed, or one whole pass per mask."""

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import one_thread
from perturblab.models import MODELS
from perturblab.probes import passes as module
from perturblab.probes.partial import PartialProducts
from perturblab.probes.passes import FEW, Ablation, SharedPasses
from perturblab.sites import Layers, Site, SteppedModel, evaluating
from perturblab.streams import seeded, stream
from probing import randomised, some_masks

NARROW = 0.0625
GIBIBYTE = 2**30
NETWORKS: dict[str, Callable[[], SteppedModel]] = {
    "vgg11": lambda: MODELS["vgg11"](width=NARROW),
    "vgg9-gap": lambda: MODELS["vgg9"](width=NARROW, head="gap"),
    "vgg9-gap-bare": lambda: MODELS["vgg9"](width=NARROW, head="gap", dropout=False, batchnorm=False),
    "vgg9-fc512x2": lambda: MODELS["vgg9"](width=NARROW, head="fc512x2"),
    "vgg9-no-batchnorm": lambda: MODELS["vgg9"](width=NARROW, batchnorm=False),
    "resnet20": lambda: MODELS["resnet20"](width=0.3125),
    "resnet18": lambda: MODELS["resnet18"](width=NARROW),
    "baby_cnn": MODELS["baby_cnn"],
    "tiny_cnn": lambda: MODELS["tiny_cnn"](width=0.25),
    "cnn2": MODELS["cnn2"],
    "mlp": lambda: MODELS["mlp"](width=0.05),
}


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with one_thread():
        yield


def network(name: str) -> SteppedModel:
    with seeded(0, "init"):
        return randomised(NETWORKS[name]().double())


@pytest.fixture(scope="module", params=NETWORKS)
def model(request) -> SteppedModel:
    return network(request.param)


@pytest.fixture(scope="module")
def vgg() -> SteppedModel:
    return network("vgg11")


def images_for(model: SteppedModel, n: int = 3) -> Tensor:
    channels, size = (1, 28) if type(model).__name__ == "CNN2" else (3, 32)
    return torch.randn(n, channels, size, size, generator=stream(0, "images")).double()


def values(width: int) -> Tensor:
    """One per channel, of either sign."""
    return torch.randn(width, generator=stream(0, "values")).double()


def together(
    model: SteppedModel, ablation: Ablation, images: Tensor, memory: int = GIBIBYTE, precision: str = "fp32"
) -> Tensor:
    """Logits ``[m n classes]``; each is computed once."""
    passes, logits = SharedPasses(model, ablation, memory), None
    with evaluating(model):
        for first in range(0, len(images), passes.images):
            state = passes.before(images[first : first + passes.images])
            for mask, image, part in passes.logits(state, precision):
                if logits is None:
                    logits = part.new_full((len(ablation.keep_masks), len(images), part.shape[-1]), torch.nan)
                k, b = part.shape[:2]
                place = logits[mask : mask + k, first + image : first + image + b]
                assert place.isnan().all()
                place[:] = part
    assert logits is not None
    assert not logits.isnan().any()
    return logits


def one_by_one(
    model: SteppedModel, site: Site, masks: Tensor, value: Tensor | float, images: Tensor
) -> Tensor:
    """A whole pass per mask, the activation changed channel by channel, or at single elements."""

    def changed(mask: Tensor, state: Tensor) -> Tensor:
        state = state.clone()
        for c in range(state.shape[1]):
            other = value[c] if isinstance(value, Tensor) else value
            state[:, c] = torch.where(mask[c], state[:, c], other)
        return state

    with evaluating(model):
        return torch.stack(
            [model(images, lambda at, s, m=m: changed(m, s) if at == site else s) for m in masks]
        )


def weights_zeroed(model: SteppedModel, layer: str, masks: Tensor, images: Tensor) -> Tensor:
    """A whole pass of a copy per mask, the layer's weights zeroed, its bias left."""
    twin, logits = copy.deepcopy(model), []
    weight, intact = twin.get_submodule(layer).weight, model.get_submodule(layer).weight
    with torch.no_grad():
        for mask in masks:
            weight.copy_(intact)[~mask] = 0
            logits.append(twin(images))
    return torch.stack(logits)


def same(actual: Tensor, expected: Tensor, relative: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=relative, atol=relative * float(expected.abs().max()))


# ---- the slow ways -------------------------------------------------------------------------------------------------


def test_the_weight_fill_is_what_zeroed_weights_leave(model: SteppedModel) -> None:
    images = images_for(model)
    for site in (s for s in model.sites() if s.weights):
        masks = some_masks(FEW + 1, site.width)
        with evaluating(model):
            ablation = Ablation(site.name, masks, model.weight_fill(site.name))
        naive = weights_zeroed(model, site.weights, masks, images)
        same(together(model, ablation, images), naive)
        same(naive[1], model(images).detach())
        assert float((naive - naive[1]).abs().max()) > 1e-4 * float(naive[1].abs().max())


def test_any_value_in_place_of_channels_or_units_equals_one_pass_per_mask(model: SteppedModel) -> None:
    images = images_for(model, 2)
    for site in model.sites():
        masks = some_masks(FEW + 1, site.width)
        naive = one_by_one(model, site, masks, values(site.width), images)
        for few in (1, FEW - 1, FEW, FEW + 1):  # the next convolution is one product from FEW masks on
            ablation = Ablation(site.name, masks[:few], values(site.width))
            same(together(model, ablation, images), naive[:few])


@pytest.mark.parametrize("name", ["vgg9-gap", "resnet20", "resnet18", "cnn2"])
@pytest.mark.parametrize("value", [0.0, -0.7, "one per channel", "one per element"])
def test_elements_may_have_one_value_or_one_per_channel_or_per_element(name, value) -> None:
    model = network(name)
    images = images_for(model, 2)
    for site in (*model.sites()[:3], model.sites()[-1]):
        if value == "one per channel":
            filled = values(site.width)
        elif value == "one per element":
            filled = torch.randn(site.shape, generator=stream(0, "values")).double()
        else:
            filled = value
        masks = some_masks(FEW, *site.shape)
        naive = one_by_one(model, site, masks, filled, images)
        same(together(model, Ablation(site.name, masks, filled), images), naive)


def test_a_value_per_channel_is_not_one_per_column_where_a_map_is_as_wide_as_it_has_channels() -> None:
    with seeded(0, "init"):
        model = randomised(MODELS["vgg9"](width=0.5)).double()  # 32 channels of 32 x 32
    site, images = model.site("conv1"), images_for(model, 1)
    masks = some_masks(3, *site.shape)
    naive = one_by_one(model, site, masks, values(32), images)
    same(together(model, Ablation("conv1", masks, values(32)), images), naive)


def test_in_float32_logits_move_by_rounding_only() -> None:
    model = network("vgg11").float()
    images = images_for(model).float()
    for site in model.sites():
        masks, value = some_masks(FEW + 1, site.width), values(site.width)  # a float64 value, a float32 model
        actual = together(model, Ablation(site.name, masks, value), images)
        assert actual.dtype == torch.float32
        same(actual, one_by_one(model, site, masks, value.float(), images), 1e-5)


def test_with_all_channels_removed_the_logits_know_nothing_of_the_image(model: SteppedModel) -> None:
    images = images_for(model, 4)
    for site in (s for s in model.sites() if ".conv" not in s.name and not s.name.startswith("layer")):
        logits = together(model, Ablation(site.name, some_masks(FEW, site.width), values(site.width)), images)
        same(logits[0], logits[0, :1].expand_as(logits[0]))
        assert float((logits[1] - logits[1, :1]).abs().max()) > 0


def test_pairs_are_the_entries_of_the_whole(model: SteppedModel) -> None:
    images = images_for(model, 5)
    masks, of = torch.tensor([0, 8, 3, 3, 1, 7]), torch.tensor([4, 0, 2, 1, 1, 4])
    for site in model.sites()[::3]:
        ablation = Ablation(site.name, some_masks(9, site.width), values(site.width))
        logits = together(model, ablation, images)
        for memory in (1, GIBIBYTE):  # one row at a time, and all
            passes = SharedPasses(model, ablation, memory)
            with evaluating(model):
                same(passes.pairs(passes.before(images), masks, of), logits[masks, of])


# ---- the next convolution as one product ---------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 5),
    out=st.integers(1, 4),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    size=st.tuples(st.integers(3, 7), st.integers(4, 6)),
    bias=st.booleans(),
    norm=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_partial_products_are_the_convolution_of_the_filled_maps(
    channels, out, kernel, stride, padding, size, bias, norm, seed
) -> None:
    with seeded(seed, "layer"):
        convolution = nn.Conv2d(channels, out, kernel, stride, padding, bias=bias)
        layers = [convolution, *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU(inplace=True)]
        randomised(nn.Sequential(*layers).double())
        maps, value = torch.randn(2, channels, *size).double(), torch.randn(channels).double()
        masks = torch.rand(4, channels) < 0.5
    with torch.no_grad():
        partial = PartialProducts(Layers(*layers), value, (channels, *size), torch.float64)
        filled = torch.where(masks[:, None, :, None, None], maps, value[:, None, None]).flatten(0, 1)
        expected = conv2d(filled, convolution.weight, convolution.bias, stride, padding)
        for layer in layers[1:]:
            expected = layer(expected)
        same(partial.each(maps)(masks), expected)


@pytest.mark.parametrize(
    "odd",
    [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular", "padding": 1}, {"padding": "same"}],
    ids=str,
)
def test_other_convolutions_run_as_they_are(odd) -> None:
    class Odd(SteppedModel):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, **odd)
            self.fc = nn.Linear(4, 10)

        def steps(self):
            here, there = Site("conv1", "conv1", (4, 30, 30)), Site("conv2", "conv2", (4, 28, 28))
            last = (None, lambda maps: self.fc(maps.mean((2, 3))))
            return [(here, Layers(self.conv1)), (there, Layers(self.conv2)), last]

    with seeded(0, "init"):
        model = randomised(Odd().double())
    images, masks = images_for(model), some_masks(FEW, 4)
    naive = one_by_one(model, model.site("conv1"), masks, values(4), images)
    same(together(model, Ablation("conv1", masks, values(4)), images), naive)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(2)], ids=str)
@pytest.mark.parametrize("value", [-3.0, 0.0, 3.0])
def test_a_pool_behind_the_site_sees_values_of_either_sign(pool, value) -> None:
    class Pooled(SteppedModel):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, 2), nn.Linear(4, 10)

        def steps(self):
            last = (None, lambda maps: self.fc(maps.mean((2, 3))))
            site = Site("conv1", "conv1", (4, 30, 30))
            return [(site, Layers(self.conv1)), (None, pool), (None, Layers(self.conv2)), last]

    with seeded(0, "init"):
        model = randomised(Pooled().double())
    images = images_for(model)
    for masks in (some_masks(FEW, 4), some_masks(FEW, 4, 30, 30)):
        naive = one_by_one(model, model.site("conv1"), masks, value, images)
        same(together(model, Ablation("conv1", masks, value), images), naive)


def test_images_need_not_be_square_nor_of_the_size_of_the_sites(vgg: SteppedModel) -> None:
    images = torch.randn(2, 3, 34, 48, generator=stream(0, "images")).double()
    for site in vgg.sites():
        masks = some_masks(FEW, site.width)
        naive = one_by_one(vgg, site, masks, values(site.width), images)
        same(together(vgg, Ablation(site.name, masks, values(site.width)), images), naive)


# ---- memory --------------------------------------------------------------------------------------------------------


class Held(TorchDispatchMode):
    """The most bytes that tensors hold at a time, of those that are made in the region."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._holders: Counter[int] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            storage = tensor.untyped_storage()
            key, size = storage.data_ptr(), storage.nbytes()
            if not self._holders[key]:
                self.now += size
            self._holders[key] += 1
            weakref.finalize(tensor, self._release, key, size)
        self.most = max(self.most, self.now)
        return result

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if not self._holders[key]:
            self.now -= size


def held(model: SteppedModel, site: str, masks: int, images: Tensor, memory: int) -> int:
    ablation = Ablation(site, some_masks(masks, model.site(site).width), 0.5)
    with evaluating(model), Held() as tensors:
        passes = SharedPasses(model, ablation, memory)
        for first in range(0, len(images), passes.images):
            state = passes.before(images[first : first + passes.images].clone())
            for _ in passes.logits(state, "fp32"):
                pass
    return tensors.most


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("vgg11", "conv1"),
        ("vgg11", "conv2"),
        ("resnet20", "layer1.1.conv1"),
        ("resnet20", "layer1.2"),
        ("resnet18", "conv1"),
        ("tiny_cnn", "conv1"),
        ("mlp", "hidden1"),
    ],
)
def test_what_is_held_is_bounded_by_the_memory_and_not_by_the_masks(name, site) -> None:
    """Within 1.5 times the memory, and the parameters; what a layer holds inside its own call is not seen."""
    model = network(name).float()
    images = images_for(model, 12).float()
    parameters = 8 * sum(p.numel() for p in model.parameters())  # folded, and once more in another order
    for memory in (2**20, 2**21):
        few, many = (held(model, site, masks, images[: 60 // masks], memory) for masks in (10, 60))
        assert max(few, many) < 1.5 * memory + parameters
    assert held(model, site, 60, images, GIBIBYTE) > 2 * many or name == "mlp"  # the count sees something


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "resnet18", "tiny_cnn"])
def test_the_memory_changes_no_logit(name) -> None:
    model = network(name)
    images = images_for(model, 3)
    for site in model.sites()[:4]:
        ablation = Ablation(site.name, some_masks(11, site.width), values(site.width))
        plenty = together(model, ablation, images)
        for memory in (0, 2**20, 2**23, 2**31):
            same(together(model, ablation, images, memory), plenty)


def test_a_pass_may_hold_many_masks_or_one(vgg, monkeypatch) -> None:
    site, images = vgg.site("conv2"), images_for(vgg, 4)
    ablation = Ablation(site.name, some_masks(9, site.width), values(site.width))
    naive = one_by_one(vgg, site, ablation.keep_masks, values(site.width), images)
    for rows in (1, 2, 5, 9, 20, 36, 100):
        monkeypatch.setattr(module, "PASS", rows * 8 * 16 * 16)
        same(together(vgg, ablation, images), naive)


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("masks", "value", "message"),
    [
        (torch.ones(2, 7, dtype=torch.bool), 0.0, r"masks of site 'conv2' must be bool \[m 8\].* \[2, 7\]"),
        (torch.ones(8, dtype=torch.bool), 0.0, r"must be bool \[m 8\].* \[8\]"),
        (torch.ones(2, 8, 16, 15, dtype=torch.bool), 0.0, r"\[m 8 16 16\].* \[2, 8, 16, 15\]"),
        (torch.ones(2, 8), 0.0, r"must be bool .*, not torch.float32 \[2, 8\]"),
        (torch.ones(2, 8, dtype=torch.uint8), 0.0, "not torch.uint8"),
        (torch.ones(2, 8, dtype=torch.bool), torch.ones(7), r"one for each of 8, not \[7\]"),
        (torch.ones(2, 8, dtype=torch.bool), torch.ones(8, 16, 16), r"one for each of 8, not \[8, 16, 16\]"),
    ],
)
def test_masks_and_values_that_do_not_fit_the_site_are_refused(vgg, masks, value, message) -> None:
    with pytest.raises(ValueError, match=message):
        SharedPasses(vgg, Ablation("conv2", masks, value), GIBIBYTE)


def test_an_unknown_site_names_the_nearest(vgg) -> None:
    with pytest.raises(ValueError, match="no site 'conv22'; did you mean 'conv2'"):
        SharedPasses(vgg, Ablation("conv22", some_masks(2, 8)), GIBIBYTE)
