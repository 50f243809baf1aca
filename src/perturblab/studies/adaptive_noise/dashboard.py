"""The live screen of a run of adaptive-noise on a terminal; in a log file a plain line now and then.

    show = dashboard(s, run, controller_of(s))
    for epoch in fit(run, model, objective, source, recipe, stop, decide, best, show):

``screen`` is a pure function of rows and decisions. The live screen reads ``run.rows`` four times a second in a thread of
its own; a training step only leaves its number.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from perturblab.hardware import pick_device
from perturblab.perturb import controller
from perturblab.perturb.controller import ControllerSettings, NoiseDecision
from perturblab.perturb.detectors import Row
from perturblab.runs import RunFolder
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.control import epochs_of
from perturblab.studies.adaptive_noise.panels import (
    events,
    events_table,
    flags_table,
    graphs,
    metrics_table,
    noise_lines,
    rule,
)
from perturblab.terminal import Advance, Progress, duration, progress

Line = list[Segment]
Lines = list[Line]

PER_SECOND = 4.0  # how often the screen is drawn
# Letters inside the panel from which on ...
WITH_BEST = 46  # ... the best values have a column,
SIDE_BY_SIDE = 75  # ... flags stand beside the metrics,
WIDE = 96  # ... and there is room for gaps, and for the epochs of the best values.
GRAPH_ROWS = (3, 8)  # height of curves
EVENTS = (1, 5)  # lines of them: so many before curves have their room, and at most
AROUND = 7  # lines of a terminal that are not the body's: border, head, rule, and two below the panel


def dashboard(s: Train, run: RunFolder, control: ControllerSettings) -> Progress:
    """The ``show`` of ``fit``. Where standard error is no terminal, or one that cannot draw, ``terminal.progress``."""

    @contextmanager
    def show(label: str, total: int, done: int = 0) -> Iterator[Advance]:
        console = Console(stderr=True)
        if sys.stderr is None or not sys.stderr.isatty() or not _draws(console):
            with progress(label, total, done) as advance:
                yield lambda n, note="": advance(n)  # these runs never end early, of which notes tell
            return
        watch = Watch(s, run, control, total, done)
        # A file or pipe that takes standard output must get what is said, and not this terminal.
        live = Live(
            watch,
            console=console,
            refresh_per_second=PER_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        live.start(refresh=True)
        try:
            yield watch.advance
        finally:
            with suppress(OSError):  # the terminal has gone: what ended the work is told, not this
                live.stop()

    return show


def _draws(console: Console) -> bool:
    return console.is_interactive and not console.options.ascii_only


class Watch:
    """The screen of a run that goes on, as it is at the moment of being printed."""

    def __init__(self, s: Train, run: RunFolder, control: ControllerSettings, total: int, done: int) -> None:
        self.s, self.run, self.control = s, run, control
        self.device = str(pick_device(s.device))
        self.total, self.began, self.done = total, done, done
        self.start = time.monotonic()
        self.body: Body | None = None

    def advance(self, done: int, note: str = "") -> None:
        """The note is not shown, as above."""
        self.done = done

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        try:
            lines = console.render_lines(self._screen(), options, pad=False)
        except Exception as error:  # hours of training must not end because of their picture
            yield Text(f"{self.s.name}: {self.done}/{self.total} (no dashboard: {error!r})")
            return
        yield from _with_ends(lines)
        yield Segment("")  # the cursor rests on an empty line, where "^C" tears nothing

    def _screen(self) -> Screen:
        rows = epochs_of(self.run.rows)
        if self.body is None or len(self.body.rows) != len(rows):
            self.body = Body(self.s, rows, list(controller.decisions(rows, self.control)), self.device)
        seconds, steps = time.monotonic() - self.start, self.total // self.s.epochs
        head = Head(len(rows), self.s.epochs, self.done, self.total, steps, seconds, self.began)
        return Screen(head, self.body)


def screen(
    s: Train,
    rows: Sequence[Row],
    decisions: Sequence[NoiseDecision],
    done: int,
    total: int,
    steps: int,
    seconds: float,
    began: int = 0,
    device: str = "",
) -> Screen:
    """A run at one moment, as wide as the console, and at least two lines lower (if that has 9 or more).

    ``rows``: the finished epochs. ``decisions``: one for each of them, and for the epoch that trains. ``done`` of
    ``total`` steps, ``steps`` in an epoch; ``began`` of them were done before this session, which is ``seconds`` old.
    """
    head = Head(len(rows), s.epochs, done, total, steps, seconds, began)
    return Screen(head, Body(s, rows, decisions, device or s.device))


@dataclass(frozen=True)
class Screen:
    """A frame with the run's name, around what changes with each step and what changes with each epoch."""

    head: Head
    body: Body

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        top, below = self.body.lines(console, options)
        inside = options.update(width=max(options.max_width - len("│  │"), 1))
        head = console.render_lines(self.head, inside, pad=False)
        return _with_ends([top, *_bordered(head, inside.max_width), *below])


