"""Statistics against scipy and closed forms; tables and pictures against what a reader needs of them."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from perturblab.report.palette import FIXED, PALETTE, colours, shade
from perturblab.report.plots import Axis, Panel, by_rows, data_behind, line, picture, save
from perturblab.report.statistics import (
    _rank_interval,
    paired,
    rank_correlation,
    sign_flip_p,
    smallest_p,
    summarise,
    too_few,
)
from perturblab.report.tables import Table, as_text, csv_text, show, write_csv
from perturblab.terminal import UserError

percent = st.floats(-100, 100).map(lambda v: round(v, 2))
pairs = st.dictionaries(st.integers(0, 99), st.tuples(percent, percent), min_size=1, max_size=8)


def sides(both: dict[int, tuple[float, float]]) -> tuple[dict[int, float], dict[int, float]]:
    return {s: v[0] for s, v in both.items()}, {s: v[1] for s, v in both.items()}


# ---- statistics ------------------------------------------------------------------------------------------------


def test_mean_spread_and_interval_of_three_values_are_the_textbook_ones() -> None:
    s = summarise([1.0, 2.0, 3.0])
    assert (s.n, s.mean, s.sd) == (3, 2.0, 1.0)
    assert s.sd_population == pytest.approx(math.sqrt(2 / 3))
    half = 4.302652729911275 / math.sqrt(3)  # t table: 97.5 %, 2 degrees of freedom
    assert (s.ci_low, s.ci_high) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_one_value_has_no_spread_and_no_interval() -> None:
    s = summarise([91.5])
    assert (s.n, s.mean, s.sd, s.sd_population, s.ci_low, s.ci_high) == (1, 91.5, None, 0.0, None, None)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_values_or_values_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        summarise(values)


def test_paired_interval_is_that_of_scipys_paired_t_test() -> None:
    r = np.random.default_rng(1)
    a, b = r.normal(92, 1, 5), r.normal(91, 1, 5)
    ours = paired(dict(enumerate(a)), dict(enumerate(b)))
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (ours.ci_low, ours.ci_high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert ours.mean_difference == pytest.approx((a - b).mean())
    assert ours.sd == pytest.approx((a - b).std(ddof=1))


@pytest.mark.parametrize("n", [2, 3, 6, 11])
def test_paired_p_is_that_of_scipys_exact_permutation_test(n: int) -> None:
    d = np.random.default_rng(n).normal(0.5, 1, n)
    theirs = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(d) == pytest.approx(theirs.pvalue)


def test_on_signed_ranks_the_sign_flip_test_is_the_exact_wilcoxon_test() -> None:
    ranks = np.arange(1.0, 13.0) * np.resize([1, 1, -1, 1], 12)
    assert sign_flip_p(ranks) == pytest.approx(stats.wilcoxon(ranks, method="exact").pvalue)


def test_with_many_seeds_the_sampled_p_comes_close_to_the_exact_one_and_repeats_itself() -> None:
    ranks = np.arange(1.0, 21.0) * np.resize([1, 1, -1, 1], 20)
    exact = stats.wilcoxon(ranks, method="exact").pvalue
    error = math.sqrt(exact * (1 - exact) / 100_000)
    assert abs(sign_flip_p(ranks) - exact) < 4 * error
    assert sign_flip_p(ranks) == sign_flip_p(ranks)


def test_a_sampled_p_is_never_zero() -> None:
    assert sign_flip_p(np.full(40, 3.0)) == smallest_p(40) > 0


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (2, 0.5), (3, 0.25), (6, 1 / 32)])
def test_seeds_that_all_agree_reach_the_smallest_possible_p(n: int, p: float) -> None:
    result = paired({s: 10.0 + s for s in range(n)}, dict.fromkeys(range(n), 0.0))
    assert result.p_value == result.smallest_p == p


def test_equal_arms_have_p_one() -> None:
    result = paired({0: 91.2, 1: 90.8}, {0: 91.2, 1: 90.8})
    assert (result.mean_difference, result.sd, result.p_value) == (0, 0, 1)
    assert not result.excludes_zero


def test_only_common_seeds_are_compared_and_the_others_are_named() -> None:
    result = paired({0: 3.0, 1: 5.0, 7: 100.0}, {1: 4.0, 0: 1.0, 9: -100.0})
    assert (result.n, result.seeds, result.unmatched) == (2, (0, 1), (7, 9))
    assert result.mean_difference == 1.5


def test_arms_without_a_common_seed_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="no seed in common"):
        paired({0: 1.0}, {1: 1.0})


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_swapping_the_arms_turns_the_difference_round_and_keeps_p(
    both: dict[int, tuple[float, float]],
) -> None:
    a, b = sides(both)
    one, other = paired(a, b), paired(b, a)
    assert one.mean_difference == -other.mean_difference
    assert (one.sd, one.p_value) == (other.sd, other.p_value)


@settings(max_examples=50, deadline=None)
@given(pairs, st.integers(-50, 50))
def test_what_both_arms_gain_alike_changes_nothing(both: dict[int, tuple[float, float]], gain: int) -> None:
    a, b = sides(both)
    before = paired(a, b)
    after = paired({s: v + gain for s, v in a.items()}, {s: v + gain for s, v in b.items()})
    assert after.mean_difference == pytest.approx(before.mean_difference, abs=1e-9)
    assert after.p_value == before.p_value


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_p_is_a_share_of_sign_patterns_and_never_below_the_smallest(
    both: dict[int, tuple[float, float]],
) -> None:
    result = paired(*sides(both))
    assert result.smallest_p <= result.p_value <= 1
    assert (result.p_value * 2**result.n).is_integer()


@settings(max_examples=50, deadline=None)
@given(pairs, st.randoms())
def test_the_order_of_the_seeds_does_not_matter(both: dict[int, tuple[float, float]], r: object) -> None:
    items = list(both.items())
    r.shuffle(items)  # type: ignore[attr-defined]
    assert paired(*sides(dict(items))) == paired(*sides(both))


def test_three_seeds_are_said_to_be_too_few_and_six_are_not() -> None:
    sentence = too_few(3)
    assert sentence is not None
    assert "3 paired seeds" in sentence
    assert "0.25" in sentence
    assert "6 seeds are the fewest" in sentence
    assert too_few(5) is not None
    assert too_few(6) is None


@pytest.mark.parametrize("n", [4, 6, 15])
def test_rank_correlation_and_its_p_are_scipys_also_with_ties(n: int) -> None:
    r = np.random.default_rng(n)
    x, y = r.integers(0, n, n).astype(float), r.normal(size=n)
    y[1] = y[0]
    ours = rank_correlation(x, y)
    assert ours.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    theirs = stats.permutation_test(
        (x,), lambda z: abs(stats.spearmanr(z, y).statistic), permutation_type="pairings",
        alternative="greater", n_resamples=1_500, rng=1, vectorized=False,
    )  # fmt: skip
    error = 0 if n < 8 else math.sqrt(theirs.pvalue * (1 - theirs.pvalue) / 1_500)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=4 * error + 1e-12)


def test_the_interval_of_a_rank_correlation_is_that_of_bonett_and_wright() -> None:
    """rho 0.6 of 15 points: z = 0.6931, standard error sqrt(1.18 / 12) = 0.3136."""
    x = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
    y = [8, 2, 3, 4, 5, 6, 7, 1, 9, 10, 11, 12, 13, 14, 15]
    y[9], y[14] = y[14], y[9]
    ours = rank_correlation(x, y)
    assert ours.rho == pytest.approx(1 - 6 * (2 * 49 + 2 * 25) / (15 * 224))
    assert ours.rho is not None
    se = math.sqrt((1 + ours.rho**2 / 2) / 12)
    z = math.atanh(ours.rho)
    assert (ours.ci_low, ours.ci_high) == (
        pytest.approx(math.tanh(z - 1.959964 * se), abs=1e-6),
        pytest.approx(math.tanh(z + 1.959964 * se), abs=1e-6),
    )


@pytest.mark.parametrize(("n", "rho"), [(5, 0.0), (5, 0.9), (15, 0.6)])
def test_the_interval_of_a_rank_correlation_covers_the_true_one(n: int, rho: float) -> None:
    """400 samples of normal points, whose Spearman correlation is 6/pi asin(r/2)."""
    r = np.random.default_rng(n)
    true, covered = 6 / math.pi * math.asin(rho / 2), 0
    for _ in range(400):
        x = r.normal(size=n)
        y = rho * x + math.sqrt(1 - rho**2) * r.normal(size=n)
        low, high = _rank_interval(float(stats.spearmanr(x, y).statistic), n)
        covered += low <= true <= high
    assert covered / 400 > 0.92


def test_five_architectures_in_perfect_order_have_an_honest_interval() -> None:
    ours = rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    assert (ours.rho, ours.ci_high, ours.p_value) == (1, 1, pytest.approx(2 / 120))
    assert ours.ci_low is not None
    assert 0 < ours.ci_low < 0.3
    falling = rank_correlation([1, 2, 3, 4, 5], [50, 40, 30, 20, 10])
    assert (falling.rho, falling.ci_low, falling.ci_high) == (-1, -1, -ours.ci_low)


def test_rank_correlation_of_groups_is_that_of_their_means() -> None:
    """Within an architecture the points rise, between architectures they fall."""
    x = [1.0, 2.0, 3.0, 11.0, 12.0, 21.0, 22.0, 31.0]
    y = [41.0, 42.0, 43.0, 31.0, 32.0, 21.0, 22.0, 11.0]
    names = ["vgg9"] * 3 + ["vgg11"] * 2 + ["vgg13"] * 2 + ["vgg16"]
    means = rank_correlation(x, y, names)
    assert means == rank_correlation([2.0, 11.5, 21.5, 31.0], [42.0, 31.5, 21.5, 11.0])
    assert (means.n, means.rho) == (4, -1)
    assert rank_correlation(x, y).rho != -1


def test_groups_of_equal_means_tie_however_many_points_they_have() -> None:
    same = rank_correlation([0.1] * 8, list(range(8)), ["a"] * 3 + ["b"] * 5)
    assert (same.n, same.rho) == (2, None)


def test_too_few_points_or_one_constant_side_give_no_interval_and_say_why() -> None:
    three = rank_correlation([1, 2, 3], [1, 3, 2])
    assert (three.n, three.rho, three.ci_low, three.ci_high, three.p_value) == (3, 0.5, None, None, 1)
    assert "3 points are fewer than 4" in three.reason
    constant = rank_correlation([1, 2, 3, 4, 5], [7, 7, 7, 7, 7])
    assert (constant.rho, constant.ci_low, constant.p_value) == (None, None, None)
    assert "does not vary" in constant.reason
    assert rank_correlation([], []).n == 0
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]).reason == ""


@pytest.mark.parametrize(
    ("x", "y", "groups"),
    [([1.0], [], None), ([1.0, 2.0], [1.0, math.nan], None), ([1.0, 2.0], [1.0, 2.0], ["a"])],
)
def test_points_that_do_not_match_or_are_not_finite_are_refused(x, y, groups) -> None:
    with pytest.raises(ValueError, match=r"finite|x, "):
        rank_correlation(x, y, groups)


# ---- tables ----------------------------------------------------------------------------------------------------

TABLE = Table("RESULTS", ("Arm", "Acc"), (("masked [hard]", "9.50"), ("b", "100.00")), ("n is 3.",))


def test_a_table_lines_up_text_on_the_left_and_numbers_on_the_right() -> None:
    lines = as_text(TABLE).splitlines()
    assert lines[0] == "RESULTS"
    assert lines[2] == "Arm               Acc"
    assert lines[4:6] == ["masked [hard]    9.50", "b              100.00"]
    assert lines[-1] == "n is 3."


def test_a_long_note_is_wrapped_and_loses_no_word() -> None:
    note = " ".join(f"word{i}" for i in range(60))
    text = as_text(Table("T", ("a",), (("x",),), (note,)), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert text.split()[-60:] == note.split()


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Table("T", ("a", "b"), (("1",),))


@pytest.mark.parametrize("terminal", [True, False])
def test_show_prints_every_cell_and_note_on_a_terminal_and_in_a_file(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "80")
    show(TABLE)
    printed = capsys.readouterr().out
    for words in ("RESULTS", "Arm", "masked [hard]", "9.50", "100.00", "n is 3."):
        assert words in printed


def test_csv_keeps_every_digit_quotes_what_needs_it_and_leaves_gaps_empty() -> None:
    text = csv_text(["a", "b,c"], [[0.1 + 0.2, 'say "x", y'], [None, 3]])
    back = list(csv.reader(io.StringIO(text)))
    assert back == [["a", "b,c"], ["0.30000000000000004", 'say "x", y'], ["", "3"]]
    assert "\r" not in text


def test_a_csv_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write"):
        write_csv(tmp_path / "taken" / "x.csv", ["a"], [[1]])
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


# ---- pictures --------------------------------------------------------------------------------------------------

EPOCHS = Axis("epoch", "accuracy (%)", whole=True)


def curves(seeds: int, length: int) -> dict[int, tuple[list[int], np.ndarray]]:
    return {s: (list(range(1, length + 1)), np.arange(length) + 10.0 * s) for s in range(seeds)}


def panel(title: str, names: list[str], seeds: int = 3, length: int = 20) -> Panel:
    drawn = [line(name, curves(seeds, length)) for name in names]
    return Panel(title, tuple(one for one in drawn if one))


def test_runs_of_unequal_length_are_padded_and_the_mean_ends_with_the_shortest() -> None:
    one = line("masked", {0: ([1, 2, 3], [1.0, 2.0, 3.0]), 1: ([1, 2], [3.0, 4.0])})
    assert one is not None
    np.testing.assert_array_equal(one.x, [1, 2, 3])
    np.testing.assert_array_equal(one.y, [[1, 2, 3], [3, 4, np.nan]])
    np.testing.assert_array_equal(one.mean, [2, 3, np.nan])
    np.testing.assert_array_equal(one.sd, [1, 1, np.nan])  # population: half the distance of two values


def test_epochs_that_no_run_measured_are_not_drawn() -> None:
    one = line("masked", {0: ([1, 2, 3], [5.0, math.nan, 7.0])})
    assert one is not None
    np.testing.assert_array_equal(one.x, [1, 3])


def test_curves_without_any_value_make_no_line() -> None:
    assert line("masked", {0: ([1, 2], [math.nan, math.nan]), 1: ([], [])}) is None


def test_an_architecture_keeps_its_colour_whatever_is_drawn_beside_it() -> None:
    assert colours(["vgg19"]) == {"vgg19": FIXED["vgg19"]}
    assert colours(["vgg11", "vgg13", "vgg16", "vgg19"])["vgg19"] == FIXED["vgg19"]


def test_unknown_architectures_get_colours_of_their_own_and_any_number_of_them_works() -> None:
    some = colours(["vgg11", "mine", "yours"])
    assert len(set(some.values())) == 3
    many = colours([f"net{i}" for i in range(30)])
    assert set(many.values()) == set(PALETTE)


def test_shades_of_a_colour_lie_between_it_and_black_or_white() -> None:
    assert shade("#808080", 0) == pytest.approx((128 / 255,) * 3)
    assert shade("#808080", -1) == (0, 0, 0)
    assert shade("#808080", 1) == (1, 1, 1)


def test_a_picture_is_saved_with_its_numbers_at_the_resolution_asked_for(tmp_path: Path) -> None:
    panels = [panel("vgg11", ["baseline"])]
    path = save(picture("T", panels, EPOCHS), panels, tmp_path / "new" / "p.png", dpi=50)
    png = path.read_bytes()
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == round(6.8 * 50)  # width in the PNG header
    rows = list(csv.DictReader(io.StringIO(path.with_suffix(".csv").read_text())))
    assert len(rows) == 20
    third = rows[2]
    assert (third["panel"], third["line"], third["x"], third["n"]) == ("vgg11", "baseline", "3.0", "3")
    assert [float(third[f"seed{s}"]) for s in range(3)] == [2.0, 12.0, 22.0]
    assert float(third["mean"]) == 12.0
    assert float(third["std_population"]) == pytest.approx(math.sqrt(200 / 3))


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    panels = [panel("vgg11", ["baseline", "masked"])]
    files = [save(picture("T", panels, EPOCHS), panels, tmp_path / f"{i}.png", dpi=40) for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].with_suffix(".csv").read_bytes() == files[1].with_suffix(".csv").read_bytes()


def test_where_a_seed_is_missing_the_csv_says_how_many_there_were() -> None:
    one = line("masked", {4: ([1, 2], [1.0, 2.0]), 7: ([1], [3.0])})
    assert one is not None
    columns, rows = data_behind([Panel("vgg11", (one,))])
    assert columns[3:] == ["n", "mean", "std_population", "seed4", "seed7"]
    assert rows[0][3:] == [2, 2.0, 1.0, 1.0, 3.0]
    assert rows[1][3:] == [1, None, None, 2.0, None]


def test_the_number_of_seeds_is_always_told_and_a_single_one_is_called_so() -> None:
    assert panel("vgg11", ["baseline", "masked"]).heading == "vgg11, n=3 seeds"
    assert panel("vgg11", ["baseline"], seeds=1).heading == "vgg11, single seed"
    unlike = Panel("vgg11", (*panel("", ["baseline"]).lines, *panel("", ["masked"], seeds=1).lines))
    assert unlike.heading == "vgg11"
    assert unlike.labels == ["baseline (n=3 seeds)", "masked (single seed)"]


@pytest.mark.parametrize("length", [1, 2, 12])
def test_epochs_have_ticks_at_whole_numbers_only(length: int) -> None:
    panels = [panel("vgg11", ["baseline"], length=length)]
    figure = picture("T", panels, EPOCHS)
    figure.draw_without_rendering()
    ticks = figure.axes[0].get_xticks()
    assert len(ticks)
    np.testing.assert_array_equal(ticks, np.round(ticks))


LONG = "masked (epochs=500, batch_size=64, n_masks=5, lambda_max=0.5, clamp=rescale)"


@pytest.mark.parametrize(
    "panels",
    [
        [panel("vgg11", ["baseline", "masked", "half-loss"])],
        [panel(f"vgg{n}", ["baseline", "masked", "half-loss"]) for n in (11, 13, 16, 19)],
        [
            panel("net", ["baseline"]),
            panel("vgg11", ["baseline", LONG, LONG.replace("500", "20"), "half-loss"]),
        ],
        [panel(f"vgg11 {LONG}", ["L_full", "L_masked_avg", "L_total"]) for _ in range(3)],
        [panel(f"net{n}", ["baseline"]) for n in range(5)],
        [panel("MI", [f"vgg{n}" for n in (9, 11, 13, 16, 19)]) for _ in range(2)],
    ],
    ids=["one", "four", "variants", "long headings", "five", "five lines"],
)
def test_no_legend_or_label_covers_data_or_another_or_is_cut_off(panels: list[Panel]) -> None:
    figure = picture("A title", panels, EPOCHS)
    figure.draw_without_rendering()
    boxes = _boxes(figure)
    for (a, one), (b, other) in combinations(boxes.items(), 2):
        assert not one.overlaps(other), f"{a} covers {b}"
    for name, box in boxes.items():
        inside = figure.bbox.padded(1)
        assert inside.contains(*box.min), f"{name} is cut off"
        assert inside.contains(*box.max), f"{name} is cut off"


def _boxes(figure: Figure) -> dict[str, object]:
    """Where the axes, legends, labels and titles of a drawn figure stand, in pixels."""
    boxes = {"title": figure._suptitle.get_window_extent()}  # type: ignore[attr-defined]
    for i, axes in enumerate(a for a in figure.axes if a.axison):
        boxes[f"axes {i}"] = axes.get_window_extent().shrunk(0.99, 0.99)
        boxes[f"legend {i}"] = axes.get_legend().get_window_extent()
        for label in (axes.xaxis.label, axes.yaxis.label):
            if label.get_text():
                boxes[f"{label.get_text()} {i}"] = label.get_window_extent()
    return boxes


def test_reports_need_neither_torch_nor_pyplots_global_state() -> None:
    code = (
        "import sys, perturblab.report.plots, perturblab.report.statistics, perturblab.report.tables;"
        "print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_legend_of_several_rows_is_read_row_by_row() -> None:
    figure = Figure()
    axes = figure.subplots()
    for name in "12345":
        axes.plot([0, 1], [0, 1], label=name)
    legend = axes.legend(*by_rows(axes, 4), ncols=4)
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in legend.get_texts()}
    down_then_right = sorted(boxes, key=lambda name: (-round(boxes[name].y0), boxes[name].x0))
    assert down_then_right == list("12345")
