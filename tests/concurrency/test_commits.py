"""Several processes and threads commit to one file: nothing is lost, nothing is half there."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

import vzarr
from vzarr.errors import BusyError, ConflictError

WRITERS = 3
COMMITS = 15


@pytest.fixture
def filled(path):
    """A repository with an array of one chunk a row, and an empty one to append to."""
    with vzarr.open(path) as repo, repo.transaction("main", "create") as store:
        rows = WRITERS * COMMITS
        zarr.create_array(store, name="rows", shape=(rows, 4), chunks=(1, 4), dtype="i8")
        zarr.create_array(store, name="log", shape=(0,), chunks=(5,), dtype="i8")
    return path


def commit_rows(path, writer: int, barrier) -> list[str]:
    """Write own rows, one a commit, in a session that never looks at the others'."""
    with vzarr.open(path) as repo:
        session = repo.session("main")
        rows = zarr.open_array(session.store, path="rows")
        barrier.wait()
        commits = []
        for number in range(COMMITS):
            rows[writer * COMMITS + number] = writer + 1
            commits.append(session.commit(f"writer {writer}, row {number}"))
        return commits


def append_numbers(path, writer: int, barrier) -> None:
    def append(store) -> None:
        log = zarr.open_array(store, path="log")
        log.append(np.array([writer * COMMITS + number]))

    with vzarr.open(path) as repo:
        barrier.wait()
        for number in range(COMMITS):  # noqa: B007 - append uses it
            repo.run(append, "main", f"writer {writer}", retries=1000)


def append_ones(path, writer: int, barrier) -> None:
    """Append rows that are all alike: not one may be taken for another's."""
    with vzarr.open(path) as repo:
        barrier.wait()
        for _ in range(COMMITS):
            repo.run(
                lambda store: zarr.open_array(store, path="log").append(np.ones(1)), retries=1000
            )


def in_processes(function, path) -> list:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(WRITERS) as pool:
        barrier = manager.Barrier(WRITERS)
        return pool.starmap(function, [(path, writer, barrier) for writer in range(WRITERS)])


def in_threads(function, path) -> list:
    barrier = threading.Barrier(WRITERS)
    with ThreadPoolExecutor(WRITERS) as pool:
        futures = [pool.submit(function, path, writer, barrier) for writer in range(WRITERS)]
        return [future.result() for future in futures]


@pytest.mark.parametrize("run", [in_processes, in_threads])
def test_disjoint_commits_all_arrive(filled, run):
    commits = [commit for found in run(commit_rows, filled) for commit in found]
    with vzarr.open(filled, "r") as repo:
        logged = [commit.id for commit in repo.log("main")]
        assert len(logged) == WRITERS * COMMITS + 2
        assert set(commits) <= set(logged)
        rows = zarr.open_array(repo.store("main"), path="rows")[:]
        expected = np.repeat(np.arange(1, WRITERS + 1), COMMITS)
        assert (rows == expected[:, None]).all()


@pytest.mark.parametrize("run", [in_processes, in_threads])
def test_appends_with_run_all_arrive_once(filled, run):
    run(append_numbers, filled)
    with vzarr.open(filled, "r") as repo:
        numbers = zarr.open_array(repo.store("main"), path="log")[:]
        assert sorted(numbers) == list(range(WRITERS * COMMITS))


@pytest.mark.parametrize("run", [in_processes, in_threads])
def test_equal_rows_appended_at_once_all_arrive(filled, run):
    run(append_ones, filled)
    with vzarr.open(filled, "r") as repo:
        numbers = zarr.open_array(repo.store("main"), path="log")[:]
        assert list(numbers) == [1] * WRITERS * COMMITS


def test_threads_share_one_session(repo):
    session = repo.session("main")
    array = zarr.create_array(session.store, name="a", shape=(64, 10), chunks=(1, 10), dtype="i4")

    def fill(row: int) -> None:
        array[row] = row

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(64)))
    session.commit("all")
    found = zarr.open_array(repo.store("main"), path="a")[:]
    assert (found == np.arange(64)[:, None]).all()


