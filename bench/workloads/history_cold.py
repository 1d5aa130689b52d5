"""A cold start: open what somebody else has written, and read one chunk of it."""

from __future__ import annotations

import importlib
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import system
from bench.engines import (
    H5PY,
    ICECHUNK,
    LOCAL_STORE,
    OCDBT,
    OCDBT_TUNED,
    VERSIONED_HDF5,
    VZARR,
    Engine,
)
from bench.harness import Case, Run, Workload
from bench.workloads.history import filled, part, values

ENGINES = (VZARR, ICECHUNK, OCDBT, OCDBT_TUNED, VERSIONED_HDF5, H5PY, LOCAL_STORE)


@dataclass(frozen=True, slots=True)
class Start:
    """The seconds of one start: for the imports; then to open, and with the chunk, also of CPU."""

    imports: float
    opening: float
    whole: float
    cpu: float


def cold_start(run: Run, *, chunks: int, starts: int) -> None:
    """Start that many processes that open and read, and as many more without a page cache."""
    path = filled(run, chunks)
    chunk = chunks // 3
    expected = values(chunks)[part(chunk)]
    warm: list[Start] = []
    evicted: list[Start] = []
    for _ in range(starts):
        warm.append(run.afresh(open_and_read, run.engine, path, chunk, expected))
        system.evict(path)
        evicted.append(run.afresh(open_and_read, run.engine, path, chunk, expected))
    run.record("open + chunk", statistics.median(one.whole for one in warm) * 1e3, "ms")
    run.record("open + chunk, CPU", statistics.median(one.cpu for one in warm) * 1e3, "ms")
    run.record("open", statistics.median(one.opening for one in warm) * 1e3, "ms")
    from_disk = statistics.median(one.whole for one in evicted)
    run.record("open + chunk, from disk", from_disk * 1e3, "ms")
    imports = statistics.median(one.imports for one in warm)
    run.record("imports beyond zarr's", imports * 1e3, "ms")


def open_and_read(engine: Engine, path: Path, chunk: int, expected: np.ndarray) -> Start:
    """Time the opening and the reading in this process, which has done neither with this file."""
    imports = import_packages(engine)
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        engine.warm_up(Path(name) / "data")
    begin, cpu = time.perf_counter(), time.process_time()
    with engine.open(path) as opened:
        open_at = time.perf_counter()
        read = opened.array[part(chunk)]
        end, cpu = time.perf_counter(), time.process_time() - cpu
        assert np.array_equal(read, expected)
    return Start(imports, open_at - begin, end - begin, cpu)


def import_packages(engine: Engine) -> float:
    """Time what an engine's packages import that zarr has not."""
    importlib.import_module("zarr")
    begin = time.perf_counter()
    for name in engine.modules or engine.packages:
        importlib.import_module(name)
    return time.perf_counter() - begin


def case(chunks: int, *engines: Engine, starts: int = 2) -> Case:
    options = {"chunks": chunks, "starts": starts}
    return Case(f"{chunks:,} chunks", options, tuple(engine.name for engine in engines))


WORKLOADS = (
    Workload(
        number=5,
        name="cold",
        title="A cold start",
        sentence=(
            "A fresh process has all imports done and has worked on another file; then it opens an "
            "array of chunks of 64 bytes and reads one of them, through zarr where the engine has "
            'zarr\'s arrays. "from disk" is the same after the files were dropped from the page '
            "cache."
        ),
        engines=ENGINES,
        sizes={
            "tiny": (case(100, VZARR, ICECHUNK, starts=1),),
            "laptop": (
                case(1_000),
                case(100_000, VZARR, ICECHUNK, OCDBT, OCDBT_TUNED, H5PY),
                case(1_000_000, VZARR, OCDBT_TUNED, H5PY),
            ),
            "large": (
                case(1_000),
                case(100_000),
                case(1_000_000, VZARR, ICECHUNK, OCDBT, OCDBT_TUNED, H5PY),
            ),
        },
        measure=cold_start,
        chart=("open + chunk", "open + chunk, from disk"),
    ),
)
