"""The plan of a study's runs, for grids that are looked at or started. Imports no torch unless it must."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from perturblab.flags import Machine
from perturblab.launch import Cell
from perturblab.runs import RunFolder, run_folder
from perturblab.sweep import Plan
from perturblab.terminal import UserError

M = TypeVar("M", bound=Machine)

# What every run imports; torch brings in its compiler with the first optimiser, whether it compiles or not.
COMPILER = "torch._dynamo"
PRELOAD = (COMPILER, "sklearn.datasets")


def decided(settings: M) -> M:
    """``settings``, or, where the machine decides the precision, what it decides: only then is torch needed."""
    if settings.precision != "auto":
        return settings
    from perturblab.experiment import resolved

    return resolved(settings)


def settled(cell: Cell) -> Cell:
    """The cell with the precision that this machine decides: on the one where it runs it must not be another run.

    As it is where the device that it names is not here: then the other machine decides.
    """
    settings: Any = cell.settings
    if getattr(settings, "precision", "") != "auto":
        return cell
    try:
        precision = decided(settings).precision
    except UserError:
        return cell
    return replace(cell, settings=settings.model_copy(update={"precision": precision}))


def folder(cell: Cell) -> RunFolder:
    """Of a run that lies under its own name."""
    settings: Any = decided(cell.settings)  # type: ignore[type-var]
    return run_folder(settings, settings.name, settings.runs_dir)


def exports(cell: Cell) -> Iterable[Path]:
    settings: Any = cell.settings
    found: Iterable[Path] = settings.exports.values()
    return found


def planned(runs: Iterable[Any], module: str, exports: Callable[[Cell], Iterable[Path]] = exports) -> Plan:
    """Runs that lie under their own names; each imports ``module``."""
    return Plan([Cell(one.name, one) for one in runs], folder, exports, (module, *PRELOAD))
