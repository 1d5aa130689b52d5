"""Every byte on disk: records come back as they were, and nothing else passes for one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgpack
import pytest
from blake3 import blake3
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vzarr.errors import CorruptError
from vzarr.format import (
    BLOB_BYTES,
    DIGEST_BYTES,
    DOCUMENTS,
    EMPTY_ENTRY,
    FORK,
    FORMAT_VERSION,
    MAX_CHUNK_BYTES,
    MAX_NDIM,
    MERGED_FORK,
    SESSION,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    FormatRecord,
    Layout,
    LeaseRecord,
    ReflogRecord,
    RepositoryRecord,
    TagRecord,
    TreeRef,
    blob_measure,
    chunk_digest,
    commit_digest,
    decode_blob,
    decode_commit,
    decode_coordinates,
    decode_entry,
    decode_format,
    decode_journal,
    decode_lease,
    decode_reflog,
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
    encode_repository,
    encode_tag,
    entry_digest,
    entry_measure,
    from_microseconds,
    key_hash,
    node_digest,
    reflog_key,
    reflog_prefix,
    session_key,
    to_microseconds,
)
from vzarr.node import decode_node, encode_node

relaxed = settings(deadline=None, max_examples=60)

# ── records of every kind ────────────────────────────────────────────────────────────────────────

FIRST_TIME = to_microseconds(datetime.min.replace(tzinfo=UTC))
LAST_TIME = to_microseconds(datetime.max.replace(tzinfo=UTC))

digests = st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES).map(Digest)
texts = st.text(max_size=12)
times = st.integers(FIRST_TIME, LAST_TIME)
naturals = st.integers(0, 2**64 - 1)
blobs = st.builds(Blob, digests, st.integers(0, MAX_CHUNK_BYTES))
trees = st.builds(TreeRef, digests, st.integers(1, 2**64 - 1), naturals)
layouts = st.builds(Layout, st.integers(0, 3), st.integers(0, MAX_NDIM))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
entries = st.builds(
    lambda documents, layout, index, directory, file: Entry(
        documents, layout, index if layout is not None else None, directory, file
    ),
    st.dictionaries(st.sampled_from(DOCUMENTS), blobs),
    st.none() | layouts,
    st.none() | trees,
    st.none() | trees,
    st.none() | blobs,
)
columns = st.sampled_from([0, 1]).flatmap(
    lambda level: st.tuples(
        st.just(level),
        st.dictionaries(
            st.binary(max_size=3),
            st.binary(min_size=48, max_size=48) if level else st.binary(max_size=3),
            min_size=1,
            max_size=5,
        ),
    )
)


@dataclass(frozen=True)
class Codec:
    """One kind of record: how to make one, and how it gets into bytes and out of them."""

    records: st.SearchStrategy[Any]
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]

    def check(self, data: bytes) -> None:
        """Whatever the bytes are: they are refused as damaged, or are just the record's own."""
        try:
            record = self.decode(data)
        except CorruptError:
            return
        assert self.encode(record) == data


def _decode_this_format(data: bytes) -> FormatRecord:
    """Decode a format record, but none of a newer version, which may have more fields."""
    record = decode_format(data)
    if record.version > FORMAT_VERSION:
        raise CorruptError("newer")
    return record


def _encode_node(node: tuple[int, dict[bytes, bytes]]) -> bytes:
    level, items = node
    return encode_node(level, sorted(items), [items[key] for key in sorted(items)])


def _decode_node(data: bytes) -> tuple[int, dict[bytes, bytes]]:
    node = decode_node(data)
    return node.level, dict(zip(node.keys, node.values, strict=True))


@st.composite
def leases(draw: st.DrawFn) -> LeaseRecord:
    kind = draw(st.sampled_from([SESSION, FORK, MERGED_FORK]))
    saved = draw(st.booleans())
    return LeaseRecord(
        kind=kind,
        token=draw(naturals),
        pid=draw(naturals),
        process_started=draw(naturals),
        host=draw(texts),
        command=draw(texts),
        parent=None if kind == SESSION else draw(st.binary(min_size=16, max_size=16)),
        branch=draw(texts),
        base=draw(digests),
        created=draw(times),
        updated=draw(times),
        nbytes=draw(naturals),
        staged=draw(st.none() | digests),
        checkpoint=draw(digests) if saved else None,
        checkpointed=draw(times) if saved else None,
    )


