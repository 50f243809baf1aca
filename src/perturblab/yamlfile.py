"""Strict YAML: ``1e-3`` is a number, a key twice or unknown is an error that names its line and the nearest key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from perturblab.settings import Settings, nearest, shown
from perturblab.terminal import UserError


class _Mapping(dict[str, Any]):
    """A mapping that remembers the line of each key, for messages."""

    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: null, true, false, decimal numbers (``1e-3`` too), else text. No dates, no
    octal ``010``, no tags that build objects, no aliases (a few lines of them can stand for gigabytes)."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "float", "str", "seq")))
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read here", problem_mark=mark)
        return super().compose_node(parent, index)

    def scan_to_next_token(self) -> None:
        """Between brackets a tab is a space, as YAML has it and JSON files are often indented; PyYAML refuses it."""
        super().scan_to_next_token()
        while self.flow_level and self.peek() == "\t":
            self.forward()
            super().scan_to_next_token()


def _mapping(loader: _Loader, node: yaml.MappingNode) -> _Mapping:
    if not isinstance(node, yaml.MappingNode):  # !!map [1]
        raise yaml.MarkedYAMLError(problem="no mapping", problem_mark=node.start_mark)
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


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)
for _kind, _pattern, _first in (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?\d+$", list("-+0123456789")),
    ("float", r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern, re.ASCII), _first)


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
    except (ValueError, LookupError) as error:  # a number of 10,000 digits, !!int of a word
        raise UserError(f"{path}: a value cannot be read: {error}") from None
    if not isinstance(content, _Mapping):
        found = "nothing" if content is None else type(content).__name__
        raise UserError(f"{path}: expected 'key: value' lines, found {found}")
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
            raise UserError(f"{where}: unknown key '{shown(key)}'{nearest(key.replace('-', '_'), allowed)}")


def read_settings(path: str | Path, cls: type[Settings]) -> dict[str, Any]:
    """The settings of a ``{study, fixed: {...}, axes: {...}}`` file for the command ``cls``, as a dictionary.

    Keys are a field's documented names in any spelling. An axis (``seed: [0, 1]``) sets the list field that
    ``cls.axes`` names for it. Raises UserError, with the line, for another study, a key that is unknown or stands
    twice, or axes in a command that runs once.
    """
    content = read_yaml(path)
    check_keys(path, content, ["study", "fixed", "axes"])
    expected = cls.study or cls.command
    study = content.get("study", expected)
    if str(study).replace("_", "-") != expected:
        where, hint = f"{path}, line {content.lines['study']}", ""
        if not cls.study:
            hint = f"; if it is a grid: perturblab {cls.command} {path}"
        raise UserError(f"{where}: this is a file for '{shown(study)}', not {expected}{hint}")
    fixed, axes = section(path, content, "fixed"), section(path, content, "axes")
    if axes and not cls.axes:
        where = f"{path}, line {content.lines['axes']}"
        raise UserError(f"{where}: '{cls.command}' takes no axes; give each value under 'fixed'")
    check_keys(path, fixed, cls.names())
    check_keys(path, axes, list(cls.axes))
    values: dict[str, Any] = {}
    for group, field_of in ((fixed, cls.field_for), (axes, cls.axes.__getitem__)):
        for key, value in group.items():
            field = field_of(key)
            if field in values:
                raise UserError(f"{path}, line {group.lines[key]}: key '{key}' sets '{field}' a second time")
            values[field] = value
    return values
