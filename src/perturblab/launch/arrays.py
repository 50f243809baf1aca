"""Array jobs: one script for Grid Engine, Slurm and plain bash, and a text file with one line of parameters per run.

    scripts/jobs_vgg11.txt           vgg11 0
                                     vgg11 1
    scripts/job_manager_vgg11.sh     headers, the user's environment, the command with "${1}" "${2}"

Task N runs line N. A study adds ``JobFlags`` to the settings of its grid::

    class Jobs(JobFlags, Training):
        command = "jobs"
        ...
    def jobs(s: Jobs) -> None:
        scripts = []
        for arch in s.architectures:
            cells = [Cell(train.name, train) for train in s.grid() if train.arch == arch]
            scripts.append(write_array(cells, s, arch, ("arch", "seed"), job_name=f"{arch}_cifar100"))
        hand_over(scripts, s)
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import field_validator, model_validator

from perturblab.files import write_atomic, writing_to
from perturblab.launch import Cell, jobscript
from perturblab.settings import Settings, as_words, flag
from perturblab.terminal import UserError, counted, say, warn

PREFIX = "python -m perturblab"
WORD = r"[^\s-]\S*"  # what can stand between spaces, and is no flag
FEW = 4  # parameters that a person can still read in a line
DIGITS = 6  # of the digest in a name
STARTS_WITH = {"sge": "qsub", "slurm": "sbatch", "shell": "bash"}


class Resources(Settings):
    """What a run asks of a scheduler, and how the scripts are written."""

    mem: str = flag("16G", "Memory per run, with its unit: K, M, G or T.", where=True)
    time: str = flag("24:00:00", "Time limit per run as hours:minutes:seconds.", where=True)
    gpu: int = flag(1, "1 asks for a GPU per run, 0 for none.", where=True, ge=0, le=1)
    environment: str = flag(
        "", "File with shell lines that prepare a run (module load, conda activate).", where=True
    )
    prefix: str = flag(PREFIX, "How scripts call the program; arrays: this python by its path.", where=True)
    output_dir: str = flag("scripts", "Where the scripts are written.", where=True)

    @field_validator("mem")
    @classmethod
    def _with_a_unit(cls, value: str) -> str:
        """A bare number would be bytes for Grid Engine and megabytes for Slurm."""
        if not re.fullmatch(r"[1-9]\d*[KMGT]", value):
            raise ValueError("it must be a whole number and K, M, G or T, such as 16G")
        return value

    @field_validator("time")
    @classmethod
    def _hours_minutes_seconds(cls, value: str) -> str:
        """``30:00`` would be half an hour for Slurm, and Grid Engine refuses days."""
        if not re.fullmatch(r"\d+:[0-5]\d:[0-5]\d", value):
            raise ValueError("it must be hours:minutes:seconds, such as 24:00:00")
        return value

    @field_validator("prefix", "output_dir")
    @classmethod
    def _one_line(cls, value: str) -> str:
        """It stands in comments too, and Grid Engine takes any line that begins with ``#$`` for a header."""
        if not value or not value.isprintable():
            raise ValueError("it must be one line of text")
        return value


class JobFlags(Resources):
    """The flags of a command that writes array jobs."""

    scheduler: Literal["sge", "slurm", "shell"] = flag(
        "sge",
        "Who will run the scripts; they are the same, what is printed or submitted differs.",
        where=True,
    )
    generate_only: bool = flag(False, "Submit nothing, which is also the default.", where=True)
    submit: bool = flag(False, "Submit the scripts with qsub or sbatch.", where=True)

    @model_validator(mode="after")
    def _submitted_or_not(self) -> Self:
        if self.submit and self.generate_only:
            raise ValueError("--generate_only submits nothing: leave it out, or --submit")
        if self.submit and self.scheduler == "shell":
            raise ValueError("--submit needs --scheduler sge or slurm; start a script with bash yourself")
        return self


