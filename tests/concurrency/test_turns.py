"""Turns on a branch: first come first served, and nobody in the way who is gone."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

import vzarr
from tests.processes import PATIENCE, Child, descriptors, threads, until
from vzarr import environment as environment_module
from vzarr import filelocks, turns
from vzarr.environment import Environment
from vzarr.errors import BusyError, SessionStateError, StorageError
from vzarr.filelocks import find_all
from vzarr.turns import Turn, holder, is_taken

pytestmark = [
    pytest.mark.skipif(not filelocks.SUPPORTED, reason="this system has no such locks"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture
def environment(path: Path) -> Iterator[Environment]:
    """An empty repository's file, open for writing; in the end nobody queues there."""
    vzarr.open(path).close()
    opened = Environment.open(str(path), writable=True)
    before = descriptors(opened.path)
    yield opened
    assert queueing(opened) == 0
    assert descriptors(opened.path) == before
    opened.close()


def queueing(environment: Environment, branch: str = "main") -> int:
    """Count the tickets that are taken."""
    queue = turns._queue_of(branch)
    descriptor = environment.open_descriptor()
    try:
        return len(find_all(descriptor, queue.first_ticket, queue.tickets))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(environment: Environment, branch: str = "main") -> Iterator[Turn]:
    turn = Turn(environment, branch)
    turn.acquire(PATIENCE)
    try:
        yield turn
    finally:
        turn.release()


def holding(environment: Environment) -> Child:
    """Give a child that has the turn until it is killed or told to end."""

    def work(pipe: Connection) -> None:
        with held(environment):
            pipe.send("held")
            pipe.recv()

    child = Child(work)
    assert child.receive() == "held"
    return child


def waiting(environment: Environment, work: Callable[[], object] = lambda: None) -> Child:
    """Give a child that is in the queue, and does something when its turn comes."""
    before = queueing(environment)

    def wait(_: Connection) -> None:
        with held(environment):
            work()

    child = Child(wait)
    until(lambda: queueing(environment) == before + 1)
    return child


# ---- one at a time, in order ----------------------------------------------------------------


def test_a_turn_is_had_and_given_back(environment: Environment) -> None:
    turn = Turn(environment, "main")
    assert (turn.held, turn.branch) == (False, "main")
    turn.release()
    for _ in range(3):
        turn.acquire(0)
        assert turn.held
        with pytest.raises(SessionStateError, match="is held: release it"):
            turn.acquire(0)
        assert turn.held
        turn.release()
        assert not turn.held
        turn.release()


def test_threads_come_on_in_the_order_in_which_they_came(environment: Environment) -> None:
    order: list[int] = []

    def come(number: int) -> None:
        with held(environment):
            order.append(number)

    with contextlib.ExitStack() as stack:
        turn = stack.enter_context(held(environment))
        for number in range(12):
            stack.enter_context(threads(lambda number=number: come(number)))
            until(lambda number=number: queueing(environment) == number + 2)
        turn.release()
    assert order == list(range(12))


def test_processes_come_on_in_the_order_in_which_they_came(
    environment: Environment, tmp_path: Path
) -> None:
    log = tmp_path / "order"

    def note(number: int) -> None:
        with open(log, "a") as file:
            file.write(f"{number} ")

    children: list[Child] = []
    with contextlib.ExitStack() as stack:
        turn = stack.enter_context(held(environment))
        for number in range(6):
            children.append(waiting(environment, lambda number=number: note(2 * number)))
            # A thread of this process behind each.
            before = queueing(environment)

            def come(number: int = number) -> None:
                with held(environment):
                    note(2 * number + 1)

            stack.enter_context(threads(come))
            until(lambda before=before: queueing(environment) == before + 1)
        turn.release()
    for child in children:
        assert child.result() is None
    assert log.read_text().split() == [str(number) for number in range(12)]


def test_a_newcomer_waits_behind_those_who_wait(environment: Environment) -> None:
    """Even if it asks in the moment when the turn is given back."""
    with held(environment) as turn:
        child = waiting(environment)
        turn.release()
        # Its ticket is behind that of the child, which has not looked again, or is through.
        turn.acquire(PATIENCE)
        assert child.result() is None


COUNTERS = [(8, 50, 0), (2, 50, 6), (0, 0, 8)]


