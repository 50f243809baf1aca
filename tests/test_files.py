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

from conftest import Zygote, environment
from perturblab import files
from perturblab.files import read_checked, read_json, write_atomic, write_checked, write_json
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
