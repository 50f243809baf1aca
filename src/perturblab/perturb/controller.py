"""When to inject noise, where and how strong: two state machines as pure functions of the rows (adaptive-noise.md 5.7).

    decision = decide(rows, settings)      # for the epoch after the rows

The state (streak of flagged epochs, cooldown) is folded anew from the rows each time, so a resumed run decides as the
undisturbed one did, and rows hold no column of the controller. What rows hold: ``detectors``.

``documented`` (machine B, the default): noise once flags were raised in ``consecutive_flag_trigger`` epochs in a row
("required before noise is activated"), for one epoch; then a cooldown ("wait after noise injection before re-evaluating
flags"). ``published`` (machine A, what ran for the report): noise in every flagged epoch, and a cooldown once the
streak is long enough; ``noise_type``, ``noise_magnitude``, ``noise_schedule``, ``noise_during_stuck_only`` and
``patience`` have no effect in it (decision 9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from perturblab.perturb.detectors import (
    Flag,
    Reading,
    Row,
    Thresholds,
    flags,
    refuse_below,
    spelt,
    train_loss_stuck,
)
from perturblab.perturb.magnitude import (
    NoiseSchedule,
    adaptive_sigma,
    cooldown_epochs,
    static_sigma,
    stuckness,
)

Target = Literal["gradient", "weight", "input", "label"]
NoiseType = Literal["none", "gradient", "weight", "input", "label"]

UNMEASURED = 0.5  # stuckness where the flag that measures it is not raised
MEASURES: dict[Target, str] = {"gradient": "grad_norm_plateau", "weight": "val_loss_plateau"}
AGAINST_WEIGHTS = {
    "val_loss_plateau",
    "overfitting",
}  # flags that ask for weight noise; all others for gradient noise


@dataclass(frozen=True, kw_only=True)
class ControllerSettings(Thresholds):
    """Thresholds and all else that decides about noise; names and defaults of document 004, except ``epochs``.

    ``relative_min_noise``, ``relative_max_noise``: range of adaptive sigmas before the cosine. ``*_cooldown_epochs``:
    range of cooldowns. ``disable_adaptive_flags``: no flag is ever looked at; what is left is static noise
    (``noise_type``, at ``noise_magnitude`` times ``noise_schedule``), also with ``noise_during_stuck_only``, which
    otherwise leaves noise to the flags and ``patience`` (epochs) alone.

    ValueError in the words of the flags for a number out of range, a minimum above its maximum, an unknown name, and,
    unless flags are disabled, for a window longer than the run or an ``overfitting`` that can never be reached.
    """

    epochs: int
    controller: Reading = "documented"
    disable_adaptive_flags: bool = False
    relative_min_noise: float = 0.01
    relative_max_noise: float = 0.10
    consecutive_flag_trigger: int = 3
    min_cooldown_epochs: int = 5
    max_cooldown_epochs: int = 15
    noise_type: NoiseType = "none"
    noise_magnitude: float = 0.01
    noise_schedule: NoiseSchedule = "constant"
    noise_during_stuck_only: bool = False
    patience: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(
            self, epochs=1, relative_min_noise=0, consecutive_flag_trigger=1, min_cooldown_epochs=0,
            noise_magnitude=0, patience=0,
        )  # fmt: skip
        self._refuse_unknown()
        for low, high in (
            ("relative_min_noise", "relative_max_noise"),
            ("min_cooldown_epochs", "max_cooldown_epochs"),
        ):
            if not getattr(self, low) <= getattr(self, high):
                raise ValueError(
                    f"{spelt(low)} {getattr(self, low)} is more than {spelt(high)} {getattr(self, high)}"
                )
        if not self.disable_adaptive_flags:
            self._refuse_unreachable()

    def _refuse_unknown(self) -> None:
        for name, known in (
            ("controller", Reading),
            ("noise_type", NoiseType),
            ("noise_schedule", NoiseSchedule),
        ):
            if getattr(self, name) not in get_args(known):
                raise ValueError(
                    f"{spelt(name)} '{getattr(self, name)}' is not one of {', '.join(get_args(known))}"
                )

    def _refuse_unreachable(self) -> None:
        window, overfit = self.flag_window_size, self.flag_overfit_epochs
        if window > self.epochs:
            raise ValueError(
                f"--flag-window-size {window} is longer than the run's {self.epochs} epochs: make it smaller, or add "
                "--disable-adaptive-flags"
            )
        if self.controller == "published" and overfit >= window:
            raise ValueError(
                f"--flag-overfit-epochs {overfit} can never be reached: a window of {window} epochs has "
                f"{window - 1} differences (--flag-window-size)"
            )


@dataclass(frozen=True)
class NoiseDecision:
    """Noise of one epoch (``epoch``, from 1): what gets it, how much, why, and the state after the decision.

    ``sigma``: standard deviation, or factor of a tensor's root mean square; for label noise the probability before
    its limit of 0.5. ``reasons``: the flags raised before this epoch, also where they do not lead to noise yet.
    ``stuckness``: what an adaptive sigma follows, 0.5 to 1; 0 without noise and for static noise. ``streak``: flagged
    epochs in a row, 0 again once a cooldown begins. ``cooldown``: epochs still to wait after this one.
    """

    epoch: int
    target: Target | None = None
    sigma: float = 0.0
    reasons: tuple[Flag, ...] = ()
    stuckness: float = 0.0
    streak: int = 0
    cooldown: int = 0


def decide(rows: Sequence[Row], settings: ControllerSettings) -> NoiseDecision:
    """The decision for the epoch after ``rows``, which are all epochs before it. ValueError if some are missing."""
    *_, last = decisions(rows, settings)
    return last


def decisions(rows: Sequence[Row], settings: ControllerSettings) -> Iterator[NoiseDecision]:
    """Every decision of a run from its first epoch to the one after ``rows``; each sees the rows before it only.

    ValueError if the rows are not all epochs from the first (a history cut short is defect 2 of 5.9).
    """
    if rows and rows[-1]["epoch"] != len(rows):
        raise ValueError(f"{len(rows)} rows that end with epoch {rows[-1]['epoch']} are not a whole history")
    machine = MACHINES[settings.controller]
    last = NoiseDecision(0)
    for done in range(len(rows) + 1):
        last = machine(rows[:done], settings, last)
        yield last


# ---- the two machines: (rows, settings, the decision before) -> the next decision --------------------------------------


def _published(rows: Sequence[Row], settings: ControllerSettings, before: NoiseDecision) -> NoiseDecision:
    """Machine A. The cooldown's length follows the gradient norm's plateau, whatever the noise is."""
    nothing = NoiseDecision(len(rows) + 1)
    if before.cooldown:
        return replace(nothing, cooldown=before.cooldown - 1)
    raised = _raised(rows, settings)
    if not raised:
        return nothing
    noise, streak = _adaptive(rows, settings, raised), before.streak + 1
    if streak < settings.consecutive_flag_trigger:
        return replace(noise, streak=streak)
    return replace(noise, cooldown=_cooldown(settings, _stuckness("gradient", raised)))


def _documented(rows: Sequence[Row], settings: ControllerSettings, before: NoiseDecision) -> NoiseDecision:
    """Machine B. Static noise runs on in a cooldown, which is a pause of the flags; the cooldown's length follows the
    stuckness of the noise before it.

    ``patience`` is a wait of its own: it needs neither the streak nor ``flag_min_epochs``.
    """
    static = _static(rows, settings)
    if before.cooldown:
        return replace(static, cooldown=before.cooldown - 1)
    raised, impatient = _raised(rows, settings), _impatient(rows, settings)
    streak = before.streak + 1 if raised else 0
    if streak < settings.consecutive_flag_trigger and not impatient:
        return replace(static, reasons=raised, streak=streak)
    noise = _adaptive(rows, settings, raised + impatient)
    return replace(noise, cooldown=_cooldown(settings, noise.stuckness))


Machine = Callable[[Sequence[Row], ControllerSettings, NoiseDecision], NoiseDecision]
MACHINES: dict[Reading, Machine] = {"documented": _documented, "published": _published}


def _raised(rows: Sequence[Row], settings: ControllerSettings) -> tuple[Flag, ...]:
    if settings.disable_adaptive_flags:
        return ()
    return tuple(flag for flag in flags(rows, settings, settings.controller) if flag.fired)


def _impatient(rows: Sequence[Row], settings: ControllerSettings) -> tuple[Flag, ...]:
    """The flag of ``patience``, if noise is left to detectors and the training loss is stuck."""
    if settings.disable_adaptive_flags or not settings.noise_during_stuck_only:
        return ()
    flag = train_loss_stuck(rows, settings.patience)
    return (flag,) if flag is not None and flag.fired else ()


def _adaptive(rows: Sequence[Row], settings: ControllerSettings, raised: tuple[Flag, ...]) -> NoiseDecision:
    """Noise that these flags ask for; gradient noise wins where they ask for both."""
    target: Target = "weight" if {flag.name for flag in raised} <= AGAINST_WEIGHTS else "gradient"
    stuck = _stuckness(target, raised)
    low, high = settings.relative_min_noise, settings.relative_max_noise
    sigma = adaptive_sigma(stuck, low, high, len(rows), settings.epochs)
    return NoiseDecision(len(rows) + 1, target, sigma, raised, stuck)


def _static(rows: Sequence[Row], settings: ControllerSettings) -> NoiseDecision:
    """Noise between the flags: none if there is no ``noise_type``, or if noise is left to flags that are looked at."""
    left_to_flags = settings.noise_during_stuck_only and not settings.disable_adaptive_flags
    if settings.noise_type == "none" or left_to_flags:
        return NoiseDecision(len(rows) + 1)
    sigma = static_sigma(settings.noise_schedule, settings.noise_magnitude, len(rows), settings.epochs)
    return NoiseDecision(len(rows) + 1, settings.noise_type, sigma)


def _stuckness(target: Target, raised: tuple[Flag, ...]) -> float:
    """From the plateau that measures it for this target (5.6), 0.5 where that flag is not raised."""
    for flag in raised:
        if flag.name == MEASURES[target]:
            return stuckness(flag.value, flag.threshold)
    return UNMEASURED


def _cooldown(settings: ControllerSettings, stuck: float) -> int:
    return cooldown_epochs(stuck, settings.min_cooldown_epochs, settings.max_cooldown_epochs)
