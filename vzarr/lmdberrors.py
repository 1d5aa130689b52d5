"""LMDB's errors, as our own. The only place that knows both."""

from __future__ import annotations

import errno
import os

import lmdb

from vzarr import portable
from vzarr.datafile import MAX_READERS
from vzarr.errors import (
    CorruptError,
    FullError,
    InvalidInputError,
    ReadOnlyError,
    StorageError,
    VzarrError,
)

_FULL_CODES = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, -30772})
# With less than that the disk is full, whatever LMDB says.
_LITTLE_BYTES = 1 << 20


def translate(error: lmdb.Error, path: str) -> VzarrError:
    """Give our error for one of LMDB's."""
    reason = str(error)
    if isinstance(error, lmdb.MapFullError):
        return FullError(f"the map of {path} is full; it grows at the next write: try again")
    if isinstance(error, lmdb.MemoryError):
        return FullError(
            f"there is not enough address space or memory for {path}: raise the limit (ulimit -v), "
            "or close other repositories",
            code=errno.ENOMEM,
        )
    if isinstance(error, lmdb.BadValsizeError):
        return InvalidInputError(
            "a key must have 1 to 511 bytes and a value less than 4 GiB: " + reason
        )
    if isinstance(error, lmdb.ReadonlyError):
        return ReadOnlyError(f"{path} is open for reading only, or may not be written: {reason}")
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.CursorFullError):
        return CorruptError(
            f"{path} is damaged ({reason}): check it, and restore it from a backup", path=path
        )
    if isinstance(error, lmdb.InvalidError | lmdb.VersionMismatchError):
        return CorruptError(f"LMDB cannot read {path} or its lock file: {reason}", path=path)
    if isinstance(error, lmdb.ReadersFullError):
        return StorageError(
            f"{path} has {MAX_READERS} readers, which is the most that LMDB takes: close some",
            code=errno.EAGAIN,
        )
    if isinstance(error, lmdb.DiskError) or error_code(error) in _FULL_CODES:
        return _full(path, error)
    if isinstance(error, lmdb.PanicError):
        return StorageError(
            f"an earlier write to {path} failed half way; it is opened again at the next use",
            code=errno.EIO,
        )
    return StorageError(
        f"LMDB failed on {path}: {reason}",
        code=error_code(error) if error_code(error) > 0 else None,
    )


def error_code(error: lmdb.Error) -> int:
    """Give the number of an error, of the system's or LMDB's own; 0 where it has none."""
    # Errors of py-lmdb's own making have none.
    return getattr(error, "code", 0)


def _full(path: str, error: lmdb.Error) -> FullError:
    """Say what is known of a write that failed: LMDB reports a short one as an I/O error."""
    free = _free_bytes(path)
    if free is not None and free < _LITTLE_BYTES:
        return FullError(f"the disk of {path} is full; nothing was written: make room")
    room = "" if free is None else f" ({free >> 20} MiB of the disk are free)"
    return FullError(
        f"{path} could not be written{room}; the disk or a quota is full, a limit on the size of "
        f"files is reached, or the device failed; the repository is as it was: {error}",
        code=error_code(error) if error_code(error) > 0 else errno.EIO,
    )


def _free_bytes(path: str) -> int | None:
    try:
        # Of the directory: a file that is being made has not its name yet.
        return portable.free_bytes(os.path.dirname(path))
    except OSError:
        return None
