"""What is new in a snapshot: the objects that it reaches, and older ones that are known do not.

A walk over the new snapshot, and over the known ones beside it. Below each new node the walk keeps
the known nodes that lie over the same keys; what has the digest of one of these is known with all
that is below it. So the walk costs what has changed, times the depth of the trees.

The walk needs the new nodes as it comes to them, many at a time, since they may have to be brought
from another machine. What it is given, it compares with what referred to it: a node that is not on
the level, or does not end with the key or hold the number of entries that its parent says, is
``CorruptError``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

from vzarr.errors import CorruptError, VzarrError
from vzarr.format import (
    BLOB_BYTES,
    DIGEST_BYTES,
    MAX_DEPTH,
    Blob,
    Digest,
    Entry,
    TreeRef,
    blob_measure,
    decode_blob,
    decode_entry,
    decode_name,
    entry_measure,
)
from vzarr.node import REFERENCE, Node, decode_node

_MAX_KNOWN = 64
"""Of more known nodes beside a new one, none is looked into: they have hardly anything in common.
What is there after all is found by its digest."""


class _Claim(NamedTuple):
    """What the parent of a node says of it."""

    number: int
    nbytes: int
    level: int | None = None
    """None for the root of a tree."""
    last: bytes | None = None
    """Its last key; None for the root of a tree."""


@final
@dataclass(slots=True)
class _Place:
    """A new node that is to be looked at."""

    digest: bytes
    claim: _Claim
    directory: bool
    path: tuple[str, ...]
    low: bytes | None
    """All of its keys are greater than this."""
    known: list[bytes]
    """Nodes of known trees, all of one level, that have keys in the same range."""


@final
class Novelty:
    """The walk over snapshots that are new, beside others that are known."""

    def __init__(
        self,
        load_known: Callable[[bytes], Node],
        load_known_root: Callable[[Digest], Entry],
        *,
        path: Sequence[str] = (),
        without: Container[bytes] = (),
        has: Callable[[bytes], bool] = lambda _: False,
    ) -> None:
        """``path`` names the group or array that is wanted alone; all of it, if that is empty.

        It has to do ``without`` some objects, which are left out, too.
        Of known objects, some may be missing: ``load_known`` raises ``VzarrError`` then. What is
        not wanted, but a node that the caller ``has``, is walked all the same: what is below it
        must be there as well.
        """
        self._load_known = load_known
        self._load_known_root = load_known_root
        self._path = tuple(path)
        self._without = without
        self._has = has
        self.reached = not self._path
        """Whether there is anything at the path."""
        self._seen: set[bytes] = set()
        self._waiting: list[_Place] = []
        self.blobs: list[Blob] = []
        """New references to values, for the caller to take away; some may come twice."""
        self.left_out: set[bytes] = set()
        """Digests of nodes and values that are not under the path."""

    def begin(self, root: Digest, entry: Entry, known: Iterable[Digest]) -> None:
        """Look at a snapshot next, beside known ones, by their roots. O(1)."""
        if root in self._seen:
            return
        self._seen.add(root)
        others = []
        for digest in known:
            try:
                others.append(self._load_known_root(digest))
            except VzarrError:
                # Left out when this repository was cloned.
                continue
        self._entry((), entry, others)

    def wanted(self, most: int) -> list[bytes]:
        """Give the digests of new nodes that ``take`` needs next, so many at most; none at the end.

        The same ones until ``take`` is called.
        """
        return list(dict.fromkeys(place.digest for place in self._waiting[-most:]))

    def take(self, most: int, nodes: Mapping[bytes, bytes]) -> None:
        """Look at the nodes that were ``wanted``. Raises ``CorruptError``."""
        places = self._waiting[-most:]
        del self._waiting[-most:]
        for place in places:
            node = decode_node(nodes[place.digest])
            _compare(place, node)
            self._node(place, node)

    # ── entries ──────────────────────────────────────────────────────────────────────────────────

    def _entry(self, path: tuple[str, ...], entry: Entry, known: Sequence[Entry]) -> None:
        old = {blob for other in known for blob in other.documents.values()}
        old |= {other.file for other in known if other.file is not None}
        self.blobs += [blob for blob in entry.documents.values() if blob not in old]
        wanted = self._is_wanted(path)
        self.reached |= path == self._path
        if entry.file is not None and entry.file not in old:
            if wanted and entry.file.digest not in self._without:
                self.blobs.append(entry.file)
            else:
                self.left_out.add(entry.file.digest)
        indexes = [other.index for other in known if other.index is not None]
        directories = [other.directory for other in known if other.directory is not None]
        self._tree(path, entry.index, indexes, directory=False, wanted=wanted)
        self._tree(path, entry.directory, directories, directory=True, wanted=wanted)

    def _is_wanted(self, path: tuple[str, ...]) -> bool:
        """Whether a path leads to the wanted one, or lies below it."""
        common = min(len(path), len(self._path))
        return path[:common] == self._path[:common]

    def _tree(
        self,
        path: tuple[str, ...],
        tree: TreeRef | None,
        known: Sequence[TreeRef],
        *,
        directory: bool,
        wanted: bool,
    ) -> None:
        if tree is None or tree in known or tree.digest in self._seen:
            return
        if not (wanted and tree.digest not in self._without) and not self._has(tree.digest):
            self.left_out.add(tree.digest)
            return
        if len(path) > MAX_DEPTH:
            raise CorruptError(f"a path has more than {MAX_DEPTH} names: {'/'.join(path[:5])}/…")
        others = list(dict.fromkeys(other.digest for other in known))
        claim = _Claim(tree.count, tree.nbytes)
        self._waiting.append(_Place(tree.digest, claim, directory, path, None, others))

    # ── nodes ────────────────────────────────────────────────────────────────────────────────────

    def _node(self, place: _Place, node: Node) -> None:
        if place.digest in self._seen:
            return
        # Of a directory above the wanted path, another one may be wanted below another path.
        if not place.directory or len(place.path) >= len(self._path):
            self._seen.add(place.digest)
        known = self._known(place, node)
        if node.level:
            self._children(place, node, known)
        elif place.directory:
            self._members(place, node, [other for _, other in known])
        else:
            old = {value for _, other in known for value in other.values}
            if any(len(value) != BLOB_BYTES for value in node.values):
                raise _malformed(place, "a value in it is no reference to a chunk")
            self.blobs += [decode_blob(value) for value in node.values if value not in old]

    def _known(self, place: _Place, node: Node) -> list[tuple[bytes, Node]]:
        """Load the known nodes beside a new one, on its level; and the roots of lower trees."""
        digests = place.known
        while digests and len(digests) <= _MAX_KNOWN:
            try:
                nodes = [(digest, self._load_known(digest)) for digest in digests]
            except VzarrError:
                # Left out when this repository was cloned.
                return []
            if all(other.level <= node.level for _, other in nodes):
                return nodes
            digests = []
            for digest, other in nodes:
                higher = other.level > node.level
                below = _between(other, place.low, node.keys[-1]) if higher else [digest]
                digests += below
        return []

    def _children(self, place: _Place, node: Node, known: Sequence[tuple[bytes, Node]]) -> None:
        beside = [other for _, other in known if other.level == node.level]
        # Trees that are not as high lie beside each of the children.
        lower = [digest for digest, other in known if other.level < node.level]
        there = {value[:DIGEST_BYTES] for other in beside for value in other.values}
        low = place.low
        for key, value in zip(node.keys, node.values, strict=True):
            digest, count, nbytes = REFERENCE.unpack(value)
            if digest not in there and digest not in self._seen:
                others = [each for other in beside for each in _between(other, low, key)]
                claim = _Claim(count, nbytes, node.level - 1, key)
                child = _Place(digest, claim, place.directory, place.path, low, lower + others)
                self._waiting.append(child)
            low = key

    def _members(self, place: _Place, node: Node, known: Sequence[Node]) -> None:
        old: dict[bytes, list[bytes]] = {}
        for other in known:
            for key, value in zip(other.keys, other.values, strict=True):
                old.setdefault(key, []).append(value)
        for key, value in zip(node.keys, node.values, strict=True):
            others = old.get(key, ())
            if value not in others:
                path = (*place.path, decode_name(key))
                self._entry(path, decode_entry(value), [decode_entry(data) for data in others])


def _between(node: Node, low: bytes | None, high: bytes) -> list[bytes]:
    """List the children of a node that may have keys after ``low`` and up to ``high``."""
    start = 0 if low is None else bisect_right(node.keys, low)
    # The first child whose last key is not below ``high`` may have some, too.
    stop = bisect_left(node.keys, high) + 1
    return [value[:DIGEST_BYTES] for value in node.values[start:stop]]


def _compare(place: _Place, node: Node) -> None:
    """Make sure that a node is what its parent says."""
    claim = place.claim
    if claim.level is not None and node.level != claim.level:
        raise _malformed(place, "it is on another level than its parent says")
    if claim.last is not None and node.keys[-1] != claim.last:
        raise _malformed(place, "it ends with another key than its parent says")
    if place.low is not None and node.keys[0] <= place.low:
        raise _malformed(place, "its keys are not all behind those of the node before it")
    if _sums(place, node) != (claim.number, claim.nbytes):
        raise _malformed(place, "its sums are not what its parent says")


def _sums(place: _Place, node: Node) -> tuple[int, int]:
    if node.level:
        sums = [REFERENCE.unpack(value)[1:] for value in node.values]
    else:
        measure = entry_measure if place.directory else blob_measure
        sums = [measure(value) for value in node.values]
    return sum(count for count, _ in sums), sum(nbytes for _, nbytes in sums)


def _malformed(place: _Place, why: str) -> CorruptError:
    where = "/".join(place.path) or "/"
    return CorruptError(f"tree node {place.digest.hex()[:12]} at {where} is damaged: {why}")
