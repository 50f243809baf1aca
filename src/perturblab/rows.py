"""Measurements as JSON lines, each with its checksum: a damaged line is told, a torn last one dropped."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from perturblab.files import digest_path, put, write_whole, writing_to
from perturblab.terminal import UserError

Row = dict[str, Any]

TAIL = 65_536  # bytes; a row has a few hundred


class RowFile:
    """The rows of ``path``, for the one who holds its folder: made anew from ``rows``, then open for more.

    A worker that held the folder before and still writes has the old file open, which nobody reads any more.
    """

    def __init__(self, path: Path, rows: Sequence[Row], staging: Path) -> None:
        self.path = path
        self.file: IO[bytes] = put(path, b"".join(map(to_line, rows)), staging)

    def append(self, row: Row) -> None:
        with writing_to(self.path):
            write_whole(self.file, to_line(row))


def to_line(row: Row) -> bytes:
    """``{"epoch": 1, "loss": 0.5, "crc32": "0badcafe"}``: the checksum of the line without it. ValueError for NaN."""
    text = json.dumps(row, allow_nan=False)
    return f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def read_rows(path: Path, at_least: int = 0) -> list[Row]:
    """The rows written so far; a torn last line (killed while writing) is dropped.

    UserError for other damage, and for fewer rows than the ``at_least`` that were known to be there.
    """
    if not path.exists():
        if at_least:
            raise UserError(f"{path} is missing; remove {path.parent} and run again")
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(_row(line))
        except ValueError:
            if number < len(lines):
                raise UserError(
                    f"{path}, line {number} is damaged; remove {path.parent} and run again"
                ) from None
    if len(rows) < at_least:
        raise UserError(f"{path} has lost rows; remove {path.parent} and run again")
    return rows


def last_rows(path: Path) -> list[Row]:
    """The rows at the end of a file of them, the newest first; one that is being written is left out."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    return list(_objects(reversed(lines)))


def _objects(lines: Iterable[bytes]) -> Iterator[Row]:
    for text in lines:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def rows_note(rows: Sequence[Row]) -> str:
    """What is written beside the digest of a file that rests on these rows."""
    return f"rows {len(rows)}"


def noted_rows(path: Path) -> int:
    """How many rows there were when the file ``path`` was written; 0 where nothing tells."""
    try:
        *_, word, n = digest_path(path).read_text().split()
        return int(n) if word == "rows" else 0
    except (OSError, ValueError):
        return 0


def _row(line: bytes) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
        raise ValueError("not a row")
    if row.popitem()[0] != "crc32" or line != to_line(row).rstrip(b"\n"):
        raise ValueError("not the row that was written")
    return row
