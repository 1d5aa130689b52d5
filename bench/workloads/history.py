"""What the workloads about history share: an array of many small chunks, changed one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import system
from bench.engines import H5PY, ICECHUNK, RAW, VERSIONED_HDF5, VZARR, Engine, Layout
from bench.harness import Run

ELEMENTS = 8
"""Elements of 8 bytes in a chunk: what is measured is the index, not the data."""
CHUNK_BYTES = 8 * ELEMENTS
MESSAGE = "change one chunk"
_SYNCED_FILES = {H5PY.name, VERSIONED_HDF5.name}
_SETS_AT_ONCE = 1000


def layout(chunks: int) -> Layout:
    return Layout((chunks * ELEMENTS,), (ELEMENTS,), "f8")


def part(chunk: int) -> slice:
    """Give the elements of a chunk."""
    return slice(chunk * ELEMENTS, (chunk + 1) * ELEMENTS)


def values(chunks: int) -> np.ndarray:
    """Make the elements of so many chunks, all different."""
    return np.random.default_rng(0).random(chunks * ELEMENTS)


def percentile(series: Iterable[float], percent: float) -> float:
    """Give the value that so many of a hundred do not exceed."""
    ordered = sorted(series)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


# ── an array that is there ───────────────────────────────────────────────────────────────────────


def filled(run: Run, chunks: int) -> Path:
    """Give an array of so many chunks on disk, as no process has it open or in memory."""
    path = run.prepared(f"{chunks}", lambda draft: run.afresh(fill, run.engine, draft, chunks))
    # The first commit should not have to sync what the copy wrote.
    system.fsync(path)
    return path


def fill(engine: Engine, path: Path, chunks: int) -> None:
    """Make an array of so many chunks.

    Through zarr a million chunks take minutes. Where a store can be written to directly, it gets
    the bytes that zarr would hand to it.
    """
    data = values(chunks)
    if engine.family == RAW.family:
        path.write_bytes(data.tobytes())
        return
    with engine.create(path, layout(chunks)) as opened:
        if engine.family == VZARR.family:
            _fill_vzarr(opened, data)
        elif engine.family == ICECHUNK.family:
            _fill_icechunk(opened, data)
        else:
            with opened.change("fill") as array:
                array[:] = data


def _fill_vzarr(opened: Any, data: np.ndarray) -> None:
    with opened.repo.transaction("main", "fill") as store:
        for number, chunk in enumerate(_chunks(data)):
            store.session.set(f"a/c/{number}", chunk)


def _fill_icechunk(opened: Any, data: np.ndarray) -> None:
    import asyncio

    from zarr.core.buffer import cpu
    from zarr.core.sync import sync

    chunks = list(_chunks(data))

    async def put(store: Any) -> None:
        for first in range(0, len(chunks), _SETS_AT_ONCE):
            batch = enumerate(chunks[first : first + _SETS_AT_ONCE], first)
            await asyncio.gather(
                *(
                    store.set(f"a/c/{number}", cpu.Buffer.from_bytes(chunk))
                    for number, chunk in batch
                )
            )

    with opened.repo.transaction("main", message="fill") as store:
        sync(put(store))


def _chunks(data: np.ndarray) -> Iterable[bytes]:
    raw = memoryview(data.tobytes())
    return (bytes(raw[at : at + CHUNK_BYTES]) for at in range(0, len(raw), CHUNK_BYTES))


# ── one change after the other ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Changed:
    """The seconds that one change took, from its begin to when it is durable, and its commit."""

    whole: float
    commit: float


class Changes:
    """Change an open array, one region a commit, on the clock.

    Files of HDF5 are synced after each flush, since that is one call; trees of files are not, where
    the engine does not do so itself.
    """

    def __init__(self, run: Run, opened: Any, path: Path) -> None:
        self.opened = opened
        self.file = path if run.engine.name in _SYNCED_FILES else None
        if self.file is not None:
            run.durable = True

    def put(self, region: Any, new: np.ndarray) -> Changed:
        return self._change(lambda array: array.__setitem__(region, new))

    def append(self, step: np.ndarray) -> Changed:
        """Add one step at the end of the first axis."""

        def lengthen(array: Any) -> None:
            length = array.shape[0]
            array.resize((length + 1, *step.shape))
            array[length] = step

        return self._change(lengthen)

    def _change(self, write: Callable[[Any], None]) -> Changed:
        begin = time.perf_counter()
        with self.opened.change(MESSAGE) as array:
            write(array)
            written = time.perf_counter()
        if self.file is not None:
            system.fsync(self.file)
        end = time.perf_counter()
        return Changed(end - begin, end - written)
