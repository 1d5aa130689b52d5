"""Turns on a branch: writers queue for it, first come first served, whatever process they are in.

A queue is a row of bytes far behind the end of the data file (``filelocks``). Whoever comes locks
the byte after the last one that is locked, its ticket, and has the turn once no byte before it is.
So a place in the queue is as sure as its owner is alive: when a process is killed, waiting or on,
the kernel unlocks its bytes and the others move up. Nothing is written, nothing is left to clean.

Each turn has a descriptor of its own, since that is what a lock belongs to; so threads queue like
processes do. Lamport's bakery is the idea, with the kernel for a baker.
"""

# The functions of this module know the class's insides.
# ruff: noqa: SLF001

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import weakref
from datetime import UTC, datetime
from functools import lru_cache
from typing import final

from vzarr import filelocks
from vzarr.environment import Environment
from vzarr.errors import BusyError, Holder, SessionStateError, StorageError, VzarrError
from vzarr.filelocks import Queue, no_fork
from vzarr.format import chunk_digest
from vzarr.portable import at_fork
from vzarr.system import process_namespace, running

# How long to sleep between two looks at the queue: at first, for each place that one is behind; at
# most, for the next one and for those far behind. A turn takes longer than the first.
_FIRST_PAUSE, _LONGEST_PAUSE, _LONGEST_FAR_PAUSE = 0.0002, 0.002, 0.01
_GROWTH = 1.5


@final
class Turn:
    """A turn on one branch, to be waited for, had and given back; again and again if wanted.

    Not shared by threads that acquire it; any thread may release it. After ``fork`` the turn stays
    with the parent, and the child's copy is not held. One that nobody refers to any more is given
    back.
    """

    __slots__ = (
        "__weakref__",
        "_descriptor",
        "_environment",
        "_held",
        "_locks",
        "_queue",
        "_thread",
        "branch",
    )

    def __init__(self, environment: Environment, branch: str) -> None:
        self._descriptor = -1
        self._held = False
        self._locks: list[tuple[int, int]] = []
        self._environment = environment
        self._queue = _queue_of(branch)
        self._thread = ""
        self.branch = branch

    @property
    def held(self) -> bool:
        """Whether it is our turn."""
        return self._held

    def acquire(self, timeout: float | None) -> None:
        """Queue for the branch, and return when it is our turn.

        Those who came before get it before. Raises ``BusyError`` after so many seconds (0: unless
        nobody is before us; None: wait for ever; Ctrl-C works), with ``.holder`` if somebody has
        the turn; ``StorageError`` where there are no such locks, and ``SessionStateError`` if this
        turn is held already. When it raises, our place in the queue is given up. Takes some 30 µs
        if nobody is there; from the release by another it takes 0.2 to 2 ms.
        """
        if self._descriptor >= 0:
            raise SessionStateError(f"this turn on {self.branch!r} is held: release it first")
        if not filelocks.SUPPORTED:
            raise self._unsupported("Linux has them")
        waiting = _Waiting(timeout)
        try:
            self._open()
            ticket = self._take_ticket(waiting)
            self._await(ticket, waiting)
            self._say_who()
            self._thread, self._held = threading.current_thread().name, True
        except BaseException as error:
            self.release()
            if isinstance(error, _OutOfTimeError):
                raise self._busy(timeout) from None
            if isinstance(error, OSError) and not isinstance(error, VzarrError):
                raise self._unsupported(error.strerror, error.errno) from error
            raise

    def release(self) -> None:
        """Let the next one on, or leave the queue. Nothing happens if it is not held."""
        with no_fork:
            descriptor, self._descriptor, self._held = self._descriptor, -1, False
            self._locks.clear()
            if descriptor < 0:
                return
            _turns.discard(self)
            self._environment.forget_follower(self)
            try:
                # Closing would not do: a process that is being spawned may share the descriptor.
                # All at once, so that nobody sees the ticket gone and our name still there.
                with contextlib.suppress(OSError):
                    filelocks.unlock(descriptor, self._queue.first_ticket, self._queue.length)
            finally:
                os.close(descriptor)

    def __del__(self) -> None:
        # Ctrl-C may come before the first step of __init__.
        if getattr(self, "_descriptor", -1) >= 0:
            self.release()

    @property
    def descriptor(self) -> int:
        """Where its locks are; negative if it is neither held nor awaited."""
        return self._descriptor

    def locks(self) -> list[tuple[int, int]]:
        """Give start and length of its locks, the ticket first; for when the file is replaced."""
        return list(self._locks)

    def _open(self) -> None:
        with no_fork:
            self._descriptor = self._environment.open_descriptor(self)
            _turns.add(self)

    def _take_ticket(self, waiting: _Waiting) -> int:
        waiting.begin(places=1)
        while True:
            # In one step for who replaces the file, and takes our locks along.
            with no_fork:
                ticket = self._try_ticket()
            if ticket is not None:
                return ticket
            waiting.pause()

    def _try_ticket(self) -> int | None:
        """Lock the byte after the last one that is locked, unless somebody is at it just now.

        Looking and locking must be one step. Somebody who saw an empty queue, and locked its first
        byte when another one had the turn with a later byte, would have it too.
        """
        queue = self._queue
        if not filelocks.try_lock(self._descriptor, queue.mutex):
            return None
        try:
            ticket, end = queue.first_ticket, queue.first_ticket + queue.tickets
            while ticket < end:
                last = filelocks.find(self._descriptor, ticket, end - ticket)
                if last is None:
                    break
                ticket = last[0] + last[1]
            # At the end of the row, wait until the queue has been empty: it begins anew then.
            if ticket < end and filelocks.try_lock(self._descriptor, ticket):
                self._locks.append((ticket, 1))
                return ticket
            return None
        finally:
            filelocks.unlock(self._descriptor, queue.mutex)

    def _await(self, ticket: int, waiting: _Waiting) -> None:
        """Return when all who came before are gone."""
        seen = None
        while (ahead := self._ahead(ticket)) is not None:
            if ahead != seen:
                seen = ahead
                waiting.begin(places=ticket - ahead)
            waiting.pause()

    def _ahead(self, ticket: int) -> int | None:
        first = self._queue.first_ticket
        if ticket == first:
            return None
        # The kernel lists locks in the order of their owners' first ones: most often, this is the
        # ticket of the one who has the turn.
        found = filelocks.find(self._descriptor, first, ticket - first)
        return None if found is None else found[0]

    def _say_who(self) -> None:
        """Say to those who wait whose turn it is, by the lengths of three locks."""
        queue = self._queue
        for start, fact in (
            (queue.pid, os.getpid()),
            (queue.since, int(time.time())),
            (queue.namespace, process_namespace()),
        ):
            if fact > 0:
                with no_fork:
                    if filelocks.try_lock(self._descriptor, start, fact):
                        self._locks.append((start, fact))

    def _busy(self, timeout: float | None) -> BusyError:
        found = holder(self._environment, self.branch)
        return BusyError(
            f"branch {self.branch!r} of {self._environment.path} is held by "
            f"{found or 'another process'}; waited {timeout or 0:g} seconds: try again, or with a "
            "longer timeout",
            holder=found,
        )

    def _unsupported(self, reason: str | None, code: int | None = None) -> StorageError:
        return StorageError(
            "exclusive transactions need locks on ranges of bytes (open file description locks), "
            f"which are not to be had for {self._environment.path} ({reason}): use repo.run, which "
            "does without",
            code=code,
        )


