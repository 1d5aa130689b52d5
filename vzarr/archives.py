"""A Zarr in one file, zip or CAR, as a source of an import: members by name, each one value."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

from vzarr.datafile import os_error, our_errors
from vzarr.errors import InvalidInputError
from vzarr.intake import (
    NODE_DOCUMENTS,
    Piece,
    Survey,
    Values,
    changed,
    is_value,
    look,
    read_document,
    require_key,
    require_size,
    without_consolidated,
)
from vzarr.progress import Meter

if TYPE_CHECKING:
    from vzarr.car import CarFile

_WORKERS = 4
# What zipfile raises for members that are damaged, encrypted, or of a method it lacks.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError)


def state_of(path: str) -> str:
    """Tell a file from itself after a change: by its size, time and inode."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise os_error(error, f"cannot read {path}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInputError(f"{path} is neither a file nor a directory")
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"


@final
class ZipSource:
    """Reads the members of a zip file; of several with one name the last, as all readers do."""

    workers = _WORKERS

    def __init__(self, path: str) -> None:
        """Open it. Raises ``InvalidInputError`` if it is no zip file, or cut off."""
        self.path = self.identity = os.path.realpath(path)
        self.label = path
        self.state = state_of(path)
        # Threads share it: zipfile has a lock for the moment in which the file is read.
        self._archive = _open(path)
        self._members = {
            info.filename: info for info in self._archive.infolist() if not info.is_dir()
        }
        self._prefix = _prefix(self._members)

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def survey(self, meter: Meter) -> Survey:
        """Count and measure the members, and read all documents."""
        meter.stage("look", len(self._members))
        return look(
            self._keys(),
            lambda key, _: read_document(self, key),
            lambda _, info: info.file_size,
            meter,
        )

    def pieces(self) -> Iterator[Piece]:
        """Give all members that are neither documents nor skipped."""
        for key, info in self._keys():
            if is_value(key):
                yield Piece((key,), info.file_size)

    def _keys(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        skip = len(self._prefix)
        for name, info in self._members.items():
            yield require_key(name[skip:], self.label), info

    def read(self, piece: Piece) -> Values:
        """Read a member; its checksum is compared."""
        (key,) = piece.keys
        info = self._members[self._prefix + key]
        require_size(key, info.file_size, self.label)
        try:
            data = self._archive.read(info)
        except _UNREADABLE as error:
            raise InvalidInputError(f"{key} of {self.label} cannot be read: {error}") from error
        except OSError as error:
            raise os_error(error, f"cannot read {self.label}") from error
        return [(key, data)]

    def is_as_read(self, piece: Piece, since: int) -> bool:  # noqa: ARG002 - ``state`` tells
        """Say yes: an import of another state of the file is not gone on with."""
        return True

    def has(self, key: str) -> bool:
        """Whether there is such a member."""
        return self._prefix + key in self._members

    def require_unchanged(self, meter: Meter) -> None:  # noqa: ARG002 - one file is quickly seen
        """Look at the file again."""
        if state_of(self.path) != self.state:
            raise changed(self.label)

    # ── consuming ────────────────────────────────────────────────────────────────────────────────

    def moved(self) -> Mapping[str, Any] | None:
        """Say that all is here: an archive goes as a whole."""
        return None

    def mark(self, record: Mapping[str, Any]) -> None:
        """Do nothing: nothing is going to be missing."""

    def delete(self, key: str) -> None:
        """Do nothing: members cannot be deleted one by one."""

    def remove(self) -> None:
        """Delete the file, if it is still what was read."""
        if state_of(self.path) != self.state:
            raise changed(self.label)
        with our_errors(f"cannot delete {self.path}"):
            os.unlink(self.path)


@final
class CarSource:
    """Reads a CAR file from the beginning to the end, once for the documents and once for all."""

    # They hash; the file is read by whoever gives out the pieces.
    workers = 2

    def __init__(self, path: str) -> None:
        """Look at its root. Raises ``FormatError``, ``CorruptError``, ``StorageError``."""
        self.path = self.identity = os.path.realpath(path)
        self.label = path
        self.state = state_of(path)
        self._keys: set[str] = set()
        with self._open():
            pass

    def _open(self) -> CarFile:
        from vzarr.car import CarFile

        return CarFile(self.path)

    def close(self) -> None:
        """Do nothing: the file is open while it is read."""

    def survey(self, meter: Meter) -> Survey:
        """Read all of it, compare every block with its id, and keep the documents."""
        with self._open() as file:
            meter.stage("look", file.count)
            return look(self._noted(file), without_consolidated, lambda _, data: len(data), meter)

    def _noted(self, file: CarFile) -> Iterator[tuple[str, bytes]]:
        for key, data in file.items():
            self._keys.add(require_key(key, self.label))
            yield key, data

    def pieces(self) -> Iterator[Piece]:
        """Give all values that are neither documents nor skipped, already read."""
        with self._open() as file:
            for key, data in file.items():
                if is_value(key):
                    yield Piece((key,), len(data), handle=data)

    def read(self, piece: Piece) -> Values:
        """Give what was read."""
        return [(piece.keys[0], piece.handle)]

    def is_as_read(self, piece: Piece, since: int) -> bool:  # noqa: ARG002 - ``state`` tells
        """Say yes: an import of another state of the file is not gone on with."""
        return True

    def has(self, key: str) -> bool:
        """Whether there is such a key."""
        return key in self._keys

    def require_unchanged(self, meter: Meter) -> None:  # noqa: ARG002 - one file is quickly seen
        """Look at the file again."""
        if state_of(self.path) != self.state:
            raise changed(self.label)


def _open(path: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except _UNREADABLE as error:
        raise InvalidInputError(
            f"{path} is no whole zip file: {error}; it may be half-written"
        ) from error
    except OSError as error:
        raise os_error(error, f"cannot read {path}") from error


def _prefix(names: Mapping[str, object]) -> str:
    """Find the one directory that all is in, where somebody has packed that and not what is in it.

    Empty if the Zarr begins at the top.
    """
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1:
        return ""
    (top,) = tops
    return f"{top}/" if any(f"{top}/{name}" in names for name in NODE_DOCUMENTS) else ""
