"""Run trials in processes that may die of them."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import traceback
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from tests.damage.cases import Case
from tests.damage.sample import Facts
from tests.damage.trial import HANG, SIGNAL, UNTYPED, Result, run

HANG_SECONDS = 60
"""A trial takes a tenth of a second; machines are shared and slow at times."""

Task = tuple[Case, int]
"""A case, and what to do with the file."""


def directory() -> str | None:
    """Give a place in memory, where there is one: trials are many."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def run_all(
    data: bytes, facts: Facts, tasks: Sequence[Task], *, processes: int = 1
) -> Generator[tuple[Case, Result], None, None]:
    """Run trials, each on a damaged copy of the data. A process that dies is replaced."""
    with tempfile.TemporaryDirectory(dir=directory(), prefix="vzarr-damage-") as name:
        workers = [
            _Worker(Path(name), data, facts, tasks[index::processes]) for index in range(processes)
        ]
        try:
            while workers:
                for worker in list(workers):
                    found = worker.next()
                    if found is None:
                        workers.remove(worker)
                    else:
                        yield found
        finally:
            for worker in workers:
                worker.kill()


class _Worker:
    """A forked process that runs trials one after another, and its successors."""

    def __init__(self, where: Path, data: bytes, facts: Facts, tasks: Sequence[Task]) -> None:
        self._where, self._data, self._facts, self._tasks = where, data, facts, tasks
        self._done = 0
        self._pid = 0
        self._pipe: Connection | None = None

    def next(self) -> tuple[Case, Result] | None:
        """Give the next result, or None after the last."""
        if self._done == len(self._tasks):
            self.kill()
            return None
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        case = self._tasks[self._done][0]
        self._done += 1
        try:
            if self._pipe.poll(HANG_SECONDS):
                return case, self._pipe.recv()
            os.kill(self._pid, signal.SIGKILL)
            result = Result(HANG, f"more than {HANG_SECONDS} s")
        except EOFError:
            result = Result(SIGNAL)
        number = self._reap()
        return case, result if result.outcome == HANG else Result(SIGNAL, f"ended with {number}")

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        self._pid = os.fork()
        if not self._pid:
            self._pipe.close()
            try:
                self._work(theirs)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        theirs.close()

    def _work(self, pipe: Connection) -> None:
        for number in range(self._done, len(self._tasks)):
            case, steps = self._tasks[number]
            damaged = bytearray(self._data)
            case.edit(damaged)
            path = self._where / f"{os.getpid()}-{number}.vzarr"
            path.write_bytes(damaged)
            try:
                result = run(path, self._facts, steps)
            except BaseException:
                result = Result(UNTYPED, traceback.format_exc())
            pipe.send(result)

    def _reap(self) -> int:
        assert self._pipe is not None
        self._pipe.close()
        self._pipe = None
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def kill(self) -> None:
        """End the process, if there is one."""
        if self._pipe is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._reap()
