"""One evaluation of layerwise-mi: the information left under random channel subsets, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import torch
from torch import Tensor

from perturblab.attempts import perform
from perturblab.checkpoints import load_weights, read_checkpoint
from perturblab.experiment import prepare, resolved
from perturblab.files import digest
from perturblab.images import ImageSet
from perturblab.information import (
    accuracy,
    bootstrap_interval,
    contingency,
    label_entropy,
    miller_madow,
    mutual_information,
    permutation_null,
    too_few,
)
from perturblab.masks import unique_subsets
from perturblab.measure import predictions
from perturblab.models import MODELS
from perturblab.probes.ablation import fill_value, information_left
from perturblab.probes.passes import Ablation
from perturblab.report.tables import show
from perturblab.runs import Row, RunFolder, run_folder
from perturblab.signals import StopFlag, stop_on_signals
from perturblab.sites import Site, SteppedModel
from perturblab.streams import stream
from perturblab.studies.layerwise_mi import Evaluate, Evaluation, Train
from perturblab.studies.layerwise_mi.blocks import Blocks, finish
from perturblab.studies.layerwise_mi.each import each_model
from perturblab.studies.layerwise_mi.results import ending, export, read_entries, table
from perturblab.studies.layerwise_mi.run import HEAD, build
from perturblab.terminal import UserError, progress, say, warn

# Null and interval of the intact network: under a second for 10,000 images.
PERMUTATIONS, RESAMPLES = 200, 1000
CALIBRATION = 100  # images of the other split on which the error of bf16 is measured, for each layer
Convolutions = dict[int, Site]
"""The chosen convolutions by their documented ``layer_idx``, which counts from 0."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint: its weights, and what it says about itself (little, if an original script wrote it)."""

    weights: dict[str, Tensor]
    sha256: str
    said: dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """The network, the images it is evaluated on, and others on which the error of bf16 is measured."""

    model: SteppedModel
    data: ImageSet
    calibration: ImageSet


def evaluate(settings: Evaluate) -> None:
    """Evaluate (or go on with, or only export) the checkpoint that these settings name, or one for each model."""
    if settings.model == "all" and settings.is_path:
        settings = settings.model_copy(update={"model": model_in(settings)})
    if settings.model == "all":
        if settings.save_predictions:
            raise UserError("--save-predictions is a file for one model: name it with --model")
        each_model(settings, ending)
        return
    opened = read(settings)
    s = resolved(evaluation(settings, opened))
    read_entries(settings.results_file)  # a damaged one is told now, not after the work
    run = run_folder(s, f"evaluate-{s.model}-{Path(s.checkpoint).stem}", s.runs_dir)
    with stop_on_signals() as stop:
        perform(run, partial(work, s, settings, opened, stop), partial(export, settings), stop.check)
    show(table(settings))
    say(f"-> {settings.results_file}" + (f", {s.save_predictions}" if s.save_predictions else ""))


# ---- what is evaluated ---------------------------------------------------------------------------------------------


def model_in(s: Evaluate) -> str:
    """The architecture that a checkpoint names."""
    arch = read(s).said.get("arch")
    known = get_args(Train.model_fields["model"].annotation)
    if arch not in known:
        raise UserError(f"{s.source} does not say its architecture; give --model {'|'.join(known[:-1])}")
    return str(arch)


def read(s: Evaluate) -> Opened:
    """The checkpoint file. UserError if there is none, or none that can be used."""
    if not s.source.exists() and not s.is_path:
        words = f"--model {s.model}" + (f" --seed {s.seed}" if s.seed is not None else "")
        raise UserError(f"no checkpoint {s.source}; `perturblab layerwise-mi train {words}` makes it")
    content = read_checkpoint(s.source)
    key = next((key for key in ("model", "model_state_dict") if key in content), None)
    weights = content.pop(key) if key else content
    if not is_state(weights):
        where = f"its {key} is" if key else "it is"
        raise UserError(f"{s.source} is no checkpoint of a network: {where} no dictionary of named weights")
    return Opened(weights, digest(s.source.read_bytes()), content)


def is_state(weights: Any) -> bool:
    """Whether these can be the weights of some network."""
    return isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    )


def evaluation(settings: Evaluate, opened: Opened) -> Evaluation:
    """The settings with all that was left to the checkpoint. UserError for layers or subsets that there are not."""
    said = opened.said
    epoch = said.get("epoch", 0)
    s = Evaluation.parse({
        **settings.model_dump(),
        "sha256": opened.sha256,
        "epoch": epoch if isinstance(epoch, int) else 0,
        "width": said.get("width", 1.0),
        "dataset": settings.dataset or said.get("dataset", "cifar10"),
        "normalize": settings.normalize or said.get("normalize", "documented"),
        "selected_on": said.get("selected_on") or ("test" if settings.source.stem.endswith("best") else ""),
    })  # fmt: skip
    if outline(s).state_dict().keys() != opened.weights.keys():
        load_weights(
            outline(s), opened.weights, settings.source
        )  # says what differs, before data are looked for
    chosen = convolutions(s)
    check_subsets(s, chosen)
    names = tuple(site.name for site in chosen.values())
    return s.model_copy(update={"layers": names if s.layers else ()})


