"""One LMDB transaction: get, put, delete, scan, and what becomes of it after an error or a fork."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast, final

import lmdb

from vzarr.errors import CorruptError, SessionStateError, StorageError, VzarrError
from vzarr.format import SEALED, seal, unseal
from vzarr.guard import Table
from vzarr.lmdberrors import translate

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Ended:
    """Stands in for the transaction of a txn that is over, and says so to whoever uses it."""

    def __init__(self, error: type[VzarrError], message: str) -> None:
        self._error = error
        self._message = message

    def refusal(self) -> VzarrError:
        """Give the error that it raises."""
        return self._error(self._message)

    def __getattr__(self, name: str) -> Any:
        raise self.refusal()


_T = TypeVar("_T")
# From here on a value may have pages of its own: if it takes half a page together with its key.
_BIG_BYTES = 1024

Transaction: TypeAlias = "lmdb.Transaction[memoryview]"

_OVER_TXN = Ended(SessionStateError, "this txn is over: use it inside its with block")
OVER = cast(Transaction, _OVER_TXN)
FORKED_TXN = Ended(
    StorageError, "this process was forked inside this txn: open another in the child"
)
FORKED = cast(Transaction, FORKED_TXN)


_NO_TABLES: dict[str, Table] = {}


@final
class Txn:
    """One LMDB transaction, valid inside the ``with`` block that opened it.

    A read txn sees the state of one moment. A write txn sees its own writes; when a call of it
    fails, nothing of it is kept, even if the exception is caught.
    """

    __slots__ = ("_cursors", "_earlier", "_edits", "_failure", "_path", "_tables", "_transaction")

    def __init__(self, path: str) -> None:
        self._path = path
        self._transaction = OVER
        self._tables = _NO_TABLES
        self._cursors: set[lmdb.Cursor[memoryview]] | None = None
        self._edits = 0
        self._failure: VzarrError | None = None
        # How many txns were on files in whose place this one has come.
        self._earlier = 0

    @property
    def is_open(self) -> bool:
        """Whether it began in this process and is not over."""
        return not isinstance(self._transaction, Ended)

    @property
    def id(self) -> int:
        """The number of the newest commit that it sees; that of its own, of a write txn. O(1)."""
        return self._earlier + self._transaction.id()

    def get(self, database: str, key: bytes) -> bytes | None:
        """Copy a value, or give None. Raises ``CorruptError`` if its seal is broken. O(log n)."""
        table = self._tables[database]
        if not bisect_right(table.sound, key) & 1:
            self._look(table, key)
        try:
            value = self._transaction.get(key, None, table.handle)
        except lmdb.Error as error:
            raise self._failed(error) from error
        if value is None:
            return None
        return unseal(database, key, bytes(value)) if database in SEALED else bytes(value)

    def view(self, database: str, key: bytes) -> memoryview | None:
        """Give a value as it is stored, without copying it, or None. O(log n).

        The view must not outlive the txn, nor the next ``put`` or ``delete`` of a write txn: the
        memory then shows other data, without an error.
        """
        table = self._tables[database]
        if not bisect_right(table.sound, key) & 1:
            self._look(table, key)
        try:
            return self._transaction.get(key, None, table.handle)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def look_ahead(self, database: str) -> None:
        """Have all pages of a database looked at, for one who will read it all in any order.

        It takes a quarter of the time of one look for each page. O(n), some 2 µs an entry.
        """
        table = self._tables[database]
        if not table.whole:
            self._look_at_all(table)

    def look_for(self, database: str, keys: Sequence[bytes]) -> None:
        """Have the pages of many keys looked at, for one who will read them, best in order.

        It takes half the time of one look for each. O(log n) each.
        """
        table = self._tables[database]
        if table.guard is not None:
            self._guarded(table.guard.require_leaves, table, keys)

    def contains(self, database: str, key: bytes) -> bool:
        """Tell whether there is such a key, without touching its value. O(log n)."""
        table = self._tables[database]
        if not table.covers(key):
            self._look(table, key)
        try:
            with self._transaction.cursor(table.handle) as cursor:
                return cursor.set_key(key)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def count(self, database: str) -> int:
        """Give the number of entries, as LMDB has it on record. O(1)."""
        return self._stat(database)["entries"]

    def leaf_pages(self, database: str) -> int:
        """Give the number of pages on which a database has its keys and small values. O(1)."""
        return self._stat(database)["leaf_pages"]

    def used_pages(self) -> int:
        """Give the number of pages of the file that are not free. O(1)."""
        # The two meta pages, the list of databases, and what is in these.
        stats = [self._stat(database) for database in (None, *self._tables)]
        trees = sum(stat["branch_pages"] + stat["leaf_pages"] for stat in stats)
        return 2 + trees + sum(stat["overflow_pages"] for stat in stats)

    def _stat(self, database: str | None) -> lmdb._StatDict:
        table = None if database is None else self._tables[database]
        # LMDB looks at the first page.
        if table is not None and table.guard is not None:
            self._guarded(table.guard.require_small, table)
        try:
            return self._transaction.stat(None if table is None else table.handle)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def put(self, database: str, key: bytes, value: Buffer, *, overwrite: bool = True) -> bool:
        """Write a value, and tell whether it did: not if it must not overwrite one. O(log n).

        Raises ``FullError`` when the map is full, ``InvalidInputError`` for a key that is empty or
        longer than 511 bytes, ``ReadOnlyError`` in a read txn.
        """
        self._edits += 1
        if database in SEALED:
            value = seal(database, key, value)
        table = self._tables[database]
        if not bisect_right(table.sound, key) & 1:
            self._look(table, key)
        try:
            if overwrite and not table.whole and self._is_big(table, key):
                self._look_at_all(table)
            return self._transaction.put(key, value, overwrite=overwrite, db=table.handle)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def delete(self, database: str, key: bytes) -> bool:
        """Delete an entry, and tell whether there was one. O(log n)."""
        self._edits += 1
        table = self._tables[database]
        if not table.whole:
            self._look_at_all(table)
        try:
            return self._transaction.delete(key, b"", table.handle)
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
        them are not touched. Raises ``CorruptError`` for a broken seal of an entry, or beside a
        prefix. O(log n), then O(1) an entry.
        """
        table = self._tables[database]
        try:
            cursor = self._transaction.cursor(table.handle)
        except lmdb.Error as error:
            raise self._failed(error) from error
        if self._cursors is None:
            self._cursors = set()
        self._cursors.add(cursor)
        found = self._walk(table, cursor, start, prefix, keys_only, reverse)
        if keys_only or database not in SEALED:
            return found
        return ((key, unseal(database, key, data)) for key, data in found)

    def last_key(self, database: str, prefix: bytes) -> bytes | None:
        """Give the last key that begins with ``prefix``, or None. O(log n).

        Raises ``CorruptError`` for a broken seal beside it, as ``scan`` does.
        """
        table, end = self._tables[database], _successor(prefix)
        self._around(table, end or None)
        try:
            with self._transaction.cursor(table.handle) as cursor:
                if end and cursor.set_range(end):
                    _require_sealed(database, cursor)
                    found = cursor.prev()
                else:
                    found = cursor.last()
                if not found:
                    return None
                key = bytes(cursor.key())
                if key.startswith(prefix):
                    return key
                _require_sealed(database, cursor)
                return None
        except lmdb.Error as error:
            raise self._failed(error) from error

    def _walk(
        self,
        table: Table,
        cursor: lmdb.Cursor[memoryview],
        start: bytes,
        prefix: bytes,
        keys_only: bool,
        reverse: bool,
    ) -> Iterator[tuple[bytes, bytes]]:
        step = cursor.prev if reverse else cursor.next
        try:
            low, high = self._around(table, (_last if reverse else max)(start, prefix))
            seek = _seek_last if reverse else _seek_first
            guarded = bool(prefix) and table.name in SEALED
            if guarded:
                _look_beside(table.name, cursor, seek(cursor, start, prefix), reverse)
            found = seek(cursor, start, prefix)
            while found:
                key = bytes(cursor.key())
                if not key.startswith(prefix):
                    if guarded:
                        unseal(table.name, key, bytes(cursor.value()))
                    break
                edits = self._edits
                yield key, b"" if keys_only else bytes(cursor.value())
                if key < low or (high is not None and key >= high):
                    low, high = self._around(table, key)
                found = step() if edits == self._edits else _seek_on(cursor, key, reverse)
        except lmdb.Error as error:
            raise self._failed(error) from error
        finally:
            cursor.close()
            if self._cursors is not None:
                self._cursors.discard(cursor)

    def _look(self, table: Table, key: bytes) -> None:
        """Have the way to a key looked at, before LMDB goes it."""
        assert table.guard is not None
        self._guarded(table.guard.require_leaf, table, key)

    def _look_at_all(self, table: Table) -> None:
        assert table.guard is not None
        self._guarded(table.guard.require_table, table)

    def _around(self, table: Table, key: bytes | None) -> tuple[bytes, bytes | None]:
        """Have the pages around a key looked at; give the keys among which LMDB may then step."""
        if table.guard is None:
            return b"", None
        return self._guarded(table.guard.require_neighbours, table, key)

    def _guarded(self, look: Callable[..., _T], *arguments: object) -> _T:
        # Only while the txn lasts are the pages that it will see sure to stay.
        if self._transaction is OVER:
            raise _OVER_TXN.refusal()
        try:
            return look(*arguments)
        except CorruptError as error:
            self._failure = error
            raise

    def _is_big(self, table: Table, key: bytes) -> bool:
        """Whether there is a value that may have pages of its own, which LMDB would free."""
        value = self._transaction.get(key, None, table.handle)
        return value is not None and len(value) >= _BIG_BYTES

    def _failed(self, error: lmdb.Error) -> VzarrError:
        if self._transaction is OVER:
            # A scan that goes on after its txn, whose cursor is closed.
            return _OVER_TXN.refusal()
        # What an exception left half done must not be committed by a caller who caught it.
        self._failure = translate(error, self._path)
        self._failure.__cause__ = error
        return self._failure

    def _start(self, transaction: Transaction, tables: dict[str, Table]) -> None:
        self._transaction = transaction
        self._tables = tables

    def _close_cursors(self) -> None:
        if self._cursors is not None:
            for cursor in self._cursors:
                cursor.close()
            self._cursors = None

    def _end(self) -> None:
        """Let go of LMDB's transaction: its last reference frees its place among the readers."""
        self._close_cursors()
        self._transaction = OVER

    def _abandon(self) -> None:
        """Forget a transaction of the parent process, which must not be ended from here.

        When the last reference goes, py-lmdb sees that it is not ours and leaves it alone.
        """
        self._cursors = None
        self._transaction = FORKED


