"""Measure a checkpoint that a user brings: ours, or one of the original scripts (adaptive-noise.md 5.2, ``test.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from perturblab import hardware
from perturblab.checkpoints import load_weights, read_checkpoint
from perturblab.experiment import load_images
from perturblab.images import ImageSet
from perturblab.measure import score_by_class
from perturblab.report.tables import Table, show
from perturblab.sites import SteppedModel
from perturblab.studies.adaptive_noise import Evaluate
from perturblab.studies.adaptive_noise.build import build
from perturblab.studies.adaptive_noise.data import halves
from perturblab.studies.adaptive_noise.device import device_of
from perturblab.studies.adaptive_noise.training import Classifier
from perturblab.terminal import UserError, say

WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Under which a file may hold its weights beside other things."""
PREFIX = "model."
"""Of the keys that the original scripts write, and so of ours."""
WIDEST = 8  # what --width goes up to


def test(settings: Evaluate) -> None:
    """Print test loss and accuracy, and the accuracy on the images of each class."""
    s = settings
    device = hardware.pick_device(device_of(s))
    hardware.set_up("fp32", 0)
    weights = read(s.checkpoint)
    data = images(s)
    model = network(s, weights, data).to(device)
    whole, by_class = score_by_class(model, data.to(device), size=s.batch_size)
    half = " (its half of the test images)" if s.val_source == "test-halves" else ""
    say(
        f"{s.classifier} from {s.checkpoint} on {s.dataset}{half}: "
        f"test accuracy {100 * whole.accuracy:.2f} %, loss {whole.loss:.4f}, n {whole.n}"
    )
    show(table(data, by_class))


def read(path: str) -> dict[str, Any]:
    """The weights in a checkpoint by our names, wherever it keeps them. UserError where it holds none."""
    content = read_checkpoint(path)
    inside = [name for name in WRAPPERS if name in content]
    weights = content[inside[0]] if inside else content
    if not isinstance(weights, dict) or not any(isinstance(value, Tensor) for value in weights.values()):
        where = f" under '{inside[0]}'" if inside else ""
        raise UserError(
            f"{path} holds no weights{where}; a state_dict is needed, as torch.save(model.state_dict()) writes it"
        )
    if all(isinstance(key, str) and key.startswith(PREFIX) for key in weights):
        return {key.removeprefix(PREFIX): value for key, value in weights.items()}
    return weights


def images(s: Evaluate) -> ImageSet:
    """The test images, or the half of them that is the test set of a run with this ``--val-source``."""
    data = load_images(s)[1]
    return data[halves(data.labels)[1]] if s.val_source == "test-halves" else data


def network(s: Evaluate, weights: dict[str, Any], data: ImageSet) -> SteppedModel:
    """``--classifier`` with these weights, on the CPU. UserError says which network they are of, if not of this one."""
    found = fitting(s, weights, data)
    if found and found != Fit(s.classifier, s.width, len(data.classes)):
        raise UserError(explain(s, found, data))
    model = build(s.classifier, data, s.width)
    try:
        load_weights(model, weights, s.checkpoint)
    except UserError as error:
        raise UserError(str(error) if found else f"{error}; no other --classifier fits it either") from None
    return model


def table(data: ImageSet, by_class: tuple[float | None, ...]) -> Table:
    counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    rows = tuple(
        (name, str(n), "-" if accuracy is None else f"{100 * accuracy:.2f} %")
        for name, n, accuracy in zip(data.classes, counts, by_class, strict=True)
    )
    return Table("Test accuracy of each class", ("class", "n", "accuracy"), rows)


# ---- whose weights are these? --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A network whose parameters and buffers have the shapes of a checkpoint."""

    classifier: str
    width: float
    classes: int


Shapes = dict[str, tuple[int, ...]]


def fitting(s: Evaluate, weights: dict[str, Any], data: ImageSet) -> Fit | None:
    """The network that the weights are of: ``--classifier`` as asked for if possible, else any, at any width."""
    given = {key: tuple(value.shape) for key, value in weights.items() if isinstance(value, Tensor)}
    if len(given) < len(weights):
        return None
    for name in dict.fromkeys((s.classifier, *get_args(Classifier))):
        documented = shapes_of(name, data, 1.0)
        if given.keys() != documented.keys():
            continue
        for width in (s.width, *widths(given, documented)):
            classes = classes_in(given, shapes_of(name, data, width))
            if classes:
                return Fit(name, width, classes)
    return None


def shapes_of(classifier: str, data: ImageSet, width: float) -> Shapes:
    """Of every parameter and buffer, in the order of the layers."""
    with torch.device("meta"):  # no memory, no time
        model = build(classifier, data[:0], width)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


def widths(given: Shapes, documented: Shapes) -> list[float]:
    """Those that may give the shapes ``given``, the one with fewest digits first.

    A layer of c channels that has n has a width from (n - 0.5) / c to (n + 0.5) / c: channel counts are rounded, and
    at least 1.
    """
    layers = [(given[key], shape) for key, shape in list(documented.items())[:-2] if shape and given[key]]
    low = max(((n - 0.5) / c if n > 1 else 0.0 for (n, *_), (c, *_) in layers), default=0.0)
    high = min(((n + 0.5) / c for (n, *_), (c, *_) in layers), default=0.0)
    middle = (low + high) / 2
    return [float(f"{middle:.{digits}g}") for digits in range(3, 7)] if 0 < middle <= WIDEST else []


def classes_in(given: Shapes, shapes: Shapes) -> int:
    """How many classes the network of these ``shapes`` tells apart in ``given``; 0 if that is another network.

    Only the weight and bias of the last layer have a row for each class.
    """
    weight, bias = list(shapes)[-2:]
    rows = (given[bias] or (0,))[0]
    expected = {**shapes, weight: (rows, *shapes[weight][1:]), bias: (rows,)}
    return rows if given == expected else 0


def explain(s: Evaluate, found: Fit, data: ImageSet) -> str:
    """What the weights are of, where that is not what was asked for."""
    if (found.classifier, found.width) == (s.classifier, s.width):
        return (
            f"{s.checkpoint} tells {found.classes} classes apart, {s.dataset} has {len(data.classes)}; "
            "give the --dataset that it was trained on"
        )
    wide = {found.width, s.width} != {1}
    asked, fits = (
        f"--classifier {name}" + (f" --width {width:g}" if wide else "")
        for name, width in ((s.classifier, s.width), (found.classifier, found.width))
    )
    trained_on = f", with {found.classes} classes" if found.classes != len(data.classes) else ""
    return f"{s.checkpoint} does not fit {asked}: its shapes are those of {fits}{trained_on}"
