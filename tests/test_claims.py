"""One worker at a time in a run folder, on one machine or many: the living are left alone, the dead replaced, and who
was only frozen or cut off cannot overwrite its successor."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from claiming import ROWS, cell
from conftest import TESTS, Ended, Zygote, differing, environment, files_of, program, until
from perturblab import claims, sweep
from perturblab.attempts import perform
from perturblab.claims import LIMIT_BEATS, Busy, Superseded, held, holder
from perturblab.launch import Cell, Outcome
from perturblab.processes import here
from perturblab.rows import read_rows
from perturblab.runs import RunFolder
from perturblab.settings import Settings
from perturblab.signals import Interrupted
from perturblab.terminal import UserError

WORKER = [sys.executable, str(TESTS / "claiming.py")]
BEAT_S = 0.25
LIMIT_S = BEAT_S * LIMIT_BEATS
LATE_S = 3.0  # what a busy machine may add


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of a quarter of a second, here and in the processes that a test starts."""
    monkeypatch.setenv("PERTURBLAB_HEARTBEAT_S", str(BEAT_S))


# ---- many workers ------------------------------------------------------------------------------------------------------


def many_workers(folder: Path, workers: int, cells: int, kills: int, seed: int) -> Counter[str]:
    """What went wrong when so many workers did these cells, some of them killed on the way."""
    log, chance, wrong = folder / "log", random.Random(seed), Counter[str]()
    words = [str(folder / "runs"), str(cells)]
    each = [
        subprocess.Popen([*WORKER, *words, str(seed * 100 + n), str(log)], env=environment())
        for n in range(workers)
    ]
    killed = chance.sample(each, kills)
    for process in killed:
        published = chance.randrange(cells // 2)  # somewhere in the first half of the work
        until(lambda: log.exists() and log.read_text().count("published") >= published, 60)  # noqa: B023
        process.kill()
    assert [p.wait(120) for p in each] == [-signal.SIGKILL if p in killed else 0 for p in each]
    events = [line.split() for line in log.read_text().splitlines()]
    dead, left = {str(process.pid) for process in killed}, 0
    for number in range(cells):
        run = cell(folder / "runs", number)
        starts = [pid for what, name, pid in events if (what, name) == ("start", run.path.name)]
        published = sum((what, name) == ("published", run.path.name) for what, name, _ in events)
        wrong["lost"] += not run.done or run.results()["rows"] != ROWS
        wrong["published more than once"] += published > 1
        wrong["repeated though its holder lived"] += any(pid not in dead for pid in starts[:-1])
        left += sorted(p.name for p in run.path.iterdir()) != LEFT
    wrong["left behind by the living"] = max(
        0, left - kills
    )  # who dies while it lets go leaves an empty claim
    return +wrong


LEFT = ["results.json", "results.json.sha256", "rows.jsonl", "settings.json"]


def test_three_workers_one_of_them_killed_do_every_cell_once(tmp_path: Path) -> None:
    assert not many_workers(tmp_path, workers=3, cells=20, kills=1, seed=1)


@pytest.mark.soak
def test_six_workers_two_of_them_killed_do_sixty_cells_once_for_twenty_seeds(tmp_path: Path) -> None:
    began, wrong = time.monotonic(), Counter[str]()
    for seed in range(20):
        (tmp_path / str(seed)).mkdir()
        wrong += many_workers(tmp_path / str(seed), workers=6, cells=60, kills=2, seed=seed)
    print(f"6 workers x 60 cells, 2 killed, 20 seeds: {dict(wrong)} in {time.monotonic() - began:.0f} s")
    assert not wrong


# ---- the living and the dead ---------------------------------------------------------------------------------------------


@contextmanager
def another_holds(folder: Path, *before: str) -> Iterator[subprocess.Popen[str]]:
    words = [*before, *WORKER, "hold", str(folder), "60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


OTHER_MACHINE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""A process that this machine's process numbers say nothing about, as on another machine of a cluster."""

needs_namespaces = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="a process that looks like one of another machine needs Linux, root and unshare (util-linux)",
)


@needs_namespaces
def test_a_worker_on_another_machine_is_left_alone_while_it_lives_and_replaced_within_its_limit(
    tmp_path: Path, quick: None
) -> None:
    with another_holds(tmp_path, *OTHER_MACHINE) as process:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(Busy, match="is being worked on by process"), held(tmp_path):
                pass
            assert time.monotonic() - began < LIMIT_S, "the next heartbeat was enough"
        began = time.monotonic()
        process.kill()
        with held(tmp_path):
            waited = time.monotonic() - began
    assert LIMIT_S - 2 * BEAT_S < waited < LIMIT_S + 2 * BEAT_S + LATE_S, waited


def test_a_dead_worker_of_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    with another_holds(tmp_path) as process:
        assert "process" in str(holder(tmp_path))
        process.kill()
        process.wait()
    assert holder(tmp_path) is None
    began = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - began < 1


def test_a_frozen_worker_of_this_machine_is_replaced_within_its_limit(tmp_path: Path, quick: None) -> None:
    with another_holds(tmp_path) as process:
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(Busy), held(tmp_path):
            pass
        time.sleep(LIMIT_S)
        with held(tmp_path):
            pass
        process.send_signal(signal.SIGCONT)
        assert not list(tmp_path.iterdir())


def test_a_number_of_a_process_that_was_given_out_again_is_not_the_holder(tmp_path: Path) -> None:
    staging = tmp_path / "claim-000001" / "0badcafe"
    staging.mkdir(parents=True)
    (staging / "holder.json").write_text(json.dumps({**here(), "started": 1}))
    assert holder(tmp_path) is None
    with held(tmp_path) as claim:
        assert claim.staging.parent.name == "claim-000002"


@needs_namespaces
def test_a_worker_of_another_user_is_left_alone_where_the_system_hides_its_processes(tmp_path: Path) -> None:
    """``/proc`` mounted with ``hidepid``, as on many machines that people share."""
    folder, script = Path(tempfile.mkdtemp(dir="/tmp")), tmp_path / "script"
    hold = f"exec setpriv --reuid {{uid}} --regid 1234 --clear-groups {sys.executable} {TESTS / 'claiming.py'} hold {folder / 'run'}"
    script.write_text(f"""
umask 0
mount -t proc -o hidepid=2 proc /proc
( {hold.format(uid=1234)} 60 ) > {folder}/first &
first=$!
for n in {{1..600}}; do grep -q held {folder}/first && break; sleep 0.1; done
( {hold.format(uid=4321)} 0 ) > {folder}/second 2>&1
kill -9 $first
""")
    try:
        folder.chmod(0o777)
        subprocess.run(["unshare", "--mount", "bash", str(script)], env=environment(), check=True)
        assert "is being worked on by process" in (folder / "second").read_text()
    finally:
        shutil.rmtree(folder)


def beating(folder: Path) -> Path:
    """The claim of a worker of another machine that gave its last sign just now, by the clock of the file system."""
    staging = folder / "claim-000001" / "0badcafe"
    staging.mkdir(parents=True)
    facts = {"host": "gpu7", "pid": 4711, "machine": "another", "beat_s": 2.0, "limit_s": 24.0}
    (staging / "holder.json").write_text(json.dumps(facts))
    return staging


@pytest.mark.parametrize("ahead", [-300, 300])
def test_a_clock_that_is_wrong_makes_no_living_worker_dead_and_no_dead_one_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + ahead)
    staging = beating(tmp_path)
    assert str(holder(tmp_path)) == "process 4711 on gpu7"
    long_ago = real() - 60
    os.utime(staging / "holder.json", (long_ago, long_ago))
    assert holder(tmp_path) is None
    assert [path.name for path in staging.iterdir()] == ["holder.json"], "a look leaves nothing behind"


