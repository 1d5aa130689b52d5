"""One node of a tree: two columns of keys and values, encoded and decoded as packed arrays."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, islice, pairwise
from operator import lt
from typing import TYPE_CHECKING, Any, final

import msgpack

from vzarr.errors import CorruptError

MAX_ENTRIES = 1024
"""A node holds no more; of nodes cut by hash alone, one in 10^14 would."""
MAX_LEVEL = 31
"""No level is higher; 2^64 of the worst keys would reach level 18."""
_FIELDS = 6
_MALFORMED = (ValueError, TypeError, RecursionError, struct.error, msgpack.UnpackException)
REFERENCE = struct.Struct("<32sQQ")
"""A value above level 0: the digest, count and nbytes of a node."""


@final
class Node:
    """One node, decoded: two lists of equal length, the keys strictly ascending. Never changed.

    The values of level 0 are the map's. Above, a value is a reference to the node whose last key is
    the entry's key: digest (32 bytes), count and nbytes (64 bits each, little-endian).

    Values of one width stay packed until somebody asks for the list of them. Who compares nodes
    looks at most values once, and memory for so many small objects costs more than to unpack them.
    """

    __slots__ = ("_is_seen", "_packed", "_row", "keys", "level", "values")

    keys: list[bytes]
    values: list[bytes]

    def __init__(
        self, level: int, keys: list[bytes], values: list[bytes] | bytes, width: int = 0
    ) -> None:
        """Values that are bytes lie back to back, all of one width."""
        self.level = level
        self.keys = keys
        self._packed: bytes | None = None
        if isinstance(values, bytes):
            self._packed = values
            self._row = row_of(f"{width}s", len(keys))
            self._is_seen = False
        else:
            self.values = values

    def row(self) -> Sequence[bytes]:
        """Give all values for one look at them: a list is kept from the second one on. O(n)."""
        packed = self._packed
        if packed is None or self._is_seen:
            return self.values
        self._is_seen = True
        return self._row.unpack(packed)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> list[bytes]:
            """Unpack the values at the first use: Python asks here for what is not there yet."""
            packed = self._packed if name == "values" else None
            if packed is not None:
                self.values = list(self._row.unpack(packed))
                self._packed = None
            # Another thread may have been faster.
            return object.__getattribute__(self, name)


def encode_node(level: int, keys: list[bytes], values: list[bytes]) -> bytes:
    """Encode a node: a msgpack array of level, number of entries, and two columns. O(n).

    A column is two fields: the width that all its items have, or where they differ, the offset at
    which each ends (32 bits each, little-endian); then the bytes of the items, back to back.
    """
    assert 0 <= level <= MAX_LEVEL, "no such level"
    assert 0 < len(keys) == len(values) <= MAX_ENTRIES, "wrong number of entries"
    assert ascend(keys), "keys out of order"
    key_ends, key_bytes = _pack_column(keys)
    value_ends, value_bytes = _pack_column(values)
    assert level == 0 or value_ends == REFERENCE.size, "references of the wrong size"
    fields = [level, len(keys), key_ends, key_bytes, value_ends, value_bytes]
    packed: bytes = msgpack.packb(fields)
    return packed


def decode_node(data: bytes) -> Node:
    """Decode a node: exactly the bytes that ``encode_node`` makes, else ``CorruptError``. O(n).

    Sizes, order and spelling are checked; what takes other nodes to tell, ``Tree.check`` does.
    """
    try:
        fields = _unpack(data)
        level, n, key_ends, key_bytes, value_ends, value_bytes = fields
        # msgpack reads several spellings of the same fields, but writes one.
        if msgpack.packb(fields) != data:
            raise ValueError("it is not spelled canonically")
        keys = _unpack_column(n, key_ends, key_bytes)
        if not ascend(keys):
            raise ValueError("its keys are out of order")
        if level and value_ends != REFERENCE.size:
            raise ValueError("its references have the wrong size")
        if type(value_ends) is int:
            _require_column(n, value_ends, value_bytes)
            return Node(level, keys, value_bytes, value_ends)
        return Node(level, keys, _unpack_column(n, value_ends, value_bytes))
    except _MALFORMED as error:
        raise _damaged(error) from error


def decode_values(data: bytes) -> tuple[int, int, bytes]:
    """Read the level of a node and its values alone, which must be of one width: that, and all.

    For nodes whose digest was compared: what is wrong with their keys or spelling is not seen, and
    it takes a third of the time. Raises ``CorruptError``.
    """
    try:
        level, n, _, _, width, values = _unpack(data)
        if type(width) is not int or type(values) is not bytes or len(values) != n * width:
            raise ValueError("its values are not of one width")
    except _MALFORMED as error:
        raise _damaged(error) from error
    return level, width, values


def _unpack(data: bytes) -> list[Any]:
    # None of the fields is a list, so that nothing is made only because a header claims it.
    fields: list[Any] = msgpack.unpackb(data, max_array_len=_FIELDS, max_map_len=0, max_ext_len=0)
    level, n, *_ = fields
    if not (type(level) is type(n) is int and 0 <= level <= MAX_LEVEL and 0 < n <= MAX_ENTRIES):
        raise ValueError("its level or its size is impossible")
    return fields


def _damaged(error: Exception) -> CorruptError:
    return CorruptError(f"a tree node is damaged: {error or type(error).__name__}")


def _pack_column(items: list[bytes]) -> tuple[int | bytes, bytes]:
    widths = set(map(len, items))
    if len(widths) == 1:
        return widths.pop(), b"".join(items)
    return struct.pack(f"<{len(items)}I", *accumulate(map(len, items))), b"".join(items)


def _require_column(n: int, width: int, data: bytes) -> None:
    if type(data) is not bytes:
        raise TypeError("a column is not of bytes")
    if len(data) != n * width:
        raise ValueError("a column has the wrong length")


def _unpack_column(n: int, ends: int | bytes, data: bytes) -> list[bytes]:
    if type(ends) is int:
        _require_column(n, ends, data)
        return list(row_of(f"{ends}s", n).unpack(data))
    if type(ends) is not bytes or type(data) is not bytes:
        raise TypeError("the widths of a column are neither a number nor offsets")
    offsets = (0, *row_of("I", n).unpack(ends))
    items = [data[start:end] for start, end in pairwise(offsets)]
    # Offsets that go back, or beyond the data, or spell one width, do not come out again.
    if offsets[-1] != len(data) or _pack_column(items)[0] != ends:
        raise ValueError("a column has the wrong offsets")
    return items


@lru_cache(maxsize=4096)
def row_of(item: str, n: int) -> struct.Struct:
    """Make the layout of n items; to unpack them in one go is four times as fast as in a loop."""
    return struct.Struct("<" + item * n)


def ascend(keys: list[bytes]) -> bool:
    """Whether keys are in strictly ascending order. O(n)."""
    return all(map(lt, keys, islice(keys, 1, None)))
