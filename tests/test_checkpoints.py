"""Files that a user brings: what is not a checkpoint of this network is refused in one line, and nothing in it runs."""

import copyreg
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perturblab.checkpoints import load_weights, read_checkpoint, to_bytes, to_cpu
from perturblab.cli import main
from perturblab.models import VGG
from perturblab.streams import seeded
from perturblab.terminal import UserError

WIDTH = 0.02
DAMAGED = "is damaged or is no checkpoint of torch.save"
REFUSED = "holds more than tensors and plain values; refused, nothing was run"


def network(arch: str = "vgg11", width: float = WIDTH) -> VGG:
    with seeded(0, "init"):
        return VGG(arch, width=width)


def original_style(architecture: str = "vgg11", **more: Any) -> dict[str, Any]:
    """What the original scripts save (masked-loss.md 1.7)."""
    model = network(architecture)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    return {
        "epoch": 200,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "arch": architecture,
        "mode": "masked",
        "seed": 0,
        "final_train_acc": 99.9,
        "final_test_acc": 91.5,
        "final_gen_gap": 8.4,
        **more,
    }


@pytest.fixture(scope="module")
def good() -> bytes:
    return to_bytes(original_style())


Evaluate = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    """``evaluate(bytes, *words)`` runs the command on a file: exit code, lines on stderr, stdout."""

    def run(content: bytes, *words: str) -> tuple[int, list[str], str]:
        path = tmp_path / "given.pt"
        path.write_bytes(content)
        line = [
            "masked-loss",
            "evaluate",
            "--checkpoint",
            str(path),
            "--dataset",
            "digits",
            "--device",
            "cpu",
        ]
        with pytest.raises(SystemExit) as ended:
            main([*line, "--width", str(WIDTH), "--robustness_masks", "1", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), err.splitlines(), out

    return run


def refusal(answer: tuple[int, list[str], str]) -> str:
    """Exit code 2 and exactly one line."""
    code, errors, _ = answer
    assert code == 2
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    return errors[0]


# ---- files that want to run code ---------------------------------------------------------------------------------


class Calls:
    """Pickled, it is a call that happens while the file is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Restores:
    """Pickled, it is a class of this file whose state is set while the file is read."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


WAYS: dict[str, Callable[[str], Any]] = {
    "os.system": lambda marker: Calls(os.system, f"touch {marker}"),
    "subprocess": lambda marker: Calls(subprocess.check_call, ["touch", marker]),
    "eval": lambda marker: Calls(eval, f"open({marker!r}, 'w').close()"),
    "exec": lambda marker: Calls(exec, f"open({marker!r}, 'w').close()"),
    "open": lambda marker: Calls(open, marker, "w"),
    "a class with state": Restores,
    "inside a rebuilt tensor": lambda marker: Calls(
        torch._utils._rebuild_tensor_v2, Calls(os.system, f"touch {marker}")
    ),
    "copyreg": lambda marker: Calls(
        copyreg._reconstructor, Restores, object, Calls(os.system, f"touch {marker}")
    ),
    "a whole module": lambda marker: nn.Sequential(nn.Linear(2, 2)),
}
FORMATS: dict[str, Callable[[Any], bytes]] = {
    "torch.save": lambda content: to_bytes(content),
    "torch.save as it was until 2020": lambda content: legacy(content),
    **{f"pickle protocol {p}": lambda content, p=p: pickle.dumps(content, p) for p in (0, 2, 4, 5)},
}


def legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_wants_to_run_code_is_refused_and_runs_nothing(way, form, tmp_path) -> None:
    marker, path = tmp_path / "it-ran", tmp_path / "evil.pt"
    content = {
        "epoch": 200,
        "arch": "vgg11",
        "model_state_dict": {"features.0.weight": WAYS[way](str(marker))},
    }
    path.write_bytes(FORMATS[form](content))
    marker.unlink(missing_ok=True)
    with pytest.raises(UserError, match=f"{REFUSED}|{DAMAGED}") as told:
        read_checkpoint(path)
    assert not marker.exists()
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)


