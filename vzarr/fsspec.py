"""The fsspec file system ``vzarr://path/ocean.vzarr``, for ``zarr.open`` and all that take a URL.

fsspec finds it through the entry point ``fsspec.specs``. It reads the head of branch main as it is
at each call, or with ``ref=`` one snapshot, and writes with autocommit. It copes with one key at a
time and without transactions: ``repo.transaction`` is the better way to write.
"""

from __future__ import annotations

import errno
import os
from datetime import datetime
from io import BytesIO
from typing import Any, ClassVar, final

from fsspec.asyn import AsyncFileSystem

from vzarr.errors import InvalidInputError, NotFoundError, ReadOnlyError
from vzarr.opening import Mode
from vzarr.opening import open as open_repository
from vzarr.repository import Repository
from vzarr.session import Session
from vzarr.store import SCHEME, SUFFIX


@final
class VzarrFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """The keys of repositories as files: ``vzarr://data/ocean.vzarr/sst/zarr.json``."""

    protocol: ClassVar[str] = "vzarr"
    # An instance keeps its repositories open; a cached one would keep them open for ever.
    cachable: ClassVar[bool] = False
    async_impl: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        branch: str = "main",
        ref: str | datetime | None = None,
        **options: Any,
    ) -> None:
        """``ref`` names a snapshot to read; without it ``branch`` is read and written."""
        super().__init__(*args, **options)
        self._branch = branch
        self._ref = ref
        self._repositories: dict[str, Repository] = {}
        self._sessions: dict[str, Session] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return os.fspath(path).removeprefix(SCHEME).rstrip("/")

    def _open(self, path: str, mode: str = "rb", **_: Any) -> BytesIO:
        if mode != "rb":
            raise InvalidInputError(
                f"cannot open {path} with mode {mode!r}: keys are written whole, with pipe_file"
            )
        return BytesIO(self.cat_file(path))

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        session, key = self._readable(path)
        data = session.get(key) if key else None
        if data is None:
            raise _missing(path)
        return bytes(memoryview(data)[start:end])

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        session, key = self._readable(path)
        name = self._strip_protocol(path)
        blob = session.find(key) if key else None
        if blob is not None:
            return {"name": name, "size": blob.length, "type": "file"}
        if not key or session.sums(key)[0]:
            return {"name": name, "size": 0, "type": "directory"}
        raise _missing(path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        session, key = self._readable(path)
        base = self._strip_protocol(path)
        names = [f"{base}/{name}" for name in session.children(key)]
        if not names and key:
            info = await self._info(path)
            return [info] if detail else [info["name"]]
        return [await self._info(name) for name in names] if detail else names

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any
    ) -> Any:
        if maxdepth is not None or withdirs:
            return await super()._find(path, maxdepth=maxdepth, withdirs=withdirs, **options)
        try:
            session, key = self._readable(path)
        except FileNotFoundError:
            return {} if options.get("detail") else []
        base = self._strip_protocol(path)
        start = f"{key}/" if key else ""
        names = [f"{base}/{found.removeprefix(start)}" for found in session.keys(key)]
        if not options.get("detail"):
            return names
        return {name: await self._info(name) for name in names}

    def _readable(self, path: str) -> tuple[Session, str]:
        """Give a session on the repository in a path, as its branch is now, and the key."""
        file, key = _split(self._strip_protocol(path))
        session = self._sessions.get(file)
        if session is None:
            self._repositories[file] = _open_repository(file, "r")
            session = self._begin(file)
        elif not session.read_only:
            session.follow()
        elif self._ref is None and self._head(file) != session.base:
            session = self._begin(file)
        return session, key

    def _head(self, file: str) -> str:
        return self._repositories[file].branches[self._branch]

    def _begin(self, file: str) -> Session:
        ref = self._branch if self._ref is None else self._ref
        try:
            session = self._sessions[file] = self._repositories[file].session(ref)
        except NotFoundError as error:
            # Which is a KeyError: zarr would say that there is no group in the file.
            raise InvalidInputError(str(error)) from error
        return session

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def _pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        session, key = self._writable(path)
        session.set(key, bytes(value))
        session.autocommit(f"write {key}", each=False)

    async def _rm_file(self, path: str, **_: Any) -> None:
        session, key = self._writable(path)
        if session.find(key) is None:
            raise _missing(path)
        session.delete(key)
        session.autocommit(f"delete {key}", each=False)

    async def _rm(self, path: Any, recursive: bool = False, **_: Any) -> None:
        for item in path if isinstance(path, list) else [path]:
            if not recursive:
                await self._rm_file(item)
                continue
            session, key = self._writable(item)
            session.delete_below(key)
            if key:
                session.delete(key)
            session.autocommit(f"delete {key or '/'}", each=False)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Directories are implied by keys."""

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Directories are implied by keys."""

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:
        await self._pipe_file(path2, await self._cat_file(path1))

    def _writable(self, path: str) -> tuple[Session, str]:
        if self._ref is not None:
            raise ReadOnlyError(
                f"cannot write {path}: ref={self._ref!r} is a snapshot; give branch= to write"
            )
        file, key = _split(self._strip_protocol(path))
        session = self._sessions.get(file)
        if session is not None and not session.read_only:
            session.follow()
            return session, key
        self._repositories[file] = _open_repository(file, "a")
        return self._begin(file), key


def _open_repository(file: str, mode: Mode) -> Repository:
    try:
        return open_repository(file, mode)
    except NotFoundError as error:
        # For fsspec's callers a missing file is a missing key.
        raise _missing(file) from error


def _missing(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _split(path: str) -> tuple[str, str]:
    """Split a path behind the repository: its first part that is named like one.

    A directory is none, whatever its name.
    """
    end = path.find(f"{SUFFIX}/")
    while end >= 0:
        end += len(SUFFIX)
        if not os.path.isdir(path[:end]):
            return path[:end], path[end + 1 :]
        end = path.find(f"{SUFFIX}/", end)
    if path.endswith(SUFFIX) or os.path.isfile(path):
        return path, ""
    raise InvalidInputError(
        f"{path!r} names no vzarr file: a URL is like vzarr://data/ocean.vzarr/group/array"
    )
