"""The environment among processes: fork and spawn, writers that wait, stop and die, growth."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.processes import PATIENCE, Child, threads, until
from vzarr import datafile, lmdberrors, memorymap, registry
from vzarr import environment as module
from vzarr.environment import DATABASES, Environment, Txn
from vzarr.errors import AlreadyExistsError, BusyError, FullError, StorageError, VzarrError
from vzarr.filelocks import no_fork
from vzarr.lmdbfile import probe

# Forking a process that has threads is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def nothing(txn: Txn) -> None:
    """Initialise a file with no entries."""


@pytest.fixture
def environment(file: str) -> Iterator[Environment]:
    created = Environment.create(file, nothing)
    yield created
    created.close()


def add(environment: Environment, times: int, name: bytes = b"counter") -> None:
    """Count up, in as many txns."""
    for _ in range(times):
        with environment.write(timeout=PATIENCE) as txn:
            number = int(txn.get("meta", name) or b"0") + 1
            txn.put("meta", name, b"%d" % number)
            # Twice, so that a reader can tell whether it sees all of a commit.
            txn.put("tags", name, b"%d" % number)


def count(environment: Environment, name: bytes = b"counter") -> int:
    with environment.read() as txn:
        number = txn.get("meta", name)
        assert txn.get("tags", name) == number
    return int(number or b"0")


# ---- fork -----------------------------------------------------------------------------------


def test_a_child_goes_on_with_what_its_parent_opened(environment: Environment) -> None:
    add(environment, 1)

    def work(_: Connection) -> int:
        assert count(environment) == 1
        add(environment, 2)
        environment.close()
        with pytest.raises(VzarrError, match="is closed"), environment.read():
            pass
        again = Environment.open(environment.path, writable=True)
        add(again, 3)
        return count(again)

    assert Child(work).result() == 6
    assert count(environment) == 6
    add(environment, 1)
    assert environment.info().readers == 1


def test_a_child_reads_what_its_parent_reads(file: str) -> None:
    Environment.create(file, nothing).close()
    environment = Environment.open(file, writable=False)
    assert Child(lambda _: (count(environment), environment.read_only)).result() == (0, True)
    assert count(environment) == 0
    environment.close()


def test_a_child_of_a_child(environment: Environment) -> None:
    def work(_: Connection) -> int:
        add(environment, 1)
        inner = Child(lambda _: add(environment, 1)).result()
        add(environment, 1)
        assert inner is None
        return count(environment)

    assert Child(work).result() == 3
    assert count(environment) == 3


def test_children_of_a_busy_parent(environment: Environment) -> None:
    stop = threading.Event()
    written = [0, 0]

    def write(name: int) -> None:
        while not stop.is_set():
            add(environment, 1, b"thread %d" % name)
            written[name] += 1

    def read() -> None:
        while not stop.is_set():
            count(environment, b"thread 0")
            environment.last_txn_id()
            environment.info()

    def work(_: Connection) -> int:
        for _ in range(5):
            add(environment, 1)
            count(environment, b"thread 0")
        return environment.info().readers

    with threads(lambda: write(0), lambda: write(1), read, read):
        try:
            for _ in range(3):
                children = [Child(work), Child(work)]
                assert all(child.result() >= 1 for child in children)
        finally:
            stop.set()
    assert count(environment) == 3 * 2 * 5
    assert [count(environment, b"thread %d" % name) for name in (0, 1)] == written
    assert environment.info().readers == 1


def test_a_fork_inside_a_read_txn(environment: Environment) -> None:
    add(environment, 1)

    def work(txn: Txn) -> list[str]:
        errors = []
        uses: list[Callable[[], Any]] = [
            lambda: txn.get("meta", b"counter"),
            lambda: txn.count("meta"),
            lambda: count(environment),
            lambda: add(environment, 1),
            environment.last_txn_id,
            lambda: Environment.open(environment.path, writable=True),
        ]
        for use in uses:
            with pytest.raises(StorageError, match="fork") as caught:
                use()
            errors.append(str(caught.value))
        # Closing it does not help: the parent's handle stays in this process.
        environment.close()
        with pytest.raises(StorageError, match="fork"):
            Environment.open(environment.path, writable=False)
        return errors

    def child(_: Connection) -> list[str]:
        with contextlib.ExitStack() as stack:
            # The block that the parent is in ends in the child too.
            stack.push(reading.__exit__)
            return work(txn)

    reading = environment.read()
    with reading as txn:
        assert txn.get("meta", b"counter") == b"1"
        errors = Child(child).result()
        assert len(errors) == 6
        assert "spawn" in errors[-1]
        # Had the child cleared our place among the readers, our pages would be used again.
        with threads(lambda: add(environment, 20)):
            pass
        assert txn.get("meta", b"counter") == b"1"
        assert txn.get("tags", b"counter") == b"1"
        assert environment.info().readers == 2
    assert count(environment) == 21


def test_a_fork_inside_a_write_txn(environment: Environment) -> None:
    def child(_: Connection) -> None:
        txn.put("meta", b"counter", b"2")

    def child_at_the_end(_: Connection) -> None:
        writing.__exit__(None, None, None)

    def child_that_raises(_: Connection) -> str:
        writing.__exit__(RuntimeError, RuntimeError(), None)
        return "nothing"

    writing = environment.write()
    with writing as txn:
        txn.put("meta", b"counter", b"1")
        txn.put("tags", b"counter", b"1")
        for work in (child, child_at_the_end):
            kind, message = Child(work).result()
            assert kind == "StorageError"
            assert "forked inside this txn" in message
        assert Child(child_that_raises).result() == "nothing"
        assert txn.get("meta", b"counter") == b"1"
    assert count(environment) == 1
    add(environment, 1)


def test_a_fork_while_another_thread_stays_inside(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_FORK_TIMEOUT", 0.02)
    begun, finish = threading.Event(), threading.Event()

    def stay() -> None:
        with environment.write() as txn:
            txn.put("meta", b"counter", b"1")
            txn.put("tags", b"counter", b"1")
            begun.set()
            assert finish.wait(PATIENCE)

    with threads(stay):
        assert begun.wait(PATIENCE)
        try:
            kind, message = Child(lambda _: count(environment)).result()
        finally:
            finish.set()
    assert kind == "StorageError"
    assert "was forked while" in message
    assert count(environment) == 1
    assert Child(lambda _: count(environment)).result() == 1


def test_a_fork_of_a_file_that_is_gone(environment: Environment, tmp_path: Path) -> None:
    os.rename(environment.path, tmp_path / "aside")
    try:
        kind, message = Child(lambda _: count(environment)).result()
    finally:
        os.rename(tmp_path / "aside", environment.path)
    assert kind == "StorageError"
    assert "does not exist" in message


def test_threads_that_fork_at_once(environment: Environment, tmp_path: Path) -> None:
    others = [Environment.create(str(tmp_path / f"{number}"), nothing) for number in range(3)]

    def fork() -> None:
        for _ in range(5):
            child = Child(lambda _: [count(found) for found in (environment, *others)])
            assert child.result() == [0, 0, 0, 0]

    with threads(fork, fork, fork):
        pass
    for other in others:
        other.close()


COUNTER = """
from vzarr.environment import Environment
environment = Environment.open({path!r}, writable=True)
for _ in range(20):
    with environment.write(timeout=30) as txn:
        number = b"%d" % (int(txn.get("meta", b"counter") or b"0") + 1)
        txn.put("meta", b"counter", number)
        txn.put("tags", b"counter", number)
