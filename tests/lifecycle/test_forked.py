"""A process that forks or spawns with repositories, sessions, stores and arrays open."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import PATIENCE, Child, threads
from vzarr.errors import ConflictError, SessionStateError

TORTURE = "VZARR_TORTURE" in os.environ
METHODS = ["fork", "forkserver", "spawn"]

# Forking a process that has threads is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

DATA = np.arange(40).reshape(20, 2)


@pytest.fixture
def filled(repo):
    """A repository with an array, tagged."""
    with repo.transaction("main", "data") as store:
        zarr.create_array(store, name="a", data=DATA, chunks=(2, 2))
    repo.tags.create("v1")
    return repo


def total(array: zarr.Array) -> int:
    return int(array[:].sum())


# ── what was opened before the fork is used after it ─────────────────────────────────────────────


def test_everything_that_reads_goes_on_in_the_child(filled):
    """Store, session and array of the parent, read before, during and after in both."""
    store, session = filled.store("v1"), filled.session("v1")
    arrays = [zarr.open_array(each, path="a", mode="r") for each in (store, session.store)]
    # zarr has a thread of its own from here on, which the child lacks.
    assert [total(array) for array in arrays] == [780, 780]

    def read(pipe: Connection) -> list[int]:
        pipe.send("begun")
        pipe.recv()
        found = [total(array) for array in arrays]
        return [*found, total(filled.root_group["a"]), len(filled.log("main"))]

    child = Child(read)
    child.receive()
    with filled.transaction("main", "meanwhile") as writing:
        zarr.open_array(writing, path="a")[:] = 0
    child.pipe.send("go on")
    assert [total(array) for array in arrays] == [780, 780]
    # The current session of the child is on the head that it found.
    assert child.result() == [780, 780, 0, 3]
    assert total(zarr.open_array(filled.store("main"), path="a")) == 0


def test_both_commit_after_the_fork(filled):
    def commit(_: Connection) -> str:
        with filled.transaction("main", "child") as store:
            zarr.open_array(store, path="a")[0] = -1
        return filled.branches["main"]

    child = Child(commit)
    with filled.transaction("main", "parent") as store:
        zarr.open_array(store, path="a")[10] = -2
    commit_id = child.result()
    assert commit_id in [commit.id for commit in filled.log("main")]
    found = zarr.open_array(filled.store("main"), path="a")[:, 0]
    assert (found[0], found[10]) == (-1, -2)
    assert filled.check("full").ok


def test_a_session_of_the_parent_is_a_copy_in_the_child(filled):
    """What the child does to it stays there: the parent's edits are the parent's to commit."""
    session = filled.session("main")
    array = zarr.open_array(session.store, path="a")
    array[0] = 7

    def change(_: Connection) -> tuple[str, list[int]]:
        array[1] = 8
        session.discard()
        return session.id, array[:2, 0].tolist()

    name, found = Child(change).result()
    assert name != session.id
    assert found == [0, 2]
    assert array[:2, 0].tolist() == [7, 2]
    session.commit("parent")
    assert zarr.open_array(filled.store("main"), path="a")[:2, 0].tolist() == [7, 2]


def test_a_transaction_that_is_open_when_the_child_is_forked(filled):
    """The child leaves the block by an exception, or for good: nothing of it happens twice."""
    with filled.transaction("main", "parent") as store:
        array = zarr.open_array(store, path="a")
        array[0] = 7
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with filled.transaction("main", "child") as own:
                    zarr.open_array(own, path="a")[10] = 8
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    assert [commit.message for commit in filled.log("main")][:2] == ["parent", "child"]
    assert zarr.open_array(filled.store("main"), path="a")[:, 0][[0, 10]].tolist() == [7, 8]


def test_a_child_that_ends_its_parents_transaction(filled):
    """Its copy commits what was in memory; the parent's then conflicts: nothing counts twice."""

    def count_up() -> None:
        nonlocal pid
        with filled.transaction("main", "count") as store:
            array = zarr.open_array(store, path="a")
            array[0, 0] = array[0, 0] + 1
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0

    pid = -1
    try:
        count_up()
    except ConflictError:
        assert pid
    except BaseException:
        if not pid:
            os._exit(1)
        raise
    finally:
        if not pid:
            os._exit(0)
    assert zarr.open_array(filled.store("main"), path="a")[0, 0] == 1


