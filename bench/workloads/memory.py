"""What a transaction holds in memory until it is committed."""

from __future__ import annotations

import numpy as np

from bench import system
from bench.engines import (
    H5PY,
    ICECHUNK,
    MEMORY_STORE_FUSED,
    OCDBT,
    VERSIONED_HDF5,
    VZARR,
    VZARR_ZARR_PIPELINE,
    Engine,
    Layout,
)
from bench.harness import MIB, Case, Run, Workload

SLAB = 1000
"""How many small chunks are written at once."""


def big_transaction(run: Run, *, chunks: int, chunk_bytes: int) -> None:
    """Write random chunks, one or a slab of small ones at a time, and commit them all at once."""
    random = np.random.default_rng(0)
    slab = 1 if chunk_bytes >= MIB else SLAB
    layout = Layout((chunks * chunk_bytes,), (chunk_bytes,), "u1")
    run.warm_up()
    with (
        run.engine.create(run.path, layout) as opened,
        run.peak(),
        run.clock("write", "MiB/s", amount=chunks * chunk_bytes / MIB),
        opened.change("big") as array,
    ):
        before = system.resident_bytes()
        for begin in range(0, layout.shape[0], slab * chunk_bytes):
            data = np.frombuffer(random.bytes(slab * chunk_bytes), "u1")
            array[begin : begin + data.size] = data
        held = max(0, system.resident_bytes() - before) / chunks
    if slab > 1:
        run.record("held a chunk", held, "bytes")


def case(name: str, chunks: int, chunk_bytes: int, *engines: Engine) -> Case:
    options = {"chunks": chunks, "chunk_bytes": chunk_bytes}
    # Memory is much the same each time.
    return Case(name, options, tuple(engine.name for engine in engines), rounds=1)


def cases(gigabytes: int, tiny: int) -> tuple[Case, ...]:
    return (
        case(f"{gigabytes} GiB in chunks of 1 MiB", gigabytes << 10, MIB),
        case(f"{tiny:,} chunks of 64 bytes", tiny, 64),
    )


WORKLOADS = (
    Workload(
        number=10,
        name="memory",
        title="Memory of a transaction",
        sentence=(
            "Random bytes are written in one transaction, chunk after chunk, and committed. Peak "
            "RSS is how far resident memory rose above what it was before, at most; what an "
            "engine holds for each small chunk is measured just before the commit. The engines "
            "without transactions show what zarr and the system take by themselves."
        ),
        engines=(
            VZARR,
            VZARR_ZARR_PIPELINE,
            ICECHUNK,
            MEMORY_STORE_FUSED,
            H5PY,
            VERSIONED_HDF5,
            OCDBT,
        ),
        sizes={
            "tiny": (case("4 MiB in chunks of 1 MiB", 4, MIB),),
            # More than some of the engines have memory for.
            "laptop": (
                case("10 GiB in chunks of 1 MiB", 10 << 10, MIB, VZARR),
                *cases(2, 100_000),
            ),
            "large": cases(10, 1_000_000),
        },
        measure=big_transaction,
        chart=("peak RSS",),
    ),
)
