"""Whole arrays: written and durable, read back from the page cache and from the disk."""

from __future__ import annotations

import statistics
import time
from typing import Literal

import numpy as np

from bench import system
from bench.engines import (
    H5PY,
    ICECHUNK,
    LOCAL_STORE,
    MEMCPY,
    MEMORY_STORE,
    MEMORY_STORE_FUSED,
    OCDBT,
    OCDBT_TUNED,
    RAW,
    TENSORSTORE,
    VERSIONED_HDF5,
    VZARR,
    VZARR_FIRST,
    VZARR_NEVER,
    VZARR_ZARR_PIPELINE,
    ZIP_STORE,
    Engine,
    Layout,
)
from bench.harness import MIB, Case, Run, Workload

ENGINES = (
    VZARR,
    VZARR_FIRST,
    VZARR_NEVER,
    VZARR_ZARR_PIPELINE,
    ICECHUNK,
    LOCAL_STORE,
    ZIP_STORE,
    MEMORY_STORE,
    MEMORY_STORE_FUSED,
    H5PY,
    VERSIONED_HDF5,
    TENSORSTORE,
    OCDBT,
    OCDBT_TUNED,
    RAW,
    MEMCPY,
)
TARGETS = (
    VZARR,
    VZARR_NEVER,
    ICECHUNK,
    LOCAL_STORE,
    MEMORY_STORE_FUSED,
    H5PY,
    TENSORSTORE,
    OCDBT,
    RAW,
    MEMCPY,
)
"""Those that the figures to reach are about, and the fastest peers."""
OTHERS = (VZARR, *(engine for engine in ENGINES if engine not in TARGETS))
FEW = (VZARR, ICECHUNK, LOCAL_STORE, MEMORY_STORE_FUSED, H5PY, OCDBT)
CHUNKED = (*FEW, VZARR_ZARR_PIPELINE, ZIP_STORE, MEMORY_STORE, VERSIONED_HDF5)

READS = 3
PIECES = 64
"""How many pieces smooth data are made in: sines of a whole GiB take their time and memory."""


def values(kind: Literal["random", "smooth"], count: int) -> np.ndarray:
    """Make float32 data: noise that no codec makes smaller, or waves with three digits."""
    if kind == "random":
        return np.random.default_rng(3).random(count, dtype="f4")
    data = np.empty(count, "f4")
    for number, piece in enumerate(np.array_split(data, PIECES)):
        place = np.arange(piece.size, dtype="f4") / 1000
        # No two pieces are alike: this is not about what is stored once.
        piece[:] = (15 + number / 10 + 10 * np.sin(place) + np.sin(place * 17)).round(3)
    return data


def bulk(run: Run, *, kind: Literal["random", "smooth"], megabytes: int, chunk_bytes: int) -> None:
    """Write an array in one go, and read it warm and cold."""
    data = values(kind, megabytes * MIB // 4)
    layout = Layout(data.shape, (chunk_bytes // 4,), "f4", compressed=kind == "smooth")
    engine = run.engine
    run.warm_up(compressed=layout.compressed)
    system.warm_memory(2 * data.nbytes)
    with run.peak("peak RSS, write"), run.clock("write + fsync", "MiB/s", amount=megabytes):
        with (
            run.clock("write", "MiB/s", amount=megabytes, cpu=True),
            engine.create(run.path, layout) as opened,
            opened.change("bulk") as array,
        ):
            array[:] = data
        if run.durable is False:
            system.fsync(run.path)
    if run.durable is not None:
        run.space()
    with engine.open(run.path) as opened:
        # Once to check it, and to have it in the page cache; then for the clock.
        assert np.array_equal(opened.array[:], data)
    size = data.nbytes
    del data
    system.warm_memory(size)
    cpu = time.process_time()
    with run.peak("peak RSS, read"):
        times = [read(run) for _ in range(READS)]
    run.record("warm read", megabytes / statistics.median(times), "MiB/s")
    run.record("warm read, CPU", (time.process_time() - cpu) / READS, "s")
    if run.durable is not None:
        system.evict(run.path)
        run.record("cold read", megabytes / read(run), "MiB/s")


def read(run: Run) -> float:
    """Open and read the array, and give the seconds that it took."""
    begin = time.perf_counter()
    with run.engine.open(run.path) as opened:
        opened.array[:]
    return time.perf_counter() - begin


def case(
    name: str,
    kind: str,
    megabytes: int,
    chunk_bytes: int,
    engines: tuple[Engine, ...],
    rounds: int | None = None,
) -> Case:
    options = {"kind": kind, "megabytes": megabytes, "chunk_bytes": chunk_bytes}
    names = tuple(engine.name for engine in engines)
    return Case(f"{megabytes:,} MiB, {name}", options, names, rounds)


def cases(megabytes: int, smaller: int, rounds: int) -> tuple[Case, ...]:
    """Give the case that the figures to reach are about, and those beside it, with less data."""
    return (
        case("random, raw, chunks of 1 MiB", "random", megabytes, MIB, TARGETS),
        case("smooth, default codec, chunks of 1 MiB", "smooth", smaller, MIB, CHUNKED, rounds),
        case("random, raw, chunks of 16 MiB", "random", smaller, 16 * MIB, FEW, rounds),
        case("random, raw, chunks of 64 KiB", "random", smaller, 64 << 10, FEW, rounds),
        case("random, raw, chunks of 1 MiB, others", "random", smaller, MIB, OTHERS, rounds),
    )


WORKLOADS = (
    Workload(
        number=1,
        name="bulk",
        title="A whole array",
        sentence=(
            "An array of float32 is written in one go and read back in one go, opening and "
            'closing included. "write" ends where the engine says that it is done; "write + '
            'fsync" also syncs the files of engines that do not do so themselves. A warm read '
            "finds the files in the page cache, a cold read begins without."
        ),
        engines=ENGINES,
        sizes={
            "tiny": (
                case("random, raw", "random", 2, MIB, ENGINES),
                case("smooth, default codec", "smooth", 2, MIB, FEW),
            ),
            "laptop": cases(1024, 128, rounds=2),
            "large": cases(4096, 1024, rounds=5),
        },
        measure=bulk,
        chart=("write + fsync", "warm read", "cold read"),
    ),
)
