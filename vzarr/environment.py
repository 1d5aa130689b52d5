"""The LMDB file: open, grow, read, write. The only module that imports lmdb.

Five things that LMDB leaves to its caller are done here, each behind one small class or function.

* One handle for each file and process: a registry by (device, inode), with a count of its users.
* One writer at a time, with a timeout and a name for who is in the way: ``Gate``. LMDB's own mutex
  can neither time out nor be interrupted, and its lock file goes by the path, not by the file.
* Growth of the map, reopening, closing and ``fork`` while no txn is open: ``Activity``.
* No look at a file before it is known to be whole, ours, and on a local disk: ``examine``.
* One tree of errors: ``_translate``.

Locks are taken in this order: gate, activity, registry. A thread may open a read txn inside another
txn of its own; a write txn must be the outermost one of its thread, because it may have to wait
until it is alone.
"""

# The classes of this module know each other's insides.
# ruff: noqa: SLF001

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, cast, final

import lmdb

from vzarr.activity import Activity
from vzarr.datafile import (
    ATTEMPTS,
    DATABASES,
    MAX_READERS,
    MOMENT,
    REFUSALS,
    allocate_lock_file,
    examine,
    extend,
    nobody_writes,
    open_descriptor,
    open_once,
    os_error,
    real_path,
    require_ours,
    require_single_name,
)
from vzarr.errors import (
    AlreadyExistsError,
    CorruptError,
    FullError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
    VzarrError,
)
from vzarr.gate import Gate
from vzarr.lmdbfile import Probe, probe
from vzarr.system import require_local

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["DATABASES", "Environment", "EnvironmentInfo", "Txn"]

INITIAL_MAP_BYTES = 64 << 30
"""Address space reserved for a file, sparse and free of cost. 1 TiB each would not do for many."""
MINIMUM_MAP_BYTES = 256 << 20
"""What we settle for where address space is limited (``ulimit -v``)."""
MAP_SLACK_BYTES = 1 << 20
"""What a write txn may need on top of what it announces: tree pages, the list of free pages."""

_OPEN_TIMEOUT = 60.0
_FORK_TIMEOUT = 10.0
_EXIT_TIMEOUT = 1.0

_FULL_CODES = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, -30772})


# ---- Txn ------------------------------------------------------------------------------------


class _Ended:
    """Stands in for the transaction of a txn that is over."""

    def __init__(self, error: type[VzarrError], message: str) -> None:
        self._error = error
        self._message = message

    def refusal(self) -> VzarrError:
        return self._error(self._message)

    def __getattr__(self, name: str) -> Any:
        raise self.refusal()


_Transaction: TypeAlias = "lmdb.Transaction[memoryview]"

_OVER_TXN = _Ended(SessionStateError, "this txn is over: use it inside its with block")
_OVER = cast(_Transaction, _OVER_TXN)
_FORKED_TXN = _Ended(
    StorageError, "this process was forked inside this txn: open another in the child"
)
_FORKED = cast(_Transaction, _FORKED_TXN)