def python(code: str, *arguments: object, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_killed_transaction_leaves_nothing_and_blocks_nobody(filled):
    process = python(
        """
        import sys, vzarr, vzarr.changes
        vzarr.changes.BATCH_BYTES = 1
        repo = vzarr.open(sys.argv[1])
        with repo.transaction("main", "never") as store:
            for number in range(10):
                store.session.set(f"big/{number}", bytes([number]) * 100_000)
            store.session._work.changes.drain()
            print("staged", flush=True)
            sys.stdin.read()
        """,
        filled,
    )
    assert process.stdout.readline() == "staged\n"
    with vzarr.open(filled) as repo:
        before = repo.branches["main"]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert repo.branches["main"] == before
        assert repo.store("main").session.get("big/1") is None
        session = repo.session("main")
        session.set("after", b"1")
        session.commit("the next one works")


def test_ctrl_c_in_a_transaction_leaves_nothing(filled):
    process = python(
        """
        import sys, vzarr
        with vzarr.open(sys.argv[1]) as repo:
            with repo.transaction("main", "never") as store:
                store.session.set("file", b"1")
                print("ready", flush=True)
                sys.stdin.read()
        """,
        filled,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert "KeyboardInterrupt" in stderr
    with vzarr.open(filled, "r") as repo:
        assert [commit.message for commit in repo.log("main")] == ["create", "create repository"]


@pytest.mark.parametrize("batch_bytes", [1 << 20, 1])
def test_a_commit_gives_up_after_its_timeout_and_names_the_holder(filled, monkeypatch, batch_bytes):
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", batch_bytes)
    process = python(
        """
        import sys
        from vzarr.environment import Environment
        environment = Environment.open(sys.argv[1], writable=True)
        with environment.write() as txn:
            print("held", flush=True)
            sys.stdin.read()
        """,
        filled,
    )
    with vzarr.open(filled, timeout=0.2) as repo:
        assert process.stdout.readline() == "held\n"
        session = repo.session("main")
        session.set("file", b"1")
        with pytest.raises(BusyError) as error:
            session.commit("too late")
        assert isinstance(error.value, TimeoutError)
        if sys.platform == "linux":
            assert error.value.holder.pid == process.pid
        # Readers never wait.
        assert repo.session("main").get("rows/zarr.json") is not None
        process.communicate("")
        session.commit("in time")


def test_a_forked_child_reads_and_commits(filled):
    code = """
    import os, sys, vzarr
    repo = vzarr.open(sys.argv[1])
    before = repo.session("main")
    before.set("parent", b"1")
    child = os.fork()
    if not child:
        session = repo.session("main")
        assert session.get("rows/zarr.json") is not None
        session.set("child", b"1")
        session.commit("by the child")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    before.commit("by the parent")
    print(os.waitstatus_to_exitcode(status))
    """
    process = python(code, filled)
    stdout, stderr = process.communicate()
    assert stdout == "0\n", stderr
    with vzarr.open(filled, "r") as repo:
        session = repo.session("main")
        assert (session.get("child"), session.get("parent")) == (b"1", b"1")


def test_the_loser_of_a_true_overlap_keeps_its_work(filled):
    with vzarr.open(filled) as one, vzarr.open(filled) as two:
        first, second = one.session("main"), two.session("main")
        first.set("rows/c/0/0", b"first")
        second.set("rows/c/0/0", b"second")
        first.commit("first")
        with pytest.raises(ConflictError) as error:
            second.commit("second")
        (conflict,) = error.value.conflicts
        assert conflict.coordinates == (0, 0)
        assert conflict.region == (slice(0, 1), slice(0, 4))
        assert second.get("rows/c/0/0") == b"second"
        assert one.session("main").get("rows/c/0/0") == b"first"


def test_another_process_s_growth_is_followed(filled):
    with vzarr.open(filled) as repo:
        session = repo.session("main")
        code = """
        import sys, vzarr
        with vzarr.open(sys.argv[1]) as repo, repo.transaction("main", "big") as store:
            for number in range(100):
                store.session.set(f"big/{number}", bytes([number]) * 1_000_000)
        """
        process = python(code, filled, env={**os.environ})
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr
        assert session.get("big/0") is None
        assert repo.session("main").get("big/99") == bytes([99]) * 1_000_000
        session.set("small", b"1")
        session.commit("and on")


def test_durability_normal_keeps_commits_of_a_killed_process(path):
    process = python(
        """
        import os, signal, sys, vzarr
        repo = vzarr.open(sys.argv[1], durability="normal")
        session = repo.session("main")
        session.set("file", b"1")
        session.commit("kept")
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        path,
    )
    process.communicate()
    with vzarr.open(path, "r") as repo:
        assert repo.session("main").get("file") == b"1"
