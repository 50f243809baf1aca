"""``mi_results_{checkpoint}.json``: an entry per model, the document's keys and ours; written, merged, read, shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from perturblab.experiment import OWNERS
from perturblab.exports import publish
from perturblab.files import (
    check_seal,
    read_json,
    remove_temporaries,
    sealed,
    waited_for,
    write_atomic,
    writing_to,
)
from perturblab.information import bits
from perturblab.report.tables import Table
from perturblab.runs import Row, RunFolder
from perturblab.sites import Site
from perturblab.studies.layerwise_mi import CONVOLUTIONS, Evaluate, Evaluation
from perturblab.terminal import UserError, warn

Entry = dict[str, Any]


def documented(s: Evaluation, rows: list[Row], sites: dict[int, Site]) -> Entry:
    """A model's entry, without the path of its checkpoint: information in nats, ``std`` over subsets (ddof 0)."""
    whole = next(row for row in rows if row["kind"] == "intact")
    return {
        "model_name": s.model,
        "n_subsets": s.n_subsets,
        "baseline_mi_nats": whole["mi_nats"],
        "baseline_mi_bits": bits(whole["mi_nats"]),
        "baseline_mi_mm_nats": whole["mi_mm_nats"],
        "baseline_interval_nats": [whole["interval_low_nats"], whole["interval_high_nats"]],
        "baseline_null_mean_nats": whole["null_mean_nats"],
        "baseline_null_95_nats": whole["null_95_nats"],
        "baseline_accuracy": whole["accuracy"],
        "label_entropy_nats": whole["label_entropy_nats"],
        "n_images": whole["n_images"],
        **{name: getattr(s, name) for name in RECORDED},
        "layers": [layer(index, site, whole, rows) for index, site in sites.items()],
    }


RECORDED = (
    "mi_split", "limit", "dataset", "normalize", "ablation", "keep_min", "seed", "width", "precision", "selected_on", "epoch", "sha256",
)  # fmt: skip


def layer(index: int, site: Site, whole: Row, rows: list[Row]) -> dict[str, Any]:
    own = [row for row in rows if row["kind"] == "subset" and row["layer_idx"] == index]
    left, corrected = ([row[key] for row in own] for key in ("mi_nats", "mi_mm_nats"))
    return {
        "layer_idx": index,
        "layer_name": site.weights,
        "n_channels": site.width,
        "mean_mi": fmean(left),
        "std_mi": pstdev(left),
        "site": site.name,
        "n_subsets": len(own),
        "mean_mi_bits": bits(fmean(left)),
        "mean_mi_mm_nats": fmean(corrected),
        "mean_delta_mi_nats": whole["mi_nats"] - fmean(left),
        "keep_size": [row["keep_size"] for row in own],
        "mi_nats": left,
        "mi_mm_nats": corrected,
        "accuracy": [row["accuracy"] for row in own],
    }


# ---- the file -------------------------------------------------------------------------------------------------------


def export(settings: Evaluate, run: RunFolder) -> None:
    """Put the model's entry into the documented file, beside those of other models, and the predictions in place."""
    found = run.results()
    entry = {"model_name": found["model_name"], "checkpoint_path": str(settings.source), **found}
    with run.claim.guarding():
        merge(settings.results_file, entry, run.claim.check)
    if settings.save_predictions:
        target = Path(settings.save_predictions)
        publish(run, run.path / "predictions.npz", target, OWNERS[".npz"])


