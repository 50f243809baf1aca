"""The two state machines of adaptive-noise: tables from its description, and a plain machine with a mutable state that
follows the description line by line, on thousands of random histories."""

import dataclasses
import math
import random
import subprocess
import sys
from collections import Counter

import pytest

from perturblab.perturb.controller import ControllerSettings, NoiseDecision, decide, decisions
from perturblab.perturb.magnitude import adaptive_sigma, cooldown_epochs, static_sigma, stuckness

BOTH = ["documented", "published"]
FLAT = {"grad_norm": 1.0}  # raises F1, the plateau of the gradient norm, and nothing else


def run_of(n: int, raised=lambda epoch: True, **values: float | None) -> list[dict]:
    """``n`` epochs that learn well, with ``values`` (default: a flat gradient norm) in those that ``raised`` names."""
    rows = [
        {"epoch": e, "train_loss": 9 - e / 100, "val_loss": 9 - e / 100, "grad_norm": 2.0**-e, "update_norm": 1.0}
        for e in range(1, n + 1)
    ]  # fmt: skip
    return [{**row, **((values or FLAT) if raised(row["epoch"]) else {})} for row in rows]


def settings_of(controller: str = "documented", **values) -> ControllerSettings:
    """Flags from the first two epochs on, a trigger of 3, five epochs of cooldown."""
    basis = {"epochs": 300, "flag_window_size": 2, "flag_min_epochs": 2, "flag_overfit_epochs": 1}
    cooldown = {"min_cooldown_epochs": 5, "max_cooldown_epochs": 5}
    return ControllerSettings(**{**basis, **cooldown, "controller": controller, **values})


def column(name: str, rows: list[dict], settings: ControllerSettings) -> list:
    return [getattr(decision, name) for decision in decisions(rows, settings)]


# ---- timelines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [10, 120])
def test_the_published_timeline(start) -> None:
    """Noise in epochs e, e+1, e+2, silence in e+3 .. e+7, flags again at e+8 (5.7); also past epoch 100."""
    settings = settings_of("published", flag_min_epochs=start)
    found = list(decisions(run_of(start + 9), settings))[start:]
    assert [d.target for d in found] == ["gradient"] * 3 + [None] * 5 + ["gradient"] * 2
    assert [d.streak for d in found] == [1, 2, 0, 0, 0, 0, 0, 0, 1, 2]
    assert [d.cooldown for d in found] == [0, 0, 5, 4, 3, 2, 1, 0, 0, 0]
    assert [bool(d.reasons) for d in found] == [True] * 3 + [False] * 5 + [True] * 2
    assert [d.epoch for d in found] == list(range(start + 1, start + 11))
    assert not any(d.target or d.streak or d.reasons for d in decisions(run_of(start - 1), settings))


@pytest.mark.parametrize("start", [10, 120])
def test_the_documented_timeline(start) -> None:
    """Noise only once the flags came three times in a row, in one epoch; five epochs of cooldown, and anew."""
    found = list(decisions(run_of(start + 11), settings_of(flag_min_epochs=start)))[start:]
    assert [d.target for d in found] == [None, None, "gradient", *[None] * 7, "gradient", None]
    assert [d.streak for d in found] == [1, 2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0]
    assert [d.cooldown for d in found] == [0, 0, 5, 4, 3, 2, 1, 0, 0, 0, 5, 4]
    assert [bool(d.reasons) for d in found] == [True] * 3 + [False] * 5 + [True] * 3 + [False]
    assert not any(d.target or d.streak or d.reasons for d in decisions(run_of(start - 1), settings_of(flag_min_epochs=start)))  # fmt: skip


def test_an_epoch_without_a_flag_breaks_the_streak() -> None:
    """Flags before epochs 3, 4, then one without, then before 6, 7, 8: ``grad_norm`` halves where none is raised."""
    norms = [8.0, 8, 8, 4, 4, 4, 4]
    rows = [{**row, "grad_norm": norm} for row, norm in zip(run_of(7), norms, strict=True)]
    assert column("streak", rows, settings_of()) == [0, 0, 1, 2, 0, 1, 2, 0]
    assert column("target", rows, settings_of()) == [None] * 7 + ["gradient"]
    published = [None, None, "gradient", "gradient", None, "gradient", "gradient", "gradient"]
    assert column("target", rows, settings_of("published")) == published
    assert column("cooldown", rows, settings_of("published")) == [0] * 7 + [5]


