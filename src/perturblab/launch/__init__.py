"""Ways to start what is missing. A launcher is given cells (settings) and starts each as one command line."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from perturblab.settings import Settings


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
    """How a cell ended: ``skipped`` was done before; ``failed`` says why in ``reason``."""

    cell: Cell
    status: Literal["done", "skipped", "failed", "not started"]
    seconds: float = 0.0
    reason: str = ""
