"""The model of ``test_sessions``: snapshots as dictionaries, how they merge, and edits of them.

A snapshot is a dictionary from paths to values: plain files, and arrays, which are two attributes
and two chunks of three elements. What two sides make of one snapshot is merged by the rules that
users are told: elements and attributes that only one side changed are in the result, what both
changed to the same is agreed, and everything else is a conflict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from hypothesis import strategies as st

from vzarr.errors import ConflictError
from vzarr.resolution import Conflict
from vzarr.session import Session

CHUNK, CHUNKS = 3, 2
LENGTH = CHUNK * CHUNKS
_T = TypeVar("_T")


class Array(NamedTuple):
    """An array of integers with two attributes."""

    x: int = 0
    y: int = 0
    values: tuple[int, ...] = (0,) * LENGTH

    def document(self) -> bytes:
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [LENGTH],
            "data_type": "int32",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [CHUNK]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
            "attributes": {"x": self.x, "y": self.y},
        }
        return json.dumps(document, indent=2).encode()

    def chunk(self, number: int) -> bytes | None:
        """Encode a chunk; zarr stores none that is full of the fill value."""
        values = self.values[number * CHUNK : (number + 1) * CHUNK]
        return np.array(values, "<i4").tobytes() if any(values) else None


Snapshot = Mapping[str, Array | bytes]
Place = tuple[str, str, int | None, tuple[int, int] | None]
"""Where a conflict is: path, kind, chunk, and the first and last element and one."""


def keys_of(snapshot: Snapshot) -> dict[str, bytes]:
    """Give what zarr would have in its store."""
    keys = {}
    for path, value in snapshot.items():
        if isinstance(value, bytes):
            keys[path] = value
            continue
        keys[f"{path}/zarr.json"] = value.document()
        for number in range(CHUNKS):
            chunk = value.chunk(number)
            if chunk is not None:
                keys[f"{path}/c/{number}"] = chunk
    return keys


@dataclass
class Merge:
    """A three-way merge; what conflicts has the value that the strategy chooses."""

    strategy: str
    may_agree: bool = True
    """Whether to change a thing to the same value is no conflict: not among transactions."""
    places: set[Place] = field(default_factory=set)

    @property
    def open(self) -> set[Place]:
        """Where nobody decides, so that nothing may come of it."""
        return self.places if self.strategy == "fail" else set()

    def snapshots(self, base: Snapshot, ours: Snapshot, theirs: Snapshot) -> Snapshot:
        merged = {}
        for path in {*base, *ours, *theirs}:
            value = self._value(path, base.get(path), ours.get(path), theirs.get(path))
            if value is not None:
                merged[path] = value
        return merged

    def _value(self, path: str, base: Any, ours: Any, theirs: Any) -> Array | bytes | None:
        if not self.may_agree and base not in (ours, theirs):
            self._note_agreements(path, base, ours, theirs)
            if isinstance(base, bytes) and isinstance(ours, bytes) and ours == theirs:
                return self._choose((path, "file", None, None), ours, theirs, b"both")
        if ours == theirs or theirs == base:
            return ours
        if ours == base:
            return theirs
        if isinstance(ours, bytes) or isinstance(theirs, bytes):
            return self._choose((path, "file", None, None), ours, theirs, b"both")
        if ours is None or theirs is None:
            return self._choose((path, "node", None, None), ours, theirs, theirs)
        x, y = self._attributes(path, base, ours, theirs)
        before = base or Array()
        values = [
            value
            for number in range(CHUNKS)
            for value in self._chunk(path, number, before.values, ours.values, theirs.values)
        ]
        return Array(x, y, tuple(values))

    def _note_agreements(self, path: str, base: Any, ours: Any, theirs: Any) -> None:
        """Note what both changed alike, but not what both made or deleted."""
        if not isinstance(ours, Array) or not isinstance(theirs, Array):
            return
        if base is not None and any(
            b != o == t for b, o, t in zip(base[:2], ours[:2], theirs[:2], strict=True)
        ):
            self.places.add((path, "document", None, None))
        for number in range(CHUNKS):
            if ours.chunk(number) == theirs.chunk(number):
                before = (base or Array()).values
                part = range(number * CHUNK, (number + 1) * CHUNK)
                changed = [index for index in part if before[index] != ours.values[index]]
                if changed:
                    self.places.add((path, "chunk", number, (changed[0], changed[-1] + 1)))

    def _choose(self, place: Place, ours: Any, theirs: Any, mixed: Any) -> Any:
        self.places.add(place)
        return {"theirs": theirs, "mixed": mixed}.get(self.strategy, ours)

    def _attributes(
        self, path: str, base: Array | None, ours: Array, theirs: Array
    ) -> tuple[int, ...]:
        """Merge one by one; where that does not work, the document is one thing."""
        our, their = ours[:2], theirs[:2]
        if base is not None and all(
            o == t or b in (o, t) for b, o, t in zip(base[:2], our, their, strict=True)
        ):
            return tuple(t if o == b else o for b, o, t in zip(base[:2], our, their, strict=True))
        if our == their:
            return our
        chosen: tuple[int, ...] = self._choose((path, "document", None, None), our, their, their)
        return chosen

    def _chunk(self, path: str, number: int, base: Any, ours: Any, theirs: Any) -> list[int]:
        start, stop = number * CHUNK, (number + 1) * CHUNK
        base, ours, theirs = (np.array(side[start:stop]) for side in (base, ours, theirs))
        merged = np.where(ours == base, theirs, ours)
        differ = (ours != base) & (theirs != base)
        if self.may_agree or (ours == theirs).all():
            differ &= ours != theirs
        overlap = np.flatnonzero(differ)
        if len(overlap):
            # All conflicts of a chunk are in one box, and a function is asked about the box.
            first, end = int(overlap[0]), int(overlap[-1]) + 1
            mixed = merged.copy()
            mixed[first:end] = np.maximum(ours, theirs)[first:end]
            their = merged.copy()
            their[overlap] = theirs[overlap]
            place = (path, "chunk", number, (start + first, start + end))
            merged = self._choose(place, merged, their, mixed)
        return [int(value) for value in merged]


def resolve(conflict: Conflict) -> Any:
    """Decide a conflict as the model does with the strategy "mixed"."""
    match conflict.kind:
        case "chunk":
            return np.maximum(conflict.decode("ours"), conflict.decode("theirs"))
        case "file":
            return b"both"
    return "theirs"


def strategy(name: str) -> Any:
    return resolve if name == "mixed" else name


def places_of(conflicts: Iterable[Conflict]) -> set[Place]:
    return {_place(conflict) for conflict in conflicts}


def attempt(call: Callable[[], _T]) -> tuple[_T | None, set[Place]]:
    """Give what a function gives, or where it finds that both sides changed the same."""
    try:
        return call(), set()
    except ConflictError as error:
        if not error.conflicts:
            raise
        return None, places_of(error.conflicts)


def _place(conflict: Conflict) -> Place:
    if conflict.kind != "chunk":
        return conflict.path, conflict.kind, None, None
    assert conflict.coordinates is not None
    assert conflict.region is not None
    (number,), (part,) = conflict.coordinates, conflict.region
    return conflict.path, conflict.kind, number, (part.start, part.stop)


# ── edits ────────────────────────────────────────────────────────────────────────────────────────

ARRAYS = ["a", "b", "g/d", "h/d"]
START: Snapshot = {"a": Array(), "g/d": Array(1, 2, (1, 2, 0, 0, 0, 0)), "file": b"0"}
Edit = Callable[[Any, Snapshot], Snapshot]
"""Does something to a session or fork, and gives what it makes of its snapshot."""

paths = st.sampled_from(["a", "a", "b", "g/d", "g/d", "h/d"])
small = st.integers(0, 2)


def write(path: str, start: int, length: int, value: int) -> Edit:
    def edit(target: Any, snapshot: Snapshot) -> Snapshot:
        before = snapshot.get(path)
        if not isinstance(before, Array):
            return snapshot
        stop = min(start + length, LENGTH)
        row = [*before.values[:start], *[value] * (stop - start), *before.values[stop:]]
        after = before._replace(values=tuple(row))
        for number in range(start // CHUNK, -(-stop // CHUNK)):
            chunk = after.chunk(number)
            if chunk is None:
                target.delete(f"{path}/c/{number}")
            else:
                target.set(f"{path}/c/{number}", chunk)
        return {**snapshot, path: after}

    return edit


def set_attribute(path: str, name: str, value: int) -> Edit:
    def edit(target: Any, snapshot: Snapshot) -> Snapshot:
        before = snapshot.get(path)
        if not isinstance(before, Array):
            return snapshot
        after = before._replace(**{name: value})
        target.set(f"{path}/zarr.json", after.document())
        return {**snapshot, path: after}

    return edit


def create(path: str) -> Edit:
    def edit(target: Any, snapshot: Snapshot) -> Snapshot:
        if path in snapshot:
            return snapshot
        target.set(f"{path}/zarr.json", Array().document())
        return {**snapshot, path: Array()}

    return edit


def delete(top: str) -> Edit:
    def edit(target: Any, snapshot: Snapshot) -> Snapshot:
        target.delete_below(top)
        return {
            path: value for path, value in snapshot.items() if not f"{path}/".startswith(f"{top}/")
        }

    return edit


def set_file(path: str, value: bytes | None) -> Edit:
    def edit(target: Any, snapshot: Snapshot) -> Snapshot:
        rest = {key: found for key, found in snapshot.items() if key != path}
        if value is None:
            target.delete(path)
            return rest
        target.set(path, value)
        return {**rest, path: value}

    return edit


def move(source: str, destination: str) -> Edit:
    def edit(target: Any, snapshot: Snapshot) -> Snapshot:
        tops = {path.partition("/")[0] for path in snapshot}
        if source not in tops or destination in tops or not isinstance(target, Session):
            return snapshot
        target.move(source, destination)
        return {
            destination + path.removeprefix(source)
            if path.partition("/")[0] == source
            else path: it
            for path, it in snapshot.items()
        }

    return edit


writes = st.builds(write, paths, st.integers(0, LENGTH - 1), st.integers(1, LENGTH), small)
attributes = st.builds(set_attribute, paths, st.sampled_from("xy"), small)
others = st.one_of(
    st.builds(create, paths),
    st.builds(delete, st.sampled_from([*ARRAYS, "g"])),
    st.builds(set_file, st.sampled_from(["file", "g/file"]), st.none() | st.binary(max_size=1)),
    st.sampled_from(["ab", "ba", "gh", "hg"]).map(lambda ends: move(*ends)),
)
# Most often what can be merged.
edits = st.sampled_from([writes] * 6 + [attributes] * 2 + [others]).flatmap(lambda edit: edit)
some = st.lists(edits, max_size=4)
# What there should be, so that there is something to edit.
things = [create("a"), create("g/d")]
