"""The files of a run: the checkpoint and the folder of metrics that document 004 speaks of (adaptive-noise.md 5.8)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from perturblab.checkpoints import to_bytes, to_cpu
from perturblab.exports import publish
from perturblab.files import as_json, digest, read_json, sealed
from perturblab.perturb.controller import ControllerSettings
from perturblab.probes.sharpness import mean_sharpness
from perturblab.runs import SCHEMA_VERSION, Row, RunFolder
from perturblab.settings import is_where
from perturblab.sites import SteppedModel
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.control import epochs_of, timeline
from perturblab.terminal import UserError, warn

METRICS = (
    "config.json", "epoch_metrics.jsonl", "noise_metrics.jsonl", "optimization_flags.jsonl", "controller.jsonl",
    "final_metrics.json", "all_metrics.json",
)  # fmt: skip
LAST = 10  # epochs over which avg_last_10_epochs_gap is a mean


# ---- where they go -------------------------------------------------------------------------------------------------


def checkpoint_path(s: Train, run: RunFolder) -> Path:
    """``--save-as``, or the documented name with the best epoch and its validation accuracy (a fraction).

    Where it is not the default, the seed stands in it too: those of a sweep must not take each other's place.
    """
    folder, name = Path(s.checkpoint_dir), s.save_as
    if name == "none.pth":
        final = run.results()["final_metrics"]
        noise = "" if s.arm == "baseline" else f"_{s.arm}_{s.noise_distribution}"
        tail = (f"_seed{s.seed}" if s.seed else "") + (f"_{s.suffix}" if s.suffix else "")
        name = f"{s.classifier}{noise}{tail}_best_epoch{final['best_epoch']}_valacc{final['best_accuracy']:.2f}.pth"
    return folder / name


def export(s: Train, run: RunFolder) -> None:
    """Put the files of a finished run in place."""
    publish(run, run.path / "best.pth", checkpoint_path(s, run), lambda path: _owner(s, path))
    for name in METRICS:  # the folder bears the run's id: what is there is ours
        publish(run, run.path / name, s.metrics_dir / name, lambda path: run.id)


def _owner(s: Train, checkpoint: Path) -> str | None:
    """Which run's metrics tell of these very bytes: a bare state dict says nothing of itself."""
    sha256 = digest(checkpoint.read_bytes())
    for path in sorted((Path(s.checkpoint_dir) / "metrics").glob("*/final_metrics.json")):
        try:
            final = read_json(path)
            if final["checkpoint_sha256"] == sha256:
                return str(final["run_id"])
        except (UserError, KeyError, TypeError):
            continue
    return None


# ---- what they hold -------------------------------------------------------------------------------------------------


def finish(
    s: Train, run: RunFolder, control: ControllerSettings, weights: dict[str, Tensor], model: SteppedModel, classes: tuple[str, ...],
) -> None:  # fmt: skip
    """Write checkpoint, metrics and results into the run folder, which makes the run done."""
    state = to_bytes(to_cpu({f"model.{name}": value for name, value in weights.items()}))
    run.write_checked("best.pth", state)
    found = results(s, run.rows, control)
    found["final_metrics"]["checkpoint_sha256"] = digest(state)
    found["data_sha256"] = read_json(run.path / "manifest.json")["data"]  # runs on other images are no pair
    found |= {"parameters": sum(p.numel() for p in model.parameters()), "classes": list(classes)}
    for name, data in metrics(run, found).items():
        run.write_checked(name, data)
    run.finish(found)


def results(s: Train, rows: list[Row], control: ControllerSettings) -> dict[str, Any]:
    """All that was found, without wall-clock times: equal runs have equal results."""
    epochs = [{k: v for k, v in row.items() if k != "kind"} for row in epochs_of(rows)]
    events = timeline(control, rows)
    by_epoch = {row["epoch"]: row for row in epochs}

    def curve(key: str) -> dict[str, Any]:
        return {str(number): row[key] for number, row in by_epoch.items()}

    sharp = [row for row in rows if row["kind"] == "sharpness"]
    state_keys = ("momentum_norm", "exp_avg_norm", "exp_avg_sq_norm", "effective_lr")
    return {
        "name": s.name, "arm": s.arm, "baseline_id": s.baseline().id, "classifier": s.classifier,
        "optimizer": s.optimizer, "seed": s.seed, "config": config(s),
        "final_metrics": final_metrics(rows), "epochs": epochs, "controller": events,
        "gradient_norms_by_epoch": curve("grad_norm"), "weight_norms": curve("weight_norm"),
        "weight_update_norms": curve("update_norm"),
        "optimizer_state": {key: curve(key) for key in state_keys if key in epochs[0]},
        "noise": noise_rows(epochs), "flags": flag_rows(events),
        "sharpness": {
            "sigma": s.sharpness_sigma, "draws": len(sharp),
            "accuracy_drop": [row["accuracy_drop"] for row in sharp], "loss_rise": [row["loss_rise"] for row in sharp],
        } if sharp else None,
    }  # fmt: skip


