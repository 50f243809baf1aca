"""compare over real tiny runs: what differs, which runs are pairs, and numbers that SciPy gives too."""

import contextlib
import csv
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from conftest import Ended, Zygote, files_of, write_npz
from perturblab.files import sealed, write_json
from perturblab.gridcommands.pairing import Differences, Pairing, pair
from perturblab.gridcommands.results import results_of
from perturblab.gridcommands.sides import Finished, Side, measures
from perturblab.grids.asked import read
from perturblab.grids.cells import runs_of
from perturblab.report.findings import finding
from perturblab.report.statistics import holm, paired
from perturblab.runs import run_folder
from perturblab.studies import STUDIES
from perturblab.studies.masked_loss import Train
from test_rules import loaded_by

SEEDS = 3
KEYS = ("final_test_acc", "final_train_acc", "robustness.test_acc_intact")


def yaml_of(npz: Path, **changed: object) -> str:
    """A grid of runs of half a second, long enough that they differ."""
    fixed = {
        "dataset": f"npz:{npz}", "arch": "vgg11", "width": 0.05, "epochs": 3, "batch_size": 6, "robustness_masks": 0,
        "threads": 1, "device": "cpu", "lr": 0.05, "clamp": "rescale", "augment": "none",
    } | changed  # fmt: skip
    axes = {"mode": fixed.pop("mode", ["masked", "baseline"]), "seed": fixed.pop("seed", [0, 1, 2])}
    return json.dumps({"study": "masked-loss", "fixed": fixed, "axes": axes})


