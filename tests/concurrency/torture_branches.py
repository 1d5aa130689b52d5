"""What the workers of the torture test do with branches of their own, and how it gets to main."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.concurrency.torture_operations import Operation
from tests.concurrency.torture_worker import Worker, perform
from vzarr.errors import ConflictError, SessionStateError


def branch(worker: Worker) -> None:
    """Make a branch, commit to it, and bring that back to main in one way or another."""
    name, base = _create(worker, "b")
    picked = False
    for _ in range(worker.chance.randint(1, 3)):
        commit = worker.commit_on(name, worker.edits())
        if commit and worker.chance.random() < 0.3:
            picked |= _pick(worker, commit)
        if worker.chance.random() < 0.2:
            base = _update(worker, name, base)
        if worker.chance.random() < 0.4:
            base = _merge(worker, name, base)
    if worker.chance.random() < 0.5:
        _merge(worker, name, base)
    # Of a commit that was picked, the replay needs to know the parent.
    if not picked and worker.chance.random() < 0.5:
        _drop(worker, name)


def amend(worker: Worker) -> None:
    """Make a branch and amend its commit; add two commits, and make one commit of all."""
    name, start = _create(worker, "a")
    session = worker.repo.session(name)
    operations: list[Operation] = []
    replaced: list[str] = []
    for verb in (session.commit, session.amend, session.amend):
        edits = [worker.grid(), worker.attribute()]
        perform(edits, session.store)
        operations += edits
        note = worker.note("apply", operations, replaces=list(replaced))
        commit = verb("amended", metadata=note)
        assert worker.acknowledge(commit, name, note)
        replaced.append(commit)
    session.close()
    for _ in range(2):
        edits = [worker.grid()]
        operations += edits
        replaced.append(worker.commit_on(name, edits))
    note = worker.note("apply", operations, replaces=replaced)
    commit = worker.repo.squash(name, since=start, metadata=note)
    assert worker.acknowledge(commit, name, note)
    if worker.chance.random() < 0.5:
        _merge(worker, name, start)
    if worker.chance.random() < 0.5:
        _drop(worker, name)


def autocommit(worker: Worker) -> None:
    """Write to a branch where every write is a commit, or a row of writes is one."""
    name, _ = _create(worker, "auto")
    store = worker.repo.store(name, autocommit=worker.chance.choice([True, "each"]))
    for _ in range(worker.chance.randint(2, 5)):
        write = worker.contested()
        worker.log.note("writing", branch=name, operation=write.encode())
        write.perform(store)
        worker.log.note("wrote", branch=name)
    store.session.close()


def revert(worker: Worker) -> None:
    """Undo a commit of our own."""
    if worker.writes:
        commit, side = worker.chance.choice(worker.writes), worker.side()
        _combine(
            worker,
            worker.note("revert", commit=commit, strategy=side),
            lambda note: worker.repo.revert(commit, "main", strategy=side, metadata=note),
        )


def _create(worker: Worker, kind: str) -> tuple[str, str]:
    name = f"{kind}/{worker.name}/{worker.value()}"
    base = worker.repo.branches.create(name, at="main")
    worker.log.note("branch", name=name, base=base)
    return name, base


def _drop(worker: Worker, name: str) -> None:
    worker.log.note("dropping", name=name)
    worker.repo.branches.delete(name)


def _update(worker: Worker, name: str, base: str) -> str:
    """Merge main into a branch; give what both have in common then."""
    side, before = worker.side(), worker.repo.branches[name]
    note = worker.note("merge", base=base, strategy=side)
    try:
        head = worker.repo.merge("main", name, None, side, metadata=note)
    except ConflictError as error:
        worker.expect(error)
        return base
    if worker.acknowledge(head, name, note):
        return worker.repo.show(head).parents[1]
    # There was nothing to do, or nothing but to move the branch.
    return base if head == before else head


def _merge(worker: Worker, name: str, base: str) -> str:
    """Merge a branch into main; give what both have in common then."""
    head, side = worker.repo.branches[name], worker.side()
    done = _combine(
        worker,
        worker.note("merge", base=base, strategy=side),
        lambda note: worker.repo.merge(name, "main", None, side, metadata=note),
    )
    return head if done else base


def _pick(worker: Worker, commit: str) -> bool:
    side = worker.side()
    return _combine(
        worker,
        worker.note("pick", commit=commit, strategy=side),
        lambda note: worker.repo.cherry_pick(commit, "main", strategy=side, metadata=note),
    )


def _combine(worker: Worker, note: dict[str, Any], verb: Callable[[dict[str, Any]], str]) -> bool:
    """Merge, cherry-pick or revert on main; tell whether main has it now."""
    try:
        commit = verb(note)
    except ConflictError as error:
        worker.expect(error)
        return False
    except SessionStateError as error:
        if "nothing to commit" not in str(error):
            raise
        return False
    worker.acknowledge(commit, "main", note)
    return True
