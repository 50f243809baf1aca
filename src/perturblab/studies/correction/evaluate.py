"""Measure a checkpoint: what it sees in plain and dotted digits, and how far it follows the dot."""

from __future__ import annotations

from perturblab.experiment import start
from perturblab.probes.reliance import reliance
from perturblab.report.tables import Table, show
from perturblab.studies.correction import Evaluate
from perturblab.studies.correction.data import read_sets
from perturblab.studies.correction.parts import base_network

SETS = {
    "accuracy_original": "original: no dots",
    "accuracy_confounded": "confounded: dots on the 8s",
    "accuracy_toggled": "dotted zeros: dots on the 0s",
    "accuracy_marked": "dotted both",
}


def evaluate(s: Evaluate) -> None:
    """Print accuracy on the four test sets, by group, and the reliance on the dot."""
    device = start(s, ())
    sets = read_sets(s.data)
    model = base_network(s.checkpoint, sets.original).to(device)
    found = reliance(model, sets.original.to(device), sets.confounded.to(device), s.precision)
    rows = [(name, f"{100 * found[key]:.2f}") for key, name in SETS.items()]
    rows += [(f"only {group}", f"{100 * share:.2f}") for group, share in found["groups"].items()]
    notes = (
        f"Worst group {100 * found['worst_group_accuracy']:.2f} %. Moving the dots from the 8s to the 0s costs "
        f"{100 * found['accuracy_drop']:.2f} points; {100 * found['flip_rate']:.2f} % of the images change class with their dot.",
    )
    show(Table(f"{s.checkpoint}, {found['n']:,} test images", ("Images", "Accuracy (%)"), tuple(rows), notes))
