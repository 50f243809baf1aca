"""Where a run computes: ``--device``, or the card that ``--gpu`` picks (decision 25)."""

from __future__ import annotations

from typing import Any

import torch

from perturblab.terminal import UserError, say, warn


def device_of(s: Any) -> str:
    """The device to use. UserError where ``--gpu`` was given and there is no CUDA card."""
    asked = "gpu" in s.model_fields_set
    if s.device != "auto":
        if asked:
            warn(f"--gpu {s.gpu} does nothing beside --device {s.device}")
        return str(s.device)
    if not torch.cuda.is_available():
        if asked:
            raise UserError(f"--gpu {s.gpu}: there is no CUDA card here; leave it out, or add --device cpu")
        return "auto"
    first, *others = (int(word) for word in s.gpu.split(","))
    if others:
        say(f"--gpu {s.gpu}: one run takes one card, this one cuda:{first}")
    return f"cuda:{first}"
