"""What edits of chunks change, told without the tree that a commit would make of them.

Most of what a session holds is new values for chunks of arrays that are there. To compare each
with the value that it replaces takes a look at the leaf where that is; to put all into a tree, and
compare that with the base, would rewrite every one of these leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vzarr.btree import Tree
from vzarr.diff import NodeChange, Side, changed_chunks
from vzarr.format import Blob, Entry, Layout, blob_measure, encode_blob
from vzarr.hierarchy import Hierarchy, join
from vzarr.objects import Store


def pending_chunks(
    store: Store,
    base: Entry,
    edits: Mapping[str, Blob | None],
    open_node: Callable[[Side, str], Any],
) -> tuple[NodeChange, ...] | None:
    """Tell what ``diff`` would of a snapshot with and without edits, if they are of chunks alone.

    Gives None if any other key is among them, or one of what is no array yet. Raises
    ``CorruptError``. O(edits · depth) node reads, and no node is made.
    """
    arrays = _by_array(Hierarchy(store, base), edits)
    if arrays is None:
        return None
    tree = Tree(store, blob_measure)
    changes = []
    for path, (entry, chunks) in sorted(arrays.items()):
        keys = sorted(chunks)
        rows = [
            (key, old, chunks[key])
            for key, old in zip(keys, tree.get_all(entry.index, keys), strict=True)
            if old != chunks[key]
        ]
        if rows:
            changes.append(changed_chunks(store, path, entry, rows, open_node))
    return tuple(changes)


_Arrays = dict[str, tuple[Entry, dict[bytes, bytes | None]]]


def _by_array(hierarchy: Hierarchy, edits: Mapping[str, Blob | None]) -> _Arrays | None:
    """Sort edits by the array whose chunks they are; None if one is of something else."""
    arrays: _Arrays = {}
    # The one before is mostly of the same array.
    base, layout, chunks = "", Layout(0, 0), None
    for key, blob in edits.items():
        index_key = None
        if chunks is not None and key.startswith(base):
            index_key = layout.parse(key[len(base) :])
        if index_key is None or chunks is None:
            found = _array_of(hierarchy, key)
            if found is None:
                return None
            path, entry, layout, index_key = found
            base = f"{path}/" if path else ""
            chunks = arrays.setdefault(path, (entry, {}))[1]
        chunks[index_key] = None if blob is None else encode_blob(blob)
    return arrays


def _array_of(hierarchy: Hierarchy, key: str) -> tuple[str, Entry, Layout, bytes] | None:
    """Find the array whose chunk a key is: its path, entry and layout, and the index key."""
    path, tail = "", key
    entry: Entry | None = hierarchy.root
    while entry is not None:
        if entry.layout is not None:
            index_key = entry.layout.parse(tail)
            # Else it is a document, or something that an array seldom has below it.
            return None if index_key is None else (path, entry, entry.layout, index_key)
        name, slash, tail = tail.partition("/")
        # No member has an empty path: `join` would take it for the group above.
        if not slash or not name:
            return None
        path = join(path, name)
        entry = hierarchy.entry(path)
    return None
