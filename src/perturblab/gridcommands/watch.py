"""``perturblab watch``: follows a grid until nothing runs and nothing is missing. Writes nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from perturblab.gridcommands import WatchGrid
from perturblab.gridcommands.moment import Moment, Watcher
from perturblab.gridcommands.read import counts, heading
from perturblab.gridcommands.status import go_on
from perturblab.grids.states import only
from perturblab.terminal import duration, say

SEVERAL = 20  # runs that changed between two looks: more than these are only counted

Show = Callable[[Moment], None]


def watch(s: WatchGrid) -> None:
    """Until nothing runs and nothing is missing, or until Ctrl-C: nobody else notices either."""
    watcher = Watcher(s)
    try:
        with shown() as show:
            while not follow(watcher, show).over:
                time.sleep(max(s.every, watcher.took_s))  # never busy more than half of the time
    except KeyboardInterrupt:
        say("no longer watched; what runs goes on")
        return
    go_on(s, watcher.look().found)


def follow(watcher: Watcher, show: Show) -> Moment:
    moment = watcher.look()
    show(moment)
    return moment


@contextmanager
def shown() -> Iterator[Show]:
    """A live screen on a terminal that can draw one, else lines."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live

    from perturblab.gridcommands.screen import Screen

    console = Console()
    if not console.is_interactive or console.options.ascii_only:
        yield Lines()
        return
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
    live.start()
    try:
        yield lambda moment: live.update(Screen(moment), refresh=True)
    finally:
        with suppress(OSError):  # the terminal has gone
            live.stop()


class Lines:
    """Plain lines for a log: the runs whose state has changed, and the counts after them."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._trouble = ""

    def __call__(self, moment: Moment) -> None:
        if not self._states:
            heading(moment.found)
        elif moment.trouble and moment.trouble != self._trouble:
            say(f"{clock(moment)} {moment.trouble}")
        self._trouble = moment.trouble
        states = {one.cell.name: str(one.state) for one in moment.seen}
        before = self._states or {name: state for name, state in states.items() if state != "running"}
        changed = [name for name in states if states[name] != before.get(name)]
        if len(changed) <= SEVERAL:
            for name in changed:
                say(f"{clock(moment)} {name} {self._told(moment, name, states[name])}")
        if changed or not self._states:
            left = f", about {duration(moment.left_s)} left" if moment.left_s else ""
            idle = "" if moment.working or moment.over else f"; nothing runs; {moment.go_on}"
            say(f"{clock(moment)} {counts(moment.seen)}{left}{idle}")
        self._states = states

    @staticmethod
    def _told(moment: Moment, name: str, state: str) -> str:
        """The state, and what belongs to it: why it failed, who runs it."""
        if state == "failed":
            (one,) = (one for one in only(moment.seen, "failed") if one.cell.name == name)
            return f"failed: {' '.join(one.reason.split())}"
        where = next((one.where for one in moment.working if one.name == name), "")
        return f"{state} on {where}" if where else state


def clock(moment: Moment) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment.at))
