"""What changed between two snapshots: nodes, attributes, chunks and the regions they cover."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, final

from vzarr.btree import Change, Tree
from vzarr.errors import CorruptError, InvalidInputError
from vzarr.extents import Extent
from vzarr.format import (
    EMPTY_ENTRY,
    MAX_DEPTH,
    Blob,
    Entry,
    TreeRef,
    blob_measure,
    decode_blob,
    decode_coordinates,
    decode_entry,
    decode_name,
    encode_coordinates,
    encode_entry,
    entry_measure,
)
from vzarr.hierarchy import join
from vzarr.indexdiff import differing_rows
from vzarr.merge import format_region
from vzarr.metadata import ArrayMetadata, NodeMetadata, Region, node_metadata
from vzarr.objects import Store
from vzarr.printable import printable
from vzarr.progress import Meter, Progress

if TYPE_CHECKING:
    from vzarr.statistics import Budget, Half, Pair, Statistics

Side = Literal["old", "new"]
ChangeKind = Literal["added", "removed", "changed"]
MARKS = {"added": "+", "removed": "-", "moved": ">", "changed": "~"}
"""What stands before a change where it is printed."""


@final
@dataclass(frozen=True, slots=True)
class ChunkChange:
    """One chunk that was added, removed or changed."""

    coordinates: tuple[int, ...]
    kind: Literal["added", "removed", "changed"]
    region: Region | None
    """The part of the array that it covers, one slice a dimension; None outside of the shape."""
    old_bytes: int
    new_bytes: int
    """Sizes of the encoded chunk, in bytes; 0 where there is none."""


@final
@dataclass(frozen=True)
class NodeChange:
    """One group, array or plain file that was added, removed, moved or changed."""

    path: str
    kind: Literal["array", "group", "file"]
    change: Literal["added", "removed", "moved", "changed"]
    old_path: str | None = None
    """Where it was before, for a move."""
    attributes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """The attributes that changed: name → (old, new), None where there was or is none."""
    metadata: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """For an array, what else changed of ``shape``, ``chunks``, ``dtype``, ``encoding``."""
    _document_sides: tuple[tuple[str, bool, bool], ...] = field(default=(), repr=False)
    _trees: tuple[TreeRef | None, TreeRef | None] = field(default=(None, None), repr=False)
    _changes: Sequence[Change] | None = field(default=None, repr=False)
    """The chunks that changed, where they are known and no trees tell them."""
    _nodes: tuple[NodeMetadata | None, NodeMetadata | None] = field(
        default=(None, None), repr=False
    )
    _documents: tuple[Mapping[str, Blob], Mapping[str, Blob]] = field(
        default_factory=lambda: ({}, {}), repr=False
    )
    _source: _Source | None = field(default=None, repr=False, compare=False)

    def iter_chunks(self) -> Iterator[ChunkChange]:
        """List the chunks that changed in row-major order, lazily. O(changed · log n)."""
        return map(self._chunk_change, self._index_changes())

    def _chunk_change(self, change: Change) -> ChunkChange:
        key, old, new = change
        coordinates = decode_coordinates(key)
        node = self._nodes[0] if new is None else self._nodes[1]
        array = node.array if node is not None else None
        return ChunkChange(
            coordinates,
            _kind_of(old, new),
            array.region(coordinates) if array is not None else None,
            blob_measure(old)[1] if old is not None else 0,
            blob_measure(new)[1] if new is not None else 0,
        )

    def iter_kinds(
        self, start: tuple[int, ...] = ()
    ) -> Iterator[tuple[tuple[int, ...], ChangeKind]]:
        """List coordinates and kind alone of the chunks that changed, from ``start`` on.

        Cheaper than ``iter_chunks``, by regions and sizes. O(depth) to begin somewhere, O(depth) a
        chunk.
        """
        for key, old, new in self._index_changes(encode_coordinates(start)):
            yield decode_coordinates(key), _kind_of(old, new)

    def _index_changes(self, start: bytes = b"") -> Iterator[Change]:
        return chain.from_iterable(self._index_rows(start))

    def _index_rows(self, start: bytes = b"") -> Iterator[Sequence[Change]]:
        if self._source is None or self.change == "moved":
            return iter(())
        if self._changes is not None:
            rest = self._changes[bisect_left(self._changes, start, key=itemgetter(0)) :]
            return iter([rest] if rest else [])
        return self._source.rows(*self._trees, start)

    @property
    def arrays(self) -> tuple[ArrayMetadata | None, ArrayMetadata | None]:
        """What the array was, and what it is; None where there is none."""
        old, new = (node.array if node is not None else None for node in self._nodes)
        return old, new

    def count_alone(self) -> int | None:
        """Count the chunks of an array that was added or removed, unseen; None for others. O(1)."""
        old, new = self._trees
        if self.change not in ("added", "removed") or (old is None) == (new is None):
            return None
        return sum(tree.count for tree in (old, new) if tree is not None)

    @cached_property
    def chunks(self) -> Sequence[ChunkChange]:
        """The chunks that changed, in row-major order. O(changed · log n), at the first use."""
        return tuple(self.iter_chunks())

    def statistics(
        self, budget: Budget | None = None, *, progress: Progress | None = None
    ) -> Statistics:
        """Compare the values of the chunks that changed: how many differ, least, greatest, mean.

        Reads and decodes these chunks, of both sides; nothing for a group, a file or a move. What
        takes more than is left of ``budget`` is not read; ``.left_out`` of the result says so, and
        also where chunks lie in another grid now, or cannot be decoded. ``vzarr.statistics`` has
        ``Budget``; without one there is no limit.

        Raises ``CorruptError``, and ``AbsentError`` for what a partial clone lacks. Cost: decoding;
        two chunks in memory.
        """
        from vzarr.statistics import Statistics, compare

        old, new = (self._half(number) for number in (0, 1))
        if self._source is None or (old is None and new is None):
            return Statistics()
        if budget is not None and (problem := self._exceeds(budget)):
            return Statistics(left_out=problem)
        meter = Meter(progress)
        meter.stage(f"compare {self.path}", sum(1 for _ in self.iter_chunks()) if progress else 0)
        found = compare(old, new, self._pairs(self._source, meter))
        meter.end()
        return found

    def _half(self, number: int) -> Half | None:
        from vzarr.statistics import Half

        node, source = self._nodes[number], self._source
        if node is None or node.array is None or source is None:
            return None
        documents = {name: source.read(blob) for name, blob in self._documents[number].items()}
        return Half(documents, node.array, node.attributes)

    def _pairs(self, source: _Source, meter: Meter) -> Iterator[Pair]:
        from vzarr.statistics import Pair

        for key, *sides in self._index_changes():
            old, new = (None if side is None else source.read(decode_blob(side)) for side in sides)
            yield Pair(decode_coordinates(key), old, new)
            meter.step(1)

    def _exceeds(self, budget: Budget) -> str:
        """Take what the chunks cost from a budget; say why if that is too much."""
        from vzarr.statistics import decoded_bytes

        number = sum(1 for _ in islice(self.iter_chunks(), budget.chunks + 1))
        if number > budget.chunks:
            return "too many chunks changed"
        arrays = [node.array for node in self._nodes if node is not None and node.array is not None]
        nbytes = sum(
            decoded_bytes(array, chunk.coordinates)
            for chunk in self.iter_chunks()
            for array in arrays
        )
        return "" if budget.take(number, nbytes) else "too many bytes changed"

    def document_changes(self) -> Iterator[tuple[str, Literal["added", "removed", "changed"]]]:
        """List the keys of the documents, or the file, that changed, and how. A move lists none."""
        if self.kind == "file":
            if self.change != "moved":
                yield self.path, self.change
            return
        for name, before, after in self._document_sides:
            kind: Literal["added", "removed", "changed"] = (
                "added" if not before else "removed" if not after else "changed"
            )
            yield join(self.path, name), kind

    @property
    def documents(self) -> tuple[str, ...]:
        """The names of the documents whose bytes changed."""
        return tuple(name for name, _, _ in self._document_sides)

    @property
    def regions(self) -> list[Region]:
        """The parts of the array that the changed chunks cover."""
        return [chunk.region for chunk in self.chunks if chunk.region is not None]

    @property
    def old(self) -> Any:
        """The old array or group, read-only, to index for old values; None if it was added."""
        path = self.path if self.old_path is None else self.old_path
        return self._open("old", path, absent=self.change == "added")

    @property
    def new(self) -> Any:
        """The new array or group, read-only, to index for new values; None if it was removed."""
        return self._open("new", self.path, absent=self.change == "removed")

    def _open(self, side: Side, path: str, *, absent: bool) -> Any:
        if absent or self._source is None or self.kind == "file":
            return None
        return self._source.open(side, path)

    def _repr_html_(self) -> str:
        from vzarr.notebook import change_html

        return change_html(self)

    def __str__(self) -> str:
        mark = MARKS[self.change]
        name = self.path or "/"
        if self.old_path is not None:
            name = f"{self.old_path} → {name}"
        lines = [f"{mark} {self.kind} {printable(name)}"]
        if self.change == "changed":
            lines += [
                f"    {printable(key)}: {spell_value(a)} → {spell_value(b)}"
                for key, (a, b) in self.metadata.items()
            ]
            lines += [
                f"    @{printable(key)}: {spell_value(a)} → {spell_value(b)}"
                for key, (a, b) in self.attributes.items()
            ]
        else:
            lines[0] = "  ".join([lines[0], *(printable(str(fact)) for fact in self.head_facts())])
        summary = self.chunk_summary()
        if summary:
            lines.append(f"    {summary}")
        return "\n".join(lines)

    def head_facts(self) -> list[Any]:
        """Give shape and data type of an array that was added or removed."""
        side = 1 if self.change == "added" else 0
        return [self.metadata[key][side] for key in ("shape", "dtype") if key in self.metadata]

    def chunk_summary(self) -> str:
        """Say which chunks changed: how many, and where they lie. O(changed · log n)."""
        if alone := self.count_alone():
            return f"chunks: {alone} {self.change}"
        extent = Extent(*self.arrays)
        for row in self._index_rows():
            extent.add(row)
        if not extent.total:
            return ""
        text = "chunks: " + ", ".join(f"{n} {kind}" for kind, n in extent.counts.items() if n)
        if self.change != "changed":
            return text
        box = extent.box() if extent.is_regular else _box(self.regions)
        if box is not None:
            return f"{text}, all of {format_region(box)}"
        shown = [
            f"{chunk.coordinates}" + (f" {format_region(chunk.region)}" if chunk.region else "")
            for chunk in map(self._chunk_change, extent.first)
        ]
        more = extent.total - len(shown)
        return text + ": " + ", ".join(shown) + (f", … and {more} more" if more else "")


def _box(regions: Sequence[Region]) -> Region | None:
    """Find the box that several regions, which do not overlap, fill without a gap, if they do."""
    # An array of another rank may have come in the place of one.
    if len(regions) < 2 or len(set(map(len, regions))) > 1:
        return None
    axes = list(zip(*regions, strict=True))
    box = tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in axes
    )
    filled = sum(_volume(region) for region in regions)
    return box if filled == _volume(box) else None


def _volume(region: Region) -> int:
    return math.prod(part.stop - part.start for part in region)


def _kind_of(old: bytes | None, new: bytes | None) -> ChangeKind:
    return "added" if old is None else "removed" if new is None else "changed"


def spell_value(value: Any) -> str:
    """Spell the value of an attribute or a fact, or the beginning of a long one."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


