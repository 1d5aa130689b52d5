"""A new data file: written under another name, flushed, and there whole or not at all."""

# Who creates a file drives the txn that fills it.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator

import lmdb

from vzarr import portable
from vzarr.datafile import DATABASES, os_error
from vzarr.draft import exists, place
from vzarr.errors import NotFoundError, VzarrError
from vzarr.guard import Table
from vzarr.lmdberrors import translate
from vzarr.memorymap import cut_off, map_file
from vzarr.txn import Txn


def create_file(path: str, initialise: Callable[[Txn], None]) -> None:
    """Create a file with all databases and what ``initialise`` puts there, durably."""
    with _draft(path) as draft:
        _write_draft(draft, initialise)
        place(draft, path)


@contextlib.contextmanager
def _draft(path: str) -> Iterator[str]:
    """Give a name beside the path; remove what is there at the end, and translate errors."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise NotFoundError(f"the directory {directory} does not exist: create it", name=directory)
    if os.path.lexists(path):
        raise exists(path)
    draft = os.path.join(directory, f".vzarr-{secrets.token_hex(8)}")
    try:
        yield draft
    except lmdb.Error as error:
        raise translate(error, path) from error
    except OSError as error:
        if isinstance(error, VzarrError):
            raise
        raise os_error(error, f"cannot create {path}") from error
    finally:
        # Published, it is gone; and one that cannot be removed does no harm.
        with contextlib.suppress(OSError):
            os.unlink(draft)


def _write_draft(draft: str, initialise: Callable[[Txn], None]) -> None:
    # Nobody else knows the name, so that it needs no lock file.
    handle = map_file(draft, 0, lock=False, lib_version=0)
    try:
        _initialise(handle, draft, initialise)
        handle.sync(True)
    finally:
        handle.close()
    descriptor = os.open(draft, os.O_RDWR | portable.CLOEXEC)
    try:
        cut_off(draft, descriptor)
        portable.fsync(descriptor)
    finally:
        os.close(descriptor)


def _initialise(handle: lmdb.Environment, path: str, initialise: Callable[[Txn], None]) -> None:
    transaction = handle.begin(write=True, buffers=True)
    txn = Txn(path)
    try:
        names = [name.encode() for name in DATABASES]
        opened = [handle.open_db(name, txn=transaction) for name in names]
        tables = map(Table, DATABASES, opened)
        txn._start(transaction, {table.name: table for table in tables})
        initialise(txn)
        if txn._failure is not None:
            raise txn._failure
        txn._close_cursors()
        transaction.commit()
    finally:
        # Ends the transaction if it was not committed.
        txn._end()
