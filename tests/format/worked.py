"""The worked bytes of ``docs/format.md``: put together by the page's words, compared with vzarr's.

``python -m tests.format.worked`` writes the blocks into the page.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import msgpack
from blake3 import blake3
from xxhash import xxh3_128_digest

from tests.format.memory import Memory
from vzarr.format import (
    EMPTY_ENTRY,
    SESSION,
    Blob,
    CommitRecord,
    Digest,
    FormatRecord,
    JournalEdit,
    LeaseRecord,
    ReflogRecord,
    RemoteRecord,
    RepositoryRecord,
    TagRecord,
    chunk_checksum,
    chunk_digest,
    commit_digest,
    encode_blob,
    encode_commit,
    encode_coordinates,
    encode_entry,
    encode_format,
    encode_journal,
    encode_lease,
    encode_reflog,
    encode_remotes,
    encode_repository,
    encode_tag,
    entry_digest,
    key_hash,
    node_digest,
    reflog_key,
    seal,
    session_key,
)

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
_BLOCK = re.compile(r"<!-- worked: ([a-z -]+) -->\n(?:```text\n.*?```\n)?", re.DOTALL)
_LINE = 16

Part = tuple[bytes, str]
"""Some bytes, and what they are."""

# ── the small repository ─────────────────────────────────────────────────────────────────────────

GROUP = b'{"zarr_format":3,"node_type":"group"}'
ARRAY = (
    b'{"zarr_format":3,"node_type":"array","shape":[8],"data_type":"uint8",'
    b'"chunk_grid":{"name":"regular","configuration":{"chunk_shape":[2]}},'
    b'"chunk_key_encoding":{"name":"default"},"fill_value":0,"codecs":[{"name":"bytes"}]}'
)
CHUNKS = (b"\x01\x02", b"\x03\x04", b"\x05\x06", b"\x07\x08")
NOTES = b"The buoy was lost in March.\n"
SNAPSHOT = {
    "zarr.json": GROUP,
    "t/zarr.json": ARRAY,
    **{f"t/c/{number}": chunk for number, chunk in enumerate(CHUNKS)},
    "notes.txt": NOTES,
}

_memory = Memory()
_hierarchy = _memory.hierarchy(SNAPSHOT)
_ROOT = _memory.put_root(_hierarchy)
_AUTHOR = "Ada <ada@example.org>"
# 2026-01-01 00:00:00 UTC.
_TIME = 1_767_225_600_000_000
_ID = bytes(range(16))

_COMMIT = CommitRecord((), Digest(_ROOT), _AUTHOR, _TIME, "first data", {"source": "buoy", "n": 4})
_HEAD = commit_digest(encode_commit(_COMMIT))
_TAG = TagRecord(_HEAD, "", _AUTHOR, _TIME)
_REFLOG = ReflogRecord(None, _HEAD, _AUTHOR, _TIME, "create: from main")
_LEASE = LeaseRecord(
    kind=SESSION,
    token=258,
    pid=4711,
    process_started=123456,
    host="ocean",
    command="python",
    parent=None,
    branch="main",
    base=_HEAD,
    created=_TIME,
    updated=_TIME,
    nbytes=33,
    staged=None,
    checkpoint=None,
    checkpointed=None,
)
_JOURNAL: list[JournalEdit] = [
    ("t/c/0", Blob(chunk_digest(CHUNKS[0]), len(CHUNKS[0]))),
    ("t/c/1", None),
]


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def _reference(value: bytes) -> bytes:
    return blake3(value).digest() + struct.pack("<I", len(value))


def _packed(value: object, remark: str) -> Part:
    """A MessagePack value, with a remark that shows it where it is short."""
    return msgpack.packb(value), remark


def _array(count: int, remark: str) -> Part:
    return bytes([0x90 + count]), f"{remark}: array of {count}"


def _binary(length: int) -> Part:
    return bytes([0xC4, length]), f"bytes, {length}"


def _digest(digest: bytes, remark: str) -> list[Part]:
    return [_binary(32), (digest, remark)]


def _text(value: str, remark: str) -> Part:
    return _packed(value, f'{remark}, "{value}"')


def _node(digest: bytes) -> tuple[int, list[bytes], list[bytes]]:
    node = _memory.load(digest)
    return node.level, node.keys, node.values


def _leaf_parts(digest: bytes) -> list[Part]:
    level, keys, values = _node(digest)
    return [
        _array(6, "node"),
        _packed(level, "level"),
        _packed(len(keys), "n"),
        _packed(4, "key_widths"),
        _binary(4 * len(keys)),
        *((key, f"key: chunk {int.from_bytes(key, 'big')}") for key in keys),
        _packed(36, "value_widths"),
        _binary(36 * len(keys)),
        *(
            part
            for key, value in zip(keys, values, strict=True)
            for part in _blob_parts(value, f"chunk {int.from_bytes(key, 'big')}")
        ),
    ]


def _blob_parts(reference: bytes, what: str) -> list[Part]:
    return [(reference[:32], f"digest of {what}"), (reference[32:], "its length")]


def _tree_parts(count: int, nbytes: int, digest: bytes, what: str) -> list[Part]:
    return [
        _array(3, what),
        *_digest(digest, "digest of its root node"),
        _packed(count, f"count, {count}"),
        _packed(nbytes, f"bytes, {nbytes}"),
    ]


def _index() -> tuple[bytes, list[bytes]]:
    """The root of the index of ``t``, and the nodes below it."""
    entry = _hierarchy.entry("t")
    assert entry is not None
    assert entry.index is not None
    _, _, references = _node(entry.index.digest)
    return entry.index.digest, [reference[:32] for reference in references]


def _inner_parts() -> list[Part]:
    root, _ = _index()
    _, keys, references = _node(root)
    parts: list[Part] = [
        _array(6, "node"),
        _packed(1, "level"),
        _packed(len(keys), "n"),
        _packed(4, "key_widths"),
        _binary(4 * len(keys)),
        *((key, f"last key: chunk {int.from_bytes(key, 'big')}") for key in keys),
        _packed(48, "value_widths"),
        _binary(48 * len(keys)),
    ]
    for reference, which in zip(references, ("first", "second"), strict=True):
        count, nbytes = struct.unpack("<QQ", reference[32:])
        parts += [
            (reference[:32], f"digest of the {which} node"),
            (struct.pack("<Q", count), f"count, {count}"),
            (struct.pack("<Q", nbytes), f"bytes, {nbytes}"),
        ]
    return parts


def _directory() -> bytes:
    tree = _hierarchy.root.directory
    assert tree is not None
    return tree.digest


def _directory_parts() -> list[Part]:
    level, keys, values = _node(_directory())
    assert keys == [b"notes.txt", b"t"]
    first, both = map(len, (values[0], b"".join(values)))
    return [
        _array(6, "node"),
        _packed(level, "level"),
        _packed(2, "n"),
        _binary(8),
        (struct.pack("<I", 9), "key 0 ends at 9"),
        (struct.pack("<I", 10), "key 1 ends at 10"),
        _binary(10),
        (b"notes.txt", 'key: "notes.txt"'),
        (b"t", 'key: "t"'),
        _binary(8),
        (struct.pack("<I", first), f"value 0 ends at {first}"),
        (struct.pack("<I", both), f"value 1 ends at {both}"),
        _binary(both),
        _array(5, "entry notes.txt"),
        _array(0, "documents"),
        _packed(None, "layout, nil"),
        _packed(None, "index, nil"),
        _packed(None, "directory, nil"),
        _binary(36),
        *_blob_parts(_reference(NOTES), "the file"),
        (values[1], "entry t, shown in section 8"),
    ]


def _array_parts() -> list[Part]:
    root, _ = _index()
    return [
        _array(5, "entry"),
        _array(2, "documents"),
        _packed(0, "code of zarr.json"),
        _binary(36),
        *_blob_parts(_reference(ARRAY), "the document"),
        _array(2, "layout"),
        _packed(0, "spelling"),
        _packed(1, "ndim"),
        *_tree_parts(4, 8, root, "index"),
        _packed(None, "directory, nil"),
        _packed(None, "file, nil"),
    ]


def _root_parts() -> list[Part]:
    nbytes = sum(map(len, SNAPSHOT.values())) - len(GROUP)
    return [
        _array(5, "entry"),
        _array(2, "documents"),
        _packed(0, "code of zarr.json"),
        _binary(36),
        *_blob_parts(_reference(GROUP), "the document"),
        _packed(None, "layout, nil"),
        _packed(None, "index, nil"),
        *_tree_parts(len(SNAPSHOT) - 1, nbytes, _directory(), "directory"),
        _packed(None, "file, nil"),
    ]


_EMPTY_PARTS: list[Part] = [
    _array(5, "entry"),
    _array(0, "documents"),
    _packed(None, "layout, nil"),
    _packed(None, "index, nil"),
    _packed(None, "directory, nil"),
    _packed(None, "file, nil"),
]
_FORMAT_PARTS: list[Part] = [
    _array(3, "format"),
    _text("vzarr", "magic"),
    _packed(1, "version"),
    _packed(1, "min_reader_version"),
]
_REPOSITORY_PARTS: list[Part] = [
    _array(3, "repository"),
    _binary(16),
    (_ID, "id"),
    _packed(_TIME, "created, 2026-01-01 00:00:00 UTC"),
    _text("blake3-256", "digest_algorithm"),
]
_REMOTE = RemoteRecord("origin", "ada@buoy:ocean.vzarr")
_REMOTES_PARTS: list[Part] = [
    _array(1, "remotes"),
    _array(3, "remote"),
    _text(_REMOTE.name, "name"),
    _text(_REMOTE.url, "url"),
    _text(_REMOTE.path, "path"),
]
_COMMIT_PARTS: list[Part] = [
    _array(6, "commit"),
    _array(0, "parents"),
    *_digest(_ROOT, "root"),
    _text(_AUTHOR, "author"),
    _packed(_TIME, "time, 2026-01-01 00:00:00 UTC"),
    _text("first data", "message"),
    (b"\x82", "metadata: map of 2"),
    _text("source", "name"),
    _text("buoy", "value"),
    _text("n", "name"),
    _packed(4, "value, 4"),
]
_TAG_PARTS: list[Part] = [
    _array(4, "tag"),
    *_digest(_HEAD, "commit"),
    _text("", "message"),
    _text(_AUTHOR, "author"),
    _packed(_TIME, "time"),
]
_REFLOG_PARTS: list[Part] = [
    _array(5, "reflog"),
    _packed(None, "old, nil: created"),
    *_digest(_HEAD, "new"),
    _text(_AUTHOR, "author"),
    _packed(_TIME, "time"),
    _text("create: from main", "operation"),
]
_REFLOG_KEY_PARTS: list[Part] = [
    (b"storm-fix", "name"),
    (b"\0", "zero byte"),
    (struct.pack(">Q", 258), "sequence number, 258"),
]
_LEASE_PARTS: list[Part] = [
    _array(15, "lease"),
    _packed(0, "kind, 0: a session"),
    _packed(258, "token, 258"),
    _packed(4711, "pid, 4711"),
    _packed(123456, "process_started, 123456"),
    _text("ocean", "host"),
    _text("python", "command"),
    _packed(None, "parent, nil"),
    _text("main", "branch"),
    *_digest(_HEAD, "base"),
    _packed(_TIME, "created"),
    _packed(_TIME, "updated"),
    _packed(33, "nbytes, 33"),
    _packed(None, "staged, nil"),
    _packed(None, "checkpoint, nil"),
    _packed(None, "checkpointed, nil"),
]
_JOURNAL_PARTS: list[Part] = [
    _array(2, "edits"),
    _array(2, "edit"),
    _text("t/c/0", "key"),
    _binary(36),
    (_reference(CHUNKS[0]), "reference to chunk 0"),
    _array(2, "edit"),
    _text("t/c/1", "key"),
    _packed(None, "value, nil: deleted"),
]
_LEASE_KEY_PARTS: list[Part] = [(_ID, "id of the session"), (struct.pack(">I", 0), "number 0")]
_BATCH_KEY_PARTS: list[Part] = [(_ID, "id of the session"), (struct.pack(">I", 1), "number 1")]
_BATCH_PARTS: list[Part] = [
    (blake3(CHUNKS[0]).digest(), "digest of chunk 0"),
    (blake3(CHUNKS[1]).digest(), "digest of chunk 1"),
]
_COORDINATES_PARTS: list[Part] = [
    (struct.pack(">I", 1), "coordinate 1"),
    (struct.pack(">I", 258), "coordinate 258"),
]


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────


def _dump(parts: list[Part]) -> str:
    lines = []
    for data, remark in parts:
        for start in range(0, len(data), _LINE):
            remark_here = remark if start == 0 else ""
            lines.append(f"{data[start : start + _LINE].hex(' '):<50}{remark_here}".rstrip())
    return "\n".join(lines)


def _record(parts: list[Part], encoded: bytes) -> str:
    assert b"".join(data for data, _ in parts) == encoded, "vzarr writes other bytes"
    return _dump(parts)


def _object(parts: list[Part], encoded: bytes, hasher: Callable[[bytes], bytes], what: str) -> str:
    return f"{_record(parts, encoded)}\n\n{_dump([(hasher(encoded), what)])}"


def _tree_node(parts: list[Part], digest: bytes) -> str:
    return _object(parts, _memory.nodes[digest], node_digest, "digest")


def _digests() -> str:
    return _dump(
        [
            (chunk_digest(b""), "chunk, document, file"),
            (node_digest(b""), "tree node"),
            (entry_digest(b""), "root entry"),
            (commit_digest(b""), "commit"),
        ]
    )


def _key_hash() -> str:
    key = encode_coordinates([2])
    first = blake3(key).digest(8)
    number = key_hash(key)
    bits = " ".join(str(number >> 5 * level & 31) for level in range(12))
    return "\n".join(
        [
            _dump([(first, "the first 8 bytes")]),
            f"{number:016x}{'':<34}the same as a number, hexadecimal",
            f"{bits:<50}its five bits for the levels 0 to 11",
        ]
    )


def _branch() -> str:
    """Key and value of a branch, and the bytes that its seal is made from."""
    place = [(b"branches", "name of the database"), (b"\0", "zero byte")]
    place += [(struct.pack("<H", 4), "length of the key"), (b"main", "key")]
    head: Part = (_HEAD, "record: digest of its head")
    sealed = b"".join(part for part, _ in [*place, head])
    checksum = blake3(sealed, key=b"vzarr.seal".ljust(32, b"\0")).digest(4)
    stored = [head, (checksum, "seal")]
    assert b"".join(part for part, _ in stored) == seal("branches", b"main", _HEAD)
    return f"{_dump([(b'main', 'key: its name')])}\n\n{_dump(stored)}\n\n{_dump([*place, head])}"


def _snapshot() -> str:
    return "\n".join(f"{key:<12}  {_literal(value)}" for key, value in SNAPSHOT.items())


def _literal(value: bytes) -> str:
    if value in CHUNKS:
        return value.hex(" ")
    text = value.decode().replace("\n", "\\n")
    return f"{text}" if value is not ARRAY else text.replace(',"chunk', ',\n              "chunk')


def examples() -> dict[str, str]:
    """The text of every block on the page, by name."""
    root_node, (leaf, last_leaf) = _index()
    entry = _hierarchy.entry("t")
    assert entry is not None
    return {
        "snapshot": _snapshot(),
        "digests": _digests(),
        "key hash": _key_hash(),
        "format": _record(_FORMAT_PARTS, encode_format(FormatRecord())),
        "repository": _record(_REPOSITORY_PARTS, encode_repository(RepositoryRecord(_ID, _TIME))),
        "checksum": _record(
            [(xxh3_128_digest(bytes(65_536)), "XXH3")], chunk_checksum(bytes(65_536))
        ),
        "reference": _record(
            _blob_parts(_reference(CHUNKS[0]), "01 02"),
            encode_blob(_memory.blob(CHUNKS[0])),
        ),
        "leaf": _tree_node(_leaf_parts(leaf), leaf),
        "last leaf": _tree_node(_leaf_parts(last_leaf), last_leaf),
        "inner node": _tree_node(_inner_parts(), root_node),
        "directory node": _tree_node(_directory_parts(), _directory()),
        "array entry": _record(_array_parts(), encode_entry(entry)),
        "root entry": _object(
            _root_parts(), encode_entry(_hierarchy.root), entry_digest, "digest: the root id"
        ),
        "empty entry": _object(
            _EMPTY_PARTS, encode_entry(EMPTY_ENTRY), entry_digest, "digest: the root id"
        ),
        "coordinates": _record(_COORDINATES_PARTS, encode_coordinates([1, 258])),
        "commit": _object(_COMMIT_PARTS, encode_commit(_COMMIT), commit_digest, "digest: the id"),
        "branch": _branch(),
        "tag": _record(_TAG_PARTS, encode_tag(_TAG)),
        "reflog": _record(_REFLOG_PARTS, encode_reflog(_REFLOG)),
        "reflog key": _record(_REFLOG_KEY_PARTS, reflog_key("storm-fix", 258)),
        "lease": (
            f"{_record(_LEASE_KEY_PARTS, session_key(_ID, 0))}\n\n"
            f"{_record(_LEASE_PARTS, encode_lease(_LEASE))}"
        ),
        "batch": (f"{_record(_BATCH_KEY_PARTS, session_key(_ID, 1))}\n\n{_dump(_BATCH_PARTS)}"),
        "journal": _record(_JOURNAL_PARTS, encode_journal(_JOURNAL)),
        "remotes": _record(_REMOTES_PARTS, encode_remotes([_REMOTE])),
    }


def names(page: str) -> list[str]:
    """The names of the blocks that a page has, in order."""
    return [match[1] for match in _BLOCK.finditer(page)]


def fill(page: str) -> str:
    """Put the text of every block into the page."""
    blocks = examples()

    def block(match: re.Match[str]) -> str:
        return f"<!-- worked: {match[1]} -->\n```text\n{blocks[match[1]]}\n```\n"

    return _BLOCK.sub(block, page)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
