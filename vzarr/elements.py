"""Merge chunks by element, so that two writers of one chunk conflict only where they overlap.

zarr itself decodes and encodes: a store in memory holds one chunk of an array that is as large as
that chunk's part of the real one, with the real one's dtype, codecs and fill value. So everything
that zarr can read merges, and a huge grid costs no more than a small one.

zarr is imported at the first use. Its synchronous interface would wait for the event loop of zarr's
own thread, and a store that commits by itself merges on just that thread; so the work runs in a
thread with a loop of its own, and can be asked for anywhere. To begin and end these takes longer
than to decode a small chunk, which is why they can be kept for many.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, final

import numpy as np

from vzarr.inflation import MAX_DECODED_BYTES, InflationError, require_bounded
from vzarr.metadata import ArrayMetadata, Region

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr import AsyncArray
    from zarr.storage import MemoryStore

    Values = NDArray[Any]
    Mask = NDArray[np.bool_]

_T = TypeVar("_T")
# An element of variable length may be this long, on average in its chunk, and no longer.
_VARIABLE_BYTES = 2**16


class UndecodableError(Exception):
    """A chunk that cannot be taken apart, and why; its users fall back to the chunk as a whole."""


class UnfitError(Exception):
    """Values that are none of the array's, and why."""


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


class Patch(NamedTuple):
    """Values for a part of a chunk, whoever changed it."""

    region: Region
    """In array coordinates."""
    values: Values


Preference = Literal["base", "ours", "theirs"] | Patch | None
"""Who decides the elements that both sides changed to different values."""


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
    """The elements of one array's chunks. Thread-safe.

    As a context manager it keeps its thread from one chunk to the next.
    """

    def __init__(
        self, documents: Mapping[str, bytes], array: ArrayMetadata, *, may_agree: bool = True
    ) -> None:
        """Take the merged array's documents, by name, and what vzarr reads in them.

        Unless sides may agree, an element that both changed to the same value conflicts too.
        """
        self._documents = documents
        self._array = array
        self._may_agree = may_agree
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def __enter__(self) -> Elements:
        self._worker = _Worker()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def merge(
        self, coordinates: tuple[int, ...], sides: Sides, prefer: Preference = None
    ) -> Merged:
        """Put together what both sides changed in one chunk.

        An element that one side changed is that side's. One that both changed to different values
        is in the overlap, and has the value of the side to prefer; without one, the chunk of a
        result with an overlap is ours as it was. Unless sides may agree, one that both changed to
        the same value is in it too. All that lies in a patch has its values. 0.0 and -0.0, and all
        NaN, are one value: to change one into another is kept, but conflicts with nothing. Which
        side is called ours makes no other difference.

        Raises ``UndecodableError``, and ``UnfitError`` where the patch does not broadcast to its
        region, or the dtype does not hold its values. Cost: three times decoding the chunk, and
        where neither side's own bytes are the result, encoding it once and decoding it for
        verification; a thread, unless it is kept.
        """
        place = self._place(coordinates)
        return self._run(lambda worker: self._merge(worker, place, sides, prefer))

    def decode(
        self, coordinates: tuple[int, ...], sides: Sides, region: Region
    ) -> tuple[Values, Values, Values]:
        """Give base's, ours' and theirs' values in a region of one chunk, as ``merge`` sees them.

        Raises ``UndecodableError``. Cost: three times decoding the chunk; a thread, unless it is
        kept.
        """
        place = self._place(coordinates)
        inner = place.inner(region)

        async def work(worker: _Worker) -> tuple[Values, Values, Values]:
            chunk = worker.chunk(self._documents, place)
            stored = [await chunk.read(side.chunk) for side in sides]
            return await chunk.meant(place, sides, stored)

        base, ours, theirs = self._run(work)
        return base[inner], ours[inner], theirs[inner]

    def _run(self, work: Callable[[_Worker], Coroutine[Any, Any, _T]]) -> _T:
        with self._lock:
            if self._worker is not None:
                return self._worker.run(work)
        with closing(_Worker()) as worker:
            return worker.run(work)

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
        self, worker: _Worker, place: _Place, sides: Sides, prefer: Preference
    ) -> Merged:
        chunk = worker.chunk(self._documents, place)
        stored = [await chunk.read(side.chunk) for side in sides]
        values, overlapping = _merge_values(
            *await chunk.meant(place, sides, stored), prefer, may_agree=self._may_agree
        )
        if isinstance(prefer, Patch):
            inner = place.inner(prefer.region)
            values[inner] = _fitting(prefer.values, values[inner])
        overlap = _bounds(overlapping, place.region) if overlapping.any() else None
        if overlap is not None and prefer is None:
            return Merged(sides.ours.chunk, overlap)
        # Bytes that are there already cost no room, and come back as they were.
        same = [bool(_identical(there, values).all()) for there in stored]
        present = [*compress(sides[1:], same[1:])] or [*compress(sides[:1], same[:1])]
        if not present:
            return Merged(await chunk.encode(values), overlap)
        # Of two spellings the lesser, whichever side it is on, and least of all to store none.
        return Merged(min((side.chunk for side in present), key=lambda it: it or b""), overlap)


