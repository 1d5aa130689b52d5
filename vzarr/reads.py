"""What a serializable session read of its base, and whether others have changed any of it since.

The idea is backward validation (Kung and Robinson, "On Optimistic Methods for Concurrency Control",
1981). A session notes the keys and listings that it reads. Where its branch has moved by the time
it commits, it may still go on top if the new head would have answered every one of these reads as
the base did: then it might as well have begun there, and the order of commits is a serial order.

The check needs no log of what others did. Two walks can find it out: one over the changes between
base and head, each looked up among the reads, and one over the reads, each looked up in both
snapshots. They take steps in turn, and the first to end has the answer; so that neither a session
that read a million keys nor a branch with a million changes makes the other's short list long.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, final

from vzarr.btree import Tree
from vzarr.format import (
    DOCUMENTS,
    EMPTY_ENTRY,
    Blob,
    Entry,
    blob_measure,
    decode_coordinates,
    decode_entry,
    decode_name,
    entry_measure,
)
from vzarr.hierarchy import Hierarchy, join
from vzarr.merge import Conflict
from vzarr.metadata import ArrayMetadata, Region, node_metadata
from vzarr.objects import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

Listing = Literal["names", "keys", "sums"]
"""What of a path was listed: the names directly below, all keys below, or their count and bytes."""
_Kind = Literal["names", "keys", "sums", "whole"]

MAX_ENTRIES = 200_000
"""So many keys and listings are kept one by one. A key takes some 100 to 130 bytes, a listing 300:
25 MB where keys are read, and never more than 60."""
_REASON = "read by this session, and changed by another meanwhile"
# A key that differs, and whether it is there on one side only.
_Change = tuple[str, bool]


@final
class ReadSet:
    """The keys and listings that a session read of its base snapshot. Thread-safe.

    Memory is bounded. Beyond ``MAX_ENTRIES`` the fullest paths are folded: all of what lies below
    one counts as read. So a session that reads very much may be refused for a change beside what it
    read, but never let through with a read that is stale.
    """

    __slots__ = ("_folded", "_keys", "_listings", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._keys: set[str] = set()
        self._listings: dict[str, set[_Kind]] = {}
        self._folded = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing was read."""
        return not self._keys and not self._listings

    def note_key(self, key: str) -> None:
        """Note that the value of a key was read, or that there is none. O(1), amortised."""
        # A key that is here stays, by itself or folded: no need for the lock.
        if key in self._keys:
            return
        with self._lock:
            if not (self._folded and self._is_whole(key)):
                self._keys.add(key)
                self._bound_memory()

    def note_listing(self, path: str, kind: Listing) -> None:
        """Note that what lies below a path was listed or counted. O(1), amortised."""
        with self._lock:
            if not (self._folded and self._is_whole(f"{path}/")):
                self._listings.setdefault(path, set()).add(kind)
                self._bound_memory()

    def stale(self, store: Store, base: Entry, head: Entry) -> list[Conflict]:
        """List what was read and differs between two roots: none, and the reads are valid at head.

        Keys differ by their bytes, listings by what they gave; a path that was folded differs where
        any key below it does. A conflict's ``base`` is what this session read, its ``theirs`` what
        is there now. Raises ``CorruptError``.
        Cost: O(min(reads, changes between base and head) · depth), where to read a listing counts
        as much as there are changes below its path.
        """
        if base == head or self.is_empty:
            return []
        # Reads of other threads wait, so that the set does not change under the walk.
        with self._lock:
            return _Validation(store, base, head, self._keys, self._listings).run()

    def _is_whole(self, key: str) -> bool:
        return any("whole" in self._listings.get(path, ()) for path in _paths_above(key))

    def _bound_memory(self) -> None:
        """Fold the fullest paths until half of the room is free. O(1) a read, amortised."""
        if len(self._keys) + len(self._listings) <= MAX_ENTRIES:
            return
        self._folded = True
        while (spare := len(self._keys) + len(self._listings) - MAX_ENTRIES // 2) > 0:
            crowds = Counter(map(_parent, self._keys))
            # Nothing is above the root.
            crowds.update(_parent(path) for path in self._listings if path)
            paths = set()
            for path, crowd in crowds.most_common():
                paths.add(path)
                spare -= crowd - (path not in self._listings)
                if spare <= 0:
                    break
            self._fold(paths)

    def _fold(self, paths: set[str]) -> None:
        # A new set: a thread that looks into the old one without the lock finds no less there.
        self._keys = {key for key in self._keys if _parent(key) not in paths}
        self._listings = {
            path: kinds for path, kinds in self._listings.items() if _parent(path) not in paths
        }
        for path in paths:
            self._listings[path] = {"whole"}


def _parent(key: str) -> str:
    return key.rpartition("/")[0]


def _paths_above(key: str) -> Iterator[str]:
    """List the paths that a key lies below, from the root down."""
    yield ""
    end = key.find("/")
    while end >= 0:
        yield key[:end]
        end = key.find("/", end + 1)


# ── the check ────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Stale:
    """What one of the walks has found."""

    keys: set[str] = field(default_factory=set)
    listings: set[str] = field(default_factory=set)


@final
class _Validation:
    """The comparison of what was read with what changed between two snapshots."""

    def __init__(
        self,
        store: Store,
        base: Entry,
        head: Entry,
        keys: set[str],
        listings: dict[str, set[_Kind]],
    ) -> None:
        self._store = store
        self._base = Hierarchy(store, base)
        self._head = Hierarchy(store, head)
        self._changes = _Changes(store, self._base, self._head)
        self._keys = keys
        self._listings = listings
        self._names: dict[tuple[str, str], bool] = {}
        self._sums: dict[str, bool] = {}

    def run(self) -> list[Conflict]:
        """Take steps of both walks in turn, until one of them ends."""
        by_changes, by_reads = _Stale(), _Stale()
        walks = (self.by_changes(by_changes), by_changes), (self.by_reads(by_reads), by_reads)
        while True:
            for walk, found in walks:
                if next(walk, None) is None:
                    return self.conflicts(found)

    def by_changes(self, found: _Stale) -> Iterator[str]:
        """Look up every change among the reads. Gives the key, for each step."""
        for change in self._changes.below(""):
            key, _ = change
            if key in self._keys:
                found.keys.add(key)
            for path in _paths_above(key) if self._listings else ():
                kinds = self._listings.get(path)
                if kinds and path not in found.listings and self._shows(path, kinds, change):
                    found.listings.add(path)
            yield key

    def by_reads(self, found: _Stale) -> Iterator[str]:
        """Look up every read in both snapshots. Gives the key or path, for each step."""
        for key in self._keys:
            if self._base.find(key) != self._head.find(key):
                found.keys.add(key)
            yield key
        for path, kinds in self._listings.items():
            yield path
            if "sums" in kinds and self._sums_differ(path):
                found.listings.add(path)
            elif kinds != {"sums"}:
                yield from self._listing(path, kinds - {"sums"}, found)

    def _listing(self, path: str, kinds: set[_Kind], found: _Stale) -> Iterator[str]:
        for change in self._changes.below(path, shallow=kinds == {"names"}):
            if _is_below(change[0], path) and self._shows(path, kinds, change):
                found.listings.add(path)
                return
            yield path

    def _shows(self, path: str, kinds: set[_Kind], change: _Change) -> bool:
        """Whether a listing shows a change of a key below its path."""
        key, came_or_went = change
        if "whole" in kinds or ("keys" in kinds and came_or_went):
            return True
        if "names" in kinds and came_or_went:
            name = key[len(path) + bool(path) :].partition("/")[0]
            if self._name_differs(path, name):
                return True
        return "sums" in kinds and self._sums_differ(path)

    def _name_differs(self, path: str, name: str) -> bool:
        """Whether a name is listed on one side only. O(d log n) once."""
        if (path, name) not in self._names:
            key = join(path, name)
            there = [
                side.find(key) is not None or side.sums(key)[0] > 0
                for side in (self._base, self._head)
            ]
            # A name without letters cannot be told from the root; to be careful, it differs.
            self._names[path, name] = not name or there[0] != there[1]
        return self._names[path, name]

    def _sums_differ(self, path: str) -> bool:
        if path not in self._sums:
            self._sums[path] = self._base.sums(path) != self._head.sums(path)
        return self._sums[path]

    # ── naming what was found ────────────────────────────────────────────────────────────────────

    def conflicts(self, found: _Stale) -> list[Conflict]:
        """Describe what is stale, by path."""
        conflicts = [Conflict(path, "listing", reason=_REASON) for path in found.listings]
        conflicts += map(self._conflict, found.keys)
        return sorted(
            conflicts, key=lambda it: (it.path, it.kind, it.document or "", it.coordinates or ())
        )

    def _conflict(self, key: str) -> Conflict:
        old, new = self._base.find(key), self._head.find(key)
        # As the session knew it; what it found absent, as it is now.
        place = locate(self._store, (self._head if old is None else self._base).root, key)
        return Conflict(
            place.path,
            place.kind,
            document=place.document,
            coordinates=place.coordinates,
            region=place.region,
            reason=_REASON,
            _blobs=(old, old, new),
            _read=self._store.read,
            _decode=self._decoder(place, old, new),
        )

    def _decoder(
        self, place: Place, old: Blob | None, new: Blob | None
    ) -> Callable[[Region], Sequence[NDArray[Any]]] | None:
        array, coordinates = place.array, place.coordinates
        if array is None or coordinates is None:
            return None
        shapes = []
        for hierarchy in (self._base, self._head):
            node = hierarchy.node(place.path)
            side = node.array if node is not None else None
            if side is not None and side.encoding != array.encoding:
                return None
            shapes.append(side.shape if side is not None else None)

        def decode(region: Region) -> Sequence[NDArray[Any]]:
            from vzarr.elements import Elements, Side, Sides

            read = self._store.read
            documents = {name: read(blob) for name, blob in place.documents.items()}
            before = Side(None if old is None else read(old), shapes[0])
            after = Side(None if new is None else read(new), shapes[1])
            sides = Sides(before, before, after)
            return Elements(documents, array).decode(coordinates, sides, region)

        return decode


@dataclass(frozen=True, slots=True)
class Place:
    """What a key is in a snapshot."""

    path: str
    """The array or group; the key for a plain file."""
    kind: Literal["chunk", "document", "file"]
    document: str | None = None
    coordinates: tuple[int, ...] | None = None
    region: Region | None = None
    """The part of the array that the chunk covers; None where it lies outside of the shape."""
    array: ArrayMetadata | None = field(default=None, repr=False)
    documents: dict[str, Blob] = field(default_factory=dict, repr=False)


def locate(store: Store, root: Entry, key: str) -> Place:
    """Find what a key is, or would be if it is absent. O(depth of the key · log n)."""
    directories = Tree(store, entry_measure)
    entry, tail = root, key
    while True:
        path = key[: -len(tail) - 1] if tail != key else ""
        index_key = entry.layout.parse(tail) if entry.layout is not None else None
        if index_key is not None:
            return _chunk_place(store, path, entry, decode_coordinates(index_key))
        name, slash, rest = tail.partition("/")
        if not slash:
            if name in DOCUMENTS:
                return Place(path, "document", document=name)
            return Place(key, "file")
        entry, tail = _entry(directories.get(entry.directory, name.encode())), rest


def _chunk_place(store: Store, path: str, entry: Entry, coordinates: tuple[int, ...]) -> Place:
    node = node_metadata(entry.documents, store.read)
    array = node.array if node is not None else None
    return Place(
        path,
        "chunk",
        coordinates=coordinates,
        region=array.region(coordinates) if array is not None else None,
        array=array,
        documents=dict(entry.documents),
    )


# ── the walk over the changes ────────────────────────────────────────────────────────────────────


@final
class _Changes:
    """The keys whose values differ between two snapshots, lazily: O(changes · depth)."""

    def __init__(self, store: Store, base: Hierarchy, head: Hierarchy) -> None:
        self._base = base
        self._head = head
        self._indexes = Tree(store, blob_measure)
        self._directories = Tree(store, entry_measure)

    def below(self, path: str, *, shallow: bool = False) -> Iterator[_Change]:
        """List the changes below a path; below the whole array where the path leads into one.

        With ``shallow``, a member with changes stands for all of them.
        """
        old, new, prefix = self._base.root, self._head.root, ""
        for name in path.split("/") if path else ():
            if old.layout is not None or new.layout is not None:
                # The names that follow may be coordinates.
                shallow = False
                break
            data = name.encode()
            old = _entry(self._directories.get(old.directory, data))
            new = _entry(self._directories.get(new.directory, data))
            prefix += f"{name}/"
        return self._entry_changes(prefix, old, new, shallow=shallow)

    def _entry_changes(
        self, prefix: str, old: Entry, new: Entry, *, shallow: bool = False
    ) -> Iterator[_Change]:
        changes = self._all_changes(prefix, old, new, shallow=shallow)
        if shallow or old.layout == new.layout or old.is_empty or new.is_empty:
            return changes
        # Keys below moved between chunks and files: gone from one place, new in the other.
        return self._true_changes(changes)

    def _true_changes(self, changes: Iterator[_Change]) -> Iterator[_Change]:
        for key, _ in changes:
            old, new = self._base.find(key), self._head.find(key)
            if old != new:
                yield key, (old is None) != (new is None)

    def _all_changes(
        self, prefix: str, old: Entry, new: Entry, *, shallow: bool
    ) -> Iterator[_Change]:
        for name in {**old.documents, **new.documents}:
            if old.documents.get(name) != new.documents.get(name):
                yield prefix + name, (name in old.documents) != (name in new.documents)
        yield from self._chunk_changes(prefix, old, new)
        for data, before, after in self._directories.diff(old.directory, new.directory):
            key = prefix + decode_name(data)
            if shallow:
                yield key, before is None or after is None
                continue
            member, now = _entry(before), _entry(after)
            if member.file != now.file:
                yield key, (member.file is None) != (now.file is None)
            yield from self._entry_changes(f"{key}/", member, now)

    def _chunk_changes(self, prefix: str, old: Entry, new: Entry) -> Iterator[_Change]:
        if old.index is not None and new.index is not None and old.layout != new.layout:
            for entry in (old, new):
                assert entry.layout is not None
                for index_key, _ in self._indexes.scan(entry.index):
                    yield prefix + entry.layout.spell(index_key), True
            return
        layout = (new if old.index is None else old).layout
        for index_key, before, after in self._indexes.diff(old.index, new.index):
            assert layout is not None
            yield prefix + layout.spell(index_key), before is None or after is None


def _entry(value: bytes | None) -> Entry:
    return EMPTY_ENTRY if value is None else decode_entry(value)


def _is_below(key: str, path: str) -> bool:
    return not path or key.startswith(f"{path}/")