def _look_beside(name: str, cursor: lmdb.Cursor[memoryview], found: bool, reverse: bool) -> None:
    """Make sure that the record before the first one of a scan is whole, as the one after the last.

    A record whose key is damaged stays where it is among the others. So what belonged to the scan
    and seems to no more is at its ends.
    """
    if found:
        there = cursor.next() if reverse else cursor.prev()
    else:
        there = cursor.first() if reverse else cursor.last()
    if there:
        _require_sealed(name, cursor)


def _require_sealed(name: str, cursor: lmdb.Cursor[memoryview]) -> None:
    """Raise ``CorruptError`` if the record where a cursor stands has a broken seal."""
    if name in SEALED:
        unseal(name, bytes(cursor.key()), bytes(cursor.value()))


def _seek_first(cursor: lmdb.Cursor[memoryview], start: bytes, prefix: bytes) -> bool:
    target = max(start, prefix)
    return cursor.set_range(target) if target else cursor.first()


def _seek_last(cursor: lmdb.Cursor[memoryview], start: bytes, prefix: bytes) -> bool:
    """Move to the last key that begins with the prefix and is not beyond the start."""
    end = _successor(prefix)
    # ``_last`` gives where this looks first.
    if start and (not end or start < end):
        # The start itself counts, the end of the prefix does not.
        return (cursor.set_range(start) and cursor.key() == start) or _before(cursor, start)
    return _before(cursor, end)


def _last(start: bytes, prefix: bytes) -> bytes | None:
    """Give the key from which a scan in reverse sets out; None for the end."""
    end = _successor(prefix)
    return start if start and (not end or start < end) else end or None


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
