"""What trust costs: checks, backups, digests on read, opening with care, collecting garbage."""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import system
from bench.engines import VZARR, Layout
from bench.harness import MIB, Case, Run, Workload
from bench.workloads.history import CHUNK_BYTES, fill, filled

OPENINGS = 20


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


# ── a big file ───────────────────────────────────────────────────────────────────────────────────


def fill_bulk(path: Path, *, chunks: int) -> None:
    """Make a file with an array of so many chunks of 1 MiB of random bytes."""
    random = np.random.default_rng(0)
    layout = Layout((chunks * MIB,), (MIB,), "u1")
    with VZARR.create(path, layout) as opened, opened.change("fill") as array:
        for begin in range(0, chunks * MIB, MIB):
            array[begin : begin + MIB] = np.frombuffer(random.bytes(MIB), "u1")


def plain_copy(source: Path, target: Path) -> None:
    """Copy a file durably."""
    # The system's calls that copy within the kernel may share the blocks and copy nothing.
    with source.open("rb") as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, 4 * MIB)
        new.flush()
        os.fsync(new.fileno())


def whole_file(run: Run, *, chunks: int) -> None:
    """Check, copy, back up and compact one file, and read it with and without digests."""
    import zarr

    import vzarr

    path = run.prepared("bulk.vzarr", partial(fill_bulk, chunks=chunks))
    target = run.directory / "copy"
    size = path.stat().st_size / MIB
    with vzarr.open(path) as repo:
        calls: dict[str, Callable[[], object]] = {
            "check quick": lambda: repo.check("quick"),
            "check full": lambda: repo.check("full"),
            "plain copy + fsync": partial(plain_copy, path, target),
            "backup": partial(repo.backup, target),
            "compact": repo.compact,
        }
        # Once through the file, so that all find it in the page cache.
        repo.check("full")
        for name, call in calls.items():
            target.unlink(missing_ok=True)
            run.record(name, size / seconds(call), "MiB/s")
    for verify in ("never", "first", "always"):
        with vzarr.open(path, "r", verify=verify) as repo:
            array = zarr.open_array(repo.store("main"), path="a", mode="r")
            seconds(lambda array=array: array[:])
            took = statistics.median(seconds(lambda array=array: array[:]) for _ in range(3))
            run.record(f'warm read, verify="{verify}"', size / took, "MiB/s")


# ── opening, and garbage ─────────────────────────────────────────────────────────────────────────


def bare_open(path: Path) -> None:
    """Open and close the file with LMDB alone."""
    import lmdb

    from vzarr.environment import DATABASES

    handle = lmdb.open(
        str(path), subdir=False, readonly=True, max_dbs=len(DATABASES), map_size=64 << 30
    )
    for name in DATABASES:
        handle.open_db(name.encode(), create=False)
    with handle.begin() as txn:
        txn.get(b"meta")
    handle.close()


def import_vzarr() -> float:
    """Give the seconds that an import of vzarr takes where zarr is there already."""
    import zarr  # noqa: F401

    begin = time.perf_counter()
    import vzarr  # noqa: F401

    return time.perf_counter() - begin


def opening(run: Run, *, chunks: int, imports: int) -> None:
    """Open and close a file, beside LMDB; import the package."""
    import vzarr

    path = filled(run, chunks)
    calls: dict[str, Callable[[], object]] = {
        "open and close, LMDB alone": partial(bare_open, path),
        'open and close, "r"': lambda: vzarr.open(path, "r").close(),
        'open and close, "r+"': lambda: vzarr.open(path, "r+").close(),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(OPENINGS + 1):
        for name, call in calls.items():
            took = seconds(call)
            # The first of each reads the file in.
            if number:
                times[name].append(took)
    for name, series in times.items():
        run.record(name, statistics.median(series) * 1e3, "ms")
    took = statistics.median(run.afresh(import_vzarr) for _ in range(imports))
    run.record("import vzarr, after zarr", took * 1e3, "ms")


def collection(run: Run, *, chunks: int, commits: int) -> None:
    """Collect garbage: once where nothing is to go, once where all commits but the first are."""
    import vzarr

    path = run.path
    fill(run.engine, path, chunks)
    with vzarr.open(path) as repo:
        first = repo.branches["main"]
        change(repo, chunks, commits)
        # A session keeps its commit for as long as somebody could read through it.
        gc.collect()
        with run.clock("gc, nothing to delete"):
            repo.gc()
        repo.branches.reset("main", first)
        repo.expire(keep_last=0)
        before = system.disk_bytes(path)
        with run.clock("gc, all to delete"):
            report = repo.gc()
        run.record("deleted chunks", report.chunks, "chunks")
        repo.compact()
        run.record("on disk before", before / MIB, "MiB")
        run.space(path, "on disk after compact")


def change(repo: Any, chunks: int, commits: int) -> None:
    """Write as many chunks as the array has, at random, in so many commits."""
    random = np.random.default_rng(1)
    session = repo.session("main")
    for number in range(commits):
        for chunk in random.integers(chunks, size=max(1, chunks // commits)):
            session.set(f"a/c/{chunk}", random.bytes(CHUNK_BYTES))
        session.commit(f"change {number}")
    session.close()


# ── all of it ────────────────────────────────────────────────────────────────────────────────────


def trust(run: Run, *, what: Callable[..., None], **options: int) -> None:
    run.warm_up()
    what(run, **options)


def cases(
    megabytes: int, *, open_sizes: tuple[int, ...], imports: int, chunks: int, commits: int
) -> tuple[Case, ...]:
    whole = {"what": whole_file, "chunks": megabytes}
    garbage = {"what": collection, "chunks": chunks, "commits": commits}
    openings = [
        Case(f"opening, {size:,} chunks", {"what": opening, "chunks": size, "imports": imports})
        for size in open_sizes
    ]
    return (
        Case(f"a file of {megabytes} MiB", whole),
        *openings,
        Case(f"garbage of {commits:,} commits over {chunks:,} chunks", garbage, rounds=1),
    )


USUAL = {"open_sizes": (1_000, 1_000_000), "imports": 3, "chunks": 100_000, "commits": 1_000}

WORKLOADS = (
    Workload(
        number=12,
        name="trust",
        title="What trust costs",
        sentence=(
            "Checks, backups and compaction stand beside a plain copy of the same file; opening "
            "beside LMDB's own, which checks nothing. All files are in the page cache."
        ),
        engines=(VZARR,),
        sizes={
            "tiny": cases(4, open_sizes=(100,), imports=1, chunks=100, commits=10),
            "laptop": cases(512, **USUAL),
            "large": cases(4096, **USUAL),
        },
        measure=trust,
    ),
)
