"""What an import needs of a source, whatever it is: values by key, and what they are.

A source gives all metadata documents first, so that the layout of every array is known before its
chunks come, and the chunks in pieces that many threads read at once. What is half-written, or no
Zarr at all, is told before anything is stored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from vzarr.documents import parse_document
from vzarr.errors import ConflictError, InvalidInputError
from vzarr.format import DOCUMENTS, MAX_CHUNK_BYTES, MAX_DEPTH, Blob, Layout, chunk_digest
from vzarr.metadata import ArrayMetadata, NodeMetadata, node_metadata
from vzarr.progress import Meter

CONSOLIDATED = ".zmetadata"
MOVED = ".vzarr-moved"
"""In a source that is being consumed: who has what is not there any more."""
MOVED_DRAFT = ".vzarr-moved-"
"""What that is written to before it has its name."""

# What zarr writes a value to before it renames it: the rest of a process that was killed.
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.partial$")
NODE_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup")
_V3_TYPE = re.compile(r"(?:u?int|float|complex|r)(\d+)")
_V2_TYPE = re.compile(r"[<>|]([biufcmMSV])(\d+)")

_T = TypeVar("_T")

Values = list[tuple[str, "bytes | memoryview"]]


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """What is read in one go: one value, or all that a region of a variable is encoded to."""

    keys: tuple[str, ...]
    """The keys that it may give values to."""
    nbytes: int
    """About how many bytes are to be read; for the progress."""
    blob: Blob | None = None
    """What its one value is, where that is known without reading it."""
    handle: Any = None
    """What its source finds it by."""


@final
@dataclass(frozen=True, slots=True)
class Survey:
    """What there is in a source."""

    documents: Mapping[str, bytes]
    pieces: int
    nbytes: int
    """Bytes to be read in pieces."""
    skipped: int
    """Keys that are not taken over: consolidated metadata, and what a killed writer left."""


class Source(Protocol):
    """Where an import comes from. ``read`` is called by several threads at once."""

    @property
    def label(self) -> str:
        """What people call it."""
        ...

    @property
    def identity(self) -> str | None:
        """By what a later run knows that it is the same source; None where there is no telling."""
        ...

    @property
    def state(self) -> str | None:
        """What changes whenever it does; None where single values tell that, or nothing does."""
        ...

    @property
    def workers(self) -> int:
        """How many threads it takes to keep it busy."""
        ...

    def survey(self, meter: Meter) -> Survey:
        """Look at what there is, and read all documents."""
        ...

    def pieces(self) -> Iterator[Piece]:
        """Give all but the documents."""
        ...

    def read(self, piece: Piece) -> Values:
        """Read a piece."""
        ...

    def is_as_read(self, piece: Piece, since: int) -> bool:
        """Whether what was read after ``since``, in microseconds, is still what it has."""
        ...

    def has(self, key: str) -> bool:
        """Whether it has a value for a key."""
        ...

    def require_unchanged(self, meter: Meter) -> None:
        """Raise ``ConflictError`` unless the source is as it was when it was read."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


@runtime_checkable
class Consumable(Source, Protocol):
    """A source that can be deleted while it is imported."""

    def moved(self) -> Mapping[str, Any] | None:
        """Tell who has what is not there any more; None if all is there."""
        ...

    def mark(self, record: Mapping[str, Any]) -> None:
        """Note, durably, that from here on values are missing, and who has them."""
        ...

    def delete(self, key: str) -> None:
        """Delete a value that was read and is durable elsewhere."""
        ...

    def remove(self) -> None:
        """Delete all the rest."""
        ...


@final
@dataclass(frozen=True, slots=True)
class _Array:
    """An array of a source: how its chunks' keys are spelled, and how long an uncoded one is."""

    layout: Layout | None
    chunk_bytes: int | None


@final
class Catalogue:
    """What the documents of a source say; its chunks are looked at in this light."""

    def __init__(self, documents: Mapping[str, bytes], label: str) -> None:
        """Raise ``InvalidInputError`` for what is no Zarr, or only half of one."""
        self._label = label
        self._arrays: dict[str, _Array] = {}
        self.groups = 0
        nodes: dict[str, dict[str, bytes]] = {}
        for key, data in documents.items():
            path, _, name = key.rpartition("/")
            nodes.setdefault(path, {})[name] = data
        self._require_root(nodes)
        for path, found in nodes.items():
            self._add(path, found)
        self.zarr_format = 3 if "zarr.json" in nodes[""] else 2

    @property
    def arrays(self) -> int:
        """How many arrays there are."""
        return len(self._arrays)

    def is_chunk(self, key: str, nbytes: int) -> bool:
        """Whether a value is a chunk; ``InvalidInputError`` if it is one that is cut off."""
        path, array = self._array_of(key)
        if array is None or array.layout is None:
            return False
        tail = key[len(path) + 1 :] if path else key
        if array.layout.parse(tail) is None:
            return False
        expected = array.chunk_bytes
        if nbytes == expected or (expected is None and nbytes):
            return True
        should = "it is empty" if expected is None else f"it has {nbytes} bytes, not {expected}"
        raise InvalidInputError(
            f"{key} of {self._label} is only half-written ({should}): write the chunk again, or "
            "delete it to have the fill value there, and run the import again"
        )

    def _array_of(self, key: str) -> tuple[str, _Array | None]:
        path = key
        while path:
            path = path.rpartition("/")[0]
            array = self._arrays.get(path)
            if array is not None:
                return path, array
        return "", None

    def _require_root(self, nodes: Mapping[str, Mapping[str, bytes]]) -> None:
        if any(name in nodes.get("", ()) for name in NODE_DOCUMENTS):
            return
        inside = sorted(
            path for path, found in nodes.items() if any(name in found for name in NODE_DOCUMENTS)
        )
        hint = f"; there is one at {inside[0]!r} in it: name that" if inside else ""
        raise InvalidInputError(
            f"{self._label} is no Zarr: it has no zarr.json, .zgroup or .zarray{hint}"
        )

    def _add(self, path: str, found: Mapping[str, bytes]) -> None:
        metadata = _node(found)
        if metadata is None:
            names = [name for name in NODE_DOCUMENTS if name in found]
            if names:
                raise InvalidInputError(
                    f"{join(path, names[0])} of {self._label} is only half-written, or not what "
                    "Zarr means by it: it does not describe a group or an array"
                )
        elif metadata.array is None:
            self.groups += 1
        else:
            self._arrays[path] = _Array(metadata.array.layout, _chunk_bytes(metadata.array))


