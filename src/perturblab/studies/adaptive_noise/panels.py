"""What the dashboard of adaptive-noise tells of a run: metrics, flags, noise, events and curves, of its rows and decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from perturblab.perturb.controller import NoiseDecision
from perturblab.perturb.detectors import Flag, Row
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise.control import cause, controller_of, measured
from perturblab.studies.adaptive_noise.curves import Marks, Series, fitted, graph

GOOD, BAD, NOISE, RAISED = "green", "red", "bold magenta", "bold red"
NOISE_MARK, RAISED_MARK = "▲", "△"
NUMBER = 7  # letters of a number, at most but for extremes
GRAPH_WIDTH = 24  # letters, at least
BETWEEN_GRAPHS = 2

THRESHOLDS = {
    "grad_norm_plateau": ("flag_grad_plateau_thr", "<"),
    "low_weight_update": ("flag_low_weight_update_thr", "<"),
    "val_loss_plateau": ("flag_plateau_delta", "<"),
    "overfitting": ("flag_overfit_epochs", "≥"),
    "train_loss_stuck": ("patience", ">"),
}
"""Each detector with the setting that is its threshold, and how its value stands to it when the flag is raised."""


# ---- metrics -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number of the rows: how it and its change are written; is more (1) better, less (-1), or neither (0)?"""

    name: str
    key: str
    written: Callable[[float], str]
    change: Callable[[float], str]
    better: int = 0


def _loss(value: float) -> str:
    return fitted(value, NUMBER) if 0 < value < 1e-3 else f"{value:.4f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}%"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"


def _plain(value: float) -> str:
    return fitted(value, NUMBER)


def _signed(difference: float) -> str:
    short = float(f"{difference:.2g}")  # two digits of a difference tell enough
    return fitted(short, NUMBER, "+")


def metrics_of(s: Train) -> tuple[Metric, ...]:
    """Train accuracy is that on clean images where each epoch measures it, else that of the training steps."""
    train_acc = "train_acc_clean" if s.clean_every == 1 else "train_acc_online"
    return (
        Metric("train loss", "train_loss", _loss, "{:+.4f}".format, -1),
        Metric("val loss", "val_loss", _loss, "{:+.4f}".format, -1),
        Metric("train acc", train_acc, _percent, _points, 1),
        Metric("val acc", "val_acc", _percent, _points, 1),
        Metric("lr", "lr", _plain, _signed),
        Metric("grad norm", "grad_norm", _plain, _signed),
        Metric("update norm", "update_norm", _plain, _signed),
    )


def metrics_table(s: Train, rows: Sequence[Row], columns: int = 5, gap: int = 1) -> Table:
    """The latest epoch, how it differs from the one before, the best of all, and in which epoch: so many ``columns``."""
    table = Table.grid(padding=(0, gap))
    for i in range(columns):
        table.add_column(
            justify="right" if i else "left", no_wrap=True, min_width=NUMBER if 0 < i < 4 else None
        )
    headings = ("", f"epoch {len(rows)}", "change", "best", "in epoch") if rows else ("",) * 5
    table.add_row(*(Text(word, "dim") for word in headings[:columns]))
    for metric in metrics_of(s):
        table.add_row(*_cells(metric, [row[metric.key] for row in rows])[:columns])
    return table


def _cells(metric: Metric, values: list[float | None]) -> list[Text]:
    before, now = [None, None, *values][-2:]
    cells = [
        Text(metric.name),
        Text("–" if now is None else metric.written(now), "bold"),
        Text(),
        Text(),
        Text(),
    ]
    if now is not None and before is not None:
        gain = metric.better * (now - before)
        cells[2] = Text(metric.change(now - before), GOOD if gain > 0 else BAD if gain < 0 else "")
    known = [(metric.better * value, -i, value) for i, value in enumerate(values) if value is not None]
    if metric.better and known:
        _, i, value = max(known)
        cells[3:] = [Text(metric.written(value)), Text(f"{1 - i}")]
    return cells


