"""One small commit in an array that is large already: what it costs, and what it leaves."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np

from bench import system
from bench.engines import H5PY, ICECHUNK, OCDBT, OCDBT_TUNED, RAW, VERSIONED_HDF5, VZARR
from bench.harness import Case, Run, Workload
from bench.workloads.history import Changed, Changes, filled, part, percentile, values

ENGINES = (VZARR, ICECHUNK, OCDBT, OCDBT_TUNED, VERSIONED_HDF5, H5PY, RAW)
PAGE = 4096


def one_chunk(run: Run, *, chunks: int, commits: int, seconds: float) -> None:
    """Change chunks at random, each in a commit: so many, or as many as the seconds allow."""
    path = filled(run, chunks)
    run.warm_up()
    if run.engine is RAW:
        _one_page(run, path, commits)
        return
    random = np.random.default_rng(1)
    series: list[Changed] = []
    begin = time.perf_counter()
    with run.engine.open(path, write=True) as opened:
        changes = Changes(run, opened, path)
        first = changes.put(part(int(random.integers(chunks))), values(1) + 1)
        whole = time.perf_counter() - begin
        before, cpu = system.disk_bytes(path), time.process_time()
        while (len(series) < commits and time.perf_counter() - begin < seconds) or not series:
            chunk, new = int(random.integers(chunks)), random.random(values(1).size)
            series.append(changes.put(part(chunk), new))
        cpu, grown = time.process_time() - cpu, system.disk_bytes(path) - before
        assert np.array_equal(opened.array[part(chunk)], new)
    run.record("commit", statistics.median(one.commit for one in series) * 1e3, "ms")
    run.record("commit, p90", percentile([one.commit for one in series], 90) * 1e3, "ms")
    run.record("change", statistics.median(one.whole for one in series) * 1e3, "ms")
    run.record("change, p90", percentile([one.whole for one in series], 90) * 1e3, "ms")
    run.record("change, CPU", cpu / len(series) * 1e3, "ms")
    run.record("first commit", first.commit * 1e3, "ms")
    run.record("open and first change", whole * 1e3, "ms")
    run.record("on disk, each", grown / len(series) / 1024, "KiB")


def _one_page(run: Run, path: Path, commits: int) -> None:
    """Overwrite a page of a plain file and sync it: the least that a durable change can cost."""
    size = max(PAGE, path.stat().st_size // PAGE * PAGE)
    random, times = np.random.default_rng(1), []
    descriptor = os.open(path, os.O_WRONLY)
    for _ in range(commits):
        page, new = int(random.integers(size // PAGE)), random.bytes(PAGE)
        begin = time.perf_counter()
        os.pwrite(descriptor, new, page * PAGE)
        os.fdatasync(descriptor)
        times.append(time.perf_counter() - begin)
    os.close(descriptor)
    run.record("commit", statistics.median(times) * 1e3, "ms")
    run.record("commit, p90", percentile(times, 90) * 1e3, "ms")


def case(chunks: int, *engines: str, commits: int = 200, seconds: float = 3) -> Case:
    options = {"chunks": chunks, "commits": commits, "seconds": seconds}
    return Case(f"{chunks:,} chunks", options, engines)


# Where they take a minute to fill, or more, they are for a long run.
QUICK_TO_FILL = (VZARR.name, OCDBT_TUNED.name, H5PY.name, RAW.name)
WITHOUT_VERSIONED = tuple(engine.name for engine in ENGINES if engine is not VERSIONED_HDF5)

WORKLOADS = (
    Workload(
        number=3,
        name="commit",
        title="One chunk, committed",
        sentence=(
            "An array of chunks of 64 bytes is on disk; then one chunk after the other, chosen at "
            'random, is changed and committed. A "change" is all of it: begin, write one chunk, '
            'commit; "commit" is its end alone. "first" is the first one after the file was '
            "opened, when nothing is in memory. HDF5's files are synced after each change. The raw "
            "file has a page of it overwritten and synced: what the disk takes at least."
        ),
        engines=ENGINES,
        sizes={
            "tiny": (case(100, commits=5),),
            "laptop": (case(1_000), case(100_000), case(1_000_000, *QUICK_TO_FILL)),
            "large": (case(1_000), case(100_000), case(1_000_000, *WITHOUT_VERSIONED)),
        },
        measure=one_chunk,
        chart=("commit", "change"),
    ),
)
