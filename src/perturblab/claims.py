"""A claim on a folder: one worker at a time, on one machine or on many that share a file system. No locks (NFS).

    claim-000003/8f3ab2c1/holder.json    who works in the folder; the time of its last change is the heartbeat
    claim-000003/8f3ab2c1/...            what the holder is writing, moved to its place once it is whole

- A claim is prepared under another name and renamed to the next number: of several workers one succeeds.
- A holder is dead when its process is gone (seen on its own machine) or when it gave no sign for ``limit_s``.
- Whoever takes over first moves the dead holder's claim away. What that one, only frozen or cut off, still wanted
  to write lies there or was to go there: its next move fails, however late. Nothing is checked before a write, so
  there is no moment between the check and the write.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturblab.files import time_of, writing_to
from perturblab.processes import here, is_alive, is_here
from perturblab.terminal import UserError, duration, say

BEAT_S = 10.0  # PERTURBLAB_HEARTBEAT_S
LIMIT_BEATS = 12  # NFS may show a change of another machine a minute late
MOST_TRIES = 20  # each means that another worker was faster by a moment


class Busy(UserError):
    """A living process holds the folder."""


class Superseded(UserError):
    """This process was taken for dead, and another one holds its folder now."""


@dataclass(frozen=True)
class Holder:
    """Who holds ``folder``, as its claim says. ``file`` is ``claim-000003/8f3ab2c1/holder.json``."""

    file: Path
    facts: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.file.parents[2]

    @property
    def token(self) -> str:
        return self.file.parent.name

    @property
    def limit_s(self) -> float:
        return _seconds(self.facts.get("limit_s"), heartbeat_s() * LIMIT_BEATS)

    @property
    def beat_s(self) -> float:
        return _seconds(self.facts.get("beat_s"), heartbeat_s())

    def gone(self) -> bool:
        """Whether its process has surely ended."""
        return is_here(self.facts) and not is_alive(self.facts)

    def last_sign(self) -> float | None:
        """The time of its last heartbeat, in seconds; None once it has released its claim."""
        try:
            with open(self.file) as file:  # opening asks the server; a stat may answer from NFS's cache
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return None

    def seems_dead(self) -> bool:
        """Whether its process has ended, or has been silent for its limit."""
        last = self.last_sign()
        if self.gone() or last is None:
            return True
        silent = time.time() - last
        if not -self.beat_s <= silent <= self.limit_s:  # or our clock is wrong
            silent = time_of(self.file.parent) - last
        return silent > self.limit_s

    def __str__(self) -> str:
        if "pid" not in self.facts:
            return "another process"
        return f"process {self.facts['pid']} on {self.facts.get('host', 'another machine')}"


class Claim:
    """A folder that this process holds. ``staging`` is where it writes what it then moves to its place."""

    def __init__(self, folder: Path, staging: Path) -> None:
        self.folder, self.staging = folder, staging
        self._over = threading.Event()

    def check(self) -> None:
        """Superseded if another process has taken the folder over."""
        if not self.staging.exists():
            raise Superseded(
                f"{self.folder} was taken over by {holder(self.folder) or 'another process'}, because this one gave no "
                "sign of life for too long; nothing of it was overwritten"
            )

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Turn whatever comes of the loss of the claim (files that are gone, say) into Superseded."""
        try:
            yield
        except Exception:
            self.check()
            raise

    def beat(self, every_s: float) -> None:
        """Give a sign of life now and then, until the claim is released or lost."""
        while not self._over.wait(every_s):
            try:
                os.utime(self.staging / "holder.json")
            except FileNotFoundError:
                return
            except OSError:  # a file server that is away for a moment
                continue

    def release(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):  # lost, or the folder is gone
            _move_away(self.staging, self.folder / f".claim-{self.staging.name}")


@contextmanager
def held(folder: Path, poll: Callable[[], None] = lambda: None) -> Iterator[Claim]:
    """Hold ``folder``. Busy if a living process holds it; a dead one's claim is taken over.

    A holder that may be dead is waited for, at most its limit and a heartbeat; ``poll`` is called meanwhile.
    """
    beat_s = heartbeat_s()
    with writing_to(folder):
        claim = _take(folder, beat_s, poll)
    threading.Thread(target=claim.beat, args=(beat_s,), daemon=True, name="heartbeat").start()
    try:
        yield claim
    finally:
        claim.release()


def holder(folder: Path) -> Holder | None:
    """Who holds ``folder`` and, as far as one look tells, lives."""
    return next((one for one in reversed(_claims(folder)) if not one.seems_dead()), None)


def is_held(folder: Path) -> bool:
    return holder(folder) is not None


