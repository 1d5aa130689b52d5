"""Branches, tags and the reflog: names for commits.

A branch moves by compare-and-set in a write txn and every move is noted in its reflog; a tag never
moves. Names follow git's rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import final

from vzarr import history
from vzarr.environment import Txn
from vzarr.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptError,
    InvalidInputError,
    RefNotFoundError,
)
from vzarr.format import (
    Digest,
    ReflogRecord,
    TagRecord,
    decode_head,
    decode_reflog,
    decode_tag,
    encode_reflog,
    encode_tag,
    from_microseconds,
    reflog_key,
    reflog_prefix,
    split_reflog_key,
)
from vzarr.printable import printable

# LMDB's keys have at most 511 bytes, and a reflog key is the name with 9 bytes more.
_MAX_NAME_BYTES = 400
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


@final
@dataclass(frozen=True, slots=True)
class Tag:
    """A tag: the commit it names, and who tagged it when and why."""

    name: str
    commit: str
    message: str
    author: str
    time: datetime


@final
@dataclass(frozen=True, slots=True)
class ReflogEntry:
    """One move of a branch; ``old`` is None at its creation, ``new`` at its deletion."""

    branch: str
    old: str | None
    new: str | None
    author: str
    time: datetime
    operation: str

    def __str__(self) -> str:
        new = self.new[:12] if self.new else "(deleted)   "
        text = printable(f"{self.author}  {self.operation}")
        return f"{new}  {self.time:%Y-%m-%d %H:%M:%S}  {text}"


def check_name(name: object, what: str = "branch") -> str:
    """Give a branch or tag name back if git would take it; else raise ``InvalidInputError``."""
    if not isinstance(name, str):
        raise InvalidInputError(f"a {what} name must be a string, not {name!r}")
    problem = _problem(name)
    if problem:
        raise InvalidInputError(f"{name!r} is no {what} name: {problem}")
    return name


def _problem(name: str) -> str:
    if not name:
        return "it is empty"
    try:
        if len(name.encode()) > _MAX_NAME_BYTES:
            return f"it is longer than {_MAX_NAME_BYTES} bytes"
    except UnicodeEncodeError:
        return "it is not valid Unicode"
    found = _FORBIDDEN.search(name)
    if found:
        return f"it contains {found.group()!r}"
    if name in ("@", "HEAD"):
        return "the name is reserved"
    if name[0] in "-/" or name[-1] in "./":
        return "it begins with - or /, or ends with . or /"
    if any(part.startswith(".") or part.endswith(".lock") for part in name.split("/")):
        return "a part of it begins with . or ends with .lock"
    return ""


def _stored_name(key: bytes, what: str) -> str:
    """Decode a name. A file from elsewhere may hold one that nobody may give."""
    try:
        return check_name(key.decode(), what)
    except ValueError as error:
        raise CorruptError(f"the {what} {key!r} is damaged: {error}; run a check") from error


# ── branches ─────────────────────────────────────────────────────────────────────────────────────


def head(txn: Txn, branch: str) -> Digest:
    """Give the head of a branch. Raises ``RefNotFoundError``. O(log n)."""
    commit = find_head(txn, branch)
    if commit is None:
        raise RefNotFoundError(
            f"there is no branch {branch!r}; create it with repo.branches.create({branch!r})",
            name=branch,
        )
    return commit


def find_head(txn: Txn, branch: str) -> Digest | None:
    """Give the head of a branch, or None if there is no such branch. O(log n)."""
    name = branch.encode(errors="replace")
    if not name or len(name) > _MAX_NAME_BYTES:
        return None
    commit = txn.get("branches", name)
    return None if commit is None else decode_head(commit)


def branches(txn: Txn) -> Iterator[tuple[str, Digest]]:
    """List the branches and their heads by name."""
    for name, commit in txn.scan("branches"):
        yield _stored_name(name, "branch"), decode_head(commit)


def create_branch(txn: Txn, branch: str, to: Digest, author: str, time: int, why: str) -> None:
    """Make a branch. Raises ``AlreadyExistsError``, ``CommitNotFoundError``. O(log n)."""
    # A collection of garbage may have been faster, here and wherever a name is given to a commit.
    history.require(txn, [to])
    if find_head(txn, branch) is not None:
        raise AlreadyExistsError(
            f"branch {branch!r} exists; move it with repo.branches.reset({branch!r}, ...)",
            name=branch,
        )
    txn.put("branches", branch.encode(), to)
    _note(txn, branch, ReflogRecord(None, to, author, time, why))


def move_branch(
    txn: Txn,
    branch: str,
    expected: Digest,
    to: Digest,
    author: str,
    time: int,
    why: str,
    *,
    goes_on: bool = False,
) -> None:
    """Move a branch from the expected head to another commit: a compare-and-set. O(log n).

    With ``goes_on``, this and the newest move are noted as one, if that was the same operation and
    led to the expected head: of a row of amendments, the reflog holds nothing in between.

    Raises ``ConflictError`` if the head is another by now, ``CommitNotFoundError`` if there is no
    such commit, and ``RefNotFoundError``.
    """
    history.require(txn, [to])
    found = head(txn, branch)
    if found != expected:
        raise ConflictError(
            f"branch {branch!r} is at {found.hex()[:12]}, not at {expected.hex()[:12]} any more: "
            "another writer moved it; look at it again and retry"
        )
    txn.put("branches", branch.encode(), to)
    record = ReflogRecord(expected, to, author, time, why)
    if goes_on:
        for sequence, newest in moves(txn, branch):
            if newest.new == expected and newest.operation == why:
                record = replace(record, old=newest.old)
                txn.put("reflog", reflog_key(branch, sequence), encode_reflog(record))
                return
            break
    _note(txn, branch, record)


def delete_branch(txn: Txn, branch: str, author: str, time: int, why: str) -> Digest:
    """Delete a branch and give its last head; its reflog stays. O(log n)."""
    last = head(txn, branch)
    txn.delete("branches", branch.encode())
    _note(txn, branch, ReflogRecord(last, None, author, time, why))
    return last


def _note(txn: Txn, branch: str, record: ReflogRecord) -> None:
    txn.put("reflog", reflog_key(branch, newest_move(txn, branch) + 1), encode_reflog(record))


# ── the reflog ───────────────────────────────────────────────────────────────────────────────────


def reflog(txn: Txn, branch: str) -> Iterator[ReflogEntry]:
    """List the moves of a branch, the newest first."""
    for _, record in moves(txn, branch):
        yield ReflogEntry(
            branch,
            record.old.hex() if record.old else None,
            record.new.hex() if record.new else None,
            record.author,
            from_microseconds(record.time),
            record.operation,
        )


def moves(
    txn: Txn, branch: str, *, oldest_first: bool = False
) -> Iterator[tuple[int, ReflogRecord]]:
    """List the records of a branch's reflog with their numbers, the newest first."""
    for key, data in txn.scan("reflog", prefix=reflog_prefix(branch), reverse=not oldest_first):
        yield split_reflog_key(key)[1], decode_reflog(data)


