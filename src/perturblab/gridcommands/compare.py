"""``perturblab compare``: in what two sets of finished runs differ, and what that did, paired over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from perturblab.files import check_writable, write_atomic
from perturblab.gridcommands import CompareGrid
from perturblab.gridcommands.pairing import IDLE, Pairing, pair
from perturblab.gridcommands.results import Results, results_of
from perturblab.gridcommands.sides import Finished, Side, measures, sides
from perturblab.report.tables import Table, as_markdown, csv_text, show
from perturblab.terminal import UserError, counted, say

ENDINGS = (".csv", ".md")
ELSEWHERE = "Equal settings do not give equal bits there: a part of each difference below may come from that."
NAMED = 4  # runs that a line names


def compare(s: CompareGrid) -> None:
    """Differences of settings, of machines and data, of results."""
    if s.output and Path(s.output).suffix not in ENDINGS:
        raise UserError(f"--output {s.output}: write a name that ends in {' or '.join(ENDINGS)}")
    if s.output:
        check_writable(Path(s.output))
    given = [(*s.given, *s.given_a), (*s.given, *s.given_b)]
    a, b = sides((s.a, s.b), given, s.runs_dir)
    found = pair(a, b)
    if not any((*found.differences.a, *found.differences.b)):
        raise UserError(f"{s.a} and {s.b} are the same runs")
    results = results_of(found, measures(type(a.runs[0].run.settings)))
    tables = [t for t in (settings_table(found), machine_table(found)) if t] + results.tables(s.all)
    for side, name in ((a, "A"), (b, "B")):
        say(f"{name}: {told(side)}")
    for table in tables:
        show(table)
    lines = [*_equal(found), *results.sentences(), *_left_out(found)]
    for line in ["", *lines]:
        say(line)
    if s.output:
        _write(Path(s.output), tables, lines, results)


def told(side: Side) -> str:
    """``"masked.yaml: 12 runs done; 1 running, 2 missing are left out"``."""
    others = ", ".join(f"{n} {state}" for state, n in side.others.items())
    return f"{side.word}: {counted(len(side.runs), 'run')} done" + (f"; left out: {others}" if others else "")


# ---- settings and machines ------------------------------------------------------------------------------------------


def settings_table(found: Pairing) -> Table | None:
    """The settings whose values are not the same on both sides."""
    here = found.differences
    rows = [
        (
            name,
            _listed(here.values(here.a, name)),
            _listed(here.values(here.b, name)),
            "no" if name in here.apart else "yes",
        )
        for name in here.between()
    ]
    if not rows:
        return None
    columns = ("setting", "A", "B", "equal in pairs")
    return Table("SETTINGS THAT DIFFER", columns, tuple(rows), text=(0, 1, 2, 3))


def _listed(values: Iterable[Any]) -> str:
    """The values of a setting; what has no effect in some of the runs says so."""
    return ", ".join("no effect" if value == IDLE else str(value) for value in values) or "-"


def machine_table(found: Pairing) -> Table | None:
    """What else decides the bits and is not the same on both sides."""
    a, b = found.differences.a, found.differences.b
    if not a or not b:  # all that one side has is also on the other
        return None
    about = [
        *dict.fromkeys(
            name for run in (*a, *b) for name in (*run.machine, *(f"data: {k}" for k in run.inputs))
        )
    ]
    rows = [(name, _listed(_facts(a, name)), _listed(_facts(b, name))) for name in about]
    rows = [row for row in rows if row[1] != row[2]]
    if not rows:
        return None
    machines = [row[0] for row in rows if not row[0].startswith("data: ")]
    notes = (ELSEWHERE,) if machines else ()
    return Table("MACHINES AND DATA THAT DIFFER", ("fact", "A", "B"), tuple(rows), notes, text=(0, 1, 2))


def _facts(runs: Iterable[Finished], name: str) -> list[Any]:
    """Of digests the first letters."""
    key = name.removeprefix("data: ")
    if key == name:
        return list(dict.fromkeys(str(run.machine.get(name, "-")) for run in runs))
    return list(dict.fromkeys(str(run.inputs.get(key, "-"))[:10] for run in runs))


def _equal(found: Pairing) -> list[str]:
    lines = []
    if not found.differences.between():
        lines.append("settings: equal on both sides")
    if machine_table(found) is None and found.differences.a and found.differences.b:
        machine = next(iter((*found.differences.a, *found.differences.b))).machine
        facts = ", ".join(f"{name} {value}" for name, value in machine.items())
        lines.append(f"machine and data: the same on both sides ({facts})")
    return lines


def _left_out(found: Pairing) -> list[str]:
    lines = []
    if found.other_images:
        lines.append(
            f"{found.other_images} of equal settings and seed are no pairs: their images are not the same"
        )
    if found.same:
        lines.append(f"{len(found.same)} on both sides are the same run, and no pairs: {_names(found.same)}")
    for name, runs in zip("AB", found.unpaired, strict=True):
        if runs:
            lines.append(f"{name}: {len(runs)} without a partner: {_names(runs)}")
    return lines


def _names(runs: Sequence[Finished]) -> str:
    names = [run.run.path.name for run in runs]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _write(path: Path, tables: Sequence[Table], lines: Sequence[str], results: Results) -> None:
    """Every number of every comparison as CSV, or what was shown as Markdown."""
    if path.suffix == ".csv":
        text = csv_text(*results.in_numbers())
    else:
        text = "\n\n".join([*map(as_markdown, tables), *lines]) + "\n"
    write_atomic(path, text.encode())
    say(str(path))
