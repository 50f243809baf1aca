"""What every run does around its own work: the machine and the data before it, the documented files after it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from perturblab import hardware
from perturblab.attempts import perform
from perturblab.checkpoints import read_checkpoint
from perturblab.datasets import NORMALISATION, load
from perturblab.exports import publish
from perturblab.files import check_writable, read_json
from perturblab.flags import Machine
from perturblab.images import ImageSet
from perturblab.runs import RunFolder, run_folder
from perturblab.signals import StopFlag, stop_on_signals
from perturblab.terminal import UserError, counted, say

M = TypeVar("M", bound=Machine)


@dataclass(frozen=True)
class Ready:
    """Where a run computes and on which images."""

    device: torch.device
    train: ImageSet
    test: ImageSet


def resolved(settings: M) -> M:
    """Settings without ``auto`` where it decides what is computed."""
    device = hardware.pick_device(settings.device)
    precision = hardware.pick_precision(settings.precision, device)
    return settings.model_copy(update={"precision": precision}).canonical()


def carry_out(
    s: M, name: str, exports: Mapping[str, Path], work: Callable[[M, StopFlag, RunFolder], None]
) -> dict[str, Any]:
    """Do (or go on with, or only export) the run of these resolved settings; its results."""
    run = run_folder(s, name, s.runs_dir)
    with stop_on_signals() as stop:
        perform(run, partial(work, s, stop), partial(export, exports), stop.check)
    return run.results()


def load_images(s: Any, size: int = 32, channels: int = 3) -> tuple[ImageSet, ImageSet]:
    """Train and test images with the constants of the study's document, on the CPU."""
    return load(s.dataset, s.data_dir, documented=NORMALISATION[s.study], normalize=s.normalize,
                size=size, channels=channels, workers=s.num_workers)  # fmt: skip


def prepare(s: Machine, run: RunFolder, exports: Mapping[str, Path]) -> Ready:
    """Set up the machine, load and record the data; bad input is told before anything is computed."""
    device = start(s, exports.values())
    train, test = load_images(s)
    settle(s, run, device, {"train": train.digest(), "test": test.digest()})
    return Ready(device, train.to(device), test.to(device))


def start(s: Machine, targets: Iterable[Path]) -> torch.device:
    """Set up the machine of a run that will write ``targets``, before anything is read."""
    for target in targets:
        check_writable(target)
    device = hardware.pick_device(s.device)
    hardware.set_up(s.precision, s.threads)
    return device


def settle(s: Machine, run: RunFolder, device: torch.device, data: dict[str, str]) -> None:
    """Record what decides the bits, the digests of the ``data`` too, or take it up again; UserError for other data."""
    hardware.reuse(run.record(hardware.facts(device, s.precision), data))
    say(
        f"{run.path.name}: on {device}, {s.precision}, {counted(torch.get_num_threads(), 'CPU thread')}, in {run.path}"
    )


def check_trainable(data: ImageSet, batch_size: int, dataset: str) -> None:
    """UserError where a set is too small or has nothing to tell apart."""
    if batch_size > len(data):
        raise UserError(f"--batch_size {batch_size} is more than the {len(data)} training images")
    if len(data.labels.unique()) < 2:
        raise UserError(f"{dataset}: all training images are of one class, there is nothing to learn")


def export(exports: Mapping[str, Path], run: RunFolder) -> None:
    """Put the documented files in place: ``exports`` maps files of the finished run folder to their names."""
    for source, target in exports.items():
        publish(run, run.path / source, target, OWNERS[target.suffix])


def _owner_of_json(path: Path) -> str | None:
    try:
        return str(read_json(path)["run_id"])
    except (UserError, KeyError, TypeError):
        return None


def _owner_of_checkpoint(path: Path) -> str | None:
    try:
        return str(read_checkpoint(path)["run_id"])
    except (UserError, KeyError):
        return None


def _owner_of_arrays(path: Path) -> str | None:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            return str(arrays["run_id"])
    except Exception:  # numpy, zipfile and zlib each have their own
        return None


OWNERS: dict[str, Callable[[Path], str | None]] = {
    ".json": _owner_of_json,
    ".pt": _owner_of_checkpoint,
    ".pth": _owner_of_checkpoint,
    ".npz": _owner_of_arrays,
}
"""How the id of the run that wrote a documented file is read, by the file's ending."""


def percent(fraction: float | None) -> float | None:
    """As the documented files write accuracies."""
    return None if fraction is None else round(100 * fraction, 6)


def arrays_to_bytes(arrays: Mapping[str, Any]) -> bytes:
    """An ``.npz`` without pickles; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
