"""A Zarr in a directory, as a source of an import: files by name, each of them one value."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, final

from vzarr import buffers, portable
from vzarr.datafile import os_error, our_errors
from vzarr.documents import parse_document
from vzarr.errors import BusyError, InvalidInputError
from vzarr.intake import (
    MOVED,
    MOVED_DRAFT,
    Piece,
    Survey,
    Values,
    changed,
    is_skipped,
    is_value,
    join,
    look,
    read_document,
    require_key,
    require_size,
)
from vzarr.objects import LARGE_BYTES
from vzarr.portable import sync_directory
from vzarr.progress import Meter

# Reading from the page cache is copying, and there are not many processors to copy with.
_WORKERS = 4
# The clock of a file system may be that much behind ours: one over the network counts seconds.
_CLOCK_SLACK_MICROSECONDS = 3_000_000
_MASK = 2**64 - 1


@final
class DirectorySource:
    """Reads the files of a directory; what is a link is followed.

    Whether the source stays as it is tells a sum over all files' names, sizes, times and inodes: of
    those that were read, as they were then, and of those that are there at the end.
    """

    state = None
    workers = _WORKERS

    def __init__(self, path: str, *, exclusive: bool) -> None:
        """Open it. Nobody consumes a directory while others import it, who have it ``exclusive``.

        Raises ``BusyError``, ``StorageError``.
        """
        self.path = self.identity = os.path.realpath(path)
        self.label = path
        self._sum = 0
        self._counting = threading.Lock()
        # Of what may be deleted once it is durable.
        self._read_as: dict[str, int] | None = {} if exclusive else None
        try:
            self._lock = portable.open_file(
                self.path, os.O_RDONLY | portable.DIRECTORY | portable.CLOEXEC
            )
        except OSError as error:
            raise os_error(error, f"cannot read {path}") from error
        try:
            _take_lock(self._lock, path, exclusive=exclusive)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let others consume it."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    # ── looking ──────────────────────────────────────────────────────────────────────────────────

    def survey(self, meter: Meter) -> Survey:
        """Count and measure the files, and read all documents. Some 5 µs a file."""
        meter.stage("look", 0)
        return look(
            self._walk(),
            lambda key, _: self.document(key),
            lambda key, entry: self._status(key, entry).st_size,
            meter,
        )

    def document(self, key: str) -> bytes:
        """Read a document as it is taken over."""
        return read_document(self, key)

    def pieces(self) -> Iterator[Piece]:
        """Give all files that are neither documents nor skipped, directory by directory."""
        for key, _ in self._walk():
            if is_value(key):
                yield Piece((key,), 0)

    def has(self, key: str) -> bool:
        """Whether there is such a file."""
        return os.path.isfile(self.place(key))

    def is_as_read(self, piece: Piece, since: int) -> bool:
        """Whether a file has not been touched since; the system notes that, and lets none undo it.

        Then it counts as read.
        """
        (key,) = piece.keys
        status = self._status(key)
        touched = max(status.st_ctime_ns, status.st_mtime_ns) // 1000
        if touched + _CLOCK_SLACK_MICROSECONDS >= since:
            return False
        self._note(key, status)
        return True

    def require_unchanged(self, meter: Meter) -> None:
        """Look at all files again. Some 5 µs each."""
        meter.stage("look again", 0)
        found = 0
        for key, entry in self._walk():
            meter.step(1)
            if not is_skipped(key):
                found += _fingerprint(key, self._status(key, entry))
        if (found - self._sum) & _MASK:
            raise changed(self.label)

    def place(self, key: str) -> str:
        """Give the path of a key's file."""
        return os.path.join(self.path, *key.split("/"))

    def _walk(self, above: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Give every file with its key; in order, so that two runs do the same."""
        try:
            with os.scandir(self.place(above) if above else self.path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except FileNotFoundError as error:
            raise changed(self.label, above) from error
        except OSError as error:
            raise os_error(error, f"cannot read {self.place(above)}") from error
        for entry in entries:
            key = require_key(join(above, entry.name), self.label)
            if self._is_directory(entry):
                yield from self._walk(key)
            else:
                yield key, entry

    def _is_directory(self, entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError as error:
            raise os_error(error, f"cannot read {entry.path}") from error

    def _status(self, key: str, entry: os.DirEntry[str] | None = None) -> os.stat_result:
        try:
            if entry is None or sys.platform == "win32":
                # Windows says less of a file in a list.
                status = os.stat(self.place(key))
            else:
                status = entry.stat()
        except FileNotFoundError as error:
            raise changed(self.label, key) from error
        except OSError as error:
            raise os_error(error, f"cannot read {self.place(key)}") from error
        return self._require_file(key, status)

    def _require_file(self, key: str, status: os.stat_result) -> os.stat_result:
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInputError(
                f"{key} of {self.label} is neither a file nor a directory: remove it"
            )
        return status

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    def read(self, piece: Piece) -> Values:
        """Read a file, and note what it was then."""
        (key,) = piece.keys
        try:
            # A pipe in the place of a file must not be waited for.
            descriptor = portable.open_file(
                self.place(key), os.O_RDONLY | portable.CLOEXEC | portable.NONBLOCK
            )
        except FileNotFoundError as error:
            raise changed(self.label, key) from error
        except OSError as error:
            raise os_error(error, f"cannot read {self.place(key)}") from error
        try:
            status = self._require_file(key, os.fstat(descriptor))
            data = self._read(key, descriptor, status.st_size)
        except OSError as error:
            raise os_error(error, f"cannot read {self.place(key)}") from error
        finally:
            os.close(descriptor)
        self._note(key, status)
        return [(key, data)]

    def _read(self, key: str, descriptor: int, nbytes: int) -> bytes | memoryview:
        require_size(key, nbytes, self.label)

        def fill(buffer: memoryview) -> None:
            done = 0
            while done < nbytes:
                read = portable.read_into(descriptor, buffer[done:])
                if not read:
                    raise changed(self.label, key)
                done += read

        if nbytes >= LARGE_BYTES:
            return buffers.pool.filled(nbytes, fill)
        # One byte more than there should be tells whether it has grown.
        data = os.read(descriptor, nbytes + 1)
        if len(data) != nbytes:
            raise changed(self.label, key)
        return data

    def _note(self, key: str, status: os.stat_result) -> None:
        """Note that a file was read. The order in which files come does not matter."""
        fingerprint = _fingerprint(key, status)
        with self._counting:
            self._sum = (self._sum + fingerprint) & _MASK
        if self._read_as is not None:
            self._read_as[key] = fingerprint

    # ── consuming ────────────────────────────────────────────────────────────────────────────────

    def moved(self) -> Mapping[str, Any] | None:
        """Tell who has what is not here any more, as ``mark`` noted it; None if all is here."""
        try:
            with open(self.place(MOVED), "rb") as file:
                return parse_document(file.read()) or {}
        except FileNotFoundError:
            return None
        except OSError as error:
            raise os_error(error, f"cannot read {self.place(MOVED)}") from error

    def mark(self, record: Mapping[str, Any]) -> None:
        """Note, durably, that from here on files are missing, and who has them.

        Raises ``InvalidInputError`` if there are links, whose other ends would stay.
        """
        for key, entry in self._walk():
            if entry.is_symlink() or os.path.realpath(entry.path) != entry.path:
                raise InvalidInputError(
                    f"{key} of {self.label} is a link, or in a directory that is one: what it "
                    "leads to is not deleted; import without consume=True"
                )
        with our_errors(f"cannot write {self.place(MOVED)}"):
            with open(self.place(MOVED_DRAFT), "w") as file:
                json.dump(record, file, indent=2)
                file.flush()
                portable.fsync(file.fileno())
            os.replace(self.place(MOVED_DRAFT), self.place(MOVED))
            sync_directory(self.path)

    def delete(self, key: str) -> None:
        """Delete a file that is still what was read. Raises ``ConflictError``, ``StorageError``."""
        assert self._read_as is not None, "a source that is not consumed"
        fingerprint = self._read_as[key]
        if _fingerprint(key, self._status(key)) != fingerprint:
            raise changed(self.label, key)
        with our_errors(f"cannot delete {self.place(key)}"):
            os.unlink(self.place(key))
        del self._read_as[key]
        with self._counting:
            self._sum = (self._sum - fingerprint) & _MASK

    def remove(self) -> None:
        """Delete what is left of what was read, then the directories, and the mark at the end.

        What was not read stays, and so do the directories it is in.
        """
        assert self._read_as is not None, "a source that is not consumed"
        for key in list(self._read_as):
            self.delete(key)
        with our_errors(f"cannot delete {self.path}"):
            for above, _, names in os.walk(self.path, topdown=False, onerror=_fail):
                for name in names:
                    if name != MOVED and is_skipped(name):
                        os.unlink(os.path.join(above, name))
                if above != self.path:
                    _remove_if_empty(above)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.place(MOVED))
        # Without the mark another run would not know it again, and an empty directory is no harm.
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def _fail(error: OSError) -> None:
    # By default what cannot be listed counts as empty.
    raise error


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _fingerprint(key: str, status: os.stat_result) -> int:
    return hash((key, status.st_size, status.st_mtime_ns, status.st_ino))


def _take_lock(descriptor: int, path: str, *, exclusive: bool) -> None:
    try:
        taken = portable.try_lock_file(descriptor, shared=not exclusive)
    except OSError as error:
        # Where directories have no locks, one has to take care oneself.
        if error.errno in portable.NO_LOCKS:
            return
        raise os_error(error, f"cannot lock {path}") from error
    if not taken:
        doing = "imported" if exclusive else "consumed"
        raise BusyError(
            f"{path} is being {doing} by another import: try again when that one is done"
        )
