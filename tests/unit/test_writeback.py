"""The disk is asked to begin early on what a large commit writes."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

import vzarr
from vzarr import writeback
from vzarr.writeback import early_writeback

LARGE = 64 << 20


@pytest.fixture
def calls(monkeypatch):
    """Take the place of the system's call: the descriptors it gets, and an event at the first."""
    descriptors, called = [], threading.Event()

    def begin(descriptor):
        descriptors.append(descriptor)
        called.set()

    monkeypatch.setattr(writeback, "_system_call", lambda: begin)
    return descriptors, called


def test_it_is_asked_for_as_long_as_the_block_runs(calls):
    descriptors, called = calls
    with early_writeback(7, LARGE):
        assert called.wait(60)
        called.clear()
        assert called.wait(60), "once is not enough: the pages come bit by bit"
    assert set(descriptors) == {7}


def test_the_thread_ends_with_the_block_even_if_that_raises(calls, monkeypatch):
    _, called = calls
    ended = threading.Event()
    urge = writeback._urge

    def watched(*arguments):
        urge(*arguments)
        ended.set()

    monkeypatch.setattr(writeback, "_urge", watched)
    with pytest.raises(ValueError, match="of the block"), early_writeback(7, LARGE):
        assert called.wait(60)
        raise ValueError("of the block")
    assert ended.wait(60)


def test_a_lost_thread_ends_by_itself(calls, monkeypatch):
    descriptors, _ = calls
    monkeypatch.setattr(writeback, "_PACE_SECONDS", 0)
    monkeypatch.setattr(writeback, "_MOST_CALLS", 10)
    held = threading.Lock()
    with held:
        writeback._urge(writeback._system_call(), 7, held)
    assert len(descriptors) == 10


def test_it_is_not_worth_a_thread_for_little(calls, monkeypatch):
    monkeypatch.setattr("_thread.start_new_thread", None)
    with early_writeback(7, 1000):
        pass
    assert not calls[0]


def no_thread(*_, **__):
    raise RuntimeError("can't start new thread")


def test_it_does_without_where_no_thread_is_to_be_had(calls, monkeypatch):
    monkeypatch.setattr("_thread.start_new_thread", no_thread)
    with early_writeback(7, LARGE):
        pass
    assert not calls[0]


def test_large_commits_and_copies_need_no_thread(repo, tmp_path, monkeypatch):
    large = [os.urandom(1 << 20) for _ in range(40)]
    monkeypatch.setattr("vzarr.changes._tasks", None)
    monkeypatch.setattr("_thread.start_new_thread", no_thread)
    monkeypatch.setattr("threading._start_new_thread", no_thread, raising=False)
    monkeypatch.setattr("threading._start_joinable_thread", no_thread, raising=False)
    session = repo.session("main")
    for number, data in enumerate(large):
        session.set(f"large/{number}", data)
    session.commit("large")
    repo.backup(tmp_path / "copy.vzarr", verify=None)
    monkeypatch.undo()
    with vzarr.open(tmp_path / "copy.vzarr", mode="r") as copy:
        assert copy.session("main").get("large/7") == large[7]


def test_a_system_without_such_a_call_goes_without(monkeypatch):
    monkeypatch.setattr(writeback, "_system_call", lambda: None)
    with early_writeback(7, LARGE):
        pass


def test_the_call_takes_a_closed_descriptor(tmp_path):
    begin = writeback._system_call()
    if begin is None:
        pytest.skip("this system cannot be asked")
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 10_000)
    assert begin(descriptor) == 0
    os.close(descriptor)
    assert begin(descriptor) == -1


def test_a_commit_says_which_file_it_writes_and_how_much(path, monkeypatch):
    asked = []

    def noted(descriptor, nbytes):
        assert os.path.samestat(os.fstat(descriptor), os.stat(path))
        asked.append(nbytes)
        return early_writeback(descriptor, nbytes)

    with vzarr.open(path) as repo:
        monkeypatch.setattr("vzarr.access.early_writeback", noted)
        session = repo.session("main")
        session.set("small", b"x")
        session.commit("small")
        assert max(asked) < 10_000
        # Of random bytes, so that each is stored.
        for number in range(40):
            session.set(f"large/{number}", os.urandom(1 << 20))
        session.commit("large")
        assert 40 << 20 <= sum(asked) < 41 << 20


def test_the_pages_of_a_large_commit_do_not_stay_mapped(path, monkeypatch):
    def mapped():
        found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) << 10

    if writeback._unmapping() is None:
        pytest.skip("this system cannot be told")
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 8 << 20)
    # The first rows are read while others are written: what is read stays right.
    with vzarr.open(path) as repo:
        session = repo.session("main")
        first = os.urandom(1 << 20)
        session.set("0", first)
        begun = mapped()
        for number in range(1, 300):
            session.set(str(number), os.urandom(1 << 20))
            assert number % 50 or session.get("0") == first
        # Without, it would be 40 MiB, and ever more.
        assert mapped() - begun < 15 << 20
        session.commit("large")
        assert session.get("0") == first


def test_it_is_not_worth_a_look_for_little(monkeypatch):
    monkeypatch.setattr(writeback, "_unmapping", None)
    writeback.unmap_pages(0, 1000)
    with pytest.raises(TypeError):
        writeback.unmap_pages(0, LARGE)