@pytest.fixture(scope="module")
def made(zygote: Zygote, npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two modes, two rates, three seeds; and one more seed of the masked ones. Nobody may change it."""
    folder = tmp_path_factory.mktemp("compared")
    write_npz(folder / "other.npz", seed=1)
    grids = {
        "masked.yaml": yaml_of(npz, mode="masked", seed=[0, 1, 2, 3]),
        "baseline.yaml": yaml_of(npz, mode="baseline"),
        "slow.yaml": yaml_of(npz, lr=0.01, seed=[0, 1]),
        "fast.yaml": yaml_of(npz),
        "other.yaml": yaml_of(folder / "other.npz", mode="baseline", seed=[0, 1], runs_dir="others"),
    }
    for name, text in grids.items():
        (folder / name).write_text(text)
    with contextlib.chdir(folder):
        asked = [
            runs_of(read(f"{name}.yaml", [], STUDIES)) for name in ("masked", "slow", "baseline", "other")
        ]
    for one in (run for runs in asked for run in runs.settings):
        ended = zygote.run(one.arguments(), folder)
        assert ended.code == 0, ended.output
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "here")
    return tmp_path / "here"


def compared(zygote: Zygote, folder: Path, *words: str) -> str:
    ended: Ended = zygote.run(["compare", *words], folder)
    assert ended.code == 0, ended.output
    return ended.output


def rows_of(output: str, title: str) -> dict[str, list[str]]:
    """The rows of a printed table by their first cell."""
    lines = output[output.index(title) :].splitlines()[4:]
    cells = [
        line.split("  ") for line in lines[: next(i for i, row in enumerate(lines) if row.startswith("---"))]
    ]
    return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in cells}


def state(folder: Path, name: str) -> Path:
    """The run folder of the grids with lr 0.05."""
    found = folder.glob(f"perturblab_runs/masked-loss/{name}-*/settings.json")
    (path,) = (path for path in found if json.loads(path.read_text())["lr"] == 0.05)
    return path.parent


def result(folder: Path, name: str, key: str) -> float:
    found = json.loads((state(folder, name) / "results.json").read_text())
    for part in key.split("."):
        found = found[part]
    return float(found)


def test_settings_that_differ_and_paired_numbers_are_those_of_scipy(
    made: Path, zygote: Zygote, tmp_path: Path
) -> None:
    before = files_of(made)
    out = compared(zygote, made, "masked.yaml", "baseline.yaml", "--output", str(tmp_path / "all.csv"))
    assert rows_of(out, "SETTINGS THAT DIFFER") == {
        "clamp": ["rescale", "no effect", "no"],
        "mode": ["masked", "baseline", "no"],
    }
    assert "A: masked.yaml: 4 runs done\nB: baseline.yaml: 3 runs done\n" in out
    assert "A: 1 without a partner: vgg11_masked_seed3-" in out
    assert "machine and data: the same on both sides" in out
    with open(tmp_path / "all.csv") as file:
        by_key = {row["number"]: row for row in csv.DictReader(file)}
    for key in KEYS[:2]:
        a, b = (
            [result(made, f"vgg11_{m}_seed{s}", key) for s in range(SEEDS)] for m in ("masked", "baseline")
        )
        t = stats.ttest_rel(a, b)
        row = by_key[key]
        assert float(row["mean_a"]) == pytest.approx(np.mean(a))
        assert float(row["mean_difference"]) == pytest.approx(np.mean(np.subtract(a, b)))
        interval = t.confidence_interval()
        assert [float(row["ci_low"]), float(row["ci_high"])] == pytest.approx([interval.low, interval.high])
        assert (row["n"], row["seeds"]) == ("3", "0 1 2")
    a, b = (
        [result(made, f"vgg11_{m}_seed{s}", KEYS[0]) for s in range(SEEDS)] for m in ("masked", "baseline")
    )
    flips = stats.permutation_test(
        (np.array(a), np.array(b)),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert float(by_key[KEYS[0]]["p_value"]) == pytest.approx(flips.pvalue)
    assert [row["number"] for row in by_key.values() if row["p_value"]] == [KEYS[0]], (
        "only the headline is tested"
    )
    shown = rows_of(out, "PAIRED RESULTS")["Test Acc (%)"]
    assert shown[:2] == [f"{np.mean(a):.2f}", f"{np.mean(b):.2f}"]
    assert "the smallest possible p is 0.25" in out
    assert files_of(made) == before, "compare writes nothing else"


def test_the_sides_may_be_folders_or_a_study_and_give_the_same(made: Path, zygote: Zygote) -> None:
    by_file = compared(zygote, made, "masked.yaml", "baseline.yaml")
    table = by_file[by_file.index("PAIRED") :]
    only = ["--set", "lr=5e-2", "--set-a", "mode=masked", "--set-b", "mode=baseline"]
    for word in ("perturblab_runs", "perturblab_runs/masked-loss"):
        assert table in compared(zygote, made, word, word, *only)


def test_runs_are_pairs_only_where_they_agree_in_all_that_does_not_set_the_sides_apart(
    made: Path, zygote: Zygote
) -> None:
    out = compared(zygote, made, "fast.yaml", "slow.yaml")
    assert rows_of(out, "SETTINGS THAT DIFFER") == {"lr": ["0.05", "0.01", "no"]}
    rows = rows_of(out, "PAIRED RESULTS: Test Acc")
    assert list(rows) == ["clamp rescale, mode masked", "mode baseline"]
    assert all(row[-3] == "2" for row in rows.values()), "two seeds each, not four runs thrown together"
    assert "Holm: corrected for 2 tests" in out


def test_a_setting_whose_values_overlap_is_matched_and_the_rest_is_named(made: Path, zygote: Zygote) -> None:
    out = compared(zygote, made, "fast.yaml", "slow.yaml", "--set-b", "mode=baseline")
    assert rows_of(out, "SETTINGS THAT DIFFER")["mode"] == ["masked, baseline", "baseline", "yes"]
    assert "A: 4 without a partner: vgg11_masked_seed0" in out
    assert rows_of(out, "PAIRED RESULTS")["Test Acc (%)"][-2] == "2"


def test_two_runs_give_a_difference_and_no_verdict(made: Path, zygote: Zygote) -> None:
    a, b = (state(made, f"vgg11_{mode}_seed1") for mode in ("masked", "baseline"))
    out = compared(zygote, made, str(a), str(b))
    row = rows_of(out, "PAIRED RESULTS")["Test Acc (%)"]
    difference = result(made, a.name[:-11], KEYS[0]) - result(made, b.name[:-11], KEYS[0])
    assert row[2:] == [f"{difference:+.2f}", "-", "1", "-"]
    assert "from a single seed nothing can be concluded" in out


def test_runs_on_other_images_are_no_pairs_and_it_is_said(made: Path, zygote: Zygote) -> None:
    out = compared(zygote, made, "masked.yaml", "other.yaml")
    assert "2 of equal settings and seed are no pairs: their images are not the same" in out
    assert "no pairs: no two runs agree" in out
    assert set(rows_of(out, "MACHINES AND DATA THAT DIFFER")) == {"data: train", "data: test"}
    assert "PAIRED RESULTS" not in out


def test_another_machine_is_told_and_its_copies_are_pairs(place: Path, zygote: Zygote) -> None:
    shutil.copytree(place / "perturblab_runs", place / "cluster")
    for path in place.glob("cluster/masked-loss/*/manifest.json"):
        write_json(path, sealed(json.loads(path.read_text().replace('"threads": 1', '"threads": 8'))))
    out = compared(zygote, place, "perturblab_runs", "cluster", "--set", "mode=baseline")
    assert rows_of(out, "MACHINES AND DATA THAT DIFFER") == {"threads": ["1", "8"]}
    assert "Equal settings do not give equal bits there" in out
    assert "settings: equal on both sides" in out
    assert "no difference at all, the 3 seeds are equal one by one" in out


def test_a_damaged_run_is_left_out_with_a_warning_and_one_that_is_not_done_is_counted(
    place: Path, zygote: Zygote
) -> None:
    damaged, gone = (state(place, f"vgg11_masked_seed{seed}") for seed in (0, 1))
    (damaged / "results.json").write_text((damaged / "results.json").read_text().replace("1", "2", 1))
    (gone / "results.json").unlink()
    out = compared(zygote, place, "masked.yaml", "baseline.yaml")
    assert f"warning: left out: perturblab_runs/masked-loss/{damaged.name}/results.json is damaged" in out
    assert "A: masked.yaml: 2 runs done; left out: 1 damaged, 1 interrupted" in out
    assert rows_of(out, "PAIRED RESULTS")["Test Acc (%)"][-2] == "1"


@pytest.mark.parametrize("broken", ["{", "[]", '{"arch": "vgg11"}', '{"lr": NaN}', "\x00", "{" * 50_000])
def test_settings_that_cannot_be_read_are_one_line(place: Path, zygote: Zygote, broken: str) -> None:
    run = state(place, "vgg11_masked_seed0")
    (run / "settings.json").write_text(broken)
    assert zygote.run(["compare", str(run), "baseline.yaml"], place).one_line
    assert "warning: left out" in compared(
        zygote, place, "perturblab_runs", "perturblab_runs", "--set-a", "lr=0.05", "--set-b", "lr=0.01"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("masked.yaml", "masked.yaml"), "are the same runs"),
        (("masked.yaml", "nowhere"), "'nowhere' is no study, no FILE.yaml and no folder with runs"),
        (("masked.yaml", "empty"), "empty holds no run of perturblab"),
        (("masked.yaml", "layerwise-mi"), "only runs of one study can be compared"),
        (("masked.yaml", "perturblab_runs", "--set-b", "arch=vgg19"), "perturblab_runs nothing"),
        (("masked.yaml", "baseline.yaml", "--set-a", "epochs=7"), "no run is done (4 missing)"),
        (("masked.yaml", "baseline.yaml", "--output", "all.txt"), "ends in .csv or .md"),
        (("masked.yaml", "perturblab_runs", "--set-b", "lrr=1"), "unknown setting 'lrr'; did you mean 'lr'?"),
        (("masked.yaml", "perturblab_runs", "--set-b", "lr"), "write NAME=VALUE"),
        (("masked.yaml",), "B"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_line(
    made: Path, zygote: Zygote, words: tuple[str, ...], told: str
) -> None:
    (made / "empty").mkdir(exist_ok=True)
    assert told in zygote.run(["compare", *words], made).one_line


def test_the_tables_can_be_written_as_markdown(made: Path, zygote: Zygote, tmp_path: Path) -> None:
    compared(zygote, made, "masked.yaml", "baseline.yaml", "--output", str(tmp_path / "it.md"))
    text = (tmp_path / "it.md").read_text()
    assert (
        "### SETTINGS THAT DIFFER\n\n| setting | A | B | equal in pairs |\n| --- | --- | --- | --- |\n"
        in text
    )
    assert "| mode | masked | baseline | no |" in text


def test_compare_loads_no_torch(made: Path) -> None:
    heavy, printed = loaded_by("compare masked.yaml baseline.yaml", folder=made)
    assert "torch" not in heavy
    assert printed > 500


def test_the_study_says_what_its_numbers_are_called_and_every_run_has_them(made: Path) -> None:
    from importlib import import_module

    for room in STUDIES.values():
        measures = import_module(room).GRID.measures
        assert measures, room
        assert "test" in measures[0].key


# ---- many comparisons ------------------------------------------------------------------------------------------------


def pairing_of(folder: Path, pairs: dict[str, int], weight_decay: Sequence[float] = (5e-4,)) -> Pairing:
    """Runs that nobody made, of so many seeds for each network; A has the higher accuracy in each pair."""

    def side(word: str, lr: float, more: float) -> Side:
        runs = [
            Train(arch=arch, mode="baseline", seed=seed, dataset="digits", lr=lr, weight_decay=decay)  # type: ignore[arg-type]
            for arch, n in pairs.items()
            for seed in range(n)
            for decay in weight_decay
        ]
        return Side(word, [
            Finished(run_folder(one, one.name, folder), {KEYS[0]: 50 + more * (1 + 0.01 * one.seed)}, {}, {})
            for one in runs
        ])  # fmt: skip

    return pair(side("A", 0.1, 5.0), side("B", 0.2, 0.0))


def test_a_comparison_is_decided_by_its_corrected_p_and_not_by_a_stricter_rule(tmp_path: Path) -> None:
    """Under Holm only the smallest p must be below 0.05 / 2: that of the 12 pairs is."""
    results = results_of(pairing_of(tmp_path, {"vgg11": 12, "vgg13": 6}), measures(Train))
    assert results.corrected == pytest.approx([2 * 2**-11, 2**-5])
    one, other = results.sentences()
    assert "vgg11" in one
    assert "a difference was seen (sign-flip test, p = 0.00098, corrected for 2 tests)" in one
    assert "vgg13" in other
    assert "a difference was seen (sign-flip test, p = 0.031, corrected for 2 tests)" in other
    (table,) = results.tables(every=False)
    assert not [note for note in table.notes if "smallest possible" in note]


def test_as_few_seeds_in_every_comparison_are_said_to_be_too_few_together(tmp_path: Path) -> None:
    results = results_of(pairing_of(tmp_path, {"vgg11": 6, "vgg13": 6, "vgg16": 1}), measures(Train))
    assert results.corrected == [pytest.approx(2**-4), pytest.approx(2**-4), None]
    (table,) = results.tables(every=False)
    told = "With 6 paired seeds the smallest possible p is 0.031, 0.062 when corrected for 2 tests"
    assert sum(told in note for note in table.notes) == 1
    assert [told in sentence for sentence in results.sentences()] == [True, True, False]
    results = results_of(pairing_of(tmp_path, {"vgg11": 6, "vgg16": 1}), measures(Train))
    (table,) = results.tables(every=False)
    assert any("Holm: corrected for 1 test." in note for note in table.notes)


def test_thousands_of_comparisons_do_not_look_at_all_runs_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, values = [0], Differences.values

    def counting(self: Differences, runs: Iterable[Finished], name: str) -> list[object]:
        looked[0] += 1
        return values(self, runs, name)

    monkeypatch.setattr(Differences, "values", counting)
    found = pairing_of(tmp_path, {"vgg11": 1}, [n / 1000 for n in range(1, 101)])
    assert len(found.comparisons) == 100
    assert looked[0] < 20, "6.2 s for 4,000 comparisons, if it were twice for each"


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_holm_rejects_exactly_what_its_procedure_rejects() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    random = np.random.default_rng(0)
    for _ in range(200):
        p = random.uniform(0, 0.1, random.integers(1, 8)).tolist()
        alpha = random.uniform(0.001, 0.2)
        rejected = [False] * len(p)
        for place, index in enumerate(np.argsort(p)):  # as Holm's paper has it, step by step
            if p[index] > alpha / (len(p) - place):
                break
            rejected[index] = True
        assert [q <= alpha for q in holm(p)] == rejected


def test_a_finding_says_no_more_than_the_test_after_correction() -> None:
    seen = paired({s: 1.0 + 0.1 * s for s in range(6)}, dict.fromkeys(range(6), 0.0))
    assert "a difference was seen (sign-flip test, p = 0.031)" in finding(seen, "points")
    assert (
        "undecided. With 6 paired seeds the smallest possible p is 0.031, 0.062 when corrected for 2 tests: no "
        "difference, however large, can be significant at 0.05; 7 seeds are the fewest that can."
    ) in finding(seen, "points", others=[0.5])
    assert "a difference was seen (sign-flip test, p = 0.031, corrected for 2 tests)" in finding(
        seen, "points", others=[0.001]
    )
    few = paired({s: 1.0 + 0.1 * s for s in range(3)}, dict.fromkeys(range(3), 0.0))
    assert "undecided. With 3 paired seeds the smallest possible p is 0.25" in finding(few, "points")
    none = paired({0: 1.0, 1: -1.0, 2: 0.3}, dict.fromkeys(range(3), 0.0))
    assert "no difference shown, and 3 seeds could not show one below about" in finding(none, "nats")
    assert "nothing can be concluded" in finding(paired({0: 1.0}, {0: 0.0}), "points")
