"""Memory for large chunks, used again once nobody looks at it any more.

A megabyte of fresh memory costs 256 page faults, more than to copy and to hash it together. Reading
and writing many chunks needs a few buffers of one size over and over; whoever holds one, or a view
of one, keeps it from being used again by holding a reference.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from vzarr.portable import at_fork

Array: TypeAlias = npt.NDArray[np.uint8]

_BUDGET_BYTES = 64 << 20
# A buffer serves requests down to half its size, so that edge chunks and codecs' output share.
_WASTE = 2
# Whoever took a buffer first is mostly done with it first: so many of the oldest are looked at.
_LOOKS = 8


@final
class BufferPool:
    """Buffers by who refers to them. Thread-safe; O(1) for each that is taken, however many."""

    __slots__ = ("_arrays", "_budget", "_idle", "_lock", "_nbytes")

    def __init__(self, budget: int = _BUDGET_BYTES) -> None:
        self._budget = budget
        self._lock = threading.Lock()
        # The one that was taken, or found busy, longest ago is the first.
        self._arrays: deque[Array] = deque([np.empty(1, np.uint8)])
        # How many references an idle buffer has as seen from there differs between Pythons.
        _, self._idle = self._oldest()
        self._arrays.clear()
        self._nbytes = 0

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
        for _ in range(min(_LOOKS, len(self._arrays))):
            array, references = self._oldest()
            if references == self._idle and nbytes <= array.size <= _WASTE * nbytes:
                return array
        return None

    def _make(self, nbytes: int) -> Array:
        array = np.empty(nbytes, np.uint8)
        self._make_room(nbytes)
        if self._nbytes + nbytes <= self._budget:
            self._arrays.append(array)
            self._nbytes += nbytes
        return array

    def _make_room(self, nbytes: int) -> None:
        """Let idle buffers go: other sizes are in demand now."""
        busy = 0
        while self._arrays and self._nbytes + nbytes > self._budget and busy < _LOOKS:
            array, references = self._oldest()
            if references == self._idle:
                self._arrays.pop()
                self._nbytes -= array.size
            else:
                busy += 1

    def _oldest(self) -> tuple[Array, int]:
        """Give the first buffer, which is the last one now, and count its references."""
        self._arrays.rotate(-1)
        # No name for it here: a debugger that looks at names would keep it.
        return self._arrays[-1], sys.getrefcount(self._arrays[-1])


pool = BufferPool()


def _forget_pool() -> None:
    global pool  # noqa: PLW0603 - another thread may have held its lock at the fork
    pool = BufferPool()


at_fork(after_in_child=_forget_pool)
