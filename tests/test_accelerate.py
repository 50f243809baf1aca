"""The faster convolution gives the numbers of PyTorch's: values, gradients, running statistics, and trained weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from perturblab import accelerate
from perturblab.accelerate import Conv3x3
from perturblab.augment import crop_flip
from perturblab.hardware import autocast
from perturblab.images import ImageSet, ShuffledSource
from perturblab.models import MODELS
from perturblab.runs import run_folder
from perturblab.sites import SteppedModel, frozen_statistics, record
from perturblab.studies.masked_loss import Train
from perturblab.studies.masked_loss.run import build, objective, recipe
from perturblab.train import fit

SHAPES = [(1, 1), (1, 3), (2, 2), (3, 2), (4, 4), (5, 5), (8, 8), (9, 9)]


@pytest.fixture(autouse=True)
def _small_maps_of_any_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks here are narrow: without this they would be left to the library, as it is faster for them."""
    monkeypatch.setattr(accelerate, "WORTHWHILE", 0)


@contextmanager
def stock() -> Iterator[None]:
    """PyTorch's own convolution instead of ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conv3x3, "forward", nn.Conv2d.forward)
        yield


def layer(dtype: torch.dtype, bias: bool = True, channels: int = 5) -> Conv3x3:
    torch.manual_seed(0)
    return Conv3x3(channels, 7, bias).to(dtype)


def maps(shape: tuple[int, int], dtype: torch.dtype, channels: int = 5) -> Tensor:
    return torch.randn(3, channels, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def results(conv: Conv3x3, images: Tensor) -> list[Tensor]:
    """Output, and the gradients of input, weight and bias under a fixed pull on the output; all in float64."""
    images = images.clone().requires_grad_()
    out = conv(images)
    pull = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    gradients = torch.autograd.grad(out, [images, *conv.parameters()], pull)
    return [t.detach().double() for t in (out, *gradients)]


def largest_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Relative to the largest entry of each tensor."""
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("channels", [5, 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6), (torch.bfloat16, 2e-2)], ids=str
)
def test_values_and_gradients_are_those_of_conv2d_up_to_rounding(
    shape: tuple[int, int], dtype: torch.dtype, tolerance: float, channels: int
) -> None:
    ours = results(layer(dtype, channels=channels), maps(shape, dtype, channels))
    exact = layer(dtype, channels=channels).double()  # the same rounded weights
    with stock():
        expected = results(exact, maps(shape, dtype, channels).double())
    assert largest_difference(ours, expected) < tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [5, 1])
def test_maps_leave_channels_last_however_they_came(channels: int, training: bool, precision: str) -> None:
    many, conv = maps((9, 9), torch.float32, channels + 1), layer(torch.float32, channels=channels)
    plain = many[:, 1:].contiguous()
    for images in (plain, many[:, 1:], plain.contiguous(memory_format=torch.channels_last), plain[:1]):
        with autocast(precision, images.device), torch.set_grad_enabled(training):
            out = conv(images)
        _, c, h, w = out.shape
        assert out.stride() == (h * w * c, 1, w * c, c)
        torch.testing.assert_close(
            out.float(), conv2d(images, conv.weight, conv.bias, padding=1), atol=0.03, rtol=0.02
        )


@pytest.mark.parametrize("shape", [(2, 2), (8, 8), (9, 9)], ids=str)
def test_autocast_computes_in_bfloat16_and_leaves_float32_gradients(shape: tuple[int, int]) -> None:
    conv, images = layer(torch.float32), maps(shape, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(images)
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        out.float(), conv2d(images, conv.weight, conv.bias, padding=1), atol=0.03, rtol=0.02
    )


def test_what_needs_no_gradient_gets_none() -> None:
    conv, images = layer(torch.float32), maps((2, 2), torch.float32).requires_grad_()
    conv.weight.requires_grad_(False)
    conv(images).sum().backward()
    assert conv.weight.grad is None
    assert images.grad is not None


def test_a_convolution_without_bias_works() -> None:
    conv, images = layer(torch.float64, bias=False), maps((4, 4), torch.float64)
    torch.testing.assert_close(conv(images), conv2d(images, conv.weight, padding=1))


# ---- whole networks ----------------------------------------------------------------------------------------------


