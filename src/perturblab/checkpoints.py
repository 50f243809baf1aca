"""Checkpoint files that a user brings or takes away: tensors and plain values only, nothing is ever executed."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perturblab.terminal import UserError


def to_bytes(content: dict[str, Any]) -> bytes:
    """``torch.save`` through a buffer: saved to a path, the file's name would stand in its bytes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def to_cpu(content: Any) -> Any:
    """The same nested dicts and lists with every tensor on the CPU, so that the file loads on any machine."""
    if isinstance(content, Tensor):
        return content.cpu()
    if isinstance(content, dict):
        return {key: to_cpu(value) for key, value in content.items()}
    return [to_cpu(value) for value in content] if isinstance(content, list) else content


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary in a ``.pt`` file, on the CPU. UserError if it is missing, damaged or wants to run code.

    ``torch.load`` looks at no checksum, so that a flipped bit among the weights would pass; the file has them.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        with warnings.catch_warnings():  # torch's thoughts on the pickle protocol help nobody here
            warnings.simplefilter("ignore")
            if not is_whole(data):
                raise ValueError
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "call reduce" in str(error):  # it names a function or a class
            raise UserError(
                f"{path} holds more than tensors and plain values; refused, nothing was run"
            ) from None
        raise UserError(f"{path} is damaged or is no checkpoint of torch.save") from None
    except Exception:
        raise UserError(f"{path} is damaged or is no checkpoint of torch.save") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint's dictionary")
    return content


def is_whole(data: bytes) -> bool:
    """Whether every part has the CRC-32 that stands beside it; files of before torch 1.6 have none.

    torch.save compresses nothing: what would unpack to more than the file has is none of its files.
    """
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return True
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return sum(part.file_size for part in archive.infolist()) <= len(data) and archive.testzip() is None


def load_weights(model: nn.Module, weights: dict[str, Tensor], path: str | Path) -> None:
    """Load a state_dict into ``model``; UserError names the keys and shapes that differ, or what is not finite."""
    own = model.state_dict()
    missing = [k for k in own if k not in weights]
    extra = [k for k in weights if k not in own]
    shapes = [k for k in own if k in weights and _shape(own[k]) != _shape(weights[k])]
    if missing or extra or shapes:
        told = [
            f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for what, names in (
                ("lacks", missing),
                ("has an unknown", extra),
                ("has another shape at", shapes),
            )
            if names
        ]
        raise UserError(f"{path} is a checkpoint of another network: it {', '.join(told)}")
    try:
        if any(own[k].is_floating_point() and not weights[k].is_floating_point() for k in own):
            raise RuntimeError("complex or whole numbers")
        model.load_state_dict(weights)
    except RuntimeError:  # also a sparse, quantised or data-less tensor
        raise UserError(f"{path} holds weights of a kind that cannot be used") from None
    bad = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise UserError(f"{path}: {bad[0]} is not finite; its training diverged, or the file was altered")


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else None
