"""A damaged file as its pages: read with plain reads, whatever the disk still gives."""

from __future__ import annotations

import os
import stat
import struct
from typing import NamedTuple, final

from vzarr import portable
from vzarr.errors import NotARepositoryError, NotFoundError, StorageError
from vzarr.pages import (
    BIG_VALUE,
    BRANCH,
    DATABASE_RECORD,
    LEAF,
    MAX_KEY_BYTES,
    META_PAGE,
    NO_PAGE,
    NODE_HEADER,
    OVERFLOW,
    PAGE_HEADER,
    PAGE_NUMBER,
)

_PAGE_SIZES = tuple(1 << n for n in range(12, 17))
_BLOCK_BYTES = 256 << 10
_SECTOR_BYTES = 512
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 20


class Place(NamedTuple):
    """Where in the file bytes are."""

    offset: int
    nbytes: int


@final
class RawFile:
    """A file of pages, open for reading."""

    def __init__(self, path: str) -> None:
        """Open it. Raises ``NotFoundError``, ``NotARepositoryError`` and ``StorageError``."""
        self.path = path
        self._bad_sectors: set[int] = set()
        self._block, self._block_number = b"", -1
        self._descriptor, self.file_bytes = _open(path)
        self.page_size = self._find_page_size()
        self.pages = -(-self.file_bytes // self.page_size)

    def close(self) -> None:
        """Close the file; can be repeated."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def unreadable(self) -> int:
        """How many bytes the system could not read."""
        return len(self._bad_sectors) * _SECTOR_BYTES

    def page(self, number: int) -> bytes:
        """Give a page; what is beyond the end of the file is zeros."""
        each = _BLOCK_BYTES // self.page_size
        if number // each != self._block_number:
            self._block_number = number // each
            self._block = self._read(self._block_number * _BLOCK_BYTES, _BLOCK_BYTES)
        start = number % each * self.page_size
        page = self._block[start : start + self.page_size]
        return page if len(page) == self.page_size else page.ljust(self.page_size, b"\0")

    def on_pages(self, first: int, nbytes: int) -> Place:
        """Give where a value is that has pages of its own."""
        return Place(first * self.page_size + PAGE_HEADER.size, nbytes)

    def pages_of(self, nbytes: int) -> int:
        """Give how many pages such a value takes."""
        return (PAGE_HEADER.size + nbytes - 1) // self.page_size + 1

    def holds(self, place: Place) -> bool:
        """Tell whether a place is within the file."""
        return place.offset + place.nbytes <= self.file_bytes

    def read(self, place: Place) -> bytes:
        """Read bytes; those that the disk does not give are zeros."""
        return self._read(place.offset, place.nbytes).ljust(place.nbytes, b"\0")

    def _find_page_size(self) -> int:
        """Find the size of pages by where they are what they say: page n begins at n times it."""
        votes = dict.fromkeys(_PAGE_SIZES, 0)
        distance = max(self.file_bytes // _SAMPLES, _SAMPLE_BYTES) // _SAMPLE_BYTES * _SAMPLE_BYTES
        for offset in range(0, self.file_bytes, distance):
            data = self._read(offset, _SAMPLE_BYTES)
            for size in _PAGE_SIZES:
                for start in range(0, len(data) - PAGE_HEADER.size, size):
                    number, flags, _, _ = PAGE_HEADER.unpack_from(data, start)
                    if number == (offset + start) // size and flags in (
                        BRANCH, LEAF, OVERFLOW, META_PAGE,
                    ):  # fmt: skip
                        votes[size] += number > 0
        return max(_PAGE_SIZES, key=votes.__getitem__)

    def _read(self, offset: int, nbytes: int) -> bytes:
        parts = []
        end = min(offset + nbytes, self.file_bytes)
        while offset < end:
            # A single call reads less than 2 GiB.
            wanted = min(end - offset, 1 << 30)
            try:
                part = portable.pread(self._descriptor, wanted, offset)
            except OSError:
                part = self._around_bad_sectors(offset, wanted)
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _around_bad_sectors(self, offset: int, nbytes: int) -> bytes:
        """Read what can be read, sector by sector, and zeros for the rest."""
        parts = []
        start, end = offset, offset + nbytes
        while start < end:
            length = min(_SECTOR_BYTES - start % _SECTOR_BYTES, end - start)
            try:
                parts.append(portable.pread(self._descriptor, length, start).ljust(length, b"\0"))
            except OSError:
                self._bad_sectors.add(start // _SECTOR_BYTES)
                parts.append(bytes(length))
            start += length
        return b"".join(parts)


# ── nodes ─────────────────────────────────────────────────────────────────────────────────────────


def starts_of(page: bytes, lower: int) -> tuple[int, ...]:
    """Give where the nodes of a page are said to begin."""
    number = (min(lower, len(page)) - PAGE_HEADER.size) // 2
    if number <= 0:
        return ()
    return struct.unpack_from(f"={number}H", page, PAGE_HEADER.size)


def node_at(page: bytes, start: int) -> tuple[int, bytes, bytes, int] | None:
    """Give flags, key, value and length of the value of a node of a leaf, if it is on its page.

    The value of one that has pages of its own is the number of the first of them.
    """
    if not PAGE_HEADER.size <= start <= len(page) - NODE_HEADER.size:
        return None
    low, high, flags, key_bytes = NODE_HEADER.unpack_from(page, start)
    size = low | high << 16
    middle = start + NODE_HEADER.size + key_bytes
    end = middle + (PAGE_NUMBER.size if flags == BIG_VALUE else size)
    if end > len(page) or not 0 < key_bytes <= MAX_KEY_BYTES:
        return None
    if flags not in (0, BIG_VALUE, DATABASE_RECORD):
        return None
    return flags, page[start + NODE_HEADER.size : middle], page[middle:end], size


def child_at(page: bytes, start: int) -> int:
    """Give the page that a node of a branch points at; ``NO_PAGE`` if it is not on its page."""
    if not PAGE_HEADER.size <= start <= len(page) - NODE_HEADER.size:
        return NO_PAGE
    low, high, highest, _ = NODE_HEADER.unpack_from(page, start)
    return int(low | high << 16 | highest << 32)


# ── opening ───────────────────────────────────────────────────────────────────────────────────────


def _open(path: str) -> tuple[int, int]:
    try:
        # Without O_NONBLOCK, a named pipe would make us wait for a writer.
        descriptor = portable.open_file(path, os.O_RDONLY | portable.CLOEXEC | portable.NONBLOCK)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}: check the path", name=path) from error
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror}", code=error.errno) from error
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        os.close(descriptor)
        raise StorageError(f"cannot look at {path}: {error.strerror}", code=error.errno) from error
    if stat.S_ISREG(status.st_mode) and status.st_size:
        return descriptor, status.st_size
    os.close(descriptor)
    what = "an empty file" if stat.S_ISREG(status.st_mode) else "no regular file"
    raise NotARepositoryError(
        f"{path} is {what}: give the path of a file that was a repository", path=path
    )
