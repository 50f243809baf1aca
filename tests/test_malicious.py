"""Files that mean harm, given to every command that takes such a file: refused in one line, and nothing in them is run."""

import builtins
import io
import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from conftest import Zygote, environment
from guarded import tried
from perturblab.checkpoints import to_bytes
from perturblab.files import digest
from smokes import STUDIES, Smoke

EVIL = "evil"  # the name of the file in the folder of a case, without its ending
CANARY = "it-ran"


class Calls:
    """Pickled, it is a call that happens while the file is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touch(canary: Path) -> Calls:
    return Calls(os.system, f"touch {canary}")


# ---- checkpoints -----------------------------------------------------------------------------------------------------------


def state(evil: Any) -> dict[str, Any]:
    """It looks like a checkpoint of any study."""
    weights = {"features.0.weight": evil}
    return {
        "epoch": 1,
        "arch": "vgg11",
        "model": weights,
        "model_state_dict": weights,
        "inputs": evil,
        "labels": torch.zeros(4, 2),
    }


def zipped(parts: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return out.getvalue()


def parts_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def legacy(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


def tar(canary: Path) -> bytes:
    """The format of before torch 0.2: several pickles in a tar file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(touch(canary), 2)
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return out.getvalue()


def persistent(canary: Path) -> bytes:
    """A storage whose persistent id is itself the result of a call."""

    class Nested(pickle.Pickler):
        def persistent_id(self, what: Any) -> Any:
            return ("storage", touch(canary), "0", "cpu", 1) if isinstance(what, bytearray) else None

    out = io.BytesIO()
    Nested(out, 2).dump(state(bytearray(b"x")))
    return zipped({"archive/data.pkl": out.getvalue(), "archive/version": b"3\n", "archive/data/0": bytes(4)})


def hub(canary: Path) -> bytes:
    (canary.parent / "hubconf.py").write_text(f"open({str(canary)!r}, 'w')\ndef model(): return 1\n")
    return to_bytes(
        state(Calls(torch.hub.load, str(canary.parent), "model", None, True, False, False, False, "local"))
    )


def script(canary: Path) -> bytes:
    """TorchScript: code, though not Python's."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out)
    return out.getvalue()


def outside(canary: Path) -> bytes:
    """Names that lead out of the folder where a careless program unpacks them."""
    return zipped(
        {**parts_of(to_bytes(state(torch.zeros(2)))), f"../../{canary.name}": b"x", str(canary): b"x"}
    )


def bomb(canary: Path) -> bytes:
    """A thousandth of what it unpacks to."""
    return zipped(
        {"archive/data.pkl": pickle.dumps({}, 2), "archive/data/0": bytes(64 << 20)}, zipfile.ZIP_DEFLATED
    )


def expanded(canary: Path) -> bytes:
    """One number that says that it is 10^12, in a view: 4 TB if somebody adds one to it."""
    return to_bytes(
        {**state(torch.zeros(1).expand(10**9, 1, 28, 28)), "labels": torch.zeros(1, 1).expand(10**9, 2)}
    )


CHECKPOINTS: dict[str, Callable[[Path], bytes]] = {
    "os.system": lambda canary: to_bytes(state(touch(canary))),
    "eval": lambda canary: to_bytes(state(Calls(builtins.eval, f"open({str(canary)!r}, 'w')"))),
    "subprocess in a bare pickle": lambda canary: pickle.dumps(state(Calls(subprocess.call, ["touch", str(canary)]))),
    "torch.save as it was until 2020": lambda canary: legacy(state(touch(canary))),
    "torch.save as it was until 2017": tar,
    "nested persistent ids": persistent,
    "torch.hub": hub,
    "TorchScript": script,
    "paths out of the archive": outside,
    "a bomb": bomb,
    "a view of 10^12 numbers": expanded,
}  # fmt: skip
HARMLESS = {"paths out of the archive", "a view of 10^12 numbers"}  # may be read, for they hold only tensors


def checkpoint_readers(smokes: dict[str, Smoke]) -> dict[str, list[str]]:
    """Every command that reads a checkpoint or tensors of the user's, given ``evil.pt``."""
    file = f"{EVIL}.pt"

    def data(study: str) -> list[str]:
        words = smokes[study].words
        return [*words[words.index("--dataset") :][:2], "--device", "cpu"]

    correction = smokes["correction"].words
    return {
        "masked-loss evaluate": ["masked-loss", "evaluate", "--checkpoint", file, *data("masked-loss")],
        "layerwise-mi evaluate": ["layerwise-mi", "evaluate", "--model", "vgg9", "--checkpoint", f"./{file}", *data("layerwise-mi")],
        "adaptive-noise test": ["adaptive-noise", "test", "-m", "resnet20", "-c", file, *data("adaptive-noise")],
        "correction evaluate": ["correction", "evaluate", "--checkpoint", file, *correction[2:4]],
        "correction convert": ["correction", "convert", file, "--out", "out.pth"],
        "correction train, the base model": [*correction, "--base_model", file],
        "correction train, the data": [*correction, "--data", "08MNIST"],
        "correction check": ["correction", "check", "--data", "08MNIST", *correction[4:6], "--device", "cpu"],
        "correction train-base": ["correction", "train-base", "--data", "08MNIST", "--base_model", "b.pth", "--device", "cpu"],
    }  # fmt: skip


