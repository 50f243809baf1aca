"""The predictions of an evaluation on disk: block by block while it runs, then one file."""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from perturblab.experiment import arrays_to_bytes
from perturblab.files import read_checked
from perturblab.images import ImageSet
from perturblab.runs import RunFolder
from perturblab.sites import Site
from perturblab.studies.layerwise_mi import Evaluation
from perturblab.studies.layerwise_mi.results import documented

ABSENT = -1  # "prediction" of a subset that a layer with few channels does not have


class Blocks(dict[int, Tensor]):
    """Predictions of one layer, int16 ``[subsets images]`` by the number of the first image.

    What is put in is written to the run folder; what is there when it is made is read. A damaged block is left out.
    """

    def __init__(self, run: RunFolder, layer: int) -> None:
        super().__init__()
        self.run, self.name = run, f"checkpoint-predictions-{layer:02d}"  # cleared when the run is done
        for path in run.path.glob(f"{self.name}-*.npy"):
            if (data := read_checked(path)) is not None:
                array = np.load(io.BytesIO(data), allow_pickle=False)
                super().__setitem__(int(path.stem.rsplit("-", 1)[1]), torch.from_numpy(array))

    def __setitem__(self, first: int, predicted: Tensor) -> None:
        buffer = io.BytesIO()
        np.save(buffer, predicted.numpy(), allow_pickle=False)
        self.run.write_checked(f"{self.name}-{first:06d}.npy", buffer.getvalue())
        super().__setitem__(first, predicted)

    @property
    def images(self) -> int:
        return sum(block.shape[1] for block in self.values())

    def whole(self) -> Tensor:
        """int16 ``[subsets images]``."""
        return torch.cat([self[first] for first in sorted(self)], dim=1)


def finish(
    s: Evaluation, run: RunFolder, data: ImageSet, full: Tensor, layers: dict[int, tuple[Site, Tensor]]
) -> None:
    """Write the predictions and the results into the run folder, which makes the run done."""
    predicted = np.full((len(layers), max(len(m) for _, m in layers.values()), len(data)), ABSENT, np.int16)
    for row, (index, (_, masks)) in zip(predicted, layers.items(), strict=True):
        row[: len(masks)] = Blocks(run, index).whole().numpy()
    arrays = {
        "layer_names": np.array([site.weights for site, _ in layers.values()]),
        "layer_idx": np.array(list(layers)),
        **{f"keep_masks_{index}": masks.numpy() for index, (_, masks) in layers.items()},
        "predictions": predicted,
        "labels": data.labels.cpu().numpy(),
        "full_predictions": full.cpu().to(torch.int16).numpy(),
        "run_id": np.array(run.id),
    }
    run.write_checked("predictions.npz", arrays_to_bytes(arrays))
    run.finish(documented(s, run.rows, {index: site for index, (site, _) in layers.items()}))
