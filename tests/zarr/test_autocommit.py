"""Stores that commit every write by themselves, for programs that know nothing of commits."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from numpy.testing import assert_array_equal
from zarr.core.buffer import cpu

import vzarr
from vzarr import InvalidInputError, ReadOnlyError, Repository, Session, VzarrStore


def buffer(data: bytes) -> cpu.Buffer:
    return cpu.Buffer.from_bytes(data)


@pytest.fixture
def store(repo: Repository) -> VzarrStore:
    return repo.store("main", autocommit=True)


def commits(repo: Repository, branch: str = "main") -> int:
    """How many commits a branch has beside the repository's first."""
    return len(repo.log(branch)) - 1


WRITES = {
    "set": lambda store: store.set_sync("new", buffer(b"x")),
    "overwrite": lambda store: store.set_sync("old", buffer(b"x")),
    "delete": lambda store: store.delete_sync("old"),
    "set_if_not_exists": lambda store: zarr.core.sync.sync(
        store.set_if_not_exists("new", buffer(b"x"))
    ),
    "delete_dir": lambda store: zarr.core.sync.sync(store.delete_dir("a")),
    "clear": lambda store: zarr.core.sync.sync(store.clear()),
    "_set_many": lambda store: zarr.core.sync.sync(store._set_many([("new", buffer(b"x"))])),
    "a big value": lambda store: zarr.core.sync.sync(store.set("new", buffer(bytes(1 << 20)))),
}


class TestEveryWrite:
    @pytest.fixture(params=[True, "each"])
    def store(self, request, repo: Repository) -> VzarrStore:
        with repo.transaction("main", "what was there before") as store:
            for key in ("old", "a/b", "a/c/d"):
                store.set_sync(key, buffer(key.encode()))
        return repo.store("main", autocommit=request.param)

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    def test_is_on_the_branch_at_once(self, repo, store, write):
        before = repo.root_id("main")
        write(store)
        assert not store.session.has_changes
        assert store.session.base == repo.branches["main"]
        assert repo.root_id("main") != before
        assert commits(repo) == 2
        seen = repo.session("main")
        assert sorted(seen.keys()) == sorted(store.session.keys())
        assert repo.log(limit=1)[0].message

    def test_that_changes_nothing_is_no_commit(self, repo, store):
        store.set_sync("old", buffer(b"old"))
        store.delete_sync("none")
        zarr.core.sync.sync(store.set_if_not_exists("old", buffer(b"new")))
        zarr.core.sync.sync(store.delete_dir("none"))
        assert commits(repo) == 1

    def test_of_zarr_is_seen_by_who_opens_the_branch(self, repo, store):
        array = zarr.create_array(store, name="x", shape=(6,), chunks=(2,), dtype="i4")
        assert zarr.open_array(repo.store("main"), path="x", mode="r").shape == (6,)
        for index in range(6):
            array[index] = index
            found = zarr.open_array(repo.store("main"), path="x", mode="r")
            assert_array_equal(found[: index + 1], np.arange(index + 1))
        array.append(np.arange(3))
        assert zarr.open_array(repo.store("main"), path="x", mode="r").shape == (9,)
        del zarr.open_group(store, mode="a")["x"]
        assert "x" not in zarr.open_group(repo.store("main"), mode="r")


