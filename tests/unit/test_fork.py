"""Forks in one process: what they show, what they write together, and what a session takes over."""

from __future__ import annotations

import gc
import json
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import vzarr
from tests.processes import Child, threads, until
from tests.support import assert_sound
from vzarr import leases
from vzarr.environment import Environment
from vzarr.errors import (
    BusyError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    SessionStateError,
)
from vzarr.fork import Fork, require_merged
from vzarr.objects import Objects

GROUP = b'{"zarr_format": 3, "node_type": "group"}'


def elsewhere(fork: Fork) -> Fork:
    """Give a fork as another process has it."""
    return Fork(Objects(fork.environment, "always"), 30, fork._id, fork._record)


def content(side: vzarr.Session | Fork) -> dict[str, bytes]:
    return {key: bytes(side.get(key)) for key in side.keys()}  # noqa: SIM118 - not a mapping


@pytest.fixture
def session(repo):
    return repo.session("main")


@pytest.fixture
def fork(session):
    session.set("zarr.json", GROUP)
    session.set("file", b"file")
    return session.fork()


@pytest.fixture
def rows(session):
    """An array of four rows of ten numbers, two to a chunk, in the session."""
    return zarr.create_array(
        session.store, name="rows", shape=(4, 10), chunks=(2, 10), dtype="i4", compressors=None
    )


def in_fork(fork: Fork) -> zarr.Array:
    return zarr.open_array(fork.store, path="rows")


# ── seeing ───────────────────────────────────────────────────────────────────────────────────────


def test_a_fork_begins_with_what_the_session_shows(session, fork):
    assert content(fork) == content(session) == {"zarr.json": GROUP, "file": b"file"}
    assert not fork.has_changes
    session.set("later", b"later")
    assert fork.get("later") is None
    assert fork.root_id() != session.root_id()


def test_a_fork_sees_its_writes_and_the_session_does_not(session, fork):
    fork.set("new", b"new")
    fork.delete("file")
    assert fork.get("new") == b"new"
    assert fork.get("file") is None
    assert sorted(fork.keys()) == ["new", "zarr.json"]
    assert sorted(fork.children()) == ["new", "zarr.json"]
    assert fork.sums() == (2, len(GROUP) + 3)
    assert fork.has_changes
    assert content(session) == {"zarr.json": GROUP, "file": b"file"}


def test_processes_see_what_others_wrote_when_that_returned(fork):
    one, two = elsewhere(fork), elsewhere(fork)
    for number in range(5):
        one.set(f"a/{number}", b"1")
        assert two.get(f"a/{number}") == b"1"
        two.set(f"a/{number}", b"2")
        assert one.get(f"a/{number}") == b"2"
    two.delete("a/3")
    assert one.find("a/3") is None
    assert sorted(one.keys("a")) == [f"a/{number}" for number in (0, 1, 2, 4)]
    assert one.root_id() == two.root_id() == fork.root_id()


def test_a_commit_that_shows_before_txns_see_it_is_not_missed(fork, monkeypatch):
    other, real = elsewhere(fork), Environment.last_txn_id
    monkeypatch.setattr(Environment, "last_txn_id", lambda self: real(self) + 1)
    assert fork.get("new") is None
    monkeypatch.undo()
    other.set("new", b"new")
    assert fork.get("new") == b"new"


def test_two_forks_do_not_see_each_other(session):
    one, two = session.fork(), session.fork()
    one.set("a", b"1")
    assert two.get("a") is None
    assert one.id != two.id


def test_reading_while_others_write_never_misses_a_key(fork, monkeypatch):
    monkeypatch.setattr("vzarr.journal._FOLD_EDITS", 7)
    monkeypatch.setattr("vzarr.journal._LOOSE_NODE_BYTES", 0)
    reader = elsewhere(fork)
    written = 0
    done = threading.Event()

    def write() -> None:
        nonlocal written
        try:
            for number in range(150):
                fork.set(f"a/{number}", b"%d" % number)
                written = number + 1
        finally:
            done.set()

    def read() -> None:
        while not done.is_set():
            known = written
            for number in range(max(0, known - 20), known):
                assert reader.get(f"a/{number}") == b"%d" % number

    with threads(write, read, read):
        pass
    assert len(list(reader.keys("a"))) == 150


