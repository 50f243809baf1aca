"""The real command line in this process, with the work replaced: what would run is returned instead."""

import contextlib
import io
from importlib import import_module

import pytest

from perturblab import gridcommands, quickstart
from perturblab.cli import main
from perturblab.settings import Command, Settings
from perturblab.studies import STUDIES

COMMANDS: dict[str, Command] = {
    "quickstart": quickstart.COMMAND,
    **gridcommands.COMMANDS,
    **{
        f"{study} {word}": c
        for study, room in STUDIES.items()
        for word, c in import_module(room).COMMANDS.items()
    },
}
"""Every command by its words."""


def called(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line that does no work of its own, or fails before it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


def parsed(*words: str) -> Settings:
    """The settings that the words mean, as the command's function would get them."""
    caught: list[Settings] = []
    with pytest.MonkeyPatch.context() as patch:
        for command in COMMANDS.values():
            module, _, function = command.target.partition(":")
            patch.setattr(import_module(module), function, caught.append)
        code, _, errors = called(*words)
    assert code == 0, errors
    assert len(caught) == 1
    return caught[0]


def refusal(*words: str) -> str:
    """What a user who did something wrong sees: exit code 2 and exactly one line."""
    code, out, errors = called(*words)
    assert code == 2, (code, out, errors)
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert "Traceback" not in out
    return lines[0].removeprefix("error: ")
