"""Garbage: what is deleted, what keeps it from being deleted, and who may come in between."""

from __future__ import annotations

import gc as python_gc
import itertools
import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vzarr
from tests.support import assert_sound
from tests.unit.test_session import array, commit
from vzarr import expiry, garbage, history, leases, refs
from vzarr.environment import Environment
from vzarr.errors import (
    BusyError,
    CommitNotFoundError,
    CorruptError,
    InvalidInputError,
    ReadOnlyError,
    RefNotFoundError,
    SessionNotFoundError,
    SessionStateError,
)
from vzarr.format import Digest, chunk_digest, encode_lease, from_microseconds, session_key
from vzarr.leases import NOBODY
from vzarr.marking import DigestSet, Marks
from vzarr.turns import Turn

NOW = timedelta()


def gc(repo, **options):
    return garbage.gc(repo._objects, repo._settings, **options)


def expire(repo, **options):
    return expiry.expire(repo._objects, repo._settings, **options)


def forget_all(repo):
    """Leave of each reflog the newest entry, without what was there before."""
    expire(repo, older_than=NOW)


def write(repo, value: bytes, branch: str = "main") -> str:
    """Commit a value to a key that each commit overwrites."""
    return commit(repo.session(branch), "write", file=value)


def has(repo, value: bytes) -> bool:
    with repo._environment.read() as txn:
        return txn.contains("chunks", chunk_digest(value))


def has_commit(repo, commit_id: str) -> bool:
    return history.exists(repo._environment, Digest(bytes.fromhex(commit_id)))


def entries(repo) -> dict[str, dict[bytes, bytes]]:
    with repo._environment.read() as txn:
        names = ("commits", "nodes", "chunks", "sessions", "branches", "tags", "reflog")
        return {name: dict(txn.scan(name)) for name in names}


def end(session) -> None:
    """Let a session's process die, as far as others can tell."""
    session._lease.close()


# ── what goes, what stays ────────────────────────────────────────────────────────────────────────


def test_a_repository_without_garbage_stays_as_it_is(repo):
    write(repo, b"value")
    before = entries(repo)
    report = gc(repo)
    assert entries(repo) == before
    assert (report.commits, report.nodes, report.chunks, report.sessions, report.nbytes) == (0,) * 5
    assert (report.kept_commits, report.kept_nodes, report.kept_chunks) == (2, 3, 1)


def test_a_deleted_branch_goes_with_all_that_only_it_had(repo):
    commit(repo.session("main"), "base", **{"zarr.json": array(), "shared": b"both"})
    kept = entries(repo)
    repo.branches.create("dev")
    commit(repo.session("dev"), "one", one=b"1", again=b"both")
    commit(repo.session("dev"), "two", two=b"22", one=None)
    repo.branches.delete("dev")
    forget_all(repo)
    before = entries(repo)
    report = gc(repo)
    after = entries(repo)
    for name in ("commits", "nodes", "chunks"):
        assert after[name] == kept[name]
    gone = [before[name].items() - after[name].items() for name in ("commits", "nodes", "chunks")]
    assert (report.commits, report.nodes, report.chunks) == tuple(map(len, gone))
    assert report.commits == report.chunks == 2
    assert report.nbytes == sum(len(value) for items in gone for _, value in items)
    assert str(report).startswith("Deleted 2 commits, 4 nodes and 2 chunks (")


def test_every_ref_keeps_its_whole_history(repo):
    commits = [write(repo, b"%d" % number) for number in range(4)]
    repo.tags.create("v1", at=commits[1])
    repo.branches.create("old", at=commits[2])
    repo.branches.reset("main", commits[0])
    forget_all(repo)
    gc(repo)
    assert [has_commit(repo, commit) for commit in commits] == [True, True, True, False]
    assert [has(repo, b"%d" % number) for number in range(4)] == [True, True, True, False]
    repo.branches.delete("old")
    forget_all(repo)
    gc(repo)
    assert [has(repo, b"%d" % number) for number in range(4)] == [True, True, False, False]
    repo.tags.delete("v1")
    gc(repo)
    assert [has(repo, b"%d" % number) for number in range(4)] == [True, False, False, False]
    assert repo.store("main").session.get("file") == b"0"


def test_members_of_groups_and_chunks_of_arrays_are_reached(repo):
    values = {f"g/a/c/{n}": b"chunk %d" % n for n in range(200)}
    files = {f"g/{n}/zarr.json": array(n + 10) for n in range(50)}
    commit(repo.session("main"), **{"g/a/zarr.json": array(2000), **values, **files})
    assert gc(repo).chunks == 0
    session = repo.session("main")
    session.delete_below("g/a")
    session.commit("without")
    del session
    assert gc(repo).chunks == 0
    repo.squash("main", since="main~2")
    forget_all(repo)
    assert gc(repo).chunks == 201
    assert {repo.store("main").session.get(key) for key in files} == set(files.values())


