"""What vzarr reads in zarr's documents: against zarr itself, and against nonsense."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.format.memory import Memory
from tests.format.reader import parse
from vzarr.errors import VzarrError
from vzarr.format import MAX_NDIM, Layout
from vzarr.metadata import ArrayMetadata, NodeMetadata, layout_of, node_metadata

Documents = Mapping[str, bytes | dict[str, Any]]


def read(documents: Documents) -> NodeMetadata | None:
    """Read the documents of a node; a dictionary stands for its JSON."""
    memory = Memory()
    blobs = {
        name: memory.blob(data if isinstance(data, bytes) else json.dumps(data).encode())
        for name, data in documents.items()
    }
    found = node_metadata(blobs, memory.read)
    layout = found.array.layout if found is not None and found.array is not None else None
    assert layout_of(blobs, memory.read) == layout
    return found


def read_array(documents: Documents) -> ArrayMetadata:
    found = read(documents)
    assert found is not None
    assert found.kind == "array"
    assert found.array is not None
    return found.array


def v3(shape: Any = (10,), **changes: Any) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4] * len(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {"units": "K"},
        **changes,
    }


def v2(shape: Any = (10,), **changes: Any) -> dict[str, Any]:
    return {
        "zarr_format": 2,
        "shape": shape,
        "chunks": [4] * len(shape),
        "dtype": "<f4",
        "compressor": None,
        "filters": None,
        "fill_value": 0,
        "order": "C",
        **changes,
    }


def rectilinear(*shapes: Any) -> dict[str, Any]:
    return {
        "name": "rectilinear",
        "configuration": {"kind": "inline", "chunk_shapes": list(shapes)},
    }


def slices(*bounds: tuple[int, int]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in bounds)


# ── as zarr writes them ──────────────────────────────────────────────────────────────────────────


def documents_of(**options: Any) -> tuple[dict[str, bytes], list[str], np.ndarray]:
    """Let zarr make an array of ones; gives its documents, its chunks' keys, and its data."""
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, dtype="i2", **options)
    array[...] = np.ones(options["shape"], "i2")
    stored = {key: value.to_bytes() for key, value in store._store_dict.items()}
    names = {"zarr.json", ".zarray", ".zattrs"}
    documents = {key: value for key, value in stored.items() if key in names}
    return documents, sorted(stored.keys() - names), np.asarray(array[...])


CHUNKED: list[dict[str, Any]] = [
    {"shape": (), "chunks": ()},
    {"shape": (10,), "chunks": (4,)},
    {"shape": (5, 7), "chunks": (2, 3)},
    {"shape": (2, 3, 4), "chunks": (1, 3, 2)},
]
SHARDED: list[dict[str, Any]] = [
    {"shape": (8, 6), "chunks": (2, 3), "shards": (4, 6)},
    {"shape": (9,), "chunks": (2,), "shards": (4,)},
]
ENCODINGS_3 = [(3, name, separator) for name in ("default", "v2") for separator in "/."]
ENCODINGS_2 = [(2, "v2", separator) for separator in "/."]


@pytest.mark.parametrize(
    ("options", "encoding"),
    [
        *itertools.product(CHUNKED, [*ENCODINGS_3, *ENCODINGS_2]),
        *itertools.product(SHARDED, ENCODINGS_3),
    ],
    ids=str,
)
def test_chunks_are_where_zarr_puts_them(
    options: dict[str, Any], encoding: tuple[int, str, str]
) -> None:
    """Every key of zarr is a chunk key, and the regions of all chunks tile the array."""
    version, name, separator = encoding
    documents, keys, data = documents_of(
        **options, zarr_format=version, chunk_key_encoding={"name": name, "separator": separator}
    )
    array = read_array(documents)
    assert array.shape == data.shape
    assert array.grid == options.get("shards", options["chunks"])
    assert array.layout is not None
    coordinates = [array.layout.parse(key) for key in keys]
    counts = np.zeros_like(data)
    for key, index_key in zip(keys, coordinates, strict=True):
        assert index_key is not None
        assert array.layout.spell(index_key) == key
        region = array.region(tuple(np.frombuffer(index_key, ">u4").tolist()))
        assert region is not None
        counts[region] += 1
    assert (counts == 1).all()


