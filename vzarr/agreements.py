"""Find what two transactions changed alike, which a merge of branches takes for an agreement.

For git, two sides that changed a thing to the same value agree. For a transaction that is wrong:
two that each added one to a counter both wrote the same number, and one of them would be lost. So
of transactions the first one wins, also where the second did the same, and that one is run again.
Elements that agree in chunks which differ are found by the merge itself (``merge(agree=False)``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
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
from vzarr.merge import SAME_VALUE, Chunks
from vzarr.objects import Store
from vzarr.resolution import Blobs, Conflict, Resolver, Strategy

_Change = tuple[bytes, bytes | None, bytes | None]


def agreements(
    store: Store, base: Entry, ours: Entry, theirs: Entry, strategy: Strategy = "fail"
) -> tuple[dict[str, Blob | None], list[Conflict]]:
    """Find the chunks, documents and files that both sides changed to the same value.

    Gives what ``strategy`` puts in their place, by key, and the conflicts that it leaves open:
    "ours" and "theirs" accept all, and a function is asked about each. A document or file that both
    made anew alike does not count, as a group that is opened with mode "a", nor does what both
    deleted; the lengths of axes are the business of ``racing_resizes``.
    Raises as ``merge``. O(changes of both · depth); parses the documents that both changed, and
    decodes the chunks that both changed alike.
    """
    resolver = Resolver(strategy, store)
    finding = _Agreements(store, resolver)
    if resolver.favourite is None:
        finding.entry("", base, ours, theirs)
    return finding.edits, resolver.open


@final
class _Agreements:
    def __init__(self, store: Store, resolver: Resolver) -> None:
        self._store = store
        self._resolver = resolver
        self._indexes = Tree(store, blob_measure)
        self._directories = Tree(store, entry_measure)
        self.edits: dict[str, Blob | None] = {}

    def entry(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> None:
        """Look at all that lies at and below one path."""
        if base in (ours, theirs):
            return
        self._documents(path, base, ours, theirs)
        if base.file is not None and base.file != ours.file == theirs.file is not None:
            self._ask(path, Conflict(path, "file"), (base.file, ours.file, theirs.file))
        self._chunks(path, base, ours, theirs)
        for name, old, our, their in _both(
            self._directories, base.directory, ours.directory, theirs.directory
        ):
            member = join(path, decode_name(name))
            self.entry(member, _entry(old), _entry(our), _entry(their))

    def _documents(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> None:
        read = self._store.read
        for name, old in base.documents.items():
            our, their = ours.documents.get(name), theirs.documents.get(name)
            if our is None or their is None or old in (our, their):
                continue
            keys = agreed_keys(read(old), read(our), read(their))
            if keys:
                conflict = Conflict(path, "document", document=name)
                self._ask(join(path, name), conflict, (old, our, their), ", ".join(keys))

    def _chunks(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> None:
        layout = ours.layout
        # Without a layout, both have deleted the array.
        if base.index in (ours.index, theirs.index) or layout is None or layout != theirs.layout:
            return
        sides = (base, ours, theirs)
        chunks = Chunks(self._store, self._resolver, path, ours, sides, may_agree=False)
        with closing(chunks):
            for key, old, our, their in _both(self._indexes, base.index, ours.index, theirs.index):
                if our == their:
                    blobs = (_blob(old), _blob(our), _blob(their))
                    blob = chunks.merge(decode_coordinates(key), blobs)
                    if blob != blobs[1]:
                        self.edits[join(path, layout.spell(key))] = blob

    def _ask(self, key: str, conflict: Conflict, blobs: Blobs, what: str = "") -> None:
        reason = f"{what}: {SAME_VALUE}" if what else SAME_VALUE
        conflict = replace(conflict, reason=reason, _blobs=blobs, _read=self._store.read)
        blob = self._resolver.blob(conflict, blobs)
        # Where there is more in a document than that, the merge has both sides' other changes.
        if blob not in blobs[1:]:
            self.edits[key] = blob


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
