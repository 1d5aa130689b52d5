"""How large an encoded chunk gets when it is decoded, told before it is.

A chunk of a kilobyte may decompress to gigabytes, whatever its array says of its size. zarr and its
codecs decode it all the same and look at the size afterwards. So where vzarr decodes what may be a
stranger's, it asks here first: sizes are taken from the headers of compressed data where these say
them, and else found by decompressing piece by piece, keeping nothing.

Only the compressors that come with zarr are known. A codec of another package is the user's own
choice to install, and taken as it is.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Measure = Callable[[bytes, int], bool]
"""Whether encoded bytes get no larger than a limit; raises what stdlib's decoders raise."""

MAX_DECODED_BYTES = 2**30
"""A chunk that is larger when decoded is not taken apart: that takes many times its size."""
# Between a compressor and the array there may be a checksum, or another way to spell the elements.
_SLACK_FACTOR, _SLACK_BYTES = 4, 1 << 16
_PIECE_BYTES = 1 << 18
_EXTENT = struct.Struct("<QQ")
_NO_CHUNK = (2**64 - 1, 2**64 - 1)
_CRC32C_BYTES = 4


class InflationError(Exception):
    """Why a chunk is not to be decoded."""


def require_bounded(
    document: Mapping[str, Any], chunk: bytes, lengths: Sequence[int], item_bytes: int
) -> None:
    """Make sure that a chunk gets about as large as its array says, and not much larger.

    ``document`` is the array's ``zarr.json`` or ``.zarray``; an element has ``item_bytes``. Raises
    ``InflationError``. O(compressed bytes), and for compressors whose data do not tell their size,
    decompressing once.
    """
    if document.get("zarr_format") == 3:
        codecs = _codecs(document.get("codecs"))
    else:
        compressor = document.get("compressor")
        codecs = _codecs([*(document.get("filters") or ()), *([compressor] if compressor else [])])
    try:
        _require(codecs, chunk, lengths, item_bytes)
    except InflationError:
        raise
    except Exception as error:
        # What cannot be measured cannot be decoded either; nothing is certain of a stranger's data.
        raise InflationError(f"its size cannot be told: {type(error).__name__}") from error


