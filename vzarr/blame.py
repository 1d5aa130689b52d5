"""Who changed what: ``blame`` for the chunks of an array, ``bisect`` for anything a test can tell.

``blame`` walks the commits from the newest back. At each it holds the chunks that nobody is blamed
for yet, and hands them on to a parent: those that the parent has, too, with the same content. What
no parent has, this commit changed. A commit that left the array alone costs a comparison of two
digests, any other one what it changed. Where a shallow clone has left out the parent's snapshot,
the walk ends, as git's does: what is left was changed at or before that commit.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from vzarr import history
from vzarr.btree import Tree
from vzarr.diff import diff
from vzarr.environment import Environment
from vzarr.errors import AbsentError, InvalidInputError, NotFoundError
from vzarr.format import (
    EMPTY_ENTRY,
    Digest,
    Entry,
    blob_measure,
    decode_coordinates,
    encode_coordinates,
)
from vzarr.hierarchy import Hierarchy
from vzarr.history import Commit
from vzarr.merge import format_region
from vzarr.metadata import ArrayMetadata, Region
from vzarr.objects import Objects, Overlay
from vzarr.progress import Meter, Progress

Coordinates = tuple[int, ...]
_SHOWN_CHUNKS = 4


# ── blame ────────────────────────────────────────────────────────────────────────────────────────


@final
class Blame(Mapping[Coordinates, Commit]):
    """The last commit to change each chunk of an array: chunk coordinates → ``Commit``.

    In row-major order; holds the chunks that are stored, not those that are only fill value. Prints
    as a table, one commit a line with the chunks that it changed.
    """

    __slots__ = ("_array", "_commits", "or_before", "path")

    def __init__(
        self,
        path: str,
        array: ArrayMetadata,
        commits: Mapping[Coordinates, Commit],
        or_before: frozenset[str],
    ) -> None:
        self.path = path
        self.or_before = or_before
        """The ids of commits at which a shallow clone ends: they or earlier ones changed chunks."""
        self._array = array
        self._commits = commits

    def __getitem__(self, coordinates: Coordinates) -> Commit:
        return self._commits[coordinates]

    def __iter__(self) -> Iterator[Coordinates]:
        return iter(self._commits)

    def __len__(self) -> int:
        return len(self._commits)

    def region(self, coordinates: Coordinates) -> Region | None:
        """Give the part of the array that a chunk covers; None if it lies outside of the shape."""
        return self._array.region(coordinates)

    def by_commit(self) -> list[tuple[Commit, list[Coordinates]]]:
        """List the commits, newest first, with the chunks each was the last to change. O(n)."""
        groups: dict[str, tuple[Commit, list[Coordinates]]] = {}
        for coordinates, commit in self._commits.items():
            groups.setdefault(commit.id, (commit, []))[1].append(coordinates)
        return sorted(groups.values(), key=lambda group: group[0].time, reverse=True)

    def __str__(self) -> str:
        if not self._commits:
            return f"{self.path or '/'}: no chunks"
        rows = [
            (f"{self._before(commit)}{commit}", self.spell(chunks))
            for commit, chunks in self.by_commit()
        ]
        width = max(len(commit) for commit, _ in rows)
        return "\n".join(f"{commit:<{width}}  {chunks}" for commit, chunks in rows)

    __repr__ = __str__

    def _before(self, commit: Commit) -> str:
        return "at or before " if commit.id in self.or_before else ""

    def spell(self, chunks: Sequence[Coordinates]) -> str:
        """Tell in a few words which chunks these are: how many, and where. O(n)."""
        count = f"{len(chunks)} chunk{'s' if len(chunks) > 1 else ''}"
        # Where they fill the box around them, one region says it all.
        low, high = (tuple(map(limit, zip(*chunks, strict=True))) for limit in (min, max))
        first, last = self.region(low), self.region(high)
        volume = math.prod(stop + 1 - start for start, stop in zip(low, high, strict=True))
        if volume == len(chunks) and first is not None and last is not None:
            box = tuple(slice(a.start, b.stop) for a, b in zip(first, last, strict=True))
            return f"{count} {format_region(box)}"
        shown = ", ".join(map(str, chunks[:_SHOWN_CHUNKS]))
        return f"{count} {shown}" + (", …" if len(chunks) > _SHOWN_CHUNKS else "")


@dataclass(slots=True)
class _Suspect:
    """A commit that may have changed some chunks, and where the array is in it."""

    path: str
    entry: Entry
    keys: set[bytes] = field(default_factory=set)


def blame(
    objects: Objects,
    head: Digest,
    path: str,
    region: object = None,
    *,
    progress: Progress | None = None,
) -> Blame:
    """Find the last commit to change each chunk of an array; see ``Repository.blame``."""
    return _Blaming(objects, Meter(progress)).run(head, path, region)


@final
class _Blaming:
    """One walk from a commit back to those that changed its array's chunks."""

    def __init__(self, objects: Objects, meter: Meter) -> None:
        self._meter = meter
        self._environment: Environment = objects.environment
        self._objects = objects
        self._overlay = Overlay(objects)
        self._indexes = Tree(self._overlay, blob_measure)
        self._queue: list[tuple[int, Digest]] = []
        # By commit, and where the array is there: a merge may bring it from two paths.
        self._suspects: dict[Digest, dict[str, _Suspect]] = {}
        self._found: dict[bytes, Digest] = {}
        # Commits that are blamed for what a parent may have had, whose snapshot is left out.
        self._oldest: set[Digest] = set()

    def run(self, head: Digest, path: str, region: object) -> Blame:
        tree = self._tree(head)
        entry, node = tree.entry(path), tree.node(path)
        if entry is None or node is None:
            raise NotFoundError(
                f"there is no array {path!r} in commit {head.hex()[:12]}: repo.tree() and "
                "vzarr tree list what is there",
                name=path,
            )
        if node.array is None:
            raise InvalidInputError(f"{path or '/'!r} is a group, and blame is for arrays")
        self._meter.stage("chunks", 0)
        keys = list(self._select(entry, node.array, region))
        # All that is compared lies between these two.
        self._bounds = (keys[0], keys[-1] + b"\0") if keys else (b"", b"")
        self._suspect(head, path, entry, set(keys), None)
        with self._environment.read() as txn:
            # As many at most: it ends where all chunks are known.
            self._meter.stage("commits", txn.count("commits"))
        while self._queue:
            time, commit = heapq.heappop(self._queue)
            for suspect in self._suspects.pop(commit, {}).values():
                self._judge(commit, suspect, -time)
            self._meter.step(1)
        self._meter.end()
        commits = {
            commit: history.describe(commit, history.get(self._environment, commit))
            for commit in set(self._found.values())
        }
        return Blame(
            path,
            node.array,
            {decode_coordinates(key): commits[self._found[key]] for key in keys},
            frozenset(commits[commit].id for commit in self._oldest & commits.keys()),
        )

    def _select(self, entry: Entry, array: ArrayMetadata, region: object) -> Iterator[bytes]:
        """List the keys of the stored chunks that a region touches, in order."""
        if region is None:
            yield from (key for key, _ in self._indexes.scan(entry.index))
            return
        slices = _region(region, array)
        ranges = array.chunks_of(slices)
        if ranges is None:
            raise InvalidInputError("region= needs an array with a regular or rectangular grid")
        if any(part.start == part.stop for part in slices):
            return
        first = encode_coordinates([part[0] for part in ranges])
        last = encode_coordinates([part[-1] for part in ranges])
        for key, _ in self._indexes.scan(entry.index, first, last + b"\0"):
            if all(map(range.__contains__, ranges, decode_coordinates(key))):
                yield key

    def _suspect(
        self, commit: Digest, path: str, entry: Entry, keys: set[bytes], newest: int | None
    ) -> None:
        """Hand chunks on to a commit, beside those that it got from other children."""
        if not keys:
            return
        waiting = self._suspects.get(commit)
        if waiting is None:
            waiting = self._suspects[commit] = {}
            # As in a log: no parent before its child, where a clock had gone backwards.
            time = history.get(self._environment, commit).time
            effective = time if newest is None else min(time, newest)
            heapq.heappush(self._queue, (-effective, commit))
        suspect = waiting.setdefault(path, _Suspect(path, entry))
        if len(suspect.keys) < len(keys):
            suspect.keys, keys = keys, suspect.keys
        suspect.keys |= keys

    def _judge(self, commit: Digest, suspect: _Suspect, time: int) -> None:
        """Hand on to the parents what they have; blame the commit for the rest."""
        rest = suspect.keys
        for parent in history.get(self._environment, commit).parents:
            if not rest:
                return
            try:
                before = self._tree(parent)
            except AbsentError:
                self._oldest.add(commit)
                continue
            path, entry = self._trace(before, commit, suspect)
            # With the first parent only what differs is looked at, and what is passed on is the
            # very same set, so that a commit costs what it changed and not what is pending.
            differing = self._differing(rest, suspect.entry, entry)
            rest.difference_update(differing)
            self._suspect(parent, path, entry, rest, time)
            rest = differing
        for key in rest:
            self._found[key] = commit

    def _differing(self, keys: set[bytes], entry: Entry, before: Entry) -> set[bytes]:
        """Find those of the chunks that are not the same in the two entries."""
        if entry.index == before.index:
            return set()
        changes = self._indexes.diff(before.index, entry.index, *self._bounds)
        return {key for key, _, _ in changes if key in keys}

    def _trace(self, before: Hierarchy, commit: Digest, suspect: _Suspect) -> tuple[str, Entry]:
        """Find the array in a parent's snapshot: at its path, or where it was moved from."""
        entry = before.entry(suspect.path)
        if entry is not None and entry.layout is not None:
            return suspect.path, entry
        after = self._tree(commit)
        for change in diff(self._overlay, before.root, after.root, _open_nothing):
            if change.change == "moved" and change.old_path is not None:
                below = suspect.path.removeprefix(change.path)
                if suspect.path == change.path or below.startswith("/"):
                    path = change.old_path + below
                    return path, before.entry(path) or EMPTY_ENTRY
        return suspect.path, EMPTY_ENTRY

    def _tree(self, commit: Digest) -> Hierarchy:
        root = history.get(self._environment, commit).root
        return Hierarchy(self._overlay, self._objects.load_root(root))


