"""The chunk map: each changed chunk falls into a marked cell, and no other cell is marked."""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_left
from itertools import count, product
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vzarr import chunkmap
from vzarr.chunkmap import KINDS, Marks, draw, grids, lay_out, mark
from vzarr.metadata import ArrayMetadata

PITCH = 12


def array(shape, grid):
    return ArrayMetadata(shape, grid, None, "uint8", "")


def walk_over(changes):
    """Give what lists changes as an index does; ``changes`` are kinds by coordinates."""
    rows = sorted(changes.items())
    keys = [chunk for chunk, _ in rows]
    return lambda start: iter(rows[bisect_left(keys, start) :])


def read_back(svg):
    """Read cells and kinds from a picture, by where the strips lie."""
    found = {}
    for node in ET.fromstring(svg).iter("rect"):
        cell = int(float(node.get("y")) // PITCH), int(float(node.get("x")) // PITCH)
        found.setdefault(cell, set()).add(node.get("class").removeprefix("vz-cells-"))
    return found


# ── what is drawn ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("chunks", "drawn", "size", "folded"),
    [
        ((), (None, None), (1, 1), ()),
        ((1,), (None, None), (1, 1), ()),
        ((7,), (None, 0), (1, 7), ()),
        ((1000,), (None, 0), (1, 63), ()),
        ((5, 6), (0, 1), (5, 6), ()),
        ((59, 1, 1), (None, 0), (1, 59), ()),
        ((4, 1, 9), (0, 2), (4, 9), ()),
        ((3, 5, 8), (1, 2), (5, 8), (0,)),
        ((50, 2, 3, 40), (0, 3), (13, 20), (1, 2)),
        ((6, 6, 6), (1, 2), (6, 6), (0,)),
        ((1000, 1000), (0, 1), (16, 32), ()),
    ],
)
def test_the_axes_with_the_most_chunks_are_drawn(chunks, drawn, size, folded):
    plan = lay_out(chunks, chunks)
    assert (plan.row, plan.column) == drawn
    assert (plan.rows, plan.columns) == size
    assert tuple(axis.number for axis in plan.folded) == folded


def test_there_is_nothing_to_draw_without_chunks():
    assert lay_out(None, None) is None
    assert lay_out((0, 5), (5, 0)) is None
    assert lay_out(None, (3, 0)) is None
    assert lay_out((3,), (3, 1)) is None


def test_the_size_is_bounded():
    for shape in [(10**9,), (10**9, 10**9), (10**9, 3, 10**9), (2**32 - 1,) * 5]:
        plan = lay_out(None, shape)
        assert plan.rows * plan.columns <= 512


def test_chunks_are_counted_along_each_axis():
    before, after = array((31, 90, 180), (1, 90, 90)), array((59, 90, 180), (1, 90, 90))
    assert grids(before, after) == ([31, 1, 2], [59, 1, 2])
    assert grids(None, after) == (None, [59, 1, 2])
    assert grids(before, None) == ([31, 1, 2], None)
    assert grids(array((0, 5), (2, 2)), None) == ([0, 3], None)
    assert grids(array((), ()), array((), ())) == ([], [])
    assert grids(array((10,), ((4, 4, 4),)), array((14,), ((4, 4, 4, 8),))) == ([3], [4])
    assert grids(array((0,), ((4, 4),)), None) == ([0], None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (array((10,), (5,)), array((10,), (2,))),
        (array((10,), (5,)), array((10, 10), (5, 5))),
        (array((10,), None), array((10,), None)),
        (array((10,), ((4, 6),)), array((10,), ((6, 4),))),
        (array((10,), ((5, 5),)), array((10,), (5,))),
    ],
)
def test_grids_that_differ_are_no_map(old, new):
    assert grids(old, new) is None


# ── which cells are marked ───────────────────────────────────────────────────────────────────────

sizes = st.lists(st.integers(1, 90), max_size=4).filter(lambda size: math.prod(size) <= 3_000)
kinds = st.sampled_from(KINDS)


