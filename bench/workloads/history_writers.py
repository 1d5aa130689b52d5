"""Writers that commit at once: several processes, one branch, each its own chunks of one array.

All open the array, wait at a barrier, then go. A *wait* is that of one commit: open a transaction
or session, write the chunk through zarr, commit; *commit* is what comes after the chunk is written.
*Rebased* commits have another parent than the one that they began from, *conflicts* are errors that
made a writer rebase or begin again, *failed* commits were given up. *Lost commits* were
acknowledged and are not in the branch's history at the end; *lost chunks* belong to commits that
were acknowledged, and have another value then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from bench.engines import ICECHUNK, VZARR, Engine
from bench.engines.chunked import Vzarr
from bench.harness import Case, Run, Workload
from bench.workloads.history import ELEMENTS, MESSAGE, layout, part, percentile

VZARR_RUN = Vzarr("vzarr, run", VZARR.family)
VZARR_EXCLUSIVE = Vzarr("vzarr, exclusive", VZARR.family)
VZARR_NORMAL = Vzarr("vzarr, durability normal", VZARR.family, durable=False)
ENGINES = (VZARR, VZARR_RUN, VZARR_EXCLUSIVE, VZARR_NORMAL, ICECHUNK)

BARRIER_SECONDS = 60
RACE_SECONDS = 600

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
    """What one process did."""

    written: list[Written] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


# ── how each engine commits ──────────────────────────────────────────────────────────────────────


def put(store: Any, chunk: int) -> None:
    import zarr

    zarr.open_array(store, path="a", mode="r+")[part(chunk)] = chunk


def in_transaction(repo: Any, chunk: int, **options: Any) -> Written:
    with repo.transaction("main", MESSAGE, **options) as store:
        base = store.session.base
        put(store, chunk)
        committing = now()
    return Written(chunk, base, store.session.base, committing)


def exclusively(repo: Any, chunk: int) -> Written:
    return in_transaction(repo, chunk, exclusive=True)


def by_run(repo: Any, chunk: int) -> Written:
    attempts: list[tuple[str, float]] = []

    def change(store: Any) -> None:
        put(store, chunk)
        attempts.append((store.session.base, now()))

    commit, _ = repo.run(change, "main", MESSAGE)
    base, committing = attempts[-1]
    return Written(chunk, base, commit, committing, len(attempts) - 1)


def rebasing(repo: Any, chunk: int) -> Written:
    """Commit as Icechunk's documentation has it for several writers: on a conflict, rebase.

    The same documentation warns that commits at once are not safe on a local disk.
    """
    icechunk = ICECHUNK.module()
    session = repo.writable_session("main")
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


WRITES: dict[str, Callable[[Any, int], Written]] = {
    VZARR.name: in_transaction,
    VZARR_RUN.name: by_run,
    VZARR_EXCLUSIVE.name: exclusively,
    VZARR_NORMAL.name: in_transaction,
    ICECHUNK.name: rebasing,
}


def create(engine: Engine, path: Path, chunks: int) -> None:
    with engine.create(path, layout(chunks)) as opened, opened.change("create") as array:
        array[:] = -1


@contextmanager
def repository(engine: Engine, path: Path) -> Iterator[Any]:
    if engine.family == VZARR.family:
        import vzarr

        with vzarr.open(path, "r+", durability="full" if engine.durable else "normal") as repo:
            yield repo
    else:
        with engine.open(path, write=True) as opened:
            yield opened.repo


def parents(engine: Engine, repo: Any) -> dict[str, str]:
    """List the commits of the branch, and the parent of each."""
    if engine.family == VZARR.family:
        return {commit.id: "".join(commit.parents) for commit in repo.log("main")}
    return {one.id: one.parent_id or "" for one in repo.ancestry(branch="main")}


# ── the processes ────────────────────────────────────────────────────────────────────────────────


def work(connection: Connection, barrier: Barrier) -> None:
    """Take part in races until there are no more: the life of a writing process."""
    while True:
        try:
            engine, path, chunks = connection.recv()
        except EOFError:
            return
        connection.send(take_part(engine, path, chunks, barrier))


def take_part(engine: Engine, path: Path, chunks: range, barrier: Barrier) -> Part:
    done, write = Part(), WRITES[engine.name]
    with repository(engine, path) as repo:
        barrier.wait(BARRIER_SECONDS)
        for chunk in chunks:
            begin = now()
            try:
                written = write(repo, chunk)
            except Exception as error:
                done.failures.append(f"{type(error).__name__}: {error}")
                continue
            done.begins.append(begin)
            done.ends.append(now())
            done.written.append(written)
    return done


@contextmanager
def writers(count: int) -> Iterator[list[Connection]]:
    """Start the writing processes."""
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


# ── the race ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Result:
    """What all processes did together."""

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
    create(engine, path, len(connections) * commits)
    for number, connection in enumerate(connections):
        mine = range(number * commits, (number + 1) * commits)
        connection.send((engine, path, mine))
    parts: list[Part] = []
    for connection in connections:
        if not connection.poll(RACE_SECONDS):
            raise TimeoutError(f"a process takes more than {RACE_SECONDS} s with {engine.name}")
        parts.append(connection.recv())
    with repository(engine, path) as repo:
        history = parents(engine, repo)
    with engine.open(path) as opened:
        return judge(parts, history, opened.array[:].reshape(-1, ELEMENTS))


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


def compete(run: Run, *, processes: int, commits: int) -> None:
    """Let so many processes make so many commits each, at once."""
    with writers(processes) as connections:
        # A short one, for imports and caches, does not count.
        race(run.engine, run.directory / "warm-up", connections, 2)
        result = race(run.engine, run.path, connections, commits)
    run.record("commits", result.rate, "commits/s")
    if result.waits:
        run.record("wait, p50", percentile(result.waits, 50) * 1e3, "ms")
        run.record("wait, p99", percentile(result.waits, 99) * 1e3, "ms")
        run.record("wait, longest", max(result.waits) * 1e3, "ms")
        run.record("commit, p50", percentile(result.commits, 50) * 1e3, "ms")
        run.record("commit, p99", percentile(result.commits, 99) * 1e3, "ms")
    for name, count in (
        ("rebased", result.rebased),
        ("conflicts", result.conflicts),
        ("failed", len(result.failures)),
        ("lost commits", result.lost_commits),
        ("lost chunks", result.lost_chunks),
    ):
        run.record(name, count, "commits")
    bad = len(result.failures) + result.lost_commits + result.lost_chunks
    if bad and run.engine.family == VZARR.family:
        raise AssertionError(f"{bad} commits and chunks failed or are lost: {result.failures[:1]}")


def case(processes: int, commits: int) -> Case:
    options = {"processes": processes, "commits": commits}
    return Case(f"{processes} processes, {commits} commits each", options)


WORKLOADS = (
    Workload(
        number=8,
        name="writers",
        title="Writers at once",
        sentence=(
            "Several processes commit to one branch at once, one chunk of 64 bytes a commit, each "
            'its own chunks of one array. A "wait" is all of a commit: begin, write through zarr, '
            'commit. "commits" counts all that were acknowledged, lost ones too. "lost" are '
            "commits that were acknowledged and are not in the history afterwards, and chunks of "
            "such commits that have another value. Icechunk rebases on a conflict, as its "
            "documentation has it; which also warns against a local disk for this."
        ),
        engines=ENGINES,
        sizes={
            "tiny": (case(2, 3),),
            "laptop": (case(4, 50),),
            "large": (case(4, 50), case(16, 50)),
        },
        measure=compete,
        chart=("commits", "wait, p99"),
    ),
)