def _open_nothing(_: object, path: str) -> Any:
    raise AssertionError(f"nothing reads values at {path}")


def _region(region: object, array: ArrayMetadata) -> Region:
    """Turn an index as for numpy, of integers, slices and an ellipsis, into one slice an axis."""
    parts = list(region) if isinstance(region, tuple) else [region]
    ndim = len(array.shape)
    if sum(part is Ellipsis for part in parts) == 0:
        parts.append(Ellipsis)
    where = next(number for number, part in enumerate(parts) if part is Ellipsis)
    parts[where : where + 1] = [slice(None)] * (ndim + 1 - len(parts))
    if len(parts) != ndim:
        raise InvalidInputError(f"region= has {len(parts)} axes, and the array has {ndim}")
    return tuple(_slice(part, length) for part, length in zip(parts, array.shape, strict=True))


def _slice(part: object, length: int) -> slice:
    if isinstance(part, slice):
        try:
            start, stop, step = part.indices(length)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"region=: {part!r} is no slice of integers") from error
        if step == 1:
            return slice(start, max(start, stop))
    elif hasattr(part, "__index__"):
        index = part.__index__()
        index += length if index < 0 else 0
        if 0 <= index < length:
            return slice(index, index + 1)
        raise InvalidInputError(f"region=: index {part} is out of bounds for {length}")
    raise InvalidInputError(
        f"region= is of integers and slices with step 1, as for numpy, not {part!r}"
    )


