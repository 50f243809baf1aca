"""What a finished run exports, under the document's names: an event file for TensorBoard, and the best weights.

The directory is a function of the run folder: written whole when the run is done, restored by the same command.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perturblab.exports import publish, write_export
from perturblab.files import as_json, digest, read_checked, sealed
from perturblab.report.events import Event, event_file, file_name, run_id_of
from perturblab.runs import Row, RunFolder
from perturblab.studies.correction import Train
from perturblab.studies.correction.layout import owner_by_sidecar, sidecar
from perturblab.terminal import UserError, say, warn

SCALARS = {
    "Loss/train_epoch": "train_loss", "Loss/train_confounded": "train_conf_loss", "Loss/train_corrected": "train_corr_loss",
    "Loss/val_epoch": "val_loss", "Accuracy/train_epoch": "train_accuracy", "Accuracy/val_epoch": "val_accuracy",
}  # fmt: skip
FINALS = {
    "Loss/train_final_epoch": "train_loss", "Loss/val_final_epoch": "val_loss", "Loss/test_epoch": "test_loss",
    "Accuracy/train_final_epoch": "train_accuracy", "Accuracy/val_final_epoch": "val_accuracy",
    "Accuracy/test_epoch": "test_accuracy",
}  # fmt: skip
IMAGES = ("confounded_samples", "corrected_original", "corrected_samples")
METRICS = {
    "hparam/val_accuracy": "val_accuracy",
    "hparam/test_accuracy": "test_accuracy",
    "hparam/val_loss": "val_loss",
}
"""Tags as documented (correction.md 4.6), by the key of a row or result."""


def targets(asked: Train) -> list[Path]:
    """The files of the run's directory whose names do not change with the settings."""
    model = asked.log_dir / "best_model.pth"
    return [model, sidecar(model)]


def exported(asked: Train, run: RunFolder) -> list[Path]:
    return [asked.log_dir / file_name(run.id), *targets(asked)]


def export(asked: Train, run: RunFolder) -> None:
    """Write the directory; another run's files there are replaced, files that nobody here wrote are kept aside."""
    results = run.results()
    events, model, about = exported(asked, run)
    replaced = make_room(events, run.id)
    write_export(run, events, event_file(events_of(run, results), hparams(asked), metrics(results)))

    def owner(path: Path) -> str | None:  # that a whole directory is replaced was said already
        whose = owner_by_sidecar(path)
        return run.id if whose in replaced else whose

    publish(run, run.path / "best_model.pth", model, owner)
    said = {key: value for key, value in results.items() if key not in ("index", "history")}
    content = {**said, "lambda_weight": asked.lambda_weight, "sha256": digest(model.read_bytes())}
    write_export(run, about, as_json(sealed(content)))


def make_room(events: Path, run_id: str) -> set[str | None]:
    """TensorBoard would show all event files of a directory as one run; the ids of ours that are gone."""
    gone = set()
    for other in events.parent.glob("[!.]*tfevents*"):  # hidden ones are being written
        if other == events:
            continue
        if run_id_of(other) is None:
            kept = other.with_name(other.name.replace("tfevents", "before"))
            other.rename(kept)
            warn(f"{other} was not made by perturblab; kept as {kept.name}")
        else:
            other.unlink()
            gone.add(run_id_of(other))
            say(f"{events.parent} now holds run {run_id}; it held run {run_id_of(other)}")
    return gone


def hparams(asked: Train) -> dict[str, float | str | int | bool]:
    return {
        "lr": asked.learning_rate, "loss_type": asked.loss_type, "lambda": asked.lambda_weight,
        "pool_size": asked.user_corrected_pool_size,
    }  # fmt: skip


def metrics(results: dict[str, Any]) -> dict[str, float]:
    return {tag: results[key] for tag, key in METRICS.items()}


def events_of(run: RunFolder, results: dict[str, Any]) -> Iterator[Event]:
    """An event per epoch; images and predicted digits where these were logged, the final numbers in the last."""
    images = {name: picture(run, name) for name in IMAGES}
    rows, clock = run.rows, times(run)
    for row in rows:
        scalars = {tag: row[key] for tag, key in SCALARS.items()}
        if row is rows[-1]:
            scalars |= {tag: results[key] for tag, key in FINALS.items()}
        yield Event(
            row["epoch"],
            clock.get(row["epoch"], 0.0),
            scalars,
            images if row["predicted"] else {},
            texts(row),
        )


def picture(run: RunFolder, name: str) -> bytes:
    path = run.path / f"{name}.png"
    data = read_checked(path)
    if data is None:
        raise UserError(f"{path} is damaged; remove {run.path} and run again")
    return data


def texts(row: Row) -> dict[str, str]:
    shown = row["predicted"] or {}
    return {f"Predictions/{name.removesuffix('_samples')}": digits for name, digits in shown.items()}


def times(run: RunFolder) -> dict[int, float]:
    """When each epoch ended, seconds since 1970: the start of the run and what its epochs took."""
    now, ended = (run.path / "settings.json").stat().st_mtime, {}
    for epoch, row in sorted(run.timings().items()):
        now += row["seconds"]
        ended[epoch] = now
    return ended
