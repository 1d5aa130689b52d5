"""Merge chunks by element, so that two writers of one chunk conflict only where they overlap.

zarr itself decodes and encodes: a store in memory holds one chunk of an array that is as large as
that chunk's part of the real one, with the real one's dtype, codecs and fill value. So everything
that zarr can read merges, and a huge grid costs no more than a small one.

zarr is imported at the first use. Its synchronous interface would wait for the event loop of zarr's
own thread, and a store that commits by itself merges on just that thread; so the work runs in a
thread with a loop of its own, and can be asked for anywhere.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, final

import numpy as np

from vzarr.metadata import ArrayMetadata, Region

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr import AsyncArray
    from zarr.storage import MemoryStore

    Values = NDArray[Any]
    Mask = NDArray[np.bool_]

_T = TypeVar("_T")


class UndecodableError(Exception):
    """A chunk that cannot be taken apart, and why; its users fall back to the chunk as a whole."""


class Side(NamedTuple):
    """A chunk as one snapshot has it."""

    chunk: bytes | None
    """Encoded; None stands for a chunk of the fill value."""
    shape: tuple[int, ...] | None
    """The array's shape there; None where there is no array."""


class Sides(NamedTuple):
    """One chunk three times."""

    base: Side
    ours: Side
    theirs: Side


@final
@dataclass(frozen=True, slots=True)
class Merged:
    """What became of one chunk."""

    chunk: bytes | None
    """Encoded; None where every element is the fill value, which zarr does not store either."""
    overlap: Region | None
    """The smallest box, in array coordinates, around the elements that both sides changed to
    different values; None if there are none."""


@final
class Elements:
    """The elements of one array's chunks. Thread-safe: every call has a store of its own."""

    def __init__(self, documents: Mapping[str, bytes], array: ArrayMetadata) -> None:
        """Take the merged array's documents, by name, and what vzarr reads in them."""
        self._documents = documents
        self._array = array

    def merge(
        self, coordinates: tuple[int, ...], sides: Sides, prefer: Literal["ours", "theirs"] | None
    ) -> Merged:
        """Put together what both sides changed in one chunk.

        An element that one side changed is that side's. One that both changed to different values
        is in the overlap, and has the value of the side to prefer; without one, the chunk of a
        result with an overlap is ours as it was. 0.0 and -0.0, and all NaN, are one value: to
        change one into another is kept, but conflicts with nothing.

        Raises ``UndecodableError``. Cost: a thread, three times decoding the chunk, and where
        neither side's own bytes are the result, encoding it once and decoding it for verification.
        """
        return _run(lambda: self._merge(self._place(coordinates), sides, prefer))

    def decode(
        self, coordinates: tuple[int, ...], sides: Sides, region: Region
    ) -> tuple[Values, Values, Values]:
        """Give base's, ours' and theirs' values in a region of one chunk, as ``merge`` sees them.

        Raises ``UndecodableError``. Cost: a thread, and three times decoding the chunk.
        """
        place = self._place(coordinates)
        parts = zip(region, place.region, strict=True)
        # With the ellipsis, an array of no dimension does not become a scalar.
        inner: tuple[Any, ...] = (
            *(slice(p.start - whole.start, p.stop - whole.start) for p, whole in parts),
            ...,
        )
        base, ours, theirs = _run(lambda: _Chunk(self._documents, place).read_sides(sides))
        return base[inner], ours[inner], theirs[inner]

    def _place(self, coordinates: tuple[int, ...]) -> _Place:
        region = self._array.region(coordinates)
        if region is None or self._array.grid is None:
            raise UndecodableError("the chunk lies outside of the merged shape")
        lengths = tuple(
            chunks if isinstance(chunks, int) else chunks[index]
            for index, chunks in zip(coordinates, self._array.grid, strict=True)
        )
        return _Place(lengths, region)

    async def _merge(
        self, place: _Place, sides: Sides, prefer: Literal["ours", "theirs"] | None
    ) -> Merged:
        chunk = _Chunk(self._documents, place)
        base, ours, theirs = await chunk.read_sides(sides)
        values, overlapping = _merge_values(base, ours, theirs, prefer)
        overlap = _bounds(overlapping, place.region) if overlapping.any() else None
        if overlap is not None and prefer is None:
            return Merged(sides.ours.chunk, overlap)
        # Bytes that are there already cost no room, and come back as they were.
        present = [
            side.chunk
            for side, there in ((sides.ours, ours), (sides.theirs, theirs))
            if _identical(there, values).all()
        ]
        if present:
            return Merged(None if None in present else present[0], overlap)
        return Merged(await chunk.encode(values), overlap)


