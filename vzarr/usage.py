"""How many bytes a file holds, and on whose account: branches, tags, commits, arrays."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Literal, final

import numpy as np

from vzarr.census import SHARED, Graph, Rows, Walk
from vzarr.environment import Txn
from vzarr.errors import InvalidInputError, NotFoundError
from vzarr.format import (
    Digest,
    from_microseconds,
)
from vzarr.hierarchy import Hierarchy
from vzarr.metadata import ArrayMetadata
from vzarr.objects import Objects
from vzarr.progress import Meter, Progress

_MAX_NODES = 500_000

_LOOKED_AT = 10_000
_ITEM_BYTES = re.compile(r"(?:\D|^)(\d+)$")


# ── what is told ─────────────────────────────────────────────────────────────────────────────────


@final
@dataclass(frozen=True, slots=True)
class RefUsage:
    """Bytes of all objects that a branch or tag reaches, with its whole history."""

    name: str
    kind: Literal["branch", "tag"]
    nbytes: int
    unique: int
    """Of these, bytes that no other branch or tag reaches."""


@final
@dataclass(frozen=True, slots=True)
class CommitUsage:
    """Bytes of all objects that one commit alone reaches."""

    id: str
    time: datetime
    message: str
    unique: int


@final
@dataclass(frozen=True, slots=True)
class ArrayUsage:
    """Bytes of one array: as of a ref, and over all history."""

    path: str
    logical: int | None
    """Bytes of all elements, uncompressed; None if the data type does not tell, and 0 if the array
    is not in the ref."""
    stored: int
    """Bytes of its chunks as they are stored."""
    chunks: int
    history: int
    """Bytes of all its chunks that are kept, each counted once. Such as several arrays share count
    for one of them."""
    versions: int
    """How many chunks these are."""


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """What ``du`` tells; prints as tables. All sizes are in bytes."""

    ref: str
    file_bytes: int
    free_bytes: int
    """Of free pages, which are used again; ``compact`` gives them back."""
    chunks: int
    """Distinct chunks, documents and files that are reachable."""
    chunk_bytes: int
    nodes: int
    """Distinct nodes of trees, with the root entries of snapshots."""
    node_bytes: int
    commits: int
    commit_bytes: int
    reflog_bytes: int
    """Of all these, what only reflogs reach; ``expire`` and ``gc`` free it."""
    unreferenced: int
    """Objects that no ref reaches: what ``gc`` deletes, and uncommitted work of sessions."""
    unreferenced_bytes: int
    refs: tuple[RefUsage, ...]
    commit_usage: tuple[CommitUsage, ...]
    """The newest commits, or those that were asked for."""
    arrays: tuple[ArrayUsage, ...]
    """Those below the path, by path."""

    @property
    def nbytes(self) -> int:
        """Bytes of all objects that are reachable."""
        return self.chunk_bytes + self.node_bytes + self.commit_bytes

    def tables(self) -> Iterator[tuple[list[str], list[list[str]], int]]:
        """Give what is told as tables: headings, rows, and how many columns hold text."""
        totals = [
            ["reachable", f"{self.nbytes:,}", ""],
            ["  chunks", f"{self.chunk_bytes:,}", f"{self.chunks:,}"],
            ["  nodes", f"{self.node_bytes:,}", f"{self.nodes:,}"],
            ["  commits", f"{self.commit_bytes:,}", f"{self.commits:,}"],
            ["  of these in reflogs alone", f"{self.reflog_bytes:,}", ""],
            ["unreferenced", f"{self.unreferenced_bytes:,}", f"{self.unreferenced:,}"],
            ["free pages", f"{self.free_bytes:,}", ""],
            ["file", f"{self.file_bytes:,}", ""],
        ]
        yield ["", "bytes", "number"], totals, 1
        if self.refs:
            rows = [[one.name, one.kind, f"{one.nbytes:,}", f"{one.unique:,}"] for one in self.refs]
            yield ["ref", "kind", "bytes", "unique"], rows, 2
        if self.commit_usage:
            rows = [
                [one.id[:12], f"{one.unique:,}", one.message.partition("\n")[0]]
                for one in self.commit_usage
            ]
            yield ["commit", "unique", "message"], rows, 1
        if self.arrays:
            rows = [
                [
                    one.path or "/",
                    "?" if one.logical is None else f"{one.logical:,}",
                    f"{one.stored:,}",
                    f"{one.chunks:,}",
                    f"{one.history:,}",
                    f"{one.versions:,}",
                ]
                for one in self.arrays
            ]
            heads = [f"array in {self.ref}", "logical", "stored", "chunks", "history", "versions"]
            yield heads, rows, 1

    def __str__(self) -> str:
        return "\n\n".join(_table(heads, rows, text=text) for heads, rows, text in self.tables())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from vzarr.notebook import usage_html

        return usage_html(self)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1) -> str:
    """Align columns: the first ones, and messages, to the left, numbers to the right."""
    table = [heads, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    left = {*range(text), *(number for number, head in enumerate(heads) if head == "message")}
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if column in left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


# ── the whole of it ──────────────────────────────────────────────────────────────────────────────


def du(
    objects: Objects,
    path: str,
    ref: str,
    head: Digest,
    commits: int | Sequence[Digest],
    *,
    progress: Progress | None = None,
) -> Usage:
    """Tell what takes how many bytes; see ``Repository.du``."""
    if isinstance(commits, int) and commits < 0:
        raise InvalidInputError(f"commits= is a number, or commits, not {commits!r}")
    environment = objects.environment
    meter = Meter(progress)
    with environment.read() as txn:
        meter.stage("commits", txn.count("commits"))
        graph = Graph(txn, environment.path, head, meter)
        # The number of objects must be of the same moment.
        meter.stage("nodes", txn.count("nodes"))
        walk = Walk(txn, environment.path, meter)
        walk.run(graph)
        meter.stage("chunks", 0)
        rows = walk.values.distinct()
        missing = _unreferenced(txn, walk, rows, meter)
        # Commits that nothing reaches are told here, so that no second look is needed.
        stored = txn.count("commits") - len(graph.commits)
        missing = missing[0] + stored, missing[1] + graph.lost_bytes
    info = environment.info()
    here = Hierarchy(objects, objects.load_root(graph.commits[head].root))
    if here.entry(path) is None:
        raise NotFoundError(
            f"there is nothing at {path!r} in {ref}: repo.tree() and vzarr tree list what is there",
            name=path,
        )
    meter.stage("sums", 0)
    sums = _Sums(graph, walk, rows)
    usage = Usage(
        ref=ref,
        file_bytes=info.file_bytes,
        free_bytes=max(0, info.file_bytes - info.used_bytes),
        chunks=len(rows),
        chunk_bytes=int(rows["length"].sum(dtype=np.int64)),
        nodes=len(walk.nodes),
        node_bytes=sum(mark.size for mark in walk.nodes.values()),
        commits=len(graph.commits),
        commit_bytes=sum(graph.sizes.values()),
        reflog_bytes=sums.by_names.get(0, 0),
        unreferenced=missing[0],
        unreferenced_bytes=missing[1],
        refs=tuple(sums.refs()),
        commit_usage=tuple(sums.commits(_select(graph, commits))),
        arrays=tuple(_arrays(here, path, walk, rows)),
    )
    meter.end()
    return usage


def _select(graph: Graph, commits: int | Sequence[Digest]) -> list[Digest]:
    if isinstance(commits, int):
        newest = sorted(graph.commits, key=lambda one: -graph.commits[one].time)
        return newest[:commits]
    return list(commits)


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────


@final
class _Sums:
    """Bytes by who reaches them."""

    def __init__(self, graph: Graph, walk: Walk, rows: Rows) -> None:
        self._graph = graph
        self._walk = walk
        self.by_names: dict[int, int] = {}
        sizes = np.zeros(len(walk.values.sets), np.int64)
        np.add.at(sizes, rows["names"], rows["length"])
        for names, size in zip(walk.values.sets, sizes.tolist(), strict=True):
            self._add(names, size)
        for mark in walk.nodes.values():
            self._add(mark.names, mark.size)
        for commit, size in graph.sizes.items():
            self._add(graph.masks[commit], size)
        own = rows[rows["commit"] != SHARED]
        self._unique = np.zeros(len(graph.commits), np.int64)
        np.add.at(self._unique, own["commit"], own["length"])
        for mark in walk.nodes.values():
            if mark.commit != SHARED:
                self._unique[mark.commit] += mark.size

    def _add(self, names: int, size: int) -> None:
        self.by_names[names] = self.by_names.get(names, 0) + size

    def refs(self) -> Iterator[RefUsage]:
        """Sum up for each branch and tag."""
        for number, (name, kind) in enumerate(self._graph.names):
            bit = 1 << number
            nbytes = sum(size for names, size in self.by_names.items() if names & bit)
            yield RefUsage(name, kind, nbytes, self.by_names.get(bit, 0))

    def commits(self, commits: Iterable[Digest]) -> Iterator[CommitUsage]:
        """Sum up for some commits."""
        for commit in commits:
            record = self._graph.commits.get(commit)
            if record is None:
                raise InvalidInputError(f"commit {commit.hex()[:12]} is reached by no ref")
            unique = int(self._unique[self._walk.number[commit]]) + self._graph.sizes[commit]
            time = from_microseconds(record.time)
            yield CommitUsage(commit.hex(), time, record.message, unique)


def _arrays(here: Hierarchy, path: str, walk: Walk, rows: Rows) -> Iterator[ArrayUsage]:
    """Tell of the arrays at and below a path, also of those that only history has."""
    kept = rows[rows["array"] >= 0]
    sizes = np.zeros(len(walk.arrays), np.int64)
    np.add.at(sizes, kept["array"], kept["length"])
    counts = np.bincount(kept["array"], minlength=len(walk.arrays))
    found: dict[str, tuple[int | None, int, int]] = {
        name: (0, 0, 0)
        for name in walk.arrays
        if not path or name == path or name.startswith(f"{path}/")
    }
    for seen, (name, entry, metadata) in enumerate(here.nodes(path)):
        # Groups that share their members can make billions of a few kilobytes.
        if seen == _MAX_NODES:
            raise InvalidInputError(
                f"there are more than {_MAX_NODES:,} groups and arrays, which are too many to "
                "list; name a group with path="
            )
        if metadata.array is not None:
            index = entry.index
            stored = (index.nbytes, index.count) if index is not None else (0, 0)
            found[name] = (_logical_bytes(metadata.array), *stored)
    for name in sorted(found):
        number = walk.arrays.get(name)
        history = (0, 0) if number is None else (int(sizes[number]), int(counts[number]))
        yield ArrayUsage(name, *found[name], *history)


def _logical_bytes(array: ArrayMetadata) -> int | None:
    """Count the bytes of all elements, if these have a width."""
    try:
        width = np.dtype(_dtype(array.dtype)).itemsize
    except (TypeError, ValueError, SyntaxError):
        return None
    # Text and objects of any length have none.
    return math.prod(array.shape) * width if width else None


def _dtype(name: str) -> Any:
    if name.startswith("["):
        # The fields of a structured type in Zarr format 2.
        return [tuple(field) for field in json.loads(name)]
    if name in ("string", "bytes", "|O", "variable_length_bytes"):
        raise TypeError(name)
    bits = _ITEM_BYTES.search(name)
    if name.startswith("r") and bits is not None:
        return f"V{int(bits.group(1)) // 8}"
    return name


def _unreferenced(txn: Txn, walk: Walk, rows: Rows, meter: Meter) -> tuple[int, int]:
    """Count objects that no ref reaches, and their bytes. Looks only where the numbers differ."""
    number = size = 0
    nodes, chunks = txn.count("nodes"), txn.count("chunks")
    if nodes > len(walk.nodes):
        meter.stage("unreferenced nodes", nodes)
        for key, data in txn.scan("nodes"):
            meter.step(1)
            if key not in walk.nodes:
                number, size = number + 1, size + len(data)
    if chunks > len(rows):
        meter.stage("unreferenced chunks", chunks)
        known = np.ascontiguousarray(rows["prefix"])
        for keys in _batches(txn):
            meter.step(len(keys))
            wanted = np.frombuffer(b"".join(key[:8] for key in keys), ">u8").astype(np.uint64)
            places = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
            there = known[places] == wanted if len(known) else np.zeros(len(wanted), bool)
            for at in np.flatnonzero(~there).tolist():
                value = txn.view("chunks", keys[at])
                number, size = number + 1, size + (0 if value is None else len(value))
    return number, size


def _batches(txn: Txn) -> Iterator[list[bytes]]:
    keys = (key for key, _ in txn.scan("chunks", keys_only=True))
    while batch := list(islice(keys, _LOOKED_AT)):
        yield batch
