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
import errno
import os
import weakref
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, final

import lmdb

from vzarr import filelocks
from vzarr.activity import Activity
from vzarr.datafile import (
    ATTEMPTS,
    extend,
    open_once,
    os_error,
    our_errors,
    process_using_lock_file,
    require_ours,
    require_single_name,
    status_of,
)
from vzarr.draft import Draft, remove_dead
from vzarr.errors import (
    BusyError,
    FullError,
    Holder,
    ReadOnlyError,
    SessionStateError,
    StorageError,
    VzarrError,
)
from vzarr.flushes import Flushes
from vzarr.gate import Gate
from vzarr.lmdberrors import translate
from vzarr.lmdbfile import probe
from vzarr.memorymap import MAP_IS_FILE, Opened, cut_off, open_file, replaced, require_in_place
from vzarr.presence import Presence, ReplacedError
from vzarr.system import running
from vzarr.txn import FORKED, FORKED_TXN, OVER, Txn
from vzarr.writeback import early_writeback, unmap_pages

MAP_SLACK_BYTES = 1 << 20
"""What a write txn may need on top of what it announces: tree pages, the list of free pages."""

OPEN_TIMEOUT = 60.0
_EXIT_TIMEOUT = 1.0


class _NotOpenError(lmdb.Error):
    """LMDB has the file not open now, or no longer."""


class _LockFileError(lmdb.Error):
    """Somebody deleted LMDB's lock file: others would use a new one, and not know of us."""


class Follower(Protocol):
    """Who has locks of his own on a data file, and goes with it when it is replaced."""

    @property
    def descriptor(self) -> int:
        """Where they are."""
        ...

    def locks(self) -> list[tuple[int, int]]:
        """Give start and length of each."""
        ...


