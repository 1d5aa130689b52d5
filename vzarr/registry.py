"""The data files that this process has open, one ``Access`` each, and what a fork does to them."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar, final

from vzarr import filelocks
from vzarr.access import Access
from vzarr.datafile import open_descriptor, require_single_name, status_of
from vzarr.draft import Draft
from vzarr.errors import BusyError
from vzarr.filelocks import no_fork
from vzarr.portable import at_fork
from vzarr.presence import ReplacedError
from vzarr.system import flock_holder

_FORK_TIMEOUT = 10.0
# How long to sleep between two looks whether a file is still being compacted, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02


Shared = TypeVar("Shared")


@final
class Registry(Generic[Shared]):
    """Finds a file that is open by device and inode, and counts its users.

    These get one object for each file, which ``make`` gives for the access to it.
    """

    def __init__(self, make: Callable[[Access], Shared]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], tuple[Access, Shared]] = {}
        self._forking = threading.local()
        at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )
        atexit.register(self._at_exit)

    def claim(self, path: str, timeout: float | None = None, *, writable: bool = False) -> Shared:
        """Find the object for a file, or make one, and count one more user.

        Who is going to write waits for another process to end a compaction of the file. Raises
        ``BusyError`` after so many seconds; None waits for ever.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                # A child that inherits a descriptor must find it here, or it would keep its locks.
                with no_fork:
                    return self._claim(path, writable=writable)
            except _CompactedError as error:
                if deadline is not None and time.monotonic() >= deadline:
                    raise BusyError(
                        f"{path} is being compacted by {error.holder or 'another process'}; waited "
                        f"{timeout:g} seconds: try again later",
                        holder=error.holder,
                    ) from None
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    def _claim(self, path: str, *, writable: bool) -> Shared:
        descriptor, refusal = open_descriptor(path)
        try:
            status = status_of(path, descriptor)
            require_single_name(path, status)
            key = (status.st_dev, status.st_ino)
            with self._lock:
                if key not in self._known:
                    try:
                        access = Access(path, key, descriptor, refusal)
                    except ReplacedError:
                        raise _CompactedError(descriptor) from None
                    descriptor = -1
                    _require_settled(access, writable=writable)
                    self._known[key] = (access, self._make(access))
                access, shared = self._known[key]
                access.users += 1
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return shared

    def replace(self, access: Access, draft: Draft, timeout: float) -> bool:
        """Put a draft in the place of a file; see ``Access.replace_by``.

        The caller is through the gate. False if txns of this process go on for so many seconds.
        """
        if not access.activity.shut(timeout):
            return False
        try:
            with no_fork, self._lock:
                key = access.key
                try:
                    access.replace_by(draft)
                finally:
                    if access.key != key:
                        self._known[access.key] = self._known[key]
                        del self._known[key]
        finally:
            access.activity.open()
        return True

    def unclaim(self, access: Access, *, last: bool) -> bool:
        """Count one user less, the last one only if asked for. Tells whether it was counted."""
        with self._lock:
            if access.users > 1 or (last and access.users == 1):
                access.users -= 1
                return True
            return not access.users

    def forget(self, access: Access) -> None:
        """Drop an access, unless somebody has opened the file again meanwhile."""
        with no_fork, self._lock:
            known = access in self.accesses()
            # One that is lost stays, to say so to whoever opens the file.
            if known and not access.users and not access.lost:
                del self._known[access.key]
                access.dispose()

    def accesses(self) -> list[Access]:
        """List what is open, or lost."""
        return [access for access, _ in list(self._known.values())]

    # -- fork and exit --

    def _before_fork(self) -> None:
        """Wait until no thread is inside LMDB: a child that closed its copy would hang."""
        deadline = time.monotonic() + _FORK_TIMEOUT
        # Noted step by step: Ctrl-C ends the waiting, but not the fork.
        self._forking.quiet = quiet = []
        self._forking.alone = False
        while True:
            # In one order in all threads, so that two that fork do not wait for each other.
            known = sorted(self.accesses(), key=lambda access: access.key)
            for access in known:
                if access.activity.shut(_until(deadline)):
                    quiet.append(access)  # noqa: PERF401
            # From here on nobody opens a file. One that was opened meanwhile is not quiet yet.
            no_fork.acquire()
            self._forking.alone = True
            if set(known) >= set(self.accesses()) or not _until(deadline):
                return
            self._after_fork_in_parent()

    def _after_fork_in_parent(self) -> None:
        if self._forking.alone:
            self._forking.alone = False
            no_fork.release()
        while self._forking.quiet:
            self._forking.quiet.pop().activity.open()

    def _after_fork_in_child(self) -> None:
        # Another thread may have held it; what it guards is changed in single steps.
        self._lock = threading.Lock()
        for access in self.accesses():
            access.after_fork(quiet=access in self._forking.quiet)

    def _at_exit(self) -> None:
        for access in self.accesses():
            access.at_exit()


class _CompactedError(Exception):
    """A file is being compacted, so that it cannot be opened now; never leaves the package."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.holder = flock_holder(descriptor)


def _require_settled(access: Access, *, writable: bool) -> None:
    """Raise ``_CompactedError`` if the file was replaced until just now, or is about to be.

    Whoever is about to replace it says so first, and then looks who has it open. We have opened it
    first, and look now: at least one of us sees the other. Who only reads may stay, and be waited
    for; a writer would have to wait at the gate, and both for each other.
    """
    descriptor = access.gate.descriptor
    try:
        status = os.stat(access.path)
        elsewhere = (status.st_dev, status.st_ino) != access.key
    except OSError:
        # It was deleted, which is told later.
        elsewhere = False
    if elsewhere or (writable and _is_compacted(descriptor)):
        error = _CompactedError(descriptor)
        access.dispose()
        raise error


def _is_compacted(descriptor: int) -> bool:
    try:
        return filelocks.find(descriptor, filelocks.COMPACTION, 1) is not None
    except OSError:
        # There are no such locks, and no compaction without.
        return False


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
