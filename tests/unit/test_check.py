"""Checks: each kind of damage gives exactly one problem, in the words that a user reads."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

import vzarr
from vzarr import evidence, history, leases, objects
from vzarr.btree import Tree
from vzarr.check import check, check_file
from vzarr.environment import Environment, Txn
from vzarr.errors import InvalidInputError, NotFoundError, SessionStateError
from vzarr.findings import Level, Problem, Report
from vzarr.format import (
    CHECKSUM_FROM_BYTES,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    FormatRecord,
    Layout,
    LeaseRecord,
    ReflogRecord,
    TagRecord,
    TreeRef,
    blob_measure,
    chunk_checksum,
    chunk_digest,
    decode_commit,
    encode_blob,
    encode_coordinates,
    encode_entry,
    encode_format,
    encode_reflog,
    encode_tag,
    entry_measure,
    node_digest,
    reflog_key,
    session_key,
)
from vzarr.inspection import MAX_PLACES
from vzarr.node import REFERENCE, encode_node
from vzarr.objects import Overlay, put_root
from vzarr.walk import Walk

AUTHOR = "Ada <ada@example.org>"
NOWHERE = Digest(b"\xee" * 32)
COMMITS = 4
"""How many commits main has, one for its creation among them."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the repository is; unlike elsewhere, it need not be sound when the test ends."""
    return tmp_path / "test.vzarr"


@pytest.fixture
def ocean(path: Path, _ocean: Path) -> Path:
    """Arrays, groups and files in four commits on main; v1 names the third, dev the fourth."""
    shutil.copy(_ocean, path)
    return path


@pytest.fixture(scope="module")
def _ocean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ocean") / "test.vzarr"
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction("main", "make") as store:
            sst = zarr.create_array(
                store, name="ocean/sst", shape=(180, 40), chunks=(90, 10), dtype="f4",
                compressors=None,
            )  # fmt: skip
            sst[:] = np.arange(7200).reshape(180, 40)
            many = zarr.create_array(
                store, name="many", shape=(40, 50), chunks=(1, 1), dtype="i2", compressors=None
            )
            many[:] = np.arange(2000).reshape(40, 50) + 1
            scalar = zarr.create_array(store, name="scalar", shape=(), dtype="f8", compressors=None)
            scalar[...] = 3.25
        with repo.transaction("main", "describe") as store:
            zarr.open_array(store, path="ocean/sst").attrs["units"] = "degC"
            store.session.set("ocean/notes.txt", b"The buoy was lost in March.\n")
            for number in range(200):
                store.session.set(f"log/{number:03d}", b"%d" % number)
        repo.tags.create("v1")
        with repo.transaction("main", "mend") as store:
            zarr.open_array(store, path="ocean/sst")[100, 5] = -1
        repo.branches.create("dev")
    return path


def run(path: Path, level: Level = "full") -> Report:
    report = check_file(str(path), level)
    assert report.ok == (not report.problems)
    return report


def only(path: Path, level: Level = "full") -> Problem:
    """Give the one problem that there is."""
    (problem,) = run(path, level).problems
    assert str(problem) in str(run(path, level))
    return problem


def heads(path: Path) -> list[str]:
    """Give the ids of main's commits, newest first."""
    with vzarr.open(path, "r") as repo:
        return [commit.id for commit in repo.log("main")]


def stored(path: Path, key: str, ref: str = "main") -> tuple[Blob, bytes]:
    with vzarr.open(path, "r") as repo:
        blob = repo.session(ref).hierarchy.find(key)
        assert blob is not None
        return blob, repo._objects.read(blob)


def entry_of(path: Path, name: str, ref: str = "main") -> Entry:
    with vzarr.open(path, "r") as repo:
        entry = repo.session(ref).hierarchy.entry(name)
    assert entry is not None
    return entry


def record_of(path: Path, database: str, key: bytes) -> bytes:
    with vzarr.open(path, "r") as repo, repo._environment.read() as txn:
        data = txn.get(database, key)
    assert data is not None
    return data


def flip(path: Path, data: bytes, offset: int = 0) -> None:
    """Change one byte of a value in the file, which nobody has open."""
    content = bytearray(path.read_bytes())
    # Pages that are free by now may hold it too.
    found = content.find(data)
    assert found >= 0
    while found >= 0:
        content[found + offset] ^= 0x10
        found = content.find(data, found + 1)
    path.write_bytes(content)


class writing:
    """A raw write txn on a file."""

    def __init__(self, path: Path) -> None:
        self._environment = Environment.open(str(path), writable=True)

    def __enter__(self) -> Txn:
        self._txn = self._environment.write()
        return self._txn.__enter__()

    def __exit__(self, *raised) -> None:
        self._txn.__exit__(*raised)
        self._environment.close()


def delete(path: Path, database: str, key: bytes) -> None:
    with writing(path) as txn:
        assert txn.delete(database, key)


def put_node(txn: Txn, level: int, keys: list[bytes], values: list[bytes]) -> bytes:
    data = encode_node(level, keys, values)
    txn.put("nodes", node_digest(data), data)
    return node_digest(data)


def commit_entry(txn: Txn, **changes) -> str:
    """Make a commit on main whose root has one more or another member."""
    head = txn.get("branches", b"main")
    root = put_root(txn, Entry({}, directory=directory(txn, **changes)))
    commit = history.put(txn, CommitRecord((Digest(head),), root, AUTHOR, 2**50, "craft", {}))
    txn.put("branches", b"main", commit)
    return commit.hex()


def directory(txn: Txn, **members: Entry) -> TreeRef:
    keys = sorted(name.encode() for name in members)
    entries = [members[key.decode()] for key in keys]
    digest = put_node(txn, 0, keys, [encode_entry(entry) for entry in entries])
    count, nbytes = sum(entry.count for entry in entries), sum(entry.nbytes for entry in entries)
    return TreeRef(digest, count, nbytes)


DEFAULT = Layout(0, 1)
ARRAY = (
    b'{"zarr_format":3,"node_type":"array","shape":[8],"data_type":"uint8","chunk_grid":'
    b'{"name":"regular","configuration":{"chunk_shape":[2]}},"chunk_key_encoding":'
    b'{"name":"default"},"fill_value":0,"codecs":[{"name":"bytes"}]}'
)


def array(txn: Txn, index: TreeRef | None, layout: Layout | None = DEFAULT) -> Entry:
    return Entry({"zarr.json": value(txn, ARRAY)}, layout=layout, index=index)


