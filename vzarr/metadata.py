"""What vzarr reads in zarr's metadata documents: kind of node, chunk keys, grid, attributes.

zarr's own classes are not used: they import asyncio's world, build codecs, and refuse documents
that a later zarr will write. vzarr needs five facts, and where it does not understand a document it
says so with None and treats the node's keys as plain files.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from vzarr.documents import MAX_DOCUMENT_BYTES, parse_document
from vzarr.format import MAX_NDIM, Blob, Layout

Kind = Literal["array", "group"]
Region = tuple[slice, ...]
"""The part of an array that a chunk covers: one slice a dimension, clipped to the shape."""

# As many chunks the edge lists of a grid may stand for; each is a number in memory.
_MAX_EDGES = 2**20
# Keys of a document that may change while the stored chunks keep their meaning.
_SOFT_KEYS = {"shape", "attributes", "dimension_names", "consolidated_metadata"}


@dataclass(frozen=True, slots=True)
class ArrayMetadata:
    """What vzarr knows of an array: from ``zarr.json`` or ``.zarray``."""

    shape: tuple[int, ...]
    grid: tuple[int | tuple[int, ...], ...] | None
    """For each dimension the chunk length, or the lengths of all its chunks; None if unknown."""
    layout: Layout | None
    dtype: str
    encoding: str
    """Canonical JSON of all that gives chunks their meaning; without shape and attributes."""

    def region(self, coordinates: tuple[int, ...]) -> Region | None:
        """Find which part of the array a chunk covers; None where it lies outside of the shape."""
        if self.grid is None or len(coordinates) != len(self.shape):
            return None
        slices = []
        for index, chunks, length in zip(coordinates, self.grid, self.shape, strict=True):
            if isinstance(chunks, int):
                start, stop = index * chunks, min((index + 1) * chunks, length)
            elif index < len(chunks):
                start = sum(chunks[:index])
                stop = min(start + chunks[index], length)
            else:
                return None
            if start >= stop:
                return None
            slices.append(slice(start, stop))
        return tuple(slices)

    def chunks_of(self, region: Region) -> tuple[range, ...] | None:
        """Find the chunk coordinates that a region touches, one range a dimension."""
        if self.grid is None or len(region) != len(self.shape):
            return None
        ranges = []
        for part, chunks, length in zip(region, self.grid, self.shape, strict=True):
            start, stop, _ = part.indices(length)
            if isinstance(chunks, int):
                step = max(chunks, 1)
                ranges.append(range(start // step, -(-stop // step)))
            else:
                ends = list(accumulate(chunks))
                ranges.append(range(bisect_left(ends, start + 1), bisect_left(ends, stop) + 1))
        return tuple(ranges)


@dataclass(frozen=True, slots=True)
class NodeMetadata:
    """The kind, attributes and, for an array, shape and chunking of one node."""

    kind: Kind
    attributes: Mapping[str, Any]
    array: ArrayMetadata | None = None


_cache: dict[tuple[tuple[str, bytes], ...], NodeMetadata | None] = {}
_CACHE_LIMIT = 4096
_LARGE_BYTES = 2**16


def node_metadata(
    documents: Mapping[str, Blob], read: Callable[[Blob], bytes]
) -> NodeMetadata | None:
    """Read a node's documents, ``zarr.json`` before Zarr format 2's; None if they make no node.

    O(size of the documents), cached by their digests.
    """
    if not documents:
        return None
    key = tuple((name, blob.digest) for name, blob in sorted(documents.items()))
    try:
        return _cache[key]
    except KeyError:
        pass
    parsed = {name: _parse(blob, read) for name, blob in documents.items() if name != ".zmetadata"}
    metadata = _read_v3(parsed.get("zarr.json")) or _read_v2(parsed)
    # Documents are a few hundred bytes; what is much larger would fill the memory.
    if sum(blob.length for blob in documents.values()) <= _LARGE_BYTES:
        if len(_cache) >= _CACHE_LIMIT:
            _cache.clear()
        _cache[key] = metadata
    return metadata


def layout_of(documents: Mapping[str, Blob], read: Callable[[Blob], bytes]) -> Layout | None:
    """Find how an array's chunk keys are spelled; None for what is no array vzarr understands."""
    metadata = node_metadata(documents, read)
    if metadata is None or metadata.array is None:
        return None
    return metadata.array.layout


def _parse(blob: Blob, read: Callable[[Blob], bytes]) -> Mapping[str, Any] | None:
    # One that is too long is not even read.
    return parse_document(read(blob)) if blob.length <= MAX_DOCUMENT_BYTES else None


