"""Two readers, one file: what vzarr reads and what the page's own reader reads must be equal."""

from __future__ import annotations

import ast
import json
import random
import shutil
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import vzarr
from tests.format import reader
from tests.format.memory import Memory
from tests.format.reader import Damaged, File, Unsupported, root_id
from vzarr.errors import CorruptError
from vzarr.format import (
    EMPTY_ENTRY,
    SESSION,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    Layout,
    LeaseRecord,
    TreeRef,
    chunk_digest,
    commit_digest,
    decode_entry,
    encode_blob,
    encode_commit,
    encode_coordinates,
    encode_entry,
    encode_lease,
    entry_digest,
    entry_measure,
    key_hash,
    node_digest,
    seal,
    session_key,
    unseal,
)
from vzarr.metadata import layout_of
from vzarr.node import Node
from vzarr.session import Session

AUTHOR = "Test <test@example.org>"


def test_the_reader_is_independent() -> None:
    """It may use LMDB, MessagePack, BLAKE3, XXH3 and the standard library."""
    assert reader.__file__ is not None
    tree = ast.parse(Path(reader.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported <= {"lmdb", "msgpack", "blake3", "xxhash"} | sys.stdlib_module_names


# ── random repositories ──────────────────────────────────────────────────────────────────────────


class Story:
    """Random edits to a session, such as zarr's users make, and some that only a store allows."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.made = 0

    def edit(self, session: Session) -> None:
        actions = [
            self.make_array,
            self.make_array,
            self.write_region,
            self.write_region,
            self.resize,
            self.set_attributes,
            self.put_file,
            self.put_file,
            self.delete_key,
            self.delete_below,
            self.move,
            self.turn_into_array,
        ]
        for _ in range(self.random.randint(1, 6)):
            self.random.choice(actions)(session)

    def arrays(self, session: Session) -> list[str]:
        """The arrays that zarr made, not those that appeared where plain files lie."""
        return [path for path, _, _ in session.hierarchy.nodes() if path[-1:].isdigit()]

    def groups(self, session: Session) -> list[str]:
        return [path for path, _, node in session.hierarchy.nodes() if node.kind == "group"]

    def a_path(self, session: Session) -> str:
        self.made += 1
        group = self.random.choice(["", *self.groups(session)])
        return f"{group}/{self.random.choice('abcd')}{self.made}".lstrip("/")

    def make_array(self, session: Session) -> None:
        random = self.random
        ndim = random.randint(0, 3)
        shape = tuple(random.randint(1, 9) for _ in range(ndim))
        chunks = tuple(random.randint(1, 3) for _ in range(ndim))
        options: dict[str, Any] = {"shape": shape, "dtype": random.choice(["i2", "f8", "u1"])}
        separator = random.choice("./")
        if random.random() < 0.4:
            options |= {"zarr_format": 2, "chunks": chunks}
            options["chunk_key_encoding"] = {"name": "v2", "separator": separator}
        elif ndim and random.random() < 0.3:
            options |= {"chunks": chunks, "shards": tuple(2 * n for n in chunks)}
        else:
            options["chunks"] = chunks
            name = random.choice(["default", "v2"])
            options["chunk_key_encoding"] = {"name": name, "separator": separator}
        array = zarr.create_array(session.store, name=self.a_path(session), **options)
        array[...] = np.array(random.randint(0, 99))

    def an_array(self, session: Session) -> zarr.Array[Any] | None:
        arrays = self.arrays(session)
        if not arrays:
            return None
        opened = zarr.open(session.store, path=self.random.choice(arrays), mode="r+")
        assert isinstance(opened, zarr.Array)
        return opened

    def write_region(self, session: Session) -> None:
        array = self.an_array(session)
        if array is not None:
            starts = [self.random.randint(0, n - 1) for n in array.shape]
            region = tuple(slice(start, start + 3) for start in starts)
            array[region] = np.array(self.random.randint(0, 99))

    def resize(self, session: Session) -> None:
        array = self.an_array(session)
        if array is not None and array.ndim:
            array.resize(tuple(self.random.randint(1, 9) for _ in array.shape))

    def set_attributes(self, session: Session) -> None:
        array = self.an_array(session)
        if array is not None:
            array.attrs["units"] = self.random.choice(["K", "°C", None, float("inf")])

    def put_file(self, session: Session) -> None:
        names = ["a", "c", "0", "1", "c.0", "ü", "", "zarr.json.bak", "4294967296", "00"]
        key = "/".join(self.random.choices(names, k=self.random.randint(1, 4)))
        if self.random.random() < 0.5:
            arrays = self.arrays(session)
            key = f"{self.random.choice(arrays)}/{key}" if arrays else key
        session.set(key or "x", self.random.randbytes(self.random.randint(0, 9)))

    def delete_key(self, session: Session) -> None:
        keys = list(session.keys())
        if keys:
            session.delete(self.random.choice(keys))

    def delete_below(self, session: Session) -> None:
        arrays = self.arrays(session)
        if len(arrays) > 2:
            session.delete_below(self.random.choice(arrays))

    def move(self, session: Session) -> None:
        arrays = self.arrays(session)
        if arrays:
            try:
                session.move(self.random.choice(arrays), self.a_path(session))
            except vzarr.InvalidInputError:
                assert session.hierarchy.node("") is not None

    def turn_into_array(self, session: Session) -> None:
        """Put an array's metadata where plain files may lie already, or take them away."""
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [5] * self.random.randint(0, 3),
            "data_type": "int8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": []}},
            "chunk_key_encoding": self.random.choice(["default", "v2", "unknown"]),
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
        }
        document["chunk_grid"]["configuration"]["chunk_shape"] = document["shape"]
        path = self.random.choice(["a", "c", "a/c"])
        if session.get(f"{path}/zarr.json") is None:
            session.set(f"{path}/zarr.json", json.dumps(document).encode())
        else:
            session.delete(f"{path}/zarr.json")


