"""The run folder: what its files say, who may work in it, and what happens when they are damaged."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import conftest
from conftest import (
    Tiny,
    Trained,
    Zygote,
    differing,
    environment,
    files_of,
    tiny_folder,
    train_tiny,
    write_npz,
)
from perturblab.attempts import perform
from perturblab.exports import publish
from perturblab.rows import to_line
from perturblab.runs import Diverged, RunFolder
from perturblab.signals import Interrupted
from perturblab.terminal import UserError

KILL_AFTER_CHECKPOINT = [["killpoints", "install", "after replace checkpoint-N.pt"]]
KILL_BEFORE_EXPORT = [["killpoints", "install", "before mkdir results"]]


def owner(path: Path) -> str | None:
    """The run id in a file that ends with ``of RUN``."""
    _, of, run = path.read_text().partition(" of ")
    return run if of else None


# ---- status ------------------------------------------------------------------------------------------------------------


def test_the_status_is_read_from_the_files(tmp_path: Path) -> None:
    run = tiny_folder(tmp_path)
    assert run.status == "pending"
    with run.claimed():
        assert tiny_folder(tmp_path).status == "running"
    assert run.status == "interrupted"
    with run.claimed():
        run.fail("failed", "the reason")
    assert run.status == "failed"
    assert run.failure() == "the reason"
    with run.claimed():
        assert tiny_folder(tmp_path).status == "running"
        run.finish({"accuracy": 0.5})
        assert tiny_folder(tmp_path).status == "done"
    assert run.status == "done"
    assert not (run.path / "failure.json").exists()
    assert run.results() == {"schema_version": 1, "run_id": run.id, "accuracy": 0.5}


def test_a_failure_is_recorded_and_forgotten_when_the_next_attempt_starts(tmp_path: Path) -> None:
    """Else a run that failed once, went on and was interrupted would still be called failed."""

    def fail(run: RunFolder) -> None:
        raise UserError("no such data")

    def crash(run: RunFolder) -> None:
        raise ZeroDivisionError("oops")

    def diverge(run: RunFolder) -> None:
        raise Diverged("not finite")

    def interrupt(run: RunFolder) -> None:
        raise Interrupted(signal.SIGTERM)

    run = tiny_folder(tmp_path)
    for work, error, kind, message in (
        (fail, UserError, "failed", "no such data"),
        (crash, ZeroDivisionError, "failed", "ZeroDivisionError: oops"),
        (diverge, Diverged, "diverged", "not finite"),
    ):
        with pytest.raises(error):
            perform(run, work, lambda run: None)
        assert json.loads((run.path / "failure.json").read_text()) == {"kind": kind, "message": message}
        assert run.status == "failed"
    with pytest.raises(Interrupted):
        perform(run, interrupt, lambda run: None)
    assert run.status == "interrupted"


def test_the_settings_and_what_decides_the_bits_are_recorded(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    assert zygote.run(tiny_run, tmp_path).code == 0
    (path,) = (tmp_path / "perturblab_runs" / "masked-loss").iterdir()
    settings = json.loads((path / "settings.json").read_text())
    assert settings["arch"] == "vgg11"
    assert settings["lr"] == 0.05
    assert settings["momentum"] == 0.9, "defaults are recorded too"
    manifest = json.loads((path / "manifest.json").read_text())
    assert path.name == f"vgg11_masked_seed0-{manifest['run_id']}"
    assert manifest["machine"].keys() >= {"torch", "device", "instruction_set", "precision", "threads"}
    assert manifest["machine"]["threads"] == 1
    assert [len(digest) for digest in manifest["data"].values()] == [64, 64]
    left = {p.name for p in path.iterdir()}
    assert not {name for name in left if name.startswith(("checkpoint-", "."))}


# ---- the claim -----------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from perturblab.runs import RunFolder
from perturblab.settings import Settings
from pathlib import Path
with RunFolder(Path(sys.argv[1]), Settings()).claimed():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another live process that works in the folder."""
    words = [sys.executable, "-c", HOLD, str(path), ""]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_one_line_that_names_the_holder(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    assert zygote.run(tiny_run, tmp_path, hooks=KILL_AFTER_CHECKPOINT).code == -signal.SIGKILL
    (path,) = (tmp_path / "perturblab_runs" / "masked-loss").iterdir()
    with held(path) as holder:
        before = files_of(tmp_path)
        refused = zygote.run(tiny_run, tmp_path)
        assert refused.code == 69
        line = refused.line
        assert f"process {holder.pid} on {os.uname().nodename}" in line
        assert path.name in line
        assert not differing(before, files_of(tmp_path)), "the refused process touched the folder"
        holder.send_signal(signal.SIGSTOP)  # a frozen holder still holds, for its limit
        assert "being worked on" in zygote.run(tiny_run, tmp_path).line
    ended = zygote.run(tiny_run, tmp_path)
    assert ended.code == 0, "a dead holder's claim is free at once"


def test_asking_for_the_status_does_not_refuse_a_run_that_starts_at_that_moment(tmp_path: Path) -> None:
    over = threading.Event()
    run = tiny_folder(tmp_path)
    with run.claimed():
        pass

    def ask() -> None:
        while not over.is_set():
            tiny_folder(tmp_path).status  # noqa: B018

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(100):
            with run.claimed():
                pass
    finally:
        over.set()
        for thread in asking:
            thread.join()


def test_what_a_killed_process_was_writing_is_removed_when_work_goes_on(tmp_path: Path) -> None:
    run = tiny_folder(tmp_path)
    with held(run.path) as holder:
        (staging,) = run.path.glob("claim-*/*")
        (staging / "rows.jsonl").write_text("half")
        holder.kill()
        holder.wait()
    with run.claimed():
        assert not list(run.path.glob("**/rows.jsonl"))
    assert sorted(path.name for path in run.path.iterdir()) == ["settings.json"]


# ---- rows ----------------------------------------------------------------------------------------------------------------


def rows_folder(folder: Path, rows: bytes) -> RunFolder:
    run = tiny_folder(folder)
    with run.claimed():
        (run.path / "rows.jsonl").write_bytes(rows)
    return run


GOOD = to_line({"epoch": 1, "acc": 0.25}) + to_line({"epoch": 2, "acc": 0.5})


def test_a_last_row_torn_at_any_byte_is_dropped(tmp_path: Path) -> None:
    whole = [{"epoch": 1, "acc": 0.25}, {"epoch": 2, "acc": 0.5}]
    for length in range(GOOD.index(b"\n") + 1, len(GOOD) + 1):
        run = rows_folder(tmp_path, GOOD[:length])
        with run.claimed():
            complete = 2 if length >= len(GOOD) - 1 else 1  # without its newline it still is whole
            assert run.rows == whole[:complete]
            run.drop_rows_from(3)
            run.log(epoch=3, acc=1.0)
        lines = (run.path / "rows.jsonl").read_bytes().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [*range(1, complete + 1), 3]


@pytest.mark.parametrize(
    "damaged",
    [
        GOOD.replace(b'"acc": 0.25', b'"acc": 0.2#'),
        GOOD.replace(b'"acc": 0.25', b'"acc": 0.35'),
        GOOD.replace(b'"crc32"', b'"crc33"', 1),
        GOOD.replace(b"}", b"", 1),
        GOOD.replace(b"0.25", b"\xff\xfe"),
        GOOD.replace(b"epoch", b"epoci", 1),
        b"17\n" + GOOD,
        b"null\n" + GOOD,
        b'{"epoch": "1"}\n' + GOOD,
        GOOD.replace(b"\n", b"", 1),
    ],
)
def test_a_damaged_row_that_is_not_the_last_is_an_error_that_names_the_line(
    tmp_path: Path, damaged: bytes
) -> None:
    run = rows_folder(tmp_path, damaged)
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1 is damaged; remove .*tiny-"), run.claimed():
        pass


def test_a_damaged_row_is_one_line_on_the_command_line(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    kill = [["killpoints", "install", "before replace final.pt"]]
    assert zygote.run(tiny_run, tmp_path, hooks=kill).code == -signal.SIGKILL
    (path,) = tmp_path.rglob("rows.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"lr"', b"#lr#", 1))
    assert "rows.jsonl, line 1 is damaged" in zygote.run(tiny_run, tmp_path).one_line


def test_a_number_that_is_not_finite_is_not_logged(tmp_path: Path) -> None:
    run = tiny_folder(tmp_path)
    with run.claimed(), pytest.raises(Diverged, match="test_loss is not finite in epoch 4"):
        run.log(epoch=4, test_loss=float("nan"))
    assert not run.rows
    assert not (run.path / "rows.jsonl").exists()


# ---- data ------------------------------------------------------------------------------------------------------------------


def test_a_run_is_not_continued_on_other_data(zygote: Zygote, tiny_run: list[str], tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    words = [*tiny_run, "--dataset", f"npz:{data}"]
    write_npz(data, seed=0)
    assert zygote.run(words, tmp_path / "whole").code == 0
    assert zygote.run(words, tmp_path / "killed", hooks=KILL_AFTER_CHECKPOINT).code == -signal.SIGKILL
    write_npz(data, seed=1)
    before = files_of(tmp_path / "killed")
    line = zygote.run(words, tmp_path / "killed").one_line
    assert "was started on other data (train, test differs)" in line
    after = files_of(tmp_path / "killed")
    assert {Path(name).name for name in differing(before, after)} == {"failure.json", "holder.json"}
    write_npz(data, seed=0)
    assert zygote.run(words, tmp_path / "killed").code == 0
    assert not differing(files_of(tmp_path / "whole"), files_of(tmp_path / "killed"))


# ---- documented names --------------------------------------------------------------------------------------------------------


def finished(folder: Path, seed: int) -> RunFolder:
    """A folder with a result file that tells its run."""
    run = tiny_folder(folder, seed)
    with run.claimed():
        run.write_checked("out", f"numbers of {run.id}".encode())
    return run


def test_a_name_is_taken_by_the_latest_run_and_one_line_names_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = finished(tmp_path, 1), finished(tmp_path, 2)
    target = tmp_path / "results" / "name.json"
    for _ in range(2):
        with one.claimed():
            publish(one, one.path / "out", target, owner)
    assert capsys.readouterr().out == ""
    with two.claimed():
        publish(two, two.path / "out", target, owner)
    assert capsys.readouterr().out == f"{target} now holds run {two.id}; it held run {one.id}\n"
    assert target.read_text() == f"numbers of {two.id}"
    assert [path.name for path in target.parent.iterdir()] == ["name.json"]


def test_files_that_a_user_brought_are_kept_each_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, target = finished(tmp_path, 1), tmp_path / "results" / "name.json"
    for number in (1, 2):
        target.parent.mkdir(exist_ok=True)
        target.write_text(f"my numbers {number}")
        with run.claimed():
            publish(run, run.path / "out", target, owner)
        assert "was not made by perturblab; kept as name.json.before-" in capsys.readouterr().err
    kept = sorted(path.read_text() for path in target.parent.glob("name.json.before-*"))
    assert kept == ["my numbers 1", "my numbers 2"]
    assert target.read_text() == f"numbers of {run.id}"


def test_two_runs_with_one_documented_name_on_the_command_line(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    short = [*tiny_run, "--epochs", "1", "--robustness_masks", "0"]
    for folder, text in (("results", "{}"), ("checkpoints", "no checkpoint")):
        (tmp_path / folder).mkdir()
        suffix = {"results": "json", "checkpoints": "pt"}[folder]
        (tmp_path / folder / f"vgg11_masked_seed0.{suffix}").write_text(text)
    first = zygote.run(short, tmp_path)
    assert first.output.count("was not made by perturblab; kept as") == 2
    second = zygote.run([*short, "--lr", "0.01"], tmp_path)
    told = [line for line in second.output.splitlines() if "now holds run" in line]
    ids = {path.name.rpartition("-")[2] for path in (tmp_path / "perturblab_runs" / "masked-loss").iterdir()}
    assert len(told) == 2
    assert all(run_id in line for run_id in ids for line in told)
    assert json.loads((tmp_path / "results" / "vgg11_masked_seed0.json").read_text())["lr"] == 0.01


def test_missing_exports_of_a_done_run_come_back_without_training(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    assert zygote.run(tiny_run, tmp_path).code == 0
    before = files_of(tmp_path)
    (times,) = tmp_path.rglob("timings.jsonl")
    trained = times.read_bytes()
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "checkpoints" / "vgg11_masked_seed0.pt").write_bytes(b"")
    again = zygote.run(tiny_run, tmp_path)
    assert again.code == 0
    after = files_of(tmp_path)
    assert [name for name in differing(before, after) if ".before-" not in name] == []
    assert times.read_bytes() == trained


@pytest.mark.parametrize("name", ["results.json", "final.pt"])
def test_a_damaged_result_is_never_used_silently(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path, name: str
) -> None:
    assert zygote.run(tiny_run, tmp_path, hooks=KILL_BEFORE_EXPORT).code == -signal.SIGKILL
    (path,) = tmp_path.rglob(name)
    good = path.read_bytes()
    for damaged in (good.replace(b"0", b"1", 1), good[:-20], b""):
        path.write_bytes(damaged)
        line = zygote.run(tiny_run, tmp_path).one_line
        assert f"{name} is damaged; remove " in line
        exported = [p for folder in ("results", "checkpoints") for p in (tmp_path / folder).glob("*")]
        assert all(p.read_bytes() != damaged for p in exported), "the damaged file was exported"
    path.write_bytes(good)
    assert zygote.run(tiny_run, tmp_path).code == 0


# ---- damaged checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """The folder of a run that was stopped in its last epoch with two checkpoints, and the undisturbed run."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train_tiny(folder / "stopped", stop_after=8)
    assert len(tiny_folder(folder / "stopped").checkpoints()) == 2
    return folder / "stopped", train_tiny(folder / "undisturbed")


def flipped(data: bytes, chance: random.Random) -> bytes:
    bit = chance.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def truncated(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(len(data))]


@pytest.mark.parametrize(("damage", "times"), [(flipped, 100), (truncated, 50)])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(
    stopped: tuple[Path, Trained],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes, random.Random], bytes],
    times: int,
) -> None:
    chance = random.Random(0)
    for number in range(times):
        here = tmp_path / str(number)
        shutil.copytree(stopped[0], here)
        newest = tiny_folder(here).checkpoints()[-1]
        newest.write_bytes(damage(newest.read_bytes(), chance))
        again = train_tiny(here)
        told = capsys.readouterr().err.strip().splitlines()
        assert [line for line in told if "is damaged" in line] == [
            f"warning: {newest} is damaged (its SHA-256 differs); going on from an earlier state"
        ]
        assert again.same(stopped[1])
        shutil.rmtree(here)


@pytest.mark.parametrize("lost", ["its digest", "half of its digest", "the file, not its digest"])
def test_a_checkpoint_without_its_digest_is_not_used(
    stopped: tuple[Path, Trained], tmp_path: Path, lost: str
) -> None:
    shutil.copytree(stopped[0], tmp_path / "run")
    newest = tiny_folder(tmp_path / "run").checkpoints()[-1]
    digest = newest.with_name(newest.name + ".sha256")
    if lost == "its digest":
        digest.unlink()
    elif lost == "half of its digest":
        digest.write_bytes(digest.read_bytes()[:30])
    else:
        newest.unlink()
    assert train_tiny(tmp_path / "run").same(stopped[1])


def test_when_every_checkpoint_is_damaged_one_line_says_so_and_the_next_call_starts_anew(
    stopped: tuple[Path, Trained], tmp_path: Path
) -> None:
    shutil.copytree(stopped[0], tmp_path / "run")
    run = tiny_folder(tmp_path / "run")
    for path in run.checkpoints():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"every checkpoint of .* is damaged; run the same command again"):
        train_tiny(tmp_path / "run")
    assert train_tiny(tmp_path / "run").same(stopped[1])


def test_damaged_checkpoints_on_the_command_line(zygote: Zygote, tiny_run: list[str], tmp_path: Path) -> None:
    words = [*tiny_run, "--checkpoint_every", "0"]
    assert zygote.run(words, tmp_path / "whole").code == 0
    kill = [["killpoints", "install", "after replace final.pt"]]
    here = tmp_path / "damaged"
    assert zygote.run(words, here, hooks=kill).code == -signal.SIGKILL
    one, two = sorted(here.rglob("checkpoint-*.pt"))
    for path in (one, two):
        path.write_bytes(path.read_bytes()[:1000])
    assert "every checkpoint of " in zygote.run(words, here).one_line
    assert zygote.run(words, here).code == 0
    assert not differing(files_of(tmp_path / "whole"), files_of(here))


def test_a_checkpoint_of_another_network_is_one_line(
    stopped: tuple[Path, Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(stopped[0], tmp_path / "run")
    monkeypatch.setattr(conftest, "fresh_model", lambda: conftest.TinyModel(units=7))
    with pytest.raises(UserError, match=r"does not fit this run .* remove that folder to start anew"):
        train_tiny(tmp_path / "run")


def test_checkpoints_are_two_and_none_when_the_run_is_done(tmp_path: Path) -> None:
    run = train_tiny(tmp_path).folder
    assert len(run.checkpoints()) == 2
    (run.path / "checkpoint-000009-00000001.pt.sha256").write_text("of a file that a kill prevented")
    with run.claimed():
        run.finish({})
    assert not list(run.path.glob("checkpoint-*"))


def test_the_folder_of_settings_is_named_by_them(tmp_path: Path) -> None:
    one, same, other = tiny_folder(tmp_path, 1), tiny_folder(tmp_path, 1), tiny_folder(tmp_path, 2)
    assert one.path == same.path == tmp_path / "tiny" / f"tiny-{Tiny(seed=1).id}"
    assert one.path != other.path
