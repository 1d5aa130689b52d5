"""Processes and threads beside a test: forked, watched, and gone when it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from vzarr.errors import VzarrError

PATIENCE = 30
"""How many seconds to wait for what must come, on a machine that is busy with other things."""


class Child:
    """A forked process that runs a function with a pipe to us, and what becomes of it."""

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if not self.pid:
            self.pipe.close()
            self._run(work, theirs)
        theirs.close()

    @staticmethod
    def _run(work: Callable[[Connection], Any], pipe: Connection) -> None:
        try:
            pipe.send(("result", work(pipe)))
        except VzarrError as error:
            pipe.send(("error", (type(error).__name__, str(error))))
        except BaseException:
            pipe.send(("crash", traceback.format_exc()))
        finally:
            os._exit(0)

    def receive(self) -> Any:
        assert self.pipe.poll(PATIENCE), "the child hangs"
        return self.pipe.recv()

    def result(self) -> Any:
        """Wait for the end of the child, and give what its function returned."""
        try:
            kind, value = self.receive()
        except EOFError:
            kind, value = "crash", "it died"
        self.reap()
        assert kind != "crash", value
        return value

    def reap(self) -> int:
        self.pipe.close()
        return os.waitpid(self.pid, 0)[1]

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(self.reap()) == -signal.SIGKILL


class Other:
    """A process that has nothing of ours, runs a function of a test module with a pipe to us.

    ``method`` is how it starts: by "spawn" as users do, or faster by "forkserver".
    """

    def __init__(
        self, work: Callable[..., Any], *arguments: Any, method: str = "forkserver"
    ) -> None:
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["vzarr", "zarr"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def receive(self) -> Any:
        assert self.pipe.poll(PATIENCE), "the process hangs"
        return self.pipe.recv()

    def send(self, message: Any = None) -> None:
        self.pipe.send(message)

    def result(self) -> Any:
        """Wait for the end of the process, and give what its function returned."""
        kind, value = self.receive()
        self.reap()
        assert kind == "result", value
        return value

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash would, and return when it is gone."""
        self.signal(signal.SIGKILL)
        self.process.join(PATIENCE)
        assert self.process.exitcode == -signal.SIGKILL
        self.reap()

    def reap(self) -> None:
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "the process does not end"
        self.process.close()
        self.pipe.close()


def _serve(work: Callable[..., Any], pipe: Connection, *arguments: Any) -> None:
    try:
        pipe.send(("result", work(pipe, *arguments)))
    except BaseException:
        pipe.send(("crash", traceback.format_exc()))


@contextlib.contextmanager
def threads(*works: Callable[[], None]) -> Iterator[None]:
    """Run functions beside the block, and raise what they raise."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        for thread in running:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert errors == []


def until(condition: Callable[[], Any]) -> None:
    """Return when a condition is true that another thread or process is about to make so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0)


def descriptors(path: str | os.PathLike[str]) -> int:
    """Count how often this process has a file open."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{name}") == os.fspath(path)
    return found
