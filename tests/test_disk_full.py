"""A disk that is full at any write: one line that names the file, old files whole, no temporary left; with space again
the same command ends with the files of an undisturbed run."""

import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conftest import TIMED, Ended, Zygote, differing, environment, files_of, program, tiny_folder
from killpoints import fill, used_kb
from perturblab.files import digest
from perturblab.runs import RunFolder
from perturblab.terminal import UserError
from smokes import FORK, STUDIES, Smoke, write_grid

DISK_KB = 12_288
BLOCK_KB = 4


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 12 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KB}k", "perturblab-test", str(path)]
    if os.getuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root and the right to mount: the full disk was not tried")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


# ---- what must hold ---------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What a number of full disks did to a command."""

    tries: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.tries} full disks, {self.refused.total()} told in one line (of {len(self.refused)} files), "
            f"{len(self.wrong)} wrong"
        )


def tell(seen: Seen, what: str) -> None:
    print(f"{what}: {seen}: {', '.join(f'{name} {n}' for name, n in sorted(seen.refused.items()))}")
    assert not seen.wrong, "\n".join(seen.wrong)


@dataclass
class Case:
    """A command in a folder with a history, and what it leaves there with space enough."""

    zygote: Zygote
    words: list[str]
    before: Path
    after: dict[str, bytes]
    disk: Path
    hooks: list[list[Any]] = field(default_factory=list)

    def fresh(self) -> None:
        for path in self.disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.before, self.disk, dirs_exist_ok=True)

    def call(self, *hooks: list[Any]) -> Ended:
        return self.zygote.run(self.words, self.disk, hooks=[*self.hooks, *hooks])

    def points(self) -> list[tuple[str, int]]:
        """Every moment at which an undisturbed run changes a file, and the KiB that are used more than before it."""
        self.fresh()
        log, start = self.before.with_name("points"), used_kb(self.disk)
        log.unlink(missing_ok=True)
        ended = self.call(["killpoints", "used_at_each", str(log), str(self.disk)])
        assert ended.code == 0, ended.output
        assert not differing(self.after, files_of(self.disk))
        found = [line.split("\t") for line in log.read_text().splitlines()]
        return [(label, int(used) - start) for label, used in found]

    def try_(self, seen: Seen, how: str, free_kb: int | None = None, *hooks: list[Any]) -> Ended:
        """Run on the disk as it fills, then again with space; keep what was not as it must be."""
        self.fresh()
        if free_kb is not None:
            fill(self.disk, free_kb)
        ended = self.call(*hooks)
        there = {name: data for name, data in files_of(self.disk).items() if name != "filler"}
        bad = [*self.wrong_words(ended), *wrong_files(files_of(self.before), there, self.after)]
        (self.disk / "filler").unlink(missing_ok=True)
        again = self.call()
        seen.tries += 1
        if ended.code:
            seen.refused[refused_file(ended)] += 1
        if again.code:
            bad.append(f"with space again it ended with {again.code}: {again.output}")
        bad += [
            f"{name} differs after the second call" for name in differing(self.after, files_of(self.disk))
        ]
        seen.wrong += [f"{how}: {one}" for one in bad]
        return ended

    def wrong_words(self, ended: Ended) -> list[str]:
        if ended.code == 0:
            return []
        good = ended.code == 2 and len(ended.errors) == 1 and "Traceback" not in ended.output
        return (
            [] if good and re.search(REFUSED, ended.output) else [f"exit code {ended.code}: {ended.output}"]
        )


REFUSED = r"cannot write \S+: No space left on device; free some space, then run the same command again: finished work is kept"


def refused_file(ended: Ended) -> str:
    """The kind of file that the line names."""
    name = Path((re.findall(r"cannot write (\S+?): ", ended.output) or ["told in a log"])[0]).name
    return re.sub(r"\d{6}-\d{8}|[0-9a-f]{10}", "N", name)


