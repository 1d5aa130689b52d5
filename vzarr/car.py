"""CAR files: Zarr data as blocks that are found by their SHA-256, for IPFS and its relatives.

Of the ways to lay Zarr data out in IPLD, this is the one that tools of the field read: one root
block, a map of maps by the names in keys. Metadata documents of Zarr format 2 are values in it, all
else are links to blocks with the bytes of one chunk, file or ``zarr.json`` each.

A value does not tell how the document was spelled that it was read from, the order of its keys for
one. Where it could not be spelled again, the bytes of the documents are in one more block, behind
the root. Nothing links to it, so that who does not know of it reads the rest as always; without it
an import has equal data, with it equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, BinaryIO, final

from vzarr import dagcbor
from vzarr.contents import Batch, Contents, batches, spread
from vzarr.dagcbor import CID_BYTES, DAG_CBOR, MAX_VARINT_BYTES, RAW, Cid
from vzarr.datafile import our_errors
from vzarr.documents import MAX_DOCUMENT_BYTES, encode_document, parse_document
from vzarr.draft import Draft
from vzarr.errors import CorruptError, FormatError, InvalidInputError, NotFoundError
from vzarr.format import MAX_CHUNK_BYTES, Blob
from vzarr.objects import Bytes
from vzarr.outlets import flush_file
from vzarr.progress import Meter

INLINE = frozenset({".zarray", ".zattrs", ".zgroup", ".zmetadata"})
"""The documents that are values of the root block."""
MAX_ROOT_BYTES = 64 << 20
"""So long may a root block be: 1.4 million chunks. Decoded, it takes many times as much memory."""
BLOCK_BYTES = 1 << 20
"""Nodes of IPFS exchange no larger blocks."""

_MAX_HEADER_BYTES = 1 << 10
_ABSENT = Cid(RAW, bytes(32))
_LINK_BYTES = len(dagcbor.encode(_ABSENT))
_SPELLINGS = "vzarr.documents"


class BlockSizeWarning(UserWarning):
    """A CAR file has blocks that nodes of IPFS do not exchange; as a file it is whole."""


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def fill_car(contents: Contents, draft: Draft, meter: Meter) -> tuple[Cid, tuple[str, ...]]:
    """Write a CAR file; give the id of its root and what is to be warned of.

    Equal data, equal bytes. Each distinct block is read and written once. Memory: the root block,
    some 47 bytes a chunk, and what it is made of, some 500. Raises ``InvalidInputError`` where that
    would have more than ``MAX_ROOT_BYTES``, ``FullError``, ``StorageError``, ``CorruptError``.
    """
    if contents.count > MAX_ROOT_BYTES // _LINK_BYTES:
        raise _too_many(contents, contents.count * _LINK_BYTES)
    # How long the root will be is known before what it links to.
    root_bytes = len(_encode_root(contents, lambda _: _ABSENT))
    spellings = _encode_spellings(contents)
    if (longest := max(root_bytes, len(spellings))) > MAX_ROOT_BYTES:
        raise _too_many(contents, longest)
    cids: dict[bytes, Cid] = {}
    large: list[str] = []
    meter.stage("write", contents.nbytes)
    with (
        our_errors(f"cannot write {draft.path}"),
        open(draft.descriptor, "wb", closefd=False) as file,
    ):
        file.seek(len(_head(_ABSENT)) + len(_section_head(_ABSENT, root_bytes)) + root_bytes)
        if spellings:
            file.write(_section_head(Cid.of(RAW, spellings), len(spellings)))
            file.write(spellings)
        _write_blocks(contents, file, cids, large, meter)
        root = _encode_root(contents, lambda blob: cids[blob.digest])
        assert len(root) == root_bytes
        cid = Cid.of(DAG_CBOR, root)
        file.seek(0)
        file.write(_head(cid))
        file.write(_section_head(cid, root_bytes))
        file.write(root)
    flush_file(draft, meter)
    return cid, tuple(_warnings(root_bytes, large))


def _too_many(contents: Contents, nbytes: int) -> InvalidInputError:
    return InvalidInputError(
        f"the root block of {contents.count:,} keys would have {nbytes:,} bytes, and may have "
        f"{MAX_ROOT_BYTES:,}: export a part with path=, or another kind of target"
    )


def _encode_root(contents: Contents, cid_of: Callable[[Blob], Cid]) -> bytes:
    root: dict[str, Any] = {}
    for key, blob in contents.items():
        *groups, name = key.split("/")
        place = root
        for group in groups:
            place = place.setdefault(group, {})
        value = _inline(contents, name, blob)
        place[name] = cid_of(blob) if value is None else value
    return dagcbor.encode(root)


def _inline(contents: Contents, name: str, blob: Blob) -> dict[str, Any] | None:
    """Give the document of a key as a value; None if it is to be linked."""
    if name not in INLINE or blob.length > MAX_DOCUMENT_BYTES:
        return None
    value = parse_document(bytes(contents.read(blob)))
    try:
        dagcbor.encode(value)
    except InvalidInputError:
        # It has a NaN, say.
        return None
    return value


def _encode_spellings(contents: Contents) -> bytes:
    """Encode the bytes of those documents that cannot be spelled again from their values."""
    spellings: dict[str, bytes] = {}
    for key, blob in contents.items():
        value = _inline(contents, key.rpartition("/")[2], blob)
        if value is not None:
            data = bytes(contents.read(blob))
            if encode_document(dagcbor.decode(dagcbor.encode(value))) != data:
                spellings[key] = data
    return dagcbor.encode({_SPELLINGS: spellings}) if spellings else b""


def _write_blocks(
    contents: Contents, file: BinaryIO, cids: dict[bytes, Cid], large: list[str], meter: Meter
) -> None:
    begun: set[bytes] = set()

    def linked() -> Iterator[tuple[str, Blob]]:
        for key, blob in contents.items():
            if blob.digest in begun:
                continue
            if _inline(contents, key.rpartition("/")[2], blob) is None:
                begun.add(blob.digest)
                yield key, blob

    def read(batch: Batch) -> list[tuple[str, Blob, Bytes, Cid]]:
        found = ((key, blob, contents.read(blob)) for key, blob in batch)
        return [(key, blob, data, Cid.of(RAW, data)) for key, blob, data in found]

    with closing(spread(batches(linked()), read)) as batches_read:
        for batch in batches_read:
            for key, blob, data, cid in batch:
                _write_block(file, cids, blob, data, cid)
                if len(data) > BLOCK_BYTES:
                    large.append(key)
                meter.step(len(data))


def _write_block(file: BinaryIO, cids: dict[bytes, Cid], blob: Blob, data: Bytes, cid: Cid) -> None:
    cids[blob.digest] = cid
    file.write(_section_head(cid, len(data)))
    file.write(data)


def _head(root: Cid) -> bytes:
    header = dagcbor.encode({"roots": [root], "version": 1})
    return dagcbor.encode_varint(len(header)) + header


def _section_head(cid: Cid, length: int) -> bytes:
    return dagcbor.encode_varint(CID_BYTES + length) + cid.encode()


def _warnings(root_bytes: int, large: list[str]) -> Iterator[str]:
    end = f"IPFS nodes exchange blocks of up to {BLOCK_BYTES:,} bytes"
    if root_bytes > BLOCK_BYTES:
        yield (
            f"the root block has {root_bytes:,} bytes; {end}: use fewer, larger chunks (22,000 in "
            "one file) or export parts with path="
        )
    if large:
        yield (
            f"there are chunks of more than {BLOCK_BYTES:,} bytes ({len(large):,}, such as "
            f"{large[0]!r}); {end}: use smaller chunks"
        )


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


@final
class CarFile:
    """A CAR file with Zarr data, open for reading. Every block is compared with its id.

    ``count`` is its number of keys, ``nbytes`` its size, ``root`` the id of its root. In memory are
    the root block, what it is decoded to, and one block.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open it and read its root.

        Raises ``NotFoundError``, ``StorageError``; ``FormatError`` if it is none, or of a kind that
        cannot be read (version 2, other hashes, other layouts); ``CorruptError`` if it is damaged.
        """
        self.path = os.fspath(path)
        if not os.path.exists(self.path):
            raise NotFoundError(f"there is no file {self.path}", name=self.path)
        with our_errors(f"cannot open {self.path}"):
            self._file = open(self.path, "rb")  # noqa: SIM115 - until ``close``
        try:
            with our_errors(f"cannot read {self.path}"):
                self.nbytes = os.fstat(self._file.fileno()).st_size
                self._left = self.nbytes
                self.root = self._read_header()
                self._links: dict[bytes, list[str]] = {}
                self._documents: dict[str, dict[str, Any]] = {}
                self._place("", self._read_root())
        except BaseException as error:
            self.close()
            raise self._named(error) from error
        self.count = len(self._documents) + sum(map(len, self._links.values()))

    def __enter__(self) -> CarFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; can be repeated."""
        self._file.close()

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Give every key with its bytes, once: the inlined documents first, else as they lie.

        Raises ``CorruptError`` at the first block that is damaged, cut off or, at the end, missing:
        what was given before is whole, and not all. Also ``FormatError`` and ``StorageError``.
        O(size of the file); can be called once.
        """
        try:
            with our_errors(f"cannot read {self.path}"):
                yield from self._items()
        except FormatError as error:
            raise self._named(error) from error

    def _items(self) -> Iterator[tuple[str, bytes]]:
        links = dict(self._links)
        section = self._read_section()
        spellings = {}
        if section is not None and section[0].digest not in links:
            spellings = _spellings(section[1])
        for key, value in self._documents.items():
            yield key, _spell(value, spellings.get(key))
        while section is not None:
            cid, data = section
            for key in links.pop(cid.digest, ()):
                yield key, data
            section = self._read_section()
        if links:
            digest, keys = next(iter(links.items()))
            raise CorruptError(
                f"{len(links):,} blocks are missing, such as {Cid(RAW, digest)} of {keys[0]!r}: it "
                "is cut off, or was made without them"
            )

    def _named(self, error: BaseException) -> BaseException:
        """Say in an error of the format which file it is about."""
        if isinstance(error, FormatError) and not error.path:
            return type(error)(f"cannot read {self.path}: {error}", path=self.path)
        return error

    def _read_header(self) -> Cid:
        length = self._read_length()
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise FormatError("it is no CAR file")
        try:
            header = dagcbor.decode(self._take(length))
        except CorruptError as error:
            raise FormatError(f"it is no CAR file: {error}") from error
        if not isinstance(header, dict) or "version" not in header:
            raise FormatError("it is no CAR file")
        if header["version"] != 1 or header.keys() != {"roots", "version"}:
            raise FormatError(
                f"it is a CAR file of version {header['version']!r:.20}; version 1 can be read"
            )
        roots = header["roots"]
        if not (isinstance(roots, list) and len(roots) == 1 and isinstance(roots[0], Cid)):
            raise FormatError("it must have one root")
        return roots[0]

    def _read_root(self) -> dict[str, Any]:
        section = self._read_section(MAX_ROOT_BYTES)
        if section is None or section[0] != self.root or self.root.codec != DAG_CBOR:
            raise FormatError("its first block must be its root, a map in DAG-CBOR")
        root = dagcbor.decode(section[1])
        if not isinstance(root, dict):
            raise FormatError("its root is no map")
        return root

    def _place(self, start: str, place: dict[str, Any]) -> None:
        """Note where the keys of a map are; ``start`` is what they begin with."""
        for name, value in place.items():
            if "/" in name:
                raise FormatError(f"it has a name with a slash: {name[:100]!r}")
            key = start + name
            if isinstance(value, Cid):
                if value.codec != RAW:
                    raise FormatError(f"{key!r} is a link to a map; maps in the root can be read")
                self._links.setdefault(value.digest, []).append(key)
            elif not isinstance(value, dict):
                raise FormatError(f"{key!r} is neither a link nor a map")
            elif name in INLINE:
                self._documents[key] = value
            else:
                self._place(f"{key}/", value)

    def _read_section(self, most: int = MAX_CHUNK_BYTES) -> tuple[Cid, bytes] | None:
        """Read the next block and compare it with its id; None at the end of the file."""
        if not self._left:
            return None
        length = self._read_length() - CID_BYTES
        if length > most:
            raise FormatError(f"it has a block of {length:,} bytes; {most:,} can be read")
        cid = dagcbor.decode_cid(self._take(CID_BYTES))
        data = self._take(length)
        if Cid.of(cid.codec, data) != cid:
            raise CorruptError(f"block {cid} is damaged: its bytes do not match its id")
        return cid, data

    def _read_length(self) -> int:
        data = self._file.read(min(MAX_VARINT_BYTES, self._left))
        number, used = dagcbor.decode_varint(data)
        self._file.seek(used - len(data), os.SEEK_CUR)
        self._left -= used
        return number

    def _take(self, length: int) -> bytes:
        # A length that lies must not be believed: so much memory would be asked for.
        data = self._file.read(length) if 0 <= length <= self._left else b""
        if len(data) != length:
            raise CorruptError("it is cut off, or one of its lengths is wrong")
        self._left -= length
        return data


def _spellings(data: bytes) -> dict[Any, Any]:
    """Read the block with the bytes of documents; nothing if it is something else."""
    try:
        found = dagcbor.decode(data) if len(data) <= MAX_ROOT_BYTES else None
    except FormatError:
        return {}
    spellings = found.get(_SPELLINGS) if isinstance(found, dict) else None
    return spellings if isinstance(spellings, dict) else {}


def _spell(value: dict[str, Any], spelling: object) -> bytes:
    """Give the bytes of a document: those that were kept, provided that they are of this value."""
    if isinstance(spelling, bytes):
        kept = parse_document(spelling)
        try:
            if dagcbor.encode(kept) == dagcbor.encode(value):
                return spelling
        except InvalidInputError:
            pass
    try:
        return encode_document(value)
    except (TypeError, ValueError) as error:
        raise FormatError(f"a document in its root is no JSON: {error}") from error