def test_work_that_the_parent_has_in_the_file_is_not_the_childs(filled):
    session = filled.session("main")
    session.set("file", b"parent")
    session.checkpoint()
    session.set("other", b"parent")

    def commit(_: Connection) -> str:
        with pytest.raises(SessionStateError, match="only that process can go on") as caught:
            session.commit("child")
        assert session.get("file") == b"parent"
        return str(caught.value)

    assert f"process {os.getpid()}" in Child(commit).result()
    session.commit("parent")
    assert filled.session("main").get("other") == b"parent"


def test_an_exclusive_turn_stays_with_the_parent(filled):
    def wait(pipe: Connection) -> None:
        pipe.send("begun")
        with filled.transaction("main", "child", exclusive=True) as own:
            own.session.set("order", (own.session.get("order") or b"") + b"child")

    with filled.transaction("main", "parent", exclusive=True) as store:
        child = Child(wait)
        child.receive()
        store.session.set("order", b"parent ")
    child.result()
    assert filled.session("main").get("order") == b"parent child"


def test_a_child_closes_what_it_got(filled):
    def close(_: Connection) -> str:
        filled.close()
        with pytest.raises(SessionStateError, match="closed"):
            filled.log()
        with vzarr.open(filled.path) as again:
            return again.branches["main"]

    assert Child(close).result() == filled.branches["main"]
    assert total(filled.root_group["a"]) == 780


def test_a_subprocess_while_the_file_is_open(filled):
    """Descriptors are not inherited, and the other program commits as it likes."""
    with filled.transaction("main", "parent") as store:
        zarr.open_array(store, path="a")[0] = 7
        done = subprocess.run(
            [sys.executable, "-m", "vzarr", "tag", filled.path, "outside", "--at", "v1"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert filled.tags["outside"] == filled.tags["v1"]


# ── while other threads are at it ────────────────────────────────────────────────────────────────


@pytest.fixture
def hang():
    """Say where everybody is if something waits for ever."""
    faulthandler.dump_traceback_later(240, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def test_forks_while_threads_read_and_write(filled, hang):
    over = threading.Event()
    array = zarr.open_array(filled.store("v1"), path="a", mode="r")

    def read() -> None:
        while not over.is_set():
            assert array[3, 1] == 7

    def write() -> None:
        number = 0
        while not over.is_set():
            with filled.transaction("main", "thread") as store:
                store.session.set("thread", b"%d" % number)
            number += 1

    def use(_: Connection) -> tuple[int, bool]:
        value = filled.session("v1").get("a/zarr.json")
        filled.branches.create(f"child{os.getpid()}", at="v1")
        return int(array[3, 1]), value is not None

    with threads(read, read, write):
        try:
            for _ in range(200 if TORTURE else 20):
                assert Child(use).result() == (7, True)
        finally:
            over.set()
    assert filled.check("full").ok


# ── pools ────────────────────────────────────────────────────────────────────────────────────────


def sum_of(array: zarr.Array, row: int) -> int:
    return int(array[row].sum())


def sum_of_store(store: vzarr.VzarrStore, row: int) -> int:
    return sum_of(zarr.open_array(store, path="a", mode="r"), row)


def use_unpickled(data: bytes) -> str:
    try:
        zarr.open_array(pickle.loads(data), path="a", mode="r")
    except SessionStateError as error:
        return str(error)
    return "it can be used"


@pytest.mark.parametrize("method", METHODS)
def test_pools_of_readers(filled, method):
    """A store that reads, or an array on it, goes to any process; one that writes says no."""
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["vzarr", "zarr"])
    store = filled.store("v1")
    array = zarr.open_array(store, path="a", mode="r")
    session = filled.session("main")
    session.set("b", b"b")
    expected = DATA[:6].sum(axis=1).tolist()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        assert list(pool.map(sum_of, [array] * 6, range(6))) == expected
        assert list(pool.map(sum_of_store, [store] * 6, range(6))) == expected
        said = pool.submit(use_unpickled, pickle.dumps(session.store)).result()
    assert "session.fork()" in said
    assert f"process {os.getpid()}" in said
    session.discard()


def inherited(row: int) -> int:
    return sum_of(INHERITED[0], row)


INHERITED: list[zarr.Array] = []


def test_a_pool_that_inherits_an_array(filled):
    INHERITED[:] = [zarr.open_array(filled.store("v1"), path="a", mode="r")]
    assert total(INHERITED[0]) == 780
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(inherited, range(6)) == DATA[:6].sum(axis=1).tolist()
        pool.close()
        pool.join()
    INHERITED.clear()