def config(s: Train) -> dict[str, Any]:
    """Every setting that decides the run, and its suffix; folders and machines are no part of it."""
    elsewhere = {name for name, info in Train.model_fields.items() if is_where(info)} - {"suffix"}
    return s.model_dump(mode="json", exclude=elsewhere)


def final_metrics(rows: list[Row]) -> dict[str, Any]:
    """The documented keys (accuracies as fractions, train on clean images), then test and sharpness."""
    epochs = epochs_of(rows)
    best, last = max(epochs, key=lambda row: (row["val_acc"], -row["epoch"])), epochs[-1]
    test = next(row for row in rows if row["kind"] == "test")
    recent = [gap for row in epochs[-LAST:] if (gap := _gap(row)) is not None]
    return {
        "best_accuracy": best["val_acc"], "best_epoch": best["epoch"], "epochs_to_best": best["epoch"],
        "final_epoch": last["epoch"], "final_train_acc": last["train_acc_clean"], "final_train_acc_online": last["train_acc_online"],
        "final_val_acc": last["val_acc"], "final_train_loss": last["train_loss"], "final_val_loss": last["val_loss"],
        "generalization_gap": {
            "final_gap": _gap(last), "best_val_acc_gap": _gap(best), "avg_last_10_epochs_gap": fmean(recent),
        },
        "test_acc": test["test_acc"], "test_loss": test["test_loss"], "test_acc_per_class": test["test_acc_per_class"],
        "sharpness": mean_sharpness([row for row in rows if row["kind"] == "sharpness"]),
    }  # fmt: skip


def _gap(row: Row) -> float | None:
    clean = row["train_acc_clean"]
    return None if clean is None else clean - row["val_acc"]


def noise_rows(epochs: Iterable[Row]) -> list[Row]:
    return [
        {
            "epoch": row["epoch"], "noise_type": row["noise_target"], "magnitude": row["noise_sigma"],
            "norms_before": row["norm_before"], "norms_after": row["norm_after"], "cause": row["noise_cause"],
        }
        for row in epochs if row["noise_target"] is not None
    ]  # fmt: skip


FLAG_TYPES = {"low_weight_update": "LOW_WEIGHT_UPDATE_NORM"}  # the others are ours in capitals


def flag_rows(events: Iterable[dict[str, Any]]) -> list[Row]:
    """A row per raised flag, under the epoch before which it was raised."""
    return [
        {
            "epoch": event["epoch"], "flag_type": FLAG_TYPES.get(flag["name"], flag["name"].upper()),
            "details": {"value": flag["value"], "threshold": flag["threshold"]},
        }
        for event in events for flag in event["flags"] if flag["fired"]
    ]  # fmt: skip


def metrics(run: RunFolder, found: dict[str, Any]) -> dict[str, bytes]:
    """The documented files with their times."""
    about = {"run_id": run.id, "schema_version": SCHEMA_VERSION}
    times = run.timings()
    if lost := [row["epoch"] for row in found["epochs"] if row["epoch"] not in times]:
        warn(
            f"{run.path / 'timings.jsonl'} lacks {len(lost)} of {len(found['epochs'])} epochs, the first {lost[0]}: their "
            "timestamps are null, and total_training_time is without them"
        )
    seconds = sum(row["seconds"] for row in times.values())
    ended = {number: row.get("ended") for number, row in times.items()}
    final = {
        **found["final_metrics"],
        "total_training_time": round(seconds, 3),
        "timestamp": ended.get(max(ended, default=0)),
    }

    def lines(rows: Iterable[Row]) -> bytes:
        stamped = ({**row, "timestamp": ended.get(row["epoch"])} for row in rows)
        return "".join(json.dumps(row, allow_nan=False) + "\n" for row in stamped).encode()

    def whole(content: dict[str, Any]) -> bytes:
        return as_json(sealed({**about, **content}))

    return {
        "config.json": whole(found["config"]),
        "epoch_metrics.jsonl": lines(map(epoch_row, found["epochs"])),
        "noise_metrics.jsonl": lines(found["noise"]),
        "optimization_flags.jsonl": lines(found["flags"]),
        "controller.jsonl": lines(found["controller"]),
        "final_metrics.json": whole(final),
        "all_metrics.json": whole({**found, "final_metrics": final}),
    }


def epoch_row(row: Row) -> Row:
    """The documented keys of an epoch (fractions; ``train_acc`` on clean images, decision 18), then ours."""
    documented = {
        "epoch": row["epoch"], "train_loss": row["train_loss"], "train_acc": row["train_acc_clean"], "val_loss": row["val_loss"],
        "val_acc": row["val_acc"], "learning_rate": row["lr"], "training_per_class_metrics": row["train_acc_per_class"],
        "validation_per_class_metrics": row["val_acc_per_class"],
    }  # fmt: skip
    ours = ("train_acc_online", "grad_norm", "update_norm", "weight_norm", "noise_target", "noise_sigma")
    return {**documented, **{key: row[key] for key in ours}}
