"""The hierarchy against a flat dict: any key, in any order, and one tree for one content."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.format.memory import Memory
from vzarr.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from vzarr.format import EMPTY_ENTRY, Blob, encode_entry
from vzarr.hierarchy import Hierarchy
from vzarr.node import Node


def v3_array(ndim: int, separator: str = "/", name: str = "default") -> bytes:
    encoding = {"name": name, "configuration": {"separator": separator}}
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [9] * ndim,
            "chunk_key_encoding": encoding,
        }
    ).encode()


def v2_array(ndim: int, separator: str) -> bytes:
    return json.dumps(
        {
            "zarr_format": 2,
            "shape": [9] * ndim,
            "chunks": [1] * ndim,
            "dimension_separator": separator,
        }
    ).encode()


GROUP = b'{"zarr_format": 3, "node_type": "group"}'

DOCUMENTS = [
    GROUP,
    b"not json",
    *(v3_array(n, s, e) for n in (0, 1, 2) for s in "./" for e in ("default", "v2")),
]
V2_DOCUMENTS = [v2_array(n, s) for n in (0, 1, 2) for s in "./"]

# Few names, so that keys meet: numbers, "c", and dotted numbers are what chunk keys are made of.
names = st.sampled_from(
    ["a", "b", "c", "0", "1", "10", "01", "c.0", "0.1", "c.0.1", "ü", "4294967296"]
)
paths = st.lists(names, max_size=3).map("/".join)
plain_keys = st.lists(names, min_size=1, max_size=5).map("/".join)


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, bytes | None]:
    """A key and its new value: a chunk-like key, or a document that turns a path into an array."""
    if draw(st.booleans()):
        key, values = draw(plain_keys), st.binary(max_size=3)
    else:
        path = draw(paths)
        v2 = draw(st.booleans())
        key = f"{path}/" * bool(path) + (".zarray" if v2 else "zarr.json")
        values = st.sampled_from(V2_DOCUMENTS if v2 else DOCUMENTS)
    return key, draw(st.none() | values)


def blobs(store: Memory, batch: Mapping[str, bytes | None]) -> dict[str, Blob | None]:
    return {key: None if data is None else store.blob(data) for key, data in batch.items()}


def below(model: Mapping[str, bytes], path: str) -> dict[str, bytes]:
    prefix = f"{path}/" if path else ""
    return {key: data for key, data in model.items() if key.startswith(prefix)}


def assert_equal(hierarchy: Hierarchy, store: Memory, model: Mapping[str, bytes]) -> None:
    assert sorted(hierarchy.keys()) == sorted(model)
    assert {key: store.chunks[blob.digest] for key, blob in hierarchy.items()} == model
    for key, data in model.items():
        found = hierarchy.find(key)
        assert found is not None
        assert store.chunks[found.digest] == data
    assert hierarchy.sums() == (len(model), sum(map(len, model.values())))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(edits(), max_size=8).map(dict), max_size=5), st.randoms())
def test_any_order_of_edits_gives_the_same_tree_as_the_final_content(batches, random):
    store = Memory()
    model: dict[str, bytes] = {}
    hierarchy = Hierarchy(store, EMPTY_ENTRY)
    for batch in batches:
        hierarchy = hierarchy.edit(blobs(store, batch))
        model.update({key: data for key, data in batch.items() if data is not None})
        for key in [key for key, data in batch.items() if data is None]:
            model.pop(key, None)
        assert_equal(hierarchy, store, model)
    # From nothing, one key at a time, in another order.
    shuffled = list(model.items())
    random.shuffle(shuffled)
    again = Hierarchy(store, EMPTY_ENTRY)
    for key, data in shuffled:
        again = again.edit({key: store.blob(data)})
    assert encode_entry(again.root) == encode_entry(hierarchy.root)


@settings(max_examples=300, deadline=None)
@given(st.lists(edits(), max_size=20).map(dict), plain_keys)
def test_listing_below_any_path_is_that_of_a_dict(batch, path):
    store = Memory()
    model = {key: data for key, data in batch.items() if data is not None}
    hierarchy = Hierarchy(store, EMPTY_ENTRY).edit(blobs(store, model))
    for where in {path, "", *model, *(key.rpartition("/")[0] for key in model)}:
        expected = below(model, where)
        assert sorted(hierarchy.keys(where)) == sorted(expected)
        assert hierarchy.sums(where) == (len(expected), sum(map(len, expected.values())))
        prefix = f"{where}/" if where else ""
        names = {key.removeprefix(prefix).partition("/")[0] for key in expected}
        children = hierarchy.children(where)
        assert sorted(children) == sorted(names)
        removed = hierarchy.remove(where)
        rest = {key: data for key, data in model.items() if key not in expected}
        assert_equal(removed, store, rest)
        assert removed.root == Hierarchy(store, EMPTY_ENTRY).edit(blobs(store, rest)).root


def build(store: Memory, content: Mapping[str, bytes]) -> Hierarchy:
    return Hierarchy(store, EMPTY_ENTRY).edit(blobs(store, content))


def test_move_gives_the_tree_that_writing_at_the_new_place_gives():
    store = Memory()
    array = {"t/zarr.json": v3_array(2), "t/c/0/1": b"x", "t/notes.txt": b"n"}
    groups = {"zarr.json": GROUP, "g/zarr.json": GROUP}
    hierarchy = build(store, {**groups, **{f"g/{key}": data for key, data in array.items()}})
    moved = hierarchy.move("g/t", "u")
    there = {key.replace("t/", "u/", 1): data for key, data in array.items()}
    assert moved.root == build(store, {**groups, **there}).root
    assert moved.move("u", "g/t").root == hierarchy.root


@pytest.mark.parametrize(
    ("source", "destination", "error"),
    [
        ("nothing", "x", NotFoundError),
        ("", "x", NotFoundError),
        ("a", "a/b", InvalidInputError),
        ("a", "a", InvalidInputError),
        ("a", "b", AlreadyExistsError),
        ("a", "missing/a", InvalidInputError),
        ("b", "a/b", InvalidInputError),
        ("b", "a/c/0/1", InvalidInputError),
        ("b", "zarr.json", InvalidInputError),
        ("b", "g/deep", AlreadyExistsError),
    ],
)
def test_move_refuses_what_makes_no_sense(source, destination, error):
    store = Memory()
    content = {"a/zarr.json": v3_array(3), "a/c/0/zarr.json": GROUP, "b/zarr.json": GROUP}
    hierarchy = build(store, {**content, "g/deep/zarr.json": GROUP})
    with pytest.raises(error):
        hierarchy.move(source, destination)


def test_an_array_named_0_in_a_group_is_its_own_array():
    store = Memory()
    content = {".zgroup": b'{"zarr_format": 2}', "0/.zarray": v2_array(2, "/"), "0/0/1": b"x"}
    hierarchy = build(store, content)
    entry = hierarchy.entry("0")
    assert entry is not None
    assert entry.index is not None
    assert entry.index.count == 1
    assert hierarchy.children("0") == [".zarray", "0"]
    assert hierarchy.children("0/0") == ["1"]


def test_text_that_is_no_unicode_is_refused():
    hierarchy = build(Memory(), {".zgroup": b"{}", "a/.zgroup": b"{}"})
    for path in ("\udce9", "\udce9/c/0"):
        with pytest.raises(InvalidInputError, match="not valid Unicode"):
            hierarchy.entry(path)
        with pytest.raises(InvalidInputError, match="not valid Unicode"):
            hierarchy.find(path)


def test_coordinates_beyond_32_bits_are_kept_as_files():
    store = Memory()
    content = {"a/zarr.json": v3_array(1), "a/c/4294967295": b"in", "a/c/4294967296": b"out"}
    hierarchy = build(store, content)
    assert_equal(hierarchy, store, content)
    entry = hierarchy.entry("a")
    assert entry is not None
    assert entry.index is not None
    assert entry.index.count == 1


def test_children_of_a_large_array_do_not_read_every_chunk():
    store = Memory()
    chunks = {f"a/c/{i}/{j}": b"" for i in range(3) for j in range(2000)}
    hierarchy = build(store, {"a/zarr.json": v3_array(2), **chunks})
    loads = 0
    load = store.load

    def counting(digest: bytes) -> Node:
        nonlocal loads
        loads += 1
        return load(digest)

    store.load = counting
    assert hierarchy.children("a/c") == ["0", "1", "2"]
    assert loads < 30
