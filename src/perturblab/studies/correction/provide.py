"""What an experiment needs and a new user does not have: 08MNIST and the base model are made where they are missing."""

from __future__ import annotations

from pathlib import Path

from perturblab.files import read_json
from perturblab.studies.correction import BuildData, Run, TrainBase
from perturblab.studies.correction.layout import about, data_sha256, sidecar, used_files
from perturblab.terminal import UserError, say, warn


def provide(s: Run) -> None:
    """Build what is missing, saying so in a line each. UserError where it cannot be built or is of another data set."""
    data, model = Path(s.data), Path(s.base_model)
    provide_data(s, data)
    if not model.exists():
        say(f"{model} is not there: training it on the dotted digits")
        provide_base(s)
    elif sidecar(model).exists() and read_json(sidecar(model)).get("data_sha256") != data_sha256(data):
        warn(f"{model} was trained on other data than {data}; remove it to train one on these")


def provide_data(s: Run, data: Path) -> None:
    there = [path for path in used_files(data).values() if path.exists()]
    if there:
        made = about(data)
        if s.dataset and made and made["dataset"] != s.dataset:
            raise UserError(
                f"{data} was made of {made['dataset']}, not {s.dataset}; move it away, or give another --data"
            )
        return
    if data.name != "08MNIST":
        raise UserError(f"there is no {data}; perturblab correction build-data makes a folder 08MNIST")
    dataset = s.dataset or "mnist"
    say(f"{data} is not there: building it from {dataset}")
    from perturblab.studies.correction.data import build

    build(BuildData(dataset=dataset, out=str(data.parent), data_dir=s.data_dir, num_workers=s.num_workers))


def provide_base(s: Run) -> None:
    from perturblab.studies.correction.base import train

    shared = {
        name: getattr(s, name)
        for name in ("data", "base_model", "precision", "device", "threads", "runs_dir")
    }
    train(TrainBase.parse({**shared, "checkpoint_every": s.checkpoint_every}))