def write_repository(path: Path, seed: int) -> None:
    story = Story(seed)
    with vzarr.open(path, author=AUTHOR) as repo:
        for number in range(12):
            branch = story.random.choice(list(repo.branches))
            session = repo.session(branch)
            story.edit(session)
            message = f"commit {number}\n\n… and more"
            metadata = {"n": number, "half": number / 2, "list": [None, True, {"ü": "x"}]}
            session.commit(message, metadata=metadata, allow_empty=True)
            if number == 4:
                repo.branches.create("side/one", at="main")
            if number == 8:
                repo.tags.create("v1", at="main", message="first")
                repo.branches.create("gone", at="main~1")
                repo.branches.delete("gone")
        session = repo.session("main")
        story.edit(session)
        session.amend("amended")


def contents(session: Session) -> dict[str, bytes]:
    found = {}
    for key, blob in session.hierarchy.items():
        value = session.get(key)
        assert value is not None
        assert len(value) == blob.length
        found[key] = bytes(value)
    assert set(found) == set(session.keys())
    return found


def assert_read_equal(path: Path) -> int:
    """Read a closed file in both ways and compare all there is; gives the number of commits."""
    file = File(str(path))
    snapshots = file.verify()
    with vzarr.open(path, "r") as repo:
        assert file.id.hex() == repo.id.replace("-", "")
        assert file.version == repo.format_version
        assert {name: head.hex() for name, head in file.branches.items()} == dict(repo.branches)
        assert {
            name: (tag.commit.hex(), tag.message, tag.author) for name, tag in file.tags.items()
        } == {tag.name: (tag.commit, tag.message, tag.author) for tag in repo.tags.details()}
        for branch, moves in file.reflog.items():
            assert [
                (move.old and move.old.hex(), move.new and move.new.hex(), move.operation)
                for move in reversed(moves)
            ] == [(entry.old, entry.new, entry.operation) for entry in repo.reflog(branch)]
        for key, commit in file.commits.items():
            shown = repo.show(key.hex())
            assert shown.parents == tuple(parent.hex() for parent in commit.parents)
            assert shown.root == commit.root.hex()
            assert (shown.author, shown.message) == (commit.author, commit.message)
            assert shown.metadata == commit.metadata
            assert contents(repo.session(key.hex())) == snapshots[key]
    return len(snapshots)


