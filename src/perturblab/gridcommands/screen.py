"""The picture of a grid that is being watched, for a terminal: as wide as it is, and no higher."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from perturblab.gridcommands.moment import Moment, Working
from perturblab.gridcommands.read import counts, title
from perturblab.grids.states import only
from perturblab.terminal import duration

BAR = 20  # letters of a run's bar; the grid's takes what is left of the line
FAILED = 8  # lines of reasons, at most
AROUND = 13  # lines that are not those of running or failed runs
WITH_BAR, WITH_PLACE = 90, 70  # letters from which on a run's line has a bar, and tells where it is


class Screen:
    """A moment as a picture."""

    def __init__(self, moment: Moment) -> None:
        self.moment = moment

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield picture(self.moment, options.max_width, options.height or console.size.height)


def picture(moment: Moment, width: int, height: int) -> Group:
    """``width`` letters and at most ``height`` lines."""
    failed = moment.failed()
    for_failed = min(len(failed), FAILED, max(1, (height - AROUND) // 3))
    for_running = max(1, height - AROUND - for_failed)
    parts: list[RenderableType] = [_heading(moment), _bar(moment), _line(counts(moment.seen), style="dim")]
    if moment.trouble:
        parts.append(_line(moment.trouble, style="yellow"))
    if moment.working:
        parts += [Text(), _running(moment.working[:for_running], width)]
        parts += _more(len(moment.working) - for_running, "running")
    elif not moment.over:
        parts += [Text(), _line(f"nothing runs; {moment.go_on}", style="yellow")]
    if failed:
        parts += [Text(), _line(f"failed ({len(only(moment.seen, 'failed'))})", style="bold red")]
        parts += [_line(f"  {told}") for told in failed[:for_failed]]
        parts += _more(len(failed) - for_failed, "reasons")
    if moment.last:
        name, at = moment.last
        parts += [Text(), _line(f"done last: {name}, {ago(moment.at - at)}", style="dim")]
    return Group(*parts)


def ago(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} ago"


def _heading(moment: Moment) -> Table:
    """What is watched, and at the right when this was."""
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    line.add_column(justify="right", no_wrap=True)
    line.add_row(
        Text(title(moment.found), style="bold"), Text(time.strftime(" %H:%M:%S", time.localtime(moment.at)))
    )
    return line


def _bar(moment: Moment) -> Table:
    done, total = sum(one.state == "done" for one in moment.seen), len(moment.seen)
    left = f"about {duration(moment.left_s)} left" if moment.left_s else ""
    line = Table.grid(expand=True, padding=(0, 1))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True, justify="right")
    line.add_row(
        ProgressBar(total=total, completed=done, complete_style="cyan"),
        Text(f"{done}/{total}"),
        Text(left, style="cyan"),
    )
    return line


def _running(working: Sequence[Working], width: int) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    table.add_column("running", header_style="bold", no_wrap=True, overflow="ellipsis", ratio=1)
    if width >= WITH_BAR:
        table.add_column("", width=BAR)
    table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("left", justify="right", no_wrap=True)
    table.add_column("last", no_wrap=True)
    if width >= WITH_PLACE:
        table.add_column("host:pid", no_wrap=True, overflow="ellipsis", max_width=width // 4)
    for one in working:
        bar = (
            [ProgressBar(total=one.epochs, completed=one.epoch, complete_style="cyan")]
            if width >= WITH_BAR
            else []
        )
        place = [Text(one.where)] if width >= WITH_PLACE else []
        left = "" if one.left_s is None else duration(one.left_s)
        table.add_row(Text(one.name), *bar, f"{one.epoch}/{one.epochs}", left, Text(one.number), *place)
    return table


def _more(n: int, what: str) -> list[RenderableType]:
    return [_line(f"  and {n} more {what}", style="dim")] if n > 0 else []


def _line(text: str, style: str = "") -> Text:
    """One line, whatever stands in it."""
    return Text(
        " ".join(text.split()) if not text.startswith("  ") else text,
        style=style,
        no_wrap=True,
        overflow="ellipsis",
    )
