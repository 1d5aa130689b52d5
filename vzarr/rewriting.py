"""A history without some of its data: what becomes of each snapshot and of each commit.

Snapshots first, and then the commits in the order of their ancestry, since a commit's id rests on
those of its parents. What is to be erased may have been moved: it is followed from each commit to
its parents and children, wherever one of them has it under another name and unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

from vzarr import refs
from vzarr.diff import diff
from vzarr.environment import Txn
from vzarr.erasure import Eraser
from vzarr.errors import CorruptError, NotFoundError
from vzarr.format import (
    CommitRecord,
    Digest,
    Entry,
    commit_digest,
    decode_commit,
    encode_commit,
)
from vzarr.hierarchy import Hierarchy
from vzarr.objects import Objects, root_digest
from vzarr.progress import Progress

_SPILL_EVERY = 32


@final
@dataclass(slots=True)
class Plan:
    """A history, and what becomes of it."""

    commits: dict[Digest, CommitRecord]
    """All of the file, parents first."""
    reachable: set[Digest]
    """Those that a branch, a tag or a reflog has."""
    paths: set[str] = field(default_factory=set)
    changed: int = 0
    entries: dict[Digest, Entry] = field(default_factory=dict)
    """By the id of a snapshot, the root of what is to be in its place."""
    ids: dict[Digest, Digest] = field(default_factory=dict)
    records: dict[Digest, CommitRecord] = field(default_factory=dict)
    """Of the commits to be written anew: new ids by old ones, and by these the new records."""


@final
class Planner:
    """Makes plans; a second one, when others have committed since, costs what is new."""

    def __init__(
        self,
        objects: Objects,
        eraser: Eraser,
        path: str,
        *,
        everywhere: bool,
        spill: Callable[[], None],
        progress: Progress | None,
    ) -> None:
        """``spill`` is called now and then: it may write the nodes of ``fresh``, and empty it."""
        self._objects = objects
        self._environment = objects.environment
        self._eraser = eraser
        self._path = path
        self._everywhere = everywhere
        self._spill = spill
        self._progress = progress
        self.seen = -1
        """The newest txn that the last plan knows of."""
        self.fresh: list[Entry] = []
        """New snapshots of which nothing is in the file."""
        self._erased: dict[tuple[Digest, frozenset[str]], Entry] = {}
        self._moves: dict[tuple[Digest, Digest], list[tuple[str, str]]] = {}

    def plan(self) -> Plan:
        """Find what is to become of each commit. What an earlier plan found is not done again."""
        with self._environment.read() as txn:
            # The environment would tell of a commit just before txns begin to see it.
            self.seen = txn.id
            commits = _commits(txn, self._environment.path)
            plan = Plan(commits, _reachable(txn, commits))
        paths = self._follow(plan)
        if not paths:
            raise NotFoundError(
                f"no commit has a group, array or file {self._path!r}", name=self._path
            )
        plan.paths = set().union(*paths.values())
        self._erase(plan, paths)
        if self._everywhere:
            plan.entries = {
                root: self._eraser.cleanse(entry) for root, entry in plan.entries.items()
            }
            self.fresh += plan.entries.values()
        self._rewrite(plan)
        return plan

    def _erase(self, plan: Plan, paths: Mapping[Digest, set[str]]) -> None:
        """Make the snapshots without the data, one for each that there is."""
        roots = dict.fromkeys(record.root for record in plan.commits.values())
        for number, root in enumerate(roots):
            places = frozenset(paths.get(root, ()))
            entry = self._erased.get((root, places))
            if entry is None:
                entry = self._objects.load_root(root)
                for path in sorted(places):
                    entry = self._eraser.erase(entry, path)
                self._erased[root, places] = entry
                self.fresh.append(entry)
            plan.entries[root] = entry
            if self._progress is not None:
                self._progress(number + 1, len(roots), "rewriting snapshots")
            if number % _SPILL_EVERY == 0:
                self._spill()

    def _rewrite(self, plan: Plan) -> None:
        """Make the commits anew that have another snapshot now, or another parent."""
        roots = {root: root_digest(entry) for root, entry in plan.entries.items()}
        for commit, record in plan.commits.items():
            parents = tuple(plan.ids.get(parent, parent) for parent in record.parents)
            root = roots[record.root]
            plan.changed += root != record.root and commit in plan.reachable
            if (parents, root) != (record.parents, record.root):
                new = replace(record, parents=parents, root=root)
                plan.ids[commit] = commit_digest(encode_commit(new))
                plan.records[commit] = new

    def _follow(self, plan: Plan) -> dict[Digest, set[str]]:
        """Find in each snapshot the paths of what is to be erased, which may have been moved."""
        neighbours: dict[Digest, set[tuple[Digest, bool]]] = {}
        for record in plan.commits.values():
            around = neighbours.setdefault(record.root, set())
            for parent in record.parents:
                before = plan.commits[parent].root
                if before != record.root:
                    around.add((before, False))
                    neighbours[before].add((record.root, True))
        found = {root: {self._path} for root in neighbours if self._has(root, self._path)}
        waiting = [(root, self._path) for root in found]
        while waiting:
            root, path = waiting.pop()
            for other, is_after in neighbours[root]:
                there = self._counterpart(root, path, other, is_after=is_after)
                if there is not None and there not in found.setdefault(other, set()):
                    found[other].add(there)
                    waiting.append((other, there))
        return {root: paths for root, paths in found.items() if paths}

    def _has(self, root: Digest, path: str) -> bool:
        return Hierarchy(self._objects, self._objects.load_root(root)).entry(path) is not None

    def _counterpart(self, root: Digest, path: str, other: Digest, *, is_after: bool) -> str | None:
        """Find what was at a path in the commit before or after: there, or where it was moved."""
        if self._has(other, path):
            return path
        old, new = (root, other) if is_after else (other, root)
        for source, destination in self._moved(old, new):
            here, there = (source, destination) if is_after else (destination, source)
            below = path.removeprefix(here)
            if path == here or (path.startswith(here) and below.startswith("/")):
                return there + below
        return None

    def _moved(self, old: Digest, new: Digest) -> list[tuple[str, str]]:
        """List what was moved from one snapshot to the next, from where and whereto."""
        if (old, new) not in self._moves:
            before, after = self._objects.load_root(old), self._objects.load_root(new)
            self._moves[old, new] = [
                (change.old_path, change.path)
                for change in diff(self._eraser.overlay, before, after, _open_nothing)
                if change.old_path is not None
            ]
        return self._moves[old, new]


# ── the graph ────────────────────────────────────────────────────────────────────────────────────


def _commits(txn: Txn, path: str) -> dict[Digest, CommitRecord]:
    """Read all commits of the file, parents first. O(commits)."""
    found: dict[Digest, CommitRecord] = {}
    for key, data in txn.scan("commits"):
        if commit_digest(data) != key:
            raise CorruptError(f"commit {key.hex()[:12]} of {path} is damaged", path=path)
        found[Digest(key)] = decode_commit(data)
    order: dict[Digest, CommitRecord] = {}
    for start in found:
        waiting = [start]
        while waiting:
            commit = waiting[-1]
            record = found.get(commit)
            if record is None:
                raise CorruptError(f"commit {commit.hex()[:12]} of {path} is missing", path=path)
            before = [parent for parent in record.parents if parent not in order]
            if before and commit not in order:
                waiting += before
            else:
                order[commit] = record
                waiting.pop()
    return order


def _reachable(txn: Txn, commits: Mapping[Digest, CommitRecord]) -> set[Digest]:
    """Find the commits that branches, tags and reflogs have."""
    waiting: list[Digest] = [head for _, head in refs.branches(txn)]
    waiting += [Digest(bytes.fromhex(tag.commit)) for tag in refs.tags(txn)]
    for name, _, _ in list(refs.reflogs(txn)):
        for _, move in refs.moves(txn, name):
            waiting += [commit for commit in (move.old, move.new) if commit and commit in commits]
    found: set[Digest] = set()
    while waiting:
        commit = waiting.pop()
        if commit not in found:
            found.add(commit)
            waiting += commits[commit].parents
    return found


def _open_nothing(_: object, path: str) -> Any:
    raise AssertionError(f"nothing reads values at {path}")
