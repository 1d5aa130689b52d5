"""Shorten the reflog, which keeps what it names from being collected as garbage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import final

from vzarr import refs
from vzarr.committing import Settings
from vzarr.environment import Txn
from vzarr.errors import InvalidInputError, RefNotFoundError
from vzarr.format import (
    CommitRecord,
    Digest,
    ReflogRecord,
    decode_commit,
    from_microseconds,
    to_microseconds,
)
from vzarr.history import now
from vzarr.objects import Objects
from vzarr.progress import Meter, Progress

# For so long others wait at a time.
_SECONDS = 0.02
_LISTED, _SHOWN = 1_000, 20


@final
@dataclass(frozen=True, slots=True)
class LostCommit:
    """A commit that nothing but a removed entry kept; the next gc deletes it."""

    branch: str
    """Whose reflog had it."""
    id: str
    time: datetime
    message: str

    def __str__(self) -> str:
        subject = self.message.partition("\n")[0]
        return f"{self.branch}: {self.id[:12]}  {self.time:%Y-%m-%d %H:%M:%S}  {subject}"


@final
@dataclass(frozen=True, slots=True)
class ExpireReport:
    """What ``expire`` removed from the reflog, or with ``dry_run`` would have."""

    entries: int
    kept: int
    branches: tuple[str, ...]
    """Those whose reflog became shorter."""
    lost: tuple[LostCommit, ...]
    """The commits that no branch, no tag and no other entry has: by branch, the newest first, 1,000
    at most. One that a session is on stays until that ends."""
    lost_commits: int
    """How many these are in all."""
    dry_run: bool

    def __str__(self) -> str:
        removed = "Would remove" if self.dry_run else "Removed"
        text = (
            f"{removed} {self.entries:,} reflog entries of {len(self.branches)} branches; "
            f"{self.kept:,} remain."
        )
        if self.lost:
            deletes = "would then delete" if self.dry_run else "deletes"
            text += f"\nOnly they kept {self.lost_commits:,} commits, which the next gc {deletes}:"
            text += "".join(f"\n  {commit}" for commit in self.lost[:_SHOWN])
            more = self.lost_commits - _SHOWN
            text += f"\n  … and {more:,} more" if more > 0 else ""
        elif self.entries:
            text += "\nNo commit is lost by that."
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
    progress: Progress | None = None,
) -> ExpireReport:
    """Remove reflog entries, of one branch or of all, so that a gc frees what only they keep.

    Those go that are older than a time or an age, or all if ``older_than`` is not given; but of
    each branch the ``keep_last`` newest stay. A branch keeps its newest entry in any case; if that
    is one of those to go, it forgets what was there before. Of a branch that was deleted nothing
    stays that is ``older_than`` that. The oldest go first, and none after one that stays.
    History is not rewritten: what a branch reaches is still there. The report lists the commits
    that only the removed entries kept; ``dry_run`` does so and removes nothing.
    ``progress(done, total, what)`` is called now and then, while no lock is held; where it raises,
    what is removed by then stays so.

    Raises ``InvalidInputError`` if neither ``older_than`` nor ``keep_last`` is given,
    ``RefNotFoundError`` for a branch without a reflog, ``BusyError``, ``ReadOnlyError``.
    Cost: O(commits + entries), some 10 µs each; others wait for 20 ms at a time.
    """
    rule = _Rule(_cutoff(older_than), _check_number(keep_last))
    if rule.cutoff is None and rule.keep_last is None:
        raise InvalidInputError("say what is to be removed: older_than=, keep_last=, or both")
    environment = objects.environment
    with environment.read() as txn:
        names = [name for name, _, _ in refs.reflogs(txn) if branch in (None, name)]
    if branch is not None and not names:
        raise RefNotFoundError(f"no branch {branch!r} has a reflog", name=str(branch))
    meter = Meter(progress)
    outlook = _look(objects, names, rule, meter)
    removed: dict[str, int] = {}
    meter.stage("remove", outlook.entries)
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
                meter.step(number)
    meter.end()
    with environment.read() as txn:
        stored = sum(
            refs.newest_move(txn, name) + 1 - oldest
            for name, oldest, _ in refs.reflogs(txn)
            if name in names
        )
    gone = sum(removed.values())
    kept = stored - gone if dry_run else stored
    return ExpireReport(gone, kept, tuple(removed), outlook.lost, outlook.lost_commits, dry_run)


@final
@dataclass(frozen=True, slots=True)
class _Rule:
    """Which entries are to go."""

    cutoff: int | None
    """Those before this time, in microseconds; None for all."""
    keep_last: int | None


def _remove(txn: Txn, branch: str, rule: _Rule, *, dry_run: bool) -> tuple[int, bool]:
    """Remove entries, the oldest first; give how many, and whether these were all."""
    removed = 0
    deadline = time.monotonic() + _SECONDS
    for sequence, record, is_head in _entries_to_go(txn, branch, rule):
        if is_head:
            if record.old is not None and not dry_run:
                refs.forget_origin(txn, branch, record)
            continue
        if not dry_run:
            if time.monotonic() > deadline:
                return removed, False
            refs.forget_move(txn, branch, sequence)
        removed += 1
    return removed, True


def _entries_to_go(txn: Txn, branch: str, rule: _Rule) -> Iterator[tuple[int, ReflogRecord, bool]]:
    """List what is to go, the oldest first; of the head's own, which ends it, the origin goes."""
    # What is known of a branch elsewhere is such an entry.
    exists = (refs.find_head(txn, branch) or refs.tracked_head(txn, branch)) is not None
    keep = rule.keep_last or 0
    if not exists and rule.cutoff is not None:
        # Else what it was about would never be freed.
        keep = 0
    newest = refs.newest_move(txn, branch)
    for sequence, record in refs.moves(txn, branch, oldest_first=True):
        if newest - sequence < keep or (rule.cutoff is not None and record.time >= rule.cutoff):
            return
        yield sequence, record, sequence == newest and exists


