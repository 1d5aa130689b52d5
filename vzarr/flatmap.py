"""Zarr data as a ``MutableMapping`` from keys to bytes, for code that wants no more than that.

Stores were mappings until zarr 3: zarr 2, ipldstore, fsspec's ``get_mapper`` and what was written
for them take one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, final, get_args

from vzarr.errors import InvalidInputError, NotFoundError, ReadOnlyError
from vzarr.fork import Fork
from vzarr.repository import Repository
from vzarr.session import Session
from vzarr.store import Autocommit, VzarrStore, open_store
from vzarr.workspace import check_value

OnError = Literal["raise", "omit", "return"]
"""What ``getitems`` does about a key without a value: as fsspec's mappings."""


@final
class VzarrMapping(MutableMapping[str, bytes]):
    """A store as a mapping from keys to bytes. Thread-safe; pickles as the store does.

    It shows what the store shows, and writes where the store does: to a session, of which nothing
    is on a branch before it commits, or with autocommit to the branch. Missing keys raise
    ``NotFoundError``, which is a ``KeyError``; writes to a commit ``ReadOnlyError``. A lookup costs
    O(depth · log n), ``len`` O(log n), and an iteration sees the keys as they are when it begins.
    """

    __slots__ = ("_store",)

    def __init__(self, store: VzarrStore) -> None:
        self._store = store

    @property
    def store(self) -> VzarrStore:
        """The store below, which is what zarr 3 takes: ``zarr.open(mapping.store)``."""
        return self._store

    @property
    def read_only(self) -> bool:
        """Whether it refuses writes."""
        return self._store.read_only

    def close(self) -> None:
        """Close the store, and the file if it was opened for this mapping alone."""
        self._store.close()

    def __enter__(self) -> VzarrMapping:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vzarr.VzarrMapping of {self._store!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return VzarrMapping, (self._store,)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return self._store.__dask_tokenize__()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def __getitem__(self, key: str) -> bytes:
        data = self._session().get(key) if isinstance(key, str) else None
        if data is None:
            raise _missing(key)
        return bytes(data)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._session().find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return self._session().keys()

    def __len__(self) -> int:
        return self._session().sums()[0]

    def getitems(
        self, keys: Iterable[str], *, on_error: OnError = "raise"
    ) -> dict[str, bytes | Exception]:
        """Give many values. For a missing key: raise, leave it out, or give the error as its value.

        Raises ``NotFoundError``, ``CorruptError`` and ``InvalidInputError``.
        """
        if on_error not in get_args(OnError):
            raise InvalidInputError(
                f"on_error= is {' or '.join(map(repr, get_args(OnError)))}, not {on_error!r}"
            )
        found: dict[str, bytes | Exception] = {}
        for key in keys:
            try:
                found[key] = self[key]
            except NotFoundError as error:
                if on_error == "raise":
                    raise
                if on_error == "return":
                    found[key] = error
        return found

    def listdir(self, path: str = "") -> list[str]:
        """List the names that follow a path in keys. O(depth · log n + names)."""
        return sorted(self._session().children(path.strip("/")))

    def getsize(self, path: str = "") -> int:
        """Give the size of a value, or of all values below a path, in bytes. Reads none."""
        session = self._session()
        blob = session.find(path) if path else None
        return session.sums(path.strip("/"))[1] if blob is None else blob.length

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def __setitem__(self, key: str, value: Any) -> None:
        self.setitems({key: value})

    def __delitem__(self, key: str) -> None:
        self.delitems([key])

    def setitems(self, values: Mapping[str, Any]) -> None:
        """Set many values, bytes or other buffers, which are copied. One commit with autocommit.

        Raises ``InvalidInputError`` before any is set, ``ReadOnlyError``, ``FullError``.
        """
        copies = {key: _copy(key, value) for key, value in values.items()}

        def change(session: Session | Fork) -> None:
            for key, data in copies.items():
                session.set(key, data)

        self._write(f"write {_name(copies)}", change)

    def delitems(self, keys: Iterable[str]) -> None:
        """Delete many keys. Raises ``NotFoundError`` before any is deleted, ``ReadOnlyError``."""
        names = list(keys)

        def change(session: Session | Fork) -> None:
            for key in names:
                if not isinstance(key, str) or session.find(key) is None:
                    raise _missing(key)
            for key in names:
                session.delete(key)

        self._write(f"delete {_name(names)}", change)

    def update(self, other: Any = (), /, **values: Any) -> None:
        """Set many values, as ``dict.update``; see ``setitems``."""
        self.setitems(dict(other, **values))

    def rmdir(self, path: str = "") -> None:
        """Delete every key below a path, in one step. O(depth · log n), but in a fork O(keys)."""
        below = path.strip("/")
        self._write(f"delete {below or '/'}", lambda session: session.delete_below(below))

    def clear(self) -> None:
        """Delete every key, in one step."""
        self.rmdir()

    # ── the session below ────────────────────────────────────────────────────────────────────────

    def _session(self) -> Session | Fork:
        """Give the session; with autocommit, on the branch's present head."""
        session = self._store.session
        if self._store.autocommit and isinstance(session, Session):
            session.follow()
        return session

    def _write(self, what: str, change: Callable[[Session | Fork], None]) -> None:
        if self.read_only:
            raise ReadOnlyError(
                "this mapping only reads: make one of a transaction's store, of a session on a "
                "branch, or with autocommit=True, to write"
            )
        session = self._session()
        change(session)
        autocommit = self._store.autocommit
        if autocommit and isinstance(session, Session):
            session.autocommit(what, each=autocommit == "each")


def mapping(
    source: str | os.PathLike[str] | Repository | VzarrStore | Session | Fork,
    *,
    ref: str | datetime | None = None,
    autocommit: Autocommit = False,
) -> VzarrMapping:
    """Give keys and bytes as a ``MutableMapping``, as zarr 2 and ipldstore took their data.

    ``source`` is a file, whose branch main or ``ref`` it reads, and with ``autocommit`` writes,
    each write durable when it returns; a repository, see ``Repository.mapping``; or what is there
    already: the store of a transaction, a session, a fork. The file is closed by ``close``, or at
    the end of a ``with`` block.

    Raises ``NotFoundError``, ``RefNotFoundError``, ``InvalidInputError``, and what ``vzarr.open``
    raises.
    """
    if isinstance(source, Repository):
        return source.mapping(ref, autocommit=autocommit)
    if isinstance(source, VzarrStore | Session | Fork):
        if ref is not None or autocommit:
            raise InvalidInputError(
                f"ref= and autocommit= are for files and repositories; {source!r} is on a commit "
                "or branch already"
            )
        return VzarrMapping(source if isinstance(source, VzarrStore) else source.store)
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise InvalidInputError(f"a mapping is made of a file, a store, ..., not of {source!r}")
    path = os.path.expanduser(path)
    try:
        mode: Literal["a", "r"] = "a" if autocommit else "r"
        store = open_store(path, mode, "main" if ref is None else ref, autocommit=autocommit)
    except FileNotFoundError as error:
        raise NotFoundError(str(error.__cause__), name=path) from error
    return VzarrMapping(store)


def _missing(key: object) -> NotFoundError:
    return NotFoundError(f"there is no key {key!r}", name=str(key))


def _name(keys: Iterable[str]) -> str:
    """Name what is written, for the message of a commit."""
    first, *others = [*keys] or ["nothing"]
    return f"{first} and {len(others):,} more" if others else first


def _copy(key: str, value: Any) -> bytes:
    try:
        data = value if isinstance(value, bytes) else memoryview(value).tobytes()
    except TypeError as error:
        raise InvalidInputError(
            f"the value of {key!r} must be bytes or another buffer, not {type(value).__name__}"
        ) from error
    check_value(key, data)
    return data
