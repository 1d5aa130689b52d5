"""Let branches and tags follow those of another repository, all in one txn or none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, final

from vzarr import refs
from vzarr.committing import BranchTakenError, HeadMovedError, Settings
from vzarr.environment import Environment, Txn
from vzarr.errors import AlreadyExistsError, BusyError, NotFastForwardError
from vzarr.format import Digest
from vzarr.history import now
from vzarr.lineage import is_blank
from vzarr.supply import Ref
from vzarr.turns import Turn, is_taken

How = Literal["created", "fast-forward", "forced", "up to date", "kept"]
"""What became of a name."""


@final
@dataclass(frozen=True, slots=True)
class RefUpdate:
    """What a transfer did to one name; prints as a line."""

    kind: Literal["branch", "tag"]
    name: str
    old: str | None
    """The commit before; None where there was no such name."""
    new: str
    how: How
    """``kept``: a tag that has another commit here stays as it is."""

    def __str__(self) -> str:
        old = self.old[:12] if self.old else "(none)"
        if self.how in ("up to date", "kept"):
            return f"{self.kind} {self.name}: {self.how}"
        return f"{self.kind} {self.name}: {old} → {self.new[:12]} ({self.how})"


class _Plan(NamedTuple):
    ref: Ref
    old: Digest | None
    update: RefUpdate


class Brought(Protocol):
    """What has brought the commits that names move to."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is new."""
        ...

    def descends(self, new: Digest, old: Digest) -> bool:
        """Whether a commit, new or known, has another for an ancestor."""
        ...

    def finish(self, move: Callable[[Txn], Any]) -> Any:
        """Make what is new reachable: ``move`` writes the refs, in the same txn. Durable."""
        ...


@final
class Mover:
    """Moves names in this repository to commits that came from elsewhere."""

    def __init__(
        self,
        environment: Environment,
        settings: Settings,
        reception: Brought,
        *,
        force: bool,
        keep_tags: bool,
        keep_ahead: bool = False,
        why: str,
    ) -> None:
        """With ``force``, branches go wherever they are told, and tags too.

        With ``keep_tags``, a tag that exists stays, and is no error. With ``keep_ahead``, a branch
        that descends from where it is to go stays, whenever it came there.
        """
        self._environment = environment
        self._settings = settings
        self._reception = reception
        self._force = force
        self._keep_tags = keep_tags
        self._keep_ahead = keep_ahead
        self._why = why

    def move(
        self,
        wanted: Sequence[Ref],
        tracked: Iterable[tuple[str, Digest]] = (),
        also: Callable[[Txn], None] | None = None,
    ) -> list[RefUpdate]:
        """Move the names, note what is known of branches elsewhere, and end the reception.

        What is to be written ``also`` goes into the same txn.
        Raises ``NotFastForwardError``, ``AlreadyExistsError`` for a tag, and ``BusyError`` while
        somebody has one of the branches for himself; nothing is moved then.
        """
        tracked = list(tracked)
        deadline = time.monotonic() + self._settings.timeout
        with contextlib.ExitStack() as stack:
            turns: dict[str, Turn] = {}
            while True:
                plans = [self._plan(ref) for ref in wanted]
                if also is None and self._has_nothing(plans, tracked):
                    return [plan.update for plan in plans]
                try:
                    self._reception.finish(
                        partial(self._write, plans=plans, turns=turns, tracked=tracked, also=also)
                    )
                except BranchTakenError as taken:
                    (branch,) = taken.args
                    turn = Turn(self._environment, branch)
                    turn.acquire(max(0.0, deadline - time.monotonic()))
                    stack.callback(turn.release)
                    turns[branch] = turn
                except HeadMovedError:
                    if time.monotonic() > deadline:
                        raise BusyError(
                            "a branch moved at every attempt to move it; nothing was moved, try "
                            "again"
                        ) from None
                else:
                    return [plan.update for plan in plans]

    def _has_nothing(self, plans: Sequence[_Plan], tracked: Iterable[tuple[str, Digest]]) -> bool:
        """Whether all is as it should be already."""
        still = all(plan.update.how in ("up to date", "kept") for plan in plans)
        with self._environment.read() as txn:
            return (
                still
                and self._reception.is_empty
                and all(refs.tracked_head(txn, name) == commit for name, commit in tracked)
            )

    def _plan(self, ref: Ref) -> _Plan:
        """Decide what is to become of a name."""
        with self._environment.read() as txn:
            old = _find(txn, ref)
        new = ref.commit
        how: How
        if old is None:
            how = "created"
        elif old == new:
            how = "up to date"
        elif ref.kind == "tag":
            how = "forced" if self._force else "kept"
            if how == "kept" and not self._keep_tags:
                raise AlreadyExistsError(
                    f"tag {ref.name!r} of {self._environment.path} names commit {old.hex()[:12]}, "
                    f"not {new.hex()[:12]}, and tags never move; nothing was moved. Take another "
                    "name, or --force",
                    name=ref.name,
                )
        elif self._keep_ahead and self._reception.descends(old, new):
            new, how = old, "up to date"
        elif self._reception.descends(new, old) or is_blank(self._environment, old):
            how = "fast-forward"
        elif self._force:
            how = "forced"
        else:
            raise NotFastForwardError(
                f"branch {ref.name!r} of {self._environment.path} is at {old.hex()[:12]}, which "
                f"{new.hex()[:12]} does not descend from; nothing was moved. Pull first, which "
                "merges both, or use --force to drop the commits that only this branch has",
                branch=ref.name,
            )
        kind: Literal["branch", "tag"] = "branch" if ref.kind == "branch" else "tag"
        update = RefUpdate(kind, ref.name, old.hex() if old else None, new.hex(), how)
        return _Plan(ref, old, update)

    def _write(
        self,
        txn: Txn,
        *,
        plans: Sequence[_Plan],
        turns: dict[str, Turn],
        tracked: Iterable[tuple[str, Digest]],
        also: Callable[[Txn], None] | None,
    ) -> None:
        author, moment = self._settings.author(), now()
        for plan in plans:
            ref, how = plan.ref, plan.update.how
            if _find(txn, ref) != plan.old:
                raise HeadMovedError
            if how in ("up to date", "kept"):
                continue
            if ref.kind == "tag":
                assert ref.tag is not None, "a tag has a record"
                if plan.old is not None:
                    refs.delete_tag(txn, ref.name)
                refs.create_tag(txn, ref.name, ref.tag)
                continue
            if ref.name not in turns and is_taken(self._environment, ref.name):
                raise BranchTakenError(ref.name)
            why = f"{self._why} ({how})" if how == "forced" else self._why
            if plan.old is None:
                refs.create_branch(txn, ref.name, ref.commit, author, moment, why)
            else:
                refs.move_branch(txn, ref.name, plan.old, ref.commit, author, moment, why)
        for name, commit in tracked:
            refs.track(txn, name, commit, author, moment, self._why)
        if also is not None:
            also(txn)


def _find(txn: Txn, ref: Ref) -> Digest | None:
    if ref.kind == "branch":
        return refs.find_head(txn, ref.name)
    record = refs.find_tag(txn, ref.name)
    return None if record is None else record.commit
