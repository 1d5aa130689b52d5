"""What was committed is made durable: by one flush for all threads that wait for one."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import final

from vzarr import portable

# A flush that takes so many seconds is worth saving. A writer who comes next is waited for as long
# as so many flushes take, but not for longer than so many seconds.
_SLOW, _PATIENCE, _LONGEST = 0.001, 3, 0.05
_PAUSE = 0.0002


@final
class Flushes:
    """The flushes of one data file by this process, after the txns that they are to keep.

    LMDB has flushed the pages of a txn when it is committed; what may still be missing on the disk
    is the meta page. So two flushes of others serve whoever wrote that: one by another thread that
    began afterwards, and the one in the next txn of this process. If the disk is slow and a thread
    is at the gate to commit, that one is waited for: a disk does one flush after the other, and
    each that is saved is one that nobody behind us has to wait for.

    The kernel reports an error once for each opening of a file that was there before it. So the
    next txn proves something only if it went through the same opening as ours, and if none failed
    in between. Of another process nobody knows when it opened the file.

    Our own flush goes through a descriptor of our own: an error that is told here is told to LMDB
    as well, whose own flush of another txn's pages would else succeed without them.
    """

    __slots__ = (
        "_doubtful",
        "_ended",
        "_lock",
        "_made",
        "_row",
        "_seconds",
        "_started",
        "_tried",
        "_unconfirmed",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Flushes are counted from 1. The last one that ended well has all that came before it.
        self._started = 0
        self._ended = 0
        # How long the last one took.
        self._seconds = 0.0
        # Whether the last one has not ended well, as far as anybody knows.
        self._unconfirmed = False
        # The newest txn when a flush failed, or 0. What failed is not tried again by the kernel.
        self._doubtful = 0
        # The commits of this process, counted from 1: the last one that began, the last one that
        # was made, and the first one since which all were, through one opening of the file.
        self._tried = 0
        self._made = 0
        self._row = 1

    # -- told by whoever commits --

    def committing(self) -> None:
        """Be told, through the gate, that a commit begins."""
        if self._made < self._tried:
            # The last one failed, was interrupted, or had nothing to flush.
            self.reopened()
        self._tried += 1

    def committed(self) -> None:
        """Be told, through the gate, that the commit is made, with a flush before it."""
        self._made = self._tried

    def reopened(self) -> None:
        """Be told, while nobody commits, that LMDB has the file no longer open as it had."""
        self._row = self._tried + 1

    # -- flushes --

    def flush(
        self, descriptor: int, newest: Callable[[], int], is_next: Callable[[], bool]
    ) -> None:
        """Make everything durable that was committed before this call. At most one flush.

        ``newest`` gives the number of the newest txn, ``is_next`` tells whether a thread is about
        to commit another. Raises ``OSError`` if it cannot be known to be on the disk: also after a
        flush that failed, until there is a newer txn.
        """
        first_to_serve_us = self._started + 1
        if self._seconds >= _SLOW and is_next() and self._comes_with_the_next():
            return
        with self._lock:
            if self._ended >= first_to_serve_us:
                return
            self._note_failure(newest)
            self._started += 1
            number, doubtful = self._started, self._is_doubtful(newest)
            begin = time.monotonic()
            # Taken back when it has ended well, so that Ctrl-C cannot make us forget a failure.
            self._unconfirmed = True
            try:
                portable.flush_data(descriptor)
            except OSError:
                self._note_failure(newest)
                raise
            self._unconfirmed = False
            self._seconds = time.monotonic() - begin
            if doubtful:
                raise OSError(errno.EIO, "an earlier flush failed")
            self._doubtful = 0
            self._ended = number

    def _comes_with_the_next(self) -> bool:
        """Wait a little for our next txn; tell whether its flush has what was committed by now."""
        ours = self._made
        deadline = time.monotonic() + min(_PATIENCE * self._seconds, _LONGEST)
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            if self._made > ours:
                # If one failed meanwhile, it was told what we would have to know: ask the disk.
                return self._row <= ours
        return False

    def is_doubtful(self, newest: Callable[[], int]) -> bool:
        """Tell whether a flush failed and there is no newer txn, whose flush would make up for it.

        It would, because the pages of each txn are on the disk before its meta page is written.
        """
        # One that is under way keeps the lock, and tells of its failure itself.
        if self._unconfirmed and not self._lock.locked():
            with self._lock:
                self._note_failure(newest)
        return self._is_doubtful(newest)

    def _is_doubtful(self, newest: Callable[[], int]) -> bool:
        return self._doubtful > 0 and newest() <= self._doubtful

    def _note_failure(self, newest: Callable[[], int]) -> None:
        """Doubt all that is committed by now, if the last flush did not end well."""
        if self._unconfirmed:
            self._doubtful = newest()
            self._unconfirmed = False
