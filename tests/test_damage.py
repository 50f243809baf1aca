"""A file of a run with a flipped bit, or cut short, is told in one line or changes nothing: never used in silence."""

import random
import re
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from commandline import parsed
from conftest import TIMED, Zygote, differing, files_of
from guarded import LIMITS, Answer, tried
from smokes import STUDIES, Smoke, smoke_of

NEVER_READ = {".png", ".html", ".csv", ".txt", ".pdf"}  # what is made for people


@dataclass(frozen=True)
class Scene:
    """A small run, whole and stopped in the middle, and the commands that read what it leaves."""

    words: list[str]
    readers: list[list[str]]
    done: Path
    stopped: Path


STATE = re.compile(r"after replace checkpoint-(N|pred.*)\.(pt|npy)$")


def readers_of(smoke: Smoke) -> list[list[str]]:
    """What only reads a finished run: its study's commands, and those of its grid."""
    words = smoke.words
    settings = parsed(*words)
    given = settings.model_dump(mode="json", include=settings.not_default())
    sets = [word for name, value in given.items() for word in ("--set", f"{name}={value}")]
    dataset = [*words[words.index("--dataset") :][:2], "--device", "cpu"] if "--dataset" in words else []
    evaluate = {
        "masked-loss": "evaluate --robustness_masks 1 --checkpoint checkpoints/vgg11_masked_seed0.pt",
        "adaptive-noise": "test -c checkpoints/best.pth -m resnet20 --width 0.0625",
    }.get(words[0], "")
    own = [[words[0], *evaluate.split(), *dataset]] if evaluate else []
    then = [one for one in smoke.then if one[:2] != ["layerwise-mi", "visualize"]]  # it reads an evaluation
    return [*own, *then, *([command, words[0], *sets] for command in ("status", "plan"))]


EVALUATION = "layerwise-mi evaluate"