def network(dtype: torch.dtype = torch.float64, arch: str = "vgg11") -> SteppedModel:
    torch.manual_seed(0)
    return MODELS[arch](width=0.1).to(dtype)


def batch(dtype: torch.dtype = torch.float64, n: int = 12) -> tuple[Tensor, Tensor]:
    images = torch.randn(n, 3, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(n) % 10


def step(model: SteppedModel, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of a training step."""
    images, labels = batch(dtype)
    loss = cross_entropy(model(images), labels)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arch", ["vgg11", "vgg16"])
def test_loss_gradients_and_running_statistics_of_a_step_are_the_stock_networks(arch: str) -> None:
    # In float64: in float32 a pixel that ties in a max-pool may send its gradient elsewhere after any rounding.
    ours, plain = network(arch=arch), network(arch=arch)
    loss, gradients = step(ours)
    with stock():
        expected_loss, expected = step(plain)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-10, msg=name)
    statistics = dict(plain.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, statistics[name], rtol=1e-12, atol=1e-12, msg=name)
        if name.endswith("num_batches_tracked"):
            assert buffer == 1


def test_float32_loss_and_activations_are_the_stock_networks_up_to_rounding() -> None:
    ours, plain = network(torch.float32), network(torch.float32)
    seen: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    ours(batch(torch.float32)[0], record(seen))
    with stock():
        plain(batch(torch.float32)[0], record(expected))
    assert list(seen) == list(expected) == [site.name for site in ours.sites()]
    for name, activation in seen.items():
        torch.testing.assert_close(activation, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def test_logits_in_evaluation_mode_are_the_stock_networks() -> None:
    model = network().eval()
    with torch.no_grad():
        ours = model(batch()[0])
        with stock():
            torch.testing.assert_close(ours, model(batch()[0]), rtol=1e-10, atol=1e-12)


def test_a_run_in_two_parts_is_the_whole_run_also_from_a_plain_copy_of_the_activation() -> None:
    model = network().eval()
    images = batch()[0]
    whole = model(images)
    for site in model.sites():
        here = model.position(site.name)
        state = model.run(images, stop=here).clone(memory_format=torch.contiguous_format)
        torch.testing.assert_close(model.run(state, start=here), whole, rtol=1e-12, atol=1e-14)


def test_further_forwards_under_frozen_statistics_leave_the_buffers_alone() -> None:
    model = network()
    step(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with frozen_statistics(model):
        step(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_deep_copy_has_its_own_weights() -> None:
    model = network()
    other = copy.deepcopy(model)
    step(other)
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in other.parameters())


def test_checkpoints_of_stock_convolutions_fit() -> None:
    stock_layer = nn.Conv2d(5, 7, 3, padding=1)
    ours = layer(torch.float32)
    ours.load_state_dict(stock_layer.state_dict())
    assert ours.state_dict().keys() == stock_layer.state_dict().keys()


# ---- training ----------------------------------------------------------------------------------------------------


def trained(folder: Path, **words: object) -> dict[str, Tensor]:
    """The weights after two epochs of three steps, the last one short."""
    pixels = torch.randint(
        256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    images = ImageSet(pixels, torch.arange(40) % 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    s = Train.parse({"arch": "vgg11", "seed": 0, "width": 0.1, "epochs": 2, "batch_size": 16, **words})
    model = build(s, images)
    run = run_folder(s, s.name, folder)
    with run.claimed():
        for _ in fit(
            run, model, objective(s, model), ShuffledSource(images, 16, s.seed, crop_flip), recipe(s)
        ):
            pass
    return model.state_dict()


def test_training_twice_gives_the_same_bits_and_masks_of_weight_zero_change_none(tmp_path: Path) -> None:
    baseline = trained(tmp_path / "one", mode="baseline")
    again = trained(tmp_path / "two", mode="baseline")
    masked = trained(tmp_path / "three", mode="masked", lambda_max=0.0)
    for name, weight in baseline.items():
        assert torch.equal(weight, again[name]), name
        assert torch.equal(weight, masked[name]), name


@pytest.mark.slow
def test_a_compiled_step_is_the_stock_networks() -> None:
    ours, plain = network(torch.float32), network(torch.float32)
    images = batch(torch.float32)[0]
    compiled = torch.compile(ours)(images)
    with stock():
        torch.testing.assert_close(compiled, plain(images), rtol=1e-4, atol=1e-4)
