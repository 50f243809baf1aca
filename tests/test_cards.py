"""CUDA cards, which this machine may not have: how many runs they take, and that none gets a card that is taken."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from commandline import called, refusal
from perturblab.cli import main
from perturblab.cpus import cores
from perturblab.launch import Cell, Outcome, local
from perturblab.launch import cards as module
from perturblab.launch.cards import Places, at_a_time, cards_for
from perturblab.launch.local import over, run_cells
from perturblab.settings import Settings
from perturblab.signals import StopFlag
from perturblab.studies import adaptive_noise, correction, first_layer_mi, layerwise_mi, masked_loss
from perturblab.studies.adaptive_noise import sweep as noise_sweep
from perturblab.studies.correction import grid as correction_grid
from perturblab.studies.masked_loss import Train
from perturblab.studies.masked_loss import sweep as masked_sweep
from perturblab.sweep import Plan
from pretending import pretend

RUN = {"arch": "vgg11", "mode": "masked"}


def runs(n: int, **settings: object) -> list[Cell]:
    trains = [Train.parse({**RUN, "seed": seed, **settings}) for seed in range(n)]
    return [Cell(train.name, train) for train in trains]


# ---- counting --------------------------------------------------------------------------------------------------------


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose NVIDIA driver says that it has two cards."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU 0: one'\necho 'GPU 1: two'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    module.cards.cache_clear()
    yield program
    module.cards.cache_clear()


def test_cards_are_those_that_torch_can_use_not_those_that_the_driver_names(driver: Path) -> None:
    import torch

    assert module.cards() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_torch_counts_in_its_own_process_and_sees_which_cards_are_visible(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    monkeypatch.setattr(
        module, "COUNT", "import os; print(len(os.environ['CUDA_VISIBLE_DEVICES'].split(',')))"
    )
    assert cards_for([runs(1)[0].settings]) == [0, 1, 2]


def test_without_a_driver_or_with_a_torch_that_cannot_start_there_are_none(
    driver: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNT", "raise SystemExit('no libcuda')")
    assert module.cards() == 0
    module.cards.cache_clear()
    driver.unlink()
    monkeypatch.setattr(module, "COUNT", "print(9)")
    assert module.cards() == 0


def test_nobody_is_asked_where_no_run_could_use_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cards", lambda: pytest.fail("torch was asked"))
    assert cards_for([cell.settings for cell in runs(3, device="cpu")]) == []
    assert cards_for([cell.settings for cell in runs(3)], jobs=1) == []


@pytest.mark.parametrize(
    ("jobs", "cards", "per_gpu", "expected"),
    [(0, 2, 1, 2), (0, 2, 3, 6), (0, 0, 3, cores()), (5, 0, 1, 5), (1, 2, 2, 1), (9, 2, 2, 4)],
)
def test_as_many_runs_as_the_cards_take_or_one_per_core(
    jobs: int, cards: int, per_gpu: int, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert at_a_time(jobs, range(cards), per_gpu) == expected
    told = capsys.readouterr().out
    assert told == (
        "--jobs 9: 2 CUDA cards take 2 each; --per_gpu N lets more share one\n" if jobs == 9 else ""
    )


SETTINGS: list[tuple[type[Settings], dict[str, object]]] = [
    (masked_loss.Train, {**RUN, "seed": 0}),
    (first_layer_mi.Train, {"arch": "vgg9", "seed": 0}),
    (layerwise_mi.Train, {}),
    (correction.Train, {}),
    (adaptive_noise.Train, {}),
]


@pytest.mark.parametrize(("cls", "values"), SETTINGS, ids=[cls.study for cls, _ in SETTINGS])
def test_the_same_run_on_another_card_is_the_same_run(cls: type[Settings], values: dict[str, object]) -> None:
    ids = {cls.parse({**values, "device": device}).id for device in ("auto", "cuda:0", "cuda:1", "cpu")}
    assert len(ids) == 1


# ---- places ----------------------------------------------------------------------------------------------------------


def card_of(cell: Cell | None) -> str:
    return getattr(cell.settings, "device", "") if cell else "waits"


def test_a_run_gets_the_card_with_the_most_room_as_it_starts_and_waits_if_there_is_none() -> None:
    places, cells = Places((0, 2), per_gpu=2), runs(7)
    assert [card_of(places.start(cell)) for cell in cells[:5]] == [
        "cuda:0", "cuda:2", "cuda:0", "cuda:2", "waits",
    ]  # fmt: skip
    places.end(cells[1])
    assert [card_of(places.start(cell)) for cell in cells[4:6]] == ["cuda:2", "waits"]


def test_a_run_that_names_its_device_keeps_it_and_takes_no_place() -> None:
    places = Places((0,))
    cpu, mine = runs(1, device="cpu")[0], runs(2, device="cuda:1")[1]
    other, last = runs(4)[2:]
    assert [card_of(places.start(cell)) for cell in (cpu, mine, other)] == ["cpu", "cuda:1", "cuda:0"]
    places.end(cpu)
    assert places.start(last) is None


@pytest.mark.parametrize(("cards", "per_gpu"), [((0, 1), 1), ((0, 1), 2), ((0,), 2)])
def test_runs_that_end_unevenly_never_share_a_card_beyond_its_room_and_leave_none_idle(
    cards: tuple[int, ...], per_gpu: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_run", pretend)
    cells, logs = runs(8), {}
    for cell in cells:
        logs[cell.name] = tmp_path / f"{cell.name}.json"
    (tmp_path / "first").write_text("5")
    launch = over(cards, per_gpu, jobs := len(cards) * per_gpu)
    assert launch is not None
    outcomes = launch(cells, lambda cell: logs[cell.name], jobs, StopFlag(), lambda outcome: None)
    by_name = {outcome.cell.name: outcome.cell for outcome in outcomes}
    assert by_name == {cell.name: cell for cell in cells}, "with the settings that were planned"
    assert {outcome.status for outcome in outcomes} == {"done"}
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for log in logs.values():
        device, began, end = json.loads(log.read_text())
        spans[device].append((began, end))
    assert set(spans) == {f"cuda:{card}" for card in cards}
    for on_one in spans.values():
        assert all(sum(b <= at < e for b, e in on_one) <= per_gpu for at, _ in on_one)
    if per_gpu == 1:
        assert len(spans["cuda:1"]) >= 5, "beside the long run on the first card the other takes what comes"


def test_without_cards_or_one_at_a_time_runs_start_as_ever() -> None:
    assert over((), 2, 4) is None
    assert over((0,), 1, 1) is None


# ---- every sweep -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "cards", lambda: 2)
    monkeypatch.chdir(tmp_path)


def test_run_takes_as_many_at_a_time_as_the_cards_do(
    two_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_run", pretend)
    words = ("--set", "arch=vgg11", "--set", "seed=0,1,2", "--set", "mode=masked")
    code, out, errors = called("run", "masked-loss", *words, "--per-gpu", "2")
    assert code == 0, errors
    assert "3 to run, 3 at a time" in out
    logs = [path.read_text() for path in Path("perturblab_runs").glob("*/*/log.txt")]
    assert {json.loads(log)[0] for log in logs} == {"cuda:0", "cuda:1"}


def test_an_estimate_counts_as_many_at_a_time_as_run_would_start(two_cards: None) -> None:
    from perturblab.gridcommands import PlanGrid
    from perturblab.gridcommands.read import at_once, find

    for given, device, expected in (({}, "auto", 2), ({"per_gpu": 3}, "auto", 6), ({"jobs": 1}, "auto", 1)):
        s = PlanGrid.parse({"grid": "masked-loss", "given": [f"device={device}"], **given})
        assert at_once(s, find(s).seen) == expected
    s = PlanGrid.parse({"grid": "masked-loss", "given": ["device=cpu"], "per_gpu": 3})
    assert at_once(s, find(s).seen) == cores()


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("masked-loss", "sweep", "--mode", "parallel"), masked_sweep),
        (("adaptive-noise", "sweep", "--mode", "parallel"), noise_sweep),
    ],
)
def test_the_sweep_of_a_study_does_too(
    two_cards: None, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], where: object
) -> None:
    class Started(Exception):
        pass

    def started(plan: Plan, jobs: int, launch: object = None) -> list[Outcome]:
        assert {getattr(cell.settings, "device", "") for cell in plan.cells} == {"auto"}
        assert launch is not None
        raise Started(jobs)

    monkeypatch.setattr(where, "run_plan", started)
    for more, jobs in (((), 2), (("--per_gpu", "3"), 6), (("--jobs", "2", "--per_gpu", "3"), 2)):
        with pytest.raises(Started) as told:
            main([*words, *more])
        assert told.value.args == (jobs,)


def test_correction_shares_its_cells_over_the_cards(two_cards: None) -> None:
    s = correction.Run.parse({"experiment": "lr_search", "per_gpu": 2})
    assert at_a_time(s.jobs, correction_grid.cards_for([s], s.jobs), s.per_gpu) == 4


def test_noise_runs_only_on_the_cards_that_were_asked_for(two_cards: None) -> None:
    sweep = ("adaptive-noise", "sweep", "-c", "BabyCNN", "--mode", "generate")
    assert called(*sweep, "--gpu", "1")[0] == 0
    lines = [line for line in Path("run_all.sh").read_text().splitlines() if line.startswith("python")]
    assert len(lines) == 3
    assert all("--device cuda:1" in line for line in lines)
    assert "--gpu 1,2: there are 2 CUDA cards, numbered from 0" in refusal(*sweep, "--gpu", "1,2")


def test_one_after_another_needs_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_run", pretend)
    (cell,) = runs(1)
    log = tmp_path / "log"
    (outcome,) = run_cells([cell], lambda cell: log, 1, StopFlag(), lambda outcome: None)
    assert outcome.status == "done"
    assert json.loads(log.read_text())[0] == "open"
