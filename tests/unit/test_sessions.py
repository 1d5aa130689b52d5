"""Sessions of one process: checkpoints, what is listed, going on with one that ended, rebase."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import threads
from vzarr import leases
from vzarr.environment import Environment
from vzarr.errors import (
    BusyError,
    CommitNotFoundError,
    ConflictError,
    FullError,
    InvalidInputError,
    ReadOnlyError,
    RefNotFoundError,
    SessionNotFoundError,
    SessionStateError,
)
from vzarr.format import Digest
from vzarr.leases import SessionInfo
from vzarr.session import Session
from vzarr.workspace import Unwritten


@pytest.fixture
def filled(repo: vzarr.Repository) -> vzarr.Repository:
    """A repository with an array of three chunks, a group with attributes, and a file."""
    with repo.transaction("main", "fill") as store:
        group = zarr.create_group(store, path="ocean", attributes={"units": "K"})
        group.create_array("sst", shape=(30,), chunks=(10,), dtype="i4")[:] = np.arange(30)
        group.create_array("old", shape=(10,), chunks=(10,), dtype="i4")[:] = 1
        zarr.create_array(store, name="log", shape=(0,), chunks=(1,), dtype="i4")
        store.session.set("file", b"0")
    return repo


def edit(session: Session) -> None:
    """Change an array, attributes and files; delete, move and create."""
    zarr.open_array(session.store, path="ocean/sst")[5:15] = -1
    zarr.open_group(session.store, path="ocean").attrs["units"] = "C"
    session.move("ocean/old", "ocean/new")
    session.delete("file")
    zarr.create_array(session.store, name="made", shape=(4,), chunks=(2,), dtype="f8")[:] = 1.5


def content(session: Session) -> dict[str, bytes]:
    return {key: bytes(session.get(key) or b"") for key in session.keys()}  # noqa: SIM118


def put(session: Session, message: str = "change", **files: bytes) -> str:
    for key, data in files.items():
        session.set(key, data)
    return session.commit(message)


def find(repo: vzarr.Repository, session_id: str) -> SessionInfo:
    (found,) = [each for each in repo.sessions() if each.id == session_id]
    return found


def in_file(repo: vzarr.Repository) -> int:
    """Count the records of sessions."""
    with repo._environment.read() as txn:
        return txn.count("sessions")


# ── checkpoint and resume ────────────────────────────────────────────────────────────────────────


def test_a_checkpoint_outlives_its_session(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    edit(session)
    expected, root = content(session), session.root_id()
    assert session.checkpoint() == session.id
    session.set("file", b"lost")
    session.close()
    found = find(filled, session.id)
    assert (found.alive, found.kind, found.branch) == (False, "session", "main")
    assert found.base == filled.branches["main"]
    assert found.checkpointed is not None
    assert timedelta(0) <= datetime.now(UTC) - found.checkpointed < timedelta(minutes=1)
    assert found.nbytes > 0
    resumed = filled.resume(session.id)
    assert (resumed.id, resumed.base, resumed.branch) == (session.id, found.base, "main")
    assert resumed.root_id() == root
    assert content(resumed) == expected
    assert find(filled, session.id).alive is True
    commit = resumed.commit("go on")
    assert filled.root_id(commit) == root
    assert in_file(filled) == 0
    assert [each.id for each in filled.sessions()] == [session.id]
    resumed.close()
    assert filled.sessions() == []


def test_a_session_that_nobody_refers_to_can_be_resumed(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    session_id = session.checkpoint()
    del session
    gc.collect()
    assert find(filled, session_id).alive is False
    assert filled.resume(session_id).get("file") == b"1"


def test_a_checkpoint_is_as_of_its_call(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    roots = []
    for number in range(3):
        session.set("file", b"%d" % number)
        session.set(f"file-{number}", b"1")
        roots.append(session.root_id())
        session.checkpoint()
    session.set("file", b"lost")
    session.close()
    resumed = filled.resume(session.id)
    assert resumed.root_id() == roots[-1]
    # It keeps its checkpoint until it commits.
    resumed.set("file", b"lost too")
    resumed.close()
    again = filled.resume(session.id)
    assert again.root_id() == roots[-1]
    again.set("file", b"4")
    again.checkpoint()
    again.close()
    assert filled.resume(session.id).get("file") == b"4"


def test_a_checkpoint_survives_batches_that_come_after_it(
    filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the ones under way when the session ends."""
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    session = filled.session("main")
    session.set("file", b"saved")
    session.checkpoint()
    root = session.root_id()
    inside, go_on = threading.Event(), threading.Event()
    put = leases.Lease.put

    def slowly(lease: leases.Lease, *arguments: Any, **changes: Any) -> Any:
        if threading.current_thread().name.startswith("vzarr-stage"):
            inside.set()
            assert go_on.wait(30)
        return put(lease, *arguments, **changes)

    monkeypatch.setattr(leases.Lease, "put", slowly)
    session.set("file", b"lost")

    def close() -> None:
        assert inside.wait(30)
        closing.set()
        session.close()

    closing = threading.Event()
    with threads(close):
        assert closing.wait(30)
        go_on.set()
    assert find(filled, session.id).checkpointed is not None
    resumed = filled.resume(session.id)
    assert resumed.root_id() == root
    resumed.discard()
    assert in_file(filled) == 0