def test_former_nodes_are_let_go(fork, monkeypatch):
    monkeypatch.setattr("vzarr.journal._LOOSE_NODE_BYTES", 1 << 14)
    reader = elsewhere(fork)
    fork._writer.join([(f"a/{n}", fork.find("file")) for n in range(2000)], {}).result()
    largest = 0
    for number in range(60):
        fork.set(f"a/{number}", b"x")
        assert reader.sums("a")[0] == 2000
        largest = max(largest, reader._reader._overlay.nbytes)
    needed = sum(map(len, reader._reader.nodes(reader.hierarchy.root)))
    assert not reader._reader._edits
    assert largest <= 2.2 * needed + (1 << 15)
    assert reader.root_id() == fork.root_id()


KEYS = st.sampled_from(["a", "b/c", "b/d", "e/f/0", "e/f/1", "zarr.json"])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["set", "set_if_absent", "delete", "delete_below", "list", "get"]),
        st.integers(0, 2),
        KEYS,
    ),
    max_size=30,
)


@settings(max_examples=40)
@given(steps=STEPS, fold=st.integers(1, 8))
def test_forks_in_many_processes_are_one_dictionary(tmp_path_factory, steps, fold):
    path = tmp_path_factory.mktemp("fork") / "test.vzarr"
    with pytest.MonkeyPatch.context() as patch, vzarr.open(path) as repo:
        patch.setattr("vzarr.journal._FOLD_EDITS", fold)
        session = repo.session("main")
        session.set("b/c", b"old")
        fork = session.fork()
        processes = [fork, elsewhere(fork), elsewhere(fork)]
        model = {"b/c": b"old"}
        for number, (step, process, key) in enumerate(steps):
            side, value = processes[process], b"%d" % number
            if step == "set":
                side.set(key, value)
                model[key] = value
            elif step == "set_if_absent":
                side.set_if_absent(key, value)
                model.setdefault(key, value)
            elif step == "delete":
                side.delete(key)
                model.pop(key, None)
            elif step == "delete_below":
                side.delete_below(key)
                model = {each: at for each, at in model.items() if not each.startswith(f"{key}/")}
            elif step == "list":
                assert sorted(side.keys()) == sorted(model)
            else:
                found = side.get(key)
                assert (None if found is None else bytes(found)) == model.get(key)
        assert all(content(side) == model for side in processes)
        session.merge_fork(fork)
        assert content(session) == model
        if session.has_changes:
            session.commit("merged")
            assert content(repo.session("main")) == model
    assert_sound(path)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


class Held:
    """The write gate, in the hands of this thread until it lets go."""

    def __init__(self, fork: Fork) -> None:
        self.fork = fork

    def __enter__(self) -> None:
        self.txn = self.fork.environment.write()
        self.txn.__enter__()

    def __exit__(self, *error: object) -> None:
        self.txn.__exit__(*error)


def waiting(fork: Fork) -> int:
    group = fork._writer._group
    return 0 if group is None else len(group.edits)


def test_what_comes_together_is_one_txn(fork):
    def put(number: int) -> None:
        fork.set(f"a/{number}", b"%d" % number)

    with ThreadPoolExecutor(20) as pool:
        with Held(fork):
            before = fork.environment.last_txn_id()
            futures = [pool.submit(put, number) for number in range(20)]
            until(lambda: waiting(fork) == 20)
        for future in futures:
            future.result()
    # The one that was held, which wrote nothing, is none.
    assert fork.environment.last_txn_id() - before == 1
    assert {bytes(fork.get(key)) for key in fork.keys("a")} == {b"%d" % n for n in range(20)}


def test_a_group_is_bounded(fork, monkeypatch):
    monkeypatch.setattr("vzarr.journal._GROUP_BYTES", 100)
    with Held(fork):
        before = fork.environment.last_txn_id()
        futures = [fork.begin_set(f"a/{number}", b"%050d" % number) for number in range(6)]
        futures.append(fork.begin_set("large", bytes(1000)))
    for future in futures:
        future.result()
    assert fork.environment.last_txn_id() - before == 4
    assert len(list(fork.keys("a"))) == 6
    assert fork.get("large") == bytes(1000)


def test_a_group_that_fails_fails_for_all_and_the_next_works(path):
    with vzarr.open(path, timeout=0.05) as repo:
        session = repo.session("main")
        fork = session.fork()
        with Held(fork):
            futures = [fork.begin_set("a", b"1"), fork.begin_set("b", b"2")]
            for future in futures:
                with pytest.raises(BusyError):
                    future.result()
        assert waiting(fork) == 0
        assert list(fork.keys()) == []
        fork.set("a", b"3")
        assert content(fork) == {"a": b"3"}
        session.merge_fork(fork)
        session.commit("a")


