"""Leases: what a writer has in the file ahead of its commit, whose it is, and whether it lives.

A session that stages chunks, saves a checkpoint or is forked keeps a lease, and beside it records
that list what it staged. While its owner lives nobody touches them. What a dead owner left is
garbage, but for a checkpoint, which another session can resume from.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, final

from vzarr import portable
from vzarr.environment import Environment, Txn
from vzarr.errors import Holder, SessionStateError
from vzarr.format import (
    SESSION,
    SESSION_ID_BYTES,
    Digest,
    LeaseRecord,
    decode_lease,
    encode_lease,
    from_microseconds,
    session_key,
    split_session_key,
)
from vzarr.history import now
from vzarr.portable import at_fork
from vzarr.printable import printable

ID_BYTES = SESSION_ID_BYTES
NOBODY = 0
"""The token of a lease whose owner has ended the session, and goes on itself."""
# It may hold a whole script.
_LONGEST_COMMAND = 200

_open: weakref.WeakValueDictionary[bytes, Lease] = weakref.WeakValueDictionary()
"""The leases of this process whose sessions have not ended, by id."""


@final
@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session that has work in the file, or reads it now; as ``repo.sessions()`` lists them."""

    id: str
    """32 hexadecimal digits; for ``repo.resume``. Empty for a reader in another process."""
    kind: Literal["session", "fork", "reader"]
    owner: Holder
    branch: str | None
    """The branch that it will commit to; None for a reader."""
    base: str
    """The id of the commit that it shows or began from; the first 9 digits of it, where no more is
    known."""
    created: datetime | None
    updated: datetime | None
    """When it last staged or saved something."""
    checkpointed: datetime | None
    """When it saved its work last; None if it never did."""
    nbytes: int
    """How many bytes it has put into the file ahead of its commit."""
    parent: str | None
    """For a fork, the id of the session it is of."""
    alive: bool | None
    """Whether its owner still runs; None where that is on another machine."""

    def __str__(self) -> str:
        state = {True: "alive", False: "dead", None: "of another machine"}[self.alive]
        branch = printable(self.branch or "")
        where = f"on {branch} at {self.base[:12]}" if self.branch else f"at {self.base[:12]}"
        saved = f", saved {self.checkpointed:%Y-%m-%d %H:%M:%S}" if self.checkpointed else ""
        size = f", {self.nbytes:,} bytes staged" if self.nbytes else ""
        return f"{self.id or '-':<32}  {self.kind} {where}, {state}{saved}{size}: {self.owner}"


class _Owner(NamedTuple):
    pid: int
    process_started: int
    host: str
    command: str


@functools.lru_cache(maxsize=1)
def _owner(pid: int) -> _Owner:
    """Describe this process. O(1) after the first time."""
    # After a fork the pid is another, and so is what is found.
    command = " ".join([os.path.basename(sys.executable or "python"), *sys.argv])
    plain = command.encode(errors="replace").decode()
    return _Owner(pid, process_started(pid), socket.gethostname(), plain[:_LONGEST_COMMAND])


def own(environment: Environment, record: LeaseRecord) -> LeaseRecord:
    """Make this process the owner of a lease."""
    owner = _owner(os.getpid())
    return replace(
        record,
        token=environment.token,
        pid=owner.pid,
        process_started=owner.process_started,
        host=owner.host,
        command=owner.command,
    )


def process_started(pid: int) -> int:
    """When a process began, as the system counts; 0 where it does not tell, or there is none."""
    return portable.process_started(pid) or 0


# ── records ──────────────────────────────────────────────────────────────────────────────────────


def find(txn: Txn, session_id: bytes) -> LeaseRecord | None:
    """Read a lease, or give None. O(log n)."""
    data = txn.get("sessions", session_key(session_id, 0))
    return None if data is None else decode_lease(data)


def leases(txn: Txn) -> Iterator[tuple[bytes, LeaseRecord]]:
    """List all leases by session id. O(sessions · log n), not O(what they staged)."""
    start = b""
    while True:
        for key, data in txn.scan("sessions", start=start):
            session_id, number = split_session_key(key)
            if number == 0:
                yield session_id, decode_lease(data)
            break
        else:
            return
        # The next session's: beyond all numbers of this one.
        start = session_id + b"\xff" * 5


def records(txn: Txn, session_id: bytes, *, after: int = 0) -> Iterator[tuple[int, bytes]]:
    """List what lies beside a lease: batches, or a fork's journal, by number. O(their number)."""
    start = session_key(session_id, after + 1)
    for key, data in txn.scan("sessions", prefix=session_id, start=start):
        yield split_session_key(key)[1], data


def last_number(txn: Txn, session_id: bytes) -> int:
    """Give the highest number of a session's records; 0 if there is but the lease. O(log n)."""
    last = txn.last_key("sessions", session_id)
    return 0 if last is None else split_session_key(last)[1]


def delete(txn: Txn, session_id: bytes) -> None:
    """Delete a session's lease, all that lies beside it, and its forks'. O(their number)."""
    forks = [key for key, lease in leases(txn) if lease.parent == session_id]
    for each in (session_id, *forks):
        for key, _ in txn.scan("sessions", prefix=each, keys_only=True):
            txn.delete("sessions", key)


