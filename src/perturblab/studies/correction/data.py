"""08MNIST: made, read and converted (correction.md 4.4, decision 32).

A set is a dictionary of tensors: ``inputs`` float32 ``[n 1 28 28]`` in [0, 1], ``labels`` one-hot float32 ``[n 2]``,
``masks`` float32 ``[n 1 28 28]``, 1 under the dot, of confounded sets only. Zeros come first, then eights.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad
from torch.utils.data import TensorDataset

from perturblab.checkpoints import is_whole, read_checkpoint, to_bytes
from perturblab.confound import Shortcut, plant
from perturblab.datasets import load
from perturblab.files import check_writable, sealed, write_atomic, write_json
from perturblab.images import ImageSet
from perturblab.streams import stream
from perturblab.studies.correction.layout import BUILD, DIGITS, about, about_file, set_files, used_files
from perturblab.studies.correction.making import BuildData, Convert
from perturblab.terminal import UserError, say, warn

SIDE = 28
SMALLEST = 4  # pixels a side: the network halves them twice
DRAWN = 20  # MNIST's digits are drawn 20 pixels wide in the middle of 28, and so are those of `digits`


@dataclass(frozen=True)
class Sets:
    """What training reads: dotted train and test images, and the same test images without dots."""

    train: ImageSet
    confounded: ImageSet
    original: ImageSet


# ---- making ----------------------------------------------------------------------------------------------------------


def build(s: BuildData) -> None:
    """Write the four sets and say what is in them."""
    folder = Path(s.out) / "08MNIST"
    files = set_files(folder)
    if any(path.exists() for path in files.values()) and about(folder) is None:
        raise UserError(f"{folder} was not made by build-data; move it away, or choose another --out")
    for path in files.values():
        check_writable(path)
    before = about(folder)
    made = made_sets(s)
    settings = s.model_dump(mode="json", exclude={"out", "data_dir", "num_workers"})
    counts = {name: [int((images.labels == i).sum()) for i in (0, 1)] for name, images in made.items()}
    if before and any(before.get(name) != value for name, value in settings.items()):
        say(
            f"{folder} now holds {s.dataset}, {s.shape} of {s.size}; it held {before['dataset']}, {before['shape']} of {before['size']}"
        )
    write_json(about_file(folder), sealed({"made_by": BUILD, **settings, "counts": counts}))
    for name, images in made.items():  # after about.json: what a kill leaves must not look like another's
        write_atomic(files[name], to_bytes(as_dictionary(images)))
    dotted = (
        int(made["train"].annotation.flatten(1).any(1).sum()) if made["train"].annotation is not None else 0
    )
    say(
        f"{folder}: {s.dataset}, {len(made['train']):,} train and {len(made['original']):,} test images of 0 and 8; "
        f"{dotted:,} train images bear the {s.shape}"
    )


def made_sets(s: BuildData) -> dict[str, ImageSet]:
    """The sets by the names of ``layout.set_files``; the last train image is left out, as in the document's notebook."""
    size = DRAWN if s.dataset == "digits" else SIDE
    train, test = (
        zero_eight(part, s.dataset)
        for part in load(s.dataset, s.data_dir, size=size, channels=1, workers=s.num_workers)
    )
    train = train[:-1]
    try:
        dot = Shortcut(
            classes=(1,), shape=s.shape, size=s.size, position=s.position, margin=s.margin, value=s.value,
            fraction=s.fraction, strength=s.strength,
        )  # fmt: skip
        dotted = {
            name: plant(part, dot, stream(s.seed, "dot", name))
            for name, part in (("train", train), ("test", test))
        }
    except ValueError as error:
        raise UserError(str(error)) from None
    return {"train": dotted["train"], "confounded": dotted["test"], "original": test, "original_train": train}


def zero_eight(images: ImageSet, dataset: str) -> ImageSet:
    """Digits 0 and 8 as 28x28 gray images with labels 0 and 1, zeros first; pixels are not normalised further."""
    found = []
    for digit in DIGITS:
        label = next((i for i, name in enumerate(images.classes) if name.split()[:1] == [digit]), None)
        if label is None or not bool((images.labels == label).any()):
            raise UserError(
                f"{dataset} has no class '{digit}' with images; its classes are {', '.join(images.classes[:12])}"
            )
        found.append((images.labels == label).nonzero()[:, 0])
    chosen = images.images[torch.cat(found)]
    border = (SIDE - chosen.shape[-1]) // 2
    labels = torch.arange(2).repeat_interleave(torch.tensor([len(index) for index in found]))
    return image_set(pad(chosen, (border,) * 4), labels)


def image_set(pixels: Tensor, labels: Tensor, annotation: Tensor | None = None) -> ImageSet:
    """Pixels in [0, 1], as the network sees them."""
    return ImageSet(pixels, labels, DIGITS, (0.0,) * pixels.shape[1], (1.0,) * pixels.shape[1], annotation)


def as_dictionary(images: ImageSet) -> dict[str, Tensor]:
    content = {"inputs": images.images.float() / 255, "labels": one_hot(images.labels, 2).float()}
    return content if images.annotation is None else {**content, "masks": images.annotation.float()}


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_sets(data: str | Path) -> Sets:
    """The sets that training reads. UserError names the file and what is wrong with it."""
    files = used_files(data)
    train, confounded = (read_set(files[name], masks=True) for name in ("train", "confounded"))
    original = read_set(files["original"], masks=False)
    same = original.images.shape == confounded.images.shape and torch.equal(
        original.labels, confounded.labels
    )
    if not same:
        raise UserError(
            f"{files['original']} and {files['confounded']} are not the same images in the same order"
        )
    if train.images.shape[1:] != original.images.shape[1:]:
        raise UserError(f"{files['train']} and {files['original']} hold images of different sizes")
    assert confounded.annotation is not None
    if not confounded.annotation.any():
        raise UserError(
            f"{files['confounded']} marks no image, so nothing shows whether a network follows the mark"
        )
    outside = [part.images.masked_fill(confounded.annotation, 0) for part in (original, confounded)]
    if not torch.equal(*outside):
        raise UserError(f"{files['original']} and {files['confounded']} differ outside the marks")
    return Sets(train, confounded, original)


