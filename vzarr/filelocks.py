"""Locks on bytes far behind the end of a data file, and the map of what they mean.

These are Linux's open file description locks. Each belongs to one opening of the file, so that two
threads with descriptors of their own are as separate as two processes are; the kernel drops it in
the moment when its owner is gone, however it went; and anybody can ask which bytes of a range are
locked, which makes a lock's place and length a message. A call takes a microsecond. The bytes are
never read or written, and no file is as long.

The locks of Windows tell nothing: only the turn at the gate is taken there. macOS has none.

| from byte | region | a locked byte says |
|---|---|---|
| 2^62 | the write gate | somebody is the next to write |
| 2^62 + 1 | compaction | somebody is about to put another file in the place of this one |
| 2^62 + 2^59 | open repositories | whoever has this token (58 bits) has the file open |
| 2^62 + 2^60 | pinned commits | a process (22 bits) uses a commit (37 bits of its id) |
| 2^62 + 2^61 | queues of branches | somebody waits for a branch (20 bits of a hash): ``Queue`` |

An unlock is told explicitly before a descriptor is closed, and a child process closes what it has
inherited without one: both share the opening, and its locks live until either says so or both have
closed it.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
from dataclasses import dataclass
from typing import final

from vzarr.portable import at_fork

if sys.platform == "win32":
    from vzarr import windows
else:
    import fcntl

SUPPORTED = sys.platform == "linux"
"""Whether this system has such locks that also tell. A file system without raises ``OSError``."""

GATE_TURN = 1 << 62
COMPACTION = GATE_TURN + 1

TOKEN_BITS = 58
OPEN_REPOSITORIES = GATE_TURN + (1 << 59)
OPEN_REPOSITORIES_LENGTH = 1 << TOKEN_BITS

PREFIX_BITS = 37
PINNED_COMMITS = GATE_TURN + (1 << 60)
PINNED_COMMITS_LENGTH = 1 << 59

_QUEUES = GATE_TURN + (1 << 61)
_QUEUE_BITS, _QUEUE_LENGTH_BITS = 20, 40

_END = 1 << 63
# The system's struct flock: kind, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi0q")


def token_byte(token: int) -> int:
    """Give the byte that the opener of the file with this token has locked."""
    assert 0 <= token < 1 << TOKEN_BITS
    return OPEN_REPOSITORIES + token


def pinned_byte(pid: int, prefix: int) -> int:
    """Give the byte for a process that uses a commit with this prefix."""
    assert 0 <= prefix < 1 << PREFIX_BITS
    return PINNED_COMMITS + (pid << PREFIX_BITS) + prefix


def pinned_by(byte: int) -> tuple[int, int]:
    """Give the process and the prefix that such a byte stands for."""
    return divmod(byte - PINNED_COMMITS, 1 << PREFIX_BITS)


@final
@dataclass(frozen=True, slots=True)
class Queue:
    """The bytes of one branch's queue: tickets, a mutex, and facts about who has the turn.

    Branches whose names share 20 bits of their hash share a queue, and wait for each other.
    """

    first_ticket: int
    tickets: int
    mutex: int
    pid: int
    """Locked for as many bytes as the number of the process that has the turn."""
    since: int
    """Locked for as many bytes as seconds from 1970 to the beginning of the turn."""
    namespace: int
    """Locked for as many bytes as the number of the namespace that gave the process its number."""
    length: int

    @classmethod
    def of(cls, name_digest: bytes) -> Queue:
        """Find the queue for a name with this digest."""
        number = int.from_bytes(name_digest[:8], "big") >> (64 - _QUEUE_BITS)
        base, length = _QUEUES + (number << _QUEUE_LENGTH_BITS), 1 << _QUEUE_LENGTH_BITS
        half, eighth = base + length // 2, length // 8
        return cls(
            first_ticket=base,
            tickets=length // 4,
            mutex=base + length // 4,
            pid=half,
            since=half + eighth,
            namespace=half + 2 * eighth,
            length=length,
        )


def try_lock(descriptor: int, start: int, length: int = 1, *, shared: bool = False) -> bool:
    """Lock a range of bytes, unless another opening of the file has locked some of it.

    A descriptor that only reads can take shared locks alone. On macOS this does nothing and gives
    True; on Windows own locks are in the way too, where they overlap. Raises ``OSError`` where the
    file system has none.
    """
    if sys.platform == "win32":
        return windows.try_lock(descriptor, start, length, shared=shared)
    else:  # noqa: RET505 - in another order, mypy would miss half of it
        return _set(descriptor, fcntl.F_RDLCK if shared else fcntl.F_WRLCK, start, length)


def unlock(descriptor: int, start: int, length: int = 1) -> None:
    """Give back what this opening of the file has locked of a range; on Windows, all of a lock."""
    if sys.platform == "win32":
        windows.unlock(descriptor, start, length)
    else:
        _set(descriptor, fcntl.F_UNLCK, start, length)


def _set(descriptor: int, kind: int, start: int, length: int) -> bool:
    if sys.platform == "linux":
        lock = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
    return True


def find(descriptor: int, start: int, length: int) -> tuple[int, int] | None:
    """Give start and length of a lock in a range, shared or not, that another opening has.

    The lock may reach beyond the range; which one of several is found is up to the system. On
    systems without such locks this gives None. O(locks on the file), a microsecond for a few.
    """
    if sys.platform == "linux":
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        reply = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, lock)
        kind, _, start, length, _ = _FLOCK.unpack(reply)
        if kind != fcntl.F_UNLCK:
            # Length zero stands for all that a file could ever have.
            return start, length or _END - start
    return None


def process_with_lock(descriptor: int) -> int | None:
    """Give a process that has a lock on LMDB's lock file, of the older kind that LMDB takes.

    0 stands for one that is not told. None if there is none, or the system does not say.
    """
    if sys.platform == "win32":
        # There, LMDB shares a lock on the first byte of its lock file.
        if not windows.try_lock(descriptor, 0, 1, shared=False):
            return 0
        windows.unlock(descriptor, 0, 1)
    elif sys.platform == "linux":
        lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, *_, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, lock))
        if kind != fcntl.F_UNLCK:
            return max(int(pid), 0)
    return None


def find_all(descriptor: int, start: int, length: int) -> list[tuple[int, int]]:
    """List what other openings have locked in a range, in order and cut to the range.

    Where shared locks overlap, each byte is listed once. O(n) calls of ``find`` for n locks.
    """
    found = []
    unknown = [(start, start + length)]
    while unknown:
        low, high = unknown.pop()
        lock = find(descriptor, low, high - low) if low < high else None
        if lock is not None:
            first, end = max(low, lock[0]), min(high, lock[0] + lock[1])
            found.append((first, end - first))
            unknown += [(low, first), (end, high)]
    return sorted(found)


# ---- fork -----------------------------------------------------------------------------------


no_fork = threading.RLock()
"""Keeps this process from forking: ``with no_fork: …``. Short, and without other locks.

For the moments in which a descriptor is open that those who close it in a child do not know:
inherited unseen, it would keep the locks of a parent that was killed. Whoever collects garbage
inside may come back for an object that is thrown away, hence the kind of lock.
"""


def _after_fork_in_child() -> None:
    """Be free: whoever waited for it has stayed behind. The object stays, for all who know it."""
    no_fork._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001


at_fork(
    before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=_after_fork_in_child
)
