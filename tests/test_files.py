"""Files are whole or absent, whatever the disk does; what the disk refuses is told in one line."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Zygote, differing, environment, files_of, program, tiny_folder
from perturblab import files
from perturblab.files import read_checked, read_json, write_atomic, write_checked, write_json
from perturblab.runs import RunFolder
from perturblab.terminal import UserError

NOBODY = 65534


def temporaries(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*.tmp")]


# ---- one file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fdopen", "fsync", "chmod", "replace"])
def test_a_write_that_fails_at_any_call_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    opened = []

    def refuse(what: Any, *args: Any) -> None:
        opened.append(what)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, refuse)
        with pytest.raises(UserError, match=r"cannot write .*file: No space left on device"):
            write_atomic(path, b"new" * 1000)
    if call == "fdopen":
        os.close(opened[0])
    assert path.read_bytes() == b"old"
    assert not temporaries(tmp_path)
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_reader_sees_the_old_or_the_new_file_and_never_a_half_one(tmp_path: Path) -> None:
    """A second process writes a megabyte of one letter over a megabyte of another, again and again."""
    path = tmp_path / "file"
    write_atomic(path, b"a" * 2**20)
    code = (
        "import sys; from perturblab.files import write_atomic\n"
        "for i in range(60): write_atomic(sys.argv[1], b'ab'[i % 2 : i % 2 + 1] * 2**20)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], env=environment()) as writer:
        seen = set()
        while writer.poll() is None:
            data = path.read_bytes()
            assert len(data) == 2**20
            assert len(set(data)) == 1
            seen.add(data[:1])
    assert writer.returncode == 0
    assert seen == {b"a", b"b"}


def test_written_files_have_the_permissions_that_the_users_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "file", b"")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_json_is_strict_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "nan.json", {"value": float("nan")})
    assert not (tmp_path / "nan.json").exists()
    write_json(tmp_path / "good.json", {"b": 1, "a": None})
    assert (tmp_path / "good.json").read_text() == '{\n "b": 1,\n "a": null\n}\n'
    for damaged in (b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "bad.json").write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad\.json is damaged"):
            read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")


def test_every_bit_flip_and_every_truncation_of_a_checked_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_checked(path, b"some bytes")
    assert read_checked(path) == b"some bytes"
    beside = tmp_path / "file.sha256"
    assert subprocess.run(["sha256sum", "--quiet", "-c", beside.name], cwd=tmp_path).returncode == 0
    good, digest = path.read_bytes(), beside.read_bytes()
    for bit in range(8 * len(good)):
        path.write_bytes(flipped(good, bit))
        assert read_checked(path) is None
    path.write_bytes(good)
    for bit in range(8 * 64):
        beside.write_bytes(flipped(digest, bit))
        assert read_checked(path) is None
    beside.write_bytes(digest)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        assert read_checked(path) is None
    path.write_bytes(good)
    beside.unlink()
    assert read_checked(path) is None


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    """A damaged checkpoint is removed; one on a disk that is away for a moment must not be."""
    (tmp_path / "file").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*file: Is a directory"):
        read_checked(tmp_path / "file")


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


# ---- a disk that is full ---------------------------------------------------------------------------------------------

DISK_KB = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "perturblab-test", str(path)]
    if os.getuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount: the full disk was not tried")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module")
def enough(
    zygote: Zygote, tiny_run: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """What a run left, and what it and a second one that takes the documented names left, with space enough."""
    first, both = tmp_path_factory.mktemp("enough") / "first", tmp_path_factory.mktemp("enough") / "both"
    assert zygote.run([*small(tiny_run), "--lr", "0.01"], first).code == 0
    shutil.copytree(first, both)
    assert zygote.run(small(tiny_run), both).code == 0
    return first, both


def small(words: list[str]) -> list[str]:
    return [*words, "--checkpoint_every", "0", "--epochs", "2", "--batch_size", "36"]


@pytest.mark.parametrize("free_kb", [0, 4, 16, 64, 200, 400, 600, 700])
def test_a_full_disk_is_one_line_and_the_same_command_finishes_when_there_is_space(
    zygote: Zygote, tiny_run: list[str], enough: tuple[Path, Path], disk: Path, free_kb: int
) -> None:
    first, both = enough
    shutil.copytree(first, disk, dirs_exist_ok=True)
    before, after = files_of(first), files_of(both)
    fill(disk, free_kb)

    ended = zygote.run(small(tiny_run), disk)

    if ended.code:
        assert "No space left on device" in ended.one_line
        assert "cannot write " in ended.one_line
    else:
        assert free_kb >= 600, "so little space cannot have been enough"
    assert not temporaries(disk)
    here = files_of(disk)
    for name, data in before.items():
        assert here[name] in (data, after[name]), f"{name} is neither the old nor the new file"
    (disk / "filler").unlink()
    again = zygote.run(small(tiny_run), disk)
    assert again.code == 0, again.output
    assert not differing(after, files_of(disk))


def fill(disk: Path, free_kb: int) -> None:
    """Leave ``free_kb`` KiB free, by a file named filler."""
    status = os.statvfs(disk)
    rest = status.f_bavail * status.f_frsize - free_kb * 1024
    with open(disk / "filler", "wb") as file:
        file.write(b"\0" * rest)
    assert os.statvfs(disk).f_bavail * status.f_frsize == free_kb * 1024


def log_many(run: RunFolder) -> None:
    for number in range(100):
        run.log(epoch=1, text=str(number) * 500)


def test_a_row_that_only_fits_in_part_is_an_error_and_not_a_torn_line_in_the_middle(disk: Path) -> None:
    """write() takes what still fits without a word; the row after that must not be glued to it."""
    run = tiny_folder(disk)
    with run.claimed():
        run.log(epoch=1, text="x")
        fill(disk, 8)
        with pytest.raises(UserError, match=r"cannot write .*rows\.jsonl: No space left"):
            log_many(run)
        (disk / "filler").unlink()
    complete = [row["text"] for row in run.rows]
    with run.claimed():
        assert [row["text"] for row in run.rows] == complete


# ---- folders that cannot be written ----------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(npz: Path) -> Iterator[Path]:
    """A folder that another user can enter, with the data set in it (pytest's own folders are private)."""
    if os.getuid():
        pytest.skip("running a command as another user needs root: folders without permission were not tried")
    path = Path(tempfile.mkdtemp(prefix="perturblab-"))
    path.chmod(0o755)
    shutil.copy(npz, path / "tiny.npz")
    yield path
    shutil.rmtree(path)


def brought(words: list[str], folder: Path) -> list[str]:
    return [*words, "--dataset", f"npz:{folder / 'tiny.npz'}"]


def test_a_folder_without_write_permission_is_one_line(
    zygote: Zygote, tiny_run: list[str], elsewhere: Path
) -> None:
    ended = zygote.run(brought(tiny_run, elsewhere), elsewhere, user=NOBODY)
    assert "cannot write perturblab_runs/" in ended.one_line
    assert "Permission denied" in ended.one_line
    assert [path.name for path in elsewhere.iterdir()] == ["tiny.npz"]


@pytest.mark.parametrize("flag", ["--results_dir", "--checkpoint_dir"])
def test_results_that_cannot_be_exported_are_kept_and_exported_later_without_training(
    zygote: Zygote, tiny_run: list[str], elsewhere: Path, flag: str
) -> None:
    here, closed = elsewhere / "here", elsewhere / "closed"
    here.mkdir()
    os.chown(here, NOBODY, NOBODY)
    closed.mkdir(mode=0o755)
    words = [*brought(tiny_run, elsewhere), flag, str(closed)]
    assert f"cannot write {closed}/vgg11_masked_seed0" in zygote.run(words, here, user=NOBODY).one_line
    assert not list(here.rglob("timings.jsonl")), "told only after the training"
    os.chown(closed, NOBODY, NOBODY)
    assert zygote.run(words, here, user=NOBODY).code == 0
    (times,) = here.rglob("timings.jsonl")
    trained = times.read_bytes()
    os.chown(closed, 0, 0)
    for exported in closed.iterdir():
        exported.unlink()
    assert f"cannot write {closed}/vgg11_masked_seed0" in zygote.run(words, here, user=NOBODY).one_line
    assert list(here.rglob("results.json"))
    os.chown(closed, NOBODY, NOBODY)
    assert zygote.run(words, here, user=NOBODY).code == 0
    assert [path.stem for path in closed.iterdir()] == ["vgg11_masked_seed0"]
    assert times.read_bytes() == trained


@pytest.mark.parametrize("flag", ["--results_dir", "--checkpoint_dir", "--runs_dir"])
def test_a_file_where_a_folder_is_needed_is_one_line_that_names_it(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path, flag: str
) -> None:
    (tmp_path / "taken").write_text("mine")
    for place in ("taken", "taken/below"):
        line = zygote.run([*tiny_run, "--epochs", "1", flag, place], tmp_path).one_line
        assert f"cannot write {place}/" in line
        assert "one of its folders is a file" in line
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_where_the_results_file_belongs_is_one_line(
    zygote: Zygote, tiny_run: list[str], tmp_path: Path
) -> None:
    (tmp_path / "results" / "vgg11_masked_seed0.json").mkdir(parents=True)
    assert "vgg11_masked_seed0.json: Is a directory" in zygote.run(tiny_run, tmp_path).one_line


@pytest.mark.slow
def test_the_real_command_on_a_full_disk_is_one_line_too(disk: Path, tiny_run: list[str]) -> None:
    fill(disk, 0)
    ended = subprocess.run(program(*tiny_run), cwd=disk, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "No space left on device" in ended.stderr
