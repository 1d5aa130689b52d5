"""The new file of a recovery: what its names need, written and checked before it gets its path."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import final

from vzarr.check import check_file
from vzarr.datafile import os_error
from vzarr.draft import exists, place
from vzarr.environment import Environment, Txn
from vzarr.errors import CorruptError, VzarrError
from vzarr.format import (
    DIGEST_BYTES,
    Entry,
    decode_commit,
    decode_entry,
    encode_lease,
    encode_reflog,
    encode_tag,
)
from vzarr.node import decode_node
from vzarr.objects import put_chunk
from vzarr.progress import Progress
from vzarr.renaming import Renaming
from vzarr.retelling import Retelling
from vzarr.salvage import Salvage

# So much is written in one txn: its pages are in memory until then.
_BATCH_BYTES = 16 << 20
_NODE_ROOM = 1 << 10


@final
@dataclass(slots=True)
class Written:
    """How much was written."""

    commits: int = 0
    nodes: int = 0
    chunks: int = 0
    nbytes: int = 0


@final
class Saving:
    """Writes a new file."""

    def __init__(
        self,
        salvage: Salvage,
        retelling: Retelling,
        names: Renaming,
        step: Callable[[int], None],
        *,
        left_out: Container[bytes] = (),
    ) -> None:
        """``left_out`` is what was never in the file, of a shallow or partial clone."""
        self._salvage = salvage
        self._left_out = left_out
        self._retelling = retelling
        self._names = names
        self._step = step
        self._commits: dict[bytes, bytes] = {}
        self._nodes: set[bytes] = set()
        self._chunks: set[bytes] = set()

    def collect(self) -> int:
        """Find what the names need; give how many objects that is. O(its nodes)."""
        names = self._names
        waiting: list[bytes] = [*names.branches.values()]
        waiting += [tag.commit for tag in names.tags.values()]
        for move in names.reflog.values():
            waiting += [commit for commit in (move.old, move.new) if commit is not None]
        roots: list[bytes] = []
        for lease in names.sessions.values():
            waiting.append(lease.base)
            roots += [lease.checkpoint] if lease.checkpoint is not None else []
        while waiting:
            commit = waiting.pop()
            if commit not in self._commits:
                self._commits[commit] = self._retelling.records[commit]
                record = decode_commit(self._commits[commit])
                waiting += record.parents
                roots.append(record.root)
        for root in roots:
            if root not in self._nodes and root not in self._left_out:
                self._nodes.add(root)
                self._entries([decode_entry(self._node(root))])
        return len(self._commits) + len(self._nodes) + len(self._chunks)

    def _entries(self, entries: list[Entry]) -> None:
        """Note all that entries refer to."""
        waiting: list[tuple[bytes, bool]] = []
        while entries or waiting:
            for entry in entries:
                blobs = [*entry.documents.values()]
                blobs += [entry.file] if entry.file is not None else []
                digests = (blob.digest for blob in blobs)
                self._chunks.update(each for each in digests if each not in self._left_out)
                waiting += [(entry.index.digest, False)] if entry.index is not None else []
                waiting += [(entry.directory.digest, True)] if entry.directory is not None else []
            entries = []
            if not waiting:
                return
            digest, directory = waiting.pop()
            if digest in self._nodes or digest in self._left_out:
                continue
            self._nodes.add(digest)
            node = decode_node(self._node(digest))
            if node.level:
                waiting += [(value[:DIGEST_BYTES], directory) for value in node.values]
            elif directory:
                entries = [decode_entry(value) for value in node.values]
            else:
                self._chunks.update(value[:DIGEST_BYTES] for value in node.values)

    def _node(self, digest: bytes) -> bytes:
        made = self._retelling.roots.get(digest) or self._retelling.mender.nodes.get(digest)
        return made if made is not None else self._object("nodes", digest)

    def _object(self, database: str, digest: bytes) -> bytes:
        data = self._salvage.get(database, digest)
        assert data is not None, "what was collected is there"
        return data

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def write(
        self, target: str, meta: dict[bytes, bytes], progress: Callable[[], Progress | None]
    ) -> Written:
        """Write all of it to a draft, check that, and give it its path."""
        draft = os.path.join(os.path.dirname(target), f".vzarr-{secrets.token_hex(8)}")
        try:
            written = self._fill(draft, meta)
            report = check_file(draft, "full", progress=progress())
            problems = [problem for problem in report.problems if problem.kind != "metadata"]
            if problems:
                raise CorruptError(
                    f"what was saved from {self._salvage.path} did not pass a check, so nothing "
                    f"was written: {problems[0].message}",
                    path=self._salvage.path,
                )
            if os.path.lexists(target):
                raise exists(target)
            place(draft, target)
        except OSError as error:
            if isinstance(error, VzarrError):
                raise
            raise os_error(error, f"cannot write {target}") from error
        finally:
            # The draft is ours alone, and so is its lock file; one that stays does no harm.
            for leftover in (draft, f"{draft}-lock"):
                with contextlib.suppress(OSError):
                    os.unlink(leftover)
        return written

    def _fill(self, draft: str, meta: dict[bytes, bytes]) -> Written:
        written = Written()

        def initialise(txn: Txn) -> None:
            for key, data in meta.items():
                txn.put("meta", key, data)

        environment = Environment.create(draft, initialise)
        try:
            batch: list[tuple[str, bytes, bytes]] = []
            nbytes = 0
            for item in self._objects():
                batch.append(item)
                nbytes += len(item[2])
                self._step(1)
                if nbytes + len(batch) * _NODE_ROOM >= _BATCH_BYTES:
                    self._put(environment, batch, last=False)
                    written.nbytes += nbytes
                    batch, nbytes = [], 0
            self._put(environment, batch, last=True)
            written.nbytes += nbytes
            environment.sync()
        finally:
            environment.close()
        written.commits, written.nodes = len(self._commits), len(self._nodes)
        written.chunks = len(self._chunks)
        return written

    def _objects(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Give all objects, in the order of their digests, in which LMDB fills its pages."""
        for digest in sorted(self._chunks):
            yield "chunks", digest, self._object("chunks", digest)
        for digest in sorted(self._nodes):
            yield "nodes", digest, self._node(digest)
        for digest in sorted(self._commits):
            yield "commits", digest, self._commits[digest]

    def _put(
        self, environment: Environment, batch: list[tuple[str, bytes, bytes]], *, last: bool
    ) -> None:
        """Write objects; with the last of them the names."""
        room = 2 * sum(len(data) + _NODE_ROOM for _, _, data in batch) + _BATCH_BYTES
        with environment.write(room=room) as txn:
            for database, digest, data in batch:
                if database == "chunks":
                    put_chunk(txn, digest, data)
                else:
                    txn.put(database, digest, data)
            if last:
                self._put_names(txn)

    def _put_names(self, txn: Txn) -> None:
        names = self._names
        for branch, head in names.branches.items():
            txn.put("branches", branch.encode(), head)
        for tag, record in names.tags.items():
            txn.put("tags", tag.encode(), encode_tag(record))
        for key, move in names.reflog.items():
            txn.put("reflog", key, encode_reflog(move))
        for key, lease in names.sessions.items():
            txn.put("sessions", key, encode_lease(lease))