@pytest.fixture(scope="module")
def scene(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Scene:
    """A small run of the study, or of its evaluation."""
    study = request.param.split()[0]
    folder = tmp_path_factory.mktemp(study)
    smoke = smoke_of(study, folder / "data")
    words, readers, before = [*smoke.words, "--checkpoint_every", "0"], readers_of(smoke), folder / "before"
    before.mkdir()
    if request.param == EVALUATION:
        assert zygote.run(words, before).code == 0
        words, *readers = smoke.then
    done, stopped = folder / "done", folder / "stopped"
    for place in (done, stopped):
        shutil.copytree(before, place)
    ended = zygote.run(words, done, hooks=[["killpoints", "install", 0, str(folder / "points")]])
    assert ended.code == 0, ended.output
    labels = (folder / "points").read_text().splitlines()
    states = [i for i, label in enumerate(labels, 1) if STATE.match(label)]
    kill = ["killpoints", "install", states[len(states) * 2 // 3], ""]
    ended = zygote.run(words, stopped, hooks=[*LIMITS, kill])
    assert ended.code == -signal.SIGKILL, ended.output
    return Scene(words, readers, done, stopped)


# ---- damaging ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """What is done to one file: ``bit`` of it is flipped, or it is cut to ``length`` bytes."""

    name: str
    bit: int | None
    length: int

    def __str__(self) -> str:
        what = f"bit {self.bit} flipped" if self.bit is not None else f"cut to {self.length} bytes"
        return f"{self.name} {what}"

    def do(self, folder: Path) -> bytes:
        path = folder / self.name
        data = bytearray(path.read_bytes())
        if self.bit is None:
            del data[self.length :]
        else:
            data[self.bit // 8] ^= 1 << self.bit % 8
        path.write_bytes(data)
        return bytes(data)


def damage_to(folder: Path, flip: bool, chance: random.Random) -> Damage:
    """To one of the files that a program reads, each kind as likely: there are dozens of some."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size and path.suffix not in NEVER_READ:
            kinds.setdefault(re.sub(r"\d+", "", path.name), []).append(path)
    path = chance.choice(kinds[chance.choice([*kinds])])
    size = path.stat().st_size
    name = str(path.relative_to(folder))
    return Damage(name, chance.randrange(8 * size) if flip else None, chance.randrange(size))


@dataclass
class Seen:
    """What became of so many damages."""

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)


def without_times(output: str) -> str:
    """What a command printed, without what no two calls have in common."""
    return re.sub(r"~?\d+:\d\d(:\d\d)?|about [\d.]+ \w+ more|process \d+|-?[\d.]+ (s|seconds)\b", "", output)


def unstamped(name: str, data: bytes) -> bytes:
    """A file with times, without those that are null: ``files_of`` leaves out the others."""
    return data.replace(b'"timestamp": null', b"") if Path(name).name in TIMED else data


def verdict(
    answer: Answer, usual: Answer, left: dict[str, bytes], expected: dict[str, bytes], damage: Damage
) -> str:
    """``told``, ``mended``, ``not used`` (nothing read the damaged file), or a fault."""
    if answer.fault or answer.code == 2:
        return answer.fault or "told"
    if answer.code != usual.code:
        return f"exit code {answer.code}"
    mended = left.get(damage.name, b"") == expected.get(damage.name, b"")
    warned = set(answer.warnings) - set(usual.warnings)
    if damage.name.endswith("timings.jsonl") and warned:  # when an epoch ended is gone, and said to be
        left, expected = ({n: unstamped(n, data) for n, data in files.items()} for files in (left, expected))
    other = {name for name in differing(left, expected) if ".before-" not in name} - {damage.name}
    if other:
        return f"silent: {', '.join(sorted(other)[:3])} differ"
    if warned:
        return "told"
    if not mended and without_times(answer.output) != without_times(usual.output):
        return "silent: it prints something else"
    return "mended" if mended else "not used"


def check(zygote: Zygote, scene: Scene, flips: int, cuts: int, folder: Path, seed: int) -> Seen:
    chance, seen, here = random.Random(seed), Seen(), folder / "here"

    def after(words: list[str], before: Path, damage: Damage | None) -> tuple[Answer, dict[str, bytes]]:
        shutil.copytree(before, here)
        if damage is not None:
            damage.do(here)
        answer, left = tried(zygote, words, here), files_of(here)
        shutil.rmtree(here)
        return answer, left

    usual = cache(lambda at, number: after(commands[number], (scene.done, scene.stopped)[at], None))
    commands = [scene.words, *scene.readers]
    for flip in (*[True] * flips, *[False] * cuts):
        at, number = chance.choice([(0, chance.randrange(len(commands))), (1, 0)])
        before = (scene.done, scene.stopped)[at]
        damage = damage_to(before, flip, chance)
        plain, expected = usual(at, number)
        assert plain.code == 0, plain.output
        answer, left = after(commands[number], before, damage)
        found = verdict(answer, plain, left, expected, damage)
        seen.outcomes[found.partition(":")[0]] += 1
        if found not in ("told", "mended", "not used"):
            seen.bad.append(
                f"{before.name}: {damage}: {' '.join(commands[number][:2])}: {found}\n{answer.output[-1500:]}"
            )
    return seen


def report(name: str, seen: Seen, began: float) -> None:
    n = seen.outcomes.total()
    counts = {
        what: seen.outcomes[what] for what in ("told", "mended", "not used", "silent", "traceback", "hang")
    }
    print(
        f"{name}: {n} damages: {', '.join(f'{k} {v}' for k, v in counts.items())}; {time.monotonic() - began:.0f} s"
    )


def damaged(zygote: Zygote, scene: Scene, flips: int, cuts: int, folder: Path, name: str) -> None:
    began = time.monotonic()
    seen = check(zygote, scene, flips, cuts, folder, seed=1)
    report(name, seen, began)
    assert not seen.bad, "\n".join(seen.bad)


@pytest.mark.parametrize("scene", ["masked-loss", EVALUATION], indirect=True)
def test_a_damaged_file_of_a_run_is_told_or_changes_nothing(
    zygote: Zygote, scene: Scene, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    damaged(zygote, scene, 4, 2, tmp_path, request.node.callspec.id)


@pytest.mark.soak
@pytest.mark.parametrize("scene", [*STUDIES, EVALUATION], indirect=True)
def test_of_400_flipped_bits_and_200_cuts_none_is_used_in_silence(
    zygote: Zygote, scene: Scene, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    damaged(zygote, scene, 67, 34, tmp_path, request.node.callspec.id)


# ---- each of these was used in silence, or ended in a traceback ------------------------------------------------------------


@pytest.mark.parametrize("scene", ["masked-loss"], indirect=True)
@pytest.mark.parametrize("name", ["results/vgg11_masked_seed0.json", "manifest.json"])
def test_a_digit_that_was_altered_in_a_json_file_is_told(
    zygote: Zygote, scene: Scene, tmp_path: Path, name: str
) -> None:
    words, before = scene.words, scene.stopped
    if name.startswith("results"):
        words, before = ["masked-loss", "visualize"], scene.done
    here = tmp_path / "here"
    shutil.copytree(before, here)
    (path,) = here.rglob(name)
    text = path.read_text()
    path.write_text(re.sub(r'("threads": |"final_test_acc": )\d', r"\g<1>7", text))
    assert path.read_text() != text
    answer = tried(zygote, words, here)
    assert (answer.code, answer.fault) == (2, "")
    assert "was altered since it was written; remove it" in answer.errors[0]


@pytest.mark.parametrize("scene", [EVALUATION], indirect=True)
def test_predictions_of_a_stopped_evaluation_that_are_damaged_are_made_again(
    zygote: Zygote, scene: Scene, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(scene.stopped, here)
    for path in here.rglob("checkpoint-predictions-*.npy"):
        path.write_bytes(path.read_bytes()[:-1])
    answer = tried(zygote, scene.words, here)
    assert answer.code == 0, answer.output
    assert not differing(files_of(here), files_of(scene.done))