@final
@dataclass(frozen=True, slots=True)
class _Outlook:
    """What is to go, and what will be lost by that."""

    entries: int
    lost: tuple[LostCommit, ...]
    lost_commits: int


def _look(objects: Objects, names: Sequence[str], rule: _Rule, meter: Meter) -> _Outlook:
    """Find the commits that only entries keep which are to go. O(commits + entries)."""
    with objects.environment.read() as txn:
        stored = sum(
            refs.newest_move(txn, name) + 1 - oldest for name, oldest, _ in refs.reflogs(txn)
        )
        meter.stage("look", stored + txn.count("commits"))
        entries_to_go = 0
        going: dict[str, list[Digest | None]] = {}
        staying: list[Digest | None] = [head for _, head in refs.branches(txn)]
        staying += [Digest(bytes.fromhex(tag.commit)) for tag in refs.tags(txn)]
        for name, _, _ in list(refs.reflogs(txn)):
            entries = list(_entries_to_go(txn, name, rule)) if name in names else []
            going[name] = [
                commit
                for _, record, is_head in entries
                for commit in ((record.old,) if is_head else (record.old, record.new))
            ]
            gone = {sequence for sequence, _, is_head in entries if not is_head}
            entries_to_go += len(gone)
            shortened = {sequence for sequence, _, is_head in entries if is_head}
            for sequence, record in refs.moves(txn, name):
                meter.step(1)
                if sequence not in gone:
                    staying.append(record.new)
                    if sequence not in shortened:
                        staying.append(record.old)
        seen: set[Digest] = set()
        for _ in _ancestry(txn, staying, seen, meter):
            # What is left unseen is lost.
            pass
        lost: list[LostCommit] = []
        for name, starts in going.items():
            found = sorted(_ancestry(txn, starts, seen, meter), key=lambda pair: -pair[1].time)
            lost += [
                LostCommit(name, commit.hex(), from_microseconds(record.time), record.message)
                for commit, record in found
            ]
    return _Outlook(entries_to_go, tuple(lost[:_LISTED]), len(lost))


def _ancestry(
    txn: Txn, starts: Iterable[Digest | None], seen: set[Digest], meter: Meter
) -> Iterator[tuple[Digest, CommitRecord]]:
    """List commits and their ancestors that were not seen, as far as they are in the file."""
    waiting = [commit for commit in starts if commit is not None]
    while waiting:
        commit = waiting.pop()
        data = None if commit in seen else txn.get("commits", commit)
        if data is not None:
            seen.add(commit)
            meter.step(1)
            record = decode_commit(data)
            yield commit, record
            waiting += record.parents


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
