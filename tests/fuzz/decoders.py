"""Every decoder of vzarr, with records to begin from, and what must hold whatever it is given.

A decoder gives a value that encodes to the same bytes again, or raises ``FormatError``, soon. What
is read from documents and chunks has no one spelling: of these, only that nothing else is raised.
"""

from __future__ import annotations

import json
import lzma
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numcodecs

from vzarr import dagcbor
from vzarr.btree import Tree
from vzarr.documents import agreed_keys, is_document, merge_documents, parse_document
from vzarr.errors import FormatError
from vzarr.format import (
    FORK,
    SESSION,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    FormatRecord,
    Layout,
    LeaseRecord,
    ReflogRecord,
    RemoteRecord,
    RepositoryRecord,
    TagRecord,
    TreeRef,
    blob_measure,
    chunk_digest,
    decode_blob,
    decode_commit,
    decode_coordinates,
    decode_entry,
    decode_format,
    decode_head,
    decode_journal,
    decode_lease,
    decode_name,
    decode_reflog,
    decode_remotes,
    decode_repository,
    decode_tag,
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
    entry_measure,
    reflog_key,
    seal,
    session_key,
    split_reflog_key,
    split_session_key,
    unseal,
)
from vzarr.inflation import InflationError, require_bounded
from vzarr.metadata import node_metadata
from vzarr.node import Node, decode_node, encode_node

CPU_SECONDS = 2.0
"""No decoder takes longer over a few kilobytes."""

_A, _B = Digest(bytes(range(32))), Digest(bytes(range(100, 132)))
_BLOB = Blob(_A, 1234)
_TIME = 1_767_225_600_000_000
_LEASE = LeaseRecord(
    *(SESSION, 258, 4711, 99, "host", "python x", None, "main", _A, _TIME, _TIME, 7, None, _B, 5)
)
_FORK = LeaseRecord(
    *(FORK, 258, 4711, 99, "host", "", bytes(16), "main", _A, _TIME, _TIME, 7, _B, None, None)
)
_ENTRY = Entry(
    {"zarr.json": _BLOB, ".zattrs": Blob(_B, 0)},
    Layout(0, 2),
    TreeRef(_A, 3, 5),
    TreeRef(_B, 2**64 - 1, 2**63),
    _BLOB,
)
_COMMITS = (
    CommitRecord(
        (), _A, "Ada <ada@example.org>", _TIME, "first", {"n": [1, -1.5, None, {"x": True}]}
    ),
    CommitRecord((_A, _B, _A), _B, "", -5, "a\nb", {}),
)


class Decoder(NamedTuple):
    """One decoder."""

    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes] | None
    """Gives back what was decoded; None for what has several spellings."""
    seeds: tuple[bytes, ...]


class UnsoundError(AssertionError):
    """A decoder did what none may do."""


def judge(name: str, data: bytes) -> bool:
    """Give a decoder some bytes; tell whether it took them. Raises ``UnsoundError``."""
    decoder = DECODERS[name]
    begun = time.thread_time()
    try:
        value = decoder.decode(data)
    except FormatError:
        taken = False
    except Exception as error:
        raise UnsoundError(f"{name} raised {error!r} for {data!r}") from error
    else:
        taken = True
        if decoder.encode is not None and decoder.encode(value) != data:
            raise UnsoundError(f"{name} took {data!r} for {value!r}, which is spelled differently")
    spent = time.thread_time() - begun
    if spent > CPU_SECONDS:
        raise UnsoundError(f"{name} took {spent:.1f} s over {data[:1000]!r}")
    return taken


# ── values that are used after they were decoded ─────────────────────────────────────────────────


def _format(data: bytes) -> FormatRecord | None:
    record = decode_format(data)
    # A later version may have more fields, which are not ours to spell.
    return record if record.version == 1 else None


def _layout(data: bytes) -> tuple[Layout, bytes] | None:
    try:
        key = data.decode()
    except UnicodeDecodeError:
        return None
    for encoding in range(4):
        for ndim in (0, 1, 3, 64):
            layout = Layout(encoding, ndim)
            found = layout.parse(key)
            if found is not None:
                assert layout.spell(found) == key
                assert len(decode_coordinates(found)) == ndim
    return None