@pytest.mark.parametrize(("processes", "times", "many_threads"), COUNTERS)
def test_nobody_has_the_turn_at_once(
    environment: Environment, tmp_path: Path, processes: int, times: int, many_threads: int
) -> None:
    """A counter in a file: read, let others run, and write."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    times = times or 50

    def count(_: object = None) -> None:
        turn = Turn(environment, "main")
        for _ in range(times):
            turn.acquire(PATIENCE)
            number = int(counter.read_text())
            os.sched_yield()
            counter.write_text(str(number + 1))
            turn.release()

    children = [Child(count) for _ in range(processes)]
    with threads(*(count for _ in range(many_threads))):
        pass
    for child in children:
        assert child.result() is None
    assert counter.read_text() == str((processes + many_threads) * times)


def test_branches_do_not_wait_for_each_other(environment: Environment) -> None:
    with held(environment, "main"), held(environment, "dev"), held(environment, "größer"):
        assert is_taken(environment, "dev")
        assert not is_taken(environment, "other")


def test_branches_that_share_a_queue(environment: Environment) -> None:
    """Names whose hashes agree in 20 bits wait for each other, and that is all."""
    seen: dict[int, str] = {}
    for number in itertools.count():
        name = f"branch {number}"
        twin = seen.setdefault(turns._queue_of(name).first_ticket, name)
        if twin != name:
            break
    with held(environment, name):
        assert is_taken(environment, twin)
        with pytest.raises(BusyError):
            Turn(environment, twin).acquire(0)
    with held(environment, twin):
        pass


def test_is_taken(environment: Environment) -> None:
    assert not is_taken(environment, "main")
    with held(environment):
        # By this process too.
        assert is_taken(environment, "main")
    assert not is_taken(environment, "main")
    child = holding(environment)
    assert is_taken(environment, "main")
    child.pipe.send("end")
    assert child.result() is None
    assert not is_taken(environment, "main")


def test_the_end_of_the_row(environment: Environment) -> None:
    """Tickets begin anew once the queue has been empty."""
    queue = turns._queue_of("main")
    end = queue.first_ticket + queue.tickets
    turn, other = Turn(environment, "main"), Turn(environment, "main")
    descriptor = environment.open_descriptor()

    def tickets() -> list[tuple[int, int]]:
        return find_all(descriptor, queue.first_ticket, queue.tickets)

    assert filelocks.try_lock(descriptor, end - 2)
    with threads(lambda: turn.acquire(PATIENCE)):
        until(lambda: tickets() == [(end - 1, 1)])
        with pytest.raises(BusyError):
            other.acquire(0.01)
        filelocks.unlock(descriptor, end - 2)
    assert turn.held
    with pytest.raises(BusyError):
        other.acquire(0.01)
    turn.release()
    assert tickets() == []
    with held(environment):
        assert tickets() == [(queue.first_ticket, 1)]
    os.close(descriptor)


# ---- waiting in vain ------------------------------------------------------------------------


def test_a_busy_turn_names_the_process(environment: Environment) -> None:
    child = holding(environment)
    for timeout in (0, 0.05):
        turn = Turn(environment, "main")
        begun = time.monotonic()
        with pytest.raises(BusyError) as caught:
            turn.acquire(timeout)
        assert time.monotonic() - begun >= timeout
        assert not turn.held
        assert queueing(environment) == 1
    found = caught.value.holder
    assert found is not None
    assert found == holder(environment, "main")
    assert found.pid == child.pid
    command = Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")
    assert found.command.split()[0] == command[0].decode()
    assert found.since is not None
    assert timedelta(0) <= datetime.now(UTC) - found.since < timedelta(seconds=PATIENCE)
    message = str(caught.value)
    assert message.startswith(f"branch 'main' of {environment.path} is held by process {child.pid}")
    assert "waited 0.05 seconds: try again" in message
    child.kill()
    assert holder(environment, "main") is None


def test_a_busy_turn_names_the_thread(environment: Environment) -> None:
    release = threading.Event()
    begun = threading.Event()

    def hold() -> None:
        threading.current_thread().name = "beside"
        with held(environment):
            begun.set()
            assert release.wait(PATIENCE)

    with threads(hold):
        assert begun.wait(PATIENCE)
        with pytest.raises(BusyError, match="thread 'beside' of this process") as caught:
            Turn(environment, "main").acquire(0)
        release.set()
    found = caught.value.holder
    assert found is not None
    assert found.pid == os.getpid()
    assert found.since is not None


def test_a_holder_in_another_container(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid may be that of somebody else here, and is not given."""
    with monkeypatch.context() as patch:
        patch.setattr(turns, "process_namespace", lambda: 1234)
        turn = Turn(environment, "main")
        turn.acquire(0)
    found = holder(environment, "main")
    assert found is not None
    assert found.pid is None
    assert found.command == f"process {os.getpid()} of another container"
    turn.release()
    # Where processes have no namespaces.
    monkeypatch.setattr(turns, "process_namespace", lambda: 0)
    with held(environment):
        found = holder(environment, "main")
        assert found is not None
        assert found.pid == os.getpid()


