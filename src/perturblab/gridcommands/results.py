"""The paired results of ``compare``: tables, sentences, and the same in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from perturblab.gridcommands.pairing import Comparison, Pairing
from perturblab.gridcommands.read import SHOWN
from perturblab.grids import Measure
from perturblab.report.findings import digits, finding, interval
from perturblab.report.statistics import Paired, holm, summarise, too_few
from perturblab.report.tables import Cell, Table
from perturblab.terminal import counted

SPOKEN = 5  # comparisons that get a sentence each; of more the table tells
COLUMNS = (
    "comparison", "number", "unit", "n", "mean_a", "mean_b", "mean_difference", "ci_low", "ci_high", "p_value", "p_holm", "seeds",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Comparisons with the numbers that all of their runs have, the headline first: that one is tested."""

    comparisons: Sequence[Comparison]
    numbers: Sequence[Measure]
    constant: int
    """numbers that are one and the same in all runs, and not among ``numbers``"""

    @cached_property
    def tested(self) -> dict[int, Paired]:
        """The headline of each comparison, by its place, that is tested: a single pair is not."""
        found = {i: one.of(self.numbers[0].key)[2] for i, one in enumerate(self.comparisons)}
        return {i: p for i, p in found.items() if p.n > 1}

    @cached_property
    def corrected(self) -> list[float | None]:
        """The p-value of the headline in each comparison, corrected for their number; None for a single pair."""
        corrected = holm([p.p_value for p in self.tested.values()])
        of = dict(zip(self.tested, corrected, strict=True))
        return [of.get(i) for i in range(len(self.comparisons))]

    def _others(self, place: int) -> list[float]:
        """The p-values of the tests beside that of a comparison."""
        return [p.p_value for i, p in self.tested.items() if i != place]

    def tables(self, every: bool) -> list[Table]:
        if not self.numbers:
            return []
        if len(self.comparisons) == 1:
            return [self._all_numbers()]
        return [self._one_number(measure, every) for measure in self.numbers[: None if every else 1]]

    def _all_numbers(self) -> Table:
        (one,) = self.comparisons
        rows = [(_named(m), *self._row(one, m, m is self.numbers[0])) for m in self.numbers]
        notes = [
            f"p: exact sign-flip test of {self.numbers[0].name}; the other numbers are shown, not tested."
        ]
        if self.constant:
            are = "is" if self.constant == 1 else "are"
            notes.append(f"{self.constant} more {are} the same number in all runs.")
        columns = ("number", "mean A", "mean B", "A - B", "95 % interval", "pairs", "p")
        title = "PAIRED RESULTS" + (f": {one.label}" if one.label else "")
        return Table(title, columns, tuple(rows), (*notes, *self._too_few()))

    def _one_number(self, measure: Measure, every: bool) -> Table:
        headline = measure is self.numbers[0]
        shown = list(zip(self.comparisons, self.corrected, strict=True))[: None if every else SHOWN]
        rows = []
        for one, corrected in shown:
            p = "-" if corrected is None or not headline else f"{corrected:.2g}"
            rows.append((one.label, *self._row(one, measure, headline), p))
        left = len(self.comparisons) - len(shown)
        notes = [f"and {left} more (--all shows them)"] if left else []
        if headline:
            notes += [
                f"p: exact sign-flip test; Holm: corrected for {counted(len(self.tested), 'test')}.",
                *self._too_few(),
            ]
            if len(self.numbers) > 1 and not every:
                more, them = len(self.numbers) - 1, "it" if len(self.numbers) == 2 else "them"
                notes.append(
                    f"{counted(more, 'more number')}: --all shows {them}, --output FILE.csv writes {them}."
                )
        else:
            notes.append("Shown, not tested.")
        columns = ("runs", "mean A", "mean B", "A - B", "95 % interval", "pairs", "p", "Holm")
        return Table(f"PAIRED RESULTS: {_named(measure)}", columns, tuple(rows), tuple(notes))

    def _row(self, one: Comparison, measure: Measure, tested: bool) -> tuple[str, ...]:
        a, b, p = one.of(measure.key, measure.times)
        p_value = f"{p.p_value:.2g}" if tested and p.n > 1 else "-"
        unit = measure.unit
        means = (digits(summarise(side).mean, unit) for side in (a, b))
        return (*means, digits(p.mean_difference, unit, "+"), interval(p, unit), str(p.n), p_value)

    def _too_few(self) -> list[str]:
        """What the numbers of pairs cannot show, however large it is."""
        # One comparison of each size: the least corrected p of n pairs is the same in all, as none has a smaller p.
        sizes = {p.n: place for place, p in self.tested.items()}
        return [told for n in sorted(sizes) if (told := too_few(n, self._others(sizes[n])))]

    def sentences(self) -> list[str]:
        """What may be concluded from each comparison."""
        if not self.comparisons:
            return ["no pairs: no two runs agree in seed, images and all other settings"]
        if not self.numbers or len(self.comparisons) > SPOKEN:
            return []
        return [self._sentence(place, one) for place, one in enumerate(self.comparisons)]

    def _sentence(self, place: int, one: Comparison) -> str:
        measure = self.numbers[0]
        p = one.of(measure.key, measure.times)[2]
        told = finding(p, difference(measure.unit), self._others(place))
        return f"{measure.name}, A - B{f', {one.label}' if one.label else ''}: {told}"

    def in_numbers(self) -> tuple[tuple[str, ...], list[list[Cell]]]:
        """A row per comparison and number, each digit."""
        rows = []
        for one, corrected in zip(self.comparisons, self.corrected, strict=True) if self.numbers else ():
            for measure in self.numbers:
                a, b, p = one.of(measure.key, measure.times)
                rows.append(
                    _in_numbers(one, measure, a, b, p, corrected if measure is self.numbers[0] else None)
                )
        return COLUMNS, rows


def _in_numbers(
    one: Comparison, m: Measure, a: list[float], b: list[float], p: Paired, corrected: float | None
) -> list[Cell]:
    tested = corrected is not None
    return [
        one.label, m.key, m.unit, p.n, summarise(a).mean, summarise(b).mean, p.mean_difference, p.ci_low, p.ci_high,
        p.p_value if tested else None, corrected, " ".join(map(str, p.seeds)),
    ]  # fmt: skip


def results_of(found: Pairing, known: Sequence[Measure]) -> Results:
    """``known``: the study's own measures, the headline first. A number that never varies tells nothing of a pair."""
    names = [name for one in found.comparisons for name in one.numbers()]
    shared = [n for n in dict.fromkeys(names) if names.count(n) == len(found.comparisons)]
    measures = [m for m in known if m.key in shared]
    measures += [
        Measure(name, name) for name in _by_interest(shared) if name not in {m.key for m in measures}
    ]
    varying = [m for i, m in enumerate(measures) if i == 0 or _varies(found.comparisons, m.key)]
    return Results(found.comparisons, varying, len(measures) - len(varying))


def _by_interest(names: Sequence[str]) -> list[str]:
    """Accuracy on test before all others, in their order."""
    return sorted(names, key=lambda name: not ("test" in name and "acc" in name))


def _varies(comparisons: Sequence[Comparison], key: str) -> bool:
    return len({run.numbers[key] for one in comparisons for pair in one.pairs for run in pair}) > 1


def difference(unit: str) -> str:
    """The unit of a difference of percentages."""
    return "points" if unit == "%" else unit


def _named(measure: Measure) -> str:
    return f"{measure.name} ({measure.unit})" if measure.unit else measure.name
