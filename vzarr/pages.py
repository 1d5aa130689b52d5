"""The pages of an LMDB data file: their layout, and whether one is as LMDB would have written it.

The layout is that of ``mdb.c`` of LMDB 0.9, 64 bits, the byte order of the machine. A page begins
with a header; behind it lie the offsets of its nodes in the order of their keys, and the nodes fill
the end of the page without a gap. On a branch page a node is a key and the number of a child page,
on a leaf page a key and a value, or the number of the first of the overflow pages that hold it.

What these functions accept, LMDB can search, change, split and join without leaving the page. They
take 1 µs a node.
"""

from __future__ import annotations

import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from itertools import islice
from operator import gt, lt
from typing import NamedTuple

BRANCH, LEAF, OVERFLOW, META_PAGE = 0x01, 0x02, 0x04, 0x08
"""The kinds of page, as their headers give them."""
BIG_VALUE, DATABASE_RECORD = 0x01, 0x02
"""The kinds of leaf node whose value is not just bytes."""
NO_PAGE = 2**64 - 1
"""The root of an empty database."""
FIRST_PAGE = 2
"""The two meta pages come before it."""
MAX_DEPTH = 32
"""LMDB's cursors go no deeper."""
MAX_KEY_BYTES = 511

PAGE_HEADER = struct.Struct("=Q2xHHH")  # page number, flags, lower, upper
NODE_HEADER = struct.Struct("=HHHH")  # low, high, flags, key size
PAGE_NUMBER = struct.Struct("=Q")
# Padding, flags, depth; branch, leaf and overflow pages; number of entries; root.
TREE = struct.Struct("=IHHQQQQQ")
# Page number, flags, and how many pages hold a value.
_OVERFLOW_HEADER = struct.Struct("=Q2xHI")
META_MAGIC, META_VERSION = 0xBEEFC0DE, 1
_META_HEAD = struct.Struct("=II16x")  # magic, version
_META_TAIL = struct.Struct("=QQ")  # last page, txn id
META_BYTES = PAGE_HEADER.size + _META_HEAD.size + 2 * TREE.size + _META_TAIL.size
PAGE_SIZES = frozenset(1 << n for n in range(8, 17))

# Flags of the list of free pages: its keys are numbers, and the environment is a single file.
_INTEGER_KEYS, _SINGLE_FILE = 0x08, 0x4000


class Damage(Exception):  # noqa: N818 - never leaves the modules that read pages
    """Why bytes make no sense; perhaps only because they were being written."""


class Tree(NamedTuple):
    """What LMDB has on record of a database."""

    padding: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int

    @property
    def pages(self) -> int:
        """How many pages it fills."""
        return self.branch_pages + self.leaf_pages + self.overflow_pages


class Meta(NamedTuple):
    """A meta page: where the state of one commit is."""

    magic: int
    version: int
    free: Tree
    main: Tree
    last_page: int
    txn_id: int

    @property
    def page_size(self) -> int:
        """Bytes of a page: kept where the list of free pages would have its padding."""
        return self.free.padding


class Value(NamedTuple):
    """Where a value is that has pages of its own."""

    first: int
    pages: int
    size: int


class Branch(NamedTuple):
    """A branch page: keys of its children, of which the first stands for all that are less."""

    keys: list[bytes]
    children: list[int]


class Leaf(NamedTuple):
    """A leaf page: its keys, and the values that have pages of their own."""

    keys: list[bytes]
    values: list[Value]


def page_size_of(data: bytes) -> int:
    """Give the page size that a meta page of full length claims."""
    at = PAGE_HEADER.size + _META_HEAD.size
    return Tree(*TREE.unpack_from(data, at)).padding


def read_meta(data: bytes) -> Meta:
    """Read a meta page. Raises ``Damage`` where it is none, or names impossible sizes."""
    if len(data) < META_BYTES:
        raise Damage("it ends within its meta pages")
    flags = PAGE_HEADER.unpack_from(data)[1]
    at = PAGE_HEADER.size
    magic, version = _META_HEAD.unpack_from(data, at)
    at += _META_HEAD.size
    free, main = Tree(*TREE.unpack_from(data, at)), Tree(*TREE.unpack_from(data, at + TREE.size))
    last_page, txn_id = _META_TAIL.unpack_from(data, at + 2 * TREE.size)
    meta = Meta(magic, version, free, main, last_page, txn_id)
    if not flags & META_PAGE or (meta.magic, meta.version) != (META_MAGIC, META_VERSION):
        raise Damage("a meta page is overwritten")
    if meta.page_size not in PAGE_SIZES:
        raise Damage(f"its page size is given as {meta.page_size}")
    if not 1 <= meta.last_page < 2**63 // meta.page_size:
        raise Damage(f"its last page is given as {meta.last_page}")
    return meta