MAX_MEMBERS = 500_000
"""As many groups, arrays and files that differ are listed. Groups that share their members can make
billions of a few kilobytes."""
# After so many, all are counted before the rest is listed.
_UNCOUNTED = 5_000


@final
@dataclass(frozen=True, slots=True)
class Diff:
    """All that changed between two snapshots; prints as a summary."""

    old: str
    new: str
    """What was compared, as the user named it."""
    changes: tuple[NodeChange, ...]
    """One for each group, array or plain file, by path."""

    @property
    def added(self) -> tuple[NodeChange, ...]:
        """The nodes that are new."""
        return self._only("added")

    @property
    def removed(self) -> tuple[NodeChange, ...]:
        """The nodes that are gone."""
        return self._only("removed")

    @property
    def moved(self) -> tuple[NodeChange, ...]:
        """The nodes that have another path, with all below them."""
        return self._only("moved")

    @property
    def changed(self) -> tuple[NodeChange, ...]:
        """The nodes whose documents or chunks changed."""
        return self._only("changed")

    def _only(self, change: str) -> tuple[NodeChange, ...]:
        return tuple(node for node in self.changes if node.change == change)

    def __getitem__(self, path: str) -> NodeChange:
        """Give the change of one path. Raises ``KeyError``."""
        for node in self.changes:
            if node.path == path:
                return node
        raise KeyError(path)

    def __iter__(self) -> Iterator[NodeChange]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        if not self.changes:
            return f"no differences between {self.old} and {self.new}"
        return "\n".join(map(str, self.changes))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from vzarr.notebook import diff_html

        return diff_html(self)