def wrong_files(before: dict[str, bytes], there: dict[str, bytes], after: dict[str, bytes]) -> list[str]:
    """Temporaries, files that were there and are neither old nor new, exported ones that are half there, wrong digests."""
    bad = [f"{name} is left" for name in there if name.endswith(".tmp") or "claim-" in name]
    bad += [f"{name} is lost" for name in before.keys() - there.keys() if name in after]
    for name, data in there.items():
        growing = "perturblab_runs/" in name and name not in before
        if not growing and data not in (before.get(name), after.get(name)):
            bad.append(f"{name} is neither the old nor the new file")
        beside = there.get(f"{name}.sha256", b"").split()[:1]
        if beside and Path(name).name not in TIMED and beside != [digest(data).encode()]:
            bad.append(f"{name} does not fit its digest")
    return bad


# ---- the five studies --------------------------------------------------------------------------------------------------


@pytest.fixture
def case(
    zygote: Zygote, smoke: Callable[[str], Smoke], disk: Path, tmp_path: Path
) -> Callable[[str, int], Case]:
    """``case(study, n)``: the n-th command of a study's smoke run, where another run had its files' names before."""

    def make(study: str, number: int) -> Case:
        s = smoke(study)
        every = [[*s.words, "--checkpoint_every", "0"], *s.then]
        other = [[*every[0], *s.other], *s.then]
        for words in [*other[: number + 1], *every[:number]]:
            ended = zygote.run(words, tmp_path / "before")
            assert ended.code == 0, ended.output
        shutil.copytree(tmp_path / "before", tmp_path / "after")
        ended = zygote.run(every[number], tmp_path / "after")
        assert ended.code == 0, ended.output
        return Case(zygote, every[number], tmp_path / "before", files_of(tmp_path / "after"), disk)

    return make


def spread(items: list[Any], n: int) -> list[Any]:
    """``n`` of them at most, evenly, the first and the last among them."""
    if len(items) <= n:
        return items
    return [items[round(i * (len(items) - 1) / max(n - 1, 1))] for i in range(n)]


def levels_of(points: list[tuple[str, int]], n: int) -> list[int]:
    """KiB free before the run, each a block too few for one more write; where there are few writes, also levels between."""
    marks, highest = [], 0
    for _, used in points:
        if used > highest:
            highest = used
            marks.append(used - BLOCK_KB)
    between = [kb for kb in range(0, highest, BLOCK_KB) if kb not in marks]
    return sorted([*spread(marks, n), *spread(between, max(n - len(marks), 0))])


def moments_of(points: list[tuple[str, int]], n: int) -> list[str]:
    """A label for each kind of file that is opened, written or put in place."""
    labels = dict.fromkeys(label for label, _ in points)
    return spread([label for label in labels if re.match("before (open|write|mkdir|fsync)", label)], n)


def tried(case: Case, levels: int, moments: int) -> Seen:
    """What full disks do to a command: full before it starts, and filled up in the middle, to the last block or the last but one."""
    seen, points = Seen(), case.points()
    for free_kb in levels_of(points, levels):
        case.try_(seen, f"{free_kb} KiB free", free_kb)
    for i, label in enumerate(moments_of(points, moments)):
        free_kb = BLOCK_KB * (i % 2)
        fills = ["killpoints", "fill_at", label, 1, str(case.disk), free_kb]
        case.try_(seen, f"{free_kb} KiB free {label}", None, fills)
    return seen


RUNS = [(study, 0) for study in STUDIES]
READ = [
    ("masked-loss", 1),
    ("first-layer-mi", 1),
    ("layerwise-mi", 1),
    ("layerwise-mi", 2),
    ("adaptive-noise", 1),
]


@pytest.mark.parametrize(("study", "number"), [*RUNS, ("layerwise-mi", 1)])
def test_a_full_disk_is_one_line_that_names_the_file_and_nothing_is_lost(
    case: Callable[[str, int], Case], study: str, number: int
) -> None:
    one = case(study, number)
    tell(tried(one, 2, 3), shlex.join(one.words[:2]))


@pytest.mark.soak
@pytest.mark.parametrize(("study", "number"), [*RUNS, *READ])
def test_20_fill_levels_and_a_disk_that_fills_up_at_each_kind_of_write_lose_nothing(
    case: Callable[[str, int], Case], study: str, number: int
) -> None:
    """Also the figures that are drawn of the results."""
    one = case(study, number)
    tell(tried(one, 20, 20 if (study, number) in READ else 1000), shlex.join(one.words[:2]))


