"""From the rows of a run to the noise of its next epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from perturblab.perturb.controller import ControllerSettings, NoiseDecision, decide, decisions
from perturblab.perturb.detectors import Flag, flags, train_loss_stuck
from perturblab.perturb.noise import Dose, Noise, NoiseSpec
from perturblab.runs import Row
from perturblab.sites import SteppedModel
from perturblab.studies.adaptive_noise import Train
from perturblab.terminal import UserError
from perturblab.train import Decision


def controller_of(s: Train) -> ControllerSettings:
    """The settings that decide about noise. UserError where they contradict each other."""
    try:
        return ControllerSettings(**{f.name: getattr(s, f.name) for f in fields(ControllerSettings)})
    except ValueError as error:
        raise UserError(str(error)) from None


def epochs_of(rows: Sequence[Row]) -> list[Row]:
    """The rows that are epochs: what detectors see."""
    return [row for row in rows if row["kind"] == "epoch"]


def next_noise(control: ControllerSettings, rows: Sequence[Row]) -> NoiseDecision:
    """What the epoch after these rows gets. UserError where they are not all epochs so far."""
    try:
        return decide(epochs_of(rows), control)
    except ValueError as error:
        raise UserError(
            f"rows.jsonl of this run is damaged ({error}); remove the run's folder and start it again"
        ) from None


class Doses:
    """Noise for ``fit``, its buffers made when a target is first asked for.

    UserError for a layer that no parameter's name contains.
    """

    def __init__(self, s: Train, control: ControllerSettings, model: SteppedModel, classes: int) -> None:
        self.s, self.control, self.model, self.classes = s, control, model, classes
        self._made: dict[str, Noise] = {}
        try:
            self._noise("input")  # holds no buffer, and knows the layers
        except ValueError as error:
            raise UserError(f"--noise-layer: {error}") from None

    def __call__(self, rows: list[Row]) -> Decision:
        due = next_noise(self.control, rows)
        return Decision(noise=due.target and Dose(self._noise(due.target), due.sigma))

    def _noise(self, target: str) -> Noise:
        s = self.s
        if target not in self._made:
            spec = NoiseSpec(
                target, s.noise_distribution, s.noise_scale, s.noise_layer, s.permanent, s.noise_include_bn,
                s.noise_include_bias,
            )  # fmt: skip
            self._made[target] = Noise(self.model, spec, seed=s.seed, classes=self.classes)
        return self._made[target]


# ---- the event log ---------------------------------------------------------------------------------------------------


def timeline(control: ControllerSettings, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each epoch of the rows what the controller saw before it and decided, as it stands in the files."""
    epochs = epochs_of(rows)
    events, cooldown = [], 0
    for done, decision in zip(range(len(epochs)), decisions(epochs, control), strict=False):
        cooling, cooldown = cooldown > 0, decision.cooldown
        seen = [] if cooling else measured(control, epochs[:done])
        events.append({
            "epoch": decision.epoch, "target": decision.target, "sigma": decision.sigma, "cause": cause(decision),
            "stuckness": decision.stuckness, "streak": decision.streak, "cooldown": decision.cooldown, "cooling": cooling,
            "flags": [{"name": f.name, "fired": f.fired, "value": f.value, "threshold": f.threshold} for f in seen],
        })  # fmt: skip
    return events


def cause(decision: NoiseDecision) -> str | None:
    """Why there is noise: its flags, or because it is static. Only adaptive noise follows a stuckness."""
    if decision.target is None:
        return None
    return "flags" if decision.stuckness > 0 else "static"


def measured(control: ControllerSettings, epochs: Sequence[Row]) -> list[Flag]:
    """Every flag that can be measured after these epochs, raised or not."""
    if control.disable_adaptive_flags:
        return []
    found = flags(epochs, control, control.controller)
    if control.controller == "documented" and control.noise_during_stuck_only:
        stuck = train_loss_stuck(epochs, control.patience)
        found = [*found, *([stuck] if stuck else [])]
    return found
