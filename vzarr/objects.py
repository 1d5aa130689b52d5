"""Immutable objects by digest: chunks, tree nodes and root entries, verified when they are read.

``Objects`` reads what a repository holds. ``Overlay`` adds what a session made and has not written
yet, so that the trees and the hierarchy above need not know the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, Literal, Protocol, TypeVar, final

from vzarr import absence
from vzarr.environment import Environment, Txn
from vzarr.errors import CorruptError
from vzarr.format import (
    CHECKSUM_FROM_BYTES,
    Blob,
    Digest,
    Entry,
    chunk_checksum,
    chunk_digest,
    decode_entry,
    encode_entry,
    entry_digest,
    node_digest,
)
from vzarr.node import Node, decode_node

Verify = Literal["always", "first", "never"]
"""When chunks are verified: at every read, at the first in this process, or not.

Small ones are by their digest. Large ones are by their checksum, and only where that is missing or
not theirs, by the digest.
"""

_K = TypeVar("_K")
_V = TypeVar("_V")

Bytes = bytes | memoryview

# From this size on, fresh memory costs more than to look for some that can be used again.
LARGE_BYTES = 64 << 10
_CACHE_BYTES = 32 << 20
# A node of 1 KiB becomes lists of small bytes objects: about three times its size.
_DECODED_FACTOR = 3


@final
class Cache(Generic[_K, _V]):
    """A bounded cache in two generations: what is not used while one fills is dropped.

    Under the GIL it needs no lock: a race costs at most a second decoding.
    """

    __slots__ = ("_budget", "_old", "_used", "_young")

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._young: dict[_K, _V] = {}
        self._old: dict[_K, _V] = {}

    def get(self, key: _K) -> _V | None:
        """Look up a value. O(1)."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self._young[key] = value
        return value

    def put(self, key: _K, value: _V, weight: int) -> None:
        """Keep a value of that weight. O(1), amortised."""
        self._used += weight
        if self._used > self._budget:
            self._old, self._young, self._used = self._young, {}, weight
        self._young[key] = value


# Objects never change, so that every session of every repository in the process shares these.
_nodes: Cache[bytes, Node] = Cache(_CACHE_BYTES)
_entries: Cache[tuple[bytes, str], Entry] = Cache(1 << 14)


class Store(Protocol):
    """What trees and hierarchies need of the objects below them."""

    def load(self, digest: bytes) -> Node:
        """Give a tree node."""
        ...

    def save(self, node_bytes: bytes) -> bytes:
        """Keep an encoded tree node and give its digest."""
        ...

    def read(self, blob: Blob) -> bytes:
        """Give the bytes of a chunk, document or file."""
        ...

    def write(self, data: bytes) -> Blob:
        """Keep the bytes of a new chunk or document."""
        ...


