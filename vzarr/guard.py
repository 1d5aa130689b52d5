"""What keeps LMDB from walking into damage: its pages, read and checked before it comes to them.

LMDB trusts its pages. One wrong number in them and it reads beyond the end of the map, writes
beyond the end of a page, or goes round in circles; none of this can be caught. To check a file of
gigabytes at every opening would take seconds. So ``Guard`` checks what LMDB is about to walk: at
the opening the meta pages and the list of databases; before a key is looked up, the way from its
database's root to its leaf, once; before pages are taken from the list of free ones, that list;
before something is deleted, the whole database, because LMDB then joins pages with their
neighbours.

What is remembered is the range of keys of each leaf and each branch page that was checked. It stays
sound whoever writes to it: LMDB makes new pages from old ones, and every process looks at these
first. So only what happened to the file while nobody wrote it is looked for, and each page is
checked once an opening; on a branch page that was, the way is found as LMDB finds it. While nobody
commits, the branch pages of the way are not even read again.

The pages are read with ``pread`` from the newest state of the file, which may be newer than that
of the txn that is about to walk. That txn keeps all pages of both from being used again meanwhile.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any, TypeVar, final

from vzarr import portable
from vzarr.errors import CorruptError, StorageError
from vzarr.format import SEALED
from vzarr.lmdbfile import read_metas
from vzarr.pages import (
    FIRST_PAGE,
    NO_PAGE,
    PAGE_HEADER,
    Branch,
    Damage,
    Leaf,
    Meta,
    Tree,
    Value,
    find_child,
    free_numbers,
    read_branch,
    read_free_branch,
    read_free_leaf,
    read_leaf,
    read_records,
    read_value_pages,
    require_metas,
    require_order,
    require_tree,
    use_free_pages,
)

# Up to this size, all of a file is checked before the first write: a few milliseconds.
_SMALL_PAGES, _SMALL_ENTRIES = 128, 2048
# A list of eight names is one page; others may be in it, but not many.
_MAX_MAIN_PAGES = 1024
# As many branch pages of a state stay in memory.
_KEPT_BRANCHES = 512
# How often to look again because a commit of another process came between.
_ATTEMPTS = 50

_T = TypeVar("_T")


@final
class Table:
    """A database of LMDB, and which ranges of its keys were found to be sound.

    ``sound`` has the borders of these ranges in order: where one begins, where it ends, and so on.
    So a key is in one of them if the number of borders up to it is odd. ``branches`` has the same
    for the branch pages that are so many levels above the leaves, and ``steps`` for leaves whose
    neighbours are sound, too. ``whole`` says that also the pages of large values, and all counts,
    were looked at.
    """

    __slots__ = ("branches", "guard", "handle", "name", "sound", "steps", "whole")

    def __init__(self, name: str, handle: Any, guard: Guard | None = None) -> None:
        self.name = name
        self.handle = handle
        self.guard = guard
        if guard is not None:
            guard.tables.append(self)
        # What is new was written by LMDB itself.
        self.sound: list[bytes] = [] if guard else [b""]
        self.branches: defaultdict[int, list[bytes]] = defaultdict(list)
        self.steps: list[bytes] = []
        self.whole = guard is None

    def covers(self, key: bytes) -> bool:
        """Tell whether the leaf of a key is known to be sound."""
        return bool(bisect_right(self.sound, key) & 1)

    def covers_before(self, key: bytes | None) -> bool:
        """Tell whether the leaf with what comes before a key is, or the last one."""
        return bool((len(self.sound) if key is None else bisect_left(self.sound, key)) & 1)

    def add(self, low: bytes, high: bytes | None) -> None:
        """Note a range as sound: from a key on, up to and without another one, or to the end."""
        _add(self.sound, low, high)

    def steps_around(self, key: bytes | None) -> tuple[bytes, bytes | None] | None:
        """Give the range around a key, or the end, in which LMDB may step on; None if unknown."""
        borders = self.steps
        after = len(borders) if key is None else bisect_right(borders, key)
        if not after & 1:
            return None
        return borders[after - 1], borders[after] if after < len(borders) else None

    def add_steps(self, low: bytes, high: bytes | None) -> None:
        """Note that LMDB may step on from everywhere in a range."""
        _add(self.steps, low, high)

    def covers_branch(self, level: int, low: bytes, high: bytes | None) -> bool:
        """Tell whether the branch page for a range of keys is known to be sound."""
        borders = self.branches[level]
        first = bisect_right(borders, low)
        return bool(first & 1) and first == (
            len(borders) if high is None else bisect_left(borders, high)
        )

    def add_branch(self, level: int, low: bytes, high: bytes | None) -> None:
        """Note the branch page for a range of keys as sound."""
        _add(self.branches[level], low, high)

    def add_all(self) -> None:
        """Note that everything is sound."""
        self.add(b"", None)
        self.whole = True


def _add(borders: list[bytes], low: bytes, high: bytes | None) -> None:
    first = bisect_left(borders, low)
    after = len(borders) if high is None else bisect_right(borders, high)
    added = [] if first & 1 else [low]
    if high is not None and not after & 1:
        added.append(high)
    # One step, so that other threads see the borders before it or after it.
    borders[first:after] = added


@final
class _State:
    """One state of the file: its meta page, and the trees that it leads to."""

    __slots__ = ("branches", "free", "main", "meta", "metas", "others", "trees")

    def __init__(self, metas: tuple[bytes, bytes], meta: Meta) -> None:
        self.metas = metas
        self.meta = meta
        # The pages of the list of databases.
        self.main: list[int] = []
        self.trees: dict[str, Tree] = {}
        # Branch pages by number, which stay what they are as long as the state is the newest.
        self.branches: dict[int, bytes] = {}
        # How many pages databases have that are not ours.
        self.others = 0
        # The free pages by record, once somebody wants to know whether a page is one of them.
        self.free: list[memoryview[int]] | None = None


@final
class Guard:
    """Checks the pages of one data file ahead of LMDB, as long as LMDB has it open.

    All methods raise ``CorruptError`` for what LMDB must not see, and ``StorageError`` where the
    file cannot be read. The caller of ``require_leaf`` and what follows has a txn open, or is
    through the write gate.
    """

    __slots__ = (
        "_bytes",
        "_descriptor",
        "_free_list_is_sound",
        "_lock",
        "_names",
        "_path",
        "_state",
        "tables",
    )

    def __init__(self, path: str, descriptor: int, names: Iterable[str]) -> None:
        self.tables: list[Table] = []
        self._names = names
        self._path = path
        self._descriptor = descriptor
        self._lock = threading.RLock()
        self._state: _State | None = None
        self._free_list_is_sound = False
        self._bytes = 0

    def require_roots(self) -> None:
        """Look at the meta pages and at the list of databases. Some 0.1 ms."""
        self._check(self._look_at_number)
        self.require_length()

    def require_length(self) -> None:
        """Make sure that nobody has cut the file off: LMDB would kill the process. 0.3 µs."""
        # Looked up first: while we ask, another thread may see the file grow.
        known = self._bytes
        length = os.lseek(self._descriptor, 0, os.SEEK_END)
        if length < known:
            raise self._error(f"it was cut off to {length} bytes while it was open")
        self._bytes = length

    def require_leaf(self, table: Table, key: bytes) -> None:
        """Look at the way to the leaf of a key. O(log n), some 0.1 ms the first time."""
        if not table.covers(key):
            self._check(lambda state: self._descend(state, table, key, before=False))

    def require_leaves(self, table: Table, keys: Iterable[bytes]) -> None:
        """Look at the ways to the leaves of many keys, best in order. O(log n), some 15 µs each."""

        def look(state: _State) -> None:
            for key in unknown:
                if not table.covers(key):
                    self._descend(state, table, key, before=False)

        missing = [key for key in keys if not table.covers(key)]
        # Others wait for the lock meanwhile.
        for begin in range(0, len(missing), 64):
            unknown = missing[begin : begin + 64]
            self._check(look)

    def require_neighbours(self, table: Table, key: bytes | None) -> tuple[bytes, bytes | None]:
        """Look at the leaf of a key, or the last one, and the leaves on both sides of it.

        Gives the range of its keys: while a cursor is in there, LMDB may step in both directions.
        """
        if table.sound == [b""]:
            return b"", None
        with self._lock:
            known = table.steps_around(key)
        if known is not None:
            return known

        def look(state: _State) -> tuple[bytes, bytes | None]:
            low, high = self._descend(state, table, key, before=key is None)
            if low and not table.covers_before(low):
                self._descend(state, table, low, before=True)
            if high is not None and not table.covers(high):
                self._descend(state, table, high, before=False)
            table.add_steps(low, high)
            return low, high

        return self._check(look)

    def require_table(self, table: Table) -> None:
        """Look at all of a database; at all of the file, if it is a big one. 2 µs an entry.

        Before something is deleted: LMDB then joins pages with their neighbours, and frees as many
        pages as the first one of a large value says.
        """
        if not table.whole:
            self._check(lambda state: self._walk_one(state, table))

    def require_small(self, table: Table) -> None:
        """Look at all of a database if that takes a few milliseconds at most."""
        if not table.whole:
            self._check(lambda state: self._walk_small(state, table))

    def require_free_list(self) -> None:
        """Look at the list of free pages, before LMDB takes the first of them. O(its length).

        In a small file, also at all pages that are in use: none of them may be free as well.
        """
        if not self._free_list_is_sound:
            self._check(self._look_at_free_list)
            self._free_list_is_sound = True

    def require_everything(self) -> None:
        """Look at all pages of all databases and at the list of free pages. 2 µs an entry."""
        self._check(self._walk_all)
        self._free_list_is_sound = True

    # -- states --

    def _check(self, look: Callable[[_State], _T]) -> _T:
        """Look at the newest state; look again if what seems damaged was only being written."""
        try:
            with self._lock:
                return self._look(look)
        except OSError as error:
            # The device failed, perhaps for a moment: no reason to call the file damaged.
            raise StorageError(
                f"{self._path} cannot be read: {error.strerror}", code=error.errno
            ) from error

    def _look(self, look: Callable[[_State], _T]) -> _T:
        for _ in range(_ATTEMPTS):
            metas = read_metas(self._descriptor)
            try:
                return look(self._read_state(metas))
            except Damage as damage:
                problem = damage
            if read_metas(self._descriptor) == metas:
                break
        raise self._error(problem) from problem

    def _error(self, problem: object) -> CorruptError:
        return CorruptError(
            f"{self._path} is damaged, {problem}: restore it from a backup, or save what is whole "
            "with vzarr.recover",
            path=self._path,
        )

    def _read_state(self, metas: tuple[bytes, bytes]) -> _State:
        state = self._state
        if state is None or state.metas != metas:
            state = _State(metas, require_metas(metas))
            self._read_main(state)
            self._state = state
        return state

    def _read_main(self, state: _State) -> None:
        """Read the list of databases, which must be what they should be."""
        meta = state.meta
        require_tree(meta.main, meta.last_page)
        if meta.main.pages > _MAX_MAIN_PAGES:
            raise Damage("its list of databases is endless")
        level = [] if meta.main.root == NO_PAGE else [meta.main.root]
        for _ in range(meta.main.depth - 1):
            state.main += level
            level = [c for number in level for c in self._read_branch(meta, number).children]
            if len(level) > _MAX_MAIN_PAGES:
                raise Damage("its list of databases is endless")
        state.main += level
        found: dict[bytes, Tree] = {}
        for number in level:
            found |= read_records(self._read_page(meta, number), number)
        if (len(state.main), len(found)) != (meta.main.pages, meta.main.entries):
            raise Damage("its list of databases is not as long as it should be")
        for name in self._names:
            tree = found.get(name.encode())
            if tree is None:
                raise Damage(f"it lacks its database {name}")
            try:
                require_tree(tree, meta.last_page)
            except Damage as damage:
                raise Damage(f"its database {name}: {damage}") from damage
            state.trees[name] = tree
        state.others = sum(tree.pages for tree in found.values()) - sum(
            tree.pages for tree in state.trees.values()
        )

    # -- pages --

    def _read_page(self, meta: Meta, number: int) -> bytes:
        page, size = b"", meta.page_size
        if number <= meta.last_page:
            page = portable.pread(self._descriptor, size, number * size)
        if len(page) < size:
            raise Damage(f"it ends before page {number}, which is in use")
        return page

    def _read_branch(self, meta: Meta, number: int) -> Branch:
        return read_branch(self._read_page(meta, number), number, meta.last_page)

    def _read_leaf(self, meta: Meta, number: int, low: bytes, high: bytes | None) -> Leaf:
        leaf = read_leaf(self._read_page(meta, number), number, meta.last_page)
        require_order(leaf.keys, low, high, number)
        return leaf

    def _branch_page(self, state: _State, number: int) -> bytes:
        page = state.branches.get(number)
        if page is None:
            page = self._read_page(state.meta, number)
            if len(state.branches) < _KEPT_BRANCHES:
                state.branches[number] = page
        return page

    def _descend(
        self, state: _State, table: Table, key: bytes | None, *, before: bool
    ) -> tuple[bytes, bytes | None]:
        """Go to the leaf of a key, or of what comes before it, and note its range as sound."""
        meta, tree = state.meta, state.trees[table.name]
        low: bytes = b""
        high: bytes | None = None
        number = tree.root
        way = [number]
        if number != NO_PAGE:
            for level in range(tree.depth - 1, 0, -1):
                page = self._branch_page(state, number)
                if not table.covers_branch(level, low, high):
                    branch = read_branch(page, number, meta.last_page)
                    _require_range(branch.keys, low, high, number)
                    table.add_branch(level, low, high)
                number, least, following = find_child(page, number, key, before=before)
                low, high = least or low, following or high
                way.append(number)
            leaf = self._read_leaf(meta, number, low, high)
            if tree.depth == 1 and len(leaf.keys) != tree.entries:
                raise Damage(f"page {number} has not as many entries as its database should")
            self._require_newest(state, table, way)
        table.add(low, high)
        return low, high

    # -- whole trees --

    def _walk_one(self, state: _State, table: Table) -> None:
        tree = state.trees[table.name]
        if _is_small([tree]):
            used = bytearray(state.meta.last_page + 1)
            self._walk(state.meta, table.name, tree, used)
            self._require_newest(state, table, _taken(used))
            table.add_all()
        else:
            # In a file this big it pays to find also what two databases claim.
            self._walk_all(state)

    def _walk_small(self, state: _State, table: Table) -> None:
        if _is_small([state.trees[table.name]]):
            self._walk_one(state, table)

    def _walk_all(self, state: _State) -> None:
        meta = state.meta
        used = bytearray(meta.last_page + 1)
        used[:FIRST_PAGE] = b"\1" * FIRST_PAGE
        for number in state.main:
            _use(used, number, 1)
        for table in self.tables:
            self._walk(meta, table.name, state.trees[table.name], used)
        self._walk_free_list(meta, used)
        if used.count(0) != state.others:
            raise Damage(f"{used.count(0)} of its pages are neither in use nor free")
        for table in self.tables:
            table.add_all()

    def _walk(self, meta: Meta, name: str, tree: Tree, used: bytearray) -> None:
        """Look at all pages of a database, and compare them with what is on record of it."""
        branches = leaves = overflow = entries = 0
        waiting: list[tuple[int, int, bytes, bytes | None]] = []
        if tree.root != NO_PAGE:
            waiting.append((tree.root, tree.depth, b"", None))
        while waiting:
            number, height, low, high = waiting.pop()
            _use(used, number, 1)
            if height > 1:
                branches += 1
                keys, children = self._read_branch(meta, number)
                _require_range(keys, low, high, number)
                lows, highs = [low, *keys[1:]], [*keys[1:], high]
                waiting += zip(children, repeat(height - 1), lows, highs, strict=False)
                continue
            leaves += 1
            leaf = self._read_leaf(meta, number, low, high)
            entries += len(leaf.keys)
            for value in leaf.values:
                pages = self._require_value(meta, value)
                overflow += pages
                _use(used, value.first, pages)
        if (branches, leaves, overflow, entries) != tree[3:7]:
            raise Damage(f"its database {name} is not as long as it should be")

    def _require_value(self, meta: Meta, value: Value) -> int:
        """Look at the first page of a large value, and give the number of its pages."""
        offset = value.first * meta.page_size
        header = portable.pread(self._descriptor, PAGE_HEADER.size, offset)
        return read_value_pages(header, value, meta.last_page)

    # -- the list of free pages --

    def _look_at_free_list(self, state: _State) -> None:
        meta = state.meta
        if _is_small(state.trees.values()):
            self._walk_all(state)
            return
        used = bytearray(meta.last_page + 1)
        self._walk_free_list(meta, used)
        # No page may be forgotten: LMDB would write over it, or count on it.
        claimed = FIRST_PAGE + meta.main.pages + state.others
        claimed += sum(tree.pages for tree in state.trees.values())
        if used.count(1) + claimed != meta.last_page + 1:
            raise Damage("its pages in use and its free pages are not all of its pages")

    def _walk_free_list(self, meta: Meta, used: bytearray) -> None:
        """Look at the free pages, and at the pages of the list of them."""
        tree = meta.free
        leaves = overflow = entries = newest = 0
        for low, number in self._free_leaves(meta, used):
            leaves += 1
            page = self._read_page(meta, number)
            for txn_id, data in read_free_leaf(page, number, meta.last_page):
                entries += 1
                if not max(newest + 1, low) <= txn_id <= meta.txn_id or newest >= low > 0:
                    raise Damage("the list of free pages is not in order")
                newest, low = txn_id, 0
                if isinstance(data, Value):
                    value, (header, data) = data, self._read_value(meta, data)
                    pages = read_value_pages(header, value, meta.last_page)
                    overflow += pages
                    _use(used, value.first, pages)
                use_free_pages(used, data, meta.last_page)
        if (leaves, overflow, entries) != (tree.leaf_pages, tree.overflow_pages, tree.entries):
            raise Damage("the list of free pages is not as long as it should be")

    def _free_leaves(self, meta: Meta, used: bytearray) -> list[tuple[int, int]]:
        """List the leaves of the list of free pages, with the least number that each may have."""
        tree = meta.free
        level = [] if tree.root == NO_PAGE else [(0, tree.root)]
        branches = 0
        for height in range(tree.depth, 0, -1):
            for _, number in level:
                _use(used, number, 1)
            if height > 1:
                branches += len(level)
                level = [
                    (max(low, least), child)
                    for low, number in level
                    for least, child in read_free_branch(
                        self._read_page(meta, number), number, meta.last_page
                    )
                ]
        if branches != tree.branch_pages:
            raise Damage("the list of free pages has another shape than it should")
        return level

    def _look_at_number(self, state: _State) -> None:
        """Make sure that the state belongs to the commit of its meta page.

        Each commit but the first frees pages, and notes them under its number. So a number that
        has changed, and would make LMDB take the older state for the newer one, is found out. The
        older page may have the state of a newer commit: so LMDB undoes one that failed.
        """
        meta = state.meta
        noted = self._last_free_record(meta)
        if noted != meta.txn_id > 1:
            raise Damage(f"its newest meta page is of commit {meta.txn_id}, its pages of {noted}")

    def _last_free_record(self, meta: Meta) -> int:
        """Give the number of the newest commit that freed pages; 0 if none did."""
        number = meta.free.root
        if number == NO_PAGE:
            return 0
        for _ in range(meta.free.depth - 1):
            page = self._read_page(meta, number)
            number = read_free_branch(page, number, meta.last_page)[-1][1]
        return read_free_leaf(self._read_page(meta, number), number, meta.last_page)[-1][0]

    def _require_newest(self, state: _State, table: Table, numbers: Iterable[int]) -> None:
        """Raise ``Damage`` if pages of a tree are free: they are those of an older state then.

        Who has a digest is what it says wherever it lies. A name's older record is whole, too.
        """
        if table.name not in SEALED:
            return
        if state.free is None:
            state.free = [free_numbers(data) for data in self._free_records(state.meta)]
        for number in numbers:
            for free in state.free:
                place = bisect_left(free, number)
                if place < len(free) and free[place] == number:
                    raise Damage(f"page {number} is in use and free")

    def _free_records(self, meta: Meta) -> Iterator[bytes]:
        for _, number in self._free_leaves(meta, bytearray(meta.last_page + 1)):
            page = self._read_page(meta, number)
            for _, data in read_free_leaf(page, number, meta.last_page):
                yield self._read_value(meta, data)[1] if isinstance(data, Value) else data

    def _read_value(self, meta: Meta, value: Value) -> tuple[bytes, bytes]:
        """Read a large value: the header of its first page, and its bytes."""
        size = PAGE_HEADER.size + value.size
        data = portable.pread(self._descriptor, size, value.first * meta.page_size)
        if len(data) < size:
            raise Damage(f"it ends within the value on page {value.first}, which is in use")
        return data[: PAGE_HEADER.size], data[PAGE_HEADER.size :]


def _is_small(trees: Iterable[Tree]) -> bool:
    trees = list(trees)
    pages = sum(tree.branch_pages + tree.leaf_pages for tree in trees)
    return pages <= _SMALL_PAGES and sum(tree.entries for tree in trees) <= _SMALL_ENTRIES


def _require_range(keys: list[bytes], low: bytes, high: bytes | None, number: int) -> None:
    """Raise ``Damage`` unless the keys of a branch page lie between those of the page above."""
    if keys[1] <= low or (high is not None and keys[-1] >= high):
        raise Damage(f"the keys on page {number} are not those of its place")


def _use(used: bytearray, first: int, pages: int) -> None:
    """Note pages as used, once."""
    if used.count(1, first, first + pages):
        raise Damage(f"page {first} is used twice")
    used[first : first + pages] = b"\1" * pages


def _taken(used: bytearray) -> Iterator[int]:
    """List the pages noted as used; a hole in between costs next to nothing."""
    number = used.find(1)
    while number >= 0:
        yield number
        number = used.find(1, number + 1)
