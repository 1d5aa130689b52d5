"""The walk over new snapshots, compared with the difference of all that both reach."""

from __future__ import annotations

import os
import random

import pytest

import vzarr
from vzarr.format import Digest, decode_entry
from vzarr.hierarchy import Hierarchy
from vzarr.novelty import Novelty
from vzarr.objects import Objects, Overlay, root_digest

TORTURE = os.environ.get("VZARR_TORTURE") == "1"
_DOCUMENT = (
    b'{"zarr_format":3,"node_type":"array","shape":[100000],"data_type":"uint8","chunk_grid":{'
    b'"name":"regular","configuration":{"chunk_shape":[1]}},"chunk_key_encoding":{"name":"default"}'
    b',"fill_value":0,"codecs":[{"name":"bytes"}]}'
)


def _reach(objects: Objects, root: bytes) -> tuple[set[bytes], set[bytes]]:
    """List nodes and values of a snapshot, the plain way."""
    nodes: set[bytes] = set()
    values = {
        blob.digest for _, blob in Hierarchy(objects, objects.load_root(Digest(root))).items()
    }

    def tree(digest: bytes, *, directory: bool) -> None:
        nodes.add(digest)
        node = objects.load(digest)
        for value in node.values:
            if node.level:
                tree(value[:32], directory=directory)
            elif directory:
                entry(decode_entry(value))

    def entry(found) -> None:
        if found.index is not None:
            tree(found.index.digest, directory=False)
        if found.directory is not None:
            tree(found.directory.digest, directory=True)

    entry(objects.load_root(Digest(root)))
    return nodes, values


def _walk(objects: Objects, new: bytes, known: list[bytes]) -> tuple[set[bytes], set[bytes], int]:
    loaded = []

    def load(digest: bytes):
        loaded.append(digest)
        return objects.load(digest)

    walk = Novelty(load, objects.load_root)
    walk.begin(Digest(new), objects.load_root(Digest(new)), [Digest(root) for root in known])
    nodes: set[bytes] = set()
    values: set[bytes] = set()
    while digests := walk.wanted(7):
        nodes |= set(digests)
        with objects.environment.read() as txn:
            found = {digest: txn.get("nodes", digest) for digest in digests}
        walk.take(7, found)
    values |= {blob.digest for blob in walk.blobs}
    return nodes, values, len(loaded)


@pytest.fixture
def versions(repo):
    """Snapshots of random edits: arrays of very different sizes that grow, shrink and move."""
    chance = random.Random(5)
    session = repo.session("main")
    roots = []
    for number in range(14):
        for _ in range(chance.randrange(1, 4)):
            path = chance.choice(["a", "b", "g/c", "g/h/d"])
            session.set(f"{path}/zarr.json", _DOCUMENT)
            for _ in range(chance.choice([1, 5, 300, 3000])):
                session.set(f"{path}/c/{chance.randrange(9000)}", b"%d" % chance.randrange(5000))
        if chance.random() < 0.3:
            session.delete_below(chance.choice(["a", "b", "g"]))
        if chance.random() < 0.3 and "a" in session.children():
            session.delete_below("moved")
            session.move("a", "moved")
        session.commit(f"version {number}", allow_empty=True)
        roots.append(bytes.fromhex(repo.root_id()))
    return repo._objects, roots


def test_it_finds_all_that_is_new_and_little_more(versions):
    objects, roots = versions
    for root in roots:
        # Without anything known, that is all; and what is known costs nothing.
        assert _walk(objects, root, [])[:2] == _reach(objects, root)
        assert _walk(objects, root, [root]) == (set(), set(), 0)
    chance = random.Random(6)
    for _ in range(300 if TORTURE else 15):
        new, *known = chance.sample(roots, chance.choice([2, 2, 3, 4]))
        nodes, values, _ = _walk(objects, new, known)
        reached = [_reach(objects, root) for root in known]
        old_nodes = set().union(*(each for each, _ in reached))
        old_values = set().union(*(each for _, each in reached))
        all_nodes, all_values = _reach(objects, new)
        assert all_nodes - old_nodes <= nodes <= all_nodes
        assert all_values - old_values <= values <= all_values


def test_a_small_change_costs_little(repo):
    session = repo.session("main")
    session.set("a/zarr.json", _DOCUMENT)
    for number in range(20_000):
        session.set(f"a/c/{number}", b"%d" % number)
    session.commit("all")
    before = bytes.fromhex(repo.root_id())
    session.set("a/c/77", b"new")
    session.commit("one")
    nodes, values, loaded = _walk(repo._objects, bytes.fromhex(repo.root_id()), [before])
    assert len(values) == 1
    assert len(nodes) == loaded <= 5


@pytest.mark.parametrize(
    "change",
    [
        {"level": 9},
        {"last": b"zzz"},
        {"number": 7},
        {"nbytes": 7},
    ],
)
def test_a_node_that_is_not_what_its_parent_says(repo, change):
    session = repo.session("main")
    session.set("a/zarr.json", _DOCUMENT)
    for number in range(2000):
        session.set(f"a/c/{number}", b"%d" % number)
    session.commit("all")
    objects = repo._objects
    root = Digest(bytes.fromhex(repo.root_id()))
    walk = Novelty(objects.load, objects.load_root)
    walk.begin(root, objects.load_root(root), [])
    walk.take(1, _load(objects, walk.wanted(1)))
    walk.take(1, _load(objects, walk.wanted(1)))
    place = walk._waiting[-1]
    place.claim = place.claim._replace(**change)
    with pytest.raises(vzarr.CorruptError, match="its parent says"):
        walk.take(1, _load(objects, walk.wanted(1)))


def _load(objects, digests):
    with objects.environment.read() as txn:
        return {digest: txn.get("nodes", digest) for digest in digests}


def test_an_entry_alone_is_a_snapshot(repo):
    overlay = Overlay(repo._objects)
    empty = repo._objects.load_root(Digest(bytes.fromhex(repo.root_id())))
    walk = Novelty(overlay.load, repo._objects.load_root)
    walk.begin(root_digest(empty), empty, [])
    assert walk.wanted(9) == []
    assert walk.blobs == []
