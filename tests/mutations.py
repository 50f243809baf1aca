"""Something that no user means, from a number: a file of settings, words of a command line, images, results.

``mutation(number, given)`` is the same at each call with the same number, on every machine.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from commandline import COMMANDS, parsed
from perturblab.settings import documented_flag, is_argument

STOP_AFTER_S = 1.0


@dataclass(frozen=True)
class Given:
    """What is mutated: for each study the words of a small run, the words of what reads it, the folder in which both were run."""

    words: dict[str, list[str]]
    readers: dict[str, list[list[str]]]
    done: Callable[[str], Path]


@dataclass(frozen=True)
class Mutation:
    """``words`` are started in a folder that ``make`` has filled; ``what`` says what is wrong."""

    number: int
    kind: str
    what: str
    words: list[str]
    make: Callable[[Path], None] = field(repr=False, default=lambda folder: None)

    def __str__(self) -> str:
        return f"{self.number} ({self.kind}): {self.what}: {' '.join(self.words)}"[:400]


def mutation(number: int, given: Given) -> Mutation:
    kind = list(KINDS)[number % len(KINDS)]
    return KINDS[kind](number, random.Random(number), given)


def stop_soon(seconds: float, number: int) -> None:
    """A hook: what was given more work than anyone waits for gets a signal, once it can heed it, and must."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

    def alarm(*_: Any) -> None:
        if signal.getsignal(number) is not signal.SIG_DFL:
            signal.raise_signal(number)

    signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


# ---- what is wrong with a value ------------------------------------------------------------------------------------------

WORDS = (
    "", " ", "0", "-1", "1", "2", "-0", "+5", "1.5", "1e3", "1e999", "-1e999", "1e-320", "nan", "inf", "-inf", "NaN", "9" * 19,
    "9" * 5000, "-" + "9" * 30, "0x10", "1_000", "010", "1,2", "1,,2", ",", " 1 ", "1 2", "None", "null", "True", "yes", "on",
    "é", "名前", "𝔘𝔫", "٣", "１", "\u202eabc", "\ud800", "\udcff", "\x1b[31mred", "\t", "a\nb", "\r\n", "\x7f", "%s%n", "{}", "{0}",
    "*", "~", ".", "..", "/", "//", "/dev/null", "/proc/self/mem", "../../..", "a/b/c", "-", "--", "=", "a=b", "'", '"', "$(true)",
    "`true`", ";", "#", "\\", "x" * 300, "x" * 100_000, "npz:", "npz:/", "folder:.", "parquet:x", ":", "npz:x:y", "auto", "cuda",
    "cuda:99", "mps", "vgg11", "masked", "all", "digits", "best", "1e5", "1e9", "1000000000000", "65536", "0.5", "0.0",
)  # fmt: skip
TOKENS = (
    "\t", "\0", "\ufeff", "*a", "&a ", "&a [*a]", "<<: *a", "!!python/object/apply:os.getcwd []", "!!python/name:os.system ", "!!binary x",
    "!!int x", "!!float ", "!!set {a}", "!x ", "{", "}", "[", "]", "? ", ": ", "- ", "---\n", "...\n", "%YAML 9.9\n", "%TAG ! x\n",
    "| \n", "> \n", "'", '"', "#", "@", "`", "\u2028", "\x85", "\x1b", "é", "𝔘", "\u202e", "\r", "\n", "\n ", "\n  ", "\n\t", ",", "~", "=",
    "[" * 3000, "{a: " * 3000, "- " * 3000, "x" * 100_000, "9" * 5000, "1e999", ".nan", ".inf", "null", "true", "1e-3", "\\", "\ud800",
)  # fmt: skip
JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 1e308, -1e308, 1e-320, 2**63, 2**64, 10**400, float("nan"), float("inf"), "", "x", "1", "é名", "\ud800",
    "\x00", "a\nb", "x" * 10_000, [], {}, [[]], [None], [1], ["x"], [float("nan")], [[1, 2], [3]], {"a": 1}, {"": None}, [0] * 1000, "2026-01-01",
)  # fmt: skip


