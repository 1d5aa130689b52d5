"""Locks on bytes behind the end of a file: whose they are, what they tell, and where they lie."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.processes import PATIENCE, Child, threads
from vzarr import filelocks
from vzarr.filelocks import Queue, find, find_all, no_fork, try_lock, unlock

pytestmark = [
    pytest.mark.skipif(not filelocks.SUPPORTED, reason="this system has no such locks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

FAR = 1 << 62
ALL = (1 << 62) - 1


@contextlib.contextmanager
def openings(path: Path, count: int) -> Iterator[list[int]]:
    """Open a file several times."""
    path.touch()
    descriptors = [os.open(path, os.O_RDWR) for _ in range(count)]
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.fixture
def pair(file: Path) -> Iterator[list[int]]:
    with openings(file, 2) as descriptors:
        yield descriptors


# ---- whose a lock is ------------------------------------------------------------------------


def test_a_lock_keeps_out_other_openings(pair: list[int]) -> None:
    one, other = pair
    assert try_lock(one, FAR, 10)
    assert not try_lock(other, FAR + 9, 10)
    assert not try_lock(other, FAR + 9, shared=True)
    assert try_lock(other, FAR + 10, 10)
    # One's own does not stand in the way.
    assert try_lock(one, FAR, 5)
    unlock(one, FAR, 5)
    assert not try_lock(other, FAR + 5)
    unlock(one, FAR, 10)
    assert try_lock(other, FAR, 10)


def test_shared_locks(pair: list[int]) -> None:
    one, other = pair
    assert try_lock(one, FAR, shared=True)
    assert try_lock(other, FAR, shared=True)
    assert not try_lock(other, FAR)
    unlock(one, FAR)
    assert try_lock(other, FAR)


def test_a_lock_is_no_longer_than_asked_for_and_writes_nothing(file: Path, pair: list[int]) -> None:
    one, other = pair
    assert try_lock(one, FAR)
    assert find_all(other, 0, (1 << 63) - 1) == [(FAR, 1)]
    assert file.stat().st_size == 0


def test_one_who_reads_only(file: Path, pair: list[int]) -> None:
    reader = os.open(file, os.O_RDONLY)
    try:
        assert try_lock(reader, FAR, shared=True)
        with pytest.raises(OSError, match="Bad file descriptor"):
            try_lock(reader, FAR)
        assert try_lock(pair[0], FAR + 1)
        assert try_lock(pair[0], FAR + 3, shared=True)
        assert find_all(reader, FAR, ALL) == [(FAR + 1, 1), (FAR + 3, 1)]
    finally:
        os.close(reader)


def test_locks_end_with_the_opening(file: Path, pair: list[int]) -> None:
    with openings(file, 1) as (third,):
        assert try_lock(third, FAR)
        # Any other locks of the system's would be lost when some descriptor is closed.
        with openings(file, 1):
            pass
        assert not try_lock(pair[0], FAR)
    assert try_lock(pair[0], FAR)


def test_locks_end_with_the_process(file: Path, pair: list[int]) -> None:
    def work(pipe: Connection) -> None:
        own = os.open(file, os.O_RDWR)
        assert try_lock(own, FAR, 7)
        pipe.send("locked")
        pipe.recv()

    child = Child(work)
    assert child.receive() == "locked"
    assert find(pair[0], FAR, 1) == (FAR, 7)
    child.kill()
    assert find(pair[0], FAR, 7) is None


def test_a_child_that_closes_what_it_inherits_keeps_the_locks(pair: list[int]) -> None:
    one, other = pair
    assert try_lock(one, FAR)
    Child(lambda _: os.close(one)).result()
    assert not try_lock(other, FAR)


def test_a_child_that_unlocks_what_it_inherits_does_not(pair: list[int]) -> None:
    """Why a child must not unlock: parent and child are one owner."""
    one, other = pair
    assert try_lock(one, FAR)
    Child(lambda _: unlock(one, FAR)).result()
    assert try_lock(other, FAR)


def test_a_child_keeps_a_lock_that_its_parent_had(file: Path, pair: list[int]) -> None:
    """Why a child must close what it inherits: the opening ends when both have closed it."""
    inherited = os.open(file, os.O_RDWR)
    assert try_lock(inherited, FAR)
    child = Child(lambda pipe: pipe.recv())
    os.close(inherited)
    assert not try_lock(pair[0], FAR)
    child.pipe.send("end")
    child.result()
    assert try_lock(pair[0], FAR)


# ---- what locks tell ------------------------------------------------------------------------


def test_find_gives_start_and_length(pair: list[int]) -> None:
    one, other = pair
    assert find(one, FAR, ALL) is None
    assert try_lock(one, FAR + 5, 1234)
    assert find(other, FAR, ALL) == (FAR + 5, 1234)
    # Whole, also where only a part of it is in the range.
    assert find(other, FAR + 100, 1) == (FAR + 5, 1234)
    assert find(other, FAR, 5) is None
    assert find(other, FAR + 5 + 1234, 1) is None
    # One's own is not found.
    assert find(one, FAR, ALL) is None


def test_a_lock_on_all_of_a_file(file: Path, pair: list[int]) -> None:
    """As other programs take it, without an end."""

    def work(pipe: Connection) -> None:
        with open(file, "r+b") as own:
            fcntl.lockf(own, fcntl.LOCK_EX)
            pipe.send("locked")
            pipe.recv()

    child = Child(work)
    assert child.receive() == "locked"
    assert find(pair[0], FAR, 5) == (0, 1 << 63)
    assert find_all(pair[0], FAR, 5) == [(FAR, 5)]
    assert not try_lock(pair[0], FAR)
    child.kill()
    assert try_lock(pair[0], FAR)


locks = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(1, 9)), max_size=25)


@given(taken=locks, given_back=locks, window=st.tuples(st.integers(0, 60), st.integers(0, 60)))
def test_find_all_finds_all(
    tmp_path_factory: pytest.TempPathFactory,
    taken: list[tuple[int, int, int]],
    given_back: list[tuple[int, int, int]],
    window: tuple[int, int],
) -> None:
    """Shared locks of three openings, seen by a fourth that has locks too, against sets."""
    owned: list[set[int]] = [set() for _ in range(4)]
    start, length = window
    with openings(tmp_path_factory.getbasetemp() / "found", 4) as descriptors:
        for owner, first, count in taken:
            assert try_lock(descriptors[owner], FAR + first, count, shared=True)
            owned[owner] |= set(range(first, first + count))
        for owner, first, count in given_back:
            unlock(descriptors[owner], FAR + first, count)
            owned[owner] -= set(range(first, first + count))
        found = find_all(descriptors[0], FAR + start, length)
    expected = (owned[1] | owned[2] | owned[3]) & set(range(start, start + length))
    listed = [byte - FAR for first, count in found for byte in range(first, first + count)]
    assert listed == sorted(expected)


def test_where_there_are_no_such_locks(pair: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = pair
    monkeypatch.setattr(sys, "platform", "other")
    assert try_lock(one, FAR)
    assert try_lock(other, FAR)
    assert find(other, FAR, 1) is None
    assert find_all(other, FAR, 1) == []
    unlock(one, FAR)


# ---- where they lie -------------------------------------------------------------------------


def test_the_regions_do_not_overlap() -> None:
    queues = [Queue.of(bytes(32)), Queue.of(b"\xff" * 32)]
    largest_pid = (1 << 22) - 1
    bounds = [
        (filelocks.GATE_TURN, 1),
        (filelocks.token_byte(0), 1 << 58),
        (filelocks.PINNED_COMMITS, filelocks.PINNED_COMMITS_LENGTH),
        (queues[0].first_ticket, 1 << 60),
    ]
    assert all(first + length <= second for (first, length), (second, _) in pairwise(bounds))
    assert filelocks.token_byte((1 << 58) - 1) == sum(bounds[1]) - 1
    assert filelocks.pinned_byte(largest_pid, (1 << 37) - 1) == sum(bounds[2]) - 1
    assert queues[1].first_ticket + queues[1].length == sum(bounds[3]) <= (1 << 63) - 1


@given(digest=st.binary(min_size=32, max_size=32))
def test_the_parts_of_a_queue_do_not_overlap(digest: bytes) -> None:
    queue = Queue.of(digest)
    parts = [
        (queue.first_ticket, queue.tickets),
        (queue.mutex, 1),
        (queue.pid, 1 << 22),
        (queue.since, 1 << 33),
        (queue.namespace, 1 << 32),
    ]
    assert all(first + length <= second for (first, length), (second, _) in pairwise(parts))
    assert sum(parts[-1]) <= queue.first_ticket + queue.length
    assert queue.tickets == 1 << 38


@given(pid=st.integers(1, (1 << 22) - 1), prefix=st.integers(0, (1 << 37) - 1))
def test_a_pinned_byte_tells_process_and_commit(pid: int, prefix: int) -> None:
    assert filelocks.pinned_by(filelocks.pinned_byte(pid, prefix)) == (pid, prefix)


# ---- fork -----------------------------------------------------------------------------------


def test_a_fork_waits_for_those_who_open() -> None:
    forked = threading.Event()

    def fork() -> None:
        Child(lambda _: None).result()
        forked.set()

    with contextlib.ExitStack() as stack:
        with no_fork:
            stack.enter_context(threads(fork))
            assert not forked.wait(0.05)
        assert forked.wait(PATIENCE)


def test_a_child_may_open_what_its_parent_was_opening() -> None:
    """The lock of another thread does not go on in a child, nor does that of the one who forks."""

    def work(_: Connection) -> str:
        with no_fork, no_fork:
            return "inside"

    assert Child(work).result() == "inside"
    with no_fork:
        pass