def test_a_checkpoint_of_nothing(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.checkpoint()
    session.close()
    resumed = filled.resume(session.id)
    assert not resumed.has_changes
    with pytest.raises(SessionStateError, match="nothing to commit"):
        resumed.commit("nothing")
    resumed.set("file", b"1")
    resumed.commit("something")
    assert in_file(filled) == 0


@pytest.mark.parametrize(
    "end",
    [
        Session.discard,
        lambda session: session.commit("kept"),
        lambda session: session.amend("kept"),
        lambda session: session.commit("kept", merge="ours"),
    ],
)
def test_a_checkpoint_goes_with_a_commit_or_discard(
    filled: vzarr.Repository, end: Callable[[Session], object]
) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    session.checkpoint()
    assert in_file(filled) > 0
    end(session)
    assert in_file(filled) == 0
    session.close()
    assert filled.sessions() == []
    with pytest.raises(SessionNotFoundError):
        filled.resume(session.id)


def test_a_checkpoint_of_what_another_committed_goes_too(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    session.checkpoint()
    head = put(filled.session("main"), file=b"1")
    assert session.commit("the same") == head
    assert in_file(filled) == 0


def test_discard_goes_back_behind_a_resumed_checkpoint(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    session.checkpoint()
    session.close()
    resumed = filled.resume(session.id)
    resumed.discard()
    assert resumed.get("file") == b"0"
    assert not resumed.has_changes
    assert in_file(filled) == 0


def test_a_checkpoint_with_durability_normal(path: Path) -> None:
    with vzarr.open(path, durability="normal") as repo:
        session = repo.session("main")
        session.set("file", b"1")
        session.checkpoint()
        session.close()
        assert repo.resume(session.id).get("file") == b"1"


def test_a_durable_checkpoint_is_flushed(
    repo: vzarr.Repository, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    monkeypatch.setattr(Environment, "sync", lambda self: flushed.append(self.path))
    session = repo.session("main")
    session.set("file", b"1")
    session.checkpoint()
    assert flushed == [str(path)]


def test_threads_write_while_checkpoints_are_made(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    done = threading.Event()
    seen: list[dict[str, bytes]] = []

    def write() -> None:
        try:
            for number in range(400):
                session.set(f"first/{number}", b"%d" % number)
                session.set(f"second/{number}", b"%d" % number)
        finally:
            done.set()

    def save() -> None:
        while not done.is_set():
            session.checkpoint()
            base = find(filled, session.id)
            assert base.checkpointed is not None
            seen.append(content(session))

    with threads(write, save):
        pass
    expected = content(session)
    session.checkpoint()
    session.close()
    resumed = filled.resume(session.id)
    assert content(resumed) == expected
    assert len([key for key in expected if key.startswith("first/")]) == 400
    # Writes of one thread are seen in their order.
    for state in seen:
        firsts, seconds = ({key for key in state if key.startswith(part)} for part in ("fi", "se"))
        assert 0 <= len(firsts) - len(seconds) <= 1


def test_who_has_no_checkpoints(filled: vzarr.Repository, path: Path) -> None:
    session = filled.session("main", isolation="serializable")
    with pytest.raises(SessionStateError, match="serializable session cannot be saved"):
        session.checkpoint()
    with pytest.raises(ReadOnlyError):
        filled.session(filled.branches["main"]).checkpoint()
    session = filled.session("main")
    session.close()
    with pytest.raises(SessionStateError, match="ended"):
        session.checkpoint()
    with vzarr.open(path, "r") as reading:
        with pytest.raises(ReadOnlyError):
            reading.session("main").checkpoint()
        with pytest.raises(ReadOnlyError, match="mode 'r'"):
            reading.resume(session.id)


def test_a_checkpoint_and_autocommit(filled: vzarr.Repository) -> None:
    store = filled.store("main", autocommit=True)
    session = store.session
    group = zarr.open_group(store, path="ocean")
    group.attrs["one"] = 1
    # All is committed already, so that there is nothing to save.
    session.checkpoint()
    assert find(filled, session.id).checkpointed is not None
    group.attrs["two"] = 2
    assert in_file(filled) == 0
    assert dict(zarr.open_group(filled.store("main"), path="ocean", mode="r").attrs) == {
        "units": "K",
        "one": 1,
        "two": 2,
    }


def test_a_checkpoint_that_fails_leaves_the_one_before(
    filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    session.checkpoint()
    session.set("file", b"2")

    def fail(*_: object) -> None:
        raise FullError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Unwritten, "write", fail)
        with pytest.raises(FullError):
            session.checkpoint()
    assert session.get("file") == b"2"
    session.close()
    resumed = filled.resume(session.id)
    assert resumed.get("file") == b"1"
    resumed.discard()


# ── what cannot be resumed ───────────────────────────────────────────────────────────────────────


def test_a_session_in_use_is_named(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    session.checkpoint()
    with pytest.raises(BusyError, match="in use") as caught:
        filled.resume(session.id)
    holder = caught.value.holder
    assert holder is not None
    assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())
    assert holder.since is not None
    session.close()
    resumed = filled.resume(session.id)
    with pytest.raises(BusyError, match=f"session {session.id[:8]} is in use"):
        filled.resume(session.id)
    # The end of the one that was closed before is not the end of this one.
    session.close()
    del session
    gc.collect()
    with pytest.raises(BusyError):
        filled.resume(resumed.id)
    assert find(filled, resumed.id).alive is True
    resumed.commit("one of both")


def test_an_old_copy_does_nothing_to_the_session_that_goes_on(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    session.checkpoint()
    session.close()
    resumed = filled.resume(session.id)
    session.discard()
    session.close()
    assert find(filled, resumed.id).alive is True
    for write in (
        lambda: session.set("file", b"2"),
        lambda: session.commit("late"),
        lambda: session.checkpoint(),
        lambda: session.rebase(),
        lambda: session.fork(),
    ):
        with pytest.raises(SessionStateError, match="ended"):
            write()
    # Its store goes with the session that has this id now.
    assert resumed.get("file") == b"1"
    resumed.commit("go on")
    assert filled.session("main").get("file") == b"1"


def test_an_id_that_is_none(filled: vzarr.Repository) -> None:
    for session_id in ("", "abc", None, 5, b"abcd"):
        with pytest.raises(InvalidInputError, match="32 hexadecimal digits"):
            filled.resume(session_id)  # type: ignore[arg-type]
    for session_id in ("abcd", "0" * 32, "not hexadecimal", "0" * 33):
        with pytest.raises(SessionNotFoundError, match="no session") as caught:
            filled.resume(session_id)
        assert caught.value.name == session_id
        assert isinstance(caught.value, KeyError)
    # A session that has nothing in the file is none, either.
    with pytest.raises(SessionNotFoundError):
        filled.resume(filled.session("main").id)


def test_the_beginning_of_an_id_will_do(
    filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter([bytes.fromhex("abcd" + digit * 28) for digit in "01"])

    class Fixed:
        @property
        def bytes(self) -> bytes:
            return next(ids)

    monkeypatch.setattr(leases.uuid, "uuid4", Fixed)
    sessions = [filled.session("main") for _ in range(2)]
    for number, session in enumerate(sessions):
        session.set("file", b"file of %d" % number)
        session.checkpoint()
        session.close()
    with pytest.raises(InvalidInputError, match="several sessions begin with 'abcd'"):
        filled.resume("abcd")
    assert filled.resume("abcd1").get("file") == b"file of 1"
    assert filled.resume("abcd0").get("file") == b"file of 0"


def test_a_session_that_saved_nothing(
    filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    session = filled.session("main")
    session.set("file", b"1")
    session._work.changes.drain()
    session_id = session.id
    del session
    gc.collect()
    assert find(filled, session_id).alive is False
    with pytest.raises(SessionStateError, match="saved nothing"):
        filled.resume(session_id)


def test_a_fork_is_resumed_with_its_session(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    fork = session.fork()
    fork.set("forked", b"1")
    session.checkpoint()
    with pytest.raises(InvalidInputError, match=f"is a fork.*{session.id}"):
        # As if its session had died.
        session._lease.close()
        filled.resume(fork.id)
    session_id = session.id
    del session
    gc.collect()
    assert find(filled, fork.id).alive is False
    resumed = filled.resume(session_id)
    assert find(filled, fork.id).alive is True
    fork.set("again", b"1")
    resumed.merge_fork()
    resumed.commit("all")
    found = filled.session("main")
    assert [found.get(key) for key in ("file", "forked", "again")] == [b"1"] * 3
    assert in_file(filled) == 0


def test_a_base_that_is_gone(filled: vzarr.Repository) -> None:
    filled.branches.create("dev")
    put(filled.session("dev"), file=b"1")
    session = filled.session("dev")
    session.set("other", b"1")
    session.checkpoint()
    session.close()
    base = Digest(bytes.fromhex(session.base))
    with filled._environment.write() as txn:
        record = txn.get("commits", base)
        assert record is not None
        txn.delete("commits", base)
    with pytest.raises(CommitNotFoundError):
        filled.resume(session.id)
    # What cannot be resumed is as dead as it was.
    assert find(filled, session.id).alive is False
    with filled._environment.write() as txn:
        txn.put("commits", base, record)
    filled.resume(session.id).commit("here it is again")


# ── a branch that moved ──────────────────────────────────────────────────────────────────────────


def test_a_resumed_session_is_rebased_when_it_commits(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    edit(session)
    session.checkpoint()
    session.close()
    base = session.base
    head = put(filled.session("main"), other=b"theirs")
    resumed = filled.resume(session.id)
    assert resumed.base == base
    assert resumed.get("other") is None
    commit = resumed.commit("ours")
    assert filled.show(commit).parents == (head,)
    assert resumed.get("other") == b"theirs"
    assert zarr.open_array(resumed.store, path="ocean/sst")[5] == -1
    assert in_file(filled) == 0


def test_a_resumed_session_that_conflicts(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"ours")
    session.checkpoint()
    session.close()
    head = put(filled.session("main"), file=b"theirs")
    resumed = filled.resume(session.id)
    with pytest.raises(ConflictError):
        resumed.commit("ours")
    assert resumed.rebase("ours") == head
    resumed.commit("ours after all")
    assert filled.session("main").get("file") == b"ours"


@pytest.mark.parametrize("value", [7, 0])
def test_a_resumed_append_is_still_an_append(filled: vzarr.Repository, value: int) -> None:
    """Two that append equal rows conflict, though neither changed what the other changed."""

    def append(session: Session) -> None:
        zarr.open_array(session.store, path="log").append(np.array([value]))

    session = filled.session("main")
    append(session)
    session.checkpoint()
    session.close()
    other = filled.session("main")
    append(other)
    other.commit("theirs")
    resumed = filled.resume(session.id)
    with pytest.raises(ConflictError, match="axis 0"):
        resumed.commit("ours")


def test_a_branch_that_is_gone(filled: vzarr.Repository) -> None:
    filled.branches.create("dev")
    session = filled.session("dev")
    session.set("file", b"1")
    session.checkpoint()
    session.close()
    filled.branches.delete("dev")
    resumed = filled.resume(session.id)
    assert resumed.get("file") == b"1"
    with pytest.raises(RefNotFoundError):
        resumed.commit("nowhere to go")
    with pytest.raises(RefNotFoundError):
        resumed.rebase()
    filled.branches.create("dev", at=resumed.base)
    resumed.commit("there it is")
    assert filled.session("dev").get("file") == b"1"


# ── rebase ───────────────────────────────────────────────────────────────────────────────────────


def conflicting(repo: vzarr.Repository) -> tuple[Session, str]:
    """Give a session that lost, and the head of the winner."""
    session = repo.session("main")
    session.set("file", b"ours")
    session.set("mine", b"1")
    head = put(repo.session("main"), file=b"theirs", other=b"1")
    with pytest.raises(ConflictError) as caught:
        session.commit("ours")
    assert [conflict.path for conflict in caught.value.conflicts] == ["file"]
    return session, head


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ours", b"ours"),
        ("theirs", b"theirs"),
        (lambda conflict: conflict.ours + b" and " + conflict.theirs, b"ours and theirs"),
    ],
)
def test_the_loser_rebases_and_commits(
    filled: vzarr.Repository, strategy: Any, expected: bytes
) -> None:
    session, head = conflicting(filled)
    assert session.rebase(strategy) == head
    assert session.base == head
    # It can be looked at before it is committed.
    assert (session.get("file"), session.get("other"), session.get("mine")) == (
        expected,
        b"1",
        b"1",
    )
    changed = {"mine", "file"} if strategy != "theirs" else {"mine"}
    assert {change.path for change in session.status().diff} == changed
    assert filled.branches["main"] == head
    commit = session.commit("resolved")
    assert filled.show(commit).parents == (head,)
    assert filled.session("main").get("file") == expected


def test_a_rebase_that_conflicts_changes_nothing(filled: vzarr.Repository) -> None:
    session, _ = conflicting(filled)
    base, root = session.base, session.root_id()
    with pytest.raises(ConflictError):
        session.rebase()
    with pytest.raises(InvalidInputError, match="strategy="):
        session.rebase("mine")  # type: ignore[arg-type]
    assert (session.base, session.root_id()) == (base, root)
    session.rebase("theirs")


def test_a_rebase_at_the_head_is_nothing(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    root = session.root_id()
    assert session.rebase() == filled.branches["main"]
    assert session.root_id() == root


def test_a_rebase_on_what_is_the_same(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    edit(session)
    other = filled.session("main")
    edit(other)
    head = other.commit("first")
    assert session.rebase() == head
    assert not session.has_changes
    assert not session.status()
    with pytest.raises(SessionStateError, match="nothing to commit"):
        session.commit("nothing")


def test_a_rebase_without_edits_shows_the_head(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    put(filled.session("main"), file=b"1")
    session.rebase()
    assert session.get("file") == b"1"
    assert not session.has_changes


def test_a_rebase_again_and_again(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    edit(session)
    for number in range(3):
        put(filled.session("main"), **{f"file-{number}": b"1"})
        session.rebase()
    assert session.commit("once").endswith(filled.branches["main"])
    assert [filled.session("main").get(f"file-{number}") for number in range(3)] == [b"1"] * 3


def test_a_rebase_takes_the_checkpoint_along(filled: vzarr.Repository) -> None:
    session, head = conflicting(filled)
    session.checkpoint()
    session.rebase("ours")
    root = session.root_id()
    assert find(filled, session.id).base == head
    session.close()
    resumed = filled.resume(session.id)
    assert (resumed.base, resumed.root_id()) == (head, root)
    resumed.commit("resolved")
    found = filled.session("main")
    assert (found.get("file"), found.get("other"), found.get("mine")) == (b"ours", b"1", b"1")


def test_a_rebase_whose_checkpoint_fails(
    filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the file is of one base or of the other; a mixture would undo what others did."""
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    session, head = conflicting(filled)
    session.checkpoint()
    base, root = session.base, session.root_id()

    def fail(*_: object) -> None:
        raise FullError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(Unwritten, "write", fail)
        with pytest.raises(FullError):
            session.rebase("ours")
    assert session.base == head
    session.set("more", b"1")
    session._work.changes.drain()
    session.close()
    resumed = filled.resume(session.id)
    assert (resumed.base, resumed.root_id()) == (base, root)
    resumed.commit("resolved", merge="ours")
    assert filled.session("main").get("other") == b"1"


def test_a_rebase_with_batches_in_the_file(
    filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    session, head = conflicting(filled)
    session.rebase("ours")
    assert find(filled, session.id).base == head
    session.commit("resolved")
    assert in_file(filled) == 0


def test_who_cannot_rebase(filled: vzarr.Repository) -> None:
    with pytest.raises(ReadOnlyError):
        filled.session(filled.branches["main"]).rebase()
    session = filled.session("main")
    session.close()
    with pytest.raises(SessionStateError, match="ended"):
        session.rebase()
    filled.branches.create("dev")
    session = filled.session("dev")
    session.set("file", b"1")
    filled.branches.delete("dev")
    with pytest.raises(RefNotFoundError):
        session.rebase()
    assert session.get("file") == b"1"


def test_a_serializable_session_whose_reads_are_stale(filled: vzarr.Repository) -> None:
    session = filled.session("main", isolation="serializable")
    assert session.get("file") == b"0"
    session.set("mine", b"1")
    put(filled.session("main"), file=b"theirs")
    for strategy in ("fail", "ours", "theirs"):
        with pytest.raises(ConflictError):
            session.rebase(strategy)  # type: ignore[arg-type]
    put(filled.session("main"), file=b"0")
    session.rebase()
    session.commit("nothing that it read is different")


# ── what is listed ───────────────────────────────────────────────────────────────────────────────


def test_own_sessions_are_listed(filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    head = filled.branches["main"]
    assert filled.sessions() == []
    reader = filled.session(head)
    idle = filled.session("main")
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1 << 20)
    editing = filled.session("main")
    editing.set("file", b"1")
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    staging = filled.session("main")
    staging.set("file", b"12345")
    staging._work.changes.drain()
    found = {each.id: each for each in filled.sessions()}
    assert len(found) == 4
    for session, kind, branch, nbytes in (
        (reader, "reader", None, 0),
        (idle, "session", "main", 0),
        (editing, "session", "main", 0),
        (staging, "session", "main", 5),
    ):
        each = found[session.id]
        assert (each.kind, each.branch, each.base, each.nbytes) == (kind, branch, head, nbytes)
        assert each.alive is True
        assert each.owner.pid == os.getpid()
        assert each.created is not None
        assert each.owner.since == each.created <= datetime.now(UTC)
        assert (each.parent, each.checkpointed) == (None, None)
        assert session.info == each
        assert each.id[:8] in str(each)
    for session in (reader, idle, editing):
        session.close()
    assert [each.id for each in filled.sessions()] == [staging.id]
    staging.discard()
    assert [each.id for each in filled.sessions()] == [staging.id]
    assert in_file(filled) == 0
    del staging
    gc.collect()
    assert filled.sessions() == []


def test_a_reader_goes_with_its_last_reference(filled: vzarr.Repository) -> None:
    store = filled.store("main")
    array = zarr.open_array(store, path="ocean/sst")
    del store
    (found,) = filled.sessions()
    assert (found.kind, found.base) == ("reader", filled.branches["main"])
    assert array[3] == 3
    del array
    gc.collect()
    assert filled.sessions() == []


def test_forks_are_listed_with_their_session(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    session.set("file", b"1")
    forks = [session.fork() for _ in range(2)]
    forks[0].set("forked", b"123")
    found = {each.id: each for each in filled.sessions()}
    assert set(found) == {session.id, *(fork.id for fork in forks)}
    assert found[session.id].kind == "session"
    for fork, nbytes in zip(forks, (3, 0), strict=True):
        each = found[fork.id]
        assert (each.kind, each.parent, each.alive) == ("fork", session.id, True)
        assert (each.branch, each.base, each.nbytes) == ("main", session.base, nbytes)
    session.merge_fork()
    session.commit("with them")
    assert [each.id for each in filled.sessions()] == [session.id]


def test_a_session_is_listed_where_it_is_now(filled: vzarr.Repository) -> None:
    session = filled.session("main")
    commit = put(session, file=b"1")
    assert find(filled, session.id).base == commit
    head = put(filled.session("main"), file=b"2")
    session.rebase()
    assert find(filled, session.id).base == head


def test_a_closed_repository_lists_nothing(filled: vzarr.Repository) -> None:
    filled.close()
    with pytest.raises(SessionStateError, match="closed"):
        filled.sessions()
    with pytest.raises(SessionStateError, match="closed"):
        filled.resume("abcd")


def test_the_end_of_a_session_after_its_repository(path: Path) -> None:
    """What it saved is there for whoever opens the file again."""
    with vzarr.open(path) as repo:
        session, other = repo.session("main"), repo.session("main")
        session.set("file", b"1")
        session.checkpoint()
        other.set("file", b"2")
        other._work.changes.flush()
    session.close()
    other.close()
    with vzarr.open(path) as repo:
        assert {found.alive for found in repo.sessions()} == {False}
        assert repo.resume(session.id).get("file") == b"1"


def test_sessions_of_other_files_are_not_ours(repo: vzarr.Repository, tmp_path: Path) -> None:
    with vzarr.open(tmp_path / "other.vzarr") as other:
        session = other.session("main")
        session.set("file", b"1")
        session.checkpoint()
        assert repo.sessions() == []
        assert len(other.sessions()) == 1
        with pytest.raises(SessionNotFoundError):
            repo.resume(session.id)


# ── waiting for others ───────────────────────────────────────────────────────────────────────────


def test_a_commit_waits_no_longer_than_its_timeout(filled: vzarr.Repository) -> None:
    """For the one who writes the file now; the edits are kept."""
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        threading.current_thread().name = "holder"
        with filled._environment.write():
            inside.set()
            assert go_on.wait(30)

    with threads(hold):
        assert inside.wait(30)
        with (
            pytest.raises(BusyError, match=r"waited 0\.05 seconds") as caught,
            filled.transaction("main", "late", timeout=0.05) as store,
        ):
            store.session.set("file", b"late")
        assert caught.value.holder is not None
        assert caught.value.holder.pid == os.getpid()
        assert "holder" in caught.value.holder.command
        with pytest.raises(BusyError):
            filled.run(lambda store: store.session.set("file", b"late"), timeout=0)
        # To read and to begin takes no lock.
        session = filled.session("main")
        assert session.get("file") == b"0"
        go_on.set()
    assert session.get("file") == b"0"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_block_that_fails_says_why_though_the_file_is_busy(
    filled: vzarr.Repository, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """What it staged cannot be deleted then, and is garbage."""
    monkeypatch.setattr("vzarr.changes.BATCH_BYTES", 1)
    before = filled.branches["main"]
    inside, go_on, fail = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        assert fail.wait(30)
        with filled._environment.write():
            inside.set()
            assert go_on.wait(30)

    with threads(hold):
        with pytest.raises(error), filled.transaction("main", "fails", timeout=0.05) as store:
            store.session.set("file", b"1")
            store.session._work.changes.drain()
            fail.set()
            assert inside.wait(30)
            raise error
        go_on.set()
    assert filled.branches["main"] == before
    (left,) = filled.sessions()
    assert (left.alive, left.checkpointed, left.nbytes) == (False, None, 1)


def test_run_goes_on_after_any_number_of_conflicts(
    repo: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time between two attempts is random, and bounded."""
    pauses: list[float] = []
    monkeypatch.setattr("vzarr.repository.time.sleep", pauses.append)
    attempts = 0

    def fail(store: Any) -> None:
        nonlocal attempts
        attempts += 1
        if attempts <= 1500:
            raise ConflictError("again")

    repo.run(fail, retries=2000)
    assert len(pauses) == 1500
    assert max(pauses) <= 0.25
    assert len(set(pauses)) > 1000
    # At first as long as a commit takes.
    assert pauses[0] <= 0.004
    assert sum(pauses[-100:]) > 5
