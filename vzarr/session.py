"""A session: one user's view of one commit, and the edits on top of it until they are committed.

The view is a ``Hierarchy``. Writes gather in a ``ChangeSet`` and are folded into a new hierarchy
when something must be listed, compared or committed; both trees, the base and the session's own,
share all nodes that did not change. So "what did I change", "what did they change" and "do the two
overlap" are comparisons of trees that cost what changed.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

from vzarr import history, refs
from vzarr.changes import ChangeSet, put_blobs
from vzarr.diff import Diff, Side, diff
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    BusyError,
    ConflictError,
    InvalidInputError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from vzarr.format import (
    MAX_CHUNK_BYTES,
    Blob,
    CommitRecord,
    Digest,
    Entry,
    LeaseRecord,
    chunk_digest,
    encode_lease,
)
from vzarr.hierarchy import Hierarchy, collect
from vzarr.merge import STRATEGIES, Strategy, merge, racing_resizes
from vzarr.objects import BlobSource, Bytes, Objects, Overlay, put_root, root_digest
from vzarr.status import Status

Durability = Literal["full", "normal"]

# So many edits are folded into the tree, where they take a quarter of the memory.
_FOLD_EDITS = 50_000
# So many bytes of new tree nodes are written ahead of the commit.
_SPILL_NODE_BYTES = 64 << 20
_MISSING = object()


@dataclass(frozen=True, slots=True)
class Settings:
    """What a repository was opened with and its sessions need."""

    author: Callable[[], str]
    timeout: float
    durability: Durability


def now() -> int:
    """Give the time of a new record, in microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


