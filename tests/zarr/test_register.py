"""``vzarr.register()``: repositories by their file's name, wherever zarr takes a path."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
import zarr.storage._common as common
from numpy.testing import assert_array_equal

import vzarr
from vzarr import Repository, SessionStateError, VzarrStore
from vzarr.registration import unregister


@pytest.fixture
def registered() -> Iterator[None]:
    vzarr.register()
    yield
    unregister()


def replaced() -> list:
    """The functions of zarr that are replaced."""
    return [common.make_store, zarr.open_consolidated, zarr.consolidate_metadata]


def commits(path: Path) -> int:
    with vzarr.open(path, "r") as repo:
        return len(repo.log("main")) - 1


def head(path: Path) -> VzarrStore:
    return vzarr.open(path, "r").store("main")


@pytest.mark.usefixtures("registered")
class TestZarr:
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_save_and_load(self, path, zarr_format):
        zarr.save(str(path), np.arange(20), zarr_format=zarr_format)
        assert_array_equal(zarr.load(str(path)), np.arange(20))
        assert commits(path) == 1

    def test_save_group(self, path):
        zarr.save(path, a=np.arange(5), b=np.ones(3))
        assert sorted(zarr.open_group(path, mode="r")) == ["a", "b"]
        assert commits(path) == 1

    def test_create_and_open(self, path):
        array = zarr.create_array(path, name="g/a", shape=(6,), chunks=(2,), dtype="i4")
        array[:] = np.arange(6)
        zarr.create_group(path, path="h", attributes={"a": 1})
        for name in (path, str(path), f"{path}/", f"vzarr://{path}"):
            group = zarr.open(name, mode="r")
            assert isinstance(group.store, VzarrStore)
            assert_array_equal(group["g/a"][:], np.arange(6))
            assert_array_equal(zarr.open_array(name, path="g/a", mode="r")[:], np.arange(6))
            assert zarr.open_group(name, path="h", mode="r").attrs["a"] == 1

    def test_by_a_relative_name(self, path, monkeypatch):
        monkeypatch.chdir(path.parent)
        zarr.save("test.vzarr", np.arange(3))
        assert_array_equal(zarr.load("vzarr://test.vzarr"), np.arange(3))

    def test_writes_are_committed_as_they_are_made(self, path):
        group = zarr.open_group(path)
        array = group.create_array("a", shape=(4,), chunks=(1,), dtype="i4")
        for index in range(4):
            array[index] = index
            assert zarr.open_array(head(path), path="a")[index] == index
        array.append(np.arange(3))
        assert commits(path) == 1
        zarr.open_array(path, path="a", mode="r+")[0] = 9
        assert commits(path) == 2

    def test_modes(self, path):
        for mode in ("r", "r+"):
            with pytest.raises(FileNotFoundError):
                zarr.open_group(path, mode=mode)
            assert not path.exists()
        zarr.open_group(path, mode="w-").create_group("first")
        with pytest.raises(FileExistsError):
            zarr.open_group(path, mode="w-")
        zarr.open_group(path, mode="a").create_group("second")
        zarr.open_group(path, mode="r+").create_group("third")
        zarr.open_group(path, mode="w").create_group("only")
        group = zarr.open_group(path, mode="r")
        assert list(group) == ["only"]
        with pytest.raises(vzarr.ReadOnlyError):
            group.create_group("more")
        with vzarr.open(path, "r") as repo:
            before = zarr.open_group(repo.store("main~1"), mode="r")
            assert sorted(before) == ["first", "second", "third"]

    def test_mode_r_is_a_snapshot(self, path):
        zarr.save(path, a=np.zeros(3))
        array = zarr.open(path, mode="r")["a"]
        zarr.open_array(path, path="a", mode="r+")[:] = 1
        assert_array_equal(array[:], 0)

    def test_an_array_is_copied_from_another_store(self, path, tmp_path):
        zarr.save_array(tmp_path / "local.zarr", np.arange(9))
        zarr.from_array(path, data=zarr.open_array(tmp_path / "local.zarr"), name="copy")
        assert_array_equal(zarr.open_array(path, path="copy", mode="r")[:], np.arange(9))

    def test_a_file_that_is_no_repository(self, path):
        path.write_text("something else")
        with pytest.raises(vzarr.NotARepositoryError):
            zarr.open_group(path)
        assert path.read_text() == "something else"
        path.unlink()

    def test_storage_options_go_to_fsspec(self, path):
        zarr.save(path, a=np.arange(3))
        group = zarr.open_group(f"vzarr://{path}", mode="r", storage_options={"ref": "main"})
        assert list(group) == ["a"]
        with pytest.raises(FileNotFoundError):
            zarr.open_group(f"vzarr://{path}", mode="r", storage_options={"ref": "main~1"})

    def test_consolidated_metadata_is_neither_needed_nor_written(self, path):
        zarr.save(path, a=np.arange(3))
        with vzarr.open(path) as repo:
            before = repo.root_id("main")
            for store in (path, repo.store()):
                assert list(zarr.consolidate_metadata(store)) == ["a"]
                assert list(zarr.open_consolidated(store, mode="r")) == ["a"]
            assert repo.root_id("main") == before
            with pytest.raises(ValueError, match="read-only"):
                zarr.consolidate_metadata(repo.store("main"))


@pytest.mark.usefixtures("registered")
class TestXarray:
    DATA = xr.Dataset({"a": (("x", "y"), np.ones((4, 3)))}, {"x": [1, 2, 3, 4]}, {"title": "t"})

    def test_to_zarr_and_open_zarr(self, path):
        self.DATA.to_zarr(path)
        self.DATA.to_zarr(path, append_dim="x")
        assert commits(path) == 2
        with xr.open_zarr(path) as found:
            assert found.sizes == {"x": 8, "y": 3}
            xr.testing.assert_identical(found.isel(x=slice(4)).load(), self.DATA)
        with xr.open_dataset(path, engine="zarr") as found:
            assert found.sizes["x"] == 8

    def test_with_dask(self, path):
        self.DATA.chunk(x=1).to_zarr(str(path))
        with xr.open_zarr(str(path)) as found:
            assert found.a.chunks == ((1, 1, 1, 1), (3,))
            xr.testing.assert_identical(found.compute(), self.DATA)

    def test_trees(self, path):
        tree = xr.DataTree.from_dict({"/": xr.Dataset(attrs={"root": 1}), "/a/b": self.DATA})
        tree.to_zarr(path)
        with xr.open_datatree(path, engine="zarr") as found:
            xr.testing.assert_identical(found.load(), tree)

    def test_closing_releases_the_file(self, path):
        self.DATA.to_zarr(path)
        with xr.open_zarr(path) as found:
            found.load()
        vzarr.delete(path)


class TestRegistration:
    def test_it_is_opt_in(self, path):
        zarr.save(path, np.arange(3))
        assert path.is_dir()

    def test_it_can_be_undone(self, path):
        original = replaced()
        vzarr.register()
        assert all(map(operator.is_not, replaced(), original))
        zarr.save(path, np.arange(3))
        open_before = zarr.open(path, mode="r")
        unregister()
        assert all(map(operator.is_, replaced(), original))
        assert path.is_file()
        with pytest.raises(FileNotFoundError):
            zarr.open(path, mode="r")
        assert_array_equal(open_before[:], np.arange(3))
        unregister()
        assert all(map(operator.is_, replaced(), original))

    def test_twice_is_once(self, registered):
        once = replaced()
        vzarr.register()
        assert all(map(operator.is_, replaced(), once))

    @pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
    def test_other_stores_are_left_alone(self, registered, tmp_path):
        zarr.save(tmp_path / "a.zarr", np.arange(3))
        assert (tmp_path / "a.zarr").is_dir()
        zarr.save(tmp_path / "b.zip.vzarr.zarr", np.arange(3))
        assert isinstance(zarr.open(tmp_path / "a.zarr").store, zarr.storage.LocalStore)
        assert isinstance(zarr.open_group({}).store, zarr.storage.MemoryStore)
        assert isinstance(zarr.open_group(None, mode="w").store, zarr.storage.MemoryStore)
        memory = zarr.storage.MemoryStore()
        assert zarr.open_group(memory).store is memory
        zarr.consolidate_metadata(memory, zarr_format=3)
        assert zarr.open_consolidated(memory).metadata.consolidated_metadata is not None
        url = zarr.open_group("memory://some.vzarr", mode="w")
        assert not isinstance(url.store, VzarrStore)

    def test_a_directory_of_that_name_stays_a_directory(self, tmp_path):
        path = tmp_path / "old.vzarr"
        zarr.save(path, np.arange(3))
        vzarr.register()
        try:
            assert_array_equal(zarr.load(path), np.arange(3))
            assert isinstance(zarr.open(path).store, zarr.storage.LocalStore)
        finally:
            unregister()

    def test_stores_are_taken_as_ever(self, registered, repo: Repository):
        zarr.save(repo.store(), np.arange(3))
        assert_array_equal(zarr.load(repo.store()), np.arange(3))

    def test_a_zarr_that_is_built_differently(self, monkeypatch):
        monkeypatch.setattr(common, "make_store", lambda *arguments: None)
        before = common.make_store
        with pytest.raises(SessionStateError, match="pass a store instead"):
            vzarr.register()
        assert common.make_store is before
