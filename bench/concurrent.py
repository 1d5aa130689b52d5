"""Time writers that commit at once: ``python -m bench.concurrent [--tiny] [--rounds N] …``.

Several processes write one chunk a commit to one branch, each its own chunks of one array, through
zarr. All wait at a barrier, then go. The engines take turns within each round, so that they meet
the same moments of the machine, and afterwards every commit that was acknowledged is looked for.

A *wait* is that of one commit: open a transaction or session, write the chunk through zarr, commit.
What comes after the chunk is written is *commit* alone. ``commits/s`` are those that all processes
together saw acknowledged, lost ones too, from the first start to the last end; the median of the
rounds. Waits are of all rounds. *Rebased* commits have another parent than the one that they began
from, *conflicts* are errors that made a writer rebase or begin again, *failed* commits were given
up. *Lost* are commits that were acknowledged and are not in the branch's history at the end, and
the chunks of acknowledged commits that have another value then. If vzarr fails or loses any, the
exit code is 1.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

import vzarr

# Icechunk reads it when it is imported, and warns at every step on a local disk.
os.environ.setdefault("ICECHUNK_LOG", "error")

CHUNK = 8
"""Elements of 8 bytes in a chunk."""
BARRIER_SECONDS = 60
ROUND_SECONDS = 600
MESSAGE = "write one chunk"

# One clock for all processes of the machine.
now = time.monotonic


@dataclass(frozen=True, slots=True)
class Written:
    """One commit that an engine acknowledged, and when its writer began to commit."""

    chunk: int
    base: str
    commit: str
    committing: float
    conflicts: int = 0


@dataclass(slots=True)
class Part:
    """What one process did in a round."""

    written: list[Written] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


Writer = Callable[[int], Written]


class Engine(Protocol):
    """One way to commit."""

    name: str
    durable: bool

    def missing(self) -> str:
        """Say why it cannot take part; empty if it can."""
        ...

    def create(self, path: Path, chunks: int) -> None:
        """Make a repository with an array of so many chunks."""
        ...

    def open(self, path: Path) -> Any:
        """Open it in a writing process. The result has ``close``."""
        ...

    def write(self, repo: Any, chunk: int) -> Written:
        """Write a chunk and commit."""
        ...

    def parents(self, path: Path) -> dict[str, str]:
        """List the commits of the branch, and the parent of each."""
        ...

    def values(self, path: Path) -> np.ndarray:
        """Read the whole array at the head of the branch."""
        ...


def fill(store: Any, chunks: int) -> None:
    array = zarr.create_array(
        store, name="a", shape=(chunks * CHUNK,), chunks=(CHUNK,), dtype="i8", compressors=None
    )
    array[:] = -1


def put(store: Any, chunk: int) -> None:
    zarr.open_array(store, path="a", mode="r+")[chunk * CHUNK : (chunk + 1) * CHUNK] = chunk


def read(store: Any) -> np.ndarray:
    return np.asarray(zarr.open_array(store, path="a", mode="r")[:])


# ── vzarr ────────────────────────────────────────────────────────────────────────────────────────


def in_transaction(repo: vzarr.Repository, chunk: int, **options: Any) -> Written:
    with repo.transaction("main", MESSAGE, **options) as store:
        base = store.session.base
        put(store, chunk)
        committing = now()
    return Written(chunk, base, store.session.base, committing)


def exclusively(repo: vzarr.Repository, chunk: int) -> Written:
    return in_transaction(repo, chunk, exclusive=True)


def by_run(repo: vzarr.Repository, chunk: int) -> Written:
    attempts: list[tuple[str, float]] = []

    def change(store: Any) -> None:
        put(store, chunk)
        attempts.append((store.session.base, now()))

    commit, _ = repo.run(change, "main", MESSAGE)
    base, committing = attempts[-1]
    return Written(chunk, base, commit, committing, len(attempts) - 1)


@dataclass(frozen=True, slots=True)
class Vzarr:
    name: str
    write: Callable[[vzarr.Repository, int], Written]
    durable: bool = True
    option: str = ""

    def missing(self) -> str:
        known = inspect.signature(vzarr.Repository.transaction).parameters
        return "" if self.option in ("", *known) else f"transaction({self.option}=) is not there"

    def create(self, path: Path, chunks: int) -> None:
        with vzarr.open(path, "w") as repo, repo.transaction("main", "create") as store:
            fill(store, chunks)

    def open(self, path: Path) -> vzarr.Repository:
        return vzarr.open(path, "r+", durability="full" if self.durable else "normal")

    def parents(self, path: Path) -> dict[str, str]:
        with vzarr.open(path, "r") as repo:
            return {commit.id: "".join(commit.parents) for commit in repo.log("main")}

    def values(self, path: Path) -> np.ndarray:
        with vzarr.open(path, "r") as repo:
            return read(repo.store("main"))


# ── Icechunk ─────────────────────────────────────────────────────────────────────────────────────


class OpenIcechunk:
    """Icechunk's repository, which needs no closing."""

    def __init__(self, path: Path) -> None:
        import icechunk

        self.repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))

    def close(self) -> None:
        del self.repo


