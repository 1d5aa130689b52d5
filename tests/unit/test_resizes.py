"""Resizes on both sides: what appends would lose is a conflict, what agrees is none."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from tests.unit.test_resolutions import Store
from vzarr.errors import InvalidInputError
from vzarr.format import EMPTY_ENTRY
from vzarr.hierarchy import Hierarchy
from vzarr.merge import Conflict, merge, racing_resizes

GRIDS = ["v3", "v2", "rectilinear"]
# Lengths of chunks along each axis, for all axes: regular ones, and ones that differ.
REGULAR, RAGGED = 2, (1, 3, 2, 2, 4)


def document(shape: Sequence[int], grid: str, **changes: Any) -> tuple[str, bytes]:
    """Name and bytes of the document of an array of unsigned bytes."""
    if grid == "v2":
        fields = {"zarr_format": 2, "dtype": "|u1", "chunks": [REGULAR] * len(shape), "order": "C"}
        fields |= {"shape": shape, "compressor": None, "filters": None, "fill_value": 0}
        return ".zarray", json.dumps(fields | changes).encode()
    chunk_grid = {
        "v3": {"name": "regular", "configuration": {"chunk_shape": [REGULAR] * len(shape)}},
        "rectilinear": {
            "name": "rectilinear",
            "configuration": {"kind": "inline", "chunk_shapes": [list(RAGGED)] * len(shape)},
        },
    }[grid]
    fields = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": chunk_grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes"}],
        "fill_value": 0,
    }
    return "zarr.json", json.dumps(fields | changes).encode()


class Writer:
    """A session on an array at ``a``, which writes as zarr does: no chunk of fill value alone."""

    def __init__(self, values: np.ndarray, grid: str) -> None:
        self.values = values.copy()
        self.grid = grid
        self.written: set[tuple[int, ...]] = set()
        self.deleted: set[tuple[int, ...]] = set()

    def resize(self, shape: Sequence[int]) -> None:
        kept = tuple(slice(0, min(pair)) for pair in zip(shape, self.values.shape, strict=True))
        before = set(self.chunks())
        values = np.zeros(shape, "u1")
        values[kept] = self.values[kept]
        self.values = values
        gone = before - set(self.chunks())
        self.written |= gone
        self.deleted |= gone

    def write(self, region: tuple[slice, ...], values: Any) -> None:
        self.values[region] = values
        touched = {
            at
            for at, part in self.chunks().items()
            if all(
                max(p.start, r.start) < min(p.stop, r.stop)
                for p, r in zip(part, region, strict=True)
            )
        }
        self.written |= touched
        self.deleted |= {at for at in touched if not self.values[self.chunks()[at]].any()}

    def append(self, rows: np.ndarray, axis: int) -> None:
        length = self.values.shape[axis]
        shape = list(self.values.shape)
        shape[axis] += rows.shape[axis]
        self.resize(shape)
        region = [slice(0, n) for n in shape]
        region[axis] = slice(length, shape[axis])
        self.write(tuple(region), rows)

    def chunks(self) -> dict[tuple[int, ...], tuple[slice, ...]]:
        axes = []
        for length in self.values.shape:
            lengths = RAGGED if self.grid == "rectilinear" else [REGULAR] * 9
            starts = [0, *itertools.accumulate(lengths)]
            parts = [slice(*pair) for pair in itertools.pairwise(starts)]
            axes.append([(n, part) for n, part in enumerate(parts) if part.start < length])
        return {
            tuple(n for n, _ in pairs): tuple(part for _, part in pairs)
            for pairs in itertools.product(*axes)
        }

    def files(self, **changes: Any) -> dict[str, bytes]:
        name, data = document(self.values.shape, self.grid, **changes)
        files = {f"a/{name}": data}
        for at, part in self.chunks().items():
            chunk = np.zeros([p.stop - p.start for p in part], "u1")
            inside = self.values[part]
            chunk[tuple(slice(0, n) for n in inside.shape)] = inside
            if chunk.any():
                numbers = list(map(str, at))
                key = ".".join(numbers) if self.grid == "v2" else "/".join(["c", *numbers])
                files[f"a/{key}"] = chunk.tobytes()
        return files


def race(
    base: Writer, ours: Writer, theirs: Writer, strategy: Any = "fail", **changes: Any
) -> list[Conflict]:
    store = Store()
    roots = [store.hierarchy(side.files(**changes)).root for side in (base, ours, theirs)]
    return racing_resizes(
        store,
        *roots,
        lambda path: path == "a" and bool(ours.written),
        lambda path: path == "a" and bool(ours.deleted),
        strategy,
    )


def three(shape: tuple[int, ...], grid: str = "v3") -> tuple[Writer, Writer, Writer]:
    base = Writer(np.ones(shape, "u1"), grid)
    return base, Writer(base.values, grid), Writer(base.values, grid)


# ── nothing is lost ──────────────────────────────────────────────────────────────────────────────

values = st.sampled_from([0, 0, 1, 2])


@st.composite
def shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], int]:
    """A shape, and one of its axes."""
    ndim = draw(st.integers(1, 3))
    return tuple(draw(st.integers(0, 4)) for _ in range(ndim)), draw(st.integers(0, ndim - 1))


@given(shapes(), st.integers(1, 4), st.sampled_from(GRIDS), st.data())
def test_two_appends_always_conflict(place, count, grid, data):
    shape, axis = place
    added = [*shape]
    added[axis] = count
    # A row without an element is nothing to lose, nor written.
    cells = math.prod(added)
    assume(cells)
    base, ours, theirs = three(shape, grid)
    for side in (ours, theirs):
        rows = data.draw(st.lists(values, min_size=cells, max_size=cells))
        side.append(np.array(rows, "u1").reshape(added), axis)
    conflicts = race(base, ours, theirs)
    (conflict,) = conflicts
    name = ".zarray" if grid == "v2" else "zarr.json"
    assert (conflict.path, conflict.kind, conflict.document) == ("a", "document", name)
    grown = shape[axis] + count
    assert conflict.reason == f"both sides grew axis {axis} from {shape[axis]} to {grown}"
    assert str(conflict) == f"a: {name} changed on both sides; {conflict.reason}"
    assert json.loads(conflict.base)["shape"] == [*shape]
    assert json.loads(conflict.theirs)["shape"][axis] == grown


@given(shapes(), st.integers(1, 4), st.sampled_from(GRIDS), st.data())
def test_what_both_filled_of_what_both_grew_is_put_together(place, count, grid, data):
    shape, axis = place
    base, ours, theirs = three(shape, grid)
    grown = [*shape]
    grown[axis] += count
    for side in (ours, theirs):
        side.resize(grown)
    # Chunks of the part that grew, each one's or nobody's.
    new = [part for part in ours.chunks().values() if part[axis].start >= shape[axis]]
    owners = [data.draw(st.sampled_from([ours, theirs, None])) for _ in new]
    for part, owner in zip(new, owners, strict=True):
        if owner is not None:
            clipped = tuple(
                slice(p.start, min(p.stop, n)) for p, n in zip(part, grown, strict=True)
            )
            owner.write(clipped, 1 if owner is ours else 2)
    conflicts = race(base, ours, theirs)
    both = ours in owners and theirs in owners
    event("both" if both else "ours" if ours in owners else "theirs or none")
    if ours in owners and not both:
        # For all we see, theirs may have appended nothing but the fill value.
        assert [one.reason for one in conflicts] == [
            f"both sides grew axis {axis} from {shape[axis]} to {grown[axis]}"
        ]
        return
    assert conflicts == []
    store = Store()
    sides = [store.hierarchy(side.files()).root for side in (base, ours, theirs)]
    merged, open_conflicts = merge(store, *sides)
    assert open_conflicts == []
    expected = Writer(np.maximum(ours.values, theirs.values), grid)
    hierarchy = Hierarchy(store, merged)
    found = {key: store.read(blob) for key, blob in hierarchy.items()}
    assert found == expected.files()


# ── the rule, case by case ───────────────────────────────────────────────────────────────────────


def grow(base: Writer, ours: Writer, theirs: Writer, shape: tuple[int, ...] = (8,)) -> None:
    for side in (ours, theirs):
        side.resize(shape)


LAST, BEFORE_LAST = (slice(6, 8),), (slice(4, 6),)


@pytest.mark.parametrize(
    ("our_writes", "their_writes", "conflicts"),
    [
        # Nothing, nothing at all, or nothing but what was there before.
        ([], [(LAST, 1)], False),
        ([], [], False),
        ([((slice(0, 2),), 7)], [(LAST, 1)], True),
        # As above, from the other side: it may have appended rows of the fill value.
        ([(LAST, 1)], [], True),
        ([(LAST, 1)], [((slice(0, 2),), 7)], True),
        # Different chunks; one chunk; and chunks of the fill value.
        ([(LAST, 1)], [(BEFORE_LAST, 1)], False),
        ([(LAST, 1)], [(LAST, 1)], True),
        ([(LAST, 0), (BEFORE_LAST, 1)], [(LAST, 1)], True),
        ([(LAST, 1)], [(LAST, 0), (BEFORE_LAST, 1)], False),
        ([(LAST, 0)], [(LAST, 0)], True),
    ],
)
def test_who_wrote_what(our_writes, their_writes, conflicts):
    base, ours, theirs = three((4,))
    grow(base, ours, theirs)
    for side, writes in ((ours, our_writes), (theirs, their_writes)):
        for region, value in writes:
            side.write(region, value)
    assert bool(race(base, ours, theirs)) == conflicts


def test_a_session_that_cannot_say_what_it_wrote_may_have_written():
    base, ours, theirs = three((4,))
    grow(base, ours, theirs)
    store = Store()
    roots = [store.hierarchy(side.files()).root for side in (base, ours, theirs)]
    assert racing_resizes(store, *roots)
    assert racing_resizes(store, *roots, lambda _: True)
    assert not racing_resizes(store, *roots, lambda _: False)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_last_chunk_is_part_of_what_grew(grid):
    """Ours puts into it what it holds anyway, so that it leaves no trace there."""
    # In all of these grids, elements 4 and 5 share a chunk.
    base, ours, theirs = three((5,), grid)
    ours.append(np.array([0, 1, 1, 1], "u1"), 0)
    theirs.append(np.array([2, 0, 0, 0], "u1"), 0)
    ours.deleted.clear()
    assert race(base, ours, theirs)


def test_both_shrank():
    for shape, shrunk, conflicts in (((8,), (4,), True), ((8,), (7,), False)):
        base, ours, theirs = three(shape)
        ours.resize(shrunk)
        theirs.resize(shrunk)
        found = race(base, ours, theirs)
        assert bool(found) == conflicts
        if not conflicts:
            # To take off part of a chunk is to write none; but to write elsewhere besides …
            ours.write((slice(0, 1),), 9)
            found = race(base, ours, theirs)
        reason = f"both sides shrank axis 0 from {shape[0]} to {shrunk[0]}"
        assert [one.reason for one in found] == [reason]


def test_axes_count_one_by_one():
    base, ours, theirs = three((4, 4, 4))
    ours.resize((6, 4, 5))
    theirs.resize((6, 5, 5))
    ours.write((slice(0, 6),) * 3, 1)
    theirs.write((slice(0, 6),) * 3, 1)
    (conflict,) = race(base, ours, theirs)
    assert conflict.reason == (
        "both sides grew axis 0 from 4 to 6; both sides grew axis 2 from 4 to 5"
    )
    theirs.resize((7, 5, 3))
    assert race(base, ours, theirs) == []


def test_only_chunks_of_the_part_that_grew_count():
    """Along any axis: both write all of what was there, and different parts of what was not."""
    for axis in range(2):
        base, ours, theirs = three((4, 4))
        shape = [4, 4]
        shape[axis] = 8
        for side, part in ((ours, slice(4, 6)), (theirs, slice(6, 8))):
            side.resize(shape)
            side.write((slice(0, 4), slice(0, 4)), 5)
            region = [slice(0, 4), slice(0, 4)]
            region[axis] = part
            side.write(tuple(region), 1)
        assert race(base, ours, theirs) == []


UNKNOWN_GRID = {"name": "of another kind"}
UNKNOWN_KEYS = {"name": "of another kind"}


def test_what_vzarr_does_not_understand_conflicts():
    base, ours, theirs = three((4,))
    grow(base, ours, theirs)
    assert race(base, ours, theirs, chunk_grid=UNKNOWN_GRID) == []
    # Where it cannot tell what is a chunk, nor can the session.
    assert race(base, ours, theirs, chunk_key_encoding=UNKNOWN_KEYS)
    ours.write(LAST, 1)
    theirs.write(BEFORE_LAST, 1)
    assert race(base, ours, theirs) == []
    assert race(base, ours, theirs, chunk_grid=UNKNOWN_GRID)


@pytest.mark.parametrize("length", [2**33, 2**33 + 1, 10**30])
def test_chunks_beyond_the_index_conflict(length):
    store = Store()
    documents = [dict([document((n,), "v3")]) for n in (4, length, length)]
    roots = [store.hierarchy(snapshot).root for snapshot in documents]
    conflicts = racing_resizes(store, *roots, lambda _: False)
    assert bool(conflicts) == (length > 2**33)


def test_an_array_that_both_reencoded_alike_conflicts_if_written():
    store = Store()
    before = dict([document((4,), "v3")])
    after = dict([document((8,), "v3", data_type="int8")])
    sides = [before, {**after, "c/2": b"\1\1"}, {**after, "c/3": b"\1\1"}]
    roots = [store.hierarchy(side).root for side in sides]
    for wrote in (True, False):
        found = racing_resizes(store, *roots, lambda _, it=wrote: it, lambda _: False)
        assert [one.path for one in found] == [""] * wrote


def test_arrays_are_found_wherever_they_are():
    store = Store()
    names = ["x", "g/x", "g/h/i/x", "kept", "ours", "theirs", "new"]
    small, large = (dict([document((n,), "v3")])["zarr.json"] for n in (4, 8))

    def root(grown: set[str], *, new: bool = True) -> Any:
        there = names if new else names[:-1]
        files = {f"{name}/zarr.json": large if name in grown else small for name in there}
        return store.hierarchy(files).root

    both = {"x", "g/x", "g/h/i/x", "new"}
    roots = root(set(), new=False), root({*both, "ours"}), root({*both, "theirs"})
    asked = []

    def wrote(path: str) -> bool:
        asked.append(path)
        return path != "g/x"

    found = racing_resizes(store, *roots, wrote)
    assert [one.path for one in found] == ["g/h/i/x", "x"]
    # What one side resized, or both made, is no question.
    assert set(asked) == {"x", "g/x", "g/h/i/x"}


def test_groups_and_arrays_of_other_dimensions_are_none_of_it():
    group = {"zarr.json": b'{"zarr_format": 3, "node_type": "group"}'}
    one, two = dict([document((4,), "v3")]), dict([document((4, 4), "v3")])
    grown = dict([document((8,), "v3")])
    store = Store()
    for sides in itertools.product([group, one, two, grown, {}], repeat=3):
        roots = [store.hierarchy(side).root for side in sides]
        found = racing_resizes(store, *roots)
        assert bool(found) == (sides == (one, grown, grown))


# ── strategies ───────────────────────────────────────────────────────────────────────────────────


def appended() -> tuple[Writer, Writer, Writer]:
    sides = three((4,))
    for side in sides[1:]:
        side.append(np.ones(1, "u1"), 0)
    return sides


@pytest.mark.parametrize("strategy", ["ours", "theirs"])
def test_a_side_accepts_the_merge(strategy):
    assert race(*appended(), strategy) == []
    assert race(*appended(), lambda _: strategy) == []


def test_a_function_is_asked():
    asked: list[Conflict] = []
    assert race(*appended(), asked.append) == asked
    assert asked[0].reason == "both sides grew axis 0 from 4 to 5"
    for answer in ("base", b"{}", {}, np.zeros(2), "mine"):
        with pytest.raises(InvalidInputError, match=r"a: zarr.json .*ours or theirs accepts"):
            race(*appended(), lambda _, answer=answer: answer)


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


class Counting(Store):
    def __init__(self) -> None:
        super().__init__()
        self.loads = 0

    def load(self, digest: bytes) -> Any:
        self.loads += 1
        return super().load(digest)


def test_cost_is_what_changed():
    store = Counting()
    before = Hierarchy(store, EMPTY_ENTRY)
    chunks = {f"a/c/{n}/{m}": store.blob(b"old!") for n in range(100) for m in range(100)}
    before = before.edit({"a/zarr.json": store.blob(document((200, 200), "v3")[1]), **chunks})
    grown = before.edit({"a/zarr.json": store.blob(document((202, 200), "v3")[1])})
    sides = [grown.edit({f"a/c/100/{n}": store.blob(b"new!")}) for n in range(2)]
    store.loads = 0
    roots = [side.root for side in (before, *sides)]
    assert racing_resizes(store, *roots, lambda _: True, lambda _: False) == []
    assert store.loads < 40
    assert racing_resizes(store, roots[0], roots[1], roots[1], lambda _: True, lambda _: False)
