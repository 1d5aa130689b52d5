"""The file system ``vzarr://``: zarr by URL, and the keys of a repository as files."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from numpy.testing import assert_array_equal
from zarr.storage import FsspecStore

import vzarr
from vzarr import InvalidInputError, ReadOnlyError, Repository
from vzarr.fsspec import VzarrFileSystem


@pytest.fixture
def url(path) -> str:
    return f"vzarr://{path}"


@pytest.fixture
def filled(repo: Repository) -> Repository:
    """Arrays g/a (once and twice the numbers) and b; the first commit has tag v1."""
    with repo.transaction("main", "once") as store:
        zarr.create_array(store, name="g/a", data=np.arange(20), chunks=(4,))
    repo.tags.create("v1")
    with repo.transaction("main", "twice") as store:
        zarr.open_array(store, path="g/a", mode="r+")[:] = np.arange(20) * 2
        zarr.create_array(store, name="b", data=np.ones(3))
    repo.branches.create("dev", at="v1")
    return repo


def commits(repo: Repository, branch: str = "main") -> int:
    return len(repo.log(branch)) - 1


class TestReading:
    def test_fsspec_finds_it(self):
        assert fsspec.get_filesystem_class("vzarr") is VzarrFileSystem

    def test_by_url(self, filled, url):
        group = zarr.open(url, mode="r")
        assert isinstance(group.store, FsspecStore)
        assert sorted(group) == ["b", "g"]
        assert_array_equal(group["g/a"][:], np.arange(20) * 2)
        assert_array_equal(group["g/a"][5:9], np.arange(5, 9) * 2)

    def test_with_a_path_inside(self, filled, url):
        assert_array_equal(zarr.open(f"{url}/g/a", mode="r")[:], np.arange(20) * 2)
        assert list(zarr.open_group(f"{url}/g", mode="r")) == ["a"]
        assert_array_equal(zarr.open_array(url, path="g/a", mode="r")[-1], 38)

    def test_by_a_relative_url(self, filled, path, monkeypatch):
        monkeypatch.chdir(path.parent)
        assert_array_equal(zarr.open("vzarr://test.vzarr/b", mode="r")[:], 1)

    @pytest.mark.parametrize(
        ("options", "factor"),
        [
            ({"branch": "main"}, 2),
            ({"branch": "dev"}, 1),
            ({"ref": "v1"}, 1),
            ({"ref": "main~1"}, 1),
        ],
        ids=str,
    )
    def test_a_branch_or_ref(self, filled, url, options, factor):
        array = zarr.open_array(f"{url}/g/a", mode="r", storage_options=options)
        assert_array_equal(array[:], np.arange(20) * factor)

    def test_a_branch_is_read_as_it_is_now(self, filled, url):
        array = zarr.open_array(f"{url}/g/a", mode="r")
        snapshot = zarr.open_array(f"{url}/g/a", mode="r", storage_options={"ref": "main"})
        assert array[1] == snapshot[1] == 2
        with filled.transaction("main", "thrice") as store:
            zarr.open_array(store, path="g/a", mode="r+")[:] = np.arange(20) * 3
        assert array[1] == 3
        assert snapshot[1] == 2

    def test_what_does_not_exist(self, filled, url, tmp_path):
        for missing in (f"vzarr://{tmp_path}/none.vzarr", f"{url}/none"):
            with pytest.raises(FileNotFoundError):
                zarr.open_group(missing, mode="r")
            with pytest.raises(FileNotFoundError):
                zarr.open_array(missing, mode="r")
        assert not (tmp_path / "none.vzarr").exists()
        for options in ({"branch": "none"}, {"ref": "none"}):
            for mode in ("r", "a"):
                with pytest.raises(InvalidInputError, match="no branch"):
                    zarr.open_group(url, mode=mode, storage_options=options)
        with pytest.raises(InvalidInputError, match="names no vzarr file"):
            zarr.open_group("vzarr://nothing/of/that/kind", mode="r")

    def test_a_directory_may_be_named_like_a_repository(self, tmp_path):
        inner = tmp_path / "all.vzarr" / "one.vzarr"
        inner.parent.mkdir()
        with vzarr.open(inner) as repo:
            zarr.save_array(repo.store(), np.arange(3), path="x.vzarr/a")
            repo.commit("data")
        assert_array_equal(zarr.open(f"vzarr://{inner}/x.vzarr/a", mode="r")[:], np.arange(3))

    def test_sharded_arrays(self, repo, url):
        with repo.transaction("main", "shards") as store:
            array = zarr.create_array(
                store, name="a", shape=(64, 64), chunks=(4, 4), shards=(32, 32), dtype="i4"
            )
            array[:] = np.arange(4096).reshape(64, 64)
        found = zarr.open_array(f"{url}/a", mode="r")
        assert_array_equal(found[30:35, 7], np.arange(4096).reshape(64, 64)[30:35, 7])

    def test_xarray(self, repo, url):
        data = xr.Dataset({"a": ("x", [1.0, 2.0])}, {"x": [3, 4]}, {"title": "by URL"})
        with repo.transaction("main", "data") as store:
            data.to_zarr(store)
        options = {"storage_options": {"ref": "main"}, "consolidated": False}
        with xr.open_zarr(url, **options) as found:
            xr.testing.assert_identical(found.load(), data)

    def test_dask(self, filled, url):
        import dask.array as da

        lazy = da.from_zarr(zarr.open_array(f"{url}/g/a", mode="r"))
        assert lazy.sum().compute(scheduler="threads") == 380
        by_name = da.from_zarr(f"{url}/g/a")
        assert by_name.sum().compute(scheduler="threads") == 380

    def test_in_another_process(self, filled, url):
        array = zarr.open_array(f"{url}/g/a", mode="r", storage_options={"ref": "v1"})
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert_array_equal(pool.apply(np.asarray, (array,)), np.arange(20))
        assert_array_equal(pickle.loads(pickle.dumps(array))[:], np.arange(20))


class TestWriting:
    def test_each_write_is_durable_and_consecutive_ones_are_one_commit(self, repo, url):
        group = zarr.open_group(url, mode="a")
        array = group.create_array("a", shape=(10,), chunks=(2,), dtype="i4")
        for index in range(10):
            array[index] = index
            found = zarr.open_array(repo.store("main"), path="a", mode="r")
            assert_array_equal(found[: index + 1], np.arange(index + 1))
        array.append(np.arange(5))
        group.attrs["made"] = True
        assert commits(repo) == 1
        assert zarr.open_group(repo.store("main"), mode="r").attrs["made"]

    def test_another_writer_in_between(self, repo, url):
        group = zarr.open_group(url, mode="a")
        group.create_array("a", data=np.arange(5))
        with repo.transaction("main", "in between") as store:
            zarr.create_array(store, name="b", data=np.arange(5))
        group.create_array("c", data=np.arange(5))
        assert commits(repo) == 3
        assert sorted(zarr.open_group(repo.store("main"), mode="r")) == ["a", "b", "c"]
        assert sorted(group) == ["a", "b", "c"]

    @pytest.mark.parametrize("mode", ["w", "w-", "a"])
    def test_a_new_file(self, url, path, mode):
        zarr.open_group(url, mode=mode).create_array("a", data=np.arange(4))
        with vzarr.open(path, "r") as repo:
            assert_array_equal(zarr.open_array(repo.store("main"), path="a")[:], np.arange(4))
            assert commits(repo) == 1

    def test_over_what_was_there(self, filled, url):
        zarr.open_group(url, mode="w").create_array("new", data=np.arange(4))
        assert sorted(zarr.open_group(filled.store("main"), mode="r")) == ["new"]
        assert sorted(zarr.open_group(filled.store("main~1"), mode="r")) == ["b", "g"]
        with pytest.raises(FileExistsError):
            zarr.open_group(url, mode="w-")

    def test_deletions(self, filled, url):
        group = zarr.open_group(url, mode="r+")
        del group["g"]
        zarr.open_array(f"{url}/b", mode="r+").resize((0,))
        keys = sorted(filled.store("main").session.keys())
        assert keys == ["b/zarr.json", "zarr.json"]

    def test_to_a_branch(self, filled, url):
        options = {"branch": "dev"}
        zarr.open_array(f"{url}/g/a", mode="r+", storage_options=options)[:] = 5
        assert zarr.open_array(filled.store("dev"), path="g/a")[0] == 5
        assert zarr.open_array(filled.store("main"), path="g/a")[1] == 2

    def test_a_snapshot_is_not_written(self, filled, url):
        array = zarr.open_array(f"{url}/g/a", mode="r+", storage_options={"ref": "v1"})
        with pytest.raises(ReadOnlyError, match="snapshot"):
            array[:] = 5
        with pytest.raises(ReadOnlyError, match="snapshot"):
            fsspec.filesystem("vzarr", ref="v1").rm(f"{url}/g", recursive=True)
        assert commits(filled) == 2

    def test_xarray(self, repo, url):
        data = xr.Dataset({"a": (("x", "y"), np.ones((4, 3)))}, {"x": [1, 2, 3, 4]})
        data.to_zarr(url, consolidated=False)
        data.to_zarr(url, append_dim="x", consolidated=False)
        found = xr.open_zarr(repo.store("main"))
        assert found.sizes == {"x": 8, "y": 3}
        xr.testing.assert_identical(found.isel(x=slice(4)).load(), data)

    def test_threads(self, repo, url):
        array = zarr.open_group(url, mode="a").create_array(
            "a", shape=(30,), chunks=(1,), dtype="i4", compressors=None
        )
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda index: array.__setitem__(index, index), range(30)))
        assert_array_equal(zarr.open_array(repo.store("main"), path="a")[:], np.arange(30))


class TestFiles:
    """What fsspec's own callers do."""

    @pytest.fixture
    def fs(self, filled: Repository) -> VzarrFileSystem:
        return fsspec.filesystem("vzarr")

    def test_listing(self, fs, url, path):
        assert sorted(fs.ls(url, detail=False)) == [f"{path}/{n}" for n in ("b", "g", "zarr.json")]
        assert sorted(fs.ls(f"{url}/g/a/", detail=False)) == [
            f"{path}/g/a/{name}" for name in ("c", "zarr.json")
        ]
        details = {entry["name"]: entry for entry in fs.ls(f"{url}/b")}
        assert details[f"{path}/b/c"]["type"] == "directory"
        assert details[f"{path}/b/zarr.json"]["size"] == fs.size(f"{url}/b/zarr.json")
        with pytest.raises(FileNotFoundError):
            fs.ls(f"{url}/none")

    def test_finding(self, fs, url, path):
        assert fs.find(f"{url}/g/a/c") == [f"{path}/g/a/c/{n}" for n in range(5)]
        assert fs.find(url, maxdepth=1) == [f"{path}/zarr.json"]
        assert f"{path}/g/a" in fs.find(url, withdirs=True)
        details = fs.find(f"{url}/b", detail=True)
        assert details[f"{path}/b/c/0"]["type"] == "file"
        assert fs.glob(f"{url}/*/zarr.json") == [f"{path}/b/zarr.json", f"{path}/g/zarr.json"]
        assert [sorted(files) for _, _, files in fs.walk(f"{url}/b")] == [["zarr.json"], ["0"]]
        assert fs.du(f"{url}/b") == sum(entry["size"] for entry in details.values())

    def test_looking(self, fs, url):
        assert fs.exists(url)
        assert fs.exists(f"{url}/g/a/c/0")
        assert not fs.exists(f"{url}/none")
        assert not fs.exists("vzarr:///none/of/it.vzarr")
        assert fs.isdir(f"{url}/g")
        assert fs.isfile(f"{url}/g/zarr.json")
        assert not fs.isfile(f"{url}/g")

    def test_reading(self, fs, filled, url, path, tmp_path):
        expected = bytes(filled.store("main").session.get("g/zarr.json"))
        name = f"{url}/g/zarr.json"
        assert fs.cat(name) == expected
        assert fs.cat_file(name, 3, 9) == expected[3:9]
        assert fs.cat_file(name, start=-5) == expected[-5:]
        assert fs.cat_ranges([name, name], [0, 2], [4, 8]) == [expected[:4], expected[2:8]]
        assert list(fs.cat(fs.glob(f"{url}/g/a/c/[13]"))) == [f"{path}/g/a/c/{n}" for n in (1, 3)]
        with fs.open(name) as file:
            assert file.read() == expected
        with fsspec.open(name, mode="rb") as file:
            assert file.read(4) == expected[:4]
        for missing in (f"{url}/g", f"{url}/none", url):
            with pytest.raises(FileNotFoundError):
                fs.cat_file(missing)

    def test_writing(self, fs, filled, url):
        fs.pipe_file(f"{url}/notes/readme.txt", b"hello")
        assert bytes(filled.store("main").session.get("notes/readme.txt")) == b"hello"
        fs.cp_file(f"{url}/notes/readme.txt", f"{url}/copy.txt")
        fs.makedirs(f"{url}/dir", exist_ok=True)
        fs.mkdir(f"{url}/dir/dir")
        assert fs.cat_file(f"{url}/copy.txt") == b"hello"
        fs.rm_file(f"{url}/copy.txt")
        with pytest.raises(FileNotFoundError):
            fs.rm_file(f"{url}/copy.txt")
        fs.rm([f"{url}/notes", f"{url}/g"], recursive=True)
        assert sorted(fs.ls(url, detail=False)) == sorted(
            f"{url[8:]}/{n}" for n in ("b", "zarr.json")
        )
        assert commits(filled) == 3

    def test_writing_through_a_file_object_is_refused(self, fs, url):
        """fsspec's own file object would drop what is written to it."""
        for mode in ("wb", "ab", "xb", "r+b"):
            with pytest.raises(InvalidInputError, match="pipe_file"):
                fs.open(f"{url}/new", mode)

    def test_two_repositories_through_one_file_system(self, fs, url, tmp_path):
        other = f"vzarr://{tmp_path}/other.vzarr"
        fs.pipe_file(f"{other}/a", b"other")
        fs.cp_file(f"{url}/zarr.json", f"{other}/zarr.json")
        assert fs.cat(f"{other}/zarr.json") == fs.cat(f"{url}/zarr.json")
        assert sorted(fs.find(other)) == [f"{tmp_path}/other.vzarr/{n}" for n in ("a", "zarr.json")]
