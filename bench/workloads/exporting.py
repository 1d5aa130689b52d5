"""Export of an array in every form, beside ``cp -r`` of the Zarr directory that it makes."""

from __future__ import annotations

import resource
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import system
from bench.engines import VZARR
from bench.harness import Case, Run, Workload
from bench.workloads.trust import fill_bulk

NAMES = {"Zarr directory": "out.zarr", "zip": "out.zip", "CAR": "out.car"}


def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory as a user would who wants it to be on the disk."""
    subprocess.run(["cp", "-r", source, target], check=True)
    subprocess.run(["sync"], check=True)


def processor_seconds() -> float:
    """Give the time of all processors that this process and its children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def exports(run: Run, *, chunks: int) -> None:
    """Export one array, whose chunks are in the page cache, in every form."""
    import vzarr

    path = run.prepared("bulk.vzarr", partial(fill_bulk, chunks=chunks))
    with vzarr.open(path, "r") as repo:
        directory = run.directory / "original.zarr"
        repo.export_to(directory)
        copy = run.directory / "copy"
        calls: dict[str, tuple[Path, Callable[[], object]]] = {
            "cp -r + sync": (copy, partial(copy_tree, directory, copy))
        }
        for form, name in NAMES.items():
            target = run.directory / name
            calls[form] = target, partial(repo.export_to, target)
        for name, (target, call) in calls.items():
            # What was written before must not be what this one waits for.
            subprocess.run(["sync"], check=True)
            begin, used = time.perf_counter(), processor_seconds()
            call()
            run.record(name, chunks / (time.perf_counter() - begin), "MiB/s")
            run.record(f"{name}, processor", (processor_seconds() - used) * 1e3, "ms")
            system.delete(target)


WORKLOADS = (
    Workload(
        number=13,
        name="export",
        title="Export",
        sentence=(
            "An array in chunks of 1 MiB of random bytes is exported to a Zarr directory, a zip "
            "file and a CAR file, every digest verified, until all is on disk; beside a copy of "
            'the directory with "cp -r" and "sync".'
        ),
        engines=(VZARR,),
        sizes={
            "tiny": (Case("4 chunks", {"chunks": 4}),),
            "laptop": (Case("1 GiB", {"chunks": 1024}),),
            "large": (Case("4 GiB", {"chunks": 4096}),),
        },
        measure=exports,
        chart=("cp -r + sync", *NAMES),
    ),
)
