"""What has arrived from elsewhere and is not reachable yet: kept from gc, and found again.

It is the work of a session of its own, on no branch, whose snapshot holds what came: an array of
values, and one of packs of nodes and commits. So a checkpoint keeps it from being collected when
this process dies, and whoever transfers next goes on with it.
"""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Literal, final

from vzarr import leases
from vzarr.committing import Settings
from vzarr.environment import Environment, Txn
from vzarr.errors import CommitNotFoundError, CorruptError, VzarrError
from vzarr.format import (
    EMPTY_ENTRY,
    SESSION,
    Blob,
    Digest,
    Entry,
    LeaseRecord,
    chunk_digest,
    commit_digest,
    entry_digest,
    node_digest,
)
from vzarr.hierarchy import Hierarchy
from vzarr.leases import Lease
from vzarr.objects import Bytes, Objects, put_chunk
from vzarr.workspace import Workspace

Kind = Literal["node", "root", "commit"]

LABEL = "~transfer"
"""In the place of a branch, in the lease of what arrives. No branch can have the name."""
_DIGESTS = {"node": node_digest, "root": entry_digest, "commit": commit_digest}
_CODES: dict[Kind, int] = {"node": 0, "root": 1, "commit": 2}
_HEAD = struct.Struct("<BI")
# After so much, or so long, what has arrived is made safe.
_SAVE_BYTES, _SAVE_SECONDS = 64 << 20, 10.0
_VALUES, _PACKS = "values", "packs"
_DOCUMENT = json.dumps(
    {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [2**32 - 1],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
    }
).encode()


@final
class Arrivals:
    """Objects on their way into a repository. Used by one thread."""

    def __init__(self, objects: Objects, settings: Settings) -> None:
        """Take up what a transfer that was interrupted has left, if there is something."""
        self._environment = objects.environment
        self._settings = settings
        self.records: dict[Kind, dict[bytes, bytes]] = {"node": {}, "root": {}, "commit": {}}
        """Nodes, roots and commits by digest."""
        self.taken_up = False
        """Whether there was something."""
        lease = _take_up(self._environment, settings)
        if lease is None:
            lease = Lease.create(self._environment, LABEL, _any_commit(self._environment))
        root = EMPTY_ENTRY
        try:
            if lease.record.checkpoint is not None:
                root = objects.load_root(lease.record.checkpoint)
            self._work = Workspace(objects, lease, settings.timeout, EMPTY_ENTRY, root)
            self._values, self._packs = self._begin(root)
        except BaseException:
            lease.close()
            raise
        self._pack: list[bytes] = []
        self._unsaved_bytes = 0
        self._saved_at = time.monotonic()

    def _begin(self, root: Entry) -> tuple[int, int]:
        """Read the packs of an earlier transfer again; give the numbers of values and packs."""
        view = Hierarchy(self._work.overlay, root)
        numbers = []
        for name in (_VALUES, _PACKS):
            entry = view.entry(name)
            index = None if entry is None else entry.index
            numbers.append(0 if index is None else index.count)
        self.taken_up = root != EMPTY_ENTRY
        for number in range(numbers[1]):
            blob = view.find(f"{_PACKS}/c/{number}")
            if blob is not None:
                for kind, data in _unpack(bytes(self._work.read(blob))):
                    self.records[kind][_DIGESTS[kind](data)] = data
        return numbers[0], numbers[1]

    # ── what arrives ─────────────────────────────────────────────────────────────────────────────

    def add(self, kind: Kind, digest: bytes, data: bytes) -> None:
        """Keep a node, a root or a commit, whose digest was compared."""
        if digest not in self.records[kind]:
            self.records[kind][digest] = data
            self._pack += [_HEAD.pack(_CODES[kind], len(data)), data]
            self._note(len(data))

    def add_value(self, blob: Blob, data: Bytes) -> None:
        """Keep a chunk, document or file, whose digest was compared. Waits for the disk."""
        self._put(_VALUES, self._values, blob, data)
        self._values += 1
        self._note(blob.length)

    def _put(self, name: str, number: int, blob: Blob, data: Bytes) -> None:
        if not number:
            document = Blob(chunk_digest(_DOCUMENT), len(_DOCUMENT))
            self._work.put(f"{name}/zarr.json", document, _DOCUMENT)
        self._work.put(f"{name}/c/{number}", blob, data)

    def _note(self, nbytes: int) -> None:
        self._unsaved_bytes += nbytes
        if self._unsaved_bytes >= _SAVE_BYTES or (
            time.monotonic() - self._saved_at >= _SAVE_SECONDS
        ):
            self.save()

    def length(self, digest: bytes) -> int | None:
        """Tell how long a value is that came and is not in the file yet; None if it did not."""
        data = self._work.changes.staged(digest)
        return None if data is None else len(data)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def save(self) -> None:
        """Make sure that what came is found again if this process dies. One fsync."""
        if self._pack:
            data = b"".join(self._pack)
            self._put(_PACKS, self._packs, Blob(chunk_digest(data), len(data)), data)
            self._packs += 1
            self._pack = []
        if self._unsaved_bytes:
            self._work.spill(checkpoint=True)
            if self._settings.durability == "full":
                self._environment.sync()
        self._unsaved_bytes, self._saved_at = 0, time.monotonic()

    def settle(self) -> int:
        """Wait until what is on its way to the disk is there; give the bytes that are not yet."""
        changes = self._work.changes
        changes.drain()
        records = sum(len(data) for found in self.records.values() for data in found.values())
        return records + sum(map(len, changes.fresh.values()))

    def write(self, txn: Txn, records: Mapping[Kind, Mapping[bytes, bytes]]) -> None:
        """Write values that came, and these records, and give up what keeps them from gc.

        For the txn that makes them reachable; after ``settle``. Raises ``SessionStateError`` if a
        collection of garbage took this process for dead.
        """
        lease = self._work.lease
        lease.require(txn)
        for digest, data in self._work.changes.fresh.items():
            put_chunk(txn, digest, data)
        for kind, found in records.items():
            database = "commits" if kind == "commit" else "nodes"
            # In key order LMDB finds the next place beside the last one.
            for digest, data in sorted(found.items()):
                txn.put(database, digest, data, overwrite=False)
        lease.delete(txn)

    def arrived(self) -> None:
        """Say that the txn of ``write`` has ended well: all is where it belongs."""
        self._work.lease.renew(self._work.lease.base)

    def close(self, *, keep: bool) -> None:
        """End, and keep what came for the next transfer, or not."""
        try:
            if keep:
                # The first error is the one to be told.
                with contextlib.suppress(VzarrError):
                    self.save()
        finally:
            self._work.leave()


