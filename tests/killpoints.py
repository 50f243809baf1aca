"""Hooks for a child of the zygote: SIGKILL to itself right before or right after the n-th change of a file; other
signals there; a disk that fills up there.

Changes are: open for writing, a write of a row (also half of it), fsync, rename, removal, making a folder, chmod.
With ``target`` 0 nothing happens and the label of every point is written to ``log``, one per line; a target that is
a label means the ``nth`` point with it.
"""

import builtins
import io
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHANGES = ("fsync", "replace", "unlink", "remove", "mkdir", "rmdir", "chmod", "rename", "link")
PLAIN_OPEN = os.open  # not counted
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Points:
    """Counts the points passed and does ``act`` at the wanted one: its number, or the n-th with that label."""

    def __init__(
        self, target: int | str, log: str = "", nth: int = 1, act: Callable[[], object] = kill, disk: str = ""
    ) -> None:
        self.target, self.nth, self.act, self.disk, self.passed = target, nth, act, disk, 0
        self.log = None if target else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reached(self) -> bool:
        """Whether the next point is the one to die at."""
        return self.passed + 1 == self.target

    def point(self, label: str) -> None:
        self.passed += 1
        if self.log is not None:
            used = f"\t{used_kb(self.disk)}" if self.disk else ""
            os.write(self.log, f"{label}{used}\n".encode())
        self.nth -= label == self.target
        if self.passed == self.target or (label == self.target and self.nth == 0):
            self.act()

    def around(self, what: str, call: Callable[..., Any], about: Any) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            label = f"{what} {name_of(about(args))}"
            self.point(f"before {label}")
            result = call(*args, **kwargs)
            self.point(f"after {label}")
            return result

        return wrapped


def name_of(what: Any) -> str:
    """The file's name, without the random part of a temporary one or a claim and the numbers of a checkpoint."""
    path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else os.fspath(what)
    name = re.sub(r"\.([0-9a-f]{10})?[a-z0-9_]{8}\.tmp", ".tmp", Path(path).name)
    name = re.sub(r"^(\.claim-|before-|)[0-9a-f]{8}$", r"\1TOKEN", name)
    return re.sub(r"\d{6}-\d{8}", "N", re.sub(r"-[0-9a-f]{10}", "-ID", name))


def install(target: int | str, log: str = "") -> None:
    """Wrap what changes files, in this process."""
    wrap(Points(target, log))


def signal_at(target: int | str, nth: int, *numbers: int) -> None:
    """Send this process the signals ``numbers`` there, instead of SIGKILL."""
    wrap(Points(target, nth=nth, act=lambda: [os.kill(os.getpid(), number) for number in numbers]))


def used_at_each(log: str, disk: str) -> None:
    """Write the label of every point with the KiB that are used of ``disk``, one per line."""
    wrap(Points(0, log, disk=disk))


def fill_at(target: int | str, nth: int, disk: str, free_kb: int) -> None:
    """Fill ``disk`` there."""
    wrap(Points(target, nth=nth, act=lambda: fill(Path(disk), free_kb)))


def used_kb(disk: str | Path) -> int:
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize // 1024


def fill(disk: Path, free_kb: int) -> None:
    """Leave at most ``free_kb`` KiB free, by a file named filler."""
    status = os.statvfs(disk)
    rest = status.f_bavail * status.f_frsize - free_kb * 1024
    if rest > 0:
        handle = PLAIN_OPEN(disk / "filler", os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(handle, 0, rest)
        os.close(handle)


def wrap(points: Points) -> None:
    plain_open, plain_os_open = builtins.open, os.open

    class Rows(io.FileIO):
        """An unbuffered file: a point also when half of the bytes are written."""

        def write(self, data: Any) -> int:
            label, half = f"write {name_of(self.fileno())}", 0
            points.point(f"before {label}")
            if points.reached():
                half = super().write(bytes(data)[: len(data) // 2])
            points.point(f"half of {label}")
            written = half + super().write(bytes(data)[half:])
            points.point(f"after {label}")
            return written

    def open_(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return plain_open(file, mode, *args, **kwargs)
        unbuffered = kwargs.get("buffering") == 0
        make = (lambda file, mode, **_: Rows(file, mode.replace("b", ""))) if unbuffered else plain_open
        return points.around("open", make, lambda args: args[0])(file, mode, *args, **kwargs)

    def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not flags & WRITES:
            return plain_os_open(path, flags, *args, **kwargs)
        return points.around("open", plain_os_open, lambda args: args[0])(path, flags, *args, **kwargs)

    for name in CHANGES:
        # a rename is about its target
        about = (lambda args: args[1]) if name in ("replace", "rename", "link") else (lambda args: args[0])
        setattr(os, name, points.around(name, getattr(os, name), about))
    builtins.open, io.open, os.open = open_, open_, os_open  # type: ignore[assignment]


def slow_step(number: int, seconds: float) -> None:
    """Make the ``number``-th training step of this process take ``seconds`` more, and say so when it begins."""
    import torch

    from perturblab.train import _Fit

    plain, left = _Fit._train_step, number

    def step(self: Any, *args: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            print(f"slow step with {torch.get_num_threads()} threads", flush=True)
            end = time.monotonic() + seconds
            while (
                time.monotonic() < end
            ):  # time.sleep would go on after a signal; so does this, as work would
                time.sleep(0.01)
        plain(self, *args)

    _Fit._train_step = step  # type: ignore[method-assign]
