"""Pictures of runs as points, and which runs may be averaged."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perturblab.report.groups import alike, differing, refuse_twins, warn_of_mixtures
from perturblab.report.plots import Axis
from perturblab.report.scatter import Cloud, save, scatter
from perturblab.terminal import UserError

AXIS = Axis("gap (points)", "information (nats)")


def cloud(name: str, n: int, at: float = 0.0) -> Cloud:
    return Cloud(name, np.arange(n) + at, np.arange(n) * 2.0 + at, tuple(range(n)))


def test_several_seeds_have_a_star_at_their_mean_and_a_single_one_says_so() -> None:
    figure = scatter("T", [cloud("vgg9", 3), cloud("vgg11", 1, at=5.0)], AXIS)
    dots, star, single = figure.axes[0].lines
    assert (star.get_xdata(), star.get_ydata()) == (1.0, 2.0)
    assert star.get_marker() == "*"
    np.testing.assert_array_equal(dots.get_xdata(), [0, 1, 2])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [
        "vgg9 (n=3)", "vgg11 (single seed)",
    ]  # fmt: skip
    assert single.get_label() == "vgg11 (single seed)"


@pytest.mark.parametrize(
    "names", [["vgg9"], ["vgg9", "vgg11", "vgg13", "vgg16", "vgg19"], ["x" * 60] * 2, ["a b " * 50]]
)
def test_the_legend_stays_inside_the_picture_and_does_not_squeeze_the_axes(names: list[str]) -> None:
    figure = scatter("T", [cloud(name, 2, at=i) for i, name in enumerate(names)], AXIS, ["a note " * 40])
    figure.draw_without_rendering()
    width = figure.bbox.width
    assert figure.axes[0].get_legend().get_window_extent().x1 <= width
    assert figure.axes[0].get_window_extent().width > 0.8 * width
    assert figure.axes[0].get_window_extent().height > 200


def test_the_points_stand_in_a_csv_beside_the_picture_with_their_seeds(tmp_path: Path) -> None:
    clouds = [cloud("vgg9", 2), cloud("vgg11", 1)]
    path = save(scatter("T", clouds, AXIS), clouds, AXIS, tmp_path / "p.png", dpi=40)
    assert path.read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader(path.with_suffix(".csv").read_text().splitlines()))
    assert rows == [
        ["group", "seed", "gap (points)", "information (nats)"],
        ["vgg9", "0", "0.0", "0.0"], ["vgg9", "1", "1.0", "2.0"], ["vgg11", "0", "0.0", "0.0"],
    ]  # fmt: skip


# ---- which runs may be averaged ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    arch: str
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    path: Path = Path("somewhere.json")

    @property
    def arm(self) -> tuple[str]:
        return (self.arch,)


def run(arch: str, seed: int, **settings: Any) -> Run:
    return Run(arch, seed, {"script": "perturblab", "lr": 0.1, "epochs": 3, "suffix": None, **settings})


KEYS = ("lr", "epochs", "suffix")


def test_runs_of_equal_settings_are_one_group_and_others_say_what_sets_them_apart() -> None:
    runs = [run("vgg9", 0), run("vgg11", 0), run("vgg9", 1, lr=0.2, suffix="_b"), run("vgg9", 1)]
    first, other, apart = alike(runs, KEYS)
    assert (first.runs, first.variant, first.order) == ((runs[0], runs[3]), "lr=0.1", 0)
    assert (apart.runs, apart.variant, apart.order) == ((runs[2],), "lr=0.2", 1)
    assert (other.runs, other.variant) == ((runs[1],), "")


def test_a_suffix_is_named_only_if_nothing_else_tells_runs_apart() -> None:
    one, other = run("vgg9", 0).settings, run("vgg9", 0, suffix="_b").settings
    assert differing([one, other], KEYS) == ["suffix"]
    assert differing([one, {**other, "epochs": 4}], KEYS) == ["epochs"]


def test_one_run_under_two_names_is_refused_and_mixed_settings_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match="same run"):
        refuse_twins(alike([run("vgg9", 0), run("vgg9", 0)], KEYS))
    refuse_twins(alike([run("vgg9", 0), run("vgg9", 1)], KEYS))
    warn_of_mixtures([run("vgg9", 0), run("vgg9", 1, lr=0.2), run("vgg11", 0)], KEYS)
    assert capsys.readouterr().err == "warning: vgg9: the runs differ in lr: 0.1, 0.2; they are kept apart\n"
