"""A clock that goes backwards, and pids that come again."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import vzarr
from tests.processes import Child
from vzarr import leases

DAY = 86_400.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Set the clock so many seconds off."""
    real, real_ns = time.time, time.time_ns

    def set_off(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: real() + seconds)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(seconds * 1e9))

    return set_off


def commit(repo: vzarr.Repository, value: bytes) -> str:
    with repo.transaction("main", value.decode()) as store:
        store.session.set("a", value)
    return repo.branches["main"]


def test_commits_keep_their_order_when_the_clock_goes_back(repo, clock) -> None:
    commits = [commit(repo, b"one")]
    clock(-DAY)
    commits.append(commit(repo, b"two"))
    clock(-2 * DAY)
    commits.append(commit(repo, b"three"))
    log = repo.log()
    assert [entry.id for entry in log][:3] == commits[::-1]
    assert [entry.new for entry in repo.reflog("main")][:3] == commits[::-1]
    # A merge base, an ancestor and the head do not go by the clock.
    repo.branches.create("side", at=commits[1])
    assert repo.merge("side") == commits[2]
    assert repo.check("full").ok


def test_the_state_at_a_time_is_the_last_one_before_it(repo, clock) -> None:
    clock(-2 * DAY)
    commit(repo, b"one")
    clock(0)
    commit(repo, b"two")
    then = datetime.now(UTC) - timedelta(days=1)
    assert bytes(repo.session("main", at=then).get("a")) == b"one"


def test_gc_takes_nothing_that_is_new_by_a_clock_that_went_wrong(repo, clock) -> None:
    clock(+400 * DAY)
    session = repo.session("main")
    session.set("a", b"saved")
    name = session.checkpoint()
    session.close()
    clock(0)
    repo.gc()
    assert name in [each.id for each in repo.sessions()]
    session = repo.resume(name)
    assert bytes(session.get("a")) == b"saved"
    session.commit("resumed")
    session.close()


def test_expire_keeps_the_heads_whatever_the_clock_says(repo, clock) -> None:
    commits = [commit(repo, b"one"), commit(repo, b"two")]
    clock(+1000 * DAY)
    repo.expire(older_than=timedelta(days=1))
    repo.gc()
    assert [entry.id for entry in repo.log()][:2] == commits[::-1]


def test_a_pid_that_comes_again_is_not_the_dead_process(path: Path) -> None:
    """The lease of a dead process says the pid of one that lives: it is dead all the same."""
    with vzarr.open(path) as repo:

        def work(_) -> str:
            with vzarr.open(path) as theirs:
                session = theirs.session("main")
                session.set("a", b"1")
                name = session.checkpoint()
                # It dies with its session open.
                os.write(write, name.encode())
                os._exit(0)

        read, write = os.pipe()
        child = Child(work)
        name = os.read(read, 200).decode()
        child.reap()
        with repo._environment.write() as txn:
            record = leases.find(txn, bytes.fromhex(name))
            started = leases.process_started(os.getpid())
            ours = replace(record, pid=os.getpid(), process_started=started)
            leases.Lease(repo._environment, bytes.fromhex(name), ours).put(txn)
        [found] = [each for each in repo.sessions() if each.id == name]
        assert found.owner.pid == os.getpid()
        assert found.alive is False
        repo.resume(name).commit("resumed")