def merge(path: Path, entry: Entry, check: Callable[[], None]) -> None:
    """Replace the entry of this model, whole or not at all; evaluations that end together wait for one another.

    ``check`` raises if the run is another process's by now.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with waited_for(path.with_name(f".{path.name}.lock")):
        remove_temporaries(path, "")
        there = read_entries(path)
        before = there.get(entry["model_name"], entry)
        if before.get("run_id") != entry["run_id"]:
            warn(replaced(path, before, entry))
        there[entry["model_name"]] = sealed(entry)
        write_atomic(path, as_json(there), check=check)


def replaced(path: Path, before: Entry, now: Entry) -> str:
    """One line: which entry gives way to which, and what sets them apart."""
    old, new = evaluated(before), evaluated(now)
    apart = [key for key in WORDS if key in old and old[key] != new.get(key)]
    apart += [key for key in WORDS if key in new and key not in old and "run_id" in before]
    was, is_now = (", ".join(words[key] for key in apart if key in words) for words in (old, new))
    other = before.get("run_id", "of the original scripts")
    changed = f"; was {was or 'without'}; now {is_now or 'without'}" if apart else ""
    return (
        f"{path}: {now['model_name']} is now run {now['run_id']}; it was run {other}{changed}; "
        "--suffix WORD keeps an evaluation beside others"
    )


WORDS = {
    "layers": "{}", "dataset": "{}", "mi_split": "{} split", "n_images": "{:,} images", "n_subsets": "{} subsets per layer",
    "keep_min": "keep_min {}", "ablation": "ablation {}", "normalize": "normalize {}", "width": "width {:g}", "precision": "{}",
    "seed": "seed {}", "sha256": "checkpoint {:.10}",
}  # fmt: skip
"""What may set evaluations apart, and how it is said."""


def evaluated(entry: Entry) -> dict[str, str]:
    """What an entry says was evaluated, by the keys of ``WORDS``."""
    layers = [int(one["layer_idx"]) for one in entry["layers"]]
    count = f"{len(layers)} layer{'s' if len(layers) > 1 else ''}"
    names = named(entry["model_name"], layers)
    said = {**entry, "layers": count if names == "all" else f"{count} ({names})"}
    return in_words(said)


def in_words(said: dict[str, Any]) -> dict[str, str]:
    """The values that are there, as text."""
    return {key: text.format(said[key]) for key, text in WORDS.items() if said.get(key) is not None}


def named(model: str, layers: Sequence[int]) -> str:
    """``conv1 conv5`` for layers 0 and 4; ``all`` where these are all that the model has."""
    every = list(range(CONVOLUTIONS.get(model, len(layers))))
    return "all" if list(layers) == every else " ".join(f"conv{index + 1}" for index in layers)


def as_json(content: Any) -> bytes:
    """Indented, but a list of numbers on one line: the document's readers look at the file with ``cat``."""
    text = json.dumps(content, indent=2, allow_nan=False)
    return (
        re.sub(
            r"\[[\s\d.,eE+-]+\]",
            lambda m: re.sub(r"\s+", " ", m[0]).replace("[ ", "[").replace(" ]", "]"),
            text,
        )
        + "\n"
    ).encode()


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries by model, none if there is no file. UserError, and nothing is lost, if it cannot be used."""
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no results by model; move it away, then run the same command again")
    for name, entry in content.items():
        check(path, name, entry)
    return content


def check(path: Path, name: str, entry: Any) -> None:
    """UserError if an entry lacks what the document promises, or was altered since it was written."""
    check_seal(path, entry)
    if isinstance(entry, dict) and entry.get("model_name", name) != name:
        raise UserError(f"{path}: {name} holds the results of {entry['model_name']!r:.40}")
    layers = entry.get("layers") if isinstance(entry, dict) else None
    if not isinstance(layers, list) or not layers:
        raise UserError(f"{path}: {name} holds no layers; was the file made by layerwise-mi evaluate?")
    for one in layers:
        for key in ("layer_idx", "n_channels", "mean_mi", "std_mi"):
            if not isinstance(one, dict) or not isinstance(one.get(key), int | float):
                raise UserError(
                    f"{path}: {name}: a layer lacks the number {key}, or holds something else there"
                )


# ---- what is shown ---------------------------------------------------------------------------------------------------


def table(settings: Evaluate) -> Table:
    """The documented table of the model just evaluated, and what a reader must know about it."""
    entry = read_entries(settings.results_file)[settings.model]
    rows = tuple(
        (
            str(one["layer_idx"]), one["layer_name"], str(one["n_channels"]), f"{one['mean_mi']:.4f} ± {one['std_mi']:.4f}",
            f"{one['mean_mi_bits']:.4f}", f"{one['mean_delta_mi_nats']:.4f}",
        )
        for one in entry["layers"]
    )  # fmt: skip
    columns = ("Layer", "Name", "Channels", "MI (mean ± std)", "MI (bits)", "Lost")
    title = (
        f"{entry['model_name']} ({entry['checkpoint_path']}): information left with random channels removed"
    )
    return Table(title, columns, rows, tuple(notes(entry)), text=(1,))


def notes(entry: Entry) -> list[str]:
    low, high = entry["baseline_interval_nats"]
    lines = [
        f"Intact: {entry['baseline_mi_nats']:.4f} nats ({entry['baseline_mi_bits']:.4f} bits), 95 % interval {low:.4f} to "
        f"{high:.4f}; with permuted labels {entry['baseline_null_mean_nats']:.4f}; the labels hold "
        f"{entry['label_entropy_nats']:.4f}. Accuracy {100 * entry['baseline_accuracy']:.2f} %.",
        f"MI of labels and predictions over {entry['n_images']:,} {entry['mi_split']} images of {entry['dataset']}, in nats; "
        f"std over subsets (ddof 0); ablation: {entry['ablation']}. Layer counts from 0: layer 0 is conv1.",
    ]
    if mark := selection(entry):
        lines.append(mark)
    return lines


def selection(entry: Entry) -> str:
    """The mark of a checkpoint that was chosen with the images that it is now judged by."""
    if entry.get("selected_on") != "test" or entry.get("mi_split", "test") != "test":
        return ""
    return "Selected on test: the checkpoint is the best of its run on the images that are evaluated here."


def ending(settings: Evaluate) -> str:
    """One line on a model of ``all``."""
    entry = read_entries(settings.results_file)[settings.model]
    lost = fmean(one["mean_delta_mi_nats"] for one in entry["layers"])
    return (
        f"✓ {settings.model}: intact {entry['baseline_mi_nats']:.4f} nats, lost {lost:.4f} on average over its "
        f"{len(entry['layers'])} layers -> {settings.results_file}"
    )
