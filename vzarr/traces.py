"""Which arrays a session wrote to, also where that changed nothing.

zarr stores no chunk of the fill value alone: to append such rows deletes chunks that were never
there, and leaves no mark in the tree. Whoever merges must still know that something was appended.
"""

from __future__ import annotations

from typing import final


@final
class Traces:
    """Arrays of which chunks were set or deleted. At times says so of one where none were."""

    __slots__ = ("_deleted", "_unknown", "_written")

    def __init__(self) -> None:
        self._written: set[str] = set()
        self._deleted: set[str] = set()
        self._unknown = False

    def __bool__(self) -> bool:
        return self._unknown or bool(self._written) or bool(self._deleted)

    def note(self, key: str, *, deleted: bool = False) -> None:
        """Keep in mind that a key was set, or deleted. O(1)."""
        (self._deleted if deleted else self._written).add(array_of(key))

    def note_unknown(self) -> None:
        """Keep in mind that there were writes of which only the result is known. O(1)."""
        self._unknown = True

    def update(self, other: Traces) -> None:
        """Add what another one has. O(arrays)."""
        self._written |= other._written
        self._deleted |= other._deleted
        self._unknown |= other._unknown

    def wrote(self, path: str) -> bool:
        """Whether chunks of the array at a path were set or deleted. O(1)."""
        return self.deleted(path) or not self._written.isdisjoint(_chunks_of(path))

    def deleted(self, path: str) -> bool:
        """Whether chunks of the array at a path were deleted. O(1)."""
        return self._unknown or not self._deleted.isdisjoint(_chunks_of(path))


def array_of(key: str) -> str:
    """Cut off what tells a chunk's key from those of its neighbours. O(1)."""
    return key.rstrip("0123456789./")


def _chunks_of(path: str) -> tuple[str, str]:
    below = f"{path}/" if path else ""
    return array_of(f"{below}c/0"), array_of(f"{below}0")
