"""Shared by the tests: small data and a small model, and the kill harness."""

import contextlib
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from perturblab.augment import AUGMENTS
from perturblab.images import ImageSet, ShuffledSource
from perturblab.measure import score
from perturblab.objectives import Clock, Objective
from perturblab.objectives.cross_entropy import CrossEntropy
from perturblab.runs import Row, RunFolder, run_folder
from perturblab.schedules import Schedule, multistep
from perturblab.settings import Settings, flag
from perturblab.signals import StopFlag
from perturblab.sites import Site, Step, SteppedModel
from perturblab.train import Decision, Epoch, Recipe, fit

TESTS = Path(__file__).parent
# Under nohup SIGHUP is ignored, here and in every process that a test starts.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# The tests' operations are small: two threads only wait for each other and for other workers.
torch.set_num_threads(1)
# Several threads, where a test asks for them, do not spin for a core that another process has.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
ONE_THREAD |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
# Imported before the first fork: what a run imports on its way, also where another user may not read it.
MODULES = (
    "perturblab.studies.masked_loss.run", "perturblab.studies.first_layer_mi.run",
    "perturblab.studies.layerwise_mi.evaluate", "perturblab.studies.correction.cell", "perturblab.studies.adaptive_noise.run",
    "perturblab.studies.masked_loss.figures", "torch._dynamo", "encodings.cp437",
)  # fmt: skip

# ---- small things ------------------------------------------------------------------------------------------------