def value(txn: Txn, data: bytes) -> Blob:
    txn.put("chunks", chunk_digest(data), data)
    return Blob(chunk_digest(data), len(data))


def coordinates(*numbers: int) -> bytes:
    return encode_coordinates(numbers)


# ── sound ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_sound_file(ocean, level):
    report = run(ocean, level)
    assert report.ok
    assert (report.level, report.path, report.omitted) == (level, str(ocean), 0)
    assert report.commits == COMMITS
    with vzarr.open(ocean, "r") as repo:
        facts = repo._environment.info().entries
    assert (report.nodes, report.chunks) == (facts["nodes"], facts["chunks"])
    assert (report.garbage, report.garbage_bytes) == ((0, 0) if level == "full" else (None, None))
    assert str(report) == repr(report)
    assert f"{ocean}: sound ({level} check)\n4 commits, " in str(report)


def test_full_hashes_every_byte(ocean):
    with vzarr.open(ocean, "r") as repo, repo._environment.read() as txn:
        size = sum(
            len(data) for name in ("commits", "nodes", "chunks") for _, data in txn.scan(name)
        )
    assert run(ocean).nbytes == size
    assert run(ocean, "quick").nbytes < size


def test_an_empty_repository(path):
    with vzarr.open(path, author=AUTHOR) as repo:
        assert check(repo._objects, "full").ok
    assert run(path).ok


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_an_open_repository(ocean, mode):
    before = ocean.read_bytes()
    with vzarr.open(ocean, mode) as repo:
        readers = repo._environment.info().readers
        report = check(repo._objects, "full")
        assert repo._environment.info().readers == readers
    alike = {"path": report.path, "seconds": 0}
    assert dataclasses.replace(run(ocean), **alike) == dataclasses.replace(report, **alike)
    assert ocean.read_bytes() == before


@pytest.mark.parametrize("level", ["deep", "", None, 1])
def test_no_such_level(ocean, level):
    with pytest.raises(InvalidInputError, match="level= is 'quick' or 'full'"):
        check_file(str(ocean), level)
    with vzarr.open(ocean, "r") as repo, pytest.raises(InvalidInputError):
        check(repo._objects, level)


def test_a_closed_repository(ocean):
    repo = vzarr.open(ocean)
    repo.close()
    with pytest.raises(SessionStateError):
        check(repo._objects)


def test_garbage_is_counted(ocean):
    with writing(ocean) as txn:
        value(txn, b"nobody wants me")
        put_node(txn, 0, [b"key"], [b"value"])
    report = run(ocean)
    assert report.ok
    assert (report.garbage, report.garbage_bytes) == (
        2,
        15 + len(encode_node(0, [b"key"], [b"v" * 5])),
    )
    assert f"garbage: 2 objects of {report.garbage_bytes} bytes" in str(report)


def test_what_the_reflog_and_living_sessions_hold_is_no_garbage(ocean):
    with vzarr.open(ocean, author=AUTHOR) as repo:
        repo.branches.reset("main", "main~1")
        repo.branches.delete("dev")
        session = repo.session("main")
        session.set("staged", os.urandom(17 << 20))
        session.checkpoint()
        assert repo._environment.info().entries["sessions"] > 0
        report = check(repo._objects, "full")
        assert (report.ok, report.garbage) == (True, 0)
        session.discard()
        assert check(repo._objects, "full").garbage > 0
        session.close()


# ── checksums ────────────────────────────────────────────────────────────────────────────────────

