"""Two writers of one chunk: each gets the elements that it changed, whatever the array is like."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from zarr.dtype import VariableLengthBytes

import vzarr
from tests.support import assert_sound
from vzarr import ConflictError, FormatError, InvalidInputError, Repository

PIPELINES = {"batched": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
if hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
    PIPELINES["fused"] = "zarr.core.codec_pipeline.FusedCodecPipeline"
HAS_RECTILINEAR = zarr.config.get("array.rectilinear_chunks", None) is not None
# zarr 3.1 cannot write shards of raw bytes and structures.
SHARDS_VOID = "fused" in PIPELINES
# Nor can it write values of variable length that are transposed: it reads them back elsewhere.
TRANSPOSES_VARIABLE = "fused" in PIPELINES

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning"),
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3"),
]
parametrized_by_pipeline = pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)


# ── a property ───────────────────────────────────────────────────────────────────────────────────

# A few values of each dtype: so equal ones meet.
DTYPES: dict[str, tuple[Any, list[Any]]] = {
    "i1": ("i1", [0, 1, -128]),
    "u2": ("<u2", [0, 1, 65535]),
    "i4": (">i4", [0, 1, -5]),
    "u8": ("u8", [0, 1, 2**64 - 1]),
    "f2": ("f2", [0, 1.5, np.nan]),
    "f4": ("f4", [0, -np.inf, np.nan]),
    "f8": ("<f8", [0, -0.0, 1e300, np.nan]),
    "c8": ("c8", [0, complex(0, np.nan), complex(1, np.nan)]),
    "c16": ("c16", [0, 1j, complex(np.nan, 0)]),
    "bool": ("bool", [False, True]),
    "M8": ("M8[ns]", [np.datetime64("NaT", "ns"), np.datetime64(0, "ns"), np.datetime64(7, "ns")]),
    "m8": ("m8[s]", [np.timedelta64("NaT", "s"), np.timedelta64(0, "s"), np.timedelta64(1, "s")]),
    "S": ("S3", [b"", b"a", b"abc"]),
    "U": ("<U2", ["", "é", "ab"]),
    "raw": ("V3", [np.void(b"\0\0\0"), np.void(b"a\0b"), np.void(b"abc")]),
    "text": (str, ["", "é", "a longer text"]),
    "bytes": (VariableLengthBytes(), [b"", b"a", b"\0\0"]),
    "structure": (
        np.dtype([("x", "<i4"), ("y", "<f8")]),
        [(0, 0.0), (1, np.nan), (1, 2.0)],
    ),
}
V2_COMPRESSORS = [None, numcodecs.Zstd(), numcodecs.Blosc()]
V3_COMPRESSORS = [None, zarr.codecs.ZstdCodec(), zarr.codecs.GzipCodec(), zarr.codecs.Crc32cCodec()]


def meaning(value: Any) -> Any:
    """Make of an element what is equal to that of another one if the two are one value."""
    if isinstance(value, np.void) and value.dtype.names:
        return tuple(meaning(value[name]) for name in value.dtype.names)
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return int(value.astype("i8"))
    if isinstance(value, (complex, np.complexfloating)):
        return meaning(float(value.real)), meaning(float(value.imag))
    if isinstance(value, (float, np.floating)):
        return "NaN" if value != value else float(value)
    if isinstance(value, np.void):
        return value.tobytes()
    return value.item() if isinstance(value, np.generic) else value


def meanings(array: np.ndarray) -> list[Any]:
    # As objects, variable strings and bytes are what they are.
    return [meaning(array[index]) for index in np.ndindex(array.shape)]


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments for zarr.create_array."""
    name = draw(st.sampled_from(sorted(DTYPES)))
    # zarr cannot write variable bytes into an array of no dimension.
    ndim = draw(st.integers(1 if name == "bytes" else 0, 3))
    chunks = tuple(draw(st.integers(1, 4)) for _ in range(ndim))
    shape = tuple(draw(st.integers(1, 7 if ndim < 3 else 4)) for _ in range(ndim))
    zarr_format = draw(st.sampled_from([2, 3]))
    arguments: dict[str, Any] = {
        "dtype": DTYPES[name][0],
        "shape": shape,
        "chunks": chunks,
        "zarr_format": zarr_format,
    }
    if zarr_format == 2:
        arguments["compressors"] = draw(st.sampled_from(V2_COMPRESSORS))
        arguments["order"] = draw(st.sampled_from("CF"))
        if name in ("u2", "i4", "u8") and draw(st.booleans()):
            arguments["filters"] = [numcodecs.Delta(dtype=DTYPES[name][0])]
    else:
        arguments["compressors"] = draw(st.sampled_from(V3_COMPRESSORS))
        transposes = name not in ("text", "bytes") or TRANSPOSES_VARIABLE
        if ndim > 1 and transposes and draw(st.booleans()):
            axes = draw(st.permutations(range(ndim)))
            arguments["filters"] = [zarr.codecs.TransposeCodec(order=tuple(axes))]
        if ndim and (name not in ("raw", "structure") or SHARDS_VOID) and draw(st.booleans()):
            arguments["shards"] = tuple(length * draw(st.integers(1, 2)) for length in chunks)
    if draw(st.booleans()):
        value = draw(st.sampled_from(DTYPES[name][1]))
        # A chunk of complex NaNs, each another, zarr takes for one of its fill value NaN.
        if name not in ("raw", "structure") and not (name[0] == "c" and np.isnan(value)):
            arguments["fill_value"] = value
    return arguments | {"name": name}


