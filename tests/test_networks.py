"""Every network, against a plain one of stock layers: logits, gradients, checkpoints, and perturbing each of its sites."""

import copy
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab.models import MODELS
from perturblab.sites import SteppedModel, fan_out, fill, frozen_statistics, keep, record
from perturblab.streams import seeded, stream
from plain_networks import PlainCifarResNet, PlainCNN2, PlainSmall, PlainVGG, plain_resnet18

NARROW = 0.0625


def vgg(arch: str, **options) -> tuple[Callable[[], SteppedModel], Callable[[], nn.Module]]:
    return lambda: MODELS[arch](width=NARROW, **options), lambda: PlainVGG(arch, NARROW, **options)


NETWORKS = {
    "vgg9": vgg("vgg9"),
    "vgg11-no-batchnorm": vgg("vgg11", batchnorm=False),
    "vgg9-gap": vgg("vgg9", head="gap"),
    "vgg13-gap-bare": vgg("vgg13", head="gap", dropout=False, batchnorm=False),
    "vgg11-fc512x2": vgg("vgg11", head="fc512x2"),
    "vgg9-fc512x2-no-dropout": vgg("vgg9", head="fc512x2", dropout=False),
    "resnet20": (lambda: MODELS["resnet20"](width=0.3125), lambda: PlainCifarResNet(3, 0.3125)),  # odd widths
    "resnet18": (lambda: MODELS["resnet18"](width=0.125), lambda: plain_resnet18(0.125)),
    "baby_cnn": (MODELS["baby_cnn"], lambda: PlainSmall((8,), (10,))),
    "tiny_cnn": (MODELS["tiny_cnn"], lambda: PlainSmall((32, 64), (128, 10))),
    "simple_cnn": (
        lambda: MODELS["simple_cnn"](width=1 / 64),
        lambda: PlainSmall((4, 8, 8), (32, 16, 8, 10)),
    ),
    "cnn2": (MODELS["cnn2"], PlainCNN2),
    "mlp": (MODELS["mlp"], lambda: PlainSmall((), (512, 512, 10))),
}
PARAMETERS = {
    ("resnet20", ""): 269_722,
    ("resnet32", ""): 464_154,
    ("resnet44", ""): 658_586,
    ("resnet56", ""): 853_018,
    ("resnet18", ""): 11_173_962,
    ("baby_cnn", ""): 20_714,
    ("tiny_cnn", ""): 545_098,
    ("simple_cnn", ""): 22_954_506,
    ("cnn2", ""): 205_890,
    ("mlp", ""): 3072 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10,
    ("vgg11", "fc512x2"): 9_756_426,
    ("vgg13", "fc512x2"): 9_941_322,
    ("vgg16", "fc512x2"): 15_253_578,
    ("vgg19", "fc512x2"): 20_565_834,
    ("vgg9", "gap"): 4_555_620,
    ("vgg11", "gap"): 9_277_284,
    ("vgg13", "gap"): 9_462_180,
    ("vgg16", "gap"): 14_774_436,
    ("vgg19", "gap"): 20_086_692,
}


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request) -> tuple[SteppedModel, nn.Module]:
    """Ours and the plain one with equal weights in float64; BatchNorm and biases are not those of the start."""
    ours, plain = NETWORKS[request.param]
    with seeded(0, "init"):
        ours, plain = ours().double(), plain().double()
        with torch.no_grad():
            for module in ours.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 2)
                if isinstance(module, nn.Linear):
                    nn.init.kaiming_normal_(module.weight)
                if getattr(module, "bias", None) is not None:
                    module.bias.normal_(0, 0.5)
    plain.load_state_dict(ours.state_dict())
    return ours.eval(), plain.eval()


def images_for(model: SteppedModel, n: int = 3) -> Tensor:
    channels, size = (1, 28) if type(model).__name__ == "CNN2" else (3, 32)
    return torch.randn(n, channels, size, size, generator=stream(0, "images")).double()


def same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def differ(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() > 1e-6 * other.abs().max())


def some_masks(n: int, width: int) -> Tensor:
    return torch.rand(n, width, generator=stream(0, "masks")) < 0.5


# ---- the network that the document describes -----------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "head"), PARAMETERS)
def test_the_parameters_are_as_many_as_documented(arch: str, head: str) -> None:
    options = {"": {}, "gap": {"classes": 100, "head": "gap"}, "fc512x2": {"head": "fc512x2"}}[head]
    with torch.device("meta"):
        model = MODELS[arch](**options)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch, head]


def test_a_checkpoint_of_the_documented_network_fits_key_by_key(pair) -> None:
    ours, plain = pair
    assert list(ours.state_dict()) == list(plain.state_dict())
    ours.load_state_dict(plain.state_dict())


def test_resnet18_is_torchvisions_with_another_stem() -> None:
    ours, plain = MODELS["resnet18"]().eval(), plain_resnet18().eval()
    ours.load_state_dict(plain.state_dict())
    with torch.no_grad():
        images = images_for(ours, 2).float()
        torch.testing.assert_close(ours(images), plain(images), rtol=1e-4, atol=1e-4)


