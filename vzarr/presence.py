"""Who has a repository open, and which commits are in use: told by locks, so never stale."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

from vzarr import filelocks
from vzarr.errors import StorageError
from vzarr.format import Digest

_DOOR = filelocks.OPEN_REPOSITORIES, filelocks.OPEN_REPOSITORIES_LENGTH
# More neighbouring bytes are not pins: another program has locked the whole file.
_MOST_NEIGHBOURS = 1 << 16


class ReplacedError(Exception):
    """Another file is just being put in the place of this one; never leaves vzarr."""


@final
@dataclass(frozen=True, slots=True)
class Pin:
    """A commit that a process uses, as far as a lock can tell: the first 37 bits of its id."""

    pid: int
    prefix: int

    def matches(self, commit: Digest) -> bool:
        """Tell whether this may be the pin of a commit; wrong once in 2^37 times, and then True."""
        return _prefix(commit) == self.prefix


@final
class Presence:
    """What one opening of a data file tells all others, for as long as it is open.

    ``token`` is a random number of 58 bits by which others recognise the opening: its byte is
    locked. Another byte is locked for each commit that is pinned. All locks are shared ones, so
    that those who may only read can take them too. Where the file has no such locks, nothing is
    told to others and ``is_present`` knows nothing of them.
    """

    __slots__ = ("_counts", "_descriptor", "_dropped", "_lock", "token")

    def __init__(self, descriptor: int, pinned: Mapping[int, int] | None = None) -> None:
        """Appear. ``pinned`` is what ``pinned()`` of a parent process's presence gave.

        Raises ``ReplacedError`` while the file is being replaced: look for the new one.
        """
        self.token = secrets.randbits(filelocks.TOKEN_BITS)
        self._lock = threading.Lock()
        # How often each prefix is pinned, and those of which one pin less is wanted.
        self._counts = dict(pinned or {})
        self._dropped: deque[int] = deque()
        # Negative where there are no locks to be had, and at the end.
        self._descriptor = descriptor if self._appear(descriptor) else -1

    def _appear(self, descriptor: int) -> bool:
        if descriptor < 0 or not filelocks.SUPPORTED:
            return False
        try:
            if not self._lock_token(descriptor):
                return False
            for prefix in self._counts:
                _lock(descriptor, _own_byte(prefix))
        except OSError:
            # No such locks on this file system. Nobody learns of us, and nobody is told otherwise:
            # is_present() gives None there.
            return False
        return True

    def _lock_token(self, descriptor: int) -> bool:
        byte = filelocks.token_byte(self.token)
        if filelocks.try_lock(descriptor, byte, shared=True):
            return True
        found = filelocks.find(descriptor, byte, 1)
        if found is None or found == _DOOR:
            raise ReplacedError
        # Another program has locked the whole file.
        return False

    @property
    def is_told(self) -> bool:
        """Whether others can learn of us, and we of them."""
        return self._descriptor >= 0

    def others(self) -> bool:
        """Tell whether any other process has the file open, as far as locks tell."""
        return filelocks.find(self._descriptor, *_DOOR) is not None

    def shut_door(self) -> bool:
        """Keep everybody else from opening the file; False if another process has it open.

        In one step, so that nobody slips in. ``open_door`` ends it.
        """
        return filelocks.try_lock(self._descriptor, *_DOOR)

    def open_door(self) -> None:
        """Let others in again."""
        start, length = _DOOR
        own, end = filelocks.token_byte(self.token), start + length
        # Our own byte stays locked all the time; that nobody else may lock it, too, does no harm.
        with contextlib.suppress(OSError):
            filelocks.try_lock(self._descriptor, own, shared=True)
        if start < own:
            filelocks.unlock(self._descriptor, start, own - start)
        if own + 1 < end:
            filelocks.unlock(self._descriptor, own + 1, end - own - 1)

    @contextlib.contextmanager
    def moving(self, descriptor: int) -> Iterator[None]:
        """Appear on another file too; in the block, ours is made to lead there.

        Raises ``StorageError`` if that file gets no such locks.
        """
        with self._lock:
            _lock(descriptor, filelocks.token_byte(self.token))
            for prefix in self._counts:
                _lock(descriptor, _own_byte(prefix))
            yield
        self._settle()

    def is_present(self, token: int) -> bool | None:
        """Tell whether somebody has the file open with this token; None where nobody can tell."""
        if token == self.token:
            return True
        if not 0 <= token < 1 << filelocks.TOKEN_BITS:
            return False
        with self._lock:
            if self._descriptor < 0:
                return None
            return filelocks.find(self._descriptor, filelocks.token_byte(token), 1) is not None

    def pin(self, commit: Digest) -> None:
        """Tell all others that a commit is in use, until as many calls of ``unpin``.

        Raises ``StorageError`` if the system has no more locks. Takes 3 µs.
        """
        prefix = _prefix(commit)
        with self._lock:
            count = self._counts.get(prefix, 0)
            if not count and self._descriptor >= 0:
                _lock(self._descriptor, _own_byte(prefix))
            self._counts[prefix] = count + 1
        self._settle()

    def unpin(self, commit: Digest) -> None:
        """Take one ``pin`` back. Never waits, so that the end of an object may call it."""
        self._dropped.append(_prefix(commit))
        self._settle()

    def _settle(self) -> None:
        """Do what ``unpin`` asked for, unless somebody is at it, who then does it for us.

        The collector of garbage may call ``unpin`` in any thread and at any moment, also in one
        that has the lock.
        """
        while self._dropped and self._lock.acquire(blocking=False):
            try:
                while self._dropped:
                    self._drop(self._dropped.popleft())
            finally:
                self._lock.release()

    def _drop(self, prefix: int) -> None:
        # In single steps, because a fork may take a copy at any moment.
        count = self._counts.get(prefix, 0)
        if count > 1:
            self._counts[prefix] = count - 1
        elif count:
            del self._counts[prefix]
            if self._descriptor >= 0:
                # A pin too many keeps a commit longer than it must, and is gone with the process.
                with contextlib.suppress(OSError):
                    filelocks.unlock(self._descriptor, _own_byte(prefix))

    def pinned(self) -> Mapping[int, int]:
        """Give how often this process has pinned each prefix."""
        return dict(self._counts)

    def pins(self) -> list[Pin]:
        """List what all processes have pinned, this one included. O(n) for n pins.

        Where there are no locks to be had (``is_present`` of a foreign token gives None), these
        are only our own. Raises ``StorageError`` if another program's lock hides what is pinned.
        """
        with self._lock:
            found = {Pin(os.getpid(), prefix) for prefix in self._counts}
            locked = []
            if self._descriptor >= 0:
                locked = filelocks.find_all(
                    self._descriptor, filelocks.PINNED_COMMITS, filelocks.PINNED_COMMITS_LENGTH
                )
        for start, length in locked:
            if length > _MOST_NEIGHBOURS:
                raise _locked_by_others()
            # Neighbouring locks of one owner are one lock.
            found |= {Pin(*filelocks.pinned_by(byte)) for byte in range(start, start + length)}
        return sorted(found, key=lambda pin: (pin.pid, pin.prefix))

    def close(self) -> None:
        """Be gone. To pin and to unpin goes on without an effect: sessions outlive the file."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                # A process that is being spawned may share the descriptor: closing would not do.
                with contextlib.suppress(OSError):
                    filelocks.unlock(descriptor, filelocks.token_byte(self.token))
                    for prefix in self._counts:
                        filelocks.unlock(descriptor, _own_byte(prefix))


def _lock(descriptor: int, byte: int) -> None:
    try:
        free = filelocks.try_lock(descriptor, byte, shared=True)
    except OSError as error:
        raise StorageError(
            f"the commit that is opened cannot be protected from a collection of garbage: the "
            f"system gives no lock ({error.strerror}); close some repositories",
            code=error.errno,
        ) from error
    if not free:
        raise _locked_by_others()


def _locked_by_others() -> StorageError:
    return StorageError(
        "another program has locked the whole data file, which hides what is in use: end that "
        "program (a backup, a copy) and try again",
        code=errno.EAGAIN,
    )


def _prefix(commit: Digest) -> int:
    return int.from_bytes(commit[:8], "big") >> (64 - filelocks.PREFIX_BITS)


def _own_byte(prefix: int) -> int:
    return filelocks.pinned_byte(os.getpid(), prefix)