class _Place(NamedTuple):
    lengths: tuple[int, ...]
    """Of the whole chunk, also where it sticks out of the array."""
    region: Region
    """The part of the array that it covers."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.region)


@final
class _Chunk:
    """One chunk in a store of its own, through zarr."""

    def __init__(self, documents: Mapping[str, bytes], place: _Place) -> None:
        from zarr import AsyncArray
        from zarr.buffer.cpu import buffer_prototype
        from zarr.storage import MemoryStore, StorePath

        self._place = place
        self._prototype = buffer_prototype
        self._store: MemoryStore = MemoryStore()
        self._array: AsyncArray[Any] = AsyncArray(
            _document(documents, place), StorePath(self._store), {"write_empty_chunks": False}
        )
        self._key = self._array.metadata.encode_chunk_key((0,) * len(place.lengths))

    async def read(self, chunk: bytes | None) -> Values:
        """Decode a chunk's part within the array's shape."""
        if chunk is None:
            await self._store.delete(self._key)
        else:
            await self._store.set(self._key, self._prototype.buffer.from_bytes(chunk))
        values = await self._array.getitem(..., prototype=self._prototype)
        return np.asarray(values, dtype=self._array.dtype, order="C")

    async def read_sides(self, sides: Sides) -> tuple[Values, Values, Values]:
        """Decode base, ours and theirs.

        Outside of the base's shape there was nothing but the fill value, whatever the chunk holds
        there; outside of a side's shape, that side changed nothing.
        """
        fill = await self.read(None)
        base = self._within(sides.base, await self.read(sides.base.chunk), fill)
        ours = self._within(sides.ours, await self.read(sides.ours.chunk), base)
        theirs = self._within(sides.theirs, await self.read(sides.theirs.chunk), base)
        return base, ours, theirs

    def _within(self, side: Side, values: Values, outside: Values) -> Values:
        """Replace what lies outside of a side's shape."""
        if side.shape is None:
            return outside
        axes = zip(side.shape, self._place.region, strict=True)
        inner: tuple[Any, ...] = (
            *(slice(0, max(0, length - part.start)) for length, part in axes),
            ...,
        )
        if values[inner].shape == values.shape:
            return values
        result = outside.copy()
        result[inner] = values[inner]
        return result

    async def encode(self, values: Values) -> bytes | None:
        """Encode a chunk's part within the array's shape; None if it is all fill value."""
        await self._store.delete(self._key)
        await self._array.setitem(..., values, prototype=self._prototype)
        buffer = await self._store.get(self._key, self._prototype)
        chunk = None if buffer is None else buffer.to_bytes()
        if not _equal(await self.read(chunk), values).all():
            # A lossy codec would change elements that nobody has touched.
            raise UndecodableError("its codecs do not give back the values that they were given")
        return chunk


def _document(documents: Mapping[str, bytes], place: _Place) -> Any:
    """Describe an array that is one chunk."""
    document = json.loads(documents.get("zarr.json", b"null"))
    if isinstance(document, dict) and document.get("zarr_format") == 3:
        # Regular, whatever the real grid is: there is only this chunk.
        grid = {"name": "regular", "configuration": {"chunk_shape": list(place.lengths)}}
        document |= {"shape": list(place.shape), "chunk_grid": grid, "attributes": {}}
        document.pop("dimension_names", None)
        return document
    document = json.loads(documents[".zarray"])
    return document | {"shape": list(place.shape), "chunks": list(place.lengths)}


