"""The commit graph: commits by id, their ancestry, and the log."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, final

from vzarr.environment import Environment, Txn
from vzarr.errors import CommitNotFoundError, CorruptError, InvalidInputError
from vzarr.format import (
    CommitRecord,
    Digest,
    commit_digest,
    decode_commit,
    encode_commit,
    from_microseconds,
    to_microseconds,
)
from vzarr.objects import Cache
from vzarr.printable import printable

_commits: Cache[bytes, CommitRecord] = Cache(1 << 13)


@final
@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: an immutable snapshot with its parents, author, time and message."""

    id: str
    """64 hexadecimal digits: the digest of the record."""
    parents: tuple[str, ...]
    """Ids; two for a merge, none for the first commit of a repository."""
    author: str
    time: datetime
    """With the time zone UTC, to the microsecond."""
    message: str
    metadata: Mapping[str, Any]
    root: str
    """The content id of the snapshot: equal data, equal root."""

    def __str__(self) -> str:
        author, subject = printable(self.author), printable(self.message.partition("\n")[0])
        return f"{self.id[:12]}  {self.time:%Y-%m-%d %H:%M:%S}  {author}  {subject}"

    def _repr_html_(self) -> str:
        from vzarr.notebook import commit_html

        return commit_html(self)


def now() -> int:
    """Give the time of a new record, in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


def check_message(message: object) -> str:
    """Give the message back if it is text; else raise ``InvalidInputError``."""
    if not isinstance(message, str):
        raise InvalidInputError(
            f"a commit message must be a string, not {type(message).__name__}: {message!r}"
        )
    _check_utf8(message, "the commit message")
    return message


def check_metadata(metadata: object) -> dict[str, Any]:
    """Give commit metadata back if it is JSON-like; else raise ``InvalidInputError``."""
    if metadata is None:
        return {}
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise InvalidInputError(
            f"commit metadata must be a dict with string keys, not {metadata!r}"
        )
    try:
        # The round trip turns tuples into lists, as they will be read back.
        plain: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=True))
        encode_commit(CommitRecord((), Digest(bytes(32)), "", 0, "", plain))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInputError(
            f"commit metadata must be of JSON's types (numbers of 64 bits): {error}"
        ) from error
    return plain


def _check_utf8(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{what} is not valid Unicode: {error}") from error


def put(txn: Txn, record: CommitRecord) -> Digest:
    """Write a commit and give its id. O(log n)."""
    data = encode_commit(record)
    digest = commit_digest(data)
    txn.put("commits", digest, data, overwrite=False)
    return digest


def remember(commit: Digest, record: CommitRecord) -> None:
    """Keep a commit in memory that was just written, for ``get``: as it would be read. O(size)."""
    _commits.put(commit, decode_commit(encode_commit(record)), 1)


def get(environment: Environment, commit: Digest) -> CommitRecord:
    """Read a commit. Raises ``CorruptError`` if it is missing or damaged. O(log n), cached."""
    record = _commits.get(commit)
    if record is None:
        with environment.read() as txn:
            data = txn.get("commits", commit)
        if data is None or commit_digest(data) != commit:
            problem = "missing" if data is None else "damaged"
            raise CorruptError(
                f"commit {commit.hex()[:12]} of {environment.path} is {problem}",
                path=environment.path,
            )
        record = decode_commit(data)
        _commits.put(commit, record, 1)
    return record


def describe(commit: Digest, record: CommitRecord) -> Commit:
    """Make the public form of a commit."""
    return Commit(
        id=commit.hex(),
        parents=tuple(parent.hex() for parent in record.parents),
        author=record.author,
        time=from_microseconds(record.time),
        message=record.message,
        metadata=dict(record.metadata),
        root=record.root.hex(),
    )


def exists(environment: Environment, commit: Digest) -> bool:
    """Whether the repository has that commit. O(log n)."""
    with environment.read() as txn:
        return txn.contains("commits", commit)


def require(txn: Txn, commits: Iterable[Digest]) -> None:
    """Make sure that the repository has these commits. Raises ``CommitNotFoundError``. O(log n)."""
    for commit in commits:
        if not txn.contains("commits", commit):
            raise CommitNotFoundError(
                f"commit {commit.hex()[:12]} was deleted meanwhile; nothing was written",
                name=commit.hex(),
            )


def with_prefix(environment: Environment, prefix: str, limit: int) -> list[Digest]:
    """Find up to ``limit`` commits whose id begins with these hexadecimal digits. O(log n)."""
    whole = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
    found: list[Digest] = []
    with environment.read() as txn:
        for key, _ in txn.scan("commits", prefix=whole):
            if key.hex().startswith(prefix):
                found.append(Digest(bytes(key)))
                if len(found) == limit:
                    break
    return found


def log(environment: Environment, *heads: Digest) -> Iterator[tuple[Digest, CommitRecord]]:
    """List commits reachable from the heads, newest first, none before one of its children.

    Lazy; O(log n) a commit.
    """
    # A clock may have gone backwards, so that the times alone would put a parent before its child:
    # a commit counts as no newer than the child through which it was reached.
    queue: list[tuple[int, Digest]] = []
    seen: set[bytes] = set()

    def push(commit: Digest, newest: int | None) -> None:
        if commit not in seen:
            seen.add(commit)
            time = get(environment, commit).time
            heapq.heappush(queue, (-time if newest is None else -min(time, newest), commit))

    for head in heads:
        push(head, None)
    while queue:
        time, commit = heapq.heappop(queue)
        record = get(environment, commit)
        yield commit, record
        for parent in record.parents:
            push(parent, -time)


def first_parents(
    environment: Environment, commit: Digest
) -> Iterator[tuple[Digest, CommitRecord]]:
    """List a commit and its first parents, back to the beginning. Lazy; O(log n) a commit."""
    while True:
        record = get(environment, commit)
        yield commit, record
        if not record.parents:
            return
        commit = record.parents[0]


def is_ancestor(environment: Environment, old: Digest, new: Digest) -> bool:
    """Whether ``old`` is ``new`` or reachable from it. O(commits between)."""
    return any(commit == old for commit, _ in log(environment, new))


def merge_bases(
    environment: Environment, ours: Iterable[Digest], theirs: Iterable[Digest]
) -> list[Digest]:
    """Find the best common ancestors of two commits, oldest first.

    A common ancestor is best if no other one descends from it. There is none for unrelated
    histories, and several after merges that crossed. Each side may be several commits, and stands
    for one that has them as parents. O(commits since the bases); where there are several, O(commits
    before them) too.
    """
    # Both sides' commits are marked from the newest back. A commit with both marks is a candidate,
    # and what lies before it need not be looked at on behalf of either side: it is stale.
    of_ours, of_theirs, stale = 1, 2, 4
    marks: dict[bytes, int] = {}
    candidates: dict[Digest, int] = {}
    queue: list[tuple[int, Digest]] = []
    # In the queue, with no mark that a later arrival could not still complete.
    fresh: set[bytes] = set()

    def push(commit: Digest, mark: int, newest: int | None) -> None:
        before = marks.get(commit, 0)
        if before | mark == before:
            return
        marks[commit] = before | mark
        if marks[commit] & stale:
            fresh.discard(commit)
        else:
            fresh.add(commit)
        time = get(environment, commit).time
        heapq.heappush(queue, (-time if newest is None else -min(time, newest), commit))

    for commit in ours:
        push(commit, of_ours, None)
    for commit in theirs:
        push(commit, of_theirs, None)
    while fresh:
        time, commit = heapq.heappop(queue)
        fresh.discard(commit)
        mark = marks[commit]
        record = get(environment, commit)
        if mark == of_ours | of_theirs:
            candidates[commit] = record.time
            mark |= stale
        for parent in record.parents:
            push(parent, mark, -time)
    found = [commit for commit in candidates if not marks[commit] & stale]
    if len(found) > 1:
        # The walk ended as soon as no new candidate could come; one may still lie behind another.
        parents = {parent for commit in found for parent in get(environment, commit).parents}
        behind = {commit for commit, _ in log(environment, *parents)}
        found = [commit for commit in found if commit not in behind]
    return sorted(found, key=lambda commit: (candidates[commit], commit))


def as_of(environment: Environment, head: Digest, time: datetime) -> Digest:
    """Find the newest commit on the line of first parents that is not younger than ``time``.

    Raises ``CommitNotFoundError`` if the line begins later. O(commits since).
    """
    limit = to_microseconds(time)
    for commit, record in first_parents(environment, head):
        if record.time <= limit:
            return commit
    raise CommitNotFoundError(f"no commit is as old as {time.isoformat()}", name=time.isoformat())