class TestOneCommit:
    def test_consecutive_writes_are_one(self, repo, store):
        for number in range(5):
            store.set_sync(f"key/{number}", buffer(b"x"))
        assert commits(repo) == 1
        assert sorted(repo.store("main").session.keys()) == [f"key/{n}" for n in range(5)]

    def test_all_that_zarr_does_with_one_store_is_one(self, repo, store):
        root = zarr.open_group(store, mode="a")
        for number in range(4):
            root.create_array(f"g/{number}", data=np.arange(50) * number, chunks=(7,))
        root["g/1"].resize((30,))
        root["g"].attrs["made"] = True
        del root["g/3"]
        assert commits(repo) == 1
        found = zarr.open_group(repo.store("main"), path="g", mode="r")
        assert found.attrs["made"]
        assert sorted(found) == ["0", "1", "2"]
        assert_array_equal(found["2"][:], np.arange(50) * 2)

    def test_each_write_is_one_if_asked_for(self, repo):
        store = repo.store("main", autocommit="each")
        for number in range(5):
            store.set_sync("key", buffer(b"%d" % number))
        assert commits(repo) == 5
        heads = [commit.id for commit in repo.log("main")]
        values = [repo.store(head).get_sync("key") for head in heads]
        assert [value and value.to_bytes() for value in values] == [
            b"4",
            b"3",
            b"2",
            b"1",
            b"0",
            None,
        ]

    def test_another_store_makes_another(self, repo, store):
        store.set_sync("a", buffer(b"x"))
        second = repo.store("main", autocommit=True)
        second.set_sync("b", buffer(b"x"))
        second.set_sync("c", buffer(b"x"))
        assert commits(repo) == 2

    def test_a_view_of_the_same_session_does_not(self, repo, store):
        store.set_sync("a", buffer(b"x"))
        again = store.with_read_only(True).with_read_only(False)
        again.set_sync("b", buffer(b"x"))
        assert commits(repo) == 1

    def test_what_was_tagged_stays_in_the_history(self, repo, store):
        store.set_sync("a", buffer(b"x"))
        repo.tags.create("v1")
        repo.branches.create("dev", at="main")
        store.set_sync("b", buffer(b"x"))
        assert commits(repo) == 2
        assert repo.tags["v1"] in [commit.id for commit in repo.log("main")]
        repo.branches.create("other", at="main")
        store.set_sync("c", buffer(b"x"))
        store.set_sync("d", buffer(b"x"))
        assert commits(repo) == 3
        assert sorted(repo.store("v1").session.keys()) == ["a"]
        assert sorted(repo.store("other").session.keys()) == ["a", "b"]

    def test_a_branch_that_was_reset_is_not_brought_back(self, repo, store):
        first = repo.session().commit("empty", allow_empty=True)
        store.set_sync("a", buffer(b"x"))
        repo.branches.reset("main", first)
        assert store.get_sync("a") is None
        store.set_sync("b", buffer(b"x"))
        assert sorted(repo.store("main").session.keys()) == ["b"]
        assert repo.log("main")[1].id == first


class TestOtherWriters:
    def test_one_in_between_makes_a_new_commit(self, repo, store):
        store.set_sync("a", buffer(b"mine"))
        with repo.transaction("main", "in between") as other:
            other.set_sync("b", buffer(b"theirs"))
        store.set_sync("c", buffer(b"mine"))
        store.set_sync("d", buffer(b"mine"))
        assert commits(repo) == 3
        assert [commit.message for commit in repo.log("main")][1] == "in between"
        assert sorted(repo.store("main").session.keys()) == ["a", "b", "c", "d"]

    def test_two_stores_taking_turns(self, repo, store):
        other = repo.store("main", autocommit=True)
        for number in range(4):
            store.set_sync(f"a/{number}", buffer(b"x"))
            other.set_sync(f"b/{number}", buffer(b"x"))
            assert other.get_sync(f"a/{number}") is not None
            assert store.get_sync(f"b/{number}") is not None
        assert commits(repo) == 8
        assert len(list(repo.store("main").session.keys())) == 8

    def test_a_reader_follows(self, repo, store):
        array = zarr.create_array(store, name="a", shape=(4,), dtype="i4", fill_value=0)
        view = zarr.open_array(store, path="a", mode="r")
        with repo.transaction("main", "theirs") as other:
            zarr.open_array(other, path="a", mode="r+")[:] = 7
        assert_array_equal(array[:], 7)
        assert_array_equal(view[:], 7)
        assert list(store.session.keys("a"))

    def test_a_session_with_edits_merges_them(self, repo, store):
        session = repo.session("main")
        session.set("mine", b"x")
        store.set_sync("a", buffer(b"x"))
        store.set_sync("b", buffer(b"x"))
        session.commit("mine")
        store.set_sync("c", buffer(b"x"))
        assert sorted(repo.store("main").session.keys()) == ["a", "b", "c", "mine"]

    def test_the_last_write_of_a_key_stands(self, repo, store):
        other = repo.store("main", autocommit=True)
        for number in range(3):
            store.set_sync("key", buffer(b"mine %d" % number))
            other.set_sync("key", buffer(b"theirs %d" % number))
        assert store.get_sync("key").to_bytes() == b"theirs 2"

    def test_the_last_write_stands_also_in_a_race(self, repo, store, monkeypatch):
        """The other writer comes after this one has looked at the branch and before it commits."""
        store.set_sync("key", buffer(b"first"))
        commit = Session.autocommit

        def late(*arguments, **options) -> None:
            monkeypatch.undo()
            with repo.transaction("main", "theirs") as other:
                other.set_sync("key", buffer(b"theirs"))
            commit(*arguments, **options)

        monkeypatch.setattr(Session, "autocommit", late)
        store.set_sync("key", buffer(b"mine"))
        assert repo.store("main").get_sync("key").to_bytes() == b"mine"
        store.set_sync("other", buffer(b"mine"))
        assert commits(repo) == 3
        assert repo.store("main~1").get_sync("key").to_bytes() == b"theirs"

    def test_threads(self, repo, store):
        array = zarr.create_array(
            store, name="a", shape=(40, 5), chunks=(1, 5), dtype="i4", compressors=None
        )

        def write(row: int) -> None:
            array[row] = row

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(40)))
        expected = np.repeat(np.arange(40), 5).reshape(40, 5)
        found = zarr.open_array(repo.store("main"), path="a", mode="r")
        assert_array_equal(found[:], expected)
        assert commits(repo) == 1

    def test_threads_with_stores_of_their_own(self, repo):
        def write(thread: int) -> None:
            store = repo.store("main", autocommit=True)
            for number in range(5):
                store.set_sync(f"{thread}/{number}", buffer(b"x"))
                store.set_sync("shared", buffer(b"%d" % thread))

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(write, range(6)))
        assert len(list(repo.store("main").session.keys())) == 31


