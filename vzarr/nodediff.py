"""Which groups and arrays differ between two snapshots, and how the one becomes the other.

For places that keep arrays and groups, as Icechunk does, and not keys: where an array gives way to
one whose chunks mean something else, or to a group, the old one goes with all that is below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from vzarr.btree import Tree
from vzarr.format import (
    EMPTY_ENTRY,
    Blob,
    Entry,
    blob_measure,
    decode_blob,
    decode_coordinates,
    decode_entry,
    decode_name,
    entry_measure,
)
from vzarr.hierarchy import join
from vzarr.metadata import node_metadata
from vzarr.objects import Store

DOCUMENT = "zarr.json"


@final
@dataclass(frozen=True, slots=True)
class NodeDiff:
    """A node that differs, or is on one side alone."""

    path: str
    gone: bool
    """Whether what is there, with all below it, is to be deleted before."""
    old: Entry
    """Empty if there is nothing, or nothing any more."""
    new: Entry


@final
class NodeDiffs:
    """The walk over two snapshots."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._directories = Tree(store, entry_measure)
        self._indexes = Tree(store, blob_measure)

    def nodes(self, old: Entry, new: Entry, path: str = "") -> Iterator[NodeDiff]:
        """List the nodes that differ, parents first. Lazy. O(changed nodes · depth)."""
        if old == new:
            return
        gone = DOCUMENT in old.documents and not self._goes_on(old, new)
        if gone:
            yield NodeDiff(path, True, EMPTY_ENTRY, new)
            old = EMPTY_ENTRY
        elif _own(old) != _own(new):
            yield NodeDiff(path, False, old, new)
        for name, before, after in self._directories.diff(old.directory, new.directory):
            member = join(path, decode_name(name))
            yield from self.nodes(_entry(before), _entry(after), member)

    def chunks(
        self, pair: NodeDiff
    ) -> Iterator[tuple[tuple[int, ...], str, Blob | None, Blob | None]]:
        """List the chunks of a node that differ: coordinates, key, before, after. Lazy."""
        layout = pair.new.layout or pair.old.layout
        if layout is None:
            return
        base = f"{pair.path}/" if pair.path else ""
        for key, before, after in self._indexes.diff(pair.old.index, pair.new.index):
            spelled = base + layout.spell(key)
            yield decode_coordinates(key), spelled, _blob(before), _blob(after)

    def _goes_on(self, old: Entry, new: Entry) -> bool:
        """Whether the new node is the old one, whose chunks mean what they meant."""
        before = node_metadata(old.documents, self._store.read)
        after = node_metadata(new.documents, self._store.read)
        if before is None or after is None or before.kind != after.kind:
            return False
        if before.array is None or after.array is None:
            return before.array is after.array
        same = before.array.encoding == after.array.encoding
        return same and old.layout == new.layout


def _own(entry: Entry) -> tuple[object, ...]:
    return entry.documents, entry.file, entry.index


def _blob(value: bytes | None) -> Blob | None:
    return None if value is None else decode_blob(value)


def _entry(value: bytes | None) -> Entry:
    return EMPTY_ENTRY if value is None else decode_entry(value)
