"""Sessions of other processes: what is told of them, and what is left of those that were killed."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vzarr
from tests.processes import PATIENCE, Child, Other, threads, until
from vzarr import filelocks
from vzarr.environment import Environment
from vzarr.errors import BusyError, ConflictError, SessionNotFoundError
from vzarr.leases import SessionInfo
from vzarr.session import Session

pytestmark = [
    pytest.mark.skipif(not filelocks.SUPPORTED, reason="this system has no such locks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

MIB = 1 << 20


@pytest.fixture
def filled(repo: vzarr.Repository) -> vzarr.Repository:
    """A repository with arrays, attributes and a file; dev is where main was before the file."""
    with repo.transaction("main", "fill") as store:
        group = zarr.create_group(store, path="ocean", attributes={"units": "K"})
        group.create_array("sst", shape=(30,), chunks=(10,), dtype="i4")[:] = np.arange(30)
        group.create_array("old", shape=(10,), chunks=(10,), dtype="i4")[:] = 1
    repo.branches.create("dev")
    with repo.transaction("main", "a file") as store:
        store.session.set("file", b"0")
    return repo


def content(session: Session) -> dict[str, bytes]:
    return {key: bytes(session.get(key) or b"") for key in session.keys()}  # noqa: SIM118


def in_file(repo: vzarr.Repository) -> int:
    """Count the records of sessions."""
    with repo._environment.read() as txn:
        return txn.count("sessions")


def find(repo: vzarr.Repository, session_id: str) -> SessionInfo:
    (found,) = [each for each in repo.sessions() if each.id == session_id]
    return found


def of(repo: vzarr.Repository, pid: int) -> list[SessionInfo]:
    return [each for each in repo.sessions() if each.owner.pid == pid]


# ── what other processes do ──────────────────────────────────────────────────────────────────────


def save(pipe: Connection, path: Path, options: dict[str, Any]) -> None:
    """Change everything, save that, change more, and wait to be killed."""
    with vzarr.open(path, **options) as repo:
        session = repo.session("main")
        zarr.open_array(session.store, path="ocean/sst")[5:15] = -1
        zarr.open_group(session.store, path="ocean").attrs["units"] = "C"
        session.move("ocean/old", "ocean/new")
        session.delete("file")
        zarr.create_array(session.store, name="made", shape=(4,), chunks=(2,), dtype="f8")[:] = 1.5
        session_id = session.checkpoint()
        pipe.send((session_id, session.root_id(), content(session)))
        session.set("file", b"lost")
        session.delete("made/zarr.json")
        zarr.open_array(session.store, path="ocean/sst")[:] = 0
        pipe.send("edited")
        pipe.recv()


def resume(pipe: Connection, path: Path, session_id: str, *, commit: bool = False) -> str:
    with vzarr.open(path) as repo:
        session = repo.resume(session_id)
        pipe.send(session.root_id())
        pipe.recv()
        return session.commit("by another") if commit else ""


def resume_and_commit(pipe: Connection, path: Path, session_id: str) -> str:
    return resume(pipe, path, session_id, commit=True)


def killed(path: Path, **options: Any) -> tuple[Other, str, str, dict[str, bytes]]:
    """Kill a process after its checkpoint."""
    other = Other(save, path, options)
    session_id, root, saved = other.receive()
    assert other.receive() == "edited"
    other.kill()
    return other, session_id, root, saved


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_the_work_of_a_killed_process_goes_on(
    filled: vzarr.Repository, path: Path, durability: str
) -> None:
    base = filled.branches["main"]
    other, session_id, root, expected = killed(path, durability=durability)
    assert filled.branches["main"] == base
    (found,) = filled.sessions()
    assert (found.id, found.kind, found.alive) == (session_id, "session", False)
    assert (found.branch, found.base, found.parent) == ("main", base, None)
    assert (found.owner.pid, found.owner.host) == (other.pid, socket.gethostname())
    command = " ".join([os.path.basename(sys.executable), *sys.argv])
    assert found.owner.command == command[:200]
    assert found.created is not None
    assert found.updated is not None
    assert found.checkpointed is not None
    assert found.created <= found.checkpointed <= found.updated <= datetime.now(UTC)
    assert found.owner.since == found.created
    # Of what was saved, what no commit has yet.
    new = {value for key, value in expected.items() if filled.session("main").get(key) != value}
    assert 0 < found.nbytes <= sum(map(len, new))
    assert f"{session_id}  session on main at {base[:12]}, dead, saved " in str(found)

    session = filled.resume(session_id[:8])
    assert (session.id, session.root_id()) == (session_id, root)
    assert content(session) == expected
    assert zarr.open_array(session.store, path="ocean/sst")[4:7].tolist() == [4, -1, -1]
    assert zarr.open_group(session.store, path="ocean").attrs["units"] == "C"
    assert zarr.open_array(session.store, path="ocean/new")[:].tolist() == [1] * 10
    assert session.get("file") is None
    assert session.get("ocean/old/zarr.json") is None
    assert session.has_changes
    commit = session.commit("go on")
    assert filled.root_id(commit) == root
    assert filled.show(commit).parents == (base,)
    assert in_file(filled) == 0


def test_resumed_in_another_process_and_killed_again(filled: vzarr.Repository, path: Path) -> None:
    _, session_id, root, _ = killed(path)
    other = Other(resume, path, session_id)
    assert other.receive() == root
    found = find(filled, session_id)
    assert (found.alive, found.owner.pid) == (True, other.pid)
    with pytest.raises(BusyError, match="in use") as caught:
        filled.resume(session_id)
    assert caught.value.holder == found.owner
    assert f"process {other.pid}" in str(caught.value)
    other.kill()
    assert find(filled, session_id).alive is False
    another = Other(resume_and_commit, path, session_id)
    assert another.receive() == root
    another.send()
    commit = another.result()
    assert filled.branches["main"] == commit
    assert filled.root_id(commit) == root
    assert in_file(filled) == 0
    with pytest.raises(SessionNotFoundError, match="it was committed"):
        filled.resume(session_id)


def test_of_two_that_resume_at_once_one_does(filled: vzarr.Repository, path: Path) -> None:
    _, session_id, _, _ = killed(path)
    others = [Other(resume_or_fail, path, session_id) for _ in range(3)]
    for other in others:
        assert other.receive() == "ready"
    for other in others:
        other.send()
    results = [other.receive() for other in others]
    assert sorted(results) == ["busy", "busy", "resumed"]
    for other in others:
        other.send()
        other.result()
    filled.resume(session_id).discard()
    assert in_file(filled) == 0


def resume_or_fail(pipe: Connection, path: Path, session_id: str) -> None:
    with vzarr.open(path) as repo:
        pipe.send("ready")
        pipe.recv()
        try:
            session = repo.resume(session_id)
        except BusyError:
            pipe.send("busy")
        else:
            pipe.send("resumed")
            assert session.branch == "main"
        pipe.recv()


def test_the_branch_moved_meanwhile(filled: vzarr.Repository, path: Path) -> None:
    base = filled.branches["main"]
    _, session_id, root, _ = killed(path)
    with filled.transaction("main", "meanwhile") as store:
        zarr.open_array(store, path="ocean/sst")[20:] = 7
    head = filled.branches["main"]
    session = filled.resume(session_id)
    assert (session.base, session.root_id()) == (base, root)
    commit = session.commit("both")
    assert filled.show(commit).parents == (head,)
    array = zarr.open_array(filled.store("main"), path="ocean/sst")
    assert array[[4, 5, 20]].tolist() == [4, -1, 7]


def test_the_branch_moved_to_where_it_conflicts(filled: vzarr.Repository, path: Path) -> None:
    _, session_id, _, _ = killed(path)
    with filled.transaction("main", "meanwhile") as store:
        zarr.open_array(store, path="ocean/sst")[5:7] = 7
    session = filled.resume(session_id)
    with pytest.raises(ConflictError) as caught:
        session.commit("mine")
    assert [conflict.path for conflict in caught.value.conflicts] == ["ocean/sst"]
    assert session.rebase("ours") == filled.branches["main"]
    # The session may be killed once more, and is where it was.
    session.close()
    session = filled.resume(session_id)
    assert session.base == filled.branches["main"]
    session.commit("mine after all")
    array = zarr.open_array(filled.store("main"), path="ocean/sst")
    assert array[4:8].tolist() == [4, -1, -1, -1]


def test_work_that_does_not_fit_into_memory(filled: vzarr.Repository, path: Path) -> None:
    """Most of it is in the file before the checkpoint, in batches."""
    other = Other(save_much, path)
    session_id, root = other.receive()
    other.kill()
    found = find(filled, session_id)
    assert found.nbytes >= 70 * MIB
    session = filled.resume(session_id)
    assert session.root_id() == root
    session.set("more", b"1")
    commit = session.commit("all of it")
    assert in_file(filled) == 0
    store = filled.store(commit)
    for number in (0, 35, 69):
        expected = np.random.default_rng(number).bytes(MIB)
        assert store.session.get(f"big/{number}") == expected
    assert len(list(store.session.keys("big"))) == 70


def save_much(pipe: Connection, path: Path) -> None:
    with vzarr.open(path, durability="normal") as repo:
        session = repo.session("main")
        for number in range(70):
            session.set(f"big/{number}", np.random.default_rng(number).bytes(MIB))
        pipe.send((session.checkpoint(), session.root_id()))
        pipe.recv()


def test_a_killed_process_that_was_saved_every_moment(filled: vzarr.Repository, path: Path) -> None:
    other = Other(count, path)
    session_id = other.receive()

    def saved() -> SessionInfo | None:
        found = [each for each in filled.sessions() if each.id == session_id and each.checkpointed]
        return found[0] if found else None

    until(saved)
    first, written = saved(), 0
    while True:
        number = int(other.receive())
        second = saved()
        if second != first:
            break
        written = number

    def saved_again() -> bool:
        # It would wait for us to read.
        while other.pipe.poll():
            other.pipe.recv()
        return saved() != second

    # One that begins after the second has what was written before that.
    until(saved_again)
    other.kill()
    session = filled.resume(session_id)
    kept = int(session.get("count") or b"0")
    assert kept >= written
    # What is kept is of one moment.
    assert session.get(f"number/{kept}") in (b"1", None)
    assert all(session.get(f"number/{number}") == b"1" for number in range(kept))
    assert session.get(f"number/{kept + 1}") is None
    session.discard()


def count(pipe: Connection, path: Path) -> None:
    """Write numbers in order, and say which is written."""
    with vzarr.open(path, durability="normal") as repo:
        session = repo.session("main", checkpoint_every=0.05)
        pipe.send(session.id)
        for number in range(1_000_000):
            session.set("count", b"%d" % number)
            session.set(f"number/{number}", b"1")
            if number % 100 == 0:
                pipe.send(number)


def test_a_killed_transaction_that_was_saved(filled: vzarr.Repository, path: Path) -> None:
    """It had the branch to itself, which it has no more; and goes on like any other session."""
    other = Other(transact, path)
    session_id = other.receive()
    until(lambda: find(filled, session_id).checkpointed)
    other.kill()
    with filled.transaction("main", "meanwhile", exclusive=True, timeout=0) as store:
        store.session.set("other", b"1")
    session = filled.resume(session_id)
    session.commit("after all")
    found = filled.session("main")
    assert (found.get("file"), found.get("other")) == (b"saved", b"1")


def test_a_killed_transaction_does_not_agree_with_another(
    filled: vzarr.Repository, path: Path
) -> None:
    """Two that each count one up write the same number."""
    other = Other(transact, path)
    session_id = other.receive()
    until(lambda: find(filled, session_id).checkpointed)
    other.kill()
    with filled.transaction("main", "meanwhile") as store:
        store.session.set("file", b"saved")
    session = filled.resume(session_id)
    with pytest.raises(ConflictError):
        session.commit("after all")
    session.discard()


def transact(pipe: Connection, path: Path) -> None:
    with (
        vzarr.open(path) as repo,
        repo.transaction("main", "never", exclusive=True, checkpoint_every=0.01) as store,
    ):
        store.session.set("file", b"saved")
        with store.session._work.lock:
            store.session._work.changes.flush()
        pipe.send(store.session.id)
        pipe.recv()


def test_a_session_that_was_closed_in_a_process_that_goes_on(
    filled: vzarr.Repository, path: Path
) -> None:
    """What it saved is anybody's from then on, not only when that process ends."""
    other = Other(save_and_close, path)
    session_id = other.receive()
    found = find(filled, session_id)
    assert (found.alive, found.owner.pid) == (False, other.pid)
    session = filled.resume(session_id)
    assert session.get("file") == b"saved"
    other.send()
    assert other.receive() == "busy"
    session.close()
    other.send()
    assert other.result() == b"saved"
    filled.resume(session_id).discard()
    assert in_file(filled) == 0


