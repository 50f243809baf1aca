"""Grids: what the documents' grids hold, what a file or --set makes of them, and every slip in one line."""

import json
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from commandline import called, refusal
from perturblab.claims import held
from perturblab.gridcommands import WatchGrid
from perturblab.gridcommands.moment import Watcher
from perturblab.gridcommands.plan import in_bytes
from perturblab.grids import Grid, function_of
from perturblab.grids.asked import read
from perturblab.grids.cells import Runs, plan_of, runs_of
from perturblab.grids.estimate import LOOKED_AT, estimate, seconds_of, telling
from perturblab.grids.states import Seen, count, look, only
from perturblab.runs import RunFolder
from perturblab.studies import STUDIES
from perturblab.studies.adaptive_noise import Sweep as NoiseSweep
from perturblab.studies.correction import Run as CorrectionRun
from perturblab.studies.correction.config import packaged
from perturblab.studies.first_layer_mi import Jobs
from perturblab.studies.masked_loss import Sweep
from perturblab.sweep import Plan


def runs(word: str, *given: str) -> Runs:
    return runs_of(read(word, given, STUDIES))


def names(word: str, *given: str) -> list[str]:
    return [cell.name for cell in plan_of(runs(word, *given)).cells]


def values(word: str, *given: str, of: str) -> list[Any]:
    return [getattr(one, of) for one in runs(word, *given).settings]


# ---- the grids of the documents (decision 38) -----------------------------------------------------------------------


def ids(settings: Any) -> list[str]:
    return [one.id for one in settings]


def test_masked_loss_has_the_24_runs_of_its_sweep() -> None:
    found = runs("masked-loss").settings
    assert len(found) == 24
    assert found == list(Sweep().grid())


def test_first_layer_mi_has_the_15_runs_of_its_jobs() -> None:
    found = runs("first-layer-mi").settings
    assert len(found) == 15
    assert found == list(Jobs().grid())


def test_layerwise_mi_has_the_four_models_that_all_means() -> None:
    assert names("layerwise-mi") == ["vgg11", "vgg13", "vgg16", "vgg19"]
    assert values("layerwise-mi", of="seed") == [None] * 4


def test_correction_has_the_12_runs_of_full_grid_search() -> None:
    document = packaged("full_grid_search")
    asked = CorrectionRun.parse({**document, "experiment": "full_grid_search"})
    found = runs("correction")
    assert len(found.settings) == 12
    assert found.equal == 4
    assert ids(found.settings) == ids(asked.grid())
    assert [one.log_dir for one in found.settings] == [one.log_dir for one in asked.grid()]  # type: ignore[attr-defined]


def test_adaptive_noise_has_the_12_runs_of_its_sweep_each_baseline_before_its_arms() -> None:
    found = runs("adaptive-noise")
    assert found.equal == 0
    assert [(one.id, one.name) for one in found.settings] == [
        (one.id, one.name) for one in NoiseSweep().grid()
    ]  # type: ignore[attr-defined]
    assert [one.arm for one in found.settings[:3]] == ["baseline", "adaptive", "adaptive"]  # type: ignore[attr-defined]


