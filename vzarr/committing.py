"""How a commit gets onto a branch: on the present head, again while others move it, and durable."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from vzarr import filelocks, refs
from vzarr.environment import Environment, Txn
from vzarr.errors import (
    BusyError,
    InvalidInputError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
    VzarrError,
)
from vzarr.format import Digest
from vzarr.turns import Turn, is_taken

Durability = Literal["full", "normal"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a repository was opened with and its sessions need."""

    author: Callable[[], str]
    timeout: float
    durability: Durability

    def waiting(self, timeout: float) -> Settings:
        """Give the same with another timeout, in seconds. Raises ``InvalidInputError``."""
        return replace(self, timeout=check_timeout(timeout))


def check_timeout(timeout: object) -> float:
    """Give a timeout in seconds; raise ``InvalidInputError`` for what is none."""
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidInputError(f"timeout= is a number of seconds, not {timeout!r}")
    return float(timeout)


class HeadMovedError(Exception):
    """The branch moved between the preparation of a commit and its txn; never leaves vzarr."""


class BranchTakenError(Exception):
    """Somebody has the branch for himself, so that a turn is needed; never leaves vzarr."""


def change_names(
    environment: Environment,
    settings: Settings,
    change: Callable[[Txn], None],
    *,
    what: str,
    read_only: bool,
) -> None:
    """Change branches, tags or remotes in one txn, durable as commits are.

    Raises ``ReadOnlyError``, ``BusyError`` and what ``change`` raises. One fsync.
    """
    if read_only:
        raise ReadOnlyError(
            f"{environment.path} was opened with mode 'r'; open it with mode 'r+' to change {what}"
        )
    with environment.write(timeout=settings.timeout) as txn:
        change(txn)
    if settings.durability == "full":
        environment.sync()


def require_head(environment: Environment, txn: Txn, turn: Turn, head: Digest) -> None:
    """Make sure, inside the txn that is to move the branch, that it is still for us to move.

    Raises ``BranchTakenError`` unless the turn is ours or nobody has one, ``HeadMovedError`` if the
    head is another by now, and ``RefNotFoundError``. O(log n).
    """
    if not turn.held and is_taken(environment, turn.branch):
        raise BranchTakenError
    if refs.head(txn, turn.branch) != head:
        raise HeadMovedError


def on_head(
    environment: Environment,
    settings: Settings,
    turn: Turn,
    attempt: Callable[[Digest], Digest],
) -> Digest:
    """Give the commit that ``attempt(head)`` makes, durable; called again while others are faster.

    The first attempt is made at once, unless somebody has the branch for himself. Whoever was too
    slow queues for a turn, so that what he merges is not in vain again. Raises ``BusyError`` once
    the timeout is over, and ``RefNotFoundError``.
    """
    had_turn = turn.held
    try:
        commit = _attempts(environment, settings, turn, attempt)
    finally:
        if not had_turn:
            turn.release()
    # Behind the turn: the next one need not wait for the disk.
    flush(environment, settings, commit)
    return commit


def _attempts(
    environment: Environment,
    settings: Settings,
    turn: Turn,
    attempt: Callable[[Digest], Digest],
) -> Digest:
    deadline = time.monotonic() + settings.timeout
    was_slow = False
    while True:
        remaining = deadline - time.monotonic()
        if filelocks.SUPPORTED and not turn.held:
            if was_slow or is_taken(environment, turn.branch):
                turn.acquire(max(0.0, remaining))
        elif was_slow and remaining < 0:
            raise BusyError(
                f"branch {turn.branch!r} moved at every attempt to commit for "
                f"{settings.timeout:g} s; nothing was committed, try again"
            )
        with environment.read() as txn:
            head = refs.head(txn, turn.branch)
        try:
            return attempt(head)
        except (HeadMovedError, BranchTakenError):
            was_slow = True


def flush(environment: Environment, settings: Settings, commit: Digest) -> None:
    """Make the commit that a branch moved to durable, where that was asked for. One fsync.

    Raises ``StorageError`` if that fails for whatever reason, as it would be wrong to commit again;
    ``SessionStateError`` if the file was closed meanwhile.
    """
    if settings.durability != "full":
        return
    try:
        environment.sync()
    except VzarrError as error:
        what = (
            f"commit {commit.hex()[:12]} is made and others see it, but the disk did not "
            f"confirm it, so that a crash of the machine may lose it: {error}"
        )
        if isinstance(error, SessionStateError):
            raise SessionStateError(what) from error
        raise StorageError(what, code=getattr(error, "errno", None)) from error


def author_of(settings: Settings, author: str | None) -> str:
    """Give the author of a commit: the one that is named, or the repository's."""
    if author is None:
        return settings.author()
    if not isinstance(author, str) or not author.strip():
        raise InvalidInputError(f"an author is text like 'Name <mail>', not {author!r}")
    return author