class _Place(NamedTuple):
    lengths: tuple[int, ...]
    """Of the whole chunk, also where it sticks out of the array."""
    region: Region
    """The part of the array that it covers."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.region)

    def inner(self, region: Region) -> tuple[Any, ...]:
        """Turn a part of the array into one of the values of this chunk."""
        parts = zip(region, self.region, strict=True)
        # With the ellipsis, an array of no dimension does not become a scalar.
        return (*(slice(p.start - whole.start, p.stop - whole.start) for p, whole in parts), ...)

    def is_within(self, shape: tuple[int, ...] | None) -> bool:
        """Whether all of it lies in the array of a side."""
        if shape is None:
            return False
        return all(part.stop <= length for part, length in zip(self.region, shape, strict=True))

    def clip(self, values: Values, shape: tuple[int, ...] | None, outside: Values) -> Values:
        """Replace what does not lie in the array of a side."""
        if shape is None:
            return outside
        if self.is_within(shape):
            return values
        axes = zip(self.region, shape, strict=True)
        inner: tuple[Any, ...] = (
            *(slice(0, max(0, length - part.start)) for part, length in axes),
            ...,
        )
        result = outside.copy()
        result[inner] = values[inner]
        return result


@final
class _Chunk:
    """One chunk in a store of its own, through zarr."""

    def __init__(self, documents: Mapping[str, bytes], place: _Place) -> None:
        from zarr import AsyncArray
        from zarr.buffer.cpu import buffer_prototype
        from zarr.storage import MemoryStore, StorePath

        self._prototype = buffer_prototype
        self._store: MemoryStore = MemoryStore()
        self._document = _document(documents, place)
        _require_no_pickle(self._document)
        self._array: AsyncArray[Any] = AsyncArray(
            self._document, StorePath(self._store), {"write_empty_chunks": False}
        )
        self._lengths = place.lengths
        dtype = self._array.dtype
        self._item_bytes = _VARIABLE_BYTES if dtype.hasobject else dtype.itemsize
        if math.prod(place.lengths) * dtype.itemsize > MAX_DECODED_BYTES:
            raise UndecodableError(
                f"a chunk of its array has more than {MAX_DECODED_BYTES:,} bytes when decoded"
            )
        self._key = self._array.metadata.encode_chunk_key((0,) * len(place.lengths))

    async def read(self, chunk: bytes | None) -> Values:
        """Decode a chunk's part within the array's shape."""
        if chunk is None:
            await self._store.delete(self._key)
        else:
            require_bounded(self._document, chunk, self._lengths, self._item_bytes)
            await self._store.set(self._key, self._prototype.buffer.from_bytes(chunk))
        values = await self._array.getitem(..., prototype=self._prototype)
        return np.asarray(values, dtype=self._array.dtype, order="C")

    async def meant(
        self, place: _Place, sides: Sides, stored: Sequence[Values]
    ) -> tuple[Values, Values, Values]:
        """Tell what base, ours and theirs mean by what they store.

        Outside of the base's shape there was nothing but the fill value, whatever the chunk holds
        there; outside of a side's shape, that side changed nothing.
        """
        base, ours, theirs = stored
        if not place.is_within(sides.base.shape):
            base = place.clip(base, sides.base.shape, await self.read(None))
        ours = place.clip(ours, sides.ours.shape, base)
        return base, ours, place.clip(theirs, sides.theirs.shape, base)

    async def encode(self, values: Values) -> bytes | None:
        """Encode a chunk's part within the array's shape; None if it is all fill value."""
        await self._store.delete(self._key)
        await self._array.setitem(..., values, prototype=self._prototype)
        buffer = await self._store.get(self._key, self._prototype)
        chunk = None if buffer is None else buffer.to_bytes()
        if not same_values(await self.read(chunk), values).all():
            # A lossy codec would change elements that nobody has touched.
            raise UndecodableError("its codecs do not give back the values that they were given")
        return chunk


def _require_no_pickle(document: Mapping[str, Any]) -> None:
    """Refuse a codec that runs what a stranger put into a chunk, whatever zarr is set to do."""
    waiting = [document.get(key) for key in ("codecs", "filters", "compressor")]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            names = (item.get("id"), item.get("name"))
            if any(isinstance(name, str) and "pickle" in name.lower() for name in names):
                raise UndecodableError(
                    "its codec is pickle, which runs any code that is in the data; vzarr does not "
                    "decode it, so store the array with another codec"
                )
            waiting += item.values()
        elif isinstance(item, list):
            waiting += [each for each in item if not isinstance(each, str)]
            waiting += [{"name": each} for each in item if isinstance(each, str)]


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


@final
class _Worker:
    """A thread with an event loop, and the last chunk that it worked on."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vzarr-elements")
        self._runner = asyncio.Runner()
        self._last: tuple[object, _Chunk] | None = None

    def run(self, work: Callable[[_Worker], Coroutine[Any, Any, _T]]) -> _T:
        """Run a coroutine to its end, whether or not the calling thread runs an event loop."""
        try:
            return self._pool.submit(lambda: self._runner.run(work(self))).result()
        except (UndecodableError, UnfitError):
            raise
        except InflationError as error:
            raise UndecodableError(f"it is not decoded: {error}") from error
        except Exception as error:
            # Codecs of all origins raise what they like.
            first = str(error).strip().partition("\n")[0]
            why = f"{type(error).__name__}: {first}" if first else type(error).__name__
            raise UndecodableError(f"zarr cannot decode and encode it: {why}") from error

    def chunk(self, documents: Mapping[str, bytes], place: _Place) -> _Chunk:
        """Make a place for one chunk, or take the last one where that is just as large."""
        kind = (place.lengths, place.shape)
        if self._last is None or self._last[0] != kind:
            self._last = (kind, _Chunk(documents, place))
        return self._last[1]

    def close(self) -> None:
        """End the thread."""
        self._pool.submit(self._runner.close).result()
        self._pool.shutdown()


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def _merge_values(
    base: Values, ours: Values, theirs: Values, prefer: Preference, *, may_agree: bool
) -> tuple[Values, Mask]:
    """Merge arrays of one shape; give the result, and where both changed to different values."""
    we_kept, they_kept, agree = (
        same_values(ours, base),
        same_values(theirs, base),
        same_values(ours, theirs),
    )
    overlapping = ~(we_kept | they_kept)
    if may_agree:
        overlapping &= ~agree
    # Where nobody has another value, whoever has other bits, as -0.0 for 0.0, meant them.
    # Of arrays without dimensions numpy makes scalars, into which nothing can be put.
    take_theirs = np.asarray(we_kept & (~they_kept | _identical(ours, base)))
    if prefer == "theirs":
        take_theirs |= overlapping
    respelled = agree & ~_identical(ours, theirs)
    if respelled.any():
        # Both have new bits, for one value: take the lesser, whichever side they are on.
        respelled &= ~(_identical(ours, base) | _identical(theirs, base))
        take_theirs[respelled] = (_bits(theirs) < _bits(ours))[respelled]
    merged = ours.copy()
    merged[take_theirs] = theirs[take_theirs]
    if prefer == "base":
        merged[overlapping] = base[overlapping]
    return merged, overlapping


