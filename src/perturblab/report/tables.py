"""Tables: aligned text for terminals and log files, CSV for everything else."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perturblab.files import write_atomic
from perturblab.terminal import say

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows under a title, and what a reader must know about them. ValueError if a row has another width.

    Columns whose index is in ``text`` are set flush left, the others (numbers) flush right.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    text: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.title}: row {row} does not fit the columns {self.columns}")


def as_text(table: Table, width: int = 100) -> str:
    """The table with aligned columns; notes wrapped at ``width``. Rows are never broken or cut."""
    cells = [table.columns, *table.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    lines = [_line(row, widths, table.text) for row in cells]
    rule = "-" * max(map(len, lines))
    notes = [textwrap.fill(note, width, subsequent_indent="  ") for note in table.notes]
    return "\n".join([table.title, rule, lines[0], rule, *lines[1:], rule, *notes])


def as_markdown(table: Table) -> str:
    """The table as Markdown has it, under its title as a heading; notes below."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    rule = line("---" if i in table.text else "---:" for i in range(len(table.columns)))
    rows = [line(table.columns), rule, *map(line, table.rows)]
    return "\n".join([f"### {table.title}", "", *rows, *(f"\n{note}" for note in table.notes)])


def show(table: Table) -> None:
    """Print the table: in colour and as wide as the window on a terminal, as plain text elsewhere."""
    if sys.stdout.isatty():
        _show_rich(table)
    else:
        say("\n" + as_text(table))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Comma-separated values with a header and plain line feeds. None is an empty field; floats keep every digit."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write ``csv_text``, whole or not at all. UserError when the disk is full or the folder is not writable."""
    write_atomic(path, csv_text(columns, rows).encode())


def _line(row: Sequence[str], widths: Sequence[int], text: Sequence[int]) -> str:
    cells = (
        c.ljust(w) if i in text else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()


def _show_rich(table: Table) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    # Text, not str: rich would read "[...]" in a label as mark-up.
    shown = RichTable(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(table.columns):
        shown.add_column(
            Text(name),
            justify="left" if i in table.text else "right",
            overflow="fold",
            no_wrap=i not in table.text,
        )
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    console = Console(width=shutil.get_terminal_size().columns)
    console.print()
    console.print(shown)
    for note in table.notes:
        console.print(Text(note, style="dim"))