@final
class Objects:
    """The objects of one repository, as they are on disk."""

    __slots__ = ("_own_nodes", "_verified", "environment", "verify")

    def __init__(self, environment: Environment, verify: Verify) -> None:
        self.environment = environment
        self.verify = verify
        self._verified: set[bytes] = set()
        # Of a shallow or partial clone: what another repository has, it may lack, and what is made
        # of that would refer to what is nowhere in the file.
        self._own_nodes: Cache[bytes, Node] | None = None

    def load(self, digest: bytes) -> Node:
        """Give a tree node, decoded; shared, not to be changed.

        Raises ``CorruptError`` if it is missing or damaged. O(1), a hash of the node when cold.
        """
        nodes = _nodes if self._own_nodes is None else self._own_nodes
        node = nodes.get(digest)
        if node is None:
            with self.environment.read() as txn:
                data = txn.get("nodes", digest)
            if data is None:
                self._require_kept("a group or an array, index node", digest)
                raise CorruptError(
                    f"index node {digest.hex()[:12]} is missing from {self.environment.path}",
                    path=self.environment.path,
                )
            if node_digest(data) != digest:
                raise CorruptError(
                    f"index node {digest.hex()[:12]} of {self.environment.path} is damaged: "
                    "its bytes do not match its digest",
                    path=self.environment.path,
                )
            node = decode_node(data)
            nodes.put(digest, node, len(data) * _DECODED_FACTOR)
        return node

    def save(self, node_bytes: bytes) -> bytes:
        """Refuse: the objects on disk are written by commits alone."""
        raise AssertionError(f"{len(node_bytes)} bytes of node are saved without an overlay")

    def write(self, data: bytes) -> Blob:
        """Refuse, as ``save``."""
        raise AssertionError(f"{len(data)} bytes are written without an overlay")

    def load_root(self, digest: Digest) -> Entry:
        """Give the root entry of a snapshot. Raises ``CorruptError``."""
        with self.environment.read() as txn:
            data = txn.get("nodes", digest)
            # Whoever reads or edits a tree begins here.
            if self._own_nodes is None and absence.is_any(txn):
                self._own_nodes = Cache(_CACHE_BYTES)
        if data is None:
            self._require_kept("the snapshot", digest)
        if data is None or entry_digest(data) != digest:
            raise CorruptError(
                f"the root {digest.hex()[:12]} of a snapshot of {self.environment.path} is "
                + ("missing" if data is None else "damaged"),
                path=self.environment.path,
            )
        return decode_entry(data)

    def read(self, blob: Blob) -> bytes:
        """Give the bytes of a document or file; see ``fetch``."""
        return bytes(self.fetch(blob))

    def fetch(self, blob: Blob) -> Bytes:
        """Give the bytes of a chunk, in memory that is used again once nobody holds the result.

        Raises ``CorruptError`` if they are missing or damaged. One copy, and one hash where
        ``verify`` asks for it; both without the GIL where the chunk is large.
        """
        with self.environment.read() as txn:
            view = txn.view("chunks", blob.digest)
            data = None if view is None else copy(view)
            # LMDB's memory may be used again once the txn has ended.
            view = None
            checksum = self._checksum(txn, blob)
        return self._sound(blob, data, checksum)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[Callable[[Blob], Bytes]]:
        """Give a function that reads chunks as ``fetch`` does, without copying them.

        What it gives lies in LMDB's memory and must not be touched once the block has ended. The
        file keeps the space of what is deleted meanwhile, so the block should not be long.
        """
        always = self.verify == "always"
        with self.environment.read() as txn:

            def read(blob: Blob) -> Bytes:
                digest, length = blob
                view = txn.view("chunks", digest)
                if view is None:
                    # It may have come into the file after the txn began.
                    return self.fetch(blob)
                if length >= CHECKSUM_FROM_BYTES:
                    return self._sound(blob, view, self._checksum(txn, blob))
                # Of small chunks there are many, and numpy is faster where memory is aligned.
                data = bytes(view)
                if always and len(data) == length and chunk_digest(data) == digest:
                    return data
                return self._sound(blob, data, None)

            yield read

    def _checksum(self, txn: Txn, blob: Blob) -> bytes | None:
        """Give the checksum of a chunk, if it has one and is to be verified."""
        if blob.length < CHECKSUM_FROM_BYTES or self.verify == "never":
            return None
        return txn.get("checksums", blob.digest)

    def _sound(self, blob: Blob, data: Bytes | None, checksum: bytes | None) -> Bytes:
        if data is None:
            self._require_kept("file", blob.digest)
            problem = "missing"
        elif len(data) != blob.length:
            problem = f"damaged: it has {len(data)} bytes instead of {blob.length}"
        elif self._must_verify(blob.digest) and not _is_intact(blob, data, checksum):
            problem = "damaged: its bytes do not match its digest"
        else:
            return data
        raise CorruptError(
            f"chunk {blob.digest.hex()[:12]} of {self.environment.path} is {problem}",
            path=self.environment.path,
        )

    def _require_kept(self, what: str, digest: bytes) -> None:
        """Raise ``AbsentError`` if what is missing was left out by a shallow or partial clone."""
        with self.environment.read() as txn:
            if absence.is_noted(txn, digest):
                raise absence.left_out(what, digest, self.environment.path)

    def _must_verify(self, digest: Digest) -> bool:
        if self.verify != "first":
            return self.verify == "always"
        if digest in self._verified:
            return False
        self._verified.add(digest)
        return True