environment.close()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(environment: Environment, method: Any) -> None:
    context: Any = multiprocessing.get_context(method)
    source = COUNTER.format(path=environment.path)
    children = [context.Process(target=exec, args=(source, {})) for _ in range(2)]
    for child in children:
        child.start()
    add(environment, 20)
    for child in children:
        child.join(PATIENCE)
    assert [child.exitcode for child in children] == [0, 0]
    assert count(environment) == 60


def test_a_fork_waits_for_a_file_that_is_opened_meanwhile(
    environment: Environment, tmp_path: Path
) -> None:
    """All that the fork knew of is quiet by now: the newcomer has to be too."""
    other = Environment.create(str(tmp_path / "other"), nothing)
    add(other, 1)
    other.close()
    opening, forked = threading.Event(), threading.Event()
    opened: list[Environment] = []

    def open_meanwhile() -> None:
        with contextlib.ExitStack() as stack:
            with no_fork:
                opening.set()
                until(lambda: environment._access.activity._shut)
                opened.append(Environment.open(str(tmp_path / "other"), writable=True))
                stack.enter_context(opened[0].read())
            assert not forked.wait(0.05)

    with threads(open_meanwhile):
        assert opening.wait(PATIENCE)
        child = Child(lambda _: [count(found) for found in (environment, *opened)])
        forked.set()
        assert child.result() == [0, 1]
    add(environment, 1)
    add(opened[0], 1)
    opened[0].close()


