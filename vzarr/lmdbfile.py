"""Look at an LMDB data file without LMDB: is it one, is it whole, which databases does it hold.

LMDB maps a file before it has checked much of it: a truncated file kills the interpreter with
SIGBUS, and a file of another program would get a lock file beside it. So the few bytes that answer
these questions are read here with plain ``pread``, and every number in them is checked before use.

The layout (``mdb.c`` of LMDB 0.9, 64 bits, the byte order of the machine): page 0 and page 1 are
meta pages, of which the one with the higher txn id is in force; it names the root of the main
B-tree, whose leaves hold one node for each named database, with the root of that one's own B-tree.

``Reader`` goes on from there to the records: LMDB itself may crash on a damaged file, and plain
reads with checked numbers cannot.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar, final

from vzarr import portable
from vzarr.errors import CorruptError, NotARepositoryError, NotFoundError, StorageError
from vzarr.format import SEALED, unseal
from vzarr.pages import (
    BIG_VALUE,
    BRANCH,
    DATABASE_RECORD,
    LEAF,
    MAX_DEPTH,
    META_BYTES,
    META_MAGIC,
    META_VERSION,
    NO_PAGE,
    NODE_HEADER,
    OVERFLOW,
    PAGE_HEADER,
    PAGE_NUMBER,
    PAGE_SIZES,
    TREE,
    Damage,
    Meta,
    Tree,
    page_size_of,
    read_meta,
)

__all__ = ["Probe", "Reader", "probe", "read_metas"]

# LMDB 1.0 has a page header of 24 bytes.
_MAGIC_OFFSET, _MAGIC_OFFSET_OF_1_0 = 16, 24

# A main database of eight names is one leaf; what is much bigger is no repository of ours.
_MAX_PAGES = 4096
# How often to look again because a commit of another process came between.
_ATTEMPTS = 200

_T = TypeVar("_T")
_REMEDY = "give the path of a repository, or create one at another path"


@dataclass(frozen=True, slots=True)
class Probe:
    """What the newest meta page of an LMDB data file says, and the databases in it."""

    page_size: int
    last_page: int
    required_bytes: int
    file_bytes: int
    databases: frozenset[str]
    txn_id: int


def probe(path: str) -> Probe:
    """Read what an LMDB data file says of itself, without mapping or locking it.

    ``required_bytes`` may exceed ``file_bytes``: then the tail is missing. Raises ``NotFoundError``
    or ``StorageError`` if the file cannot be opened, ``NotARepositoryError`` if it is no data file
    of LMDB 0.9, ``CorruptError`` if it is a damaged one. Costs about six small reads.
    """
    descriptor = _open(path)
    try:
        _require_lmdb(descriptor, path)
        return _probe(descriptor, path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"cannot read {path}: {error.strerror}", code=error.errno) from error
    finally:
        os.close(descriptor)


def _open(path: str) -> int:
    try:
        # Without O_NONBLOCK, a named pipe would make us wait for a writer.
        return portable.open_file(path, os.O_RDONLY | portable.CLOEXEC | portable.NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{path} does not exist: check the path, or create a repository there", name=path
        ) from error
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}", code=error.errno) from error


def _require_lmdb(descriptor: int, path: str) -> None:
    reason = _foreign(descriptor)
    if reason:
        raise NotARepositoryError(f"{path} {reason}: {_REMEDY}", path=path)


def _foreign(descriptor: int) -> str:
    """Say why this is no data file of LMDB 0.9, or nothing."""
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        return "is a directory"
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if not status.st_size:
        return "is an empty file"
    start = portable.pread(descriptor, META_BYTES, 0)
    if len(start) < META_BYTES:
        return f"is too short for a repository ({len(start)} bytes)"
    magic, version = struct.unpack_from("=II", start, _MAGIC_OFFSET)
    if magic == META_MAGIC:
        return "" if version == META_VERSION else f"has version {version} of LMDB's format, not 1"
    if magic == int.from_bytes(META_MAGIC.to_bytes(4, "little"), "big"):
        return f"was written on a machine that is not {sys.byteorder}-endian as this one is"
    if struct.unpack_from("=I", start, _MAGIC_OFFSET_OF_1_0)[0] == META_MAGIC:
        return "was written by LMDB 1.0, vzarr uses the format of LMDB 0.9"
    return "is no vzarr repository"


def _probe(descriptor: int, path: str) -> Probe:
    result: Probe | Damage = Damage("no part of it stays the same")
    seen = read_metas(descriptor)
    for _ in range(_ATTEMPTS):
        try:
            result = _look(descriptor, seen)
        except Damage as damage:
            result = damage
        # We hold no reader slot: two commits later, pages that we walked may have been written
        # again. Meta pages that are still the same prove that there was no commit at all.
        now = read_metas(descriptor)
        if now == seen:
            break
        seen = now
    if isinstance(result, Damage):
        raise CorruptError(
            f"{path} is damaged, {result}: restore it from a backup", path=path
        ) from result
    return result


def read_metas(descriptor: int) -> tuple[bytes, bytes]:
    """Read both meta pages, as they are."""
    first = portable.pread(descriptor, META_BYTES, 0)
    if len(first) < META_BYTES:
        return first, b""
    page_size = page_size_of(first)
    # Where the first meta page is damaged, the second one shows where it is itself.
    for size in [page_size] if page_size in PAGE_SIZES else sorted(PAGE_SIZES):
        second = portable.pread(descriptor, META_BYTES, size)
        if struct.unpack_from("=II", second.ljust(META_BYTES), _MAGIC_OFFSET) == (
            META_MAGIC,
            META_VERSION,
        ):
            break
    return first, second


def _look(descriptor: int, metas: tuple[bytes, bytes]) -> Probe:
    # LMDB refuses a file unless both meta pages are sound, so that one of them is not enough.
    meta = max((read_meta(data) for data in metas), key=lambda found: found.txn_id)
    names = _names(descriptor, meta)
    return Probe(
        page_size=meta.page_size,
        last_page=meta.last_page,
        required_bytes=(meta.last_page + 1) * meta.page_size,
        file_bytes=os.fstat(descriptor).st_size,
        databases=frozenset(name.decode("utf-8", "backslashreplace") for name in names),
        txn_id=meta.txn_id,
    )


def _names(descriptor: int, meta: Meta) -> dict[bytes, Tree]:
    """Find the databases in the main B-tree, a level at a time. At most ``_MAX_PAGES`` reads."""
    names: dict[bytes, Tree] = {}
    if meta.main.root == NO_PAGE:
        return names
    if not 1 <= meta.main.depth <= MAX_DEPTH:
        raise Damage(f"its main tree is given {meta.main.depth} levels")
    level, visited = [meta.main.root], 0
    for height in range(meta.main.depth, 0, -1):
        below: list[int] = []
        for number in level:
            visited += 1
            if visited > _MAX_PAGES:
                raise Damage("its main tree is endless")
            page = _read_page(descriptor, meta, number, BRANCH if height > 1 else LEAF)
            for offset in _nodes(page):
                if height > 1:
                    below.append(_child(page, offset))
                else:
                    names.update(_database(page, offset))
        level = below
    return names


def _read_page(descriptor: int, meta: Meta, number: int, kind: int) -> bytes:
    if not 2 <= number <= meta.last_page:
        raise Damage(f"its main tree points at page {number} of {meta.last_page}")
    page = portable.pread(descriptor, meta.page_size, number * meta.page_size)
    if len(page) < meta.page_size:
        raise Damage(f"it ends before page {number}, which is in use")
    own_number, flags, lower, upper = PAGE_HEADER.unpack_from(page)
    if own_number != number or flags != kind:
        raise Damage(f"page {number} is not the one that its main tree points at")
    if not PAGE_HEADER.size <= lower <= upper <= meta.page_size or lower % 2:
        raise Damage(f"page {number} has bounds {lower} and {upper}")
    return page


def _nodes(page: bytes) -> list[int]:
    """Give the offsets of a page's nodes, each with room for its header and key."""
    lower, upper = PAGE_HEADER.unpack_from(page)[2:]
    count = (lower - PAGE_HEADER.size) // 2
    offsets = list(struct.unpack_from(f"={count}H", page, PAGE_HEADER.size))
    for offset in offsets:
        if not upper <= offset <= len(page) - NODE_HEADER.size:
            raise Damage("a node of its main tree lies outside its page")
        if offset + NODE_HEADER.size + NODE_HEADER.unpack_from(page, offset)[3] > len(page):
            raise Damage("a name in its main tree lies outside its page")
    return offsets