def test_a_trigger_of_one_acts_at_once_and_a_cooldown_of_none_does_not_pause() -> None:
    for controller in BOTH:
        settings = settings_of(controller, consecutive_flag_trigger=1, min_cooldown_epochs=0, max_cooldown_epochs=0)  # fmt: skip
        assert column("target", run_of(6), settings) == [None] * 2 + ["gradient"] * 5


def test_window_and_min_epochs_are_not_swapped() -> None:
    rows = run_of(99)
    for controller in BOTH:
        for window, first in ((70, 10), (10, 70)):
            settings = settings_of(controller, flag_window_size=window, flag_min_epochs=first)
            checked = [d.epoch - 1 for d in decisions(rows, settings) if d.reasons]
            assert checked[0] == 70
            assert decide(rows[:70], settings).reasons[0].value == 0
    rows[0]["grad_norm"] = 4.0  # 70 epochs before: in the longer window alone
    long, short = (
        decide(rows[:70], settings_of(flag_window_size=w, flag_min_epochs=80 - w)) for w in (70, 10)
    )
    assert (len(long.reasons), len(short.reasons)) == (0, 1)


# ---- what flags ask for --------------------------------------------------------------------------------------------------

F1, F2 = {"grad_norm": 1.0}, {"update_norm": 1e-6}
F3 = {"val_loss": 9.0}
F13 = F1 | F3
NAMES = ("grad_norm_plateau", "low_weight_update", "val_loss_plateau", "overfitting")


def overfit(rows: list[dict]) -> list[dict]:
    return [{**row, "val_loss": 1 + row["epoch"] / 10} for row in rows]


@pytest.mark.parametrize("controller", BOTH)
@pytest.mark.parametrize(
    ("rows", "names", "target"),
    [
        (run_of(9, **F1), {"grad_norm_plateau"}, "gradient"),
        (run_of(9, **F2), {"low_weight_update"}, "gradient"),
        (run_of(9, **F3), {"val_loss_plateau"}, "weight"),
        (run_of(9, **F13), {"grad_norm_plateau", "val_loss_plateau"}, "gradient"),
        (overfit(run_of(9, lambda e: False)), {"val_loss_plateau", "overfitting"}, "weight"),
        (overfit(run_of(9, **F2)), {"low_weight_update", "val_loss_plateau", "overfitting"}, "gradient"),
        (overfit(run_of(9, **F1, **F2)), set(NAMES), "gradient"),
    ],
)
def test_gradient_noise_wins_where_flags_ask_for_both(controller, rows, names, target) -> None:
    decision = decide(rows, settings_of(controller, consecutive_flag_trigger=1, flag_min_epochs=9))
    assert {flag.name for flag in decision.reasons} == names
    assert decision.target == target


def test_overfitting_is_read_as_each_machine_reads_it() -> None:
    """Rises and falls in turn: three of each in the window, never two in a row."""
    losses = [1.0, 2.0] * 4
    rows = [{**row, "val_loss": v, "train_loss": -v} for row, v in zip(run_of(8, **F1), losses, strict=True)]
    sizes = {"flag_window_size": 8, "flag_overfit_epochs": 3, "consecutive_flag_trigger": 1}
    names = [{f.name for f in decide(rows, settings_of(controller, **sizes)).reasons} for controller in BOTH]
    assert ["overfitting" in found for found in names] == [False, True]


# ---- how much, how long ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("improvement", "threshold", "expected"),
    [
        (0.025, 0.025, 0.5),
        (0.0, 0.025, 0.8807970779778823),
        (0.05, 0.025, 0.11920292202211755),
        (-0.5, 0.025, 1.0),
        (-1e300, 1e-4, 1.0),  # the original overflows here
        (1e300, 1e-4, 0.0),
        (0.0, 1e-4, 0.8807970779778823),
    ],
)
def test_stuckness(improvement, threshold, expected) -> None:
    assert stuckness(improvement, threshold) == pytest.approx(expected, abs=1e-12)


COOLDOWNS = [(-0.5, 10), (0.0, 9), (0.0125, 8), (0.0249, 6)]


