"""Lets the disk begin on what a large commit writes while the commit goes on writing it.

A commit hands all its pages to the system, and only then waits for the disk, which has been idle
until that moment. Linux can be asked to begin early. That is a hint: the commit waits for every
page as before, and where the system has no such call nothing happens.
"""

from __future__ import annotations

import _thread
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vzarr.portable import linux_call

_WORTH_BYTES = 8 << 20
_PACE_SECONDS = 0.002
# Some ten seconds: an interrupt in the wrong moment must not leave a thread behind for ever.
_MOST_CALLS = 5_000
_SYNC_FILE_RANGE_WRITE = 2


@contextmanager
def early_writeback(descriptor: int, nbytes: int) -> Iterator[None]:
    """For the block, ask the system again and again to write out what it has of a file.

    ``nbytes``, roughly what will be written, tells if that is worth a thread.
    """
    begin = _system_call() if nbytes >= _WORTH_BYTES else None
    if begin is None:
        yield
        return
    running = _thread.allocate_lock()
    running.acquire()
    _thread.start_new_thread(_urge, (begin, descriptor, running))
    try:
        yield
    finally:
        running.release()


def _urge(begin: Callable[[int], object], descriptor: int, running: _thread.LockType) -> None:
    for _ in range(_MOST_CALLS):
        if running.acquire(timeout=_PACE_SECONDS):
            return
        begin(descriptor)


@functools.cache
def _system_call() -> Callable[[int], object] | None:
    """Give what begins to write out a whole file, without waiting for it; None if nothing does."""
    import ctypes

    call = linux_call("sync_file_range")
    if call is None:
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    # What it returns says nothing that the commit will not find out by itself.
    return lambda descriptor: call(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)
