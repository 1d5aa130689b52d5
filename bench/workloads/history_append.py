"""A series that grows by a step at a time, each step a commit."""

from __future__ import annotations

import statistics
import time

import numpy as np

from bench.engines import (
    H5PY,
    ICECHUNK,
    LOCAL_STORE,
    MEMORY_STORE,
    OCDBT,
    OCDBT_TUNED,
    VERSIONED_HDF5,
    VZARR,
    Layout,
)
from bench.harness import Case, Run, Workload
from bench.workloads.history import Changed, Changes

ENGINES = (VZARR, ICECHUNK, OCDBT, OCDBT_TUNED, VERSIONED_HDF5, H5PY, LOCAL_STORE, MEMORY_STORE)
SHAPE = (90, 180)
"""Of a step: a field of two degrees, 63 KiB of float32, in one chunk."""


def append(run: Run, *, steps: int, several: int) -> None:
    """Append steps. The first and the last ``several`` show whether the cost grows."""
    run.warm_up()
    random = np.random.default_rng(2)
    series: list[Changed] = []
    with run.engine.create(run.path, Layout((0, *SHAPE), (1, *SHAPE), "f4")) as opened:
        changes = Changes(run, opened, run.path)
        cpu = 0.0
        for _ in range(steps):
            step = random.random(SHAPE, "f4")
            begin = time.process_time()
            series.append(changes.append(step))
            cpu += time.process_time() - begin
        assert tuple(opened.array.shape) == (steps, *SHAPE)
        assert np.array_equal(opened.array[steps - 1], step)
    whole = [one.whole * 1e3 for one in series]
    first, last = statistics.median(whole[:several]), statistics.median(whole[-several:])
    run.record("all steps", sum(whole) / 1e3, "s")
    run.record("a step", statistics.median(whole), "ms")
    run.record("a step, p90", sorted(whole)[len(whole) * 9 // 10], "ms")
    run.record("a step, CPU", cpu / steps * 1e3, "ms")
    run.record(f"first {several}", first, "ms")
    run.record(f"last {several}", last, "ms")
    run.record("last / first", last / first, "times")
    run.record("commit", statistics.median(one.commit for one in series) * 1e3, "ms")
    if run.durable is not None:
        run.space()


def case(steps: int, several: int) -> Case:
    return Case(f"{steps:,} steps", {"steps": steps, "several": several})


WORKLOADS = (
    Workload(
        number=6,
        name="append",
        title="A time step at a time",
        sentence=(
            "An array is resized by one step of 63 KiB along its first axis, the step is written, "
            'and both are committed, one step after the other. "last / first" compares the last '
            "hundred with the first hundred: more than 1 is a cost that grows with the series. "
            "HDF5's files are synced after each step. h5py, LocalStore and MemoryStore keep no "
            "versions; MemoryStore is what zarr itself takes to open, resize and write an array. "
            '"commit" is what comes after the step is written.'
        ),
        engines=ENGINES,
        sizes={
            "tiny": (case(8, 2),),
            "laptop": (case(1_000, 100),),
            "large": (case(1_000, 100), case(10_000, 100)),
        },
        measure=append,
        chart=("a step",),
    ),
)
