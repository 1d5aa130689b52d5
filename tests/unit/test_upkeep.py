"""Upkeep through the repository: what sessions, autocommit and rebase owe to ``gc``."""

from __future__ import annotations

import gc as collector
from dataclasses import replace

import pytest

import vzarr
from tests.unit.test_garbage import forget_all, make_garbage, staged
from tests.unit.test_session import GROUP, array, commit
from vzarr.errors import ReadOnlyError, SessionStateError
from vzarr.format import encode_lease, session_key


def test_gc_and_expire(repo):
    make_garbage(repo)
    assert repo.gc(dry_run=True).commits == 11
    assert repo.gc().commits == 11
    assert repo.gc().commits == 0
    assert repo.expire(keep_last=1, dry_run=True).entries == repo.expire(keep_last=1).entries


def test_a_reader_may_only_look(repo):
    make_garbage(repo)
    with vzarr.open(repo.path, "r") as reader:
        assert reader.gc(dry_run=True).commits == 11
        with pytest.raises(ReadOnlyError):
            reader.gc()
        with pytest.raises(ReadOnlyError):
            reader.expire(keep_last=1)


def test_autocommit_leaves_one_move_and_garbage_that_is_taken(repo):
    store = repo.store("main", autocommit=True)
    before = len(repo.reflog("main"))
    for number in range(20):
        store.session.set("f", b"%d" % number)
        store.session.autocommit("write", each=False)
    assert len(repo.reflog("main")) == before + 1
    assert repo.reflog("main")[0].operation == "autocommit: write"
    assert repo.gc().commits == 19
    for number in range(3):
        store.session.set("f", b"e%d" % number)
        store.session.autocommit("write", each=True)
    assert len(repo.reflog("main")) == before + 4
    repo.branches.reset("main", repo.reflog("main")[-2].old)
    assert repo.store("main").session.get("f") is None


def test_what_a_session_moved_outlives_the_base_that_it_was_rebased_from(repo):
    files = {"zarr.json": GROUP, "a/zarr.json": array(), "a/c/0": b"zero"}
    commit(repo.session("main"), "first", **files)
    session = repo.session("main")
    session.move("a", "b")
    other = repo.session("main")
    other.delete_below("a")
    other.amend()
    other.close()
    session.rebase("ours")
    forget_all(repo)
    collector.collect()
    repo.gc()
    session.commit("moved")
    assert repo.store("main").session.get("b/c/0") == b"zero"


def test_a_session_that_was_taken_for_dead_cannot_commit_what_is_gone(repo):
    session = staged(repo, one=b"1")
    with repo._environment.write() as txn:
        record = replace(session._lease.record, token=1)
        txn.put("sessions", session_key(session._lease.id, 0), encode_lease(record))
    assert repo.gc().chunks == 1
    with pytest.raises(SessionStateError, match="collected as garbage"):
        session.commit("lost")
    session.set("two", b"2")
    with pytest.raises(SessionStateError, match="collected as garbage"):
        session.checkpoint()
    session.discard()
    session.set("two", b"2")
    session.commit("two")
    assert repo.store("main").session.get("two") == b"2"
