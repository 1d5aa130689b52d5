"""Many threads with one store, one repository, one file; and the end of it while they are at it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import descriptors, threads, until
from vzarr.errors import SessionStateError

TORTURE = "VZARR_TORTURE" in os.environ
THREADS = 16
ROUNDS = 30 if TORTURE else 3


def at_once(work: Callable[[int], None], count: int = THREADS) -> None:
    """Run a function in so many threads that begin together."""
    begin = threading.Barrier(count)

    def run(number: int) -> None:
        begin.wait()
        work(number)

    with threads(*(lambda number=number: run(number) for number in range(count))):
        pass


def test_one_store(repo):
    """Each writes chunks of its own, and reads its neighbours'."""
    session = repo.session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(THREADS, 40), chunks=(1, 4), dtype="i8"
    )

    def work(number: int) -> None:
        for turn in range(1, ROUNDS + 1):
            array[number] = turn
            assert set(array[number].tolist()) == {turn}
            assert array[(number + 1) % THREADS].max() <= ROUNDS
            session.keys("a")

    at_once(work)
    session.commit("threads")
    assert set(zarr.open_array(repo.store("main"), path="a")[:].ravel().tolist()) == {ROUNDS}


def test_one_repository(repo):
    """Transactions, counted up again and again: none is lost."""
    with repo.transaction("main", "zero") as store:
        zarr.create_array(store, name="a", data=np.zeros(1, "i8"))

    def count_up(store: vzarr.VzarrStore) -> None:
        array = zarr.open_array(store, path="a")
        array[0] = array[0] + 1

    def work(number: int) -> None:
        if number % 2:
            for _ in range(ROUNDS):
                repo.run(count_up, "main", f"by {number}", retries=10_000)
        else:
            for _ in range(ROUNDS):
                reader = repo.store("main")
                assert zarr.open_array(reader, path="a")[0] >= 0
                assert repo.log("main", limit=1)

    at_once(work)
    assert zarr.open_array(repo.store("main"), path="a")[0] == ROUNDS * THREADS // 2
    assert len(repo.log("main")) == 2 + ROUNDS * THREADS // 2


def test_closing_while_others_read(path):
    """They read on or are told that it is closed; nothing else comes out."""
    with vzarr.open(path) as repo, repo.transaction("main", "data") as store:
        zarr.create_array(store, name="a", data=np.arange(4000), chunks=(100,))
    for _ in range(ROUNDS):
        repo = vzarr.open(path)
        array = zarr.open_array(repo.store("main"), path="a", mode="r")
        started = threading.Semaphore(0)
        told = []

        def read(array=array, started=started, told=told) -> None:
            started.release()
            try:
                while True:
                    assert array[50:350].sum() == np.arange(50, 350).sum()
            except SessionStateError as error:
                told.append(str(error))

        with threads(*[read] * 6):
            for _ in range(6):
                assert started.acquire(timeout=30)
            repo.close()
        assert len(told) == 6
        assert all("closed" in text for text in told)
    assert descriptors(path) == 0


def test_closing_while_others_write(path):
    with vzarr.open(path) as repo:
        assert repo.branches
    for _ in range(ROUNDS):
        repo = vzarr.open(path)
        acknowledged: list[str] = []
        told = []

        def write(repo=repo, acknowledged=acknowledged, told=told) -> None:
            name = threading.current_thread().name
            try:
                for number in range(100_000):
                    with repo.transaction("main", f"{name} {number}") as store:
                        store.session.set(f"{name}/{number}", b"x")
                    acknowledged.append(f"{name} {number}")
            except SessionStateError as error:
                told.append(str(error))

        with threads(*[write] * 4):
            until(lambda acknowledged=acknowledged: len(acknowledged) > 4)
            repo.close()
        assert len(told) == 4
        with vzarr.open(path) as again:
            assert {commit.message for commit in again.log("main")} >= set(acknowledged)
    assert descriptors(path) == 0


def test_opening_and_closing_in_many_threads(path):
    with vzarr.open(path) as repo, repo.transaction("main", "data") as store:
        zarr.create_array(store, name="a", data=np.arange(10))

    def work(number: int) -> None:
        for turn in range(ROUNDS):
            with vzarr.open(path, "r" if number % 2 else "a") as repo:
                assert zarr.open_array(repo.store("main"), path="a")[:].sum() == 45
                if number % 4 == 0:
                    repo.branches.create(f"branch{number}-{turn}")

    at_once(work)
    with vzarr.open(path) as repo:
        assert len(repo.branches) == 1 + ROUNDS * THREADS // 4
    assert descriptors(path) == 0


def test_one_session_that_is_committed_and_written_at_once(repo):
    """A commit has what was set before it, and what comes meanwhile is in it or in the next."""
    session = repo.session("main")

    def work(number: int) -> None:
        for turn in range(10 * ROUNDS):
            if number:
                session.set(f"{number}/{turn}", b"x")
            else:
                session.commit(f"{turn}", allow_empty=True)

    at_once(work, 6)
    session.commit("the rest", allow_empty=True)
    assert len(list(repo.session("main").keys())) == 5 * 10 * ROUNDS


def test_a_closed_repository_says_so(path):
    repo = vzarr.open(path)
    session = repo.session("main")
    repo.close()
    for use in (
        lambda: repo.session("main"),
        lambda: repo.log(),
        lambda: session.commit("late", allow_empty=True),
    ):
        with pytest.raises(SessionStateError, match="closed"):
            use()