@pytest.mark.parametrize(("improvement", "length"), COOLDOWNS)
@pytest.mark.parametrize("controller", BOTH)
def test_the_documented_cooldown_lengths(controller, improvement, length) -> None:
    assert cooldown_epochs(stuckness(improvement, 0.025), 3, 10) == length
    rows = [{**row, "grad_norm": (1 - improvement) ** row["epoch"]} for row in run_of(20)]
    settings = settings_of(
        controller,
        consecutive_flag_trigger=1,
        flag_grad_plateau_thr=0.025,
        min_cooldown_epochs=3,
        max_cooldown_epochs=10,
    )
    assert decide(rows[:2], settings).cooldown == length
    again = column("target", rows, settings)[3:].index("gradient")
    assert again == length


def test_the_length_of_a_cooldown_after_weight_noise() -> None:
    """As published it follows the gradient norm, 0.5 without its flag; as documented the noise that it follows."""
    lengths = {"consecutive_flag_trigger": 1, "min_cooldown_epochs": 0, "max_cooldown_epochs": 1000}
    found = [decide(run_of(5, **F3), settings_of(controller, flag_min_epochs=5, **lengths)) for controller in BOTH]  # fmt: skip
    assert [d.stuckness for d in found] == [pytest.approx(0.8807970779778823)] * 2
    assert [d.cooldown for d in found] == [880, 500]


@pytest.mark.parametrize("controller", BOTH)
@pytest.mark.parametrize(
    ("rows", "stuck"),
    [
        (run_of(150, **F1), 1 / (1 + math.exp(-2))),
        (run_of(150, **F2), 0.5),  # not measured by its flag
        (run_of(150, **F3), 1 / (1 + math.exp(-2))),
        (overfit(run_of(150, lambda e: False)), 1.0),
    ],
)
def test_an_adaptive_sigma_follows_stuckness_and_half_a_cosine(controller, rows, stuck) -> None:
    range_ = {"relative_min_noise": 0.2, "relative_max_noise": 0.6, "consecutive_flag_trigger": 1}
    for n, share in ((0, 1), (75, (1 + math.cos(math.pi / 4)) / 2), (100, 0.75), (150, 0.5)):
        assert adaptive_sigma(stuck, 0.2, 0.6, n, 300) == pytest.approx((0.2 + 0.4 * stuck) * share)
        if n:
            decision = decide(rows[:n], settings_of(controller, flag_min_epochs=n, **range_))
            assert decision.stuckness == pytest.approx(stuck)
            assert decision.sigma == pytest.approx((0.2 + 0.4 * stuck) * share)


# ---- static noise ----------------------------------------------------------------------------------------------------------

STATIC = {
    "constant": [0.2, 0.2, 0.2, 0.2],
    "linear": [0.2, 0.15, 0.1, 0.05],
    "cosine": [0.2, 0.1 * (1 + math.sqrt(0.5)), 0.1, 0.1 * (1 - math.sqrt(0.5))],
    "exponential": [0.2, 0.19, 0.1805, 0.171475],
}


@pytest.mark.parametrize("schedule", STATIC)
@pytest.mark.parametrize("target", ["gradient", "weight", "input", "label"])
@pytest.mark.parametrize("stuck_only", [False, True])
def test_without_flags_noise_is_static(schedule, target, stuck_only) -> None:
    settings = ControllerSettings(
        epochs=4,
        disable_adaptive_flags=True,
        noise_during_stuck_only=stuck_only,  # leaves noise to flags, of which there are none
        noise_type=target,
        noise_magnitude=0.2,
        noise_schedule=schedule,
        patience=0,
    )
    found = list(decisions(run_of(3), settings))
    assert found == [NoiseDecision(e, target, pytest.approx(s)) for e, s in enumerate(STATIC[schedule], 1)]
    assert [static_sigma(schedule, 0.2, e, 4) for e in range(4)] == pytest.approx(STATIC[schedule])


@pytest.mark.parametrize("values", [{}, {"noise_during_stuck_only": True, "patience": 0}, {"controller": "published"}])  # fmt: skip
def test_a_baseline_never_has_noise(values) -> None:
    """Decision 26: the settings of the run, with ``--noise-type none --disable-adaptive-flags``."""
    settings = settings_of(disable_adaptive_flags=True, **values)
    assert list(decisions(run_of(40), settings)) == [NoiseDecision(e) for e in range(1, 42)]


