"""A small picture of which chunks of an array changed.

A grid of chunks has any number of axes and maybe millions of chunks; a picture has two axes and
some hundred cells. So the two axes with the most chunks are drawn, the others lie on top of one
another, and a cell stands for a box of chunks. ``lay_out`` chooses that, ``mark`` finds the cells
in which something changed, ``draw`` makes an SVG of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, final

from vzarr.html import Markup, clip, svg, tag

if TYPE_CHECKING:
    from vzarr.metadata import ArrayMetadata

Grid = tuple[int | tuple[int, ...], ...] | None
Coordinates = tuple[int, ...]
Kind = Literal["changed", "added", "removed"]
KINDS: tuple[Kind, ...] = ("changed", "added", "removed")
Cell = tuple[int, int]
"""Row and column."""

MAX_ROWS, MAX_COLUMNS, MAX_ALONE = 16, 32, 64
"""As many cells are drawn of the first axis, of the second, and of one that is alone."""
MAX_COUNTED = 30_000
"""So many changed chunks are counted one by one; some 5 µs each."""
MAX_STEPS = 30_000
"""So many more are looked at to find cells that nothing has marked yet."""
# Going to another place in an index costs as much as so many steps.
_JUMP = 32
_LIMIT = 2**32

_PITCH, _SIZE = 12, 11
_NAMED = 4
_LONGEST_TITLE = 100


@final
@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the grid, and how it is cut into cells."""

    number: int
    old: int
    new: int
    """How many chunks it has on each side; 0 where there is no array."""
    width: int = 1
    """How many chunks a cell stands for."""

    @property
    def chunks(self) -> int:
        """How many chunks it has on the longer side."""
        return max(self.old, self.new)

    @property
    def cells(self) -> int:
        """How many cells are drawn."""
        return -(-self.chunks // self.width)


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """Which axes of a grid are drawn, and how."""

    axes: tuple[Axis, ...]
    """All of them."""
    row: int | None
    column: int | None
    """The axes that are drawn downwards and across; None where there are not as many."""
    was: bool
    """Whether there was a chunk before, and"""
    is_now: bool
    """whether there is one after."""

    @property
    def rows(self) -> int:
        """How many rows of cells there are."""
        return 1 if self.row is None else self.axes[self.row].cells

    @property
    def columns(self) -> int:
        """How many columns of cells there are."""
        return 1 if self.column is None else self.axes[self.column].cells

    @property
    def folded(self) -> tuple[Axis, ...]:
        """The axes that lie on top of one another, of those with several chunks."""
        drawn = (self.row, self.column)
        return tuple(axis for axis in self.axes if axis.number not in drawn and axis.chunks > 1)

    def cell(self, chunk: Coordinates) -> Cell | None:
        """Find the cell of a chunk; None for one outside of both shapes."""
        inside = len(chunk) == len(self.axes) and all(
            place < axis.chunks for place, axis in zip(chunk, self.axes, strict=True)
        )
        if not inside:
            return None
        row = 0 if self.row is None else chunk[self.row] // self.axes[self.row].width
        column = 0 if self.column is None else chunk[self.column] // self.axes[self.column].width
        return row, column

    def box(self, cell: Cell) -> tuple[range, ...]:
        """Give the chunks of a cell, one range an axis."""
        ranges = []
        for axis in self.axes:
            start, stop = 0, axis.chunks
            if axis.number in (self.row, self.column):
                start = cell[0 if axis.number == self.row else 1] * axis.width
                stop = min(start + axis.width, stop)
            ranges.append(range(start, stop))
        return tuple(ranges)


def grids(
    old: ArrayMetadata | None, new: ArrayMetadata | None
) -> tuple[Sequence[int] | None, Sequence[int] | None] | None:
    """Count the chunks along each axis of an array, before and after; None for a side without it.

    None at all where there is no array, and where one grid is not known or is another than before,
    so that equal coordinates are not of equal places.
    """
    known = [array for array in (old, new) if array is not None]
    if not known or not all(_same_places(known[0].grid, array.grid) for array in known):
        return None
    before, after = (_count_chunks(array) if array is not None else None for array in (old, new))
    return before, after


def _count_chunks(array: ArrayMetadata) -> Sequence[int] | None:
    ranges = array.chunks_of(tuple(slice(0, length) for length in array.shape))
    if ranges is None:
        return None
    return [part.stop if length else 0 for part, length in zip(ranges, array.shape, strict=True)]


def _same_places(one: Grid, other: Grid) -> bool:
    """Whether the chunks of two grids lie in the same places, as far as both reach."""
    if one is None or other is None or len(one) != len(other):
        return False
    for mine, theirs in zip(one, other, strict=True):
        if isinstance(mine, int) or isinstance(theirs, int):
            if mine != theirs:
                return False
        elif any(length != their for length, their in zip(mine, theirs, strict=False)):
            return False
    return True


def lay_out(old: Sequence[int] | None, new: Sequence[int] | None) -> Plan | None:
    """Choose what to draw of an array with so many chunks an axis, before and after.

    None stands for no array. Gives None where there is no chunk on either side, or the two have not
    as many axes.
    """
    sides = [side for side in (old, new) if side is not None]
    if not sides or len({len(side) for side in sides}) > 1:
        return None
    none = (0,) * len(sides[0])
    # An array without elements has no chunks, whatever its other axes say.
    was, is_now = (side is not None and 0 not in side for side in (old, new))
    before = tuple(old) if old is not None and was else none
    after = tuple(new) if new is not None and is_now else none
    axes = [Axis(n, *pair) for n, pair in enumerate(zip(before, after, strict=True))]
    if not was and not is_now:
        return None
    several = [axis for axis in axes if axis.chunks > 1]
    # Of axes that are as long the last ones, along which images lie.
    drawn = sorted(sorted(several, key=lambda axis: (axis.chunks, axis.number))[-2:], key=_number)
    column = drawn[-1].number if drawn else None
    row = drawn[0].number if len(drawn) > 1 else None
    limits = {row: MAX_ROWS, column: MAX_COLUMNS if row is not None else MAX_ALONE}
    return Plan(
        tuple(
            Axis(axis.number, axis.old, axis.new, -(-axis.chunks // limits[axis.number]))
            if axis.number in limits
            else axis
            for axis in axes
        ),
        row,
        column,
        was,
        is_now,
    )


def _number(axis: Axis) -> int:
    return axis.number


# ── which cells are marked ───────────────────────────────────────────────────────────────────────

Walk = Callable[[Coordinates], Iterator[tuple[Coordinates, Kind]]]
"""Lists the chunks that changed, from some coordinates on, in row-major order; from () all."""


@final
@dataclass(slots=True)
class Marks:
    """The cells in which something changed, and how much."""

    cells: dict[Cell, dict[Kind, int]] = field(default_factory=dict)
    """How many chunks of each kind; where not all were counted, 1 or more of the kinds found."""
    counts: dict[Kind, int] = field(default_factory=dict)
    """How many chunks of each kind were counted."""
    outside: int = 0
    """How many of these lie outside of both shapes."""
    counted: bool = True
    """Whether all chunks were counted."""
    stopped: Coordinates | None = None
    """After which chunk the search for further cells ended, if it was cut short."""

    def note(self, cell: Cell, kind: Kind) -> None:
        """Count a chunk in a cell."""
        kinds = self.cells.setdefault(cell, {})
        kinds[kind] = kinds.get(kind, 0) + 1


def mark(plan: Plan | None, walk: Walk, limit: int = MAX_COUNTED) -> Marks:
    """Find the cells in which something changed.

    Up to ``limit`` chunks, one or more, are counted. If there are more, only cells that are not
    marked yet are looked for, whole stretches of chunks in marked ones are passed over, and a cell
    is of the kind that was found in it first. O(changed), but never more than ``limit`` and
    ``MAX_STEPS``.
    """
    marks = Marks()
    last: Coordinates = ()
    for number, (chunk, kind) in enumerate(walk(())):
        if number == limit:
            marks.counted = False
            break
        last = chunk
        marks.counts[kind] = marks.counts.get(kind, 0) + 1
        cell = plan.cell(chunk) if plan is not None else None
        if cell is None:
            marks.outside += 1
        else:
            marks.note(cell, kind)
    if plan is not None and not marks.counted:
        _find_more(plan, walk, marks, last)
    return marks


def _find_more(plan: Plan, walk: Walk, marks: Marks, last: Coordinates) -> None:
    """Mark the cells of the chunks after ``last`` that are not marked by others."""
    start = _after(plan, marks, last)
    steps = 0
    while start is not None:
        goal: Coordinates | None = start
        jumped = False
        for chunk, kind in walk(start):
            steps += 1
            if steps > MAX_STEPS:
                marks.stopped = last
                return
            last = chunk
            if goal is not None and chunk < goal:
                continue
            cell = plan.cell(chunk)
            if cell is not None and cell not in marks.cells:
                marks.note(cell, kind)
            goal = _after(plan, marks, chunk)
            if goal is None or _distance(plan, chunk, goal) > _JUMP:
                jumped = True
                break
        steps += _JUMP
        start = goal if jumped else None


def _after(plan: Plan, marks: Marks, chunk: Coordinates) -> Coordinates | None:
    """Find coordinates after a chunk before which no unmarked cell comes; None after the last."""
    if len(marks.cells) == plan.rows * plan.columns or plan.column is None:
        return None
    across = plan.axes[plan.column]
    rest = (0,) * (len(plan.axes) - plan.column - 1)
    # On in the same line of chunks, if a cell there is unmarked.
    row = 0 if plan.row is None else chunk[plan.row] // plan.axes[plan.row].width
    start = chunk[plan.column] // across.width
    free = _first_free(plan, marks, row, start)
    if free is not None:
        place = max(free * across.width, chunk[plan.column])
        if place == chunk[plan.column]:
            return _following(chunk)
        return (*chunk[: plan.column], place, *rest)
    # In another line of the same row of cells.
    if plan.row is None or _first_free(plan, marks, row, 0) is not None:
        prefix = _following(chunk[: plan.column])
        return None if prefix is None else (*prefix, 0, *rest)
    # In another row of cells.
    down = plan.axes[plan.row]
    for other in range(row + 1, plan.rows):
        if _first_free(plan, marks, other, 0) is not None:
            zeros = (0,) * (len(plan.axes) - plan.row - 1)
            return (*chunk[: plan.row], other * down.width, *zeros)
    prefix = _following(chunk[: plan.row])
    return None if prefix is None else (*prefix, *(0,) * (len(plan.axes) - plan.row))


def _first_free(plan: Plan, marks: Marks, row: int, start: int) -> int | None:
    """Find the first column of a row, from ``start`` on, whose cell is unmarked."""
    for column in range(start, plan.columns):
        if (row, column) not in marks.cells:
            return column
    return None


def _following(chunk: Coordinates) -> Coordinates | None:
    """Give the least coordinates of this length after a chunk; None if there are none."""
    for place in reversed(range(len(chunk))):
        if chunk[place] + 1 < _LIMIT:
            return (*chunk[:place], chunk[place] + 1, *(0,) * (len(chunk) - place - 1))
    return None


def _distance(plan: Plan, start: Coordinates, stop: Coordinates) -> int:
    """Count the places of the grid between two chunks, about."""
    distance = 0
    for axis, first, last in zip(plan.axes, start, stop, strict=True):
        distance = distance * axis.chunks + last - first
    return distance


# ── the picture ──────────────────────────────────────────────────────────────────────────────────


def draw(plan: Plan, marks: Marks, label: str) -> Markup:
    """Draw the grid as it was and as it is, and the marked cells, as an SVG; O(cells).

    ``label`` says what it shows to who does not see it.
    """
    outer = _outer(plan)
    width, height = (math.ceil(length) + 2 for length in outer)
    return svg(
        label,
        *_areas(plan),
        _grid(plan),
        *(part for cell in sorted(marks.cells) for part in _cell(plan, marks, cell, outer)),
        _glyphs(marks, outer),
        css="map",
        width=width,
        height=height,
        margin=1,
    )


def describe(plan: Plan, marks: Marks) -> str:
    """Say in a few words what the picture shows, for who does not see it."""
    cells = "1 cell" if len(marks.cells) == 1 else f"{len(marks.cells):,} cells"
    return f"{cells} of {plan.rows} by {plan.columns} marked"


def captions(plan: Plan, marks: Marks) -> Iterator[str]:
    """Say what the axes are, what a cell stands for, and what the picture leaves out."""
    for number, way in ((plan.row, "down"), (plan.column, "across")):
        if number is not None:
            axis = plan.axes[number]
            sizes = f"{axis.new:,}" if axis.old in (0, axis.new) else f"{axis.old:,} → {axis.new:,}"
            yield f"axis {number} {way}: {sizes} chunks"
    widths = [plan.axes[n].width for n in (plan.row, plan.column) if n is not None]
    if any(width > 1 for width in widths):
        yield f"a cell stands for {' by '.join(f'{width:,}' for width in widths)} chunks"
    folded = [f"{axis.number} ({axis.chunks:,} chunks)" for axis in plan.folded]
    if folded:
        shown = ", ".join(folded[:_NAMED]) + (" …" if len(folded) > _NAMED else "")
        yield f"{'axis' if len(folded) == 1 else 'axes'} {shown} folded into it"
    if marks.outside:
        yield f"{marks.outside:,} chunks outside of the shape not drawn"
    if not marks.counted:
        yield "a cell has the colour of the first change that was found in it"
    if marks.stopped is not None:
        yield f"not all was looked at after chunk {marks.stopped}"


def at_least(marks: Marks) -> str:
    """Summarize chunks that were not all counted."""
    return f"chunks: at least {_spell_counts(marks.counts, exact=True)}"


def _extent(plan: Plan, side: Literal["old", "new"]) -> tuple[float, float]:
    """Give width and height of the array on one side, in pixels."""
    if not (plan.was if side == "old" else plan.is_now):
        return 0, 0
    lengths = []
    for number in (plan.column, plan.row):
        if number is None:
            lengths.append(float(_PITCH))
        else:
            axis = plan.axes[number]
            lengths.append(getattr(axis, side) * _PITCH / axis.width)
    return lengths[0], lengths[1]


def _areas(plan: Plan) -> Iterator[Markup]:
    """Draw the part that both sides have, and what was added to it or taken off."""
    old, new = _extent(plan, "old"), _extent(plan, "new")
    both = min(old[0], new[0]), min(old[1], new[1])
    for side, what in ((old, "removed"), (new, "added")):
        outer = f"M0 0H{side[0]:g}V{side[1]:g}H0Z"
        if side != both:
            hole = f"M0 0V{both[1]:g}H{both[0]:g}V0Z" if all(both) else ""
            yield tag("path", d=outer + hole, css=f"area-{what}", fill_rule="evenodd")
    if all(both):
        yield tag("path", d=f"M0 0H{both[0]:g}V{both[1]:g}H0Z", css="area-both")


def _outer(plan: Plan) -> tuple[float, float]:
    """Give width and height of what both sides cover together, in pixels."""
    old, new = _extent(plan, "old"), _extent(plan, "new")
    return max(old[0], new[0]), max(old[1], new[1])


def _grid(plan: Plan) -> Markup:
    """Draw the lines between the cells, as far as one side reaches."""
    sides = [_extent(plan, side) for side in ("old", "new")]
    lines = [
        f"M{x} 0v{max((side[1] for side in sides if side[0] >= x), default=0):g}"
        for x in range(_PITCH, plan.columns * _PITCH, _PITCH)
    ]
    lines += [
        f"M0 {y}h{max((side[0] for side in sides if side[1] >= y), default=0):g}"
        for y in range(_PITCH, plan.rows * _PITCH, _PITCH)
    ]
    return tag("path", d="".join(lines), css="grid")


def _cell(plan: Plan, marks: Marks, cell: Cell, outer: tuple[float, float]) -> Iterator[Markup]:
    """Draw a cell: a strip for each kind of change in it, paler where few of its chunks changed."""
    row, column = cell
    box = plan.box(cell)
    found = marks.cells[cell]
    kinds = [kind for kind in KINDS if kind in found]
    chunks = clip(_spell(plan, box), _LONGEST_TITLE)
    title = f"chunks {chunks}: {_spell_counts(found, exact=marks.counted)}"
    share = sum(found.values()) / math.prod(map(len, box)) if marks.counted else 1.0
    # The last cell of an axis may stand for fewer chunks than the others.
    width = min(_SIZE, max(1, outer[0] - column * _PITCH - 1)) / len(kinds)
    height = min(_SIZE, max(1, outer[1] - row * _PITCH - 1))
    for number, kind in enumerate(kinds):
        x = column * _PITCH + 0.5 + number * width
        yield tag(
            "rect",
            tag("title", title),
            css=f"cells-{kind}",
            x=f"{x:g}",
            y=f"{row * _PITCH + 0.5:g}",
            width=f"{width:g}",
            height=f"{height:g}",
            fill_opacity=f"{0.45 + 0.55 * share:.2g}",
        )


def _glyphs(marks: Marks, outer: tuple[float, float]) -> Markup:
    """Put a plus on cells that were added and a minus on those removed: colours are not enough."""
    signs = []
    for (row, column), kinds in sorted(marks.cells.items()):
        x, y = column * _PITCH + 3, row * _PITCH + 6
        if x + 6 < outer[0] and y + 3 < outer[1] and len(kinds) == 1 and "changed" not in kinds:
            signs.append(f"M{x} {y}h6")
            if "added" in kinds:
                signs.append(f"M{x + 3} {y - 3}v6")
    return tag("path", d="".join(signs), css="glyphs")


def _spell(plan: Plan, box: Sequence[range]) -> str:
    parts = []
    for axis, part in zip(plan.axes, box, strict=True):
        if len(part) == 1:
            parts.append(f"{part.start}")
        else:
            parts.append(":" if len(part) == axis.chunks else f"{part.start}:{part.stop}")
    return "[" + ", ".join(parts) + "]"


def _spell_counts(counts: dict[Kind, int], *, exact: bool) -> str:
    if not exact:
        return " and ".join(kind for kind in KINDS if kind in counts)
    return ", ".join(f"{counts[kind]:,} {kind}" for kind in KINDS if kind in counts)