@pytest.mark.parametrize("seed", range(10))
def test_random_repositories_read_equal(path: Path, seed: int) -> None:
    write_repository(path, seed)
    assert assert_read_equal(path) >= 13


def test_trees_of_several_levels_read_equal(path: Path) -> None:
    """5,000 chunks are a tree of three levels; edits in its middle share the rest."""
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction("main", "many") as store:
            for name, options in {
                "v3": {},
                "v2": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
            }.items():
                zarr.create_array(
                    store, name=name, shape=(100, 50), chunks=(1, 1), dtype="i2", **options
                )
            for i in range(100):
                for j in range(50):
                    store.session.set(f"v3/c/{i}/{j}", struct.pack("<h", i))
                    store.session.set(f"v2/{i}/{j}", struct.pack("<h", j))
        for step, number in enumerate((0, 17, 2499, 4999)):
            with repo.transaction("main", f"edit {step}") as store:
                store.session.set(f"v3/c/{number // 50}/{number % 50}", b"!")
                store.session.delete(f"v2/{number // 50}/{number % 50}")
        with repo.transaction("main", "grow") as store:
            for i in range(100, 120):
                store.session.set(f"v3/c/{i}/0", b"new")
            store.session.delete_below("v2")
    assert assert_read_equal(path) == 7
    assert max(node.level for node in nodes_of(path)) >= 2


def test_a_directory_of_several_levels_reads_equal(path: Path) -> None:
    with vzarr.open(path, author=AUTHOR) as repo:
        for step in range(3):
            with repo.transaction("main", "files") as store:
                for number in range(step, 3000, 1 + step):
                    store.session.set(f"g/file-{number}", b"%d" % (number * step))
    assert_read_equal(path)
    assert max(node.level for node in nodes_of(path)) >= 2


def nodes_of(path: Path) -> list[reader.Node]:
    data = [reader.decode(value, "object") for value in read_database(path, "nodes").values()]
    encoded = [value for value in data if len(value) == 6]
    return [reader.decode_node(reader.msgpack.packb(value)) for value in encoded]


def test_what_a_session_staged_is_read_too(path: Path) -> None:
    copy = path.with_name("copy.vzarr")
    with vzarr.open(path, author=AUTHOR) as repo:
        session = repo.session("main")
        values = [bytes([number]) * (1 << 20) for number in range(20)]
        for number, value in enumerate(values):
            session.set(f"file-{number}", value)
        session.keys()
        session._work.spill()
        shutil.copy(path, copy)
        session.close()
    file = File(str(copy))
    assert len(file.verify()) == 1
    ((key, lease),) = file.leases.items()
    assert key.hex() == session.id
    assert (lease.branch, lease.base) == ("main", file.branches["main"])
    assert set(file.batches[key]) == {chunk_digest(value) for value in values}
    assert lease.staged is not None
    assert sorted(file.snapshot(lease.staged).values()) == values
    assert not File(str(path)).leases


# ── one content, one tree ────────────────────────────────────────────────────────────────────────

names = st.sampled_from(["a", "c", "0", "1", "10", "01", "c.0", "0.1", "", "ü", "zarr.json"])
keys = st.lists(names, min_size=1, max_size=4).map("/".join).filter(bool)


@st.composite
def snapshots(draw: st.DrawFn) -> dict[str, bytes]:
    """Keys of chunks, files and documents, and documents that make arrays of their paths."""
    snapshot = draw(st.dictionaries(keys, st.binary(max_size=2), max_size=12))
    for path in draw(st.lists(st.sampled_from(["", "a/", "c/", "0/", "a/c/"]), max_size=3)):
        version = draw(st.sampled_from([2, 3]))
        document = {
            "zarr_format": version,
            "node_type": "array",
            "shape": [9] * draw(st.integers(0, 3)),
            "dimension_separator": draw(st.sampled_from("./x")),
            "chunk_key_encoding": {
                "name": draw(st.sampled_from(["default", "v2", "x"])),
                "configuration": {"separator": draw(st.sampled_from("./x"))},
            },
        }
        name = "zarr.json" if version == 3 else ".zarray"
        snapshot[path + name] = json.dumps(document).encode()
    return snapshot


