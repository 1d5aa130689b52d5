"""What trust costs: ``python -m bench.trust [--tiny] [--rounds N]``.

Times of check, backup and compact beside a plain copy of the same file, of opening beside LMDB's
own, of reading with and without digests, and of a collection of garbage. What is compared takes
turns, so that a slow moment of the machine hits all; medians of the rounds. Files lie in one
temporary directory on disk, and are in the system's cache.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import zarr

import vzarr
from bench.figures import MIB, chunked_repository
from vzarr.environment import DATABASES


def take_turns(rounds: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Give the median of the seconds that each call takes, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-1, rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if number >= 0:
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(series) for name, series in times.items()}


def bulk(path: Path, chunks: int) -> None:
    """Make a file with an array of so many chunks of 1 MiB of random bytes."""
    random = np.random.default_rng(0)
    with vzarr.open(path, "w") as repo, repo.transaction("main", "fill") as store:
        array = zarr.create_array(
            store, name="a", shape=(chunks * MIB,), chunks=(MIB,), dtype="u1", compressors=None
        )
        for number in range(chunks):
            array[number * MIB : (number + 1) * MIB] = np.frombuffer(random.bytes(MIB), "u1")


def copy(source: Path, target: Path) -> None:
    """Copy a file durably."""
    # The system's calls that copy within the kernel may share the blocks and copy nothing.
    with source.open("rb") as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, 4 * MIB)
        new.flush()
        os.fsync(new.fileno())


def whole_file(directory: Path, chunks: int, rounds: int) -> None:
    """Check, copy, back up and compact one big file."""
    path, target = directory / "bulk.vzarr", directory / "copy.vzarr"
    bulk(path, chunks)
    size = path.stat().st_size

    def afresh(work: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            target.unlink(missing_ok=True)
            work()

        return call

    with vzarr.open(path) as repo:
        seconds = take_turns(
            rounds,
            {
                "check quick": lambda: repo.check("quick"),
                "check full": lambda: repo.check("full"),
                "plain copy + fsync": afresh(lambda: copy(path, target)),
                "backup": afresh(lambda: repo.backup(target)),
                "compact": repo.compact,
            },
        )
    plain = seconds["plain copy + fsync"]
    for name, took in seconds.items():
        rate = size / took / MIB
        print(f"{name:<20} {size / MIB:8,.0f} MiB {took:7.3f} s {rate:8,.0f} MiB/s", end="")
        print(f"  {plain / took:5.2f} of a plain copy" if name in ("backup", "compact") else "")


def read_all(path: Path, verify: str) -> Callable[[], object]:
    """Give a call that reads the array through zarr."""
    array = zarr.open_array(vzarr.open(path, "r", verify=verify).store("main"), path="a", mode="r")
    return lambda: array[:]


def digests(directory: Path, rounds: int) -> None:
    """Read the big file with and without a look at the digests."""
    path = directory / "bulk.vzarr"
    calls = {verify: read_all(path, verify) for verify in ("always", "first", "never")}
    seconds = take_turns(rounds, calls)
    size = path.stat().st_size
    for verify, took in seconds.items():
        share = seconds["never"] / took
        print(
            f"warm read, verify={verify:<7} {size / took / MIB:8,.0f} MiB/s  {share:5.2f} of never"
        )


def bare_open(path: Path) -> Callable[[], object]:
    """Give a call that opens and closes the file with LMDB alone."""

    def call() -> None:
        handle = lmdb.open(
            str(path), subdir=False, readonly=True, max_dbs=len(DATABASES), map_size=64 << 30
        )
        for name in DATABASES:
            handle.open_db(name.encode(), create=False)
        with handle.begin() as txn:
            txn.get(b"meta")
        handle.close()

    return call


def opening(directory: Path, sizes: list[int], rounds: int) -> None:
    """Open and close files, beside LMDB."""
    for size in sizes:
        path = directory / f"open-{size}.vzarr"
        chunked_repository(path, size).close()
        seconds = take_turns(
            20 * rounds,
            {
                "lmdb": bare_open(path),
                "r": lambda path=path: vzarr.open(path, "r").close(),
                "r+": lambda path=path: vzarr.open(path, "r+").close(),
            },
        )
        more = {mode: (seconds[mode] - seconds["lmdb"]) * 1e3 for mode in ("r", "r+")}
        print(
            f"open and close, {size:>9,} chunks: LMDB alone {seconds['lmdb'] * 1e3:.2f} ms, "
            f"vzarr {more['r']:+.2f} ms to read, {more['r+']:+.2f} ms to write"
        )


def change(repo: vzarr.Repository, chunks: int, commits: int) -> None:
    """Write as many chunks as the array has, at random, in so many commits."""
    session = repo.session("main")
    random = np.random.default_rng(1)
    for number in range(commits):
        for chunk in random.integers(chunks, size=max(1, chunks // commits)):
            session.set(f"a/c/{chunk}", random.bytes(64))
        session.commit(f"change {number}")
    session.close()


def collection(directory: Path, chunks: int, commits: int) -> None:
    """Collect garbage: once where nothing is to go, once where all commits but the first are."""
    path = directory / "garbage.vzarr"
    repo = chunked_repository(path, chunks)
    first = repo.branches["main"]
    change(repo, chunks, commits)
    # A session keeps its commit for as long as somebody could read through it.
    gc.collect()

    def timed(what: str) -> None:
        begin = time.perf_counter()
        report = repo.gc()
        print(f"gc, {commits:,} commits over {chunks:,} chunks, {what}: ", end="")
        print(f"{time.perf_counter() - begin:.2f} s, {report.chunks:,} chunks deleted")

    timed("nothing to delete")
    repo.branches.reset("main", first)
    repo.expire(keep_last=0)
    timed("all to delete")
    repo.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="sizes that only prove that it runs")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds = 1 if options.tiny else options.rounds
    with tempfile.TemporaryDirectory(dir=".") as name:
        directory = Path(name)
        whole_file(directory, 4 if options.tiny else 1024, rounds)
        digests(directory, rounds)
        opening(directory, [100] if options.tiny else [1_000, 1_000_000], rounds)
        collection(directory, *((100, 10) if options.tiny else (100_000, 1_000)))


if __name__ == "__main__":
    main()
