"""A data file in this process: opened by LMDB when it is needed, and never under somebody's feet.

``Access`` has all that belongs to one file and one process: LMDB's handle, the gate for writers,
who is inside, and what others see of us. It begins and ends txns, lets the map grow, opens LMDB
anew after a panic, a failed growth or a fork, and closes it at the end.

Locks are taken in this order: gate, activity, ``no_fork``, registry. A thread may open a read txn
inside another txn of its own; a write txn must be the outermost one of its thread, because it may
have to wait until it is alone.
"""

# Whoever begins and ends a txn knows its insides.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType
from typing import final

import lmdb

from vzarr.activity import Activity
from vzarr.datafile import ATTEMPTS, extend, open_once, require_ours
from vzarr.errors import FullError, ReadOnlyError, SessionStateError, StorageError, VzarrError
from vzarr.gate import Gate
from vzarr.lmdberrors import translate
from vzarr.mapping import Opened, open_file, require_in_place
from vzarr.presence import Presence
from vzarr.txn import FORKED, FORKED_TXN, Txn

MAP_SLACK_BYTES = 1 << 20
"""What a write txn may need on top of what it announces: tree pages, the list of free pages."""

OPEN_TIMEOUT = 60.0
_EXIT_TIMEOUT = 1.0


class _NotOpenError(lmdb.Error):
    """LMDB has the file not open now, or no longer."""


