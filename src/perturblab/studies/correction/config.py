"""The document's config file: ``general``, and under ``experiments`` (or ``specific``) what an experiment does otherwise.

    general: {program_args: {batch_size: 64, ...}, learning_rate: [0.01, 0.001], loss_type: both, ...}
    experiments: {overfit_test: {program_args: {...}, learning_rate: [0.01]}, ...}

Command line > experiment > general > default. JSON is read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perturblab.settings import nearest
from perturblab.studies.correction import Run
from perturblab.terminal import UserError, say
from perturblab.yamlfile import check_keys, read_yaml, section

PACKAGED = Path(__file__).with_name("baseline_config.yaml")
NAMES = ("config_baseline.yaml", "baseline_config.yaml")
"""What the document calls the file, and what it is called."""
CHAINED = ("learning_rate", "lambda_weight")
"""What an earlier stage may supply (decision 31)."""
KEYS = [name for name in Run.names() if Run.field_for(name) != "experiment"]


def settings_of(config: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a file gives to the experiment of the command line; without ``config`` the packaged file.

    What the packaged file says of learning rate and lambda is left out: ``packaged`` gives it where no earlier stage
    does. UserError, naming file and line, for what cannot be used.
    """
    path = located(config)
    values = experiment_of(path, given.get("experiment"))
    return {name: value for name, value in values.items() if path != PACKAGED or name not in CHAINED}


def packaged(experiment: str) -> dict[str, Any]:
    """The packaged values of an experiment; of one that it does not know, the general ones."""
    there = section(PACKAGED, read_yaml(PACKAGED), "experiments")
    return experiment_of(PACKAGED, experiment if experiment in there else None, named=False)


def located(config: str | None) -> Path:
    """The file to read. One that bears a name of the document and is missing may bear the other, or is packaged."""
    if config is None:
        return PACKAGED
    path = Path(config)
    if path.exists() or path.name not in NAMES:
        return path
    other = path.with_name(NAMES[1 - NAMES.index(path.name)])
    found = other if other.exists() else PACKAGED
    say(f"{path} is not there; taking {'the packaged experiments' if found is PACKAGED else found}")
    return found


def experiment_of(path: Path, experiment: str | None, named: bool = True) -> dict[str, Any]:
    """General values, and over them those of the experiment, by field."""
    content = read_yaml(path)
    check_keys(path, content, ["general", "experiments", "specific"])
    sections = {key: section(path, content, key) for key in ("experiments", "specific")}
    twice = sections["experiments"].keys() & sections["specific"].keys()
    if twice:
        raise UserError(f"{path}: '{min(twice)}' stands under 'experiments' and under 'specific'")
    there = [name for under in sections.values() for name in under]
    if named and experiment is None:
        raise UserError(f"--experiment is required: one of {', '.join(there)}")
    if named and experiment not in there:
        choices = nearest(str(experiment), there) if there else "; it has none"
        raise UserError(f"no experiment '{experiment}' in {path.name}{choices}")
    values = flat(path, section(path, content, "general"))
    for under in sections.values():
        if experiment is not None and experiment in under:
            values |= flat(path, section(path, under, experiment))
    return values


def flat(path: Path, content: Any) -> dict[str, Any]:
    """Keys of a section and of its ``program_args`` by field; what is empty is not set."""
    check_keys(path, content, [*KEYS, "program_args"])
    nested = [key for key in content if key.replace("-", "_") == "program_args"]
    groups = [section(path, content, key) for key in nested]
    for group in groups:
        check_keys(path, group, KEYS)
    values: dict[str, Any] = {}
    for group in (content, *groups):
        for key, value in group.items():
            if key in nested or value is None:
                continue
            field = Run.field_for(key)
            if field in values:
                raise UserError(f"{path}, line {group.lines[key]}: key '{key}' sets '{field}' a second time")
            values[field] = value
    return values
