"""The one tree of exceptions that vzarr raises.

Classes are grouped by what a handler would do about them. A builtin is mixed in where a caller
would already catch it: ``KeyError`` for what is not found, ``ValueError`` for bad input,
``TimeoutError`` for a lock, ``OSError`` for a full disk. What a handler needs is in attributes.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vzarr.printable import printable

__all__ = [
    "AbsentError",
    "AlreadyExistsError",
    "BusyError",
    "CommitNotFoundError",
    "ConflictError",
    "CorruptError",
    "FormatError",
    "FormatVersionError",
    "FullError",
    "Holder",
    "InvalidInputError",
    "MergeConflict",
    "NotARepositoryError",
    "NotFastForwardError",
    "NotFoundError",
    "ReadOnlyError",
    "RefNotFoundError",
    "SessionNotFoundError",
    "SessionStateError",
    "StorageError",
    "TransferError",
    "UnrelatedError",
    "VzarrError",
]


class VzarrError(Exception):
    """Root of every error that vzarr raises on purpose."""


class NotFoundError(VzarrError, KeyError):
    """What was named does not exist. ``.name`` is the name that was looked for."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name

    def __str__(self) -> str:
        # KeyError would print the repr of the message.
        return str(self.args[0])


class RefNotFoundError(NotFoundError):
    """No branch, tag or commit has this name."""


class CommitNotFoundError(NotFoundError):
    """No commit has this id, or no commit is old enough."""


class SessionNotFoundError(NotFoundError):
    """No session has this id."""


class AbsentError(NotFoundError):
    """Data that a shallow or partial clone has left out. ``.name`` is the digest of what it lacks.

    It is where the clone came from: fetch it with ``repo.fetch(complete=True)``.
    """


class AlreadyExistsError(VzarrError):
    """A file, branch, tag or node of this name is there already. ``.name`` names it."""

    def __init__(self, message: str, *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class ConflictError(VzarrError):
    """Another writer changed the same things first; nothing was written.

    ``.conflicts`` lists each overlap; it is empty where a ref moved underneath a compare-and-set.
    """

    def __init__(self, message: str, *, conflicts: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.conflicts = tuple(conflicts)

    def _repr_html_(self) -> str:
        from vzarr.notebook import conflict_html

        return conflict_html(self)


class MergeConflict(ConflictError):  # noqa: N818 - the public name
    """Two branches changed the same things since their merge base; nothing was written."""


class NotFastForwardError(ConflictError):
    """A branch has commits that the one it was to move to lacks; nothing was moved.

    ``.branch`` is its name. Pull first, which merges; or push with ``force``, which drops them.
    """

    def __init__(self, message: str, *, branch: str = "") -> None:
        super().__init__(message)
        self.branch = branch


class ReadOnlyError(VzarrError, ValueError):
    """A write to a repository, session or store that only reads."""


class SessionStateError(VzarrError):
    """A session or repository that is closed, or in no state for this call."""


class InvalidInputError(VzarrError, ValueError):
    """An argument that vzarr cannot take."""


class UnrelatedError(InvalidInputError):
    """A repository that has no commit in common with this one."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: process id, host, command line, and since when (UTC) where known."""

    pid: int | None
    host: str
    command: str
    since: datetime | None = None

    def __str__(self) -> str:
        who = f"process {self.pid}" if self.pid is not None else "another process"
        # Read from a file or a lock, and so whatever somebody has put there.
        what = f" ({printable(self.command)})" if self.command else ""
        when = f", since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"{who}{what} on {printable(self.host)}{when}"


class BusyError(VzarrError, TimeoutError):
    """A lock was not to be had in time. ``.holder`` says who holds it, where that is known."""

    def __init__(self, message: str, *, holder: Holder | None = None) -> None:
        super().__init__(message)
        self.holder = holder


class StorageError(VzarrError, OSError):
    """The operating system or the file refused; ``.errno`` where the system gave one."""

    def __init__(self, message: str, *, code: int | None = None) -> None:
        # OSError prints "[Errno n] text" where it is given two arguments; the message is the text.
        super().__init__(message)
        self.errno = code

    def __str__(self) -> str:
        return str(self.args[0])


class FullError(StorageError):
    """The disk, the quota or the address space is full; the repository is as it was."""

    def __init__(self, message: str, *, code: int = errno.ENOSPC) -> None:
        super().__init__(message, code=code)


class TransferError(VzarrError, ConnectionError):
    """The other side hung up, cannot be reached, or said what makes no sense; nothing was moved.

    What arrived is kept for a while, and the same call goes on from there.
    """


class FormatError(VzarrError):
    """The bytes of the file are not what vzarr expects. ``.path`` names the file, where known."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class NotARepositoryError(FormatError):
    """The file is no vzarr repository."""


class FormatVersionError(FormatError):
    """The repository was written by a release that this one is too old to read."""


class CorruptError(FormatError):
    """Bytes of the repository are damaged: a digest does not match, a record is malformed."""
