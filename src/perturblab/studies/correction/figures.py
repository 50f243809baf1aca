"""The pictures of correction, drawn from the records of its experiments; beside each PNG its numbers as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure as Canvas

from perturblab.report import palette, plots
from perturblab.report.plots import Axis, Curve, Line, Panel, line
from perturblab.report.tables import write_csv
from perturblab.studies.correction.curves import ARMS, LOSSES, SEEN, Drawn, accuracy, joined, result, save
from perturblab.studies.correction.lambda_figures import lambdas
from perturblab.studies.correction.rates import rate_marks
from perturblab.studies.correction.summary import Record, Stage, best, done, main_cells

# ---- stage 1 ---------------------------------------------------------------------------------------------------------


def overfit(stage: Stage, folder: Path) -> list[Drawn]:
    """Training loss by epoch, total and by group, a panel per loss."""
    panels = []
    for loss in dict.fromkeys(cell["loss_type"] for cell in main_cells(stage)):
        cells = [cell for cell in main_cells(stage) if cell["loss_type"] == loss and cell["history"]["epoch"]]
        lines = [_history(name, cells, key, colour) for key, (name, colour) in LOSSES.items()]
        panels.append(Panel(loss, tuple(one for one in lines if one)))
    axis = Axis("Epoch", "Training loss (nats)", log=True, whole=True)
    caption = "Training loss by epoch. Nothing is learnt by heart where it does not fall."
    return [
        save(
            "Overfit test: does the training loop learn a hundred images?",
            panels,
            axis,
            folder / "overfit_test.png",
            caption,
        )
    ]


def _history(
    name: str, cells: Sequence[Record], key: str, colour: palette.Colour, dash: plots.Dash = "-"
) -> Line | None:
    curves: dict[int, Curve] = {c["seed"] or 0: (c["history"]["epoch"], c["history"][key]) for c in cells}
    return line(name, curves, colour=colour, dash=dash)


# ---- stage 2 ---------------------------------------------------------------------------------------------------------


def rates(stage: Stage, folder: Path) -> list[Drawn]:
    """Best validation loss against the learning rate, marked; and how the loss fell at each rate."""
    marks = [(cell, mark) for cell, mark in rate_marks(stage) if cell["status"] == "done"]
    if not marks:
        return []
    lines = joined(
        "learning rates",
        [cell for cell, _ in marks],
        "learning_rate",
        partial(result, key="best_val_loss"),
        colour="0.6",
    )
    looks = {
        "best": (palette.GREEN, "*"),
        "diverging": (palette.VERMILION, "X"),
        "too slow": (palette.BLUE, "v"),
    }
    for mark, (colour, marker) in looks.items():
        for one in joined(
            mark,
            [cell for cell, m in marks if m == mark],
            "learning_rate",
            partial(result, key="best_val_loss"),
            colour=colour,
            marker=marker,
        ):
            lines.append(Line(one.name, one.x, one.y, one.seeds, colour, "none", marker, 11.0))
    panels = [Panel("", tuple(lines), counted=False)]
    axis = Axis("Learning rate", "Lowest validation loss (nats)", log=True, log_x=True)
    caption = "Lowest validation loss by learning rate. 0.69 nats is guessing; diverging rates never do better, or rise again."
    first = save("Which learning rate?", panels, axis, folder / "lr_search.png", caption)
    return [first, _falling(marks, folder)]


def _falling(marks: Sequence[tuple[Record, str]], folder: Path) -> Drawn:
    tried = sorted({cell["learning_rate"] for cell, _ in marks})
    lines = []
    for number, rate in enumerate(tried):
        colour = palette.shade(palette.BLUE, 0.7 - 1.3 * number / max(1, len(tried) - 1))
        lines.append(
            _history(f"{rate:g}", [c for c, _ in marks if c["learning_rate"] == rate], "val_loss", colour)
        )
    panels = [Panel("learning rate", tuple(one for one in lines if one), counted=False)]
    axis = Axis("Epoch", "Validation loss (nats)", log=True, whole=True)
    caption = "Validation loss by epoch; darker is a higher learning rate."
    return save("How the loss falls at each learning rate", panels, axis, folder / "lr_curves.png", caption)


# ---- stage 4 ---------------------------------------------------------------------------------------------------------


def pools(stage: Stage, folder: Path) -> list[Drawn]:
    """Test accuracy against the number of corrected images, on plain digits and with the dot on the zeros."""
    cells, panels = done(main_cells(stage)), []
    for key, name in (
        ("accuracy_original", "plain digits"),
        ("accuracy_toggled", "dots on 0s instead of 8s"),
    ):
        lines: list[Line] = []
        for number, (arm, group) in enumerate(_arms(cells).items()):
            dash = ("-", (0, (5, 1.6)), (0, (1, 1.4)), (0, (4, 1, 1, 1)))[number % 4]
            for one in joined(arm, group, "user_corrected_pool_size", partial(accuracy, key=key)):
                lines.append(
                    Line(
                        one.name,
                        one.x,
                        one.y,
                        one.seeds,
                        ARMS[group[0]["loss_type"]],
                        dash,
                        ("o", "s", "^", "D")[number % 4],
                    )
                )
        panels.append(Panel(name, tuple(lines)))
    if not panels[0].lines:
        return []
    axis = Axis("Corrected 8s in the pool", "Test accuracy (%)", ylim=(0, 102), log_x=True)
    caption = "Test accuracy by pool size. Right: the dots moved to the 0s, which a network that sees the shape does not mind."
    return [
        save(
            "How many corrected images, and which loss?",
            panels,
            axis,
            folder / f"{stage['experiment']}.png",
            caption,
        )
    ]


def _arms(cells: Sequence[Record]) -> dict[str, list[Record]]:
    """Cells by loss, learning rate and lambda, as far as these vary."""
    several = len({cell["learning_rate"] for cell in cells}) > 1
    arms: dict[str, list[Record]] = {}
    for cell in cells:
        name = cell["loss_type"] + (
            f", lambda {cell['lambda_weight']:g}" if cell["loss_type"] == "balanced" else ""
        )
        arms.setdefault(name + (f", rate {cell['learning_rate']:g}" if several else ""), []).append(cell)
    return arms


def reliance(stage: Stage, folder: Path) -> list[Drawn]:
    """Accuracy on the four test sets before correction and after it, with each loss's best run."""
    bars = reliance_rows(stage)
    if not bars:
        return []
    with style.context(plots.LOOK):
        figure = Canvas(figsize=(6.8, 3.6), layout="constrained")
        axes = figure.subplots()
        for i, (name, found) in enumerate(bars.items()):
            x = np.arange(len(SEEN)) + (i - (len(bars) - 1) / 2) * 0.27
            heights = [100 * found[key] for key in SEEN]
            colour = ("0.6", palette.BLUE, palette.VERMILION)[i if name != "imbalanced" else 2]
            axes.bar_label(axes.bar(x, heights, 0.25, color=colour, label=name), fmt="%.0f", fontsize=8)
        axes.set_xticks(range(len(SEEN)), list(SEEN.values()))
        axes.set_ylabel("Test accuracy (%)")
        axes.set_ylim(0, 108)
        axes.grid(axis="x", visible=False)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3)
        figure.suptitle(
            "Does the network still follow the dot?", fontsize=12, x=0.01, horizontalalignment="left"
        )
    path = folder / "reliance.png"
    plots.write_png(figure, path, dpi=200)
    write_csv(path.with_suffix(".csv"), ["network", *SEEN, "flip_rate", "worst_group_accuracy"],
              [[name, *(found[key] for key in (*SEEN, "flip_rate", "worst_group_accuracy"))] for name, found in bars.items()])  # fmt: skip
    return [
        Drawn(
            path,
            "Accuracy on the same test digits without dots, with dots on the 8s as in training, on the 0s, and on both.",
        )
    ]


def reliance_rows(stage: Stage) -> dict[str, Record]:
    """``before``, and each loss's best run by validation."""
    cells = done(main_cells(stage))
    tops = {loss: best([c for c in cells if c["loss_type"] == loss]) for loss in ARMS}
    found = {loss: top["result"]["reliance"] for loss, top in tops.items() if top}
    return {"before": cells[0]["result"]["before"]["reliance"], **found} if cells else {}


FIGURES: dict[str, Callable[[Stage, Path], list[Drawn]]] = {
    "overfit_test": overfit,
    "lr_search": rates,
    "lambda_search": lambdas,
    "full_grid_search": pools,
    "pool_search": pools,
}
