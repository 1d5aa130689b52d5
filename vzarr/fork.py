"""Forks: writers of one session in many processes, for dask workers and ``multiprocessing``.

A fork begins with its session's state, which is put into the file for it. Whatever a process writes
to it goes into the file at once, with a record of the keys: its journal. So nobody has to send
anything back, and each process sees what the others wrote. In the end the session reads the journal
and merges what it says, as if it were another branch.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, final

from vzarr import history, leases
from vzarr.committing import Settings
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    BusyError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SessionStateError,
)
from vzarr.format import (
    FORK,
    MERGED_FORK,
    Blob,
    Digest,
    Entry,
    JournalEdit,
    LeaseRecord,
    chunk_digest,
    decode_journal,
    encode_lease,
    session_key,
)
from vzarr.hierarchy import Hierarchy
from vzarr.journal import TAKEN_OVER, JournalReader, JournalWriter, ended
from vzarr.leases import Lease
from vzarr.merge import Strategy, list_conflicts, merge
from vzarr.objects import Bytes, Objects, Verify, root_digest
from vzarr.portable import at_fork
from vzarr.resizes import racing_resizes
from vzarr.traces import Traces, array_of
from vzarr.workspace import Workspace, check_value

# A worker that is given one task after the other finds its fork open.
_KEPT_OPEN = 8

_forks: weakref.WeakValueDictionary[bytes, Fork] = weakref.WeakValueDictionary()
"""The forks of this process, by id."""
_made: weakref.WeakKeyDictionary[Lease, dict[bytes, Fork]] = weakref.WeakKeyDictionary()
"""The forks that were made here, kept until they or their sessions end."""
_recent: OrderedDict[bytes, Fork] = OrderedDict()
_unused: deque[Environment] = deque()
"""What the forks that came from other processes had open, and nobody needs any more."""
_recent_lock = threading.Lock()


@final
class Fork:
    """A writer of a session that can be pickled and written to in any process of this machine.

    Made by ``Session.fork``. Its ``store`` is a zarr store: give it, or arrays of it, to workers. A
    write is in the file when it returns, and every process that has the fork sees it from then on.
    It becomes part of the session with ``Session.merge_fork``, and of a branch when that commits.
    Thread-safe. Where two workers write to parts of one chunk, the last one overwrites the other's
    part, as in any zarr store; with a fork for each of them, ``merge_fork`` puts both together.

    After ``merge_fork``, ``discard``, the end of the session or the death of its process, writes
    raise ``SessionStateError``; what a process has open of it then can be read as it was.
    """

    def __init__(
        self, objects: Objects, timeout: float, fork_id: bytes, record: LeaseRecord
    ) -> None:
        self._objects = objects
        self._environment = objects.environment
        self._timeout = timeout
        self._id = fork_id
        self._record = record
        assert record.staged is not None, "a fork begins from a snapshot in the file"
        self._reader = JournalReader(objects, fork_id, objects.load_root(record.staged))
        self._writer = JournalWriter(objects.environment, fork_id, timeout)
        # The arrays of which deletions without effect are in the journal.
        self._idle: set[str] = set()

    @classmethod
    def create(cls, objects: Objects, settings: Settings, parent: Lease, root: Digest) -> Fork:
        """Make a fork of the session with that lease, whose state is in the file under ``root``."""
        fork_id = uuid.uuid4().bytes
        with objects.environment.write(timeout=settings.timeout) as txn:
            record = replace(
                parent.put(txn),
                kind=FORK,
                parent=parent.id,
                created=history.now(),
                nbytes=0,
                staged=root,
                checkpoint=None,
                checkpointed=None,
            )
            txn.put("sessions", session_key(fork_id, 0), encode_lease(record))
        fork = cls(objects, settings.timeout, fork_id, record)
        _forks[fork_id] = fork
        _made.setdefault(parent, {})[fork_id] = fork
        return fork

    def __reduce__(self) -> tuple[Any, ...]:
        # Said here: pools and clusters wait for ever for what cannot be unpickled.
        with self._environment.read() as txn:
            if leases.find(txn, self._id) is None:
                raise ended(self._id, None)
        verify, path = self._objects.verify, self._environment.path
        return _reopen, (path, self._id, self._record, verify, self._timeout)

    # ── what it is ───────────────────────────────────────────────────────────────────────────────

    @property
    def id(self) -> str:
        """The fork's own id, 32 hexadecimal digits."""
        return self._id.hex()

    @property
    def branch(self) -> str:
        """The branch that the session will commit to."""
        return self._record.branch

    @property
    def base(self) -> str:
        """The id of the commit that the session began from."""
        return self._record.base.hex()

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes: no."""
        return False

    @property
    def environment(self) -> Environment:
        """The open file below."""
        return self._environment

    @property
    def store(self) -> Any:
        """A ``VzarrStore`` on this fork, for zarr, xarray and dask; it can be pickled too."""
        from vzarr.store import VzarrStore

        return VzarrStore(self)

    @property
    def root_group(self) -> Any:
        """The root ``zarr.Group``; made where there is none yet."""
        import zarr

        return zarr.open_group(self.store, mode="a")

    @property
    def has_changes(self) -> bool:
        """Whether it differs from what it began with. O(edits since it was last asked)."""
        return self.root_id() != (self._record.staged or b"").hex()

    def root_id(self) -> str:
        """Give the content id of the fork's present state: equal data, equal id. O(edits)."""
        return root_digest(self.hierarchy.root).hex()

    def __repr__(self) -> str:
        return f"<vzarr.Fork {self.id[:8]} of branch {self.branch!r} of {self._environment.path}>"

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str) -> Bytes | None:
        """Give the value of a key, or None. O(depth of the path · log n)."""
        blob = self.find(key)
        return None if blob is None else self.read(blob)

    def read(self, blob: Blob) -> Bytes:
        """Give the bytes behind a reference. Raises ``CorruptError``."""
        return self._objects.fetch(blob)

    def in_place(self) -> AbstractContextManager[Callable[[Blob], Bytes]]:
        """Give a function that reads as ``read`` without copying, for use in the ``with`` block.

        What it gives must not be touched once the block has ended.
        """
        return self._objects.in_place()

    def find(self, key: str) -> Blob | None:
        """Give the digest and length of a key's value, or None; also of one just written by others.

        O(depth of the path · log n), and O(edits of others since the last time).
        """
        return self._reader.find(key)

    def keys(self, path: str = "") -> Iterator[str]:
        """List every key below a path, as the fork is now."""
        return self.hierarchy.keys(path)

    def children(self, path: str = "") -> list[str]:
        """List the names that follow a path in keys."""
        return self.hierarchy.children(path)

    def sums(self, path: str = "") -> tuple[int, int]:
        """Count the keys below a path, and the bytes of their values. O(depth · log n)."""
        return self.hierarchy.sums(path)

    @property
    def hierarchy(self) -> Hierarchy:
        """The fork's present state as a tree. O(edits since it was last asked · depth)."""
        return self._reader.folded()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def set(self, key: str, data: Bytes) -> None:
        """Set the value of a key, in the file when this returns.

        ``data`` must not change meanwhile. Threads of one process that write at once share a txn,
        and the wait for the disk. Raises ``SessionStateError`` once the fork has ended,
        ``InvalidInputError``, ``BusyError``, ``FullError``.
        """
        self.begin_set(key, data).result()

    def begin_set(self, key: str, data: Bytes) -> Future[None]:
        """Begin to set the value of a key; the result is there when ``set`` would return."""
        return self.begin_set_all({key: data})

    def begin_set_all(self, values: Mapping[str, Bytes]) -> Future[None]:
        """Begin to set the values of many keys, in one txn."""
        edits: list[tuple[str, Blob | None]] = []
        for key, data in values.items():
            check_value(key, data)
            edits.append((key, Blob(chunk_digest(data), len(data))))
        digests = (blob.digest for _, blob in edits if blob is not None)
        return self._writer.join(edits, dict(zip(digests, values.values(), strict=True)))

    def set_if_absent(self, key: str, data: Bytes) -> None:
        """Set the value of a key that has none: one step, for other processes too."""
        check_value(key, data)
        blob = Blob(chunk_digest(data), len(data))
        self._reader.follow()
        seen = self._reader.seen
        present = self.find(key) is not None
        if present:
            return
        with self._environment.write(timeout=self._timeout, room=len(data)) as txn:
            for _, record in leases.records(txn, self._id, after=seen):
                for written, value in decode_journal(record):
                    if written == key:
                        present = value is not None
            if not present:
                self._writer.put(txn, [(key, blob)], {blob.digest: data})

    def delete(self, key: str) -> None:
        """Delete a key, if it is there. Raises as ``set``."""
        self.begin_delete(key).result()

    def begin_delete(self, key: str) -> Future[None]:
        """Begin to delete a key; the result is there when ``delete`` would return."""
        if self.find(key) is None:
            # zarr deletes every chunk that holds only fill values; most were never there. The
            # session needs to know that this array was written, not how often.
            array = array_of(key)
            if array in self._idle:
                done: Future[None] = Future()
                done.set_result(None)
                return done
            self._idle.add(array)
        return self._writer.join([(key, None)], {})

    def delete_below(self, path: str) -> None:
        """Delete every key below a path. Raises as ``set``. O(keys)."""
        keys = list(self.keys(path))
        if keys:
            self._writer.join([(key, None) for key in keys], {}).result()

    def discard(self) -> None:
        """Drop what was written to the fork; nobody can write to it from here on.

        Does nothing to a fork that has ended. Raises ``SessionStateError`` if its session has taken
        it over, and ``BusyError``. O(records of its journal).
        """
        with self._environment.write(timeout=self._timeout) as txn:
            record = leases.find(txn, self._id)
            if record is not None and record.kind == MERGED_FORK:
                raise SessionStateError(
                    f"fork {self.id[:8]} cannot be discarded: {TAKEN_OVER}; discard the session"
                )
            if record is not None:
                leases.delete(txn, self._id)
        _forget(self._id)

    def _after_fork(self) -> None:
        self._reader.after_fork()
        self._writer.after_fork()


