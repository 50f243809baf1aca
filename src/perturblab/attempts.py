"""An attempt at a run: its work unless that is done, then its exports; what went wrong is noted in its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from perturblab.runs import Diverged, RunFolder
from perturblab.settings import Settings
from perturblab.signals import Interrupted
from perturblab.terminal import UserError


def perform(
    run: RunFolder,
    work: Callable[[RunFolder], None],
    export: Callable[[RunFolder], None],
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Do ``work`` unless it is done, then write its exports. Failures are recorded in the folder and raised.

    ``poll`` is called while another process, which may be dead, is waited for.
    """
    with run.claimed(poll):
        run.remove(run.path / "failure.json")  # it told of the attempt before
        with _noted(run), run.claim.guarding():
            if run.done:
                run.clear_checkpoints()  # left by a kill between the results and the clearing
            else:
                work(run)
            export(run)


@contextmanager
def _noted(run: RunFolder) -> Iterator[None]:
    """Note why an attempt failed; one that was told to stop did not fail."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt):
        raise
    except Diverged as error:
        run.fail("diverged", str(error))
        raise
    except BaseException as error:
        run.fail("failed", str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        raise


def note_kill(folder: Path, reason: str) -> None:
    """For whoever saw a run die, which could not say so itself: ``status`` tells why, ``retry`` finds it."""
    run = RunFolder(folder, Settings())
    if run.status == "interrupted":
        with contextlib.suppress(UserError), run.claimed():
            if not run.done:
                run.fail("killed", reason)
