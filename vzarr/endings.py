"""What is said of work that nobody committed: when its session goes, and when the process does.

Writing costs nothing more for it. Each writable session has an ``Ending``, to which it alone
refers, so that both go at the same time; what was then neither committed nor given up is told.
"""

from __future__ import annotations

import atexit
import warnings
import weakref
from collections.abc import Iterable
from itertools import chain, islice
from typing import final

from vzarr.diff import Side, diff
from vzarr.errors import VzarrError
from vzarr.format import DOCUMENTS, Entry
from vzarr.leases import Lease
from vzarr.objects import root_digest
from vzarr.portable import at_fork
from vzarr.printable import plural
from vzarr.workspace import Workspace

# At the end of the process nobody wants to wait for long.
_EXIT_TIMEOUT = 1.0
_MOST_CHUNKS = 100_000


class UncommittedWarning(UserWarning):
    """A session ended with edits that were not committed: they are lost, or in a checkpoint."""


@final
class Ending:
    """Tells of a session's edits, unless somebody has decided on them before it goes."""

    __slots__ = ("__weakref__", "_branch", "_inherited", "_lease", "_path", "_work")

    def __init__(self, path: str, branch: str, lease: Lease, work: Workspace) -> None:
        self._work: Workspace | None = None
        self._path = path
        self._branch = branch
        self._lease = lease
        # What a forked child got from its parent, who tells of it.
        self._inherited: tuple[Entry, int] | None = None
        self._work = work
        _endings.add(self)

    def settle(self) -> None:
        """Be silent from here on: the session was closed, by somebody who knows."""
        self._work = None

    def uncommitted(self) -> str:
        """Say what is not committed; empty if that is nothing. O(changed nodes + chunks)."""
        work = self._work
        if work is None or not self._is_edited(work):
            return ""
        # A daemon thread may never let go of it.
        if not work.lock.acquire(timeout=_EXIT_TIMEOUT):
            return self._say(work, "")
        try:
            root = work.root
            return "" if root == work.base else self._say(work, _count(work))
        except VzarrError:
            # The file is closed, damaged or gone.
            return self._say(work, "")
        finally:
            work.lock.release()

    def __del__(self) -> None:
        # In whatever thread and at whatever moment: no lock is taken, and the file left alone.
        work = getattr(self, "_work", None)
        if work is not None and self._is_edited(work):
            root, edits = work.unfolded
            counted = _count_keys(edits) if root == work.base else ""
            warnings.warn(self._say(work, counted), UncommittedWarning, stacklevel=2)

    def inherit(self) -> None:
        """Leave it to the parent process to tell of what there is now."""
        if self._work is not None:
            self._inherited = _version(self._work)

    def _is_edited(self, work: Workspace) -> bool:
        root, edits = work.unfolded
        return (bool(edits) or root != work.base) and _version(work) != self._inherited

    def _say(self, work: Workspace, counted: str) -> str:
        name, saved = self._lease.id.hex(), self._lease.record.checkpoint
        begin = (
            f"{self._path}: session {name} on {self._branch!r} ended with "
            f"{counted or 'edits'} uncommitted"
        )
        if saved is None:
            return f"{begin}, and now lost: commit, or save a checkpoint, before the end"
        root, edits = work.unfolded
        if not edits and root_digest(root) == saved:
            return f"{begin}, but saved in a checkpoint: go on with repo.resume({name!r})"
        return (
            f"{begin}: what came after its last checkpoint is lost, the rest is in "
            f"repo.resume({name!r})"
        )


def _version(work: Workspace) -> tuple[Entry, int]:
    root, edits = work.unfolded
    return root, len(edits)


def _count_keys(keys: Iterable[str]) -> str:
    documents = chunks = 0
    for key in keys:
        if key.rpartition("/")[2] in DOCUMENTS:
            documents += 1
        else:
            chunks += 1
    return _counted(chunks, documents)


def _count(work: Workspace) -> str:
    nodes = diff(work.overlay, work.base, work.root, _open_nothing)
    documents = sum(len(list(node.document_changes())) for node in nodes)
    chunks = chain.from_iterable(node.iter_chunks() for node in nodes)
    return _counted(sum(1 for _ in islice(chunks, _MOST_CHUNKS)), documents)


def _counted(chunks: int, documents: int) -> str:
    """Say how many, in words; empty where there is neither, but a move."""
    more = "more than " if chunks == _MOST_CHUNKS else ""
    parts = [
        f"{more}{number:,} {noun}{plural(number)}"
        for number, noun in ((chunks, "chunk"), (documents, "document"))
        if number
    ]
    return " and ".join(parts)


def _open_nothing(side: Side, path: str) -> None:
    """Open no node: nobody looks at values here."""


# ── the end of the process ───────────────────────────────────────────────────────────────────────

_endings: weakref.WeakSet[Ending] = weakref.WeakSet()


def _at_exit() -> None:
    failures = []
    for ending in list(_endings):
        text = ending.uncommitted()
        ending.settle()
        try:
            if text:
                warnings.warn_explicit(text, UncommittedWarning, "vzarr", 1)
        except UncommittedWarning:
            # Warnings are errors here. All of them are to be told.
            failures.append(text)
    if failures:
        raise UncommittedWarning("\n".join(failures))


def _after_fork_in_child() -> None:
    for ending in list(_endings):
        ending.inherit()


# What is registered last comes first: the files are still open then.
atexit.register(_at_exit)
at_fork(after_in_child=_after_fork_in_child)
