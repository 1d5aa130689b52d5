"""What a change did to the values of an array, in a few numbers.

The chunks that changed are decoded, those of either side by its own metadata, one by one: so that
memory holds two chunks at a time, whatever the change. Elements are decoded as a merge decodes
them, so that a chunk which would fill the memory, or run code, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np

from vzarr.elements import Elements, Side, Sides, UndecodableError, same_values
from vzarr.metadata import ArrayMetadata, Region
from vzarr.missing import NUMERIC, find_missing, markers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Values = NDArray[Any]

Number = int | float
_NOTHING = Side(None, None)
# Of a type whose width is not in its name, an element counts as so many bytes.
_ELEMENT_BYTES = 16
_BITS = re.compile(r"[a-z]+([0-9]{1,3})")
_BYTES = re.compile(r"[<>|=][a-zA-Z]([0-9]{1,6})")


@final
@dataclass(frozen=True, slots=True)
class Summary:
    """Some numbers in short."""

    count: int
    """How many there are, without those that are missing."""
    missing: int
    """NaN, and what the attributes ``_FillValue`` and ``missing_value`` name."""
    minimum: Number | None
    """None, as the other two, where all are missing."""
    maximum: Number | None
    mean: float | None


@final
@dataclass(frozen=True, slots=True)
class Statistics:
    """What a change did to the values of an array, over the chunks that changed."""

    changed: int | None = None
    """Elements that both sides have, with different values; all NaN are one value, and 0.0 is -0.0.
    None if the values were not compared."""
    compared: int = 0
    """Elements that both sides have."""
    added: int = 0
    """Elements that only the new side's shape has."""
    removed: int = 0
    """Elements that only the old side's shape has."""
    old: Summary | None = None
    """What the elements were that both sides have; None if there are none, or without an order."""
    new: Summary | None = None
    """What these elements are now."""
    gained: Summary | None = None
    """What was added; None if there is none, or it has no order."""
    lost: Summary | None = None
    """What was removed."""
    difference: Summary | None = None
    """New less old of the elements that changed and are missing on neither side; None if there is
    none."""
    left_out: str = ""
    """Why the values were not compared; empty if they were."""


@final
class Budget:
    """How much may be read for statistics, of all the arrays of a diff together."""

    def __init__(self, *, chunks: int = 1000, nbytes: int = 64 << 20) -> None:
        """Allow so many chunks, and so many decoded bytes."""
        self.chunks = chunks
        self.nbytes = nbytes

    def take(self, chunks: int, nbytes: int) -> bool:
        """Whether there is enough left, which is less by this then."""
        if chunks > self.chunks or nbytes > self.nbytes:
            return False
        self.chunks -= chunks
        self.nbytes -= nbytes
        return True


def decoded_bytes(array: ArrayMetadata, coordinates: tuple[int, ...]) -> int:
    """Estimate the size of a chunk when it is decoded; 0 where the grid has no such chunk."""
    if array.grid is None or len(coordinates) != len(array.grid):
        return 0
    lengths = (
        chunks if isinstance(chunks, int) else chunks[index] if index < len(chunks) else 0
        for index, chunks in zip(coordinates, array.grid, strict=True)
    )
    return math.prod(lengths) * element_bytes(array.dtype)


