"""Flushes that threads share, that the next writer makes for others, and that fail."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import pytest

import vzarr
from tests.processes import PATIENCE, Other, until
from tests.unit.test_garbage import write
from vzarr import flushes, portable
from vzarr.errors import StorageError
from vzarr.flushes import Flushes

NOBODY: Callable[[], bool] = lambda: False  # noqa: E731


class Disk:
    """Counts flushes; each can be held up, and fail."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.may_end.set()
        self.failures = 0

    def flush_data(self, descriptor: int) -> None:
        self.descriptors.append(descriptor)
        self.began.set()
        assert self.may_end.wait(PATIENCE)
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    @property
    def count(self) -> int:
        return len(self.descriptors)


@pytest.fixture
def disk(monkeypatch) -> Disk:
    found = Disk()
    monkeypatch.setattr(portable, "flush_data", found.flush_data)
    return found


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


def test_one_after_the_other_each_flushes(disk):
    shared = Flushes()
    for _ in range(3):
        shared.flush(7, lambda: 1, NOBODY)
    assert disk.descriptors == [7, 7, 7]


def test_who_comes_while_one_is_under_way_shares_the_next(disk, monkeypatch):
    """The one under way began too early for them."""
    shared, arrived = Flushes(), []
    # As if flushes were slow: who comes asks whether somebody is next.
    monkeypatch.setattr(flushes, "_SLOW", 0.0)

    def arrive() -> bool:
        arrived.append(threading.get_ident())
        return False

    disk.may_end.clear()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(shared.flush, 7, lambda: 1, arrive)
        assert disk.began.wait(PATIENCE)
        others = [pool.submit(shared.flush, 7, lambda: 1, arrive) for _ in range(5)]
        until(lambda: len(arrived) == 6)
        disk.may_end.set()
        for each in (first, *others):
            each.result(PATIENCE)
    assert disk.count == 2


# ── the next txn ─────────────────────────────────────────────────────────────────────────────────


def test_on_a_slow_disk_the_next_txn_is_waited_for(disk, monkeypatch):
    shared = Flushes()
    monkeypatch.setattr(flushes, "_SLOW", 0.0)
    monkeypatch.setattr(flushes, "_LONGEST", PATIENCE)
    shared._seconds = PATIENCE
    txns = iter([5, 5, 5, 6])
    shared.flush(7, lambda: next(txns), lambda: True)
    assert disk.count == 0
    assert list(txns) == []


def test_who_does_not_come_is_not_waited_for_long(disk, monkeypatch):
    shared = Flushes()
    monkeypatch.setattr(flushes, "_SLOW", 0.0)
    looks = []

    def newest() -> int:
        looks.append(1)
        return 5

    shared._seconds = 0.004
    shared.flush(7, newest, lambda: True)
    assert disk.count == 1
    # Before it waited, and at least once since.
    assert len(looks) > 1


def test_on_a_fast_disk_nobody_is_waited_for(disk, monkeypatch):
    shared = Flushes()
    monkeypatch.setattr(flushes, "_SLOW", PATIENCE)
    shared.flush(7, lambda: pytest.fail("looked"), lambda: pytest.fail("asked"))
    assert 0 < shared._seconds < PATIENCE
    shared.flush(7, lambda: pytest.fail("looked"), lambda: pytest.fail("asked"))
    assert disk.count == 2


# ── failures ─────────────────────────────────────────────────────────────────────────────────────


def test_after_a_failure_only_a_newer_txn_is_believed(disk):
    """The kernel takes for written what it could not write, and the next flush succeeds."""
    shared, txns = Flushes(), [5]
    disk.failures = 1
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            shared.flush(7, lambda: txns[-1], NOBODY)
        assert caught.value.errno == errno.EIO
        assert shared.is_doubtful(lambda: txns[-1])
    assert disk.count == 3
    txns.append(6)
    assert not shared.is_doubtful(lambda: txns[-1])
    shared.flush(7, lambda: txns[-1], NOBODY)
    # It was believed, so there is nothing left to doubt.
    shared.flush(7, lambda: 5, NOBODY)
    assert disk.count == 5


