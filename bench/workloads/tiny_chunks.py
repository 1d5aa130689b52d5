"""Chunks of 64 bytes: what an engine costs where there is next to nothing to copy."""

from __future__ import annotations

import statistics
import time

import numpy as np

from bench import system
from bench.engines import (
    H5PY,
    ICECHUNK,
    LOCAL_STORE,
    MEMORY_STORE,
    MEMORY_STORE_FUSED,
    OCDBT,
    OCDBT_TUNED,
    TENSORSTORE,
    VERSIONED_HDF5,
    VZARR,
    VZARR_NEVER,
    VZARR_ZARR_PIPELINE,
    ZIP_STORE,
    Engine,
    Layout,
)
from bench.harness import Case, Run, Workload

ELEMENTS = 16
"""Elements of 4 bytes in a chunk."""

QUICK = (VZARR, VZARR_NEVER, MEMORY_STORE_FUSED, H5PY)
"""Those with which 100,000 chunks take seconds, and not minutes."""


def tiny_chunks(run: Run, *, chunks: int, lookups: int) -> None:
    """Write all chunks in one go, read them in one go, then some alone."""
    data = np.arange(1, chunks * ELEMENTS + 1, dtype="i4")
    engine = run.engine
    run.warm_up()
    with (
        engine.create(run.path, Layout(data.shape, (ELEMENTS,), "i4")) as opened,
        run.clock("write", "µs", amount=chunks, cpu=True),
        opened.change("all") as array,
    ):
        array[:] = data
    if run.durable is not None:
        if run.durable is False:
            system.fsync(run.path)
        run.space()
    with engine.open(run.path) as opened:
        array = opened.array
        with run.clock("read", "µs", amount=chunks, cpu=True):
            found = array[:]
        assert np.array_equal(found, data)
        times = []
        for chunk in np.random.default_rng(1).integers(chunks, size=lookups):
            begin = time.perf_counter()
            found = array[chunk * ELEMENTS : (chunk + 1) * ELEMENTS]
            times.append(time.perf_counter() - begin)
            assert found[0] == chunk * ELEMENTS + 1
    run.record("one chunk alone", statistics.median(times) * 1e6, "µs")


def case(chunks: int, lookups: int, *engines: Engine, rounds: int | None = None) -> Case:
    options = {"chunks": chunks, "lookups": lookups}
    names = tuple(engine.name for engine in engines)
    return Case(f"{chunks:,} chunks", options, names, rounds)


WORKLOADS = (
    Workload(
        number=2,
        name="tiny_chunks",
        title="Chunks of 64 bytes",
        sentence=(
            "An array of int32 in chunks of 64 bytes is written in one go, the commit included, "
            "and read in one go; times are for each chunk. Then random chunks are read, each by "
            "itself."
        ),
        engines=(
            VZARR,
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
        ),
        sizes={
            "tiny": (case(300, 10, *QUICK, ICECHUNK, MEMORY_STORE, LOCAL_STORE),),
            "laptop": (case(100_000, 500, *QUICK), case(10_000, 500, rounds=2)),
            "large": (case(100_000, 500), case(1_000_000, 500, *QUICK)),
        },
        measure=tiny_chunks,
        chart=("write", "read"),
    ),
)
