"""One walk of a check: from what has names through all commits, newest first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import final

from vzarr.evidence import MISSING, Loader, LostError, Source, Values
from vzarr.findings import Kind, Place, Problem, cost_of, listed, reach
from vzarr.format import CommitRecord, commit_digest, decode_commit
from vzarr.inspection import Inspection
from vzarr.origins import Names, Origins, missing_values

_MAX_SIGHTINGS = 10_000
_SHORT = 12


@final
@dataclass(slots=True)
class Sighting:
    """Which commits show a place of damage; ``newest`` is None if only a session's work does."""

    newest: bytes | None
    commits: int = 0
    named: int = 0
    branches: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    session: str = ""


@final
class Walk:
    """One walk from the refs over everything that is reachable, and what was wrong on the way."""

    def __init__(
        self,
        source: Source,
        origins: Origins,
        values: Values,
        *,
        whole: bool,
        step: Callable[[int], None],
    ) -> None:
        self.origins = origins
        self.loader = Loader(source)
        self.inspection = Inspection(self.loader, values, whole=whole, step=step)
        self._values = values
        self._step = step
        self.commits: set[bytes] = set()
        self.lost: dict[bytes, tuple[str, bytes | None]] = {}
        """Commits that cannot be had: why, and a commit that has it for a parent."""
        self.sightings: dict[Place, Sighting] = {}
        self.missing: dict[str, list[bytes]] = {}
        """What sessions lack of what they put into the file."""
        self._untold: set[int] = set()

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong, as far as is known."""
        return not (self.lost or self.sightings or self.missing)

    @property
    def omitted(self) -> int:
        """How many places of damage are not told of, because there are so many."""
        return len(self._untold) + self.inspection.omitted

    def problems(self) -> list[Problem]:
        """Put what was found into words."""
        lost = [
            _lost_commit(commit, why, child, self.origins.heads.get(commit, Names()))
            for commit, (why, child) in self.lost.items()
        ]
        places = [_problem(place, seen) for place, seen in self.sightings.items()]
        missing = [missing_values(name, len(digests)) for name, digests in self.missing.items()]
        return [*self.origins.problems, *lost, *places, *missing]

    def reached(self) -> dict[str, AbstractSet[bytes]]:
        """Give the digests of all objects that were reached, by database."""
        chunks = self._values.seen.keys()
        return {"commits": self.commits, "nodes": self.inspection.reached(), "chunks": chunks}

    def run(self, origins: Origins) -> None:
        """Look at all that these refs reach and that was not reached before."""
        # What branches and tags show comes first, so that it is told of them.
        lasting = [head for head, names in origins.heads.items() if names.lasting]
        self._history(lasting, origins.heads)
        self._history(origins.heads, origins.heads)
        for root, session in origins.snapshots.items():
            for place in self.inspection.snapshot(root):
                self._sighting(place, None).session = session
        for session, digests in origins.staged.items():
            if missing := self._values.note(digests):
                self.missing[session] = missing
        self._values.settle()

    def _history(self, starts: Iterable[bytes], heads: Mapping[bytes, Names]) -> None:
        """Look at commits, newest first, none before one of its children."""
        queue: list[tuple[int, bytes, CommitRecord]] = []

        def push(commit: bytes, newest: int | None, child: bytes | None) -> None:
            if commit in self.lost and self.lost[commit][1] is None:
                self.lost[commit] = self.lost[commit][0], child
            if commit in self.commits:
                return
            self.commits.add(commit)
            try:
                record = self.loader.load("commits", commit, commit_digest, decode_commit)
            except LostError as error:
                self.lost[commit] = str(error), child
            else:
                # A clock may have gone backwards: a parent is no newer than its child.
                moment = record.time if newest is None else min(record.time, newest)
                heapq.heappush(queue, (-moment, commit, record))

        for start in starts:
            push(start, None, None)
        while queue:
            moment, commit, record = heapq.heappop(queue)
            self._see(commit, record.root, heads.get(commit))
            for parent in record.parents:
                push(parent, -moment, commit)

    def _see(self, commit: bytes, root: bytes, names: Names | None) -> None:
        self._step(1)
        for place in self.inspection.snapshot(root):
            sighting = self._sighting(place, commit)
            sighting.commits += 1
            if names is not None and names.lasting:
                sighting.named += 1
                sighting.branches += names.branches
                sighting.tags += names.tags

    def _sighting(self, place: Place, commit: bytes | None) -> Sighting:
        sighting = self.sightings.get(place)
        if sighting is None:
            sighting = Sighting(commit)
            if len(self.sightings) < _MAX_SIGHTINGS:
                self.sightings[place] = sighting
            else:
                self._untold.add(hash(place))
        return sighting

    def still_needed(self, now: Origins) -> bool:
        """Whether all that this walk began from is still reachable from the refs."""
        if not self.origins.snapshots.keys() <= now.snapshots.keys():
            return False
        if not self.missing.keys() <= now.staged.keys():
            return False
        gone = self.origins.heads.keys() - now.heads.keys()
        waiting, seen = list(now.heads), set(now.heads)
        while gone and waiting:
            try:
                record = self.loader.load("commits", waiting.pop(), commit_digest, decode_commit)
            except LostError:
                continue
            fresh = set(record.parents) - seen
            waiting += fresh
            seen |= fresh
            gone -= fresh
        return not gone


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def _problem(place: Place, seen: Sighting) -> Problem:
    branches, tags = tuple(seen.branches), tuple(seen.tags)
    commit = None if seen.newest is None else seen.newest.hex()
    if commit is None:
        where = f"in the uncommitted work of session {seen.session}"
    else:
        where = reach(branches, tags, commit, seen.named, seen.commits)
    return Problem(
        kind=place.kind,
        message=f"{place.path or '/'}: {place.message}",
        cost=cost_of(place, where),
        path=place.path,
        document=place.document,
        coordinates=place.coordinates,
        region=place.region,
        commit=commit,
        branches=branches,
        tags=tags,
        commits=seen.commits,
    )


def _lost_commit(commit: bytes, why: str, child: bytes | None, names: Names) -> Problem:
    """Tell of a commit that cannot be had; where it is missing, by the name that refers to it."""
    name = f"commit {commit.hex()[:_SHORT]}"
    costs = [f"branch {branch} cannot be read" for branch in names.branches]
    costs += [f"tag {tag} cannot be read" for tag in names.tags]
    earlier = sorted(set(names.reflogs) - set(names.branches))
    costs += [f"branch {branch} cannot be put back to it" for branch in earlier]
    costs += [f"session {session} cannot commit" for session in names.sessions]
    kind: Kind = "commit"
    if child is not None:
        younger = child.hex()[:_SHORT]
        costs.insert(0, f"neither it nor what came before it can be read from {younger}")
        name += f", a parent of {younger}"
    elif why == MISSING:
        kinds: list[tuple[Kind, list[str]]] = [
            ("branch", names.branches),
            ("tag", names.tags),
            ("reflog", names.reflogs),
            ("session", names.sessions),
        ]
        kind, whose = next((kind, found) for kind, found in kinds if found)
        name = f"{kind} {listed(whose)} refers to {name}"
    return Problem(
        kind=kind,
        message=f"{name}: {why}",
        cost=listed(costs),
        commit=commit.hex(),
        branches=tuple(names.branches),
        tags=tuple(names.tags),
        commits=1,
    )
