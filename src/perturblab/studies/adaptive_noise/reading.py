"""Reading the exported ``{checkpoint_dir}/metrics/*/all_metrics.json``: everything that pictures and tables need."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perturblab.files import read_json
from perturblab.report.groups import alike, refuse_twins
from perturblab.report.reading import Floats, check_choice, natural, number, numbers, rising, value_of
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.arms import ARMS, FLAGS, SETTINGS, TARGETS, FlagHistory, Run
from perturblab.studies.adaptive_noise.training import classifier_name
from perturblab.terminal import UserError, warn

Row = dict[str, Any]

FILE = "all_metrics.json"
MADE_BY = "adaptive-noise train"
MAKES_THEM = "`perturblab adaptive-noise sweep` makes runs with their baselines, `perturblab adaptive-noise train` one run"

CURVES = (
    "lr", "train_loss", "train_acc_online", "train_acc_clean", "val_loss", "val_acc", "grad_norm", "update_norm",
    "weight_norm", "noise_sigma", "norm_before", "norm_after",
)  # fmt: skip
OF_OPTIMIZER = ("momentum_norm", "exp_avg_norm", "exp_avg_sq_norm", "effective_lr")
IN_PERCENT = {"train_acc_online", "train_acc_clean", "val_acc"}
OF_CONTROLLER = ("stuckness", "streak", "cooldown")


def read_runs(
    checkpoint_dir: str | Path,
    classifiers: Sequence[str] = (),
    seeds: Sequence[int] = (),
    run_ids: Collection[str] = (),
) -> list[Run]:
    """The runs below ``checkpoint_dir``, by network (in the order asked for), optimiser, learning rate, noise, seed.

    ``run_ids``: only these, and no other file is opened. UserError when there are none, and, naming file and key, when
    one is damaged or lacks a key. Warns in one line if something asked for is not there, or if a run was exported twice.
    """
    folder = Path(checkpoint_dir) / "metrics"
    files = sorted(folder.glob(f"*/{FILE}"))
    if run_ids:
        files = [path for path in files if path.parent.name.rpartition("_")[2] in run_ids]
    if not files:
        raise UserError(f"no metrics in {folder}: {MAKES_THEM}")
    runs = _once([_read(path) for path in files])
    names = [str(classifier_name(name)) for name in classifiers]
    chosen = [r for r in runs if (not names or r.classifier in names) and (not seeds or r.seed in seeds)]
    lacking = [name for name in names if name not in {r.classifier for r in runs}]
    lacking += [f"seed {n}" for n in seeds if n not in {r.seed for r in runs}]
    check_choice(folder, [r.name for r in chosen], [f"{r.classifier} seed {r.seed}" for r in runs], lacking)
    refuse_twins(alike(chosen, SETTINGS))
    return sorted(chosen, key=lambda run: _order(run, names))


def _once(runs: Sequence[Run]) -> list[Run]:
    """Each run once: another ``--suffix`` exports the same one to another folder."""
    kept: dict[str, Run] = {}
    for run in runs:
        if (first := kept.setdefault(run.run_id, run)) is not run:
            warn(f"{run.path} and {first.path.name} are the same run; it counts once")
    return list(kept.values())


def _order(run: Run, names: Sequence[str]) -> tuple[Any, ...]:
    asked = names.index(run.classifier) if names else 0
    first = run.noise.replace("-", " ").split()[0]
    place = ARMS.index(first) if first in ARMS else len(ARMS)
    return (
        asked, natural(run.classifier.lower()), run.optimizer, -run.lr, run.momentum, place, run.noise, run.seed, run.path.name,
    )  # fmt: skip


# ---- one file ----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Run:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it does not hold an object")

    def text(key: str) -> str:
        return _text(path, key, value_of(path, content, key, MADE_BY))

    config, final = _object(path, content, "config"), _object(path, content, "final_metrics")
    rows = _rows(path, content, "epochs")
    history, events = _history(path, rows), _events(path, content, len(rows))
    classes = value_of(path, content, "classes", MADE_BY)
    if not isinstance(classes, list):
        raise UserError(f"{path}: classes must be a list of names, not {classes!r:.40}")
    return Run(
        path=path.parent, run_id=text("run_id"), baseline_id=text("baseline_id"), name=text("name"),
        classifier=text("classifier"), optimizer=text("optimizer"), lr=_number(path, config, "lr", "config."),
        momentum=_number(path, config, "momentum", "config."), noise=_noise(text("arm"), config),
        seed=int(_number(path, content, "seed")), settings=_settings(config), data_sha256=str(content.get("data_sha256")), classes=tuple(map(str, classes)),
        best_epoch=int(_number(path, final, "best_epoch", "final_metrics.")), finals=_finals(path, final),
        history=history, val_by_class=_by_class(path, rows, len(classes)),
        targets=tuple(_target(path, row) for row in rows), causes=tuple(row.get("cause") for row in events),
        cooling=tuple(bool(row["cooling"]) for row in events), flags=_flags(path, events),
    )  # fmt: skip


def _noise(arm: str, config: Row) -> str:
    """The arm with the law of its noise, where it has one."""
    return arm if arm in ("baseline", "label") else f"{arm} {config.get('noise_distribution', 'gaussian')}"


def _settings(config: Row) -> Row:
    """Every name in SETTINGS, by its default where a file does not have it."""
    found = {name: config.get(name, Train.default_of(name)) for name in SETTINGS}
    return {"script": "perturblab", **{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}}


def _finals(path: Path, final: Row) -> dict[str, float]:
    gap = value_of(path, final, "generalization_gap", MADE_BY, "final_metrics.")
    if not isinstance(gap, dict):
        raise UserError(f"{path}: final_metrics.generalization_gap is damaged: it does not hold an object")
    fractions = {
        "test_acc": _number(path, final, "test_acc", "final_metrics."),
        "best_val_acc": _number(path, final, "best_accuracy", "final_metrics."),
        "final_val_acc": _number(path, final, "final_val_acc", "final_metrics."),
        "gap": _number(path, gap, "final_gap", "final_metrics.generalization_gap."),
    }
    loss = _number(path, final, "test_loss", "final_metrics.")
    return {**{name: 100 * value for name, value in fractions.items()}, "test_loss": loss}


def _history(path: Path, rows: Sequence[Row]) -> dict[str, Floats]:
    """Every curve, and the optimiser's state where it is recorded."""
    state = [key for key in OF_OPTIMIZER if key in rows[0]]
    curves = {key: numbers(path, f"epochs.{key}", _column(path, rows, key)) for key in (*CURVES, *state)}
    epochs = rising(path, "epochs.epoch", _column(path, rows, "epoch"))
    return {
        "epoch": epochs,
        **{key: 100 * values if key in IN_PERCENT else values for key, values in curves.items()},
    }