def _forget(fork_id: bytes) -> None:
    """Keep a fork for nobody's sake but those who hold it."""
    for made in _made.values():
        made.pop(fork_id, None)


# ── in other processes ───────────────────────────────────────────────────────────────────────────


def _reopen(path: str, fork_id: bytes, record: LeaseRecord, verify: Verify, timeout: float) -> Fork:
    """Unpickle a fork: the one that this process has already, or one with a file of its own."""
    with _recent_lock:
        # Not where they are let go, which may be in the middle of anything.
        while _unused:
            _unused.popleft().close()
        fork = _forks.get(fork_id)
        if fork is None or not _is_open(fork):
            fork = _forks[fork_id] = _open(path, fork_id, record, verify, timeout)
        _recent[fork_id] = fork
        _recent.move_to_end(fork_id)
        if len(_recent) > _KEPT_OPEN:
            _recent.popitem(last=False)
        return fork


def _is_open(fork: Fork) -> bool:
    try:
        fork.environment.last_txn_id()
    except SessionStateError:
        return False
    return True


def _open(path: str, fork_id: bytes, record: LeaseRecord, verify: Verify, timeout: float) -> Fork:
    here = record.host == socket.gethostname()
    try:
        # What the session's process was allowed, another one of its machine is.
        environment = Environment.open(path, writable=True, unsafe_network_filesystem=here)
    except NotFoundError as error:
        if here:
            raise
        raise NotFoundError(
            f"fork {fork_id.hex()[:8]} was made on {record.host}, and here is no {path}: forks are "
            "for the processes of one machine",
            name=path,
        ) from error
    try:
        with environment.read() as txn:
            if leases.find(txn, fork_id) is None:
                raise ended(fork_id, None)
        fork = Fork(Objects(environment, verify), timeout, fork_id, record)
    except BaseException:
        environment.close()
        raise
    weakref.finalize(fork, _unused.append, environment).atexit = False
    return fork