CODECS = {
    "format": Codec(st.just(FormatRecord()), encode_format, _decode_this_format),
    "repository": Codec(
        st.builds(RepositoryRecord, st.binary(min_size=16, max_size=16), times),
        encode_repository,
        decode_repository,
    ),
    "commit": Codec(
        st.builds(
            CommitRecord,
            st.lists(digests, max_size=3).map(tuple),
            digests,
            texts,
            times,
            texts,
            st.dictionaries(texts, json_values, max_size=3),
        ),
        encode_commit,
        decode_commit,
    ),
    "tag": Codec(st.builds(TagRecord, digests, texts, texts, times), encode_tag, decode_tag),
    "reflog": Codec(
        st.builds(
            ReflogRecord, st.none() | digests, st.none() | digests, texts, times, texts
        ).filter(lambda record: record.old is not None or record.new is not None),
        encode_reflog,
        decode_reflog,
    ),
    "lease": Codec(leases(), encode_lease, decode_lease),
    "journal": Codec(
        st.lists(st.tuples(texts, st.none() | blobs), max_size=8), encode_journal, decode_journal
    ),
    "blob": Codec(blobs, encode_blob, decode_blob),
    "entry": Codec(entries, encode_entry, decode_entry),
    "node": Codec(columns, _encode_node, _decode_node),
}
every_codec = pytest.mark.parametrize("name", CODECS)
PACKED = [name for name in CODECS if name != "blob"]


@every_codec
@given(st.data())
@relaxed
def test_records_come_back(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    record = data.draw(codec.records)
    encoded = codec.encode(record)
    assert codec.decode(encoded) == record
    assert codec.encode(codec.decode(encoded)) == encoded


@every_codec
@given(st.binary(max_size=200))
@relaxed
def test_random_bytes_are_damaged(name: str, data: bytes) -> None:
    CODECS[name].check(data)


@every_codec
@given(st.data())
@relaxed
def test_mutated_bytes_are_damaged_or_another_record(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    encoded = bytearray(codec.encode(data.draw(codec.records)))
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(encoded)))
        stop = data.draw(st.integers(start, min(len(encoded), start + 4)))
        encoded[start:stop] = data.draw(st.binary(max_size=4))
    codec.check(bytes(encoded))