@final
class Session:
    """A view of one commit that others' commits do not change, and a place for edits.

    Writable on a branch, read-only on any other ref. Thread-safe. Edits are visible in this session
    at once, and to others after ``commit``; ``discard``, or letting go of the session, drops them.
    """

    def __init__(
        self,
        objects: Objects,
        settings: Settings,
        base: Digest,
        branch: str | None,
        open_store: Callable[[Session], Any],
    ) -> None:
        self._objects = objects
        self._environment: Environment = objects.environment
        self._settings = settings
        self._open_store = open_store
        self._branch = branch
        self._uuid = uuid.uuid4().bytes
        self._created = now()
        self._lock = threading.RLock()
        self._changes = ChangeSet(self._environment, self._uuid, self._lease, settings.timeout)
        self._blobs: BlobSource = self._changes
        self._staged_root: Digest | None = None
        self._closed = False
        # For autocommit: the newest txn seen, and the commit this session made last.
        self._followed = -1
        self._autocommitted: Digest | None = None
        self._rebase_on(base)

    def _rebase_on(self, base: Digest) -> None:
        """Make a commit's snapshot the session's state, without edits."""
        self._base = base
        self._base_root: Entry = self._objects.load_root(self._root_of(base))
        self._overlay = Overlay(self._objects, self._changes)
        self._view = Hierarchy(self._overlay, self._base_root)

    # ── what it is ───────────────────────────────────────────────────────────────────────────────

    @property
    def id(self) -> str:
        """The session's own id, 32 hexadecimal digits."""
        return self._uuid.hex()

    @property
    def branch(self) -> str | None:
        """The branch that it commits to; None if it is read-only."""
        return self._branch

    @property
    def base(self) -> str:
        """The id of the commit that it shows, or began from."""
        return self._base.hex()

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes."""
        return self._branch is None

    @property
    def environment(self) -> Environment:
        """The open file below."""
        return self._environment

    @property
    def store(self) -> Any:
        """A ``VzarrStore`` on this session, for zarr, xarray and dask."""
        return self._open_store(self)

    @property
    def root_group(self) -> Any:
        """The root ``zarr.Group``; made where a writable session has none yet."""
        import zarr

        return zarr.open_group(self.store, mode="r" if self.read_only else "a")

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to commit. O(edits since it was last asked)."""
        return self._folded().root != self._base_root

    def root_id(self) -> str:
        """Give the content id of the session's present state: equal data, equal id. O(edits)."""
        return root_digest(self._folded().root).hex()

    def __repr__(self) -> str:
        what = f"branch {self._branch!r}" if self._branch else "read-only"
        return f"<vzarr.Session {what} at {self._base.hex()[:12]} of {self._environment.path}>"

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str) -> Bytes | None:
        """Give the value of a key, or None. O(depth of the path · log n)."""
        blob = self.find(key)
        return None if blob is None else self.read(blob)

    def read(self, blob: Blob) -> Bytes:
        """Give the bytes behind a reference, staged or on disk. Raises ``CorruptError``."""
        staged = self._blobs.staged(blob.digest)
        return self._objects.fetch(blob) if staged is None else staged

    def find(self, key: str) -> Blob | None:
        """Give the digest and length of a key's value, or None."""
        found = self._changes.edits.get(key, _MISSING)
        if found is not _MISSING:
            assert found is None or isinstance(found, Blob)
            return found
        return self._view.find(key)

    def keys(self, path: str = "") -> Iterator[str]:
        """List every key below a path, as the session is now."""
        return self._folded().keys(path)

    def children(self, path: str = "") -> list[str]:
        """List the names that follow a path in keys."""
        return self._folded().children(path)

    def sums(self, path: str = "") -> tuple[int, int]:
        """Count the keys below a path, and the bytes of their values. O(depth · log n)."""
        return self._folded().sums(path)

    @property
    def hierarchy(self) -> Hierarchy:
        """The session's present state as a tree."""
        return self._folded()

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def set(self, key: str, data: Bytes) -> None:
        """Set the value of a key. ``data`` must not change afterwards.

        Raises ``ReadOnlyError``, ``InvalidInputError``, and what stops staging (``FullError``).
        """
        self._require_writable()
        _check_key(key)
        if len(data) > MAX_CHUNK_BYTES:
            raise InvalidInputError(
                f"the value of {key!r} has {len(data)} bytes, and a chunk holds at most "
                f"{MAX_CHUNK_BYTES}; use smaller chunks"
            )
        # Hashed before the lock: threads that write at once hash at once.
        blob = Blob(chunk_digest(data), len(data))
        with self._lock:
            self._changes.put(key, blob, data)
            self._bound_memory()

    def set_if_absent(self, key: str, data: Bytes) -> None:
        """Set the value of a key that has none."""
        with self._lock:
            if self.find(key) is None:
                self.set(key, data)

    def delete(self, key: str) -> None:
        """Delete a key, if it is there."""
        self._require_writable()
        with self._lock:
            # zarr deletes every chunk that holds only fill values; most were never there.
            if self.find(key) is not None:
                self._changes.delete(key)
                self._bound_memory()

    def delete_below(self, path: str) -> None:
        """Delete every key below a path: a group or array of any size. O(depth · log n)."""
        self._require_writable()
        with self._lock:
            self._view = self._folded().remove(path)

    def move(self, source: str, destination: str) -> None:
        """Move or rename a group or array of any size without touching a chunk. O(depth · log n).

        Raises ``NotFoundError``, ``AlreadyExistsError`` and ``InvalidInputError``, for a missing
        source, an existing destination, and a destination without a parent group.
        """
        self._require_writable()
        source, destination = (_node_path(path) for path in (source, destination))
        with self._lock:
            self._view = self._folded().move(source, destination)

    def rework(self, change: Callable[[Overlay, Entry], Entry]) -> None:
        """Go on from what ``change(objects, root)`` makes of the session's tree: a merge."""
        self._require_writable()
        with self._lock:
            root = change(self._overlay, self._folded().root)
            self._view = Hierarchy(self._overlay, root)

    def show(self, root: Entry, overlay: Overlay, blobs: BlobSource) -> None:
        """Show a tree that was made elsewhere and is not to be written: the preview of a merge."""
        self._blobs, self._overlay, self._view = blobs, overlay, Hierarchy(overlay, root)

    def discard(self) -> None:
        """Drop all uncommitted edits."""
        with self._lock:
            self._changes.abandon()
            if self._changes.leased:
                with self._environment.write(timeout=self._settings.timeout) as txn:
                    self._changes.release(txn)
            self._changes.clear()
            self._rebase_on(self._base)

    def status(self) -> Status:
        """Compare the session with its base: what a commit would record. O(changed nodes)."""
        view = self._folded()
        changes = diff(self._overlay, self._base_root, view.root, self._open_side)
        return Status(self._branch, self.base, Diff(self.base[:12], "session", changes))

    def _open_side(self, side: Side, path: str) -> Any:
        import zarr

        if side == "new":
            return zarr.open(self.store, path=path, mode="r")
        base = Session(self._objects, self._settings, self._base, None, self._open_store)
        return zarr.open(base.store, path=path, mode="r")

    def close(self) -> None:
        """Drop uncommitted edits and refuse further writes; reading goes on. Can be repeated."""
        if not self._closed and not self.read_only:
            self.discard()
        self._closed = True

    def _require_writable(self) -> None:
        if self._closed:
            raise SessionStateError(
                "this transaction or session has ended; open a new one to write"
            )
        if self._branch is None:
            raise ReadOnlyError(
                "store was opened in read-only mode and does not support writing: this session is "
                f"on commit {self._base.hex()[:12]}, not on a branch; open a branch to write"
            )

    def _folded(self) -> Hierarchy:
        """Put the edits into the tree. O(k · depth) for k edits since the last time."""
        if self._changes.edits:
            with self._lock:
                edits = self._changes.edits
                if edits:
                    self._view = self._view.edit(edits)
                    # Only now: a reader in another thread finds an edit here or in the view.
                    self._changes.edits = {}
        return self._view

    def _bound_memory(self) -> None:
        if len(self._changes.edits) >= _FOLD_EDITS:
            self._folded()
            if self._overlay.nbytes >= _SPILL_NODE_BYTES:
                self._spill_nodes()

    def _spill_nodes(self) -> None:
        """Write the tree nodes so far into the file, unreachable until the commit."""
        self._changes.flush()
        nodes, _ = collect(self._overlay, self._view.root)
        with self._environment.write(timeout=self._settings.timeout, room=_size(nodes)) as txn:
            _put_nodes(txn, nodes)
            self._staged_root = put_root(txn, self._view.root)
            self._changes.note_lease(txn)
        self._overlay = Overlay(self._objects, self._changes)
        self._view = Hierarchy(self._overlay, self._view.root)

    def _lease(self) -> bytes:
        return encode_lease(
            LeaseRecord(
                pid=os.getpid(),
                process_started=_process_started(os.getpid()),
                host=socket.gethostname(),
                branch=self._branch or "",
                base=self._base,
                created=self._created,
                staged=self._staged_root,
            )
        )

    # ── committing ───────────────────────────────────────────────────────────────────────────────

    def commit(
        self,
        message: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        merge: Strategy = "fail",
        allow_empty: bool = False,
    ) -> str:
        """Record the edits as one commit on the branch and give its id.

        The commit is durable when this returns (``durability="full"``). If it raises, the branch is
        unchanged and the edits are still here; but for a ``StorageError`` that says the commit is
        made and only its way to the disk failed. Where another writer committed first, the edits
        are rebased on the new head if they touch nothing it changed; else ``ConflictError`` lists
        the overlaps, unless ``merge`` says whose value to take ("ours", "theirs").

        Raises ``SessionStateError`` if there is nothing to commit and not ``allow_empty``,
        ``ReadOnlyError``, ``InvalidInputError``, ``BusyError``, ``FullError``, or
        ``RefNotFoundError``.
        Cost: O(k log n) nodes for k changed chunks among n, one fsync.
        """
        return self._commit(message, metadata, author, merge, allow_empty=allow_empty).hex()

    def amend(
        self,
        message: str | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
    ) -> str:
        """Replace the branch's last commit by one that has the edits too; give its id.

        Message, metadata and author are the replaced commit's unless they are given. Raises
        ``ConflictError`` if the branch has moved on since this session began, and as ``commit``.
        """
        with self._lock:
            self._require_writable()
            old = history.get(self._environment, self._base)
            record = replace(
                old,
                author=author_of(self._settings, author) if author else old.author,
                time=now(),
                message=old.message if message is None else history.check_message(message),
                metadata=old.metadata if metadata is None else history.check_metadata(metadata),
            )
            try:
                return self.commit_as(record, "amend").hex()
            except HeadMovedError:
                raise ConflictError(
                    f"cannot amend {self.base[:12]}: branch {self._branch!r} has moved on since; "
                    "commit instead"
                ) from None

    def _commit(
        self,
        message: str,
        metadata: Mapping[str, Any] | None,
        author: str | None,
        strategy: Strategy,
        *,
        allow_empty: bool,
    ) -> Digest:
        message, metadata = history.check_message(message), history.check_metadata(metadata)
        if strategy not in STRATEGIES:
            raise InvalidInputError(f"merge= is one of {', '.join(STRATEGIES)}, not {strategy!r}")
        with self._lock:
            self._require_writable()
            if not allow_empty and not self.has_changes:
                raise SessionStateError(
                    f"nothing to commit: the session has no changes to {self._branch!r}; "
                    "pass allow_empty=True to commit all the same"
                )

            def attempt(head: Digest) -> Digest:
                # Another session may have moved the branch since ours began.
                root = self._rebased(head, strategy)
                if not allow_empty and root_digest(root) == self._root_of(head):
                    # The other session committed just what this one would.
                    self.discard()
                    self._rebase_on(head)
                    return head
                record = CommitRecord(
                    parents=(head,),
                    root=root_digest(root),
                    author=author_of(self._settings, author),
                    time=now(),
                    message=message,
                    metadata=metadata,
                )
                return self._record(root, record, head=head, operation="commit")

            return on_head(self._environment, self._settings, self._branch or "", attempt)

    def commit_as(
        self, record: CommitRecord, operation: str, *, needs: Sequence[Digest] = ()
    ) -> Digest:
        """Write the session's state as that commit, whose root is filled in, and move the branch.

        Raises ``HeadMovedError`` if the branch is not at the base any more, and
        ``CommitNotFoundError`` if one of the commits it ``needs`` is gone; else as ``commit``.
        """
        with self._lock:
            self._require_writable()
            root = self._folded().root
            return self._record(root, record, head=self._base, operation=operation, needs=needs)

    def _rebased(self, head: Digest, strategy: Strategy) -> Entry:
        """Give the root to commit on top of ``head``: our edits and what others did meanwhile."""
        ours = self._folded().root
        if head == self._base:
            return ours
        theirs = self._objects.load_root(self._root_of(head))
        merged, conflicts = merge(self._overlay, self._base_root, ours, theirs, strategy)
        if strategy == "fail":
            conflicts += racing_resizes(self._overlay, self._base_root, ours, theirs)
        if conflicts:
            listed = "; ".join(map(str, conflicts[:3]))
            more = f"; and {len(conflicts) - 3} more" if len(conflicts) > 3 else ""
            raise ConflictError(
                f"branch {self._branch!r} moved from {self.base[:12]} to {head.hex()[:12]} and "
                f"changed what this session changes: {listed}{more}. Nothing was committed and the "
                "edits are kept: commit with merge='ours' or 'theirs', or discard and redo them",
                conflicts=conflicts,
            )
        return merged

    def _record(
        self,
        root: Entry,
        record: CommitRecord,
        *,
        head: Digest,
        operation: str,
        needs: Sequence[Digest] = (),
    ) -> Digest:
        """Write a commit with all it needs and move the branch to it, in one txn or not at all."""
        branch = self._branch or ""
        # Staged chunks are in the file before anything names them, those of a merge as well.
        self._changes.drain()
        nodes, needed = collect(self._overlay, root)
        fresh = self._changes.fresh
        blobs = [(digest, data) for digest, data in fresh.items() if digest in needed]
        room = _size(nodes) + sum(len(data) for _, data in blobs)
        record = replace(record, root=root_digest(root))
        with self._environment.write(timeout=self._settings.timeout, room=room) as txn:
            if refs.head(txn, branch) != head:
                raise HeadMovedError
            # A collection of garbage may have been faster.
            history.require(txn, needs)
            # Objects first: nothing can reach them until the ref moves.
            put_blobs(txn, blobs)
            _put_nodes(txn, nodes)
            put_root(txn, root)
            commit = history.put(txn, record)
            # The ref last, in the same txn: readers see all of it or none.
            subject = record.message.partition("\n")[0]
            why = f"{operation}: {subject}"
            refs.move_branch(txn, branch, head, commit, record.author, record.time, why)
            self._changes.release(txn)
        self._finish(commit)
        flush(self._environment, self._settings, commit)
        return commit

    def _finish(self, commit: Digest) -> None:
        """Go on from a commit that holds all this session's edits."""
        self._changes.clear()
        self._staged_root = None
        self._rebase_on(commit)

    def _root_of(self, commit: Digest) -> Digest:
        return history.get(self._environment, commit).root

    # ── autocommit ───────────────────────────────────────────────────────────────────────────────

    def follow(self) -> None:
        """Move to the branch's present head, unless there are edits. O(1) while nobody commits."""
        newest = self._environment.last_txn_id()
        if newest == self._followed:
            return
        with self._lock:
            if self._branch is not None and not self.has_changes:
                with self._environment.read() as txn:
                    head = refs.head(txn, self._branch)
                if head != self._base:
                    self._rebase_on(head)
                self._followed = newest

    def autocommit(self, message: str, *, each: bool) -> None:
        """Commit the edits at once; amend the commit that this session made just before.

        With ``each``, where another commit came between, or where that commit has become a tag's or
        another branch's, make a new one. Where another writer changed the same elements, or the
        same document, in between, the last write stands.
        Raises as ``commit``, but no ``ConflictError``. Cost: as ``commit``, and O(refs).
        """
        with self._lock:
            if not self.has_changes:
                return
            try:
                if each or self._autocommitted != self._base or self._has_other_refs():
                    self.commit(message, merge="ours")
                else:
                    self.amend()
            except ConflictError:
                # Amending: the branch has moved on.
                self.commit(message, merge="ours")
            self._autocommitted = self._base

    def _has_other_refs(self) -> bool:
        """Whether a tag or another branch holds the base: amending would take it out of ours."""
        with self._environment.read() as txn:
            return any(tag.commit == self.base for tag in refs.tags(txn)) or any(
                head == self._base for name, head in refs.branches(txn) if name != self._branch
            )


