"""lr_schedule.png: the learning rate of every step of a run, before it is trained (``--visualize-lr``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from perturblab.objectives import Clock
from perturblab.report.palette import BLUE
from perturblab.report.plots import LOOK, Floats, write_png
from perturblab.report.tables import write_csv
from perturblab.schedules import cosine_decaying_restarts
from perturblab.studies.adaptive_noise import Train

TOLD = 14  # restarts, at most, whose rate stands beside them


def lr_schedule(s: Train, path: Path, steps: int) -> None:
    """Draw the run's learning rates with ``steps`` per epoch into ``path`` (PNG), and write them beside it (.csv).

    UserError if the folder is not writable.
    """
    rates = rates_of(s, steps)
    write_png(_picture(s, rates, steps), path)
    rows = ([i // steps + 1, i % steps, float(rate)] for i, rate in enumerate(rates))
    write_csv(path.with_suffix(".csv"), ["epoch", "step", "learning_rate"], rows)


def rates_of(s: Train, steps: int) -> Floats:
    """``[epochs * steps]``."""
    rate = cosine_decaying_restarts(s.lr, s.lr_restart_period, final_max=s.lr_final_max)
    clocks = (
        Clock(epoch, step, steps, s.epochs) for epoch in range(1, s.epochs + 1) for step in range(steps)
    )
    return np.array([rate(clock) for clock in clocks])


def _picture(s: Train, rates: Floats, steps: int) -> Figure:
    """Against finished epochs; restarts with the rate that they begin at."""
    done = np.arange(rates.size) / steps
    restarts = range(s.lr_restart_period, s.epochs, s.lr_restart_period)
    with style.context(LOOK):
        figure = Figure(figsize=(8.0, 3.6), layout="constrained")
        axes = figure.subplots()
        for epoch in restarts:
            axes.axvline(epoch, color="0.6", linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
        axes.plot(done, rates, color=BLUE, linewidth=1.5, zorder=3)
        starts = [0, *restarts]
        axes.plot(
            starts,
            rates[np.array(starts) * steps],
            color=BLUE,
            linestyle="none",
            marker="o",
            markersize=5,
            zorder=4,
        )
        for epoch in starts if len(starts) <= TOLD else []:
            axes.annotate(
                f"{rates[epoch * steps]:.3g}",
                (epoch, rates[epoch * steps]),
                (5, 3),
                textcoords="offset points",
                fontsize=8.5,
            )
        axes.set_xlim(-0.01 * s.epochs, s.epochs)
        axes.set_ylim(0, 1.1 * float(rates.max()))
        axes.set_xlabel(f"finished epochs ({steps} steps each)")
        axes.set_ylabel("learning rate")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_title(_title(s, len(restarts)), loc="left", fontsize=12)
    return figure


def _title(s: Train, restarts: int) -> str:
    count = "no restart" if not restarts else "1 restart" if restarts == 1 else f"{restarts} restarts"
    return f"Learning rate, {s.classifier}, {s.optimizer}: {count}"
