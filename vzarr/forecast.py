"""How long a merge will take: what it has to read, counted before, and again while it reads.

The chunks that both sides changed are decoded and encoded, and that takes nearly all of the time.
They are found by the changes of the side that has fewer, in a few thousandths of it; in a sixth of
the merge where there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from vzarr.btree import Tree, some_loader
from vzarr.format import (
    EMPTY_ENTRY,
    Blob,
    Entry,
    TreeRef,
    blob_measure,
    decode_blob,
    decode_entry,
    entry_measure,
)
from vzarr.indexdiff import differing
from vzarr.objects import Store
from vzarr.progress import Meter


def bytes_to_merge(store: Store, base: Entry, ours: Entry, theirs: Entry) -> int:
    """Count the bytes of the chunks that both sides changed, on all three sides.

    O(changes on the side that has fewer · depth). Raises ``CorruptError``.
    """
    if ours == theirs or base in (ours, theirs):
        return 0
    nbytes = 0
    indexes = Tree(store, blob_measure)
    for chunks in _changed_by_both(store, indexes, base.index, ours.index, theirs.index):
        nbytes += sum(decode_blob(chunk).length for chunk in chunks if chunk is not None)
    members = Tree(store, entry_measure)
    roots = (base.directory, ours.directory, theirs.directory)
    for entries in _changed_by_both(store, members, *roots):
        nbytes += bytes_to_merge(store, *map(_entry, entries))
    return nbytes


def _changed_by_both(
    store: Store, tree: Tree, base: TreeRef | None, ours: TreeRef | None, theirs: TreeRef | None
) -> Iterator[tuple[bytes | None, bytes | None, bytes | None]]:
    """List the values of the keys that both sides changed, to different ones: base's first."""
    # Side by side, until one of them has no more.
    changes = differing(store, tree, base, ours)
    for _ in zip(changes, differing(store, tree, base, theirs), strict=False):
        pass
    few, other = (ours, theirs) if next(changes, None) is None else (theirs, ours)
    for key, old, new in differing(store, tree, base, few):
        there = tree.get(other, key)
        if there not in (old, new):
            yield old, new, there


def _entry(value: bytes | None) -> Entry:
    return EMPTY_ENTRY if value is None else decode_entry(value)


@final
class Watched:
    """A store that tells a meter how many bytes of chunks and documents are read."""

    __slots__ = ("_meter", "_store", "load", "load_some", "save", "write")

    def __init__(self, store: Store, meter: Meter) -> None:
        self._store = store
        self._meter = meter
        self.load = store.load
        self.load_some = some_loader(store)
        self.save = store.save
        self.write = store.write

    def read(self, blob: Blob) -> bytes:
        """Give the bytes of a chunk, document or file, and count them."""
        data = self._store.read(blob)
        self._meter.step(blob.length)
        return data
