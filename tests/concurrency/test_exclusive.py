"""Exclusive transactions: a branch for one writer at a time, and nobody waits for the dead."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import PATIENCE, Child, Other, threads, until
from vzarr import filelocks, leases, turns
from vzarr.errors import (
    BusyError,
    ConflictError,
    ReadOnlyError,
    RefNotFoundError,
    SessionStateError,
    StorageError,
)
from vzarr.leases import SessionInfo
from vzarr.turns import is_taken

pytestmark = [
    pytest.mark.skipif(not filelocks.SUPPORTED, reason="this system has no such locks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

WRITERS = 4
ROUNDS = 25


@pytest.fixture
def counted(repo: vzarr.Repository) -> vzarr.Repository:
    """A repository with a counter, and a list to append to, on main and on dev."""
    with repo.transaction("main", "create") as store:
        zarr.create_array(store, name="counter", shape=(), dtype="i8")
        zarr.create_array(store, name="log", shape=(0,), chunks=(7,), dtype="i8")
    repo.branches.create("dev")
    return repo


def queueing(repo: vzarr.Repository, branch: str = "main") -> int:
    """Count those who have the branch or wait for it."""
    queue = turns._queue_of(branch)
    descriptor = repo._environment.open_descriptor()
    try:
        return len(filelocks.find_all(descriptor, queue.first_ticket, queue.tickets))
    finally:
        os.close(descriptor)


def counter(repo: vzarr.Repository) -> int:
    return int(zarr.open_array(repo.store("main"), path="counter")[()])


def log(repo: vzarr.Repository) -> list[int]:
    return [int(number) for number in zarr.open_array(repo.store("main"), path="log")[:]]


def note(repo: vzarr.Repository, number: int, **options: Any) -> None:
    """Append to the list in an exclusive transaction."""
    with repo.transaction("main", f"note {number}", exclusive=True, **options) as store:
        zarr.open_array(store, path="log").append(np.array([number]))


def in_file(repo: vzarr.Repository) -> list[SessionInfo]:
    """List the sessions that have something in the file."""
    environment = repo._environment
    with environment.read() as txn:
        return [
            leases.describe(key, lease, leases.is_alive(environment, key, lease))
            for key, lease in leases.leases(txn)
        ]


def holding(pipe: Connection, path: Path, file: bytes | None = None) -> None:
    """Have main until told to go on; commit a file then, if there is one."""
    with vzarr.open(path) as repo, repo.transaction("main", "hold", exclusive=True) as store:
        if file is not None:
            store.session.set("file", file)
        pipe.send("held")
        pipe.recv()


def held(path: Path, file: bytes | None = None) -> Other:
    other = Other(holding, path, file)
    assert other.receive() == "held"
    return other


# ── it never conflicts ───────────────────────────────────────────────────────────────────────────


def count(repo: vzarr.Repository, rounds: int) -> None:
    for _ in range(rounds):
        with repo.transaction("main", "count", exclusive=True, timeout=PATIENCE) as store:
            array = zarr.open_array(store, path="counter")
            array[...] = array[()] + 1


def count_in_process(pipe: Connection, path: Path) -> None:
    with vzarr.open(path, durability="normal") as repo:
        pipe.send("ready")
        pipe.recv()
        count(repo, ROUNDS)


def test_counters_of_processes_add_up(counted: vzarr.Repository, path: Path) -> None:
    others = [Other(count_in_process, path, method="spawn") for _ in range(WRITERS)]
    for other in others:
        assert other.receive() == "ready"
    for other in others:
        other.send()
    for other in others:
        other.result()
    assert counter(counted) == WRITERS * ROUNDS
    assert len(counted.log("main")) == WRITERS * ROUNDS + 2
    assert not is_taken(counted._environment, "main")


def test_counters_of_threads_add_up(counted: vzarr.Repository) -> None:
    with threads(*[lambda: count(counted, ROUNDS)] * WRITERS):
        pass
    assert counter(counted) == WRITERS * ROUNDS


def test_counters_add_up_though_others_commit_and_merge(counted: vzarr.Repository) -> None:
    """Who wants the branch for himself need not know whether others do."""
    counted.branches.create("side")

    def commit() -> None:
        session = counted.session("main")
        for number in range(ROUNDS):
            session.set("file", b"%d" % number)
            session.commit(f"file {number}")

    def merge() -> None:
        session = counted.session("side")
        for number in range(ROUNDS // 5):
            session.set("merged", b"%d" % number)
            session.commit(f"side {number}")
            counted.merge("side")

    with threads(lambda: count(counted, ROUNDS), lambda: count(counted, ROUNDS), commit, merge):
        pass
    assert counter(counted) == 2 * ROUNDS
    session = counted.session("main")
    assert (session.get("file"), session.get("merged")) == (b"24", b"4")


def test_several_commits_of_one_turn(counted: vzarr.Repository) -> None:
    """The branch stays ours until the block ends, whatever is committed in it."""
    with counted.transaction("main", "last", exclusive=True) as store:
        for number in range(3):
            store.session.set("file", b"%d" % number)
            store.session.commit(f"number {number}")
            assert is_taken(counted._environment, "main")
        store.session.set("file", b"end")
    assert not is_taken(counted._environment, "main")
    assert [commit.message for commit in counted.log("main", limit=4)] == [
        "last",
        "number 2",
        "number 1",
        "number 0",
    ]


def test_run_exclusively(counted: vzarr.Repository, path: Path) -> None:
    other = held(path, b"1")

    def read(store: Any) -> bytes | None:
        found = store.session.get("file")
        store.session.set("seen", b"1")
        return found

    results: list[tuple[str, bytes | None]] = []
    with threads(lambda: results.append(counted.run(read, "main", "run", exclusive=True))):
        until(lambda: queueing(counted) == 2)
        other.send()
        other.result()
    # It began when it was its turn, and saw what had been committed by then.
    assert results == [(counted.branches["main"], b"1")]


# ── who waits, and who does not ──────────────────────────────────────────────────────────────────


def by_commit(repo: vzarr.Repository) -> None:
    session = repo.session("main")
    session.set("late", b"1")
    session.commit("late")


def by_transaction(repo: vzarr.Repository) -> None:
    with repo.transaction("main", "late") as store:
        store.session.set("late", b"1")


def by_amend(repo: vzarr.Repository) -> None:
    session = repo.session("main")
    session.set("late", b"1")
    with pytest.raises(ConflictError, match="moved on"):
        session.amend()
    session.rebase()
    session.amend()


def by_autocommit(repo: vzarr.Repository) -> None:
    repo.store("main", autocommit=True).session.set("late", b"1")
    store = repo.store("main", autocommit=True)
    group = zarr.open_group(store, mode="a")
    group.attrs["late"] = 1
    store.session.set("late", b"1")
    store._commit_each("late")


def by_merge(repo: vzarr.Repository) -> None:
    with repo.transaction("dev", "late") as store:
        store.session.set("late", b"1")
    repo.merge("dev")


def by_cherry_pick(repo: vzarr.Repository) -> None:
    with repo.transaction("dev", "late") as store:
        store.session.set("late", b"1")
    repo.cherry_pick("dev")


WAYS = [by_commit, by_transaction, by_amend, by_autocommit, by_merge, by_cherry_pick]


@pytest.mark.parametrize("way", WAYS)
def test_ordinary_writers_wait_and_go_on(
    counted: vzarr.Repository, path: Path, way: Callable[[vzarr.Repository], None]
) -> None:
    other = held(path, b"1")
    done: list[bool] = []

    def write() -> None:
        way(counted)
        done.append(True)

    with threads(write):
        # They queue, although they did not ask for the branch for themselves.
        until(lambda: queueing(counted) == 2)
        assert counted.session("main").get("late") is None
        assert not done
        other.send()
        other.result()
    assert done
    session = counted.session("main")
    assert (session.get("file"), session.get("late")) == (b"1", b"1")
    assert not is_taken(counted._environment, "main")


def test_revert_and_squash_wait_too(counted: vzarr.Repository, path: Path) -> None:
    first = counted.branches["main"]
    by_commit(counted)
    for verb in (
        lambda: counted.revert("main", on="main", strategy="ours"),
        lambda: counted.squash("main", since=first),
    ):
        before = counted.branches["main"]
        other = held(path)
        with threads(verb):
            until(lambda: queueing(counted) == 2)
            assert counted.branches["main"] == before
            other.send()
            other.result()
        assert counted.branches["main"] != before


def test_other_branches_and_readers_do_not_wait(counted: vzarr.Repository, path: Path) -> None:
    other = held(path, b"1")
    for exclusive in (False, True):
        with counted.transaction("dev", "go on", exclusive=exclusive, timeout=0) as store:
            store.session.set("file", b"%d" % exclusive)
    assert counted.session("main").get("file") is None
    assert counted.session("dev").get("file") == b"1"
    counted.tags.create("v1", at="main")
    other.send()
    other.result()
    assert counted.session("main").get("file") == b"1"


def test_a_commit_that_waits_is_bounded_by_its_timeout(
    counted: vzarr.Repository, path: Path
) -> None:
    other = held(path, b"theirs")
    with vzarr.open(path, timeout=0.1) as impatient:
        session = impatient.session("main")
        session.set("late", b"1")
        begun = time.monotonic()
        with pytest.raises(BusyError) as caught:
            session.commit("too late")
        assert 0.1 <= time.monotonic() - begun < PATIENCE
        assert caught.value.holder is not None
        assert caught.value.holder.pid == other.pid
        with (
            pytest.raises(BusyError),
            counted.transaction("main", "late", timeout=0.05) as store,
        ):
            store.session.set("late", b"1")
        other.send()
        other.result()
        assert session.get("late") == b"1"
        session.commit("in time")
    found = counted.session("main")
    assert (found.get("file"), found.get("late")) == (b"theirs", b"1")


def test_the_queue_is_fair(counted: vzarr.Repository, path: Path) -> None:
    """First come first served: threads, processes, and commits that nobody asked to queue."""
    running: list[threading.Thread] = []
    others: list[Other] = []
    with counted.transaction("main", "first", exclusive=True):
        for number in range(6):
            if number % 2:
                others.append(Other(note_in_process, path, number))
                assert others[-1].receive() == "ready"
            else:
                thread = threading.Thread(target=note, args=(counted, number))
                thread.start()
                running.append(thread)
            until(lambda number=number: queueing(counted) == number + 2)
    for thread in running:
        thread.join(PATIENCE)
    for other in others:
        other.result()
    assert log(counted) == list(range(6))


def note_in_process(pipe: Connection, path: Path, number: int) -> None:
    with vzarr.open(path) as repo:
        pipe.send("ready")
        note(repo, number)


# ── waiting in vain ──────────────────────────────────────────────────────────────────────────────


def test_busy_names_the_holder(counted: vzarr.Repository, path: Path) -> None:
    other = held(path)
    begun = time.monotonic()
    with (
        pytest.raises(BusyError) as caught,
        counted.transaction("main", "late", exclusive=True, timeout=0.1),
    ):
        pytest.fail("the block began")
    assert time.monotonic() - begun >= 0.1
    holder = caught.value.holder
    assert holder is not None
    assert (holder.pid, holder.host) == (other.pid, socket.gethostname())
    command = Path(f"/proc/{other.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    assert command in holder.command
    assert holder.since is not None
    assert timedelta(0) <= datetime.now(UTC) - holder.since < timedelta(seconds=PATIENCE)
    assert isinstance(caught.value, TimeoutError)
    # Who gave up is not in the way of others.
    assert queueing(counted) == 1
    other.send()
    other.result()
    note(counted, 1)


@pytest.mark.parametrize("timeout", [-1, "1", float("nan"), True])
def test_a_timeout_is_a_number_of_seconds(repo: vzarr.Repository, timeout: Any) -> None:
    with (
        pytest.raises(vzarr.errors.InvalidInputError, match="timeout= is a number of seconds"),
        repo.transaction("main", timeout=timeout),
    ):
        pytest.fail("the block began")


def test_a_transaction_inside_another_one(counted: vzarr.Repository) -> None:
    """One thread waits for itself in vain, and is told so."""
    with counted.transaction("main", "outer", exclusive=True) as store:
        store.session.set("file", b"outer")
        with (
            pytest.raises(BusyError, match="of this process") as caught,
            counted.transaction("main", "inner", exclusive=True, timeout=0.05),
        ):
            pytest.fail("the block began")
        assert caught.value.holder is not None
        assert caught.value.holder.pid == os.getpid()
        # Nor can it commit to the branch past itself.
        with (
            pytest.raises(BusyError),
            counted.transaction("main", "inner", timeout=0.05) as inner,
        ):
            inner.session.set("file", b"inner")
    assert counted.session("main").get("file") == b"outer"


def interrupted(pipe: Connection, path: Path) -> bool:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with vzarr.open(path) as repo:
        pipe.send("ready")
        try:
            note(repo, 1)
        except KeyboardInterrupt:
            # The repository is as good as before.
            with repo.transaction("dev", "after", exclusive=True) as store:
                store.session.set("file", b"after")
            return True
    return False


def test_ctrl_c_ends_the_wait_and_the_queue_goes_on(counted: vzarr.Repository, path: Path) -> None:
    other = held(path)
    first = Other(interrupted, path)
    assert first.receive() == "ready"
    until(lambda: queueing(counted) == 2)
    with threads(lambda: note(counted, 2)):
        until(lambda: queueing(counted) == 3)
        begun = time.monotonic()
        first.signal(signal.SIGINT)
        assert first.result() is True
        assert time.monotonic() - begun < 5
        assert queueing(counted) == 2
        other.send()
        other.result()
    assert log(counted) == [2]
    assert counted.session("dev").get("file") == b"after"


# ── those who do not end well ────────────────────────────────────────────────────────────────────


def test_a_killed_holder_frees_the_branch_at_once(counted: vzarr.Repository, path: Path) -> None:
    other = held(path, b"never")
    begun = threading.Event()

    def write() -> None:
        with counted.transaction("main", "next", exclusive=True) as store:
            begun.set()
            store.session.set("next", b"1")

    with threads(write):
        until(lambda: queueing(counted) == 2)
        assert not begun.is_set()
        other.signal(signal.SIGKILL)
        assert begun.wait(1), "the next one waits for a dead process"
    other.process.join(PATIENCE)
    other.reap()
    session = counted.session("main")
    assert (session.get("file"), session.get("next")) == (None, b"1")


def test_one_who_is_killed_while_it_waits(counted: vzarr.Repository, path: Path) -> None:
    with counted.transaction("main", "first", exclusive=True):
        waiting = [Other(note_in_process, path, number) for number in range(3)]
        for number, other in enumerate(waiting):
            assert other.receive() == "ready"
            until(lambda: queueing(counted) >= 2 + number)  # noqa: B023 - at once
        waiting[1].kill()
        assert queueing(counted) == 3
    for other in (waiting[0], waiting[2]):
        other.result()
    assert sorted(log(counted)) == [0, 2]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_rolls_back_and_frees_the_branch(
    counted: vzarr.Repository, error: type[BaseException]
) -> None:
    before = counted.branches["main"]
    with pytest.raises(error), counted.transaction("main", "fails", exclusive=True) as store:
        store.session.set("file", b"1")
        raise error
    assert counted.branches["main"] == before
    assert not is_taken(counted._environment, "main")
    note(counted, 1, timeout=0)


def test_a_block_that_is_never_ended_frees_the_branch(counted: vzarr.Repository) -> None:
    block = counted.transaction("main", "forgotten", exclusive=True)
    store = block.__enter__()
    store.session.set("file", b"1")
    assert is_taken(counted._environment, "main")
    del block, store
    assert not is_taken(counted._environment, "main")
    assert counted.session("main").get("file") is None


def test_a_branch_that_is_deleted_meanwhile(counted: vzarr.Repository) -> None:
    with (
        pytest.raises(RefNotFoundError),
        counted.transaction("dev", "late", exclusive=True) as store,
    ):
        counted.branches.delete("dev")
        store.session.set("file", b"1")
    assert not is_taken(counted._environment, "dev")
    assert "dev" not in counted.branches


def test_a_branch_that_is_deleted_while_we_wait_for_it(
    counted: vzarr.Repository, path: Path
) -> None:
    errors: list[BaseException] = []
    begun = threading.Event()

    def wait() -> None:
        assert begun.wait(PATIENCE)
        try:
            with counted.transaction("dev", "late", exclusive=True):
                pytest.fail("the block began")
        except RefNotFoundError as error:
            errors.append(error)

    with threads(wait), counted.transaction("dev", "first", exclusive=True):
        begun.set()
        until(lambda: queueing(counted, "dev") == 2)
        counted.branches.delete("dev")
    assert len(errors) == 1
    assert not is_taken(counted._environment, "dev")


def test_a_branch_that_is_not_there(counted: vzarr.Repository) -> None:
    with pytest.raises(RefNotFoundError), counted.transaction("new", "x", exclusive=True):
        pytest.fail("the block began")
    assert not is_taken(counted._environment, "new")
    counted.tags.create("v1")
    with pytest.raises(ReadOnlyError), counted.transaction("v1", "x", exclusive=True):
        pytest.fail("the block began")
    assert not is_taken(counted._environment, "v1")


def test_a_repository_that_only_reads(counted: vzarr.Repository, path: Path) -> None:
    with (
        vzarr.open(path, "r") as reading,
        pytest.raises(ReadOnlyError, match="mode 'r'"),
        reading.transaction("main", "x", exclusive=True),
    ):
        pytest.fail("the block began")


def test_a_system_without_such_locks(
    counted: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelocks, "SUPPORTED", False)
    with (
        pytest.raises(StorageError, match=r"use repo\.run"),
        counted.transaction("main", "x", exclusive=True),
    ):
        pytest.fail("the block began")


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_forked_process_does_not_have_the_branch(counted: vzarr.Repository) -> None:
    """It queues like everybody else, with its copy of the session too."""
    children: list[Child] = []
    with counted.transaction("main", "parent", exclusive=True, timeout=0.1) as store:
        store.session.set("file", b"parent")
        assert store.session.has_changes

        def work(pipe: Connection) -> tuple[str, str]:
            session = store.session
            session.set("late", b"child")
            assert is_taken(counted._environment, "main")
            with pytest.raises(BusyError) as caught:
                session.commit("past the parent")
            assert caught.value.holder is not None
            assert caught.value.holder.pid == os.getppid()
            pipe.send(session.id)
            pipe.recv()
            session.commit("after the parent", merge="ours")
            return session.id, session.base

        children.append(Child(work))
        # It is another session, though it began as this one.
        assert children[0].receive() != store.session.id
    children[0].pipe.send(None)
    kind, (_, base) = children[0].receive()
    assert kind == "result"
    children[0].reap()
    assert counted.branches["main"] == base
    assert [commit.message for commit in counted.log("main", limit=2)] == [
        "after the parent",
        "parent",
    ]
    session = counted.session("main")
    assert (session.get("file"), session.get("late")) == (b"parent", b"child")


def test_a_forked_process_leaves_alone_what_its_parent_staged(
    counted: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    with counted.transaction("main", "parent", exclusive=True) as store:
        store.session.set("file", b"parent")
        store.session._work.changes.drain()

        def work(_: Connection) -> bytes | None:
            session = store.session
            # What it rests on is the parent's, to be deleted when that likes.
            with pytest.raises(SessionStateError, match=f"in process {os.getppid()}"):
                session.checkpoint()
            with pytest.raises(SessionStateError, match=f"in process {os.getppid()}"):
                session.fork()
            assert session.get("file") == b"parent"
            session.discard()
            session.set("file", b"child")
            session._work.changes.drain()
            found = session.get("file")
            session.close()
            return found

        assert Child(work).result() == b"child"
        (lease,) = in_file(counted)
        assert (lease.id, lease.alive, lease.nbytes) == (store.session.id, True, 6)
        assert lease.owner.pid == os.getpid()
    assert counted.session("main").get("file") == b"parent"
    assert not is_taken(counted._environment, "main")


def test_a_forked_process_that_leaves_the_block(
    counted: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As scripts do that end in a child without a word: it rolls back its own copy alone."""
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    pid = -1
    try:
        with counted.transaction("main", "parent", exclusive=True) as store:
            store.session.set("file", b"parent")
            store.session._work.changes.drain()
            pid = os.fork()
            if not pid:
                raise SystemExit
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert is_taken(counted._environment, "main")
            assert [lease.id for lease in in_file(counted)] == [store.session.id]
    finally:
        if not pid:
            os._exit(0 if is_taken(counted._environment, "main") else 1)
    assert counted.session("main").get("file") == b"parent"