def _codecs(specs: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Give names and configurations, of either format's way to name a codec."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for spec in specs or ():
        given: Mapping[str, Any] = {"name": spec} if isinstance(spec, str) else spec
        name = str(given.get("name") or given.get("id"))
        found.append((name.removeprefix("numcodecs."), given.get("configuration") or {}))
    return found


def _require(
    codecs: Sequence[tuple[str, Mapping[str, Any]]],
    chunk: bytes,
    lengths: Sequence[int],
    item_bytes: int,
) -> None:
    size = math.prod(lengths) * item_bytes
    measured = [name for name, _ in codecs if name in _MEASURES]
    shards = [configuration for name, configuration in codecs if name == "sharding_indexed"]
    if len(measured) + len(shards) > 1:
        raise InflationError(
            "it is compressed more than once, so that nobody can tell how large it gets"
        )
    for name in measured:
        if not _MEASURES[name](chunk, min(size * _SLACK_FACTOR + _SLACK_BYTES, MAX_DECODED_BYTES)):
            raise InflationError(
                f"its {len(chunk):,} bytes would become far more than the {size:,} that a chunk of "
                "its array has"
            )
    for shard in shards:
        inner = _codecs(shard.get("codecs"))
        for part in _parts(shard, chunk, lengths):
            _require(inner, part, shard["chunk_shape"], item_bytes)


def _parts(shard: Mapping[str, Any], chunk: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    """Give the encoded chunks in a shard."""
    number = math.prod(
        -(-length // inner) for length, inner in zip(lengths, shard["chunk_shape"], strict=True)
    )
    names = [name for name, _ in _codecs(shard.get("index_codecs"))]
    if names not in (["bytes"], ["bytes", "crc32c"]):
        raise InflationError("the index of a shard is compressed")
    nbytes = number * _EXTENT.size + _CRC32C_BYTES * (len(names) - 1)
    if nbytes > len(chunk):
        raise InflationError("a shard is shorter than its index")
    at_start = shard.get("index_location", "end") == "start"
    index = chunk[:nbytes] if at_start else chunk[len(chunk) - nbytes :]
    for start, length in _EXTENT.iter_unpack(index[: number * _EXTENT.size]):
        if (start, length) != _NO_CHUNK:
            yield chunk[start : start + length]


# ── compressors ──────────────────────────────────────────────────────────────────────────────────


def _zlib_fits(data: bytes, limit: int) -> bool:
    """Of zlib and gzip; of the latter several members may follow each other."""
    total = 0
    while data:
        # 32 more than the greatest window: zlib finds out which of the two it is.
        decoder = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
        while not decoder.eof:
            piece = decoder.decompress(data, _PIECE_BYTES)
            total += len(piece)
            data = decoder.unconsumed_tail
            if total > limit:
                return False
            if not piece and not data:
                break
        data = decoder.unused_data.lstrip(b"\0")
    return True


def _bz2_fits(data: bytes, limit: int) -> bool:
    import bz2

    return _stream_fits(bz2.BZ2Decompressor, data, limit)


def _lzma_fits(data: bytes, limit: int) -> bool:
    import lzma

    # Of what it looks back on it makes room for as much as a header says.
    memory = 2 * limit + (16 << 20)
    return _stream_fits(lambda: lzma.LZMADecompressor(memlimit=memory), data, limit)


def _stream_fits(begin: Callable[[], Any], data: bytes, limit: int) -> bool:
    total = 0
    while data:
        decoder = begin()
        while not decoder.eof:
            piece = decoder.decompress(data, _PIECE_BYTES)
            total += len(piece)
            data = b""
            if total > limit:
                return False
            if decoder.needs_input:
                return True
        data = decoder.unused_data
    return True


def _header_fits(offset: int) -> Measure:
    """Of a compressor that says the size in 32 bits, and writes no more than that."""

    def fits(data: bytes, limit: int) -> bool:
        return int(struct.unpack_from("<I", data, offset)[0]) <= limit

    return fits


_ZSTD_MAGIC, _ZSTD_BLOCK_BYTES = b"\x28\xb5\x2f\xfd", 1 << 17
_ZSTD_SKIPPABLE = range(0x184D2A50, 0x184D2A60)


def _zstd_fits(data: bytes, limit: int) -> bool:
    """Of frames that say their size, that; of others the most that their blocks can become."""
    total = position = 0
    while position < len(data):
        if int.from_bytes(data[position : position + 4], "little") in _ZSTD_SKIPPABLE:
            position += 8 + int(struct.unpack_from("<I", data, position + 4)[0])
            continue
        if data[position : position + 4] != _ZSTD_MAGIC:
            raise ValueError("no frame of zstd")
        size, position, checksum = _zstd_header(data, position + 4)
        blocks, position = _zstd_blocks(data, position)
        total += blocks if size is None else size
        position += checksum
        if total > limit:
            return False
    return True


def _zstd_header(data: bytes, position: int) -> tuple[int | None, int, int]:
    """Give the size that a frame says, where its blocks begin, and the length of its checksum."""
    flags = data[position]
    single = flags >> 5 & 1
    position += 1 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    size = int.from_bytes(data[position : position + width], "little") if width else None
    if size is not None and width == 2:
        size += 256
    return size, position + width, 4 * (flags >> 2 & 1)


def _zstd_blocks(data: bytes, position: int) -> tuple[int, int]:
    """Give the most that the blocks of a frame can become, and where they end."""
    total, last = 0, 0
    while not last:
        header = int.from_bytes(data[position : position + 3], "little")
        if position + 3 > len(data):
            raise ValueError("a frame of zstd is cut")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        total += _ZSTD_BLOCK_BYTES if kind == 2 else size
        position += 3 + (1 if kind == 1 else size)
    return total, position


_MEASURES: dict[str, Measure] = {
    "gzip": _zlib_fits,
    "zlib": _zlib_fits,
    "bz2": _bz2_fits,
    "lzma": _lzma_fits,
    "zstd": _zstd_fits,
    "blosc": _header_fits(4),
    "lz4": _header_fits(0),
}