LARGE = bytes(range(256)) * (CHECKSUM_FROM_BYTES // 256)
LARGE_DIGEST = chunk_digest(LARGE)


@pytest.fixture
def large(ocean) -> Path:
    """The ocean, with a value that has a checksum."""
    with vzarr.open(ocean, author=AUTHOR) as repo, repo.transaction("main", "large") as store:
        store.session.set("large.bin", LARGE)
    return ocean


def test_a_sound_checksum(large):
    report = run(large)
    assert (report.ok, report.unsummed, report.stray_checksums) == (True, 0, 0)
    assert "checksum" not in report.summary().partition("hashed")[2]
    assert run(large, "quick").stray_checksums is None


@pytest.mark.parametrize("wrong", [bytes(16), b"", bytes(17), b"x" * 5000])
def test_a_wrong_checksum_of_a_sound_chunk(large, wrong):
    with writing(large) as txn:
        txn.put("checksums", LARGE_DIGEST, wrong)
    assert run(large, "quick").ok
    problem = only(large)
    assert problem.kind == "checksum"
    assert (
        problem.message
        == f"chunk {LARGE_DIGEST.hex()[:12]} is sound, but its checksum is another's"
    )
    assert problem.cost.startswith("its data can be read, at the cost of a digest each time; ")
    # It hides nothing, so that garbage is counted all the same.
    assert run(large).garbage == 0


def test_recovery_mends_checksums(large, tmp_path):
    with writing(large) as txn:
        txn.put("checksums", LARGE_DIGEST, bytes(16))
    saved = tmp_path / "saved.vzarr"
    vzarr.recover(large, saved)
    assert run(saved).ok
    assert record_of(saved, "checksums", LARGE_DIGEST) == chunk_checksum(LARGE)


def test_a_damaged_chunk_is_told_of_and_not_its_checksum(large):
    with writing(large) as txn:
        txn.put("chunks", LARGE_DIGEST, LARGE[1:] + LARGE[:1])
        txn.put("checksums", LARGE_DIGEST, chunk_checksum(LARGE[1:] + LARGE[:1]))
    assert only(large).kind == "file"


def test_many_wrong_checksums(path):
    with vzarr.open(path, author=AUTHOR) as repo, repo.transaction("main", "large") as store:
        for number in range(103):
            store.session.set(f"{number}.bin", number.to_bytes(1, "big") + LARGE)
    with writing(path) as txn:
        for digest, _ in list(txn.scan("checksums", keys_only=True)):
            txn.put("checksums", digest, bytes(16))
    report = run(path)
    assert {problem.kind for problem in report.problems} == {"checksum"}
    assert (len(report.problems), report.omitted) == (100, 3)


def test_a_checksum_that_is_missing_is_no_problem(large):
    delete(large, "checksums", LARGE_DIGEST)
    report = run(large)
    assert (report.ok, report.unsummed) == (True, 1)
    assert "large values without a checksum, read by digest: 1" in str(report)
    assert run(large, "quick").unsummed == 0


def test_a_checksum_without_a_chunk_is_for_gc(large):
    with writing(large) as txn:
        txn.put("checksums", NOWHERE, bytes(16))
    report = run(large)
    assert (report.ok, report.stray_checksums) == (True, 1)
    assert "checksums of what is not there, for gc to delete: 1" in str(report)
    with vzarr.open(large, author=AUTHOR) as repo:
        repo.gc()
    assert run(large).stray_checksums == 0


# ── chunks, documents, files ─────────────────────────────────────────────────────────────────────


def test_a_flipped_bit_in_a_chunk(ocean):
    blob, data = stored(ocean, "ocean/sst/c/0/1")
    flip(ocean, data, 100)
    assert run(ocean, "quick").ok
    assert only(ocean) == Problem(
        kind="chunk",
        message=f"ocean/sst: chunk {blob.digest.hex()[:12]}: its bytes do not match its digest",
        cost="elements [0:90, 10:20] of ocean/sst cannot be read "
        "at dev, main, tag v1 and 1 older commit",
        path="ocean/sst",
        coordinates=(0, 1),
        region=(slice(0, 90), slice(10, 20)),
        commit=heads(ocean)[0],
        branches=("dev", "main"),
        tags=("v1",),
        commits=3,
    )


def test_damage_that_only_older_commits_show(ocean):
    _, data = stored(ocean, "ocean/sst/c/1/0", "v1")
    flip(ocean, data)
    problem = only(ocean)
    assert (problem.coordinates, problem.commit) == ((1, 0), heads(ocean)[1])
    assert (problem.branches, problem.tags, problem.commits) == ((), ("v1",), 2)
    assert problem.cost == (
        "elements [90:180, 0:10] of ocean/sst cannot be read at tag v1 and 1 older commit"
    )
    with vzarr.open(ocean) as repo:
        repo.tags.delete("v1")
    assert only(ocean).cost.endswith(f"at commit {heads(ocean)[1][:12]} and 1 older commit")


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_missing_chunk(ocean, level):
    blob, _ = stored(ocean, "scalar/c")
    delete(ocean, "chunks", blob.digest)
    problem = only(ocean, level)
    assert problem.message == f"scalar: chunk {blob.digest.hex()[:12]}: it is missing"
    assert problem.cost.startswith("the value of scalar cannot be read at dev, main, tag v1")
    assert (problem.kind, problem.coordinates, problem.region) == ("chunk", (), ())


def test_a_chunk_of_the_wrong_length(ocean):
    blob, data = stored(ocean, "ocean/sst/c/0/0")
    with writing(ocean) as txn:
        index = TreeRef(
            put_node(txn, 0, [coordinates(1)], [encode_blob(Blob(blob.digest, 7))]), 1, 7
        )
        commit = commit_entry(txn, short=array(txn, index))
    problem = only(ocean)
    assert problem.message.endswith(f"it has {len(data):,} bytes where 7 are said to be")
    assert problem.cost == "elements [2:4] of short cannot be read at main"
    assert (problem.commit, problem.coordinates) == (commit, (1,))


def test_a_chunk_at_several_places(path):
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction("main") as store:
            for name in ("a", "b"):
                zarr.create_array(
                    store, name=name, shape=(6,), chunks=(2,), dtype="i1", fill_value=0,
                    compressors=None,
                )[2:] = 7  # fmt: skip
        blob = repo.session("main").hierarchy.find("a/c/1")
    delete(path, "chunks", blob.digest)
    found = {(problem.path, problem.coordinates) for problem in run(path).problems}
    assert found == {(name, (number,)) for name in ("a", "b") for number in (1, 2)}


def test_the_region_follows_the_shape_of_the_newest_commit(ocean):
    blob, _ = stored(ocean, "ocean/sst/c/1/1")
    with vzarr.open(ocean, author=AUTHOR) as repo, repo.transaction("main") as store:
        store.session.set("ocean/sst/c/9/9", b"beyond the shape")
        document = store.session.get("ocean/sst/zarr.json")
        store.session.set("ocean/sst/zarr.json", bytes(document).replace(b"180", b"170"))
    delete(ocean, "chunks", blob.digest)
    problem = only(ocean)
    assert problem.region == (slice(90, 170), slice(10, 20))
    assert problem.commits == 4
    delete(ocean, "chunks", chunk_digest(b"beyond the shape"))
    beyond = run(ocean).problems[1]
    assert (beyond.coordinates, beyond.region) == ((9, 9), None)
    assert beyond.cost == "chunk (9, 9) of ocean/sst cannot be read at main"


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_flipped_bit_in_a_document(ocean, level):
    blob, data = stored(ocean, "ocean/sst/zarr.json")
    flip(ocean, data, 10)
    assert only(ocean, level) == Problem(
        kind="document",
        message=f"ocean/sst: document {blob.digest.hex()[:12]}: its bytes do not match its digest",
        cost="ocean/sst cannot be opened at dev, main and tag v1",
        path="ocean/sst",
        document="zarr.json",
        commit=heads(ocean)[0],
        branches=("dev", "main"),
        tags=("v1",),
        commits=2,
    )


def test_documents_of_zarr_format_2(path):
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction("main") as store:
            v2 = zarr.create_array(
                store, name="v2", shape=(4,), chunks=(2,), dtype="i1", zarr_format=2
            )
            v2[:] = 5
            v2.attrs["a"] = 1
        blob = repo.session("main").hierarchy.find("v2/.zattrs")
    delete(path, "chunks", blob.digest)
    problem = only(path)
    assert (problem.kind, problem.document) == ("document", ".zattrs")
    assert problem.cost == "the attributes of v2 cannot be read at main"


def test_a_document_that_is_no_json(ocean):
    with vzarr.open(ocean, author=AUTHOR) as repo, repo.transaction("main") as store:
        store.session.set("ocean/zarr.json", b"{not json")
        store.session.set("zarr.json", b"[" * 100_000)
    assert run(ocean, "quick").ok
    by_path = {problem.path: problem for problem in run(ocean).problems}
    assert set(by_path) == {"", "ocean"}
    assert {problem.kind for problem in by_path.values()} == {"metadata"}
    assert by_path["ocean"].cost == "zarr does not take it: ocean cannot be opened at main"
    assert by_path[""].cost == "zarr does not take it: the root group cannot be opened at main"


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_missing_file(ocean, level):
    blob, _ = stored(ocean, "ocean/notes.txt")
    delete(ocean, "chunks", blob.digest)
    problem = only(ocean, level)
    assert (problem.kind, problem.path) == ("file", "ocean/notes.txt")
    assert problem.cost == "the file ocean/notes.txt cannot be read at dev, main and tag v1"


def test_large_chunks_go_to_threads(path, monkeypatch):
    names = set()
    inspect = evidence.Values._inspect

    def note(self, references):
        names.add(threading.current_thread().name.rpartition("_")[0])
        return inspect(self, references)

    monkeypatch.setattr(evidence.Values, "_inspect", note)
    with vzarr.open(path, author=AUTHOR) as repo, repo.transaction("main") as store:
        for number in range(40):
            store.session.set(f"file{number}", bytes([number]) * (1 << 20))
    flip(path, b"\x07" * (1 << 20), 12345)
    assert only(path).path == "file7"
    assert names == {"", "vzarr-check"}
    assert not [thread for thread in threading.enumerate() if "vzarr-check" in thread.name]


def test_more_damage_than_is_told(path):
    with vzarr.open(path, author=AUTHOR) as repo, repo.transaction("main") as store:
        many = zarr.create_array(
            store, name="many", shape=(1500,), chunks=(1,), dtype="i2", compressors=None
        )
        many[:] = np.arange(1500) + 1
    with writing(path) as txn:
        for number in range(1500):
            assert txn.delete("chunks", chunk_digest((number + 1).to_bytes(2, "little")))
    report = run(path)
    assert (len(report.problems), report.omitted) == (MAX_PLACES, 500)
    assert "… and at least 500 more" in str(report)
    assert f"{path}: 1,500 problems (full check)" in str(report)


# ── trees ────────────────────────────────────────────────────────────────────────────────────────


def nodes_of(path: Path, tree: TreeRef, measure) -> list[tuple[bytes, int, list[bytes]]]:
    with vzarr.open(path, "r") as repo:
        walk = Tree(Overlay(repo._objects), measure).walk(tree)
        return [(digest, node.level, node.keys) for digest, node in walk]


@pytest.mark.parametrize("damage", ["flip", "delete"])
@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_lost_leaf_of_an_index(ocean, damage, level):
    index = entry_of(ocean, "many").index
    nodes = nodes_of(ocean, index, blob_measure)
    leaves = [(digest, keys) for digest, depth, keys in nodes if depth == 0]
    assert len(leaves) > 3
    digest, keys = leaves[1]
    if damage == "flip":
        flip(ocean, record_of(ocean, "nodes", digest), 40)
    else:
        delete(ocean, "nodes", digest)
    # Behind the last key of the leaf before, up to its own: in row-major order.
    low = np.frombuffer(leaves[0][1][-1], ">u4")
    high = np.frombuffer(keys[-1], ">u4")
    rows = slice(int(low[0]), int(high[0]) + 1)
    columns = slice(0, 50) if low[0] < high[0] else slice(int(low[1]), int(high[1]) + 1)
    why = "it is missing" if damage == "delete" else "its bytes do not match its digest"
    assert only(ocean, level) == Problem(
        kind="index",
        message=f"many: tree node {digest.hex()[:12]}: {why}",
        cost=f"{len(keys)} values ({2 * len(keys)} bytes) of many, within elements "
        f"[{rows.start}:{rows.stop}, {columns.start}:{columns.stop}] of many, cannot be read "
        "at dev, main, tag v1 and 1 older commit",
        path="many",
        region=(rows, columns),
        commit=heads(ocean)[0],
        branches=("dev", "main"),
        tags=("v1",),
        commits=3,
    )
    assert run(ocean, "full").garbage is None


def test_a_lost_root_of_an_index_and_nothing_else(ocean):
    flip(ocean, stored(ocean, "ocean/sst/c/0/3")[1])
    delete(ocean, "nodes", entry_of(ocean, "many").index.digest)
    problems = {problem.path: problem for problem in run(ocean).problems}
    assert set(problems) == {"many", "ocean/sst"}
    assert problems["many"].region == (slice(0, 40), slice(0, 50))
    assert problems["many"].cost.startswith("2,000 values (4,000 bytes) of many, within elements")


def test_a_lost_leaf_of_a_directory(ocean):
    log = entry_of(ocean, "log")
    leaves = [
        (digest, keys)
        for digest, depth, keys in nodes_of(ocean, log.directory, entry_measure)
        if depth == 0
    ]
    digest, keys = leaves[1]
    delete(ocean, "nodes", digest)
    problem = only(ocean, "quick")
    before, last = leaves[0][1][-1].decode(), keys[-1].decode()
    size = sum(len(str(int(key))) for key in keys)
    assert (problem.kind, problem.path) == ("directory", "log")
    assert problem.cost == (
        f"{len(keys)} values ({size} bytes) in log cannot be read at dev, main and tag v1: "
        f"members after {before!r}, up to {last!r}"
    )


def test_a_lost_directory(ocean):
    delete(ocean, "nodes", entry_of(ocean, "ocean").directory.digest)
    problem = only(ocean)
    assert (problem.kind, problem.path, problem.commits) == ("directory", "ocean", 1)
    assert problem.cost.endswith("in ocean cannot be read at dev and main: all members")
    assert problem.branches == ("dev", "main")


def test_a_lost_root_of_a_snapshot(ocean):
    commit = decode_commit(record_of(ocean, "commits", bytes.fromhex(heads(ocean)[1])))
    flip(ocean, record_of(ocean, "nodes", commit.root))
    assert only(ocean) == Problem(
        kind="snapshot",
        message=f"/: root {commit.root.hex()[:12]}: its bytes do not match its digest",
        cost="nothing can be read at tag v1",
        path="",
        commit=heads(ocean)[1],
        tags=("v1",),
        commits=1,
    )


def index_of(txn: Txn, keys: list[bytes], *, count: int | None = None) -> TreeRef:
    """Write an index with one leaf."""
    reference = encode_blob(value(txn, b"ab"))
    digest = put_node(txn, 0, keys, [reference] * len(keys))
    return TreeRef(digest, len(keys) if count is None else count, 2 * len(keys))


def two_leaves(txn: Txn, one: list[bytes], two: list[bytes], **wrong) -> TreeRef:
    """Write an index of two leaves, as they are told by the node above; maybe wrongly."""
    leaves = [index_of(txn, keys) for keys in (one, two)]
    references = [REFERENCE.pack(leaf.digest, leaf.count, leaf.nbytes) for leaf in leaves]
    if "sums" in wrong:
        references[1] = REFERENCE.pack(leaves[1].digest, *wrong["sums"])
    keys = [wrong.get("key", one[-1]), two[-1]]
    digest = put_node(txn, wrong.get("level", 1), keys, references)
    sums = [REFERENCE.unpack(reference)[1:] for reference in references]
    return TreeRef(digest, *(sum(column) for column in zip(*sums, strict=True)))


def ends(key: bytes) -> bool:
    """Whether a key ends a leaf."""
    from vzarr.format import key_hash

    return not key_hash(key) & 31


ENDING = next(coordinates(number) for number in range(1, 1000) if ends(coordinates(number)))
PLAIN = [coordinates(n) for n in range(2000, 2100) if not ends(coordinates(n))][:4]


@pytest.mark.parametrize("level", ["quick", "full"])
def test_wrong_sums_of_a_tree(ocean, level):
    with writing(ocean) as txn:
        commit = commit_entry(txn, a=array(txn, index_of(txn, PLAIN, count=9)))
    problem = only(ocean, level)
    assert (problem.kind, problem.path, problem.commit) == ("sums", "a", commit)
    assert problem.message == "a: a tree of 4 of 8 bytes is said to have 9 values of 8 bytes"
    assert problem.cost == "counts and sizes of a are wrong at main; the data can be read"


def test_wrong_sums_of_a_node(ocean):
    with writing(ocean) as txn:
        commit_entry(txn, a=array(txn, two_leaves(txn, [ENDING], PLAIN, sums=(5, 8))))
    problem = only(ocean)
    assert problem.kind == "sums"
    assert "gives wrong sums for" in problem.message


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (PLAIN[:2], PLAIN[2:], "ends at a key that ends no node"),
        ([ENDING, PLAIN[0]], PLAIN[1:], "goes on after a key that ends a node"),
    ],
)
def test_nodes_that_end_elsewhere(ocean, one, two, message):
    with writing(ocean) as txn:
        commit_entry(txn, a=array(txn, two_leaves(txn, one, two)))
    problems = run(ocean).problems
    assert {problem.kind for problem in problems} == {"tree"}
    assert message in problems[0].message + problems[-1].message
    assert problems[0].cost == (
        "comparisons and merges of a may go wrong at main; the data can be read"
    )