def save_and_close(pipe: Connection, path: Path) -> Any:
    with vzarr.open(path) as repo:
        session = repo.session("main")
        session.set("file", b"saved")
        session.checkpoint()
        session.close()
        pipe.send(session.id)
        pipe.recv()
        with contextlib.suppress(BusyError):
            repo.resume(session.id)
            return "resumed too"
        pipe.send("busy")
        pipe.recv()
        return repo.resume(session.id).get("file")


def test_a_reader_beside_a_session_that_was_closed(filled: vzarr.Repository, path: Path) -> None:
    """What the one left does not hide the other, though both are on one commit."""
    other = Other(save_and_read, path)
    session_id, base = other.receive()
    found = of(filled, other.pid)
    assert {(each.id, each.kind, each.base, each.alive) for each in found} == {
        (session_id, "session", base, False),
        ("", "reader", base, True),
    }
    other.send()
    other.result()


def save_and_read(pipe: Connection, path: Path) -> None:
    with vzarr.open(path) as repo:
        session = repo.session("main")
        session.set("file", b"saved")
        session.checkpoint()
        session.close()
        del session
        reader = repo.session(repo.branches["main"])
        (saved,) = [each.id for each in repo.sessions() if each.checkpointed]
        pipe.send((saved, reader.base))
        pipe.recv()
        reader.close()


