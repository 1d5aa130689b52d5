"""Three-way merge of snapshots: what both sides did since their base, or where they cannot agree.

The merge walks three trees at once and skips every subtree that one side left alone, so that it
costs what was changed and not what is there. Documents merge key by key, chunks element by element:
only those that both sides changed are decoded. What remains, the same thing changed on both sides
to different values, is a conflict, as is a change to what the other side deleted, or new chunks of
one side in an array whose dtype, codecs or chunking the other side changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, final

from vzarr.btree import Tree
from vzarr.documents import merge_documents
from vzarr.errors import CorruptError, FormatError, InvalidInputError
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
    encode_blob,
    encode_entry,
    entry_measure,
)
from vzarr.hierarchy import join
from vzarr.metadata import ArrayMetadata, NodeMetadata, Region, layout_of, node_metadata
from vzarr.objects import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vzarr.elements import Elements, Sides

SideName = Literal["base", "ours", "theirs"]
_SIDES: tuple[SideName, ...] = ("base", "ours", "theirs")
Strategy = Literal["fail", "ours", "theirs"]
STRATEGIES = ("fail", "ours", "theirs")
Blobs = tuple[Blob | None, Blob | None, Blob | None]


@final
@dataclass(frozen=True, slots=True)
class Conflict:
    """One thing that both sides changed since their base."""

    path: str
    """The array or group; the key for a plain file."""
    kind: Literal["chunk", "document", "file", "node"]
    """``node``: deleted on one side and changed on the other, or an array that was made anew."""
    document: str | None = None
    """Which document: ``zarr.json``, ``.zattrs`` …"""
    coordinates: tuple[int, ...] | None = None
    """Which chunk."""
    region: Region | None = None
    """The smallest box around the elements that both sides changed to different values; where the
    chunk could not be merged by element, the part of the array which it covers."""
    reason: str | None = None
    """Why the chunk could not be merged by element; None if it was, or for what is no chunk."""
    _blobs: Blobs = field(default=(None, None, None), repr=False)
    _read: Callable[[Blob], bytes] | None = field(default=None, repr=False, compare=False)
    _decode: Callable[[Region], Sequence[NDArray[Any]]] | None = field(
        default=None, repr=False, compare=False
    )

    def decode(self, side: SideName) -> NDArray[Any]:
        """Give the values of ``region``, of the chunk of one side: "base", "ours" or "theirs".

        A missing chunk is full of the fill value. Raises ``InvalidInputError`` for a conflict that
        is about no chunk, ``FormatError`` where zarr cannot decode it, and ``CorruptError``. Like
        the bytes of ours, those values are there for as long as the session keeps its edits. Cost:
        decodes the chunk of each side.
        """
        from vzarr.elements import UndecodableError

        if side not in _SIDES:
            raise InvalidInputError(f"a side is one of {', '.join(_SIDES)}, not {side!r}")
        if self.kind != "chunk":
            raise InvalidInputError(
                f"only a chunk has values, and this is a conflict of a {self.kind}"
            )
        if self._decode is None or self.region is None:
            raise FormatError(f"{self.path or '/'}: chunk {self.coordinates}: {self.reason}")
        try:
            return self._decode(self.region)[_SIDES.index(side)]
        except UndecodableError as error:
            raise FormatError(f"{self.path or '/'}: chunk {self.coordinates}: {error}") from error

    @property
    def base(self) -> bytes | None:
        """The encoded bytes before both changes; None if there were none. Read when asked for."""
        return self._side(0)

    @property
    def ours(self) -> bytes | None:
        """The encoded bytes of this session or branch; None if deleted. Read when asked for."""
        return self._side(1)

    @property
    def theirs(self) -> bytes | None:
        """The encoded bytes of the other side; None if deleted. Read when asked for."""
        return self._side(2)

    def _side(self, number: int) -> bytes | None:
        blob = self._blobs[number]
        return None if blob is None or self._read is None else self._read(blob)

    def __str__(self) -> str:
        match self.kind:
            case "chunk":
                where = f" {format_region(self.region)}" if self.region is not None else ""
                what = f"{self.path or '/'}: chunk {self.coordinates}{where} changed on both sides"
                return what if self.reason is None else f"{what}; {self.reason}"
            case "document":
                return f"{self.path or '/'}: {self.document} changed on both sides"
            case "file":
                return f"{self.path}: changed on both sides"
        return f"{self.path or '/'}: deleted or made anew on one side, changed on the other"


def format_region(region: Region) -> str:
    """Spell a region as numpy would: ``[0:90, 10:20]``."""
    return "[" + ", ".join(f"{part.start}:{part.stop}" for part in region) + "]"


def merge(
    store: Store, base: Entry, ours: Entry, theirs: Entry, strategy: Strategy = "fail"
) -> tuple[Entry, list[Conflict]]:
    """Merge two snapshots' roots that both come from ``base``.

    Gives the merged root and the conflicts that ``strategy`` left open; for "ours" and "theirs"
    there are none. They decide what else would be a conflict, no more: of a chunk that both sides
    changed, the elements that both changed. O(changes · depth); for each chunk that both changed,
    some three times decoding and one encoding, and 1 to 3 ms.
    """
    merging = _Merge(store, strategy)
    return merging.entry("", base, ours, theirs), merging.conflicts


def racing_resizes(store: Store, base: Entry, ours: Entry, theirs: Entry) -> list[Conflict]:
    """Find arrays of which both sides resized one axis, to the same length.

    Between two sessions that is no agreement: each appended to what it saw, and of two equal rows,
    or rows of the fill value alone, a merge would keep one. O(changes · depth).
    """
    directories = Tree(store, entry_measure)
    found: list[Conflict] = []

    def visit(path: str, base: Entry, ours: Entry, theirs: Entry) -> None:
        if base.documents not in (ours.documents, theirs.documents):
            sides = (base, ours, theirs)
            nodes = [node_metadata(side.documents, store.read) for side in sides]
            if _both_resized(*nodes):
                name = next(iter(ours.documents))
                blobs = (base.documents.get(name), ours.documents[name], theirs.documents[name])
                found.append(
                    Conflict(path, "document", document=name, _blobs=blobs, _read=store.read)
                )
        for member, before, after in directories.diff(base.directory, ours.directory):
            if theirs.directory is None or after is None:
                continue
            their = directories.get(theirs.directory, member)
            if their is not None and their != before:
                below = join(path, decode_name(member))
                visit(below, _entry(before), _entry(after), _entry(their))

    visit("", base, ours, theirs)
    return found


@final
class _Merge:
    def __init__(self, store: Store, strategy: Strategy) -> None:
        self.conflicts: list[Conflict] = []
        self._store = store
        self._strategy = strategy
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
            self._conflict(Conflict(path, "node"))
            return theirs if self._strategy == "theirs" else ours
        documents = self._documents(path, base, ours, theirs)
        merged = replace(
            ours,
            documents=documents,
            layout=layout_of(documents, self._store.read),
            file=self._blob(base.file, ours.file, theirs.file, Conflict(path, "file")),
        )
        return replace(
            merged,
            index=self._index(path, merged, base, ours, theirs),
            directory=self._directory(path, base, ours, theirs),
        )

    def _documents(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> Mapping[str, Blob]:
        merged = {}
        for name in {**base.documents, **ours.documents, **theirs.documents}:
            sides = [side.documents.get(name) for side in (base, ours, theirs)]
            blob = self._merge_keys(*sides)
            if blob is None:
                conflict = Conflict(path, "document", document=name)
                blob = self._blob(sides[0], sides[1], sides[2], conflict)
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

    def _blob(
        self, base: Blob | None, ours: Blob | None, theirs: Blob | None, conflict: Conflict
    ) -> Blob | None:
        if ours == theirs or theirs == base:
            return ours
        if ours == base:
            return theirs
        self._conflict(replace(conflict, _blobs=(base, ours, theirs), _read=self._store.read))
        return theirs if self._strategy == "theirs" else ours

    def _index(
        self, path: str, merged: Entry, base: Entry, ours: Entry, theirs: Entry
    ) -> TreeRef | None:
        chunks = _Chunks(self._store, path, merged, (base, ours, theirs))

        def resolve(
            key: bytes, old: bytes | None, our: bytes | None, their: bytes | None
        ) -> bytes | None:
            blobs = (_blob(old), _blob(our), _blob(their))
            blob, conflict = chunks.merge(decode_coordinates(key), blobs, self._strategy)
            if conflict is not None:
                self._conflict(conflict)
            return None if blob is None else encode_blob(blob)

        return self._indexes.merge(base.index, ours.index, theirs.index, resolve)

    def _directory(self, path: str, base: Entry, ours: Entry, theirs: Entry) -> TreeRef | None:
        def resolve(
            name: bytes, old: bytes | None, our: bytes | None, their: bytes | None
        ) -> bytes | None:
            member = join(path, decode_name(name))
            merged = self.entry(member, _entry(old), _entry(our), _entry(their))
            return None if merged.is_empty else encode_entry(merged)

        return self._directories.merge(base.directory, ours.directory, theirs.directory, resolve)

    def _conflict(self, conflict: Conflict) -> None:
        if self._strategy == "fail":
            self.conflicts.append(conflict)


@final
class _Chunks:
    """The chunks of one array that both sides changed."""

    def __init__(
        self, store: Store, path: str, merged: Entry, sides: tuple[Entry, Entry, Entry]
    ) -> None:
        self._store = store
        self._path = path
        self._documents = merged.documents
        self._array = self._metadata(merged)
        self._sides = [self._metadata(side) for side in sides]
        self._elements: Elements | None = None

    def merge(
        self, coordinates: tuple[int, ...], blobs: Blobs, strategy: Strategy
    ) -> tuple[Blob | None, Conflict | None]:
        """Merge one chunk; give what to put in its place, and what both sides disagree about."""
        from vzarr.elements import UndecodableError

        # Where they shrank the array, only ours has a place for the chunk.
        arrays = [array for array in (self._array, self._sides[1]) if array is not None]
        regions = [array.region(coordinates) for array in arrays]
        conflict = Conflict(
            self._path,
            "chunk",
            coordinates=coordinates,
            region=next((region for region in regions if region is not None), None),
            _blobs=blobs,
            _read=self._store.read,
        )
        _, ours, theirs = blobs
        try:
            elements = self._decoder(blobs)
            sides = self._read(blobs)
            merged = elements.merge(coordinates, sides, None if strategy == "fail" else strategy)
        except (UndecodableError, CorruptError) as error:
            whole = theirs if strategy == "theirs" else ours
            return whole, replace(conflict, reason=str(error))
        if merged.overlap is not None and strategy == "fail":

            def decode(region: Region) -> Sequence[NDArray[Any]]:
                return elements.decode(coordinates, self._read(blobs), region)

            return ours, replace(conflict, region=merged.overlap, _decode=decode)
        for side, blob in ((sides.ours, ours), (sides.theirs, theirs)):
            if merged.chunk is side.chunk:
                return blob, None
        return None if merged.chunk is None else self._store.write(merged.chunk), None

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
            self._elements = Elements(documents, self._array)
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


def _both_resized(
    base: NodeMetadata | None, ours: NodeMetadata | None, theirs: NodeMetadata | None
) -> bool:
    """Whether both sides changed the length of one axis of an array."""
    if base is None or ours is None or theirs is None:
        return False
    if base.array is None or ours.array is None or theirs.array is None:
        return False
    shapes = (base.array.shape, ours.array.shape, theirs.array.shape)
    if len({len(shape) for shape in shapes}) != 1:
        return False
    return any(old != our == their for old, our, their in zip(*shapes, strict=True))


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
