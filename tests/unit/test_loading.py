"""Nodes that are loaded together: what is given, what it costs, and what becomes of damage."""

from __future__ import annotations

import random
from collections import Counter

import pytest

import vzarr
from vzarr import objects
from vzarr.btree import Tree
from vzarr.environment import Environment, Txn
from vzarr.errors import CorruptError, StorageError
from vzarr.format import blob_measure, encode_coordinates, node_digest
from vzarr.node import Node, decode_node, encode_node
from vzarr.objects import Overlay

SIZE = 4000
ARRAY = (
    b'{"zarr_format":3,"node_type":"array","shape":[4000],"data_type":"uint8","chunk_grid":'
    b'{"name":"regular","configuration":{"chunk_shape":[1]}},"chunk_key_encoding":{"name":'
    b'"default","configuration":{"separator":"/"}},"fill_value":0,"codecs":[{"name":"bytes"}]}'
)


@pytest.fixture
def index(repo, monkeypatch):
    """A chunk index of some hundred nodes, none of them in memory, and its root."""
    with repo.transaction("main", "fill") as store:
        store.session.set("a/zarr.json", ARRAY)
        for number in range(SIZE):
            store.session.set(f"a/c/{number}", bytes([number % 251]))
    monkeypatch.setattr(objects, "_nodes", objects.Cache(objects._CACHE_BYTES))
    root = repo.session("main").hierarchy.entry("a").index
    monkeypatch.setattr(objects, "_nodes", objects.Cache(objects._CACHE_BYTES))
    return repo, root


@pytest.fixture
def txns(monkeypatch) -> Counter[str]:
    found: Counter[str] = Counter()
    original = Environment.read

    def read(self):
        found["txns"] += 1
        return original(self)

    monkeypatch.setattr(Environment, "read", read)
    return found


def leaves(repo: vzarr.Repository, root) -> list[bytes]:
    tree = Tree(Overlay(repo._objects), blob_measure)
    return [digest for digest, node in tree.walk(root) if node.level == 0]


def test_values_of_one_width_are_unpacked_when_they_are_needed():
    keys = [bytes([number]) for number in range(5)]
    values = [bytes([number]) * 4 for number in range(5)]
    node = decode_node(encode_node(0, keys, values))
    assert list(node.row()) == values
    assert node._packed is not None
    assert node.row() is node.values
    assert node.values == values
    assert node._packed is None
    assert node.values is node.values
    with pytest.raises(AttributeError, match="other"):
        node.other  # noqa: B018 - it is what is tested
    made = Node(0, keys, values)
    assert made.row() is made.values is values


def test_nodes_together_are_the_nodes_one_by_one(index, txns):
    repo, root = index
    digests = leaves(repo, root)
    assert len(digests) > 100
    objects._nodes = objects.Cache(objects._CACHE_BYTES)
    store = Overlay(repo._objects)
    txns.clear()
    random.Random(1).shuffle(digests)
    wanted = [*digests[:60], digests[3]]
    found = store.load_some(wanted)
    assert txns["txns"] == 1
    assert found[-1] is found[3]
    for digest, node in zip(wanted, found, strict=True):
        assert node is store.load(digest)
        assert node_digest(encode_node(node.level, node.keys, node.values)) == digest
    assert txns["txns"] == 1
    assert store.load_some([]) == []


def test_own_nodes_come_from_the_session(index):
    repo, root = index
    store = Overlay(repo._objects)
    edits = [(encode_coordinates((number,)), None) for number in range(0, SIZE, 50)]
    edited = Tree(store, blob_measure).apply(root, edits)
    own = list(store.fresh)
    assert edited is not None
    mixed = [own[0], root.digest, own[1]]
    assert store.load_some(mixed) == [store.load(digest) for digest in mixed]


def test_what_is_wrong_is_left_for_the_one_who_loads_it(index, monkeypatch):
    repo, root = index
    good, bad, missing = *leaves(repo, root)[:2], bytes(32)
    objects._nodes = objects.Cache(objects._CACHE_BYTES)
    original = Txn.get

    def get(self, database, key):
        data = original(self, database, key)
        return data[:-1] + b"\xff" if key == bad else data

    monkeypatch.setattr(Txn, "get", get)
    store = Overlay(repo._objects)
    found = store.load_some([bad, good, missing])
    assert [node is None for node in found] == [True, False, True]
    for digest, reason in ((bad, "damaged"), (missing, "missing")):
        with pytest.raises(CorruptError, match=reason):
            store.load(digest)
    # Who walks to the damage gets what is before it.
    tree = Tree(store, blob_measure)
    seen = []
    with pytest.raises(CorruptError, match="damaged"):
        for key, _ in tree.scan(root):
            seen.append(key)
    assert seen == store.load(good).keys


