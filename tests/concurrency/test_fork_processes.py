"""Forks in many processes: forked, spawned, from a fork server, in pools, and killed in between."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import Child
from vzarr import leases
from vzarr.errors import SessionStateError
from vzarr.fork import Fork

TASKS = 8
ROWS = 4
METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture
def session(repo):
    """A session with an array of a chunk for each task, and a group."""
    session = repo.session("main")
    zarr.create_array(
        session.store, name="a", shape=(TASKS * ROWS, 100), chunks=(ROWS, 100), dtype="i8"
    )
    return session


EXPECTED = np.repeat(np.arange(1, TASKS + 1), ROWS)


def write_chunk(store: vzarr.VzarrStore, task: int) -> int:
    """Write a task's chunk: at once, or by parts that must see each other."""
    array = zarr.open_array(store, path="a", mode="r+")
    start = task * ROWS
    if task == 3:
        for row in range(ROWS):
            array[start + row, :50] = task + 1
            array[start + row, 50:] = array[start + row, 0]
    else:
        array[start : start + ROWS] = task + 1
    return os.getpid()


def write_to_array(array: zarr.Array, task: int) -> None:
    array[task * ROWS : (task + 1) * ROWS] = task + 1


@pytest.mark.parametrize("method", METHODS)
def test_a_pool(repo, session, method):
    fork = session.fork()
    with multiprocessing.get_context(method).Pool(3) as pool:
        pids = pool.starmap(write_chunk, [(fork.store, task) for task in range(TASKS)])
        pool.close()
        pool.join()
    assert os.getpid() not in pids
    session.merge_fork(fork)
    session.commit("by a pool")
    found = zarr.open_array(repo.store("main"), path="a")[:]
    np.testing.assert_array_equal(found, np.repeat(EXPECTED[:, None], 100, axis=1))


@pytest.mark.parametrize("method", METHODS)
def test_futures_with_a_pickled_array(repo, session, method):
    fork = session.fork()
    array = zarr.open_array(fork.store, path="a", mode="r+")
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        list(pool.map(write_to_array, [array] * TASKS, range(TASKS)))
    # What they wrote is seen here at once, and by the session after the merge.
    np.testing.assert_array_equal(array[:, 0], EXPECTED)
    session.merge_fork()
    session.commit("by futures")
    np.testing.assert_array_equal(zarr.open_array(repo.store("main"), path="a")[:, 99], EXPECTED)


def half_rows(store: vzarr.VzarrStore, side: int) -> None:
    array = zarr.open_array(store, path="a", mode="r+")
    for row in range(array.shape[0]):
        array[row, side * 50 : (side + 1) * 50] = row * 10 + side


