"""What systems name or do differently, under one name each.

A module that needs what is not everywhere has it from here. ``filelocks`` and ``system`` ask
themselves, since what the systems tell of locks and processes is what they are about; and so do
``memorymap``, ``draft`` and ``directories``, each in one place, where Windows goes another way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from typing import Any

if sys.platform == "win32":
    from vzarr import windows

    CLOEXEC = os.O_NOINHERIT | os.O_BINARY
    NONBLOCK, NO_LINK, DIRECTORY = 0, windows.NO_LINK, 0
    open_file, pread, pwrite = windows.open_file, windows.pread, windows.pwrite
else:
    import fcntl

    CLOEXEC = os.O_CLOEXEC
    NONBLOCK, NO_LINK, DIRECTORY = os.O_NONBLOCK, os.O_NOFOLLOW, os.O_DIRECTORY
    pread, pwrite = os.pread, os.pwrite

    def open_file(path: str, flags: int, mode: int = 0o666) -> int:
        """Open a file as ``os.open`` does, but so that it can be renamed and deleted meanwhile."""
        return os.open(path, flags, mode)


# Where Windows locks what stands for a whole file: far behind its end, but not where ``filelocks``
# has any other.
_WHOLE_FILE = 1 << 61
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""The errors of file systems that have no locks, and of Windows for directories."""

OPEN_FILES_STAY = sys.platform == "win32"
"""Whether no file can be put in the place of one that anybody has open."""

NOT_ON_WINDOWS = re.compile(
    r"[<>:\"/\\|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d) *(\.|$)", re.IGNORECASE
)
"""Finds what makes a name none, or that of a device or a stream."""


# ---- locks on whole files -------------------------------------------------------------------


def try_lock_file(descriptor: int, *, shared: bool = False) -> bool:
    """Lock a file for this opening of it; False if another one has it locked. Raises ``OSError``.

    The system drops the lock when the descriptor, and all that were made of it, are closed.
    """
    if sys.platform == "win32":
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENOLCK, "Windows has no locks on directories")
        return windows.try_lock(descriptor, _WHOLE_FILE, 1, shared=shared)
    else:  # noqa: RET505 - in another order, mypy would miss half of it
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def unlock_file(descriptor: int) -> None:
    """Give the lock back, for all descriptors of this opening."""
    if sys.platform == "win32":
        windows.unlock(descriptor, _WHOLE_FILE, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


# ---- files and directories ------------------------------------------------------------------


def read_into(descriptor: int, buffer: memoryview) -> int:
    """Read the next bytes of a file; 0 at its end."""
    if sys.platform == "win32":
        data = os.read(descriptor, buffer.nbytes)
        buffer[: len(data)] = data
        return len(data)
    else:  # noqa: RET505
        return os.readv(descriptor, [buffer])


def allocate(descriptor: int, offset: int, length: int) -> None:
    """Reserve space beyond the end of a file, as zeros; it never gets shorter."""
    # macOS has no such call, and what Windows writes behind the end is allocated.
    if sys.platform not in ("darwin", "win32"):
        try:
            os.posix_fallocate(descriptor, offset, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
        else:
            return
    if os.fstat(descriptor).st_size < offset + length:
        pwrite(descriptor, bytes(length), offset)


def give_to(descriptor: int, user: int, group: int) -> None:
    """Make a file another user's. On Windows it belongs to whoever made it."""
    if sys.platform != "win32":
        os.fchown(descriptor, user, group)


def is_root() -> bool:
    """Tell whether files that we make would shut their directory's owner out."""
    return sys.platform != "win32" and os.geteuid() == 0


def flush_data(descriptor: int) -> None:
    """Make what was written to a file durable, and its length. Raises ``OSError``."""
    if sys.platform == "darwin":
        _full_sync(descriptor)
    elif sys.platform == "win32":
        os.fsync(descriptor)
    else:
        os.fdatasync(descriptor)


def fsync(descriptor: int) -> None:
    """Make a file durable, with all that is known of it. Raises ``OSError``."""
    if sys.platform == "darwin":
        _full_sync(descriptor)
    else:
        os.fsync(descriptor)


def _full_sync(descriptor: int) -> None:
    """Have a Mac's disk write what it was given; a mere sync leaves that in the disk's memory."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
            # A file system that cannot pass it on.
            os.fsync(descriptor)


def sync_path(path: str) -> None:
    """Make a file durable, which Windows does only for those who may write it."""
    mode = os.O_RDWR if sys.platform == "win32" else os.O_RDONLY
    descriptor = open_file(path, mode | CLOEXEC)
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: str) -> None:
    """Make a new name durable. Windows has no call for it; NTFS writes names in their order."""
    if sys.platform != "win32":
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fsync(descriptor)
        finally:
            os.close(descriptor)


def free_bytes(directory: str) -> int:
    """Give the room that there is for us. Raises ``OSError``."""
    return shutil.disk_usage(directory).free


def is_read_only(path: str) -> bool:
    """Tell whether a path is on media that nobody can write, as far as the system says."""
    return sys.platform != "win32" and bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def name_limits(directory: str) -> tuple[int, int]:
    """Give the longest name of a file in a directory, and the longest path with a NUL, in bytes."""
    if sys.platform == "win32":
        return 255, windows.longest_path()
    else:  # noqa: RET505
        return os.pathconf(directory, "PC_NAME_MAX"), os.pathconf(directory, "PC_PATH_MAX")


def is_file_name(name: str) -> bool:
    """Tell whether a file of this system can have a name; Windows reads more than one into some."""
    return sys.platform != "win32" or NOT_ON_WINDOWS.search(name) is None


def is_remote(path: str) -> bool:
    """Tell whether Windows knows that a path is on another machine; elsewhere, see ``system``."""
    return sys.platform == "win32" and windows.is_remote(path)


def linux_call(name: str) -> Any:
    """Give a function of the C library that only Linux has; None where it is missing."""
    if sys.platform != "linux":
        return None
    else:  # noqa: RET505
        import ctypes

        return getattr(ctypes.CDLL(None, use_errno=True), name, None)


# ---- processes ------------------------------------------------------------------------------


def user_name() -> str:
    """Give what stands for a user without a name."""
    if sys.platform == "win32":
        return "unknown"
    else:  # noqa: RET505
        return f"uid-{os.getuid()}"


def process_started(pid: int) -> int | None:
    """When a process of this machine began; None if there is none.

    In clock ticks since the machine began or, on Windows, units of 100 ns; 0 if the system does not
    tell.
    """
    if sys.platform == "win32":
        return windows.process_started(pid)
    else:  # noqa: RET505
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            # The second field, the command, may itself hold spaces and parentheses.
            return int(file.read().rpartition(b")")[2].split()[19])
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            # A file may name any number as that of a process.
            return None
        except PermissionError:
            # There is one, of another user.
            return 0
        return 0


def at_fork(
    *,
    before: Callable[[], object] | None = None,
    after_in_parent: Callable[[], object] | None = None,
    after_in_child: Callable[[], object] | None = None,
) -> None:
    """Have functions called around each fork of this process, where there is such a thing."""
    if sys.platform != "win32":
        calls = {
            "before": before,
            "after_in_parent": after_in_parent,
            "after_in_child": after_in_child,
        }
        os.register_at_fork(**{when: call for when, call in calls.items() if call is not None})
