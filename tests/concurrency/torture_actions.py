"""All that a worker of the torture test does, at random, until it is told to stop."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import zarr

import vzarr
from tests.concurrency import torture_branches as branches
from tests.concurrency import torture_operations as do
from tests.concurrency import torture_sessions as sessions
from tests.concurrency.torture_worker import Fate, Log, Worker, perform
from vzarr import changes
from vzarr.errors import ConflictError
from vzarr.session import Session

DIED = 7
"""Exit code of a worker that ended itself on purpose."""
TIMEOUT = 120.0
# So that what is written is staged in batches, and those who are killed leave some.
BATCH_BYTES = 1 << 15
_MOST_NODES, _MOST_ATTRIBUTES, _MOST_TAGS = 5, 3, 3

# ── one commit on main ───────────────────────────────────────────────────────────────────────────


def write(worker: Worker) -> None:
    make = worker.chance.choice([worker.grid, worker.contested, worker.own])
    worker.writes.append(worker.run(make()))


def count(worker: Worker) -> None:
    worker.run(do.Count(worker.chance.randrange(worker.slots)))


def add(worker: Worker) -> None:
    start = worker.chance.randrange(do.CONTESTED - 8)
    worker.run(do.Add(start, start + 8))


def append(worker: Worker) -> None:
    worker.run(do.Append(worker.value()))


def sum_up(worker: Worker) -> None:
    worker.run(do.Sum(worker.slot, worker.value()), isolation="serializable")


def bulk(worker: Worker) -> None:
    worker.run(do.WriteBulk(worker.slot, worker.value()))


def set_attribute(worker: Worker) -> None:
    if len(worker.attributes) >= _MOST_ATTRIBUTES:
        worker.run(do.SetAttribute(worker.attributes.pop(0), None))
    operation = worker.attribute()
    worker.run(operation)
    worker.attributes.append(operation.name)


def nodes(worker: Worker) -> None:
    """Create, move or delete groups and arrays of the own slot."""
    top = f"nodes/{worker.slot}"
    group = zarr.open_group(worker.repo.store("main"), path=top, mode="r")
    names = sorted(name for name, _ in group.members())
    if len(names) >= _MOST_NODES or (names and worker.chance.random() < 0.2):
        worker.run(do.Delete(f"{top}/{worker.chance.choice(names)}"))
    elif names and worker.chance.random() < 0.5:
        source = worker.chance.choice(names)
        worker.run(do.Move(f"{top}/{source}", f"{top}/m{worker.value()}"))
    elif worker.chance.random() < 0.5:
        worker.run(worker.array())
    else:
        worker.run(do.CreateGroup(f"{top}/g{worker.value()}", worker.slot))


# ── transactions ─────────────────────────────────────────────────────────────────────────────────


def triple(worker: Worker) -> None:
    """Read, compute and write with the branch for ourselves: never a conflict."""
    operation = do.Triple(worker.value())
    note = worker.note("apply", [operation])
    with worker.repo.transaction("main", "Triple", metadata=note, exclusive=True) as store:
        operation.perform(store)
    assert worker.acknowledge(store.session.base, "main", note)


def transact(worker: Worker) -> None:
    """Commit a transaction that is given up where somebody was faster."""
    operations = [worker.grid(), worker.contested()]
    note = worker.note("apply", operations)
    try:
        with worker.repo.transaction("main", "plain", metadata=note) as store:
            perform(operations, store)
    except ConflictError as error:
        worker.expect(error)
    else:
        assert worker.acknowledge(store.session.base, "main", note)


class _OnPurposeError(Exception):
    """Raised by the test inside a transaction."""


def roll_back(worker: Worker) -> None:
    """Raise in a transaction, which must leave nothing."""
    try:
        with worker.repo.transaction("main", "never") as store:
            perform([*worker.edits(), do.Count(0)], store)
            raise _OnPurposeError
    except _OnPurposeError:
        worker.log.note("rollback")


# ── tags and garbage ─────────────────────────────────────────────────────────────────────────────


def tag(worker: Worker) -> None:
    if len(worker.tags) >= _MOST_TAGS:
        name = worker.tags.pop(0)
        worker.log.note("untagging", name=name)
        worker.repo.tags.delete(name)
    elif worker.commits:
        name, commit = f"t/{worker.name}/{worker.value()}", worker.chance.choice(worker.commits)
        worker.repo.tags.create(name, at=commit)
        worker.log.note("tag", name=name, commit=commit)
        worker.tags.append(name)


def collect(worker: Worker) -> None:
    """Forget where branches were, and collect the garbage that this makes."""
    worker.repo.expire(older_than=timedelta())
    report = worker.repo.gc()
    worker.log.note("gc", commits=report.commits, nodes=report.nodes, chunks=report.chunks)


# ── all together ─────────────────────────────────────────────────────────────────────────────────

MIX: list[tuple[Callable[[Worker], None], int]] = [
    (write, 14),
    (count, 7),
    (add, 7),
    (append, 7),
    (sum_up, 5),
    (bulk, 2),
    (set_attribute, 4),
    (nodes, 8),
    (triple, 3),
    (transact, 6),
    (roll_back, 2),
    (sessions.draft, 22),
    (sessions.fork, 4),
    (sessions.save, 3),
    (sessions.resume, 6),
    (sessions.read, 5),
    (branches.branch, 6),
    (branches.amend, 1),
    (branches.autocommit, 2),
    (branches.revert, 4),
    (tag, 3),
    (collect, 2),
]


def act(worker: Worker, stop: Callable[[], bool]) -> None:
    """Do one thing after the other, and look at what the sessions show in between."""
    actions, weights = zip(*MIX, strict=True)
    while not stop():
        (action,) = worker.chance.choices(actions, weights)
        action(worker)
        if worker.readers and worker.chance.random() < 0.2:
            sessions.look_again(worker.chance.choice(worker.readers))
    for reader in worker.readers:
        sessions.look_again(reader)
        reader.session.close()
    for draft in worker.drafts:
        draft.session.close()


def work(
    stop: Connection, path: Path, log_path: Path, name: int, slot: int, slots: int, seed: int
) -> None:
    """Be a worker in a process of its own, until the other end of the pipe is closed."""
    changes.BATCH_BYTES = BATCH_BYTES
    log = Log(log_path)
    try:
        durability = "full" if slot % 2 else "normal"
        with vzarr.open(
            path, author=f"worker {name}", timeout=TIMEOUT, durability=durability
        ) as repo:
            fate = Fate(_exit, _end_in)
            act(Worker(repo, log, fate, name=name, slot=slot, slots=slots, seed=seed), stop.poll)
            # What was aimed hits nobody any more.
            signal.setitimer(signal.ITIMER_REAL, 0)
    except BaseException:
        log.note("crash", traceback=traceback.format_exc())
        raise


def _exit(_: Session) -> None:
    os._exit(DIED)


def _end_in(seconds: float) -> None:
    """Let the kernel end this process, in the middle of whatever it does then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
