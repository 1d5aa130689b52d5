"""A data file before LMDB sees it: opened, examined, extended, and its lock file prepared."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from vzarr import portable
from vzarr.errors import (
    CorruptError,
    FullError,
    InvalidInputError,
    NotARepositoryError,
    NotFoundError,
    StorageError,
    VzarrError,
)
from vzarr.filelocks import process_with_lock
from vzarr.lmdbfile import Probe, probe

DATABASES = (
    "meta",
    "chunks",
    "checksums",
    "nodes",
    "commits",
    "branches",
    "tags",
    "reflog",
    "sessions",
)

MAX_READERS = 1022
# LMDB's lock file: a header of 128 bytes and a line of the processor's cache for each reader.
LOCK_FILE_BYTES = 128 + 64 * MAX_READERS
# A sound file may lack pages at its end that were allocated, freed and never written.
_MAX_MISSING_PAGES = 256
# How often, and at what intervals in seconds, to look again for what others are about to do.
ATTEMPTS, MOMENT = 20, 0.001
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS)


def real_path(path: str) -> str:
    """Resolve a path: LMDB finds its lock file by the name that it is given."""
    try:
        return os.path.realpath(os.fspath(path))
    except ValueError as error:
        raise InvalidInputError(f"{path!r} is no path: {error}") from error


def open_descriptor(path: str) -> tuple[int, int]:
    """Open the data file for ourselves; also give the error number if that is for reading only."""
    for _ in range(ATTEMPTS):
        descriptor, refusal = open_once(path)
        # An empty file is the name that a creator has just taken; the content follows at once.
        if status_of(path, descriptor).st_size:
            break
        os.close(descriptor)
        time.sleep(MOMENT)
    else:
        descriptor, refusal = open_once(path)
    return descriptor, refusal


def open_once(path: str) -> tuple[int, int]:
    """Open the data file as it is now. Raises ``NotFoundError`` and ``StorageError``."""
    flags = portable.CLOEXEC | portable.NONBLOCK
    try:
        return portable.open_file(path, os.O_RDWR | flags), 0
    except OSError as error:
        refusal = error.errno or errno.EACCES
        if refusal not in (*REFUSALS, errno.EISDIR):
            raise _cannot_open(path, error) from error
    try:
        return portable.open_file(path, os.O_RDONLY | flags), refusal
    except OSError as error:
        raise _cannot_open(path, error) from error


def status_of(path: str, descriptor: int) -> os.stat_result:
    """Give what the system knows of an open file. Raises ``StorageError``."""
    try:
        return os.fstat(descriptor)
    except OSError as error:
        raise os_error(error, f"cannot look at {path}") from error


def _cannot_open(path: str, error: OSError) -> VzarrError:
    if error.errno == errno.ENOENT:
        return NotFoundError(
            f"{path} does not exist: check the path, or create a repository there", name=path
        )
    return StorageError(f"cannot open {path}: {error.strerror}", code=error.errno)


def require_single_name(path: str, status: os.stat_result) -> None:
    """Raise ``StorageError`` for a file with hard links."""
    if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
        raise StorageError(
            f"{path} has {status.st_nlink} names (hard links); LMDB would use a lock file for each "
            "and two writers would damage the repository: keep one name, or copy the file",
            code=errno.EMLINK,
        )


def examine(path: str, descriptor: int, *, writable: bool) -> Probe:
    """Probe a file before it is mapped. Raises if it is no repository, or damaged.

    Mapping a file that is too short kills the interpreter. A few pages that were never written may
    be missing for good reasons; a writer adds them, a reader waits for a writer to do so.
    """
    for _ in range(ATTEMPTS):
        found = require_ours(path)
        missing = found.required_bytes - found.file_bytes
        if missing <= 0:
            break
        if missing > _MAX_MISSING_PAGES * found.page_size:
            raise CorruptError(
                f"{path} is cut off: it has {found.file_bytes} bytes of {found.required_bytes}; "
                "restore it from a backup",
                path=path,
            )
        if writable:
            extend(path, descriptor, found.required_bytes)
        else:
            time.sleep(MOMENT)
    else:
        raise CorruptError(
            f"{path} lacks its last {missing} bytes: open it once for writing, which adds them if "
            "they were never used",
            path=path,
        )
    return found


def require_ours(path: str) -> Probe:
    """Probe a file. Raises ``NotARepositoryError`` unless it has all our databases."""
    found = probe(path)
    if not found.databases.issuperset(DATABASES):
        raise NotARepositoryError(
            f"{path} is an LMDB file of another program: give the path of a vzarr repository",
            path=path,
        )
    return found


def extend(path: str, descriptor: int, size: int) -> None:
    """Make a file that long; never shorter, whatever others do to it meanwhile."""
    try:
        portable.allocate(descriptor, size - 1, 1)
    except OSError as error:
        raise os_error(error, f"cannot extend {path}") from error


def os_error(error: OSError, what: str) -> StorageError:
    """Give our error for one of the system's."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return FullError(f"{what}: {error.strerror}; make room and try again", code=error.errno)
    return StorageError(f"{what}: {error.strerror}", code=error.errno)


@contextlib.contextmanager
def our_errors(what: str) -> Iterator[None]:
    """Give our errors for the system's in a block: "cannot do this: No space left on device"."""
    try:
        yield
    except OSError as error:
        if isinstance(error, VzarrError):
            raise
        raise os_error(error, what) from error


def allocate_lock_file(path: str) -> None:
    """Create LMDB's lock file at full size: in a sparse one, a full disk kills the interpreter.

    One that exists is none of our business: closing any descriptor of it would drop all locks
    that this process has on it.
    """
    lock_path = path + "-lock"
    try:
        descriptor = portable.open_file(
            lock_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | portable.CLOEXEC, 0o666
        )
    except OSError:
        # It is there, or LMDB will say what is wrong.
        return
    try:
        owner = os.stat(path)
        if portable.is_root() and owner.st_uid != 0:
            # A lock file of root's would keep the owner of the data out of it.
            portable.give_to(descriptor, owner.st_uid, owner.st_gid)
        portable.allocate(descriptor, 0, LOCK_FILE_BYTES)
    except OSError as error:
        os.unlink(lock_path)
        raise os_error(error, f"cannot create {lock_path}") from error
    finally:
        os.close(descriptor)


def process_using_lock_file(path: str) -> int | None:
    """Give a process that uses LMDB's lock file; None if there is none, 0 for one unknown.

    Only for one who has it not open: closing any descriptor of it drops all locks of a process.
    """
    try:
        descriptor = portable.open_file(path + "-lock", os.O_RDWR | portable.CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise os_error(error, f"cannot open {path}-lock") from error
    try:
        return process_with_lock(descriptor)
    except OSError as error:
        raise os_error(error, f"cannot look at the locks of {path}-lock") from error
    finally:
        os.close(descriptor)


def nobody_writes(path: str) -> bool:
    """Tell whether a file is on read-only media, or in a place where we may write nothing."""
    if portable.is_read_only(path):
        return True
    return not any(os.access(name, os.W_OK) for name in (path, os.path.dirname(path)))
