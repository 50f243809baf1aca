"""Devices, precision, threads: what decides the bits and the speed, chosen once per process and recorded."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

from perturblab.terminal import UserError, warn

Precision = Literal["fp32", "tf32", "bf16", "auto"]


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU; a device that is named and missing is an error."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device '{name}' is not one of auto, cpu, cuda, cuda:N, mps") from None
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= cards:
        raise UserError(f"--device {name}: this machine has {cards} CUDA devices; use --device auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available here; use --device auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"--device '{name}' is not one of auto, cpu, cuda, cuda:N, mps")
    return device


def pick_precision(name: Precision, device: torch.device) -> Literal["fp32", "tf32", "bf16"]:
    """``auto`` is bf16 where the device has matrix units for it (CUDA 8.0 on, x86 with AMX), else fp32."""
    if name == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32 exists on CUDA devices only; use fp32, bf16 or auto")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and has_amx() else "fp32"


def has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


def set_up(precision: str, threads: int) -> None:
    """Set the process's arithmetic: TF32 only by its own name, deterministic cuDNN, the number of CPU threads."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if threads:
        torch.set_num_threads(threads)
    keep_memory()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The region in which a forward pass computes in ``precision``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def keep_memory() -> None:
    """Tell glibc to keep freed memory: a training step frees and asks for the same large blocks, and returning
    them to the system each time costs page faults (float32 training 1.1 to 1.2 times faster, see benchmarks/).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mmap_threshold, trim_threshold, largest = -3, -1, 2**30
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, largest)
    libc.mallopt(trim_threshold, largest)


def facts(device: torch.device, precision: str) -> dict[str, Any]:
    """What besides the settings decides the bits of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "torch": torch.__version__,
        "device": device.type,
        "device_name": name,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


def reuse(facts: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """(facts of the run's first start, facts now): take the first start's threads, warn of other differences."""
    first, now = facts
    if first["threads"] != now["threads"]:
        torch.set_num_threads(int(first["threads"]))
    differs = [name for name in now if name != "threads" and first.get(name) != now[name]]
    if differs:
        changes = ", ".join(f"{name} {first.get(name)} -> {now[name]}" for name in differs)
        warn(f"resumed on a different machine ({changes}): the run goes on, but is not bit-exact any more")