def test_flags_override_static_noise_only_where_they_lead_to_noise() -> None:
    """It runs on while a streak grows and in the cooldown, which is a pause of the flags."""
    settings = settings_of(noise_type="label", noise_magnitude=0.3)
    found = list(decisions(run_of(11), settings))
    expected = ["label"] * 4 + ["gradient"] + ["label"] * 7
    assert [d.target for d in found] == expected
    assert [d.sigma for d in found if d.target == "label"] == [0.3] * 11
    assert [d.stuckness > 0 for d in found] == [target == "gradient" for target in expected]
    assert [d.streak for d in found] == [0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 1, 2]


def test_with_noise_only_when_stuck_there_is_none_between() -> None:
    settings = settings_of(noise_type="label", noise_magnitude=0.3, noise_during_stuck_only=True)
    assert column("target", run_of(11), settings) == [None] * 4 + ["gradient"] + [None] * 7


# ---- patience --------------------------------------------------------------------------------------------------------------


def stuck_from(epoch: int, n: int) -> list[dict]:
    return [{**row, "train_loss": 9 - min(row["epoch"], epoch) / 100} for row in run_of(n, lambda e: False)]


def test_patience_is_one_more_trigger_of_gradient_noise() -> None:
    """Best epoch 4, patience 5: the sixth epoch without improvement is the tenth, before the eleventh noise comes."""
    settings = settings_of(noise_during_stuck_only=True, patience=5, flag_min_epochs=200)
    found = list(decisions(stuck_from(4, 17), settings))
    assert [d.epoch for d in found if d.target] == [11, 17]  # and again once the cooldown of five is over
    assert {d.target for d in found} == {None, "gradient"}
    assert (found[10].stuckness, found[10].cooldown, found[10].streak) == (0.5, 5, 0)
    assert [(f.name, f.value, f.threshold) for f in found[10].reasons] == [("train_loss_stuck", 6, 5)]


def test_patience_acts_only_where_noise_is_left_to_detectors() -> None:
    rows = stuck_from(4, 40)
    for values in ({}, {"noise_during_stuck_only": True, "controller": "published"}):
        assert not any(column("target", rows, settings_of(patience=5, **values)))


def test_patience_beside_a_flag_for_weights_asks_for_gradients() -> None:
    rows = [{**row, "val_loss": 9.0} for row in stuck_from(4, 10)]
    decision = decide(rows, settings_of(noise_during_stuck_only=True, patience=5, flag_min_epochs=10))
    assert (decision.target, decision.stuckness) == ("gradient", 0.5)
    assert [flag.name for flag in decision.reasons] == ["val_loss_plateau", "train_loss_stuck"]


# ---- against a machine that keeps its state ------------------------------------------------------------------------------------


