"""The file of a bundle: objects back to back, and behind them what they are and where.

``docs/sync.md`` is the normative description. A bundle answers the same questions as a repository
elsewhere does, so that whoever receives need not know the difference. Nothing in it is believed:
its table is compared with a digest, and each object by who asked for it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import BinaryIO, final

from vzarr import portable
from vzarr.datafile import os_error
from vzarr.draft import Draft
from vzarr.errors import CorruptError, FormatVersionError, TransferError
from vzarr.format import (
    DIGEST_BYTES,
    FORMAT_VERSION,
    Digest,
    chunk_digest,
    commit_digest,
    decode_commit,
)
from vzarr.supply import MAX_NODE_BYTES, Ref, decode_ref, encode_ref
from vzarr.wire import decode_message, encode_message

MAGIC = b"vzarr-bundle-1\n\n"
_ROW = struct.Struct(f"<{DIGEST_BYTES}sQQ")
# Offset and length of the contents, offset of the table, number of its rows; digest of both.
_FOOTER = struct.Struct(f"<QQQQ{DIGEST_BYTES}s")


def is_bundle(path: str) -> bool:
    """Whether a file begins as a bundle does. Opens nothing else than a regular file."""
    target = os.path.expanduser(path)
    if not os.path.isfile(target):
        return False
    try:
        with open(target, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


@final
class BundleFile:
    """A bundle, open for reading. Memory: 48 bytes an object."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        head = len(MAGIC)
        if self._size < head + _FOOTER.size or self._read(0, head) != MAGIC:
            raise self._damaged("it is cut off, or no bundle at all")
        footer = self._read(self._size - _FOOTER.size, _FOOTER.size)
        begin, length, table, rows, digest = _FOOTER.unpack(footer)
        if table != begin + length or table + rows * _ROW.size != self._size - _FOOTER.size:
            raise self._damaged("it is cut off, or its end is damaged")
        described = self._read(begin, self._size - _FOOTER.size - begin)
        if chunk_digest(described + footer[:-DIGEST_BYTES]) != digest:
            raise self._damaged("its table does not match its digest")
        self._end = begin
        self._table = described[length:]
        self._rows = rows
        try:
            message = decode_message(described[:length])
            if message[0] != "bundle":
                raise self._damaged("its contents are no list of such")
            _, version, self.id, refs, needs, commits, without = message
            self._refs = [decode_ref(*row) for row in refs]
        except TransferError as error:
            raise self._damaged(str(error)) from error
        if version > FORMAT_VERSION:
            raise FormatVersionError(
                f"{path} has format version {version}, and this release knows up to "
                f"{FORMAT_VERSION}: install a newer vzarr (pip install --upgrade vzarr)",
                path=path,
            )
        self.needs: list[Digest] = needs
        """Commits that whoever receives it must have."""
        self._commits: list[Digest] = commits
        self._without = set(without)

    @classmethod
    def open(cls, path: str) -> BundleFile:
        """Open a bundle. Raises ``CorruptError``, ``FormatVersionError`` and ``StorageError``."""
        try:
            file = open(os.path.expanduser(path), "rb")  # noqa: SIM115 - closed by ``__exit__``
        except OSError as error:
            raise os_error(error, f"cannot open {path}") from error
        try:
            return cls(path, file)
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> BundleFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def refs(self) -> list[Ref]:
        """List the branches and tags."""
        return self._refs

    def commits(
        self,
        wants: Sequence[Digest],
        stops: Sequence[Digest],
        limit: int,  # noqa: ARG002 - it is read as far as it is wanted
    ) -> Iterator[bytes]:
        """Give records of commits; whoever reads them may stop when there are enough."""
        wanted = set(wants)
        for commit in self._commits:
            if commit in wanted:
                data = self._object(commit, MAX_NODE_BYTES)
                if data is None or commit_digest(data) != commit:
                    problem = "is not in it" if data is None else "does not match its digest"
                    raise self._damaged(f"commit {commit.hex()[:12]} {problem}")
                yield data
                wanted |= set(decode_commit(data).parents) - set(stops)

    def absent(self) -> set[bytes]:
        """List what is left out."""
        return self._without

    def nodes(self, digests: Sequence[bytes]) -> list[bytes | None]:
        """Give tree nodes and roots; None for one that is not in it."""
        return [self._object(digest, MAX_NODE_BYTES) for digest in digests]

    def chunks(self, digests: Sequence[bytes], lengths: Sequence[int]) -> list[bytes | None]:
        """Give bytes of chunks; None for one that is not in it."""
        return [self._object(*pair) for pair in zip(digests, lengths, strict=True)]

    def _object(self, digest: bytes, most: int) -> bytes | None:
        """Find an object in the table, which is in the order of the digests. O(log n)."""
        low, high = 0, self._rows
        while low < high:
            middle = (low + high) // 2
            found, offset, length = _ROW.unpack_from(self._table, middle * _ROW.size)
            if found == digest:
                if length > most or offset + length > self._end:
                    raise self._damaged(f"object {digest.hex()[:12]} cannot be so long")
                return self._read(offset, length)
            low, high = (middle + 1, high) if found < digest else (low, middle)
        return None

    def _read(self, offset: int, length: int) -> bytes:
        try:
            self._file.seek(offset)
            data = self._file.read(length)
        except OSError as error:
            raise os_error(error, f"cannot read {self.path}") from error
        if len(data) != length:
            raise self._damaged("it was cut off meanwhile")
        return data

    def _damaged(self, why: str) -> CorruptError:
        return CorruptError(
            f"the bundle {self.path} is damaged: {why}. Nothing was taken from it; get it once "
            "more from where it was made",
            path=self.path,
        )