# Whatever msgpack can hold, so that every field is met by every type.
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | texts
    | st.binary(max_size=40)
    | digests
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**34)),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(texts | st.binary(max_size=2), inner)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", PACKED)
@given(st.data())
@relaxed
def test_fields_of_another_type_are_damaged(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    fields = msgpack.unpackb(codec.encode(data.draw(codec.records)))
    where = data.draw(st.integers(0, len(fields)))
    what = data.draw(st.sampled_from(["replace", "insert", "delete"]))
    fields[where : where + (what != "insert")] = [] if what == "delete" else [data.draw(anything)]
    codec.check(msgpack.packb(fields))


@pytest.mark.parametrize("name", PACKED)
@given(st.data())
@relaxed
def test_another_spelling_is_damaged(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    encoded = codec.encode(data.draw(codec.records))
    other = b"\xdc\x00" + bytes([encoded[0] & 15]) + encoded[1:]
    assert msgpack.unpackb(other) == msgpack.unpackb(encoded)
    with pytest.raises(CorruptError):
        codec.decode(other)
    with pytest.raises(CorruptError):
        codec.decode(encoded + b"\x00")


@every_codec
@given(st.data())
@relaxed
def test_cut_records_are_damaged(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    encoded = codec.encode(data.draw(codec.records))
    with pytest.raises(CorruptError):
        codec.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])


@pytest.mark.parametrize("data", [b"\x91" * 600, b"\x91" * 100_000, b"\xdf\xff\xff\xff\xff", b""])
@every_codec
def test_hostile_bytes_are_damaged(name: str, data: bytes) -> None:
    with pytest.raises(CorruptError):
        CODECS[name].decode(data)


# ── what the types alone would let through ───────────────────────────────────────────────────────

ZERO = Digest(bytes(DIGEST_BYTES))
COMMIT = CommitRecord((), ZERO, "", 0, "", {})
LEASE = LeaseRecord(SESSION, 9, 1, 2, "", "ls", None, "main", ZERO, 0, 1, 3, None, None, None)
FIELDS = [SESSION, 9, 1, 2, "", "ls", None, "main", ZERO, 0, 1, 3, None, None, None]
ENTRY = Entry({"zarr.json": Blob(ZERO, 2)}, Layout(0, 1))

MALFORMED = {
    "a time that is a truth value": (decode_commit, [[], ZERO, "", True, "", {}]),
    "a time after the year 9999": (decode_commit, [[], ZERO, "", LAST_TIME + 1, "", {}]),
    "a time before the year 1": (decode_tag, [ZERO, "", "", FIRST_TIME - 1]),
    "a parent that is no digest": (decode_commit, [[b"short"], ZERO, "", 0, "", {}]),
    "parents that are text": (decode_commit, ["", ZERO, "", 0, "", {}]),
    "metadata that is a list": (decode_commit, [[], ZERO, "", 0, "", []]),
    "metadata with bytes": (decode_commit, [[], ZERO, "", 0, "", {"a": [b"x"]}]),
    "metadata with a name of bytes": (decode_commit, [[], ZERO, "", 0, "", {"a": {b"x": 1}}]),
    "metadata with a number as name": (decode_commit, [[], ZERO, "", 0, "", {1: 1}]),
    "metadata with a timestamp": (decode_commit, [[], ZERO, "", 0, "", {"": msgpack.Timestamp(0)}]),
    "a reflog of nothing": (decode_reflog, [None, None, "", 0, ""]),
    "an id that is text": (decode_repository, ["x" * 16, 0, "blake3-256"]),
    "another digest algorithm": (decode_repository, [b"x" * 16, 0, "sha-256"]),
    "a repository without its last field": (decode_repository, [b"x" * 16, 0]),
    "a version that is a truth value": (decode_format, ["vzarr", True, True]),
    "a version of 0": (decode_format, ["vzarr", 0, 0]),
    "a version older than its readers": (decode_format, ["vzarr", 1, 2]),
    "version 1 with more fields": (decode_format, ["vzarr", 1, 1, "more"]),
    "another program's magic": (decode_format, ["vzarrs", 1, 1]),
    "a negative pid": (decode_lease, [*FIELDS[:2], -1, *FIELDS[3:]]),
    "an unknown kind of lease": (decode_lease, [3, *FIELDS[1:6], b"x" * 16, *FIELDS[7:]]),
    "a session with a parent": (decode_lease, [*FIELDS[:6], b"x" * 16, *FIELDS[7:]]),
    "a fork without a parent": (decode_lease, [FORK, *FIELDS[1:]]),
    "a fork of a short id": (decode_lease, [FORK, *FIELDS[1:6], b"x", *FIELDS[7:]]),
    "a checkpoint of no time": (decode_lease, [*FIELDS[:13], ZERO, None]),
    "a checkpoint of nothing": (decode_lease, [*FIELDS[:13], None, 0]),
    "a journal without values": (decode_journal, [["key"]]),
    "a journal of short references": (decode_journal, [["key", bytes(35)]]),
    "a journal of numbers": (decode_journal, [[1, bytes(36)]]),
    "codes out of order": (decode_entry, [[1, bytes(36), 0, bytes(36)], None, None, None, None]),
    "a code twice": (decode_entry, [[0, bytes(36), 0, bytes(36)], None, None, None, None]),
    "an unknown code": (decode_entry, [[5, bytes(36)], None, None, None, None]),
    "a negative code": (decode_entry, [[-5, bytes(36)], None, None, None, None]),
    "a code without a reference": (decode_entry, [[0], None, None, None, None]),
    "documents that are bytes": (decode_entry, [b"", None, None, None, None]),
    "documents that are a map": (decode_entry, [{}, None, None, None, None]),
    "a short reference": (decode_entry, [[0, bytes(35)], None, None, None, None]),
    "a file that is a list": (decode_entry, [[], None, None, None, [0] * 36]),
    "an unknown layout": (decode_entry, [[], [4, 1], None, None, None]),
    "a layout of 65 dimensions": (decode_entry, [[], [0, MAX_NDIM + 1], None, None, None]),
    "a layout of truth values": (decode_entry, [[], [False, True], None, None, None]),
    "an index without a layout": (decode_entry, [[], None, [ZERO, 1, 1], None, None]),
    "a tree of no entries": (decode_entry, [[], None, None, [ZERO, 0, 0], None]),
    "a tree of fewer entries": (decode_entry, [[], None, None, [ZERO, -1, 0], None]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_records_are_damaged(name: str) -> None:
    decode, fields = MALFORMED[name]
    with pytest.raises(CorruptError, match="damaged"):
        decode(msgpack.packb(fields))


def test_decoders_do_not_rely_on_assert_statements() -> None:
    """``python -O`` drops those."""
    malformed = msgpack.packb([[], ZERO, "", True, "", {}])
    program = (
        "from vzarr.format import decode_commit; from vzarr.errors import CorruptError\n"
        f"try: decode_commit({malformed!r})\n"
        "except CorruptError: print('refused')"
    )
    run = subprocess.run([sys.executable, "-O", "-c", program], capture_output=True, check=True)
    assert run.stdout == b"refused\n"


@pytest.mark.parametrize(
    ("encode", "record"),
    [
        (encode_commit, replace(COMMIT, root=b"short")),
        (encode_commit, replace(COMMIT, author=b"bytes")),
        (encode_commit, replace(COMMIT, metadata={"a": b"bytes"})),
        (encode_lease, replace(LEASE, pid=-1)),
        (encode_lease, replace(LEASE, staged=b"")),
        (encode_entry, replace(ENTRY, layout=None, index=TreeRef(ZERO, 1, 1))),
        (encode_entry, replace(ENTRY, layout=Layout(7, 1))),
        (encode_entry, replace(ENTRY, directory=TreeRef(ZERO, 1, 2**64))),
        (encode_blob, Blob(Digest(b"short"), 0)),
    ],
)
def test_encoders_refuse_what_decoders_would(encode: Callable[[Any], bytes], record: Any) -> None:
    with pytest.raises(AssertionError):
        encode(record)


@given(st.lists(st.integers(1, 2**64 - 1), min_size=2, max_size=2), st.lists(anything, max_size=2))
def test_a_newer_format_says_which_readers_can_read_it(numbers: list[int], more: list[Any]) -> None:
    oldest, version = sorted(numbers)
    assume(version > FORMAT_VERSION)
    found = decode_format(msgpack.packb(["vzarr", version, oldest, *more]))
    assert found == FormatRecord(version, oldest)


# ── references and sums ──────────────────────────────────────────────────────────────────────────


@given(blobs)
def test_a_reference_is_measured_without_decoding(blob: Blob) -> None:
    assert blob_measure(encode_blob(blob)) == (1, blob.length)


@given(st.binary(max_size=80))
def test_measures_raise_nothing_but_corrupt_errors(data: bytes) -> None:
    if len(data) != BLOB_BYTES:
        with pytest.raises(CorruptError):
            blob_measure(data)
    with pytest.raises(CorruptError):
        entry_measure(data + b"\xc1")


@given(entries)
@relaxed
def test_an_entry_is_measured_by_its_parts(entry: Entry) -> None:
    parts = [tree for tree in (entry.index, entry.directory) if tree is not None]
    values = [*entry.documents.values(), *([entry.file] if entry.file is not None else [])]
    count = len(values) + sum(tree.count for tree in parts)
    nbytes = sum(blob.length for blob in values) + sum(tree.nbytes for tree in parts)
    assert entry_measure(encode_entry(entry)) == (count, nbytes)
    assert entry.is_empty == (count == 0)


@given(st.dictionaries(st.sampled_from(DOCUMENTS), blobs), st.randoms(use_true_random=False))
def test_the_order_of_documents_does_not_matter(documents: dict[str, Blob], random: Any) -> None:
    shuffled = list(documents.items())
    random.shuffle(shuffled)
    assert encode_entry(Entry(dict(shuffled))) == encode_entry(Entry(documents))


# ── chunk keys ───────────────────────────────────────────────────────────────────────────────────

small_layouts = st.builds(Layout, st.integers(0, 3), st.integers(0, 4))
coordinates = st.integers(0, 2**32 - 1) | st.integers(0, 12)


def spelled(layout: Layout, numbers: list[int]) -> str:
    """A chunk's key as zarr spells it."""
    separator = "/" if layout.encoding in (0, 3) else "."
    if layout.encoding < 2:
        return separator.join(["c", *map(str, numbers)])
    return separator.join(map(str, numbers)) or "0"


@given(small_layouts, st.data())
def test_spelling_and_parsing_are_inverse(layout: Layout, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(coordinates, min_size=layout.ndim, max_size=layout.ndim))
    index_key = encode_coordinates(numbers)
    assert decode_coordinates(index_key) == tuple(numbers)
    tail = layout.spell(index_key)
    assert tail == spelled(layout, numbers)
    assert layout.parse(tail) == index_key


@given(small_layouts, st.text("c0123456789./ -+_٣", max_size=12))
def test_what_is_parsed_is_spelled_the_same(layout: Layout, tail: str) -> None:
    index_key = layout.parse(tail)
    if index_key is not None:
        assert layout.spell(index_key) == tail


@pytest.mark.parametrize(
    ("layout", "tail"),
    [
        (Layout(0, 1), "c/01"),
        (Layout(0, 1), "c/4294967296"),
        (Layout(0, 1), "c/99999999999999999999"),
        (Layout(0, 1), "c/0\n"),
        (Layout(0, 1), "c/-1"),
        (Layout(0, 1), "c/٣"),
        (Layout(0, 1), "c.0"),
        (Layout(0, 1), "0"),
        (Layout(0, 1), "c"),
        (Layout(0, 1), "c/"),
        (Layout(0, 2), "c/0"),
        (Layout(0, 0), "c/"),
        (Layout(0, 0), "0"),
        (Layout(1, 2), "c/0/0"),
        (Layout(2, 0), "c"),
        (Layout(2, 0), "1"),
        (Layout(2, 0), ""),
        (Layout(2, 2), "0.0.0"),
        (Layout(2, 2), "0/0"),
        (Layout(3, 1), "+1"),
        (Layout(3, 1), "1 "),
        (Layout(3, 1), "1_0"),
    ],
)
def test_what_is_no_chunk_key(layout: Layout, tail: str) -> None:
    assert layout.parse(tail) is None


def test_the_greatest_coordinate_is_a_chunk_key() -> None:
    assert Layout(0, 1).parse("c/4294967295") == b"\xff" * 4


@given(small_layouts, st.binary(max_size=20))
def test_index_keys_of_other_dimensions_are_damaged(layout: Layout, index_key: bytes) -> None:
    assume(len(index_key) != 4 * layout.ndim)
    with pytest.raises(CorruptError):
        layout.spell(index_key)


def test_index_keys_that_are_no_coordinates_are_damaged() -> None:
    with pytest.raises(CorruptError):
        decode_coordinates(b"abcde")


@given(st.lists(st.lists(coordinates, min_size=2, max_size=2)))
def test_index_keys_sort_in_row_major_order(numbers: list[list[int]]) -> None:
    by_key = sorted(numbers, key=encode_coordinates)
    assert by_key == sorted(numbers)


# ── keys of LMDB ─────────────────────────────────────────────────────────────────────────────────


def test_a_reflog_sorts_by_its_sequence_numbers() -> None:
    keys = [reflog_key("main", n) for n in (0, 1, 255, 256, 2**32, 2**64 - 1)]
    assert keys == sorted(keys)
    assert all(key.startswith(reflog_prefix("main")) for key in keys)
    assert not reflog_key("main2", 0).startswith(reflog_prefix("main"))


def test_a_session_sorts_by_its_batches() -> None:
    keys = [session_key(bytes(16), n) for n in (0, 1, 255, 256, 2**32 - 1)]
    assert keys == sorted(keys)
    assert {len(key) for key in keys} == {20}


# ── times ────────────────────────────────────────────────────────────────────────────────────────


@given(times)
def test_times_come_back(time: int) -> None:
    assert to_microseconds(from_microseconds(time)) == time


def test_times_of_all_zones_are_utc() -> None:
    time = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert from_microseconds(to_microseconds(time)) == time
    assert from_microseconds(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert from_microseconds(-1).isoformat() == "1969-12-31T23:59:59.999999+00:00"


# ── literal bytes and digests: a change here is another format ───────────────────────────────────


def test_digests_are_keyed_by_the_kind_of_object() -> None:
    kinds = {chunk_digest, node_digest, entry_digest, commit_digest}
    assert len({digest(b"same") for digest in kinds}) == 4
    assert chunk_digest(b"same") == blake3(b"same").digest()
    assert chunk_digest(memoryview(b"same")) == chunk_digest(b"same")
    assert node_digest(b"same") == blake3(b"same", key=b"vzarr.node" + bytes(22)).digest()
    assert entry_digest(b"same") == blake3(b"same", key=b"vzarr.entry" + bytes(21)).digest()
    assert commit_digest(b"same") == blake3(b"same", key=b"vzarr.commit" + bytes(20)).digest()


def test_literal_digests() -> None:
    blob = Blob(chunk_digest(b"{}"), 2)
    entry = encode_entry(
        Entry({".zattrs": blob, "zarr.json": blob}, Layout(2, 3), TreeRef(ZERO, 4, 5), None, blob)
    )
    commit = replace(COMMIT, parents=(ZERO,), author="A", time=-1, message="m", metadata={"k": 0.5})
    found = {
        "chunk": chunk_digest(b"abc"),
        "node": node_digest(encode_node(0, [b"a", b"b"], [b"", b"xyz"])),
        "entry": entry_digest(entry),
        "empty entry": entry_digest(encode_entry(EMPTY_ENTRY)),
        "commit": commit_digest(encode_commit(commit)),
    }
    assert {name: digest.hex() for name, digest in found.items()} == LITERAL


LITERAL = {
    "chunk": "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
    "node": "33b51dfaf90d22b1a751907335a27f700dc49c9f44e6a5e1e0e4907082a7f866",
    "entry": "aad460a15250dd06b3729a154f1b76dd8a98eb7e05d5b6813c84f91d9dd835c3",
    "empty entry": "3e904b6c3c8d4a58674a665f0242e9b2bcca5ecdd0b98c8500fd8194d8c76e48",
    "commit": "2ec31b9d50e2b11360915bf90fd0e1abc7296aa5fbbcfecf064861109c260edf",
}


def test_literal_records() -> None:
    assert encode_format(FormatRecord()).hex() == "93a5767a6172720101"
    assert encode_tag(TagRecord(ZERO, "m", "A", 0)).hex() == f"94c420{'00' * 32}a16da14100"
    assert encode_reflog(ReflogRecord(None, ZERO, "A", 1, "o")).hex() == (
        f"95c0c420{'00' * 32}a14101a16f"
    )
    assert encode_lease(LEASE).hex() == (
        f"9f00090102a0a26c73c0a46d61696ec420{'00' * 32}000103c0c0c0"
    )
    assert encode_journal([("k", None), ("l", Blob(ZERO, 258))]).hex() == (
        f"9292a16bc092a16cc424{'00' * 32}02010000"
    )
    assert encode_blob(Blob(ZERO, 258)).hex() == f"{'00' * 32}02010000"
    assert encode_coordinates([1, 258]).hex() == "0000000100000102"
    assert reflog_key("main", 258).hex() == "6d61696e000000000000000102"
    assert session_key(bytes(16), 258).hex() == f"{'00' * 16}00000102"
    # The first 8 bytes of BLAKE3("abc"), the last of them first.
    assert key_hash(b"abc") == 0x335146_38ACB33764
