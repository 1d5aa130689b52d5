"""The picture of a history: which commit stands in which column, and the lines between them.

Commits come children first, and each line that is under way has a column until its commit comes.
It never leaves that column: where another line is to go to the same commit, it turns aside to it
at once, and its own column is free for whatever comes next. So a row needs to know nothing of the
rows after it, all that is kept is one name for each line under way, and a picture can be drawn of a
history that nobody has read to its end.

``layout`` finds the places, ``draw`` makes text of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

Style = Literal["box", "ascii"]


class Link(NamedTuple):
    """A line from a commit to one of its parents."""

    parent: str
    column: int
    """Where it goes on, down to the parent."""
    joins: bool
    """Whether a line from another child to the same parent goes on there, too."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One commit of the picture, and the lines below it."""

    commit: str
    column: int
    from_above: bool
    """Whether a line comes to it from a child."""
    hidden: bool
    """Whether the commit itself is not to be seen, but only lines that go by its place."""
    passing: tuple[int, ...]
    """The columns of lines that go straight on beside it, from left to right."""
    turning: tuple[int, ...]
    """The columns of lines that pass by it, and then come over to its own column."""
    links: tuple[Link, ...]
    """The lines to its parents, in their order."""

    @property
    def below(self) -> tuple[int, ...]:
        """The columns that have a line between this row and the next, from left to right."""
        return tuple(sorted({*self.passing, *(link.column for link in self.links)}))


def layout(
    commits: Iterable[tuple[str, Sequence[str]]], shown: Mapping[str, object] | None = None
) -> Iterator[Row]:
    """Give commits their places: each with its parents, none after one of these.

    With ``shown``, only commits in it are to be seen; a line goes by the place of each other one
    that a child of it leads to, so that what is seen stays tied together. Lazy; O(lines under way)
    a commit.
    """
    lanes: list[str | None] = []
    ended = -1
    for commit, parents in commits:
        hidden = shown is not None and commit not in shown
        from_above = commit in lanes
        if hidden and not from_above:
            # Nothing leads here, and here is nothing.
            continue
        # Right below the first commit of a history, it would look like a parent of that.
        column = lanes.index(commit) if from_above else _free(lanes, 0, ended)
        lanes[column] = None
        turning = _turn(lanes, column, parents)
        passing = tuple(
            number for number, lane in enumerate(lanes) if lane is not None and number != column
        )
        links = []
        for parent in dict.fromkeys(parents):
            joins = parent in lanes
            # Straight down if that is free, or else beside it.
            place = lanes.index(parent) if joins else _free(lanes, column)
            lanes[place] = parent
            links.append(Link(parent, place, joins))
        while lanes and lanes[-1] is None:
            lanes.pop()
        ended = -1 if links else column
        yield Row(commit, column, from_above, hidden, passing, turning, tuple(links))


def _turn(lanes: list[str | None], column: int, parents: Sequence[str]) -> tuple[int, ...]:
    """Let a line that goes to the only parent, but further right, come over to a column.

    So what was there first stays on the left: mostly the main line, beside branches that are older.
    """
    if len(parents) != 1 or parents[0] not in lanes:
        return ()
    other = lanes.index(parents[0])
    if other < column:
        return ()
    lanes[column], lanes[other] = lanes[other], None
    return (other,)


def _free(lanes: list[str | None], start: int, but: int = -1) -> int:
    """Find a column without a line, from ``start`` to the right; there may have to be a new one."""
    for number in range(start, len(lanes)):
        if lanes[number] is None and number != but:
            return number
    while True:
        lanes.append(None)
        if len(lanes) - 1 != but:
            return len(lanes) - 1


def children_first(commits: Iterable[tuple[str, Sequence[str]]]) -> Iterator[str]:
    """Order commits so that none comes before one of its children, else as they were.

    Clocks that went wrong may have put them into another order. O(n log n).
    """
    given = {commit: tuple(dict.fromkeys(parents)) for commit, parents in commits}
    children = dict.fromkeys(given, 0)
    for parents in given.values():
        for parent in parents:
            if parent in children:
                children[parent] += 1
    names = list(given)
    place = {name: number for number, name in enumerate(names)}
    ready = [place[name] for name, number in children.items() if not number]
    while ready:
        name = names[heapq.heappop(ready)]
        yield name
        for parent in given[name]:
            if parent in children:
                children[parent] -= 1
                if not children[parent]:
                    heapq.heappush(ready, place[parent])