@final
class BundleWriter:
    """Writes a bundle to a draft. Memory: 150 bytes an object."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        # The draft closes its descriptor itself.
        self._file = os.fdopen(os.dup(draft.descriptor), "wb", buffering=1 << 20)
        self._offset = 0
        self._places: dict[bytes, tuple[int, int]] = {}
        self._write(MAGIC)

    def __contains__(self, digest: object) -> bool:
        return digest in self._places

    def add(self, digest: bytes, data: bytes) -> None:
        """Write an object, unless it is there."""
        if digest not in self._places:
            self._places[digest] = self._offset, len(data)
            self._write(data)

    def finish(
        self,
        repository_id: bytes,
        refs: Sequence[Ref],
        needs: Sequence[Digest],
        commits: Sequence[Digest],
        without: Sequence[bytes],
    ) -> int:
        """Write what is in it and where, and flush it to the disk; give its size in bytes."""
        rows = [[ref.kind, ref.name, encode_ref(ref)] for ref in refs]
        contents = encode_message(
            ["bundle", FORMAT_VERSION, repository_id, rows, [*needs], [*commits], [*without]]
        )
        table = b"".join(
            _ROW.pack(digest, *self._places[digest]) for digest in sorted(self._places)
        )
        begin = self._offset
        numbers = _FOOTER.pack(
            begin, len(contents), begin + len(contents), len(self._places), bytes(DIGEST_BYTES)
        )[:-DIGEST_BYTES]
        self._write(contents)
        self._write(table)
        self._write(numbers + chunk_digest(contents + table + numbers))
        try:
            self._file.flush()
            portable.fsync(self._draft.descriptor)
        except OSError as error:
            raise os_error(error, f"cannot write {self._draft.target}") from error
        return self._offset

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise os_error(error, f"cannot write {self._draft.target}") from error
        self._offset += len(data)

    def close(self) -> None:
        """Close it; what is in its buffer may be lost."""
        try:
            self._file.close()
        except OSError:
            # The error was told by the write that failed, or the draft is not wanted.
            return
