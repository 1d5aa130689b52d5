"""A snapshot of which parts are lost, made whole: what is left of it, as if the rest were deleted.

What is deleted is a key, never more than was lost: an array lacks the chunks that are gone, and
shows its fill value there. Without its metadata document an array is none, and its chunks' keys are
those of plain files; they are chunks again as soon as somebody writes the document anew.

Of the snapshots in a history one is much like the next. A tree is looked at once; and where an
index has to be made anew, it is made from the one made last for the same path and what differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, final

from vzarr.btree import Item, Tree
from vzarr.errors import CorruptError
from vzarr.format import (
    BLOB_BYTES,
    DIGEST_BYTES,
    EMPTY_ENTRY,
    Blob,
    Entry,
    TreeRef,
    blob_measure,
    decode_blob,
    decode_entry,
    decode_name,
    encode_blob,
    encode_entry,
    entry_measure,
    node_digest,
)
from vzarr.hierarchy import Hierarchy, join
from vzarr.node import Node, decode_node, encode_node
from vzarr.objects import Cache

if TYPE_CHECKING:
    from vzarr.salvage import Salvage

_CACHE_BYTES = 32 << 20
_DECODED_FACTOR = 3


@final
class Mender:
    """Makes snapshots whole, and keeps the nodes that it made. Not thread-safe."""

    def __init__(self, salvage: Salvage) -> None:
        self._salvage = salvage
        self.nodes: dict[bytes, bytes] = {}
        """The nodes that were made, by digest."""
        self._decoded: Cache[bytes, Node] = Cache(_CACHE_BYTES)
        self._whole: dict[tuple[bytes, bool], bool] = {}
        # By path: the index of which the last one was made, and that one.
        self._before: dict[str, tuple[TreeRef, TreeRef | None]] = {}
        self._indexes = Tree(self, blob_measure)
        self._directories = Tree(self, entry_measure)

    def mend(self, root: Entry) -> Entry:
        """Give what is left of a snapshot. O(what is lost, and what shares a tree with it)."""
        documents: dict[str, Blob | None] = {}
        mended = self._entry("", root, documents)
        return Hierarchy(self, mended).edit(documents).root if documents else mended

    def rebuild(self, root: Entry) -> Entry:
        """Give what is left of a snapshot that no writer should have made. O(keys)."""
        return Hierarchy(self, EMPTY_ENTRY).edit(dict(self._keys("", root))).root

    def is_whole(self, root: bytes) -> bool:
        """Tell whether nothing of a snapshot is lost. O(nodes that were not looked at)."""
        try:
            data = self._salvage.get("nodes", root)
            return data is not None and self._entry_is_whole(decode_entry(data))
        except (CorruptError, RecursionError):
            return False

    # ── as the store of the trees ────────────────────────────────────────────────────────────────

    def load(self, digest: bytes) -> Node:
        """Give a node. Raises ``CorruptError`` if it is lost."""
        node = self._decoded.get(digest)
        if node is None:
            data = self.nodes.get(digest) or self._salvage.get("nodes", digest)
            if data is None or node_digest(data) != digest:
                raise CorruptError(f"tree node {digest.hex()[:12]} is lost")
            node = decode_node(data)
            self._decoded.put(digest, node, len(data) * _DECODED_FACTOR)
        return node

    def save(self, node: Node) -> bytes:
        """Keep a node that was made, unless the file has it."""
        node_bytes = encode_node(node.level, node.keys, node.values)
        digest = node_digest(node_bytes)
        if not self._salvage.contains("nodes", digest):
            self.nodes[digest] = node_bytes
        return digest

    def read(self, blob: Blob) -> bytes:
        """Give a document. Raises ``CorruptError`` if it is lost."""
        data = self._salvage.get("chunks", blob.digest)
        if data is None or len(data) != blob.length:
            raise CorruptError(f"document {blob.digest.hex()[:12]} is lost")
        return data

    def write(self, data: bytes) -> Blob:
        """Refuse: nothing here makes values."""
        raise AssertionError(f"{len(data)} bytes are written where snapshots are mended")

    # ── what is whole ────────────────────────────────────────────────────────────────────────────

    def has(self, reference: bytes) -> bool:
        """Tell whether the bytes of an encoded reference are there. O(1)."""
        if len(reference) != BLOB_BYTES:
            return False
        length = self._salvage.nbytes(reference[:DIGEST_BYTES])
        return length == int.from_bytes(reference[DIGEST_BYTES:], "little")

    def _tree_is_whole(self, digest: bytes, *, directory: bool) -> bool:
        whole = self._whole.get((digest, directory))
        if whole is None:
            whole = self._whole[digest, directory] = self._look(digest, directory=directory)
        return whole

    def _look(self, digest: bytes, *, directory: bool) -> bool:
        try:
            node = self.load(digest)
            if node.level:
                children = [value[:DIGEST_BYTES] for value in node.values]
                return all(self._tree_is_whole(child, directory=directory) for child in children)
            if directory:
                return all(self._entry_is_whole(decode_entry(value)) for value in node.values)
        except CorruptError:
            return False
        return all(map(self.has, node.values))

    def _entry_is_whole(self, entry: Entry) -> bool:
        blobs = [*entry.documents.values(), *([entry.file] if entry.file is not None else [])]
        return (
            all(self.has(encode_blob(blob)) for blob in blobs)
            and (entry.index is None or self._tree_is_whole(entry.index.digest, directory=False))
            and (
                entry.directory is None
                or self._tree_is_whole(entry.directory.digest, directory=True)
            )
        )

    # ── what is left ─────────────────────────────────────────────────────────────────────────────

    def _entry(self, path: str, entry: Entry, documents: dict[str, Blob | None]) -> Entry:
        """Take out what is lost at and below a path, but for documents: note their keys."""
        for name, blob in entry.documents.items():
            if not self.has(encode_blob(blob)):
                documents[join(path, name)] = None
        index, directory, file = entry.index, entry.directory, entry.file
        if index is not None and not self._tree_is_whole(index.digest, directory=False):
            index = self._index(path, index)
        if directory is not None and not self._tree_is_whole(directory.digest, directory=True):
            directory = self._directories.build(self._members(path, directory, documents))
        if file is not None and not self.has(encode_blob(file)):
            file = None
        return replace(entry, index=index, directory=directory, file=file)

    def _members(
        self, path: str, directory: TreeRef, documents: dict[str, Blob | None]
    ) -> Iterator[Item]:
        for key, value in self._left(directory.digest):
            try:
                name, entry = decode_name(key), decode_entry(value)
            except CorruptError:
                continue
            member = self._entry(join(path, name), entry, documents)
            if not member.is_empty:
                yield key, encode_entry(member)

    def _index(self, path: str, index: TreeRef) -> TreeRef | None:
        mended = self._from_before(path, index)
        if mended is None:
            mended = self._indexes.build(
                (key, value) for key, value in self._left(index.digest) if self.has(value)
            )
        self._before[path] = index, mended
        return mended

    def _from_before(self, path: str, index: TreeRef) -> TreeRef | None:
        """Make an index from the last one of its path, if what differs is not on lost nodes."""
        if path not in self._before:
            return None
        before, mended = self._before[path]
        try:
            edits = [
                (key, value if value is not None and self.has(value) else None)
                for key, _, value in self._indexes.diff(before, index)
            ]
            return self._indexes.apply(mended, edits)
        except CorruptError:
            return None

    def _left(self, root: bytes) -> Iterator[Item]:
        """Give the entries of a tree that are not on lost nodes, in order."""
        last: bytes | None = None
        for key, value in self._below(root, None, None):
            if last is None or key > last:
                yield key, value
                last = key

    def _below(self, digest: bytes, level: int | None, last: bytes | None) -> Iterator[Item]:
        try:
            node = self.load(digest)
        except CorruptError:
            return
        # A level can only be what its parent says, so that this ends.
        if level is not None and (node.level, node.keys[-1]) != (level, last):
            return
        for key, value in zip(node.keys, node.values, strict=True):
            if node.level:
                yield from self._below(value[:DIGEST_BYTES], node.level - 1, key)
            else:
                yield key, value

    def _keys(self, base: str, entry: Entry) -> Iterator[tuple[str, Blob]]:
        """Give all keys that are left at and below an entry, as a store lists them."""
        documents: Mapping[str, Blob] = entry.documents
        for name, blob in documents.items():
            if self.has(encode_blob(blob)):
                yield base + name, blob
        if entry.index is not None and entry.layout is not None:
            for key, value in self._left(entry.index.digest):
                if self.has(value) and len(key) == 4 * entry.layout.ndim:
                    yield base + entry.layout.spell(key), decode_blob(value)
        if entry.directory is not None:
            for key, value in self._left(entry.directory.digest):
                try:
                    name, member = decode_name(key), decode_entry(value)
                except CorruptError:
                    continue
                if member.file is not None and self.has(encode_blob(member.file)) and base + name:
                    yield base + name, member.file
                yield from self._keys(f"{base}{name}/", member)