def _key(page: bytes, offset: int) -> bytes:
    start = offset + NODE_HEADER.size
    return page[start : start + NODE_HEADER.unpack_from(page, offset)[3]]


def _child(page: bytes, offset: int) -> int:
    low, high, flags, _ = NODE_HEADER.unpack_from(page, offset)
    return int(low | high << 16 | flags << 32)


def _database(page: bytes, offset: int) -> dict[bytes, Tree]:
    """Read the record of a database in a leaf node; nothing if the node is an ordinary value."""
    low, high, flags, _ = NODE_HEADER.unpack_from(page, offset)
    if not flags & DATABASE_RECORD:
        return {}
    key = _key(page, offset)
    start = offset + NODE_HEADER.size + len(key)
    if low | high << 16 != TREE.size or start + TREE.size > len(page):
        raise Damage("a database record in its main tree is cut")
    return {key: Tree(*TREE.unpack_from(page, start))}


# ---- Reading records ------------------------------------------------------------------------


@final
class Reader:
    """The records of a damaged LMDB file, with the interface of a read txn.

    It never crashes, whatever the file holds: every page is checked before it is used. It holds no
    lock and keeps no writer from using pages again; when it does not find something, it makes sure
    that nothing was committed meanwhile, or looks again. What it does find may be wrong: digests
    tell. Raises ``StorageError`` if the file cannot be opened, and ``CorruptError`` where a page on
    the way is damaged. Some 20 µs a page.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = _open(path)
        self._metas: tuple[bytes, bytes] | None = None
        self._databases: dict[bytes, Tree] = {}

    def close(self) -> None:
        """Close the file; can be repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read(self) -> contextlib.AbstractContextManager[Reader]:
        """Give itself, as ``Environment.read`` gives a txn. There is nothing to keep short."""
        return contextlib.nullcontext(self)

    def get(self, database: str, key: bytes) -> bytes | None:
        """Read a value, or give None. O(log n)."""

        def look(meta: Meta) -> bytes | None:
            found = self._find(meta, database, key)
            return None if found is None else self._value(meta, *found)

        data = self._consistently(look)
        return data if data is None or database not in SEALED else unseal(database, key, data)

    def view(self, database: str, key: bytes) -> bytes | None:
        """Read a value, as ``get``."""
        return self.get(database, key)

    def contains(self, database: str, key: bytes) -> bool:
        """Tell whether there is such a key, without reading its value. O(log n)."""
        return bool(self._consistently(lambda meta: self._find(meta, database, key)))

    def count(self, database: str) -> int:
        """Give the number of entries that a database says it has. O(1)."""

        def look(_: Meta) -> int:
            return self._tree(database).entries

        return self._consistently(look)

    def scan(
        self, database: str, *, start: bytes = b"", keys_only: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the entries from a key on, in order. What damaged pages hold is left out. O(n)."""

        def look(meta: Meta) -> list[tuple[bytes, bytes]]:
            found: list[tuple[bytes, bytes]] = []
            for page, offset in self._leaves(meta, database):
                key = _key(page, offset)
                if key >= start:
                    with contextlib.suppress(Damage):
                        found.append((key, b"" if keys_only else self._value(meta, page, offset)))
            return found

        records = self._consistently(look) or ()
        if keys_only or database not in SEALED:
            return iter(records)
        return ((key, unseal(database, key, data)) for key, data in records)

    def _consistently(self, look: Callable[[Meta], _T]) -> _T:
        """Look until something is found, or nothing was committed while it was not."""
        problem: Damage | None = None
        for _ in range(_ATTEMPTS):
            before = read_metas(self._descriptor)
            problem = None
            try:
                found = look(self._meta(before))
            except Damage as damage:
                problem = damage
            except OSError as error:
                problem = Damage(f"it cannot be read ({error.strerror})")
            else:
                if found:
                    return found
            if read_metas(self._descriptor) == before:
                break
        if problem is not None:
            raise CorruptError(f"{self.path} is damaged, {problem}", path=self.path) from problem
        return found

    def _meta(self, metas: tuple[bytes, bytes]) -> Meta:
        """Take the newest meta page that is sound, and find the databases that it leads to."""
        sound = []
        for data in metas:
            with contextlib.suppress(Damage):
                sound.append(read_meta(data))
        if not sound:
            raise Damage("neither of its meta pages is whole")
        meta = max(sound, key=lambda found: found.txn_id)
        if metas != self._metas:
            self._databases = _names(self._descriptor, meta)
            self._metas = metas
        return meta

    def _tree(self, database: str) -> Tree:
        tree = self._databases.get(database.encode())
        if tree is None:
            raise Damage(f"it lacks its database {database}")
        return tree

    def _find(self, meta: Meta, database: str, key: bytes) -> tuple[bytes, int] | None:
        """Find the leaf node of a key: its page, and where on it."""
        tree = self._tree(database)
        if tree.root == NO_PAGE:
            return None
        number = tree.root
        for height in range(min(tree.depth, MAX_DEPTH), 0, -1):
            page = _read_page(self._descriptor, meta, number, BRANCH if height > 1 else LEAF)
            offsets = _nodes(page)
            # On a branch page the first key stands for all that are less than the second.
            position = bisect_right(offsets, key, height > 1, key=lambda at: _key(page, at)) - 1
            if height > 1:
                if not offsets:
                    break
                number = _child(page, offsets[position])
            elif position >= 0 and _key(page, offsets[position]) == key:
                return page, offsets[position]
            else:
                return None
        raise Damage(f"the tree of its database {database} has no leaves")

    def _leaves(self, meta: Meta, database: str) -> Iterator[tuple[bytes, int]]:
        """Give the leaf nodes of a database in order, but for those on damaged pages."""
        tree = self._tree(database)
        seen: set[int] = set()
        waiting = [] if tree.root == NO_PAGE else [(tree.root, min(tree.depth, MAX_DEPTH))]
        while waiting:
            number, height = waiting.pop()
            if number in seen or height < 1:
                continue
            seen.add(number)
            kind = BRANCH if height > 1 else LEAF
            try:
                page = _read_page(self._descriptor, meta, number, kind)
                offsets = _nodes(page)
            except Damage:
                continue
            if height > 1:
                waiting += [(_child(page, offset), height - 1) for offset in reversed(offsets)]
            else:
                yield from ((page, offset) for offset in offsets)

    def _value(self, meta: Meta, page: bytes, offset: int) -> bytes:
        low, high, flags, key_bytes = NODE_HEADER.unpack_from(page, offset)
        size = int(low | high << 16)
        start = offset + NODE_HEADER.size + key_bytes
        if not flags & BIG_VALUE:
            if start + size > len(page):
                raise Damage("a value lies outside of its page")
            return page[start : start + size]
        if start + PAGE_NUMBER.size > len(page):
            raise Damage("a reference to a large value is cut")
        number = int(PAGE_NUMBER.unpack_from(page, start)[0])
        if not 2 <= number <= meta.last_page:
            raise Damage(f"a large value is said to be on page {number} of {meta.last_page}")
        first = number * meta.page_size
        header = portable.pread(self._descriptor, PAGE_HEADER.size, first)
        if len(header) < PAGE_HEADER.size:
            raise Damage(f"it ends before page {number}, which is in use")
        if PAGE_HEADER.unpack(header)[:2] != (number, OVERFLOW):
            raise Damage(f"page {number} does not hold the large value that it should")
        return self._bytes(first + PAGE_HEADER.size, size)

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > os.fstat(self._descriptor).st_size:
            raise Damage(f"it ends within a value of {size} bytes")
        parts = []
        while size > 0:
            # A single call reads less than 2 GiB.
            part = portable.pread(self._descriptor, min(size, 1 << 30), offset)
            if not part:
                raise Damage("it became shorter")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)