@given(snapshots(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_root_ids_follow_from_the_page(snapshot: dict[str, bytes], random: random.Random) -> None:
    """Written in any order, with detours, the tree is the one of the page's definition."""
    memory = Memory()
    order = list(snapshot.items())
    random.shuffle(order)
    middle = len(order) // 2
    detour = {key: b"other" for key, _ in order[middle:]} | {"a/detour": b"", "c/0/0": b""}
    hierarchy = memory.hierarchy(dict(order[:middle]))
    for edits in (detour, dict.fromkeys(detour), dict(order)):
        blobs = {key: None if v is None else memory.blob(v) for key, v in edits.items()}
        hierarchy = hierarchy.edit(blobs)
    assert entry_digest(encode_entry(hierarchy.root)) == root_id(snapshot)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
a_shape = st.lists(st.integers(-1, 5) | st.booleans() | st.just(1.0), max_size=3)
a_separator = st.sampled_from(["/", ".", "absent", "", None])
an_encoding = (
    st.sampled_from(["default", "v2", "other"])
    | st.fixed_dictionaries(
        {"name": st.sampled_from(["default", "v2", None, 2])},
        optional={
            "configuration": st.fixed_dictionaries({}, optional={"separator": a_separator})
            | json_values
        },
    )
    | json_values
)
a_document = st.fixed_dictionaries(
    {},
    optional={
        "zarr_format": st.sampled_from([2, 3, 2.0, 3.0, "3", True, None]),
        "node_type": st.sampled_from(["array", "group", "other", None]),
        "shape": a_shape | st.just([1] * 65) | json_values,
        "chunk_key_encoding": an_encoding,
        "dimension_separator": a_separator | json_values,
    },
).map(lambda document: json.dumps(document).encode())
some_documents = st.dictionaries(
    st.sampled_from(["zarr.json", ".zarray", ".zgroup", ".zattrs"]),
    a_document | json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=9),
)


@given(some_documents)
@settings(max_examples=400, deadline=None)
def test_layouts_follow_from_documents_as_the_page_says(documents: dict[str, bytes]) -> None:
    memory = Memory()
    blobs = {name: memory.blob(data) for name, data in documents.items()}
    found = layout_of(blobs, memory.read)
    expected = reader.layout_of(documents)
    assert (found and (found.encoding, found.ndim)) == expected


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def opened(path: Path, *, write: bool = False) -> lmdb.Environment:
    return lmdb.open(
        str(path), subdir=False, max_dbs=16, readonly=not write, lock=False, create=False
    )


def read_database(path: Path, name: str) -> dict[bytes, bytes]:
    with opened(path) as environment:
        database = environment.open_db(name.encode(), create=False)
        with environment.begin(database) as transaction:
            return dict(transaction.cursor().iternext())


def write_database(path: Path, name: str, edits: Mapping[bytes, bytes | None]) -> None:
    with opened(path, write=True) as environment, environment.begin(write=True) as transaction:
        database = environment.open_db(name.encode(), transaction, create=False)
        for key, value in edits.items():
            if value is None:
                transaction.delete(key, db=database)
            else:
                transaction.put(key, value, db=database)


def write_sealed(path: Path, name: str, edits: Mapping[bytes, bytes]) -> None:
    write_database(path, name, {key: seal(name, key, value) for key, value in edits.items()})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every kind of record, without history that nothing refers to."""
    path = tmp_path_factory.mktemp("sound") / "sound.vzarr"
    write_repository(path, 1)
    base = Digest(File(str(path)).branches["main"])
    lease = LeaseRecord(
        *(SESSION, 0, 1, 2, "host", "", None, "main", base, 3, 3, 0, None, None, None)
    )
    chunk = next(iter(read_database(path, "chunks")))
    edits = {session_key(b"s" * 16, 0): encode_lease(lease), session_key(b"s" * 16, 1): chunk}
    write_sealed(path, "sessions", edits)
    File(str(path)).verify()
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(sound, tmp_path / "damaged.vzarr"))


@pytest.mark.parametrize("database", reader.DATABASES)
def test_a_flipped_bit_is_refused(copy: Path, database: str) -> None:
    """In objects by their digest, in all other records by their seal."""
    chance = random.Random(database)
    records = list(read_database(copy, database).items())
    for key, value in chance.sample(records, min(len(records), 12)):
        if not value:
            continue
        position, bit = chance.randrange(len(value)), 1 << chance.randrange(8)
        flipped = bytearray(value)
        flipped[position] ^= bit
        write_database(copy, database, {key: bytes(flipped)})
        with pytest.raises(Damaged):
            File(str(copy)).verify()
        write_database(copy, database, {key: value})
    File(str(copy)).verify()


@pytest.mark.parametrize("database", ["meta", "nodes", "chunks", "commits"])
def test_a_missing_object_is_refused(copy: Path, database: str) -> None:
    # The session's staged chunk and the reflog keep objects in the file that no commit needs.
    for key, value in needed(copy, database):
        write_database(copy, database, {key: None})
        with pytest.raises(Damaged):
            File(str(copy)).verify()
        write_database(copy, database, {key: value})
    File(str(copy)).verify()


def needed(path: Path, database: str) -> list[tuple[bytes, bytes]]:
    records = read_database(path, database)
    file = File(str(path))
    heads = {*file.branches.values(), *(tag.commit for tag in file.tags.values())}
    if database == "commits":
        return [(head, records[head]) for head in heads]
    if database == "nodes":
        return [(file.commits[head].root, records[file.commits[head].root]) for head in heads]
    if database == "chunks":
        values = file.snapshot(file.commits[file.branches["main"]].root).values()
        return [(chunk_digest(value), value) for value in list(values)[:10]]
    return list(records.items())


def test_a_newer_file_is_refused_by_what_it_says(copy: Path) -> None:
    for fields, error in (
        (["vzarr", 2, 2], Unsupported),
        (["vzarr", 7, 2, "more"], Unsupported),
        (["vzarr", 1, 2], Damaged),
        (["vzarr", 1, 1, "more"], Damaged),
        (["other", 1, 1], Damaged),
        (["vzarr", True, 1], Damaged),
        (["vzarr", 0, 0], Damaged),
    ):
        data = reader.msgpack.packb(fields)
        write_sealed(copy, "meta", {b"format": data})
        with pytest.raises(error):
            File(str(copy))
        with pytest.raises(CorruptError if error is Damaged else vzarr.FormatVersionError):
            vzarr.open(copy, "r")
    write_sealed(copy, "meta", {b"format": reader.msgpack.packb(["vzarr", 2, 1, "more"])})
    assert File(str(copy)).version == 2
    with vzarr.open(copy, "r") as repo:
        assert repo.format_version == 2


# ── forged trees: every digest is right, and the shape is not ────────────────────────────────────


class Forger(Memory):
    """Makes objects that vzarr would never make."""

    def leaf(self, items: Mapping[bytes, bytes]) -> TreeRef:
        keys, values = list(items), list(items.values())
        digest = self.save(Node(0, keys, values))
        return TreeRef(digest, len(keys), sum(int.from_bytes(v[32:], "little") for v in values))

    def inner(self, level: int, children: Mapping[bytes, TreeRef]) -> TreeRef:
        values = [struct.pack("<32sQQ", t.digest, t.count, t.nbytes) for t in children.values()]
        digest = self.save(Node(level, list(children), values))
        count, nbytes = (sum(getattr(t, n) for t in children.values()) for n in ("count", "nbytes"))
        return TreeRef(digest, count, nbytes)

    def chunks_of(self, *numbers: int) -> dict[bytes, bytes]:
        blob = encode_blob(self.blob(b"xy"))
        return {encode_coordinates([number]): blob for number in numbers}

    def write(self, path: Path, root: bytes) -> None:
        """Commit a root entry, by hand."""
        digest = entry_digest(root)
        record = CommitRecord((), digest, AUTHOR, 0, "forged", {})
        commit = encode_commit(record)
        write_database(path, "nodes", {**self.nodes, digest: root})
        write_database(path, "chunks", self.chunks)
        write_database(path, "commits", {commit_digest(commit): commit})
        write_sealed(path, "branches", {b"main": commit_digest(commit)})


ARRAY = json.dumps(
    {"zarr_format": 3, "node_type": "array", "shape": [9], "chunk_key_encoding": "default"}
).encode()
# The first coordinate whose key ends a node on level 0, and on no other (see the page).
ENDING = 2
LAYOUT = Layout(0, 1)


def array(forger: Forger, index: TreeRef | None, **changes: Any) -> bytes:
    documents = {"zarr.json": forger.blob(ARRAY)}
    return encode_entry(replace(Entry(documents, LAYOUT, index), **changes))


def directory(forger: Forger, **members: Entry) -> bytes:
    items = {name.encode(): encode_entry(entry) for name, entry in sorted(members.items())}
    keys, values = list(items), list(items.values())
    sums = [entry_measure(value) for value in values]
    tree = TreeRef(
        forger.save(Node(0, keys, values)), sum(s[0] for s in sums), sum(s[1] for s in sums)
    )
    return encode_entry(Entry({}, directory=tree))


def _beyond_an_ending_key(f: Forger) -> bytes:
    return array(f, f.leaf(f.chunks_of(0, ENDING, ENDING + 1)))


def _before_an_ending_key(f: Forger) -> bytes:
    left, right = f.chunks_of(3, 4), f.chunks_of(5, 6)
    return array(f, f.inner(1, {max(left): f.leaf(left), max(right): f.leaf(right)}))


def _with_one_child(f: Forger) -> bytes:
    items = f.chunks_of(3, 4)
    return array(f, f.inner(1, {max(items): f.leaf(items)}))


def _of_two_leaves(f: Forger, **changes: Any) -> TreeRef:
    left, right = f.chunks_of(0, ENDING), f.chunks_of(3, 4)
    leaves = {max(left): f.leaf(left), max(right): f.leaf(right)}
    leaves[max(right)] = replace(leaves[max(right)], **changes)
    return f.inner(1, leaves)


def _with_a_wrong_last_key(f: Forger) -> bytes:
    left, right = f.chunks_of(0, ENDING), f.chunks_of(3, 4)
    fake = encode_coordinates([9])
    return array(f, f.inner(1, {max(left): f.leaf(left), fake: f.leaf(right)}))


def _with_keys_out_of_order(f: Forger) -> bytes:
    left, right = f.chunks_of(1, ENDING), f.chunks_of(0, 4)
    return array(f, f.inner(1, {max(left): f.leaf(left), max(right): f.leaf(right)}))


def _with_a_level_left_out(f: Forger) -> bytes:
    left, right = f.chunks_of(0, ENDING), f.chunks_of(3, 4)
    return array(f, f.inner(2, {max(left): f.leaf(left), max(right): f.leaf(right)}))


def _spelled_in_another_way(f: Forger) -> bytes:
    data = array(f, f.leaf(f.chunks_of(0)))
    # The array of five fields as array 16.
    return b"\xdc\x00\x05" + data[1:]


def _with_a_node_spelled_in_another_way(f: Forger) -> bytes:
    tree = f.leaf(f.chunks_of(0))
    data = b"\xdc\x00\x06" + f.nodes[tree.digest][1:]
    return array(f, replace(tree, digest=f.keep(data)))


FORGED: dict[str, Callable[[Forger], bytes]] = {
    "a node goes on after a key that ends one": _beyond_an_ending_key,
    "a node ends at a key that ends none": _before_an_ending_key,
    "a root with one child": _with_one_child,
    "a level is left out": _with_a_level_left_out,
    "keys out of order across nodes": _with_keys_out_of_order,
    "a last key that the child does not have": _with_a_wrong_last_key,
    "a wrong count in a node": lambda f: array(f, _of_two_leaves(f, count=3)),
    "a wrong sum in a node": lambda f: array(f, _of_two_leaves(f, nbytes=3)),
    "a wrong sum in an entry": lambda f: array(f, replace(_of_two_leaves(f), nbytes=1)),
    "an index key of other dimensions": lambda f: array(
        f, f.leaf({encode_coordinates([0, 0]): encode_blob(f.blob(b""))})
    ),
    "a layout that does not follow": lambda f: array(f, None, layout=Layout(1, 1)),
    "a layout that is missing": lambda f: array(f, None, layout=None),
    "a layout without an array": lambda f: encode_entry(Entry({}, LAYOUT, f.leaf(f.chunks_of(0)))),
    "a root that is a file": lambda f: encode_entry(Entry({}, file=f.blob(b""))),
    "an empty member": lambda f: directory(f, a=EMPTY_ENTRY, b=Entry({}, file=f.blob(b""))),
    "a document that lies as a file": lambda f: directory(
        f, a=decode_entry(directory(f, **{"zarr.json": Entry({}, file=f.blob(b""))}))
    ),
    "a chunk that lies as a file": lambda f: directory(
        f,
        a=replace(
            decode_entry(array(f, None)),
            directory=decode_entry(
                directory(f, c=decode_entry(directory(f, **{"0": Entry({}, file=f.blob(b""))})))
            ).directory,
        ),
    ),
    "a name with a slash": lambda f: directory(f, **{"a/b": Entry({}, file=f.blob(b""))}),
    "a wrong length": lambda f: encode_entry(
        Entry({"zarr.json": f.blob(b"{}")._replace(length=3)})
    ),
    "a missing chunk": lambda f: encode_entry(
        Entry({"zarr.json": Blob(chunk_digest(b"elsewhere"), 9)})
    ),
    "a missing node": lambda f: array(f, TreeRef(node_digest(b""), 1, 0)),
    "an entry spelled in another way": _spelled_in_another_way,
    "a node spelled in another way": _with_a_node_spelled_in_another_way,
    "bytes after an entry": lambda f: encode_entry(EMPTY_ENTRY) + b"\0",
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_snapshots_are_refused(copy: Path, name: str) -> None:
    forger = Forger()
    forger.write(copy, FORGED[name](forger))
    file = File(str(copy))
    with pytest.raises(Damaged):
        file.snapshot(file.commits[file.branches["main"]].root)


def test_forging_as_such_is_not_refused(copy: Path) -> None:
    """The tools of the tests above make sound snapshots where they are told nothing else."""
    forger = Forger()
    forger.write(copy, array(forger, _of_two_leaves(forger)))
    file = File(str(copy))
    found = file.snapshot(file.commits[file.branches["main"]].root)
    assert found == {"zarr.json": ARRAY, **{f"c/{n}": b"xy" for n in (0, ENDING, 3, 4)}}
    ending = [number for number in range(9) if not key_hash(encode_coordinates([number])) & 31]
    assert ending == [ENDING]


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value[:-1],
        lambda value: value + b"\0",
        lambda value: b"",
        lambda value: b"\xc0",
        lambda value: b"\xdc\0" + bytes([value[0] & 15]) + value[1:],
    ],
)
def test_records_of_another_form_are_refused(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    for database in ("meta", "tags", "reflog", "sessions"):
        for key, value in read_database(copy, database).items():
            record = unseal(database, key, value)
            damaged = damage(record)
            if damaged == record or (database == "sessions" and not key.endswith(bytes(4))):
                continue
            for stored in (seal(database, key, damaged), damage(value)):
                write_database(copy, database, {key: stored})
                with pytest.raises(Damaged):
                    File(str(copy)).verify()
            write_database(copy, database, {key: value})