@pytest.mark.parametrize("what", ["reset", "amend", "delete", "branch.rename"])
def test_what_the_reflog_names_can_be_undone_until_it_expires(repo, what):
    write(repo, b"old")
    lost = write(repo, b"lost")
    if what == "reset":
        repo.branches.reset("main", "main~1")
    elif what == "amend":
        session = repo.session("main")
        session.set("file", b"new")
        session.amend()
        del session
    elif what == "delete":
        repo.branches.delete("main")
    else:
        repo.branches.rename("main", "other")
        repo.branches.reset("other", "other~1")
    assert gc(repo).commits == 0
    repo.branches.create("undone", at=lost)
    assert repo.store("undone").session.get("file") == b"lost"
    repo.branches.delete("undone")
    forget_all(repo)
    assert gc(repo).commits == (3 if what == "delete" else 1)
    assert not has(repo, b"lost")
    with pytest.raises(RefNotFoundError):
        repo.branches.create("undone", at=lost)


def test_heads_that_an_earlier_collection_took_do_not_matter(tmp_path):
    """The reflog may name commits that are gone, as the format says."""
    with vzarr.open(tmp_path / "gone.vzarr") as repo:
        gone = write(repo, b"gone")
        repo.branches.reset("main", "main~1")
        with repo._environment.write() as txn:
            txn.delete("commits", bytes.fromhex(gone))
        assert gc(repo).chunks == 1


def test_a_commit_that_a_session_is_on_stays_while_the_session_does(repo):
    base = write(repo, b"read")
    reader = repo.session(base)
    repo.branches.reset("main", "main~1")
    forget_all(repo)
    gc(repo)
    assert reader.get("file") == b"read"
    assert has_commit(repo, base)
    del reader
    gc(repo)
    assert not has(repo, b"read")


def test_a_session_whose_base_was_collected_cannot_commit(repo):
    """What it has in its caches is not in the file any more."""
    write(repo, b"below")
    session = repo.session("main")
    session.set("other", b"1")
    assert session.has_changes
    repo.branches.reset("main", "main~1")
    forget_all(repo)
    # As where the system has no locks.
    repo._environment.unpin(session._base)
    gc(repo)
    with pytest.raises(CommitNotFoundError):
        session.commit("on what is gone", merge="ours")
    repo._environment.pin(session._base)


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


def staged(repo, **values: bytes) -> vzarr.Session:
    """Open a session with these values in the file ahead of its commit."""
    session = repo.session("main")
    for key, value in values.items():
        session.set(key, value)
    session._work.changes.flush()
    return session


def test_what_a_living_session_staged_stays(repo):
    session = staged(repo, one=b"1")
    assert gc(repo).chunks == 0
    session.set("two", b"2")
    session._work.spill()
    report = gc(repo)
    assert (report.chunks, report.nodes) == (0, 0)
    session.commit("both")
    assert (has(repo, b"1"), has(repo, b"2")) == (True, True)
    assert gc(repo).chunks == 0


@pytest.mark.parametrize("how", ["killed", "let go"])
def test_what_a_dead_session_staged_goes(repo, how):
    session = staged(repo, one=b"1")
    session.set("two", b"2")
    session._work.spill()
    if how == "killed":
        end(session)
    else:
        del session
        python_gc.collect()
    assert gc(repo, dry_run=True).sessions == 1
    report = gc(repo)
    assert (report.chunks, report.sessions) == (2, 1)
    assert entries(repo)["sessions"] == {}
    assert "what 1 dead sessions left" in str(report)


def test_a_checkpoint_of_a_dead_session_stays_and_resumes(repo):
    base = write(repo, b"base")
    session = staged(repo, one=b"saved")
    session.checkpoint()
    for value in (b"later", b"last"):
        session.set("later", value)
        session._work.spill()
    session_id = session.id
    session.close()
    del session
    repo.branches.reset("main", "main~1")
    forget_all(repo)
    report = gc(repo)
    assert (report.chunks, report.sessions, has(repo, b"saved")) == (2, 0, True)
    assert len(entries(repo)["sessions"]) == 1
    assert has_commit(repo, base)
    assert gc(repo).chunks == 0
    resumed = repo.resume(session_id)
    assert sorted(resumed.keys()) == ["file", "one"]
    assert resumed.get("one") == b"saved"
    assert gc(repo).chunks == 0
    resumed.commit("resumed", merge="ours")
    assert repo.store("main").session.get("one") == b"saved"


def test_an_old_checkpoint_goes(repo):
    session = staged(repo, one=b"saved")
    session.checkpoint()
    session_id = session.id
    session.close()
    assert gc(repo, checkpoints_older_than=timedelta(days=1)).sessions == 0
    assert gc(repo, checkpoints_older_than=NOW).sessions == 1
    assert not has(repo, b"saved")
    with pytest.raises(SessionNotFoundError):
        repo.resume(session_id)