@dataclass(frozen=True, slots=True)
class Icechunk:
    """Commits as its documentation has it for several writers: on a conflict, rebase and retry.

    The same documentation warns that commits at once are not safe on a local disk.
    """

    name: str = "icechunk"
    durable: bool = False

    def missing(self) -> str:
        try:
            import icechunk  # noqa: F401
        except ImportError:
            return "it is not installed"
        return ""

    def create(self, path: Path, chunks: int) -> None:
        import icechunk

        repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
        with repo.transaction("main", message="create") as store:
            fill(store, chunks)

    def open(self, path: Path) -> OpenIcechunk:
        return OpenIcechunk(path)

    def write(self, opened: OpenIcechunk, chunk: int) -> Written:
        import icechunk

        session = opened.repo.writable_session("main")
        base = session.snapshot_id
        put(session.store, chunk)
        committing = now()
        conflicts = 0
        while True:
            try:
                commit = session.commit(MESSAGE)
            except icechunk.ConflictError:
                conflicts += 1
                session.rebase(icechunk.ConflictDetector())
            else:
                return Written(chunk, base, commit, committing, conflicts)

    def parents(self, path: Path) -> dict[str, str]:
        history = OpenIcechunk(path).repo.ancestry(branch="main")
        return {snapshot.id: snapshot.parent_id or "" for snapshot in history}

    def values(self, path: Path) -> np.ndarray:
        return read(OpenIcechunk(path).repo.readonly_session("main").store)


FAMILIES: dict[str, list[Engine]] = {
    "vzarr": [
        Vzarr("vzarr transaction", in_transaction),
        Vzarr("vzarr run", by_run),
        Vzarr("vzarr exclusive", exclusively, option="exclusive"),
        Vzarr("vzarr normal", in_transaction, durable=False),
    ],
    "icechunk": [Icechunk()],
}
ENGINES = {engine.name: engine for family in FAMILIES.values() for engine in family}


# ── the processes ────────────────────────────────────────────────────────────────────────────────


def work(connection: Connection, barrier: Barrier) -> None:
    """Take part in rounds until there are no more: the life of a writing process."""
    while True:
        try:
            name, path, chunks = connection.recv()
        except EOFError:
            return
        connection.send(take_part(ENGINES[name], path, chunks, barrier))


def take_part(engine: Engine, path: Path, chunks: range, barrier: Barrier) -> Part:
    part = Part()
    repo = engine.open(path)
    barrier.wait(BARRIER_SECONDS)
    for chunk in chunks:
        begin = now()
        try:
            written = engine.write(repo, chunk)
        except Exception as error:
            part.failures.append(f"{type(error).__name__}: {error}")
            continue
        part.begins.append(begin)
        part.ends.append(now())
        part.written.append(written)
    repo.close()
    return part


