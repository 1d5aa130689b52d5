"""``Repository``: one file with the history of a tree of Zarr groups and arrays."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, final

from vzarr import history
from vzarr.errors import (
    BusyError,
    ConflictError,
    InvalidInputError,
    SessionStateError,
    StorageError,
)
from vzarr.handle import DEFAULT_BRANCH, check_isolation
from vzarr.merge import Strategy
from vzarr.session import Isolation, Session
from vzarr.status import Status
from vzarr.transfer import Transfer
from vzarr.tree import Tree, draw
from vzarr.turns import Turn
from vzarr.upkeep import Upkeep
from vzarr.versions import Versions

if TYPE_CHECKING:
    import zarr

    from vzarr.flatmap import VzarrMapping
    from vzarr.store import Autocommit, VzarrStore

_T = TypeVar("_T")

# Waiting before another attempt: a random time up to a limit that doubles, in seconds.
_FIRST_BACKOFF = 0.002
_LONGEST_BACKOFF = 0.25


@final
class Repository(Versions, Upkeep, Transfer):
    """One file with the whole history of a tree of Zarr groups and arrays.

    Made by ``vzarr.open``. Has a *current session*, like git's working copy, which ``checkout``
    changes; any number of other sessions and transactions stand beside it. Thread-safe.
    """

    def __repr__(self) -> str:
        if not self._close.alive:
            return f"<vzarr.Repository {self.path} (closed)>"
        mode = " (read-only)" if self._read_only else ""
        where = f", on {self._current.branch or self._current.base[:12]}" if self._current else ""
        names = ", ".join(self.branches)
        return f"<vzarr.Repository {self.path}{mode}: branches {names}{where}>"

    def _repr_html_(self) -> str:
        from vzarr.notebook import closed_html, repository_html

        if not self._close.alive:
            return closed_html(self.path)
        return repository_html(self, self._current)

    # ── transactions ─────────────────────────────────────────────────────────────────────────────

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

    @contextmanager
    def _writing(
        self, branch: str, isolation: Isolation, timeout: float | None, *, exclusive: bool
    ) -> Iterator[Session]:
        """Give a session on a branch, whose edits are gone when the block ends."""
        head = self._require_branch(branch)
        check_isolation(isolation)
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

    # ── the short way: a current session ─────────────────────────────────────────────────────────

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
        return self._store_of(self._revision(ref).commit)

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


class ReadOnlyCheckoutWarning(UserWarning):
    """A checkout of something that is not a branch, so that the session only reads."""