@st.composite
def edits(draw: st.DrawFn, name: str, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], Any]]:
    values = st.sampled_from(DTYPES[name][1])
    indexes = st.tuples(*(st.integers(0, length - 1) for length in shape))
    return draw(st.lists(st.tuples(indexes, values), min_size=1, max_size=10))


RESOLUTIONS = {
    "ours": "ours",
    "theirs": "theirs",
    "call base": lambda _: "base",
    "call ours": lambda _: "ours",
    "call theirs": lambda _: "theirs",
    "values": lambda conflict: conflict.decode("theirs"),
}


@settings(max_examples=150, deadline=None)
@given(arguments=arrays(), data=st.data(), pipeline=st.sampled_from(sorted(PIPELINES.values())))
def test_each_side_gets_what_it_changed(arguments, data, pipeline):
    name, shape = arguments.pop("name"), arguments["shape"]
    strategy = data.draw(st.sampled_from([*RESOLUTIONS]))
    before, our_edits, their_edits = (data.draw(edits(name, shape)) for _ in range(3))
    with (
        tempfile.TemporaryDirectory() as directory,
        zarr.config.set({"codec_pipeline.path": pipeline}),
        vzarr.open(Path(directory) / "x.vzarr", durability="normal") as repo,
    ):
        with repo.transaction("main", "make it") as store:
            made = zarr.create_array(store, name="a", **arguments)
            write(made, before)
            stored = made.shards or made.chunks
        ours, theirs = repo.session("main"), repo.session("main")
        views = [zarr.open_array(session.store, path="a") for session in (ours, theirs)]
        base = values(views[0])
        write(views[0], our_edits)
        write(views[1], their_edits)
        sides = [base, *map(values, views)]
        assume(ours.has_changes)
        if theirs.has_changes:
            theirs.commit("theirs")

        overlap = [i for i, (b, o, t) in sides_of(sides) if o != b and t != b and o != t]
        boxes = boxes_of(overlap, stored)
        event("overlap" if boxes else "no overlap")
        if boxes:
            with pytest.raises(ConflictError) as error:
                ours.commit("ours")
            conflicts = {found.coordinates: found for found in error.value.conflicts}
            assert {where: found.region for where, found in conflicts.items()} == boxes
            assert len(conflicts) == len(error.value.conflicts)
            for found in conflicts.values():
                assert (found.path, found.kind, found.reason) == ("a", "chunk", None)
                for side, whole in zip(("base", "ours", "theirs"), sides, strict=True):
                    assert meanings(found.decode(side)) == meanings(whole[(*found.region, ...)])
        ours.commit("ours", merge=RESOLUTIONS[strategy] if boxes else "fail")

        merged = meanings(values(zarr.open_array(repo.session("main").store, path="a")))
        for number, (index, (b, o, t)) in enumerate(sides_of(sides)):
            expected = t if o == b else o
            if strategy == "values" and is_inside(index, boxes, stored):
                # They replace all of the box, also what only one side changed there.
                expected = t
            elif index in overlap:
                expected = {"base": b, "ours": o, "theirs": t}[strategy.removeprefix("call ")]
            assert merged[number] == expected, index
        path = repo.path
        repo.close()
        assert_sound(path)


def write(array: zarr.Array, changes: list[tuple[tuple[int, ...], Any]]) -> None:
    for index, value in changes:
        # An array of one element: zarr does not take every scalar.
        element = np.empty((1,) * array.ndim, dtype=array.dtype)
        element[...] = value
        array[tuple(slice(i, i + 1) for i in index)] = element


