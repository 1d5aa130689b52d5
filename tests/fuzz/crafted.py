"""Repositories that no vzarr would write: records by hand, each with its right digest or seal."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack

import vzarr
from vzarr import history
from vzarr.environment import Environment, Txn
from vzarr.format import (
    EMPTY_ENTRY,
    FORK,
    SESSION,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    Layout,
    LeaseRecord,
    ReflogRecord,
    TagRecord,
    TreeRef,
    chunk_digest,
    encode_blob,
    encode_coordinates,
    encode_entry,
    encode_lease,
    encode_reflog,
    encode_tag,
    node_digest,
    reflog_key,
    session_key,
)
from vzarr.node import REFERENCE, encode_node
from vzarr.objects import put_root

AUTHOR = "Eve <eve@example.org>"
TIME = 1_767_225_600_000_000
NOWHERE = Digest(b"\xee" * 32)
# Sets the title, clears the screen, turns the writing around, begins a line, halves a character.
ESCAPES = "\x1b]0;pwned\x07\x1b[2J\x9b31m\u202eevil\u2066\r\ncommit 0000\x00\x7f"

GROUP: dict[str, Any] = {"zarr_format": 3, "node_type": "group"}


def array(shape: Sequence[object], chunks: Sequence[object], **changes: object) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        **changes,
    }


# ── records ──────────────────────────────────────────────────────────────────────────────────────


def value(txn: Txn, data: bytes) -> Blob:
    txn.put("chunks", chunk_digest(data), data)
    return Blob(chunk_digest(data), len(data))


def node(txn: Txn, level: int, items: dict[bytes, bytes]) -> Digest:
    data = encode_node(level, list(items), list(items.values()))
    txn.put("nodes", node_digest(data), data)
    return node_digest(data)


def directory(txn: Txn, **members: Entry) -> TreeRef:
    items = {name.encode(): encode_entry(entry) for name, entry in sorted(members.items())}
    count = sum(entry.count for entry in members.values())
    nbytes = sum(entry.nbytes for entry in members.values())
    return TreeRef(node(txn, 0, items), min(count, 2**64 - 1), min(nbytes, 2**64 - 1))


def document(txn: Txn, contents: object, **changes: Any) -> Entry:
    data = contents if isinstance(contents, bytes) else json.dumps(contents).encode()
    return replace(Entry({"zarr.json": value(txn, data)}), **changes)


def commit(txn: Txn, entry: Entry, branch: str = "main", **changes: Any) -> Digest:
    """Commit a root entry on top of a branch."""
    parents = (Digest(txn.get("branches", b"main") or NOWHERE),)
    record = CommitRecord(parents, put_root(txn, entry), AUTHOR, TIME, "crafted", {})
    digest = history.put(txn, replace(record, **changes))
    txn.put("branches", branch.encode(), digest)
    return digest


def chunks(txn: Txn, **values: bytes) -> TreeRef:
    """An index of one dimension: by coordinate, as ``_7``."""
    blobs = {int(name[1:]): value(txn, data) for name, data in values.items()}
    items = {encode_coordinates([n]): encode_blob(blob) for n, blob in sorted(blobs.items())}
    return TreeRef(node(txn, 0, items), len(items), sum(blob.length for blob in blobs.values()))


# ── trees ────────────────────────────────────────────────────────────────────────────────────────


def deep_groups(txn: Txn) -> None:
    """Two thousand groups, one in the other."""
    group = document(txn, GROUP)
    entry = group
    for _ in range(2000):
        entry = replace(group, directory=directory(txn, g=entry))
    commit(txn, entry)


def shared_groups(txn: Txn) -> None:
    """Sixty levels of two groups that share their members: 2^60 groups in twenty kilobytes."""
    group = document(txn, GROUP)
    entry = group
    for _ in range(60):
        entry = replace(group, directory=directory(txn, a=entry, b=entry))
    commit(txn, entry)


def shared_groups_on_both_sides(txn: Txn) -> None:
    """The same, after a commit where all of them had another attribute."""
    plain = document(txn, GROUP)
    for entry in (document(txn, {**GROUP, "attributes": {"a": 1}}), plain):
        for _ in range(60):
            entry = replace(plain, directory=directory(txn, a=entry, b=entry))
        commit(txn, entry)


def shared_groups_in_arrays(txn: Txn) -> None:
    """The same, with names like those of chunks, and arrays among them."""
    layout = Layout(3, 64)
    keys = {"name": "v2", "configuration": {"separator": "/"}}
    metadata = array([1] * 64, [1] * 64, chunk_key_encoding=keys)
    plain, arrays = document(txn, GROUP), document(txn, metadata, layout=layout)
    entry = plain
    for level in range(50):
        below = directory(txn, **{"0": entry, "1": replace(entry, file=value(txn, b"x"))})
        entry = replace(arrays if level % 3 else plain, directory=below)
    commit(txn, entry)


def lying_sums(txn: Txn) -> None:
    """One chunk and one member that are said to be 2^64 of 2^64 bytes."""
    most = 2**64 - 1
    index = replace(chunks(txn, _0=b"ab"), count=most, nbytes=most)
    one = document(txn, array([8], [2]), layout=Layout(0, 1), index=index)
    group = document(txn, GROUP)
    commit(txn, replace(group, directory=replace(directory(txn, t=one), count=most, nbytes=most)))


def lying_sums_in_nodes(txn: Txn) -> None:
    leaf = chunks(txn, _0=b"ab", _1=b"cd")
    inner = {encode_coordinates([1]): REFERENCE.pack(leaf.digest, 2**63, 2**62)}
    index = TreeRef(node(txn, 1, inner), 2**63, 2**62)
    one = document(txn, array([8], [2]), layout=Layout(0, 1), index=index)
    commit(txn, replace(document(txn, GROUP), directory=directory(txn, t=one)))


def wrong_keys(txn: Txn) -> None:
    """An index with keys of all widths, and one with values that are no references."""
    blob = encode_blob(value(txn, b"ab"))
    index = node(txn, 0, {b"": blob, b"\0\0\0\0": blob, b"\0\0\0\1\0": blob, b"\1" * 80: blob})
    other = node(txn, 0, {b"\0\0\0\0": b"", b"\0\0\0\1": b"x" * 35, b"\0\0\0\2": b"y" * 100})
    entries = {
        name: document(txn, array([8], [2]), layout=layout, index=TreeRef(digest, 4, 8))
        for name, layout, digest in (
            ("a", Layout(0, 1), index),
            ("b", Layout(3, 64), index),
            ("c", Layout(1, 0), other),
        )
    }
    commit(txn, replace(document(txn, GROUP), directory=directory(txn, **entries)))


def wrong_levels(txn: Txn) -> None:
    """Nodes whose children are missing, of another level, or of another kind; all the way up."""
    leaf = chunks(txn, _0=b"ab")
    trees = {}
    for name, target in (("missing", NOWHERE), ("leaf", leaf.digest)):
        digest = target
        for level in range(31, 0, -1):
            digest = node(txn, level, {encode_coordinates([0]): REFERENCE.pack(digest, 1, 2)})
        trees[name] = document(
            txn, array([8], [2]), layout=Layout(0, 1), index=TreeRef(digest, 1, 2)
        )
    trees["directory"] = Entry({}, directory=leaf)
    trees["entry"] = document(txn, GROUP, directory=TreeRef(put_root(txn, EMPTY_ENTRY), 1, 1))
    commit(txn, replace(document(txn, GROUP), directory=directory(txn, **trees)))


def wrong_names(txn: Txn) -> None:
    names = ["", ".", "..", "../../etc", "a/b", "zarr.json", "\0", ESCAPES, "x" * 100_000]
    items = {name.encode(): document(txn, GROUP) for name in sorted(names, key=str.encode)}
    data = {name: encode_entry(entry) for name, entry in items.items()}
    data[b"\xff\xfe"] = encode_entry(document(txn, GROUP))
    tree = TreeRef(node(txn, 0, data), len(data), 9)
    commit(txn, replace(document(txn, GROUP), directory=tree))


# ── commits ──────────────────────────────────────────────────────────────────────────────────────


def many_parents(txn: Txn) -> None:
    """A commit with ten thousand parents, and one with the same parent as often."""
    first = Digest(txn.get("branches", b"main") or NOWHERE)
    root = put_root(txn, document(txn, GROUP))
    record = CommitRecord((first,), root, AUTHOR, TIME, "", {})
    parents = [history.put(txn, replace(record, message=str(n))) for n in range(10_000)]
    commit(txn, document(txn, GROUP), parents=tuple(parents))
    commit(txn, document(txn, GROUP), parents=(first,) * 10_000, branch="again")


def long_history(txn: Txn, length: int = 20_000) -> None:
    """As many commits in a row, whose times go backwards."""
    head = Digest(txn.get("branches", b"main") or NOWHERE)
    root = put_root(txn, document(txn, GROUP))
    for number in range(length):
        record = CommitRecord((head,), root, "", TIME - number, str(number), {})
        head = history.put(txn, record)
    txn.put("branches", b"main", head)


def missing_parents(txn: Txn) -> None:
    commit(txn, document(txn, GROUP), parents=(NOWHERE,))
    commit(txn, EMPTY_ENTRY, branch="root", root=NOWHERE)
    txn.put("branches", b"nowhere", NOWHERE)
    txn.put("branches", b"short", b"abc")
    txn.put("tags", b"v1", encode_tag(TagRecord(NOWHERE, "", AUTHOR, TIME)))
    # A root that is no root, and a commit that is a chunk.
    data = msgpack.packb([1, 2])
    txn.put("commits", chunk_digest(data), data)
    txn.put("branches", b"chunk", chunk_digest(data))


def hostile_text(txn: Txn) -> None:
    """Every text that somebody else gives, with commands for a terminal in it."""
    entry = document(
        txn,
        array([8], [2], attributes={ESCAPES: ESCAPES, "half": "\ud800"}, data_type=ESCAPES),
        layout=Layout(0, 1),
        index=chunks(txn, _0=b"ab"),
    )
    group = document(txn, {**GROUP, "attributes": {ESCAPES: ESCAPES}})
    file = Entry({}, file=value(txn, b"\x1b[2J"))
    members = directory(txn, **{ESCAPES: entry, "f" + ESCAPES: file, "t": entry})
    commit(
        txn,
        replace(group, directory=members),
        author=ESCAPES,
        message=f"{ESCAPES}\n{ESCAPES}",
        metadata={ESCAPES: {ESCAPES: [ESCAPES]}},
    )
    # Changed once more, so that there is something to compare.
    entry = replace(entry, index=chunks(txn, _0=b"ac", _1=b"zz"))
    other = {**GROUP, "attributes": {ESCAPES: 1, "b" + ESCAPES: ESCAPES}}
    members = directory(txn, **{ESCAPES: entry, "t": entry})
    head = commit(txn, replace(document(txn, other), directory=members), message=ESCAPES)
    txn.put("branches", b"dev", head)
    txn.put("tags", b"v1", encode_tag(TagRecord(head, ESCAPES, ESCAPES, TIME)))
    move = ReflogRecord(None, head, ESCAPES, TIME, ESCAPES)
    txn.put("reflog", reflog_key("main", 99), encode_reflog(move))
    txn.put("sessions", session_key(b"s" * 16, 0), encode_lease(lease(head, ESCAPES)))


def hostile_names(txn: Txn) -> None:
    """Branches and tags with names that nobody can give."""
    head = txn.get("branches", b"main") or NOWHERE
    for name in (ESCAPES, "a..b", "/", "\u00e9" * 100):
        txn.put("branches", name.encode(), head)
        txn.put("tags", name.encode(), encode_tag(TagRecord(Digest(head), "", "", 0)))
    txn.put("branches", b"\xff\xfe", head)


def huge_text(txn: Txn) -> None:
    commit(txn, document(txn, GROUP), message="x" * 1_000_000, author="y" * 100_000)
    commit(txn, document(txn, GROUP), metadata={"deep": _nested(400), "n": [0] * 100_000})


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def odd_reflogs(txn: Txn) -> None:
    head = Digest(txn.get("branches", b"main") or NOWHERE)
    record = encode_reflog(ReflogRecord(None, head, "", TIME, ""))
    txn.put("reflog", reflog_key("main", 2**64 - 1), record)
    for key in (b"\5", b"abcdefgh12345678", b"main\0x", b"x" * 300):
        txn.put("reflog", key, record)


def lease(base: Digest, text: str, **changes: Any) -> LeaseRecord:
    record = LeaseRecord(
        *(SESSION, 77, 2**63, 5, text, text, None, "main"),
        *(base, TIME, TIME, 2**63, None, None, None),
    )
    return replace(record, **changes)


def odd_sessions(txn: Txn) -> None:
    """Forks of themselves and of each other, of what is not there; keys and numbers at the end."""
    head = Digest(txn.get("branches", b"main") or NOWHERE)
    one, two, three = b"1" * 16, b"2" * 16, b"3" * 16
    for session, parent in ((one, one), (two, three), (three, two)):
        record = lease(head, "", kind=FORK, parent=parent, staged=NOWHERE)
        txn.put("sessions", session_key(session, 0), encode_lease(record))
        txn.put("sessions", session_key(session, 2**32 - 1), b"\x90")
    saved = lease(NOWHERE, "", checkpoint=NOWHERE, checkpointed=TIME)
    txn.put("sessions", session_key(b"4" * 16, 0), encode_lease(saved))
    txn.put("sessions", session_key(b"4" * 16, 2**32 - 1), b"no digests")
    txn.put("sessions", session_key(b"5" * 16, 7), b"")


def odd_session_keys(txn: Txn) -> None:
    for key in (b"\1", b"k" * 16, b"k" * 17, b"k" * 300, b"\xff" * 30):
        txn.put("sessions", key, b"")


# ── documents ────────────────────────────────────────────────────────────────────────────────────


def hostile_documents(txn: Txn) -> None:
    """Arrays of impossible shapes, and documents that are no such thing."""
    edges = {"name": "rectilinear", "configuration": {"chunk_shapes": [[[1, 2**20]]] * 64}}
    huge = 10**400
    documents: dict[str, object] = {
        "large": array([10**18], [1]),
        "larger": array([2**63], [2**62]),
        "larger2": array([2**63, 2**64], [1, 2**63]),
        "largest": array([huge], [huge - 1]),
        "negative": array([-1], [1]),
        "no_chunks": array([8], [0]),
        "negative_chunks": array([8], [-2]),
        "true": array([True], [True]),
        "wide": array([1] * 64, [1] * 64),
        "wider": array([1] * 100_000, [1] * 100_000),
        "edges": array([2**20] * 64, [], chunk_grid=edges),
        "float": array([1e300], [1.5]),
        "infinite": b'{"zarr_format": 3, "node_type": "array", "shape": [1e999]}',
        "digits": b'{"zarr_format": 3, "node_type": "array", "shape": [' + b"9" * 10_000 + b"]}",
        "deep": b'{"zarr_format":3,"node_type":"group","attributes":' + b'{"a":' * 100_000,
        "list": b"[" * 100_000 + b"]" * 100_000,
        "quotes": b"[" * 101 + b'\\"' * 200_000,
        "not_utf8": b"\xff\xfe{}",
        "twice": b'{"zarr_format":3,"node_type":"group","node_type":"array"}',
        "nonsense": array([8], [2], data_type={"name": []}, codecs=3, fill_value={"x": 1}),
        "long": b'{"zarr_format":3,"node_type":"group","x":"' + b"y" * (70 << 20) + b'"}',
    }
    entries = {}
    for name, contents in documents.items():
        index = chunks(txn, _0=b"ab", _4294967295=b"cd")
        entries[name] = document(txn, contents, layout=Layout(0, 1), index=index)
    before = replace(document(txn, GROUP), directory=directory(txn, **entries))
    commit(txn, before)
    for name, entry in entries.items():
        entries[name] = replace(entry, index=chunks(txn, _0=b"ax", _7=b"yy"))
    commit(txn, replace(before, directory=directory(txn, **entries)))


def _merge_of(txn: Txn, metadata: dict[str, Any], name: str, sides: Sequence[bytes]) -> None:
    """Two branches that changed one chunk of an array."""
    layout = Layout(0, 1) if name == "zarr.json" else Layout(2, 1)

    def root(chunk: bytes) -> Entry:
        documents = {name: value(txn, json.dumps(metadata).encode())}
        entry = Entry(documents, layout=layout, index=chunks(txn, _0=chunk))
        return replace(document(txn, GROUP), directory=directory(txn, t=entry))

    base = commit(txn, root(sides[0]))
    commit(txn, root(sides[1]), branch="dev", parents=(base,))
    commit(txn, root(sides[2]), parents=(base,))


_TRAP = "import pathlib, tempfile; pathlib.Path(tempfile.gettempdir(), 'vzarr-pwned').touch()"


class Ran:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (_TRAP,)


def pickles(txn: Txn) -> None:
    import pickle

    metadata = {
        "zarr_format": 2,
        "shape": [2],
        "chunks": [2],
        "dtype": "|O",
        "compressor": None,
        "filters": [{"id": "vlen-utf8"}, {"id": "pickle"}],
        "fill_value": None,
        "order": "C",
    }
    sides = [pickle.dumps(Ran(), protocol) for protocol in (2, 3, 4)]
    _merge_of(txn, metadata, ".zarray", sides)


def bombs(txn: Txn) -> None:
    """A chunk of 100 bytes, compressed from 4 GiB."""
    codecs = [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 5}}]
    compressor, zeros = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(1 << 24)
    bomb = b"".join(compressor.compress(zeros) for _ in range(1 << 8)) + compressor.flush()
    sides = [bomb, bomb + bytes(8), zlib.compress(bytes(100), wbits=31)]
    _merge_of(txn, array([100], [100], codecs=codecs), "zarr.json", sides)


def huge_chunks(txn: Txn) -> None:
    """Chunks that would have 2^62 elements."""
    _merge_of(txn, array([2**62], [2**62]), "zarr.json", [b"a", b"b", b"c"])


CRAFTED: dict[str, Callable[[Txn], None]] = {
    make.__name__: make
    for make in (
        deep_groups,
        shared_groups,
        shared_groups_on_both_sides,
        shared_groups_in_arrays,
        lying_sums,
        lying_sums_in_nodes,
        wrong_keys,
        wrong_levels,
        wrong_names,
        many_parents,
        long_history,
        missing_parents,
        hostile_text,
        hostile_names,
        huge_text,
        odd_reflogs,
        odd_sessions,
        odd_session_keys,
        hostile_documents,
        pickles,
        bombs,
        huge_chunks,
    )
}


def craft(path: Path, name: str) -> None:
    """Write one of them."""
    vzarr.open(path, "w-", author=AUTHOR).close()
    environment = Environment.open(str(path), writable=True)
    try:
        with environment.write() as txn:
            CRAFTED[name](txn)
    finally:
        environment.close()
