"""A whole pass without a tap exchanges ReLU and max-pool: not a bit of any number is another for it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from perturblab.hardware import autocast
from perturblab.models import MODELS
from perturblab.models.chain import Chain
from perturblab.sites import record
from perturblab.streams import seeded, stream


def chains() -> list[str]:
    with torch.device("meta"):
        return [name for name, build in MODELS.items() if isinstance(build(), Chain)]


def network(name: str) -> Chain:
    width = {"baby_cnn": 1.0, "tiny_cnn": 0.5, "cnn2": 1.0, "simple_cnn": 1 / 32}.get(name, 1 / 16)
    with seeded(0, "init"):
        return MODELS[name](width=width)


def images_for(model: Chain, n: int = 6) -> Tensor:
    """A few grey levels, and a third of each image is constant: many pixels of a max-pool tie."""
    channels, size = (1, 28) if type(model).__name__ == "CNN2" else (3, 32)
    images = torch.randint(0, 3, (n, channels, size, size), generator=stream(0, "images")).float()
    images[:, :, : size // 3] = 0.5
    return images


def results(model: Chain, plainly: bool, precision: str) -> dict[str, Tensor]:
    """Logits, the gradient of every parameter and of the images, and the buffers afterwards."""
    images = images_for(model).requires_grad_()
    with seeded(0, "dropout"), autocast(precision, images.device):
        logits = model.run(images) if plainly else model(images)
        loss = cross_entropy(logits.float(), torch.arange(len(images)) % logits.shape[1])
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {"logits": logits.detach(), "images": images.grad, **gradients, **dict(model.named_buffers())}


@contextmanager
def sides(model: Chain) -> Iterator[list[int]]:
    """How large the maps are that come out of a ReLU, without a hook on it."""
    seen: list[int] = []

    def forward(relu: nn.ReLU, maps: Tensor) -> Tensor:
        seen.append(maps.shape[-1])
        return maps.relu()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.ReLU, "forward", forward)
        yield seen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", chains())
def test_logits_gradients_and_buffers_are_those_of_the_steps_one_by_one(
    name: str, training: bool, precision: str
) -> None:
    ours, plain = (results(network(name).train(training), plainly, precision) for plainly in (False, True))
    assert ours.keys() == plain.keys()
    for key, value in ours.items():
        assert torch.equal(value, plain[key]), key
    assert ours["images"].any()


def test_relu_runs_behind_the_pool_only_in_a_whole_pass_without_a_tap() -> None:
    model = network("cnn2")
    images = images_for(model)
    with sides(model) as seen:
        model(images)
        model.run(images)
        model(images, record({}))
    assert seen == [14, 7, 128] + [28, 14, 128] * 2


@pytest.mark.parametrize("watch", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_hook_on_relu_or_pool_sees_what_it_always_saw(layer: int, watch: str) -> None:
    model = network("cnn2")
    images = images_for(model)
    seen: list[Tensor] = []
    handle = getattr(model.features[layer], watch)(
        lambda _, maps, *out: seen.append((out or maps)[0].clone())
    )
    model(images)
    model.run(images)
    assert torch.equal(*seen)
    handle.remove()
    with sides(model) as after:
        model(images)
    assert after == [14, 7, 128]


@pytest.mark.parametrize("watch", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_backward_hook_sees_what_it_always_saw(watch: str) -> None:
    model = network("cnn2")
    model.features[1] = nn.ReLU()  # in place PyTorch would refuse these hooks
    seen: list[Tensor] = []
    getattr(model.features[1], watch)(lambda _, *gradients: seen.append(gradients[-1][0].clone()))
    model(images_for(model)).sum().backward()
    model.run(images_for(model)).sum().backward()
    assert seen[0].shape[-1] == 28
    assert torch.equal(*seen)


def test_a_layer_in_the_place_of_a_relu_keeps_its_order() -> None:
    model = network("cnn2")
    model.features[1] = nn.GELU()
    images = images_for(model)
    assert torch.equal(model(images), model.run(images))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts
@pytest.mark.parametrize("name", ["cnn2", "vgg11"])
def test_a_pass_compiles_without_a_break(name: str) -> None:
    model = network(name)
    images = images_for(model)
    try:
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
    finally:
        torch.compiler.reset()
