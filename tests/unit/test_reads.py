"""What was read, against a flat dict: stale exactly where the new head would have answered else."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.format.memory import Memory
from tests.unit.test_hierarchy import GROUP, below, edits, paths, plain_keys, v3_array
from vzarr import reads
from vzarr.errors import FormatError, InvalidInputError
from vzarr.format import Entry
from vzarr.merge import Conflict
from vzarr.node import Node
from vzarr.objects import Objects
from vzarr.reads import ReadSet, locate

KINDS = ("names", "keys", "sums")
Read = tuple[str, str]


def noted(what: Iterable[Read]) -> ReadSet:
    """Note reads: ("key", key), or (kind of listing, path)."""
    read = ReadSet()
    for kind, where in what:
        if kind == "key":
            read.note_key(where)
        else:
            read.note_listing(where, kind)
    return read


def answer(model: Mapping[str, bytes], kind: str, where: str) -> object:
    """What a read gives."""
    if kind == "key":
        return model.get(where)
    found = below(model, where)
    if kind == "names":
        return {key.removeprefix(f"{where}/" * bool(where)).partition("/")[0] for key in found}
    if kind == "keys":
        return set(found)
    return len(found), sum(map(len, found.values()))


some_reads = st.lists(
    st.tuples(st.just("key"), plain_keys | edits().map(lambda edit: edit[0]))
    | st.tuples(st.sampled_from(KINDS), paths),
    max_size=12,
)


@st.composite
def histories(draw: st.DrawFn) -> tuple[dict[str, bytes], dict[str, bytes], list[Read]]:
    """Two snapshots, and reads of which many meet what is there, and what changed."""
    batch = draw(st.lists(edits(), min_size=1, max_size=10).map(dict))
    base = {key: data for key, data in batch.items() if data is not None}
    touched = st.tuples(st.sampled_from(sorted(batch)), st.none() | st.binary(max_size=2))
    changes = draw(st.lists(touched | edits(), max_size=5).map(dict))
    head = {key: data for key, data in (base | changes).items() if data is not None}
    what = draw(some_reads)
    for key in draw(st.lists(st.sampled_from(sorted(batch | changes)), max_size=6)):
        depth = draw(st.integers(0, key.count("/") + 1))
        path = "/".join(key.split("/")[:depth])
        what += [("key", key), (draw(st.sampled_from(KINDS)), path)]
    return base, head, what


def walks(read: ReadSet, store: Memory, base: Entry, head: Entry) -> list[reads._Stale]:
    """What each of both walks finds, if it goes to its end."""
    validation = reads._Validation(store, base, head, read._keys, read._listings)
    found = [reads._Stale(), reads._Stale()]
    assert None not in list(validation.by_changes(found[0]))
    assert None not in list(validation.by_reads(found[1]))
    return found


@settings(max_examples=600)
@given(histories())
def test_a_read_is_stale_exactly_where_the_head_answers_differently(history):
    before, after, what = history
    store = Memory()
    base, head = store.hierarchy(before).root, store.hierarchy(after).root
    read = noted(what)
    differs = {
        (k, where) for k, where in what if answer(before, k, where) != answer(after, k, where)
    }
    keys = {where for kind, where in differs if kind == "key"}
    listings = {where for kind, where in differs if kind != "key"}
    for found in walks(read, store, base, head):
        assert (found.keys, found.listings) == (keys, listings)
    conflicts = read.stale(store, base, head)
    assert len(conflicts) == len(keys) + len(listings)
    assert {it.path for it in conflicts if it.kind == "listing"} == listings
    # The snapshots' bytes come with what is stale.
    sides = {(before.get(key), after.get(key)) for key in keys}
    assert {(it.base, it.theirs) for it in conflicts if it.kind != "listing"} == sides


@settings(max_examples=400)
@given(histories(), st.integers(2, 8))
def test_folded_reads_take_little_room_and_let_nothing_stale_through(history, most):
    before, after, what = history
    store = Memory()
    base, head = store.hierarchy(before).root, store.hierarchy(after).root
    exact = noted(what).stale(store, base, head)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reads, "MAX_ENTRIES", most)
        read = noted(what)
    assert len(read._keys) + len(read._listings) <= most
    conflicts = read.stale(store, base, head)
    assert bool(conflicts) >= bool(exact)
    if before == after:
        assert not conflicts
    by_changes, by_reads = walks(read, store, base, head)
    assert by_changes == by_reads


@given(st.lists(edits(), max_size=20).map(dict), plain_keys)
def test_a_key_is_located_where_the_hierarchy_finds_it(batch, key):
    store = Memory()
    hierarchy = store.hierarchy({key: data for key, data in batch.items() if data is not None})
    for where in {key, *batch}:
        place = locate(store, hierarchy.root, where)
        entry = hierarchy.entry(place.path)
        if place.kind == "chunk":
            assert entry is not None
            assert hierarchy.chunk(entry, place.coordinates) == hierarchy.find(where)
        elif place.kind == "document":
            documents = {} if entry is None else entry.documents
            assert documents.get(place.document) == hierarchy.find(where)
        else:
            assert place.path == where
            assert (None if entry is None else entry.file) == hierarchy.find(where)


def test_names_that_are_empty_are_no_other_path():
    before = {"zarr.json": v3_array(1), "c/0": b"0", "//c/0": b"x", "a//b": b"y", "a/": b"z"}
    after = before | {"c/0": b"1", "//c/0": b"2", "a//b": b"3"}
    store = Memory()
    base, head = store.hierarchy(before).root, store.hierarchy(after).root
    place = locate(store, base, "//c/0")
    assert (place.path, place.kind) == ("//c/0", "file")
    assert locate(store, base, "c/0").coordinates == (0,)
    read = noted(("key", key) for key in before)
    for found in walks(read, store, base, head):
        assert found.keys == {"c/0", "//c/0", "a//b"}
    assert locate(store, base, "a//zarr.json").path == "a/"
    for key in ("//c/0", "a//b"):
        without = store.hierarchy({name: data for name, data in before.items() if name != key}).root
        path = key[: key.index("/")]
        for found in walks(noted([("names", path), ("names", "b")]), store, base, without):
            assert found.listings == {path}


def test_nothing_is_stale_where_nothing_was_read_or_nothing_moved():
    store = Memory()
    base, head = store.hierarchy({"a": b"1"}).root, store.hierarchy({"a": b"2"}).root
    assert ReadSet().is_empty
    assert ReadSet().stale(store, base, head) == []
    read = noted([("key", "a"), ("keys", "")])
    assert not read.is_empty
    assert not noted([("sums", "")]).is_empty
    assert read.stale(store, head, head) == []
    assert len(read.stale(store, base, head)) == 1


def test_a_change_that_a_listing_does_not_show_leaves_it_valid():
    store = Memory()
    base = store.hierarchy({"a/x/1": b"one", "a/y": b"two", "b": b""}).root
    unseen = store.hierarchy({"a/x/1": b"two", "a/y": b"one", "b": b""}).root
    deeper = store.hierarchy({"a/x/2": b"one", "a/y": b"two", "b": b""}).root
    larger = store.hierarchy({"a/x/1": b"three", "a/y": b"two", "b": b""}).root
    what = {kind: noted([(kind, path) for path in ("", "a", "b")]) for kind in KINDS}
    for head, shown in ((unseen, set()), (deeper, {"keys"}), (larger, {"sums"})):
        for kind, read in what.items():
            for found in walks(read, store, base, head):
                assert found.listings == ({"", "a"} if kind in shown else set())


def test_a_layout_that_moves_keys_changes_none_of_them():
    """Chunks that were files before the array's metadata came have their bytes all the same."""
    files = {f"a/c/{i}/{j}": b"%d %d" % (i, j) for i in range(3) for j in range(3)}
    store = Memory()
    base = store.hierarchy(files).root
    head = store.hierarchy(files | {"a/zarr.json": v3_array(2), "a/c/1/1": b"new"}).root
    unchanged = [key for key in files if key != "a/c/1/1"]
    what = [("key", key) for key in unchanged] + [("keys", "a/c"), ("names", "a/c"), ("sums", "")]
    for one, other in ((base, head), (head, base)):
        for found in walks(noted(what), store, one, other):
            assert (found.keys, found.listings) == (set(), {""})
        (conflict,) = noted([("key", "a/c/1/1")]).stale(store, one, other)
        assert {conflict.base, conflict.theirs} == {b"1 1", b"new"}