def test_a_root_with_one_child(ocean):
    with writing(ocean) as txn:
        leaf = index_of(txn, [ENDING])
        above = put_node(txn, 1, [ENDING], [REFERENCE.pack(leaf.digest, 1, 2)])
        commit_entry(txn, a=array(txn, TreeRef(above, 1, 2)))
    problem = only(ocean)
    assert (problem.kind, "has a single child" in problem.message) == ("tree", True)


@pytest.mark.parametrize("wrong", [{"level": 2}, {"key": PLAIN[0][:3] + b"\0"}])
def test_a_node_that_is_not_what_its_parent_says(ocean, wrong):
    with writing(ocean) as txn:
        commit_entry(txn, a=array(txn, two_leaves(txn, [ENDING], PLAIN[1:], **wrong)))
    problems = run(ocean).problems
    assert {problem.kind for problem in problems} == {"index"}
    assert all("it is not the one that its parent says" in each.message for each in problems)


def test_keys_out_of_order_across_nodes(ocean):
    with writing(ocean) as txn:
        low = index_of(txn, [PLAIN[0], ENDING] if PLAIN[0] < ENDING else [ENDING])
        high = index_of(txn, [coordinates(0), PLAIN[1]])
        keys, leaves = [ENDING, PLAIN[1]], [low, high]
        values = [REFERENCE.pack(leaf.digest, leaf.count, leaf.nbytes) for leaf in leaves]
        root = put_node(txn, 1, keys, values)
        commit_entry(txn, a=array(txn, TreeRef(root, low.count + 2, low.nbytes + 4)))
    problem = only(ocean)
    assert (problem.kind, problem.cost.split(" of a")[0]) == ("index", "2 values (4 bytes)")


