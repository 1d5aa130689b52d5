"""dask writes through forks and reads snapshots: in threads, in processes, and in a cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from zarr.storage import MemoryStore

import vzarr
from vzarr import Repository, Session
from vzarr.xarray import to_vzarr


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A cluster of two processes with two threads each."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes for dask's own scheduler, which would start new ones each time."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["threads", "processes", "distributed"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of dask's schedulers, for what the test computes."""
    context: AbstractContextManager = dask.config.set(scheduler="threads")
    if request.param == "processes":
        context = dask.config.set(scheduler="processes", pool=request.getfixturevalue("pool"))
    elif request.param == "distributed":
        context = request.getfixturevalue("client").as_current()
    with context:
        yield request.param


@pytest.fixture
def session(repo: Repository) -> Session:
    return repo.session("main")


def numbers(rows: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1000, (rows, 30))


def ocean(days: int = 40, start: int = 0) -> xr.Dataset:
    """A dataset without dates of its own: a lazy variable, a small one in memory, a lazy scalar."""
    return xr.Dataset(
        {
            "sst": (("time", "x"), da.from_array(numbers(days, start) / 7, chunks=(10, 15))),
            "day": ("time", np.arange(start, start + days)),
        },
        coords={"time": np.arange(start, start + days), "x": np.arange(30.0)},
        attrs={"title": "an ocean"},
    )


def with_scalar(dataset: xr.Dataset) -> xr.Dataset:
    return dataset.assign(mean=((), dataset.sst.data.mean(), {"units": "K"}))


def content(session: Session) -> dict[str, bytes]:
    return {key: bytes(session.get(key)) for key in session.keys()}  # noqa: SIM118


def plainly(write: Callable[[MemoryStore], object]) -> dict[str, bytes]:
    """What xarray or dask write to zarr's own store."""
    values: dict = {}
    with dask.config.set(scheduler="synchronous", pool=None):
        write(MemoryStore(values))
    return {key: value.to_bytes() for key, value in values.items()}


def forks(repo: Repository) -> list[str]:
    return [found.id for found in repo.sessions() if found.kind == "fork"]


# ── dask.array ───────────────────────────────────────────────────────────────────────────────────


def create(store: zarr.abc.store.Store, name: str = "a") -> zarr.Array:
    return zarr.create_array(store, name=name, shape=(40, 30), chunks=(10, 15), dtype="i8")


def test_store(repo, session, scheduler):
    """Straight into an array of the fork, by whole chunks."""
    create(session.store)
    fork = session.fork()
    target = zarr.open_array(fork.store, path="a")
    da.store(da.from_array(numbers(), chunks=(10, 15)), target, lock=False)
    np.testing.assert_array_equal(target[:], numbers())
    session.merge_fork(fork)
    session.commit("by dask")
    np.testing.assert_array_equal(zarr.open_array(repo.store("main"), path="a")[:], numbers())
    expected = plainly(lambda store: create(store).__setitem__(slice(None), numbers()))
    assert content(session) == expected


def test_to_zarr_in_a_region(session, scheduler):
    array = create(session.store)
    fork = session.fork()
    target = zarr.open_array(fork.store, path="a")
    part = da.from_array(numbers(20), chunks=(10, 30))
    da.to_zarr(part, target, region=(slice(10, 30), slice(None)))
    session.merge_fork(fork)
    np.testing.assert_array_equal(array[10:30], numbers(20))
    assert not array[:10].any()
    assert not array[30:].any()


def test_what_dask_computes_from_what_it_has_written(session, scheduler):
    """Every worker sees what others have written to the fork before."""
    create(session.store)
    create(session.store, "b")
    fork = session.fork()
    first = zarr.open_array(fork.store, path="a")
    da.store(da.from_array(numbers(), chunks=(10, 15)), first, lock=False)
    again = da.from_array(first, chunks=(10, 15))
    da.store(again * 2, zarr.open_array(fork.store, path="b"), lock=False)
    session.merge_fork(fork)
    found = zarr.open_array(session.store, path="b")
    np.testing.assert_array_equal(found[:], numbers() * 2)