def test_a_txn_that_fails_leaves_nothing_of_its_group(fork, monkeypatch):
    def fail(*_: object) -> None:
        raise vzarr.FullError("the disk is full")

    monkeypatch.setattr("vzarr.journal.encode_journal", fail)
    with pytest.raises(vzarr.FullError):
        fork.set("a", b"1")
    monkeypatch.undo()
    before = leases_of(fork)[fork._id].nbytes
    assert before == 0
    fork.set("a", b"2")
    assert fork.get("a") == b"2"


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def test_where_no_thread_is_to_be_had_the_caller_writes(session, fork, monkeypatch):
    monkeypatch.setattr("vzarr.changes._tasks", None)
    monkeypatch.setattr("_thread.start_new_thread", no_thread)
    futures = [fork.begin_set("a", b"1"), fork.begin_delete("file")]
    assert all(future.done() for future in futures)
    fork.set("b", b"2")
    monkeypatch.setattr("vzarr.journal.encode_journal", no_thread)
    failed = fork.begin_set("c", b"3")
    with pytest.raises(RuntimeError):
        failed.result()
    monkeypatch.undo()
    fork.set("d", b"4")
    assert content(fork) == {"zarr.json": GROUP, "a": b"1", "b": b"2", "d": b"4"}
    session.merge_fork(fork)
    assert content(session) == content(fork)


def test_who_comes_while_a_caller_writes_is_in_its_txn(fork, monkeypatch):
    monkeypatch.setattr("vzarr.journal.submit", no_thread)
    with ThreadPoolExecutor(1) as pool:
        with Held(fork):
            before = fork.environment.last_txn_id()
            first = pool.submit(fork.set, "a/1", b"1")
            until(lambda: waiting(fork) == 1)
            second = fork.begin_set("a/2", b"2")
            assert not second.done()
        first.result()
        second.result()
    assert fork.environment.last_txn_id() - before == 1
    assert set(fork.keys("a")) == {"a/1", "a/2"}


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_a_caller_who_writes(fork, monkeypatch, interrupt):
    def stop(*_: object) -> None:
        raise interrupt

    monkeypatch.setattr("vzarr.journal.submit", no_thread)
    with monkeypatch.context() as patch:
        patch.setattr("vzarr.journal.encode_journal", stop)
        with pytest.raises(interrupt):
            fork.begin_set("a", b"1")
    fork.set("b", b"2")
    assert content(fork) == {"zarr.json": GROUP, "file": b"file", "b": b"2"}


def test_set_if_absent(fork):
    other = elsewhere(fork)
    fork.set_if_absent("file", b"other")
    assert fork.get("file") == b"file"
    other.set_if_absent("new", b"1")
    fork.set_if_absent("new", b"2")
    assert fork.get("new") == other.get("new") == b"1"
    other.delete("new")
    fork.set_if_absent("new", b"2")
    assert other.get("new") == b"2"


@pytest.mark.parametrize("deleted_again", [False, True])
def test_set_if_absent_is_one_step_between_processes(fork, monkeypatch, deleted_again):
    other, find = elsewhere(fork), Fork.find

    def overtaken(self: Fork, key: str):
        found = find(self, key)
        if self is fork and found is None:
            other.set(key, b"faster")
            if deleted_again:
                other.delete(key)
        return found

    monkeypatch.setattr(Fork, "find", overtaken)
    fork.set_if_absent("new", b"slow")
    monkeypatch.undo()
    assert fork.get("new") == (b"slow" if deleted_again else b"faster")


def test_deleting_what_is_not_there_is_written_once_for_an_array(fork):
    before = fork.environment.last_txn_id()
    for number in range(50):
        fork.delete(f"a/c/{number}/0")
        fork.delete(f"b/c/{number}/0")
    assert fork.environment.last_txn_id() - before == 2
    fork.set("a/c/0/0", b"x")
    fork.delete("a/c/0/0")
    assert fork.get("a/c/0/0") is None
    assert not fork.has_changes


def test_delete_below(fork):
    for key in ("a/b", "a/c/d", "ab"):
        fork.set(key, b"x")
    before = fork.environment.last_txn_id()
    fork.delete_below("a")
    fork.delete_below("none")
    assert fork.environment.last_txn_id() - before == 1
    assert sorted(fork.keys()) == ["ab", "file", "zarr.json"]
    fork.delete_below("")
    assert list(fork.keys()) == []


