"""The sessions of a repository, in all processes: to list them, and to go on with one that died."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from vzarr import history, leases
from vzarr.committing import Settings
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    BusyError,
    Holder,
    InvalidInputError,
    SessionNotFoundError,
    SessionStateError,
)
from vzarr.format import FORK, MERGED_FORK, SESSION, LeaseRecord, encode_lease, session_key
from vzarr.leases import Lease, SessionInfo
from vzarr.objects import Objects
from vzarr.portable import at_fork
from vzarr.session import Session, open_sessions
from vzarr.system import running

_SHORTEST_PREFIX = 4


def list_sessions(environment: Environment) -> list[SessionInfo]:
    """List what ``repo.sessions`` does. O(sessions · log n)."""
    with environment.read() as txn:
        found = list(leases.leases(txn))
    listed = [_of_lease(environment, session_id, record) for session_id, record in found]
    return [*listed, *_own(environment, listed), *_of_others(environment, listed)]


def _of_lease(environment: Environment, session_id: bytes, record: LeaseRecord) -> SessionInfo:
    alive = leases.is_alive(environment, session_id, record)
    info = leases.describe(session_id, record, alive)
    session = open_sessions.get(info.id)
    # After a rebase the lease still names the commit that the session began from.
    return info if session is None else replace(info, base=session.base)


def _own(environment: Environment, listed: list[SessionInfo]) -> Iterator[SessionInfo]:
    """List this process's sessions that have nothing in the file."""
    known = {info.id for info in listed}
    for session in list(open_sessions.values()):
        if session.environment is environment and session.id not in known:
            yield session.info


def _of_others(environment: Environment, listed: list[SessionInfo]) -> Iterator[SessionInfo]:
    """List what other processes' locks say of their sessions: the commits that they are on."""
    known = {(info.owner.pid, info.base) for info in listed if info.alive}
    for pin in environment.pins():
        if pin.pid == os.getpid():
            continue
        # The last bit of the prefix is half a digit.
        prefix = f"{pin.prefix >> 1:09x}"
        commits = [
            commit
            for commit in history.with_prefix(environment, prefix, limit=4)
            if pin.matches(commit)
        ]
        if any((pin.pid, commit.hex()) in known for commit in commits):
            continue
        owner = running(pin.pid, None)
        yield SessionInfo(
            id="",
            kind="reader",
            owner=owner,
            branch=None,
            base=commits[0].hex() if len(commits) == 1 else prefix,
            created=None,
            updated=None,
            checkpointed=None,
            nbytes=0,
            parent=None,
            alive=True,
        )


def resume(
    objects: Objects, settings: Settings, open_store: Callable[[Session], Any], session_id: str
) -> Session:
    """Go on with a session whose process has died, from its last checkpoint."""
    environment = objects.environment
    with environment.write(timeout=settings.timeout) as txn:
        found, record = _find(txn, session_id)
        alive = leases.is_alive(environment, found, record)
        if alive:
            raise BusyError(
                f"session {found.hex()[:8]} is in use, by {_holder(record)}; only one that has "
                "ended can be resumed",
                holder=_holder(record),
            )
        if record.kind != SESSION:
            parent = (record.parent or b"").hex()
            raise InvalidInputError(
                f"{found.hex()[:8]} is a fork: resume the session that it is of, {parent}"
            )
        if record.checkpoint is None:
            raise SessionStateError(
                f"session {found.hex()[:8]} saved nothing before it ended; checkpoint() and "
                "checkpoint_every= are for the next time"
            )
        history.require(txn, [record.base])
        lease = Lease(environment, found, record)
        lease.record = lease.put(txn, staged=record.checkpoint)
        # Who wrote to its forks may do so again, and merge_fork finds what they wrote before.
        for fork_id, fork in list(leases.leases(txn)):
            if fork.parent == found:
                adopted = leases.own(environment, fork)
                if fork.kind == MERGED_FORK and fork.updated > (record.checkpointed or 0):
                    # Taken over after the checkpoint, which has nothing of it.
                    adopted = replace(adopted, kind=FORK)
                txn.put("sessions", session_key(fork_id, 0), encode_lease(adopted))
    try:
        return Session(
            objects,
            settings,
            record.base,
            record.branch,
            open_store,
            lease=lease,
            # It may have been a transaction, whose like changes mean two.
            may_agree=False,
        )
    except BaseException:
        # Who tries again must not find it in use.
        lease.close()
        raise


def _find(txn: Txn, session_id: str) -> tuple[bytes, LeaseRecord]:
    if not isinstance(session_id, str) or len(session_id) < _SHORTEST_PREFIX:
        raise InvalidInputError(
            f"a session's id is 32 hexadecimal digits, or the first {_SHORTEST_PREFIX} or more "
            f"of them, not {session_id!r}"
        )
    found = [
        (each, record) for each, record in leases.leases(txn) if each.hex().startswith(session_id)
    ]
    if len(found) > 1:
        raise InvalidInputError(f"several sessions begin with {session_id!r}: give more digits")
    if not found:
        raise SessionNotFoundError(
            f"there is no session {session_id!r} with work in the file: it was committed, given "
            "up, or collected; repo.sessions() lists those that are there",
            name=session_id,
        )
    return found[0]


def _after_fork_in_child() -> None:
    """Find the copies of the parent's sessions under the ids that they have now."""
    inherited = list(open_sessions.values())
    open_sessions.clear()
    for session in inherited:
        open_sessions[session.id] = session


at_fork(after_in_child=_after_fork_in_child)


def _holder(record: LeaseRecord) -> Holder:
    return leases.describe(b"", record, alive=True).owner
