"""Three-way merge of snapshots: what both sides did since their base, or where they cannot agree.

The merge walks three trees at once and skips every subtree that one side left alone, so that it
costs what was changed and not what is there. Documents merge key by key, chunks element by element:
only those that both sides changed are decoded. What remains, the same thing changed on both sides
to different values, is a conflict, as is a change to what the other side deleted, or new chunks of
one side in an array whose dtype, codecs or chunking the other side changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

from vzarr.btree import Tree
from vzarr.documents import merge_documents
from vzarr.errors import CorruptError, InvalidInputError
from vzarr.format import (
    EMPTY_ENTRY,
    Blob,
    Entry,
    TreeRef,
    blob_measure,
    chunk_digest,
    decode_blob,
    decode_coordinates,
    decode_entry,
    decode_name,
    encode_blob,
    encode_entry,
    entry_measure,
)
from vzarr.hierarchy import join
from vzarr.metadata import ArrayMetadata, NodeMetadata, Region, node_metadata
from vzarr.objects import Store
from vzarr.resizes import racing_resizes
from vzarr.resolution import (
    STRATEGIES,
    Blobs,
    Conflict,
    Resolution,
    Resolver,
    Strategy,
    check_strategy,
    format_region,
    is_side,
    list_conflicts,
    refusal,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vzarr.elements import Elements, Merged, Preference, Sides

__all__ = [
    "SAME_VALUE",
    "STRATEGIES",
    "Chunks",
    "Conflict",
    "Resolution",
    "Strategy",
    "check_strategy",
    "format_region",
    "list_conflicts",
    "merge",
    "racing_resizes",
]

SAME_VALUE = "to the same value"
"""Why it is a conflict that two transactions changed a thing alike."""


def merge(
    store: Store,
    base: Entry,
    ours: Entry,
    theirs: Entry,
    strategy: Strategy = "fail",
    *,
    may_agree: bool = True,
) -> tuple[Entry, list[Conflict]]:
    """Merge two snapshots' roots that both come from ``base``.

    Gives the merged root and the conflicts that ``strategy`` left open; for "ours" and "theirs"
    there are none. They decide what else would be a conflict, no more: of a chunk that both sides
    changed, the elements that both changed. A function is asked about each conflict, see
    ``Strategy``. Which side is called ours makes no difference but to conflicts. Unless sides
    ``may_agree``, an element that both changed to the same value is a conflict in a chunk that they
    did not change alike; ``agreements`` finds what they did change alike.

    Raises ``InvalidInputError`` for a resolution that cannot be taken, and what the function
    raises. O(changes · depth); for each chunk that both changed, some three times decoding and one
    encoding, and 1 to 3 ms.
    """
    resolver = Resolver(strategy, store)
    merging = _Merge(store, resolver, may_agree=may_agree)
    return merging.entry("", base, ours, theirs), resolver.open


@final
class _Merge:
    def __init__(self, store: Store, resolver: Resolver, *, may_agree: bool) -> None:
        self._store = store
        self._resolver = resolver
        self._may_agree = may_agree
        self._indexes = Tree(store, blob_measure)
        self._directories = Tree(store, entry_measure)

    def entry(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> Entry:
        """Merge all that lies at and below one path."""
        if ours == theirs or theirs == base:
            return ours
        if ours == base:
            return theirs
        nodes = [node_metadata(side.documents, self._store.read) for side in (base, ours, theirs)]
        if ours.layout != theirs.layout or _incompatible(*nodes):
            return self._resolver.side(Conflict(path, "node"), (base, ours, theirs))
        documents = self._documents(path, base, ours, theirs)
        if self._meaning(documents) != self._meaning(ours.documents):
            # As documents of both Zarr formats may, of which each side has others.
            reason = "the documents of both sides together make another kind of node"
            return self._resolver.side(Conflict(path, "node", reason=reason), (base, ours, theirs))
        file = self._blob((base.file, ours.file, theirs.file), Conflict(path, "file"))
        merged = replace(ours, documents=documents, file=file)
        return replace(
            merged,
            index=self._index(path, merged, base, ours, theirs),
            directory=self._directory(path, base, ours, theirs),
        )

    def _meaning(self, documents: Mapping[str, Blob]) -> object:
        """Give what the keys and bytes below a node rely on."""
        node = node_metadata(documents, self._store.read)
        if node is None:
            return None
        return node.kind, None if node.array is None else (node.array.layout, node.array.encoding)

    def _documents(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> dict[str, Blob]:
        merged = {}
        for name in {**base.documents, **ours.documents, **theirs.documents}:
            sides = (base.documents.get(name), ours.documents.get(name), theirs.documents.get(name))
            blob = self._merge_keys(*sides)
            if blob is None:
                blob = self._document(path, name, sides, ours)
            if blob is not None:
                merged[name] = blob
        return merged

    def _merge_keys(self, base: Blob | None, ours: Blob | None, theirs: Blob | None) -> Blob | None:
        """Merge a document that both sides changed key by key; None where that does not work."""
        if base is None or ours is None or theirs is None or len({base, ours, theirs}) < 3:
            return None
        read = self._store.read
        data = merge_documents(read(base), read(ours), read(theirs))
        return None if data is None else self._store.write(data)

    def _document(self, path: str, name: str, blobs: Blobs, ours: Entry) -> Blob | None:
        conflict = Conflict(path, "document", document=name)
        blob = self._blob(blobs, conflict)
        if blob not in blobs[1:]:
            # A function may put anything here.
            documents = {**ours.documents, name: blob}
            known = {name: blob for name, blob in documents.items() if blob is not None}
            if self._meaning(known) != self._meaning(ours.documents):
                raise InvalidInputError(
                    f"{conflict}, and cannot be resolved with what would give the chunks and keys "
                    "below another meaning: keep the kind of node, and of an array all but its "
                    "shape, attributes and names of dimensions"
                )
        return blob

    def _blob(self, blobs: Blobs, conflict: Conflict) -> Blob | None:
        base, ours, theirs = blobs
        if ours == theirs or theirs == base:
            return ours
        if ours == base:
            return theirs
        conflict = replace(conflict, _blobs=blobs, _read=self._store.read)
        return self._resolver.blob(conflict, blobs)

    def _index(
        self, path: str, merged: Entry, base: Entry, ours: Entry, theirs: Entry
    ) -> TreeRef | None:
        sides = (base, ours, theirs)
        chunks = Chunks(self._store, self._resolver, path, merged, sides, may_agree=self._may_agree)

        def resolve(
            key: bytes, old: bytes | None, our: bytes | None, their: bytes | None
        ) -> bytes | None:
            blob = chunks.merge(decode_coordinates(key), (_blob(old), _blob(our), _blob(their)))
            return None if blob is None else encode_blob(blob)

        with closing(chunks):
            return self._indexes.merge(base.index, ours.index, theirs.index, resolve)

    def _directory(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> TreeRef | None:
        def resolve(
            name: bytes, old: bytes | None, our: bytes | None, their: bytes | None
        ) -> bytes | None:
            member = join(path, decode_name(name))
            merged = self.entry(member, _entry(old), _entry(our), _entry(their))
            return None if merged.is_empty else encode_entry(merged)

        return self._directories.merge(base.directory, ours.directory, theirs.directory, resolve)


@final
class Chunks:
    """The chunks of one array that both sides changed."""

    def __init__(
        self,
        store: Store,
        resolver: Resolver,
        path: str,
        merged: Entry,
        sides: tuple[Entry, Entry, Entry],
        *,
        may_agree: bool,
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._may_agree = may_agree
        self._path = path
        self._documents = merged.documents
        self._array = self._metadata(merged)
        self._sides = [self._metadata(side) for side in sides]
        self._elements: Elements | None = None
        self._open = ExitStack()

    def close(self) -> None:
        """Let go of the thread that decoded them."""
        self._open.close()

    def merge(self, coordinates: tuple[int, ...], blobs: Blobs) -> Blob | None:
        """Merge one chunk; give what to put in its place."""
        from vzarr.elements import UndecodableError

        try:
            favourite = self._resolver.favourite
            merged = self._by_element(coordinates, blobs, favourite)
            if merged.overlap is None or favourite is not None:
                return self._stored(merged, blobs)
            conflict = self._overlap(coordinates, blobs, merged.overlap)
            answer = self._resolver.ask(conflict)
            if answer is None:
                return blobs[1]
            if isinstance(answer, (bytes, bytearray, memoryview)):
                return self._resolver.stored(conflict, answer, blobs)
            return self._stored(self._resolved(conflict, answer, blobs), blobs)
        except UndecodableError as error:
            # Also where there is an answer for the elements, but no way to encode the result.
            conflict = self._conflict(coordinates, blobs)
            return self._resolver.blob(replace(conflict, reason=str(error)), blobs)

    def _by_element(self, coordinates: tuple[int, ...], blobs: Blobs, prefer: Preference) -> Merged:
        from vzarr.elements import UndecodableError

        elements = self._decoder(blobs)
        try:
            sides = self._read(blobs)
        except CorruptError as error:
            raise UndecodableError(str(error)) from error
        return elements.merge(coordinates, sides, prefer)

    def _resolved(self, conflict: Conflict, answer: Any, blobs: Blobs) -> Merged:
        """Merge a chunk again, with what a function gave for the overlap."""
        import numpy as np

        from vzarr.elements import Patch, UnfitError

        assert conflict.coordinates is not None
        assert conflict.region is not None
        prefer: Preference = answer if is_side(answer) else None
        if prefer is None:
            if isinstance(answer, (str, Mapping)):
                what = "base, ours, theirs, bytes, or values for the region"
                raise refusal(conflict, answer, f"it is one of {what}")
            try:
                prefer = Patch(conflict.region, np.asarray(answer))
            except (ValueError, TypeError) as error:
                raise refusal(conflict, answer, f"no array can be made of it: {error}") from error
        try:
            return self._by_element(conflict.coordinates, blobs, prefer)
        except UnfitError as error:
            raise refusal(conflict, answer, str(error)) from error

    def _stored(self, merged: Merged, blobs: Blobs) -> Blob | None:
        if merged.chunk is None:
            return None
        blob = Blob(chunk_digest(merged.chunk), len(merged.chunk))
        return blob if blob in blobs else self._store.write(merged.chunk)

    def _conflict(self, coordinates: tuple[int, ...], blobs: Blobs) -> Conflict:
        """Describe a conflict of the chunk as a whole."""
        # Where they shrank the array, only ours has a place for the chunk.
        arrays = [array for array in (self._array, self._sides[1]) if array is not None]
        regions = [array.region(coordinates) for array in arrays]
        return Conflict(
            self._path,
            "chunk",
            coordinates=coordinates,
            region=next((region for region in regions if region is not None), None),
            _blobs=blobs,
            _read=self._store.read,
        )

    def _overlap(self, coordinates: tuple[int, ...], blobs: Blobs, overlap: Region) -> Conflict:
        """Describe a conflict of the elements in a box."""
        elements = self._decoder(blobs)
        decoded: list[NDArray[Any]] = []

        def decode(region: Region) -> Sequence[NDArray[Any]]:
            if not decoded:
                sides = elements.decode(coordinates, self._read(blobs), region)
                # Copied: the rest of the chunk is of no use.
                decoded.extend(values.copy() for values in sides)
            return decoded

        conflict = self._conflict(coordinates, blobs)
        reason = SAME_VALUE if blobs[1] == blobs[2] else None
        return replace(conflict, region=overlap, reason=reason, _decode=decode)

    def _decoder(self, blobs: Blobs) -> Elements:
        from vzarr.elements import Elements, UndecodableError

        if self._array is None or self._array.grid is None:
            raise UndecodableError("vzarr does not understand the array's metadata")
        base = self._sides[0]
        if blobs[0] is not None and (base is None or base.encoding != self._array.encoding):
            raise UndecodableError("both sides changed how the array's chunks are encoded")
        if self._elements is None:
            read = self._store.read
            documents = {name: read(blob) for name, blob in self._documents.items()}
            self._elements = self._open.enter_context(
                Elements(documents, self._array, may_agree=self._may_agree)
            )
        return self._elements

    def _read(self, blobs: Blobs) -> Sides:
        from vzarr.elements import Side, Sides

        read = self._store.read
        return Sides(
            *(
                Side(None if blob is None else read(blob), None if array is None else array.shape)
                for blob, array in zip(blobs, self._sides, strict=True)
            )
        )

    def _metadata(self, entry: Entry) -> ArrayMetadata | None:
        node = node_metadata(entry.documents, self._store.read)
        return node.array if node is not None else None


def _blob(value: bytes | None) -> Blob | None:
    return None if value is None else decode_blob(value)


def _entry(value: bytes | None) -> Entry:
    return EMPTY_ENTRY if value is None else decode_entry(value)


def _incompatible(
    base: NodeMetadata | None, ours: NodeMetadata | None, theirs: NodeMetadata | None
) -> bool:
    """Whether both sides' changes to one node, each to something else, cannot be put together."""
    if ours is None or theirs is None:
        # Deleted on one side: the other has changed it, or it would be equal to the base.
        return base is not None and (ours is not None or theirs is not None)
    if ours.kind != theirs.kind:
        return True
    if ours.array is None or theirs.array is None:
        return False
    return ours.array.encoding != theirs.array.encoding
