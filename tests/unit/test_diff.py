"""Comparing snapshots: what there is too much of to list, and what is told of many chunks."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import vzarr
from tests.fuzz.crafted import craft
from vzarr import diff
from vzarr.btree import Tree
from vzarr.errors import CorruptError, InvalidInputError
from vzarr.format import (
    Entry,
    Layout,
    TreeRef,
    blob_measure,
    decode_coordinates,
    encode_coordinates,
    node_digest,
)
from vzarr.indexdiff import differing
from vzarr.node import Node, decode_node, encode_node
from vzarr.objects import Overlay

GROUP = b'{"zarr_format":3,"node_type":"group"}'


@pytest.mark.parametrize(
    "name", ["shared_groups", "shared_groups_on_both_sides", "shared_groups_in_arrays"]
)
def test_more_than_can_be_listed_is_refused_before_it_is_listed(tmp_path, monkeypatch, name):
    path = tmp_path / "hostile.vzarr"
    craft(path, name)
    listed = []
    monkeypatch.setattr(diff, "NodeChange", lambda *args, **_: listed.append(args))
    with vzarr.open(path) as repo:
        with pytest.raises(InvalidInputError, match="more than 500,000 groups, arrays and files"):
            repo.diff("main~1", "main")
        # Each of its nodes is there billions of times, and looked at a few thousand times.
        assert len(listed) < 10_000


def test_many_members_are_counted_and_listed(repo, monkeypatch):
    monkeypatch.setattr(diff, "_UNCOUNTED", 100)
    for number in range(3):
        with repo.transaction("main", "groups") as store:
            for name in range(60):
                store.session.set(f"{number}/{name}/zarr.json", GROUP)
    assert len(repo.diff("main~3", "main").added) == 180
    monkeypatch.setattr(diff, "MAX_MEMBERS", 183)
    assert len(repo.diff("main~3", "main")) == 180
    monkeypatch.setattr(diff, "MAX_MEMBERS", 182)
    for old, new in (("main~3", "main"), ("main", "main~3")):
        with pytest.raises(InvalidInputError, match="too many to list"):
            repo.diff(old, new)
    assert len(repo.diff("main~1", "main")) == 60


@pytest.fixture
def array(repo) -> zarr.Array:
    with repo.transaction("main", "make") as store:
        made = zarr.create_array(store, name="a", shape=(40, 60), chunks=(2, 2), dtype="i4")
        made[:] = np.arange(2400).reshape(40, 60) + 1
    return made


def changes(repo: vzarr.Repository, edit) -> diff.NodeChange:
    with repo.transaction("main", "edit") as store:
        edit(zarr.open_array(store, path="a"))
    (change,) = repo.diff("main~1", "main")
    return change


# ── chunks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("start", [(), (3, 7), (19, 29), (20, 0)])
def test_many_chunks_that_changed(repo, array, start):
    """Scattered changes, with and without new keys among them, are what trees say they are."""

    def scattered(target):
        for number in range(0, 2400, 37):
            target[number // 60, number % 60] = -1

    def holes(target):
        target[3, 8] = -2
        target[29, 58] = -2
        target[4:6, 8:10] = 0
        target[30:, 50:] = 0

    for edit in (scattered, holes):
        change = changes(repo, edit)
        old, new = (repo.session(ref).hierarchy.entry("a").index for ref in ("main~1", "main"))
        indexes = Tree(Overlay(repo._objects), blob_measure)
        expected = list(indexes.diff(old, new, encode_coordinates(start)))
        assert expected or start > (19, 0)
        found = list(change._source.differing(old, new, encode_coordinates(start)))
        assert found == expected
        assert [coordinates for coordinates, _ in change.iter_kinds(start)] == [
            decode_coordinates(key) for key, _, _ in expected
        ]
    assert {chunk.kind for chunk in change.chunks} == {"changed", "removed"}


@given(data=st.data())
@settings(max_examples=100)
def test_any_two_indexes(data):
    class Nodes(dict):
        def load(self, digest):
            return decode_node(self[digest])

        def save(self, node):
            node_bytes = encode_node(node.level, node.keys, node.values)
            self[node_digest(node_bytes)] = node_bytes
            return node_digest(node_bytes)

    nodes = Nodes()
    tree = Tree(nodes, lambda _: (1, 1))
    number = st.integers(0, 3000)
    keys = data.draw(st.sampled_from([[], range(5), range(3000), range(0, 3000, 3)]))
    old = tree.build([(key.to_bytes(4, "big"), b"a") for key in keys])
    edits = data.draw(st.dictionaries(number, st.sampled_from([b"a", b"b", None]), max_size=40))
    new = tree.apply(old, [(key.to_bytes(4, "big"), edits[key]) for key in sorted(edits)])
    start = data.draw(number).to_bytes(4, "big")
    assert list(differing(nodes, tree, old, new, start)) == list(tree.diff(old, new, start))
    assert list(differing(nodes, tree, new, old)) == list(tree.diff(new, old))


@pytest.mark.parametrize("wrong", ["level", "last key", "first key"])
def test_a_node_that_is_not_what_its_parent_says(wrong):
    nodes: dict[bytes, Node] = {}

    class Nodes:
        load = staticmethod(nodes.__getitem__)

    def put(name: bytes, level: int, keys: list[bytes], values: list[bytes]) -> bytes:
        nodes[name * 32] = Node(level, keys, values)
        return name * 32 + bytes(16)

    first = put(b"1", 0, [b"a"], [b"x"])
    old = put(b"2", 0, [b"b", b"c"], [b"x", b"y"])
    new = {
        "level": put(b"3", 1, [b"b", b"c"], [first, first]),
        "last key": put(b"4", 0, [b"b", b"d"], [b"x", b"z"]),
        "first key": put(b"5", 0, [b"a", b"c"], [b"x", b"z"]),
    }[wrong]
    roots = [put(name, 1, [b"a", b"c"], [first, last]) for name, last in ((b"6", old), (b"7", new))]
    tree = Tree(Nodes(), lambda _: (1, 1))
    with pytest.raises(CorruptError, match="not what its parent says"):
        list(differing(Nodes(), tree, *(TreeRef(root[:32], 3, 3) for root in roots)))


def test_chunks_beside_documents_that_make_no_array(repo):
    entry = Entry({}, Layout(0, 1))
    with pytest.raises(CorruptError, match="make no array"):
        diff.changed_chunks(repo._objects, "a", entry, [], None)