def test_who_gives_a_number_up_takes_no_other_workers_claim_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw a rival, and was frozen before it let go: by then its number may be another's."""
    real, once = claims._fenced, [True]

    def seen_a_rival(staging: Path, dead: list[claims.Holder]) -> bool:
        if not once:
            return real(staging, dead)
        once.clear()
        shutil.rmtree(
            staging
        )  # a third worker took it for dead and replaced it, and another one works there now
        (staging.with_name("deadbeef")).mkdir()
        (staging.with_name("deadbeef") / "holder.json").write_text(json.dumps(here()))
        return False

    monkeypatch.setattr(claims, "_fenced", seen_a_rival)
    with pytest.raises(Busy, match="is being worked on"), held(tmp_path):
        pass
    assert (tmp_path / "claim-000001" / "deadbeef" / "holder.json").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"limit_s": "x", "beat_s": 1e300}',
        '{"pid": "x"}',
        '{"pid": -5, "machine": "m"}',
    ],
)
def test_a_damaged_claim_is_waited_for_and_replaced(tmp_path: Path, quick: None, text: str) -> None:
    staging = tmp_path / "claim-000001" / "0badcafe"
    staging.mkdir(parents=True)
    (staging / "holder.json").write_text(text)
    long_ago = time.time() - 1000
    os.utime(staging / "holder.json", (long_ago, long_ago))
    assert holder(tmp_path) is None
    with held(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["", "soon", "0", "-1", "nan", "inf"])
