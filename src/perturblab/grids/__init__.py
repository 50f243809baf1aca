"""Grids: a study says once which runs belong together; a file or ``--set`` changes that; the commands work on the result.

A study declares it in its ``__init__``, without torch::

    GRID = Grid(Train, {"arch": ("vgg11", "vgg13"), "seed": (0, 1, 2)}, "perturblab.studies.mine.sweep:plan_of_runs")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from perturblab.settings import Settings


@dataclass(frozen=True)
class Measure:
    """A number of a finished run. ``key``: where in results.json, ``a.b`` is b in a. ``name`` and ``unit``: as the
    study's tables have it. ``times``: from what the file holds to that unit, 100 for a share as percent."""

    key: str
    name: str
    unit: str = ""
    times: float = 1.0


@dataclass(frozen=True)
class Grid:
    """The runs of a study that belong together.

    ``settings``: the class of one run. ``axes``: its fields that vary, with their values, the outermost first.
    ``fixed``: what else differs from the defaults of ``settings``. ``plan``: ``"module:function"``, which turns the
    settings of the runs into a ``perturblab.sweep.Plan`` without importing torch.
    """

    settings: type[Settings]
    axes: Mapping[str, Sequence[Any]]
    plan: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """field -> value -> what that value is short for; it wins over ``fixed``"""
    named: tuple[str, ...] = ("suffix",)
    """fields beside those of ``axes`` that the names of exported files hold"""
    apart: str = "suffix"
    """the field that keeps the files of further axes apart: a suffix, or a folder (``..._dir``)"""
    along: Callable[[Any], Iterable[Settings]] | None = None
    """a run -> the runs that stand for it in the grid: what it is compared with, and last itself"""
    epochs: str = "epochs"
    """the field that says how many epochs a run has, at most"""
    prepare: str = ""
    """``"module:function"``: makes what the runs need, or refuses what none of them can do; before they start"""
    lacks: str = ""
    """``"module:function"``: what of that is not there yet, as a line ("" for nothing); no torch"""
    verify: str = ""
    """``"module:function"``: the document's own check of what is there, a line each; no torch"""
    measures: tuple[Measure, ...] = ()
    """what the study's tables show of a run, that by which runs are compared first"""
    then: str = ""
    """the command that shows what a finished grid found"""


def function_of(name: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names, imported now."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