@final
class Overlay:
    """Objects of a repository, and over them the nodes that a session made and not yet wrote."""

    __slots__ = ("_base", "_blobs", "_decoded", "_encoded")

    def __init__(self, base: Objects, blobs: BlobSource | None = None) -> None:
        self._base = base
        self._blobs = blobs
        self._encoded: dict[bytes, bytes] = {}
        self._decoded: dict[bytes, Node] = {}

    def load(self, digest: bytes) -> Node:
        """Give a tree node, of the session or of the repository."""
        node = self._decoded.get(digest)
        if node is None:
            data = self._encoded.get(digest)
            if data is None:
                return self._base.load(digest)
            node = self._decoded[digest] = decode_node(data)
        return node

    def save(self, node_bytes: bytes) -> bytes:
        """Keep an encoded node in memory until the commit. O(n) for its hash."""
        digest = node_digest(node_bytes)
        self._encoded.setdefault(digest, node_bytes)
        return digest

    def read(self, blob: Blob) -> bytes:
        """Give the bytes of a chunk, document or file, staged or on disk."""
        data = self._blobs.staged(blob.digest) if self._blobs is not None else None
        return self._base.read(blob) if data is None else bytes(data)

    def write(self, data: bytes) -> Blob:
        """Stage bytes that a merge made, as if they had been set. O(n) for their hash."""
        assert self._blobs is not None, "an overlay that only reads"
        blob = Blob(chunk_digest(data), len(data))
        self._blobs.stage(blob, data)
        return blob

    @property
    def nbytes(self) -> int:
        """How many bytes of nodes wait to be written. O(number of nodes)."""
        return sum(map(len, self._encoded.values()))

    @property
    def fresh(self) -> Mapping[bytes, bytes]:
        """The encoded nodes that the repository may not have, by digest."""
        return self._encoded

    def forget(self) -> None:
        """Drop all nodes: they are written, or not wanted."""
        self._encoded.clear()
        self._decoded.clear()


class BlobSource(Protocol):
    """Where staged bytes are, before LMDB has them."""

    def staged(self, digest: bytes) -> bytes | memoryview | None:
        """Give the bytes of that digest, if they are staged in memory."""
        ...

    def stage(self, blob: Blob, data: bytes | memoryview) -> None:
        """Keep bytes until they are in LMDB."""
        ...


def copy(data: Bytes) -> Bytes:
    """Copy bytes; large ones into memory that is used again. Read-only. O(n)."""
    if len(data) < LARGE_BYTES:
        return bytes(data)
    # numpy is needed for large chunks only, and the command line mostly does without.
    from vzarr import buffers

    return buffers.pool.copy(data)


def require_digest(blob: Blob, data: Bytes, path: str) -> Bytes:
    """Give the bytes of a value that leave the file at ``path``, where they have no other proof.

    Raises ``CorruptError`` if they do not match their digest, whatever their checksum. O(n).
    """
    if chunk_digest(data) != blob.digest:
        raise CorruptError(
            f"chunk {blob.digest.hex()[:12]} of {path} is damaged: its bytes do not match its "
            "digest",
            path=path,
        )
    return data


def _is_intact(blob: Blob, data: Bytes, checksum: bytes | None) -> bool:
    # A checksum that is damaged itself says nothing.
    if checksum is not None and chunk_checksum(data) == checksum:
        return True
    return chunk_digest(data) == blob.digest


def cached_entry(directory: bytes, name: str) -> Entry | None:
    """Look up a decoded directory entry by the digest of its directory's root and its name."""
    return _entries.get((directory, name))


def cache_entry(directory: bytes, name: str, entry: Entry) -> None:
    """Keep a decoded directory entry: what lies under a digest never changes."""
    _entries.put((directory, name), entry, 1)


def put_chunk(txn: Txn, digest: bytes, data: Bytes) -> None:
    """Write the bytes of a chunk, document or file, unless they are there. O(n + log n)."""
    if txn.put("chunks", digest, data, overwrite=False) and len(data) >= CHECKSUM_FROM_BYTES:
        txn.put("checksums", digest, chunk_checksum(data))


def put_root(txn: Txn, root: Entry) -> Digest:
    """Write the root entry of a snapshot and give its digest. O(log n)."""
    data = encode_entry(root)
    digest = entry_digest(data)
    txn.put("nodes", digest, data, overwrite=False)
    return digest


def root_digest(root: Entry) -> Digest:
    """Compute the digest of a snapshot's root: equal data, equal digest, in any file."""
    return entry_digest(encode_entry(root))
