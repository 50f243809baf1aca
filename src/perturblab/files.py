"""Files that are whole or absent: temporary name in the same folder, fsync, rename, fsync of the folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from perturblab.terminal import UserError, warn

LONGEST_NAME = 200  # bytes: file systems take 255, and the name of a temporary file is longer
SEAL = "content_sha256"  # the key of a JSON file that holds a digest of its other keys


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an OSError while writing ``path`` (full disk, no permission) into one line."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "one of its folders is a file"
        what = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another folder"
        raise UserError(
            f"cannot write {path}: {reason}; {what}, then run the same command again: finished work is kept"
        ) from None


def write_atomic(
    path: str | Path, data: bytes, writer: str = "", check: Callable[[], None] = lambda: None
) -> None:
    """Write ``data`` so that ``path`` is at any moment either its old or its new content, also after a crash.

    Raises UserError when the disk is full or the folder cannot be written; no temporary file is left then. What a
    kill leaves carries the ``writer``, so that ``remove_temporaries`` finds it. ``check`` may raise while the new
    content is on disk, but not yet under its name.
    """
    path = Path(path)
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.{writer}", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            check()
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)


def put(path: Path, data: bytes, staging: Path) -> IO[bytes]:
    """Write ``data`` to a file in ``staging``, move it to ``path``, and return it, open for more.

    As ``write_atomic``, for a folder that is claimed: the move fails once ``staging`` is gone.
    """
    temporary = staging / path.name
    with writing_to(path):
        file = open(temporary, "wb", buffering=0)  # noqa: SIM115 - the caller closes it
        try:
            write_whole(file, data)
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)
    return file


def write_whole(file: IO[bytes], data: bytes) -> None:
    """To an unbuffered file: a disk that fills up takes a part without a word, and refuses the next."""
    while data:
        data = data[file.write(data) :]


@contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` for a moment, once whoever holds it is done (flock)."""
    with writing_to(path):
        lock = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as it is held
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def time_of(folder: Path) -> float:
    """The time (seconds since 1970) by the clock that dates the files of ``folder``: a file server has its own.

    Ours where we cannot write: for a look at another user's run that must do.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def remove_temporaries(path: Path, writer: str) -> None:
    """Remove what ``writer``, killed in the middle of writing ``path``, left beside it."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.{writer}*.tmp"):
        stale.unlink(missing_ok=True)


def keep_aside(path: Path, data: bytes, writer: str = "") -> None:
    """Save what stands in a file that we are about to replace and did not write, and say so."""
    kept = path.with_name(f"{path.name}.before-{digest(data)[:10]}")
    write_atomic(kept, data, writer)
    warn(f"{path} was not made by perturblab; kept as {kept.name}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | Path, content: Any) -> None:
    """Strict JSON (no NaN), keys in the order given, one trailing newline."""
    write_atomic(path, as_json(content))


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """The same with a digest of it inside, which goes wherever the file goes; ``read_json`` looks at it."""
    return {**content, SEAL: seal_of(content)}


def seal_of(content: dict[str, Any]) -> str:
    """Of the content, not of the bytes: a file may be indented anew."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return digest(json.dumps(rest, sort_keys=True).encode())


def check_seal(path: str | Path, content: Any) -> None:
    """UserError if what was sealed is no longer what it was; what bears no seal passes."""
    if isinstance(content, dict) and SEAL in content and content[SEAL] != seal_of(content):
        raise UserError(
            f"{path} was altered since it was written; remove it and run the command that makes it"
        )


def read_json(path: str | Path) -> Any:
    """UserError when the file is missing, unreadable, not JSON, or not what was written (where it is sealed)."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        check_seal(path, content)
        return content
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and run the command that makes it") from None


def check_writable(path: Path) -> None:
    """UserError now rather than after a day of work, if the file ``path`` cannot be written."""
    with writing_to(path):
        there = next(folder for folder in path.absolute().parents if folder.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_checked(path: Path, data: bytes) -> None:
    """Write ``data`` with its SHA-256 beside it, the digest first: a file without its digest is incomplete."""
    write_atomic(digest_path(path), digest_line(path.name, data))
    write_atomic(path, data)


def digest_line(name: str, data: bytes, note: str = "") -> bytes:
    """What stands beside a file: its SHA-256, its name, and a word or two about it."""
    return f"{digest(data)}  {name} {note}".rstrip().encode() + b"\n"


def read_checked(path: Path) -> bytes | None:
    """The bytes of a file written by ``write_checked``, or None when they are not those that were written.

    UserError when they cannot be read, which says nothing about them.
    """
    try:
        data, beside = path.read_bytes(), digest_path(path).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return data if beside.split()[:1] == [digest(data).encode()] else None


def digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
