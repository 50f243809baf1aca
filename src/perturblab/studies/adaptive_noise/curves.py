"""Curves of braille letters, each two dots wide and four high, for the dashboard of adaptive-noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from rich.text import Text

Values = Sequence[float | None]

BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of the dots of a letter: [row][column]
EMPTY = 0x2800  # the braille letter without a dot
TICK = 7  # letters left of a curve, for its highest and lowest value
DOTTED = 2  # of a dotted curve one column of dots in so many is drawn


@dataclass(frozen=True)
class Series:
    """A value per epoch, None where there is none; ``dotted`` tells it from another one without colours."""

    name: str
    values: Values
    style: str = ""
    dotted: bool = False


@dataclass(frozen=True)
class Marks:
    """A letter below the epochs ``at`` these indices."""

    letter: str
    at: frozenset[int]
    style: str = ""


def graph(
    title: str, series: Sequence[Series], marks: Sequence[Marks], width: int, height: int
) -> list[Text]:
    """A heading, ``height`` lines of curves and one of marks, each at most ``width`` letters (TICK + 4 or more).

    All series have as many values. Of ``marks`` in one column the last ones stand.
    """
    columns = width - TICK - 1
    curves = [along(one.values, 2 * columns) for one in series]
    known = [value for curve in curves for value in curve if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    cells: dict[tuple[int, int], tuple[int, str]] = {}
    for one, curve in zip(series, curves, strict=True):
        for x, y in dots(curve, low, high, 4 * height, one.dotted):
            bits, _ = cells.get((x // 2, y // 4), (0, ""))
            cells[x // 2, y // 4] = bits | BITS[y % 4][x % 2], one.style
    ticks = {0: fitted(high, TICK), height - 1: fitted(low, TICK)} if known else {}
    lines = [_line(cells, y, columns, ticks.get(y, "")) for y in range(height)]
    return [
        _heading(title, series, width),
        *lines,
        below(marks, len(series[0].values), columns),
    ]


def along(values: Values, columns: int) -> list[float | None]:
    """The values stretched (lines between neighbours) or squeezed (means) to so many columns of dots."""
    n = len(values)
    if n <= 1:
        return [*values, *[None] * (columns - n)]
    if n > columns:
        edges = [x * n // columns for x in range(columns + 1)]
        return [_mean(values[start:end]) for start, end in pairwise(edges)]
    return [_between(values, x * (n - 1) / (columns - 1)) for x in range(columns)]


def _mean(values: Values) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _between(values: Values, position: float) -> float | None:
    left, share = int(position), position % 1
    here, after = values[left], values[min(left + 1, len(values) - 1)]
    if here is None or not share:
        return here
    return None if after is None else here + share * (after - here)


def dots(
    curve: Sequence[float | None], low: float, high: float, rows: int, dotted: bool
) -> list[tuple[int, int]]:
    """(column, row) of every dot of a curve, row 0 at the top; a steep line is filled unless it is ``dotted``."""
    scale = (rows - 1) / (high - low) if high > low else 0.0
    found, before = [], None
    for x, value in enumerate(curve):
        y = None if value is None else round((high - value) * scale) if scale else rows // 2
        if y is not None and not (dotted and x % DOTTED):
            from_y = y if before is None or dotted else before + (before < y) - (before > y)
            found += [(x, step) for step in range(min(y, from_y), max(y, from_y) + 1)]
        before = y
    return found


def below(marks: Sequence[Marks], n: int, columns: int) -> Text:
    """The marks of ``n`` epochs under the columns that show them."""
    row = [(" ", "")] * columns
    for one in marks:
        for i in one.at:
            row[round(i * (columns - 1) / max(n - 1, 1))] = one.letter, one.style
    line = Text.assemble(" " * (TICK + 1), *row)
    line.rstrip()
    return line


def fitted(value: float, letters: int, sign: str = "") -> str:
    """A number with as many digits, up to four, as fit into so many letters (7 or more); ``sign``: "+" shows it always."""
    texts = (f"{value:{sign}.{digits}g}" for digits in (4, 3, 2, 1))
    return next((text for text in texts if len(text) <= letters), f"{value:{sign}.0e}")


def _heading(title: str, series: Sequence[Series], width: int) -> Text:
    text = Text(title)
    if len(series) > 1:
        for one in series:
            text.append(f" {'┈' if one.dotted else '─'} {one.name}", one.style)
    text.pad_left(max(min(TICK + 1, width - len(text)), 0))
    text.truncate(width, overflow="ellipsis")
    return text


def _line(cells: dict[tuple[int, int], tuple[int, str]], y: int, columns: int, label: str) -> Text:
    drawn = (cells.get((x, y), (0, "")) for x in range(columns))
    text = Text.assemble((f"{label:>{TICK}}│", "dim"))
    for style, letters in groupby(drawn, key=lambda cell: cell[1]):
        text.append("".join(chr(EMPTY + bits) if bits else " " for bits, _ in letters), style)
    text.rstrip()
    return text
