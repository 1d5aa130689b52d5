"""Remotes: other repositories, known by a name; and where the branches were there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import final

from vzarr import refs
from vzarr.committing import Settings, change_names
from vzarr.environment import Environment, Txn
from vzarr.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from vzarr.format import RemoteRecord, decode_remotes, encode_remotes
from vzarr.history import now
from vzarr.printable import printable

DEFAULT_REMOTE = "origin"
UNNAMED = "FETCH_HEAD"
"""Under this name is noted what came from a repository that has no name here."""
_KEY = b"remotes"
# As scp and git tell it from a path: a colon, and no slash before it.
_ELSEWHERE = re.compile(r"(?P<host>[^/:]+):(?P<path>.+)", re.DOTALL)


def is_elsewhere(url: str) -> bool:
    """Whether a text names a file on another machine: ``host:path``."""
    return _ELSEWHERE.fullmatch(url) is not None and not os.path.lexists(url)


def split_url(url: str) -> tuple[str, str]:
    """Give the machine, maybe with a user, and the path there of what ``is_elsewhere``."""
    match = _ELSEWHERE.fullmatch(url)
    assert match is not None, "it names another machine"
    return match["host"], match["path"]


@final
@dataclass(frozen=True, slots=True)
class Remote:
    """Another repository that this one knows by a name; prints as a line."""

    name: str
    url: str
    """A path, or ``user@host:path``."""
    path: str
    """The group or array of it that is fetched alone; empty for all of it."""

    def __str__(self) -> str:
        part = f" (only {self.path})" if self.path else ""
        return printable(f"{self.name}  {self.url}{part}")


def read_remotes(txn: Txn) -> list[Remote]:
    """List the remotes by name. O(1)."""
    data = txn.get("meta", _KEY)
    records = [] if data is None else decode_remotes(data)
    return [Remote(record.name, record.url, record.path) for record in records]


def add_remote(txn: Txn, remote: Remote) -> None:
    """Remember a remote. Raises ``AlreadyExistsError``, ``InvalidInputError`` for its name."""
    _check_name(remote.name)
    known = read_remotes(txn)
    if any(other.name == remote.name for other in known):
        raise AlreadyExistsError(
            f"there is a remote {remote.name!r}; remove it first, or take another name",
            name=remote.name,
        )
    branch = next((name for name, _ in refs.branches(txn) if _is_below(name, remote.name)), None)
    if branch is not None:
        raise AlreadyExistsError(
            f"branch {branch!r} would be mistaken for one of the remote {remote.name!r}: take "
            "another name",
            name=remote.name,
        )
    _write(txn, [*known, remote])


def remove_remote(txn: Txn, name: str, author: str, time: int) -> Remote:
    """Forget a remote, and where its branches were. Raises ``NotFoundError``. O(reflogs)."""
    remote = find_remote(txn, name)
    _write(txn, [other for other in read_remotes(txn) if other != remote])
    prune(txn, stale(txn, name, ()), author, time, f"remote: {name} was removed")
    return remote


def stale(txn: Txn, name: str, branches: Iterable[str]) -> list[str]:
    """List what is known of branches of a remote that it does not have any more. O(reflogs)."""
    there = {f"{name}/{branch}" for branch in branches}
    return [each for each, _ in refs.tracked(txn) if _is_below(each, name) and each not in there]


def prune(txn: Txn, names: Iterable[str], author: str, time: int, why: str) -> None:
    """Forget where branches elsewhere were; their reflogs stay until they expire. O(log n) each."""
    for name in names:
        refs.track(txn, name, None, author, time, why)


def widen(txn: Txn, name: str) -> None:
    """Let all of a remote be fetched from now on, if it was a part of it. O(1)."""
    known = read_remotes(txn)
    if any(remote.name == name and remote.path for remote in known):
        _write(
            txn,
            [replace(remote, path="") if remote.name == name else remote for remote in known],
        )


def find_remote(txn: Txn, name: str) -> Remote:
    """Give a remote. Raises ``NotFoundError``. O(1)."""
    for remote in read_remotes(txn):
        if remote.name == name:
            return remote
    raise NotFoundError(
        f"there is no remote {name!r}: add it with: vzarr remote FILE add {name} PATH", name=name
    )


def default_remote(txn: Txn) -> Remote:
    """Give the remote that is meant if none is named: origin, or the only one."""
    known = read_remotes(txn)
    if len(known) == 1:
        return known[0]
    return find_remote(txn, DEFAULT_REMOTE)


@final
class Remotes(Mapping[str, Remote]):
    """The remotes of a repository: a mapping from names, with add and remove."""

    def __init__(self, environment: Environment, settings: Settings, *, read_only: bool) -> None:
        self._environment = environment
        self._settings = settings
        self._read_only = read_only

    def __getitem__(self, name: str) -> Remote:
        with self._environment.read() as txn:
            return find_remote(txn, name)

    def __iter__(self) -> Iterator[str]:
        with self._environment.read() as txn:
            return iter([remote.name for remote in read_remotes(txn)])

    def __len__(self) -> int:
        with self._environment.read() as txn:
            return len(read_remotes(txn))

    def __repr__(self) -> str:
        return "\n".join(map(str, self.values())) or "(none)"

    def add(self, name: str, url: str | os.PathLike[str], *, path: str = "") -> Remote:
        """Remember another repository by a name; ``path`` is the part of it to fetch, if not all.

        Nobody looks whether it is there. Raises ``AlreadyExistsError``, ``InvalidInputError`` and
        ``ReadOnlyError``. O(branches), one fsync.
        """
        text = os.fspath(url) if isinstance(url, str | os.PathLike) else None
        if not isinstance(text, str) or not text or "\0" in text or not isinstance(path, str):
            raise InvalidInputError(f"a repository is a path or user@host:path, not {url!r}")
        # It is to be found from other directories, too.
        place = text if is_elsewhere(text) else os.path.abspath(os.path.expanduser(text))
        remote = Remote(name, place, path.strip("/"))
        self._change(lambda txn: add_remote(txn, remote))
        return remote

    def remove(self, name: str) -> Remote:
        """Forget a remote, and where its branches were; give what it was.

        Raises ``NotFoundError`` and ``ReadOnlyError``. O(reflogs · log n), one fsync.
        """
        author = self._settings.author()
        removed: list[Remote] = []
        self._change(lambda txn: removed.append(remove_remote(txn, name, author, now())))
        return removed[0]

    def _change(self, change: Callable[[Txn], None]) -> None:
        change_names(
            self._environment,
            self._settings,
            change,
            what="its remotes",
            read_only=self._read_only,
        )


def _is_below(name: str, remote: str) -> bool:
    return name.startswith(f"{remote}/")


def _check_name(name: object) -> None:
    refs.check_name(name, "remote")
    if "/" in str(name) or name == UNNAMED:
        raise InvalidInputError(f"{name!r} is no name for a remote: take a word such as 'origin'")


def _write(txn: Txn, remotes: list[Remote]) -> None:
    ordered = sorted(remotes, key=lambda remote: remote.name)
    records = [RemoteRecord(remote.name, remote.url, remote.path) for remote in ordered]
    txn.put("meta", _KEY, encode_remotes(records))