def test_a_holder_that_is_stopped(environment: Environment) -> None:
    child = holding(environment)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(BusyError) as caught:
        Turn(environment, "main").acquire(0.02)
    assert caught.value.holder is not None
    assert caught.value.holder.pid == child.pid
    child.kill()
    with held(environment):
        pass


def test_ctrl_c_ends_the_wait(environment: Environment) -> None:
    def wait(pipe: Connection) -> str:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        turn = Turn(environment, "main")
        pipe.send("ready")
        try:
            turn.acquire(None)
        except KeyboardInterrupt:
            return f"interrupted, {turn.held}, {descriptors(environment.path)}"
        return "held"

    with held(environment):
        before = descriptors(environment.path) - 1
        child = Child(wait)
        assert child.receive() == "ready"
        until(lambda: queueing(environment) == 2)
        os.kill(child.pid, signal.SIGINT)
        # LMDB has the file not open in a child that does not use it.
        opened = int(child.result().removeprefix("interrupted, False, "))
        assert 1 <= opened <= before
        assert queueing(environment) == 1


def test_an_error_while_waiting_gives_the_ticket_back(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seconds: float) -> None:
        raise RuntimeError

    with held(environment):
        turn = Turn(environment, "main")
        monkeypatch.setattr(time, "sleep", fail)
        with pytest.raises(RuntimeError):
            turn.acquire(None)
        assert not turn.held
        assert queueing(environment) == 1


def test_pauses_are_as_long_as_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    patience = turns._Waiting(None)
    for places, first, last in ((1, 0.0002, 0.002), (20, 0.004, 0.004), (500, 0.01, 0.01)):
        pauses.clear()
        patience.begin(places=places)
        for _ in range(20):
            patience.pause()
        assert pauses[0] == pytest.approx(first)
        assert pauses[-1] == pytest.approx(last)
        assert pauses == sorted(pauses)


# ---- processes that die, and fork -----------------------------------------------------------


def test_a_holder_that_is_killed_hands_over(environment: Environment) -> None:
    child = holding(environment)
    begun = threading.Event()

    def come() -> None:
        with held(environment):
            begun.set()

    with threads(come):
        until(lambda: queueing(environment) == 2)
        assert not begun.is_set()
        child.kill()
        assert begun.wait(PATIENCE)


def test_one_who_waits_and_is_killed_is_in_nobodys_way(
    environment: Environment, tmp_path: Path
) -> None:
    log = tmp_path / "order"
    log.touch()

    def note(text: str) -> None:
        with open(log, "a") as file:
            file.write(text)

    with held(environment):
        first, second, third = (
            waiting(environment, lambda text=text: note(text)) for text in ("1", "2", "3")
        )
        second.kill()
        assert queueing(environment) == 3
    assert first.result() is None
    assert third.result() is None
    assert log.read_text() == "13"


def test_one_who_is_killed_while_it_takes_a_ticket(environment: Environment) -> None:
    """The mutex of the queue goes with it."""

    def work(pipe: Connection) -> None:
        descriptor = environment.open_descriptor()
        assert filelocks.try_lock(descriptor, turns._queue_of("main").mutex)
        pipe.send("inside")
        pipe.recv()

    child = Child(work)
    assert child.receive() == "inside"
    with pytest.raises(BusyError, match="is held by another process") as caught:
        Turn(environment, "main").acquire(0.01)
    assert caught.value.holder is None
    with threads(lambda: child.kill()), held(environment):
        pass


def test_a_child_does_not_inherit_a_turn(environment: Environment) -> None:
    def work(_: Connection) -> tuple[bool, bool, int]:
        before = (turn.held, is_taken(environment, "main"), descriptors(environment.path))
        turn.release()
        other = Turn(environment, "main")
        with pytest.raises(BusyError) as caught:
            other.acquire(0)
        assert caught.value.holder is not None
        assert caught.value.holder.pid == os.getppid()
        return before

    with held(environment) as turn:
        child_held, child_taken, child_descriptors = Child(work).result()
        assert (child_held, child_taken) == (False, True)
        assert child_descriptors == 1
        assert turn.held
        with pytest.raises(BusyError):
            Turn(environment, "main").acquire(0)
    Child(lambda _: turn.acquire(PATIENCE)).result()