def _fitting(values: Values, place: Values) -> Values:
    """Cast values to the dtype of a place, and broadcast them to its shape, losing none."""
    dtype = place.dtype
    given = f"values of dtype {values.dtype} and shape {values.shape}"
    if dtype.kind == "V" and dtype.names is None:
        suits = values.dtype == dtype
    elif dtype.kind in "iu" and values.dtype.kind in "iu":
        suits = True
    else:
        suits = np.can_cast(values.dtype, dtype, "same_kind")
    if not suits:
        raise UnfitError(f"the array's dtype is {dtype}, and these are {given}")
    try:
        with np.errstate(over="raise"):
            cast = values.astype(dtype)
        # Integers would wrap around, and text be cut off.
        if dtype.kind in "iuSU" and not (cast == values).all():
            raise UnfitError(f"not all of the {given} fit into the array's {dtype}")
        return np.broadcast_to(cast, place.shape)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UnfitError(f"the array's dtype is {dtype}, and these are {given}: {error}") from error


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
def same_values(one: Values, two: Values) -> Mask:
    """Compare values element by element: NaN is NaN, NaT is NaT, and 0.0 is -0.0."""
    if one.dtype.names is not None:
        return _by_field(same_values, one, two)
    match one.dtype.kind:
        case "f":
            return np.asarray((one == two) | (np.isnan(one) & np.isnan(two)))
        case "c":
            return same_values(one.real, two.real) & same_values(one.imag, two.imag)
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
        return same_values(one, two)
    word = f"u{math.gcd(one.dtype.itemsize, 8)}"
    words = [np.ascontiguousarray(side.reshape(-1)).view(word) for side in (one, two)]
    return np.asarray((words[0] == words[1]).reshape(*one.shape, -1).all(axis=-1))


def _bits(values: Values) -> Values:
    """View fixed-width elements as strings of bytes, which can be ordered."""
    return values.reshape(-1).view(f"S{values.dtype.itemsize}").reshape(values.shape)


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
        return bool(same_values(one, two).all())
    if type(one) is not type(two):
        return False
    return one is two or bool(one == two) or bool(one != one and two != two)


_equal_objects = np.frompyfunc(_equal_object, 2, 1)
