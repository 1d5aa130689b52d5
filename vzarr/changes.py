"""A session's uncommitted work: edits by key, and the bytes behind them.

Bytes arrive hashed. Once a batch of them is together, one background thread of the
process writes it to LMDB while zarr encodes the next chunks, so that a transaction of any size runs
in bounded memory. What is staged this way is reachable from nothing until the commit; the session's
records list its digests so that no collection of garbage takes them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from vzarr.environment import Environment, Txn
from vzarr.format import Blob
from vzarr.leases import Lease
from vzarr.objects import Bytes
from vzarr.traces import Traces

BATCH_BYTES = 16 << 20
"""Staged at once. Each batch waits for the disk, bigger ones keep other writers waiting."""
_MAX_BATCHES_WAITING = 3
# An entry of the dictionaries here costs about as much as this many bytes of chunk.
_ENTRY_COST_BYTES = 200

_writer: ThreadPoolExecutor | None = None
_writer_lock = threading.Lock()


def submit(task: Callable[[], None]) -> Future[None]:
    """Let the one thread of the process that writes ahead of commits do something."""
    global _writer  # noqa: PLW0603 - LMDB has one writer, so one thread serves the whole process
    with _writer_lock:
        if _writer is None:
            _writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vzarr-stage")
        return _writer.submit(task)


def _forget_writer() -> None:
    global _writer, _writer_lock  # noqa: PLW0603 - threads do not survive a fork
    _writer = None
    _writer_lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_writer)


@final
class _Batch:
    """Bytes on their way into LMDB; kept until they are there."""

    __slots__ = ("blobs", "future", "pid")

    def __init__(self, blobs: dict[bytes, Bytes]) -> None:
        self.blobs = blobs
        self.future: Future[None] | None = None
        self.pid = 0


@final
class ChangeSet:
    """Edits not yet in the tree and bytes not yet in LMDB. Not thread-safe: its session locks."""

    def __init__(self, environment: Environment, lease: Lease, timeout: float) -> None:
        """``lease`` is written with the first batch.

        ``timeout`` is for how many seconds a batch waits for other writers.
        """
        self._environment = environment
        self._lease = lease
        self._timeout = timeout
        self.edits: dict[str, Blob | None] = {}
        self._fresh: dict[bytes, Bytes] = {}
        self._fresh_bytes = 0
        self._waiting: deque[_Batch] = deque()
        self.traces = Traces()

    def put(self, key: str, blob: Blob, data: Bytes) -> None:
        """Note the new value of a key; ``data`` must not change any more.

        O(1); waits for the background writer where that is too far behind, and raises what stopped
        it (``FullError``, ``BusyError``, ``StorageError``).
        """
        # Bytes first: a thread that reads without the lock finds what the edit names.
        self.stage(blob, data)
        self.edits[key] = blob
        self.traces.note(key)

    def stage(self, blob: Blob, data: Bytes) -> None:
        """Keep bytes until they are in LMDB, as ``put``, for no key yet."""
        if self.staged(blob.digest) is None:
            self._fresh[blob.digest] = data
            self._fresh_bytes += len(data) + _ENTRY_COST_BYTES
            if self._fresh_bytes >= BATCH_BYTES:
                self._hand_over()

    def delete(self, key: str) -> None:
        """Note that a key has no value any more. O(1)."""
        self.edits[key] = None
        self.traces.note(key, deleted=True)

    def staged(self, digest: bytes) -> Bytes | None:
        """Give bytes that are not in LMDB yet. O(1)."""
        data = self._fresh.get(digest)
        if data is None:
            for batch in tuple(self._waiting):
                data = batch.blobs.get(digest)
                if data is not None:
                    return data
        return data

    @property
    def fresh(self) -> dict[bytes, Bytes]:
        """The bytes that no batch took yet, by digest: the commit writes those it needs."""
        return self._fresh

    def flush(self) -> None:
        """Put all bytes into LMDB now: tree nodes that are written ahead may name them."""
        if self._fresh:
            self._hand_over()
        self.drain()

    def drain(self) -> None:
        """Wait until every batch is in LMDB; raise what stopped one. The work stays staged."""
        while self._waiting:
            self._settle(self._waiting[0])

    def abandon(self) -> None:
        """Wait for the batches under way, whatever becomes of them: the work is not wanted."""
        for batch in self._waiting:
            if batch.future is not None and batch.pid == os.getpid():
                batch.future.exception()

    def _hand_over(self) -> None:
        while len(self._waiting) >= _MAX_BATCHES_WAITING:
            self._settle(self._waiting[0])
        batch = _Batch(self._fresh)
        # In this order, so that a thread that reads without the lock finds them here or there.
        self._waiting.append(batch)
        self._fresh, self._fresh_bytes = {}, 0
        self._start(batch)

    def _start(self, batch: _Batch) -> None:
        batch.pid = os.getpid()
        batch.future = submit(lambda: self._write(batch.blobs))

    def _settle(self, batch: _Batch) -> None:
        """Wait for the oldest batch. One that failed, or was lost in a fork, is begun anew."""
        if batch.future is None or batch.pid != os.getpid():
            self._start(batch)
        assert batch.future is not None
        future, batch.future = batch.future, None
        future.result()
        self._waiting.popleft()

    def _write(self, blobs: dict[bytes, Bytes]) -> None:
        room = sum(map(len, blobs.values()))
        with self._environment.write(timeout=self._timeout, room=room) as txn:
            record = self._lease.add(txn, b"".join(blobs), room)
            put_blobs(txn, blobs.items())
        self._lease.record = record


def put_blobs(txn: Txn, blobs: Iterable[tuple[bytes, Bytes]]) -> None:
    """Write bytes under their digests, where they are not there yet. O(log n) each."""
    for digest, data in blobs:
        txn.put("chunks", digest, data, overwrite=False)