# ---- flags and noise -------------------------------------------------------------------------------------------------------


def this_epoch(decisions: Sequence[NoiseDecision]) -> tuple[NoiseDecision, NoiseDecision]:
    """The decision of the epoch before, and that of the epoch that trains."""
    before, now = [NoiseDecision(0), *decisions][-2:]
    return before, now


def flags_table(s: Train, rows: Sequence[Row], decisions: Sequence[NoiseDecision], gap: int = 1) -> Table:
    """Each detector's value after these epochs against its threshold: ``●`` is raised, ``○`` is not.

    Dim in a cooldown, in which the controller does not look at them.
    """
    table = Table.grid(padding=(0, gap))
    if s.disable_adaptive_flags:
        table.add_row(Text("flags are off", "dim"))
        return table
    for i in range(3):
        table.add_column(justify="right" if i else "left", no_wrap=True, min_width=(19, NUMBER, 8)[i])
    cooling = this_epoch(decisions)[0].cooldown > 0
    headings = (_attention(s, rows, decisions), "value", "flag if")
    table.add_row(*(Text(word, "dim") for word in headings))
    found = {flag.name: flag for flag in measured(controller_of(s), rows)}
    for name, (setting, relation) in THRESHOLDS.items():
        if name != "train_loss_stuck" or _has_patience(s):
            limit = f"{relation} {getattr(s, setting):.3g}"
            table.add_row(*_flag(name, found.get(name), limit), style="dim" if cooling else "")
    return table


def _has_patience(s: Train) -> bool:
    """Whether the training loss is watched too, from the first epoch on."""
    return s.noise_during_stuck_only and s.controller == "documented"


def _flag(name: str, flag: Flag | None, limit: str) -> tuple[Text, ...]:
    words = name.replace("_", " ")
    if flag is None:  # too few epochs
        return Text(f"  {words}"), Text("–"), Text(limit)
    style = RAISED if flag.fired else ""
    mark = "●" if flag.fired else "○"
    return Text(f"{mark} {words}", style), Text(fitted(flag.value, NUMBER), style), Text(limit, style)


def _attention(s: Train, rows: Sequence[Row], decisions: Sequence[NoiseDecision]) -> str:
    """Whether flags are looked at before this epoch, and for how many epochs in a row they have been raised."""
    before, now = this_epoch(decisions)
    if before.cooldown:
        return "flags: paused"
    if len(rows) < s.flag_min_epochs:
        return f"flags: from ep. {s.flag_min_epochs + 1}"
    raised = any(flag.name != "train_loss_stuck" for flag in now.reasons)
    return f"flags: streak {before.streak + raised if raised else 0}/{s.consecutive_flag_trigger}"


def noise_lines(s: Train, decisions: Sequence[NoiseDecision]) -> list[Text]:
    """Three lines: what gets noise and how much, the state of the controller, and what comes next."""
    before, now = this_epoch(decisions)
    kind = "none"
    if now.target:
        kind = f"{'static ' if cause(now) == 'static' else ''}{now.target}, {strength(s, now)}"
    first = Text.assemble(("noise: ", "dim"), (kind, NOISE if now.target else "bold"))
    state, next_ = (*_state(s, before, now), "", "")[:2]
    return [first, Text(state), Text(next_)]


def strength(s: Train, noise: NoiseDecision) -> str:
    """In the unit of the noise: a standard deviation, a multiple of a tensor's root mean square, a probability."""
    if noise.target == "label":
        return f"probability {min(noise.sigma, 0.5):.3g}"
    return f"σ {noise.sigma:.3g}" + (" × RMS" if s.noise_scale == "relative" else "")


