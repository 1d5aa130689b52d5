"""A data file opened by LMDB: checked, mapped, and its databases at hand."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, final

import lmdb

from vzarr import portable
from vzarr.datafile import (
    ATTEMPTS,
    DATABASES,
    MAX_READERS,
    MOMENT,
    REFUSALS,
    allocate_lock_file,
    examine,
    nobody_writes,
    os_error,
)
from vzarr.errors import StorageError, VzarrError
from vzarr.gate import Gate
from vzarr.guard import Guard, Table
from vzarr.lmdberrors import error_code, translate
from vzarr.lmdbfile import Probe, probe

INITIAL_MAP_BYTES = 64 << 30
"""Address space reserved for a file, sparse and free of cost. 1 TiB each would not do for many."""
MINIMUM_MAP_BYTES = 256 << 20
"""What we settle for where address space is limited (``ulimit -v``)."""
MAP_IS_FILE = sys.platform == "win32"
"""Whether LMDB makes a file as long as the map of who writes it, and maps no more to read it.

Then a map is no longer than it has to be; files are sparse until they are closed, and cut off then.
"""
_SHORT_MAP_BYTES = 64 << 20


@final
@dataclass(frozen=True, slots=True)
class Opened:
    """One opening of a file by LMDB."""

    handle: lmdb.Environment
    databases: dict[str, Table]
    page_size: int
    guard: Guard
    lock_file: int
    """Our own descriptor of LMDB's lock file; negative where there is none."""

    def is_sound(self) -> bool:
        """Tell whether the lock file is still there: all who come later use another one. 1 µs.

        Raises ``CorruptError`` if the data file was cut off, and ``StorageError``.
        """
        self.guard.require_length()
        try:
            return self.lock_file < 0 or os.fstat(self.lock_file).st_nlink > 0
        except OSError as error:
            raise os_error(error, f"cannot look at {self.handle.path()}-lock") from error

    def close(self) -> None:
        """Have LMDB close the file. Nobody may be inside."""
        self.handle.close()
        # Only now: to close any descriptor of a file drops all locks that the process has on it.
        if self.lock_file >= 0:
            os.close(self.lock_file)

    def extent(self) -> int:
        """Give the bytes of the file up to its last page."""
        return (self.handle.info()["last_pgno"] + 1) * self.page_size


def open_file(path: str, key: tuple[int, int], gate: Gate, *, writable: bool) -> Opened:
    """Open a file after all checks. A writer must be through the gate."""
    require_in_place(path, key)
    found = examine(path, gate.descriptor, writable=writable)
    guard = Guard(path, gate.descriptor, DATABASES)
    guard.require_roots()
    allocate_lock_file(path)
    # Before LMDB does. If it is deleted in between, the first txn will see that.
    lock_file = _hold_lock_file(path)
    try:
        handle = _map_for_writing(path, found) if writable else _map_for_reading(path, found)
    except lmdb.Error as error:
        # A file that this one has replaced is open, and has its locks there: keep them.
        if lock_file >= 0 and not _is_replacement(error):
            os.close(lock_file)
        raise _cannot_map(error, path) from error
    try:
        handle.reader_check()
        _require_own_lock_file(path, handle)
        databases = _open_databases(handle, writable=writable)
    except BaseException as error:
        handle.close()
        if lock_file >= 0:
            os.close(lock_file)
        if isinstance(error, lmdb.Error):
            raise translate(error, path) from error
        raise
    tables = {name: Table(name, database, guard) for name, database in databases.items()}
    return Opened(handle, tables, found.page_size, guard, lock_file)


def _hold_lock_file(path: str) -> int:
    try:
        return portable.open_file(
            path + "-lock", os.O_RDONLY | portable.CLOEXEC | portable.NONBLOCK
        )
    except OSError:
        # LMDB will say what is wrong with it, or do without on media that nobody can write.
        return -1


def _map_for_writing(path: str, found: Probe) -> lmdb.Environment:
    return map_file(path, found.file_bytes, lock=True)


def _map_for_reading(path: str, found: Probe) -> lmdb.Environment:
    try:
        return map_file(path, found.file_bytes, readonly=True, lock=True)
    except lmdb.Error as error:
        if error_code(error) not in REFUSALS or not nobody_writes(path):
            raise
    return map_file(path, found.file_bytes, readonly=True, lock=False)


def map_file(path: str, file_bytes: int, *, sync: bool = True, **options: Any) -> lmdb.Environment:
    """Open a file with LMDB, with as big a map as can be had. Raises lmdb's errors.

    Without ``sync`` no txn is flushed: only for a file that nobody relies on before all of it is.
    """
    size = max(INITIAL_MAP_BYTES, 4 * file_bytes)
    floor = max(MINIMUM_MAP_BYTES, 2 * file_bytes)
    if MAP_IS_FILE:
        size = floor = file_bytes if options.get("readonly") else max(_SHORT_MAP_BYTES, file_bytes)
    while True:
        try:
            return lmdb.open(
                path,
                map_size=size,
                subdir=False,
                metasync=False,
                sync=sync,
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


def cut_off(path: str, descriptor: int) -> None:
    """Make a file end with its last page, which LMDB has closed in this process.

    Nobody may be about to write it. Nothing happens while another process has it mapped, or where
    files are as long as they have to be.
    """
    if MAP_IS_FILE:
        with contextlib.suppress(OSError, VzarrError):
            os.ftruncate(descriptor, probe(path).required_bytes)


def _cannot_map(error: lmdb.Error, path: str) -> VzarrError:
    if error_code(error) in REFUSALS:
        return StorageError(
            f"{path}-lock cannot be opened for writing, which LMDB needs even to read: get the "
            "permission to write it and its directory",
            code=error_code(error),
        )
    if _is_replacement(error):
        return StorageError(
            f"{path} replaced a file that is still open in this process: close that one first"
        )
    return translate(error, path)


def _is_replacement(error: lmdb.Error) -> bool:
    return "already open" in str(error)


def _open_databases(handle: lmdb.Environment, *, writable: bool) -> dict[str, lmdb._Database]:
    """Open all databases, once: without a txn of ours, py-lmdb could lock up the process."""
    if not writable:
        return {name: handle.open_db(name.encode(), create=False) for name in DATABASES}
    with handle.begin(write=True) as transaction:
        return {
            name: handle.open_db(name.encode(), txn=transaction, create=False) for name in DATABASES
        }


def require_in_place(path: str, key: tuple[int, int]) -> None:
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
        raise replaced(path)


def replaced(path: str) -> StorageError:
    """Say that the path leads to another file than the one that is open."""
    return StorageError(
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
