"""Predictions and information under many masks: equal to the slow way, in any precision, killed anywhere, without a trace."""

import hashlib
import io
import math
import signal
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score
from torch import Tensor, nn

from conftest import one_thread
from perturblab.hardware import autocast
from perturblab.hooked import Hooked
from perturblab.images import ImageSet
from perturblab.models import MODELS
from perturblab.probes import ablation as ablation_module
from perturblab.probes import passes as passes_module
from perturblab.probes import predictions as module
from perturblab.probes.ablation import fill_value, information_left
from perturblab.probes.passes import Ablation, SharedPasses
from perturblab.probes.predictions import Doubt, ablated_predictions
from perturblab.signals import Interrupted, StopFlag
from perturblab.sites import SteppedModel, evaluating
from perturblab.streams import seeded
from probing import centred, last_layer, pictures, randomised, some_masks
from test_sites import mixed_modes, random_states

MARGIN = 1e-4  # of the largest logit: float32 moves by less when batches are cut in another way


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with one_thread():
        yield


def network(name: str = "vgg9", **options) -> SteppedModel:
    with seeded(0, "init"):
        model = randomised(MODELS[name](**options))
    return centred(model, pictures(100, *shape_for(name)))


def shape_for(name: str) -> tuple[int, tuple[int, int]]:
    return (1, (28, 28)) if name == "cnn2" else (3, (32, 32))


@pytest.fixture
def vgg() -> SteppedModel:
    return network(width=0.0625, head="fc512x2")


@pytest.fixture(scope="module")
def small() -> SteppedModel:
    return network("baby_cnn")


def plain_logits(
    model: SteppedModel, data: ImageSet, change: Callable[[Tensor], Tensor], site: str
) -> Tensor:
    """One whole pass with the activation at ``site`` changed."""
    with evaluating(model):
        normalised = (data.images / 255 - 0.5) / 0.25
        return model(normalised, lambda at, state: change(state) if at.name == site else state)


