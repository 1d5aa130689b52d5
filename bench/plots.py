"""One picture for each workload: bars for its engines, the same bytes for the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.engines import missing_modules
from bench.harness import Workload
from bench.results import Results, Summary, is_more_better, number

# Readable on a white page and on a black one.
TEXT, OURS, OTHERS = "#7d8590", "#e8590c", "#6c8ebf"
CASES = 2
"""So many cases of a workload are shown: the first ones are what it is about."""
WIDE = 30
"""Bars whose lengths differ by more than this are drawn on a logarithmic axis."""

STYLE = {
    "svg.hashsalt": "vzarr",
    "svg.fonttype": "none",
    "font.size": 8,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
}


def write_plot(results: Results, workload: Workload, path: Path) -> bool:
    """Draw the figures of a workload's chart. False if there are none, or no matplotlib."""
    cases = results.cases(workload.name)[:CASES]
    panels = [
        (case, figure, bars)
        for case in cases
        for figure in workload.chart
        if len(bars := _bars(results, workload.name, case, figure)) > 1
    ]
    if not panels or missing_modules(["matplotlib"]):
        return False
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = min(len(workload.chart), len(panels))
    rows = -(-len(panels) // columns)
    most = max(len(bars) for _, _, bars in panels)
    with mpl.rc_context(STYLE):
        picture = Figure(figsize=(3.6 * columns, rows * (0.7 + 0.17 * most)), layout="constrained")
        axes = picture.subplots(rows, columns, squeeze=False).flat
        for place, panel in zip(axes, panels, strict=False):
            _draw(place, *panel)
        for place in list(axes)[len(panels) :]:
            place.set_axis_off()
        picture.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    return True


def _bars(results: Results, workload: str, case: str, figure: str) -> dict[str, Summary]:
    engines = results.engines(workload, case)
    found = {engine: results.summary(workload, case, engine, figure) for engine in engines}
    return {engine: summary for engine, summary in found.items() if summary}


def _draw(axes: Any, case: str, figure: str, bars: dict[str, Summary]) -> None:
    """Draw one figure at one case: the engines from above in the order of the table."""
    values = [summary.median for summary in bars.values()]
    colours = [OURS if engine.startswith("vzarr") else OTHERS for engine in bars]
    drawn = axes.barh(range(len(bars)), values, color=colours, height=0.7)
    axes.bar_label(drawn, labels=[number(value) for value in values], padding=2, fontsize=7)
    axes.margins(x=0.15)
    axes.set_yticks(range(len(bars)), labels=list(bars))
    axes.invert_yaxis()
    unit = next(iter(bars.values())).unit
    better = "more" if is_more_better(unit) else "less"
    axes.set_title(f"{figure} · {case}", fontsize=8)
    axes.set_xlabel(f"{unit}, {better} is better")
    if min(values) > 0 and max(values) > WIDE * min(values):
        axes.set_xscale("log")
        axes.set_xlim(left=min(values) / 3)
    axes.spines[["top", "right"]].set_visible(False)
