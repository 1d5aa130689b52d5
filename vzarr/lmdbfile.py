"""Look at an LMDB data file without LMDB: is it one, is it whole, which databases does it hold.

LMDB maps a file before it has checked much of it: a truncated file kills the interpreter with
SIGBUS, and a file of another program would get a lock file beside it. So the few bytes that answer
these questions are read here with plain ``pread``, and every number in them is checked before use.

The layout (``mdb.c`` of LMDB 0.9, 64 bits, the byte order of the machine): page 0 and page 1 are
meta pages, of which the one with the higher txn id is in force; it names the root of the main
B-tree, whose leaves hold one node for each named database.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from dataclasses import dataclass
from typing import NamedTuple

from vzarr.errors import CorruptError, NotARepositoryError, NotFoundError, StorageError

__all__ = ["Probe", "probe"]

_MAGIC = 0xBEEFC0DE
_VERSION = 1
_P_BRANCH, _P_LEAF, _P_META = 0x01, 0x02, 0x08
_F_SUBDATA = 0x02
_NO_PAGE = 2**64 - 1
_PAGE_SIZES = frozenset(1 << n for n in range(8, 17))

_PAGE_HEADER = struct.Struct("=Q2xHHH")  # page number, flags, lower, upper
_NODE_HEADER = struct.Struct("=HHHH")  # low, high, flags, key size
_DATABASE_BYTES = 48
# Magic, version; the page size is where the free database keeps its padding; depth and root of the
# main database; last page, txn id.
_META = struct.Struct("=II16xI44x6xH32xQQQ")
_META_BYTES = _PAGE_HEADER.size + _META.size
# LMDB 1.0 has a page header of 24 bytes.
_MAGIC_OFFSET, _MAGIC_OFFSET_OF_1_0 = 16, 24

# A main database of eight names is one leaf; what is much bigger is no repository of ours.
_MAX_PAGES = 4096
_MAX_DEPTH = 32
# How often to look again because a commit of another process came between.
_ATTEMPTS = 200

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


class _Meta(NamedTuple):
    magic: int
    version: int
    page_size: int
    depth: int
    root: int
    last_page: int
    txn_id: int


class _Damage(Exception):  # noqa: N818 - never leaves this module
    """Why bytes make no sense; perhaps only because they were being written."""


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
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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
    start = os.pread(descriptor, _META_BYTES, 0)
    if len(start) < _META_BYTES:
        return f"is too short for a repository ({len(start)} bytes)"
    magic, version = struct.unpack_from("=II", start, _MAGIC_OFFSET)
    if magic == _MAGIC:
        return "" if version == _VERSION else f"has version {version} of LMDB's format, not 1"
    if magic == int.from_bytes(_MAGIC.to_bytes(4, "little"), "big"):
        return f"was written on a machine that is not {sys.byteorder}-endian as this one is"
    if struct.unpack_from("=I", start, _MAGIC_OFFSET_OF_1_0)[0] == _MAGIC:
        return "was written by LMDB 1.0, vzarr uses the format of LMDB 0.9"
    return "is no vzarr repository"


def _probe(descriptor: int, path: str) -> Probe:
    result: Probe | _Damage = _Damage("no part of it stays the same")
    seen = _read_metas(descriptor)
    for _ in range(_ATTEMPTS):
        try:
            result = _look(descriptor, seen)
        except _Damage as damage:
            result = damage
        # We hold no reader slot: two commits later, pages that we walked may have been written
        # again. Meta pages that are still the same prove that there was no commit at all.
        now = _read_metas(descriptor)
        if now == seen:
            break
        seen = now
    if isinstance(result, _Damage):
        raise CorruptError(
            f"{path} is damaged, {result}: restore it from a backup", path=path
        ) from result
    return result


def _read_metas(descriptor: int) -> tuple[bytes, bytes]:
    first = os.pread(descriptor, _META_BYTES, 0)
    if len(first) < _META_BYTES:
        return first, b""
    page_size = _Meta(*_META.unpack_from(first, _PAGE_HEADER.size)).page_size
    return first, os.pread(descriptor, _META_BYTES, page_size)


def _look(descriptor: int, metas: tuple[bytes, bytes]) -> Probe:
    # LMDB refuses a file unless both meta pages are sound, so that one of them is not enough.
    meta = max((_decode_meta(data) for data in metas), key=lambda found: found.txn_id)
    names = _names(descriptor, meta)
    return Probe(
        page_size=meta.page_size,
        last_page=meta.last_page,
        required_bytes=(meta.last_page + 1) * meta.page_size,
        file_bytes=os.fstat(descriptor).st_size,
        databases=frozenset(name.decode("utf-8", "backslashreplace") for name in names),
        txn_id=meta.txn_id,
    )


def _decode_meta(data: bytes) -> _Meta:
    if len(data) < _META_BYTES:
        raise _Damage("it ends within its meta pages")
    flags = _PAGE_HEADER.unpack_from(data)[1]
    meta = _Meta(*_META.unpack_from(data, _PAGE_HEADER.size))
    if not flags & _P_META or meta.magic != _MAGIC or meta.version != _VERSION:
        raise _Damage("a meta page is overwritten")
    if meta.page_size not in _PAGE_SIZES:
        raise _Damage(f"its page size is given as {meta.page_size}")
    if not 1 <= meta.last_page < 2**63 // meta.page_size:
        raise _Damage(f"its last page is given as {meta.last_page}")
    return meta


def _names(descriptor: int, meta: _Meta) -> set[bytes]:
    """Collect the names in the main B-tree, a level at a time. At most ``_MAX_PAGES`` reads."""
    names: set[bytes] = set()
    if meta.root == _NO_PAGE:
        return names
    if not 1 <= meta.depth <= _MAX_DEPTH:
        raise _Damage(f"its main tree is given {meta.depth} levels")
    level, visited = [meta.root], 0
    for height in range(meta.depth, 0, -1):
        below: list[int] = []
        for number in level:
            visited += 1
            if visited > _MAX_PAGES:
                raise _Damage("its main tree is endless")
            page = _read_page(descriptor, meta, number, _P_BRANCH if height > 1 else _P_LEAF)
            for offset in _nodes(page):
                if height > 1:
                    below.append(_child(page, offset))
                else:
                    names.update(_name(page, offset))
        level = below
    return names


def _read_page(descriptor: int, meta: _Meta, number: int, kind: int) -> bytes:
    if not 2 <= number <= meta.last_page:
        raise _Damage(f"its main tree points at page {number} of {meta.last_page}")
    page = os.pread(descriptor, meta.page_size, number * meta.page_size)
    if len(page) < meta.page_size:
        raise _Damage(f"it ends before page {number}, which is in use")
    own_number, flags, lower, upper = _PAGE_HEADER.unpack_from(page)
    if own_number != number or flags != kind:
        raise _Damage(f"page {number} is not the one that its main tree points at")
    if not _PAGE_HEADER.size <= lower <= upper <= meta.page_size or lower % 2:
        raise _Damage(f"page {number} has bounds {lower} and {upper}")
    return page


def _nodes(page: bytes) -> list[int]:
    """Give the offsets of a page's nodes, each with room for its header and key."""
    lower, upper = _PAGE_HEADER.unpack_from(page)[2:]
    count = (lower - _PAGE_HEADER.size) // 2
    offsets = list(struct.unpack_from(f"={count}H", page, _PAGE_HEADER.size))
    for offset in offsets:
        if not upper <= offset <= len(page) - _NODE_HEADER.size:
            raise _Damage("a node of its main tree lies outside its page")
        if offset + _NODE_HEADER.size + _NODE_HEADER.unpack_from(page, offset)[3] > len(page):
            raise _Damage("a name in its main tree lies outside its page")
    return offsets


def _child(page: bytes, offset: int) -> int:
    low, high, flags, _ = _NODE_HEADER.unpack_from(page, offset)
    return int(low | high << 16 | flags << 32)


def _name(page: bytes, offset: int) -> tuple[bytes, ...]:
    """Give the name of the database in a leaf node; none if the node is an ordinary value."""
    low, high, flags, key_bytes = _NODE_HEADER.unpack_from(page, offset)
    if not flags & _F_SUBDATA:
        return ()
    key = offset + _NODE_HEADER.size
    if low | high << 16 != _DATABASE_BYTES or key + key_bytes + _DATABASE_BYTES > len(page):
        raise _Damage("a database record in its main tree is cut")
    return (page[key : key + key_bytes],)
