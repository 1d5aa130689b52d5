"""What changed between two snapshots: nodes, attributes, chunks and the regions they cover."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, final

from vzarr.btree import Tree
from vzarr.errors import InvalidInputError
from vzarr.format import (
    EMPTY_ENTRY,
    Entry,
    TreeRef,
    blob_measure,
    decode_blob,
    decode_coordinates,
    decode_entry,
    decode_name,
    encode_entry,
    entry_measure,
)
from vzarr.hierarchy import join
from vzarr.merge import format_region
from vzarr.metadata import NodeMetadata, Region, node_metadata
from vzarr.objects import Store
from vzarr.printable import printable

Side = Literal["old", "new"]
_SHOWN_CHUNKS = 5


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
    _nodes: tuple[NodeMetadata | None, NodeMetadata | None] = field(
        default=(None, None), repr=False
    )
    _source: _Source | None = field(default=None, repr=False, compare=False)

    def iter_chunks(self) -> Iterator[ChunkChange]:
        """List the chunks that changed in row-major order, lazily. O(changed · log n)."""
        if self._source is None or self.change == "moved" or self._trees[0] == self._trees[1]:
            return
        for key, old, new in self._source.indexes.diff(*self._trees):
            coordinates = decode_coordinates(key)
            kind: Literal["added", "removed", "changed"] = (
                "added" if old is None else "removed" if new is None else "changed"
            )
            node = self._nodes[0] if new is None else self._nodes[1]
            array = node.array if node is not None else None
            yield ChunkChange(
                coordinates,
                kind,
                array.region(coordinates) if array is not None else None,
                decode_blob(old).length if old is not None else 0,
                decode_blob(new).length if new is not None else 0,
            )

    @cached_property
    def chunks(self) -> Sequence[ChunkChange]:
        """The chunks that changed, in row-major order. O(changed · log n), at the first use."""
        return tuple(self.iter_chunks())

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

    def __str__(self) -> str:
        mark = {"added": "+", "removed": "-", "moved": ">", "changed": "~"}[self.change]
        name = self.path or "/"
        if self.old_path is not None:
            name = f"{self.old_path} → {name}"
        lines = [f"{mark} {self.kind} {printable(name)}"]
        if self.change == "changed":
            lines += [
                f"    {printable(key)}: {_show(a)} → {_show(b)}"
                for key, (a, b) in self.metadata.items()
            ]
            lines += [
                f"    @{printable(key)}: {_show(a)} → {_show(b)}"
                for key, (a, b) in self.attributes.items()
            ]
        else:
            side = 1 if self.change == "added" else 0
            facts = [self.metadata[key][side] for key in ("shape", "dtype") if key in self.metadata]
            lines[0] = "  ".join([lines[0], *(printable(str(fact)) for fact in facts)])
        summary = self._chunk_summary()
        if summary:
            lines.append(f"    {summary}")
        return "\n".join(lines)

    def _chunk_summary(self) -> str:
        if not self.chunks:
            return ""
        counts = {"changed": 0, "added": 0, "removed": 0}
        for chunk in self.chunks:
            counts[chunk.kind] += 1
        text = "chunks: " + ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        if self.change != "changed":
            return text
        box = _box(self.regions)
        if box is not None:
            return f"{text}, all of {format_region(box)}"
        shown = [
            f"{chunk.coordinates}" + (f" {format_region(chunk.region)}" if chunk.region else "")
            for chunk in self.chunks[:_SHOWN_CHUNKS]
        ]
        more = len(self.chunks) - len(shown)
        return text + ": " + ", ".join(shown) + (f", … and {more} more" if more else "")


def _box(regions: Sequence[Region]) -> Region | None:
    """Find the box that several regions, which do not overlap, fill without a gap, if they do."""
    if len(regions) < 2:
        return None
    axes = list(zip(*regions, strict=True))
    box = tuple(
        slice(min(part.start for part in axis), max(part.stop for part in axis)) for axis in axes
    )
    filled = sum(_volume(region) for region in regions)
    return box if filled == _volume(box) else None


def _volume(region: Region) -> int:
    return math.prod(part.stop - part.start for part in region)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


MAX_MEMBERS = 250_000
"""As many members of what was added or removed whole are listed. Groups that share their members
can make billions of a few kilobytes."""


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


def diff(
    store: Store, old: Entry, new: Entry, open_node: Callable[[Side, str], Any]
) -> tuple[NodeChange, ...]:
    """Compare two snapshots' roots. O(changed nodes · depth); chunks are listed when asked for."""
    source = _Source(store, open_node)
    source.compare("", old, new)
    return tuple(sorted(source.finish(), key=lambda change: change.path))


@final
class _Source:
    """The walk over two trees, and what its results need to read on."""

    def __init__(self, store: Store, open_node: Callable[[Side, str], Any]) -> None:
        self.open = open_node
        self.indexes = Tree(store, blob_measure)
        self._directories = Tree(store, entry_measure)
        self._store = store
        self._changes: list[NodeChange] = []
        self._seen = 0
        # Whole subtrees that are on one side only; equal ones are moves.
        self._added: list[tuple[str, Entry]] = []
        self._removed: list[tuple[str, Entry]] = []

    def compare(self, path: str, old: Entry, new: Entry) -> None:
        """Note what changed at and below one path."""
        self._compare_file(path, old, new)
        self._compare_node(path, old, new)
        for name, before, after in self._directories.diff(old.directory, new.directory):
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
            self._seen += 1
            if self._seen > MAX_MEMBERS:
                raise InvalidInputError(
                    f"more than {MAX_MEMBERS:,} groups, arrays and files are on one side alone, "
                    "which are too many to list; compare snapshots that have more in common"
                )
            yield decode_name(name), decode_entry(data)

    def _metadata(self, entry: Entry) -> NodeMetadata | None:
        return node_metadata(entry.documents, self._store.read)


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
