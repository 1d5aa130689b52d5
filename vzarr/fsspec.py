"""The fsspec file system ``vzarr://path/ocean.vzarr``, for ``zarr.open`` and all that take a URL.

fsspec finds it through the entry point ``fsspec.specs``. It reads the head of branch main as it is
at each call, or with ``ref=`` one snapshot, and writes with autocommit. It copes with one file at
a time and without transactions: ``repo.transaction`` is the better way to write.
"""

from __future__ import annotations

import errno
import os
from typing import Any, ClassVar, final

from fsspec.asyn import AsyncFileSystem

from vzarr.errors import InvalidInputError, NotFoundError, VzarrError
from vzarr.repository import open as open_repository
from vzarr.session import Session
from vzarr.store import VzarrStore

SUFFIX = ".vzarr"
SCHEME = "vzarr://"


@final
class VzarrFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """The keys of repositories as files: ``vzarr://data/ocean.vzarr/sst/zarr.json``."""

    protocol: ClassVar[str] = "vzarr"
    # An instance keeps its repositories open; a cached one would keep them open for ever.
    cachable: ClassVar[bool] = False
    async_impl: ClassVar[bool] = True

    def __init__(
        self, *args: Any, branch: str = "main", ref: str | None = None, **options: Any
    ) -> None:
        """``ref`` names a snapshot to read; without it ``branch`` is read and written."""
        super().__init__(*args, **options)
        self._branch = branch
        self._ref = ref
        self._stores: dict[str, VzarrStore] = {}

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(item) for item in path]
        return os.fspath(path).removeprefix(SCHEME).rstrip("/")

    def _session(self, path: str, *, write: bool = False) -> tuple[Session, str, VzarrStore]:
        """Open the repository in a path; give its session, the key in it and its store."""
        path = self._strip_protocol(path)
        file, key = _split(path)
        store = self._stores.get(file)
        if store is None or (write and store.read_only):
            store = self._stores[file] = self._open_store(file, write=write)
        if self._ref is None:
            store.session.follow()
        return store.session, key, store

    def _open_store(self, file: str, *, write: bool) -> VzarrStore:
        if self._ref is not None:
            return open_repository(file, "r").store(self._ref)
        if write:
            return open_repository(file, "a").store(self._branch, autocommit=True)
        try:
            repository = open_repository(file, "r")
        except NotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, str(error), file) from error
        return VzarrStore(repository.session(self._branch), autocommit=False)

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def _cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        session, key, _store = self._session(path)
        data = session.get(key) if key else None
        if data is None:
            raise FileNotFoundError(errno.ENOENT, "no such key", path)
        return bytes(memoryview(data)[start:end])

    async def _info(self, path: str, **_: Any) -> dict[str, Any]:
        session, key, _store = self._session(path)
        name = self._strip_protocol(path)
        blob = session.find(key) if key else None
        if blob is not None:
            return {"name": name, "size": blob.length, "type": "file"}
        if not key or session.sums(key)[0]:
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(errno.ENOENT, "no such key", path)

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        session, key, _store = self._session(path)
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
        session, key, _store = self._session(path)
        base = self._strip_protocol(path)
        start = f"{key}/" if key else ""
        names = [f"{base}/{found.removeprefix(start)}" for found in session.keys(key)]
        if not options.get("detail"):
            return names
        return {name: await self._info(name) for name in names}

    # ── writing ──────────────────────────────────────────────────────────────────────────────────

    async def _pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        session, key, _store = self._writable(path)
        session.set(key, bytes(value))
        session.autocommit(f"write {key}", each=False)

    async def _rm_file(self, path: str, **_: Any) -> None:
        session, key, _store = self._writable(path)
        if session.find(key) is None:
            raise FileNotFoundError(errno.ENOENT, "no such key", path)
        session.delete(key)
        session.autocommit(f"delete {key}", each=False)

    async def _rm(self, path: Any, recursive: bool = False, **_: Any) -> None:
        for item in path if isinstance(path, list) else [path]:
            session, key, _store = self._writable(item)
            if recursive:
                session.delete_below(key)
                session.delete(key) if key else None
                session.autocommit(f"delete {key or '/'}", each=False)
            else:
                await self._rm_file(item)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Directories are implied by keys."""

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Directories are implied by keys."""

    async def _cp_file(self, path1: str, path2: str, **_: Any) -> None:
        await self._pipe_file(path2, await self._cat_file(path1))

    def _writable(self, path: str) -> tuple[Session, str, VzarrStore]:
        if self._ref is not None:
            raise InvalidInputError(f"{path}: a snapshot (ref={self._ref!r}) cannot be written")
        return self._session(path, write=True)


def _split(path: str) -> tuple[str, str]:
    """Split a path at the repository's file: the first part that ends with ``.vzarr``."""
    end = path.find(f"{SUFFIX}/")
    if end >= 0:
        end += len(SUFFIX)
        return path[:end], path[end + 1 :]
    if path.endswith(SUFFIX) or os.path.isfile(path):
        return path, ""
    raise InvalidInputError(
        f"{path!r} names no vzarr file: a URL is like vzarr://data/{'ocean.vzarr'}/group/array"
    )


__all__ = ["VzarrError", "VzarrFileSystem"]
