"""Chunks whose bytes are numbers in a row: what zarr does with each, found out once for all.

zarr asks anew for every chunk which data type its bytes have, and in which order, and wraps them
several times; for a chunk of some bytes that takes longer than to find it. What comes out, for
numbers that are stored as they lie in memory, is no more than a view. Here is that view, and the
way back; compressors and checksums are zarr's own, called as zarr calls them.

Whatever is not as plain as that is left to zarr: other types and codecs (``Plain.of`` gives None),
a chunk that has not the size it should have, or may be empty (``decode`` and ``encode`` do). So its
errors, and its rule of what is empty, are zarr's own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import numpy.typing as npt
from zarr.codecs import BytesCodec
from zarr.core.buffer import cpu

from vzarr.objects import LARGE_BYTES, Bytes

if TYPE_CHECKING:
    from zarr.abc.codec import Codec
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

Array: TypeAlias = npt.NDArray[Any]

_BYTES = np.dtype(np.uint8)
_NUMBERS = "biufc"


@final
class Plain:
    """How to decode and encode the chunks of one ``ArraySpec``. Thread-safe."""

    __slots__ = ("_codecs", "_dtype", "_first", "_nbytes", "_spec", "fill")

    def __init__(self, spec: ArraySpec, dtype: np.dtype[Any], codecs: tuple[Any, ...]) -> None:
        """``codecs`` make bytes of bytes, in the order of encoding."""
        self.fill: Any = spec.fill_value
        """What missing chunks are full of."""
        # What an empty chunk begins with.
        self._first = self.fill.item()
        self._spec = spec
        self._dtype = dtype
        self._codecs = codecs
        self._nbytes = math.prod(spec.shape) * dtype.itemsize

    @classmethod
    def of(cls, spec: ArraySpec, codecs: tuple[Codec, ...], array: NDBuffer) -> Plain | None:
        """Find out how to, for chunks that go into ``array`` or come from it; None if zarr must."""
        serializer, numbers = codecs[0], _numpy_array(array)
        if type(serializer) is not BytesCodec or spec.prototype != cpu.buffer_prototype:
            return None
        dtype = spec.dtype.to_native_dtype()
        if (
            dtype.kind not in _NUMBERS
            or not _is_order(serializer.endian, dtype)
            or numbers is None
            or numbers.dtype != dtype
            # Only then Python compares the two as numpy does.
            or getattr(spec.fill_value, "dtype", None) != dtype.newbyteorder("=")
        ):
            return None
        return cls(spec, dtype, codecs[1:])

    def decode(self, data: Bytes) -> Array | None:
        """Give the numbers of a chunk, without a copy where none was compressed; None for zarr."""
        if not self._codecs:
            if len(data) != self._nbytes:
                return None
            return np.ndarray(self._spec.shape, self._dtype, data)
        buffer: Buffer = cpu.Buffer(np.frombuffer(data, _BYTES))
        for codec in reversed(self._codecs):
            buffer = codec._decode_sync(buffer, self._spec)  # noqa: SLF001 - as zarr's pipeline
        found = buffer.as_numpy_array()
        if found.nbytes != self._nbytes:
            return None
        return found.view(self._dtype).reshape(self._spec.shape)

    def encode(self, part: Array) -> Buffer | bytes | None:
        """Give the bytes to store for a part of an array that is a whole chunk; None for zarr."""
        if part.shape != self._spec.shape:
            return None
        if not self._spec.config.write_empty_chunks:
            first = part.item(0)
            # Of those that are not equal to themselves, zarr takes one for the other.
            if first == self._first or (first != first and self._first != self._first):
                return None
        if not self._codecs and self._nbytes < LARGE_BYTES:
            return part.tobytes()
        buffer: Buffer = cpu.Buffer(part.ravel().view(_BYTES))
        for codec in self._codecs:
            encoded = codec._encode_sync(buffer, self._spec)  # noqa: SLF001 - as zarr's pipeline
            if encoded is None:
                return None
            buffer = encoded
        return buffer


def _numpy_array(array: NDBuffer) -> Array | None:
    """Give what zarr has wrapped, unless it is something that has its own ways."""
    data: object = array.as_ndarray_like()
    return data if type(array) is cpu.NDBuffer and type(data) is np.ndarray else None


def _is_order(endian: Any, dtype: np.dtype[Any]) -> bool:
    """Whether numbers that are stored in an order of bytes, "little" or "big", are so in memory."""
    return dtype.itemsize == 1 if endian is None else dtype.newbyteorder(endian) == dtype


def cut(array: Array, where: Any) -> Array:
    """Give a part of an array, a view where numpy can; never a scalar of numpy's."""
    return np.asanyarray(array[where])
