"""A session: one user's view of one commit, and the edits on top of it until they are committed.

What it shows is its ``Workspace``; this module says who may write, what a commit is made of, and
what becomes of the edits where another writer was faster.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, final

from vzarr import history, leases, refs
from vzarr.agreements import agreements
from vzarr.autosave import Autosave
from vzarr.committing import (
    Settings,
    author_of,
    on_head,
    require_head,
)
from vzarr.diff import Diff, Side, diff
from vzarr.endings import Ending
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    CommitNotFoundError,
    ConflictError,
    InvalidInputError,
    ReadOnlyError,
    SessionStateError,
)
from vzarr.format import (
    Blob,
    CommitRecord,
    Digest,
    Entry,
    chunk_digest,
)
from vzarr.hierarchy import Hierarchy
from vzarr.history import now
from vzarr.leases import Lease
from vzarr.merge import Strategy, check_strategy, list_conflicts, merge, racing_resizes
from vzarr.objects import BlobSource, Bytes, Objects, Overlay, root_digest
from vzarr.pending import pending_chunks
from vzarr.reads import Listing, ReadSet
from vzarr.status import Status
from vzarr.turns import Turn
from vzarr.workspace import Workspace, check_value

if TYPE_CHECKING:
    from vzarr.fork import Fork

Isolation = Literal["snapshot", "serializable"]

open_sessions: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()
"""The sessions of this process that were not closed, by id."""


@final
class Session:
    """A view of one commit that others' commits do not change, and a place for edits.

    Writable on a branch, read-only on any other ref. Thread-safe. Edits are visible in this session
    at once, and to others after ``commit``; ``discard`` and ``close`` drop them. So does letting go
    of the session, or the end of the process, with an ``UncommittedWarning``.
    """

    def __init__(
        self,
        objects: Objects,
        settings: Settings,
        base: Digest,
        branch: str | None,
        open_store: Callable[[Session], Any],
        *,
        turn: Turn | None = None,
        isolation: Isolation = "snapshot",
        lease: Lease | None = None,
        may_agree: bool = True,
    ) -> None:
        """``turn`` is the caller's place in the queue of the branch's writers, if there is one.

        Unless sessions ``may_agree``, two that changed a thing to the same value conflict.

        With ``lease``, the session goes on from the checkpoint which that names.
        """
        self._objects = objects
        self._environment: Environment = objects.environment
        self._settings = settings
        self._open_store = open_store
        self._branch = branch
        self._base = base
        self._closed = False
        self._may_agree = may_agree
        self._turn = turn or Turn(self._environment, branch or "")
        self._reads = ReadSet() if isolation == "serializable" else None
        # For autocommit: the newest txn seen, and the commit this session made last.
        self._followed = -1
        self._autocommitted: Digest | None = None
        self._autosave: Autosave | None = None
        self._former: list[_Pin] = []
        self._pin = _Pin(self._environment, base)
        root = base_root = objects.load_root(self._root_of(base))
        if lease is not None and lease.record.checkpoint is not None:
            root = objects.load_root(lease.record.checkpoint)
        self._lease = lease or Lease.create(self._environment, branch or "", base)
        self._work = Workspace(objects, self._lease, settings.timeout, base_root, root)
        self._ending: Ending | None = None
        if branch is not None:
            self._ending = Ending(self._environment.path, branch, self._lease, self._work)
        open_sessions[self.id] = self

    # ── what it is ───────────────────────────────────────────────────────────────────────────────

    @property
    def id(self) -> str:
        """The session's own id, 32 hexadecimal digits."""
        return self._lease.id.hex()

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
    def isolation(self) -> Isolation:
        """Whether a commit is refused for what others did to things that were only read."""
        return "snapshot" if self._reads is None else "serializable"

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
        return self._work.root != self._work.base

    @property
    def hierarchy(self) -> Hierarchy:
        """The session's present state as a tree."""
        return self._work.folded()

    @property
    def info(self) -> leases.SessionInfo:
        """What ``repo.sessions`` tells of the session."""
        found = leases.describe(self._lease.id, self._lease.record, not self._closed)
        kind: Literal["session", "reader"] = "reader" if self.read_only else "session"
        return replace(found, kind=kind, branch=self._branch, base=self.base)

    def root_id(self) -> str:
        """Give the content id of the session's present state: equal data, equal id. O(edits)."""
        return root_digest(self._work.root).hex()

    def __repr__(self) -> str:
        what = f"branch {self._branch!r}" if self._branch else "read-only"
        return f"<vzarr.Session {what} at {self._base.hex()[:12]} of {self._environment.path}>"

    def _repr_html_(self) -> str:
        from vzarr.notebook import session_html

        return session_html(self)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def get(self, key: str) -> Bytes | None:
        """Give the value of a key, or None. O(depth of the path · log n)."""
        blob = self.find(key)
        return None if blob is None else self.read(blob)

    def read(self, blob: Blob) -> Bytes:
        """Give the bytes behind a reference, staged or on disk. Raises ``CorruptError``."""
        return self._work.read(blob)

    def in_place(self) -> AbstractContextManager[Callable[[Blob], Bytes]]:
        """Give a function that reads as ``read`` without copying, for use in the ``with`` block.

        What it gives must not be touched once the block has ended.
        """
        return self._work.in_place()

    def find(self, key: str) -> Blob | None:
        """Give the digest and length of a key's value, or None."""
        blob = self._work.find(key)
        # What the session itself wrote tells nothing of others.
        if self._reads is not None and self._base_view.find(key) == blob:
            self._reads.note_key(key)
        return blob

    def keys(self, path: str = "") -> Iterator[str]:
        """List every key below a path, as the session is now."""
        self._note_listing(path, "keys")
        return self._work.folded().keys(path)

    def children(self, path: str = "") -> list[str]:
        """List the names that follow a path in keys."""
        self._note_listing(path, "names")
        return self._work.folded().children(path)

    def sums(self, path: str = "") -> tuple[int, int]:
        """Count the keys below a path, and the bytes of their values. O(depth · log n)."""
        self._note_listing(path, "sums")
        return self._work.folded().sums(path)

    @property
    def _base_view(self) -> Hierarchy:
        return Hierarchy(self._work.overlay, self._work.base)

    def _note_key(self, key: str) -> None:
        if self._reads is not None:
            self._reads.note_key(key)

    def _note_listing(self, path: str, kind: Listing) -> None:
        if self._reads is not None:
            self._reads.note_listing(path, kind)

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def set(self, key: str, data: Bytes) -> None:
        """Set the value of a key. ``data`` must not change afterwards.

        Raises ``ReadOnlyError``, ``InvalidInputError``, and what stops staging (``FullError``).
        """
        self._require_writable()
        if self._autosave is not None:
            self._autosave.raise_failure()
        check_value(key, data)
        # One that changes nothing here must still stand against another's.
        self._note_key(key)
        # Hashed before the lock: threads that write at once hash at once.
        self._work.put(key, Blob(chunk_digest(data), len(data)), data)

    def put(self, key: str, blob: Blob, data: Bytes) -> bool:
        """Set a value whose digest is known, as ``set`` does; tell whether its bytes are new.

        They are new where neither the file nor what is staged has them.
        """
        self._require_writable()
        check_value(key, data)
        self._note_key(key)
        with self._work.lock:
            with self._environment.read() as txn:
                known = txn.contains("chunks", blob.digest)
            new = not known and self._work.changes.staged(blob.digest) is None
            self._work.put(key, blob, data)
        return new

    def set_if_absent(self, key: str, data: Bytes) -> None:
        """Set the value of a key that has none."""
        with self._work.lock:
            if self.find(key) is None:
                self.set(key, data)

    def delete(self, key: str) -> None:
        """Delete a key, if it is there."""
        self._require_writable()
        self._note_key(key)
        self._work.delete(key)

    def delete_below(self, path: str) -> None:
        """Delete every key below a path: a group or array of any size. O(depth · log n)."""
        self._require_writable()
        self._note_listing(path, "keys")
        self._work.rework(lambda view: view.remove(path))

    def move(self, source: str, destination: str) -> None:
        """Move or rename a group or array of any size without touching a chunk. O(depth · log n).

        Raises ``NotFoundError``, ``AlreadyExistsError`` and ``InvalidInputError``, for a missing
        source, an existing destination, and a destination without a parent group.
        """
        self._require_writable()
        source, destination = (_node_path(path) for path in (source, destination))
        for place in (source, destination):
            self._note_key(place)
            self._note_listing(place, "keys")
        self._work.rework(lambda view: view.move(source, destination))

    def rework(self, change: Callable[[Overlay, Entry], Entry]) -> None:
        """Go on from what ``change(objects, root)`` makes of the session's tree: a merge."""
        self._require_writable()
        overlay = self._work.overlay
        self._work.rework(lambda view: Hierarchy(overlay, change(overlay, view.root)))

    def show(self, root: Entry, overlay: Overlay, blobs: BlobSource) -> None:
        """Show a tree that was made elsewhere and is not to be written: the preview of a merge."""
        self._work.preview(root, overlay, blobs)

    def discard(self) -> None:
        """Drop all uncommitted edits, a checkpoint of them and all forks too."""
        with self._work.lock:
            # Where a transaction has committed there is nothing left.
            if self._former or not self._work.is_untouched:
                self._work.drop()
                self._begin(self._base, self._work.base)

    def status(self) -> Status:
        """Compare the session with its base: what a commit would record. O(edits · depth)."""
        with self._work.lock:
            base, overlay, changes = self._work.base, self._work.overlay, None
            edits = self._work.edits_on_base
            if edits is not None:
                changes = pending_chunks(overlay, base, edits, self._open_side)
            if changes is None:
                changes = diff(overlay, base, self._work.folded().root, self._open_side)
            return Status(self._branch, self.base, Diff(self.base[:12], "session", changes))

    def _open_side(self, side: Side, path: str) -> Any:
        import zarr

        if side == "new":
            return zarr.open(self.store, path=path, mode="r")
        base = Session(self._objects, self._settings, self._base, None, self._open_store)
        return zarr.open(base.store, path=path, mode="r")

    def close(self) -> None:
        """Drop uncommitted edits and refuse further writes; reading goes on. Can be repeated.

        What a checkpoint saved stays in the file, for ``repo.resume``; ``discard`` drops that too.
        """
        if not self._closed and not self.read_only:
            if self._autosave is not None:
                self._autosave.stop()
            with self._work.lock:
                if self._former or not self._work.is_untouched:
                    self._work.leave()
                    self._begin(self._base, self._work.base)
        self._closed = True
        if self._ending is not None:
            self._ending.settle()
        self._lease.close()
        # The same session may have been resumed in this process.
        if open_sessions.get(self.id) is self:
            del open_sessions[self.id]

    def uncommitted(self) -> str:
        """Say what would be lost if the session ended now, in words; empty if nothing would."""
        return "" if self._ending is None else self._ending.uncommitted()

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

    # ── work that survives ───────────────────────────────────────────────────────────────────────

    def checkpoint(self) -> str:
        """Save the uncommitted edits, so that they survive a crash; give the session's id.

        After one, ``repo.sessions`` lists the session and ``repo.resume(id)`` goes on with it in
        another process; a commit or ``discard`` drops it. On disk when this returns
        (``durability="full"``). Raises ``SessionStateError`` for a serializable session, of which
        also what it read would have to survive, ``ReadOnlyError``, ``BusyError``, ``FullError``.
        Cost: O(k log n) nodes for k edits since the last one, one fsync.
        """
        self._require_writable()
        self._require_snapshot("saved in a checkpoint")
        self._work.spill(checkpoint=True)
        if self._settings.durability == "full":
            self._environment.sync()
        return self.id

    def checkpoint_every(self, seconds: float) -> None:
        """Save a checkpoint in the background every so many seconds in which there were edits.

        What stops it (``FullError``) is raised by the next ``set``.
        """
        self._require_writable()
        self._require_snapshot("saved in a checkpoint")
        former, self._autosave = self._autosave, Autosave(self, seconds)
        if former is not None:
            former.stop()

    def save_if_changed(self) -> None:
        """Save a checkpoint, unless the last one has all edits."""
        with self._work.lock:
            digest = root_digest(self._work.root)
            last = self._lease.record.checkpoint or root_digest(self._work.base)
            if not self._closed and digest != last:
                self.checkpoint()

    def fork(self) -> Fork:
        """Give a writer that can be pickled: for dask workers and ``multiprocessing``.

        It begins with this session's present state, uncommitted edits too. What it writes, in any
        process of this machine, goes into the file at once, and becomes part of this session with
        ``merge_fork``. Raises ``SessionStateError`` for a serializable session, ``ReadOnlyError``,
        ``BusyError``, ``FullError``. Cost: O(edits · depth) nodes, no fsync.
        """
        from vzarr.fork import Fork

        self._require_writable()
        self._require_snapshot("forked")
        with self._work.lock:
            return Fork.create(self._objects, self._settings, self._lease, self._work.spill())

    def merge_fork(self, *forks: Fork, merge: Strategy = "fail") -> None:
        """Take over what was written to forks of this session: all of them, if none is named.

        Nobody can write to them from here on. What two of them, or one and this session, changed
        is put together element by element. Raises ``ConflictError`` where that does not work,
        unless ``merge`` says whose value to take ("ours" is the session's, and that of the forks
        taken over before); the forks stay as they were then. Raises ``SessionStateError`` for a
        fork of another session, or one that was taken over. Cost: O(edits · depth).
        """
        from vzarr.fork import take_over

        check_strategy(merge, "merge=")
        self._require_writable()
        with self._work.lock:
            take_over(self._objects, self._settings, self._lease, self._work, forks, merge)

    def _require_merged(self, txn: Txn) -> None:
        """Raise ``SessionStateError`` if a fork holds edits, which a commit would give up."""
        if self._lease.written:
            from vzarr.fork import require_merged

            require_merged(txn, self._lease)

    def _require_snapshot(self, what: str) -> None:
        if self._reads is not None:
            raise SessionStateError(
                f"a serializable session cannot be {what}, because what it read is known to its "
                'process alone; use isolation="snapshot"'
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
        the overlaps, unless ``merge`` decides them: "ours", "theirs", or a function that gives the
        resolution of a ``Conflict``.

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
        return self._amend(message, metadata, author, "amend").hex()

    def _amend(
        self,
        message: str | None,
        metadata: Mapping[str, Any] | None,
        author: str | None,
        operation: str,
    ) -> Digest:
        with self._work.lock:
            self._require_writable()
            old = history.get(self._environment, self._base)
            record = replace(
                old,
                author=author_of(self._settings, author) if author else old.author,
                time=now(),
                message=old.message if message is None else history.check_message(message),
                metadata=old.metadata if metadata is None else history.check_metadata(metadata),
            )

            def attempt(head: Digest) -> Digest:
                if head != self._base:
                    raise ConflictError(
                        f"cannot amend {self.base[:12]}: branch {self._branch!r} has moved on "
                        "since; commit instead"
                    )
                return self.commit_as(record, operation, goes_on=operation == "autocommit")

            return on_head(self._environment, self._settings, self._turn, attempt)

    def rebase(self, strategy: Strategy = "fail") -> str:
        """Put the uncommitted edits on top of the branch's present head, and give that one's id.

        After a ``ConflictError``: ``strategy`` decides as ``merge=`` of ``commit`` does. What then
        is to be committed can be looked at before. Raises ``ConflictError``, with the session as it
        was, ``ReadOnlyError``, ``RefNotFoundError``. Cost: O(changes on both sides · depth).
        """
        check_strategy(strategy, "strategy=")
        with self._work.lock:
            self._require_writable()
            with self._environment.read() as txn:
                head = refs.head(txn, self._branch or "")
            if head != self._base:
                root = self._rebased(head, strategy)
                self._work.rebase(self._objects.load_root(self._root_of(head)), root)
                self._base = head
                # What the edits moved may be in the old base alone: it has to stay, too.
                self._former.append(self._pin)
                self._pin = _Pin(self._environment, head)
                self._lease.base = head
                if self._lease.record.checkpoint is not None:
                    # It belongs to the base from which it was made.
                    self.checkpoint()
            return self.base

    def _commit(
        self,
        message: str,
        metadata: Mapping[str, Any] | None,
        author: str | None,
        strategy: Strategy,
        *,
        allow_empty: bool,
        operation: str = "commit",
    ) -> Digest:
        message, metadata = history.check_message(message), history.check_metadata(metadata)
        check_strategy(strategy, "merge=")
        with self._work.lock:
            self._require_writable()
            if self._lease.written:
                with self._environment.read() as txn:
                    self._require_merged(txn)
            if not allow_empty and not self.has_changes:
                # Where the file is closed, that is the reason.
                with self._environment.read():
                    raise SessionStateError(
                        f"nothing to commit: the session has no changes to {self._branch!r}; "
                        "pass allow_empty=True to commit all the same"
                    )

            def attempt(head: Digest) -> Digest:
                # Another session may have moved the branch since ours began.
                root = self._rebased(head, strategy)
                digest = root_digest(root)
                if not allow_empty and digest == self._root_of(head):
                    # The other session committed just what this one would.
                    self._work.drop()
                    self._begin(head)
                    return head
                record = CommitRecord(
                    parents=(head,),
                    root=digest,
                    author=author_of(self._settings, author),
                    time=now(),
                    message=message,
                    metadata=metadata,
                )
                return self._record(root, record, head=head, operation=operation)

            return on_head(self._environment, self._settings, self._turn, attempt)

    def commit_as(
        self,
        record: CommitRecord,
        operation: str,
        *,
        needs: Sequence[Digest] = (),
        goes_on: bool = False,
    ) -> Digest:
        """Write the session's state as that commit, whose root is filled in, and move the branch.

        With ``goes_on``, the reflog notes it as one with the move before: see ``refs.move_branch``.
        Raises ``HeadMovedError`` if the branch is not at the base any more, ``BranchTakenError`` if
        it is not ours to move, and ``CommitNotFoundError`` if one of the commits it ``needs`` is
        gone; else as ``commit``.
        """
        with self._work.lock:
            self._require_writable()
            root = self._work.root
            record = replace(record, root=root_digest(root))
            return self._record(
                root, record, head=self._base, operation=operation, needs=needs, goes_on=goes_on
            )

    def _rebased(self, head: Digest, strategy: Strategy) -> Entry:
        """Give the root to commit on top of ``head``: our edits and what others did meanwhile."""
        work, ours = self._work, self._work.root
        if head == self._base:
            return ours
        theirs = self._objects.load_root(self._root_of(head))
        sides = (work.overlay, work.base, ours, theirs)
        merged, conflicts = merge(*sides, strategy, may_agree=self._may_agree)
        traces = work.changes.traces
        conflicts += racing_resizes(*sides, traces.wrote, traces.deleted, strategy)
        if not self._may_agree:
            edits, agreed = agreements(*sides, strategy)
            merged = Hierarchy(work.overlay, merged).edit(edits).root
            conflicts += agreed
        if self._reads is not None:
            # No strategy helps: what was written may rest on what is not true any more.
            conflicts += self._reads.stale(work.overlay, work.base, theirs)
        if conflicts:
            raise ConflictError(
                f"branch {self._branch!r} moved from {self.base[:12]} to {head.hex()[:12]} and "
                f"changed what this session changes or read: {list_conflicts(conflicts)}. Nothing "
                "was committed and the edits are kept: commit with merge='ours' or 'theirs', or "
                "discard and redo them, as repo.run does",
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
        goes_on: bool = False,
    ) -> Digest:
        """Write a commit with all it needs and move the branch to it, in one txn or not at all."""
        unwritten = self._work.unwritten(root)
        timeout, room = self._settings.timeout, unwritten.nbytes
        with self._environment.write(timeout=timeout, room=room) as txn:
            require_head(self._environment, txn, self._turn, head)
            # A collection of garbage may have been faster.
            history.require(txn, [self._base, *(pin.commit for pin in self._former), *needs])
            self._lease.require(txn)
            self._require_merged(txn)
            # Objects first: nothing can reach them until the ref moves.
            unwritten.write(txn)
            commit = history.put(txn, record)
            # The system may have no lock for it, and must say so before the branch has moved.
            pin = _Pin(self._environment, commit, new=True)
            # The ref last, in the same txn: readers see all of it or none.
            subject = record.message.partition("\n")[0]
            why = f"{operation}: {subject}"
            by, when = record.author, record.time
            refs.move_branch(txn, self._turn.branch, head, commit, by, when, why, goes_on=goes_on)
            self._lease.delete(txn)
        # Nothing of this may fail: the session must know that its edits are committed.
        overlay = self._work.overlay
        self._begin(commit, root, pin=pin)
        history.remember(commit, record)
        overlay.hand_over(unwritten.nodes)
        return commit

    def _begin(self, base: Digest, root: Entry | None = None, *, pin: _Pin | None = None) -> None:
        """Make a commit's snapshot the session's state, without edits and with nothing staged."""
        if pin is None:
            pin = self._pin if base == self._base else _Pin(self._environment, base)
        root = root or self._objects.load_root(self._root_of(base))
        if self._reads is not None and base != self._base:
            self._reads = ReadSet()
        self._base = base
        self._lease.renew(base)
        self._work.begin(root)
        dropped = [one for one in (self._pin, *self._former) if one is not pin]
        self._pin, self._former = pin, []
        # Not left to their end, in which Python would lose a Ctrl-C.
        for one in dropped:
            one.release()

    def _root_of(self, commit: Digest) -> Digest:
        return history.get(self._environment, commit).root

    # ── autocommit ───────────────────────────────────────────────────────────────────────────────

    def follow(self) -> None:
        """Move to the branch's present head, unless there are edits. O(1) while nobody commits."""
        newest = self._environment.last_txn_id()
        if newest == self._followed:
            return
        with self._work.lock:
            if self._branch is not None and not self._closed and not self.has_changes:
                with self._environment.read() as txn:
                    head, seen = refs.head(txn, self._branch), txn.id
                if head != self._base:
                    self._begin(head)
                # Not what was asked for above: a commit shows there just before txns see it.
                self._followed = seen

    def autocommit(self, message: str, *, each: bool) -> None:
        """Commit the edits at once; amend the commit that this session made just before.

        With ``each``, where another commit came between, or where that commit has become a tag's or
        another branch's, make a new one. Where another writer changed the same elements, or the
        same document, in between, the last write stands.
        Raises as ``commit``, but no ``ConflictError``. Cost: as ``commit``, and O(refs).
        """
        with self._work.lock:
            if not self.has_changes:
                return
            try:
                if each or self._autocommitted != self._base or self._has_other_refs():
                    self._autocommit_new(message)
                else:
                    self._amend(None, None, None, "autocommit")
            except ConflictError:
                # Amending: the branch has moved on.
                self._autocommit_new(message)
            self._autocommitted = self._base

    def _autocommit_new(self, message: str) -> None:
        self._commit(message, None, None, "ours", allow_empty=False, operation="autocommit")

    def _has_other_refs(self) -> bool:
        """Whether a tag or another branch holds the base: amending would take it out of ours."""
        with self._environment.read() as txn:
            return any(tag.commit == self.base for tag in refs.tags(txn)) or any(
                head == self._base for name, head in refs.branches(txn) if name != self._branch
            )


class _Pin:
    """Says to other processes that this one uses a commit, until it is released."""

    __slots__ = ("_environment", "_released", "commit")

    def __init__(self, environment: Environment, commit: Digest, *, new: bool = False) -> None:
        """Take hold of a commit, a ``new`` one inside the txn that makes it.

        Raises ``CommitNotFoundError`` if it is not there any more, and ``StorageError`` if the
        system has no more locks.
        """
        self._environment = environment
        environment.pin(commit)
        # From here on there is something to take back.
        self._released = False
        self.commit = commit
        # Now it stays; but a collection of garbage may have been faster.
        if not new and not history.exists(environment, commit):
            raise CommitNotFoundError(
                f"commit {commit.hex()[:12]} was deleted meanwhile: nothing referred to it",
                name=commit.hex(),
            )

    def release(self) -> None:
        """Let go of the commit; else that is done when nobody refers to this any more."""
        if not self._released:
            self._released = True
            self._environment.unpin(self.commit)

    def __del__(self) -> None:
        if hasattr(self, "commit"):
            self.release()


def _node_path(path: str) -> str:
    if not isinstance(path, str):
        raise InvalidInputError(f"a path is a string like 'group/array', not {path!r}")
    return path.strip("/")
