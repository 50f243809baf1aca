"""What an experiment needs and a new user does not have: 08MNIST and the base model are made where they are missing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from perturblab.claims import Busy
from perturblab.files import read_json
from perturblab.studies.correction import Run, TrainBase
from perturblab.studies.correction.layout import about, data_sha256, owner_by_sidecar, set_files, sidecar
from perturblab.studies.correction.making import BuildData
from perturblab.sweep import WAIT_S
from perturblab.terminal import UserError, say, warn

LEARNT = 0.9  # accuracy on dotted digits


def provide(s: Run) -> None:
    """Build what is missing, saying so in a line each. UserError where it cannot be built or is of another data set."""
    data, model = Path(s.data), Path(s.base_model)
    provide_data(s, data)
    if not model.exists():
        say(f"{model} is not there: training it on the dotted digits")
        provide_base(s, model)
    elif owner_by_sidecar(model) is not None:
        check_base(data, model, read_json(sidecar(model)))


def check_base(data: Path, model: Path, said: dict[str, Any]) -> None:
    """Warn of a base model, made here, from which there is little to correct."""
    if said.get("data_sha256") != data_sha256(data):
        warn(f"{model} was trained on other data than {data}; remove it to train one on these")
    elif said["reliance"]["accuracy_confounded"] < LEARNT:
        seen = f"{100 * said['reliance']['accuracy_confounded']:.1f} %"
        warn(
            f"{model} has not learnt the dot ({seen} on dotted test digits); perturblab correction train-base makes one that has"
        )


def provide_data(s: Run, data: Path) -> None:
    there, made = [path for path in set_files(data).values() if path.exists()], about(data)
    if made and len(there) < len(set_files(data)):
        say(f"{data} is not whole: building it again from {made['dataset']}")
        built = {name: made[name] for name in BuildData.model_fields if name in made}
        make(s, BuildData.parse(built), data)
    elif there:
        if s.dataset and made and made["dataset"] != s.dataset:
            raise UserError(
                f"{data} was made of {made['dataset']}, not {s.dataset}; move it away, or give another --data"
            )
    elif data.name != "08MNIST":
        raise UserError(f"there is no {data}; perturblab correction build-data makes a folder 08MNIST")
    else:
        dataset = s.dataset or "mnist"
        say(f"{data} is not there: building it from {dataset}")
        make(s, BuildData(dataset=dataset), data)


def make(s: Run, wanted: BuildData, data: Path) -> None:
    from perturblab.studies.correction.data import build

    here = {"out": str(data.parent), "data_dir": s.data_dir, "num_workers": s.num_workers}
    build(wanted.model_copy(update=here))


def provide_base(s: Run, model: Path) -> None:
    """Train it, unless another process does; then wait for that one."""
    from perturblab.studies.correction.base import train

    shared = {
        name: getattr(s, name)
        for name in ("data", "base_model", "precision", "device", "threads", "runs_dir")
    }
    wanted, told = TrainBase.parse({**shared, "checkpoint_every": s.checkpoint_every}), False
    while not model.exists():
        try:
            train(wanted)
        except Busy as busy:
            if not told:
                say(f"{busy}: waiting for {model}")
            told = True
            time.sleep(WAIT_S)