def test_forks_stay_while_their_session_lives(repo):
    session = staged(repo, one=b"1")
    fork = session.fork()
    fork.set("two", b"2")
    assert gc(repo).chunks == 0
    session.merge_fork(fork)
    assert gc(repo).chunks == 0
    session.commit("merged")
    assert (has(repo, b"1"), has(repo, b"2")) == (True, True)
    assert gc(repo).chunks == 0


def test_forks_of_a_dead_session_go_also_if_its_checkpoint_stays(repo):
    session = staged(repo, one=b"1")
    session.checkpoint()
    fork = session.fork()
    fork.set("two", b"2")
    end(session)
    report = gc(repo)
    assert (report.chunks, report.sessions) == (1, 1)
    with pytest.raises(SessionStateError):
        fork.set("three", b"3")
    assert repo.resume(session.id).get("one") == b"1"
    gc(repo)
    assert not has(repo, b"3")


def test_a_fork_lives_as_long_as_the_session_that_was_resumed(repo):
    session = staged(repo, one=b"1")
    session.checkpoint()
    fork = session.fork()
    fork.set("two", b"2")
    end(session)
    resumed = repo.resume(session.id)
    assert gc(repo).chunks == 0
    resumed.merge_fork(fork)
    resumed.commit("all")
    assert repo.store("main").session.get("two") == b"2"


def test_a_fork_lives_as_long_as_its_session_whoever_made_it(repo):
    session = staged(repo, one=b"1")
    fork = session.fork()
    fork.set("two", b"2")
    with repo._environment.write() as txn:
        key = session_key(fork._id, 0)
        record = leases.find(txn, fork._id)
        txn.put("sessions", key, encode_lease(replace(record, token=1)))
    assert not leases.is_alive(repo._environment, fork._id, replace(record, token=1))
    assert gc(repo).chunks == 0
    end(session)
    assert gc(repo).sessions == 2


def test_work_of_another_machine_stays_for_some_time(repo):
    session = staged(repo, one=b"1")
    record = replace(session._lease.record, host="elsewhere", token=1)
    with repo._environment.write() as txn:
        txn.put("sessions", session_key(session._lease.id, 0), encode_lease(record))
    assert gc(repo).chunks == 0
    old = replace(record, updated=record.updated - 15 * 86_400_000_000)
    with repo._environment.write() as txn:
        txn.put("sessions", session_key(session._lease.id, 0), encode_lease(old))
    assert gc(repo, checkpoints_older_than=timedelta(days=16)).chunks == 0
    assert gc(repo).chunks == 1


def test_records_that_an_interrupted_collection_left_go(repo):
    session = staged(repo, one=b"1")
    with repo._environment.write() as txn:
        txn.delete("sessions", session_key(session._lease.id, 0))
    report = gc(repo)
    assert (report.chunks, report.sessions) == (1, 0)
    assert entries(repo)["sessions"] == {}


# ── looking only, asking wrongly, damage ─────────────────────────────────────────────────────────


def make_garbage(repo, commits: int = 5, values: int = 4) -> None:
    """Leave chains of commits that nothing reaches, a dead session and a shorter reflog."""
    write(repo, b"kept")
    for branch in ("one", "two"):
        repo.branches.create(branch)
        for number in range(commits):
            files = {f"{n}": b"%s %d %d" % (branch.encode(), number, n) for n in range(values)}
            commit(repo.session(branch), **files)
    repo.merge("one", into="two", strategy="ours")
    repo.branches.delete("one")
    repo.branches.delete("two")
    forget_all(repo)
    end(staged(repo, staged=b"staged"))


def test_a_dry_run_tells_what_would_go_and_writes_nothing(repo):
    make_garbage(repo)
    before, last = entries(repo), repo._environment.last_txn_id()
    told = gc(repo, dry_run=True)
    assert repo._environment.last_txn_id() == last
    assert entries(repo) == before
    done = gc(repo)
    assert replace(told, seconds=0, dry_run=False) == replace(done, seconds=0)
    assert done.commits == 11
    assert str(told).startswith("Would delete 11 commits")


def test_a_reader_may_look_but_not_delete(path):
    with vzarr.open(path) as repo:
        make_garbage(repo)
    with vzarr.open(path, "r") as repo:
        assert gc(repo, dry_run=True).commits == 11
        with pytest.raises(ReadOnlyError):
            gc(repo)


@pytest.mark.parametrize("wrong", [14, -timedelta(1), None])
def test_an_age_is_a_timedelta(repo, wrong):
    with pytest.raises(InvalidInputError):
        gc(repo, checkpoints_older_than=wrong)


