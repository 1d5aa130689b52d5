"""Read as much of an array as somebody can look at, however large it is.

Chunks are read one by one, and decoded as a merge decodes them, so that one which would fill the
memory, or run code, is refused. Those that are not stored are known without reading.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, product
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from vzarr.documents import parse_document
from vzarr.elements import Elements, Side, Sides, UndecodableError
from vzarr.errors import InvalidInputError, NotFoundError
from vzarr.hierarchy import Hierarchy
from vzarr.missing import markers
from vzarr.statistics import element_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_CHUNKS = 1000
MAX_BYTES = 64 << 20
"""As many chunks, and decoded bytes, are read for a look; one chunk in any case."""
_NOTHING = Side(None, None)
_MAX_COORDINATE = 2**32


class Look(NamedTuple):
    """What was read of a part of an array."""

    values: NDArray[Any]
    """With all axes of the array."""
    chunks: int
    """How many chunks were looked at."""
    of_chunks: int
    """How many the part has; where these are more, the values are some of its elements."""


@final
class Axis:
    """How the chunks lie along one axis."""

    def __init__(self, lengths: int | Sequence[int], length: int) -> None:
        self._step = max(lengths, 1) if isinstance(lengths, int) else None
        self._ends = [] if isinstance(lengths, int) else list(accumulate(lengths))
        self._length = length

    def chunk(self, place: int) -> int:
        """Find the chunk that has an element."""
        return place // self._step if self._step is not None else bisect_right(self._ends, place)

    def span(self, chunk: int) -> range:
        """Give the elements that a chunk has, within the shape."""
        if self._step is not None:
            start, stop = chunk * self._step, (chunk + 1) * self._step
        else:
            start, stop = self._ends[chunk - 1] if chunk else 0, self._ends[chunk]
        return range(start, min(stop, self._length))

    def chunks(self, places: Sequence[int]) -> list[int]:
        """List the chunks that have any of some elements, in order."""
        if isinstance(places, range) and places.step == 1 and places:
            return list(range(self.chunk(places[0]), self.chunk(places[-1]) + 1))
        return sorted({self.chunk(place) for place in places})

    def count(self, places: Sequence[int]) -> int:
        """Count the chunks that have any of some elements. O(1) for a range."""
        if isinstance(places, range) and places.step == 1 and places:
            return self.chunk(places[-1]) + 1 - self.chunk(places[0])
        return len(self.chunks(places))

    def thin(self, places: Sequence[int], number: int) -> list[int]:
        """Move places to the nearest ones of few chunks, which are spread evenly."""
        if number >= self.count(places):
            return list(places)
        there = self.chunks(places)
        kept = [there[(2 * one + 1) * len(there) // (2 * number)] for one in range(number)]
        spans = [self.span(chunk) for chunk in kept]
        return [_nearest(place, spans) for place in places]


@final
class Sampler:
    """The values of one array, to be read in part."""

    def __init__(self, hierarchy: Hierarchy, path: str) -> None:
        """Look at an array. Raises ``NotFoundError``, and ``InvalidInputError`` for a group."""
        self.path = path.strip("/")
        entry, node = hierarchy.entry(self.path), hierarchy.node(self.path)
        if entry is None or node is None:
            raise NotFoundError(
                f"there is no array {self.path or '/'!r}: vzarr tree lists what is there",
                name=self.path,
            )
        if node.array is None:
            raise InvalidInputError(f"{self.path or '/'!r} is a group, and this is for arrays")
        if node.array.grid is None:
            raise InvalidInputError(f"{self.path!r} has chunks in a grid that vzarr cannot read")
        if any(length > sys.maxsize for length in node.array.shape):
            raise InvalidInputError(f"{self.path!r} has an axis too long to be looked at")
        self.array = node.array
        self.attributes = node.attributes
        documents = {name: hierarchy.read(blob) for name, blob in entry.documents.items()}
        self.dimensions = _dimensions(documents, node.attributes, len(node.array.shape))
        self.marked = (*markers(node.attributes), *_fill(documents))
        self._entry = entry
        self._hierarchy = hierarchy
        self._elements = Elements(documents, node.array)
        self._axes = [
            Axis(lengths, length)
            for lengths, length in zip(node.array.grid, node.array.shape, strict=True)
        ]

    @property
    def chunk_bytes(self) -> int:
        """The decoded size of the largest chunk, about."""
        assert self.array.grid is not None
        lengths = (
            chunks if isinstance(chunks, int) else max(chunks, default=0)
            for chunks in self.array.grid
        )
        return max(math.prod(lengths) * element_bytes(self.array.dtype), 1)

    def read(self, places: Sequence[Sequence[int]]) -> NDArray[Any]:
        """Read the elements at some places of each axis, which are in order.

        Raises ``CorruptError``, ``AbsentError``, and ``InvalidInputError`` for what cannot be
        decoded. Decodes each chunk that has one of them, and holds one of them at a time.
        """
        try:
            with self._elements:
                return self._read(places)
        except UndecodableError as error:
            raise InvalidInputError(f"{self.path!r} cannot be read: {error}") from error

    def pieces(self, part: Sequence[range]) -> Iterator[tuple[range, ...]]:
        """Cut a part of the array into rows of chunks, which follow each other in C order."""
        if not part:
            yield ()
            return
        first, *others = part
        for chunk in self._axes[0].chunks(first):
            span = self._axes[0].span(chunk)
            yield range(max(first.start, span.start), min(first.stop, span.stop)), *others

    def _read(self, places: Sequence[Sequence[int]]) -> NDArray[Any]:
        shape = tuple(map(len, places))
        rows = [np.asarray(axis, dtype=np.int64) for axis in places]
        result: NDArray[Any] | None = None
        for coordinates in product(
            *(axis.chunks(wanted) for axis, wanted in zip(self._axes, places, strict=True))
        ):
            values = self._chunk(coordinates)
            if result is None:
                result = np.empty(shape, dtype=values.dtype)
            outer: list[Any] = []
            inner = []
            for axis, chunk, row in zip(self._axes, coordinates, rows, strict=True):
                span = axis.span(chunk)
                first, last = np.searchsorted(row, [span.start, span.stop])
                outer.append(slice(first, last))
                inner.append(row[first:last] - span.start)
            # With the ellipsis, an array of no dimension stays one.
            result[(*outer, ...)] = values[np.ix_(*inner)] if inner else values
        return np.empty(shape) if result is None else result

    def _chunk(self, coordinates: tuple[int, ...]) -> NDArray[Any]:
        # No index has chunks further out.
        known = max(coordinates, default=0) < _MAX_COORDINATE
        blob = self._hierarchy.chunk(self._entry, coordinates) if known else None
        chunk = None if blob is None else self._hierarchy.read(blob)
        side = Side(chunk, self.array.shape)
        region = self.array.region(coordinates)
        if region is None:
            raise UndecodableError("a chunk lies outside of the shape")
        return self._elements.decode(coordinates, Sides(side, _NOTHING, _NOTHING), region)[0]

    def look(self, part: Sequence[range], most: Sequence[int]) -> Look:
        """Read a part of the array, or where that is too much, evenly spread elements of it.

        ``most`` is for each axis how many elements are worth to be had then. Reads ``MAX_CHUNKS``
        chunks and ``MAX_BYTES`` bytes at most, but one chunk in any case. Raises as ``read``.
        """
        room = max(1, min(MAX_CHUNKS, MAX_BYTES // self.chunk_bytes))
        wanted: list[Sequence[int]] = list(part)
        counts = self._counts(wanted)
        number = math.prod(counts)
        if number > room:
            wanted = [_spread(axis, number) for axis, number in zip(part, most, strict=True)]
            counts = self._counts(wanted)
        if math.prod(counts) > room:
            wanted = [
                axis.thin(places, number)
                for axis, places, number in zip(
                    self._axes, wanted, _shrink(counts, room), strict=True
                )
            ]
        return Look(self.read(wanted), math.prod(self._counts(wanted)), number)

    def _counts(self, places: Sequence[Sequence[int]]) -> list[int]:
        return [axis.count(wanted) for axis, wanted in zip(self._axes, places, strict=True)]


def _nearest(place: int, spans: Sequence[range]) -> int:
    ends = (min(max(place, span[0]), span[-1]) for span in spans)
    return min(ends, key=lambda end: abs(end - place))


def _spread(axis: range, number: int) -> list[int]:
    """Choose elements from the middle of as many equal parts of an axis."""
    number = min(max(number, 1), len(axis))
    return [axis[(2 * part + 1) * len(axis) // (2 * number)] for part in range(number)]


def _shrink(counts: Sequence[int], room: int) -> list[int]:
    """Make numbers smaller, the greatest ones first, until their product is no more than that."""
    found = list(counts)
    while math.prod(found) > room:
        largest = max(range(len(found)), key=found.__getitem__)
        others = math.prod(found) // found[largest]
        # No more than halved at once, so that all axes have their share.
        found[largest] = max(1, room // others, (found[largest] + 1) // 2)
        if found[largest] == 1 and max(found) == 1:
            break
    return found


def _fill(documents: dict[str, bytes]) -> tuple[float, ...]:
    """Give the fill value if it stands for nothing: zero is mostly a number like another."""
    for name in ("zarr.json", ".zarray"):
        document = parse_document(documents.get(name, b"")) or {}
        found = markers({"missing_value": document.get("fill_value")})
        if found:
            return tuple(value for value in found if value)
    return ()


def _dimensions(
    documents: dict[str, bytes], attributes: Any, number: int
) -> tuple[str | None, ...]:
    """Give the names of the dimensions: Zarr's own, or those that xarray notes for format 2."""
    found: object = None
    if "zarr.json" in documents:
        found = (parse_document(documents["zarr.json"]) or {}).get("dimension_names")
    found = found if isinstance(found, list) else attributes.get("_ARRAY_DIMENSIONS")
    if not isinstance(found, list) or len(found) != number:
        return (None,) * number
    return tuple(name if isinstance(name, str) else None for name in found)