def newest_move(txn: Txn, branch: str) -> int:
    """Give the number of the newest record of a branch's reflog; -1 if there is none. O(log n)."""
    newest = txn.last_key("reflog", reflog_prefix(branch))
    return -1 if newest is None else split_reflog_key(newest)[1]


def tracked_head(txn: Txn, name: str) -> Digest | None:
    """Give the commit that a branch elsewhere was on when it was fetched; None if there is none.

    Such a name, say ``origin/main``, has a reflog that leads to a commit, and no branch. O(log n).
    """
    if _problem(name) or find_head(txn, name) is not None:
        return None
    newest = next(moves(txn, name), None)
    commit = None if newest is None else newest[1].new
    # A reflog may name what was collected since.
    return commit if commit is not None and txn.contains("commits", commit) else None


def tracked(txn: Txn) -> Iterator[tuple[str, Digest]]:
    """List what is known of the branches elsewhere, by name. O(reflogs · log n)."""
    for name, _, _ in reflogs(txn):
        commit = tracked_head(txn, name)
        if commit is not None:
            yield name, commit


def track(txn: Txn, name: str, to: Digest | None, author: str, time: int, why: str) -> None:
    """Note on which commit a branch elsewhere is; with None that it is not any more. O(log n)."""
    old = tracked_head(txn, name)
    if old != to:
        _note(txn, name, ReflogRecord(old, to, author, time, why))