def spoilt_text(text: str, chance: random.Random) -> tuple[str, bytes]:
    """What was done to the text, and its bytes."""
    lines = text.splitlines(keepends=True) or [""]
    at, line = chance.randrange(len(text) + 1), chance.randrange(len(lines))
    token, word = chance.choice(TOKENS), chance.choice(WORDS)
    key, _, value = lines[line].partition(": ")
    plain = {
        "nothing in it": "", "cut": text[:at], "a token": text[:at] + token + text[at:], "a letter less": text[:at] + text[at + 1 :],
        "a line twice": "".join([*lines[: line + 1], *lines[line:]]), "a line less": "".join([*lines[:line], *lines[line + 1 :]]),
        "indented": "".join([*lines[:line], "  " + lines[line], *lines[line + 1 :]]),
        "outdented": "".join([*lines[:line], lines[line].lstrip(), *lines[line + 1 :]]),
        "a value": "".join([*lines[:line], f"{key}: {word}\n", *lines[line + 1 :]]),
        "a value of many": "".join([*lines[:line], f"{key}: [{', '.join(map(str, range(chance.choice([0, 3, 2000]))))}]\n", *lines[line + 1 :]]),
        "a key": "".join([*lines[:line], f"{key[: len(key) - len(key.lstrip())]}{word}: {value}\n", *lines[line + 1 :]]),
        "lines in another order": "".join(chance.sample(lines, len(lines))),
        "nested": "a: " + "[" * chance.choice([10, 500, 100_000]) + text, "many lines": text + "x: 1\n" * 20_000, "twice": text + text,
        "a list": f"- {text}", "old Mac lines": text.replace("\n", "\r"), "Windows lines": text.replace("\n", "\r\n"),
        "aliases": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n" + text,
    }  # fmt: skip
    what = chance.choice([*plain, "UTF-16", "Latin-1", "a byte order mark", "bytes", "zeros", "a byte"])
    if what in plain:
        return what, plain[what].encode("utf-8", "surrogatepass")
    data = text.encode()
    some = bytearray(data or b"x")
    some[chance.randrange(len(some))] = chance.randrange(256)
    return what, {
        "UTF-16": text.encode("utf-16"), "Latin-1": (text + "é").encode("latin-1"), "a byte order mark": b"\xef\xbb\xbf" + data,
        "bytes": chance.randbytes(chance.choice([1, 100, 10_000])), "zeros": bytes(1000), "a byte": bytes(some),
    }[what]  # fmt: skip