# ---- grids -------------------------------------------------------------------------------------------------------------


@dataclass
class Grid(Case):
    """Two runs at a time, one of which may have finished; where one failed the last line names the command that goes on."""

    def call(self, *hooks: list[Any]) -> Ended:
        ended = super().call(FORK, *hooks)
        if ended.code == 1 and not hooks and not (self.disk / "filler").exists():
            assert "perturblab retry" in ended.output
            return self.zygote.run(["retry", *self.words[1:]], self.disk, hooks=[FORK])
        return ended

    def wrong_words(self, ended: Ended) -> list[str]:
        """Each run that is not done says in one line what it could not write."""
        said = [ended.output, *(path.read_text() for path in self.disk.rglob("log.txt"))]
        bad = [text for text in said if "Traceback" in text]
        told = re.search(f"{REFUSED}|is the disk full", ended.output)
        fine = ended.code == 0 or (ended.code in (1, 2) and told)
        return bad if fine else [*bad, f"exit code {ended.code}: {ended.output}"]


@pytest.fixture
def grid_case(zygote: Zygote, npz: Path, disk: Path, tmp_path: Path) -> Callable[..., Grid]:
    def make(*words: str) -> Grid:
        before, after = tmp_path / "before", tmp_path / "after"
        for lr, folder in ((0.01, before), (0.05, after)):
            if folder == after:
                shutil.copytree(before, after)
            ended = zygote.run([*write_grid(folder, npz, lr), *words], folder, hooks=[FORK])
            assert ended.code == 0, ended.output
        return Grid(zygote, [*write_grid(before, npz), *words], before, files_of(after), disk)

    return make


@pytest.mark.parametrize("n", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_a_grid_with_two_runs_at_a_time_on_a_full_disk_says_what_it_could_not_write_and_goes_on_later(
    grid_case: Callable[..., Grid], n: int
) -> None:
    one = grid_case()
    seen, codes = Seen(), Counter[int]()
    for free_kb in spread(range(0, 1600, BLOCK_KB), n):
        codes[one.try_(seen, f"{free_kb} KiB free", free_kb).code] += 1
    tell(seen, f"a grid of two runs at a time, exit codes {dict(codes)}")


def test_a_script_that_does_not_fit_leaves_the_old_one(grid_case: Callable[..., Grid]) -> None:
    one, seen = grid_case("--jobs", "0", "--launcher", "script"), Seen()
    Case.try_(one, seen, "0 KiB free", 0)
    assert seen.refused == {"run_all.sh": 1}
    tell(seen, "run --launcher script")


# ---- rows, and output that is kept in a file ---------------------------------------------------------------------------


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


@pytest.mark.slow
def test_the_real_command_on_a_full_disk_is_one_line_too(disk: Path, tiny_run: list[str]) -> None:
    fill(disk, 0)
    ended = subprocess.run(program(*tiny_run), cwd=disk, env=environment(), capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "No space left on device" in ended.stderr


@pytest.mark.parametrize("command", [["plan", "masked-loss", "--all"], ["masked-loss", "visualize"]])
def test_output_that_its_file_cannot_take_is_no_traceback(
    smoke: Callable[[str], Smoke], zygote: Zygote, disk: Path, tmp_path: Path, command: list[str]
) -> None:
    if command[-1] == "visualize":
        assert zygote.run(smoke("masked-loss").words, tmp_path / "run").code == 0
    else:
        (tmp_path / "run").mkdir()
    (disk / "out").touch()
    fill(disk, 0)
    with open(disk / "out", "w") as out:
        ended = subprocess.run(
            program(*command), cwd=tmp_path / "run", env=environment(), stdout=out, stderr=subprocess.PIPE, text=True
        )  # fmt: skip
    assert ended.returncode in (0, 2)
    assert ended.stderr in (
        "warning: the output is cut here, it cannot be written: No space left on device\n",
        "error: cannot write the output: No space left on device; free some space\n",
    )
