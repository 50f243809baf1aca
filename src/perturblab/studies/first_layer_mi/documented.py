"""The documented results of a run, made of its rows: the document's keys, then ours with their units in the names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from perturblab.experiment import percent
from perturblab.information import bits, too_few
from perturblab.runs import Row
from perturblab.studies.first_layer_mi import RECORDED, Train
from perturblab.studies.first_layer_mi.information import Stage

ESTIMATES = ("nats", "mm_nats", "null_nats")
"""Plug-in, Miller-Madow, and the mean plug-in value of permuted labels; a row has each as ``mi_...``."""


@dataclass(frozen=True)
class Measurement:
    """The rows of one measurement of information: the intact network's, and one per mask."""

    intact: Row
    masks: list[Row]

    def full(self, estimate: str = "nats") -> float:
        return float(self.intact[f"mi_{estimate}"])

    def masked(self, estimate: str = "nats") -> float:
        """The mean over masks."""
        return fmean(self.of_masks(f"mi_{estimate}"))

    def diff(self, estimate: str = "nats") -> float:
        """What removing elements loses on average: MI_full - mean(MI_masked)."""
        return self.full(estimate) - self.masked(estimate)

    def of_masks(self, key: str) -> list[Any]:
        return [row[key] for row in self.masks]


def measurements(rows: list[Row], stage: Stage) -> list[Measurement]:
    """Those of a stage, in the order of their epochs."""
    found = {
        row["epoch"]: Measurement(row, [])
        for row in rows
        if (row["kind"], row.get("stage")) == ("intact", stage)
    }
    for row in rows:
        if (row["kind"], row.get("stage")) == ("mask", stage):
            found[row["epoch"]].masks.append(row)
    return list(found.values())


def documented(s: Train, rows: list[Row]) -> dict[str, Any]:
    """Every documented key, the last epoch included; accuracies in percent, information as plug-in nats."""
    epochs = [row for row in rows if row["kind"] == "epoch"]
    measured = measurements(rows, "train")
    evaluated = [epochs[one.intact["epoch"] - 1] for one in measured]
    accuracies = {
        "train_acc_aug": [percent(row["train_acc_online"]) for row in evaluated],
        "train_acc_clean": [percent(row["train_acc_clean"]) for row in evaluated],
        "test_acc": [percent(row["test_acc"]) for row in evaluated],
        "gen_gap": [percent(row["train_acc_clean"] - row["test_acc"]) for row in evaluated],
    }
    (final,) = measurements(rows, "final")
    return {
        "epochs_evaluated": [row["epoch"] for row in evaluated],
        "mi_history": [one.diff() for one in measured],
        **{f"{name}_history": values for name, values in accuracies.items()},
        "final_mi_full": final.full(),
        "final_mean_mi_masked": final.masked(),
        "final_mi_diff": final.diff(),
        **{f"final_{name}": values[-1] for name, values in accuracies.items()},
        "arch": s.arch,
        "seed": s.seed,
        "optimizer": "adam",
        **{name: getattr(s, name) for name in RECORDED},
        **of_history(measured),
        **of_final(final),
        "trained_epochs": [row["epoch"] for row in epochs],
        "trained_lr": [row["lr"] for row in epochs],
        "trained_loss_nats": [row["loss_full"] for row in epochs],
        "trained_acc_online_pct": [percent(row["train_acc_online"]) for row in epochs],
        "settings": s.identity(),
    }


def of_history(measured: list[Measurement]) -> dict[str, Any]:
    """What was measured during training: ``[measurements]``, of the masks ``[measurements masks]``."""
    return {
        **{f"mi_full_history_{e}": [one.full(e) for one in measured] for e in ESTIMATES},
        **{f"mi_masked_history_{e}": [one.masked(e) for one in measured] for e in ESTIMATES},
        "mi_diff_history_mm_nats": [one.diff("mm_nats") for one in measured],
        "mask_keep_size_history": [one.of_masks("keep_size") for one in measured],
        "mask_mi_history_nats": [one.of_masks("mi_nats") for one in measured],
        "history_n_images": measured[0].intact["n_images"],
    }


def of_final(final: Measurement) -> dict[str, Any]:
    """What the final measurement found; of the masks ``[masks]``, sizes out of ``first_layer_elements``."""
    intact = final.intact
    numbers = {
        **{f"final_mi_full_{e}": final.full(e) for e in ESTIMATES},
        "final_mi_full_low_nats": intact["mi_low_nats"],
        "final_mi_full_high_nats": intact["mi_high_nats"],
        **{f"final_mean_mi_masked_{e}": final.masked(e) for e in ESTIMATES},
        "final_mi_diff_nats": final.diff(),
        "final_mi_diff_mm_nats": final.diff("mm_nats"),
        "final_label_entropy_nats": intact["label_entropy_nats"],
    }
    return {
        **numbers,
        **{name.removesuffix("nats") + "bits": bits(value) for name, value in numbers.items()},
        "final_mask_keep_size": final.of_masks("keep_size"),
        "final_mask_mi_nats": final.of_masks("mi_nats"),
        "final_mask_mi_mm_nats": final.of_masks("mi_mm_nats"),
        "final_mask_mi_null_nats": final.of_masks("mi_null_nats"),
        "final_mask_acc_pct": [percent(share) for share in final.of_masks("accuracy")],
        "final_n_images": intact["n_images"],
        "first_layer_elements": intact["elements"],
        "classes": intact["classes"],
        "final_warning": too_few(intact["n_images"], intact["classes"]),
    }


def as_arrays(results: Mapping[str, Any]) -> dict[str, Any]:
    """The same for an ``.npz``, which holds no dictionaries: the settings as JSON."""
    return {name: json.dumps(value) if isinstance(value, dict) else value for name, value in results.items()}
