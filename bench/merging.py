"""Time merge and blame on large arrays: ``python -m bench.merging [--tiny]``.

Chunks of 4 bytes, so that the trees are what is measured. Milliseconds, the median of a few runs;
"cold" is without any decoded node in memory.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import vzarr
from vzarr import objects

TINY = "--tiny" in sys.argv[1:]
RUNS = 1 if TINY else 5
CHUNKS, CHANGED = (400, 20) if TINY else (1_000_000, 1_000)
BLAMED_CHUNKS, BLAMED_COMMITS = (100, 10) if TINY else (10_000, 1_000)


def array(side: int) -> bytes:
    """Write the document of an square array of chunks of 2 by 2 bytes, ``side`` in a row."""
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [2 * side, 2 * side],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "codecs": [{"name": "bytes"}],
            "fill_value": 0,
        }
    ).encode()


def commit(repo: vzarr.Repository, branch: str, side: int, chunks: list[int], value: int) -> str:
    session = repo.session(branch)
    for chunk in chunks:
        key = f"a/c/{chunk // side}/{chunk % side}"
        session.set(key, (chunk * 31 + value).to_bytes(4, "big"))
    return session.commit(f"change {len(chunks)} chunks")


def create(path: Path, side: int) -> vzarr.Repository:
    repo = vzarr.open(path, "w")
    with repo.transaction("main", "create") as store:
        store.session.set("a/zarr.json", array(side))
    commit(repo, "main", side, list(range(side * side)), 0)
    return repo


def forget() -> None:
    """Drop every decoded node and entry."""
    objects._nodes.__init__(objects._CACHE_BYTES)  # noqa: SLF001
    objects._entries.__init__(1 << 14)  # noqa: SLF001


def median(call: Callable[[], object], prepare: Callable[[], object]) -> float:
    """Median of the milliseconds of a call, each after a preparation."""
    times = []
    for _ in range(RUNS):
        prepare()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def merging(path: Path) -> None:
    side = int(CHUNKS**0.5)
    repo = create(path, side)
    rng = random.Random(0)
    scattered = rng.sample(range(CHUNKS), 2 * CHANGED)
    for name, ours, theirs in (
        ("scattered", scattered[:CHANGED], scattered[CHANGED:]),
        ("in rows", list(range(CHANGED)), list(range(CHUNKS - CHANGED, CHUNKS))),
    ):
        base = repo.branches["main"]
        repo.branches.create("dev", at=base)
        head = commit(repo, "main", side, ours, 1)
        commit(repo, "dev", side, theirs, 2)

        def again(head: str = head) -> None:
            repo.branches.reset("main", head)

        def again_cold(head: str = head) -> None:
            repo.branches.reset("main", head)
            forget()

        what = f"merge of {CHANGED:,} and {CHANGED:,} chunks of {CHUNKS:,}, {name}"
        print(f"{what:<62} {median(lambda: repo.merge('dev'), again):8.1f} ms")
        print(f"{what + ', cold':<62} {median(lambda: repo.merge('dev'), again_cold):8.1f} ms")
        preview = median(lambda: repo.merge("dev", dry_run=True), again)
        print(f"{what + ', dry run':<62} {preview:8.1f} ms")
        repo.branches.reset("main", base)
        repo.branches.delete("dev")
    repo.close()


def blaming(path: Path, changed: int) -> None:
    side = int(BLAMED_CHUNKS**0.5)
    rng = random.Random(0)
    repo = create(path, side)
    with vzarr.open(path, durability="normal") as quick:
        for number in range(BLAMED_COMMITS):
            commit(quick, "main", side, rng.sample(range(BLAMED_CHUNKS), changed), number + 1)
    what = f"blame of {BLAMED_CHUNKS:,} chunks, {BLAMED_COMMITS:,} commits of {changed}"
    print(f"{what:<62} {median(lambda: repo.blame('a'), lambda: None):8.1f} ms")
    print(f"{what + ', cold':<62} {median(lambda: repo.blame('a'), forget):8.1f} ms")
    corner = slice(0, 2), slice(0, 2)
    one = median(lambda: repo.blame("a", corner), lambda: None)
    print(f"{what + ', one chunk':<62} {one:8.1f} ms")
    repo.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        merging(Path(directory) / "merging.vzarr")
        for changed in (1, 10):
            blaming(Path(directory) / "blaming.vzarr", changed)


if __name__ == "__main__":
    main()
