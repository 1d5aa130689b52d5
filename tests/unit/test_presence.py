"""Presence: who has a file open, and which commits are in use, among threads and processes."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import vzarr
from tests.processes import PATIENCE, Child, threads
from vzarr import filelocks, registry
from vzarr.environment import Environment
from vzarr.errors import StorageError
from vzarr.filelocks import PINNED_COMMITS, PINNED_COMMITS_LENGTH, find_all
from vzarr.format import Digest
from vzarr.presence import Pin, Presence

pytestmark = [
    pytest.mark.skipif(not filelocks.SUPPORTED, reason="this system has no such locks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def with_prefix(prefix: int, rest: int = 0) -> Digest:
    return Digest(((prefix << (256 - 37)) + rest).to_bytes(32, "big"))


ONE, TWO, THREE = (with_prefix(1000 * number, 7) for number in (1, 2, 3))


@pytest.fixture
def environment(path: Path) -> Iterator[Environment]:
    """An empty repository's file, open for writing."""
    vzarr.open(path).close()
    opened = Environment.open(str(path), writable=True)
    yield opened
    opened.close()


@pytest.fixture
def watch(environment: Environment) -> Iterator[Presence]:
    """Somebody else who looks, by an opening of the file for reading."""
    descriptor = os.open(environment.path, os.O_RDONLY)
    presence = Presence(descriptor)
    yield presence
    presence.close()
    os.close(descriptor)


def own(*commits: Digest) -> list[Pin]:
    return [pin_of(os.getpid(), commit) for commit in commits]


def pin_of(pid: int, commit: Digest) -> Pin:
    return Pin(pid, int.from_bytes(commit, "big") >> (256 - 37))


# ---- being there ----------------------------------------------------------------------------


def test_a_token_is_present_as_long_as_the_file_is_open(path: Path) -> None:
    vzarr.open(path).close()
    with open(path, "rb") as file:
        watch = Presence(file.fileno())
        environment = Environment.open(str(path), writable=True)
        token = environment.token
        assert watch.is_present(token)
        assert environment.is_present(watch.token)
        assert environment.is_present(token)
        assert watch.is_present(watch.token)
        again = Environment.open(str(path), writable=False)
        assert again.token == token
        again.close()
        assert watch.is_present(token)
        environment.close()
        assert watch.is_present(token) is False
        reopened = Environment.open(str(path), writable=True)
        assert reopened.token != token
        assert watch.is_present(reopened.token)
        reopened.close()
        assert watch.is_present(reopened.token) is False
        watch.close()
        assert watch.is_present(1) is None


@pytest.mark.parametrize("token", [0, 1, (1 << 58) - 1, 1 << 58, 1 << 64, -1])
def test_a_token_of_nobody(environment: Environment, token: int) -> None:
    assert environment.is_present(token) is False


def test_a_token_ends_with_its_process(environment: Environment) -> None:
    path = environment.path

    def work(pipe: Connection) -> None:
        pipe.send((environment.token, environment.is_present(parents)))
        pipe.recv()

    parents = environment.token
    child = Child(work)
    childs, sees_parent = child.receive()
    assert childs != parents
    assert sees_parent is True
    assert environment.is_present(childs)
    child.kill()
    assert environment.is_present(childs) is False
    assert Environment.open(path, writable=True) is environment
    environment.close()


def test_a_parent_that_is_killed_is_not_present_in_its_child(environment: Environment) -> None:
    """What a child inherits must not keep its parent's token locked."""

    until_told, tell = os.pipe()

    def grandchild(pipe: Connection) -> None:
        os.close(tell)
        pipe.send("there")
        os.read(until_told, 1)

    def parent(pipe: Connection) -> None:
        assert Child(grandchild).receive() == "there"
        pipe.send(environment.token)
        pipe.recv()

    child = Child(parent)
    token = child.receive()
    assert environment.is_present(token)
    child.kill()
    assert environment.is_present(token) is False
    os.close(tell)
    os.close(until_told)


def test_a_fork_in_the_moment_when_a_file_is_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, forked = threading.Event(), threading.Event()

    def slowly(name: str) -> tuple[int, int]:
        found = open_descriptor(name)
        opened.set()
        # The fork has to wait for us, not we for it.
        assert not forked.wait(0.05)
        return found

    def use() -> None:
        tokens.append(Environment.open(str(path), writable=True).token)
        used.set()
        threading.Event().wait()

    def grandchild(pipe: Connection) -> None:
        os.close(tell)
        pipe.send("there")
        os.read(until_told, 1)

    def parent(pipe: Connection) -> None:
        threading.Thread(target=use, daemon=True).start()
        assert opened.wait(PATIENCE)
        forked_child = Child(grandchild)
        forked.set()
        assert forked_child.receive() == "there"
        assert used.wait(PATIENCE)
        pipe.send(tokens[0])
        pipe.recv()

    tokens: list[int] = []
    used = threading.Event()
    until_told, tell = os.pipe()
    open_descriptor = registry.open_descriptor
    vzarr.open(path).close()
    monkeypatch.setattr(registry, "open_descriptor", slowly)
    child = Child(parent)
    token = child.receive()
    with open(path, "rb") as file:
        watch = Presence(file.fileno())
        assert watch.is_present(token)
        child.kill()
        assert watch.is_present(token) is False
        watch.close()
    os.close(tell)
    os.close(until_told)