def test_chunks_of_another_layout_are_other_keys():
    slashes = {"a/zarr.json": v3_array(2), "a/c/0/0": b"x", "a/c/0/1": b"y"}
    dots = {"a/zarr.json": v3_array(2, "."), "a/c.0.0": b"x", "a/c/0/1": b"y"}
    store = Memory()
    one, other = store.hierarchy(slashes).root, store.hierarchy(dots).root
    what = [("key", "a/c/0/0"), ("key", "a/c.0.0"), ("key", "a/c/0/1"), ("names", "a/c/0")]
    for sides in ((one, other), (other, one)):
        for found in walks(noted(what), store, *sides):
            assert (found.keys, found.listings) == ({"a/c/0/0", "a/c.0.0"}, {"a/c/0"})
    gone, came = noted(what[:2]).stale(store, one, other)
    # Each as the side that has it knows it.
    assert [(it.path, it.kind, it.coordinates) for it in (gone, came)] == [
        ("a", "chunk", (0, 0))
    ] * 2
    rewritten = store.hierarchy(dots | {"a/c/0/1": b"z"}).root
    for base, head, kind in ((one, rewritten, "chunk"), (rewritten, one, "file")):
        assert [it.kind for it in noted(what[2:3]).stale(store, base, head)] == [kind]


