"""``vzarr demo``: what vzarr does, shown on three months of an ocean model.

``tell`` is the story. The functions below it are its chapters, a few lines each of vzarr and zarr,
written to be copied; last come the data, real and made up.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from rich.filesize import decimal

import vzarr
from vzarr.errors import AlreadyExistsError, NotFoundError
from vzarr.merge import format_region

if TYPE_CHECKING:
    from vzarr.output import Output

Months = Sequence[tuple[str, Callable[[vzarr.VzarrStore], object]]]
"""For each month its name, and what appends it to a store."""

FILE = "ocean.vzarr"
MONTHS = ("January 2015", "February 2015", "March 2015")
SST = "tos"
"""The array with the sea surface temperature, as CMIP calls it: (time, y, x), in °C."""
CHUNKS = (1, 110, 120)

# February, a box of 20 by 40 cells in the middle of the North Pacific.
BOX = (slice(1, 2), slice(225, 245), slice(100, 140))
TOO_WARM = np.float32(0.5)


def tell(out: Output, directory: str, *, synthetic: bool, force: bool) -> dict[str, Any]:
    """Run the demo, leave ``ocean.vzarr`` in ``directory``, and give what happened as facts.

    Raises ``AlreadyExistsError`` if the file is there and not ``force``, and ``NotFoundError`` if
    the packages with the real data are not installed.
    """
    path = os.path.normpath(os.path.join(directory, FILE))
    if os.path.lexists(path) and not force:
        raise AlreadyExistsError(
            f"{path} exists already; replace it with --force, or choose another place with "
            "--directory DIR",
            name=path,
        )
    months = synthetic_months() if synthetic else nemo_months()
    with vzarr.open(path, mode="w" if force else "w-") as repo:
        ocean = "A made-up ocean" if synthetic else "A NEMO ocean model"
        out.heading(f"{ocean} goes into {path}, each month in one transaction.")
        for name, append in out.track(months, "appending"):
            append_month(repo, name, append)
        for commit in reversed(repo.log("main", limit=len(months))):
            shape = sea_surface(repo, commit.id).shape
            out.line("  ", out.commit_id(commit.id), f"  {commit.message:<13}  {SST} {shape}")

        out.heading(f"Suppose February is {TOO_WARM} °C too warm somewhere: mend it on a branch.")
        correct(repo)
        change = repo.diff("main", "correction")[SST]
        old, new = (float(np.nanmean(side[BOX])) for side in (change.old, change.new))
        out.changes([change], indent=2)
        out.line(f"  mean of {format_region(BOX)}, around {centre(repo)}: {old:.2f} → {new:.2f} °C")

        out.heading("Every earlier state can be read: main~1 is a month ago.")
        steps = {ref: sea_surface(repo, ref).shape[0] for ref in ("main", "main~1")}
        for ref, number in steps.items():
            out.line(f"  {ref:<6}  {number} time steps")

        out.heading("An append that is interrupted half way leaves nothing.")
        before = {"head": repo.branches["main"], "root_id": repo.root_id("main")}
        chunks = interrupt(repo)
        after = {"head": repo.branches["main"], "root_id": repo.root_id("main")}
        out.line(f"  Ctrl-C came after {chunks} chunks of April.")
        for when, state in (("before", before), ("after", after)):
            ids = out.commit_id(state["head"]), "  data ", out.commit_id(state["root_id"])
            out.line(f"  {when:<6}  main ", *ids)
        out.line("  Nothing changed." if before == after else ("  main has changed!", "red"))

        out.heading("A tag names a state for good.")
        commit_id = repo.tags.create("first-quarter", at="main", message="January to March 2015")
        out.line("  ", out.commit_id(commit_id), "  ", ("first-quarter", "magenta"))

        out.heading("What did not change is stored once.")
        versions = sizes(repo)
        names = {"branches": dict(repo.branches), "tags": dict(repo.tags)}
    file_bytes, versions_bytes = os.path.getsize(path), sum(size for _, _, size in versions)
    rows = [(message, size) for _, message, size in versions]
    rows.append((f"{len(versions)} versions, each saved by itself", versions_bytes))
    rows.append((f"{path}, with all of them", file_bytes))
    out.table(["  version", "size"], [(f"  {row}", decimal(size)) for row, size in rows], right=1)

    out.heading(f"{path} is yours to explore:")
    for hint in hints(path, synthetic=synthetic):
        out.line(f"  {hint}" if hint else "")
    return {
        "path": os.path.abspath(path),
        **names,
        "correction": {"path": SST, "region": BOX, "old_mean": old, "new_mean": new},
        "time_steps": steps,
        "interrupted": {"chunks": chunks, "before": before, "after": after},
        "versions": [{"commit": c, "message": m, "bytes": size} for c, m, size in versions],
        "versions_bytes": versions_bytes,
        "file_bytes": file_bytes,
    }


def hints(path: str, *, synthetic: bool) -> list[str]:
    """Give the lines that the demo ends with: three commands, and three lines of Python."""
    file = shlex.quote(path)
    return [
        f"vzarr log {file}",
        f"vzarr tree {file}",
        f"vzarr diff {file} main correction",
        "",
        f"import vzarr, {'zarr' if synthetic else 'xarray'}",
        f"repo = vzarr.open({path!r})",
        "zarr.open_group(repo.store('main~1'), mode='r')['tos'][:]"
        if synthetic
        else "xarray.open_zarr(repo.store('main~1'))",
    ]


# ── chapters ─────────────────────────────────────────────────────────────────────────────────────


def append_month(
    repo: vzarr.Repository, name: str, append: Callable[[vzarr.VzarrStore], object]
) -> None:
    """Append one month in one transaction: if anything raises, nothing of it is there."""
    with repo.transaction("main", name) as store:
        append(store)


def correct(repo: vzarr.Repository) -> None:
    """Change a region, on a branch."""
    repo.branches.create("correction", at="main")
    with repo.transaction("correction", f"Take {TOO_WARM} °C off a box in February") as store:
        sst = zarr.open_array(store, path=SST)
        sst[BOX] = np.asarray(sst[BOX]) - TOO_WARM


def interrupt(repo: vzarr.Repository) -> int:
    """Begin to append a month, interrupt it half way, and give the number of chunks written."""
    try:
        with repo.transaction("main", "April 2015") as store:
            sst = zarr.open_array(store, path=SST)
            time, y, x = sst.shape
            sst.resize((time + 1, y, x))
            present = store.session.sums(SST)[0]
            sst[time, : y // 2] = sst[time - 1, : y // 2]
            chunks = store.session.sums(SST)[0] - present
            raise CtrlC
    except CtrlC:
        return chunks


class CtrlC(KeyboardInterrupt):
    """What Ctrl-C raises, with a name of its own so that a real one still ends the demo."""


def sea_surface(repo: vzarr.Repository, ref: str) -> zarr.Array[Any]:
    """Open the array as it was at any ref."""
    return zarr.open_array(repo.store(ref), path=SST, mode="r")


def centre(repo: vzarr.Repository) -> str:
    """Tell where on Earth the middle of the box is."""
    y, x = ((part.start + part.stop) // 2 for part in BOX[1:])
    grid = (zarr.open_array(repo.store("main"), path=p, mode="r") for p in ("nav_lat", "nav_lon"))
    north, east = (float(np.asarray(axis[y, x])) for axis in grid)
    return f"{abs(north):.0f}° {'NS'[north < 0]} {abs(east):.0f}° {'EW'[east < 0]}"


def sizes(repo: vzarr.Repository) -> list[tuple[str, str, int]]:
    """List all versions, oldest first: id, message, and the bytes of a copy of it alone."""
    commits = [*reversed(repo.log("main")), *repo.log("correction", limit=1)]
    return [(c.id, c.message, repo.session(c.id).sums()[1]) for c in commits]


# ── data ─────────────────────────────────────────────────────────────────────────────────────────


def nemo_months() -> Months:
    """Read the monthly files of the NEMO model that the package iris-sample-data ships."""
    try:
        import h5netcdf  # noqa: F401 - what xarray reads them with
        import iris_sample_data
        import xarray
    except ImportError as error:
        raise NotFoundError(
            f"the ocean's data need the package {error.name}: pip install 'vzarr[demo]', or run "
            "vzarr demo --synthetic",
            name=error.name or "",
        ) from error
    months = []
    for number, name in enumerate(MONTHS, 1):
        file = f"nemo_1m_2015{number:02}01-2015{number + 1:02}01_grid-T.nc"
        path = os.path.join(iris_sample_data.path, "NEMO", file)
        with xarray.open_dataset(path, engine="h5netcdf", decode_times=False) as dataset:
            date = _date(float(dataset["time_centered"][0]))
            month = (
                dataset.drop_encoding()
                .drop_vars(["time_counter", "time_centered", "time_centered_bounds"])
                .rename_dims(time_counter="time")
                .assign_coords(time=[date])
                .load()
            )
        if number == 1:
            append = partial(month.to_zarr, encoding={SST: {"chunks": CHUNKS}})
        else:
            # Writes the whole grid again, too; vzarr knows those bytes and stores nothing.
            append = partial(month.to_zarr, append_dim="time")
        months.append((name, append))
    return months


def _date(seconds: float) -> np.datetime64:
    """Turn the model's time, seconds since 1900 in months of 30 days, into an ordinary date."""
    days = int(seconds) // 86_400
    year, month, day = 1900 + days // 360, days // 30 % 12 + 1, days % 30 + 1
    return np.datetime64(f"{year}-{month:02}-{day:02}", "ns")