def _state(s: Train, before: NoiseDecision, now: NoiseDecision) -> tuple[str, ...]:
    if s.disable_adaptive_flags:
        return ()
    if before.cooldown:
        again = now.epoch + before.cooldown
        ending = f"flags again in epoch {again}" if again <= s.epochs else "the run ends first"
        return f"cooldown: {_epochs(before.cooldown)} left", ending
    if cause(now) == "flags":
        follows = f"then a cooldown of {_epochs(now.cooldown)}" if now.cooldown else ""
        return f"stuckness {now.stuckness:.2f}", follows
    if now.epoch <= s.flag_min_epochs and not _has_patience(s):
        return (f"waiting for epoch {s.flag_min_epochs + 1}",)
    missing = s.consecutive_flag_trigger - now.streak
    return (
        f"waiting for {missing} more flagged {_epochs(missing)[2:]}" if now.streak else "waiting for a flag",
    )


def _epochs(n: int) -> str:
    return "1 epoch" if n == 1 else f"{n} epochs"


# ---- what happened -----------------------------------------------------------------------------------------------------------


def events(s: Train, decisions: Sequence[NoiseDecision]) -> list[tuple[int, str]]:
    """What the flags did, the earliest first: (epoch, what happened)."""
    found: list[tuple[int, str]] = []
    before, cooled = NoiseDecision(0), False
    for now in decisions:
        why = ", ".join(flag.name.replace("_", " ") for flag in now.reasons)
        if cooled and not before.cooldown:
            found.append((now.epoch, "the cooldown is over"))
        if cause(now) == "flags":
            follows = f", cooldown {now.cooldown}" if now.cooldown else ""
            found.append((now.epoch, f"{now.target} noise σ {now.sigma:.3g}{follows}: {why}"))
        elif now.reasons:
            found.append((now.epoch, f"raised ({now.streak}/{s.consecutive_flag_trigger}): {why}"))
        before, cooled = now, before.cooldown > 0
    return found


def events_table(told: Sequence[tuple[int, str]]) -> Table:
    """The latest first."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, justify="right", style="dim")
    for epoch, what in reversed(told):
        table.add_row(f"epoch {epoch}", what)
    return table


def graphs(
    rows: Sequence[Row], decisions: Sequence[NoiseDecision], width: int, height: int
) -> list[Text | Rule]:
    """``height + 3`` lines: losses, validation accuracy and gradient norm side by side, as many as there is room for."""
    marks = _marks(decisions[: len(rows)])
    several = min(max((width + BETWEEN_GRAPHS) // (GRAPH_WIDTH + BETWEEN_GRAPHS), 1), 3)
    each = (width - BETWEEN_GRAPHS * (several - 1)) // several
    train, val = [row["train_loss"] for row in rows], [row["val_loss"] for row in rows]
    shown = (
        ("loss", [Series("train", train, "cyan", dotted=True), Series("val", val)]),
        ("val acc (%)", [Series("", [100 * row["val_acc"] for row in rows])]),
        ("grad norm", [Series("", [row["grad_norm"] for row in rows])]),
    )
    drawn = [graph(title, series, marks, each, height) for title, series in shown[:several]]
    heading = rule(f"epochs 1 to {len(rows)}, {RAISED_MARK} flags, {NOISE_MARK} noise")
    return [heading, *(_beside(line, each) for line in zip(*drawn, strict=True))]


def _beside(parts: Sequence[Text], each: int) -> Text:
    for part in parts:
        part.pad_right(each + BETWEEN_GRAPHS - len(part))
    line = Text.assemble(*parts, no_wrap=True)
    line.rstrip()
    return line


def _marks(decisions: Sequence[NoiseDecision]) -> tuple[Marks, Marks]:
    noisy = frozenset(i for i, decision in enumerate(decisions) if cause(decision) == "flags")
    raised = frozenset(i for i, decision in enumerate(decisions) if decision.reasons)
    return Marks(RAISED_MARK, raised, RAISED), Marks(NOISE_MARK, noisy, NOISE)


def rule(title: str) -> Rule:
    return Rule(Text(title, "dim"), style="dim", align="left")
