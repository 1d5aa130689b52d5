"""A file, or a directory, that is to take the place of another or its own, once it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import weakref
from types import TracebackType
from typing import final

from vzarr import portable
from vzarr.datafile import ATTEMPTS, os_error, status_of
from vzarr.errors import AlreadyExistsError, BusyError, NotFoundError
from vzarr.filelocks import no_fork
from vzarr.format import chunk_digest
from vzarr.portable import at_fork, sync_directory

_NAME_DIGITS = 16
# Of the system call renameat2.
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2


@final
class Draft:
    """A file beside the path that it is for, until the end of its ``with`` block or its placing.

    Or a directory, with all that its maker puts there.

    Its name follows from that of the path, so that what a killed process left is found again
    without a search. While its maker lives it is locked with ``flock``, so that nobody takes it for
    such a remainder.
    """

    __slots__ = ("__weakref__", "_held", "_is_directory", "path", "target")

    def __init__(self, target: str, mode: int, *, directory: bool = False) -> None:
        """Create it, with these permissions and the umask, in place of one whose maker is dead.

        Raises ``BusyError`` if another one is being written for the same path, ``NotFoundError`` if
        there is no such directory, ``FullError`` and ``StorageError``.
        """
        self._held: list[int] = []
        self.target = target
        self.path = draft_path(target)
        self._is_directory = directory
        with no_fork:
            try:
                self._create(mode)
            except FileNotFoundError as error:
                above = os.path.dirname(target)
                raise NotFoundError(
                    f"the directory {above} does not exist: create it", name=above
                ) from error
            except BusyError:
                raise
            except OSError as error:
                raise os_error(error, f"cannot create {self.path}") from error
            _drafts.add(self)

    def _create(self, mode: int) -> None:
        for _ in range(ATTEMPTS):
            remove_dead(self.target)
            try:
                self._make(mode)
            except FileExistsError:
                continue
            # Before it was locked, somebody may have taken it for dead.
            try:
                if _try_lock(self.descriptor) and _is_at(self.descriptor, self.path):
                    return
            except BaseException:
                self._let_go()
                with contextlib.suppress(OSError):
                    remove_dead(self.target)
                raise
            self._let_go()
        raise BusyError(
            f"{self.target} is being written by another process: try again when that one is done"
        )

    def _make(self, mode: int) -> None:
        if not self._is_directory:
            return self._hold(os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        os.mkdir(self.path, mode)
        try:
            return self._hold(os.O_RDONLY | portable.DIRECTORY | portable.NO_LINK, mode)
        except FileNotFoundError as error:
            # Somebody has taken it for dead.
            raise FileExistsError(errno.EEXIST, "taken", self.path) from error

    def _hold(self, flags: int, mode: int) -> None:
        """Open it, and note its descriptor, in one step that Ctrl-C cannot come between.

        One that nobody knows of would keep its lock, and every other draft away, for ever.
        """
        self._held.extend(map(portable.open_file, [self.path], [flags | portable.CLOEXEC], [mode]))

    def _let_go(self) -> None:
        """Close it, and forget its descriptor, in one step."""
        self._held[:] = filter(None, map(os.close, self._held))

    def __del__(self) -> None:
        # After a Ctrl-C before its ``with`` block began, or in the end of that.
        if getattr(self, "_held", None):
            self._let_go()

    @property
    def descriptor(self) -> int:
        """Of the file or directory; negative once it is closed."""
        return self._held[0] if self._held else -1

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
                    _remove(self.path, is_directory=self._is_directory)
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
        _drafts.discard(self)
        self._let_go()

    def place(self) -> None:
        """Give it the path, where nothing must be, durably. Raises ``AlreadyExistsError``."""
        place(self.path, self.target)
        self.path = ""

    def replace(self) -> None:
        """Give it the path in place of what is there, in one step, and durably. Raises OSError.

        Where the system cannot exchange two directories, there is none for a moment.
        """
        if self._is_directory:
            self._replace_directory()
            return
        os.replace(self.path, self.target)
        self.path = ""
        sync_directory(os.path.dirname(self.target))

    def _replace_directory(self) -> None:
        old = portable.open_file(self.target, os.O_RDONLY | portable.DIRECTORY | portable.CLOEXEC)
        try:
            # It gets the draft's name, and while it is removed nobody may take that.
            _try_lock(old)
            _exchange(self.path, self.target)
            path, self.path = self.path, ""
            sync_directory(os.path.dirname(self.target))
            # What cannot be removed, or if we are killed, is removed for the next draft.
            with contextlib.suppress(OSError):
                shutil.rmtree(path)
        finally:
            os.close(old)


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
            descriptor = portable.open_file(
                path, os.O_RDONLY | portable.CLOEXEC | portable.NO_LINK | portable.NONBLOCK
            )
        except FileNotFoundError:
            return
        try:
            # Nobody else deletes or renames it while we have its lock.
            mode = os.fstat(descriptor).st_mode
            known = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
            if known and _try_lock(descriptor) and _is_at(descriptor, path):
                _remove(path, is_directory=stat.S_ISDIR(mode))
        finally:
            os.close(descriptor)


def _remove(path: str, *, is_directory: bool) -> None:
    if is_directory:
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _try_lock(descriptor: int) -> bool:
    try:
        return portable.try_lock_file(descriptor)
    except OSError as error:
        if error.errno not in portable.NO_LOCKS:
            raise
        # A copy may go to a file system without locks; there is no telling who lives then.
        return True


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def place(path: str, target: str) -> None:
    """Rename a file to where nothing must be, durably. Raises ``AlreadyExistsError``, OSError."""
    is_directory = os.path.isdir(path)
    try:
        renamed = _rename_in_one_step(path, target, _RENAME_NOREPLACE)
        if not renamed:
            # Takes the name; a link would need a file system that has them.
            _take_name(target, is_directory=is_directory)
    except FileExistsError as error:
        raise exists(target) from error
    try:
        if not renamed:
            os.replace(path, target)
        sync_directory(os.path.dirname(target))
    except BaseException:
        _remove(target, is_directory=is_directory)
        raise


def _take_name(target: str, *, is_directory: bool) -> None:
    if is_directory:
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | portable.CLOEXEC, 0o666))


def _exchange(path: str, target: str) -> None:
    """Let two directories have each other's names."""
    if not _rename_in_one_step(path, target, _RENAME_EXCHANGE):
        aside = f"{path}-old"
        os.rename(target, aside)
        try:
            os.rename(path, target)
        except BaseException:
            os.rename(aside, target)
            raise
        os.rename(aside, path)


def _rename_in_one_step(path: str, target: str, flag: int) -> bool:
    """Rename without a moment in between; False if the system cannot do that.

    A name that is taken first and filled then would be an empty file if we were killed in between.
    """
    import ctypes

    rename = portable.linux_call("renameat2")
    if sys.platform == "win32" and flag == _RENAME_NOREPLACE:
        # What POSIX overwrites is in the way here.
        os.rename(path, target)
        return True
    if rename is None:
        return False
    names = os.fsencode(path), os.fsencode(target)
    if not rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], flag):
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), path, None, target)


def exists(path: str) -> AlreadyExistsError:
    """Say that there is something at a path."""
    return AlreadyExistsError(f"{path} exists already: open it, or choose another path", name=path)


# ---- fork -----------------------------------------------------------------------------------

_drafts: weakref.WeakSet[Draft] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Leave drafts to the parent: with a descriptor in a child, one would outlive its maker."""
    for draft in list(_drafts):
        draft.release()


at_fork(after_in_child=_after_fork_in_child)
