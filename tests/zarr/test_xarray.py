"""xarray: datasets and trees written through stores, and opened by their file's name."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import vzarr
from vzarr import InvalidInputError, RefNotFoundError, Repository, Session
from vzarr.xarray import VzarrBackendEntrypoint

# xarray writes text of a fixed length, and dates, with types of which zarr says so.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


def ocean(days: int = 4, start: str = "2026-03-01") -> xr.Dataset:
    """A dataset with dates, text, missing values and attributes."""
    time = np.datetime64(start, "ns") + np.arange(days) * np.timedelta64(1, "D")
    first = (np.datetime64(start, "D") - np.datetime64("2026-03-01", "D")).astype(int)
    values = np.arange(days * 6, dtype="f8").reshape(days, 2, 3) + 100 * first
    values[0, 0, 0] = np.nan
    return xr.Dataset(
        {
            "sst": (("time", "lat", "lon"), values, {"units": "K"}),
            "depth": (("lat", "lon"), np.arange(6, dtype="i4").reshape(2, 3)),
        },
        coords={
            "time": time,
            "lat": [10.0, 20.0],
            "lon": [1.0, 2.0, 3.0],
            "station": ("lat", ["north", "söuth"]),
        },
        attrs={"title": "an ocean"},
    )


def tree() -> xr.DataTree:
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"root": True}),
            "/coarse": ocean(2),
            "/fine/surface": ocean(3).drop_vars("depth"),
        }
    )


@pytest.fixture
def filled(repo: Repository) -> Repository:
    """A repository with two commits of the ocean; the first has tag v1, branch dev has a third."""
    with repo.transaction("main", "first days") as store:
        ocean(4).to_zarr(store, zarr_format=3, mode="w")
    repo.tags.create("v1")
    with repo.transaction("main", "more days") as store:
        ocean(2, "2026-03-05").to_zarr(store, append_dim="time")
    repo.branches.create("dev", at="main")
    with repo.transaction("dev", "a title") as store:
        ocean(1).assign_attrs(title="another ocean").to_zarr(store, mode="w", zarr_format=3)
    return repo


BOTH = xr.concat([ocean(4), ocean(2, "2026-03-05")], "time", data_vars="minimal")


class TestWriting:
    @pytest.fixture(params=[2, 3], ids=["v2", "v3"])
    def zarr_format(self, request: pytest.FixtureRequest) -> int:
        return request.param

    @pytest.mark.parametrize("autocommit", [False, True])
    def test_a_dataset(self, repo, zarr_format, autocommit):
        store = repo.store("main", autocommit=True) if autocommit else repo.store()
        ocean().to_zarr(store, zarr_format=zarr_format)
        xr.testing.assert_identical(xr.open_zarr(store), ocean())
        if not autocommit:
            repo.commit("ocean")
        assert len(repo.log("main")) == 2
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")), ocean())

    def test_in_a_transaction(self, repo):
        with repo.transaction("main", "ocean") as store:
            ocean().to_zarr(store)
        bad = ocean(1).assign(wrong=("lat", [object(), object()]))
        with pytest.raises(ValueError, match="wrong"), repo.transaction("main", "no") as store:
            bad.to_zarr(store, mode="w")
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")), ocean())

    def test_appending_and_regions(self, repo, zarr_format):
        store = repo.store()
        ocean(4).to_zarr(store, zarr_format=zarr_format)
        repo.commit("four days")
        ocean(2, "2026-03-05").to_zarr(store, append_dim="time")
        repo.commit("two more")
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")), BOTH)
        xr.testing.assert_identical(xr.open_zarr(repo.store("main~1")), ocean(4))
        correction = BOTH[["sst"]].isel(time=slice(2, 4)).drop_vars(["lat", "lon", "station"]) * 0
        correction.to_zarr(store, region={"time": slice(2, 4)})
        BOTH[["sst"]].isel(time=slice(5, 6)).drop_vars("station").to_zarr(store, region="auto")
        repo.commit("corrected")
        expected = BOTH.copy(deep=True)
        expected["sst"][2:4] = 0
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")), expected)

    def test_modes(self, repo):
        store = repo.store()
        ocean(4).to_zarr(store)
        with pytest.raises(FileExistsError):
            ocean(1).to_zarr(store)
        ocean(1)[["depth"]].assign(more=("lat", [1, 2])).to_zarr(store, mode="a")
        assert set(xr.open_zarr(store).data_vars) == {"sst", "depth", "more"}
        ocean(1).to_zarr(store, mode="w")
        xr.testing.assert_identical(xr.open_zarr(store), ocean(1))
        repo.discard()
        assert not list(store.session.keys())

    def test_groups(self, repo):
        for group in ("a", "b/c"):
            ocean().to_zarr(repo.store(), group=group)
        repo.commit("groups")
        for group in ("a", "b/c"):
            xr.testing.assert_identical(xr.open_zarr(repo.store("main"), group=group), ocean())

    def test_a_tree(self, repo, zarr_format):
        tree().to_zarr(repo.store(), zarr_format=zarr_format, consolidated=False)
        repo.commit("tree")
        found = xr.open_datatree(repo.store("main"), engine="zarr", zarr_format=zarr_format)
        xr.testing.assert_identical(found, tree())

    def test_chunks_of_dask(self, repo):
        lazy = ocean(8).chunk(time=2)
        lazy.to_zarr(repo.store())
        repo.commit("lazily")
        found = xr.open_zarr(repo.store("main"))
        assert found.sst.chunks == ((2, 2, 2, 2), (2,), (3,))
        xr.testing.assert_identical(found.compute(), ocean(8))

    def test_delayed(self, repo):
        later = ocean(8).chunk(time=2).to_zarr(repo.store(), compute=False)
        assert np.isnan(xr.open_zarr(repo.store()).sst[7, 1, 1])
        later.compute()
        repo.commit("later")
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")).compute(), ocean(8))


class TestOpening:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, BOTH),
            ({"engine": "vzarr"}, BOTH),
            ({"branch": "main"}, BOTH),
            ({"ref": "main"}, BOTH),
            ({"ref": "main~1"}, ocean(4)),
            ({"ref": "v1"}, ocean(4)),
            ({"branch": "dev"}, ocean(1).assign_attrs(title="another ocean")),
        ],
        ids=str,
    )
    def test_by_name(self, filled, path, options, expected):
        with xr.open_dataset(path, **options) as found:
            xr.testing.assert_identical(found.load(), expected)

    def test_by_commit_and_by_time(self, filled, path):
        first = filled.log("main")[1]
        for ref in (first.id, first.id[:8], first.time + timedelta(microseconds=1)):
            with xr.open_dataset(path, ref=ref) as found:
                xr.testing.assert_identical(found.load(), ocean(4))
        with pytest.raises(vzarr.CommitNotFoundError):
            xr.open_dataset(path, ref=datetime(2000, 1, 1).astimezone())

    def test_by_every_kind_of_name(self, filled, path, monkeypatch):
        monkeypatch.chdir(path.parent)
        for name in (path, str(path), path.name, f"./{path.name}", f"vzarr://{path}"):
            with xr.open_dataset(name) as found:
                xr.testing.assert_identical(found.load(), BOTH)
        link = path.parent / "no suffix"
        link.symlink_to(path)
        with xr.open_dataset(link, engine="vzarr") as found:
            assert found.sizes["time"] == 6

    def test_guesses_only_what_is_a_repositorys_name(self, tmp_path):
        guess = VzarrBackendEntrypoint().guess_can_open
        assert guess("a.vzarr")
        assert guess(Path("a.vzarr"))
        assert guess("vzarr://b/a.vzarr")
        for other in ("a.zarr", "a.nc", b"a.vzarr", 5, None, "vzarr"):
            assert not guess(other)
        assert "vzarr" in xr.backends.list_engines()

    def test_what_does_not_exist(self, filled, path, tmp_path):
        with pytest.raises(FileNotFoundError):
            xr.open_dataset(tmp_path / "none.vzarr")
        assert not (tmp_path / "none.vzarr").exists()
        for options in ({"ref": "none"}, {"branch": "none"}, {"branch": ""}):
            with pytest.raises(RefNotFoundError):
                xr.open_dataset(path, **options)
        with pytest.raises(InvalidInputError, match="one of them"):
            xr.open_dataset(path, branch="main", ref="v1")
        with pytest.raises(FileNotFoundError):
            xr.open_dataset(path, group="none")
        (tmp_path / "text.vzarr").write_text("not a repository")
        with pytest.raises(vzarr.NotARepositoryError):
            xr.open_dataset(tmp_path / "text.vzarr")

    def test_what_fails_to_open_leaves_nothing_open(self, filled, path):
        with pytest.raises(FileNotFoundError):
            xr.open_dataset(path, group="none")
        filled.close()
        # Refuses while the file is open.
        vzarr.delete(path)

    def test_options_of_xarray(self, filled, path):
        with xr.open_dataset(path, drop_variables="sst", decode_times=False) as found:
            assert set(found.data_vars) == {"depth"}
            assert found.time.dtype.kind in "if"
        with xr.open_dataset(path, mask_and_scale=False, zarr_format=3) as found:
            assert "_FillValue" in found.sst.attrs
        with pytest.raises(TypeError):
            xr.open_dataset(path, none_such=1)

    def test_a_snapshot_does_not_move(self, filled, path):
        with xr.open_dataset(path) as found:
            with filled.transaction("main", "overwrite") as store:
                ocean(1).to_zarr(store, mode="w")
            xr.testing.assert_identical(found.load(), BOTH)

    def test_load_dataset_and_dataarray(self, filled, path):
        xr.testing.assert_identical(xr.load_dataset(path), BOTH)
        found = xr.load_dataarray(path, drop_variables="depth")
        xr.testing.assert_identical(found, BOTH.sst)

    def test_many_files(self, tmp_path):
        for number, start in enumerate(("2026-03-01", "2026-03-05")):
            with vzarr.open(tmp_path / f"{number}.vzarr") as repo:
                ocean(4 if number == 0 else 2, start).to_zarr(repo.store())
                repo.commit("ocean")
        files = [str(tmp_path / f"{number}.vzarr") for number in range(2)]
        with xr.open_mfdataset(
            files, data_vars="minimal", coords="minimal", compat="override"
        ) as ds:
            xr.testing.assert_identical(ds.load(), BOTH)
        for file in files:
            vzarr.delete(file)


class TestTrees:
    @pytest.fixture
    def planted(self, repo: Repository) -> Repository:
        with repo.transaction("main", "a tree") as store:
            tree().to_zarr(store, consolidated=False)
        with repo.transaction("main", "a leaf less") as store:
            store.session.delete_below("fine/surface")
        return repo

    def test_open_datatree(self, planted, path):
        with xr.open_datatree(path, ref="main~1") as found:
            assert [node.path for node in found.subtree] == [
                "/",
                "/coarse",
                "/fine",
                "/fine/surface",
            ]
            xr.testing.assert_identical(found.load(), tree())
        with xr.open_datatree(path, engine="vzarr", branch="main") as found:
            assert "surface" not in found["fine"].children

    def test_open_datatree_of_a_group(self, planted, path):
        with xr.open_datatree(path, ref="main~1", group="fine") as found:
            xr.testing.assert_identical(found["surface"].to_dataset().load(), ocean(3)[["sst"]])

    def test_open_groups(self, planted, path):
        groups = xr.open_groups(path, ref="main~1")
        assert list(groups) == ["/", "/coarse", "/fine", "/fine/surface"]
        xr.testing.assert_identical(groups["/coarse"].load(), ocean(2))
        for group in groups.values():
            group.close()

    def test_open_with_dask(self, planted, path):
        with xr.open_datatree(path, ref="main~1", chunks={}) as found:
            assert found["coarse/sst"].chunks is not None
            xr.testing.assert_identical(found.load(), tree())

    def test_groups_close_the_file_with_the_last(self, planted, path):
        groups = xr.open_groups(path, ref="main~1")
        planted.close()
        last = groups.pop("/coarse")
        for group in groups.values():
            group.close()
        xr.testing.assert_identical(last.load(), ocean(2))
        last.close()
        vzarr.delete(path)

    def test_a_tree_closes_the_file(self, planted, path):
        with xr.open_datatree(path, ref="main~1", chunks={}) as found:
            planted.close()
            assert float(found["coarse/sst"].max()) == 11
        vzarr.delete(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The lengths of the chunks and documents that are read."""
    lengths: list[int] = []
    read = Session.read

    def counted(self, blob):
        lengths.append(blob.length)
        return read(self, blob)

    monkeypatch.setattr(Session, "read", counted)
    return lengths