# ---- many writers, many readers -------------------------------------------------------------


def test_writers_of_many_processes_wait_for_each_other(environment: Environment) -> None:
    children = [Child(lambda _: add(environment, 40)) for _ in range(4)]
    add(environment, 40)
    for child in children:
        assert child.result() is None
    assert count(environment) == 200


def test_readers_see_all_of_a_commit_or_none(environment: Environment) -> None:
    def watch(pipe: Connection) -> int:
        seen, commits = count(environment), 0
        pipe.send("ready")
        while seen < 150:
            # count() compares what each commit writes twice.
            now = count(environment)
            assert now >= seen
            commits += now != seen
            seen = now
        return commits

    child = Child(watch)
    assert child.receive() == "ready"
    add(environment, 150)
    assert child.result() >= 1


def test_a_probe_between_commits(environment: Environment) -> None:
    """Look at the file without a lock while another process writes."""

    def write(pipe: Connection) -> None:
        pipe.send("ready")
        while not pipe.poll():
            add(environment, 1)
            with environment.write() as txn:
                # Comes and goes, so that pages are freed and used again all the time.
                if not txn.delete("chunks", b"big"):
                    txn.put("chunks", b"big", bytes(50_000))

    child = Child(write)
    assert child.receive() == "ready"
    seen = [probe(environment.path)]
    deadline = time.monotonic() + PATIENCE
    try:
        while len(seen) < 1000 or seen[-1].txn_id < seen[0].txn_id + 50:
            seen.append(probe(environment.path))
            assert time.monotonic() < deadline
    finally:
        child.pipe.send("stop")
    assert child.result() is None
    assert all(found.databases == frozenset(DATABASES) for found in seen)
    assert all(found.required_bytes <= found.file_bytes + 256 * 4096 for found in seen)
    txn_ids = [found.txn_id for found in seen]
    assert txn_ids == sorted(txn_ids)


def test_opening_while_another_process_writes(file: str) -> None:
    environment = Environment.create(file, nothing)

    def write(pipe: Connection) -> None:
        while not pipe.poll():
            with environment.write() as txn:
                txn.put("chunks", b"big", bytes(400_000))
                txn.delete("chunks", b"big")
                txn.put("chunks", b"small", os.urandom(8))

    child = Child(write)
    environment.close()
    try:
        # Every other one waits at the gate of a process that hardly ever leaves it.
        for number in range(100):
            found = Environment.open(file, writable=bool(number % 2))
            assert found.info().entries["chunks"] <= 1
            found.close()
    finally:
        child.pipe.send("stop")
    assert child.result() is None


def test_of_many_processes_one_creates(file: str) -> None:
    def create_or_open(pipe: Connection) -> str:
        pipe.send("ready")
        pipe.recv()
        try:
            environment, result = Environment.create(file, nothing), "created"
        except AlreadyExistsError:
            environment, result = Environment.open(file, writable=True), "opened"
        add(environment, 5)
        environment.close()
        return result

    children = [Child(create_or_open) for _ in range(6)]
    for child in children:
        assert child.receive() == "ready"
    for child in children:
        child.pipe.send("go")
    results = sorted(child.result() for child in children)
    assert results == ["created"] + 5 * ["opened"]
    environment = Environment.open(file, writable=False)
    assert count(environment) == 30
    environment.close()


# ---- processes that stop or die -------------------------------------------------------------


def hold(environment: Environment, *, write: bool) -> Child:
    """Give a child that is inside a txn and stays there until it is killed or told to end."""

    def work(pipe: Connection) -> None:
        with environment.write() if write else environment.read() as txn:
            if write:
                txn.put("meta", b"counter", b"1000")
            pipe.send("inside")
            pipe.recv()

    child = Child(work)
    assert child.receive() == "inside"
    return child


def test_a_busy_gate_names_the_process(environment: Environment) -> None:
    child = hold(environment, write=True)
    with pytest.raises(BusyError) as caught:
        environment.write(timeout=0.05).__enter__()
    holder = caught.value.holder
    if Path("/proc/locks").exists():
        assert holder is not None
        assert holder.pid == child.pid
        command = Path(f"/proc/{child.pid}/cmdline").read_bytes().split(b"\0")
        assert holder.command.split()[0] == command[0].decode()
        assert holder.since is not None
        assert f"process {child.pid}" in str(caught.value)
    assert count(environment) == 0
    child.kill()
    add(environment, 1)