def _run(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine to its end, whether or not this thread runs an event loop."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="vzarr-elements") as worker:
        try:
            return worker.submit(lambda: asyncio.run(work())).result()
        except UndecodableError:
            raise
        except Exception as error:
            # Codecs of all origins raise what they like.
            first = str(error).strip().partition("\n")[0]
            why = f"{type(error).__name__}: {first}" if first else type(error).__name__
            raise UndecodableError(f"zarr cannot decode and encode it: {why}") from error


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def _merge_values(
    base: Values, ours: Values, theirs: Values, prefer: Literal["ours", "theirs"] | None
) -> tuple[Values, Mask]:
    """Merge arrays of one shape; give the result, and where both changed to different values."""
    we_kept, they_kept = _equal(ours, base), _equal(theirs, base)
    overlapping = ~(we_kept | they_kept | _equal(ours, theirs))
    # Where nobody has another value, whoever has other bits, as -0.0 for 0.0, meant them.
    take_theirs = we_kept & (~they_kept | _identical(ours, base))
    if prefer == "theirs":
        take_theirs |= overlapping
    merged = ours.copy()
    merged[take_theirs] = theirs[take_theirs]
    return merged, overlapping


def _bounds(mask: Mask, region: Region) -> Region:
    """Find the smallest box around the true elements, in the coordinates that the region has."""
    box = []
    for axis, part in enumerate(region):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        (places,) = np.nonzero(mask.any(axis=others))
        box.append(slice(part.start + int(places[0]), part.start + int(places[-1]) + 1))
    return tuple(box)


# A signalling NaN is a value like another, and no reason to warn.
@np.errstate(invalid="ignore")
def _equal(one: Values, two: Values) -> Mask:
    """Compare values element by element: NaN is NaN, NaT is NaT, and 0.0 is -0.0."""
    if one.dtype.names is not None:
        return _by_field(_equal, one, two)
    match one.dtype.kind:
        case "f":
            return np.asarray((one == two) | (np.isnan(one) & np.isnan(two)))
        case "c":
            return _equal(one.real, two.real) & _equal(one.imag, two.imag)
        case "O":
            return np.asarray(_equal_objects(one, two), dtype=bool)
    return _identical(one, two)


def _identical(one: Values, two: Values) -> Mask:
    """Compare bits element by element."""
    if one.dtype.names is not None:
        # Not all at once: there may be bytes between the fields, which mean nothing.
        return _by_field(_identical, one, two)
    if one.dtype.kind == "T":
        return np.asarray(one == two)
    if one.dtype.kind == "O":
        return _equal(one, two)
    word = f"u{math.gcd(one.dtype.itemsize, 8)}"
    words = [np.ascontiguousarray(side.reshape(-1)).view(word) for side in (one, two)]
    return np.asarray((words[0] == words[1]).reshape(*one.shape, -1).all(axis=-1))


def _by_field(compare: Callable[[Values, Values], Mask], one: Values, two: Values) -> Mask:
    same = np.ones(one.shape, dtype=bool)
    for name in one.dtype.names or ():
        # A field may itself be an array: axes behind the element's own.
        same &= compare(one[name], two[name]).reshape(*one.shape, -1).all(axis=-1)
    return same


def _equal_object(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray) or isinstance(two, np.ndarray):
        alike = isinstance(one, np.ndarray) and isinstance(two, np.ndarray)
        if not alike or one.dtype != two.dtype or one.shape != two.shape:
            return False
        return bool(_equal(one, two).all())
    if type(one) is not type(two):
        return False
    return one is two or bool(one == two) or bool(one != one and two != two)


_equal_objects = np.frompyfunc(_equal_object, 2, 1)