def test_two_collections_do_not_run_at_once(path):
    with vzarr.open(path, timeout=0.01) as repo:
        turn = Turn(repo._environment, "@")
        turn.acquire(None)
        with pytest.raises(BusyError, match="another collection") as error:
            gc(repo)
        assert error.value.holder is not None
        turn.release()
        gc(repo)


@pytest.mark.parametrize("database", ["commits", "nodes"])
@pytest.mark.parametrize("damage", ["missing", "flipped"])
def test_nothing_is_deleted_where_something_in_use_is_damaged(tmp_path, database, damage):
    with vzarr.open(tmp_path / "damaged.vzarr") as repo:
        make_garbage(repo)
        kept = entries(repo)[database].keys() - (
            set() if database == "nodes" else {repo_head(repo)}
        )
        before = entries(repo)
        marks = Marks(repo.path)
        with repo._environment.read() as txn:
            marks.want_commit(repo_head(repo))
            marks.walk(txn)
        for victim in kept & (marks.nodes | marks.commits):
            with repo._environment.write() as txn:
                data = before[database][victim]
                txn.delete(database, victim)
                if damage == "flipped":
                    txn.put(database, victim, data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(CorruptError):
                gc(repo)
            assert entries(repo)["chunks"] == before["chunks"]
            with repo._environment.write() as txn:
                txn.put(database, victim, data)
        assert gc(repo).commits == 11


def repo_head(repo) -> bytes:
    return bytes.fromhex(repo.branches["main"])


def test_a_ref_to_nothing_is_damage(tmp_path):
    with vzarr.open(tmp_path / "damaged.vzarr") as repo:
        with repo._environment.write() as txn:
            txn.put("branches", b"dangling", bytes(32))
        with pytest.raises(CorruptError, match="dangling"):
            gc(repo)


# ── in small steps ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_steps(monkeypatch):
    """Few objects a txn, so that a collection takes many."""
    monkeypatch.setattr(garbage, "_DELETIONS", 2)
    monkeypatch.setattr(garbage, "_DELETING_SECONDS", 60)
    monkeypatch.setattr(garbage, "_SCANNED", 3)
    monkeypatch.setattr(garbage, "_WALKED", 4)


@pytest.fixture
def txns(monkeypatch):
    """What the write txns of a collection delete, each."""
    deleted: list[list[str]] = []
    original = garbage._Collector._delete

    def note(self, txn, database, key):
        deleted[-1].append(database)
        return original(self, txn, database, key)

    opened = garbage._Collector._txn

    def begin(self):
        deleted.append([])
        return opened(self)

    monkeypatch.setattr(garbage._Collector, "_delete", note)
    monkeypatch.setattr(garbage._Collector, "_txn", begin)
    return deleted


def test_txns_are_short_and_commits_go_first(repo, small_steps, txns):
    make_garbage(repo)
    report = gc(repo)
    assert max(map(len, txns)) == 2
    order = [database for deleted in txns for database in deleted]
    assert [name for name, _ in itertools.groupby(order)] == ["commits", "nodes", "chunks"]
    assert len(order) == report.commits + report.nodes + report.chunks
    assert gc(repo).commits == 0


def test_time_ends_a_txn_too(repo, monkeypatch, txns):
    make_garbage(repo)
    clock = itertools.count()
    monkeypatch.setattr(garbage.time, "monotonic", lambda: next(clock) * 0.008)
    assert gc(repo).commits == 11
    assert max(map(len, txns)) == 2


class StopError(Exception):
    pass


def test_interrupted_at_any_moment_it_leaves_a_sound_file_and_goes_on(path, small_steps):
    with vzarr.open(path) as repo:
        make_garbage(repo, commits=2, values=2)
        for moment in itertools.count():
            calls = itertools.count()

            def stop(done, total, what, calls=calls, moment=moment):
                assert done <= total
                if next(calls) == moment:
                    raise StopError

            before = entries(repo)
            try:
                gc(repo, progress=stop)
            except StopError:
                if moment % 5 == 0:
                    assert_sound(path)
                    assert all(
                        parent in entries(repo)["commits"]
                        for data in entries(repo)["commits"].values()
                        for parent in history.decode_commit(data).parents
                    )
                continue
            break
        assert moment > 8
        assert entries(repo) == before
        assert repo.store("main").session.get("file") == b"kept"
        assert len(before["chunks"]) == 1


def test_a_txn_that_fails_deletes_nothing(repo, small_steps, monkeypatch):
    make_garbage(repo)
    before = entries(repo)
    original = garbage._Collector._delete

    def fail(self, txn, database, key):
        original(self, txn, database, key)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(garbage._Collector, "_delete", fail)
        with pytest.raises(KeyboardInterrupt):
            gc(repo)
    after = entries(repo)
    assert {**after, "sessions": {}} == {**before, "sessions": {}}
    assert gc(repo).commits == 11


# ── somebody comes in between ────────────────────────────────────────────────────────────────────


class Between:
    """Lets something happen at one moment of a collection, between two of its write txns.

    There are two moments: one just after a txn, and one where it has looked at everything once
    more, so that only the look inside the next txn sees what has happened.
    """

    def __init__(self, monkeypatch) -> None:
        self._monkeypatch = monkeypatch
        self.happened = False

    def collect(self, repo, moment, happens) -> None:
        original = garbage._Collector._catch_up
        calls = itertools.count()
        self.happened = False

        def perhaps():
            if next(calls) == moment:
                self.happened = True
                happens()

        def catch_up(collector):
            perhaps()
            original(collector)
            perhaps()

        with self._monkeypatch.context() as patch:
            patch.setattr(garbage._Collector, "_catch_up", catch_up)
            gc(repo)


@pytest.fixture
def between(monkeypatch, small_steps):
    return Between(monkeypatch)


def at_each_moment(tmp_path, between, scene):
    """Play a scene once for each moment of a collection.

    A scene takes the repository and prepares it; it yields what is to happen at the moment, and is
    then asked to look at the result.
    """
    for moment in itertools.count():
        path = tmp_path / f"{moment}.vzarr"
        with vzarr.open(path, durability="normal") as repo:
            play = scene(repo)
            between.collect(repo, moment, next(play))
            if not between.happened:
                assert moment > 11
                return
            assert next(play, None) is None
            # Deletes what the first one could not take.
            gc(repo)
        assert_sound(path)


def many(repo, count: int = 12) -> dict[str, bytes]:
    """Make garbage of some values; give them."""
    base = repo.branches["main"]
    values = {f"a/{number}": b"value %d" % number for number in range(count)}
    commit(repo.session("main"), "write", **values)
    commit(repo.session("main"), "delete", **dict.fromkeys(values))
    repo.branches.reset("main", base)
    forget_all(repo)
    return values


def assert_shows(repo, values: dict[str, bytes], branch: str = "main") -> None:
    session = repo.store(branch).session
    assert {key: session.get(key) for key in values} == values


def test_values_that_are_put_to_use_again_stay(tmp_path, between):
    def scene(repo):
        values = many(repo)
        yield lambda: commit(repo.session("main"), "again", **values)
        assert_shows(repo, values)

    at_each_moment(tmp_path, between, scene)


def test_values_that_are_staged_again_stay(tmp_path, between):
    def scene(repo):
        values = many(repo)
        session = repo.session("main")

        def stage():
            for key, value in values.items():
                session.set(key, value)
            session._work.spill()

        yield stage
        session.commit("staged")
        assert_shows(repo, values)

    at_each_moment(tmp_path, between, scene)


def test_values_that_a_session_stages_after_it_gave_up_others_stay(tmp_path, between):
    """Its records have the numbers of those that were looked at before."""

    def scene(repo):
        values = many(repo)
        session = staged(repo, first=b"first")
        one, two = dict(list(values.items())[:6]), dict(list(values.items())[6:])

        def stage_others():
            session.discard()
            for part in (one, two):
                for key, value in part.items():
                    session.set(key, value)
                session._work.changes.flush()

        yield stage_others
        session.commit("staged")
        assert_shows(repo, values)

    at_each_moment(tmp_path, between, scene)


def test_values_that_a_fork_writes_again_stay(tmp_path, between):
    def scene(repo):
        values = many(repo)
        session = repo.session("main")
        fork = session.fork()

        def write_fork():
            for key, value in values.items():
                fork.set(key, value)

        yield write_fork
        session.merge_fork(fork)
        session.commit("forked")
        assert_shows(repo, values)

    at_each_moment(tmp_path, between, scene)


@pytest.mark.parametrize("named", ["branch", "reset", "tag"])
def test_a_garbage_commit_is_named_again_whole_or_not_at_all(tmp_path, between, named):
    def scene(repo):
        first = write(repo, b"first")
        second = write(repo, b"second")
        repo.branches.reset("main", "main~2")
        make_garbage(repo, commits=2, values=2)
        done = []

        def name():
            try:
                if named == "branch":
                    repo.branches.create("named", at=second)
                elif named == "tag":
                    repo.tags.create("named", at=second)
                else:
                    repo.branches.reset("main", second)
            except RefNotFoundError:
                assert not has_commit(repo, second)
            else:
                done.append(1)

        yield name
        if done:
            assert_shows(repo, {"file": b"second"}, "main" if named == "reset" else "named")
            assert_shows(repo, {"file": b"first"}, first)
        else:
            assert not has(repo, b"second")

    at_each_moment(tmp_path, between, scene)


def test_a_name_for_a_commit_that_was_deleted_meanwhile_is_refused(repo):
    lost = write(repo, b"lost")
    repo.branches.reset("main", "main~1")
    forget_all(repo)
    commit_id, head = Digest(bytes.fromhex(lost)), Digest(repo_head(repo))
    gc(repo)
    for named in (
        lambda txn: refs.create_branch(txn, "x", commit_id, "", 0, ""),
        lambda txn: refs.move_branch(txn, "main", head, commit_id, "", 0, ""),
        lambda txn: refs.create_tag(txn, "x", refs.TagRecord(commit_id, "", "", 0)),
    ):
        with pytest.raises(CommitNotFoundError), repo._environment.write() as txn:
            named(txn)
    assert list(repo.branches) == ["main"]


def test_a_session_opened_on_a_garbage_commit_reads_it_or_is_refused(tmp_path, between):
    def scene(repo):
        write(repo, b"value")
        lost = write(repo, b"lost")
        repo.branches.reset("main", "main~2")
        make_garbage(repo, commits=2, values=2)
        sessions = []

        def read():
            try:
                sessions.append(repo.session(lost))
            except (RefNotFoundError, CommitNotFoundError):
                assert not has_commit(repo, lost)

        yield read
        for session in sessions:
            assert session.get("file") == b"lost"

    at_each_moment(tmp_path, between, scene)


def test_a_commit_that_was_pinned_while_it_was_deleted_comes_back(repo, small_steps, monkeypatch):
    """The reader has looked whether it is there after the collection looked for readers."""
    write(repo, b"below")
    lost = Digest(bytes.fromhex(write(repo, b"lost")))
    repo.branches.reset("main", "main~2")
    make_garbage(repo, commits=2, values=2)
    environment = repo._environment
    original = garbage._Collector._delete_commits
    late = []

    def delete_commits(self, txn, commits):
        result = original(self, txn, commits)
        # Two steps of a reader, after the collection's look and before the end of its txn.
        if lost in result[0]:
            environment.pin(lost)
            assert history.exists(environment, lost)
            late.append(lost)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(garbage._Collector, "_delete_commits", delete_commits)
        gc(repo)
    assert late
    assert repo.session(lost.hex()).get("file") == b"lost"
    assert repo.session(f"{lost.hex()}~1").get("file") == b"below"
    environment.unpin(lost)
    gc(repo)
    assert not has(repo, b"below")


def test_commits_that_come_and_go_meanwhile_leave_nothing_half_deleted(tmp_path, between):
    """Made of values that were garbage, replaced, and gone from the reflog too, before we look."""

    def scene(repo):
        values = many(repo)
        strays = []

        def come_and_go():
            session = repo.session("main")
            for key, value in values.items():
                session.set(key, value)
            strays.append(session.commit("stray"))
            session.set("file", b"other")
            for key in values:
                session.delete(key)
            session.amend()
            forget_all(repo)

        yield come_and_go
        left.append(has_commit(repo, strays[0]))
        if left[-1]:
            assert_shows(repo, values, strays[0])

    left = []
    at_each_moment(tmp_path, between, scene)
    # While commits are deleted it is one of them; later it is left for the next time.
    assert left == sorted(left)
    assert {*left} == {False, True}


def test_what_a_reflog_that_was_emptied_names_since_stays(tmp_path, between):
    """A branch that was deleted begins at number 0 again."""

    def scene(repo):
        values = many(repo)
        repo.branches.create("dev")
        for number in range(5):
            write(repo, b"%d" % number, "dev")
        undone = []

        def again():
            repo.branches.delete("dev")
            forget_all(repo)
            repo.branches.create("dev")
            undone.append(commit(repo.session("dev"), **values))
            repo.branches.reset("dev", "main")
            for number in range(5):
                write(repo, b"%d again" % number, "dev")

        yield again
        assert_shows(repo, values, undone[0])

    at_each_moment(tmp_path, between, scene)


def test_a_dead_session_can_be_resumed_until_it_is_gone(tmp_path, between):
    def scene(repo):
        make_garbage(repo, commits=2, values=2)
        session = staged(repo, one=b"saved", two=b"saved too")
        session.checkpoint()
        session.set("three", b"not saved")
        session._work.spill()
        end(session)
        resumed = []
        yield lambda: resumed.append(repo.resume(session.id))
        assert sorted(resumed[0].keys()) == ["file", "one", "two"]
        resumed[0].set("four", b"4")
        resumed[0].commit("resumed")
        assert_shows(repo, {"one": b"saved", "two": b"saved too", "four": b"4"})

    at_each_moment(tmp_path, between, scene)


def test_moves_that_are_noted_as_one_are_looked_at_again(tmp_path, between):
    def scene(repo):
        values = many(repo)
        environment = repo._environment
        start = Digest(repo_head(repo))

        def go_on():
            heads = [start]
            for number in range(3):
                keys = dict(list(values.items())[number * 4 :][:4])
                repo.branches.create(f"{number}", at=heads[-1].hex())
                heads.append(Digest(bytes.fromhex(commit(repo.session(f"{number}"), **keys))))
                with environment.write() as txn:
                    refs.delete_branch(txn, f"{number}", "", 0, "")
                    refs.move_branch(
                        txn, "main", heads[-2], heads[-1], "", 0, "autocommit", goes_on=True
                    )
            forget_all(repo)

        yield go_on
        assert_shows(repo, values)

    at_each_moment(tmp_path, between, scene)


# ── the reflog ───────────────────────────────────────────────────────────────────────────────────


def operations(repo, branch: str = "main") -> list[str]:
    with repo._environment.read() as txn:
        return [entry.operation for entry in refs.reflog(txn, branch)]


@pytest.fixture
def moved(repo):
    """Main moved at the times 0 to 5, dev was made at 3 and deleted at 4."""
    with repo._environment.write() as txn:
        head = Digest(repo_head(repo))
        for key, _ in txn.scan("reflog"):
            txn.delete("reflog", key)
        for time in range(6):
            refs.move_branch(txn, "main", head, head, "", time, f"{time}")
        refs.create_branch(txn, "dev", head, "", 3, "3")
        refs.delete_branch(txn, "dev", "", 4, "4")
    return repo


def at(time: int) -> datetime:
    return from_microseconds(time)


@pytest.mark.parametrize(
    ("options", "main", "dev"),
    [
        ({"older_than": at(0)}, "543210", "43"),
        ({"older_than": at(3)}, "543", "43"),
        ({"older_than": at(4)}, "54", "4"),
        ({"older_than": at(9)}, "5", ""),
        ({"older_than": timedelta()}, "5", ""),
        ({"older_than": timedelta(days=10)}, "5", ""),
        ({"older_than": timedelta(days=365_000)}, "543210", "43"),
        ({"keep_last": 0}, "5", ""),
        ({"keep_last": 1}, "5", "4"),
        ({"keep_last": 4}, "5432", "43"),
        ({"keep_last": 99}, "543210", "43"),
        ({"older_than": at(3), "keep_last": 5}, "54321", "43"),
        ({"older_than": at(3), "keep_last": 1}, "543", "43"),
        ({"older_than": at(9), "keep_last": 2}, "54", ""),
        ({"older_than": at(9), "branch": "dev"}, "543210", ""),
        ({"older_than": at(9), "branch": "main"}, "5", "43"),
    ],
)
def test_which_reflog_entries_go(moved, options, main, dev):
    before = entries(moved)
    told = expire(moved, dry_run=True, **options)
    assert entries(moved) == before
    report = expire(moved, **options)
    assert (operations(moved), operations(moved, "dev")) == (list(main), list(dev))
    assert replace(told, dry_run=False) == report
    assert report.entries == 8 - len(main + dev)
    looked_at = {"main": main, "dev": dev, None: main + dev}[options.get("branch")]
    assert report.kept == len(looked_at)
    shorter = [name for name, left, had in (("dev", dev, 2), ("main", main, 6)) if len(left) < had]
    assert list(report.branches) == shorter
    assert ("No commit is lost" in str(report)) == bool(shorter)


def test_the_newest_entry_forgets_where_it_came_from_unless_it_is_to_be_kept(moved):
    expire(moved, keep_last=1)
    assert moved.reflog("main")[0].old is not None
    expire(moved, older_than=at(5))
    assert moved.reflog("main")[0].old is not None
    expire(moved, older_than=at(6), dry_run=True)
    assert moved.reflog("main")[0].old is not None
    expire(moved, older_than=at(6))
    (entry,) = moved.reflog("main")
    assert (entry.old, entry.new, entry.operation) == (None, moved.branches["main"], "5")


def test_numbers_of_the_reflog_go_on(moved):
    expire(moved, keep_last=1)
    write(moved, b"next")
    assert operations(moved) == ["commit: write", "5"]
    with moved._environment.read() as txn:
        assert [sequence for sequence, _ in refs.moves(txn, "main")] == [6, 5]
        assert [name for name, _, _ in refs.reflogs(txn)] == ["dev", "main"]


def test_expiring_takes_many_short_txns(moved, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(expiry.time, "monotonic", lambda: next(clock) * 0.008)
    begun = []
    original = Environment.write
    monkeypatch.setattr(
        Environment, "write", lambda self, **options: begun.append(1) or original(self, **options)
    )
    assert expire(moved, older_than=at(9)).entries == 7
    assert len(begun) >= 4
    assert (operations(moved), operations(moved, "dev")) == (["5"], [])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"branch": "main"},
        {"older_than": 3},
        {"older_than": -timedelta(1)},
        {"keep_last": -1},
        {"keep_last": True},
        {"keep_last": 1.0},
    ],
)
def test_expiring_says_what_it_cannot_take(moved, options):
    with pytest.raises(InvalidInputError):
        expire(moved, **options)


