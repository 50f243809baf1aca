"""ImageSet and the sources: what a run sees depends on the seed and the epoch, and on nothing else."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from perturblab.augment import crop_flip, cutmix
from perturblab.images import Batch, ImageSet, MixedSource, ShuffledSource, stratified
from perturblab.streams import stream

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def image_set(n: int = 50, size: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    annotation = torch.rand(n, 1, size, size, generator=generator) < 0.1
    return ImageSet(images, torch.arange(n) % 5, tuple("abcde"), MEAN, STD, annotation)


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    assert len(batches) == len(others)
    for one, other in zip(batches, others, strict=True):
        for name in ("images", "labels", "index", "annotation"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert (one.mix is None) == (other.mix is None)
        for mine, theirs in zip(one.mix or (), other.mix or (), strict=True):
            assert torch.equal(mine, theirs)


def order(source: ShuffledSource, epoch: int) -> Tensor:
    return torch.cat([batch.index for batch in source.epoch(epoch)])


# ---- the source -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 90),
    batch=st.integers(1, 7),
    first=st.integers(0, 90),
    drop=st.booleans(),
    mix=st.sampled_from([None, cutmix]),
)
def test_an_epoch_taken_up_at_any_step_goes_on_with_the_same_batches(n, batch, first, drop, mix):
    source = ShuffledSource(image_set(n), min(batch, n), 3, crop_flip, drop, mix)
    whole = list(source.epoch(4))
    assert_same(list(source.epoch(4, first)), whole[first:])
    assert len(whole) == source.steps()


@pytest.mark.parametrize("limit", [1, 2000])
def test_large_images_are_augmented_fewer_at_a_time_and_resume_all_the_same(monkeypatch, limit):
    monkeypatch.setattr(ShuffledSource, "STRETCH_BYTES", limit)
    source = ShuffledSource(image_set(), 4, 0, crop_flip)
    assert_same(list(source.epoch(0, 7)), list(source.epoch(0))[7:])


def test_every_image_is_seen_once_per_epoch():
    source = ShuffledSource(image_set(50), 8, seed=0)
    assert order(source, 1).sort().values.tolist() == list(range(50))
    assert [len(batch.labels) for batch in source.epoch(1)] == [8] * 6 + [2]


def test_drop_last_leaves_out_the_short_batch_only():
    source = ShuffledSource(image_set(50), 8, seed=0, drop_last=True)
    assert [len(batch.labels) for batch in source.epoch(1)] == [8] * 6
    assert ShuffledSource(image_set(48), 8, seed=0, drop_last=True).steps() == 6


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    data = image_set()
    first = order(ShuffledSource(data, 8, seed=1), 2)
    torch.manual_seed(123)
    assert torch.equal(order(ShuffledSource(data, 5, seed=1, augment=crop_flip), 2), first)
    assert not torch.equal(order(ShuffledSource(data, 8, seed=1), 3), first)
    assert not torch.equal(order(ShuffledSource(data, 8, seed=2), 2), first)


def test_augmentation_changes_from_epoch_to_epoch():
    source = ShuffledSource(image_set(1), 1, 0, crop_flip)
    seen = {next(source.epoch(number)).images.numpy().tobytes() for number in range(20)}
    assert len(seen) > 10


def test_a_batch_holds_the_normalised_images_labels_and_annotations_of_its_index():
    data = image_set()
    for batch in ShuffledSource(data, 8, seed=0).epoch(0):
        assert torch.equal(batch.images, data.normalise(data.images[batch.index]))
        assert torch.equal(batch.labels, data.labels[batch.index])
        assert torch.equal(batch.annotation, data.annotation[batch.index])


def test_a_mixed_batch_is_the_plain_batch_mixed_by_the_stream_of_its_step():
    data = image_set()
    plain = ShuffledSource(data, 8, 5, crop_flip).epoch(2)
    mixed = ShuffledSource(data, 8, 5, crop_flip, mix=cutmix).epoch(2)
    for step, (one, other) in enumerate(zip(plain, mixed, strict=True)):
        images, (second, share) = cutmix(one.images, one.labels, stream(5, "cutmix", 2, step))
        assert_same([replace(one, images=images, mix=(second, share))], [other])


def test_boxes_change_from_step_to_step_and_from_epoch_to_epoch():
    source = ShuffledSource(image_set(), 8, 0, mix=cutmix)
    shares = {float(batch.mix[1][0]) for number in (1, 2) for batch in source.epoch(number)}
    assert len(shares) > 7  # of 14; boxes of 8 x 8 pixels have few areas


@pytest.mark.parametrize("batch_size", [0, 51])
def test_a_batch_size_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch size {batch_size} does not fit a set of 50 images"):
        ShuffledSource(image_set(50), batch_size, seed=0)


# ---- batches with corrected images ------------------------------------------------------------------------------


def tiny_set(n: int, label: int = 0, seed: int = 0) -> ImageSet:
    """One pixel of two channels each, of one class; no two of the first 65,536 are equal."""
    pixels = torch.randperm(2**16, generator=stream(seed, "pixels"))[:n]
    images = torch.stack([pixels // 256, pixels % 256], 1).byte().view(n, 2, 1, 1)
    return ImageSet(images, torch.full((n,), label), ("0", "8"), (0.25, 0.5), (0.5, 0.125))


def mixed(n: int = 70, pool: int = 10, batch: int = 12, corrected: int = 3, seed: int = 0) -> MixedSource:
    return MixedSource(tiny_set(n), tiny_set(pool, label=1, seed=1), batch, corrected, seed)


def drawn(source: MixedSource, epoch: int) -> tuple[Tensor, Tensor]:
    """The index into the set and the index into the pool of every batch: int64 ``[steps B-k]``, ``[steps k]``."""
    index = torch.stack([batch.index for batch in source.epoch(epoch)])
    k = source.from_pool
    return index[:, : index.shape[1] - k], index[:, index.shape[1] - k :]


def test_an_epoch_of_11773_images_is_196_batches_of_60_and_4_and_leaves_13_out():
    source = mixed(11773, 100, 64, 4)
    batches = list(source.epoch(1))
    assert len(batches) == source.steps() == 196
    for batch in batches:
        assert batch.images.shape == (64, 2, 1, 1)
        assert batch.is_corrected.tolist() == [False] * 60 + [True] * 4
        assert batch.labels.tolist() == [0] * 60 + [1] * 4  # corrected images come last
    left_out = []
    for epoch in (1, 2):
        seen = drawn(source, epoch)[0].flatten()
        assert len(seen.unique()) == len(seen) == 11760  # none twice
        left_out.append(set(range(11773)) - set(seen.tolist()))
        assert len(left_out[-1]) == 13
    assert left_out[0] != left_out[1]


def test_images_of_both_kinds_are_normalised_as_one_by_one():
    source = mixed(200, 7, 9, 2)  # 28 batches: more than are gathered at a time
    mean, std = (torch.tensor(v, dtype=torch.float64).view(2, 1, 1) for v in ((0.25, 0.5), (0.5, 0.125)))
    for batch in source.epoch(3):
        chosen = [
            (source.data if place < 7 else source.pool, i) for place, i in enumerate(batch.index.tolist())
        ]
        expected = torch.stack([(data.images[i].double() / 255 - mean) / std for data, i in chosen])
        torch.testing.assert_close(batch.images.double(), expected, rtol=0, atol=1e-6)
        assert batch.images.dtype == torch.float32
        assert batch.annotation is None
        assert batch.mix is None


def test_the_pool_is_gone_through_evenly_and_in_a_new_order_each_time():
    taken = drawn(mixed(11773, 100, 64, 4), 1)[1]
    rounds = taken.flatten()[:700].view(7, 100)
    assert all(one.sort().values.tolist() == list(range(100)) for one in rounds)
    assert sorted(set(taken.flatten().bincount().tolist())) == [7, 8]  # 784 draws from 100
    assert len({tuple(one.tolist()) for one in rounds}) == 7
    quadruples = [
        {frozenset(four) for four in taken[25 * i : 25 * (i + 1)].tolist()} for i in range(7)
    ]  # the same pool size in the document's way: seven times the same 25
    assert len(set.union(*quadruples)) > 7 * 25 - 3


def test_a_pool_that_does_not_divide_into_batches_is_gone_through_all_the_same():
    taken = drawn(mixed(90, 7, 12, 3), 1)[1].flatten()  # 10 batches, 30 draws
    assert [one.sort().values.tolist() for one in taken[:28].view(4, 7)] == [list(range(7))] * 4
    assert drawn(mixed(90, 2, 12, 3), 1)[1].flatten().bincount().tolist() == [
        15,
        15,
    ]  # fewer than a batch has


def test_the_order_of_the_pool_changes_from_epoch_to_epoch_and_with_the_seed():
    one = drawn(mixed(), 1)[1]
    assert torch.equal(one, drawn(mixed(), 1)[1])
    assert not torch.equal(one, drawn(mixed(), 2)[1])
    assert not torch.equal(one, drawn(mixed(seed=1), 1)[1])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 200),
    pool=st.integers(1, 9),
    found=st.integers(1, 7),
    corrected=st.integers(0, 4),
    first=st.integers(0, 200),
)
def test_a_mixed_epoch_taken_up_at_any_step_goes_on_with_the_same_batches(n, pool, found, corrected, first):
    source = mixed(n, pool, min(found, n) + corrected, corrected, seed=3)
    whole, rest = list(source.epoch(4)), list(source.epoch(4, first))
    assert len(whole) == source.steps() == n // min(found, n)
    assert len(rest) == max(0, len(whole) - first)
    for one, other in zip(rest, whole[first:], strict=True):
        assert one.n_corrected == other.n_corrected == corrected
        for name in ("images", "labels", "index"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_which_images_come_when_does_not_depend_on_the_pool_nor_the_pool_on_the_images():
    ours, pools = drawn(mixed(), 2)
    torch.manual_seed(123)
    assert torch.equal(drawn(mixed(pool=50), 2)[0], ours)
    without = list(mixed(batch=9, corrected=0).epoch(2))
    assert torch.equal(torch.stack([batch.index for batch in without]), ours)  # nor on whether there is one
    more = drawn(mixed(n=300), 2)[1]
    assert torch.equal(more[: len(pools)], pools)


def test_without_corrected_images_none_is_marked_as_one_and_no_pool_is_needed():
    source = MixedSource(tiny_set(70), tiny_set(70)[:0], 12, 0, seed=0)
    batches = list(source.epoch(1))
    assert len(batches) == source.steps() == 5
    for batch in batches:
        assert not batch.is_corrected.any()
        assert batch.is_corrected.shape == (12,)
        assert batch.labels.tolist() == [0] * 12
    assert drawn(source, 1)[0].unique().numel() == 60


def test_a_set_of_just_one_batch_is_one_step():
    assert mixed(n=9).steps() == 1
    assert drawn(mixed(n=9), 1)[0].sort().values.tolist() == [list(range(9))]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"corrected": 12}, "12 corrected images do not leave room in a batch of 12"),
        ({"corrected": 13}, "13 corrected images do not leave room in a batch of 12"),
        ({"corrected": -1}, "-1 corrected images"),
        ({"batch": 0, "corrected": 0}, "0 corrected images do not leave room in a batch of 0"),
        ({"n": 8}, "a set of 8 images is smaller than the 9 that a batch of 12 takes from it"),
        ({"n": 0}, "a set of 0 images is smaller"),
        ({"pool": 0}, "the pool of corrected images is empty"),
    ],
)
def test_sizes_that_do_not_fit_a_mixed_batch_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        mixed(**sizes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_sees_the_mixed_batches_that_the_cpu_sees():
    here = mixed()
    there = MixedSource(here.data.to("cuda"), here.pool.to("cuda"), 12, 3, 0)
    for one, other in zip(there.epoch(1), here.epoch(1), strict=True):
        assert torch.equal(one.index.cpu(), other.index)
        torch.testing.assert_close(one.images.cpu(), other.images, rtol=0, atol=1e-6)


# ---- the set ----------------------------------------------------------------------------------------------------


def test_normalise_is_what_torchvision_does():
    from torchvision import transforms

    data = image_set(20)
    usual = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    expected = torch.stack([usual(image.permute(1, 2, 0).numpy()) for image in data.images])
    torch.testing.assert_close(data.normalise(data.images), expected, rtol=0, atol=1e-6)


def test_an_evaluation_in_inference_mode_does_not_spoil_later_gradients():
    data = replace(image_set(4), mean=(0.123, 0.2, 0.3))
    with torch.inference_mode():
        data.normalise(data.images)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (data.normalise(data.images) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("index", [slice(3, 9), torch.tensor([4, 4, 0]), torch.arange(50) % 3 == 0])
def test_filtering_is_indexing(index):
    data = image_set()
    part = data[index]
    assert len(part) == len(data.labels[index])
    for name in ("images", "labels", "annotation"):
        assert torch.equal(getattr(part, name), getattr(data, name)[index])
    assert (part.classes, part.mean, part.std) == (data.classes, data.mean, data.std)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_sees_the_batches_that_the_cpu_sees():
    data = image_set()
    on_gpu = list(ShuffledSource(data.to("cuda"), 8, 0, crop_flip).epoch(1))
    for there, here in zip(on_gpu, ShuffledSource(data, 8, 0, crop_flip).epoch(1), strict=True):
        assert torch.equal(there.index.cpu(), here.index)
        torch.testing.assert_close(there.images.cpu(), here.images, rtol=0, atol=1e-6)


def changed(tensor: Tensor, value: int) -> Tensor:
    other = tensor.clone()
    other.view(-1)[17] = value
    return other


def test_the_digest_changes_with_every_thing_a_run_sees():
    data = image_set()
    others = [
        replace(data, images=changed(data.images, int(data.images.view(-1)[17]) ^ 1)),
        replace(data, labels=changed(data.labels, int(data.labels[17] + 1) % 5)),
        replace(data, annotation=changed(data.annotation, not data.annotation.view(-1)[17])),
        replace(data, annotation=None),
        replace(data, classes=tuple("abcdf")),
        replace(data, mean=(0.4, 0.4, 0.4)),
        replace(data, std=(0.2, 0.2, 0.2)),
        data[:49],
    ]
    assert len({data.digest(), *(other.digest() for other in others)}) == len(others) + 1


def test_the_digest_does_not_depend_on_how_the_tensors_lie_in_memory():
    data = image_set()
    assert replace(data, images=data.images.to(memory_format=torch.channels_last)).digest() == data.digest()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"images": torch.zeros(50, 3, 8, 8)}, r"images must be uint8 \[n c h w\], not torch.float32"),
        ({"images": torch.zeros(50, 8, 8, dtype=torch.uint8)}, r"not torch.uint8 \[50, 8, 8\]"),
        ({"labels": torch.zeros(49, dtype=torch.int64)}, r"labels must be int64 \[50\]"),
        ({"labels": torch.zeros(50, dtype=torch.int32)}, "labels must be int64"),
        ({"labels": torch.full((50,), 5)}, r"labels must lie in 0\.\.4"),
        ({"labels": torch.full((50,), -1)}, r"labels must lie in 0\.\.4"),
        ({"mean": (0.5,)}, "mean and std must have 3 finite numbers"),
        ({"std": (0.5, 0.5)}, "mean and std must have 3 finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "std above 0"),
        ({"std": (0.5, 0.5, float("nan"))}, "finite"),
        ({"mean": (0.5, 0.5, float("inf"))}, "finite"),
        ({"annotation": torch.zeros(50, 3, 8, 8, dtype=torch.bool)}, r"annotation must be \[n 1 h w\]"),
    ],
)
def test_a_set_whose_parts_do_not_fit_together_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(image_set(), **wrong)


# ---- held-out images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 20, 99, 300])
def test_a_stratified_draw_has_every_class_in_its_share(n):
    labels = torch.tensor([0] * 150 + [1] * 90 + [2] * 60)[torch.randperm(300, generator=stream(1, "order"))]
    drawn = stratified(labels, n, stream(0, "draw"))
    assert int(drawn.sum()) == n
    for label, share in ((0, 0.5), (1, 0.3), (2, 0.2)):
        assert abs(int(drawn[labels == label].sum()) - share * n) < 1


def test_a_stratified_draw_is_random_within_a_class_and_follows_its_generator():
    labels = torch.zeros(100, dtype=torch.int64)
    draws = [stratified(labels, 10, stream(seed, "draw")) for seed in range(200)]
    assert torch.equal(draws[0], stratified(labels, 10, stream(0, "draw")))
    often = torch.stack(draws).float().mean(0)  # each image with probability 0.1; five standard errors
    assert often.max() < 0.1 + 5 * (0.09 / 200) ** 0.5
    assert often.min() > 0
