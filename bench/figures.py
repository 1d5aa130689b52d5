"""The figures that vzarr promises, measured: ``python -m bench.figures [--large] [--only NAME]``.

Peers run in the same process, interleaved with vzarr, and the medians are compared: this way a slow
moment of the machine hits all of them. Everything lies in one temporary directory on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr

import vzarr

# Icechunk reads it when it is imported, and warns at every step on a local disk.
os.environ.setdefault("ICECHUNK_LOG", "error")

MIB = 1 << 20
BULK_CHUNKS = 1024
ROUNDS = 5
COMMIT_ROUNDS = 200
COLD_RUNS = 7


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:8.2f} ms"


def file_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def files(path: Path) -> int:
    return 1 if path.is_file() else sum(1 for item in path.rglob("*") if item.is_file())


def chunked_repository(path: Path, chunks: int) -> vzarr.Repository:
    """Make a one-dimensional array of so many chunks of 64 random bytes each."""
    repo = vzarr.open(path, "w")
    random = np.random.default_rng(0)
    with repo.transaction("main", "fill") as store:
        zarr.create_array(
            store, name="a", shape=(chunks * 8,), chunks=(8,), dtype="f8", compressors=None
        )
        data = random.bytes(64 * chunks)
        for number in range(chunks):
            store.session.set(f"a/c/{number}", data[64 * number : 64 * number + 64])
    return repo


def one_chunk_commit(directory: Path, sizes: list[int]) -> None:
    """Durable commit of one 64-byte chunk: its time, and how many bytes of pages it leaves used.

    The sizes take turns, so that they meet the same moments of the machine.
    """
    random = np.random.default_rng(1)
    sessions, times = {}, {size: [] for size in sizes}
    for size in sizes:
        begin = time.perf_counter()
        repo = chunked_repository(directory / f"commit-{size}.vzarr", size)
        print(f"filled {size:>9,} chunks in {time.perf_counter() - begin:.1f} s")
        sessions[size] = repo.session("main")
    before = {size: session.environment.info().used_bytes for size, session in sessions.items()}
    for number in range(-5, COMMIT_ROUNDS):
        for size, session in sessions.items():
            session.set(f"a/c/{random.integers(size)}", random.bytes(64))
            begin = time.perf_counter()
            session.commit(f"change {number}")
            if number >= 0:
                times[size].append(time.perf_counter() - begin)
    for size, series in times.items():
        growth = sessions[size].environment.info().used_bytes - before[size]
        print(
            f"one-chunk commit, {size:>9,} chunks: {milliseconds(statistics.median(series))} "
            f"(p90 {milliseconds(sorted(series)[len(series) * 9 // 10])}), "
            f"growth {growth / (len(series) + 5) / 1e3:.1f} KB a commit"
        )
    ratios = [large / small for small, large in zip(times[sizes[0]], times[sizes[-1]], strict=True)]
    print(f"    largest / smallest, pair by pair: {statistics.median(ratios):.2f}")


COLD = """
import time, zarr, numpy, vzarr, vzarr.store
begin = time.perf_counter()
repo = vzarr.open({path!r}, "r")
data = repo.session("main").get("a/c/{chunk}")
print(time.perf_counter() - begin, len(data))
"""
IMPORT = """
import time, zarr
begin = time.perf_counter()
import vzarr
print(time.perf_counter() - begin)
"""


def run_python(code: str) -> list[float]:
    # An installed package has its modules compiled.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    return [float(number) for number in output.split()]


def cold_open(directory: Path, sizes: list[int], runs: int) -> None:
    """Open in a fresh process, main's session, one chunk: time beyond imports."""
    for size in sizes:
        path = str(directory / f"commit-{size}.vzarr")
        code = COLD.format(path=path, chunk=size // 3)
        times = [run_python(code)[0] for _ in range(runs)]
        print(f"cold open + one chunk, {size:>9,} chunks: {milliseconds(statistics.median(times))}")
    times = [run_python(IMPORT)[0] for _ in range(runs)]
    print(f"import vzarr beyond import zarr: {milliseconds(statistics.median(times))}")


def small_commits(directory: Path, count: int) -> None:
    """Many one-chunk commits on an array of ten chunks."""
    path = directory / "small.vzarr"
    repo = chunked_repository(path, 10)
    session = repo.session("main")
    random = np.random.default_rng(2)
    begin = time.perf_counter()
    for number in range(count):
        session.set(f"a/c/{number % 10}", random.bytes(64))
        session.commit(f"change {number}")
    seconds = time.perf_counter() - begin
    repo.close()
    print(
        f"{count:,} one-chunk commits: {file_bytes(path) / 1e6:.1f} MB in {files(path)} file(s), "
        f"{seconds / count * 1e3:.2f} ms each"
    )


def listing(directory: Path, count: int) -> None:
    path = directory / "list.vzarr"
    repo = chunked_repository(path, count)
    store = repo.store("main")

    async def collect() -> int:
        return len([key async for key in store.list_prefix("a/")])

    from zarr.core.sync import sync

    times = []
    for _ in range(5):
        begin = time.perf_counter()
        found = sync(collect())
        times.append(time.perf_counter() - begin)
    print(f"list_prefix of {found:,} keys: {milliseconds(statistics.median(times))}")
    repo.close()


def diffing(directory: Path, size: int) -> None:
    repo = vzarr.open(directory / f"commit-{size}.vzarr")
    times = []
    for number in range(1, 41):
        begin = time.perf_counter()
        change = repo.diff(f"main~{number}", f"main~{number - 1}")["a"]
        assert len(change.chunks) == 1
        times.append(time.perf_counter() - begin)
    print(f"diff of one changed chunk among {size:,}: {milliseconds(statistics.median(times))}")
    repo.close()


MEMORY = """
import re, numpy, zarr, vzarr
def peak():  # not getrusage's: a child begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
with vzarr.open({path!r}, "w-") as repo:
    random = numpy.random.default_rng(0)
    with repo.transaction("main", "big") as store:
        a = zarr.create_array(store, name="a", shape=({chunks}, 1 << 20), chunks=(1, 1 << 20),
                              dtype="u1", compressors=None)
        a[0] = 1
        before = peak()
        for number in range({chunks}):
            a[number] = numpy.frombuffer(random.bytes(1 << 20), "u1")
print(before, peak())
"""


def memory(directory: Path, chunks: int) -> None:
    """Peak memory of one transaction of so many chunks of 1 MiB."""
    before, after = run_python(MEMORY.format(path=str(directory / "big.vzarr"), chunks=chunks))
    print(
        f"transaction of {chunks:,} MiB: {after - before:.0f} MiB above the {before:.0f} before it"
    )


# ── bulk ─────────────────────────────────────────────────────────────────────────────────────────


def fsync_tree(path: Path) -> None:
    """Make a directory of files durable, as the other engines do not."""
    for item in path.rglob("*"):
        if item.is_file():
            descriptor = os.open(item, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def create(store: object, data: np.ndarray) -> None:
    array = zarr.create_array(
        store, name="a", shape=data.shape, chunks=(MIB // 4,), dtype="f4", compressors=None
    )
    array[:] = data


def write_vzarr(path: Path, data: np.ndarray) -> None:
    with vzarr.open(path, "w") as repo, repo.transaction("main", "bulk") as store:
        create(store, data)


def read_vzarr(path: Path) -> np.ndarray:
    with vzarr.open(path, "r") as repo:
        return np.asarray(zarr.open_array(repo.store("main"), path="a")[:])


def write_local(path: Path, data: np.ndarray) -> None:
    create(zarr.storage.LocalStore(path), data)
    fsync_tree(path)


def read_local(path: Path) -> np.ndarray:
    return np.asarray(zarr.open_array(zarr.storage.LocalStore(path), path="a", mode="r")[:])


def write_icechunk(path: Path, data: np.ndarray) -> None:
    import icechunk

    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
    with repo.transaction("main", message="bulk") as store:
        create(store, data)
    fsync_tree(path)


def read_icechunk(path: Path) -> np.ndarray:
    import icechunk

    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    session = repo.readonly_session("main")
    return np.asarray(zarr.open_array(session.store, path="a", mode="r")[:])


def engines() -> Iterator[
    tuple[str, Callable[[Path, np.ndarray], None], Callable[[Path], np.ndarray]]
]:
    yield "vzarr", write_vzarr, read_vzarr
    yield "LocalStore", write_local, read_local
    try:
        import icechunk  # noqa: F401
    except ImportError:
        print("icechunk is not installed: left out")
        return
    yield "icechunk", write_icechunk, read_icechunk


def bulk(directory: Path, chunks: int) -> None:
    """Random float32 in 1 MiB chunks, no compressor: written and durable, read back warm."""
    data = np.random.default_rng(3).random(chunks * (MIB // 4), dtype="f4")
    contenders = list(engines())
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name, *_ in contenders}
    for _ in range(ROUNDS):
        for name, write, read in contenders:
            path = directory / f"bulk-{name}.vzarr"
            begin = time.perf_counter()
            write(path, data)
            times[name][0].append(time.perf_counter() - begin)
            # Once to check it, and to have it in the page cache; then for the clock.
            assert np.array_equal(read(path), data)
            begin = time.perf_counter()
            read(path)
            times[name][1].append(time.perf_counter() - begin)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, (writes, reads) in times.items():
        rates = [chunks / statistics.median(series) for series in (writes, reads)]
        print(f"{name:<12} write + fsync {rates[0]:7.0f} MiB/s   read warm {rates[1]:7.0f} MiB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="also 1,000,000 chunks")
    parser.add_argument("--only", help="one of: commit cold small list diff memory bulk")
    parser.add_argument("--tiny", action="store_true", help="sizes that only prove that it runs")
    arguments = parser.parse_args()
    sizes = [1_000, 100_000] + ([1_000_000] if arguments.large else [])
    count, keys, chunks, gigabytes = 5_000, 100_000, BULK_CHUNKS, 10 if arguments.large else 2
    runs = COLD_RUNS
    if arguments.tiny:
        sizes, count, keys, chunks, gigabytes = [100, 1_000], 50, 1_000, 8, 0
        runs = 1
    print(json.dumps({"zarr": zarr.__version__, "python": sys.version.split()[0]}))
    with tempfile.TemporaryDirectory(dir=".") as name:
        directory = Path(name)
        wanted = arguments.only
        if wanted in (None, "commit", "cold", "diff"):
            one_chunk_commit(directory, sizes)
        if wanted in (None, "cold"):
            cold_open(directory, sizes, runs)
        if wanted in (None, "diff"):
            diffing(directory, sizes[-1])
        if wanted in (None, "small"):
            small_commits(directory, count)
        if wanted in (None, "list"):
            listing(directory, keys)
        if wanted in (None, "memory"):
            memory(directory, gigabytes << 10 if gigabytes else 8)
        if wanted in (None, "bulk"):
            bulk(directory, chunks)


if __name__ == "__main__":
    main()
