"""Which runs may be averaged: those of one arm and equal settings. A folder that mixes settings has several groups per arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from perturblab.terminal import UserError, warn


class Run(Protocol):
    """A run read from a file. ``arm`` is what people call it by, such as ``("vgg11", "masked")``; ``settings`` what
    else was set, None where not recorded or without effect; ``script`` there tells the original scripts' runs."""

    @property
    def path(self) -> Path: ...
    @property
    def arm(self) -> tuple[str, ...]: ...
    @property
    def seed(self) -> int: ...
    @property
    def settings(self) -> dict[str, Any]: ...


R = TypeVar("R", bound=Run)


@dataclass(frozen=True)
class Alike(Generic[R]):
    """Runs of equal arm and settings. ``variant`` says what sets them apart from the arm's others, often nothing;
    ``order`` counts them among these."""

    variant: str
    order: int
    runs: tuple[R, ...]


def alike(runs: Iterable[R], keys: Sequence[str], across: bool = False) -> list[Alike[R]]:
    """Runs of equal arm and settings, in the order of ``runs``; ``keys`` are the settings that may tell them apart.

    ``across``: the variant tells them from other arms too, where all stand in one picture to be compared.
    """
    sets: list[list[R]] = []
    for run in runs:
        home = next((s for s in sets if s[0].arm == run.arm and s[0].settings == run.settings), None)
        if home is None:
            sets.append([run])
        else:
            home.append(run)
    made = []
    for own in sets:
        siblings = [s for s in sets if s[0].arm == own[0].arm]
        variant = _variant(own[0].settings, [s[0].settings for s in (sets if across else siblings)], keys)
        made.append(Alike(variant, siblings.index(own), tuple(own)))
    return made


def differing(settings: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    """Which of ``keys`` are not equal in all of ``settings``. The suffix counts only if nothing else explains it."""
    apart = [k for k in keys if any(s[k] != settings[0][k] for s in settings)]
    return [k for k in apart if k != "suffix"] or apart


def _variant(own: dict[str, Any], siblings: Sequence[dict[str, Any]], keys: Sequence[str]) -> str:
    """What must be said to tell ``own`` from its siblings; runs of the original scripts are told by that alone."""
    same = [s for s in siblings if s["script"] == own["script"]]
    parts = ["original script"] if len(same) < len(siblings) and own["script"] == "original" else []
    parts += [f"{k}={own[k]}" for k in differing(same, keys) if own[k] is not None]
    return ", ".join(parts)


def shown(setting: Any) -> str:
    return "default" if setting is None else str(setting)


def refuse_twins(found: Iterable[Alike[R]]) -> None:
    """UserError where one run has two files (``half-loss`` and ``half_loss``): it would count as two."""
    for one in found:
        seen: dict[int, Path] = {}
        for run in one.runs:
            if run.seed in seen:
                raise UserError(f"{run.path} and {seen[run.seed].name} are the same run; remove one of them")
            seen[run.seed] = run.path


def warn_of_mixtures(runs: Sequence[R], keys: Sequence[str]) -> None:
    """One line per arm whose runs differ in settings."""
    for arm in dict.fromkeys(run.arm for run in runs):
        settings = [run.settings for run in runs if run.arm == arm]
        apart = differing(settings, keys)
        if "script" in apart:  # what the original scripts do not record is no further difference
            apart = [k for k in apart if all(s[k] is not None for s in settings)]
        if apart:
            values = "; ".join(
                f"{k}: {', '.join(dict.fromkeys(shown(s[k]) for s in settings))}" for k in apart
            )
            warn(f"{' '.join(arm)}: the runs differ in {values}; they are kept apart")