def test_a_directory_where_an_index_should_be(ocean):
    with writing(ocean) as txn:
        members = directory(txn, file=Entry({}, file=value(txn, b"ab")))
        commit_entry(txn, a=array(txn, members), b=Entry({}, directory=members))
    problems = run(ocean).problems
    assert {(problem.kind, problem.path) for problem in problems} <= {
        ("index", "a"), ("directory", "b"), ("sums", "a"),
    }  # fmt: skip
    assert any("another kind of tree" in problem.message for problem in problems)


def test_keys_of_other_dimensions(ocean):
    with writing(ocean) as txn:
        commit_entry(txn, a=array(txn, index_of(txn, [coordinates(1, 2)])))
    problem = only(ocean)
    assert problem.message == "a: the keys of a chunk index are not those of 1 dimensions"


def test_a_value_that_is_no_reference(ocean):
    with writing(ocean) as txn:
        index = TreeRef(put_node(txn, 0, [PLAIN[0]], [b"short"]), 1, 2)
        commit_entry(txn, a=array(txn, index))
    kinds = {problem.kind: problem for problem in run(ocean).problems}
    assert set(kinds) == {"index", "sums"}
    assert "no reference to a chunk" in kinds["index"].message


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_wrong_layout(ocean, level):
    with writing(ocean) as txn:
        commit_entry(
            txn, a=array(txn, index_of(txn, PLAIN), Layout(1, 1)), b=array(txn, None, None)
        )
    by_path = {problem.path: problem for problem in run(ocean, level).problems}
    assert {problem.kind for problem in by_path.values()} == {"layout"}
    assert by_path["a"].message == (
        "a: an entry says chunk keys like 'c.0', while its documents say chunk keys like 'c/0'"
    )
    assert by_path["b"].message.startswith("b: an entry says that it is no array")
    assert by_path["a"].cost == ("chunks of a are not found where zarr looks for them at main")