def reflogs(txn: Txn) -> Iterator[tuple[str, int, bytes]]:
    """List the branches that have a reflog, deleted ones too, with its oldest record and number.

    O(branches · log n), however long the reflogs are.
    """
    start = b""
    while True:
        oldest = next(txn.scan("reflog", start=start), None)
        if oldest is None:
            return
        key, data = oldest
        name, sequence = split_reflog_key(key)
        yield _stored_name(name, "branch"), sequence, data
        # Beyond all of this branch and before any other: no name holds a byte so small.
        start = name + b"\1"


def forget_move(txn: Txn, branch: str, sequence: int) -> None:
    """Delete a record of a branch's reflog. O(log n)."""
    txn.delete("reflog", reflog_key(branch, sequence))


def forget_origin(txn: Txn, branch: str, newest: ReflogRecord) -> None:
    """Forget from where the newest move came, as if it had made the branch. O(log n)."""
    key = reflog_key(branch, newest_move(txn, branch))
    txn.put("reflog", key, encode_reflog(replace(newest, old=None)))


def rewrite(
    txn: Txn, commits: Mapping[Digest, Digest], author: str, time: int, why: str
) -> tuple[list[str], list[str]]:
    """Let branches, tags and reflogs name other commits; give the branches and tags that do now.

    Each of these branches notes it in its reflog. O(refs and reflog entries).
    """
    for key, data in txn.scan("reflog"):
        record = decode_reflog(data)
        old, new = (
            None if commit is None else commits.get(commit, commit)
            for commit in (record.old, record.new)
        )
        if (old, new) != (record.old, record.new):
            txn.put("reflog", key, encode_reflog(replace(record, old=old, new=new)))
    moved = [(branch, commits[head]) for branch, head in branches(txn) if head in commits]
    for branch, to in moved:
        txn.put("branches", branch.encode(), to)
        _note(txn, branch, ReflogRecord(to, to, author, time, why))
    renamed = []
    for name, data in txn.scan("tags"):
        tag = decode_tag(data)
        if tag.commit in commits:
            txn.put("tags", name, encode_tag(replace(tag, commit=commits[tag.commit])))
            renamed.append(name.decode())
    return [branch for branch, _ in moved], renamed


# ── tags ─────────────────────────────────────────────────────────────────────────────────────────


def find_tag(txn: Txn, name: str) -> TagRecord | None:
    """Give a tag, or None. O(log n)."""
    key = name.encode(errors="replace")
    if not key or len(key) > _MAX_NAME_BYTES:
        return None
    data = txn.get("tags", key)
    return None if data is None else decode_tag(data)


def tags(txn: Txn) -> Iterator[Tag]:
    """List the tags by name."""
    for name, data in txn.scan("tags"):
        record = decode_tag(data)
        yield Tag(
            _stored_name(name, "tag"),
            record.commit.hex(),
            record.message,
            record.author,
            from_microseconds(record.time),
        )


def create_tag(txn: Txn, name: str, record: TagRecord) -> None:
    """Make a tag. Raises ``AlreadyExistsError``, ``CommitNotFoundError``. O(log n)."""
    history.require(txn, [record.commit])
    if not txn.put("tags", name.encode(), encode_tag(record), overwrite=False):
        raise AlreadyExistsError(
            f"tag {name!r} exists, and tags never move; delete it first or take another name",
            name=name,
        )


def delete_tag(txn: Txn, name: str) -> None:
    """Delete a tag. Raises ``RefNotFoundError``. O(log n)."""
    if find_tag(txn, name) is None:
        raise RefNotFoundError(f"there is no tag {name!r}", name=name)
    txn.delete("tags", name.encode())