class Plain:
    """Adaptive-noise.md 5.7, line by line, with a state that changes; ``history`` is what its detectors have seen."""

    def __init__(self, s: ControllerSettings) -> None:
        self.s, self.e, self.c, self.n = s, 0, 0, 0
        self.g: list[float] = []
        self.u: list[float] = []
        self.v: list[float] = []
        self.clean_v: list[float] = []
        self.clean_t: list[float] = []
        self.best, self.waited = math.inf, 0

    def end_of_epoch(self, row: dict) -> None:
        self.e += 1
        self.v.append(row["val_loss"])
        if row["update_norm"] is not None:
            self.u.append(row["update_norm"])
        if row["grad_norm"] is not None:
            self.g.append(row["grad_norm"])
            self.clean_v.append(row["val_loss"])
            self.clean_t.append(row["train_loss"])
            self.waited += 1
            if row["train_loss"] < self.best:
                self.best, self.waited = row["train_loss"], 0

    def evaluate(self) -> set[str]:
        s, w, found = self.s, self.s.flag_window_size, set()
        self.grad_improvement = self.val_improvement = None
        if s.disable_adaptive_flags or self.e < s.flag_min_epochs or self.e == 0:
            return found
        if len(self.g) >= w and self.g[-w] > 1e-9:
            improvement = (self.g[-w] - self.g[-1]) / self.g[-w]
            if improvement < s.flag_grad_plateau_thr:
                found.add("F1")
                self.grad_improvement = improvement
        if len(self.u) >= w and sum(self.u[-w:]) / w < s.flag_low_weight_update_thr:
            found.add("F2")
        if len(self.v) >= w and self.v[-w] - self.v[-1] < s.flag_plateau_delta:
            found.add("F3")
            self.val_improvement = self.v[-w] - self.v[-1]
        if self.overfits():
            found.add("F4")
        return found

    def overfits(self) -> bool:
        s, v, t = self.s, self.clean_v, self.clean_t
        w, many = s.flag_window_size, s.flag_overfit_epochs
        if s.controller == "documented":
            if len(v) <= many:
                return False
            return all(v[-i] > v[-i - 1] for i in range(1, many + 1)) and t[-1] < t[-1 - many]
        if len(v) < w:
            return False
        rising = falling = 0
        for i in range(1, w):
            rising += v[-i] - v[-i - 1] > s.flag_plateau_delta / 10
            falling += t[-i - 1] - t[-i] > s.flag_plateau_delta / 10
        return rising >= many and falling >= many

    def s_of(self, improvement: float | None, threshold: float) -> float:
        if improvement is None:
            return 0.5
        x = 2 / threshold * (improvement - threshold)
        return 1 - (0.0 if x < -700 else 1 / (1 + math.exp(-x)))

    def cooldown(self, stuck: float) -> int:
        low, high = self.s.min_cooldown_epochs, self.s.max_cooldown_epochs
        return int(low + stuck * (high - low))

    def noise(self, found: set[str]) -> tuple[str, float, float]:
        s = self.s
        if found & {"F1", "F2", "patience"}:
            target, stuck = "gradient", self.s_of(self.grad_improvement, s.flag_grad_plateau_thr)
        else:
            target, stuck = "weight", self.s_of(self.val_improvement, s.flag_plateau_delta)
        raw = s.relative_min_noise + stuck * (s.relative_max_noise - s.relative_min_noise)
        return target, raw * (1 + math.cos(math.pi * self.e / s.epochs)) / 2, stuck

    def start_of_epoch(self) -> tuple:
        """(target, sigma, stuckness, flags raised, streak, cooldown) of the epoch that now starts."""
        return self.published() if self.s.controller == "published" else self.documented()

    def published(self) -> tuple:
        found: set[str] = set()
        if self.c > 0:
            self.c -= 1
        else:
            found = self.evaluate()
        self.n = self.n + 1 if found else 0
        if self.n >= self.s.consecutive_flag_trigger:
            self.c = self.cooldown(self.s_of(self.grad_improvement, self.s.flag_grad_plateau_thr))
            self.n = 0
        target, sigma, stuck = self.noise(found) if found else (None, 0.0, 0.0)
        return target, sigma, stuck, found, self.n, self.c

    def documented(self) -> tuple:
        s, found = self.s, set()
        target, sigma, stuck = self.static()
        if self.c > 0:
            self.c -= 1
        else:
            found = self.evaluate()
            self.n = self.n + 1 if found else 0
            if s.noise_during_stuck_only and not s.disable_adaptive_flags and self.waited > s.patience:
                found = found | {"patience"}
            if self.n >= s.consecutive_flag_trigger or "patience" in found:
                target, sigma, stuck = self.noise(found)
                self.c, self.n = self.cooldown(stuck), 0
        return target, sigma, stuck, found, self.n, self.c

    def static(self) -> tuple[str | None, float, float]:
        s, share = self.s, self.e / self.s.epochs
        if s.noise_type == "none" or (s.noise_during_stuck_only and not s.disable_adaptive_flags):
            return None, 0.0, 0.0
        scale = {
            "constant": 1.0,
            "linear": 1 - share,
            "cosine": (1 + math.cos(math.pi * share)) / 2,
            "exponential": 0.95**self.e,
        }[s.noise_schedule]
        return s.noise_type, s.noise_magnitude * scale, 0.0


SHORT = {
    "grad_norm_plateau": "F1", "low_weight_update": "F2", "val_loss_plateau": "F3", "overfitting": "F4",
    "train_loss_stuck": "patience",
}  # fmt: skip


