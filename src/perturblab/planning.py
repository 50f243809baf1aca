"""What names a run's folder before it runs, for grids that are only looked at. Imports no torch unless it must."""

from __future__ import annotations

from typing import TypeVar

from perturblab.flags import Machine

M = TypeVar("M", bound=Machine)


def decided(settings: M) -> M:
    """``settings``, or, where the machine decides the precision, what it decides: only then is torch needed."""
    if settings.precision != "auto":
        return settings
    from perturblab.experiment import resolved

    return resolved(settings)
