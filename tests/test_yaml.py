"""Settings from a file: what a person writes is what is meant, and every slip is told with its line."""

import time
from pathlib import Path
from typing import Any

import pytest

from commandline import parsed, refusal
from perturblab.settings import Settings
from perturblab.studies.masked_loss import Sweep, Train
from perturblab.terminal import UserError
from perturblab.yamlfile import read_settings, read_yaml


@pytest.fixture
def file(tmp_path: Path):
    """``file(text)`` writes it and gives its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "f.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def read(path: Path, cls: type[Settings] = Train) -> dict[str, Any]:
    return read_settings(path, cls)


def message(path: Path, cls: type[Settings] = Train) -> str:
    """The one line that is said against a file, without the folder."""
    with pytest.raises(UserError) as told:
        read_settings(path, cls)
    text = " ".join(str(told.value).split())
    assert len(text) < 400
    return text.replace(str(path), path.name)


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 1e-3), ("1E-3", 1e-3), ("1e3", 1e3), ("1.5e+2", 150.0), (".5", 0.5), ("5.", 5.0), ("-.5e1", -5.0),
        ("0.1", 0.1), ("3", 3), ("+3", 3), ("-3", -3), ("010", 10), ("0", 0),
        ("true", True), ("False", False), ("~", None), ("null", None), ("", None),
        ("yes", "yes"), ("off", "off"), ("1:30", "1:30"), ("2024-13-45", "2024-13-45"), ("1.2.3", "1.2.3"),
        ("0x1F", "0x1F"), ("1_000", "1_000"), ("e3", "e3"), (".", "."), (".nan", ".nan"), ("٣", "٣"),
        ("'1e-3'", "1e-3"), ('"3"', "3"), ("half-loss", "half-loss"), ("[0, 1e0, a]", [0, 1.0, "a"]),
    ],
)  # fmt: skip
def test_plain_words_are_numbers_where_they_look_like_one_and_else_text(file, written, meant) -> None:
    value = read_yaml(file(f"key: {written}\n"))["key"]
    assert value == meant
    assert type(value) is type(meant)


def test_a_file_of_settings_becomes_those_settings(file) -> None:
    path = file(
        "study: masked-loss\nfixed:\n  arch: vgg11\n  mode: masked\n  seed: 3\n  lr: 1e-3\n  compile: yes\n"
    )
    run = Train.parse(read(path))
    assert run == Train.parse({"arch": "vgg11", "mode": "masked", "seed": 3, "lr": 0.001, "compile": True})


def test_keys_may_be_spelt_as_flags_are(file) -> None:
    assert read(file("fixed: {batch-size: 3, model: vgg13, workers: 2}")) == {
        "batch_size": 3, "arch": "vgg13", "num_workers": 2,
    }  # fmt: skip
    assert read(file("study: masked_loss\nfixed: {lr: 1}")) == {"lr": 1}


def test_axes_set_the_lists_of_a_sweep(file) -> None:
    path = file(
        "study: masked-loss\nfixed: {epochs: 2}\naxes:\n  arch: [vgg11]\n  mode: [masked, half_loss]\n  seed: [5, 6]\n"
    )
    sweep = Sweep.parse(read(path, Sweep))
    assert [cell.name for cell in sweep.grid()] == [
        "vgg11_masked_seed5", "vgg11_masked_seed6", "vgg11_half-loss_seed5", "vgg11_half-loss_seed6",
    ]  # fmt: skip
    assert {cell.epochs for cell in sweep.grid()} == {2}


def test_the_command_line_wins_over_the_file_and_the_file_over_the_default(file) -> None:
    path = file("study: masked-loss\nfixed: {arch: vgg13, mode: masked, seed: 3, lr: 0.5, compile: true}\n")
    run = parsed(
        "masked-loss", "train", "--config", str(path), "--seed", "4", "--batch-size", "7", "--compile", "no"
    )
    assert run == Train.parse({"arch": "vgg13", "mode": "masked", "seed": 4, "lr": 0.5, "batch_size": 7})


def test_a_list_on_the_command_line_replaces_the_axis_of_the_file(file) -> None:
    path = file("axes: {seed: [5, 6], mode: [masked]}\n")
    sweep = parsed("masked-loss", "sweep", "--config", str(path), "--seeds", "1", "2")
    assert (sweep.seeds, sweep.modes) == ((1, 2), ("masked",))


# ---- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "told"), [
    ("study: masked-loss\nfixed:\n  lr: 1\n  epochs: 2\n  lr: 2\n",
     "f.yaml, line 5: key 'lr' stands twice (first in line 3)"),
    ("fixed: {}\nstudy: masked-loss\nfixed: {}\n", "f.yaml, line 3: key 'fixed' stands twice (first in line 1)"),
    ("fixed:\n  batch_size: 1\n  batch-size: 2\n", "f.yaml, line 3: key 'batch-size' sets 'batch_size' a second time"),
    ("fixed:\n  arch: vgg11\n  model: vgg13\n", "f.yaml, line 3: key 'model' sets 'arch' a second time"),
    ("fixed:\n  epochs: 1\n  lamda_max: 2\n", "f.yaml, line 3: unknown key 'lamda_max'; did you mean 'lambda_max'?"),
    ("stdy: masked-loss\n", "f.yaml, line 1: unknown key 'stdy'; did you mean 'study'?"),
    ("epochs: 3\n", "f.yaml, line 1: unknown key 'epochs'; choose from axes, fixed, study"),
    ("study: first-layer-mi\n", "f.yaml, line 1: this is a file for 'first-layer-mi', not masked-loss"),
    ("study: [1]\n", "f.yaml, line 1: this is a file for '[1]', not masked-loss"),
    ("fixed: {lr: 1}\naxes: {seed: [0]}\n",
     "f.yaml, line 2: 'train' takes no axes; give each value under 'fixed'"),
    ("fixed: 3\n", "f.yaml, line 1: 'fixed' must hold 'key: value' lines"),
    ("fixed: [lr]\n", "f.yaml, line 1: 'fixed' must hold 'key: value' lines"),
    ("- lr\n- epochs\n", "f.yaml: expected 'key: value' lines, found list"),
    ("just words\n", "f.yaml: expected 'key: value' lines, found str"),
    ("3\n", "f.yaml: expected 'key: value' lines, found int"),
    ("", "f.yaml: expected 'key: value' lines, found nothing"),
    ("# only a comment\n", "f.yaml: expected 'key: value' lines, found nothing"),
    ("fixed:\n\tlr: 1\n", "f.yaml, line 2: not valid YAML: found character '\\t' that cannot start any token"),
    ("fixed: {lr: 1\nstudy: x\n", "f.yaml, line 2: not valid YAML: expected ',' or '}', but got ':'"),
    ("fixed:\n  lr: 1\n epochs: 2\n", "f.yaml, line 3: not valid YAML: expected <block end>, but found '<block mapping start>'"),
    ("a: 1\n---\nb: 2\n", "f.yaml, line 2: not valid YAML: but found another document"),
    ("fixed: &x {lr: 1}\naxes: *x\n", "f.yaml, line 2: not valid YAML: aliases (*name) are not read here"),
    ("fixed:\n  <<: *base\n", "f.yaml, line 2: not valid YAML: aliases (*name) are not read here"),
    ("fixed:\n  <<: {lr: 1}\n", "f.yaml, line 2: unknown key '<<'"),
    ("fixed: {lr: !!int word}\n", "f.yaml: a value cannot be read: invalid literal"),
    (f"fixed: {{seed: {'9' * 9999}}}\n", "f.yaml: a value cannot be read: Exceeds the limit"),
])  # fmt: skip
def test_a_mistake_in_the_file_is_told_with_its_line(file, text, told) -> None:
    assert message(file(text)).startswith(told)


def test_an_axis_that_a_sweep_does_not_have_names_those_that_it_has(file) -> None:
    assert message(file("axes:\n  seeds: [0]\n"), Sweep).startswith(
        "f.yaml, line 2: unknown key 'seeds'; did you mean 'seed'?"
    )
    assert message(file("fixed: {seeds: [0]}\naxes: {seed: [1]}\n"), Sweep) == (
        "f.yaml, line 2: key 'seed' sets 'seeds' a second time"
    )


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", "fixed: {lr: \xe4}".encode("latin-1"), b"fixed: \x00"])
def test_a_file_that_is_no_text_is_told_in_one_line(file, content) -> None:
    assert message(file(content)).startswith(("cannot read f.yaml: not UTF-8 text", "f.yaml: not valid YAML"))


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    assert message(tmp_path / "none.yaml") == "cannot read none.yaml: No such file or directory"
    assert message(tmp_path).endswith(": Is a directory")


@pytest.mark.parametrize("command", [("train",), ("sweep",)])
@pytest.mark.parametrize(
    "text", ["fixed: {lr: -1, arch: vgg11, mode: masked, seed: 0}", "fixed: {lrr: 1}", "a: [", "x"]
)
def test_the_command_line_says_it_in_one_line(file, command, text) -> None:
    if command == ("sweep",):
        text = text.replace(", arch: vgg11, mode: masked, seed: 0", "")
    told = refusal("masked-loss", *command, "--config", str(file(text)))
    assert "--lr -1 is refused: it must be a finite number, more than 0" in told or "f.yaml" in told


@pytest.mark.parametrize(("text", "told"), [
    ("fixed: {seed: true}", "--seed True is refused: it must be a whole number, 0 or more"),
    ("fixed: {dataset: 5}", "--dataset 5 is refused: it must be text"),
    ("fixed: {epochs: [1, 2]}", "--epochs [1, 2] is refused: it must be a whole number, 1 or more"),
    ("fixed: {epochs: }", "--epochs None is refused: it must be a whole number, 1 or more"),
])  # fmt: skip
def test_a_value_of_the_wrong_kind_is_refused_as_on_the_command_line(file, text, told) -> None:
    words = ("--arch", "vgg11", "--mode", "masked", *(() if "seed" in text else ("--seed", "0")))
    assert refusal("masked-loss", "train", "--config", str(file(text)), *words) == told


# ---- files that mean harm --------------------------------------------------------------------------------------------


def laughs() -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines) + "\nfixed: {seed: *a11}\n"


@pytest.mark.parametrize(
    "text",
    [
        laughs(),
        "fixed: &x [*x]\n",
        "? [a, *y]\n: 1\n",
        "fixed: {seed: " + "[" * 5000 + "]" * 5000 + "}\n",
        "{a: " * 3000,
        "fixed:\n" + "".join(f"{' ' * n}- \n" for n in range(1, 800)),
        "!!python/object/apply:os.system ['touch MARK']\n",
        "fixed: {seed: !!python/object/new:os.system ['touch MARK']}\n",
        "fixed: {seed: !!python/name:os.system }\n",
        "fixed: {seed: !!python/tuple [1]}\n",
        "fixed: {seed: !!timestamp x}\n",
        "fixed: {seed: !!binary '?'}\n",
        "fixed: {seed: !!set {a, b}}\n",
        "fixed: {seed: !mine 3}\n",
        "fixed: {seed: !!float ''}\n",
        "fixed: {seed: !!bool maybe}\n",
        "!!map [1]\n",
    ],
    ids=lambda text: text[:30],
)
def test_a_file_that_means_harm_is_refused_quickly_and_runs_nothing(
    file, text, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, began = file(text), time.monotonic()
    told = refusal("masked-loss", "train", "--config", str(path), "--arch", "vgg11", "--mode", "masked")
    assert len(told) < 400 + len(str(path))
    assert time.monotonic() - began < 10
    assert [p.name for p in tmp_path.iterdir()] == ["f.yaml"]
