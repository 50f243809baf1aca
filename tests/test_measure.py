"""Accuracy and loss, of all images and of each class, against scikit-learn on probabilities computed in one plain pass."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, recall_score

from conftest import TinyModel, fresh_model, tiny_images
from perturblab.images import ImageSet
from perturblab.measure import batches, predictions, score, score_by_class
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


# ---- of each class ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(trained, data) -> ImageSet:
    """Labels without regard to the images, so that every class is sometimes hit; their numbers differ."""
    with torch.no_grad():
        trained.output.bias[1] += 0.7
    random = torch.Generator().manual_seed(0)
    labels = torch.tensor([0.2, 0.5, 0.3]).multinomial(len(data), replacement=True, generator=random)
    return replace(data, labels=labels)


@pytest.mark.parametrize("size", [1, 7, 53, 500])
def test_the_accuracy_of_each_class_is_scikit_learns_recall_and_the_rest_the_score(
    trained, mixed, size
) -> None:
    whole, by_class = score_by_class(trained, mixed, size=size)
    recalls = recall_score(mixed.labels, probabilities(trained, mixed).argmax(1), average=None)
    assert by_class == pytest.approx(list(recalls), abs=1e-12)
    assert len(set(by_class)) == 3  # no two alike that could be exchanged
    assert whole == score(trained, mixed, size=size)


def test_a_class_without_images_has_no_accuracy_and_keeps_its_place(trained, mixed) -> None:
    p = probabilities(trained, mixed).argmax(1)
    for absent in range(3):
        kept = mixed.labels != absent
        whole, by_class = score_by_class(trained, mixed[kept])
        recalls = recall_score(mixed.labels[kept], p[kept], average=None, labels=[0, 1, 2], zero_division=0)
        assert by_class == tuple(None if c == absent else r for c, r in enumerate(recalls))
        assert whole.accuracy == accuracy_score(mixed.labels[kept], p[kept])


def test_a_class_that_is_always_missed_has_accuracy_0_and_not_none(trained, mixed) -> None:
    with torch.no_grad():
        trained.output.bias[1] = -1e6
    _, by_class = score_by_class(trained, mixed)
    assert by_class[1] == 0.0
    assert None not in by_class


def test_under_a_tap_the_accuracy_of_each_class_is_that_of_the_perturbed_network(trained, mixed) -> None:
    mask = torch.tensor([True, False, True, True, False, False])
    recalls = recall_score(mixed.labels, probabilities(trained, mixed, mask).argmax(1), average=None)
    whole, by_class = score_by_class(trained, mixed, keep("hidden", mask))
    assert by_class == pytest.approx(list(recalls), abs=1e-12)
    assert by_class != score_by_class(trained, mixed)[1]
    assert whole == score(trained, mixed, keep("hidden", mask))


def test_measuring_each_class_passes_once_over_the_images_and_reads_once_from_the_device(
    trained, mixed, monkeypatch
) -> None:
    passes, reads = [], []
    trained.output.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda t, *a, plain=plain, name=name: (reads.append(name), plain(t, *a))[1]
        )
    score_by_class(trained, mixed, size=20)
    assert passes == [20, 20, 13]
    assert reads == ["tolist"]


def test_measuring_each_class_leaves_modes_statistics_and_random_numbers_alone(trained, mixed) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    modes, random = [m.training for m in trained.modules()], torch.get_rng_state()
    score_by_class(trained, mixed)
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert [m.training for m in trained.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
