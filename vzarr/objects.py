"""Immutable objects by digest: chunks, tree nodes and root entries, verified when they are read.

``Objects`` reads what a repository holds. ``Overlay`` adds what a session made and has not written
yet, so that the trees and the hierarchy above need not know the difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, Literal, Protocol, TypeVar, final

from vzarr import absence
from vzarr.environment import Environment, Txn
from vzarr.errors import CorruptError, StorageError
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
from vzarr.node import Node, decode_node, encode_node

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
# So many of the nodes that a session made need not be decoded again when it commits.
_DECODED_NODES = 512


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

    def save(self, node: Node) -> bytes:
        """Keep a tree node and give its digest."""
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

    def load_some(self, digests: Sequence[bytes]) -> list[Node | None]:
        """Give nodes, those that are cold all read in one go; None where something is wrong.

        What that is, ``load`` tells. O(1) each, a hash when cold: in half the time of one by one.
        """
        nodes = _nodes if self._own_nodes is None else self._own_nodes
        found = [nodes.get(digest) for digest in digests]
        if None in found:
            missing = (digest for digest, node in zip(digests, found, strict=True) if node is None)
            read = self._read_nodes(sorted(set(missing)))
            for place, digest in enumerate(digests):
                if found[place] is None and (node := read.get(digest)) is not None:
                    found[place] = node
        return found

    def _read_nodes(self, digests: Sequence[bytes]) -> dict[bytes, Node]:
        nodes = _nodes if self._own_nodes is None else self._own_nodes
        read: dict[bytes, Node] = {}
        with contextlib.suppress(CorruptError, StorageError), self.environment.read() as txn:
            txn.look_for("nodes", digests)
            for digest in digests:
                data = txn.get("nodes", digest)
                if data is not None and node_digest(data) == digest:
                    node = read[digest] = decode_node(data)
                    nodes.put(digest, node, len(data) * _DECODED_FACTOR)
        return read

    def keep(self, digest: bytes, node: Node, node_bytes: int) -> None:
        """Keep a node in memory that was just written: the next edit mostly begins there."""
        nodes = _nodes if self._own_nodes is None else self._own_nodes
        nodes.put(digest, node, node_bytes * _DECODED_FACTOR)

    def save(self, node: Node) -> bytes:
        """Refuse: the objects on disk are written by commits alone."""
        raise AssertionError(f"a node of {len(node.keys)} entries is saved without an overlay")

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

    def load_some(self, digests: Sequence[bytes]) -> list[Node | None]:
        """Give nodes, those of the repository all read in one go; None as in ``Objects``."""
        own = self._encoded
        if not own:
            return self._base.load_some(digests)
        # Asked once: another thread may save nodes while the others are read.
        others = [digest for digest in digests if digest not in own]
        found = dict(zip(others, self._base.load_some(others), strict=True))
        return [found[digest] if digest in found else self.load(digest) for digest in digests]

    def adopt(self, node_bytes: bytes) -> None:
        """Keep an encoded node that another overlay has, as ``save``. O(n) for its hash."""
        self._encoded.setdefault(node_digest(node_bytes), node_bytes)

    def save(self, node: Node) -> bytes:
        """Keep a node in memory until the commit. O(n) for its hash."""
        node_bytes = encode_node(node.level, node.keys, node.values)
        digest = node_digest(node_bytes)
        if digest not in self._encoded:
            self._encoded[digest] = node_bytes
            # Of many, the bytes alone take a quarter of the memory.
            if len(self._decoded) < _DECODED_NODES:
                self._decoded[digest] = node
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

    def hand_over(self, written: Mapping[bytes, bytes]) -> None:
        """Keep nodes in memory for all sessions, now that they are written. O(number of nodes)."""
        for digest, data in written.items():
            node = self._decoded.get(digest)
            if node is not None:
                self._base.keep(digest, node, len(data))

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


def put_chunk(txn: Txn, digest: bytes, data: Bytes, checksum: bytes | None = None) -> None:
    """Write the bytes of a chunk, document or file, unless they are there. O(n + log n).

    Whoever has the checksum of a large one already spares the other writers the wait for it.
    """
    if txn.put("chunks", digest, data, overwrite=False) and len(data) >= CHECKSUM_FROM_BYTES:
        txn.put("checksums", digest, checksum or chunk_checksum(data))


def put_root(txn: Txn, root: Entry) -> Digest:
    """Write the root entry of a snapshot and give its digest. O(log n)."""
    _, data, digest = _encoded_root(root)
    txn.put("nodes", digest, data, overwrite=False)
    return digest


def root_digest(root: Entry) -> Digest:
    """Compute the digest of a snapshot's root: equal data, equal digest, in any file."""
    return _encoded_root(root)[2]


_Root = tuple[Entry, bytes, Digest]
_last_root: _Root | None = None


def _encoded_root(root: Entry) -> _Root:
    """Give a root entry, its bytes and their digest: a commit asks for the same several times."""
    global _last_root  # noqa: PLW0603 - in one step, so that all threads see what goes together
    found = _last_root
    if found is None or found[0] is not root:
        data = encode_entry(root)
        found = _last_root = root, data, entry_digest(data)
    return found