@contextmanager
def writers(count: int) -> Iterator[list[Connection]]:
    """Start the writing processes; they live through all rounds, so that all are warm."""
    context = get_context("spawn")
    barrier = context.Barrier(count)
    pipes = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=work, args=(end, barrier)) for _, end in pipes]
    for process, (_, end) in zip(processes, pipes, strict=True):
        process.start()
        # Their ends are theirs alone: so we see it when one of them dies.
        end.close()
    try:
        yield [connection for connection, _ in pipes]
    finally:
        for connection, _ in pipes:
            connection.close()
        for process in processes:
            process.join(BARRIER_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


@dataclass(slots=True)
class Result:
    """What one engine did in one round."""

    rate: float
    waits: list[float]
    commits: list[float]
    rebased: int
    conflicts: int
    failures: list[str]
    lost_commits: int
    lost_chunks: int


def race(engine: Engine, path: Path, connections: list[Connection], commits: int) -> Result:
    """Let all processes commit at once, and then look for what they wrote."""
    engine.create(path, len(connections) * commits)
    for number, connection in enumerate(connections):
        mine = range(number * commits, (number + 1) * commits)
        connection.send((engine.name, path, mine))
    parts: list[Part] = []
    for connection in connections:
        if not connection.poll(ROUND_SECONDS):
            raise TimeoutError(f"a process takes more than {ROUND_SECONDS} s with {engine.name}")
        parts.append(connection.recv())
    return judge(parts, engine.parents(path), engine.values(path).reshape(-1, CHUNK))


def judge(parts: list[Part], parents: dict[str, str], values: np.ndarray) -> Result:
    """Compare what was acknowledged with the history, and with the values of each chunk."""
    written = [commit for part in parts for commit in part.written]
    begins = [begin for part in parts for begin in part.begins]
    ends = [end for part in parts for end in part.ends]
    return Result(
        rate=len(written) / (max(ends) - min(begins)) if written else 0,
        waits=[end - begin for begin, end in zip(begins, ends, strict=True)],
        commits=[end - each.committing for each, end in zip(written, ends, strict=True)],
        rebased=sum(parents.get(each.commit, each.base) != each.base for each in written),
        conflicts=sum(each.conflicts for each in written),
        failures=[failure for part in parts for failure in part.failures],
        lost_commits=sum(each.commit not in parents for each in written),
        lost_chunks=sum(bool((values[each.chunk] != each.chunk).any()) for each in written),
    )


def compete(
    engines: list[Engine], rounds: int, processes: int, commits: int
) -> dict[str, list[Result]]:
    """Let the engines take turns for so many rounds."""
    results: dict[str, list[Result]] = {engine.name: [] for engine in engines}
    with tempfile.TemporaryDirectory(dir=".") as name, writers(processes) as connections:
        path = Path(name) / "race"
        # The first round is for imports and caches, and does not count.
        for number in range(-1, rounds):
            for engine in engines:
                result = race(engine, path, connections, commits if number >= 0 else 2)
                if number >= 0:
                    results[engine.name].append(result)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return results


# ── the table ────────────────────────────────────────────────────────────────────────────────────

COLUMNS = (
    ("durable", 9),
    ("commits/s", 11),
    ("wait p50", 11),
    ("p99", 9),
    ("max", 9),
    ("commit p50", 13),
    ("p99", 9),
    ("rebased", 10),
    ("conflicts", 11),
    ("failed", 8),
    ("lost commits", 14),
    ("chunks", 8),
)


def percentile(seconds: list[float], share: float) -> str:
    """Give a time that so many of a hundred do not exceed, in milliseconds."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    return f"{ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] * 1e3:.1f}"


def row(engine: Engine, results: list[Result]) -> list[str]:
    waits = [wait for result in results for wait in result.waits]
    commits = [commit for result in results for commit in result.commits]
    return [
        "yes" if engine.durable else "no",
        f"{statistics.median(result.rate for result in results):.0f}",
        percentile(waits, 50),
        percentile(waits, 99),
        percentile(waits, 100),
        percentile(commits, 50),
        percentile(commits, 99),
        str(sum(result.rebased for result in results)),
        str(sum(result.conflicts for result in results)),
        str(sum(len(result.failures) for result in results)),
        str(sum(result.lost_commits for result in results)),
        str(sum(result.lost_chunks for result in results)),
    ]


def table(results: dict[str, list[Result]]) -> Iterator[str]:
    yield f"{'':<18}" + "".join(f"{name:>{width}}" for name, width in COLUMNS)
    for name, series in results.items():
        cells = zip(row(ENGINES[name], series), COLUMNS, strict=True)
        yield f"{name:<18}" + "".join(f"{cell:>{width}}" for cell, (_, width) in cells)
    (first, fastest), *others = results.items()
    for name, series in others:
        pairs = zip(fastest, series, strict=True)
        ratios = [ours.rate / theirs.rate for ours, theirs in pairs if theirs.rate]
        if ratios:
            yield f"{first} / {name}, round by round: {statistics.median(ratios):.2f}"
    for name, series in results.items():
        failures = [failure.partition("\n")[0] for result in series for failure in result.failures]
        if failures:
            yield f"{name} failed {len(failures)} times, first with {failures[0]}"


def chosen(families: list[str]) -> Iterator[Engine]:
    for family in families:
        for engine in FAMILIES[family]:
            reason = engine.missing()
            if reason:
                print(f"{engine.name} is left out: {reason}")
            else:
                yield engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="sizes that only prove that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--commits", type=int, default=50, help="by each process, in each round")
    parser.add_argument("--engines", default=",".join(FAMILIES), help="default: %(default)s")
    arguments = parser.parse_args()
    families = arguments.engines.split(",")
    if not set(families) <= set(FAMILIES):
        parser.error(f"--engines are some of {','.join(FAMILIES)}, not {arguments.engines}")
    rounds, processes, commits = arguments.rounds, arguments.processes, arguments.commits
    if arguments.tiny:
        rounds, processes, commits = 1, 2, 3
    print(json.dumps({"zarr": zarr.__version__, "python": sys.version.split()[0]}))
    engines = list(chosen(families))
    results = compete(engines, rounds, processes, commits)
    print(f"{processes} processes x {commits} commits, {rounds} round(s); times in ms")
    print(*table(results), sep="\n")
    for name, series in results.items():
        bad = sum(
            len(result.failures) + result.lost_commits + result.lost_chunks for result in series
        )
        if bad and isinstance(ENGINES[name], Vzarr):
            sys.exit(f"{name} failed or lost {bad} commits and chunks")


if __name__ == "__main__":
    main()