class TestLaziness:
    @pytest.fixture
    def big(self, repo: Repository) -> Repository:
        """Four chunks of 400 kB, and little else that is longer than a document."""
        values = np.random.default_rng(0).random((4, 50_000))
        data = xr.Dataset({"a": (("time", "x"), values)}, {"time": np.arange(4)})
        with repo.transaction("main", "big") as store:
            data.to_zarr(store, encoding={"a": {"chunks": (1, 50_000), "compressors": None}})
        return repo

    @pytest.mark.parametrize("chunks", [None, {}, {"time": 1}])
    def test_no_chunk_is_read_at_opening(self, big, path, reads, chunks):
        with xr.open_dataset(path, chunks=chunks) as found:
            assert found.a.shape == (4, 50_000)
            assert found.a.dtype == "f8"
            repr(found)
            assert max(reads) < 400_000
            found.a[2, :5].values  # noqa: B018
            assert reads.count(400_000) == 1
            found.a.mean().compute()
            assert reads.count(400_000) >= 4

    def test_nor_of_a_tree(self, big, path, reads):
        with xr.open_datatree(path) as found:
            assert found["a"].shape == (4, 50_000)
        with xr.open_groups(path)["/"] as found:
            assert found["a"].shape == (4, 50_000)
        assert max(reads) < 400_000

    def test_values_are_kept_once_read(self, big, path, reads):
        with xr.open_dataset(path) as found:
            found.a.load()
            before = len(reads)
            found.a.mean()
            assert len(reads) == before

    def test_dask_reads_in_threads(self, big, path):
        with xr.open_dataset(path, chunks={}) as found:
            mean = found.a.mean().compute(scheduler="threads")
            with xr.open_dataset(path) as eager:
                assert np.isclose(mean, eager.a.mean())

    def test_dask_reads_in_processes(self, big, path):
        with xr.open_dataset(path, chunks={}) as found:
            total = found.a.sum().compute(scheduler="processes", num_workers=2)
            assert np.isclose(total, found.a.sum())


