"""Find out what a source of an import is, and open it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from vzarr.archives import CarSource, ZipSource
from vzarr.datafile import os_error
from vzarr.directories import DirectorySource
from vzarr.errors import InvalidInputError, NotFoundError
from vzarr.foreign import SnapshotSource, from_store, from_url
from vzarr.icestorage import SCHEME, is_place, is_repository
from vzarr.intake import Source

if TYPE_CHECKING:
    from vzarr.adoption import IceSource
    from vzarr.datasets import Kind

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+::?//|[A-Za-z0-9+.-]+::")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# After the length of the header: a map, and its first key.
_CAR = b"\xa2eroots"
_DATASETS: dict[bytes, Kind] = {
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"CDF\x01": "NetCDF 3",
    b"CDF\x02": "NetCDF 3",
    b"GRIB": "GRIB",
}
_HEAD_BYTES = 8


def open_source(
    source: Any,
    *,
    ref: str | datetime | None = None,
    exclusive: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Source | IceSource:
    """Open what is to be imported: a path, a URL, a store of zarr's, or a source that is open.

    An Icechunk repository without a ``ref`` is one with all of its history. Nobody else may import
    a directory that is opened ``exclusive``.

    Raises ``NotFoundError``, ``InvalidInputError`` for what cannot be imported, ``BusyError``,
    ``StorageError``.
    """
    if is_place(source):
        return _open_icechunk(source, ref, storage_options, exclusive=exclusive)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), ref, storage_options, exclusive=exclusive)
    if ref is not None:
        raise InvalidInputError("ref= is for a .vzarr file; of an open repository, take its store")
    if hasattr(source, "survey") or _is_history(source):
        opened: Source | IceSource = source
        return opened
    if hasattr(source, "list_prefix") and hasattr(source, "get"):
        return _of_store(source, exclusive=exclusive)
    raise InvalidInputError(f"cannot import from {source!r}: give a path, a URL, or a zarr Store")


def _is_history(source: object) -> bool:
    from vzarr.adoption import IceSource

    return isinstance(source, IceSource)


def _of_store(store: Any, *, exclusive: bool) -> Source:
    from zarr.storage import LocalStore, ZipStore

    if type(store) is LocalStore:
        return DirectorySource(str(store.root), exclusive=exclusive)
    if type(store) is ZipStore:
        return ZipSource(str(store.path))
    return from_store(store)


def _open_path(
    path: str | bytes,
    ref: str | datetime | None,
    storage_options: Mapping[str, Any] | None,
    *,
    exclusive: bool,
) -> Source | IceSource:
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidInputError(f"a source is a path or a URL, not {path!r}")
    if path.startswith("vzarr://"):
        return _snapshot(path.removeprefix("vzarr://"), path, ref)
    if path.startswith("file://"):
        path = unquote(urlsplit(path).path)
    elif _URL.match(path):
        return from_url(path, _without_secrets(path), storage_options)
    local = os.path.expanduser(path)
    if not os.path.exists(local):
        raise NotFoundError(f"there is nothing at {path} to import", name=path)
    if os.path.isdir(local) and is_repository(local):
        return _open_icechunk(SCHEME + local, ref, None, exclusive=exclusive)
    if os.path.isdir(local):
        return DirectorySource(local, exclusive=exclusive)
    return _open_file(local, ref)


def _open_icechunk(
    target: Any,
    ref: str | datetime | None,
    storage_options: Mapping[str, Any] | None,
    *,
    exclusive: bool,
) -> Source | IceSource:
    """Open an Icechunk repository, or one snapshot of it."""
    from vzarr.adoption import IceSource
    from vzarr.icereading import store_at
    from vzarr.icestorage import open_repository, place_of

    place = place_of(target, storage_options)
    if exclusive:
        raise InvalidInputError(
            f"{place.label} cannot be consumed: import it without consume=True, and delete it "
            "yourself"
        )
    theirs = open_repository(place)
    if ref is None:
        return IceSource(theirs, place)
    return from_store(store_at(theirs, place, ref), place.label)


def _open_file(path: str, ref: str | datetime | None) -> Source:
    """Tell by its first bytes what a file is, since names lie."""
    from vzarr.opening import exists

    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise os_error(error, f"cannot read {path}") from error
    if head.startswith(_ZIP):
        return ZipSource(path)
    if head[1:].startswith(_CAR):
        return CarSource(path)
    kind = next((kind for magic, kind in _DATASETS.items() if head.startswith(magic)), None)
    if kind is not None:
        from vzarr.datasets import DatasetSource

        return DatasetSource(path, kind)
    if exists(path):
        return _snapshot(path, path, ref)
    raise InvalidInputError(
        f"{path} is nothing that can be imported: no Zarr directory or zip, HDF5, NetCDF or GRIB "
        "file, CAR or vzarr repository; it may be half-written"
    )


def _snapshot(path: str, label: str, ref: str | datetime | None) -> SnapshotSource:
    from vzarr.opening import open as open_repository

    with ExitStack() as opened:
        repository = opened.enter_context(open_repository(path, "r"))
        session = repository.session("main" if ref is None else ref)
        opened.callback(session.close)
        return SnapshotSource(session, label, opened.pop_all().close)


def _without_secrets(url: str) -> str:
    """Take out what need not be in messages and commits: passwords, tokens, signatures."""
    return re.sub(r"(?<=://)[^/@]*@", "", url).partition("?")[0]