def random_settings(numbers: random.Random, controller: str, n: int) -> ControllerSettings:
    window = numbers.choice([2, 3, 5, 8, 20])
    low, pause = numbers.uniform(0, 0.1), numbers.randint(0, 4)
    return ControllerSettings(
        epochs=max(n + 1, window) + numbers.randint(0, 40),
        controller=controller,
        flag_window_size=window,
        flag_min_epochs=numbers.randint(0, 12),
        flag_overfit_epochs=numbers.randint(1, min(3, window - 1)),
        flag_plateau_delta=numbers.choice([1e-4, 0.1, 0.5]),
        flag_grad_plateau_thr=numbers.choice([0.05, 0.3, 0.6]),
        flag_low_weight_update_thr=numbers.choice([0.0, 0.3, 0.6]),
        disable_adaptive_flags=numbers.random() < 0.1,
        relative_min_noise=low,
        relative_max_noise=low + numbers.uniform(0, 0.1),
        consecutive_flag_trigger=numbers.randint(1, 4),
        min_cooldown_epochs=pause,
        max_cooldown_epochs=pause + numbers.randint(0, 6),
        noise_type=numbers.choice(["none", "gradient", "weight", "input", "label"]),
        noise_magnitude=numbers.uniform(0, 1),
        noise_schedule=numbers.choice(list(STATIC)),
        noise_during_stuck_only=numbers.random() < 0.5,
        patience=numbers.randint(0, 8),
    )


def next_row(epoch: int, numbers: random.Random, noisy: bool) -> dict:
    """A run that gets better for a while and then wanders; no clean gradient under weight noise, at times no update."""
    level = max(0.3, 2 * 0.9**epoch)
    row = {name: level * numbers.uniform(0.6, 1.4) for name in ("train_loss", "val_loss", "grad_norm")}
    row |= {"epoch": epoch, "update_norm": numbers.uniform(0, 1)}
    if noisy:
        row["grad_norm"] = None
        row["update_norm"] = numbers.choice([None, row["update_norm"]])
    return row


@pytest.mark.parametrize("controller", BOTH)
def test_the_fold_is_a_machine_that_keeps_its_state(controller) -> None:
    """2,000 random runs; half of them obey (weight noise leaves no clean gradient), the others have gaps anywhere."""
    seen: Counter = Counter()
    for seed in range(2000):
        numbers = random.Random(seed)
        n = 140 if seed % 40 == 0 else numbers.randint(0, 30)
        settings = random_settings(numbers, controller, n)
        plain, rows, expected = Plain(settings), [], []
        for epoch in range(1, n + 2):
            expected.append(plain.start_of_epoch())
            noisy = expected[-1][0] == "weight" if seed % 2 else numbers.random() < 0.2
            if epoch <= n:
                rows.append(next_row(epoch, numbers, noisy))
                plain.end_of_epoch(rows[-1])
        found = list(decisions(rows, settings))
        assert [d.epoch for d in found] == list(range(1, n + 2))
        for d, (target, sigma, stuck, raised, streak, cooldown) in zip(found, expected, strict=True):
            assert (d.target, {SHORT[f.name] for f in d.reasons}) == (target, raised)
            assert (d.streak, d.cooldown) == (streak, cooldown)
            assert (d.sigma, d.stuckness) == (pytest.approx(sigma), pytest.approx(stuck))
            late = "late" if d.epoch > 100 else "early"
            seen.update([target, *raised, *((late, reason) for reason in raised), ("pause", cooldown > 5)])
    reasons = {"F1", "F2", "F3", "F4"} | ({"patience"} if controller == "documented" else set())
    assert min(seen[key] for key in [None, "gradient", "weight", ("pause", True), *reasons]) > 200
    assert min(seen["late", reason] for reason in reasons) > 20
    assert (seen["input"] > 200, seen["label"] > 200) == (controller == "documented",) * 2


# ---- a function of the rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("controller", BOTH)
@pytest.mark.parametrize("seed", range(20))
def test_a_decision_depends_on_the_rows_before_it_and_nothing_else(controller, seed) -> None:
    """So a run that was killed after any epoch, in a cooldown or not, goes on as it would have."""
    numbers = random.Random(seed)
    settings = random_settings(numbers, controller, 40)
    pauses = {"min_cooldown_epochs": 2, "max_cooldown_epochs": 6}
    settings = dataclasses.replace(settings, disable_adaptive_flags=False, **pauses)
    rows = [next_row(e, numbers, numbers.random() < 0.2) for e in range(1, 41)]
    found = list(decisions(rows, settings))
    assert [decide(rows[:k], settings) for k in range(41)] == found
    other = [next_row(e, numbers, False) for e in range(21, 41)]
    assert list(decisions(rows[:20] + other, settings))[:21] == found[:21]
    extra = [{**row, "streak": 99, "cooldown": 99, "noise": "weight", "lr": None} for row in rows]
    assert list(decisions(extra, settings)) == found
    assert any(d.cooldown for d in found)