class TinyModel(SteppedModel):
    """Convolution, BatchNorm, ReLU; hidden layer with dropout; output. Sites ``conv1`` and ``hidden``."""

    def __init__(self, classes: int = 3, units: int = 6, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.hidden = nn.Sequential(nn.Linear(4 * 16, units), nn.ReLU(), nn.Dropout(dropout))
        self.output = nn.Linear(units, classes)
        self._sites = Site("conv1", "conv.2", (4, 8, 8)), Site("hidden", "hidden.2", (units,))

    def steps(self) -> list[Step]:
        conv1, hidden = self._sites
        pool = nn.functional.avg_pool2d
        return [
            (conv1, self.conv),
            (None, lambda maps: pool(maps, 2).flatten(1)),
            (hidden, self.hidden),
            (None, self.output),
        ]


def tiny_images(n: int = 20, classes: int = 3, seed: int = 0) -> ImageSet:
    """Noise whose brightness tells the class: learnable, uint8 ``[n 1 8 8]``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    noise = torch.randint(0, 120, (n, 1, 8, 8), generator=generator)
    images = (noise + labels.view(n, 1, 1, 1) * 50).to(torch.uint8)
    return ImageSet(images, labels, tuple("abc"[:classes]), (0.4,), (0.3,))


@pytest.fixture
def images() -> ImageSet:
    """20 images of three classes: in batches of 8 the last one is short."""
    return tiny_images()


@pytest.fixture
def model() -> SteppedModel:
    """A small network with BatchNorm and dropout, the same at each use."""
    return fresh_model()


def fresh_model(seed: int = 0) -> TinyModel:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return TinyModel()


@pytest.fixture(scope="session")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of a few dozen images as a user brings it; with batches of 20 the last one is short."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    write_npz(path, seed=0)
    return path


def write_npz(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", 72), ("test", 24)):
        labels = np.arange(n) % 4
        arrays[f"y_{split}"] = labels
        noise = random.integers(0, 90, (n, 8, 8))
        arrays[f"x_{split}"] = (noise + labels[:, None, None] * 40).astype(np.uint8)
    np.savez(path, **arrays)


@pytest.fixture(scope="session")
def tiny_run(npz: Path) -> list[str]:
    """The words of a small but whole run: 3 epochs of 4 steps, masks, robustness, exports; a third of a second."""
    return [
        *[
            "masked-loss",
            "train",
            "--arch",
            "vgg11",
            "--mode",
            "masked",
            "--seed",
            "0",
            "--width",
            "0.05",
            "--epochs",
            "3",
            "--batch_size",
            "20",
        ],
        *[
            "--robustness_masks",
            "2",
            "--clamp",
            "rescale",
            "--lr",
            "0.05",
            "--threads",
            "1",
            "--device",
            "cpu",
        ],
        *("--dataset", f"npz:{npz}"),
    ]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """``smoke(study)``: the words of a small but whole run of that study. See ``smokes.py``."""
    from smokes import smoke_of

    return cache(lambda study: smoke_of(study, tmp_path_factory.mktemp(study)))


# ---- a tiny run in this process -----------------------------------------------------------------------------------


class Tiny(Settings):
    """Settings of a run that no study has."""

    study = "tiny"
    command = "train"

    seed: int = flag(0, "Random seed.")


def tiny_folder(folder: Path, seed: int = 0) -> RunFolder:
    return run_folder(Tiny(seed=seed), "tiny", folder)


@dataclass
class Trained:
    """What a call of ``train_tiny`` left: the weights and buffers, the rows, the epochs that fit yielded."""

    weights: dict[str, torch.Tensor]
    rows: bytes
    epochs: list[Epoch]
    folder: RunFolder

    def same(self, other: "Trained") -> bool:
        """Equal to the last bit, weights and rows."""
        names = self.weights.keys() == other.weights.keys()
        return names and self.rows == other.rows and same_weights(self.weights, other.weights)


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def train_tiny(
    folder: Path,
    objective: Objective | None = None,
    stop: StopFlag | None = None,
    stop_after: int = 0,
    decide: Callable[[list[Row]], Decision] = lambda rows: Decision(),
    body: Callable[[RunFolder, Epoch], None] = lambda run, epoch: None,
    batch_size: int = 8,
    **recipe: Any,
) -> Trained:
    """Train the small model as a study does, from where the folder stands; 3 epochs of 3 steps unless told.

    ``stop_after``: SIGTERM comes during that step, counted from 1.
    """
    images, model, run = tiny_images(), fresh_model(), tiny_folder(folder)
    settings = {
        "epochs": 3,
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "lr": multistep(0.1, (2,)),
        "checkpoint_every_s": 0.0,
        **recipe,
    }
    if stop_after:
        stop, settings["lr"] = stopping_after(stop_after, settings["lr"])
    source = ShuffledSource(images, batch_size, seed=0, augment=AUGMENTS["crop"])
    seen = []
    with run.claimed(), one_thread():
        for epoch in fit(run, model, objective or CrossEntropy(), source, Recipe(**settings), stop, decide):
            body(run, epoch)
            accuracy = score(model, images).accuracy
            run.log(kind="epoch", epoch=epoch.number, lr=epoch.lr, **epoch.means, acc=accuracy)
            seen.append(epoch)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return Trained(weights, (run.path / "rows.jsonl").read_bytes(), seen, run)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Two wait for each other on a machine that is busy with other tests, and take seconds for nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stopping_after(steps: int, lr: Schedule) -> tuple[StopFlag, Schedule]:
    """A flag that SIGTERM raises during the ``steps``-th step, and the schedule that counts: fit asks it per step."""
    flag, left = StopFlag(), steps

    def counted(clock: Clock) -> float:
        nonlocal left
        left -= 1
        if left == 0:
            flag.number = signal.SIGTERM
        return lr(clock)

    return flag, counted


# ---- processes ---------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """This process's environment with its Python first on the path, one thread, and not inside Grid Engine."""
    kept = {name: value for name, value in os.environ.items() if name not in ("SGE_ROOT", "JOB_ID")}
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, **ONE_THREAD, **more}


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that another process does; a folder it removes while ``true`` looks inside means: not yet."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(FileNotFoundError):
            if true():
                return
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def program(*words: str) -> list[str]:
    """The real command line."""
    return [sys.executable, "-m", "perturblab", *words]