def test_a_member_that_came_as_the_group_became_an_array_is_listed():
    store = Memory()
    base = store.hierarchy({"a/zarr.json": GROUP, "a/x/y": b""}).root
    array = {"a/zarr.json": v3_array(1), "a/x/y": b""}
    for content, listings in ((array, set()), (array | {"a/new/file": b""}, {"a"})):
        for found in walks(noted([("names", "a")]), store, base, store.hierarchy(content).root):
            assert found.listings == listings


class Counting(Memory):
    """Counts how often a node is loaded."""

    loads = 0

    def load(self, digest: bytes) -> Node:
        self.loads += 1
        return super().load(digest)


@pytest.fixture(scope="module")
def large() -> tuple[Counting, Entry, Entry, Entry]:
    """An array of 20,000 chunks, the same with one changed, and with all but one changed."""
    store = Counting()
    hierarchy = store.hierarchy(
        {"zarr.json": GROUP, "a/zarr.json": v3_array(1), "b/zarr.json": v3_array(1), "b/c/0": b"1"}
        | {f"a/c/{i}": b"old" for i in range(20_000)}
    )
    new = store.blob(b"new")
    one = hierarchy.edit({"a/c/777": new})
    many = hierarchy.edit({f"a/c/{i}": new for i in range(20_000) if i != 777})
    return store, hierarchy.root, one.root, many.root


def test_many_reads_and_one_change_cost_what_one_change_does(large):
    store, base, one, _ = large
    read = noted(("key", f"a/c/{i}") for i in range(20_000))
    store.loads = 0
    (conflict,) = read.stale(store, base, one)
    assert conflict.coordinates == (777,)
    assert store.loads < 300


def test_few_reads_and_many_changes_cost_what_few_reads_do(large):
    store, base, _, many = large
    quiet = [
        ("key", "a/c/777"),
        ("key", "b/c/0"),
        ("key", "b/c/1"),
        ("keys", "b"),
        ("names", ""),
        ("sums", ""),
        ("names", "b"),
        ("sums", "a"),
    ]
    read = noted(quiet)
    store.loads = 0
    assert read.stale(store, base, many) == []
    assert store.loads < 600
    read.note_key("a/c/778")
    store.loads = 0
    assert [it.coordinates for it in read.stale(store, base, many)] == [(778,)]
    assert store.loads < 600


# ── bounded memory ───────────────────────────────────────────────────────────────────────────────


def test_the_fullest_paths_are_folded_and_others_stay_exact(monkeypatch):
    monkeypatch.setattr(reads, "MAX_ENTRIES", 100)
    content = {"zarr.json": GROUP, "a/zarr.json": v3_array(2), "b/zarr.json": v3_array(1)}
    content |= {f"b/c/{i}": b"old" for i in range(10)}
    store = Memory()
    base = store.hierarchy(content | {"a/c/0/0": b"old"})
    read = noted(("key", f"b/c/{i}") for i in range(5))
    for i in range(2):
        for j in range(1000):
            read.note_key(f"a/c/{i}/{j}")
    read.note_key("a/zarr.json")
    new = store.blob(b"new")

    def stale(*keys: str) -> list[tuple[str, str]]:
        head = base.edit(dict.fromkeys(keys, new))
        return [(it.kind, it.path) for it in read.stale(store, base.root, head.root)]

    assert stale("b/c/7", "zarr.json", "a/c/2/0") == []
    assert stale("b/c/4") == [("chunk", "b")]
    assert stale("a/c/1/5") == [("listing", "a/c/1")]
    # That one was not read, but its row is folded.
    assert stale("a/c/0/4000") == [("listing", "a/c/0")]
    assert stale("a/zarr.json") == [("document", "a")]


def test_paths_without_neighbours_are_folded_into_their_parents(monkeypatch):
    monkeypatch.setattr(reads, "MAX_ENTRIES", 10)
    read = noted(("key", f"g/{number}/zarr.json") for number in range(11))
    assert (read._keys, read._listings) == (set(), {"g": {"whole"}})
    # What is folded already takes no more room.
    read.note_key("g/12/zarr.json")
    read.note_listing("g", "names")
    read.note_listing("g/12", "keys")
    assert (read._keys, read._listings) == (set(), {"g": {"whole"}})
    read.note_listing("", "names")
    assert read._listings == {"g": {"whole"}, "": {"names"}}