def require_metas(pages: tuple[bytes, bytes]) -> Meta:
    """Read both meta pages as strictly as LMDB writes them, and give the newer one.

    Commits take turns at them. So their numbers follow each other, and a page that is not as new
    as it should be, which would bring back the state of long ago, is found out.
    """
    metas = [read_meta(page) for page in pages]
    for number, (page, meta) in enumerate(zip(pages, metas, strict=True)):
        own_number, flags = PAGE_HEADER.unpack_from(page)[:2]
        if own_number != number or flags != META_PAGE:
            raise Damage(f"meta page {number} is not the one that it should be")
        if meta.txn_id and meta.txn_id % 2 != number:
            raise Damage(f"meta page {number} has the number of the other one")
    first, second = metas
    if first.page_size != second.page_size:
        raise Damage("its meta pages disagree")
    if abs(first.txn_id - second.txn_id) != 1 and (first.txn_id or second.txn_id):
        raise Damage(f"its meta pages are of commits {first.txn_id} and {second.txn_id}")
    newest = max(metas, key=lambda meta: meta.txn_id)
    if newest.free.flags & ~_SINGLE_FILE != _INTEGER_KEYS:
        raise Damage("its list of free pages is of another kind")
    try:
        require_tree(newest.free._replace(padding=0, flags=0), newest.last_page)
        require_tree(newest.main, newest.last_page)
    except Damage as damage:
        raise Damage(f"its newest meta page: {damage}") from damage
    return newest


def require_tree(tree: Tree, last_page: int) -> None:
    """Raise ``Damage`` unless a record is possible: of a database without flags."""
    if tree.flags or tree.padding:
        raise Damage("it is of another kind")
    if tree.root == NO_PAGE:
        if any(tree[2:-1]):
            raise Damage("it is said to be empty and to hold entries")
        return
    if not FIRST_PAGE <= tree.root <= last_page:
        raise Damage(f"its root is said to be page {tree.root} of {last_page}")
    single = tree.depth == 1
    if not 1 <= tree.depth <= MAX_DEPTH or single != (tree.leaf_pages == 1):
        raise Damage(f"it is given {tree.depth} levels and {tree.leaf_pages} leaves")
    if single != (not tree.branch_pages) or not 1 <= tree.leaf_pages <= tree.entries:
        raise Damage(f"it is given {tree.entries} entries on {tree.leaf_pages} leaves")
    if tree.branch_pages > tree.leaf_pages or tree.pages >= last_page:
        raise Damage(f"it is given {tree.pages} pages")


def read_branch(page: bytes, number: int, last_page: int) -> Branch:
    """Read a branch page, whose keys must be in order. Raises ``Damage``."""
    branch = _branch(page, number, last_page)
    if len(branch.keys) < 2:
        raise Damage(f"page {number} has too few children")
    keys = branch.keys
    if not all(map(lt, keys, islice(keys, 1, None))) or len(max(keys, key=len)) > MAX_KEY_BYTES:
        raise Damage(f"the keys on page {number} are not in order")
    return branch


def _branch(page: bytes, number: int, last_page: int) -> Branch:
    starts, end = _bounds(page, number, BRANCH)
    keys, children, edges = [], [], [end]
    for start in starts:
        low, high, highest, key_bytes = NODE_HEADER.unpack_from(page, start)
        finish = start + 8 + key_bytes
        keys.append(page[start + 8 : finish])
        children.append(low | high << 16 | highest << 32)
        edges.append(finish + (finish & 1))
    _require_tiles(page, number, starts, edges)
    keys[0] = b""
    if min(children) < FIRST_PAGE or max(children) > last_page:
        raise Damage(f"page {number} points beyond the last page")
    return Branch(keys, children)