def test_a_bad_heartbeat_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv("PERTURBLAB_HEARTBEAT_S", word)
    with pytest.raises(UserError, match="must be a number of seconds"), held(tmp_path):
        pass


@needs_namespaces
def test_whoever_waits_for_a_silent_worker_can_be_stopped(tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted(signal.SIGTERM)

    with another_holds(tmp_path, *OTHER_MACHINE):
        with pytest.raises(Interrupted), held(tmp_path, poll=stop):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["claim-000001"]


# ---- who comes back --------------------------------------------------------------------------------------------------------


def taken_over(run: RunFolder) -> None:
    """Another process takes the folder of a run that this one holds, as if this one had been silent for its limit."""
    run.claim._over.set()  # no more signs of life
    (found,) = run.path.glob("claim-*/*/holder.json")
    facts = json.loads(found.read_text())
    found.write_text(json.dumps({**facts, "machine": "another", "beat_s": 0.01, "limit_s": 0.02}))
    time.sleep(0.05)
    with RunFolder(run.path, Settings()).claimed():
        pass


WAYS_TO_WRITE = {
    "a row": lambda run: run.log(epoch=1, value=1.0),
    "rows anew": lambda run: run.drop_rows_from(1),
    "a time": lambda run: run.log_time(1, 1.0),
    "a checkpoint": lambda run: run.save_checkpoint(1, 0, b"state"),
    "results": lambda run: run.finish({}),
    "a file": lambda run: run.write_checked("final.pt", b"weights"),
    "the manifest": lambda run: run.record({}, {}),
    "a removal": lambda run: run.remove(run.path / "settings.json"),
}


@pytest.mark.parametrize("way", WAYS_TO_WRITE)
def test_who_was_replaced_cannot_write(tmp_path: Path, way: str) -> None:
    run = RunFolder(tmp_path, Settings())
    with run.claimed():
        if way == "rows anew":
            run.log(epoch=1, value=1.0)
        taken_over(run)
        before = files_of(tmp_path)
        with pytest.raises(Superseded, match="was taken over by"):
            WAYS_TO_WRITE[way](run)
        assert not differing(before, files_of(tmp_path))


def test_a_row_of_who_was_replaced_goes_to_a_file_that_nobody_reads(tmp_path: Path) -> None:
    run, successor = RunFolder(tmp_path, Settings()), RunFolder(tmp_path, Settings())
    with run.claimed():
        run.log(epoch=1, value=1.0)
        taken_over(run)
        with successor.claimed():
            successor.drop_rows_from(2)
            successor.log(epoch=2, value=2.0)
            before = files_of(tmp_path)
            run.log(epoch=2, value=99.0)
            assert not differing(before, files_of(tmp_path))
    assert [row["value"] for row in read_rows(tmp_path / "rows.jsonl")] == [1.0, 2.0]


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A second source of processes: the first waits for the one that is frozen."""
    zygote = Zygote(tmp_path_factory.mktemp("second"))
    yield zygote
    zygote.close()


def frozen_at(
    zygote: Zygote, second: Zygote, words: list[str], folder: Path, point: int
) -> tuple[Ended, dict[str, bytes]]:
    """A run stops at ``point``, another process takes over and ends it, the first wakes up: how it ended, the files."""
    hooks = [["killpoints", "signal_at", point, 1, signal.SIGSTOP]]
    pid = zygote.start(words, folder, hooks=hooks, PERTURBLAB_HEARTBEAT_S="0.02")
    until(lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text(), 60)
    time.sleep(0.02 * LIMIT_BEATS)
    successor = second.run(words, folder, PERTURBLAB_HEARTBEAT_S="0.02")
    os.kill(pid, signal.SIGCONT)
    ended = zygote.wait()
    assert successor.code == 0, successor.output
    return ended, files_of(folder)


def check_frozen(zygote: Zygote, second: Zygote, words: list[str], folder: Path, n: int) -> None:
    """Frozen at ``n`` points between the taking of the folder and the publication of the results."""
    log = folder / "points"
    folder.mkdir(exist_ok=True)
    ended = zygote.run(words, folder / "whole", hooks=[["killpoints", "install", 0, str(log)]])
    assert ended.code == 0, ended.output
    expected, labels = files_of(folder / "whole"), log.read_text().splitlines()
    first, last = (
        labels.index("before replace settings.json") + 1,
        labels.index("before replace results.json") + 1,
    )
    points = sorted({round(first + k * (last - first) / (n - 1)) for k in range(n)})
    assert len(points) == n
    refused, wrong = 0, []
    for point in points:
        ended, found = frozen_at(zygote, second, words, folder / str(point), point)
        told = ended.code == 2 and " was taken over by " in ended.line
        refused += told
        wrong += [] if told else [f"frozen at {labels[point - 1]}: {ended}"]
        wrong += [f"{name}, frozen at {labels[point - 1]}" for name in differing(expected, found)]
    print(f"{refused} of {n} frozen workers refused, {len(wrong)} files differ")
    assert not wrong, "\n".join(wrong)


FEW = ["--checkpoint_every", "0", "--epochs", "2", "--batch_size", "36", "--robustness_masks", "1"]


def test_a_frozen_worker_cannot_overwrite_its_successor(
    zygote: Zygote, second: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    check_frozen(zygote, second, [*tiny_run, *FEW], tmp_path, 4)


@pytest.mark.soak
def test_20_of_20_frozen_workers_cannot_overwrite_their_successors(
    zygote: Zygote, second: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    check_frozen(zygote, second, [*tiny_run, *FEW], tmp_path, 20)


EXPORT = "before replace vgg11_masked_seed0.json"


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_a_frozen_worker_cannot_take_a_documented_name_back(
    zygote: Zygote, second: Zygote, tiny_run: list[str], tmp_path: Path, earlier: int
) -> None:
    """It was about to export; its successor has exported, and a run with other settings has taken the name since."""
    words, log, here = [*tiny_run, *FEW], tmp_path / "points", tmp_path / "here"
    assert zygote.run(words, tmp_path / "whole", hooks=[["killpoints", "install", 0, str(log)]]).code == 0
    point = log.read_text().splitlines().index(EXPORT) + 1 - earlier
    pid = zygote.start(words, here, hooks=[["killpoints", "signal_at", point, 1, signal.SIGSTOP]], PERTURBLAB_HEARTBEAT_S="0.02")  # fmt: skip
    until(lambda: "State:\tT" in Path(f"/proc/{pid}/status").read_text(), 60)
    time.sleep(0.02 * LIMIT_BEATS)
    for other in ([], ["--lr", "0.01"]):
        assert second.run([*words, *other], here, PERTURBLAB_HEARTBEAT_S="0.02").code == 0
    newest = files_of(here)
    os.kill(pid, signal.SIGCONT)
    ended = zygote.wait()
    assert ended.code == 2, ended.output
    assert " was taken over by " in ended.line
    assert not differing(newest, files_of(here))
    assert not [path for path in (here / "results").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@needs_namespaces
def test_a_command_waits_for_a_dead_machine_and_does_its_run(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a scheduler starts again after a node died: it must not fail because the dead one still seems alive."""
    monkeypatch.setenv("PERTURBLAB_HEARTBEAT_S", "1.5")  # a limit longer than a command takes to start
    words = [*tiny_run, "--epochs", "1"]
    begun = subprocess.Popen([*OTHER_MACHINE, *program(*words)], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)  # fmt: skip
    until(lambda: any(tmp_path.rglob("holder.json")), 60)
    begun.kill()
    again = subprocess.run(program(*words), cwd=tmp_path, env=environment(), capture_output=True, text=True)
    begun.wait()
    assert again.returncode == 0, again.stderr
    assert " was held by process " in again.stdout


# ---- sharing a grid --------------------------------------------------------------------------------------------------


def test_runs_of_others_are_waited_for_once_each_and_done_when_they_are_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "WAIT_S", 0.01)
    cells = [Cell(str(n), Settings()) for n in range(4)]
    plan = sweep.Plan(cells, lambda one: cell(tmp_path, int(one.name)), lambda one: ())
    others, started = ExitStack(), list[str]()
    holds = {name: others.enter_context(ExitStack()) for name in ("1", "2", "3")}
    for name, stack in holds.items():
        stack.enter_context(held(cell(tmp_path, int(name)).path))

    def launch(cells, log_of, jobs, stop, on_end, preload=()):  # type: ignore[no-untyped-def]
        done = []
        for one in cells:
            started.append(one.name)
            perform(plan.folder(one), lambda run: run.finish({}), lambda run: None)
            done.append(Outcome(one, "done"))
        if holds:
            holds.pop(next(iter(holds))).close()  # another worker gives up one of its runs, undone
        return done

    with others:
        outcomes = sweep.run_plan(plan, 2, launch)
    assert [outcome.status for outcome in outcomes] == ["done"] * 4
    assert sorted(started) == ["0", "1", "2", "3"], "each once"
    waits = [
        line.split()[2] for line in capsys.readouterr().out.splitlines() if line.startswith("waiting for")
    ]
    assert waits == ["3", "2", "1"]