@pytest.mark.parametrize("way", ["os.system", "eval", "exec", "a class with state"])
def test_these_files_would_have_run_it_without_the_refusal(way, tmp_path) -> None:
    """The proof that the marker can appear at all."""
    marker = tmp_path / "it-ran"
    torch.load(io.BytesIO(to_bytes({"a": WAYS[way](str(marker))})), weights_only=False)
    assert marker.exists()


def test_evaluate_says_in_one_line_that_such_a_file_is_refused(evaluate, tmp_path) -> None:
    marker = tmp_path / "it-ran"
    for way in ("os.system", "eval"):
        for form in FORMATS:
            content = FORMATS[form]({"model_state_dict": WAYS[way](str(marker)), "arch": "vgg11"})
            assert "given.pt" in refusal(evaluate(content))
            assert not marker.exists()
    assert REFUSED in refusal(evaluate(to_bytes({"arch": WAYS["eval"](str(marker))})))


# ---- files that are damaged or are something else -----------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused_in_one_line(evaluate, good, share) -> None:
    assert DAMAGED in refusal(evaluate(good[: int(share * len(good))]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello\nworld\n",
        b'{"arch": "vgg11"}',
        b"\x80",
        b"\x80\x02}q\x00.",
        b"PK\x03\x04",
        b"PK\x05\x06" + 18 * b"\0",
        bytes(1000),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(evaluate, content) -> None:
    refusal(evaluate(content))


def test_a_flipped_bit_is_refused_in_one_line_or_changes_nothing(good, tmp_path) -> None:
    """Every part of the file has a checksum but the gaps between them."""
    model, path, refused = network(), tmp_path / "flipped.pt", 0
    before = read_checkpoint(write(path, good))["model_state_dict"]
    positions = torch.randint(len(good), (60,), generator=torch.Generator().manual_seed(0)).tolist()
    for place in [*positions, *range(60), *range(len(good) - 60, len(good))]:
        flipped = bytearray(good)
        flipped[place] ^= 1 << place % 8
        message = problem(write(path, bytes(flipped)), model)
        assert "\n" not in message
        refused += message != ""
        if not message:
            after = read_checkpoint(path)["model_state_dict"]
            assert all(torch.equal(before[name], after[name]) for name in before)
    assert refused >= 60  # nearly all of the 60 in the midst


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_weights_that_are_not_finite_are_named(tmp_path) -> None:
    model = network()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["features.0.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"features\.0\.weight is not finite"):
        load_weights(model, weights, tmp_path / "nan.pt")


def problem(path: Path, model: nn.Module) -> str:
    """What is said against a file, empty if it loads."""
    try:
        weights = read_checkpoint(path).get("model_state_dict")
        if isinstance(weights, dict):
            load_weights(model, weights, path)
    except UserError as error:
        return str(error)
    return ""


def test_a_zip_file_that_is_no_checkpoint_is_refused(evaluate) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert DAMAGED in refusal(evaluate(buffer.getvalue()))


def test_a_missing_file_and_a_folder_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.pt: No such file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, not a checkpoint's dictionary"),
        ([1, 2], "holds a list, not a checkpoint's dictionary"),
        ({}, "does not say its architecture; give --arch vgg11|vgg13|vgg16|vgg19"),
        ({"arch": "vgg11"}, "another network: it lacks features.0.weight and 59 more, has an unknown arch"),
        ({"arch": "vgg11", "model_state_dict": 5}, "its model_state_dict is no dictionary of weights"),
        ({"arch": "vgg11", "model_state_dict": {}}, "it lacks features.0.weight and 59 more"),
        ({"arch": "vgg11", "model_state_dict": {1: 2, "a": 3}}, "has an unknown 1 and 1 more"),
        ({"arch": "resnet18", "model_state_dict": {}}, "its architecture is 'resnet18', not vgg11, vgg13"),
        ({"arch": ["vgg11"], "model_state_dict": {}}, "its architecture is"),
    ],
)  # fmt: skip
def test_a_file_that_holds_something_else_says_what(evaluate, content, message) -> None:
    assert message in refusal(evaluate(to_bytes(content)))


# ---- weights of another network ------------------------------------------------------------------------------------


def test_another_architecture_names_the_keys_that_differ(evaluate, good) -> None:
    message = refusal(evaluate(good, "--arch", "vgg13"))
    assert "is a checkpoint of another network: it lacks features.3.weight" in message
    message = refusal(evaluate(to_bytes(original_style("vgg13")), "--arch", "vgg11"))
    assert "has an unknown features.3.weight" in message


def test_another_width_names_the_first_shape_that_differs(evaluate, good) -> None:
    assert "has another shape at features.0.weight and" in refusal(evaluate(good, "--width", "0.1"))


@pytest.mark.parametrize(
    "change",
    [Tensor.to_sparse, lambda w: w.to("meta"), lambda w: w.to(torch.complex64), lambda w: w.to(torch.int8)],
    ids=["sparse", "without data", "complex", "int8"],
)
def test_weights_of_a_kind_that_cannot_be_used_are_refused_in_one_line(evaluate, change) -> None:
    content = original_style()
    content["model_state_dict"]["features.0.weight"] = change(
        content["model_state_dict"]["features.0.weight"]
    )
    assert "holds weights of a kind that cannot be used" in refusal(evaluate(to_bytes(content)))


def test_a_value_that_is_no_tensor_is_another_shape() -> None:
    model = network()
    with pytest.raises(
        UserError,
        match=r"^x\.pt is a checkpoint of another network: it has another shape at features.0.bias$",
    ):
        load_weights(model, {**model.state_dict(), "features.0.bias": 1.0}, "x.pt")


def test_a_refused_file_leaves_the_network_as_it_was() -> None:
    model, other = network(), network().state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    del other["classifier.2.bias"]
    with pytest.raises(UserError, match=r"it lacks classifier\.2\.bias$"):
        load_weights(model, {key: value + 1 for key, value in other.items()}, "x.pt")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# ---- checkpoints that are good -------------------------------------------------------------------------------------


def test_a_checkpoint_of_the_original_scripts_is_measured(evaluate, good) -> None:
    code, errors, out = evaluate(good)
    assert (code, errors) == (0, [])
    assert "vgg11 from" in out
    assert "n 364" in out
    assert out.count(" %") == 12  # intact, and 11 kept fractions on their own lines


def test_a_bare_state_dict_is_measured_when_the_architecture_is_given(evaluate) -> None:
    content = to_bytes(dict(network("vgg13").state_dict()))
    assert "does not say its architecture" in refusal(evaluate(content))
    code, errors, out = evaluate(content, "--arch", "vgg13")
    assert (code, errors) == (0, [])
    assert "vgg13 from" in out


def test_the_architecture_on_the_command_line_wins(evaluate) -> None:
    code, _, out = evaluate(to_bytes(original_style("vgg13", arch="unknown-net")), "--model", "vgg13")
    assert code == 0
    assert "vgg13 from" in out


def test_what_is_read_is_what_was_saved_also_from_the_older_format(tmp_path) -> None:
    content = original_style()
    for form, save in (("zip", to_bytes), ("legacy", legacy)):
        (tmp_path / form).write_bytes(save(content))
        found = read_checkpoint(tmp_path / form)
        assert found.keys() == content.keys()
        weights, expected = found["model_state_dict"], content["model_state_dict"]
        assert all(torch.equal(weights[key], value) for key, value in expected.items())
        assert {k: v for k, v in found.items() if "state_dict" not in k} == {
            k: v for k, v in content.items() if "state_dict" not in k
        }


def test_the_bytes_of_a_checkpoint_depend_on_its_content_only() -> None:
    assert to_bytes(original_style()) == to_bytes(original_style())
    assert to_bytes(original_style()) != to_bytes(original_style(seed=1))


def test_to_cpu_keeps_the_structure_and_brings_every_tensor() -> None:
    nested = {"a": [torch.zeros(2, device="meta"), 3], "b": {"c": "text", "d": torch.ones(1)}}
    found = to_cpu({"b": nested["b"], "list": [torch.ones(2), 3]})
    assert found["list"][1] == 3
    assert found["b"]["c"] == "text"
    assert found["b"]["d"].device.type == found["list"][0].device.type == "cpu"