def _node(found: Mapping[str, bytes]) -> NodeMetadata | None:
    values = {chunk_digest(data): data for data in found.values()}
    blobs = {name: Blob(chunk_digest(data), len(data)) for name, data in found.items()}
    return node_metadata(blobs, lambda blob: values[blob.digest])


def _chunk_bytes(array: ArrayMetadata) -> int | None:
    """Tell how long every chunk of an array is; None where codecs decide that."""
    grid, item = array.grid, _item_bytes(array)
    if grid is None or item is None:
        return None
    lengths = [length for length in grid if isinstance(length, int)]
    return math.prod(lengths) * item if len(lengths) == len(grid) else None


def _item_bytes(array: ArrayMetadata) -> int | None:
    """Tell how long an element is in an array whose chunks are nothing but elements."""
    document = json.loads(array.encoding)
    if document["zarr_format"] == 2:
        if document.get("compressor") is not None or document.get("filters"):
            return None
        match = _V2_TYPE.fullmatch(array.dtype)
        if match is None:
            return None
        # Times have 8 bytes and say so; their unit, which follows, is no match.
        return int(match[2])
    codecs = document.get("codecs")
    if not isinstance(codecs, list) or len(codecs) != 1:
        return None
    name = codecs[0].get("name") if isinstance(codecs[0], dict) else codecs[0]
    if name != "bytes":
        return None
    if array.dtype == "bool":
        return 1
    match = _V3_TYPE.fullmatch(array.dtype)
    return None if match is None or int(match[1]) % 8 else int(match[1]) // 8


def join(path: str, name: str) -> str:
    """Put a name below a path, which may be that of the root."""
    return f"{path}/{name}" if path and name else path or name


def is_document(key: str) -> bool:
    """Whether a key is that of a metadata document."""
    return key.rpartition("/")[2] in DOCUMENTS


def is_skipped(key: str) -> bool:
    """Whether a key is not taken over: see ``Survey.skipped``."""
    name = key.rpartition("/")[2]
    return name in (CONSOLIDATED, MOVED, MOVED_DRAFT) or _PARTIAL.search(name) is not None


def is_value(key: str) -> bool:
    """Whether a key's value comes in a piece: it is no document, and taken over."""
    return not is_document(key) and not is_skipped(key)


def look(
    found: Iterable[tuple[str, _T]],
    document: Callable[[str, _T], bytes],
    nbytes: Callable[[str, _T], int],
    meter: Meter,
) -> Survey:
    """Count and measure what is found, and read all documents.

    ``found`` are keys with whatever ``document`` and ``nbytes`` find their values by.
    """
    documents: dict[str, bytes] = {}
    pieces = total = skipped = 0
    for key, handle in found:
        meter.step(1)
        if is_skipped(key):
            skipped += 1
        elif is_document(key):
            documents[key] = document(key, handle)
        else:
            pieces += 1
            total += nbytes(key, handle)
    return Survey(documents, pieces, total, skipped)


def read_document(source: Source, key: str) -> bytes:
    """Read a document as it is taken over."""
    (value,) = source.read(Piece((key,), 0))
    return without_consolidated(key, bytes(value[1]))


def without_consolidated(key: str, data: bytes) -> bytes:
    """Take the copy of other documents out of a ``zarr.json``, which the next commit makes stale.

    All else stays as it is, and any other document byte for byte.
    """
    if key.rpartition("/")[2] != "zarr.json" or b'"consolidated_metadata"' not in data:
        return data
    document = parse_document(data)
    if document is None or document.get("consolidated_metadata") is None:
        return data
    del document["consolidated_metadata"]
    return json.dumps(document, indent=2 if b"\n" in data else None).encode()


def require_key(key: str, label: str) -> str:
    """Give a key back that a store may have; ``InvalidInputError`` for one that is a trap."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidInputError(f"{label} has the key {key!r}, which is no path: rename it")
    if len(parts) > MAX_DEPTH:
        raise InvalidInputError(
            f"{label} is nested deeper than {MAX_DEPTH} levels: {key[:100]}…; if a link in it "
            "leads to a directory above it, remove that"
        )
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"the name {key!r} in {label} is not valid Unicode: rename it"
        ) from error
    return key


def require_size(key: str, nbytes: int, label: str) -> None:
    """Raise ``InvalidInputError`` for a value that is too long for a repository."""
    if nbytes > MAX_CHUNK_BYTES:
        raise InvalidInputError(
            f"{key} of {label} has {nbytes:,} bytes, and a chunk holds at most "
            f"{MAX_CHUNK_BYTES:,}: rewrite the array with smaller chunks"
        )


def changed(label: str, key: str = "") -> ConflictError:
    """Say that a source is not what it was when it was read."""
    what = f"{key} of {label}" if key else label
    return ConflictError(
        f"{what} was changed while it was imported, so nothing was committed: run the import "
        "again when nobody writes to it"
    )
