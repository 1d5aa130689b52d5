"""Checkpoints in the background: when they are made, what stops them, and that they stop."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

import vzarr
from tests.processes import PATIENCE, Child, until
from vzarr.autosave import Autosave
from vzarr.errors import BusyError, FullError, InvalidInputError, ReadOnlyError, SessionStateError
from vzarr.session import Session
from vzarr.workspace import Workspace

SOON = 0.001
NEVER = 1000.0


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vzarr-autosave"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    yield
    gc.collect()
    until(lambda: not running())


class Saved:
    """Stands in for a session; says when it was saved, and fails when told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.called = threading.Semaphore(0)
        self.error: Exception | None = None

    def save_if_changed(self) -> None:
        self.calls += 1
        try:
            if self.error is not None:
                raise self.error
        finally:
            self.called.release()

    def await_call(self) -> None:
        assert self.called.acquire(timeout=PATIENCE)


# ── the thread ───────────────────────────────────────────────────────────────────────────────────


def test_it_saves_again_and_again_until_it_is_stopped() -> None:
    session = Saved()
    autosave = Autosave(session, SOON)
    for _ in range(3):
        session.await_call()
    (thread,) = running()
    assert thread.daemon
    autosave.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    calls = session.calls
    autosave.stop()
    assert session.calls == calls


def test_it_waits_before_it_saves() -> None:
    session = Saved()
    autosave = Autosave(session, NEVER)
    (thread,) = running()
    autosave.stop()
    thread.join(PATIENCE)
    assert session.calls == 0


def test_it_ends_with_its_session() -> None:
    session = Saved()
    autosave = Autosave(session, NEVER)
    (thread,) = running()
    del session
    thread.join(PATIENCE)
    assert not thread.is_alive()
    autosave.raise_failure()


def test_a_failure_is_raised_once_unless_a_later_attempt_was_better() -> None:
    session = Saved()
    session.error = FullError("the disk is full")
    autosave = Autosave(session, SOON)

    def failed() -> bool:
        try:
            autosave.raise_failure()
        except FullError:
            return True
        return False

    until(failed)
    # It goes on trying, and there may be room by then.
    until(failed)
    session.await_call()
    session.error = None
    calls = session.calls
    until(lambda: session.calls > calls + 1)
    autosave.raise_failure()
    autosave.stop()


@pytest.mark.parametrize(
    "seconds",
    [0, -1, float("nan"), float("inf"), 1e300, "1", None, True, threading.TIMEOUT_MAX * 2],
)
def test_an_interval_is_a_positive_number(repo: vzarr.Repository, seconds: Any) -> None:
    session = repo.session("main")
    with pytest.raises(InvalidInputError, match="checkpoint_every= is a number of seconds"):
        session.checkpoint_every(seconds)
    assert running() == []
    session.set("file", b"1")
    session.commit("as good as before")


