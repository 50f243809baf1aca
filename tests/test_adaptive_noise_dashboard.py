"""The live screen of adaptive-noise: what a person reads on it, that it fits, and how it treats a real terminal."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from conftest import Zygote, until
from perturblab import terminal
from perturblab.perturb import controller
from perturblab.perturb.controller import NoiseDecision
from perturblab.perturb.detectors import Flag
from perturblab.signals import Interrupted, stop_on_signals
from perturblab.studies.adaptive_noise import Train
from perturblab.studies.adaptive_noise import dashboard as module
from perturblab.studies.adaptive_noise.control import controller_of
from perturblab.studies.adaptive_noise.curves import BITS, EMPTY, Marks, Series, fitted, graph
from perturblab.studies.adaptive_noise.dashboard import Watch, dashboard, screen
from perturblab.terminal import say, warn

STEPS = 390
PLATEAU = Flag("grad_norm_plateau", True, 0.012, 0.05)


def settings(**changes: Any) -> Train:
    return Train.parse({"classifier": "BabyCNN", "device": "cpu", **changes})


def row(epoch: int, **changes: Any) -> dict[str, Any]:
    """An epoch of a run that learns all the time."""
    known = {
        "kind": "epoch", "epoch": epoch, "lr": 0.01, "train_loss": 2 * 0.97**epoch, "val_loss": 2.1 * 0.97**epoch,
        "train_acc_online": 0.5, "train_acc_clean": 0.6, "val_acc": 1 - 0.99**epoch, "grad_norm": 3 * 0.95**epoch,
        "update_norm": 0.4,
    }  # fmt: skip
    return {**known, **changes}


def console(width: int = 80, height: int = 24) -> Console:
    return Console(width=width, height=height, file=io.StringIO(), force_terminal=True, color_system=None)


def read(
    s: Train,
    rows: list[dict[str, Any]],
    decisions: list[NoiseDecision] | None = None,
    width: int = 80,
    height: int = 24,
    **how: Any,
) -> list[str]:
    """The lines of a screen in the middle of the epoch after the rows; by the real controller unless told."""
    if decisions is None:
        decisions = list(controller.decisions(rows, controller_of(s)))
    at = {"done": len(rows) * STEPS + 100, "total": s.epochs * STEPS, "steps": STEPS, "seconds": 60.0, **how}
    printed = console(width, height)
    printed.print(screen(s, rows, decisions, **at))
    assert isinstance(printed.file, io.StringIO)
    return printed.file.getvalue().splitlines()


def line_of(lines: list[str], name: str) -> str:
    """The part of the one line that tells of ``name``, from there on, without frame and runs of blanks."""
    (found,) = [line for line in lines if name in line]
    return re.sub(r" +", " ", found[found.index(name) :].strip(" │"))


def metric_of(lines: list[str], name: str) -> str:
    """A line of the metrics, from its name on, without runs of blanks."""
    (found,) = [line for line in lines if re.match(f"│ {name} +[–0-9]", line)]
    return re.sub(r" +", " ", found.strip(" │"))


def cooling(cooldown: int, s: Train | None = None, **how: Any) -> list[str]:
    """A screen after noise in epoch 2 with a cooldown of 3, in the epoch that leaves ``cooldown`` more to wait."""
    noisy = NoiseDecision(2, "gradient", 0.0312, (PLATEAU,), 0.62, cooldown=3)
    later = [NoiseDecision(3 + i, cooldown=2 - i) for i in range(3 - cooldown)]
    decisions = [NoiseDecision(1), noisy, *later]
    return read(s or settings(), [row(e) for e in range(1, len(decisions))], decisions, **how)


# ---- where the run is --------------------------------------------------------------------------------------------------


def test_it_tells_the_run_its_id_its_device_its_epoch_and_its_step() -> None:
    s = settings(seed=3)
    lines = read(s, [row(e) for e in range(1, 12)], device="cuda:1")
    assert lines[0].startswith("╭─ BabyCNN_SGD_adaptive_gaussian_seed3 ─")
    assert lines[-1].endswith(f"─ {s.id} on cuda:1 ─╯")
    assert line_of(lines, "epoch 12/100").startswith("epoch 12/100, step 100/390")


def test_the_remaining_time_is_at_the_speed_of_this_session() -> None:
    """After a resume at step 500, 100 steps took 50 s: the 400 that are left take 200 s."""
    lines = read(
        settings(epochs=10),
        [row(e) for e in range(1, 6)],
        done=600,
        total=1000,
        steps=100,
        seconds=50.0,
        began=500,
    )
    assert "60%, 3:20 left" in lines[2]
    assert "0:50 so far" in lines[1]


def test_no_remaining_time_is_invented_before_the_first_step() -> None:
    assert "0%, ? left" in read(settings(), [], done=0, seconds=3.0)[2]


def test_after_the_last_step_of_an_epoch_it_is_being_measured_and_then_the_next_one_begins() -> None:
    rows = [row(1), row(2)]
    s = settings(epochs=3, flag_window_size=2)
    assert "epoch 2/3, measuring" in read(s, rows[:1], done=2 * STEPS)[1]
    assert "epoch 3/3, step 0/390" in read(s, rows, done=2 * STEPS)[1]
    lines = read(s, [*rows, row(3)], done=3 * STEPS)
    assert "epoch 3/3, done" in lines[1]
    assert "100%, 0:00 left" in lines[2]


# ---- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_stand_with_their_change_and_the_best_and_its_epoch() -> None:
    rows = [
        row(1, train_loss=1.5, val_loss=1.25, train_acc_clean=0.5, val_acc=0.5625, lr=0.01, grad_norm=2.5, update_norm=0.4),
        row(2, train_loss=1.0, val_loss=1.5, train_acc_clean=0.75, val_acc=0.5, lr=0.009, grad_norm=3.0, update_norm=0.1),
    ]  # fmt: skip
    lines = read(settings(), rows, width=110)
    assert metric_of(lines, "train loss").startswith("train loss 1.0000 -0.5000 1.0000 2")
    assert metric_of(lines, "val loss").startswith("val loss 1.5000 +0.2500 1.2500 1")
    assert metric_of(lines, "train acc").startswith("train acc 75.00% +25.00 75.00% 2")
    assert metric_of(lines, "val acc").startswith("val acc 50.00% -6.25 56.25% 1")
    assert metric_of(lines, "lr").startswith("lr 0.009 -0.001")
    assert metric_of(lines, "grad norm").startswith("grad norm 3 +0.5")
    assert metric_of(lines, "update norm").startswith("update norm 0.1 -0.3")


def test_what_gets_better_is_green_and_what_gets_worse_is_red() -> None:
    worse = [row(1, val_loss=1.0, val_acc=0.5), row(2, val_loss=1.5, val_acc=0.75)]
    coloured = Console(width=80, height=24, file=io.StringIO(), force_terminal=True, color_system="standard")
    s = settings()
    coloured.print(
        screen(s, worse, list(controller.decisions(worse, controller_of(s))), 800, 39000, STEPS, 60)
    )
    assert isinstance(coloured.file, io.StringIO)
    printed = coloured.file.getvalue()
    assert "\x1b[31m+0.5000" in printed
    assert "\x1b[32m+25.00" in re.sub(r"(\x1b\[32m) +", r"\1", printed)


def test_train_accuracy_is_the_one_that_every_epoch_has() -> None:
    rows = [
        row(1, train_acc_clean=0.6, train_acc_online=0.4),
        row(2, train_acc_clean=None, train_acc_online=0.45),
    ]
    assert metric_of(read(settings(clean_every=5), rows), "train acc").startswith(
        "train acc 45.00% +5.00 45.00%"
    )
    assert metric_of(read(settings(), [row(1)]), "train acc").startswith("train acc 60.00% 60.00%")


def test_in_the_first_epoch_there_are_no_numbers_yet_and_no_graphs() -> None:
    lines = read(settings(graphs=True), [], height=50)
    for name in ("train loss", "val acc", "update norm"):
        assert metric_of(lines, name).startswith(f"{name} –")
    assert line_of(lines, "grad norm plateau") == "grad norm plateau – < 0.05"
    assert "flags: from ep. 11" in "\n".join(lines)
    assert "waiting for epoch 11" in "\n".join(lines)


def test_under_weight_noise_there_is_no_gradient_norm_and_it_says_so() -> None:
    rows = [row(e, grad_norm=None) for e in range(1, 13)]
    lines = read(settings(noise_type="weight", graphs=True), rows, height=50)
    assert metric_of(lines, "grad norm").startswith("grad norm – ")
    assert line_of(lines, "grad norm plateau") == "grad norm plateau – < 0.05"
    assert line_of(lines, "noise: ") == "noise: static weight, σ 0.01 × RMS"


# ---- flags and noise -----------------------------------------------------------------------------------------------------


def test_each_flag_stands_with_its_value_its_threshold_and_whether_it_is_raised() -> None:
    """Over a window of 2: the gradient norm fell by a tenth, the update is 0.4, the validation loss rose by 0.5."""
    rows = [row(1, grad_norm=2.0, val_loss=1.0), row(2, grad_norm=1.8, val_loss=1.5)]
    s = settings(flag_window_size=2, flag_min_epochs=2, flag_overfit_epochs=1, flag_grad_plateau_thr=0.05)
    lines = read(s, rows)
    assert line_of(lines, "○ grad norm plateau") == "○ grad norm plateau 0.1 < 0.05"
    assert line_of(lines, "○ low weight update") == "○ low weight update 0.4 < 0.0001"
    assert line_of(lines, "● val loss plateau") == "● val loss plateau -0.5 < 0.0001"
    assert line_of(lines, "● overfitting") == "● overfitting 1 ≥ 1"
    assert line_of(lines, "flags: ").startswith("flags: streak 1/3")
    assert "waiting for 2 more flagged epochs" in "\n".join(lines)


def test_the_flag_of_patience_is_there_where_it_acts() -> None:
    rows = [row(1, train_loss=1.0), row(2, train_loss=1.1), row(3, train_loss=1.2)]
    stuck = settings(noise_during_stuck_only=True, patience=4)
    lines = read(stuck, rows)
    assert line_of(lines, "○ train loss stuck") == "○ train loss stuck 2 > 4"
    assert "waiting for a flag" in "\n".join(lines)  # patience does not wait for the eleventh epoch
    assert "train loss stuck" not in "\n".join(read(settings(), rows))


def test_noise_stands_with_its_target_its_strength_how_stuck_training_is_and_its_cooldown() -> None:
    noisy = NoiseDecision(3, "gradient", 0.0312, (PLATEAU,), 0.62, cooldown=11)
    lines = read(
        settings(), [row(1), row(2)], [NoiseDecision(1, streak=1), NoiseDecision(2, streak=2), noisy]
    )
    text = "\n".join(lines)
    assert line_of(lines, "noise: ") == "noise: gradient, σ 0.0312 × RMS"
    assert "stuckness 0.62" in text
    assert "then a cooldown of 11 epochs" in text
    absolute = read(
        settings(noise_scale="absolute"), [row(1), row(2)], [NoiseDecision(1), NoiseDecision(2), noisy]
    )
    assert line_of(absolute, "noise: ") == "noise: gradient, σ 0.0312"


def test_the_streak_that_led_to_noise_is_whole() -> None:
    before = [
        NoiseDecision(11, reasons=(PLATEAU,), streak=1),
        NoiseDecision(12, reasons=(PLATEAU,), streak=2),
    ]
    noisy = NoiseDecision(13, "gradient", 0.03, (PLATEAU,), 0.6, cooldown=5)
    quiet = [NoiseDecision(e) for e in range(1, 11)]
    lines = read(settings(), [row(e) for e in range(1, 13)], [*quiet, *before, noisy])
    assert line_of(lines, "flags: ").startswith("flags: streak 3/3")


@pytest.mark.parametrize(
    ("still", "told"),
    [(2, "cooldown: 3 epochs left"), (1, "cooldown: 2 epochs left"), (0, "cooldown: 1 epoch left")],
)
def test_a_cooldown_is_counted_down_and_says_when_flags_are_looked_at_again(still: int, told: str) -> None:
    text = "\n".join(cooling(still))
    assert told in text
    assert "flags again in epoch 6" in text
    assert "flags: paused" in text
    assert "noise: none" in text


def test_the_controller_looks_at_flags_again_in_the_epoch_that_was_told() -> None:
    """Nothing moves: noise in every epoch that is looked at, and cooldowns of exactly 3 between."""
    s = settings(
        flag_window_size=2,
        flag_min_epochs=2,
        consecutive_flag_trigger=1,
        min_cooldown_epochs=3,
        max_cooldown_epochs=3,
    )
    rows = [row(e, grad_norm=1.0) for e in range(1, 12)]
    screens = ["\n".join(read(s, rows[:done])) for done in range(len(rows) + 1)]
    noisy = [done + 1 for done, text in enumerate(screens) if "noise: gradient" in text]
    assert noisy == [3, 7, 11]
    for epoch, text in enumerate(screens, start=1):
        again = re.search(r"flags again in epoch (\d+)", text)
        assert (again is not None) == (epoch in (4, 5, 6, 8, 9, 10, 12))
        assert again is None or int(again[1]) in (7, 11, 15)


def test_a_cooldown_that_outlasts_the_run_says_so() -> None:
    assert "the run ends first" in "\n".join(cooling(2, settings(epochs=5, flag_window_size=2)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"disable_adaptive_flags": True}, "noise: none"),
        ({"disable_adaptive_flags": True, "noise_type": "input"}, "noise: static input, σ 0.01 × RMS"),
        ({"noise_type": "label", "noise_magnitude": 0.7}, "noise: static label, probability 0.5"),
    ],
)
def test_without_flags_noise_is_none_or_static(changes: dict[str, Any], told: str) -> None:
    lines = read(settings(**changes), [row(1)])
    assert line_of(lines, "noise: ") == told
    assert ("flags are off" in "\n".join(lines)) == ("disable_adaptive_flags" in changes)


def test_static_noise_goes_on_in_a_cooldown_and_both_are_told() -> None:
    s = settings(
        noise_type="weight",
        flag_window_size=2,
        flag_min_epochs=2,
        consecutive_flag_trigger=1,
        min_cooldown_epochs=4,
    )
    lines = read(s, [row(1, val_loss=1.0), row(2, val_loss=1.0), row(3)])
    assert line_of(lines, "noise: ") == "noise: static weight, σ 0.01 × RMS"
    assert "cooldown: " in "\n".join(lines)


def test_events_tell_the_latest_first() -> None:
    quiet = [NoiseDecision(1), NoiseDecision(2)]
    raised = NoiseDecision(3, reasons=(PLATEAU,), streak=1)
    noisy = NoiseDecision(4, "gradient", 0.05, (PLATEAU, Flag("overfitting", True, 3, 3)), 0.6, cooldown=1)
    decisions = [*quiet, raised, noisy, NoiseDecision(5), NoiseDecision(6)]
    lines = read(settings(), [row(e) for e in range(1, 6)], decisions)
    start = next(i for i, line in enumerate(lines) if "events ─" in line)
    assert [line.strip(" │") for line in lines[start + 1 : -1]] == [
        "epoch 6  the cooldown is over",
        "epoch 4  gradient noise σ 0.05, cooldown 1: grad norm plateau, overfitting",
        "epoch 3  raised (1/3): grad norm plateau",
    ]


# ---- size ----------------------------------------------------------------------------------------------------------------


def busy(n: int, s: Train) -> list[dict[str, Any]]:
    """A run with flags of every kind, noise on weights among them, and awkward numbers."""
    rows: list[dict[str, Any]] = []
    for epoch in range(1, n + 1):
        wave = math.sin(epoch / 3)
        rows.append(row(
            epoch, lr=1.234567e-5 * (1 + wave), train_loss=12.3456 / epoch, val_loss=2 + 0.3 * wave,
            train_acc_clean=1.0, val_acc=0.5 + 0.1 * wave, update_norm=123456.7,
            grad_norm=None if epoch % 7 == 0 else 1234.5 + 100 * wave,
        ))  # fmt: skip
    return rows


@pytest.mark.parametrize("n", [0, 1, 2, 49, 300])
@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize(
    ("width", "height"), [(8, 4), (40, 24), (40, 60), (80, 24), (100, 30), (120, 60), (250, 9)]
)
def test_it_fits_any_terminal(n: int, graphs: bool, width: int, height: int) -> None:
    s = settings(epochs=300, graphs=graphs, noise_during_stuck_only=True, suffix="a_rather_long_suffix" * 3)
    lines = read(s, busy(n, s), width=width, height=height)
    assert {cell_len(line) for line in lines} == {width}
    assert len(lines) <= max(height - 2, 6)
    assert lines[0][0] + lines[0][-1] + lines[-1][0] + lines[-1][-1] == "╭╮╰╯"


@pytest.mark.parametrize("graphs", [False, True], ids=["plain", "graphs"])
@pytest.mark.parametrize("n", [0, 1, 49, 300])
def test_80_by_24_shows_everything_uncut(n: int, graphs: bool) -> None:
    s = settings(epochs=300, graphs=graphs, noise_during_stuck_only=True)
    text = "\n".join(read(s, busy(n, s)))
    assert "…" not in text
    for name in (
        "train loss ",
        "val loss ",
        "train acc",
        "val acc",
        "lr ",
        "grad norm ",
        "update norm",
        "noise: ",
    ):
        assert name in text
    for name in (
        "grad norm plateau",
        "low weight update",
        "val loss plateau",
        "overfitting",
        "train loss stuck",
    ):
        assert name in text
    assert ("loss ┈ train ─ val" in text) == (graphs and n > 0)
    assert ("events ─" in text) == (n > 10)


def test_no_curves_unless_they_are_asked_for() -> None:
    rows = [row(e) for e in range(1, 20)]
    assert not re.search("[\u2801-\u28ff]", "\n".join(read(settings(), rows, height=60)))
    assert re.search("[\u2801-\u28ff]", "\n".join(read(settings(graphs=True), rows, height=60)))


# ---- curves --------------------------------------------------------------------------------------------------------------


def points(lines: list[Text], offset: int = 8) -> set[tuple[int, int]]:
    """(column, row) of every dot of a graph, row 0 at the top."""
    found = set()
    for i, line in enumerate(lines[1:-1]):
        for j, letter in enumerate(line.plain[offset:]):
            bits = ord(letter) - EMPTY if letter != " " else 0
            found |= {(2 * j + x, 4 * i + y) for y in range(4) for x in range(2) if bits & BITS[y][x]}
    return found


def test_a_line_from_the_lowest_to_the_highest_value_is_a_diagonal() -> None:
    lines = graph("title", [Series("", [0.0, 7.0])], (), width=8 + 4, height=2)
    assert points(lines) == {(x, 7 - x) for x in range(8)}
    assert lines[0].plain == "       title"[: 8 + 4]
    assert lines[1].plain.startswith("      7│")
    assert lines[2].plain.startswith("      0│")


def test_a_jump_is_drawn_through_and_a_gap_is_left_open() -> None:
    jump = graph("", [Series("", [0.0, 0.0, 3.0, 3.0])], (), width=8 + 2, height=1)
    assert points(jump) == {(0, 3), (1, 3), (2, 2), (2, 1), (2, 0), (3, 0)}
    gap = graph("", [Series("", [0.0, None, 3.0, 3.0])], (), width=8 + 2, height=1)
    assert points(gap) == {(0, 3), (2, 0), (3, 0)}


def test_more_epochs_than_dots_are_averaged() -> None:
    values = [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, None]
    assert points(graph("", [Series("", values)], (), width=8 + 2, height=1)) == {
        (0, 3),
        (1, 2),
        (2, 1),
        (3, 0),
    }


@pytest.mark.parametrize("values", [[], [None, None], [2.0], [2.0, 2.0, 2.0]])
def test_curves_without_a_range_do_not_fail(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    assert bool(points(graph("", [Series("", values)], (), width=16, height=2))) == bool(known)


def test_epochs_with_flags_are_marked_below_their_values_and_noise_hides_a_mere_flag() -> None:
    marks = (Marks("△", frozenset({0, 4, 9})), Marks("▲", frozenset({4})))
    lines = graph("", [Series("", [float(i) for i in range(10)])], marks, width=8 + 10, height=1)
    assert lines[-1].plain == " " * 8 + "△   ▲    △"
    squeezed = graph(
        "", [Series("", [0.0] * 100)], (Marks("△", frozenset({51})), Marks("▲", frozenset({50}))), 18, 1
    )
    assert squeezed[-1].plain == " " * 8 + "     ▲"


def test_numbers_have_as_many_digits_as_there_is_room() -> None:
    assert [fitted(value, 7) for value in (3, 0.012346, 1.2345e-5, 123456.7, -0.00874321)] == [
        "3", "0.01235", "1.2e-05", "1.2e+05", "-0.0087",
    ]  # fmt: skip
    assert fitted(0.5, 7, "+") == "+0.5"


# ---- while a run goes on -----------------------------------------------------------------------------------------------


def watch(rows: list[dict[str, Any]], s: Train | None = None) -> Watch:
    s = s or settings()
    return Watch(s, SimpleNamespace(rows=rows, path=Path("run")), controller_of(s), s.epochs * STEPS, 0)  # type: ignore[arg-type]


def test_a_step_costs_less_than_20_microseconds() -> None:
    advance, best = watch([]).advance, math.inf
    for _ in range(5):
        start = time.perf_counter()
        for n in range(1000):
            advance(n, "at most")
        best = min(best, (time.perf_counter() - start) / 1000)
    assert best < 20e-6


def test_metrics_are_worked_out_only_when_an_epoch_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = controller.decisions
    monkeypatch.setattr(controller, "decisions", lambda *given: calls.append(1) or real(*given))
    rows = [row(1), {"kind": "other", "epoch": 1}]
    watched, printed = watch(rows), console()
    for n in range(5):
        watched.advance(STEPS + n)
        printed.print(watched)
    assert len(calls) == 1
    rows.append(row(2))
    printed.print(watched)
    assert len(calls) == 2
    assert isinstance(printed.file, io.StringIO)
    assert "epoch 3/100" in printed.file.getvalue()


def test_a_screen_that_cannot_be_drawn_does_not_end_the_run() -> None:
    printed = console()
    printed.print(watch([{"kind": "epoch", "epoch": 1}]))
    assert isinstance(printed.file, io.StringIO)
    told = " ".join(printed.file.getvalue().split())
    assert told == "BabyCNN_SGD_adaptive_gaussian_seed0: 0/39000 (no dashboard: KeyError('train_loss'))"


def test_without_a_terminal_there_are_the_plain_lines_of_every_other_study(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "PLAIN_EVERY_S", 0.0)
    s = settings()
    show = dashboard(s, SimpleNamespace(rows=[row(1)], path=Path("run")), controller_of(s))  # type: ignore[arg-type]
    with show("run", 4, 0) as advance:
        advance(1, "at most")
        advance(4)
    assert capsys.readouterr().err == "run: 1/4, 0:00 left\nrun: 4/4, 0:00 left\n"


@pytest.mark.parametrize(
    ("name", "encoding", "draws"),
    [("xterm", "utf-8", True), ("dumb", "utf-8", False), ("xterm", "ascii", False)],
)
def test_a_terminal_that_cannot_draw_gets_the_bar_of_every_other_study(
    name: str, encoding: str, draws: bool
) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    printed = Console(file=file, force_terminal=True, _environ={"TERM": name})
    assert module._draws(printed) == draws


# ---- a real terminal -----------------------------------------------------------------------------------------------------


ENDS = [
    bytes([letter]) for letter in b"\nAKhlm"
]  # after one of these no escape sequence and no letter is cut in two


class Terminal:
    """80 columns and 24 lines with what scrolled off above them, of which it knows as much as the screen uses."""

    COLUMNS, LINES = 80, 24

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", self.LINES, self.COLUMNS, 0, 0))
        self.name = os.ttyname(self.slave)
        self.rows, self.x, self.y = [""], 0, 0
        self.cursor = True
        self._rest = b""

    @property
    def text(self) -> list[str]:
        """All lines that are not empty, those that scrolled off too."""
        return [line.rstrip() for line in self.rows if line.strip()]

    def read(self, seconds: float) -> bool:
        """Take what comes within so many seconds; whether anything did."""
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        try:
            data = self._rest + os.read(self.master, 65536)
        except OSError:  # the last process has closed it
            return False
        whole = max(data.rfind(end) for end in ENDS) + 1
        self._rest = data[whole:]
        self._take(data[:whole].decode())
        return True

    def shows(self, text: str) -> None:
        """Wait until it stands on the screen."""
        until(lambda: (self.read(0.05) or True) and any(text in line for line in self.rows))

    def close(self) -> None:
        for handle in (self.master, self.slave):
            with suppress(OSError):
                os.close(handle)

    def _take(self, data: str) -> None:
        for escape, control, plain in re.findall(r"(\x1b\[[?\d;]*[A-Za-z])|([\r\n])|([^\x1b\r\n]+)", data):
            if control:
                self.x = 0
                self.y += control == "\n"
                self.rows += [""] * (self.y + 1 - len(self.rows))
            elif plain:
                self._write(plain)
            elif escape.endswith("A"):
                self.y = max(self.y - int(escape[2:-1] or 1), len(self.rows) - self.LINES, 0)
            elif escape.endswith("K"):
                self.rows[self.y] = ""
            elif escape in ("\x1b[?25l", "\x1b[?25h"):
                self.cursor = escape.endswith("h")
            else:
                assert escape.endswith("m"), escape

    def _write(self, plain: str) -> None:
        for letter in plain:
            if self.x == self.COLUMNS:
                self.x, self.y = 0, self.y + 1
                self.rows += [""] * (self.y + 1 - len(self.rows))
            line = self.rows[self.y].ljust(self.x)
            self.rows[self.y] = line[: self.x] + letter + line[self.x + 1 :]
            self.x += 1


def play(tty: str, stdout: str) -> None:
    """In a child of the zygote: a run of two epochs of three steps on that terminal, which waits for the test's word.

    Ctrl-C and a closed terminal end it as they end a real one.
    """
    handle = os.open(
        tty, os.O_RDWR
    )  # the first terminal that a session opens is its own: Ctrl-C comes from there
    for number in (0, 1, 2) if not stdout else (0, 2):
        os.dup2(handle, number)
    if stdout:
        os.dup2(os.open(stdout, os.O_WRONLY | os.O_CREAT), 1)
    module.PER_SECOND = 50.0
    s = settings(epochs=2, flag_window_size=2)
    run = SimpleNamespace(rows=[], path=Path("run"))
    show = dashboard(s, run, controller_of(s))  # type: ignore[arg-type]
    try:
        with stop_on_signals() as stop, show("run", 6, 0) as advance:
            advance(1)
            until(lambda: Path("first").exists() or bool(stop))
            time.sleep(0.1)  # some more pictures
            stop.check()
            say("said of epoch 1")
            warn("of epoch 1")
            run.rows.append(row(1, val_loss=1.2345))
            advance(4)
            until(Path("second").exists)
        say("said after it")
    except Interrupted as error:
        Path("ended").write_text(str(error.number))
        with suppress(OSError):
            say("stopped")
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(0)


@contextmanager
def playing(zygote: Zygote, folder: Path, stdout: str = "") -> Iterator[tuple[Terminal, Callable[[], None]]]:
    """A terminal on which the play has begun, and a function that waits for its end."""
    screen_of = Terminal()
    environment = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    zygote.start(
        [], folder, hooks=[["test_adaptive_noise_dashboard", "play", screen_of.name, stdout]], **environment
    )

    def finish() -> None:
        until(lambda: (screen_of.read(0.02) or True) and zygote.ends_within(0))
        while screen_of.read(0.1):
            pass

    try:
        screen_of.shows("epoch 1/2, step 1/3")
        yield screen_of, finish
    finally:
        screen_of.close()
        ended = zygote.wait()
    assert ended.code == 0, ended.output


def test_on_a_terminal_the_screen_appears_follows_the_run_and_leaves_nothing_but_what_was_said(
    zygote: Zygote, tmp_path: Path
) -> None:
    with playing(zygote, tmp_path) as (shown, finish):
        shown.shows("on cpu ─╯")
        assert shown.text[0].startswith("╭─ BabyCNN")
        assert not shown.cursor

        (tmp_path / "first").touch()
        shown.shows("epoch 2/2, step 1/3")
        shown.shows("1.2345")
        shown.shows("on cpu ─╯")
        assert shown.text[:2] == ["said of epoch 1", "warning: of epoch 1"]
        assert shown.text[2].startswith("╭─ BabyCNN")
        assert sum(line.startswith("╭") for line in shown.text) == 1, "a torn screen"

        (tmp_path / "second").touch()
        finish()
        assert shown.text == ["said of epoch 1", "warning: of epoch 1", "said after it"]
        assert shown.cursor


def test_what_is_said_goes_to_the_file_that_standard_output_is(zygote: Zygote, tmp_path: Path) -> None:
    with playing(zygote, tmp_path, str(tmp_path / "said.txt")) as (shown, finish):
        (tmp_path / "first").touch()
        (tmp_path / "second").touch()
        finish()
        assert shown.text == ["warning: of epoch 1"]
    assert (tmp_path / "said.txt").read_text() == "said of epoch 1\nsaid after it\n"


def test_ctrl_c_leaves_the_terminal_clean(zygote: Zygote, tmp_path: Path) -> None:
    with playing(zygote, tmp_path) as (shown, finish):
        shown.shows("on cpu ─╯")
        os.write(shown.master, b"\x03")
        finish()
        assert shown.text == ["stopped"]
        assert shown.cursor
    assert (tmp_path / "ended").read_text() == "2"


def test_a_terminal_that_goes_away_ends_the_run_as_the_signal_asks(zygote: Zygote, tmp_path: Path) -> None:
    with playing(zygote, tmp_path) as (shown, _):
        shown.close()
        until(lambda: zygote.ends_within(0.01))
    assert (tmp_path / "ended").read_text() == "1"
