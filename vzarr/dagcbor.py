"""DAG-CBOR and content ids (CIDs), as far as CAR files with Zarr data have them.

DAG-CBOR is CBOR with one spelling for each value: lengths and integers as short as they go, floats
in 64 bits, the keys of a map sorted by length and then by bytes, and tag 42 for links alone. A
reader that encodes again what it decoded, and compares, so refuses every other spelling.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, final

from vzarr.errors import CorruptError, FormatError, InvalidInputError

RAW, DAG_CBOR = 0x55, 0x71
"""What a block holds: bytes as they are, or a value in DAG-CBOR."""
CID_BYTES = 36
"""The length of a CID of version 1 with a SHA-256 digest."""
MAX_VARINT_BYTES = 9
MAX_DEPTH = 310
"""So deep may values be nested: as groups, and a document below."""

_VERSION, _SHA2_256, _DIGEST_BYTES = 1, 0x12, 32
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _LIST, _MAP, _TAG, _SIMPLE = range(8)
_FALSE, _TRUE, _NULL, _FLOAT64 = 20, 21, 22, 27
_LINK_TAG = 42
_HASHES = {0x00: "identity", 0x13: "sha2-512", 0x1E: "blake3", 0xB220: "blake2b-256"}


@final
class Cid(NamedTuple):
    """The id of a block: what it holds, and the SHA-256 digest of its bytes."""

    codec: int
    digest: bytes

    @classmethod
    def of(cls, codec: int, data: bytes | memoryview) -> Cid:
        """Compute the id of a block. O(n), without the GIL."""
        return cls(codec, hashlib.sha256(data).digest())

    def encode(self) -> bytes:
        """Give its 36 bytes."""
        return bytes((_VERSION, self.codec, _SHA2_256, _DIGEST_BYTES)) + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(self.encode()).decode().lower().rstrip("=")


def decode_cid(data: bytes) -> Cid:
    """Read the CID that bytes begin with.

    Raises ``FormatError`` for one of another version, hash or codec, and ``CorruptError``.
    """
    if data[:2] == bytes((_SHA2_256, _DIGEST_BYTES)):
        raise FormatError("it has CIDs of version 0; make it anew with CIDs of version 1")
    numbers, rest = [], data
    for _ in range(4):
        number, length = decode_varint(rest)
        numbers.append(number)
        rest = rest[length:]
    version, codec, function, size = numbers
    if version != _VERSION or codec not in (RAW, DAG_CBOR):
        raise FormatError(
            f"it has a CID of version {version} and codec 0x{codec:x}; version 1 with raw (0x55) "
            "and dag-cbor (0x71) can be read"
        )
    if function != _SHA2_256:
        name = _HASHES.get(function, f"0x{function:x}")
        raise FormatError(f"it has a CID with the hash {name}; sha2-256 can be read")
    if size != _DIGEST_BYTES or len(rest) < _DIGEST_BYTES:
        raise CorruptError("a CID in it is cut off")
    return Cid(codec, rest[:_DIGEST_BYTES])


def encode_varint(number: int) -> bytes:
    """Encode a length: seven bits a byte, the lowest first."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def decode_varint(data: bytes) -> tuple[int, int]:
    """Read the number that bytes begin with, and of how many it is. Raises ``CorruptError``."""
    number = 0
    for index, byte in enumerate(data[:MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if byte == 0 and index:
                break
            return number, index + 1
    raise CorruptError("a number in it is cut off, or spelled too long")


# ── encoding ─────────────────────────────────────────────────────────────────────────────────────


def encode(value: Any) -> bytes:
    """Encode a value of JSON's types, bytes and ``Cid`` for a link. O(n log n).

    Raises ``InvalidInputError`` for what DAG-CBOR has no spelling for: NaN and infinity, integers
    of more than 64 bits, text that is no Unicode.
    """
    parts: list[bytes] = []
    try:
        _encode(value, parts)
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"text that is no Unicode has no DAG-CBOR: {error}") from error
    return b"".join(parts)


def _encode(value: Any, parts: list[bytes]) -> None:
    match value:
        case Cid():
            link = b"\0" + value.encode()
            parts += (_head(_TAG, _LINK_TAG), _head(_BYTES, len(link)), link)
        case dict():
            parts.append(_head(_MAP, len(value)))
            for key, item in sorted(_keys(value)):
                parts += (_head(_TEXT, len(key[1])), key[1])
                _encode(value[item], parts)
        case list():
            parts.append(_head(_LIST, len(value)))
            for item in value:
                _encode(item, parts)
        case str():
            data = value.encode()
            parts += (_head(_TEXT, len(data)), data)
        case bytes():
            parts += (_head(_BYTES, len(value)), value)
        case None | bool():
            simple = _NULL if value is None else _TRUE if value else _FALSE
            parts.append(_head(_SIMPLE, simple))
        case int() if -(2**64) <= value < 2**64:
            parts.append(_head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value))
        case float() if math.isfinite(value):
            parts.append(bytes((_SIMPLE << 5 | _FLOAT64,)) + struct.pack(">d", value))
        case _:
            raise InvalidInputError(f"{value!r:.100} has no DAG-CBOR")