def spoilt_bytes(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    at, some = chance.randrange(len(data) + 1), bytearray(data or b"x")
    for _ in range(chance.choice([1, 20])):
        some[chance.randrange(len(some))] = chance.randrange(256)
    ways = {
        "empty": b"", "cut": data[:at], "some bytes": bytes(some), "doubled": data + data, "its end first": data[at:] + data[:at],
        "zeros": bytes(len(data)), "noise": chance.randbytes(500), "more behind it": data + b"\n{}\n", "text": "é\n".encode("utf-16"),
        "a hole": data[:at] + bytes(64) + data[at + 64 :],
    }  # fmt: skip
    what = chance.choice([*ways])
    return what, ways[what]


# ---- files of settings -----------------------------------------------------------------------------------------------------


def settings_file(number: int, chance: random.Random, given: Given) -> Mutation:
    """A grid's file for plan, status, run, retry; one for ``--config``."""
    study = chance.choice([*given.words])
    words = given.words[study]
    settings = parsed(*words)
    fixed = settings.model_dump(mode="json", include=settings.not_default())
    lines = [
        f"study: {study}",
        "fixed:",
        *(f"  {name}: {json.dumps(value)}" for name, value in fixed.items()),
    ]
    command = chance.choice(["plan", "status", "run", "retry", "train"])
    if command != "train":
        lines = [line for line in lines if not line.startswith("  seed:")] + ["axes:", "  seed: [0, 1]"]
    what, data = spoilt_text("\n".join(lines) + "\n", chance)
    called = [*words[:2], "--config", "f.yaml"] if command == "train" else [command, "f.yaml"]
    called += ["--launcher", chance.choice(["script", "sge", "slurm"])] if command in ("run", "retry") else []
    return Mutation(number, "settings", what, called, lambda folder: write(folder / "f.yaml", data))


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# ---- words -------------------------------------------------------------------------------------------------------------------


def words(number: int, chance: random.Random, given: Given) -> Mutation:
    """A value of a flag of any command; words left out, doubled, misspelt, in another order."""
    name = chance.choice([*COMMANDS])
    settings = COMMANDS[name].settings
    called = usual_words(name, given)
    name_of = chance.choice([*settings.model_fields])
    spelt = documented_flag(name_of, settings.model_fields[name_of])
    word = chance.choice(WORDS)
    at = chance.randrange(len(called) + 1)
    ways = {
        "a value": [*called, word] if is_argument(settings.model_fields[name_of]) else [*called, f"{spelt}={word}"],
        "values": [*called, spelt, word, chance.choice(WORDS), chance.choice(WORDS)],
        "no value": [*called, spelt], "a word": [*called[:at], word, *called[at:]], "a word less": [*called[:at], *called[at + 1 :]],
        "a flag misspelt": [*called, spelt[:-1] + chance.choice(string.ascii_lowercase), "1"], "twice": [*called, *called],
        "a file that is not there": [*called, "--config", word], "order": chance.sample(called, len(called)),
        "a flag in capitals": [*called, spelt.upper(), word],
    }  # fmt: skip
    what = chance.choice([*["a value"] * 8, *ways])
    return Mutation(number, "words", f"{what} ({spelt})", [one.replace("\0", "") for one in ways[what]])


def usual_words(name: str, given: Given) -> list[str]:
    """A command with what keeps it small, where a small run of its study is one like it."""
    study, _, command = name.rpartition(" ")
    if not study:
        few = ["masked-loss", "--launcher", "script"] if command in ("run", "retry") else ["masked-loss"]
        return [command, *(few if command != "quickstart" else ["--epochs", "1", "--threads", "1"])]
    of_run, settings = parsed(*given.words[study]), COMMANDS[name].settings
    shared = {
        k: v
        for k, v in of_run.model_dump(mode="json").items()
        if k in settings.model_fields and k in of_run.model_fields_set
    }
    found = [study, command]
    for one, value in shared.items():
        if not is_argument(settings.model_fields[one]):
            found += [
                documented_flag(one, settings.model_fields[one]),
                *([str(v) for v in value] if isinstance(value, list) else [str(value)]),
            ]
    return found


# ---- images ------------------------------------------------------------------------------------------------------------------


def images(number: int, chance: random.Random, given: Given) -> Mutation:
    way = chance.choice([*IMAGES])
    return IMAGES[way](number, chance, given)


def of_npz(number: int, chance: random.Random, given: Given) -> Mutation:
    study = chance.choice(["masked-loss", "first-layer-mi", "layerwise-mi", "adaptive-noise", "correction"])
    random_ = np.random.default_rng(number)
    n = 40
    good: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        good[f"y_{split}"] = np.arange(n) % 4
        good[f"x_{split}"] = random_.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    key = chance.choice([*good])
    x, y = good["x_train"], good["y_train"]
    arrays: dict[str, Any] = {
        "float": x / 255, "float with NaN": np.full(x.shape, np.nan), "int64": x.astype(np.int64), "complex": x.astype(complex),
        "bool": x > 9, "text": np.array(["a"] * n), "bytes": np.array([b"a"] * n), "dates": y.astype("datetime64[s]"),
        "a struct": np.zeros(n, [("a", "u1")]), "objects": np.array([{}] * n, dtype=object), "one number": np.array(3), "nothing": x[:0],
        "one": x[:1], "a column": y[:, None], "five dimensions": x[None], "two channels": x[..., :2], "four channels": x[..., [0, 1, 2, 0]],
        "no height": x[:, :0], "one pixel": x[:, :1, :1], "thin": x[:, :1], "all equal": np.zeros_like(x), "one class": np.zeros_like(y),
        "negative": y - 1, "huge": y + 2**62, "unsigned huge": y.astype(np.uint64) + np.uint64(2**63), "a gap": y * 1000, "float labels": y / 1.0,
        "half": x[: n // 2], "big-endian": y.astype(">i8"), "Fortran": np.asfortranarray(x), "one-hot": np.eye(4)[y],
        "a large image": np.zeros((2, 3000, 3000), np.uint8), "empty strings": np.array([""] * n), "three": x[:3],
    }  # fmt: skip
    what = chance.choice(
        [*arrays, "bytes of the file", "a huge header", "a key less", "a key more", "another format", "text"]
    )

    def make(folder: Path) -> None:
        path = folder / "x.npz"
        content: dict[str, Any] = dict(good)
        if what in arrays:
            content[key] = arrays[what]
        if what == "a key less":
            del content[key]
        if what == "a key more":
            content["z"] = np.zeros(3)
        np.savez(path, **content)
        if what == "bytes of the file":
            path.write_bytes(spoilt_bytes(path.read_bytes(), chance)[1])
        if what == "a huge header":
            header(path, key, chance.choice([(2**40,), (2**62,), (2**63, 2**63), (-1,), (n, 2**31, 8, 3)]))
        if what == "another format":
            with open(path, "wb") as file:
                np.save(file, x)
        if what == "text":
            path.write_text("x_train: 1\n")

    return Mutation(number, "images", f"npz, {what} ({key})", on_images(study, "npz:x.npz", given), make)


def header(path: Path, key: str, shape: tuple[int, ...]) -> None:
    """An array that says it is larger than any memory."""
    import zipfile

    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape!r}}}".ljust(117) + "\n"
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    parts[f"{key}.npy"] = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(100)
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)


