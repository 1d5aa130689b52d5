"""A history of which parts are lost, told anew as far as it is whole.

Each commit gets an *image*: a commit that can be kept. It is the commit itself where its snapshot
and its parents are whole. Else it is written anew, with what is left of its snapshot (``mending``)
and with the images of its parents, under another id; its metadata then say which commit it was, and
what it lacks. A commit of which nothing is left has no image, and its children get its parents'
images for parents. A record that is lost does not even tell its parents; then the reflog may, and
if it does not, history begins there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, final

from vzarr.errors import CorruptError
from vzarr.evidence import MISSING, Values, wrong_length
from vzarr.findings import Place
from vzarr.format import (
    BLOB_BYTES,
    DIGEST_BYTES,
    CommitRecord,
    Digest,
    Entry,
    ReflogRecord,
    commit_digest,
    decode_blob,
    decode_commit,
    decode_entry,
    encode_blob,
    encode_commit,
    encode_entry,
    entry_digest,
)
from vzarr.inspection import Inspection
from vzarr.mending import Mender
from vzarr.node import decode_node
from vzarr.salvage import Salvage

METADATA = "vzarr.recover"
"""The name under which the metadata of a commit that was written anew tell of it."""
# Moves from a commit to one that has it for its first parent.
_ON_TOP = ("commit: ", "autocommit: ", "merge: ", "cherry-pick: ", "revert: ")
_MOST_TOLD = 100
_MOST_ROUNDS = 64
# What is lost; other problems are in snapshots that no writer should have made.
_LOSSES = {"chunk", "index", "file", "directory", "document", "entry", "snapshot", "metadata"}


@final
class Reach:
    """All that commits refer to, as far as it is there; what is not is looked for everywhere."""

    def __init__(self, salvage: Salvage, step: Callable[[int], None]) -> None:
        self._salvage = salvage
        self._step = step
        self._waiting: list[tuple[str, bytes]] = []
        self._seen: set[tuple[str, bytes]] = set()
        self._missing: set[tuple[str, bytes]] = set()
        self._missing_chunks: dict[bytes, int] = {}
        self.commits: dict[bytes, CommitRecord] = {}
        self._bad: set[bytes] = set()

    @property
    def misses_commits(self) -> bool:
        """Whether commits are lost to which others, or names, refer."""
        return any(kind == "commits" for kind, _ in self._missing)

    def follow(self, commits: Iterable[bytes], roots: Iterable[bytes] = ()) -> None:
        """Look at all that commits and snapshots refer to. O(new nodes)."""
        self._waiting += [("commits", commit) for commit in commits]
        self._waiting += [("roots", root) for root in roots]
        self._walk()
        for _ in range(_MOST_ROUNDS):
            missing = {digest for _, digest in self._missing}
            if not missing and not self._missing_chunks:
                return
            if not self._salvage.look_for(self._missing_chunks, missing):
                return
            self._waiting, self._missing = list(self._missing), set()
            self._seen.difference_update(self._waiting)
            self._missing_chunks = {
                chunk: nbytes
                for chunk, nbytes in self._missing_chunks.items()
                if self._salvage.nbytes(chunk) is None
            }
            self._walk()

    def _walk(self) -> None:
        visits = {
            "commits": self._commit,
            "roots": self._root,
            "index": self._index,
            "directory": self._directory,
        }
        while self._waiting:
            item = self._waiting.pop()
            if item in self._seen:
                continue
            self._seen.add(item)
            self._step(1)
            kind, digest = item
            data = self._salvage.get("commits" if kind == "commits" else "nodes", digest)
            if data is None:
                self._missing.add(item)
                continue
            # What has its digest and yet is no record will be told of by the inspection.
            with suppress(CorruptError):
                visits[kind](digest, data)

    def _commit(self, digest: bytes, data: bytes) -> None:
        record = decode_commit(data)
        self.commits[digest] = record
        self._waiting += [("commits", parent) for parent in record.parents]
        self._waiting.append(("roots", record.root))

    def _root(self, _: bytes, data: bytes) -> None:
        self._entry(decode_entry(data))

    def _entry(self, entry: Entry) -> None:
        blobs = [*entry.documents.values(), *([entry.file] if entry.file is not None else [])]
        self._look([encode_blob(blob) for blob in blobs])
        if entry.index is not None:
            self._waiting.append(("index", entry.index.digest))
        if entry.directory is not None:
            self._waiting.append(("directory", entry.directory.digest))

    def _index(self, _: bytes, data: bytes) -> None:
        node = decode_node(data)
        if node.level:
            self._waiting += [("index", value[:DIGEST_BYTES]) for value in node.values]
        else:
            self._look([value for value in node.values if len(value) == BLOB_BYTES])

    def _directory(self, _: bytes, data: bytes) -> None:
        node = decode_node(data)
        for value in node.values:
            if node.level:
                self._waiting.append(("directory", value[:DIGEST_BYTES]))
            else:
                with suppress(CorruptError):
                    self._entry(decode_entry(value))

    def _look(self, references: list[bytes]) -> None:
        for reference in references:
            blob = decode_blob(reference)
            nbytes = self._salvage.nbytes(blob.digest)
            if nbytes != blob.length:
                self._bad.add(reference)
            if nbytes is None:
                self._missing_chunks[blob.digest] = blob.length

    def tell(self, values: Values) -> None:
        """Tell which values are bad, before a walk comes to them."""
        for reference in self._bad:
            blob = decode_blob(reference)
            nbytes = self._salvage.nbytes(blob.digest)
            if nbytes is None:
                values.bad[reference] = MISSING
            elif nbytes != blob.length:
                values.bad[reference] = wrong_length(nbytes, blob.length)


@final
class Retelling:
    """Gives commits their images. Not thread-safe."""

    def __init__(
        self,
        salvage: Salvage,
        reach: Reach,
        inspection: Inspection,
        moves: Mapping[str, Mapping[int, ReflogRecord]],
    ) -> None:
        self._salvage = salvage
        self._commits = reach.commits
        self._inspection = inspection
        self.mender = Mender(salvage)
        self.records: dict[bytes, bytes] = {}
        """The images, by their ids."""
        self.roots: dict[bytes, bytes] = {}
        """The roots that were made, by their ids."""
        self.images: dict[bytes, Digest] = {}
        """The id of the image of each commit that has one."""
        self.mended: set[bytes] = set()
        """Commits of whose snapshots something is lost."""
        # What a child gets for this parent: the image, or those of the parents that are left.
        self._heirs: dict[bytes, tuple[Digest, ...]] = {}
        self._before = _came_before(moves)

    def parents(self, commit: bytes) -> Sequence[bytes]:
        """Give the parents of a commit; of one whose record is lost, what the reflog tells."""
        record = self._commits.get(commit)
        if record is not None:
            return record.parents
        return self._before.get(commit, ())

    def record(self, commit: bytes) -> CommitRecord | None:
        """Give the record of a commit; None if it is lost."""
        return self._commits.get(commit)

    def heirs(self, commit: bytes) -> tuple[Digest, ...]:
        """Give the image of a commit, or of its nearest ancestors that have one. O(history)."""
        waiting, open_ = [commit], set[bytes]()
        while waiting:
            this = waiting[-1]
            # The reflog can be made to tell of circles.
            unknown = [
                parent
                for parent in self.parents(this)
                if parent not in self._heirs and parent not in open_
            ]
            if this in self._heirs or not unknown:
                waiting.pop()
                if this not in self._heirs:
                    self._heirs[this] = self._heirs_of(this)
            else:
                open_.add(this)
                waiting += unknown
        return self._heirs[commit]

    def _heirs_of(self, commit: bytes) -> tuple[Digest, ...]:
        above = [heir for parent in self.parents(commit) for heir in self._heirs.get(parent, ())]
        parents = tuple(dict.fromkeys(above))
        record = self._commits.get(commit)
        if record is None:
            return parents
        root = self._root(commit, record)
        if root is None:
            return parents
        data = encode_commit(record)
        image = Digest(commit)
        if (root, parents) != (record.root, tuple(record.parents)):
            metadata = {**record.metadata, METADATA: self._tell(commit, record)}
            data = encode_commit(replace(record, root=root, parents=parents, metadata=metadata))
            image = commit_digest(data)
        self.records[image] = data
        self.images[commit] = image
        return (image,)

    def is_whole(self, root: bytes) -> bool:
        """Tell whether nothing of a snapshot is lost."""
        return not self._inspection.snapshot(root)

    def _root(self, commit: bytes, record: CommitRecord) -> Digest | None:
        """Give the root of what is left of a snapshot; None if that is nothing."""
        places = self._inspection.snapshot(record.root)
        if not places:
            return record.root
        self.mended.add(commit)
        try:
            data = self._salvage.get("nodes", record.root)
            if data is None:
                return None
            entry = decode_entry(data)
            if {place.kind for place in places} <= _LOSSES:
                left = self.mender.mend(entry)
            else:
                left = self.mender.rebuild(entry)
        except (CorruptError, RecursionError):
            return None
        if left.is_empty:
            return None
        encoded = encode_entry(left)
        self.roots[entry_digest(encoded)] = encoded
        return entry_digest(encoded)

    def _tell(self, commit: bytes, record: CommitRecord) -> dict[str, Any]:
        """Say in the metadata of an image which commit it was, and what it lacks."""
        places = self._inspection.snapshot(record.root)
        told: dict[str, Any] = {"commit": commit.hex()}
        if places:
            told["lost"] = [_describe(place) for place in places[:_MOST_TOLD]]
        if len(places) > _MOST_TOLD:
            told["more"] = len(places) - _MOST_TOLD
        return told


def _describe(place: Place) -> dict[str, Any]:
    about: dict[str, Any] = {"path": place.path, "kind": place.kind}
    if place.document is not None:
        about["document"] = place.document
    if place.coordinates is not None:
        about["chunk"] = list(place.coordinates)
    if place.region is not None:
        about["region"] = [[part.start, part.stop] for part in place.region]
    return about


def _came_before(moves: Mapping[str, Mapping[int, ReflogRecord]]) -> dict[bytes, tuple[bytes, ...]]:
    """Find by the reflog what commits were made on top of."""
    return {
        record.new: (record.old,)
        for numbered in moves.values()
        for record in numbered.values()
        if record.new is not None
        and record.old is not None
        and record.operation.startswith(_ON_TOP)
    }
