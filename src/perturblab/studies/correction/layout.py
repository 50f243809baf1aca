"""The document's folder: which files lie where, and their digests. No torch: a grid is planned without it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

from perturblab.files import digest, read_json
from perturblab.terminal import UserError

DIGITS = ("0", "8")
"""The classes, in label order; the second bears the dot."""
BUILD = "perturblab correction build-data"


def set_files(data: str | Path) -> dict[str, Path]:
    """Every file of 08MNIST, by what it holds."""
    folder = Path(data)
    return {
        "train": folder / "confounded_v1" / "train.pth",
        "confounded": folder / "confounded_v1" / "test.pth",
        "original": folder / "original" / "test.pth",
        "original_train": folder / "original" / "train.pth",
    }


def used_files(data: str | Path) -> dict[str, Path]:
    """Those that training reads; the document ships no others."""
    return {name: path for name, path in set_files(data).items() if name != "original_train"}


def about_file(data: str | Path) -> Path:
    """What ``build-data`` says of the set that it made."""
    return Path(data) / "about.json"


def about(data: str | Path) -> dict[str, Any] | None:
    """None for a set that was not made here."""
    path = about_file(data)
    said = read_json(path) if path.exists() else None
    return said if isinstance(said, dict) and said.get("made_by") == BUILD else None


def data_sha256(data: str | Path) -> str:
    """16 hex digits over the bytes of the files that training reads. UserError if one is missing."""
    return digest("".join(file_sha256(path) for path in used_files(data).values()).encode())[:16]


def file_sha256(path: Path) -> str:
    """UserError with the command that makes the file, if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; {BUILD} makes 08MNIST, train-base the base model"
        ) from None


def check_whole(data: str | Path, model: str | Path) -> None:
    """UserError if a bit of a file that runs will read has flipped: torch.save keeps a CRC-32 of each part."""
    for path in (*used_files(data).values(), Path(model)):
        if not zipfile.is_zipfile(path):
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                whole = archive.testzip() is None
        except (zipfile.BadZipFile, OSError, ValueError):
            whole = False
        if not whole:
            raise UserError(
                f"{path} is damaged; remove it and make it again ({BUILD} for 08MNIST, train-base for the base model)"
            )


def check_digest(what: str, asked: str, found: str) -> str:
    """``found``; UserError if a run was asked for on other bytes."""
    if asked and asked != found:
        raise UserError(
            f"{what} has changed since this run was named ({found}, not {asked}); start from `run` again"
        )
    return found


def sidecar(model: Path) -> Path:
    """What stands beside a model that was trained here: its run, its digest, its accuracies."""
    return model.with_suffix(".json")


def owner_by_sidecar(model: Path) -> str | None:
    """The id of the run that wrote the model, or None if it is not the one that its sidecar tells of."""
    try:
        said = read_json(sidecar(model))
        return str(said["run_id"]) if said["sha256"] == digest(model.read_bytes()) else None
    except (UserError, OSError, KeyError, TypeError):
        return None
