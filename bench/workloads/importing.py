"""Import of a Zarr directory, beside ``cp -r`` of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench import system
from bench.engines import VZARR
from bench.harness import MIB, Case, Run, Workload
from bench.workloads.exporting import copy_tree, processor_seconds

COPY = "cp -r + sync"


def fill_directory(path: Path, chunks: int) -> None:
    """Write a Zarr directory of chunks of 1 MiB of random bytes."""
    import zarr

    array = zarr.create_array(
        path, shape=(chunks * MIB,), chunks=(MIB,), dtype="u1", compressors=None
    )
    random = np.random.default_rng(5)
    for number in range(chunks):
        array[number * MIB : (number + 1) * MIB] = random.integers(0, 256, MIB, "u1")


def import_tree(source: Path, target: Path, *, consume: bool = False) -> None:
    """Import a directory into a file, new or not, as the command does."""
    import vzarr

    with vzarr.open(target) as repo:
        repo.import_from(source, consume=consume)


def imports(run: Run, *, chunks: int) -> None:
    """Import one array, whose chunks are in the page cache; once more; and consume a copy."""
    source = run.prepared("source.zarr", partial(fill_directory, chunks=chunks))
    consumed = run.directory / "consumed.zarr"
    copy_tree(source, consumed)
    # So that no first use is measured.
    warm = run.prepared("warm.zarr", partial(fill_directory, chunks=1))
    import_tree(warm, run.directory / "warm.vzarr")
    copy, file = run.directory / "copy", run.directory / "a.vzarr"
    calls: tuple[tuple[str, Path | None, Callable[[], None]], ...] = (
        (COPY, copy, partial(copy_tree, source, copy)),
        ("import", None, partial(import_tree, source, file)),
        ("import, again", file, partial(import_tree, source, file)),
        ("import, consuming", file, partial(import_tree, consumed, file, consume=True)),
    )
    for name, target, call in calls:
        # What was written before must not be what this one waits for.
        subprocess.run(["sync"], check=True)
        begin, used = time.perf_counter(), processor_seconds()
        call()
        run.record(name, chunks / (time.perf_counter() - begin), "MiB/s")
        run.record(f"{name}, processor", (processor_seconds() - used) * 1e3, "ms")
        if target is not None:
            system.delete(target)


WORKLOADS = (
    Workload(
        number=14,
        name="import",
        title="Import",
        sentence=(
            "A Zarr directory of chunks of 1 MiB of random bytes is imported into a new file, "
            "until all is on disk: chunks byte for byte, a digest of each. Then once more, where "
            "all is there already; and a copy of it into another new file, with each chunk "
            'deleted once it is durable. Beside a copy with "cp -r" and "sync".'
        ),
        engines=(VZARR,),
        sizes={
            "tiny": (Case("4 chunks", {"chunks": 4}),),
            "laptop": (Case("1 GiB", {"chunks": 1024}),),
            "large": (Case("4 GiB", {"chunks": 4096}),),
        },
        measure=imports,
        chart=(COPY, "import", "import, again", "import, consuming"),
    ),
)
