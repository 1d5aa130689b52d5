"""What an import is asked for, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from vzarr.errors import InvalidInputError
from vzarr.printable import pace, plural, printable

MARK = ".vzarr-import"
"""The key under which a session says what it is an import of; gone when that is committed."""


@final
@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import took over; prints as a line."""

    source: str
    path: str
    branch: str
    commit: str | None
    """The id of the commit; None if the branch had all of it."""
    arrays: int
    groups: int
    chunks: int
    """Chunks that the source has, or had when an earlier run read them."""
    files: int
    """Values of the source that are neither chunks nor documents."""
    nbytes: int
    """Bytes of all values."""
    new_bytes: int
    """Bytes that were nowhere in the repository before this run."""
    same: int
    """Values that were in the repository before this run, at the same place."""
    skipped: int
    """Keys that were not taken over: consolidated metadata, and what a killed writer left."""
    resumed: bool
    """Whether it went on with what an earlier run had saved."""
    consumed: bool
    """Whether the source was deleted."""
    seconds: float
    commits: int | None = None
    """Of a history: how many commits came; what is counted above is what they brought."""
    known: int | None = None
    """Of a history: how many of its commits were here before."""
    names: tuple[str, ...] = ()
    """Of a history: the branches and tags that were made or moved."""

    def __str__(self) -> str:
        if self.commits is not None:
            return self._history()
        what = (
            f"{self.arrays:,} array{plural(self.arrays)}, {self.groups:,} group"
            f"{plural(self.groups)} and {self.chunks:,} chunk{plural(self.chunks)}"
        )
        done = pace(self.nbytes, self.seconds)
        gone = " The source was deleted." if self.consumed else ""
        if self.commit is None:
            where = self.path or "its root"
            return (
                f"Nothing to commit: {where} of branch {self.branch} has all of {self.source} "
                f"already, {what}; compared {done}.{gone}"
            )
        return (
            f"{self.commit[:12]} on {self.branch}: {what} of {self.source}, {self.nbytes:,} bytes, "
            f"{self.new_bytes:,} of them new, {done}.{gone}"
        )

    def _history(self) -> str:
        names = printable(", ".join(self.names)) or "no name moved"
        return (
            f"{self.source}: {self.commits:,} commits taken over ({self.known:,} were here), "
            f"{self.chunks:,} chunks, {self.nbytes:,} bytes, {self.new_bytes:,} of them new; "
            f"{names}; {pace(self.nbytes, self.seconds)}."
        )

    __repr__ = __str__


@final
@dataclass(frozen=True, slots=True)
class Options:
    """What ``Repository.import_from`` was asked for."""

    path: str
    branch: str
    message: str | None
    metadata: Mapping[str, Any]
    author: str | None
    consume: bool
    overwrite: bool


@final
@dataclass(slots=True)
class Counts:
    """What was taken over: of one batch of pieces, or so far."""

    values: int = 0
    chunks: int = 0
    files: int = 0
    nbytes: int = 0
    new_bytes: int = 0
    same: int = 0

    def add(self, other: Counts) -> None:
        """Count what was counted elsewhere."""
        for field in self.__slots__:
            setattr(self, field, getattr(self, field) + getattr(other, field))


def check_path(path: str) -> None:
    """Raise ``InvalidInputError`` unless an import can go to a path."""
    if path and any(part in ("", ".", "..") for part in path.split("/")):
        raise InvalidInputError(f"path={path!r} is no path like 'group/name'")
    if path.partition("/")[0] == MARK:
        raise InvalidInputError(f"path={path!r} is used by imports themselves: choose another")