@dataclass(frozen=True)
class Ended:
    """A process that ended: its exit code (negative: the signal that killed it) and all that it printed."""

    code: int
    output: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def one_line(self) -> str:
        """What a user who did something wrong sees: exactly one line, exit code 2, no traceback."""
        assert self.code == 2, self
        return self.line

    @property
    def line(self) -> str:
        """The only line that was said."""
        assert "Traceback" not in self.output, self.output
        assert len(self.errors) == 1, self.output
        return self.errors[0]


class Zygote:
    """Starts the command line in forked processes, one at a time. See ``zygote.py``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "zygote.py"), *MODULES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(
                JE_ARROW_MALLOC_CONF="background_thread:false"
            ),  # pandas' pyarrow would start one
            bufsize=0,
        )
        assert self._read() == {"ready": True}

    def start(
        self,
        words: list[str],
        folder: Path,
        hooks: list[list[Any]] | None = None,
        user: int = 0,
        **env: str,
    ) -> int:
        """Start ``perturblab WORDS`` in ``folder``, optionally as another ``user``; its pid."""
        folder.mkdir(parents=True, exist_ok=True)
        self.output = self.folder / "output"
        self.output.write_bytes(b"")
        request = {
            "words": words,
            "folder": str(folder),
            "output": str(self.output),
            "environment": environment(**env),
            "user": user,
            "hooks": hooks or [],
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        return int(self._read()["pid"])

    def wait(self) -> Ended:
        code = os.waitstatus_to_exitcode(self._read()["status"])
        return Ended(code, self.output.read_text(errors="replace"))

    def ends_within(self, seconds: float) -> bool:
        """Whether the child has ended, at the latest after so many seconds."""
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def run(self, words: list[str], folder: Path, **options: Any) -> Ended:
        self.start(words, folder, **options)
        return self.wait()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the zygote died"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """``zygote.run(words, folder)``: the real command line in a process of its own, in a third of a second."""
    if not sys.platform.startswith("linux"):
        pytest.skip("forking after importing torch is only safe on Linux")
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.close()


@pytest.fixture(scope="session")
def whole_run(
    zygote: Zygote, smoke: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[str]]:
    """``whole_run(name)``: the words of one of ``smokes.RUNS``, which saves its state after each step."""

    @cache
    def words(name: str) -> list[str]:
        study, _, evaluates = name.partition(" ")
        train = [*smoke(study).words, "--checkpoint_every", "0"]
        if not evaluates:
            return train
        folder = tmp_path_factory.mktemp("trained")
        ended = zygote.run(train, folder)
        assert ended.code == 0, ended.output
        return [*smoke(study).then[0], "--checkpoint", str(folder / "checkpoints" / "vgg9_best.pth")]

    return words


# ---- the kill harness --------------------------------------------------------------------------------------------

# What differs between runs by nature: times, process ids, logs. The manifest's content is compared.
TIMED = {
    "epoch_metrics.jsonl", "noise_metrics.jsonl", "optimization_flags.jsonl", "controller.jsonl", "final_metrics.json", "all_metrics.json",
}  # fmt: skip
NOT_COMPARED = {"timings.jsonl", "claim", "log.txt"}


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their relative path, also the hidden ones; those with times or pids only by name."""
    return {
        str(path.relative_to(folder)): b"" if path.name in NOT_COMPARED else without_times(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_times(path: Path) -> bytes:
    """The bytes of a file; of one that tells when each epoch ended, those of the same one without its times."""
    if path.name.removesuffix(".sha256") in TIMED:
        return re.sub(
            rb'("timestamp": "[^"]*"|"total_training_time": [0-9.e+-]+|"content_sha256": "[^"]*")',
            b"",
            b"" if path.suffix == ".sha256" else path.read_bytes(),
        )
    if not path.name.startswith("events.out.tfevents"):
        return path.read_bytes()
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto import event_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = [event_pb2.Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
    for event in events:
        event.wall_time = 0
        for value in event.summary.value:
            plugin = value.metadata.plugin_data
            if plugin.plugin_name == "hparams":
                content = plugin_data_pb2.HParamsPluginData.FromString(plugin.content)
                content.experiment.time_created_secs = content.session_start_info.start_time_secs = 0
                content.session_end_info.end_time_secs = 0
                plugin.content = content.SerializeToString(deterministic=True)
    return b"".join(event.SerializeToString(deterministic=True) for event in events)


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """The files that differ or that one of both lacks."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def stage_of(folder: Path) -> str:
    """How far the run in ``folder`` had come when it was killed, in words."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = [path.name for path in files]
    if any(path.suffix == ".tmp" or ("claim-" in str(path) and path.name != "holder.json") for path in files):
        return "during a write"
    if "settings.json" not in names:
        return "before the run folder"
    if "results.json" in names:
        exported = (folder / "results").exists() + (folder / "checkpoints").exists()
        return ("results, not exported", "half exported", "all exported")[exported]
    if any("robustness" in path.read_text() for path in folder.rglob("rows.jsonl")):
        return "measuring robustness"
    checkpoints = sorted(name for name in names if name.startswith("checkpoint-") and name.endswith(".pt"))
    if not checkpoints:
        return "before the first checkpoint"
    epoch, step = map(int, checkpoints[-1][11:-3].split("-"))
    return f"after step {step} of epoch {epoch}"


@dataclass
class Killed:
    """What the kill harness saw: the stage of each kill, how many runs were brought to their end, what differs."""

    stages: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return self.stages.total()


KillAtRandom = Callable[..., Killed]


class Real:
    """Starts ``python -m perturblab``, as a user does: several seconds each time."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"

    def start(self, words: list[str], folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                program(*words), cwd=folder, env=environment(), stdout=output, stderr=output
            )
        return self.process.pid

    def wait(self) -> Ended:
        return Ended(self.process.wait(), self.output.read_text())

    def ends_within(self, seconds: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None


@pytest.fixture
def kill_at_random(zygote: Zygote, tmp_path: Path) -> KillAtRandom:
    """``kill_at_random(words, folder, kills, seed)``: run the command, SIGKILL it after a random time, start it again
    until it is done, in fresh folders until ``kills`` have hit; compare every file with an undisturbed run.

    ``real=True`` starts ``python -m perturblab`` each time; else the zygote forks.
    """

    def harness(words: list[str], folder: Path, kills: int, seed: int, real: bool = False) -> Killed:
        runner = Real(tmp_path) if real else zygote
        began = time.monotonic()
        runner.start(words, folder / "undisturbed")
        ended = runner.wait()
        assert ended.code == 0, ended.output
        whole, expected = time.monotonic() - began, files_of(folder / "undisturbed")
        chance, seen = random.Random(seed), Killed()
        while seen.kills < kills:
            here = folder / f"killed-{seen.runs}"
            began_here, kills_before = time.monotonic(), seen.kills
            ended = Ended(-signal.SIGKILL, "")
            while ended.code:
                pid = runner.start(words, here)
                # Sometimes later than its end, so that it comes to one.
                if seen.kills < kills and not runner.ends_within(chance.uniform(0, 1.1 * whole)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                ended = runner.wait()
                assert ended.code in (0, -signal.SIGKILL), ended.output
                if ended.code:
                    seen.stages[stage_of(here)] += 1
            if seen.kills == kills_before:  # faster than the first one, on a machine that was busy then
                whole = min(whole, time.monotonic() - began_here)
            seen.runs += 1
            seen.differing += [f"{here.name}/{name}" for name in differing(expected, files_of(here))]
            shutil.rmtree(here)
        seen.seconds = time.monotonic() - began
        return seen

    return harness
