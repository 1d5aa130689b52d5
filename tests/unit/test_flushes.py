"""Flushes that threads share, that the next writer makes for others, and that fail."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import lmdb
import pytest

import vzarr
from tests.processes import PATIENCE, Other, until
from tests.unit.test_garbage import write
from vzarr import flushes, portable
from vzarr.errors import BusyError, ReadOnlyError, SessionStateError, StorageError
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


@pytest.fixture
def patient(monkeypatch) -> Flushes:
    """One that has committed, and whose disk is slow: it waits for the next commit."""
    monkeypatch.setattr(flushes, "_SLOW", 0.0)
    monkeypatch.setattr(flushes, "_LONGEST", PATIENCE)
    found = Flushes()
    found._seconds = PATIENCE
    commit(found)
    return found


def commit(shared: Flushes, *, fails: bool = False) -> None:
    shared.committing()
    if not fails:
        shared.committed()


def flush_while(shared: Flushes, monkeypatch, *steps: Callable[[], None]) -> None:
    """Flush, and let something happen in each pause in which the next commit is waited for."""
    left = iter(steps)
    monkeypatch.setattr(flushes.time, "sleep", lambda _: next(left)())
    shared.flush(7, lambda: 5, lambda: True)
    monkeypatch.undo()
    assert list(left) == []


def test_on_a_slow_disk_the_next_commit_is_waited_for(disk, patient, monkeypatch):
    flush_while(patient, monkeypatch, lambda: None, patient.committing, patient.committed)
    assert disk.count == 0


def test_a_commit_that_follows_one_that_failed_proves_nothing(disk, patient, monkeypatch):
    """The one that failed was told that ours is not on the disk; the next one is not."""

    def two() -> None:
        commit(patient, fails=True)
        commit(patient)

    flush_while(patient, monkeypatch, two)
    assert disk.count == 1


def test_nor_does_one_through_a_new_opening(disk, patient, monkeypatch):
    """The error may have been told before that."""
    patient.reopened()
    flush_while(patient, monkeypatch, lambda: commit(patient))
    assert disk.count == 1


def test_one_that_failed_before_we_looked_counts(disk, patient, monkeypatch):
    commit(patient, fails=True)
    flush_while(patient, monkeypatch, lambda: commit(patient))
    assert disk.count == 1


def test_who_does_not_come_is_not_waited_for_long(disk, monkeypatch):
    shared, slept = Flushes(), []
    monkeypatch.setattr(flushes, "_SLOW", 0.0)
    sleep = flushes.time.sleep
    monkeypatch.setattr(flushes.time, "sleep", lambda seconds: slept.append(sleep(seconds)))
    shared._seconds = 0.004
    shared.flush(7, lambda: 5, lambda: True)
    assert disk.count == 1
    assert slept


@pytest.mark.parametrize("changes", [True, False])
def test_what_counts_as_a_commit(repo, changes):
    """LMDB flushes nothing for a txn that has changed nothing."""
    shared = repo._environment._access.flushes
    write(repo, b"first")
    before = shared._made
    with repo._environment.write() as txn:
        if changes:
            txn.put("meta", b"flush", b"")
            txn.delete("meta", b"flush")
    assert (shared._made > before) == changes


def test_a_commit_that_fails_ends_the_row(repo, monkeypatch):
    shared = repo._environment._access.flushes
    write(repo, b"first")
    ours = shared._made

    def fail(*_):
        raise lmdb.Error("the disk")

    monkeypatch.setattr("vzarr.access.early_writeback", fail)
    with pytest.raises(StorageError):
        write(repo, b"fails")
    monkeypatch.undo()
    write(repo, b"next")
    assert shared._row > ours
    assert shared._made >= shared._row


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


def test_a_failure_is_not_forgotten_for_an_interrupt(disk):
    """Ctrl-C comes when it is known that the flush failed, and not yet which txn is the newest."""
    shared, txns = Flushes(), [5]
    disk.failures = 1

    def interrupt() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shared.flush(7, interrupt, NOBODY)
    with pytest.raises(OSError):
        shared.flush(7, lambda: txns[-1], NOBODY)
    assert shared.is_doubtful(lambda: txns[-1])
    txns.append(6)
    shared.flush(7, lambda: txns[-1], NOBODY)
    disk.failures = 1
    with pytest.raises(KeyboardInterrupt):
        shared.flush(7, interrupt, NOBODY)
    # Also where nobody flushes in between.
    assert shared.is_doubtful(lambda: txns[-1])
    txns.append(7)
    assert not shared.is_doubtful(lambda: txns[-1])


def test_a_flush_under_way_is_in_no_doubt(disk):
    shared = Flushes()
    disk.may_end.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(shared.flush, 7, lambda: 1, NOBODY)
        assert disk.began.wait(PATIENCE)
        assert not shared.is_doubtful(lambda: 1)
        disk.may_end.set()
        first.result(PATIENCE)
    assert not shared.is_doubtful(lambda: 1)


@pytest.mark.parametrize(
    "error", [BusyError("the gate"), ReadOnlyError("r"), SessionStateError("")]
)
def test_a_commit_that_is_made_never_asks_to_be_tried_again(repo, monkeypatch, error):
    """Whoever tries again at a TimeoutError would commit twice."""

    def fail(*_):
        raise error

    monkeypatch.setattr(Flushes, "is_doubtful", fail)
    with pytest.raises((StorageError, SessionStateError), match="is made") as told:
        write(repo, b"made")
    assert not isinstance(told.value, TimeoutError)
    assert isinstance(told.value, SessionStateError) == isinstance(error, SessionStateError)
    assert repo.log("main")[0].message == "write"


def test_a_repository_that_is_closed_cannot_flush(path):
    with vzarr.open(path, author="Test") as repo:
        environment = repo._environment
    with pytest.raises(SessionStateError, match="closed"):
        environment.sync()


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


def test_another_process_is_not_waited_for(repo):
    """Nobody knows what its opening of the file was told."""
    other = Other(hold_the_gate, repo.path)
    assert other.receive() == "through"
    assert not repo._environment._access.gate.is_wanted()
    other.send()
    other.result()


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