def test_what_no_repository_can_hold_is_refused(fork):
    for key in ("", "\ud800", 5):
        with pytest.raises(InvalidInputError):
            fork.set(key, b"x")
        with pytest.raises(InvalidInputError):
            fork.set_if_absent(key, b"x")
    assert not fork.has_changes


def test_a_forked_process_goes_on_whatever_its_parents_threads_hold(session, fork):
    fork.set("before", b"before")
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with fork._writer._lock, fork._reader._lock:
            held.set()
            release.wait()

    def write(pipe) -> list[str]:
        fork.set("child", b"child")
        fork.set_if_absent("child", b"other")
        return sorted(fork.keys())

    with threads(hold):
        held.wait()
        try:
            assert Child(write).result() == ["before", "child", "file", "zarr.json"]
        finally:
            release.set()
    fork.set("after", b"after")
    assert sorted(fork.keys()) == ["after", "before", "child", "file", "zarr.json"]
    session.merge_fork()
    assert session.get("child") == b"child"


# ── taking over ──────────────────────────────────────────────────────────────────────────────────


def test_what_was_written_through_zarr_is_merged_and_committed(repo, session, rows):
    fork = session.fork()
    in_fork(fork)[:] = np.arange(40).reshape(4, 10)
    assert rows[3, 9] == 0
    session.merge_fork(fork)
    assert rows[3, 9] == 39
    session.commit("rows")
    found = zarr.open_array(repo.store("main"), path="rows")
    np.testing.assert_array_equal(found[:], np.arange(40).reshape(4, 10))


def test_a_fork_writes_what_a_session_would(repo, session, rows):
    fork, other = session.fork(), repo.session("main")
    values = np.random.default_rng(0).integers(0, 9, (4, 10))
    in_fork(fork)[:] = values
    session.merge_fork()
    zarr.create_array(
        other.store, name="rows", shape=(4, 10), chunks=(2, 10), dtype="i4", compressors=None
    )[:] = values
    assert session.root_id() == other.root_id()


def test_all_forks_are_merged_if_none_is_named(session, rows):
    one, two, idle = session.fork(), session.fork(), session.fork()
    in_fork(one)[:2] = 1
    in_fork(two)[2:] = 2
    session.merge_fork()
    np.testing.assert_array_equal(rows[:, 0], [1, 1, 2, 2])
    for fork in (one, two, idle):
        with pytest.raises(SessionStateError, match="taken over"):
            fork.set("a", b"x")


def test_a_fork_that_wrote_nothing_changes_nothing(session, rows):
    before = session.root_id()
    session.merge_fork(session.fork(), session.fork())
    session.merge_fork()
    assert session.root_id() == before


def test_only_named_forks_are_merged(session, rows):
    one, two = session.fork(), session.fork()
    in_fork(one)[:2] = 1
    in_fork(two)[2:] = 2
    session.merge_fork(one, one)
    np.testing.assert_array_equal(rows[:, 0], [1, 1, 0, 0])
    two.set("a", b"still open")
    session.merge_fork(two)
    np.testing.assert_array_equal(rows[:, 0], [1, 1, 2, 2])


def test_chunks_of_two_forks_merge_by_element(session, rows):
    one, two = session.fork(), session.fork()
    in_fork(one)[0] = 1
    in_fork(two)[1] = 2
    rows[3] = 3
    session.merge_fork(one, two)
    np.testing.assert_array_equal(rows[:, 0], [1, 2, 0, 3])
    np.testing.assert_array_equal(rows[:, 9], [1, 2, 0, 3])


@pytest.mark.parametrize(("strategy", "expected"), [("ours", 1), ("theirs", 2)])
def test_one_element_in_two_forks_is_a_conflict(session, rows, strategy, expected):
    one, two = session.fork(), session.fork()
    in_fork(one)[0] = 1
    in_fork(two)[0, 5:] = 2
    in_fork(two)[1] = 2
    before = session.root_id()
    with pytest.raises(ConflictError, match="another fork") as caught:
        session.merge_fork(one, two)
    assert [conflict.coordinates for conflict in caught.value.conflicts] == [(0, 0)]
    assert session.root_id() == before
    # Both are as they were: they go on, and are merged in the end.
    in_fork(one)[3] = 4
    session.merge_fork(one, two, merge=strategy)
    assert rows[0, 0] == 1
    assert rows[0, 5] == expected
    assert rows[1, 0] == 2
    assert rows[3, 0] == 4