# ---- arrays ----------------------------------------------------------------------------------------------------------------


def arrays(evil: Any) -> dict[str, Any]:
    """Images for a run, and the results of one."""
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 4
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y, "arch": "vgg9", "seed": 0, "evil": evil}


def npz_of(content: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **content)
    return out.getvalue()


def objects(canary: Path) -> bytes:
    return npz_of(dict.fromkeys(arrays(0), np.array([touch(canary)], dtype=object)))


def in_header(canary: Path) -> bytes:
    """An expression where the header of an array has its shape."""
    text = (
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': (__import__('os').system('touch {canary}'),)}}\n"
    )
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    return zipped({f"{name}.npy": npy for name in arrays(0)})


def large(canary: Path) -> bytes:
    """It says that an array has 8 GB, and holds a thousandth of 64 MB."""
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (8589934592,)}\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(64 << 20)
    return zipped({"x_train.npy": npy}, zipfile.ZIP_DEFLATED)


ARRAYS: dict[str, Callable[[Path], bytes]] = {
    "objects": objects,
    "a bare pickle": lambda canary: pickle.dumps(touch(canary)),
    "an expression in a header": in_header,
    "paths out of the archive": lambda canary: zipped({f"../../{canary.name}.npy": b"x", str(canary): b"x"}),
    "a bomb": large,
}  # fmt: skip


def array_readers(smokes: dict[str, Smoke]) -> dict[str, list[str]]:
    dataset = ["--dataset", f"npz:{EVIL}.npz"]
    return {
        **{f"{study} train": [*smokes[study].words, *dataset] for study in STUDIES if study != "correction"},
        "correction build-data": ["correction", "build-data", *dataset, "--out", "made"],
        "first-layer-mi visualize": ["first-layer-mi", "visualize", "--results_dir", "results"],
        "run": ["run", "masked-loss", "--jobs", "1", "--set", f"dataset=npz:{EVIL}.npz", *FEW],
    }  # fmt: skip


FEW = [
    word
    for one in ("arch=vgg11", "mode=baseline", "seed=0", "width=0.05", "epochs=1", "device=cpu", "threads=1")
    for word in ("--set", one)
]

# ---- settings, results, images ---------------------------------------------------------------------------------------------

