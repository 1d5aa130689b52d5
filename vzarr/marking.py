"""Mark what is reachable: from commits and snapshots down to the digests of values.

The walk goes on from where an earlier one ended, and stops at what is marked, so that marking what
has come since costs what is new. Commits and nodes are kept in sets; values, of which there may be
a hundred times as many, in eight bytes each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from vzarr import absence
from vzarr.environment import Txn
from vzarr.errors import CorruptError
from vzarr.format import (
    BLOB_BYTES,
    DIGEST_BYTES,
    Entry,
    TreeRef,
    commit_digest,
    decode_commit,
    decode_entry,
    entry_digest,
    node_digest,
)
from vzarr.node import REFERENCE, decode_node, decode_values, row_of

# What of a digest is kept, and how many are gathered before they are sorted.
_PREFIX_BYTES = 8
_GATHERED_BYTES = 8 << 20

# The digests in the values of an inner node.
_CHILDREN = partial(row_of, f"{DIGEST_BYTES}s{REFERENCE.size - DIGEST_BYTES}x")

_Prefixes = NDArray[np.uint64]


@final
class DigestSet:
    """A set of digests that costs eight bytes each, 80 MB for ten million.

    Only the first 64 bits are kept, so that a digest that is not in it may seem to be: among ten
    million, one in 10^12 does.
    """

    __slots__ = ("_gathered", "_runs")

    def __init__(self) -> None:
        self._gathered = bytearray()
        # Sorted and distinct, each less than half as long as the one before.
        self._runs: list[_Prefixes] = []

    def add(self, digests: Iterable[bytes]) -> None:
        """Add digests; what follows the first eight bytes does not matter. O(1), amortised."""
        self._gathered += b"".join([digest[:_PREFIX_BYTES] for digest in digests])
        if len(self._gathered) >= _GATHERED_BYTES:
            self._sort()

    def add_rows(self, rows: bytes, width: int) -> None:
        """Add digests that lie one every ``width`` bytes. O(n)."""
        table = np.frombuffer(rows, np.uint8).reshape(-1, width)
        self._gathered += table[:, :_PREFIX_BYTES].tobytes()
        if len(self._gathered) >= _GATHERED_BYTES:
            self._sort()

    def missing(self, digests: Sequence[bytes]) -> list[bytes]:
        """Give those that are not in the set, in their order. O(log n) each."""
        if self._gathered:
            self._sort()
        wanted = _prefixes(b"".join([digest[:_PREFIX_BYTES] for digest in digests]))
        found = np.zeros(len(wanted), bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, wanted), len(run) - 1)
            found |= run[places] == wanted
        return [digests[index] for index in np.flatnonzero(~found).tolist()]

    def _sort(self) -> None:
        run = _distinct(_prefixes(bytes(self._gathered)))
        self._gathered.clear()
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = _distinct(np.concatenate([self._runs.pop(), run]))
        self._runs.append(run)


def _prefixes(data: bytes) -> _Prefixes:
    return np.frombuffer(data, ">u8").astype(np.uint64)


def _distinct(prefixes: _Prefixes) -> _Prefixes:
    """Sort and drop what comes twice; two sorted rows, one after the other, are merged."""
    prefixes.sort(kind="stable")
    differs = np.ones(len(prefixes), bool)
    np.not_equal(prefixes[1:], prefixes[:-1], out=differs[1:])
    return prefixes[differs]


@final
class Marks:
    """What was found reachable so far, and what waits to be looked at.

    The ``want_...`` methods say from where to walk, ``walk`` does it. What is in ``commits`` or
    ``nodes`` is marked with all below it, once nothing waits.
    """

    __slots__ = ("_path", "_waiting", "commits", "nodes", "values")

    def __init__(self, path: str) -> None:
        self._path = path
        self._waiting: list[tuple[Callable[[Txn, bytes], None], bytes]] = []
        self.commits: set[bytes] = set()
        self.nodes: set[bytes] = set()
        """Nodes of trees, and the root entries of snapshots."""
        self.values = DigestSet()

    def want_commit(self, commit: bytes) -> None:
        """Mark a commit, with its snapshot and all its ancestors."""
        if commit not in self.commits:
            self._waiting.append((self._commit, commit))

    def want_root(self, root: bytes) -> None:
        """Mark a snapshot."""
        if root not in self.nodes:
            self._waiting.append((self._root, root))

    def look_ahead(self, txn: Txn) -> None:
        """Have the pages looked at through which the walk will come: cheaper at once. O(n)."""
        for database in ("commits", "nodes"):
            txn.look_ahead(database)

    def walk(self, txn: Txn, steps: int | None = None) -> bool:
        """Look at what waits, at so many objects at most; tell whether nothing waits any more.

        Raises ``CorruptError`` for an object that is missing or damaged: what it refers to cannot
        be known. Some 10 µs an object, 0.4 µs a chunk.
        """
        waiting = self._waiting
        while waiting:
            if steps is not None:
                if not steps:
                    return False
                steps -= 1
            visit, digest = waiting.pop()
            visit(txn, digest)
        return True

    def _commit(self, txn: Txn, digest: bytes) -> None:
        if digest in self.commits:
            return
        data = self._get(txn, "commits", digest, commit_digest, "commit")
        record = decode_commit(data or b"")
        self.commits.add(digest)
        for parent in record.parents:
            self.want_commit(parent)
        self.want_root(record.root)

    def _root(self, txn: Txn, digest: bytes) -> None:
        if digest in self.nodes:
            return
        data = self._get(txn, "nodes", digest, entry_digest, "the root of a snapshot")
        if data is not None:
            self.nodes.add(digest)
            self._entry(decode_entry(data))

    def _entry(self, entry: Entry) -> None:
        self.values.add(blob.digest for blob in entry.documents.values())
        if entry.file is not None:
            self.values.add([entry.file.digest])
        self._tree(self._index, entry.index)
        self._tree(self._directory, entry.directory)

    def _tree(self, visit: Callable[[Txn, bytes], None], tree: TreeRef | None) -> None:
        if tree is not None and tree.digest not in self.nodes:
            self._waiting.append((visit, tree.digest))

    def _index(self, txn: Txn, digest: bytes) -> None:
        if digest in self.nodes:
            return
        data = self._read_node(txn, digest)
        if data is None:
            return
        level, width, values = decode_values(data)
        if width != (REFERENCE.size if level else BLOB_BYTES):
            raise CorruptError(
                f"index node {digest.hex()[:12]} of {self._path} is damaged: a value in it is no "
                "reference to a chunk or a node",
                path=self._path,
            )
        if level:
            self._want_nodes(self._index, _CHILDREN(len(values) // width).unpack(values))
        else:
            self.values.add_rows(values, width)

    def _directory(self, txn: Txn, digest: bytes) -> None:
        if digest in self.nodes:
            return
        data = self._read_node(txn, digest)
        if data is None:
            return
        node = decode_node(data)
        if node.level:
            self._want_nodes(self._directory, (value[:DIGEST_BYTES] for value in node.values))
        else:
            for value in node.values:
                self._entry(decode_entry(value))

    def _read_node(self, txn: Txn, digest: bytes) -> bytes | None:
        data = self._get(txn, "nodes", digest, node_digest, "index node")
        if data is not None:
            self.nodes.add(digest)
        return data

    def _want_nodes(self, visit: Callable[[Txn, bytes], None], digests: Iterable[bytes]) -> None:
        self._waiting += zip(repeat(visit), set(digests) - self.nodes)

    def _get(
        self, txn: Txn, database: str, digest: bytes, hashed: Callable[[bytes], Any], what: str
    ) -> bytes | None:
        """Read an object; None for one that a shallow or partial clone has left out."""
        data = txn.get(database, digest)
        if data is not None and hashed(data) == digest:
            return data
        if data is None and database == "nodes" and absence.is_noted(txn, digest):
            return None
        problem = "missing" if data is None else "damaged: its bytes do not match its digest"
        raise CorruptError(
            f"{what} {digest.hex()[:12]} of {self._path} is {problem}. What it refers to cannot be "
            "told from garbage: run a check",
            path=self._path,
        )
