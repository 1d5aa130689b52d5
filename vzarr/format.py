"""Every byte that vzarr puts on disk: digests and records, encoded and decoded.

Pure functions without a file in sight. ``docs/format.md`` is the normative description of what is
written here; ``tests/format`` reads files with a second implementation written from that page.

Encoders assert their invariants. Decoders trust nothing: whatever is malformed, or spelled in
another way than the encoder spells it, is a ``CorruptError``, so that one meaning has one digest.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, NewType, TypeVar, final

import msgpack
from blake3 import blake3
from xxhash import xxh3_128_digest

from vzarr.errors import CorruptError, InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = "vzarr"
FORMAT_VERSION = 1
"""The format that this release writes, and the newest that it reads."""
DIGEST_ALGORITHM = "blake3-256"
DIGEST_BYTES = 32
MAX_CHUNK_BYTES = 2**32 - 1
"""LMDB holds no larger value, and lengths are stored in 32 bits."""
MAX_NDIM = 64
"""An array has no more dimensions, as in NumPy."""
MAX_DEPTH = 200
"""A path has no more names. Groups are walked by functions that call themselves."""

Digest = NewType("Digest", bytes)
"""BLAKE3-256 of an object, 32 bytes."""

# ── digests ──────────────────────────────────────────────────────────────────────────────────────
# Each kind of object but the chunk has a key of its own, so that no bytes of one kind can pass for
# another. A chunk's digest is plain BLAKE3, which any tool can check.

_NODE_KEY = b"vzarr.node".ljust(32, b"\0")
_ENTRY_KEY = b"vzarr.entry".ljust(32, b"\0")
_COMMIT_KEY = b"vzarr.commit".ljust(32, b"\0")
_U64 = struct.Struct("<Q")


def chunk_digest(data: bytes | memoryview) -> Digest:
    """Hash the bytes of a chunk, document or file. O(n); releases the GIL above 2 KiB or so."""
    return Digest(blake3(data).digest())


CHECKSUM_FROM_BYTES = 64 << 10
"""Chunks of this size and more have a checksum beside: shorter ones are hashed as fast."""


def chunk_checksum(data: bytes | memoryview) -> bytes:
    """Compute what tells whether a large chunk is as it was written: XXH3, 128 bits, big-endian.

    It finds what disks, memory and software do to bytes in a quarter of the time of a digest, but
    not what somebody did on purpose. O(n), without the GIL.
    """
    return xxh3_128_digest(data)


def chunk_digests(data: bytes, lengths: Iterable[int]) -> Iterator[Digest]:
    """Hash beginnings of bytes, of lengths that ascend, as chunks. O(n) for all together."""
    hasher, done, view = blake3(), 0, memoryview(data)
    for length in lengths:
        hasher.update(view[done:length])
        done = length
        yield Digest(hasher.digest())


def node_digest(data: bytes) -> Digest:
    """Hash an encoded tree node."""
    return Digest(blake3(data, key=_NODE_KEY).digest())


def entry_digest(data: bytes) -> Digest:
    """Hash the encoded entry of a snapshot's root."""
    return Digest(blake3(data, key=_ENTRY_KEY).digest())


def commit_digest(data: bytes) -> Digest:
    """Hash an encoded commit record."""
    return Digest(blake3(data, key=_COMMIT_KEY).digest())


def key_hash(key: bytes) -> int:
    """Hash a tree key to the 64 bits that decide where nodes end."""
    return int(_U64.unpack(blake3(key).digest(8))[0])


# ── seals ────────────────────────────────────────────────────────────────────────────────────────
# An object has its digest for a key. What has a name for a key, and may change, ends with a
# checksum instead, of the name too: no flipped bit passes for another message, time, head or name.

SEALED = frozenset({"meta", "branches", "tags", "reflog", "sessions"})
"""The databases whose records end with a seal."""
SEAL_BYTES = 4
_SEAL_KEY = b"vzarr.seal".ljust(32, b"\0")
_U16 = struct.Struct("<H")