def synthetic_months() -> Months:
    """Make up an ocean: warm at the equator, cold at the poles, with continents and weather."""
    random = np.random.default_rng(2015)
    # As in the model the grid begins in the Indian Ocean and goes east.
    eastward = (np.arange(360) + 252.5) % 360 - 180
    latitude, longitude = np.meshgrid(np.linspace(-78, 88, 330), eastward, indexing="ij")
    wave = np.sin(np.radians(2 * longitude - 116)) + np.cos(np.radians(3 * latitude)) / 2
    land = wave > 0.3

    def begin(store: vzarr.VzarrStore) -> None:
        group = zarr.create_group(store, attributes={"title": "a made-up ocean"})
        for name, values in (("nav_lat", latitude), ("nav_lon", longitude)):
            group.create_array(
                name, data=values.astype(np.float32), chunks=CHUNKS[1:], dimension_names=["y", "x"]
            )
        group.create_array(
            SST,
            shape=(0, *land.shape),
            chunks=CHUNKS,
            dtype=np.float32,
            fill_value=np.nan,
            dimension_names=["time", "y", "x"],
            attributes={"long_name": "Sea Surface Temperature", "units": "degree_C"},
        )
        group.create_array(
            "time",
            shape=(0,),
            chunks=(1,),
            dtype=np.int64,
            dimension_names=["time"],
            attributes={"units": "days since 2015-01-01", "calendar": "standard"},
        )

    def append(number: int, store: vzarr.VzarrStore) -> None:
        if number == 0:
            begin(store)
        sun = 23 * np.sin(np.radians(30 * number - 80))
        weather = random.normal(scale=0.5, size=land.shape)
        celsius = 30 * np.cos(np.radians(latitude - sun / 4)) ** 2 - 1.8 + weather
        celsius = np.maximum(celsius, -1.8).round(2)
        for name, values in (
            (SST, np.where(land, np.nan, celsius)),
            ("time", 15 + 30 * number),
        ):
            array = zarr.open_array(store, path=name)
            array.resize((number + 1, *array.shape[1:]))
            array[number] = values

    return [(name, partial(append, number)) for number, name in enumerate(MONTHS)]