def on_images(study: str, dataset: str, given: Given) -> list[str]:
    """A command that reads these images."""
    if study == "correction":
        return ["correction", "build-data", "--dataset", dataset, "--out", "made"]
    return [*given.words[study], "--dataset", dataset]


def of_folder(number: int, chance: random.Random, given: Given) -> Mutation:
    what = chance.choice([
        "nothing in it", "no test", "one class", "a class more in test", "an empty class", "text for an image", "an empty file",
        "a cut image", "a folder for an image", "sizes that differ", "a file for a class", "a dead link", "a name in Latin-1", "a huge image", "a GIF",
        "16 bits", "a palette", "CMYK", "a link in a circle", "bytes",
    ])  # fmt: skip

    def make(folder: Path) -> None:
        from PIL import Image

        random_, root = np.random.default_rng(number), folder / "pictures"
        root.mkdir()
        if what == "nothing in it":
            return
        for split in ("train", "test"):
            for name in "ab"[: 1 if what == "one class" else 2]:
                (root / split / name).mkdir(parents=True)
                for i in range(20):
                    pixels = random_.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(root / split / name / f"{i}.png")
        one = root / chance.choice(["train", "test"]) / "a" / "0.png"
        data = one.read_bytes()
        match what:
            case "no test":
                shutil.rmtree(root / "test")
            case "a class more in test":
                (root / "test" / "c").mkdir()
            case "an empty class":
                shutil.rmtree(root / "train" / "b")
                (root / "train" / "b").mkdir()
            case "text for an image":
                one.write_text("hello")
            case "an empty file":
                one.write_bytes(b"")
            case "a cut image":
                one.write_bytes(data[: chance.randrange(len(data))])
            case "a folder for an image":
                (one.parent / "x.png").mkdir()
            case "sizes that differ":
                Image.new("RGB", (9, 8)).save(one)
            case "a file for a class":
                (root / "train" / "x").write_text("x")
            case "a dead link":
                (one.parent / "x.png").symlink_to("nowhere")
            case "a link in a circle":
                (root / "train" / "x").symlink_to(root / "train")
            case "a name in Latin-1":
                Path(bytes(one.parent / "x").decode() + "\udce9.png").write_bytes(data)
            case "a huge image":
                Image.new("1", (40_000, 40_000)).save(one)
            case "a GIF" | "16 bits" | "a palette" | "CMYK":
                mode = {"a GIF": "P", "16 bits": "I;16", "a palette": "P", "CMYK": "CMYK"}[what]
                Image.new(mode, (8, 8)).save(one, format={"a GIF": "GIF", "CMYK": "TIFF"}.get(what, "PNG"))
            case "bytes":
                one.write_bytes(spoilt_bytes(data, chance)[1])

    return Mutation(
        number, "images", f"folder, {what}", on_images("masked-loss", "folder:pictures", given), make
    )


