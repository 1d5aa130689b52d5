"""A session's uncommitted work: edits by key, and the bytes behind them.

Bytes arrive hashed. Once a batch of them is together, one background thread of the
process writes it to LMDB while zarr encodes the next chunks, so that a transaction of any size runs
in bounded memory. What is staged this way is reachable from nothing until the commit; the session's
records list its digests so that no collection of garbage takes them.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import final

from vzarr.environment import Environment, Txn
from vzarr.errors import BusyError
from vzarr.format import Blob
from vzarr.leases import Lease
from vzarr.objects import Bytes, put_chunk
from vzarr.portable import at_fork
from vzarr.system import keep_freed_memory
from vzarr.traces import Traces

BATCH_BYTES = 32 << 20
"""Staged at once. Each batch waits for the disk, bigger ones keep other writers waiting."""
_MAX_BATCHES_WAITING = 1
# To keep and to write one more entry costs about as much as this many bytes of a chunk.
_ENTRY_COST_BYTES = 400

_Tasks = SimpleQueue[tuple[Callable[[], None], "Future[None]"]]
# None until something is to be written, and in a child process: threads do not survive a fork.
_tasks: _Tasks | None = None


def submit(task: Callable[[], None]) -> Future[None]:
    """Let the one thread of the process that writes ahead of commits do something.

    LMDB has one writer, so one thread serves the whole process. It is made of parts in which Ctrl-C
    leaves no lock behind: an executor would be out of order for good if that came in the wrong
    moment. Raises ``RuntimeError`` where the system gives us no thread.
    """
    global _tasks  # noqa: PLW0603 - see above
    future: Future[None] = Future()
    if _tasks is None:
        with _starting:
            if _tasks is None:
                tasks: _Tasks = SimpleQueue()
                _thread.start_new_thread(_serve, (tasks,))
                _tasks = tasks
    _tasks.put((task, future))
    return future


def _serve(tasks: _Tasks) -> None:
    threading.current_thread().name = "vzarr-stage"
    keep_freed_memory()
    while True:
        task, future = tasks.get()
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - for whoever waits for it
            future.set_exception(error)
        else:
            future.set_result(None)
        # What the task holds must not wait for the next one.
        del task, future


_starting = threading.RLock()


def _forget_writer() -> None:
    global _tasks, _starting  # noqa: PLW0603 - see above
    _tasks = None
    _starting = threading.RLock()


at_fork(after_in_child=_forget_writer)


@final
class _Task:
    """Work of the writing thread that another one waits for.

    Ctrl-C while a ``Future`` is waited for may leave its lock behind, and the writing thread would
    stop for ever. A plain lock is safe from that.
    """

    __slots__ = ("_running", "error", "pid")

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = os.getpid()
        self.error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()
        try:
            submit(lambda: self._run(work))
        except RuntimeError:
            # The system gives us no thread: whoever was to wait does it.
            self._run(work)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - for the thread that waits
            self.error = error
        finally:
            self._running.release()

    def wait(self) -> BaseException | None:
        """Wait for the end, and give what was raised."""
        with self._running:
            return self.error


@final
class _Batch:
    """Bytes on their way into LMDB; kept until they are there."""

    __slots__ = ("blobs", "checksums", "task")

    def __init__(self, blobs: dict[bytes, Bytes], checksums: dict[bytes, bytes]) -> None:
        self.blobs = blobs
        self.checksums = checksums
        self.task: _Task | None = None

    @property
    def running(self) -> _Task | None:
        """What puts them there; None if that failed, or was begun before a fork."""
        task = self.task
        return task if task is not None and task.pid == os.getpid() else None


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
        self._checksums: dict[bytes, bytes] = {}
        self._waiting: deque[_Batch] = deque()
        self.traces = Traces()

    def put(self, key: str, blob: Blob, data: Bytes, *, checksum: bytes | None = None) -> None:
        """Note the new value of a key; ``data`` must not change any more.

        The background writer computes the checksum of a large one where none is given. O(1); waits
        for that writer where it is too far behind, and raises what stopped it (``FullError``,
        ``BusyError``, ``StorageError``).
        """
        # Bytes first: a thread that reads without the lock finds what the edit names.
        self.stage(blob, data, checksum=checksum)
        self.edits[key] = blob
        self.traces.note(key)

    def stage(self, blob: Blob, data: Bytes, *, checksum: bytes | None = None) -> None:
        """Keep bytes until they are in LMDB, as ``put``, for no key yet."""
        if self.staged(blob.digest) is None:
            self._fresh[blob.digest] = data
            if checksum is not None:
                self._checksums[blob.digest] = checksum
            self._fresh_bytes += len(data) + _ENTRY_COST_BYTES
            if self._fresh_bytes >= BATCH_BYTES:
                self._hand_over()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever set, deleted or staged. O(1)."""
        return not (self.edits or self._fresh or self._waiting or self.traces)

    def delete(self, key: str) -> None:
        """Note that a key has no value any more. O(1)."""
        self.edits[key] = None
        self.traces.note(key, deleted=True)

    def staged(self, digest: bytes) -> Bytes | None:
        """Give bytes that are not in LMDB yet. O(1)."""
        data = self._fresh.get(digest)
        if data is None and self._waiting:
            for batch in tuple(self._waiting):
                data = batch.blobs.get(digest)
                if data is not None:
                    return data
        return data

    @property
    def fresh(self) -> dict[bytes, Bytes]:
        """The bytes that no batch took yet, by digest: the commit writes those it needs."""
        return self._fresh

    @property
    def checksums(self) -> dict[bytes, bytes]:
        """What is known of their checksums."""
        return self._checksums

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
            if batch.running is not None:
                batch.running.wait()

    def _hand_over(self) -> None:
        while len(self._waiting) >= _MAX_BATCHES_WAITING:
            self._settle(self._waiting[0])
        batch = _Batch(self._fresh, self._checksums)
        # In this order, so that a thread that reads without the lock finds them here or there.
        self._waiting.append(batch)
        self._fresh, self._fresh_bytes, self._checksums = {}, 0, {}
        self._start(batch)

    def _start(self, batch: _Batch) -> _Task:
        batch.task = _Task(lambda: self._write(batch))
        return batch.task

    def _settle(self, batch: _Batch) -> None:
        """Wait for the oldest batch. One that failed, or was lost in a fork, is begun anew."""
        task = batch.running
        if task is None or isinstance(task.error, BusyError):
            # Nobody waited when the file was busy, and it may not be any more.
            task = self._start(batch)
        error = task.wait()
        if error is not None:
            self._forget_failures()
            raise error
        self._waiting.popleft()

    def _forget_failures(self) -> None:
        """Begin the other batches that failed anew, too, when somebody asks for them next.

        They mostly did for the same reason, which may be gone by then.
        """
        for batch in self._waiting:
            if batch.running is not None and batch.running.wait() is not None:
                batch.task = None

    def _write(self, batch: _Batch) -> None:
        blobs = batch.blobs
        room = sum(map(len, blobs.values()))
        with self._environment.write(timeout=self._timeout, room=room) as txn:
            record = self._lease.add(txn, b"".join(blobs), room)
            put_blobs(txn, blobs.items(), batch.checksums)
        self._lease.record = record


def put_blobs(
    txn: Txn, blobs: Iterable[tuple[bytes, Bytes]], checksums: Mapping[bytes, bytes]
) -> None:
    """Write bytes under their digests, where they are not there yet. O(log n) each."""
    for digest, data in blobs:
        put_chunk(txn, digest, data, checksums.get(digest))
