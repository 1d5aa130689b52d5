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

import _thread
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import final

from vzarr import filelocks
from vzarr.access import OPEN_TIMEOUT, Access, Follower
from vzarr.activity import uninterrupted
from vzarr.copying import copy_densely, copy_pages
from vzarr.creation import create_file
from vzarr.datafile import (
    DATABASES,
    open_once,
    os_error,
    our_errors,
    process_using_lock_file,
    real_path,
    status_of,
)
from vzarr.draft import Draft
from vzarr.errors import BusyError, SessionStateError, StorageError
from vzarr.format import Digest
from vzarr.memorymap import replaced, require_in_place
from vzarr.portable import OPEN_FILES_STAY
from vzarr.presence import Pin
from vzarr.progress import Progress
from vzarr.registry import Registry
from vzarr.system import require_local
from vzarr.txn import OVER, Txn

__all__ = ["DATABASES", "Environment", "EnvironmentInfo", "Txn"]

# Seconds between two looks whether others have closed a file, and how long to wait at least.
_PAUSE, _MOMENT = 0.005, 0.1
_LET_GO_TIMEOUT = 0.5


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
        (``.vzarr-`` and digits) or, on macOS, where no file can be renamed to a new name alone, an
        empty one; both are of no further use. Raises ``AlreadyExistsError`` if something is there,
        ``NotFoundError`` if its directory is not, ``FullError``, and what
        ``initialise`` raises.
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
        environment = _registry.claim(path, timeout, writable=writable)
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
        environment = _registry.claim(path, timeout, writable=True)
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

    @classmethod
    def overwrite(cls, path: str, draft: Draft, *, timeout: float | None = OPEN_TIMEOUT) -> None:
        """Put a draft in the place of another file, in one step.

        Raises ``SessionStateError`` while this process has that open, ``BusyError`` while another
        one has or, where the system cannot tell, while it writes; and ``StorageError``.
        """
        environment = _registry.claim(path, timeout, writable=True)
        access = environment._access
        try:
            if access.users > 1:
                raise SessionStateError(
                    f"{path} is open in this process; close its repositories and sessions first"
                )
            access.gate.acquire(timeout)
            told = access.presence.is_told
            shut = told and access.presence.shut_door()
            try:
                # Here LMDB has the file not open, so that its lock file may be looked into.
                pid = process_using_lock_file(path)
                if pid is not None or (told and not shut):
                    raise access.shared(pid)
                if not OPEN_FILES_STAY:
                    draft.replace()
            finally:
                if shut:
                    access.presence.open_door()
                access.gate.release()
        finally:
            environment.close()
        if OPEN_FILES_STAY:
            # The system itself refuses it if another process has that open by now.
            draft.replace()

    def is_at(self, path: str) -> bool:
        """Tell whether a path leads to this file. Raises ``OSError``."""
        status = os.stat(path)
        return (status.st_dev, status.st_ino) == self._access.key

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

    def let_go(self) -> None:
        """Close it from a finalizer, which may run in the middle of anything.

        Another thread does it, and is mostly waited for. But what it needs may be locked right
        here, and then it has to wait until that is not so any more.
        """
        closed = _thread.allocate_lock()
        closed.acquire()

        def close() -> None:
            try:
                self.close()
            finally:
                closed.release()

        _thread.start_new_thread(close, ())
        closed.acquire(timeout=_LET_GO_TIMEOUT)

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
        """Make everything that was committed before this call durable.

        At most one flush of the disk; threads that call it at once share one. After a flush that
        failed it takes a txn of its own as well, with another two, and waits up to a minute for
        the gate. Raises ``StorageError`` if the disk did not confirm it: what is committed is in
        the file then, and is lost if the machine crashes, unless a later txn or call of ``sync``
        succeeds. Raises ``ReadOnlyError``, ``SessionStateError`` once the file is closed, and what
        that txn raises, as ``BusyError``.
        """
        access = self._access
        if not access.users:
            raise access.closed()
        access.require_writable()
        if access.flushes.is_doubtful(self.last_txn_id):
            # The system believes to be done with what it could not write. A newer txn brings it.
            with self.write(timeout=OPEN_TIMEOUT) as txn:
                txn.put("meta", b"flush", b"")
                txn.delete("meta", b"flush")
        with access.inside():
            gate = access.gate
            try:
                access.flushes.flush(gate.descriptor, self.last_txn_id, gate.is_wanted)
            except OSError as error:
                raise os_error(error, f"cannot flush {self.path}") from error

    def complete(self) -> None:
        """Add pages at the end that a writer took, freed and was killed before it could add them.

        Nothing happens if the disk is full: the next one to open the file tries. A microsecond.
        """
        with self._access.inside():
            self._access.complete_file()

    def last_txn_id(self) -> int:
        """Give the number of the newest commit, by whatever process. About a microsecond.

        A read txn that begins at once may not see that one yet: LMDB writes it down before it lets
        others see it. What a txn sees, its ``id`` tells.
        """
        with self._access.inside() as opened:
            return self._access.earlier_txns + opened.handle.info()["last_txnid"]

    def info(self) -> EnvironmentInfo:
        """Give the figures of the file. O(number of readers)."""
        with self.read() as txn, self._access.inside() as opened:
            info, page_size = opened.handle.info(), opened.page_size
            return EnvironmentInfo(
                path=self.path,
                file_bytes=status_of(self.path, self._access.gate.descriptor).st_size,
                used_bytes=txn.used_pages() * page_size,
                map_bytes=info["map_size"],
                page_size=page_size,
                last_txn_id=self._access.earlier_txns + info["last_txnid"],
                readers=max(0, len(opened.handle.readers().splitlines()) - 1),
                max_readers=info["max_readers"],
                entries={name: txn.count(name) for name in DATABASES},
            )

    # -- copies, and another file in the place of this one --

    def copy(self, txn: Txn, draft: Draft, progress: Progress, *, dense: bool = False) -> None:
        """Write the state that a read txn of this environment sees to a draft, page by page.

        Free pages are left out. With ``dense`` the others are filled anew as well, in the order of
        keys, where one of sixteen or more is a leaf of a tree: else large values have nearly all of
        them, and fill theirs as they are. Nothing is flushed. What LMDB is about to walk is
        looked at before. Others write meanwhile, and the file grows by what they write.
        ``progress(done, total, what)`` counts bytes; what it raises, and Ctrl-C, end the copy.
        Raises ``CorruptError``, ``FullError``. A second a gigabyte, or as fast as the disk; filled
        anew, 2 µs an entry besides.
        """
        with self._access.inside() as opened:
            copy = copy_densely if dense else copy_pages
            copy(opened, txn, draft, progress)

    @contextlib.contextmanager
    def compacting(self, timeout: float | None) -> Iterator[None]:
        """Be the only one to write, and the only process that has the file open for writing.

        Others who only read may come meanwhile. Waits up to ``timeout`` seconds for writers, and
        for other processes to close the file. Raises ``BusyError`` with ``.holder``, or
        ``StorageError`` where the system has no locks that tell who has it open.
        """
        access = self._access
        access.activity.require_outside()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            access.gate.acquire(None if deadline is None else max(0.0, deadline - time.monotonic()))
            try:
                require_in_place(self.path, access.key)
                if access.announce():
                    yield
                    return
                if deadline is not None and time.monotonic() >= deadline:
                    raise access.find_others()
            finally:
                access.unannounce()
                access.gate.release()
            # Without the gate, so that those who have the file open can end what they do.
            time.sleep(_PAUSE)

    def replace_by(self, draft: Draft, timeout: float | None) -> None:
        """Put a draft in the place of the file, inside ``compacting``; all here go on with it.

        In one step: after a crash at any time there is the old file or the new one. Waits up to
        ``timeout`` seconds for other processes to close the file, and for txns of this one to end.
        Raises ``BusyError``, and ``StorageError``; the file is the old one then.
        """
        access = self._access
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while access.is_wanted() and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        # At least a moment for txns that are about to end.
        remaining = min(max(deadline - time.monotonic(), _MOMENT), threading.TIMEOUT_MAX)
        with our_errors(f"cannot compact {self.path}"):
            done = uninterrupted(lambda: _registry.replace(access, draft, remaining))
        if not done:
            raise BusyError(
                f"a txn on {self.path} in this process takes longer than {remaining:g} seconds, "
                "perhaps a backup: compact it later"
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

    def open_descriptor(self, follower: Follower | None = None) -> int:
        """Open the data file once more, for locks that no other part of this process has.

        When the file is compacted, ``follower`` tells these locks, and its descriptor leads to the
        new file from then on. It changes both only inside ``filelocks.no_fork``.

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
            status = status_of(self.path, descriptor)
            if (status.st_dev, status.st_ino) != access.key:
                raise replaced(self.path)
            if follower is not None:
                access.followers.add(follower)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def forget_follower(self, follower: Follower) -> None:
        """Be told no more of its locks. Inside ``filelocks.no_fork``."""
        self._access.followers.discard(follower)

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
            if not self._access.users:
                # Another thread has closed it just now.
                raise self._access.closed() from error
            raise os_error(error, f"cannot look at the locks of {self.path}") from error


@final
class _Reading:
    """The context of one read txn. A class, because a generator would take as long as the rest."""

    __slots__ = ("_access", "_txn")

    def __init__(self, access: Access) -> None:
        self._access = access
        self._txn = Txn(access.path)

    def __enter__(self) -> Txn:
        try:
            self._access.begin(self._txn)
        except BaseException:
            self._access.end_read(self._txn)
            raise
        return self._txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._access.end_read(self._txn)
        except BaseException:
            # Ctrl-C, at its first step or a later one.
            self._access.end_read(self._txn)
            raise

    def __del__(self) -> None:
        # Ctrl-C may come before the first step of __exit__, or of __init__.
        txn = getattr(self, "_txn", None)
        if txn is not None and txn._transaction is not OVER and txn.is_open:
            self._access.end_read(txn)


@final
class _Writing:
    """The context of one write txn."""

    __slots__ = ("_access", "_room", "_timeout", "_txn")

    def __init__(self, access: Access, timeout: float | None, room: int) -> None:
        self._access = access
        self._timeout = timeout
        self._room = room
        self._txn = Txn(access.path)

    def __enter__(self) -> Txn:
        self._access.begin_write(self._txn, self._timeout, self._room)
        return self._txn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._access.end_write(self._txn, commit=kind is None)
        except BaseException:
            # Ctrl-C, at its first step or a later one.
            self._access.give_up(self._txn)
            raise

    def __del__(self) -> None:
        # Ctrl-C may come before the first step of __exit__, or of __init__.
        txn = getattr(self, "_txn", None)
        if txn is not None and txn.is_open:
            self._access.give_up(txn)


_registry = Registry(Environment)