def of_parquet(number: int, chance: random.Random, given: Given) -> Mutation:
    what = chance.choice(["bytes of the file", "no column", "numbers for images", "text for images", "null labels", "negative", "float labels",
                          "huge", "no rows", "null images", "a list for images"])  # fmt: skip

    def make(folder: Path) -> None:
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq
        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (9, 200, 3)).save(buffer, format="PNG")
        image, n = buffer.getvalue(), 30
        pictures: list[Any] = [image] * n
        labels: list[Any] = [i % 3 for i in range(n)]
        pictures = {
            "numbers for images": [1] * n,
            "text for images": ["x"] * n,
            "null images": [None] * n,
            "a list for images": [[1]] * n,
        }.get(what, pictures)  # type: ignore[assignment]
        labels = {
            "null labels": [None] * n,
            "negative": [-1] * n,
            "float labels": [0.5] * n,
            "huge": [2**40] * n,
        }.get(what, labels)  # type: ignore[assignment]
        if what == "no rows":
            pictures, labels = [], []
        table = pa.table({"image" if what != "no column" else "picture": pictures, "label": labels})
        for split in ("train", "test"):
            pq.write_table(table, folder / f"x-{split}.parquet")
        if what == "bytes of the file":
            path = folder / "x-train.parquet"
            path.write_bytes(spoilt_bytes(path.read_bytes(), chance)[1])

    return Mutation(number, "images", f"parquet, {what}", on_images("masked-loss", "parquet:x", given), make)


def of_tensors(number: int, chance: random.Random, given: Given) -> Mutation:
    """08MNIST, a base model, a file to convert."""
    import torch

    what = chance.choice(
        ["bytes", "no key", "another kind", "another shape", "NaN", "a list", "text", "labels"]
    )
    words = given.words["correction"]
    data = Path(words[words.index("--data") + 1])
    command = chance.choice(["train", "train-base", "check", "evaluate", "convert", "base"])

    def make(folder: Path) -> None:
        shutil.copytree(data, folder / "08MNIST")
        shutil.copy(words[words.index("--base_model") + 1], folder / "model.pth")
        path = (
            folder / "model.pth"
            if command == "base"
            else chance.choice(sorted((folder / "08MNIST").rglob("*.pth")))
        )
        if command == "convert":
            path = folder / "08MNIST" / "original" / "test.pth"
        content = torch.load(path, weights_only=True)
        key = chance.choice(sorted(content))
        match what:
            case "bytes":
                path.write_bytes(spoilt_bytes(path.read_bytes(), chance)[1])
                return
            case "no key":
                del content[key]
            case "another kind":
                content[key] = chance.choice(
                    [
                        content[key].to(torch.complex64),
                        content[key].to_sparse(),
                        content[key] > 0,
                        3,
                        None,
                        "x",
                        [1],
                    ]
                )
            case "another shape":
                content[key] = chance.choice(
                    [
                        content[key][:0],
                        content[key][None],
                        content[key].flatten(),
                        torch.zeros(()),
                        torch.zeros(2**20, 1),
                    ]
                )
            case "NaN":
                content[key] = torch.full_like(
                    content[key].float(), chance.choice([float("nan"), float("inf"), -1, 1e30])
                )
            case "a list":
                content = list(content.values())
            case "text":
                content = "hello"
            case "labels":
                content["labels"] = chance.choice([torch.zeros(5), torch.full((9, 2), 7), torch.arange(3)])
        torch.save(content, path)

    here = ["--data", "08MNIST", "--base_model", "model.pth", "--device", "cpu"]
    called = {
        "train": [*words, *here], "base": [*words, *here], "train-base": ["correction", "train-base", *here[:4], "--epochs", "1"],
        "check": ["correction", "check", *here], "convert": ["correction", "convert", "08MNIST/original/test.pth"],
        "evaluate": ["correction", "evaluate", "--checkpoint", "model.pth", "--data", "08MNIST"],
    }[command]  # fmt: skip
    return Mutation(number, "images", f"tensors, {what}", called, make)


def of_idx(number: int, chance: random.Random, given: Given) -> Mutation:
    """Files of MNIST as torchvision reads them; there is no network in which to find others."""
    what = chance.choice(["bytes", "bytes", "no labels", "few labels"])

    def make(folder: Path) -> None:
        raw = folder / "data" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for split, n in (("train", 60), ("t10k", 30)):
            pixels = np.random.default_rng(number).integers(0, 256, (n, 28, 28)).astype(np.uint8)
            write(
                raw / f"{split}-images-idx3-ubyte",
                b"".join(k.to_bytes(4, "big") for k in (2051, n, 28, 28)) + pixels.tobytes(),
            )
            m = 5 if what == "few labels" else n
            write(
                raw / f"{split}-labels-idx1-ubyte",
                b"".join(k.to_bytes(4, "big") for k in (2049, m)) + bytes(i % 10 for i in range(m)),
            )
        path = chance.choice(sorted(raw.iterdir()))
        if what == "bytes":
            path.write_bytes(spoilt_bytes(path.read_bytes(), chance)[1])
        if what == "no labels":
            path.unlink()

    return Mutation(
        number,
        "images",
        f"idx, {what}",
        [*on_images("masked-loss", "mnist", given), "--data_dir", "data"],
        make,
    )


