"""Copy a data file while it is written to, and read the copy before anybody else knows of it.

There are two ways. LMDB's pages can be written one after the other, at the speed of the disk; those
of its trees stay as full as they were, which is two thirds where keys came in any order, as digests
do. Or each database is filled anew in the order of its keys: every page is then full, and an entry
costs some 2 µs.
"""

# Whoever copies what a txn sees, and reads it again, knows its insides.
# ruff: noqa: SLF001

from __future__ import annotations

import _thread
import contextlib
import os
from collections.abc import Generator, Iterator
from typing import final

import lmdb

from vzarr import portable
from vzarr.activity import uninterrupted
from vzarr.datafile import DATABASES, extend, our_errors
from vzarr.draft import Draft
from vzarr.errors import CorruptError
from vzarr.guard import Table
from vzarr.lmdberrors import translate
from vzarr.memorymap import Opened, map_file
from vzarr.progress import INTERVAL, Progress
from vzarr.txn import Txn

# So much is inserted in one txn, whose pages are in memory until then.
_BATCH_BYTES = 16 << 20
# LMDB's share of an entry: its header and its place in the page.
_ENTRY_BYTES = 10
# Pages that can become fuller have to be one of so many, or it is not worth the while.
_ONE_OF = 16


def copy_pages(opened: Opened, txn: Txn, draft: Draft, progress: Progress) -> None:
    """Write all pages that a read txn sees to a draft, and none that is free."""
    require_sound(opened, txn)
    _copy_pages(opened, txn, draft, progress)


def _copy_pages(opened: Opened, txn: Txn, draft: Draft, progress: Progress) -> None:
    total = txn.used_pages() * opened.page_size
    # An opening of its own, since it may have to be taken away from LMDB.
    with our_errors(f"cannot open {draft.path}"):
        descriptor = portable.open_file(draft.path, os.O_WRONLY | portable.CLOEXEC)
    try:
        copying = _Copying(opened.handle, txn, descriptor)
        try:
            copying.start()
            while not copying.wait(INTERVAL):
                progress(min(draft.nbytes, total), total, "copy")
        except BaseException:
            copying.stop()
            raise
        finally:
            uninterrupted(copying.wait)
    finally:
        os.close(descriptor)
    if copying.failure is not None:
        raise translate(copying.failure, draft.path) from copying.failure
    progress(total, total, "copy")


def copy_densely(opened: Opened, txn: Txn, draft: Draft, progress: Progress) -> None:
    """Write all entries that a read txn sees to a draft, in the order of their keys.

    No page is left with room for one entry more. Where most pages belong to large values, which
    fill theirs as they are, nothing would be gained, and the pages are copied. Raises
    ``CorruptError`` for keys that are not in order.
    """
    require_sound(opened, txn)
    if not _is_worth_the_while(txn):
        _copy_pages(opened, txn, draft, progress)
        return
    total = txn.used_pages() * opened.page_size
    try:
        # Nobody else knows the name, so that it needs no lock file, and whoever is to rely on it
        # flushes all of it first.
        handle = map_file(draft.path, total, sync=False, lock=False, lib_version=0)
        try:
            with contextlib.closing(_entries(opened, txn)) as entries:
                while _insert(handle, entries, draft):
                    progress(min(draft.nbytes, total), total, "copy")
            written = (handle.info()["last_pgno"] + 1) * handle.stat()["psize"]
        finally:
            handle.close()
    except lmdb.Error as error:
        raise translate(error, draft.path) from error
    # Pages at the end that a txn took and freed again are never written.
    if draft.nbytes < written:
        extend(draft.path, draft.descriptor, written)
    progress(total, total, "copy")


def _is_worth_the_while(txn: Txn) -> bool:
    leaves = sum(txn.leaf_pages(name) for name in DATABASES)
    return leaves * _ONE_OF >= txn.used_pages()


def _entries(opened: Opened, txn: Txn) -> Generator[tuple[str, memoryview, memoryview]]:
    """Give all entries where they lie, after ``require_sound``."""
    for name in DATABASES:
        with txn._transaction.cursor(opened.databases[name].handle) as cursor:
            for key, value in cursor:
                yield name, key, value


def _insert(
    handle: lmdb.Environment, entries: Iterator[tuple[str, memoryview, memoryview]], draft: Draft
) -> bool:
    """Insert a batch of entries in one txn; tell whether there may be more."""
    nbytes = 0
    with handle.begin(write=True) as transaction:
        put = transaction.put
        tables = {name: handle.open_db(name.encode(), txn=transaction) for name in DATABASES}
        for name, key, value in entries:
            if not put(key, value, append=True, db=tables[name]):
                raise CorruptError(f"the keys of {name!r} are not in order", path=draft.target)
            nbytes += len(key) + len(value) + _ENTRY_BYTES
            if nbytes >= _BATCH_BYTES:
                return True
    return False


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
        self._begun: list[int] = []
        self._ended = False
        self._running = _thread.allocate_lock()
        self._running.acquire()
        self.failure: lmdb.Error | None = None

    def start(self) -> None:
        """Begin, and know it, in one step that Ctrl-C cannot come between.

        LMDB must never be left at work on a descriptor that is closed: another file may have its
        number then.
        """
        try:
            self._begun.extend(map(_thread.start_new_thread, [self._run], [()]))
        except RuntimeError:
            if self._begun:
                raise
            # The system gives us no thread.
            self._run()

    def _run(self) -> None:
        try:
            self._handle.copyfd(self._descriptor, compact=True, txn=self._transaction)
        except lmdb.Error as error:
            self.failure = error
        finally:
            # Its last reference frees its place among the readers.
            del self._transaction
            self._ended = True
            self._running.release()

    def wait(self, timeout: float = -1) -> bool:
        """Wait so many seconds, or for ever; tell whether LMDB is done, or never began."""
        return self._ended or not self._begun or self._running.acquire(timeout=timeout)

    def stop(self) -> None:
        """Make its next write fail: the descriptor leads to where nothing can be written."""
        nowhere = os.open(os.devnull, os.O_RDONLY | portable.CLOEXEC)
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