def test_expiring_an_unknown_branch_and_in_a_reader(moved):
    with pytest.raises(RefNotFoundError):
        expire(moved, keep_last=1, branch="unknown")
    with vzarr.open(moved.path, "r") as reader:
        assert expire(reader, keep_last=1, dry_run=True).entries == 6


def test_branches_whose_names_begin_alike_have_reflogs_of_their_own(repo):
    for name in ("a", "a!", "aa", "a/b"):
        repo.branches.create(name)
        repo.branches.create(f"{name}-x")
    expire(repo, keep_last=0, branch="a")
    with repo._environment.read() as txn:
        found = {name: first for name, first, _ in refs.reflogs(txn)}
    assert len(found) == 9
    assert set(found.values()) == {0}


def test_a_row_of_amendments_is_one_move(repo):
    start = repo.branches["main"]
    commits = [Digest(bytes.fromhex(write(repo, b"%d" % n))) for n in range(4)]
    before = len(repo.reflog("main"))
    for old, new, why, goes_on in [
        (3, 0, "autocommit: x", True),
        (0, 1, "autocommit: x", True),
        (1, 2, "autocommit: x", True),
        (2, 1, "autocommit: y", True),
        (1, 0, "autocommit: y", False),
        (0, 2, "autocommit: y", True),
    ]:
        with repo._environment.write() as txn:
            refs.move_branch(
                txn, "main", commits[old], commits[new], "", 7 + old, why, goes_on=goes_on
            )
    log = repo.reflog("main")[: len(repo.reflog("main")) - before]
    assert [(entry.old, entry.new, entry.operation) for entry in log] == [
        (commits[1].hex(), commits[2].hex(), "autocommit: y"),
        (commits[2].hex(), commits[1].hex(), "autocommit: y"),
        (commits[3].hex(), commits[2].hex(), "autocommit: x"),
    ]
    assert log[-1].time == from_microseconds(8)
    assert start not in {entry.old for entry in log}


