"""A store of any ref works with what others wrote to read Zarr: xarray, dask, copies, viewers."""

from __future__ import annotations

from collections.abc import Mapping

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from dask import delayed
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

import vzarr

TIME, LAT, LON = 6, 8, 10
DATA = np.arange(TIME * LAT * LON, dtype="f4").reshape(TIME, LAT, LON)


def dataset(data: np.ndarray) -> xr.Dataset:
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {"sst": (dims, data, {"units": "degC"})},
        {"time": np.arange(len(data)), "lat": np.linspace(-80, 80, LAT)},
    )


@pytest.fixture(params=[2, 3], ids=["v2", "v3"])
def repo(repo, request):
    """Two versions of a data set: the first has the tag v1."""
    encoding = {"sst": {"chunks": (2, 4, 5)}}
    for number, data in enumerate((DATA, -DATA), 1):
        with repo.transaction("main", f"version {number}") as store:
            dataset(data).to_zarr(
                store, mode="w", zarr_format=request.param, consolidated=False, encoding=encoding
            )
        repo.tags.create(f"v{number}")
    return repo


@pytest.mark.parametrize(("ref", "sign"), [("v1", 1), ("main", -1), ("main~1", 1)])
@pytest.mark.parametrize("chunks", [None, {}, {"time": 4}])
def test_xarray_opens_it(repo, ref, sign, chunks):
    with xr.open_zarr(repo.store(ref), consolidated=False, chunks=chunks) as found:
        assert found.sst.dims == ("time", "lat", "lon")
        assert found.sst.attrs["units"] == "degC"
        assert np.array_equal(found.sst, sign * DATA)
        assert float(found.sst.sel(lat=80).mean()) == pytest.approx(float(sign * DATA[:, 7].mean()))


def test_two_refs_are_open_at_once(repo):
    with (
        xr.open_zarr(repo.store("v1"), consolidated=False) as old,
        xr.open_zarr(repo.store("main"), consolidated=False) as new,
    ):
        assert not (old + new).sst.any()


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_dask_reads_it(repo, scheduler):
    array = da.from_zarr(repo.store("v1"), component="sst")
    assert array.chunks == ((2, 2, 2), (4, 4), (5, 5))
    assert array.sum().compute(scheduler=scheduler, num_workers=2) == DATA.sum()


def test_dask_tells_versions_apart_and_knows_equal_ones(repo):
    one, two, again = (
        da.from_zarr(zarr.open_array(repo.store(ref), path="sst", mode="r"))
        for ref in ("v1", "v2", "v2")
    )
    assert one.name != two.name
    assert two.name == again.name


def test_dask_writes_a_copy_of_an_older_version(repo):
    array = da.from_zarr(repo.store("v1"), component="sst")
    with repo.transaction("main", "double") as store:
        array.map_blocks(lambda block: 2 * block).to_zarr(store, component="double")
    assert np.array_equal(zarr.open_array(repo.store("main"), path="double")[:], 2 * DATA)


def test_arrays_are_made_of_those_of_another_ref(repo):
    source = zarr.open_array(repo.store("v1"), path="sst", mode="r")
    with repo.transaction("main", "keep the first") as store:
        zarr.from_array(store, data=source, name="first", chunks="keep")
    copied = zarr.open_array(repo.store("main"), path="first", mode="r")
    assert np.array_equal(copied[:], DATA)
    assert copied.chunks == source.chunks
    memory = zarr.from_array(MemoryStore(), data=source, chunks=(3, 4, 5))
    assert np.array_equal(memory[:], DATA)


def copy_store(source, target) -> int:
    """Copy key by key through zarr's interface, as ``zarr.copy_store`` did."""

    async def work() -> int:
        count = 0
        async for key in source.list():
            value = await source.get(key, default_buffer_prototype())
            await target.set(key, value)
            count += 1
        return count

    return sync(work())


def test_all_keys_are_copied_to_and_from_other_stores(repo, tmp_path):
    there = LocalStore(tmp_path / "there.zarr")
    count = copy_store(repo.store("v1"), there)
    with xr.open_zarr(there, consolidated=False) as found:
        assert np.array_equal(found.sst, DATA)
    with vzarr.open(tmp_path / "other.vzarr") as other:
        with other.transaction() as store:
            assert copy_store(there, store) == count
        assert other.root_id() == repo.root_id("v1")


def test_groups_are_copied_with_their_members(repo):
    group = zarr.open_group(repo.store("v1"), mode="r")
    zarr_format = group.metadata.zarr_format
    target = zarr.create_group(MemoryStore(), zarr_format=zarr_format)
    for name, array in group.arrays():
        zarr.from_array(target.store_path, data=array, name=name)
    assert np.array_equal(target["sst"][:], DATA)
    assert sorted(target.array_keys()) == sorted(group.array_keys())


class Viewer:
    """A reader as viewers of images are: it is given a mapping, and asks for one plane at a time.

    It knows no more of Zarr than the names of keys, and decodes nothing before a plane is shown.
    """

    def __init__(self, mapping: Mapping[str, bytes], planes: int, keys: str) -> None:
        assert isinstance(mapping, Mapping)
        self.loaded: list[int] = []
        load = delayed(self._load, pure=True)
        self.stack = da.stack(
            [
                da.from_delayed(load(mapping, keys, plane), shape=(LAT, LON), dtype="f4")
                for plane in range(planes)
            ]
        )

    def _load(self, mapping: Mapping[str, bytes], keys: str, plane: int) -> np.ndarray:
        self.loaded.append(plane)
        return np.frombuffer(mapping[keys.format(plane)], "<f4").reshape(LAT, LON)


@pytest.mark.parametrize(
    ("zarr_format", "keys"), [(2, "image/{}.0.0"), (3, "image/c/{}/0/0")], ids=["v2", "v3"]
)
def test_a_viewer_shows_planes_of_a_mapping_lazily(path, zarr_format, keys):
    with vzarr.open(path) as repo, repo.transaction() as store:
        image = zarr.create_array(
            store,
            name="image",
            shape=DATA.shape,
            chunks=(1, LAT, LON),
            dtype="f4",
            compressors=None,
            zarr_format=zarr_format,
        )
        image[:] = DATA
        # A chunk of zeros alone would not be there.
        image[0] = -1
    with vzarr.mapping(path) as mapping:
        viewer = Viewer(mapping, TIME, keys)
        assert viewer.loaded == []
        with pytest.raises(KeyError):
            mapping[keys.format(TIME)]
        assert np.array_equal(viewer.stack[3].compute(scheduler="synchronous"), DATA[3])
        assert viewer.loaded == [3]
        assert viewer.stack[:, 0, 0].compute(scheduler="threads").tolist() == [
            -1,
            *DATA[1:, 0, 0].tolist(),
        ]


def test_old_code_walks_a_mapping_for_metadata(repo):
    """As readers of consolidated metadata and of ``.zattrs`` did."""
    mapping = repo.mapping("v1")
    documents = [key for key in mapping if key.rpartition("/")[2] in (".zarray", "zarr.json")]
    assert "sst" in {key.rpartition("/")[0] for key in documents}
    found = mapping.getitems([*documents, "nix/.zattrs"], on_error="omit")
    assert set(found) == set(documents)
