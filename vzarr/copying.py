"""Copy a data file while it is written to, and read the copy before anybody else knows of it."""

# Whoever copies what a txn sees, and reads it again, knows its insides.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import final

import lmdb

from vzarr.activity import uninterrupted
from vzarr.datafile import DATABASES, our_errors
from vzarr.draft import Draft
from vzarr.guard import Table
from vzarr.lmdberrors import translate
from vzarr.memorymap import Opened, map_file
from vzarr.progress import INTERVAL, Progress
from vzarr.txn import Txn


def copy_pages(opened: Opened, txn: Txn, draft: Draft, progress: Progress) -> None:
    """Write all pages that a read txn sees to a draft, and none that is free."""
    require_sound(opened, txn)
    # The two meta pages, the list of databases, and what is in these.
    pages = 2 + sum(txn.pages(name) for name in (None, *DATABASES))
    total = pages * opened.page_size
    # An opening of its own, since it may have to be taken away from LMDB.
    with our_errors(f"cannot open {draft.path}"):
        descriptor = os.open(draft.path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        copying = _Copying(opened.handle, txn, descriptor)
        try:
            while not copying.ended.wait(INTERVAL):
                progress(min(draft.nbytes, total), total, "copy")
        except BaseException:
            copying.stop()
            raise
        finally:
            uninterrupted(copying.join)
    finally:
        os.close(descriptor)
    if copying.failure is not None:
        raise translate(copying.failure, draft.path) from copying.failure
    progress(total, total, "copy")


def require_sound(opened: Opened, txn: Txn) -> None:
    """Raise ``CorruptError`` for damage on which LMDB could crash. O(entries), 1 µs each."""
    for name in DATABASES:
        table = opened.databases[name]
        if not table.whole:
            txn._look_at_all(table)
    opened.guard.require_free_list()


@final
class _Copying:
    """LMDB at work; it knows of no progress and of no Ctrl-C."""

    def __init__(self, handle: lmdb.Environment, txn: Txn, descriptor: int) -> None:
        self._handle = handle
        self._transaction = txn._transaction
        self._descriptor = descriptor
        self.ended = threading.Event()
        self.failure: lmdb.Error | None = None
        self._thread = threading.Thread(target=self._run, name="vzarr-copy")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._handle.copyfd(self._descriptor, compact=True, txn=self._transaction)
        except lmdb.Error as error:
            self.failure = error
        finally:
            # Its last reference frees its place among the readers.
            del self._transaction
            self.ended.set()

    def join(self) -> None:
        self._thread.join()

    def stop(self) -> None:
        """Make its next write fail: the descriptor leads to where nothing can be written."""
        nowhere = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.dup2(nowhere, self._descriptor, inheritable=False)
        finally:
            os.close(nowhere)


@final
class Copy:
    """A draft that LMDB has written, open for reading; a source of records as an environment is."""

    def __init__(self, draft: Draft) -> None:
        """Open it. Raises ``CorruptError`` and ``StorageError``."""
        self.path = draft.path
        self._handle = None
        try:
            # Nobody else knows the name, so that it needs no lock file.
            self._handle = map_file(self.path, draft.nbytes, readonly=True, lock=False)
            self._tables = {
                name: Table(name, self._handle.open_db(name.encode(), create=False))
                for name in DATABASES
            }
        except lmdb.Error as error:
            self.close()
            raise translate(error, self.path) from error

    @contextlib.contextmanager
    def read(self) -> Iterator[Txn]:
        """Open a read txn."""
        assert self._handle is not None, "a copy that is closed"
        txn = Txn(self.path)
        txn._start(self._handle.begin(buffers=True), self._tables)
        try:
            yield txn
        finally:
            txn._end()

    def close(self) -> None:
        """Close it; can be repeated."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()