@final
class Access:
    """The way of all users of this process to one data file. ``key`` is its device and inode."""

    __slots__ = (
        "_map_was_full",
        "_refusal",
        "_room",
        "activity",
        "earlier_txns",
        "flushes",
        "followers",
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
        self.flushes = Flushes()
        # Who has a descriptor of the file besides ours. Changed by those who let nobody fork.
        self.followers: weakref.WeakSet[Follower] = weakref.WeakSet()
        # None until it is opened, and whenever LMDB has to be opened anew at the next use.
        self.opened: Opened | None = None
        self.writable = False
        # How many txns were on files that this one has replaced.
        self.earlier_txns = 0
        # Counted by the registry.
        self.users = 0
        # Why the file can never be used again in this process.
        self.lost = ""
        # The error number if the file is not for us to write.
        self._refusal = refusal
        self._map_was_full = False
        # About how many bytes the write txn has to write.
        self._room = 0

    # -- txns --

    def begin(self, txn: Txn, *, write: bool = False) -> None:
        """Begin, after dealing with what stands in the way. ``end_read`` ends a read txn."""
        tried: list[type[lmdb.Error]] = []
        while (obstacle := self._try_begin(txn, write=write)) is not None:
            kind = type(obstacle)
            # Others may go on growing the file; no other obstacle should come twice.
            if tried.count(kind) >= (ATTEMPTS if kind is lmdb.MapResizedError else 1):
                raise translate(obstacle, self.path) from obstacle
            tried.append(kind)
            self._overcome(obstacle)

    def _try_begin(self, txn: Txn, *, write: bool) -> lmdb.Error | None:
        try:
            self.activity.enter(txn)
            opened = self.opened
            if opened is not None:
                if not opened.is_sound() and not self.activity.is_nested():
                    return self._left(txn, _LockFileError("the lock file was deleted"))
                if write:
                    opened.guard.require_free_list()
                txn._tables = opened.databases
                txn._earlier = self.earlier_txns
                txn._transaction = opened.handle.begin(None, None, write, True)
                return None
            obstacle: lmdb.Error = _NotOpenError("not open")
        except lmdb.Error as error:
            obstacle = error
        except BaseException:
            self.end_read(txn)
            raise
        return self._left(txn, obstacle)

    def _left(self, txn: Txn, obstacle: lmdb.Error) -> lmdb.Error:
        self.activity.leave(txn)
        return obstacle

    def _overcome(self, obstacle: lmdb.Error) -> None:
        if isinstance(obstacle, _NotOpenError):
            self._revive()
        elif isinstance(obstacle, lmdb.PanicError | _LockFileError):
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
        """End a read txn. Can be repeated."""
        if txn._cursors is not None:
            txn._close_cursors()
        txn._transaction = OVER
        self.activity.leave(txn)

    def begin_write(self, txn: Txn, timeout: float | None, room: int) -> None:
        """Pass the gate and begin a write txn that has so many bytes to write."""
        if not self.users:
            raise self.closed()
        self.require_writable()
        if self.activity.here():
            raise SessionStateError(
                "a write txn cannot begin inside another txn of the same thread: end that first"
            )
        self.gate.require_outside()
        try:
            self.gate.acquire(timeout)
            require_in_place(self.path, self.key)
            self._make_room(room)
            self._room = room
            self.begin(txn, write=True)
        except BaseException:
            self.give_up(txn)
            raise

    def require_writable(self) -> None:
        """Raise ``ReadOnlyError`` if the file is open for reading only."""
        if not self.writable:
            raise ReadOnlyError(f"{self.path} is open for reading only: open it for writing")

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
            self.give_up(txn)
        if isinstance(txn._failure, FullError):
            self._map_was_full = isinstance(txn._failure.__cause__, lmdb.MapFullError)
        if commit and txn._failure is not None:
            raise txn._failure

    def give_up(self, txn: Txn) -> None:
        """End a write txn without a commit, unless that is made. Can be repeated, also half way."""
        if txn.is_open:
            txn._close_cursors()
            txn._transaction.abort()
        txn._end()
        self.activity.leave(txn)
        self.gate.release()

    def _commit(self, txn: Txn) -> None:
        number = txn._transaction.id()
        self.flushes.committing()
        try:
            with early_writeback(self.gate.descriptor, self._room):
                txn._transaction.commit()
        except lmdb.Error as error:
            txn._failed(error)
        else:
            # LMDB flushes nothing for a txn that has changed nothing, and gives it no number.
            if self.opened is not None and self.opened.handle.info()["last_txnid"] == number:
                self.flushes.committed()
            self.complete_file()
            unmap_pages(self.gate.descriptor, self._room)

    def complete_file(self) -> None:
        """Give the file the length that its meta page claims.

        Pages that a txn took at the end and freed again are never written; whoever opened the file
        now would have to take it for one that was cut off.
        """
        if self.opened is None:
            return
        required = self.opened.extent()
        # The commit is made. If the disk is full now, the next one to open the file tries.
        with contextlib.suppress(OSError):
            if os.fstat(self.gate.descriptor).st_size < required:
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
        wanted = size
        if MAP_IS_FILE and not size:
            # What is recorded may be less than there is, and would cut that off.
            wanted = status_of(self.path, self.gate.descriptor).st_size
        try:
            self.opened.handle.set_mapsize(wanted)
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
                if writable:
                    with contextlib.suppress(OSError):
                        remove_dead(self.path)
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
        try:
            self.gate.acquire(timeout)
            yield
        finally:
            try:
                self.gate.release()
            except BaseException:
                # Ctrl-C, at its first step or a later one.
                self.gate.release()
                raise

    def _revive(self) -> None:
        """Open LMDB again after a fork, a panic or a failed growth."""
        if not self.users:
            raise self.closed()
        self.prepare(OPEN_TIMEOUT, writable=self.writable)

    def close_handle(self) -> None:
        """Have LMDB close the file. The caller must be alone."""
        opened, self.opened = self.opened, None
        if opened is not None:
            self.flushes.reopened()
            opened.close()
            if MAP_IS_FILE and self.writable:
                self._cut_off()

    def _cut_off(self) -> None:
        """Make the file end with its last page, unless somebody writes it just now."""
        with contextlib.suppress(VzarrError), self._passage(0):
            cut_off(self.path, self.gate.descriptor)

    def dispose(self) -> None:
        """Close what is left when nobody uses the file any more."""
        self.presence.close()
        self.gate.retire()

    # -- another file in its place --

    def announce(self) -> bool:
        """Let nobody else open the file for writing; False if another process has it open.

        Through the gate only. Raises ``StorageError`` where nobody can tell.
        """
        if not self.presence.is_told:
            raise StorageError(
                f"{self.path} cannot be compacted in place: the system has no locks that tell "
                "whether another process has it open. Make a backup, which is compact, and put it "
                "in the place of the file while nobody uses that",
                code=errno.EOPNOTSUPP,
            )
        # First say it, then look; who opens the file does it the other way round.
        with our_errors(f"cannot lock {self.path}"):
            filelocks.try_lock(self.gate.descriptor, filelocks.COMPACTION)
            return not self.presence.others()

    def unannounce(self) -> None:
        """Let others open it again."""
        with contextlib.suppress(OSError):
            filelocks.unlock(self.gate.descriptor, filelocks.COMPACTION)

    def is_wanted(self) -> bool:
        """Tell whether another process has the file open."""
        return self.presence.others()

    def find_others(self) -> BusyError:
        """Say who else has the file open. Through the gate only."""
        with self.activity.alone():
            self.close_handle()
            pid = process_using_lock_file(self.path)
            with contextlib.suppress(VzarrError):
                self.opened = open_file(self.path, self.key, self.gate, writable=self.writable)
        return self.shared(pid)

    def replace_by(self, draft: Draft) -> None:
        """Put a draft in the place of the file; all who use it here go on with the new one.

        The caller must be through the gate, alone, and keep this process from forking. The draft's
        lock becomes the gate of the new file. Raises ``BusyError`` if another process has the file
        open, and ``StorageError``; the file is as it was then.
        """
        shut = self.presence.shut_door()
        try:
            require_in_place(self.path, self.key)
            require_single_name(self.path, os.fstat(self.gate.descriptor))
            txns = probe(self.path).txn_id
            # LMDB counts txns in the file beside, which must have no other user now. It may be
            # looked into only while LMDB has it closed, or our locks on it would be gone.
            self.close_handle()
            pid = process_using_lock_file(self.path)
            if pid is not None or not shut:
                raise self.shared(pid)
            with contextlib.ExitStack() as stack:
                stack.enter_context(self.presence.moving(draft.descriptor))
                self._move(draft, self._copy_locks(draft, stack), txns)
        finally:
            if shut:
                self.presence.open_door()
            # Who waits to get in should not have to wait for the gate. If it fails, it is tried
            # again at the next use.
            if self.opened is None:
                with contextlib.suppress(VzarrError):
                    self.opened = open_file(self.path, self.key, self.gate, writable=self.writable)

    def _copy_locks(self, draft: Draft, stack: contextlib.ExitStack) -> list[tuple[int, int]]:
        """Lock on a draft what other descriptors have locked on the file; give both for each."""
        pairs = []
        for follower in list(self.followers):
            if follower.descriptor < 0:
                continue
            ranges = follower.locks()
            descriptor = open_once(draft.path)[0]
            stack.callback(os.close, descriptor)
            for start, length in ranges:
                filelocks.try_lock(descriptor, start, length)
            pairs.append((ranges, descriptor, follower.descriptor))
        # Who waits for others moves before them: nobody may see a place free that is taken.
        pairs.sort(key=lambda pair: pair[0][:1], reverse=True)
        return [(new, old) for _, new, old in pairs]

    def _move(self, draft: Draft, followers: list[tuple[int, int]], txns: int) -> None:
        key, failure = draft.key, None
        try:
            draft.replace()
        except OSError as error:
            failure = os_error(error, f"{self.path} cannot be replaced durably")
            if draft.path:
                raise failure from error
        self.key = key
        # LMDB numbers the txns of a copy from 1.
        self.earlier_txns += txns
        # The number of a descriptor stays, for all who know it; the locks are the file's.
        for new, old in [*followers, (draft.descriptor, self.gate.descriptor)]:
            os.dup2(new, old, inheritable=False)
        draft.release()
        if failure is not None:
            # It is done, but a crash of the machine could bring the old file back.
            raise failure

    def shared(self, pid: int | None) -> BusyError:
        """Say that others have the file open, and who, if that is known."""
        holder = running(pid, None) if pid else None
        if pid == 0:
            holder = Holder(None, "this machine", "in another container")
        return BusyError(
            f"{self.path} is open in {holder or 'another process'}, and only a process that alone "
            "has it open can put another file in its place: close it there",
            holder=holder,
        )

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
        self.flushes = Flushes()
        self.followers = weakref.WeakSet()
        # Closed without unlocking, which would take the locks from the parent.
        self.gate.close()
        try:
            self.gate = Gate(self.path, open_once(self.path)[0])
        except VzarrError as error:
            self.gate = Gate(self.path, -1)
            self.lost = str(error)
        # Sessions that were opened before the fork go on in the child, and their commits with them.
        pinned = self.presence.pinned()
        try:
            self.presence = Presence(self.gate.descriptor, pinned)
        except ReplacedError:
            self.presence = Presence(-1, pinned)
            self.lost = str(replaced(self.path))
        if opened is not None and quiet:
            opened.close()
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
        try:
            while True:
                self._access.activity.enter(id(self))
                opened = self._access.opened
                if opened is not None:
                    return opened
                self._access.activity.leave(id(self))
                self._access._revive()
        except BaseException:
            self._access.activity.leave(id(self))
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._access.activity.leave(id(self))
        except BaseException:
            # Ctrl-C, at its first step or a later one.
            self._access.activity.leave(id(self))
            raise
        if isinstance(error, lmdb.Error):
            raise translate(error, self._access.path) from error

    def __del__(self) -> None:
        # Ctrl-C may come before the first step of __exit__, or of __init__.
        access = getattr(self, "_access", None)
        if access is not None:
            access.activity.leave(id(self))
