"""Measure a checkpoint that a user brings: ours, or one of the original scripts."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from perturblab import hardware
from perturblab.checkpoints import load_weights, read_checkpoint
from perturblab.experiment import load_images
from perturblab.measure import score
from perturblab.models import MODELS
from perturblab.probes.robustness import robustness
from perturblab.settings import shown
from perturblab.signals import stop_on_signals
from perturblab.studies.masked_loss import ARCHITECTURES, Evaluate
from perturblab.terminal import UserError, say

# What a checkpoint of the original scripts does not say, and a command line need not.
WHEN_SILENT = {"width": 1.0, "dataset": "cifar10", "normalize": "documented"}


def evaluate(s: Evaluate) -> None:
    """Print test loss and accuracy, and the accuracy left when only a fraction of the hidden units is kept."""
    weights, arch, said = read(s)
    silent = {name: said[name] for name in WHEN_SILENT if getattr(s, name) is None}
    s = Evaluate.parse({**s.model_dump(), **silent})
    device = hardware.pick_device(s.device)
    hardware.set_up("fp32", 0)
    test_set = load_images(s)[1].to(device)
    images = test_set.images
    model = MODELS[arch](
        classes=len(test_set.classes), channels=images.shape[1], width=s.width, size=images.shape[-1]
    )
    load_weights(model, weights, s.checkpoint)
    model.to(device)
    whole = score(model, test_set)
    say(
        f"{arch} from {s.checkpoint}: test accuracy {100 * whole.accuracy:.2f} %, loss {whole.loss:.4f}, n {whole.n}"
    )
    say("kept hidden units  test accuracy (mean of random subsets, zeroed, not rescaled)")
    with stop_on_signals() as stop:
        left: dict[float, list[float]] = {}
        for row in robustness(model, test_set, seed=s.seed, n_masks=s.robustness_masks, stop=stop):
            left.setdefault(row["kept_fraction"], []).append(row["accuracy"])
    for fraction, accuracies in left.items():
        say(f"{fraction:17.0%}  {100 * fmean(accuracies):.2f} %")


def read(s: Evaluate) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The state_dict in the checkpoint, the architecture that the command line or it names, and what else it says."""
    content = read_checkpoint(s.checkpoint)
    weights = content.get("model_state_dict", content)
    arch = s.arch or content.get("arch")
    if not isinstance(weights, dict):
        raise UserError(f"{s.checkpoint}: its model_state_dict is no dictionary of weights")
    if arch is None:
        raise UserError(
            f"{s.checkpoint} does not say its architecture; give --arch {'|'.join(ARCHITECTURES)}"
        )
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise UserError(
            f"{s.checkpoint} says its architecture is '{shown(arch)}', not {', '.join(ARCHITECTURES)}"
        )
    return weights, arch, {name: content.get(name, value) for name, value in WHEN_SILENT.items()}
