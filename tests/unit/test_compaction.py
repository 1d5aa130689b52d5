"""``repo.compact``: a smaller file with the same content, under the feet of nobody."""

from __future__ import annotations

import errno
import fcntl
import gc as collector
import os
import stat
import sys
import threading

import pytest

import vzarr
from tests.processes import PATIENCE, Child, descriptors, threads, until
from tests.unit.test_garbage import entries, forget_all, has_commit, make_garbage, write
from tests.unit.test_session import commit
from vzarr import compaction, copying, draft, filelocks
from vzarr.draft import Draft, draft_path, remove_dead
from vzarr.errors import (
    BusyError,
    CorruptError,
    FullError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from vzarr.format import chunk_digest
from vzarr.turns import Turn

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs open file locks")


def fill(repo, count: int = 12, size: int = 20_000) -> None:
    """Commit values that each replace the last, and leave all but a few of them as garbage."""
    for number in range(count):
        write(repo, b"%5d" % number * (size // 5))
    repo.tags.create("early", at=f"main~{count - 2}")
    repo.branches.reset("main", f"main~{count - 4}")
    forget_all(repo)


def listing(repo) -> list[str]:
    return sorted(os.listdir(os.path.dirname(repo.path)))


def history(repo) -> object:
    refs = dict(repo.branches), dict(repo.tags)
    return refs, [str(one) for one in repo.reflog("main")], repo.root_id("main"), repo.log("main")


@pytest.fixture
def full(repo):
    fill(repo)
    return repo


# ── what it does ─────────────────────────────────────────────────────────────────────────────────


def test_the_file_is_smaller_and_holds_the_same(full):
    before, known = history(full), os.stat(full.path)
    full.gc()
    content = entries(full)
    report = full.compact()
    assert (report.before, report.after) == (known.st_size, os.stat(full.path).st_size)
    assert report.after < report.before / 2
    assert report.garbage == 0
    assert entries(full) == content
    assert history(full) == before
    facts = full._environment.info()
    assert facts.used_bytes == facts.file_bytes
    assert os.stat(full.path).st_ino != known.st_ino
    assert listing(full) == ["test.vzarr", "test.vzarr-lock"]
    assert str(report.after)[-3:] in str(report)


def test_garbage_is_collected_first_unless_it_is_to_stay(full):
    kept = full.compact(gc=False)
    assert kept.garbage == 0
    assert full.gc(dry_run=True).commits > 5
    report = full.compact()
    assert report.garbage > 15
    assert report.after < kept.after / 2
    assert full.gc(dry_run=True).commits == 0


def test_what_is_compact_stays_as_it_is(full):
    first = full.compact()
    again = full.compact()
    assert again.before == first.after
    assert again.after <= first.after


@pytest.mark.parametrize("verify", ["full", "quick", None])
def test_txns_are_numbered_on(full, verify):
    numbers = [full._environment.last_txn_id()]
    for _ in range(3):
        full.compact(verify=verify)
        numbers.append(full._environment.last_txn_id())
        write(full, b"%d" % len(numbers))
        numbers.append(full._environment.last_txn_id())
    assert numbers == sorted(set(numbers))


def test_mode_and_owner_of_the_file_stay(full):
    os.chmod(full.path, 0o640)
    if os.geteuid() == 0:
        os.chown(full.path, 1234, 4321)
    before = os.stat(full.path)
    full.compact()
    after = os.stat(full.path)
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert after.st_mtime >= before.st_mtime


def test_progress_goes_through_all_that_is_done(full):
    calls = []
    full.compact(progress=lambda done, total, what: calls.append((done, total, what)))
    assert {"copy", "structure", "objects"} <= {what for _, _, what in calls}
    assert all(0 <= done <= total for done, total, _ in calls)


# ── all who have the file open here ──────────────────────────────────────────────────────────────


def test_sessions_go_on_and_commit(full):
    pinned = full.session("early")
    edited, staged = full.session("main"), full.session("main")
    edited.set("edited", b"1")
    staged.set("staged", b"2" * 100_000)
    saved = staged.checkpoint()
    with vzarr.open(full.path) as again:
        also = again.session("main")
        also.set("also", b"3")
        full.compact()
        also.commit("also")
        again.compact()
    assert pinned.get("file") == b"    1" * 4_000
    edited.commit("edited")
    assert [info.id for info in full.sessions() if info.checkpointed] == [saved]
    staged.commit("staged")
    main = full.store("main").session
    assert [main.get(key) for key in ("edited", "also")] == [b"1", b"3"]
    assert main.get("staged") == b"2" * 100_000


def test_a_dead_sessions_checkpoint_can_be_resumed(full):
    session = full.session("main")
    session.set("saved", b"1" * 50_000)
    name = session.checkpoint()
    session.close()
    full.compact()
    again = full.resume(name)
    assert again.get("saved") == b"1" * 50_000
    again.commit("saved")


def test_what_was_pinned_before_and_after_is_kept_from_gc(full):
    root = full.log("main")[-1].id
    old = full.session("main")
    full.compact()
    write(full, b"more")
    new = full.session("main")
    full.branches.reset("main", root)
    full.tags.delete("early")
    forget_all(full)
    full.gc()
    assert has_commit(full, old.base)
    assert has_commit(full, new.base)
    bases = [old.base, new.base]
    old.close()
    new.close()
    del old, new
    collector.collect()
    assert full._environment.pins() == []
    full.gc()
    assert not any(has_commit(full, base) for base in bases)


def test_the_locks_and_descriptors_are_those_of_the_new_file(full):
    environment, before = full._environment, descriptors(full.path)
    token = environment.token
    for _ in range(3):
        full.compact()
    assert descriptors(full.path) == before
    assert environment.token == token
    other = os.open(full.path, os.O_RDWR)
    try:
        # Seen by an opening of its own, as another process would.
        assert filelocks.find(other, filelocks.token_byte(token), 1) == (
            filelocks.token_byte(token),
            1,
        )
        assert filelocks.find(other, filelocks.COMPACTION, 1) is None
        with environment.write(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(other)


def test_turns_are_given_on_the_new_file(full):
    with full.transaction("main", "before", exclusive=True) as store:
        store.session.set("turn", b"1")
    full.compact()
    with full.transaction("main", "first", exclusive=True) as store:
        with (
            vzarr.open(full.path) as again,
            pytest.raises(BusyError),
            again.transaction("main", "second", exclusive=True, timeout=0.05),
        ):
            raise AssertionError("two have the turn")
        store.session.set("turn", b"2")
    assert full.store("main").session.get("turn") == b"2"


def test_turns_and_the_queue_for_them_move_to_the_new_file(full):
    """An exclusive transaction goes on, and who waits behind it does not come before its end."""
    order: list[str] = []

    def wait_for_a_turn(name: str) -> None:
        turn = Turn(full._environment, "main")
        turn.acquire(PATIENCE)
        order.append(name)
        turn.release()

    def second() -> None:
        wait_for_a_turn("second")

    def third() -> None:
        until(lambda: len(tickets(full, "main")) == 2)
        wait_for_a_turn("third")

    with full.transaction("main", "turn", exclusive=True) as store, threads(second, third):
        until(lambda: len(tickets(full, "main")) == 3)
        full.compact()
        assert len(tickets(full, "main")) == 3
        with vzarr.open(full.path) as again, pytest.raises(BusyError) as error:
            again.branches.create("other", at="main")
            with again.transaction("main", "fourth", exclusive=True, timeout=0.05):
                raise AssertionError("two have the turn")
        assert error.value.holder.pid == os.getpid()
        store.session.set("turn", b"1")
        store.session.commit("turn")
        assert order == []
        store.session._turn.release()
    assert order == ["second", "third"]
    assert tickets(full, "main") == []


def tickets(repo, branch: str) -> list[int]:
    """List the places in the queue that are taken, as another process sees them."""
    queue = filelocks.Queue.of(chunk_digest(branch.encode()))
    descriptor = os.open(repo.path, os.O_RDWR)
    try:
        found = filelocks.find_all(descriptor, queue.first_ticket, queue.tickets)
    finally:
        os.close(descriptor)
    return [byte for start, length in found for byte in range(start, start + length)]


def test_readers_and_writers_in_threads_go_on_meanwhile(full):
    """Each commit is there at the end, and no reader ever sees less than it should."""
    done = threading.Event()
    written: list[list[str]] = [[], []]

    def write_on(number: int) -> None:
        while not done.is_set() or len(written[number]) < 5:
            key = f"writer{number}/{len(written[number])}"
            full.run(lambda store, key=key: store.session.set(key, key.encode()), "main", key)
            written[number].append(key)

    def read_on() -> None:
        while not done.is_set():
            session = full.session("main")
            for keys in written:
                for key in keys[-3:]:
                    session.follow()
                    assert session.get(key) == key.encode()
            session.close()

    def compact_on() -> None:
        try:
            for number in range(6):
                full.compact(gc=bool(number % 2))
        finally:
            done.set()

    with threads(lambda: write_on(0), lambda: write_on(1), read_on, compact_on):
        pass
    session = full.session("main")
    for keys in written:
        assert [session.get(key) for key in keys] == [key.encode() for key in keys]
    assert sum(entry.message.startswith("writer") for entry in full.log("main")) == sum(
        map(len, written)
    )


def test_a_txn_of_this_thread_is_refused(full):
    with full._environment.read(), pytest.raises(SessionStateError):
        full.compact(gc=False)
    with full._environment.write(), pytest.raises(SessionStateError):
        full.compact(gc=False)


def test_a_child_that_is_forked_afterwards_has_the_new_file(full):
    full.compact()
    commit_id = Child(lambda _: write(full, b"child")).result()
    assert full.branches["main"] == commit_id


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", [(os, "fsync"), (draft.os, "replace")])
def test_a_failure_leaves_the_old_file_in_use(full, monkeypatch, where):
    before, inode = history(full), os.stat(full.path).st_ino
    session = full.session("main")
    session.set("kept", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(*where, no_space)
        with pytest.raises(FullError):
            full.compact(gc=False)
    assert os.stat(full.path).st_ino == inode
    assert listing(full) == ["test.vzarr", "test.vzarr-lock"]
    assert history(full) == before
    session.commit("kept")
    full.compact()


def test_a_full_disk_is_found_out_before(full, monkeypatch):
    status = os.statvfs(full.path)
    little = os.statvfs_result([*status[:3], 3, 3, *status[5:]])
    monkeypatch.setattr(os, "statvfs", lambda _: little)
    monkeypatch.setattr(compaction, "Draft", None)
    with pytest.raises(FullError, match="make room"):
        full.compact()


def test_a_limit_on_the_size_of_files(full):
    import resource

    size = full._environment.info().used_bytes

    def limited(_):
        full._environment.info()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        with pytest.raises(FullError):
            full.backup(full.path + "-copy")
        return sorted(os.listdir(os.path.dirname(full.path)))

    assert Child(limited).result() == ["test.vzarr", "test.vzarr-lock"]


@pytest.mark.parametrize("stage", ["copy", "structure", "objects"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_leaves_nothing_behind(full, stage, error):
    def interrupt(_done: int, _total: int, what: str) -> None:
        if what == stage:
            raise error

    inode = os.stat(full.path).st_ino
    with pytest.raises(error):
        full.compact(gc=False, progress=interrupt)
    assert os.stat(full.path).st_ino == inode
    assert listing(full) == ["test.vzarr", "test.vzarr-lock"]
    assert threading.active_count() < 20
    write(full, b"on")
    full.compact()


def test_an_interruption_while_it_is_being_replaced_comes_afterwards(full, monkeypatch):
    replace, inode = Draft.replace, os.stat(full.path).st_ino

    def interrupted(self):
        replace(self)
        # As Ctrl-C does: it is raised in the main thread, which waits for this one.
        import signal

        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Draft, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        full.compact(gc=False)
    assert os.stat(full.path).st_ino != inode
    write(full, b"on")
    assert full.check("full").ok


def test_a_damaged_chunk_is_not_put_in_the_place_of_the_file(path):
    with vzarr.open(path, author="Test") as repo:
        commit(repo.session("main"), "one", one=b"1" * 10_000)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"1" * 10_000, b"1" * 9_999 + b"2"))
    with vzarr.open(path, author="Test") as repo:
        with pytest.raises(CorruptError, match="chunk"):
            repo.compact()
        with pytest.raises(CorruptError, match="verify=None"):
            repo.backup(str(path) + "-copy")
        assert repo.compact(verify="quick").after
    path.unlink()


def test_a_copy_that_lacks_something_is_found_out(full, monkeypatch):
    copy_pages = copying.copy_pages

    def forgetful(opened, txn, draft_file, progress):
        with full._environment.read() as older:
            assert older.id == txn.id
        copy_pages(opened, old_txn, draft_file, progress)

    with full._environment.read() as old_txn:
        done = threading.Thread(target=write, args=(full, b"newer"))
        done.start()
        done.join(PATIENCE)
        monkeypatch.setattr("vzarr.environment.copy_pages", forgetful)
        with pytest.raises(CorruptError, match="lacks"):
            full.backup(full.path + "-copy")
    assert listing(full) == ["test.vzarr", "test.vzarr-lock"]


def test_arguments(full):
    with pytest.raises(InvalidInputError):
        full.compact(verify="some")
    with pytest.raises(InvalidInputError):
        full.compact(timeout=-1)
    full.close()
    with pytest.raises(SessionStateError):
        full.compact()
    with vzarr.open(full.path, "r") as reader, pytest.raises(ReadOnlyError):
        reader.compact()


def test_without_locks_it_is_refused(path, monkeypatch):
    monkeypatch.setattr(filelocks, "SUPPORTED", False)
    with vzarr.open(path, author="Test") as repo:
        with pytest.raises(StorageError, match="backup"):
            repo.compact()
        write(repo, b"on")


def test_a_file_that_was_replaced_stays(full):
    os.rename(full.path, full.path + ".old")
    with open(full.path, "wb") as other:
        other.write(b"somebody else's")
    with pytest.raises(StorageError, match="replaced"):
        full.compact(gc=False)
    with open(full.path, "rb") as other:
        assert other.read() == b"somebody else's"
    os.unlink(full.path)
    os.rename(full.path + ".old", full.path)


# ── drafts ───────────────────────────────────────────────────────────────────────────────────────


def test_a_dead_draft_is_removed_and_one_that_lives_is_not(tmp_path):
    target = str(tmp_path / "a.vzarr")
    with Draft(target, 0o600) as living:
        remove_dead(target)
        assert os.path.exists(living.path)
        with pytest.raises(BusyError):
            Draft(target, 0o600)
        with Draft(str(tmp_path / "b.vzarr"), 0o600) as other:
            assert other.path != living.path
    assert os.listdir(tmp_path) == []
    with open(draft_path(target), "wb") as dead:
        dead.write(b"what a killed process left")
    with Draft(target, 0o600) as living:
        assert living.nbytes == 0
    assert os.listdir(tmp_path) == []
    with pytest.raises(NotFoundError):
        Draft(str(tmp_path / "no" / "a.vzarr"), 0o600)


def test_opening_for_writing_removes_a_dead_draft(full):
    dead = draft_path(full.path)
    full.close()
    with open(dead, "wb") as file:
        file.write(b"what a killed process left")
    with vzarr.open(full.path, "r"):
        assert os.path.exists(dead)
    with vzarr.open(full.path):
        assert not os.path.exists(dead)


def test_a_draft_in_a_child_is_the_parents(tmp_path):
    with Draft(str(tmp_path / "a.vzarr"), 0o600) as living:
        child = Child(lambda pipe: (living.descriptor, pipe.recv()))
        living.__exit__(None, None, None)
        # The lock is gone with the parent's descriptor, although the child lives.
        with Draft(str(tmp_path / "a.vzarr"), 0o600):
            pass
        child.pipe.send("go")
        assert child.result() == (-1, "go")


def test_what_is_added_is_what_the_name_says(tmp_path):
    digits = chunk_digest(b"a.vzarr").hex()[:16]
    assert draft_path(str(tmp_path / "a.vzarr")) == str(tmp_path / f".vzarr-{digits}")


def test_the_last_reference_to_a_writer_ends_it(full):
    """No thread of a copy outlives it."""
    before = threading.active_count()
    full.backup(full.path + "-copy")
    until(lambda: threading.active_count() <= before)
    os.unlink(full.path + "-copy")


def test_garbage_of_before_is_gone(repo):
    make_garbage(repo)
    assert repo.compact().garbage > 11
