"""Real data through xarray: an ocean model by months, a climate model by years."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any, Literal

from bench.engines import (
    ICECHUNK,
    LOCAL_STORE,
    MEMORY_STORE,
    VZARR,
    VZARR_ZARR_PIPELINE,
    Layout,
)
from bench.harness import Case, Run, Workload

NOTHING = Layout((0,), (1,), "f4", names=())
"""What is in a store before xarray has written to it."""
LOOKS = 20


def nemo() -> tuple[str, list[Any]]:
    """Read the monthly files of the sea surface's temperature on a curvilinear grid."""
    import iris_sample_data
    import xarray

    directory = os.path.join(iris_sample_data.path, "NEMO")
    months = []
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        with xarray.open_dataset(path, engine="h5netcdf", decode_times=False) as dataset:
            drop = ["time_counter", "time_centered", "time_centered_bounds"]
            month = dataset.drop_encoding().drop_vars(drop).rename_dims(time_counter="time")
            months.append(month.assign_coords(time=[len(months)]).load())
    return "tos", months


def a1b() -> tuple[str, list[Any]]:
    """Read the air temperature of North America, 240 years, and cut it into years."""
    import iris_sample_data
    import xarray

    path = os.path.join(iris_sample_data.path, "A1B_north_america.nc")
    with xarray.open_dataset(path, engine="h5netcdf", decode_times=False) as dataset:
        whole = dataset.drop_encoding().load()
    for name in whole.variables:
        # To append in a calendar with months of 30 days, xarray would need one more package.
        whole[name].attrs.pop("calendar", None)
        whole[name].attrs.pop("units", None)
    return "air_temperature", [whole.isel(time=[year]) for year in range(whole.sizes["time"])]


def real(run: Run, *, data: Literal["nemo", "a1b"], most: int) -> None:
    """Append the parts, a commit each; then open the data set, average it, and look at a map."""
    import numpy as np
    import xarray

    variable, parts = {"nemo": nemo, "a1b": a1b}[data]()
    parts = parts[:most]
    run.warm_up(compressed=True)
    with run.engine.create(run.path, NOTHING) as opened:
        times = []
        for number, part in enumerate(parts):
            begin = time.perf_counter()
            # Each part has the grid again, as files do: that is written again, too.
            where = {"append_dim": "time"} if number else {"mode": "a"}
            with opened.changing(f"part {number}") as store:
                part.to_zarr(store, consolidated=False, zarr_format=3, **where)
            times.append(time.perf_counter() - begin)
        run.record("an append", statistics.median(times) * 1e3, "ms")
    if run.durable is not None:
        run.space()
    with run.engine.open(run.path) as opened:
        looks: dict[str, list[float]] = {"open": [], "mean": [], "one map": []}
        for number in range(LOOKS):
            begin = time.perf_counter()
            dataset = xarray.open_zarr(opened.store(), consolidated=False, chunks=None)
            looks["open"].append(time.perf_counter() - begin)
            field = dataset[variable]
            begin = time.perf_counter()
            image = field.isel(time=number % len(parts)).load()
            looks["one map"].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            field.mean("time").load()
            looks["mean"].append(time.perf_counter() - begin)
            written = parts[number % len(parts)][variable].values[0]
            assert np.array_equal(image.values, written, equal_nan=True)
    for name, series in looks.items():
        run.record(name, statistics.median(series) * 1e3, "ms")


NEMO = Case("NEMO ocean, 3 months", {"data": "nemo", "most": 3})
A1B = Case("A1B scenario, 240 years", {"data": "a1b", "most": 240}, rounds=1)

WORKLOADS = (
    Workload(
        number=11,
        name="real",
        title="Real data, with xarray",
        sentence=(
            "Files that come with Iris are appended through xarray, each month or year in a "
            "commit of its own. The data set is then opened, its mean over time is taken, and "
            "one map is read: the median of some repetitions, from the page cache."
        ),
        engines=(VZARR, VZARR_ZARR_PIPELINE, ICECHUNK, LOCAL_STORE, MEMORY_STORE),
        sizes={
            "tiny": (Case("A1B scenario, 4 years", {"data": "a1b", "most": 4}),),
            "laptop": (NEMO, A1B),
            "large": (NEMO, A1B),
        },
        measure=real,
        chart=("an append", "open", "mean"),
        modules=("xarray", "h5netcdf", "iris_sample_data"),
    ),
)
