"""Settings that several studies share. A study that documents another default restates the field."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from perturblab.settings import Settings, flag


class Loading(Settings):
    """Where data sets are kept, and how they are read."""

    data_dir: str = flag("./data", "Where data sets are kept.", where=True)
    num_workers: int = flag(
        4,
        "Threads that decode images when a set is first loaded.",
        "--num_workers",
        "--workers",
        where=True,
        ge=0,
    )


DATASETS = ("cifar10", "cifar100", "mnist", "fashion-mnist", "digits", "folder:PATH", "parquet:PREFIX", "npz:PATH")  # fmt: skip


def dataset_of(name: str) -> tuple[str, str]:
    """``"folder:pets"`` -> ``("folder:PATH", "pets")``. ValueError for a name that is none."""
    kind, _, path = name.partition(":")
    spelt = {key.partition(":")[0]: key for key in DATASETS}
    key = spelt.get(kind, "")
    if not key or (":" in key) != bool(path):
        near = spelt[difflib.get_close_matches(kind, spelt, n=1, cutoff=0)[0]]
        raise ValueError(f"unknown data set {name!r}, the nearest is {near}; there are {', '.join(DATASETS)}")
    return key, path


class Data(Loading):
    """Which images."""

    dataset: str = flag(
        "cifar10",
        "cifar10, cifar100, mnist, fashion-mnist, digits, folder:PATH, parquet:PREFIX or npz:PATH.",
    )
    normalize: Literal["documented", "data"] = flag(
        "documented", "Normalisation constants: the document's (colour sets) or computed from train."
    )

    @field_validator("dataset")
    @classmethod
    def _known(cls, value: str) -> str:
        dataset_of(value)
        return value


class Machine(Settings):
    """What computes, and how exactly."""

    precision: Literal["fp32", "tf32", "bf16", "auto"] = flag("fp32", "Arithmetic of the forward passes.")
    device: str = flag("auto", "auto, cpu, cuda, cuda:N or mps.", where=True)
    threads: int = flag(
        0, "CPU threads; 0 takes torch's default. Recorded, and reused on resume.", where=True, ge=0
    )
    runs_dir: str = flag("./perturblab_runs", "Where runs keep their state.", where=True)

    @field_validator("device")
    @classmethod
    def _a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError("it must be auto, cpu, cuda, cuda:N or mps")
        return value

    @field_validator("runs_dir")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("it must be the name of a folder")
        return value


class OnCards(Settings):
    """How several runs at a time use the CUDA cards of this machine."""

    per_gpu: int = flag(1, "Runs at a time on each CUDA card.", "--per_gpu", where=True, ge=1)


class Fitting(Data, Machine):
    """What every training run has."""

    compile: bool = flag(False, "Compile the training step with torch.compile.")
    checkpoint_every: float = flag(
        60.0, "Seconds of work that a kill may lose, at most (plus one step).", where=True, ge=0
    )


class Sgd(Fitting):
    """What runs share that train with SGD on cropped and flipped images."""

    momentum: float = flag(0.9, "SGD momentum.", ge=0, lt=1)
    weight_decay: float = flag(5e-4, "Weight decay on all parameters.", ge=0)
    augment: Literal["auto", "crop-flip", "crop", "none"] = flag(
        "auto", "Training augmentation; auto is crop-flip (documented), or crop for digits and mnist."
    )
    clean_every: int = flag(1, "Measure clean train accuracy every N epochs (and after the last).", ge=1)

    @property
    def augmentation(self) -> str:
        """``augment`` with ``auto`` resolved."""
        if self.augment != "auto":
            return self.augment
        return "crop" if is_upright(self.dataset) else "crop-flip"


LONGEST_SUFFIX = 150  # bytes: file systems take names of 255, and there is more in them


class Suffixed(Settings):
    """A run whose exported files can bear one word more than the document says."""

    suffix: str = flag("", "Added to the names of exported files, e.g. for an extra axis.", where=True)

    @field_validator("suffix")
    @classmethod
    def _part_of_a_name(cls, value: str) -> str:
        if any(c in "/\\" or not c.isprintable() for c in value):
            raise ValueError("it must be a part of a file name")
        if len(value.encode()) > LONGEST_SUFFIX:
            raise ValueError("it is too long for a part of a file name")
        return value


def data_name(dataset: str) -> str:
    """What a data set is called in titles and names of jobs: ``digits``, of ``npz:some/where/mine.npz`` ``mine``."""
    kind, _, path = dataset.partition(":")
    return (Path(path).stem or kind) if path else kind


class Predictions(Settings):
    """A command that can write its masks and predictions to a file."""

    save_predictions: str = flag(
        "", "Also write every mask and prediction to this .npz file.", "--save-predictions", where=True
    )

    @field_validator("save_predictions")
    @classmethod
    def _an_npz(cls, value: str) -> str:
        if value and not value.endswith(".npz"):
            raise ValueError("it must be a path that ends in .npz")
        return value


def is_upright(dataset: str) -> bool:
    """Whether a mirrored image would be another thing: a flipped digit is no digit."""
    return dataset in ("digits", "mnist")


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of an axis: a value named twice is one run, and a grid has at least one."""
    if not values:
        raise ValueError("it must hold one or more values")
    return tuple(dict.fromkeys(values))


def listed(value: Any) -> Any:
    """A list as a file may spell it: one value, several, or words with commas."""
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",")]
    return tuple(value) if isinstance(value, list | tuple) else (value,)