def _column(path: Path, rows: Sequence[Row], key: str) -> list[Any]:
    return [value_of(path, row, key, MADE_BY, "epochs.") for row in rows]


def _by_class(path: Path, rows: Sequence[Row], classes: int) -> Floats:
    """``[epochs classes]`` in percent; NaN for a class without images."""
    table = [
        numbers(path, "epochs.val_acc_per_class", values)
        for values in _column(path, rows, "val_acc_per_class")
    ]
    if any(row.size != classes for row in table):
        raise UserError(f"{path}: epochs.val_acc_per_class must hold a number for each of {classes} classes")
    return 100 * np.stack(table)


def _target(path: Path, row: Row) -> str | None:
    target = value_of(path, row, "noise_target", MADE_BY, "epochs.")
    if target is not None and target not in TARGETS:
        raise UserError(
            f"{path}: epochs.noise_target must be one of {', '.join(TARGETS)} or null, not {target!r:.40}"
        )
    return target if target is None else str(target)


def _events(path: Path, content: Row, epochs: int) -> list[Row]:
    """A row of the controller for each epoch."""
    events = _rows(path, content, "controller")
    if len(events) != epochs:
        raise UserError(f"{path}: controller has {len(events)} rows, epochs has {epochs}")
    for event in events:
        for key in ("cause", "cooling", "flags", *OF_CONTROLLER):
            value_of(path, event, key, MADE_BY, "controller.")
    return events


def _flags(path: Path, events: Sequence[Row]) -> dict[str, FlagHistory]:
    """Every flag that was measured in some epoch, in order of first appearance."""
    found: dict[str, FlagHistory] = {}
    for place, event in enumerate(events):
        for flag in _rows(path, event, "flags", "controller.", may_be_empty=True):
            name = _flag_name(path, flag)
            if name not in found:
                found[name] = FlagHistory(*(np.full(len(events), math.nan) for _ in range(3)))
            for key in ("value", "threshold"):
                getattr(found[name], key)[place] = _number(path, flag, key, "controller.flags.")
            found[name].fired[place] = bool(value_of(path, flag, "fired", MADE_BY, "controller.flags."))
    return found


def _flag_name(path: Path, flag: Row) -> str:
    name = value_of(path, flag, "name", MADE_BY, "controller.flags.")
    if name not in FLAGS:
        raise UserError(f"{path}: controller.flags.name must be one of {', '.join(FLAGS)}, not {name!r:.40}")
    return str(name)


# ---- checked values ------------------------------------------------------------------------------------------------


def _rows(path: Path, content: Row, key: str, under: str = "", may_be_empty: bool = False) -> list[Row]:
    rows = value_of(path, content, key, MADE_BY, under)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: {under}{key} is damaged: it does not hold a list of objects")
    if not rows and not may_be_empty:
        raise UserError(f"{path}: {under}{key} is empty")
    return rows


def _object(path: Path, content: Row, key: str) -> Row:
    found = value_of(path, content, key, MADE_BY)
    if not isinstance(found, dict):
        raise UserError(f"{path}: {key} is damaged: it does not hold an object")
    return found


def _number(path: Path, content: Row, key: str, under: str = "") -> float:
    return number(path, f"{under}{key}", value_of(path, content, key, MADE_BY, under))


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: {key} must be a name, not {value!r:.40}")
    return value