def _after_fork() -> None:
    global _recent_lock  # noqa: PLW0603 - a thread of the parent may have held it
    _recent_lock = threading.Lock()
    for fork in list(_forks.values()):
        fork._after_fork()  # noqa: SLF001


at_fork(after_in_child=_after_fork)


# ── the way back ─────────────────────────────────────────────────────────────────────────────────


def take_over(
    objects: Objects,
    settings: Settings,
    parent: Lease,
    work: Workspace,
    forks: Sequence[Fork],
    strategy: Strategy,
) -> None:
    """Merge what was written to a session's forks into its workspace: to all, if none is named.

    Raises ``ConflictError``, ``SessionStateError``, and ``BusyError`` where somebody writes to them
    all the time; with workspace and forks as they were. O(edits · depth).
    """
    if not all(isinstance(fork, Fork) for fork in forks):
        raise InvalidInputError("merge_fork takes what session.fork() gave, no stores and no ids")
    environment = objects.environment
    with environment.read() as txn:
        records = _open_forks(txn, parent, [fork._id for fork in forks])  # noqa: SLF001
    if not records:
        return
    sides = [_Side(objects, fork_id, record) for fork_id, record in records.items()]
    deadline = time.monotonic() + settings.timeout
    while True:
        root = _merged(work, sides, strategy)
        with environment.write(timeout=settings.timeout) as txn:
            records = _open_forks(txn, parent, list(records))
            if all(leases.last_number(txn, side.id) == side.reader.seen for side in sides):
                # From here on nobody writes to them; what they wrote stays protected by them.
                for fork_id, record in records.items():
                    record = replace(record, kind=MERGED_FORK, updated=history.now())
                    txn.put("sessions", session_key(fork_id, 0), encode_lease(record))
                break
        if time.monotonic() > deadline:
            raise BusyError(
                "the session's forks are being written to all the time, and cannot be merged: let "
                "the workers finish first"
            )
    work.rework(lambda _: Hierarchy(work.overlay, root))
    for side in sides:
        work.changes.traces.update(side.traces)
        _forget(side.id)


