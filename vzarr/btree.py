"""A persistent, history-independent B-tree: an ordered map from bytes to bytes.

The idea. A map kept as a Merkle tree is cheap to copy, compare and merge, provided that equal maps
are equal trees. In an ordinary B-tree the order of the edits decides where nodes end. Here the keys
do, by their hash, as in a skip list whose coins are tossed by a hash function (Golovin, "The
B-Skip-List", 2010; Noms' prolly trees are relatives).

* Level 0 is the sorted entries, cut into nodes. Take 64 bits of BLAKE3(key): level L looks at its
  own five of them, and a key where they are all zero ends its node, one key in 32. A node also ends
  at ``MAX_ENTRIES``, so that keys picked with malice cannot make it grow without bound.
* Level L + 1 has one entry for each node of level L: its last key, and a reference to it (digest
  and sums). The root is the node of the lowest level that has only one; the empty map has none.

So the tree is a function of its content. No node is balanced against its neighbours, thus no edit
cascades: a new value rewrites one node a level, a new key that ends a node splits one, deleting it
joins two. (After a node that was cut at ``MAX_ENTRIES``, the cuts shift as far as the next key that
ends a node by its hash.) Versions share every node that no edit touched, so comparing them costs
what differs, not what they hold.

Costs below count nodes loaded or saved; depth is log32 of the number of entries, 4 for a million.
Nodes are never changed once they are made. This module knows neither files nor chunks: nodes go to
and come from a ``NodeStore``, ``measure`` tells what an entry counts for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress, islice
from operator import ne
from typing import NamedTuple, Protocol, TypeAlias, final

from vzarr.errors import CorruptError
from vzarr.format import Digest, TreeRef, key_hash
from vzarr.node import MAX_ENTRIES, REFERENCE, Node, ascend, row_of

_BITS = 5
_HASHED_LEVELS = 64 // _BITS
_BATCH = 8192
# So many keys are looked for together: the nodes on their ways are a few megabytes.
_AT_ONCE = 1024
# So many nodes are loaded together ahead of the time when they are needed.
_NODES_AT_ONCE = 256
# As many leaves are loaded together by a walk from one to the next.
_MOST_LEAVES = 32
# So few edits are worth a look whether they change values alone. More would be much to remember.
_FEW = 64

Item: TypeAlias = tuple[bytes, bytes]
Edit: TypeAlias = tuple[bytes, bytes | None]
Change: TypeAlias = tuple[bytes, bytes | None, bytes | None]
Measure: TypeAlias = Callable[[bytes], tuple[int, int]]
OnConflict: TypeAlias = Callable[[bytes, bytes | None, bytes | None, bytes | None], bytes | None]


# ── nodes ────────────────────────────────────────────────────────────────────────────────────────


class NodeStore(Protocol):
    """Where nodes are kept, by the digest of their bytes."""

    def load(self, digest: bytes) -> Node:
        """Return a node, maybe from a cache; ``CorruptError`` where it is missing or damaged."""

    def save(self, node: Node) -> bytes:
        """Keep a node, which nobody changes any more; return the digest of its bytes."""


def ending(level: int, keys: Iterable[bytes]) -> list[bytes]:
    """Pick those of the keys that end their node on a level by their hash."""
    if level >= _HASHED_LEVELS:
        return []
    mask = (2**_BITS - 1) << _BITS * level
    return [key for key in keys if not key_hash(key) & mask]


def load_child(nodes: NodeStore, node: Node, index: int) -> Node:
    """Load a child, and make sure that it is what its parent says."""
    child = nodes.load(node.values[index][:32])
    if not fits(child, node, index):
        raise _corrupt(node.values[index], "its level or its keys are not what its parent says")
    return child


def fits(child: Node, parent: Node, index: int) -> bool:
    """Whether a node has the level and the keys that its parent says."""
    return (
        child.level == parent.level - 1
        and child.keys[-1] == parent.keys[index]
        and (not index or child.keys[0] > parent.keys[index - 1])
    )


LoadSome: TypeAlias = Callable[[Sequence[bytes]], Sequence[Node | None]]


def some_loader(nodes: NodeStore) -> LoadSome:
    """Give what loads many nodes at once; None for each that is to be loaded alone.

    A store may have it as ``load_some``, if it can do so in less time.
    """
    load_some: LoadSome = getattr(nodes, "load_some", _load_none)
    return load_some


def _leaves(nodes: NodeStore, root: Node, keys: Sequence[bytes]) -> list[tuple[Node, int, int]]:
    """Load the leaves in which keys are, or would be; give each with its first key and its last.

    The nodes of a level are loaded together. Keys beyond the last one of the tree are left out.
    """
    load_some = some_loader(nodes)
    level = [(root, 0, len(keys))]
    while level and level[0][0].level:
        ways: list[tuple[Node, int, int, int]] = []
        for node, low, high in level:
            while low < high:
                index = bisect_left(node.keys, keys[low])
                if index == len(node.keys):
                    break
                middle = bisect_right(keys, node.keys[index], low, high)
                ways.append((node, index, low, middle))
                low = middle
        found = load_some([node.values[index][:32] for node, index, _, _ in ways])
        level = [
            (
                child
                if child is not None and fits(child, node, index)
                else load_child(nodes, node, index),
                low,
                high,
            )
            for child, (node, index, low, high) in zip(found, ways, strict=True)
        ]
    return level


def _load_none(digests: Sequence[bytes]) -> Sequence[Node | None]:
    return [None] * len(digests)


def _sums(level: int, values: Sequence[bytes], measure: Measure) -> tuple[int, int]:
    """Sum up the entries of a node: count and bytes."""
    if level:
        numbers = row_of("32xQQ", len(values)).unpack(b"".join(values))
        return sum(numbers[::2]), sum(numbers[1::2])
    total_count = total_nbytes = 0
    for entries, nbytes in map(measure, values):
        total_count += entries
        total_nbytes += nbytes
    return total_count, total_nbytes


def _pack_ref(ref: TreeRef) -> bytes:
    return REFERENCE.pack(ref.digest, ref.count, ref.nbytes)


def _unpack_ref(value: bytes) -> TreeRef:
    digest, count, nbytes = REFERENCE.unpack(value)
    return TreeRef(Digest(digest), count, nbytes)


def _corrupt(ref: bytes, reason: str) -> CorruptError:
    return CorruptError(f"tree node {ref[:32].hex()} is damaged: {reason}")


# ── the tree ─────────────────────────────────────────────────────────────────────────────────────


@final
class Tree:
    """Operations on the trees of one ``NodeStore``; a tree itself is a ``TreeRef``, or None.

    ``measure`` gives what the value of an entry counts for, as (count, bytes); references to nodes
    carry the sums of all below. It must be a pure function that raises nothing but
    ``CorruptError``. Every method raises ``CorruptError`` where it meets a node that is missing,
    damaged, or does not fit its parent.
    """

    def __init__(self, nodes: NodeStore, measure: Measure) -> None:
        self._nodes = nodes
        self._measure = measure
        # The tree and the leaf of the last key that was found: the next one is mostly beside it.
        self._last: tuple[bytes, Node] | None = None
        self._ahead = _Ahead(nodes)

    def get(self, root: TreeRef | None, key: bytes) -> bytes | None:
        """Return the value of a key, or None. O(depth); O(1) beside the last one."""
        if root is None:
            return None
        last = self._last
        node = last[1] if last is not None and last[0] == root.digest else None
        if node is None or not node.keys[0] <= key <= node.keys[-1]:
            node = self._nodes.load(root.digest)
        while True:
            index = bisect_left(node.keys, key)
            if index == len(node.keys):
                return None
            if node.level == 0:
                break
            if node.level == 1:
                self._ahead.come_to(node, index)
            node = load_child(self._nodes, node, index)
        self._last = root.digest, node
        return node.values[index] if node.keys[index] == key else None

    def get_all(self, root: TreeRef | None, keys: Sequence[bytes]) -> list[bytes | None]:
        """Look up the values of keys, which ascend; None for each that is absent.

        O(keys · depth) at most: each node is loaded once, and those of a level together.
        """
        found: list[bytes | None] = [None] * len(keys)
        if root is None:
            return found
        for begin in range(0, len(keys), _AT_ONCE):
            some = keys[begin : begin + _AT_ONCE]
            for leaf, low, high in _leaves(self._nodes, self._nodes.load(root.digest), some):
                leaf_keys, values = leaf.keys, leaf.row()
                for place in range(low, high):
                    index = bisect_left(leaf_keys, some[place])
                    if index < len(leaf_keys) and leaf_keys[index] == some[place]:
                        found[begin + place] = values[index]
        return found

    def scan(
        self,
        root: TreeRef | None,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        prefix: bytes = b"",
    ) -> Iterator[Item]:
        """Iterate over the entries with start ≤ key < stop that begin with prefix, in order.

        Lazy: loads a node when the iteration comes to it, and as it goes on some of the next ones
        with it. O(depth + nodes in the range).
        """
        cursor, ahead = _Cursor(self._nodes, root, max(start, prefix)), _Ahead(self._nodes)
        while cursor.level >= 0:
            if cursor.level > 0:
                if cursor.level == 1:
                    ahead.come_to(cursor.node, cursor.index)
                cursor.descend()
                continue
            for key, value in cursor.rest():
                if (stop is not None and key >= stop) or not key.startswith(prefix):
                    return
                yield key, value
            cursor.leave()

    def first(self, root: TreeRef | None, start: bytes = b"") -> Item | None:
        """Return the first entry with start ≤ key, or None. O(depth)."""
        return next(self.scan(root, start), None)

    def sums(
        self, root: TreeRef | None, start: bytes = b"", stop: bytes | None = None
    ) -> tuple[int, int]:
        """Sum up what ``measure`` says of the entries with start ≤ key < stop. O(depth)."""
        if root is None or (stop is not None and stop <= start):
            return 0, 0
        count, nbytes = (root.count, root.nbytes) if stop is None else self._sums_below(root, stop)
        less_count, less_nbytes = self._sums_below(root, start) if start else (0, 0)
        return count - less_count, nbytes - less_nbytes

    def _sums_below(self, root: TreeRef, bound: bytes) -> tuple[int, int]:
        """Sum up the entries with key < bound: at each node on the path to it, what is left."""
        total_count = total_nbytes = 0
        node = self._nodes.load(root.digest)
        while True:
            index = bisect_left(node.keys, bound)
            count, nbytes = _sums(node.level, node.values[:index], self._measure)
            total_count, total_nbytes = total_count + count, total_nbytes + nbytes
            if node.level == 0 or index == len(node.keys):
                return total_count, total_nbytes
            node = load_child(self._nodes, node, index)

    def diff(
        self,
        a: TreeRef | None,
        b: TreeRef | None,
        start: bytes = b"",
        stop: bytes | None = None,
    ) -> Iterator[Change]:
        """Iterate over (key, value in a, value in b) where a and b differ, start ≤ key < stop.

        In order of the keys; None stands for absence. Lazy. O(nodes that differ · depth): what the
        trees share is passed by unseen, on whatever level.
        """
        if a == b:
            return
        left, right = _Cursor(self._nodes, a, start), _Cursor(self._nodes, b, start)
        while left.level >= 0 or right.level >= 0:
            # Equal entries need no look, and if they refer to nodes, neither does all below them.
            if equal := left.equal(right):
                left.advance(equal)
                right.advance(equal)
                continue
            # References: go into the higher one, or into both, and compare again.
            level = max(left.level, right.level)
            if level > 0:
                if left.level == level:
                    left.descend()
                if right.level == level:
                    right.descend()
                continue
            # Entries of the map: the lesser key is missing on the other side.
            in_left = right.level < 0 or (left.level == 0 and left.key <= right.key)
            in_right = left.level < 0 or (right.level == 0 and right.key <= left.key)
            key = left.key if in_left else right.key
            if stop is not None and key >= stop:
                return
            yield key, left.value if in_left else None, right.value if in_right else None
            if in_left:
                left.advance()
            if in_right:
                right.advance()

    def apply(self, root: TreeRef | None, edits: Sequence[Edit]) -> TreeRef | None:
        """Set and delete keys; return the new tree. The old one stays as it is.

        Edits are (key, value), or (key, None) to delete, which does nothing where the key is
        absent; keys strictly ascend. Saves only nodes that the new tree has, and of those only the
        ones that it does not have from the old. O(edits · depth).
        """
        if root is not None and 0 < len(edits) <= _FEW:
            copied = _Copy(self._nodes, self._measure, edits).apply(root)
            if copied is not None:
                return copied
        return _Rewrite(self._nodes, self._measure).apply(root, edits)

    def build(self, items: Iterable[Item]) -> TreeRef | None:
        """Make a tree of entries whose keys strictly ascend. O(entries), in bounded memory."""
        return _Rewrite(self._nodes, self._measure).build(items)

    def merge(
        self,
        base: TreeRef | None,
        ours: TreeRef | None,
        theirs: TreeRef | None,
        on_conflict: OnConflict,
    ) -> TreeRef | None:
        """Merge what two trees changed since their common base.

        Where both changed a key, to different values, ``on_conflict(key, base, ours, theirs)``
        returns the value to take; None stands for absence. It is called in order of the keys. Of
        what only one side changed, whole nodes are taken unseen. O(changes on the side that has
        fewer · depth).
        """
        if ours == theirs or theirs == base:
            return ours
        if ours == base:
            return theirs
        rewrite = _Rewrite(self._nodes, self._measure)
        return _Merge(self._nodes, (base, ours, theirs), rewrite, on_conflict).run()

    def walk(self, root: TreeRef | None) -> Iterator[tuple[bytes, Node]]:
        """Iterate over (digest, node) of all nodes, in order, parents first. Lazy. O(nodes)."""
        return self.reachable(root, set())

    def reachable(self, root: TreeRef | None, seen: set[bytes]) -> Iterator[tuple[bytes, Node]]:
        """Iterate over (digest, node) of the nodes that are not in seen, and add them to it.

        A node in seen is passed by with all below it, so that many versions are walked at the cost
        of what is new in each. O(new nodes).
        """
        if root is not None and root.digest not in seen:
            node, ahead = self._nodes.load(root.digest), _Ahead(self._nodes)
            yield from self._reachable(root.digest, node, seen, ahead)

    def _reachable(
        self, digest: bytes, node: Node, seen: set[bytes], ahead: _Ahead
    ) -> Iterator[tuple[bytes, Node]]:
        seen.add(digest)
        yield digest, node
        if node.level:
            for index, value in enumerate(node.values):
                if value[:32] not in seen:
                    if node.level == 1:
                        ahead.come_to(node, index)
                    child = load_child(self._nodes, node, index)
                    yield from self._reachable(value[:32], child, seen, ahead)

    def check(self, root: TreeRef | None) -> None:
        """Verify that a tree is the one tree of its content; ``CorruptError`` names the bad node.

        Nodes end where they must and nowhere else, keys ascend across nodes, sums are right, the
        root is as low as can be. The store verifies digests. O(entries).
        """
        if root is not None:
            node = self._nodes.load(root.digest)
            if node.level and len(node.keys) == 1:
                raise _corrupt(root.digest, "it has one child, which should be the root")
            self._check(_pack_ref(root), node, is_last=True)

    def _check(self, ref: bytes, node: Node, *, is_last: bool) -> None:
        """Check a node and all below. The last one of a level may end anywhere."""
        ends = ending(node.level, node.keys)
        if ends not in ([], node.keys[-1:]):
            raise _corrupt(ref, "it goes on after a key that ends a node")
        if not (ends or is_last or len(node.keys) == MAX_ENTRIES):
            raise _corrupt(ref, "it ends at a key that ends no node")
        if REFERENCE.unpack(ref)[1:] != _sums(node.level, node.values, self._measure):
            raise _corrupt(ref, "its sums are not those that the reference to it says")
        if node.level:
            last = len(node.keys) - 1
            for index, value in enumerate(node.values):
                child = load_child(self._nodes, node, index)
                self._check(value, child, is_last=is_last and index == last)


@final
class _Ahead:
    """Loads leaves together that a walk from left to right will come to: more as it goes on."""

    __slots__ = ("_load_some", "_node", "_stop", "_width")

    def __init__(self, nodes: NodeStore) -> None:
        self._load_some = some_loader(nodes)
        self._node: Node | None = None
        self._stop = 0
        self._width = 1

    def come_to(self, node: Node, index: int) -> None:
        """Have a child in memory that is about to be loaded, with those behind it if it is due.

        Where the walk jumps, it is the child alone. Only time is lost if threads get in between.
        """
        last = self._node
        if node is last and index < self._stop:
            return
        goes_on = index == self._stop if node is last else last is not None and index == 0
        self._width = min(2 * self._width, _MOST_LEAVES) if goes_on else 1
        self._node, self._stop = node, index + self._width
        if self._width > 1:
            self._load_some([value[:32] for value in node.values[index : self._stop]])


@final
class _Cursor:
    """A position in a tree: at an entry of any level, or at the end."""

    __slots__ = ("_above", "_nodes", "_start", "index", "level", "node")

    def __init__(self, nodes: NodeStore, root: TreeRef | None, start: bytes) -> None:
        self._nodes = nodes
        self._start = start
        self._above: list[tuple[Node, int]] = []
        self.level = -1
        """The level of the node that the entry is in; -1 at the end."""
        if root is not None:
            self._enter(nodes.load(root.digest))

    @property
    def key(self) -> bytes:
        return self.node.keys[self.index]

    @property
    def value(self) -> bytes:
        return self.node.values[self.index]

    def rest(self) -> Iterator[Item]:
        """Iterate over the entries from here to the end of the node."""
        return zip(self.node.keys[self.index :], self.node.values[self.index :], strict=True)

    def equal(self, other: _Cursor) -> int:
        """Count how many entries are equal from here on, to the end of either node."""
        if self.level != other.level or self.level < 0 or self.value != other.value:
            return 0
        keys, values = self.node.keys[self.index :], self.node.values[self.index :]
        other_keys, other_values = other.node.keys[other.index :], other.node.values[other.index :]
        shorter = min(len(values), len(other_values))
        # Values first: they are what differs, and keys hardly ever.
        equal = next(compress(range(shorter), map(ne, values, other_values)), shorter)
        if keys[:equal] == other_keys[:equal]:
            return equal
        return next(compress(range(shorter), map(ne, keys, other_keys)))

    def descend(self) -> None:
        """Go to the first entry of the node that this entry refers to."""
        self._above.append((self.node, self.index))
        self._enter(load_child(self._nodes, self.node, self.index))

    def advance(self, steps: int = 1) -> None:
        """Go past some entries of this node, and up where it is at its end."""
        self.index += steps
        self._settle()

    def leave(self) -> None:
        """Go past all entries of this node."""
        self.advance(len(self.node.keys) - self.index)

    def _enter(self, node: Node) -> None:
        self.node, self.index = node, bisect_left(node.keys, self._start)
        self._settle()

    def is_last(self) -> bool:
        """Whether nothing on this level comes after this node."""
        return all(index == len(node.keys) - 1 for node, index in self._above)

    def _settle(self) -> None:
        while self.index == len(self.node.keys):
            if not self._above:
                self.level = -1
                return
            self.node, self.index = self._above.pop()
            self.index += 1
        self.level = self.node.level


@final
class _Merge:
    """One walk over a base and two trees made from it; the merged tree flows into a rewrite.

    The three cursors keep in step: each has gone past exactly its keys up to one key, the same for
    all. So where two of them have equal entries up to some key, all that changed up to there is in
    the third, and that flows in as far as that key: in whole nodes, unseen, if it has nodes that
    end there. Where no two are equal, they go deeper; at last they stand at entries of the map.
    """

    def __init__(
        self,
        nodes: NodeStore,
        roots: tuple[TreeRef | None, TreeRef | None, TreeRef | None],
        rewrite: _Rewrite,
        on_conflict: OnConflict,
    ) -> None:
        self._rewrite = rewrite
        self._on_conflict = on_conflict
        self._cursors = tuple(_Cursor(nodes, root, b"") for root in roots)
        self._base, self._ours, self._theirs = self._cursors
        self._load_some = some_loader(nodes)
        # On each level the node of the base below which all was loaded that may be needed.
        self._ahead: dict[int, Node] = {}
        for root, cursor in zip(roots[1:], self._cursors[1:], strict=True):
            if root is not None:
                rewrite.visit(cursor.node, _pack_ref(root))

    def run(self) -> TreeRef | None:
        while any(cursor.level >= 0 for cursor in self._cursors):
            if not (self._pass_equal() or self._go_deeper()):
                self._resolve()
        return self._rewrite.finish()

    def _pass_equal(self) -> bool:
        """Go past the entries that are equal in two trees; say whether there were any."""
        base, ours, theirs = self._base, self._ours, self._theirs
        for one, two, third in ((base, ours, theirs), (base, theirs, ours), (ours, theirs, base)):
            if equal := one.equal(two):
                bound = one.node.keys[one.index + equal - 1]
                two.advance(equal)
                # What both sides have is taken from ours; what was there before does not matter.
                self._pass(one, bound)
                self._pass(third, bound)
                return True
        return False

    def _go_deeper(self) -> bool:
        """Go into the nodes referred to here, those of the highest level first."""
        inner = [cursor for cursor in self._cursors if cursor.level > 0]
        if len(inner) == 1:
            # The other two have nothing before their next keys: what is there is the third's alone.
            keys = [cursor.key for cursor in self._cursors if cursor.level == 0]
            self._pass(inner[0], min(keys, default=None), inclusive=False)
            return True
        top = max(cursor.level for cursor in self._cursors)
        self._look_ahead()
        for cursor in inner:
            if cursor.level == top:
                self._descend(cursor)
        return bool(inner)

    def _look_ahead(self) -> None:
        """Have nodes loaded together that all three are about to go into.

        At the first entry that differs in three nodes with the same keys: those are all the others.
        """
        level = self._base.level
        if level < 0 or not level == self._ours.level == self._theirs.level:
            return
        base, ours, theirs = (cursor.node for cursor in self._cursors)
        if self._ahead.get(level) is base:
            return
        self._ahead[level] = base
        if not base.keys == ours.keys == theirs.keys:
            return
        rows = zip(base.values, ours.values, theirs.values, strict=True)
        differing = [row for row in rows if row[0] != row[1] != row[2] != row[0]]
        below = [value[:32] for row in differing for value in row]
        for begin in range(0, len(below), _NODES_AT_ONCE):
            self._load_some(below[begin : begin + _NODES_AT_ONCE])

    def _resolve(self) -> None:
        """Merge what the three have, or lack, at the least of the keys where they stand."""
        key = min(cursor.key for cursor in self._cursors if cursor.level == 0)
        here = [cursor.level == 0 and cursor.key == key for cursor in self._cursors]
        sides = zip(self._cursors, here, strict=True)
        base, ours, theirs = [cursor.value if there else None for cursor, there in sides]
        if ours == base:
            value = theirs
        elif theirs in (base, ours):
            value = ours
        else:
            value = self._on_conflict(key, base, ours, theirs)
        if value is not None:
            self._rewrite.add(key, value)
        for cursor in compress(self._cursors, here):
            cursor.advance()

    def _pass(self, cursor: _Cursor, bound: bytes | None, *, inclusive: bool = True) -> None:
        """Go past the keys up to a bound, or all; those of either side flow in."""
        up_to = bisect_right if inclusive else bisect_left
        while cursor.level >= 0:
            node, start = cursor.node, cursor.index
            stop = len(node.keys) if bound is None else up_to(node.keys, bound, start)
            flows = cursor is not self._base
            if flows and cursor.level > 0 and stop == len(node.keys) and cursor.is_last():
                # The last nodes of a tree may go on in the merged one.
                stop -= 1
            if stop > start:
                if flows:
                    self._rewrite.keep(node, start, stop)
                cursor.advance(stop - start)
                if inclusive and node.keys[stop - 1] == bound:
                    return
            elif cursor.level > 0:
                self._descend(cursor)
            else:
                return

    def _descend(self, cursor: _Cursor) -> None:
        ref = cursor.value
        cursor.descend()
        if cursor is not self._base:
            self._rewrite.visit(cursor.node, ref)


# ── rewriting ────────────────────────────────────────────────────────────────────────────────────


@final
class _Step(NamedTuple):
    """An entry to change: on level 0 its new value, above the node it refers to and what there."""

    place: int
    value: bytes
    child: Node | None = None
    below: Sequence[_Step] = ()


@final
class _Copy:
    """A few edits that give keys of a tree other values: most commits are nothing else.

    Where no key comes or goes, every node ends where it did. So the nodes on the way are copied,
    with another entry here and there.
    """

    __slots__ = ("_keys", "_measure", "_nodes", "_values")

    def __init__(self, nodes: NodeStore, measure: Measure, edits: Sequence[Edit]) -> None:
        self._nodes = nodes
        self._measure = measure
        self._keys = [key for key, _ in edits]
        self._values = [value for _, value in edits if value is not None]
        assert ascend(self._keys), "edits out of order"

    def apply(self, root: TreeRef) -> TreeRef | None:
        """Give the edited tree, or None, with nothing saved, if a key comes or goes."""
        if len(self._values) < len(self._keys):
            return None
        node = self._nodes.load(root.digest)
        steps = self._find(node, 0, len(self._keys))
        return None if steps is None else _unpack_ref(self._copy(node, _pack_ref(root), steps))

    def _find(self, node: Node, low: int, high: int) -> list[_Step] | None:
        """Find the entries of a node that the edits low to high change; None if one is missing."""
        keys, index = node.keys, -1
        steps: list[_Step] = []
        while low < high:
            key = self._keys[low]
            index = bisect_left(keys, key, index + 1)
            if index == len(keys):
                return None
            if node.level == 0:
                if keys[index] != key:
                    return None
                steps.append(_Step(index, self._values[low]))
                low += 1
                continue
            middle = bisect_right(self._keys, keys[index], low, high)
            child = load_child(self._nodes, node, index)
            below = self._find(child, low, middle)
            if below is None:
                return None
            steps.append(_Step(index, node.values[index], child, below))
            low = middle
        return steps

    def _copy(self, node: Node, ref: bytes, steps: Sequence[_Step]) -> bytes:
        """Save a node with other values; give a reference to it, or to the old one if equal."""
        values = node.values.copy()
        for place, value, child, below in steps:
            values[place] = value if child is None else self._copy(child, value, below)
        if values == node.values:
            return ref
        return _save(self._nodes, self._measure, node.level, node.keys, values, (node, ref))


@final
class _Run:
    """The entries of the node that is being filled on one level."""

    __slots__ = ("ended", "keys", "values", "visited")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.values: list[bytes] = []
        self.ended = False
        """The node is complete: the next entry begins another."""
        self.visited: deque[tuple[Node, bytes]] = deque()
        """Old nodes that went into this run, or will go into later ones, and references to them."""


@final
class _Rewrite:
    """One pass over a tree, from left to right, that writes the edited tree.

    Each level has a run of entries, cut into nodes as the definition says. Entries of old leaves
    flow into the run of level 0, edits mixed in; a node that is complete becomes an entry of the
    run above. The point is what need not flow: where no run below is open, old and new cuts agree,
    so an old node without edits stays whole, as one entry of the level above.
    """

    def __init__(self, nodes: NodeStore, measure: Measure) -> None:
        self._nodes = nodes
        self._measure = measure
        self._runs: list[_Run] = []
        self._edit_keys: list[bytes] = []
        self._edit_values: list[bytes | None] = []
        self._root: Node | None = None
        # The nodes that so many edits are in were loaded.
        self._seen = 0

    def apply(self, root: TreeRef | None, edits: Sequence[Edit]) -> TreeRef | None:
        if not edits:
            return root
        self._edit_keys = [key for key, _ in edits]
        self._edit_values = [value for _, value in edits]
        assert ascend(self._edit_keys), "edits out of order"
        if root is None:
            self._edit_leaf(Node(0, [], []), 0, len(edits))
        else:
            self._root = node = self._nodes.load(root.digest)
            self._edit(node, _pack_ref(root), 0, len(edits))
        return self.finish()

    def build(self, items: Iterable[Item]) -> TreeRef | None:
        iterator = iter(items)
        last: list[bytes] = []
        while batch := list(islice(iterator, _BATCH)):
            keys = [key for key, _ in batch]
            assert ascend(last + keys), "items out of order"
            self._append(0, keys, [value for _, value in batch], keys)
            last = keys[-1:]
        return self.finish()

    def _edit(self, node: Node, ref: bytes, low: int, high: int) -> None:
        """Let an old node flow in, with the edits low to high in it."""
        self.visit(node, ref)
        if node.level == 0:
            self._edit_leaf(node, low, high)
            return
        if low < high and low >= self._seen:
            self._look_ahead(low)
        keys = node.keys
        position, last = 0, len(keys) - 1
        while low < high:
            # On the right edge of the tree, keys beyond the last child belong into it.
            index = min(bisect_left(keys, self._edit_keys[low], position), last)
            self.keep(node, position, index)
            middle = high if index == last else bisect_right(self._edit_keys, keys[index], low)
            self._edit(load_child(self._nodes, node, index), node.values[index], low, middle)
            position, low = index + 1, middle
        self.keep(node, position, len(keys))

    def _look_ahead(self, low: int) -> None:
        """Have the nodes that the next edits are in loaded together, where that takes less time."""
        some = self._edit_keys[low : low + _AT_ONCE]
        self._seen = low + len(some)
        if len(some) > 1 and self._root is not None and some_loader(self._nodes) is not _load_none:
            _leaves(self._nodes, self._root, some)

    def _edit_leaf(self, node: Node, low: int, high: int) -> None:
        # Of the old keys, only the last can end a node; of the new ones, any.
        keys, values, candidates = node.keys, node.values, node.keys[-1:]
        if low < high:
            entries: dict[bytes, bytes | None] = dict(zip(keys, values, strict=True))
            edits = dict(zip(self._edit_keys[low:high], self._edit_values[low:high], strict=True))
            candidates = sorted([*candidates, *(key for key in edits if key not in entries)])
            entries |= edits
            keys = sorted(key for key, value in entries.items() if value is not None)
            values = [value for key in keys if (value := entries[key]) is not None]
        self._append(0, keys, values, candidates)

    def visit(self, node: Node, ref: bytes) -> None:
        """Note an old node that is taken apart: if it comes out as it was, it is not saved."""
        visited = self._run(node.level).visited
        position = len(visited)
        # Those of one tree come in order.
        while position and visited[position - 1][0].keys[-1] > node.keys[-1]:
            position -= 1
        visited.insert(position, (node, ref))

    def keep(self, node: Node, start: int, stop: int) -> None:
        """Let the entries start to stop of an old node flow in, and what is below them.

        The last node of a level may only be among what flows in last.
        """
        # A run open below takes in child by child, until one has the key that ends it.
        while start < stop and not self._settle(node.level):
            self._edit(load_child(self._nodes, node, start), node.values[start], 0, 0)
            start += 1
        if start < stop:
            candidates = node.keys[-1:] if stop == len(node.keys) else []
            self._append(node.level, node.keys[start:stop], node.values[start:stop], candidates)

    def add(self, key: bytes, value: bytes) -> None:
        """Let an entry of the map flow in."""
        self._append(0, [key], [value], [key])

    def _settle(self, level: int) -> bool:
        """Close what is complete below a level; say whether nothing is left open there."""
        for below, run in enumerate(self._runs[:level]):
            if run.keys and not run.ended:
                return False
            if run.keys:
                self._close(below)
        return True

    def _append(
        self, level: int, keys: list[bytes], values: list[bytes], candidates: Iterable[bytes]
    ) -> None:
        """Add entries to a run, and end it after those of the candidates that end a node."""
        start = 0
        for key in ending(level, candidates):
            stop = bisect_right(keys, key, start)
            if stop > start and keys[stop - 1] == key:
                self._fill(level, keys[start:stop], values[start:stop])
                self._run(level).ended = True
                start = stop
        self._fill(level, keys[start:], values[start:])

    def _fill(self, level: int, keys: list[bytes], values: list[bytes]) -> None:
        """Add entries to a run, and end it wherever it is full."""
        run = self._run(level)
        while keys:
            # A complete node waits for what follows: if nothing does, it may be the root.
            if run.ended:
                self._close(level)
            room = MAX_ENTRIES - len(run.keys)
            run.keys += keys[:room]
            run.values += values[:room]
            run.ended = len(run.keys) == MAX_ENTRIES
            keys, values = keys[room:], values[room:]

    def _close(self, level: int) -> None:
        """Turn a run into a node, and that into an entry of the level above."""
        run = self._runs[level]
        key, ref = run.keys[-1], self._save(level, run)
        run.keys, run.values, run.ended = [], [], False
        self._append(level + 1, [key], [ref], [key])

    def _save(self, level: int, run: _Run) -> bytes:
        """Save the node of a run, unless it is an old one; return a reference to it."""
        old: tuple[Node, bytes] | None = None
        while run.visited and run.visited[0][0].keys[-1] <= run.keys[-1]:
            node, ref = run.visited.popleft()
            if node.keys == run.keys:
                if node.values == run.values:
                    return ref
                old = node, ref
        return _save(self._nodes, self._measure, level, run.keys, run.values, old)

    def finish(self) -> TreeRef | None:
        """Close the runs from the bottom up; the highest one makes the root."""
        for level, run in enumerate(self._runs):  # closing a run may add one at the end
            if not run.keys:
                continue
            if any(above.keys for above in self._runs[level + 1 :]):
                self._close(level)
            elif level == 0 or len(run.keys) > 1:
                return _unpack_ref(self._save(level, run))
            else:
                return self._lowest(run.values[0])
        return None

    def _lowest(self, ref: bytes) -> TreeRef:
        """Find the root where one old node is all that was kept: it may have one child itself."""
        node = self._nodes.load(ref[:32])
        while node.level and len(node.keys) == 1:
            node, ref = load_child(self._nodes, node, 0), node.values[0]
        return _unpack_ref(ref)

    def _run(self, level: int) -> _Run:
        while len(self._runs) <= level:
            self._runs.append(_Run())
        return self._runs[level]


def _save(
    nodes: NodeStore,
    measure: Measure,
    level: int,
    keys: list[bytes],
    values: list[bytes],
    old: tuple[Node, bytes] | None,
) -> bytes:
    """Save a node; give a reference to it. ``old`` is one with the same keys, and that to it."""
    if level or old is None:
        count, nbytes = _sums(level, values, measure)
    else:
        # To measure an entry may take long: where the keys are the same, measure what differs.
        _, count, nbytes = REFERENCE.unpack(old[1])
        for before, after in zip(old[0].values, values, strict=True):
            if before != after:
                less, more = measure(before), measure(after)
                count, nbytes = count - less[0] + more[0], nbytes - less[1] + more[1]
    if not (0 < count < 2**64 and 0 <= nbytes < 2**64):
        raise CorruptError("a tree is damaged: its sums are not those of what is in it")
    return REFERENCE.pack(nodes.save(Node(level, keys, values)), count, nbytes)
