"""What ``build-data`` and ``convert`` are set to: the data of correction, made and brought along."""

from __future__ import annotations

from typing import Literal

from perturblab.flags import Loading
from perturblab.settings import Settings, flag

DATASET = "MNIST or another set with digits 0 and 8: mnist, digits, folder:PATH, parquet:PREFIX or npz:PATH."


class BuildData(Loading):
    """Make 08MNIST: digits 0 and 8, plain and with a dot on every 8."""

    study = "correction"
    command = "build-data"

    dataset: str = flag("mnist", DATASET)
    out: str = flag(".", "The folder in which 08MNIST/ is made.", where=True)
    shape: Literal["square", "disc", "cross", "frame"] = flag("square", "What the dot looks like.")
    size: int = flag(2, "Pixels a side of the dot.", ge=1)
    position: str = flag(
        "bottom-right",
        "Where the dot stands: top-left, top-right, bottom-left, bottom-right, center, random, or ROW,COLUMN of its corner.",
    )
    margin: int = flag(1, "Pixels between the dot and the border.", ge=0)
    value: float = flag(1.0, "Brightness of the dot, above 0 and up to 1.", gt=0, le=1)
    fraction: float = flag(1.0, "Share of the 8s that bear the dot.", gt=0, le=1)
    strength: float = flag(
        1.0, "How well the dot tells an 8: at 1 no 0 bears it, at 0 as many 0s as 8s.", ge=0, le=1
    )
    seed: int = flag(0, "Random seed of the places and of who bears the dot, where these vary.", ge=0)


class Convert(Settings):
    """Turn a file with a pickled TensorDataset, as the original notebooks wrote it, into one of tensors only."""

    study = "correction"
    command = "convert"

    file: str = flag(..., "The .pth file with the TensorDataset.", argument=True, where=True)
    out: str = flag(
        "",
        "The file to write; by default FILE itself, whose old content is kept as FILE.legacy.",
        where=True,
    )