def test_dropout_moves_the_key_of_the_global_pooling_head() -> None:
    with torch.device("meta"):
        keys = {
            dropout: list(MODELS["vgg9"](head="gap", dropout=dropout).state_dict())
            for dropout in (True, False)
        }
    assert keys[True][-2:] == ["classifier.1.weight", "classifier.1.bias"]
    assert keys[False][-2:] == ["classifier.weight", "classifier.bias"]


def test_logits_are_those_of_the_plain_network(pair) -> None:
    ours, plain = pair
    with torch.no_grad():
        same(ours(images_for(ours)), plain(images_for(ours)))


def test_a_training_step_has_the_plain_gradients_and_updates_batchnorm_once(pair) -> None:
    ours, plain = (copy.deepcopy(model).train() for model in pair)
    for model in (ours, plain):
        with seeded(0, "dropout"):
            loss = cross_entropy(model(images_for(ours, 6)), torch.arange(6) % 2)
        loss.backward()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9, msg=name)
    counts = dict(plain.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, counts[name], rtol=1e-9, atol=1e-9, msg=name)
        if name.endswith("num_batches_tracked"):
            assert buffer == 1, name
    kept = copy.deepcopy(ours.state_dict())
    with frozen_statistics(ours):
        ours(images_for(ours, 6))
    assert all(torch.equal(value, kept[name]) for name, value in ours.state_dict().items())


# ---- steps and sites ---------------------------------------------------------------------------------------------


def test_running_to_any_place_and_on_from_it_is_the_forward_pass(pair) -> None:
    model, _ = pair
    with torch.no_grad():
        whole = model(images_for(model))
        for place in range(len(model.steps()) + 1):
            state = model.run(images_for(model), stop=place)
            assert torch.equal(model.run(state, start=place), whole)
            assert torch.equal(model.run(state, start=place), whole), (
                "a run changed the state that it was given"
            )


def test_a_site_is_the_output_of_the_module_that_it_names_and_has_its_shape(pair) -> None:
    """Of ours, of the plain one, or of both: a block of ours is never called, a ReLU of torchvision's is called twice."""
    model, seen, compared = pair[0], {}, set()
    images = images_for(model)
    with torch.no_grad():
        model(images, record(seen))
        for network, site in ((n, s) for s in model.sites() for n in pair):
            outputs: list[Tensor] = []
            module = dict(network.named_modules()).get(site.module, nn.Identity())
            with _hooked(module, lambda output, into=outputs: into.append(output.clone())):
                network(images)
            if len(outputs) == 1:
                same(seen[site.name], outputs[0])
                compared.add(site.name)
    assert list(seen) == [site.name for site in model.sites()]
    assert compared == seen.keys()
    for site in model.sites():
        assert seen[site.name].shape[1:] == site.shape
        assert model.position(site.name) == model.position(site.module)
        if site.weights:
            assert len(model.get_submodule(site.weights).weight) == site.width


class _hooked:
    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> None:
        self.handle = module.register_forward_hook(lambda _, __, output: change(output))

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def before_relu(plain: nn.Module, site) -> str:
    """The plain module whose output the site's ReLU gets (zero there is zero behind the ReLU too), or the block."""
    modules = dict(plain.named_modules())
    after = re.sub(r"conv(\d)$", r"bn\1", site.weights)
    after = re.sub(r"features\.(\d+)$", lambda match: f"features.{int(match[1]) + 1}", after)
    return after if isinstance(modules.get(after), nn.BatchNorm2d) else site.weights or site.name


def test_many_masks_in_one_pass_are_the_plain_network_ablated_mask_by_mask(pair) -> None:
    model, plain = pair
    images = images_for(model, 2)
    with torch.no_grad():
        for site in model.sites():
            masks = some_masks(3, site.width)
            at_once = model(images, fan_out(site.name, masks)).unflatten(0, (3, 2))
            for mask, logits in zip(masks, at_once, strict=True):
                module = plain.get_submodule(before_relu(plain, site))
                with _hooked(module, partial(torch.mul, mask.view(-1, *[1] * (len(site.shape) - 1)))):
                    naive = plain(images)
                same(logits, naive)
                same(model(images, keep(site.name, mask)), naive)
            assert differ(at_once[0], model(images)), site


def test_the_weight_fill_is_what_zeroing_weights_does(pair) -> None:
    """layerwise-mi.md 3.6: the bias goes on through BatchNorm and ReLU."""
    model, plain = pair
    images, apart = images_for(model, 2), []
    with torch.no_grad():
        for site in (site for site in model.sites() if site.weights):
            mask = some_masks(1, site.width)[0]
            zeroed = copy.deepcopy(plain)
            zeroed.get_submodule(site.weights).weight[~mask] = 0
            naive = zeroed(images)
            same(model(images, fill(site.name, mask, model.weight_fill(site.name))), naive)
            assert differ(naive, plain(images)), site
            apart.append(differ(model(images, keep(site.name, mask)), naive))
    assert any(apart), "the fill is not zero"


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_the_end_of_a_residual_block_has_no_weights_to_zero(name: str) -> None:
    model = MODELS[name](width=NARROW)
    with pytest.raises(ValueError, match=r"'layer2\.0' is not the output of one layer"):
        model.weight_fill("layer2.0")


