"""The torture test's driver: starts workers, kills them at random, and starts others.

``VZARR_TORTURE`` set to a number of commits (or to 1, for ten thousand) makes it long;
``VZARR_SEED`` makes the same choices again, though not the same coincidences.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
import traceback
from concurrent import futures
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

import vzarr
from tests.concurrency import torture_operations as do
from tests.concurrency.torture_actions import DIED, TIMEOUT, act, work
from tests.concurrency.torture_check import Told, Verdict, check, settle
from tests.concurrency.torture_worker import Fate, Log, Worker
from vzarr.session import Session

LONG = os.environ.get("VZARR_TORTURE", "")
LONG_COMMITS = int(LONG) if LONG.isdecimal() and int(LONG) > 1 else 10_000
_REPORT_SECONDS = 10
_LEAST_KILLS = 3
# How a line of a log begins that says so.
_COMMIT = b'{"kind": "commit"'


def choose_seed() -> int:
    seed = int(os.environ.get("VZARR_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"VZARR_SEED={seed}")
    return seed


@dataclass
class Torture:
    """How much of it, and where."""

    path: Path
    directory: Path
    """For the workers' logs."""
    slots: int
    """So many workers at a time."""
    commits: int
    seed: int
    kill_every: float = 1.0
    """Seconds, on average."""
    samples: int = 20
    """So many commits are compared with the replay, beside the heads of all branches."""
    kills: int = 0
    aimed: int = 0
    """How many more were ended by the kernel at about the time of a commit."""
    deaths: int = 0
    """How many ended themselves, after a checkpoint."""
    seconds: float = 0
    _started: float = field(default_factory=time.monotonic)
    _next_report: float = 0
    _names: int = 0

    # ── processes ────────────────────────────────────────────────────────────────────────────────

    def with_processes(self) -> Verdict:
        """Let workers in processes of their own run until there are enough commits."""
        self._set_up()
        chance = random.Random(self.seed)
        workers = {slot: self._start(slot) for slot in range(self.slots)}
        counter = _Counter(self.directory)
        try:
            while (commits := counter.count()) < self.commits or self.kills < _LEAST_KILLS:
                self._report(commits)
                # Nothing is waited for but the moment to kill, or that somebody dies by himself.
                pause = chance.expovariate(1 / self.kill_every)
                ended = wait([it.process.sentinel for it in workers.values()], pause)
                if not ended:
                    workers[chance.randrange(self.slots)].kill()
                for slot, worker in workers.items():
                    if not worker.process.is_alive():
                        self._bury(worker)
                        workers[slot] = self._start(slot)
            for worker in workers.values():
                worker.stop.close()
            for worker in workers.values():
                worker.process.join(TIMEOUT)
                assert not worker.process.is_alive(), "a worker hangs"
                self._bury(worker)
        finally:
            for worker in workers.values():
                worker.process.kill()
        return self._check()

    def _start(self, slot: int) -> _Process:
        self._names += 1
        return _Process(self.path, self._log(self._names), self._names, slot, self.slots, self.seed)

    def _bury(self, worker: _Process) -> None:
        worker.process.join()
        code = worker.process.exitcode
        # By itself it ends well only after it was told to stop.
        expected = {-signal.SIGALRM, DIED, -signal.SIGKILL if worker.killed else 0}
        if code not in expected or (code == 0 and not worker.stop.closed):
            Told.read([self._log(worker.name)])
            raise AssertionError(f"worker {worker.name} ended with {code}")
        self.kills += code == -signal.SIGKILL
        self.aimed += code == -signal.SIGALRM
        self.deaths += code == DIED

    # ── threads ──────────────────────────────────────────────────────────────────────────────────

    def with_threads(self) -> Verdict:
        """Let workers in threads of this process run, on two repository objects of one file."""
        self._set_up()
        counter, failed = _Counter(self.directory), threading.Event()

        def run(name: int, slot: int, repo: vzarr.Repository) -> None:
            log = Log(self._log(name))
            try:
                worker = Worker(
                    repo,
                    log,
                    Fate(Session.close),
                    name=name,
                    slot=slot,
                    slots=self.slots,
                    seed=self.seed,
                )
                act(worker, lambda: failed.is_set() or counter.count() >= self.commits)
            except BaseException:
                log.note("crash", traceback=traceback.format_exc())
                failed.set()
                raise
            finally:
                log.close()

        with (
            vzarr.open(self.path, author="one", timeout=TIMEOUT) as one,
            vzarr.open(self.path, author="two", timeout=TIMEOUT, durability="normal") as two,
            futures.ThreadPoolExecutor(self.slots) as pool,
        ):
            repos = [one, two]
            tasks = [
                pool.submit(run, slot + 1, slot, repos[slot % 2]) for slot in range(self.slots)
            ]
            while futures.wait(tasks, _REPORT_SECONDS).not_done:
                self._report(counter.count())
            for task in tasks:
                task.result()
        return self._check()

    # ── both ─────────────────────────────────────────────────────────────────────────────────────

    def _log(self, name: int) -> Path:
        return self.directory / f"{name}.log"

    def _set_up(self) -> None:
        self.directory.mkdir()
        operation = do.SetUp(self.slots)
        note = {"worker": 0, "sequence": 0, "how": "apply", "operations": [operation.encode()]}
        with (
            vzarr.open(self.path, author="driver", timeout=TIMEOUT) as repo,
            repo.transaction("main", "set up", metadata=note) as store,
        ):
            operation.perform(store)

    def _report(self, commits: int) -> None:
        """Say now and then how far it is."""
        seconds = time.monotonic() - self._started
        if LONG and seconds >= self._next_report:
            self._next_report = seconds + _REPORT_SECONDS
            kills, megabytes = self.kills + self.aimed, self.path.stat().st_size / 1e6
            print(
                f"{seconds:6.0f} s  {commits:6,} of {self.commits:,} commits, {kills} kills, "
                f"{self.deaths} deaths, {megabytes:.0f} MB",
                flush=True,
            )

    def summarise(self, verdict: Verdict) -> None:
        """Say what has happened."""
        told, rate = verdict.told, verdict.commits / self.seconds
        print(
            f"{verdict.commits:,} commits acknowledged in {self.seconds:.1f} s, {rate:.1f} a "
            f"second; {verdict.unacknowledged} made by workers that did not live to say so\n"
            f"{self.kills} kills, {self.aimed} more aimed at a commit, {self.deaths} deaths after "
            f"a checkpoint, {told['resume']} sessions resumed\n"
            f"{told['conflict']} conflicts, {told['rollback']} rollbacks, {told['gc']} gcs, "
            f"{told['read']} readers\n"
            f"{verdict.replayed:,} commits replayed, {verdict.compared} compared"
        )
        print(", ".join(f"{what} {number}" for what, number in sorted(verdict.how.items())))

    def _check(self) -> Verdict:
        self.seconds = time.monotonic() - self._started
        log = Log(self.directory / "heir.log")
        with vzarr.open(self.path, author="heir", timeout=TIMEOUT) as repo:
            settle(repo, log, self.seed)
            log.close()
            told = Told.read(sorted(self.directory.iterdir()))
            return check(repo, told, seed=self.seed, samples=self.samples)


class _Process:
    """A worker in a process that has nothing of ours but a pipe, which tells it to stop."""

    def __init__(self, path: Path, log: Path, name: int, slot: int, slots: int, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        theirs, self.stop = context.Pipe(duplex=False)
        self.name, self.killed = name, False
        self.process = context.Process(
            target=work, args=(theirs, path, log, name, slot, slots, seed)
        )
        self.process.start()
        theirs.close()

    def kill(self) -> None:
        self.killed = True
        self.process.kill()
        self.process.join()


class _Counter:
    """Counts what the workers say to have committed. O(what they said since the last time)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._places: dict[Path, int] = {}
        self._commits = 0

    def count(self) -> int:
        with self._lock:
            for path in self._directory.iterdir():
                with path.open("rb") as log:
                    log.seek(self._places.get(path, 0))
                    data = log.read()
                    self._places[path] = log.tell()
                self._commits += data.count(_COMMIT)
            return self._commits
