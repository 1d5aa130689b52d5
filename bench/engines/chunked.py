"""The engines that zarr writes to: vzarr, Icechunk, and zarr's own stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from bench.engines.base import Closing, Engine, Layout, Opened

FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"
SMALL_BYTES = 64 << 10
"""Chunks below this are worked on in one thread, as vzarr's own pipeline does."""


def create_arrays(store: Any, layout: Layout) -> None:
    import zarr

    codec = {} if layout.compressed else {"compressors": None}
    for name in layout.names:
        zarr.create_array(
            store, name=name, shape=layout.shape, chunks=layout.chunks, dtype=layout.dtype, **codec
        )


class OpenStore(Closing):
    """What has arrays in a store of zarr: here one without commits."""

    def __init__(self, store: Any) -> None:
        self.opened = store

    def store(self) -> Any:
        """Give the store as it was last committed."""
        return self.opened

    @contextmanager
    def changing(self, message: str) -> Iterator[Any]:  # noqa: ARG002
        """Give the store to write."""
        yield self.opened

    @property
    def array(self) -> Any:
        import zarr

        store = self.store()
        # Not all stores can make a copy of themselves that is read-only.
        mode: Literal["r", "r+"] = "r" if store.read_only else "r+"
        return zarr.open_array(store, path="a", mode=mode, zarr_format=3)

    @contextmanager
    def change(self, message: str, name: str = "a") -> Iterator[Any]:
        import zarr

        with self.changing(message) as store:
            yield zarr.open_array(store, path=name, mode="r+", zarr_format=3)

    def close(self) -> None:
        self.opened.close()


# ── vzarr ────────────────────────────────────────────────────────────────────────────────────────


class OpenVzarr(OpenStore):
    """A repository; each change is a transaction."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo

    def store(self) -> Any:
        return self.repo.store(self.repo.branches["main"])

    @contextmanager
    def changing(self, message: str) -> Iterator[Any]:
        with self.repo.transaction("main", message) as store:
            yield store

    def close(self) -> None:
        self.repo.close()


@dataclass(frozen=True)
class Vzarr(Engine):
    durable: bool | None = True
    verify: Literal["always", "first", "never"] = "always"
    packages: ClassVar[tuple[str, ...]] = ("vzarr", "zarr", "lmdb", "numpy")

    def create(self, path: Path, layout: Layout) -> Opened:
        import vzarr

        repo = vzarr.open(path, "w-", verify=self.verify)
        if layout.names:
            with repo.transaction("main", "create") as store:
                create_arrays(store, layout)
        return OpenVzarr(repo)

    def open(self, path: Path, *, write: bool = False) -> Opened:
        import vzarr

        return OpenVzarr(vzarr.open(path, "r+" if write else "r", verify=self.verify))


# ── Icechunk ─────────────────────────────────────────────────────────────────────────────────────


class OpenIcechunk(OpenStore):
    """A repository; each change is a transaction."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo

    def store(self) -> Any:
        return self.repo.readonly_session("main").store

    @contextmanager
    def changing(self, message: str) -> Iterator[Any]:
        with self.repo.transaction("main", message=message) as store:
            yield store

    def close(self) -> None:
        """Do nothing: it has nothing to close."""


@dataclass(frozen=True)
class Icechunk(Engine):
    """Icechunk on a local disk, with its defaults. It does not sync its files."""

    packages: ClassVar[tuple[str, ...]] = ("icechunk",)

    def module(self) -> Any:
        # It reads this when it is imported, and warns at every step on a local disk.
        os.environ.setdefault("ICECHUNK_LOG", "error")
        import icechunk

        return icechunk

    def create(self, path: Path, layout: Layout) -> Opened:
        icechunk = self.module()
        repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
        # It refuses commits that change nothing.
        if layout.names:
            with repo.transaction("main", message="create") as store:
                create_arrays(store, layout)
        return OpenIcechunk(repo)

    def open(self, path: Path, *, write: bool = False) -> Opened:  # noqa: ARG002
        icechunk = self.module()
        return OpenIcechunk(icechunk.Repository.open(icechunk.local_filesystem_storage(str(path))))


# ── zarr's own stores ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class LocalStore(Engine):
    """A directory with a file for each chunk."""

    packages: ClassVar[tuple[str, ...]] = ("zarr",)

    def create(self, path: Path, layout: Layout) -> Opened:
        from zarr.storage import LocalStore

        store = LocalStore(path)
        create_arrays(store, layout)
        return OpenStore(store)

    def open(self, path: Path, *, write: bool = False) -> Opened:
        from zarr.storage import LocalStore

        return OpenStore(LocalStore(path, read_only=not write))


@dataclass(frozen=True)
class ZipStore(Engine):
    """A zip file, to which members can be added while it is open for the first time."""

    packages: ClassVar[tuple[str, ...]] = ("zarr",)

    def create(self, path: Path, layout: Layout) -> Opened:
        from zarr.storage import ZipStore

        store = ZipStore(path, mode="w")
        create_arrays(store, layout)
        return OpenStore(store)

    def open(self, path: Path, *, write: bool = False) -> Opened:
        from zarr.storage import ZipStore

        return OpenStore(ZipStore(path, mode="a" if write else "r"))


@dataclass(frozen=True)
class MemoryStore(Engine):
    """A dict: what zarr itself takes, and so the ceiling for every store.

    ``fused`` takes zarr's synchronous pipeline, with as many workers as vzarr's would take.
    """

    durable: bool | None = None
    fused: bool = False
    packages: ClassVar[tuple[str, ...]] = ("zarr",)
    stores: ClassVar[dict[Path, Any]] = {}

    def missing(self) -> str:
        if self.fused:
            from zarr.core import codec_pipeline

            if not hasattr(codec_pipeline, FUSED.rpartition(".")[2]):
                return "this zarr has no fused pipeline"
        return ""

    def create(self, path: Path, layout: Layout) -> Opened:
        import zarr

        if self.fused:
            workers = 1 if layout.chunk_bytes < SMALL_BYTES else None
            zarr.config.set({"codec_pipeline.max_workers": workers})
        self.stores[path] = zarr.storage.MemoryStore()
        create_arrays(self.stores[path], layout)
        return OpenStore(self.stores[path])

    def open(self, path: Path, *, write: bool = False) -> Opened:
        return OpenStore(self.stores[path].with_read_only(not write))


VZARR = Vzarr("vzarr")
VZARR_ZARR_PIPELINE = Vzarr(
    "vzarr, zarr's pipeline", "vzarr", environment=(("VZARR_PIPELINE", "zarr"),)
)
VZARR_FIRST = Vzarr('vzarr, verify="first"', "vzarr", verify="first")
VZARR_NEVER = Vzarr('vzarr, verify="never"', "vzarr", verify="never")
ICECHUNK = Icechunk("Icechunk", "icechunk", environment={"ICECHUNK_LOG": "error"})
LOCAL_STORE = LocalStore("zarr LocalStore", "LocalStore")
ZIP_STORE = ZipStore("zarr ZipStore", "ZipStore")
MEMORY_STORE = MemoryStore("zarr MemoryStore", "MemoryStore")
MEMORY_STORE_FUSED = MemoryStore(
    "zarr MemoryStore, fused",
    "MemoryStore",
    environment=(("ZARR_CODEC_PIPELINE__PATH", FUSED),),
    fused=True,
)
