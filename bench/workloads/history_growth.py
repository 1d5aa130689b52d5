"""Thousands of small commits: what they leave on the disk, and what can be had back."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench import system
from bench.engines import ICECHUNK, OCDBT, OCDBT_TUNED, VERSIONED_HDF5, VZARR, Engine
from bench.harness import MIB, Case, Run, Workload
from bench.workloads.history import Changes, layout, part, values

ENGINES = (VZARR, ICECHUNK, OCDBT, OCDBT_TUNED, VERSIONED_HDF5)
MANY = (VZARR, ICECHUNK, OCDBT, OCDBT_TUNED)
CHUNKS = 10


def growth(run: Run, *, commits: int) -> None:
    """Change one of ten chunks in each of so many commits; then clean up."""
    run.warm_up()
    random, path = np.random.default_rng(2), run.path
    with run.engine.create(path, layout(CHUNKS)) as opened:
        changes = Changes(run, opened, path)
        begin = time.perf_counter()
        for number in range(commits):
            changes.put(part(number % CHUNKS), random.random(values(1).size))
        run.record("a commit", (time.perf_counter() - begin) / commits * 1e3, "ms")
        expected = opened.array[:]
    note_size(run, path, "before")
    clean_up = {VZARR.name: clean_up_vzarr, ICECHUNK.name: clean_up_icechunk}
    if run.engine.name in clean_up:
        clean_up[run.engine.name](run, path)
    with run.engine.open(path) as opened:
        assert np.array_equal(opened.array[:], expected)


def note_size(run: Run, path: Path, when: str) -> None:
    run.record(f"on disk, {when}", system.disk_bytes(path) / MIB, "MiB")
    run.record(f"files, {when}", system.count_files(path), "files")


def clean_up_vzarr(run: Run, path: Path) -> None:
    """List the commits, and free what none of them needs; then drop all but the last one."""
    import vzarr
    from vzarr.format import DIGEST_BYTES

    with vzarr.open(path) as repo:
        with run.clock("log", "ms"):
            commits = repo.log("main")
        with run.clock("gc + compact"):
            free(repo)
        note_size(run, path, "compact")
        usage = repo.du()
        live = usage.nbytes
        run.record("live data", live / MIB, "MiB")
        objects = usage.chunks + usage.nodes + usage.commits
        run.record("digests of it", objects * DIGEST_BYTES / MIB, "MiB")
        run.record("over live data", (system.disk_bytes(path) - live) / MIB, "MiB")
        repo.squash("main", since=commits[-1].id)
        free(repo)
        note_size(run, path, "without history")


def free(repo: Any) -> None:
    repo.expire(keep_last=0)
    repo.gc()
    repo.compact()


def clean_up_icechunk(run: Run, path: Path) -> None:
    """The same as for vzarr."""
    with run.engine.open(path, write=True) as opened:
        repo = opened.repo
        with run.clock("log", "ms"):
            list(repo.ancestry(branch="main"))
        with run.clock("gc + compact"):
            repo.garbage_collect(datetime.now(UTC))
        note_size(run, path, "compact")
        repo.expire_snapshots(datetime.now(UTC))
        repo.garbage_collect(datetime.now(UTC))
        note_size(run, path, "without history")


def case(commits: int, *engines: Engine, rounds: int | None = None) -> Case:
    names = tuple(engine.name for engine in engines)
    return Case(f"{commits:,} commits", {"commits": commits}, names, rounds)


WORKLOADS = (
    Workload(
        number=4,
        name="growth",
        title="Thousands of small commits",
        sentence=(
            "One of ten chunks of 64 bytes is changed and committed, thousands of times. On disk "
            '"before" anything is cleaned up; "compact", where all commits are kept; and "without '
            'history", where the last one is. "live data" are the bytes of all objects that the '
            "commits reach, not counting the digests under which these lie; "
            '"log" lists all commits. The others have no such clean-up in place.'
        ),
        engines=ENGINES,
        sizes={
            "tiny": (case(8),),
            # A version of versioned-hdf5 takes a tenth of a second, and longer with each.
            "laptop": (case(5_000, *MANY, rounds=1), case(100)),
            "large": (case(5_000, *MANY), case(500)),
        },
        measure=growth,
        chart=("on disk, before", "on disk, compact", "on disk, without history"),
    ),
)