def test_threads_note_at_once_and_lose_nothing(monkeypatch):
    monkeypatch.setattr(reads, "MAX_ENTRIES", 50)
    read = ReadSet()
    barrier = threading.Barrier(4)
    interval = sys.getswitchinterval()

    def note(thread: int) -> None:
        barrier.wait()
        for number in range(3000):
            read.note_key(f"{number % 7}/{thread}/{number}")

    try:
        sys.setswitchinterval(1e-6)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(note, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert len(read._keys) + len(read._listings) <= 50
    for thread in range(4):
        for number in range(3000):
            key = f"{number % 7}/{thread}/{number}"
            assert key in read._keys or read._is_whole(key)


# ── what a conflict says ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def changed(repo):
    """Give a function that says what of some reads is stale after a change to the example."""
    with repo.transaction("main", "create") as store:
        root = zarr.group(store)
        root.create_array("t", shape=(8, 5), chunks=(2, 5), dtype="i4", fill_value=7)[:4] = 1
        store.session.set("notes.txt", b"old")
    session = repo.session("main")
    base = session.hierarchy.root

    def stale(read: ReadSet, change) -> list[Conflict]:
        repo.run(change)
        head = repo.session("main").hierarchy.root
        return read.stale(Objects(session.environment, "always"), base, head)

    return stale


def test_a_stale_chunk_says_which_part_of_which_array_was_read(changed):
    def change(store):
        zarr.open_array(store, path="t")[3, 4] = 2

    read = noted([("key", "t/c/0/0"), ("key", "t/c/1/0"), ("key", "t/zarr.json")])
    (conflict,) = changed(read, change)
    assert (conflict.path, conflict.kind) == ("t", "chunk")
    assert conflict.coordinates == (1, 0)
    assert conflict.region == (slice(2, 4), slice(0, 5))
    assert conflict.reason == "read by this session, and changed by another meanwhile"
    assert conflict.base is not None
    assert conflict.base == conflict.ours != conflict.theirs
    assert (conflict.decode("base") == 1).all()
    assert conflict.decode("theirs").tolist() == [[1] * 5, [1, 1, 1, 1, 2]]
    assert "t: chunk (1, 0) [2:4, 0:5]" in str(conflict)
    assert str(conflict).endswith(conflict.reason)


def test_a_chunk_that_was_absent_when_it_was_read_was_full_of_the_fill_value(changed):
    def change(store):
        zarr.open_array(store, path="t")[6:] = np.tile(np.arange(5), (2, 1))

    (conflict,) = changed(noted([("key", "t/c/3/0"), ("key", "t/c/2/0")]), change)
    assert (conflict.coordinates, conflict.base) == ((3, 0), None)
    assert (conflict.decode("base") == 7).all()
    assert conflict.decode("theirs").tolist() == [list(range(5))] * 2


def test_an_array_made_anew_has_its_bytes_and_no_values(changed):
    def change(store):
        zarr.create_array(store, name="t", shape=(8, 5), chunks=(2, 5), dtype="f8", overwrite=True)
        zarr.open_array(store, path="t")[:] = 0.5

    conflicts = changed(noted([("key", "t/c/0/0"), ("key", "t/zarr.json")]), change)
    assert [it.kind for it in conflicts] == ["chunk", "document"]
    assert conflicts[0].theirs != conflicts[0].base
    with pytest.raises(FormatError, match="read by this session"):
        conflicts[0].decode("theirs")
    assert conflicts[1].document == "zarr.json"
    assert b"int32" in conflicts[1].base
    assert b"float64" in conflicts[1].theirs


def test_stale_documents_files_and_listings_name_what_was_read(changed):
    def change(store):
        zarr.open_group(store).attrs["title"] = "new"
        store.session.set("notes.txt", b"new")
        store.session.delete("t/c/1/0")
        zarr.open_group(store).create_group("g")

    read = noted(
        [
            ("key", "notes.txt"),
            ("key", "zarr.json"),
            ("key", "t/zarr.json"),
            ("key", "g/zarr.json"),
            ("names", ""),
            ("names", "t"),
            ("keys", "t"),
        ]
    )
    conflicts = changed(read, change)
    assert [(it.kind, it.path, it.document) for it in conflicts] == [
        ("document", "", "zarr.json"),
        ("listing", "", None),
        ("document", "g", "zarr.json"),
        ("file", "notes.txt", None),
        ("listing", "t", None),
    ]
    assert (conflicts[3].base, conflicts[3].theirs) == (b"old", b"new")
    assert conflicts[2].base is None
    listing = conflicts[4]
    assert (listing.base, listing.theirs, listing.coordinates) == (None, None, None)
    assert "read by this session, and changed by another meanwhile" in str(listing)
    with pytest.raises(InvalidInputError):
        listing.decode("theirs")