IMAGES = {"npz": of_npz, "folder": of_folder, "parquet": of_parquet, "tensors": of_tensors, "idx": of_idx}


# ---- results -----------------------------------------------------------------------------------------------------------------


def results(number: int, chance: random.Random, given: Given) -> Mutation:
    """One file of a finished run, and a command that may read it."""
    study = chance.choice([*given.words])
    done = given.done(study)
    files = [
        p
        for p in sorted(done.rglob("*"))
        if p.is_file() and p.suffix not in {".png", ".html", ".csv", ".txt"}
    ]
    path = chance.choice(files)
    name, data = str(path.relative_to(done)), path.read_bytes()
    if path.suffix == ".json" and chance.random() < 0.8:
        what, new = spoilt_json(data, chance)
    elif path.suffix == ".npz" and chance.random() < 0.7:
        what, new = spoilt_arrays(path, chance)
    elif path.suffix in (".jsonl", ".json", ".sha256"):
        what, new = spoilt_text(data.decode(), chance)
    else:
        what, new = spoilt_bytes(data, chance)

    def make(folder: Path) -> None:
        shutil.copytree(done, folder, dirs_exist_ok=True)
        (folder / name).write_bytes(new)

    called = chance.choice([given.words[study], *given.readers[study], *given.readers[study]])
    return Mutation(number, "results", f"{name}, {what}", called, make)


def spoilt_json(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    content = json.loads(data)
    spots = list(spots_of(content))
    if not spots:
        return "empty", b""
    home, key = chance.choice(spots)
    value = chance.choice(JSON_VALUES)
    what = chance.choice(
        [
            "a value",
            "a value",
            "a value",
            "a key less",
            "a key more",
            "all else",
            "nested",
            "twice",
            "renamed",
        ]
    )
    if what == "a value":
        home[key] = value
    elif what == "a key less":
        del home[key]
    elif what == "a key more" and isinstance(home, dict):
        home[chance.choice(["", "é", "__class__", "run_id", "seed", "x"])] = value
    elif what == "renamed" and isinstance(home, dict):
        home[f"{key}x"] = home.pop(key)
    elif what == "all else":
        content = value
    text = json.dumps(content)
    if what == "nested":
        text = text[:-1] + ', "x": ' + "[" * 100_000 + "}"
    if what == "twice":
        text = text + text
    return f"{what} at {key!r}", text.encode()


def spots_of(content: Any) -> Any:
    """Every place of a nested value, as what holds it and its key; of a long list the first three."""
    keys = (
        [*content]
        if isinstance(content, dict)
        else range(min(3, len(content)))
        if isinstance(content, list)
        else []
    )
    for key in keys:
        yield content, key
        yield from spots_of(content[key])


def spoilt_arrays(path: Path, chance: random.Random) -> tuple[str, bytes]:
    import io

    with np.load(path) as old:
        arrays: dict[str, Any] = {name: old[name] for name in old.files}
    key = chance.choice(sorted(arrays))
    value = chance.choice([
        np.array(np.nan), np.zeros(0), np.array("x"), np.zeros((2, 2)), np.array([1 + 2j]), np.array([None, {}], dtype=object), np.array(b"x"),
        np.array(["a", "b"]), np.array(10**18), np.array(-1), np.array("2026-01-01", "datetime64[D]"), np.zeros(3, [("a", "i4")]), np.array(True),
    ])  # fmt: skip
    if chance.random() < 0.2:
        del arrays[key]
    else:
        arrays[key] = value
    out = io.BytesIO()
    np.savez(out, **arrays)
    return f"{key} is {value.dtype} {value.shape}", out.getvalue()


KINDS: dict[str, Callable[[int, random.Random, Given], Mutation]] = {
    "settings": settings_file, "words": words, "images": images, "results": results,
}  # fmt: skip