def write_array(
    cells: Sequence[Cell],
    jobs: Resources,
    name: str,
    parameters: Sequence[str] | None = None,
    job_name: str = "",
    at_once: int = 0,
) -> Path:
    """Write ``jobs_{name}.txt`` and the executable ``job_manager_{name}.sh`` that runs its lines; returns the script.

    A line holds the values of the fields ``parameters``, in that order; all other settings stand in the script, so
    the cells must agree in them (ValueError). Without ``parameters`` they are the fields in which the cells differ,
    if these are few and each value is a word; else a line holds all arguments of a run. Then ``name`` gets a digest
    of what the array does, since a task reads its line when it starts: no other array may have taken the file by then.
    ``job_name`` is what the scheduler shows (default: ``name``), ``at_once`` how many tasks run together (0: any).
    Paths are relative to the current folder, from which the script is to be submitted. ``logs/`` is made there: a job
    whose log Slurm cannot open fails without a word. UserError when something cannot be read or written.
    """
    documented, job_name = parameters is not None, job_name or name
    _check(cells, parameters or (), job_name, documented)
    parameters = differing(cells) if parameters is None else parameters
    settings, folder = cells[0].settings, Path(jobs.output_dir)
    run = jobscript.run(calls(jobs), settings, parameters)
    each = "".join(f"{_line(cell, parameters)}\n" for cell in cells)
    if not documented:
        name = f"{name}-{hashlib.sha256((run + each).encode()).hexdigest()[:DIGITS]}"
    lines, script = folder / f"jobs_{name}.txt", folder / f"job_manager_{name}.sh"
    text = "\n".join([
        "#!/bin/bash",
        *jobscript.about(f"{settings.study} {settings.command}", len(cells), script, lines),
        *jobscript.headers(job_name, len(cells), jobs.mem, jobs.time, jobs.gpu, at_once),
        "",
        jobscript.environment(jobs.environment),
        "set -euo pipefail",
        f"jobs={shlex.quote(str(lines))}",
        run + jobscript.BODY,
    ])  # fmt: skip
    with writing_to(jobscript.LOGS):
        jobscript.LOGS.mkdir(exist_ok=True)
    _write_lines(lines, each.encode())
    write_atomic(script, text.encode())
    os.chmod(script, 0o755)
    return script


def hand_over(scripts: Sequence[Path], jobs: JobFlags) -> None:
    """Submit the scripts if asked to, else print the command that does. UserError when the scheduler is not here."""
    program = STARTS_WITH[jobs.scheduler]
    if not jobs.submit:
        say(f"wrote {counted(len(scripts), 'script')}; start {'it' if len(scripts) == 1 else 'them'} with:")
        for script in scripts:
            say(f"  {program} {shlex.quote(str(script))}")
        return
    if shutil.which(program) is None:
        raise UserError(f"no {program} on this machine: the scripts are written; submit them where it is")
    for script in scripts:
        ended = subprocess.run([program, str(script)])  # its own words reach the user
        if ended.returncode:
            raise UserError(f"{program} refused {script} (exit code {ended.returncode})")


def calls(jobs: Resources) -> str:
    """How a task calls the program. Unless the user says more, by the path of the Python that runs now.

    Grid Engine starts a task in a bare shell, in which ``python`` is another one or none.
    """
    said = jobs.environment or jobs.prefix != PREFIX
    return jobs.prefix if said else f"{shlex.quote(sys.executable)} -m perturblab"


def differing(cells: Sequence[Cell]) -> tuple[str, ...]:
    """The fields whose values make a line of parameters; none where the cells differ in too much for one."""
    values = [cell.settings.model_dump(mode="json") for cell in cells]
    names = tuple(n for n in values[0] if any(one[n] != values[0][n] for one in values)) or ("seed",)
    if len(names) > FEW or not {*names} <= {*values[0]}:
        return ()
    spelt = [" ".join(as_words(one[n])) for one in values for n in names if one[n] is not None]
    whole = len(spelt) == len(names) * len(values) and all(re.fullmatch(WORD, word) for word in spelt)
    return names if whole else ()


def _check(cells: Sequence[Cell], parameters: Sequence[str], job_name: str, given: bool) -> None:
    """ValueError for what a script cannot express."""
    if not cells:
        raise ValueError("an array needs one or more runs")
    if given and len({tuple(cell.settings.arguments(omit=parameters)) for cell in cells}) > 1:
        raise ValueError(f"the runs differ in more than {', '.join(parameters)}")
    if not re.fullmatch(r"[A-Za-z][\w.-]*", job_name):  # what Grid Engine allows, a little less
        raise ValueError(f"'{job_name}' cannot be the name of a job")


def _line(cell: Cell, parameters: Sequence[str]) -> str:
    """``vgg11 0``, or all arguments; ValueError for a value that is not one word of its own."""
    if not parameters:
        return shlex.join(cell.settings.arguments())
    values = cell.settings.model_dump(mode="json", include=set(parameters))
    words = [" ".join(as_words(values[name])) for name in parameters]
    for word in words:
        if not re.fullmatch(WORD, word):
            raise ValueError(f"'{word}' cannot stand in a line of parameters")
    return " ".join(words)


def _write_lines(path: Path, lines: bytes) -> None:
    """A file that is the same stays; one that is not is replaced, and that is told."""
    with writing_to(path):
        before = path.read_bytes() if path.is_file() else None
    if before == lines:
        return
    write_atomic(path, lines)
    if before is not None:
        warn(f"{path} held other lines: an array that still waits would run the new ones")
