"""What differs between two versions of a chunk index, where mostly values changed and no keys.

Both trees are then cut alike, so that they are compared node by node: whole rows of values at once,
and nothing but the rows that differ. Where they are cut in other places, ``Tree.diff`` goes on.

The walk goes down level by level, but only for some pairs of nodes at once: one at first, more as
it goes on. So who looks at the first change alone does not wait for all, and who wants all has the
nodes of many pairs read in one go.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import chain, compress, count, islice
from operator import ne
from typing import TypeAlias, final

from vzarr.btree import Change, Tree, fits, load_child, some_loader
from vzarr.format import DIGEST_BYTES, Digest, TreeRef
from vzarr.node import Node
from vzarr.objects import Store

# So many pairs of nodes are read at once, when a walk has come so far.
_MOST_PAIRS = 64
# Changes that are found one by one are given so many at once: about as many as a node has.
_ROW = 32

_Pair: TypeAlias = tuple[bytes, bytes, Node, Node, int]
"""The digests of two nodes to compare, and where they are: in which nodes, at which entry."""


def differing(
    store: Store, tree: Tree, old: TreeRef | None, new: TreeRef | None, start: bytes = b""
) -> Iterator[Change]:
    """Give what ``tree.diff`` does, from a key on, in a third of the time for scattered changes.

    Lazy. O(nodes that differ · depth). Raises ``CorruptError`` as it does.
    """
    return chain.from_iterable(differing_rows(store, tree, old, new, start))


def differing_rows(
    store: Store, tree: Tree, old: TreeRef | None, new: TreeRef | None, start: bytes = b""
) -> Iterator[list[Change]]:
    """Give the same changes in lists that are not empty, mostly of a node each. Lazy."""
    if old == new:
        return iter(())
    if old is None or new is None:
        return _rows_of(tree.diff(old, new, start))
    return _Walk(store, tree, start).compare(old.digest, new.digest)


def _rows_of(changes: Iterator[Change]) -> Iterator[list[Change]]:
    while row := list(islice(changes, _ROW)):
        yield row


@final
class _Walk:
    """One walk over two trees, in steps of one node of each, which cover the same keys."""

    def __init__(self, store: Store, tree: Tree, start: bytes) -> None:
        self._store = store
        self._load_some = some_loader(store)
        self._tree = tree
        self._start = start
        self._width = 1

    def compare(self, old: bytes, new: bytes) -> Iterator[list[Change]]:
        """Compare two trees by the digests of their roots."""
        one, other = self._store.load(old), self._store.load(new)
        if one.level != other.level or one.keys != other.keys:
            yield from self._differently_cut(old, new)
        elif one.level == 0:
            if row := self._rows(one, other):
                yield row
        else:
            yield from self._compare(self._below(one, other))

    def _compare(self, pairs: list[_Pair]) -> Iterator[list[Change]]:
        """Compare nodes of one level, in order."""
        done = 0
        while done < len(pairs):
            some = pairs[done : done + self._width]
            done += self._width
            self._width = min(2 * self._width, _MOST_PAIRS)
            lower: list[_Pair] = []
            loaded = iter(self._load_some([digest for pair in some for digest in pair[:2]]))
            for (before, after, one, other, index), old, new in zip(
                some, loaded, loaded, strict=True
            ):
                if old is None or not fits(old, one, index):
                    old = None
                if new is None or not fits(new, other, index):
                    new = None
                if old is None or new is None or old.keys != new.keys:
                    # First what comes before it.
                    yield from self._compare(lower)
                    lower = []
                if old is None:
                    old = load_child(self._store, one, index)
                if new is None:
                    new = load_child(self._store, other, index)
                if old.keys != new.keys:
                    yield from self._compare(lower)
                    lower = []
                    yield from self._differently_cut(before, after)
                elif old.level:
                    lower += self._below(old, new)
                elif row := self._rows(old, new):
                    yield row
            if lower:
                yield from self._compare(lower)

    def _differently_cut(self, old: bytes, new: bytes) -> Iterator[list[Change]]:
        # Alone, each is the root of a tree of its own; diff does not look at the sums.
        trees = TreeRef(Digest(old), 0, 0), TreeRef(Digest(new), 0, 0)
        return _rows_of(self._tree.diff(*trees, self._start))

    def _below(self, one: Node, other: Node) -> list[_Pair]:
        """List the nodes that differ below two with the same keys."""
        pairs = []
        for index in self._differing(one.keys, one.values, other.values):
            old, new = one.values[index][:DIGEST_BYTES], other.values[index][:DIGEST_BYTES]
            # The same node under other sums: whoever wrote one of them lied.
            if old != new:
                pairs.append((old, new, one, other, index))
        return pairs

    def _rows(self, old: Node, new: Node) -> list[Change]:
        """Compare two leaves with the same keys."""
        keys, before, after = old.keys, old.row(), new.row()
        return [(keys[n], before[n], after[n]) for n in self._differing(keys, before, after)]

    def _differing(
        self, keys: list[bytes], old: Sequence[bytes], new: Sequence[bytes]
    ) -> Iterator[int]:
        """List where two rows of values differ, from the start on. O(n), some 30 ns each."""
        if keys[0] >= self._start:
            return compress(count(), map(ne, old, new))
        first = bisect_left(keys, self._start)
        pairs = map(ne, islice(old, first, None), islice(new, first, None))
        return compress(count(first), pairs)