def is_taken(environment: Environment, branch: str) -> bool:
    """Tell whether anybody has the turn on a branch or waits for it, this process included.

    For those who write without a turn, and let the others pass. Two microseconds.
    """
    queue = _queue_of(branch)
    return environment.find_lock(queue.first_ticket, queue.tickets) is not None


def holder(environment: Environment, branch: str) -> Holder | None:
    """Find who has the turn on a branch; None if nobody has, or has had it for microseconds."""
    queue = _queue_of(branch)
    pid, seconds, namespace = (
        _length(environment, start) for start in (queue.pid, queue.since, queue.namespace)
    )
    if not pid:
        return None
    since = datetime.fromtimestamp(seconds, UTC) if seconds else None
    if namespace != process_namespace():
        # Its pid would be somebody else's here.
        command = f"process {pid} of another container"
        return Holder(None, socket.gethostname(), command, since)
    thread = _own_thread(environment, queue) if pid == os.getpid() else None
    if thread is not None:
        command = f"thread {thread!r} of this process"
        return Holder(pid, socket.gethostname(), command, since)
    return running(pid, since)


def _length(environment: Environment, start: int) -> int:
    lock = environment.find_lock(start, 1)
    return 0 if lock is None else lock[1]


def _own_thread(environment: Environment, queue: Queue) -> str | None:
    with no_fork:
        turns = list(_turns)
    for turn in turns:
        if turn._held and turn._queue == queue and turn._environment.path == environment.path:
            return turn._thread
    return None


@lru_cache(maxsize=256)
def _queue_of(branch: str) -> Queue:
    return Queue.of(chunk_digest(branch.encode()))


class _OutOfTimeError(Exception):
    """The time to wait is over."""


@final
class _Waiting:
    """Pauses between two looks that grow, until a deadline."""

    __slots__ = ("_deadline", "_longest", "_pause")

    def __init__(self, timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.begin(places=1)

    def begin(self, *, places: int) -> None:
        """Start again with short pauses; longer ones for one who is so many places behind."""
        self._pause = min(places * _FIRST_PAUSE, _LONGEST_FAR_PAUSE)
        self._longest = max(self._pause, _LONGEST_PAUSE)

    def pause(self) -> None:
        remaining = self._pause
        if self._deadline is not None:
            remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise _OutOfTimeError
        time.sleep(min(self._pause, remaining))
        self._pause = min(self._pause * _GROWTH, self._longest)


# ---- fork -----------------------------------------------------------------------------------

_turns: weakref.WeakSet[Turn] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """Close what the child has inherited, so that a parent's turn ends with the parent.

    Without unlocking: that would take the turn from the parent.
    """
    for turn in list(_turns):
        descriptor, turn._descriptor, turn._held = turn._descriptor, -1, False
        turn._locks.clear()
        if descriptor >= 0:
            os.close(descriptor)
    _turns.clear()


at_fork(after_in_child=_after_fork_in_child)
