"""Which groups and arrays differ between two snapshots, and how the one becomes the other.

For places that keep arrays and groups, as Icechunk does, and not keys: where an array gives way to
one whose chunks mean something else, or to a group, the old one goes with all that is below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from vzarr.btree import Tree
from vzarr.errors import InvalidInputError
from vzarr.format import (
    EMPTY_ENTRY,
    MAX_DEPTH,
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
MAX_MEMBERS = 500_000
"""As many nodes of a commit may differ from its parent's. Groups that share their members can make
billions of a few kilobytes."""
# After so many, all are counted before the rest is listed.
_UNCOUNTED = 5_000


_Pair = tuple[bytes | None, bytes | None]


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

    def nodes(self, old: Entry, new: Entry) -> Iterator[NodeDiff]:
        """List the nodes that differ, parents first. Lazy. O(changed nodes · depth).

        Raises ``InvalidInputError`` for more than ``MAX_MEMBERS``, soon.
        """
        for seen, pair in enumerate(self._walk(old, new, "")):
            if seen == _UNCOUNTED and self._count(old, new, {}, 0) > MAX_MEMBERS:
                raise InvalidInputError(
                    f"more than {MAX_MEMBERS:,} groups, arrays and files differ between a commit "
                    "and its parent, which are too many to replay"
                )
            if pair is not None:
                yield pair

    def _walk(self, old: Entry, new: Entry, path: str) -> Iterator[NodeDiff | None]:
        """List the nodes that differ, and None for each that differs only in what is below it."""
        if old == new:
            return
        gone = self._is_gone(old, new)
        if gone:
            yield NodeDiff(path, True, EMPTY_ENTRY, new)
            old = EMPTY_ENTRY
        else:
            yield NodeDiff(path, False, old, new) if _own(old) != _own(new) else None
        for name, before, after in self._directories.diff(old.directory, new.directory):
            member = join(path, decode_name(name))
            yield from self._walk(_entry(before), _entry(after), member)

    def _count(self, old: Entry, new: Entry, known: dict[_Pair, int], depth: int) -> int:
        """Count what a walk lists. O(distinct pairs of members).

        What is nested too deep is not counted: the walk finds that it is.
        """
        if old == new or depth > MAX_DEPTH:
            return 0
        if self._is_gone(old, new):
            old = EMPTY_ENTRY
        count = 1
        for _, before, after in self._directories.diff(old.directory, new.directory):
            pair = before, after
            if pair not in known:
                known[pair] = self._count(_entry(before), _entry(after), known, depth + 1)
            count += known[pair]
        return count

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

    def _is_gone(self, old: Entry, new: Entry) -> bool:
        """Whether an array or a group goes, of either format: nothing of it means what it meant."""
        return (DOCUMENT in old.documents or old.layout is not None) and not self._goes_on(old, new)

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
