"""Shorten the reflog, which keeps what it names from being collected as garbage."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import final

from vzarr import refs
from vzarr.committing import Settings
from vzarr.environment import Txn
from vzarr.errors import InvalidInputError, RefNotFoundError
from vzarr.format import to_microseconds
from vzarr.history import now
from vzarr.objects import Objects

# For so long others wait at a time.
_SECONDS = 0.02


@final
@dataclass(frozen=True, slots=True)
class ExpireReport:
    """What ``expire`` removed from the reflog, or with ``dry_run`` would have."""

    entries: int
    kept: int
    branches: tuple[str, ...]
    """Those whose reflog became shorter."""
    dry_run: bool

    def __str__(self) -> str:
        removed = "Would remove" if self.dry_run else "Removed"
        text = (
            f"{removed} {self.entries:,} reflog entries of {len(self.branches)} branches; "
            f"{self.kept:,} remain."
        )
        if self.branches and not self.dry_run:
            text += "\nThe next gc frees what only they kept."
        return text

    __repr__ = __str__


def expire(
    objects: Objects,
    settings: Settings,
    *,
    older_than: datetime | timedelta | None = None,
    keep_last: int | None = None,
    branch: str | None = None,
    dry_run: bool = False,
) -> ExpireReport:
    """Remove reflog entries, of one branch or of all, so that a gc frees what only they keep.

    Those go that are older than a time or an age, or all if ``older_than`` is not given; but of
    each branch the ``keep_last`` newest stay. A branch keeps its newest entry in any case; if that
    is one of those to go, it forgets what was there before. Of a branch that was deleted nothing
    stays that is ``older_than`` that. The oldest go first, and none after one that stays.
    History is not rewritten: what a branch reaches is still there.

    Raises ``InvalidInputError`` if neither ``older_than`` nor ``keep_last`` is given,
    ``RefNotFoundError`` for a branch without a reflog, ``BusyError``, ``ReadOnlyError``.
    Cost: O(entries removed + branches · log n); others wait for 20 ms at a time.
    """
    rule = _Rule(_cutoff(older_than), _check_number(keep_last))
    if rule.cutoff is None and rule.keep_last is None:
        raise InvalidInputError("say what is to be removed: older_than=, keep_last=, or both")
    environment = objects.environment
    with environment.read() as txn:
        names = [name for name, _, _ in refs.reflogs(txn) if branch in (None, name)]
    if branch is not None and not names:
        raise RefNotFoundError(f"no branch {branch!r} has a reflog", name=str(branch))
    removed: dict[str, int] = {}
    for name in names:
        done = False
        while not done:
            with (
                environment.read()
                if dry_run
                else environment.write(timeout=settings.timeout) as txn
            ):
                number, done = _remove(txn, name, rule, dry_run=dry_run)
            if number:
                removed[name] = removed.get(name, 0) + number
    with environment.read() as txn:
        stored = sum(
            refs.newest_move(txn, name) + 1 - oldest
            for name, oldest, _ in refs.reflogs(txn)
            if name in names
        )
    gone = sum(removed.values())
    return ExpireReport(gone, stored - gone if dry_run else stored, tuple(removed), dry_run)


@final
@dataclass(frozen=True, slots=True)
class _Rule:
    """Which entries are to go."""

    cutoff: int | None
    """Those before this time, in microseconds; None for all."""
    keep_last: int | None


def _remove(txn: Txn, branch: str, rule: _Rule, *, dry_run: bool) -> tuple[int, bool]:
    """Remove entries, the oldest first; give how many, and whether these were all."""
    exists = refs.find_head(txn, branch) is not None
    keep = rule.keep_last or 0
    if not exists and rule.cutoff is not None:
        # Else what it was about would never be freed.
        keep = 0
    newest, removed = refs.newest_move(txn, branch), 0
    deadline = time.monotonic() + _SECONDS
    for sequence, record in refs.moves(txn, branch, oldest_first=True):
        if newest - sequence < keep or (rule.cutoff is not None and record.time >= rule.cutoff):
            break
        if sequence == newest and exists:
            if record.old is not None and not dry_run:
                refs.forget_origin(txn, branch, record)
            break
        if not dry_run:
            if time.monotonic() > deadline:
                return removed, False
            refs.forget_move(txn, branch, sequence)
        removed += 1
    return removed, True


def _cutoff(older_than: object) -> int | None:
    if older_than is None:
        return None
    if isinstance(older_than, timedelta) and older_than >= timedelta():
        return now() - older_than // timedelta(microseconds=1)
    if isinstance(older_than, datetime):
        return to_microseconds(older_than)
    raise InvalidInputError(f"older_than= is a datetime or a timedelta, not {older_than!r}")


def _check_number(keep_last: object) -> int | None:
    if keep_last is None:
        return None
    if type(keep_last) is int and keep_last >= 0:
        return keep_last
    raise InvalidInputError(f"keep_last= is a number of entries, not {keep_last!r}")
