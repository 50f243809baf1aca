"""The document's debugging checklist, run on the data, the batches and the first step of a run as it would be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from perturblab.experiment import start
from perturblab.images import Batch, ImageSet, MixedSource
from perturblab.objectives import Clock
from perturblab.objectives.corrected import Balanced, Imbalanced
from perturblab.report.tables import Table, show
from perturblab.sites import SteppedModel
from perturblab.studies.correction import Check
from perturblab.studies.correction.data import read_set, read_sets
from perturblab.studies.correction.layout import set_files
from perturblab.studies.correction.parts import DOTTED, Parts, base_network, mixed, parts_of
from perturblab.terminal import UserError


@dataclass(frozen=True)
class Finding:
    """One line of the list: what was looked at, what was seen, and whether it is as it must be."""

    name: str
    seen: str
    ok: bool


def check(s: Check) -> None:
    """Print the list. UserError (exit code 2) if anything on it is wrong."""
    start(s, ())
    sets = read_sets(s.data)
    parts = parts_of(s, sets, s.seed)
    source = mixed(s, parts, s.seed)
    model = base_network(s.base_model, parts.train)
    found = [
        labels(sets.train), *annotation(sets.train), *originals(s, parts, sets.confounded, sets.original),
        *batches(source, parts), *step(s, model, next(source.epoch(1))),
    ]  # fmt: skip
    rows = tuple((one.name, one.seen, "ok" if one.ok else "WRONG") for one in found)
    show(Table(f"CHECKLIST of {s.data} and {s.base_model}", ("Check", "Seen", ""), rows, text=(0, 1, 2)))
    wrong = [one.name for one in found if not one.ok]
    if wrong:
        raise UserError(f"{len(wrong)} of {len(found)} checks are wrong: {'; '.join(wrong)}")


# ---- the data --------------------------------------------------------------------------------------------------------


def labels(images: ImageSet) -> Finding:
    """Reading refuses labels that are not one-hot; here both classes must be there."""
    counts = torch.bincount(images.labels, minlength=2).tolist()
    return Finding(
        "labels are one-hot, both digits are there",
        f"{counts[0]:,} of 0, {counts[1]:,} of 8",
        min(counts) > 0,
    )


def annotation(images: ImageSet) -> Iterator[Finding]:
    assert images.annotation is not None
    bears = images.annotation.flatten(1).any(1)
    eights, zeros = (int(bears[images.labels == label].sum()) for label in (DOTTED, 1 - DOTTED))
    yield Finding(
        "8s are annotated",
        f"{eights:,} of {int((images.labels == DOTTED).sum()):,} 8s, {zeros:,} 0s",
        eights > 0,
    )
    values = images.images[images.annotation.expand_as(images.images)]
    shown = ", ".join(str(v) for v in values.unique().tolist()[:4])
    yield Finding(
        "annotated pixels are lit", f"values {shown} of 255", bool(len(values)) and bool((values > 0).all())
    )


def originals(s: Check, parts: Parts, confounded: ImageSet, original: ImageSet) -> Iterator[Finding]:
    """Corrected images are the originals, and bear no dot."""
    only_dots = (confounded.images != original.images).any(0) & ~(original.images > 0).any(0)
    lit = parts.pool.images[:, only_dots]  # not under their annotation, which was just blackened
    yield Finding(
        "corrected images have no dot",
        f"brightest pixel where only dots are {int(lit.max()) if lit.numel() else 0}",
        not lit.any(),
    )
    yield equal("corrected test images equal the originals", erased(confounded), original.images)
    train = set_files(s.data)["original_train"]
    if Path(train).exists():
        pairs = read_set(train, masks=False).images
        same = pairs[torch.tensor(parts.index["pool"])]
        yield equal("the corrected pool equals the originals", parts.pool.images, same)


def erased(images: ImageSet) -> Tensor:
    assert images.annotation is not None
    return images.images.masked_fill(images.annotation.expand_as(images.images), 0)


def equal(name: str, ours: Tensor, theirs: Tensor) -> Finding:
    differ = int((ours != theirs).flatten(1).any(1).sum())
    return Finding(name, f"{differ:,} of {len(ours):,} differ", differ == 0)


# ---- the batches -----------------------------------------------------------------------------------------------------


def batches(source: MixedSource, parts: Parts) -> Iterator[Finding]:
    """One whole epoch."""
    epoch = list(source.epoch(1))
    sizes = {(len(b.labels) - b.n_corrected, b.n_corrected) for b in epoch}
    right = sizes == {(source.from_data, source.from_pool)}
    yield Finding(
        "batches are confounded and then corrected images",
        f"{len(epoch)} of {' '.join(f'{c}+{k}' for c, k in sizes)}",
        right,
    )
    last = all(
        bool(b.is_corrected[source.from_data :].all()) and not bool(b.is_corrected[: source.from_data].any())
        for b in epoch
    )
    same = all(holds(b, source, parts) for b in epoch)
    yield Finding(
        "the last ones are marked as corrected, and are", f"last {source.from_pool} of each", last and same
    )
    used = torch.cat([b.index[: source.from_data] for b in epoch])
    left = len(parts.train) - len(used)
    yield Finding(
        "no confounded image twice in an epoch",
        f"{len(used):,} used, {left} left out",
        len(used.unique()) == len(used),
    )
    if source.from_pool:
        drawn = Counter(torch.cat([b.index[source.from_data :] for b in epoch]).tolist())
        times = [drawn.get(i, 0) for i in range(len(parts.pool))]
        yield Finding(
            "the pool is used evenly",
            f"each {min(times)} to {max(times)} times",
            max(times) - min(times) <= 1,
        )
    eights = float(torch.cat([b.labels for b in epoch]).double().mean())
    yield Finding(
        "both digits in a batch",
        f"{100 * eights:.1f} % are 8s, {100 * float(parts.train.labels.double().mean()):.1f} % in the set",
        0 < eights < 1,
    )


def holds(batch: Batch, source: MixedSource, parts: Parts) -> bool:
    """Whether the images are those that the index names."""
    ours, pools = batch.index.split([source.from_data, source.from_pool])
    expected = torch.cat([parts.train.images[ours], parts.pool.images[pools]])
    return torch.equal(batch.images, parts.train.normalise(expected))


# ---- the first step --------------------------------------------------------------------------------------------------


def step(s: Check, model: SteppedModel, batch: Batch) -> Iterator[Finding]:
    """A step of each loss from the base model."""
    start_at = {name: value.clone() for name, value in model.state_dict().items()}
    for objective in (Balanced(1.0), Imbalanced()):
        name = type(objective).__name__
        model.load_state_dict(start_at)
        model.zero_grad()  # of the other loss
        adam = torch.optim.Adam(model.parameters(), lr=s.learning_rate)
        loss = objective(model, batch, objective.draw(batch, Clock(1, 0, 1, 1)))
        loss.total.backward()
        parts = ", ".join(
            f"{key.removeprefix('loss_')} {float(total.detach()) / n:.3g}"
            for key, (total, n) in loss.parts.items()
        )
        yield Finding(f"{name}: the loss is finite", f"{parts} nats", bool(torch.isfinite(loss.total)))
        norm = float(clip_grad_norm_(model.parameters(), s.grad_clip or float("inf")))
        clipped = f", clipped to {s.grad_clip:g}" if 0 < s.grad_clip < norm else ""
        yield Finding(
            f"{name}: the gradient is finite and not zero",
            f"L2 norm {norm:.3g}{clipped}",
            0 < norm < float("inf"),
        )
        adam.step()
        moved = torch.cat([(p.detach() - start_at[n]).flatten() for n, p in model.named_parameters()])
        share = float((moved != 0).double().mean())
        yield Finding(
            f"{name}: parameters move",
            f"{100 * share:.1f} % of them, by {float(moved.norm()):.3g} together",
            bool(moved.any()),
        )
