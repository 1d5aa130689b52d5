"""``VzarrStore``: a session as a zarr store. The only module that knows zarr's Store class."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from datetime import datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast, final

import numpy as np
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from vzarr import pipeline
from vzarr.errors import NotFoundError, ReadOnlyError, SessionStateError
from vzarr.fork import Fork
from vzarr.objects import LARGE_BYTES, Bytes, copy
from vzarr.pipeline import Get, Put, to_buffer
from vzarr.session import Session, open_sessions

if TYPE_CHECKING:
    from vzarr.opening import Mode
    from vzarr.repository import Repository

Autocommit = Literal[False, True, "each"]
SUFFIX = ".vzarr"
SCHEME = "vzarr://"

# From this size on, hashing and copying cost more than a hop to a worker thread, which lets the
# event loop go on with other chunks meanwhile.
_OFFLOAD_BYTES = 256 << 10


@final
class VzarrStore(Store):
    """A session, or a fork of one, through zarr's Store interface: for zarr, xarray and dask.

    To zarr it is a flat map from keys to bytes: any key, in any order. Thread-safe. Reads and
    writes are the session's: nothing is on a branch before the session commits, unless
    ``autocommit`` is on.

    A fork's store can be pickled, and written to in any process of this machine. Within its process
    a session's pickled store is the same session's. In another one a store that only reads becomes
    one of the same commit; a session's writable store, or one that shows uncommitted work, raises
    ``SessionStateError`` there, when it is used.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True
    # A lookup is a few nodes in a local file: a copy of all metadata in one document would not be
    # faster, would go stale, and every two writers would conflict in it.
    supports_consolidated_metadata: bool = False

    def __init__(
        self, session: Session | Fork, *, read_only: bool = False, autocommit: Autocommit = False
    ) -> None:
        super().__init__(read_only=read_only or session.read_only)
        pipeline.install()
        self._session = session
        self._autocommit = autocommit
        # Opened for this store alone (``open_store``), and closed with it.
        self._repository: Repository | None = None

    @property
    def session(self) -> Session | Fork:
        """The session or fork below."""
        return self._session

    @property
    def autocommit(self) -> Autocommit:
        """Whether each write is committed at once, and how."""
        return self._autocommit

    def with_read_only(self, read_only: bool = False) -> VzarrStore:
        """Give a store on the same session that refuses writes, or takes them.

        Raises ``ReadOnlyError`` if the session itself is read-only and ``read_only`` is False.
        """
        if not read_only and self._session.read_only:
            raise _NeverWritableError(
                "store was opened in read-only mode and does not support writing: its session is "
                "not on a branch; open a session on a branch to write"
            )
        return type(self)(self._session, read_only=read_only, autocommit=self._autocommit)

    def close(self) -> None:
        """Close the store, and its repository if that was opened for this store alone."""
        super().close()
        if self._repository is not None:
            self._repository.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VzarrStore):
            return False
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        session = self._session
        state = session.base if session.read_only else session.id
        return session.environment.path, state, self.read_only, self._autocommit

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        # Of a fork, more may be written at any time.
        state = uuid.uuid4().hex if isinstance(self._session, Fork) else self._session.root_id()
        return self._session.environment.path, state

    def __str__(self) -> str:
        return f"{SCHEME}{self._session.environment.path}"

    def __repr__(self) -> str:
        where = self._session.branch or self._session.base[:12]
        mode = ", read_only=True" if self.read_only else ""
        return f"VzarrStore('{self._session.environment.path}', '{where}'{mode})"

    def __reduce__(self) -> tuple[Any, ...]:
        session = self._session
        if isinstance(session, Fork):
            return _of_fork, (session, self.read_only)
        if session.read_only:
            return open_store, (session.environment.path, "r", session.base)
        # What others can find in the file, without the process that writes.
        commit = session.base if self.read_only and not session.has_changes else None
        where = os.getpid(), session.environment.path
        return _find, (*where, session.id, commit, self.read_only, self._autocommit)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Give the value of a key or a part of it, or None. Verified against its digest."""
        self._is_open = True
        self._follow()
        data = self._session.get(key)
        return None if data is None else to_buffer(data, prototype, byte_range)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Give the value of a key or a part of it, or None. Verified against its digest."""
        self._is_open = True
        self._follow()
        blob = self._session.find(key)
        if blob is None:
            return None
        if blob.length < _OFFLOAD_BYTES:
            data = self._session.read(blob)
        else:
            data = await asyncio.to_thread(self._session.read, blob)
        return to_buffer(data, prototype, byte_range)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Get]:
        """Give a function that reads values without copying them: ``Session.in_place``."""
        self._is_open = True
        self._follow()
        find = self._session.find
        with self._session.in_place() as read:

            def get(key: str) -> Bytes | None:
                blob = find(key)
                return None if blob is None else read(blob)

            yield get

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Give parts of several values, in the order asked for."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **_: Any,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Give many parts of one value, which is read and verified once."""
        whole = await self.get(key, prototype)
        yield _cut(key, whole, byte_ranges, prototype)

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **_: Any,
    ) -> Sequence[tuple[int, Buffer | None]]:
        """Give many parts of one value, which is read and verified once."""
        whole = self.get_sync(key, prototype=prototype)
        return _cut(key, whole, byte_ranges, prototype)

    async def exists(self, key: str) -> bool:
        """Whether a key has a value."""
        self._follow()
        return self._session.find(key) is not None

    async def getsize(self, key: str) -> int:
        """Give the size of a value in bytes. Raises ``FileNotFoundError``. Reads no value."""
        self._follow()
        blob = self._session.find(key)
        if blob is None:
            raise FileNotFoundError(key)
        return blob.length

    async def getsize_prefix(self, prefix: str) -> int:
        """Give the size of all values below a path in bytes. Reads sums in the tree, no value."""
        self._follow()
        return self._session.sums(prefix.rstrip("/"))[1]

    async def is_empty(self, prefix: str) -> bool:
        """Whether there is no key below a path."""
        self._follow()
        return self._session.sums(prefix.rstrip("/"))[0] == 0

    async def list(self) -> AsyncIterator[str]:
        """List all keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List all keys below a path: ``a`` stands for ``a/``, so that ``ab/c`` is not one."""
        self._follow()
        for key in self._session.keys(prefix.rstrip("/")):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the names that follow a path in keys."""
        self._follow()
        for name in self._session.children(prefix.rstrip("/")):
            yield name

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    def set_sync(self, key: str, value: Buffer) -> None:
        """Set the value of a key; the bytes are copied before this returns."""
        self._set(key, _copy(key, value))

    def delete_sync(self, key: str) -> None:
        """Delete a key, if it is there."""
        self._check_writable()
        self._is_open = True
        self._follow()
        self._session.delete(key)
        self._commit_each(key)

    @property
    def waits(self) -> bool:
        """Whether writes wait for the file."""
        return isinstance(self._session, Fork) or self._autocommit is not False

    @contextlib.contextmanager
    def writing(self) -> Iterator[Put]:
        """Give a function that sets values, or deletes keys; all is done when the block ends.

        The writes to a fork wait for the file together.
        """
        begun: list[Future[None]] = []
        values: dict[str, Bytes] = {}
        fork = self._session

        def put(key: str, value: Buffer | bytes | None) -> None:
            data = value if value is None or isinstance(value, bytes) else _copy(key, value)
            if isinstance(fork, Fork):
                self._check_writable()
                if data is None:
                    begun.append(fork.begin_delete(key))
                else:
                    values[key] = data
            elif data is None:
                self.delete_sync(key)
            else:
                self._set(key, data)

        try:
            yield put
            if values:
                assert isinstance(fork, Fork), "others are written at once"
                begun.append(fork.begin_set_all(values))
        finally:
            wait(begun)
        for write in begun:
            write.result()

    async def set(self, key: str, value: Buffer) -> None:
        """Set the value of a key; the bytes are copied before this returns."""
        self._check_writable()
        self._is_open = True
        if isinstance(self._session, Fork):
            await _set_in(self._session, key, value)
        elif isinstance(value, Buffer) and len(value) >= _OFFLOAD_BYTES:
            await asyncio.to_thread(self.set_sync, key, value)
        else:
            self.set_sync(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Set the value of a key that has none: one step to other threads.

        In a fork, also to the other processes that have it.
        """
        self._check_writable()
        self._is_open = True
        self._follow()
        if isinstance(self._session, Fork):
            await asyncio.to_thread(self._session.set_if_absent, key, _copy(key, value))
        else:
            self._session.set_if_absent(key, _copy(key, value))
            self._commit_each(key)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """Delete a key, if it is there."""
        if isinstance(self._session, Fork):
            self._check_writable()
            self._is_open = True
            await _written(self._session.begin_delete(key))
        else:
            self.delete_sync(key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete every key below a path: in one step, whatever their number, unless in a fork."""
        self._check_writable()
        self._is_open = True
        self._follow()
        path = prefix.rstrip("/")
        if isinstance(self._session, Fork):
            await asyncio.to_thread(self._session.delete_below, path)
        else:
            self._session.delete_below(path)
            self._commit_each(prefix)

    async def clear(self) -> None:
        """Delete every key."""
        await self.delete_dir("")

    def _set(self, key: str, data: Bytes) -> None:
        self._check_writable()
        self._is_open = True
        self._follow()
        self._session.set(key, data)
        self._commit_each(key)

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyError(
                "store was opened in read-only mode and does not support writing; open a session "
                "on a branch, or a transaction, to write"
            )

    def _follow(self) -> None:
        """With autocommit, go to the branch's present head, as other stores would show it."""
        if self._autocommit and isinstance(self._session, Session):
            self._session.follow()

    def _commit_each(self, key: str) -> None:
        if self._autocommit and isinstance(self._session, Session):
            self._session.autocommit(f"write {key}", each=self._autocommit == "each")


async def _set_in(fork: Fork, key: str, value: Buffer) -> None:
    """Set a value of a fork. Others that come while this waits for the file share its next txn."""

    def begin() -> Future[None]:
        return fork.begin_set(key, _copy(key, value))

    large = isinstance(value, Buffer) and len(value) >= _OFFLOAD_BYTES
    await _written(await asyncio.to_thread(begin) if large else begin())


async def _written(future: Future[None]) -> None:
    # Shielded, because others wait for it too: to cancel this task must not cancel their writes.
    await asyncio.shield(asyncio.wrap_future(future))


def _copy(key: str, value: Buffer) -> Bytes:
    """Copy a value, which may be a view of the user's own array."""
    if not isinstance(value, Buffer):
        raise TypeError(
            f"the value of {key!r} must be a zarr Buffer, not {type(value).__name__}; "
            "zarr.core.buffer.cpu.Buffer.from_bytes makes one of bytes"
        )
    data = np.ascontiguousarray(value.as_numpy_array()).data.cast("B")
    # What a codec made of the array is bytes of its own, which nobody can change.
    return data if len(data) >= LARGE_BYTES and _is_immutable(value) else copy(data)


def _is_immutable(value: Buffer) -> bool:
    owner: object = value.as_array_like()
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return isinstance(owner.obj if isinstance(owner, memoryview) else owner, bytes)


def _cut(
    key: str,
    whole: Buffer | None,
    byte_ranges: Sequence[ByteRequest | None],
    prototype: BufferPrototype,
) -> Sequence[tuple[int, Buffer | None]]:
    if whole is None:
        raise BaseExceptionGroup("chunk read failed", [FileNotFoundError(key)])
    data = memoryview(whole.as_buffer_like())
    return [
        (number, to_buffer(data, prototype, byte_range))
        for number, byte_range in enumerate(byte_ranges)
    ]


def open_store(
    path: str, mode: Mode, ref: str | datetime = "main", *, autocommit: Autocommit = False
) -> VzarrStore:
    """Open a repository for the sake of one store, whose ``close`` closes it.

    Raises ``FileNotFoundError``, as zarr's and xarray's callers expect it, where ``vzarr.open``
    raises ``NotFoundError``; else as that and ``Repository.store`` do.
    """
    from vzarr.opening import open as open_repository

    try:
        repository = open_repository(path, mode)
    except NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from error
    try:
        store = repository.store(ref, autocommit=autocommit)
    except BaseException:
        repository.close()
        raise
    store._repository = repository  # noqa: SLF001 - this makes the store
    return store


def _of_fork(fork: Fork, read_only: bool) -> VzarrStore:
    return VzarrStore(fork, read_only=read_only)


def _find(
    pid: int,
    path: str,
    session_id: str,
    commit: str | None,
    read_only: bool,
    autocommit: Autocommit,
) -> VzarrStore:
    """Unpickle a store of a writable session: the same session, if this is its process."""
    session = open_sessions.get(session_id) if pid == os.getpid() else None
    if session is not None:
        return VzarrStore(session, read_only=read_only, autocommit=autocommit)
    if commit is not None:
        return open_store(path, "r", commit)
    if pid != os.getpid():
        # Not at once: pools and clusters wait for ever for a task that cannot be unpickled.
        return VzarrStore(cast(Session, _Elsewhere(pid, path)), read_only=read_only)
    raise _elsewhere(pid)


def _elsewhere(pid: int) -> SessionStateError:
    return SessionStateError(
        f"a writable store was unpickled in process {os.getpid()}, and its session with the "
        f"uncommitted work is, or was, in process {pid}. Send it the store of session.fork(), and "
        "join what was written with session.merge_fork(); or open a transaction in each process"
    )


@final
class _Elsewhere:
    """A session of another process: what its store is used for raises ``SessionStateError``."""

    branch = "in another process"
    read_only = False

    def __init__(self, pid: int, path: str) -> None:
        self._pid = pid
        self.environment = SimpleNamespace(path=path)

    def __getattr__(self, name: str) -> Any:
        raise _elsewhere(self._pid)


class _NeverWritableError(ReadOnlyError, NotImplementedError):
    """No writable store comes of this one; zarr looks for the second class."""