def heartbeat_s() -> float:
    """Seconds between two signs of life. UserError for a bad PERTURBLAB_HEARTBEAT_S."""
    word = os.environ.get("PERTURBLAB_HEARTBEAT_S", str(BEAT_S))
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise UserError(f"PERTURBLAB_HEARTBEAT_S={word} must be a number of seconds from 0.01 to 3600")
    return seconds


def _seconds(told: Any, otherwise: float) -> float:
    """What a holder tells, unless its file is damaged."""
    return float(told) if isinstance(told, int | float) and 0 < told <= 3600 * LIMIT_BEATS else otherwise


def _take(folder: Path, beat_s: float, poll: Callable[[], None]) -> Claim:
    for _ in range(MOST_TRIES):
        claim = None
        with contextlib.suppress(FileNotFoundError):  # whoever was faster has cleaned up
            claim = _try(folder, secrets.token_hex(4), beat_s, poll)
        if claim is not None:
            _remove_leftovers(folder)
            return claim
        time.sleep(random.uniform(0.0, 0.05))
    raise Busy(f"several processes want {folder} at the same moment; run the same command again")


def _try(folder: Path, token: str, beat_s: float, poll: Callable[[], None]) -> Claim | None:
    """None if another worker was faster."""
    prepared = folder / f".claim-{token}"
    try:
        (prepared / token).mkdir(parents=True)
        facts = {**here(), "beat_s": beat_s, "limit_s": beat_s * LIMIT_BEATS}
        (prepared / token / "new").write_text(json.dumps(facts) + "\n")
        os.replace(prepared / token / "new", prepared / token / "holder.json")  # whole or absent
        dead = _claims(folder)
        for one in dead:
            _wait_until_dead(one, prepared / token, poll)
        claim = folder / f"claim-{1 + max(map(_number, dead), default=0):06d}"
        if not _renamed(prepared, claim):
            return None
        if not _fenced(claim / token, dead):
            _move_away(claim / token, prepared)
            return None
        return Claim(folder, claim / token)
    finally:
        shutil.rmtree(prepared, ignore_errors=True)


def _wait_until_dead(rival: Holder, folder: Path, poll: Callable[[], None]) -> None:
    """Return once ``rival`` is surely dead. Busy as soon as it gives a sign of life."""
    first, since, told = rival.last_sign(), time.monotonic(), False
    while not rival.gone():
        last, watched = rival.last_sign(), time.monotonic() - since
        if last is None:
            return
        silent = time_of(folder) - last
        if silent > rival.limit_s and watched > rival.beat_s:
            return
        if last != first or (silent <= rival.limit_s and is_here(rival.facts)):
            raise Busy(f"{rival.folder} is being worked on by {rival}; wait for it, or stop it first")
        if not told:
            left = max(rival.limit_s - silent, 0) + rival.beat_s
            say(f"{rival.folder} was held by {rival}: taken over in {duration(left)} unless it gives a sign")
            told = True
        poll()
        time.sleep(min(0.5, rival.beat_s / 10))


def _renamed(prepared: Path, claim: Path) -> bool:
    try:
        os.rename(prepared, claim)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False  # another worker was faster
        raise
    return True


def _fenced(staging: Path, dead: list[Holder]) -> bool:
    """Move the claims of the dead away, which ends what they can write. False if there is one more claim by now."""
    others = [one for one in _claims(staging.parent.parent) if one.token != staging.name]
    if {one.token for one in others} - {one.token for one in dead}:
        return False
    for one in others:
        with contextlib.suppress(FileNotFoundError):  # it has let go by itself; any other error is no fence
            _move_away(one.file.parent, staging / f"before-{one.token}")
    return True


def _claims(folder: Path) -> list[Holder]:
    """Every claim on ``folder``, the oldest first."""
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for claim in sorted(name for name in os.listdir(folder) if name.startswith("claim-")):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found += [_read(folder / claim / token) for token in os.listdir(folder / claim)]
    return found


def _read(staging: Path) -> Holder:
    try:
        facts = json.loads((staging / "holder.json").read_bytes())
    except (OSError, ValueError):
        facts = {}
    return Holder(staging / "holder.json", facts if isinstance(facts, dict) else {})


def _number(one: Holder) -> int:
    digits = one.file.parents[1].name.removeprefix("claim-")
    return int(digits) if digits.isdecimal() else 0


def _move_away(staging: Path, to: Path) -> None:
    """End a claim in one step, then remove what is left of it. By its token: its number may be another's by now."""
    os.rename(staging, to)
    with contextlib.suppress(OSError):
        os.rmdir(staging.parent)
    shutil.rmtree(to, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """What those left who died while they prepared or released a claim."""
    for claim in folder.glob(".claim-*"):
        with contextlib.suppress(OSError):  # its owner removes it at this moment
            if all(_read(claim / name).seems_dead() for name in os.listdir(claim)):
                shutil.rmtree(claim)