def test_futures_that_are_given_a_fork_each(session, client):
    """Blocks that share chunks: with a fork for each column of blocks they are put together."""
    array = create(session.store)
    left, right = session.fork(), session.fork()

    def write(fork: vzarr.fork.Fork, columns: slice) -> int:
        target = zarr.open_array(fork.store, path="a", mode="r+")
        target[:, columns] = numbers()[:, columns]
        return os.getpid()

    futures = [client.submit(write, left, slice(0, 10)), client.submit(write, right, slice(10, 30))]
    assert os.getpid() not in client.gather(futures)
    session.merge_fork(left, right)
    np.testing.assert_array_equal(array[:], numbers())


def scale(block: np.ndarray, target: zarr.Array, block_info: dict | None = None) -> np.ndarray:
    """Write ten times a block where it belongs; give back who has done it."""
    target[tuple(slice(*ends) for ends in block_info[0]["array-location"])] = 10 * block
    return np.full((1, 1), os.getpid())


def test_blocks_that_write_themselves(repo, session, client):
    """``map_blocks`` with a fork's array: what comes back are only numbers."""
    create(session.store)
    fork = session.fork()
    target = zarr.open_array(fork.store, path="a")
    blocks = da.from_array(numbers(), chunks=(20, 15))
    written = blocks.map_blocks(
        scale, target, dtype="i8", chunks=(1, 1), meta=np.empty((0, 0), "i8")
    )
    with client.as_current():
        pids = written.compute()
    assert pids.shape == (2, 2)
    assert os.getpid() not in pids
    session.merge_fork(fork)
    session.commit("by blocks")
    found = zarr.open_array(repo.store("main"), path="a")[:]
    np.testing.assert_array_equal(found, 10 * numbers())


def test_a_session_that_is_sent_to_a_cluster(session, client):
    """The task fails and says why; a task that could not be unpickled would never end."""
    array = create(session.store)
    future = client.submit(array.__setitem__, slice(None), 1)
    with pytest.raises(vzarr.SessionStateError, match=r"store of session\.fork\(\)"):
        future.result(timeout=60)
    assert client.submit(repr, array).result(timeout=60).startswith("<Array vzarr://")
    assert not array[:].any()
    session.discard()


def test_a_fork_that_has_ended_is_not_sent(session, client):
    """The call fails, not some worker that nobody hears."""
    create(session.store)
    fork = session.fork()
    array = zarr.open_array(fork.store, path="a")
    session.merge_fork(fork)
    session.commit("done")
    with pytest.raises(Exception) as caught:
        client.submit(array.__setitem__, slice(None), 1).result(timeout=60)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert any("fork a session anew" in str(error) for error in chain)
    assert not isinstance(caught.value, TimeoutError)


def fatal_once(block: np.ndarray, marker: str, block_info: dict | None = None) -> np.ndarray:
    """Kill the worker with all it is doing, when it comes to one of the blocks for the first time.

    The file says that it has been there; only one of the processes can make it.
    """
    if block_info[0]["chunk-location"] == (2, 1):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def test_a_worker_that_is_killed(repo, session, client, tmp_path):
    """Its tasks are done again by another, and the result is right."""
    create(session.store)
    fork = session.fork()
    marker = tmp_path / "killed"
    blocks = da.from_array(numbers(), chunks=(10, 15))
    blocks = blocks.map_blocks(fatal_once, str(marker), dtype="i8", meta=np.empty((0, 0), "i8"))
    with client.as_current():
        da.store(blocks, zarr.open_array(fork.store, path="a"), lock=False)
    assert marker.exists()
    session.merge_fork(fork)
    session.commit("in spite of it")
    np.testing.assert_array_equal(zarr.open_array(repo.store("main"), path="a")[:], numbers())


# ── to_vzarr ─────────────────────────────────────────────────────────────────────────────────────


def test_create_append_and_region(repo, session, scheduler):
    to_vzarr(with_scalar(ocean()), session)
    session.commit("created")
    to_vzarr(ocean(20, start=40), session, append_dim="time")
    session.commit("appended")
    correction = ocean(20, start=7)[["sst"]].drop_vars(["x", "time"])
    to_vzarr(correction, session, region={"time": slice(10, 30)})
    session.commit("corrected")
    assert not forks(repo)

    def write(store: MemoryStore) -> None:
        with_scalar(ocean()).to_zarr(store, consolidated=False)
        ocean(20, start=40).to_zarr(store, append_dim="time", consolidated=False)
        correction.to_zarr(store, region={"time": slice(10, 30)}, consolidated=False)

    assert content(repo.session("main")) == plainly(write)
    found = xr.open_zarr(repo.store("main")).compute()
    np.testing.assert_array_equal(found.sst[10:30], correction.sst)
    assert found.attrs == {"title": "an ocean"}
    with xr.open_dataset(repo.path, ref="main~2") as first:
        xr.testing.assert_identical(first.load(), with_scalar(ocean()).compute())