def test_an_entry_that_cannot_be_read(ocean):
    with writing(ocean) as txn:
        file = Entry({}, file=value(txn, b"ab"))
        digest = put_node(txn, 0, [b"a", b"b", b"c/d", b"e"], [
            b"\xc1", encode_entry(file), encode_entry(file), encode_entry(Entry({})),
        ])  # fmt: skip
        commit_entry(txn, group=Entry({}, directory=TreeRef(digest, 2, 4)))
    by_path = {problem.path: problem for problem in run(ocean).problems}
    assert set(by_path) == {"group/a", "group/c/d", "group/e"}
    assert {problem.kind for problem in by_path.values()} == {"entry"}
    assert by_path["group/a"].cost == "group/a, with all below it, cannot be read at main"


def test_keys_in_the_wrong_place(ocean):
    with writing(ocean) as txn:
        file = Entry({}, file=value(txn, b"ab"))
        below = Entry({}, directory=directory(txn, **{"0": file, "x": file}))
        inner = array(txn, None)
        inner = dataclasses.replace(
            inner, directory=directory(txn, **{"c": below, "zarr.json": file, "fine": file})
        )
        commit_entry(txn, a=inner)
    problems = run(ocean).problems
    assert {problem.path for problem in problems} == {"a/c/0", "a/zarr.json"}
    assert {problem.kind for problem in problems} == {"place"}


def test_deep_groups_are_checked_as_deep_as_they_can_be_written(path):
    with vzarr.open(path, author=AUTHOR) as repo:
        deepest = 0
        for depth in (50, 100, 150, 200):
            session = repo.session("main")
            session.set("g/" * depth + "zarr.json", b'{"zarr_format":3,"node_type":"group"}')
            session.commit(f"{depth} groups")
            deepest = depth
            session.close()
    assert deepest == 200
    assert run(path).ok


# ── commits and refs ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_flipped_bit_in_a_commit(ocean, level):
    head = heads(ocean)[0]
    flip(ocean, record_of(ocean, "commits", bytes.fromhex(head)), 70)
    problem = only(ocean, level)
    assert problem == Problem(
        kind="commit",
        message=f"commit {head[:12]}: its bytes do not match its digest",
        cost="branch dev cannot be read and branch main cannot be read",
        commit=head,
        branches=("dev", "main"),
        commits=1,
    )


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_missing_commit_in_the_middle(ocean, level):
    ids = heads(ocean)
    delete(ocean, "commits", bytes.fromhex(ids[2]))
    problem = only(ocean, level)
    assert (problem.kind, problem.commit, problem.branches) == ("commit", ids[2], ())
    assert problem.message == (f"commit {ids[2][:12]}, a parent of {ids[1][:12]}: it is missing")
    cost = f"neither it nor what came before it can be read from {ids[1][:12]}"
    assert problem.cost == cost + (
        " and branch main cannot be put back to it" if level == "full" else ""
    )
    # The reflog still leads to what came before.
    assert run(ocean, level).commits == (COMMITS if level == "full" else 3)


def test_a_dangling_branch(ocean):
    with writing(ocean) as txn:
        txn.put("branches", b"lost", NOWHERE)
    problem = only(ocean, "quick")
    assert problem == Problem(
        kind="branch",
        message=f"branch lost refers to commit {NOWHERE.hex()[:12]}: it is missing",
        cost="branch lost cannot be read",
        commit=NOWHERE.hex(),
        branches=("lost",),
        commits=1,
    )


def test_a_dangling_tag(ocean):
    with writing(ocean) as txn:
        txn.put("tags", b"lost", encode_tag(TagRecord(NOWHERE, "", AUTHOR, 0)))
    problem = only(ocean, "quick")
    assert (problem.kind, problem.tags) == ("tag", ("lost",))
    assert problem.cost == "tag lost cannot be read"


def test_a_dangling_reflog(ocean):
    with writing(ocean) as txn:
        record = ReflogRecord(NOWHERE, Digest(txn.get("branches", b"main")), AUTHOR, 0, "reset")
        txn.put("reflog", reflog_key("main", 99), encode_reflog(record))
    assert run(ocean, "quick").ok
    problem = only(ocean)
    assert (problem.kind, problem.cost) == ("reflog", "branch main cannot be put back to it")


@pytest.mark.parametrize(
    ("database", "key", "data", "kind", "message"),
    [
        ("branches", b"short", b"\0" * 31, "branch", "its record has 31 bytes"),
        ("branches", b"a b", None, "branch", "'a b' is no branch name"),
        ("branches", b"caf\xe9", None, "branch", "can't decode"),
        ("tags", b"t", b"\xc1", "tag", "the tag record is damaged"),
        ("reflog", b"no number", b"\xc1", "reflog", "is no name and number"),
        ("reflog", reflog_key("main", 7), b"\xc1", "reflog", "the reflog record is damaged"),
        ("sessions", session_key(b"\1" * 16, 0), b"\xc1", "session", "session record is damaged"),
    ],
)
def test_malformed_records(ocean, database, key, data, kind, message):
    with writing(ocean) as txn:
        txn.put(database, key, txn.get("branches", b"main") if data is None else data)
    problem = only(ocean)
    assert problem.kind == kind
    assert message in problem.message
    assert problem.cost


@pytest.mark.parametrize(
    ("key", "data", "message"),
    [
        (b"format", None, "is missing"),
        (b"repository", None, "is missing"),
        (b"format", b"\xc1", "the format record is damaged"),
        (b"repository", b"\xc1", "the repository record is damaged"),
    ],
)
def test_a_damaged_format_record(ocean, key, data, message):
    with writing(ocean) as txn:
        if data is None:
            txn.delete("meta", key)
        else:
            txn.put("meta", key, data)
    problem = only(ocean)
    assert (problem.kind, message in problem.message) == ("format", True)
    assert run(ocean).commits == COMMITS


def test_a_newer_format(ocean):
    with writing(ocean) as txn:
        txn.put("meta", b"format", encode_format(FormatRecord(9, 9)))
    problem = only(ocean)
    assert (problem.kind, "has format 9" in problem.message) == ("format", True)
    assert run(ocean).commits == 0


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def working(ocean: Path) -> Iterator[tuple[Path, vzarr.Session, LeaseRecord]]:
    """A session with a checkpoint and staged values, its owner alive."""
    with vzarr.open(ocean, author=AUTHOR) as repo:
        session = repo.session("main")
        session.set("staged", b"staged" * (4 << 20))
        session.checkpoint()
        with repo._environment.read() as txn:
            ((_, lease),) = leases.leases(txn)
        yield ocean, session, lease
        session.close()


