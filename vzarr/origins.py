"""From where a check goes: branches, tags, reflogs, and the leases of sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import final

from vzarr.errors import CorruptError, InvalidInputError
from vzarr.evidence import Source
from vzarr.findings import Kind, Problem
from vzarr.format import (
    DIGEST_BYTES,
    SESSION,
    SESSION_ID_BYTES,
    LeaseRecord,
    decode_journal,
    decode_lease,
    decode_reflog,
    decode_tag,
    split_reflog_key,
    split_session_key,
)
from vzarr.refs import check_name

Alive = Callable[[bytes, LeaseRecord], bool | None]
"""Whether the owner of a lease lives; None where that cannot be told."""

# So many entries are read in one txn.
_BATCH = 1000
# A reflog's key ends with a zero byte and a sequence number.
_SEQUENCE_BYTES = 8


@final
@dataclass(slots=True)
class Names:
    """What names a commit."""

    branches: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    reflogs: list[str] = field(default_factory=list)
    sessions: list[str] = field(default_factory=list)

    @property
    def lasting(self) -> bool:
        """Whether a branch or a tag is among them."""
        return bool(self.branches or self.tags)


@final
@dataclass(slots=True)
class Origins:
    """What refers to objects without being one, and what of it makes no sense."""

    heads: dict[bytes, Names] = field(default_factory=dict)
    """The commits that have names."""
    snapshots: dict[bytes, str] = field(default_factory=dict)
    """Roots that sessions wrote ahead of their commits, each with the session's id."""
    staged: dict[str, list[bytes]] = field(default_factory=dict)
    """Digests of the values that sessions hold, by the session's id."""
    problems: list[Problem] = field(default_factory=list)

    def names(self, commit: bytes) -> Names:
        """Give what names a commit, to add to it."""
        return self.heads.setdefault(commit, Names())


def read_origins(source: Source, alive: Alive, *, whole: bool) -> Origins:
    """Read branches and tags, and with ``whole`` reflogs and leases too. O(their number)."""
    origins = Origins()
    for key, data in _listed(origins, source, "branches", "branch", _no_branch):
        _branch(origins, key, data)
    for key, data in _listed(origins, source, "tags", "tag", _no_tag):
        _tag(origins, key, data)
    if whole:
        for key, data in _listed(origins, source, "reflog", "reflog", _no_move):
            _move(origins, key, data)
        _sessions(origins, source, alive)
    return origins


def entries(
    source: Source, database: str, *, keys_only: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """Give all entries of a database, from many short txns."""
    start = b""
    while True:
        with source.read() as txn:
            found = list(islice(txn.scan(database, start=start, keys_only=keys_only), _BATCH))
        yield from found
        if len(found) < _BATCH:
            return
        start = found[-1][0] + b"\0"


def _listed(
    origins: Origins,
    source: Source,
    database: str,
    kind: Kind,
    broken: Callable[[bytes, str], Problem],
) -> Iterator[tuple[bytes, bytes]]:
    """Give the records of a database that are whole, and note those that are not."""
    try:
        for key, _ in entries(source, database, keys_only=True):
            try:
                with source.read() as txn:
                    data = txn.get(database, key)
            except CorruptError as error:
                origins.problems.append(broken(key, str(error)))
                continue
            if data is not None:
                yield key, data
    except CorruptError as error:
        cost = f"not all records in {database} can be read"
        origins.problems.append(Problem(kind, str(error), cost))


def _branch(origins: Origins, key: bytes, data: bytes) -> None:
    problem = _bad_name(key, "branch")
    if len(data) != DIGEST_BYTES:
        problem = f"its record has {len(data)} bytes, and a commit's id has {DIGEST_BYTES}"
    else:
        origins.names(data).branches.append(_spell(key))
    if problem:
        origins.problems.append(_no_branch(key, problem))


def _no_branch(key: bytes, why: str) -> Problem:
    name = _spell(key)
    message, cost = f"branch {name}: {why}", f"branch {name} cannot be opened"
    return Problem("branch", message, cost, branches=(name,))


def _tag(origins: Origins, key: bytes, data: bytes) -> None:
    problem = _bad_name(key, "tag")
    try:
        origins.names(decode_tag(data).commit).tags.append(_spell(key))
    except CorruptError as error:
        problem = str(error)
    if problem:
        origins.problems.append(_no_tag(key, problem))


def _no_tag(key: bytes, why: str) -> Problem:
    name = _spell(key)
    message, cost = f"tag {name}: {why}", f"tag {name} cannot be opened"
    return Problem("tag", message, cost, tags=(name,))


def _spell(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _bad_name(key: bytes, what: str) -> str:
    try:
        check_name(key.decode(), what)
    except (InvalidInputError, UnicodeDecodeError) as error:
        return str(error)
    return ""


def _move(origins: Origins, key: bytes, data: bytes) -> None:
    try:
        name = _spell(split_reflog_key(key)[0])
        record = decode_reflog(data)
    except CorruptError as error:
        origins.problems.append(_no_move(key, str(error)))
        return
    for commit in (record.old, record.new):
        if commit is not None and name not in (names := origins.names(commit)).reflogs:
            names.reflogs.append(name)


def _no_move(key: bytes, why: str) -> Problem:
    name = _spell(key[: -_SEQUENCE_BYTES - 1])
    number = int.from_bytes(key[-_SEQUENCE_BYTES:], "big")
    message = f"move {number} of branch {name}: {why}"
    return Problem("reflog", message, f"the reflog of {name} cannot be read")


# ── sessions ─────────────────────────────────────────────────────────────────────────────────────


def _sessions(origins: Origins, source: Source, alive: Alive) -> None:
    lease: LeaseRecord | None = None
    lives: bool | None = False
    for key, data in _listed(origins, source, "sessions", "session", _no_session):
        try:
            session_id, number = split_session_key(key)
            session = session_id.hex()
            if number == 0:
                lease, lives = None, False
                lease = decode_lease(data)
                lives = alive(session_id, lease)
                _lease(origins, session, lease, lives)
            elif lease is not None and lives is not False:
                held = origins.staged.setdefault(session, [])
                held += _digests(data) if lease.kind == SESSION else _edited(data)
        except CorruptError as error:
            origins.problems.append(_no_session(key, str(error)))


def _no_session(key: bytes, why: str) -> Problem:
    session = key[:SESSION_ID_BYTES].hex()
    return Problem("session", f"session {session}: {why}", _not_resumed(session))


def _lease(origins: Origins, session: str, lease: LeaseRecord, lives: bool | None) -> None:
    """Note what a session needs. What a dead one staged is garbage; a checkpoint of it is not."""
    if lives is not False or lease.checkpoint is not None:
        origins.names(lease.base).sessions.append(session)
    if lives is not False and lease.staged is not None:
        origins.snapshots[lease.staged] = session
    if lease.checkpoint is not None:
        origins.snapshots[lease.checkpoint] = session


def _digests(data: bytes) -> list[bytes]:
    if len(data) % DIGEST_BYTES:
        raise CorruptError(f"a batch of {len(data)} bytes is no row of digests")
    return [data[start : start + DIGEST_BYTES] for start in range(0, len(data), DIGEST_BYTES)]


def _edited(data: bytes) -> list[bytes]:
    return [blob.digest for _, blob in decode_journal(data) if blob is not None]


def missing_values(session: str, number: int) -> Problem:
    """Say that a session lacks values that it put into the file."""
    message = f"session {session}: {number:,} of the values that it put into the file are missing"
    return Problem("session", message, _not_resumed(session))


def _not_resumed(session: str) -> str:
    return f"the uncommitted work of session {session} cannot be committed or resumed whole"