def test_a_new_token_each_time(environment: Environment) -> None:
    tokens = set()
    for _ in range(5):
        child = Child(lambda _: environment.token)
        tokens.add(child.result())
    assert len({*tokens, environment.token}) == 6
    assert all(0 <= token < 1 << 58 for token in tokens)


# ---- pins -----------------------------------------------------------------------------------


def test_pins_are_counted(environment: Environment, watch: Presence) -> None:
    assert environment.pins() == watch.pins() == []
    environment.pin(ONE)
    environment.pin(TWO)
    environment.pin(ONE)
    assert environment.pins() == watch.pins() == own(ONE, TWO)
    environment.unpin(ONE)
    assert environment.pins() == watch.pins() == own(ONE, TWO)
    environment.unpin(ONE)
    assert environment.pins() == watch.pins() == own(TWO)
    # One too many is not counted.
    environment.unpin(ONE)
    environment.pin(ONE)
    assert watch.pins() == own(ONE, TWO)
    environment.unpin(ONE)
    environment.unpin(TWO)
    assert environment.pins() == watch.pins() == []


def test_a_pin_matches_its_commit(environment: Environment) -> None:
    environment.pin(ONE)
    (pin,) = environment.pins()
    assert pin.matches(ONE)
    assert not pin.matches(TWO)
    assert pin.matches(with_prefix(1000, 8))
    assert not pin.matches(with_prefix(1001, 7))
    environment.unpin(ONE)


@pytest.mark.parametrize("prefix", [0, 1, (1 << 37) - 2])
def test_commits_with_neighbouring_prefixes(
    environment: Environment, watch: Presence, prefix: int
) -> None:
    """Their bytes are locked as one range."""
    commits = [with_prefix(prefix), with_prefix(prefix + 1), with_prefix(prefix + 1, 5)]
    for found in commits:
        environment.pin(found)
    assert environment.pins() == watch.pins() == own(*commits[:2])
    environment.unpin(commits[1])
    assert watch.pins() == own(*commits[:2])
    environment.unpin(commits[2])
    assert watch.pins() == own(commits[0])
    environment.unpin(commits[0])
    assert watch.pins() == []


def test_pins_of_other_processes(environment: Environment) -> None:
    def work(pipe: Connection) -> list[Pin]:
        other = Environment.open(environment.path, writable=False)
        other.pin(ONE)
        other.pin(THREE)
        pipe.send("pinned")
        pipe.recv()
        other.unpin(THREE)
        return other.pins()

    environment.pin(ONE)
    environment.pin(TWO)
    children = [Child(work), Child(work)]
    for child in children:
        assert child.receive() == "pinned"
    # A child goes on with what its parent has pinned.
    expected = [pin_of(c.pid, number) for c in children for number in (ONE, TWO, THREE)]
    assert set(environment.pins()) == {*own(ONE, TWO), *expected}
    children[0].kill()
    assert set(environment.pins()) == {*own(ONE, TWO), *expected[3:]}
    children[1].pipe.send("go on")
    left = children[1].result()
    assert set(left) == {*own(ONE, TWO), *expected[3:5]}
    assert environment.pins() == own(ONE, TWO)
    environment.unpin(ONE)
    environment.unpin(TWO)


def test_a_child_pins_on_its_own(environment: Environment) -> None:
    """Its counts begin with those of its parent, and go their own way."""

    def work(pipe: Connection) -> None:
        environment.unpin(ONE)
        pipe.send("one less")
        pipe.recv()
        environment.unpin(ONE)
        pipe.send("none")
        pipe.recv()
        environment.close()

    environment.pin(ONE)
    environment.pin(ONE)
    child = Child(work)
    assert child.receive() == "one less"
    assert environment.pins() == sorted(
        [*own(ONE), pin_of(child.pid, ONE)], key=lambda pin: pin.pid
    )
    child.pipe.send("go on")
    assert child.receive() == "none"
    assert environment.pins() == own(ONE)
    child.pipe.send("go on")
    child.result()
    assert environment.pins() == own(ONE)
    environment.unpin(ONE)
    environment.unpin(ONE)
    assert environment.pins() == []