@final
class Txn:
    """One LMDB transaction, valid inside the ``with`` block that opened it.

    A read txn sees the state of one moment. A write txn sees its own writes; when a call of it
    fails, nothing of it is kept, even if the exception is caught.
    """

    __slots__ = ("_cursors", "_databases", "_edits", "_failure", "_path", "_transaction")

    def __init__(self, path: str) -> None:
        self._path = path
        self._transaction = _OVER
        self._databases: dict[str, lmdb._Database] = {}
        self._cursors: set[lmdb.Cursor[memoryview]] | None = None
        self._edits = 0
        self._failure: VzarrError | None = None

    def get(self, database: str, key: bytes) -> bytes | None:
        """Copy a value, or give None. O(log n)."""
        try:
            value = self._transaction.get(key, None, self._databases[database])
        except lmdb.Error as error:
            raise self._failed(error) from error
        return None if value is None else bytes(value)

    def view(self, database: str, key: bytes) -> memoryview | None:
        """Give a value without copying it, or None. O(log n).

        The view must not outlive the txn, nor the next ``put`` or ``delete`` of a write txn: the
        memory then shows other data, without an error.
        """
        try:
            return self._transaction.get(key, None, self._databases[database])
        except lmdb.Error as error:
            raise self._failed(error) from error

    def contains(self, database: str, key: bytes) -> bool:
        """Tell whether there is such a key, without touching its value. O(log n)."""
        try:
            with self._transaction.cursor(self._databases[database]) as cursor:
                return cursor.set_key(key)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def count(self, database: str) -> int:
        """Give the number of entries. O(1)."""
        try:
            return self._transaction.stat(self._databases[database])["entries"]
        except lmdb.Error as error:
            raise self._failed(error) from error

    def put(self, database: str, key: bytes, value: Buffer, *, overwrite: bool = True) -> bool:
        """Write a value, and tell whether it did: not if it must not overwrite one. O(log n).

        Raises ``FullError`` when the map is full, ``InvalidInputError`` for a key that is empty or
        longer than 511 bytes, ``ReadOnlyError`` in a read txn.
        """
        self._edits += 1
        try:
            return self._transaction.put(
                key, value, overwrite=overwrite, db=self._databases[database]
            )
        except lmdb.Error as error:
            raise self._failed(error) from error

    def delete(self, database: str, key: bytes) -> bool:
        """Delete an entry, and tell whether there was one. O(log n)."""
        self._edits += 1
        try:
            return self._transaction.delete(key, b"", self._databases[database])
        except lmdb.Error as error:
            raise self._failed(error) from error

    def scan(
        self,
        database: str,
        *,
        start: bytes = b"",
        prefix: bytes = b"",
        keys_only: bool = False,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give entries in the order of their keys: those that begin with ``prefix``.

        The scan begins at ``start``, or the next key in its direction. It may go on while the same
        txn writes and deletes. With ``keys_only`` the values are empty, and the pages that hold
        them are not touched. O(log n), then O(1) an entry.
        """
        try:
            cursor = self._transaction.cursor(self._databases[database])
        except lmdb.Error as error:
            raise self._failed(error) from error
        if self._cursors is None:
            self._cursors = set()
        self._cursors.add(cursor)
        return self._walk(cursor, start, prefix, keys_only, reverse)

    def _walk(
        self,
        cursor: lmdb.Cursor[memoryview],
        start: bytes,
        prefix: bytes,
        keys_only: bool,
        reverse: bool,
    ) -> Iterator[tuple[bytes, bytes]]:
        step = cursor.prev if reverse else cursor.next
        try:
            found = (_seek_last if reverse else _seek_first)(cursor, start, prefix)
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    break
                edits = self._edits
                yield key, b"" if keys_only else bytes(cursor.value())
                found = step() if edits == self._edits else _seek_on(cursor, key, reverse)
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            cursor.close()
            if self._cursors is not None:
                self._cursors.discard(cursor)

    def _failed(self, error: lmdb.Error) -> VzarrError:
        if self._transaction is _OVER:
            # A scan that goes on after its txn, whose cursor is closed.
            return _OVER_TXN.refusal()
        # What an exception left half done must not be committed by a caller who caught it.
        self._failure = _translate(error, self._path)
        self._failure.__cause__ = error
        return self._failure

    def _start(self, transaction: _Transaction, databases: dict[str, lmdb._Database]) -> None:
        self._transaction = transaction
        self._databases = databases

    def _close_cursors(self) -> None:
        if self._cursors is not None:
            for cursor in self._cursors:
                cursor.close()
            self._cursors = None

    def _end(self) -> None:
        """Let go of LMDB's transaction: its last reference frees its place among the readers."""
        self._close_cursors()
        self._transaction = _OVER

    def _abandon(self) -> None:
        """Forget a transaction of the parent process, which must not be ended from here.

        When the last reference goes, py-lmdb sees that it is not ours and leaves it alone.
        """
        self._cursors = None
        self._transaction = _FORKED


def _seek_first(cursor: lmdb.Cursor[memoryview], start: bytes, prefix: bytes) -> bool:
    target = max(start, prefix)
    return cursor.set_range(target) if target else cursor.first()


def _seek_last(cursor: lmdb.Cursor[memoryview], start: bytes, prefix: bytes) -> bool:
    """Move to the last key that begins with the prefix and is not beyond the start."""
    end = _successor(prefix)
    if start and (not end or start < end):
        # The start itself counts, the end of the prefix does not.
        return (cursor.set_range(start) and cursor.key() == start) or _before(cursor, start)
    return _before(cursor, end)


def _seek_on(cursor: lmdb.Cursor[memoryview], key: bytes, reverse: bool) -> bool:
    """Move on from a key, there or not: a cursor loses its way when others write and delete."""
    if reverse:
        return _before(cursor, key)
    return cursor.set_range(key) and (cursor.key() != key or cursor.next())


def _before(cursor: lmdb.Cursor[memoryview], key: bytes) -> bool:
    return cursor.prev() if key and cursor.set_range(key) else cursor.last()


def _successor(prefix: bytes) -> bytes:
    """Give the least key beyond all that begin with the prefix; empty if there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1]) if head else b""


# ---- Opening --------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True)
class _Opened:
    """One opening of a file by LMDB."""

    handle: lmdb.Environment
    databases: dict[str, lmdb._Database]
    page_size: int

    def extent(self) -> int:
        """Give the bytes of the file up to its last page."""
        return (self.handle.info()["last_pgno"] + 1) * self.page_size


def _open(path: str, key: tuple[int, int], gate: Gate, *, writable: bool) -> _Opened:
    """Open a file after all checks. A writer must be through the gate."""
    _require_in_place(path, key)
    found = examine(path, gate.descriptor, writable=writable)
    allocate_lock_file(path)
    try:
        handle = _map_for_writing(path, found) if writable else _map_for_reading(path, found)
    except lmdb.Error as error:
        raise _cannot_map(error, path) from error
    try:
        handle.reader_check()
        _require_own_lock_file(path, handle)
        databases = _open_databases(handle, writable=writable)
    except BaseException as error:
        handle.close()
        if isinstance(error, lmdb.Error):
            raise _translate(error, path) from error
        raise
    return _Opened(handle, databases, found.page_size)


def _map_for_writing(path: str, found: Probe) -> lmdb.Environment:
    return _map(path, found.file_bytes, lock=True)


def _map_for_reading(path: str, found: Probe) -> lmdb.Environment:
    try:
        return _map(path, found.file_bytes, readonly=True, lock=True)
    except lmdb.Error as error:
        if _code(error) not in REFUSALS or not nobody_writes(path):
            raise
    return _map(path, found.file_bytes, readonly=True, lock=False)


def _map(path: str, file_bytes: int, **options: Any) -> lmdb.Environment:
    """Open a file with LMDB, with as big a map as can be had. Raises lmdb's errors."""
    size = max(INITIAL_MAP_BYTES, 4 * file_bytes)
    floor = max(MINIMUM_MAP_BYTES, 2 * file_bytes)
    while True:
        try:
            return lmdb.open(
                path,
                map_size=size,
                subdir=False,
                metasync=False,
                sync=True,
                writemap=False,
                map_async=False,
                readahead=True,
                meminit=True,
                mode=0o666,
                max_readers=MAX_READERS,
                max_dbs=len(DATABASES),
                max_spare_txns=0,
                **options,
            )
        except lmdb.MemoryError:
            if size <= floor:
                raise
            size = max(size // 2, floor)


def _cannot_map(error: lmdb.Error, path: str) -> VzarrError:
    if _code(error) in REFUSALS:
        return StorageError(
            f"{path}-lock cannot be opened for writing, which LMDB needs even to read: get the "
            "permission to write it and its directory",
            code=_code(error),
        )
    if "already open" in str(error):
        return StorageError(
            f"{path} replaced a file that is still open in this process: close that one first"
        )
    return _translate(error, path)


def _open_databases(handle: lmdb.Environment, *, writable: bool) -> dict[str, lmdb._Database]:
    """Open all databases, once: without a txn of ours, py-lmdb could lock up the process."""
    if not writable:
        return {name: handle.open_db(name.encode(), create=False) for name in DATABASES}
    with handle.begin(write=True) as transaction:
        return {
            name: handle.open_db(name.encode(), txn=transaction, create=False) for name in DATABASES
        }


def _require_in_place(path: str, key: tuple[int, int]) -> None:
    """Raise ``StorageError`` if the path no longer leads to the file that is open."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise StorageError(
            f"{path} was deleted or moved while it was open, and what is written now would be "
            "lost: open it where it is now",
            code=error.errno,
        ) from error
    if (status.st_dev, status.st_ino) != key:
        raise StorageError(
            f"{path} was replaced by another file while it was open, and what is written now would "
            "be lost: close it everywhere and open it again",
            code=errno.ESTALE,
        )


def _require_own_lock_file(path: str, handle: lmdb.Environment) -> None:
    """Raise ``StorageError`` if the lock file counts the txns of another data file.

    That is so if the data file was replaced and somebody has the old one open.
    """
    for _ in range(ATTEMPTS):
        earliest = probe(path).txn_id
        with handle.begin() as transaction:
            counted = transaction.id()
        # Its place among the readers is free when the last reference is gone.
        del transaction
        if earliest <= counted <= probe(path).txn_id:
            return
        # Between a commit's last write and its last count.
        time.sleep(MOMENT)
    raise StorageError(
        f"{path} replaced a file that a process still has open, and shares its lock file: close "
        "all that use it, or move this file to another name"
    )


# ---- Errors ---------------------------------------------------------------------------------


def _translate(error: lmdb.Error, path: str) -> VzarrError:
    """Give our error for one of LMDB's. The only place that knows both."""
    reason = str(error)
    if isinstance(error, lmdb.MapFullError):
        return FullError(f"the map of {path} is full; it grows at the next write: try again")
    if isinstance(error, lmdb.MemoryError):
        return FullError(
            f"there is not enough address space or memory for {path}: raise the limit (ulimit -v), "
            "or close other repositories",
            code=errno.ENOMEM,
        )
    if isinstance(error, lmdb.BadValsizeError):
        return InvalidInputError(
            "a key must have 1 to 511 bytes and a value less than 4 GiB: " + reason
        )
    if isinstance(error, lmdb.ReadonlyError):
        return ReadOnlyError(f"{path} is open for reading only, or may not be written: {reason}")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.CursorFullError):
        return CorruptError(
            f"{path} is damaged ({reason}): check it, and restore it from a backup", path=path
        )
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError):
        return CorruptError(f"LMDB cannot read {path} or its lock file: {reason}", path=path)
    if isinstance(error, lmdb.ReadersFullError):
        return StorageError(
            f"{path} has {MAX_READERS} readers, which is the most that LMDB takes: close some",
            code=errno.EAGAIN,
        )
    if isinstance(error, lmdb.DiskError) or _code(error) in _FULL_CODES:
        return _full(path, error)
    if isinstance(error, lmdb.PanicError):
        return StorageError(
            f"an earlier write to {path} failed half way; it is opened again at the next use",
            code=errno.EIO,
        )
    return StorageError(
        f"LMDB failed on {path}: {reason}", code=_code(error) if _code(error) > 0 else None
    )


