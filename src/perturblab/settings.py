"""Settings: one flat, frozen, validated object per command. What ran is what is recorded.

A command's settings class is the only place where a flag, its default, its range and its help are written: the
command line (``cli.py``), the YAML reader below and the run's identity are all derived from it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from perturblab.terminal import UserError


def flag(
    default: Any, help: str, *names: str, where: bool = False, argument: bool = False, **limits: Any
) -> Any:
    """A field of a settings class, and with it a flag of the command line.

    ``names``: documented spellings beyond ``--field_name``. ``where=True``: says where or how fast a run happens,
    not what it computes (folders, device, progress), and is left out of the run's id. ``argument=True``: a word of
    its own on the command line instead of a flag (``convert FILE``). ``limits``: pydantic's ``gt``, ``ge``, ``lt``,
    ``le``. ``default=...`` makes the flag required.
    """
    extra: dict[str, Any] = {"flags": list(names), "where": where, "argument": argument}
    return Field(default, description=help, json_schema_extra=extra, validate_default=True, **limits)


def _as_number(value: Any) -> Any:
    if isinstance(value, str) and re.match(r"\s*0+-", value):
        raise ValueError("it must be a number; several are given as 0 1 2")
    return str(value) if isinstance(value, bool) else value


class Settings(BaseModel):
    """Base of all settings: frozen, unknown names refused, with a canonical form and an identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    study: ClassVar[str] = ""
    command: ClassVar[str] = ""
    axes: ClassVar[Mapping[str, str]] = {}  # axis of a YAML grid -> the list field that holds its values
    version: ClassVar[int] = 1  # raise it when the same settings would compute something else

    @field_validator("*", mode="before")
    @classmethod
    def _only_numbers_for_a_number(cls, value: Any, about: ValidationInfo) -> Any:
        """pydantic takes True for 1 and ``0-3`` for -3; ``seed: true`` in a file and ``--seeds 0-3`` are slips."""
        kind = cls.model_fields[about.field_name or ""].annotation
        if not {kind, *get_args(kind)} & {int, float}:
            return value
        if isinstance(value, list | tuple):
            return [_as_number(one) for one in value]
        return _as_number(value)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Validate ``values``; UserError names the flag, the allowed values and the nearest one."""
        values = {cls.field_for(name): value for name, value in values.items()}
        try:
            return cls(**values)
        except ValidationError as error:
            raise UserError(explain(cls, error)) from None

    @classmethod
    def field_for(cls, name: str) -> str:
        """The field that a name in any documented spelling means; UserError with the nearest name if none."""
        wanted = name.lstrip("-").replace("-", "_")
        for field, info in cls.model_fields.items():
            if wanted == field or wanted in (n.lstrip("-").replace("-", "_") for n in flags_of(info)):
                return field
        raise UserError(f"unknown setting '{name}'{nearest(wanted, cls.model_fields)}")

    def canonical(self) -> Self:
        """The same run with every field that has no effect reset to its default. Studies override this."""
        return self

    def identity(self) -> dict[str, Any]:
        """What makes this run different from others: canonical fields that differ from their defaults."""
        run = self.canonical()
        return run.model_dump(mode="json", include=run.not_default() - _wheres(type(run)))

    @property
    def id(self) -> str:
        """Ten hex digits that are equal exactly when study, command, version and identity are."""
        key = [self.study, self.command, self.version, self.identity()]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]

    @classmethod
    def names(cls) -> list[str]:
        """Every documented name of every field, with ``_``, as a file may spell it."""
        aliases = [n.lstrip("-").replace("-", "_") for i in cls.model_fields.values() for n in flags_of(i)]
        return list(dict.fromkeys([*cls.model_fields, *aliases]))

    @classmethod
    def default_of(cls, name: str) -> Any:
        return _defaults(cls)[name]

    def not_default(self) -> set[str]:
        values = self.__dict__
        return {name for name, default in _defaults(type(self)).items() if values[name] != default}

    def arguments(self, omit: Iterable[str] = ()) -> list[str]:
        """The command line, without the program, that gives these settings again: only what is not default.

        ``omit``: fields to leave out, for a line that several runs share.
        """
        words = [word for word in (self.study, self.command) if word]
        for name, value in self.model_dump(mode="json", include=self.not_default() - set(omit)).items():
            info = type(self).model_fields[name]
            spelt = documented_flag(name, info)
            if is_argument(info):
                words.append(value)
                continue
            is_flag_like = isinstance(value, str) and value.startswith("-")
            words += [f"{spelt}={value}"] if is_flag_like else [spelt, *as_words(value)]
        return words


@cache  # a grid asks for the id of thousands of runs
def _defaults(cls: type[Settings]) -> dict[str, Any]:
    """Of a required field something that no value equals."""
    return {
        name: object() if info.is_required() else info.get_default(call_default_factory=True)
        for name, info in cls.model_fields.items()
    }


@cache
def _wheres(cls: type[Settings]) -> frozenset[str]:
    return frozenset(name for name, info in cls.model_fields.items() if is_where(info))


def as_words(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


def flags_of(info: FieldInfo) -> list[str]:
    extra = info.json_schema_extra
    names = extra.get("flags", []) if isinstance(extra, dict) else []
    return [str(n) for n in names] if isinstance(names, list) else []


def is_where(info: FieldInfo) -> bool:
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("where"))


def is_argument(info: FieldInfo) -> bool:
    return isinstance(info.json_schema_extra, dict) and bool(info.json_schema_extra.get("argument"))


def documented_flag(name: str, info: FieldInfo) -> str:
    """The spelling that the study's document uses: the first of the field's names, or ``--field_name``."""
    if is_argument(info):
        return name.upper()
    long = [n for n in flags_of(info) if n.startswith("--")]
    return long[0] if long else f"--{name}"


def choices_of(annotation: Any) -> list[str]:
    """The values of a ``Literal``, also inside a tuple, a list or an optional; empty for other types."""
    inner = get_args(annotation)
    return [word for a in inner for word in ([a] if isinstance(a, str) else choices_of(a))]


def nearest(word: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or the names (the first dozen of many) when nothing is close."""
    names = sorted(names)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; choose from {', '.join(names[:12])}" + (f" and {len(names) - 12} more" if names[12:] else "")


