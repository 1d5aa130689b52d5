"""Imports of HDF5, NetCDF and GRIB: xarray decodes the copy as it decodes the original."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import vzarr
from tests.transfer.sources import Stop, unfinished, values_of
from vzarr import datasets, importing
from vzarr.errors import AlreadyExistsError, ConflictError, InvalidInputError

h5py = pytest.importorskip("h5py")
pytest.importorskip("h5netcdf")


def make(path: Path) -> Path:
    """Packed values, fill values, times, text, groups, an axis without an end."""
    rng = np.random.default_rng(1)
    ocean = xr.Dataset(
        {
            "sst": (("time", "y", "x"), rng.random((10, 20, 30), "f4"), {"units": "K"}),
            "flag": ("y", np.array(["a", "bb"] * 10, dtype=object)),
            "one": ((), 5),
        },
        coords={
            "time": np.datetime64("2020-01-01", "ns") + np.arange(10) * np.timedelta64(1, "D"),
            "y": np.arange(20.0),
            "label": ("x", np.array([b"ab", b"c"] * 15)),
        },
        attrs={"title": "sea", "numbers": np.arange(3)},
    )
    ocean["sst"][0] = np.nan
    packed = {
        "dtype": "i2",
        "scale_factor": 0.001,
        "_FillValue": -999,
        "chunksizes": (2, 20, 15),
        "zlib": True,
    }
    ocean.to_netcdf(path, engine="h5netcdf", encoding={"sst": packed})
    ocean[["sst"]].isel(time=slice(3)).to_netcdf(
        path, engine="h5netcdf", mode="a", group="deep/er", unlimited_dims=["time"]
    )
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "ocean.nc")


def compare(repo: vzarr.Repository, source: Path, path: str = "") -> None:
    """See that xarray finds the same in both."""
    for group in ("", "deep/er"):
        with xr.open_dataset(source, engine="h5netcdf", group=group or None) as one:
            place = "/".join(part for part in (path, group) if part)
            other = xr.open_zarr(repo.store("main"), group=place, consolidated=False)
            xr.testing.assert_identical(one.load(), other.load())


def test_netcdf_4(repo, source):
    report = repo.import_from(source)
    compare(repo, source)
    assert (report.arrays, report.groups) == (10, 3)
    group = zarr.open_group(repo.store("main"), mode="r")
    sst = group["sst"]
    assert (sst.dtype, sst.chunks) == (np.dtype("i2"), (2, 20, 15))
    assert sst.metadata.dimension_names == ("time", "y", "x")
    assert sst.attrs["units"] == "K"
    assert sst.attrs["scale_factor"] == 0.001
    assert sst.compressors
    # The first of five steps is nothing but missing values in its first half.
    assert sst.fill_value == -999
    assert not group["y"].compressors
    assert group.attrs["numbers"] == [0, 1, 2]
    assert repo.import_from(source).commit is None


def test_into_a_group_and_over_something_else(repo, source):
    repo.import_from(source, path="a/b")
    compare(repo, source, "a/b")
    with h5py.File(source, "r+") as file:
        file["sst"][3, 3, 3] = 77
    with pytest.raises(AlreadyExistsError, match="overwrite=True"):
        repo.import_from(source, path="a/b")
    repo.import_from(source, path="a/b", overwrite=True)
    compare(repo, source, "a/b")


def test_plain_hdf5(repo, tmp_path):
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(1000).reshape(10, 100)
        packed = file.create_dataset(
            "g/y",
            data=np.random.default_rng(2).random((50, 60)),
            chunks=(10, 50),
            compression="gzip",
        )
        packed.attrs["units"] = b"K"
        file["complex"] = np.array([1 + 2j])
        file["bool"] = np.array([True, False])
        file["swapped"] = np.arange(4, dtype=">f8")
        file["empty"] = np.zeros((0, 3))
        file.create_dataset("never", shape=(100,), chunks=(10,), dtype="f4", fillvalue=7)
        file["fields"] = np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
    report = repo.import_from(path)
    assert report.arrays == 8
    group = zarr.open_group(repo.store("main"), mode="r")
    with h5py.File(path) as file:
        for name in ("x", "g/y", "complex", "bool", "swapped", "empty", "never"):
            assert np.array_equal(group[name][...], file[name][...]), name
            # In the machine's own byte order, as xarray reads it.
            assert group[name].dtype == file[name].dtype.newbyteorder("=")
        assert group["g/y"].chunks == (10, 50)
        assert group["g/y"].attrs["units"] == "K"
    with warnings.catch_warnings(action="ignore"):
        assert group["fields"][0]["b"] == 2.5


def test_netcdf_3(repo, tmp_path):
    pytest.importorskip("scipy")
    path = tmp_path / "old.nc"
    data = xr.Dataset({"t": ("x", np.arange(5.0)), "n": ("x", np.arange(5, dtype="i2"))})
    data.to_netcdf(path, engine="scipy")
    repo.import_from(path)
    xr.testing.assert_identical(data, xr.open_zarr(repo.store("main"), consolidated=False).load())


# ── bad input ────────────────────────────────────────────────────────────────────────────────────


def break_chunk(path: Path, name: str, number: int) -> None:
    with h5py.File(path) as file:
        info = file[name].id.get_chunk_info(number)
    data = bytearray(path.read_bytes())
    data[info.byte_offset + 5 : info.byte_offset + 12] = b"\xff" * 7
    path.write_bytes(data)


def test_a_chunk_that_does_not_decode(repo, source):
    break_chunk(source, "sst", 4)
    match = r"sst\[.*\] of .* cannot be decoded \(.*\): the file is damaged there"
    with pytest.raises(InvalidInputError, match=match):
        repo.import_from(source)
    assert values_of(repo) == {}


@pytest.mark.parametrize("nbytes", [8, 100, 2000])
def test_a_file_that_is_cut_off(repo, source, nbytes):
    source.write_bytes(source.read_bytes()[:nbytes])
    with pytest.raises(InvalidInputError, match=r"cannot be read as HDF5 .*half-written"):
        repo.import_from(source)
    assert values_of(repo) == {}


def test_an_attribute_that_json_cannot_hold(repo, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = [1]
        file["x"].attrs["z"] = 1 + 2j
    with pytest.raises(InvalidInputError, match=r"x of .*: its data type and attributes cannot"):
        repo.import_from(tmp_path / "a.h5")


def test_it_cannot_be_consumed(repo, source):
    with pytest.raises(InvalidInputError, match="cannot be consumed"):
        repo.import_from(source, consume=True)
    assert source.exists()


@pytest.mark.parametrize(
    ("head", "package"),
    [(b"\x89HDF\r\n\x1a\n", "h5netcdf"), (b"CDF\x01", "scipy"), (b"GRIB", "cfgrib")],
)
def test_a_package_that_is_missing(repo, tmp_path, monkeypatch, head, package):
    real = datasets.importlib.util.find_spec
    monkeypatch.setattr(
        datasets.importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )
    (tmp_path / "file").write_bytes(head + bytes(100))
    with pytest.raises(InvalidInputError, match=f"{package} must be installed: pip install"):
        repo.import_from(tmp_path / "file")


# ── going on ─────────────────────────────────────────────────────────────────────────────────────


def test_what_was_saved_is_not_decoded_again(repo, source, monkeypatch):
    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(importing, "_CHECKPOINT_VALUES", 1)
        patch.setattr(datasets.DatasetSource, "require_unchanged", stop)
        with pytest.raises(Stop):
            repo.import_from(source)
    assert len(unfinished(repo)) == 1
    decoded: list[str] = []
    real = datasets.DatasetSource._values

    def values(self, place, *args):
        decoded.append(place)
        return real(self, place, *args)

    monkeypatch.setattr(datasets.DatasetSource, "_values", values)
    report = repo.import_from(source)
    assert report.resumed
    # Chunks of fill values come to nothing, so that nobody knows they were there.
    assert set(decoded) <= {"sst", "deep/er/sst"}
    compare(repo, source)


def test_a_file_that_changes_meanwhile(repo, source, monkeypatch):
    def tamper(done: int, total: int, what: str) -> None:
        if what == "import" and not done:
            make(source.with_name("new.nc")).replace(source)

    with pytest.raises(ConflictError, match="was changed"):
        repo.import_from(source, progress=tamper)
    assert values_of(repo) == {}


# ── GRIB ─────────────────────────────────────────────────────────────────────────────────────────


def grib(monkeypatch, tmp_path: Path, *found: xr.Dataset) -> Path:
    """Have a cfgrib that reads these messages from a file: ecCodes is large, and not needed."""
    asked: dict[str, Any] = {}

    def open_datasets(path: str, **options: Any) -> list[xr.Dataset]:
        asked.update(options, path=path)
        return list(found)

    module = types.ModuleType("cfgrib")
    module.open_datasets = open_datasets
    module.asked = asked
    monkeypatch.setitem(sys.modules, "cfgrib", module)
    real = datasets.importlib.util.find_spec
    monkeypatch.setattr(
        datasets.importlib.util, "find_spec", lambda name: name == "cfgrib" or real(name)
    )
    path = tmp_path / "era5.grib"
    path.write_bytes(b"GRIB" + bytes(50))
    return path


def level(kind: str, size: int) -> xr.Dataset:
    values = np.arange(size, dtype="f4")
    return xr.Dataset({"t": ("values", values, {"GRIB_typeOfLevel": kind})}, attrs={"source": "x"})


def test_grib_on_one_grid(repo, tmp_path, monkeypatch):
    path = grib(monkeypatch, tmp_path, level("surface", 5))
    repo.import_from(path)
    group = zarr.open_group(repo.store("main"), mode="r")
    assert np.array_equal(group["t"][:], np.arange(5))
    # No index is left beside it.
    assert sys.modules["cfgrib"].asked["backend_kwargs"] == {"indexpath": "", "errors": "raise"}


def test_grib_on_several_grids(repo, tmp_path, monkeypatch):
    levels = level("surface", 5), level("isobaricInhPa", 7), level("surface", 9)
    repo.import_from(grib(monkeypatch, tmp_path, *levels))
    group = zarr.open_group(repo.store("main"), mode="r")
    assert {name: group[name]["t"].size for name in group} == {
        "surface": 5,
        "isobaricInhPa": 7,
        "surface_2": 9,
    }
    assert group.attrs["source"] == "x"
