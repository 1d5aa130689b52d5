"""What the workers of the torture test do with sessions: drafts, forks, checkpoints, readers."""

from __future__ import annotations

import hashlib
import json

from tests.concurrency import torture_operations as do
from tests.concurrency.torture_model import LARGER, assert_consistent, read_state, strategy
from tests.concurrency.torture_operations import Operation
from tests.concurrency.torture_worker import Draft, Reader, Worker, perform
from vzarr.errors import BusyError, ConflictError, SessionNotFoundError
from vzarr.session import Session

_MOST_READERS, _MOST_DRAFTS = 3, 2


def draft(worker: Worker) -> None:
    """Open a session and write to it; or commit one that has been open for a while."""
    if len(worker.drafts) >= _MOST_DRAFTS:
        finish(worker, worker.drafts.pop(worker.chance.randrange(len(worker.drafts))))
        return
    session = worker.repo.session("main")
    if worker.chance.random() < 0.3:
        # Edits that are not wanted, some of them in a checkpoint, leave nothing.
        perform([*worker.edits(), do.Count(0)], session.store)
        if worker.chance.random() < 0.3:
            session.checkpoint()
        session.discard()
    only_contested = worker.chance.random() < 0.5
    operations = [worker.contested(zero=True)] if only_contested else worker.edits()
    perform(operations, session.store)
    worker.drafts.append(Draft(session, operations, worker.who()))


def fork(worker: Worker) -> None:
    """Write to a session and two forks of it, each some elements of the same chunks."""
    session = worker.repo.session("main")
    boxes = [[0, 11, 0, 32], [11, 22, 0, 32], [22, 32, 0, 32]]
    operations: list[Operation] = [
        do.WriteGrid(worker.slot, worker.slots, box, worker.value()) for box in boxes
    ]
    forks = [session.fork(), session.fork()]
    stores = [session.store, *(each.store for each in forks)]
    for operation, store in zip(operations, stores, strict=True):
        operation.perform(store)
    session.merge_fork(*forks)
    finish(worker, Draft(session, operations, worker.who()))


def finish(worker: Worker, draft: Draft) -> bool:
    """Commit a session; where it conflicts, decide, rebase or give up. Tell if it is made."""
    session, made = draft.session, False
    session.delete("will")
    prefer = _choose(worker, draft)
    while session.has_changes:
        steps = [*draft.steps, (session.base, prefer)]
        note = worker.note("session", draft.operations, steps=[list(step) for step in steps])
        note |= draft.who
        try:
            commit = session.commit("session", metadata=note, merge=strategy(prefer))
        except ConflictError as error:
            assert prefer == "fail"
            worker.expect(error)
            if worker.chance.random() < 0.3:
                break
            prefer = worker.chance.choice(["ours", "theirs"])
            if worker.chance.random() < 0.5:
                draft.steps.append((session.base, prefer))
                session.rebase(strategy(prefer))
                prefer = "fail"
        else:
            made = worker.acknowledge(commit, "main", note)
            break
    session.discard()
    session.close()
    return made


def _choose(worker: Worker, draft: Draft) -> str:
    choices = ["fail", "fail", "fail", "ours", "theirs"]
    only_contested = all(isinstance(it, do.WriteContested) for it in draft.operations)
    # A session that was resumed also asks about what both changed to the same value.
    if only_contested and not draft.resumed:
        choices += [LARGER, LARGER]
    return worker.chance.choice(choices)


# ── work that survives ───────────────────────────────────────────────────────────────────────────


def save(worker: Worker) -> None:
    """Save a session in a checkpoint, with a note of what is in it; and die, or go on."""
    session = worker.repo.session("main")
    operations, who = worker.edits(), worker.who()
    perform(operations, session.store)
    will = {**who, "operations": [operation.encode() for operation in operations]}
    session.set("will", json.dumps(will).encode())
    session.checkpoint()
    more = [worker.grid(), worker.contested()]
    perform(more, session.store)
    if worker.chance.random() < 0.6:
        # What came after the checkpoint is lost.
        worker.fate.die(session)
    else:
        finish(worker, Draft(session, [*operations, *more], who))


def resume(worker: Worker) -> None:
    """Go on with the session of somebody who died."""
    dead = [it for it in worker.repo.sessions() if it.alive is False and it.checkpointed]
    if dead:
        resume_one(worker, worker.chance.choice(dead).id)


def resume_one(worker: Worker, session_id: str) -> None:
    try:
        session = worker.repo.resume(session_id)
    except (BusyError, SessionNotFoundError):
        # Another worker was faster.
        return
    data = session.get("will")
    if data is None:
        # Of one who died between a checkpoint and its discard.
        session.discard()
        session.close()
        return
    will = json.loads(bytes(data))
    operations = [do.decode(operation) for operation in will.pop("operations")]
    made = finish(worker, Draft(session, operations, who=will, resumed=True))
    worker.log.note("resume", session=session_id, made=made)


# ── readers ──────────────────────────────────────────────────────────────────────────────────────


def read(worker: Worker) -> None:
    """Open a session that reads, and keep it; give the oldest up."""
    if len(worker.readers) >= _MOST_READERS:
        reader = worker.readers.pop(0)
        look_again(reader)
        reader.session.close()
    ref = worker.chance.choice(["main", *worker.tags, *worker.commits])
    session = worker.repo.session(ref)
    worker.readers.append(Reader(session, _digest(session)))
    assert_consistent(read_state(session.store), f"{ref} at {session.base}")
    worker.log.note("read", base=session.base)


def look_again(reader: Reader) -> None:
    assert _digest(reader.session) == reader.digest, f"{reader.session} has changed"


def _digest(session: Session) -> str:
    """Hash all that a session shows."""
    digest = hashlib.blake2b()
    for key in sorted(session.keys()):
        value = session.get(key)
        assert value is not None
        digest.update(f"{key} {len(value)} ".encode())
        digest.update(value)
    return digest.hexdigest()