def test_a_writer_that_is_stopped_does_not_stop_others_for_ever(environment: Environment) -> None:
    child = hold(environment, write=True)
    os.kill(child.pid, signal.SIGSTOP)
    for _ in range(2):
        with pytest.raises(BusyError):
            environment.write(timeout=0.02).__enter__()
        assert count(environment) == 0
    child.kill()
    add(environment, 1)


def test_a_writer_that_is_killed_leaves_nothing(environment: Environment) -> None:
    add(environment, 1)
    for expected in (1, 2, 3):
        child = hold(environment, write=True)

        def kill(child: Child = child) -> None:
            child.kill()

        with threads(kill):
            add(environment, 1)
        assert count(environment) == expected + 1


def test_the_places_of_killed_readers_are_taken_back(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (memorymap, lmdberrors):
        monkeypatch.setattr(name, "MAX_READERS", 4)
    monkeypatch.setattr(datafile, "LOCK_FILE_BYTES", 128 + 64 * 4)
    environment = Environment.create(file, nothing)
    children = [hold(environment, write=False) for _ in range(4)]
    with pytest.raises(StorageError, match="4 readers"), environment.read():
        pytest.fail("there is no place left")
    for child in children[:2]:
        child.kill()
    with environment.read(), environment.read():
        assert environment.info.__self__ is environment
        with pytest.raises(StorageError, match="4 readers"), environment.read():
            pytest.fail("there is no place left")
    for child in children[2:]:
        child.kill()
    # Whoever opens the file next takes back what is left.
    assert environment.info().readers == 3
    environment.close()
    environment = Environment.open(file, writable=False)
    assert environment.info().readers == 1
    environment.close()


def test_waiting_for_another_process_can_be_interrupted(environment: Environment) -> None:
    def wait(pipe: Connection) -> str:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sleep = time.sleep

        def announced(seconds: float) -> None:
            time.sleep = sleep
            pipe.send("waiting")
            sleep(seconds)

        # In this process only, which waits at the gate by sleeping between two looks.
        time.sleep = announced
        try:
            environment.write().__enter__()
        except KeyboardInterrupt:
            return "interrupted"
        return "inside"

    holder = hold(environment, write=True)
    child = Child(wait)
    assert child.receive() == "waiting"
    os.kill(child.pid, signal.SIGINT)
    assert child.result() == "interrupted"
    holder.kill()


# ---- a file that others let grow ------------------------------------------------------------


@pytest.mark.parametrize("writable", [False, True])
def test_the_growth_of_another_process_is_followed(
    file: str, monkeypatch: pytest.MonkeyPatch, writable: bool
) -> None:
    monkeypatch.setattr(memorymap, "INITIAL_MAP_BYTES", 2 << 20)
    monkeypatch.setattr(memorymap, "MINIMUM_MAP_BYTES", 1 << 20)
    Environment.create(file, nothing).close()
    environment = Environment.open(file, writable=writable)
    assert environment.info().map_bytes == 2 << 20

    def grow(_: Connection) -> None:
        other = Environment.open(file, writable=True)
        for number in range(5):
            with other.write(room=3 << 20) as txn:
                txn.put("chunks", b"%d" % number, bytes(3 << 20))

    with environment.read() as txn:
        assert txn.count("chunks") == 0
        other = subprocess_growth(file)
        assert txn.count("chunks") == 0
    assert other == 0
    with environment.read() as txn:
        assert [len(value) for _, value in txn.scan("chunks")] == 5 * [3 << 20]
    info = environment.info()
    assert info.map_bytes >= info.file_bytes > 15 << 20
    assert Child(grow).result() is None
    if writable:
        with environment.write() as txn:
            txn.put("chunks", b"5", bytes(3 << 20))
        assert environment.info().entries["chunks"] == 6
    environment.close()


GROW = """
import sys
from vzarr import environment as module, memorymap
memorymap.INITIAL_MAP_BYTES = 2 << 20
memorymap.MINIMUM_MAP_BYTES = 1 << 20
environment = module.Environment.open(sys.argv[1], writable=True)
for number in range(5):
    with environment.write(room=3 << 20) as txn:
        txn.put("chunks", b"%d" % number, bytes(3 << 20))
"""


def run(source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter; it must end by itself."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", source, *arguments],
        cwd=Path(module.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def subprocess_growth(file: str) -> int:
    done = run(GROW, file)
    assert done.stderr == ""
    return done.returncode


def test_writers_of_many_processes_grow_the_map_together(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memorymap, "INITIAL_MAP_BYTES", 1 << 20)
    monkeypatch.setattr(memorymap, "MINIMUM_MAP_BYTES", 1 << 20)
    environment = Environment.create(file, nothing)

    def write(name: int) -> None:
        for number in range(6):
            with environment.write(room=1 << 20) as txn:
                txn.put("chunks", b"%d %d" % (name, number), bytes(1 << 20))
            count(environment)

    children = [Child(lambda _, name=name: write(name)) for name in range(3)]
    write(3)
    for child in children:
        assert child.result() is None
    info = environment.info()
    assert info.entries["chunks"] == 24
    assert info.map_bytes >= info.file_bytes > 24 << 20
    environment.close()


def test_little_address_space(environment: Environment) -> None:
    """Open and write under ``ulimit -v``: the map is as big as it can be, and no bigger."""

    def work(_: Connection) -> tuple[int, int, int]:
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
        before = environment.info().map_bytes
        with pytest.raises(FullError, match="address space") as caught:
            environment.write(room=1 << 30).__enter__()
        add(environment, 1)
        assert caught.value.errno is not None
        return before, environment.info().map_bytes, count(environment)

    before, after, counted = Child(work).result()
    assert 256 << 20 <= before <= 1 << 30
    assert (after, counted) == (before, 1)


# ---- a path that leads to another file ------------------------------------------------------


def test_a_file_in_the_place_of_one_that_is_open(file: str, tmp_path: Path) -> None:
    """The lock file goes by the name: beside a new file, it would count the old one's txns."""
    environment = Environment.create(file, nothing)
    child = hold(environment, write=False)
    add(environment, 7)
    environment.close()
    os.unlink(file)
    with pytest.raises(StorageError, match="shares its lock file"):
        Environment.create(file, nothing)
    assert os.listdir(tmp_path) == ["test.vzarr-lock"]
    child.kill()
    environment = Environment.create(file, nothing)
    add(environment, 1)
    environment.close()


# ---- the end of a process -------------------------------------------------------------------

LEFT_OPEN = """
import sys, threading
from vzarr.environment import Environment
environment = Environment.open(sys.argv[1], writable=True)
with environment.write() as txn:
    txn.put("meta", b"key", b"value")
"""

LEFT_INSIDE = (
    LEFT_OPEN
    + """
inside = threading.Event()
def stay():
    with environment.{kind}() as txn:
        txn.put("meta", b"key", b"other") if "{kind}" == "write" else None
        inside.set()
        threading.Event().wait()
from vzarr import access
access._EXIT_TIMEOUT = 0.05
threading.Thread(target=stay, daemon=True).start()
inside.wait()
"""
)

LEFT_FORKED = (
    LEFT_OPEN
    + """
import os
with environment.read() as txn:
    pid = os.fork()
    if not pid:
        sys.exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
pid = os.fork()
if not pid:
    assert environment.last_txn_id() > 0
    sys.exit(8)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8
"""
)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(LEFT_OPEN, id="open"),
        pytest.param(LEFT_INSIDE.format(kind="read"), id="read txn"),
        pytest.param(LEFT_INSIDE.format(kind="write"), id="write txn"),
        pytest.param(LEFT_FORKED, id="forked"),
    ],
)
def test_the_interpreter_ends(file: str, source: str) -> None:
    Environment.create(file, nothing).close()
    done = run(source, file)
    assert (done.returncode, done.stderr) == (0, "")
    environment = Environment.open(file, writable=True)
    with environment.read() as txn:
        assert txn.get("meta", b"key") == b"value"
    assert environment.info().readers == 1
    environment.close()


def test_time_passes_for_those_who_wait(environment: Environment) -> None:
    """A writer that waits takes its turn soon after another process ends its txn."""
    child = hold(environment, write=True)
    ended = []

    def end() -> None:
        ended.append(time.monotonic())
        child.pipe.send("end")

    with threads(end), environment.write(timeout=PATIENCE) as txn:
        begun = time.monotonic()
        assert txn.get("meta", b"counter") == b"1000"
    assert begun >= ended[0]
    assert child.result() is None
