"""A snapshot's tree, the edits on top of it, and what of them is in the file already.

Writes gather in a ``ChangeSet`` and are folded into a new tree when something must be listed,
compared or committed; both trees, the base and the workspace's own, share all nodes that did not
change. So "what did I change", "what did they change" and "do the two overlap" are comparisons of
trees that cost what changed.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, final

from vzarr.changes import ChangeSet, put_blobs
from vzarr.environment import Txn
from vzarr.errors import BusyError, InvalidInputError, SessionStateError, StorageError
from vzarr.format import (
    CHECKSUM_FROM_BYTES,
    MAX_CHUNK_BYTES,
    Blob,
    Digest,
    Entry,
    chunk_checksum,
)
from vzarr.hierarchy import Hierarchy, collect, require_depth
from vzarr.history import now
from vzarr.leases import NOBODY, Lease
from vzarr.objects import BlobSource, Bytes, Objects, Overlay, put_root
from vzarr.portable import at_fork

# So many edits are folded into the tree, where they take a fifth of the memory. In a large tree it
# takes more of them, because edits all over it rewrite most of its nodes.
_FOLD_EDITS = 8_000
_MOST_EDITS = 50_000
_FOLD_SHARE = 4
# So many bytes of new tree nodes are written ahead of the commit.
_SPILL_NODE_BYTES = 64 << 20
_MISSING = object()


@final
class Unwritten(NamedTuple):
    """What the file lacks of a tree."""

    root: Entry
    nodes: Mapping[bytes, bytes]
    blobs: Sequence[tuple[bytes, Bytes]]
    checksums: Mapping[bytes, bytes]

    @property
    def nbytes(self) -> int:
        """How many bytes that are."""
        return sum(map(len, self.nodes.values())) + sum(len(data) for _, data in self.blobs)

    def write(self, txn: Txn) -> Digest:
        """Write it, and give the digest of the tree's root. O(log n) for each object."""
        put_blobs(txn, self.blobs, self.checksums)
        # In key order LMDB finds the next place beside the last one.
        digests = sorted(self.nodes)
        txn.look_for("nodes", digests)
        for digest in digests:
            txn.put("nodes", digest, self.nodes[digest], overwrite=False)
        return put_root(txn, self.root)


