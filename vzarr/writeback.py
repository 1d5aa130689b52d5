"""Large commits and the system: when the disk begins, and which pages stay mapped.

A commit hands all its pages to the system, and only then waits for the disk, which has been idle
until that moment. Linux can be asked to begin early. That is a hint: the commit waits for every
page as before, and where the system has no such call nothing happens.

To find places for large values LMDB reads pages of its trees through its map of the file. With each
of these Linux maps what lies around it, up to megabytes of the values, and a process that writes a
lot would seem to need as much memory. The pages stay in the system's cache when they are unmapped.
"""

from __future__ import annotations

import _thread
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from vzarr.portable import linux_call
from vzarr.system import maps_of

_WORTH_BYTES = 8 << 20
_PACE_SECONDS = 0.002
# Some ten seconds: an interrupt in the wrong moment must not leave a thread behind for ever.
_MOST_CALLS = 5_000
_SYNC_FILE_RANGE_WRITE = 2
_MADV_DONTNEED = 4


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
    # The commit does without where the system gives us no thread.
    with suppress(RuntimeError):
        _thread.start_new_thread(_urge, (begin, descriptor, running))
    try:
        yield
    finally:
        running.release()


def unmap_pages(descriptor: int, nbytes: int) -> None:
    """Let go of the pages of a mapped file, after so many bytes were written. Loses nothing.

    Whoever reads one of them next has it mapped again. The file must stay mapped meanwhile.
    """
    unmap = _unmapping() if nbytes >= _WORTH_BYTES else None
    if unmap is None:
        return
    for start, length in maps_of(os.fstat(descriptor).st_ino):
        unmap(start, length)


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


@functools.cache
def _unmapping() -> Callable[[int, int], object] | None:
    """Give what unmaps the pages from an address on; None where nothing does, or it loses data."""
    import ctypes

    call = linux_call("madvise")
    if call is None:
        return None
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return lambda start, length: call(start, length, _MADV_DONTNEED)