def element_bytes(dtype: str) -> int:
    """Find the width of an element by the name of its type in Zarr, or guess."""
    if match := _BITS.fullmatch(dtype):
        return max(int(match[1]) // 8, 1)
    if match := _BYTES.fullmatch(dtype):
        return int(match[1]) * (4 if "U" in dtype else 1)
    return 1 if dtype == "bool" else _ELEMENT_BYTES


class Half(NamedTuple):
    """An array as one side has it."""

    documents: Mapping[str, bytes]
    array: ArrayMetadata
    attributes: Mapping[str, Any]


class Pair(NamedTuple):
    """One chunk before and after; None where it is not stored."""

    coordinates: tuple[int, ...]
    old: bytes | None
    new: bytes | None


def compare(old: Half | None, new: Half | None, chunks: Iterable[Pair]) -> Statistics:
    """Compare the values of chunks. Decodes each of them once on either side.

    Not compared are values whose chunks lie in another grid now, and what cannot be decoded;
    ``left_out`` says so then.
    """
    if old is not None and new is not None and old.array.grid != new.array.grid:
        return Statistics(left_out="the chunks have another shape")
    comparison = _Comparison(old, new)
    try:
        with ExitStack() as stack:
            readers = [
                None if half is None else stack.enter_context(Elements(half.documents, half.array))
                for half in (old, new)
            ]
            for pair in chunks:
                comparison.add(
                    *(
                        _decode(reader, half, pair.coordinates, chunk)
                        for reader, half, chunk in zip(readers, (old, new), pair[1:], strict=True)
                    )
                )
    except UndecodableError as error:
        return Statistics(left_out=f"they cannot be decoded: {error}")
    return comparison.result()


def _decode(
    reader: Elements | None, half: Half | None, coordinates: tuple[int, ...], chunk: bytes | None
) -> Values | None:
    """Give the values of a chunk that are in the shape of the array; None if there are none."""
    if reader is None or half is None:
        return None
    region: Region | None = half.array.region(coordinates)
    if region is None:
        return None
    side = Side(chunk, half.array.shape)
    return reader.decode(coordinates, Sides(side, _NOTHING, _NOTHING), region)[0]


@final
class _Comparison:
    """The sums over the chunks."""

    def __init__(self, old: Half | None, new: Half | None) -> None:
        self._marked = tuple(
            () if half is None else markers(half.attributes) for half in (old, new)
        )
        self._old, self._new, self._gained, self._lost, self._difference = (
            _Tally() for _ in range(5)
        )
        self._changed = self._compared = 0

    def add(self, before: Values | None, after: Values | None) -> None:
        box: tuple[Any, ...] | None = None
        if before is not None and after is not None:
            # A chunk begins at the same place, and is cut off where the array ends.
            lengths = map(min, zip(before.shape, after.shape, strict=True))
            box = (*(slice(0, length) for length in lengths), ...)
            self._compare(before[box], after[box])
        for tally, values, marked in (
            (self._lost, before, self._marked[0]),
            (self._gained, after, self._marked[1]),
        ):
            if values is not None:
                alone = np.ones(values.shape, dtype=bool)
                if box is not None:
                    alone[box] = False
                tally.add(values[alone], marked)

    @np.errstate(all="ignore")
    def _compare(self, before: Values, after: Values) -> None:
        self._compared += before.size
        self._old.add(before, self._marked[0])
        self._new.add(after, self._marked[1])
        kinds = before.dtype.kind, after.dtype.kind
        numeric = all(kind in NUMERIC for kind in kinds)
        if before.dtype == after.dtype:
            differs = ~same_values(before, after)
        elif numeric:
            differs = (before != after) & ~((before != before) & (after != after))
        else:
            raise UndecodableError("the old and the new type have no values in common")
        self._changed += int(np.count_nonzero(differs))
        if not numeric or not differs.any():
            return
        for values, marked in ((before, self._marked[0]), (after, self._marked[1])):
            differs &= ~find_missing(values, marked)
        steps = after[differs].astype(np.float64) - before[differs].astype(np.float64)
        self._difference.add(steps, ())

    def result(self) -> Statistics:
        return Statistics(
            changed=self._changed,
            compared=self._compared,
            added=self._gained.size,
            removed=self._lost.size,
            old=self._old.result(),
            new=self._new.result(),
            gained=self._gained.result(),
            lost=self._lost.result(),
            difference=self._difference.result(),
        )


@final
class _Tally:
    """Least, greatest and mean of values that come in parts."""

    def __init__(self) -> None:
        self.size = 0
        self._count = self._missing = 0
        self._least: Number | None = None
        self._greatest: Number | None = None
        self._sum = 0.0
        self._numeric = True

    @np.errstate(all="ignore")
    def add(self, values: Values, marked: tuple[float, ...]) -> None:
        self.size += values.size
        if values.dtype.kind not in NUMERIC:
            self._numeric = False
            return
        missing = find_missing(values, marked)
        present = values[~missing]
        self._missing += values.size - present.size
        self._count += present.size
        if present.size:
            # As Python's numbers: an int64 is exact, and JSON has room for it.
            least, greatest = present.min().item(), present.max().item()
            self._least = least if self._least is None else min(self._least, least)
            self._greatest = greatest if self._greatest is None else max(self._greatest, greatest)
            self._sum += float(present.sum(dtype=np.float64))

    def result(self) -> Summary | None:
        if not self._numeric or not self._count + self._missing:
            return None
        mean = self._sum / self._count if self._count else None
        return Summary(self._count, self._missing, self._least, self._greatest, mean)
