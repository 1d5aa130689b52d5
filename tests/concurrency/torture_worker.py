"""One worker of the torture test: what it knows and how it commits; what it does is in the actions.

Whatever it commits says in its metadata how to do it again. After each commit it notes in a log of
its own that the commit was acknowledged, before it begins anything else; so of a worker that was
killed, one commit at most is in the file and not in the log.
"""

from __future__ import annotations

import json
import os
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vzarr
from tests.concurrency import torture_operations as do
from tests.concurrency.torture_operations import Operation
from vzarr.errors import ConflictError
from vzarr.session import Session

# So many of the commits are begun with a knife at the throat.
_AIMED = 0.015
# Where two edits of one slot may meet; everything else has one writer, or is done again by run().
_SHARED = ("contested", "grid", "own", "bulk/")


class Log:
    """What a worker says of itself; a line is whole or not there, whenever the worker is killed."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, **facts: Any) -> None:
        os.write(self._descriptor, f"{json.dumps({'kind': kind, **facts})}\n".encode())

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass(frozen=True)
class Fate:
    """How a worker ends, if it does not end well."""

    die: Callable[[Session], None]
    """Die now, with a session open; or end the session as if so."""
    aim: Callable[[float], None] = lambda _: None
    """Be killed after so many seconds, whatever goes on then."""


@dataclass
class Draft:
    """A session with edits, and how a replay makes them."""

    session: Session
    operations: list[Operation]
    who: Mapping[str, int]
    """Worker and sequence, of which there is to be one commit at most, whoever makes it."""
    steps: list[tuple[str, str]] = field(default_factory=list)
    resumed: bool = False


@dataclass
class Reader:
    """A session that must go on to show what it showed first."""

    session: Session
    digest: str


class Worker:
    """A writer with sessions of its own, and the operations that it may choose from."""

    def __init__(
        self,
        repo: vzarr.Repository,
        log: Log,
        fate: Fate,
        *,
        name: int,
        slot: int,
        slots: int,
        seed: int,
    ) -> None:
        self.repo, self.log, self.fate = repo, log, fate
        self.name, self.slot, self.slots = name, slot, slots
        self.chance = random.Random(f"{seed}-{name}")
        self.readers: list[Reader] = []
        self.drafts: list[Draft] = []
        self.attributes: list[str] = []
        self.tags: list[str] = []
        # Commits on main that can be named: all, and those that only wrote elements.
        self.commits: deque[str] = deque(maxlen=20)
        self.writes: deque[str] = deque(maxlen=10)
        self._sequence = self._number = 0

    # ── notes ────────────────────────────────────────────────────────────────────────────────────

    def note(self, how: str, operations: Sequence[Operation] = (), **facts: Any) -> dict[str, Any]:
        """Make the metadata of a commit, of which a ``Replay`` makes its state."""
        encoded = [operation.encode() for operation in operations]
        return {**self.who(), "how": how, "operations": encoded, **facts}

    def who(self) -> dict[str, int]:
        """Give what names the next piece of work."""
        if self.chance.random() < _AIMED:
            # Within the time that it takes, more or less.
            self.fate.aim(self.chance.uniform(0.0001, 0.05))
        self._sequence += 1
        return {"worker": self.name, "sequence": self._sequence}

    def acknowledge(self, commit: str, branch: str, note: Mapping[str, Any]) -> bool:
        """Note that a commit is made; False if there was nothing to commit after all."""
        found = self.repo.show(commit).metadata
        if any(found.get(name) != note[name] for name in ("worker", "sequence")):
            return False
        worker, sequence = note["worker"], note["sequence"]
        self.log.note("commit", id=commit, branch=branch, worker=worker, sequence=sequence)
        assert found == note
        if branch == "main":
            self.commits.append(commit)
        return True

    def expect(self, error: ConflictError) -> None:
        """Check that what conflicts is something that two may write; nothing else ever should."""
        places = {conflict.path for conflict in error.conflicts}
        assert places, error
        assert all(place.startswith(_SHARED) for place in places), error
        self.log.note("conflict", times=1)

    # ── operations at random ─────────────────────────────────────────────────────────────────────

    def value(self) -> int:
        """Give a number that nobody else gives, and that none becomes by adding ones."""
        self._number += 1
        return (self.name + 10) * 10**9 + self._number * 1000

    def grid(self) -> Operation:
        height, width = do.GRID
        top, bottom = sorted(self.chance.sample(range(height + 1), 2))
        # So many columns that some of the elements are ours.
        left = self.chance.randint(0, width - self.slots)
        box = [top, bottom, left, self.chance.randint(left + self.slots, width)]
        return do.WriteGrid(self.slot, self.slots, box, self.value())

    def own(self) -> Operation:
        return do.WriteOwn(self.slot, self.value())

    def contested(self, *, zero: bool = False) -> Operation:
        start = self.chance.randrange(do.CONTESTED - 1)
        stop = min(do.CONTESTED, start + self.chance.randint(1, 8))
        value = 0 if zero and self.chance.random() < 0.2 else self.value()
        return do.WriteContested(start, stop, value)

    def attribute(self) -> do.SetAttribute:
        return do.SetAttribute(f"w{self.name}-{self.value()}", {"by": [self.name, self._number]})

    def array(self) -> Operation:
        path = f"nodes/{self.slot}/a{self.value()}"
        return do.CreateArray(path, self.chance.randint(1, 12), self._number)

    def edits(self) -> list[Operation]:
        """Choose some edits that can be merged with those of others."""
        makers: list[Callable[[], Operation]] = [
            self.grid,
            self.grid,
            self.own,
            lambda: do.WriteBulk(self.slot, self.value()),
            lambda: self.contested(zero=True),
            lambda: self.contested(zero=True),
            self.attribute,
            self.array,
        ]
        return [make() for make in self.chance.sample(makers, self.chance.randint(1, 3))]

    def side(self) -> str:
        return self.chance.choice(["fail", "ours", "theirs"])

    # ── commits ──────────────────────────────────────────────────────────────────────────────────

    def run(self, *operations: Operation, **options: Any) -> str:
        """Commit operations on main, again and again until nobody comes in between."""
        note = self.note("apply", operations)
        attempts = []

        def attempt(store: Any) -> None:
            attempts.append(store)
            perform(operations, store)

        commit, _ = self.repo.run(
            attempt, "main", type(operations[0]).__name__, metadata=note, retries=10_000, **options
        )
        if len(attempts) > 1:
            self.log.note("conflict", times=len(attempts) - 1)
        assert self.acknowledge(commit, "main", note), "each of these changes something"
        return commit

    def commit_on(self, branch: str, operations: Sequence[Operation]) -> str:
        """Commit to a branch of our own; give the id, or nothing if there was nothing to commit."""
        note = self.note("apply", operations)
        with self.repo.transaction(branch, "on a branch", metadata=note) as store:
            perform(operations, store)
        commit: str = store.session.base
        return commit if self.acknowledge(commit, branch, note) else ""


def perform(operations: Sequence[Operation], store: Any) -> None:
    for operation in operations:
        operation.perform(store)
