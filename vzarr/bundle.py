"""Write what another repository lacks to a file, for mail or a stick, and take it from one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from vzarr import absence, history
from vzarr.bundlefile import BundleFile, BundleWriter
from vzarr.committing import Settings
from vzarr.datafile import our_errors, real_path
from vzarr.draft import Draft, exists
from vzarr.errors import CorruptError, InvalidInputError, NotFoundError, RefNotFoundError
from vzarr.exchange import TransferReport, receive, report, require_base
from vzarr.format import (
    Blob,
    CommitRecord,
    Digest,
    chunk_digest,
    commit_digest,
    decode_entry,
    entry_digest,
    node_digest,
)
from vzarr.lineage import EMPTY_ROOT, find_nearest, parents_first, within_depth
from vzarr.novelty import Novelty
from vzarr.objects import Objects
from vzarr.progress import Progress
from vzarr.reception import Reception
from vzarr.serving import identity
from vzarr.supply import Ref, list_refs

_BATCH = 400
_HASHES = {"commits": commit_digest, "nodes": node_digest, "chunks": chunk_digest}


@final
@dataclass(frozen=True, slots=True)
class BundleReport:
    """What a bundle holds; prints as a summary."""

    path: str
    """The file, as an absolute path without links."""
    refs: dict[str, str]
    """The branches and tags in it, each with its commit."""
    needs: tuple[str, ...]
    """Ids of the commits that whoever takes it must have."""
    commits: int
    nodes: int
    chunks: int
    left_out: int
    """Snapshots, groups, arrays and files that are not in it, of a shallow or partial one."""
    file_bytes: int
    seconds: float

    def __str__(self) -> str:
        names = ", ".join(self.refs)
        text = (
            f"{self.path}: {names}; {self.commits:,} commits, {self.nodes:,} nodes and "
            f"{self.chunks:,} chunks in {self.file_bytes:,} bytes, in {self.seconds:.1f} s."
        )
        if self.needs:
            text += "\nWho takes it must have " + ", ".join(each[:12] for each in self.needs[:5])
            text += f" and {len(self.needs) - 5:,} more commits." if len(self.needs) > 5 else "."
        return text

    __repr__ = __str__


def write_bundle(
    objects: Objects,
    target: str,
    names: Sequence[str] | None,
    since: Sequence[Digest],
    *,
    depth: int | None = None,
    path: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BundleReport:
    """Write a bundle; see ``Repository.bundle``."""
    started = time.monotonic()
    target = real_path(target)
    if os.path.lexists(target) and not overwrite:
        raise exists(target)
    refs = _choose(objects, names)
    pins = [ref.commit for ref in refs]
    with _Pinned(objects, pins), Draft(target, 0o666) as draft:
        bundling = _Bundling(objects, draft, progress)
        try:
            bundling.collect(refs, since, depth, tuple(path.split("/")) if path else ())
            file_bytes = bundling.finish(refs)
        finally:
            bundling.writer.close()
        with our_errors(f"cannot write {target}"):
            if overwrite:
                draft.replace()
            else:
                draft.place()
    return BundleReport(
        path=target,
        refs={ref.name: ref.commit.hex() for ref in refs},
        needs=tuple(commit.hex() for commit in bundling.needs),
        commits=len(bundling.commits),
        nodes=bundling.nodes,
        chunks=bundling.chunks,
        left_out=len(bundling.left_out),
        file_bytes=file_bytes,
        seconds=time.monotonic() - started,
    )


def heads_of(path: str) -> list[Digest]:
    """List the commits that the names in a bundle are on."""
    with BundleFile.open(path) as bundle:
        return [ref.commit for ref in bundle.refs()]


def _choose(objects: Objects, names: Sequence[str] | None) -> list[Ref]:
    found = list_refs(objects.environment)
    if names is None:
        return found
    chosen = []
    for name in dict.fromkeys(names):
        # A branch before a tag of the same name.
        ref = next((ref for ref in found if ref.name == name), None)
        if ref is None:
            raise RefNotFoundError(
                f"{objects.environment.path} has no branch or tag {name!r}: a bundle is of these",
                name=name,
            )
        chosen.append(ref)
    return chosen


@final
class _Pinned:
    """Keeps commits from being collected while they are read."""

    def __init__(self, objects: Objects, commits: Iterable[Digest]) -> None:
        self._environment = objects.environment
        self._commits = list(commits)
        self._held: list[Digest] = []

    def __enter__(self) -> None:
        try:
            for commit in self._commits:
                self._environment.pin(commit)
                self._held.append(commit)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        while self._held:
            self._environment.unpin(self._held.pop())


@final
class _Bundling:
    """One bundle that is being written."""

    def __init__(self, objects: Objects, draft: Draft, progress: Progress | None) -> None:
        self._objects = objects
        self._environment = objects.environment
        self._progress = progress
        self.writer = BundleWriter(draft)
        self.commits: list[Digest] = []
        self.needs: list[Digest] = []
        self.left_out: set[bytes] = set()
        self.nodes = self.chunks = self._nbytes = self._total = 0

    def collect(
        self,
        refs: Sequence[Ref],
        since: Sequence[Digest],
        depth: int | None,
        path: Sequence[str],
    ) -> None:
        """Write all objects that the refs have, and ``since`` does not."""
        heads = [ref.commit for ref in refs]
        commits = self._list_commits(heads, since)
        nearest = find_nearest(commits)
        wanted = within_depth(commits, heads, depth)
        with self._environment.read() as txn:
            without = set(absence.noted(txn))
        walk = Novelty(
            self._objects.load,
            self._objects.load_root,
            path=path,
            without=without,
            has=self.writer.__contains__,
        )
        for commit, record in commits.items():
            if (commit not in wanted or record.root in without) and record.root != EMPTY_ROOT:
                self.left_out.add(record.root)
                continue
            data = self._get("nodes", record.root, entry_digest)
            self._add(record.root, data)
            roots = [history.get(self._environment, each).root for each in nearest[commit]]
            entry = decode_entry(data)
            if not roots:
                # What a first bundle holds is hardly less than this.
                self._total = max(self._total, entry.nbytes)
            walk.begin(record.root, entry, roots)
            while digests := walk.wanted(_BATCH):
                found = {digest: self._get("nodes", digest, node_digest) for digest in digests}
                for digest, data in found.items():
                    self._add(digest, data)
                walk.take(_BATCH, found)
                self._add_values(walk)
            self._add_values(walk)
        if not walk.reached:
            name = "/".join(path)
            raise NotFoundError(f"none of the commits has a group or array {name!r}", name=name)
        self.left_out |= walk.left_out
        # The same group may have been left out at one path, and be wanted at another.
        self.left_out = {digest for digest in self.left_out if digest not in self.writer}

    def _list_commits(
        self, heads: Sequence[Digest], since: Sequence[Digest]
    ) -> dict[Digest, CommitRecord]:
        """Find and write the commits, and find those that they need; parents first."""
        old = {commit for commit, _ in history.log(self._environment, *since)}
        new = [pair for pair in history.log(self._environment, *heads) if pair[0] not in old]
        if not new:
            raise InvalidInputError(
                "there is nothing to put into a bundle: since= has all that was asked for"
            )
        commits = parents_first(dict(new))
        self.commits = list(reversed(commits))
        for commit in self.commits:
            self.writer.add(commit, self._get("commits", commit, commit_digest))
        parents = (parent for record in commits.values() for parent in record.parents)
        self.needs = sorted({parent for parent in parents if parent not in commits})
        return commits

    def _get(self, database: str, digest: bytes, hashed: object) -> bytes:
        with self._environment.read() as txn:
            data = txn.get(database, digest)
        if data is None or not callable(hashed) or hashed(data) != digest:
            raise CorruptError(
                f"object {digest.hex()[:12]} of {self._environment.path} is "
                + ("missing" if data is None else "damaged")
                + ": run a check",
                path=self._environment.path,
            )
        return data

    def _add(self, digest: bytes, data: bytes) -> None:
        if digest not in self.writer:
            self.writer.add(digest, data)
            self.nodes += 1

    def _add_values(self, walk: Novelty) -> None:
        blobs, walk.blobs = walk.blobs, []
        for blob in dict.fromkeys(blobs):
            if blob.digest not in self.writer:
                self.writer.add(blob.digest, self._value(blob))
                self.chunks += 1
                self._nbytes += blob.length
                if self._progress is not None:
                    total = self._total and max(self._nbytes, self._total)
                    self._progress(self._nbytes, total, "bytes")

    def _value(self, blob: Blob) -> bytes:
        data = self._get("chunks", blob.digest, chunk_digest)
        if len(data) != blob.length:
            raise CorruptError(
                f"chunk {blob.digest.hex()[:12]} of {self._environment.path} has another length "
                "than its reference says: run a check",
                path=self._environment.path,
            )
        return data

    def finish(self, refs: Sequence[Ref]) -> int:
        """Write what is in it, and flush it; give the size of the file."""
        own_id = identity(self._objects)[1]
        return self.writer.finish(own_id, refs, self.needs, self.commits, sorted(self.left_out))


def unbundle(
    objects: Objects,
    settings: Settings,
    path: str,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> TransferReport:
    """Take all of a bundle; see ``Repository.unbundle``."""
    started = time.monotonic()
    with BundleFile.open(path) as bundle:
        require_base(objects.environment, path, bundle.needs)
        reception = Reception(
            objects,
            settings,
            bundle,
            other=f"bundle {path}",
            ids=(bundle.id, identity(objects)[1]),
            progress=progress,
        )
        name = os.path.basename(path)
        refs = bundle.refs()
        updates = receive(
            objects, settings, reception, [], refs, [], why=f"unbundle: {name}", force=force
        )
    return report(path, updates, reception.received, started)
