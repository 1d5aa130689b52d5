"""Places that an export can fill: a directory, a zip file, the file systems of fsspec."""

from __future__ import annotations

import ctypes
import os
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, final

from vzarr import portable
from vzarr.contents import Batch, Contents, batches, spread
from vzarr.datafile import os_error, our_errors
from vzarr.draft import Draft, draft_path
from vzarr.errors import AlreadyExistsError, InvalidInputError, StorageError, VzarrError
from vzarr.format import DOCUMENTS
from vzarr.objects import Bytes
from vzarr.progress import Meter

# What a zip file says of each member: the first date that it can, since the order and the time of
# writing are no part of the data.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)
_ZIP_MODE = 0o644 << 16
# A remote store answers late, and to many at once.
_REMOTE_WORKERS, _REMOTE_KEYS = 16, 8

_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | portable.CLOEXEC


# ── a directory ──────────────────────────────────────────────────────────────────────────────────


def fill_directory(contents: Contents, draft: Draft, meter: Meter) -> None:
    """Write each key to a file of its own, as zarr's ``LocalStore`` does, and make them durable.

    Raises ``FullError``, ``StorageError`` and ``CorruptError``.
    """

    def write(batch: Batch) -> int:
        with contents.in_place() as read:
            for key, blob in batch:
                _write_file(os.path.join(draft.path, key), read(blob))
        return sum(blob.length for _, blob in batch)

    meter.stage("write", contents.nbytes)
    with our_errors(f"cannot write to {draft.path}"):
        with closing(spread(batches(contents.items()), write)) as written:
            for nbytes in written:
                meter.step(nbytes)
        meter.stage("flush", 1)
        _flush(draft)
    meter.end()


def _write_file(path: str, data: Bytes) -> None:
    try:
        descriptor = _create(path)
    except FileExistsError as error:
        raise InvalidInputError(
            f"{path} is the file of two keys, since its file system takes names for the same that "
            "differ in case or in the spelling of letters: export to a zip file"
        ) from error
    try:
        view = memoryview(data)
        while view.nbytes:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _create(path: str) -> int:
    try:
        return os.open(path, _WRITE, 0o666)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, _WRITE, 0o666)


def _flush(draft: Draft) -> None:
    """Make all files of a directory durable: all at once where the system can. Raises OSError."""
    sync = portable.linux_call("syncfs")
    if sync is not None:
        if sync(draft.descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), draft.path)
        return
    for directory, _, names in os.walk(draft.path):
        for name in names:
            portable.sync_path(os.path.join(directory, name))
        portable.sync_directory(directory)


# ── a zip file ───────────────────────────────────────────────────────────────────────────────────


def fill_zip(contents: Contents, draft: Draft, meter: Meter) -> None:
    """Write a zip file for zarr's ``ZipStore``, without compression; equal data, equal bytes.

    Memory: half a kilobyte a key, for the list at its end. Raises as ``fill_directory``.
    """

    def read(batch: Batch) -> list[tuple[str, Bytes]]:
        return [(key, contents.read(blob)) for key, blob in batch]

    meter.stage("write", contents.nbytes)
    with (
        our_errors(f"cannot write {draft.path}"),
        open(draft.descriptor, "wb", closefd=False) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        closing(spread(batches(contents.items()), read)) as batches_read,
    ):
        for batch in batches_read:
            for key, data in batch:
                member = zipfile.ZipInfo(key, _ZIP_DATE)
                member.external_attr = _ZIP_MODE
                archive.writestr(member, data)
                meter.step(len(data))
    flush_file(draft, meter)


def flush_file(draft: Draft, meter: Meter) -> None:
    """Make a file durable. Raises ``FullError`` and ``StorageError``."""
    meter.stage("flush", 1)
    with our_errors(f"cannot write {draft.path}"):
        portable.fsync(draft.descriptor)
    meter.end()


# ── a file system of fsspec ──────────────────────────────────────────────────────────────────────


@final
class Remote:
    """A place in a file system that fsspec knows."""

    def __init__(self, url: str, options: dict[str, Any] | None) -> None:
        """Find the file system. Raises ``InvalidInputError`` if that needs what is missing."""
        self.url = url
        try:
            from fsspec.core import url_to_fs

            self._system, path = url_to_fs(url, **(options or {}))
        except (ImportError, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"cannot export to {url}: {error} (URLs need fsspec: pip install vzarr[xarray])"
            ) from error
        self.path: str = path.rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether it is the file system of this machine, with paths as ``os`` has them."""
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._system, LocalFileSystem)

    def exists(self) -> bool:
        """Whether there is something. Raises ``StorageError``."""
        with self._errors("look at"):
            return bool(self._system.exists(self.path))

    def require_absent(self) -> None:
        """Raise ``AlreadyExistsError`` if there is something."""
        if self.exists():
            raise AlreadyExistsError(
                f"{self.url} exists already: choose another URL, or pass overwrite=True (on the "
                "command line --overwrite)",
                name=self.url,
            )

    def fill(self, contents: Contents, meter: Meter, *, overwrite: bool) -> None:
        """Write each key to an object of its own.

        There is no renaming of many objects in one step, so what makes a Zarr of them comes last:
        metadata after chunks, groups after what is in them. What was there before is replaced when
        all is written beside it. If it fails, what it wrote is removed, as far as that can be done.
        """
        there = overwrite and self.exists()
        root = draft_path(self.path) if there else self.path
        try:
            with self._errors("write to"):
                self._write(root, contents, meter)
                if there:
                    self._system.rm(self.path, recursive=True)
                    self._system.mv(root, self.path, recursive=True)
        except BaseException:
            # Why it failed is what matters.
            with suppress(Exception):
                self._system.rm(root, recursive=True)
            raise

    def _write(self, root: str, contents: Contents, meter: Meter) -> None:
        def write(batch: Batch) -> int:
            for key, blob in batch:
                self._system.pipe_file(f"{root}/{key}", bytes(contents.read(blob)))
            return sum(blob.length for _, blob in batch)

        documents: Batch = []

        def chunks() -> Iterator[tuple[str, Any]]:
            for key, blob in contents.items():
                if key.rpartition("/")[2] in DOCUMENTS:
                    documents.append((key, blob))
                else:
                    yield key, blob

        meter.stage("write", contents.nbytes)
        work = batches(chunks(), keys=_REMOTE_KEYS)
        with closing(spread(work, write, _REMOTE_WORKERS)) as written:
            for nbytes in written:
                meter.step(nbytes)
        documents.sort(key=lambda item: item[0].count("/"), reverse=True)
        for item in documents:
            meter.step(write([item]))
        meter.end()

    def put(self, path: str) -> None:
        """Copy a file of this machine there. Raises ``StorageError``."""
        try:
            with self._errors("write to"):
                self._system.put_file(path, self.path)
        except BaseException:
            with suppress(Exception):
                self._system.rm(self.path)
            raise

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Give our errors for a file system's: it may raise whatever its library does."""
        try:
            yield
        except VzarrError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.strerror:
                raise os_error(error, f"cannot {what} {self.url}") from error
            raise StorageError(f"cannot {what} {self.url}: {error}") from error
