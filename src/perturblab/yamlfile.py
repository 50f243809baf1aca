"""Strict YAML: ``1e-3`` is a number, a key twice or unknown is an error that names its line and the nearest key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from perturblab.settings import Settings, nearest
from perturblab.terminal import UserError


class _Mapping(dict[str, Any]):
    """A mapping that remembers the line of each key, for messages."""

    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    pass


def _mapping(loader: _Loader, node: yaml.MappingNode) -> _Mapping:
    result = _Mapping()
    result.lines = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        line = key_node.start_mark.line + 1
        if key in result:
            raise UserError(
                f"{node.start_mark.name}, line {line}: key '{key}' stands twice (first in line {result.lines[key]})"
            )
        result[key] = loader.construct_object(value_node, deep=True)
        result.lines[key] = line
    return result


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# YAML 1.1 wants a dot and a sign in "1.0e-3"; people write 1e-3 and mean a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$|[-+]?\.\d+([eE][-+]?\d+)?$|[-+]?\d[\d_]*\.\d*$"),
    list("-+0123456789."),
)


def read_yaml(path: str | Path) -> _Mapping:
    """The mapping in ``path``. UserError, naming file and line, for what cannot be read, parsed or is no mapping."""
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply") from None
    if not isinstance(content, _Mapping):
        raise UserError(f"{path}: expected 'key: value' lines, found {type(content).__name__}")
    return content


def section(path: str | Path, content: _Mapping, name: str) -> _Mapping:
    """The mapping under ``name`` (empty if absent)."""
    value = content.get(name)
    if value is None:
        value = _Mapping()
        value.lines = {}
    if not isinstance(value, _Mapping):
        raise UserError(f"{path}, line {content.lines[name]}: '{name}' must hold 'key: value' lines")
    return value


def check_keys(path: str | Path, content: _Mapping, allowed: list[str]) -> None:
    """UserError with line and nearest key for the first key that is not ``allowed`` (any spelling of _ and -)."""
    for key in content:
        if key.replace("-", "_") not in allowed:
            where = f"{path}, line {content.lines[key]}"
            raise UserError(f"{where}: unknown key '{key}'{nearest(key.replace('-', '_'), allowed)}")


def read_settings(path: str | Path, cls: type[Settings]) -> dict[str, Any]:
    """The settings of a ``{study, fixed: {...}, axes: {...}}`` file for the command ``cls``, as a dictionary.

    An axis (``seed: [0, 1]``) sets the list field that ``cls.axes`` names for it. Raises UserError, with the line,
    for another study, an unknown key, or axes in a command that runs once.
    """
    content = read_yaml(path)
    check_keys(path, content, ["study", "fixed", "axes"])
    study = content.get("study", cls.study)
    if study != cls.study:
        raise UserError(
            f"{path}, line {content.lines['study']}: this is a file for '{study}', not {cls.study}"
        )
    fixed, axes = section(path, content, "fixed"), section(path, content, "axes")
    check_keys(path, fixed, list(cls.model_fields))
    check_keys(path, axes, list(cls.axes))
    values = {key.replace("-", "_"): value for key, value in fixed.items()}
    return values | {cls.axes[axis]: value for axis, value in axes.items()}