def test_a_claim_that_cannot_be_moved_away_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file server's error in the middle of a takeover: the old holder could still write."""
    with another_holds(tmp_path) as process:
        process.kill()
        process.wait()
    rename = os.rename

    def refused(source, target):  # type: ignore[no-untyped-def]
        if "before-" in str(target):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(UserError, match="Input/output error"), held(tmp_path):
        pytest.fail("it was taken over")


# ---- `perturblab run` in several terminals -----------------------------------------------------------------------------


def grid_words(npz: Path, seeds: int) -> list[str]:
    small = "arch=vgg11 mode=baseline width=0.05 epochs=1 batch_size=36 threads=1 device=cpu num_workers=0"
    sets = [*small.split(), f"seed={','.join(map(str, range(seeds)))}", f"dataset=npz:{npz}"]
    return ["masked-loss", *(word for one in sets for word in ("--set", one))]


def several_runs(folder: Path, npz: Path, workers: int, seeds: int, kills: int) -> str:
    """``perturblab run`` so many times at once on one grid, some killed with all that they started; what is wrong."""
    words, log = grid_words(npz, seeds), folder / "log"
    each = []
    for n in range(workers):
        with open(folder / f"worker-{n}", "wb") as output:
            each.append(subprocess.Popen(program("run", *words, "--jobs", "1"), cwd=folder, env=environment(),
                                         stdout=output, stderr=output, start_new_session=True))  # fmt: skip
    for n, process in enumerate(each[:kills]):
        until(lambda: len(list(folder.glob("perturblab_runs/*/*/results.json"))) > n * 2, 300)  # noqa: B023
        process.kill()
    codes = [process.wait(600) for process in each]
    told = "".join(path.read_text() for path in sorted(folder.glob("worker-*")))
    done = list(folder.glob("perturblab_runs/*/*/results.json"))
    trained = told.count(" epoch 1/1 ")  # who finds a run just done tells its result too
    log.write_text(told)
    if codes != [-signal.SIGKILL] * kills + [0] * (workers - kills):
        return f"exit codes {codes}: {told}"
    if len(done) != seeds:
        return f"{len(done)} of {seeds} done"
    return "" if seeds <= trained <= seeds + kills else f"{trained} trained, of {seeds} with {kills} kills"


def test_two_commands_at_once_share_the_runs_of_a_grid(npz: Path, tmp_path: Path) -> None:
    assert not several_runs(tmp_path, npz, workers=2, seeds=4, kills=0)


@pytest.mark.soak
def test_six_commands_at_once_two_of_them_killed_share_the_runs_of_a_grid(npz: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    wrong = several_runs(tmp_path, npz, workers=6, seeds=60, kills=2)
    print(
        f"6 commands x 60 cells of masked-loss, 2 killed: {wrong or '0 lost'} in {time.monotonic() - began:.0f} s"
    )
    assert not wrong