def test_forks_of_a_killed_session(filled: vzarr.Repository, path: Path) -> None:
    other = Other(save_with_fork, path)
    session_id, fork_id = other.receive()
    found = find(filled, fork_id)
    assert (found.kind, found.parent, found.alive) == ("fork", session_id, True)
    other.kill()
    assert find(filled, fork_id).alive is False
    session = filled.resume(session_id)
    assert find(filled, fork_id).alive is True
    session.merge_fork()
    session.commit("with what the fork wrote")
    found_session = filled.session("main")
    assert (found_session.get("file"), found_session.get("forked")) == (b"saved", b"1")
    assert in_file(filled) == 0


def save_with_fork(pipe: Connection, path: Path) -> None:
    with vzarr.open(path) as repo:
        session = repo.session("main")
        session.set("file", b"saved")
        fork = session.fork()
        fork.set("forked", b"1")
        session.checkpoint()
        pipe.send((session.id, fork.id))
        pipe.recv()


# ── what is told of others ───────────────────────────────────────────────────────────────────────


def show(pipe: Connection, path: Path, mode: str, ref: str) -> None:
    """Have a session, without anything in the file, until told to let it go; then end."""
    with vzarr.open(path, mode) as repo:
        session = repo.session(ref)
        pipe.send(session.base)
        pipe.recv()
        session.close()
        del session
        pipe.send("closed")
        pipe.recv()
    pipe.send("repository closed")
    pipe.recv()