def _any_commit(environment: Environment) -> Digest:
    with environment.read() as txn:
        for commit, _ in txn.scan("commits", keys_only=True):
            return Digest(commit)
    raise CommitNotFoundError(f"{environment.path} has no commit at all: clone into a new file")


def _take_up(environment: Environment, settings: Settings) -> Lease | None:
    """Make the lease of an interrupted transfer ours; None if there is none."""
    with environment.read() as txn:
        if not any(_is_left(environment, *found) for found in leases.leases(txn)):
            return None
    with environment.write(timeout=settings.timeout) as txn:
        for session_id, record in leases.leases(txn):
            if _is_left(environment, session_id, record):
                lease = Lease(environment, session_id, record)
                lease.record = lease.put(txn, staged=record.checkpoint)
                return lease
    return None


def _is_left(environment: Environment, session_id: bytes, record: LeaseRecord) -> bool:
    return (
        record.kind == SESSION
        and record.branch == LABEL
        and record.checkpoint is not None
        and leases.is_alive(environment, session_id, record) is False
    )


def _unpack(pack: bytes) -> Iterator[tuple[Kind, bytes]]:
    kinds: dict[int, Kind] = {code: kind for kind, code in _CODES.items()}
    at = 0
    while at < len(pack):
        if at + _HEAD.size > len(pack):
            raise CorruptError("a pack of an interrupted transfer is damaged; run a check")
        code, length = _HEAD.unpack_from(pack, at)
        at += _HEAD.size
        if code not in kinds or at + length > len(pack):
            raise CorruptError("a pack of an interrupted transfer is damaged; run a check")
        yield kinds[code], pack[at : at + length]
        at += length
