"""zarr's codec pipeline for arrays in a ``VzarrStore``: many chunks in one go, read where they lie.

zarr's default pipeline makes several tasks of its event loop for every chunk, which take longer
than vzarr takes to find one. Since 3.3 zarr has another that does without them; here it becomes the
default for arrays in a ``VzarrStore``, and for no others. A batch of chunks is cut into parts, and
threads take one part after the other; small chunks are not worth a second thread, which would
wait for the first one's GIL. A part is read inside one txn, so that chunks are verified and decoded
in LMDB's own memory, without being copied first.

zarr 3.1 and 3.2 have no such pipeline. There the default one gets bigger batches.
"""

from __future__ import annotations

import asyncio
import math
import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import zarr
from zarr.abc.codec import Codec, CodecPipeline
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core import codec_pipeline as pipelines
from zarr.core.array import create_codec_pipeline
from zarr.core.buffer import default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline
from zarr.storage import StorePath

from vzarr.errors import InvalidInputError
from vzarr.plaincodec import Plain, cut
from vzarr.system import cores

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer

    from vzarr.objects import Bytes
    from vzarr.store import VzarrStore

_IS_FUSED = hasattr(pipelines, "FusedCodecPipeline")
# Without the fused pipeline, none is made of the class below.
_Fused: Any = getattr(pipelines, "FusedCodecPipeline", BatchedCodecPipeline)

Get: TypeAlias = "Callable[[str], Bytes | None]"
Put: TypeAlias = "Callable[[str, Buffer | bytes | None], None]"
# A chunk of a batch: where it is, what it is, which part of it, where that goes, if it is all.
_Item: TypeAlias = "tuple[Any, ArraySpec, Any, Any, bool]"

_BYTES = np.dtype(np.uint8)
_VARIABLE = "VZARR_PIPELINE"
_SETTING = "codec_pipeline.path"
_ZARRS_DEFAULT = "zarr.core.codec_pipeline.BatchedCodecPipeline"

# A part of a batch is as many chunks as have this many bytes decoded, or so many.
_PART_BYTES = 4 << 20
_PART_CHUNKS = 1000
# With smaller chunks threads wait longer for each other's GIL than they work side by side.
_PARALLEL_BYTES = 64 << 10
# So much is read sooner than another thread could begin with it.
_INLINE_BYTES = 64 << 10
_INLINE_CHUNKS = 16
# Without the fused pipeline: so many small chunks go through zarr's event loop at once.
_BATCH_SIZE = 100


