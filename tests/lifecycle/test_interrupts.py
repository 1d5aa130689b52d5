"""Ctrl-C, and a handler of SIGTERM that raises, at every moment of what users do.

Afterwards there is the old state or the new one, nobody is locked out, and the same handle goes on.
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import faulthandler
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import zarr

import vzarr
from tests.lifecycle.interrupts import (
    AUTHOR,
    SCENARIOS,
    Interrupter,
    Terminated,
    count_moments,
    interrupt,
    open_,
)
from tests.processes import Other, until
from vzarr import copying
from vzarr.activity import uninterrupted
from vzarr.draft import Draft

TORTURE = "VZARR_TORTURE" in os.environ
MOMENTS = 5
"""How many of each scenario's are tried, unless all are."""

# What a generator or finalizer was interrupted in, when nobody waited for it, cannot be raised.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def commit_again(pipe: Connection) -> None:
    """Commit to each file whose path comes, as somebody else."""
    while (path := pipe.recv()) is not None:
        with vzarr.open(path, author=AUTHOR, timeout=10) as repo:
            if "elsewhere" not in repo.branches:
                repo.branches.create("elsewhere")
            with repo.transaction("elsewhere", "elsewhere") as store:
                store.session.set("key", os.urandom(4))
        pipe.send("committed")


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[[str], None]]:
    """Give a function that has another process commit to a file."""
    other = Other(commit_again)

    def commit(path: str) -> None:
        other.send(path)
        assert other.receive() == "committed"

    yield commit
    other.send(None)
    other.result()


@pytest.fixture(scope="module")
def hang() -> Iterator[None]:
    """Say where everybody is if something waits for ever."""
    faulthandler.dump_traceback_later(3600 if TORTURE else 300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def chosen(total: int) -> list[int]:
    """Choose moments: all, or some that are spread evenly, with the first and the last."""
    count = total if TORTURE else MOMENTS
    return sorted({1 + round(step * (total - 1) / (count - 1)) for step in range(count)})


# Another exception makes no difference to us: two scenarios will do, unless all are tried.
CASES = [
    (name, kind)
    for name in SCENARIOS
    for kind in (KeyboardInterrupt, Terminated)
    if kind is KeyboardInterrupt or TORTURE or name in ("commit", "gc")
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_interrupted_at_any_moment(tmp_path, name, kind, elsewhere, hang, record_property):
    scenario = SCENARIOS[name]
    template, path = tmp_path / "template.vzarr", tmp_path / "work.vzarr"
    with open_(template) as repo:
        scenario.fill(repo)
    # Twice: the second time all nodes are decoded.
    count_moments(scenario, template, path)
    total, states = count_moments(scenario, template, path)
    assert total > 50
    places = set()
    for number in chosen(total):
        places.add(interrupt(scenario, template, path, number, states, elsewhere, kind))
    record_property("moments", total)
    assert len(places) > 2


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


def interrupted_everywhere(work: Callable[[], object], ended: list[bool]) -> None:
    """Interrupt at each moment: what another thread does for it has ended then, or never begins."""
    counted = Interrupter(None)
    with counted():
        work()
    running = _thread._count()
    for number in range(1, counted.moments + 1):
        interrupter = Interrupter(number)
        with contextlib.suppress(KeyboardInterrupt), interrupter():
            work()
        found = len(ended)
        until(lambda: _thread._count() == running)
        assert len(ended) == found, interrupter.where


def test_what_must_not_end_half_way(hang):
    ended: list[bool] = []

    def work() -> None:
        zlib.compress(bytes(1 << 20))
        ended.append(True)

    interrupted_everywhere(lambda: uninterrupted(work), ended)
    assert ended


def test_lmdb_is_never_left_at_work_on_a_descriptor_that_is_closed(
    repo, tmp_path, monkeypatch, hang
):
    """It would write the copy into the file that has its number next."""
    with repo.transaction("main", "large") as store:
        store.session.set("large", os.urandom(4 << 20))
    ended: list[bool] = []

    class Handle:
        def __init__(self, handle: lmdb.Environment) -> None:
            self._handle = handle

        def copyfd(self, *arguments: Any, **options: Any) -> None:
            try:
                self._handle.copyfd(*arguments, **options)
            finally:
                ended.append(True)

    def copy() -> None:
        environment = repo._environment
        with (
            Draft(str(tmp_path / "copy.vzarr"), 0o600) as draft,
            environment.read() as txn,
            environment._access.inside() as opened,
        ):
            opened = dataclasses.replace(opened, handle=Handle(opened.handle))
            copying._copy_pages(opened, txn, draft, lambda *_: None)

    interrupted_everywhere(copy, ended)
    assert ended


# ── signals ──────────────────────────────────────────────────────────────────────────────────────


def commit_for_ever(pipe: Connection, path: str, name: str) -> list[str]:
    """Commit through zarr until a signal comes; commit once more, and give all commits."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)
    commits = []
    with vzarr.open(path, author=AUTHOR, timeout=10) as repo:
        pipe.send("ready")
        try:
            for number in range(10_000):
                with repo.transaction(name, f"{number}") as store:
                    array = zarr.open_array(store, path="a", mode="r+")
                    array[:] = number
                commits.append(repo.branches[name])
        except (KeyboardInterrupt, Terminated):
            pass
        values = zarr.open_array(repo.store(name), path="a", mode="r")[:]
        assert len(set(values.tolist())) == 1, "half of a transaction"
        # One that was made may not have been told.
        assert int(values[0]) in (len(commits) - 1, len(commits))
        with repo.transaction(name, "after") as store:
            zarr.open_array(store, path="a", mode="r+")[:] = -1
        commits.append(repo.branches[name])
    return commits


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_arrays_are_committed(repo, path, number):
    with repo.transaction("main", "array") as store:
        zarr.create_array(store, name="a", shape=40, chunks=4, dtype="i8")
    for turn in range(20 if TORTURE else 2):
        name = f"branch{number}-{turn}"
        repo.branches.create(name)
        other = Other(commit_for_ever, str(path), name)
        other.receive()
        until(lambda name=name, turn=turn: len(repo.reflog(name)) > 3 + turn)
        other.signal(number)
        commits = other.result()
        assert repo.branches[name] == commits[-1]
        assert {commit.id for commit in repo.log(name)} >= set(commits)


def test_a_thread_is_not_interrupted(repo):
    """Python handles signals in its main thread: others commit what they were about to."""
    begun, done = threading.Event(), threading.Event()

    def commit() -> None:
        with repo.transaction("main", "beside") as store:
            zarr.create_array(store, name="a", data=np.arange(100), chunks=(1,))
            begun.set()
        done.set()

    thread = threading.Thread(target=commit)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        assert begun.wait(30)
        signal.raise_signal(signal.SIGINT)
    assert done.wait(30)
    thread.join()
    assert repo.log("main")[0].message == "beside"


def test_the_interrupter_interrupts(repo):
    """The moments are there, each comes once, and nothing is left of the profiler."""
    for number in (1, 5, 9):
        interrupter = Interrupter(number)
        with pytest.raises(KeyboardInterrupt), interrupter():
            repo.log()
        assert interrupter.moments == number
        assert sys.getprofile() is None
    assert Path(interrupter.where.split(":")[0]).suffix == ".py"
