"""Bytes that are there already: how much the disk takes when the same field is written again."""

from __future__ import annotations

import numpy as np

from bench import system
from bench.engines import (
    H5PY,
    ICECHUNK,
    LOCAL_STORE,
    OCDBT,
    VERSIONED_HDF5,
    VZARR,
    Layout,
)
from bench.harness import MIB, Case, Run, Workload


def dedup(run: Run, *, megabytes: int, arrays: int, times: int) -> None:
    """Write one field into so many arrays, so many times over, each time in a change of its own."""
    data = np.random.default_rng(3).random(megabytes * MIB // 4, dtype="f4")
    names = tuple("abc"[:arrays])
    layout = Layout(data.shape, (MIB // 4,), "f4", names=names)
    run.warm_up()
    with run.engine.create(run.path, layout) as opened:
        with run.clock("a write", "ms", amount=times * arrays):
            for number in range(times):
                for name in names:
                    with opened.change(f"number {number}", name) as array:
                        array[:] = data
        assert np.array_equal(opened.array[:], data)
    run.space()
    run.record("times the field", system.disk_bytes(run.path) / data.nbytes, "×")


def cases(megabytes: int, times: int) -> tuple[Case, ...]:
    again = {"megabytes": megabytes, "arrays": 1, "times": times}
    equal = {"megabytes": megabytes, "arrays": 3, "times": 1}
    return (
        Case(f"a field of {megabytes} MiB, written {times} times", again),
        Case(f"three arrays with the same {megabytes} MiB", equal),
    )


WORKLOADS = (
    Workload(
        number=9,
        name="dedup",
        title="The same bytes again",
        sentence=(
            "A field of random float32 is written again and again, each time in a commit of its "
            "own where the engine has commits; and into three arrays."
        ),
        engines=(VZARR, ICECHUNK, LOCAL_STORE, H5PY, VERSIONED_HDF5, OCDBT),
        sizes={"tiny": cases(1, 3), "laptop": cases(8, 100), "large": cases(64, 100)},
        measure=dedup,
        chart=("on disk",),
    ),
)