def explain(cls: type[Settings], error: ValidationError) -> str:
    """The first problem of a validation error as one line in the user's words."""
    problem = error.errors(include_url=False)[0]
    name = str(problem["loc"][0]) if problem["loc"] else ""
    if name not in cls.model_fields:
        return str(problem["msg"]).removeprefix("Value error, ")
    info = cls.model_fields[name]
    given, label = shown(problem.get("input")), documented_flag(name, info)
    if problem["type"] == "missing":
        choices = choices_of(info.annotation)
        return f"{label} is required" + (f": one of {', '.join(choices)}" if choices else "")
    if problem["type"] == "literal_error":
        choices = choices_of(info.annotation)
        hint = difflib.get_close_matches(given, choices, n=1, cutoff=0.4)
        meant = f"; did you mean '{hint[0]}'?" if hint else ""
        return f"{label} '{given}' is not one of {', '.join(choices)}{meant}"
    if problem["type"] == "value_error":
        return f"{label} {given} is refused: {str(problem['msg']).removeprefix('Value error, ')}"
    wanted = "a list" if problem["type"] == "tuple_type" else in_words(info)
    return f"{label} {given} is refused: it must be {wanted}"


KINDS = {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}
LIMITS = {"ge": "{} or more", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


def in_words(info: FieldInfo) -> str:
    """What a field takes: ``"a finite number, more than 0 and at most 8"``."""
    args = [info.annotation, *get_args(info.annotation)]
    kind = next((KINDS[a] for a in args if a in KINDS), "a value of another kind")
    limits = [
        text.format(getattr(m, name))
        for m in info.metadata
        for name, text in LIMITS.items()
        if hasattr(m, name)
    ]
    return ", ".join([kind, *([" and ".join(limits)] if limits else [])])


def shown(value: Any) -> str:
    """A given value in a message, cut where it is long."""
    text = value if isinstance(value, str) and value else _short.repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


_short = reprlib.Repr()
_short.maxlevel = 2


@dataclass(frozen=True)
class Command:
    """A command of a study: its settings class and ``"module:function"``, imported only when it runs.

    ``reader`` likewise names ``(config file or None, values of the command line) -> values from files``, for a study
    whose document has a config file of its own kind.
    """

    settings: type[Settings]
    target: str
    reader: str = ""