@final
class Lease:
    """The lease of a session of this process, written when the session first needs one."""

    __slots__ = (
        "__weakref__",
        "_closed",
        "_deleted",
        "_environment",
        "_parent",
        "base",
        "id",
        "record",
        "written",
    )

    def __init__(self, environment: Environment, session_id: bytes, record: LeaseRecord) -> None:
        self._environment = environment
        self.id = session_id
        self.record = record
        # Of the session, as it is now; a checkpoint that was made earlier may be of another.
        self.base = record.base
        self.written = False
        self._closed = self._deleted = False
        # The process that has in the file what this copy of its session needs.
        self._parent: int | None = None
        _open[session_id] = self

    def close(self) -> None:
        """Say that the session has ended, so that others may go on with what it left."""
        self._closed, self.written = True, False
        # The same session may have been resumed in this process.
        if _open.get(self.id) is self:
            del _open[self.id]

    @property
    def is_blank(self) -> bool:
        """Whether the session has nothing in the file, be it a parent process's."""
        return not self.written and self._parent is None

    def part(self) -> None:
        """Be the lease of another session: in a child process, of what is the parent's."""
        if self.written:
            self._parent = self.record.pid
        self.id, self.written = uuid.uuid4().bytes, False
        self.record = replace(self.record, checkpoint=None, checkpointed=None)
        _open[self.id] = self

    @classmethod
    def create(cls, environment: Environment, branch: str, base: Digest) -> Lease:
        """Make a lease with a new id, in memory alone."""
        time, owner = now(), _owner(os.getpid())
        record = LeaseRecord(
            kind=SESSION,
            token=environment.token,
            pid=owner.pid,
            process_started=owner.process_started,
            host=owner.host,
            command=owner.command,
            parent=None,
            branch=branch,
            base=base,
            created=time,
            updated=time,
            nbytes=0,
            staged=None,
            checkpoint=None,
            checkpointed=None,
        )
        return cls(environment, uuid.uuid4().bytes, record)

    def put(self, txn: Txn, **changes: Any) -> LeaseRecord:
        """Write the lease with some fields changed; it counts once the txn has ended well."""
        self._require_own()
        if self._closed:
            # A batch that nobody waits for any more.
            raise SessionStateError("this session has ended; open a new one to write")
        self.require(txn)
        record = replace(own(self._environment, self.record), updated=now(), **changes)
        if record.checkpoint is None or "checkpoint" in changes:
            # An older checkpoint belongs to the base from which it was made.
            record = replace(record, base=self.base)
        txn.put("sessions", session_key(self.id, 0), encode_lease(record))
        self.written, self._deleted = True, False
        return record

    def require(self, txn: Txn) -> None:
        """Make sure that what was staged is still in the file. O(log n).

        Raises ``SessionStateError`` if a collection of garbage, or who resumed the session, took
        its owner for dead: one on another machine that wrote nothing for weeks.
        """
        self._require_own()
        if self.record.nbytes or self.record.staged is not None:
            found = find(txn, self.id)
            if found is None or found.token != self.record.token:
                raise SessionStateError(
                    "what this session staged was collected as garbage, or somebody resumed it: "
                    "discard, and do it again in a new session"
                )

    def add(self, txn: Txn, digests: bytes, nbytes: int) -> LeaseRecord:
        """Note values that the same txn puts into the file. O(log n)."""
        record = self.put(txn, nbytes=self.record.nbytes + nbytes)
        number = last_number(txn, self.id) + 1
        txn.put("sessions", session_key(self.id, number), digests)
        return record

    def delete(self, txn: Txn) -> None:
        """Delete the lease and all beside it: the work is committed, or not wanted.

        Raises ``SessionStateError`` in a child process where the work rests on the parent's.
        """
        self._require_own()
        if self.written:
            delete(txn, self.id)
            self._deleted = True

    def renew(self, base: Digest) -> None:
        """Go on without edits: after a commit or a discard, or on another base."""
        self.base = base
        record = self.record
        if record.base != base or record.nbytes or record.staged or record.checkpointed:
            self.record = replace(
                record, base=base, nbytes=0, staged=None, checkpoint=None, checkpointed=None
            )
        self._parent = None
        # What was staged and is not needed any more may still be there.
        if self._deleted:
            self.written = self._deleted = False

    def _require_own(self) -> None:
        if self._parent is not None:
            raise SessionStateError(
                f"this session is the copy that a fork made of one in process {self._parent}, "
                "which has staged work for it in the file: only that process can go on with it. "
                "Open a session in each process, or give each a session.fork()"
            )


# ── life ─────────────────────────────────────────────────────────────────────────────────────────


def is_alive(environment: Environment, session_id: bytes, lease: LeaseRecord) -> bool | None:
    """Tell whether the owner of a lease lives; None for one of another machine. O(1)."""
    if lease.token == NOBODY:
        return False
    if lease.token == environment.token:
        return (lease.parent or session_id) in _open
    present = environment.is_present(lease.token)
    # The system's locks know of all processes on this machine, of other containers too.
    if present:
        return True
    if lease.host != socket.gethostname():
        return None
    if present is not None:
        return False
    return portable.process_started(lease.pid) == lease.process_started


def describe(session_id: bytes, lease: LeaseRecord, alive: bool | None) -> SessionInfo:
    """Make the public form of a lease."""
    saved = lease.checkpointed
    return SessionInfo(
        id=session_id.hex(),
        kind="session" if lease.kind == SESSION else "fork",
        owner=Holder(lease.pid, lease.host, lease.command, from_microseconds(lease.created)),
        branch=lease.branch,
        base=lease.base.hex(),
        created=from_microseconds(lease.created),
        updated=from_microseconds(lease.updated),
        checkpointed=None if saved is None else from_microseconds(saved),
        nbytes=lease.nbytes,
        parent=None if lease.parent is None else lease.parent.hex(),
        alive=alive,
    )


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────


def _after_fork_in_child() -> None:
    """Leave the parent's leases to the parent: what is done to a copy must not touch them."""
    inherited = list(_open.values())
    _open.clear()
    for lease in inherited:
        lease.part()


at_fork(after_in_child=_after_fork_in_child)
