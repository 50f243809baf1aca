"""Reliance on a planted mark, of models made by hand and of a real network: against counting in numpy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perturblab.confound import Shortcut, plant
from perturblab.images import ImageSet
from perturblab.models import MODELS
from perturblab.probes.reliance import reliance
from perturblab.sites import Step, SteppedModel
from perturblab.streams import seeded, stream

ZEROS, EIGHTS = 12, 8
LABELS = np.array([0] * ZEROS + [1] * EIGHTS)


class ByHand(SteppedModel):
    """Predicts class 1 where the function says so of ``(is an eight, bears the dot)``."""

    def __init__(self, predicts) -> None:
        super().__init__()
        self.predicts = predicts

    def steps(self) -> list[Step]:
        def logits(images: Tensor) -> Tensor:
            eight, dot = images[:, 0, 3, 3] > 0.5, images[:, 0, 25:27, 25:27].amin((1, 2)) > 0.5
            return nn.functional.one_hot(self.predicts(eight, dot).long(), 2).float()

        return [(None, logits)]


def digits() -> ImageSet:
    """Noise; a bright pixel in the middle of nowhere is the shape of an 8."""
    images = torch.randint(100, (len(LABELS), 1, 28, 28), generator=stream(0, "noise")).byte()
    images[:, 0, 3, 3] = torch.from_numpy(LABELS * 255).byte()
    return ImageSet(images, torch.from_numpy(LABELS), ("0", "8"), (0.0,), (1.0,))


def dotted(plain: ImageSet, **shortcut) -> ImageSet:
    """The documented dot: on every 8, unless told otherwise."""
    return plant(plain, Shortcut(**{"classes": (1,), **shortcut}), stream(1, "dot"))


def found(predicts, **shortcut) -> dict:
    plain = digits()
    return reliance(ByHand(predicts), plain, dotted(plain, **shortcut))


def four(found: dict) -> list[float]:
    return [found[f"accuracy_{name}"] for name in ("original", "confounded", "toggled", "marked")]


# ---- models that are known ------------------------------------------------------------------------------------------


def test_a_model_that_sees_only_the_dot_drops_by_1_and_flips_every_image() -> None:
    seen = found(lambda eight, dot: dot)
    assert four(seen) == [ZEROS / 20, 1, 0, EIGHTS / 20]
    assert (seen["accuracy_drop"], seen["flip_rate"], seen["worst_group_accuracy"]) == (1, 1, 0)
    assert seen["groups"] == {"0, plain": 1, "0, marked": 0, "8, plain": 0, "8, marked": 1}
    assert seen["n"] == 20


def test_a_model_that_ignores_the_dot_drops_by_0_and_flips_none() -> None:
    seen = found(lambda eight, dot: eight)
    assert four(seen) == [1, 1, 1, 1]
    assert (seen["accuracy_drop"], seen["flip_rate"], seen["worst_group_accuracy"]) == (0, 0, 1)


def test_a_model_that_takes_the_dot_for_a_zero_has_a_negative_drop() -> None:
    seen = found(lambda eight, dot: ~dot)
    assert four(seen) == [EIGHTS / 20, 0, 1, ZEROS / 20]
    assert (seen["accuracy_drop"], seen["flip_rate"], seen["worst_group_accuracy"]) == (-1, 1, 0)


def test_a_model_that_takes_dot_or_shape_is_right_on_plain_and_dotted_digits_and_still_found_out() -> None:
    """Why accuracy on plain digits does not tell (correction.md 4.8, 19)."""
    seen = found(lambda eight, dot: eight | dot)
    assert four(seen) == [1, 1, EIGHTS / 20, EIGHTS / 20]
    assert seen["accuracy_drop"] == pytest.approx(ZEROS / 20)
    assert seen["flip_rate"] == pytest.approx(ZEROS / 20)
    assert seen["groups"] == {"0, plain": 1, "0, marked": 0, "8, plain": 1, "8, marked": 1}
    assert seen["worst_group_accuracy"] == 0


def test_a_model_that_answers_always_the_same_does_not_rely_on_the_dot() -> None:
    seen = found(lambda eight, dot: torch.ones_like(dot))
    assert four(seen) == [EIGHTS / 20] * 4
    assert (seen["accuracy_drop"], seen["flip_rate"], seen["worst_group_accuracy"]) == (0, 0, 0)


def test_where_only_some_eights_and_some_zeros_are_dotted_confounded_is_as_they_are() -> None:
    """A quarter of 8 eights, and half that share of 12 zeros, 1.5 of them: 2 and 2 bear the dot."""
    shortcut = {"fraction": 0.25, "strength": 0.5}
    seen = found(lambda eight, dot: dot, **shortcut)
    assert dotted(digits(), **shortcut).annotation.flatten(1).any(1).nonzero().numel() == 4
    right = (ZEROS - 2) + 2
    assert seen["accuracy_confounded"] == pytest.approx(right / 20)
    assert seen["accuracy_toggled"] == pytest.approx(1 - right / 20)
    assert four(seen)[::3] == [ZEROS / 20, EIGHTS / 20]


# ---- against counting ----------------------------------------------------------------------------------------------


class Table(SteppedModel):
    """Any predictions: one for each image without its mark and one with it. An image bears its number in a pixel."""

    def __init__(self, off: np.ndarray, on: np.ndarray) -> None:
        super().__init__()
        self.answers = torch.from_numpy(np.stack([off, on]))

    def steps(self) -> list[Step]:
        def logits(images: Tensor) -> Tensor:
            number = (255 * images[:, 0, 0, 0]).round().long()
            dot = images[:, 0, 1:].amax((1, 2)) > 0.5
            return nn.functional.one_hot(self.answers[dot.long(), number], 3).float()

        return [(None, logits)]


def share(of: list[bool]) -> float:
    return sum(of) / len(of)


@pytest.mark.parametrize("seed", range(25))
def test_every_number_is_that_of_counting_image_by_image(seed) -> None:
    """Three classes, any predictions, marks at random places on some images of some classes."""
    random = np.random.default_rng(seed)
    n = int(random.integers(6, 60))
    labels = np.concatenate([[0, 1], random.integers(0, 3 if seed % 3 else 2, n - 2)])
    off, on = random.integers(0, 3, (2, n))
    images = torch.zeros(n, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(n)
    plain = ImageSet(images, torch.from_numpy(labels), ("0", "8", "9"), (0.0,), (1.0,))
    fraction, strength = random.uniform(0.3, 1), random.uniform(0, 1)
    marked = dotted(plain, position="random", fraction=fraction, strength=strength)
    bears = marked.annotation.flatten(1).any(1).numpy()
    seen = reliance(Table(off, on), plain, marked, size=int(random.integers(1, 70)))

    every = range(n)
    right_off, right_on = off == labels, on == labels
    assert seen["accuracy_original"] == pytest.approx(share([right_off[i] for i in every]))
    assert seen["accuracy_marked"] == pytest.approx(share([right_on[i] for i in every]))
    confounded = share([right_on[i] if bears[i] else right_off[i] for i in every])
    toggled = share([right_off[i] if bears[i] else right_on[i] for i in every])
    assert seen["accuracy_confounded"] == pytest.approx(confounded)
    assert seen["accuracy_toggled"] == pytest.approx(toggled)
    assert seen["accuracy_drop"] == pytest.approx(confounded - toggled)
    assert seen["flip_rate"] == pytest.approx(share([off[i] != on[i] for i in every]))
    groups = {}
    for label, name in enumerate(("0", "8", "9")):
        for how, right in (("plain", right_off), ("marked", right_on)):
            if label in labels:  # a class without images is no group
                groups[f"{name}, {how}"] = share([right[i] for i in every if labels[i] == label])
    assert seen["groups"] == pytest.approx(groups)
    assert seen["worst_group_accuracy"] == pytest.approx(min(groups.values()))


def plain_forward(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """The document's network by torch's own layers, on pixels from 0 to 1; predicted classes."""
    weights = model.state_dict()
    layers = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 2),
    )  # fmt: skip
    layers.load_state_dict(dict(zip(layers.state_dict(), weights.values(), strict=True)))
    with torch.no_grad():
        return layers.double()(torch.from_numpy(images[:, None] / 255)).argmax(1).numpy()


@pytest.fixture
def network() -> SteppedModel:
    """The network of 08MNIST with weights large enough for the dot to matter; in training mode."""
    with seeded(3, "init"):
        model = MODELS["cnn2"](classes=2, channels=1, size=28)
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0, 0.3)
    plain = digits()
    with torch.no_grad():  # no class is preferred
        model.classifier[3].bias -= model(plain.normalise(plain.images)).mean(0)
    return model


def test_the_four_accuracies_are_those_on_four_sets_painted_by_hand(network) -> None:
    plain = digits()
    without = plain.images[:, 0].numpy().astype(np.float64)
    sets = {}
    for name, bears in (
        ("original", LABELS < 0),
        ("confounded", LABELS == 1),
        ("toggled", LABELS == 0),
        ("marked", LABELS >= 0),
    ):
        sets[name] = without.copy()
        sets[name][np.flatnonzero(bears)[:, None, None], [[25], [26]], [[25, 26]]] = 255
    right = {name: plain_forward(network, images) == LABELS for name, images in sets.items()}
    seen = reliance(network, plain, dotted(plain))
    for name, each in right.items():
        assert seen[f"accuracy_{name}"] == pytest.approx(each.mean()), name
    assert seen["accuracy_drop"] == pytest.approx(right["confounded"].mean() - right["toggled"].mean())
    assert seen["flip_rate"] == pytest.approx((right["original"] != right["marked"]).mean())  # of two classes
    assert 0 < seen["flip_rate"] < 1, "or the network sees all or nothing, and much could be confused"
    assert len({each.mean() for each in right.values()}) > 2


def test_measuring_leaves_no_trace(network) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain = digits()
    marked = dotted(plain)
    digests, random = (plain.digest(), marked.digest()), torch.get_rng_state()
    reliance(network, plain, marked)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert (plain.digest(), marked.digest()) == digests
    assert torch.equal(torch.get_rng_state(), random)


# ---- what cannot be compared ----------------------------------------------------------------------------------------


def test_sets_that_are_not_the_same_images_are_refused() -> None:
    plain, model = digits(), ByHand(lambda eight, dot: dot)
    with pytest.raises(ValueError, match="the images have no annotation"):
        reliance(model, plain, plain)
    with pytest.raises(ValueError, match="no image bears a mark"):
        reliance(model, plain, dotted(plain, fraction=0))
    with pytest.raises(ValueError, match="the same sizes and labels"):
        reliance(model, plain[:10], dotted(plain))
    with pytest.raises(ValueError, match="the same outside the mark"):
        reliance(model, plain[torch.tensor([1, 0, *range(2, 20)])], dotted(plain))