def test_attributes_and_groups() -> None:
    store = zarr.storage.MemoryStore()
    zarr.create_group(store, attributes={"a": 1})
    stored = {key: value.to_bytes() for key, value in store._store_dict.items()}
    assert read(stored) == NodeMetadata("group", {"a": 1})
    old = zarr.storage.MemoryStore()
    zarr.create_group(old, attributes={"a": 1}, zarr_format=2)
    stored = {key: value.to_bytes() for key, value in old._store_dict.items()}
    assert read(stored) == NodeMetadata("group", {"a": 1})


# ── layouts ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ({"name": "default", "configuration": {"separator": "/"}}, 0),
        ({"name": "default", "configuration": {"separator": "."}}, 1),
        ({"name": "v2", "configuration": {"separator": "."}}, 2),
        ({"name": "v2", "configuration": {"separator": "/"}}, 3),
        ({"name": "default"}, 0),
        ({"name": "v2"}, 2),
        ({"name": "v2", "configuration": None}, 2),
        ("default", 0),
        ("v2", 2),
        ("other", None),
        ({"name": "default", "configuration": {"separator": "-"}}, None),
        ({"name": "default", "configuration": {"separator": None}}, None),
        ({"name": "default", "configuration": {"separator": ["/"]}}, None),
        ({"name": ["default"]}, None),
        ({}, None),
        (None, None),
        (5, None),
    ],
)
def test_layouts_of_format_3(encoding: object, expected: int | None) -> None:
    for shape in ([], [10], [3, 4, 5]):
        layout = read_array({"zarr.json": v3(shape, chunk_key_encoding=encoding)}).layout
        assert layout == (None if expected is None else Layout(expected, len(shape)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 2),
        ({"dimension_separator": "."}, 2),
        ({"dimension_separator": "/"}, 3),
        ({"dimension_separator": "-"}, None),
        ({"dimension_separator": None}, None),
        ({"dimension_separator": []}, None),
    ],
)
def test_layouts_of_format_2(changes: dict[str, Any], expected: int | None) -> None:
    for shape in ([], [10], [3, 4, 5]):
        layout = read_array({".zarray": v2(shape, **changes)}).layout
        assert layout == (None if expected is None else Layout(expected, len(shape)))


def test_format_3_comes_before_format_2() -> None:
    group = {"zarr_format": 3, "node_type": "group"}
    assert read({"zarr.json": group, ".zarray": v2()}) == NodeMetadata("group", {})
    assert read_array({"zarr.json": v3(), ".zarray": v2()}).layout == Layout(0, 1)
    # What is no node of format 3 does not hide one of format 2.
    for nonsense in (b"{", b"[]", {"zarr_format": 4}, v3([-1]), {**v3(), "node_type": "other"}):
        assert read_array({"zarr.json": nonsense, ".zarray": v2()}).layout == Layout(2, 1)
    assert read({".zarray": v2(), ".zgroup": {"zarr_format": 2}}).kind == "array"


def test_attributes_of_format_2_are_a_document_of_their_own() -> None:
    found = read({".zarray": v2(), ".zattrs": {"units": "m"}})
    assert found is not None
    assert found.attributes == {"units": "m"}
    found = read({".zgroup": {"zarr_format": 2}, ".zattrs": b"nonsense"})
    assert found == NodeMetadata("group", {})


def test_so_many_dimensions_and_no_more() -> None:
    assert read_array({"zarr.json": v3([1] * MAX_NDIM)}).layout == Layout(0, MAX_NDIM)
    assert read({"zarr.json": v3([1] * (MAX_NDIM + 1))}) is None


@pytest.mark.parametrize(("levels", "understood"), [(99, True), (100, False), (5000, False)])
def test_depth_has_a_limit_that_does_not_depend_on_python(levels, understood):
    nested = b"[" * levels + b'"]{ \\" ["' + b"]" * levels
    document = b'{"zarr_format": 3, "node_type": "group", "attributes": {}, "x": %s}' % nested
    assert (read({"zarr.json": document}) is not None) == understood
    assert bool(parse(document)) == understood