def _write_rows(path: str, rows: range) -> None:
    with vzarr.open(path) as repo:
        array = zarr.open_array(repo.store("main", autocommit=True), path="a", mode="r+")
        for row in rows:
            array[row] = row + 1


class TestProcesses:
    def test_nothing_is_lost_between_processes(self, repo, path):
        store = repo.store("main", autocommit=True)
        zarr.create_array(store, name="a", shape=(60, 3), chunks=(1, 3), dtype="i4", fill_value=0)
        context = multiprocessing.get_context("spawn")
        workers = [
            context.Process(target=_write_rows, args=(str(path), range(start, 60, 3)))
            for start in range(2)
        ]
        for worker in workers:
            worker.start()
        _write_rows(str(path), range(2, 60, 3))
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        found = zarr.open_array(store, path="a", mode="r")
        assert_array_equal(found[:, 0], np.arange(1, 61))

    def test_a_killed_process_has_written_what_it_wrote(self, path: Path):
        script = (
            "import os, signal, sys, numpy, vzarr, zarr\n"
            "store = vzarr.open(sys.argv[1]).store('main', autocommit=True)\n"
            "zarr.save_array(store, numpy.arange(100), path='a')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        with vzarr.open(path, "r") as repo:
            assert commits(repo) == 1
            assert_array_equal(zarr.load(repo.store("main"), path="a"), np.arange(100))


class TestOpening:
    def test_on_another_branch(self, repo):
        repo.branches.create("dev", at="main")
        repo.store("dev", autocommit=True).set_sync("a", buffer(b"x"))
        assert commits(repo, "dev") == 1
        assert commits(repo) == 0

    def test_on_the_branch_in_use(self, repo):
        repo.checkout("dev", create=True)
        repo.store(autocommit=True).set_sync("a", buffer(b"x"))
        assert commits(repo, "dev") == 1
        assert commits(repo) == 0

    def test_it_does_not_disturb_the_current_session(self, repo, store):
        repo.store().set_sync("mine", buffer(b"x"))
        store.set_sync("a", buffer(b"x"))
        assert sorted(repo.store().session.keys()) == ["mine"]
        repo.commit("mine")
        assert sorted(repo.store("main").session.keys()) == ["a", "mine"]

    def test_only_on_branches(self, repo):
        repo.tags.create("v1")
        for ref in ("v1", "main~0", repo.branches["main"]):
            with pytest.raises(ReadOnlyError, match="branch"):
                repo.store(ref, autocommit=True)
        with pytest.raises(vzarr.RefNotFoundError):
            repo.store("none", autocommit=True)

    @pytest.mark.parametrize("value", ["all", "", None, 2])
    def test_only_with_a_known_value(self, repo, value):
        with pytest.raises(InvalidInputError, match="autocommit="):
            repo.store("main", autocommit=value)

    def test_not_in_a_repository_that_only_reads(self, repo, path):
        with vzarr.open(path, "r") as reader, pytest.raises(ReadOnlyError, match="mode 'r'"):
            reader.store("main", autocommit=True)

    def test_a_read_only_view_refuses(self, repo, store):
        view = store.with_read_only(True)
        with pytest.raises(ReadOnlyError):
            view.set_sync("a", buffer(b"x"))
        store.set_sync("a", buffer(b"x"))
        assert view.get_sync("a") is not None
