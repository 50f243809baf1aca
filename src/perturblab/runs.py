"""A run folder is the only state: named from the settings, status read from its files, numbers as JSON lines.

    perturblab_runs/STUDY/NAME-id/
        settings.json      the settings, whole
        manifest.json      what else decides the bits: versions, threads, device, digests of the data
        rows.jsonl         one JSON object per measurement, no wall-clock times, each line with its checksum
        timings.jsonl      seconds per epoch, and when it ended
        checkpoint-*.pt    the last two states, each with its SHA-256; removed when the run is done
        results.json       written last: the run is done
        failure.json       why the last attempt failed, if it did
        claim-000001/      while a process works here: who, and what it is writing

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
from typing import Any, Literal

from perturblab import __version__
from perturblab.claims import Claim, held, is_held
from perturblab.files import (
    SEAL,
    as_json,
    digest_line,
    digest_path,
    put,
    read_checked,
    read_json,
    sealed,
    writing_to,
)
from perturblab.rows import Row, RowFile, noted_rows, read_rows, rows_note
from perturblab.settings import Settings
from perturblab.terminal import UserError, warn

SCHEMA_VERSION = 1
KEPT_CHECKPOINTS = 2

Status = Literal["done", "running", "failed", "interrupted", "pending"]


class Diverged(UserError):
    """Training met a loss or weight that is not finite."""


class RunFolder:
    """One run. Constructing it reads; only ``claimed`` work writes, and only through the claim (``write``)."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path, self.settings = path, settings
        self.rows: list[Row] = []
        self._claim: Claim | None = None
        self._open: dict[str, RowFile] = {}

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
        if is_held(self.path):
            return "running"
        if self.done:  # since the first look; until then it was held
            return "done"
        if (self.path / "failure.json").exists():
            return "failed"
        return "interrupted" if (self.path / "settings.json").exists() else "pending"

    def results(self) -> dict[str, Any]:
        """What the finished run found. UserError if it was altered since it was written."""
        data = read_checked(self.path / "results.json")
        if data is None:
            raise UserError(f"{self.path / 'results.json'} is damaged; remove {self.path} and run again")
        content: dict[str, Any] = json.loads(data)
        content.pop(SEAL, None)
        return content

    def failure(self, key: Literal["kind", "message"] = "message") -> str:
        """Of the last attempt. UserError if nothing tells."""
        path = self.path / "failure.json"
        said = read_json(path)
        if not isinstance(said, dict) or key not in said:
            raise UserError(f"{path} is damaged; remove it and run the same command again")
        return str(said[key])

    # ---- working in the folder -----------------------------------------------------------------------------

    @contextmanager
    def claimed(self, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the folder: a second process is refused (Busy), a dead one's place is taken over (``claims.held``)."""
        with writing_to(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path, poll) as self._claim:
            if not (self.path / "settings.json").exists():
                self.write("settings.json", as_json(self.settings.model_dump(mode="json")))
            self.rows = self._rows_since("results.json" if self.done else "")
            try:
                yield
            finally:
                self._close_rows()
                self._claim = None

    @property
    def claim(self) -> Claim:
        assert self._claim is not None, f"{self.path} is written to without a claim"
        return self._claim

    def write(self, name: str, data: bytes) -> None:
        """Write the file ``name``: whole or not at all, and not any more once another process has taken over."""
        with self.claim.guarding():
            put(self.path / name, data, self.claim.staging).close()

    def write_checked(self, name: str, data: bytes, note: str = "") -> None:
        """``write`` with a SHA-256 beside it, the digest first: a file without its digest is incomplete."""
        self.write(f"{name}.sha256", digest_line(name, data, note))
        self.write(name, data)

    def remove(self, path: Path) -> None:
        """Remove a file of this folder and its digest, unless another process has taken over."""
        for one in (path, digest_path(path)):
            with writing_to(one), contextlib.suppress(FileNotFoundError):
                os.replace(one, self.claim.staging / "removed")
                os.unlink(self.claim.staging / "removed")
        self.claim.check()

    def log(self, **row: Any) -> None:
        """Append one row of measurements; units stand in the names, no wall-clock times.

        Raises Diverged for a number that is not finite: weights can be finite and what they predict not.
        """
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise Diverged(
                    f"{name} is not finite in epoch {row.get('epoch')}: training diverged; try a lower learning rate"
                )
        self._row_file("rows.jsonl", self.rows).append(row)
        self.rows.append(row)

    def drop_rows_from(self, epoch: int) -> None:
        """Forget rows of ``epoch`` and later (and a torn last line): they are about to be measured again."""
        self._close_rows()
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        if self.rows or (self.path / "rows.jsonl").exists():
            self._row_file("rows.jsonl", self.rows)

    def log_time(self, epoch: int, seconds: float) -> None:
        ended = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        before = [] if "timings.jsonl" in self._open else list(self.timings().values())
        row = {"epoch": epoch, "seconds": round(seconds, 3), "ended": ended}
        self._row_file("timings.jsonl", before).append(row)

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
            self.write("manifest.json", as_json(sealed({**about, "machine": machine, "data": data})))
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
        self.write_checked(f"checkpoint-{epoch:06d}-{step:08d}.pt", data, rows_note(self.rows))
        for old in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            self.remove(old)

    def checkpoints(self) -> list[Path]:
        return sorted(self.path.glob("checkpoint-*.pt"))

    def latest_checkpoint(self) -> bytes | None:
        """The newest undamaged state, or None for a fresh run; UserError when all that there are are damaged."""
        found = self.checkpoints()
        for path in reversed(found):
            data = read_checked(path)
            if data is not None:
                self._rows_since(path.name)
                return data
            warn(f"{path} is damaged (its SHA-256 differs); going on from an earlier state")
            self.remove(path)
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
        self.write_checked("results.json", as_json(sealed(content)), rows_note(self.rows))
        self.remove(self.path / "failure.json")
        self.clear_checkpoints()

    def clear_checkpoints(self) -> None:
        for path in sorted(self.path.glob("checkpoint-*")):  # also a digest whose checkpoint a kill prevented
            if path.suffix != ".sha256" or not path.with_suffix("").exists():
                self.remove(path)

    def fail(self, kind: str, message: str) -> None:
        with contextlib.suppress(UserError):  # a full disk: the message on the terminal must do
            self.write("failure.json", as_json({"kind": kind, "message": message}))

    def _rows_since(self, name: str) -> list[Row]:
        """The rows on disk. UserError if some are gone that were there when the file ``name`` was written."""
        return read_rows(self.path / "rows.jsonl", noted_rows(self.path / name) if name else 0)

    def _row_file(self, name: str, rows: list[Row]) -> RowFile:
        """The open file, made anew from ``rows`` when this process writes to it for the first time."""
        if name not in self._open:
            with self.claim.guarding():
                self._open[name] = RowFile(self.path / name, rows, self.claim.staging)
        return self._open[name]

    def _sync_rows(self) -> None:
        if "rows.jsonl" in self._open:
            with writing_to(self.path / "rows.jsonl"):
                os.fsync(self._open["rows.jsonl"].file.fileno())

    def _close_rows(self) -> None:
        for rows in self._open.values():
            rows.file.close()
        self._open = {}


def run_folder(settings: Settings, name: str, runs_dir: str | Path) -> RunFolder:
    """The folder of these settings: ``runs_dir/STUDY/name-id``, or the one that bears the same id under another name.

    A name may hold a suffix, which says how exported files are called and not what is computed. What begins with
    another word is no name of ours: a copy that somebody keeps.
    """
    study = Path(runs_dir) / settings.study
    path = study / f"{name}-{settings.id}"
    if not path.exists():
        there = _names_by_id(study).get(settings.id, "")
        if there.partition("_")[0] == name.partition("_")[0]:
            path = study / there
    return RunFolder(path, settings)


def _names_by_id(study: Path) -> dict[str, str]:
    """The names of the run folders there, by id; read anew when one was added: a grid of thousands asks for each."""
    try:
        changed = study.stat().st_mtime_ns
        if _listed.get(study, (0, {}))[0] != changed:
            _listed[study] = changed, {name.rpartition("-")[2]: name for name in sorted(os.listdir(study))}
    except OSError:
        return {}
    return _listed[study][1]


_listed: dict[Path, tuple[int, dict[str, str]]] = {}
