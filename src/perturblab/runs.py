"""A run folder is the only state: named from the settings, status read from its files, numbers as JSON lines.

    perturblab_runs/STUDY/NAME-id/
        settings.json      the settings, whole
        manifest.json      what else decides the bits: versions, threads, device, digests of the data
        rows.jsonl         one JSON object per measurement, no wall-clock times
        timings.jsonl      seconds per epoch, and when it ended
        checkpoint-*.pt    the last two states, each with its SHA-256; removed when the run is done
        results.json       written last: the run is done
        failure.json       why the last attempt failed, if it did
        claim              locked by the process that works here

Layer 4: writes the bytes that it is given, imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from perturblab import __version__
from perturblab.claims import held, is_held
from perturblab.files import (
    digest_path,
    keep_aside,
    read_checked,
    read_json,
    remove_temporaries,
    write_atomic,
    write_checked,
    write_json,
    writing_to,
)
from perturblab.settings import Settings
from perturblab.signals import Interrupted
from perturblab.terminal import UserError, say, warn

SCHEMA_VERSION = 1
KEPT_CHECKPOINTS = 2

Status = Literal["done", "running", "failed", "interrupted", "pending"]
Row = dict[str, Any]


class Diverged(UserError):
    """Training met a loss or weight that is not finite."""


class RunFolder:
    """One run. Constructing it reads; only ``claimed`` work writes."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.rows: list[Row] = []
        self._rows_file: IO[bytes] | None = None

    @property
    def id(self) -> str:
        return self.settings.id

    @property
    def done(self) -> bool:
        return (self.path / "results.json").exists()

    @property
    def status(self) -> Status:
        if self.done:
            return "done"
        if is_held(self.path / "claim"):
            return "running"
        if (self.path / "failure.json").exists():
            return "failed"
        return "interrupted" if (self.path / "settings.json").exists() else "pending"

    def results(self) -> dict[str, Any]:
        """What the finished run found. UserError if it was altered since it was written."""
        data = read_checked(self.path / "results.json")
        if data is None:
            raise UserError(f"{self.path / 'results.json'} is damaged; remove {self.path} and run again")
        content: dict[str, Any] = json.loads(data)
        return content

    def failure(self, key: Literal["kind", "message"] = "message") -> str:
        return str(read_json(self.path / "failure.json")[key])

    # ---- working in the folder -----------------------------------------------------------------------------

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the folder: a second process is refused, and a dead holder's lock falls by itself (flock)."""
        with writing_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path / "claim"):
            for stale in self.path.glob(".*.tmp"):  # left by a kill in the middle of a write
                stale.unlink(missing_ok=True)
            if not (self.path / "settings.json").exists():
                write_json(self.path / "settings.json", self.settings.model_dump(mode="json"))
            self.rows = read_rows(self.path / "rows.jsonl")
            try:
                yield
            finally:
                self._close_rows()

    def log(self, **row: Any) -> None:
        """Append one row of measurements; units stand in the names, no wall-clock times.

        Raises Diverged for a number that is not finite: weights can be finite and what they predict not.
        """
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise Diverged(
                    f"{name} is not finite in epoch {row.get('epoch')}: training diverged; try a lower learning rate"
                )
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with writing_to(self.path / "rows.jsonl"):
            if self._rows_file is None:
                self._rows_file = open(self.path / "rows.jsonl", "ab", buffering=0)  # noqa: SIM115
            while line:  # a disk that fills up takes a part without a word, and refuses the next
                line = line[self._rows_file.write(line) :]
        self.rows.append(row)

    def drop_rows_from(self, epoch: int) -> None:
        """Forget rows of ``epoch`` and later (and a torn last line): they are about to be measured again."""
        self._close_rows()
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self.rows)
        if self.rows or (self.path / "rows.jsonl").exists():
            write_atomic(self.path / "rows.jsonl", lines.encode())

    def log_time(self, epoch: int, seconds: float) -> None:
        ended = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        row = {"epoch": epoch, "seconds": round(seconds, 3), "ended": ended}
        with writing_to(self.path / "timings.jsonl"), open(self.path / "timings.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def timings(self) -> dict[int, Row]:
        """``seconds`` and ``ended`` (UTC) of each epoch, of one that was done twice the last."""
        return {row["epoch"]: row for row in read_rows(self.path / "timings.jsonl")}

    def record(self, machine: dict[str, Any], data: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keep what decides the bits beside the settings: the machine's facts and the digests of the data.

        Returns the facts of the first start and those of now. UserError when the data are not those of the start.
        """
        path = self.path / "manifest.json"
        if not path.exists():
            about = {"perturblab": __version__, "schema_version": SCHEMA_VERSION, "run_id": self.id}
            write_json(path, {**about, "machine": machine, "data": data})
        first: dict[str, Any] = read_json(path)
        if first["data"] != data:
            raise UserError(
                f"{self.path} was started on other data ({', '.join(k for k in data if data[k] != first['data'].get(k))} "
                "differs); use the same data, or remove that folder to start anew"
            )
        return first["machine"], machine

    def save_checkpoint(self, epoch: int, step: int, data: bytes) -> None:
        """Keep ``data`` as the state after ``step`` steps of ``epoch``; rows so far reach the disk before it."""
        self._sync_rows()
        write_checked(self.path / f"checkpoint-{epoch:06d}-{step:08d}.pt", data)
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            _remove_checked(old)

    def checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*.pt"))

    def latest_checkpoint(self) -> bytes | None:
        """The newest undamaged state, or None for a fresh run; UserError when all that there are are damaged."""
        found = self.checkpoints()
        for path in reversed(found):
            data = read_checked(path)
            if data is not None:
                return data
            warn(f"{path} is damaged (its SHA-256 differs); going on from an earlier state")
            _remove_checked(path)
        if found:
            raise UserError(
                f"every checkpoint of {self.path} is damaged; run the same command again to start anew"
            )
        return None

    def finish(self, results: dict[str, Any]) -> None:
        """Write the results, which makes the run done, and clear what is no longer needed."""
        self._sync_rows()
        self._close_rows()
        content = {"schema_version": SCHEMA_VERSION, "run_id": self.id, **results}
        text = json.dumps(content, allow_nan=False, indent=1) + "\n"
        write_checked(self.path / "results.json", text.encode())
        (self.path / "failure.json").unlink(missing_ok=True)
        self.clear_checkpoints()

    def clear_checkpoints(self) -> None:
        for path in self.path.glob("checkpoint-*"):  # also a digest whose checkpoint a kill prevented
            path.unlink(missing_ok=True)

    def fail(self, kind: str, message: str) -> None:
        with contextlib.suppress(UserError):  # a full disk: the message on the terminal must do
            write_json(self.path / "failure.json", {"kind": kind, "message": message})

    def _sync_rows(self) -> None:
        if self._rows_file is not None:
            with writing_to(self.path / "rows.jsonl"):
                os.fsync(self._rows_file.fileno())

    def _close_rows(self) -> None:
        if self._rows_file is not None:
            self._rows_file.close()
            self._rows_file = None


def run_folder(settings: Settings, name: str, runs_dir: str | Path) -> RunFolder:
    """The folder of these settings: ``runs_dir/STUDY/name-id``."""
    return RunFolder(Path(runs_dir) / settings.study / f"{name}-{settings.id}", settings)


def perform(run: RunFolder, work: Callable[[RunFolder], None], export: Callable[[RunFolder], None]) -> None:
    """Do ``work`` unless it is done, then write its exports. Failures are recorded in the folder and raised."""
    with run.claimed():
        if run.done:
            run.clear_checkpoints()  # left by a kill between the results and the clearing
        else:
            _attempt(run, work)
        export(run)


def _attempt(run: RunFolder, work: Callable[[RunFolder], None]) -> None:
    (run.path / "failure.json").unlink(missing_ok=True)  # it told of the attempt before
    try:
        work(run)
    except (Interrupted, KeyboardInterrupt):
        raise
    except Diverged as error:
        run.fail("diverged", str(error))
        raise
    except BaseException as error:
        run.fail(
            "failed", f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
        )
        raise


def publish(run: RunFolder, source: Path, target: Path, owner: Callable[[Path], str | None]) -> None:
    """Copy ``source`` of a done run to its documented name; say so when that name held another run's file.

    ``owner`` reads the run id in an existing target. A file that no run of ours wrote is kept beside it. UserError
    if ``source`` was altered since it was written.
    """
    data = read_checked(source)
    if data is None:
        raise UserError(f"{source} is damaged; remove {run.path} and run again")
    with writing_to(target):
        remove_temporaries(target, run.id)
        there = target.read_bytes() if target.exists() else None
    if there == data:
        return
    if there is not None:
        previous = owner(target)
        if previous is None:
            keep_aside(target, there, run.id)
        elif previous != run.id:
            say(f"{target} now holds run {run.id}; it held run {previous}")
    write_atomic(target, data, run.id)


def read_rows(path: Path) -> list[Row]:
    """The rows written so far; a torn last line (killed while writing) is dropped, other damage is an error."""
    if not path.exists():
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
    return rows


def _row(line: bytes) -> Row:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
        raise ValueError("not a row")
    return row


def _remove_checked(path: Path) -> None:
    path.unlink(missing_ok=True)
    digest_path(path).unlink(missing_ok=True)