def test_the_published_machine_ignores_what_it_ignored() -> None:
    for seed in range(50):
        numbers = random.Random(seed)
        settings = random_settings(numbers, "published", 40)
        rows = [next_row(e, numbers, numbers.random() < 0.2) for e in range(1, 41)]
        other = random_settings(numbers, "published", 40)
        ignored = ("noise_type", "noise_magnitude", "noise_schedule", "noise_during_stuck_only", "patience")
        changed = dataclasses.replace(settings, **{name: getattr(other, name) for name in ignored})
        assert list(decisions(rows, changed)) == list(decisions(rows, settings))


def test_a_history_that_was_cut_short_is_refused() -> None:
    with pytest.raises(ValueError, match="100 rows that end with epoch 150 are not a whole history"):
        decide(run_of(150)[50:], settings_of())


def test_deciding_loads_no_torch() -> None:
    code = "import sys, perturblab.perturb.controller; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- settings --------------------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_documented_ones() -> None:
    values = {
        "controller": "documented", "disable_adaptive_flags": False,
        "relative_min_noise": 0.01, "relative_max_noise": 0.10, "consecutive_flag_trigger": 3,
        "min_cooldown_epochs": 5, "max_cooldown_epochs": 15, "noise_type": "none", "noise_magnitude": 0.01,
        "noise_schedule": "constant", "noise_during_stuck_only": False, "patience": 5,
    }  # fmt: skip
    found = vars(ControllerSettings(epochs=100))
    assert {name: found[name] for name in values} == values


REFUSED = [
    ({"relative_min_noise": 0.2}, "--relative-min-noise 0.2 is more than --relative-max-noise 0.1"),
    ({"min_cooldown_epochs": 20}, "--min-cooldown-epochs 20 is more than --max-cooldown-epochs 15"),
    ({"flag_window_size": 101}, "--flag-window-size 101 is longer than the run's 100 epochs: make it smaller, or add --disable-adaptive-flags"),
    (
        {"controller": "published", "flag_overfit_epochs": 5},
        "--flag-overfit-epochs 5 can never be reached: a window of 5 epochs has 4 differences (--flag-window-size)",
    ),
    ({"noise_type": "dropout"}, "--noise-type 'dropout' is not one of none, gradient, weight, input, label"),
    ({"noise_schedule": "step"}, "--noise-schedule 'step' is not one of constant, linear, cosine, exponential"),
    ({"controller": "b"}, "--controller 'b' is not one of documented, published"),
    ({"consecutive_flag_trigger": 0}, "--consecutive-flag-trigger 0 is refused: it must be 1 or more"),
    ({"relative_min_noise": -0.1}, "--relative-min-noise -0.1 is refused: it must be 0 or more"),
    ({"min_cooldown_epochs": -1}, "--min-cooldown-epochs -1 is refused: it must be 0 or more"),
    ({"noise_magnitude": -1.0}, "--noise-magnitude -1.0 is refused: it must be 0 or more"),
    ({"patience": -1}, "--patience -1 is refused: it must be 0 or more"),
    ({"epochs": 0}, "--epochs 0 is refused: it must be 1 or more"),
    ({"flag_window_size": 0}, "--flag-window-size 0 is refused: it must be 2 or more"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), REFUSED)
def test_settings_that_cannot_work_are_refused_in_the_words_of_their_flags(values, message) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 the whole message is compared
        ControllerSettings(**{"epochs": 100, **values})
    assert str(refused.value) == message


@pytest.mark.parametrize("values", [
    {"epochs": 100, "flag_window_size": 70, "flag_min_epochs": 10},  # the report's effective values
    {"epochs": 100, "flag_window_size": 100, "relative_min_noise": 0.1, "max_cooldown_epochs": 5},
    {"epochs": 100, "flag_overfit_epochs": 8},  # as documented it has no window
    {"epochs": 2, "disable_adaptive_flags": True},  # a window that is never looked through
])  # fmt: skip
def test_what_is_legal_is_taken_as_it_was_given(values) -> None:
    settings = ControllerSettings(**values)
    assert {name: getattr(settings, name) for name in values} == values