def _document(data: bytes) -> None:
    blob = Blob(chunk_digest(data), len(data))
    for name in ("zarr.json", ".zarray", ".zgroup"):
        metadata = node_metadata({name: blob}, lambda _: data)
        array = None if metadata is None else metadata.array
        if array is None:
            continue
        assert len(array.shape) <= 64
        for index in (0, 1, 2**32 - 1):
            region = array.region((index,) * len(array.shape))
            if region is not None:
                assert array.chunks_of(region) is not None
        assert isinstance(json.loads(array.encoding), dict)


def _merge(data: bytes) -> None:
    base, other = b'{"a": 1, "b": {"c": [1, 2]}, "shape": [1, 2]}', b'{"a": 2, "d": null}'
    for sides in ((base, data, other), (data, base, other), (other, base, data), (data,) * 3):
        merged = merge_documents(*sides)
        assert merged is None or is_document(merged)
        agreed_keys(*sides)
    document = parse_document(data)
    assert (document is None) == (not is_document(data))


def _tree(data: bytes) -> None:
    """Everything that a tree does, over one node wherever a node is looked for."""
    node = decode_node(data)

    class Same:
        def load(self, digest: bytes) -> Node:
            return node

        def save(self, node: Node) -> bytes:
            return chunk_digest(encode_node(node.level, node.keys, node.values))

    root, other = TreeRef(_A, 2**64 - 1, 2**64 - 1), TreeRef(_B, 1, 1)
    for measure in (blob_measure, entry_measure):
        tree = Tree(Same(), measure)
        for call in (
            lambda tree=tree: tree.check(root),
            lambda tree=tree: list(tree.scan(root)),
            lambda tree=tree: list(tree.diff(root, other)),
            lambda tree=tree: tree.get(root, node.keys[0]),
            lambda tree=tree: tree.sums(root, node.keys[-1], node.keys[-1] + b"x"),
            lambda tree=tree: tree.apply(root, [(node.keys[-1] + b"!", encode_blob(_BLOB))]),
            lambda tree=tree: tree.merge(None, root, other, lambda *_: None),
            lambda tree=tree: list(tree.walk(root)),
        ):
            try:
                call()
            except FormatError:
                continue


def _inflation(data: bytes) -> None:
    """The first byte says which codec the rest was compressed with."""
    name = sorted(_COMPRESSED)[data[0] % len(_COMPRESSED)] if data else "zlib"
    inner: Mapping[str, Any] = {"name": name, "configuration": {}}
    sharded = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [2],
            "codecs": ["bytes", inner],
            "index_codecs": ["bytes", "crc32c"],
        },
    }
    for codecs in (["bytes", inner], [sharded]):
        try:
            require_bounded({"zarr_format": 3, "codecs": codecs}, data[1:], (10,), 8)
        except InflationError:
            continue


_PLAIN = bytes(range(80))
_COMPRESSED = {
    "zlib": zlib.compress(_PLAIN),
    "gzip": numcodecs.GZip().encode(_PLAIN),
    "bz2": numcodecs.BZ2().encode(_PLAIN),
    "lzma": lzma.compress(_PLAIN),
    "zstd": bytes(numcodecs.Zstd().encode(_PLAIN)),
    "lz4": bytes(numcodecs.LZ4().encode(_PLAIN)),
    "blosc": bytes(numcodecs.Blosc().encode(_PLAIN)),
}
_V3 = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [4, 6],
    "data_type": "int16",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 3]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {"a": [1, {"b": None}]},
}
_RECTILINEAR = {
    "name": "rectilinear",
    "configuration": {"chunk_shapes": [[1, [2, 3], 4], 5], "kind": "inline"},
}
_V2 = {"zarr_format": 2, "shape": [5], "chunks": [2], "dtype": "<i4", "dimension_separator": "/"}
_DOCUMENTS = tuple(
    json.dumps(document).encode()
    for document in (
        _V3,
        {**_V3, "chunk_grid": _RECTILINEAR},
        {**_V3, "data_type": {"name": "x"}, "chunk_key_encoding": "v2"},
        _V2,
        {"zarr_format": 2},
        {"zarr_format": 3, "node_type": "group"},
    )
)
_NODES = (
    encode_node(0, [b"a"], [encode_blob(_BLOB)]),
    encode_node(0, [b"a", b"bcd", b"e"], [encode_entry(_ENTRY), encode_entry(Entry({})), b""]),
    encode_node(0, [bytes([n, n]) for n in range(50)], [encode_blob(_BLOB)] * 50),
    encode_node(1, [b"a", b"b"], [bytes(48)] * 2),
    encode_node(31, [b"a"], [b"\xff" * 48]),
)
_META = ("meta", b"format")