def test_a_parents_turn_ends_with_the_parent(environment: Environment) -> None:
    """Though a child of it that has inherited everything goes on."""
    until_told, tell = os.pipe()

    def grandchild(pipe: Connection) -> None:
        os.close(tell)
        pipe.send("there")
        os.read(until_told, 1)

    def parent(pipe: Connection) -> None:
        with held(environment):
            assert Child(grandchild).receive() == "there"
            pipe.send("held")
            pipe.recv()

    child = Child(parent)
    assert child.receive() == "held"
    assert queueing(environment) == 1
    child.kill()
    assert queueing(environment) == 0
    Turn(environment, "main").acquire(0)
    os.close(tell)
    os.close(until_told)


def test_forks_of_a_process_whose_threads_take_turns(environment: Environment) -> None:
    """A child has the file open once, whatever was opened and closed in the moment of the fork."""
    stop = threading.Event()

    def work() -> None:
        turn = Turn(environment, "main")
        while not stop.is_set():
            turn.acquire(PATIENCE)
            turn.release()

    with threads(work, work, work):
        try:
            for _ in range(30):
                assert Child(lambda _: descriptors(environment.path)).result() == 1
        finally:
            stop.set()


def test_a_fork_in_the_moment_when_a_turn_is_opened(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, forked = threading.Event(), threading.Event()

    def slowly(found: Environment, follower: Turn) -> int:
        descriptor = open_descriptor(found, follower)
        opened.set()
        # The fork has to wait for us, not we for it.
        assert not forked.wait(0.05)
        return descriptor

    def take() -> None:
        with held(environment):
            pass

    open_descriptor = Environment.open_descriptor
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "open_descriptor", slowly)
        with threads(take):
            assert opened.wait(PATIENCE)
            child = Child(lambda _: descriptors(environment.path))
            forked.set()
            assert child.result() == 1


def test_a_turn_that_nobody_refers_to_is_given_back(environment: Environment) -> None:
    turn = Turn(environment, "main")
    turn.acquire(0)
    assert is_taken(environment, "main")
    del turn
    gc.collect()
    assert not is_taken(environment, "main")


# ---- where it does not work -----------------------------------------------------------------


def test_a_system_without_such_locks(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filelocks, "SUPPORTED", False)
    with pytest.raises(StorageError, match=r"use repo\.run"):
        Turn(environment, "main").acquire(0)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOLCK])
def test_a_file_system_without_such_locks(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(filelocks, "try_lock", refuse)
    turn = Turn(environment, "main")
    with pytest.raises(StorageError, match=r"use repo\.run") as caught:
        turn.acquire(0)
    assert caught.value.errno == code
    assert os.strerror(code) in str(caught.value)
    assert not turn.held


def test_a_file_that_was_replaced(environment: Environment, tmp_path: Path) -> None:
    """A turn on another file would be no turn."""
    aside = tmp_path / "aside"
    os.rename(environment.path, aside)
    with pytest.raises(StorageError, match="was deleted or moved"):
        Turn(environment, "main").acquire(0)
    Path(environment.path).write_bytes(aside.read_bytes())
    with pytest.raises(StorageError, match="replaced"):
        Turn(environment, "main").acquire(0)
    os.rename(aside, environment.path)
    with held(environment):
        pass


def test_a_file_that_is_not_for_us_to_write(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(path: str) -> tuple[int, int]:
        return os.open(path, os.O_RDONLY), errno.EACCES

    monkeypatch.setattr(environment_module, "open_once", reading)
    with pytest.raises(StorageError, match="cannot be opened for writing") as caught:
        Turn(environment, "main").acquire(0)
    assert caught.value.errno == errno.EACCES
    monkeypatch.undo()


def test_a_file_that_is_closed(path: Path) -> None:
    vzarr.open(path).close()
    environment = Environment.open(str(path), writable=True)
    turn, late = Turn(environment, "main"), Turn(environment, "main")
    turn.acquire(0)
    environment.close()
    with pytest.raises(SessionStateError, match="is closed"):
        late.acquire(0)
    with pytest.raises(SessionStateError, match="is closed"):
        is_taken(environment, "main")
    again = Environment.open(str(path), writable=True)
    with pytest.raises(BusyError, match="of this process"):
        Turn(again, "main").acquire(0)
    turn.release()
    assert not is_taken(again, "main")
    again.close()


def test_speed(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    turn = Turn(environment, "main")

    def microseconds(work: Callable[[], object], times: int = 1000) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - begun) / times * 1e6

    turns_taken = microseconds(lambda: (turn.acquire(0), turn.release()))
    looks = microseconds(lambda: is_taken(environment, "main"))
    with capsys.disabled():
        print(f"\na turn had and given back {turns_taken:.0f} µs, is_taken {looks:.1f} µs")
    assert turns_taken < 2000
    assert looks < 200
