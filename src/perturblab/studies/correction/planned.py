"""The runs of a grid of correction: where each lies, what it exports, what all of them read. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from perturblab.launch import Cell
from perturblab.planning import COMPILER, decided
from perturblab.runs import RunFolder, run_folder
from perturblab.studies.correction import GRID, Run, Train
from perturblab.studies.correction.layout import check_whole, data_sha256, file_sha256, used_files
from perturblab.sweep import Plan

# What every run imports: Pillow brings in its formats with the first picture.
FORMATS = tuple(f"PIL.{name}ImagePlugin" for name in ("Bmp", "Gif", "Jpeg", "Ppm", "Png"))
PRELOAD = ("perturblab.studies.correction.cell", COMPILER, *FORMATS)


def planned(cells: Sequence[Cell]) -> Plan:
    return Plan(cells, folder, exports, PRELOAD)


def plan_of_runs(runs: Iterable[Train]) -> Plan:
    """The runs with the digests of what they read; while that is missing nothing can be there of them."""
    known: dict[tuple[str, str], dict[str, str]] = {}
    cells = []
    for one in runs:
        inputs = (one.data, one.base_model)
        if inputs not in known:
            known[inputs] = {} if missing(*inputs) else digests_of(*inputs)
        cells.append(Cell(one.name, one.model_copy(update=known[inputs])))
    return planned(cells)


def digests_of(data: str, base_model: str) -> dict[str, str]:
    """By which a run on other bytes is another run."""
    return {"data_sha256": data_sha256(data), "base_sha256": file_sha256(Path(base_model))[:16]}


def missing(data: str, base_model: str) -> list[Path]:
    return [path for path in (*used_files(data).values(), Path(base_model)) if not path.exists()]


def lacks(runs: Sequence[Train]) -> str:
    """What of the runs' inputs is still to be made, and who makes it."""
    paths = dict.fromkeys(path for one in runs for path in missing(one.data, one.base_model))
    if not paths:
        return ""
    return (
        f"not there yet: {', '.join(map(str, paths))}; `perturblab run` makes them first, 08MNIST from mnist "
        "(perturblab correction build-data --dataset digits makes it from the bundled digits)"
    )


def prepare(runs: Sequence[Train]) -> None:
    """Make what is missing, as ``correction run`` does. UserError where it cannot be made or is damaged."""
    from perturblab.studies.correction.provide import provide

    shared = [name for name in Train.model_fields if name in Run.model_fields and name not in GRID.axes]
    for one in {(run.data, run.base_model): run for run in runs}.values():
        values = {name: getattr(one, name) for name in shared if name != "seed"}
        provide(Run.parse({**values, "experiment": "full_grid_search"}))
        check_whole(one.data, one.base_model)


def folder(cell: Cell) -> RunFolder:
    s = cell.settings
    assert isinstance(s, Train)
    s = decided(s)
    return run_folder(s.canonical(), s.canonical().name, s.runs_dir)


def exports(cell: Cell) -> Iterable[Path]:
    from perturblab.studies.correction.tensorboard import exported

    assert isinstance(cell.settings, Train)
    return exported(cell.settings, folder(cell))