def find_child(
    page: bytes, number: int, key: bytes | None, *, before: bool
) -> tuple[int, bytes, bytes | None]:
    """Find the child for a key on a branch page that was read before: O(log n), not O(n).

    Also gives the keys on the page that the child's lie between; empty and None where these are for
    the pages above to tell. With ``before`` it is the child for what comes before the key, and for
    None the last one. Raises ``Damage`` where this is no branch page.
    """
    own_number, flags, lower, _ = PAGE_HEADER.unpack_from(page)
    words = memoryview(page).cast("H")
    starts = words[PAGE_HEADER.size // 2 : lower // 2]
    if own_number != number or flags != BRANCH or not starts:
        raise Damage(f"page {number} is not the one that it should be")

    def key_at(start: int) -> bytes:
        return page[start + 8 : start + 8 + words[start // 2 + 3]]

    try:
        place = len(starts)
        if key is not None:
            place = (bisect_left if before else bisect_right)(starts, key, 1, key=key_at)
        low, high, highest, _ = NODE_HEADER.unpack_from(page, starts[place - 1])
        return (
            low | high << 16 | highest << 32,
            key_at(starts[place - 1]) if place > 1 else b"",
            key_at(starts[place]) if place < len(starts) else None,
        )
    except (IndexError, struct.error):
        raise Damage(f"a node of page {number} lies outside of it") from None


def read_leaf(page: bytes, number: int, last_page: int) -> Leaf:
    """Read a leaf page of plain values. Raises ``Damage``; the keys' order is not looked at."""
    starts, end = _bounds(page, number, LEAF)
    keys, values, edges = [], [], [end]
    for start in starts:
        low, high, flags, key_bytes = NODE_HEADER.unpack_from(page, start)
        middle = start + 8 + key_bytes
        keys.append(page[start + 8 : middle])
        size = low | high << 16
        if not flags:
            middle += size
        elif flags == BIG_VALUE and middle + 8 <= len(page):
            values.append(_value(page, number, middle, size, last_page))
            middle += 8
        else:
            raise Damage(f"page {number} has a value of an unknown kind")
        edges.append(middle + (middle & 1))
    _require_tiles(page, number, starts, edges)
    return Leaf(keys, values)


def read_records(page: bytes, number: int) -> dict[bytes, Tree]:
    """Read a leaf page of the list of databases. Raises ``Damage``."""
    starts, end = _bounds(page, number, LEAF)
    keys, edges, found = [], [end], {}
    for start in starts:
        low, high, flags, key_bytes = NODE_HEADER.unpack_from(page, start)
        middle = start + 8 + key_bytes
        keys.append(page[start + 8 : middle])
        finish = middle + (low | high << 16)
        edges.append(finish + (finish & 1))
        if flags & DATABASE_RECORD:
            if flags != DATABASE_RECORD or finish - middle != TREE.size or finish > len(page):
                raise Damage(f"page {number} has a database record that is cut")
            found[keys[-1]] = Tree(*TREE.unpack_from(page, middle))
        elif flags:
            raise Damage(f"page {number} has a value of an unknown kind")
    _require_tiles(page, number, starts, edges)
    require_order(keys, b"", None, number)
    return found


def require_order(keys: list[bytes], low: bytes, high: bytes | None, number: int) -> None:
    """Raise ``Damage`` unless keys ascend, and lie between those of the page above."""
    if (
        not all(map(lt, keys, islice(keys, 1, None)))
        or keys[0] < low
        or (high is not None and keys[-1] >= high)
    ):
        raise Damage(f"the keys on page {number} are not in order")
    if not all(map(MAX_KEY_BYTES.__ge__, map(len, keys))):
        raise Damage(f"page {number} has a key that is too long")


def read_value_pages(header: bytes, value: Value, last_page: int) -> int:
    """Read how many pages a large value has, from the header of the first. Raises ``Damage``.

    They may be more than it needs, if a txn wrote it twice and the second time shorter.
    """
    if len(header) < _OVERFLOW_HEADER.size:
        raise Damage(f"it ends before page {value.first}, which is in use")
    number, flags, pages = _OVERFLOW_HEADER.unpack(header)
    known = number == value.first and flags == OVERFLOW
    if not known or not value.pages <= pages <= last_page + 1 - number:
        raise Damage(f"page {value.first} does not hold the large value that it should")
    return int(pages)


def _bounds(page: bytes, number: int, kind: int) -> tuple[tuple[int, ...], int]:
    """Give the offsets of a page's nodes, and where the first of them in the page begins."""
    own_number, flags, lower, upper = PAGE_HEADER.unpack_from(page)
    if own_number != number or flags != kind:
        raise Damage(f"page {number} is not the one that it should be")
    size = len(page)
    if not PAGE_HEADER.size < lower <= upper <= size - NODE_HEADER.size or (lower | upper) & 1:
        raise Damage(f"page {number} has bounds {lower} and {upper}")
    starts = struct.unpack_from(f"={(lower - PAGE_HEADER.size) // 2}H", page, PAGE_HEADER.size)
    if min(starts) < upper or max(starts) > size - NODE_HEADER.size:
        raise Damage(f"a node of page {number} lies outside of it")
    return starts, upper


def _require_tiles(page: bytes, number: int, starts: tuple[int, ...], edges: list[int]) -> None:
    """Raise ``Damage`` unless each node begins where another ends, up to the end of the page."""
    edges.sort()
    if edges != sorted((*starts, len(page))):
        raise Damage(f"the nodes on page {number} overlap, or leave a gap")


def _value(page: bytes, number: int, start: int, size: int, last_page: int) -> Value:
    first = int(PAGE_NUMBER.unpack_from(page, start)[0])
    pages = (PAGE_HEADER.size - 1 + size) // len(page) + 1
    if not FIRST_PAGE <= first <= first + pages - 1 <= last_page:
        raise Damage(f"page {number} has a value on page {first} of {last_page}")
    return Value(first, pages, size)


def read_free_branch(page: bytes, number: int, last_page: int) -> list[tuple[int, int]]:
    """Read a branch page of the list of free pages: numbers of txns, and child pages.

    LMDB may leave it with one child, where it frees pages while it saves this list.
    """
    keys, children = _branch(page, number, last_page)
    if any(len(key) != PAGE_NUMBER.size for key in keys[1:]):
        raise Damage(f"page {number} has a key that is no number")
    numbers = [0, *(int(PAGE_NUMBER.unpack(key)[0]) for key in keys[1:])]
    return list(zip(numbers, children, strict=True))


def read_free_leaf(page: bytes, number: int, last_page: int) -> list[tuple[int, bytes | Value]]:
    """Read a leaf page of the list of free pages: numbers of txns, and what these freed."""
    leaf = read_leaf(page, number, last_page)
    if any(len(key) != PAGE_NUMBER.size for key in leaf.keys):
        raise Damage(f"page {number} has a key that is no number")
    values, found = iter(leaf.values), []
    for start in _bounds(page, number, LEAF)[0]:
        low, high, flags, key_bytes = NODE_HEADER.unpack_from(page, start)
        key = int(PAGE_NUMBER.unpack_from(page, start + NODE_HEADER.size)[0])
        begin = start + NODE_HEADER.size + key_bytes
        data = next(values) if flags else page[begin : begin + (low | high << 16)]
        found.append((key, data))
    return found


def free_numbers(data: bytes) -> memoryview[int]:
    """Give the pages of a record of free ones, which ascend if it is whole. O(1)."""
    if len(data) % PAGE_NUMBER.size:
        data = b""
    return memoryview(data).cast("Q")[:0:-1]


def use_free_pages(used: bytearray, data: bytes, last_page: int) -> None:
    """Read a record of free pages, and note each of them as used, once. Raises ``Damage``. O(n).

    0.15 µs a page; 0.03 in a program that has numpy, as those that write arrays do.
    """
    if len(data) % PAGE_NUMBER.size or not data:
        raise Damage("the list of free pages is cut")
    numbers = memoryview(data).cast("Q")
    count, listed = numbers[0], numbers[1:]
    if count != len(listed):
        raise Damage("the list of free pages has another length than it says")
    if listed and (listed[-1] < FIRST_PAGE or listed[0] > last_page):
        raise Damage("the list of free pages goes beyond the last page")
    # To import it for this would take longer than it saves.
    use = _use_one_by_one if sys.modules.get("numpy") is None else _use_with_numpy
    use(used, listed)


def _use_one_by_one(used: bytearray, listed: memoryview[int]) -> None:
    numbers = listed.tolist()
    _require_free(
        in_order=all(map(gt, numbers, islice(numbers, 1, None))),
        is_used=lambda: any(map(used.__getitem__, numbers)),
    )
    for number in numbers:
        used[number] = 1


def _use_with_numpy(used: bytearray, listed: memoryview[int]) -> None:
    import numpy as np

    numbers, marks = np.asarray(listed), np.frombuffer(used, np.uint8)
    _require_free(
        in_order=bool((numbers[:-1] > numbers[1:]).all()),
        is_used=lambda: bool(marks[numbers].any()),
    )
    marks[numbers] = 1


def _require_free(*, in_order: bool, is_used: Callable[[], bool]) -> None:
    # Only in order are all of them sure to be pages of the file.
    if not in_order:
        raise Damage("the list of free pages is not in order")
    if is_used():
        raise Damage("a page is in use and free, or free twice")
