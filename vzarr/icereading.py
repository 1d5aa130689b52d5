"""Read a snapshot of Icechunk's: what of it is new beside its parent, and all the bytes of that.

Icechunk tells what a snapshot changed. That is what its transaction did, and no comparison: for one
whose parent was expired, whose new parent is the empty beginning, it says nothing of what was there
before. Such a snapshot is read as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from vzarr.errors import CorruptError, InvalidInputError, RefNotFoundError
from vzarr.hierarchy import join
from vzarr.icestorage import Place, errors, wait
from vzarr.nodediff import DOCUMENT

if TYPE_CHECKING:
    import icechunk

_AT_ONCE = 16
_BATCH_BYTES = 16 << 20
_LISTED = 10_000
_INLINE = 3


@final
@dataclass(slots=True)
class News:
    """What a snapshot has that its parent has not."""

    gone: set[str] = field(default_factory=set)
    """Groups and arrays of which nothing stays, nor of what is below them."""
    documents: set[str] = field(default_factory=set)
    """Groups and arrays whose document is to be read."""
    whole: set[str] = field(default_factory=set)
    """Those of which all chunks are to be read, too."""
    chunks: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    """The chunks of others that were written or deleted."""


@final
class Snapshot:
    """One snapshot, open for reading."""

    def __init__(self, theirs: icechunk.Repository, place: Place, info: icechunk.SnapshotInfo):
        self._theirs = theirs
        self._place = place
        self._info = info
        self._session = theirs.readonly_session(snapshot_id=info.id)
        self._store = self._session.store

    def nodes(self) -> dict[str, str]:
        """List all groups and arrays: path → "group" or "array". O(nodes)."""
        # The other form of it holds Python's lock while it waits for a server.
        found = wait(self._theirs.inspect_snapshot_async(self._info.id))["nodes"]
        return {node["path"].strip("/"): node["node_type"] for node in found}

    def news(self, parent: str | None, *, first: bool) -> News:
        """Find what is new beside the parent, which may be the ``first`` of all, or None."""
        if parent is None or first:
            nodes = set(self.nodes())
            return News(gone={""}, documents=nodes, whole=nodes)
        diff = self._theirs.diff(from_snapshot_id=parent, to_snapshot_id=self._info.id)
        moved = {path for pair in diff.moved_nodes for path in pair}
        new = diff.new_groups | diff.new_arrays | moved
        gone = diff.deleted_groups | diff.deleted_arrays | moved
        return News(
            gone={path.strip("/") for path in gone},
            documents={path.strip("/") for path in new | diff.updated_groups | diff.updated_arrays},
            whole={path.strip("/") for path in new},
            chunks={
                path.strip("/"): [tuple(each) for each in coordinates]
                for path, coordinates in diff.updated_chunks.items()
                if path not in new
            },
        )

    def documents(self, paths: set[str]) -> Iterator[tuple[str, bytes]]:
        """Read documents by their keys, parents first; none of what is not there."""
        for path in sorted(paths):
            key = join(path, DOCUMENT) if path else DOCUMENT
            data = self._read([key])[0]
            if data is not None:
                yield key, data

    def chunks_of(self, path: str) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Read all chunks of an array; none of what is no array there."""
        waiting: list[tuple[int, ...]] = []
        nbytes = 0
        for coordinates, length, inlined in self._references(path):
            if inlined is not None:
                yield coordinates, inlined
                continue
            waiting.append(coordinates)
            nbytes += length
            if nbytes >= _BATCH_BYTES or len(waiting) >= _LISTED:
                yield from self._present(path, waiting)
                waiting, nbytes = [], 0
        yield from self._present(path, waiting)

    def chunks(
        self, path: str, coordinates: list[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], bytes | None]]:
        """Read chunks of an array; None for those that are not there."""
        for start in range(0, len(coordinates), _AT_ONCE):
            some = coordinates[start : start + _AT_ONCE]
            yield from zip(some, self._read([_key(path, each) for each in some]), strict=True)

    def count(self, path: str) -> int:
        """Count the chunks of an array. O(chunks)."""
        return sum(1 for _ in self._references(path))

    def _present(
        self, path: str, coordinates: list[tuple[int, ...]]
    ) -> Iterator[tuple[tuple[int, ...], bytes]]:
        for each, data in self.chunks(path, coordinates):
            if data is None:
                raise CorruptError(
                    f"{_key(path, each)} of snapshot {self._info.id} of {self._place.label} is "
                    "listed and is not there",
                    path=self._place.path or self._place.label,
                )
            yield each, data

    def _references(self, path: str) -> Iterator[tuple[tuple[int, ...], int, bytes | None]]:
        """List the chunks of an array: coordinates, length, and the bytes where they are known."""
        batches = self._store.array_chunk_iterator(path, _LISTED).__aiter__()
        while True:
            batch: Any = wait(_next(batches))
            if batch is None:
                return
            places, kinds, _, _, lengths, inlined = batch
            for row, coordinates in enumerate(places.tolist()):
                data = bytes(inlined[row]) if kinds[row] == _INLINE else None
                yield tuple(coordinates), int(lengths[row]), data

    def _read(self, keys: list[str]) -> list[bytes | None]:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.common import concurrent_map

        store, prototype = self._store, default_buffer_prototype()

        async def read(key: str) -> bytes | None:
            with errors(self._place, f"read {key} of"):
                value = await store.get(key, prototype)
            return None if value is None else value.to_bytes()

        return wait(concurrent_map([(key,) for key in keys], read, _AT_ONCE))


def store_at(theirs: icechunk.Repository, place: Place, ref: object) -> icechunk.IcechunkStore:
    """Give the store of one snapshot: of a branch, a tag, or by its id."""
    if not isinstance(ref, str):
        raise InvalidInputError(f"ref= is a branch, a tag or a snapshot there, not {ref!r}")
    with errors(place, "read"):
        if ref in theirs.list_branches():
            return theirs.readonly_session(branch=ref).store
        if ref in theirs.list_tags():
            return theirs.readonly_session(tag=ref).store
        if ref in _ids(theirs):
            return theirs.readonly_session(snapshot_id=ref).store
    raise RefNotFoundError(f"{place.label} has no branch, tag or snapshot {ref!r}", name=ref)


def _ids(theirs: icechunk.Repository) -> Iterator[str]:
    """List all snapshots that have names."""
    heads = [theirs.lookup_branch(name) for name in theirs.list_branches()]
    heads += [theirs.lookup_tag(name) for name in theirs.list_tags()]
    seen: set[str] = set()
    for head in heads:
        for info in theirs.ancestry(snapshot_id=head):
            if info.id in seen:
                break
            seen.add(info.id)
            yield info.id


def _key(path: str, coordinates: tuple[int, ...]) -> str:
    return "/".join([*([path] if path else []), "c", *map(str, coordinates)])


async def _next(batches: Any) -> Any:
    try:
        return await batches.__anext__()
    except StopAsyncIteration:
        return None
