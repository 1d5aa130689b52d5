"""How far long work is, told to whoever wants to know."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import final

Progress = Callable[[int, int, str], object]
"""Is told how much of how much is done, and of what; of 0, where nobody knows how much it will be.
Its exceptions end the work."""

INTERVAL = 0.05
"""Seconds between calls."""


@final
class Meter:
    """Tells how far work of several parts is, not too often."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._started = time.monotonic()
        self._next = 0.0
        self._what = ""
        self._done = self._total = 0

    @property
    def is_heard(self) -> bool:
        """Whether anybody wants to know, so that it is worth it to count in advance."""
        return self._progress is not None

    @property
    def seconds(self) -> float:
        """How long the work has taken so far."""
        return time.monotonic() - self._started

    def stage(self, what: str, total: int) -> None:
        """Begin another part."""
        self.end()
        self._what, self._done, self._total = what, 0, total
        self._call()

    def step(self, number: int) -> None:
        """Count what is done; nothing, where no part is under way."""
        if self._progress is None or not self._what:
            return
        self._done += number
        if time.monotonic() >= self._next:
            self._call()

    def end(self) -> None:
        """End the part: it is done, however much there was thought to be."""
        if self._what:
            self._total = self._done
            self._call()
        self._what = ""

    def _call(self) -> None:
        self._next = time.monotonic() + INTERVAL
        if self._progress is not None:
            self._progress(self._done, max(self._done, self._total), self._what)