def test_who_waits_for_a_flush_that_fails_is_told(disk, monkeypatch):
    shared, arrived = Flushes(), []
    monkeypatch.setattr(flushes, "_SLOW", 0.0)
    disk.failures = 1
    disk.may_end.clear()

    def arrive() -> bool:
        arrived.append(1)
        return False

    with ThreadPoolExecutor(4) as pool:
        each = [pool.submit(shared.flush, 7, lambda: 5, arrive) for _ in range(4)]
        until(lambda: len(arrived) == 4)
        disk.may_end.set()
        failures = [one.exception(PATIENCE) for one in each]
    assert [type(failure) for failure in failures] == [OSError] * 4


def test_a_commit_that_the_disk_did_not_confirm(repo, disk):
    """It is made, it says so, and the next one makes up for it."""
    environment = repo._environment
    disk.failures = 1
    with pytest.raises(StorageError, match="made and others see it, but the disk did not") as told:
        write(repo, b"doubtful")
    assert told.value.errno == errno.EIO
    assert repo.log("main")[0].message == "write"
    made = repo.branches["main"]
    before = environment.last_txn_id()
    # The flush that follows goes by a txn of its own, and changes nothing.
    environment.sync()
    assert environment.last_txn_id() == before + 1
    assert repo.branches["main"] == made
    environment.sync()
    assert environment.last_txn_id() == before + 1
    # LMDB's own descriptor is not among those that were flushed: it learns of errors by itself.
    assert set(disk.descriptors) == {environment._access.gate.descriptor}
    write(repo, b"on")


def test_a_new_commit_makes_up_for_a_doubtful_one(repo, disk):
    disk.failures = 1
    with pytest.raises(StorageError):
        write(repo, b"doubtful")
    write(repo, b"next")
    before = repo._environment.last_txn_id()
    repo._environment.sync()
    assert repo._environment.last_txn_id() == before


# ── who is next ──────────────────────────────────────────────────────────────────────────────────


def test_the_gate_tells_who_is_next(repo):
    gate = repo._environment._access.gate
    assert not gate.is_wanted()
    with repo._environment.write():
        assert gate.is_wanted()
        other = threading.Thread(target=write, args=(repo, b"next"))
        other.start()
        until(lambda: len(gate._wanting) == 2)
    other.join(PATIENCE)
    assert not gate.is_wanted()


def hold_the_gate(pipe: Connection, path: str) -> None:
    with vzarr.open(path, author="Test") as repo, repo._environment.write():
        pipe.send("through")
        pipe.recv()


def come_to_the_gate(pipe: Connection, path: str) -> int:
    with vzarr.open(path, author="Test") as repo:
        pipe.send("open")
        pipe.recv()
        write(repo, b"next")
        return repo._environment.last_txn_id()


@pytest.mark.skipif(sys.platform != "linux", reason="needs open file locks")
def test_the_gate_tells_of_the_next_process(repo):
    environment = repo._environment
    gate, before = environment._access.gate, environment.last_txn_id()
    second = Other(come_to_the_gate, repo.path)
    assert second.receive() == "open"
    first = Other(hold_the_gate, repo.path)
    assert first.receive() == "through"
    # It may be late, and there is nobody behind it.
    assert not gate.is_wanted()
    second.send()
    until(gate.is_wanted)
    first.send()
    assert second.result() == before + 1
    first.result()
    assert not gate.is_wanted()


def test_who_gave_up_at_the_gate_is_not_next(repo):
    gate = repo._environment._access.gate
    failures = []

    def hurry() -> None:
        try:
            with repo._environment.write(timeout=0.01):
                pytest.fail("it is taken")
        except TimeoutError as error:
            failures.append(error)

    with repo._environment.write():
        other = threading.Thread(target=hurry)
        other.start()
        other.join(PATIENCE)
        assert gate._wanting == {threading.get_ident()}
    assert len(failures) == 1
    assert gate._wanting == set()
