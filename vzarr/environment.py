"""The LMDB file: open, grow, read, write. What all layers above know of LMDB.

Five things that LMDB leaves to its caller are done here, each behind one small class or function.

* One handle for each file and process: ``registry``, by device and inode, with a count of users.
* One writer at a time, with a timeout and a name for who is in the way: ``Gate``. LMDB's own mutex
  can neither time out nor be interrupted, and its lock file goes by the path, not by the file.
* Growth of the map, reopening, closing and ``fork`` while no txn is open: ``Access``, ``Activity``.
* No look at a file before it is known to be whole, ours, and on a local disk: ``examine``.
* One tree of errors: ``translate``.
"""

# Whoever opens an environment knows its insides.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import final

from vzarr import filelocks
from vzarr.access import OPEN_TIMEOUT, Access
from vzarr.creation import create_file
from vzarr.datafile import DATABASES, open_once, os_error, real_path
from vzarr.errors import SessionStateError, StorageError
from vzarr.format import Digest
from vzarr.mapping import replaced, require_in_place
from vzarr.presence import Pin
from vzarr.registry import Registry
from vzarr.system import require_local
from vzarr.txn import Txn

__all__ = ["DATABASES", "Environment", "EnvironmentInfo", "Txn"]


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

    __slots__ = ("_access", "path")

    def __init__(self, access: Access) -> None:
        self._access = access
        self.path = access.path

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
        use. Raises ``AlreadyExistsError`` if something is there, ``NotFoundError`` if its directory
        is not, ``FullError``, and what ``initialise`` raises.
        """
        path = real_path(path)
        if not unsafe_network_filesystem:
            require_local(path)
        had_lock_file = os.path.lexists(path + "-lock")
        create_file(path, initialise)
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
        timeout: float | None = OPEN_TIMEOUT,
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
            environment._access.prepare(timeout, writable=writable)
        except BaseException:
            environment.close()
            raise
        return environment

    @classmethod
    def delete(cls, path: str, *, timeout: float | None = OPEN_TIMEOUT) -> None:
        """Delete a file and LMDB's lock file beside it.

        Raises ``SessionStateError`` while this process has it open, ``BusyError`` while another
        one writes it, ``NotFoundError`` and ``StorageError``. Another process that has it open
        keeps reading what it has; its next write says that the file is gone.
        """
        path = real_path(path)
        environment = _registry.claim(path)
        gate = environment._access.gate
        try:
            if environment._access.users > 1:
                raise SessionStateError(
                    f"{path} is open in this process; close its repositories and sessions first"
                )
            gate.acquire(timeout)
            try:
                os.unlink(path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + "-lock")
            except OSError as error:
                raise os_error(error, f"cannot delete {path}") from error
            finally:
                gate.release()
        finally:
            environment.close()

    def close(self) -> None:
        """Give the file back; it is closed when all who opened it have. Waits for open txns.

        Raises ``SessionStateError`` inside a txn of the same thread.
        """
        access = self._access
        if _registry.unclaim(access, last=False):
            return
        with access.activity.alone():
            _registry.unclaim(access, last=True)
            # Whoever opens it from here on finds it closed, and has to be alone to open it.
            if not access.users:
                access.close_handle()
                access.writable = False
        _registry.forget(access)

    @property
    def read_only(self) -> bool:
        """Whether the file is open for reading only."""
        return not self._access.writable

    # -- txns --

    def read(self) -> _Reading:
        """Open a read txn: ``with environment.read() as txn``. Keep it short.

        While one is open no page of its snapshot can be used again, and the file grows. It may be
        opened inside another txn of the thread, and sees what was committed by then. Raises
        ``StorageError`` if there are too many readers. Takes about a microsecond.
        """
        return _Reading(self._access)

    def write(self, *, timeout: float | None = None, room: int = 0) -> _Writing:
        """Open the write txn: ``with environment.write() as txn``. Committed at the end.

        When the block ends normally the commit is atomic and in order; it survives a crash of the
        machine after ``sync`` or the next commit. When the block raises, nothing is written. The
        block must end in the thread where it began. ``room`` is the number of bytes about to be
        written. Waits up to ``timeout`` seconds for other writers (None: for ever; Ctrl-C works).
        Raises ``BusyError``, ``FullError``, ``ReadOnlyError``, ``SessionStateError`` inside another
        txn of the thread, and ``StorageError`` if the file was replaced. Takes some 0.1 ms.
        """
        return _Writing(self._access, timeout, room)

    def sync(self) -> None:
        """Make everything that was committed durable. One flush of the disk."""
        with self._access.inside() as opened:
            opened.handle.sync(True)

    def last_txn_id(self) -> int:
        """Give the number of the newest commit, by whatever process. About a microsecond."""
        with self._access.inside() as opened:
            return opened.handle.info()["last_txnid"]

    def info(self) -> EnvironmentInfo:
        """Give the figures of the file. O(number of readers)."""
        with self.read() as txn, self._access.inside() as opened:
            info, page_size = opened.handle.info(), opened.page_size
            # The two meta pages, the list of databases, and what is in these.
            pages = 2 + sum(txn.pages(database) for database in (None, *DATABASES))
            return EnvironmentInfo(
                path=self.path,
                file_bytes=os.fstat(self._access.gate.descriptor).st_size,
                used_bytes=pages * page_size,
                map_bytes=info["map_size"],
                page_size=page_size,
                last_txn_id=info["last_txnid"],
                readers=max(0, len(opened.handle.readers().splitlines()) - 1),
                max_readers=info["max_readers"],
                entries={name: txn.count(name) for name in DATABASES},
            )

    # -- what others see of us, and we of them --

    @property
    def token(self) -> int:
        """The random number by which others recognise this opening, until it ends.

        After ``fork`` the child has one of its own.
        """
        return self._access.presence.token

    def is_present(self, token: int) -> bool | None:
        """Tell whether the process that opened the file with this token still has it open.

        The answer is the kernel's: True until the moment when that process closes the file, or
        ends in whatever way. None where the system or the file system cannot tell. A microsecond.
        """
        return self._access.presence.is_present(token)

    def pin(self, commit: Digest) -> None:
        """Let all processes know that a commit is in use here, until as many calls of ``unpin``.

        Works in read-only files as well, and goes on in a child process after ``fork``. Where
        ``is_present`` cannot tell, nobody is told. Raises ``StorageError`` if the system has no
        more locks; does nothing once the file is closed. Takes 3 µs.
        """
        self._access.presence.pin(commit)

    def unpin(self, commit: Digest) -> None:
        """Take back one ``pin``. Never waits and never raises; also for finalizers."""
        self._access.presence.unpin(commit)

    def pins(self) -> list[Pin]:
        """List the commits that are in use in any process. O(n), some 2 µs each."""
        return self._access.presence.pins()

    def open_descriptor(self) -> int:
        """Open the data file once more, for locks that no other part of this process has.

        The caller closes it, and a child process must do so right after a fork: call this inside
        ``filelocks.no_fork``. Raises ``StorageError`` if the file is not for us to write, or the
        path does not lead to it any more, and ``SessionStateError`` once it is closed.
        """
        access = self._access
        if not access.users:
            raise access.closed()
        require_in_place(self.path, access.key)
        descriptor, refusal = open_once(self.path)
        try:
            if refusal:
                raise access.refused(refusal)
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != access.key:
                raise replaced(self.path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def find_lock(self, start: int, length: int) -> tuple[int, int] | None:
        """Give start and length of a lock on the data file that overlaps a range, or None.

        Finds those that other processes have, and those on descriptors of ``open_descriptor``. A
        microsecond. Raises ``SessionStateError`` once the file is closed, else ``StorageError``.
        """
        descriptor = self._access.gate.descriptor
        if descriptor < 0:
            raise StorageError(self._access.lost) if self._access.lost else self._access.closed()
        try:
            return filelocks.find(descriptor, start, length)
        except OSError as error:
            raise os_error(error, f"cannot look at the locks of {self.path}") from error


@final
class _Reading:
    """The context of one read txn. A class, because a generator would take as long as the rest."""

    __slots__ = ("_access", "_txn")

    def __init__(self, access: Access) -> None:
        self._access = access
        self._txn = Txn(access.path)

    def __enter__(self) -> Txn:
        self._access.begin(self._txn)
        return self._txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._access.end_read(self._txn)


@final
class _Writing:
    """The context of one write txn."""

    __slots__ = ("_access", "_room", "_timeout", "_txn")

    def __init__(self, access: Access, timeout: float | None, room: int) -> None:
        self._access = access
        self._timeout = timeout
        self._room = room

    def __enter__(self) -> Txn:
        self._txn = self._access.begin_write(self._timeout, self._room)
        return self._txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._access.end_write(self._txn, commit=kind is None)


_registry = Registry(Environment)