# ── bisect ───────────────────────────────────────────────────────────────────────────────────────


def bisect(
    environment: Environment,
    good: Digest,
    bad: Digest,
    is_good: Callable[[Commit], bool],
    progress: Callable[[Commit, int], object] | None = None,
) -> Commit:
    """Find a first bad commit between a good and a bad one; see ``Repository.bisect``."""
    if good == bad:
        raise InvalidInputError(f"good and bad are the same commit, {good.hex()[:12]}")
    if not history.is_ancestor(environment, good, bad):
        raise InvalidInputError(
            f"the good commit {good.hex()[:12]} is no ancestor of the bad one {bad.hex()[:12]}; "
            "where both are on branches, test their merge base first"
        )
    parents = _between(environment, good, bad)
    while len(parents) > 1:
        # Whatever the answer, about half of what is left is settled.
        reach = _reach(parents)
        half = len(parents) / 2
        distance = {c: abs(reach[c] - half) for c in parents if c != bad}
        middle = min(distance, key=distance.__getitem__)
        commit = history.describe(middle, history.get(environment, middle))
        if progress is not None:
            progress(commit, len(parents))
        before = _ancestors(parents, middle)
        if is_good(commit):
            parents = {c: known for c, known in parents.items() if c not in before}
        else:
            bad, parents = middle, {c: known for c, known in parents.items() if c in before}
    return history.describe(bad, history.get(environment, bad))


_Graph = dict[Digest, tuple[Digest, ...]]


def _between(environment: Environment, good: Digest, bad: Digest) -> _Graph:
    """Give the commits that ``bad`` has and ``good`` has not, parents first, with their parents."""
    known_good = {commit for commit, _ in history.log(environment, good)}
    newest_first = [
        (commit, record.parents)
        for commit, record in history.log(environment, bad)
        if commit not in known_good
    ]
    return dict(reversed(newest_first))


def _reach(parents: _Graph) -> dict[Digest, int]:
    """Count for each commit those that are left at and behind it. O(n), and O(n) for each merge."""
    reach: dict[Digest, int] = {}
    for commit, all_parents in parents.items():
        left = [parent for parent in all_parents if parent in parents]
        if len(left) < 2:
            reach[commit] = 1 + (reach[left[0]] if left else 0)
        else:
            reach[commit] = len(_ancestors(parents, commit))
    return reach


def _ancestors(parents: _Graph, commit: Digest) -> set[Digest]:
    """Find a commit, and those behind it that are left."""
    found: set[Digest] = set()
    waiting = [commit]
    while waiting:
        commit = waiting.pop()
        if commit in parents and commit not in found:
            found.add(commit)
            waiting += parents[commit]
    return found
