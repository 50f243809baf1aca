"""The examples of docs/extending.md do what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from perturblab.images import Batch, ImageSet
from perturblab.masks import subsets
from perturblab.measure import predictions
from perturblab.models import MODELS
from perturblab.objectives import Clock
from perturblab.sites import keep
from perturblab.streams import seeded, stream

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def example(name: str) -> Any:
    """What the page's example of this name defines."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(next(code for code in EXAMPLES if re.search(rf"^(class|def) {name}\b", code, re.MULTILINE)), names)
    return names[name]


@pytest.fixture
def pictures() -> ImageSet:
    generator = stream(0, "pixels")
    pixels = torch.randint(256, (30, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (30,), generator=generator)
    return ImageSet(pixels, labels, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def model() -> Any:
    with seeded(3, "init"):
        return MODELS["baby_cnn"]()


def test_the_probe_tells_the_share_of_images_that_keep_their_class_under_each_mask(model, pictures) -> None:
    rows = list(example("agreement")(model, pictures, seed=4, site="conv1", n_masks=12))
    masks = subsets(torch.full((12,), 4), 8, stream(4, "agreement", "conv1"))
    intact = predictions(model, pictures)
    naive = [float((predictions(model, pictures, keep("conv1", m)) == intact).float().mean()) for m in masks]
    assert [row["agreement"] for row in rows] == pytest.approx(naive)
    assert 0 < min(naive) < 1


def test_a_probe_takes_20_to_40_lines() -> None:
    code = next(code for code in EXAMPLES if "def agreement" in code)
    assert 20 <= len(code.splitlines()) <= 40


def test_the_objective_smooths_labels(model, pictures) -> None:
    batch = Batch(pictures.normalise(pictures.images), pictures.labels, torch.arange(30))
    objective = example("Smoothed")(0.1)
    loss = objective(model, batch, objective.draw(batch, Clock(1, 0, 1, 1)))
    log_p = model(batch.images).log_softmax(1)
    right = log_p.gather(1, batch.labels[:, None])[:, 0]
    assert loss.total.item() == pytest.approx(-(0.9 * right + 0.1 * log_p.mean(1)).mean().item(), rel=1e-6)