def test_parts_of_the_same_chunks_by_a_fork_each(repo, session):
    forks = [session.fork() for _ in range(2)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(half_rows, [(fork.store, side) for side, fork in enumerate(forks)])
    session.merge_fork(*forks)
    session.commit("halves")
    found = zarr.open_array(repo.store("main"), path="a")[:]
    np.testing.assert_array_equal(found[:, 0], np.arange(TASKS * ROWS) * 10)
    np.testing.assert_array_equal(found[:, 99], np.arange(TASKS * ROWS) * 10 + 1)


def see_others(store: vzarr.VzarrStore, rank: int, ranks: int, barrier) -> None:
    """Write, and after all have, see what each of the others wrote; again and again."""
    for turn in range(10):
        store.session.set(f"seen/{turn}/{rank}", b"%d" % rank)
        barrier.wait()
        for other in range(ranks):
            assert store.session.get(f"seen/{turn}/{other}") == b"%d" % other
        assert len(store.session.children(f"seen/{turn}")) == ranks


def test_processes_see_each_other(session):
    fork, context = session.fork(), multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(3) as pool:
        barrier = manager.Barrier(3)
        pool.starmap(see_others, [(fork.store, rank, 3, barrier) for rank in range(3)])
    session.merge_fork()
    assert session.sums("seen")[0] == 30


def make_group(store: vzarr.VzarrStore, rank: int, barrier) -> None:
    barrier.wait()
    zarr.create_array(store, name=f"deep/group/{rank}", data=np.full(5, rank))


def test_parents_are_made_once(session):
    """Each makes the groups above its array where there are none: the same ones."""
    fork, context = session.fork(), multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(3) as pool:
        barrier = manager.Barrier(3)
        pool.starmap(make_group, [(fork.store, rank, barrier) for rank in range(3)])
    session.merge_fork()
    assert sorted(session.root_group["deep/group"]) == ["0", "1", "2"]


def open_again(store: vzarr.VzarrStore, number: int) -> tuple[int, int]:
    fork = store.session
    fork.set(f"file/{number}", b"x")
    return id(fork), fork.environment.info().readers


def test_a_worker_keeps_the_fork_open_between_tasks(session):
    fork = session.fork()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = [pool.apply(open_again, (fork.store, number)) for number in range(20)]
    assert len({opened for opened, _ in found}) == 1
    assert found[-1][1] <= found[0][1] + 1


def many_forks(forks: list[bytes]) -> int:
    """Use more forks than a worker keeps open."""
    from vzarr import fork as module

    for data in forks:
        pickle.loads(data).set("a", b"x")
    return len(module._forks)


def test_a_worker_lets_go_of_old_forks(session):
    forks = [pickle.dumps(session.fork()) for _ in range(20)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(many_forks, (forks,)) == 8
    session.merge_fork(merge="ours")
    assert session.get("a") == b"x"


# ── a process that has inherited what its parent has ─────────────────────────────────────────────


def test_an_inherited_fork(repo, session):
    """The child goes on with the very objects of its parent, whose writing thread it lacks."""
    fork = session.fork()
    array = zarr.open_array(fork.store, path="a", mode="r+")
    array[0] = 1

    def write(pipe: Connection) -> int:
        fork.set("file", b"child")
        return int(fork.get("a/zarr.json") is not None)

    assert Child(write).result() == 1
    array[1] = 2
    session.merge_fork(fork)
    assert session.get("file") == b"child"
    found = zarr.open_array(session.store, path="a")
    assert (found[0, 0], found[1, 0]) == (1, 2)


def test_a_child_that_is_forked_while_its_parent_waits_to_write(session):
    """What the parent has begun is the parent's: the child neither waits for it nor writes it."""
    fork = session.fork()

    def hold(pipe: Connection) -> None:
        with fork.environment.write():
            pipe.send("held")
            pipe.recv()

    def write(pipe: Connection) -> None:
        pipe.send("begun")
        fork.set("child", b"child")

    holder = Child(hold)
    holder.receive()
    begun = fork.begin_set("parent", b"parent")
    child = Child(write)
    child.receive()
    assert not begun.done()
    holder.pipe.send("let go")
    holder.result()
    child.result()
    begun.result()
    assert fork.get("parent") == b"parent"
    assert fork.get("child") == b"child"
    with fork.environment.read() as txn:
        assert leases.last_number(txn, fork._id) == 2


# ── killed ───────────────────────────────────────────────────────────────────────────────────────


def write_until_killed(pipe: Connection, fork: Fork) -> None:
    array = zarr.open_array(fork.store, path="a", mode="r+")
    number = 0
    while True:
        for task in range(TASKS):
            array[task * ROWS : (task + 1) * ROWS] = number
            fork.set("count", b"%d" % number)
            number += 1
        pipe.send(number)


def test_a_worker_that_is_killed_and_its_tasks_done_again(repo, session):
    fork = session.fork()
    data = pickle.dumps(fork)
    for rounds in (1, 2, 3):
        child = Child(lambda pipe: write_until_killed(pipe, pickle.loads(data)))
        for _ in range(rounds):
            child.receive()
        # At any point of a write.
        child.kill()
        assert int(fork.get("count")) >= rounds * TASKS - 1
        # Whatever is there is whole.
        zarr.open_array(fork.store, path="a")[:]
    for task in range(TASKS):
        write_chunk(fork.store, task)
    session.merge_fork(fork)
    session.commit("done again")
    np.testing.assert_array_equal(zarr.open_array(repo.store("main"), path="a")[:, 0], EXPECTED)


def test_what_a_worker_wrote_before_it_was_killed_is_there(session):
    fork = session.fork()

    def work(pipe: Connection) -> None:
        fork.set("written", b"x")
        pipe.send(True)
        pipe.recv()

    child = Child(work)
    child.receive()
    child.kill()
    session.merge_fork()
    assert session.get("written") == b"x"


PARENT = """
    import pickle, sys
    import vzarr

    repo = vzarr.open(sys.argv[1])
    session = repo.session("main")
    session.set("a", b"a")
    fork = session.fork()
    print(pickle.dumps(fork).hex(), flush=True)
    for line in sys.stdin:
        if line.strip() == "checkpoint":
            session.merge_fork()
            print(session.checkpoint(), flush=True)
        if line.strip() == "fork":
            print(pickle.dumps(session.fork()).hex(), flush=True)
"""


@pytest.fixture
def parent(path):
    """A process with a session and a fork of it."""
    vzarr.open(path).close()
    command = [sys.executable, "-c", textwrap.dedent(PARENT), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen, question: str) -> str:
    process.stdin.write(f"{question}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_the_death_of_the_sessions_process(parent, path):
    fork = pickle.loads(bytes.fromhex(parent.stdout.readline()))
    fork.set("b", b"b")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    with pytest.raises(SessionStateError, match="its session has ended"):
        fork.set("c", b"c")
    assert sorted(fork.keys()) == ["a", "b"]
    with vzarr.open(path) as repo:
        assert not repo.session("main").get("b")


def test_forks_of_a_session_that_is_resumed(parent, path):
    fork = pickle.loads(bytes.fromhex(parent.stdout.readline()))
    fork.set("b", b"b")
    session_id = ask(parent, "checkpoint")
    after = pickle.loads(bytes.fromhex(ask(parent, "fork")))
    after.set("c", b"c")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    with vzarr.open(path) as repo:
        with pytest.raises(SessionStateError):
            after.set("d", b"d")
        session = repo.resume(session_id)
        after.set("d", b"d")
        with pytest.raises(SessionStateError, match="taken over"):
            fork.set("e", b"e")
        session.merge_fork()
        session.commit("resumed")
        found = repo.session("main")
        assert sorted(found.keys()) == ["a", "b", "c", "d"]


def test_a_fork_that_was_merged_after_the_checkpoint(path):
    def work(pipe: Connection) -> None:
        session = vzarr.open(path).session("main")
        fork = session.fork()
        fork.set("a", b"a")
        session.checkpoint()
        fork.set("b", b"b")
        session.merge_fork()
        pipe.send(session.id)
        pipe.recv()

    child = Child(work)
    session_id = child.receive()
    child.kill()
    with vzarr.open(path) as repo:
        session = repo.resume(session_id)
        assert list(session.keys()) == []
        session.merge_fork()
        assert sorted(session.keys()) == ["a", "b"]
        session.commit("resumed")