def test_a_deep_copy_runs_its_own_layers(pair) -> None:
    model, _ = pair
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        assert not other(images_for(model)).any()
        assert model(images_for(model)).any()


def test_a_layer_that_is_exchanged_is_the_one_that_runs(pair) -> None:
    ours, plain = (copy.deepcopy(model) for model in pair)
    for site in (site for site in pair[0].sites() if site.weights):
        parent, _, name = site.weights.rpartition(".")
        for model in (ours, plain):
            layer = copy.deepcopy(model.get_submodule(site.weights))
            nn.init.constant_(layer.weight, 0.01)
            setattr(model.get_submodule(parent), name, layer)
        with torch.no_grad():
            same(ours(images_for(ours)), plain(images_for(ours)))


def test_one_hidden_layer_is_hidden_and_several_are_counted() -> None:
    names = {name: [s.name for s in network().sites()] for name, (network, _) in NETWORKS.items()}
    convs = [f"conv{n}" for n in range(1, 9)]
    assert names["vgg9"] == [*convs[:6], "hidden"]
    assert names["vgg9-gap"] == convs[:6]
    assert names["vgg11-fc512x2"] == [*convs, "hidden1", "hidden2"]
    assert names["baby_cnn"] == ["conv1"]
    assert names["tiny_cnn"] == names["cnn2"] == ["conv1", "conv2", "hidden"]
    assert names["mlp"] == ["hidden1", "hidden2"]
    assert names["resnet20"][:4] == ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0"]
    assert len(names["resnet20"]) == 1 + 9 * 3


# ---- the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NETWORKS if "resnet" not in name])
def test_the_same_seed_starts_both_networks_alike(name: str) -> None:
    """So our convolution draws what PyTorch's does, and the layers are made in the documented order."""
    states = []
    for network in NETWORKS[name]:
        with seeded(5, "init"):
            states.append(network().state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_residual_networks_start_kaiming_normal_over_the_fan_out(name: str) -> None:
    with seeded(0, "init"):
        model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            n, fan_out = module.weight.numel(), module.out_channels * module.kernel_size[0] ** 2
            std = (2 / fan_out) ** 0.5
            assert module.weight.std().item() == pytest.approx(std, rel=5 / (2 * n) ** 0.5)
            assert (module.weight / std).pow(4).mean().item() == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
    bound = model.fc.in_features**-0.5  # PyTorch's uniform start
    assert 0.9 * bound < model.fc.weight.abs().max() <= bound


# ---- other images, and bad ones --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "channels", "classes"), [(33, 1, 2), (47, 3, 100)])
@pytest.mark.parametrize("name", MODELS)
def test_sizes_channels_classes_and_widths_can_be_others(name, size, channels, classes) -> None:
    with torch.no_grad():
        model = MODELS[name](size=size, channels=channels, classes=classes, width=0.01).eval()
        seen: dict[str, Tensor] = {}
        assert model(torch.randn(2, channels, size, size), record(seen)).shape == (2, classes)
    assert [tuple(seen[site.name].shape[1:]) for site in model.sites()] == [s.shape for s in model.sites()]
    with torch.device("meta"):
        full = MODELS[name]().sites()
    assert [site.width for site in model.sites()] == [max(1, round(site.width * 0.01)) for site in full]


@pytest.mark.parametrize(
    ("name", "least"),
    [("vgg9", 32), ("resnet20", 4), ("resnet18", 16), ("baby_cnn", 2), ("tiny_cnn", 4), ("simple_cnn", 8), ("cnn2", 4), ("mlp", 1)],
)  # fmt: skip
def test_images_that_are_too_small_are_refused_in_plain_words(name: str, least: int) -> None:
    words = f"needs at least {least}x{least} pixels, not {least - 1}x{least - 1}"
    with pytest.raises(ValueError, match=words):
        MODELS[name](size=least - 1, width=0.1)
    model = MODELS[name](size=least, width=0.1, channels=3).eval()
    assert model(torch.randn(2, 3, least, least)).isfinite().all()


def test_a_head_that_does_not_exist_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ValueError, match="no head 'fc512x3'; did you mean 'fc512x2'"):
        MODELS["vgg9"](head="fc512x3")


def test_the_small_network_of_08mnist_counts_its_layers_through() -> None:
    model = MODELS["cnn2"]()
    layers = [*model.features, *model.classifier]
    assert [model[i] for i in range(len(layers))] == layers
    assert model.features[3] is model[3] is model.get_submodule(model.site("conv2").weights)
