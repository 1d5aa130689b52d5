"""How many chunks of an array changed, and the box that they fill, told without listing them.

Where an array is cut into a regular grid, the coordinates alone tell whether chunks fill a box. So
changes are counted by the hundred thousand without a word on any one of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import repeat
from operator import is_
from typing import TYPE_CHECKING, final

from vzarr.btree import Change

if TYPE_CHECKING:
    from vzarr.metadata import ArrayMetadata, Region

SHOWN = 5
"""So many changes are kept, to be told one by one."""


@final
class Extent:
    """What rows of changes of one chunk index have in common, which came in order."""

    def __init__(self, old: ArrayMetadata | None, new: ArrayMetadata | None) -> None:
        self.counts = {"changed": 0, "added": 0, "removed": 0}
        self.first: list[Change] = []
        self._places = [None if side is None else (side.shape, side.grid) for side in (old, new)]
        grid = () if new is None or new.grid is None else new.grid
        self._shape = () if new is None else new.shape
        self._lengths = [length for length in grid if isinstance(length, int) and length]
        self._lows = [2**32] * len(self._shape)
        self._highs = [-1] * len(self._shape)
        self.is_regular = bool(self._shape) and len(self._lengths) == len(self._shape)
        """Whether all chunks so far lie in the shape of an array with a regular grid."""

    @property
    def total(self) -> int:
        """How many chunks changed."""
        return sum(self.counts.values())

    def add(self, row: Sequence[Change]) -> None:
        """Count some changes. O(n), some 0.2 µs each."""
        keys, old, new = zip(*row, strict=True)
        added = sum(map(is_, old, repeat(None)))
        removed = sum(map(is_, new, repeat(None)))
        self.counts["added"] += added
        self.counts["removed"] += removed
        self.counts["changed"] += len(row) - added - removed
        if len(self.first) < SHOWN:
            self.first += row[: SHOWN - len(self.first)]
        # What was removed lies where it was in the old array.
        if self.is_regular:
            self.is_regular = not (removed and self._places[0] != self._places[1]) and (
                self._enclose(keys)
            )

    def _enclose(self, keys: Sequence[bytes]) -> bool:
        """Let the box grow; say whether all of the chunks lie in the array."""
        ndim = len(self._shape)
        if any(len(key) != 4 * ndim for key in keys):
            return False
        numbers = struct.unpack(f">{len(keys) * ndim}I", b"".join(keys))
        for axis, (length, size) in enumerate(zip(self._lengths, self._shape, strict=True)):
            column = numbers[axis::ndim]
            self._lows[axis] = min(self._lows[axis], *column)
            self._highs[axis] = max(self._highs[axis], *column)
            if self._highs[axis] * length >= size:
                return False
        return True

    def box(self) -> Region | None:
        """Give the box that the chunks fill without a gap, if they do, and are several."""
        axes = list(zip(self._lows, self._highs, strict=True))
        if self.total < 2 or math.prod(high + 1 - low for low, high in axes) != self.total:
            return None
        return tuple(
            slice(low * length, min((high + 1) * length, size))
            for (low, high), length, size in zip(axes, self._lengths, self._shape, strict=True)
        )
