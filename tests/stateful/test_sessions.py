"""Many sessions on many branches against a plain model, with all that puts their work together.

vzarr must have the same bytes under the same keys as the model, in every session and on every
branch, and it must refuse to merge exactly where the model does, naming the same places.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import vzarr
from tests.stateful.snapshots import (
    START,
    Edit,
    Merge,
    Snapshot,
    attempt,
    keys_of,
    places_of,
    some,
    strategy,
    things,
)
from tests.support import assert_sound
from vzarr.errors import BusyError, ConflictError, SessionStateError
from vzarr.session import Session

SEATS = 4
BRANCHES = ["main", "one", "two"]
strategies = st.sampled_from(["fail", "ours", "theirs", "mixed"])
seats = st.integers(0, SEATS - 1)
branches = st.sampled_from(BRANCHES)


# ── the machine ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Work:
    """What a session shows, and from where it began."""

    branch: str
    base: str
    content: Snapshot


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds; and of forks that were taken over later, from what to what."""

    work: Work
    forks: tuple[tuple[Snapshot, Snapshot], ...] = ()


@dataclass
class Seat:
    """A session and its model."""

    session: Session
    work: Work
    saved: Saved | None = None
    may_agree: bool = True
    """Whether to change a thing to the same value is no conflict."""