def test_one_who_reads_only_pins(environment: Environment, watch: Presence) -> None:
    watch.pin(ONE)
    assert environment.pins() == own(ONE)
    watch.unpin(ONE)
    assert environment.pins() == []


def test_sessions_outlive_the_file(path: Path) -> None:
    vzarr.open(path).close()
    environment = Environment.open(str(path), writable=True)
    environment.pin(ONE)
    environment.close()
    environment.pin(ONE)
    environment.unpin(ONE)
    environment.unpin(ONE)
    environment.unpin(TWO)
    again = Environment.open(str(path), writable=True)
    assert again.pins() == []
    assert environment.is_present(again.token) is None
    again.close()


def test_all_pins_of_many_threads_are_taken_back(environment: Environment, watch: Presence) -> None:
    commits = [with_prefix(number) for number in range(10)]

    def work(seed: int) -> None:
        chance = random.Random(seed)
        held: list[Digest] = []
        for _ in range(400):
            if held and chance.random() < 0.5:
                environment.unpin(held.pop(chance.randrange(len(held))))
            else:
                held.append(chance.choice(commits))
                environment.pin(held[-1])
                assert pin_of(os.getpid(), held[0]) in watch.pins()
        for commit in held:
            environment.unpin(commit)

    with threads(*(lambda seed=seed: work(seed) for seed in range(4))):
        pass
    assert environment.pins() == watch.pins() == []
    descriptor = os.open(environment.path, os.O_RDONLY)
    assert find_all(descriptor, PINNED_COMMITS, PINNED_COMMITS_LENGTH) == []
    os.close(descriptor)


def test_children_of_a_parent_that_pins(environment: Environment) -> None:
    """Forks at any moment: a child has pins of its own, and none of its parent's."""
    stop = False

    def work() -> None:
        while not stop:
            environment.pin(ONE)
            environment.unpin(ONE)

    def look(_: Connection) -> bool:
        environment.pin(TWO)
        return pin_of(os.getpid(), TWO) in environment.pins()

    with threads(work, work):
        try:
            assert all(Child(look).result() for _ in range(20))
        finally:
            stop = True
    assert environment.pins() == []


def test_a_finalizer_may_unpin_at_any_moment(environment: Environment, watch: Presence) -> None:
    """Also in the thread that is just pinning: what it asks for is done a little later."""
    presence = environment._access.presence
    environment.pin(ONE)
    with presence._lock:
        environment.unpin(ONE)
        assert watch.pins() == own(ONE)
    environment.pin(TWO)
    assert watch.pins() == own(TWO)
    environment.unpin(TWO)


# ---- where it does not work -----------------------------------------------------------------


def test_a_system_without_such_locks(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelocks, "SUPPORTED", False)
    descriptor = os.open(environment.path, os.O_RDWR)
    presence = Presence(descriptor)
    assert presence.is_present(environment.token) is None
    assert presence.is_present(presence.token) is True
    presence.pin(ONE)
    assert presence.pins() == own(ONE)
    assert environment.pins() == []
    presence.unpin(ONE)
    assert presence.pins() == []
    presence.close()
    os.close(descriptor)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_such_locks(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(code, os.strerror(code))

    descriptor = os.open(environment.path, os.O_RDWR)
    with monkeypatch.context() as patch:
        patch.setattr(filelocks, "try_lock", refuse)
        presence = Presence(descriptor)
        presence.pin(ONE)
        with pytest.raises(StorageError, match="cannot be protected") as caught:
            environment.pin(TWO)
        assert caught.value.errno == code
    assert presence.is_present(environment.token) is None
    presence.close()
    os.close(descriptor)
    # What failed was not counted.
    environment.pin(TWO)
    environment.unpin(TWO)
    assert environment.pins() == []


def test_a_program_that_locks_the_whole_file(environment: Environment) -> None:
    """Then nothing can be told, and nobody is told that nothing is in use."""
    environment.pin(ONE)
    descriptor = os.open(environment.path, os.O_RDWR)
    assert filelocks.try_lock(descriptor, 0, (1 << 63) - 1, shared=True)
    with pytest.raises(StorageError, match="another program"):
        environment.pins()
    assert environment.is_present(12345)
    filelocks.unlock(descriptor, 0, (1 << 63) - 1)
    os.close(descriptor)
    assert environment.pins() == own(ONE)
    environment.unpin(ONE)


def test_speed(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    def seconds(work: object, times: int = 2000) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            work()  # type: ignore[operator]
        return (time.perf_counter() - begun) / times

    def pin() -> None:
        environment.pin(ONE)
        environment.unpin(ONE)

    pinning, asking = seconds(pin), seconds(lambda: environment.is_present(1))
    with capsys.disabled():
        print(f"\npin and unpin {pinning * 1e6:.1f} µs, is_present {asking * 1e6:.1f} µs")
    assert pinning < 500e-6
    assert asking < 200e-6
