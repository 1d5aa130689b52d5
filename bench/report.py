"""docs/benchmarks.md and its plots, written from results. No number in them is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.harness import Workload
from bench.plots import write_plot
from bench.results import BASELINE, Results, Summary, is_more_better, number
from bench.targets import judge
from bench.workloads import all_workloads

TIMES = ("s", "ms", "µs")
DURABLE = {True: "yes", False: "no", None: "–"}

HEAD = """\
# Benchmarks

vzarr beside other ways to keep arrays on one machine. `python -m bench` measures and writes this
page: every number on it comes from a file of results, none is typed by hand.

Each engine runs in a process of its own, once in each round, and the order rotates from round to
round. A cell has the median of the rounds; how it compares with vzarr, where 2 × is twice as fast
and 0.5 × half as fast, taken within each round and then the median; and, after several rounds, half
the distance of the extremes as a part of the median. *Durable* says whether what was written
survives a power cut without anything more being done. *On disk* counts the blocks of all files,
*peak RSS* is how far resident memory rose, at most: pages of a file that the process has mapped
count, too.
"""


def write_report(results: Results, path: Path) -> None:
    """Write the page, and a plot for each workload into a directory of the page's name."""
    plots = path.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_page(results, plots)).rstrip() + "\n")


def _page(results: Results, plots: Path) -> Iterator[str]:
    yield HEAD
    yield from _machine(results)
    yield from _targets(results)
    for workload in all_workloads().values():
        if results.cases(workload.name):
            yield from _workload(results, workload, plots)


# ── the head ─────────────────────────────────────────────────────────────────────────────────────


def _machine(results: Results) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(results.versions.items()))
    facts = {"date": results.date, "size": results.size, **results.machine, "versions": versions}
    if results.skipped:
        facts["left out"] = "; ".join(f"{name}: {why}" for name, why in results.skipped.items())
    yield from _table(["measured on", ""], facts.items())


def _targets(results: Results) -> Iterator[str]:
    yield "## Figures to reach\n"
    rows = [(o.what, o.case, o.goal, o.measured, o.verdict) for o in judge(results)]
    yield from _table(["what", "case", "goal", "measured", ""], rows)


# ── a workload ───────────────────────────────────────────────────────────────────────────────────


def _workload(results: Results, workload: Workload, plots: Path) -> Iterator[str]:
    yield f"## {workload.title}\n"
    yield f"{workload.sentence}\n"
    plot = plots / f"{workload.name}.svg"
    if write_plot(results, workload, plot):
        yield f"![{workload.title}]({plots.name}/{plot.name})\n"
    for case in results.cases(workload.name):
        rounds = results.rounds(workload.name, case)
        yield f"**{case}**, {rounds} round{'s' if rounds > 1 else ''}\n"
        engines = results.engines(workload.name, case)
        table = _alone if len(engines) == 1 else _side_by_side
        yield from table(results, workload.name, case)
        for engine in engines:
            for failure in results.failures(workload.name, case, engine)[:1]:
                yield f"{engine} failed: {failure}\n"


def _side_by_side(results: Results, workload: str, case: str) -> Iterator[str]:
    """Make a row for each engine, and a column for each figure."""
    rows, units = [], {}
    figures = results.figures(workload, case)
    for engine in results.engines(workload, case):
        cells = []
        for figure in figures:
            summary = results.summary(workload, case, engine, figure)
            cells.append(_cell(summary, compared=engine != BASELINE) if summary else "")
            if summary:
                units[figure] = summary.unit
        name = f"**{engine}**" if engine == BASELINE else engine
        rows.append((name, DURABLE[results.durable(workload, case, engine)], *cells))
    heads = [_head(figure, units[figure]) for figure in figures]
    yield from _table(["engine", "durable", *heads], rows)


def _alone(results: Results, workload: str, case: str) -> Iterator[str]:
    """Make a row for each figure of the only engine."""
    (engine,) = results.engines(workload, case)
    found = {
        figure: results.summary(workload, case, engine, figure)
        for figure in results.figures(workload, case)
    }
    rows = [(name, f"{_cell(s, compared=False)} {s.unit}") for name, s in found.items() if s]
    yield from _table([engine, ""], rows)


def _head(figure: str, unit: str) -> str:
    return figure if unit in ("", "×", "times", figure) else f"{figure}, {unit}"


def _cell(summary: Summary, *, compared: bool) -> str:
    parts = [number(summary.median)]
    if is_speed(summary.unit):
        if compared and summary.ratio is not None:
            parts.append(f"{number(summary.ratio)} ×")
        if summary.spread:
            parts.append(f"±{summary.spread / 2:.0%}")
    return " · ".join(parts)


def is_speed(unit: str) -> bool:
    return unit in TIMES or is_more_better(unit)


def _table(heads: list[str], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"
    yield ""