def test_another_thread_may_save_nodes_meanwhile(index, monkeypatch):
    repo, root = index
    digests = leaves(repo, root)[:8]
    store = Overlay(repo._objects)
    # One at least is its own already, so that it asks which.
    own = store.save(Node(0, [b"own"], [b"1234"]))
    data = encode_node(0, (node := store.load(digests[2])).keys, node.values)
    original = repo._objects.load_some

    def load_some(wanted):
        store.adopt(data)
        return original(wanted)

    monkeypatch.setattr(type(repo._objects), "load_some", lambda _, wanted: load_some(wanted))
    asked = [*digests, own]
    found = [None if node is None else node.keys for node in store.load_some(asked)]
    assert found == [store.load(digest).keys for digest in asked]


def test_a_disk_that_cannot_read_ahead_is_no_error_yet(index, monkeypatch):
    repo, root = index
    wanted = leaves(repo, root)[:3]
    monkeypatch.setattr(objects, "_nodes", objects.Cache(objects._CACHE_BYTES))

    def look_for(self, database, keys):
        raise StorageError("a sector cannot be read")

    monkeypatch.setattr(Txn, "look_for", look_for)
    store = Overlay(repo._objects)
    assert store.load_some(wanted) == [None] * 3
    assert store.load(wanted[0]).level == 0


def test_many_keys_at_once(index, txns):
    repo, root = index
    tree = Tree(Overlay(repo._objects), blob_measure)
    dice = random.Random(2)
    txns.clear()
    for number in (1, 3, 700, 2500):
        keys = [encode_coordinates((n,)) for n in sorted(dice.sample(range(SIZE + 50), number))]
        expected = [tree.get(root, key) for key in keys]
        objects._nodes = objects.Cache(objects._CACHE_BYTES)
        txns.clear()
        assert tree.get_all(root, keys) == expected
        # A level at a time, for as many keys as are looked for together.
        assert txns["txns"] <= 4 * (1 + number // 1024)
    assert tree.get_all(root, []) == []
    assert tree.get_all(None, keys) == [None] * len(keys)


def test_a_scan_loads_more_as_it_goes_on(index, txns):
    repo, root = index
    number = len(leaves(repo, root))
    tree = Tree(Overlay(repo._objects), blob_measure)
    for read_all in (lambda: list(tree.scan(root)), lambda: [*map(get, range(SIZE))]):

        def get(number: int) -> bytes | None:
            return tree.get(root, encode_coordinates((number,)))

        objects._nodes = objects.Cache(objects._CACHE_BYTES)
        txns.clear()
        assert None not in read_all()
        assert txns["txns"] < number // 3
    objects._nodes = objects.Cache(objects._CACHE_BYTES)
    txns.clear()
    assert tree.first(root, encode_coordinates((SIZE // 2,))) is not None
    assert txns["txns"] <= 4


def test_a_damaged_page_hides_no_node_on_another(index, path):
    """LMDB comes to none of the pages before it is looked at: each node by itself then."""
    repo, root = index
    digests = sorted(leaves(repo, root))
    repo.close()
    data = path.read_bytes()
    at = data.index(digests[0])
    # The length of a key: the node would lie across its page.
    path.write_bytes(data[: at - 2] + b"\xff\x7f" + data[at:])
    objects._nodes = objects.Cache(objects._CACHE_BYTES)
    try:
        with vzarr.open(path, "r") as damaged:
            store = Overlay(damaged._objects)
            assert store.load_some(digests) == [None] * len(digests)
            reasons = []
            for digest in digests:
                try:
                    assert store.load(digest).level == 0
                except CorruptError as error:
                    reasons.append(str(error))
            assert 0 < len(reasons) < 6
            assert all("page" in reason for reason in reasons)
    finally:
        path.write_bytes(data)
