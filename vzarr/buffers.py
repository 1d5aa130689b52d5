"""Memory for large chunks, used again once nobody looks at it any more.

A megabyte of fresh memory costs 256 page faults, more than to copy and to hash it together. Reading
and writing many chunks needs a few buffers of one size over and over; whoever holds one, or a view
of one, keeps it from being used again by holding a reference.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from vzarr.portable import at_fork

Array: TypeAlias = npt.NDArray[np.uint8]

_BUDGET_BYTES = 64 << 20
# A buffer serves requests down to half its size, so that edge chunks and codecs' output share.
_WASTE = 2


@final
class BufferPool:
    """Buffers by who refers to them. Thread-safe."""

    __slots__ = ("_arrays", "_budget", "_idle", "_lock")

    def __init__(self, budget: int = _BUDGET_BYTES) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        # How many references an idle buffer has as seen in the loop differs between Pythons.
        self._arrays: list[Array] = [np.empty(1, np.uint8)]
        self._idle = 0
        self._idle = next(count for _, count in self._references())
        self._arrays = []

    def copy(self, data: memoryview | bytes | Array) -> memoryview:
        """Copy bytes into a buffer; read-only. O(n), without the GIL.

        The copy is the caller's as long as it holds the result, or a view of it.
        """
        source = np.frombuffer(data, np.uint8)
        target = self._take(len(source))
        np.copyto(target, source)
        target.flags.writeable = False
        return target.data

    def filled(self, nbytes: int, fill: Callable[[memoryview], object]) -> memoryview:
        """Let a function fill a buffer, say from a file; read-only then, and as ``copy`` gives it.

        The function must not keep what it is given.
        """
        target = self._take(nbytes)
        fill(target.data)
        target.flags.writeable = False
        return target.data

    def _take(self, nbytes: int) -> Array:
        with self._lock:
            found = self._find(nbytes)
            return (self._make(nbytes) if found is None else found)[:nbytes]

    def _find(self, nbytes: int) -> Array | None:
        # A function, because a variable that goes on after the loop would keep the last one busy.
        for array, references in self._references():
            if references == self._idle and nbytes <= array.size <= _WASTE * nbytes:
                return array
        return None

    def _make(self, nbytes: int) -> Array:
        array = np.empty(nbytes, np.uint8)
        free = self._budget - sum(kept.size for kept in self._arrays) - nbytes
        if free < 0:
            # Other sizes are in demand now.
            self._arrays = [
                kept for kept, references in self._references() if references != self._idle
            ]
            free = self._budget - sum(kept.size for kept in self._arrays) - nbytes
        if free >= 0:
            self._arrays.append(array)
        return array

    def _references(self) -> list[tuple[Array, int]]:
        """Count the references of each buffer, always in the same way."""
        return [(array, sys.getrefcount(array)) for array in self._arrays]


pool = BufferPool()


def _forget_pool() -> None:
    global pool  # noqa: PLW0603 - another thread may have held its lock at the fork
    pool = BufferPool()


at_fork(after_in_child=_forget_pool)
