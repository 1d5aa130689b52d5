"""The journal of a fork: all edits in their order, whichever process made them.

Each record of it is of one txn, which wrote bytes and the keys that they are for. Whoever has the
fork keeps the snapshot that it began from, and on top of it the edits as far as it knows them. A
look asks LMDB for the number of its newest txn, and reads on only where that has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import final

from vzarr import history, leases
from vzarr.changes import put_blobs, submit
from vzarr.environment import Environment, Txn
from vzarr.errors import SessionStateError
from vzarr.format import (
    FORK,
    Blob,
    Entry,
    JournalEdit,
    LeaseRecord,
    decode_journal,
    encode_journal,
    encode_lease,
    session_key,
)
from vzarr.hierarchy import Hierarchy, collect
from vzarr.objects import Bytes, Objects, Overlay

# So many edits are put into the tree at once, where they take a quarter of the memory.
_FOLD_EDITS = 200_000
# So many bytes of tree nodes may wait to be looked through for those that are not needed any more.
_LOOSE_NODE_BYTES = 16 << 20
# So much may come together in one txn, unless one value alone is larger.
_GROUP_BYTES = 16 << 20
_MISSING = object()


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@final
class JournalReader:
    """A fork's present state. Thread-safe; takes a lock only where there is news.

    When the fork has ended it goes on with what it knew then.
    """

    def __init__(
        self,
        objects: Objects,
        fork_id: bytes,
        root: Entry,
        note: Callable[[Iterable[JournalEdit]], None] | None = None,
    ) -> None:
        """``root`` is what the fork began from; ``note`` is told all edits as they are read."""
        self._objects = objects
        self._environment = objects.environment
        self._id = fork_id
        self._note = note
        self._lock = threading.RLock()
        self.seen = 0
        """The number of the last record that is known."""
        # The newest txn when the journal was read last.
        self._followed = -1
        self._edits: dict[str, Blob | None] = {}
        self._overlay = Overlay(objects)
        self._view = Hierarchy(self._overlay, root)
        self._needed_bytes = 0

    def find(self, key: str) -> Blob | None:
        """Give the digest and length of a key's value, or None; also of one just written by others.

        O(depth of the path · log n), and O(edits of others since the last time).
        """
        self.follow()
        # In this order: what is among the edits no more is in the view by then.
        found = self._edits.get(key, _MISSING)
        if found is not _MISSING:
            assert found is None or isinstance(found, Blob)
            return found
        return self._view.find(key)

    def folded(self) -> Hierarchy:
        """Give the state as a tree. O(k · depth) for k edits since the last time."""
        self.follow()
        if self._edits:
            with self._lock:
                self._fold()
        return self._view

    def nodes(self, root: Entry) -> Iterable[bytes]:
        """Give the encoded nodes of a tree that ``folded`` gave, if the file has not got them."""
        return collect(self._overlay, root)[0].values()

    def follow(self) -> None:
        """Read what has been written since the last time. A microsecond while nobody commits."""
        if self._environment.last_txn_id() == self._followed:
            return
        with self._lock, self._environment.read() as txn:
            for number, data in leases.records(txn, self._id, after=self.seen):
                edits = decode_journal(data)
                # In place and in one step: no key ever goes, and other threads may read meanwhile.
                self._edits.update(edits)
                self.seen = number
                if self._note is not None:
                    self._note(edits)
                if len(self._edits) >= _FOLD_EDITS:
                    self._fold()
            # Not what was asked for above: a commit shows there just before txns begin to see it.
            self._followed = txn.id

    def _fold(self) -> None:
        self._view = self._view.edit(self._edits)
        # Only now: a reader in another thread finds an edit here or in the view.
        self._edits = {}
        if self._overlay.nbytes > 2 * self._needed_bytes + _LOOSE_NODE_BYTES:
            self._prune()

    def _prune(self) -> None:
        """Let go of the nodes of former states. O(new nodes)."""
        root = self._view.root
        overlay = Overlay(self._objects)
        for data in self.nodes(root):
            overlay.adopt(data)
        self._overlay, self._view = overlay, Hierarchy(overlay, root)
        self._needed_bytes = overlay.nbytes

    def after_fork(self) -> None:
        """Go on in a child process, where nobody will give back the lock that a thread had."""
        self._lock = threading.RLock()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


@final
class JournalWriter:
    """Puts edits into the file; those of threads that come together in one txn. Thread-safe."""

    def __init__(self, environment: Environment, fork_id: bytes, timeout: float) -> None:
        """``timeout`` is for how many seconds a txn waits for other writers."""
        self._environment = environment
        self._id = fork_id
        self._timeout = timeout
        # Guards the group that gathers now; never held while anything waits.
        self._lock = threading.Lock()
        self._group: _Group | None = None

    def join(self, edits: Sequence[JournalEdit], blobs: dict[bytes, Bytes]) -> Future[None]:
        """Let edits go into the file; the result is there when they are.

        It raises ``SessionStateError`` once the fork has ended, ``BusyError``, ``FullError``. The
        bytes must not change until then.
        """
        nbytes = sum(map(len, blobs.values()))
        ours: _Group | None = None
        try:
            with self._lock:
                group = self._group
                if group is None or group.nbytes + nbytes > _GROUP_BYTES:
                    group = _Group()
                    try:
                        group.future = submit(partial(self._put, group))
                    except RuntimeError:
                        # The system gives us no thread: whoever was to wait does it.
                        group.future, ours = Future(), group
                    self._group = group
                group.edits += edits
                group.blobs |= blobs
                group.nbytes += nbytes
        finally:
            # After an interrupt as well: others may have joined it.
            if ours is not None:
                self._put_here(ours)
        return group.future

    def _put_here(self, group: _Group) -> None:
        """Write what has come together in this thread; others may wait for it, too."""
        try:
            self._put(group)
        except BaseException as error:
            group.future.set_exception(error)
            if not isinstance(error, Exception):
                # Ctrl-C is for this thread, whether it waits for the result or not.
                raise
        else:
            group.future.set_result(None)

    def _put(self, group: _Group) -> None:
        """Write what has come together into the file. In the process's one writing thread."""
        room = max(group.nbytes, _GROUP_BYTES)
        try:
            with self._environment.write(timeout=self._timeout, room=room) as txn:
                # While we waited for other processes to write, more came.
                self._close(group)
                self.put(txn, group.edits, group.blobs)
        finally:
            self._close(group)

    def _close(self, group: _Group) -> None:
        """Let whoever comes from here on be in the next group."""
        with self._lock:
            if self._group is group:
                self._group = None

    def put(self, txn: Txn, edits: Sequence[JournalEdit], blobs: dict[bytes, Bytes]) -> None:
        """Write edits, and the bytes that they name, in a txn of the caller's. Raises as above."""
        record = leases.find(txn, self._id)
        if record is None or record.kind != FORK:
            raise ended(self._id, record)
        if leases.is_alive(self._environment, self._id, record) is False:
            raise ended(self._id, None)
        put_blobs(txn, blobs.items(), {})
        number = leases.last_number(txn, self._id) + 1
        txn.put("sessions", session_key(self._id, number), encode_journal(edits))
        nbytes = record.nbytes + sum(map(len, blobs.values()))
        record = replace(record, nbytes=nbytes, updated=history.now())
        txn.put("sessions", session_key(self._id, 0), encode_lease(record))

    def after_fork(self) -> None:
        """Go on in a child process: what its parent's threads held, or wrote, is not in it."""
        self._lock = threading.Lock()
        self._group = None


@final
class _Group:
    """Edits that go into the file together."""

    __slots__ = ("blobs", "edits", "future", "nbytes")

    future: Future[None]

    def __init__(self) -> None:
        self.edits: list[JournalEdit] = []
        self.blobs: dict[bytes, Bytes] = {}
        self.nbytes = 0


TAKEN_OVER = "its session has taken over what was written to it"


def ended(fork_id: bytes, record: LeaseRecord | None) -> SessionStateError:
    """Make the error for a fork that nobody can write to any more; ``record`` is its lease."""
    why = "its session has ended, or one of them was discarded" if record is None else TAKEN_OVER
    return SessionStateError(
        f"nothing can be written to fork {fork_id.hex()[:8]} any more: {why}; "
        "fork a session anew for more writers"
    )
