"""A file that is to take the place of another, or a place of its own, once it is whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
import weakref
from types import TracebackType
from typing import final

from vzarr.datafile import ATTEMPTS, os_error, status_of
from vzarr.errors import AlreadyExistsError, BusyError, NotFoundError
from vzarr.filelocks import no_fork
from vzarr.format import chunk_digest

_NAME_DIGITS = 16
# Of the system call renameat2.
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1


@final
class Draft:
    """A file beside the path that it is for, until the end of its ``with`` block or its placing.

    Its name follows from that of the path, so that what a killed process left is found again
    without a search. While its maker lives it is locked with ``flock``, so that nobody takes it for
    such a remainder.
    """

    __slots__ = ("__weakref__", "descriptor", "path", "target")

    def __init__(self, target: str, mode: int) -> None:
        """Create it, with these permissions and the umask, in place of one whose maker is dead.

        Raises ``BusyError`` if another one is being written for the same path, ``NotFoundError`` if
        there is no such directory, ``FullError`` and ``StorageError``.
        """
        self.target = target
        self.path = draft_path(target)
        with no_fork:
            try:
                self.descriptor = self._create(mode)
            except FileNotFoundError as error:
                directory = os.path.dirname(target)
                raise NotFoundError(
                    f"the directory {directory} does not exist: create it", name=directory
                ) from error
            except BusyError:
                raise
            except OSError as error:
                raise os_error(error, f"cannot create {self.path}") from error
            _drafts.add(self)

    def _create(self, mode: int) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(ATTEMPTS):
            remove_dead(self.target)
            try:
                descriptor = os.open(self.path, flags, mode)
            except FileExistsError:
                continue
            # Before it was locked, somebody may have taken it for dead.
            try:
                if _try_lock(descriptor) and _is_at(descriptor, self.path):
                    return descriptor
            except BaseException:
                os.close(descriptor)
                with contextlib.suppress(OSError):
                    remove_dead(self.target)
                raise
            os.close(descriptor)
        raise BusyError(
            f"{self.target} is being written by another process: try again when that one is done"
        )

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with no_fork:
            if self.descriptor < 0:
                # Placed by ``replace``, or left to the parent by a fork.
                return
            if self.path:
                # The next draft takes the place of one that cannot be removed now.
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
            self.release()

    @property
    def key(self) -> tuple[int, int]:
        """Device and inode."""
        status = status_of(self.path, self.descriptor)
        return status.st_dev, status.st_ino

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return status_of(self.path, self.descriptor).st_size

    def release(self) -> None:
        """Close it; its lock ends unless another descriptor shares it."""
        descriptor, self.descriptor = self.descriptor, -1
        _drafts.discard(self)
        os.close(descriptor)

    def place(self) -> None:
        """Give it the path, where nothing must be, durably. Raises ``AlreadyExistsError``."""
        place(self.path, self.target)
        self.path = ""

    def replace(self) -> None:
        """Give it the path in place of what is there, in one step, and durably. Raises OSError."""
        os.replace(self.path, self.target)
        self.path = ""
        sync_directory(os.path.dirname(self.target))


def draft_path(target: str) -> str:
    """Give the path of a draft for a path."""
    directory, name = os.path.split(target)
    digits = chunk_digest(os.fsencode(name)).hex()[:_NAME_DIGITS]
    return os.path.join(directory, f".vzarr-{digits}")


def remove_dead(target: str) -> None:
    """Remove a draft for this path that a killed process left; leave one whose maker lives.

    A microsecond if there is none. Raises ``OSError``.
    """
    path = draft_path(target)
    with no_fork:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        try:
            # Nobody else deletes or renames it while we have its lock.
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            if regular and _try_lock(descriptor) and _is_at(descriptor, path):
                os.unlink(path)
        finally:
            os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        # A copy may go to a file system without locks; there is no telling who lives then.
        return True
    return True


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def place(path: str, target: str) -> None:
    """Rename a file to where nothing must be, durably. Raises ``AlreadyExistsError``, OSError."""
    try:
        renamed = _rename_in_one_step(path, target)
        if not renamed:
            # Takes the name; a link would need a file system that has them.
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except FileExistsError as error:
        raise exists(target) from error
    try:
        if not renamed:
            os.replace(path, target)
        sync_directory(os.path.dirname(target))
    except BaseException:
        os.unlink(target)
        raise


def _rename_in_one_step(path: str, target: str) -> bool:
    """Rename a file unless there is something at the target; False if the system cannot do that.

    A name that is taken first and filled then would be an empty file if we were killed in between.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(path), os.fsencode(target)
    if not rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE):
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), path, None, target)


def exists(path: str) -> AlreadyExistsError:
    """Say that there is something at a path."""
    return AlreadyExistsError(f"{path} exists already: open it, or choose another path", name=path)


def sync_directory(directory: str) -> None:
    """Make a new name durable, which LMDB leaves to us."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- fork -----------------------------------------------------------------------------------

_drafts: weakref.WeakSet[Draft] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Leave drafts to the parent: with a descriptor in a child, one would outlive its maker."""
    for draft in list(_drafts):
        descriptor, draft.descriptor = draft.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
    _drafts.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