def _code(error: lmdb.Error) -> int:
    # Errors of py-lmdb's own making have none.
    return getattr(error, "code", 0)


def _full(path: str, error: lmdb.Error) -> FullError:
    """Say what is known of a write that failed: LMDB reports a short one as an I/O error."""
    free = _free_bytes(path)
    if free is not None and free < MAP_SLACK_BYTES:
        return FullError(f"the disk of {path} is full; nothing was written: make room")
    room = "" if free is None else f" ({free >> 20} MiB of the disk are free)"
    return FullError(
        f"{path} could not be written{room}; the disk or a quota is full, a limit on the size of "
        f"files is reached, or the device failed; the repository is as it was: {error}",
        code=_code(error) if _code(error) > 0 else errno.EIO,
    )


def _free_bytes(path: str) -> int | None:
    try:
        status = os.statvfs(path)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


# ---- Environment ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EnvironmentInfo:
    """Figures of one file. ``used_bytes`` are those of pages that hold data now."""

    path: str
    file_bytes: int
    used_bytes: int
    map_bytes: int
    page_size: int
    last_txn_id: int
    readers: int
    max_readers: int
    entries: dict[str, int]


@final
class Environment:
    """One LMDB file, open in this process; shared by all who open it.

    ``path`` is the real path. Not to be pickled: open the path where it is needed. After ``fork``
    the child opens the file again by itself.
    """

    __slots__ = (
        "_activity",
        "_gate",
        "_key",
        "_lost",
        "_map_was_full",
        "_opened",
        "_refusal",
        "_users",
        "_writable",
        "path",
    )

    def __init__(self, path: str, key: tuple[int, int], gate: Gate, refusal: int) -> None:
        self.path = path
        self._key = key
        self._gate = gate
        # The error number if the file is not for us to write.
        self._refusal = refusal
        self._activity = Activity()
        # None until it is opened, and whenever LMDB has to be opened anew at the next use.
        self._opened: _Opened | None = None
        self._writable = False
        self._users = 0
        self._map_was_full = False
        # Why the file can never be used again in this process.
        self._lost = ""

    # -- opening and closing --

    @classmethod
    def create(
        cls,
        path: str,
        initialise: Callable[[Txn], None],
        *,
        unsafe_network_filesystem: bool = False,
    ) -> Environment:
        """Create a file and open it for writing.

        ``initialise`` runs in the txn that makes the databases. The file appears at its path whole
        and durable, or not at all. A process that is killed meanwhile may leave a draft beside it
        (``.vzarr-`` and digits) or, between two system calls, an empty file; both are of no further
        use. Raises ``AlreadyExistsError`` if something is
        there, ``NotFoundError`` if its directory is not, ``FullError``, and what ``initialise``
        raises.
        """
        path = real_path(path)
        if not unsafe_network_filesystem:
            require_local(path)
        with _draft(path) as draft:
            _write_draft(draft, initialise)
            had_lock_file = os.path.lexists(path + "-lock")
            _publish(draft, path)
        try:
            return cls.open(
                path, writable=True, unsafe_network_filesystem=unsafe_network_filesystem
            )
        except BaseException:
            os.unlink(path)
            # Of no use to anybody now: its data file is gone.
            if not had_lock_file:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + "-lock")
            raise

    @classmethod
    def open(
        cls,
        path: str,
        *,
        writable: bool,
        timeout: float | None = _OPEN_TIMEOUT,
        unsafe_network_filesystem: bool = False,
    ) -> Environment:
        """Open a file; the same object for all who do so in this process. Pair with ``close``.

        If it is open for reading here and is now to be written, it is upgraded for all. Opening for
        writing needs the write gate for a moment, and waits ``timeout`` seconds for it. Nothing is
        created or changed beside a file that is not accepted. Raises ``NotFoundError``,
        ``NotARepositoryError``, ``CorruptError``, ``BusyError``, or ``StorageError`` with the
        reason. Takes about a millisecond, much less if the file is open already.
        """
        path = real_path(path)
        if not unsafe_network_filesystem:
            require_local(path)
        environment = _registry.claim(path)
        try:
            environment._prepare(timeout, writable=writable)
        except BaseException:
            environment.close()
            raise
        return environment

    @classmethod
    def delete(cls, path: str, *, timeout: float | None = _OPEN_TIMEOUT) -> None:
        """Delete a file and LMDB's lock file beside it.

        Raises ``SessionStateError`` while this process has it open, ``BusyError`` while another
        one writes it, ``NotFoundError`` and ``StorageError``. Another process that has it open
        keeps reading what it has; its next write says that the file is gone.
        """
        path = real_path(path)
        environment = _registry.claim(path)
        try:
            if environment._users > 1:
                raise SessionStateError(
                    f"{path} is open in this process; close its repositories and sessions first"
                )
            environment._gate.acquire(timeout)
            try:
                os.unlink(path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + "-lock")
            except OSError as error:
                raise os_error(error, f"cannot delete {path}") from error
            finally:
                environment._gate.release()
        finally:
            environment.close()

    def close(self) -> None:
        """Give the file back; it is closed when all who opened it have. Waits for open txns.

        Raises ``SessionStateError`` inside a txn of the same thread.
        """
        if _registry.unclaim(self, last=False):
            return
        with self._activity.alone():
            _registry.unclaim(self, last=True)
            # Whoever opens it from here on finds it closed, and has to be alone to open it.
            if not self._users:
                self._close_handle()
                self._writable = False
        _registry.forget(self)

    @property
    def read_only(self) -> bool:
        """Whether the file is open for reading only."""
        return not self._writable

    # -- txns --

    def read(self) -> _Reading:
        """Open a read txn: ``with environment.read() as txn``. Keep it short.

        While one is open no page of its snapshot can be used again, and the file grows. It may be
        opened inside another txn of the thread, and sees what was committed by then. Raises
        ``StorageError`` if there are too many readers. Takes about a microsecond.
        """
        return _Reading(self)

    def write(self, *, timeout: float | None = None, room: int = 0) -> _Writing:
        """Open the write txn: ``with environment.write() as txn``. Committed at the end.

        When the block ends normally the commit is atomic and in order; it survives a crash of the
        machine after ``sync`` or the next commit. When the block raises, nothing is written. The
        block must end in the thread where it began. ``room`` is the number of bytes about to be
        written. Waits up to ``timeout`` seconds for other writers (None: for ever; Ctrl-C works).
        Raises ``BusyError``, ``FullError``, ``ReadOnlyError``, ``SessionStateError`` inside another
        txn of the thread, and ``StorageError`` if the file was replaced. Takes some 0.1 ms.
        """
        return _Writing(self, timeout, room)

    def sync(self) -> None:
        """Make everything that was committed durable. One flush of the disk."""
        with _Inside(self) as opened:
            opened.handle.sync(True)

    def last_txn_id(self) -> int:
        """Give the number of the newest commit, by whatever process. About a microsecond."""
        with _Inside(self) as opened:
            return opened.handle.info()["last_txnid"]

    def info(self) -> EnvironmentInfo:
        """Give the figures of the file. O(number of readers)."""
        with self.read() as txn, _Inside(self) as opened:
            info, page_size = opened.handle.info(), opened.page_size
            databases = (None, *opened.databases.values())
            pages = 2 + sum(_pages(txn._transaction, database) for database in databases)
            return EnvironmentInfo(
                path=self.path,
                file_bytes=os.fstat(self._gate.descriptor).st_size,
                used_bytes=pages * page_size,
                map_bytes=info["map_size"],
                page_size=page_size,
                last_txn_id=info["last_txnid"],
                readers=max(0, len(opened.handle.readers().splitlines()) - 1),
                max_readers=info["max_readers"],
                entries={name: txn.count(name) for name in DATABASES},
            )

    # -- behind the txns --

    def _begin(self, txn: Txn, *, write: bool) -> None:
        """Begin, after dealing with what stands in the way."""
        tried: list[type[lmdb.Error]] = []
        while True:
            obstacle = self._try_begin(txn, write=write)
            if obstacle is None:
                return
            kind = type(obstacle)
            # Others may go on growing the file; no other obstacle should come twice.
            if tried.count(kind) >= (ATTEMPTS if kind is lmdb.MapResizedError else 1):
                raise _translate(obstacle, self.path) from obstacle
            tried.append(kind)
            self._overcome(obstacle)

    def _try_begin(self, txn: Txn, *, write: bool) -> lmdb.Error | None:
        self._activity.enter(txn)
        try:
            opened = self._opened
            if opened is not None:
                txn._start(opened.handle.begin(write=write, buffers=True), opened.databases)
                return None
            obstacle: lmdb.Error = _NotOpenError("not open")
        except lmdb.Error as error:
            obstacle = error
        except BaseException:
            self._activity.leave(txn)
            raise
        self._activity.leave(txn)
        return obstacle

    def _overcome(self, obstacle: lmdb.Error) -> None:
        if isinstance(obstacle, _NotOpenError):
            self._revive()
        elif isinstance(obstacle, lmdb.PanicError):
            with self._activity.alone():
                self._close_handle()
        elif isinstance(obstacle, lmdb.MapResizedError):
            # Another process let the file grow beyond our map: take the size that it recorded.
            with self._activity.alone():
                self._resize(0)
        elif isinstance(obstacle, lmdb.ReadersFullError):
            # Processes that were killed leave their places taken.
            with _Inside(self) as opened:
                opened.handle.reader_check()
        else:
            raise _translate(obstacle, self.path) from obstacle

    def _begin_write(self, timeout: float | None, room: int) -> Txn:
        if not self._users:
            raise self._closed()
        if not self._writable:
            raise ReadOnlyError(f"{self.path} is open for reading only: open it for writing")
        if self._activity.here():
            raise SessionStateError(
                "a write txn cannot begin inside another txn of the same thread: end that first"
            )
        self._gate.acquire(timeout)
        try:
            _require_in_place(self.path, self._key)
            self._make_room(room)
            txn = Txn(self.path)
            self._begin(txn, write=True)
        except BaseException:
            self._gate.release()
            raise
        return txn

    def _end_write(self, txn: Txn, *, commit: bool) -> None:
        transaction = txn._transaction
        if transaction is _FORKED:
            # The txn goes on in the parent; of gate and activity the child has new ones.
            if commit:
                raise _FORKED_TXN.refusal()
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
            self._activity.leave(txn)
            self._gate.release()
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
        if self._opened is None:
            return
        required = self._opened.extent()
        if os.fstat(self._gate.descriptor).st_size < required:
            # The commit is made. If the disk is full now, the next one to open the file tries.
            with contextlib.suppress(StorageError):
                extend(self.path, self._gate.descriptor, required)

    def _make_room(self, room: int) -> None:
        """Let the map grow before a txn would not fit. Must be called behind the gate."""
        with _Inside(self) as opened:
            map_bytes = opened.handle.info()["map_size"]
            needed = opened.extent() + 2 * room + MAP_SLACK_BYTES
        if self._map_was_full:
            needed, self._map_was_full = max(needed, 2 * map_bytes), False
        if needed > map_bytes:
            with self._activity.alone():
                self._resize(max(2 * needed, 2 * map_bytes))

    def _resize(self, size: int) -> None:
        """Map the file anew; size 0 takes the one recorded in it. The caller must be alone."""
        if self._opened is None:
            return
        try:
            self._opened.handle.set_mapsize(size)
        except lmdb.Error as error:
            # The old map is gone already: open the file again at the next use.
            self._close_handle()
            if size:
                raise _translate(error, self.path) from error

    # -- behind opening --

    def _serves(self, *, writable: bool) -> bool:
        return self._opened is not None and (self._writable or not writable)

    def _prepare(self, timeout: float | None, *, writable: bool) -> None:
        """Have LMDB open, at least in the mode asked for."""
        if self._serves(writable=writable):
            return
        if self._lost:
            raise StorageError(self._lost)
        # Before all else, so that we do not wait for a lock on the file of another program.
        require_ours(self.path)
        if writable and self._refusal:
            raise StorageError(
                f"{self.path} cannot be opened for writing: {os.strerror(self._refusal)}",
                code=self._refusal,
            )
        # Whoever is inside must not wait at the gate for one who waits for him to leave.
        self._activity.require_outside()
        passage = self._passage(timeout) if writable else contextlib.nullcontext()
        with passage, self._activity.alone():
            if not self._serves(writable=writable):
                self._close_handle()
                self._opened = _open(self.path, self._key, self._gate, writable=writable)
                self._writable = writable

    @contextlib.contextmanager
    def _passage(self, timeout: float | None) -> Iterator[None]:
        if self._gate.mine():
            yield
            return
        self._gate.acquire(timeout)
        try:
            yield
        finally:
            self._gate.release()

    def _revive(self) -> None:
        """Open LMDB again after a fork, a panic or a failed growth."""
        if not self._users:
            raise self._closed()
        self._prepare(_OPEN_TIMEOUT, writable=self._writable)

    def _close_handle(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.handle.close()

    def _closed(self) -> SessionStateError:
        return SessionStateError(f"{self.path} is closed: open it again")

    # -- fork and exit --

    def _after_fork(self, *, quiet: bool) -> None:
        """Make the child's copy usable: whatever the parent had open is not ours to end."""
        opened, self._opened = self._opened, None
        inside = self._activity.inside()
        self._activity = Activity()
        self._gate.close()
        try:
            self._gate = Gate(self.path, open_once(self.path)[0])
        except VzarrError as error:
            self._gate = Gate(self.path, -1)
            self._lost = str(error)
        if opened is not None and quiet:
            opened.handle.close()
        elif opened is not None:
            for who in inside:
                if isinstance(who, Txn):
                    who._abandon()
            _leak(opened.handle)
            self._lost = (
                f"this process was forked while {self.path} was in use, and cannot use it: end "
                'all txns before a fork, or start processes with "spawn" or "forkserver"'
            )

    def _at_exit(self) -> None:
        if self._activity.shut(_EXIT_TIMEOUT):
            self._close_handle()
            self._activity.open()
        elif self._opened is not None:
            # A daemon thread that will never run again has a txn: closing would wait for it.
            _leak(self._opened.handle)


class _NotOpenError(lmdb.Error):
    """LMDB has the file not open now, or no longer."""


@final
class _Reading:
    """The context of one read txn. A class, because a generator would take as long as the rest."""

    __slots__ = ("_environment", "_txn")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._txn = Txn(environment.path)

    def __enter__(self) -> Txn:
        self._environment._begin(self._txn, write=False)
        return self._txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._txn._end()
        self._environment._activity.leave(self._txn)


@final
class _Writing:
    """The context of one write txn."""

    __slots__ = ("_environment", "_room", "_timeout", "_txn")

    def __init__(self, environment: Environment, timeout: float | None, room: int) -> None:
        self._environment = environment
        self._timeout = timeout
        self._room = room

    def __enter__(self) -> Txn:
        self._txn = self._environment._begin_write(self._timeout, self._room)
        return self._txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._environment._end_write(self._txn, commit=kind is None)


@final
class _Inside:
    """The context of a call on LMDB's environment outside any txn."""

    __slots__ = ("_environment",)

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __enter__(self) -> _Opened:
        while True:
            self._environment._activity.enter(self)
            opened = self._environment._opened
            if opened is not None:
                return opened
            self._environment._activity.leave(self)
            self._environment._revive()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._environment._activity.leave(self)
        if isinstance(error, lmdb.Error):
            raise _translate(error, self._environment.path) from error


def _pages(transaction: _Transaction, database: lmdb._Database | None) -> int:
    stat = transaction.stat(database)
    return stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]


