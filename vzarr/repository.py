"""``Repository``: one file with the history of a tree of Zarr groups and arrays."""

from __future__ import annotations

import os
import secrets
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, final, get_args, overload

from vzarr import history, refs
from vzarr.branches import Branches, Tags
from vzarr.committing import Settings
from vzarr.diff import Diff, Side, diff
from vzarr.endings import UncommittedWarning
from vzarr.environment import Environment
from vzarr.errors import (
    BusyError,
    ConflictError,
    InvalidInputError,
    NotARepositoryError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from vzarr.format import (
    CommitRecord,
    Digest,
    decode_format,
    decode_repository,
    from_microseconds,
)
from vzarr.hierarchy import Hierarchy
from vzarr.history import Commit
from vzarr.leases import SessionInfo
from vzarr.merge import Strategy
from vzarr.objects import Objects, Overlay, Verify
from vzarr.progress import Progress
from vzarr.refs import ReflogEntry
from vzarr.reports import Info, Log
from vzarr.revisions import Revision, resolve
from vzarr.session import Isolation, Session
from vzarr.sessions import list_sessions, resume
from vzarr.status import Status
from vzarr.tree import Tree, draw
from vzarr.turns import Turn

if TYPE_CHECKING:
    import zarr

    from vzarr.backup import BackupReport
    from vzarr.blame import Blame
    from vzarr.bundle import BundleReport
    from vzarr.combine import Combiner, MergePreview
    from vzarr.compaction import CompactReport
    from vzarr.exchange import PullReport, TransferReport
    from vzarr.expiry import ExpireReport
    from vzarr.exporting import ExportReport
    from vzarr.findings import Level, Report
    from vzarr.flatmap import VzarrMapping
    from vzarr.garbage import GcReport
    from vzarr.imported import ImportReport
    from vzarr.redaction import RedactReport
    from vzarr.remotes import Remotes
    from vzarr.store import Autocommit, VzarrStore
    from vzarr.usage import Usage
    from vzarr.wire import Channel

DEFAULT_BRANCH = "main"
_T = TypeVar("_T")

# Waiting before another attempt: a random time up to a limit that doubles, in seconds.
_FIRST_BACKOFF = 0.002
_LONGEST_BACKOFF = 0.25


@final
class Repository:
    """One file with the whole history of a tree of Zarr groups and arrays.

    Made by ``vzarr.open``. Has a *current session*, like git's working copy, which ``checkout``
    changes; any number of other sessions and transactions stand beside it. Thread-safe.
    """

    def __init__(
        self, environment: Environment, settings: Settings, verify: Verify, *, read_only: bool
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._objects = Objects(environment, verify)
        self._read_only = read_only or environment.read_only
        self._current: Session | None = None
        with environment.read() as txn:
            data = txn.get("meta", b"repository")
            version = txn.get("meta", b"format")
        if data is None or version is None:
            raise NotARepositoryError(
                f"{environment.path} lacks its repository record", path=environment.path
            )
        self._record = decode_repository(data)
        self._format_version = decode_format(version).version
        self._close = weakref.finalize(self, environment.let_go)
        # What is open then is closed when all that is to be said of it has been said.
        self._close.atexit = False

    # ── what it is ───────────────────────────────────────────────────────────────────────────────

    @property
    def path(self) -> str:
        """The file, as an absolute path without links."""
        return self._environment.path

    @property
    def id(self) -> str:
        """The repository's own UUID; copies of the file share it."""
        return str(uuid.UUID(bytes=self._record.id))

    @property
    def read_only(self) -> bool:
        """Whether it was opened with mode "r", or the file cannot be written."""
        return self._read_only

    @property
    def format_version(self) -> int:
        """The version of the format on disk."""
        return self._format_version

    def info(self) -> Info:
        """Tell size, counts and identity. O(log n)."""
        self._require_open()
        facts = self._environment.info()
        current = self._current
        return Info(
            path=self.path,
            id=self.id,
            format_version=self.format_version,
            created=from_microseconds(self._record.created),
            file_bytes=facts.file_bytes,
            chunks=facts.entries["chunks"],
            commits=facts.entries["commits"],
            branches=facts.entries["branches"],
            tags=facts.entries["tags"],
            branch=current.branch if current is not None else None,
        )

    def __repr__(self) -> str:
        if not self._close.alive:
            return f"<vzarr.Repository {self.path} (closed)>"
        mode = " (read-only)" if self._read_only else ""
        where = f", on {self._current.branch or self._current.base[:12]}" if self._current else ""
        names = ", ".join(self.branches)
        return f"<vzarr.Repository {self.path}{mode}: branches {names}{where}>"

    def close(self) -> None:
        """Close the file; can be repeated. The current session's uncommitted edits are dropped.

        An ``UncommittedWarning`` says so if there were any; not at the end of a ``with`` block that
        raised.
        """
        self._end(tells=True)

    def _end(self, *, tells: bool) -> None:
        if not self._close.alive:
            return
        lost = ""
        if self._current is not None:
            lost = self._current.uncommitted() if tells else ""
            self._current.close()
        if self._close.detach() is not None:
            self._environment.close()
        if lost:
            warnings.warn(lost, UncommittedWarning, stacklevel=3)

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(tells=kind is None)

    def _require_open(self) -> None:
        if not self._close.alive:
            raise SessionStateError(
                f"this repository is closed; open it again with vzarr.open({self.path!r})"
            )

    # ── sessions ─────────────────────────────────────────────────────────────────────────────────

    def session(
        self,
        ref: str | datetime | None = None,
        *,
        at: datetime | None = None,
        isolation: Isolation = "snapshot",
        checkpoint_every: float | None = None,
    ) -> Session:
        """Open a session: writable on a branch, read-only on anything else.

        ``ref`` is a branch (default main), a tag, a commit id or its unique beginning of 4 or more
        digits, ``main~2``, ``main@{2026-03-01}`` or a datetime; ``at=`` means the branch as it was
        then. ``isolation="serializable"`` refuses a commit if others changed what the session read:
        chunks, documents, listings. ``checkpoint_every`` saves uncommitted edits every so many
        seconds, for ``resume``.

        Raises ``RefNotFoundError``, ``CommitNotFoundError``, ``InvalidInputError``. O(log n).
        """
        self._require_open()
        _check_isolation(isolation)
        revision = self._revision(ref, at)
        branch = None if self._read_only else revision.branch
        session = Session(
            self._objects,
            self._settings,
            revision.commit,
            branch,
            self._make_store,
            isolation=isolation,
        )
        if checkpoint_every is not None and branch is not None:
            session.checkpoint_every(checkpoint_every)
        return session

    def sessions(self) -> list[SessionInfo]:
        """List the sessions that are open now, in all processes, and what dead ones left.

        Each with owner, branch, base, age, bytes staged, and whether it is alive. Of a session in
        another process that has nothing in the file, only the process and the commit are known;
        whether it reads or has edits in memory is not. O(sessions · log n).
        """
        self._require_open()
        return list_sessions(self._environment)

    def resume(self, session_id: str) -> Session:
        """Go on with a session whose process has died, from its last checkpoint.

        ``session_id`` is its id, as ``checkpoint`` gave it and ``sessions`` lists it, or 4 or more
        digits that it begins with. The session keeps its id, and its checkpoint until it commits.

        Raises ``SessionNotFoundError``, ``BusyError`` while the session is in use,
        ``SessionStateError`` if it saved nothing, and ``ReadOnlyError``. O(sessions · log n).
        """
        self._require_writable()
        return resume(self._objects, self._settings, self._make_store, session_id)

    def _revision(self, ref: str | datetime | None, at: datetime | None = None) -> Revision:
        self._require_open()
        return resolve(self._environment, ref, at, self._branch_in_use)

    @property
    def _branch_in_use(self) -> str:
        current = self._current
        return (current.branch if current is not None else None) or DEFAULT_BRANCH

    def _make_store(self, session: Session) -> VzarrStore:
        from vzarr.store import VzarrStore

        return VzarrStore(session)

    @contextmanager
    def transaction(
        self,
        branch: str = DEFAULT_BRANCH,
        message: str = "",
        *,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        merge: Strategy = "fail",
        isolation: Isolation = "snapshot",
        exclusive: bool = False,
        timeout: float | None = None,
        checkpoint_every: float | None = None,
    ) -> Iterator[VzarrStore]:
        """Give a store whose writes become one commit when the block ends, or leave nothing.

        Any exception in the block, ``KeyboardInterrupt`` too, rolls back. No changes, no commit.

        ``exclusive=True`` has the branch to itself: it waits for its turn before it begins, all
        who commit to the branch wait until it ends, and so it never conflicts. It is what
        SQLite calls BEGIN IMMEDIATE. The queue is fair among threads and processes, Ctrl-C ends the
        wait, and who is killed loses its turn at once. ``timeout`` is for how many seconds this
        transaction waits for others, there and at the commit, instead of the repository's.

        ``isolation``, ``checkpoint_every``: see ``session``.

        Raises what ``Session.commit`` raises, ``ConflictError`` above all, and ``BusyError``, whose
        ``.holder`` says who has the branch; nothing is written then.
        """
        history.check_message(message)
        history.check_metadata(metadata)
        with self._writing(branch, isolation, timeout, exclusive=exclusive) as session:
            if checkpoint_every is not None:
                session.checkpoint_every(checkpoint_every)
            yield session.store
            if session.has_changes:
                session.commit(message, metadata=metadata, author=author, merge=merge)

    @contextmanager
    def _writing(
        self, branch: str, isolation: Isolation, timeout: float | None, *, exclusive: bool
    ) -> Iterator[Session]:
        """Give a session on a branch, whose edits are gone when the block ends."""
        self._require_branch(branch)
        _check_isolation(isolation)
        settings = self._settings if timeout is None else self._settings.waiting(timeout)
        turn = Turn(self._environment, branch)
        try:
            if exclusive:
                turn.acquire(settings.timeout)
                # Whoever was in the middle of a commit when we got the turn has ended it by then.
                with self._environment.write(timeout=settings.timeout):
                    pass
            head = self._revision(branch).commit
            session = Session(
                self._objects,
                settings,
                head,
                branch,
                self._make_store,
                turn=turn,
                isolation=isolation,
                # Two that each count one up write the same number, and mean two.
                may_agree=False,
            )
            with closing(session):
                try:
                    yield session
                finally:
                    # What then stays is garbage, and no reason to hide why the block ended.
                    with suppress(BusyError, StorageError):
                        session.discard()
        finally:
            turn.release()

    def _require_branch(self, branch: str) -> None:
        """Raise ``ReadOnlyError`` unless commits can go to it."""
        self._require_writable()
        if self._revision(branch).branch is None:
            raise ReadOnlyError(
                f"cannot write: {branch!r} is no branch, and commits go to branches"
            )

    def _require_writable(self) -> None:
        self._require_open()
        if self._read_only:
            raise ReadOnlyError(
                f"cannot write: {self.path} was opened with mode 'r'; open it with mode 'r+'"
            )

    def run(
        self,
        function: Callable[[VzarrStore], _T],
        branch: str = DEFAULT_BRANCH,
        message: str = "",
        *,
        retries: int = 100,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        merge: Strategy = "fail",
        isolation: Isolation = "snapshot",
        exclusive: bool = False,
        timeout: float | None = None,
    ) -> tuple[str, _T]:
        """Call ``function(store)`` in a transaction, again on the new state after each conflict.

        Gives the commit's id (the branch's head if nothing changed) and the function's result. So
        that several processes can append to one array at once. Waits a random, growing time between
        attempts; raises the last ``ConflictError`` after ``retries`` of them. The rest is as for
        ``transaction``.
        """
        history.check_message(message)
        history.check_metadata(metadata)
        attempt = 0
        while True:
            try:
                with self._writing(branch, isolation, timeout, exclusive=exclusive) as session:
                    result = function(session.store)
                    if session.has_changes:
                        session.commit(message, metadata=metadata, author=author, merge=merge)
                    return session.base, result
            except ConflictError:
                attempt += 1
                if attempt > retries:
                    raise
            limit = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2 ** min(attempt, 10))
            time.sleep(limit * secrets.SystemRandom().random())

    # ── the short way: a current session ─────────────────────────────────────────────────────────

    @property
    def _session(self) -> Session:
        """The current session; without edits it shows the branch's head as it is by now."""
        if self._current is None:
            self._current = self.session(DEFAULT_BRANCH)
        self._current.follow()
        return self._current

    def checkout(
        self, ref: str | datetime | None = None, *, create: bool = False, discard: bool = False
    ) -> Session:
        """Make a session on ``ref`` the current one, and give it.

        ``create=True`` makes a branch of that name at the current commit first. Uncommitted edits
        of the current session are kept safe: raises ``SessionStateError`` unless they are committed
        or ``discard=True``. On a commit that is not a branch's head the session is read-only, and a
        warning says so. Raises ``RefNotFoundError``, ``AlreadyExistsError``, ``InvalidInputError``.
        """
        self._require_open()
        current = self._current
        if current is not None and current.has_changes and not discard:
            raise SessionStateError(
                "the current session has uncommitted changes; commit them, or drop them with "
                "repo.discard() or checkout(..., discard=True)"
            )
        if create:
            if not isinstance(ref, str):
                raise InvalidInputError(f"checkout(create=True) needs a branch name, not {ref!r}")
            self.branches.create(ref, at=self._session.base)
        session = self.session(ref)
        if session.read_only and not self._read_only:
            warnings.warn(
                f"{ref} is no branch, so this session on commit {session.base[:12]} is read-only; "
                "make a branch to write: repo.checkout('name', create=True)",
                ReadOnlyCheckoutWarning,
                stacklevel=2,
            )
        if current is not None:
            current.close()
        self._current = session
        return session

    @property
    def root_group(self) -> zarr.Group:
        """The root ``zarr.Group`` of the current session."""
        self._require_open()
        group: zarr.Group = self._session.root_group
        return group

    def store(
        self, ref: str | datetime | None = None, *, autocommit: Autocommit = False
    ) -> VzarrStore:
        """Give a store for zarr, xarray or dask.

        Without ``ref`` it is the current session's: writes wait for ``repo.commit``. With it, this
        is a read-only store of that commit. With ``autocommit=True`` it writes to the branch
        ``ref``, each write is durable when it returns, and consecutive writes of this store are one
        commit; ``autocommit="each"`` makes one commit of every write.
        """
        from vzarr.store import VzarrStore

        self._require_open()
        if autocommit not in (False, True, "each"):
            raise InvalidInputError(f"autocommit= is False, True or 'each', not {autocommit!r}")
        if autocommit:
            branch = self._branch_in_use if ref is None else ref
            if not isinstance(branch, str):
                raise InvalidInputError(f"autocommit= needs a branch, not {ref!r}")
            self._require_branch(branch)
            return VzarrStore(self.session(branch), autocommit=autocommit)
        if ref is None:
            return self._make_store(self._session)
        commit = self._revision(ref).commit
        session = Session(self._objects, self._settings, commit, None, self._make_store)
        return VzarrStore(session)

    def mapping(
        self, ref: str | datetime | None = None, *, autocommit: Autocommit = False
    ) -> VzarrMapping:
        """Give keys and bytes as a ``MutableMapping``, for code that wants no store; see ``store``.

        Without ``ref`` it writes to the current session, with it it only reads. ``vzarr.mapping``
        makes one of a transaction's store.
        """
        from vzarr.flatmap import VzarrMapping

        return VzarrMapping(self.store(ref, autocommit=autocommit))

    def status(self) -> Status:
        """Tell what the current session would commit."""
        self._require_open()
        return self._session.status()

    def commit(
        self,
        message: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        merge: Strategy = "fail",
        allow_empty: bool = False,
    ) -> str:
        """Commit the current session's edits; see ``Session.commit``."""
        self._require_open()
        return self._session.commit(
            message, metadata=metadata, author=author, merge=merge, allow_empty=allow_empty
        )

    def amend(
        self, message: str | None = None, *, metadata: Mapping[str, Any] | None = None
    ) -> str:
        """Replace the branch's last commit by one with the current edits too."""
        self._require_open()
        return self._session.amend(message, metadata=metadata)

    def discard(self) -> None:
        """Drop the current session's uncommitted edits."""
        self._require_open()
        self._session.discard()

    def move(self, source: str, destination: str) -> None:
        """Move or rename a group or array in the current session; see ``Session.move``."""
        self._require_open()
        self._session.move(source, destination)

    def tree(self, ref: str | datetime | None = None) -> Tree:
        """Draw the groups and arrays of the current session, or of a ref. O(nodes)."""
        self._require_open()
        if ref is None:
            return draw(self._session.hierarchy)
        return draw(self._snapshot(self._revision(ref).commit))

    # ── history ──────────────────────────────────────────────────────────────────────────────────

    @property
    def branches(self) -> Branches:
        """The branches: a mapping from name to commit id, with create, delete, rename, reset."""
        self._require_open()
        return Branches(self._environment, self._settings, read_only=self._read_only)

    @property
    def tags(self) -> Tags:
        """The tags: a mapping from name to commit id, with create and delete."""
        self._require_open()
        return Tags(self._environment, self._settings, read_only=self._read_only)

    def log(
        self,
        ref: str | datetime | None = None,
        *,
        path: str | None = None,
        limit: int | None = None,
    ) -> Log:
        """List the commits reachable from a ref (default: the current session's), newest first.

        ``path`` keeps those that changed something at or below it. O(log n) a commit that is looked
        at, and a comparison of two directories with ``path``.
        """
        self._require_open()
        if limit is not None and (not isinstance(limit, int) or limit < 0):
            raise InvalidInputError(f"limit= is a number of commits, not {limit!r}")
        head = bytes.fromhex(self._session.base) if ref is None else self._revision(ref).commit
        found: list[Commit] = []
        for commit, record in history.log(self._environment, Digest(head)):
            if limit is not None and len(found) >= limit:
                break
            if path is None or self._touches(record, path.strip("/")):
                found.append(history.describe(commit, record))
        return Log(found)

    def _touches(self, record: CommitRecord, path: str) -> bool:
        after = self._at(record.root).entry(path)
        if not record.parents:
            return after is not None and not after.is_empty
        parent = history.get(self._environment, record.parents[0])
        return self._at(parent.root).entry(path) != after

    def show(self, ref: str | datetime | None = None) -> Commit:
        """Describe the commit that a ref names (default: the current session's base)."""
        self._require_open()
        commit = (
            Digest(bytes.fromhex(self._session.base))
            if ref is None
            else (self._revision(ref).commit)
        )
        return history.describe(commit, history.get(self._environment, commit))

    def reflog(self, branch: str = DEFAULT_BRANCH) -> list[ReflogEntry]:
        """List every move of a branch, newest first; also of one that was deleted.

        Raises ``RefNotFoundError`` if there never was such a branch.
        """
        self._require_open()
        refs.check_name(branch)
        with self._environment.read() as txn:
            entries = list(refs.reflog(txn, branch))
            if not entries:
                refs.head(txn, branch)
        return entries

    def diff(self, old: str | datetime, new: str | datetime | None = None) -> Diff:
        """Compare two refs; without ``new``, a ref with the current session's head branch.

        O(changed nodes · depth), whatever the number of chunks; changed chunks and values are read
        when they are asked for.
        """
        before = self._revision(old).commit
        after = self._revision(new).commit

        def open_side(side: Side, path: str) -> Any:
            import zarr

            store = self.store((before if side == "old" else after).hex())
            return zarr.open(store, path=path, mode="r")

        roots = [self._objects.load_root(self._root(commit)) for commit in (before, after)]
        changes = diff(Overlay(self._objects), roots[0], roots[1], open_side)
        return Diff(str(old), str(new if new is not None else self._branch_in_use), changes)

    @overload
    def merge(
        self,
        ref: str | datetime,
        into: str = ...,
        message: str | None = ...,
        strategy: Strategy = ...,
        *,
        no_ff: bool = ...,
        dry_run: Literal[False] = ...,
        metadata: Mapping[str, Any] | None = ...,
        author: str | None = ...,
    ) -> str: ...

    @overload
    def merge(
        self,
        ref: str | datetime,
        into: str = ...,
        message: str | None = ...,
        strategy: Strategy = ...,
        *,
        no_ff: bool = ...,
        dry_run: Literal[True],
        metadata: Mapping[str, Any] | None = ...,
        author: str | None = ...,
    ) -> MergePreview: ...

    def merge(
        self,
        ref: str | datetime,
        into: str = DEFAULT_BRANCH,
        message: str | None = None,
        strategy: Strategy = "fail",
        *,
        no_ff: bool = False,
        dry_run: bool = False,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
    ) -> str | MergePreview:
        """Merge a branch, or any commit, into a branch; give the id of its head then.

        That is the present head if ``ref`` is in it already, and ``ref``'s commit if nothing but
        the name has to move (*fast-forward*; ``no_ff=True`` makes a commit all the same). Otherwise
        what both sides did since their merge base is put together in a commit with two parents,
        durable when this returns. ``message`` is "Merge branch 'dev'" unless it is given; it and
        ``metadata`` go to that commit, so that a fast-forward has no use for them.

        Merges that crossed leave several merge bases: they are merged into a virtual one first,
        where what they conflict in keeps its older value. Unrelated histories have an empty base.

        ``strategy`` decides conflicts for the branch ("ours") or for ``ref`` ("theirs"). "fail"
        raises ``MergeConflict``, which lists them all; nothing is written then. Where another
        writer moves the branch meanwhile, the merge is done again on its new head.

        With ``dry_run=True`` this gives a ``MergePreview`` and writes nothing.

        Raises ``RefNotFoundError``, ``InvalidInputError``, ``ReadOnlyError``, ``BusyError`` and
        ``FullError`` too. Cost: O(commits since the merge base), O(k log n) nodes for k changes
        among n chunks, one fsync.
        """
        if dry_run:
            return self._combiner(writing=False).preview(ref, into, strategy)
        combiner = self._combiner()
        return combiner.merge(
            ref, into, strategy, no_ff=no_ff, message=message, metadata=metadata, author=author
        ).hex()

    def cherry_pick(
        self,
        commit: str | datetime,
        onto: str = DEFAULT_BRANCH,
        *,
        mainline: int | None = None,
        strategy: Strategy = "fail",
        note_origin: bool = False,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
    ) -> str:
        """Apply what one commit changed on top of a branch; give the id of the new commit.

        It has the message, metadata and author of the other unless they are given, and the present
        time; ``note_origin=True`` adds the line "(cherry picked from commit …)". The change of a
        merge counts from its parent number ``mainline``.

        Raises ``MergeConflict`` if the branch changed the same things, ``SessionStateError`` if it
        has that change already, ``InvalidInputError`` for a merge without ``mainline``, and as
        ``merge``. Cost: O(k log n) nodes for k changes among n chunks, one fsync.
        """
        combiner = self._combiner()
        return combiner.cherry_pick(
            commit,
            onto,
            strategy,
            mainline=mainline,
            note_origin=note_origin,
            message=message,
            metadata=metadata,
            author=author,
        ).hex()

    def revert(
        self,
        commit: str | datetime,
        on: str = DEFAULT_BRANCH,
        *,
        mainline: int | None = None,
        strategy: Strategy = "fail",
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
    ) -> str:
        """Undo what one commit changed, by a new commit on a branch, and give that one's id.

        What other commits changed since stays. The message is 'Revert "…"' with the commit's id
        unless it is given. The change of a merge counts from its parent number ``mainline``.

        Raises ``MergeConflict`` if the same things changed again since, ``SessionStateError`` if
        nothing of the change is left, ``InvalidInputError`` for a merge without ``mainline``, and
        as ``merge``. Cost: O(k log n) nodes for k changes among n chunks, one fsync.
        """
        combiner = self._combiner()
        return combiner.revert(
            commit,
            on,
            strategy,
            mainline=mainline,
            message=message,
            metadata=metadata,
            author=author,
        ).hex()

    def squash(
        self,
        branch: str = DEFAULT_BRANCH,
        *,
        since: str | datetime,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
    ) -> str:
        """Replace the commits of a branch after ``since`` by one, and give its id.

        ``since`` lies on the branch's line of first parents, and becomes the only parent; merges
        after it are fine. The snapshot stays as it is, to its ``root_id``. The message lists the
        subjects of the commits unless it is given. The reflog keeps the old head.

        Raises ``InvalidInputError`` if ``since`` is not on that line, ``SessionStateError`` if
        there is nothing after it, ``RefNotFoundError``, ``ReadOnlyError``, ``BusyError`` and
        ``FullError``. Cost: O(commits since), one fsync.
        """
        combiner = self._combiner()
        return combiner.squash(
            branch, since, message=message, metadata=metadata, author=author
        ).hex()

    def _combiner(self, *, writing: bool = True) -> Combiner:
        (self._require_writable if writing else self._require_open)()
        from vzarr.combine import Combiner

        return Combiner(self._objects, self._settings, self._make_store)

    def blame(self, path: str, region: Any = None, *, ref: str | datetime | None = None) -> Blame:
        """Find the last commit to change each stored chunk of an array, as of a ref.

        ``region`` is an index as for numpy, of slices and integers, and takes the chunks it
        touches. A chunk that a merge has from one of its parents counts for the commit on that
        side. An array that was moved keeps its history, unless the same commit changed it too.

        Raises ``NotFoundError`` if there is no such array, ``RefNotFoundError``, and
        ``InvalidInputError`` for a group or a region that does not fit. O(n + commits · depth +
        changed chunks): a commit that left the array alone costs microseconds.
        """
        from vzarr.blame import blame

        return blame(self._objects, self._revision(ref).commit, path.strip("/"), region)

    def bisect(
        self,
        good: str | datetime,
        bad: str | datetime,
        test: Callable[[VzarrStore], bool],
        *,
        progress: Callable[[Commit, int], object] | None = None,
    ) -> Commit:
        """Find the commit that broke something, by halving the commits between good and bad.

        ``test(store)`` gets a read-only store of a commit, and gives True if that one is good;
        ``good`` and ``bad`` themselves are taken as given. The commit that comes out is bad and
        its parents are good, through merges too, provided that what was broken stayed broken.
        ``progress(commit, left)`` is called before each test with the number of commits left.

        Raises ``InvalidInputError`` unless ``good`` is an ancestor of ``bad``,
        ``RefNotFoundError``, and whatever the test raises. About log2(commits between) tests, and
        O(commits) to look at the history.
        """
        before, after = self._revision(good).commit, self._revision(bad).commit
        from vzarr.blame import bisect

        return bisect(
            self._environment,
            before,
            after,
            lambda commit: bool(test(self.store(commit.id))),
            progress,
        )

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────

    def check(self, level: Level = "quick", *, progress: Progress | None = None) -> Report:
        """Check that the repository is whole; give all problems, with what each costs.

        "quick" looks at LMDB's structure, refs, commits, directories, documents and indexes, and
        whether each chunk is there; "full" also at the bytes of every chunk, at reflogs and
        sessions, and counts garbage. Damage is reported and never raised. Others may write
        meanwhile. ``progress(done, total, what)`` is called now and then. Raises
        ``InvalidInputError`` for a level there is not, and ``SessionStateError`` once closed. Some
        7 µs a chunk and 80 µs a tree node; "full" reads the whole file.
        """
        self._require_open()
        from vzarr.check import check

        return check(self._objects, level, progress=progress)

    def gc(
        self,
        dry_run: bool = False,
        *,
        checkpoints_older_than: timedelta = timedelta(days=14),
        progress: Progress | None = None,
    ) -> GcReport:
        """Delete what is reachable from nothing: commits, nodes, chunks, what dead sessions left.

        Kept is what can be reached from a branch, a tag or the reflog (``expire`` shortens that),
        from a commit that a session of any process is on, and from the work of sessions whose
        process lives. A dead session's checkpoint is kept unless it is ``checkpoints_older_than``
        so much, and so is the work of one on another machine, counted from when it wrote last.

        Others read and commit meanwhile, and wait for some 20 ms at a time. If it is interrupted,
        the file is sound and the next one goes on. The file does not become smaller: what is free
        is used again, and ``compact`` gives it back. ``dry_run`` only tells what would be deleted.
        ``progress(done, total, what)`` is called now and then.

        Raises ``CorruptError`` where something in use is missing or damaged, ``BusyError`` if
        another collection or writer takes longer than the timeout, ``ReadOnlyError``,
        ``FullError``. Cost: some 3 µs a stored chunk, and 4 µs one that is deleted; 8 bytes of
        memory a chunk.
        """
        from vzarr.garbage import gc

        (self._require_open if dry_run else self._require_writable)()
        return gc(
            self._objects,
            self._settings,
            dry_run=dry_run,
            checkpoints_older_than=checkpoints_older_than,
            progress=progress,
        )

    def expire(
        self,
        *,
        older_than: datetime | timedelta | None = None,
        keep_last: int | None = None,
        branch: str | None = None,
        dry_run: bool = False,
    ) -> ExpireReport:
        """Remove reflog entries, of one branch or of all, so that ``gc`` frees what only they keep.

        Those go that are older than a time or an age, or all if ``older_than`` is not given; but
        of each branch the ``keep_last`` newest stay. A branch keeps its newest entry in any case;
        if that is one of those to go, it forgets what was there before. Of a branch that was
        deleted nothing stays that is ``older_than`` that. History is not rewritten. The report
        lists the commits that are lost then; see it with ``dry_run`` first.

        Raises ``InvalidInputError`` if neither ``older_than`` nor ``keep_last`` is given,
        ``RefNotFoundError`` for a branch without a reflog, ``BusyError``, ``ReadOnlyError``.
        Cost: O(commits + entries), some 10 µs each.
        """
        from vzarr.expiry import expire

        (self._require_open if dry_run else self._require_writable)()
        return expire(
            self._objects,
            self._settings,
            older_than=older_than,
            keep_last=keep_last,
            branch=branch,
            dry_run=dry_run,
        )

    def du(
        self,
        path: str = "",
        *,
        ref: str | datetime | None = None,
        commits: int | Sequence[str] = 10,
    ) -> Usage:
        """Tell what takes how many bytes: refs, commits, arrays, free pages, garbage; as tables.

        Of each branch and tag, all that it reaches, and what no other does. Of each commit, what it
        alone reaches: of the newest ``commits``, or of those that are given. Of each array at
        and below ``path``, its elements and its stored chunks as of ``ref`` (default main), and the
        chunks of all its versions that are kept. What is stored once counts once.

        Raises ``RefNotFoundError``, ``NotFoundError`` for a path that is not in ``ref``,
        ``InvalidInputError``, and ``CorruptError`` where something is missing or damaged. Cost:
        some 0.1 ms a tree node, thus 4 s for a million chunks, and some 250 bytes of memory a chunk
        at the peak. No page is used again meanwhile.
        """
        from vzarr.usage import du

        self._require_open()
        head = self._revision(ref).commit
        wanted = (
            commits
            if isinstance(commits, int)
            else [self._revision(commit).commit for commit in commits]
        )
        name = str(ref) if ref is not None else self._branch_in_use
        return du(self._objects, path.strip("/"), name, head, wanted)

    def redact(
        self,
        path: str,
        region: Any = None,
        *,
        reason: str = "",
        everywhere: bool = False,
        whole_chunks: bool = False,
        force: bool = False,
        dry_run: bool = False,
        progress: Progress | None = None,
    ) -> RedactReport:
        """Erase data from all history, so that nobody can ever read them from this file again.

        In each commit that a branch, a tag or the reflog has, what is stored at ``path`` is taken
        out: of an array its chunks, of a group those of all arrays below, and plain files. Their
        documents stay, attributes too, so that the arrays can be opened and read as fill value.
        ``region`` is an index as for numpy that counts from the beginning; only these elements of
        the array go then, in whatever shape it was. Chunks that lie in it partly are encoded anew,
        or dropped with ``whole_chunks=True``, where their codecs are lossy or not to be had. What
        was moved is followed, through commits that did not change it too.

        Commits that had the data, and all that descend from them, get new ids; author, time,
        message and metadata stay. Branches, tags and reflogs name the new ones, all in one txn, in
        which the old ones are deleted: a session that began from one of them cannot commit. Then
        garbage is collected. The bytes are in free pages of the file until ``compact``.

        The report has the ids, and where else the same bytes are: ``everywhere=True`` drops whole
        chunks and files there, too. While a session is on one of the commits, or a checkpoint holds
        the data, it refuses; with ``force=True`` these lose their base, and checkpoints are
        deleted. ``dry_run`` only tells. ``reason`` is noted in the reflog.

        Raises ``NotFoundError`` if no commit has that path, ``SessionStateError`` for sessions of
        this process and for checkpoints, ``BusyError`` for other processes, with ``.holder``,
        ``InvalidInputError``, ``ReadOnlyError``, ``FullError`` and ``CorruptError``; the history is
        as it was then. Cost: some 20 µs a commit and 50 µs a node that changes, decoding and
        encoding what lies in the region partly, and a ``gc``. Memory: 100 bytes a commit, and as
        much a chunk taken out.
        """
        from vzarr.redaction import redact

        (self._require_open if dry_run else self._require_writable)()
        current = self._current
        if current is not None and current.has_changes and not dry_run:
            raise SessionStateError(
                "the current session has changes: commit or discard them before you redact"
            )
        report = redact(
            self._objects,
            self._settings,
            path,
            region,
            reason=reason,
            everywhere=everywhere,
            whole_chunks=whole_chunks,
            force=force,
            dry_run=dry_run,
            spare=current,
            progress=progress,
        )
        if current is not None and not dry_run and current.base in report.rewritten:
            where = current.branch or report.rewritten[current.base]
            self._current = self.session(where)
            current.close()
        return report

    def compact(
        self,
        *,
        gc: bool = True,
        verify: Literal["quick", "full"] | None = "full",
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> CompactReport:
        """Give the space back that the file does not need any more.

        Collects garbage (``gc=False`` does not), writes a copy without free pages beside the file,
        verifies it, and renames it over the file. Killed at any time, there is the old file or the
        new one. Whatever is open in this process stays so: sessions, their edits, stores. Meanwhile
        readers of this process go on, and its writers and forks wait.

        No other process may have the file open. It waits up to ``timeout`` seconds (default: the
        repository's) for others to close it, and the same for writers. The disk needs room for the
        copy.

        Raises ``BusyError``, whose ``.holder`` is a process that has the file open; ``FullError``,
        ``CorruptError`` if there is damage, ``ReadOnlyError``, and ``StorageError`` where the
        system has no locks that tell who has it open. The file is as it was then. Cost: as ``gc``,
        and some 2 seconds a gigabyte.
        """
        from vzarr.compaction import compact

        self._require_writable()
        settings = self._settings if timeout is None else self._settings.waiting(timeout)
        return compact(self._objects, settings, collect=gc, verify=verify, progress=progress)

    def backup(
        self,
        target: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        verify: Literal["quick", "full"] | None = "full",
        progress: Progress | None = None,
    ) -> BackupReport:
        """Write a copy of the repository to another file, while others read and commit.

        It is what was committed at one moment, without free pages. It is verified ("full": every
        digest; "quick": all but the bytes of chunks) and durable before it appears under its name,
        whole or not at all. Anybody opens it as a repository of its own, with the same ``id``. To
        sessions that are open now it has no ties: what they saved with a checkpoint can be resumed
        there, and what they only staged is garbage there.

        While it runs, the file grows by what others commit, and a fork of this process waits.

        Raises ``AlreadyExistsError`` if there is something at ``target``, unless ``overwrite``; and
        then too ``BusyError`` or ``SessionStateError`` if that is open anywhere, and
        ``NotARepositoryError`` if it is no repository. ``InvalidInputError`` if it is this file,
        ``NotFoundError`` if there is no such directory, ``CorruptError`` if the copy is damaged
        because the file is, ``FullError``, ``StorageError``. Cost: some 2 seconds a gigabyte.
        """
        from vzarr.backup import backup

        self._require_open()
        return backup(
            self._environment,
            _check_target(target),
            overwrite=overwrite,
            verify=verify,
            progress=progress,
        )

    def export_to(
        self,
        target: str | os.PathLike[str],
        *,
        ref: str | datetime | None = None,
        path: str = "",
        overwrite: bool = False,
        storage_options: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> ExportReport:
        """Write the data of a ref to where other programs read it.

        ``target`` is a Zarr directory, file by file what zarr's ``LocalStore`` would have written;
        with the suffix ``.zip`` a zip file for ``ZipStore``, not compressed; with ``.car`` a CAR
        file, blocks by SHA-256 for IPFS and its relatives; or a URL, if fsspec is installed, which
        ``storage_options`` are for. ``ref`` is a branch (default main), a tag or whatever else
        ``session`` takes; ``path`` the group or array to export, of which the keys below are taken.

        Every value is compared with its digest, whatever ``verify=`` says. The target appears when
        all of it is written and durable; until then there is what ``overwrite`` replaces. At a URL,
        which cannot be renamed, metadata come last. If it is killed, a hidden draft is left beside
        the target, which the next export there removes.

        Raises ``AlreadyExistsError`` if there is something, unless ``overwrite`` is on and it is
        such an export; ``NotFoundError`` if there is nothing at ``path``, or no directory for the
        target; ``InvalidInputError`` naming keys that the target cannot hold, before anything is
        written; ``RefNotFoundError``, ``CorruptError``, ``FullError``, ``StorageError``. A CAR file
        with blocks too large for IPFS gives a ``BlockSizeWarning``. Cost: O(keys), and reading,
        verifying and writing every byte; at most four batches of 4 MiB are in memory, or so many
        chunks if they are larger.
        """
        from vzarr.exporting import export

        target = _check_target(target)
        commit = self._revision(ref).commit
        # It compares digests itself.
        objects = Objects(self._environment, "never")
        session = Session(objects, self._settings, commit, None, self._make_store)
        with closing(session):
            return export(
                session,
                target,
                path=path,
                overwrite=overwrite,
                storage_options=storage_options,
                progress=progress,
            )

    def import_from(
        self,
        source: Any,
        *,
        path: str = "",
        branch: str = DEFAULT_BRANCH,
        ref: str | datetime | None = None,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        author: str | None = None,
        consume: bool = False,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> ImportReport:
        """Take over what is elsewhere to ``path`` on a branch: one commit, or none at all.

        ``source`` is a Zarr of format 2 or 3 in a directory or a zip file, at an fsspec URL
        (``storage_options`` are for that) or in a zarr ``Store``; a ``.vzarr`` file, at ``ref``; a
        CAR; or HDF5, NetCDF or GRIB, whose groups, dimensions, attributes and chunks are kept, with
        values as they are stored and not as they are decoded. Zarr's chunks and documents
        are taken over byte for byte; but not consolidated metadata, which the next commit would
        make stale.

        Run again, it makes no commit if nothing has changed, and goes on where an earlier run was
        killed. If there is something else at ``path`` already, ``overwrite`` replaces all of it.

        ``consume`` deletes the source meanwhile, for which nobody else may use it: each chunk once
        it is on disk here, documents and directories after the commit, a zip file as a whole.
        Killed at any moment, nothing is lost, and the same call goes on; until then a branch
        ``importing/…`` holds what is not in the source any more.

        Raises ``NotFoundError``; ``InvalidInputError`` for what is half-written or cannot be
        imported, with what is missing for it; ``AlreadyExistsError`` for ``path``;
        ``ConflictError`` if the source, or ``path``, is changed meanwhile; ``BusyError``,
        ``FullError``, ``StorageError``. The branch is as it was then, and what was read is kept for
        the next run. Cost: reading, a digest and writing, at about the speed of a copy; memory as
        in a transaction.
        """
        from vzarr.imported import Options
        from vzarr.importing import import_from
        from vzarr.sources import open_source

        self._require_branch(branch)
        options = Options(
            path=path.strip("/"),
            branch=branch,
            message=None if message is None else history.check_message(message),
            metadata=history.check_metadata(metadata),
            author=author,
            consume=consume,
            overwrite=overwrite,
        )
        opened = open_source(source, ref=ref, exclusive=consume, storage_options=storage_options)
        with closing(opened):
            return import_from(self, self._objects, self._settings, opened, options, progress)

    # ── other repositories ───────────────────────────────────────────────────────────────────────

    @property
    def remotes(self) -> Remotes:
        """Other repositories that this one knows: a mapping from names, with add and remove."""
        from vzarr.remotes import Remotes

        self._require_open()
        return Remotes(self._environment, self._settings, read_only=self._read_only)

    def fetch(
        self,
        remote: str | os.PathLike[str] | None = None,
        branches: str | Sequence[str] | None = None,
        *,
        complete: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Bring the commits of another repository, and move no branch.

        ``remote`` is the name of a remote, a path, ``user@host:path`` or a bundle; not given, it is
        ``origin`` or the only one. ``branches`` are all of it by default, and new tags then, too.
        Where they are there is known as ``origin/main`` from then on, a ref like any other;
        ``FETCH_HEAD/main`` for what has no name. Only objects travel that are missing here; each is
        compared with its digest. What an interrupted call has brought is not sent again.
        ``complete`` looks at all commits, and brings what a shallow or partial clone has left out.

        Raises ``TransferError`` if the other side cannot be reached or hangs up, ``CorruptError``
        for what it sends, ``UnrelatedError`` if it has no commit in common with this one,
        ``NotFoundError``, ``FormatVersionError``, ``ReadOnlyError``, ``BusyError``, ``FullError``.
        Nothing has moved then. Cost: O(changes · depth), one fsync.
        """
        from vzarr.exchange import fetch

        self._require_writable()
        return fetch(
            self._objects,
            self._settings,
            _url(remote),
            [branches] if isinstance(branches, str) else branches,
            complete=complete,
            progress=progress,
        )

    def push(
        self,
        remote: str | os.PathLike[str] | None = None,
        branches: str | Sequence[str] | None = None,
        *,
        force: bool = False,
        tags: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Give another repository what it lacks of some branches, and move them there.

        ``remote``: see ``fetch``. ``branches`` is the one in use by default. With ``tags``, all
        tags go along. All moves there are made in one txn, and durable when this returns. A branch
        is moved forward only, unless ``force``.

        Raises ``NotFastForwardError`` if a branch there has commits that are not here: ``pull``
        first; ``AlreadyExistsError`` for a tag that names another commit there, ``ReadOnlyError``
        if the other side only serves readers, and as ``fetch``. Nothing has moved then. Cost:
        O(changes · depth), one fsync there.
        """
        from vzarr.exchange import push

        self._require_open()
        if branches is None:
            branches = self._branch_in_use
        return push(
            self._objects,
            self._settings,
            _url(remote),
            [branches] if isinstance(branches, str) else branches,
            force=force,
            tags=tags,
            read_only=self._read_only,
            progress=progress,
        )

    def pull(
        self,
        remote: str | os.PathLike[str] | None = None,
        branch: str | None = None,
        *,
        strategy: Strategy = "fail",
        progress: Progress | None = None,
    ) -> PullReport:
        """Fetch a branch (default: the one in use), and merge it into the one of that name here.

        A fast-forward where nothing but the name has to move; else as ``merge``, with the same
        ``strategy``. Raises ``MergeConflict``, and what ``fetch`` and ``merge`` raise; what was
        fetched is known as ``origin/main`` then.
        """
        from vzarr.exchange import pull

        self._require_writable()
        return pull(
            self._objects,
            self._settings,
            self._make_store,
            _url(remote),
            self._branch_in_use if branch is None else branch,
            strategy=strategy,
            progress=progress,
        )

    def bundle(
        self,
        target: str | os.PathLike[str],
        refs: str | Sequence[str] | None = None,
        *,
        since: str | datetime | Sequence[str] | None = None,
        depth: int | None = None,
        path: str = "",
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> BundleReport:
        """Write some branches and tags (default: all) to one file, for mail or a stick.

        ``since`` names refs that the other side has, or an earlier bundle: only what came after
        them is written. ``depth`` and ``path`` take a part, as in ``clone``. Whoever gets the file
        says ``unbundle``, ``fetch``, ``pull`` or ``clone``. It appears when it is whole and on
        disk.

        Raises ``RefNotFoundError``, ``AlreadyExistsError`` unless ``overwrite``,
        ``InvalidInputError`` if there is nothing to write, ``CorruptError``, ``FullError``. Cost:
        O(changes · depth), and 150 bytes of memory an object.
        """
        from vzarr.bundle import heads_of, write_bundle
        from vzarr.bundlefile import is_bundle
        from vzarr.cloning import check_part

        self._require_open()
        check_part(depth, path)
        heads: list[Digest] = []
        for each in [since] if isinstance(since, str | datetime) else since or ():
            if isinstance(each, str) and is_bundle(each):
                heads += heads_of(each)
            else:
                heads.append(self._revision(each).commit)
        return write_bundle(
            self._objects,
            _check_target(target),
            [refs] if isinstance(refs, str) else refs,
            heads,
            depth=depth,
            path=path.strip("/"),
            overwrite=overwrite,
            progress=progress,
        )

    def unbundle(
        self,
        source: str | os.PathLike[str],
        *,
        force: bool = False,
        progress: Progress | None = None,
    ) -> TransferReport:
        """Take all of a bundle: its branches move forward, or are made, and so are its tags.

        Raises ``NotFastForwardError`` if a branch here has other commits, unless ``force``:
        ``pull`` from the bundle merges it; ``CommitNotFoundError`` if what the bundle was made
        since is missing, ``CorruptError`` if it is damaged, ``UnrelatedError``. Nothing has moved
        then. Cost: O(changes · depth), one fsync.
        """
        from vzarr.bundle import unbundle

        self._require_writable()
        return unbundle(
            self._objects, self._settings, _check_target(source), force=force, progress=progress
        )

    def serve(self, channel: Channel, version: int, their_id: bytes | None) -> None:
        """Answer another side that has said hello, until it has what it wants; ``docs/sync.md``.

        ``vzarr serve`` and transfers on one machine call this. Nothing can be pushed to a
        repository that was opened with mode "r".
        """
        from vzarr.serving import serve

        self._require_open()
        serve(self._objects, self._settings, channel, version, their_id, read_only=self._read_only)

    def root_id(self, ref: str | datetime | None = None) -> str:
        """Give the content id of a ref's snapshot: equal data, equal id, in any file. O(log n)."""
        return self._root(self._revision(ref).commit).hex()

    def _root(self, commit: Digest) -> Digest:
        return history.get(self._environment, commit).root

    def _at(self, root: Digest) -> Hierarchy:
        return Hierarchy(Overlay(self._objects), self._objects.load_root(root))

    def _snapshot(self, commit: Digest) -> Hierarchy:
        return self._at(self._root(commit))


def _check_target(target: object) -> str:
    path = os.fspath(target) if isinstance(target, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInputError(f"a path is a string or a pathlib.Path, not {target!r}")
    return os.path.expanduser(path)


def _url(remote: object) -> str | None:
    if remote is None:
        return None
    text = os.fspath(remote) if isinstance(remote, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidInputError(f"a remote is a name, a path or user@host:path, not {remote!r}")
    return text


def _check_isolation(isolation: object) -> None:
    if isolation not in get_args(Isolation):
        raise InvalidInputError(
            f"isolation= is {' or '.join(map(repr, get_args(Isolation)))}, not {isolation!r}"
        )


class ReadOnlyCheckoutWarning(UserWarning):
    """A checkout of something that is not a branch, so that the session only reads."""
