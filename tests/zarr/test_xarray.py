"""xarray: datasets and trees written through stores, and opened by their file's name."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import vzarr
from vzarr import (
    BusyError,
    ConflictError,
    InvalidInputError,
    ReadOnlyError,
    RefNotFoundError,
    Repository,
    Session,
    SessionStateError,
)
from vzarr.fork import Fork
from vzarr.xarray import VzarrBackendEntrypoint, to_vzarr

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


def lazy_ocean(days: int = 4, start: str = "2026-03-01") -> xr.Dataset:
    return ocean(days, start).chunk(time=2)


IN_MEMORY = ocean()


def lazy_tree() -> xr.DataTree:
    return tree().chunk(time=1)


def plainly(write: Callable[[MemoryStore], object]) -> dict[str, bytes]:
    """What xarray writes to zarr's own store."""
    values: dict = {}
    write(MemoryStore(values))
    return {key: value.to_bytes() for key, value in values.items()}


def content(session: Session) -> dict[str, bytes]:
    return {key: bytes(session.get(key)) for key in session.keys()}  # noqa: SIM118


def with_blocks(dataset: xr.Dataset, compute: Callable[[np.ndarray], np.ndarray]) -> xr.Dataset:
    """The dataset with blocks of its main variable that ``compute`` makes of them."""

    blocks = dataset.sst.data.map_blocks(compute, dtype="f8", meta=np.empty((0, 0, 0)))
    return dataset.assign(sst=dataset.sst.copy(data=blocks))


def failing(days: int, start: str = "2026-03-01") -> xr.Dataset:
    def fail(block: np.ndarray) -> np.ndarray:
        raise ArithmeticError("this block cannot be computed")

    return with_blocks(lazy_ocean(days, start), fail)