DECODERS: dict[str, Decoder] = {
    "format": Decoder(
        _format,
        None,
        (encode_format(FormatRecord()), encode_format(FormatRecord(7, 3))),
    ),
    "DAG-CBOR": Decoder(
        dagcbor.decode,
        dagcbor.encode,
        (
            dagcbor.encode({"a": {"b": dagcbor.Cid(dagcbor.RAW, _A)}, "c": [1, -2.5, None, "ü"]}),
            dagcbor.encode({"roots": [dagcbor.Cid(dagcbor.DAG_CBOR, _B)], "version": 1}),
        ),
    ),
    "CID": Decoder(dagcbor.decode_cid, None, (dagcbor.Cid(dagcbor.RAW, _A).encode(),)),
    "repository": Decoder(
        decode_repository,
        encode_repository,
        (encode_repository(RepositoryRecord(bytes(16), _TIME)),),
    ),
    "remotes": Decoder(
        decode_remotes,
        encode_remotes,
        (
            encode_remotes([]),
            encode_remotes([RemoteRecord("a", "x", "b/c"), RemoteRecord("o", "u@h:p")]),
        ),
    ),
    "commit": Decoder(decode_commit, encode_commit, tuple(map(encode_commit, _COMMITS))),
    "tag": Decoder(decode_tag, encode_tag, (encode_tag(TagRecord(_A, "m", "a", _TIME)),)),
    "reflog": Decoder(
        decode_reflog,
        encode_reflog,
        (
            encode_reflog(ReflogRecord(None, _A, "a", _TIME, "create")),
            encode_reflog(ReflogRecord(_A, _B, "a", -_TIME, "commit: x")),
        ),
    ),
    "lease": Decoder(decode_lease, encode_lease, (encode_lease(_LEASE), encode_lease(_FORK))),
    "journal": Decoder(
        decode_journal,
        encode_journal,
        (encode_journal([]), encode_journal([("a/c/0", _BLOB), ("ü", None)])),
    ),
    "head": Decoder(decode_head, bytes, (_A,)),
    "reference": Decoder(decode_blob, encode_blob, (encode_blob(_BLOB),)),
    "entry": Decoder(
        decode_entry, encode_entry, (encode_entry(_ENTRY), encode_entry(Entry({}, file=_BLOB)))
    ),
    "name": Decoder(decode_name, str.encode, (b"temperature", "ü".encode(), b"")),
    "coordinates": Decoder(
        decode_coordinates, encode_coordinates, (b"", encode_coordinates([1, 2**32 - 1]))
    ),
    "node": Decoder(
        decode_node, lambda node: encode_node(node.level, node.keys, node.values), _NODES
    ),
    "seal": Decoder(
        lambda data: unseal(*_META, data),
        lambda record: seal(*_META, record),
        (seal(*_META, b""), seal(*_META, encode_format(FormatRecord()))),
    ),
    "session key": Decoder(
        split_session_key, lambda parts: session_key(*parts), (session_key(bytes(16), 7),)
    ),
    "reflog key": Decoder(
        split_reflog_key,
        lambda parts: parts[0] + b"\0" + parts[1].to_bytes(8, "big"),
        (reflog_key("main", 7), reflog_key("ü/x", 2**64 - 1)),
    ),
    "chunk key": Decoder(_layout, None, (b"c/0/1/2", b"c.0.1.2", b"0.1.2", b"4294967295", b"c")),
    "document": Decoder(_document, None, _DOCUMENTS),
    "merge": Decoder(_merge, None, _DOCUMENTS),
    "tree": Decoder(_tree, None, _NODES),
    "inflation": Decoder(
        _inflation,
        None,
        tuple(bytes([n]) + _COMPRESSED[name] for n, name in enumerate(sorted(_COMPRESSED))),
    ),
}