def convolutions(s: Evaluation) -> Convolutions:
    """Those asked for by ``conv1``, ``features.0`` or ``0``, from first to last. UserError names them all."""
    model = outline(s)
    sites = dict(enumerate(site for site in model.sites() if len(site.shape) == 3))
    for name in s.layers:
        if not any(name in (*site.names, str(index)) for index, site in sites.items()):
            there = ", ".join(f"{site.name} ({site.weights})" for site in sites.values())
            raise UserError(f"no layer '{name}' in {s.model}; its layers are {there}")
    wanted = {i: site for i, site in sites.items() if {*site.names, str(i)} & {*s.layers}}
    return wanted if s.layers else sites


def outline(s: Evaluation) -> SteppedModel:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return MODELS[s.model](width=s.width, head=HEAD)


def check_subsets(s: Evaluation, chosen: Convolutions) -> None:
    for site in chosen.values():
        most = sum(comb(site.width, kept) for kept in range(s.keep_min, site.width))
        if s.n_subsets > most:
            kept = f" with {s.keep_min} or more kept" if s.keep_min else ""
            raise UserError(
                f"--n-subsets {s.n_subsets}: {site.name} of {s.model} at width {s.width:g} has {site.width} channels, "
                f"so only {most} different subsets can be removed{kept}"
            )


# ---- measuring -------------------------------------------------------------------------------------------------------


def work(s: Evaluation, settings: Evaluate, opened: Opened, stop: StopFlag, run: RunFolder) -> None:
    targets = {"results": settings.results_file}
    if settings.save_predictions:
        targets["predictions"] = Path(settings.save_predictions)
    ready = prepare(s, run, targets)
    data, other = (ready.test, ready.train) if s.mi_split == "test" else (ready.train, ready.test)
    data = limited(s, data)
    model = build(s, data).to(ready.device)
    load_weights(model, opened.weights, settings.source)
    if few := too_few(len(data), len(data.classes)):
        warn(few)
    run.drop_rows_from(s.epoch + 1)  # all have that of the checkpoint: only a torn last line goes
    full = predictions(model, data, size=s.batch_size)
    if not run.rows:
        run.log(kind="intact", epoch=s.epoch, **intact(s, data, full))
    chosen = {index: (site, subsets(s, site)) for index, site in convolutions(s).items()}
    for index, (site, masks) in chosen.items():
        left = len(masks) - len(of_layer(run.rows, index))
        if left and len(masks) < s.n_subsets:
            warn(f"{site.name}: {len(masks)} different subsets were found, {s.n_subsets} were asked for")
        if left or Blocks(run, index).images < len(data):  # a damaged block is made again
            measure(s, run, Subject(model, data, other[:CALIBRATION]), index, site, masks, stop)
    finish(s, run, data, full, chosen)


def limited(s: Evaluation, data: ImageSet) -> ImageSet:
    if s.limit > len(data):
        raise UserError(f"--limit {s.limit} is more than the {len(data)} {s.mi_split} images of {s.dataset}")
    return data[: s.limit] if s.limit else data


def intact(s: Evaluation, data: ImageSet, predicted: Tensor) -> Row:
    """Information that the whole network's predictions hold, and how far to trust it."""
    counts = contingency(data.labels, predicted[None], len(data.classes))[0]
    null = permutation_null(counts, PERMUTATIONS, stream(s.random_seed, "null"))
    low, high = bootstrap_interval(counts, RESAMPLES, stream(s.random_seed, "bootstrap"))
    return {
        "mi_nats": float(mutual_information(counts)),
        "mi_mm_nats": float(miller_madow(counts)),
        "interval_low_nats": float(low),
        "interval_high_nats": float(high),
        "null_mean_nats": float(null.mean()),
        "null_95_nats": float(null.quantile(0.95)),
        "label_entropy_nats": float(label_entropy(counts)),
        "accuracy": float(accuracy(counts)),
        "n_images": len(data),
    }


def subsets(s: Evaluation, site: Site) -> Tensor:
    """The channels kept, bool ``[subsets channels]``: one or more are removed (layerwise-mi.md 3.6)."""
    draws = stream(s.random_seed, "subsets", site.name)
    return unique_subsets(s.n_subsets, site.width, s.keep_min, site.width - 1, draws)


def of_layer(rows: list[Row], index: int) -> list[Row]:
    return [row for row in rows if row["kind"] == "subset" and row["layer_idx"] == index]


def measure(
    s: Evaluation, run: RunFolder, subject: Subject, index: int, site: Site, masks: Tensor, stop: StopFlag
) -> None:
    """Log a row per subset. Predictions reach the disk before the rows that follow from them."""
    model, data = subject.model, subject.data
    ablation = Ablation(site.name, masks, fill_value(model, site.name, s.ablation, data))
    blocks, logged = Blocks(run, index), len(of_layer(run.rows, index))
    with progress(f"{s.model} {site.name}", len(data), blocks.images) as advance:
        rows = information_left(
            model, data, ablation, precision=s.precision, calibration=subject.calibration, memory=int(s.memory * 2**30),
            kept=blocks, stop=stop, advance=advance,
        )  # fmt: skip
        for row in islice(rows, logged, None):
            run.log(kind="subset", epoch=s.epoch, layer_idx=index, **row)
    left = fmean(row["mi_nats"] for row in of_layer(run.rows, index))
    say(f"{s.model} {site.name} ({site.weights}): {left:.4f} nats left of {run.rows[0]['mi_nats']:.4f}")