@st.composite
def changed_grids(draw):
    """Two sizes of a grid, and changes of which some may lie outside of it."""
    new = draw(sizes)
    old = draw(st.none() | st.tuples(*(st.integers(1, size + 5) for size in new)))
    whole = list(product(*map(range, new)))
    shape = draw(st.sampled_from(["some", "all", "line", "few"]))
    some = {
        "some": lambda: draw(st.lists(st.sampled_from(whole), max_size=80)),
        "all": lambda: whole,
        "line": lambda: [chunk for chunk in whole if chunk[-1:] in ((0,), ())],
        "few": lambda: draw(st.lists(st.sampled_from(whole), max_size=3)),
    }[shape]()
    changes = {tuple(chunk): draw(kinds) for chunk in some[:200]} | dict.fromkeys(
        some[200:], "added"
    )
    for chunk in draw(st.lists(st.tuples(*(st.integers(0, 2**32 - 1) for _ in new)), max_size=3)):
        changes[chunk] = "removed"
    return old, tuple(new), changes


def cells_of(plan, changes):
    found = {}
    for chunk, kind in changes.items():
        cell = plan.cell(chunk)
        if cell is not None:
            found.setdefault(cell, []).append(kind)
    return found


@given(changed_grids())
def test_each_change_is_in_a_marked_cell_and_no_other_is_marked(case):
    old, new, changes = case
    plan = lay_out(old, new)
    marks = mark(plan, walk_over(changes))
    wanted = cells_of(plan, changes)
    assert marks.counted
    assert {cell: dict(sorted(found.items())) for cell, found in marks.cells.items()} == {
        cell: {kind: listed.count(kind) for kind in sorted(set(listed))}
        for cell, listed in wanted.items()
    }
    assert sum(marks.counts.values()) == len(changes)
    assert marks.outside == len(changes) - sum(map(len, wanted.values()))
    # A cell is where its box is: all chunks of the box, and no other, fall into it.
    for cell in wanted:
        assert {plan.cell(chunk) for chunk in list(product(*plan.box(cell)))[:50]} == {cell}
    assert read_back(draw(plan, marks, "")) == {cell: set(found) for cell, found in wanted.items()}


@given(changed_grids(), st.integers(1, 40))
def test_cells_are_found_also_without_counting_all(case, limit):
    old, new, changes = case
    plan = lay_out(old, new)
    marks = mark(plan, walk_over(changes), limit)
    wanted = cells_of(plan, changes)
    assert marks.counted == (len(changes) <= limit)
    assert marks.stopped is None
    assert set(marks.cells) == set(wanted)
    for cell, found in marks.cells.items():
        assert set(found) <= set(wanted[cell])


@pytest.mark.parametrize("seed", range(60))
def test_cells_of_larger_grids_are_found_without_counting_all(seed):
    generator = random.Random(seed)
    size = [generator.choice([1, 2, 5, 20, 50, 300]) for _ in range(generator.randint(1, 4))]
    while math.prod(size) > 20_000:
        size.pop(generator.randrange(len(size)))
    whole = list(product(*map(range, size)))
    some = generator.sample(whole, math.ceil(len(whole) * generator.choice([0.003, 0.05, 0.5])))
    kept = [chunk for chunk in some if generator.random() < 0.5 or chunk[-1] == 0]
    changes = dict.fromkeys(kept, "added")
    plan = lay_out(size, None)
    marks = mark(plan, walk_over(changes), generator.choice([1, 10, 100]))
    assert marks.stopped is None
    assert set(marks.cells) == set(cells_of(plan, changes))


@given(changed_grids(), st.integers(0, 20))
def test_a_search_that_is_cut_short_says_so(case, steps):
    old, new, changes = case
    plan = lay_out(old, new)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunkmap, "MAX_STEPS", steps)
        marks = mark(plan, walk_over(changes), 5)
    wanted = cells_of(plan, changes)
    assert set(marks.cells) <= set(wanted)
    missed = set(wanted) - set(marks.cells)
    assert marks.stopped is not None or not missed
    for chunk in changes:
        if plan.cell(chunk) in missed:
            assert chunk > marks.stopped


@pytest.mark.parametrize(
    "size", [(1000, 1000), (10**6,), (100, 10**4), (10**4, 100), (50, 80, 250)]
)
def test_a_million_changes_cost_little(size):
    looked_at = count()

    def walk(start):
        first = 0
        for place, length in zip(start or (0,) * len(size), size, strict=True):
            first = first * length + place
        for number in range(first, math.prod(size)):
            next(looked_at)
            chunk = []
            for length in reversed(size):
                number, place = divmod(number, length)
                chunk.append(place)
            yield tuple(reversed(chunk)), "changed"

    plan = lay_out(size, size)
    marks = mark(plan, walk)
    assert len(marks.cells) == plan.rows * plan.columns
    assert marks.stopped is None
    assert next(looked_at) <= chunkmap.MAX_COUNTED + chunkmap.MAX_STEPS + 1
    assert len(draw(plan, marks, "")) < 100_000