@final
class VzarrCodecPipeline(_Fused):  # type: ignore[misc]
    """What zarr's setting ``codec_pipeline.path`` names once vzarr is used.

    For arrays in any other store it makes zarr's own default pipeline. Thread-safe.
    """

    @classmethod
    def from_codecs(
        cls, codecs: Iterable[Codec], *, batch_size: int | None = None
    ) -> CodecPipeline:
        """Make zarr's default pipeline."""
        return BatchedCodecPipeline.from_codecs(codecs, batch_size=batch_size)

    @classmethod
    def from_array_metadata_and_store(cls, array_metadata: Any, store: Store) -> CodecPipeline:
        """Make the pipeline of an array in a ``VzarrStore``; else zarr tries ``from_codecs``."""
        from vzarr.store import VzarrStore

        if not isinstance(store, VzarrStore):
            raise NotImplementedError
        # zarr takes what from_codecs makes, as of now the class that the setting names.
        plain = create_codec_pipeline(array_metadata)
        if not isinstance(plain, BatchedCodecPipeline):
            return plain
        if not _IS_FUSED:
            return replace(plain, batch_size=_batch_size(array_metadata))
        transform = _transform_of(plain)
        if transform is None:
            return plain
        made: CodecPipeline = cls(
            codecs=tuple(plain),
            array_array_codecs=plain.array_array_codecs,
            array_bytes_codec=plain.array_bytes_codec,
            bytes_bytes_codecs=plain.bytes_bytes_codecs,
            sync_transform=transform,
            batch_size=plain.batch_size,
        )
        return made

    async def read(
        self, batch_info: Iterable[_Item], out: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> tuple[Any, ...]:
        """Read and decode chunks into ``out``, and tell of each whether it was there."""
        batch = list(batch_info)
        store = _store_of(batch)
        if store is None:
            return tuple(await super().read(batch, out, drop_axes))
        results: list[Any] = [None] * len(batch)
        plain = self._plain(batch, out, drop_axes)

        def read_part(part: slice) -> None:
            with _no_view_kept(), store.reading() as get:
                results[part] = self._read_part(plain, batch[part], out, drop_axes, get)

        # Some wait for the disk while others decode.
        await _share(batch, read_part, inline=True, threads=_workers(2))
        return tuple(results)

    async def write(
        self, batch_info: Iterable[_Item], value: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> None:
        """Encode chunks and write them: in the end they are staged, or those of a fork written."""
        batch = list(batch_info)
        store = _store_of(batch)
        if store is None:
            await super().write(batch, value, drop_axes)
            return
        plain = self._plain(batch, value, drop_axes)

        def write_part(part: slice) -> None:
            with store.writing() as put:
                items = batch[part]
                if plain is not None:
                    items = _write_plain(plain, items, value, put)
                targets = [(_Target(store, put, path.path), *rest) for path, *rest in items]
                self.write_sync(targets, value, drop_axes)

        await _share(batch, write_part, inline=not store.waits, threads=_workers(1))

    def _read_part(
        self,
        plain: Plain | None,
        items: list[_Item],
        out: NDBuffer,
        drop_axes: tuple[int, ...],
        get: Get,
    ) -> list[Any]:
        found = [None] * len(items) if plain is None else _read_plain(plain, items, out, get)
        others = [number for number, result in enumerate(found) if result is None]
        sources = [(_Source(get, items[n][0].path), *items[n][1:]) for n in others]
        for number, result in zip(others, self.read_sync(sources, out, drop_axes), strict=True):
            found[number] = result
        return found

    def _plain(
        self, batch: list[_Item], array: NDBuffer, drop_axes: tuple[int, ...]
    ) -> Plain | None:
        """Find out how to read or write the chunks without asking zarr about each, if one can."""
        spec = batch[0][1]
        if drop_axes or any(item[1] is not spec for item in batch):
            return None
        return Plain.of(spec, self.codecs, array)


def _read_plain(plain: Plain, items: list[_Item], out: NDBuffer, get: Get) -> list[Any]:
    """Read chunks as zarr would, and tell of each whether it was there; None if zarr must read."""
    target: Any = out.as_ndarray_like()
    results: list[Any] = []
    for path, _, chunk, where, _ in items:
        data = get(path.path)
        if data is None:
            target[where] = plain.fill
            results.append({"status": "missing"})
            continue
        part = plain.decode(data)
        if part is None:
            results.append(None)
            continue
        target[where] = cut(part, chunk)
        results.append({"status": "present"})
    return results


def _write_plain(plain: Plain, items: list[_Item], value: NDBuffer, put: Put) -> list[_Item]:
    """Write chunks as zarr would, and give those that zarr must write."""
    source: Any = value.as_ndarray_like()
    if source.ndim == 0:
        return items
    others = []
    for item in items:
        path, _, _, where, is_all = item
        data = plain.encode(cut(source, where)) if is_all else None
        if data is None:
            others.append(item)
        else:
            put(path.path, data)
    return others


@final
class _Source:
    """A chunk's value as a codec pipeline reads it, all of it or parts; looked up once."""

    __slots__ = ("_data", "_get", "_path")

    def __init__(self, get: Get, path: str) -> None:
        self._get = get
        self._path = path
        self._data: Bytes | None = None

    def get_sync(
        self, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Give the value in LMDB's memory, or None."""
        if self._data is None:
            self._data = self._get(self._path)
        return None if self._data is None else to_buffer(self._data, prototype, byte_range)


@final
class _Target:
    """Where a codec pipeline writes a chunk."""

    __slots__ = ("_path", "_put", "_store")

    def __init__(self, store: VzarrStore, put: Put, path: str) -> None:
        self._store = store
        self._put = put
        self._path = path

    def get_sync(self, prototype: BufferPrototype) -> Buffer | None:
        """Give what is there now, of which a part is to be replaced."""
        return self._store.get_sync(self._path, prototype=prototype)

    def set_sync(self, value: Buffer) -> None:
        """Write the chunk."""
        self._put(self._path, value)

    def delete_sync(self) -> None:
        """Delete it: it holds fill values only."""
        self._put(self._path, None)


def to_buffer(
    data: Bytes, prototype: BufferPrototype | None, byte_range: ByteRequest | None
) -> Buffer:
    """Make a zarr buffer of a value, or of the part of it that zarr asks for; copies nothing."""
    buffer = (prototype or default_buffer_prototype()).buffer
    if byte_range is None:
        return buffer.from_array_like(np.frombuffer(data, _BYTES))
    view = memoryview(data)
    match byte_range:
        case RangeByteRequest(start, end):
            part = view[start:end]
        case OffsetByteRequest(offset):
            part = view[offset:]
        case SuffixByteRequest(suffix):
            part = view[max(0, len(view) - suffix) :]
        case _:
            raise ValueError(f"Unexpected byte_range, got {byte_range}.")
    return buffer.from_bytes(part)


def _transform_of(plain: BatchedCodecPipeline) -> Any:
    """Make what runs the codecs without an event loop; None if one of them cannot."""
    # Beside the fused pipeline, and not there without it.
    from zarr.core.chunk_utils import ChunkTransform  # type: ignore[import-not-found,unused-ignore]

    try:
        return ChunkTransform(codecs=tuple(plain))
    except TypeError:
        return None


def _batch_size(metadata: Any) -> int:
    """Say how many chunks are to go through zarr's event loop at once."""
    return max(1, min(_BATCH_SIZE, _PART_BYTES // _nbytes(metadata.chunks, metadata.dtype)))


def _nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    return max(1, math.prod(shape) * int(dtype.to_native_dtype().itemsize))


def _store_of(batch: list[_Item]) -> VzarrStore | None:
    from vzarr.store import VzarrStore

    store = batch[0][0].store if batch and isinstance(batch[0][0], StorePath) else None
    return store if isinstance(store, VzarrStore) else None


async def _share(
    batch: list[_Item], work: Callable[[slice], None], *, inline: bool, threads: int
) -> None:
    """Have threads work on the parts of a batch; raise the first error once all have stopped."""
    spec = batch[0][1]
    nbytes = _nbytes(spec.shape, spec.dtype)
    if inline and len(batch) <= _INLINE_CHUNKS and len(batch) * nbytes <= _INLINE_BYTES:
        work(slice(0, len(batch)))
        return
    size = max(1, min(_PART_CHUNKS, _PART_BYTES // nbytes))
    parts = deque(slice(start, start + size) for start in range(0, len(batch), size))
    threads = min(len(parts), threads) if nbytes >= _PARALLEL_BYTES else 1
    try:
        outcomes = await asyncio.gather(
            *(asyncio.to_thread(_work_off, parts, work) for _ in range(threads)),
            return_exceptions=True,
        )
    finally:
        # Whoever waits for it no more does not want the rest.
        parts.clear()
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


def _work_off(parts: deque[slice], work: Callable[[slice], None]) -> None:
    try:
        while True:
            try:
                part = parts.popleft()
            except IndexError:
                return
            work(part)
    except BaseException:
        parts.clear()
        raise


def _workers(for_each_core: int) -> int:
    """Tell how many threads a batch may have, if zarr's settings do not."""
    given = zarr.config.get("codec_pipeline.max_workers", None)
    return max(1, int(given)) if given else for_each_core * cores()


@contextmanager
def _no_view_kept() -> Iterator[None]:
    """Take from an error's traceback what lies in LMDB's memory: it may be gone when one looks."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


def install() -> None:
    """Let zarr use this pipeline, unless its configuration or ``VZARR_PIPELINE=zarr`` says no.

    Done once, with the first store of the process: whatever is set later stands. Raises
    ``InvalidInputError`` for another value of the variable.
    """
    global _installed  # noqa: PLW0603 - as zarr's configuration, for the process
    if _installed:
        return
    wanted = os.environ.get(_VARIABLE, "")
    if wanted not in ("", "vzarr", "zarr"):
        raise InvalidInputError(
            f"the environment variable {_VARIABLE} is {wanted!r}; leave it out, or set it to "
            "'zarr' to have arrays read and written through zarr's own codec pipeline"
        )
    if wanted != "zarr" and zarr.config.get(_SETTING) == _ZARRS_DEFAULT:
        zarr.config.set({_SETTING: f"{__name__}.{VzarrCodecPipeline.__name__}"})
    _installed = True


_installed = False
register_pipeline(VzarrCodecPipeline)