class TestToVzarr:
    """Other schedulers than threads are in ``test_dask``."""

    @pytest.fixture
    def session(self, repo: Repository) -> Session:
        return repo.session("main")

    @pytest.fixture
    def forks(self, monkeypatch: pytest.MonkeyPatch) -> list[Fork]:
        """The forks that are made."""
        made: list[Fork] = []
        fork = Session.fork

        def noted(self: Session) -> Fork:
            made.append(fork(self))
            return made[-1]

        monkeypatch.setattr(Session, "fork", noted)
        return made

    @pytest.mark.parametrize(
        "data",
        [
            ocean(),
            lazy_ocean(),
            ocean().sst,
            lazy_ocean().sst,
            ocean().sst.drop_vars("station").rename(None),
            lazy_ocean().sst.assign_coords(depth=("time", da.arange(4, chunks=2))),
            ocean().sst.assign_coords(depth=("time", da.arange(4, chunks=2))),
            tree(),
            lazy_tree(),
            xr.Dataset({"scalar": ((), da.ones((), chunks=()))}),
            xr.Dataset({"empty": ("x", da.zeros(0, chunks=1))}),
            xr.Dataset(attrs={"nothing": "else"}),
        ],
        ids=lambda data: f"{type(data).__name__} {getattr(data, 'name', '')}",
    )
    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_what_xarray_would_write(self, repo, session, data, zarr_format):
        assert to_vzarr(data, session, zarr_format=zarr_format) is None
        expected = plainly(
            lambda store: data.to_zarr(store, consolidated=False, zarr_format=zarr_format)
        )
        assert content(session) == expected
        session.commit("written")
        assert content(repo.session("main")) == expected

    @pytest.mark.parametrize(
        "data",
        [lazy_ocean(), lazy_ocean().sst, lazy_tree(), IN_MEMORY],
        ids=["ds", "da", "dt", "no"],
    )
    def test_what_is_lazy_goes_through_a_fork(self, session, forks, data):
        to_vzarr(data, session)
        assert len(forks) == (data is not IN_MEMORY)

    @pytest.mark.parametrize(
        "options",
        [
            {"group": "a/b"},
            {"mode": "w"},
            {"mode": "a"},
            {"encoding": {"sst": {"chunks": (1, 2, 3), "compressors": None}}},
            {"encoding": {"sst": {"dtype": "i2", "_FillValue": -1}}},
            {"write_empty_chunks": True},
            {"write_empty_chunks": False},
            {"encoding": {"sst": {"chunks": (2, 2, 3)}}, "align_chunks": True},
            {"chunkmanager_store_kwargs": {"scheduler": "synchronous"}},
        ],
        ids=str,
    )
    def test_options_are_xarrays(self, session, options):
        data = lazy_ocean().fillna(0)
        to_vzarr(data, session, **options)
        assert content(session) == plainly(
            lambda store: data.to_zarr(store, consolidated=False, **options)
        )

    @pytest.mark.parametrize("grown", ["at once", "one by one"])
    def test_append(self, repo, session, grown):
        to_vzarr(lazy_ocean(4), session)
        if grown == "one by one":
            session.commit("first")
        to_vzarr(lazy_ocean(2, "2026-03-05"), session, append_dim="time")
        session.commit("all")
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")).compute(), BOTH)

    @pytest.mark.parametrize("region", ["auto", {"time": "auto"}, {"time": slice(2, 4)}])
    def test_region(self, session, region):
        to_vzarr(lazy_ocean(), session)
        part = lazy_ocean()[["sst"]].isel(time=slice(2, 4)).drop_vars("station") * 0 + 7
        if isinstance(region, dict):
            part = part.drop_vars(["lat", "lon"])
        to_vzarr(part, session, region=region)
        found = xr.open_zarr(session.store)
        assert (found.sst[2:] == 7).all()
        xr.testing.assert_equal(found.sst[:2].compute(), ocean().sst[:2])

    def test_a_new_variable_beside_others(self, session):
        to_vzarr(lazy_ocean(), session)
        to_vzarr(lazy_ocean()[["sst"]].rename(sst="again"), session, mode="a")
        found = xr.open_zarr(session.store)
        xr.testing.assert_equal(found.sst, found.again)

    def test_overwriting_leaves_nothing_of_what_was_there(self, session):
        to_vzarr(lazy_tree(), session)
        to_vzarr(lazy_ocean(), session, mode="w")
        assert content(session) == plainly(
            lambda store: lazy_ocean().to_zarr(store, consolidated=False)
        )

    @pytest.mark.parametrize(
        ("data", "options", "error"),
        [
            (lazy_ocean(), {"mode": "w-"}, FileExistsError),
            (lazy_ocean(), {}, FileExistsError),
            (lazy_ocean(), {"mode": "r+", "group": "none"}, FileNotFoundError),
            (lazy_ocean(3), {"mode": "r+"}, ValueError),
            # xarray appends to what is there, and makes nothing to append to.
            (lazy_ocean(), {"append_dim": "time", "group": "none"}, ValueError),
            (lazy_ocean(), {"region": {"time": slice(3, 7)}}, ValueError),
            (lazy_ocean(), {"group": "b", "encoding": {"none": {}}}, KeyError),
            (lazy_ocean(), {"group": "b", "encoding": {"sst": {"chunks": (3, 2, 3)}}}, ValueError),
            (failing(4), {"group": "b"}, ArithmeticError),
            (failing(3), {"mode": "w"}, ArithmeticError),
            (failing(2, "2026-03-05"), {"append_dim": "time"}, ArithmeticError),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_after_an_error_the_session_is_as_it_was(self, repo, session, data, options, error):
        to_vzarr(lazy_ocean(), session)
        session.commit("an ocean")
        session.root_group.create_group("edit")
        before = content(session)
        with pytest.raises(error):
            to_vzarr(data, session, **options)
        assert content(session) == before
        assert [found.kind for found in repo.sessions()] == ["session"]
        session.merge_fork()
        assert content(session) == before

    def test_it_says_when_it_cannot_drop_what_it_wrote(self, session, monkeypatch):
        def busy(self: Fork) -> None:
            raise BusyError("the file is busy")

        monkeypatch.setattr(Fork, "discard", busy)
        with pytest.raises(ArithmeticError) as caught:
            to_vzarr(failing(4), session)
        assert "could not be dropped: the file is busy" in caught.value.__notes__[-1]

    def test_what_the_session_wrote_meanwhile_stays(self, session):
        to_vzarr(ocean(8), session)
        array = session.root_group["depth"]

        def beside(block: np.ndarray) -> np.ndarray:
            array[1, 2] = 99
            session.root_group.create_group("beside")
            return block + 1

        to_vzarr(with_blocks(ocean(8).chunk(time=8), beside)[["sst"]], session, mode="a")
        assert array[1, 2] == 99
        assert "beside" in session.root_group
        xr.testing.assert_equal(xr.open_zarr(session.store).sst.compute(), ocean(8).sst + 1)

    def test_a_conflict_with_the_session(self, session):
        to_vzarr(lazy_ocean(), session)
        before = content(session)
        later = to_vzarr(lazy_ocean() * 2, session, mode="a", compute=False)
        session.root_group["sst"][3] = -1
        with pytest.raises(ConflictError, match="another fork"):
            later.compute()
        assert xr.open_zarr(session.store).sst[3, 0, 0] == -1
        later.discard()
        session.root_group["sst"][3] = ocean().sst.values[3]
        assert content(session) == before

    def test_delayed(self, repo, session):
        later = to_vzarr(lazy_ocean(8), session, compute=False)
        assert not session.has_changes
        later.compute(scheduler="synchronous")
        assert content(session) == plainly(
            lambda store: lazy_ocean(8).to_zarr(store, consolidated=False)
        )
        with pytest.raises(SessionStateError):
            later.compute()
        session.commit("later")
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")).compute(), ocean(8))

    def test_delayed_and_given_up(self, repo, session, forks):
        later = to_vzarr(lazy_ocean(8), session, compute=False)
        later.discard()
        with pytest.raises(SessionStateError):
            later.compute()
        assert not session.has_changes
        in_memory = to_vzarr(ocean(), session, compute=False)
        assert len(forks) == 2
        in_memory.compute()
        xr.testing.assert_identical(xr.open_zarr(session.store).compute(), ocean())

    def test_in_a_transaction(self, repo):
        with repo.transaction("main", "an ocean") as store:
            to_vzarr(lazy_ocean(), store.session)
        with pytest.raises(ArithmeticError), repo.transaction("main", "no") as store:
            to_vzarr(failing(2, "2026-03-05"), store.session, append_dim="time")
        xr.testing.assert_identical(xr.open_zarr(repo.store("main")).compute(), ocean())

    def test_where_it_cannot_write(self, repo):
        reader = repo.session(repo.branches["main"])
        serializable = repo.session("main", isolation="serializable")
        for data in (ocean(), lazy_ocean()):
            with pytest.raises(InvalidInputError, match=r"repo.session\(...\) gives one"):
                to_vzarr(data, repo.store())
            with pytest.raises(ValueError, match="read-only"):
                to_vzarr(data, reader)
        with pytest.raises(ReadOnlyError):
            to_vzarr(lazy_ocean(), reader)
        with pytest.raises(SessionStateError, match="serializable session cannot be forked"):
            to_vzarr(lazy_ocean(), serializable)
        to_vzarr(ocean(), serializable)
        serializable.commit("an ocean")


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
    read, in_place = Session.read, Session.in_place

    def counted(self, blob):
        lengths.append(blob.length)
        return read(self, blob)

    @contextmanager
    def counted_in_place(self):
        with in_place(self) as read:
            yield lambda blob: (lengths.append(blob.length), read(blob))[1]

    monkeypatch.setattr(Session, "read", counted)
    monkeypatch.setattr(Session, "in_place", counted_in_place)
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
