"""Compaction and other processes: who has the file open is waited for, and nothing is ever lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import pytest

import vzarr
from tests.processes import PATIENCE, Child, Other, threads, until
from tests.support import assert_sound
from tests.unit.test_compaction import fill, history, listing
from tests.unit.test_garbage import write
from vzarr import draft as drafts
from vzarr import duplicate, filelocks
from vzarr.access import Access
from vzarr.draft import Draft, draft_path
from vzarr.errors import BusyError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs open file locks")
TORTURE = "VZARR_TORTURE" in os.environ


@pytest.fixture
def full(repo):
    fill(repo)
    return repo


def hold_open(pipe, path: str, mode: str) -> str:
    with vzarr.open(path, mode) as repo:
        pipe.send("open")
        pipe.recv()
        return repo.branches["main"]


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_process_that_has_it_open_is_named(full, mode):
    other = Other(hold_open, full.path, mode)
    assert other.receive() == "open"
    inode = os.stat(full.path).st_ino
    with pytest.raises(BusyError) as error:
        full.compact(timeout=0.05)
    assert error.value.holder.pid == other.pid
    assert f"process {other.pid}" in str(error.value)
    assert os.stat(full.path).st_ino == inode
    assert listing(full) == ["test.vzarr", "test.vzarr-lock"]
    write(full, b"on")
    other.send()
    assert other.result() == full.branches["main"]
    full.compact(timeout=5)


def test_a_process_that_is_killed_is_in_the_way_no_more(full):
    other = Other(hold_open, full.path, "r+")
    assert other.receive() == "open"
    other.kill()
    full.compact(timeout=5)


def test_a_process_that_closes_it_in_time(full, monkeypatch):
    other = Other(hold_open, full.path, "r+")
    assert other.receive() == "open"
    announce, asked = Access.announce, []

    def count(self) -> bool:
        alone = announce(self)
        asked.append(alone)
        if len(asked) == 2:
            other.send()
        return alone

    monkeypatch.setattr(Access, "announce", count)
    full.compact(gc=False, timeout=PATIENCE)
    assert asked[:2] == [False, False]
    assert asked[-1]
    other.result()


def test_a_child_of_a_fork_is_in_the_way_too(full):
    full.session("main")
    child = Child(lambda pipe: (pipe.send("here"), pipe.recv(), write(full, b"child"))[2])
    assert child.receive() == "here"
    with pytest.raises(BusyError):
        full.compact(timeout=0.05)
    child.pipe.send("go on")
    commit_id = child.result()
    assert full.branches["main"] == commit_id
    full.compact()


def open_and_write(pipe, path: str, count: int) -> list[str]:
    """Open the file again and again, commit, and close it."""
    made = []
    for number in range(count):
        with vzarr.open(path, author="Test") as repo:
            with repo.transaction("main", "on") as store:
                store.session.set(f"{os.getpid()}/{number}", b"%d" % number)
            made.append(repo.branches["main"])
    return made


def open_and_read(pipe, path: str) -> int:
    """Open the file again and again, and look whether a head is whole."""
    looks = 0
    # Once at least, however soon the others are done.
    while not looks or not pipe.poll():
        with vzarr.open(path, "r") as repo:
            assert repo.log("main")[-1].parents == ()
            assert repo.session("main").get("file") is not None
        looks += 1
    return looks


def compact_until(pipe, path: str) -> int:
    done = 0
    while not pipe.poll():
        with vzarr.open(path, author="Test") as repo, contextlib.suppress(BusyError):
            repo.compact(timeout=0.05)
            done += 1
    return done


def test_processes_that_come_and_go_lose_nothing(full):
    """Two write, one reads, one compacts: every commit is there at the end, in one history."""
    path = full.path
    full.close()
    count = 200 if TORTURE else 15
    writers = [Other(open_and_write, path, count) for _ in range(2)]
    helpers = [Other(open_and_read, path), Other(compact_until, path)]
    pids = [writer.pid for writer in writers]
    for writer in writers:
        writer.process.join(10 * PATIENCE)
        writer.result()
    # By now nobody is in the way but the reader.
    helpers[0].send("enough")
    looks = helpers[0].result()
    before = os.stat(path).st_ino
    until(lambda: os.stat(path).st_ino != before)
    helpers[1].send("enough")
    done = helpers[1].result()
    assert looks > 0 < done
    with vzarr.open(path) as repo:
        session = repo.session("main")
        for pid in pids:
            values = [session.get(f"{pid}/{number}") for number in range(count)]
            assert values == [b"%d" % number for number in range(count)]
        log = repo.log("main")
        assert sum(one.message == "on" for one in log) == 2 * count
        assert sorted(os.listdir(os.path.dirname(path))) == ["test.vzarr", "test.vzarr-lock"]


def test_who_opens_it_for_writing_waits_for_the_compaction(full):
    """And is not in its way; who only reads comes in."""
    path, reached, go_on = full.path, threading.Event(), threading.Event()

    def pause(_done: int, _total: int, what: str) -> None:
        reached.set()
        assert go_on.wait(PATIENCE)

    with threads(lambda: full.compact(gc=False, progress=pause)):
        assert reached.wait(PATIENCE)
        try:
            reader = Other(hold_open, path, "r")
            assert reader.receive() == "open"
            reader.send()
            assert reader.result() == full.branches["main"]
            writer = Other(try_to_open, path, 0.05)
            assert writer.result() == os.getpid()
            writer = Other(try_to_open, path, PATIENCE)
            writer.receive()
        finally:
            go_on.set()
    assert writer.result() is None


def try_to_open(pipe, path: str, timeout: float) -> int | None:
    from vzarr.environment import Environment

    if timeout > 1:
        pipe.send("about to")
    try:
        Environment.open(path, writable=True, timeout=timeout).close()
    except BusyError as error:
        return error.holder.pid if "compacted" in str(error) else 0
    return None


def test_a_reader_that_came_meanwhile_is_waited_for(full):
    path, readers = full.path, []

    def come(_done: int, _total: int, what: str) -> None:
        if what == "copy" and not readers:
            readers.append(Other(hold_open, path, "r"))
            assert readers[0].receive() == "open"

    with pytest.raises(BusyError) as error:
        full.compact(gc=False, timeout=0.05, progress=come)
    assert error.value.holder.pid == readers[0].pid
    assert listing(full) == ["test.vzarr", "test.vzarr-lock"]
    readers[0].send()
    readers[0].result()


# ── killed ───────────────────────────────────────────────────────────────────────────────────────


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_after(function):
    def work(*arguments, **options):
        function(*arguments, **options)
        die()

    return work


STEPS = {
    "before the copy": (duplicate.Environment, "copy", die),
    "after the copy": (duplicate.Environment, "copy", die_after(duplicate.Environment.copy)),
    "while it is verified": (duplicate, "check_copy", die),
    "before it is flushed": (os, "fsync", die),
    "before it is renamed": (drafts.os, "replace", die),
    "after it is renamed": (drafts.os, "replace", die_after(os.replace)),
    "before the directory is flushed": (drafts, "sync_directory", die),
    "after it is in place": (Draft, "replace", die_after(Draft.replace)),
    "before the locks move": (drafts.os, "dup2", die),
    "after the locks moved": (drafts.os, "dup2", die_after(os.dup2)),
}


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_there_is_the_old_file_or_the_new_one(full, monkeypatch, step):
    full.gc()
    known, path, inode = history(full), full.path, os.stat(full.path).st_ino
    session = full.session("main")
    session.set("saved", b"1" * 50_000)
    name = session.checkpoint()
    session.close()
    full.close()

    def compact(_) -> None:
        with vzarr.open(path, author="Test") as repo, monkeypatch.context() as patch:
            patch.setattr(*STEPS[step])
            repo.compact(gc=False)
        raise AssertionError("it lives")

    child = Child(compact)
    assert os.waitstatus_to_exitcode(child.reap()) == -signal.SIGKILL
    left = os.path.exists(draft_path(path))
    replaced = os.stat(path).st_ino != inode
    assert left != replaced or step == "before the copy"
    assert replaced == (step in list(STEPS)[5:])
    assert_sound(path)
    with vzarr.open(path, author="Test") as repo:
        assert history(repo) == known
        assert listing(repo) == ["test.vzarr", "test.vzarr-lock"]
        repo.resume(name).commit("what was saved")
        repo.compact()
        write(repo, b"on")


@pytest.mark.skipif(not TORTURE, reason="VZARR_TORTURE=1 runs it")
def test_killed_at_random(full):
    """Three hundred processes that compact without a pause, each killed after another time."""
    path, known = full.path, history(full)
    full.close()
    begun = time.monotonic()
    with vzarr.open(path, author="Test") as repo:
        repo.compact()
    typical = time.monotonic() - begun

    def compact(_) -> None:
        with vzarr.open(path, author="Test") as repo:
            while True:
                repo.compact(gc=False)

    for number in range(300):
        child = Child(compact)
        # Not synchronisation: any moment will do, and each should be another one.
        time.sleep(typical * (number % 97) / 48)
        child.kill()
        with vzarr.open(path, author="Test") as repo:
            assert history(repo) == known
            assert repo.check("full").ok
            assert listing(repo) == ["test.vzarr", "test.vzarr-lock"]


def test_the_lock_of_a_compaction_is_free_after_its_death(full, monkeypatch):
    path = full.path
    full.close()

    def compact(_) -> None:
        with vzarr.open(path, author="Test") as repo, monkeypatch.context() as patch:
            patch.setattr(drafts.os, "replace", die)
            repo.compact()

    child = Child(compact)
    assert os.waitstatus_to_exitcode(child.reap()) == -signal.SIGKILL
    descriptor = os.open(path, os.O_RDWR)
    try:
        assert filelocks.find(descriptor, filelocks.GATE_TURN, 1 << 61) is None
    finally:
        os.close(descriptor)
    with vzarr.open(path, author="Test") as repo:
        repo.compact(timeout=0)