def _keys(value: dict[Any, Any]) -> Iterator[tuple[tuple[int, bytes], str]]:
    for key in value:
        data = key.encode()
        yield (len(data), data), key


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes((major << 5 | number,))
    for width, size in enumerate((1, 2, 4, 8)):
        if number < 1 << 8 * size:
            return bytes((major << 5 | 24 + width,)) + number.to_bytes(size, "big")
    raise AssertionError(f"{number} has more than 64 bits")


# ── decoding ─────────────────────────────────────────────────────────────────────────────────────


def decode(data: bytes) -> Any:
    """Decode a value. O(n log n); takes memory some ten to sixty times as large as the bytes.

    Raises ``CorruptError`` for what is no DAG-CBOR, or has another spelling than the one.
    """
    decoder = _Decoder(data)
    value = decoder.value(0)
    try:
        again = encode(value)
    except InvalidInputError as error:
        raise CorruptError(f"DAG-CBOR is malformed: {error}") from error
    if again != data:
        raise CorruptError("DAG-CBOR is malformed: not spelled as it must be, or cut off")
    return value


@final
class _Decoder:
    """One pass over bytes; what it takes for granted is found out by encoding again."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise CorruptError(f"DAG-CBOR is nested more than {MAX_DEPTH} deep")
        first = self._take(1)[0]
        major, short = first >> 5, first & 0x1F
        if first == _SIMPLE << 5 | _FLOAT64:
            number: float = struct.unpack(">d", self._take(8))[0]
            return number
        if short > 27:
            raise CorruptError("DAG-CBOR is malformed: it has no lengths without a number")
        count = short if short < 24 else int.from_bytes(self._take(1 << short - 24), "big")
        match major:
            case 0:
                return count
            case 1:
                return -1 - count
            case 2:
                return self._take(count)
            case 3:
                return self._text(count)
            case 4:
                # Each takes a byte at least: a count that lies comes to the end of the bytes.
                return [self.value(depth + 1) for _ in range(count)]
            case 5:
                return {self._key(): self.value(depth + 1) for _ in range(count)}
            case 6:
                return self._link(count, depth)
        if count not in (_FALSE, _TRUE, _NULL):
            raise CorruptError(f"DAG-CBOR is malformed: it has no simple value {count}")
        return None if count == _NULL else count == _TRUE

    def _key(self) -> str:
        key = self.value(MAX_DEPTH)
        if not isinstance(key, str):
            raise CorruptError("DAG-CBOR is malformed: the keys of a map are texts")
        return key

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode()
        except UnicodeDecodeError as error:
            raise CorruptError(f"DAG-CBOR is malformed: a text is no UTF-8: {error}") from error

    def _link(self, tag: int, depth: int) -> Cid:
        link = self.value(depth + 1) if tag == _LINK_TAG else None
        if not isinstance(link, bytes) or link[:1] != b"\0":
            raise CorruptError("DAG-CBOR is malformed: its one tag is 42, for links")
        # What follows the CID is found out by encoding again.
        return decode_cid(link[1:])

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) < count:
            raise CorruptError("DAG-CBOR is malformed: it is cut off")
        self._at += count
        return data