# ── the sets ─────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=30), st.integers(0, 9))
def test_a_digest_set_holds_what_was_added(parts, seed):
    rng = random.Random(seed)
    digests = [rng.randbytes(32) for _ in range(51)]
    # The first bit of a number and the last of its bytes matter too.
    digests[0], digests[1] = bytes(32), b"\xff" * 32
    found, expected = DigestSet(), set()
    assert found.missing(digests) == digests
    for part in parts:
        found.add(digests[index] + b"more" for index in part)
        expected |= set(part)
        assert found.missing(digests) == [
            digest for index, digest in enumerate(digests) if index not in expected
        ]
    assert found.missing([]) == []


def test_a_digest_set_sorts_as_it_grows(monkeypatch):
    monkeypatch.setattr("vzarr.marking._GATHERED_BYTES", 800)
    rng = random.Random(5)
    digests = [rng.randbytes(32) for _ in range(10_000)]
    found = DigestSet()
    for start in range(0, len(digests), 30):
        found.add(digests[start : start + 30])
        found.add(digests[start // 2 : start // 2 + 30])
    others = [rng.randbytes(32) for _ in range(100)]
    assert found.missing(digests + others) == others
    lengths = [len(run) for run in found._runs]
    assert sum(lengths) < 1.5 * len(digests)
    assert all(after * 2 < before for before, after in itertools.pairwise(lengths))


def test_leases_without_an_owner_are_told_from_others(repo):
    """What a collection leaves of a dead session says so to an owner that lives after all."""
    session = staged(repo, one=b"1")
    session.checkpoint()
    end(session)
    gc(repo)
    with repo._environment.read() as txn:
        record = leases.find(txn, session._lease.id)
    assert (record.token, record.staged) == (NOBODY, None)
    assert record.checkpoint == session._lease.record.checkpoint


def test_a_commit_that_txns_do_not_see_yet_is_kept(repo, monkeypatch):
    """LMDB writes down the number of a commit a moment before read txns begin to see it."""
    environment, real = repo._environment, Environment.last_txn_id
    told, committed = [], []

    def ahead(self):
        told.append(real(self) + (not told))
        return told[-1]

    def commits(self):
        session = repo.session("main")
        session.set("a", b"of the other writer")
        committed.append(session.commit("meanwhile"))
        session.close()
        assert real(environment) == told[0], "the number that was told ahead"

    monkeypatch.setattr(Environment, "last_txn_id", ahead)
    monkeypatch.setattr(garbage._Collector, "_end_sessions", commits)
    repo.gc()
    assert repo.show("main").id == committed[0]
    assert repo.check("full").ok