YAML: dict[str, Callable[[Path], bytes]] = {
    "a call": lambda canary: f"fixed: {{seed: !!python/object/apply:os.system ['touch {canary}']}}\n".encode(),
    "a new object": lambda canary: f"!!python/object/new:os.system ['touch {canary}']\n".encode(),
    "a class with state": lambda canary: f"seed: !!python/object/apply:subprocess.Popen [[touch, {canary}]]\n".encode(),
    "aliases": lambda canary: ("a: &a0 [x]\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))).encode(),
    "nested": lambda canary: b"a: " + b"[" * 200_000,
}  # fmt: skip


def settings_readers(smokes: dict[str, Smoke]) -> dict[str, list[str]]:
    """Every command of a grid, and of a study what has a config file of the house, or of its own."""
    file = f"{EVIL}.yaml"
    return {
        **{command: [command, file] for command in ("plan", "status", "run", "retry")},
        **{f"{study} --config": [*smokes[study].words, "--config", file] for study in STUDIES},
        "correction run": ["correction", "run", "--config", file, "-e", "x"],
    }


RESULTS: dict[str, Callable[[Path], bytes]] = {
    "a number of 10^6 digits": lambda canary: b'{"seed": ' + b"9" * 1_000_000 + b"}",
    "nested": lambda canary: b'{"seed": ' + b"[" * 1_000_000,
    "a pickle": lambda canary: pickle.dumps(touch(canary)),
}  # fmt: skip


def result_readers(smokes: dict[str, Smoke]) -> dict[str, list[str]]:
    return {
        "masked-loss visualize": ["masked-loss", "visualize"],
        "first-layer-mi visualize": ["first-layer-mi", "visualize"],
        "layerwise-mi visualize": ["layerwise-mi", "visualize"],
        "correction visualize": ["correction", "visualize"],
        "adaptive-noise visualize": ["adaptive-noise", "visualize"],
    }


def place(folder: Path, data: bytes, kind: str) -> None:
    """The file under every name under which one of the commands looks for it."""
    names = {
        "checkpoint": [f"{EVIL}.pt", *(f"08MNIST/{name}.pth" for name in ("confounded_v1/train", "confounded_v1/test", "original/test", "original/train"))],
        "arrays": [f"{EVIL}.npz", "results/vgg9_seed0_results.npz"],
        "settings": [f"{EVIL}.yaml"],
        "results": ["results/vgg11_masked_seed0.json", "results/vgg9_seed0_results.json", "results/mi_results_best.json",
                    "experiments/lr_search.json", "checkpoints/metrics/x_0/all_metrics.json"],
    }[kind]  # fmt: skip
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


Readers = Callable[[dict[str, Smoke]], dict[str, list[str]]]
FILES: dict[str, tuple[dict[str, Callable[[Path], bytes]], Readers]] = {
    "checkpoint": (CHECKPOINTS, checkpoint_readers),
    "arrays": (ARRAYS, array_readers),
    "settings": (YAML, settings_readers),
    "results": (RESULTS, result_readers),
}


@pytest.fixture(scope="module")
def smokes(smoke: Callable[[str], Smoke]) -> dict[str, Smoke]:
    return {study: smoke(study) for study in STUDIES}


def all_of(kind: str, smokes: dict[str, Smoke]) -> Iterator[tuple[str, str]]:
    made, readers = FILES[kind]
    return itertools.product(made, readers(smokes))


def some_of(kind: str, smokes: dict[str, Smoke]) -> Iterator[tuple[str, str]]:
    """Each file once and each command once."""
    made, readers = list(FILES[kind][0]), list(FILES[kind][1](smokes))
    most = max(len(made), len(readers))
    return ((made[i % len(made)], readers[i % len(readers)]) for i in range(most))


def check(
    zygote: Zygote, smokes: dict[str, Smoke], cases: Iterator[tuple[str, str, str]], folder: Path
) -> None:
    began, bad, n, kinds = time.monotonic(), [], 0, set()
    data: dict[tuple[str, str], bytes] = {}
    for kind, what, command in cases:
        here = folder / str(n) / "deep" / "folder"
        here.mkdir(parents=True)
        canary = folder / CANARY
        if (kind, what) not in data:
            data[kind, what] = FILES[kind][0][what](canary)
        place(here, data[kind, what], kind)
        answer = tried(zygote, FILES[kind][1](smokes)[command], here)
        n, kinds = n + 1, kinds | {what}
        if [*folder.rglob(f"{CANARY}*")]:
            bad.append(f"{kind}, {what}, {command}: IT RAN")
            canary.unlink(missing_ok=True)
        elif answer.fault or (answer.code != 2 and what not in HARMLESS and command != "run"):
            bad.append(f"{kind}, {what}, {command}: {answer.fault or answer.code}\n{answer.output[-800:]}")
    print(
        f"{n} malicious files of {len(kinds)} kinds: {sum('IT RAN' in one for one in bad)} executed, {len(bad)} faults; {time.monotonic() - began:.0f} s"
    )
    assert not bad, "\n".join(bad)


def test_a_malicious_file_is_refused_in_one_line_and_nothing_in_it_is_run(
    zygote: Zygote, smokes: dict[str, Smoke], tmp_path: Path
) -> None:
    cases = ((kind, *case) for kind in FILES for case in some_of(kind, smokes))
    check(zygote, smokes, cases, tmp_path)


@pytest.mark.soak
def test_every_malicious_file_is_refused_by_every_command_that_reads_such_a_file(
    zygote: Zygote, smokes: dict[str, Smoke], tmp_path: Path
) -> None:
    cases = ((kind, *case) for kind in FILES for case in all_of(kind, smokes))
    check(zygote, smokes, cases, tmp_path)


# ---- other ways in ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_these_files_would_have_run_it_without_the_refusal(tmp_path: Path) -> None:
    """The proof that the file can appear at all."""
    canary = tmp_path / CANARY
    evil = tmp_path / "evil"

    def careless(read: Callable[[], Any]) -> None:
        read()
        assert canary.exists()
        canary.unlink()

    for what in ("os.system", "eval", "torch.save as it was until 2020"):
        careless(partial(torch.load, io.BytesIO(CHECKPOINTS[what](canary)), weights_only=False))
    evil.write_bytes(objects(canary))
    careless(lambda: np.load(evil, allow_pickle=True)["x_train"])
    careless(lambda: yaml.unsafe_load(YAML["a call"](canary)))
    careless(lambda: pickle.loads(RESULTS["a pickle"](canary)))


def test_a_checkpoint_that_someone_put_into_a_run_folder_is_refused_with_its_digest(
    zygote: Zygote, smokes: dict[str, Smoke], tmp_path: Path
) -> None:
    words = [*smokes["masked-loss"].words, "--checkpoint_every", "0"]
    here, canary = tmp_path / "here", tmp_path / CANARY
    killed = zygote.run(words, here, hooks=[["killpoints", "install", "after replace checkpoint-N.pt", ""]])
    assert killed.code == -signal.SIGKILL, killed.output
    for path in here.rglob("checkpoint-*.pt"):
        data = CHECKPOINTS["os.system"](canary)
        path.write_bytes(data)
        path.with_name(path.name + ".sha256").write_text(f"{digest(data)}  {path.name} rows 0\n")
    answer = tried(zygote, words, here)
    assert (answer.code, answer.fault) == (2, ""), answer.output
    assert not canary.exists()


def test_what_stands_where_a_run_exports_to_is_neither_run_nor_written_through(
    zygote: Zygote, smokes: dict[str, Smoke], tmp_path: Path
) -> None:
    """The files there are read to see whose they are; a link there may lead anywhere."""
    here, canary, elsewhere = tmp_path / "here", tmp_path / CANARY, tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    for name, data in (
        ("checkpoints/vgg11_masked_seed0.pt", CHECKPOINTS["os.system"](canary)),
        ("checkpoints/vgg9_seed0_final.pt", CHECKPOINTS["a bomb"](canary)),
        ("results/predictions.npz", ARRAYS["objects"](canary)),
        ("results/vgg9_seed0_results.npz", ARRAYS["a bomb"](canary)),
        ("results/vgg9_seed0_results.json", RESULTS["nested"](canary)),
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(data)
    (here / "results" / "vgg11_masked_seed0.json").symlink_to(elsewhere)
    for study in ("masked-loss", "first-layer-mi"):
        answer = tried(zygote, smokes[study].words, here)
        assert (answer.code, answer.fault) == (0, ""), answer.output
    assert not canary.exists()
    assert elsewhere.read_text() == "mine"
    assert json.loads((here / "results" / "vgg11_masked_seed0.json").read_text())["arch"] == "vgg11"
    assert len([*here.rglob("*.before-*")]) == 6


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_picture_that_is_a_program_for_a_printer_starts_no_ghostscript(
    zygote: Zygote, smokes: dict[str, Smoke], tmp_path: Path
) -> None:
    here, canary, programs = tmp_path / "here", tmp_path / CANARY, tmp_path / "bin"
    for split, name in itertools.product(("train", "test"), "ab"):
        (here / "pictures" / split / name).mkdir(parents=True)
        (here / "pictures" / split / name / "0.png").write_bytes(EPS)
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {canary}\n")
    (programs / "gs").chmod(0o755)
    path = f"{programs}{os.pathsep}{environment()['PATH']}"
    ended = zygote.run([*smokes["masked-loss"].words, "--dataset", "folder:pictures"], here, PATH=path)
    assert "cannot be read as an image" in ended.one_line
    assert not canary.exists()
