"""What was measured: kept as JSON with every raw value, and looked up as medians and ratios.

Ratios are taken within a round, where both engines met the same moments of the machine, and the
median of those is the ratio.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
BASELINE = "vzarr"
"""The engine that the others are compared with."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: an engine at a case of a workload, in one round."""

    workload: str
    case: str
    engine: str
    round: int
    figures: dict[str, tuple[float, str]]
    durable: bool | None
    seconds: float
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure over all rounds. ``spread`` is the distance of the extremes, of the median.

    ``ratio`` is how it compares with the baseline: more than 1 is better, whatever the unit; None
    where the baseline has no such figure.
    """

    median: float
    unit: str
    spread: float
    ratio: float | None


@dataclass(slots=True)
class Results:
    """All runs, and what they ran on."""

    size: str
    date: str
    machine: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    runs: list[Measured] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    # ── kept ─────────────────────────────────────────────────────────────────────────────────────

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what ``save`` wrote. Raises ``ValueError`` for anything else."""
        document = json.loads(path.read_text())
        if document.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a file of results in format {FORMAT}")
        return cls(**document | {"runs": [_measured(run) for run in document["runs"]]})

    # ── looked up ────────────────────────────────────────────────────────────────────────────────

    def cases(self, workload: str) -> list[str]:
        return _unique(run.case for run in self.runs if run.workload == workload)

    def engines(self, workload: str, case: str) -> list[str]:
        """Give the engines of a case, in the order in which they were first seen."""
        return _unique(run.engine for run in self._runs(workload, case))

    def figures(self, workload: str, case: str) -> list[str]:
        """Give the names of all figures of a case, as its engines have them."""
        return _unique(name for run in self._runs(workload, case) for name in run.figures)

    def rounds(self, workload: str, case: str) -> int:
        return 1 + max(run.round for run in self._runs(workload, case))

    def durable(self, workload: str, case: str, engine: str) -> bool | None:
        return next(run.durable for run in self._runs(workload, case, engine))

    def failures(self, workload: str, case: str, engine: str) -> list[str]:
        return [run.failed for run in self._runs(workload, case, engine) if run.failed]

    def summary(self, workload: str, case: str, engine: str, figure: str) -> Summary | None:
        """Sum up a figure of an engine; None if it has none."""
        values = self._values(workload, case, engine, figure)
        if not values:
            return None
        unit = next(r.figures[figure][1] for r in self._runs(workload, case) if figure in r.figures)
        median = statistics.median(values.values())
        extent = max(values.values()) - min(values.values())
        return Summary(
            median=median,
            unit=unit,
            spread=extent / median if median else 0.0,
            ratio=self.ratio(workload, case, (engine, figure), (BASELINE, figure)),
        )

    def ratio(
        self, workload: str, case: str, ours: tuple[str, str], theirs: tuple[str, str]
    ) -> float | None:
        """Compare two figures, each an engine and its name: how many times ours is as good.

        The median of the rounds that have both, each compared by itself; None without any.
        """
        mine, others = (self._values(workload, case, *each) for each in (ours, theirs))
        pairs = [(mine[number], others[number]) for number in mine if number in others]
        units = {run.figures[ours[1]][1] for run in self._runs(workload, case, ours[0], ours[1])}
        more = all(is_more_better(unit) for unit in units)
        ratios = [(a / b if more else b / a) for a, b in pairs if a and b]
        return statistics.median(ratios) if ratios else None

    def _runs(
        self, workload: str, case: str, engine: str | None = None, figure: str | None = None
    ) -> Iterator[Measured]:
        for run in self.runs:
            asked = (run.workload, run.case) == (workload, case) and engine in (None, run.engine)
            if asked and (figure is None or figure in run.figures):
                yield run

    def _values(self, workload: str, case: str, engine: str, figure: str) -> dict[int, float]:
        """Give a figure by round."""
        runs = self._runs(workload, case, engine, figure)
        return {run.round: run.figures[figure][0] for run in runs}


def is_more_better(unit: str) -> bool:
    return unit.endswith("/s")


def number(value: float) -> str:
    """Write a number with two or three digits that matter."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _measured(run: dict[str, Any]) -> Measured:
    figures = {name: (value, unit) for name, (value, unit) in run["figures"].items()}
    return Measured(**run | {"figures": figures})


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