class HeadMovedError(Exception):
    """The branch moved between the preparation of a commit and its txn; never leaves vzarr."""


def on_head(
    environment: Environment,
    settings: Settings,
    branch: str,
    attempt: Callable[[Digest], Digest],
) -> Digest:
    """Give what ``attempt(head)`` gives, called again while another writer moves the branch.

    Raises ``BusyError`` once the timeout is over, and ``RefNotFoundError``.
    """
    deadline = time.monotonic() + settings.timeout
    while True:
        with environment.read() as txn:
            head = refs.head(txn, branch)
        try:
            return attempt(head)
        except HeadMovedError:
            # Somebody else made progress. Once more, on top of it.
            if time.monotonic() > deadline:
                raise BusyError(
                    f"branch {branch!r} moved at every attempt to commit for "
                    f"{settings.timeout:g} s; nothing was committed, try again"
                ) from None


def flush(environment: Environment, settings: Settings, commit: Digest) -> None:
    """Make the commit that a branch moved to durable, where that was asked for. One fsync."""
    if settings.durability != "full":
        return
    try:
        environment.sync()
    except StorageError as error:
        raise StorageError(
            f"commit {commit.hex()[:12]} is made and others see it, but the disk did not "
            f"confirm it, so that a crash of the machine may lose it: {error}",
            code=error.errno,
        ) from error


def author_of(settings: Settings, author: str | None) -> str:
    """Give the author of a commit: the one that is named, or the repository's."""
    if author is None:
        return settings.author()
    if not isinstance(author, str) or not author.strip():
        raise InvalidInputError(f"an author is text like 'Name <mail>', not {author!r}")
    return author


def _put_nodes(txn: Txn, nodes: Mapping[bytes, bytes]) -> None:
    # In key order LMDB finds the next place beside the last one.
    for digest in sorted(nodes):
        txn.put("nodes", digest, nodes[digest], overwrite=False)


def _size(nodes: Mapping[bytes, bytes]) -> int:
    return sum(map(len, nodes.values()))


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not key:
        raise InvalidInputError(f"a key is a string that is not empty, not {key!r}")
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"the key {key!r} is not valid Unicode: {error}") from error


def _node_path(path: str) -> str:
    if not isinstance(path, str):
        raise InvalidInputError(f"a path is a string like 'group/array', not {path!r}")
    return path.strip("/")


@functools.lru_cache(maxsize=1)
def _process_started(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The second field, the command, may itself hold spaces and parentheses.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except OSError:
        return 0