@final
class _Side:
    """One fork in a merge: where it began, where it is, and what it wrote to."""

    def __init__(self, objects: Objects, fork_id: bytes, record: LeaseRecord) -> None:
        assert record.staged is not None
        self.id = fork_id
        self.base = objects.load_root(record.staged)
        self.traces = Traces()
        self.reader = JournalReader(objects, fork_id, self.base, self._note)

    def _note(self, edits: Iterable[JournalEdit]) -> None:
        for key, blob in edits:
            self.traces.note(key, deleted=blob is None)


def _merged(work: Workspace, sides: Sequence[_Side], strategy: Strategy) -> Entry:
    """Merge forks into a workspace's tree, one after the other."""
    root, traces = work.root, Traces()
    traces.update(work.changes.traces)
    for side in sides:
        theirs = side.reader.folded().root
        for data in side.reader.nodes(theirs):
            work.overlay.adopt(data)
        merged, conflicts = merge(work.overlay, side.base, root, theirs, strategy)
        conflicts += racing_resizes(
            work.overlay, side.base, root, theirs, traces.wrote, traces.deleted, strategy
        )
        if conflicts:
            raise ConflictError(
                f"fork {side.id.hex()[:8]} changed what its session, or another fork, changed too: "
                f"{list_conflicts(conflicts)}. Nothing was taken over: merge it with merge='ours' "
                "or 'theirs'",
                conflicts=conflicts,
            )
        root = merged
        traces.update(side.traces)
    return root


def _open_forks(txn: Txn, parent: Lease, fork_ids: Sequence[bytes]) -> dict[bytes, LeaseRecord]:
    """Give the leases of a session's forks: of all that are open, if none is named."""
    if not fork_ids:
        found = [
            (fork_id, record)
            for fork_id, record in leases.leases(txn)
            if record.parent == parent.id and record.kind == FORK
        ]
        # As they were made: whose value stands, where that is to be decided, must not be chance.
        return dict(sorted(found, key=lambda fork: fork[1].created))
    records = {}
    for fork_id in fork_ids:
        record = leases.find(txn, fork_id)
        if record is None or record.kind != FORK:
            raise ended(fork_id, record)
        if record.parent != parent.id:
            raise SessionStateError(
                f"fork {fork_id.hex()[:8]} is of session {(record.parent or b'').hex()[:8]}, not "
                f"of {parent.id.hex()[:8]}: merge it there"
            )
        records[fork_id] = record
    return records


def require_merged(txn: Txn, parent: Lease) -> None:
    """Raise ``SessionStateError`` if a fork of a session has edits that a commit would lose.

    O(sessions · log n) for a session that has anything in the file.
    """
    if not parent.written:
        return
    for fork_id, record in leases.leases(txn):
        if record.parent == parent.id and record.kind == FORK and leases.last_number(txn, fork_id):
            raise SessionStateError(
                f"fork {fork_id.hex()[:8]} of this session holds {record.nbytes:,} bytes that were "
                "not merged: call merge_fork(), or the fork's discard()"
            )