# ── regions ──────────────────────────────────────────────────────────────────────────────────────


def test_regions_of_a_regular_grid() -> None:
    array = read_array({"zarr.json": v3([10, 5])})
    assert array.grid == (4, 4)
    assert array.region((0, 0)) == slices((0, 4), (0, 4))
    assert array.region((2, 1)) == slices((8, 10), (4, 5))
    assert array.region((3, 0)) is None
    assert array.region((0, 2)) is None
    assert array.region((0,)) is None
    assert array.region((2**32 - 1, 0)) is None


def test_regions_of_a_rectilinear_grid() -> None:
    array = read_array(
        {"zarr.json": v3([10, 10, 9], chunk_grid=rectilinear(3, [2, 5, 3], [[4, 3]]))}
    )
    assert array.grid == (3, (2, 5, 3), (4, 4, 4))
    assert array.region((3, 1, 2)) == slices((9, 10), (2, 7), (8, 9))
    assert array.region((0, 3, 0)) is None


def test_rectilinear_lengths_and_runs_may_be_mixed() -> None:
    array = read_array({"zarr.json": v3([12], chunk_grid=rectilinear([1, [2, 3], 5]))})
    assert array.grid == ((1, 2, 2, 2, 5),)
    assert [array.region((i,)) for i in (0, 3, 4)] == [
        slices((0, 1)),
        slices((5, 7)),
        slices((7, 12)),
    ]


def test_an_array_without_dimensions_has_one_chunk() -> None:
    array = read_array({"zarr.json": v3([])})
    assert array.region(()) == ()
    assert array.chunks_of(()) == ()


edges = st.lists(st.integers(1, 4), min_size=1, max_size=5)


@given(st.lists(st.integers(1, 4) | edges, min_size=1, max_size=2), st.data())
@settings(deadline=None)
def test_chunks_of_a_region_are_those_whose_regions_meet_it(
    lengths: list[int | list[int]], data: st.DataObject
) -> None:
    shape = [
        data.draw(st.integers(1, 9 if isinstance(length, int) else sum(length)))
        for length in lengths
    ]
    array = read_array({"zarr.json": v3(shape, chunk_grid=rectilinear(*lengths))})
    region = slices(
        *(
            (start, data.draw(st.integers(start + 1, length)))
            for length in shape
            for start in [data.draw(st.integers(0, length - 1))]
        )
    )
    touched = array.chunks_of(region)
    assert touched is not None
    grid = [range(9 if isinstance(length, int) else len(length)) for length in lengths]
    meeting = [
        coordinates
        for coordinates in itertools.product(*grid)
        for found in [array.region(coordinates)]
        if found is not None
        and all(a.start < b.stop and b.start < a.stop for a, b in zip(found, region, strict=True))
    ]
    assert list(itertools.product(*touched)) == meeting


@pytest.mark.parametrize(
    "grid",
    [
        None,
        [],
        "regular",
        {"name": "regular"},
        {"name": "regular", "configuration": {"chunk_shape": [4, 4]}},
        {"name": "regular", "configuration": {"chunk_shape": [4.0]}},
        {"name": "regular", "configuration": {"chunk_shape": "4"}},
        {"name": "other", "configuration": {"chunk_shape": [4]}},
        rectilinear(),
        rectilinear(1, 2),
        rectilinear("4"),
        rectilinear([[1, 2, 3]]),
        rectilinear([["1", 2]]),
        rectilinear([[1, -2]]),
        rectilinear([[1, 2**60]]),
    ],
)
def test_an_unknown_grid_has_no_regions(grid: object) -> None:
    array = read_array({"zarr.json": v3([10], chunk_grid=grid)})
    assert array.grid is None
    assert array.region((0,)) is None
    assert array.chunks_of(slices((0, 4))) is None
    assert array.layout == Layout(0, 1)


