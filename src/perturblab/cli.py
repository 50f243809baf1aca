"""The command line: every flag is a field of a settings class. Imports no torch until a run starts.

Both spellings of a flag work (``--batch_size``, ``--batch-size``), booleans with and without a value, lists as
``--seeds 0 1 2``, ``--seeds 0,1,2`` or repeated. Command line > ``--config FILE.yaml`` > default.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from perturblab import __version__, gridcommands, quickstart
from perturblab.claims import Busy
from perturblab.settings import Command, choices_of, documented_flag, flags_of, is_argument, nearest
from perturblab.signals import INTERRUPTED, Interrupted, busy_code, stop_at_once
from perturblab.studies import STUDIES
from perturblab.sweep import SomeFailed
from perturblab.terminal import DISK_FULL, UserError, to_stderr
from perturblab.yamlfile import read_settings

USAGE_ERROR = 2
LONGEST = 60  # letters of choices that a line of help has room for; more stand in the text beside them


def normalise(token: str) -> str:
    """``--batch_size`` and ``--batch-size`` are one flag."""
    return token.replace("_", "-") if token.startswith("--") else token


CONTEXT = {
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
}


class Studies(click.Group):
    """The studies by name, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*sorted(self.commands), *STUDIES]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in STUDIES:
            return study_group(name)
        return super().get_command(ctx, name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        return resolve(self, super().resolve_command, ctx, args)


class Commands(click.Group):
    """The commands of one study."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        return resolve(self, super().resolve_command, ctx, args)


def resolve(group: click.Group, do: Callable[..., Any], ctx: click.Context, args: list[str]) -> Any:
    if not args[0].startswith("-") and group.get_command(ctx, args[0]) is None:
        raise UserError(f"no command '{args[0]}'{nearest(args[0], group.list_commands(ctx))}")
    return do(ctx, args)


def study_group(name: str) -> click.Group:
    module = import_module(STUDIES[name])
    paragraphs = (module.__doc__ or "").strip().replace("``", "").split("\n\n")
    # \b keeps the lines of an indented block as they are; click fits the others to the window.
    text = "\n\n".join(f"\b\n{p}" if p.startswith(" ") else p for p in paragraphs)
    question = paragraphs[0].partition(": ")[2]
    group = Commands(name, help=text, short_help=question[:1].upper() + question[1:])
    for word, command in module.COMMANDS.items():
        group.add_command(click_command(word, command))
    return group


def click_command(name: str, command: Command) -> click.Command:
    """The click command of a settings class: parses words, leaves every check to the settings."""
    cls = command.settings

    def call(config: str | None, **given: Any) -> None:
        given = {field: value for field, value in given.items() if value not in (None, ())}
        if command.reader:
            values = function_of(command.reader)(config, given)
        else:
            values = read_settings(config, cls) if config else {}
        settings = cls.parse({**values, **given})  # before anything heavy is imported
        function_of(command.target)(settings)

    fields = sorted(cls.model_fields.items(), key=lambda item: not item[1].is_required())
    params: list[click.Parameter] = [
        click.Argument([field], metavar=field.upper(), required=False)
        if is_argument(info)
        else option(field, info)
        for field, info in fields
    ]
    params.append(config_option(command))
    help = (cls.__doc__ or "").strip().replace("``", "")
    first = help.partition("\n\n")[0]
    return click.Command(
        name, callback=call, params=params, help=help, short_help=first, context_settings=CONTEXT
    )


def function_of(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def config_option(command: Command) -> click.Option:
    if command.reader:
        return click.Option(
            ["--config", "-c"], metavar="FILE", help="The study's own config file (YAML or JSON)."
        )
    of_study = "YAML file: study, fixed settings, axes."
    text = of_study if command.settings.study else "YAML file with values of these flags, under 'fixed'."
    return click.Option(["--config"], metavar="FILE", help=text)


def option(field: str, info: FieldInfo) -> click.Option:
    names = flags_of(info) or [f"--{field}"]
    declared = [normalise(n) for n in names]
    shown = documented_flag(field, info)
    return DocumentedOption(
        [field, *dict.fromkeys(declared)],
        shown=shown,
        multiple=is_list(info),
        type=str,
        metavar=metavar(info),
        help=help_line(info),
        **({"is_flag": False, "flag_value": "true"} if info.annotation is bool else {}),
    )


class DocumentedOption(click.Option):
    """Shows the spelling that the document uses; click itself knows the normalised one."""

    def __init__(self, *args: Any, shown: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown = shown

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0].replace(normalise(self.shown), self.shown), record[1])


def is_list(info: FieldInfo) -> bool:
    return get_origin(info.annotation) in (tuple, list)


def metavar(info: FieldInfo) -> str:
    inner = get_args(info.annotation)[0] if is_list(info) else info.annotation
    words = choices_of(info.annotation)
    if words:
        shown = "|".join(words)
        return (shown if len(shown) <= LONGEST else "NAME") + (" ..." if is_list(info) else "")
    if inner is bool:
        return "[True|False]"
    return {int: "N", float: "X"}.get(inner, "TEXT") + (" ..." if is_list(info) else "")  # type: ignore[arg-type]


def help_line(info: FieldInfo) -> str:
    text = info.description or ""
    if info.is_required():
        return f"{text}  [required]"
    default = info.default
    if default in ((), "", None):
        return text
    return f"{text}  [default: {' '.join(map(str, default)) if is_list(info) else default}]"


# ---- words before click sees them ---------------------------------------------------------------------------------


def spread_lists(words: list[str], lists: set[str]) -> list[str]:
    """``--seeds 0 1 2`` and ``--seeds 0,1,2`` become ``--seeds 0 --seeds 1 --seeds 2``."""
    result: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if normalise(name) not in lists:
            result.append(word)
            continue
        values = value.split(",")
        while rest and not _is_flag(rest[0]):
            values += rest.pop(0).split(",")
        given = [v.strip() for v in values if v.strip()]
        if not given:
            raise UserError(f"{name} needs one or more values")
        result += [w for v in given for w in (name, v)]
    return result


def _is_flag(word: str) -> bool:
    if not word.startswith("-"):
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False  # a negative number


def list_flags(words: list[str]) -> set[str]:
    """The flags of the named command that take several values."""
    if words[:1] == ["quickstart"]:
        command = quickstart.COMMAND
    elif len(words) > 1 and words[0] in STUDIES:
        command = import_module(STUDIES[words[0]]).COMMANDS.get(words[1])
    else:
        return set()
    if command is None:
        return set()
    fields = command.settings.model_fields.items()
    return {normalise(n) for f, info in fields if is_list(info) for n in (flags_of(info) or [f"--{f}"])}


@click.group(cls=Studies, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="perturblab")
def perturblab() -> None:
    """What does a perturbation do to a small image classifier?

    Each study is a command with sub-commands; `perturblab STUDY COMMAND --help` shows its flags. `perturblab
    quickstart` trains three small networks per mode on bundled digits in under a minute. `perturblab plan STUDY`
    shows a study's whole grid of runs, `perturblab run STUDY` does what is missing of it.
    """


perturblab.add_command(click_command("quickstart", quickstart.COMMAND))
for _word, _command in gridcommands.COMMANDS.items():
    perturblab.add_command(click_command(_word, _command))


def main(words: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 runs of a sweep failed, 2 bad input, 69 held elsewhere, 75 requeue, 130 interrupted."""
    words = sys.argv[1:] if words is None else words
    try:
        with stop_at_once():
            code = perturblab(
                spread_lists(words, list_flags(words)), standalone_mode=False, prog_name="perturblab"
            )
    except Busy as error:
        code = complain(str(error), code=busy_code())
    except UserError as error:
        code = complain(str(error))
    except SomeFailed:
        code = 1
    except click.NoSuchOption as error:
        close = list(error.possibilities or [])[:1]
        hint = f"; did you mean '{close[0]}'?" if close else "; see --help"
        code = complain(f"no flag '{error.option_name}'{hint}")
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        code = 0
    except click.ClickException as error:
        code = complain(error.format_message())
    except Interrupted as error:
        code = error.exit_code
        complain(
            f"stopped on {error}: the state is saved; run the same command again to go on", word="stopped"
        )
    except (click.Abort, KeyboardInterrupt):
        code = complain("interrupted; run the same command again to go on", word="stopped", code=INTERRUPTED)
    except BrokenPipeError:
        code = 0
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            code = complain(f"the name {str(error.filename)[:40]}... is too long for this file system")
            sys.exit(code)
        if error.errno not in DISK_FULL:
            raise
        code = complain(f"cannot write {error.filename or 'the output'}: {error.strerror}; free some space")
    sys.exit(code if isinstance(code, int) else 0)


def complain(message: str, word: str = "error", code: int = USAGE_ERROR) -> int:
    to_stderr(f"{word}: {' '.join(message.split())}")
    return code
