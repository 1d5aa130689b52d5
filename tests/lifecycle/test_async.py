"""Stores in asynchronous programs: inside a running loop, in several loops, and cancelled."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer

import vzarr
from tests.processes import threads

PROTOTYPE = default_buffer_prototype()
LARGE = 300 << 10
"""Bytes of a value that is written in a thread beside the loop."""


def buffer(data: bytes) -> Buffer:
    return Buffer.from_bytes(data)


async def read(store: vzarr.VzarrStore, key: str) -> bytes | None:
    found = await store.get(key, PROTOTYPE)
    return None if found is None else found.to_bytes()


async def test_the_synchronous_api_inside_a_running_loop(repo):
    """As in a cell of Jupyter: zarr has a loop of its own, and nothing of ours waits for this."""
    with repo.transaction("main", "in a loop") as store:
        array = zarr.create_array(store, name="a", data=np.arange(10), chunks=(2,))
        array[3] = -1
    assert zarr.open_array(repo.store("main"), path="a")[3] == -1
    assert repo.run(lambda store: store.session.has_changes, "main")[1] is False
    fork = (session := repo.session("main")).fork()
    fork.set("b", b"b")
    session.merge_fork()
    session.commit("a fork's")
    assert await read(repo.store("main"), "b") == b"b"


async def test_a_store_is_awaited(repo):
    session = repo.session("main")
    store = session.store
    await asyncio.gather(
        *(store.set(f"key{number}", buffer(b"%d" % number)) for number in range(50)),
        *(store.set(f"large{number}", buffer(bytes([number]) * LARGE)) for number in range(10)),
    )
    found = await asyncio.gather(*(read(store, f"large{number}") for number in range(10)))
    assert found == [bytes([number]) * LARGE for number in range(10)]
    assert len([key async for key in store.list()]) == 60
    session.commit("gathered")
    assert await read(repo.store("main"), "key49") == b"49"


def test_a_store_in_one_loop_after_the_other(repo):
    session = repo.session("main")
    store = session.store

    async def write(number: int) -> None:
        await store.set("number", buffer(b"%d" % number))
        await store.set("large", buffer(bytes([number]) * LARGE))

    for number in range(3):
        asyncio.run(write(number))
    assert asyncio.run(read(store, "number")) == b"2"
    session.commit("loops")
    assert asyncio.run(read(repo.store("main"), "large")) == bytes([2]) * LARGE


def test_a_store_in_the_loops_of_many_threads(repo):
    """And in zarr's own, at the same time."""
    session = repo.session("main")
    store = session.store
    zarr.create_array(store, name="a", shape=64, chunks=4, dtype="i8")
    begin = threading.Barrier(5)

    def in_a_loop(thread: int) -> None:
        async def work() -> None:
            for number in range(20):
                await store.set(f"{thread}/{number}", buffer(b"%d" % number))
                await store.set(f"{thread}/large", buffer(bytes([number]) * LARGE))
                assert await read(store, f"{thread}/{number}") == b"%d" % number

        begin.wait()
        asyncio.run(work())

    def through_zarr() -> None:
        begin.wait()
        for number in range(10):
            zarr.open_array(store, path="a")[:] = number

    works = [lambda thread=thread: in_a_loop(thread) for thread in range(4)]
    with threads(through_zarr, *works):
        pass
    session.commit("loops")
    reader = repo.session("main")
    assert [reader.sums(str(thread))[0] for thread in range(4)] == [21] * 4
    assert set(zarr.open_array(reader.store, path="a")[:].tolist()) == {9}


async def test_a_write_that_is_cancelled(repo):
    """It happened or it did not; the next one works, and the commit has no half of it."""
    session = repo.session("main")
    store = session.store
    values = [bytes([number]) * LARGE for number in range(40)]
    await store.set("key0", buffer(values[0]))
    # None of the others can end before it is cancelled.
    with session._work.lock:
        tasks = [
            asyncio.create_task(store.set(f"key{number}", buffer(value)))
            for number, value in enumerate(values[1:], 1)
        ]
        # Some are in threads then, some wait for one.
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
    ended = [None, *await asyncio.gather(*tasks, return_exceptions=True)]
    assert any(isinstance(result, asyncio.CancelledError) for result in ended)
    await store.set("after", buffer(b"after"))
    session.commit("what was done")
    reader = repo.store("main")
    assert await read(reader, "after") == b"after"
    for number, (value, result) in enumerate(zip(values, ended, strict=True)):
        found = await read(reader, f"key{number}")
        assert found == value if result is None else found in (value, None)


async def test_a_write_to_a_fork_that_is_cancelled(repo):
    session = repo.session("main")
    store = session.fork().store
    tasks = [asyncio.create_task(store.set(f"key{n}", buffer(b"%d" % n))) for n in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [result for result in ended[1::2] if result is not None] == []
    session.merge_fork()
    session.commit("a fork's")
    reader = repo.store("main")
    for number in range(1, 20, 2):
        assert await read(reader, f"key{number}") == b"%d" % number


def test_asynchronous_groups(repo):
    """zarr's asynchronous API in a loop of the user's."""

    async def work(store: vzarr.VzarrStore) -> int:
        group = await zarr.api.asynchronous.open_group(store, mode="a")
        array = await group.create_array("a", shape=10, chunks=2, dtype="i8")
        await array.setitem(slice(None), np.arange(10))
        return int((await array.getitem(slice(None))).sum())

    with repo.transaction("main", "asynchronous") as store:
        assert asyncio.run(work(store)) == 45
    assert zarr.open_array(repo.store("main"), path="a")[:].sum() == 45