class TestClosing:
    def test_releases_the_file(self, filled, path):
        filled.close()
        found = xr.open_dataset(path)
        with pytest.raises(vzarr.SessionStateError):
            vzarr.delete(path)
        found.close()
        found.close()
        vzarr.delete(path)

    def test_what_was_loaded_remains(self, filled, path):
        filled.close()
        with xr.open_dataset(path) as found:
            found.depth.load()
        assert found.depth[0, 1] == 1
        with pytest.raises(vzarr.SessionStateError, match="open it again"):
            found.sst.load()

    def test_leaves_others_open(self, filled, path):
        first, second = xr.open_dataset(path), xr.open_dataset(path)
        first.close()
        xr.testing.assert_identical(second.load(), BOTH)
        second.close()
        assert len(filled.log("main")) == 3

    def test_letting_go_of_it_closes_too(self, filled, path):
        filled.close()
        part = xr.open_dataset(path).sst.isel(time=0)
        assert part[1, 1] == 4
        del part
        gc.collect()
        vzarr.delete(path)

    def test_a_dataset_can_be_pickled(self, filled, path):
        found = xr.open_dataset(path)
        copy = pickle.loads(pickle.dumps(found))
        found.close()
        xr.testing.assert_identical(copy.load(), BOTH)
        copy.close()
        groups = pickle.loads(pickle.dumps(xr.open_groups(path)))
        xr.testing.assert_identical(groups["/"].load(), BOTH)
        for group in groups.values():
            group.close()
