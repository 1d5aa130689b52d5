"""A collection of garbage while other processes write, read, die, and collect themselves."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

import vzarr
from tests.processes import PATIENCE
from tests.support import assert_sound
from tests.unit.test_garbage import (
    assert_shows,
    expire,
    forget_all,
    gc,
    has,
    make_garbage,
    staged,
    write,
)
from vzarr import garbage
from vzarr.errors import CommitNotFoundError, RefNotFoundError, SessionNotFoundError

_context = multiprocessing.get_context("spawn")


class Process:
    """Another process that runs ``function(pipe, *arguments)``, and a pipe to it."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=function, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def receive(self) -> Any:
        assert self.pipe.poll(PATIENCE), "the other process hangs"
        return self.pipe.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(PATIENCE)
        assert self._process.exitcode == -9

    def end(self) -> None:
        """Let it go on to its end."""
        with contextlib.suppress(BrokenPipeError):
            self.pipe.send(None)
        self._process.join(PATIENCE)
        assert self._process.exitcode == 0


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start processes; none is left when the test ends."""
    started: list[Process] = []

    def begin(function: Callable[..., Any], *arguments: Any) -> Process:
        started.append(Process(function, *arguments))
        return started[-1]

    yield begin
    for process in started:
        process._process.kill()
        process._process.join(PATIENCE)
        process.pipe.close()


# ── one other process ────────────────────────────────────────────────────────────────────────────


def stage(pipe: Connection, path: str) -> None:
    with vzarr.open(path) as repo:
        session = staged(repo, one=b"1")
        session.set("two", b"2")
        session._work.spill()
        pipe.send(session.id)
        pipe.recv()
        session.commit("both")


def checkpoint(pipe: Connection, path: str) -> None:
    with vzarr.open(path) as repo:
        session = staged(repo, one=b"saved")
        session.checkpoint()
        session.set("two", b"not saved")
        session._work.spill()
        pipe.send(session.id)
        pipe.recv()


def read(pipe: Connection, path: str, ref: str, mode: str) -> None:
    with vzarr.open(path, mode) as repo:
        session = repo.session(ref)
        pipe.send("open")
        while pipe.recv() is not None:
            pipe.send(session.get("file"))


def write_fork(pipe: Connection, fork: Any) -> None:
    fork.set("before", b"before")
    pipe.send("written")
    pipe.recv()
    fork.set("after", b"after")


def collect(pipe: Connection, path: str) -> None:
    """Collect garbage in small steps, and ask before each."""
    garbage._DELETIONS, garbage._SCANNED, garbage._WALKED = 2, 3, 4

    def ask(done: int, total: int, what: str) -> None:
        pipe.send(what)
        pipe.recv()

    with vzarr.open(path) as repo:
        gc(repo, progress=ask)
    pipe.send(None)


def test_what_another_process_staged_stays_while_it_lives(repo, start):
    process = start(stage, repo.path)
    process.receive()
    assert gc(repo).chunks == 0
    process.end()
    assert gc(repo).chunks == 0
    assert_shows(repo, {"one": b"1", "two": b"2"})


def test_what_another_process_staged_goes_when_it_is_killed(repo, start):
    process = start(stage, repo.path)
    process.receive()
    assert gc(repo).chunks == 0
    process.kill()
    report = gc(repo)
    assert (report.chunks, report.sessions) == (2, 1)


def test_the_checkpoint_of_a_killed_process_stays_and_resumes(repo, start):
    process = start(checkpoint, repo.path)
    session_id = process.receive()
    assert gc(repo).chunks == 0
    process.kill()
    report = gc(repo)
    assert (report.chunks, report.sessions) == (1, 0)
    resumed = repo.resume(session_id)
    assert gc(repo).chunks == 0
    assert list(resumed.keys()) == ["one"]
    resumed.commit("resumed")
    assert_shows(repo, {"one": b"saved"})


def test_an_old_checkpoint_of_a_killed_process_goes(repo, start):
    process = start(checkpoint, repo.path)
    session_id = process.receive()
    assert gc(repo, checkpoints_older_than=timedelta()).chunks == 0
    process.kill()
    report = gc(repo, checkpoints_older_than=timedelta())
    assert (report.chunks, report.sessions) == (2, 1)
    with pytest.raises(SessionNotFoundError):
        repo.resume(session_id)


def test_forks_in_other_processes_lose_nothing(repo, start):
    session = repo.session("main")
    fork = session.fork()
    process = start(write_fork, fork)
    process.receive()
    assert gc(repo).chunks == 0
    process.end()
    assert gc(repo).chunks == 0
    session.merge_fork(fork)
    session.commit("merged")
    assert gc(repo).chunks == 0
    assert_shows(repo, {"before": b"before", "after": b"after"})


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_reader_keeps_what_was_reset_away_and_has_expired(repo, start, mode):
    write(repo, b"first")
    ref = write(repo, b"second")
    process = start(read, repo.path, ref, mode)
    process.receive()
    repo.branches.reset("main", "main~2")
    forget_all(repo)
    assert gc(repo).commits == 0
    process.pipe.send("read")
    assert process.receive() == b"second"
    process.end()
    assert gc(repo).commits == 2
    assert not has(repo, b"first")


@pytest.mark.parametrize("moment", [0, 3, 6, 9, 12])
def test_a_collection_that_is_killed_leaves_a_sound_file(path, start, moment):
    with vzarr.open(path) as repo:
        make_garbage(repo, commits=2, values=2)
    process = start(collect, str(path))
    for _ in range(moment):
        assert process.receive() is not None
        process.pipe.send("go on")
    process.receive()
    process.kill()
    assert_sound(path)
    with vzarr.open(path) as repo:
        gc(repo)
        assert gc(repo).kept_chunks == 1
        assert_shows(repo, {"file": b"kept"})


def test_a_collection_goes_on_while_another_process_commits(path, start):
    """What it commits is what the collection is about to delete."""
    with vzarr.open(path) as repo:
        make_garbage(repo, commits=2, values=2)
        process = start(collect, str(path))
        number = 0
        while process.receive() is not None:
            session = repo.session("main")
            for value in (b"one 0 0", b"one 1 1", b"two 0 1", b"two 1 0", b"staged"):
                session.set(f"{number}", value)
            session.commit("again")
            number += 1
            process.pipe.send("go on")
        process.end()
        assert number > 8
        assert_sound(path)
        assert_shows(repo, {f"{n}": b"staged" for n in range(number)})


# ── many ─────────────────────────────────────────────────────────────────────────────────────────

ROUNDS = 40
# Few values, so that what one writer gives up another takes up again.
VALUES = [b"value %d" % number for number in range(24)]


class Writer:
    """A branch of our own, what it must show, and the commits that it must have."""

    def __init__(self, repo: vzarr.Repository, name: str) -> None:
        self.repo, self.name = repo, name
        self.rng = random.Random(name)
        self.content: dict[str, bytes] = {}

    def edits(self) -> dict[str, bytes | None]:
        keys = self.rng.sample([f"g/{number}" for number in range(12)], 5)
        return {key: self.rng.choice([*VALUES, None]) for key in keys}

    def edit(self, session: Any) -> dict[str, bytes]:
        content = dict(self.content)
        for key, value in self.edits().items():
            if value is None:
                session.delete(key)
                content.pop(key, None)
            else:
                session.set(key, value)
                content[key] = value
        # So that there is always something to commit.
        content["nonce"] = self.rng.randbytes(4)
        session.set("nonce", content["nonce"])
        return content

    def look(self) -> None:
        session = self.repo.session(self.name)
        assert {key: session.get(key) for key in session.keys()} == self.content  # noqa: SIM118


def commits(writer: Writer) -> None:
    """Commit, at times with what was staged before, and keep all commits."""
    for number in range(ROUNDS):
        session = writer.repo.session(writer.name)
        content = writer.edit(session)
        if number % 3 == 0:
            session._work.changes.flush()
        elif number % 3 == 1:
            session.checkpoint()
        session.commit(f"{number}")
        writer.content = content
        writer.look()


def amends(writer: Writer) -> None:
    """Amend one commit again and again, and let nothing remember what it was."""
    session = writer.repo.session(writer.name)
    writer.content = writer.edit(session)
    session.commit("first")
    for _ in range(ROUNDS):
        writer.content = writer.edit(session)
        session.amend()
        writer.look()
        expire(writer.repo, older_than=timedelta(), branch=writer.name)


def resets(writer: Writer) -> None:
    """Commit, go back, come back by the reflog or find that it is too late."""
    for number in range(ROUNDS // 2):
        session = writer.repo.session(writer.name)
        before = writer.content
        content = writer.edit(session)
        made = session.commit(f"{number}")
        del session
        writer.repo.branches.reset(writer.name, f"{writer.name}~1")
        writer.look()
        if number % 2:
            expire(writer.repo, older_than=timedelta(), branch=writer.name)
        try:
            writer.repo.branches.reset(writer.name, made)
        except (RefNotFoundError, CommitNotFoundError):
            assert number % 2, "the reflog still names it"
            content = before
        writer.content = content
        writer.look()


def autocommits(writer: Writer) -> None:
    """Write as zarr does to a store with autocommit."""
    store = writer.repo.store(writer.name, autocommit=True)
    for number in range(ROUNDS):
        key, value = f"g/{number % 7}", writer.rng.choice(VALUES)
        store.session.set(key, value)
        store.session.autocommit("autocommit", each=number % 10 == 9)
        writer.content[key] = value
        writer.look()


def write_branch(pipe: Connection, path: str, work: Callable[[Writer], None]) -> None:
    with vzarr.open(path, durability="normal") as repo:
        writer = Writer(repo, work.__name__)
        work(writer)
        pipe.send(writer.content)
        pipe.recv()


def test_nothing_is_lost_while_many_write_and_one_collects(path, start):
    works = [commits, amends, resets, autocommits]
    with vzarr.open(path, durability="normal") as repo:
        for work in works:
            repo.branches.create(work.__name__)
        processes = [start(write_branch, str(path), work) for work in works]
        pending = {process.pipe for process in processes}
        deleted, collections = 0, 0
        while pending:
            deleted += gc(repo).chunks
            collections += 1
            pending -= set(wait(list(pending), timeout=0))
        contents = {
            work.__name__: process.receive() for work, process in zip(works, processes, strict=True)
        }
        for process in processes:
            process.end()
        assert collections > 3
        assert deleted > 0
        assert_sound(path)
        gc(repo)
        for name, content in contents.items():
            session = repo.session(name)
            assert {key: session.get(key) for key in session.keys()} == content  # noqa: SIM118
            # The whole history can be read.
            for each in repo.log(name):
                past = repo.session(each.id)
                assert [past.get(key) for key in past.keys()].count(None) == 0  # noqa: SIM118
        assert len(repo.log("commits")) == ROUNDS + 1
        forget_all(repo)
        del session, past
        assert gc(repo).sessions == 0
        assert gc(repo).commits == 0