def test_a_checkpoint_that_is_lost(working):
    path, session, lease = working
    assert run(path).ok
    delete(path, "nodes", lease.checkpoint)
    problem = only(path)
    assert (problem.kind, problem.commit, problem.commits) == ("snapshot", None, 0)
    assert problem.cost == (f"nothing can be read in the uncommitted work of session {session.id}")


def test_staged_values_that_are_lost(ocean):
    with vzarr.open(ocean, author=AUTHOR) as repo:
        base = Digest(bytes.fromhex(repo.branches["main"]))
        lease = leases.Lease.create(repo._environment, "main", base)
        with repo._environment.write() as txn:
            lease.add(txn, value(txn, b"staged").digest + NOWHERE, 6)
        problem = only(ocean)
        assert problem.kind == "session"
        assert problem.message == (
            f"session {lease.id.hex()}: 1 of the values that it put into the file are missing"
        )
        assert run(ocean, "quick").ok
        # Once its owner is gone, nobody waits for them.
        lease.close()
        assert run(ocean).garbage == 1


def test_what_a_dead_session_staged_may_go(ocean):
    record = LeaseRecord(
        kind=0, token=4711, pid=1, process_started=1, host=os.uname().nodename, command="",
        parent=None, branch="main", base=NOWHERE, created=0, updated=0, nbytes=0, staged=NOWHERE,
        checkpoint=None, checkpointed=None,
    )  # fmt: skip
    with writing(ocean) as txn:
        txn.put("sessions", session_key(b"\1" * 16, 0), leases.encode_lease(record))
        txn.put("sessions", session_key(b"\1" * 16, 1), NOWHERE)
    assert run(ocean).ok
    saved = dataclasses.replace(record, checkpoint=NOWHERE, checkpointed=0)
    with writing(ocean) as txn:
        txn.put("sessions", session_key(b"\1" * 16, 0), leases.encode_lease(saved))
    kinds = sorted(problem.kind for problem in run(ocean).problems)
    assert kinds == ["session", "snapshot"]


# ── LMDB's structure ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", ["empty", "text", "directory", "lmdb"])
def test_what_is_no_repository(tmp_path, make):
    path = tmp_path / "thing"
    match make:
        case "empty":
            path.touch()
        case "text":
            path.write_text("once upon a time\n" * 1000)
        case "directory":
            path.mkdir()
        case "lmdb":
            import lmdb

            lmdb.open(str(path), subdir=False, lock=False).close()
    problem = only(path)
    assert problem.kind == "format"
    assert str(path) in problem.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing"]


def test_no_file(tmp_path):
    with pytest.raises(NotFoundError):
        check_file(str(tmp_path / "nope"))


