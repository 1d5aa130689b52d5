"""What keeps objects from being garbage: refs, the reflog, sessions and what they are at.

``Liveness`` tells it to ``Marks``. To look again costs what there is to look at, but not how long
the reflogs are, and hardly how much the sessions have staged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, final

from vzarr import leases, refs
from vzarr.environment import Environment, Txn
from vzarr.errors import CorruptError
from vzarr.filelocks import PREFIX_BITS
from vzarr.format import (
    DIGEST_BYTES,
    SESSION,
    Digest,
    LeaseRecord,
    decode_journal,
    decode_tag,
    session_key,
    split_session_key,
)
from vzarr.marking import Marks


class Found(NamedTuple):
    """A session's records, and what is to become of them."""

    id: bytes
    lease: LeaseRecord | None
    """None for what an earlier collection, interrupted, has left of a dead one."""
    fate: Literal["kept", "saved", "gone"]
    """Everything is kept; the checkpoint and its base are; nothing is."""


@final
class Liveness:
    """The places from which objects are reachable, and what of them was seen before."""

    __slots__ = ("_environment", "_horizon", "_marks", "_records", "_reflogs", "_tags")

    def __init__(self, environment: Environment, marks: Marks, horizon: int) -> None:
        """``horizon`` is the time up to which a checkpoint, or work of another machine, is old."""
        self._environment = environment
        self._marks = marks
        self._horizon = horizon
        # Tags by their bytes; of a reflog its oldest record and the newest number; a hash of each
        # of the sessions' records.
        self._tags: set[bytes] = set()
        self._reflogs: dict[str, tuple[int, bytes, int]] = {}
        self._records: dict[bytes, int] = {}

    def look(self, txn: Txn) -> None:
        """Find what is referred to and was not when we looked last. O(refs + sessions)."""
        for branch, head in refs.branches(txn):
            self._require(txn, head, f"branch {branch!r}")
        for name, data in txn.scan("tags"):
            if data not in self._tags:
                self._tags.add(data)
                self._require(txn, decode_tag(data).commit, f"tag {name.decode()!r}")
        for branch, first, oldest in refs.reflogs(txn):
            self._look_at_reflog(txn, branch, first, oldest)
        for found in self.sessions(txn):
            self._look_at_session(txn, found)
        self.look_at_pins(txn)

    def _require(self, txn: Txn, commit: Digest, what: str) -> None:
        if not txn.contains("commits", commit):
            raise CorruptError(
                f"{what} of {self._environment.path} names commit {commit.hex()[:12]}, which is "
                "missing: run a check",
                path=self._environment.path,
            )
        self._marks.want_commit(commit)

    def _want_if_there(self, txn: Txn, commit: bytes) -> None:
        """Mark a commit of which an earlier collection may have found nothing to keep it."""
        if commit not in self._marks.commits and txn.contains("commits", commit):
            self._marks.want_commit(commit)

    def _look_at_reflog(self, txn: Txn, branch: str, first: int, oldest: bytes) -> None:
        # The newest may have been replaced since, and of a reflog that was emptied all is new.
        seen = self._reflogs.get(branch)
        since = seen[2] if seen is not None and seen[:2] == (first, oldest) else first
        newest = since
        for sequence, record in refs.moves(txn, branch):
            if sequence < since:
                break
            newest = max(newest, sequence)
            for commit in (record.old, record.new):
                if commit is not None:
                    self._want_if_there(txn, commit)
        self._reflogs[branch] = first, oldest, newest

    def _look_at_session(self, txn: Txn, found: Found) -> None:
        lease = found.lease
        if lease is None or found.fate == "gone":
            return
        self._want_if_there(txn, lease.base)
        for root in (lease.checkpoint, lease.staged if found.fate == "kept" else None):
            if root is not None:
                self._marks.want_root(root)
        if found.fate == "kept":
            for number, data in leases.records(txn, found.id):
                self._look_at_record(lease, session_key(found.id, number), data)

    def _look_at_record(self, lease: LeaseRecord, key: bytes, data: bytes) -> None:
        # A session that has committed, or given up its edits, uses the same numbers again.
        if self._records.get(key) == hash(data):
            return
        self._records[key] = hash(data)
        if lease.kind == SESSION:
            self._marks.values.add(_batch(data))
        else:
            blobs = (blob for _, blob in decode_journal(data))
            self._marks.values.add(blob.digest for blob in blobs if blob is not None)

    def look_at_pins(self, txn: Txn) -> None:
        """Mark the commits that sessions of all processes are on. O(pins · log n)."""
        for pin in self._environment.pins():
            head = first_bytes(pin.prefix)
            for commit, _ in txn.scan("commits", prefix=head, keys_only=True):
                if pin.matches(Digest(commit)):
                    self._marks.want_commit(commit)

    def sessions(self, txn: Txn) -> list[Found]:
        """List who has records in the file, and what is to become of them. O(sessions · log n)."""
        found = [(session_id, leases.find(txn, session_id)) for session_id in _session_ids(txn)]
        alive = {
            session_id
            for session_id, lease in found
            if lease is not None and self._is_alive(session_id, lease)
        }
        return [
            Found(session_id, lease, self._fate(session_id, lease, alive))
            for session_id, lease in found
        ]

    def _is_alive(self, session_id: bytes, lease: LeaseRecord) -> bool:
        alive = leases.is_alive(self._environment, session_id, lease)
        # Of one on another machine we know only when it last wrote.
        return lease.updated > self._horizon if alive is None else alive

    def _fate(
        self, session_id: bytes, lease: LeaseRecord | None, alive: set[bytes]
    ) -> Literal["kept", "saved", "gone"]:
        if lease is None:
            return "gone"
        if session_id in alive or lease.parent in alive:
            return "kept"
        saved = lease.checkpointed is not None and lease.checkpointed > self._horizon
        return "saved" if saved else "gone"


def _session_ids(txn: Txn) -> Iterator[bytes]:
    """List the ids that have records, with or without a lease. O(ids · log n)."""
    start = b""
    while (found := next(txn.scan("sessions", start=start, keys_only=True), None)) is not None:
        session_id, _ = split_session_key(found[0])
        yield session_id
        # Beyond all numbers of this one.
        start = session_id + b"\xff" * 5


def _batch(data: bytes) -> Iterator[bytes]:
    return (data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES))


def first_bytes(prefix: int) -> bytes:
    """Give the first four bytes of the commits that a pin may mean."""
    return (prefix >> (PREFIX_BITS - 32)).to_bytes(4, "big")
