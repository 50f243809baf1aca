"""Result files of many runs: which of those in a folder are wanted, and values out of them, checked.

Every complaint is a UserError in one line that names the file and the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perturblab.terminal import UserError, warn

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def check_choice(folder: Path, wanted: Sequence[str], there: Sequence[str], lacking: Sequence[str]) -> None:
    """UserError if no file is ``wanted``, naming those that are ``there``; a warning for a part that is ``lacking``."""
    what = ", ".join(lacking) or "this selection"
    if not wanted:
        raise UserError(
            f"no result files in {folder} for {what}; there are {', '.join(dict.fromkeys(there))}"
        )
    if lacking:
        warn(f"no results in {folder} for {what}")


def natural(name: str) -> tuple[int | str, ...]:
    """A key by which ``vgg9`` sorts before ``vgg11``."""
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def value_of(path: Path, content: Mapping[str, Any], key: str, made_by: str, under: str = "") -> Any:
    """``content[key]``; UserError if it is missing, with the command that would have written it."""
    if key not in content:
        raise UserError(f"{path}: the key {under}{key} is missing; was the file made by {made_by}?")
    return content[key]


def numbers(path: Path, key: str, values: Any) -> Floats:
    """A list of numbers; NaN where it has null or a number that is not finite: a diverged loss is no point in a picture."""
    if not isinstance(values, list):
        raise UserError(f"{path}: {key} must be a list of numbers, not {values!r:.40}")
    given = [math.nan if v is None else v for v in values]
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: {key} must hold numbers or null, not {value!r:.40}")
    array = np.array(given, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path}: {key} must be a finite number, not {value!r:.40}")
    return float(value)


def rising(path: Path, key: str, values: Any) -> Floats:
    """One or more finite numbers, each above the last: the epochs of a history."""
    found = numbers(path, key, values)
    if not found.size or not np.isfinite(found).all() or (np.diff(found) <= 0).any():
        raise UserError(f"{path}: {key} must hold one or more rising numbers")
    return found