def _read_v3(document: Mapping[str, Any] | None) -> NodeMetadata | None:
    if document is None or document.get("zarr_format") != 3:
        return None
    attributes = _mapping(document.get("attributes"))
    match document.get("node_type"):
        case "group":
            return NodeMetadata("group", attributes)
        case "array":
            shape = _shape(document.get("shape"))
            if shape is None:
                return None
            layout = _v3_layout(document.get("chunk_key_encoding"), len(shape))
            grid = _v3_grid(document.get("chunk_grid"), len(shape))
            dtype = document.get("data_type")
            name = dtype.get("name") if isinstance(dtype, dict) else dtype
            array = ArrayMetadata(shape, grid, layout, str(name), _encoding(document))
            return NodeMetadata("array", attributes, array)
    return None


def _read_v2(documents: Mapping[str, Mapping[str, Any] | None]) -> NodeMetadata | None:
    attributes = _mapping(documents.get(".zattrs"))
    document = documents.get(".zarray")
    if document is not None and document.get("zarr_format") == 2:
        shape = _shape(document.get("shape"))
        if shape is None:
            return None
        separator = document.get("dimension_separator", ".")
        layout = _layout({".": 2, "/": 3}, separator, len(shape))
        chunks = _shape(document.get("chunks"))
        grid = chunks if chunks is not None and len(chunks) == len(shape) else None
        dtype = json.dumps(document.get("dtype")).strip('"')
        array = ArrayMetadata(shape, grid, layout, dtype, _encoding(document))
        return NodeMetadata("array", attributes, array)
    group = documents.get(".zgroup")
    if group is not None and group.get("zarr_format") == 2:
        return NodeMetadata("group", attributes)
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _shape(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or len(value) > MAX_NDIM:
        return None
    if not all(map(_is_length, value)):
        return None
    return tuple(value)


def _layout(codes: Mapping[str, int], separator: Any, ndim: int) -> Layout | None:
    code = codes.get(separator) if isinstance(separator, str) else None
    return None if code is None else Layout(code, ndim)


def _v3_layout(encoding: Any, ndim: int) -> Layout | None:
    if isinstance(encoding, str):
        encoding = {"name": encoding}
    encoding = _mapping(encoding)
    configuration = _mapping(encoding.get("configuration"))
    match encoding.get("name"):
        case "default":
            return _layout({"/": 0, ".": 1}, configuration.get("separator", "/"), ndim)
        case "v2":
            return _layout({".": 2, "/": 3}, configuration.get("separator", "."), ndim)
    return None


def _v3_grid(grid: Any, ndim: int) -> tuple[int | tuple[int, ...], ...] | None:
    grid = _mapping(grid)
    configuration = _mapping(grid.get("configuration"))
    match grid.get("name"):
        case "regular":
            chunks = _shape(configuration.get("chunk_shape"))
            return chunks if chunks is not None and len(chunks) == ndim else None
        case "rectilinear":
            shapes = configuration.get("chunk_shapes")
            if not isinstance(shapes, list) or len(shapes) != ndim:
                return None
            return _edges(shapes)
    return None


def _edges(shapes: list[Any]) -> tuple[int | tuple[int, ...], ...] | None:
    """Expand a rectilinear grid."""
    grid: list[int | tuple[int, ...]] = []
    room = _MAX_EDGES
    for shape in shapes:
        lengths = _edge_lengths(shape, room)
        if lengths is None:
            return None
        grid.append(lengths)
        room -= 1 if isinstance(lengths, int) else len(lengths)
    return tuple(grid)


def _edge_lengths(spec: Any, room: int) -> int | tuple[int, ...] | None:
    """Expand one dimension of a rectilinear grid: a length, or lengths and [length, repeats]."""
    if _is_length(spec):
        return int(spec)
    if not isinstance(spec, list):
        return None
    lengths: list[int] = []
    for item in spec:
        length, repeats = item if isinstance(item, list) and len(item) == 2 else (item, 1)
        if not _is_length(length) or not _is_length(repeats):
            return None
        if len(lengths) + repeats > room:
            return None
        lengths += [length] * repeats
    return tuple(lengths)


def _is_length(value: Any) -> bool:
    return type(value) is int and value >= 0


def _encoding(document: Mapping[str, Any]) -> str:
    hard = {key: value for key, value in document.items() if key not in _SOFT_KEYS}
    return json.dumps(hard, sort_keys=True)