# ── as text ──────────────────────────────────────────────────────────────────────────────────────

Cell = tuple[str, int]
"""A piece of a line, and the column whose colour it has."""

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_BOX = {
    0: " ",
    _UP | _DOWN: "│",
    _LEFT | _RIGHT: "─",
    _DOWN | _RIGHT: "╭",
    _DOWN | _LEFT: "╮",
    _UP | _RIGHT: "╰",
    _UP | _LEFT: "╯",
    _UP | _DOWN | _RIGHT: "├",
    _UP | _DOWN | _LEFT: "┤",
    _DOWN | _LEFT | _RIGHT: "┬",
    _UP | _LEFT | _RIGHT: "┴",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}
_ASCII = dict(zip(_BOX, " |-/\\\\/||+++", strict=True))
_NODES = {"box": "●", "ascii": "*"}


@final
@dataclass(frozen=True, slots=True)
class Drawing:
    """A row as text."""

    commit: tuple[Cell, ...]
    """The line with the commit's mark."""
    turns: tuple[Cell, ...]
    """The line below it, if lines turn aside there; else empty."""
    margin: tuple[Cell, ...]
    """What stands before further lines of text, and below."""


def draw(row: Row, style: Style = "box") -> Drawing:
    """Draw a row with lines of text, two characters a column. O(columns)."""
    signs = _BOX if style == "box" else _ASCII
    through = dict.fromkeys(row.passing, _UP | _DOWN)
    mark = dict.fromkeys((*row.passing, *row.turning, row.column), _UP | _DOWN)
    commit = _line(mark, {}, signs)
    if not row.hidden:
        commit[row.column] = (_NODES[style], row.column)
    return Drawing(
        _spaced(commit, {}, signs),
        _turns(row, through, signs),
        _spaced(_line(dict.fromkeys(row.below, _UP | _DOWN), {}, signs), {}, signs),
    )


def _turns(row: Row, through: dict[int, int], signs: Mapping[int, str]) -> tuple[Cell, ...]:
    """Draw the line in which lines from the commit turn to the columns of its parents."""
    aside = [link.column for link in row.links if link.column != row.column]
    aside += row.turning
    if not aside:
        return ()
    signs_at = dict(through)
    colours = {}
    here = _UP | (_DOWN if any(link.column == row.column for link in row.links) else 0)
    first, last = min([*aside, row.column]), max([*aside, row.column])
    for column in range(first, last + 1):
        sideways = (_LEFT if column > first else 0) | (_RIGHT if column < last else 0)
        if column == row.column:
            signs_at[column] = here | sideways
        elif column in row.turning:
            signs_at[column] = _UP | sideways
        elif column in aside:
            signs_at[column] = through.get(column, 0) | _DOWN | sideways
        elif column not in through:
            signs_at[column] = sideways
            colours[column] = _colour(aside, row.column, column)
        # A line that only passes is drawn over the one that crosses it.
    gaps = {gap: _colour(aside, row.column, gap + 0.5) for gap in range(first, last)}
    return _spaced(_line(signs_at, colours, signs), gaps, signs)


def _colour(aside: Sequence[int], start: int, place: float) -> int:
    """Choose the colour of a line aside: its own where it turns down, the nearest of several."""
    if place > start:
        return min(column for column in aside if column >= place)
    return max(column for column in aside if column <= place)


def _line(
    signs_at: Mapping[int, int], colours: Mapping[int, int], signs: Mapping[int, str]
) -> list[Cell]:
    width = max(signs_at, default=-1) + 1
    return [
        (signs[signs_at.get(column, 0)], colours.get(column, column)) for column in range(width)
    ]


def _spaced(
    cells: list[Cell], gaps: Mapping[int, int], signs: Mapping[int, str]
) -> tuple[Cell, ...]:
    """Put a character between two columns: a line aside in the gaps to the right of these."""
    found: list[Cell] = []
    for column, cell in enumerate(cells):
        found.append(cell)
        if column in gaps:
            found.append((signs[_LEFT | _RIGHT], gaps[column]))
        elif column + 1 < len(cells):
            found.append((" ", column))
    return tuple(found)