@dataclass(frozen=True)
class Head:
    """Two lines: epoch, step and time; a bar, its share and the remaining time. See ``screen``."""

    measured: int
    epochs: int
    done: int
    total: int
    steps: int
    seconds: float
    began: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        so_far = f"{duration(self.seconds)} so far" if options.max_width >= WITH_BEST else ""
        yield _apart(Text(self.where(), "bold"), Text(so_far, "dim"))
        bar = ProgressBar(self.total, self.done, style="dim", complete_style="cyan", finished_style="green")
        yield _apart(bar, Text(f"{100 * self.done // max(self.total, 1)}%, {self.left()} left"))

    def where(self) -> str:
        epoch = min(self.measured + 1, self.epochs)
        step = min(max(self.done - (epoch - 1) * self.steps, 0), self.steps)
        doing = f"step {step}/{self.steps}"
        if step == self.steps:
            doing = "done" if self.measured == self.epochs else "measuring"
        return f"epoch {epoch}/{self.epochs}, {doing}"

    def left(self) -> str:
        """Remaining time at the mean speed of this session, which includes what is measured between epochs."""
        if self.done <= self.began:
            return "?"
        return duration(self.seconds / (self.done - self.began) * (self.total - self.done))


def _apart(left: RenderableType, right: RenderableType) -> Table:
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(ratio=1, no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_row(left, right)
    return line


class Body:
    """Metrics, flags, noise, curves and events, and the frame. Made once for each size of the terminal."""

    def __init__(
        self, s: Train, rows: Sequence[Row], decisions: Sequence[NoiseDecision], device: str
    ) -> None:
        self.s, self.rows, self.decisions, self.device = s, rows, decisions[: s.epochs], device
        self._size, self._lines = (0, 0), (Line(), Lines())

    def lines(self, console: Console, options: ConsoleOptions) -> tuple[Line, Lines]:
        """What stands above the head, and what stands below it."""
        if self._size != (options.max_width, options.size.height):
            self._size = options.max_width, options.size.height
            width, height = max(options.max_width - len("│  │"), 1), max(options.size.height - AROUND, 1)
            inside = partial(console.render_lines, options=options.update(width=width), pad=False)
            lines = [*inside(Rule(style="dim")), *self._parts(inside, width, height)[:height]]
            edges = partial(console.render_lines, options=options, pad=False)
            self._lines = edges(self._top(width))[0], [*_bordered(lines, width), *edges(self._bottom(width))]
        return self._lines

    def _top(self, width: int) -> Text:
        name = Text(self.s.name, "bold")
        name.truncate(max(width - 2, 0), overflow="ellipsis")
        return Text.assemble(("╭─ ", "dim"), name, (f" {'─' * (width - 1 - len(name))}╮", "dim"))

    def _bottom(self, width: int) -> Text:
        where = Text(f"{self.s.id} on {self.device}")
        where.truncate(max(width - 2, 0), overflow="ellipsis")
        return Text.assemble((f"╰{'─' * (width - 1 - len(where))} ", "dim"), where, " ─╯", style="dim")

    def _parts(self, lines_of: Callable[[RenderableType], Lines], width: int, height: int) -> Lines:
        lines = self._numbers(lines_of, width)
        rows = min(height - len(lines) - 3 - 1 - EVENTS[0], GRAPH_ROWS[1])
        if self.s.shows_graphs and self.rows and rows >= GRAPH_ROWS[0]:
            lines += lines_of(Group(*graphs(self.rows, self.decisions, width, rows)))
        told = events(self.s, self.decisions)[-EVENTS[1] :]
        if told and height - len(lines) >= 2:
            lines += lines_of(rule("events"))
            lines += lines_of(events_table(told))[: EVENTS[1]]
        return lines

    def _numbers(self, lines_of: Callable[[RenderableType], Lines], width: int) -> Lines:
        wide, beside = width >= WIDE, width >= SIDE_BY_SIDE
        columns = 5 if wide or (width >= WITH_BEST and not beside) else 4 if beside else 3
        gap = 2 if wide else 1
        metrics = lines_of(metrics_table(self.s, self.rows, columns, gap))
        flags = flags_table(self.s, self.rows, self.decisions, gap)
        control = lines_of(Group(flags, *noise_lines(self.s, self.decisions)))
        if not beside:
            return [*metrics, *lines_of(Rule(style="dim")), *control]
        at = max(width // 2 if wide else 0, *map(Segment.get_line_length, metrics)) + 3
        pairs = zip_longest(metrics, control, fillvalue=Line())
        return [Segment.adjust_line_length(left, at) + right for left, right in pairs]


def _bordered(lines: Lines, width: int) -> Lines:
    left, right = Segment("│ ", Style(dim=True)), Segment(" │", Style(dim=True))
    return [list(Segment.simplify([left, *Segment.adjust_line_length(line, width), right])) for line in lines]


def _with_ends(lines: Lines) -> Iterator[Segment]:
    for line in lines:
        yield from line
        yield Segment.line()
