"""Who reaches what: one walk over all commits, trees and values that refs reach.

Each object gets two marks: the one commit that reaches it, or that several do; and the set of
branches and tags that do. Commits with the largest sets come first, so that a node is seldom looked
at again for a name more. Nodes are kept in a dictionary; values, of which there are thirty times as
many, in arrays of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from vzarr import absence, refs
from vzarr.environment import Txn
from vzarr.errors import CorruptError
from vzarr.format import (
    BLOB_BYTES,
    DIGEST_BYTES,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    TreeRef,
    commit_digest,
    decode_commit,
    decode_entry,
    decode_name,
    encode_blob,
    entry_digest,
    node_digest,
)
from vzarr.hierarchy import join
from vzarr.node import decode_node
from vzarr.progress import Meter

SHARED = -1
"""Stands for several commits."""
NO_ARRAY = -1
"""Stands for none: of a document or file."""
# So many references to values are gathered before those that come twice are dropped.
_GATHERED = 1 << 20
_VALUE = np.dtype([("prefix", ">u8"), ("rest", "V24"), ("length", "<u4")])
_ROW = np.dtype(
    [("prefix", "u8"), ("length", "u4"), ("commit", "i4"), ("names", "i4"), ("array", "i4")]
)
Rows = NDArray[Any]


# ── commits ─────────────────────────────────────────────────────────────────────────────────────


@final
class Graph:
    """The commits that refs reach, and which of them do."""

    def __init__(self, txn: Txn, path: str, first: Digest, meter: Meter) -> None:
        self.names: list[tuple[str, Literal["branch", "tag"]]] = []
        self.commits: dict[Digest, CommitRecord] = {}
        self.sizes: dict[Digest, int] = {}
        self.masks: dict[Digest, int] = {}
        """A bit for each of the names."""
        self._txn = txn
        self._path = path
        self._meter = meter
        heads: list[tuple[Digest, int]] = []
        for name, commit in refs.branches(txn):
            heads.append((commit, 1 << len(self.names)))
            self.names.append((name, "branch"))
        for tag in refs.tags(txn):
            heads.append((Digest(bytes.fromhex(tag.commit)), 1 << len(self.names)))
            self.names.append((tag.name, "tag"))
        self._read([commit for commit, _ in heads] + [first])
        for name, _, _ in list(refs.reflogs(txn)):
            for _, move in refs.moves(txn, name):
                known = (commit for commit in (move.old, move.new) if commit is not None)
                self._read([one for one in known if txn.contains("commits", one)])
        self._mark(heads)
        self.first = first
        self.lost_bytes = 0
        if txn.count("commits") > len(self.commits):
            self.lost_bytes = sum(
                len(data) for key, data in txn.scan("commits") if key not in self.commits
            )

    def _read(self, waiting: list[Digest]) -> None:
        while waiting:
            commit = waiting.pop()
            if commit in self.commits:
                continue
            data = _get(self._txn, "commits", commit, self._path)
            if commit_digest(data) != commit:
                raise _corrupt("commit", commit, self._path)
            self.commits[commit] = record = decode_commit(data)
            self.sizes[commit] = len(data)
            self._meter.step(1)
            waiting += record.parents

    def _mark(self, heads: Sequence[tuple[Digest, int]]) -> None:
        """Hand names on from children to parents. O(commits · names / 64)."""
        children = dict.fromkeys(self.commits, 0)
        for record in self.commits.values():
            for parent in record.parents:
                children[parent] += 1
        self.masks = dict.fromkeys(self.commits, 0)
        for commit, bit in heads:
            self.masks[commit] |= bit
        ready = [commit for commit, number in children.items() if not number]
        while ready:
            commit = ready.pop()
            for parent in self.commits[commit].parents:
                self.masks[parent] |= self.masks[commit]
                children[parent] -= 1
                if not children[parent]:
                    ready.append(parent)

    def order(self) -> list[Digest]:
        """Put first what shows how arrays are called now, then what the most names reach."""
        rest = sorted(
            self.commits,
            key=lambda one: (-self.masks[one].bit_count(), -self.commits[one].time),
        )
        return [self.first, *(commit for commit in rest if commit != self.first)]


# ── objects ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Mark:
    """Who reaches a node."""

    size: int
    commit: int
    names: int


@final
class Walk:
    """One walk over all objects that are reachable."""

    def __init__(self, txn: Txn, path: str, meter: Meter) -> None:
        self.nodes: dict[bytes, Mark] = {}
        self.arrays: dict[str, int] = {}
        """Numbers of paths, in the order in which they were met."""
        self.values = Values()
        self._txn = txn
        self._path = path
        self._meter = meter
        self._left_out = frozenset(absence.noted(txn))
        self._commit = self._names = 0
        self.number: dict[Digest, int] = {}

    def run(self, graph: Graph) -> None:
        """Look at all commits. O(distinct nodes), each twice at most but for diverged branches."""
        for number, commit in enumerate(graph.order()):
            self.number[commit] = self._commit = number
            self._names = graph.masks[commit]
            self._root(graph.commits[commit].root)

    def _visit(self, digest: bytes, size: int) -> bool:
        """Mark a node as reached by this commit; tell whether those below need a look."""
        mark = self.nodes.get(digest)
        if mark is None:
            self.nodes[digest] = Mark(size, self._commit, self._names)
            self._meter.step(1)
            return True
        commit = mark.commit if mark.commit == self._commit else SHARED
        names = mark.names | self._names
        if (commit, names) == (mark.commit, mark.names):
            return False
        mark.commit, mark.names = commit, names
        return True

    def _unchanged(self, digest: bytes) -> bool:
        """Whether this commit adds nothing to what is known of a node: then it is not read."""
        mark = self.nodes.get(digest)
        return (
            mark is not None
            and mark.commit in (SHARED, self._commit)
            and not self._names & ~mark.names
        )

    def _root(self, digest: bytes) -> None:
        if self._unchanged(digest) or digest in self._left_out:
            return
        data = _get(self._txn, "nodes", digest, self._path)
        if entry_digest(data) != digest:
            raise _corrupt("the root of a snapshot", digest, self._path)
        if self._visit(digest, len(data)):
            self._entry("", decode_entry(data))

    def _entry(self, path: str, entry: Entry) -> None:
        own: list[Blob] = list(entry.documents.values())
        if entry.file is not None:
            own.append(entry.file)
        if own:
            self._note(b"".join(map(encode_blob, own)), NO_ARRAY)
        if entry.index is not None:
            self._index(entry.index.digest, self.arrays.setdefault(path, len(self.arrays)))
        if entry.directory is not None:
            self._directory(path, entry.directory)

    def _index(self, digest: bytes, array: int) -> None:
        waiting = [digest]
        while waiting:
            node = self._node(waiting.pop())
            if node is None:
                continue
            level, _, values = node
            if level:
                waiting += [value[:DIGEST_BYTES] for value in values]
                continue
            if set(map(len, values)) != {BLOB_BYTES}:
                raise _corrupt("index node", digest, self._path)
            self._note(b"".join(values), array)

    def _directory(self, path: str, tree: TreeRef) -> None:
        waiting = [tree.digest]
        while waiting:
            node = self._node(waiting.pop())
            if node is None:
                continue
            level, keys, values = node
            if level:
                waiting += [value[:DIGEST_BYTES] for value in values]
                continue
            for key, value in zip(keys, values, strict=True):
                self._entry(join(path, decode_name(key)), decode_entry(value))

    def _node(self, digest: bytes) -> tuple[int, list[bytes], list[bytes]] | None:
        if self._unchanged(digest) or digest in self._left_out:
            return None
        data = _get(self._txn, "nodes", digest, self._path)
        if node_digest(data) != digest:
            raise _corrupt("index node", digest, self._path)
        if not self._visit(digest, len(data)):
            return None
        node = decode_node(data)
        return node.level, node.keys, node.values

    def _note(self, values: bytes, array: int) -> None:
        self.values.add(values, self._commit, self._names, array)


@final
class Values:
    """References to values with the marks of those who have them: 24 bytes each.

    As in ``marking``, 64 bits of a digest stand for all of it.
    """

    def __init__(self) -> None:
        self.sets: list[int] = []
        """Sets of names, by their number in a row."""
        self._numbers: dict[int, int] = {}
        self._gathered: list[tuple[bytes, int, int, int]] = []
        self._count = 0
        self._rows: Rows = np.empty(0, _ROW)

    def set_number(self, names: int) -> int:
        """Give the number of a set of names."""
        number = self._numbers.setdefault(names, len(self.sets))
        if number == len(self.sets):
            self.sets.append(names)
        return number

    def add(self, values: bytes, commit: int, names: int, array: int) -> None:
        """Note references that are encoded back to back."""
        self._gathered.append((values, commit, self.set_number(names), array))
        self._count += len(values) // BLOB_BYTES
        if self._count > max(_GATHERED, len(self._rows)):
            self.distinct()

    def distinct(self) -> Rows:
        """Give one row for each value, sorted, with what is true of all its references."""
        if not self._gathered:
            return self._rows
        rows = np.concatenate([self._rows, self._gather()])
        # Stable, so that the array that was met first keeps a value.
        rows = rows[np.argsort(rows["prefix"], kind="stable")]
        begins = np.flatnonzero(np.r_[True, rows["prefix"][1:] != rows["prefix"][:-1]])
        kept = rows[begins].copy()
        lowest = np.minimum.reduceat(rows["commit"], begins)
        highest = np.maximum.reduceat(rows["commit"], begins)
        kept["commit"] = np.where(lowest == highest, lowest, SHARED)
        kept["names"] = self._unions(rows["names"], begins)
        self._rows = kept
        return kept

    def _gather(self) -> Rows:
        found = np.frombuffer(b"".join([values for values, *_ in self._gathered]), _VALUE)
        counts = [len(values) // BLOB_BYTES for values, *_ in self._gathered]
        marks = np.repeat(np.array([marks for _, *marks in self._gathered], "i4"), counts, axis=0)
        self._gathered, self._count = [], 0
        rows = np.empty(len(found), _ROW)
        rows["prefix"], rows["length"] = found["prefix"], found["length"]
        rows["commit"], rows["names"], rows["array"] = marks.T
        return rows

    def _unions(self, numbers: NDArray[Any], begins: NDArray[Any]) -> NDArray[Any]:
        """Unite the sets of names of each group of rows, given by their numbers."""
        groups = np.zeros(len(numbers), np.int64)
        groups[begins[1:]] = 1
        # Each set once a group: of these there are few, whatever the number of rows.
        pairs = np.sort(np.cumsum(groups) << 32 | numbers)
        pairs = pairs[np.r_[True, pairs[1:] != pairs[:-1]]]
        groups, numbers = pairs >> 32, pairs & 0xFFFFFFFF
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        lengths = np.diff(np.r_[starts, len(pairs)])
        united = numbers[starts]
        for place in range(1, int(lengths.max())):
            more = np.flatnonzero(lengths > place)
            both = united[more] << 32 | numbers[starts[more] + place]
            distinct, where = np.unique(both, return_inverse=True)
            sets = [self.sets[one >> 32] | self.sets[one & 0xFFFFFFFF] for one in distinct.tolist()]
            united[more] = np.array([self.set_number(names) for names in sets])[where]
        return united


def _get(txn: Txn, database: str, digest: bytes, path: str) -> bytes:
    data = txn.get(database, digest)
    if data is None:
        raise CorruptError(
            f"{digest.hex()[:12]} is missing from the {database} of {path}: run a check", path=path
        )
    return data


def _corrupt(what: str, digest: bytes, path: str) -> CorruptError:
    return CorruptError(f"{what} {digest.hex()[:12]} of {path} is damaged: run a check", path=path)
