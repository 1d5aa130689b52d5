"""Bring commits with all that they need from elsewhere into a repository.

The story is in ``Reception``. First the commits: the other side lists them from the newest on,
until all that are left are known here. Then their snapshots, parents first, each beside the nearest
commits that are known: what the walk of ``novelty`` finds new and the file does not have is asked
for, by digest, and compared with it on arrival. So what travels is what is missing, no matter what
the other side says, and when the walk has ended nothing is missing any more.

At the end one txn makes all of it reachable. What was found in the file and not brought may have
been garbage, and may be gone by then: the txn looks again, and where something is gone, the walk
is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, final

from vzarr import absence, history, refs
from vzarr.arrivals import Arrivals, Kind
from vzarr.committing import Settings, flush
from vzarr.environment import Txn
from vzarr.errors import (
    BusyError,
    CorruptError,
    NotFoundError,
    TransferError,
    UnrelatedError,
)
from vzarr.format import (
    Blob,
    CommitRecord,
    Digest,
    chunk_digest,
    commit_digest,
    decode_commit,
    decode_entry,
    entry_digest,
    node_digest,
)
from vzarr.lineage import EMPTY_ROOT, find_nearest, is_blank, parents_first, within_depth
from vzarr.novelty import Novelty
from vzarr.objects import Objects
from vzarr.progress import Progress
from vzarr.supply import Supplier
from vzarr.wire import MAX_DIGESTS, MAX_STOPS

_FIRST_LIMIT, _LARGEST_LIMIT = 32, 4096
# So many bytes of values are asked for at once.
_BATCH_BYTES = 8 << 20
_ATTEMPTS = 10
_T = TypeVar("_T")


class _VanishedError(Exception):
    """What was found here is gone, or what was not has come; never leaves this module."""


@final
@dataclass(slots=True)
class Received:
    """How much came."""

    commits: int = 0
    nodes: int = 0
    """Nodes of trees, and roots of snapshots."""
    chunks: int = 0
    """Chunks, documents and files."""
    nbytes: int = 0
    """Bytes of all these."""


@final
class Reception:
    """One transfer into a repository. Used by one thread; ``close`` it."""

    def __init__(
        self,
        objects: Objects,
        settings: Settings,
        supplier: Supplier,
        *,
        other: str,
        depth: int | None = None,
        path: str = "",
        complete: bool = False,
        whole: bool = False,
        ids: tuple[bytes, bytes] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """``other`` is from where it comes, for the words of errors.

        With ``whole``, it is an error if the other side has but a part of it.
        ``ids`` are those of the two repositories, which must then have something in common.

        Of each line of history, ``depth`` snapshots are wanted; and of each snapshot what is at and
        below ``path``, and the documents beside it. What is left out is noted as absent.
        ``complete`` looks at what is known already, too, and brings what an earlier transfer left
        out.
        """
        self._objects = objects
        self._environment = objects.environment
        self._settings = settings
        self._supplier = supplier
        self._other = other
        self._depth = depth
        self._path = tuple(path.split("/")) if path else ()
        self._complete = complete
        self._whole = whole
        self._ids = ids
        self._progress = progress
        self._arrivals: Arrivals | None = None
        self._total = 0
        self.received = Received()
        self._wants: list[Digest] = []
        self.commits: dict[Digest, CommitRecord] = {}
        """The new ones, parents first."""
        self._begin()

    def _begin(self) -> None:
        self.commits.clear()
        # Known commits next to the new ones, and objects that were in the file before.
        self._edge: set[Digest] = set()
        self._found_nodes: set[bytes] = set()
        self._found_values: set[bytes] = set()
        self._left_out: set[bytes] = set()
        # Of what arrived, that which these commits need.
        self._needed: dict[Kind, dict[bytes, bytes]] = {"node": {}, "root": {}, "commit": {}}

    def close(self, *, keep: bool) -> None:
        """End, and keep what came for the next time, or not."""
        arrivals, self._arrivals = self._arrivals, None
        if arrivals is not None:
            arrivals.close(keep=keep)

    # ── gathering ────────────────────────────────────────────────────────────────────────────────

    def gather(self, wants: Iterable[Digest]) -> None:
        """Bring these commits, with all that they need; nothing is reachable yet.

        Raises ``TransferError`` and ``CorruptError`` for what the other side sends, ``FullError``,
        and ``UnrelatedError`` for another repository.
        """
        self._wants = list(dict.fromkeys(wants))
        if not self._complete and all(map(self._knows, self._wants)):
            self._edge |= set(self._wants)
            return
        if self._arrivals is None:
            self._arrivals = Arrivals(self._objects, self._settings)
        self._list_commits(self._arrivals)
        self._require_related()
        self._bring_snapshots(self._arrivals)

    def _knows(self, commit: Digest) -> bool:
        return history.exists(self._environment, commit)

    def _list_commits(self, arrivals: Arrivals) -> None:
        """Find the commits that are new, and bring them."""
        found: dict[Digest, CommitRecord] = {}
        expected = {want for want in self._wants if self._is_new(want)}
        self._edge |= set(self._wants) - expected
        stops = [] if self._complete else self._stops()
        limit = _FIRST_LIMIT
        while expected:
            before = len(found)
            for data in self._ahead(arrivals, expected):
                self._accept(data, found, expected, arrivals)
            if len(found) == before:
                # In the order of their ids, so that the same question is asked each time.
                asked = list(islice(sorted(expected), MAX_DIGESTS))
                for data in self._supplier.commits(asked, stops, limit):
                    self._accept(data, found, expected, arrivals)
                limit = min(2 * limit, _LARGEST_LIMIT)
            if len(found) == before:
                missing = min(expected).hex()[:12]
                raise TransferError(f"{self._other} does not send commit {missing}, which it needs")
            self._tell(len(found), 0, "commits")
        # What came last has its parents all before it.
        self.commits = parents_first(found)

    def _is_new(self, commit: Digest) -> bool:
        return self._complete or not self._knows(commit)

    def _ahead(self, arrivals: Arrivals, expected: Iterable[Digest]) -> list[bytes]:
        """Give commits that are here: they came with a transfer that was interrupted."""
        records = arrivals.records["commit"]
        here = [records[commit] for commit in expected if commit in records]
        if self._complete:
            with self._environment.read() as txn:
                here += [data for each in expected if (data := txn.get("commits", each))]
        return here

    def _accept(
        self,
        data: bytes,
        found: dict[Digest, CommitRecord],
        expected: set[Digest],
        arrivals: Arrivals,
    ) -> None:
        commit = commit_digest(data)
        if commit not in expected:
            if commit in found or self._knows(commit):
                return
            raise TransferError(
                f"{self._other} sends commit {commit.hex()[:12]}, which nobody asked for"
            )
        record = decode_commit(data)
        if self._complete and self._knows(commit):
            self._edge.add(commit)
        else:
            self._needed["commit"][commit] = data
            if commit not in arrivals.records["commit"]:
                self.received.commits += 1
                self.received.nbytes += len(data)
                arrivals.add("commit", commit, data)
        found[commit] = record
        expected.discard(commit)
        for parent in record.parents:
            if parent not in found:
                if self._is_new(parent):
                    expected.add(parent)
                else:
                    self._edge.add(parent)

    def _stops(self) -> list[Digest]:
        """Name commits of ours, behind which nothing is new: those that have names."""
        with self._environment.read() as txn:
            heads = [head for _, head in refs.branches(txn)]
            heads += [head for _, head in refs.tracked(txn)]
            heads += [Digest(bytes.fromhex(tag.commit)) for tag in refs.tags(txn)]
        return list(dict.fromkeys(heads))[:MAX_STOPS]

    # ── snapshots ────────────────────────────────────────────────────────────────────────────────

    def _bring_snapshots(self, arrivals: Arrivals) -> None:
        without = self._supplier.absent()
        walk = Novelty(
            self._objects.load,
            self._objects.load_root,
            path=self._path,
            without=without,
            has=self._has_node,
        )
        nearest = find_nearest(self.commits)
        wanted = within_depth(self.commits, self._wants, None if self._complete else self._depth)
        roots: dict[Digest, set[Digest]] = {}
        hollow: set[Digest] = set()
        for commit, record in self.commits.items():
            if (
                (commit in wanted and record.root not in without)
                or record.root == EMPTY_ROOT
                or self._has_node(record.root)
            ):
                roots.setdefault(record.root, set()).update(nearest[commit])
            else:
                hollow.add(record.root)
        self._left_out |= hollow - roots.keys()
        found = self._records(arrivals, list(roots), "root")
        for root, known in roots.items():
            entry = decode_entry(found[root])
            if not known:
                # What a first transfer brings is hardly less than this.
                self._total = max(self._total, entry.nbytes)
            beside = [history.get(self._environment, each).root for each in known]
            walk.begin(root, entry, [] if self._complete else beside)
            self._walk(walk, arrivals)
        self._values(walk, arrivals, last=True)
        if self._path and not (walk.reached or self._edge):
            name = "/".join(self._path)
            raise NotFoundError(
                f"no commit of {self._other} has a group or an array {name!r}", name=name
            )
        self._left_out |= walk.left_out
        if self._whole and self._left_out:
            digest = min(self._left_out)
            raise self._lacks(f"object {digest.hex()[:12]}")

    def _walk(self, walk: Novelty, arrivals: Arrivals) -> None:
        while digests := walk.wanted(MAX_DIGESTS):
            walk.take(MAX_DIGESTS, self._records(arrivals, digests, "node"))
            self._values(walk, arrivals, last=False)

    def _has_node(self, digest: bytes) -> bool:
        with self._environment.read() as txn:
            return txn.contains("nodes", digest)

    def _records(
        self, arrivals: Arrivals, digests: Sequence[bytes], kind: Kind
    ) -> dict[bytes, bytes]:
        """Give nodes or roots, and bring those that are not here."""
        came = arrivals.records[kind]
        hashed = entry_digest if kind == "root" else node_digest
        found = {digest: came[digest] for digest in digests if digest in came}
        self._needed[kind].update(found)
        with self._environment.read() as txn:
            for digest in digests:
                data = None if digest in found else txn.get("nodes", digest)
                if data is not None and hashed(data) == digest:
                    found[digest] = data
                    self._found_nodes.add(digest)
        missing = [digest for digest in digests if digest not in found]
        for start in range(0, len(missing), MAX_DIGESTS):
            part = missing[start : start + MAX_DIGESTS]
            for digest, data in zip(part, self._supplier.nodes(part), strict=True):
                if data is None:
                    raise self._lacks(f"node {digest.hex()[:12]}")
                if hashed(data) != digest:
                    raise self._lies(f"node {digest.hex()[:12]}")
                arrivals.add(kind, digest, data)
                self.received.nodes += 1
                self.received.nbytes += len(data)
                found[digest] = self._needed[kind][digest] = data
        return found

    def _values(self, walk: Novelty, arrivals: Arrivals, *, last: bool) -> None:
        """Bring the values that are not here, once there are enough of them."""
        blobs = walk.blobs
        if not last and len(blobs) < MAX_DIGESTS:
            return
        walk.blobs = []
        waiting: list[Blob] = []
        nbytes = 0
        for blob in self._missing(dict.fromkeys(blobs), arrivals):
            if waiting and (nbytes + blob.length > _BATCH_BYTES or len(waiting) == MAX_DIGESTS):
                self._bring_values(waiting, arrivals)
                waiting, nbytes = [], 0
            waiting.append(blob)
            nbytes += blob.length
        if waiting:
            self._bring_values(waiting, arrivals)

    def _missing(self, blobs: Iterable[Blob], arrivals: Arrivals) -> list[Blob]:
        missing: list[Blob] = []
        with self._environment.read() as txn:
            for blob in blobs:
                length = arrivals.length(blob.digest)
                if length is None:
                    view = txn.view("chunks", blob.digest)
                    if view is None:
                        missing.append(blob)
                        continue
                    length = len(view)
                    # LMDB's memory may be used again once the txn has ended.
                    view = None
                    self._found_values.add(blob.digest)
                if length != blob.length:
                    raise self._lies(f"the length of chunk {blob.digest.hex()[:12]}")
        return missing

    def _bring_values(self, blobs: Sequence[Blob], arrivals: Arrivals) -> None:
        digests = [blob.digest for blob in blobs]
        lengths = [blob.length for blob in blobs]
        came = self._supplier.chunks(digests, lengths)
        for blob, data in zip(blobs, came, strict=True):
            if data is None:
                raise self._lacks(f"chunk {blob.digest.hex()[:12]}")
            if len(data) != blob.length or chunk_digest(data) != blob.digest:
                raise self._lies(f"chunk {blob.digest.hex()[:12]}")
            arrivals.add_value(blob, data)
            self.received.chunks += 1
            self.received.nbytes += blob.length
        self._tell(self.received.nbytes, self._total, "bytes")

    def _lacks(self, what: str) -> TransferError:
        return TransferError(
            f"{self._other} lacks {what}, which a commit of it refers to: it is damaged, or only a "
            "part of another repository: get it from there"
        )

    def _lies(self, what: str) -> CorruptError:
        return CorruptError(
            f"what {self._other} sent for {what} does not match its digest: it was damaged there, "
            "or on its way. Nothing was moved; run a check there"
        )

    def _tell(self, done: int, total: int, what: str) -> None:
        """Tell how far it is; a total of 0 is one that nobody knows."""
        if self._progress is not None:
            self._progress(done, total and max(done, total), what)

    # ── relations ────────────────────────────────────────────────────────────────────────────────

    def _require_related(self) -> None:
        """Raise ``UnrelatedError`` if the other side is another repository.

        That is one with another id, and without a commit in common. To one without data, anything
        may come.
        """
        if self._ids is None or self._ids[0] == self._ids[1] or self._edge or self._is_fresh():
            return
        raise UnrelatedError(
            f"{self._other} is another repository: it has no commit in common with "
            f"{self._environment.path}. Clone it into a file of its own"
        )

    def _is_fresh(self) -> bool:
        with self._environment.read() as txn:
            heads = [head for _, head in refs.branches(txn)]
        return all(is_blank(self._environment, head) for head in heads)

    def descends(self, new: Digest, old: Digest) -> bool:
        """Whether a commit, new or known, has another for an ancestor. O(commits between)."""
        edge, seen, waiting = set(), {new}, [new]
        while waiting:
            commit = waiting.pop()
            if commit == old:
                return True
            record = self.commits.get(commit)
            if record is None:
                edge.add(commit)
                continue
            fresh = set(record.parents) - seen
            seen |= fresh
            waiting += fresh
        return old not in self.commits and bool(
            edge and any(old == commit for commit, _ in history.log(self._environment, *edge))
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is new."""
        return self._arrivals is None

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def finish(self, move: Callable[[Txn], _T]) -> _T:
        """Make all of it reachable: ``move`` writes the refs, in the same txn. Durable.

        What ``move`` raises ends it, with nothing written.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._finish(move)
            except _VanishedError:
                self._begin()
                self.gather(self._wants)
        raise BusyError(
            f"others collected garbage of {self._environment.path}, or transferred the same, at "
            "each attempt to end this transfer: try again"
        )

    def _finish(self, move: Callable[[Txn], _T]) -> _T:
        arrivals = self._arrivals
        room = 2 * arrivals.settle() if arrivals is not None else 0
        with self._environment.write(timeout=self._settings.timeout, room=room) as txn:
            self._require_found(txn)
            if arrivals is not None:
                arrivals.write(txn, self._needed)
            absence.note(txn, self._left_out)
            if self._complete:
                absence.forget_found(txn)
            result = move(txn)
        if arrivals is not None:
            arrivals.arrived()
            self.close(keep=False)
        if self._wants:
            flush(self._environment, self._settings, self._wants[0])
        return result

    def _require_found(self, txn: Txn) -> None:
        """Make sure that what was in the file is there still."""
        for commit in self._edge:
            if not txn.contains("commits", commit):
                raise _VanishedError
        for digest in self._found_nodes:
            if not txn.contains("nodes", digest):
                raise _VanishedError
        for digest in self._found_values:
            if not txn.contains("chunks", digest):
                raise _VanishedError
        # What has come in another way must be there with all below it.
        for digest in self._left_out:
            if txn.contains("nodes", digest):
                raise _VanishedError