@final
class Access:
    """The way of all users of this process to one data file. ``key`` is its device and inode."""

    __slots__ = (
        "_map_was_full",
        "_refusal",
        "activity",
        "gate",
        "key",
        "lost",
        "opened",
        "path",
        "presence",
        "users",
        "writable",
    )

    def __init__(self, path: str, key: tuple[int, int], descriptor: int, refusal: int) -> None:
        self.path = path
        self.key = key
        self.gate = Gate(path, descriptor)
        self.presence = Presence(descriptor)
        self.activity = Activity()
        # None until it is opened, and whenever LMDB has to be opened anew at the next use.
        self.opened: Opened | None = None
        self.writable = False
        # Counted by the registry.
        self.users = 0
        # Why the file can never be used again in this process.
        self.lost = ""
        # The error number if the file is not for us to write.
        self._refusal = refusal
        self._map_was_full = False

    # -- txns --

    def begin(self, txn: Txn, *, write: bool = False) -> None:
        """Begin, after dealing with what stands in the way. ``leave`` ends a read txn."""
        tried: list[type[lmdb.Error]] = []
        while True:
            obstacle = self._try_begin(txn, write=write)
            if obstacle is None:
                return
            kind = type(obstacle)
            # Others may go on growing the file; no other obstacle should come twice.
            if tried.count(kind) >= (ATTEMPTS if kind is lmdb.MapResizedError else 1):
                raise translate(obstacle, self.path) from obstacle
            tried.append(kind)
            self._overcome(obstacle)

    def _try_begin(self, txn: Txn, *, write: bool) -> lmdb.Error | None:
        self.activity.enter(txn)
        try:
            opened = self.opened
            if opened is not None:
                txn._start(opened.handle.begin(write=write, buffers=True), opened.databases)
                return None
            obstacle: lmdb.Error = _NotOpenError("not open")
        except lmdb.Error as error:
            obstacle = error
        except BaseException:
            self.activity.leave(txn)
            raise
        self.activity.leave(txn)
        return obstacle

    def _overcome(self, obstacle: lmdb.Error) -> None:
        if isinstance(obstacle, _NotOpenError):
            self._revive()
        elif isinstance(obstacle, lmdb.PanicError):
            with self.activity.alone():
                self.close_handle()
        elif isinstance(obstacle, lmdb.MapResizedError):
            # Another process let the file grow beyond our map: take the size that it recorded.
            with self.activity.alone():
                self._resize(0)
        elif isinstance(obstacle, lmdb.ReadersFullError):
            # Processes that were killed leave their places taken.
            with self.inside() as opened:
                opened.handle.reader_check()
        else:
            raise translate(obstacle, self.path) from obstacle

    def end_read(self, txn: Txn) -> None:
        """End a read txn."""
        txn._end()
        self.activity.leave(txn)

    def begin_write(self, timeout: float | None, room: int) -> Txn:
        """Pass the gate and begin a write txn that has so many bytes to write."""
        if not self.users:
            raise self.closed()
        if not self.writable:
            raise ReadOnlyError(f"{self.path} is open for reading only: open it for writing")
        if self.activity.here():
            raise SessionStateError(
                "a write txn cannot begin inside another txn of the same thread: end that first"
            )
        self.gate.acquire(timeout)
        try:
            require_in_place(self.path, self.key)
            self._make_room(room)
            txn = Txn(self.path)
            self.begin(txn, write=True)
        except BaseException:
            self.gate.release()
            raise
        return txn

    def end_write(self, txn: Txn, *, commit: bool) -> None:
        """Commit a write txn or give it up, and let the next writer through the gate."""
        transaction = txn._transaction
        if transaction is FORKED:
            # The txn goes on in the parent; of gate and activity the child has new ones.
            if commit:
                raise FORKED_TXN.refusal()
            return
        try:
            txn._close_cursors()
            if commit and txn._failure is None:
                self._commit(txn)
            else:
                transaction.abort()
        finally:
            del transaction
            txn._end()
            self.activity.leave(txn)
            self.gate.release()
        if isinstance(txn._failure, FullError):
            self._map_was_full = isinstance(txn._failure.__cause__, lmdb.MapFullError)
        if commit and txn._failure is not None:
            raise txn._failure

    def _commit(self, txn: Txn) -> None:
        try:
            txn._transaction.commit()
        except lmdb.Error as error:
            txn._failed(error)
        else:
            self._complete_file()

    def _complete_file(self) -> None:
        """Give the file the length that its meta page claims.

        Pages that a txn took at the end and freed again are never written; whoever opened the file
        now would have to take it for one that was cut off.
        """
        if self.opened is None:
            return
        required = self.opened.extent()
        if os.fstat(self.gate.descriptor).st_size < required:
            # The commit is made. If the disk is full now, the next one to open the file tries.
            with contextlib.suppress(StorageError):
                extend(self.path, self.gate.descriptor, required)

    def inside(self) -> _Inside:
        """Give a context for calls on LMDB's handle outside any txn."""
        return _Inside(self)

    # -- the map --

    def _make_room(self, room: int) -> None:
        """Let the map grow before a txn would not fit. Must be called behind the gate."""
        with self.inside() as opened:
            map_bytes = opened.handle.info()["map_size"]
            needed = opened.extent() + 2 * room + MAP_SLACK_BYTES
        if self._map_was_full:
            needed, self._map_was_full = max(needed, 2 * map_bytes), False
        if needed > map_bytes:
            with self.activity.alone():
                self._resize(max(2 * needed, 2 * map_bytes))

    def _resize(self, size: int) -> None:
        """Map the file anew; size 0 takes the one recorded in it. The caller must be alone."""
        if self.opened is None:
            return
        try:
            self.opened.handle.set_mapsize(size)
        except lmdb.Error as error:
            # The old map is gone already: open the file again at the next use.
            self.close_handle()
            if size:
                raise translate(error, self.path) from error

    # -- opening and closing --

    def prepare(self, timeout: float | None, *, writable: bool) -> None:
        """Have LMDB open, at least in the mode asked for."""
        if self._serves(writable=writable):
            return
        if self.lost:
            raise StorageError(self.lost)
        # Before all else, so that we do not wait for a lock on the file of another program.
        require_ours(self.path)
        if writable and self._refusal:
            raise self.refused(self._refusal)
        # Whoever is inside must not wait at the gate for one who waits for him to leave.
        self.activity.require_outside()
        passage = self._passage(timeout) if writable else contextlib.nullcontext()
        with passage, self.activity.alone():
            if not self._serves(writable=writable):
                self.close_handle()
                self.opened = open_file(self.path, self.key, self.gate, writable=writable)
                self.writable = writable

    def _serves(self, *, writable: bool) -> bool:
        return self.opened is not None and (self.writable or not writable)

    @contextlib.contextmanager
    def _passage(self, timeout: float | None) -> Iterator[None]:
        if self.gate.mine():
            yield
            return
        self.gate.acquire(timeout)
        try:
            yield
        finally:
            self.gate.release()

    def _revive(self) -> None:
        """Open LMDB again after a fork, a panic or a failed growth."""
        if not self.users:
            raise self.closed()
        self.prepare(OPEN_TIMEOUT, writable=self.writable)

    def close_handle(self) -> None:
        """Have LMDB close the file. The caller must be alone."""
        opened, self.opened = self.opened, None
        if opened is not None:
            opened.handle.close()

    def dispose(self) -> None:
        """Close what is left when nobody uses the file any more."""
        self.presence.close()
        self.gate.close()

    def refused(self, code: int) -> StorageError:
        """Say that the system lets us not write the file."""
        return StorageError(
            f"{self.path} cannot be opened for writing: {os.strerror(code)}", code=code
        )

    def closed(self) -> SessionStateError:
        """Say that the file is closed."""
        return SessionStateError(f"{self.path} is closed: open it again")

    # -- fork and exit --

    def after_fork(self, *, quiet: bool) -> None:
        """Make the child's copy usable: whatever the parent had open is not ours to end."""
        opened, self.opened = self.opened, None
        inside = self.activity.inside()
        self.activity = Activity()
        # Closed without unlocking, which would take the locks from the parent.
        self.gate.close()
        try:
            self.gate = Gate(self.path, open_once(self.path)[0])
        except VzarrError as error:
            self.gate = Gate(self.path, -1)
            self.lost = str(error)
        # Sessions that were opened before the fork go on in the child, and their commits with them.
        self.presence = Presence(self.gate.descriptor, self.presence.pinned())
        if opened is not None and quiet:
            opened.handle.close()
        elif opened is not None:
            for who in inside:
                if isinstance(who, Txn):
                    who._abandon()
            _leak(opened.handle)
            self.lost = (
                f"this process was forked while {self.path} was in use, and cannot use it: end "
                'all txns before a fork, or start processes with "spawn" or "forkserver"'
            )

    def at_exit(self) -> None:
        """Close LMDB before the interpreter ends, unless a txn will never end."""
        if self.activity.shut(_EXIT_TIMEOUT):
            self.close_handle()
            self.activity.open()
        elif self.opened is not None:
            # A daemon thread that will never run again has a txn: closing would wait for it.
            _leak(self.opened.handle)


def _leak(handle: lmdb.Environment) -> None:
    """Keep a handle from ever being closed, which py-lmdb would do with the last reference."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


@final
class _Inside:
    """The context of a call on LMDB's environment outside any txn."""

    __slots__ = ("_access",)

    def __init__(self, access: Access) -> None:
        self._access = access

    def __enter__(self) -> Opened:
        while True:
            self._access.activity.enter(self)
            opened = self._access.opened
            if opened is not None:
                return opened
            self._access.activity.leave(self)
            self._access._revive()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._access.activity.leave(self)
        if isinstance(error, lmdb.Error):
            raise translate(error, self._access.path) from error
