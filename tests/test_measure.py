"""Accuracy and loss, against scikit-learn on probabilities computed in one plain pass."""

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from conftest import TinyModel, fresh_model, tiny_images
from perturblab.images import ImageSet
from perturblab.measure import batches, predictions, score
from perturblab.sites import keep


@pytest.fixture
def data() -> ImageSet:
    return tiny_images(n=53)


@pytest.fixture
def trained() -> TinyModel:
    """Some steps of training on other images, so that accuracy is neither chance nor perfect."""
    model, data = fresh_model(), tiny_images(n=30, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    with torch.random.fork_rng([]):
        for _ in range(25):
            loss = torch.nn.functional.cross_entropy(model(data.normalise(data.images)), data.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def probabilities(model: TinyModel, data: ImageSet, mask: torch.Tensor | None = None) -> torch.Tensor:
    """One pass over all images, layer by layer, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        pixels = (data.images.double() / 255 - 0.4) / 0.3
        hidden = model.hidden(torch.nn.functional.avg_pool2d(model.conv(pixels.float()), 2).flatten(1))
        logits = model.output(hidden if mask is None else hidden * mask)
    model.train()
    return logits.double().softmax(1)


@pytest.mark.parametrize("size", [1, 7, 53, 500])
def test_the_score_is_what_scikit_learn_computes(trained, data, size) -> None:
    p = probabilities(trained, data)
    found = score(trained, data, size=size)
    assert found.n == 53
    assert found.accuracy == accuracy_score(data.labels, p.argmax(1))
    assert found.loss == pytest.approx(log_loss(data.labels, p, labels=[0, 1, 2]), rel=1e-5)
    assert 0.4 < found.accuracy < 1


def test_under_a_tap_the_score_is_that_of_the_perturbed_network(trained, data) -> None:
    mask = torch.tensor([True, False, True, True, False, False])
    p = probabilities(trained, data, mask)
    found = score(trained, data, keep("hidden", mask))
    assert found.accuracy == accuracy_score(data.labels, p.argmax(1))
    assert found.loss == pytest.approx(log_loss(data.labels, p, labels=[0, 1, 2]), rel=1e-5)
    assert found.loss != score(trained, data).loss


def test_predictions_are_the_most_probable_classes_in_order(trained, data) -> None:
    assert torch.equal(predictions(trained, data), probabilities(trained, data).argmax(1))


def test_batches_hold_every_image_once_in_order_and_normalised(data) -> None:
    parts = list(batches(data, 20))
    assert [len(labels) for _, labels in parts] == [20, 20, 13]
    assert torch.equal(torch.cat([labels for _, labels in parts]), data.labels)
    torch.testing.assert_close(torch.cat([images for images, _ in parts]), (data.images / 255 - 0.4) / 0.3)


def test_in_bf16_the_loss_is_close_and_summed_in_float32(trained, data) -> None:
    exact, coarse = score(trained, data), score(trained, data, precision="bf16")
    assert coarse.loss == pytest.approx(exact.loss, rel=0.05)
    assert coarse.loss != exact.loss