# ---- Creation -------------------------------------------------------------------------------


@contextlib.contextmanager
def _draft(path: str) -> Iterator[str]:
    """Give a name beside the path; remove what is there at the end, and translate errors."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise NotFoundError(f"the directory {directory} does not exist: create it", name=directory)
    if os.path.lexists(path):
        raise _exists(path)
    draft = os.path.join(directory, f".vzarr-{secrets.token_hex(8)}")
    try:
        yield draft
    except lmdb.Error as error:
        raise _translate(error, path) from error
    except OSError as error:
        if isinstance(error, VzarrError):
            raise
        raise os_error(error, f"cannot create {path}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _exists(path: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"{path} exists already: open it, or choose another path", name=path)


def _write_draft(draft: str, initialise: Callable[[Txn], None]) -> None:
    # Nobody else knows the name, so that it needs no lock file.
    handle = _map(draft, 0, lock=False, lib_version=0)
    try:
        _initialise(handle, draft, initialise)
        handle.sync(True)
    finally:
        handle.close()
    descriptor = os.open(draft, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _initialise(handle: lmdb.Environment, path: str, initialise: Callable[[Txn], None]) -> None:
    transaction = handle.begin(write=True, buffers=True)
    txn = Txn(path)
    try:
        names = [name.encode() for name in DATABASES]
        opened = [handle.open_db(name, txn=transaction) for name in names]
        txn._start(transaction, dict(zip(DATABASES, opened, strict=True)))
        initialise(txn)
        if txn._failure is not None:
            raise txn._failure
        txn._close_cursors()
        transaction.commit()
    finally:
        # Ends the transaction if it was not committed.
        txn._end()


def _publish(draft: str, path: str) -> None:
    """Give the draft its name, unless another creator was first."""
    try:
        # Takes the name; a link would need a file system that has them.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError as error:
        raise _exists(path) from error
    try:
        os.replace(draft, path)
        _sync_directory(os.path.dirname(path))
    except BaseException:
        os.unlink(path)
        raise


def _sync_directory(directory: str) -> None:
    """Make a new name durable, which LMDB leaves to us."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- Fork and exit --------------------------------------------------------------------------