def read_set(path: Path, masks: bool) -> ImageSet:
    """One file as uint8 images. A confounded one (``masks``) must have an annotation."""
    try:
        content = read_checkpoint(path)
    except UserError as error:
        hint = "" if path.exists() else f"; {BUILD} makes 08MNIST"
        if "more than" in str(error):
            hint = "; perturblab correction convert turns a pickled TensorDataset into tensors"
        raise UserError(f"{error}{hint}") from None
    return checked(path, content, masks)


def checked(path: Path, content: dict[str, Any], masks: bool) -> ImageSet:
    for key in ("inputs", "labels", *(["masks"] if masks else [])):
        if not isinstance(content.get(key), Tensor):
            raise UserError(
                f"{path} lacks '{key}': 08MNIST files hold inputs, labels and, if confounded, masks"
            )
    given, kind = content["inputs"], content["inputs"].dtype
    inputs, labels = plain(path, "inputs", given), plain(path, "labels", content["labels"])
    n, channels, height, width = inputs.shape if inputs.dim() == 4 else (0, 0, 0, 0)
    if not (n and channels == 1 and height == width >= SMALLEST and given.is_floating_point()):
        raise UserError(f"{path}: inputs must be float [n 1 h h], not {kind} {list(inputs.shape)}")
    if not bool(((inputs >= 0) & (inputs <= 1)).all()):
        raise UserError(
            f"{path}: inputs must lie from 0 to 1; they go from {inputs.min():g} to {inputs.max():g}"
        )
    is_one_hot = (
        labels.shape == (n, 2)
        and bool(((labels == 0) | (labels == 1)).all())
        and bool((labels.sum(1) == 1).all())
    )
    if not is_one_hot:
        raise UserError(
            f"{path}: labels must be one-hot [{n} 2], not {content['labels'].dtype} {list(labels.shape)}"
        )
    annotation = plain(path, "masks", content["masks"]) if masks else None
    if annotation is not None and annotation.shape != inputs.shape:
        raise UserError(
            f"{path}: the annotation (masks) must be {list(inputs.shape)}, not {list(annotation.shape)}"
        )
    if annotation is not None and not bool(((annotation == 0) | (annotation == 1)).all()):
        raise UserError(f"{path}: the annotation (masks) must be 1 under the mark and 0 elsewhere")
    pixels = (255 * inputs).round()
    if bool(((255 * inputs - pixels).abs() > 1e-2).any()):
        warn(f"{path}: pixels are rounded to 256 grey levels")
    return image_set(
        pixels.to(torch.uint8), labels.argmax(1), None if annotation is None else annotation == 1
    )


def plain(path: Path, key: str, found: Tensor) -> Tensor:
    """As float32; UserError for a tensor that does not hold its numbers one by one."""
    there = found.layout is torch.strided and found.device.type == "cpu" and not found.is_nested
    if not there or found.is_complex() or found.is_quantized or not holds_all(found):
        raise UserError(
            f"{path}: {key} is a tensor of a kind that is not read ({found.layout}, {found.dtype})"
        )
    return found.detach().float()


def holds_all(found: Tensor) -> bool:
    """Whether there is memory for each of its numbers; a view can tell of many more than a file holds."""
    return found.numel() * found.element_size() <= found.untyped_storage().nbytes()


# ---- what the original notebooks wrote -------------------------------------------------------------------------------


def convert(s: Convert) -> None:
    """Read a pickled TensorDataset, of which nothing but tensors is let through, and write the tensors."""
    source, target = Path(s.file), Path(s.out or s.file)
    try:
        data = source.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from None
    content = from_tensor_dataset(source, data)
    images = checked(source, content, masks="masks" in content)
    if target.exists() and target.samefile(source):
        keep(target.with_name(f"{target.name}.legacy"), data)
    write_atomic(target, to_bytes(as_dictionary(images)))
    say(f"{target}: {len(images):,} images, keys {', '.join(content)}")


def keep(path: Path, data: bytes) -> None:
    if path.exists() and path.read_bytes() != data:
        raise UserError(f"{path} is there already, with other content; move it away, or give --out")
    write_atomic(path, data)


def from_tensor_dataset(path: Path, data: bytes) -> dict[str, Tensor]:
    """``inputs``, ``labels`` (one-hot) and, if there are three tensors, ``masks``; UserError for any other structure."""
    with torch.serialization.safe_globals([TensorDataset]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the pickle protocol
        try:
            if not is_whole(data):
                raise ValueError
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception:  # damaged, or another class: nothing of it was run
            found = None
    tensors = getattr(found, "tensors", ()) if type(found) is TensorDataset else ()
    if (
        not isinstance(tensors, tuple)
        or len(tensors) not in (2, 3)
        or not all(isinstance(t, Tensor) for t in tensors)
    ):
        if isinstance(found, dict) and "inputs" in found:
            raise UserError(f"{path} holds tensors already; there is nothing to convert")
        raise UserError(
            f"{path} is damaged or no pickled TensorDataset of two or three tensors; refused, nothing was run"
        )
    content = dict(zip(("inputs", "labels", "masks"), tensors, strict=False))
    labels = plain(path, "labels", content["labels"])
    if labels.dim() == 1 and set(labels.unique().tolist()) <= {0, 1}:
        content["labels"] = one_hot(labels.long(), 2)
    return content
