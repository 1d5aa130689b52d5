"""Write what differs of groups and arrays to a session of Icechunk's, if it can hold that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, final

from vzarr.format import EMPTY_ENTRY, Blob, Layout
from vzarr.icestorage import wait
from vzarr.metadata import ArrayMetadata, node_metadata
from vzarr.nodediff import DOCUMENT, NodeDiff, NodeDiffs
from vzarr.objects import Objects, require_digest
from vzarr.progress import Meter

if TYPE_CHECKING:
    import icechunk

# What is on its way at once: a server that answers late is kept busy, and memory bounded.
_AT_ONCE = 16
_BATCH_KEYS = 256
_BATCH_BYTES = 16 << 20


@final
class Writer:
    """Writes to a session of Icechunk's, many values at once, in the order that they need."""

    def __init__(
        self, store: icechunk.IcechunkStore, objects: Objects, meter: Meter, *, by_bytes: bool
    ) -> None:
        self._store = store
        self._objects = objects
        self._meter = meter
        self._by_bytes = by_bytes
        self._keys: list[tuple[str, Blob | None]] = []
        self._waiting = 0
        self.values = self.nbytes = 0

    def delete_node(self, path: str) -> None:
        """Delete a group or an array with all that is below it."""
        self.flush()
        wait(self._store.delete_dir(path))

    def delete(self, key: str) -> None:
        """Delete a chunk."""
        self._add(key, None)

    def set_document(self, key: str, blob: Blob) -> None:
        """Write a document: after the chunks that go, before those that come."""
        self.flush()
        self._add(key, blob)
        self.flush()

    def set(self, key: str, blob: Blob) -> None:
        """Write a chunk."""
        self._add(key, blob)

    def _add(self, key: str, blob: Blob | None) -> None:
        self._keys.append((key, blob))
        self._waiting += 0 if blob is None else blob.length
        if len(self._keys) >= _BATCH_KEYS or self._waiting >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        from zarr.core.buffer import cpu
        from zarr.core.common import concurrent_map

        keys, self._keys, self._waiting = self._keys, [], 0
        if not keys:
            return
        store = self._store
        values = [
            (key, None if blob is None else cpu.Buffer.from_bytes(self._read(blob)))
            for key, blob in keys
        ]

        async def write(key: str, value: Any) -> None:
            await (store.delete(key) if value is None else store.set(key, value))

        wait(concurrent_map(values, write, _AT_ONCE))
        for _, blob in keys:
            if blob is not None:
                self.values += 1
                self.nbytes += blob.length
                self._meter.step(blob.length if self._by_bytes else 1)

    def _read(self, blob: Blob) -> bytes:
        data = self._objects.fetch(blob)
        return bytes(require_digest(blob, data, self._objects.environment.path))


@final
class Writing:
    """What is to be written of nodes that differ, in the order that Icechunk needs."""

    def __init__(self, objects: Objects, diffs: NodeDiffs) -> None:
        self._objects = objects
        self._diffs = diffs

    def write(self, pair: NodeDiff, writer: Writer) -> None:
        """Write what differs of one node: while the old shape is there, what goes; then the new."""
        if pair.gone:
            writer.delete_node(pair.path)
        for _, key, before, after in self._diffs.chunks(pair):
            if before is not None and after is None:
                writer.delete(key)
        document = pair.new.documents.get(DOCUMENT)
        if document is not None and document != pair.old.documents.get(DOCUMENT):
            writer.set_document(f"{pair.path}/{DOCUMENT}" if pair.path else DOCUMENT, document)
        for _, key, _, after in self._diffs.chunks(pair):
            if after is not None:
                writer.set(key, after)

    def values(self, pair: NodeDiff) -> Iterator[Blob]:
        """List what is to be written of a node."""
        if pair.new.documents != pair.old.documents:
            yield from pair.new.documents.values()
        for _, _, _, blob in self._diffs.chunks(pair):
            if blob is not None:
                yield blob

    def misfits(self, pair: NodeDiff) -> Iterator[tuple[str, str]]:
        """List keys of a node that Icechunk has no place for, and why."""
        path, new = pair.path, pair.new
        base = f"{path}/" if path else ""
        if any(name in ("", ".", "..", DOCUMENT) for name in path.split("/")) and path:
            yield path, "no name of a group or an array"
        if new.file is not None:
            yield path, "neither metadata nor a chunk"
        for name in new.documents:
            if name != DOCUMENT:
                yield base + name, "Zarr format 2"
        if DOCUMENT not in new.documents:
            return
        data = self._objects.read(new.documents[DOCUMENT])
        node = node_metadata(new.documents, self._objects.read)
        if node is None:
            yield base + DOCUMENT, "not what Zarr means by it"
            return
        if not _is_strict(data):
            yield base + DOCUMENT, "NaN or Infinity, which strict JSON does not have"
        if node.array is None:
            return
        if not _is_spelled_by_default(new.layout):
            yield base + DOCUMENT, "chunk keys that are not spelled c/0/0"
            return
        if self._shrank(pair, node.array):
            # Icechunk drops what then lies outside, also where nothing else changed.
            pair = NodeDiff(path, pair.gone, EMPTY_ENTRY, new)
        for coordinates, key, _, blob in self._diffs.chunks(pair):
            if blob is not None and blob.length == 0:
                yield key, "an empty chunk"
            elif blob is not None and node.array.region(coordinates) is None:
                yield key, "a chunk outside of its array"

    def _shrank(self, pair: NodeDiff, array: ArrayMetadata) -> bool:
        """Whether an array was longer on some axis before."""
        old = node_metadata(pair.old.documents, self._objects.read)
        if old is None or old.array is None:
            return False
        return any(new < before for new, before in zip(array.shape, old.array.shape, strict=True))


def _is_spelled_by_default(layout: Layout | None) -> bool:
    if layout is None or not layout.prefixed:
        return False
    return layout.separator == "/" or layout.ndim == 0


def _is_strict(data: bytes) -> bool:
    """Whether this is JSON to others, too: Python alone takes NaN for a number."""
    try:
        json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