def seal(database: str, key: bytes, record: Buffer) -> bytes:
    """Give a record as it is stored: with the checksum of its place and its bytes behind it. O(n).

    The seal is no signature: it finds damage, not malice.
    """
    place = database.encode() + b"\0" + _U16.pack(len(key)) + key
    record = bytes(record)
    return record + blake3(place + record, key=_SEAL_KEY).digest(SEAL_BYTES)


def unseal(database: str, key: bytes, data: bytes) -> bytes:
    """Give a stored record without its seal. Raises ``CorruptError`` if that is broken. O(n)."""
    record = data[:-SEAL_BYTES]
    if seal(database, key, record) != data:
        raise CorruptError(
            f"the record {_show_key(key)} in {database} is damaged: its checksum is wrong; "
            "run a check"
        )
    return record


def _show_key(key: bytes) -> str:
    if key.isascii() and key.decode().isprintable():
        return repr(key.decode())
    return key.hex()


# ── times ────────────────────────────────────────────────────────────────────────────────────────

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# What Python's datetime can tell, in microseconds since the epoch.
_FIRST_TIME = -62_135_596_800_000_000
_LAST_TIME = 253_402_300_799_999_999


def to_microseconds(time: datetime) -> int:
    """Microseconds since 1970-01-01 UTC; a time without a zone is local time.

    Raises ``InvalidInputError`` for one that is none in UTC, at either end of the calendar.
    """
    try:
        return (time.astimezone(UTC) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(f"{time.isoformat()} is beyond the calendar in UTC") from error


def from_microseconds(time: int) -> datetime:
    """Give the time, in UTC, that many microseconds after 1970-01-01 UTC."""
    return _EPOCH + time * _MICROSECOND


# ── records, the common part ─────────────────────────────────────────────────────────────────────

_T = TypeVar("_T")
# A list in a list, a thousand deep: each may claim as many items, of 8 bytes, as there are bytes.
_SMALL_BYTES = 4096
_JSON_SCALARS = (str, int, float, type(None))


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(data: bytes, what: str) -> Any:
    try:
        if len(data) > _SMALL_BYTES:
            # Lists are made as long as they claim to be before their items are read. In what can be
            # skipped over, they claim no more than there is.
            unpacker = msgpack.Unpacker(max_buffer_size=0)
            unpacker.feed(data)
            unpacker.skip()
        return msgpack.unpackb(data, raw=False, strict_map_key=True, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise CorruptError(f"the {what} is damaged: {error or type(error).__name__}") from error


def record_bytes(data: bytes) -> int | None:
    """Tell how long a record is that bytes begin with; None if they begin with none. O(n)."""
    unpacker = msgpack.Unpacker(max_buffer_size=max(len(data), 1))
    try:
        unpacker.feed(data)
        unpacker.skip()
    except (ValueError, msgpack.UnpackException):
        return None
    return int(unpacker.tell())


def _decode(
    data: bytes, what: str, build: Callable[[Any], _T], encode: Callable[[_T], bytes]
) -> _T:
    """Decode a record and prove that encoding it gives the same bytes again."""
    fields = _unpack(data, what)
    try:
        record = build(fields)
        again = encode(record)
    except CorruptError:
        raise
    except (
        ValueError,
        TypeError,
        AssertionError,
        LookupError,
        AttributeError,
        OverflowError,
        RecursionError,
        struct.error,
    ) as error:
        raise CorruptError(f"the {what} is damaged: {error or type(error).__name__}") from error
    if again != data:
        raise CorruptError(f"the {what} is damaged: it is not spelled canonically")
    return record


def _require(condition: bool, what: str) -> None:
    """Assert. Decoders rely on it as much as encoders, so ``python -O`` must not drop it."""
    if not condition:
        raise AssertionError(what)


def _require_digest(value: object) -> None:
    _require(isinstance(value, bytes) and len(value) == DIGEST_BYTES, "a digest has 32 bytes")


def _require_text(*values: object) -> None:
    for value in values:
        _require(isinstance(value, str), "text expected")


def _require_natural(*values: object) -> None:
    for value in values:
        _require(type(value) is int and 0 <= value < 2**64, "a natural number of 64 bits expected")


def _require_time(time: object) -> None:
    is_time = type(time) is int and _FIRST_TIME <= time <= _LAST_TIME
    _require(is_time, "a time is an integer, of the years 1 to 9999")


def _require_json(value: object) -> None:
    """Assert that a value is of JSON's types and no others that msgpack knows."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            _require_text(*item)
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        else:
            _require(isinstance(item, _JSON_SCALARS), "a value is not of JSON's types")


# ── meta ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FormatRecord:
    """What the file is, and which readers can read it."""

    version: int = FORMAT_VERSION
    min_reader_version: int = FORMAT_VERSION


def encode_format(record: FormatRecord) -> bytes:
    """Encode the record at ``meta/format``."""
    _require_natural(record.version, record.min_reader_version)
    _require(0 < record.min_reader_version <= record.version, "versions begin at 1")
    return _pack([MAGIC, record.version, record.min_reader_version])


def decode_format(data: bytes) -> FormatRecord:
    """Decode the record at ``meta/format``; that of a newer version may have more fields."""
    what = "format record"
    fields = _unpack(data, what)
    if not isinstance(fields, list) or len(fields) < 3 or fields[0] != MAGIC:
        raise CorruptError(f"the {what} is damaged: it does not begin with vzarr's magic")
    known = _pack(fields[:3]) if type(fields[1]) is int and fields[1] > FORMAT_VERSION else data
    return _decode(known, what, lambda fields: FormatRecord(*fields[1:]), encode_format)


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """Who the repository is: written once, at its creation."""

    id: bytes
    """A random UUID, 16 bytes."""
    created: int
    """Microseconds since 1970-01-01 UTC."""
    digest_algorithm: str = DIGEST_ALGORITHM


def encode_repository(record: RepositoryRecord) -> bytes:
    """Encode the record at ``meta/repository``."""
    _require(isinstance(record.id, bytes) and len(record.id) == 16, "a UUID has 16 bytes")
    _require_time(record.created)
    _require(record.digest_algorithm == DIGEST_ALGORITHM, "unknown digest algorithm")
    return _pack([record.id, record.created, record.digest_algorithm])


def decode_repository(data: bytes) -> RepositoryRecord:
    """Decode the record at ``meta/repository``."""
    return _decode(
        data, "repository record", lambda fields: RepositoryRecord(*fields), encode_repository
    )


ABSENT_PREFIX = b"absent/"
"""In ``meta``, before the digest of an object that a shallow or partial clone has left out."""


@dataclass(frozen=True, slots=True)
class RemoteRecord:
    """Another repository that this one knows by a name."""

    name: str
    url: str
    """A path, or ``user@host:path``."""
    path: str = ""
    """The group or array of it that is fetched alone; all of it, if that is empty."""


def encode_remotes(records: Sequence[RemoteRecord]) -> bytes:
    """Encode the record at ``meta/remotes``, in the order of the names."""
    names = [record.name for record in records]
    _require_text(*names, *(text for record in records for text in (record.url, record.path)))
    _require(sorted(set(names)) == names, "remotes are not in the order of their names")
    return _pack([[record.name, record.url, record.path] for record in records])


def decode_remotes(data: bytes) -> list[RemoteRecord]:
    """Decode the record at ``meta/remotes``."""

    def build(fields: Any) -> list[RemoteRecord]:
        return [RemoteRecord(*row) for row in fields]

    return _decode(data, "record of the remotes", build, encode_remotes)


# ── commits, tags, reflog, sessions ──────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """One commit, as it is stored."""

    parents: tuple[Digest, ...]
    root: Digest
    author: str
    time: int
    """Microseconds since 1970-01-01 UTC; negative before."""
    message: str
    metadata: Mapping[str, Any]


def encode_commit(record: CommitRecord) -> bytes:
    """Encode a commit; its digest is the commit's id."""
    for digest in (*record.parents, record.root):
        _require_digest(digest)
    _require_text(record.author, record.message)
    _require_time(record.time)
    metadata = dict(record.metadata)
    _require_json(metadata)
    return _pack(
        [
            list(record.parents),
            record.root,
            record.author,
            record.time,
            record.message,
            metadata,
        ]
    )


def decode_commit(data: bytes) -> CommitRecord:
    """Decode a commit."""

    def build(fields: Any) -> CommitRecord:
        parents, root, author, time, message, metadata = fields
        return CommitRecord(tuple(parents), root, author, time, message, metadata)

    return _decode(data, "commit record", build, encode_commit)


@dataclass(frozen=True, slots=True)
class TagRecord:
    """A name for a commit that never moves."""

    commit: Digest
    message: str
    author: str
    time: int


def decode_head(data: bytes) -> Digest:
    """Decode a branch, which is nothing but the digest of its head."""
    if len(data) != DIGEST_BYTES:
        raise CorruptError(f"a branch is damaged: {len(data)} bytes instead of {DIGEST_BYTES}")
    return Digest(data)


def encode_tag(record: TagRecord) -> bytes:
    """Encode a tag."""
    _require_digest(record.commit)
    _require_text(record.message, record.author)
    _require_time(record.time)
    return _pack([record.commit, record.message, record.author, record.time])


def decode_tag(data: bytes) -> TagRecord:
    """Decode a tag."""
    return _decode(data, "tag record", lambda fields: TagRecord(*fields), encode_tag)


@dataclass(frozen=True, slots=True)
class ReflogRecord:
    """One move of a branch: from where to where, by whom, when, by what."""

    old: Digest | None
    """None where the branch was created."""
    new: Digest | None
    """None where the branch was deleted."""
    author: str
    time: int
    operation: str


def encode_reflog(record: ReflogRecord) -> bytes:
    """Encode a reflog record."""
    _require(record.old is not None or record.new is not None, "a branch moves from or to a commit")
    for digest in (record.old, record.new):
        if digest is not None:
            _require_digest(digest)
    _require_text(record.author, record.operation)
    _require_time(record.time)
    return _pack([record.old, record.new, record.author, record.time, record.operation])


def decode_reflog(data: bytes) -> ReflogRecord:
    """Decode a reflog record."""
    return _decode(data, "reflog record", lambda fields: ReflogRecord(*fields), encode_reflog)


def reflog_key(branch: str, sequence: int) -> bytes:
    """Order a branch's reflog: its name, a zero byte, and a big-endian counter of 64 bits."""
    if sequence >= 2**64:
        raise CorruptError(f"the reflog of {branch!r} has no number left for another move")
    return reflog_prefix(branch) + sequence.to_bytes(8, "big")


def split_reflog_key(key: bytes) -> tuple[bytes, int]:
    """Give the branch's encoded name and the number that a key is made of."""
    if len(key) < 9 or key[-9]:
        raise CorruptError(f"a reflog is damaged: the key {key.hex()} is no name and number")
    return key[:-9], int.from_bytes(key[-8:], "big")


def reflog_prefix(branch: str) -> bytes:
    """Give the common prefix of the keys of a branch's reflog; no name holds a zero byte."""
    return branch.encode() + b"\0"


SESSION_ID_BYTES = 16
SESSION, FORK, MERGED_FORK = 0, 1, 2
"""The kinds of lease: of a session, of a fork of one, of a fork whose edits its session has."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A writer that has work in the file ahead of its commit: whose it is, and what it holds."""

    kind: int
    token: int
    """Of the owner's opening of the file, which holds a lock on the byte that this stands for."""
    pid: int
    process_started: int
    """Clock ticks since boot, so that a reused pid is told from its former owner; 0 if unknown."""
    host: str
    command: str
    parent: bytes | None
    """The id of the session that a fork is of."""
    branch: str
    base: Digest
    created: int
    """Microseconds since 1970-01-01 UTC, as all times here."""
    updated: int
    nbytes: int
    """How many bytes of values it has put into the file."""
    staged: Digest | None
    """The root of a snapshot whose nodes it wrote ahead of its commit, or that a fork begins from,
    if there is one."""
    checkpoint: Digest | None
    """The root of the snapshot that its last checkpoint saved, if there was one."""
    checkpointed: int | None
    """When that was."""


def encode_lease(record: LeaseRecord) -> bytes:
    """Encode a session's lease."""
    _require_natural(record.kind, record.token, record.pid, record.process_started, record.nbytes)
    _require(record.kind <= MERGED_FORK, "no such kind of lease")
    _require_text(record.host, record.command, record.branch)
    _require_digest(record.base)
    _require_time(record.created)
    _require_time(record.updated)
    _require((record.parent is None) == (record.kind == SESSION), "forks alone have a parent")
    if record.parent is not None:
        _require(isinstance(record.parent, bytes) and len(record.parent) == 16, "no session id")
    for digest in (record.staged, record.checkpoint):
        if digest is not None:
            _require_digest(digest)
    _require((record.checkpoint is None) == (record.checkpointed is None), "when, without what")
    if record.checkpointed is not None:
        _require_time(record.checkpointed)
    return _pack([getattr(record, field) for field in LeaseRecord.__slots__])


def decode_lease(data: bytes) -> LeaseRecord:
    """Decode a session's lease."""
    return _decode(data, "session record", lambda fields: LeaseRecord(*fields), encode_lease)


JournalEdit = tuple[str, "Blob | None"]
"""A key, and the value that it got; None for one that was deleted."""


def encode_journal(edits: Sequence[JournalEdit]) -> bytes:
    """Encode edits of a fork, in the order in which they were made."""
    packed = []
    for key, blob in edits:
        _require_text(key)
        packed.append([key, None if blob is None else encode_blob(blob)])
    return _pack(packed)


def decode_journal(data: bytes) -> list[JournalEdit]:
    """Decode edits of a fork."""

    def build(fields: Any) -> list[JournalEdit]:
        return [(key, None if blob is None else decode_blob(blob)) for key, blob in fields]

    return _decode(data, "journal of a fork", build, encode_journal)


def session_key(session_id: bytes, batch: int) -> bytes:
    """Order a session's records: its lease is 0, and what it staged or a fork edited 1 and up."""
    _require(len(session_id) == SESSION_ID_BYTES, "a session's id has 16 bytes")
    if batch >= 2**32:
        raise CorruptError(f"session {session_id.hex()} has no number left for another record")
    return session_id + batch.to_bytes(4, "big")


def split_session_key(key: bytes) -> tuple[bytes, int]:
    """Give the session's id and the number that a key is made of."""
    if len(key) != SESSION_ID_BYTES + 4:
        raise CorruptError(f"a session is damaged: the key {key.hex()} is no id and number")
    return key[:SESSION_ID_BYTES], int.from_bytes(key[SESSION_ID_BYTES:], "big")


# ── references from entries and indexes ──────────────────────────────────────────────────────────


@final
class Blob(NamedTuple):
    """A reference to stored bytes: their digest and their length in bytes."""

    digest: Digest
    length: int


_REFERENCE = struct.Struct(f"<{DIGEST_BYTES}sI")
BLOB_BYTES = _REFERENCE.size


def encode_blob(blob: Blob) -> bytes:
    """Encode a reference: 32 bytes of digest, 4 bytes of length, little-endian."""
    _require_digest(blob.digest)
    return _REFERENCE.pack(*blob)


def decode_blob(data: bytes) -> Blob:
    """Decode a reference."""
    try:
        return Blob._make(_REFERENCE.unpack(data))
    except struct.error:
        raise _bad_reference(data) from None


def blob_measure(data: bytes) -> tuple[int, int]:
    """Count and size in bytes of what an encoded reference stands for."""
    try:
        return 1, _REFERENCE.unpack(data)[1]
    except struct.error:
        raise _bad_reference(data) from None


def _bad_reference(data: bytes) -> CorruptError:
    return CorruptError(f"a chunk reference is damaged: {len(data)} bytes instead of {BLOB_BYTES}")


# ── chunk keys ───────────────────────────────────────────────────────────────────────────────────

# "0" or digits without a leading zero, ASCII only.
_NUMBER = r"(0|[1-9][0-9]{0,9})"


@final
class Layout(NamedTuple):
    """How an array spells the keys of its chunks: prefix, separator, number of dimensions."""

    encoding: int
    """0: ``c/0/1`` · 1: ``c.0.1`` · 2: ``0.1`` · 3: ``0/1``"""
    ndim: int

    @property
    def separator(self) -> str:
        """The character between coordinates."""
        return "/" if self.encoding in (0, 3) else "."

    @property
    def prefixed(self) -> bool:
        """Whether keys begin with ``c``."""
        return self.encoding < 2

    def parse(self, tail: str) -> bytes | None:
        """Turn the tail of a chunk's key into its index key, or None where it is no chunk's.

        The index key is the coordinates as big-endian integers of 32 bits, in order: sorted, that
        is row-major order. Coordinates of 2^32 and above are not chunks of the index.
        """
        spelled = _layout_pattern(self).fullmatch(tail)
        if spelled is None:
            return None
        try:
            return _row(self.ndim).pack(*map(int, spelled.groups()))
        except struct.error:
            # Beyond 32 bits.
            return None

    def spell(self, index_key: bytes) -> str:
        """Turn an index key back into the tail of a chunk's key."""
        if len(index_key) != 4 * self.ndim:
            raise CorruptError("a chunk index is damaged: a key has another number of dimensions")
        numbers = [str(number) for number in decode_coordinates(index_key)]
        if self.prefixed:
            return self.separator.join(["c", *numbers])
        return self.separator.join(numbers) or "0"


@lru_cache(maxsize=256)
def _layout_pattern(layout: Layout) -> re.Pattern[str]:
    separator = re.escape(layout.separator)
    if layout.ndim == 0:
        return re.compile("c" if layout.prefixed else "0")
    numbers = separator.join([_NUMBER] * layout.ndim)
    return re.compile(f"c{separator}{numbers}" if layout.prefixed else numbers)


@lru_cache(maxsize=256)
def _row(ndim: int) -> struct.Struct:
    return struct.Struct(f">{ndim}I")


def encode_coordinates(coordinates: list[int] | tuple[int, ...]) -> bytes:
    """Encode chunk coordinates as an index key."""
    return _row(len(coordinates)).pack(*coordinates)


def decode_coordinates(index_key: bytes) -> tuple[int, ...]:
    """Decode an index key to chunk coordinates."""
    if len(index_key) % 4:
        raise CorruptError("a chunk index is damaged: a key is no row of 32-bit coordinates")
    return _row(len(index_key) // 4).unpack(index_key)


# ── entries of a directory ───────────────────────────────────────────────────────────────────────

DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
"""The keys of a node that are its documents, by their code on disk."""
_DOCUMENT_CODE = {name: code for code, name in enumerate(DOCUMENTS)}


@dataclass(frozen=True, slots=True)
class TreeRef:
    """A tree: the digest of its root node, and how many keys and bytes lie below it."""

    digest: bytes
    count: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory: all that lies at, or below, one path.

    A name may be several things at once, because to zarr a store is a flat map: a file ``a`` may
    lie beside a group ``a``.
    """

    documents: Mapping[str, Blob]
    """Its metadata documents by name, kept byte for byte."""
    layout: Layout | None = None
    """How its chunks' keys are spelled, if it is an array; follows from the documents alone."""
    index: TreeRef | None = None
    """Its chunks."""
    directory: TreeRef | None = None
    """Its members, and all other keys below it."""
    file: Blob | None = None
    """The value of the key that is just this path."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing lies here; such an entry is never stored in a directory."""
        return not self.documents and not self.index and not self.directory and not self.file

    @property
    def count(self) -> int:
        """How many keys lie here and below."""
        below = (self.index.count if self.index else 0) + (
            self.directory.count if self.directory else 0
        )
        return below + len(self.documents) + (self.file is not None)

    @property
    def nbytes(self) -> int:
        """How many bytes the values of those keys have."""
        below = (self.index.nbytes if self.index else 0) + (
            self.directory.nbytes if self.directory else 0
        )
        own = sum(blob.length for blob in self.documents.values())
        return below + own + (self.file.length if self.file else 0)


EMPTY_ENTRY = Entry({})


def _pack_tree(tree: TreeRef | None) -> list[Any] | None:
    if tree is None:
        return None
    _require_digest(tree.digest)
    _require_natural(tree.count, tree.nbytes)
    _require(tree.count > 0, "the empty tree has no reference")
    return [tree.digest, tree.count, tree.nbytes]


def _unpack_tree(fields: Any) -> TreeRef | None:
    if fields is None:
        return None
    digest, count, nbytes = fields
    return TreeRef(digest, count, nbytes)


def encode_entry(entry: Entry) -> bytes:
    """Encode an entry: documents in the order of their codes, layout, index, directory, file."""
    documents: list[Any] = []
    for name in sorted(entry.documents, key=_DOCUMENT_CODE.__getitem__):
        documents += [_DOCUMENT_CODE[name], encode_blob(entry.documents[name])]
    layout = entry.layout
    if layout is not None:
        _require_natural(layout.encoding, layout.ndim)
        _require(layout.encoding <= 3, "no such spelling of chunk keys")
        _require(layout.ndim <= MAX_NDIM, "too many dimensions")
    _require(entry.index is None or layout is not None, "an index without a layout")
    return _pack(
        [
            documents,
            None if layout is None else [layout.encoding, layout.ndim],
            _pack_tree(entry.index),
            _pack_tree(entry.directory),
            None if entry.file is None else encode_blob(entry.file),
        ]
    )


# A commit meets an entry and its neighbours several times.
_ENTRIES_KEPT = 1 << 12
_entries: dict[bytes, Entry] = {}


def keep_entry(data: bytes, entry: Entry) -> None:
    """Remember what ``decode_entry`` gives; the documents are in the order of their codes. O(1)."""
    if len(_entries) >= _ENTRIES_KEPT:
        _entries.clear()
    _entries[data] = entry


def decode_entry(data: bytes) -> Entry:
    """Decode an entry. O(size), O(1) where it was decoded before."""
    entry = _entries.get(data)
    if entry is None:
        entry = _decode_entry(data)
        keep_entry(data, entry)
    return entry


def _decode_entry(data: bytes) -> Entry:
    def build(fields: Any) -> Entry:
        documents, layout, index, directory, file = fields
        codes, blobs = documents[::2], documents[1::2]
        return Entry(
            {
                DOCUMENTS[code]: decode_blob(blob)
                for code, blob in zip(codes, blobs, strict=True)
                if code >= 0
            },
            None if layout is None else Layout(*layout),
            _unpack_tree(index),
            _unpack_tree(directory),
            None if file is None else decode_blob(file),
        )

    return _decode(data, "directory entry", build, encode_entry)


def decode_name(data: bytes) -> str:
    """Decode a name of a directory, which is UTF-8 without a slash."""
    try:
        name = data.decode()
    except UnicodeDecodeError as error:
        raise CorruptError(f"a directory is damaged: the name {data!r} is not UTF-8") from error
    if "/" in name:
        raise CorruptError(f"a directory is damaged: the name {name!r} has a slash in it")
    return name


def entry_measure(data: bytes) -> tuple[int, int]:
    """Count and size in bytes of the keys at and below an encoded entry."""
    entry = decode_entry(data)
    return entry.count, entry.nbytes
