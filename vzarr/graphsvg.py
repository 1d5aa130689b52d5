"""The commit graph as an SVG: the rows of ``vzarr.graph``, drawn with curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vzarr import graph
from vzarr.html import ROW_PIXELS, Markup, svg, tag
from vzarr.printable import plural

if TYPE_CHECKING:
    from vzarr.history import Commit

MAX_LANES = 24
"""Beyond so many, columns lie on top of one another."""
COLOURS = 5
_LANE_PIXELS = 14
_HALF = ROW_PIXELS // 2
_SHORT = 12
# The colour of a line that leads to what is not shown.
_MORE = -1


def draw_graph(commits: Sequence[Commit]) -> Markup:
    """Draw commits, children first, and the lines to their parents; one row a commit. O(lines)."""
    rows = _rows(commits)
    lanes = 1 + max((max((row.column, *row.below)) for row in rows), default=0)
    width, height = min(lanes, MAX_LANES) * _LANE_PIXELS, len(rows) * ROW_PIXELS
    merges = sum(len(commit.parents) > 1 for commit in commits)
    label = f"graph of {_count(len(rows), 'commit')}, {_count(merges, 'merge')}"
    return svg(
        label,
        *_lines(rows, commits),
        *(_node(number, row, commits[number]) for number, row in enumerate(rows)),
        css="graph",
        width=width,
        height=height,
    )


def _rows(commits: Sequence[Commit]) -> list[graph.Row]:
    place = {commit.id: number for number, commit in enumerate(commits)}

    def parents(number: int, commit: Commit) -> list[str]:
        # A log may be of some commits only, and then no line leads to the others.
        return [parent for parent in commit.parents if place.get(parent, -1) > number]

    return list(graph.layout((one.id, parents(n, one)) for n, one in enumerate(commits)))


def _lines(rows: Sequence[graph.Row], commits: Sequence[Commit]) -> list[Markup]:
    """Draw the lines below all rows, one path a colour: that of the column where a line goes on."""
    paths: dict[int, list[str]] = {}
    for number, (row, commit) in enumerate(zip(rows, commits, strict=True)):
        x, y = _place(row.column), number * ROW_PIXELS + _HALF
        for column in row.passing:
            paths.setdefault(column % COLOURS, []).append(f"M{_place(column)} {y}v{ROW_PIXELS}")
        for column in row.turning:
            aside = x - _place(column)
            line = f"c0 {_HALF} {aside} {_HALF} {aside} {ROW_PIXELS}"
            paths.setdefault(row.column % COLOURS, []).append(f"M{_place(column)} {y}{line}")
        for link in row.links:
            aside = _place(link.column) - x
            line = f"c0 {_HALF} {aside} {_HALF} {aside} {ROW_PIXELS}" if aside else f"v{ROW_PIXELS}"
            paths.setdefault(link.column % COLOURS, []).append(f"M{x} {y}{line}")
        if len(commit.parents) > len(row.links):
            paths.setdefault(_MORE, []).append(f"M{x} {y}v{_HALF}")
    return [
        tag("path", d="".join(parts), css="more" if colour == _MORE else f"edge lane-{colour}")
        for colour, parts in sorted(paths.items())
    ]


def _node(number: int, row: graph.Row, commit: Commit) -> Markup:
    kind = "merge" if len(commit.parents) > 1 else ""
    return tag(
        "circle",
        tag("title", commit.id[:_SHORT]),
        cx=_place(row.column),
        cy=number * ROW_PIXELS + _HALF,
        r=4,
        css=f"lane-{row.column % COLOURS} {kind}",
    )


def _place(column: int) -> int:
    return min(column, MAX_LANES - 1) * _LANE_PIXELS + _LANE_PIXELS // 2


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{plural(number)}"
