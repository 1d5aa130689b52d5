"""The data files that this process has open, one ``Access`` each, and what a fork does to them."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar, final

from vzarr.access import Access
from vzarr.datafile import open_descriptor, require_single_name
from vzarr.filelocks import no_fork

_FORK_TIMEOUT = 10.0


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
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )
        atexit.register(self._at_exit)

    def claim(self, path: str) -> Shared:
        """Find the object for a file, or make one, and count one more user."""
        # A child that inherits a descriptor must find it here, or it would keep its locks.
        with no_fork:
            return self._claim(path)

    def _claim(self, path: str) -> Shared:
        descriptor, refusal = open_descriptor(path)
        try:
            status = os.fstat(descriptor)
            require_single_name(path, status)
            key = (status.st_dev, status.st_ino)
            with self._lock:
                if key not in self._known:
                    access, descriptor = Access(path, key, descriptor, refusal), -1
                    self._known[key] = (access, self._make(access))
                access, shared = self._known[key]
                access.users += 1
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return shared

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


def _until(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
