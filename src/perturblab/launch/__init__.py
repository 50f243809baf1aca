"""Ways to start what is missing. A launcher is given cells (settings) and starts each as one command line.

Those that wait for the runs (``local``, ``dask_cluster``) are a function ``Launch``, which ``perturblab.sweep`` calls.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from perturblab.settings import Settings
from perturblab.signals import StopFlag

Status = Literal["done", "skipped", "failed", "stopped", "not started", "elsewhere"]


@dataclass(frozen=True)
class Cell:
    """One run of a grid: what people call it, and its settings."""

    name: str
    settings: Settings

    def line(self, prefix: str) -> str:
        """The shell command that runs it."""
        return f"{prefix} {shlex.join(self.settings.arguments())}"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: ``skipped`` was done before; ``failed`` says why in ``reason``; ``stopped`` was told to from
    outside and has saved; ``elsewhere``: another process holds its folder."""

    cell: Cell
    status: Status
    seconds: float = 0.0
    reason: str = ""


class Launch(Protocol):
    """Run every cell, ``jobs`` at a time, going on after failures; an outcome each, in the order of their ends.

    A cell is taken from ``cells`` when its turn comes, so these may be made as work goes on.

    Each cell's output goes to ``log_of(cell)``, or to this terminal if that is None. ``on_end`` is called as each
    ends. When the flag is raised the running ones are asked to stop and save, and Interrupted is raised once they
    have. ``preload``: modules that every run imports.
    """

    def __call__(
        self,
        cells: Iterable[Cell],
        log_of: Callable[[Cell], Path | None],
        jobs: int,
        stop: StopFlag,
        on_end: Callable[[Outcome], None],
        preload: Sequence[str] = (),
    ) -> list[Outcome]: ...
