"""A fork's store passes zarr's tests and does all that a session's store does."""

from __future__ import annotations

import asyncio
import inspect

import numpy as np
import pytest
import zarr
from dask.base import tokenize
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import cpu
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine

from tests.processes import Child, until
from tests.zarr.test_store import VALUES, WRITES, _attempt, _ZarrTests, buffer, everything_read
from vzarr import ReadOnlyError, Repository, VzarrStore

# zarr's machines make arrays of every dtype.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


class TestFork(_ZarrTests):
    """zarr's own tests."""

    @pytest.fixture
    def store_kwargs(self, repo: Repository) -> dict:
        self.parent = repo.session("main")
        return {"session": self.parent.fork()}


@pytest.mark.parametrize("machine", [ZarrHierarchyStateMachine, ZarrStoreStateMachine])
def test_zarrs_state_machines(repo, machine):
    session = repo.session("main")

    run_state_machine_as_test(
        lambda: machine(session.fork().store),
        settings=settings(
            max_examples=10,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.fixture
def session(repo):
    session = repo.session("main")
    for key, value in VALUES.items():
        session.set(key, value)
    return session


@pytest.fixture
def store(session) -> VzarrStore:
    return session.fork().store


async def test_every_read_gives_what_the_sessions_store_gives(session, store):
    assert await everything_read(store) == await everything_read(session.store)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_every_write_does_what_the_sessions_store_does(session, store, write):
    await _attempt(write, store)
    await _attempt(write, session.store)
    assert store.session.root_id() == session.root_id()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_every_write_to_a_view_is_refused(session, store, write):
    with pytest.raises(ReadOnlyError, match="read-only mode"):
        await _attempt(write, store.with_read_only(True))
    assert store.session.root_id() == session.root_id()


async def test_every_write_to_a_fork_that_has_ended_is_refused(session, store):
    session.merge_fork()
    effective = {key: write for key, write in WRITES.items() if "there is" not in key}
    for write in effective.values():
        with pytest.raises(Exception, match="nothing can be written to fork") as caught:
            await _attempt(write, store)
        assert type(caught.value).__name__ == "SessionStateError"


@pytest.mark.parametrize("size", [10, 70_000, 1_100_000])
async def test_what_is_set_may_change_afterwards(store, size):
    for key, write in (("async", store.set), ("sync", store.set_sync)):
        memory = np.arange(size, dtype="u1")
        expected = memory.tobytes()
        result = write(key, cpu.Buffer.from_array_like(memory))
        if inspect.isawaitable(result):
            await result
        memory[:] = 0
        assert store.get_sync(key).to_bytes() == expected


async def test_to_cancel_one_write_leaves_those_of_others(repo, store):
    fork = store.session

    def hold(pipe) -> None:
        with fork.environment.write():
            pipe.send("held")
            pipe.recv()

    holder = Child(hold)
    holder.receive()
    one = asyncio.create_task(store.set("one", buffer(b"1")))
    two = asyncio.create_task(store.set("two", buffer(b"2")))
    await asyncio.sleep(0)
    until(lambda: len(fork._writer._group.edits) == 2)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    holder.pipe.send("let go")
    await two
    holder.result()
    assert store.get_sync("two").to_bytes() == b"2"


def test_dask_never_takes_a_fork_for_what_it_was(store):
    assert tokenize(store) != tokenize(store)


def test_a_fork_of_a_transaction(repo):
    with repo.transaction("main", "by a fork") as store:
        zarr.create_array(store, name="a", shape=(10,), chunks=(5,), dtype="i8")
        fork = store.session.fork()
        zarr.open_array(fork.store, path="a")[:5] = 1
        store.session.merge_fork(fork)
    assert zarr.open_array(repo.store("main"), path="a")[:].sum() == 5
    assert repo.log("main")[0].message == "by a fork"
