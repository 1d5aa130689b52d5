"""Take data out of snapshots: of one path, or of one region of an array, and whatever shares them.

A snapshot without some chunks is another snapshot, made by the same trees as any edit. Over a long
history nearly all of it is the same from one snapshot to the next, so an index is rewritten once,
and then only what differs between it and the next one is looked at again.

What becomes of a chunk depends on its coordinates and bytes, but not on the array's shape: a chunk
at the edge, or beyond it since the array shrank, may hold values that no reader sees, and these are
data as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple, final

from vzarr.btree import Edit, Tree
from vzarr.elements import Elements, Patch, Side, Sides, UndecodableError
from vzarr.errors import InvalidInputError
from vzarr.format import (
    DIGEST_BYTES,
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
    encode_coordinates,
    encode_entry,
    entry_measure,
)
from vzarr.hierarchy import join
from vzarr.metadata import ArrayMetadata, Region, node_metadata
from vzarr.objects import Objects, Overlay
from vzarr.window import Span, Window

_LARGEST_COORDINATE = 2**32 - 1


class _Done(NamedTuple):
    """An index, and what it was made into."""

    before: TreeRef | None
    after: TreeRef | None


@final
@dataclass(frozen=True, slots=True)
class Sighting:
    """A place at which bytes that were taken out elsewhere are still to be had."""

    path: str
    """Of the array, or the key of a document or file."""
    coordinates: tuple[int, ...] | None
    """Of the chunk; None for a document or file."""
    digest: bytes


@final
class Eraser:
    """Makes snapshots without some of their data. Use as a context manager.

    ``dropped`` has the digests of all values that were taken out, with their lengths in bytes, and
    ``staged`` the bytes of chunks that were made instead. New nodes are in the overlay.
    """

    def __init__(self, objects: Objects, window: Window | None, *, whole_chunks: bool) -> None:
        """Without a window all data go; with ``whole_chunks``, whole chunks that it touches."""
        self.overlay = Overlay(objects)
        self.dropped: dict[bytes, int] = {}
        self.staged: dict[bytes, bytes] = {}
        self.reencoded = 0
        self._objects = objects
        self._window = window
        self._whole_chunks = whole_chunks
        self._indexes = Tree(self.overlay, blob_measure)
        self._directories = Tree(self.overlay, entry_measure)
        self._noted: set[bytes] = set()
        self._wiped: dict[bytes, TreeRef | None] = {}
        self._last: dict[tuple[str, str], _Done] = {}
        self._parts: dict[tuple[str, bytes, bytes], bytes | None] = {}
        self._elements: dict[str, Elements] = {}
        self._stack = ExitStack()
        self._clean: set[bytes] = set()
        self._cleansed: dict[bytes, TreeRef | None] = {}
        self._cleansed_of = 0

    def __enter__(self) -> Eraser:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def erase(self, root: Entry, path: str) -> Entry:
        """Give a snapshot without the data at a path; the same one if there are none.

        Raises ``InvalidInputError`` where the region cannot be told, or not be taken out of a chunk
        without its neighbours. O(depth) for all of an array that was seen before; else what differs
        from the last snapshot, and decoding and encoding the chunks that are partly in the region.
        """
        return self._replace(root, path.split("/") if path else [], path)

    def _replace(self, entry: Entry, names: Sequence[str], path: str) -> Entry:
        if not names:
            return self._wipe(entry) if self._window is None else self._cut(entry, path)
        name = names[0].encode()
        data = self._directories.get(entry.directory, name)
        if data is None:
            return entry
        member = decode_entry(data)
        changed = self._replace(member, names[1:], path)
        if changed == member:
            return entry
        edit = (name, None if changed.is_empty else encode_entry(changed))
        return replace(entry, directory=self._directories.apply(entry.directory, [edit]))

    # ── all of it ────────────────────────────────────────────────────────────────────────────────

    def _wipe(self, entry: Entry) -> Entry:
        """Keep the documents, so that arrays can be opened, and none of the data."""
        for _, node in self._indexes.reachable(entry.index, self._noted):
            if not node.level:
                for value in node.values:
                    self._drop(value)
        if entry.file is not None:
            self._drop(encode_blob(entry.file))
        directory = self._wipe_members(entry.directory)
        return replace(entry, index=None, directory=directory, file=None)

    def _wipe_members(self, directory: TreeRef | None) -> TreeRef | None:
        if directory is None:
            return None
        if directory.digest not in self._wiped:
            members = (
                (name, self._wipe(decode_entry(data)))
                for name, data in self._directories.scan(directory)
            )
            self._wiped[directory.digest] = self._directories.build(
                (name, encode_entry(member)) for name, member in members if not member.is_empty
            )
        return self._wiped[directory.digest]

    def _drop(self, value: bytes) -> None:
        blob = decode_blob(value)
        self.dropped[blob.digest] = blob.length

    # ── a region ─────────────────────────────────────────────────────────────────────────────────

    def _cut(self, entry: Entry, path: str) -> Entry:
        metadata = node_metadata(entry.documents, self.overlay.read)
        array = metadata.array if metadata is not None else None
        if array is None or array.grid is None or entry.layout is None:
            what = "is no array" if array is None else "has a grid that vzarr does not know"
            raise InvalidInputError(f"{path or '/'} {what}, so that region= has no meaning")
        assert self._window is not None
        spans = self._window.spans(len(array.shape))
        if spans is None:
            raise InvalidInputError(
                f"region= has more axes than {path or '/'}, which has {len(array.shape)}"
            )
        cut = _Cut(path, array, spans, entry.documents)
        key = path, array.encoding
        done = self._last.get(key)
        if done is None:
            edits = self._edits(cut, entry.index)
            after = self._indexes.apply(entry.index, edits)
        else:
            changes = self._indexes.diff(done.before, entry.index)
            edits = [
                (at, None if new is None else self._value(cut, at, new)) for at, _, new in changes
            ]
            after = self._indexes.apply(done.after, edits)
        self._last[key] = _Done(entry.index, after)
        return replace(entry, index=after)

    def _edits(self, cut: _Cut, index: TreeRef | None) -> list[Edit]:
        found: list[Edit] = []
        for at, value in self._indexes.scan(index, *cut.bounds()):
            new = self._value(cut, at, value)
            if new != value:
                found.append((at, new))
        return found

    def _value(self, cut: _Cut, at: bytes, value: bytes) -> bytes | None:
        """Give what stands for a chunk instead: itself, another one, or none."""
        coordinates = decode_coordinates(at)
        box = cut.box(coordinates)
        spans = cut.spans
        if not all(span.touches(low, high) for span, (low, high) in zip(spans, box, strict=True)):
            return value
        known = [(low, high) for low, high in box if high is not None]
        # Of what lies behind the last chunk of an uneven grid nobody knows where.
        if (
            self._whole_chunks
            or len(known) < len(box)
            or all(span.holds(low, high) for span, (low, high) in zip(spans, known, strict=True))
        ):
            self._drop(value)
            return None
        key = cut.array.encoding, at, value
        if key not in self._parts:
            self._parts[key] = self._fill(cut, coordinates, known, value)
        return self._parts[key]

    def _fill(
        self, cut: _Cut, coordinates: tuple[int, ...], box: Sequence[tuple[int, int]], value: bytes
    ) -> bytes | None:
        """Encode a chunk anew, with the fill value in the region."""
        blob = decode_blob(value)
        part = tuple(
            slice(max(span.start, low), high if span.stop is None else min(span.stop, high))
            for span, (low, high) in zip(cut.spans, box, strict=True)
        )
        shape = tuple(high for _, high in box)
        try:
            data = self._filled(cut, coordinates, shape, part, self._objects.read(blob))
        except UndecodableError as error:
            raise InvalidInputError(
                f"chunk {coordinates} of {cut.path or '/'} lies in the region only partly and "
                f"cannot be encoded anew ({error}): whole_chunks=True drops all of it, and so does "
                f"a region that holds {tuple(slice(low, high) for low, high in box)}"
            ) from error
        new = None if data is None else self._stage(data)
        if new != value:
            self._drop(value)
            self.reencoded += new is not None
        return new

    def _filled(
        self,
        cut: _Cut,
        coordinates: tuple[int, ...],
        shape: tuple[int, ...],
        part: Region,
        data: bytes,
    ) -> bytes | None:
        elements = self._elements_of(replace(cut.array, shape=shape), cut.documents)
        nothing, chunk = Side(None, shape), Side(data, shape)
        fill, _, _ = elements.decode(coordinates, Sides(nothing, nothing, nothing), part)
        sides = Sides(chunk, chunk, chunk)
        return elements.merge(coordinates, sides, Patch(part, fill.copy())).chunk

    def _elements_of(self, array: ArrayMetadata, documents: Mapping[str, Blob]) -> Elements:
        key = f"{array.shape} {array.encoding}"
        if key not in self._elements:
            # Each keeps a thread: the last one is enough, since arrays come one after the other.
            self._stack.close()
            self._elements.clear()
            read = {name: self._objects.read(blob) for name, blob in documents.items()}
            self._elements[key] = self._stack.enter_context(Elements(read, array))
        return self._elements[key]

    def _stage(self, data: bytes) -> bytes:
        blob = Blob(chunk_digest(data), len(data))
        self.staged[blob.digest] = data
        return encode_blob(blob)

    # ── the same bytes elsewhere ─────────────────────────────────────────────────────────────────

    def cleanse(self, root: Entry) -> Entry:
        """Drop all chunks and files of a snapshot whose bytes were taken out anywhere.

        O(nodes that were not seen before).
        """
        if len(self.dropped) != self._cleansed_of:
            self._cleansed_of = len(self.dropped)
            self._clean.clear()
            self._cleansed.clear()
        file = None if root.file is None or root.file.digest in self.dropped else root.file
        index = self._cleanse_tree(self._indexes, root.index, self._cleansed_chunk)
        directory = self._cleanse_tree(self._directories, root.directory, self._cleansed_member)
        return replace(root, index=index, directory=directory, file=file)

    def _cleanse_tree(
        self, trees: Tree, tree: TreeRef | None, change: Callable[[bytes], bytes | None]
    ) -> TreeRef | None:
        if tree is None or tree.digest in self._clean:
            return tree
        if tree.digest not in self._cleansed:
            edits = list(self._changes(tree.digest, change))
            self._cleansed[tree.digest] = trees.apply(tree, edits)
        return self._cleansed[tree.digest]

    def _changes(self, digest: bytes, change: Callable[[bytes], bytes | None]) -> Iterator[Edit]:
        """List what is to change below a node, and remember it if there is nothing."""
        if digest in self._clean:
            return
        node, is_clean = self.overlay.load(digest), True
        for key, value in zip(node.keys, node.values, strict=True):
            if node.level:
                for edit in self._changes(value[:DIGEST_BYTES], change):
                    is_clean = False
                    yield edit
            elif (new := change(value)) != value:
                is_clean = False
                yield key, new
        if is_clean:
            self._clean.add(digest)

    def _cleansed_chunk(self, value: bytes) -> bytes | None:
        return None if value[:DIGEST_BYTES] in self.dropped else value

    def _cleansed_member(self, data: bytes) -> bytes | None:
        member = decode_entry(data)
        new = self.cleanse(member)
        if new == member:
            return data
        return None if new.is_empty else encode_entry(new)

    def sightings(self, roots: Iterable[Entry]) -> Iterator[tuple[int, Sighting]]:
        """Find in snapshots what was taken out elsewhere, each place once.

        Gives it with the number of the first snapshot that shows it. O(distinct nodes).
        """
        looking = _Looking(self)
        for number, root in enumerate(roots):
            for sighting in looking.entry("", root):
                yield number, sighting


@final
class _Looking:
    """One look at snapshots for bytes that should be gone."""

    def __init__(self, eraser: Eraser) -> None:
        self._load = eraser.overlay.load
        self._dropped = eraser.dropped
        # Nodes below which there is nothing, and others with the paths at which they were seen.
        self._clean: set[bytes] = set()
        self._seen: set[tuple[str, bytes]] = set()
        self._told: set[Sighting] = set()

    def entry(self, path: str, entry: Entry) -> Iterator[Sighting]:
        """Look at and below one path."""
        values = [(join(path, name), blob) for name, blob in entry.documents.items()]
        if entry.file is not None:
            values.append((path, entry.file))
        for key, blob in values:
            if blob.digest in self._dropped:
                yield from self._tell(Sighting(key, None, blob.digest))
        for tree, leaf in ((entry.index, self._chunk), (entry.directory, self._member)):
            if tree is not None:
                yield from self._node(path, tree.digest, leaf)

    def _node(
        self, path: str, digest: bytes, leaf: Callable[[str, bytes, bytes], Iterator[Sighting]]
    ) -> Iterator[Sighting]:
        if digest in self._clean or (path, digest) in self._seen:
            return
        node, told = self._load(digest), len(self._told)
        is_clean = True
        for key, value in zip(node.keys, node.values, strict=True):
            if node.level:
                child = value[:DIGEST_BYTES]
                yield from self._node(path, child, leaf)
                is_clean &= child in self._clean
            else:
                yield from leaf(path, key, value)
                is_clean &= self._is_clean(leaf, value)
        if is_clean and told == len(self._told):
            self._clean.add(digest)
        else:
            self._seen.add((path, digest))

    def _is_clean(
        self, leaf: Callable[[str, bytes, bytes], Iterator[Sighting]], value: bytes
    ) -> bool:
        if leaf == self._chunk:
            return value[:DIGEST_BYTES] not in self._dropped
        entry = decode_entry(value)
        blobs = [*entry.documents.values(), *([entry.file] if entry.file else [])]
        trees = [tree for tree in (entry.index, entry.directory) if tree is not None]
        return all(tree.digest in self._clean for tree in trees) and not any(
            blob.digest in self._dropped for blob in blobs
        )

    def _chunk(self, path: str, key: bytes, value: bytes) -> Iterator[Sighting]:
        digest = value[:DIGEST_BYTES]
        if digest in self._dropped:
            yield from self._tell(Sighting(path, decode_coordinates(key), digest))

    def _member(self, path: str, key: bytes, data: bytes) -> Iterator[Sighting]:
        yield from self.entry(join(path, decode_name(key)), decode_entry(data))

    def _tell(self, sighting: Sighting) -> Iterator[Sighting]:
        if sighting not in self._told:
            self._told.add(sighting)
            yield sighting


@final
@dataclass(frozen=True, slots=True)
class _Cut:
    """A region of an array with one meaning of chunks."""

    path: str
    array: ArrayMetadata
    spans: tuple[Span, ...]
    documents: Mapping[str, Blob]

    def box(self, coordinates: tuple[int, ...]) -> list[tuple[int, int | None]]:
        """Give where a whole chunk lies, also where it sticks out of the array."""
        assert self.array.grid is not None
        return [
            _interval(chunks, index)
            for chunks, index in zip(self.array.grid, coordinates, strict=True)
        ]

    def bounds(self) -> tuple[bytes, bytes | None]:
        """Give the first key that may be in the region, and one behind the last."""
        grid = self.array.grid
        if not self.spans or grid is None or not isinstance(grid[0], int):
            return b"", None
        first, length = self.spans[0], max(grid[0], 1)
        start = encode_coordinates([min(first.start // length, _LARGEST_COORDINATE)])
        if first.stop is None or -(-first.stop // length) > _LARGEST_COORDINATE:
            return start, None
        return start, encode_coordinates([-(-first.stop // length)])


def _interval(chunks: int | tuple[int, ...], index: int) -> tuple[int, int | None]:
    """Give where a chunk begins and ends on one axis; no end for one that is not in the grid."""
    if isinstance(chunks, int):
        length = max(chunks, 1)
        return index * length, (index + 1) * length
    ends = [0, *accumulate(chunks)]
    return (ends[index], ends[index + 1]) if index < len(chunks) else (ends[-1], None)