def test_every_way_to_ask_for_it_checks_its_interval(repo: vzarr.Repository) -> None:
    with pytest.raises(InvalidInputError, match="checkpoint_every="):
        repo.session("main", checkpoint_every=0)
    with (
        pytest.raises(InvalidInputError, match="checkpoint_every="),
        repo.transaction("main", checkpoint_every=0),
    ):
        pytest.fail("the block began")
    assert running() == []


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def checkpoints(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The root ids that were saved, in order."""
    found: list[str] = []
    spill = Workspace.spill

    def note(work: Workspace, *, checkpoint: bool = False) -> Any:
        root = spill(work, checkpoint=checkpoint)
        if checkpoint:
            found.append(root.hex())
        return root

    monkeypatch.setattr(Workspace, "spill", note)
    return found


def saved(repo: vzarr.Repository, session: Session) -> bool:
    (found,) = [found for found in repo.sessions() if found.id == session.id]
    return found.checkpointed is not None


def test_a_session_saves_what_has_changed_and_nothing_else(
    repo: vzarr.Repository, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Semaphore(0)
    save = Session.save_if_changed

    def look(self: Session) -> None:
        save(self)
        looked.release()

    def await_looks() -> None:
        while looked.acquire(blocking=False):
            pass
        for _ in range(3):
            assert looked.acquire(timeout=PATIENCE)

    monkeypatch.setattr(Session, "save_if_changed", look)
    session = repo.session("main", checkpoint_every=SOON)
    session.set("file", b"1")
    until(lambda: checkpoints)
    assert checkpoints == [session.root_id()]
    assert saved(repo, session)
    # What was saved already is not saved again.
    await_looks()
    assert len(checkpoints) == 1
    session.set("file", b"2")
    until(lambda: len(checkpoints) == 2)
    # Nor is the base, unless something else was saved before.
    session.commit("two")
    await_looks()
    assert len(checkpoints) == 2
    session.set("file", b"3")
    until(lambda: len(checkpoints) == 3)
    session.set("file", b"2")
    until(lambda: len(checkpoints) == 4)
    assert not session.has_changes
    session.close()


def test_a_transaction_leaves_nothing_of_it(repo: vzarr.Repository, checkpoints: list[str]) -> None:
    with repo.transaction("main", "works", checkpoint_every=SOON) as store:
        store.session.set("file", b"1")
        until(lambda: checkpoints)
    assert repo.sessions() == []
    with (
        pytest.raises(ZeroDivisionError),
        repo.transaction("main", "fails", checkpoint_every=SOON) as store,
    ):
        store.session.set("file", b"2")
        until(lambda: len(checkpoints) == 2)
        raise ZeroDivisionError
    assert repo.sessions() == []
    assert repo.session("main").get("file") == b"1"


ENDS: list[Callable[[Session], object]] = [
    Session.close,
    lambda session: None,
    lambda session: (session.discard(), session.close()),
]


@pytest.mark.parametrize("end", ENDS)
def test_the_thread_ends_with_the_session(
    repo: vzarr.Repository, end: Callable[[Session], object]
) -> None:
    session = repo.session("main", checkpoint_every=NEVER)
    (thread,) = running()
    session.set("file", b"1")
    end(session)
    del session
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_another_interval_takes_the_place_of_the_first(repo: vzarr.Repository) -> None:
    session = repo.session("main", checkpoint_every=NEVER)
    (first,) = running()
    session.checkpoint_every(NEVER)
    first.join(PATIENCE)
    assert not first.is_alive()
    assert len(running()) == 1
    # One that is refused leaves the other in its place.
    with pytest.raises(InvalidInputError):
        session.checkpoint_every(-1)
    assert len(running()) == 1
    session.close()


@pytest.mark.parametrize(
    "error", [FullError("no room"), BusyError("another one writes"), MemoryError()]
)
def test_what_stops_it_is_raised_by_the_next_write(
    repo: vzarr.Repository, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried = threading.Semaphore(0)

    def fail(*_: object, **__: object) -> None:
        tried.release()
        raise error

    session = repo.session("main")
    session.set("file", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "spill", fail)
        session.checkpoint_every(SOON)
        # It tries again, though nobody has asked what became of the first time.
        for _ in range(3):
            assert tried.acquire(timeout=PATIENCE)

        raised_errors: list[Exception] = []

        def raised() -> list[Exception]:
            try:
                session.set("file", b"2")
            except type(error) as caught:
                raised_errors.append(caught)
            return raised_errors

        until(raised)
        assert raised_errors == [error]
    # When there is room again, all is well.
    until(lambda: saved(repo, session))
    session.set("file", b"3")
    session.commit("in the end")
    session.close()
    assert repo.session("main").get("file") == b"3"


def test_where_it_cannot_be(repo: vzarr.Repository) -> None:
    session = repo.session("main", isolation="serializable")
    with pytest.raises(SessionStateError, match="serializable"):
        session.checkpoint_every(1)
    with pytest.raises(SessionStateError, match="serializable"):
        repo.session("main", isolation="serializable", checkpoint_every=1)
    with pytest.raises(ReadOnlyError):
        repo.session(repo.branches["main"]).checkpoint_every(1)
    session.close()
    with pytest.raises(SessionStateError, match="ended"):
        session.checkpoint_every(1)
    # What only reads has nothing to save.
    reader = repo.session(repo.branches["main"], checkpoint_every=1)
    assert reader.read_only
    assert running() == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_is_forked_while_it_saves(
    repo: vzarr.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is not in the child, and does not keep the child waiting."""
    inside, go_on = threading.Event(), threading.Event()
    unwritten = Workspace.unwritten

    def slowly(work: Workspace, root: Any) -> Any:
        if threading.current_thread().name == "vzarr-autosave":
            inside.set()
            assert go_on.wait(PATIENCE)
        return unwritten(work, root)

    session = repo.session("main")
    session.set("file", b"1")
    monkeypatch.setattr(Workspace, "unwritten", slowly)
    session.checkpoint_every(SOON)
    assert inside.wait(PATIENCE)

    def work(_: Connection) -> str:
        session.set("other", b"2")
        session.discard()
        session.set("other", b"3")
        return session.commit("by the child")

    child = Child(work)
    try:
        assert repo.show(child.result()).parents == (session.base,)
    finally:
        go_on.set()
    session.commit("by the parent")
    found = repo.session("main")
    assert (found.get("file"), found.get("other")) == (b"1", b"3")
    session.close()


def test_threads_write_while_it_saves(repo: vzarr.Repository, checkpoints: list[str]) -> None:
    session = repo.session("main", checkpoint_every=SOON)
    writers = [
        threading.Thread(
            target=lambda number=number: [
                session.set(f"{number}/{each}", b"%d" % each) for each in range(300)
            ]
        )
        for number in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE)
    until(lambda: checkpoints and checkpoints[-1] == session.root_id())
    session.commit("all")
    session.close()
    found = repo.session("main")
    assert {found.get(f"{n}/{each}") for n in range(3) for each in range(300)} == {
        b"%d" % each for each in range(300)
    }