def diff(
    store: Store, old: Entry, new: Entry, open_node: Callable[[Side, str], Any]
) -> tuple[NodeChange, ...]:
    """Compare two snapshots' roots. O(changed nodes · depth); chunks are listed when asked for."""
    source = _Source(store, open_node, (old, new))
    source.compare("", old, new)
    return tuple(sorted(source.finish(), key=lambda change: change.path))


def changed_chunks(
    store: Store,
    path: str,
    entry: Entry,
    changes: Sequence[Change],
    open_node: Callable[[Side, str], Any],
) -> NodeChange:
    """Tell that chunks of an array have other values, in order of their keys, and nothing else.

    Raises ``CorruptError`` where its documents make no array: nobody writes it so.
    """
    node = node_metadata(entry.documents, store.read)
    if node is None:
        raise CorruptError(
            f"{path!r} has chunks, and documents that make no array: see vzarr check"
        )
    return NodeChange(
        path,
        node.kind,
        "changed",
        _changes=changes,
        _nodes=(node, node),
        _documents=(entry.documents, entry.documents),
        _source=_Source(store, open_node, (EMPTY_ENTRY, EMPTY_ENTRY)),
    )


@final
class _Source:
    """The walk over two trees, and what its results need to read on."""

    def __init__(
        self, store: Store, open_node: Callable[[Side, str], Any], roots: tuple[Entry, Entry]
    ) -> None:
        self.open = open_node
        self._roots = roots
        self.indexes = Tree(store, blob_measure)
        self._directories = Tree(store, entry_measure)
        self._store = store
        self._changes: list[NodeChange] = []
        self._seen = 0
        # Whole subtrees that are on one side only; equal ones are moves.
        self._added: list[tuple[str, Entry]] = []
        self._removed: list[tuple[str, Entry]] = []

    def differing(self, old: TreeRef | None, new: TreeRef | None, start: bytes) -> Iterator[Change]:
        """Compare two chunk indexes, from a key on. Lazy."""
        return chain.from_iterable(self.rows(old, new, start))

    def rows(
        self, old: TreeRef | None, new: TreeRef | None, start: bytes
    ) -> Iterator[Sequence[Change]]:
        """Give the same in lists, of some neighbours each."""
        return differing_rows(self._store, self.indexes, old, new, start)

    def read(self, blob: Blob) -> bytes:
        """Give the bytes behind a reference. Raises ``CorruptError`` and ``AbsentError``."""
        return self._store.read(blob)

    def compare(self, path: str, old: Entry, new: Entry) -> None:
        """Note what changed at and below one path."""
        self._compare_file(path, old, new)
        self._compare_node(path, old, new)
        for name, before, after in self._directories.diff(old.directory, new.directory):
            self._note_seen()
            member = join(path, decode_name(name))
            if before is None:
                assert after is not None
                self._added.append((member, decode_entry(after)))
            elif after is None:
                self._removed.append((member, decode_entry(before)))
            else:
                self.compare(member, decode_entry(before), decode_entry(after))

    def _compare_file(self, path: str, old: Entry, new: Entry) -> None:
        if old.file != new.file:
            change: Literal["added", "removed", "changed"] = (
                "added" if old.file is None else "removed" if new.file is None else "changed"
            )
            self._changes.append(NodeChange(path, "file", change))

    def _compare_node(self, path: str, old: Entry, new: Entry) -> None:
        if old.documents == new.documents and old.index == new.index:
            return
        before, after = self._metadata(old), self._metadata(new)
        node = after or before
        if node is None:
            for name, before_there, after_there in _changed_documents(old, new):
                change: Literal["added", "removed", "changed"] = (
                    "added" if not before_there else "removed" if not after_there else "changed"
                )
                self._changes.append(NodeChange(join(path, name), "file", change))
            return
        self._changes.append(
            NodeChange(
                path,
                node.kind,
                "added" if before is None else "removed" if after is None else "changed",
                attributes=_compare_mappings(
                    before.attributes if before else {}, after.attributes if after else {}
                ),
                metadata=_compare_mappings(_facts(before), _facts(after)),
                _document_sides=_changed_documents(old, new),
                _trees=(old.index, new.index),
                _nodes=(before, after),
                _documents=(old.documents, new.documents),
                _source=self,
            )
        )

    def finish(self) -> list[NodeChange]:
        """Pair subtrees that moved, and list those that did not node by node."""
        gone: dict[bytes, list[str]] = {}
        for path, entry in self._removed:
            self._note_gone(path, entry, gone)
        moved: set[str] = set()
        for path, entry in self._added:
            self._expand_added(path, entry, gone, moved)
        for path, entry in self._removed:
            self._expand_removed(path, entry, moved)
        return self._changes

    def _note_gone(self, path: str, entry: Entry, gone: dict[bytes, list[str]]) -> None:
        if self._metadata(entry) is not None:
            gone.setdefault(encode_entry(entry), []).append(path)
        for name, member in self._members(entry):
            self._note_gone(join(path, name), member, gone)

    def _expand_added(
        self, path: str, entry: Entry, gone: dict[bytes, list[str]], moved: set[str]
    ) -> None:
        """Note a subtree that is new, or where it was before."""
        sources = gone.get(encode_entry(entry))
        metadata = self._metadata(entry)
        if sources and metadata is not None:
            source = sources.pop(0)
            moved.add(source)
            self._changes.append(
                NodeChange(path, metadata.kind, "moved", old_path=source, _source=self)
            )
            return
        self._compare_file(path, EMPTY_ENTRY, entry)
        self._compare_node(path, EMPTY_ENTRY, entry)
        for name, member in self._members(entry):
            self._expand_added(join(path, name), member, gone, moved)

    def _expand_removed(self, path: str, entry: Entry, moved: set[str]) -> None:
        """Note a subtree that is gone, but for what of it moved."""
        if path in moved:
            return
        self._compare_file(path, entry, EMPTY_ENTRY)
        self._compare_node(path, entry, EMPTY_ENTRY)
        for name, member in self._members(entry):
            self._expand_removed(join(path, name), member, moved)

    def _members(self, entry: Entry) -> Iterator[tuple[str, Entry]]:
        for name, data in self._directories.scan(entry.directory):
            self._note_seen()
            yield decode_name(name), decode_entry(data)

    def _note_seen(self) -> None:
        """Count a member; at the 5,000th, raise ``InvalidInputError`` if there are too many."""
        self._seen += 1
        if self._seen == _UNCOUNTED:
            old, new = self._roots
            if self._count(old.directory, new.directory, {}, 0) > MAX_MEMBERS:
                raise InvalidInputError(
                    f"more than {MAX_MEMBERS:,} groups, arrays and files differ, which are too "
                    "many to list; compare snapshots that have more in common"
                )

    def _count(
        self, old: TreeRef | None, new: TreeRef | None, known: dict[_Pair, int], depth: int
    ) -> int:
        """Count the members that differ in two directories and below. O(distinct pairs of nodes).

        What is nested too deep is not counted: whoever lists it finds that it is.
        """
        pair = (None if old is None else old.digest, None if new is None else new.digest)
        count = known.get(pair)
        if count is None:
            count = 0
            for _, before, after in self._directories.diff(old, new) if depth < MAX_DEPTH else ():
                count += 1 + self._count(_below(before), _below(after), known, depth + 1)
            known[pair] = count
        return count

    def _metadata(self, entry: Entry) -> NodeMetadata | None:
        return node_metadata(entry.documents, self._store.read)


_Pair = tuple[bytes | None, bytes | None]


def _below(entry: bytes | None) -> TreeRef | None:
    return None if entry is None else decode_entry(entry).directory


def _facts(node: NodeMetadata | None) -> Mapping[str, Any]:
    if node is None or node.array is None:
        return {}
    array = node.array
    return {
        "shape": array.shape,
        "chunks": array.grid,
        "dtype": array.dtype,
        "encoding": array.encoding,
    }


def _compare_mappings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        key: (old.get(key), new.get(key))
        for key in {**old, **new}
        # As text, because a NaN is not equal to itself.
        if key not in old or key not in new or repr(old[key]) != repr(new[key])
    }


def _changed_documents(old: Entry, new: Entry) -> tuple[tuple[str, bool, bool], ...]:
    """List the documents that differ: name, whether it was there, whether it is."""
    names = {**old.documents, **new.documents}
    return tuple(
        (name, name in old.documents, name in new.documents)
        for name in names
        if old.documents.get(name) != new.documents.get(name)
    )