def values(array: zarr.Array) -> np.ndarray:
    found = array[...]
    if isinstance(found, np.ndarray) and found.shape == array.shape:
        return found
    whole = np.empty((), dtype=array.dtype)
    whole[()] = found
    return whole


def sides_of(sides: list[np.ndarray]) -> list[tuple[tuple[int, ...], tuple[Any, Any, Any]]]:
    return list(
        zip(np.ndindex(sides[0].shape), zip(*map(meanings, sides), strict=True), strict=True)
    )


def boxes_of(indexes: list[tuple[int, ...]], chunks: tuple[int, ...]) -> dict[Any, Any]:
    boxes = {}

    def key(index: tuple[int, ...]) -> tuple[int, ...]:
        return chunk_of(index, chunks)

    for where, group in itertools.groupby(sorted(indexes, key=key), key):
        axes = list(zip(*group, strict=True))
        boxes[where] = tuple(slice(min(axis), max(axis) + 1) for axis in axes)
    return boxes


def chunk_of(index: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i // length for i, length in zip(index, chunks, strict=True))


def is_inside(index: tuple[int, ...], boxes: dict[Any, Any], chunks: tuple[int, ...]) -> bool:
    box = boxes.get(chunk_of(index, chunks))
    return box is not None and all(
        part.start <= i < part.stop for i, part in zip(index, box, strict=True)
    )


# ── single cases ─────────────────────────────────────────────────────────────────────────────────


def make(repo: Repository, **arguments: Any) -> None:
    with repo.transaction("main", "make it") as store:
        zarr.create_array(store, name="a", **arguments)


def two(repo: Repository) -> tuple[Any, Any, zarr.Array, zarr.Array]:
    """Two sessions, and the array in each."""
    ours, theirs = repo.session("main"), repo.session("main")
    views = [zarr.open_array(session.store, path="a") for session in (ours, theirs)]
    return ours, theirs, *views


def now(repo: Repository) -> np.ndarray:
    return zarr.open_array(repo.store("main"), path="a", mode="r")[...]


def test_a_merged_chunk_goes_on_merging(repo):
    make(repo, data=np.zeros(4, "i4"), chunks=(4,))
    sessions = [repo.session("main") for _ in range(4)]
    for number, session in enumerate(sessions):
        zarr.open_array(session.store, path="a")[number] = number + 1
    for session in sessions:
        session.commit("mine")
    assert_array_equal(now(repo), [1, 2, 3, 4])


def test_a_session_sees_the_merged_values_after_its_commit(repo):
    make(repo, data=np.zeros(4, "i4"), chunks=(4,))
    ours, theirs, mine, other = two(repo)
    mine[0], other[1] = 1, 2
    theirs.commit("theirs")
    ours.commit("ours")
    assert_array_equal(mine[:], [1, 2, 0, 0])
    mine[2] = 3
    ours.commit("ours again")
    assert_array_equal(now(repo), [1, 2, 3, 0])


def test_a_chunk_that_merges_to_nothing_but_fill_value_is_not_stored(repo):
    make(repo, data=np.array([1, 1], "i4"), chunks=(2,))
    ours, theirs, mine, other = two(repo)
    mine[0], other[1] = 0, 0
    theirs.commit("theirs")
    ours.commit("ours")
    assert repo.session("main").get("a/c/0") is None
    assert_array_equal(now(repo), [0, 0])


def test_a_chunk_that_one_side_deleted_is_one_of_fill_value(repo):
    make(repo, data=np.array([1, 0, 0], "i4"), chunks=(3,))
    ours, theirs, mine, other = two(repo)
    mine[0] = 0
    assert ours.get("a/c/0") is None
    other[2] = 5
    theirs.commit("theirs")
    ours.commit("ours")
    assert_array_equal(now(repo), [0, 0, 5])


def test_both_may_make_the_same_array_and_fill_it(repo):
    ours, theirs = repo.session("main"), repo.session("main")
    for session, part in ((ours, slice(0, 2)), (theirs, slice(2, 4))):
        array = zarr.create_array(session.store, name="a", shape=(4,), chunks=(4,), dtype="i4")
        array[part] = 7
    theirs.commit("theirs")
    ours.commit("ours")
    assert_array_equal(now(repo), [7] * 4)


class TestResized:
    def test_one_side_grew_within_the_chunk(self, repo):
        make(repo, data=np.arange(1, 6), chunks=(4,))
        ours, theirs, mine, other = two(repo)
        mine.resize((7,))
        mine[5:] = [60, 70]
        other[4] = 50
        theirs.commit("theirs")
        ours.commit("ours")
        assert_array_equal(now(repo), [1, 2, 3, 4, 50, 60, 70])

    def test_each_side_grew_another_axis(self, repo):
        make(repo, data=np.ones((3, 3)), chunks=(8, 8), fill_value=np.nan)
        ours, theirs, mine, other = two(repo)
        mine.append([[2, 2, 2]], axis=0)
        other.append([[3], [3], [3]], axis=1)
        theirs.commit("theirs")
        ours.commit("ours")
        expected = [[1, 1, 1, 3], [1, 1, 1, 3], [1, 1, 1, 3], [2, 2, 2, np.nan]]
        assert_array_equal(now(repo), expected)

    def test_one_side_shrank(self, repo):
        make(repo, data=np.arange(1, 9), chunks=(8,))
        ours, theirs, mine, other = two(repo)
        mine.resize((4,))
        mine[0] = 10
        other[1], other[6] = 20, 70
        theirs.commit("theirs")
        ours.commit("ours")
        assert_array_equal(now(repo), [10, 20, 3, 4])

    def test_a_chunk_outside_of_the_merged_shape_is_a_conflict(self, repo):
        make(repo, data=np.arange(1, 9), chunks=(4,))
        ours, theirs, mine, other = two(repo)
        other.resize((4,))
        mine[5] = 0
        theirs.commit("theirs")
        with pytest.raises(ConflictError) as error:
            ours.commit("ours")
        (conflict,) = error.value.conflicts
        assert conflict.region == (slice(4, 8),)
        assert "outside" in conflict.reason

    def test_what_both_appended_is_a_conflict_of_region_and_shape(self, repo):
        make(repo, data=np.arange(5), chunks=(8,))
        ours, theirs, mine, other = two(repo)
        mine.append([7])
        other.append([8])
        theirs.commit("theirs")
        with pytest.raises(ConflictError) as error:
            ours.commit("ours")
        chunk, document = sorted(error.value.conflicts, key=lambda conflict: conflict.kind)
        assert chunk.region == (slice(5, 6),)
        assert document.document == "zarr.json"
        assert document.reason == "both sides grew axis 0 from 5 to 6"

    @pytest.mark.parametrize("zarr_format", [2, 3])
    @pytest.mark.parametrize("rows", [[0, 0], [7, 7]])
    def test_equal_rows_that_both_appended_are_a_conflict(self, repo, zarr_format, rows):
        make(repo, data=np.arange(4), chunks=(2,), zarr_format=zarr_format)
        ours, theirs, mine, other = two(repo)
        mine.append(rows)
        other.append(rows)
        theirs.commit("theirs")
        with pytest.raises(ConflictError) as error:
            ours.commit("ours")
        (document,) = error.value.conflicts
        assert document.reason == "both sides grew axis 0 from 4 to 6"
        # A function accepts one of them, or both sides' rows one after the other.
        ours.commit("ours", merge=lambda _: "theirs")
        assert_array_equal(now(repo), [0, 1, 2, 3, *rows])

    def test_rows_that_both_appended_are_a_conflict_even_if_they_share_no_chunk(self, repo):
        make(repo, data=np.ones((3, 4), "u1"), chunks=(1, 2))
        ours, theirs, mine, other = two(repo)
        mine.append([[1, 1, 0, 0]])
        other.append([[0, 0, 2, 2]])
        theirs.commit("theirs")
        with pytest.raises(ConflictError, match="both sides grew axis 0 from 3 to 4"):
            ours.commit("ours")

    def test_one_side_grew_it_as_far_as_the_other_that_filled_it(self, repo):
        make(repo, data=np.arange(4), chunks=(2,))
        ours, theirs, mine, other = two(repo)
        mine.resize((8,))
        other.resize((8,))
        other[4:] = 5
        theirs.commit("theirs")
        ours.commit("ours", allow_empty=True)
        assert_array_equal(now(repo), [0, 1, 2, 3, 5, 5, 5, 5])

    def test_both_grew_it_and_filled_different_chunks(self, repo):
        make(repo, data=np.arange(4), chunks=(2,))
        ours, theirs, mine, other = two(repo)
        for array, part in ((mine, slice(4, 6)), (other, slice(6, 8))):
            array.resize((8,))
            array[part] = 5
        theirs.commit("theirs")
        ours.commit("ours")
        assert_array_equal(now(repo), [0, 1, 2, 3, 5, 5, 5, 5])


@pytest.mark.skipif(not HAS_RECTILINEAR, reason="this zarr has no rectilinear grids")
def test_rectilinear_chunks(repo):
    with zarr.config.set({"array.rectilinear_chunks": True}):
        make(repo, shape=(10, 9), chunks=[[2, 5, 3], [4, 5]], dtype="i4")
        ours, theirs, mine, other = two(repo)
        mine[3:6, 4:], other[5:7, 4:] = 1, 1
        mine[9, 8], other[9, 7] = 2, 3
        mine[4, 5] = 4
        other[4, 5] = 5
        theirs.commit("theirs")
        with pytest.raises(ConflictError) as error:
            ours.commit("ours")
        (conflict,) = error.value.conflicts
        assert conflict.region == (slice(4, 5), slice(5, 6))
        ours.commit("ours", merge="theirs")
        expected = np.zeros((10, 9), "i4")
        expected[3:7, 4:] = 1
        expected[9, 8], expected[9, 7], expected[4, 5] = 2, 3, 5
        assert_array_equal(now(repo), expected)


def test_a_chunk_of_a_huge_grid(repo):
    make(repo, shape=(2**32, 2**32), chunks=(10, 10), dtype="u1")
    ours, theirs, mine, other = two(repo)
    mine[2**31, 2**31], other[2**31, 2**31 + 1] = 1, 2
    theirs.commit("theirs")
    ours.commit("ours")
    found = zarr.open_array(repo.store("main"), path="a", mode="r")
    assert_array_equal(found[2**31, 2**31 : 2**31 + 3], [1, 2, 0])


def test_a_shard_much_larger_than_the_array(repo):
    make(repo, shape=(3, 3), chunks=(100, 100), shards=(10**4, 10**4), dtype="u1")
    ours, theirs, mine, other = two(repo)
    mine[0], other[1] = 1, 2
    theirs.commit("theirs")
    ours.commit("ours")
    assert_array_equal(now(repo), [[1] * 3, [2] * 3, [0] * 3])


def test_zeros_of_both_signs_conflict_with_nothing_and_are_kept(repo):
    make(repo, data=np.array([0.0, 0.0, -0.0, 1.0]), chunks=(4,), fill_value=9.0)
    ours, theirs, mine, other = two(repo)
    mine[:] = [-0.0, -0.0, 0.0, 5.0]
    other[:] = [3.0, 0.0, -0.0, 1.0]
    theirs.commit("theirs")
    ours.commit("ours")
    merged = now(repo)
    assert_array_equal(merged, [3.0, 0.0, 0.0, 5.0])
    assert_array_equal(np.signbit(merged), [False, True, False, False])


# ── what does not decode ─────────────────────────────────────────────────────────────────────────


class TestUndecodable:
    @pytest.fixture(params=["damaged", "unknown codec"])
    def conflict(self, request, repo) -> Any:
        make(repo, data=np.zeros(4, "u1"), chunks=(4,), compressors=None)
        if request.param == "unknown codec":
            with repo.transaction("main", "from the future") as store:
                document = json.loads(store.session.get("a/zarr.json"))
                document["codecs"] = [{"name": "from-the-future"}]
                store.session.set("a/zarr.json", json.dumps(document).encode())
        ours, theirs = repo.session("main"), repo.session("main")
        ours.set("a/c/0", b"x" if request.param == "damaged" else b"abcd")
        theirs.set("a/c/0", b"efgh")
        theirs.commit("theirs")
        with pytest.raises(ConflictError) as error:
            ours.commit("ours")
        (conflict,) = error.value.conflicts
        assert conflict.reason in str(error.value)
        ours.commit("ours", merge="ours")
        assert repo.session("main").get("a/c/0") == conflict.ours
        return conflict

    def test_is_a_conflict_of_the_whole_chunk(self, conflict):
        assert conflict.kind == "chunk"
        assert conflict.region == (slice(0, 4),)
        assert conflict.theirs == b"efgh"
        assert conflict.reason.startswith("zarr cannot decode")
        with pytest.raises(FormatError, match="zarr cannot decode"):
            conflict.decode("ours")


def test_a_merge_that_its_codecs_would_change_is_a_conflict(repo):
    # Differences of 4 bytes: beside 2**24 there is no room for 0.5.
    filters = [numcodecs.Delta(dtype="f4")]
    make(repo, shape=(4,), chunks=(4,), dtype="f4", filters=filters, zarr_format=2)
    ours, theirs, mine, other = two(repo)
    mine[0], other[1] = 2**24, 0.5
    assert_array_equal(mine[:], [2**24, 0, 0, 0])
    theirs.commit("theirs")
    with pytest.raises(ConflictError, match="do not give back") as error:
        ours.commit("ours")
    (conflict,) = error.value.conflicts
    assert conflict.region == (slice(0, 4),)


def test_decode_wants_a_chunk_and_a_side(repo):
    make(repo, data=np.zeros(4, "u1"), chunks=(4,))
    ours, theirs, mine, other = two(repo)
    mine[1:3], other[2:] = 1, 2
    mine.attrs["k"], other.attrs["k"] = 1, 2
    theirs.commit("theirs")
    with pytest.raises(ConflictError) as error:
        ours.commit("ours")
    chunk, document = sorted(error.value.conflicts, key=lambda conflict: conflict.kind)
    assert [chunk.decode(side).tolist() for side in ("base", "ours", "theirs")] == [[0], [1], [2]]
    with pytest.raises(InvalidInputError, match="base, ours, theirs"):
        chunk.decode("mine")
    with pytest.raises(InvalidInputError, match="document"):
        document.decode("ours")


# ── anywhere ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def race(monkeypatch) -> Iterator[Any]:
    """Let another writer in before an autocommit store's commit, once it is armed."""
    armed: list[Any] = []
    autocommit = vzarr.Session.autocommit

    def behind(self: vzarr.Session, message: str, *, each: bool) -> None:
        if armed and message.endswith("a/c/0"):
            armed.pop()()
        autocommit(self, message, each=each)

    monkeypatch.setattr(vzarr.Session, "autocommit", behind)
    return armed


@parametrized_by_pipeline
@pytest.mark.parametrize("autocommit", [True, "each"])
@pytest.mark.parametrize("shards", [None, (6,)])
def test_an_autocommit_store_merges_inside_of_a_store_call(
    repo, race, pipeline, autocommit, shards
):
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        make(repo, data=np.zeros(6, "i4"), chunks=(2,), shards=shards)
        threads = []

        def other() -> None:
            threads.append(threading.current_thread().name)
            session = repo.session("main")
            with ThreadPoolExecutor(1) as pool:
                # Not through zarr: it may be on zarr's own thread that we are.
                pool.submit(session.set, "a/c/0", theirs).result()
            session.commit("theirs")

        scratch = repo.session("main")
        zarr.open_array(scratch.store, path="a")[1] = 2
        theirs = scratch.get("a/c/0")
        array = zarr.open_array(repo.store("main", autocommit=autocommit), path="a")
        race.append(other)
        array[0] = 1
        assert threads
        assert threads[0] != threading.current_thread().name
        assert_array_equal(now(repo)[:2], [1, 2])
        assert array[1] == 2


@parametrized_by_pipeline
async def test_a_commit_under_a_running_event_loop_merges(repo, pipeline):
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        make(repo, data=np.zeros((2, 6), "i4"), chunks=(1, 2), shards=(1, 6))
        ours, theirs, mine, other = two(repo)
        await mine.async_array.setitem((0, 0), 1)
        await other.async_array.setitem((0, 5), 2)
        theirs.commit("theirs")
        ours.commit("ours")
        await asyncio.sleep(0)
        assert_array_equal(now(repo)[0], [1, 0, 0, 0, 0, 2])


@parametrized_by_pipeline
def test_threads_that_write_single_elements_of_one_chunk_lose_none(repo, pipeline):
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        make(repo, data=np.zeros(12, "i4"), chunks=(12,))

        def write_one(number: int) -> None:
            with repo.transaction("main", f"{number}") as store:
                zarr.open_array(store, path="a")[number] = number + 1

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write_one, range(12)))
        assert_array_equal(now(repo), np.arange(12) + 1)


def test_two_spellings_of_zero_in_an_array_without_dimensions(repo):
    with repo.transaction("main", "base") as store:
        zarr.create_array(store, name="a", shape=(), dtype="f8")[...] = 1.0
    ours, theirs = repo.session("main"), repo.session("main")
    for session, value in ((ours, 0.0), (theirs, -0.0)):
        zarr.open_array(session.store, path="a")[...] = value
    theirs.commit("theirs")
    ours.commit("ours")
    merged = zarr.open_array(repo.store(), path="a", mode="r")[...]
    assert merged == 0.0
    assert not np.signbit(merged), "the lesser bits, whoever comes first"
