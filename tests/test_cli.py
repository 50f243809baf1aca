"""The command line as a user meets it: the documented lines work, every flag acts, every slip is one clear line."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commandline import COMMANDS, called, parsed, refusal
from conftest import Zygote
from perturblab import experiment
from perturblab.cli import spread_lists
from perturblab.quickstart import Quickstart
from perturblab.settings import documented_flag, flags_of, is_argument, is_where
from perturblab.studies import STUDIES
from perturblab.studies.masked_loss import Sweep, Train, Visualize
from perturblab.studies.masked_loss import run as study
from perturblab.studies.masked_loss.arms import SETTINGS
from perturblab.terminal import UserError

TRAIN = ("masked-loss", "train", "--arch", "vgg11", "--mode", "masked", "--seed", "0")

# ---- what the document says to type ------------------------------------------------------------------------------

# Document 000, with `python train.py` as `perturblab masked-loss train`, and so on; then its table of arguments.
DOCUMENTED = {
    "train --arch vgg11 --mode baseline --seed 0": Train(arch="vgg11", mode="baseline", seed=0),
    "train --arch vgg11 --mode masked --seed 0": Train(arch="vgg11", mode="masked", seed=0),
    "sweep --mode sequential": Sweep(),
    "sweep --mode generate": Sweep(mode="generate"),
    "visualize": Visualize(),
    "train --arch vgg19 --mode masked --seed 2 --epochs 200 --batch_size 128 --lr 0.1 --n_masks 3 --lambda_max 1.0 "
    "--device cuda": Train(arch="vgg19", mode="masked", seed=2, device="cuda"),
    "train --arch vgg13 --mode masked --seed 1 --epochs 3 --batch_size 64 --lr 0.01 --n_masks 5 --lambda_max 0.5 "
    "--device cpu --momentum 0.8 --weight_decay 1e-4 --num_workers 2 --data_dir d --checkpoint_dir c --results_dir r": Train(
        arch="vgg13", mode="masked", seed=1, epochs=3, batch_size=64, lr=0.01, n_masks=5, lambda_max=0.5, device="cpu",
        momentum=0.8, weight_decay=1e-4, num_workers=2, data_dir="d", checkpoint_dir="c", results_dir="r",
    ),
    "sweep --architectures vgg11 vgg13 --modes baseline --seeds 0 1 --epochs 3 --batch_size 64 --lr 0.2 --n_masks 2 "
    "--device cpu --output_script all.sh": Sweep(
        architectures=("vgg11", "vgg13"), modes=("baseline",), seeds=(0, 1), epochs=3, batch_size=64, lr=0.2, n_masks=2,
        device="cpu", output_script="all.sh",
    ),
    "visualize --results_dir r --plots_dir p --architectures vgg11 --modes baseline masked --seeds 0 1 2": Visualize(
        results_dir="r", plots_dir="p", architectures=("vgg11",), modes=("baseline", "masked"), seeds=(0, 1, 2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("line", DOCUMENTED)
def test_a_documented_command_line_means_what_the_document_says(line) -> None:
    assert parsed("masked-loss", *line.split()) == DOCUMENTED[line]


def test_the_generated_script_has_a_line_for_each_of_the_24_runs_that_parses(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = called(
        "masked-loss", "sweep", "--mode", "generate", "--epochs", "3", "--data_dir", "my data"
    )
    assert code == 0
    assert "run_all.sh: 24 runs" in out
    assert os.access("run_all.sh", os.X_OK)
    text = Path("run_all.sh").read_text()
    runs = [line for line in text.splitlines() if line.startswith("python")]  # as the document greps them
    cells = list(Sweep(epochs=3, data_dir="my data").grid())
    assert [parsed(*shlex.split(line)[3:]) for line in runs] == cells
    comments = [line for line in text.splitlines() if re.match(r"# \d+/24: ", line)]
    assert [comment.split(": ")[1] for comment in comments] == [cell.name for cell in cells]


def test_a_prefix_changes_how_generated_lines_call_the_program(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = called(
        *["masked-loss", "sweep", "--mode", "generate", "--output_script", "deep/er/all.sh", "--prefix"],
        "qsub run.sh",
    )
    assert code == 0
    assert "grep '^qsub'" in out
    lines = [
        line for line in Path("deep/er/all.sh").read_text().splitlines() if "seed" in line and line[0] != "#"
    ]
    assert len(lines) == 24
    assert all(line.startswith("qsub run.sh masked-loss train --arch") for line in lines)


# ---- spellings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_understood_with_underscores_and_with_dashes(command) -> None:
    required = {
        "masked-loss train": TRAIN[2:], "masked-loss evaluate": ("--checkpoint", "x.pt"),
        "first-layer-mi train": ("--arch", "vgg9", "--seed", "0"), "correction run": ("-e", "lr_search"),
        "correction convert": ("x.pth",), **dict.fromkeys(("plan", "run", "status", "watch", "retry", "prune"), ("masked-loss",)),
        "compare": ("masked-loss", "masked-loss"),
    }.get(command, ())  # fmt: skip
    cls = COMMANDS[command].settings
    for field, info in cls.model_fields.items():
        if is_argument(info):
            continue
        value = {
            "mem": "8G",
            "time": "1:00:00",
            "gpu": "0",
            "save_predictions": "p.npz",
            "experiment": "lr_search",
            "save_as": "mine.pth",
            "device": "cuda:3",
            "dataset": "digits",
        }.get(field, {int: "3", float: "0.5", bool: "true", str: "words"}.get(info.annotation))
        if value is None:
            continue
        for flag in {
            name for name in (documented_flag(field, info), *flags_of(info)) if name.startswith("--")
        }:
            for spelling in (flag, flag.replace("_", "-"), flag.replace("-", "_").replace("__", "--", 1)):
                found = parsed(*command.split(), *required, spelling, value)
                assert str(getattr(found, field)).lower() == value.lower()


def test_an_alias_is_the_same_flag() -> None:
    assert parsed(
        *["masked-loss", "train", "--model", "vgg13", "--mode", "masked", "--seed", "0", "--workers", "2"]
    ) == Train(arch="vgg13", mode="masked", seed=0, num_workers=2)
    assert parsed(*TRAIN, "--num-workers=0") == parsed(*TRAIN, "--workers", "0")


@pytest.mark.parametrize("command", [("masked-loss", "train"), ("masked-loss", "sweep"), ("quickstart",)])
def test_half_loss_is_spelt_either_way(command) -> None:
    flag = "--mode" if command[-1] == "train" else "--modes"
    rest = ("--arch", "vgg11", "--seed", "0") if command[-1] == "train" else ()
    assert parsed(*command, *rest, flag, "half_loss") == parsed(*command, *rest, flag, "half-loss")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ((), False), (("--compile",), True), (("--compile", "True"), True), (("--compile", "false"), False),
        (("--compile=True",), True), (("--compile=no",), False), (("--compile", "1"), True), (("--compile", "0"), False),
        (("--compile", "--lr", "0.1"), True), (("--compile", "true", "--compile", "false"), False),
    ],
)  # fmt: skip
def test_a_yes_or_no_flag_works_with_and_without_a_value(words, value) -> None:
    assert parsed(*TRAIN, *words).compile is value


@pytest.mark.parametrize("words", [
    ("--seeds", "0", "1", "2"), ("--seeds", "0,1,2"), ("--seeds", "0", "--seeds", "1", "--seeds", "2"),
    ("--seeds=0,1,2",), ("--seeds=0", "1", "2"), ("--seeds", "0,1", "2"), ("--seeds", "0, 1,", "2"), ("--seeds=0,1", "--seeds=2"),
])  # fmt: skip
def test_a_list_is_given_in_any_of_the_usual_ways(words) -> None:
    for around in (("--epochs", "3"), ("--mode", "generate"), ()):
        assert parsed("masked-loss", "sweep", *words, *around).seeds == (0, 1, 2)
        assert parsed("masked-loss", "sweep", *around, *words).seeds == (0, 1, 2)
    assert parsed("quickstart", *words).seeds == (0, 1, 2)


def test_negative_numbers_are_values_and_not_flags() -> None:
    assert refusal(*TRAIN, "--lr", "-1").startswith("--lr -1 is refused")
    assert refusal(*TRAIN, "--lr", "-1e-3").startswith("--lr -1e-3 is refused")
    assert parsed("masked-loss", "visualize", "--seeds", "-1", "-2").seeds == (-1, -2)
    assert spread_lists(["--seeds", "-1", "-.5", "-inf", "-x"], {"--seeds"}) == [
        "--seeds", "-1", "--seeds", "-.5", "--seeds", "-inf", "-x",
    ]  # fmt: skip


def test_a_list_flag_with_an_underscore_is_known_in_both_spellings() -> None:
    for flag in ("--keep_sizes", "--keep-sizes"):
        assert spread_lists([flag, "1", "2"], {"--keep-sizes"}) == [flag, "1", flag, "2"]


def test_the_last_of_a_repeated_flag_wins() -> None:
    assert parsed(*TRAIN, "--lr", "0.5", "--lr", "0.25").lr == 0.25


def test_words_may_hold_spaces_equal_signs_and_commas() -> None:
    run = parsed(*TRAIN, "--data_dir", "a b,c=d", "--results_dir=x=y z")
    assert (run.data_dir, run.results_dir) == ("a b,c=d", "x=y z")


# ---- slips ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "told"), [
    ("maskd-loss", "no command 'maskd-loss'; did you mean 'masked-loss'?"),
    ("masked_loss train", "no command 'masked_loss'; did you mean 'masked-loss'?"),
    ("masked-loss trian", "no command 'trian'; did you mean 'train'?"),
    ("masked-loss plot", "no command 'plot'; choose from evaluate, sweep, train, visualize"),
    ("masked-loss train --arch vgg1 --mode masked --seed 0",
     "--arch 'vgg1' is not one of vgg11, vgg13, vgg16, vgg19; did you mean 'vgg1"),
    ("masked-loss train --arch vgg11 --mode maskd --seed 0",
     "--mode 'maskd' is not one of baseline, masked, half-loss; did you mean 'masked'?"),
    ("masked-loss sweep --modes bseline",
     "--modes 'bseline' is not one of baseline, masked, half-loss; did you mean 'baseline'?"),
    ("masked-loss sweep --mode generat",
     "--mode 'generat' is not one of sequential, parallel, generate; did you mean 'generate'?"),
    ("masked-loss train --epoch 3", "no flag '--epoch'; did you mean '--epochs'?"),
    ("masked-loss train --batchsize 3", "no flag '--batchsize'; did you mean '--batch-size'?"),
    ("masked-loss train --zzz", "no flag '--zzz'; see --help"),
    ("--verbos", "no flag '--verbos'"),
    ("masked-loss train", "--arch is required: one of vgg11, vgg13, vgg16, vgg19"),
    ("masked-loss train --arch vgg11 --mode masked", "--seed is required"),
    ("masked-loss evaluate", "--checkpoint is required"),
    ("masked-loss sweep --seeds", "--seeds needs one or more values"),
    ("masked-loss sweep --seeds --mode generate", "--seeds needs one or more values"),
    ("masked-loss sweep --seeds=", "--seeds needs one or more values"),
    ("masked-loss sweep --seeds 0 x", "--seeds x is refused: it must be a whole number"),
    ("masked-loss sweep --seeds 0 -1 --mode generate", "--seed -1 is refused: it must be a whole number, 0 or more"),
    ("masked-loss train --arch vgg11 vgg13", "Got unexpected extra argument (vgg13)"),
    ("masked-loss train --config none.yaml", "cannot read none.yaml: No such file or directory"),
    ("quickstart --epochs 0", "--epochs 0 is refused: it must be a whole number, 1 or more"),
])  # fmt: skip
def test_a_slip_is_told_in_one_line_with_the_nearest_name(words, told, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(*words.split()).startswith(told)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("words", "told"), [
    ("--epochs 0", "--epochs 0 is refused: it must be a whole number, 1 or more"),
    ("--epochs 1.5", "--epochs 1.5 is refused: it must be a whole number, 1 or more"),
    ("--epochs ten", "--epochs ten is refused: it must be a whole number, 1 or more"),
    ("--batch_size 0", "--batch_size 0 is refused: it must be a whole number, 1 or more"),
    ("--n_masks 0", "--n_masks 0 is refused: it must be a whole number, 1 or more"),
    ("--lr -1", "--lr -1 is refused: it must be a finite number, more than 0"),
    ("--lr 0", "--lr 0 is refused: it must be a finite number, more than 0"),
    ("--lr nan", "--lr nan is refused: it must be a finite number, more than 0"),
    ("--lr inf", "--lr inf is refused: it must be a finite number, more than 0"),
    ("--lambda_max -0.1", "--lambda_max -0.1 is refused: it must be a finite number, 0 or more"),
    ("--momentum 1", "--momentum 1 is refused: it must be a finite number, 0 or more and less than 1"),
    ("--width 0", "--width 0 is refused: it must be a finite number, more than 0 and at most 8"),
    ("--width 8.1", "--width 8.1 is refused: it must be a finite number, more than 0 and at most 8"),
    ("--seed -1", "--seed -1 is refused: it must be a whole number, 0 or more"),
    ("--compile perhaps", "--compile perhaps is refused: it must be True or False"),
    ("--suffix a/b", "--suffix a/b is refused: it must be a part of a file name"),
    ("--epochs", "Option '--epochs' requires an argument."),
])  # fmt: skip
def test_a_value_out_of_range_is_refused_with_the_range_in_words(words, told) -> None:
    assert refusal(*TRAIN, *words.split()) == told


def test_a_device_that_is_not_there_is_refused_and_not_replaced(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        told = refusal(*TRAIN, "--dataset", "digits", "--device", device)
        assert told == f"--device {device}: this machine has 0 CUDA devices; use --device auto or cpu"
    assert refusal(*TRAIN, "--device", "mps").startswith("--device mps: not available here")
    for device in ("gpu", "cuda:x", "meta", ""):
        told = refusal(*TRAIN, "--device", device)
        assert told == f"--device {device or repr('')} is refused: it must be auto, cpu, cuda, cuda:N or mps"
    assert refusal(*TRAIN, "--device", "cpu", "--precision", "tf32").startswith(
        "--precision tf32 exists on CUDA"
    )
    assert not list(tmp_path.iterdir())


def test_an_unknown_data_set_names_those_that_there_are(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cifar10" in refusal(*TRAIN, "--dataset", "cifar", "--device", "cpu")


def test_a_slip_in_a_real_process_is_one_line_and_exit_code_2(zygote: Zygote, tmp_path: Path) -> None:
    ended = zygote.run([*TRAIN, "--lr", "-1"], tmp_path)
    assert ended.one_line == "error: --lr -1 is refused: it must be a finite number, more than 0"
    assert ended.output.count("\n") == 1
    assert "did you mean '--epochs'" in zygote.run([*TRAIN, "--epochz", "1"], tmp_path).one_line


# ---- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_flag_as_documented_with_its_default_and_choices(command) -> None:
    code, out, errors = called(*command.split(), "--help")
    assert (code, errors) == (0, "")
    blocks = {}
    for block in re.split(r"\n  (?=-)", out):
        text = " ".join(block.split())
        for name in re.findall(r"^(?:-\w, )?(--\S+?),? ", text) + re.findall(
            r", (--\S+)", text.split("  ")[0]
        ):
            blocks[name] = text
    for field, info in COMMANDS[command].settings.model_fields.items():
        if is_argument(info):  # it stands in the line of usage
            assert f" {documented_flag(field, info)}" in out.splitlines()[0]
            continue
        block = blocks[documented_flag(field, info)]
        assert info.description.split()[0] in block
        default = info.default
        if info.is_required():
            assert "[required]" in block
        elif default not in ("", (), None):
            words = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert f"[default: {words}]" in block
    assert "--config FILE" in out


@pytest.mark.parametrize("command", [(), *((s,) for s in STUDIES), *(tuple(c.split()) for c in COMMANDS)])
def test_help_is_whole_sentences_without_markup_that_fit_the_window(command) -> None:
    code, out, _ = called(*command, "--help")
    assert code == 0
    assert called(*command, "-h") == (0, out, "")
    assert "..." not in re.sub(r"\[OPTIONS\]|ARGS|\]\.\.\.| \.\.\.", "", out).replace("COMMAND [", "")
    assert "``" not in out
    assert "**" not in out
    assert max(map(len, out.splitlines())) <= 80
    for sentence in re.findall(
        r"^  [a-z]\S*  +(.*(?:\n {10,}.*)*)", out.partition("Commands:")[2], re.MULTILINE
    ):
        assert sentence.rstrip()[-1] in ".?"
        assert sentence[0].isupper()


def test_the_help_of_a_flag_is_a_sentence() -> None:
    for command in COMMANDS.values():
        for field, info in command.settings.model_fields.items():
            assert info.description, field
            assert info.description.endswith("."), field


def test_without_a_command_help_is_shown() -> None:
    for words in ((), ("masked-loss",)):
        code, out, errors = called(*words)
        assert (code, errors) == (0, "")
        assert "Usage: perturblab" in out
        assert "masked-loss" in out


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert called("--version") == (0, f"perturblab, version {version('perturblab')}\n", "")


# ---- every flag acts -------------------------------------------------------------------------------------------------


def write_colour_images(path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    arrays = {}
    for split, n in (("train", 36), ("test", 12)):
        labels = np.arange(n) % 4
        noise = random.integers(0, 120, (n, 8, 8, 3))
        arrays[f"x_{split}"], arrays[f"y_{split}"] = (
            (noise + labels[:, None, None, None] * 40).astype(np.uint8),
            labels,
        )
    np.savez(path, **arrays)


class Ran:
    """A small run: its weights, rows and results as text, and its folder."""

    def __init__(self, folder: Path, **values: Any) -> None:
        self.folder = folder
        where = {"data_dir": "d", "results_dir": "r", "checkpoint_dir": "c", "runs_dir": "runs"}
        words = {
            "arch": "vgg11", "mode": "masked", "seed": 0, "width": 0.03, "epochs": 2, "batch_size": 12, "device": "cpu",
            "robustness_masks": 1, "clamp": "rescale", "threads": 1,  # two wait for each other on a busy machine
            **{name: str(folder / short) for name, short in where.items()}, **values,
        }  # fmt: skip
        threads = torch.get_num_threads()
        run = Train.parse(words)
        study.train(run)
        torch.set_num_threads(threads)
        (self.run,) = Path(run.runs_dir).glob("masked-loss/*")
        content = torch.load(self.run / "final.pt", weights_only=True)
        weights = b"".join(value.numpy().tobytes() for value in content["model_state_dict"].values())
        self.weights = hashlib.sha256(weights).hexdigest()
        self.rows = (self.run / "rows.jsonl").read_text()
        self.manifest = json.loads((self.run / "manifest.json").read_text())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("base")
    write_colour_images(folder / "a.npz", 0)
    write_colour_images(folder / "b.npz", 1)
    return Ran(folder, dataset=f"npz:{folder / 'a.npz'}")


@pytest.fixture
def changed(base: Ran, tmp_path: Path) -> Callable[..., Ran]:
    return lambda **values: Ran(tmp_path, **{"dataset": f"npz:{base.folder / 'a.npz'}", **values})


# Another value for each field that decides what is computed, and what must differ.
COMPUTES: dict[str, tuple[Any, str]] = {
    "arch": ("vgg13", "weights"), "mode": ("baseline", "weights"), "seed": (1, "weights"), "epochs": (3, "weights"),
    "batch_size": (18, "weights"), "lr": (0.05, "weights"), "n_masks": (2, "weights"), "lambda_max": (0.5, "weights"),
    "clamp": ("hard", "weights"), "site": ("conv1", "weights"), "momentum": (0.5, "weights"),
    "weight_decay": (0.1, "weights"), "dataset": ("b.npz", "weights"), "normalize": ("data", "weights"),
    "augment": ("none", "weights"), "width": (0.04, "weights"), "eval_every": (2, "rows"), "clean_every": (2, "rows"),
    "robustness_masks": (2, "rows"), "precision": ("bf16", "weights"),
}  # fmt: skip
SEEN_ELSEWHERE = {"compile"}  # test_compile_reaches_the_recipe


@pytest.mark.parametrize("field", COMPUTES)
def test_a_flag_of_train_changes_what_is_computed(base, changed, field) -> None:
    value, what = COMPUTES[field]
    other = changed(**{field: f"npz:{base.folder / value}" if field == "dataset" else value})
    assert getattr(other, what) != getattr(base, what)
    if what == "rows":
        assert other.weights == base.weights  # measuring more or less often changes no training


def test_compile_reaches_the_recipe() -> None:
    assert study.recipe(parsed(*TRAIN, "--compile")).compile
    assert not study.recipe(parsed(*TRAIN)).compile


def in_folder(flag: str, *files: str) -> Callable[[Callable[..., Ran], Path], Ran]:
    def check(run: Callable[..., Ran], folder: Path) -> Ran:
        other = run(**{flag: str(folder / "here")})
        assert [str(p.relative_to(folder / "here")) for p in sorted((folder / "here").glob("**/*.*"))][
            :1
        ] == list(files)
        return other

    return check


def of_threads(run: Callable[..., Ran], folder: Path) -> Ran:
    """Without starting a second thread: that may change the last bits."""
    asked: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", asked.append)
        other = run(threads=7)
    torch.set_num_threads(before)
    assert asked[0] == 7
    assert other.manifest["machine"]["threads"] == 1
    return other


def of_suffix(run: Callable[..., Ran], folder: Path) -> Ran:
    other = run(suffix="again")
    assert (folder / "r" / "vgg11_masked_seed0_again.json").exists()
    assert (folder / "c" / "vgg11_masked_seed0_again.pt").exists()
    return other


def of_device(run: Callable[..., Ran], folder: Path) -> Ran:
    with pytest.raises(UserError, match="--device cuda:99"):
        run(device="cuda:99")
    return run(device="cpu")


def of_runs(run: Callable[..., Ran], folder: Path) -> Ran:
    other = run(runs_dir=str(folder / "state"))
    assert other.run.parent == folder / "state" / "masked-loss"
    return other


def of_loading(flag: str, value: Any) -> Callable[[Callable[..., Ran], Path], Ran]:
    """The flag reaches the function that loads the images."""

    def check(run: Callable[..., Ran], folder: Path) -> Ran:
        seen: list[Any] = []
        load = experiment.load

        def spy(dataset: str, data_dir: str, **more: Any) -> Any:
            seen.append({"data_dir": data_dir, "num_workers": more["workers"]}[flag])
            return load(dataset, data_dir, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "load", spy)
            other = run(**{flag: value})
        assert seen == [value]
        return other

    return check


def of_checkpoints(run: Callable[..., Ran], folder: Path) -> Ran:
    saved: list[tuple[int, int]] = []
    keep = study.RunFolder.save_checkpoint

    def spy(self: Any, epoch: int, step: int, data: bytes) -> None:
        saved.append((epoch, step))
        keep(self, epoch, step, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study.RunFolder, "save_checkpoint", spy)
        other = run(checkpoint_every=0.0)
    assert saved == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]
    return other


ACTS: dict[str, Callable[[Callable[..., Ran], Path], Ran]] = {
    "device": of_device, "threads": of_threads, "suffix": of_suffix, "runs_dir": of_runs,
    "checkpoint_every": of_checkpoints, "num_workers": of_loading("num_workers", 1),
    "data_dir": of_loading("data_dir", "some/where"), "results_dir": in_folder("results_dir", "vgg11_masked_seed0.json"),
    "checkpoint_dir": in_folder("checkpoint_dir", "vgg11_masked_seed0.pt"),
}  # fmt: skip


@pytest.mark.parametrize("field", ACTS)
def test_a_flag_that_says_where_acts_and_changes_no_number(base, changed, field, tmp_path) -> None:
    other = ACTS[field](changed, tmp_path)
    assert (other.weights, other.rows) == (base.weights, base.rows)


def test_the_results_file_says_all_that_sets_two_runs_apart(base) -> None:
    """What the report groups and compares runs by; were one missing, unequal runs would be averaged."""
    found = json.loads((base.folder / "r" / "vgg11_masked_seed0.json").read_text())
    assert set(SETTINGS) - {"script", "suffix"} <= found.keys()


def test_every_flag_of_train_is_walked_by_these_tests() -> None:
    """A new field must be listed above, where it is shown to act."""
    where = {name for name, info in Train.model_fields.items() if is_where(info)}
    assert ACTS.keys() == where
    assert COMPUTES.keys() | SEEN_ELSEWHERE == Train.model_fields.keys() - where


def test_quickstarts_flags_reach_its_grid() -> None:
    from perturblab.quickstart import grid

    sweep = grid(Quickstart(out="o", width=0.25, epochs=3, seeds=(4,), modes=("masked",)))
    assert (sweep.width, sweep.epochs, sweep.seeds, sweep.modes, sweep.dataset) == (
        0.25,
        3,
        (4,),
        ("masked",),
        "digits",
    )
    assert {sweep.results_dir, sweep.checkpoint_dir, sweep.runs_dir} == {
        "o/results",
        "o/checkpoints",
        "o/runs",
    }