def test_a_function_resolves_conflicts(session, rows):
    fork = session.fork()
    rows[0] = 1
    in_fork(fork)[0] = 2
    asked = []

    def resolve(conflict):
        asked.append(conflict.coordinates)
        return "theirs"

    session.merge_fork(fork, merge=resolve)
    assert asked == [(0, 0)]
    assert rows[0, 0] == 2


def test_the_session_may_write_meanwhile(repo, session, rows):
    fork = session.fork()
    rows[0] = 1
    rows.attrs["session"] = True
    array = in_fork(fork)
    array[1] = 2
    array.attrs["fork"] = True
    session.merge_fork(fork)
    found = zarr.open_array(session.store, path="rows")
    assert dict(found.attrs) == {"session": True, "fork": True}
    np.testing.assert_array_equal(found[:, 0], [1, 2, 0, 0])


def test_nodes_made_and_deleted_in_a_fork(repo, session, rows):
    session.set("gone/zarr.json", GROUP)
    fork = session.fork()
    group = fork.root_group
    group.create_group("made").create_array("a", data=np.arange(5))
    del group["gone"]
    del group["rows"]
    session.merge_fork(fork)
    session.commit("made and deleted")
    root = repo.session("main").root_group
    assert sorted(root) == ["made"]
    np.testing.assert_array_equal(root["made/a"][:], np.arange(5))


def test_arrays_made_by_two_forks_in_one_new_group(session):
    for number in range(3):
        fork = session.fork()
        zarr.create_array(fork.store, name=f"group/{number}", data=np.full(3, number))
    session.merge_fork()
    assert sorted(session.root_group["group"]) == ["0", "1", "2"]


def test_rounds_of_forks(repo, session, rows):
    for number in range(4):
        fork = session.fork()
        array = in_fork(fork)
        array[number] = array[max(0, number - 1)] + 1
        session.merge_fork(fork)
    np.testing.assert_array_equal(rows[:, 0], [1, 2, 3, 4])
    session.commit("rounds")
    fork = session.fork()
    in_fork(fork)[0] = 9
    session.merge_fork()
    session.commit("another")
    assert zarr.open_array(repo.store("main"), path="rows")[0, 0] == 9


def test_on_a_session_that_was_rebased(repo, session, rows):
    session.commit("rows")
    fork = session.fork()
    in_fork(fork)[0] = 1
    with repo.transaction("main", "another") as store:
        zarr.open_array(store, path="rows")[1] = 2
    session.set("file", b"file")
    session.rebase()
    session.merge_fork(fork)
    np.testing.assert_array_equal(rows[:, 0], [1, 2, 0, 0])
    session.commit("all")


def test_a_commit_merges_with_what_others_committed(repo, session, rows):
    session.commit("rows")
    fork = session.fork()
    with repo.transaction("main", "another") as store:
        zarr.open_array(store, path="rows")[1] = 2
    in_fork(fork)[0] = 1
    session.merge_fork()
    session.commit("mine")
    found = zarr.open_array(repo.store("main"), path="rows")
    np.testing.assert_array_equal(found[:, 0], [1, 2, 0, 0])


@pytest.mark.parametrize("value", [7, 0], ids=["rows", "fill value"])
def test_two_forks_that_append_are_a_conflict(session, rows, value):
    one, two = session.fork(), session.fork()
    in_fork(one).append(np.full((2, 10), value))
    in_fork(two).append(np.full((2, 10), value))
    with pytest.raises(ConflictError, match="both sides grew axis 0 from 4 to 6"):
        session.merge_fork()
    session.merge_fork(one)
    with pytest.raises(ConflictError, match="both sides grew axis 0 from 4 to 6"):
        session.merge_fork(two)
    two.discard()


def test_two_forks_that_grow_an_array_and_fill_chunks_of_their_own(session, rows):
    one, two = session.fork(), session.fork()
    for fork, part in ((one, slice(4, 6)), (two, slice(6, 8))):
        array = in_fork(fork)
        array.resize((8, 10))
        array[part] = part.start
    session.merge_fork()
    found = zarr.open_array(session.store, path="rows")
    np.testing.assert_array_equal(found[:, 0], [0, 0, 0, 0, 4, 4, 6, 6])