@pytest.mark.parametrize("chunks", [None, [4, 4], [4.5], "4", 4])
def test_an_unknown_grid_of_format_2_has_no_regions(chunks: object) -> None:
    array = read_array({".zarray": v2([10], chunks=chunks)})
    assert array.grid is None
    assert array.region((0,)) is None


# ── what makes chunks mean something else ────────────────────────────────────────────────────────


def test_the_encoding_is_all_but_shape_and_attributes() -> None:
    encoding = read_array({"zarr.json": v3()}).encoding
    soft = {"attributes": {}, "dimension_names": ["x"], "shape": [99]}
    assert read_array({"zarr.json": v3() | soft}).encoding == encoding
    assert read_array({"zarr.json": dict(reversed(v3().items()))}).encoding == encoding
    for hard in ({"codecs": []}, {"data_type": "int8"}, {"fill_value": 1}, {"new_in_zarr_4": 1}):
        assert read_array({"zarr.json": v3() | hard}).encoding != encoding
    old = read_array({".zarray": v2()}).encoding
    assert read_array({".zarray": v2([5])}).encoding == old
    assert read_array({".zarray": v2(filters=[])}).encoding != old


@pytest.mark.parametrize(
    ("documents", "name"),
    [
        ({"zarr.json": v3()}, "float32"),
        (
            {"zarr.json": v3(data_type={"name": "numpy.datetime64", "configuration": {}})},
            "numpy.datetime64",
        ),
        ({".zarray": v2()}, "<f4"),
        ({".zarray": v2(dtype=[["a", "<i4"], ["b", "|u1"]])}, '[["a", "<i4"], ["b", "|u1"]]'),
    ],
)
def test_names_of_dtypes(documents: Documents, name: str) -> None:
    assert read_array(documents).dtype == name


# ── nonsense ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"zarr"',
        b"\xff\xfe\xfd",
        b'{"zarr_format": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        {},
        {"zarr_format": 3},
        {"zarr_format": "3", "node_type": "group"},
        {"zarr_format": 4, "node_type": "group"},
        {"zarr_format": 3, "node_type": "folder"},
        {"zarr_format": 3, "node_type": ["array"]},
        v3([-1]),
        v3([1.5]),
        v3([True]),
        v3(["4"]),
        {**v3(), "shape": None},
        {**v3(), "shape": 10},
        {**v3(), "shape": {"0": 10}},
    ],
    ids=lambda document: str(document)[:40],
)
def test_nonsense_is_no_node(document: bytes | dict[str, Any]) -> None:
    assert read({"zarr.json": document}) is None
    assert read({".zarray": document}) is None


def test_no_documents_are_no_node() -> None:
    assert read({}) is None
    assert read({".zattrs": {"a": 1}}) is None
    assert read({".zmetadata": {"zarr_format": 2}}) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.sampled_from([v3([10]), v3([2, 3]), v2([10]), v2([])]),
    st.data(),
)
@settings(deadline=None, max_examples=200)
def test_half_sensible_documents_raise_nothing(
    document: dict[str, Any], data: st.DataObject
) -> None:
    """Any value in any place, also deep inside: vzarr understands it, or says that it does not."""
    document = json.loads(json.dumps(document))
    place: Any = document
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(json_values)
        break
    for name in ("zarr.json", ".zarray"):
        found = read({name: document, ".zattrs": json.dumps(data.draw(json_values)).encode()})
        if found is not None and found.array is not None:
            ndim = len(found.array.shape)
            found.array.region((0,) * ndim)
            found.array.chunks_of(tuple(slice(0, n) for n in found.array.shape))


@given(st.binary(max_size=60))
def test_random_documents_raise_nothing(data: bytes) -> None:
    assert read({"zarr.json": data, ".zarray": data, ".zgroup": data}) is None


def test_what_cannot_be_read_raises_what_the_reader_raises() -> None:
    """A damaged document is not a document that is not understood."""

    def damaged(blob: object) -> bytes:
        raise VzarrError(blob)

    memory = Memory()
    with pytest.raises(VzarrError):
        node_metadata({"zarr.json": memory.blob(b"seen by no other test")}, damaged)