@pytest.mark.parametrize(("mode", "ref"), [("r", "main"), ("r+", "main"), ("r+", "dev~0")])
def test_a_session_of_another_process_is_listed(
    filled: vzarr.Repository, path: Path, mode: str, ref: str
) -> None:
    with filled.transaction("dev", "elsewhere") as store:
        store.session.set("file", b"dev")
    other = Other(show, path, mode, ref)
    base = other.receive()
    (found,) = filled.sessions()
    assert (found.owner.pid, found.owner.host) == (other.pid, socket.gethostname())
    command = Path(f"/proc/{other.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    assert found.owner.command.startswith(command)
    assert (found.kind, found.base, found.alive) == ("reader", base, True)
    assert (found.id, found.branch, found.nbytes) == ("", None, 0)
    assert (found.created, found.updated, found.checkpointed) == (None, None, None)
    assert f"reader at {base[:12]}, alive" in str(found)
    # Others may commit; it is where it was.
    with filled.transaction("main", "go on") as store:
        store.session.set("file", b"1")
    assert [each.base for each in of(filled, other.pid)] == [base]
    other.send()
    assert other.receive() == "closed"
    assert filled.sessions() == []
    other.send()
    assert other.receive() == "repository closed"
    other.send()
    other.result()


def test_a_session_of_another_process_goes_with_it(filled: vzarr.Repository, path: Path) -> None:
    others = [Other(show, path, mode, "main") for mode in ("r", "r+")]
    for other in others:
        other.receive()
    assert {each.owner.pid for each in filled.sessions()} == {other.pid for other in others}
    for other in others:
        other.kill()
        assert of(filled, other.pid) == []


def test_a_session_goes_with_its_repository(filled: vzarr.Repository, path: Path) -> None:
    other = Other(leave_open, path)
    bases = other.receive()
    assert sorted(each.base for each in of(filled, other.pid)) == sorted(bases)
    assert {each.alive for each in of(filled, other.pid)} == {True}
    other.send()
    assert other.receive() == "repository closed"
    # One had something in the file, which is garbage now.
    (left,) = of(filled, other.pid)
    assert (left.alive, left.checkpointed) == (False, None)
    other.send()
    other.result()


def leave_open(pipe: Connection, path: Path) -> None:
    with vzarr.open(path) as repo:
        reader, writer = repo.session(repo.branches["dev"]), repo.session("main")
        writer.set("file", b"1")
        writer._work.changes.flush()
        pipe.send((reader.base, writer.base))
        pipe.recv()
    pipe.send("repository closed")
    pipe.recv()


def test_a_writer_of_another_process_is_listed_with_what_it_staged(
    filled: vzarr.Repository, path: Path
) -> None:
    other = Other(stage, path)
    session_id, root = other.receive()
    # Listed once, though it is a session in the file and in use as well.
    (found,) = filled.sessions()
    assert (found.id, found.kind, found.alive) == (session_id, "session", True)
    assert (found.branch, found.base) == ("dev", filled.branches["dev"])
    assert (found.nbytes, found.checkpointed) == (5, None)
    assert filled.session("dev").root_id() != root
    with pytest.raises(BusyError) as caught:
        filled.resume(session_id)
    assert caught.value.holder is not None
    assert caught.value.holder.pid == other.pid
    other.send()
    other.result()
    assert filled.sessions() == []
    assert filled.root_id("dev") == root


def stage(pipe: Connection, path: Path) -> None:
    with vzarr.open(path) as repo:
        session = repo.session("dev")
        session.set("file", b"12345")
        session._work.changes.flush()
        pipe.send((session.id, session.root_id()))
        pipe.recv()
        session.commit("done")


def test_a_forked_process_is_listed_and_gone(filled: vzarr.Repository) -> None:
    session = filled.session("main")

    def work(pipe: Connection) -> list[str]:
        mine = [each.id for each in filled.sessions() if each.owner.pid == os.getpid()]
        pipe.send(mine)
        pipe.recv()
        return mine

    child = Child(work)
    # It has a copy of the session, which is one of its own.
    mine = child.receive()
    assert session.id not in mine
    assert [each.base for each in of(filled, child.pid)] == [session.base]
    child.kill()
    assert of(filled, child.pid) == []
    assert [each.id for each in filled.sessions()] == [session.id]


# ── readers ──────────────────────────────────────────────────────────────────────────────────────


def commit_much(path: Path, commits: int = 200) -> int:
    """Write over the same chunks again and again; give the bytes of pages that hold data."""
    with vzarr.open(path, durability="normal") as repo:
        session = repo.session("main")
        for number in range(commits):
            session.set("file", np.random.default_rng(number).bytes(20_000))
            session.commit(f"number {number}")
        return repo._environment.info().used_bytes


def test_a_reader_that_lives_long_pins_no_pages(tmp_path: Path) -> None:
    sizes = []
    for reading in (False, True):
        path = tmp_path / f"{reading}.vzarr"
        vzarr.open(path).close()
        if not reading:
            commit_much(path)
        else:
            other = Other(read_long, path)
            base, before = other.receive()
            commit_much(path)
            with vzarr.open(path) as repo:
                (found,) = of(repo, other.pid)
                assert (found.kind, found.base) == ("reader", base)
                assert repo.branches["main"] != base
                # But for the one that counts them.
                assert repo._environment.info().readers <= 1
            other.send()
            assert other.result() == (base, before)
        with vzarr.open(path) as repo:
            sizes.append((os.path.getsize(path), repo._environment.info().used_bytes))
    (file, used), (file_read, used_read) = sizes
    assert used_read <= used * 1.02
    assert file_read <= file * 1.02


def read_long(pipe: Connection, path: Path) -> Any:
    with vzarr.open(path, "r") as repo:
        session = repo.session("main")
        before = session.base, content(session)
        pipe.send(before)
        pipe.recv()
        assert (session.base, content(session)) == before
        return before


def test_readers_never_wait_and_see_no_half_of_a_commit(
    filled: vzarr.Repository, path: Path
) -> None:
    """Two files are always changed together, by a writer without a pause."""
    other = Other(change_both, path)
    assert other.receive() == "begun"
    longest = 0.0
    seen = set()
    while len(seen) < 20:
        begun = time.monotonic()
        session = filled.session("main")
        one, two = session.get("one"), session.get("two")
        longest = max(longest, time.monotonic() - begun)
        assert one == two
        seen.add(one)
    assert longest < 2
    other.send()
    other.result()
    # Nor do they while somebody has the file for writing.
    inside, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        environment = Environment.open(str(path), writable=True)
        with environment.write():
            inside.set()
            assert go_on.wait(PATIENCE)
        environment.close()

    with threads(hold):
        assert inside.wait(PATIENCE)
        assert filled.session("main").get("one") is not None
        assert len(filled.sessions()) == 1
        go_on.set()


def change_both(pipe: Connection, path: Path) -> None:
    with vzarr.open(path, durability="normal") as repo:
        session = repo.session("main")
        number = 0
        while not pipe.poll():
            for key in ("one", "two"):
                session.set(key, b"%d" % number)
            session.commit("both")
            if not number:
                pipe.send("begun")
            number += 1
        pipe.recv()


# ── the write gate ───────────────────────────────────────────────────────────────────────────────


def write(pipe: Connection, path: Path) -> None:
    """Have LMDB's writer lock until told to go on."""
    environment = Environment.open(str(path), writable=True)
    with environment.write():
        pipe.send("inside")
        pipe.recv()
    environment.close()


def test_a_commit_waits_for_another_process_no_longer_than_its_timeout(
    filled: vzarr.Repository, path: Path
) -> None:
    other = Other(write, path)
    assert other.receive() == "inside"
    with vzarr.open(path, timeout=0.2) as impatient:
        session = impatient.session("main")
        session.set("file", b"1")
        attempts = (
            lambda: session.commit("late"),
            session.checkpoint,
            session.fork,
            lambda: impatient.resume("abcd"),
            lambda: impatient.branches.create("new"),
            lambda: impatient.cherry_pick("main", onto="dev"),
            lambda: impatient.run(lambda store: store.session.set("file", b"2")),
        )
        for attempt in attempts:
            begun = time.monotonic()
            with pytest.raises(BusyError) as caught:
                attempt()
            assert 0.2 <= time.monotonic() - begun < PATIENCE
            assert caught.value.holder is not None
            assert caught.value.holder.pid == other.pid
            assert caught.value.holder.since is not None
            age = datetime.now(UTC) - caught.value.holder.since
            assert timedelta(0) <= age < timedelta(days=1)
            assert session.get("file") == b"1"
        with (
            pytest.raises(BusyError),
            filled.transaction("main", "late", exclusive=True, timeout=0.1),
        ):
            pytest.fail("the block began")
        other.send()
        other.result()
        assert session.checkpoint() == session.id
        session.commit("in time")
    assert filled.session("main").get("file") == b"1"
    assert in_file(filled) == 0
