"""Find what two transactions changed alike, which a merge of branches takes for an agreement.

For git, two sides that changed a thing to the same value agree. For a transaction that is wrong:
two that each added one to a counter both wrote the same number, and one of them would be lost. So
of transactions the first one wins, also where the second did the same, and that one is run again.
Elements that agree in chunks which differ are found by the merge itself (``merge(agree=False)``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import final

from vzarr.btree import Tree
from vzarr.documents import agreed_keys
from vzarr.format import (
    EMPTY_ENTRY,
    Blob,
    Entry,
    TreeRef,
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
from vzarr.resolution import Conflict, Resolver, Strategy

_Change = tuple[bytes, bytes | None, bytes | None]


def agreements(
    store: Store, base: Entry, ours: Entry, theirs: Entry, strategy: Strategy = "fail"
) -> list[Conflict]:
    """List the chunks, documents and files that both sides changed to the same value.

    A document or file that both made anew alike does not count, as a group that is opened with mode
    "a", nor does what both deleted; the lengths of axes are the business of ``racing_resizes``.
    "ours" and "theirs" accept all of that; a function is asked, and any answer but None accepts it.
    O(changes of both · depth), and parses the documents that both changed.
    """
    resolver = Resolver(strategy, store)
    if resolver.favourite is None:
        for conflict in _Agreements(store).entry("", base, ours, theirs):
            resolver.ask(conflict)
    return resolver.open


@final
class _Agreements:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._indexes = Tree(store, blob_measure)
        self._directories = Tree(store, entry_measure)

    def entry(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> Iterator[Conflict]:
        """Look at all that lies at and below one path."""
        if base in (ours, theirs):
            return
        yield from self._documents(path, base, ours, theirs)
        if base.file is not None and base.file != ours.file == theirs.file is not None:
            blobs = (base.file, ours.file, theirs.file)
            yield self._conflict(Conflict(path, "file"), blobs)
        yield from self._chunks(path, base, ours, theirs)
        for name, old, our, their in _both(
            self._directories, base.directory, ours.directory, theirs.directory
        ):
            member = join(path, decode_name(name))
            yield from self.entry(member, _entry(old), _entry(our), _entry(their))

    def _documents(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> Iterator[Conflict]:
        read = self._store.read
        for name, old in base.documents.items():
            our, their = ours.documents.get(name), theirs.documents.get(name)
            if our is None or their is None or old in (our, their):
                continue
            keys = agreed_keys(read(old), read(our), read(their))
            if keys:
                conflict = Conflict(path, "document", document=name)
                yield self._conflict(conflict, (old, our, their), ", ".join(keys))

    def _chunks(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> Iterator[Conflict]:
        # Without a layout, both have deleted the array.
        if base.index in (ours.index, theirs.index) or not ours.layout == theirs.layout is not None:
            return
        node = node_metadata(ours.documents, self._store.read)
        for key, old, our, their in _both(self._indexes, base.index, ours.index, theirs.index):
            if our == their:
                coordinates = decode_coordinates(key)
                array = None if node is None else node.array
                region = None if array is None else array.region(coordinates)
                conflict = Conflict(path, "chunk", coordinates=coordinates, region=region)
                yield self._conflict(conflict, (_blob(old), _blob(our), _blob(their)))

    def _conflict(
        self,
        conflict: Conflict,
        blobs: tuple[Blob | None, Blob | None, Blob | None],
        what: str = "",
    ) -> Conflict:
        reason = f"{what}: to the same value" if what else "to the same value"
        return replace(conflict, reason=reason, _blobs=blobs, _read=self._store.read)


def _both(
    tree: Tree, base: TreeRef | None, ours: TreeRef | None, theirs: TreeRef | None
) -> Iterator[tuple[bytes, bytes | None, bytes | None, bytes | None]]:
    """Give the keys that both sides changed, in order: key, and the three values."""
    others: Iterator[_Change] = iter(tree.diff(base, theirs))
    other = next(others, None)
    for key, old, our in tree.diff(base, ours):
        while other is not None and other[0] < key:
            other = next(others, None)
        if other is None:
            return
        if other[0] == key:
            yield key, old, our, other[2]


def _entry(value: bytes | None) -> Entry:
    return EMPTY_ENTRY if value is None else decode_entry(value)


def _blob(value: bytes | None) -> Blob | None:
    return None if value is None else decode_blob(value)
