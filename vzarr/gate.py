"""The write gate of a data file: one writer at a time, among threads and processes."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import final

from vzarr import filelocks, portable
from vzarr.errors import BusyError, Holder, SessionStateError, StorageError
from vzarr.system import flock_holder

# How long a writer sleeps between two looks at the gate: at first, at most, and when it is next.
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_TURN = 0.0002, 0.02, 0.002


@final
class Gate:
    """Lets one writer at a time through: a lock among threads, then ``flock`` on the data file.

    The descriptor is our own, because ``flock`` belongs to it; being one of the data file, it also
    keeps out writers that came by another path. The kernel drops the lock when the process dies.
    """

    __slots__ = ("_lock", "_retired", "_since", "_thread", "_wanting", "descriptor", "path")

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor
        # One that knows its owner itself: Ctrl-C may come before we could note it.
        self._lock = threading.RLock()
        self._thread = ""
        self._since = 0.0
        # The threads that are through the gate, or wait for it. An interrupt may leave one here
        # until it has been through the next time.
        self._wanting: set[int] = set()
        # Whether nobody may come through any more.
        self._retired = False

    def mine(self) -> bool:
        """Tell whether this thread is through the gate."""
        return self._lock._is_owned()  # type: ignore[attr-defined,no-any-return]  # noqa: SLF001

    def acquire(self, timeout: float | None) -> None:
        """Wait for the gate. Raises ``BusyError`` after so many seconds; None waits for ever."""
        self.require_outside()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._wanting.add(threading.get_ident())
            if not self._lock.acquire(timeout=_for_lock(timeout)):
                raise self._busy(timeout, self._own_holder())
            self._flock(timeout, deadline)
            self._thread = threading.current_thread().name
            self._since = time.time()
        except BaseException:
            # It may have been interrupted with either lock in its hands.
            if self.mine():
                self._end_turn()
            self.release()
            self._wanting.discard(threading.get_ident())
            raise

    def require_outside(self) -> None:
        """Raise ``SessionStateError`` if this thread is through the gate."""
        if self.mine():
            raise SessionStateError("a write txn of this thread is open already: end it first")

    def release(self) -> None:
        """Let the next writer through; nothing happens if this thread is not through."""
        if not self.mine():
            return
        try:
            self._unlock()
        except BaseException:
            # Ctrl-C may have come before it was done, and nobody else would do it.
            self._unlock()
            raise
        finally:
            self._lock.release()
        self._wanting.discard(threading.get_ident())
        if self._retired:
            self.retire()

    def _unlock(self) -> None:
        if self.descriptor >= 0:
            # Closing would not do: a process that is being spawned may share the descriptor.
            portable.unlock_file(self.descriptor)

    def is_wanted(self) -> bool:
        """Tell whether a thread of this process is through the gate, or about to come through.

        The answer may be wrong in a moment. Other processes are not looked at: their flushes prove
        nothing to us.
        """
        return bool(self._wanting)

    def retire(self) -> None:
        """Close the gate for good, and its descriptor as soon as no thread is through.

        Another file may have its number then, so that nobody must be left who would unlock it.
        """
        self._retired = True
        if self._lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Close the descriptor, whoever is through: in a child process, where nobody is."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _flock(self, timeout: float | None, deadline: float | None) -> None:
        try:
            self._poll(self._try_turn, _LONGEST_PAUSE, timeout, deadline)
            self._poll(self._try_flock, _LONGEST_TURN, timeout, deadline)
        finally:
            self._end_turn()

    def _poll(
        self,
        attempt: Callable[[], bool],
        longest: float,
        timeout: float | None,
        deadline: float | None,
    ) -> None:
        pause = _FIRST_PAUSE
        while not self._try(attempt):
            remaining = pause if deadline is None else deadline - time.monotonic()
            if remaining <= 0:
                raise self._busy(timeout, flock_holder(self.descriptor))
            time.sleep(min(pause, remaining))
            pause = min(pause * 1.5, longest)

    def _try(self, attempt: Callable[[], bool]) -> bool:
        if self._retired:
            raise SessionStateError(f"{self.path} is closed: open it again")
        return attempt()

    def _try_turn(self) -> bool:
        """Try to be the next, by a lock on a byte far behind the end of the file.

        Whoever writes without a pause has to queue here like all others, while the next one waits
        at the gate; without it, one who polls would hardly ever find the gate open. Files that
        cannot have such locks do without.
        """
        try:
            return filelocks.try_lock(self.descriptor, filelocks.GATE_TURN)
        except OSError:
            return True

    def _end_turn(self) -> None:
        if self.descriptor >= 0:
            with contextlib.suppress(OSError):
                filelocks.unlock(self.descriptor, filelocks.GATE_TURN)

    def _try_flock(self) -> bool:
        try:
            return portable.try_lock_file(self.descriptor)
        except OSError as error:
            raise StorageError(
                f"cannot lock {self.path} for writing: {error.strerror}", code=error.errno
            ) from error

    def _own_holder(self) -> Holder:
        return Holder(
            pid=os.getpid(),
            host=socket.gethostname(),
            command=f"thread {self._thread!r} of this process",
            since=datetime.fromtimestamp(self._since, UTC),
        )

    def _busy(self, timeout: float | None, holder: Holder | None) -> BusyError:
        return BusyError(
            f"{self.path} is being written by {holder or 'another process'}; waited "
            f"{timeout or 0:g} seconds: try again, or with a longer timeout",
            holder=holder,
        )


def _for_lock(timeout: float | None) -> float:
    return -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
