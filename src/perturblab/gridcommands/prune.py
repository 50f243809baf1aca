"""``perturblab prune``: what old state of runs takes up on the disk, and its removal. Results stay unless asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from perturblab.claims import Busy, is_held
from perturblab.gridcommands import PruneGrid
from perturblab.gridcommands.folders import below
from perturblab.gridcommands.old import (
    WHOLE,
    Kind,
    Old,
    Rule,
    half_removed,
    is_ours,
    name_before,
    old_in,
    remove,
    size_below,
)
from perturblab.gridcommands.plan import in_bytes
from perturblab.gridcommands.read import rows
from perturblab.grids.asked import read
from perturblab.grids.cells import plan_of, runs_of
from perturblab.settings import shown
from perturblab.studies import STUDIES
from perturblab.terminal import UserError, progress, say, warn

AT_A_TIME = 32  # a claim that a machine left which is gone is waited for, 10 s each
WORDS: dict[Kind, str] = {
    "failed": "runs that failed, untouched for {days}",
    "stopped": "runs that were stopped or killed, untouched for {days}",
    "done": "finished runs with their results, untouched for {days}",
    "checkpoints": "checkpoints of finished runs",
    "logs": "logs of finished runs, untouched for {days}",
    "leftovers": "temporary files and claims of dead processes",
    "half removed": "what a removal that was killed has left",
}


@dataclass
class Looked:
    """The runs that were looked at: what is old in them, how many a process holds, which folders are none of ours."""

    old: list[Old] = field(default_factory=list)
    runs: int = 0
    held: int = 0
    foreign: list[Path] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(one.size for one in self.old)


def prune(s: PruneGrid) -> None:
    """Show what is old, and with ``--yes`` remove it. UserError if a part of it could not be removed."""
    where, folders = asked(s)
    rule = Rule.of(s.older_than, s.done)
    looked = look(folders, rule)
    say(f"{where}: {looked.runs} runs")
    if looked.foreign:
        one, more = looked.foreign[0], len(looked.foreign) - 1
        say(f"left alone, not the folder of a run: {one}{f' and {more} more' if more else ''}")
    if looked.held:
        say(f"left alone, a process works there: {looked.held}")
    if not looked.old:
        say("nothing is old")
        return
    table(s, looked)
    if not s.yes:
        say(f"nothing was removed; the same command with --yes removes it{_results(looked)}")
        return
    carry_out([*dict.fromkeys(one.folder for one in looked.old)], rule)


def asked(s: PruneGrid) -> tuple[str, list[Path]]:
    """What the words mean, and the folders there, also half removed ones. UserError if there are none."""
    if not s.grid:
        if s.given:
            raise UserError("--set needs a study or a FILE.yaml before it")
        root = Path(s.runs_dir or "perturblab_runs")
        if not root.is_dir():
            raise UserError(f"no folder {root}: --runs_dir says where runs keep their state")
        parents = [root, *(path for path in root.iterdir() if path.is_dir() and not path.is_symlink())]
        return str(root), [*below(root), *(one for parent in parents for one in half_removed(parent))]
    plan = plan_of(runs_of(read(s.grid, s.given, STUDIES), s.runs_dir))
    paths = [plan.folder(cell).path for cell in plan.cells]
    there = [path for path in paths if path.is_dir() and not (path.is_symlink() or path.parent.is_symlink())]
    half = [one for parent in dict.fromkeys(p.parent for p in paths) for one in half_removed(parent)]
    names = {path.name for path in paths}
    return s.grid, [*there, *(one for one in half if name_before(one) in names)]


def look(folders: Sequence[Path], rule: Rule) -> Looked:
    looked = Looked()
    for folder in folders:
        if name_before(folder):
            looked.old.append(Old(folder, "half removed", (), size_below(folder)))
            continue
        if not is_ours(folder):
            looked.foreign.append(folder)
            continue
        looked.runs += 1
        if is_held(folder):
            looked.held += 1
        else:
            looked.old += old_in(folder, rule)
    return looked


def table(s: PruneGrid, looked: Looked) -> None:
    """The folders that would go, then a line for each kind of what is old."""
    whole = [one for one in looked.old if one.kind in WHOLE]
    for one in rows(whole, s.all):
        say(f"{one.kind:<12} {in_bytes(one.size):>9}  {one.folder}")
    days = f"{s.older_than:g} day{'s' * (s.older_than != 1)}"
    for kind, words in WORDS.items():
        some = [one for one in looked.old if one.kind == kind]
        if some:
            size = in_bytes(sum(one.size for one in some))
            say(f"{len(some):>6}  {size:>9}  {words.format(days=days)}")
    say(f"{'in all':>6}  {in_bytes(looked.size):>9}")


def _results(looked: Looked) -> str:
    n = sum(one.kind == "done" for one in looked.old)
    return f", and with it the results of {n} finished runs" if n else ""


def carry_out(folders: Sequence[Path], rule: Rule) -> None:
    """Remove what is old in each folder, several at a time: most of the time is waiting for the disk."""
    freed, failed, busy = 0, list[str](), 0
    with progress("removing", len(folders)) as advance:
        for number, done in enumerate(_each(lambda folder: remove(folder, rule), folders), 1):
            try:
                freed += done.result()
            except Busy:
                busy += 1
            except (UserError, OSError) as error:
                failed.append(str(error))
            advance(number)
    say(f"freed {in_bytes(freed)}")
    if busy:
        say(f"left alone, a process has begun to work there: {busy}")
    for told in failed[:3]:
        warn(told)
    if failed:
        raise UserError(f"{len(failed)} of {len(folders)} could not be removed: {shown(failed[0])}")


def _each(do: Callable[[Path], int], folders: Sequence[Path]) -> Iterator[Future[int]]:
    """As they end. What has not begun when the caller stops is not begun any more."""
    pool = ThreadPoolExecutor(AT_A_TIME)
    try:
        yield from as_completed([pool.submit(do, folder) for folder in folders])
    finally:
        pool.shutdown(cancel_futures=True)
