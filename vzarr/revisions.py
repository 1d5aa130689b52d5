"""From what a user writes to a commit: branch, tag, id, prefix, ``main~2``, ``main@{date}``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from vzarr import history, refs
from vzarr.environment import Environment
from vzarr.errors import CommitNotFoundError, InvalidInputError, RefNotFoundError
from vzarr.format import Digest

_SUFFIX = re.compile(r"(?P<name>.*?)(?:@\{(?P<at>[^}]*)\})?(?P<steps>(?:[~^][0-9]*)*)", re.DOTALL)
_STEP = re.compile(r"([~^])([0-9]*)")
_MAX_DIGITS = 12
_HEX = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True, slots=True)
class Revision:
    """A commit, and the branch if it was named as the head of one."""

    commit: Digest
    branch: str | None = None


def resolve(
    environment: Environment,
    ref: str | datetime | None,
    at: datetime | None = None,
    branch: str = "main",
) -> Revision:
    """Find the commit that a ref means: a branch, else a tag, a branch elsewhere, or a commit's id.

    ``ref`` may end with ``~N`` (the N-th first parent), ``^N`` (the N-th parent) or ``@{date}``
    (ISO 8601: as the branch was then); a datetime means ``branch`` as it was then, and so does
    ``at``. Raises ``RefNotFoundError``, ``CommitNotFoundError``, and ``InvalidInputError`` for what
    cannot be a ref or is the beginning of more than one id.
    """
    if isinstance(ref, datetime):
        at, ref = ref, branch
    elif ref is None:
        ref = branch
    if not isinstance(ref, str):
        raise InvalidInputError(
            f"a ref is a branch, tag, commit id or datetime, not {type(ref).__name__}: {ref!r}"
        )
    match = _SUFFIX.fullmatch(ref)
    assert match is not None, "every part of the pattern is optional"
    name, date, steps = match["name"], match["at"], match["steps"]
    if at is not None and (date is not None or steps):
        raise InvalidInputError(f"{ref!r} names a commit already; at= goes with a branch or tag")
    if not name and (date is not None or steps):
        name = branch
    revision = _named(environment, name, ref)
    if date is not None:
        at = _date(date, ref)
    if at is not None:
        return Revision(history.as_of(environment, revision.commit, at))
    if not steps:
        return revision
    commit = revision.commit
    for kind, number in _STEP.findall(steps):
        # No history has a million million commits; of more digits no number is made.
        steps_back = int(number or 1) if len(number) <= _MAX_DIGITS else 10**_MAX_DIGITS
        commit = _step(environment, commit, kind, steps_back, ref)
    return Revision(commit)


def _named(environment: Environment, name: str, ref: str) -> Revision:
    with environment.read() as txn:
        head = refs.find_head(txn, name)
        tag = refs.find_tag(txn, name) if head is None else None
        elsewhere = refs.tracked_head(txn, name) if head is None and tag is None else None
    if head is not None:
        return Revision(head, name)
    if tag is not None:
        return Revision(tag.commit)
    if elsewhere is not None:
        return Revision(elsewhere)
    if _HEX.fullmatch(name.lower()):
        return Revision(_by_prefix(environment, name.lower()))
    raise RefNotFoundError(
        f"{ref!r} is no branch, tag or commit of {environment.path} "
        "(an id needs at least 4 of its hexadecimal digits)",
        name=ref,
    )


def _by_prefix(environment: Environment, prefix: str) -> Digest:
    found = history.with_prefix(environment, prefix, limit=4)
    if not found:
        raise RefNotFoundError(
            f"{prefix!r} is no branch, tag or commit of {environment.path}", name=prefix
        )
    if len(found) > 1:
        candidates = ", ".join(commit.hex()[:12] for commit in found)
        raise InvalidInputError(
            f"commit id {prefix!r} is ambiguous: {candidates}; give more of its digits"
        )
    return found[0]


def _date(text: str, ref: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInputError(
            f"{ref!r}: {text!r} is no ISO 8601 date, such as 2026-03-01T12:00:00+00:00"
        ) from error


def _step(environment: Environment, commit: Digest, kind: str, number: int, ref: str) -> Digest:
    generations, which = (number, 1) if kind == "~" else (1, number)
    for _ in range(generations if which else 0):
        parents = history.get(environment, commit).parents
        if which > len(parents):
            raise CommitNotFoundError(
                f"{ref!r}: commit {commit.hex()[:12]} has {len(parents)} parent(s)", name=ref
            )
        commit = parents[which - 1]
    return commit