def test_the_published_preset_acts_in_a_grid_and_a_setting_by_hand_wins_over_it() -> None:
    sweep = NoiseSweep.parse({"preset": "published", "epochs": 7})
    found = runs("adaptive-noise", "preset=published", "epochs=7").settings
    assert ids(found) == ids(sweep.grid())
    assert {one.noise_scale for one in found[1:3]} == {"absolute"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("study", STUDIES)
def test_a_grids_runs_lie_in_folders_of_their_own_under_names_of_their_own(study) -> None:
    for given in ((), ("epochs=2,3",) if study != "correction" else ("max_epochs=2,3",)):
        plan = plan_of(runs(study, *given))
        assert len({cell.name for cell in plan.cells}) == len(plan.cells)
        assert len({plan.folder(cell).path for cell in plan.cells}) == len(plan.cells)
        assert all(plan.folder(cell).path.parent == Path("perturblab_runs") / study for cell in plan.cells)


@pytest.mark.parametrize("study", ["masked-loss", "layerwise-mi", "first-layer-mi", "adaptive-noise"])
def test_files_of_a_further_axis_are_kept_apart(study) -> None:
    plan = plan_of(runs(study, "batch_size=32,64"))
    files = [path for cell in plan.cells for path in plan.exports(cell)]
    assert len(set(files)) == len(files)
    assert any("batch_size32" in str(path) for path in files) or study == "adaptive-noise"


def test_no_settings_of_a_run_have_a_rule_over_several_fields_which_a_grid_would_not_check() -> None:
    for module in STUDIES.values():
        grid: Grid = import_module(module).GRID
        rules = grid.settings.__pydantic_decorators__.model_validators
        assert {rule.info.mode for rule in rules.values()} <= {"wrap"}, "presets only"
        assert {*grid.axes, *grid.fixed, *grid.named, grid.apart, grid.epochs} <= {
            *grid.settings.model_fields,
            "suffix",
        }
        assert all(
            callable(function_of(name)) for name in (grid.plan, grid.prepare, grid.lacks, grid.verify) if name
        )


# ---- --set ----------------------------------------------------------------------------------------------------------


def test_one_value_fixes_a_setting_and_several_are_an_axis() -> None:
    fixed = runs("masked-loss", "arch=vgg11", "mode=masked", "lr=0.05")
    assert [(one.arch, one.mode, one.lr) for one in fixed.settings] == [("vgg11", "masked", 0.05)] * 3  # type: ignore[attr-defined]
    assert list(fixed.axes) == ["seed"]
    axis = runs("masked-loss", "arch=vgg11", "mode=masked", "seed=0", "lr=0.05,0.1", "n_masks=1, 3")
    assert [(one.lr, one.n_masks) for one in axis.settings] == [(0.05, 1), (0.05, 3), (0.1, 1), (0.1, 3)]  # type: ignore[attr-defined]


def test_a_setting_may_bear_any_of_its_documented_names() -> None:
    assert (
        values("masked-loss", "--model=vgg16", "mode=half_loss", "batch-size=64", of="arch") == ["vgg16"] * 3
    )
    assert values("layerwise-mi", "arch=vgg9,vgg11", of="model") == ["vgg9", "vgg11"]


def test_what_an_axis_does_to_a_run_stands_in_its_name_where_it_acts() -> None:
    given = ("arch=vgg11", "seed=0", "n_masks=1,3")
    found = runs("masked-loss", *given)
    assert [one.name for one in found.settings] == [  # type: ignore[attr-defined]
        "vgg11_baseline_seed0", "vgg11_masked_seed0_n_masks1", "vgg11_masked_seed0_n_masks3",
    ]  # fmt: skip
    assert found.equal == 1, "a baseline has no masks: both are one run"


def test_a_runs_suffix_and_folder_stay_those_of_its_own_command_without_further_axes() -> None:
    assert set(values("masked-loss", "epochs=3", of="suffix")) == {""}
    assert set(values("masked-loss", "suffix=mine", "lr=0.1,0.2", of="suffix")) == {
        "mine_lr0.1",
        "mine_lr0.2",
    }


def test_values_that_are_spelt_alike_in_a_file_name_are_told_apart() -> None:
    found = names("masked-loss", "arch=vgg11", "mode=baseline", "seed=0", "dataset=npz:a/b,npz:a-b")
    assert len(set(found)) == 2
    assert all(name.startswith("vgg11_baseline_seed0_datasetnpz-a-b-") for name in found)


def test_every_noise_axis_brings_one_baseline_per_network_and_seed() -> None:
    found = runs("adaptive-noise", "classifier=BabyCNN", "seed=0,1", "relative_max_noise=0.1,0.2").settings
    arms = [one.arm for one in found]  # type: ignore[attr-defined]
    assert arms.count("baseline") == 2
    assert arms.count("adaptive") == 2 * 2 * 2
    assert all("relative" not in one.name for one in found if one.arm == "baseline")  # type: ignore[attr-defined]


# ---- a file ---------------------------------------------------------------------------------------------------------


def a_file(folder: Path, text: str) -> str:
    (folder / "grid.yaml").write_text(text)
    return str(folder / "grid.yaml")


def test_a_file_names_study_fixed_settings_and_axes(tmp_path) -> None:
    path = a_file(
        tmp_path,
        "study: masked_loss\nfixed: {epochs: 3, lr: 5e-2, arch: vgg11}\naxes:\n  seed: [0, 1]\n  n_masks: [1, 3]\n",
    )
    found = runs(path)
    assert (found.study, len(found.settings)) == ("masked-loss", 2 * 1 + 2 * 2)
    assert {(one.epochs, one.lr, one.arch) for one in found.settings} == {(3, 0.05, "vgg11")}  # type: ignore[attr-defined]
    assert set(values(path, "seed=5", of="seed")) == {5}, "the command line wins over the file"


def test_the_file_of_a_sweep_is_the_same_grid_here_and_there(tmp_path) -> None:
    path = a_file(
        tmp_path,
        "study: masked-loss\nfixed: {epochs: 100, lr: 5e-2, clamp: rescale}\n"
        "axes: {arch: [vgg11, vgg16], mode: [baseline, half-loss], seed: [3, 4]}\n",
    )
    from commandline import parsed

    sweep = parsed("masked-loss", "sweep", "--config", path)
    assert isinstance(sweep, Sweep)
    assert runs(path).settings == list(sweep.grid())


@pytest.mark.parametrize(("text", "told"), [
    ("study: masked-los\n", "line 1: no study 'masked-los'; did you mean 'masked-loss'?"),
    ("fixed: {}\n", "a line 'study: NAME' is missing"),
    ("study: masked-loss\nfixd: {lr: 1}\n", "line 2: unknown key 'fixd'; did you mean 'fixed'?"),
    ("study: masked-loss\nfixed:\n  epochs: 3\n  lrr: 0.1\n", "line 4: unknown key 'lrr'; did you mean 'lr'?"),
    ("study: masked-loss\naxes:\n  seeds: [0]\n", "line 3: unknown key 'seeds'; did you mean 'seed'?"),
    ("study: masked-loss\naxes:\n  seed: []\n", "line 3: 'seed' needs one or more values"),
    ("study: masked-loss\naxes:\n  seed: [0, x]\n", "line 3: --seed x is refused: it must be a whole number, 0 or more"),
    ("study: masked-loss\nfixed:\n  lr: -1\n", "line 3: --lr -1 is refused: it must be a finite number, more than 0"),
    ("study: masked-loss\nfixed:\n  mode: maskd\n", "line 3: --mode 'maskd' is not one of baseline, masked, half-loss; did you mean 'masked'?"),
    ("study: masked-loss\nfixed: {lr: 1}\naxes: {lr: [1, 2]}\n", "line 3: key 'lr' sets 'lr' a second time"),
    ("study: masked-loss\nfixed: {arch: vgg11, model: vgg13}\n", "line 2: key 'model' sets 'arch' a second time"),
    ("study: masked-loss\naxes: {seed: [0, 1], seed: [2]}\n", "line 2: key 'seed' stands twice"),
    ("study: masked-loss\nfixed: {seed: true}\n", "line 2: --seed True is refused"),
    ("study: layerwise-mi\nfixed: {model: all}\n", "--model all is not one run"),
    ("study: masked-loss\nfixed: {dataset: \"folder:a\\nb\"}\n", "line 2: 'dataset' must be text in one line"),
    ("- 1\n", "expected 'key: value' lines"),
    ("", "expected 'key: value' lines, found nothing"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_slip_in_a_file_is_told_with_its_line(tmp_path, monkeypatch, text, told, command) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text(text)
    assert told in refusal(command, "grid.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.yaml"]


@pytest.mark.parametrize(("words", "told"), [
    ("plan", "which grid? Name a study (masked-loss, layerwise-mi, first-layer-mi, correction, adaptive-noise) or a FILE.yaml"),
    ("plan masked-los", "no study 'masked-los'; did you mean 'masked-loss'?"),
    ("status none.yaml", "cannot read none.yaml: No such file or directory"),
    ("run there/none", "cannot read there/none: No such file or directory"),
    ("plan masked-loss --set sed=1", "--set: unknown setting 'sed'; did you mean 'seed'?"),
    ("plan masked-loss --set seed", "--set seed: write NAME=VALUE, or NAME=v1,v2 for an axis"),
    ("plan masked-loss --set seed=", "--set seed=: 'seed' needs one or more values"),
    ("plan masked-loss --set seed=,", "--set seed=,: 'seed' needs one or more values"),
    ("plan masked-loss --set seed=0 --set seed=1", "--set seed stands twice"),
    ("plan masked-loss --set seed=0,-1", "--set seed=0,-1: --seed -1 is refused: it must be a whole number, 0 or more"),
    ("retry masked-loss --set mode=maskd", "--set mode=maskd: --mode 'maskd' is not one of baseline, masked, half-loss"),
    ("plan masked-loss --jobs -1", "--jobs -1 is refused"),
    ("run masked-loss --launcher slum", "--launcher 'slum' is not one of local, script, sge, slurm, dask; did you mean 'slurm'?"),
    ("run masked-loss --submit", "--submit needs --launcher sge or slurm"),
    ("run masked-loss --launcher sge --mem 16", "--mem 16 is refused"),
    ("plan masked-loss --sett seed=1", "no flag '--sett'; did you mean '--set'?"),
    ("pln masked-loss", "no command 'pln'; did you mean 'plan'?"),
])  # fmt: skip
def test_a_slip_in_the_words_is_told_in_one_line(tmp_path, monkeypatch, words, told) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(*words.split()).startswith(told)
    assert not list(tmp_path.iterdir())


def test_a_grid_that_no_machine_could_hold_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    many = ",".join(map(str, range(1, 1001)))
    words = [word for name in ("seed", "epochs", "batch_size") for word in ("--set", f"{name}={many}")]
    assert refusal("plan", "masked-loss", *words) == "that is a grid of more than 1,000,000 runs"


# ---- states and estimates, over folders made by hand -----------------------------------------------------------------


def seen_in(word: str, *given: str) -> tuple[Plan, list[Seen]]:
    plan = plan_of(runs(word, *given))
    return plan, look(plan)


def leave(
    run: RunFolder, epochs: int, seconds: float, results: bool, plan: Plan, seen: Seen, size: int = 1000
) -> None:
    """A folder of a run with so many epochs behind it."""
    with run.claimed():
        for n in range(1, epochs + 1):
            run.log_time(n, seconds)
            run.log(epoch=n)
    if results:
        (run.path / "results.json").write_text("x" * size)
        for path in plan.exports(seen.cell):
            path.parent.mkdir(exist_ok=True)
            path.write_text(run.id)


GRID = ("arch=vgg11,vgg13", "mode=baseline,masked", "seed=0,1", "epochs=10")


def test_the_estimate_is_that_of_the_runs_that_share_the_most_settings(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan, seen = seen_in("masked-loss", *GRID)
    by_name = {one.cell.name: one for one in seen}
    leave(by_name["vgg11_baseline_seed0"].run, 10, 2.0, True, plan, by_name["vgg11_baseline_seed0"])
    leave(by_name["vgg13_masked_seed0"].run, 4, 7.0, False, plan, by_name["vgg13_masked_seed0"])
    seen = look(plan)
    assert {state: n for state, n in count(seen).items() if n} == {"done": 1, "interrupted": 1, "missing": 6}
    found = estimate(plan, seen, only(seen, "missing", "interrupted"), "epochs")
    assert found.n == 2
    assert found.seconds is not None
    assert found.seconds["vgg11_baseline_seed1"] == pytest.approx(20), "10 epochs of 2 s"
    assert found.seconds["vgg13_masked_seed1"] == pytest.approx(70)
    assert found.seconds["vgg13_masked_seed0"] == pytest.approx(42), "6 of 10 epochs are left"
    assert found.seconds["vgg11_masked_seed0"] == pytest.approx(45), "as near to both: their mean"
    assert found.wall(1) == pytest.approx(sum(found.seconds.values()))
    assert found.wall(1000) == pytest.approx(70), "one run is not split"
    files = [*seen[0].run.path.iterdir(), *plan.exports(seen[0].cell)]
    assert found.size == 7 * sum(path.stat().st_size for path in files)


@pytest.mark.parametrize("rates", [2, 60, 200])
def test_the_setting_that_decides_the_time_counts_more_than_others(tmp_path, monkeypatch, rates: int) -> None:
    """As many settings are shared with a run of the small network with this learning rate, that takes a second."""
    monkeypatch.chdir(tmp_path)
    lr = "lr=" + ",".join(f"{n / 1000}" for n in range(1, rates + 1))
    plan, seen = seen_in("masked-loss", "arch=vgg11,vgg19", "mode=baseline", "seed=0", "epochs=1", lr)
    for one in seen[:-1]:
        leave(one.run, 1, 90.0 if "vgg19" in one.cell.name else 1.0, False, plan, one)
    seen = look(plan)
    (missing,) = only(seen, "missing")
    assert "vgg19" in missing.cell.name
    assert estimate(plan, seen, [missing], "epochs").seconds == {missing.cell.name: pytest.approx(90)}


def test_runs_are_read_that_tell_of_each_network_however_many_others_there_are(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    lr = "lr=" + ",".join(f"{n / 1000}" for n in range(1, 61))
    given = ("arch=vgg11,vgg13,vgg16,vgg19", "mode=baseline", "seed=0", "epochs=1", lr)
    plan, seen = seen_in("masked-loss", *given)
    takes = {"vgg11": 1.0, "vgg13": 2.0, "vgg16": 3.0, "vgg19": 90.0}
    for one in seen[: 3 * 60 + 3]:
        leave(one.run, 1, takes[one.cell.name[:5]], False, plan, one)
    seen = look(plan)
    found = estimate(plan, seen, only(seen, "missing"), "epochs")
    assert found.n == LOOKED_AT
    assert found.seconds is not None
    assert set(found.seconds.values()) == {90.0}


def test_fields_tell_by_what_they_explain_beside_the_others_and_values_that_stand_once_tell_nothing() -> None:
    kinds = [(arch, size, f"{arch}{size}{copy}", copy) for arch in "ab" for size in (1, 2) for copy in (0, 1)]
    seconds = [{"a": 1.0, "b": 50.0}[arch] * size for arch, size, *_ in kinds]
    assert telling(kinds, seconds) == [0, 1]
    assert telling(kinds, [1.0] * len(kinds)) == []
    assert telling(kinds[:1], seconds[:1]) == telling([], []) == []


def test_what_is_measured_between_epochs_counts_and_the_night_that_a_run_was_stopped_does_not() -> None:
    def ended(*seconds: int) -> list[dict[str, Any]]:
        start = datetime(2026, 1, 1, tzinfo=UTC)
        return [
            {"epoch": n, "seconds": 10.0, "ended": f"{start + timedelta(seconds=s):%Y-%m-%dT%H:%M:%SZ}"}
            for n, s in enumerate(seconds, 1)
        ]

    assert seconds_of(ended(10, 25, 40, 55)) == pytest.approx(4 * 15)
    assert seconds_of(ended(10, 25, 40, 40_055, 40_070)) == pytest.approx(5 * 15)
    assert seconds_of(ended(10, 20, 30)) == pytest.approx(30)
    assert seconds_of(ended(10, 15, 20)) == pytest.approx(30), "a clock that was set back"
    assert seconds_of(ended(10, 40_000)) == pytest.approx(20), "one pause tells nothing"
    assert seconds_of([{"seconds": 3.0}, {"seconds": 4.0, "ended": "soon"}]) == pytest.approx(7)


def test_plan_status_and_watch_count_the_rest_of_running_runs_and_agree(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ("arch=vgg11", "mode=baseline", "seed=0,1,2", "epochs=10")
    words = ["masked-loss", *(word for one in given for word in ("--set", one))]
    plan, seen = seen_in("masked-loss", *given)
    leave(seen[0].run, 10, 6.0, True, plan, seen[0])
    leave(seen[1].run, 4, 6.0, False, plan, seen[1])
    size = sum(path.stat().st_size for path in (*seen[0].run.path.iterdir(), *plan.exports(seen[0].cell)))
    with held(seen[1].run.path):
        (working,) = only(look(plan), "running")
        for command in ("plan", "status"):
            _, out, _ = called(command, *words, "--jobs", "1")
            assert "time: about 1:36 with 1 at a time, from what 1 run took per epoch" in out, "36 + 60 s"
        moment = Watcher(WatchGrid.parse({"grid": "masked-loss", "given": given})).look()
        assert moment.left_s == pytest.approx(96)
        only_two = [word.replace("seed=0,1,2", "seed=0,1") for word in words]
        _, out, _ = called("status", *only_two, "--jobs", "1")
        assert "time: about 0:36 with 1 at a time" in out
        assert "go on" not in out
        _, out, _ = called("plan", *only_two, "--jobs", "1")
        assert "time: about 0:36 with 1 at a time" in out
        assert f"disk: about {in_bytes(size)} more" in out
        assert "nothing else is missing" in out
        _, out, _ = called("status", *[word.replace("seed=0,1,2", "seed=1") for word in words])
        assert out.startswith("masked-loss: 1 run in ")
        assert "from what 1 run took per epoch" in out
    assert working.cell.name == seen[1].cell.name


def test_nothing_is_estimated_from_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan, seen = seen_in("masked-loss")
    found = estimate(plan, seen, seen, "epochs")
    assert (found.seconds, found.size, found.n) == (None, None, 0)
    code, out, _ = called("plan", "masked-loss")
    assert code == 0
    assert (
        "time: unknown; to try one run of each kind for a moment: perturblab plan masked-loss --calibrate 30\n"
        in out
    )
    assert "disk: unknown until one run is done" in out
    assert not list(tmp_path.iterdir()), "plan writes nothing"


def test_a_table_of_more_than_40_rows_is_cut_unless_all_are_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("plan", "masked-loss", "--set", "seed=" + ",".join(map(str, range(10))))
    _, out, _ = called(*words)
    assert sum(line.startswith("vgg") for line in out.splitlines()) == 40
    assert "... and 40 more (--all shows them)" in out
    _, out, _ = called(*words, "--all")
    assert sum(line.startswith("vgg") for line in out.splitlines()) == 80


def test_correction_says_in_a_line_which_data_are_to_be_built_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("plan", "status"):
        code, out, _ = called(command, "correction")
        assert code == 0
        (told,) = [line for line in out.splitlines() if line.startswith("not there yet: ")]
        assert "08MNIST/confounded_v1/train.pth" in told
        assert "model_confounded.pth" in told
    assert not list(tmp_path.iterdir())


def test_the_verification_list_of_first_layer_mi(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = runs("first-layer-mi", "epochs=25").settings
    for number, one in enumerate(found[:14]):
        for path in one.exports.values():  # type: ignore[attr-defined]
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        epochs = [1, 10, 25] if number == 3 else [1, 10, 20, 25]
        content: dict[str, Any] = {"epochs_evaluated": epochs, "mi_history": epochs, "final_mi_diff": 0.5}
        one.exports["results.json"].write_text(json.dumps(content))  # type: ignore[attr-defined]
    found[0].exports["final.pt"].unlink()  # type: ignore[attr-defined]
    code, out, _ = called("status", "first-layer-mi", "--set", "epochs=25")
    assert code == 0
    assert "[ ] 13 of 15 checkpoints\n[ ] 28 of 30 result files" in out
    assert (
        "[ ] 13 of 15 with MI at epoch 1, every 10 epochs and final\n  vgg11_seed0: no MI at epoch 20\n"
        in out
    )
