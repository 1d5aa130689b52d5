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
    began afterwards, and the one in the next txn of whatever process. If the disk is slow and there
    is somebody at the gate who is about to commit, that one is waited for: a disk does one flush
    after the other, and each that is saved is one that nobody behind us has to wait for.

    Ours goes through a descriptor of our own. The kernel reports an error once for each opening of
    a file: one that is told here is told to LMDB as well, whose own flush of another txn's pages
    would else succeed without them.
    """

    __slots__ = ("_doubtful", "_ended", "_lock", "_seconds", "_started")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Flushes are counted from 1. The last one that ended well has all that came before it.
        self._started = 0
        self._ended = 0
        # How long the last one took.
        self._seconds = 0.0
        # The newest txn when a flush failed, or 0. What failed is not tried again by the kernel.
        self._doubtful = 0

    def flush(
        self, descriptor: int, newest: Callable[[], int], is_next: Callable[[], bool]
    ) -> None:
        """Make everything durable that was committed before this call. At most one flush.

        ``newest`` gives the number of the newest txn, ``is_next`` tells whether somebody is about
        to commit another. Raises ``OSError`` if it cannot be known to be on the disk: also after a
        flush that failed, until there is a newer txn.
        """
        first_to_serve_us = self._started + 1
        if self._seconds >= _SLOW and is_next() and self._comes_with_the_next(newest):
            return
        with self._lock:
            if self._ended >= first_to_serve_us:
                return
            self._started += 1
            number, doubtful = self._started, self.is_doubtful(newest)
            begin = time.monotonic()
            try:
                portable.flush_data(descriptor)
            except OSError:
                self._doubtful = newest()
                raise
            self._seconds = time.monotonic() - begin
            if doubtful:
                raise OSError(errno.EIO, "an earlier flush failed")
            self._doubtful = 0
            self._ended = number

    def _comes_with_the_next(self, newest: Callable[[], int]) -> bool:
        """Wait a little for another txn; tell whether there was one, and ours is on the disk."""
        ours = newest()
        deadline = time.monotonic() + min(_PATIENCE * self._seconds, _LONGEST)
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            if newest() > ours:
                return True
        return False

    def is_doubtful(self, newest: Callable[[], int]) -> bool:
        """Tell whether a flush failed and there is no newer txn, whose flush would make up for it.

        It would, because the pages of each txn are on the disk before its meta page is written.
        """
        return self._doubtful > 0 and newest() <= self._doubtful
