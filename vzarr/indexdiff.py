"""What differs between two versions of a chunk index, where mostly values changed and no keys.

Both trees are then cut alike, so that they are compared node by node: whole rows of values at once,
and nothing but the rows that differ. Where they are cut in other places, ``Tree.diff`` goes on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import compress, count, islice
from operator import ne
from typing import final

from vzarr.btree import Change, Tree
from vzarr.format import DIGEST_BYTES, Digest, TreeRef
from vzarr.node import Node
from vzarr.objects import Store


def differing(
    store: Store, tree: Tree, old: TreeRef | None, new: TreeRef | None, start: bytes = b""
) -> Iterator[Change]:
    """Give what ``tree.diff`` does, from a key on, in a third of the time for scattered changes.

    Lazy. O(nodes that differ · depth). Raises ``CorruptError`` as it does.
    """
    if old is None or new is None or old == new:
        return tree.diff(old, new, start)
    return _Pairs(store, tree, old, new, start).compare(old.digest, new.digest)


@final
class _Pairs:
    """One walk over two trees, in steps of one node of each, which cover the same keys."""

    def __init__(self, store: Store, tree: Tree, old: TreeRef, new: TreeRef, start: bytes) -> None:
        self._load = store.load
        self._tree = tree
        self._roots = old, new
        self._start = start

    def compare(self, old: bytes, new: bytes) -> Iterator[Change]:
        """Compare two trees by the digests of their roots."""
        one, other = self._load(old), self._load(new)
        keys = one.keys
        if one.level != other.level or keys != other.keys:
            # Alone, each is the root of a tree of its own; diff does not look at the sums.
            trees = TreeRef(Digest(old), 0, 0), TreeRef(Digest(new), 0, 0)
            yield from self._tree.diff(*trees, self._start)
            return
        if one.level == 0:
            yield from self._rows(one, other)
            return
        load = self._load
        for index in _differing(one, other, bisect_left(keys, self._start)):
            before = one.values[index][:DIGEST_BYTES]
            after = other.values[index][:DIGEST_BYTES]
            if before == after:
                # The same node under other sums: whoever wrote one of them lied.
                continue
            left, right = load(before), load(after)
            if not (_fits(left, one, index) and _fits(right, one, index)):
                # It says what is wrong with it.
                low = keys[index - 1] + b"\0" if index else b""
                yield from self._tree.diff(*self._roots, max(low, self._start))
                return
            if left.level == 0 and left.keys == right.keys:
                # As below, but for the many there are, a generator each would take longest.
                yield from self._rows(left, right)
            else:
                yield from self.compare(before, after)

    def _rows(self, old: Node, new: Node) -> list[Change]:
        """Compare two leaves with the same keys."""
        keys, before, after = old.keys, old.values, new.values
        start = bisect_left(keys, self._start) if keys[0] < self._start else 0
        return [(keys[n], before[n], after[n]) for n in _differing(old, new, start)]


def _differing(old: Node, new: Node, start: int) -> Iterator[int]:
    """List where two rows of values differ. O(n), some 30 ns each."""
    if start:
        pairs = map(ne, islice(old.values, start, None), islice(new.values, start, None))
    else:
        pairs = map(ne, old.values, new.values)
    return compress(count(start), pairs)


def _fits(child: Node, parent: Node, index: int) -> bool:
    """Whether a node has the level and the keys that its parent says."""
    return (
        child.level == parent.level - 1
        and child.keys[-1] == parent.keys[index]
        and (not index or child.keys[0] > parent.keys[index - 1])
    )
