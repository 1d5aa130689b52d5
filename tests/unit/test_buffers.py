"""The pool of buffers: what somebody holds is never used again, what nobody holds is."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from vzarr import system
from vzarr.buffers import _LOOKS, BufferPool


def address(data: memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


def test_a_copy_is_read_only_and_equal():
    data = bytes(range(256)) * 10
    copy = BufferPool().copy(data)
    assert bytes(copy) == data
    assert copy.readonly
    with pytest.raises(TypeError):
        copy[0] = 1


@pytest.mark.parametrize(
    "hold",
    [
        lambda copy: copy,
        lambda copy: copy[3:5],
        lambda copy: np.frombuffer(copy, np.uint8),
        lambda copy: np.frombuffer(copy, np.uint8)[7:].view("u2"),
        lambda copy: [memoryview(copy)],
    ],
)
def test_what_is_held_in_any_way_is_not_used_again(hold):
    pool = BufferPool()
    copy = pool.copy(b"a" * 1001)
    where = address(copy)
    held = hold(copy)
    del copy
    before = bytes(held[0]) if isinstance(held, list) else bytes(held)
    others = [pool.copy(b"b" * 1001) for _ in range(3)]
    assert where not in [address(other) for other in others]
    assert (bytes(held[0]) if isinstance(held, list) else bytes(held)) == before
    del held, others
    again = [pool.copy(b"c" * 1001) for _ in range(4)]
    assert where in [address(other) for other in again]


def test_smaller_requests_share_and_much_smaller_ones_do_not():
    pool = BufferPool()
    where = address(pool.copy(bytes(1000)))
    assert address(pool.copy(bytes(600))) == where
    small = pool.copy(bytes(100))
    assert address(small) != where
    assert len(small) == 100


def test_the_pool_keeps_no_more_than_its_budget():
    pool = BufferPool(budget=3000)
    held = [pool.copy(bytes(1000)) for _ in range(5)]
    assert sum(array.size for array in pool._arrays) <= 3000
    del held
    # Another size is in demand now: idle buffers make room for it.
    where = address(pool.copy(bytes(3000)))
    assert [array.size for array in pool._arrays] == [3000]
    assert address(pool.copy(bytes(3000))) == where
    assert sum(array.size for array in pool._arrays) <= 3000


@pytest.mark.parametrize("kept", [100, 1000])
def test_a_buffer_costs_the_same_however_many_there_are(kept, monkeypatch):
    looks = []

    def getrefcount(found: object) -> int:
        looks.append(found)
        return sys.getrefcount(found)

    monkeypatch.setattr("vzarr.buffers.sys", SimpleNamespace(getrefcount=getrefcount))
    pool = BufferPool(budget=kept * 1000)
    held = [pool.copy(bytes(1000)) for _ in range(2 * kept)]
    looks.clear()
    held.append(pool.copy(bytes(1000)))
    assert 0 < len(looks) <= 2 * _LOOKS


def test_a_debugger_that_looks_at_names_keeps_no_buffer():
    def look(frame, event, argument):
        # As long as the function runs, this is one more reference to what it has a name for.
        frame.f_locals  # noqa: B018
        return look

    traced = sys.gettrace()
    sys.settrace(look)
    try:
        pool = BufferPool()
    finally:
        sys.settrace(traced)
    first, second = pool.copy(b"a" * 1000), pool.copy(b"b" * 1000)
    assert bytes(first) == b"a" * 1000
    assert address(first) != address(second)


def test_a_buffer_is_filled_by_a_function_and_then_stays():
    pool = BufferPool()

    def fill(buffer: memoryview) -> None:
        buffer[:] = b"x" * len(buffer)

    filled = pool.filled(5000, fill)
    assert bytes(filled) == b"x" * 5000
    assert filled.readonly
    where = address(filled)
    assert address(pool.copy(bytes(5000))) != where
    del filled
    assert address(pool.copy(bytes(5000))) == where


def test_threads_never_share_a_buffer():
    pool = BufferPool()
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for turn in range(200):
            data = bytes([number, turn % 256]) * 500
            copy = pool.copy(data)
            other = pool.copy(data[::-1])
            assert bytes(copy) == data
            assert bytes(other) == data[::-1]

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep it or do not")
def test_freed_memory_is_kept_for_the_next_who_asks():
    script = (
        "import resource\n"
        "from vzarr.system import keep_freed_memory\n"
        "def faults():\n"
        "    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    pieces = [bytearray(1 << 20) for _ in range(16)]\n"
        "    for piece in pieces: piece[::4096] = bytes([1]) * 256\n"
        "    del pieces, piece\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun\n"
        "faults(); before = faults(); keep_freed_memory(); faults(); print(before, faults())\n"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = map(int, result.stdout.split())
    assert after < 16 < before


def test_memory_that_is_kept_is_not_filled_with_zeros_again(monkeypatch):
    asked = []
    monkeypatch.setattr(system, "_keeps_freed_memory", False)
    monkeypatch.setattr(system, "bytes", asked.append, raising=False)
    system.keep_freed_memory()
    system.keep_freed_memory()
    assert asked == [system._LARGEST_KEPT_BYTES]