def test_changes_that_never_fill_a_line_are_looked_at_up_to_a_bound():
    looked_at = count()

    def walk(start):
        for number in range(start[0] if start else 0, 10**6):
            next(looked_at)
            yield (number, 0), "changed"

    marks = mark(lay_out((10**6, 2), (10**6, 2)), walk)
    assert next(looked_at) <= chunkmap.MAX_COUNTED + chunkmap.MAX_STEPS + 2
    assert marks.stopped is not None
    assert "not all was looked at after chunk" in "".join(
        chunkmap.captions(lay_out((10**6, 2), (10**6, 2)), marks)
    )


# ── the picture ──────────────────────────────────────────────────────────────────────────────────


def areas(svg):
    """Read which areas a picture has, with their paths."""
    nodes = ET.fromstring(svg).iter("path")
    return {
        node.get("class").removeprefix("vz-area-"): node.get("d")
        for node in nodes
        if "area" in node.get("class")
    }


def test_what_a_resize_adds_and_takes_off_is_drawn():
    grown = areas(draw(lay_out((3, 4), (5, 4)), Marks(), ""))
    assert grown == {"both": "M0 0H48V36H0Z", "added": "M0 0H48V60H0ZM0 0V36H48V0Z"}
    shrunk = areas(draw(lay_out((3, 4), (3, 2)), Marks(), ""))
    assert shrunk == {"both": "M0 0H24V36H0Z", "removed": "M0 0H48V36H0ZM0 0V36H24V0Z"}
    assert set(areas(draw(lay_out((3, 4), (4, 3)), Marks(), ""))) == {"both", "added", "removed"}
    assert areas(draw(lay_out(None, (3, 4)), Marks(), "")) == {"added": "M0 0H48V36H0Z"}
    assert areas(draw(lay_out((), None), Marks(), "")) == {"removed": "M0 0H12V12H0Z"}
    assert areas(draw(lay_out((3, 4), (3, 4)), Marks(), "")) == {"both": "M0 0H48V36H0Z"}


def test_areas_end_where_the_array_does_within_a_cell():
    # 1000 chunks in 63 cells of 16: the last one is half full.
    svg = draw(lay_out((1000,), (1000,)), Marks(), "")
    assert areas(svg) == {"both": "M0 0H750V12H0Z"}
    marks = mark(lay_out((1000,), (1000,)), walk_over({(999,): "added"}))
    (rect,) = ET.fromstring(draw(lay_out((1000,), (1000,)), marks, "")).iter("rect")
    assert float(rect.get("x")) + float(rect.get("width")) <= 750


def test_a_cell_tells_its_chunks():
    changes = {(3, 0, 4): "changed", (3, 1, 5): "added", (0, 0, 0): "removed"}
    plan = lay_out((40, 2, 64), (40, 2, 64))
    svg = draw(plan, mark(plan, walk_over(changes)), "two")
    titles = {node.text for node in ET.fromstring(svg).iter("title")}
    assert titles == {
        "two",
        "chunks [3:6, :, 4:6]: 1 changed, 1 added",
        "chunks [0:3, :, 0:2]: 1 removed",
    }


def test_the_caption_says_what_the_axes_are():
    plan = lay_out((31, 3, 1, 40), (59, 3, 1, 40))
    assert list(chunkmap.captions(plan, Marks())) == [
        "axis 0 down: 31 → 59 chunks",
        "axis 3 across: 40 chunks",
        "a cell stands for 4 by 2 chunks",
        "axis 1 (3 chunks) folded into it",
    ]
    marks = Marks(outside=2, counted=False)
    assert list(chunkmap.captions(lay_out((5,), (5,)), marks)) == [
        "axis 0 across: 5 chunks",
        "2 chunks outside of the shape not drawn",
        "a cell has the colour of the first change that was found in it",
    ]
    assert (
        chunkmap.describe(plan, Marks(cells={(0, 0): {"added": 1}})) == "1 cell of 15 by 20 marked"
    )


def test_kinds_are_told_apart_without_colours():
    plan = lay_out((4,), (4,))
    marks = mark(plan, walk_over({(0,): "added", (1,): "removed", (2,): "changed"}))
    signs = re.search(r'd="([^"]*)" class="vz-glyphs"', draw(plan, marks, ""))[1]
    assert signs == "M3 6h6M6 3v6M15 6h6"