@final
class _Registry:
    """The environments of this process, by device and inode, and what becomes of them at a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._environments: dict[tuple[int, int], Environment] = {}
        self._forking = threading.local()

    def claim(self, path: str) -> Environment:
        """Find the environment of a file, or make one, and count one more user."""
        descriptor, refusal = open_descriptor(path)
        try:
            status = os.fstat(descriptor)
            require_single_name(path, status)
            key = (status.st_dev, status.st_ino)
            with self._lock:
                environment = self._environments.get(key)
                if environment is None:
                    gate, descriptor = Gate(path, descriptor), -1
                    environment = Environment(path, key, gate, refusal)
                    self._environments[key] = environment
                environment._users += 1
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return environment

    def unclaim(self, environment: Environment, *, last: bool) -> bool:
        """Count one user less, the last one only if asked for. Tells whether it was counted."""
        with self._lock:
            if environment._users > 1 or (last and environment._users == 1):
                environment._users -= 1
                return True
            return not environment._users

    def forget(self, environment: Environment) -> None:
        """Drop an environment, unless somebody has opened it again meanwhile."""
        with self._lock:
            known = self._environments.get(environment._key) is environment
            # One that is lost stays, to say so to whoever opens the file.
            if known and not environment._users and not environment._lost:
                del self._environments[environment._key]
                environment._gate.close()

    def before_fork(self) -> None:
        """Wait until no thread is inside LMDB: a child that closed its copy would hang."""
        deadline = time.monotonic() + _FORK_TIMEOUT
        quiet: list[Environment] = []
        self._forking.quiet = quiet
        # In one order in all threads, so that two that fork do not wait for each other.
        for environment in sorted(self._environments.values(), key=lambda found: found._key):
            remaining = max(0.0, deadline - time.monotonic())
            if environment._activity.shut(remaining):
                quiet.append(environment)

    def after_fork_in_parent(self) -> None:
        for environment in self._forking.quiet:
            environment._activity.open()

    def after_fork_in_child(self) -> None:
        # Another thread may have held it; what it guards is changed in single steps.
        self._lock = threading.Lock()
        for environment in list(self._environments.values()):
            environment._after_fork(quiet=environment in self._forking.quiet)

    def at_exit(self) -> None:
        for environment in list(self._environments.values()):
            environment._at_exit()


def _leak(handle: lmdb.Environment) -> None:
    """Keep a handle from ever being closed, which py-lmdb would do with the last reference."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


_registry = _Registry()
os.register_at_fork(
    before=_registry.before_fork,
    after_in_parent=_registry.after_fork_in_parent,
    after_in_child=_registry.after_fork_in_child,
)
atexit.register(_registry.at_exit)
