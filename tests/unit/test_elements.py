"""The elements of one chunk: what merges, what overlaps, and what is given back as it was."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from vzarr.elements import (
    Elements,
    Side,
    Sides,
    UndecodableError,
    _identical,
    _merge_values,
    same_values,
)
from vzarr.format import Blob, chunk_digest
from vzarr.metadata import node_metadata


def elements(shape: tuple[int, ...] = (10,), **changes: Any) -> Elements:
    """Chunks of four unsigned bytes, plain, in each dimension."""
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4] * len(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "bytes"}],
        "fill_value": 0,
        "attributes": {"left": "alone"},
        "dimension_names": ["x"] * len(shape),
    }
    data = json.dumps(document | changes).encode()
    blob = Blob(chunk_digest(data), len(data))
    node = node_metadata({"zarr.json": blob}, lambda _: data)
    assert node is not None
    assert node.array is not None
    return Elements({"zarr.json": data}, node.array)


def sides(*chunks: bytes | None, shapes: Any = ((10,), (10,), (10,))) -> Sides:
    return Sides(*(Side(chunk, shape) for chunk, shape in zip(chunks, shapes, strict=True)))


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "expected"),
    [
        (b"abcd", b"Abcd", b"abcD", b"AbcD"),
        (b"abcd", b"Abcd", b"AbcD", b"AbcD"),
        (b"abcd", b"ABcd", b"ABcd", b"ABcd"),
        (None, b"A\0\0\0", b"\0\0\0D", b"A\0\0D"),
        (b"abcd", b"\0bcd", None, None),
        (b"a\0\0\0", None, b"a\0\0D", b"\0\0\0D"),
        (b"ab\0\0", b"\0b\0\0", b"a\0\0\0", None),
        (None, b"\0\0\0\0", b"\0\0\0D", b"\0\0\0D"),
        (b"\0\0\0\0", None, b"\0\0\0D", b"\0\0\0D"),
    ],
)
def test_what_one_side_changed_is_taken(base, ours, theirs, expected):
    for prefer in (None, "ours", "theirs"):
        for pair in ((ours, theirs), (theirs, ours)):
            merged = elements().merge((0,), sides(base, *pair), prefer)
            assert merged.overlap is None
            assert merged.chunk == expected


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "overlap", "prefer_ours", "prefer_theirs"),
    [
        (b"abcd", b"Abcd", b"_bcd", (0, 1), b"Abcd", b"_bcd"),
        (b"abcd", b"AB_D", b"_Bcd", (0, 1), b"AB_D", b"_B_D"),
        (b"abcd", b"A_Cd", b"_b_D", (0, 3), b"A_CD", b"___D"),
        (b"abcd", None, b"abcD", (3, 4), None, b"\0\0\0D"),
        (None, b"abcd", b"a__d", (1, 3), b"abcd", b"a__d"),
    ],
)
def test_an_overlap_is_what_both_changed(base, ours, theirs, overlap, prefer_ours, prefer_theirs):
    # In the second chunk, elements 4 to 7.
    region = (slice(overlap[0] + 4, overlap[1] + 4),)
    chunks = sides(base, ours, theirs)
    assert elements().merge((1,), chunks, None).overlap == region
    for prefer, expected in (("ours", prefer_ours), ("theirs", prefer_theirs)):
        merged = elements().merge((1,), chunks, prefer)
        assert (merged.overlap, merged.chunk) == (region, expected)
    found = elements().decode((1,), chunks, region)
    for chunk, values in zip((base, ours, theirs), found, strict=True):
        assert values.tobytes() == (chunk or bytes(4))[overlap[0] : overlap[1]]


def test_the_bytes_of_a_side_come_back_as_they_were():
    # What lies outside of the shape, 10, is nobody's change, and is not lost either.
    ours, theirs = b"Ab..", b"ab,,"
    assert elements().merge((2,), sides(b"ab--", ours, theirs), None).chunk is ours
    assert elements().merge((2,), sides(b"ab--", b"aB..", b"Ab,,"), None).chunk == b"AB\0\0"


def test_outside_of_a_sides_shape_it_changed_nothing():
    shapes = ((9,), (10,), (9,))
    merged = elements().merge((2,), sides(b"a--.", b"aX..", b"A,,,", shapes=shapes), None)
    assert merged == type(merged)(b"AX\0\0", None)
    found = elements().decode(
        (2,), sides(b"a--.", b"aX..", b"A,,,", shapes=shapes), (slice(8, 10),)
    )
    assert [values.tobytes() for values in found] == [b"a\0", b"aX", b"A\0"]
    # An array that is new on both sides has no base.
    merged = elements().merge(
        (0,), sides(None, b"A\0\0\0", b"\0B\0\0", shapes=(None, (10,), (10,))), None
    )
    assert merged.chunk == b"AB\0\0"


def test_what_one_side_wrote_where_the_other_had_no_array_is_kept():
    # Ours cannot come back as it was: it would show what lay behind the end of its array.
    shapes = ((9,), (9,), (10,))
    merged = elements().merge((2,), sides(b"a-..", b"A-..", b"a\0..", shapes=shapes), None)
    assert merged.chunk == b"A\0\0\0"


def test_two_spellings_of_one_value_merge_to_the_same_bytes_either_way():
    base, ours, theirs = b"ab--", b"Ab.,", b"Ab,."
    for pair in ((ours, theirs), (theirs, ours)):
        assert elements().merge((2,), sides(base, *pair), None).chunk == theirs


def workers() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name.startswith("vzarr-elements")]


def test_a_thread_can_be_kept_for_many_chunks():
    chunks = sides(b"abcd", b"Abcd", b"abcD")
    with elements() as kept:
        for coordinates in ((0,), (1,), (0,)):
            assert kept.merge(coordinates, chunks, None).chunk == b"AbcD"
        # Another size, a chunk that is not there, and one that does not decode come between.
        assert kept.merge((2,), sides(b"ab..", b"Ab..", b"aB.."), None).chunk == b"AB\0\0"
        assert kept.merge((0,), sides(None, b"A\0\0\0", None), None).chunk == b"A\0\0\0"
        with pytest.raises(UndecodableError):
            kept.merge((0,), sides(b"abc", b"Abc", b"abC"), None)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: kept.merge((1,), chunks, None).chunk, range(20)))
        assert set(found) == {b"AbcD"}
        assert len(workers()) == 1
    assert workers() == []
    # It goes on without.
    assert kept.merge((0,), chunks, None).chunk == b"AbcD"
    assert workers() == []


def test_the_region_counts_from_the_arrays_corner():
    values = np.arange(16, dtype="u1").reshape(4, 4)
    ours, theirs = values.copy(), values.copy()
    ours[1:3, 2] = 100
    theirs[2, 1:] = 101
    shapes = ((9, 9),) * 3
    chunks = sides(*(side.tobytes() for side in (values, ours, theirs)), shapes=shapes)
    merged = elements((9, 9)).merge((1, 0), chunks, "theirs")
    assert merged.overlap == (slice(6, 7), slice(2, 3))
    ours[2, 1:] = 101
    assert merged.chunk == ours.tobytes()


@pytest.mark.parametrize(
    ("changes", "chunk", "reason"),
    [
        ({}, b"abc", "ValueError"),
        ({"codecs": [{"name": "unknown"}]}, b"abcd", "unknown"),
        ({"codecs": [{"name": "bytes"}, {"name": "zstd"}]}, b"abcd", "zarr cannot decode"),
        ({"codecs": [{"name": "bytes"}, {"name": "crc32c"}]}, b"abcd", "zarr cannot decode"),
        ({"data_type": "unknown"}, b"abcd", "unknown"),
        ({"storage_transformers": [{"name": "x"}]}, b"abcd", "zarr cannot decode"),
        ({"shape": [4]}, b"abcd", "outside of the merged shape"),
    ],
)
def test_what_zarr_cannot_decode_says_why(changes, chunk, reason):
    with pytest.raises(UndecodableError, match=reason):
        elements(**changes).merge((1,), sides(chunk, b"efgh", b"ijkl"), "ours")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.none() | st.binary(max_size=40), min_size=3, max_size=3), st.booleans())
def test_any_bytes_decode_or_are_undecodable(chunks, packed):
    codecs = [
        {"name": "bytes"},
        *([{"name": "gzip", "configuration": {"level": 1}}] if packed else []),
    ]
    with contextlib.suppress(UndecodableError):
        merged = elements(codecs=codecs).merge((0,), sides(*chunks), "ours")
        assert packed or merged.chunk is None or len(merged.chunk) == 4


# ── values ───────────────────────────────────────────────────────────────────────────────────────

NAN = np.array([0x7FF8000000000000, 0xFFF8000000000001], "u8").view("f8")
FIELDS = np.dtype([("x", "f8"), ("y", "u1", (2,))], align=True)


@pytest.mark.parametrize(
    ("one", "two", "equal", "identical"),
    [
        (np.array([0.0, 1.0, NAN[0]]), np.array([-0.0, 1.5, NAN[1]]), "101", "000"),
        (np.array([1, 2], "i8"), np.array([1, 3], "i8"), "10", "10"),
        (np.array([1 + 0j, complex(0, np.nan)]), np.array([1, complex(1, np.nan)]), "10", "10"),
        (np.array(["NaT", 1], "M8[s]"), np.array(["NaT", 2], "M8[s]"), "10", "10"),
        (np.array([b"ab", b""]), np.array([b"ab", b"b"]), "10", "10"),
        (np.array(["é", ""]), np.array(["é", "e"]), "10", "10"),
        (np.array(["é", ""], "T"), np.array(["é", "e"], "T"), "10", "10"),
        (np.array([b"a", None], object), np.array([b"a", b""], object), "10", "10"),
        (np.array([np.nan, 1], object), np.array([float("nan"), True], object), "10", "10"),
        (np.zeros(2, FIELDS), np.array([(-0.0, [0, 0]), (0, [0, 1])], FIELDS), "10", "00"),
        (np.array([True, False]), np.array([True, True]), "10", "10"),
    ],
)
def test_equal_and_identical(one, two, equal, identical):
    assert "".join("01"[same] for same in same_values(one, two).tolist()) == equal
    assert "".join("01"[same] for same in _identical(one, two).tolist()) == identical
    for compare in (same_values, _identical):
        assert compare(one, one.copy()).all()
        alone = one[:1].reshape(())
        same = compare(alone, alone.copy())
        assert same.shape == ()
        assert same


def test_ragged_objects_compare_by_value():
    one, two = np.empty(3, object), np.empty(3, object)
    one[:] = [np.array([1.0, np.nan]), np.array([1]), np.array([1])]
    two[:] = [np.array([1.0, np.nan]), np.array([1, 2]), [1]]
    assert same_values(one, two).tolist() == [True, False, False]


def test_other_bits_of_one_value_yield_to_another_value():
    base = np.array([0.0, 0.0, 0.0, NAN[0], NAN[0], 1.0, 1.0])
    ours = np.array([-0.0, 0.0, -0.0, NAN[1], NAN[1], 0.0, NAN[1]])
    theirs = np.array([0.0, -0.0, 1.0, 2.0, NAN[0], -0.0, NAN[0]])
    # The last two are new bits on both sides; of these, any that does not depend on the side.
    expected = np.array([-0.0, -0.0, 1.0, 2.0, NAN[1], 0.0, NAN[0]])
    for pair in ((ours, theirs), (theirs, ours)):
        merged, overlapping = _merge_values(base, *pair, None, may_agree=True)
        assert not overlapping.any()
        assert_array_equal(merged.view("u8"), expected.view("u8"))


def test_unless_sides_may_agree_what_both_changed_alike_overlaps():
    base, ours, theirs = (np.array(side) for side in ([0, 0, 0, 0], [1, 1, 0, 2], [1, 0, 1, 3]))
    for pair in ((ours, theirs), (theirs, ours)):
        merged, overlapping = _merge_values(base, *pair, "ours", may_agree=False)
        assert overlapping.tolist() == [True, False, False, True]
        assert merged.tolist() == [1, 1, 1, pair[0][3]]


def test_zarr_is_imported_when_something_is_decoded():
    code = (
        "import sys, vzarr, vzarr.merge; assert not {'zarr', 'vzarr.elements'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
