"""An open repository: what it is, the sessions it gives, and its end."""

from __future__ import annotations

import os
import uuid
import warnings
import weakref
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self, get_args

from vzarr import history
from vzarr.committing import Settings
from vzarr.endings import UncommittedWarning
from vzarr.environment import Environment
from vzarr.errors import (
    InvalidInputError,
    NotARepositoryError,
    ReadOnlyError,
    SessionStateError,
)
from vzarr.format import Digest, decode_format, decode_repository, from_microseconds
from vzarr.hierarchy import Hierarchy
from vzarr.leases import SessionInfo
from vzarr.objects import Objects, Overlay, Verify
from vzarr.reports import Info
from vzarr.revisions import Revision, resolve
from vzarr.session import Isolation, Session
from vzarr.sessions import list_sessions, resume

if TYPE_CHECKING:
    from vzarr.store import VzarrStore

DEFAULT_BRANCH = "main"


class Handle:
    """One open file, and the current session on it: what all methods of ``Repository`` stand on."""

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

    # ── its end ──────────────────────────────────────────────────────────────────────────────────

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(tells=kind is None)

    # ── its sessions ─────────────────────────────────────────────────────────────────────────────

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
        check_isolation(isolation)
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

    @property
    def _session(self) -> Session:
        """The current session; without edits it shows the branch's head as it is by now."""
        if self._current is None:
            self._current = self.session(DEFAULT_BRANCH)
        self._current.follow()
        return self._current

    def _make_store(self, session: Session) -> VzarrStore:
        from vzarr.store import VzarrStore

        return VzarrStore(session)

    def _store_of(self, commit: Digest) -> VzarrStore:
        """Give a read-only store of a commit."""
        session = Session(self._objects, self._settings, commit, None, self._make_store)
        return self._make_store(session)

    # ── what it may do, and what a ref names ─────────────────────────────────────────────────────

    def _require_open(self) -> None:
        if not self._close.alive:
            raise SessionStateError(
                f"this repository is closed; open it again with vzarr.open({self.path!r})"
            )

    def _require_writable(self) -> None:
        self._require_open()
        if self._read_only:
            raise ReadOnlyError(
                f"cannot write: {self.path} was opened with mode 'r'; open it with mode 'r+'"
            )

    def _require_branch(self, branch: str) -> Digest:
        """Give the head of a branch; raise ``ReadOnlyError`` unless commits can go to it."""
        self._require_writable()
        revision = self._revision(branch)
        if revision.branch is None:
            raise ReadOnlyError(
                f"cannot write: {branch!r} is no branch, and commits go to branches"
            )
        return revision.commit

    @property
    def _branch_in_use(self) -> str:
        current = self._current
        return (current.branch if current is not None else None) or DEFAULT_BRANCH

    def _revision(self, ref: str | datetime | None, at: datetime | None = None) -> Revision:
        self._require_open()
        return resolve(self._environment, ref, at, self._branch_in_use)

    def _root(self, commit: Digest) -> Digest:
        return history.get(self._environment, commit).root

    def _at(self, root: Digest) -> Hierarchy:
        return Hierarchy(Overlay(self._objects), self._objects.load_root(root))

    def _snapshot(self, commit: Digest) -> Hierarchy:
        return self._at(self._root(commit))


def check_isolation(isolation: object) -> None:
    """Raise ``InvalidInputError`` unless there is such an isolation."""
    if isolation not in get_args(Isolation):
        raise InvalidInputError(
            f"isolation= is {' or '.join(map(repr, get_args(Isolation)))}, not {isolation!r}"
        )


def check_path(target: object) -> str:
    """Give a path as text, with ``~`` resolved; raise ``InvalidInputError`` if it is none."""
    path = os.fspath(target) if isinstance(target, str | os.PathLike) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInputError(f"a path is a string or a pathlib.Path, not {target!r}")
    return os.path.expanduser(path)