def test_what_a_fork_wrote_without_effect_counts_in_a_race_with_others(repo, session, rows):
    session.commit("rows")
    fork = session.fork()
    in_fork(fork).append(np.zeros((2, 10)))
    session.merge_fork()
    with repo.transaction("main", "another") as store:
        zarr.open_array(store, path="rows").append(np.zeros((2, 10)))
    with pytest.raises(ConflictError, match="both sides grew axis 0 from 4 to 6"):
        session.commit("append")


def test_a_write_during_the_merge_is_taken_over_too(session, rows, monkeypatch):
    fork = session.fork()
    in_fork(fork)[0] = 1
    from vzarr.fork import merge

    late = iter([2, 3])

    def slow(*arguments: object):
        number = next(late, None)
        if number is not None:
            fork.set(f"late/{number}", b"late")
        return merge(*arguments)

    monkeypatch.setattr("vzarr.fork.merge", slow)
    session.merge_fork(fork)
    assert rows[0, 0] == 1
    assert sorted(session.keys("late")) == ["late/2", "late/3"]


def test_writes_without_end_are_not_waited_for(path, monkeypatch):
    with vzarr.open(path, timeout=0.2) as repo:
        session = repo.session("main")
        fork = session.fork()
        from vzarr.fork import merge

        def slow(*arguments: object):
            fork.set("late", b"%d" % fork._reader.seen)
            return merge(*arguments)

        monkeypatch.setattr("vzarr.fork.merge", slow)
        with pytest.raises(BusyError, match="let the workers finish"):
            session.merge_fork(fork)
        monkeypatch.undo()
        assert not session.has_changes
        session.merge_fork(fork)
        assert session.get("late") == fork.get("late")


def test_many_edits_are_merged_in_parts(repo, session, monkeypatch):
    monkeypatch.setattr("vzarr.journal._FOLD_EDITS", 50)
    monkeypatch.setattr("vzarr.journal._LOOSE_NODE_BYTES", 0)
    fork, model = session.fork(), {}
    for number in range(400):
        key = f"a/{number * 7919 % 331}"
        if number % 5:
            fork.set(key, b"%d" % number)
            model[key] = b"%d" % number
        else:
            fork.delete(key)
            model.pop(key, None)
    session.merge_fork()
    assert content(session) == model
    session.commit("many")
    assert content(repo.session("main")) == model


# ── what is refused ──────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_merged(repo, session, fork):
    other = repo.session("main")
    with pytest.raises(SessionStateError, match="merge it there"):
        other.merge_fork(fork)
    with pytest.raises(InvalidInputError, match="takes what"):
        session.merge_fork(fork.store)
    with pytest.raises(InvalidInputError, match="merge="):
        session.merge_fork(fork, merge="mine")
    fork.set("a", b"x")
    session.merge_fork(fork)
    with pytest.raises(SessionStateError, match="taken over"):
        session.merge_fork(fork)
    assert session.get("a") == b"x"


def test_one_fork_that_cannot_be_merged_leaves_the_others_open(repo, session, fork):
    fork.set("a", b"x")
    foreign = repo.session("main").fork()
    with pytest.raises(SessionStateError):
        session.merge_fork(fork, foreign)
    assert session.get("a") is None
    session.merge_fork(fork)


def test_who_cannot_be_forked(repo, path):
    with pytest.raises(ReadOnlyError):
        repo.session(repo.branches["main"]).fork()
    with pytest.raises(SessionStateError, match="serializable session cannot be forked"):
        repo.session("main", isolation="serializable").fork()
    session = repo.session("main")
    session.close()
    with pytest.raises(SessionStateError):
        session.fork()
    repo.close()
    with vzarr.open(path, "r") as reader, pytest.raises(ReadOnlyError):
        reader.session("main").fork()


def test_a_commit_must_not_lose_what_a_fork_wrote(session, rows):
    def look() -> None:
        with session.environment.read() as txn:
            require_merged(txn, session._lease)

    idle, fork = session.fork(), session.fork()
    look()
    in_fork(fork)[0] = 1
    with pytest.raises(SessionStateError, match=r"holds 80 bytes that were not merged"):
        look()
    session.merge_fork(fork)
    look()
    other = session.fork()
    other.delete("rows/zarr.json")
    with pytest.raises(SessionStateError, match="not merged"):
        look()
    other.discard()
    look()
    assert not idle.has_changes


# ── the end ──────────────────────────────────────────────────────────────────────────────────────