class SessionsMachine(RuleBasedStateMachine):
    """Sessions in some seats, commits and branches, and sessions that died after a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "model.vzarr"
        self.repo = self._open()
        first = self.repo.branches["main"]
        self.snapshots: dict[str, Snapshot] = {first: {}}
        self.parents: dict[str, tuple[str, ...]] = {first: ()}
        self.heads = {"main": first}
        self.seats: dict[int, Seat] = {}
        self.dead: dict[str, Saved] = {}
        with self.repo.transaction("main", "start") as store:
            for key, value in keys_of(START).items():
                store.session.set(key, value)
        self._committed("main", self.repo.branches["main"], START, first)
        for name in BRANCHES[1:]:
            self.heads[name] = self.repo.branches.create(name)
        for who in range(SEATS):
            self._open_session(who, BRANCHES[who % 2])

    def _open(self) -> vzarr.Repository:
        return vzarr.open(self.path, author="model", durability="normal")

    def teardown(self) -> None:
        with self.directory:
            with self.repo:
                self._end()
            assert_sound(self.path)

    def _end(self) -> None:
        """Give up all that is not committed, so that whatever else is left is a leak."""
        for session_id in self.dead:
            self.repo.resume(session_id).discard()
        while self.seats:
            self.seats.popitem()[1].session.discard()
        # A session holds its commit for as long as the object is there.
        gc.collect()
        self._gc(0)
        report = self.repo.check("full")
        assert report.ok, report
        assert report.garbage == 0, report

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────

    def _sit(self, who: int, seat: Seat) -> None:
        if who in self.seats:
            self._leave(who)
        self.seats[who] = seat

    def _leave(self, who: int) -> None:
        """Close a session; what it saved is there for others."""
        seat = self.seats.pop(who)
        seat.session.close()
        if seat.saved is not None:
            self.dead[seat.session.id] = seat.saved

    def _open_session(self, who: int, branch: str) -> None:
        head = self.heads[branch]
        work = Work(branch, head, self.snapshots[head])
        self._sit(who, Seat(self.repo.session(branch), work))

    def _edit(self, who: int, steps: list[Edit]) -> None:
        seat = self.seats[who]
        for step in steps:
            seat.work = replace(seat.work, content=step(seat.session, seat.work.content))

    @rule(who=seats, other=seats, branch=branches, ours=some, theirs=some, prefer=strategies)
    def race(self, who, other, branch, ours, theirs, prefer):
        """Let two sessions edit one snapshot, and both commit."""
        self.transaction(branch, things, exclusive=True)
        for seat, steps in {other: theirs, who: ours}.items():
            self._open_session(seat, branch)
            self._edit(seat, steps)
        self.commit(other, [], "fail")
        self.commit(who, [], prefer)

    @rule(who=seats, steps=some, prefer=strategies)
    def commit(self, who, steps, prefer):
        self._edit(who, steps)
        seat, work = self.seats[who], self.seats[who].work
        changed = work.content != self.snapshots[work.base]
        assert seat.session.has_changes == changed
        if not changed:
            return
        head = self.heads[work.branch]
        merge, merged = self._merge(seat, prefer)
        commit, found = attempt(
            lambda: seat.session.commit("commit", merge=strategy(merge.strategy))
        )
        assert found == merge.open
        if commit is None:
            return
        if merged == self.snapshots[head]:
            # Somebody else has committed all of it, or decided all of it.
            assert commit == head
        else:
            self._committed(work.branch, commit, merged, head)
        seat.work, seat.saved = Work(work.branch, commit, merged), None

    def _merge(self, seat: Seat, prefer: str) -> tuple[Merge, Snapshot]:
        """Merge what a session did with what its branch is by now."""
        work, head = seat.work, self.snapshots[self.heads[seat.work.branch]]
        merge = Merge(prefer, may_agree=seat.may_agree)
        return merge, merge.snapshots(self.snapshots[work.base], work.content, head)

    def _committed(self, branch: str, commit: str, content: Snapshot, *parents: str) -> None:
        assert commit not in self.snapshots
        self.snapshots[commit], self.parents[commit] = content, parents
        self.heads[branch] = commit

    @rule(who=seats, steps=some, prefer=strategies)
    def rebase(self, who, steps, prefer):
        self._edit(who, steps)
        seat, work = self.seats[who], self.seats[who].work
        merge, merged = self._merge(seat, prefer)
        base, found = attempt(lambda: seat.session.rebase(strategy(merge.strategy)))
        assert found == merge.open
        if base is None:
            return
        assert base == self.heads[work.branch]
        seat.work = Work(work.branch, base, merged)
        if seat.saved is not None and base != work.base:
            seat.saved = Saved(seat.work)

    # ── work that survives ───────────────────────────────────────────────────────────────────────

    @rule(who=seats, steps=some)
    def checkpoint(self, who, steps):
        self._edit(who, steps)
        seat = self.seats[who]
        assert seat.session.checkpoint() == seat.session.id
        seat.saved = Saved(seat.work)

    @precondition(lambda self: self.dead)
    @rule(who=seats, prefer=strategies, data=st.data())
    def resume(self, who, prefer, data):
        session_id = data.draw(st.sampled_from(list(self.dead)))
        saved = self.dead.pop(session_id)
        session, work = self.repo.resume(session_id), saved.work
        assert (session.id, session.branch, session.base) == (session_id, work.branch, work.base)
        # It may have been a transaction.
        self._sit(who, Seat(session, work, saved, may_agree=False))
        with pytest.raises(BusyError, match="in use"):
            self.repo.resume(session_id)
        self._take_over_again(self.seats[who], prefer)

    def _take_over_again(self, seat: Seat, prefer: str) -> None:
        """Take over the forks of which the checkpoint has nothing; before that, nobody commits."""
        assert seat.saved is not None
        forks = seat.saved.forks
        if any(before != after for before, after in forks):
            with pytest.raises(SessionStateError, match=r"not merged|nothing to commit"):
                seat.session.commit("too early")
        merge, merged = self._merge_forks(seat, forks, prefer)
        _, found = attempt(lambda: seat.session.merge_fork(merge=strategy(prefer)))
        assert found == merge.open
        if found:
            self.sessions_show_their_content()
            _, merged = self._merge_forks(seat, forks, "ours")
            seat.session.merge_fork(merge="ours")
        seat.work = replace(seat.work, content=merged)

    # ── forks ────────────────────────────────────────────────────────────────────────────────────

    @rule(
        who=seats,
        prefer=strategies,
        writes=st.lists(some, min_size=1, max_size=2),
        meanwhile=some,
    )
    def fork(self, who, prefer, writes, meanwhile):
        """Write to forks of a session and to the session, and put all of it together."""
        seat, base = self.seats[who], self.seats[who].work.content
        forks = [seat.session.fork() for _ in writes]
        sides = []
        for fork, steps in zip(forks, writes, strict=True):
            content = base
            for step in steps:
                content = step(fork, content)
            assert _content(fork) == keys_of(content)
            sides.append((base, content))
        self._edit(who, meanwhile)
        merge, merged = self._merge_forks(seat, sides, prefer)
        _, found = attempt(lambda: seat.session.merge_fork(*forks, merge=strategy(prefer)))
        assert found == merge.open
        if found:
            # Nothing was taken over, and the forks are as they were.
            self.sessions_show_their_content()
            _, merged = self._merge_forks(seat, sides, "ours")
            # All that there are, in the order in which they were made.
            seat.session.merge_fork(merge="ours")
        seat.work = replace(seat.work, content=merged)
        if seat.saved is not None:
            seat.saved = replace(seat.saved, forks=(*seat.saved.forks, *sides))

    def _merge_forks(
        self, seat: Seat, forks: Sequence[tuple[Snapshot, Snapshot]], prefer: str
    ) -> tuple[Merge, Snapshot]:
        """Merge one after the other, until one conflicts."""
        content, merge = seat.work.content, Merge(prefer)
        for before, after in forks:
            if not merge.open:
                content = merge.snapshots(before, content, after)
        return merge, content

    # ── transactions ─────────────────────────────────────────────────────────────────────────────

    @rule(branch=branches, steps=some, exclusive=st.booleans())
    def transaction(self, branch, steps, exclusive):
        head = self.heads[branch]
        content = self.snapshots[head]
        with self.repo.transaction(branch, "transaction", exclusive=exclusive) as store:
            for step in steps:
                content = step(store.session, content)
        if content != self.snapshots[head]:
            self._committed(branch, self.repo.branches[branch], content, head)

    @rule(branch=branches, ours=some, theirs=some, prefer=strategies)
    def interfere(self, branch, ours, theirs, prefer):
        """Let a transaction commit while another is under way."""
        self.transaction(branch, things, exclusive=True)
        base = self.snapshots[self.heads[branch]]

        def transact() -> None:
            content = base
            with self.repo.transaction(branch, "late", merge=strategy(prefer)) as store:
                for step in ours:
                    content = step(store.session, content)
                self.transaction(branch, theirs, exclusive=False)
                merged.append(merge.snapshots(base, content, self.snapshots[self.heads[branch]]))

        merge, merged = Merge(prefer, may_agree=False), list[Snapshot]()
        _, found = attempt(transact)
        assert found == merge.open
        head = self.heads[branch]
        if not found and merged[0] != self.snapshots[head]:
            self._committed(branch, self.repo.branches[branch], merged[0], head)

    @rule(branch=branches, steps=some)
    def roll_back(self, branch, steps):
        content = self.snapshots[self.heads[branch]]
        with (
            pytest.raises(ZeroDivisionError),
            self.repo.transaction(branch, "never") as store,
        ):
            for step in steps:
                content = step(store.session, content)
            raise ZeroDivisionError

    # ── branches ─────────────────────────────────────────────────────────────────────────────────

    def _ancestors(self, *commits: str) -> set[str]:
        found, waiting = set[str](), list(commits)
        while waiting:
            commit = waiting.pop()
            if commit not in found:
                found.add(commit)
                waiting += self.parents[commit]
        return found

    def _reachable(self) -> list[str]:
        """List what branches reach; in the order of creation, which is the same each time."""
        found = self._ancestors(*self.heads.values())
        return [commit for commit in self.snapshots if commit in found]

    def _merge_bases(self, one: str, two: str) -> set[str]:
        common = self._ancestors(one) & self._ancestors(two)
        return common - self._ancestors(*(it for commit in common for it in self.parents[commit]))

    @rule(name=branches, data=st.data())
    def reset(self, name, data):
        to = data.draw(st.sampled_from(self._reachable()))
        self.repo.branches.reset(name, to)
        self.heads[name] = to

    @rule(
        ends=st.permutations(BRANCHES),
        ours=some,
        theirs=some,
        prefer=strategies,
        no_ff=st.booleans(),
    )
    def merge_branches(self, ends, ours, theirs, prefer, no_ff):
        into, source, _ = ends
        self.transaction(into, things, exclusive=True)
        for branch, steps in ((into, ours), (source, theirs)):
            self.transaction(branch, steps, exclusive=False)
        other, head = self.heads[source], self.heads[into]
        bases = self._merge_bases(other, head)
        if len(bases) > 1:
            # Merges that crossed have a base that never was.
            return
        # To amend the first commit is to begin another history.
        base = next(iter(bases), "")
        merge = Merge(prefer)
        sides = (self.snapshots.get(base, {}), self.snapshots[head], self.snapshots[other])
        merged = merge.snapshots(*sides)
        preview = self.repo.merge(source, into, None, strategy(prefer), dry_run=True)
        assert places_of(preview.conflicts) == merge.open
        assert set(preview.bases) == bases
        commit, found = attempt(
            lambda: self.repo.merge(source, into, None, strategy(prefer), no_ff=no_ff)
        )
        assert found == merge.open
        if commit is None:
            return
        if base == other:
            assert commit == head
        elif base == head and not no_ff:
            assert commit == other
            self.heads[into] = commit
        else:
            self._committed(into, commit, merged, head, other)

    @rule(branch=branches, prefer=strategies, undo=st.booleans(), data=st.data())
    def pick_or_revert(self, branch, prefer, undo, data):
        """Do once more what a commit did, or the reverse, on top of a branch."""
        commits = [commit for commit in self._reachable() if len(self.parents[commit]) == 1]
        source = data.draw(st.sampled_from(commits))
        head, (parent,) = self.heads[branch], self.parents[source]
        before, after = (source, parent) if undo else (parent, source)
        merge = Merge(prefer)
        merged = merge.snapshots(*(self.snapshots[it] for it in (before, head, after)))
        verb = self.repo.revert if undo else self.repo.cherry_pick
        try:
            commit, found = attempt(lambda: verb(source, branch, strategy=strategy(prefer)))
        except SessionStateError:
            # That changes nothing.
            assert not merge.open
            assert merged == self.snapshots[head]
            return
        assert found == merge.open
        if commit is not None:
            self._committed(branch, commit, merged, head)

    # ── now and then ─────────────────────────────────────────────────────────────────────────────

    @rule(who=seats, steps=some, what=st.sampled_from(["amend", "discard", "die", "reopen", "gc"]))
    def upkeep(self, who, steps, what):
        """Do what may come at any time, but not so often as the rest."""
        self._edit(who, steps)
        getattr(self, f"_{what}")(who)

    def _amend(self, who: int) -> None:
        seat, work = self.seats[who], self.seats[who].work
        head = self.heads[work.branch]
        try:
            commit = seat.session.amend("amended")
        except ConflictError:
            assert head != work.base
            return
        assert head == work.base
        self._committed(work.branch, commit, work.content, *self.parents[head])
        seat.work, seat.saved = replace(work, base=commit), None

    def _discard(self, who: int) -> None:
        seat = self.seats[who]
        seat.session.discard()
        seat.work = replace(seat.work, content=self.snapshots[seat.work.base])
        seat.saved = None

    def _die(self, who: int) -> None:
        """Let go of a session, as far as vzarr can tell for ever; and begin another one."""
        seat = self.seats.pop(who)
        branch, saved, session_id = seat.work.branch, seat.saved, seat.session.id
        del seat
        gc.collect()
        if saved is not None:
            self.dead[session_id] = saved
        self._open_session(who, branch)

    def _reopen(self, _: int) -> None:
        """Close the file: all sessions end, and what they saved is there."""
        for who in list(self.seats):
            self._leave(who)
        self.repo.close()
        self.repo = self._open()
        for who in range(SEATS):
            self._open_session(who, "main")

    def _gc(self, _: int) -> None:
        # Of the dead, their checkpoints are kept, and nothing that came later.
        self.dead = {name: Saved(saved.work) for name, saved in self.dead.items()}
        self.repo.expire(older_than=timedelta())
        self.repo.gc()

    # ── what always holds ────────────────────────────────────────────────────────────────────────

    @invariant()
    def sessions_show_their_content(self):
        for seat in self.seats.values():
            assert seat.session.base == seat.work.base
            assert _content(seat.session) == keys_of(seat.work.content)

    @invariant()
    def branches_are_where_they_should_be(self):
        assert dict(self.repo.branches) == self.heads
        for head in set(self.heads.values()):
            assert _content(self.repo.session(head)) == keys_of(self.snapshots[head])
            assert self.repo.show(head).parents == self.parents[head]

    @invariant()
    def sessions_are_listed(self):
        listed = {it.id: it for it in self.repo.sessions() if it.checkpointed}
        assert {it for it in listed if not listed[it].alive} == self.dead.keys()
        for session_id, saved in self.dead.items():
            found = listed[session_id]
            assert (found.branch, found.base) == (saved.work.branch, saved.work.base)


def _content(view: Any) -> dict[str, bytes]:
    return {key: bytes(view.get(key)) for key in view.keys()}  # noqa: SIM118


def test_sessions_equal_their_model():
    thorough = settings(max_examples=60, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(SessionsMachine, settings=thorough)