def test_a_file_that_is_cut_off(ocean):
    whole = ocean.read_bytes()
    for size in range(4096, len(whole), len(whole) // 40):
        ocean.write_bytes(whole[:size])
        report = run(ocean)
        assert report.problems[0].kind in ("storage", "format")
    # What lies before the cut is still checked: commits are among the last things to be written.
    ocean.write_bytes(whole[: len(whole) * 3 // 4])
    report = run(ocean)
    assert (
        "is cut off" in report.problems[0].message or "lacks its last" in report.problems[0].message
    )


@pytest.fixture
def small(path: Path) -> Path:
    """A repository of some thirty pages."""
    with vzarr.open(path, author=AUTHOR) as repo:
        with repo.transaction("main") as store:
            sst = zarr.create_array(
                store, name="sst", shape=(4, 1000), chunks=(1, 1000), dtype="f4", compressors=None
            )
            sst[:] = np.arange(4000).reshape(4, 1000)
        repo.tags.create("v1")
    return path


def test_a_page_that_is_zero(small):
    """Whatever page it is: never a crash, and silence only about pages that nothing needs."""
    content = small.read_bytes()
    told = 0
    for page in range(len(content) // 4096):
        damaged = bytearray(content)
        damaged[page * 4096 : (page + 1) * 4096] = bytes(4096)
        if damaged == content:
            continue
        small.write_bytes(damaged)
        told += not run(small).ok
        small.write_bytes(content)
        assert run(small).ok
    assert told > 10


def test_flipped_bits_anywhere(small):
    """Never a crash; and where nothing is told, all commits have all they had."""
    content = small.read_bytes()
    whole = everything(small)
    random = np.random.default_rng(7)
    told = 0
    for _ in range(200):
        damaged = bytearray(content)
        page = int(random.integers(len(content) // 4096))
        # Headers and node pointers are at the beginning of a page.
        offset = int(random.integers(4096) if random.random() < 0.5 else random.integers(200))
        damaged[page * 4096 + offset] ^= 1 << int(random.integers(8))
        small.write_bytes(damaged)
        report = run(small)
        assert all(problem.cost and problem.message for problem in report.problems)
        if report.ok:
            assert everything(small) == whole
        told += not report.ok
    assert 10 < told < 190


def everything(path: Path) -> dict[str, dict[str, bytes]]:
    """Read all values of all commits, from the file and not from caches."""
    for cache in (objects._nodes, objects._entries, history._commits):
        cache._young, cache._old = {}, {}
    with vzarr.open(path, "r") as repo:
        with repo._environment.read() as txn:
            commits = [key.hex() for key, _ in txn.scan("commits")]
        found = {}
        for commit in commits:
            hierarchy = repo.session(commit).hierarchy
            found[commit] = {key: repo._objects.read(blob) for key, blob in hierarchy.items()}
    return found


def test_structural_damage_is_told_and_the_rest_is_checked(ocean):
    _, data = stored(ocean, "ocean/sst/c/0/1")
    content = ocean.read_bytes()
    # A value this large has pages of its own; the page before its bytes says so in 16 bytes.
    page = content.index(data) // 4096
    assert content.index(data) == page * 4096 + 16
    damaged = bytearray(content)
    damaged[page * 4096 + 10] ^= 0x20
    ocean.write_bytes(damaged)
    report = run(ocean, "quick")
    assert {problem.kind for problem in report.problems} == {"storage"}
    assert "restore it from a backup" in report.problems[0].cost
    assert report.commits == COMMITS
    report = run(ocean)
    (chunk,) = [problem for problem in report.problems if problem.kind == "chunk"]
    assert (chunk.path, chunk.coordinates) == ("ocean/sst", (0, 1))
    assert report.garbage is None


# ── while others write ───────────────────────────────────────────────────────────────────────────


def _write(path: str, pipe) -> None:
    with vzarr.open(path, author=AUTHOR, durability="normal") as repo:
        number = 0
        while not pipe.poll():
            number += 1
            with repo.transaction("main", f"commit {number}") as store:
                zarr.open_array(store, path="ocean/sst")[number % 180, number % 40] = number
            session = repo.session("dev")
            session.set("counter", b"%d" % number)
            session.amend("amended")
            session.close()
            if number == 1:
                pipe.send("going")
        pipe.send(number)


@pytest.mark.parametrize("how", ["open", "file"])
def test_while_another_process_writes(ocean, how):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    writer = context.Process(target=_write, args=(str(ocean), theirs))
    writer.start()
    try:
        assert ours.recv() == "going"
        reports = []
        for number in range(12):
            level: Level = "full" if number % 2 else "quick"
            if how == "file":
                reports.append(check_file(str(ocean), level))
            else:
                with vzarr.open(ocean, "r") as repo:
                    reports.append(check(repo._objects, level))
    finally:
        ours.send("stop")
        written = ours.recv()
        writer.join()
    assert [str(report) for report in reports if not report.ok] == []
    assert reports[-1].commits > reports[1].commits
    assert written > 1


def collect(path: Path) -> None:
    """Delete a branch, and the chunk and the commit that it alone had."""
    with vzarr.open(path, author=AUTHOR) as repo, repo._environment.write() as txn:
        commit = txn.get("branches", b"short-lived")
        if commit is None:
            return
        record = decode_commit(txn.get("commits", commit))
        txn.delete("branches", b"short-lived")
        for key, _ in txn.scan("reflog", prefix=b"short-lived\0"):
            txn.delete("reflog", key)
        txn.delete("chunks", chunk_digest(b"short-lived"))
        txn.delete("nodes", record.root)
        txn.delete("commits", commit)


@pytest.fixture
def collected(ocean: Path) -> Path:
    with vzarr.open(ocean, author=AUTHOR) as repo:
        repo.branches.create("short-lived")
        with repo.transaction("short-lived") as store:
            store.session.set("file", b"short-lived")
    return ocean


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_what_is_collected_meanwhile_is_no_problem(collected, monkeypatch, level, moment):
    walk, settle = Walk.run, evidence.Values.settle

    def run_walk(self, origins):
        if moment == "before":
            collect(collected)
        walk(self, origins)
        if moment == "after":
            collect(collected)

    def settle_values(self):
        if moment == "between":
            collect(collected)
        settle(self)

    monkeypatch.setattr(Walk, "run", run_walk)
    monkeypatch.setattr(evidence.Values, "settle", settle_values)
    report = run(collected, level)
    assert report.ok, report
    assert report.commits == COMMITS if moment == "before" else COMMITS + 1


def test_what_is_still_needed_is_a_problem_although_refs_move(ocean, monkeypatch):
    blob, _ = stored(ocean, "ocean/notes.txt")
    delete(ocean, "chunks", blob.digest)
    walk = Walk.run
    moves = iter(range(100))

    def run_walk(self, origins):
        with vzarr.open(ocean, author=AUTHOR) as repo:
            repo.commit(f"move {next(moves)}", allow_empty=True)
        walk(self, origins)

    monkeypatch.setattr(Walk, "run", run_walk)
    (problem,) = run(ocean).problems
    assert (problem.path, problem.kind) == ("ocean/notes.txt", "file")


def test_structure_that_changes_meanwhile(ocean, monkeypatch):
    """Unless the file stood still, LMDB's structure is looked at again, inside a txn."""
    from vzarr import check as module

    verify = module.verify
    readers = []

    def disturbed(path):
        with vzarr.open(path, author=AUTHOR) as repo:
            readers.append(repo._environment.info().readers)
            if len(readers) < 4:
                repo.commit("meanwhile", allow_empty=True)
                return ["a page that others wrote"]
        return verify(path)

    monkeypatch.setattr(module, "verify", disturbed)
    assert check_file(str(ocean)).ok
    assert readers == [1, 1, 1, 1]


def test_damage_that_stays_while_others_write(ocean, monkeypatch):
    from vzarr import check as module

    calls = []

    def damaged(path):
        with vzarr.open(path, author=AUTHOR) as repo:
            calls.append(repo._environment.info().readers)
            if len(calls) == 1:
                repo.commit("meanwhile", allow_empty=True)
        return ["a page is broken"]

    monkeypatch.setattr(module, "verify", damaged)
    with vzarr.open(ocean, author=AUTHOR) as repo:
        report = check(repo._objects)
    # The second look was inside a txn, so that no page could be written again.
    assert calls == [1, 2]
    assert [(problem.kind, problem.message) for problem in report.problems] == [
        ("storage", "a page is broken")
    ]


# ── progress and interruption ────────────────────────────────────────────────────────────────────


def test_progress(ocean, monkeypatch):
    monkeypatch.setattr("vzarr.progress.INTERVAL", 0)
    calls = []
    with vzarr.open(ocean) as repo:
        readers = repo._environment.info().readers

        def progress(done, total, what):
            # Nothing keeps the file from using its pages again for longer than a moment.
            assert repo._environment.info().readers == readers
            calls.append((done, total, what))

        report = check(repo._objects, "full", progress=progress)
    assert list(dict.fromkeys(what for *_, what in calls)) == ["structure", "objects", "garbage"]
    for stage in ("structure", "objects", "garbage"):
        steps = [(done, total) for done, total, what in calls if what == stage]
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1]
        assert steps == sorted(steps, key=lambda step: step[0])
        assert all(done <= total for done, total in steps)
    objects = [done for done, _, what in calls if what == "objects"]
    assert objects[-1] == report.commits + report.nodes + report.chunks


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("stage", ["structure", "objects", "garbage"])
def test_an_exception_ends_the_check(ocean, error, stage):
    with vzarr.open(ocean, author=AUTHOR) as repo, repo.transaction("main") as store:
        for number in range(20):
            store.session.set(f"file{number}", bytes([number]) * (1 << 20))

    def progress(done, total, what):
        if what == stage and done:
            raise error

    with vzarr.open(ocean) as repo:
        with pytest.raises(error):
            check(repo._objects, "full", progress=progress)
        assert not [thread for thread in threading.enumerate() if "vzarr-check" in thread.name]
        assert check(repo._objects, "full").ok