ENDS = {
    "merge": lambda session, fork: session.merge_fork(fork),
    "commit": lambda session, fork: (session.merge_fork(fork), session.commit("merged")),
    "discard": lambda session, fork: session.discard(),
    "close": lambda session, fork: session.close(),
    "discard the fork": lambda session, fork: fork.discard(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_after_the_end_it_can_be_read_and_not_written(session, fork, end):
    fork.set("a", b"x")
    assert fork.get("a") == b"x"
    end(session, fork)
    for write in (
        lambda: fork.set("a", b"y"),
        lambda: fork.set_if_absent("b", b"y"),
        lambda: fork.delete("a"),
        lambda: fork.delete_below(""),
    ):
        with pytest.raises(SessionStateError, match="nothing can be written to fork"):
            write()
    assert fork.get("a") == b"x"
    assert sorted(fork.keys()) == ["a", "file", "zarr.json"]


def test_a_session_that_was_let_go_takes_its_forks_with_it(repo):
    session = repo.session("main")
    fork = session.fork()
    fork.set("a", b"x")
    del session
    gc.collect()
    with pytest.raises(SessionStateError, match="ended"):
        fork.set("a", b"y")
    assert fork.get("a") == b"x"


def test_discarding_a_fork(session, fork):
    fork.set("a", b"x")
    fork.discard()
    fork.discard()
    assert fork._id not in leases_of(fork)
    session.merge_fork()
    assert session.get("a") is None
    with pytest.raises(SessionStateError):
        session.merge_fork(fork)
    merged = session.fork()
    merged.set("b", b"x")
    session.merge_fork()
    with pytest.raises(SessionStateError, match="cannot be discarded"):
        merged.discard()
    assert session.get("b") == b"x"
    session.commit("b")
    merged.discard()


def test_forks_that_were_made_here_are_kept_until_they_end(session, fork):
    data = pickle.dumps(fork)
    known = id(fork)
    del fork
    gc.collect()
    assert id(pickle.loads(data)) == known
    pickle.loads(data).set("a", b"x")
    session.merge_fork()
    from vzarr import fork as module

    assert not module._made[session._lease]


def test_forks_die_with_their_process(path):
    def make(pipe) -> None:
        repo = vzarr.open(path)
        session = repo.session("main")
        fork = session.fork()
        fork.set("a", b"x")
        pipe.send(pickle.dumps(fork))
        pipe.recv()

    child = Child(make)
    fork = pickle.loads(child.receive())
    fork.set("b", b"y")
    child.kill()
    with pytest.raises(SessionStateError, match="its session has ended"):
        fork.set("c", b"z")
    assert content(fork) == {"a": b"x", "b": b"y"}


# ── the collection of garbage ────────────────────────────────────────────────────────────────────


def test_what_a_fork_wrote_is_no_garbage_until_it_ends(repo, session, fork):
    for number in range(20):
        fork.set(f"a/{number}", b"%d" % number * 100)
    before = fork.environment.info().entries["chunks"]
    repo.gc()
    assert fork.environment.info().entries["chunks"] == before
    session.merge_fork()
    repo.gc()
    assert session.get("a/7") == b"7" * 100
    another = session.fork()
    another.set("b", b"b")
    another.discard()
    repo.gc()
    assert fork.environment.info().entries["chunks"] == before
    session.commit("merged")
    repo.gc()
    assert len(content(repo.session("main"))) == 22
    dropped = session.fork()
    for number in range(20):
        dropped.set(f"a/{number}", b"dropped %d" % number)
    session.discard()
    repo.gc()
    assert fork.environment.info().entries["chunks"] == before


def test_values_that_were_garbage_when_a_fork_wrote_them_again(repo, session):
    """What is stored already is not stored again: it must not be collected in that moment."""
    fork, done = session.fork(), threading.Event()

    def collect() -> None:
        while not done.is_set():
            repo.gc()

    with threads(collect):
        try:
            for turn in range(30):
                lost = session.fork()
                for number in range(5):
                    lost.set(f"a/{number}", b"value %d" % number)
                lost.discard()
                for number in range(5):
                    fork.set(f"a/{number}", b"value %d" % number)
                assert [bytes(fork.get(f"a/{n}")) for n in range(5)] == [
                    b"value %d" % number for number in range(5)
                ]
                if turn % 3 == 0:
                    fork.discard()
                    fork = session.fork()
        finally:
            done.set()
    session.merge_fork()
    session.commit("the last")


def leases_of(fork: Fork) -> dict:
    with fork.environment.read() as txn:
        return dict(leases.leases(txn))


def test_repo_sessions_lists_forks(repo, session, fork):
    fork.set("a", bytes(1000))
    fork.set("b", bytes(500))
    found = {info.id: info for info in repo.sessions()}
    assert found[fork.id].kind == "fork"
    assert found[fork.id].parent == session.id
    assert found[fork.id].nbytes == 1500
    assert found[fork.id].alive
    assert found[session.id].kind == "session"
    session.merge_fork()
    session.commit("done")
    assert fork.id not in {info.id for info in repo.sessions()}


# ── pickling ─────────────────────────────────────────────────────────────────────────────────────

PICKLERS: list[Callable[[object], bytes]] = [
    *(
        lambda thing, protocol=protocol: pickle.dumps(thing, protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ),
    cloudpickle.dumps,
]


@pytest.mark.parametrize("dumps", PICKLERS)
def test_within_its_process_a_pickled_fork_is_the_same(fork, dumps):
    assert pickle.loads(dumps(fork)) is fork
    store = pickle.loads(dumps(fork.store))
    assert store == fork.store
    assert store.session is fork
    reader = pickle.loads(dumps(fork.store.with_read_only(True)))
    assert reader.read_only
    assert reader.session is fork
    assert len(dumps(fork)) < 1200


def test_attributes(repo, session, fork):
    assert fork.branch == "main"
    assert fork.base == session.base == repo.branches["main"]
    assert fork.read_only is False
    assert fork.environment is session.environment
    assert f"<vzarr.Fork {fork.id[:8]} of branch 'main' of " in repr(fork)
    assert repr(fork.store).startswith("VzarrStore(")


def test_a_fork_that_was_unpickled_before_its_file_was_opened_again(path):
    """The session goes on from its checkpoint, and the fork with it."""
    repo = vzarr.open(path)
    session = repo.session("main")
    fork = session.fork()
    fork.set("a", b"x")
    data = pickle.dumps(fork)
    assert pickle.loads(data) is fork
    session.checkpoint()
    session.close()
    repo.close()
    with vzarr.open(path) as again:
        resumed = again.resume(session.id)
        found = pickle.loads(data)
        assert found is not fork
        found.set("b", b"y")
        resumed.merge_fork()
        assert content(resumed) == {"a": b"x", "b": b"y"}
        resumed.commit("both")


def test_what_has_ended_is_not_unpickled_elsewhere(session, fork):
    data = pickle.dumps(fork)

    def load(pipe) -> None:
        from vzarr import fork as module

        module._forks.clear()
        pickle.loads(data)

    fork.set("a", b"x")
    session.merge_fork()
    assert Child(load).result() is None
    session.commit("done")
    assert Child(load).result()[0] == "SessionStateError"


def test_a_fork_of_another_machine_says_so(path, monkeypatch):
    monkeypatch.setattr("vzarr.leases.socket.gethostname", lambda: "another")
    leases._owner.cache_clear()
    try:
        with vzarr.open(path) as repo:
            session = repo.session("main")
            data = pickle.dumps(session.fork())
            session.close()
    finally:
        monkeypatch.undo()
        leases._owner.cache_clear()
    vzarr.delete(path)
    with pytest.raises(NotFoundError, match="made on another"):
        pickle.loads(data)


def test_documents_that_forks_wrote_are_documents(session):
    fork = session.fork()
    fork.set("a/c/0", b"chunk first")
    fork.set("a/zarr.json", json.dumps({"zarr_format": 3, "node_type": "group"}).encode())
    session.merge_fork()
    assert session.hierarchy.node("a").kind == "group"


def test_a_commit_does_not_lose_what_a_fork_wrote(repo, session, rows):
    fork = session.fork()
    in_fork(fork)[0] = 1
    before = repo.branches["main"]
    for commit in (lambda: session.commit("rows"), lambda: session.amend("rows")):
        with pytest.raises(SessionStateError, match="not merged"):
            commit()
    assert repo.branches["main"] == before
    session.merge_fork()
    session.commit("rows")
    idle, given_up = session.fork(), session.fork()
    given_up.set("a", b"x")
    given_up.discard()
    session.set("b", b"b")
    session.commit("b")
    with pytest.raises(SessionStateError, match="ended"):
        idle.set("c", b"c")
