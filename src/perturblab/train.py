"""Training is a generator: ``for epoch in fit(...)``, and the study's own loop body measures and logs.

    for epoch in fit(run, model, objective, source, recipe, stop):
        run.log(kind="epoch", epoch=epoch.number, **epoch.means, test_acc=...)

``fit`` writes its checkpoint before it yields. Between epochs the only memory is the rows: a resumed run drops the
rows of the checkpoint's epoch and later and yields that epoch again, so a kill at any moment changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from perturblab.hardware import autocast
from perturblab.images import Batch, Source
from perturblab.objectives import Clock, Loss, Objective
from perturblab.perturb.clean import EpochUpdate, estimate_statistics, gradient_norm
from perturblab.perturb.noise import Dose, NoNoise
from perturblab.runs import Diverged, Row, RunFolder
from perturblab.schedules import Schedule
from perturblab.signals import StopFlag
from perturblab.sites import SteppedModel
from perturblab.state import Best, State
from perturblab.streams import seeded
from perturblab.terminal import Progress, UserError, progress

NEVER = 2**62  # "first step with a loss that is not finite" when there was none


@dataclass(frozen=True)
class Recipe:
    """How to train: ``epochs`` at most, ``optimizer(parameters)``, learning rate ``lr(clock)``, forward precision,
    ``compile`` (True or a mode of torch.compile: "reduce-overhead" records CUDA graphs).

    ``checkpoint_every_s``: an epoch that ends sooner than this after the last checkpoint is not checkpointed (the
    last epoch always is), and a longer one is in its middle; it bounds the work that a kill can lose.

    ``clip_norm``: gradients longer than this (all parameters together, L2) are scaled down to it, and the mean of
    their lengths before that is the part ``grad_norm``; 0 leaves them alone.

    ``watch``: measure what training does beside its noise: the part ``grad_norm`` (absent where the gradient is taken
    at noisy weights) and ``Epoch.update_norm``.
    """

    epochs: int
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    lr: Schedule
    seed: int = 0
    precision: str = "fp32"
    compile: bool | str = False
    checkpoint_every_s: float = 60.0
    clip_norm: float = 0.0
    watch: bool = False


@dataclass(frozen=True)
class Decision:
    """What the rows so far ask for: ``stop`` ends training before the next epoch, ``noise`` is that of its steps."""

    stop: bool = False
    reason: str = ""
    noise: Dose | None = None


@dataclass(frozen=True)
class Epoch:
    """A finished epoch: its ``number`` from 1, sample-weighted ``means`` of the objective's parts, the accuracy
    ``accuracy_online`` (fraction; training mode, augmented, before each step's update), learning rate, ``seconds``
    (its steps and its end; of one that was resumed the part before counts as much as that share of the epoch before).

    In mixed batches an image's first label counts its share, and its second the rest. ``update_norm``: L2 norm of how
    far the epoch moved all parameters, beside what noise added; None unless the recipe says ``watch``."""

    number: int
    means: dict[str, float]
    accuracy_online: float
    lr: float
    seconds: float
    update_norm: float | None = None


def go_on(rows: list[Row]) -> Decision:
    """Train for all epochs of the recipe."""
    return Decision()


def fit(
    run: RunFolder,
    model: SteppedModel,
    objective: Objective,
    source: Source,
    recipe: Recipe,
    stop: StopFlag | None = None,
    decide: Callable[[list[Row]], Decision] = go_on,
    best: Best | None = None,
    show: Progress = progress,
) -> Iterator[Epoch]:
    """Train ``model`` in place, from the run's latest checkpoint if there is one, and yield each finished epoch.

    ``decide(rows)`` is asked before each epoch, of one that is resumed in its middle again. ``show``: what a person sees.

    Raises Diverged when a loss or weight is not finite (the last good checkpoint stays), Interrupted after a signal
    (the state is saved), UserError when the folder cannot be written or its checkpoints are all damaged.
    """
    stop = StopFlag() if stop is None else stop  # a flag that is not raised is false
    return _Fit(run, model, objective, source, recipe, stop, decide, best or Best(), show).epochs()


class _Fit:
    """One call of ``fit``: the loop, and the little that its parts share."""

    def __init__(
        self,
        run: RunFolder,
        model: SteppedModel,
        objective: Objective,
        source: Source,
        recipe: Recipe,
        stop: StopFlag,
        decide: Callable[[list[Row]], Decision],
        best: Best,
        show: Progress,
    ) -> None:
        self.run, self.objective, self.source, self.recipe = run, objective, source, recipe
        self.stop, self.decide, self.show = stop, decide, show
        self.noise: Dose | NoNoise = NoNoise()
        self.note = "" if decide is go_on else "at most"  # beside the remaining time
        self.state = State(model, recipe.optimizer(model.parameters()), best)
        self.device = next(model.parameters()).device
        self.saved_at, self.saved = time.monotonic(), (0, 0)  # when, and which (epoch, step)
        mode = recipe.compile if isinstance(recipe.compile, str) else None
        self.compute = torch.compile(self._loss, mode=mode) if recipe.compile else self._loss
        has_dropout = any(isinstance(module, _DropoutNd) for module in model.modules())
        self.randomness = self._dropout_stream if has_dropout else lambda: nullcontext()

    def epochs(self) -> Iterator[Epoch]:
        steps = self.source.steps()
        self._resume()
        with self.show(self.run.path.name, self.recipe.epochs * steps, self._done(steps)) as advance:
            while self.state.epoch <= self.recipe.epochs:
                decision = self.decide(self.run.rows)
                if self.state.step == 0 and decision.stop:
                    return
                self.noise = decision.noise or NoNoise()
                began, first = time.monotonic(), self.state.step
                self._train_epoch(steps, advance)
                self._end_epoch()
                summary = self._summary(self._whole(time.monotonic() - began, first, steps))
                self.run.log_time(summary.number, summary.seconds)
                yield summary
                if self.stop or self.decide(self.run.rows).stop:  # only now known: the epoch may be the last
                    self._save()
                self.stop.check()
                self.state.start_epoch(self.state.epoch + 1)

    def _whole(self, seconds: float, first: int, steps: int) -> float:
        """Of an epoch resumed at step ``first``: its checkpoint holds no time, which would make its bytes differ."""
        times, epoch = self.run.timings() if first else {}, self.state.epoch
        if before := times.get(epoch) or times.get(epoch - 1):
            return seconds + float(before["seconds"]) * first / steps
        return seconds * steps / max(1, steps - first)

    def _resume(self) -> None:
        data = self.run.latest_checkpoint()
        if data is not None:
            try:
                self.state.load(data, self.device)
            except Exception as error:  # the bytes are those that were written: another model or format
                raise UserError(
                    f"the checkpoint in {self.run.path} does not fit this run ({first_line(error)}); "
                    "remove that folder to start anew"
                ) from None
            self.saved = (self.state.epoch, self.state.step)
        self.run.drop_rows_from(self.state.epoch)

    def _done(self, steps: int) -> int:
        return (self.state.epoch - 1) * steps + self.state.step

    def _train_epoch(self, steps: int, advance: Callable[..., None]) -> None:
        state = self.state
        state.model.train()
        if self.recipe.watch and state.update is None:
            state.update = EpochUpdate.of(state.model)
        for batch in self.source.epoch(state.epoch, first_step=state.step):
            self._train_step(batch, Clock(state.epoch, state.step, steps, self.recipe.epochs))
            state.step += 1
            advance(self._done(steps), self.note)
            if self.stop or (self._due() and state.step < steps):
                self._save()
                self.stop.check()

    def _train_step(self, batch: Batch, clock: Clock) -> None:
        """Batch, forward, backward, update: what happens to the weights happens here and nowhere else."""
        state, noise = self.state, self.noise
        for group in state.optimizer.param_groups:
            group["lr"] = self.recipe.lr(clock)
        batch = noise.batch(batch, clock)
        draws = self.objective.draw(batch, clock)
        state.optimizer.zero_grad(set_to_none=True)  # before the forward pass, which then has their memory
        with noise.weights(clock) as stays:
            with self.randomness(), autocast(self.recipe.precision, self.device):
                loss = self.compute(batch, draws)
            loss.total.backward()
        if state.update is not None:
            state.update.inject(stays)
        clean = self._clean_norm()
        noise.gradients(clock)
        state.optimizer.step()
        self._watch(loss.total, clock.step)
        online = {"accuracy_online": (_hits(loss.logits, batch), len(batch.labels))}
        state.add({**loss.parts, **clean, **noise.norms, **online})

    def _loss(self, batch: Batch, draws: dict[str, Tensor]) -> Loss:
        return self.objective(self.state.model, batch, draws)

    def _clean_norm(self) -> dict[str, tuple[Tensor, int]]:
        """The gradient's length before noise, and the gradient clipped, where the recipe asks for either."""
        parameters = self.state.model.parameters()
        if self.recipe.clip_norm:
            norm = clip_grad_norm_(parameters, self.recipe.clip_norm)
        elif self.recipe.watch and not self.noise.on_weights:
            norm = gradient_norm(parameters)
        else:
            return {}
        return {} if self.noise.on_weights else {"grad_norm": (norm, 1)}

    def _dropout_stream(self) -> AbstractContextManager[Any]:
        return seeded(self.recipe.seed, "dropout", self.state.epoch, self.state.step)

    def _watch(self, loss: Tensor, step: int) -> None:
        """Remember on the device the first step whose loss is not finite: reading it here would stall a GPU."""
        bad = torch.where(torch.isfinite(loss.detach()), NEVER, step)
        before = self.state.first_bad
        self.state.first_bad = bad if before is None else torch.minimum(before, bad)

    def _check_finite(self) -> None:
        bad = self.state.first_bad
        step = NEVER if bad is None else int(bad)
        if step < NEVER:
            self._diverged(f"the loss is not finite at epoch {self.state.epoch}, step {step + 1}")
        finite = [torch.isfinite(t).all() for t in self.state.model.state_dict().values()]
        if not torch.stack(finite).all():  # one look at a GPU, not one per tensor
            self._diverged(f"a weight or running statistic is not finite in epoch {self.state.epoch}")

    def _diverged(self, what: str) -> None:
        kept = self.run.checkpoints()
        less = "" if isinstance(self.noise, NoNoise) else ", or less noise"
        last = f"the last good state is {kept[-1]}" if kept else "no state was saved before it"
        raise Diverged(f"{what}: training diverged ({last}); try a lower learning rate{less}")

    def _due(self) -> bool:
        return time.monotonic() - self.saved_at >= self.recipe.checkpoint_every_s

    def _end_epoch(self) -> None:
        if self.noise.freezes_statistics:
            # By clean batches; again, with the same result, where an epoch is resumed at its end.
            with autocast(self.recipe.precision, self.device):
                estimate_statistics(self.state.model, self.source.epoch(self.state.epoch))
        self._check_finite()
        if self._due() or self.stop or self.state.epoch == self.recipe.epochs:
            self._save()

    def _save(self) -> None:
        at = (self.state.epoch, self.state.step)
        if at != self.saved:
            self._check_finite()
            self.run.save_checkpoint(*at, self.state.dump())
            self.saved_at, self.saved = time.monotonic(), at

    def _summary(self, seconds: float) -> Epoch:
        means = self.state.means()
        accuracy = means.pop("accuracy_online")
        lr, update = self.state.optimizer.param_groups[0]["lr"], self.state.update
        moved = None if update is None else float(update.norm(self.state.model))
        return Epoch(self.state.epoch, means, accuracy, lr, seconds, moved)


def _hits(logits: Tensor, batch: Batch) -> Tensor:
    """How many labels are predicted, 0-dim; of a mixed image its share of the first plus the rest of the second."""
    predicted = logits.argmax(1)
    correct = predicted == batch.labels
    if batch.mix is None:
        return correct.sum()
    second, share = batch.mix
    return (share * correct + (1 - share) * (predicted == second)).sum()


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
