"""The figures to reach, and what was measured of them: met, missed, or not measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bench.results import BASELINE, Results

FUSED = "zarr MemoryStore, fused"
COPY = "cp -r + sync"
MEGABYTE = 1e6 / (1 << 20)
"""In MiB, in which sizes are kept."""

Verdict = Literal["met", "missed", "not measured"]


@dataclass(frozen=True, slots=True)
class Target:
    """One bound on a figure of vzarr, or on how it compares with another engine's.

    ``least`` and ``most`` bound the figure itself, in its unit. With ``against``, an engine and its
    figure, they bound the ratio: ``least`` how many times as good, ``most`` how many times as long.
    It is about the first case of the workload for which it was measured, or about ``every_case``.
    """

    what: str
    workload: str
    figure: str
    least: float | None = None
    most: float | None = None
    against: tuple[str, str] | None = None
    engine: str = BASELINE
    unit: str = ""
    every_case: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target, and what was measured of it at a case."""

    what: str
    case: str
    goal: str
    measured: str
    verdict: Verdict


def _bulk(
    figure: str, other: str, least: float, *, theirs: str = "", engine: str = BASELINE
) -> Target:
    what = {"write": "bulk write, durable", "warm read": "bulk read, warm"}[figure]
    against = (other, theirs or figure)
    return Target(what, "bulk", figure, least=least, against=against, engine=engine)


TARGETS = (
    _bulk("write", "raw file", 0.8),
    _bulk("write", "Icechunk", 1.5),
    _bulk("write", "zarr LocalStore", 1.5),
    _bulk("write", "h5py", 1.0, theirs="write + fsync"),
    _bulk("warm read", "zarr LocalStore", 2),
    _bulk("warm read", "Icechunk", 3),
    _bulk("warm read", FUSED, 0.7),
    _bulk("warm read", FUSED, 0.95, engine='vzarr, verify="never"'),
    Target("64-byte chunks, write", "tiny_chunks", "write", most=1.5, against=(FUSED, "write")),
    Target("64-byte chunks, read", "tiny_chunks", "read", most=1.25, against=(FUSED, "read")),
    Target("64-byte chunks, write", "tiny_chunks", "write", least=4, against=("Icechunk", "write")),
    Target("64-byte chunks, read", "tiny_chunks", "read", least=4, against=("Icechunk", "read")),
    Target("one-chunk durable commit", "commit", "commit", most=2, unit="ms", every_case=True),
    Target("cold open + chunk", "cold", "open + chunk", most=10, unit="ms", every_case=True),
    Target("many commits, on disk", "growth", "on disk, before", most=15 * MEGABYTE, unit="MiB"),
    Target("… over the live data, compact", "growth", "over live data", most=MEGABYTE, unit="MiB"),
    Target("an append", "append", "a step", least=10, against=("Icechunk", "a step")),
    Target("… the last over the first", "append", "last / first", most=1.2),
    Target("export", "export", "Zarr directory", least=0.7, against=(BASELINE, COPY)),
    Target("import", "import", "import", least=0.7, against=(BASELINE, COPY)),
    Target("big transaction, RSS", "memory", "peak RSS", most=300 * MEGABYTE, unit="MiB"),
)


def judge(results: Results, targets: tuple[Target, ...] = TARGETS) -> Iterator[Outcome]:
    """Compare what was measured with the figures to reach."""
    for target in targets:
        cases = results.cases(target.workload)
        found = [(case, _measure(results, target, case)) for case in cases]
        measured = [(case, value) for case, value in found if value is not None]
        if not measured:
            yield _outcome(target, "–", None)
        for case, value in measured if target.every_case else measured[:1]:
            yield _outcome(target, case, value)


def _outcome(target: Target, case: str, value: float | None) -> Outcome:
    how = "" if target.engine == BASELINE else target.engine.removeprefix(BASELINE)
    return Outcome(
        what=f"{target.what}{how}",
        case=case,
        goal=_goal(target),
        measured="–" if value is None else _told(value, target),
        verdict=_verdict(value, target),
    )


def _measure(results: Results, target: Target, case: str) -> float | None:
    """Give what the bounds are about."""
    if target.against is None:
        summary = results.summary(target.workload, case, target.engine, target.figure)
        return summary.median if summary else None
    ours = (target.engine, target.figure)
    ratio = results.ratio(target.workload, case, ours, target.against)
    if ratio is None or target.most is None:
        return ratio
    return 1 / ratio


def _verdict(value: float | None, target: Target) -> Verdict:
    if value is None:
        return "not measured"
    enough = target.least is None or value >= target.least
    return "met" if enough and (target.most is None or value <= target.most) else "missed"


def _goal(target: Target) -> str:
    bound = target.most if target.least is None else target.least
    sign = "≤" if target.least is None else "≥"
    if target.against is None:
        return f"{sign} {bound:.3g} {target.unit}".rstrip()
    engine, figure = target.against
    other = "" if figure == target.figure else f", {figure}"
    what = "the time of " if target.least is None else ""
    return f"{sign} {bound:.3g} × {what}{engine}{other}"


def _told(value: float, target: Target) -> str:
    return f"{value:.2f} {'×' if target.against else target.unit}".rstrip()
