"""What an import has saved and not committed yet: where a later run of it finds that, and goes on.

An import works in a session, and notes under a key of that what it is an import of. What it saves
are the session's checkpoints, so that nobody sees it before the commit. While a source is consumed
a checkpoint holds the only copy, and a collection of garbage drops those of dead sessions after
some time: so then a branch of its own holds it too, until the commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from vzarr import history, leases, refs
from vzarr.committing import Settings
from vzarr.documents import parse_document
from vzarr.environment import Environment
from vzarr.errors import BusyError
from vzarr.format import SESSION, CommitRecord, Digest, Entry, LeaseRecord
from vzarr.hierarchy import Hierarchy
from vzarr.history import now
from vzarr.imported import MARK
from vzarr.merge import merge
from vzarr.objects import Objects, Overlay
from vzarr.session import Session

METADATA = "import"
"""The key in a commit's metadata under which the import has its id and the source's name."""
_NAME_DIGITS = 12


@final
@dataclass(frozen=True, slots=True)
class Mark:
    """What an import is: the same in the run that goes on with it."""

    id: str
    source: str
    """The source's identity."""
    path: str
    """Where in the repository it goes."""
    state: str | None
    """The state of the source, where it has one as a whole."""

    def encode(self) -> bytes:
        """Spell it as the value of ``MARK``."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Mark | None:
        """Read it; None if it is none, since anybody may use the key."""
        fields = parse_document(data) or {}
        if fields.keys() != cls.__dataclass_fields__.keys():
            return None
        return cls(**fields)


@final
@dataclass(frozen=True, slots=True)
class Unfinished:
    """An import that was killed, or failed, after it had saved something."""

    session_id: str
    since: int
    """When it began, in microseconds since 1970."""
    mark: Mark


def find(objects: Objects, branch: str, wanted: Mark, *, exact: bool) -> Unfinished | None:
    """Find what an earlier run has left: of the same source, or just the one of that id.

    Raises ``BusyError`` if that one has not ended. O(sessions · log n).
    """
    environment = objects.environment
    with environment.read() as txn:
        listed = list(leases.leases(txn))
    for session_id, record in listed:
        if record.kind != SESSION or record.branch != branch or record.checkpoint is None:
            continue
        mark = _mark_of(objects, record.checkpoint)
        if mark is None or mark.path != wanted.path:
            continue
        if wanted.id == mark.id if exact else wanted.source == mark.source:
            _require_dead(environment, session_id, record)
            return Unfinished(session_id.hex(), record.created, mark)
    return None


def _mark_of(objects: Objects, root: Digest) -> Mark | None:
    blob = Hierarchy(Overlay(objects), objects.load_root(root)).find(MARK)
    return None if blob is None else Mark.decode(objects.read(blob))


def _require_dead(environment: Environment, session_id: bytes, record: LeaseRecord) -> None:
    if leases.is_alive(environment, session_id, record):
        holder = leases.describe(session_id, record, alive=True).owner
        raise BusyError(f"this import is running already, by {holder}", holder=holder)


# ── the only copy ────────────────────────────────────────────────────────────────────────────────


def branch_of(import_id: str) -> str:
    """Name the branch that holds what an import has saved."""
    return f"importing/{import_id[:_NAME_DIGITS]}"


def protect(environment: Environment, settings: Settings, session: Session, mark: Mark) -> None:
    """Let a branch hold what the session's last checkpoint has; on disk when this returns."""
    name, author, time = branch_of(mark.id), settings.author(), now()
    with environment.write(timeout=settings.timeout) as txn:
        lease = leases.find(txn, bytes.fromhex(session.id))
        assert lease is not None, "a session without a checkpoint"
        assert lease.checkpoint is not None, "a session without a checkpoint"
        message = "import with consume that has not ended: run it again"
        record = CommitRecord((lease.base,), lease.checkpoint, author, time, message, {})
        commit = history.put(txn, record)
        head = refs.find_head(txn, name)
        if head is None:
            refs.create_branch(txn, name, commit, author, time, "import")
        else:
            refs.move_branch(txn, name, head, commit, author, time, "import", goes_on=True)
    environment.sync()


def restore(objects: Objects, session: Session, import_id: str) -> bool:
    """Put what a branch holds into a new session; False if there is no such branch.

    For an import whose own session was collected as garbage.
    """
    environment = objects.environment
    with environment.read() as txn:
        head = refs.find_head(txn, branch_of(import_id))
    if head is None:
        return False
    saved = history.get(environment, head)
    base = objects.load_root(history.get(environment, saved.parents[0]).root)
    theirs = objects.load_root(saved.root)

    def change(overlay: Overlay, root: Entry) -> Entry:
        return merge(overlay, base, root, theirs, "theirs")[0]

    session.rework(change)
    return True


def release(environment: Environment, settings: Settings, import_id: str) -> None:
    """Delete the branch and its reflog, if there is one: what it held is committed."""
    name = branch_of(import_id)
    with environment.read() as txn:
        if refs.find_head(txn, name) is None:
            return
    with environment.write(timeout=settings.timeout) as txn:
        if refs.find_head(txn, name) is not None:
            refs.delete_branch(txn, name, settings.author(), now(), "import")
            for sequence, _ in list(refs.moves(txn, name)):
                refs.forget_move(txn, name, sequence)


def find_commit(
    environment: Environment, branch: str, import_id: str, known: object
) -> Digest | None:
    """Find the commit on a branch that an import made, or the one that is ``known`` to have it all.

    O(commits since).
    """
    with environment.read() as txn:
        head = refs.head(txn, branch)
    for commit, record in history.log(environment, head):
        about: Any = record.metadata.get(METADATA)
        made = isinstance(about, Mapping) and about.get("id") == import_id
        if made or commit.hex() == known:
            return commit
    return None