@final
class Workspace:
    """The state that a session shows and edits. One writes at a time, under ``lock``.

    Readers take no lock: what they look for is in the edits, or in the tree, or has just been put
    from the one into the other, in this order.
    """

    def __init__(
        self, objects: Objects, lease: Lease, timeout: float, base: Entry, root: Entry
    ) -> None:
        """``timeout`` is for how many seconds what must be written waits for other writers."""
        self.lock = threading.RLock()
        _workspaces.add(self)
        self.lease = lease
        self._objects = objects
        self._timeout = timeout
        self.changes = ChangeSet(objects.environment, lease, timeout)
        self._blobs: BlobSource = self.changes
        self._show(base, root)
        if root != base:
            self.changes.traces.note_unknown()

    def _show(self, base: Entry, root: Entry) -> None:
        self.base = base
        self.overlay = Overlay(self._objects, self.changes)
        self._view = Hierarchy(self.overlay, root)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def find(self, key: str) -> Blob | None:
        """Give the digest and length of a key's value, or None. O(depth of the path · log n)."""
        found = self.changes.edits.get(key, _MISSING)
        if found is not _MISSING:
            assert found is None or isinstance(found, Blob)
            return found
        return self._view.find(key)

    def read(self, blob: Blob) -> Bytes:
        """Give the bytes behind a reference, staged or on disk. Raises ``CorruptError``."""
        staged = self._blobs.staged(blob.digest)
        return self._objects.fetch(blob) if staged is None else staged

    @contextlib.contextmanager
    def in_place(self) -> Iterator[Callable[[Blob], Bytes]]:
        """Give a function that reads without copying, for the block alone: ``Objects.in_place``."""
        with self._objects.in_place() as view:

            def read(blob: Blob) -> Bytes:
                staged = self._blobs.staged(blob.digest)
                return view(blob) if staged is None else staged

            yield read

    def folded(self) -> Hierarchy:
        """Put the edits into the tree and give it. O(k · depth) for k edits since the last time."""
        if self.changes.edits:
            with self.lock:
                edits = self.changes.edits
                if edits:
                    self._view = self._view.edit(edits)
                    # Only now: a reader in another thread finds an edit here or in the view.
                    self.changes.edits = {}
        return self._view

    @property
    def root(self) -> Entry:
        """The root of the tree with all edits."""
        return self.folded().root

    @property
    def is_untouched(self) -> bool:
        """Whether there is nothing to drop, here or in the file. O(1)."""
        return (
            self._view.root is self.base
            and self.changes.is_empty
            and not self.overlay.fresh
            and self.lease.is_blank
        )

    @property
    def unfolded(self) -> tuple[Entry, Mapping[str, Blob | None]]:
        """The root of the tree, and the edits that are not in it yet. Takes no lock. O(1)."""
        return self._view.root, self.changes.edits

    @property
    def edits_on_base(self) -> dict[str, Blob | None] | None:
        """All edits, if none of them is in the tree yet; None otherwise. O(edits)."""
        with self.lock:
            return self.changes.edits.copy() if self._view.root == self.base else None

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def put(self, key: str, blob: Blob, data: Bytes) -> None:
        """Set the value of a key. ``data`` must not change afterwards."""
        # As its digest, while the processor has it at hand, and mostly before the lock.
        checksum = chunk_checksum(data) if len(data) >= CHECKSUM_FROM_BYTES else None
        with self.lock:
            self.changes.put(key, blob, data, checksum=checksum)
            self._bound_memory()

    def delete(self, key: str) -> None:
        """Delete a key, if it is there."""
        with self.lock:
            # zarr deletes every chunk that holds only fill values; most were never there.
            if self.find(key) is None:
                self.changes.traces.note(key, deleted=True)
            else:
                self.changes.delete(key)
                self._bound_memory()

    def rework(self, change: Callable[[Hierarchy], Hierarchy]) -> None:
        """Go on from what ``change`` makes of the tree with all edits."""
        with self.lock:
            self._view = change(self.folded())

    def rebase(self, base: Entry, root: Entry) -> None:
        """Take another snapshot for the base, and what a merge made of it and the edits."""
        with self.lock:
            self.base, self._view = base, Hierarchy(self.overlay, root)

    def begin(self, base: Entry) -> None:
        """Show a snapshot without edits; what there were are committed, or not wanted. O(1)."""
        with self.lock:
            # A new one: who still has conflicts of the edits can look at the bytes in the old one.
            self.changes = ChangeSet(self._objects.environment, self.lease, self._timeout)
            self._blobs = self.changes
            self._show(base, base)

    def preview(self, root: Entry, overlay: Overlay, blobs: BlobSource) -> None:
        """Show a tree that was made elsewhere and is not to be written."""
        self._blobs, self.overlay, self._view = blobs, overlay, Hierarchy(overlay, root)

    # ── ahead of the commit ──────────────────────────────────────────────────────────────────────

    def _bound_memory(self) -> None:
        edits = len(self.changes.edits)
        if edits >= _FOLD_EDITS and (
            edits >= _MOST_EDITS or edits >= self._view.root.count // _FOLD_SHARE
        ):
            self.folded()
            if self.overlay.nbytes >= _SPILL_NODE_BYTES:
                self.spill()

    def spill(self, *, checkpoint: bool = False) -> Digest:
        """Write all edits into the file, unreachable until the commit; give the tree's root id.

        A checkpoint is what ``repo.resume`` finds. Cost: O(edits · depth) nodes, no fsync.
        """
        with self.lock:
            root = self.root
            self.changes.flush()
            unwritten = self.unwritten(root)
            with self._objects.environment.write(
                timeout=self._timeout, room=unwritten.nbytes
            ) as txn:
                self._require_base(txn)
                staged = unwritten.write(txn)
                saved = {"checkpoint": staged, "checkpointed": now()} if checkpoint else {}
                record = self.lease.put(txn, staged=staged, **saved)
            self.lease.record = record
            self.overlay = Overlay(self._objects, self.changes)
            self._view = Hierarchy(self.overlay, root)
            return staged

    def _require_base(self, txn: Txn) -> None:
        """Make sure that the nodes which the tree has from its base are still in the file."""
        base = self.lease.base
        if not txn.contains("commits", base):
            raise SessionStateError(
                f"commit {base.hex()[:12]}, from which this session began, was deleted meanwhile: "
                "discard, and do it again in a new session"
            )

    def unwritten(self, root: Entry) -> Unwritten:
        """Find what the file lacks of a tree. Waits for what is staged. O(new nodes)."""
        # Staged chunks are in the file before anything names them, those of a merge as well.
        self.changes.drain()
        nodes, needed = collect(self.overlay, root)
        blobs = [(digest, data) for digest, data in self.changes.fresh.items() if digest in needed]
        return Unwritten(root, nodes, blobs, self.changes.checksums)

    def drop(self) -> None:
        """Delete what the edits left in the file. Waits for batches under way."""
        self.changes.abandon()
        if self.lease.written:
            with self._objects.environment.write(timeout=self._timeout) as txn:
                self.lease.delete(txn)

    def leave(self) -> None:
        """End: delete what the edits left in the file, but for a checkpoint, which is anybody's.

        Where the file is busy, full or closed, both are so when this process has ended.
        """
        with self.lock:
            self.changes.abandon()
            if self.lease.written:
                with (
                    contextlib.suppress(BusyError, StorageError, SessionStateError),
                    self._objects.environment.write(timeout=self._timeout) as txn,
                ):
                    if self.lease.record.checkpoint is None:
                        self.lease.delete(txn)
                    else:
                        self.lease.put(txn, token=NOBODY)
            self.lease.close()


def check_value(key: str, data: Bytes) -> None:
    """Raise ``InvalidInputError`` for a key or a value that no repository can hold."""
    if not isinstance(key, str) or not key:
        raise InvalidInputError(f"a key is a string that is not empty, not {key!r}")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"the key {key!r} is not valid Unicode: {error}") from error
    require_depth(key)
    if len(data) > MAX_CHUNK_BYTES:
        raise InvalidInputError(
            f"the value of {key!r} has {len(data)} bytes, and a chunk holds at most "
            f"{MAX_CHUNK_BYTES}; use smaller chunks"
        )


_workspaces: weakref.WeakSet[Workspace] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Take the lock from threads that the child does not have: one that saved a checkpoint."""
    for workspace in list(_workspaces):
        workspace.lock = threading.RLock()


at_fork(after_in_child=_after_fork_in_child)