def naive(
    model: SteppedModel, data: ImageSet, site: str, masks: Tensor, value: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Predictions ``[m n]`` and where they are sure, one pass per mask."""
    predicted, sure = [], []
    for mask in masks:

        def change(state: Tensor, mask: Tensor = mask) -> Tensor:
            state = state.clone()
            for c in range(state.shape[1]):
                other = value[c] if isinstance(value, Tensor) else value
                state[:, c] = torch.where(mask[c], state[:, c], other)
            return state

        top = plain_logits(model, data, change, site).topk(2)
        predicted.append(top.indices[:, 0])
        sure.append(top.values[:, 0] - top.values[:, 1] > MARGIN * top.values.abs().max())
    return torch.stack(predicted), torch.stack(sure)


def assert_equal_where_sure(predicted: Tensor, expected: tuple[Tensor, Tensor]) -> None:
    classes, sure = expected
    assert predicted.dtype == torch.int16
    assert predicted.shape == classes.shape
    assert torch.equal(predicted[sure].long(), classes[sure])
    assert sure.float().mean() > 0.98
    assert len(classes.unique()) > 2


# ---- the slow way ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["weight", "zero", "mean"])
@pytest.mark.parametrize(
    ("name", "options", "site"),
    [
        ("vgg9", {"width": 0.0625, "head": "fc512x2"}, "conv2"),
        ("vgg9", {"width": 0.0625, "head": "gap"}, "features.2"),
        ("resnet20", {"width": 0.3125}, "layer2.0.conv1"),
        ("resnet18", {"width": 0.0625}, "layer1.1.conv2"),
        ("tiny_cnn", {"width": 0.25}, "conv1"),
        ("mlp", {"width": 0.05}, "hidden1"),
    ],
)
def test_predictions_are_those_of_one_pass_per_mask(how, name, options, site) -> None:
    model, data = network(name, **options), pictures(30)
    width, real = model.site(site).width, model.site(site).name
    masks, value = some_masks(10, width), fill_value(model, site, how, data)
    predicted = ablated_predictions(model, data, Ablation(site, masks, value))
    assert_equal_where_sure(predicted, naive(model, data, real, masks, value))
    few = ablated_predictions(model, data[:1], Ablation(site, masks[:1], value))
    assert few.shape == (1, 1)


def test_the_mean_is_that_of_the_activations(vgg) -> None:
    data, seen = pictures(13), []
    plain_logits(vgg, data, lambda state: seen.append(state.clone()) or state, "conv3")
    mean = fill_value(vgg.train(), "conv3", "mean", data)
    torch.testing.assert_close(mean, seen[0].mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert mean.dtype == torch.float32


def test_elements_are_filled_with_their_channels_value(vgg) -> None:
    data, masks = pictures(20), some_masks(4, *vgg.site("conv1").shape)
    value = fill_value(vgg, "conv1", "weight")
    predicted = ablated_predictions(vgg, data, Ablation("conv1", masks, value))
    assert_equal_where_sure(predicted, naive(vgg, data, "conv1", masks, value))


@pytest.mark.parametrize("n", [499, 500, 501, 1001])
def test_blocks_meet_without_a_gap(small, n) -> None:
    data, masks, done = pictures(n), some_masks(2, 8), []
    predicted = ablated_predictions(small, data, Ablation("conv1", masks), advance=done.append)
    whole = torch.cat([plain_logits(small, part, lambda s: s, "conv1") for part in (data[:300], data[300:])])
    assert torch.equal(predicted[1].long(), whole.argmax(1))
    assert done == [*range(500, n, 500), n]


def test_the_memory_changes_no_prediction(vgg) -> None:
    data, masks = pictures(40), some_masks(12, vgg.site("conv1").width)
    plenty = ablated_predictions(vgg, data, Ablation("conv1", masks, 0.3))
    for memory in (0, 2**20, 2**24):
        assert torch.equal(
            ablated_predictions(vgg, data, Ablation("conv1", masks, 0.3), memory=memory), plenty
        )


# ---- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 300, 2**20])
def test_each_row_is_what_scikit_learn_and_the_formula_of_miller_and_madow_say(
    vgg, cells, monkeypatch
) -> None:
    monkeypatch.setattr(ablation_module, "CELLS", cells)  # tables of one mask, of three, of all
    data, masks = pictures(60), some_masks(10, vgg.site("conv2").width)
    value = fill_value(vgg, "conv2", "weight")
    predicted, _ = naive(vgg, data, "conv2", masks, value)
    rows = list(information_left(vgg, data, Ablation("conv2", masks, value)))
    assert [row["subset"] for row in rows] == list(range(10))
    assert [row["keep_size"] for row in rows] == [int(mask.sum()) for mask in masks]
    for row, classes in zip(rows, predicted, strict=True):
        mi = mutual_info_score(data.labels, classes)
        cells_seen = len(set(zip(data.labels.tolist(), classes.tolist(), strict=True)))
        bias = (cells_seen - 10 - len(classes.unique()) + 1) / (2 * 60)
        assert row["mi_nats"] == pytest.approx(mi, abs=1e-12)
        assert row["mi_mm_nats"] == pytest.approx(mi - bias, abs=1e-12)
        assert row["accuracy"] == int((classes == data.labels).sum()) / 60
    assert rows[0]["keep_size"] == 0
    assert rows[0]["mi_nats"] == 0.0  # exactly: without a channel all images look alike
    assert rows[0]["mi_mm_nats"] == 0.0
    assert rows[1]["mi_nats"] > 0


def test_a_row_of_elements_counts_elements(small) -> None:
    masks = some_masks(3, 8, 32, 32)
    rows = list(information_left(small, pictures(10), Ablation("conv1", masks)))
    assert [row["keep_size"] for row in rows] == masks.flatten(1).sum(1).tolist()


# ---- stopped and called again --------------------------------------------------------------------------------------


class StopsAfter(StopFlag):
    """A signal that comes while the given number of passes is under way."""

    def __init__(self, checks: int) -> None:
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.number = signal.SIGTERM
        super().check()


def test_stopped_after_any_pass_whole_blocks_are_left_and_the_next_call_goes_on(vgg, monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    data, ablation = pictures(10), Ablation("conv1", some_masks(9, 4), 0.3)
    whole = ablated_predictions(vgg, data, ablation, memory=2**20)
    blocks_left = []
    passes = StopsAfter(1000)
    ablated_predictions(vgg, data, ablation, memory=2**20, stop=passes)
    for checks in range(1000 - passes.left):
        kept: dict[int, Tensor] = {}
        with pytest.raises(Interrupted):
            ablated_predictions(vgg, data, ablation, memory=2**20, kept=kept, stop=StopsAfter(checks))
        blocks_left.append(len(kept))
        assert all(torch.equal(block, whole[:, first : first + 4]) for first, block in kept.items())
        assert torch.equal(ablated_predictions(vgg, data, ablation, memory=2**20, kept=kept), whole)
    assert set(blocks_left) == {0, 1, 2}


def test_blocks_that_are_there_are_taken_as_they_are(vgg, monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    data, ablation = pictures(10), Ablation("conv1", some_masks(3, 4))
    poisoned = torch.full((3, 4), 99, dtype=torch.int16)
    predicted = ablated_predictions(vgg, data, ablation, kept={4: poisoned})
    assert torch.equal(predicted[:, 4:8], poisoned)
    assert predicted[:, :4].max() < 10
    assert predicted[:, 8:].max() < 10


def test_a_signal_during_calibration_stops_it(vgg) -> None:
    kept: dict[int, Tensor] = {}
    with pytest.raises(Interrupted):
        ablated_predictions(
            vgg, pictures(3), Ablation("conv1", some_masks(9, 4)), precision="bf16",
            calibration=pictures(3, purpose="others"), kept=kept, stop=StopsAfter(0),
        )  # fmt: skip
    assert not kept


# ---- no trace ------------------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> str:
    """A hash over parameters, buffers, modes, hooks and what wants a gradient."""
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    for layer in model.modules():
        buffer.write(repr((layer.training, len(layer._forward_hooks), sorted(vars(layer)))).encode())
    buffer.write(repr([(p.requires_grad, p.grad is None) for p in model.parameters()]).encode())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def traces(model: nn.Module) -> tuple[object, ...]:
    return fingerprint(model), random_states(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("hooked", [False, True], ids=["stepped", "hooked"])
def test_nothing_is_different_afterwards(vgg, hooked) -> None:
    mixed_modes(vgg)
    next(vgg.parameters()).requires_grad_(False)
    model = Hooked(vgg, {"conv1": "features.2"}) if hooked else vgg
    data, masks, before = pictures(6), some_masks(9, 4), traces(vgg)
    for how in ("zero", "mean", "weight") if not hooked else ("zero", "mean"):
        ablation = Ablation("conv1", masks, fill_value(model, "conv1", how, data))
        list(information_left(model, data, ablation))
        list(information_left(model, data, ablation, precision="bf16", calibration=data))
        assert traces(vgg) == before
    with torch.inference_mode():
        ablated_predictions(model, data, Ablation("conv1", masks))
    assert traces(vgg) == before


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("simulated"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_different_after_an_exception_in_the_middle(vgg, after, error, monkeypatch) -> None:
    mixed_modes(vgg)
    before, passes = traces(vgg), []

    def fails(*words):
        passes.append(words)
        if len(passes) > after:
            raise error
        return autocast(*words)

    monkeypatch.setattr(passes_module, "autocast", fails)
    for model in (vgg, Hooked(vgg, {"conv1": "features.2"})):
        passes.clear()
        with pytest.raises(type(error)):
            ablated_predictions(model, pictures(6), Ablation("conv1", some_masks(9, 4)), memory=2**20)
        assert len(passes) == after + 1
        assert traces(vgg) == before


def test_nothing_is_different_after_a_stop_or_a_bad_mask(vgg) -> None:
    mixed_modes(vgg)
    before = traces(vgg)
    with pytest.raises(Interrupted):
        ablated_predictions(vgg, pictures(6), Ablation("conv1", some_masks(9, 4)), stop=StopsAfter(0))
    with pytest.raises(ValueError, match="must be bool"):
        ablated_predictions(vgg, pictures(6), Ablation("conv1", some_masks(9, 5)))
    with pytest.raises(ValueError, match="not the output of one layer"):
        fill_value(network("resnet20", width=0.125), "layer1.0", "weight")
    assert traces(vgg) == before


# ---- bf16 ----------------------------------------------------------------------------------------------------------


def doubtful(model: SteppedModel) -> SteppedModel:
    """Every class twice, almost: bf16 cannot tell the two apart."""
    last = last_layer(model)
    with torch.no_grad(), seeded(1, "twins"):
        last.weight[1::2] = last.weight[::2] + 2e-3 * torch.randn_like(last.weight[::2])
        last.bias[1::2] = last.bias[::2]
    return model


def raw(model: SteppedModel, data: ImageSet, ablation: Ablation) -> Tensor:
    """Predictions of bf16 as they come."""
    passes = SharedPasses(model, ablation, 2**30)
    with evaluating(model):
        state = passes.before(data.normalise(data.images))
        parts = [(m, i, logits.argmax(2)) for m, i, logits in passes.logits(state, "bf16")]
    predicted = torch.empty(len(ablation.keep_masks), len(data), dtype=torch.int16)
    for mask, image, classes in parts:
        predicted[mask : mask + len(classes), image : image + classes.shape[1]] = classes
    return predicted


@pytest.mark.parametrize("elements", [False, True], ids=["channels", "elements"])
@pytest.mark.parametrize(
    ("name", "site", "options"),
    [
        ("vgg9", "conv3", {"width": 0.0625}),
        ("resnet20", "layer3.0.conv1", {"width": 0.125}),
        ("cnn2", "conv1", {}),
    ],
)
@pytest.mark.parametrize("rows", [4, 20, 1000])
def test_bf16_gives_the_predictions_of_float32(name, site, options, elements, rows, monkeypatch) -> None:
    model = doubtful(network(name, classes=10, **options))
    data, others = (pictures(24, *shape_for(name), purpose=which) for which in ("pixels", "others"))
    shape = model.site(site).shape
    monkeypatch.setattr(
        passes_module, "PASS", rows * math.prod(shape)
    )  # some of the masks and images, or all
    ablation = Ablation(site, some_masks(9, *(shape if elements else shape[:1])), 0.2)
    exact = ablated_predictions(model, data, ablation)
    assert int((raw(model, data, ablation) != exact).sum()) > 5
    bf16 = ablated_predictions(model, data, ablation, precision="bf16", calibration=others)
    assert torch.equal(bf16, exact)


@pytest.fixture
def unguarded(monkeypatch) -> list[Doubt]:
    """Calibration finds no error, whatever it is; every Doubt that was made."""
    made: list[Doubt] = []
    monkeypatch.setattr(Doubt, "measured", lambda *_: made.append(Doubt(0.0)) or made[-1])
    return made


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_margin_that_is_too_small_is_found_by_audits_and_mended(unguarded, share, monkeypatch) -> None:
    monkeypatch.setattr(module, "AUDITED", share)
    if share == 0:
        monkeypatch.setattr(module, "_error", lambda *_: 0.0)  # or exact ties in bf16 would raise the margin
    model = doubtful(network("cnn2", classes=10))
    data, ablation = pictures(100, 1, (28, 28)), Ablation("conv1", some_masks(9, 16), 0.2)
    exact = ablated_predictions(model, data, ablation)
    ours = ablated_predictions(model, data, ablation, precision="bf16", calibration=data[:1])
    wrong, doubt = int((ours != exact).sum()), unguarded[0]
    flipped = int((raw(model, data, ablation) != exact).sum())
    assert flipped > 20
    if share == 0:
        assert wrong > 0
        assert (doubt.audited, doubt.missed) == (0, 0)
    if share == 0.2:
        assert doubt.margin > 0  # what the audits found: what is nearer was computed again
        assert doubt.missed > 0
        assert wrong < flipped / 10
        assert abs(doubt.audited - 0.2 * 900) < 80
    if share == 1:
        assert wrong == 0
        assert doubt.audited + doubt.again == 900


class TwoPrecisions:
    """Passes whose logits ``[m n classes]`` are given, all at once."""

    def __init__(self, half: Tensor, full: Tensor) -> None:
        self.masks, self.images, self.module = half[:, 0] > 0, half.shape[1], nn.Identity()
        self.of = {"bf16": half, "fp32": full}

    def before(self, images: Tensor) -> None:
        return None

    def logits(self, state: None, precision: str) -> Iterator[tuple[int, int, Tensor]]:
        yield 0, 0, self.of[precision]

    def pairs(self, state: None, masks: Tensor, images: Tensor) -> Tensor:
        return self.of["fp32"][masks, images]


def test_the_margin_is_the_largest_error_in_a_distance_from_the_largest_logit() -> None:
    full = torch.tensor([[[3.0, 1.0, 0.0], [5.0, 4.0, 0.0]], [[0.0, 9.0, 9.5], [0.0, 1.0, -7.0]]])
    half = full.clone()
    half[0, 1] = torch.tensor([5.25, 3.5, 0.0])  # 0.25 more for the largest, 0.5 less for another: 0.75
    half[1, 0] = torch.tensor([0.0, 9.6, 9.5])  # the largest is another: from there 0.6
    assert Doubt.measured(TwoPrecisions(half, full), pictures(2)).margin == pytest.approx(0.75)
    assert (
        Doubt.measured(TwoPrecisions(full + 7, full), pictures(2)).margin == 0.0
    )  # all alike: no class changes


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0.001, 1.0))
def test_whatever_the_error_is_no_class_is_wrong_where_it_was_calibrated(seed, classes, noise) -> None:
    with seeded(seed, "logits"):
        full = torch.randn(4, 20, classes)
        half = full + noise * torch.randn_like(full)
    passes = TwoPrecisions(half, full)
    doubt = Doubt.measured(passes, pictures(20))
    found = doubt.settled(passes, None, 0, 0, half, (0, 0))
    assert torch.equal(found, full.argmax(2))
    assert doubt.missed == 0
    assert doubt.again < 4 * 20 or noise > 0.05


def test_a_greater_error_than_the_calibrations_raises_the_margin() -> None:
    with seeded(0, "logits"):
        full = torch.randn(50, 100, 5)
        half = full + 0.3 * torch.randn_like(full)
    passes, doubt = TwoPrecisions(half, full), Doubt(1e-3)
    wrong = int((half.argmax(2) != full.argmax(2)).sum())
    found = doubt.settled(passes, None, 0, 0, half, (0, 0))
    assert wrong > 500
    assert doubt.missed > 0
    assert int((found != full.argmax(2)).sum()) == 0
    assert doubt.margin > 0.5
    assert doubt.audited == pytest.approx(0.01 * 5_000, abs=40)


def test_logits_that_are_no_numbers_are_computed_again() -> None:
    full = torch.tensor([[[0.0, 1.0, 2.0], [3.0, 2.0, 1.0]]])
    half = torch.tensor([[[math.nan, 1.0, 2.0], [1.0, 2.0, 3.0]]])
    for doubt in (Doubt(0.0), Doubt.measured(TwoPrecisions(half, full), pictures(2))):
        found = doubt.settled(TwoPrecisions(half, full), None, 0, 0, half, (0, 0))
        assert found.tolist() == [[2, 0]]


def test_bf16_needs_other_images_to_calibrate_on(vgg) -> None:
    data, ablation = pictures(3), Ablation("conv1", some_masks(2, 4))
    for none in (None, data[:0]):
        with pytest.raises(ValueError, match="bf16 needs calibration images, other than"):
            ablated_predictions(vgg, data, ablation, precision="bf16", calibration=none)


# ---- mistakes ------------------------------------------------------------------------------------------------------


def test_without_images_or_masks_there_is_nothing_to_predict(vgg) -> None:
    masks, data = some_masks(2, 4), pictures(2)
    for some, images in ((masks[:0], data), (masks, data[:0])):
        with pytest.raises(ValueError, match="at least one image and one mask"):
            ablated_predictions(vgg, images, Ablation("conv1", some))


@pytest.mark.parametrize("how", ["weight", "mean"])
def test_a_fill_for_an_unknown_site_names_the_nearest(vgg, how) -> None:
    with pytest.raises(ValueError, match="no site 'conv11'; did you mean 'conv1'"):
        fill_value(vgg, "conv11", how, pictures(2))


def test_a_mean_without_images_is_refused(vgg) -> None:
    for none in (None, pictures(2)[:0]):
        with pytest.raises(ValueError, match="mean needs images"):
            fill_value(vgg, "conv1", "mean", none)
