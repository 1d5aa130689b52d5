"""Snapshots under inspection: roots, directories and indexes, each object once.

What is wrong below an object is remembered with the object. So a snapshot that shares a damaged
node with another one costs a lookup, and it can be told of every commit what damage it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

from vzarr.btree import ending
from vzarr.documents import is_document
from vzarr.errors import CorruptError
from vzarr.evidence import MISSING, Loader, LostError, Values, wrong_length
from vzarr.findings import Kind, Place
from vzarr.format import (
    BLOB_BYTES,
    DOCUMENTS,
    MAX_DEPTH,
    Blob,
    Entry,
    Layout,
    TreeRef,
    chunk_digest,
    decode_coordinates,
    decode_entry,
    decode_name,
    encode_blob,
    entry_digest,
    node_digest,
)
from vzarr.hierarchy import chunk_prefix
from vzarr.metadata import ArrayMetadata, Region, layout_of, node_metadata
from vzarr.node import MAX_ENTRIES, REFERENCE, Node, decode_node, row_of

MAX_PLACES = 1000
"""So many places of damage are told apart in one snapshot; further ones are counted."""

# So many arrays above a path are kept in mind.
_MAX_CONTEXT = 2

Context = tuple[tuple[Layout, str], ...]
"""For each array above a path: how it spells chunk keys, and what of them the path is."""


@final
@dataclass(frozen=True, slots=True)
class _Known:
    """A node that was loaded: what its parents must agree with, and the damage below it."""

    directory: bool
    level: int
    size: int
    first: bytes
    """The first key of all below."""
    last: bytes
    key_bytes: int
    """The width of all keys below; -1 where they differ."""
    count: int
    nbytes: int
    closed: bool
    """Whether it, and each last node below it, ends where a node must end before another."""
    places: tuple[Place, ...]


@final
@dataclass(slots=True)
class _Below:
    """What a look below a node found."""

    places: list[Place] = field(default_factory=list)
    count: int = 0
    nbytes: int = 0
    first: bytes | None = None
    closed: bool = True
    widths: set[int] = field(default_factory=set)


class _TooDeepError(Exception):
    """Never leaves this module."""


@final
class Inspection:
    """Looks at snapshots, and at each object that they share once. Not thread-safe."""

    def __init__(
        self, loader: Loader, values: Values, *, whole: bool, step: Callable[[int], None]
    ) -> None:
        """``whole`` also asks whether documents are JSON; ``step`` is called for each object."""
        self._load = loader.load
        self._left_out = loader.left_out
        self._values = values
        self._whole = whole
        self._step = step
        self.omitted = 0
        """How many places were left out, because there are so many."""
        self._depth = 0
        self._roots: dict[bytes, tuple[Place, ...]] = {}
        self._nodes: dict[bytes | tuple[bytes, Context], _Known | str] = {}
        self._entries: dict[tuple[bytes, Context], tuple[Place, ...]] = {}
        self._documents: dict[Blob, Place | None] = {}

    @property
    def nodes(self) -> int:
        """How many nodes and roots were looked at."""
        return len(self._nodes) + len(self._roots)

    def reached(self) -> set[bytes]:
        """Give the digests of these nodes and roots. O(nodes)."""
        nodes = {key[0] if isinstance(key, tuple) else key for key in self._nodes}
        return nodes | self._roots.keys()

    def snapshot(self, root: bytes) -> tuple[Place, ...]:
        """Look at a snapshot; give where it is damaged. O(new nodes)."""
        places = self._roots.get(root)
        if places is None and root in self._left_out:
            return ()
        if places is None:
            self._step(1)
            try:
                entry = self._load("nodes", root, entry_digest, decode_entry)
                places = self._entry(entry, ())
            except LostError as error:
                places = (Place("snapshot", f"root {_name(root)}: {error}", root),)
            except _TooDeepError:
                message = f"groups are nested more than {MAX_DEPTH} deep, and nobody reads them"
                places = (Place("snapshot", message, root),)
            self._roots[root] = places
        return places

    def _entry(self, entry: Entry, context: Context) -> tuple[Place, ...]:
        """Look at all that lies at and below one path; places are relative to it."""
        if self._depth > MAX_DEPTH:
            raise _TooDeepError
        self._depth += 1
        try:
            return self._bounded(self._entry_places(entry, context))
        finally:
            self._depth -= 1

    def _entry_places(self, entry: Entry, context: Context) -> list[Place]:
        places = self._node_documents(entry)
        # In _entry, _node and _members a path's depth becomes depth of calls: no others between.
        if entry.index is not None and entry.index.digest not in self._left_out:
            known = self._node(entry.index.digest, False, ())
            places += self._located(entry, self._judged(entry.index, known, "index"))
        if entry.directory is not None and entry.directory.digest not in self._left_out:
            within = ((entry.layout, ""), *context) if entry.layout is not None else context
            known = self._node(entry.directory.digest, True, within)
            places += self._judged(entry.directory, known, "directory")
        if entry.file is not None and entry.file.digest not in self._left_out:
            reference = encode_blob(entry.file)
            self._values.look([reference])
            if problem := self._values.bad.get(reference):
                places.append(
                    Place("file", f"file {_name(entry.file.digest)}: {problem}", entry.file.digest)
                )
        return places

    def _node_documents(self, entry: Entry) -> list[Place]:
        """Look at the metadata documents of an entry, and at what follows from them."""
        places = [
            replace(place, document=name)
            for name, blob in entry.documents.items()
            if (place := self._document(blob)) is not None
        ]
        if any(place.kind == "document" for place in places):
            return places
        try:
            layout = layout_of(entry.documents, self._read)
        except LostError:
            # It was there a moment ago: the next round tells whether anybody still needs it.
            return [*places, Place("document", f"a metadata document: {MISSING}", b"")]
        if layout != entry.layout:
            message = f"{_spell(entry.layout)}, while its documents say {_spell(layout)}"
            places.append(Place("layout", f"an entry says {message}", b""))
        return places

    def _document(self, blob: Blob) -> Place | None:
        if blob not in self._documents:
            self._documents[blob] = self._look_at_document(blob)
        return self._documents[blob]

    def _look_at_document(self, blob: Blob) -> Place | None:
        self._step(1)
        self._values.seen.setdefault(blob.digest, blob.length)
        try:
            data = self._load("chunks", blob.digest, chunk_digest, bytes)
            if len(data) != blob.length:
                raise LostError(wrong_length(len(data), blob.length))
        except LostError as error:
            return Place("document", f"document {_name(blob.digest)}: {error}", blob.digest)
        if self._whole and not is_document(data):
            return Place(
                "metadata", f"document {_name(blob.digest)} is no JSON object", blob.digest
            )
        return None

    def _read(self, blob: Blob) -> bytes:
        return self._load("chunks", blob.digest, chunk_digest, bytes)

    def _located(self, entry: Entry, places: list[Place]) -> list[Place]:
        """Say which part of an array the damage of its chunk index concerns."""
        ndim = entry.layout.ndim if entry.layout is not None else 0
        known = self._nodes.get(entry.index.digest) if entry.index is not None else None
        if isinstance(known, _Known) and known.key_bytes != 4 * ndim and entry.index is not None:
            message = f"the keys of a chunk index are not those of {ndim} dimensions"
            places.append(_all_of("index", message, entry.index, known.last))
        if not places:
            return places
        try:
            metadata = node_metadata(entry.documents, self._read)
        except LostError:
            metadata = None
        array = None if metadata is None else metadata.array
        return [_located(place, array, ndim) for place in places]

    # ── trees ────────────────────────────────────────────────────────────────────────────────────

    def _judged(self, tree: TreeRef, known: _Known | str, kind: Kind) -> list[Place]:
        """Add to the damage of a tree what only the reference to it can tell."""
        if isinstance(known, str):
            return [_all_of(kind, known, tree, b"")]
        places = list(known.places)
        if known.level and known.size == 1:
            message = f"the root node {_name(tree.digest)} of a tree has a single child"
            places.append(_all_of("tree", message, tree, known.last))
        if (tree.count, tree.nbytes) != (known.count, known.nbytes):
            said = f"{tree.count:,} values of {tree.nbytes:,} bytes"
            message = f"a tree of {known.count:,} of {known.nbytes:,} bytes is said to have {said}"
            places.append(_all_of("sums", message, tree, known.last))
        return places

    def _node(self, digest: bytes, directory: bool, context: Context) -> _Known | str:
        """Look at a node and all below; give why it cannot be had, if so."""
        key = (digest, context) if context else digest
        known = self._nodes.get(key)
        if known is None:
            self._step(1)
            try:
                node = self._load("nodes", digest, node_digest, decode_node)
            except LostError as error:
                known = f"tree node {_name(digest)}: {error}"
            else:
                if node.level:
                    below = self._children(digest, node, directory, context)
                elif directory:
                    below = self._members(digest, node, context)
                else:
                    below = self._chunks(digest, node)
                known = self._summary(digest, node, directory, below)
            self._nodes[key] = known
        if isinstance(known, _Known) and known.directory != directory:
            return f"tree node {_name(digest)}: it is of another kind of tree"
        return known

    def _summary(self, digest: bytes, node: Node, directory: bool, below: _Below) -> _Known:
        ends = ending(node.level, node.keys)
        if ends not in ([], node.keys[-1:]):
            message = f"tree node {_name(digest)} goes on after a key that ends a node"
            below.places.append(Place("tree", message, digest, upto=node.keys[-1]))
        closed = bool(ends) or len(node.keys) == MAX_ENTRIES
        widths = below.widths | set(map(len, node.keys))
        return _Known(
            directory=directory,
            level=node.level,
            size=len(node.keys),
            first=below.first if below.first is not None else node.keys[0],
            last=node.keys[-1],
            key_bytes=widths.pop() if len(widths) == 1 else -1,
            count=below.count,
            nbytes=below.nbytes,
            closed=closed and below.closed,
            places=self._bounded(below.places),
        )

    def _children(self, digest: bytes, node: Node, directory: bool, context: Context) -> _Below:
        """Look at the nodes below one, and at what it says of them."""
        below = _Below()
        kind: Kind = "directory" if directory else "index"
        before: bytes | None = None
        for key, value in zip(node.keys, node.values, strict=True):
            child, count, nbytes = REFERENCE.unpack(value)
            below.count, below.nbytes = below.count + count, below.nbytes + nbytes
            if not below.closed:
                message = f"the tree node before {_name(child)} ends at a key that ends no node"
                below.places.append(Place("tree", message, digest, upto=key))
            known = self._node(child, directory, context)
            if isinstance(known, _Known) and not _fits(known, node.level - 1, before, key):
                known = f"tree node {_name(child)}: it is not the one that its parent says"
            if isinstance(known, str):
                below.places.append(Place(kind, known, child, "", None, before, key, count, nbytes))
                below.closed = True
            else:
                below.places += (_behind(place, before) for place in known.places)
                if (count, nbytes) != (known.count, known.nbytes):
                    message = f"tree node {_name(digest)} gives wrong sums for {_name(child)}"
                    below.places.append(Place("sums", message, digest, "", None, before, key))
                below.closed = known.closed
                below.widths.add(known.key_bytes)
                if before is None:
                    below.first = known.first
            before = key
        return below

    def _chunks(self, digest: bytes, node: Node) -> _Below:
        """Look at the chunks that a node of an index refers to."""
        below = _Below()
        references = [value for value in node.values if len(value) == BLOB_BYTES]
        below.count = len(references)
        below.nbytes = sum(row_of("32xI", len(references)).unpack(b"".join(references)))
        self._values.look(references)
        bad = self._values.bad
        if not bad and len(references) == len(node.values):
            return below
        for key, value in zip(node.keys, node.values, strict=True):
            if len(value) != BLOB_BYTES:
                message = f"index node {_name(digest)} has a value that is no reference to a chunk"
                below.places.append(Place("index", message, digest, upto=key, count=1))
            elif problem := bad.get(value):
                message = f"chunk {_name(value[:32])}: {problem}"
                below.places.append(Place("chunk", message, value[:32], upto=key))
        return below

    def _members(self, digest: bytes, node: Node, context: Context) -> _Below:
        """Look at what the members of a directory are, and at all below them."""
        below = _Below()
        for key, value in zip(node.keys, node.values, strict=True):
            name = key.decode(errors="backslashreplace")
            try:
                entry = decode_entry(value)
                below.count, below.nbytes = below.count + entry.count, below.nbytes + entry.nbytes
                name = decode_name(key)
            except CorruptError as error:
                below.places.append(Place("entry", str(error), digest, name))
                continue
            below.places += _misplaced(digest, name, entry, context)
            within = _within(name, context)
            found = self._entries.get((value, within))
            if found is None:
                found = self._entries[value, within] = self._entry(entry, within)
            below.places += (replace(place, path=_below(name, place.path)) for place in found)
        return below

    def _bounded(self, places: list[Place]) -> tuple[Place, ...]:
        self.omitted += max(0, len(places) - MAX_PLACES)
        return tuple(places[:MAX_PLACES])


# ── small things ─────────────────────────────────────────────────────────────────────────────────


def _name(digest: bytes) -> str:
    return digest.hex()[:12]


def _below(name: str, path: str) -> str:
    return f"{name}/{path}" if path else name


def _spell(layout: Layout | None) -> str:
    if layout is None:
        return "that it is no array with chunk keys"
    return f"chunk keys like {layout.spell(bytes(4 * layout.ndim))!r}"


def _all_of(kind: Kind, message: str, tree: TreeRef, last: bytes) -> Place:
    return Place(kind, message, tree.digest, upto=last, count=tree.count, nbytes=tree.nbytes)


def _fits(known: _Known, level: int, before: bytes | None, last: bytes) -> bool:
    """Whether a node is what its parent says: of that level, with the keys up to ``last``."""
    return known.level == level and known.last == last and (before is None or known.first > before)


def _misplaced(digest: bytes, name: str, entry: Entry, context: Context) -> list[Place]:
    """Find what would never be stored so: something that is empty, or keys looked for elsewhere."""
    places = []
    if entry.is_empty:
        places.append(Place("entry", "an entry of a directory is empty", digest, name))
    if entry.file is not None and _belongs_elsewhere(name, context):
        message = "a document or a chunk is kept as a plain file"
        places.append(Place("place", message, digest, name))
    return places


def _within(name: str, context: Context) -> Context:
    """Give the arrays above of which a chunk's key may go on below a name, and how it begins.

    It does not matter which numbers a key has, and no honest file has chunks in chunks in chunks:
    else members that share directories could make a look at each take forever.
    """
    number = "0" if name.isdigit() else name
    return tuple(
        (layout, f"{prefix}{number}/")
        for layout, prefix in context[:_MAX_CONTEXT]
        if chunk_prefix(layout, prefix + name) is not None
    )


def _belongs_elsewhere(name: str, context: Context) -> bool:
    """Whether the key that ends with this name would be looked for as a document or a chunk."""
    return name in DOCUMENTS or any(
        layout.parse(prefix + name) is not None for layout, prefix in context
    )


def _behind(place: Place, key: bytes | None) -> Place:
    """Say where damage begins that a node has at its own beginning."""
    if key is None or place.after is not None or place.path:
        return place
    return replace(place, after=key)


def _located(place: Place, array: ArrayMetadata | None, ndim: int) -> Place:
    """Say which chunk of an array, and which elements, damage in its index concerns."""
    if place.kind == "chunk" and len(place.upto) == 4 * ndim:
        coordinates = decode_coordinates(place.upto)
        region = None if array is None else array.region(coordinates)
        return replace(place, after=None, coordinates=coordinates, region=region)
    if place.kind != "index" or array is None:
        return place
    return replace(place, region=_box(array, place.after, place.upto, ndim))


def _box(array: ArrayMetadata, after: bytes | None, upto: bytes, ndim: int) -> Region | None:
    """Find a part of an array that has all chunks after one key, up to another, in it."""
    whole = tuple(slice(0, length) for length in array.shape)
    if len(upto) != 4 * ndim or len(array.shape) != ndim or array.grid is None:
        return whole if array.grid is not None else None
    high = decode_coordinates(upto)
    low = (0,) * ndim
    if after is not None and len(after) == len(upto):
        low = decode_coordinates(after)
    # In row-major order: up to the axis where both ends differ they agree, and beyond it a chunk
    # may lie anywhere.
    box = list(whole)
    for axis, (start, stop) in enumerate(zip(low, high, strict=True)):
        ends = [
            array.region(tuple(index if n == axis else 0 for n in range(ndim)))
            for index in (start, stop)
        ]
        if ends[0] is None:
            return None
        box[axis] = slice(ends[0][axis].start, (ends[1] or whole)[axis].stop)
        if start != stop:
            break
    return tuple(box)