def test_dates_text_and_encoding(session, client):
    data = ocean().assign_coords(
        time=np.datetime64("2026-03-01", "ns") + np.arange(40) * np.timedelta64(1, "D")
    )
    encoding = {"sst": {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -1, "chunks": (5, 15)}}
    with client.as_current():
        to_vzarr(data, session, group="a/b", encoding=encoding, zarr_format=2)
        encoding["sst"]["chunks"] = (20, 15)
        to_vzarr(data, session, group="c", encoding=encoding, align_chunks=True)
    for group, chunks in (("a/b", (5, 15)), ("c", (20, 15))):
        found = xr.open_zarr(session.store, group=group)
        assert found.sst.encoding["dtype"] == np.dtype("i2")
        assert found.sst.encoding["chunks"] == chunks
        np.testing.assert_allclose(found.sst, data.sst, atol=0.05)
        xr.testing.assert_identical(found.time.compute(), data.time)
    assert session.get("a/b/.zgroup") is not None


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def test_a_cluster_reads_snapshots(repo, session, client):
    to_vzarr(ocean(), session)
    session.commit("first")
    with xr.open_dataset(repo.path, chunks={}) as first, client.as_current():
        lazy = first.sst.mean("x")
        # A commit that comes in between does not show.
        to_vzarr(ocean(start=1), session, mode="w")
        session.commit("second")
        xr.testing.assert_allclose(lazy.compute(), ocean().sst.mean("x").compute())
        with xr.open_dataset(repo.path, chunks={}) as second:
            xr.testing.assert_allclose(second.compute(), ocean(start=1).compute())


def test_from_one_snapshot_to_the_next(repo, session, client):
    """A cluster reads a commit, and writes what it makes of it in a session."""
    to_vzarr(ocean(), session)
    session.commit("first")
    with xr.open_dataset(repo.path, chunks={}) as data, client.as_current():
        to_vzarr(data.assign(sst=data.sst + 1), session, mode="w")
    session.commit("second")
    found = xr.open_zarr(repo.store("main"))
    xr.testing.assert_allclose(found.sst.compute(), ocean().sst.compute() + 1)


def read_and_write(path: str, ref: str, fork: vzarr.fork.Fork, rows: slice) -> tuple[int, float]:
    """Open the file by its path, as any program does, and write what comes of some rows."""
    with xr.open_dataset(path, ref=ref) as data:
        part = data.sst[rows].load()
    zarr.open_array(fork.store, path="doubled", mode="r+")[rows] = 2 * part.values
    return os.getpid(), float(part.sum())


def test_each_process_of_a_cluster_opens_the_file_itself(repo, session, client):
    """Workers read one file with xarray and write to it with one fork, all at once."""
    to_vzarr(ocean(), session)
    commit = session.commit("first")
    zarr.create_array(session.store, name="doubled", shape=(40, 30), chunks=(10, 30), dtype="f8")
    fork = session.fork()
    client.wait_for_workers(2, timeout=60)
    workers = list(client.scheduler_info()["workers"])
    assert len(workers) == 2
    futures = [
        client.submit(
            read_and_write,
            repo.path,
            commit,
            fork,
            slice(10 * part, 10 * part + 10),
            workers=[workers[part % 2]],
            allow_other_workers=False,
        )
        for part in range(4)
    ]
    answers = client.gather(futures)
    assert len({pid for pid, _ in answers} - {os.getpid()}) == 2
    expected = ocean().sst.compute()
    np.testing.assert_allclose(sum(total for _, total in answers), expected.sum())
    session.merge_fork(fork)
    session.commit("doubled")
    found = zarr.open_array(repo.store("main"), path="doubled")[:]
    np.testing.assert_array_equal(found, 2 * expected.values)
