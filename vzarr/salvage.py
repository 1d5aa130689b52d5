"""What is whole in a damaged file: each page by itself, each object known by its digest.

The trees of LMDB may be gone, so nothing is looked for through them. All pages are read in the
order of the file, whatever they are a part of now or once were: nodes of leaf pages, with the
overflow pages that they point at; then what lies on overflow pages to which nothing points any
more; and where a page makes no sense, whatever on it looks like a node. Bytes that have the digest
which is their key are that object, wherever they were found.

Of records that have names, an old page may hold an old state. So it is told apart what the trees
lead to, where they still do (``listing``), and what was found anywhere (``records``).

It is never believed how long anything is: all is within the file, each page is looked at once, and
what is hashed is bounded by a multiple of the file's size.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import final

import numpy as np
from numpy.typing import NDArray

from vzarr.errors import CorruptError
from vzarr.format import (
    DIGEST_BYTES,
    EMPTY_ENTRY,
    Digest,
    chunk_digest,
    chunk_digests,
    commit_digest,
    decode_commit,
    decode_entry,
    encode_entry,
    entry_digest,
    node_digest,
    record_bytes,
    unseal,
)
from vzarr.node import decode_node
from vzarr.pages import (
    BIG_VALUE,
    BRANCH,
    DATABASE_RECORD,
    FIRST_PAGE,
    LEAF,
    MAX_DEPTH,
    META_BYTES,
    META_PAGE,
    NO_PAGE,
    NODE_HEADER,
    OVERFLOW,
    PAGE_HEADER,
    PAGE_NUMBER,
    TREE,
    Damage,
    Meta,
    Tree,
    read_meta,
)
from vzarr.rawfile import Place, RawFile, child_at, node_at, starts_of

Step = Callable[[int], None]
"""Is told how many more bytes of the file were looked at."""

_HASHED: dict[str, Callable[[bytes], Digest]] = {
    "chunks": chunk_digest,
    "nodes": node_digest,
    "roots": entry_digest,
    "commits": commit_digest,
}
# The database of nodes holds the root entries of snapshots, too.
_KINDS = {"chunks": ("chunks",), "nodes": ("nodes", "roots"), "commits": ("commits",)}
_DECODED: dict[str, Callable[[bytes], object]] = {
    "nodes": decode_node,
    "commits": decode_commit,
    "roots": decode_entry,
}
# An empty snapshot needs no bytes from anywhere.
_KNOWN: dict[bytes, bytes] = {entry_digest(encode_entry(EMPTY_ENTRY)): encode_entry(EMPTY_ENTRY)}
_NAMED = ("reflog", "branches", "tags", "sessions", "meta")
# How MessagePack begins an array of five or six: root entries; nodes and commits.
_BEGINNINGS = frozenset((b"\x95", b"\x96"))

_OVERFLOW_PAGES = struct.Struct("=I")
# What overflow pages that overlap, or to which many nodes point, may cost, in sizes of the file.
_MOST_HASHED = 8
# Larger ones are no nodes or commits.
_LARGEST_RECORD = 64 << 20


@final
@dataclass(frozen=True, slots=True)
class Listing:
    """The records of a database that its tree leads to."""

    records: Mapping[bytes, bytes]
    entries: int | None
    """How many there should be; None where even that is lost."""

    @property
    def whole(self) -> bool:
        """Whether these are all."""
        return len(self.records) == self.entries


@final
@dataclass(slots=True)
class _Found:
    """What a look at pages has found that is still to be followed."""

    claims: dict[int, set[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(set))
    """By the first of its pages: the length and key of a value that nodes say is there."""
    runs: list[tuple[int, int]] = field(default_factory=list)
    """The first and the number of overflow pages, as their headers say."""


@final
class Salvage:
    """All that is whole in a file, with the interface of what a check reads. Changes nothing.

    After ``search``, objects are found by digest. Memory: about 250 bytes for each object in the
    file, and a byte a page.
    """

    def __init__(self, path: str) -> None:
        """Open a file. Raises ``NotFoundError``, ``NotARepositoryError`` and ``StorageError``."""
        self.path = path
        self._file = RawFile(path)
        self.file_bytes = self._file.file_bytes
        self._page_size, self._pages = self._file.page_size, self._file.pages
        self._blank = bytes(self._page_size)
        self._seen = bytearray(self._pages)
        # First page and number of pages of the values that were found where they should be.
        self._verified: dict[int, int] = {}
        self._runs: dict[int, int] = {}
        self._doubtful: list[int] = []
        self._looked_for: set[bytes] = set()
        self._described: set[int] = set()
        self._hashable = _MOST_HASHED * max(self.file_bytes, 1 << 20)
        self._objects: dict[str, dict[bytes, Place]] = {kind: {} for kind in _HASHED}
        # Bytes by what their digests are, without a key to prove that they are what they were: good
        # for what is asked for by its digest, but nobody must come across them otherwise.
        self._unproven: dict[str, dict[bytes, Place]] = {kind: {} for kind in _HASHED}
        self.records: dict[str, dict[bytes, dict[bytes, None]]] = {name: {} for name in _NAMED}
        """By database and key, every whole value that any page holds; sealed ones, unsealed."""

    def close(self) -> None:
        """Close the file; can be repeated."""
        self._file.close()

    # ── what was found ───────────────────────────────────────────────────────────────────────────

    def read(self) -> nullcontext[Salvage]:
        """Give itself, as ``Environment.read`` gives a txn."""
        return nullcontext(self)

    def get(self, database: str, key: bytes) -> bytes | None:
        """Give an object. Raises ``CorruptError`` if its bytes are not what they were a moment ago.

        One read of the file, and a hash.
        """
        for kind in _KINDS[database]:
            place = self._place(kind, key)
            if place is not None:
                data = self._file.read(place)
                if _HASHED[kind](data) != key:
                    raise CorruptError(
                        f"{self.path} changes while it is read: close all that have it open, and "
                        "try again",
                        path=self.path,
                    )
                return data
        return _KNOWN.get(key)

    def view(self, database: str, key: bytes) -> bytes | None:
        """Give an object, as ``get``."""
        return self.get(database, key)

    def contains(self, database: str, key: bytes) -> bool:
        """Tell whether an object was found. O(1)."""
        return key in _KNOWN or any(self._place(kind, key) for kind in _KINDS[database])

    def _place(self, kind: str, key: bytes) -> Place | None:
        return self._objects[kind].get(key) or self._unproven[kind].get(key)

    def count(self, database: str) -> int:
        """Give how many objects were found. O(1)."""
        return sum(len(self._objects[kind]) for kind in _KINDS[database])

    def scan(
        self, database: str, *, start: bytes = b"", keys_only: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the objects from a digest on, or records from a key on, in order. O(n log n)."""
        if database in self.records:
            # Of several, the one that was met first.
            for key, found in sorted(self.records[database].items()):
                if key >= start:
                    yield key, b"" if keys_only else next(iter(found))
            return
        keys = {key for kind in _KINDS[database] for key in self._objects[kind] if key >= start}
        for key in sorted(keys):
            yield key, b"" if keys_only else self.get(database, key) or b""

    def nbytes(self, chunk: bytes) -> int | None:
        """Give the length of a chunk that was found. O(1)."""
        place = self._place("chunks", chunk)
        return None if place is None else place.nbytes

    @property
    def unreadable(self) -> int:
        """How many bytes the system could not read."""
        return self._file.unreadable

    @property
    def is_ours(self) -> bool:
        """Whether anything was found that only a repository holds."""
        named = any(self.records.values())
        return named or any(self._objects[kind] for kind in ("nodes", "roots", "commits"))

    # ── looking at all pages ─────────────────────────────────────────────────────────────────────

    def search(self, step: Step) -> None:
        """Look at every page of the file. O(file): 2 µs a page, 3 µs a node, and the hashes."""
        waiting = [(0, self._pages)]
        while waiting:
            found = _Found()
            for start, stop in waiting:
                self._look(start, stop, found, step)
            self._settle(found.claims)
            # What began as overflow pages was skipped whole. Where no value proves that it is so,
            # its header may be wrong, or old, and other pages are to be found in there.
            waiting = []
            for first, pages in found.runs:
                proven = self._verified.get(first, 1)
                self._runs[first] = max(self._runs.get(first, 0), pages)
                waiting.append((first + proven, first + pages))

    def _look(self, start: int, stop: int, found: _Found, step: Step) -> None:
        number = self._seen.find(0, start, stop)
        while number >= 0:
            self._seen[number] = 1
            pages = self._page(number, found)
            step(pages * self._page_size)
            number = self._seen.find(0, number + pages, stop)

    def _page(self, number: int, found: _Found) -> int:
        """Look at one page; give how many belong to it."""
        page = self._file.page(number)
        own_number, flags, lower, _ = PAGE_HEADER.unpack_from(page)
        if own_number == number and flags == OVERFLOW:
            pages = int(_OVERFLOW_PAGES.unpack_from(page, PAGE_HEADER.size - 4)[0])
            pages = min(max(pages, 1), self._pages - number)
            found.runs.append((number, pages))
            return pages
        if flags == LEAF and self._leaf(number, page, lower, found):
            return 1
        if page != self._blank:
            self._carve(number, page, found)
            if own_number != number or flags not in (BRANCH, META_PAGE):
                self._doubtful.append(number)
        return 1

    def _leaf(self, number: int, page: bytes, lower: int, found: _Found) -> bool:
        """Look at the nodes of a leaf page; tell whether all of them are whole."""
        starts = starts_of(page, lower)
        # All nodes are to be looked at, also behind one that is damaged.
        whole = [self._node(number, page, start, found) for start in starts]
        return bool(whole) and all(whole)

    def _carve(self, number: int, page: bytes, found: _Found) -> None:
        """Look for nodes of objects wherever one may begin: flags 0 or 1, a key of 32 bytes."""
        at = page.find(b"\0\x20\0", PAGE_HEADER.size)
        while at >= 0:
            start = at - 5
            if start % 2 == 0 and page[start + 4] <= BIG_VALUE:
                self._node(number, page, start, found)
            at = page.find(b"\0\x20\0", at + 1)

    def _node(self, number: int, page: bytes, start: int, found: _Found) -> bool:
        """Look at a node: note an object or a record, or where one is; tell whether it is whole."""
        node = node_at(page, start)
        if node is None:
            return False
        flags, key, data, size = node
        if flags == DATABASE_RECORD:
            return True
        if flags == BIG_VALUE:
            first = int(PAGE_NUMBER.unpack(data)[0])
            end = first * self._page_size + PAGE_HEADER.size + size
            if first < FIRST_PAGE or end > self.file_bytes:
                return False
            found.claims[first].add((size, key))
            return True
        place = Place(number * self._page_size + start + NODE_HEADER.size + len(key), size)
        if place.offset + size > self.file_bytes:
            return False
        if len(key) == DIGEST_BYTES:
            for kind, hashed in _HASHED.items():
                if hashed(data) == key:
                    self._objects[kind].setdefault(key, place)
                    return True
        if self._record(key, data):
            return True
        if len(key) == DIGEST_BYTES:
            # It may be the key that is damaged.
            for kind, hashed in _HASHED.items():
                self._unproven[kind].setdefault(hashed(data), place)
        return False

    def _record(self, key: bytes, data: bytes) -> bool:
        """Note a record that has a name, if its seal is whole."""
        for database in _NAMED:
            try:
                record = unseal(database, key, data)
            except CorruptError:
                continue
            self.records[database].setdefault(key, {})[record] = None
            return True
        return False

    def _settle(self, claims: Mapping[int, set[tuple[int, bytes]]]) -> None:
        """Look whether the values that have pages of their own are what nodes say."""
        for first in sorted(claims):
            wanted = {(size, key) for size, key in claims[first] if len(key) == DIGEST_BYTES}
            self._overflow(first, wanted)
            for size, key in claims[first] - wanted:
                if size <= _LARGEST_RECORD and self._may_hash(size):
                    self._record(key, self._file.read(self._file.on_pages(first, size)))

    def _overflow(self, first: int, wanted: set[tuple[int, bytes]]) -> None:
        """Note those of the objects that begin on a page."""
        longest = max((size for size, _ in wanted), default=0)
        if not wanted or not self._may_hash(longest):
            return
        data = self._file.read(self._file.on_pages(first, longest))
        sizes = sorted({size for size, _ in wanted})
        digests = dict(zip(sizes, chunk_digests(data, sizes), strict=True))
        for size, key in wanted:
            kind = "chunks"
            if digests[size] != key:
                kind = _kind_of(key, data[:size]) if data[:1] in _BEGINNINGS else ""
            if kind:
                self._objects[kind].setdefault(key, self._file.on_pages(first, size))
                pages = self._file.pages_of(size)
                self._verified[first] = max(pages, self._verified.get(first, 0))

    def _may_hash(self, nbytes: int) -> bool:
        self._hashable -= nbytes
        return self._hashable >= 0

    # ── looking for what is missing ──────────────────────────────────────────────────────────────

    def look_for(self, chunks: Mapping[bytes, int], others: Iterable[bytes]) -> bool:
        """Look for objects to which no page leads; tell whether any was found.

        Chunks are given with their lengths; commits, nodes and roots tell theirs. They may lie on
        overflow pages to which nothing points, or on a page in disorder.
        """
        missing = set(others)
        before = self._known()
        self._unclaimed(chunks)
        beginnings = b"".join(key[:8] for key in (*chunks, *missing))
        wanted = np.unique(np.frombuffer(beginnings, "=u8"))
        for number in self._doubtful if len(wanted) else ():
            page = self._file.page(number)
            for start in _where(page, wanted):
                key = page[start : start + DIGEST_BYTES]
                if key in chunks:
                    self._try(number, page, start, key, chunks[key])
                elif key in missing:
                    self._try(number, page, start, key, None)
        return self._known() > before

    def _known(self) -> int:
        found = (*self._objects.values(), *self._unproven.values())
        return sum(map(len, found))

    def _try(self, number: int, page: bytes, start: int, key: bytes, size: int | None) -> None:
        """See whether an object follows its key."""
        data = page[start + DIGEST_BYTES :]
        if size is None:
            size = record_bytes(data)
        if size is None or size > len(data):
            return
        kind = _kind_of(key, data[:size])
        place = Place(number * self._page_size + start + DIGEST_BYTES, size)
        if kind and place.offset + size <= self.file_bytes:
            self._objects[kind].setdefault(key, place)

    def _unclaimed(self, chunks: Mapping[bytes, int]) -> None:
        """See what lies on overflow pages to which no node points."""
        by_pages: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for key in chunks.keys() - self._looked_for:
            size = chunks[key]
            by_pages[self._file.pages_of(size)].append((size, key))
        self._looked_for |= chunks.keys()
        for first, pages in self._runs.items():
            if self._verified.get(first) == pages:
                continue
            room = self.file_bytes - self._file.on_pages(first, 0).offset
            room = min(pages * self._page_size - PAGE_HEADER.size, room)
            self._overflow(first, {(size, key) for size, key in by_pages[pages] if size <= room})
            if first not in self._verified and first not in self._described:
                self._described.add(first)
                self._describes_itself(first, min(room, _LARGEST_RECORD))

    def _describes_itself(self, first: int, room: int) -> None:
        """Note what overflow pages hold if it is a node, a root or a commit."""
        beginning = self._file.read(self._file.on_pages(first, min(room, 1)))
        if beginning not in _BEGINNINGS or not self._may_hash(room):
            return
        data = self._file.read(self._file.on_pages(first, room))
        size = record_bytes(data)
        for kind, decode in _DECODED.items() if size is not None else ():
            try:
                decode(data[:size])
            except CorruptError:
                continue
            place = self._file.on_pages(first, len(data[:size]))
            self._unproven[kind].setdefault(_HASHED[kind](data[:size]), place)

    # ── what the trees lead to ───────────────────────────────────────────────────────────────────

    def metas(self) -> list[Meta]:
        """Give the meta pages that are whole, the newest first."""
        found = []
        for number in (0, 1):
            with suppress(Damage):
                found.append(
                    read_meta(self._file.read(Place(number * self._page_size, META_BYTES)))
                )
        return sorted(found, key=lambda meta: -meta.txn_id)

    def listing(self, meta: Meta, database: str) -> Listing:
        """List what a database holds by a meta page; without what damaged pages hold. O(n)."""
        trees: dict[bytes, Tree] = {}
        for flags, key, data, _ in self._leaves(meta.main.root, meta.main.depth):
            if flags == DATABASE_RECORD and len(data) == TREE.size:
                trees[key] = Tree(*TREE.unpack(data))
        tree = trees.get(database.encode())
        if tree is None:
            return Listing({}, None)
        records = {}
        for flags, key, data, size in self._leaves(tree.root, tree.depth):
            if flags == BIG_VALUE:
                place = self._file.on_pages(int(PAGE_NUMBER.unpack(data)[0]), size)
                if size > _LARGEST_RECORD or place.offset + size > self.file_bytes:
                    continue
                data = self._file.read(place)
            try:
                records[key] = unseal(database, key, data)
            except CorruptError:
                continue
        return Listing(records, tree.entries)

    def _leaves(self, root: int, depth: int) -> Iterator[tuple[int, bytes, bytes, int]]:
        """Give the nodes on the leaves of a tree, but for those on damaged pages."""
        waiting = [] if root == NO_PAGE else [(root, min(depth, MAX_DEPTH))]
        seen: set[int] = set()
        while waiting:
            number, height = waiting.pop()
            if number in seen or height < 1 or not FIRST_PAGE <= number < self._pages:
                continue
            seen.add(number)
            page = self._file.page(number)
            own_number, flags, lower, _ = PAGE_HEADER.unpack_from(page)
            if own_number != number or flags != (BRANCH if height > 1 else LEAF):
                continue
            starts = starts_of(page, lower)
            if height > 1:
                waiting += [(child_at(page, start), height - 1) for start in reversed(starts)]
                continue
            nodes = (node_at(page, start) for start in starts)
            yield from (node for node in nodes if node is not None)


def _where(page: bytes, wanted: NDArray[np.uint64]) -> list[int]:
    """Give where on a page a key may begin: at even places, by its first eight bytes."""
    found: list[int] = []
    for shift in range(0, 8, 2):
        here = np.frombuffer(page, "=u8", (len(page) - shift) // 8, shift)
        places = np.minimum(np.searchsorted(wanted, here), len(wanted) - 1)
        found += (np.flatnonzero(wanted[places] == here) * 8 + shift).tolist()
    return found


def _kind_of(key: bytes, data: bytes) -> str:
    """Tell what bytes are whose digest, as one kind of object, is the key; else nothing."""
    return next((kind for kind, hashed in _HASHED.items() if hashed(data) == key), "")
